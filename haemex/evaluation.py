"""Evaluation of the locked model: Table 2, Dice, agreement, calibration, and the proof that nothing leaked.

The test cohort's labels are opened here and nowhere before. Every threshold, every logistic coefficient and the
calibration come from the training cohort; this module recomputes them from the training cohort's files and refuses a
study in which they do not agree (paper, Evaluation of the models; Table 2).
"""

import math
from pathlib import Path

import numpy as np

from haemex.auc_precision import precision_of_auc
from haemex.baselines import apply_logistic, fit_baselines
from haemex.bootstrap import RESAMPLES, bootstrap_intervals
from haemex.calibration import calibrate, calibrated_logit, calibration_in_words, read_calibration
from haemex.calibration_fit import fit_calibration
from haemex.calibration_measures import brier_interval, calibration_line, observed_to_expected
from haemex.cohort import refuse_doubled_scans
from haemex.decision_curve import decision_curve, useful_range
from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.intraclass import icc_agreement
from haemex.label_sensitivity import label_sensitivity
from haemex.markers import MARKERS, agreement
from haemex.nifti import read_volume
from haemex.segmentation_metrics import dice
from haemex.statistics import (
    bland_altman,
    brier,
    count_decisions,
    delong_auc,
    delong_paired,
    holm,
    likelihood_ratios,
    sensitivity_threshold,
    wilson_interval,
    youden_threshold,
)
from haemex.subgroups import divide, subgroup_table
from haemex.surface_distance import surface_distances
from haemex.tables import read_table, write_table

