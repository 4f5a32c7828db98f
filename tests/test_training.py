import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dataset import SLOPE, write_copies

from haemex import checkpoint as checkpoint_module
from haemex import training as module
from haemex.checkpoint import Checkpoint
from haemex.dataset import read_scan
from haemex.errors import InputError
from haemex.network import TwoOutputUNet, predict_scan
from haemex.nifti import write_volume
from haemex.training import Adam, learning_rate_of, refuse_leaks, settings_digest, train_network

GRID = (16, 16, 16)
AFFINE = np.diag([5.0, 5.0, 10.0, 1.0])  # 0.25 mL per voxel
OUTPUTS = ("weights_path", "history_path", "roles_path", "predictions_path")


def synthetic_scan(patient, expands):
    """A bright ellipsoid in noise; brighter if the haematoma expands."""
    rng = np.random.default_rng([*patient.encode()])
    z, y, x = np.meshgrid(*(np.arange(size) for size in GRID), indexing="ij")
    at = rng.uniform(0.4, 0.6, 3) * GRID
    mask = ((z - at[0]) / 5) ** 2 + ((y - at[1]) / 4) ** 2 + ((x - at[2]) / 4) ** 2 <= 1
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
            "precision": "fp32",
            "channels_last": "auto",
            "compile": False,
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
    adam, reference = Adam(ours), torch.optim.Adam(theirs.parameters(), lr=1e-2, fused=True)
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
        "val_auc",
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
    assert float(history[-1]["val_auc"]) == (p[0] > p[1]) + (p[0] == p[1]) / 2  # e expands, f does not
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


@pytest.mark.parametrize(("readers", "ahead"), [(1, 0), (2, 4), (7, 50)])
def test_same_arguments_same_bytes_whoever_reads_the_copies(job, tmp_path, monkeypatch, readers, ahead):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again")}
    monkeypatch.setattr("haemex.dataset.READERS", readers)
    monkeypatch.setattr("haemex.dataset.AHEAD", ahead)
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


@pytest.mark.parametrize("place", ["before a checkpoint", "after a checkpoint", "within a step", "at the end"])
def test_killed_and_started_again_ends_with_the_same_bytes(job, tmp_path, monkeypatch, place, capsys):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again"), "checkpoint_minutes": 0}  # after every step
    write, step, table = Checkpoint.write, Adam.step, module.write_table
    calls = {"checkpoints": 0, "steps": 0}

    def checkpoint(*arguments):
        calls["checkpoints"] += 1
        if place == "before a checkpoint" and calls["checkpoints"] == 5:
            raise Killed
        write(*arguments)
        if place == "after a checkpoint" and calls["checkpoints"] == 5:
            raise Killed

    def optimise(self, rate):
        calls["steps"] += 1
        if place == "within a step" and calls["steps"] == 8:
            raise Killed
        step(self, rate)

    def write_table(path, *arguments):
        if place == "at the end" and path == again["roles_path"]:
            raise Killed
        table(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", checkpoint)
        patch.setattr(Adam, "step", optimise)
        patch.setattr(module, "write_table", write_table)
        with pytest.raises(Killed):
            train_network(**again)
    assert job["checkpoint_path"].exists()
    capsys.readouterr()
    train_network(**again)
    said = {
        "before a checkpoint": "after epoch 1, step 1 of the next",
        "after a checkpoint": "after epoch 1, step 2 of the next",
        "within a step": "after epoch 2, step 1 of the next",
        "at the end": "after epoch 4\n",
    }
    assert f"going on {said[place]}" in capsys.readouterr().out
    assert contents(again) == contents(job)
    assert not job["checkpoint_path"].exists()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(0, 7), max_size=6), every=st.integers(1, 5), in_memory=st.booleans())
def test_however_often_it_is_killed_it_ends_with_the_same_bytes(job, tmp_path_factory, kills, every, in_memory):
    """Killed after so many steps, again and again; a checkpoint every so many steps, wherever epochs end."""
    job["training"].update(epochs=3, batch_size=3)
    if not job["weights_path"].exists():
        train_network(**job)
    again = {**job, **outputs_in(tmp_path_factory.mktemp("again") / "out"), "memory_gb": 1.0 * in_memory}
    step, steps = Adam.step, 0

    def due(_):
        return steps % every == 0

    for kill in [*kills, None]:
        taken = 0

        def optimise(self, rate, kill=kill):
            nonlocal steps, taken
            if taken == kill:
                raise Killed
            taken, steps = taken + 1, steps + 1
            step(self, rate)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Adam, "step", optimise)
            patch.setattr(Checkpoint, "due", due)
            try:
                train_network(**again)
                break
            except Killed:
                continue
    assert contents(again) == contents(job)


