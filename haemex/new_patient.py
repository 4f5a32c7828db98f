"""One new patient, from the hospital's export to one page, with a locked model.

The stages are those of a study, called with the settings that the model bundle names: the same scan gives the same
bytes either way. Nothing is fitted, and nothing but the bundle and the scan is read.
"""

import itertools
import shutil
import time
from pathlib import Path

import numpy as np

from haemex.abstention import MOST_ML, reasons_to_abstain
from haemex.convert import convert_scan
from haemex.dicom_segmentation import write_segmentation
from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.inspection import measure_tissue
from haemex.logs import announce
from haemex.markers import write_markers
from haemex.model_description import read_description
from haemex.nifti import is_nifti, read_mask_on, read_volume
from haemex.patient_page import write_page
from haemex.resample import resample_scan
from haemex.series import find_series, plan_series
from haemex.skullstrip import skullstrip_scan
from haemex.tables import read_table

STEPS = 6
MODEL_FACTS = ("weights_sha256", "cohort", "versions", "operating_point", "calibration")


def predict_new_patient(
    source,
    bundle_folder,
    out_folder,
    *,
    patient="patient",
    onset_to_ct_h=None,
    series=None,
    ensemble=True,
    precision="auto",
):
    """Predict expansion for one patient and write everything about it into one folder.

    Parameters
    ----------
    source : path-like
        DICOM folder as the hospital exports it, or a NIfTI file in HU.
    bundle_folder : path-like
        A model bundle (`haemex.bundle`).
    out_folder : path-like
        Gets `prediction.html`, `prediction.json`, `haematoma.nii.gz` (uint8, on the native grid), `haematoma.dcm`
        (DICOM Segmentation; where the source is DICOM and something was found), and `stages/`, what each stage wrote.
        Has to be empty, or not there.
    patient : str
        Code that stands for the patient; letters and digits.
    onset_to_ct_h : float, optional
        Hours, for the BAT score.
    series : str, optional
        Label of the series to take.
    ensemble : bool
        Whether the fold models predict too, for the spread.
    precision : {"auto", "fp32", "bf16"}
        See `haemex.network.inference_precision`.

    Returns
    -------
    dict
        What `prediction.json` holds: `patient`, `abstained`, `reasons`; `probability` (calibrated), `raw_probability`,
        `positive`, `threshold`, `ensemble_probability`, `ensemble_sd`, all null where the model does not answer;
        `haematoma_ml`; `markers`, `bat_score`; `warnings` of the stages; `series`; `model` (digest, versions, cohort).

    Raises
    ------
    InputError
        The scan or the bundle is refused. Nothing is left in the folder then.
    """
    if not patient.isascii() or not patient.isalnum():
        raise InputError(f"the code {patient!r} is not made of letters and digits", "give a code, never a name")
    if onset_to_ct_h is not None and not 0 <= onset_to_ct_h <= 1000:
        raise InputError(f"{onset_to_ct_h:g} hours from onset to CT", "give hours, e.g. 1.5")
    out_folder = Path(out_folder)
    made = not out_folder.exists()
    try:
        if not made and any(out_folder.iterdir()):
            raise InputError("the folder for the results is not empty", "give another one, or empty it", out_folder)
        out_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder for the results cannot be used ({error.strerror})", "give another one", out_folder
        ) from None
    try:
        return _predict(source, Path(bundle_folder), out_folder, patient, onset_to_ct_h, series, ensemble, precision)
    except BaseException:
        shutil.rmtree(out_folder if made else out_folder / "stages", ignore_errors=True)
        for path in () if made else out_folder.iterdir():
            path.unlink()
        raise


