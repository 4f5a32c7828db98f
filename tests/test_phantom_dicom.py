"""Synthetic scans as DICOM: valid CT images, the same in every reader, and the traps that are set on purpose."""

import io
import shutil
import subprocess
import warnings
from datetime import datetime
from pathlib import Path

import dcm2niix
import gdcm
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from haemex.nifti import read_volume
from haemex.phantom_dicom import HEADERS, write_map, write_scan, write_scout
from haemex.phantom_scanner import SCANNERS, draw_scan, thin
from haemex.series import find_series

MATRIX, SEED = 64, 11
REACH = {"half": np.array([78.0, 98.0, 84.0]), "centre": np.array([0.0, 15.0, 2.0]), "bottom_mm": -76.0}
KINDS = [(scanner, 0.0) for scanner in SCANNERS] + [("optima", 18.5), ("perspective", 12.0), ("optima", -9.5)]


def a_patient(scanner, tilt_deg=0.0, name="D001"):
    row = {
        "patient": name,
        "poor_image_quality": 0,
        "admission_date": "2016-12-30",
        "age_years": 61,
        "sex": "m",
        "ct_to_followup_h": 22.7,
    }
    pixel = round(SCANNERS[scanner]["field_of_view_mm"][1] / MATRIX, 6)
    return {"row": row, "truth": {"scanner": scanner, "tilt_deg": tilt_deg, "pixel_mm": pixel}}


def voxels(scan):
    rng = np.random.default_rng(3)
    return rng.integers(-1024, 3072, (len(scan["origins"]), MATRIX, MATRIX)).astype(np.int16)


@pytest.fixture(scope="module", params=KINDS, ids=[f"{scanner} {tilt:g} deg" for scanner, tilt in KINDS])
def series(request, tmp_path_factory):
    """One head series of each scanner: folder, voxels, scan, patient."""
    patient = a_patient(*request.param)
    scan = draw_scan(patient, REACH, "baseline", MATRIX, SEED)
    hu, folder = voxels(scan), tmp_path_factory.mktemp("series") / "dicom"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_scan(folder, hu, scan, patient, "baseline", SEED)
        write_scout(folder.with_name("scout"), hu, scan, patient, "baseline", SEED)
        write_scan(folder.with_name("bone"), voxels(thin(scan)), thin(scan), patient, "baseline", SEED, series="bone")
    return folder, hu, scan, patient


