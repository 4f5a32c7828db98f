"""What the cohort table says, held against itself: missing, implausible and contradictory values, shared files."""

import os
from pathlib import Path

from haemex.cohort import is_expansion

COLUMNS = ("patient", "severity", "file", "problem", "action")

SCANS = ("baseline_ct", "followup_ct")
MASK_OF = {"baseline_mask": "baseline_ct", "followup_mask": "followup_ct", "baseline_mask_rater2": "baseline_ct"}

# Missing ones are counted and reported by the study; they keep nobody out.
CLINICAL = (
    "sex",
    "hypertension",
    "diabetes",
    "prestroke",
    "antiplatelet",
    "anticoagulation",
    "nihss",
    "intraventricular_haemorrhage",
    "hypodensity",
    "black_hole",
    "swirl",
    "blend",
    "fluid_level",
    "irregular_shape",
    "heterogeneous_density",
)
DECISIVE = ("age_years", "onset_to_ct_h", "ct_to_followup_h", "haemorrhage_site")

# ASSUME: possible, and yet more often a slip: least and greatest plausible value, and what the slip may be.
PLAUSIBLE = {
    "age_years": (1, 105, "years are wanted, not months"),
    "onset_to_ct_h": (0.1, 72, "hours are wanted, neither minutes nor days; an unknown onset is an empty cell"),
    "ct_to_followup_h": (3, 336, "hours are wanted, neither days nor minutes"),
}


def finding(patient, problem, action, file="", severity="error", kind=""):
    """Make one finding of the check.

    Parameters
    ----------
    patient : str
        The patient's code; "" where the whole cohort is concerned.
    problem, action : str
        What is wrong, and what to do.
    file : path-like
        The file or folder concerned; "" where none is.
    severity : str
        "error" stops the study, "warning" does not.
    kind : str
        Findings of one kind become one for the cohort where they concern a large part of it.
    """
    return {
        "patient": patient,
        "severity": severity,
        "file": str(file or ""),
        "problem": problem,
        "action": action,
        "kind": kind,
    }


def warning(patient, problem, action, file="", kind=""):
    """Make a `finding` that stops nothing."""
    return finding(patient, problem, action, file, "warning", kind)


def check_faults(faults, table_path):
    """Turn the faults of the cohort table into findings.

    Parameters
    ----------
    faults : list of dict
        From `haemex.cohort_table.parse_cohort_table`.
    table_path : path-like
        The table.
    """
    found = []
    for fault in faults:
        line = f"line {fault['line']}, " if fault["line"] else ""
        column = f"column `{fault['column']}`: " if fault["line"] and fault["column"] else ""
        problem = f"{line}{column}{fault['problem']}" if column else f"{line.replace(', ', ': ')}{fault['problem']}"
        found.append(finding(fault["patient"], problem, fault["action"], table_path))
    return found


def check_values(rows, refused, today):
    """Find values of any patient that are possible and yet doubtful, or contradict each other.

    Parameters
    ----------
    rows : list of dict
        Every patient of the table.
    refused : dict of str to set of str
        By patient, the columns refused in the table; nothing is said about them here.
    today : datetime.date
        No admission is later.

    Returns
    -------
    list of dict
        See `finding`.
    """
    found = []
    for row in rows:
        patient = row["patient"]
        for column, (low, high, slip) in PLAUSIBLE.items():
            value = row[column]
            if value is not None and not low <= value <= high:
                found.append(warning(patient, f"`{column}` is {value:g}", f"check it: {slip}", kind=f"slip:{column}"))
        if row["admission_date"] is not None and row["admission_date"] > today:
            found.append(finding(patient, "`admission_date` lies in the future", "correct the table"))
        known = {column for column in row if row[column] is not None} | refused.get(patient, set())
        followup = sorted(known & {"followup_ct", "followup_mask", "followup_volume_ml", "ct_to_followup_h"})
        if row["died_or_surgery_before_followup"] and followup:
            found.append(
                warning(
                    patient,
                    "`died_or_surgery_before_followup` is 1, and yet the table gives " + ", ".join(followup),
                    "set it to 0 if the follow-up CT came first; else empty the other cells",
                )
            )
        if row["haemorrhage_site"] == "ventricular" and row["intraventricular_haemorrhage"] is False:
            found.append(
                warning(
                    patient,
                    "`haemorrhage_site` is ventricular, and yet `intraventricular_haemorrhage` is 0",
                    "correct one of the two",
                )
            )
    return found


