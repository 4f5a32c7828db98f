"""From a DICOM folder, or a NIfTI file, to one head CT in Hounsfield units with its exact place in space.

The walls: `list_series` and `choose_series` know headers and no geometry; `stack_geometry` knows positions, not
DICOM; `read_hu` knows pixels; `even_volume` and `even_mask` know the grid that uneven slices are brought to.

Geometry comes from ImagePositionPatient and ImageOrientationPatient of every slice (DICOM PS3.3, C.7.6.2), never from
the tilt or spacing tags: vendors disagree on the sign of the one, and the other lies. A tilted series keeps its pixels
and gets a sheared affine, so that masks drawn slice by slice fit index by index.
"""

import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from haemex.errors import InputError
from haemex.nifti import read_volume, write_atomically, write_volume

AIR_HU = -1024

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = (f"{CT_IMAGE}.1", f"{CT_IMAGE}.2")
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

MIN_SLICES = 5
# ASSUME: gantry and head together are tilted by less than this against the table's axis; what is steeper is a
# coronal, sagittal or oblique reformat.
MAX_TILT_DEG = 35.0
# ASSUME: a series that covers less is a part of the head, unless nothing longer is there.
HEAD_COVERAGE_MM = 100.0
EVEN_TOLERANCE = 0.01  # design, Geometry: beyond 1 % of the spacing slices are not even
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
    for path in _files(folder):
        header = _read_file(path, pixels=False)
        if header is not None:
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


def _files(folder):
    """List all files below a folder by path, each once, links followed."""
    if Path(folder).is_file():
        raise InputError("a single file, neither a DICOM folder nor NIfTI", "name the folder of the series", folder)
    if not Path(folder).is_dir():
        raise InputError("there is no such folder", "check the path in the cohort table", folder)
    found, entered = {}, set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add(real)
        for name in names:
            path = Path(top, name)
            if path.is_file():
                found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _read_file(path, pixels):
    """Read one file; None where it is no DICOM image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values in fields that are not used
        try:
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
            except InvalidDicomError:
                if not _looks_headless(path):
                    return None
                dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
                dataset.file_meta.TransferSyntaxUID = (
                    ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
                )
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MEDIA_DIRECTORY:
                return None
            complete = "SOPClassUID" in dataset and "SeriesInstanceUID" in dataset
        except Exception as error:  # what pydicom raises on damaged bytes has no common class
            raise InputError(
                f"a DICOM file that cannot be read ({type(error).__name__}: {error})", "copy the scan again", path
            ) from None
    if not complete:
        raise InputError(
            "a DICOM file that breaks off, or says neither its kind nor its series",
            "copy the scan again, or take the file out of the folder if it is no part of it",
            path,
        )
    return dataset


def _looks_headless(path):
    """Whether a file without DICOM's preamble starts like a data set: group 0008 or 0002, little endian."""
    with path.open("rb") as file:
        start = file.read(8)
    return len(start) == 8 and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3] == 0


def _unfit(header):
    """Say why an image cannot belong to the series wanted, from its own header; "" where nothing speaks against it."""
    modality, sop_class = str(header.get("Modality", "")), str(header.SOPClassUID)
    kinds = {str(kind).strip().upper() for kind in _values(header, "ImageType")}
    if modality != "CT":
        return f"modality {modality or 'not stated'}, not CT"
    if sop_class in ENHANCED_CT or (_number(header, "NumberOfFrames") or 1) > 1:
        return "multi-frame (enhanced) CT: to be exported as single images"
    if sop_class != CT_IMAGE:
        return "a screen or another secondary image"
    if (_number(header, "SamplesPerPixel") or 1) != 1:
        return "colour images"
    if kinds & _SCOUT:
        return "a scout"
    if kinds & _REFORMATTED:
        return "a reformat"
    if "SECONDARY" in kinds:
        return "images derived from another series"
    if _vector(header, "ImagePositionPatient", 3) is None or _vector(header, "ImageOrientationPatient", 6) is None:
        return NO_POSITION
    if abs(_normal(header)[2]) < np.cos(np.radians(MAX_TILT_DEG)):
        return "not axial"
    # Descriptions are looked at and never repeated: they may hold names.
    description = str(header.get("SeriesDescription") or "")
    agent = " ".join(map(str, _values(header, "ContrastBolusAgent"))).strip().upper()
    if agent not in _NO_CONTRAST or _CONTRAST_WORDS.search(description):
        return "with contrast medium"
    # ASSUME: a body part that names the trunk or a limb is right; an absent or unknown one may be a head.
    if any(part in str(header.get("BodyPartExamined") or "").upper() for part in _NOT_HEAD):
        return "a body part other than the head"
    return ""


