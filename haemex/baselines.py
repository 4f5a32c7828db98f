"""What the network must beat: univariate logistic models of haematoma volume and of the BAT score.

Paper, "Logistic regression models based on the haematoma volume and the BAT score": both are developed on the training
cohort. Their operating points are fixed there as well, and go to the test cohort unchanged.
"""

import math

import numpy as np

from haemex.statistics import logistic_fit, sensitivity_threshold, youden_threshold

PREDICTORS = {"volume": "baseline_ml", "bat": "bat_score"}


def fit_logistic(x, labels):
    """Fit a univariate logistic model by maximum likelihood.

    Parameters
    ----------
    x : array-like of float, (n,)
        Finite.
    labels : array-like of 0/1, (n,)
        Haematoma expansion.

    Returns
    -------
    dict
        intercept, coefficient (log odds per unit of x), separated (bool: maximum likelihood has no finite answer, see
        `haemex.statistics.logistic_fit` for what is given then).
    """
    fit = logistic_fit(x, labels)
    return {"intercept": fit.intercept, "coefficient": fit.slope, "separated": fit.separated}


def apply_logistic(model, x):
    """Probability of expansion by a fitted model.

    Parameters
    ----------
    model : dict
        With intercept and coefficient, from `fit_logistic` or `fit_baselines`.
    x : float, None or array-like of them
        None and nan are missing.

    Returns
    -------
    float or numpy.ndarray
        nan where x is missing.
    """
    eta = model["intercept"] + model["coefficient"] * np.asarray(x, float)
    with np.errstate(invalid="ignore"):  # nan stays nan
        probability = np.exp(-np.logaddexp(0, -eta))
    return probability if probability.ndim else float(probability)


def fit_baselines(rows, threshold_rule="youden", min_sensitivity=None):
    """Fit the volume and the BAT model and fix their operating points, on the training cohort alone.

    Parameters
    ----------
    rows : list of dict
        Training patients with expansion (0/1), baseline_ml and bat_score (None = missing: that patient is left out of
        that model). A row that says cohort "test" is refused.
    threshold_rule : {"youden", "sensitivity"}
        How the threshold on the probability is chosen.
    min_sensitivity : float, optional
        Used with the rule "sensitivity" only, which needs it.

    Returns
    -------
    dict of str to dict
        "volume" and "bat", each with predictor (column), intercept, coefficient, separated, threshold (a probability
        >= threshold is positive), rule, patients, expansions, missing. A model whose predictor nobody has is left out.

    Raises
    ------
    ValueError
        A row of the test cohort, an unknown rule, or "sensitivity" without its number.
    InputError
        The patients with a value all have, or all lack, expansion.
    """
    if any(row.get("cohort", "train") != "train" for row in rows):
        raise ValueError("baselines are fitted on the training cohort only")
    if threshold_rule not in ("youden", "sensitivity"):
        raise ValueError(f"no threshold rule {threshold_rule!r}")
    if threshold_rule == "sensitivity" and min_sensitivity is None:
        raise ValueError("the rule 'sensitivity' needs min_sensitivity")
    models = {}
    for name, column in PREDICTORS.items():
        known = [row for row in rows if row[column] is not None and not math.isnan(row[column])]
        if not known:  # a study without marker readings has no BAT score
            continue
        x, labels = [row[column] for row in known], [row["expansion"] for row in known]
        model = fit_logistic(x, labels)
        probability = apply_logistic(model, x)
        if threshold_rule == "youden":
            threshold = youden_threshold(labels, probability)
        else:
            threshold = sensitivity_threshold(labels, probability, min_sensitivity)
        models[name] = {
            "predictor": column,
            **model,
            "threshold": threshold,
            "rule": threshold_rule,
            "patients": len(known),
            "expansions": int(sum(labels)),
            "missing": len(rows) - len(known),
        }
    return models
