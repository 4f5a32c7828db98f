"""Files are whole or not there, and JSON has one form."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

import haemex.files
from haemex.files import read_json, remove_partial, write_atomically, write_json

WRITER = """
import os, signal, sys
from haemex.files import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
import pathlib
pathlib.Path.replace = os.replace
write_atomically({path!r}, b"a long half" * 1000)
"""


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text, not bytes")
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(path.exists()), sync(handle)))
    write_atomically(path, b"quick", durable=False)
    assert seen == [] and path.read_bytes() == b"quick"
    path.unlink()
    write_atomically(path, b"durable")
    assert seen == [False] and path.read_bytes() == b"durable"


def killed_while_writing(path):
    run = subprocess.run([sys.executable, "-c", WRITER.format(path=str(path))])
    assert run.returncode == -9 and len(list(path.parent.iterdir())) == 1 and not path.exists()


def test_the_half_of_a_killed_process_is_gone_with_the_next_writing(tmp_path):
    path = tmp_path / "a.json"
    killed_while_writing(path)
    write_atomically(path, b"whole")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"whole"
    path.unlink()
    killed_while_writing(path)
    remove_partial(path)
    assert not list(tmp_path.iterdir())


def test_two_processes_that_write_one_file_take_turns(tmp_path):
    """Eight processes, sixty writings each: the file is always one of theirs, whole, and nothing is left."""
    path = tmp_path / "a"
    program = (
        "import sys\nfrom haemex.files import write_atomically\n"
        "for _ in range(60): write_atomically(sys.argv[1], sys.argv[2].encode() * 50_000)"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abcdefgh"]
    seen = 0
    while any(process.poll() is None for process in running):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 50_000 and len(set(content)) == 1
            seen += 1
    assert seen and all(process.returncode == 0 for process in running)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", haemex.files.NO_LOCKS)
def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "a"
    write_atomically(path, b"content")
    write_atomically(path, b"new")
    remove_partial(path)
    assert path.read_bytes() == b"new" and [one.name for one in tmp_path.iterdir()] == ["a"]
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "a fault")))
    with pytest.raises(OSError, match="a fault"):
        write_atomically(path, b"never")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", haemex.files.NO_SYNC)
def test_a_file_system_that_cannot_wait_for_its_disk_is_written_all_the_same(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_json_is_sorted_strict_and_read_back(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 0.1, None], "a": "ä"})
    assert path.read_bytes() == b'{\n "a": "\\u00e4",\n "b": [\n  1,\n  0.1,\n  null\n ]\n}\n'
    assert read_json(path) == {"a": "ä", "b": [1, 0.1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["a"] == "ä"
