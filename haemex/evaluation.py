"""Evaluation of the locked model: Table 2, Dice, agreement, calibration, and the proof that nothing leaked.

The test cohort's labels are opened here and nowhere before. Every threshold, every logistic coefficient and the
calibration come from the training cohort; this module recomputes them from the training cohort's files and refuses a
study in which they do not agree (paper, Evaluation of the models; Table 2).
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from haemex.auc_precision import precision_of_auc
from haemex.bootstrap import RESAMPLES, bootstrap_intervals
from haemex.calibration import calibrated_logit
from haemex.calibration_measures import brier_interval, calibration_line, observed_to_expected, recalibration
from haemex.comparators import make_comparators, read_comparators
from haemex.computed_markers import DISAGREEMENT_COLUMNS, marker_agreement, marker_disagreements, read_computed
from haemex.decision_curve import decision_curve, useful_range
from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.intraclass import icc_agreement
from haemex.label_sensitivity import label_sensitivity
from haemex.leaks import check_comparators, check_operating_point, check_roles
from haemex.markers import MARKERS, agreement
from haemex.outlines import overlap_table, segmentation_summary
from haemex.scanners import scanner_name
from haemex.statistics import (
    bland_altman,
    brier,
    count_decisions,
    delong_auc,
    wilson_interval,
)
from haemex.subgroups import divide, subgroup_table
from haemex.table_two import optimistic_points, score_patients, table_two, without_nan
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
    "marker_agreement.tsv",
    "marker_disagreements.tsv",
    "acquisition.tsv",
    "leaks.tsv",
    "summary.json",
)

# Width of the AUC's interval, 0.05 to either side, of which the report says how many patients it would take.
WANTED_AUC_WIDTH = 0.1


# --- the stage ---------------------------------------------------------------------------------------------------


def evaluate_study(
    rows,
    *,
    out_of_fold_path,
    selected_path,
    model_folder,
    roles_paths,
    final_roles_path,
    operating_point,
    min_sensitivity,
    **common,
):
    """Evaluate the locked model on the test cohort and write the files named in `EVALUATION_FILES`.

    Parameters
    ----------
    rows : list of dict
        `haemex.clinical.clinical_rows`: one dict per patient who entered, clinical columns and cohort columns.
    out_of_fold_path, selected_path : path-like
        `select/predictions.tsv` and `select/selected.json`.
    model_folder : path-like
        `final/model`, with `model.json` and `comparators.json`.
    roles_paths : list of path-like
        `train/{candidate}/fold{fold}/roles.tsv` of every training of the cross-validation.
    final_roles_path : path-like
        `final/roles.tsv`.
    operating_point : {"youden", "sensitivity"}
        The rule by which thresholds were chosen on the training cohort.
    min_sensitivity : float
        Used with "sensitivity".
    **common
        See `read_results` and `write_evaluation`: predict_folder, measure_folder, convert_folder, resample_folder,
        markers_folder, out_folder, confidence, bat_cut, expansion, seed.

    Raises
    ------
    InputError
        A leak (`check_roles`, `check_operating_point`, `check_comparators`), a patient without a prediction, masks on
        different grids.
    """
    results = read_results(rows, **_folders(common))
    out_of_fold = read_table(out_of_fold_path)
    selected, model = read_json(selected_path), read_json(Path(model_folder) / "model.json")
    training = [row for row in rows if row["cohort"] == "train"]
    test = [row for row in rows if row["cohort"] == "test"]
    rule = {"operating_point": operating_point, "min_sensitivity": min_sensitivity}
    leaks = check_roles(
        rows,
        {"/".join(Path(path).parts[-3:-1]): read_table(path) for path in roles_paths},
        read_table(final_roles_path),
        out_of_fold,
        results.measured,
    )
    leaks += check_operating_point(rows, out_of_fold, results.predictions, selected, model, **rule)
    comparators = read_comparators(model_folder, model)
    leaks += check_comparators(
        comparators,
        make_comparators(training, results.measured, results.acquired, common["expansion"], **rule),
        len(test),
    )
    write_evaluation(
        rows,
        results,
        model=model,
        comparators=comparators,
        leaks=leaks,
        out_of_fold=out_of_fold,
        more={
            "out_of_fold": _out_of_fold_summary(out_of_fold, common["confidence"]),
            "selection": {name: selected[name] for name in ("candidate", "criterion", "remarks", "alarms")},
        },
        **_settings(common),
    )


class Results(NamedTuple):
    """What the stages before have written, by patient."""

    predictions: dict
    measured: dict
    resampled: dict
    acquired: dict
    computed: dict
    folders: dict


def _folders(common):
    return {name: path for name, path in common.items() if name.endswith("_folder") and name != "out_folder"}


def _settings(common):
    folders = _folders(common)
    return {name: value for name, value in common.items() if name not in folders}


def read_results(rows, *, predict_folder, measure_folder, convert_folder, resample_folder, markers_folder):
    """Read what was predicted, measured and computed of every patient.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`.
    predict_folder : path-like
        Holds `predictions.tsv` and in `maps/` `{patient}_haematoma.nii.gz` (native grid) and `{patient}_grid.nii.gz`
        (network's grid), by the final model.
    measure_folder : path-like
        Holds `{patient}.json` and `{patient}_haematoma.nii.gz`, the manual mask on the native grid.
    convert_folder : path-like
        Holds `{patient}_baseline.json`.
    resample_folder : path-like
        Holds `{patient}.json` and `{patient}_haematoma.nii.gz`, the manual mask on the network's grid.
    markers_folder : path-like
        Holds `{patient}.json` of the stage markers, what was computed from the CT.

    Returns
    -------
    Results

    Raises
    ------
    InputError
        A patient has no prediction.
    """
    predictions = {row["patient"]: row for row in read_table(Path(predict_folder) / "predictions.tsv")}
    patients = [row["patient"] for row in rows]
    for patient in patients:
        if patient not in predictions:
            raise InputError(
                f"patient {patient} has no prediction of the final model",
                "run the stage predict again",
                Path(predict_folder) / "predictions.tsv",
            )
    return Results(
        predictions,
        {patient: read_json(Path(measure_folder) / f"{patient}.json") for patient in patients},
        {patient: read_json(Path(resample_folder) / f"{patient}.json") for patient in patients},
        {patient: read_json(Path(convert_folder) / f"{patient}_baseline.json") for patient in patients},
        read_computed(markers_folder, patients),
        {"measure": measure_folder, "resample": resample_folder, "predict": Path(predict_folder) / "maps"},
    )


def write_evaluation(
    rows,
    results,
    *,
    model,
    comparators,
    leaks,
    out_of_fold,
    more,
    out_folder,
    confidence,
    bat_cut,
    expansion,
    seed,
):
    """Evaluate on the patients of the test cohort; nothing is fitted here, and no label of theirs decides anything.

    Parameters
    ----------
    rows : list of dict
        Patients of `haemex.clinical.clinical_rows`, those of a training cohort included if there is one.
    results : Results
        `read_results` of the same patients.
    model : dict
        `model.json`.
    comparators : dict
        `haemex.comparators.read_comparators` of the same bundle.
    leaks : list of dict
        The proof, for `leaks.tsv`.
    out_of_fold : list of dict
        Rows of `select/predictions.tsv`; empty where nothing was trained.
    more : dict
        What `summary.json` holds besides.
    out_folder : path-like
        Folder of the outputs.
    confidence : float
        Level of every interval, e.g. 0.95.
    bat_cut : int
        BAT score from which a patient is called positive.
    expansion : dict
        Section `expansion` of the config, for other definitions of the label.
    seed : int
        The study's seed, for the bootstrap.

    """
    predictions, acquired = results.predictions, results.acquired
    baselines, reference = comparators["baselines"], comparators["reference"]
    test = [row for row in rows if row["cohort"] == "test"]
    scores = score_patients(test, predictions, baselines, results.computed)
    table2 = table_two(scores, model["operating_point"], baselines, bat_cut, confidence)
    overlap = overlap_table(
        rows,
        out_of_fold=out_of_fold,
        predictions=predictions,
        measured=results.measured,
        resampled=results.resampled,
        folders=results.folders,
    )
    precision, auc_width = precision_table(
        scores, [row for row in overlap if row["cohort"] == "test"], seed, confidence
    )
    curve = decision_curve(scores)
    scanners = {row["patient"]: scanner_name(acquired[row["patient"]]["acquisition"]) for row in rows}
    summary = {
        "confidence": confidence,
        "external": False,
        "cohorts": {
            "train": {name: reference[name] for name in ("patients", "expansions")},
            "test": {"patients": len(test), "expansions": sum(row["expansion"] for row in test)},
        },
        "operating_point": {**model["operating_point"], "bat_cut": bat_cut},
        "table2": {row["row"]: {name: value for name, value in row.items() if name != "row"} for row in table2},
        "optimistic": optimistic_points(scores, confidence),
        "segmentation": segmentation_summary(overlap, confidence),
        "calibration": calibration_summary(
            scores, model["calibration"], reference["expansions"] / reference["patients"], confidence
        ),
        "precision": {"resamples": RESAMPLES, "auc": auc_width},
        "decision_curve": {
            "patients": curve[0]["patients"],
            **{name: useful_range(curve, name) for name in ("cnn", "volume", "bat")},
        },
        "baselines": baselines,
        "ensemble": ensemble_summary([predictions[row["patient"]] for row in test], model["ensemble"]),
        "leaks": {"checks": len(leaks), "verdict": "passed"},
        "missing_in_test": {marker: sum(row[marker] is None for row in scores) for marker in (*MARKERS, "bat_score")},
        **more,
    }
    if summary["external"]:
        summary["calibration"]["recalibrated"] = recalibration_summary(scores, model["calibration"], confidence)

    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "leaks.tsv", leaks)
    write_table(folder / "table2.tsv", table2)
    write_table(folder / "scores.tsv", scores)
    write_table(folder / "dice.tsv", overlap)
    write_table(folder / "precision.tsv", precision)
    write_table(
        folder / "subgroups.tsv",
        subgroup_table(scores, divide(test, reference["cuts"], scanners, predictions), confidence),
    )
    write_table(folder / "label_sensitivity.tsv", label_sensitivity(test, scores, expansion, confidence))
    write_table(folder / "decision_curve.tsv", curve)
    write_table(folder / "agreement.tsv", agreement_table(rows, results.measured, confidence), AGREEMENT_COLUMNS)
    write_table(folder / "marker_agreement.tsv", marker_agreement(rows, results.computed, confidence))
    write_table(folder / "marker_disagreements.tsv", marker_disagreements(rows, results.computed), DISAGREEMENT_COLUMNS)
    write_table(folder / "acquisition.tsv", acquisition_table(rows, acquired, reference["scanners"]))
    write_json(folder / "summary.json", without_nan(summary))


# --- calibration, precision -------------------------------------------------------------------------------------------


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


def recalibration_summary(scores, calibration, confidence):
    """Say what a recalibration to these very patients would be, and how well it would fit them.

    It is a look at what is wrong with the calibration, and no result of the model: fitted and measured on the same
    patients, it is too good, and nothing else rests on it.

    Parameters
    ----------
    scores : list of dict
        `score_patients`.
    calibration : dict
        Of the model bundle; what is recalibrated is the calibrated logit.
    confidence : float
        Level of the Wald intervals.

    Returns
    -------
    dict
        `intercept_only` and `intercept_and_slope` (`haemex.calibration_measures.recalibration`), each `intercept`,
        `slope` and `brier` with `_lower` and `_upper`; None where it cannot be fitted.
    """
    labels = [row["expansion"] for row in scores]
    found = recalibration(labels, [calibrated_logit(calibration, row["logit"]) for row in scores], confidence)
    summary = {}
    for name, fitted in found.items():
        summary[name] = None
        if fitted:
            measures = {
                "intercept": fitted["intercept"],
                "slope": fitted["slope"],
                "brier": brier_interval(labels, fitted["probabilities"], confidence),
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
    return [without_nan(row) for row in table], width


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


def acquisition_table(rows, acquired, trained_on):
    """Make supplemental Table 1: how the baseline scans were acquired, by scanner.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient` and `cohort`.
    acquired : dict of str to dict
        `convert/{patient}_baseline.json` by patient.
    trained_on : dict of str to int
        Patients of the model's training cohort, wherever that was, by scanner.

    Returns
    -------
    list of dict
        One per scanner of `rows`: scanner, train, test (patients), slice_thickness_mm, slices, voxel_size_mm, matrix,
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
                "train": trained_on.get(scanner, 0),
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
