"""How files are written, whole or not at all, and the one form of JSON between the stages."""

import json
import os
from pathlib import Path


def write_atomically(path, content, durable=False):
    """Write bytes beside `path` and rename, so that no half-written file ever stands there.

    Parameters
    ----------
    path : path-like
        The file.
    content : bytes
    durable : bool
        Wait until the bytes are on the disk before the rename, so that not even a loss of power leaves half a file.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, content):
    """Write JSON, whole or not at all: keys sorted, so that the same content gives the same bytes.

    Raises
    ------
    ValueError
        A number is not finite: JSON has no word for it, and other programs would refuse the file.
    """
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path):
    """Read what `write_json` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
