"""Synthetic patients: the truth they claim is the truth one finds in their files."""

import csv
import datetime
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from scipy import ndimage

from haemex import phantom
from haemex.cohort import ineligibility, read_cohort_table
from haemex.errors import InputError
from haemex.nifti import read_volume
from haemex.phantom import best_reachable_auc, draw_patients, implant, make_patient, write_cohort_table, write_truth

SMALL = {"train": 4, "test": 4, "excluded_each": 1, "matrix": 64}
PAPER = {"train": 189, "test": 77, "excluded_each": 2, "matrix": 512}
ELIGIBILITY = {"min_age_years": 18, "max_onset_to_ct_h": 8.0, "followup_h": [20.0, 24.0]}


def eligible(patients, cohort=None):
    return [p for p in patients if not p["truth"]["reason"] and cohort in (None, p["truth"]["cohort"])]


def column(patients, name):
    return [p["row"][name] for p in patients if p["row"][name] is not None]


# ------------------------------------------------------------------------------------------------------------- draw


def test_the_same_seed_draws_the_same_patients():
    assert draw_patients(SMALL, 5) == draw_patients(SMALL, 5)
    assert draw_patients(SMALL, 5) != draw_patients(SMALL, 6)


@pytest.mark.parametrize("settings", [SMALL, {"train": 24, "test": 16, "excluded_each": 1, "matrix": 256}])
@pytest.mark.parametrize("seed", [1, 2021])
def test_every_cohort_has_patients_with_and_without_expansion(settings, seed):
    patients = draw_patients(settings, seed)
    for cohort in ("train", "test"):
        members = eligible(patients, cohort)
        assert len(members) == settings[cohort]
        assert 0.25 <= np.mean([p["truth"]["expansion"] for p in members]) <= 0.34
    assert {p["truth"]["trap"] for p in eligible(patients)} == {"", *phantom.TRAPS}
    for trap in phantom.TRAPS:
        assert sum(p["truth"]["trap"] == trap for p in patients) == 1


def test_only_the_eligible_patients_pass_the_studys_criteria(tmp_path):
    patients = draw_patients(PAPER, 3)
    write_cohort_table(patients, tmp_path / "cohort.tsv", "results/phantom")
    rows = {row["patient"]: row for row in read_cohort_table(tmp_path / "cohort.tsv")}
    assert list(rows) == sorted(rows)
    assert len(rows) == 189 + 77 + 7 * 2
    ineligible = {}
    for patient in patients:
        row, truth = rows[patient["row"]["patient"]], patient["truth"]
        assert bool(ineligibility(row, ELIGIBILITY)) == bool(truth["reason"])
        ineligible[truth["reason"]] = ineligible.get(truth["reason"], 0) + 1
        if not truth["reason"]:
            first, last = phantom.COHORT_DATES[truth["cohort"]]
            assert first <= row["admission_date"] <= last
    assert ineligible == {"": 266, **dict.fromkeys(phantom.NOT_ELIGIBLE, 2)}
    assert phantom.COHORT_DATES["train"] == (datetime.date(2012, 2, 1), datetime.date(2018, 8, 31))
    assert phantom.COHORT_DATES["test"] == (datetime.date(2018, 9, 1), datetime.date(2019, 10, 31))


