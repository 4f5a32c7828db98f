import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from test_dataset import SLOPE, write_copies

from haemex import training as module
from haemex.dataset import read_scan
from haemex.errors import InputError
from haemex.network import TwoOutputUNet, predict_scan
from haemex.nifti import write_volume
from haemex.training import Adam, learning_rate_of, refuse_leaks, settings_digest, train_network

GRID = (8, 16, 16)
AFFINE = np.diag([5.0, 5.0, 10.0, 1.0])  # 0.25 mL per voxel
OUTPUTS = ("weights_path", "history_path", "roles_path", "predictions_path")


def synthetic_scan(patient, expands):
    """A bright ellipsoid in noise; brighter if the haematoma expands."""
    rng = np.random.default_rng([*patient.encode()])
    z, y, x = np.meshgrid(*(np.arange(size) for size in GRID), indexing="ij")
    at = rng.uniform(0.4, 0.6, 3) * GRID
    mask = ((z - at[0]) / 2.5) ** 2 + ((y - at[1]) / 4) ** 2 + ((x - at[2]) / 4) ** 2 <= 1
    ct = rng.uniform(0, 0.3, GRID) + mask * (2.0 if expands else 1.0)
    return np.rint(ct / SLOPE).astype(np.int16), mask.astype(np.uint8)


@pytest.fixture
def job(tmp_path):
    """Arguments of a tiny training of four patients, with two validation patients."""
    labels = {"a": 1, "b": 0, "c": 1, "d": 0, "e": 1, "f": 0}
    for patient, label in labels.items():
        ct, mask = synthetic_scan(patient, label)
        write_copies(tmp_path / "augment", patient, [ct, ct[:, ::-1]], [mask, mask[:, ::-1]], AFFINE)
        (tmp_path / "resample").mkdir(exist_ok=True)
        write_volume(tmp_path / "resample" / f"{patient}_ct.nii.gz", ct * SLOPE, AFFINE, slope=SLOPE)
        write_volume(tmp_path / "resample" / f"{patient}_haematoma.nii.gz", mask, AFFINE)
    return {
        "patients": ["a", "b", "c", "d"],
        "validation": ["e", "f"],
        "labels": labels,
        "digests": {patient: f"digest of {patient}" for patient in labels},
        "augment_folder": tmp_path / "augment",
        "scan_folder": tmp_path / "resample",
        "network": {"widths": [2, 3, 4, 4], "convs_per_level": 1, "normalisation": "batch"},
        "training": {
            "epochs": 4,
            "batch_size": 3,
            "learning_rate": 1e-3,
            "rate_milestones": [2, 3],
            "rate_factor": 0.1,
            "loss_weights": {"segmentation": 0.9, "classification": 0.1},
            "deterministic": True,
            "threads": 1,
        },
        "seed": 7,
        "purpose": "train tiny fold0",
        "checkpoint_path": tmp_path / "checkpoint.safetensors",
        **outputs_in(tmp_path / "out"),
    }


def outputs_in(folder):
    folder.mkdir()
    names = ("model.safetensors", "history.tsv", "roles.tsv", "predictions.tsv")
    return {key: folder / name for key, name in zip(OUTPUTS, names, strict=True)}


def contents(job):
    return {key: job[key].read_bytes() for key in OUTPUTS}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_adam_is_pytorchs_adam_to_the_bit():
    torch.manual_seed(1)
    ours = TwoOutputUNet([2, 3, 4, 4], 1, "batch")
    theirs = TwoOutputUNet([2, 3, 4, 4], 1, "batch")
    theirs.load_state_dict(ours.state_dict())
    adam, reference = Adam(ours), torch.optim.Adam(theirs.parameters(), lr=1e-2, foreach=False)
    for step in range(6):
        scans = torch.rand(2, 1, 4, 8, 8)
        for model in (ours, theirs):
            segmentation, classification = model(scans)
            (segmentation.square().mean() + classification.sum()).backward()
        reference.param_groups[0]["lr"] = rate = 1e-2 if step < 3 else 1e-3
        adam.step(rate)
        reference.step()
        reference.zero_grad()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
        if step == 2:  # a copy of the state, loaded, goes on alike
            state = {name: tensor.clone() for name, tensor in adam.state().items()}
            adam = Adam(ours)
            adam.load(state)


