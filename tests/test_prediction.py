import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from haemex.errors import InputError
from haemex.network import initial_network, predict_scan
from haemex.nifti import read_volume, write_volume
from haemex.prediction import (
    load_bundle,
    predict_patients,
    refuse_other_preprocessing,
    write_bundle,
)

NETWORK = {"widths": [2, 3, 4, 4], "convs_per_level": 1, "normalisation": "batch"}
PREPROCESSING = {"field_of_view_mm": [60.0, 60.0, 60.0], "matrix": [12, 12, 8], "window_hu": [0.0, 100.0]}
CALIBRATION = {"method": "platt", "intercept": 0.25, "slope": 2.0}
GRID_AFFINE = np.diag([5.0, 5.0, 7.5, 1.0])
GRID_AFFINE[:3, 3] = -27.5, -27.5, -26.25
TILTED = np.array([[0.0, 2.1, 0.0, -30.0], [-2.0, 0.1, 0.0, 31.0], [0.0, 0.3, 5.0, -28.0], [0, 0, 0, 1]])
TILTED[1, 2] = 1.4  # gantry tilt: slices shifted against each other


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A study's trainings and the bundle made of them."""
    tmp_path = tmp_path_factory.mktemp("built")
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(0)
    for name in ("model", "fold0", "fold1", "fold2"):
        model = initial_network(NETWORK, 1, name)
        with torch.no_grad():  # statistics as of a trained network, and a mask that is neither empty nor full
            model.train()(torch.rand(4, 1, 8, 12, 12))
            model.segmentation.bias.sub_(model.eval()(torch.rand(1, 1, 8, 12, 12))[0].median())
        path = folder / "model.safetensors" if name == "model" else tmp_path / "train" / name / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors.torch.save(model.state_dict()))
    write_bundle(
        folder,
        fold_weights=[tmp_path / "train" / f"fold{fold}" / "model.safetensors" for fold in range(3)],
        network=NETWORK,
        preprocessing=PREPROCESSING,
        threshold=0.4,
        rule="youden",
        calibration=CALIBRATION,
        training={"epochs": 1},
        cohort={"patients": 3, "expansions": 1},
    )
    return tmp_path


