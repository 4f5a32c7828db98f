"""One patient's scans and masks, held against each other and against the table, from headers, masks and single slices.

Nothing that a header says about a person leaves this module: differences are given in hours and days, and of names,
numbers, birth dates, sexes and ages only whether they agree.
"""

import datetime
import hashlib
import os
import re

import numpy as np

from haemex.check_table import MASK_OF, finding, warning
from haemex.cohort_table import FIRST_YEAR
from haemex.convert import read_nifti_scan, refuse_pin
from haemex.dicom import AIR_HU, read_hu, tag_values
from haemex.errors import InputError
from haemex.geometry import geometry_warnings
from haemex.nifti import is_nifti
from haemex.series import choose_series, list_series, plan_series, series_warnings
from haemex.shapes import even_mask
from haemex.volume import fit_mask, mask_volume_ml, mask_warnings

TIMEPOINTS = ("baseline", "followup")

# ASSUME: clocks of scanners, and times rounded in a table, differ by less than this.
INTERVAL_SLACK_H = 2.0
# ASSUME: a follow-up this little before its baseline is a swap of the two; more is another admission or a date shifted
# by the anonymisation of an export.
SWAP_H = 72.0
# ASSUME: a patient is scanned within two days of admission, transfers and midnights included.
ADMISSION_DAYS = 2
# ASSUME: beyond these ratios slices or pixels are another kind of image than the one asked for, or than the baseline.
THICKNESS_RATIO = 1.5
PIXEL_RATIO = 1.5
# ASSUME: acute blood has 40 to 100 HU (50 to 80 in its core; anaemia and partial volume lower it, clot raises it).
BLOOD_HU = (40.0, 100.0)
# ASSUME: brain around it has 20 to 40 HU: blood stands out by more than this.
MIN_CONTRAST_HU = 8.0
# ASSUME: a mask whose median lies beyond these is drawn on air or bone, not beside its haematoma.
HEAD_HU = (-150.0, 250.0)
SURROUNDINGS_MM = (3.0, 12.0)  # of the mask's edge: beyond partial volume, within the same part of the head
# ASSUME: growth or shrinkage beyond this, or a volume below this, is rather a wrong mask.
VOLUME_RATIO = 5.0
MIN_VOLUME_ML = 0.2

DATES = (
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("ContentDate", "ContentTime"),
    ("StudyDate", "StudyTime"),
)
NO_IDS = frozenset(("", "0", "ANON", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "UNKNOWN", "NONE", "REMOVED", "PATIENT"))


def check_patient(row, slice_thickness_mm):
    """Look at the scans and masks of a patient.

    Parameters
    ----------
    row : dict
        The patient's row of the cohort table.
    slice_thickness_mm : float
        As for `haemex.series.choose_series`, mm.

    Returns
    -------
    dict
        `patient`; `found`, a list of `haemex.check_table.finding`; `judged`, the kinds of finding that could have been
        made; `scans`, by time point: `series` (list of dict: what was found in the folder), `digest` of the middle
        slice, `voxels`; `volumes`, mL, by mask column; `person`, a digest of the PatientID ("" without one).
    """
    patient, found, judged, scans = row["patient"], [], set(), {}
    for timepoint in TIMEPOINTS:
        if row[f"{timepoint}_ct"]:
            scans[timepoint] = _look_at_scan(row, timepoint, slice_thickness_mm, found)
    readable = {timepoint: scan for timepoint, scan in scans.items() if scan["geometry"]}
    _compare_with_table(row, readable, found, judged)
    if len(readable) == 2:
        _compare_scans(row, readable, found, judged)
    volumes = _look_at_masks(row, readable, found)
    return {
        "patient": patient,
        "found": found,
        "judged": judged,
        "scans": {
            timepoint: {key: scan[key] for key in ("path", "series", "digest", "voxels")}
            for timepoint, scan in scans.items()
        },
        "volumes": volumes,
        "person": next((scan["person"]["PatientID"] for scan in readable.values() if scan["person"]), ""),
    }


# --- scans ---------------------------------------------------------------------------------------------------------


