"""Every problem of a whole cohort in one table, before any computing: table, folders, headers, masks.

Nothing of a CT but its headers is read; masks are read whole, since their labels count.
"""

import os
from collections import Counter
from pathlib import Path

from haemex.convert import scan_geometry
from haemex.errors import InputError
from haemex.logs import Progress, announce
from haemex.series import HEAD_COVERAGE_MM
from haemex.tables import write_table
from haemex.volume import fit_mask

COLUMNS = ("patient", "severity", "file", "problem", "action")

SCANS = ("baseline_ct", "followup_ct")
MASK_OF = {"baseline_mask": "baseline_ct", "followup_mask": "followup_ct", "baseline_mask_rater2": "baseline_ct"}

# What a patient may have; h, years, points, mL.
RANGES = {
    "age_years": (0, 120),
    "onset_to_ct_h": (0, 1000),
    "ct_to_followup_h": (0, 10000),
    "nihss": (0, 42),
    "followup_volume_ml": (0, 1000),
}

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


def check_cohort(rows, patients, slice_thickness_mm):
    """Find everything that would stop the study, or should be looked at, in one go.

    Parameters
    ----------
    rows : list of dict
        The eligible patients, a row of the cohort table each, None where a value is missing.
    patients : list of str
        The codes of all patients of the table.
    slice_thickness_mm : float
        As for `haemex.series.find_series`, mm.

    Returns
    -------
    list of dict
        `patient`, `severity` ("error" stops a job, "warning" does not), `file` ("" where none is concerned),
        `problem`, `action`; errors first, each kind by patient.
    """
    problems = _check_codes(patients) + _check_shared_paths(rows)
    progress = Progress("check", len(rows))
    for done, row in enumerate(rows, start=1):
        problems += _check_values(row) + _check_files(row, slice_thickness_mm)
        progress.step(done)
    return sorted(problems, key=lambda one: (one["severity"], one["patient"]))


def write_problems(problems, path):
    """Write the problems as a TSV table, whole or not at all.

    Parameters
    ----------
    problems : list of dict
        From `check_cohort`.
    path : path-like
        Written even if there is none: a header alone.
    """
    write_table(path, [{name: " ".join(text.split()) for name, text in one.items()} for one in problems], COLUMNS)


def report_problems(problems):
    """Say every problem, then refuse if there are errors.

    Parameters
    ----------
    problems : list of dict
        From `check_cohort`.

    Raises
    ------
    InputError
        There is at least one error; how many, in how many patients.
    """
    for one in problems:
        where = f"{one['file']}: " if one["file"] else ""
        line = f"{one['severity']}, patient {one['patient']}: {where}{one['problem']}; {one['action']}"
        announce(line) if one["severity"] == "error" else print(line)
    patients = {one["patient"] for one in problems if one["severity"] == "error"}
    if patients:
        errors = sum(one["severity"] == "error" for one in problems)
        raise InputError(
            f"{errors} error{'s' * (errors > 1)} in {len(patients)} patient{'s' * (len(patients) > 1)}",
            "Correct them, or take a patient out with `poor_image_quality` 1 in the cohort table",
        )


def _problem(patient, problem, action, file="", severity="error"):
    return {"patient": patient, "severity": severity, "file": str(file or ""), "problem": problem, "action": action}


def _refused(patient, error, file):
    return _problem(patient, error.problem, error.action, error.file or file)


def _check_codes(patients):
    """Find codes that occur twice; codes that differ in case only are one file on some file systems."""
    found = [
        _problem(patient, f"patient stands in {count} rows of the cohort table", "keep one row per patient")
        for patient, count in Counter(patients).items()
        if count > 1
    ]
    alike = {}
    for patient in dict.fromkeys(patients):
        alike.setdefault(patient.lower(), []).append(patient)
    return found + [
        _problem(codes[1], f"the codes {' and '.join(codes)} differ in case only", "give another code")
        for codes in alike.values()
        if len(codes) > 1
    ]


