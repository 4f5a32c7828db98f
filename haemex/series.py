"""Which series of a study folder is the head CT: headers alone, no geometry but positions along the normal.

Descriptions are looked at and never repeated: they may hold names.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haemex.dicom import read_headers, tag_number, tag_values, tag_vector
from haemex.errors import InputError
from haemex.geometry import MIN_SLICES, refuse_gaps, stack_geometry

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = (f"{CT_IMAGE}.1", f"{CT_IMAGE}.2")

# ASSUME: gantry and head together are tilted by less than this against the table's axis; what is steeper is a
# coronal, sagittal or oblique reformat.
MAX_TILT_DEG = 35.0
# ASSUME: a series that covers less is a part of the head, unless nothing longer is there.
HEAD_COVERAGE_MM = 100.0
SAME_POSITION_MM = 0.01

NO_POSITION = "a CT image without position or orientation"

_SCOUT = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"}
_REFORMATTED = {"REFORMATTED", "MPR", "CSA MPR", "CSAPARALLEL", "CPR", "MIP", "MINIP", "VRT", "SSD", "PROJECTION IMAGE"}
_NOT_HEAD = (
    "CHEST",
    "THORAX",
    "LUNG",
    "HEART",
    "ABDOMEN",
    "PELVIS",
    "SPINE",
    "LEG",
    "KNEE",
    "FOOT",
    "HAND",
    "EXTREMITY",
)
_NO_CONTRAST = {"", "NONE", "NO", "N", "0", "NATIVE", "PLAIN", "WITHOUT", "NO CONTRAST", "NON CONTRAST", "NON-CONTRAST"}
_CONTRAST_WORDS = re.compile(r"\b(cta|angio\w*|perfusion|ctp|venogra\w*|post contrast|c\+)", re.IGNORECASE)
_BONE_WORDS = re.compile(r"\b(bone|knochen|petrous)", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """One series of a folder, or the part of it that belongs together.

    Attributes
    ----------
    headers : tuple of pydicom.Dataset
        Headers without pixels, in the order of the file paths.
    number : int or None
        SeriesNumber.
    slice_thickness_mm : float or None
        Median of SliceThickness, mm.
    kernel : str or None
        ConvolutionKernel, its first value.
    bone : bool
        A kernel made for bone or lung.
    derived : bool
        ImageType says DERIVED.
    coverage_mm : float
        From the first to the last slice along the normal, mm.
    reason : str
        Why it is not the series to take; "" where nothing speaks against it.
    """

    headers: tuple
    number: int | None
    slice_thickness_mm: float | None
    kernel: str | None
    bone: bool
    derived: bool
    coverage_mm: float
    reason: str

    def __str__(self):
        thickness = "unknown thickness" if self.slice_thickness_mm is None else f"{self.slice_thickness_mm:g} mm"
        name = "series without number" if self.number is None else f"series {self.number}"
        return f"{name} ({len(self.headers)} files, {thickness})"

    def summary(self):
        """Return number, files and reason: what may be told of a series without telling who it shows."""
        return {"number": self.number, "files": len(self.headers), "reason": self.reason}


def find_series(folder, slice_thickness_mm):
    """Choose the axial, original, non-contrast head CT series of a folder, from headers alone.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders. Names mean nothing; what is no DICOM image is ignored.
    slice_thickness_mm : float
        Of several fitting series the one nearest to this is taken, mm.

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
    return choose_series(list_series(folder), slice_thickness_mm, folder)


def list_series(folder):
    """Read the headers of a folder and sort them into series.

    One SeriesInstanceUID may hold images of several kinds (a scout, a screen): they are kept apart by what speaks
    against them. Where positions repeat, the series is split by AcquisitionNumber if that makes them unique.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders.

    Returns
    -------
    list of Series
        By series number, then by path of the first file.

    Raises
    ------
    InputError
        There is no folder, no DICOM image in it, or a DICOM file that cannot be read.
    """
    groups = {}
    for header in read_headers(folder):
        groups.setdefault((str(header.get("SeriesInstanceUID", "")), _unfit(header)), []).append(header)
    if not groups:
        raise InputError("there is no DICOM image in this folder", "check the path in the cohort table", folder)
    series = []
    for (_, reason), headers in groups.items():
        series += [_series(part, reason) for part in ([headers] if reason else _acquisitions(headers))]
    return sorted(series, key=lambda one: (one.number is None, one.number or 0, one.headers[0].filename))


