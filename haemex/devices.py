"""Which device a job computes on: of several GPUs, one that no other job of haemex uses."""

import contextlib
import os
import tempfile
from pathlib import Path

import torch

from haemex.errors import InputError
from haemex.locks import locked


@contextlib.contextmanager
def free_device():
    """Take a GPU for as long as the block runs.

    With `--resources gpu=2` two trainings run side by side, and nothing tells them apart: each takes a GPU by a lock in
    the folder for temporary files, named after the GPU itself, so that jobs that see different GPUs under the same
    number (`CUDA_VISIBLE_DEVICES`, Slurm) do not disturb each other.

    Yields
    ------
    torch.device
        The first GPU that no other job holds; the first of all where every one is held (then they share its memory);
        the CPU where there is no GPU.
    """
    with contextlib.ExitStack() as held:
        yield _first_free(held) if torch.cuda.is_available() else torch.device("cpu")


def _first_free(held):
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_properties(index).uuid
        path = Path(tempfile.gettempdir(), f"haemex-{os.getuid()}-gpu-{name}.lock")
        with contextlib.suppress(InputError):
            held.enter_context(locked(path, "the GPU"))
            return torch.device("cuda", index)
    return torch.device("cuda", 0)
