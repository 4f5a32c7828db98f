import errno
import os

import pytest

from haemex.errors import InputError
from haemex.logs import Progress, announce, duration, log_to


def test_bad_input_is_one_line_with_patient_file_problem_and_action(tmp_path, capfd):
    with pytest.raises(SystemExit) as end, log_to(tmp_path / "a" / "job.log", patient="P7"):
        print("working")
        raise InputError("the mask is empty.", "draw it again", "masks/P7.nii.gz")
    assert end.value.code == 1
    line = "haemex: patient P7: masks/P7.nii.gz: the mask is empty. Draw it again.\n"
    assert capfd.readouterr().err == line
    assert (tmp_path / "a" / "job.log").read_text() == "working\n" + line


def test_a_fault_leaves_its_traceback_in_the_log_and_one_line_on_the_terminal(tmp_path, capfd):
    with pytest.raises(SystemExit), log_to(tmp_path / "job.log"):
        raise KeyError("x")
    assert "Traceback" in (tmp_path / "job.log").read_text()
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "KeyError" in error and "job.log" in error


def test_a_full_disk_is_one_sentence_even_if_the_log_cannot_be_written(tmp_path, capfd):
    with pytest.raises(SystemExit) as end, log_to(tmp_path / "job.log", patient="P7"):
        raise OSError(errno.ENOSPC, "No space left on device", "results/a.nii.gz")
    said = "haemex: patient P7: results/a.nii.gz: the disk is full. Free some space, and run the same command again.\n"
    assert end.value.code == 1 and capfd.readouterr().err == said == (tmp_path / "job.log").read_text()
    if os.path.exists("/dev/full"):
        (tmp_path / "full.log").symlink_to("/dev/full")
        with pytest.raises(SystemExit), log_to(tmp_path / "full.log", patient="P7"):
            raise OSError(errno.ENOSPC, "No space left on device", "results/a.nii.gz")
        assert capfd.readouterr().err == said


def test_announce_reaches_log_and_terminal(tmp_path, capfd):
    with log_to(tmp_path / "job.log"):
        announce("trains on the CPU")
    assert (tmp_path / "job.log").read_text() == "trains on the CPU\n"
    assert capfd.readouterr().err == "haemex: trains on the CPU\n"


def test_progress_says_how_far_and_how_long(monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr("haemex.logs.time.monotonic", lambda: now[0])
    progress = Progress("train", 100, every_s=10)
    for done, at in [(20, 5.0), (30, 9.0), (40, 25.0)]:  # resumed at 20: 20 steps in 20 s
        now[0] = at
        progress.step(done, "Dice 0.5")
    assert capfd.readouterr().out == "train: 40 of 100, Dice 0.5, about 60 s left\n"


def test_an_input_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(InputError("a", "b", "c")))
    assert str(error) == "c: a. B." and error.file == "c"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7140, "119 min"), (12000, "3 h 20 min")]
)
def test_durations_are_said_in_units_that_people_use(seconds, said):
    assert duration(seconds) == said
