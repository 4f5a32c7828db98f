import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from fabricated_bundle import PREPROCESSING, change_json, make_bundle

from haemex.bundle import load_bundle
from haemex.errors import InputError
from haemex.explanation import relevance_map
from haemex.network import predict_scan, predict_scan_and_bridge
from haemex.nifti import read_volume, write_volume
from haemex.prediction import predict_patients

GRID_AFFINE = np.diag([5.0, 5.0, 7.5, 1.0])
GRID_AFFINE[:3, 3] = -27.5, -27.5, -26.25
TILTED = np.array([[0.0, 2.1, 0.0, -30.0], [-2.0, 0.1, 0.0, 31.0], [0.0, 0.3, 5.0, -28.0], [0, 0, 0, 1]])
TILTED[1, 2] = 1.4  # gantry tilt: slices shifted against each other


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A study's trainings and the bundle made of them."""
    tmp_path = tmp_path_factory.mktemp("built")
    make_bundle(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


@pytest.fixture
def cohort(tmp_path):
    rng = np.random.default_rng(3)
    patients = []
    for patient, of in (("p1", "train"), ("p2", "test")):
        write_volume(tmp_path / f"{patient}_ct.nii.gz", rng.random((8, 12, 12)) * 3, GRID_AFFINE, slope=2.0**-10)
        write_volume(tmp_path / f"{patient}_baseline.nii.gz", np.zeros((13, 30, 31), np.int16), TILTED)
        patients.append((patient, of, tmp_path / f"{patient}_ct.nii.gz", tmp_path / f"{patient}_baseline.nii.gz"))
    return patients


def predict(bundle, cohort, tmp_path, preprocessing=PREPROCESSING, precision="fp32", ensemble=True):
    (tmp_path / "masks").mkdir(exist_ok=True)
    predict_patients(
        bundle_folder=bundle,
        patients=cohort,
        preprocessing=preprocessing,
        threads=1,
        predictions_path=tmp_path / "predictions.tsv",
        masks_folder=tmp_path / "masks",
        precision=precision,
        ensemble=ensemble,
    )
    with open(tmp_path / "predictions.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_predictions_and_masks_of_a_cohort(bundle, cohort, tmp_path):
    rows = predict(bundle, cohort, tmp_path)
    assert [(row["patient"], row["cohort"]) for row in rows] == [("p1", "train"), ("p2", "test")]
    loaded = load_bundle(bundle)
    model = loaded.model
    for row, (patient, _, ct_path, _) in zip(rows, cohort, strict=True):
        logit, haematoma = predict_scan(model, read_volume(ct_path)[0], torch.device("cpu"))
        assert float(row["logit"]) == pytest.approx(logit, abs=1e-5)
        logit = float(row["logit"])
        assert float(row["probability"]) == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-12)
        assert float(row["calibrated_probability"]) == pytest.approx(1 / (1 + np.exp(-0.25 - 2 * logit)), rel=1e-12)
        assert row["positive"] == str(int(float(row["probability"]) >= 0.4))
        scan = read_volume(ct_path)[0]
        of_folds = [predict_scan(one, scan, torch.device("cpu"))[0] for one in loaded.ensemble]
        of_folds = [1 / (1 + np.exp(-one)) for one in of_folds]
        assert len({round(one, 6) for one in [*of_folds, float(row["probability"])]}) == 4  # four models, four answers
        mean = sum(of_folds) / 3
        assert float(row["ensemble_probability"]) == pytest.approx(mean, abs=1e-6)
        sd = (sum((one - mean) ** 2 for one in of_folds) / 2) ** 0.5
        assert float(row["ensemble_sd"]) == pytest.approx(sd, abs=1e-6)
        on_grid, affine = read_volume(tmp_path / "masks" / f"{patient}_grid.nii.gz")
        assert on_grid.dtype == np.uint8
        clear = abs(haematoma - 0.5) > 1e-4
        np.testing.assert_array_equal(on_grid[clear], (haematoma > 0.5)[clear])
        assert 0 < on_grid.mean() < 1
        np.testing.assert_allclose(affine, GRID_AFFINE)
        native, affine = read_volume(tmp_path / "masks" / f"{patient}_haematoma.nii.gz")
        np.testing.assert_allclose(affine, TILTED, atol=1e-6)
        assert native.shape == (13, 30, 31)
        assert float(row["predicted_ml"]) == pytest.approx(native.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
        assert native.any()


def scale_expansion(bundle, factor):
    path = bundle / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["expansion.weight"] *= factor
    path.write_bytes(safetensors.torch.save(tensors))
    change_json(bundle, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_map_of_the_evidence_for_expansion(bundle, cohort, tmp_path):
    scale_expansion(bundle, -1)  # this network sees nothing that speaks for expansion, its opposite does
    rows = predict(bundle, cohort, tmp_path)
    model = load_bundle(bundle).model
    for row, (patient, _, ct_path, _) in zip(rows, cohort, strict=True):
        scan, _ = read_volume(ct_path)
        expected, maximum = relevance_map(model, predict_scan_and_bridge(model, scan, torch.device("cpu"))[2])
        relevance, affine = read_volume(tmp_path / "masks" / f"{patient}_relevance.nii.gz")
        np.testing.assert_allclose(relevance, expected, atol=2**-14)
        assert (relevance.dtype, relevance.shape) == (np.float32, (2, 3, 3))
        np.testing.assert_allclose(affine[:3, :3], np.diag([20.0, 20.0, 30.0]))
        np.testing.assert_allclose(affine[:3, 3], GRID_AFFINE[:3, 3])
        assert float(row["relevance_maximum"]) == pytest.approx(maximum, rel=1e-3)
        assert maximum > 0 and relevance.max() == 1


def test_where_nothing_speaks_for_expansion_the_map_is_zero(bundle, cohort, tmp_path):
    scale_expansion(bundle, 0)
    for row in predict(bundle, cohort, tmp_path):
        assert float(row["relevance_maximum"]) == 0
        assert not read_volume(tmp_path / "masks" / f"{row['patient']}_relevance.nii.gz")[0].any()


def test_without_the_ensemble_nothing_else_changes(bundle, cohort, tmp_path):
    whole = predict(bundle, cohort, tmp_path)
    for path in bundle.glob("fold*.safetensors"):
        path.unlink()
    alone = predict(bundle, cohort, tmp_path, ensemble=False)
    assert [row.pop("ensemble_probability") != "" for row in whole + alone] == [True, True, False, False]
    assert [row.pop("ensemble_sd") != "" for row in whole + alone] == [True, True, False, False]
    assert alone == whole


def test_one_fold_model_has_a_mean_but_no_spread(bundle, cohort, tmp_path):
    change_json(bundle, ensemble=json.loads((bundle / "model.json").read_text())["ensemble"][:1])
    row = predict(bundle, cohort, tmp_path)[0]
    assert row["ensemble_probability"] != "" and row["ensemble_sd"] == ""


def test_isotonic_calibration_is_applied(bundle, cohort, tmp_path):
    knots = {"method": "isotonic", "logit": [-50.0, 50.0], "probability": [0.25, 0.75]}
    change_json(bundle, calibration=knots)
    for row in predict(bundle, cohort, tmp_path):
        assert float(row["calibrated_probability"]) == pytest.approx(0.5 + float(row["logit"]) / 200)


def test_bf16_agrees_with_fp32(bundle, cohort, tmp_path):
    exact, coarse = predict(bundle, cohort, tmp_path), predict(bundle, cohort, tmp_path, precision="bf16")
    differing = 0
    for one, other in zip(exact, coarse, strict=True):
        for name in ("probability", "ensemble_probability"):
            assert float(other[name]) == pytest.approx(float(one[name]), abs=0.01)
            differing += other[name] != one[name]
    assert differing  # the setting arrives


def test_the_output_of_a_fold_model_has_to_be_finite(bundle, cohort, tmp_path):
    path = bundle / "fold2.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["classification.4.bias"][:] = 1e30  # all finite, but not their product
    tensors["expansion.weight"][:] = 1e30
    path.write_bytes(safetensors.torch.save(tensors))
    listed = json.loads((bundle / "model.json").read_text())["ensemble"]
    listed[2]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    change_json(bundle, ensemble=listed)
    with pytest.raises(InputError, match="patient p1: the network's output is inf"):
        predict(bundle, cohort, tmp_path)
    assert predict(bundle, cohort, tmp_path, ensemble=False)


def test_the_threshold_itself_is_positive(bundle, cohort, tmp_path):
    probability = float(predict(bundle, cohort, tmp_path)[0]["probability"])
    for threshold, positive in ((probability, "1"), (np.nextafter(probability, 1), "0")):
        change_json(bundle, operating_point={"threshold": threshold, "rule": "youden"})
        assert predict(bundle, cohort, tmp_path)[0]["positive"] == positive


def test_the_same_bytes_again_and_alone(bundle, cohort, tmp_path):
    def masks():
        return {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}

    rows, before = predict(bundle, cohort, tmp_path), masks()
    assert predict(bundle, cohort, tmp_path) == rows
    assert masks() == before
    assert predict(bundle, cohort[1:], tmp_path) == rows[1:]


def test_scans_that_do_not_suit_the_model_are_refused(bundle, cohort, tmp_path):
    with pytest.raises(InputError, match=r"resample\.matrix is \[16, 12, 8\]"):
        predict(bundle, cohort, tmp_path, {**PREPROCESSING, "matrix": [16, 12, 8]})
    write_volume(cohort[1][2], np.zeros((8, 12, 8)), GRID_AFFINE, slope=2.0**-10)
    with pytest.raises(InputError, match=r"patient p2: grid \(z, y, x\) \(8, 12, 8\)"):
        predict(bundle, cohort, tmp_path)
    write_volume(cohort[1][2], np.zeros((8, 12, 12)), GRID_AFFINE, slope=2.0**-10)
    cohort[1][3].write_bytes(b"no image")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        predict(bundle, cohort, tmp_path)
    assert not (tmp_path / "predictions.tsv").exists()
