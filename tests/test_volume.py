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
from haemex.geometry import stack_geometry
from haemex.nifti import read_volume, write_volume
from haemex.segmentation_metrics import dice
from haemex.shapes import even_mask

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
        "warnings": [],
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


def test_the_number_of_slices_tells_the_grid_of_an_uneven_scan(tmp_path):
    """Steps 4, 5, 4.5, 4.5, 4.5: the median step would give 6 even slices for 6 acquired ones, so there are 7."""
    geometry = geometry_of([0, 4, 9, 13.5, 18, 22.5])
    assert not geometry["even"]
    assert geometry["shape_xyz"][2] != 6
    lowest = measure(tmp_path, geometry, write_mask(tmp_path / "a.nii.gz", box(6, slice(0, 1)), geometry["affine"]))[0]
    assert lowest["baseline_ml"] == pytest.approx(15 * 4.0 / 1000)


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


def shifted(affine, x=0.0, y=0.0, z=0.0):
    moved = np.array(affine)
    moved[:3, 3] += x, y, z
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
        (lambda a: (box(6), shifted(a, 51)), "lies up to 51 mm from"),
        (lambda a: (box(6), shifted(a, z=6)), "lies up to 6 mm from"),
        (lambda a: (box(6), a @ np.diag([1, 1, 1.5, 1])), "lies up to 12 mm from"),  # 7.5 mm for 5 mm, 5 steps
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


def test_a_mask_half_a_voxel_beside_is_laid_on_index_by_index(tmp_path):
    """As programs write it that count a voxel's place from its corner."""
    geometry = geometry_of(EVEN)
    path = write_mask(tmp_path / "m.nii.gz", box(6), shifted(geometry["affine"], 0.25, 1, 2.5))
    np.testing.assert_array_equal(volume.fit_mask(path, geometry)[0], box(6))


def test_scripts_that_forget_the_orientation_are_refused(tmp_path):
    """NumPy and nibabel: the right array, index by index, under an affine that says something else or nothing.

    Laid on as the affine says, the mask of a head lying as usual would be mirrored left to right and front to back.
    """
    affine = np.array([[-0.5, 0, 0, 20], [0, -0.5, 0, 12], [0, 0, 5, -10], [0, 0, 0, 1.0]])
    origins = affine[:3, 3] + np.outer(range(6), affine[:3, 2])
    geometry = stack_geometry(origins, affine[:3, 0], affine[:3, 1], COLUMNS, ROWS, "x")
    drawn = box(6).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(drawn, np.eye(4)), tmp_path / "identity.nii.gz")
    nibabel.save(nibabel.Nifti1Image(drawn, np.diag([0.5, 0.5, 5, 1])), tmp_path / "spacing.nii.gz")
    nibabel.save(nibabel.Nifti1Image(drawn, np.abs(affine)), tmp_path / "signs.nii.gz")
    nibabel.save(nibabel.Nifti1Image(drawn, None), tmp_path / "none.nii.gz")
    nibabel.save(nibabel.AnalyzeImage(drawn, affine), tmp_path / "analyze.hdr")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(box(6)), str(tmp_path / "bare.nrrd"))
    spaced = SimpleITK.GetImageFromArray(box(6))
    spaced.SetSpacing((0.5, 0.5, 5))
    SimpleITK.WriteImage(spaced, str(tmp_path / "spaced.mha"))
    for name, problem in (
        ("identity.nii.gz", "pixels of 1 x 1 mm"),
        ("spacing.nii.gz", "mirrored"),
        ("signs.nii.gz", "mirrored"),
        ("none.nii.gz", "does not say how it lies"),
        ("analyze.hdr", "does not say how it lies"),
        ("analyze.img", "does not say how it lies"),
        ("bare.nrrd", "pixels of 1 x 1 mm"),
        ("spaced.mha", "mirrored"),
    ):
        with pytest.raises(InputError, match=problem):
            volume.fit_mask(tmp_path / name, geometry)


def test_a_nifti_pair_is_read(tmp_path):
    geometry = geometry_of(EVEN)
    nibabel.save(nibabel.Nifti1Pair(box(6).transpose(2, 1, 0), np.array(geometry["affine"])), tmp_path / "m.hdr")
    for name in ("m.hdr", "m.img"):
        np.testing.assert_array_equal(volume.fit_mask(tmp_path / name, geometry)[0], box(6))


