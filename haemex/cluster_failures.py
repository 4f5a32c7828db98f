"""A job that fails on a cluster says why on the terminal of the run; on one machine its own words stand there anyway.

Snakemake's message of a failed job comes with its list of files, thousands of them for a training, and is turned off
with them (`quiet: rules`); of a group of jobs it holds no reason at all.
"""

import logging
import re
import sys
from pathlib import Path

TO_SNAKEMAKE = "snakemake.logging"  # the name of its logger
OWN_WORDS = re.compile(r"^haemex: (.*)", re.M)
# How lines begin that Slurm or LSF write into the log of a job that they end, and what makes such a line worth telling.
CLUSTERS_WORDS = re.compile(r"^(?:slurm\S*: error: |TERM_)(?:\*\*\* )?(.*)", re.M)
TELLING = re.compile(r"memory|limit|cancelled|preempted|node failure", re.I)
NOTHING = "its log says nothing of why"
REFUSED_GROUP = (
    "the cluster refused a group of jobs, and Snakemake does not pass on why. Ask for one job by itself, as in "
    "`snakemake check ...`; `--verbose` shows the command"
)


def tell_cluster_failures():
    """Let every job that fails on a cluster be told in a line on the terminal, as soon as Snakemake knows of it."""
    logger = logging.getLogger(TO_SNAKEMAKE)
    if not any(isinstance(handler, _Teller) for handler in logger.handlers):
        logger.addHandler(_Teller(level=logging.ERROR))


class _Teller(logging.Handler):
    """Picks the failures of cluster jobs from what Snakemake says to its logger."""

    def emit(self, record):
        try:
            told = _told(record)
            if told:
                print(f"haemex: {told}", file=sys.stderr, flush=True)
        except Exception:  # a log that cannot be read is no reason to end a run
            self.handleError(record)


def _told(record):
    """Say what a record of Snakemake's means, if it means that a job failed on a cluster."""
    group = hasattr(record, "groupid")
    number = getattr(record, "external_jobid", None) if group else getattr(record, "aux", {}).get("external_jobid")
    message = getattr(record, "rule_msg", None)  # a job on this machine has none
    if number is not None:
        what, logs = ("a group of jobs", record.aux_logs) if group else (record.rule_name, record.log)
        return failure_sentence(number, what, logs)
    if group:
        return REFUSED_GROUP
    return f"{record.rule_name}: {message.splitlines()[0]}" if message else None


def failure_sentence(number, what, logs):
    """Say which job of a cluster failed, and why.

    Parameters
    ----------
    number : str
        The cluster's number of the job.
    what : str
        What it did.
    logs : list of path-like
        Its logs, the cluster's last; those that are missing are passed over.

    Returns
    -------
    str
        Why the cluster ended the job; if it did not, the last sentence of haemex in the logs; without one, that there
        is none. With the place of the last log.
    """
    texts = [Path(log).read_text(errors="replace") for log in logs if Path(log).is_file()]
    where = f"cluster job {number}" + (f", {logs[-1]}" if logs else "")
    ended = [words.strip(" *") for text in texts for words in CLUSTERS_WORDS.findall(text) if TELLING.search(words)]
    if ended:
        return f"{what} failed: {ended[0]} ({where})"
    own = [words for text in texts for words in OWN_WORDS.findall(text)]
    return f"{own[-1] if own else f'{what} failed: {NOTHING}'} ({where})"
