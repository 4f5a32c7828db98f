"""What the rules ask about a study: its patients, their files, and digests of what each rule depends on."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from haemex.cohort import ELIGIBILITY_COLUMNS, ineligibility, read_cohort_table, split
from haemex.errors import InputError
from haemex.settings import candidate_names, candidate_settings, check_config


@contextlib.contextmanager
def one_sentence():
    """End the program with one clear sentence when the config or the cohort table is refused."""
    try:
        yield
    except InputError as error:
        sys.exit(f"haemex: {error}")


class Study:
    """A config and its cohort table, checked.

    Parameters
    ----------
    config : dict
        The merged config.

    Raises
    ------
    InputError
        The config or the table is refused, or there is no table.
    """

    MASKS = ("baseline_mask", "followup_mask", "baseline_mask_rater2")
    FILES = ("baseline_ct", "followup_ct", *MASKS)

    def __init__(self, config):
        check_config(config)
        self.config = config
        self.table = config["cohort_table"]
        self.truth = []
        if "phantom" in config:
            self._write_synthetic_table()
        if not Path(self.table).is_file():
            raise InputError(
                "there is no cohort table here",
                "Write yours as config/README.md describes and name it in `cohort_table` of config/config.yaml, "
                "or run `make demo` to see the whole study on synthetic patients",
                self.table,
            )
        self.rows = {row["patient"]: row for row in read_cohort_table(self.table)}
        cohort_of = {
            patient: split(row["admission_date"], config["cohorts"])
            for patient, row in self.rows.items()
            if not ineligibility(row, config["eligibility"])
        }
        self.training = sorted(patient for patient, cohort in cohort_of.items() if cohort == "train")
        self.testing = sorted(patient for patient, cohort in cohort_of.items() if cohort == "test")
        self.patients = sorted(self.training + self.testing)
        self.candidates = candidate_names(config)
        self.folds = range(config["folds"])

    def _write_synthetic_table(self):
        """Write the table of the synthetic patients; drawing them takes no time, their scans are made by a rule."""
        from haemex.phantom import draw_patients, write_cohort_table, write_truth

        folder = Path(self.table).parent
        folder.mkdir(parents=True, exist_ok=True)
        patients = draw_patients(self.config["phantom"], self.config["seed"])
        write_cohort_table(patients, self.table, folder.as_posix())
        write_truth(patients, folder / "truth.tsv")
        self.truth = [(folder / "truth.tsv").as_posix()]

    def path(self, patient, column):
        """Return what the table says in a column of files, or "" where it says nothing."""
        return self.rows[patient][column] or ""

    def given(self, patient, *columns):
        """List the files of a patient that a rule takes as input.

        A file that is not there is left out: its job then runs, and refuses with a sentence of its own, instead of
        Snakemake refusing the whole study for one patient.
        """
        paths = [self.path(patient, column) for column in columns]
        return [path for path in paths if path and ("phantom" in self.config or os.path.exists(path))]

    def listing(self, patient, column):
        """Digest the names and sizes of the files in a scan's folder, which Snakemake does not look into."""
        folder = Path(self.path(patient, column))
        if "phantom" in self.config or not folder.is_dir():
            return ""
        entries = sorted(
            (os.path.relpath(os.path.join(top, name), folder), os.path.getsize(os.path.join(top, name)))
            for top, _, names in os.walk(folder)
            for name in names
        )
        return _digest(entries)

    def has_followup_scan(self, patient):
        """Whether the table names a follow-up CT; without one, the table gives the follow-up volume itself."""
        return bool(self.path(patient, "followup_ct"))

    def eligibility_digest(self):
        """Digest what decides who enters, so that a change elsewhere in the table re-runs no training."""
        return _digest([[str(row[name]) for name in ELIGIBILITY_COLUMNS] for row in self.rows.values()])

    def table_digest(self):
        """Digest the whole table."""
        return _digest([{name: str(value) for name, value in row.items()} for row in self.rows.values()])

    def candidate(self, name, section):
        """Return the section `network` or `training` as a candidate changes it."""
        return candidate_settings(self.config, name)[section]


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