def _predict(source, bundle_folder, out_folder, patient, onset_to_ct_h, series, ensemble, precision):
    description = read_description(bundle_folder)
    preparation = description["preparation"]
    steps, begun = itertools.count(1), time.perf_counter()

    def step(words):
        announce(f"{next(steps)} of {STEPS}, {time.perf_counter() - begun:.1f} s: {words}")

    stages = out_folder / "stages"
    folder = {name: stages / name for name in ("convert", "skullstrip", "resample", "predict", "markers")}
    for one in folder.values():
        one.mkdir(parents=True)
    ct_path, ct_json = (folder["convert"] / f"{patient}_baseline.{ending}" for ending in ("nii.gz", "json"))
    brain_path, brain_json = folder["skullstrip"] / f"{patient}_brain.nii.gz", folder["skullstrip"] / f"{patient}.json"
    grid_ct, grid_json = folder["resample"] / f"{patient}_ct.nii.gz", folder["resample"] / f"{patient}.json"

    step("choose the series, bring it to HU")
    convert_scan(source, ct_path, ct_json, preparation["convert"]["slice_thickness_mm"], series)
    step("find the brain")
    skullstrip_scan(ct_path, brain_path, brain_json, **preparation["skullstrip"])
    step("bring it to the network's grid")
    resample_scan(
        ct_path=ct_path,
        brain_path=brain_path,
        haematoma_path=None,
        ct_out=grid_ct,
        brain_out=folder["resample"] / f"{patient}_brain.nii.gz",
        haematoma_out=None,
        json_out=grid_json,
        **preparation["resample"],
    )
    models = 1 + (len(description["ensemble"]) if ensemble else 0)
    step(f"predict, with {models} {'model' if models == 1 else 'models'}")
    # PyTorch takes long to start; a scan that is refused before needs none of it.
    from haemex.prediction import predict_patients

    predict_patients(
        bundle_folder=bundle_folder,
        patients=[(patient, "new", grid_ct, ct_path)],
        preprocessing=preparation["resample"],
        threads=1,
        predictions_path=folder["predict"] / "predictions.tsv",
        masks_folder=folder["predict"] / "maps",
        precision=precision,
        ensemble=ensemble,
    )
    step("decide the NCCT markers")
    hu, affine = read_volume(ct_path)
    mask_path = folder["predict"] / "maps" / f"{patient}_haematoma.nii.gz"
    haematoma = read_mask_on(mask_path, hu.shape, affine)
    brain = read_mask_on(brain_path, hu.shape, affine)
    markers = None
    (row,) = read_table(folder["predict"] / "predictions.tsv")
    if 0 < row["predicted_ml"] <= MOST_ML:
        write_markers(
            patient=patient,
            ct_path=ct_path,
            haematoma_path=mask_path,
            onset_to_ct_h=onset_to_ct_h,
            read={},
            json_out=folder["markers"] / f"{patient}.json",
            voxels_out=folder["markers"] / f"{patient}_markers.nii.gz",
            png_out=folder["markers"] / f"{patient}.png",
        )
        markers = read_json(folder["markers"] / f"{patient}.json")
    step("write the page")
    converted = read_json(ct_json)
    grid_affine, grid_shape = np.array(read_json(grid_json)["grid_affine"]), preparation["resample"]["matrix"][::-1]
    reasons = reasons_to_abstain(
        hu,
        affine,
        brain,
        haematoma,
        grid_affine,
        tuple(grid_shape),
        converted,
        measure_tissue(hu, affine, brain, haematoma),
    )
    shutil.copyfile(mask_path, out_folder / "haematoma.nii.gz")
    if haematoma.any() and not is_nifti(source):
        taken, _ = find_series(source, preparation["convert"]["slice_thickness_mm"], series)
        slices, geometry = plan_series(taken)
        made_by = ("haemex two-output U-Net", description["weights_sha256"][:16])
        write_segmentation(out_folder / "haematoma.dcm", haematoma, slices, geometry, patient, made_by)
    found = {
        "patient": patient,
        "abstained": bool(reasons),
        "reasons": reasons,
        **_answer(row, description["operating_point"]["threshold"], bool(reasons)),
        "haematoma_ml": row["predicted_ml"],
        "onset_to_ct_h": onset_to_ct_h,
        "markers": None if markers is None else markers["markers"],
        "bat_score": None if markers is None else markers["bat_score"],
        "warnings": converted["warnings"] + read_json(brain_json)["warnings"],
        "acquisition": converted["acquisition"],
        "series": converted["series"],
        "model": {
            name: description[name]
            for name in ("weights_sha256", "cohort", "versions", "operating_point", "calibration")
        },
    }
    write_page(
        out_folder / "prediction.html",
        found,
        hu,
        affine,
        haematoma,
        read_volume(folder["predict"] / "maps" / f"{patient}_relevance.nii.gz"),
        (grid_affine, grid_shape),
    )
    write_json(out_folder / "prediction.json", found)
    return found


def _answer(row, threshold, abstained):
    """What the model says, or nothing."""
    said = {
        "probability": row["calibrated_probability"],
        "raw_probability": row["probability"],
        "positive": row["positive"],
        "ensemble_probability": row["ensemble_probability"],
        "ensemble_sd": row["ensemble_sd"],
    }
    return {**(dict.fromkeys(said) if abstained else said), "threshold": threshold}
