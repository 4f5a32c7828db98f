"""Calibration of the network's probabilities, fitted on out-of-fold predictions of the training cohort.

A calibration is a plain dict that JSON can hold, so that it travels in a model bundle and nothing in it is executed:

- Platt: `{"method": "platt", "intercept": a, "slope": b}`; the calibrated logit is a + b * logit.
- Isotonic: `{"method": "isotonic", "logit": [...], "probability": [...]}`, knots that never fall; the calibrated
  probability is interpolated linearly between them and constant beyond the outermost.

Limits. Platt's two numbers bend every curve to a sigmoid: right where the network is merely over- or underconfident.
Isotonic regression takes any rising shape, and needs far more patients for it (see `haemex.calibration_fit`). Its steps
also give patients of different logits the same probability. Neither changes the
operating point, which is a threshold of the uncalibrated probability.
"""

import itertools
import math
import sys

import numpy as np

from haemex.errors import InputError

METHODS = ("platt", "isotonic")


def calibrate(calibration, logit):
    """Return the calibrated probability of a logit.

    Parameters
    ----------
    calibration : dict
        Of `haemex.calibration_fit.fit_calibration` or `read_calibration`.
    logit : float

    Returns
    -------
    float
        Between 0 and 1.
    """
    if calibration["method"] == "isotonic":
        return float(np.interp(logit, calibration["logit"], calibration["probability"]))
    return float(np.exp(-np.logaddexp(0.0, -calibrated_logit(calibration, logit))))


def calibrated_logit(calibration, logit):
    """Return the calibrated logit of a logit: with Platt's method it does not saturate, as the probability does.

    Parameters
    ----------
    calibration : dict
        Of `haemex.calibration_fit.fit_calibration` or `read_calibration`.
    logit : float

    Returns
    -------
    float
        Finite.
    """
    if calibration["method"] == "isotonic":
        probability = calibrate(calibration, logit)
        return math.log(probability) - math.log1p(-probability)
    return calibration["intercept"] + calibration["slope"] * logit


def read_calibration(content, file):
    """Check a calibration that came with a model bundle, perhaps from another centre.

    Parameters
    ----------
    content : object
        What the JSON holds in its place.
    file : path-like
        The bundle's description, for the message.

    Returns
    -------
    dict
        A calibration `calibrate` can use, with what belongs to its method and nothing else.

    Raises
    ------
    InputError
        An unknown method; a number that is missing, no number or not finite; knots that fall, or probabilities that
        do not lie between 0 and 1.
    """
    method = content.get("method") if isinstance(content, dict) else None
    if method not in METHODS:
        raise _refused(file, f"its method is {method!r}, this haemex knows {', '.join(METHODS)}")
    if method == "platt":
        values = {name: content.get(name) for name in ("intercept", "slope")}
        for name, value in values.items():
            if not _is_finite(value):
                raise _refused(file, f"{name} is {value!r}")
        return {"method": method, **{name: float(value) for name, value in values.items()}}
    logit, probability = content.get("logit"), content.get("probability")
    if not all(isinstance(one, list) and one and all(map(_is_finite, one)) for one in (logit, probability)):
        raise _refused(file, "its knots are no lists of finite numbers")
    if len(logit) != len(probability):
        raise _refused(file, f"it has {len(logit)} logits but {len(probability)} probabilities")
    if not all(0 < one < 1 for one in probability):
        raise _refused(file, "a probability does not lie between 0 and 1")
    if any(a >= b for a, b in itertools.pairwise(logit)):
        raise _refused(file, "its logits do not rise")
    if any(a > b for a, b in itertools.pairwise(probability)):
        raise _refused(file, "its probabilities fall")
    return {"method": method, "logit": [float(x) for x in logit], "probability": [float(p) for p in probability]}


def calibration_in_words(calibration):
    """Describe a calibration for the report.

    Parameters
    ----------
    calibration : dict

    Returns
    -------
    str
        Part of a sentence.
    """
    if calibration["method"] == "isotonic":
        levels = len(set(calibration["probability"]))
        return f"isotonic regression with {levels} {'level' if levels == 1 else 'levels'}"
    return f"Platt's method, intercept {calibration['intercept']:.2f}, slope {calibration['slope']:.2f}"


def _is_finite(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # false for NaN; JSON can hold integers beyond every float


def _refused(file, problem):
    return InputError(
        f"the calibration cannot be used: {problem}",
        "take the whole folder of the model bundle again from where it was made",
        file,
    )
