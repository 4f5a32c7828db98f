"""Jobs side by side take different GPUs. The GPUs are made up; the locks are real."""

import contextlib
import tempfile
import types

import pytest
import torch

from haemex.devices import free_device


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Pretend that this machine has GPUs of these names."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))

    def pretend(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid=f"GPU-{names[index]}")
        )

    return pretend


def test_without_a_gpu_the_cpu(gpus):
    gpus()
    with free_device() as device:
        assert device == torch.device("cpu")


def test_each_job_takes_a_gpu_of_its_own_and_gives_it_back(gpus, tmp_path):
    gpus("a", "b")
    with contextlib.ExitStack() as jobs:
        first = contextlib.ExitStack()
        taken = [first.enter_context(free_device()), *(jobs.enter_context(free_device()) for _ in range(2))]
        assert [device.index for device in taken] == [0, 1, 0]  # three jobs for two GPUs: one is shared
        first.close()
        assert jobs.enter_context(free_device()).index == 0
    assert not list(tmp_path.iterdir())


def test_the_same_number_may_be_another_gpu(gpus):
    gpus("a")
    with free_device() as one:
        gpus("b")
        with free_device() as other:
            assert one.index == other.index == 0
