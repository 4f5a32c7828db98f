"""A real head (GE, tilted gantry, uneven slices) with an implanted haematoma, through every stage of one patient."""

import csv
import json
import tarfile

import numpy as np
import pytest
import yaml

from haemex.augment import augment_patient
from haemex.bundle import write_bundle
from haemex.cohort import is_expansion
from haemex.convert import convert_scan
from haemex.nifti import read_volume
from haemex.phantom_background import implant
from haemex.prediction import predict_patients
from haemex.provenance import ROOT
from haemex.resample import resample_scan
from haemex.segmentation_metrics import dice
from haemex.skullstrip import skullstrip_scan
from haemex.training import train_network
from haemex.volume import measure_patient

BASELINE_ML, FOLLOWUP_ML = 14.0, 24.0
RESAMPLE = {
    "field_of_view_mm": [192.0, 192.0, 160.0],
    "matrix": [48, 48, 32],
    "spline_order": 3,
    "window_hu": [0.0, 100.0],
}
PREPARATION = {
    "convert": {"slice_thickness_mm": 5.0},
    "skullstrip": {"seal_gap_mm": 4.0, "min_brain_ml": 500.0, "plausible_brain_ml": [900.0, 1900.0]},
    "resample": RESAMPLE,
}
NETWORK = {"widths": [4, 6, 8, 10], "convs_per_level": 1, "normalisation": "batch"}
TRAINING = {
    "epochs": 12,
    "batch_size": 2,
    "learning_rate": 1.0e-2,
    "rate_milestones": [9],
    "rate_factor": 0.1,
    "loss_weights": {"segmentation": 0.9, "classification": 0.1},
    "precision": "auto",
    "channels_last": "auto",
    "compile": False,
    "deterministic": True,
    "threads": 1,
}


@pytest.fixture(scope="module")
def shared_head(request, tmp_path_factory):
    """Unpack the real series; skipped with the reason that `shared` gives."""
    archive = request.getfixturevalue("shared") / "data/head_ge_tilt_uneven.tar.xz"
    folder = tmp_path_factory.mktemp("head")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def patient(shared_head, tmp_path_factory):
    """Implant, write back as DICOM, and run the stages of one patient."""
    folder = tmp_path_factory.mktemp("patient")
    truth = {}
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for timepoint, volume_ml in (("baseline", BASELINE_ML), ("followup", FOLLOWUP_ML)):
        truth[timepoint] = implant(shared_head, folder / timepoint, volume_ml, seed=5)
        convert_scan(
            folder / timepoint / "dicom",
            folder / f"{timepoint}.nii.gz",
            folder / f"{timepoint}.json",
            **settings["convert"],
        )
    measure_patient(
        patient="R1",
        baseline_mask=folder / "baseline/mask.nii.gz",
        baseline_json=folder / "baseline.json",
        baseline_nifti=folder / "baseline.nii.gz",
        followup_mask=folder / "followup/mask.nii.gz",
        followup_json=folder / "followup.json",
        followup_volume_ml=None,
        rater2_mask=None,
        json_out=folder / "R1.json",
        mask_out=folder / "haematoma.nii.gz",
    )
    skullstrip_scan(
        folder / "baseline.nii.gz", folder / "brain.nii.gz", folder / "brain.json", **settings["skullstrip"]
    )
    grid = folder / "grid"
    grid.mkdir()
    resample_scan(
        ct_path=folder / "baseline.nii.gz",
        brain_path=folder / "brain.nii.gz",
        haematoma_path=folder / "haematoma.nii.gz",
        ct_out=grid / "R1_ct.nii.gz",
        brain_out=grid / "R1_brain.nii.gz",
        haematoma_out=grid / "R1_haematoma.nii.gz",
        json_out=grid / "R1.json",
        **RESAMPLE,
    )
    return folder, truth


def test_volumes_and_label_are_those_implanted(patient):
    folder, truth = patient
    measured = json.loads((folder / "R1.json").read_text())
    assert measured["baseline_ml"] == pytest.approx(truth["baseline"], rel=1e-3)
    assert measured["followup_ml"] == pytest.approx(truth["followup"], rel=1e-3)
    assert truth["baseline"] == pytest.approx(BASELINE_ML, rel=0.1)
    assert is_expansion(measured["baseline_ml"], measured["followup_ml"], 6.0, 33.0, ">")


