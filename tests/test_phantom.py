"""Synthetic patients: the truth they claim is the truth one finds in their files."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from scipy import ndimage

from haemex import phantom
from haemex.nifti import read_volume
from haemex.phantom import draw_head, make_patient, render_scan
from haemex.phantom_cohort import draw_patients, write_cohort_table
from haemex.phantom_haematoma import SIGN_BITS, sign_voxels

MATRIX, SEED = 96, 5
SMALL = {"train": 4, "test": 4, "excluded_each": 1, "matrix": MATRIX}


def eligible(patients):
    return [p for p in patients if not p["truth"]["reason"]]


def of_trap(patients, trap):
    return next(p for p in patients if p["truth"]["trap"] == trap)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All patients of a small study, rendered."""
    folder = tmp_path_factory.mktemp("phantom")
    patients = draw_patients(SMALL, SEED)
    for patient in patients:
        make_patient(patient, folder, MATRIX, SEED)
    return patients, folder


def with_followup(patients):
    return [p for p in patients if p["truth"]["followup_voxels"] is not None]


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


def test_masks_have_the_volumes_of_the_table_and_the_label_follows_from_them(made):
    patients, folder = made
    for patient in with_followup(patients):
        home, truth = folder / patient["row"]["patient"], patient["truth"]
        volumes = []
        for timepoint, stated in (("baseline", truth["volume_ml"]), ("followup", truth["followup_ml"])):
            mask, _ = read_volume(home / f"{timepoint}_mask.nii.gz")
            hu, images = read_scan(home / timepoint)
            assert mask.dtype == np.uint8
            assert mask.shape == hu.shape
            assert 26 <= len(hu) <= 34
            volumes.append(true_volume_ml(mask, images))
            assert volumes[-1] == pytest.approx(stated, rel=1e-3)
        growth, percent = volumes[1] - volumes[0], 100 * (volumes[1] / volumes[0] - 1)
        assert bool(growth > 6 or percent > 33) == bool(truth["expansion"])
        assert bool(growth >= 6 or percent >= 33) == bool(truth["expansion"])


def test_who_died_has_no_second_scan(made):
    patients, folder = made
    (patient,) = [p for p in patients if p["truth"]["followup_voxels"] is None]
    home = folder / patient["row"]["patient"]
    assert patient["truth"]["reason"] == "died_or_surgery"
    assert not list((home / "followup").iterdir())
    assert not read_volume(home / "followup_mask.nii.gz")[0].any()
    truth = json.loads((home / "truth/truth.json").read_text())
    assert truth["followup_ml"] is None and truth["baseline_ml"] == pytest.approx(patient["truth"]["volume_ml"])


def closed_inside(hu):
    """What bone surrounds on each slice."""
    return np.stack([ndimage.binary_fill_holes(bone) & ~bone for bone in hu > 150])


def test_haematomas_stand_out_from_brain(made):
    patients, folder = made
    for patient in patients:
        home = folder / patient["row"]["patient"]
        hu, _ = read_scan(home / "baseline")
        mask = read_volume(home / "baseline_mask.nii.gz")[0] > 0
        other = closed_inside(hu) & ~ndimage.binary_dilation(mask, iterations=2) & (hu > 0) & (hu < 80)
        assert 26 < np.median(hu[other]) < 38
        assert np.median(hu[mask]) > np.median(hu[other]) + 14


def test_the_skull_is_closed_around_brain_and_haematoma(tmp_path):
    patient = draw_patients(SMALL | {"matrix": 192}, SEED)[0]
    make_patient(patient, tmp_path, 192, SEED)
    home = tmp_path / patient["row"]["patient"]
    hu, images = read_scan(home / "baseline")
    mask = read_volume(home / "baseline_mask.nii.gz")[0] > 0
    inside = closed_inside(hu)
    assert inside[mask].all()
    assert 1000 < true_volume_ml(inside & (hu > 0), images) < 2000