def _look_at_scan(row, timepoint, slice_thickness_mm, found):
    """Read the headers of a scan and one slice of it."""
    patient, path, pinned = row["patient"], row[f"{timepoint}_ct"], row[f"{timepoint}_series"]
    scan = {"path": path, "series": [], "geometry": None, "digest": None, "voxels": None, "person": None, "taken": None}
    try:
        if is_nifti(path):
            refuse_pin(path, pinned)
            hu, description = read_nifti_scan(path)
            scan |= {"geometry": description["geometry"], "slice": lambda index: hu[index], "start": None}
            scan["series"] = [_described(None, True, "")]
            odd = description["warnings"]
        else:
            series = list_series(path)
            scan["series"] = [_described(one, False, one.reason) for one in series]
            taken, others = choose_series(series, slice_thickness_mm, path, pinned)
            reasons = {one.label: one.reason for one in others}
            scan["series"] = [
                _described(one, one.label == taken.label, reasons.get(one.label, taken.reason)) for one in series
            ]
            slices, geometry = plan_series(taken)
            scan |= {"slice": lambda index: read_hu(slices[index][0]), "taken": taken, "geometry": geometry}
            scan["start"] = _start(taken.headers)
            scan["person"] = _person(taken.headers[0])
            odd = series_warnings(taken, others) + geometry_warnings(geometry)
            thickness = taken.slice_thickness_mm
            if thickness and not 1 / THICKNESS_RATIO <= thickness / slice_thickness_mm <= THICKNESS_RATIO:
                found.append(
                    warning(
                        patient,
                        f"slices of {thickness:g} mm where {slice_thickness_mm:g} mm are wanted",
                        "nothing, if the folder holds no better series; the network sees another kind of image",
                        path,
                    )
                )
        scan["voxels"] = int(np.prod(scan["geometry"]["shape_xyz"]))
        found += [warning(patient, one["problem"], one["action"], path) for one in odd]
        scan["digest"] = _digest(scan, only_middle=True)
    except InputError as error:
        found.append(finding(patient, error.problem, error.action, error.file or path))
    return scan


def _described(series, taken, reason):
    """Describe a series for the page; None is a NIfTI file."""
    if series is None:
        return {
            "label": "",
            "files": 1,
            "slice_thickness_mm": None,
            "kernel": None,
            "coverage_mm": None,
            "taken": taken,
            "reason": "a NIfTI file",
        }
    return {
        "label": series.label,
        "files": series.files,
        "slice_thickness_mm": series.slice_thickness_mm,
        "kernel": series.kernel,
        "coverage_mm": series.coverage_mm or None,
        "taken": taken,
        "reason": reason,
    }


def whole_digest(row, timepoint, slice_thickness_mm):
    """Digest every slice of a scan: for scans whose middle slices are the same.

    Parameters
    ----------
    row : dict
        The patient's row of the cohort table; the scan was read before.
    timepoint : {"baseline", "followup"}
    slice_thickness_mm : float
        As for `haemex.series.choose_series`, mm.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    path = row[f"{timepoint}_ct"]
    if is_nifti(path):
        hu, description = read_nifti_scan(path)
        return _digest({"geometry": description["geometry"], "slice": lambda index: hu[index]})
    taken, _ = choose_series(list_series(path), slice_thickness_mm, path, row[f"{timepoint}_series"])
    slices, geometry = plan_series(taken)
    return _digest({"geometry": geometry, "slice": lambda index: read_hu(slices[index][0])})


def _digest(scan, only_middle=False):
    """Digest the HU of slices from the lowest up, laid out so that no order of files, rows and columns matters."""
    across, down, step = np.array(scan["geometry"]["affine"])[:3, :3].T
    count = scan["geometry"]["acquired_slices"]
    upwards = range(count) if step[2] > 0 else range(count - 1, -1, -1)
    rows, columns = (1 if along[np.abs(along).argmax()] < 0 else -1 for along in (down, across))
    digest = hashlib.sha256()
    for index in [upwards[count // 2]] if only_middle else upwards:
        hu = np.maximum(scan["slice"](index), AIR_HU).astype("<i2")
        digest.update(np.ascontiguousarray(hu[::rows, ::columns]).tobytes())
    return digest.hexdigest()


def _start(headers):
    """When a series was scanned: (datetime, whether the time of day is known), or None."""
    known = []
    for header in headers:
        stamp = _text(header, "AcquisitionDateTime")
        if moment := _moment(stamp[:8], stamp[8:].split("+")[0].split("-")[0]):
            known.append(moment)
    for date, time in DATES:
        if known:
            break
        known = [moment for header in headers if (moment := _moment(_text(header, date), _text(header, time)))]
    return min(known) if known else None


def _text(header, keyword):
    return str(next(iter(tag_values(header, keyword)), "")).strip()


def _moment(date, time):
    """Turn DICOM's date and time into (datetime, whether the time is known); midnight sharp is no time."""
    day = re.fullmatch(r"(\d{4})[.:-]?(\d\d)[.:-]?(\d\d)", date)
    if not day or int(day[1]) < FIRST_YEAR:  # what is earlier, an export put in
        return None
    clock = re.match(r"(\d\d):?(\d\d):?(\d\d)?", time)
    hour, minute, second = (int(part or 0) for part in clock.groups()) if clock else (0, 0, 0)
    try:
        moment = datetime.datetime(*map(int, day.groups()), hour, minute, min(second, 59))
    except ValueError:
        return None
    return moment, bool(hour or minute or second)


