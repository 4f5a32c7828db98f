"""DICOM files: which files of a folder are images, what their tags hold, and their pixels in Hounsfield units.

Nothing here knows what a series or a stack is. The frames of a multi-frame CT become headers of their own, with the
tags of a classic image, so that nothing else has to know of them.
"""

import logging
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from haemex.errors import InputError

# pydicom would print odd values, and they may be names; what is odd and matters is refused here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

AIR_HU = -1024
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Enhanced CT and Legacy Converted Enhanced CT: many frames in one file.
ENHANCED_CT = (f"{CT_IMAGE}.1", f"{CT_IMAGE}.2")
PREAMBLE_BYTES = 128
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# JPEG 2000 may be either: there the header alone tells.
LOSSY = (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit, pydicom.uid.JPEGLSNearLossless)
SERIES_UID_TAG = 0x0020000E

# Which tags of a classic image stand in which functional group of a frame (DICOM PS3.3, A.38 and A.70).
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel", "ConvolutionKernelGroup"),
    "CTXRayDetailsSequence": ("KVP",),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth"),
    "FrameContentSequence": ("TemporalPositionIndex", "StackID"),
}
# What all frames of a file share; nothing else of the header is kept.
_SHARED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SeriesNumber",
    "AcquisitionNumber",
    "PatientSex",
    "PatientBirthDate",
    "PatientAge",
    "StudyDate",
    "StudyTime",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentDate",
    "ContentTime",
    "SeriesDescription",
    "ProtocolName",
    "StudyDescription",
    "ImageComments",
    "BodyPartExamined",
    "ContrastBolusAgent",
    "ContrastBolusVolume",
    "ContrastBolusTotalDose",
    "ContrastFlowRate",
    "ContrastBolusIngredient",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "Rows",
    "Columns",
    "KVP",
    "WindowCenter",
    "WindowWidth",
)
# Tags that are asked for without suspicion: pydicom decodes a tag when it is asked for, and fails on damaged bytes.
_DECODED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "Manufacturer", "ManufacturerModelName")


@dataclass(frozen=True)
class Damaged:
    """A file that cannot be read, and could hold an image of the scan.

    Attributes
    ----------
    path : str
        The file.
    problem : str
        What is wrong with it.
    series_uid : str or None
        SeriesInstanceUID, where the file still tells it. Never printed.
    perhaps : bool
        Nothing says that it is DICOM at all: an empty file, a link to nothing. It counts only beside images.
    """

    path: str
    problem: str
    series_uid: str | None = None
    perhaps: bool = False


def read_headers(folder):
    """Read the headers of all DICOM images below a folder.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders, links followed. Names mean nothing; DICOMDIR and what is no DICOM
        file is ignored.

    Returns
    -------
    headers : list of pydicom.Dataset
        Without pixels, by path; one for each frame of a multi-frame CT. Besides its tags each has `filename`,
        `frame` (index in the file, None for a classic image) and `cut_off` (the file ends within its pixels).
    damaged : list of Damaged
        Files that cannot be read and may be images of a CT, by path.

    Raises
    ------
    InputError
        There is no such folder, or one of its folders cannot be entered.
    """
    headers, damaged = [], []
    for path in _files(folder):
        read = _read_header(path)
        if isinstance(read, Damaged):
            damaged.append(read)
        elif read is not None:
            headers += _frames(read)
    return headers, damaged


def _files(folder):
    """List all files below a folder by path, each once, links followed."""
    if os.path.isfile(folder):
        raise InputError(
            "a single file, neither a DICOM folder nor NIfTI",
            "name the folder of the series, or a file that ends in .nii or .nii.gz",
            folder,
        )
    if not os.path.isdir(folder):
        raise InputError("there is no such folder", "check the path in the cohort table", folder)

    def refuse(error):
        if Path(error.filename).name.startswith("."):  # a system's own folder
            return
        raise InputError(
            f"the folder cannot be read ({error.strerror})", "give yourself the right to read it", error.filename
        )

    found, entered = {}, set()
    for top, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(top)
        if real in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add(real)
        for name in names:
            path = Path(top, name)
            # Unlike Path.is_file these ask without failing. What nobody may look at is listed, and refused later.
            if os.path.isfile(path):
                found.setdefault(os.path.realpath(path), path)
            elif not os.path.exists(path):
                found.setdefault(str(path), path)
    return sorted(found.values())