# Slow writes, so that many kills strike while a checkpoint is written.
PROGRAM = """
import os, time
import haemex.files
sync = os.fsync
os.fsync = lambda handle: (time.sleep({pause}), sync(handle))
from haemex.training import train_network
train_network(**{arguments!r})
"""


def start(job, pause=0.0):
    arguments = {key: str(value) if key.endswith(("path", "folder")) else value for key, value in job.items()}
    program = PROGRAM.format(arguments=arguments, pause=pause)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


def wait_until_it_trains(job, process):
    """Wait for the lock of this very process, and for a checkpoint."""
    lock = job["checkpoint_path"].with_suffix(".lock")
    while (
        not lock.exists() or f'"process": {process.pid}' not in lock.read_text() or not job["checkpoint_path"].exists()
    ):
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.005)


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_process_killed_outright_goes_on(job, tmp_path, kills):
    job["training"]["epochs"] = 40
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again"), "checkpoint_minutes": 0}
    rng = np.random.default_rng(kills)
    while_writing = 0
    for _ in range(kills):
        process = start(again, pause=0.02)
        wait_until_it_trains(job, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
        while_writing += any(tmp_path.glob(".checkpoint*.partial"))
        assert not again["weights_path"].exists()
    if kills > 10:
        assert while_writing, "no kill struck the writing of a checkpoint"
    assert start(again).wait() == 0
    assert contents(again) == contents(job)
    assert not list(tmp_path.glob(".checkpoint*")) and not list(tmp_path.glob("checkpoint*"))


def test_told_to_stop_it_writes_a_checkpoint_and_says_how_to_go_on(job, tmp_path, monkeypatch):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again")}
    step, calls = Adam.step, 0

    def then_terminated(self, rate):
        nonlocal calls
        step(self, rate)
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Adam, "step", then_terminated)
        with pytest.raises(InputError, match=r"stopped by SIGTERM in epoch 2, after step 2\. Run the same"):
            train_network(**again)
    assert signal.getsignal(signal.SIGTERM) is before
    assert job["checkpoint_path"].exists()
    train_network(**again)
    assert contents(again) == contents(job)


def test_the_job_of_a_killed_workflow_hands_over(job, tmp_path):
    """Snakemake killed outright leaves its jobs running; the next run takes their work over instead of racing them."""
    job["training"]["epochs"] = 60
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again"), "checkpoint_minutes": 0}
    orphan = start(again, pause=0.1)
    wait_until_it_trains(job, orphan)
    successor = start(again)
    said, _ = successor.communicate()
    assert successor.returncode == 0
    assert f"process {orphan.pid} of an earlier run is still at it; asking it to stop" in said
    assert "going on after epoch" in said
    assert "stopped by SIGTERM" not in said and orphan.wait() != 0
    assert contents(again) == contents(job)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_training_goes_on(job, tmp_path, monkeypatch, capsys):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again"), "checkpoint_minutes": 0}
    write, calls = checkpoint_module.write_atomically, 0

    def full(path, content, **how):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, **how)
        if calls == 2:
            (tmp_path / "second").write_bytes(job["checkpoint_path"].read_bytes())

    monkeypatch.setattr(checkpoint_module, "write_atomically", full)
    monkeypatch.setattr(Checkpoint, "remove", lambda _: None)
    train_network(**again)
    said = capsys.readouterr().out
    assert "cannot be written (No space left on device); the last one is kept. Training goes on" in said
    assert job["checkpoint_path"].read_bytes() == (tmp_path / "second").read_bytes()
    assert contents(again) == contents(job)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the GPU's memory is full"),
        (torch.AcceleratorError("CUDA error: device lost\nmore"), r"the GPU failed \(CUDA error: device lost\)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory is full"),
    ],
)
def test_a_device_that_fails_is_one_sentence_and_the_checkpoint_is_kept(job, tmp_path, monkeypatch, raised, said):
    train_network(**job)
    again = {**job, **outputs_in(tmp_path / "again"), "checkpoint_minutes": 0}
    step, calls = Adam.step, 0

    def fail(self, rate):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise raised
        step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Adam, "step", fail)
        with pytest.raises(InputError, match=said) as caught:
            train_network(**again)
    assert "run the same command again" in str(caught.value)
    train_network(**again)
    assert contents(again) == contents(job)