def _person(header):
    """What a header says of the person, to be compared and never shown."""
    said = {keyword: _text(header, keyword).upper() for keyword in ("PatientSex", "PatientBirthDate", "PatientAge")}
    number = _text(header, "PatientID").upper()
    said["PatientID"] = "" if number in NO_IDS else hashlib.sha256(number.encode()).hexdigest()
    return said


def _years(age):
    """Turn DICOM's age (061Y, 732M) into years, None where it is none."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age)
    return int(match[1]) / {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]] if match else None


def _compare_with_table(row, scans, found, judged):
    """Hold dates, sex and age of the headers against the table."""
    patient, baseline = row["patient"], scans.get("baseline")
    if baseline and baseline["start"] and row["admission_date"] is not None:
        judged.add("admission")
        days = (baseline["start"][0].date() - row["admission_date"]).days
        if abs(days) > ADMISSION_DAYS:
            found.append(
                warning(
                    patient,
                    f"the baseline CT was scanned {abs(days)} days {'after' if days > 0 else 'before'} "
                    "`admission_date`, by its headers",
                    "check the date and the folder, unless an anonymised export has shifted its dates",
                    row["baseline_ct"],
                    kind="admission",
                )
            )
    for kind, column, differs, problem in (
        ("sex", "sex", _other_sex, "the headers state the other sex than the table"),
        ("age", "age_years", _other_age, "the age in the headers differs from `age_years` by more than a year"),
    ):
        verdicts = {
            timepoint: differs(scan["person"], row[column])
            for timepoint, scan in scans.items()
            if scan["person"] and row[column] is not None
        }
        if any(verdict is not None for verdict in verdicts.values()):
            judged.add(kind)
        if wrong := [timepoint for timepoint, verdict in verdicts.items() if verdict]:
            where = "" if len(wrong) == len(scans) else f" ({wrong[0].replace('followup', 'follow-up')} alone)"
            found.append(
                warning(
                    patient,
                    problem + where,
                    f"check `{column}`, and that the folder is this patient's",
                    row[f"{wrong[0]}_ct"],
                    kind=kind,
                )
            )


def _other_sex(person, sex):
    """Whether a header states the other sex; None where it states none."""
    return person["PatientSex"].lower() != sex if person["PatientSex"] in ("M", "F") else None


def _other_age(person, age_years):
    """Whether a header states another age; None where it states none."""
    age = _years(person["PatientAge"])
    if age is None:
        return None
    # ASSUME: whole years on either side of a birthday differ by one; an export may write 89 or 90 for all above.
    return abs(age - age_years) >= 2 and min(age, age_years) < 89


def _compare_scans(row, scans, found, judged):
    """Hold baseline and follow-up against each other: order, interval, person, kind of image."""
    baseline, followup = scans["baseline"], scans["followup"]
    where = row["followup_ct"]
    if baseline["start"] and followup["start"]:
        judged |= {"interval", "same time"}
        found += _interval(row, baseline["start"], followup["start"], where)
    if baseline["person"] and followup["person"]:
        differing = []
        for keyword, what in (
            ("PatientID", "patient IDs"),
            ("PatientSex", "sexes"),
            ("PatientBirthDate", "birth dates"),
        ):
            both = baseline["person"][keyword], followup["person"][keyword]
            if all(both):
                judged.add("person")
                differing += [what] * (both[0] != both[1])
        if differing:
            found.append(
                warning(
                    row["patient"],
                    f"the headers of baseline and follow-up state different {_and(differing)}",
                    "check that both folders are this patient's",
                    where,
                    kind="person",
                )
            )
    kinds = baseline["taken"], followup["taken"]
    if all(kinds):
        thick = [one.slice_thickness_mm for one in kinds]
        if all(thick) and max(thick) / min(thick) > THICKNESS_RATIO:
            found.append(
                warning(
                    row["patient"],
                    f"baseline slices of {thick[0]:g} mm, follow-up slices of {thick[1]:g} mm: volumes may "
                    "differ by that alone",
                    "nothing, if the folders hold no better series; else pin one (`followup_series`)",
                    where,
                )
            )
        if kinds[0].bone != kinds[1].bone:
            which = "follow-up" if kinds[1].bone else "baseline"
            found.append(
                warning(
                    row["patient"],
                    f"the {which} alone has a bone kernel",
                    "nothing, if the folder holds no better series",
                    where,
                )
            )
    pixel = [np.sqrt(scan["geometry"]["area_mm2"]) for scan in (baseline, followup)]
    if max(pixel) / min(pixel) > PIXEL_RATIO:
        found.append(
            warning(
                row["patient"],
                f"baseline pixels of {pixel[0]:.2f} mm, follow-up pixels of {pixel[1]:.2f} mm",
                "check that both are head scans of this study",
                where,
            )
        )


def _and(words):
    """Join words: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _interval(row, baseline, followup, where):
    """Hold the time between two scans against the table; times known to the day leave a day's room."""
    patient, stated = row["patient"], row["ct_to_followup_h"]
    if baseline[1] and followup[1]:
        hours = least = most = (followup[0] - baseline[0]).total_seconds() / 3600
        shown = f"{abs(hours):.1f} h" if abs(hours) < SWAP_H else f"{abs(hours) / 24:.0f} days"
    else:
        days = (followup[0].date() - baseline[0].date()).days
        hours, least, most = 24.0 * days, 24.0 * days - 24, 24.0 * days + 24
        shown = f"{abs(days)} day{'s' * (abs(days) != 1)}"
    if most <= 0 and hours == 0:
        return [
            warning(
                patient,
                "baseline and follow-up were scanned at the same time, by their headers",
                "name the two different scans in the table",
                where,
                kind="same time",
            )
            | {"severity": "error"}
        ]
    if hours < 0 and -hours <= SWAP_H:
        return [
            finding(
                patient,
                f"the follow-up CT was scanned {shown} before the baseline CT, by their headers",
                "swap the two in the table, or name the right folders",
                where,
            )
        ]
    if hours < 0 or (stated is not None and not least - INTERVAL_SLACK_H <= stated <= most + INTERVAL_SLACK_H):
        order = "before" if hours < 0 else "after"
        table = "" if stated is None else f", and `ct_to_followup_h` is {stated:g}"
        return [
            warning(
                patient,
                f"the follow-up CT was scanned {shown} {order} the baseline CT, by their headers{table}",
                "check the column and the folders, unless an anonymised export has shifted its dates",
                where,
                kind="interval",
            )
        ]
    return []