EVALUATION_FILES = (
    "table2.tsv",
    "scores.tsv",
    "dice.tsv",
    "precision.tsv",
    "subgroups.tsv",
    "label_sensitivity.tsv",
    "decision_curve.tsv",
    "agreement.tsv",
    "acquisition.tsv",
    "leaks.tsv",
    "summary.json",
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


# ASSUME: an outline with a Dice coefficient below one half has failed: less than half of the two masks is shared.
FAILED_DICE = 0.5
# Width of the AUC's interval, 0.05 to either side, of which the report says how many patients it would take.
WANTED_AUC_WIDTH = 0.1


# --- the stage ---------------------------------------------------------------------------------------------------


def evaluate_study(
    rows,
    *,
    out_of_fold_path,
    selected_path,
    model_path,
    roles_paths,
    final_roles_path,
    predict_folder,
    measure_folder,
    convert_folder,
    resample_folder,
    out_folder,
    confidence,
    bat_cut,
    operating_point,
    min_sensitivity,
    expansion,
    seed,
):
    """Evaluate the locked model on the test cohort and write the files named in `EVALUATION_FILES`.

    Parameters
    ----------
    rows : list of dict
        `haemex.clinical.clinical_rows`: one dict per patient who entered, clinical columns and cohort columns.
    out_of_fold_path, selected_path : path-like
        `select/predictions.tsv` and `select/selected.json`.
    model_path : path-like
        `final/model/model.json`.
    roles_paths : list of path-like
        `train/{candidate}/fold{fold}/roles.tsv` of every training of the cross-validation.
    final_roles_path : path-like
        `final/roles.tsv`.
    predict_folder : path-like
        Holds `predictions.tsv`, `{patient}_haematoma.nii.gz` (native grid) and `{patient}_grid.nii.gz` (network's grid)
        of both cohorts, by the final model.
    measure_folder : path-like
        Holds `{patient}.json` and `{patient}_haematoma.nii.gz`, the manual mask on the native grid.
    convert_folder : path-like
        Holds `{patient}_baseline.json`.
    resample_folder : path-like
        Holds `{patient}.json` and `{patient}_haematoma.nii.gz`, the manual mask on the network's grid.
    out_folder : path-like
        Folder of the outputs.
    confidence : float
        Level of every interval, e.g. 0.95.
    bat_cut : int
        BAT score from which a patient is called positive.
    operating_point : {"youden", "sensitivity"}
        The rule by which thresholds were chosen on the training cohort.
    min_sensitivity : float
        Used with "sensitivity".
    expansion : dict
        Section `expansion` of the config, for other definitions of the label.
    seed : int
        The study's seed, for the bootstrap.

    Raises
    ------
    InputError
        A leak (`check_roles`, `check_operating_point`), a patient without a prediction, masks on different grids.
    """
    predict_folder, measure_folder = Path(predict_folder), Path(measure_folder)
    predictions = {row["patient"]: row for row in read_table(predict_folder / "predictions.tsv")}
    out_of_fold = read_table(out_of_fold_path)
    selected, model = read_json(selected_path), read_json(model_path)
    patients = [row["patient"] for row in rows]
    measured = {patient: read_json(measure_folder / f"{patient}.json") for patient in patients}
    resampled = {patient: read_json(Path(resample_folder) / f"{patient}.json") for patient in patients}
    acquired = {patient: read_json(Path(convert_folder) / f"{patient}_baseline.json") for patient in patients}

    for row in rows:
        if row["patient"] not in predictions:
            raise InputError(
                f"patient {row['patient']} has no prediction of the final model",
                "run the stage predict again",
                predict_folder / "predictions.tsv",
            )
    rule = {"operating_point": operating_point, "min_sensitivity": min_sensitivity}
    training = [row for row in rows if row["cohort"] == "train"]
    test = [row for row in rows if row["cohort"] == "test"]
    leaks = check_roles(
        rows,
        {"/".join(Path(path).parts[-3:-1]): read_table(path) for path in roles_paths},
        read_table(final_roles_path),
        out_of_fold,
        measured,
    )
    leaks += check_operating_point(rows, out_of_fold, predictions, selected, model, **rule)
    baselines = fit_baselines(training, operating_point, min_sensitivity if operating_point == "sensitivity" else None)
    fitted = ", ".join(f"{name} on {one['patients']}" for name, one in baselines.items())
    leaks.append(
        _passed(
            "The logistic models and their thresholds are fitted on the training cohort",
            f"{fitted} of {len(training)} training patients, 0 of {len(test)} test patients",
        )
    )
    scores = score_patients(test, predictions, baselines)
    table2 = table_two(scores, model["operating_point"], baselines, bat_cut, confidence)
    overlap = []
    for row in rows:
        patient = row["patient"]
        grid = _overlap(
            Path(resample_folder) / f"{patient}_haematoma.nii.gz", predict_folder / f"{patient}_grid.nii.gz"
        )
        native = _overlap(
            measure_folder / f"{patient}_haematoma.nii.gz", predict_folder / f"{patient}_haematoma.nii.gz"
        )
        held_out = [one["dice"] for one in out_of_fold if one["patient"] == patient]
        overlap.append(
            {
                "patient": patient,
                "cohort": row["cohort"],
                "dice_grid": grid["dice"],
                "dice_native": native["dice"],
                "dice_out_of_fold": held_out[0] if held_out else None,
                "hd95_grid_mm": grid["hd95_mm"],
                "hd95_native_mm": native["hd95_mm"],
                "assd_grid_mm": grid["assd_mm"],
                "assd_native_mm": native["assd_mm"],
                "reference_ml": measured[patient]["baseline_ml"],
                "predicted_ml": float(predictions[patient]["predicted_ml"]),
                "inside_fraction": resampled[patient]["haematoma_inside_fraction"],
            }
        )
        overlap[-1]["failure"] = segmentation_failure(overlap[-1])
    precision, auc_width = precision_table(
        scores, [row for row in overlap if row["cohort"] == "test"], seed, confidence
    )
    curve = decision_curve(scores)
    scanners = {patient: scanner_name(acquired[patient]["acquisition"]) for patient in patients}
    summary = {
        "confidence": confidence,
        "cohorts": {
            name: {"patients": len(group), "expansions": sum(row["expansion"] for row in group)}
            for name, group in (("train", training), ("test", test))
        },
        "operating_point": {**model["operating_point"], "bat_cut": bat_cut},
        "table2": {row["row"]: {name: value for name, value in row.items() if name != "row"} for row in table2},
        "optimistic": optimistic_points(scores, confidence),
        "out_of_fold": _out_of_fold_summary(out_of_fold, confidence),
        "segmentation": segmentation_summary(overlap, confidence),
        "calibration": calibration_summary(
            scores, model["calibration"], sum(row["expansion"] for row in training) / len(training), confidence
        ),
        "precision": {"resamples": RESAMPLES, "auc": auc_width},
        "decision_curve": {
            "patients": curve[0]["patients"],
            **{name: useful_range(curve, name) for name in ("cnn", "volume", "bat")},
        },
        "baselines": baselines,
        "ensemble": ensemble_summary([predictions[row["patient"]] for row in test], model["ensemble"]),
        "selection": {name: selected[name] for name in ("candidate", "criterion", "remarks", "alarms")},
        "leaks": {"checks": len(leaks), "verdict": "passed"},
        "missing_in_test": {marker: sum(row[marker] is None for row in scores) for marker in (*MARKERS, "bat_score")},
    }

    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "leaks.tsv", leaks)
    write_table(folder / "table2.tsv", table2)
    write_table(folder / "scores.tsv", scores)
    write_table(folder / "dice.tsv", overlap)
    write_table(folder / "precision.tsv", precision)
    write_table(
        folder / "subgroups.tsv",
        subgroup_table(scores, divide(test, training, scanners, predictions), confidence),
    )
    write_table(folder / "label_sensitivity.tsv", label_sensitivity(test, scores, expansion, confidence))
    write_table(folder / "decision_curve.tsv", curve)
    write_table(folder / "agreement.tsv", agreement_table(rows, measured, confidence), AGREEMENT_COLUMNS)
    write_table(folder / "acquisition.tsv", acquisition_table(rows, acquired))
    write_json(folder / "summary.json", _without_nan(summary))