def _check_shared_paths(rows):
    """Find a scan or mask that is named twice, or a scan whose folder stands inside another's."""
    owners = {}
    for row in rows:
        for column in (*SCANS, *MASK_OF):
            if row.get(column):
                owners.setdefault(os.path.realpath(row[column]), []).append((row["patient"], column, row[column]))
    found = []
    for uses in owners.values():
        for patient, column, path in uses[1:]:
            first, other = uses[0][:2]
            whose = f"`{other}`" if first == patient else f"`{other}` of patient {first}"
            found.append(_problem(patient, f"`{column}` is also {whose}", "name the right one", path))
    for real, uses in owners.items():
        if not Path(real).is_dir():  # a mask beside its DICOM files is no scan and disturbs nobody
            continue
        for parent in map(str, Path(real).parents):
            if parent in owners:
                patient, column, path = uses[0]
                first, other = owners[parent][0][:2]
                problem = f"`{column}` stands inside `{other}` of patient {first}, which is walked through whole"
                found.append(_problem(patient, problem, "give every scan a folder of its own", path))
    return found


def _check_values(row):
    """Find missing and impossible values of a row."""
    patient, found = row["patient"], []
    for column, (low, high) in RANGES.items():
        value = row.get(column)
        if value is not None and not low <= value <= high:
            found.append(_problem(patient, f"`{column}` is {value:g}, outside {low} to {high}", "correct the table"))
    for column in ("baseline_ct", "baseline_mask"):
        if not row.get(column):
            found.append(_problem(patient, f"`{column}` is missing", "name the file in the table"))
    mask, volume = row.get("followup_mask"), row.get("followup_volume_ml")
    if mask and volume is not None:
        found.append(
            _problem(
                patient, f"a follow-up mask and a follow-up volume of {volume:g} mL are both given", "keep one", mask
            )
        )
    if not mask and volume is None:
        found.append(
            _problem(patient, "neither a follow-up mask nor a follow-up volume", "give one: expansion needs it")
        )
    if mask and not row.get("followup_ct"):
        found.append(_problem(patient, "a follow-up mask without its CT", "name the follow-up CT", mask))
    missing = [column for column in CLINICAL if row.get(column) is None]
    if missing:
        found.append(
            _problem(
                patient,
                f"missing: {', '.join(missing)}",
                "fill in what is known; the rest is counted and reported as missing",
                severity="warning",
            )
        )
    return found


def _check_files(row, slice_thickness_mm):
    """Find scans and masks that cannot be used, from the headers of the scans."""
    patient, found, geometries = row["patient"], [], {}
    for column in SCANS:
        path = row.get(column)
        if not path:
            continue
        try:
            geometry = geometries[column] = scan_geometry(path, slice_thickness_mm)
        except InputError as error:
            found.append(_refused(patient, error, path))
            continue
        if not geometry["even"]:
            found.append(
                _problem(
                    patient,
                    f"`{column}`: slices unevenly spaced; they are brought to an even grid of "
                    f"{geometry['shape_xyz'][2]} slices",
                    "nothing, or check that the series is complete",
                    path,
                    severity="warning",
                )
            )
        positions = geometry["acquired_positions_mm"]
        if positions[-1] - positions[0] < HEAD_COVERAGE_MM:
            found.append(
                _problem(
                    patient,
                    f"`{column}`: the slices cover only {positions[-1] - positions[0]:.0f} mm",
                    "check that the series shows the whole head",
                    path,
                    severity="warning",
                )
            )
    for column, scan in MASK_OF.items():
        path = row.get(column)
        if not path:
            continue
        if not Path(path).is_file():
            found.append(_problem(patient, f"`{column}`: there is no such file", "check the path in the table", path))
        elif scan in geometries:  # without its scan a mask cannot be judged
            try:
                fit_mask(path, geometries[scan], empty_allowed=column == "baseline_mask_rater2")
            except InputError as error:
                found.append(_refused(patient, error, path))
    return found