def choose_series(series, slice_thickness_mm, folder):
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
    fitting = [one for one in series if not one.reason]
    if not fitting:
        listing = "; ".join(f"{one}: {one.reason}" for one in series)
        raise InputError(
            f"no axial non-contrast head CT series in this folder: {listing}",
            "give the folder of the head CT, or the scan as NIfTI in Hounsfield units",
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
            f"{len(equal)} series fit equally well: " + "; ".join(map(str, equal)),
            "name the subfolder of the right one in the cohort table, or take the other out of the folder",
            folder,
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
    order = np.argsort(_positions(series.headers), kind="stable")
    places = _positions(series.headers)[order]
    slices = []
    for index, near in zip(order, np.diff(places, prepend=-np.inf) <= SAME_POSITION_MM, strict=True):
        if near:
            slices[-1].append(series.headers[index])
        else:
            slices.append([series.headers[index]])
    folder = Path(first.filename).parent
    if len(slices) < MIN_SLICES:
        raise InputError(f"only {len(slices)} slices at different positions", "export the whole series", folder)
    orientation = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
    to_ras = np.array([-1.0, -1.0, 1.0])  # DICOM counts x to the left and y to the back
    row_spacing, column_spacing = map(float, first.PixelSpacing)
    geometry = stack_geometry(
        np.array([one[0].ImagePositionPatient for one in slices], float) * to_ras,
        orientation[0] * to_ras * column_spacing,
        orientation[1] * to_ras * row_spacing,
        first.Columns,
        first.Rows,
        folder,
    )
    if not geometry["even"]:
        thicknesses = [tag_number(one[0], "SliceThickness") for one in slices]
        refuse_gaps(np.array(geometry["acquired_positions_mm"]), thicknesses, folder)
    return slices, geometry


def _unfit(header):
    """Say why an image cannot belong to the series wanted, from its own header; "" where nothing speaks against it."""
    modality, sop_class = str(header.get("Modality", "")), str(header.SOPClassUID)
    kinds = {str(kind).strip().upper() for kind in tag_values(header, "ImageType")}
    if modality != "CT":
        return f"modality {modality or 'not stated'}, not CT"
    if sop_class in ENHANCED_CT or (tag_number(header, "NumberOfFrames") or 1) > 1:
        return "multi-frame (enhanced) CT: to be exported as single images"
    if sop_class != CT_IMAGE:
        return "a screen or another secondary image"
    if (tag_number(header, "SamplesPerPixel") or 1) != 1:
        return "colour images"
    if kinds & _SCOUT:
        return "a scout"
    if kinds & _REFORMATTED:
        return "a reformat"
    if "SECONDARY" in kinds:
        return "images derived from another series"
    placed = tag_vector(header, "ImagePositionPatient", 3), tag_vector(header, "ImageOrientationPatient", 6)
    if any(vector is None for vector in placed):
        return NO_POSITION
    if abs(_normal(header)[2]) < np.cos(np.radians(MAX_TILT_DEG)):
        return "not axial"
    # Descriptions are looked at and never repeated: they may hold names.
    description = str(header.get("SeriesDescription") or "")
    agent = " ".join(map(str, tag_values(header, "ContrastBolusAgent"))).strip().upper()
    if agent not in _NO_CONTRAST or _CONTRAST_WORDS.search(description):
        return "with contrast medium"
    # ASSUME: a body part that names the trunk or a limb is right; an absent or unknown one may be a head.
    if any(part in str(header.get("BodyPartExamined") or "").upper() for part in _NOT_HEAD):
        return "a body part other than the head"
    return ""


def _normal(header):
    """Unit normal of an image, in DICOM's coordinates (x to the left, y to the back, z to the head)."""
    orientation = np.array(header.ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / max(np.linalg.norm(normal), 1e-9)


def _positions(headers):
    """Position of every image along the normal of the first, mm."""
    normal = _normal(headers[0])
    return np.array([np.array(header.ImagePositionPatient, float) @ normal for header in headers])


def _acquisitions(headers):
    """Split images at repeated positions by AcquisitionNumber, where that leaves whole stacks without repetition."""
    if _repetitions(headers) == 1:
        return [headers]
    parts = {}
    for header in headers:
        parts.setdefault(str(header.get("AcquisitionNumber", "")), []).append(header)
    whole = all(len(part) >= MIN_SLICES and _repetitions(part) == 1 for part in parts.values())
    return list(parts.values()) if whole else [headers]


def _repetitions(headers):
    """How often the commonest position occurs."""
    places = np.sort(_positions(headers))
    groups = np.cumsum(np.diff(places, prepend=places[0]) > SAME_POSITION_MM)
    return int(np.bincount(groups).max())


def _series(headers, reason):
    """Describe a group of headers."""
    header = headers[len(headers) // 2]
    thicknesses = [t for t in (tag_number(one, "SliceThickness") for one in headers) if t]
    kernel = next((str(value).strip() for value in tag_values(header, "ConvolutionKernel")), None) or None
    number = tag_number(header, "SeriesNumber")
    coverage = 0.0
    if not reason:
        coverage = float(np.ptp(_positions(headers)))
        if len(headers) < MIN_SLICES:
            reason = f"only {len(headers)} slice{'s' if len(headers) > 1 else ''}"
        elif _repetitions(headers) > 2:
            reason = "the same positions again and again (dynamic or perfusion)"
    return Series(
        headers=tuple(headers),
        number=None if number is None else int(number),
        slice_thickness_mm=float(np.median(thicknesses)) if thicknesses else None,
        kernel=kernel,
        bone=is_bone_kernel(kernel, str(header.get("Manufacturer") or ""))
        or bool(_BONE_WORDS.search(str(header.get("SeriesDescription") or ""))),
        derived="DERIVED" in {str(kind).strip().upper() for kind in tag_values(header, "ImageType")},
        coverage_mm=coverage,
        reason=reason,
    )


def is_bone_kernel(kernel, manufacturer):
    """Whether a reconstruction kernel is made for bone or lung, by the vendors' names.

    Parameters
    ----------
    kernel : str or None
        ConvolutionKernel.
    manufacturer : str
        Manufacturer; Philips' letters mean nothing elsewhere.
    """
    # ASSUME: Siemens numbers from 50 (H60s, Hr64, J70h), Canon FC30-39 and from FC50, Philips D, E, L, YC, YD, and
    # GE's words are sharp kernels; a name not known is soft.
    name = (kernel or "").upper()
    if any(word in name for word in ("BONE", "EDGE", "LUNG", "DETAIL", "ULTRA", "SHARP")):
        return True
    if canon := re.fullmatch(r"FC(\d+).*", name):
        return 30 <= int(canon[1]) < 40 or int(canon[1]) >= 50
    if siemens := re.fullmatch(r"[A-Z]{1,2}(\d\d)[A-Z]?.*", name):
        return int(siemens[1]) >= 50
    return manufacturer.upper().startswith("PHILIPS") and name in ("D", "E", "L", "YC", "YD")


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


def _refuse_fragments(taken, series):
    """Refuse a series of which single images have lost their position: a slice would be missing in silence."""
    uid = taken.headers[0].SeriesInstanceUID
    for one in series:
        if one.reason == NO_POSITION and one.headers[0].SeriesInstanceUID == uid:
            raise InputError(
                f"{len(one.headers)} of {len(one.headers) + len(taken.headers)} images of the series have no "
                "ImagePositionPatient or ImageOrientationPatient",
                "export the series again",
                one.headers[0].filename,
            )


def _refuse_difference(header, first):
    """Refuse a slice that differs from the first in matrix, pixel size or orientation, or lacks them."""

    def refuse(problem):
        raise InputError(problem, "export the series again, one field of view and one orientation", header.filename)

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
