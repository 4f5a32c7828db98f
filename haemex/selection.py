"""Choose hyperparameters and lock the operating point, from out-of-fold predictions of the training cohort only."""

import math
from pathlib import Path

import numpy as np

from haemex.errors import InputError
from haemex.files import write_json
from haemex.statistics import calibration_fit, delong_auc, sensitivity_threshold, youden_threshold
from haemex.tables import read_table, write_table

CRITERIA = {"auc": "auc", "dice": "dice_median"}
OPERATING_POINTS = ("youden", "sensitivity")
CANDIDATE_COLUMNS = ("candidate", "fold", "patients", "expansions", "auc", "dice_median", "dice_mean", "collapsed")
PREDICTION_COLUMNS = ("patient", "fold", "expansion", "probability", "logit", "dice", "predicted_ml")


def select(
    *,
    candidates,
    train_folder,
    cohort_path,
    criterion,
    operating_point,
    min_sensitivity,
    collapsed_dice,
    selected_path,
    predictions_path,
    candidates_path,
):
    """Pool every candidate's out-of-fold predictions, choose one, and derive its threshold and calibration.

    Parameters
    ----------
    candidates : sequence of str
        In the order of the config: of equally good ones the first is taken.
    train_folder : path-like
        Holds `{candidate}/fold{fold}/predictions.tsv` and `roles.tsv` of the stage `train`.
    cohort_path : path-like
        `cohort.tsv` of the stage `cohort`; rows of the test cohort are not looked at.
    criterion : {"auc", "dice"}
        The highest AUC of the pooled predictions, or the highest median Dice coefficient.
    operating_point : {"youden", "sensitivity"}
        How the threshold of the probability is found on the chosen candidate's pooled predictions.
    min_sensitivity : float
        Used with `operating_point="sensitivity"`.
    collapsed_dice : float
        A fold whose median Dice coefficient is below this is reported as an alarm: an average would hide it.
    selected_path : path-like
        The decision (JSON): `candidate`, `criterion`, `scores`, `threshold`, `calibration`, `alarms` (collapsed
        folds of any candidate; a chosen candidate that predicts expansion no better than chance).
    predictions_path : path-like
        Out-of-fold predictions of the chosen candidate (`PREDICTION_COLUMNS`).
    candidates_path : path-like
        Scores of every candidate, pooled (fold "all") and by fold (`CANDIDATE_COLUMNS`).

    Raises
    ------
    InputError
        Predictions or roles do not fit the folds, a patient stands on two sides, or one class is missing.
    """
    if criterion not in CRITERIA:
        raise InputError(f"select.criterion is {criterion!r}", f"give one of {', '.join(CRITERIA)}")
    if operating_point not in OPERATING_POINTS:
        raise InputError(f"select.operating_point is {operating_point!r}", f"give one of {', '.join(OPERATING_POINTS)}")
    cohort = {row["patient"]: row for row in read_table(cohort_path, as_text=True) if row["cohort"] == "train"}
    expansions = sum(row["expansion"] == "1" for row in cohort.values())
    if not 0 < expansions < len(cohort):
        raise InputError(
            f"{expansions} of {len(cohort)} patients of the training cohort have an expansion",
            "prediction can be judged only with patients of both kinds",
            cohort_path,
        )

    pooled, scores, alarms, table = {}, {}, [], []
    for candidate in candidates:
        rows = _out_of_fold(candidate, cohort, Path(train_folder) / candidate)
        pooled[candidate] = rows
        collapsed = []
        for fold in sorted({row["fold"] for row in rows}):
            of_fold = [row for row in rows if row["fold"] == fold]
            scored = _score(of_fold)
            if scored["dice_median"] < collapsed_dice:
                collapsed.append(fold)
                alarms.append(
                    f"candidate {candidate}, fold {fold}: the median Dice coefficient of its {len(of_fold)} patients "
                    f"is {scored['dice_median']:.3f}, below {collapsed_dice:g}; the network did not learn to segment"
                )
            table.append({"candidate": candidate, "fold": fold, **scored, "collapsed": int(fold in collapsed)})
        scored = _score(rows)
        table.append({"candidate": candidate, "fold": "all", **scored, "collapsed": len(collapsed)})
        scores[candidate] = {key: scored[key] for key in ("auc", "dice_median", "dice_mean")}
        scores[candidate]["collapsed_folds"] = collapsed

    chosen = max(candidates, key=lambda candidate: scores[candidate][CRITERIA[criterion]])  # the first of equals
    if scores[chosen]["auc"] <= 0.5:
        alarms.append(
            f"candidate {chosen} is chosen, but its AUC out of fold is {scores[chosen]['auc']:.3f}: it has not "
            "learnt to predict expansion"
        )
    labels = [row["expansion"] for row in pooled[chosen]]
    probabilities = [row["probability"] for row in pooled[chosen]]
    if operating_point == "youden":
        threshold = youden_threshold(labels, probabilities)
    else:
        threshold = sensitivity_threshold(labels, probabilities, min_sensitivity)
    intercept, slope = calibration_fit(labels, [row["logit"] for row in pooled[chosen]])

    decision = {
        "candidate": chosen,
        "criterion": criterion,
        "scores": scores,
        "threshold": threshold,
        "calibration": {"intercept": intercept, "slope": slope},
        "alarms": alarms,
    }
    write_table(predictions_path, pooled[chosen], PREDICTION_COLUMNS)
    write_table(candidates_path, table, CANDIDATE_COLUMNS)
    write_json(selected_path, decision)


