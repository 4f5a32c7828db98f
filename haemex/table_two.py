"""Table 2: the NCCT markers, the logistic models and the network, patient by patient and in sum, on the test cohort."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from haemex.baselines import apply_logistic
from haemex.computed_markers import computed_columns
from haemex.markers import MARKERS
from haemex.statistics import (
    count_decisions,
    delong_auc,
    delong_paired,
    holm,
    likelihood_ratios,
    wilson_interval,
    youden_threshold,
)

# Rows of Table 2 after the seven markers: column of `scores.tsv`, name as the paper prints it.
MODELS = {"volume": "Haematoma volume", "bat": "BAT score", "cnn": "CNN"}
MEASURES = (
    "sensitivity",
    "specificity",
    "lr_pos_weighted",
    "lr_neg_weighted",
    "lr_pos",
    "lr_neg",
    "ppv",
    "npv",
    "auc",
    "auc_difference",
)


def score_patients(test, predictions, baselines, computed):
    """Collect what every marker and model says about each patient of the test cohort.

    Parameters
    ----------
    test : list of dict
        Patients with the markers, `baseline_ml`, `bat_score`, `onset_to_ct_h` and `expansion`.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient.
    baselines : dict
        `haemex.baselines.fit_baselines`.
    computed : dict
        `haemex.computed_markers.read_computed`.

    Returns
    -------
    list of dict
        patient, expansion, the network's probability, logit, calibrated_probability and positive; baseline_ml and
        bat_score; the seven markers (0/1); for ranking, `volume` and `bat` (probability of the logistic model) and
        `cnn` (the logit, which does not saturate as the probability does); and what was computed from the CT,
        `computed_<marker>` and `computed_bat_score`. None = missing.
    """
    return [
        {
            "patient": row["patient"],
            "expansion": row["expansion"],
            **{
                name: predictions[row["patient"]][name]
                for name in ("probability", "logit", "calibrated_probability", "positive")
            },
            "baseline_ml": row["baseline_ml"],
            "bat_score": row["bat_score"],
            **{marker: None if row[marker] is None else int(row[marker]) for marker in MARKERS},
            "volume": apply_logistic(baselines["volume"], row["baseline_ml"]),
            "bat": apply_logistic(baselines["bat"], row["bat_score"])
            if "bat" in baselines and row["bat_score"] is not None
            else None,
            "cnn": predictions[row["patient"]]["logit"],
            **computed_columns(computed[row["patient"]], row["onset_to_ct_h"]),
        }
        for row in test
    ]


def table_two(scores, operating_point, baselines, bat_cut, confidence):
    """Make Table 2: the seven markers, the two logistic models and the network on the test cohort.

    Below the paper's ten rows stand the markers and the BAT score once more, computed from the CT. A patient with a
    missing marker is left out of that marker's row (its `n` says so), and the row is compared with the network on the
    patients both have. "Weighted" likelihood ratios are the paper's TP/FP and FN/TN, post-test odds.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    operating_point : dict
        The network's `threshold` and `rule`, from the model bundle.
    baselines : dict
        `haemex.baselines.fit_baselines`, fitted on the training cohort.
    bat_cut : int
        BAT score from which a patient is called positive, read or computed.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        row; source ("read" by a reader, "model", or "computed" from the CT); n, expansions, tp, fn, tn, fp; for every
        name of `MEASURES` the estimate, `_lower` and `_upper`; p (paired DeLong against the network), p_holm (over the
        nine comparisons of the paper, and over the eight of what was computed); threshold (on what `threshold_on` says)
        and `threshold_from`; `note`. What is undefined is None. `auc_difference` is the network minus the row.
    """
    table = [_row(plan, scores, confidence) for plan in _plans(operating_point, baselines, bat_cut)]
    # The computed rows are a second opinion: to look at them costs the paper's comparisons nothing.
    for family in ([row for row in table if (row["source"] == "computed") is second] for second in (False, True)):
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = float(adjusted)
    return [without_nan(row) for row in table]


class _Plan(NamedTuple):
    """A row of Table 2: what ranks the patients (None = not known of this one), and who is called positive."""

    label: str
    source: str
    rank: Callable
    decide: Callable
    threshold: tuple
    note: str = ""


def _plans(operating_point, baselines, bat_cut):
    """Plan the rows in the order to print."""
    volume = baselines["volume"]
    how = {"youden": "Youden, training cohort", "sensitivity": "minimum sensitivity, training cohort"}
    bat_threshold = (bat_cut, "BAT score", "set beforehand in the config")

    def column(name):
        return lambda row: row[name]

    def computed_bat(row):
        # The model of the score as read, if there is one, so that both rows are ranked in one direction.
        points = row["computed_bat_score"]
        return points if points is None or "bat" not in baselines else apply_logistic(baselines["bat"], points)

    plans = [
        _Plan(label, "read", column(marker), column(marker), (None, "reading", "present or absent"))
        for marker, label in MARKERS.items()
    ]
    plans += [
        _Plan(
            MODELS["volume"],
            "model",
            column("volume"),
            lambda row: int(row["volume"] >= volume["threshold"]),
            (volume["threshold"], "probability of the logistic model", how[volume["rule"]]),
            _direction(volume),
        ),
        _Plan(
            MODELS["bat"],
            "read",
            column("bat"),
            lambda row: int(row["bat_score"] >= bat_cut),
            bat_threshold,
            _direction(baselines.get("bat")),
        ),
        _Plan(
            MODELS["cnn"],
            "model",
            column("cnn"),
            column("positive"),
            (
                operating_point["threshold"],
                "probability of the network",
                f"{how[operating_point['rule']]}, out-of-fold",
            ),
        ),
    ]
    plans += [
        _Plan(
            f"{label}, computed",
            "computed",
            column(f"computed_{marker}"),
            column(f"computed_{marker}"),
            (None, "computed from the CT", "present or absent"),
            "computed from CT and mask; nothing else rests on it",
        )
        for marker, label in MARKERS.items()
    ]
    rank = f"ranked by the {MODELS['bat']}'s model" if "bat" in baselines else "ranked by the score itself"
    plans.append(
        _Plan(
            f"{MODELS['bat']}, computed",
            "computed",
            computed_bat,
            lambda row: int(row["computed_bat_score"] >= bat_cut),
            bat_threshold,
            f"from blend sign and hypodensity computed from CT and mask, and the time to CT; {rank}",
        )
    )
    return plans


def _direction(model):
    """Say in which direction a logistic model ranks.

    ASSUME: the direction of a predictor is the one the training cohort shows; it is never turned round on the test
    cohort, so an AUC below 0.5 stays below 0.5.
    """
    if model is None:
        return ""
    note = f"logistic coefficient {model['coefficient']:.3g}"
    if model["coefficient"] < 0:
        note += ": negative, higher values lower the risk in the training cohort, and the AUC is of that direction"
    elif model["coefficient"] == 0:
        note += ": no information in the training cohort"
    return note


def _row(plan, scores, confidence):
    known = [row for row in scores if plan.rank(row) is not None]
    labels, values = [row["expansion"] for row in known], [plan.rank(row) for row in known]
    counts = count_decisions(labels, [plan.decide(row) for row in known])
    tp, fn, tn, fp = counts
    area = delong_auc(labels, values, confidence)
    measures = {
        "sensitivity": wilson_interval(tp, tp + fn, confidence),
        "specificity": wilson_interval(tn, tn + fp, confidence),
        **likelihood_ratios(counts, confidence),
        "ppv": wilson_interval(tp, tp + fp, confidence),
        "npv": wilson_interval(tn, tn + fn, confidence),
        "auc": (area.auc, area.lower, area.upper),
        "auc_difference": (math.nan,) * 3,
    }
    p = math.nan
    if plan.label != MODELS["cnn"]:
        paired = delong_paired(labels, [row["cnn"] for row in known], values, confidence)
        measures["auc_difference"] = (paired.difference, paired.lower, paired.upper)
        p = paired.p_value
    row = {"row": plan.label, "source": plan.source, "n": len(known), "expansions": sum(labels)}
    row |= {"tp": tp, "fn": fn, "tn": tn, "fp": fp}
    for name in MEASURES:
        row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), measures[name], strict=True))
    threshold, threshold_on, threshold_from = plan.threshold
    row |= {"p": p, "p_holm": math.nan, "threshold": threshold, "threshold_on": threshold_on}
    return row | {"threshold_from": threshold_from, "note": plan.note}


def optimistic_points(scores, confidence):
    """Take the operating points that the test cohort itself would choose: what a study reports that peeks.

    They are optimistic, because threshold and result come from the same patients, and nothing else rests on them.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    confidence : float
        Level of the intervals, which do not know that the threshold was chosen.

    Returns
    -------
    dict of str to dict
        By row of Table 2 (network, volume, BAT): the threshold with the largest Youden index in the test cohort, on the
        scale of Table 2's threshold; sensitivity and specificity with Wilson's intervals. A row whose known patients
        have one outcome only is left out.
    """
    points = {}
    for name, column in (("cnn", "probability"), ("volume", "volume"), ("bat", "bat_score")):
        known = [row for row in scores if row[column] is not None]
        labels, values = [row["expansion"] for row in known], [row[column] for row in known]
        if len(set(labels)) < 2:
            continue
        threshold = youden_threshold(labels, values)
        tp, fn, tn, fp = count_decisions(labels, [int(value >= threshold) for value in values])
        point = {"threshold": threshold}
        for measure, interval in (
            ("sensitivity", wilson_interval(tp, tp + fn, confidence)),
            ("specificity", wilson_interval(tn, tn + fp, confidence)),
        ):
            point |= dict(zip((measure, f"{measure}_lower", f"{measure}_upper"), interval, strict=True))
        points[MODELS[name]] = point
    return points


def without_nan(value):
    """Replace NaN and infinity by None and numpy's numbers by Python's throughout, for JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
