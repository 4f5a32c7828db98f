import hashlib
import json
import shutil

import pytest
import safetensors.torch
import torch
from fabricated_bundle import CALIBRATION, NETWORK, PREPARATION, PREPROCESSING, change_json, make_bundle

from haemex.bundle import load_bundle, write_bundle
from haemex.errors import InputError
from haemex.network import initial_network


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


def test_bundle_round_trip(bundle):
    content = json.loads((bundle / "model.json").read_text())
    assert content["format"] == 3
    parameters = sum(p.numel() for p in initial_network(NETWORK, 1, "bundle").parameters())
    assert content["network"] == {**NETWORK, "parameters": parameters}
    assert content["operating_point"] == {"threshold": 0.4, "rule": "youden"}
    assert content["cohort"] == {"patients": 3, "expansions": 1}
    assert content["versions"]["torch"] == torch.__version__
    loaded = load_bundle(bundle)
    assert (loaded.threshold, loaded.calibration) == (0.4, CALIBRATION)
    assert loaded.preparation == PREPARATION == content["preparation"]
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
    change_json(bundle, format=2)
    refused("format is 2, this haemex reads 3")
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
    # Sizes that no weights at hand could fill are refused before anything of that size is made.
    change_json(bundle, network={**json.loads(text)["network"], "widths": [10**6, 10**6, 10**6, 10**6]})
    refused("tensors do not fit")
    change_json(bundle, network={**json.loads(text)["network"], "widths": [10**12, 10**12, 10**12, 10**12]})
    refused("settings are not usable")
    change_json(bundle, network={**json.loads(text)["network"], "convs_per_level": 10**12})
    refused("tensors do not fit")
    description.write_text('{"format": 3, "network": ' + "[" * 10**6)
    refused("no readable model description")
    weights.write_bytes(
        safetensors.torch.save({name: one.half() for name, one in safetensors.torch.load_file(weights).items()})
    )
    refused("tensors do not fit")
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
    change_json(bundle, ensemble=listed[:1] * 10**5)  # as many models in memory
    refused("a fold model is named twice")
    change_json(bundle, ensemble=[{"file": "fold0.safetensors"}])
    refused("incomplete.*sha256")
    change_json(bundle, ensemble=None)
    refused("incomplete")
    load_bundle(bundle)
    weights.unlink()
    load_bundle(bundle, ensemble=False)  # who does not ask for them does not need them


def test_a_preparation_that_makes_no_scan_is_refused(bundle):
    resample = {**PREPROCESSING, "matrix": [10**5, 10**5, 10**5]}
    change_json(bundle, preparation={**PREPARATION, "resample": resample})
    with pytest.raises(InputError, match=r"model\.json: .*resample\.matrix is \[100000"):
        load_bundle(bundle)


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
            "preparation": PREPARATION,
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
    refused("its sections are not convert", preparation={"convert": PREPARATION["convert"]})
    refused("slope is None", calibration={"method": "platt", "intercept": 0.0})
    folds[1].write_bytes(
        safetensors.torch.save(initial_network({**NETWORK, "widths": [2, 3, 4, 5]}, 1, "x").state_dict())
    )
    refused("fold1.model.safetensors: .*do not fit")