def test_the_tilt_and_the_uneven_slices_are_seen(patient):
    geometry = json.loads((patient[0] / "baseline.json").read_text())["geometry"]
    assert abs(geometry["tilt_deg"]) == pytest.approx(18.5, abs=0.1)
    assert geometry["acquired_slices"] == 28 and geometry["even"] is False


def test_the_brain_holds_the_haematoma_and_is_as_large_as_a_brain(patient):
    folder, _ = patient
    brain, _ = read_volume(folder / "brain.nii.gz")
    haematoma, _ = read_volume(folder / "haematoma.nii.gz")
    assert (brain[haematoma > 0] > 0).mean() > 0.99
    assert 1000 < json.loads((folder / "brain.json").read_text())["brain_ml"] < 1800


def test_the_network_grid_shows_blood_brighter_than_brain(patient):
    grid = patient[0] / "grid"
    ct, affine = read_volume(grid / "R1_ct.nii.gz")
    brain, _ = read_volume(grid / "R1_brain.nii.gz")
    haematoma, _ = read_volume(grid / "R1_haematoma.nii.gz")
    assert ct.shape == (32, 48, 48) and np.allclose(np.abs(np.diag(affine)[:3]), [4, 4, 5])
    assert np.median(ct[haematoma > 0]) > np.percentile(ct[(brain > 0) & (haematoma == 0)], 90)
    volume = haematoma.sum() * 4 * 4 * 5 / 1000
    assert volume == pytest.approx(BASELINE_ML, rel=0.15)
    assert json.loads((grid / "R1.json").read_text())["haematoma_inside_fraction"] == pytest.approx(1.0)


def test_a_model_that_knows_this_head_finds_the_haematoma_on_the_tilted_slices(patient):
    """Overfitted on copies of this patient alone: what is tested is the way there and back, not the network."""
    folder, _ = patient
    grid = folder / "grid"
    (folder / "augment").mkdir()
    augment_patient(
        ct_path=grid / "R1_ct.nii.gz",
        haematoma_path=grid / "R1_haematoma.nii.gz",
        ct_out=folder / "augment/R1_ct.nii.gz",
        haematoma_out=folder / "augment/R1_haematoma.nii.gz",
        json_out=folder / "augment/R1.json",
        copies=10,
        include_original=True,
        scaling_percent=10.0,
        translation_percent=10.0,
        rotation_deg=5.0,
        seed=1,
        patient="R1",
    )
    bundle = folder / "model"
    bundle.mkdir()
    train_network(
        patients=["R1"],
        labels={"R1": 1},
        digests={"R1": "a"},
        augment_folder=folder / "augment",
        network=NETWORK,
        training=TRAINING,
        seed=1,
        purpose="real head",
        weights_path=bundle / "model.safetensors",
        history_path=folder / "history.tsv",
        roles_path=folder / "roles.tsv",
        checkpoint_path=folder / "checkpoint",
    )
    write_bundle(
        bundle,
        fold_weights=[],
        network=NETWORK,
        preparation=PREPARATION,
        threshold=0.5,
        rule="youden",
        calibration={"method": "platt", "intercept": 0.0, "slope": 1.0},
        training=TRAINING,
        cohort={"patients": 1, "expansions": 1},
    )
    predict_patients(
        bundle_folder=bundle,
        patients=[("R1", "test", grid / "R1_ct.nii.gz", folder / "baseline.nii.gz")],
        preprocessing=RESAMPLE,
        threads=1,
        predictions_path=folder / "predictions.tsv",
        masks_folder=folder,
    )
    predicted, affine = read_volume(folder / "R1_haematoma.nii.gz")
    manual, manual_affine = read_volume(folder / "haematoma.nii.gz")
    np.testing.assert_allclose(affine, manual_affine, atol=1e-4)
    assert dice(predicted > 0, manual > 0) > 0.75
    with (folder / "predictions.tsv").open(newline="") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    assert float(row["predicted_ml"]) == pytest.approx(BASELINE_ML, rel=0.35)
    assert row["positive"] == str(int(float(row["probability"]) >= 0.5))