def test_another_fault_of_the_program_is_not_dressed_up(job, monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(Adam, "step", fail)
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        train_network(**job)


@pytest.mark.parametrize("change", ["learning rate", "label", "copy", "scan", "damage"])
def test_a_checkpoint_of_another_training_is_not_taken_up(job, tmp_path, monkeypatch, capsys, change):
    write = Checkpoint.write

    def killed(*arguments):
        write(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", killed)
        with pytest.raises(Killed):
            train_network(**job, checkpoint_minutes=0)
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
    write = Checkpoint.write
    steps = Adam.step
    models = []

    def step(self, rate):
        models.append(self)
        steps(self, rate)

    def then_diverge(self, *arguments):
        write(self, *arguments)
        with torch.no_grad():
            models[-1].parameters[-1].fill_(torch.nan)

    monkeypatch.setattr(Adam, "step", step)
    monkeypatch.setattr(Checkpoint, "write", then_diverge)
    with pytest.raises(InputError, match=r"the loss is nan in epoch 1 .* the last good checkpoint is kept"):
        train_network(**job, checkpoint_minutes=0)
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
    with pytest.raises(InputError, match="no longer finite after 1 epochs and 3 steps"):
        train_network(**job, checkpoint_minutes=0)
    kept = safetensors.torch.load_file(job["checkpoint_path"])
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_scaled_loss_gives_the_same_step_and_an_overflow_is_left_out():
    torch.manual_seed(2)
    plain, scaled = TwoOutputUNet([2, 3, 4, 4], 1, "batch"), TwoOutputUNet([2, 3, 4, 4], 1, "batch")
    scaled.load_state_dict(plain.state_dict())
    ours, reference = Adam(scaled, scaled=True), Adam(plain)
    assert (float(ours.scale), float(reference.scale)) == (2.0**16, 1.0)
    ours.scale.fill_(2.0**10)

    def gradients(optimiser, factor):
        generator = torch.Generator().manual_seed(5)
        for parameter in optimiser.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * factor

    gradients(ours, 2.0**10)
    gradients(reference, 1.0)
    ours.step(1e-2)
    reference.step(1e-2)
    for one, other in zip(ours.parameters, reference.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    before = [parameter.clone() for parameter in ours.parameters]
    gradients(ours, 1.0)
    ours.parameters[3].grad[0] = torch.inf
    ours.step(1e-2)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters, before, strict=True))
    assert (float(ours.scale), float(ours.good_steps), float(ours.steps[0])) == (2.0**9, 0, 1)
    ours.good_steps.fill_(module.STEPS_TO_GROWTH - 1)
    gradients(ours, 1.0)
    ours.step(1e-2)
    assert (float(ours.scale), float(ours.good_steps)) == (2.0**10, 0)


def test_bf16_learns_as_fp32_does(job, tmp_path):
    """The same loss curve, on average within 0.01 and nowhere beyond 0.05, and Dice within 0.05."""
    job["network"] = {"widths": [4, 4, 8, 8], "convs_per_level": 2, "normalisation": "batch"}
    job["training"].update(epochs=30, batch_size=2, learning_rate=5e-3, rate_milestones=[20])
    curves, dices = [], []
    for precision in ("fp32", "bf16"):
        one = {**job, **outputs_in(tmp_path / precision), "training": {**job["training"], "precision": precision}}
        train_network(**one)
        curves.append([float(row["train_loss"]) for row in rows(one["history_path"])])
        dices.append([float(row["dice"]) for row in rows(one["predictions_path"])])
    assert curves[0] != curves[1], "bf16 was not used"
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], atol=0.05, rtol=0)
    assert np.abs(np.subtract(*curves)).mean() < 0.01
    np.testing.assert_allclose(dices[1], dices[0], atol=0.05)


@pytest.mark.slow
def test_a_compiled_network_learns_as_it_does(job, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    train_network(**job)
    compiled = {**job, **outputs_in(tmp_path / "compiled"), "training": {**job["training"], "compile": True}}
    train_network(**compiled)
    ours, theirs = ([float(row["train_loss"]) for row in rows(one["history_path"])] for one in (compiled, job))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("learning_rate", [1e-4, 5e-3])
def test_a_watched_training_ends_with_the_same_bytes_and_says_what_is_wrong(job, tmp_path, capsys, learning_rate):
    job["training"].update(epochs=8, learning_rate=learning_rate, rate_milestones=[])
    train_network(**job)
    watched = {**job, **outputs_in(tmp_path / "watched")}
    paths = {"curve_path": tmp_path / "curve.png", "events_path": tmp_path / "events.out.tfevents"}
    capsys.readouterr()
    train_network(**watched, **paths)
    assert contents(watched) == contents(job)
    assert paths["curve_path"].read_bytes().startswith(b"\x89PNG") and paths["events_path"].stat().st_size > 500
    assert ("no learning" in capsys.readouterr().out) == (learning_rate == 1e-4)


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