@pytest.fixture
def bundle(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


def test_bundle_round_trip(bundle):
    content = json.loads((bundle / "model.json").read_text())
    assert content["format"] == 2
    parameters = sum(p.numel() for p in initial_network(NETWORK, 1, "bundle").parameters())
    assert content["network"] == {**NETWORK, "parameters": parameters}
    assert content["operating_point"] == {"threshold": 0.4, "rule": "youden"}
    assert content["cohort"] == {"patients": 3, "expansions": 1}
    assert content["versions"]["torch"] == torch.__version__
    loaded = load_bundle(bundle)
    assert (loaded.threshold, loaded.calibration) == (0.4, CALIBRATION)
    assert loaded.preprocessing == PREPROCESSING
    assert not loaded.model.training
    stored = safetensors.torch.load_file(bundle / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.model.state_dict().items())


def test_the_fold_models_travel_with_the_bundle(bundle, tmp_path):
    listed = json.loads((bundle / "model.json").read_text())["ensemble"]
    assert [member["file"] for member in listed] == [f"fold{fold}.safetensors" for fold in range(3)]
    for fold, member in enumerate(listed):
        content = (bundle / member["file"]).read_bytes()
        assert content == (tmp_path / "train" / f"fold{fold}" / "model.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == member["sha256"]
    for path in (tmp_path / "train").rglob("*.safetensors"):
        path.unlink()  # the bundle needs nothing of the study
    ensemble = load_bundle(bundle).ensemble
    assert len(ensemble) == 3
    for fold, model in enumerate(ensemble):
        assert not model.training
        stored = safetensors.torch.load_file(bundle / f"fold{fold}.safetensors")
        assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert load_bundle(bundle, ensemble=False).ensemble == ()


def change_json(bundle, **changes):
    content = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps({**content, **changes}))


def test_damaged_and_foreign_bundles_are_refused(bundle):
    description, weights = bundle / "model.json", bundle / "model.safetensors"
    text, content = description.read_text(), weights.read_bytes()

    def refused(match):
        with pytest.raises(InputError, match=match):
            load_bundle(bundle)
        description.write_text(text)
        weights.write_bytes(content)

    description.write_text(text[: len(text) // 2])
    refused("no readable model description")
    description.unlink()
    refused("no readable model description")
    description.write_text("[]")
    refused("format is None")
    change_json(bundle, format=1)
    refused("format is 1, this haemex reads 2")
    change_json(bundle, calibration={"intercept": 0.0, "slope": 1.0})
    refused("calibration cannot be used: its method is None")
    change_json(bundle, calibration={"method": "platt", "intercept": 0.0})
    refused("slope is None")
    change_json(bundle, operating_point={"threshold": float("nan"), "rule": "x"})
    refused("threshold is nan")
    change_json(bundle, network={**json.loads(text)["network"], "parameters": 5})
    refused("5 parameters stated")
    change_json(bundle, network={**json.loads(text)["network"], "widths": [2, 3, 4, 5]})
    refused("tensors do not fit")
    change_json(bundle, network={**json.loads(text)["network"], "colour": "red"})
    refused("settings are not usable")
    weights.write_bytes(content[:-50])
    refused("no readable weights")
    weights.unlink()
    refused("no readable weights")
    flipped = bytearray(content)
    flipped[-3] ^= 1
    weights.write_bytes(flipped)
    refused("not those that model.json was written for")
    load_bundle(bundle)


def test_damaged_and_foreign_fold_models_are_refused(bundle):
    description, weights = bundle / "model.json", bundle / "fold1.safetensors"
    text, content = description.read_text(), weights.read_bytes()
    listed = json.loads(text)["ensemble"]

    def refused(match):
        with pytest.raises(InputError, match=match):
            load_bundle(bundle)
        description.write_text(text)
        weights.write_bytes(content)

    def listed_as(name):
        change_json(bundle, ensemble=[listed[0], {**listed[1], "file": name}])

    weights.write_bytes(content[:-50])
    refused("fold1.safetensors: no readable weights")
    weights.unlink()
    refused("fold1.safetensors: no readable weights")
    flipped = bytearray(content)
    flipped[-3] ^= 1
    weights.write_bytes(flipped)
    refused("fold1.safetensors: the weights are not those that model.json was written for")
    weights.write_bytes((bundle / "fold0.safetensors").read_bytes())
    refused("fold1.safetensors: the weights are not those")
    other = initial_network({**NETWORK, "widths": [2, 3, 4, 5]}, 1, "other")
    weights.write_bytes(safetensors.torch.save(other.state_dict()))
    refused("fold1.safetensors: .*tensors do not fit")
    for name in ("../secret.safetensors", "/etc/passwd", "fold1.safetensors/../../x", "fold1.pkl", 7, None):
        listed_as(name)
        refused("a fold model is named")
    change_json(bundle, ensemble=[{"file": "fold0.safetensors"}])
    refused("incomplete.*sha256")
    change_json(bundle, ensemble=None)
    refused("incomplete")
    load_bundle(bundle)
    weights.unlink()
    load_bundle(bundle, ensemble=False)  # who does not ask for them does not need them


@pytest.mark.parametrize("name", ["model", "fold2"])
def test_a_pickle_is_never_executed(bundle, name):
    executed = bundle / "executed"

    class Trap:
        def __reduce__(self):
            return executed.touch, ()

    torch.save({"weights": Trap()}, bundle / f"{name}.safetensors")
    with pytest.raises(InputError, match="no readable weights"):
        load_bundle(bundle)
    assert not executed.exists()


def test_what_does_not_belong_together_makes_no_bundle(bundle, tmp_path):
    folds = sorted((tmp_path / "train").rglob("*.safetensors"))
    before = (bundle / "model.json").read_bytes()

    def refused(match, **changes):
        arguments = {
            "fold_weights": folds,
            "network": NETWORK,
            "preprocessing": PREPROCESSING,
            "threshold": 0.5,
            "rule": "youden",
            "calibration": CALIBRATION,
            "training": {},
            "cohort": {},
        }
        with pytest.raises(InputError, match=match):
            write_bundle(bundle, **arguments | changes)
        assert (bundle / "model.json").read_bytes() == before

    refused("do not fit", network={**NETWORK, "convs_per_level": 2})
    refused("slope is None", calibration={"method": "platt", "intercept": 0.0})
    folds[1].write_bytes(
        safetensors.torch.save(initial_network({**NETWORK, "widths": [2, 3, 4, 5]}, 1, "x").state_dict())
    )
    refused("fold1.model.safetensors: .*do not fit")


def test_other_preprocessing_is_refused_by_name(bundle):
    refuse_other_preprocessing(PREPROCESSING, {**PREPROCESSING, "window_hu": (0, 100)}, bundle)
    other = {**PREPROCESSING, "window_hu": [0.0, 80.0], "spline_order": 3}
    with pytest.raises(
        InputError, match=r"resample\.spline_order is 3.*absent; resample\.window_hu is \[0\.0, 80\.0\]"
    ):
        refuse_other_preprocessing(PREPROCESSING, other, bundle)


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