def test_marginals_are_those_of_table_1():
    patients = draw_patients(PAPER, 4)
    printed = {  # counts of the paper's Table 1
        "hypodensity": (132, 44),
        "black_hole": (28, 12),
        "swirl": (116, 44),
        "blend": (24, 13),
        "fluid_level": (13, 9),
        "irregular_shape": (143, 50),
        "heterogeneous_density": (100, 34),
        "intraventricular_haemorrhage": (70, 31),
        "prestroke": (13, 11),
        "antiplatelet": (13, 7),
        "anticoagulation": (2, 0),
    }
    for index, cohort in enumerate(("train", "test")):
        members = eligible(patients, cohort)
        for name, counts in printed.items():
            assert sum(column(members, name)) == counts[index], name
        assert sum(sex == "m" for sex in column(members, "sex")) == (132, 54)[index]
        assert np.mean(column(members, "age_years")) == pytest.approx((62.2, 63.3)[index], abs=1)
        assert np.std(column(members, "age_years")) == pytest.approx((13.4, 12.0)[index], abs=1.5)
        assert np.mean(column(members, "onset_to_ct_h")) == pytest.approx((3.4, 3.9)[index], abs=0.4)
        assert np.median(column(members, "nihss")) == pytest.approx((9, 8)[index], abs=1.5)
        volumes = [p["truth"]["volume_ml"] for p in members]
        assert np.mean(volumes) == pytest.approx((17.4, 17.8)[index], abs=2)
        assert 4 <= min(volumes) < 6 < 45 < max(volumes) <= 60
        assert 0 < len(members) - len(column(members, "hypertension")) <= 3
        for p in members:
            assert p["row"]["hypodensity"] >= p["row"]["black_hole"]


def test_readers_agree_as_in_the_paper():
    patients = eligible(draw_patients(PAPER, 4))
    for marker in phantom.SIGNS:
        first, second = np.array([[p["row"][marker], p["row"][f"{marker}_rater2"]] for p in patients]).T
        observed = (first == second).mean()
        by_chance = first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean())
        assert (observed - by_chance) / (1 - by_chance) == pytest.approx(phantom.SIGNS[marker]["kappa"], abs=0.07)


def test_labels_follow_their_probabilities():
    patients = eligible(draw_patients({"train": 1500, "test": 900, "excluded_each": 0, "matrix": 64}, 9))
    labels = np.array([p["truth"]["expansion"] for p in patients])
    visible = np.array([p["truth"]["p_visible"] for p in patients])
    assert visible.mean() == pytest.approx(74 / 266, abs=0.01)
    assert labels.mean() == pytest.approx(74 / 266, abs=0.03)
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)):
        inside = (visible >= low) & (visible < high)
        assert labels[inside].mean() == pytest.approx(visible[inside].mean(), abs=0.05)
    positive, negative = visible[labels == 1], visible[labels == 0]
    auc = (positive[:, None] > negative).mean()
    assert auc == pytest.approx(best_reachable_auc(visible), abs=0.025)
    assert 0.8 < best_reachable_auc(visible) < 0.9


def test_best_reachable_auc_by_hand():
    # Pairs (expanding, not): (first, second) has weight 0.8 * 0.8 and is ordered rightly, (second, first) 0.2 * 0.2.
    assert best_reachable_auc([0.8, 0.2]) == pytest.approx(0.64 / 0.68)
    assert best_reachable_auc([0.3, 0.3, 0.3]) == 0.5
    assert best_reachable_auc([1, 1, 0, 0]) == 1.0
    with pytest.raises(ValueError, match="no pair"):
        best_reachable_auc([1.0, 1.0])


def test_best_reachable_auc_by_simulation():
    rng = np.random.default_rng(0)
    p = rng.beta(0.8, 2, 60)
    labels = rng.random((4000, 60)) < p
    right = ((p[:, None] > p) * labels[:, :, None] * ~labels[:, None, :]).sum()
    assert right / (labels[:, :, None] * ~labels[:, None, :]).sum() == pytest.approx(best_reachable_auc(p), abs=0.005)


def test_tables_are_rewritten_only_when_they_differ(tmp_path):
    patients = draw_patients(SMALL, 5)
    for write in (
        lambda p: write_cohort_table(p, tmp_path / "t.tsv", "x"),
        lambda p: write_truth(p, tmp_path / "t.tsv"),
    ):
        write(patients)
        before = (tmp_path / "t.tsv").stat()
        write(patients)
        after = (tmp_path / "t.tsv").stat()
        assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
        write(draw_patients(SMALL, 6))
        assert (tmp_path / "t.tsv").stat().st_ino != after.st_ino


