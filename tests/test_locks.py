"""A lock excludes, ends with its process, and can be taken over from a process that listens."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from haemex.errors import InputError
from haemex.locks import hold_for_ever, locked

HOLDER = """
import signal, sys, time
from haemex.locks import locked
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with locked({path!r}, "the work"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of `path`; ended with the test."""
    started = []

    def start(path, deaf=False):
        program = HOLDER.format(path=str(path), deaf=deaf)
        started.append(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_held_lock_is_refused_with_who_holds_it(tmp_path, holder):
    path = tmp_path / "a.lock"
    process = holder(path)
    for take in (lambda: locked(path, "the work").__enter__(), lambda: hold_for_ever(path, "the work")):
        with pytest.raises(InputError, match=rf"a\.lock: process {process.pid} works on the work"):
            take()
    assert process.poll() is None


def test_a_lock_ends_with_its_process_and_leaves_no_file_behind_a_block(tmp_path, holder):
    path = tmp_path / "folder" / "a.lock"
    process = holder(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()  # the file, not the lock
    with locked(path, "the work"):
        assert path.exists()
    assert not path.exists()


def test_a_lock_is_given_back_after_an_error(tmp_path):
    path = tmp_path / "a.lock"
    with pytest.raises(KeyError), locked(path, "the work"):
        raise KeyError
    with locked(path, "the work"):
        pass


def test_an_older_process_is_asked_to_stop(tmp_path, holder, capsys):
    path = tmp_path / "a.lock"
    process = holder(path)
    with locked(path, "the work", take_over_s=30):
        assert process.wait(timeout=10) == -signal.SIGTERM
    assert (
        f"the work: process {process.pid} of an earlier run is still at it; asking it to stop"
        in capsys.readouterr().out
    )


def test_a_process_that_does_not_listen_is_waited_for_so_long_and_never_killed(tmp_path, holder):
    path = tmp_path / "a.lock"
    process = holder(path, deaf=True)
    start = time.monotonic()
    with pytest.raises(InputError, match=f"process {process.pid} works on"):
        locked(path, "the work", take_over_s=1.0).__enter__()
    assert 0.9 < time.monotonic() - start < 20
    assert process.poll() is None


def test_a_process_of_another_machine_is_not_signalled(tmp_path, holder, monkeypatch):
    path = tmp_path / "a.lock"
    process = holder(path)
    monkeypatch.setattr("haemex.locks.socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    with pytest.raises(InputError, match=f"process {process.pid} on .* works on the work"):
        locked(path, "the work", take_over_s=30).__enter__()


def test_many_at_once_never_two(tmp_path):
    """Six processes append start and end under one lock, which is removed after each: no two overlap."""
    program = f"""
import time
from haemex.errors import InputError
from haemex.locks import locked
for _ in range(20):
    while True:
        try:
            with locked({str(tmp_path / "a.lock")!r}, "it"):
                with open({str(tmp_path / "said")!r}, "a") as file:
                    file.write("in\\n"); file.flush(); time.sleep(0.001); file.write("out\\n")
            break
        except InputError:
            time.sleep(0.002)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(6)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    assert (tmp_path / "said").read_text() == "in\nout\n" * 120


def test_without_locks_on_the_file_system_the_work_goes_on_and_says_so(tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "a.lock", "the work"):
        pass
    assert "the work: this file system has no locks" in capfd.readouterr().err
