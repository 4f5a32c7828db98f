"""Where a training can be taken up again: written whole or not at all, read only by the very same training."""

import json
import os
import time
from pathlib import Path

import safetensors
import safetensors.torch

from haemex.files import remove_partial, write_atomically
from haemex.logs import DISK_FULL, announce


class Checkpoint:
    """The checkpoint of one training.

    Parameters
    ----------
    path : path-like
        The file, safetensors: no code is stored or run.
    settings : str
        Digest of everything that the training depends on; a checkpoint of another training is not taken up.
    purpose : str
        Names the training in messages.
    every_s : float
        Time between two checkpoints, seconds.
    """

    def __init__(self, path, settings, purpose, every_s):
        self.path, self.settings, self.purpose, self.every_s = Path(path), settings, purpose, every_s
        self._last = time.monotonic()

    def due(self):
        """Whether the last one is old enough."""
        return time.monotonic() - self._last >= self.every_s

    def write(self, tensors, state):
        """Replace the checkpoint. On a full disk the last one stays, and the training goes on.

        Parameters
        ----------
        tensors : dict of str to torch.Tensor
            On the CPU.
        state : dict
            What JSON can hold.
        """
        metadata = {"settings": self.settings, "state": json.dumps(state)}
        try:
            write_atomically(self.path, safetensors.torch.save(tensors, metadata))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            kept = "the last one is kept" if self.path.exists() else "there is none yet"
            announce(
                f"{self.purpose}: the checkpoint cannot be written ({os.strerror(error.errno)}); {kept}. Training goes "
                f"on; free some space ({self.path})"
            )
        self._last = time.monotonic()

    def read(self):
        """Return the tensors and the state of the checkpoint, or None where there is none of this training."""
        remove_partial(self.path)
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("settings") != self.settings:
                    why = "is of other settings, inputs or code"
                    announce(f"{self.purpose}: the checkpoint {self.path} {why}; starting anew")
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            announce(f"{self.purpose}: the checkpoint {self.path} cannot be read ({error}); starting anew")
            return None

    def remove(self):
        """Remove it, after success."""
        self.path.unlink(missing_ok=True)
