"""What failed in a run, why, and what to do: a table on the terminal and in a file; and what the next run asks for.

A job that fails says why in its log (`haemex.logs.log_to`), and a job that runs again begins its log anew: the logs are
what is known of the last time each job ran, on one machine or on a cluster.
"""

import contextlib
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from haemex.pages import plural

SAID = "haemex: "  # how `haemex.logs.log_to` begins the sentence of a refusal
COLUMNS = ("patient", "stage", "problem", "action", "log")
HEADINGS = ("patient", "stage", "what is wrong", "what to do")
MAX_ROWS = 20  # on the terminal; the file has all
NARROWEST, WIDEST = 80, 160  # characters of a line on the terminal

# The jobs on a patient's way to the quality page, in their order, and those that each waits for.
TO_THE_PAGE = {
    "convert baseline": (),
    "convert followup": (),
    "measure": ("convert baseline", "convert followup"),
    "skullstrip": ("convert baseline",),
    "resample": ("convert baseline", "measure", "skullstrip"),
    "inspect": ("convert baseline", "convert followup", "measure", "skullstrip", "resample"),
}
BEYOND_THE_PAGE = {"markers": ("convert baseline", "measure"), "augment": ("resample",)}


class Job(NamedTuple):
    """One job of a study: whose it is, where it speaks and what it leaves, relative to the results, what it waits for.

    `needs` are stages: of the same patient for a job of a patient, of anybody for a job of the study. `output` is one
    that is kept whatever the config says about storage.
    """

    stage: str
    patient: str
    log: str
    output: str
    needs: tuple = ()

    @property
    def name(self):
        """The stage in the words of a reader."""
        return self.stage.replace("followup", "follow-up")


def jobs_of(study):
    """List all jobs of a study, each after those it waits for.

    Parameters
    ----------
    study : haemex.study.Study

    Returns
    -------
    list of Job
    """
    jobs = [Job("check", "", "check/check.log", "check/verdict.json")]
    augmented = set(study.training) if "augment" in study.stages else ()
    for patient in study.patients:
        jobs += patient_jobs(patient, study.has_followup_scan(patient), patient in augmented)
        if "phantom" in study.stages:
            jobs.append(Job("phantom", patient, f"phantom/{patient}.log", f"phantom/{patient}/baseline_mask.nii.gz"))
    jobs += [
        Job("qc", "", "qc/qc.log", "qc/qc.tsv", ("inspect",)),
        Job("cohort", "", "cohort/cohort.log", "cohort/cohort.tsv", ("measure",)),
        Job("table1", "", "table1/table1.log", "table1/flow.json", ("cohort",)),
    ]
    if "train" in study.stages:
        jobs += _training_jobs(study)
    model = "final" if "final" in study.stages else "cohort"
    jobs += [
        Job("predict", "", "predict/predict.log", "predict/predictions.tsv", (model, "convert baseline", "resample")),
        Job("evaluate", "", "evaluate/evaluate.log", "evaluate/summary.json", ("table1", "predict", "markers")),
        Job("cards", "", "cards/cards.log", "cards/cards.json", ("evaluate",)),
    ]
    jobs += _studies_apart(study)
    before = ("cards", "seed_study", "scanner_study")
    return [*jobs, Job("report", "", "report/report.log", "report/report.html", before)]


def patient_jobs(patient, followed_up, augmented=False):
    """List the jobs of one patient.

    Parameters
    ----------
    patient : str
    followed_up, augmented : bool
        Whether there is a follow-up scan, and whether copies are made to train on.
    """
    jobs = []
    for stage, needs in (TO_THE_PAGE | BEYOND_THE_PAGE).items():
        if (stage == "convert followup" and not followed_up) or (stage == "augment" and not augmented):
            continue
        folder, _, timepoint = stage.partition(" ")
        name = f"{patient}_{timepoint}" if timepoint else patient
        jobs.append(Job(stage, patient, f"{folder}/{name}.log", f"{folder}/{name}.json", needs))
    return jobs


def _training_jobs(study):
    jobs = []
    for candidate in study.candidates:
        for fold in study.folds:
            at = f"train/{candidate}/fold{fold}"
            needs = ("cohort", "resample", "augment")
            jobs.append(Job(f"train {candidate} fold {fold}", "", f"{at}.log", f"{at}/predictions.tsv", needs))
    return [
        *jobs,
        Job("select", "", "select/select.log", "select/selected.json", ("train",)),
        Job("final", "", "final/final.log", "final/model/model.json", ("select", "augment")),
        Job("comparators", "", "final/comparators.log", "final/model/comparators.json", ("cohort",)),
    ]


