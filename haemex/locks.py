"""One process at a time: locks that the operating system takes away with the process, however it ended."""

import atexit
import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

from haemex.errors import InputError
from haemex.files import NO_LOCKS
from haemex.logs import announce

LOOK_EVERY_S = 0.2
BOOT = Path("/proc/sys/kernel/random/boot_id")  # of Linux: another one after every start of the machine


@contextlib.contextmanager
def locked(path, what, take_over_s=None):
    """Hold a lock file for as long as the block runs.

    The lock is the kernel's (`flock`): a killed process leaves a file behind, but never a lock.

    Parameters
    ----------
    path : path-like
        The lock file; made, and removed at the end. On a network drive it has to support locks, as NFS 4 does.
    what : str
        What is locked, for messages, e.g. "the training final".
    take_over_s : float, optional
        Ask a holder on this machine to stop (SIGTERM), and wait so long for it, seconds. A job lives on when the
        workflow that started it is killed: its successor takes its work over. None refuses at once.

    Raises
    ------
    InputError
        Another process holds the lock.
    """
    handle = _acquire(Path(path), what, take_over_s)
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
        os.close(handle)


def hold_for_ever(path, what):
    """Hold a lock until this process ends; an orderly end is noted in the lock file, see `ended_in_order`.

    Parameters
    ----------
    path : path-like
        The lock file; stays.
    what : str
        What is locked, for messages.

    Raises
    ------
    InputError
        Another process holds the lock.
    """
    handle = _acquire(Path(path), what, None)  # the open file is closed by the end of the process alone
    atexit.register(_note, handle, ended=True)


def ended_in_order(path):
    """Whether the last process that held a lock with `hold_for_ever` ended in order, and this machine runs since then.

    A process that is killed notes no end; after a loss of power, what it noted need not have reached the disk.

    Parameters
    ----------
    path : path-like
        The lock file. True where there is none: nothing has run yet.
    """
    try:
        noted = json.loads(Path(path).read_bytes())
        return noted["ended"] and (noted["host"] != socket.gethostname() or noted["boot"] == _boot())
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_held(path):
    """Whether a process holds a lock now; False where the file system has no locks.

    Parameters
    ----------
    path : path-like
        The lock file.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _acquire(path, what, take_over_s):
    """Open and lock; return the open file. Loops because the file may be removed between opening and locking it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    asked, until = None, time.monotonic() + (take_over_s or 0)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                announce(f"{what}: this file system has no locks; see to it that nothing else works on it ({path})")
                return handle
            holder = _read_holder(handle)
            os.close(handle)
            if take_over_s is None or holder["host"] != socket.gethostname() or time.monotonic() > until:
                raise _busy(path, what, holder) from None
            if asked != holder["process"]:
                announce(f"{what}: process {holder['process']} of an earlier run is still at it; asking it to stop")
                with contextlib.suppress(OSError):
                    os.kill(holder["process"], signal.SIGTERM)
                asked = holder["process"]
            time.sleep(LOOK_EVERY_S)
            continue
        try:
            current = os.stat(path).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            current = False
        if current:
            _note(handle, ended=False)
            return handle
        os.close(handle)


def _note(handle, ended):
    """Write into a lock file who holds it, or held it to the end."""
    facts = {"process": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "ended": ended}
    with contextlib.suppress(OSError):  # a full disk: nobody is named, and no orderly end noted
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(facts).encode(), 0)


def _boot():
    try:
        return BOOT.read_text().strip()
    except OSError:
        return None


def _read_holder(handle):
    """Read who holds a lock; one that is being written is no process that could be asked."""
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        return {"process": int(holder["process"]), "host": str(holder["host"])}
    except (ValueError, KeyError, TypeError):
        return {"process": None, "host": None}


def _busy(path, what, holder):
    if holder["process"] is None:
        who = "another process"
    else:
        here = holder["host"] == socket.gethostname()
        who = f"process {holder['process']}" + ("" if here else f" on {holder['host']}")
    return InputError(
        f"{who} works on {what}", "wait until it is done, or end it, and run the same command again", path
    )