def test_an_itk_reader_sees_the_grid_of_the_mask(made):
    patients, folder = made
    patient = next(p for p in eligible(patients) if not p["truth"]["trap"] and not p["truth"]["tilt_deg"])
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
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    squared_ml = mask.sum() * abs(np.linalg.det(affine)) / 1000
    assert squared_ml / true_volume_ml(mask, images) == pytest.approx(1 / np.cos(np.radians(15)), abs=1e-3)


def centre_in_head(one):
    """Centre of mass of a rendered scan's haematoma in the head's own frame, mm, and its mean density."""
    scan = one["scan"]
    z, y, x = np.nonzero(one["mask"])
    steps = [scan["row_direction"], scan["column_direction"]]
    points = scan["origins"][z] + scan["pixel_mm"] * (x[:, None] * steps[0] + y[:, None] * steps[1])
    return (points.mean(0) - scan["position"]) @ scan["turn"], one["hu"][one["mask"] > 0].mean()


def test_a_haematoma_is_grown_once_per_scan(made, tmp_path, monkeypatch):
    """The signs need the baseline haematoma before it is rendered: it is not grown a second time."""
    patients, folder = made
    patient = with_followup(eligible(patients))[0]
    times = []
    monkeypatch.setattr(phantom, "grow", lambda *a, grow=phantom.grow: times.append(1) or grow(*a))
    make_patient(patient, tmp_path, MATRIX, SEED)
    assert len(times) == 2
    name = patient["row"]["patient"]
    alone = render_scan(patient, "baseline", MATRIX, SEED)
    np.testing.assert_array_equal(read_volume(folder / name / "baseline_mask.nii.gz")[0], alone["mask"])
    np.testing.assert_array_equal(read_scan(folder / name / "baseline")[0], alone["hu"])


def test_what_lies_outside_the_cavity_needs_no_brain(monkeypatch):
    """The oracle fills whole slices, not only the window of the cavity, with brain and blood."""
    patient = next(p for p in eligible(draw_patients(SMALL, SEED)) if p["row"]["intraventricular_haemorrhage"])
    windowed = render_scan(patient, "baseline", MATRIX, SEED)

    def everything(inside, step):
        if inside.max() == 0:
            return None, None
        return (slice(0, inside.shape[1]), slice(0, inside.shape[2])), (slice(None), slice(None))

    monkeypatch.setattr(phantom, "_cavity_window", everything)
    whole = render_scan(patient, "baseline", MATRIX, SEED)
    for name in ("mask", "cavity", "tissue"):
        np.testing.assert_array_equal(windowed[name], whole[name])
    assert np.abs(windowed["hu"].astype(int) - whole["hu"]).max() <= 1
    assert (windowed["hu"] != whole["hu"]).mean() < 1e-4


def test_both_scans_show_the_same_head_from_other_places():
    """Tilted or not, turned or not: the haematoma that has not grown lies at the same place of the head."""
    for trap in ("", "tilt"):
        candidates = eligible(draw_patients(SMALL, SEED))
        patient = next(p for p in candidates if (p["truth"]["trap"], p["truth"]["expansion"]) == (trap, 0))
        head = draw_head(patient, SEED)
        one, two = (render_scan(patient, timepoint, MATRIX, SEED, head) for timepoint in ("baseline", "followup"))
        assert np.abs(one["scan"]["position"] - two["scan"]["position"]).max() > 0.5
        (first, density), (second, later) = centre_in_head(one), centre_in_head(two)
        np.testing.assert_allclose(first, second, atol=2.0)
        assert density == pytest.approx(later, abs=6)
        # ... and the rest of the head does too: bone in one scan is bone in the other.
        scan, other = one["scan"], two["scan"]
        z, y, x = np.nonzero(one["tissue"] == phantom.BEYOND_BRAIN["bone"])
        pick = np.random.default_rng(0).choice(len(z), 4000)
        z, y, x = z[pick], y[pick], x[pick]
        steps = [scan["row_direction"], scan["column_direction"]]
        lps = scan["origins"][z] + scan["pixel_mm"] * (x[:, None] * steps[0] + y[:, None] * steps[1])
        lps = (lps - scan["position"]) @ scan["turn"] @ other["turn"].T + other["position"]
        columns = np.stack(
            [
                other["row_direction"] * other["pixel_mm"],
                other["column_direction"] * other["pixel_mm"],
                (other["origins"][-1] - other["origins"][0]) / (len(other["origins"]) - 1),
            ],
            1,
        )
        index = np.rint(np.linalg.solve(columns, (lps - other["origins"][0]).T)).astype(int)[::-1]
        kept = ((index >= 0) & (index < np.array(two["tissue"].shape)[:, None])).all(0)
        same = two["tissue"][tuple(index[:, kept])] == phantom.BEYOND_BRAIN["bone"]
        assert kept.mean() > 0.8
        assert same.mean() > 0.7  # of 1.5-mm pixels, 5-mm slices between


