"""How far stated probabilities can be trusted: calibration line, observed to expected, Brier score, with intervals.

All of it measures; nothing here is ever applied to a prediction, so nothing is refitted on the test cohort. What a
recalibration at another centre would look like (`recalibration`) is fitted on the very patients it is measured on; it
is shown beside the locked calibration and used nowhere.
"""

import math
from statistics import NormalDist

import numpy as np

from haemex.statistics import UNDEFINED, Interval, brier, logistic_fit


def calibration_line(labels, logits, confidence=0.95):
    """Calibration intercept and slope with Wald intervals (Cox 1958; Van Calster 2019, BMC Med 17:230).

    The standard errors are those of maximum likelihood, from the inverse of the observed information.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    logits : array-like of float, (n,)
        What the model claims.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    intercept, slope : Interval
        A well calibrated model has 0 and 1. Bounds are nan where maximum likelihood has no finite answer (the logits
        separate the outcomes) and where the logits do not differ.
    """
    fit = logistic_fit(logits, labels)
    x = np.asarray(logits, float)
    if fit.separated or x.min() == x.max():
        return Interval(fit.intercept, math.nan, math.nan), Interval(fit.slope, math.nan, math.nan)
    risk = _risk(fit.intercept + fit.slope * x)
    design = np.stack([np.ones_like(x), x], axis=1)
    covariance = np.linalg.inv(design.T @ (design * (risk * (1 - risk))[:, None]))
    z = _z(confidence)
    return tuple(
        Interval(estimate, float(estimate - z * error), float(estimate + z * error))
        for estimate, error in zip((fit.intercept, fit.slope), np.sqrt(np.diag(covariance)), strict=True)
    )


def calibration_in_the_large(labels, logits, confidence=0.95):
    """Intercept alone, the slope held at 1, with its Wald interval: how much all risks are too low or too high.

    Maximum likelihood: the shift of the logits by which as many events are expected as were observed (Steyerberg 2009,
    Clinical Prediction Models, chapter 15).

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    logits : array-like of float, (n,)
        What the model claims.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        0 for a model that expects as many events as there are; nan without patients or with one outcome only.
    """
    labels, logits = np.asarray(labels, float), np.asarray(logits, float)
    if labels.size == 0 or labels.min() == labels.max():
        return UNDEFINED
    shift, wanted = 0.0, labels.sum()
    # The expected number rises with the shift, so it is found between shifts that put everybody on either side.
    low, high = -float(logits.max()) - 50.0, -float(logits.min()) + 50.0
    for _ in range(200):
        shift = (low + high) / 2
        low, high = (shift, high) if _risk(logits + shift).sum() < wanted else (low, shift)
    risk = _risk(logits + shift)
    half = _z(confidence) / math.sqrt(float((risk * (1 - risk)).sum()))
    return Interval(shift, shift - half, shift + half)


def recalibration(labels, logits, confidence=0.95):
    """Fit what would bring a model's claims in line with these very patients, by two amounts of freedom.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    logits : array-like of float, (n,)
        What the model claims.
    confidence : float
        Two-sided confidence level of the Wald intervals.

    Returns
    -------
    dict
        `intercept_only` and `intercept_and_slope`, each with `intercept` and `slope` as Intervals (a slope that is held
        has no bounds) and `probabilities`, (n,), what the patients' would become. `intercept_only` is None with one
        outcome only.
    """
    logits = np.asarray(logits, float)
    shift = calibration_in_the_large(labels, logits, confidence)
    intercept, slope = calibration_line(labels, logits, confidence)
    found = {
        "intercept_only": (shift, Interval(1.0, math.nan, math.nan)),
        "intercept_and_slope": (intercept, slope),
    }
    return {
        name: None
        if math.isnan(line[0].estimate)
        else {
            "intercept": line[0],
            "slope": line[1],
            "probabilities": _risk(line[0].estimate + line[1].estimate * logits),
        }
        for name, line in found.items()
    }


def observed_to_expected(labels, probabilities, confidence=0.95):
    """Ratio of observed to expected events with its interval on the logarithmic scale.

    se(ln O:E) = sqrt((1 - O / n) / O), the expected number being taken as known (Debray 2017, BMJ 356:i6460).

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    probabilities : array-like of float, (n,)
        Between 0 and 1.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        1 is perfect, below 1 the model expects too many. Without an event 0 with nan bounds; nan without patients or
        where nothing is expected.
    """
    labels, probabilities = np.asarray(labels, float), np.asarray(probabilities, float)
    observed, expected, n = float(labels.sum()), float(probabilities.sum()), labels.size
    if n == 0 or expected == 0:
        return UNDEFINED
    if observed == 0:
        return Interval(0.0, math.nan, math.nan)
    ratio = observed / expected
    spread = math.exp(_z(confidence) * math.sqrt((1 - observed / n) / observed))
    return Interval(ratio, ratio / spread, ratio * spread)


def brier_interval(labels, probabilities, confidence=0.95):
    """Brier score with the normal interval of a mean of squared errors, cut to [0, 1].

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    probabilities : array-like of float, (n,)
        Between 0 and 1.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        Bounds nan with fewer than two patients.
    """
    score = brier(labels, probabilities)
    errors = (np.asarray(probabilities, float) - np.asarray(labels, float)) ** 2
    if errors.size < 2:
        return Interval(score, math.nan, math.nan)
    half = _z(confidence) * float(errors.std(ddof=1)) / math.sqrt(errors.size)
    return Interval(score, max(score - half, 0.0), min(score + half, 1.0))


def _risk(logits):
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, float)))


def _z(confidence):
    return NormalDist().inv_cdf(0.5 + confidence / 2)
