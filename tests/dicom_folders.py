"""Small DICOM folders for tests: what several test modules write, convert and compare."""

import json

import gdcm
import numpy as np
import pydicom
import pytest

from haemex.convert import convert_scan, read_nifti_scan, refuse_pin
from haemex.dicom import ENHANCED_CT
from haemex.nifti import is_nifti, read_volume
from haemex.series import find_series, plan_series

ROWS, COLUMNS = 4, 6
HEIGHTS = [10.0, 15.0, 20.0, 25.0, 30.0, 35.0]
HEAD = np.arange(0, 110, 5.0)  # 22 slices, 105 mm


def stored(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2500, (count, ROWS, COLUMNS)).astype(np.uint16)


def convert(source, tmp_path, name="scan", thickness=5.0):
    """Convert and read back: HU (z, y, x), affine, JSON."""
    convert_scan(source, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.json", thickness)
    return *read_volume(tmp_path / f"{name}.nii.gz"), json.loads((tmp_path / f"{name}.json").read_text())


def scan_geometry(source, thickness, series=None):
    """The geometry of a scan as `check` learns it: from headers alone, but for NIfTI."""
    if is_nifti(source):
        refuse_pin(source, series)
        return read_nifti_scan(source)[1]["geometry"]
    return plan_series(find_series(source, thickness, series)[0])[1]


def place(dataset, column, row):
    """Where a pixel lies by the equation of DICOM PS3.3 C.7.6.2.1.1, turned to RAS, mm."""
    origin, orientation = map(np.array, (dataset.ImagePositionPatient, dataset.ImageOrientationPatient))
    between_rows, between_columns = dataset.PixelSpacing
    lps = origin + orientation[:3] * between_columns * column + orientation[3:] * between_rows * row
    return lps.astype(float) * [-1, -1, 1]


def compare_places(folder, affine, geometry, tolerance_mm):
    """Compare the affine with every slice's own position, at three of its corners."""
    files = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir() if "DIR" not in path.name]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    files.sort(key=lambda one: place(one, 0, 0) @ normal)
    positions = np.array(geometry["acquired_positions_mm"])
    indices = (positions - positions[0]) / (affine[:3, 2] @ normal)
    assert len(files) == len(positions)
    for dataset, position, z in zip(files, positions, indices, strict=True):
        assert position == pytest.approx(place(dataset, 0, 0) @ normal, abs=tolerance_mm)
        for x, y in ((0, 0), (dataset.Columns - 1, 0), (0, dataset.Rows - 1)):
            np.testing.assert_allclose(affine[:3] @ [x, y, z, 1], place(dataset, x, y), atol=tolerance_mm)
    return files


def several(tmp_path, write_series, **kinds):
    """Write series side by side, from tags and heights; return the folder."""
    for number, (name, (heights, tags)) in enumerate(kinds.items(), start=1):
        write_series(tmp_path / "study" / name, heights, stored(len(heights)), SeriesNumber=number, **tags)
    return tmp_path / "study"


def change(keyword, value, at=3):
    def edit(index, dataset):
        if index == at:
            setattr(dataset, keyword, value)

    return edit


def write_enhanced(folder, path, legacy=False, order=None, edit=None):
    """Pack a folder of classic images into one Enhanced CT file, frames in `order` (default: by name).

    `edit(dataset)` changes the file before it is written.
    """
    files = sorted(one for one in folder.iterdir() if one.is_file())
    images = [pydicom.dcmread(files[i]) for i in (order if order is not None else range(len(files)))]
    enhanced = pydicom.dcmread(files[0])
    per_frame = ["ImagePositionPatient", "SliceThickness", "RescaleSlope", "RescaleIntercept", "ImageType"]
    shared = ["ImageOrientationPatient", "PixelSpacing", "ConvolutionKernel", "KVP", "WindowWidth", "WindowCenter"]
    for keyword in (*per_frame, *shared, "AcquisitionNumber", "InstanceNumber"):
        if keyword in enhanced and keyword != "ImageType":
            del enhanced[keyword]
    enhanced.SOPClassUID = ENHANCED_CT[1 if legacy else 0]
    enhanced.file_meta.MediaStorageSOPClassUID = enhanced.SOPClassUID
    enhanced.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    enhanced.NumberOfFrames = len(images)
    enhanced.PixelData = b"".join(image.PixelData for image in images)
    first = images[0]
    enhanced.SharedFunctionalGroupsSequence = [
        _groups(
            PlaneOrientationSequence={"ImageOrientationPatient": first.ImageOrientationPatient},
            CTReconstructionSequence={"ConvolutionKernel": first.ConvolutionKernel},
            CTXRayDetailsSequence={"KVP": first.KVP},
            FrameVOILUTSequence={"WindowCenter": first.WindowCenter, "WindowWidth": first.WindowWidth},
        )
    ]
    enhanced.PerFrameFunctionalGroupsSequence = [
        _groups(
            PlanePositionSequence={"ImagePositionPatient": image.ImagePositionPatient},
            PixelMeasuresSequence={"PixelSpacing": image.PixelSpacing, "SliceThickness": image.SliceThickness},
            PixelValueTransformationSequence={
                "RescaleIntercept": image.RescaleIntercept,
                "RescaleSlope": image.RescaleSlope,
                "RescaleType": "HU",
            },
            CTImageFrameTypeSequence={"FrameType": image.ImageType},
            FrameContentSequence={"FrameAcquisitionNumber": image.AcquisitionNumber},
        )
        for image in images
    ]
    if edit is not None:
        edit(enhanced)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, enhanced, enforce_file_format=True)
    return path.parent


def _groups(**sequences):
    item = pydicom.Dataset()
    for name, tags in sequences.items():
        inner = pydicom.Dataset()
        for keyword, value in tags.items():
            setattr(inner, keyword, value)
        setattr(item, name, [inner])
    return item


def transcode(source, target, syntax):
    """Compress every file of a folder with GDCM, into another transfer syntax; return the target."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        coder = gdcm.ImageChangeTransferSyntax()
        coder.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        coder.SetInput(reader.GetImage())
        assert coder.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target / path.name))
        writer.SetFile(reader.GetFile())
        writer.SetImage(coder.GetOutput())
        assert writer.Write()
    return target
