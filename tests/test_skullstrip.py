import json
import re
import tarfile

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from haemex import phantom
from haemex.errors import InputError
from haemex.geometry import slice_spacing_mm
from haemex.nifti import read_volume, write_volume
from haemex.phantom_background import implant
from haemex.phantom_cohort import DEEP, draw_patients
from haemex.skullstrip import (
    brain_warnings,
    dilate,
    drop_small,
    find_brain,
    largest_component,
    otsu_threshold,
    skullstrip_scan,
)

INNER_MM, OUTER_MM, SCALP_MM = 66.0, 73.0, 78.0
BALL_ML = 4 / 3 * np.pi * INNER_MM**3 / 1000


def head(pixel_mm=1.0, slice_mm=5.0, shear=0.0, noise_hu=3.0, skull_mm=OUTER_MM - INNER_MM, edge_mm=0.01):
    """A ball of brain in a skull in a scalp; coordinates in mm about its centre come with it.

    `edge_mm` is the width of the blurred edge between brain and skull; `ball` is where at least half is brain.
    """
    size, slices = round(190 / pixel_mm), round(180 / slice_mm)
    affine = np.array([[-pixel_mm, 0, 0, 95.0], [0, -pixel_mm, shear, 95.0], [0, 0, slice_mm, -90.0], [0, 0, 0, 1.0]])
    affine[1, 3] -= shear * (slices - 1) / 2
    z, y, x = np.meshgrid(*(np.arange(n) for n in (slices, size, size)), indexing="ij")
    x, y, z = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in affine[:3])
    radius = np.sqrt(x**2 + y**2 + z**2)
    outer_mm = INNER_MM + skull_mm
    outside = np.select([radius < outer_mm, radius < outer_mm + SCALP_MM - OUTER_MM], [1000.0, 20.0], -1000.0)
    inside = brain_fraction(radius, edge_mm)
    hu = inside * 35.0 + (1 - inside) * outside
    hu += np.random.default_rng(1).normal(0, noise_hu, hu.shape)
    return hu, affine, (x, y, z), inside >= 0.5


def brain_fraction(radius, edge_mm):
    return np.clip((INNER_MM - radius) / edge_mm + 0.5, 0, 1)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def as_scan(hu):
    return np.rint(hu).astype(np.int16)


def ml(mask, affine):
    return mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000


def test_otsu_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-1000, 30, 4000), rng.normal(35, 8, 5000), rng.normal(900, 200, 1000)])
    values = np.clip(np.rint(values), -1000, 1000)
    ours = otsu_threshold(values, (-1000, 1000))
    theirs = threshold_otsu(values.astype(int))
    assert ((values > ours) == (values > theirs)).all()


def test_otsu_by_hand():
    # Two values only: every threshold between them parts them; the middle of 10..19 (upper class: greater) is taken.
    assert otsu_threshold(np.array([10, 10, 10, 20]), (0, 100)) == 14.5
    assert otsu_threshold(np.array([-50, 300, 300]), (0, 100)) == pytest.approx(49.5)  # clipped to 0 and 100
    assert otsu_threshold(np.full(5, 7), (0, 100)) == 7


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.8, 1.1)])
@pytest.mark.parametrize("radius", [0.5, 3.0, 4.0, 6.5])
def test_dilate_agrees_with_distances(radius, spacing):
    mask = np.zeros((2, 24, 31), bool)
    mask[0, 3, 5] = mask[0, 12, 30] = mask[1, 23, 0] = True
    expected = [ndimage.distance_transform_edt(~plane, sampling=spacing) <= radius + 1e-9 for plane in mask]
    np.testing.assert_array_equal(dilate(mask, radius, spacing), expected)


def test_dilate_with_a_radius_beyond_the_image():
    mask = np.zeros((1, 4, 5), bool)
    mask[0, 1, 1] = True
    assert dilate(mask, 50.0, (1, 1)).all()


def test_drop_small():
    mask = np.zeros((1, 3, 5), bool)
    mask[0, 0, 0] = mask[0, 2, 1:4] = True
    np.testing.assert_array_equal(drop_small(mask, 2), largest_component(mask))
    np.testing.assert_array_equal(drop_small(mask, 1), mask)
    assert not drop_small(mask, 4).any()