def test_the_papers_schedule():
    rates = [learning_rate_of(epoch, 1e-4, [20, 30], 0.1) for epoch in range(1, 41)]
    assert rates == pytest.approx([1e-4] * 20 + [1e-5] * 10 + [1e-6] * 10, rel=1e-12)


def test_outputs_have_the_agreed_columns_and_rows(job):
    train_network(**job)
    history = rows(job["history_path"])
    assert list(history[0]) == [
        "epoch",
        "learning_rate",
        "train_loss",
        "train_dice_loss",
        "train_bce",
        "val_dice_median",
        "val_bce",
    ]
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    assert [float(row["learning_rate"]) for row in history] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    for row in history:
        total = 0.9 * float(row["train_dice_loss"]) + 0.1 * float(row["train_bce"])
        assert float(row["train_loss"]) == pytest.approx(total, rel=1e-5)
    predictions = rows(job["predictions_path"])
    assert [row["patient"] for row in predictions] == ["e", "f"]
    for row in predictions:
        assert float(row["probability"]) == pytest.approx(1 / (1 + np.exp(-float(row["logit"]))), rel=1e-12)
        assert 0 <= float(row["dice"]) <= 1
        assert float(row["predicted_ml"]) / 0.25 == pytest.approx(round(float(row["predicted_ml"]) / 0.25), abs=1e-6)
    dice = [float(row["dice"]) for row in predictions]
    assert float(history[-1]["val_dice_median"]) == pytest.approx(np.mean(dice))
    p = [float(row["probability"]) for row in predictions]
    assert float(history[-1]["val_bce"]) == pytest.approx((-np.log(p[0]) - np.log(1 - p[1])) / 2)
    expected = [(patient, copy, "train") for patient in "abcd" for copy in "01"]
    expected += [(patient, "scan", "validation") for patient in "ef"]
    assert [tuple(row.values()) for row in rows(job["roles_path"])] == expected
    assert not job["checkpoint_path"].exists()


def test_predictions_are_those_of_the_written_weights(job):
    job["training"].update(epochs=15, learning_rate=1e-2, rate_milestones=[])
    train_network(**job)
    model = TwoOutputUNet(**job["network"])
    model.load_state_dict(safetensors.torch.load_file(job["weights_path"]))
    for row in rows(job["predictions_path"]):
        scan, reference, _ = read_scan(job["scan_folder"], row["patient"])
        logit, haematoma = predict_scan(model, scan, torch.device("cpu"))
        assert float(row["logit"]) == pytest.approx(logit, abs=1e-5)
        predicted = haematoma > 0.5
        assert 0 < predicted.mean() < 1
        assert float(row["predicted_ml"]) == pytest.approx(0.25 * predicted.sum())
        overlap = (predicted & (reference == 1)).sum()
        assert float(row["dice"]) == pytest.approx(2 * overlap / (predicted.sum() + reference.sum()))


def test_running_statistics_follow_every_step_and_no_validation(job):
    train_network(**job)
    tracked = {
        int(tensor)
        for name, tensor in safetensors.torch.load_file(job["weights_path"]).items()
        if name.endswith("num_batches_tracked")
    }
    assert tracked == {4 * 3}  # epochs, steps per epoch: eight copies in batches of three


def test_validation_runs_every_tenth_of_the_epochs_and_after_the_last(job):
    job["training"]["epochs"] = 25
    train_network(**job)
    validated = [int(row["epoch"]) for row in rows(job["history_path"]) if row["val_dice_median"]]
    assert validated == [*range(2, 25, 2), 25]


def test_a_final_model_needs_no_validation(job):
    predictions = job.pop("predictions_path")
    del job["scan_folder"]
    job["validation"] = []
    train_network(**job)
    assert not predictions.exists()
    assert all(row["val_bce"] == "" for row in rows(job["history_path"]))
    model = TwoOutputUNet(**job["network"])
    model.load_state_dict(safetensors.torch.load_file(job["weights_path"]))