def test_the_truth_is_that_of_the_masks_and_the_table(made):
    patients, folder = made
    signs_seen = set()
    for patient in patients:
        home, row = folder / patient["row"]["patient"], patient["row"]
        truth = json.loads((home / "truth/truth.json").read_text())
        mask, affine = read_volume(home / "baseline_mask.nii.gz")
        tissue, on = read_volume(home / "truth/tissue.nii.gz")
        signs, _ = read_volume(home / "truth/signs.nii.gz")
        np.testing.assert_allclose(affine, on)
        names = {int(label): name for label, name in truth["tissues"].items()}
        np.testing.assert_array_equal(tissue == phantom.BEYOND_BRAIN["haematoma"], mask > 0)
        assert set(np.unique(tissue)) <= {0, *names}
        assert truth["baseline_ml"] == pytest.approx(patient["truth"]["volume_ml"])
        if patient["truth"]["site"] == "ventricle":  # blood there shows no signs, and grows to where there is room
            continue
        for sign, bit in SIGN_BITS.items():
            voxels = signs & bit
            assert bool(voxels.any()) == bool(row[sign]), (row["patient"], sign)
            assert not (voxels[mask == 0]).any()
            signs_seen |= {sign} if row[sign] else set()
        if patient["truth"]["followup_voxels"]:
            growth, _ = read_volume(home / "truth/growth.nii.gz")
            grown = growth[ndimage.binary_dilation(mask > 0)].mean()
            radii = [(truth[f"{when}_ml"] * 3000 / (4 * np.pi)) ** (1 / 3) for when in ("baseline", "followup")]
            assert grown == pytest.approx(radii[1] - radii[0], abs=0.35 + 0.35 * abs(radii[1] - radii[0]))
    assert len(signs_seen) >= 4


def test_no_stage_reads_the_truth():
    """The rules name no file of the truth folder but the one that the phantom writes."""
    root = Path(phantom.__file__).parents[1]
    for path in [*(root / "workflow").rglob("*.smk"), *(root / "workflow/scripts").glob("*.py"), root / "Snakefile"]:
        if path.name != "phantom.smk":
            assert "/truth" not in path.read_text(), path


def test_a_scout_and_a_thin_reconstruction_stand_beside_their_series(made):
    patients, folder = made
    home = folder / of_trap(patients, "scout")["row"]["patient"]
    for scout in (home / "baseline/IMS0001", home / "followup/scout/IMS0001"):
        header = pydicom.dcmread(scout)
        assert "LOCALIZER" in header.ImageType
        assert header.pixel_array.std() > 50
    home = folder / of_trap(patients, "thin")["row"]["patient"]
    _, images = read_scan(home / "baseline")
    _, others = read_scan(home / "baseline", "IMB")
    assert others[0].SliceThickness == 2.5
    assert len(others) == 2 * len(images) - 1  # the same length in half the thickness
    assert others[0].SeriesInstanceUID != images[0].SeriesInstanceUID
    assert others[0].ConvolutionKernel != images[0].ConvolutionKernel


