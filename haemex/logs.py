"""What a job says: into its log, and on the terminal when it fails or has news."""

import contextlib
import errno
import os
import sys
import time
import traceback
from pathlib import Path

from haemex.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a disk or network drive says that is neither haemex's fault nor the input's: what it means, what to do.
OF_THE_DISK = {
    **dict.fromkeys(DISK_FULL, ("the disk is full", "free some space")),
    errno.EROFS: ("the disk can only be read", "make it writable, or put the results elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("permission denied", "give yourself the right to read and write it")),
    errno.ENAMETOOLONG: (
        "the path is too long",
        "put the study into a folder with a shorter path, or shorten the names",
    ),
    errno.EFBIG: ("the disk takes no file as large as this", "put the results on another disk"),
    errno.EIO: ("the disk reports a fault", "see whether the disk or the network drive works"),
    errno.ESTALE: ("the network drive lost the file", "see whether the network drive works"),
    errno.EMFILE: ("too many open files", "raise the limit (`ulimit -n`)"),
}


@contextlib.contextmanager
def log_to(path, patient=None):
    """Send a script's output to its log; end it with one clear line when its input is bad.

    Within the block, standard output and standard error go to the log. An `InputError` becomes one line on the
    terminal and in the log, naming the patient, and exit status 1; so does what the disk refuses. Any other exception
    is a fault of haemex: its traceback stands in the log, and its last line with the log's path on the terminal. But
    where a file of an earlier stage is damaged, or one of the job's files was replaced while it worked, it is said.

    Parameters
    ----------
    path : path-like
        The log file.
    patient : str, optional
        Patient the job works on.
    """
    who = f"patient {patient}: " if patient else ""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    terminal, said, job = sys.stderr, None, getattr(sys.modules["__main__"], "snakemake", None)
    before = _states(job)
    try:
        with open(path, "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                yield
                _refuse_replaced(job, before)
            except InputError as error:
                said = f"{who}{_damaged_input(job) or error}"
                print(f"haemex: {said}", file=log)
            except Exception as error:
                if of_the_disk(error):
                    raise
                damaged = _damaged_input(job)
                said = f"{who}{damaged or f'{type(error).__name__}: {error} (a fault of haemex; traceback in {path})'}"
                traceback.print_exc(file=log)
                if damaged:
                    print(f"haemex: {said}", file=log)
    except OSError as error:  # perhaps the log's own: it stands on that disk
        if not of_the_disk(error):
            raise
        said = said or f"{who}{of_the_disk(error)}"
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as log:
            print(f"haemex: {said}", file=log)
    if said:
        print(f"haemex: {said}", file=terminal, flush=True)
        sys.exit(1)


def of_the_disk(error):
    """Say in a sentence or two what the disk refused and what to do, or None if it is another kind of error.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    str or None
    """
    if not isinstance(error, OSError) or error.errno not in OF_THE_DISK:
        return None
    problem, action = OF_THE_DISK[error.errno]
    return str(InputError(problem, f"{action}, and run the same command again", error.filename))


def _states(job):
    """What tells whether a job's inputs were replaced: size, time and inode of each file."""
    states = {}
    for path in job.input if job else []:
        with contextlib.suppress(OSError):
            facts = os.stat(path)
            if not os.path.isdir(path):  # a folder changes as it is looked into, by some file managers
                states[path] = facts.st_size, facts.st_mtime_ns, facts.st_ino
    return states


def _refuse_replaced(job, before):
    """Refuse a result of which nobody knows whether it is of the old or the new file.

    Snakemake compares times: the result is newer than the file that replaced its input, and would never be made anew.
    """
    after = _states(job)
    for path, state in before.items():
        if after.get(path) != state:
            raise InputError("it was replaced while it was read", "run the same command again", path)


def _damaged_input(job):
    """Return what to say of an input that another stage wrote and that is damaged, or None."""
    from haemex.recovery import is_whole

    results = os.path.join("results", str(job.config.get("study", "")), "") if job else ""
    for path in job.input if job else []:
        with contextlib.suppress(OSError):
            if str(path).startswith(results) and os.path.isfile(path) and not is_whole(path):
                return InputError("the file is damaged", "delete it, and run the same command again", path)
    return None


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