def test_same_arguments_same_bytes_wherever_copies_are_kept(job, tmp_path):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again")}
    train_network(**again, memory_gb=0.0)
    assert contents(again) == contents(job)
    other = {**job, **outputs_in(tmp_path / "other"), "seed": 8}
    train_network(**other)
    assert contents(other)["weights_path"] != contents(job)["weights_path"]


@pytest.mark.parametrize("normalisation", ["batch", "instance"])
def test_two_volumes_are_learnt_by_heart(job, normalisation):
    job["network"] = {"widths": [4, 4, 8, 8], "convs_per_level": 1, "normalisation": normalisation}
    job["training"].update(epochs=60, batch_size=2, learning_rate=1e-2, rate_milestones=[40, 50])
    # The same two scans under other names: what is learnt by heart is predicted.
    job.update(patients=["a", "b"], validation=["e", "f"])
    for copied, original in (("e", "a"), ("f", "b")):
        for kind in ("ct", "haematoma"):
            source = job["scan_folder"] / f"{original}_{kind}.nii.gz"
            (job["scan_folder"] / f"{copied}_{kind}.nii.gz").write_bytes(source.read_bytes())
    train_network(**job)
    predictions = {row["patient"]: row for row in rows(job["predictions_path"])}
    assert min(float(row["dice"]) for row in predictions.values()) > 0.95
    expands, stays = (float(predictions[patient]["probability"]) for patient in "ef")
    if normalisation == "batch":
        assert expands > 0.9
        assert stays < 0.1
    else:  # takes away each scan's own level before the pooling: brightness alone is hard to see
        assert expands > stays


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["before a checkpoint", "after a checkpoint", "within an epoch", "at the end"])
def test_killed_and_started_again_ends_with_the_same_bytes(job, tmp_path, monkeypatch, place, capsys):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again")}
    write, step, table = module._write_checkpoint, Adam.step, module.write_table
    calls = {"checkpoints": 0, "steps": 0}

    def checkpoint(*arguments):
        calls["checkpoints"] += 1
        if place == "before a checkpoint" and calls["checkpoints"] == 3:
            raise Killed
        write(*arguments)
        if place == "after a checkpoint" and calls["checkpoints"] == 2:
            raise Killed

    def optimise(self, rate):
        calls["steps"] += 1
        if place == "within an epoch" and calls["steps"] == 8:
            raise Killed
        step(self, rate)

    def write_table(path, *arguments):
        if place == "at the end" and path == again["history_path"]:
            raise Killed
        table(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_checkpoint", checkpoint)
        patch.setattr(Adam, "step", optimise)
        patch.setattr(module, "write_table", write_table)
        with pytest.raises(Killed):
            train_network(**again)
    assert job["checkpoint_path"].exists()
    capsys.readouterr()
    train_network(**again)
    assert f"going on after epoch {4 if place == 'at the end' else 2}" in capsys.readouterr().out
    assert contents(again) == contents(job)
    assert not job["checkpoint_path"].exists()


@pytest.mark.slow
def test_a_process_killed_outright_goes_on(job, tmp_path):
    job["training"]["epochs"] = 40
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again")}
    arguments = {key: str(value) if key.endswith(("path", "folder")) else value for key, value in again.items()}
    program = f"from haemex.training import train_network\ntrain_network(**{arguments!r})\n"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not job["checkpoint_path"].exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not again["weights_path"].exists()
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert contents(again) == contents(job)


@pytest.mark.parametrize("change", ["learning rate", "label", "copy", "scan", "damage"])
def test_a_checkpoint_of_another_training_is_not_taken_up(job, tmp_path, monkeypatch, capsys, change):
    write = module._write_checkpoint

    def killed(*arguments):
        write(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_checkpoint", killed)
        with pytest.raises(Killed):
            train_network(**job)
    said = "starting anew"
    if change == "learning rate":
        job["training"]["learning_rate"] = 2e-3
    elif change == "label":
        job["labels"] = {**job["labels"], "a": 0}
    elif change == "copy":
        ct, mask = synthetic_scan("a", 1)
        other = ct[:, ::-1].copy()
        other[0, 0, 0] += 1
        write_copies(tmp_path / "augment", "a", [ct, other], [mask, mask[:, ::-1]], AFFINE)
    elif change == "scan":
        ct, mask = synthetic_scan("e", 1)
        write_volume(tmp_path / "resample" / "e_haematoma.nii.gz", mask[:, :, ::-1], AFFINE)
    else:
        job["checkpoint_path"].write_bytes(job["checkpoint_path"].read_bytes()[:200])
        said = "cannot be read"
    capsys.readouterr()
    train_network(**job)
    assert said in capsys.readouterr().out
    resumed = contents(job)
    train_network(**job)
    assert contents(job) == resumed


def test_a_leak_is_refused_and_would_pass_without_the_guard(job, monkeypatch):
    shared_patient = {**job, "validation": ["d", "e"]}
    shared_scan = {**job, "digests": {**job["digests"], "f": job["digests"]["b"]}}
    with pytest.raises(InputError, match=r"1 of 2 validation patients.*\(d\)"):
        train_network(**shared_patient)
    with pytest.raises(InputError, match="patient f and training patient b"):
        train_network(**shared_scan)
    assert not any(job[key].exists() for key in OUTPUTS)
    monkeypatch.setattr(module, "refuse_leaks", lambda *_: None)
    for leaking in (shared_patient, shared_scan):
        train_network(**leaking)  # nothing else would have noticed


def test_who_stands_twice_or_has_no_digest_is_refused():
    digests = {"a": "1", "b": "2"}
    refuse_leaks(["a"], ["b"], digests)
    refuse_leaks(["a", "b"], [], {})
    with pytest.raises(InputError, match="twice"):
        refuse_leaks(["a", "a"], ["b"], digests)
    with pytest.raises(KeyError):
        refuse_leaks(["a"], ["c"], digests)


def test_validation_scans_are_never_augmented_and_other_copies_never_opened(job):
    for patient in "ef":
        for path in job["augment_folder"].glob(f"{patient}*"):
            path.unlink()
    for patient in "abcd":
        for path in job["scan_folder"].glob(f"{patient}*"):
            path.unlink()
    train_network(**job)


def test_divergence_is_a_clear_error_and_keeps_the_last_good_checkpoint(job, monkeypatch):
    write = module._write_checkpoint

    def then_diverge(path, settings, model, *rest):
        write(path, settings, model, *rest)
        with torch.no_grad():
            model.segmentation.bias.fill_(torch.nan)

    monkeypatch.setattr(module, "_write_checkpoint", then_diverge)
    with pytest.raises(InputError, match="the loss is nan in epoch 2"):
        train_network(**job)
    kept = safetensors.torch.load_file(job["checkpoint_path"])
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert not job["weights_path"].exists()


def test_weights_that_blow_up_in_the_last_step_do_not_reach_the_checkpoint(job, monkeypatch):
    step = Adam.step
    calls = 0

    def overshoot(self, rate):
        nonlocal calls
        calls += 1
        step(self, rate)
        if calls == 6:  # the last of three steps of epoch 2
            with torch.no_grad():
                self.parameters[0].fill_(torch.inf)

    monkeypatch.setattr(Adam, "step", overshoot)
    with pytest.raises(InputError, match="after epoch 2"):
        train_network(**job)
    kept = safetensors.torch.load_file(job["checkpoint_path"])
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_no_patients_are_refused(job):
    with pytest.raises(InputError, match="no patient"):
        train_network(**{**job, "patients": []})


def test_settings_digest_sees_every_value():
    assert settings_digest({"a": 1, "b": [1.0, 2]}) == settings_digest({"b": [1.0, 2], "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})


def test_a_training_imports_no_compiler_stack():
    """It would cost every training job one to three seconds of CPU."""
    program = """
import sys, torch, haemex.prediction
from haemex.network import computing, initial_network, place
from haemex.training import Adam
with computing(1, deterministic=True) as device:
    network = {"widths": [1, 1, 1, 1], "convs_per_level": 1, "normalisation": "batch"}
    model = place(initial_network(network, 1, "x"), device)
    segmentation, classification = model(torch.rand(2, 1, 4, 8, 8, device=device))
    (segmentation.sum() + classification.sum()).backward()
    Adam(model).step(0.1)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
