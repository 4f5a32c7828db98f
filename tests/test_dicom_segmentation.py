"""The mask as DICOM Segmentation: it lies where the images lie, and says nothing about whom they show."""

import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from conftest import IDENTITY
from dicom_folders import write_enhanced

from haemex.dicom_segmentation import on_acquired_slices, write_segmentation
from haemex.errors import InputError
from haemex.series import find_series, plan_series

BY = ("haemex tests", "0.1")
HEIGHTS = np.arange(0, 110, 5.0)


def stored(count):
    return np.random.default_rng(0).integers(0, 2500, (count, 6, 8)).astype(np.uint16)


def planned(folder):
    return plan_series(find_series(folder, 5.0)[0])


def random_mask(geometry, seed=1):
    mask = np.random.default_rng(seed).random(geometry["shape_xyz"][::-1]) < 0.3
    mask[:3] = False
    return mask


def drawn_places(path):
    """Every marked pixel's place in DICOM mm, by the equation of PS3.3 C.7.6.2.1.1, from the file alone."""
    segmentation = highdicom.seg.segread(path)
    orientation = np.array(
        segmentation.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, float
    )
    spacing = np.array(segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing, float)
    places = set()
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            at = origin + orientation[:3] * spacing[1] * column + orientation[3:] * spacing[0] * row
            places.add(tuple(np.round(at, 3)))
    return places


@pytest.mark.parametrize("tilt", [0.0, 18.0])
@pytest.mark.parametrize("order", ["rising", "shuffled"])
def test_every_marked_pixel_lies_where_the_affine_has_it(write_series, tmp_path, tilt, order):
    cosine, sine = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    heights = HEIGHTS if order == "rising" else np.random.default_rng(3).permutation(HEIGHTS)
    folder = write_series(tmp_path / "scan", heights, stored(22), orientation=(1, 0, 0, 0, cosine, sine))
    slices, geometry = planned(folder)
    mask = random_mask(geometry)
    write_segmentation(tmp_path / "mask.dcm", mask, slices, geometry, "P1", BY)
    ras = np.argwhere(mask)[:, ::-1] @ np.array(geometry["affine"])[:3, :3].T + np.array(geometry["affine"])[:3, 3]
    assert drawn_places(tmp_path / "mask.dcm") == {tuple(np.round(at * [-1, -1, 1], 3)) for at in ras}


def test_it_refers_to_the_images_and_opens_in_their_study(write_series, tmp_path):
    folder = write_series(tmp_path / "scan", HEIGHTS, stored(22))
    slices, geometry = planned(folder)
    mask = random_mask(geometry)
    write_segmentation(tmp_path / "mask.dcm", mask, slices, geometry, "P1", BY)
    segmentation, image = pydicom.dcmread(tmp_path / "mask.dcm"), pydicom.dcmread(folder / "005")
    assert segmentation.StudyInstanceUID == image.StudyInstanceUID
    assert segmentation.SeriesInstanceUID != image.SeriesInstanceUID
    referred = segmentation.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == image.SeriesInstanceUID
    assert image.SOPInstanceUID in {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
    assert len(segmentation.PerFrameFunctionalGroupsSequence) == mask.any(axis=(1, 2)).sum()


def test_no_identity_and_the_same_bytes_again(write_series, tmp_path):
    folder = write_series(
        tmp_path / "scan", HEIGHTS, stored(22), DeviceSerialNumber="SN007", PatientSex="F", StationName="ROOM 3"
    )
    slices, geometry = planned(folder)
    for name in ("a.dcm", "b.dcm"):
        write_segmentation(tmp_path / name, random_mask(geometry), slices, geometry, "P1", BY)
    content = (tmp_path / "a.dcm").read_bytes()
    assert content == (tmp_path / "b.dcm").read_bytes()
    # The day of the study places it among the patient's studies, as the identifiers do.
    for word in (*(value for name, value in IDENTITY.items() if name != "StudyDate"), "SN007", "ROOM 3", "JANE"):
        assert word.encode() not in content, word
    write_segmentation(tmp_path / "c.dcm", random_mask(geometry, seed=2), slices, geometry, "P1", BY)
    identifiers = {str(pydicom.dcmread(tmp_path / name).SOPInstanceUID) for name in ("a.dcm", "c.dcm")}
    assert len(identifiers) == 2, "another mask is another object"


def test_multi_frame_images(write_series, tmp_path):
    folder = write_series(tmp_path / "classic", HEIGHTS, stored(22))
    order = np.random.default_rng(4).permutation(22)
    enhanced = write_enhanced(folder, tmp_path / "enhanced" / "one", order=order)
    slices, geometry = planned(enhanced)
    mask = random_mask(geometry)
    write_segmentation(tmp_path / "mask.dcm", mask, slices, geometry, "P1", BY)
    affine = np.array(geometry["affine"])
    ras = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    assert drawn_places(tmp_path / "mask.dcm") == {tuple(np.round(at * [-1, -1, 1], 3)) for at in ras}


def test_uneven_slices_get_the_nearest_even_one():
    geometry = {"even": False, "acquired_positions_mm": [0.0, 4.0, 8.0, 15.0, 22.0]}
    # Even slices at 0, 5.5, 11, 16.5, 22 mm: the nearest of 0, 4, 8, 15, 22 are the first, second, second (2.5 mm off,
    # as 11 would be 3), fourth, fifth.
    mask = np.zeros((5, 2, 2), bool)
    mask[1, 0, 0] = mask[3, 1, 1] = True
    found = on_acquired_slices(mask, geometry)
    assert np.argwhere(found).tolist() == [[1, 0, 0], [2, 0, 0], [3, 1, 1]]


def test_nothing_found_is_nothing_to_write(write_series, tmp_path):
    slices, geometry = planned(write_series(tmp_path / "scan", HEIGHTS, stored(22)))
    with pytest.raises(InputError, match="empty"):
        write_segmentation(
            tmp_path / "mask.dcm", np.zeros(geometry["shape_xyz"][::-1], bool), slices, geometry, "P1", BY
        )
    assert not (tmp_path / "mask.dcm").exists()


def test_dciodvfy_finds_no_error(write_series, tmp_path):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    slices, geometry = planned(write_series(tmp_path / "scan", HEIGHTS, stored(22), FrameOfReferenceUID="1.2.3"))
    write_segmentation(tmp_path / "mask.dcm", random_mask(geometry), slices, geometry, "P1", BY)
    said = subprocess.run(["dciodvfy", tmp_path / "mask.dcm"], capture_output=True, text=True)
    assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
