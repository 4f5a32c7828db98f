"""Which series of a study folder is the head CT: headers alone, no geometry but positions along the normal."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haemex.dicom import is_lossy, read_headers, read_hu, tag_number, tag_text, tag_values, tag_vector, undecodable
from haemex.errors import InputError
from haemex.geometry import HEAD_COVERAGE_MM, MIN_SLICES, refuse_gaps, stack_geometry
from haemex.nifti import is_nifti
from haemex.series_kind import (
    NO_POSITION,
    PINNABLE,
    REFORMAT,
    SECONDARY,
    TOO_LONG,
    image_normal,
    is_bone,
    unfit_image,
    unfit_series,
)

# ASSUME: what covers more is no scan of the head alone.
MAX_HEAD_MM = 350.0
SAME_POSITION_MM = 0.01
PLANES = ("sagittal", "coronal", "axial")  # by the axis that the normal is nearest to
LISTED = 12  # series named in an error


@dataclass(frozen=True)
class Series:
    """One series of a folder, or the part of it that belongs together.

    Attributes
    ----------
    headers : tuple of pydicom.Dataset
        Headers without pixels, in the order of their positions; see `haemex.dicom.read_headers`. None for files so
        damaged that they have no header.
    label : str
        Unique within the folder, what a series is pinned by in the cohort table: the SeriesNumber ("3"), "3.1", "3.2"
        where several share it, "x1", "x2" without one.
    number : int or None
        SeriesNumber.
    files : int
        How many files.
    matrix : tuple of int or None
        Columns and rows.
    slice_thickness_mm : float or None
        Median of SliceThickness, mm.
    kernel : str or None
        ConvolutionKernel, its first value.
    bone : bool
        A kernel made for bone or lung.
    derived : bool
        ImageType says DERIVED.
    plane : str or None
        "axial", "coronal" or "sagittal", the nearest; None where the images do not say how they lie.
    slices : int
        How many images: the files, or the frames of multi-frame files.
    coverage_mm : float
        From the first to the last slice along the normal, mm.
    reason : str
        Why it is not the series to take; "" where nothing speaks against it.
    pinnable : bool
        The cohort table may ask for it in spite of the reason.
    pinned : bool
        The cohort table asked for it; `reason` then holds why it would not have been taken, "" if it would.
    damaged : tuple of haemex.dicom.Damaged
        Files of this series that cannot be read.
    """

    headers: tuple
    label: str
    number: int | None
    files: int
    matrix: tuple | None
    slice_thickness_mm: float | None
    kernel: str | None
    bone: bool
    derived: bool
    plane: str | None
    slices: int
    coverage_mm: float
    reason: str
    pinnable: bool = True
    pinned: bool = False
    damaged: tuple = ()

    def __str__(self):
        thickness = "unknown thickness" if self.slice_thickness_mm is None else f"{self.slice_thickness_mm:g} mm"
        frames = f"{self.slices} frames in " if self.slices > self.files else ""
        return f"series {self.label} ({frames}{self.files} file{'s' * (self.files != 1)}, {thickness})"

    def summary(self):
        """Return label, number, files and reason: what may be told of a series without telling who it shows."""
        return {"label": self.label, "number": self.number, "files": self.files, "reason": self.reason}


def find_series(folder, slice_thickness_mm, wanted=None):
    """Choose the axial, original, non-contrast head CT series of a folder, from headers alone.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders. Names mean nothing; what is no DICOM image is ignored.
    slice_thickness_mm : float
        Of several fitting series the one nearest to this is taken, mm.
    wanted : str, optional
        Label of the series to take, as the cohort table pins it.

    Returns
    -------
    taken : Series
        The series.
    others : list of Series
        The rest, each with its reason.

    Raises
    ------
    InputError
        No series fits, or several fit equally well, or a file is damaged.
    """
    return choose_series(list_series(folder), slice_thickness_mm, folder, wanted)


def list_series(folder):
    """Read the headers of a folder and sort them into series.

    One SeriesInstanceUID may hold images of several kinds (a scout, a screen): they are kept apart by what speaks
    against them. Images whose positions repeat or interleave are split by what tells two stacks apart: direction, field
    of view, kernel, thickness, acquisition.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders.

    Returns
    -------
    list of Series
        By series number, each with a label that does not depend on the names of the files.

    Raises
    ------
    InputError
        There is no folder, or no DICOM image in it.
    """
    headers, damaged = read_headers(folder)
    groups = {}
    for header in headers:
        groups.setdefault((str(header.get("SeriesInstanceUID", "")), unfit_image(header)), []).append(header)
    if not groups:
        rest = Counter(one.problem for one in damaged)
        problem = "there is no DICOM image in this folder" + "".join(f"; {n} x {what}" for what, n in rest.items())
        inside = any(map(is_nifti, Path(folder).iterdir()))
        action = "name the NIfTI file, not its folder" if inside else "check the path in the cohort table"
        raise InputError(problem, action, folder)
    series = []
    for (_, reason), images in groups.items():
        splits = not reason or reason in PINNABLE
        series += [_series(part, reason) for part in (_stacks(images) if splits else [images])]
    places = {_place(header.filename) for header in headers}
    return _label(series + _damaged_series([one for one in damaged if not one.perhaps or _place(one.path) in places]))


def _place(path):
    """Folder and suffix: what empty files share with the images they may have been."""
    return Path(path).parent, Path(path).suffix.lower()


def choose_series(series, slice_thickness_mm, folder, wanted=None):
    """Choose among the series of a folder.

    A soft kernel goes before a bone kernel, then the slice thickness nearest to the one wanted, then original images
    before derived ones.

    Parameters
    ----------
    series : list of Series
        From `list_series`.
    slice_thickness_mm : float
        Slice thickness wanted, mm.
    folder : path-like
        Named in errors.
    wanted : str, optional
        Label of the series to take, as the cohort table pins it. It goes before every rule of preference, not before
        what makes a series unusable (not CT, no position, not axial).

    Returns
    -------
    taken : Series
        The series.
    others : list of Series
        The rest, each with its reason.

    Raises
    ------
    InputError
        None fits, several fit equally well, or those that fit are of several patients or studies.
    """
    if not wanted:
        return _by_rule(series, slice_thickness_mm, folder)
    taken = _pinned(series, str(wanted).strip(), folder)
    _refuse_fragments(taken, series, asked_for=True)
    try:
        by_rule, others = _by_rule(series, slice_thickness_mm, folder)
        reasons = {one.label: one.reason for one in (by_rule, *others)}
    except InputError:
        reasons = {one.label: one.reason for one in series}
    others = [
        replace(one, reason=reasons[one.label] or f"series {taken.label} is pinned in the cohort table")
        for one in series
        if one is not taken
    ]
    return replace(taken, pinned=True, reason=reasons[taken.label]), others


def _by_rule(series, slice_thickness_mm, folder):
    """Choose without a label."""
    fitting = [one for one in series if not one.reason]
    if not fitting:
        raise InputError(
            f"no axial non-contrast head CT series in this folder: {_listing(series)}",
            _how_to_pin([one for one in series if one.pinnable], "if one of them is right, ")
            or "give the folder of the head CT, or the scan as NIfTI in Hounsfield units",
            folder,
        )
    _refuse_mixture(fitting, folder)
    whole = [one for one in fitting if one.coverage_mm >= HEAD_COVERAGE_MM] or fitting

    def rank(one):
        thickness = one.slice_thickness_mm
        off = float("inf") if thickness is None else round(abs(thickness - slice_thickness_mm), 1)
        return one.bone, off, one.derived

    best = min(map(rank, whole))
    equal = [one for one in whole if rank(one) == best]
    if len(equal) > 1:
        raise InputError(
            f"{len(equal)} series fit equally well: " + "; ".join(map(str, equal)), _how_to_pin(equal), folder
        )
    taken = equal[0]
    _refuse_fragments(taken, series)

    def lost(one):
        if one.reason:
            return one
        if not any(one is other for other in whole):
            return replace(one, reason=f"covers only {one.coverage_mm:.0f} mm")
        if one.bone and not taken.bone:
            return replace(one, reason="bone kernel")
        if rank(one)[1] != best[1]:
            mine = "unknown" if one.slice_thickness_mm is None else f"{one.slice_thickness_mm:g} mm"
            return replace(one, reason=f"slice thickness {mine}, farther from {slice_thickness_mm:g} mm")
        return replace(one, reason="derived images, where original ones are there")

    return taken, [lost(one) for one in series if one is not taken]


def _pinned(series, wanted, folder):
    """Return the series that the cohort table asks for."""
    labels = {one.label: one for one in series}
    whole = wanted.removesuffix(".0")  # a spreadsheet's way to write 3
    one = labels.get(wanted) or labels.get(whole)
    if one is None:
        raise InputError(
            f"there is no series {wanted} in this folder: {_listing(series)}",
            "put one of these labels into `baseline_series` (or `followup_series`) of the cohort table",
            folder,
        )
    if one.reason and not one.pinnable:
        raise InputError(
            f"{one} is pinned in the cohort table and cannot be used: {one.reason}",
            "pin another series, or leave the cell empty",
            folder,
        )
    return one


def _listing(series):
    """Name series with what speaks against them."""
    named = [f"{one}: {one.reason}" if one.reason else str(one) for one in series[:LISTED]]
    more = len(series) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _how_to_pin(series, condition=""):
    """Say how one of several series is asked for; "" without any."""
    if not series:
        return ""
    best = max(series, key=lambda one: one.slices).label if condition else series[0].label
    where = "into `baseline_series` (or `followup_series`) of the cohort table"
    return f"{condition}put its label, e.g. {best}, {where}"


def series_warnings(taken, others=()):
    """Say what is odd about the choice of a series.

    Parameters
    ----------
    taken : Series
        From `choose_series`.
    others : list of Series
        The rest.

    Returns
    -------
    list of dict
        `problem` and `action`; empty where all is well.
    """
    found = []
    if taken.pinned and taken.reason:
        problem = f"series {taken.label} is pinned in the cohort table against the rule: {taken.reason}"
        found.append({"problem": problem, "action": "nothing, if this series is meant"})
    if taken.bone:
        problem = f"series {taken.label} is a reconstruction for bone or lung: noisy, with sharpened edges"
        found.append({"problem": problem, "action": "export the soft-tissue reconstruction, if there is one"})
    if any(map(is_lossy, taken.headers)):
        problem = "the images were compressed with loss: their Hounsfield units are not exact"
        found.append({"problem": problem, "action": "export the original images, if they are kept"})
    if harmless := [damage for one in others for damage in one.damaged]:
        problem = f"{len(harmless)} damaged file{'s' * (len(harmless) > 1)} of other series"
        found.append({"problem": problem, "action": "nothing, or copy the study again"})
    return found


def plan_series(series):
    """Put the slices of a series in order and work out its geometry, from headers alone.

    Parameters
    ----------
    series : Series
        As `find_series` takes it.

    Returns
    -------
    slices : list of list of pydicom.Dataset
        Headers in index order; more than one where images share a position.
    geometry : dict
        See `stack_geometry`.

    Raises
    ------
    InputError
        Matrix, pixel size or orientation differ within the series, slices are missing, or the slices are not stacked
        along a straight line.
    """
    first = series.headers[0]
    for header in series.headers:
        _refuse_difference(header, first)
    orientation = _orientation(series.headers)
    places = _positions(series.headers, orientation)
    slices, before = [], -np.inf
    # Files with the same identity sort alike whatever their names.
    for index in sorted(range(len(places)), key=lambda i: (places[i], _identity(series.headers[i]))):
        if places[index] - before <= SAME_POSITION_MM:
            slices[-1].append(series.headers[index])
        else:
            slices.append([series.headers[index]])
        before = places[index]
    folder = Path(first.filename).parent
    if len(slices) < MIN_SLICES:
        raise InputError(f"only {len(slices)} slices at different positions", "export the whole series", folder)
    across, down = orientation.reshape(2, 3)
    across, down = across / np.linalg.norm(across), down / np.linalg.norm(down)
    to_ras = np.array([-1.0, -1.0, 1.0])  # DICOM counts x to the left and y to the back
    row_spacing, column_spacing = map(float, first.PixelSpacing)
    geometry = stack_geometry(
        np.array([one[0].ImagePositionPatient for one in slices], float) * to_ras,
        across * to_ras * column_spacing,
        down * to_ras * row_spacing,
        first.Columns,
        first.Rows,
        folder,
    )
    if not geometry["even"]:
        thicknesses = [tag_number(one[0], "SliceThickness") for one in slices]
        refuse_gaps(np.array(geometry["acquired_positions_mm"]), thicknesses, folder)
    _refuse_second_images(slices)
    return slices, geometry


def _identity(header):
    """What tells an image from any other, in whatever file it stands."""
    return str(header.get("SOPInstanceUID", "")), header.frame or 0


def _refuse_second_images(slices):
    """Refuse different images at one position; copies of one file are harmless."""
    for index, same in enumerate(slices):
        if len(same) == 1:
            continue
        shown = read_hu(same[0])
        for other in same[1:]:
            if not np.array_equal(read_hu(other), shown):
                raise InputError(
                    f"a second image at the position of slice {index + 1} shows something else",
                    "keep one acquisition in the folder",
                    other.filename,
                )


def _damaged_series(damaged):
    """Make an entry for the unreadable files of each series, so that they are named and never forgotten."""
    groups = {}
    for one in damaged:
        groups.setdefault((one.series_uid or "", one.perhaps), []).append(one)
    return [
        Series(
            headers=(),
            label="",
            number=None,
            files=len(group),
            matrix=None,
            slice_thickness_mm=None,
            kernel=None,
            bone=False,
            derived=False,
            plane=None,
            slices=0,
            coverage_mm=0.0,
            reason=group[0].problem,
            pinnable=False,
            damaged=tuple(group),
        )
        for group in groups.values()
    ]


def _label(series):
    """Sort series by number and give each its label, whatever the names of the files."""

    def order(one):
        acquisitions = [tag_number(header, "AcquisitionNumber") or 0.0 for header in one.headers]
        uid = str(one.headers[0].SeriesInstanceUID) if one.headers else ""
        first = min(map(_identity, one.headers), default=("", 0))
        return not one.headers, one.number is None, one.number or 0, min(acquisitions, default=0), uid, first

    series = sorted(series, key=order)
    counts = Counter(one.number for one in series)
    seen = Counter()
    labelled = []
    for one in series:
        seen[one.number] += 1
        label = f"x{seen[None]}" if one.number is None else str(one.number)
        if one.number is not None and counts[one.number] > 1:
            label += f".{seen[one.number]}"
        labelled.append(replace(one, label=label))
    return labelled


def _orientation(headers):
    """Common orientation of a stack: the median, since single digits differ from slice to slice."""
    return np.median([np.array(header.ImageOrientationPatient, float) for header in headers], axis=0)


def _positions(headers, orientation):
    """Position of every image along the normal, mm."""
    return np.array([header.ImagePositionPatient for header in headers], float) @ image_normal(orientation)


def _stacks(headers):
    """Split images that lie upon or between each other into the stacks they came from."""
    repetitions = _repetitions(headers)
    if repetitions == 1 and not _crowded(headers):
        return [headers]
    first = headers[0]

    def turned(header):
        return bool(np.abs(np.subtract(header.ImageOrientationPatient, first.ImageOrientationPatient)).max() > 0.01)

    def framed(header):
        spacing, other = tag_vector(header, "PixelSpacing", 2), tag_vector(first, "PixelSpacing", 2)
        alike = spacing is not None and other is not None and np.allclose(spacing, other, rtol=1e-3)
        return header.get("Rows"), header.get("Columns"), alike

    def made(header):
        return tag_text(header, "ConvolutionKernel"), tag_number(header, "SliceThickness"), tag_number(header, "KVP")

    for tell_apart in (turned, framed, made):
        parts = _parts(headers, tell_apart)
        if _overlap(parts):
            return [stack for part in parts for stack in _stacks(part)]
    parts = _parts(headers, lambda header: tag_text(header, "AcquisitionNumber"))
    # What repeats more than once is no second scan but a dynamic one.
    twice = repetitions <= 2 and _overlap(parts) and all(_repetitions(part) == 1 for part in parts)
    return parts if twice else [headers]


def _parts(headers, key):
    parts = {}
    for header in headers:
        parts.setdefault(key(header), []).append(header)
    return list(parts.values())


def _overlap(parts):
    """Whether whole stacks lie upon each other; parts that follow one another are one scan."""
    if len(parts) < 2 or any(len(part) < MIN_SLICES for part in parts):
        return False
    normal = image_normal(np.array(parts[0][0].ImageOrientationPatient, float))
    places = [np.array([header.ImagePositionPatient for header in part], float) @ normal for part in parts]
    return any(
        np.count_nonzero((one >= other.min() - SAME_POSITION_MM) & (one <= other.max() + SAME_POSITION_MM)) > 2
        for one in places
        for other in places
        if one is not other
    )


def _crowded(headers):
    """Whether slices lie much closer than they are thick."""
    thicknesses = [tag_number(header, "SliceThickness") for header in headers]
    steps = np.diff(np.sort(_positions(headers, _orientation(headers))))
    return bool(steps.size) and None not in thicknesses and bool(steps.min() < 0.6 * max(thicknesses))


def _repetitions(headers):
    """How many images lie at the commonest position, copies of a file counted once."""
    places = _positions(headers, _orientation(headers))
    places = np.sort([place for place, _ in {(p, _identity(one)) for p, one in zip(places, headers, strict=True)}])
    groups = np.cumsum(np.diff(places, prepend=places[0]) > SAME_POSITION_MM)
    return int(np.bincount(groups).max())


def _series(headers, reason):
    """Describe a group of headers."""
    placed = not reason or reason in PINNABLE
    if placed:
        places = _positions(headers, _orientation(headers))
        headers = [headers[i] for i in sorted(range(len(places)), key=lambda i: (places[i], _identity(headers[i])))]
    else:
        headers = sorted(headers, key=_identity)
    header = headers[len(headers) // 2]
    thicknesses = [t for t in (tag_number(one, "SliceThickness") for one in headers) if t]
    kernel = next((str(value).strip() for value in tag_values(header, "ConvolutionKernel")), None) or None
    number = tag_number(header, "SeriesNumber")
    coverage = float(np.ptp(places)) if placed else 0.0
    if placed:
        if len(headers) < MIN_SLICES:
            reason = f"only {len(headers)} slice{'s' if len(headers) > 1 else ''}"
        elif _repetitions(headers) > 2:
            reason = "the same positions again and again (dynamic or perfusion)"
        else:
            reason = reason or unfit_series(headers) or (TOO_LONG if coverage > MAX_HEAD_MM else "")
    orientation = tag_vector(header, "ImageOrientationPatient", 6)
    return Series(
        headers=tuple(headers),
        label="",
        number=None if number is None else int(number),
        files=len({one.filename for one in headers}),
        matrix=(int(header.Columns), int(header.Rows)) if header.get("Columns") and header.get("Rows") else None,
        slice_thickness_mm=float(np.median(thicknesses)) if thicknesses else None,
        kernel=kernel,
        bone=is_bone(header, kernel),
        derived="DERIVED" in {str(kind).strip().upper() for kind in tag_values(header, "ImageType")},
        plane=None if orientation is None else PLANES[int(np.abs(image_normal(orientation)).argmax())],
        slices=len(headers),
        coverage_mm=coverage,
        reason=reason,
        pinnable=not reason or reason in PINNABLE,
    )


def _refuse_mixture(fitting, folder):
    """Refuse a folder in which head CT series of several patients or studies stand side by side."""
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        owners = {str(header.get(keyword, "")) for one in fitting for header in one.headers}
        if len(owners) > 1:
            raise InputError(
                f"the folder holds head CT of {len(owners)} {what}: " + "; ".join(map(str, fitting)),
                "name the folder of one scan in the cohort table",
                folder,
            )


def _refuse_fragments(taken, series, asked_for=False):
    """Refuse a series of which images are damaged, without position or set apart: slices would be missing unseen.

    `asked_for`: the cohort table names the series; it may then be a part of what one export holds.
    """
    uid = str(taken.headers[0].get("SeriesInstanceUID", ""))
    places = {_place(header.filename) for header in taken.headers}
    for damage in (damage for one in series for damage in one.damaged):
        if damage.series_uid in (None, uid) and (not damage.perhaps or _place(damage.path) in places):
            raise InputError(
                f"{damage.problem}; it may be an image of series {taken.label}",
                "copy the scan again, or take the file out of the folder if it is no part of it",
                damage.path,
            )
    for one in series:
        if not one.headers or one is taken or str(one.headers[0].get("SeriesInstanceUID", "")) != uid:
            continue
        if one.reason == NO_POSITION:
            raise InputError(
                f"{one.slices} of {one.slices + taken.slices} images of the series have no "
                "ImagePositionPatient or ImageOrientationPatient",
                "export the series again",
                one.headers[0].filename,
            )
        if one.slices < MIN_SLICES and _continues(one, taken):
            raise InputError(
                f"series {one.label} ({one.slices} slices, {one.reason}) continues series {taken.label} of the same "
                "export, which would lack them",
                "export the series again, or correct ImageType of these images",
                one.headers[0].filename,
            )
        if not asked_for and _same_make(one, taken) and _continues(one, taken):
            raise InputError(
                f"series {one.label} ({one.slices} slices{one.reason and ', '}{one.reason}) goes on where series "
                f"{taken.label} of the same export ends: the head may be in two parts",
                "export the scan in one part, or put the label of the part that shows all of the haematoma into "
                "`baseline_series` (or `followup_series`) of the cohort table",
                one.headers[0].filename,
            )


def _same_make(one, taken):
    """Whether two parts of one export can be one scan: neither another reconstruction of it, nor one with contrast."""
    # Of what speaks against a part, only the type of its images can be wrong for some slices of a scan.
    return one.reason in ("", REFORMAT, SECONDARY) and (one.kernel, one.slice_thickness_mm) == (
        taken.kernel,
        taken.slice_thickness_mm,
    )


def _continues(one, taken):
    """Whether axial slices lie where the next ones of a stack would be."""
    vectors = [tag_vector(header, "ImagePositionPatient", 3) for header in one.headers]
    if one.plane != "axial" or any(vector is None for vector in vectors) or one.matrix != taken.matrix:
        return False
    orientation = _orientation(taken.headers)
    stack = np.unique(_positions(taken.headers, orientation))
    beyond = np.maximum(stack[0] - np.array(vectors) @ image_normal(orientation), 0)
    beyond = np.maximum(beyond, np.array(vectors) @ image_normal(orientation) - stack[-1])
    return bool(((beyond > SAME_POSITION_MM) & (beyond < 1.5 * np.median(np.diff(stack)))).any())


def _refuse_difference(header, first):
    """Refuse a slice that differs from the first in matrix, pixel size or orientation, or whose pixels are no good."""

    def refuse(problem):
        raise InputError(problem, "export the series again, one field of view and one orientation", header.filename)

    if header.cut_off:
        raise InputError("the file is cut off within its pixels", "copy the scan again", header.filename)
    if problem := undecodable(header):
        raise InputError(
            f"the pixels are compressed as {problem}, which cannot be decoded here",
            "export the series uncompressed, or as JPEG Lossless or JPEG 2000",
            header.filename,
        )
    spacing = tag_vector(header, "PixelSpacing", 2)
    if not header.get("Rows") or not header.get("Columns") or spacing is None or spacing.min() <= 0:
        refuse("the image states no matrix or no pixel size")
    if (header.Rows, header.Columns) != (first.Rows, first.Columns):
        refuse(
            f"matrix {header.Columns} x {header.Rows} where other slices of the series have "
            f"{first.Columns} x {first.Rows}"
        )
    if not np.allclose(spacing, np.array(first.PixelSpacing, float), rtol=1e-3):
        refuse(
            f"pixel size {spacing[1]:g} x {spacing[0]:g} mm where other slices of the series have "
            f"{float(first.PixelSpacing[1]):g} x {float(first.PixelSpacing[0]):g} mm"
        )
    orientation = np.array(header.ImageOrientationPatient, float)
    if not np.allclose(orientation.reshape(2, 3) @ orientation.reshape(2, 3).T, np.eye(2), atol=1e-2):
        refuse("ImageOrientationPatient does not hold two perpendicular directions")
    if np.abs(orientation - np.array(first.ImageOrientationPatient, float)).max() > 1e-3:
        refuse("the orientation differs from that of other slices of the series")
