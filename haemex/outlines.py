"""The network's outlines beside the manual ones: overlap, distance of the surfaces, volume, failures."""

import math
from pathlib import Path

import numpy as np

from haemex.errors import InputError
from haemex.nifti import read_volume
from haemex.segmentation_metrics import dice
from haemex.statistics import bland_altman
from haemex.surface_distance import surface_distances

# ASSUME: an outline with a Dice coefficient below one half has failed: less than half of the two masks is shared.
FAILED_DICE = 0.5


def overlap_table(rows, *, out_of_fold, predictions, measured, resampled, folders):
    """Compare the network's outline of every patient with the manual one.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient` and `cohort`.
    out_of_fold : list of dict
        Rows of `select/predictions.tsv`, with `dice` and `predicted_ml` (mL) by the model that did not see the patient.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient, of the final model.
    measured, resampled : dict of str to dict
        `measure/{patient}.json` and `resample/{patient}.json` by patient.
    folders : dict of str to path-like
        `measure` and `resample`, with the manual mask as `{patient}_haematoma.nii.gz` on the acquired and on the
        network's grid; `predict`, with `{patient}_haematoma.nii.gz` and `{patient}_grid.nii.gz`.

    Returns
    -------
    list of dict
        patient, cohort; dice_grid, dice_native and dice_out_of_fold (on the network's grid); hd95 and assd on both
        grids, mm (nan where a mask is empty); reference_ml, predicted_ml and out_of_fold_ml; inside_fraction; failure.

    Raises
    ------
    InputError
        Masks lie on different grids.
    """
    manual, network_grid, predict = (Path(folders[name]) for name in ("measure", "resample", "predict"))
    held_out = {row["patient"]: row for row in out_of_fold}
    table = []
    for row in rows:
        patient = row["patient"]
        grid = _overlap(network_grid / f"{patient}_haematoma.nii.gz", predict / f"{patient}_grid.nii.gz")
        native = _overlap(manual / f"{patient}_haematoma.nii.gz", predict / f"{patient}_haematoma.nii.gz")
        unseen = held_out.get(patient, {"dice": None, "predicted_ml": None})
        table.append(
            {
                "patient": patient,
                "cohort": row["cohort"],
                "dice_grid": grid["dice"],
                "dice_native": native["dice"],
                "dice_out_of_fold": unseen["dice"],
                "hd95_grid_mm": grid["hd95_mm"],
                "hd95_native_mm": native["hd95_mm"],
                "assd_grid_mm": grid["assd_mm"],
                "assd_native_mm": native["assd_mm"],
                "reference_ml": measured[patient]["baseline_ml"],
                "predicted_ml": float(predictions[patient]["predicted_ml"]),
                "out_of_fold_ml": unseen["predicted_ml"],
                "inside_fraction": resampled[patient]["haematoma_inside_fraction"],
            }
        )
        table[-1]["failure"] = segmentation_failure(table[-1])
    return table


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
        (`native`, `grid`); the same of the surface distances in mm
        (`hd95_native`, `hd95_grid`, `assd_native`, `assd_grid`; None where no patient has any), whose n leaves out
        patients in whom one mask is empty; `missed` (Dice 0 on the native grid); `failures`; volume bias
        and limits of agreement in mL (network minus manual); `cut_off` (patients with less than 99 % of the haematoma
        inside the network's field of view) and `least_inside`. Of the training cohort also `out_of_fold`, Dice by the
        models that did not see the patient, and `out_of_fold_volume_difference_ml`.
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
        held_out = [row for row in group if row["dice_out_of_fold"] is not None]
        if held_out:
            summary[cohort]["out_of_fold"] = _distribution([row["dice_out_of_fold"] for row in held_out])
            summary[cohort]["out_of_fold_volume_difference_ml"] = list(
                bland_altman(
                    [row["out_of_fold_ml"] for row in held_out], [row["reference_ml"] for row in held_out], confidence
                )
            )
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