def _out_of_fold(candidate, cohort, folder):
    """Read one candidate's predictions, each patient's from the fold that did not train on it; sorted by patient."""
    rows = []
    for fold in sorted({int(patient["fold"]) for patient in cohort.values()}):
        held_out = {name for name, patient in cohort.items() if int(patient["fold"]) == fold}
        roles_path = folder / f"fold{fold}" / "roles.tsv"
        predictions_path = folder / f"fold{fold}" / "predictions.tsv"
        roles = read_table(roles_path, as_text=True)
        trained = {row["patient"] for row in roles if row["role"] == "train"}
        validated = [row["patient"] for row in roles if row["role"] == "validation"]
        _refuse_unless(
            not trained & set(validated),
            f"{len(trained & set(validated))} patients are trained on and validated in the same job",
            roles_path,
        )
        _refuse_unless(
            trained == set(cohort) - held_out,
            f"{len(trained)} patients are trained on, not the {len(cohort) - len(held_out)} of the other folds",
            roles_path,
        )
        _refuse_unless(
            sorted(validated) == sorted(held_out),
            f"{len(validated)} validation scans, not one of each of the {len(held_out)} patients of fold {fold}",
            roles_path,
        )
        _refuse_unless(
            all(row["copy"] == "scan" for row in roles if row["role"] == "validation"),
            "an augmented copy is used for validation",
            roles_path,
        )
        predictions = read_table(predictions_path, as_text=True)
        _refuse_unless(
            sorted(row["patient"] for row in predictions) == sorted(held_out),
            f"{len(predictions)} predictions, not one for each of the {len(held_out)} patients of fold {fold}",
            predictions_path,
        )
        for row in predictions:
            values = {name: float(row[name]) for name in ("probability", "logit", "dice", "predicted_ml")}
            _refuse_unless(
                all(math.isfinite(value) for value in values.values()),
                f"a prediction for patient {row['patient']} is no finite number",
                predictions_path,
            )
            expansion = int(cohort[row["patient"]]["expansion"])
            rows.append({"patient": row["patient"], "fold": fold, "expansion": expansion, **values})
    return sorted(rows, key=lambda row: row["patient"])


def _refuse_unless(condition, problem, path):
    if not condition:
        raise InputError(problem, "remove the folder of this training and run the workflow again", path)


def _score(rows):
    """Compute AUC (None where one class is missing) and Dice coefficients of some predictions."""
    labels = [row["expansion"] for row in rows]
    auc = delong_auc(labels, [row["probability"] for row in rows]).auc
    dice = [row["dice"] for row in rows]
    return {
        "patients": len(rows),
        "expansions": sum(labels),
        "auc": None if math.isnan(auc) else auc,
        "dice_median": float(np.median(dice)),
        "dice_mean": float(np.mean(dice)),
    }