def test_largest_component():
    mask = np.zeros((1, 3, 5), bool)
    mask[0, 0, 0] = mask[0, 2, 1:4] = True
    assert largest_component(mask).sum() == 3
    assert not largest_component(np.zeros((1, 2, 2), bool)).any()


@pytest.mark.parametrize(("pixel_mm", "shear"), [(1.0, 0.0), (0.5, 0.0), (0.9, -1.6)])
def test_ball_of_known_volume(pixel_mm, shear):
    hu, affine, _, ball = head(pixel_mm, shear=shear)
    brain, (air_hu, bone_hu, *_) = find_brain(as_scan(hu), affine, 4.0)
    assert -700 < air_hu < -200
    assert 90 < bone_hu < 140
    # The caps at the poles, thinner than the opening, may be lost; nothing outside the skull's inner face may be won.
    assert ml(brain, affine) == pytest.approx(BALL_ML, rel=0.02)
    assert not (brain & ~ball).any()
    assert 2 * (brain & ball).sum() / (brain.sum() + ball.sum()) > 0.985


def test_haematoma_ventricle_and_calcification_belong_to_the_brain():
    hu, affine, (x, y, z), ball = head()
    haematoma = ball & ((x - 50) ** 2 + y**2 + z**2 < 20**2)  # reaches the skull
    ventricle = x**2 + (y / 2) ** 2 + z**2 < 12**2
    calcification = (x + 20) ** 2 + (y - 10) ** 2 + z**2 < 6**2
    hu[haematoma], hu[ventricle], hu[calcification] = 78, 5, 400
    assert (haematoma & (np.sqrt(x**2 + y**2 + z**2) > INNER_MM - 1.5)).any()
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert brain[ventricle].all()
    assert brain[calcification].all()
    assert brain[haematoma].mean() > 0.99


def test_head_holder_and_scalp_stay_out():
    hu, affine, (x, y, z), ball = head()
    outside = np.sqrt(x**2 + y**2 + z**2) > SCALP_MM
    holder = outside & (np.abs(np.hypot(x, y) - 90) < 1.5) & (y < 30)
    hu[holder] = 500
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert not (brain & ~ball).any()


def leaked_ml(opening_mm, seal_gap_mm):
    """Brain volume beyond the skull where an opening leads to a bony chamber as big as an orbit, filled with muscle."""
    hu, affine, (x, y, z), _ = head()
    chamber = (np.abs(x) < 24) & (y > 74) & (y < 94) & (np.abs(z) < 25)
    wall = (np.abs(x) < 29) & (y > 68) & (y < 95) & (np.abs(z) < 30) & (np.sqrt(x**2 + y**2 + z**2) > INNER_MM)
    hu[wall] = 1000
    hu[chamber] = 45
    hu[(np.abs(x) < opening_mm / 2) & (y > 50) & (y < 80) & (np.abs(z) < 20)] = 45
    brain, _ = find_brain(as_scan(hu), affine, seal_gap_mm)
    return ml(brain & (y > 74), affine)


def test_leak_is_stopped_where_the_opening_is_narrower_than_the_seal():
    assert leaked_ml(opening_mm=6, seal_gap_mm=4.0) == 0
    # The body of the brain is looked for with twice the seal, so half as wide again as promised holds too: of the
    # chamber's 48 mL a few voxels at the mouth remain, where the brain grows back into the opening.
    assert leaked_ml(opening_mm=12, seal_gap_mm=4.0) < 0.2
    # The same opening with too small a seal, and one far wider than the seal: the chamber is taken for brain.
    assert leaked_ml(opening_mm=6, seal_gap_mm=1.0) > 10
    assert leaked_ml(opening_mm=30, seal_gap_mm=4.0) > 10


def test_a_head_holder_does_not_stand_for_the_missing_skull():
    hu, affine, (x, y, z), _ = head()
    bulge = (np.abs(x) < 24) & (y > 60) & (y < 86) & (np.abs(z) < 25)
    hu[bulge & ((np.abs(x) < 15) | (np.sqrt(x**2 + y**2 + z**2) > OUTER_MM))] = 45
    without, _ = find_brain(as_scan(hu), affine, 4.0)
    hu[(np.abs(x) < 40) & (y > 90) & (y < 93)] = 900
    hu[(np.abs(np.abs(x) - 38) < 2) & (y > 80) & (y < 93)] = 900
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert (brain != without).sum() < 50
    # Of the 19 mL beyond the line of the scalp the chord across the opening takes in 3.
    assert ml(brain & (y > SCALP_MM), affine) < 4