def _studies_apart(study):
    jobs = []
    needs = ("cohort", "resample", "augment")
    if "seed_study" in study.stages:
        for seed in study.config["seed_study"]["seeds"]:
            for fold in study.folds:
                at = f"seed_study_train/seed{seed}/fold{fold}"
                jobs.append(
                    Job(f"seed_study_train {seed} fold {fold}", "", f"{at}.log", f"{at}/predictions.tsv", needs)
                )
        log, output = "seed_study/seed_study.log", "seed_study/summary.json"
        jobs.append(Job("seed_study", "", log, output, ("seed_study_train",)))
    if "scanner_study" in study.stages:
        for number in range(1, len(study.config["scanner_study"]["scanners"]) + 1):
            at = f"scanner_study_train/scanner{number}"
            jobs.append(Job(f"scanner_study_train {number}", "", f"{at}.log", f"{at}/predictions.tsv", needs))
        log, output = "scanner_study/scanner_study.log", "scanner_study/summary.json"
        jobs.append(Job("scanner_study", "", log, output, ("scanner_study_train", "train")))
    return jobs


# --- what the logs say ---------------------------------------------------------------------------------------------


def collect(results, jobs):
    """List the jobs that failed when they last ran.

    What is older than a job it waits for is of the past; so is what a patient's inspection came after.

    Parameters
    ----------
    results : path-like
        Folder of the study.
    jobs : list of Job
        Each after those it waits for.

    Returns
    -------
    list of dict
        `COLUMNS`: patient ("" where none is to blame), stage, problem (with the file it is about), action, log. Those
        without a patient come first, then by patient. Nothing of an unforeseen error but its kind is repeated, which
        may quote what stands in a file: the log has it.
    """
    results = Path(results)
    newest, found = {}, []
    for job in jobs:
        log = results / job.log
        try:
            stat = log.stat()
        except OSError:
            continue
        when = stat.st_mtime_ns
        later = [newest.get((job.patient, need), 0) for need in job.needs]
        if job.patient and job.stage in TO_THE_PAGE:
            later.append(_modified(results / "inspect" / f"{job.patient}.json"))
        for whose in {job.patient, ""}:  # a job of the study waits for all patients
            key = whose, job.stage.split(" ")[0] if not job.patient else job.stage
            newest[key] = max(newest.get(key, 0), when)
        if any(other > when for other in later):
            continue
        if said := last_words(log, results / job.output, job.patient):
            problem, action = said
            found.append(
                {"patient": job.patient, "stage": job.name, "problem": problem, "action": action, "log": str(log)}
            )
    return sorted(found, key=lambda one: one["patient"])  # stable: within a patient in the order of the jobs


