import json

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from haemex import volume
from haemex.convert import convert_scan
from haemex.errors import InputError
from haemex.geometry import even_mask, stack_geometry
from haemex.nifti import read_volume, write_volume

COLUMNS, ROWS = 10, 8
EVEN = [0, 5, 10, 15, 20, 25.0]
UNEVEN = [0, 4, 8, 12, 13, 20, 27, 34.0]


def geometry_of(heights, tilt_deg=0.0):
    """A stack of 0.5 x 2 mm pixels at table heights, around the origin, gantry tilted."""
    tilt = np.radians(tilt_deg)
    origins = np.array([2.5, 8.0, -10.0]) + np.outer(heights, [0, 0, 1])
    across, down = np.array([-0.5, 0, 0]), np.array([0, -2 * np.cos(tilt), -2 * np.sin(tilt)])
    return stack_geometry(origins, across, down, COLUMNS, ROWS, "x")


def box(slices, z=slice(2, 4)):
    mask = np.zeros((slices, ROWS, COLUMNS), np.uint8)
    mask[z, 1:4, 2:7] = 1  # 15 pixels a slice
    return mask


def scan(tmp_path, name, geometry, digest="d1"):
    """Write what convert leaves: JSON and NIfTI."""
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"geometry": geometry, "pixel_digest": digest}))
    write_volume(tmp_path / f"{name}.nii.gz", np.zeros(geometry["shape_xyz"][::-1], np.int16), geometry["affine"])
    return path, tmp_path / f"{name}.nii.gz"


def measure(tmp_path, geometry, mask_path, **other):
    baseline_json, baseline_nifti = scan(tmp_path, "baseline", geometry)
    arguments = {
        "patient": "P1",
        "baseline_mask": mask_path,
        "baseline_json": baseline_json,
        "baseline_nifti": baseline_nifti,
        "followup_mask": None,
        "followup_json": None,
        "followup_volume_ml": None,
        "rater2_mask": None,
        "json_out": tmp_path / "out.json",
        "mask_out": tmp_path / "out.nii.gz",
        **other,
    }
    volume.measure_patient(**arguments)
    return json.loads((tmp_path / "out.json").read_text()), *read_volume(tmp_path / "out.nii.gz")


