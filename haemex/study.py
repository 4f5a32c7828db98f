"""What the rules ask about a study: its patients, their files, and digests of what each rule depends on."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from haemex.cluster_failures import tell_cluster_failures
from haemex.cohort import ELIGIBILITY_COLUMNS, assume_well, cohort_of, enters, refuse_all_excluded, refused_columns
from haemex.cohort_table import parse_cohort_table
from haemex.errors import InputError
from haemex.failures import Unfinished, jobs_of
from haemex.logs import of_the_disk
from haemex.memory import training_mb
from haemex.model_description import fold_numbers, read_description, refuse_other_preparation
from haemex.output_folders import drop_incomplete
from haemex.recovery import hold_study, mend
from haemex.settings import candidate_names, candidate_settings, check_config

# Each has its rules in workflow/rules/; the optional ones where the config has a section of that name.
STAGES = (
    *("check", "convert", "measure", "markers", "skullstrip", "resample", "inspect", "qc", "cohort"),
    *("augment", "train", "select", "final", "predict", "evaluate", "cards", "report"),
)
# An external study (`model` in the config) evaluates a model that another study has made.
TRAINING_STAGES = ("augment", "train", "select", "final")
OPTIONAL_STAGES = ("phantom", "seed_study", "scanner_study")

OWN_MODEL = "<results>/final/model"

# The columns of `haemex.markers.MARKERS`, whose module takes long to import: every job reads the rules anew.
READINGS = ("hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape", "heterogeneous_density")


@contextlib.contextmanager
def one_sentence():
    """End the program with one clear sentence when config or cohort table are refused, or the disk does not obey."""
    try:
        yield
    except InputError as error:
        sys.exit(f"haemex: {error}")
    except OSError as error:
        if not of_the_disk(error):
            raise
        sys.exit(f"haemex: {of_the_disk(error)}")


def make_study(config, main=False):
    """Make what the rules ask: a study, or with `new_patients` in the config a list of patients to predict.

    `main` says that this is no job's Snakemake: what a run that was cut off left half-written is found first, before
    Snakemake looks what there is.
    """
    check_config(config)
    # Else matplotlib keeps its list of fonts in the home folder, which a node of a cluster may not have.
    os.environ.setdefault("MPLCONFIGDIR", os.path.abspath(".snakemake/matplotlib"))
    results = Path("results", config["study"])
    if main and any([mend(results), drop_incomplete(results)]):
        Unfinished(results / ".unfinished").begin()
    if "new_patients" in config:
        from haemex.new_patients import NewPatients

        return NewPatients(config)
    return Study(config)


class Study:
    """A config and its cohort table.

    What is wrong with the table stands in `faults` and ends nothing here: as long as there are any, the study consists
    of the check alone, which lists them beside all other problems.

    Parameters
    ----------
    config : dict
        The merged config.

    Attributes
    ----------
    stages : tuple of str
        The stages of this study.
    results : list of str
        What the study ends with.
    targets : list
        What a run makes: with a faulty table the check alone, which lists the faults.
    unfinished : haemex.failures.Unfinished
        Whether an earlier run has not ended well.
    external : bool
        Whether nothing is trained, and the model of another study evaluated.
    model : str
        Folder of the model bundle: the study's own, or the one that the config names.
    folds : sequence of int
        Numbers of the fold models in that bundle.

    Raises
    ------
    InputError
        The config is refused; the model bundle it names is, or was made for scans prepared otherwise; there is no
        table, or nothing that can be read as one.
    """

    SCANS = ("baseline_ct", "followup_ct")
    MASKS = ("baseline_mask", "followup_mask", "baseline_mask_rater2")
    FILES = (*SCANS, *MASKS)
    SERIES = ("baseline_series", "followup_series")

    def __init__(self, config):
        check_config(config)
        self.config = config
        self.table = config["cohort_table"]
        self.external = "model" in config
        self.model, self.folds = OWN_MODEL, range(config["folds"])
        if self.external:
            self._take_model(config["model"])
        self.truth = []
        self.unfinished = Unfinished(Path("results", config["study"], ".unfinished"))
        self._listings = {}
        if "phantom" in config:
            self._write_synthetic_table()
        rows, self.faults = parse_cohort_table(self.table)
        self.rows = {row["patient"]: row for row in rows}
        criteria = config["eligibility"], config["cohorts"]
        cohorts = {patient: cohort_of(row, *criteria) for patient, row in self.rows.items() if enters(row, *criteria)}
        self.training = sorted(patient for patient, cohort in cohorts.items() if cohort == "train")
        self.testing = sorted(patient for patient, cohort in cohorts.items() if cohort == "test")
        self.patients = sorted(self.training + self.testing)
        self.checked = sorted(
            patient
            for patient, row in self.rows.items()
            if enters(assume_well(row, refused_columns(self.faults, patient), *criteria), *criteria)
        )
        self.candidates = [] if self.external else candidate_names(config)
        self.stages = tuple(stage for stage in STAGES if not (self.external and stage in TRAINING_STAGES))
        self.stages += tuple(stage for stage in OPTIONAL_STAGES if stage in config)
        self.results = ["<results>/report/report.html"]
        for name, table in (("seed_study", "seeds"), ("scanner_study", "scanners")):
            if name in config:
                self.results.append(f"<results>/{name}/{table}.tsv")
        self.targets = ["<results>/check/verdict.json"]
        if not self.faults:
            refuse_all_excluded(rows, *criteria, self.table)
            self.targets += ["<results>/qc/index.html", "<results>/qc/qc.tsv", *self.results, self.owed]

    def _take_model(self, folder):
        """Take the model bundle of another study, and refuse it before anything is computed."""
        from haemex.comparators import read_comparators

        description = read_description(folder)
        present = {section: self.config[section] for section in description["preparation"]}
        refuse_other_preparation(description["preparation"], present, folder)
        read_comparators(folder, description)
        self.model, self.folds = Path(folder).as_posix(), fold_numbers(description)

    def _write_synthetic_table(self):
        """Write the table of the synthetic patients; drawing them takes no time, their scans are made by a rule."""
        from haemex.phantom_cohort import draw_patients, write_cohort_table, write_model, write_truth

        folder = Path(self.table).parent
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.config["phantom"]
        patients = draw_patients(settings, self.config["seed"])
        write_cohort_table(patients, self.table, folder.as_posix())
        write_truth(patients, folder / "truth.tsv")
        write_model(patients, folder / "expansion_model.json", self.config["seed"], settings.get("centre", "first"))
        self.truth = [(folder / "truth.tsv").as_posix()]

    def hold(self, workflow):
        """Refuse to work on the study beside another Snakemake; the lock ends with the process, however it ends.

        From then on, what fails on a cluster is told, and on this machine short jobs are forked.
        """
        from haemex.fork_server import start_fork_server

        with one_sentence():
            hold_study(self.config["study"])
        self.unfinished.begin()
        tell_cluster_failures()
        start_fork_server(workflow, self.config["study"])

    def owed(self, wildcards):
        """List an output of every job if a run has not ended well; Snakemake asks for the last ones alone."""
        return [f"<results>/{job.output}" for job in jobs_of(self)] if self.unfinished else []

    def of_training(self, paths):
        """Return what only a training leaves; nothing in an external study."""
        return [] if self.external else paths

    def of_model(self, paths):
        """Return files of the model bundle where they are: the study's own, or those of the bundle under test."""
        return [path.replace(OWN_MODEL, self.model) for path in paths]

    def path(self, patient, column):
        """Return what the table says in a column of files, or "" where it says nothing."""
        return self.rows[patient][column] or ""

    def readings(self, patient):
        """Return the NCCT markers as the reader called them: 0, 1 or None."""
        return {marker: self.rows[patient][marker] for marker in READINGS}

    def given(self, patient, *columns):
        """List the files of a patient that a rule takes as input.

        A file that is not there is left out: its job then runs, and refuses with a sentence of its own, instead of
        Snakemake refusing the whole study for one patient.
        """
        paths = [self.path(patient, column) for column in columns]
        return [path for path in paths if path and ("phantom" in self.config or os.path.exists(path))]

    def listing(self, patient, column):
        """Digest the names and sizes of the files in a scan's folder, which Snakemake does not look into."""
        folder = Path(self.path(patient, column) or os.devnull)  # "" would be the folder one stands in
        if "phantom" in self.config or not folder.is_dir():
            return ""
        if folder not in self._listings:  # two rules ask, and a network drive answers slowly
            self._listings[folder] = _digest(_entries(folder))
        return self._listings[folder]

    def has_followup_scan(self, patient):
        """Whether the table names a follow-up CT; without one, the table gives the follow-up volume itself."""
        return bool(self.path(patient, "followup_ct"))

    def eligibility_digest(self):
        """Digest what decides who enters, so that a change elsewhere in the table re-runs no training."""
        return _digest([[str(row[name]) for name in ELIGIBILITY_COLUMNS] for row in self.rows.values()])

    def table_digest(self):
        """Digest the clinical table: everything but where scans and masks are, which have rules of their own."""
        left_out = (*self.FILES, *self.SERIES)
        return _digest([{k: str(v) for k, v in row.items() if k not in left_out} for row in self.rows.values()])

    def check_digest(self):
        """Digest all that the check looks at: the table with its faults, and what stands in the folders of scans."""
        rows = [{name: str(value) for name, value in row.items()} for row in self.rows.values()]
        listings = [[self.listing(patient, column) for column in self.SCANS] for patient in self.checked]
        return _digest([rows, self.faults, listings])

    def kept(self, what, path):
        """Return an output, marked for deletion after its last use where `storage` in the config does not keep it."""
        if self.config["storage"][f"keep_{what}"]:
            return path
        from snakemake.io import temp

        return temp(path)

    def candidate(self, name, section):
        """Return the section `network` or `training` as a candidate changes it."""
        return candidate_settings(self.config, name)[section]

    def training_mb(self, *names):
        """Return the memory that a training declares, MB: enough for whichever of these candidates it is."""
        copies = len(self.training) * self.config["augment"]["copies"]
        rest = self.config["resample"]["matrix"], copies, self.config["computing"]["memory_gb"]
        return max(
            training_mb(self.candidate(name, "network"), self.candidate(name, "training")["batch_size"], *rest)
            for name in names
        )


def _entries(folder):
    """List names and sizes of the files below a folder, links followed as when the scan is read."""
    found, entered = [], set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add(real)
        for name in names:
            path = os.path.join(top, name)
            with contextlib.suppress(OSError):  # a link that leads nowhere
                found.append((os.path.relpath(path, folder), os.stat(path).st_size))
    return sorted(found)


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