@pytest.mark.parametrize(("density", "noise_hu"), [(75, 3), (90, 12)])
@pytest.mark.parametrize("towards", [(1, 0, 0), (0, -1, 0), (0.6, 0.5, 0.6), (-0.5, 0.3, 0.81), (0.3, 0.8, -0.5)])
def test_haematoma_at_the_inner_table_is_kept(density, noise_hu, towards):
    hu, affine, xyz, _ = head(noise_hu=0, edge_mm=4.0)  # steep and slanting bone: half a slice of partial volume
    radius = np.sqrt(sum(axis**2 for axis in xyz))
    fraction = brain_fraction(radius, 4.0)
    centre = INNER_MM * np.array(towards) / np.linalg.norm(towards)
    clot = sum((axis - c) ** 2 for axis, c in zip(xyz, centre, strict=True)) < 17**2
    hu += np.where(clot, fraction * (density - 35), 0)
    hu += noise_hu * np.random.default_rng(3).standard_normal(hu.shape)
    # A reader sees no blood where bone makes the voxel white: where there is more than a quarter of bone.
    clot &= fraction > 0.75
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert brain[clot].mean() >= 0.995
    # Far from the blood the rim stays free of bone, or it would be taken for blood.
    far = sum((axis + c) ** 2 for axis, c in zip(xyz, centre, strict=True)) < 40**2
    assert hu[far & brain & (fraction < 1)].mean() < 110


def test_wide_fluid_below_the_skull_belongs_to_the_brain():
    hu, affine, xyz, ball = head(noise_hu=0)
    hu[ball & (np.sqrt(sum(axis**2 for axis in xyz)) > INNER_MM - 8)] = 5
    hu += 15 * np.random.default_rng(2).standard_normal(hu.shape)
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert dice(brain, ball) > 0.98


@pytest.mark.parametrize("skull_mm", [2.0, 20.0])
def test_thin_and_thick_skull(skull_mm):
    hu, affine, _, ball = head(skull_mm=skull_mm)
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert dice(brain, ball) > 0.98


@pytest.mark.parametrize("slice_mm", [1.0, 2.5, 4.0, 7.0])
def test_slice_thickness(slice_mm):
    hu, affine, _, ball = head(slice_mm=slice_mm, noise_hu=12)
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert dice(brain, ball) > 0.98


def test_metal_and_streaks():
    hu, affine, (x, y, z), ball = head(noise_hu=5)
    angle, away = np.arctan2(y - 10, x + 20), np.hypot(x + 20, y - 10)
    streaks = 600 * np.cos(angle) ** 40 * np.exp(-away / 25) - 400 * np.sin(angle) ** 40 * np.exp(-away / 25)
    hu += np.where((np.abs(z - 10) < 6) & (hu > -500), streaks, 0)
    hu[(away < 3) & (np.abs(z - 10) < 6)] = 3071
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert dice(brain, ball) > 0.98


def test_brain_below_a_missing_bone_flap_is_kept():
    # A defect 8 cm wide: below it half of all directions see no bone.
    hu, affine, (x, y, z), ball = head()
    defect = (x - 70) ** 2 + y**2 + (z - 15) ** 2 < 42**2
    hu[defect & (hu > 500)] = 40
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert brain[ball & defect].mean() > 0.96  # a ball bulges out of the opening by 10 mm
    assert ml(brain & ~ball, affine) < 60  # what stands in the place of the flap is soft tissue like any


