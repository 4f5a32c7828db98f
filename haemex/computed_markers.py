"""The NCCT markers computed from the CT beside those that were read: where they agree, and where not and why.

The reader's value is the one the study uses everywhere: in the BAT score, in the logistic models and in Table 1. What
was computed gets rows of its own in Table 2, and is compared here. `haemex.markers` decides the markers and states the
criteria.
"""

from pathlib import Path

from haemex.files import read_json
from haemex.markers import MARKERS, bat_score
from haemex.statistics import cohen_kappa

AGREEMENT_COLUMNS = ("marker", "label", "n", "both", "only_read", "only_computed", "neither", "undecided")
AGREEMENT_COLUMNS += ("kappa", "kappa_lower", "kappa_upper")
DISAGREEMENT_COLUMNS = ("patient", "cohort", "marker", "label", "read", "computed", "evidence")


def read_computed(folder, patients):
    """Read what was computed from the CT of every patient.

    Parameters
    ----------
    folder : path-like
        Holds `{patient}.json` of the stage markers.
    patients : iterable of str
        Codes.

    Returns
    -------
    dict of str to dict of str to dict
        By patient and marker: `present` (1, 0, or None where it could not be decided) and `evidence` (the sentence of
        what decided it, "" where there is none).
    """
    found = {}
    for patient in patients:
        markers = read_json(Path(folder) / f"{patient}.json")["markers"]
        found[patient] = {
            marker: {"present": markers[marker]["present"], "evidence": markers[marker]["evidence"]}
            for marker in MARKERS
        }
    return found


def computed_columns(markers, onset_to_ct_h):
    """Name what was computed of one patient as `scores.tsv` does.

    Parameters
    ----------
    markers : dict of str to dict
        One patient of `read_computed`.
    onset_to_ct_h : float or None
        Time from onset to CT, h, for the BAT score.

    Returns
    -------
    dict
        `computed_<marker>` (1, 0, None) and `computed_bat_score` (points; None where one of its parts is unknown).
    """
    columns = {f"computed_{marker}": markers[marker]["present"] for marker in MARKERS}
    points = bat_score(markers["blend"]["present"], markers["hypodensity"]["present"], onset_to_ct_h)
    return columns | {"computed_bat_score": points}


def marker_agreement(rows, computed, confidence):
    """Compare the reader with the computer, marker by marker, over all patients who entered.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient` and the markers as read: 1, 0, None = missing.
    computed : dict
        `read_computed`.
    confidence : float
        Level of kappa's interval.

    Returns
    -------
    list of dict
        `AGREEMENT_COLUMNS`, one per marker. n counts the patients both decided: both, only_read, only_computed and
        neither add up to it. undecided counts those in whom the computer could not decide, read or not. Cohen's kappa;
        nan where undefined.
    """
    table = []
    for marker, label in MARKERS.items():
        decisions = [(row[marker], computed[row["patient"]][marker]["present"]) for row in rows]
        pairs = [(int(read), int(own)) for read, own in decisions if None not in (read, own)]
        kappa = cohen_kappa([read for read, _ in pairs], [own for _, own in pairs], confidence)
        values = (
            marker,
            label,
            len(pairs),
            *(pairs.count(one) for one in ((1, 1), (1, 0), (0, 1), (0, 0))),
            sum(own is None for _, own in decisions),
            *kappa,
        )
        table.append(dict(zip(AGREEMENT_COLUMNS, values, strict=True)))
    return table


def marker_disagreements(rows, computed):
    """List every marker that was read one way and computed the other.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`, `cohort` and the markers as read.
    computed : dict
        `read_computed`.

    Returns
    -------
    list of dict
        `DISAGREEMENT_COLUMNS`, in the order of the patients; none where all agree.
    """
    table = []
    for row in rows:
        for marker, label in MARKERS.items():
            own = computed[row["patient"]][marker]
            if None in (row[marker], own["present"]) or int(row[marker]) == own["present"]:
                continue
            values = (row["patient"], row["cohort"], marker, label, int(row[marker]), own["present"], own["evidence"])
            table.append(dict(zip(DISAGREEMENT_COLUMNS, values, strict=True)))
    return table
