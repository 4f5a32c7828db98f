"""Every problem of a whole cohort in one table and one page, before any computing: table, scans, masks, disk.

Of a CT its headers are read and at most three single slices; masks are read whole, since their labels count.
"""

import datetime
import re
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from haemex import disk_space
from haemex.check_scans import ADMISSION_DAYS, INTERVAL_SLACK_H, TIMEPOINTS, check_patient, whole_digest
from haemex.check_table import (
    COLUMNS,
    check_cohort_sizes,
    check_completeness,
    check_faults,
    check_left_out,
    check_shared_paths,
    check_values,
    finding,
    warning,
)
from haemex.cohort import assume_well, ineligibility, refused_columns, split
from haemex.cohort_table import parse_cohort_table
from haemex.errors import InputError
from haemex.files import write_atomically, write_json
from haemex.logs import Progress, announce
from haemex.pages import page_environment, plural
from haemex.tables import write_table

# Files on a network drive are waited for, not worked for: this many patients per core are looked at side by side.
PATIENTS_PER_THREAD = 4
# ASSUME: what looks wrong in the same way in this part of the patients comes from the export or the table's unit.
LARGE_PART, AT_LEAST = 1 / 3, 4
# ASSUME: a PatientID under more patients than this is what an export put in for everybody.
SHARED_BY = 3
SHOWN_ERRORS = 10  # on the terminal; the page has all
_NAMES = {"baseline": "baseline", "followup": "follow-up"}

REASONS = {
    "age": "too young",
    "onset_to_ct": "baseline CT too late after onset",
    "followup_interval": "follow-up CT too early or too late",
    "missing_data": "a criterion cannot be checked: a value is missing",
    "infratentorial": "infratentorial haemorrhage",
    "ventricular_only": "haemorrhage in the ventricles only",
    "died_or_surgery": "death, deterioration or surgery before the follow-up CT",
    "poor_image_quality": "poor image quality",
    "outside_dates": "admitted outside both periods",
}
BY_INVESTIGATORS = "excluded by the investigators"
SHIFTED = (
    "nothing, if an anonymised export has shifted dates and times; else check the columns, and the clock of the scanner"
)
# What is said once where it concerns a large part of the cohort.
OF_THE_COHORT = {
    "admission": (
        f"the baseline CT lies more than {ADMISSION_DAYS} days from `admission_date`, by its headers",
        SHIFTED,
    ),
    "interval": (
        f"the time between the scans, by their headers, differs from `ct_to_followup_h` by over {INTERVAL_SLACK_H:g} h",
        SHIFTED,
    ),
    "same time": ("baseline and follow-up were scanned at the same time, by their headers", SHIFTED),
    "person": (
        "the headers of baseline and follow-up state different persons",
        "nothing, if an anonymised export gives every scan a number of its own; else check the folders",
    ),
    "sex": ("the headers state the other sex than the table", "check the column `sex`"),
    "age": (
        "the age in the headers differs from `age_years` by more than a year",
        "nothing, if an anonymised export has changed it; else check the column `age_years`",
    ),
}