def images_of(folder):
    """Read with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        for image in images:
            for element in image.iterall():
                str(element.value)
    return sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))


def within_circle():
    index = np.arange(MATRIX) - (MATRIX - 1) / 2
    return np.hypot(index, index[:, None]) <= MATRIX / 2


def test_pydicom_reads_what_was_written(series):
    folder, hu, scan, _ = series
    images = images_of(folder)
    assert len(images) == len(hu)
    for image, written, origin in zip(images, hu, scan["origins"], strict=True):
        read = image.pixel_array * image.RescaleSlope + image.RescaleIntercept
        kept = within_circle() if "PixelPaddingValue" in image else np.ones_like(written, bool)
        np.testing.assert_array_equal(read[kept], written[kept])
        if "PixelPaddingValue" in image:
            assert (image.pixel_array[~kept] == image.PixelPaddingValue).all()
            signed = image["PixelPaddingValue"].VR == "SS"
            assert signed == bool(image.PixelRepresentation)
        np.testing.assert_allclose(image.ImagePositionPatient, origin, atol=1e-6)
        directions = [*scan["row_direction"], *scan["column_direction"]]
        np.testing.assert_allclose(image.ImageOrientationPatient, directions, atol=1e-6)
        assert image.PixelSpacing == [scan["pixel_mm"]] * 2


def test_files_are_what_pydicom_would_write(series):
    """Read and written again as a whole, by another way than they were made: the same bytes."""
    folder = series[0]
    for path in (*sorted(folder.iterdir())[:3], folder.with_name("scout") / "IMS0001"):
        image = pydicom.dcmread(path)
        for element in image.iterall():
            str(element.value)  # decoded, so that it is encoded again
        buffer = io.BytesIO()
        image.save_as(buffer, enforce_file_format=True)
        assert buffer.getvalue() == path.read_bytes()


def test_headers_are_those_of_the_scanner(series):
    folder, _, scan, patient = series
    images = images_of(folder)
    scanner, header = (table[patient["truth"]["scanner"]] for table in (SCANNERS, HEADERS))
    first = images[0]
    assert (first.Manufacturer, first.ManufacturerModelName) == (scanner["manufacturer"], scanner["model"])
    assert (first.ConvolutionKernel, first.KVP) == (scanner["kernel"], scanner["kvp"])
    assert (first.SliceThickness, first.WindowCenter, first.WindowWidth) == (5, 35, 90)
    assert first.GantryDetectorTilt == scan["tilt_deg"]
    assert first.ReconstructionDiameter == pytest.approx(scan["pixel_mm"] * MATRIX, abs=1e-3)
    assert first.Exposure == pytest.approx(first.XRayTubeCurrent * header["exposure_ms"] / 1000, abs=0.51)
    assert first.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"]
    numbers = [image.InstanceNumber for image in images]
    expected = list(range(1, len(images) + 1))
    assert numbers == (expected if scanner["from_base"] else expected[::-1])
    times = [image.ContentTime for image in sorted(images, key=lambda image: image.InstanceNumber)]
    assert times == sorted(set(times))
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert len({(image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID) for image in images}) == 1
    names = [Path(image.filename).name for image in images]
    assert names not in (sorted(names), sorted(names)[::-1])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_nothing(series):
    folder = series[0]
    for path in (
        sorted(folder.iterdir())[0],
        folder.with_name("scout") / "IMS0001",
        *folder.with_name("bone").glob("*0"),
    ):
        said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        assert said.stderr.split() == ["CTImage"], said.stderr


def test_dcm2niix_converts_it_alike(series, tmp_path):
    folder, hu, scan, patient = series
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "ct", "-o", tmp_path, folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tilted = scan["tilt_deg"] != 0
    complaints = [line for line in said.splitlines() if "warning" in line.lower() or "error" in line.lower()]
    assert all("these images have gantry tilt" in line for line in complaints)
    assert bool(complaints) == tilted
    if tilted:  # it writes a sheared copy too
        assert f"estimated from slice vector {scan['tilt_deg']:g}" in said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.nii", "ct_Tilt_1.nii"]
        return
    image = nibabel.load(tmp_path / "ct.nii")
    affine = np.column_stack(
        [*(np.array(scan[name]) * scan["pixel_mm"] for name in ("row_direction", "column_direction")), [0, 0, 5.0]]
    )
    read = np.asarray(image.dataobj)[:, ::-1].transpose(2, 1, 0)
    kept = within_circle() if SCANNERS[patient["truth"]["scanner"]]["padding"] is not None else np.True_
    np.testing.assert_array_equal(read[:, kept], hu[:, kept])
    corner = image.affine @ [0, MATRIX - 1, 0, 1]
    np.testing.assert_allclose(corner[:3] * [-1, -1, 1], scan["origins"][0], atol=2e-3)
    np.testing.assert_allclose(np.abs(image.affine[:3, :3]), np.abs(affine), atol=2e-3)


def test_gdcm_and_itk_read_it_alike(series):
    folder, hu, scan, _ = series
    reader = SimpleITK.ImageSeriesReader()
    identities = reader.GetGDCMSeriesIDs(str(folder))
    assert len(identities) == 1
    names = reader.GetGDCMSeriesFileNames(str(folder), identities[0])
    assert len(names) == len(hu)
    kept = within_circle()
    for name, written, origin in zip(names, hu, scan["origins"], strict=True):
        image = SimpleITK.ReadImage(name)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image)[0][kept], written[kept])
        np.testing.assert_allclose(image.GetOrigin(), origin, atol=1e-6)
        np.testing.assert_allclose(image.GetSpacing()[:2], [scan["pixel_mm"]] * 2, atol=1e-6)
        directions = np.reshape(image.GetDirection(), (3, 3))
        expected = np.column_stack([scan[name] for name in ("row_direction", "column_direction", "normal")])
        np.testing.assert_allclose(directions, expected, atol=1e-6)
    direct = gdcm.ImageReader()
    direct.SetFileName(names[0])
    assert direct.Read()


def test_values_fit_their_representation(series):
    """No decimal string beyond 16 characters, nothing empty that must have a value, even lengths."""
    folder = series[0]
    for path in (*sorted(folder.iterdir())[:2], folder.with_name("scout") / "IMS0001"):
        image = pydicom.dcmread(path)
        for element in image:
            for value in element.value if element.VM > 1 else [element.value]:
                if element.VR == "DS":
                    assert len(str(value)) <= 16, element
                if element.VR in ("SH", "CS"):
                    assert len(str(value)) <= 16, element
        assert image["PixelData"].VR == "OW"
        assert len(image.PixelData) == 2 * image.Rows * image.Columns
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "AccessionNumber"):
            assert image.get(keyword), keyword
        assert image.PatientName == "Phantom^D001"
        assert image.PatientID.startswith("HOSP")


def test_haemex_finds_the_head_series_among_the_others(tmp_path):
    patient = a_patient("flash")
    scan = draw_scan(patient, REACH, "baseline", MATRIX, SEED)
    hu = voxels(scan)
    write_scan(tmp_path, hu, scan, patient, "baseline", SEED)
    write_scan(tmp_path, voxels(thin(scan)), thin(scan), patient, "baseline", SEED, series="bone")
    write_scout(tmp_path, hu, scan, patient, "baseline", SEED)
    write_scout(tmp_path, hu, scan, patient, "followup", SEED)
    taken, others = find_series(tmp_path, 5.0)
    assert (taken.number, taken.kernel, taken.slices) == (2, "H30s", len(hu))
    assert {(series.number, series.bone, series.reason) for series in others} == {
        (1, False, "a scout"),
        (3, True, "bone kernel"),
    }
    assert (tmp_path / "IMS0001").is_file()
    assert (tmp_path / "scout" / "IMS0001").is_file()


def test_the_follow_up_is_stamped_hours_later_over_the_turn_of_the_year(tmp_path):
    patient = a_patient("force")
    stamps = []
    for timepoint in ("baseline", "followup"):
        scan = draw_scan(patient, REACH, timepoint, MATRIX, SEED)
        write_scan(tmp_path / timepoint, voxels(scan), scan, patient, timepoint, SEED)
        first = images_of(tmp_path / timepoint)[-1]
        for kind in ("Study", "Series", "Acquisition", "Content"):
            stamp = datetime.strptime(first[f"{kind}Date"].value + first[f"{kind}Time"].value, "%Y%m%d%H%M%S.%f")
            stamps.append(stamp)
    assert stamps[0].date().isoformat() == "2016-12-30"
    for before, after in zip(stamps[:4], stamps[4:], strict=True):
        assert (after - before).total_seconds() == pytest.approx(22.7 * 3600, abs=1)


def test_studies_share_a_patient_and_nothing_else(tmp_path):
    shared, own = set(), set()
    for timepoint in ("baseline", "followup"):
        patient = a_patient("optima")
        scan = draw_scan(patient, REACH, timepoint, MATRIX, SEED)
        write_scan(tmp_path / timepoint, voxels(scan), scan, patient, timepoint, SEED)
        first = images_of(tmp_path / timepoint)[0]
        shared.add((first.PatientID, first.PatientBirthDate, first.DeviceSerialNumber))
        own |= {first.StudyInstanceUID, first.SeriesInstanceUID, first.FrameOfReferenceUID, first.SOPInstanceUID}
    assert len(shared) == 1
    assert len(own) == 8


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    patient = a_patient("perspective", 12.0)
    scan = draw_scan(patient, REACH, "baseline", MATRIX, SEED)
    for name, seed in (("one", SEED), ("two", SEED), ("three", SEED + 1)):
        write_scan(tmp_path / name, voxels(scan), scan, patient, "baseline", seed)
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "three")
    )
    assert one == two
    assert one != three


@pytest.mark.parametrize("tilt_deg", [0.0, 18.5])
def test_a_mask_has_the_affine_that_itk_gives_the_series(tmp_path, tilt_deg):
    patient = a_patient("optima", tilt_deg)
    scan = draw_scan(patient, REACH, "baseline", MATRIX, SEED)
    mask = (np.random.default_rng(0).random((len(scan["origins"]), MATRIX, MATRIX)) < 0.1).astype(np.uint8)
    write_map(tmp_path / "masks" / "m.nii.gz", mask, scan)
    read, affine = read_volume(tmp_path / "masks" / "m.nii.gz")
    np.testing.assert_array_equal(read, mask)
    image = SimpleITK.ReadImage(str(tmp_path / "masks" / "m.nii.gz"))
    np.testing.assert_allclose(image.GetOrigin(), scan["origins"][0], atol=1e-3)
    axes = np.asarray(affine)[:3, :3] * np.array([[-1], [-1], [1]])
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-3)
    if not tilt_deg:
        assert np.linalg.det(axes) == pytest.approx(scan["voxel_mm3"], rel=1e-4)
