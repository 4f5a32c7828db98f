"""A list of new patients for a finished model: who they are, and one table of what it says about them.

Each is predicted as `haemex.new_patient` does it, in a job of its own.
"""

import hashlib
from pathlib import Path

from haemex.cluster_failures import tell_cluster_failures
from haemex.cohort_table import parse_cohort_table
from haemex.errors import InputError
from haemex.files import read_json, write_atomically
from haemex.model_description import read_description
from haemex.provenance import ROOT
from haemex.recovery import hold_study
from haemex.settings import check_config
from haemex.study import one_sentence
from haemex.tables import write_table

SCHEMA = ROOT / "config" / "new_patients.schema.yaml"
COLUMNS = (
    *("patient", "answer", "probability", "raw_probability", "positive", "ensemble_probability", "ensemble_sd"),
    *("haematoma_ml", "bat_score", "reasons"),
)


class NewPatients:
    """A config with `new_patients`, as the rules ask about it: stands where `haemex.study.Study` stands otherwise.

    Parameters
    ----------
    config : dict
        The merged config, with `new_patients` (path of the table) and `model`.

    Attributes
    ----------
    stages : tuple of str
        Its one stage.
    targets : list of str
        What the run ends with.
    rows : dict of str to dict
        By patient: `ct`, `series`, `onset_to_ct_h`; None where a cell is empty.

    Raises
    ------
    InputError
        The config, the table or the model is refused.
    """

    stages = ("new_patients",)

    def __init__(self, config):
        check_config(config)
        self.config = config
        self.model = Path(config["model"]).as_posix()
        read_description(self.model)
        self.rows = {row["patient"]: row for row in read_new_patients(config["new_patients"])}
        self.patients = sorted(self.rows)
        # Every patient too: Snakemake misses no folder that the page, which is there, was made of.
        folders = [f"<results>/new_patient/{patient}" for patient in self.patients]
        self.targets = ["<results>/new_patients/index.html", *folders]

    def hold(self, workflow):
        """Refuse to work beside another Snakemake; the lock ends with the process, however it ends.

        Its jobs load PyTorch, and a process with PyTorch's threads cannot be forked: `workflow` is left as it is.
        """
        with one_sentence():
            hold_study(self.config["study"])
        tell_cluster_failures()

    def model_files(self):
        """List the files of the model bundle that a prediction rests on."""
        description = read_description(self.model)
        names = ["model.json", "model.safetensors", *(member["file"] for member in description["ensemble"])]
        return [f"{self.model}/{name}" for name in names]

    def scan(self, patient):
        """List the scan of a patient as a rule's input, where it is there; its job refuses it otherwise."""
        path = self.rows[patient]["ct"]
        return [path] if Path(path).exists() else []

    def listing(self, patient):
        """Digest the names and sizes of the files in a scan's folder, which Snakemake does not look into."""
        folder = Path(self.rows[patient]["ct"])
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        told = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)
        return hashlib.sha256(told.encode()).hexdigest()[:16] if files else ""


def read_new_patients(path):
    """Read the table of new patients.

    Parameters
    ----------
    path : path-like
        Tab-separated text with the columns of `config/new_patients.schema.yaml`.

    Returns
    -------
    list of dict
        `patient`, `ct`, `series`, `onset_to_ct_h`; None where a cell is empty.

    Raises
    ------
    InputError
        All that is wrong with it, at once.
    """
    if not Path(path).is_file():
        raise InputError("there is no table of new patients here", "name it in `new_patients` of the config", path)
    rows, faults = parse_cohort_table(path, SCHEMA)
    said = [f"{_place(fault)}{fault['problem']} ({fault['action']})" for fault in faults]
    said += [f"patient {row['patient']}: no CT is named (fill in the cell)" for row in rows if not row["ct"]]
    if said:
        raise InputError("; ".join(said), "Correct the table; config/README.md describes it", path)
    return rows


def _place(fault):
    line = f"line {fault['line']}: " if fault["line"] else ""
    return line + (f"column `{fault['column']}`: " if fault["column"] else "")


def write_summary(found_paths, table_out, page_out, template_folder):
    """Write one table and one page of all new patients, the highest probability first, those without answer last.

    Parameters
    ----------
    found_paths : sequence of path-like
        `prediction.json` of each patient, beside its `prediction.html`, to which the page leads.
    table_out, page_out : path-like
        Tab-separated text (`COLUMNS`), and HTML.
    template_folder : path-like
        `workflow/report`.
    """
    from haemex.pages import page_environment
    from haemex.patient_page import answer_in_words
    from haemex.printing import number

    rows, model = [], None
    for path in found_paths:
        found = read_json(path)
        model = found["model"]
        rows.append(
            {name: found[name] for name in COLUMNS if name in found}
            | {"answer": answer_in_words(found), "reasons": "; ".join(found["reasons"])}
        )
    rows.sort(key=lambda row: (row["probability"] is None, -(row["probability"] or 0.0), row["patient"]))
    environment = page_environment(template_folder)
    environment.filters["num"] = number
    text = environment.get_template("new_patients.html.j2").render(rows=rows, model=model)
    write_table(table_out, rows, COLUMNS)
    write_atomically(page_out, text.encode())