def write_mask(path, mask, affine):
    """Write by nibabel and SimpleITK alone, independent of haemex's writer."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0), affine), path)
        return path
    image = SimpleITK.GetImageFromArray(mask)
    lps = np.diag([-1, -1, 1]) @ np.asarray(affine)[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def squared(affine):
    """What ITK makes of a tilted affine: the third axis along the normal."""
    square = np.array(affine)
    normal = np.cross(square[:3, 0], square[:3, 1])
    normal /= np.linalg.norm(normal)
    square[:3, 2] = normal * np.linalg.norm(square[:3, 2])
    return square


def test_box_on_even_slices(tmp_path):
    geometry = geometry_of(EVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(6), geometry["affine"])
    measured, mask, affine = measure(tmp_path, geometry, path)
    # 2 slices x 15 pixels x 0.5 x 2 x 5 mm = 150 mm3
    assert measured == {
        "patient": "P1",
        "baseline_ml": pytest.approx(0.15, rel=1e-12),
        "followup_ml": None,
        "followup_source": None,
        "rater2_ml": None,
        "rater_dice": None,
        "pixel_digest": {"baseline": "d1", "followup": None},
    }
    np.testing.assert_array_equal(mask, box(6))
    assert mask.dtype == np.uint8
    np.testing.assert_allclose(affine, geometry["affine"])


def test_slices_even_within_the_tolerance_count_alike():
    geometry = geometry_of([0, 5.03, 10, 15, 19.97, 25.0])
    assert volume.mask_volume_ml(box(6, slice(0, 1)), geometry, True) == pytest.approx(0.075, rel=1e-12)


@pytest.mark.parametrize("square", [False, True])
def test_tilt_does_not_look_like_swapped_axes(tmp_path, square):
    # Pixels of 0.3 mm: from slice to slice a tilt of 30 degrees moves the sheared grid by 8 rows, and by 1 slice.
    origins = np.array([1.5, 1.2, 0]) + np.outer(EVEN, [0, 0, 1])
    down = np.array([0, -0.3 * np.cos(np.pi / 6), -0.3 * np.sin(np.pi / 6)])
    geometry = stack_geometry(origins, np.array([-0.3, 0, 0]), down, COLUMNS, ROWS, "x")
    affine = squared(geometry["affine"]) if square else geometry["affine"]
    path = write_mask(tmp_path / "m.nii.gz", box(6), affine)
    np.testing.assert_array_equal(volume.fit_mask(path, geometry)[0], box(6))


@pytest.mark.parametrize("tilt", [18.5, -18.5])
@pytest.mark.parametrize("square", [False, True])
def test_box_in_a_tilted_scan_counts_the_determinant(tmp_path, tilt, square):
    geometry = geometry_of(EVEN, tilt)
    affine = squared(geometry["affine"]) if square else geometry["affine"]
    measured, mask, _ = measure(tmp_path, geometry, write_mask(tmp_path / "m.nii.gz", box(6), affine))
    assert measured["baseline_ml"] == pytest.approx(0.15 * np.cos(np.radians(18.5)), rel=1e-9)
    np.testing.assert_array_equal(mask, box(6))


@pytest.mark.parametrize("tilt", [0.0, 18.5])
def test_box_on_uneven_slices_counts_each_slice(tmp_path, tilt):
    geometry = geometry_of(UNEVEN, tilt)
    affine = squared(geometry["affine"])
    affine[:3, 2] *= 34 / 7 / np.linalg.norm(affine[:3, 2])
    path = write_mask(tmp_path / "m.nii.gz", box(8, slice(3, 6)), affine)
    measured, mask, written_affine = measure(tmp_path, geometry, path)
    # slices at 12, 13 and 20 mm stand for 2.5, 4 and 7 mm
    expected = 15 * (2.5 + 4 + 7) / 1000 * np.cos(np.radians(tilt))
    assert measured["baseline_ml"] == pytest.approx(expected, rel=1e-9)
    assert mask.shape == (9, ROWS, COLUMNS)  # 34 mm in steps of 4.25
    np.testing.assert_allclose(written_affine, geometry["affine"], atol=1e-6)
    # even slices at 12.75 and 17 mm, and at 21.25 (5.75 of 7 mm towards the last drawn slice)
    assert mask[:, 2, 3].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert mask[:, 0, 0].sum() == 0


def test_mask_drawn_on_the_written_volume_of_an_uneven_scan(tmp_path):
    geometry = geometry_of(UNEVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(9), geometry["affine"])
    measured, mask, _ = measure(tmp_path, geometry, path)
    assert measured["baseline_ml"] == pytest.approx(2 * 15 * 4.25 / 1000, rel=1e-9)
    np.testing.assert_array_equal(mask, box(9))


def test_as_many_even_slices_as_uneven_ones(tmp_path):
    geometry = geometry_of([0, 4, 9, 13.5, 18, 22.5])  # median step 4.5: 6 slices again
    assert not geometry["even"]
    assert geometry["shape_xyz"][2] == 6
    lowest = box(6, slice(0, 1))
    on_written = measure(tmp_path, geometry, write_mask(tmp_path / "w.nii.gz", lowest, geometry["affine"]))[0]
    assert on_written["baseline_ml"] == pytest.approx(15 * 4.5 / 1000)
    moved = np.array(geometry["affine"])
    moved[2, 2] = 4.0  # as a reader writes it that takes the first step for all
    on_acquired = measure(tmp_path, geometry, write_mask(tmp_path / "a.nii.gz", lowest, moved))[0]
    assert on_acquired["baseline_ml"] == pytest.approx(15 * 4.0 / 1000)


@given(
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    order=st.permutations([0, 1, 2]),
    tilt=st.sampled_from([0.0, 30.0, -30.0]),
    square=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_flipped_and_swapped_masks_measure_alike(tmp_path_factory, flips, order, tilt, square, seed):
    tmp_path = tmp_path_factory.mktemp("flip")
    geometry = geometry_of(EVEN, tilt)
    affine = squared(geometry["affine"]) if square else np.array(geometry["affine"])
    mask = np.random.default_rng(seed).integers(0, 2, (6, ROWS, COLUMNS)).astype(np.uint8)
    stored = mask.transpose(2, 1, 0)
    for axis, flip in enumerate(flips):
        if flip:
            turn = np.eye(4)
            turn[axis, axis], turn[axis, 3] = -1, stored.shape[axis] - 1
            stored, affine = np.flip(stored, axis), affine @ turn
    stored = stored.transpose(order)
    affine = affine @ np.eye(4)[:, [*order, 3]]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), affine), tmp_path / "m.nii")
    found, acquired = volume.fit_mask(tmp_path / "m.nii", geometry)
    np.testing.assert_array_equal(found, mask)
    assert acquired


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii", "m.nrrd", "m.mha"])
def test_formats(tmp_path, name):
    geometry = geometry_of(EVEN)
    measured, mask, _ = measure(tmp_path, geometry, write_mask(tmp_path / name, box(6), geometry["affine"]))
    assert measured["baseline_ml"] == pytest.approx(0.15, rel=1e-9)
    np.testing.assert_array_equal(mask, box(6))


def test_formats_flipped_on_the_way(tmp_path):
    # The mask of an untilted scan through SimpleITK, re-oriented by it.
    geometry = geometry_of(EVEN)
    write_mask(tmp_path / "m.nrrd", box(6), geometry["affine"])
    for code in ("RAS", "LPI", "SRA", "PIL"):
        turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "m.nrrd")), code)
        SimpleITK.WriteImage(turned, str(tmp_path / f"{code}.nrrd"))
        np.testing.assert_array_equal(volume.fit_mask(tmp_path / f"{code}.nrrd", geometry)[0], box(6))


def test_any_label_and_any_type(tmp_path):
    geometry = geometry_of(EVEN)
    for factor, kind in ((1, np.float32), (255, np.uint8), (7, np.int16), (0.5, np.float64)):
        path = write_mask(tmp_path / "m.nii.gz", (box(6) * factor).astype(kind), geometry["affine"])
        np.testing.assert_array_equal(volume.fit_mask(path, geometry)[0], box(6))


def shifted(affine, millimetres):
    moved = np.array(affine)
    moved[0, 3] += millimetres
    return moved


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda a: (np.zeros((6, ROWS, COLUMNS), np.uint8), a), "the mask is empty"),
        (lambda a: (box(6) + box(6, slice(0, 1)) * 2, a), "values 0, 1, 2 where"),
        (lambda a: (box(6).astype(np.int16) * -1, a), "values -1, 0 where"),
        (lambda a: (np.where(box(6), np.nan, 0).astype(np.float32), a), "values 0, nan where"),
        (lambda a: (box(7), a), "10 x 8 pixels and 7 slices, its CT 10 x 8 and 6"),
        (lambda a: (box(6)[:, :, :9], a), "9 x 8 pixels and 6 slices"),
        (lambda a: (box(6), shifted(a, 51)), "lies 51 mm from"),
        (lambda a: (box(6), a @ np.diag([2, 0.5, 1, 1])), r"pixels of 1 x 1 mm, its CT 0\.5 x 2 mm"),
        (lambda a: (box(6)[:5], a), "5 slices"),
    ],
)
def test_masks_that_are_refused(tmp_path, make, problem):
    geometry = geometry_of(EVEN)
    mask, affine = make(np.array(geometry["affine"]))
    path = write_mask(tmp_path / "m.nii.gz", mask, affine)
    with pytest.raises(InputError, match=problem) as caught:
        measure(tmp_path, geometry, path)
    assert caught.value.file == str(path)
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_mask_a_little_beside_is_laid_on_index_by_index(tmp_path):
    geometry = geometry_of(EVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(6), shifted(geometry["affine"], 49))
    np.testing.assert_array_equal(volume.fit_mask(path, geometry)[0], box(6))


def test_files_that_are_no_mask(tmp_path):
    (tmp_path / "m.nrrd").write_text("no image")
    (tmp_path / "m.nii.gz").write_text("no image")
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkUInt8), str(tmp_path / "flat.mha"))
    for name, problem in (("m.nrrd", "not a readable"), ("m.nii.gz", "not a readable"), ("flat.mha", "single values")):
        with pytest.raises(InputError, match=problem):
            volume.fit_mask(tmp_path / name, geometry_of(EVEN))


def test_a_baseline_mask_is_needed(tmp_path):
    with pytest.raises(InputError, match="names no baseline mask"):
        measure(tmp_path, geometry_of(EVEN), None)
    assert not (tmp_path / "out.json").exists()


def test_followup_from_its_own_scan_or_from_the_table(tmp_path):
    geometry, later = geometry_of(EVEN), geometry_of(UNEVEN, 18.5)
    path = write_mask(tmp_path / "m.nii.gz", box(6), geometry["affine"])
    followup_json, _ = scan(tmp_path, "followup", later, "d2")
    followup_mask = write_mask(tmp_path / "f.nii.gz", box(8, slice(6, 8)), squared(later["affine"]))
    measured, _, _ = measure(tmp_path, geometry, path, followup_mask=followup_mask, followup_json=followup_json)
    assert measured["followup_ml"] == pytest.approx(15 * 14 * np.cos(np.radians(18.5)) / 1000)
    assert measured["followup_source"] == "mask"
    assert measured["pixel_digest"] == {"baseline": "d1", "followup": "d2"}
    measured, _, _ = measure(tmp_path, geometry, path, followup_volume_ml=0.0)
    assert (measured["followup_ml"], measured["followup_source"]) == (0.0, "table")


def test_followup_that_contradicts_itself(tmp_path):
    geometry = geometry_of(EVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(6), geometry["affine"])
    followup_json, _ = scan(tmp_path, "followup", geometry, "d2")
    same_json, _ = scan(tmp_path, "same", geometry, "d1")
    for problem, other in (
        ("both given", {"followup_mask": path, "followup_json": followup_json, "followup_volume_ml": 9.0}),
        ("without its CT", {"followup_mask": path}),
        ("one scan is given twice", {"followup_mask": path, "followup_json": same_json}),
        ("volume of -1 mL", {"followup_volume_ml": -1.0}),
        ("volume of nan mL", {"followup_volume_ml": float("nan")}),
    ):
        with pytest.raises(InputError, match=problem):
            measure(tmp_path, geometry, path, **other)
    assert not (tmp_path / "out.json").exists()


def test_second_reader(tmp_path):
    geometry = geometry_of(EVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(6), geometry["affine"])
    for drawn, expected_dice, expected_ml in (
        (box(6), 1.0, 0.15),
        (box(6, slice(3, 5)), 0.5, 0.15),
        (box(6, slice(2, 3)), 2 / 3, 0.075),
        (np.zeros_like(box(6)), 0.0, 0.0),
    ):
        second = write_mask(tmp_path / "r.nii.gz", drawn, geometry["affine"])
        measured, _, _ = measure(tmp_path, geometry, path, rater2_mask=second)
        assert measured["rater_dice"] == pytest.approx(expected_dice)
        assert measured["rater2_ml"] == pytest.approx(expected_ml)


def test_second_reader_on_the_other_grid_of_an_uneven_scan(tmp_path):
    geometry = geometry_of(UNEVEN)
    first = box(8, slice(3, 6))
    acquired_affine = np.array(geometry["affine"]) @ np.diag([1, 1, 34 / 7 / 4.25, 1])
    path = write_mask(tmp_path / "m.nii.gz", first, acquired_affine)
    second = write_mask(tmp_path / "r.nii.gz", even_mask(first, geometry), geometry["affine"])
    assert measure(tmp_path, geometry, path, rater2_mask=second)[0]["rater_dice"] == 1.0
    assert measure(tmp_path, geometry, second, rater2_mask=path)[0]["rater_dice"] == 1.0


def test_dice_of_empty_masks():
    nothing, something = np.zeros(4, np.uint8), np.array([0, 1, 1, 0], np.uint8)
    assert volume.dice(nothing, nothing) == 1.0
    assert volume.dice(nothing, something) == 0.0
    assert volume.dice(something, something) == 1.0


def test_same_input_gives_the_same_bytes(tmp_path):
    geometry = geometry_of(UNEVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(9), geometry["affine"])
    contents = []
    for _ in range(2):
        measure(tmp_path, geometry, path)
        contents.append([(tmp_path / name).read_bytes() for name in ("out.json", "out.nii.gz")])
    assert contents[0] == contents[1]


def test_mask_on_a_converted_series(tmp_path, write_series):
    """From DICOM to mL: a box drawn on the slices that SimpleITK reads, of a tilted series."""
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    pixels = np.full((6, ROWS, COLUMNS), 1064, np.uint16)
    folder = write_series(tmp_path / "a", EVEN, pixels, orientation=(1, 0, 0, 0, cos, -sin))
    convert_scan(folder, tmp_path / "c.nii.gz", tmp_path / "c.json", 5.0)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    drawn = SimpleITK.GetImageFromArray(box(6))
    drawn.CopyInformation(reader.Execute())
    SimpleITK.WriteImage(drawn, str(tmp_path / "m.nii.gz"))
    out = {"json_out": tmp_path / "o.json", "mask_out": tmp_path / "o.nii.gz"}
    volume.measure_patient("P1", tmp_path / "m.nii.gz", tmp_path / "c.json", tmp_path / "c.nii.gz",
                           None, None, None, None, **out)  # fmt: skip
    np.testing.assert_array_equal(read_volume(tmp_path / "o.nii.gz")[0], box(6))
    measured = json.loads((tmp_path / "o.json").read_text())
    assert measured["baseline_ml"] == pytest.approx(0.15 * cos, rel=1e-9)