def check_study(
    *,
    study,
    table_path,
    eligibility,
    cohorts,
    expansion,
    folds,
    slice_thickness_mm,
    matrix,
    field_of_view_mm,
    copies,
    network,
    candidates,
    results,
    threads,
    template_folder,
    problems_path,
    page_path,
    verdict_path,
    today=None,
):
    """Check a cohort: write the table of problems and the page, and refuse the study if there are errors.

    Parameters
    ----------
    study : str
        Its name.
    table_path : path-like
        The cohort table.
    eligibility, cohorts, expansion, network : dict
        Sections of the config.
    folds, copies, candidates : int
        Folds, augmented copies of a patient, and number of candidates.
    slice_thickness_mm : float
        Slice thickness wanted, mm.
    matrix : sequence of int
        The network's grid, x, y, z.
    field_of_view_mm : sequence of float
        Its size, x, y, z, mm.
    results : path-like
        Folder of the study's results; its disk is measured.
    threads : int
        Cores to use.
    template_folder : path-like
        `workflow/report`.
    problems_path, page_path : path-like
        TSV with the columns patient, severity, file, problem, action, and one self-contained HTML page; written whether
        there are errors or not. Neither holds a name, number, age or date of a person's headers.
    verdict_path : path-like
        JSON {errors, warnings, patients}; written only without errors.
    today : datetime.date, optional
        For tests.

    Raises
    ------
    InputError
        There are errors; or the table cannot be read at all.
    """
    rows, faults = parse_cohort_table(table_path)
    refused = {row["patient"]: refused_columns(faults, row["patient"]) for row in rows}
    hoped = {row["patient"]: assume_well(row, refused[row["patient"]], eligibility, cohorts) for row in rows}
    reasons = {patient: _reason(row, eligibility, cohorts) for patient, row in hoped.items()}
    entering = [row for row in rows if not reasons[row["patient"]]]
    found = check_faults(faults, table_path)
    found += check_values(rows, refused, today or datetime.date.today())
    found += check_completeness(entering, refused)
    found += check_left_out(hoped.values(), reasons)
    found += check_shared_paths(entering)

    looked_at = _look_at_patients(entering, slice_thickness_mm, threads)
    for one in looked_at:
        found += one["found"]
    found += _same_scans(looked_at, {row["patient"]: row for row in entering}, slice_thickness_mm)
    found += _same_persons(looked_at)
    judged = Counter(kind for one in looked_at for kind in one["judged"])
    found = _once_for_the_cohort(found, judged, len(rows))

    members = {name: [] for name in ("train", "test")}
    for row in entering:
        if name := split(row["admission_date"], cohorts):
            members[name].append(row["patient"])
    if not faults:
        asked = {name: patients for name, patients in members.items() if cohorts[name]}
        found += check_cohort_sizes(asked, folds, _volumes(entering, looked_at), expansion)
    space = disk_space.estimate(
        _voxels(looked_at),
        len(members["train"]),
        len(entering),
        matrix,
        field_of_view_mm,
        copies,
        network,
        candidates * folds,
    )
    full = _disk(space, results)
    found += full

    problems = sorted(found, key=lambda one: (one["severity"], one["patient"]))
    write_problems(problems, problems_path)
    page = render_page(
        study=study,
        problems=problems,
        looked_at=looked_at,
        reasons=reasons,
        members=members,
        slice_thickness_mm=slice_thickness_mm,
        space=space,
        fits=not full,
        template_folder=template_folder,
    )
    write_atomically(page_path, page.encode())
    report_problems(problems, page_path)
    later = sum(reason.startswith(BY_INVESTIGATORS) for reason in reasons.values())
    unseen = f" ({later} more {BY_INVESTIGATORS}, not checked)" if later else ""
    announce(f"check of {plural(len(entering), 'patient')}{unseen}: {verdict_in_words(problems)}; see {page_path}")
    verdict = {"errors": 0, "warnings": len(problems), "patients": len(entering)}
    write_json(verdict_path, verdict)


def _reason(row, eligibility, cohorts):
    """Why a patient stays out, by a word of `REASONS` or in the investigators' words; "" for who enters."""
    if reason := ineligibility(row, eligibility):
        return reason
    dated = row["admission_date"] is not None
    if dated and not split(row["admission_date"], cohorts):
        return "outside_dates"
    if row["excluded"]:
        return f"{BY_INVESTIGATORS}: {row['excluded']}"
    return "" if dated else "missing_data"


def _look_at_patients(rows, slice_thickness_mm, threads):
    """Run `check_patient` for every row, several side by side; in the order of the rows."""

    def look(row):
        try:
            return check_patient(row, slice_thickness_mm)
        except Exception as error:  # one patient's odd files must not hide the others' problems
            where = "".join(traceback.format_tb(error.__traceback__))  # not the message: it may quote a header
            print(f"patient {row['patient']}: {type(error).__name__}, raised here:\n{where}")
            found = finding(
                row["patient"],
                f"haemex fails on this patient's files ({type(error).__name__})",
                "look at the files; if they are in order this is a fault of haemex: please report it with check.log",
                row["baseline_ct"],
            )
            return {
                "patient": row["patient"],
                "found": [found],
                "judged": set(),
                "scans": {},
                "volumes": {},
                "person": "",
            }

    looked_at = []
    progress = Progress("check", len(rows), every_s=5.0)
    progress.step(0)
    with ThreadPoolExecutor(max(1, threads) * PATIENTS_PER_THREAD) as pool:
        for done, one in enumerate(pool.map(look, rows), start=1):
            looked_at.append(one)
            progress.step(done)
    return looked_at


# --- the cohort as a whole -----------------------------------------------------------------------------------------