def cut_ball(how):
    hu, affine, _, ball = head()
    hu = as_scan(hu)
    match how:
        case "side":
            hu, ball = hu[:, :, 55:], ball[:, :, 55:]  # 14 mm of brain are lost
        case "back":
            hu, ball = hu[:, :140], ball[:, :140]
        case "circle":
            hu, ball = hu[:, 30:150, 30:150], ball[:, 30:150, 30:150]
            field = np.hypot(*np.meshgrid(*2 * [np.arange(120) - 59.5], indexing="ij")) < 60
            hu, ball = np.where(field, hu, np.int16(-1024)), ball & field
        case "vertex":
            hu, ball = hu[:22], ball[:22]
        case "base":
            hu, ball = hu[18:], ball[18:]
    return hu, affine, ball


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("side", r"reaches the edge of the scanned field in \d+ slices"),
        ("back", r"reaches the edge of the scanned field in \d+ slices"),
        ("circle", r"reaches the edge of the scanned field in \d+ slices"),
        ("vertex", r"covers \d+ cm2 of the uppermost slice"),
        ("base", r"covers \d+ cm2 of the lowest slice"),
    ],
)
def test_a_head_cut_off_by_the_field_is_found_and_said(how, problem):
    hu, affine, ball = cut_ball(how)
    brain, thresholds_hu = find_brain(hu, affine, 4.0)
    assert dice(brain, ball) > 0.97
    warnings = brain_warnings(brain, hu, affine, thresholds_hu, (0, 9999))
    assert len(warnings) == 1
    assert re.search(problem, warnings[0]["problem"])
    assert warnings[0]["action"]


def test_the_vertex_is_found_in_slices_that_run_downwards():
    hu, affine, ball = cut_ball("vertex")
    affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, len(hu) - 1], [0, 0, 0, 1]])
    (warning,) = brain_warnings(ball[::-1], hu[::-1], affine, [-400, 110], (0, 9999))
    assert "uppermost" in warning["problem"]


def test_a_whole_head_gives_no_warning_and_odd_values_give_one_each():
    hu, affine, _, ball = head()
    hu = as_scan(hu)
    assert brain_warnings(ball, hu, affine, [-410.0, 110.0, 165.0, 430.0], (900, 1900)) == []
    (small,) = brain_warnings(ball, hu, affine, [-410.0, 110.0], (1300, 1900))
    assert "holds 1205 mL, not 1300-1900 mL" in small["problem"]
    (large,) = brain_warnings(ball, hu, affine, [-410.0, 110.0], (900, 1100))
    assert "holds 1205 mL" in large["problem"]
    air, bone = brain_warnings(ball, hu, affine, [20.0, 150.0], (900, 1900))
    assert "20 HU parts air from head" in air["problem"] and "150 HU parts soft tissue" in bone["problem"]


def test_brain_beside_a_hole_in_the_skull_is_kept():
    # A craniotomy three times as wide as what is sealed: some directions see no bone there.
    hu, affine, (x, y, z), ball = head()
    hu[(np.abs(x) < 12) & (y > 40) & (np.abs(z) < 12) & (np.sqrt(x**2 + y**2 + z**2) < SCALP_MM)] = 30
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    beside = ball & (np.abs(z) < 12) & (np.abs(x) < 12) & (y > 45)
    assert (brain & beside).sum() > 0.95 * beside.sum()
    assert ml(brain & ~ball, affine) < 8


def test_files(tmp_path):
    hu, affine, _, _ = head()
    write_volume(tmp_path / "ct.nii.gz", as_scan(hu), affine)
    arguments = {"seal_gap_mm": 4.0, "min_brain_ml": 500.0}
    skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", tmp_path / "a.json", **arguments)
    skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "b.nii.gz", tmp_path / "b.json", **arguments)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    brain, brain_affine = read_volume(tmp_path / "a.nii.gz")
    facts = json.loads((tmp_path / "a.json").read_text())
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_allclose(brain_affine, affine)
    assert facts["brain_ml"] == pytest.approx(brain.sum() * 5 / 1000)
    assert len(facts["thresholds_hu"]) == 4
    assert facts["warnings"] == []


def test_warnings_are_written_and_printed(tmp_path, capsys):
    hu, affine, _ = cut_ball("vertex")
    write_volume(tmp_path / "ct.nii.gz", hu, affine)
    skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", tmp_path / "a.json", 4.0, 500.0, (900, 1900))
    volume, uppermost = json.loads((tmp_path / "a.json").read_text())["warnings"]
    assert "not 900-1900 mL" in volume["problem"] and "uppermost slice" in uppermost["problem"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"warning: {each['problem']}; {each['action']}" for each in (volume, uppermost)]