def test_files_are_ct_images_with_an_invented_identity(made):
    patients, folder = made
    models, seen = set(), set()
    for patient in with_followup(patients):
        home = folder / patient["row"]["patient"]
        for timepoint in ("baseline", "followup"):
            hu, images = read_scan(home / timepoint)
            first = images[0]
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
    dices = []
    for patient in patients:
        home = folder / patient["row"]["patient"]
        first = read_volume(home / "baseline_mask.nii.gz")[0]
        second = read_volume(home / "baseline_mask_rater2.nii.gz")[0]
        dices.append(2 * (first & second).sum() / (first.sum() + second.sum()))
    assert min(dices) > 0.85
    assert 0.92 < np.mean(dices) < 0.98


def test_the_same_patient_gives_the_same_bytes_whoever_comes_before(made, tmp_path):
    patients, folder = made
    patient = of_trap(patients, "scout")
    make_patient(patient, tmp_path, MATRIX, SEED)
    home = folder / patient["row"]["patient"]
    files = sorted(path.relative_to(home) for path in home.rglob("*") if path.is_file())
    assert len(files) > 60
    for name in files:
        assert (tmp_path / patient["row"]["patient"] / name).read_bytes() == (home / name).read_bytes(), name


def test_the_cohort_table_names_the_files_of_each_patient(made):
    patients, folder = made
    write_cohort_table(patients, folder / "cohort.tsv", folder)
    lines = (folder / "cohort.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    for line in lines[1:]:
        row = dict(zip(header, line.split("\t"), strict=True))
        for name in ("baseline_ct", "followup_ct", "baseline_mask", "followup_mask", "baseline_mask_rater2"):
            assert not row[name] or Path(row[name]).exists()
        assert row["baseline_ct"] and row["baseline_mask"]


# ------------------------------------------------------------------------------------------------------ planted signs


def sign_contrast(one, bit, signs):
    """Largest difference, over the slices, between the blood free of signs and the voxels of one sign, HU; and these.

    Outermost voxels do not count, which are partly brain or partly another region.
    """
    hu, best = one["hu"].astype(float), (-np.inf, np.nan)
    regional = signs & ~np.uint8(SIGN_BITS["irregular_shape"])
    for number in range(len(hu)):
        here = (signs[number] & bit) > 0
        here = ndimage.binary_erosion(here) if here.sum() > 30 else here
        blood = ndimage.binary_erosion(one["mask"][number] > 0, iterations=2) & (regional[number] == 0)
        if here.sum() >= 5 and blood.sum() >= 8:
            value = np.median(hu[number][here])
            best = max(best, (np.median(hu[number][blood]) - value, value))
    return best


def check_planted_signs(patients, matrix, seed):
    """Measure every sign that the table names in the finished scan, noise, blur and beam hardening included."""
    found = {sign: [] for sign in SIGN_BITS}
    for patient in patients:
        one = render_scan(patient, "baseline", matrix, seed)
        signs = sign_voxels(one["scan"], one["mask"], one["lesion"], one["threshold_mm"])
        for sign, bit in SIGN_BITS.items():
            assert bool((signs & bit).any()) == bool(patient["row"][sign]), (patient["row"]["patient"], sign)
            if patient["row"][sign]:
                found[sign].append((*sign_contrast(one, bit, signs), patient["row"]["patient"]))
    limits = {"black_hole": 28.0, "blend": 18.0, "hypodensity": 8.0, "swirl": 18.0}  # the first two: suppl. Table 2
    for sign, least in limits.items():
        missed = [one for one in found[sign] if one[0] < least]
        assert len(missed) <= 0.05 * len(found[sign]), (sign, missed)
    assert np.median([value for _, value, _ in found["swirl"]]) < 38  # iso- or hypodense to brain
    return found


@pytest.mark.slow
def test_planted_signs_measure_as_they_were_planted():
    patients = eligible(draw_patients({"train": 30, "test": 30, "excluded_each": 0, "matrix": 192}, 77))
    check_planted_signs(patients, 192, 77)
