"""Files are whole or not there, and JSON has one form."""

import os

import pytest

from haemex.files import read_json, write_atomically, write_json


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
    write_atomically(path, b"quick")
    assert seen == [] and path.read_bytes() == b"quick"
    path.unlink()
    write_atomically(path, b"durable", durable=True)
    assert seen == [False] and path.read_bytes() == b"durable"


def test_json_is_sorted_strict_and_read_back(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 0.1, None], "a": "ä"})
    assert path.read_bytes() == b'{\n "a": "\\u00e4",\n "b": [\n  1,\n  0.1,\n  null\n ]\n}\n'
    assert read_json(path) == {"a": "ä", "b": [1, 0.1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["a"] == "ä"