def _same_scans(looked_at, rows, slice_thickness_mm):
    """Find one scan under two patients or time points, by the pixels of the middle slice and then of all."""
    found, alike = [], defaultdict(list)
    for one in looked_at:
        for timepoint in TIMEPOINTS:
            scan = one["scans"].get(timepoint)
            if scan and scan["digest"]:
                alike[scan["digest"]].append((one["patient"], timepoint, scan["path"]))
    for scans in alike.values():
        # The same folder named twice is said already.
        if len({Path(path).resolve() for _, _, path in scans}) == 1:
            continue
        owners = {}
        for patient, timepoint, path in scans:
            # Synthetic haematomas in one real head share the slices that they do not reach.
            try:
                whole = whole_digest(rows[patient], timepoint, slice_thickness_mm)
            except InputError as error:  # only its middle slice was read before
                found.append(finding(patient, error.problem, error.action, error.file or path))
                continue
            other, other_timepoint, other_path = owners.setdefault(whole, (patient, timepoint, path))
            if Path(other_path).resolve() == Path(path).resolve():
                continue
            if other == patient:
                problem = "baseline and follow-up CT show the same pixels: one scan is given twice"
            else:
                problem = (
                    f"the {_NAMES[timepoint]} CT shows the same pixels as the {_NAMES[other_timepoint]} CT of patient "
                    f"{other} ({other_path}): one scan under two patients"
                )
            action = "look whose it is; name the other's own folder in the table, or take that patient out"
            found.append(finding(patient, problem, action, path))
    return found


def _same_persons(looked_at):
    """Find a PatientID under two or three patients; under more it is what an export put in for everybody."""
    owners = defaultdict(list)
    for one in looked_at:
        if one["person"]:
            owners[one["person"]].append(one["patient"])
    return [
        warning(
            patient,
            f"the headers state the same patient ID as those of {', '.join(p for p in patients if p != patient)}",
            "check that they are different persons: one person on both sides of the split would spoil the test",
        )
        for patients in owners.values()
        if 2 <= len(patients) <= SHARED_BY
        for patient in patients[1:]
    ]


def _once_for_the_cohort(found, judged, patients):
    """Say once what concerns a large part of the patients in the same way."""
    concerned = defaultdict(set)
    for one in found:
        concerned[one["kind"]].add(one["patient"])
    wide = []
    for kind, who in concerned.items():
        of = judged[kind] if kind in OF_THE_COHORT else patients
        if kind and len(who) >= AT_LEAST and len(who) >= LARGE_PART * of:
            if kind in OF_THE_COHORT:
                problem, action = OF_THE_COHORT[kind]
            else:
                first = next(one for one in found if one["kind"] == kind)
                problem, action = f"{first['problem']} (patient {first['patient']}, and others)", first["action"]
            wide.append((kind, warning("", f"in {len(who)} of {of} patients {problem}", action)))
    kinds = {kind for kind, _ in wide}
    return [one for _, one in wide] + [one for one in found if one["kind"] not in kinds]


def _volumes(entering, looked_at):
    """Baseline and follow-up volume, mL, of the patients of whom both are known."""
    stated = {row["patient"]: row["followup_volume_ml"] for row in entering}
    pairs = {}
    for one in looked_at:
        baseline = one["volumes"].get("baseline_mask")
        followup = one["volumes"].get("followup_mask", stated[one["patient"]])
        if baseline and followup is not None:
            pairs[one["patient"]] = baseline, followup
    return pairs