def test_values_that_are_no_mask_are_named(tmp_path):
    geometry = geometry_of(EVEN)
    rng = np.random.default_rng(0)
    for values, action in (
        (rng.random(box(6).shape).astype(np.float32), "look like probabilities"),
        ((box(6) + 1e-7 * rng.random(box(6).shape)).astype(np.float32), "cut them, at 0.5"),
        (np.where(box(6), 60, -1000).astype(np.int16), "looks like the CT itself"),
        (box(6) * 3 + box(6, slice(3, 4)), "as one label"),
    ):
        with pytest.raises(InputError, match=r"holds the values .* where 0 and one label") as caught:
            volume.fit_mask(write_mask(tmp_path / "m.nii.gz", values, geometry["affine"]), geometry)
        assert action in caught.value.action
        assert len(str(caught.value)) < 400


def test_files_that_are_no_mask(tmp_path, write_series):
    (tmp_path / "m.nrrd").write_text("no image")
    (tmp_path / "m.nii.gz").write_text("no image")
    (tmp_path / "empty.mha").write_bytes(b"")
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkUInt8), str(tmp_path / "flat.mha"))
    SimpleITK.WriteImage(SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "rgb.nrrd"))
    colours = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 2), np.uint8), np.eye(4)), tmp_path / "time.nii.gz")
    for name, problem in (
        ("m.nrrd", "not a readable image"),
        ("m.nii.gz", "not a readable NIfTI"),
        ("empty.mha", "not a readable image"),
        ("flat.mha", "single values"),
        ("rgb.nrrd", "single values"),
        ("rgb.nii.gz", "colours"),
        ("time.nii.gz", "4 dimensions"),
        ("absent.nii.gz", "no such file"),
        ("absent.mha", "no such file"),
        (".", "a folder where a mask file"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            volume.fit_mask(tmp_path / name, geometry_of(EVEN))
        assert caught.value.file == str(tmp_path / name)


@pytest.mark.parametrize(
    ("modality", "kind"),
    [("SEG", "segmentation"), ("RTSTRUCT", "RT structure set"), ("CT", "CT image"), ("DOE^JANE", "file")],
)
@pytest.mark.parametrize("name", ["mask.dcm", "mask", "mask.nii"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # on writing
def test_dicom_objects_are_refused_by_name(tmp_path, write_series, modality, kind, name):
    folder = write_series(tmp_path / "a", [0], np.zeros((1, 4, 4), np.uint16), Modality=modality)
    (folder / "000").rename(tmp_path / name)
    with pytest.raises(InputError, match=f"a DICOM {kind} where a mask volume is expected"):
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
    half = write_mask(tmp_path / "h.nii.gz", box(8, slice(3, 4)), acquired_affine)  # beside what the first one drew
    other = dice(even_mask(first, geometry), even_mask(box(8, slice(3, 4)), geometry))
    assert 0.2 < other < 0.8
    assert measure(tmp_path, geometry, second, rater2_mask=half)[0]["rater_dice"] == other
    assert measure(tmp_path, geometry, half, rater2_mask=second)[0]["rater_dice"] == other


def warned(mask, geometry, acquired=True):
    return [one["problem"] for one in volume.mask_warnings(mask, geometry, acquired)]


# 60 x 40 pixels of 1 x 1 mm, 20 slices 5 mm apart: a voxel is 0.005 mL.
WIDE = stack_geometry(np.outer(range(20), [0, 0, 5.0]), np.array([-1.0, 0, 0]), np.array([0, -1.0, 0]), 60, 40, "x")


def drawn(*boxes):
    mask = np.zeros((20, 40, 60), np.uint8)
    for part in boxes:
        mask[part] = 1
    return mask


BLOB = np.s_[5:9, 10:20, 10:20]


def test_a_plain_mask_is_not_warned_about():
    assert warned(drawn(BLOB), WIDE) == []
    assert warned(drawn(), WIDE) == []


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([np.s_[0:4, 10:20, 10:20]], "the haematoma reaches the first slice of the scan"),
        ([np.s_[16:20, 10:20, 10:20]], "the haematoma reaches the last slice of the scan"),
        ([np.s_[5:9, 30:40, 10:20]], "the haematoma reaches the edge of the image"),
        ([np.s_[5:9, 10:20, 0:9]], "the haematoma reaches the edge of the image"),
        ([BLOB, np.s_[10:12, 10:20, 10:20]], "nothing is drawn on slice 10, between drawn ones"),
        ([BLOB, np.s_[11:12, 10:20, 10:20]], "nothing is drawn on slices 10, 11, between drawn ones"),
        ([BLOB, np.s_[6, 30, 30], np.s_[7, 35:36, 40:42]], "2 specks of less than 0.02 mL beside the haematoma"),
        # 4 x 10 x 10 voxels and 1 x 5 x 4, 31 mm to the right of it
        ([BLOB, np.s_[6, 10:15, 50:54]], "0.1 of 2.1 mL lie more than 30 mm from the largest piece"),
        ([BLOB, np.s_[6, 10:15, 49:53]], None),  # 30 mm
        ([np.s_[5:14, 2:38, 2:58]], None),  # 91 mL
    ],
)
def test_warnings_by_hand(parts, problem):
    assert warned(drawn(*parts), WIDE) == ([problem] if problem else [])


def test_an_outline_is_warned_about():
    mask = drawn(BLOB)
    mask[5:9, 11:19, 11:19] = 0  # 4 x 64 voxels inside, 4 x 36 drawn
    assert warned(mask, WIDE) == ["the mask encloses 1.3 mL that are not drawn, besides 0.72 mL that are"]
    mask[5:9, 11:19, 11:19] = 1
    mask[6, 14:17, 14:17] = 0  # a cyst
    assert warned(mask, WIDE) == []


def test_a_mask_of_all_that_is_no_haematoma_is_warned_about():
    large = WIDE | {"voxel_volume_ml": 0.05}
    mask = 1 - drawn(BLOB)
    found = warned(mask, large)
    assert "2380 mL are drawn, more than any haematoma" in found
    assert len(found) == 4  # first and last slice, edge


def test_distances_are_those_of_the_acquired_slices():
    """Uneven, tilted slices: the piece above lies 31 or 29 mm up the table, and the rest of the way does not count."""
    for top, far in ((46.0, True), (43.0, False)):
        heights = [0, 5, 10, 15, 22, 30, top, top + 5]
        geometry = geometry_of(heights, 20.0)
        mask = np.zeros((8, ROWS, COLUMNS), np.uint8)
        mask[2:4, 2:4, 2:6] = mask[6, 2:4, 2:6] = 1
        found = warned(mask, geometry)
        assert any("more than 30 mm" in one for one in found) == far
        assert any("nothing is drawn on slices 5, 6," in one for one in found)


def test_warnings_name_their_mask(tmp_path):
    geometry, later = geometry_of(EVEN), geometry_of(UNEVEN, 18.5)
    followup_json, _ = scan(tmp_path, "followup", later, "d2")
    measured, _, _ = measure(
        tmp_path,
        geometry,
        write_mask(tmp_path / "m.nii.gz", box(6, slice(0, 2)), geometry["affine"]),
        followup_mask=write_mask(tmp_path / "f.nii.gz", box(8, slice(6, 8)), squared(later["affine"])),
        followup_json=followup_json,
        rater2_mask=write_mask(tmp_path / "r.nii.gz", box(6, slice(1, 6)), geometry["affine"]),
    )
    assert [one["problem"] for one in measured["warnings"]] == [
        "`baseline_mask`: the haematoma reaches the first slice of the scan",
        "`followup_mask`: the haematoma reaches the last slice of the scan",
        "`baseline_mask_rater2`: the haematoma reaches the last slice of the scan",
    ]
    assert all(one["action"] for one in measured["warnings"])


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


def test_a_mask_drawn_the_other_way_round_is_refused(tmp_path):
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    across, down = affine[:3, 0], affine[:3, 1]
    geometry = stack_geometry(np.outer(np.arange(30), affine[:3, 2]), across, down, 30, 30, "x")
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:14, 10:14, 10:14] = 1
    assert volume.fit_mask(write_mask(tmp_path / "m.nii.gz", mask, affine), geometry)[0].sum() == 64
    with pytest.raises(InputError, match="3367 mL are drawn, where no haematoma holds 1000 mL") as caught:
        volume.fit_mask(write_mask(tmp_path / "m.nii.gz", 1 - mask, affine), geometry)
    assert caught.value.action == "export the haematoma as 1 and all else as 0"