def _modified(path):
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def last_words(log, output, patient=""):
    """Return what a failed job said at its end, as (problem, action); None if it did its work.

    Parameters
    ----------
    log, output : pathlib.Path
        Its log, and a file that it leaves when it succeeds.
    patient : str
        Whose it is; the name is taken out of the sentence.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    said = [number for number, line in enumerate(lines) if line.startswith(SAID)]
    if said:
        text = " ".join(" ".join(lines[said[-1] :]).split())
        return split_sentence(text.removeprefix(SAID).removeprefix(f"patient {patient}: "))
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    if traces:
        last = next((line for line in lines[traces[-1] + 1 :] if line and not line[0].isspace()), "")
        kind = re.match(r"[\w.]*", last)[0].rpartition(".")[2] or "an error"
        if kind in ("MemoryError", "OutOfMemoryError"):
            return "there was not enough memory", f"Give the job more, or run fewer side by side; its log is {log}"
        return f"{kind}, a fault of haemex", f"Please report it with the traceback in {log}"
    if not output.is_file():
        again = "Run the same command again; if that is no help, give the job more memory"
        return "the job ended without a word: stopped from outside, or out of memory", f"{again}; its log is {log}"
    return None


def split_sentence(text):
    """Split the sentence of an `haemex.errors.InputError` into what is wrong and what to do."""
    problem, _, action = text.partition(". ")
    return problem.rstrip("."), action.rstrip(".")


# --- the table -----------------------------------------------------------------------------------------------------


def write_failures(failures, path):
    """Write the table of failures, one row each with `COLUMNS`; without any, remove it."""
    path = Path(path)
    if not failures:
        path.unlink(missing_ok=True)
        return
    from haemex.tables import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, [{name: " ".join(one[name].split()) for name in COLUMNS} for one in failures], COLUMNS)


def in_words(failures, table, page, cohort_table=None, width=None):
    """Say on the terminal what failed, why, what to do, and how to go on.

    Parameters
    ----------
    failures : list of dict
        From `collect`; not empty.
    table, page : path-like
        The files that have all of it.
    cohort_table : path-like, optional
        Where a patient can be excluded; None where the table is made anew by every run.
    width : int, optional
        Characters of a line; by default those of the terminal.

    Returns
    -------
    str
        At most `MAX_ROWS` rows, then one line that begins as all sentences of haemex do, and how to go on.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    width = min(max(width, NARROWEST), WIDEST)
    rows = [tuple(one[name] for name in ("patient", "stage", "problem", "action")) for one in failures[:MAX_ROWS]]
    lines = _columns([HEADINGS, *rows], width)
    if len(failures) > MAX_ROWS:
        lines.append(f"  and {len(failures) - MAX_ROWS} more; see {table}")
    patients = {one["patient"] for one in failures} - {""}
    others = [one["stage"] for one in failures if not one["patient"]]
    what = [plural(len(patients), "patient")] * bool(patients)
    what += [f"the job {others[0]}" if len(others) == 1 else f"{len(others)} jobs"] * bool(others)
    lines += ["", f"{SAID}{' and '.join(what)} failed; which and why: {page if patients else table}"]
    if patients:
        mend = "Mend what the table names"
        if cohort_table:
            mend += f", or write into the column `excluded` of {cohort_table} why a patient is left out"
        way = (
            f"{mend}; then run the same command again. No result rests on fewer patients than the cohort table lets in."
        )
    else:
        way = "Do what the table says, then run the same command again: what is done stays done."
    lines += textwrap.wrap(way, width - 2, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(["", *lines])


def _columns(rows, width):
    """Set rows in columns, cells wrapped: the first two as narrow as they can be, the others share what is left."""
    narrow = [min(max(len(row[column]) for row in rows), 24) for column in (0, 1)]
    left = width - sum(narrow) - 2 - 3 * 2
    widths = [*narrow, left - left * 2 // 5, left * 2 // 5]
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, size, break_on_hyphens=False) or [""] for cell, size in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append("  " + "  ".join(f"{part:{size}}" for part, size in zip(parts, widths, strict=True)).rstrip())
    return lines


# --- from one run to the next --------------------------------------------------------------------------------------


class Unfinished:
    """A note in the results that a run has begun and has not ended well, however it ended.

    Snakemake 9.27 looks at the files that a run ends with and at what is newer than they are. An intermediate file
    that is not there does not count: where a job fails over results of an earlier run, its outputs are deleted, what
    was made of them before stays, and the same command says "Nothing to be done". With this note the next run asks for
    every job's output, so what failed or was cut off is tried again, and what rests on it follows.

    Parameters
    ----------
    path : path-like
        The note.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.earlier = False

    def __bool__(self):
        return self.path.exists()

    def begin(self):
        """Note that a run begins; results that cannot be written to are left to the jobs, which say so."""
        self.earlier = bool(self)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()

    def end(self, outputs):
        """Take the note away after a run that ended well, unless outputs are missing still that an earlier run owes.

        Parameters
        ----------
        outputs : iterable of path-like
            Of every job.
        """
        if not self.earlier or all(Path(output).exists() for output in outputs):
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def end_well(study, results, failures):
    """After a run that ended well: nothing is unfinished, and the table of failures keeps what is still true of it.

    Parameters
    ----------
    study : haemex.study.Study
    results : path-like
        Folder of the study.
    failures : path-like
        `qc/failures.tsv`.
    """
    results, table = Path(results), Path(failures)
    try:
        if study.unfinished.earlier or table.exists():
            jobs = jobs_of(study)
            study.unfinished.end(results / job.output for job in jobs)
            if table.exists():
                write_failures(collect(results, jobs), table)
        else:
            study.unfinished.end(())
    except Exception as error:  # the run has ended well, and this must not say otherwise
        print(f"The table of failures could not be brought up to date: {type(error).__name__}", file=sys.stderr)