def test_the_cohort_table_names_the_files_of_each_patient(made):
    patients, folder = made
    write_cohort_table(patients, folder / "cohort.tsv", folder)
    with (folder / "cohort.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(len(row) == len(phantom.COLUMNS) for row in rows)
    for row in rows:
        for name in ("baseline_ct", "followup_ct", "baseline_mask", "followup_mask"):
            assert Path(row[name]).exists()
        assert row["followup_volume_ml"] == ""
    twice = [row["baseline_mask_rater2"] for row in rows if row["baseline_mask_rater2"]]
    assert len(twice) == 6
    assert all(Path(path).exists() for path in twice)


# ----------------------------------------------------------------------------------------------------------- render


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All patients of a small study, rendered."""
    folder = tmp_path_factory.mktemp("phantom")
    patients = draw_patients(SMALL, 5)
    for patient in patients:
        make_patient(patient, folder, SMALL["matrix"], 5)
    return patients, folder


def read_scan(folder, prefix="IMA"):
    """Slices of the main series in the order of their positions, by an own route: HU (z, y, x), headers."""
    images = [pydicom.dcmread(path) for path in folder.glob(f"{prefix}*")]
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    images.sort(key=lambda image: normal @ np.array(image.ImagePositionPatient, float))
    return np.stack([image.pixel_array * image.RescaleSlope + image.RescaleIntercept for image in images]), images


def true_volume_ml(mask, images):
    """Volume by pixel area and the distance between the planes."""
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    positions = [normal @ np.array(image.ImagePositionPatient, float) for image in images]
    return mask.sum() * np.prod(np.array(images[0].PixelSpacing, float)) * np.diff(positions).mean() / 1000


def of_trap(patients, trap):
    return next(p for p in patients if p["truth"]["trap"] == trap)


def test_masks_have_the_drawn_volumes_and_agree_with_the_label(made):
    patients, folder = made
    for patient in patients:
        home, truth = folder / patient["row"]["patient"], patient["truth"]
        volumes = []
        for timepoint, target in (("baseline", truth["volume_ml"]), ("followup", truth["followup_ml"])):
            mask, _ = read_volume(home / f"{timepoint}_mask.nii.gz")
            hu, images = read_scan(home / timepoint)
            assert mask.dtype == np.uint8
            assert mask.shape == hu.shape
            assert 27 <= len(hu) <= 34
            volumes.append(true_volume_ml(mask, images))
            assert volumes[-1] == pytest.approx(target, abs=0.06)  # half a voxel; the request is 10 %
        growth, percent = volumes[1] - volumes[0], 100 * (volumes[1] / volumes[0] - 1)
        if truth["expansion"] and truth["site"] not in ("cerebellum", "ventricle"):
            assert growth > 8 or percent > 42
        elif not truth["expansion"]:
            assert growth < 4
            assert percent < 19


def closed_inside(hu):
    """What bone surrounds on each slice."""
    return np.stack([ndimage.binary_fill_holes(bone) & ~bone for bone in hu > 150])


def test_haematomas_stand_out_from_brain(made):
    patients, folder = made
    for patient in patients:
        home = folder / patient["row"]["patient"]
        hu, _ = read_scan(home / "baseline")
        mask = read_volume(home / "baseline_mask.nii.gz")[0] > 0
        other = closed_inside(hu) & ~ndimage.binary_dilation(mask, iterations=2) & (hu > -50) & (hu < 120)
        assert 24 < np.median(hu[other]) < 36
        assert np.median(hu[mask]) > np.median(hu[other]) + 14


def test_the_skull_is_closed_around_brain_and_haematoma(made, tmp_path):
    patients, _ = made
    for reason in ("", "infratentorial"):
        patient = next(p for p in patients if p["truth"]["reason"] == reason)
        make_patient(patient, tmp_path, 128, 5)
        home = tmp_path / patient["row"]["patient"]
        hu, images = read_scan(home / "baseline")
        mask = read_volume(home / "baseline_mask.nii.gz")[0] > 0
        inside = closed_inside(hu)
        assert inside[mask].all()
        tissue = inside & (hu > 0)
        assert 1000 < true_volume_ml(tissue, images) < 2000


def test_an_itk_reader_sees_the_grid_of_the_mask(made):
    patients, folder = made
    patient = next(p for p in eligible(patients) if not p["truth"]["trap"])
    home = folder / patient["row"]["patient"]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(home / "baseline")))
    image = reader.Execute()
    hu, _ = read_scan(home / "baseline")
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), hu)
    affine = read_volume(home / "baseline_mask.nii.gz")[1]
    for index in ((0, 0, 0), (10, 20, 5)):
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((affine @ [*index, 1])[:3], np.multiply(lps, (-1, -1, 1)), atol=1e-3)


def test_a_tilted_scan_squares_only_its_masks_affine(made):
    patients, folder = made
    home = folder / of_trap(patients, "tilt")["row"]["patient"]
    mask, affine = read_volume(home / "baseline_mask.nii.gz")
    _, images = read_scan(home / "baseline")
    origins = np.array([image.ImagePositionPatient for image in images], float)
    table = np.diff(origins, axis=0)
    assert np.allclose(table[:, :2], 0, atol=1e-3)  # the table moves along z
    assert np.allclose(table[:, 2], 5 / np.cos(np.radians(15)), atol=1e-3)
    assert float(images[0].ImageOrientationPatient[5]) == pytest.approx(-np.sin(np.radians(15)), abs=1e-6)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    squared_ml = mask.sum() * abs(np.linalg.det(affine)) / 1000
    assert squared_ml / true_volume_ml(mask, images) == pytest.approx(1 / np.cos(np.radians(15)), abs=1e-3)


def test_tilted_planes_show_the_same_head():
    patient = next(p for p in eligible(draw_patients(SMALL, 5)) if p["truth"]["scanner"] == "optima")
    centres = []
    for trap in ("", "tilt"):
        patient["truth"]["trap"] = trap
        head = phantom._draw_head(patient, 5)
        scan = phantom._draw_scan(patient, head, "baseline", 96, 5)
        lesion = phantom._draw_lesion(patient, head, 5)
        mask, threshold = phantom._grow(scan, head, lesion, 20.0)
        hu = phantom._render(scan, head, lesion, threshold, 3.0, (5, "noise"))
        z, y, x = np.nonzero(mask)
        steps = [scan["row_direction"], scan["column_direction"]]
        points = scan["origins"][z] + scan["pixel_mm"] * (x[:, None] * steps[0] + y[:, None] * steps[1])
        centres.append([*points.mean(0), hu[mask > 0].mean()])
    np.testing.assert_allclose(centres[0][:3], centres[1][:3], atol=1.0)
    assert centres[0][3] == pytest.approx(centres[1][3], abs=2)


def test_a_scout_and_a_thin_reconstruction_stand_beside_their_series(made):
    patients, folder = made
    home = folder / of_trap(patients, "scout")["row"]["patient"]
    for scout in (home / "baseline/IMS0001", home / "followup/scout/IMS0001"):
        header = pydicom.dcmread(scout)
        assert "LOCALIZER" in header.ImageType
        assert header.pixel_array.std() > 50
    home = folder / of_trap(patients, "thin")["row"]["patient"]
    hu, images = read_scan(home / "baseline")
    thin, others = read_scan(home / "baseline", "IMB")
    assert others[0].SliceThickness == 2.5
    assert len(others) == 2 * len(images) - 1  # the same length in half the thickness
    assert others[0].SeriesInstanceUID != images[0].SeriesInstanceUID
    assert others[0].ConvolutionKernel != images[0].ConvolutionKernel
    noise = [np.diff(volume[:, 26:38, 26:38], axis=2).std() for volume in (thin[-8:], hu[12:18])]
    assert noise[0] > 1.5 * noise[1]


def test_files_are_ct_images_with_an_invented_identity(made):
    patients, folder = made
    models, seen = set(), set()
    for patient in patients:
        home = folder / patient["row"]["patient"]
        for timepoint in ("baseline", "followup"):
            hu, images = read_scan(home / timepoint)
            first = images[0]
            assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert first.SOPClassUID == pydicom.uid.CTImageStorage
            assert (first.SliceThickness, first.WindowCenter, first.WindowWidth) == (5, 35, 90)
            assert str(first.PatientName) == f"Phantom^{patient['row']['patient']}"
            assert first.InstitutionName == "Synthetic General Hospital"
            assert first.AccessionNumber
            assert first.PatientBirthDate
            assert ("PixelPaddingValue" in first) == (first.Manufacturer == "GE MEDICAL SYSTEMS")
            assert (hu[:, 0, 0] == (-3024 if "PixelPaddingValue" in first else hu[:, 0, 0])).all()
            uids = {image.SOPInstanceUID for image in images} | {first.StudyInstanceUID, first.SeriesInstanceUID}
            assert len(uids) == len(images) + 2
            assert not uids & seen
            seen |= uids
            models.add(first.ManufacturerModelName)
            names = sorted(path.name for path in (home / timepoint).glob("IMA*"))
            in_order = [Path(image.filename).name for image in images]
            assert in_order not in (names, names[::-1])
    assert models == {"Optima CT540", "SOMATOM Definition Flash", "SOMATOM Force", "SOMATOM Perspective"}


def test_the_second_reading_differs_a_little(made):
    patients, folder = made
    for patient in patients:
        home = folder / patient["row"]["patient"]
        first = read_volume(home / "baseline_mask.nii.gz")[0]
        second = read_volume(home / "baseline_mask_rater2.nii.gz")[0]
        dice = 2 * (first & second).sum() / (first.sum() + second.sum())
        assert 0.85 < dice < 1


def test_the_same_patient_gives_the_same_bytes(made, tmp_path):
    patients, folder = made
    patient = of_trap(patients, "scout")
    make_patient(patient, tmp_path, SMALL["matrix"], 5)
    home = folder / patient["row"]["patient"]
    files = sorted(path.relative_to(home) for path in home.rglob("*") if path.is_file())
    assert len(files) > 60
    for name in files:
        assert (tmp_path / patient["row"]["patient"] / name).read_bytes() == (home / name).read_bytes(), name


def test_a_head_without_room_is_refused():
    patient = eligible(draw_patients(SMALL, 5))[0]
    head = phantom._draw_head(patient, 5)
    scan = phantom._draw_scan(patient, head, "baseline", 32, 5)
    with pytest.raises(InputError, match="no room"):
        phantom._grow(scan, head, phantom._draw_lesion(patient, head, 5), 900.0)


# ---------------------------------------------------------------------------------------------------------- implant


@pytest.fixture(scope="module")
def implanted(shared, tmp_path_factory):
    """The real series, and two haematomas of one seed implanted into it, with the volumes `implant` returned."""
    folder = tmp_path_factory.mktemp("implant")
    with tarfile.open(shared / "data/head_ge_tilt_uneven.tar.xz") as archive:
        archive.extractall(folder / "real", filter="data")
    volumes = [implant(folder / "real", folder / name, ml, 7) for name, ml in (("before", 12.0), ("after", 21.0))]
    return folder, volumes


def real_scan(folder):
    images = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    images = [image for image in images if "PixelData" in image]
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    images.sort(key=lambda image: normal @ np.array(image.ImagePositionPatient, float))
    return np.stack([image.pixel_array for image in images]), images, normal


def test_implanted_volumes_are_true(implanted):
    folder, volumes = implanted
    _, images, normal = real_scan(folder / "before/dicom")
    positions = np.array([normal @ np.array(image.ImagePositionPatient, float) for image in images])
    for name, volume_ml, wanted in zip(("before", "after"), volumes, (12.0, 21.0), strict=True):
        mask, _ = read_volume(folder / name / "mask.nii.gz")
        # By hand: each slice reaches half-way to its neighbours, the end slices as far out as in.
        edges = np.concatenate([[np.nan], (positions[1:] + positions[:-1]) / 2, [np.nan]])
        edges[0], edges[-1] = 2 * positions[0] - edges[1], 2 * positions[-1] - edges[-2]
        by_hand = (mask.sum((1, 2)) * np.diff(edges)).sum() * 0.4882812**2 / 1000
        assert volume_ml == pytest.approx(by_hand, rel=1e-6)
        assert volume_ml == pytest.approx(wanted, abs=0.01)


def test_implanted_blood_lies_in_brain_and_nowhere_else(implanted):
    folder, _ = implanted
    before, _, _ = real_scan(folder / "real")
    masks = []
    for name in ("before", "after"):
        hu, _, _ = real_scan(folder / name / "dicom")
        mask = read_volume(folder / name / "mask.nii.gz")[0] > 0
        assert 50 < hu[mask].mean() < 75
        assert before[mask].max() < 120  # no bone under it
        assert 20 < before[mask].mean() < 40
        reach = ndimage.maximum_filter(mask, (5, 45, 45))  # two slices, 11 mm
        np.testing.assert_array_equal(hu[~reach], before[~reach])
        assert hu.min() == -1500
        masks.append(mask)
    assert (masks[1] >= masks[0]).all()


def test_a_centre_in_patient_coordinates_is_kept(implanted, tmp_path):
    folder, _ = implanted
    mask, _ = read_volume(folder / "before/mask.nii.gz")
    _, images, _ = real_scan(folder / "real")

    def centroid(mask):
        z, y, x = np.nonzero(mask)
        points = []
        for image, voxels in ((images[k], z == k) for k in np.unique(z)):
            row, col = np.reshape(np.array(image.ImageOrientationPatient, float), (2, 3)) * float(image.PixelSpacing[0])
            points.append(np.array(image.ImagePositionPatient, float) + x[voxels, None] * row + y[voxels, None] * col)
        return np.concatenate(points).mean(0) * (-1, -1, 1)

    other_side = centroid(mask) * (-1, 1, 1)
    implant(folder / "real", tmp_path, 6.0, 8, centre_ras_mm=other_side)
    np.testing.assert_allclose(centroid(read_volume(tmp_path / "mask.nii.gz")[0]), other_side, atol=5)
    with pytest.raises(InputError, match="room for 0"):
        implant(folder / "real", tmp_path, 6.0, 8, centre_ras_mm=(0, 400, 0))


def test_an_implanted_series_has_new_uids_and_no_identity(implanted):
    folder, _ = implanted
    _, real, _ = real_scan(folder / "real")
    old = {str(real[0].StudyInstanceUID), str(real[0].SeriesInstanceUID), *(str(i.SOPInstanceUID) for i in real)}
    uids = []
    for name in ("before", "after"):
        _, images, _ = real_scan(folder / name / "dicom")
        uids.append({str(image.SOPInstanceUID) for image in images})
        for image in images:
            assert not any(element.tag.is_private for element in image)
            assert str(image.PatientID) != str(real[0].PatientID)
            assert image.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert not old & uids[0]
    assert not uids[0] & uids[1]
    assert len(uids[0]) == 28


def test_a_mask_holds_no_piece_that_no_reader_would_outline():
    """The demo's third patient: where the outline breaks up, the haematoma on the slices ended in a speck."""
    patient = phantom.draw_patients({"train": 30, "test": 30, "excluded_each": 1, "matrix": 192}, 2021)[2]
    head = phantom._draw_head(patient, 2021)
    scan = phantom._draw_scan(patient, head, "baseline", 192, 2021)
    lesion = phantom._draw_lesion(patient, head, 2021) | {"radius": phantom._radius(patient["truth"]["volume_ml"])}
    mask, _ = phantom._grow(scan, head, lesion, patient["truth"]["volume_ml"])
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count >= 1
    assert np.bincount(pieces.ravel())[1:].min() * scan["voxel_mm3"] >= 20
