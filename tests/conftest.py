"""What tests share: the folder of real scans, and a writer of small DICOM series."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import settings
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

# The same examples in every run: what fails for one fails for all.
settings.register_profile("haemex", derandomize=True)
settings.load_profile("haemex")

# What must never reach an output of haemex; every written series carries all of it.
IDENTITY = {
    "PatientName": "DOE^JANE",
    "PatientID": "ID4711",
    "PatientBirthDate": "19500102",
    "InstitutionName": "ST ELSEWHERE",
    "AccessionNumber": "ACC0815",
    "ReferringPhysicianName": "HOUSE^G",
    "SeriesDescription": "head jane doe",
    "StudyDate": "20180304",
}
UID_ROOT = "1.2.826.0.1.3680043.8.498"


def uid(*parts):
    """A UID that is always the same for the same parts."""
    return f"{UID_ROOT}.{zlib.crc32(repr(parts).encode())}"


# The longest files, which run whole studies, the longest first: beside them the others pass on the second core.
WHOLE_RUNS = ("test_workflow.py", "test_faults.py", "test_isolation.py", "test_failures.py", "test_cluster.py")


def pytest_collection_modifyitems(items):
    """Start with the whole runs."""
    place = {name: number for number, name in enumerate(WHOLE_RUNS)}
    items.sort(key=lambda item: place.get(item.path.name, len(WHOLE_RUNS)))


@pytest.fixture(scope="session")
def shared():
    """The project's shared folder, with real CT series and reference values."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with real scans is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def identity():
    """Strings of the written series that must not be found in any output."""
    return [*IDENTITY.values(), "JANE", "HOUSE", UID_ROOT]


@pytest.fixture
def write_series():
    """A function that writes a small DICOM CT series; see `_write_series`."""
    return _write_series


def _write_series(folder, origins, stored, orientation=(1, 0, 0, 0, 1, 0), spacing=(2.0, 0.5), edit=None, **tags):
    """Write one file per slice.

    `origins` holds ImagePositionPatient of each slice (or z alone), `stored` the pixels as stored, (z, y, x).
    `spacing` is PixelSpacing (between rows, between columns). `edit(index, dataset)` changes single slices; a tag of
    None is left out, and files keep the order of `origins` in their names.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.asarray(stored)
    for index, (origin, pixels) in enumerate(zip(origins, stored, strict=True)):
        origin = (-20.0, -30.0, float(origin)) if np.ndim(origin) == 0 else origin
        dataset = FileDataset(None, {}, file_meta=FileMetaDataset(), preamble=bytes(128))
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        values = {
            **IDENTITY,
            "Modality": "CT",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SOPInstanceUID": uid(folder.name, index),
            "SeriesInstanceUID": uid(folder.name),
            "StudyInstanceUID": uid("study"),
            "SeriesNumber": 3,
            "AcquisitionNumber": 1,
            "InstanceNumber": index + 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Manufacturer": "SIEMENS",
            "ManufacturerModelName": "SOMATOM Force",
            "ConvolutionKernel": "Hr38f",
            "KVP": 120,
            "WindowWidth": 90,
            "WindowCenter": 35,
            "SliceThickness": 5.0,
            "SpacingBetweenSlices": 77.0,  # lies, as it does in real series
            "GantryDetectorTilt": -33.0,
            "ImagePositionPatient": [float(value) for value in origin],
            "ImageOrientationPatient": [float(value) for value in orientation],
            "PixelSpacing": [float(value) for value in spacing],
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(stored.dtype.kind == "i"),
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **tags,
        }
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
        dataset.PixelData = pixels.astype(f"<{stored.dtype.kind}2").tobytes()
        if edit is not None:
            edit(index, dataset)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        pydicom.dcmwrite(folder / f"{index:03d}", dataset, enforce_file_format=True)
    return folder
