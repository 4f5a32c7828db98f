"""The network's results in parts of the test cohort.

The test cohort is divided by scanner, size, time, sex, age and the network's own doubt; and, to see whether the result
hangs on one scanner, it is taken without the patients of each. Every cut is fixed without a look at an outcome of the
test cohort: on the training cohort, beforehand, or at the median of the spread between the fold models. Subgroups are
small and many; no test is made between them.
"""

import itertools

import numpy as np

from haemex.statistics import count_decisions, delong_auc, wilson_interval

# ASSUME: 2.5 h, where the BAT score cuts the time from onset to CT, is where a subgroup of time is cut too.
ONSET_CUT_H = 2.5
MEASURES = ("auc", "sensitivity", "specificity")
COLUMNS = ("division", "group", "n", "expansions")
COLUMNS += (*(f"{name}{end}" for name in MEASURES for end in ("", "_lower", "_upper")), "note")
UNKNOWN = "not known"
# The one division whose groups overlap: whether the result hangs on the patients of a single scanner.
WITHOUT_SCANNER = "Without one scanner"


def training_cuts(training):
    """Cut volume and age where the training cohort does.

    Parameters
    ----------
    training : list of dict
        Patients with `baseline_ml` (mL) and `age_years`; None = missing.

    Returns
    -------
    dict
        `baseline_ml`: the two cuts between thirds, mL; `age_years`: the median, or None where no age is known.
    """
    volumes, ages = (
        [row[column] for row in training if row[column] is not None] for column in ("baseline_ml", "age_years")
    )
    thirds = [float(cut) for cut in np.quantile(volumes, [1 / 3, 2 / 3])]
    return {"baseline_ml": thirds, "age_years": float(np.median(ages)) if ages else None}


def divide(test, cuts, scanners, predictions):
    """Divide the test cohort in all the ways a reviewer asks for.

    Parameters
    ----------
    test : list of dict
        Patients with `patient`, `baseline_ml` (mL), `onset_to_ct_h` (h), `sex` ("m", "f") and `age_years`; None =
        missing. `haematoma_location` ("deep", "lobar") where the cohort table has it.
    cuts : dict
        `training_cuts`.
    scanners : dict of str to str
        Name of the baseline scanner by patient.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient, with `ensemble_sd` (None without an ensemble).

    Returns
    -------
    list of (str, dict of str to list of str)
        Name of the division, and patients by group, in the order to print; every patient is in one group of each
        division, `UNKNOWN` where the value is missing. A division of which nothing is known is left out.
        `WITHOUT_SCANNER` alone is no partition: each of its groups, "without <scanner>", is the whole test cohort but
        for one scanner's patients. It is there where the test patients come from more than one scanner.
    """
    divisions = [("Scanner", {row["patient"]: scanners[row["patient"]] for row in test}, None)]
    # Of supratentorial haematomas; the table need not have the column.
    location = {row["patient"]: row.get("haematoma_location") or UNKNOWN for row in test}
    divisions.append(("Haematoma location", location, ("deep", "lobar")))
    thirds = cuts["baseline_ml"]
    divisions.append(_by_number(test, "baseline_ml", "Haematoma volume, training thirds", thirds, "mL"))
    onset = _by_number(test, "onset_to_ct_h", "Onset to CT", (ONSET_CUT_H,), "h")
    divisions.append(onset)
    sexes = {"m": "male", "f": "female"}
    divisions.append(("Sex", {row["patient"]: sexes.get(row["sex"], UNKNOWN) for row in test}, ("female", "male")))
    if cuts["age_years"] is not None:
        divisions.append(_by_number(test, "age_years", "Age, training median", (cuts["age_years"],), "years"))
    spread = {row["patient"]: predictions[row["patient"]]["ensemble_sd"] for row in test}
    told = [value for value in spread.values() if value is not None]
    if told:
        middle = float(np.median(told))
        halves = ("confident: below the median", "the rest")
        sides = {patient: UNKNOWN if value is None else halves[value >= middle] for patient, value in spread.items()}
        divisions.append(("Spread between the fold models", sides, halves))
    found = []
    for name, group_of, order in divisions:
        groups = order or sorted(set(group_of.values()) - {UNKNOWN})
        members = {
            group: [patient for patient, own in group_of.items() if own == group] for group in (*groups, UNKNOWN)
        }
        if not members[UNKNOWN]:
            del members[UNKNOWN]
        if set(members) - {UNKNOWN} and any(members[group] for group in groups):
            found.append((name, members))
    names = sorted(set(divisions[0][1].values()))
    if len(names) > 1:
        # Left out of the evaluation only; the network was trained on all of them (`haemex.scanner_study` trains anew).
        without = {
            f"without {left_out}": [row["patient"] for row in test if scanners[row["patient"]] != left_out]
            for left_out in names
        }
        found.insert(1, (WITHOUT_SCANNER, without))
    return found


def _by_number(rows, column, name, cuts, unit):
    """Cut a number: below the first cut, between, and from the last on."""
    decimals = 0 if unit == "years" and all(float(cut).is_integer() for cut in cuts) else 1
    said = [f"{cut:.{decimals}f}" for cut in cuts]
    groups = [f"below {said[0]} {unit}"]
    groups += [f"{low} to below {high} {unit}" for low, high in itertools.pairwise(said)]
    groups.append(f"{said[-1]} {unit} or more")
    group_of = {
        row["patient"]: UNKNOWN if row[column] is None else groups[int(np.searchsorted(cuts, row[column], "right"))]
        for row in rows
    }
    return name, group_of, tuple(groups)


def subgroup_table(scores, divisions, confidence):
    """Take the network's results in every group.

    Parameters
    ----------
    scores : list of dict
        `haemex.table_two.score_patients`: patient, expansion, `cnn` and `positive`.
    divisions : list of (str, dict of str to list of str)
        `divide`.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        `COLUMNS`; the whole test cohort first. AUC with DeLong's, sensitivity and specificity (at the locked operating
        point) with Wilson's interval; nan where undefined, and `note` says why.
    """
    of = {row["patient"]: row for row in scores}
    plan = [("Test cohort", "all", list(of))]
    plan += [(name, group, members) for name, groups in divisions for group, members in groups.items()]
    table = []
    for division, group, members in plan:
        rows = [of[patient] for patient in members]
        labels = [row["expansion"] for row in rows]
        tp, fn, tn, fp = count_decisions(labels, [row["positive"] for row in rows])
        area = delong_auc(labels, [row["cnn"] for row in rows], confidence)
        measures = (
            (area.auc, area.lower, area.upper),
            wilson_interval(tp, tp + fn, confidence),
            wilson_interval(tn, tn + fp, confidence),
        )
        values = (division, group, len(rows), sum(labels), *(one for triple in measures for one in triple))
        table.append(dict(zip(COLUMNS, (*values, _note(labels, area)), strict=True)))
    return table


def _note(labels, area):
    if not labels:
        return "no patient"
    if len(set(labels)) == 1:
        return "all with expansion: no AUC" if labels[0] else "none with expansion: no AUC"
    if 1 in (sum(labels), len(labels) - sum(labels)):
        return f"only 1 {'with' if sum(labels) == 1 else 'without'} expansion: no interval"
    return "at its limit: interval without meaning" if area.auc in (0.0, 1.0) else ""