def _without_nan(value):
    """Replace NaN and infinity by None and numpy's numbers by Python's throughout, for JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- leaks -------------------------------------------------------------------------------------------------------


def _passed(check, compared):
    return {"check": check, "compared": compared, "verdict": "passed"}


def check_roles(rows, trainings, final_roles, out_of_fold, measured):
    """Refuse a study in which a patient stands on two sides; else say what was compared.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`, `cohort`, `fold` and `expansion`.
    trainings : dict of str to list of dict
        Rows of `roles.tsv` (patient, copy, role) of each training of the cross-validation, by "candidate/fold<k>".
    final_roles : list of dict
        The same of the final model.
    out_of_fold : list of dict
        Rows of `select/predictions.tsv`, with `patient`, `fold` and `expansion`.
    measured : dict of str to dict
        `measure/{patient}.json` by patient, with `pixel_digest`.

    Returns
    -------
    list of dict
        check, compared, verdict: the proof, for `leaks.tsv`.

    Raises
    ------
    InputError
        Names the patient and both sides.
    """
    again = "delete the results of this study and train again; if it happens again, report it as a fault of haemex"
    training = {row["patient"]: row for row in rows if row["cohort"] == "train"}
    test = {row["patient"] for row in rows if row["cohort"] == "test"}
    both = sorted(set(training) & test)
    if both:
        raise InputError(f"patient {both[0]} is in the training and in the test cohort", again)

    doubled = [{"patient": patient, "pixel_digest": measured[patient]["pixel_digest"]} for patient in sorted(measured)]
    refuse_doubled_scans(doubled)
    scans = sum(digest is not None for one in doubled for digest in one["pixel_digest"].values())
    proof = [
        _passed("No scan stands under two patients (digests of the pixels)", f"{scans} scans, {len(doubled)} patients")
    ]

    lines, sides = 0, 0
    for name, roles in [*trainings.items(), ("final", final_roles)]:
        seen = {"train": set(), "validation": set()}
        for line in roles:
            if line["role"] not in seen:
                raise InputError(f"training {name} has patient {line['patient']} in the role `{line['role']}`", again)
            seen[line["role"]].add(line["patient"])
            lines += 1
            if line["role"] == "validation" and line["copy"] != "scan":
                raise InputError(
                    f"training {name} was validated on augmented copy {line['copy']} of patient {line['patient']}",
                    again,
                )
        for patient in sorted((seen["train"] | seen["validation"]) - set(training)):
            where = "of the test cohort" if patient in test else "who is in neither cohort"
            raise InputError(f"patient {patient} {where} took part in training {name}", again)
        for patient in sorted(seen["train"] & seen["validation"]):
            raise InputError(f"patient {patient} is on the training and on the validation side of {name}", again)
        sides += len(seen["train"]) + len(seen["validation"])
        for patient in sorted(set(training) - seen["train"] - seen["validation"]):
            raise InputError(f"patient {patient} of the training cohort is missing from training {name}", again)
        if name == "final":
            expected = set()
        else:
            fold = int(name.rpartition("fold")[2])
            expected = {patient for patient, row in training.items() if row["fold"] == fold}
        for patient in sorted(seen["validation"] ^ expected):
            side = "validation" if patient in seen["validation"] else "training"
            raise InputError(f"patient {patient} is on the {side} side of {name}, against the folds", again)
    proof += [
        _passed(
            "No patient, augmented copies included, is on the training and the validation side of one training",
            f"{lines} roles of {sides} patients in {len(trainings) + 1} trainings",
        ),
        _passed(
            "No patient of the test cohort took part in any training",
            f"{len(test)} test patients against {len(trainings) + 1} trainings",
        ),
        _passed(
            "The sides of every training are the folds cut beforehand, and validation saw unaugmented scans only",
            f"{len(trainings)} trainings, {len({row['fold'] for row in training.values()})} folds",
        ),
    ]

    held_out = [row["patient"] for row in out_of_fold]
    for patient in sorted(set(training) - set(held_out)):
        raise InputError(f"patient {patient} of the training cohort has no out-of-fold prediction", again)
    for patient in sorted(set(held_out) - set(training)):
        raise InputError(f"patient {patient} has an out-of-fold prediction but is not in the training cohort", again)
    for patient in sorted({patient for patient in held_out if held_out.count(patient) > 1}):
        raise InputError(f"patient {patient} has more than one out-of-fold prediction", again)
    for row in out_of_fold:
        known = training[row["patient"]]
        if (row["fold"], row["expansion"]) != (known["fold"], known["expansion"]):
            raise InputError(f"the out-of-fold prediction of patient {row['patient']} has another fold or label", again)
    proof.append(
        _passed(
            "Every training patient was predicted once, by the model that did not see the patient",
            f"{len(held_out)} out-of-fold predictions of {len(training)} training patients",
        )
    )
    return proof


def check_operating_point(rows, out_of_fold, predictions, selected, model, operating_point, min_sensitivity):
    """Refuse a threshold or a calibration that does not come from the out-of-fold predictions, or was not applied.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`.
    out_of_fold : list of dict
        `select/predictions.tsv`, with `expansion`, `probability` and `logit`.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient.
    selected, model : dict
        `selected.json` and `model.json`.
    operating_point, min_sensitivity : str, float
        The rule.

    Returns
    -------
    list of dict
        check, compared, verdict.

    Raises
    ------
    InputError
        The numbers disagree.
    """
    again = "run the stages select, final and predict again; never set a threshold by hand"
    labels = [row["expansion"] for row in out_of_fold]
    probabilities = [row["probability"] for row in out_of_fold]
    if operating_point == "youden":
        threshold = youden_threshold(labels, probabilities)
    else:
        threshold = sensitivity_threshold(labels, probabilities, min_sensitivity)
    for where, found in (
        ("selected.json", selected["threshold"]),
        ("model.json", model["operating_point"]["threshold"]),
    ):
        if not math.isclose(found, threshold, rel_tol=1e-9):
            raise InputError(
                f"the threshold in {where} is {found:.6g}, but the out-of-fold predictions of the training cohort give "
                f"{threshold:.6g}",
                again,
            )
    stored = {
        "selected.json": read_calibration(selected["calibration"], "selected.json"),
        "model.json": read_calibration(model["calibration"], "model.json"),
    }
    calibration = fit_calibration(stored["selected.json"]["method"], labels, [row["logit"] for row in out_of_fold])
    for where, found in stored.items():
        if not _same_calibration(found, calibration):
            raise InputError(
                f"the calibration in {where} ({_told(found)}) is not the one that the out-of-fold predictions of the "
                f"training cohort give ({_told(calibration)})",
                again,
            )
    for row in rows:
        one = predictions[row["patient"]]
        calibrated = calibrate(calibration, one["logit"])
        if one["positive"] != int(one["probability"] >= model["operating_point"]["threshold"]):
            raise InputError(f"the decision on patient {row['patient']} does not follow from the threshold", again)
        if not math.isclose(one["calibrated_probability"], calibrated, rel_tol=1e-6, abs_tol=1e-9):
            raise InputError(
                f"the calibrated probability of patient {row['patient']} does not follow from the calibration", again
            )
    return [
        _passed(
            f"The threshold is the one the out-of-fold predictions give (rule: {operating_point})",
            f"{threshold:.6g}, recomputed from {len(labels)} training patients; selected.json and model.json agree",
        ),
        _passed(
            "The calibration is the one the out-of-fold predictions give",
            f"{_told(calibration)}, recomputed from {len(labels)} training patients",
        ),
        _passed(
            "Every decision and every calibrated probability follows from them",
            f"{len(rows)} patients",
        ),
    ]


def _same_calibration(found, expected):
    """Whether two calibrations agree to rounding."""
    return found["method"] == expected["method"] and all(
        np.shape(found[name]) == np.shape(value) and np.allclose(found[name], value, rtol=1e-6, atol=1e-6)
        for name, value in expected.items()
        if name != "method"
    )


def _told(calibration):
    """Give a calibration's numbers in full."""
    if calibration["method"] == "platt":
        return f"intercept {calibration['intercept']:.6g}, slope {calibration['slope']:.6g}"
    return calibration_in_words(calibration)


