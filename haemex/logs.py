"""What a job says: into its log, and on the terminal when it fails or has news."""

import contextlib
import errno
import sys
import time
import traceback
from pathlib import Path

from haemex.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def log_to(path, patient=None):
    """Send a script's output to its log; end it with one clear line when its input is bad.

    Within the block, standard output and standard error go to the log. An `InputError` becomes one line on the
    terminal and in the log, naming the patient, and exit status 1; so does a full disk. Any other exception is a fault
    of haemex: its traceback stands in the log, and its last line with the log's path on the terminal.

    Parameters
    ----------
    path : path-like
        The log file.
    patient : str, optional
        Patient the job works on.
    """
    who = f"patient {patient}: " if patient else ""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    terminal, said = sys.stderr, None
    try:
        with open(path, "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                yield
            except InputError as error:
                said = f"{who}{error}"
                print(f"haemex: {said}", file=log)
            except Exception as error:
                if _disk_is_full(error):
                    raise
                said = f"{who}{type(error).__name__}: {error} (a fault of haemex; traceback in {path})"
                traceback.print_exc(file=log)
    except OSError as error:  # perhaps the log's own: it stands on that disk
        if not _disk_is_full(error):
            raise
        where = f" ({error.filename})" if error.filename else ""
        said = said or f"{who}the disk is full{where}. Free some space, and run the same command again."
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as log:
            print(f"haemex: {said}", file=log)
    if said:
        print(f"haemex: {said}", file=terminal, flush=True)
        sys.exit(1)


def _disk_is_full(error):
    return isinstance(error, OSError) and error.errno in DISK_FULL


def announce(message):
    """Say something on the terminal and in the log, e.g. which device trains."""
    print(message, flush=True)
    if sys.stdout is not sys.__stdout__:
        print(f"haemex: {message}", file=sys.__stderr__, flush=True)


class Progress:
    """Say how far a long piece of work is and how long it will take, every few seconds.

    Parameters
    ----------
    what : str
        The work, e.g. "train paper fold 1".
    total : int
        Number of steps.
    every_s : float
        Least time between two lines on the terminal, seconds.
    """

    def __init__(self, what, total, every_s=15.0):
        self.what, self.total, self.every_s = what, total, every_s
        self.start = self.last = time.monotonic()
        self.first_step = None

    def step(self, done, note=""):
        """Report `done` of `total` steps; quiet if the last line is younger than `every_s`."""
        now = time.monotonic()
        if self.first_step is None:  # a resumed job starts in the middle
            self.first_step, self.start = done, now
            return
        if now - self.last < self.every_s:
            return
        self.last = now
        left = (now - self.start) / max(done - self.first_step, 1) * (self.total - done)
        announce(f"{self.what}: {done} of {self.total}{', ' + note if note else ''}, about {duration(left)} left")


def duration(seconds):
    """Say how long something takes, in the two units that matter.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    str
        E.g. "40 s", "12 min", "3 h 20 min".
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