def check_completeness(rows, refused):
    """Find what the patients who enter lack.

    Parameters
    ----------
    rows : list of dict
        The patients who enter, or would but for a refused cell.
    refused : dict of str to set of str
        By patient, the columns refused in the table; they are not called missing.

    Returns
    -------
    list of dict
        See `finding`.
    """
    found = []
    nowhere = [column for column in CLINICAL if all(row[column] is None for row in rows)] if len(rows) > 1 else []
    unread = set.intersection(*(refused.get(row["patient"], set()) for row in rows)) if rows else set()
    if empty := [column for column in nowhere if column not in unread]:
        found.append(
            warning(
                "",
                f"no patient who enters has a value of: {', '.join(empty)}",
                "fill in what is known; what rests on the rest is left out of the tables, or reported as missing",
            )
        )
    for row in rows:
        patient = row["patient"]
        known = {column for column in row if row[column] is not None} | refused.get(patient, set())
        for column in ("baseline_ct", "baseline_mask"):
            if column not in known:
                found.append(finding(patient, f"`{column}` is missing", "name the file in the table"))
        mask, volume = row["followup_mask"], row["followup_volume_ml"]
        if mask and volume is not None:
            found.append(
                finding(
                    patient,
                    f"a follow-up mask and a follow-up volume of {volume:g} mL are both given",
                    "keep one",
                    mask,
                )
            )
        if not known & {"followup_mask", "followup_volume_ml"}:
            nothing = "" if "followup_ct" in known else ", and no follow-up CT, although nothing says why"
            found.append(
                finding(
                    patient,
                    f"neither a follow-up mask nor a follow-up volume{nothing}",
                    "give one: expansion needs it; or set `died_or_surgery_before_followup` to 1 if that is why",
                )
            )
        if mask and "followup_ct" not in known:
            found.append(finding(patient, "a follow-up mask without its CT", "name the follow-up CT", mask))
        for timepoint in ("baseline", "followup"):
            if row[f"{timepoint}_series"] and f"{timepoint}_ct" not in known:
                found.append(
                    finding(patient, f"`{timepoint}_series` without `{timepoint}_ct`", "name the folder, or empty it")
                )
        for column in ("died_or_surgery_before_followup", "poor_image_quality"):
            if column not in known:
                found.append(warning(patient, f"`{column}` is empty and taken for 0", "write 0 or 1", kind=column))
        missing = [column for column in CLINICAL if column not in known and column not in nowhere]
        if missing:
            found.append(
                warning(
                    patient,
                    f"missing: {', '.join(missing)}",
                    "fill in what is known; the rest is counted and reported as missing",
                )
            )
    return found


def check_left_out(rows, reasons):
    """Find patients who are left out only because something is not filled in.

    Parameters
    ----------
    rows : iterable of dict
        Every patient of the table, refused cells filled by `haemex.cohort.assume_well`.
    reasons : dict of str to str
        Why a patient stays out, "" for who enters; an eligible patient without a date has "missing_data".
    """
    found = []
    for row in rows:
        if reasons[row["patient"]] != "missing_data":
            continue
        missing = [column for column in DECISIVE if row[column] is None]
        if missing:
            found.append(
                warning(
                    row["patient"],
                    f"left out, as nothing is known of {', '.join(missing)}",
                    "fill it in, if it is known: a criterion that cannot be checked is not met",
                )
            )
        else:
            found.append(
                finding(
                    row["patient"],
                    "`admission_date` is empty: the patient belongs to neither cohort",
                    "fill it in, or write into `excluded` why the patient is taken out",
                )
            )
    return found


def check_shared_paths(rows):
    """Find a scan or mask that is named twice, or a scan whose folder stands inside another's.

    Parameters
    ----------
    rows : list of dict
        The patients who enter.
    """
    pins = {
        row["patient"]: row["baseline_series"] and row["followup_series"] not in (None, row["baseline_series"])
        for row in rows
    }
    owners = {}
    for row in rows:
        for column in (*SCANS, *MASK_OF):
            if row[column]:
                owners.setdefault(os.path.realpath(row[column]), []).append((row["patient"], column, row[column]))
    found = []
    for uses in owners.values():
        for patient, column, path in uses[1:]:
            first, other = uses[0][:2]
            if first == patient and {column, other} == set(SCANS) and pins[patient]:
                continue  # two series of one folder, and it is said which is which
            whose = f"`{other}`" if first == patient else f"`{other}` of patient {first}"
            found.append(finding(patient, f"`{column}` is also {whose}", "name the right one", path))
    for real, uses in owners.items():
        if not os.path.isdir(real):  # a mask beside its DICOM files is no scan and disturbs nobody
            continue
        for parent in map(str, Path(real).parents):
            if parent in owners:
                patient, column, path = uses[0]
                first, other = owners[parent][0][:2]
                problem = f"`{column}` stands inside `{other}` of patient {first}, which is walked through whole"
                found.append(finding(patient, problem, "give every scan a folder of its own", path))
    return found


def check_cohort_sizes(members, folds, volumes, expansion):
    """Find cohorts that are too small to train or to test on.

    Parameters
    ----------
    members : dict of str to list of str
        `train` and `test`: the patients of each; a cohort that the study does not have is left out.
    folds : int
        Number of folds.
    volumes : dict of str to (float, float)
        Baseline and follow-up volume, mL, of the patients of whom both are known.
    expansion : dict
        Section `expansion` of the config.
    """
    found = []
    for name, patients in members.items():
        what = {"train": "training", "test": "test"}[name]
        if not patients:
            found.append(
                finding(
                    "",
                    f"the {what} cohort is empty",
                    "check `admission_date` and `excluded` in the table, and `cohorts` in the config",
                )
            )
            continue
        if name == "train" and len(patients) < folds:
            found.append(
                finding(
                    "",
                    f"the training cohort has {len(patients)} patients for {folds} folds",
                    "lower `folds` in the config, or give more patients",
                )
            )
        if any(patient not in volumes for patient in patients):
            continue
        count = sum(is_expansion(*volumes[patient], **expansion) for patient in patients)
        if count in (0, len(patients)):
            found.append(
                finding(
                    "",
                    f"the {what} cohort has {len(patients)} patients, {count} of them with expansion",
                    "a study needs patients with and without expansion in each cohort",
                )
            )
        elif name == "train" and min(count, len(patients) - count) < folds:
            found.append(
                warning(
                    "",
                    f"the training cohort has {count} patients with and {len(patients) - count} without expansion: "
                    f"some of its {folds} folds are validated on one kind alone",
                    "lower `folds` in the config, or give more patients",
                )
            )
    return found
