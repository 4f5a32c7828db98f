"""The clinical data of the patients who entered: the cohort table and the cohort, joined."""

from haemex.cohort import read_cohort, read_cohort_table
from haemex.markers import bat_score


def clinical_rows(table_path, cohort_path):
    """Join the cohort table with the cohort: one dict per patient who entered.

    Parameters
    ----------
    table_path : path-like
        The cohort table.
    cohort_path : path-like
        `cohort.tsv`.

    Returns
    -------
    list of dict
        Every column of both, and `bat_score` (points, None where a part of it is missing).
    """
    clinical = {row["patient"]: row for row in read_cohort_table(table_path)}
    rows = [{**clinical[member["patient"]], **member} for member in read_cohort(cohort_path)]
    for row in rows:
        row["bat_score"] = bat_score(row["blend"], row["hypodensity"], row["onset_to_ct_h"])
    return rows
