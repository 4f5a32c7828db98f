"""Apply a locked model to scans whose outcome it never sees."""

import math
from pathlib import Path

import numpy as np

from haemex.bundle import load_bundle
from haemex.calibration import calibrate
from haemex.errors import InputError
from haemex.explanation import bridge_affine, relevance_map
from haemex.logs import Progress, announce
from haemex.model_description import refuse_other_preparation
from haemex.network import (
    computing,
    device_name,
    inference_precision,
    place,
    predict_expansion,
    predict_scan_and_bridge,
    probability,
)
from haemex.nifti import read_grid, read_volume, write_volume
from haemex.pages import plural
from haemex.resample import resample_haematoma
from haemex.segmentation_metrics import volume_ml
from haemex.tables import write_table

COLUMNS = (
    "patient",
    "cohort",
    "probability",
    "logit",
    "calibrated_probability",
    "positive",
    "predicted_ml",
    "ensemble_probability",
    "ensemble_sd",
    "relevance_maximum",
)
# Maps of relevance in int16: steps of 0.00006, and 1 is a whole number of steps.
RELEVANCE_SLOPE = 2**-14


def predict_patients(
    *,
    bundle_folder,
    patients,
    preprocessing,
    threads,
    predictions_path,
    masks_folder,
    precision="auto",
    ensemble=True,
):
    """Predict expansion and haematoma of every patient with a locked model; no label and no reference is read.

    The final model makes probability, decision and mask. The fold models only say how far a prediction hangs on who
    was trained on: the mean and the SD of their probabilities, uncalibrated as the final model's own. For patients of
    the training cohort this is no honest uncertainty: all fold models but one have trained on the patient, the final
    model too. For theirs see the out-of-fold predictions of the stage `select`.

    Parameters
    ----------
    bundle_folder : path-like
        The model bundle.
    patients : sequence of (str, str, path-like, path-like)
        Patient; cohort; CT of the stage `resample`; CT of the stage `convert`, of which only the grid is read.
    preprocessing : dict
        The section `resample` the scans were made with; has to be the bundle's.
    threads : int
        CPU threads.
    predictions_path : path-like
        One row per patient (`COLUMNS`). `relevance_maximum` is what 1 means in the patient's relevance map.
    masks_folder : path-like
        Gets `{patient}_haematoma.nii.gz` on the native grid and `{patient}_grid.nii.gz` on the network's, both uint8;
        and `{patient}_relevance.nii.gz`, where the evidence for expansion lies: 0 to 1 in steps of 2**-14 (int16 with
        that slope; reads as float32), on the grid of the network's bridge, with the affine of that grid (see
        `haemex.explanation`; `haemex.relevance` brings it to any other grid).
    precision : {"auto", "fp32", "bf16"}
        Of the convolutions; see `haemex.network.inference_precision`.
    ensemble : bool
        Whether the fold models predict too; `ensemble_probability` and `ensemble_sd` (n - 1) are empty without.

    Raises
    ------
    InputError
        Other preprocessing than the model was trained with, a damaged bundle or scan.
    """
    bundle = load_bundle(bundle_folder, ensemble)
    Path(masks_folder).mkdir(parents=True, exist_ok=True)
    refuse_other_preparation(bundle.preparation, {"resample": preprocessing}, bundle_folder)
    grid = tuple(preprocessing["matrix"][::-1])
    rows = []
    with computing(threads, deterministic=True) as device:
        precision = inference_precision(precision, device)
        announce(
            f"predict: {plural(len(patients), 'patient')} on {device_name(device)}, {precision}, "
            + (f"with {len(bundle.ensemble)} fold models" if bundle.ensemble else "without fold models")
        )
        model, *fold_models = (place(one, device, "auto", precision) for one in (bundle.model, *bundle.ensemble))
        # One patient waits for the models, many for each other.
        alone = len(patients) == 1
        progress = (
            Progress("predict, models", 1 + len(fold_models), 3.0) if alone else Progress("predict", len(patients))
        )
        for done, (patient, cohort, ct_path, native_path) in enumerate(patients, start=1):
            ct, affine = read_volume(ct_path)
            if ct.shape != grid:
                raise InputError(
                    f"patient {patient}: grid (z, y, x) {ct.shape} where resample.matrix gives {grid}",
                    "run the stage resample again",
                    ct_path,
                )
            logit, haematoma, bridge = predict_scan_and_bridge(model, ct, device, precision)
            relevance, relevance_maximum = relevance_map(model, bridge)
            fold_logits = []
            for number, one in enumerate(fold_models, start=1):
                if alone:
                    progress.step(number)
                fold_logits.append(predict_expansion(one, ct, device, precision))
            for value in (logit, relevance_maximum, *fold_logits):
                if not math.isfinite(value):
                    raise InputError(
                        f"patient {patient}: the network's output is {value}",
                        "check the model bundle and this scan",
                        ct_path,
                    )
            native_shape, native_affine = read_grid(native_path)
            drawn = haematoma > 0.5
            native = resample_haematoma(drawn, affine, native_affine, native_shape).astype(np.uint8)
            write_volume(Path(masks_folder) / f"{patient}_grid.nii.gz", drawn.astype(np.uint8), affine)
            write_volume(Path(masks_folder) / f"{patient}_haematoma.nii.gz", native, native_affine)
            relevance_path = Path(masks_folder) / f"{patient}_relevance.nii.gz"
            write_volume(relevance_path, relevance, bridge_affine(model, affine), slope=RELEVANCE_SLOPE)
            expansion, of_folds = probability(logit), [probability(value) for value in fold_logits]
            rows.append(
                {
                    "patient": patient,
                    "cohort": cohort,
                    "probability": expansion,
                    "logit": logit,
                    "calibrated_probability": calibrate(bundle.calibration, logit),
                    "positive": int(expansion >= bundle.threshold),
                    "predicted_ml": volume_ml(native, native_affine),
                    "ensemble_probability": float(np.mean(of_folds)) if of_folds else None,
                    "ensemble_sd": float(np.std(of_folds, ddof=1)) if len(of_folds) > 1 else None,
                    "relevance_maximum": relevance_maximum,
                }
            )
            if not alone:
                progress.step(done)
    write_table(predictions_path, rows, COLUMNS)