@pytest.mark.parametrize("what", ["air", "ball without a skull", "skull full of air"])
def test_no_brain(tmp_path, what):
    hu, affine, (x, y, _), ball = head()
    if what == "air":
        hu[:] = -1000
    elif what == "ball without a skull":
        hu[hu > 500] = 35
    else:
        hu[ball] = -1000
        hu[np.hypot(x, y) < 15] = 60
    write_volume(tmp_path / "ct.nii.gz", as_scan(hu), affine)
    with pytest.raises(InputError, match=r"no brain found: \d+ mL") as caught:
        skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", tmp_path / "a.json", 4.0, 500.0)
    assert caught.value.file == str(tmp_path / "ct.nii.gz")
    assert not (tmp_path / "a.nii.gz").exists()
    assert not (tmp_path / "a.json").exists()


# ------------------------------------------------------------------------------------------------- synthetic patients


def phantom_scan(patient, seed, matrix):
    """Render the baseline CT of a synthetic patient: HU, affine, haematoma, and fraction of brain cavity per voxel.

    The truth is what the phantom paints as brain cavity, averaged over the sub-slices of each slice: brain, ventricles
    and subarachnoid fluid up to the inner table, half of a voxel or more. It goes down into the foramen magnum and the
    canal below it without a border: what is below the largest slice and smaller than 15 cm2 counts as canal, and is
    left out of scan and truth.
    """
    one = phantom.render_scan(patient, "baseline", matrix, seed)
    scan = one["scan"]
    area_cm2 = (one["cavity"] >= 0.5).sum((1, 2)) * scan["pixel_mm"] ** 2 / 100
    canal = np.arange(len(area_cm2)) < area_cm2.argmax()
    first = int((canal & (area_cm2 < 15)).sum())
    one |= {name: one[name][first:] for name in ("hu", "mask", "cavity")}
    scan |= {"origins": scan["origins"][first:]}
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = scan["row_direction"] * scan["pixel_mm"], scan["column_direction"] * scan["pixel_mm"]
    affine[:3, 2], affine[:3, 3] = scan["origins"][1] - scan["origins"][0], scan["origins"][0]
    return one["hu"], np.diag([-1, -1, 1, 1]) @ affine, one["mask"] > 0, one["cavity"]


def patients_to_strip(seed, train, test, matrix):
    """Synthetic patients, the lobar and the tilted ones first."""
    patients = draw_patients({"train": train, "test": test, "excluded_each": 0, "matrix": matrix}, seed)
    return sorted(patients, key=lambda one: one["truth"]["site"] in DEEP and one["truth"]["trap"] != "tilt")


def check_phantoms(patients, seed, matrix):
    for patient in patients:
        hu, affine, haematoma, fraction = phantom_scan(patient, seed, matrix)
        brain, thresholds_hu = find_brain(hu, affine, 4.0)
        assert dice(brain, fraction >= 0.5) >= 0.97, patient["row"]["patient"]
        assert brain[haematoma].mean() >= 0.995, patient["row"]["patient"]
        assert brain_warnings(brain, hu, affine, thresholds_hu, (900, 1900)) == []


def test_synthetic_patients():
    check_phantoms(patients_to_strip(41, 10, 5, 192)[:7], 41, 192)


@pytest.mark.slow
def test_sixty_synthetic_patients():
    check_phantoms(patients_to_strip(42, 40, 20, 256), 42, 256)


def test_rotated_and_noisy_head():
    (patient, *_) = patients_to_strip(43, 4, 2, 192)
    hu, affine, haematoma, fraction = phantom_scan(patient, 43, 192)
    hu, fraction, haematoma = (
        ndimage.rotate(volume.astype(np.float32), 20, (1, 2), reshape=False, order=1, cval=outside)
        for volume, outside in ((hu, -1000), (fraction, 0), (haematoma, 0))
    )
    hu += 15 * np.random.default_rng(4).standard_normal(hu.shape)
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    assert dice(brain, fraction >= 0.5) > 0.96  # the interpolated edge of the skull is wider
    assert brain[haematoma > 0.5].mean() >= 0.995


# --------------------------------------------------------------------------------------------------------- real heads


