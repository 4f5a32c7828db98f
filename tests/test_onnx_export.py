import hashlib
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from fabricated_bundle import CALIBRATION, NETWORK, PREPARATION, change_json, make_bundle

from haemex.bundle import load_bundle
from haemex.errors import InputError
from haemex.network import predict_scan

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from haemex import onnx_export  # noqa: E402

VARIANTS = {
    "paper": NETWORK,
    "instance, 2.5-D on one level": {**NETWORK, "normalisation": "instance", "in_plane_levels": 1},
    "2.5-D on two levels": {**NETWORK, "in_plane_levels": 2, "convs_per_level": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("exported")
    folder = make_bundle(tmp_path, VARIANTS[request.param])
    weights = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["expansion.weight"] *= 50  # an untrained network says the same of every scan
    weights.write_bytes(safetensors.torch.save(tensors))
    change_json(folder, weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    return folder, tmp_path / "model.onnx", onnx_export.export_onnx(folder, tmp_path / "model.onnx")


def run(path, scan):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logit", "haematoma"], {"scan": scan[None, None]})


def test_onnxruntime_agrees_with_pytorch(exported):
    folder, path, difference = exported
    assert difference <= 1e-4
    model = load_bundle(folder).model
    logits = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scan = rng.random((8, 12, 12), np.float32) * 3
        if seed % 2:  # mostly zero, as around a brain, with a bright haematoma
            scan[:, :, :6] = 0
            scan[3:6, 4:8, 7:10] += 4
        logit, haematoma = predict_scan(model, scan, torch.device("cpu"))
        found_logit, found_haematoma = run(path, scan)
        assert found_logit.shape == (1,) and found_haematoma.shape == (1, 1, 8, 12, 12)
        assert found_logit[0] == pytest.approx(logit, abs=1e-4)
        np.testing.assert_allclose(found_haematoma[0, 0], haematoma, atol=1e-4)
        assert haematoma.std() > 0.01
        logits.append(logit)
    assert np.ptp(logits) > 1e-2  # it answers to the scan, so that agreement means something


def test_the_file_is_a_valid_model_and_says_how_to_use_it(exported):
    folder, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [one.name for one in model.graph.input] == ["scan"]
    assert [one.name for one in model.graph.output] == ["logit", "haematoma"]
    assert [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 12, 12]
    said = {one.key: json.loads(one.value) for one in model.metadata_props}
    description = json.loads((folder / "model.json").read_text())
    assert said["preparation"] == PREPARATION
    assert said["operating_point"] == {"threshold": 0.4, "rule": "youden"}
    assert said["calibration"] == CALIBRATION
    assert said["weights_sha256"] == description["weights_sha256"]
    assert said["versions"] == description["versions"]
    assert "not a medical device" in said["caveat"]


def test_the_file_does_not_tell_where_it_was_made(exported):
    content = exported[1].read_bytes()
    for trace in (b".py", b"stack_trace", b"site-packages", b"/work", b"/home", b"File "):
        assert trace not in content


@pytest.mark.parametrize("exported", ["paper"], indirect=True)
def test_the_same_bytes_again_and_no_larger_than_the_weights(exported, tmp_path):
    folder, path, _ = exported
    onnx_export.export_onnx(folder, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert path.stat().st_size < (folder / "model.safetensors").stat().st_size + 20000


@pytest.mark.parametrize("exported", ["paper"], indirect=True)
def test_a_model_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    folder, path, _ = exported
    model = onnx.load(path)
    first = model.graph.initializer[0]
    weights = onnx.numpy_helper.to_array(first).copy()
    weights.flat[0] += 0.05
    first.CopyFrom(onnx.numpy_helper.from_array(weights, first.name))
    monkeypatch.setattr(onnx_export, "_convert", lambda *_: model.SerializeToString())
    with pytest.raises(InputError, match="onnxruntime and PyTorch differ by"):
        onnx_export.export_onnx(folder, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    folder = make_bundle(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        onnx_export.export_onnx(folder, tmp_path / "missing" / "new.onnx")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no readable weights"):
        onnx_export.export_onnx(folder, tmp_path / "new.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="the package onnxscript is not installed"):
        onnx_export.export_onnx(folder, tmp_path / "new.onnx")
