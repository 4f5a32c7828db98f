"""Decision curve: whether acting on the model does more good than acting on everybody, or on nobody.

Vickers and Elkin 2006 (Med Decis Making 26:565).
"""

import numpy as np

# From the whole per cent to 60 %: a clinician who would act only above that does not need a prediction of expansion.
# ASSUME: nobody has stated the threshold probabilities of treatment against expansion, so the reader chooses.
THRESHOLDS = tuple(percent / 100 for percent in range(1, 61))
MODELS = {"cnn": "calibrated_probability", "volume": "volume", "bat": "bat"}
COLUMNS = ("threshold", "patients", "expansions", *MODELS, "all", "none")


def net_benefit(labels, probabilities, threshold):
    """Net benefit of acting on patients whose probability reaches a threshold: TP/n - FP/n * t / (1 - t).

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    probabilities : array-like of float, (n,)
    threshold : float
        t, above 0 and below 1: the probability from which one would act, so that one treatment that was needed is
        worth (1 - t) / t that were not.

    Returns
    -------
    float
        In expansions rightly acted on per patient; nan without patients.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold probability of {threshold}")
    labels, acted = np.asarray(labels) == 1, np.asarray(probabilities, float) >= threshold
    if labels.size == 0:
        return float("nan")
    true, false = np.count_nonzero(labels & acted), np.count_nonzero(~labels & acted)
    return (true - false * threshold / (1 - threshold)) / labels.size


def decision_curve(scores):
    """Net benefit of the network, of the two logistic models, of acting on all and on none, over the thresholds.

    The probabilities are those the training cohort fixed. The patients are those of whom every model speaks, so that
    the curves can be compared.

    Parameters
    ----------
    scores : list of dict
        `haemex.table_two.score_patients`: expansion, calibrated_probability, volume, bat; None = missing.

    Returns
    -------
    list of dict
        `COLUMNS`, one row per threshold of `THRESHOLDS`. A model that speaks of nobody (no BAT score was known) is None
        throughout and excludes no patient.
    """
    speaking = {name: column for name, column in MODELS.items() if any(row[column] is not None for row in scores)}
    known = [row for row in scores if all(row[column] is not None for column in speaking.values())]
    labels = [row["expansion"] for row in known]
    table = []
    for threshold in THRESHOLDS:
        row = {"threshold": threshold, "patients": len(known), "expansions": sum(labels)} | dict.fromkeys(MODELS)
        for name, column in speaking.items():
            row[name] = net_benefit(labels, [one[column] for one in known], threshold)
        table.append(row | {"all": net_benefit(labels, [1.0] * len(known), threshold), "none": 0.0})
    return table


def useful_range(table, model="cnn"):
    """Find where acting on a model does more good than acting on all and on none.

    Parameters
    ----------
    table : list of dict
        `decision_curve`.
    model : str
        A key of `MODELS`.

    Returns
    -------
    list of [float, float]
        First and last threshold of every unbroken stretch; empty where the model is never the best of the three.
    """
    stretches, before = [], False
    for row in table:
        better = row[model] is not None and row[model] > max(row["all"], row["none"]) + 1e-12
        if better and before:
            stretches[-1][1] = row["threshold"]
        elif better:
            stretches.append([row["threshold"]] * 2)
        before = better
    return stretches