# --- masks ---------------------------------------------------------------------------------------------------------


def _look_at_masks(row, scans, found):
    """Lay the masks on their scans; return their volumes, mL, by column."""
    patient, masks, volumes = row["patient"], {}, {}
    for column, scan_column in MASK_OF.items():
        path, scan = row[column], scans.get(scan_column.removesuffix("_ct"))
        if not path:
            continue
        if not os.path.isfile(path):
            found.append(finding(patient, f"`{column}`: there is no such file", "check the path in the table", path))
        elif scan:  # without its scan a mask cannot be judged
            try:
                mask, acquired = fit_mask(path, scan["geometry"], empty_allowed=column == "baseline_mask_rater2")
                masks[column] = mask, acquired
                volumes[column] = mask_volume_ml(mask, scan["geometry"], acquired)
                for odd in mask_warnings(mask, scan["geometry"], acquired):
                    found.append(warning(patient, odd["problem"], odd["action"], path))
                if mask.any() and scan["digest"]:
                    found += [
                        {**one, "patient": patient, "file": str(path)}
                        for one in _judge_density(mask, acquired, scan["geometry"], scan["slice"])
                    ]
            except InputError as error:
                found.append(finding(patient, error.problem, error.action, error.file or path))
    for column, volume in volumes.items():
        if 0 < volume < MIN_VOLUME_ML:
            found.append(
                warning(patient, f"`{column}` holds {volume:.3g} mL", "check that it is the haematoma", row[column])
            )
    first, second = volumes.get("baseline_mask"), volumes.get("followup_mask")
    if first and second and not 1 / VOLUME_RATIO <= second / first <= VOLUME_RATIO:
        found.append(
            warning(
                patient,
                f"{first:.1f} mL at baseline, {second:.1f} mL at follow-up",
                "check both masks: so large a change is rare",
                row["followup_mask"],
            )
        )
    if volumes.get("baseline_mask_rater2") and first:
        readings = [masks[column] for column in ("baseline_mask", "baseline_mask_rater2")]
        if readings[0][1] != readings[1][1]:
            geometry = scans["baseline"]["geometry"]
            readings = [(even_mask(mask, geometry) if acquired else mask, False) for mask, acquired in readings]
        if not (readings[0][0] & readings[1][0]).any():
            found.append(
                warning(
                    patient,
                    "the second reader's mask and the first one have no voxel in common",
                    "check that both belong to this scan",
                    row["baseline_mask_rater2"],
                )
            )
    return volumes