def _read_header(path):
    """Read the header of one file: a pydicom.Dataset, Damaged, or None where it is no DICOM image."""
    hidden = path.name.startswith(".")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(PREAMBLE_BYTES + 4)
            if start[PREAMBLE_BYTES:] != b"DICM" and not _looks_headless(start):
                cut_short = size < len(start) + 4 and not any(start)
                return Damaged(str(path), "an empty file", perhaps=True) if cut_short and not hidden else None
            file.seek(0)
            dataset = _parse(file, pixels=False)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MEDIA_DIRECTORY:
                return None
            sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
            series_uid, modality = dataset.get("SeriesInstanceUID"), dataset.get("Modality")
            image = sop_class in (CT_IMAGE, *ENHANCED_CT)
            deflated = dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian  # read whole
            left = size if deflated else size - file.tell()
            for keyword in _DECODED:
                dataset.get(keyword)
            for keyword in ("Rows", "Columns"):
                int(dataset.get(keyword) or 0)
            if "SOPClassUID" in dataset and series_uid and (left > 0 or not image):
                dataset.frame = None
                dataset.cut_off = image and _ends_within_pixels(dataset, left)
                return dataset
            # What is no CT, a dose report cut short, cannot be missed.
            if (sop_class and not image) or (modality and modality != "CT"):
                return None
            # Where the file ends after the UID, not within it, the UID is whole.
            known = series_uid and max(dataset.keys()) > SERIES_UID_TAG
            problem = "a DICOM file that breaks off, or says neither its kind nor its series"
            if series_uid and image:
                problem = "a CT image with no pixels, it breaks off before them"
            return Damaged(str(path), problem, str(series_uid) if known else None)
    except OSError as error:
        if hidden:
            return None
        if os.path.islink(path) and not os.path.exists(path):
            return Damaged(str(path), "a link to a file that is not there", perhaps=True)
        return Damaged(str(path), f"a file that cannot be read ({error.strerror})")
    except Exception as error:  # what pydicom raises on damaged bytes has no common class
        return _salvage(path, f"a DICOM file that cannot be read ({type(error).__name__})")


def _salvage(path, problem):
    """Find out which series a damaged file belongs to; None where it is no CT."""
    series_uid = sop_class = None
    with suppress(Exception), warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        dataset = pydicom.filereader.read_partial(
            file, stop_when=lambda tag, vr, length: tag > SERIES_UID_TAG, force=True
        )
        sop_class = dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID")
        series_uid = dataset.get("SeriesInstanceUID")
    if sop_class and str(sop_class) not in (CT_IMAGE, *ENHANCED_CT):
        return None
    return Damaged(str(path), problem, str(series_uid) if series_uid else None)


def _parse(file, pixels):
    """Read an open file, also one that begins without DICOM's preamble."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values in fields that are not used
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
        except InvalidDicomError:
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _looks_headless(start):
    """Whether a file without DICOM's preamble starts like a data set: group 0008 or 0002, low element."""
    little = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
    return len(start) >= 8 and (little or (start[:3] == b"\x00\x08\x00" and start[4:6].isalpha()))


def _ends_within_pixels(dataset, left):
    """Whether fewer bytes are left in the file than its uncompressed pixels take."""
    if dataset.file_meta.TransferSyntaxUID not in NATIVE:  # decoding will tell
        return False
    left -= 8 if dataset.original_encoding[0] else 12  # tag, type and length of the pixels
    size = 1.0
    for keyword in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"):
        size *= tag_number(dataset, keyword) or 1.0
    return left < size / 8


