"""Folders of results that one job fills for all patients, and that Snakemake sees as one output.

Snakemake keeps a record of every output, which lists all inputs of its job. With an output per patient in a job that
also has inputs per patient, records and comparisons grow with the square of the cohort: for 266 patients 190 MB, read
in every run. So `predict` and `cards` declare one folder each; but of a file that is missing in it, Snakemake knows
nothing.
"""

import shutil
from pathlib import Path

from haemex.errors import InputError
from haemex.files import read_json
from haemex.locks import is_held
from haemex.logs import announce
from haemex.tables import read_table

MAPS = ("{}_haematoma.nii.gz", "{}_grid.nii.gz", "{}_relevance.nii.gz")
PICTURES = ("{}.png",)


def drop_incomplete(results):
    """Remove a folder that lacks a file of one of its patients, so that Snakemake has it made anew.

    The list of its patients, the job's other output, goes with it: a run asks for that one. Does nothing while a run is
    at work.

    Parameters
    ----------
    results : path-like
        Results of the study: a folder per stage.

    Returns
    -------
    list of Path
        The folders that were removed; each was announced.
    """
    results = Path(results)
    removed = []
    for folder, listed, names in (
        (results / "predict/maps", results / "predict/predictions.tsv", MAPS),
        (results / "cards/pictures", results / "cards/cards.json", PICTURES),
    ):
        if not folder.is_dir() or not listed.is_file() or is_held(results / ".lock"):
            continue
        try:
            rows = read_json(listed) if listed.suffix == ".json" else read_table(listed, as_text=True)
            patients = [row["patient"] for row in rows]
        except (InputError, ValueError, LookupError, TypeError):
            continue  # damaged: the job that reads it says so
        present = {path.name for path in folder.iterdir()}
        wanted = [name.format(patient) for patient in patients for name in names]
        missing = [name for name in wanted if name not in present]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            announce(f"{folder / missing[0]}{more}: not there; the folder is made anew")
            listed.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed
