"""DICOM files: which files of a folder are images, what their tags hold, and their pixels in Hounsfield units.

Nothing here knows what a series or a stack is.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from haemex.errors import InputError

AIR_HU = -1024
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def read_headers(folder):
    """Read the headers of all DICOM images below a folder.

    Parameters
    ----------
    folder : path-like
        Walked through with all its subfolders, links followed. Names mean nothing; DICOMDIR and what is no DICOM
        file is ignored.

    Returns
    -------
    list of pydicom.Dataset
        Without pixels, by path; none where there is no image.

    Raises
    ------
    InputError
        There is no such folder, or a DICOM file that cannot be read.
    """
    headers = (_read_file(path, pixels=False) for path in _files(folder))
    return [header for header in headers if header is not None]


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


def tag_values(header, keyword):
    """Return the values of a tag as a list, empty where it is absent."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, OverflowError):  # decoded on access; nonsense counts as absent
        return []
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]


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
    slope, intercept = tag_number(dataset, "RescaleSlope"), tag_number(dataset, "RescaleIntercept")
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