def _frames(dataset):
    """Turn a multi-frame CT into one header per frame; any other image is returned as it is."""
    if str(dataset.SOPClassUID) not in ENHANCED_CT:
        return [dataset]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = list(dataset.PerFrameFunctionalGroupsSequence)
            common = (list(dataset.get("SharedFunctionalGroupsSequence") or []) or [pydicom.Dataset()])[0]
            if len(own) != int(dataset.NumberOfFrames):
                return [dataset]
            shared = {keyword: dataset[keyword].value for keyword in _SHARED if keyword in dataset}
            return [_frame(dataset, index, groups, common, shared) for index, groups in enumerate(own)]
    except Exception:  # whatever is wrong with the groups, the file then stays one image, and is refused as such
        return [dataset]


def _frame(dataset, index, groups, common, shared):
    """Gather the tags of one frame from its own functional groups, then from those of all frames."""

    def group(name):
        items = groups.get(name) or common.get(name)
        return items[0] if items else pydicom.Dataset()

    header = pydicom.Dataset()
    for keyword, value in shared.items():
        setattr(header, keyword, value)
    for name in ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence"):
        header.update(group(name))  # what a converter from classic images had no place for
    for name, keywords in _GROUPS.items():
        for keyword in keywords:
            if keyword in group(name):
                setattr(header, keyword, group(name)[keyword].value)
    header.ImageType = group("CTImageFrameTypeSequence").get("FrameType") or dataset.get("ImageType")
    header.InstanceNumber = index + 1
    acquisition = group("FrameContentSequence").get("FrameAcquisitionNumber")
    if acquisition is not None:
        header.AcquisitionNumber = acquisition
    # The agents stand in the header of the file, whether one was given in the groups of the frame.
    given = group("ContrastBolusUsageSequence").get("ContrastBolusAgentAdministered")
    if given == "YES" or (given is None and dataset.get("ContrastBolusAgentSequence")):
        header.ContrastBolusAgent = "GIVEN"
    regions = group("FrameAnatomySequence").get("AnatomicRegionSequence") or dataset.get("AnatomicRegionSequence")
    if regions and not header.get("BodyPartExamined"):
        header.BodyPartExamined = str(regions[0].get("CodeMeaning", ""))[:16].upper()
    header.file_meta = dataset.file_meta
    header.filename, header.frame, header.cut_off = dataset.filename, index, dataset.cut_off
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if keyword in dataset:
            header[keyword] = dataset[keyword]
    return header


def tag_values(header, keyword):
    """Return the values of a tag as a list, empty where it is absent."""
    tag = _tag(keyword)
    if tag not in header:
        return []
    try:
        value = header[tag].value
    except Exception:  # decoded on access, with whatever error; nonsense counts as absent
        return []
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]


@cache
def _tag(keyword):
    return pydicom.tag.Tag(keyword)


def tag_vector(header, keyword, length):
    """Return a tag of `length` finite numbers as an array, None where it is absent or something else."""
    try:
        vector = np.array(tag_values(header, keyword), float)
    except (ValueError, TypeError):
        return None
    return vector if vector.shape == (length,) and np.isfinite(vector).all() else None


def tag_number(header, keyword):
    """Return the first value of a tag as a float, None where there is none."""
    try:
        number = float(tag_values(header, keyword)[0])
    except (IndexError, ValueError, TypeError):
        return None
    return number if np.isfinite(number) else None


def tag_text(header, keyword):
    """Return a tag as one string, "" where it is absent."""
    return "\\".join(str(value).strip() for value in tag_values(header, keyword))


def is_lossy(header):
    """Whether an image was once compressed with loss."""
    return tag_text(header, "LossyImageCompression") == "01" or header.file_meta.TransferSyntaxUID in LOSSY


