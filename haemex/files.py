"""How files are written, whole or not at all, and the one form of JSON between the stages."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # said by a file system that has none, as Lustre may
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # said by one that cannot wait for its disk
PARTIAL = ".partial"
LONGEST_NAME = 255  # bytes; of ext4, XFS, APFS and NTFS


def write_atomically(path, content, durable=True):
    """Write bytes beside `path` and rename, so that no half-written file ever stands there.

    A process that is killed while it writes leaves its half behind under a hidden name, which the next one to write
    the same file overwrites: one name per file, not one per process.

    Parameters
    ----------
    path : path-like
        The file.
    content : bytes
    durable : bool
        Wait until the bytes are on the disk before the rename, so that not even a loss of power leaves half a file. It
        costs milliseconds per file; for the many small files that can be drawn again in no time, False.

    Raises
    ------
    OSError
        With the path of the file, also where the operating system does not say which one it was.
    """
    path = Path(path)
    try:
        partial, handle = _open_alone(_partial(path))
        try:
            with open(handle, "wb") as file:
                file.truncate()
                file.write(content)
                file.flush()
                if durable:
                    _wait_for_disk(file)
                partial.replace(path)  # while nobody else may write to it
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not the hidden name, which the user never sees
        raise


def remove_partial(path):
    """Remove the half that a process left behind which was killed while it wrote `path`."""
    _partial(Path(path)).unlink(missing_ok=True)


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


def _partial(path):
    name = f".{path.name}{PARTIAL}"
    if len(os.fsencode(name)) > LONGEST_NAME:  # of a file whose own name just fits
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{PARTIAL}"
    return path.with_name(name)


def _wait_for_disk(file):
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _open_alone(partial):
    """Open a file for writing once no other process writes to it; return its path and the open file.

    A job lives on when its Snakemake is killed, and its successor may write the same file.
    """
    while True:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            os.close(handle)
            if error.errno not in NO_LOCKS:
                raise
            partial = partial.with_name(f"{partial.stem}.{os.getpid()}{PARTIAL}")
            return partial, os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(partial), os.fstat(handle)):
                return partial, handle
        os.close(handle)  # the other one has given it its name
