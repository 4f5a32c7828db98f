"""Fit the calibration of the network's probabilities to out-of-fold predictions of the training cohort.

Isotonic regression needs far more patients than Platt's method: with fewer than about a thousand it overfits and does
worse (Niculescu-Mizil and Caruana 2005, ICML, "Predicting good probabilities with supervised learning").
"""

import numpy as np

from haemex.calibration import METHODS
from haemex.errors import InputError
from haemex.statistics import calibration_fit

# Below this many patients isotonic regression overfits (Niculescu-Mizil and Caruana 2005).
ISOTONIC_PATIENTS = 1000


def fit_calibration(method, labels, logits):
    """Fit a calibration.

    Parameters
    ----------
    method : {"platt", "isotonic"}
        Platt: the logistic regression of expansion on the logit, by maximum likelihood (`haemex.statistics.
        logistic_fit`, with Platt's targets where the groups do not overlap). Isotonic: the rising step function of
        least squares (scikit-learn), with its values kept between 1 / (n0 + 2) and (n1 + 1) / (n1 + 2).
    labels : array-like of 0/1, (n,)
    logits : array-like of float, (n,)
        Finite.

    Returns
    -------
    dict
        See `haemex.calibration`.

    Raises
    ------
    InputError
        An unknown method, or no patients.
    """
    if method not in METHODS:
        raise InputError(f"select.calibration is {method!r}", f"give one of {', '.join(METHODS)}")
    if method == "platt":
        intercept, slope = calibration_fit(labels, logits)
        return {"method": method, "intercept": intercept, "slope": slope}
    from sklearn.isotonic import IsotonicRegression

    labels, logits = np.asarray(labels, float), np.asarray(logits, float)
    if labels.size == 0:
        raise InputError("no patients to fit a calibration to", "check the training cohort")
    with_expansion = labels.sum()
    # ASSUME: no finite cohort makes an outcome certain. The bounds are the targets of Platt 1999 (Advances in Large
    # Margin Classifiers, p. 61): one patient more of each kind. Without them the ends are 0 and 1, and their logits
    # infinite.
    model = IsotonicRegression(
        y_min=1 / (labels.size - with_expansion + 2),
        y_max=(with_expansion + 1) / (with_expansion + 2),
        out_of_bounds="clip",
    ).fit(logits, labels)
    return {
        "method": method,
        "logit": model.X_thresholds_.tolist(),
        "probability": np.asarray(model.y_thresholds_, float).tolist(),
    }