# --- Table 2 -----------------------------------------------------------------------------------------------------


def score_patients(test, predictions, baselines):
    """Collect what every marker and model says about each patient of the test cohort.

    Parameters
    ----------
    test : list of dict
        Patients with the markers, `baseline_ml`, `bat_score` and `expansion`.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient.
    baselines : dict
        `haemex.baselines.fit_baselines`.

    Returns
    -------
    list of dict
        patient, expansion, the network's probability, logit, calibrated_probability and positive; baseline_ml and
        bat_score; the seven markers (0/1); and, for ranking, `volume` and `bat` (probability of the logistic model)
        and `cnn` (the logit, which does not saturate as the probability does). None = missing.
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
        }
        for row in test
    ]


def table_two(scores, operating_point, baselines, bat_cut, confidence):
    """Make Table 2: the seven markers, the two logistic models and the network on the test cohort.

    A patient with a missing marker is left out of that marker's row (its `n` says so), and the row is compared with the
    network on the patients both have. "Weighted" likelihood ratios are the paper's TP/FP and FN/TN, post-test odds.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    operating_point : dict
        The network's `threshold` and `rule`, from the model bundle.
    baselines : dict
        `haemex.baselines.fit_baselines`, fitted on the training cohort.
    bat_cut : int
        BAT score from which a patient is called positive.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        row, n, expansions, tp, fn, tn, fp; for every name of `MEASURES` the estimate, `_lower` and `_upper`; p (paired
        DeLong against the network), p_holm (over the nine comparisons), threshold (on what `threshold_on` says) and
        `threshold_from`; `note`. What is undefined is None. `auc_difference` is the network minus the row.
    """
    volume = baselines["volume"]
    how = {"youden": "Youden, training cohort", "sensitivity": "minimum sensitivity, training cohort"}
    plans = [
        (label, marker, lambda row, marker=marker: row[marker], (None, "reading", "present or absent"))
        for marker, label in MARKERS.items()
    ]
    plans += [
        (
            MODELS["volume"],
            "volume",
            lambda row: int(row["volume"] >= volume["threshold"]),
            (volume["threshold"], "probability of the logistic model", how[volume["rule"]]),
        ),
        (
            MODELS["bat"],
            "bat",
            lambda row: int(row["bat_score"] >= bat_cut),
            (bat_cut, "BAT score", "set beforehand in the config"),
        ),
        (
            MODELS["cnn"],
            "cnn",
            lambda row: row["positive"],
            (
                operating_point["threshold"],
                "probability of the network",
                f"{how[operating_point['rule']]}, out-of-fold",
            ),
        ),
    ]
    table = []
    for label, column, decide, (threshold, threshold_on, threshold_from) in plans:
        known = [row for row in scores if row[column] is not None]
        labels, values = [row["expansion"] for row in known], [row[column] for row in known]
        counts = count_decisions(labels, [decide(row) for row in known])
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
        p, note = math.nan, ""
        if column != "cnn":
            paired = delong_paired(labels, [row["cnn"] for row in known], values, confidence)
            measures["auc_difference"] = (paired.difference, paired.lower, paired.upper)
            p = paired.p_value
        if column in baselines:
            # ASSUME: the direction of a predictor is the one the training cohort shows; it is never turned round on
            # the test cohort, so an AUC below 0.5 stays below 0.5.
            coefficient = baselines[column]["coefficient"]
            note = f"logistic coefficient {coefficient:.3g}"
            if coefficient < 0:
                note += (
                    ": negative, higher values lower the risk in the training cohort, and the AUC is of that direction"
                )
            elif coefficient == 0:
                note += ": no information in the training cohort"
        row = {"row": label, "n": len(known), "expansions": sum(labels), "tp": tp, "fn": fn, "tn": tn, "fp": fp}
        for name in MEASURES:
            row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), measures[name], strict=True))
        row |= {"p": p, "p_holm": math.nan, "threshold": threshold, "threshold_on": threshold_on}
        table.append(row | {"threshold_from": threshold_from, "note": note})
    for row, adjusted in zip(table, holm([row["p"] for row in table]), strict=True):
        row["p_holm"] = float(adjusted)
    return [_without_nan(row) for row in table]


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


# --- segmentation, calibration -----------------------------------------------------------------------------------


def _overlap(reference_path, predicted_path):
    """Dice and surface distances of two mask files on one grid."""
    reference, reference_affine = read_volume(reference_path)
    predicted, predicted_affine = read_volume(predicted_path)
    if reference.shape != predicted.shape or not np.allclose(reference_affine, predicted_affine, atol=1e-3):
        raise InputError(
            f"manual and predicted haematoma lie on different grids ({reference.shape} and {predicted.shape})",
            "run the stages measure, resample and predict again",
            predicted_path,
        )
    return {"dice": dice(reference, predicted), **surface_distances(reference, predicted, reference_affine)._asdict()}


def segmentation_failure(row):
    """Say in what way the outline of a haematoma failed on the acquired grid.

    Parameters
    ----------
    row : dict
        `dice_native` and `predicted_ml` (mL).

    Returns
    -------
    str
        "nothing found", "missed" (no voxel shared), "Dice below 0.5", or "" for an outline that did not fail.
    """
    if row["predicted_ml"] == 0 and row["dice_native"] == 0:
        return "nothing found"
    if row["dice_native"] == 0:
        return "missed"
    return f"Dice below {FAILED_DICE:g}" if row["dice_native"] < FAILED_DICE else ""


def segmentation_summary(overlap, confidence):
    """Summarise the Dice coefficients and the volumes.

    Parameters
    ----------
    overlap : list of dict
        Rows of `dice.tsv`.
    confidence : float
        Share of differences between the limits of agreement.

    Returns
    -------
    dict
        For "train" (final model, refitted) and "test": n, mean, sd, median, q1, q3, min of Dice on both grids
        (`native`, `grid`), of the training cohort `out_of_fold` too; the same of the surface distances in mm
        (`hd95_native`, `hd95_grid`, `assd_native`, `assd_grid`; None where no patient has any), whose n leaves out
        patients in whom one mask is empty; `missed` (Dice 0 on the native grid); `failures`; volume bias
        and limits of agreement in mL (network minus manual); `cut_off` (patients with less than 99 % of the haematoma
        inside the network's field of view) and `least_inside`.
    """
    summary = {}
    for cohort in ("train", "test"):
        group = [row for row in overlap if row["cohort"] == cohort]
        if not group:
            continue
        agreement_ml = bland_altman(
            [row["predicted_ml"] for row in group], [row["reference_ml"] for row in group], confidence
        )
        inside = [row["inside_fraction"] for row in group if row["inside_fraction"] is not None]
        summary[cohort] = {
            "native": _distribution([row["dice_native"] for row in group]),
            "grid": _distribution([row["dice_grid"] for row in group]),
            **{
                name: _distribution([row[f"{name}_mm"] for row in group])
                for name in ("hd95_native", "hd95_grid", "assd_native", "assd_grid")
            },
            "missed": sum(row["dice_native"] == 0 for row in group),
            "failures": sum(bool(segmentation_failure(row)) for row in group),
            "volume_difference_ml": list(agreement_ml),
            "cut_off": sum(one < 0.99 for one in inside),
            "least_inside": min(inside, default=None),
        }
        held_out = [row["dice_out_of_fold"] for row in group if row["dice_out_of_fold"] is not None]
        if held_out:
            summary[cohort]["out_of_fold"] = _distribution(held_out)
    return summary


def _distribution(values):
    """Describe the values that are there."""
    values = [value for value in values if value is not None and not math.isnan(value)]
    if not values:
        return None
    q1, median, q3 = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {
        "n": len(values),
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "median": median,
        "q1": q1,
        "q3": q3,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def _out_of_fold_summary(out_of_fold, confidence):
    labels = [row["expansion"] for row in out_of_fold]
    area = delong_auc(labels, [row["logit"] for row in out_of_fold], confidence)
    return {"auc": area.auc, "auc_lower": area.lower, "auc_upper": area.upper, "n": len(labels)}


def calibration_summary(scores, calibration, training_share, confidence):
    """Say how well the probabilities of the test cohort are calibrated; they are measured, never fitted anew.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    calibration : dict
        Of the model bundle.
    training_share : float
        Share of the training cohort with expansion: the forecast of somebody who looks at no patient.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict
        `raw` and `calibrated`: intercept and slope (0 and 1 are perfect), ratio of observed to expected expansions
        (`ratio`, 1 is perfect) and Brier score, each with `_lower` and `_upper` (`haemex.calibration_measures`);
        `brier_of_share`, the Brier score of `training_share`; `expected` and `observed` number of expansions.
    """
    labels = [row["expansion"] for row in scores]
    summary = {"brier_of_share": brier(labels, [training_share] * len(labels)), "observed": sum(labels)}
    summary["expected"] = float(sum(row["calibrated_probability"] for row in scores))
    logits = [row["logit"] for row in scores]
    calibrated = [calibrated_logit(calibration, logit) for logit in logits]
    for name, column, claimed in (("raw", "probability", logits), ("calibrated", "calibrated_probability", calibrated)):
        probabilities = [row[column] for row in scores]
        intercept, slope = calibration_line(labels, claimed, confidence)
        measures = {
            "intercept": intercept,
            "slope": slope,
            "ratio": observed_to_expected(labels, probabilities, confidence),
            "brier": brier_interval(labels, probabilities, confidence),
        }
        summary[name] = {}
        for measure, interval in measures.items():
            names = (measure, f"{measure}_lower", f"{measure}_upper")
            summary[name] |= dict(zip(names, interval, strict=True))
    return summary


def precision_table(scores, overlap, seed, confidence):
    """Say how far the main results hang on who happened to be in the test cohort.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    overlap : list of dict
        Rows of `dice.tsv` of the same patients in the same order.
    seed : int
        The study's seed.
    confidence : float
        Level of the intervals.

    Returns
    -------
    table : list of dict
        One row each for the AUC, sensitivity and specificity of the network and the median Dice on both grids: measure,
        estimate, bootstrap_lower, bootstrap_upper, resamples (that count), formula_lower, formula_upper and formula
        (the interval Table 2 prints; None for a median).
    auc_width : dict
        `haemex.auc_precision.precision_of_auc`.
    """
    labels = np.array([row["expansion"] for row in scores], int)
    cnn = np.array([row["cnn"] for row in scores], float)
    positive = np.array([row["positive"] for row in scores], int)

    def share(of):
        return lambda drawn: (
            float(np.mean(positive[drawn][labels[drawn] == of] == of)) if of in labels[drawn] else math.nan
        )

    def median(column):
        values = np.array([row[column] for row in overlap], float)
        return lambda drawn: float(np.median(values[drawn]))

    area = delong_auc(labels, cnn, confidence)
    tp, fn, tn, fp = count_decisions(labels, positive)
    wilson = "Wilson, continuity-corrected"
    plan = {
        "AUC": (lambda drawn: delong_auc(labels[drawn], cnn[drawn]).auc, (area.lower, area.upper), "DeLong"),
        "Sensitivity": (share(1), wilson_interval(tp, tp + fn, confidence)[1:], wilson),
        "Specificity": (share(0), wilson_interval(tn, tn + fp, confidence)[1:], wilson),
        "Dice, median, network's grid": (median("dice_grid"), (None, None), None),
        "Dice, median, acquired grid": (median("dice_native"), (None, None), None),
    }
    found = bootstrap_intervals(
        len(scores), {name: measure for name, (measure, _, _) in plan.items()}, seed, confidence
    )
    table = []
    for name, (_, (lower, upper), formula) in plan.items():
        one = found[name]
        table.append(
            {
                "measure": name,
                "estimate": one["estimate"],
                "bootstrap_lower": one["lower"],
                "bootstrap_upper": one["upper"],
                "resamples": one["resamples"],
                "formula_lower": lower,
                "formula_upper": upper,
                "formula": formula,
            }
        )
    events = int(labels.sum())
    width = precision_of_auc(area.auc, area.variance, events, len(labels) - events, WANTED_AUC_WIDTH, confidence)
    return [_without_nan(row) for row in table], width


def ensemble_summary(predictions, ensemble):
    """Say how far the fold models agree on the patients of the test cohort, whom none of them has seen.

    Parameters
    ----------
    predictions : list of dict
        Rows of `predict/predictions.tsv`, of test patients.
    ensemble : list of dict
        The fold models the bundle lists.

    Returns
    -------
    dict
        `models`, how many predicted (0 with `predict.ensemble: false`); `median_sd` and `largest_sd` of a patient's
        probability over the models, None where there is none.
    """
    spread = [row["ensemble_sd"] for row in predictions if row["ensemble_sd"] is not None]
    asked = any(row["ensemble_probability"] is not None for row in predictions)
    return {
        "models": len(ensemble) if asked else 0,
        "median_sd": float(np.median(spread)) if spread else None,
        "largest_sd": max(spread, default=None),
    }


# --- agreement, acquisition --------------------------------------------------------------------------------------

AGREEMENT_COLUMNS = ("item", "measure", "n", "estimate", "lower", "upper", "interval")


def agreement_table(rows, measured, confidence):
    """Collect what was read or drawn twice: kappa of every marker, Dice of the masks, ICC and difference of volumes.

    Parameters
    ----------
    rows : list of dict
        Patients with markers and second readings.
    measured : dict of str to dict
        `measure/{patient}.json` by patient, with `baseline_ml`, `rater2_ml` and `rater_dice`.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        Columns `AGREEMENT_COLUMNS`; empty when nothing was done twice.
    """
    level = f"{100 * confidence:g} % CI"
    table = [
        dict(
            zip(
                AGREEMENT_COLUMNS,
                (one["label"], "Cohen's kappa", one["n"], one["kappa"], one["lower"], one["upper"], level),
                strict=True,
            )
        )
        for one in agreement(rows, confidence)
    ]
    twice = [one for one in measured.values() if one["rater_dice"] is not None]
    if twice:
        overlaps = [one["rater_dice"] for one in twice]
        volumes = bland_altman([one["rater2_ml"] for one in twice], [one["baseline_ml"] for one in twice], confidence)
        icc = icc_agreement([[one["baseline_ml"], one["rater2_ml"]] for one in twice], confidence)
        for values in (
            (
                "Haematoma mask",
                "mean Dice",
                len(twice),
                float(np.mean(overlaps)),
                min(overlaps),
                max(overlaps),
                "range",
            ),
            ("Haematoma volume", "ICC(2,1), absolute agreement", len(twice), *icc, level),
            ("Haematoma volume", "mean difference, mL", len(twice), *volumes, "limits of agreement"),
        ):
            table.append(dict(zip(AGREEMENT_COLUMNS, values, strict=True)))
    return table


def scanner_name(acquisition):
    """Name a scanner by manufacturer and model, as far as the DICOM says: "GE MEDICAL SYSTEMS Optima CT540"."""
    names = [str(acquisition[key]).strip() for key in ("manufacturer", "model") if acquisition[key]]
    return " ".join(names) or "not recorded"


def acquisition_table(rows, acquired):
    """Make supplemental Table 1: how the baseline scans were acquired, by scanner.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient` and `cohort`.
    acquired : dict of str to dict
        `convert/{patient}_baseline.json` by patient.

    Returns
    -------
    list of dict
        One per scanner: scanner, train, test (patients), slice_thickness_mm, slices, voxel_size_mm, matrix,
        field_of_view_mm, window_width, window_level (one value, or the range; empty where the DICOM does not say),
        tilted (scans with a gantry tilt above 0.5 degrees), uneven (scans whose slices were not evenly spaced).
    """
    scanners = {}
    for row in rows:
        scanners.setdefault(scanner_name(acquired[row["patient"]]["acquisition"]), []).append(row)
    table = []
    for scanner, group in sorted(scanners.items()):
        taken = [acquired[row["patient"]]["acquisition"] for row in group]
        geometry = [acquired[row["patient"]]["geometry"] for row in group]

        def spread(values, decimals):
            values = sorted({round(float(value), decimals) for value in values if value is not None})
            return "–".join(
                f"{value:.{decimals}f}" for value in (values[:1] if len(values) < 2 else values[:: len(values) - 1])
            )

        def plane(key, decimals, taken=taken, spread=spread):
            axes = [spread([one[key][axis] for one in taken if one[key]], decimals) for axis in (0, 1)]
            return " × ".join(axes) if all(axes) else ""

        thickness = spread([one["slice_thickness_mm"] for one in taken], 1)
        voxel = plane("pixel_spacing_mm", 4)
        table.append(
            {
                "scanner": scanner,
                "train": sum(row["cohort"] == "train" for row in group),
                "test": sum(row["cohort"] == "test" for row in group),
                "slice_thickness_mm": thickness,
                "slices": spread([one["slices"] for one in taken], 0),
                "voxel_size_mm": f"{voxel} × {thickness}" if voxel and thickness else voxel,
                "matrix": plane("matrix", 0),
                "field_of_view_mm": plane("field_of_view_mm", 0),
                "window_width": spread([one["window_width"] for one in taken], 0),
                "window_level": spread([one["window_level"] for one in taken], 0),
                "tilted": sum(abs(one["tilt_deg"] or 0) > 0.5 for one in geometry),
                "uneven": sum(not one["even"] for one in geometry),
            }
        )
    return table