def undecodable(header):
    """Name the compression of an image whose pixels cannot be decoded; "" where they can."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in NATIVE or syntax == DeflatedExplicitVRLittleEndian:
        return ""
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    # pydicom does not trust GDCM with it.
    twelve_bits = syntax == pydicom.uid.JPEGExtended12Bit and tag_number(header, "BitsStored") != 8
    name = syntax.name if syntax.is_valid else "something unknown"
    return "" if available and not twelve_bits else f"{name}{', 12 bits' if twelve_bits else ''}"


def read_hu(header):
    """Read the pixels of one image as Hounsfield units.

    Parameters
    ----------
    header : pydicom.Dataset
        Names the file and the frame; its matrix is what the pixels must have.

    Returns
    -------
    numpy.ndarray, (y, x), int16
        Rescaled, rounded; padding and whatever is below air set to -1024 HU.

    Raises
    ------
    InputError
        No pixels, truncated or undecodable pixels, or no rescale values.
    """
    path, frame = Path(header.filename), getattr(header, "frame", None)
    if problem := undecodable(header):
        raise InputError(
            f"the pixels are compressed as {problem}, which cannot be decoded here",
            "export the series uncompressed, or as JPEG Lossless or JPEG 2000",
            path,
        )
    try:
        syntax = header.file_meta.TransferSyntaxUID
        # Native pixels come with whatever stands in their unused bits.
        native = syntax in NATIVE or syntax == DeflatedExplicitVRLittleEndian
        options = {"correct_unused_bits": False} if native else {}
        dataset, stored = _stored_pixels(path, frame, options)
    except OSError as error:
        raise InputError(f"a file that cannot be read ({error.strerror})", "copy the scan again", path) from None
    except InputError:
        raise
    except Exception as error:  # the decoders raise whatever they like, and may repeat what stands in the file
        raise InputError(
            f"the pixels cannot be decoded, or are cut off ({type(error).__name__})",
            "copy the scan again, or export it uncompressed",
            path,
        ) from None
    if stored.shape != (header.Rows, header.Columns):
        raise InputError(f"the pixels have shape {stored.shape}", "export the series again", path)
    tags = dataset if frame is None else header
    slope, intercept = tag_number(tags, "RescaleSlope"), tag_number(tags, "RescaleIntercept")
    if not slope or intercept is None:
        raise InputError(
            "no RescaleSlope and RescaleIntercept: the unit of the pixels is unknown",
            "export the series again, as original CT images",
            path,
        )
    padded = _padding(tags, stored, slope, intercept)
    used = _used_bits(dataset, stored)
    if used is not stored:
        stored = used
        within = _padding(tags, stored, slope, intercept)
        padded = within if padded is None else padded if within is None else padded | within
    if slope == 1.0 and intercept.is_integer():
        hu = stored.astype(np.int32) + int(intercept)
    else:
        hu = np.rint(stored * slope + intercept)
    if padded is not None:
        hu[padded] = AIR_HU
    return np.clip(hu, AIR_HU, 32767).astype(np.int16)


def _stored_pixels(path, frame, options):
    """Decode one image: its data set, and the pixels (y, x)."""
    from pydicom.pixels import pixel_array

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if frame is not None:  # one frame is read, not the whole file for each
            dataset = pydicom.Dataset()
            return dataset, pixel_array(file, ds_out=dataset, index=frame, **options)
        dataset = _parse(file, pixels=True)
        if "PixelData" not in dataset:
            raise InputError("the image has no pixels, or the file breaks off before them", "copy the scan again", path)
        return dataset, pixel_array(dataset, **options)


def _used_bits(dataset, stored):
    """Blank out the bits of native pixels that are not theirs: old overlays, padding, rubbish."""
    allocated, bits = stored.dtype.itemsize * 8, int(tag_number(dataset, "BitsStored") or 0)
    if not 0 < bits < allocated:
        return stored
    high = int(tag_number(dataset, "HighBit") or 0)
    low = high + 1 - bits
    if low != 0 and not (0 < low <= allocated - bits and not (stored & ((1 << low) - 1)).any()):
        low = 0  # HighBit is BitsStored - 1 in DICOM; older files place the pixels higher and leave the low bits empty
    up = allocated - bits - low
    return (stored << up) >> (up + low)


def _padding(dataset, stored, slope, intercept):
    """Mark the pixels outside the scanned circle, where PixelPaddingValue says how they are stored; else None."""
    value, limit = tag_number(dataset, "PixelPaddingValue"), tag_number(dataset, "PixelPaddingRangeLimit")
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