def _voxels(looked_at):
    """Voxels of every scan; where one could not be read, those of the median scan."""
    voxels = {
        timepoint: [one["scans"][timepoint]["voxels"] for one in looked_at if timepoint in one["scans"]]
        for timepoint in TIMEPOINTS
    }
    known = sorted(count for counts in voxels.values() for count in counts if count)
    usual = known[len(known) // 2] if known else 512 * 512 * 30
    return {timepoint: [count or usual for count in counts] for timepoint, counts in voxels.items()}


def _disk(space, results):
    """Compare what the study will write with the free space of its disk."""
    whole = sum(space.values()) * disk_space.MARGIN
    there = disk_space.used_bytes(results, leave_out=("phantom",))
    free = disk_space.free_bytes(results)
    words = disk_space.in_words
    announce(disk_space.in_sentence(space, there, free, results))
    if whole - there <= free:
        return []
    largest = max(space, key=space.get)
    return [
        finding(
            "",
            f"the study needs about {words(whole - there)} more than is there, and {words(free)} are free; the largest "
            f"part is `{largest}` with {words(space[largest])}",
            "make room, or run the study in a folder on a larger disk",
            results,
        )
    ]


# --- what is written -----------------------------------------------------------------------------------------------


def write_problems(problems, path):
    """Write the problems as a TSV table, whole or not at all.

    Parameters
    ----------
    problems : list of dict
        See `haemex.check_table.finding`.
    path : path-like
        Written even if there is none: a header alone.
    """
    write_table(path, [{name: " ".join(one[name].split()) for name in COLUMNS} for one in problems], COLUMNS)


def report_problems(problems, page_path):
    """Say the problems, then refuse if there are errors.

    Parameters
    ----------
    problems : list of dict
        Errors first; all of them into the log, the first errors on the terminal too.
    page_path : path-like
        Named for the rest.

    Raises
    ------
    InputError
        There is at least one error; how many, in how many patients.
    """
    for index, one in enumerate(problems):
        who = f"patient {one['patient']}" if one["patient"] else "cohort"
        where = f"{one['file']}: " if one["file"] else ""
        line = f"{one['severity']}, {who}: {where}{one['problem']}; {one['action']}"
        say = announce if one["severity"] == "error" and index < SHOWN_ERRORS else print
        say(line)
    errors = [one for one in problems if one["severity"] == "error"]
    if errors:
        raise InputError(
            verdict_in_words(problems),
            f"Open {page_path}: it lists everything that was found, and what to do",
        )


def verdict_in_words(problems):
    """Sum the problems up: "2 errors in 1 patient and 3 warnings"."""
    errors = [one for one in problems if one["severity"] == "error"]
    warnings = len(problems) - len(errors)
    patients = len({one["patient"] for one in errors} - {""})
    where = f" in {plural(patients, 'patient')}" if patients else ""
    parts = [f"{plural(len(errors), 'error')}{where}"] * bool(errors)
    parts += [plural(warnings, "warning")] * bool(warnings)
    return " and ".join(parts) or "no error and no warning"


def _heading(patient):
    """Name a patient on the page; a row without a usable code goes by its line."""
    if not patient:
        return "The cohort as a whole"
    line = re.fullmatch(r"line(\d+)", patient)
    return f"Line {line[1]} of the table" if line else f"Patient {patient}"


def render_page(*, study, problems, looked_at, reasons, members, slice_thickness_mm, space, fits, template_folder):
    """Fill the page.

    Parameters
    ----------
    study : str
        Its name.
    problems : list of dict
        See `haemex.check_table.finding`.
    looked_at : list of dict
        See `haemex.check_scans.check_patient`.
    reasons : dict of str to str
        By patient of the table, why it stays out; "" for who enters.
    members : dict of str to list of str
        `train` and `test`.
    slice_thickness_mm : float
        Slice thickness wanted, mm.
    space : dict of str to float
        From `haemex.disk_space.estimate`.
    fits : bool
        Whether there is room for it.
    template_folder : path-like
        `workflow/report`.

    Returns
    -------
    str
        One self-contained HTML page; it depends on neither day, machine nor free space.
    """
    environment = page_environment(template_folder)
    environment.filters["size"] = disk_space.in_words
    groups = defaultdict(list)
    for one in problems:
        groups[one["patient"]].append(one)
    by_patient = [
        (_heading(patient), found)
        for patient, found in sorted(groups.items(), key=lambda one: (one[0] != "", one[1][0]["severity"], one[0]))
    ]
    in_words = REASONS | {why: why for why in sorted(set(reasons.values()) - {"", *REASONS})}
    left_out = [
        {"reason": words, "patients": sorted(patient for patient, why in reasons.items() if why == reason)}
        for reason, words in in_words.items()
    ]
    return environment.get_template("check.html.j2").render(
        study=study,
        errors=sum(one["severity"] == "error" for one in problems),
        warnings=sum(one["severity"] == "warning" for one in problems),
        verdict=verdict_in_words(problems),
        groups=by_patient,
        looked_at=[
            one | {"heading": _heading(one["patient"])} for one in sorted(looked_at, key=lambda one: one["patient"])
        ],
        screened=len(reasons),
        entering=len(looked_at),
        members=members,
        left_out=[one for one in left_out if one["patients"]],
        thickness=f"{slice_thickness_mm:g} mm",
        space=space,
        fits=fits,
        whole=sum(space.values()) * disk_space.MARGIN,
        margin=disk_space.MARGIN,
    )
