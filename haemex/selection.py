"""Choose hyperparameters and lock the operating point, from out-of-fold predictions of the training cohort only."""

import math
from pathlib import Path

import numpy as np

from haemex.alarms import training_alarms
from haemex.calibration import METHODS
from haemex.calibration_fit import ISOTONIC_PATIENTS, fit_calibration
from haemex.errors import InputError
from haemex.files import write_json
from haemex.logs import announce
from haemex.statistics import delong_auc, delong_paired, sensitivity_threshold, youden_threshold
from haemex.tables import read_table, write_table

CRITERIA = {"auc": "auc", "dice": "dice_median"}
OPERATING_POINTS = ("youden", "sensitivity")
COLLAPSED = ("stop", "drop")
CONFIDENCE = 0.95
CANDIDATE_COLUMNS = (
    "candidate",
    "fold",
    "patients",
    "expansions",
    "auc",
    "auc_lower",
    "auc_upper",
    "auc_sd",
    "dice_median",
    "dice_median_sd",
    "dice_mean",
    "collapsed",
)
PREDICTION_COLUMNS = ("patient", "fold", "expansion", "probability", "logit", "dice", "predicted_ml")


def select(
    *,
    candidates,
    train_folder,
    cohort_path,
    criterion,
    operating_point,
    min_sensitivity,
    calibration,
    collapsed_dice,
    collapsed_fold,
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
        Holds `{candidate}/fold{fold}/predictions.tsv`, `roles.tsv` and `history.tsv` of the stage `train`.
    cohort_path : path-like
        `cohort.tsv` of the stage `cohort`; rows of the test cohort are not looked at.
    criterion : {"auc", "dice"}
        The highest AUC of the pooled predictions, or the highest median Dice coefficient.
    operating_point : {"youden", "sensitivity"}
        How the threshold of the probability is found on the chosen candidate's pooled predictions.
    min_sensitivity : float
        Used with `operating_point="sensitivity"`.
    calibration : {"platt", "isotonic"}
        See `haemex.calibration`.
    collapsed_dice : float
        A fold whose median Dice coefficient is below this has collapsed: an average would hide it.
    collapsed_fold : {"stop", "drop"}
        What a collapsed fold does: end the selection with a message, or take its candidate out of the running.
    selected_path : path-like
        The decision (JSON): `candidate`, `criterion`, `rule` (what was done, in sentences), `scores` with their spread,
        `confidence` of the intervals, `dropped` (candidates out of the running), `threshold`, `calibration`,
        `remarks` (how far the choice can be relied on) and `alarms` (of the trainings of every candidate; a chosen
        candidate that predicts expansion no better than chance; a calibration fitted on too few).
    predictions_path : path-like
        Out-of-fold predictions of the chosen candidate (`PREDICTION_COLUMNS`).
    candidates_path : path-like
        Scores of every candidate, pooled (fold "all") and by fold (`CANDIDATE_COLUMNS`): AUC with DeLong's interval,
        and in the pooled line the SDs over the folds.

    Raises
    ------
    InputError
        Predictions or roles do not fit the folds, a patient stands on two sides, one class is missing, a fold has
        collapsed (with "stop"), or every candidate has such a fold.
    """
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("operating_point", operating_point, OPERATING_POINTS),
        ("calibration", calibration, METHODS),
        ("collapsed_fold", collapsed_fold, COLLAPSED),
    ):
        if value not in known:
            raise InputError(f"select.{name} is {value!r}", f"give one of {', '.join(known)}")
    cohort = {row["patient"]: row for row in read_table(cohort_path, as_text=True) if row["cohort"] == "train"}
    expansions = sum(row["expansion"] == "1" for row in cohort.values())
    if not 0 < expansions < len(cohort):
        raise InputError(
            f"{expansions} of {len(cohort)} patients of the training cohort have an expansion",
            "prediction can be judged only with patients of both kinds",
            cohort_path,
        )

    pooled, by_fold, scores, collapsed, alarms = {}, {}, {}, {}, []
    for candidate in candidates:
        folder = Path(train_folder) / candidate
        pooled[candidate] = rows = _out_of_fold(candidate, cohort, folder)
        folds = sorted({row["fold"] for row in rows})
        by_fold[candidate] = {fold: _score([row for row in rows if row["fold"] == fold]) for fold in folds}
        collapsed[candidate] = {
            fold: scored["dice_median"]
            for fold, scored in by_fold[candidate].items()
            if scored["dice_median"] < collapsed_dice
        }
        scores[candidate] = _score(rows) | _spread(by_fold[candidate].values())
        for fold in folds:
            said = training_alarms(read_table(folder / f"fold{fold}" / "history.tsv"))
            if fold in collapsed[candidate]:
                said.append(
                    f"the median Dice coefficient of its {by_fold[candidate][fold]['patients']} patients is "
                    f"{collapsed[candidate][fold]:.3f}, below {collapsed_dice:g}; the network did not learn to segment"
                )
            alarms += [f"candidate {candidate}, fold {fold}: {sentence.strip().rstrip('.')}" for sentence in said]
    running = [candidate for candidate in candidates if not collapsed[candidate]]
    if any(collapsed.values()) and (collapsed_fold == "stop" or not running):
        for alarm in alarms:
            announce(alarm)
        raise _collapse(collapsed, collapsed_dice, collapsed_fold, train_folder)

    best_first = sorted(
        running, key=lambda candidate: -scores[candidate][CRITERIA[criterion]]
    )  # stable: first of equals
    chosen = best_first[0]
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
    if calibration == "isotonic" and len(labels) < ISOTONIC_PATIENTS:
        alarms.append(
            f"isotonic calibration is fitted on {len(labels)} patients, {sum(labels)} of them with expansion; with "
            f"fewer than {ISOTONIC_PATIENTS} patients it overfits (Niculescu-Mizil and Caruana 2005), and Platt's "
            "method (select.calibration: platt) is the safer one"
        )

    decision = {
        "candidate": chosen,
        "criterion": criterion,
        "rule": _rule_in_words(
            criterion, operating_point, min_sensitivity, calibration, collapsed_dice, collapsed_fold
        ),
        "scores": {
            candidate: {name: value for name, value in scored.items() if name not in ("patients", "expansions")}
            | {"collapsed_folds": list(collapsed[candidate])}
            for candidate, scored in scores.items()
        },
        "confidence": CONFIDENCE,
        "dropped": [candidate for candidate in candidates if collapsed[candidate]],
        "threshold": threshold,
        "calibration": fit_calibration(calibration, labels, [row["logit"] for row in pooled[chosen]]),
        "remarks": _remarks(criterion, best_first, pooled, by_fold, scores),
        "alarms": alarms,
    }
    write_table(predictions_path, pooled[chosen], PREDICTION_COLUMNS)
    write_table(candidates_path, _candidate_rows(by_fold, scores, collapsed), CANDIDATE_COLUMNS)
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
    """Compute AUC with DeLong's interval (None where there is none) and Dice coefficients of some predictions."""
    labels = [row["expansion"] for row in rows]
    area = delong_auc(labels, [row["probability"] for row in rows], CONFIDENCE)
    dice = [row["dice"] for row in rows]
    return {
        "patients": len(rows),
        "expansions": sum(labels),
        **{
            name: None if math.isnan(value) else value
            for name, value in (("auc", area.auc), ("auc_lower", area.lower), ("auc_upper", area.upper))
        },
        "dice_median": float(np.median(dice)),
        "dice_mean": float(np.mean(dice)),
    }


def _spread(scored):
    """Compute the SD over the folds of AUC and median Dice; a fold of one class has no AUC and is left out of it."""
    spread = {}
    for name in ("auc", "dice_median"):
        values = [fold[name] for fold in scored if fold[name] is not None]
        spread[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return spread


def _candidate_rows(by_fold, scores, collapsed):
    """Make the rows of `candidates.tsv`."""
    rows = []
    for candidate, folds in by_fold.items():
        lost, no_spread = collapsed[candidate], {"auc_sd": None, "dice_median_sd": None}
        for fold, scored in folds.items():
            rows.append({"candidate": candidate, "fold": fold, **scored, **no_spread, "collapsed": int(fold in lost)})
        rows.append({"candidate": candidate, "fold": "all", **scores[candidate], "collapsed": len(lost)})
    return rows


def _collapse(collapsed, collapsed_dice, collapsed_fold, train_folder):
    """Say which folds collapsed, and what to do."""
    told = "; ".join(
        f"candidate {candidate}, fold {fold} ({value:.3f})"
        for candidate, folds in collapsed.items()
        for fold, value in folds.items()
    )
    action = "lower training.learning_rate of the candidates named or look at their learning curves"
    if not all(collapsed.values()):
        action += (
            "; take them out of `candidates`; or set select.collapsed_fold to drop, and they are out of the running"
        )
    every = "every candidate has one, so none is left to choose: " if collapsed_fold == "drop" else ""
    return InputError(
        f"folds collapsed ({every}median Dice coefficient below select.collapsed_dice, {collapsed_dice:g}): {told}",
        action,
        train_folder,
    )


def _remarks(criterion, best_first, pooled, by_fold, scores):
    """Say how far the chosen candidate leads, and whether that is more than the spread of the comparison."""
    chosen, *others = best_first
    if not others:
        return []
    following = others[0]
    if criterion == "auc":
        rows, others_rows = pooled[chosen], pooled[following]  # both sorted by patient
        paired = delong_paired(
            [row["expansion"] for row in rows],
            [row["probability"] for row in rows],
            [row["probability"] for row in others_rows],
            CONFIDENCE,
        )
        lead, what = paired.difference, "out-of-fold AUC"
        if math.isnan(paired.z):
            spread, beyond = "an interval cannot be given", False
        else:
            spread = f"{100 * CONFIDENCE:g} % interval {paired.lower:.3f} to {paired.upper:.3f}, paired DeLong"
            beyond = paired.lower > 0
    else:
        lead, what = scores[chosen]["dice_median"] - scores[following]["dice_median"], "median out-of-fold Dice"
        differences = [
            by_fold[chosen][fold]["dice_median"] - by_fold[following][fold]["dice_median"] for fold in by_fold[chosen]
        ]
        sd = float(np.std(differences, ddof=1))
        spread, beyond = f"SD of the difference over the folds {sd:.3f}", lead > sd
    remark = f"In {what}, candidate {chosen} leads the next, {following}, by {lead:.3f} ({spread})"
    if not beyond:
        remark += ": the lead is within the spread, so these data do not show that it is the better one"
    return [remark + "."]


def _rule_in_words(criterion, operating_point, min_sensitivity, calibration, collapsed_dice, collapsed_fold):
    """Say what was done, for the report."""
    best = {
        "auc": "the highest AUC of the pooled out-of-fold predictions",
        "dice": "the highest median Dice coefficient of the out-of-fold predictions",
    }
    threshold = {
        "youden": "with the largest Youden index",
        "sensitivity": f"the highest that reaches a sensitivity of {min_sensitivity:g},",
    }
    curve = {
        "platt": "logistic regression of the outcome on the logit (Platt's method)",
        "isotonic": "isotonic regression of the outcome on the logit",
    }
    collapse = {"stop": "would have ended the selection", "drop": "takes its candidate out of the running"}
    return {
        "criterion": f"The candidate with {best[criterion]} is chosen; of equal ones the first in the config.",
        "collapsed_fold": f"A fold with a median Dice coefficient below {collapsed_dice:g} {collapse[collapsed_fold]}.",
        "operating_point": (
            f"The operating point is the threshold of the probability {threshold[operating_point]} in the chosen "
            "candidate's out-of-fold predictions."
        ),
        "calibration": f"Probabilities are calibrated by {curve[calibration]}, fitted on the same predictions.",
    }