def _judge_density(mask, acquired, geometry, hu_of):
    """Find a mask that does not lie on blood, in the slice in which it is largest; see `finding`.

    `mask` is (z, y, x); `hu_of(index)` gives an acquired slice, (y, x), HU.
    """
    across, down = np.linalg.norm(np.array(geometry["affine"])[:3, :2], axis=0)
    positions = np.array(geometry["acquired_positions_mm"])
    heights = positions if acquired else np.linspace(positions[0], positions[-1], len(mask))
    index = int(mask.sum(axis=(1, 2)).argmax())

    def slice_near(height):
        return hu_of(int(np.abs(positions - height).argmin()))

    drawn, here = mask[index].astype(bool), slice_near(heights[index])
    inside, around = _densities(drawn, here, (down, across))
    if _on_blood(inside, around):
        return []
    opposite = slice_near(heights[len(mask) - 1 - index])
    for how, flipped, hu in (
        ("left to right", drawn[:, ::-1], here),
        ("front to back", drawn[::-1], here),
        ("head to foot (slices in reverse order)", drawn, opposite),
    ):
        there = _densities(flipped, hu, (down, across))
        if _on_blood(*there):
            return [
                warning(
                    "",
                    f"the mask looks mirrored {how}: it lies on {inside:.0f} HU, its mirror image on {there[0]:.0f} HU",
                    "look at mask and CT in one viewer, and export the mask again with the orientation of its CT",
                )
            ]
    low, high = HEAD_HU
    median = f"in the slice in which it is largest the median is {inside:.0f} HU"
    if inside < low:
        return [finding("", f"the mask lies on air, outside the head: {median}", "check that it belongs to this scan")]
    if inside > high:
        return [finding("", f"the mask lies on bone or metal: {median}", "check that it belongs to this scan")]
    if inside < BLOOD_HU[0]:
        problem = f"the mask lies on tissue less dense than blood: {median}, where blood has 40 to 100 HU"
    elif inside > BLOOD_HU[1]:
        problem = f"the mask lies on something denser than blood: {median}, where blood has 40 to 100 HU"
    else:
        problem = f"the mask lies on brain as dense as its surroundings: {median}, around it {around:.0f} HU"
    return [warning("", problem, "look at mask and CT in one viewer: do they belong together?")]


def _densities(drawn, hu, pixel_mm):
    """Median HU under a mask, and of the soft tissue around it (None where there is too little)."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
    reach = [int(SURROUNDINGS_MM[1] / size) + 1 for size in pixel_mm]
    window = (
        slice(max(rows[0] - reach[0], 0), rows[-1] + reach[0] + 1),
        slice(max(columns[0] - reach[1], 0), columns[-1] + reach[1] + 1),
    )
    distance = distance_transform_edt(~drawn[window], sampling=pixel_mm)
    near = hu[window][(distance > SURROUNDINGS_MM[0]) & (distance <= SURROUNDINGS_MM[1])]
    soft = near[(near > 0) & (near <= BLOOD_HU[1])]
    return float(np.median(hu[drawn])), float(np.median(soft)) if soft.size >= 20 else None


def _on_blood(inside, around):
    low, high = BLOOD_HU
    return low <= inside <= high and (around is None or inside - around >= MIN_CONTRAST_HU)