def _values(header, keyword):
    """Return the values of a tag as a list, empty where it is absent."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, OverflowError):  # decoded on access; nonsense counts as absent
        return []
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]


def _vector(header, keyword, length):
    """Return a tag of `length` finite numbers as an array, None where it is absent or something else."""
    try:
        vector = np.array(_values(header, keyword), float)
    except (ValueError, TypeError):
        return None
    return vector if vector.shape == (length,) and np.isfinite(vector).all() else None


def _number(header, keyword):
    """Return the first value of a tag as a float, None where there is none."""
    try:
        number = float(_values(header, keyword)[0])
    except (IndexError, ValueError, TypeError):
        return None
    return number if np.isfinite(number) else None


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
    thicknesses = [t for t in (_number(one, "SliceThickness") for one in headers) if t]
    kernel = next((str(value).strip() for value in _values(header, "ConvolutionKernel")), None) or None
    number = _number(header, "SeriesNumber")
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
        derived="DERIVED" in {str(kind).strip().upper() for kind in _values(header, "ImageType")},
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


def stack_geometry(origins, across, down, columns, rows, file):
    """Work out where a stack of parallel slices lies, whether it is even, and the grid it is written on.

    An even stack is written as acquired: the third column of the affine is the step between positions, which a tilted
    gantry makes oblique to the image plane. An uneven stack is written on an even grid from the first to the last
    position, with the step nearest to the median step that divides the distance exactly.

    Parameters
    ----------
    origins : numpy.ndarray, (slices, 3)
        Centre of pixel (0, 0) of each slice, RAS, mm, in index order.
    across, down : numpy.ndarray, (3,)
        From one column to the next and from one row to the next, RAS, mm.
    columns, rows : int
        Matrix.
    file : path-like
        Named in errors.

    Returns
    -------
    dict
        `shape_xyz`, `affine` (index (x, y, z) to RAS, mm) and `voxel_volume_ml` of the written grid;
        `acquired_slices`, `acquired_positions_mm` (along the normal, ascending), `slice_extent_mm` (half-way to the
        neighbours; at the ends the step to the neighbour), `area_mm2` of a pixel, `even`, and `tilt_deg`, the angle
        between the normal and the direction in which the slices are stacked.

    Raises
    ------
    InputError
        The slices are not stacked along a straight line.
    """
    normal = np.cross(across, down)
    area = float(np.linalg.norm(normal))
    normal = normal / area
    if (origins[-1] - origins[0]) @ normal < 0:  # a NIfTI file may be left-handed
        normal = -normal
    positions = origins @ normal
    steps = np.diff(positions)
    span = positions[-1] - positions[0]
    slope = (origins[-1] - origins[0]) / span
    off = np.linalg.norm(origins - origins[0] - np.outer(positions - positions[0], slope), axis=1)
    # ASSUME: half a pixel is more than rounded tags explain, and less than can be seen.
    if off.max() > 0.5 * min(np.linalg.norm(across), np.linalg.norm(down)):
        raise InputError(
            f"the slices are not stacked along a straight line: slice {int(off.argmax()) + 1} lies {off.max():.2f} mm "
            "beside it",
            "export one series with one field of view",
            file,
        )
    mean = span / len(steps)
    even = bool(np.abs(steps - mean).max() <= EVEN_TOLERANCE * mean)
    count = len(origins) if even else round(float(span / np.median(steps))) + 1
    step = span / (count - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([across, down, slope * step, origins[0]]) + 0.0  # no minus zeros
    extents = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    return {
        "shape_xyz": [int(columns), int(rows), int(count)],
        "affine": affine.tolist(),
        "voxel_volume_ml": float(abs(np.linalg.det(affine[:3, :3])) / 1000.0),
        "acquired_slices": len(origins),
        "acquired_positions_mm": positions.tolist(),
        "slice_extent_mm": extents.tolist(),
        "area_mm2": area,
        "even": even,
        "tilt_deg": float(np.degrees(np.arctan2(np.linalg.norm(slope - normal), 1.0))),
    }


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
        thicknesses = [_number(one[0], "SliceThickness") for one in slices]
        _refuse_gaps(np.array(geometry["acquired_positions_mm"]), thicknesses, folder)
    return slices, geometry


def _refuse_difference(header, first):
    """Refuse a slice that differs from the first in matrix, pixel size or orientation, or lacks them."""

    def refuse(problem):
        raise InputError(problem, "export the series again, one field of view and one orientation", header.filename)

    spacing = _vector(header, "PixelSpacing", 2)
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


def _refuse_gaps(positions, thicknesses, file):
    """Refuse a series in which slices are missing.

    A step is compared with the thickness of its two slices, so that a series of two thicknesses (4 mm below, 7 mm
    above) is not taken for one with gaps.
    """
    steps = np.diff(positions)
    known = np.array([np.nan if t is None or t <= 0 else t for t in thicknesses])
    local = np.full(len(steps), np.median(steps)) if np.isnan(known).any() else (known[:-1] + known[1:]) / 2
    ratio = steps / local
    ratio = ratio / np.median(ratio)
    # ASSUME: twice or three times the usual step is a lost slice; more than that is a hole of whatever origin. Where
    # a quarter of the steps are long, the table was fed so.
    gaps = np.flatnonzero((ratio > 1.6) & ((np.abs(ratio - np.rint(ratio)) < 0.1) | (ratio > 3)))
    if gaps.size and gaps.size <= len(steps) / 4:
        where = "; ".join(
            f"between slices {i + 1} and {i + 2}, {steps[i]:.2f} mm apart where {steps[i] / ratio[i]:.2f} mm are usual"
            for i in gaps
        )
        raise InputError(f"slices are missing: {where} (counted from the lowest)", "export the whole series", file)


def read_hu(header):
    """Read the pixels of one image as Hounsfield units.

    Parameters
    ----------
    header : pydicom.Dataset
        Names the file; its matrix is what the pixels must have.

    Returns
    -------
    numpy.ndarray, (y, x), int16
        Rescaled, rounded; padding and whatever is below air set to -1024 HU.

    Raises
    ------
    InputError
        No pixels, truncated or undecodable pixels, or no rescale values.
    """
    path = Path(header.filename)
    dataset = _read_file(path, pixels=True)
    if "PixelData" not in dataset:
        raise InputError("the image has no pixels, or the file breaks off before them", "copy the scan again", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
    except Exception as error:  # the decoders raise whatever they like
        raise InputError(
            f"the pixels cannot be decoded, or are cut off ({type(error).__name__}: {error})",
            "copy the scan again, or export it uncompressed",
            path,
        ) from None
    if stored.shape != (header.Rows, header.Columns):
        raise InputError(f"the pixels have shape {stored.shape}", "export the series again", path)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if not slope or intercept is None:
        raise InputError(
            "no RescaleSlope and RescaleIntercept: the unit of the pixels is unknown",
            "export the series again, as original CT images",
            path,
        )
    if slope == 1.0 and intercept.is_integer():
        hu = stored.astype(np.int32) + int(intercept)
    else:
        hu = np.rint(stored * slope + intercept)
    padded = _padding(dataset, stored, slope, intercept)
    if padded is not None:
        hu[padded] = AIR_HU
    return np.clip(hu, AIR_HU, 32767).astype(np.int16)


def _padding(dataset, stored, slope, intercept):
    """Mark the pixels outside the scanned circle, where PixelPaddingValue says how they are stored; else None."""
    value, limit = _number(dataset, "PixelPaddingValue"), _number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return None
    # The tag's type often contradicts the pixels' sign (-2000 written as 63536), so both are compared as stored bits.
    info = np.iinfo(stored.dtype)
    width = 2**info.bits
    bounds = [(int(v) - info.min) % width + info.min for v in (value, value if limit is None else limit)]
    padded = (stored >= min(bounds)) & (stored <= max(bounds))
    # ASSUME: a padding value within the range of tissue is believed only if it fills a corner of the image; otherwise
    # a careless tag (0 in a series stored as HU) would punch holes into the brain.
    if max(bounds) * slope + intercept > -200 and not padded[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        return None
    return padded


def convert_scan(source, nifti_out, json_out, slice_thickness_mm):
    """Write one scan as NIfTI in Hounsfield units, with a JSON of its acquisition and geometry.

    Parameters
    ----------
    source : path-like
        DICOM folder, or a NIfTI file in Hounsfield units with its slices along the third axis.
    nifti_out, json_out : path-like
        Written, whole or not at all. The volume is int16, padding -1024 HU. The JSON holds `acquisition`, `geometry`
        (see `stack_geometry`), `series` (taken, others with their reasons) and `pixel_digest`, SHA-256 of the HU of
        the acquired slices. Neither holds a name, date, UID or description.
    slice_thickness_mm : float
        Of several head CT series the one nearest to this is taken, mm.

    Raises
    ------
    InputError
        The scan cannot be used; see `find_series`, `plan_series`, `read_hu`, `read_nifti_scan`.
    """
    if not str(source):  # "" would be the folder one stands in
        raise InputError("the cohort table names no scan", "fill in the cell of this patient's CT")
    hu, description = read_nifti_scan(source) if is_nifti(source) else read_dicom_scan(source, slice_thickness_mm)
    description["pixel_digest"] = hashlib.sha256(hu.astype("<i2", copy=False).tobytes()).hexdigest()
    geometry = description["geometry"]
    write_volume(nifti_out, hu if geometry["even"] else even_volume(hu, geometry), geometry["affine"])
    write_atomically(json_out, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())


def is_nifti(source):
    """Whether a source is a NIfTI file, by its name."""
    return str(source).endswith((".nii", ".nii.gz"))


def scan_geometry(source, slice_thickness_mm):
    """Work out the geometry of a scan from headers alone.

    Parameters
    ----------
    source : path-like
        DICOM folder or NIfTI file.
    slice_thickness_mm : float
        As for `find_series`, mm.

    Returns
    -------
    dict
        See `stack_geometry`.

    Raises
    ------
    InputError
        No series, several, or a series whose geometry cannot be used.
    """
    if is_nifti(source):
        return _nifti_geometry(source)
    return plan_series(find_series(source, slice_thickness_mm)[0])[1]


def read_dicom_scan(folder, slice_thickness_mm):
    """Choose a series and read it.

    Parameters
    ----------
    folder : path-like
        DICOM folder.
    slice_thickness_mm : float
        As for `find_series`, mm.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The acquired slices.
    description : dict
        `acquisition`, `geometry`, `series`.

    Raises
    ------
    InputError
        See `find_series`, `plan_series`, `read_hu`; also two different images at one position.
    """
    taken, others = find_series(folder, slice_thickness_mm)
    slices, geometry = plan_series(taken)
    hu = np.empty((len(slices), taken.headers[0].Rows, taken.headers[0].Columns), np.int16)
    for index, same in enumerate(slices):
        hu[index] = read_hu(same[0])
        for other in same[1:]:
            if not np.array_equal(read_hu(other), hu[index]):
                raise InputError(
                    f"a second image at the position of slice {index + 1} shows something else",
                    "keep one acquisition in the folder",
                    other.filename,
                )
    description = {
        "acquisition": _acquisition(taken, slices, geometry),
        "geometry": geometry,
        "series": {
            "taken": {
                "number": taken.number,
                "files": len(taken.headers),
                "slice_thickness_mm": taken.slice_thickness_mm,
                "kernel": taken.kernel,
            },
            "others": [one.summary() for one in others],
        },
    }
    return hu, description


def _acquisition(series, slices, geometry):
    """Collect the acquisition parameters of supplemental Table 1, from the slice in the middle."""
    header = slices[len(slices) // 2][0]
    columns, rows = geometry["shape_xyz"][:2]
    row_spacing, column_spacing = map(float, header.PixelSpacing)
    return {
        "manufacturer": str(header.get("Manufacturer") or "").strip() or None,
        "model": str(header.get("ManufacturerModelName") or "").strip() or None,
        "slice_thickness_mm": series.slice_thickness_mm,
        "slices": len(slices),
        "matrix": [columns, rows],
        "pixel_spacing_mm": [column_spacing, row_spacing],
        "field_of_view_mm": [columns * column_spacing, rows * row_spacing],
        "window_width": _number(header, "WindowWidth"),
        "window_level": _number(header, "WindowCenter"),
        "kernel": series.kernel,
        "kvp": _number(header, "KVP"),
    }


def read_nifti_scan(path):
    """Read a scan that comes as NIfTI.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`, Hounsfield units.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The slices.
    description : dict
        `acquisition`, `geometry`, `series`; what only DICOM tells is None.

    Raises
    ------
    InputError
        The file is unreadable, not axial, of unknown orientation, or its values cannot be HU of a whole head.
    """
    geometry = _nifti_geometry(path)
    values, _ = read_volume(path)
    low, high = float(values.min()), float(values.max())
    # ASSUME: a whole head CT holds air (below -200 HU) and bone (above 200 HU); stored values without the
    # intercept, windowed or skull-stripped volumes lack one or the other.
    if not (np.isfinite(low) and np.isfinite(high)) or low > -200 or high < 200:
        raise InputError(
            f"values from {low:g} to {high:g} are not Hounsfield units of a whole head",
            "give the scan in HU, neither windowed nor skull-stripped, or as DICOM",
            path,
        )
    columns, rows, count = geometry["shape_xyz"]
    spacing = np.linalg.norm(np.array(geometry["affine"])[:3, :2], axis=0).tolist()
    unknown = ("manufacturer", "model", "slice_thickness_mm", "window_width", "window_level", "kernel", "kvp")
    description = {
        "acquisition": {
            **dict.fromkeys(unknown),
            "slices": count,
            "matrix": [columns, rows],
            "pixel_spacing_mm": spacing,
            "field_of_view_mm": [columns * spacing[0], rows * spacing[1]],
        },
        "geometry": geometry,
        "series": {"taken": {"number": None, "files": 1, "slice_thickness_mm": None, "kernel": None}, "others": []},
    }
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16), description


def _nifti_geometry(path):
    """Work out the geometry of a NIfTI scan from its header."""
    import nibabel

    try:
        header = nibabel.load(path).header
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise InputError(f"not a readable NIfTI volume ({error})", "check the path in the cohort table", path) from None
    shape = header.get_data_shape()
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or shape[2] < MIN_SLICES:
        raise InputError(f"shape {shape} is no stack of slices", "give one volume per file", path)
    if not header["sform_code"] and not header["qform_code"]:
        raise InputError("the file does not say how the volume lies", "export the scan again, with its affine", path)
    affine = header.get_best_affine()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    if not np.isfinite(affine).all() or length == 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("the affine is degenerate", "export the scan again", path)
    if abs(normal[2]) / length < np.cos(np.radians(MAX_TILT_DEG)):
        raise InputError("the third axis does not run through axial slices", "store axial slices", path)
    origins = affine[:3, 3] + np.outer(np.arange(shape[2]), affine[:3, 2])
    return stack_geometry(origins, affine[:3, 0], affine[:3, 1], shape[0], shape[1], path)


def _neighbours(geometry):
    """For each slice of the even grid, the acquired slice below it and the share of the one above."""
    positions = np.array(geometry["acquired_positions_mm"])
    wanted = np.linspace(positions[0], positions[-1], geometry["shape_xyz"][2])
    below = np.clip(np.searchsorted(positions, wanted, side="right") - 1, 0, len(positions) - 2)
    share = (wanted - positions[below]) / (positions[below + 1] - positions[below])
    return below, np.clip(share, 0.0, 1.0)


def _interpolate(volume, geometry):
    """Interpolate linearly between acquired slices, index by index: the shear of a tilted stack is kept."""
    below, share = _neighbours(geometry)
    even = np.empty((len(below), *volume.shape[1:]), np.float32)
    for index, (lower, part) in enumerate(zip(below, share.astype(np.float32), strict=True)):
        even[index] = volume[lower] * (1 - part) + volume[lower + 1] * part
    return even


def even_volume(hu, geometry):
    """Bring the acquired slices of an uneven CT to its even grid.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x), int16
        Acquired slices.
    geometry : dict
        See `stack_geometry`.

    Returns
    -------
    numpy.ndarray, (z, y, x), int16
        On the written grid.
    """
    return np.rint(_interpolate(hu, geometry)).astype(np.int16)


def even_mask(mask, geometry):
    """Bring a mask drawn on the acquired slices to the written grid.

    Parameters
    ----------
    mask : numpy.ndarray, (z, y, x)
        0 or 1, on the acquired slices.
    geometry : dict
        See `stack_geometry`.

    Returns
    -------
    numpy.ndarray, (z, y, x), uint8
        1 where the linearly interpolated mask reaches 0.5. A mask so thin that it reaches 0.5 nowhere (one slice
        between two even ones) is kept where it comes closest. The mask itself where the slices are even.
    """
    mask = np.asarray(mask, np.uint8)
    if geometry["even"]:
        return mask
    share = _interpolate(mask, geometry)
    reached = min(0.5, float(share.max())) if mask.any() else 0.5
    return (share >= reached).astype(np.uint8)