def read_series(folder):
    """The largest axial series of a folder as HU (z, y, x) and affine, its slices taken as evenly spaced."""
    import pydicom

    series = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                slice_ = pydicom.dcmread(path)
            except pydicom.errors.InvalidDicomError:
                continue
            if "PixelData" in slice_ and "ImageOrientationPatient" in slice_ and slice_.Rows == slice_.Columns:
                series.setdefault(str(slice_.SeriesInstanceUID), []).append(slice_)
    slices = max(series.values(), key=len)
    across, down = np.split(np.array(slices[0].ImageOrientationPatient, float), 2)
    slices.sort(key=lambda one: np.dot(np.cross(across, down), one.ImagePositionPatient))
    hu = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices])
    first, last = (np.array(one.ImagePositionPatient, float) for one in (slices[0], slices[-1]))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * slices[0].PixelSpacing[1], down * slices[0].PixelSpacing[0]
    affine[:3, 2], affine[:3, 3] = (last - first) / (len(slices) - 1), first
    return as_scan(np.maximum(hu, -1024)), np.diag([-1, -1, 1, 1]) @ affine


@pytest.fixture(scope="module")
def real_head(request, tmp_path_factory):
    """Folder of the real head series; skipped with the reason that `shared` gives."""
    folder = tmp_path_factory.mktemp("head")
    with tarfile.open(request.getfixturevalue("shared") / "data" / "head_ge_tilt_uneven.tar.xz") as files:
        files.extractall(folder, filter="data")
    return folder


def test_real_head(real_head):
    hu, affine = read_series(real_head)
    brain, thresholds_hu = find_brain(hu, affine, 4.0)
    assert 1350 < ml(brain, affine) < 1600
    assert brain_warnings(brain, hu, affine, thresholds_hu, (900, 1900)) == []
    area_cm2 = brain.sum((1, 2)) * 0.488**2 / 100
    # The lowest slices show face and neck around the spinal canal; the uppermost the vault alone.
    assert area_cm2[:3].max() < 15
    assert area_cm2[12:16].min() > 130
    assert area_cm2[-1] == 0
    assert (hu[brain] > 300).mean() < 0.005
    assert (hu[brain] < -100).mean() < 0.001


@pytest.mark.parametrize("places", range(3))
def test_haematoma_painted_up_to_the_inner_table_of_a_real_head(real_head, places):
    hu, affine = read_series(real_head)
    before, _ = find_brain(hu, affine, 4.0)
    hu = hu.astype(np.float32)
    rng = np.random.default_rng(places)
    step_mm = slice_spacing_mm(affine)
    voxels = np.indices(hu.shape, dtype=np.float32) * step_mm[:, None, None, None]
    clots = np.zeros(hu.shape, bool)
    for number in (8, 12, 15, 18, 21):
        edge = before[number] & ~ndimage.binary_erosion(before[number])
        rows, columns = np.nonzero(edge)
        pick = rng.integers(len(rows))
        centre = np.array([number, rows[pick], columns[pick]]) * step_mm
        clots |= np.sum((voxels - centre[:, None, None, None]) ** 2, 0) < 16**2
    # What a reader sees as brain or partly as brain becomes blood; bone stays.
    seen = clots & ndimage.binary_dilation(before, iterations=2) & (hu > 0) & (hu < 150)
    hu[seen] = np.maximum(hu[seen], 80 + rng.normal(0, 6, seen.sum()))
    brain, _ = find_brain(as_scan(hu), affine, 4.0)
    clot = seen & before
    assert clot.sum() * step_mm.prod() / 1000 > 20
    assert brain[clot].mean() >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("centre", [(45, 20, 60), (-48, -30, 70), (40, -60, 50), (-35, 50, 65)])
def test_implanted_haematoma_is_kept(real_head, tmp_path, centre):
    hu, affine = read_series(real_head)
    middle = affine @ [*(np.array(np.nonzero(find_brain(hu, affine, 4.0)[0])).mean(1)[::-1]), 1]
    place = middle[:3] + np.array(centre) - [0, 0, 60]
    implant(real_head, tmp_path, 20.0, seed=7, centre_ras_mm=place)
    hu, affine = read_series(tmp_path / "dicom")
    haematoma, _ = read_volume(tmp_path / "mask.nii.gz")
    brain, _ = find_brain(hu, affine, 4.0)
    assert brain[haematoma > 0].mean() >= 0.995


def test_plastic_skull_full_of_air_is_refused(shared, tmp_path):
    with tarfile.open(shared / "data" / "phantom_philips_study.tar.gz") as files:
        files.extractall(tmp_path, filter="data")
    hu, affine = read_series(tmp_path)
    write_volume(tmp_path / "ct.nii.gz", hu, affine)
    with pytest.raises(InputError, match="no brain found"):
        skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz", tmp_path / "a.json", 4.0, 500.0)
