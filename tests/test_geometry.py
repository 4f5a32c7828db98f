"""Where stacks of slices lie, by hand and under every trap: tilt, uneven steps, missing, doubled and odd slices."""

import shutil

import numpy as np
import pydicom
import pytest
from dicom_folders import COLUMNS, HEIGHTS, ROWS, change, compare_places, convert, stored
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from haemex.errors import InputError
from haemex.geometry import even_volume, geometry_warnings, slice_neighbours, slice_spacing_mm, stack_geometry
from haemex.series import list_series, plan_series


def test_affine_by_hand_with_pixels_that_are_not_square(tmp_path, write_series):
    pixels = stored(6)
    hu, affine, description = convert(write_series(tmp_path / "a", HEIGHTS, pixels), tmp_path)
    np.testing.assert_array_equal(affine, [[-0.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 5, 10], [0, 0, 0, 1]])
    np.testing.assert_array_equal(hu, pixels.astype(int) - 1024)
    assert hu.dtype == np.int16
    geometry = description["geometry"]
    assert geometry["shape_xyz"] == [COLUMNS, ROWS, 6]
    assert geometry["acquired_slices"] == 6
    assert geometry["even"] is True
    assert geometry["tilt_deg"] == 0
    assert geometry["area_mm2"] == 1.0
    assert geometry["voxel_volume_ml"] == pytest.approx(0.005, rel=1e-12)
    assert geometry["acquired_positions_mm"] == HEIGHTS
    assert geometry["slice_extent_mm"] == [5.0] * 6


@pytest.mark.parametrize("tilt", [20.0, -20.0])
def test_tilted_gantry_shears_the_affine(tmp_path, write_series, tilt):
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), orientation=(1, 0, 0, 0, cos, -sin))
    _, affine, description = convert(folder, tmp_path)
    expected = [[-0.5, 0, 0, 20], [0, -2 * cos, 0, 30], [0, -2 * sin, 5, 10], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-6)
    assert description["geometry"]["tilt_deg"] == pytest.approx(20.0, abs=1e-6)
    assert description["geometry"]["voxel_volume_ml"] == pytest.approx(0.5 * 2 * 5 * cos / 1000, rel=1e-9)
    assert description["geometry"]["slice_extent_mm"] == pytest.approx([5 * cos] * 6)
    compare_places(folder, affine, description["geometry"], 1e-4)


def test_head_turned_without_gantry_tilt_has_no_shear(tmp_path, write_series):
    # A reconstruction turned by 15 degrees about x: the slices are stacked along their own normal.
    cos, sin = np.cos(np.radians(15)), np.sin(np.radians(15))
    origins = [(0, -sin * h, cos * h) for h in HEIGHTS]
    _, affine, description = convert(
        write_series(tmp_path / "a", origins, stored(6), orientation=(1, 0, 0, 0, cos, sin)), tmp_path
    )
    assert description["geometry"]["tilt_deg"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(affine[:3, 2], [0, 5 * sin, 5 * cos], atol=1e-5)
    compare_places(tmp_path / "a", affine, description["geometry"], 1e-4)


def test_prone_patient_and_flipped_rows(tmp_path, write_series):
    for name, orientation in (("prone", (-1, 0, 0, 0, -1, 0)), ("flipped", (1, 0, 0, 0, -1, 0))):
        folder = write_series(tmp_path / name, HEIGHTS, stored(6), orientation=orientation)
        _, affine, description = convert(folder, tmp_path, name)
        compare_places(folder, affine, description["geometry"], 1e-5)
        assert np.linalg.det(affine) > 0


def test_order_and_names_of_files_do_not_matter(tmp_path, write_series):
    pixels = stored(6)
    first = convert(write_series(tmp_path / "a", HEIGHTS, pixels), tmp_path, "first")
    order = [3, 0, 5, 1, 4, 2]
    shuffled = write_series(tmp_path / "b", [HEIGHTS[i] for i in order], pixels[order])
    second = convert(write_series(tmp_path / "c", HEIGHTS[::-1], pixels[::-1]), tmp_path, "second")
    third = convert(shuffled, tmp_path, "third")
    for other in (second, third):
        np.testing.assert_array_equal(other[0], first[0])
        assert other[2] == first[2]
    files = [(tmp_path / f"{name}.nii.gz").read_bytes() for name in ("first", "second", "third")]
    assert files[0] == files[1] == files[2]


def test_same_input_gives_the_same_bytes_and_no_rest_behind(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    (tmp_path / "out").mkdir()
    contents = []
    for _ in range(2):
        convert(folder, tmp_path / "out")
        contents.append([path.read_bytes() for path in sorted((tmp_path / "out").iterdir())])
        assert len(contents[-1]) == 2
    assert contents[0] == contents[1]


def test_nothing_is_written_when_the_last_slice_is_bad(tmp_path, write_series):
    def cut(index, dataset):
        if index == 5:
            dataset.PixelData = dataset.PixelData[:-10]

    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=cut)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="cut off"):
        convert(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_slightly_uneven_slices_stay_as_they_are(tmp_path, write_series):
    heights = [0.0, 5.03, 10.0, 15.0, 19.97, 25.0]  # within 1 % of 5 mm
    _, affine, description = convert(write_series(tmp_path / "a", heights, stored(6)), tmp_path)
    assert description["geometry"]["even"] is True
    assert affine[2, 2] == 5.0
    heights[1] = 5.1  # 2 %
    description = convert(write_series(tmp_path / "b", heights, stored(6)), tmp_path)[2]
    assert description["geometry"]["even"] is False


def test_uneven_slices_follow_the_positions(tmp_path, write_series):
    # Steps 4, 4, 4, 1, 7, 7, 7 mm, tilted: HU grow by 10 per mm of table, which linear interpolation keeps exactly.
    heights = np.array([0, 4, 8, 12, 13, 20, 27, 34.0])
    thickness = [4, 4, 4, 4, 7, 7, 7, 7]
    cos, sin = np.cos(np.radians(18.5)), np.sin(np.radians(18.5))
    pixels = np.broadcast_to((heights * 10).astype(np.uint16)[:, None, None] + 1024, (8, ROWS, COLUMNS))

    def set_thickness(index, dataset):
        dataset.SliceThickness = thickness[index]

    folder = write_series(tmp_path / "a", heights, pixels, orientation=(1, 0, 0, 0, cos, -sin), edit=set_thickness)
    hu, affine, description = convert(folder, tmp_path)
    geometry = description["geometry"]
    assert geometry["even"] is False
    # Median step 4 mm; 34 / 4 = 8.5 rounds to 8 steps (to even), 4.25 mm each.
    assert geometry["shape_xyz"] == [COLUMNS, ROWS, 9]
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 4.25], atol=1e-6)
    np.testing.assert_allclose(hu[:, 0, 0], 42.5 * np.arange(9), atol=0.5)
    assert geometry["acquired_slices"] == 8
    extents = np.array([4, 4, 4, 2.5, 4, 7, 7, 7]) * cos
    np.testing.assert_allclose(geometry["slice_extent_mm"], extents, atol=1e-9)
    compare_places(folder, affine, geometry, 1e-4)


@pytest.mark.parametrize("lost", [[2], [1, 2], [1, 4]])
def test_missing_slices_are_named(tmp_path, write_series, lost):
    heights = [h for i, h in enumerate(np.arange(12) * 5.0) if i not in lost]
    folder = write_series(tmp_path / "a", heights, stored(len(heights)))
    with pytest.raises(InputError, match="slices are missing") as caught:
        convert(folder, tmp_path)
    assert f"between slices {lost[0]} and {lost[0] + 1}, " in str(caught.value)
    assert "where 5.00 mm are usual" in str(caught.value)


def test_missing_slice_in_the_thicker_part_of_a_series(tmp_path, write_series):
    heights = [0, 4, 8, 12, 16, 20, 27, 34, 48, 55, 62.0]

    def set_thickness(index, dataset):
        dataset.SliceThickness = 4 if index < 5 else 7

    folder = write_series(tmp_path / "a", heights, stored(11), edit=set_thickness)
    with pytest.raises(InputError, match=r"between slices 8 and 9, 14\.00 mm apart where 7\.00 mm"):
        convert(folder, tmp_path)


def test_two_spacings_under_one_thickness_are_no_gap(tmp_path, write_series):
    heights = np.concatenate([np.arange(8) * 5.0, 35 + np.arange(1, 5) * 10.0])
    _, _, description = convert(write_series(tmp_path / "a", heights, stored(12)), tmp_path)
    assert description["geometry"]["even"] is False


def test_long_steps_are_lost_slices_up_to_a_quarter_of_all(tmp_path, write_series):
    def heights(long):  # 11 steps
        return np.concatenate([[0], np.cumsum([10.0 if index in long else 5.0 for index in range(11)])])

    with pytest.raises(InputError, match=r"slices are missing: between slices 3 and 4, .*; between slices 7 and 8, "):
        convert(write_series(tmp_path / "two", heights({2, 6}), stored(12)), tmp_path)
    _, _, description = convert(write_series(tmp_path / "three", heights({2, 5, 8}), stored(12)), tmp_path)
    assert description["geometry"]["even"] is False


def test_slices_beside_the_line_are_refused(tmp_path, write_series):
    origins = [(-20, -30, h) for h in HEIGHTS]
    origins[3] = (-20, -28, HEIGHTS[3])
    with pytest.raises(InputError, match=r"slice 4 lies 2\.00 mm beside"):
        convert(write_series(tmp_path / "a", origins, stored(6)), tmp_path)


def test_a_copied_file_is_dropped_and_another_image_at_its_place_refused(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    alone = convert(folder, tmp_path, "alone")
    shutil.copy(folder / "002", folder / "copy of 002")
    copied = convert(folder, tmp_path, "copied")
    np.testing.assert_array_equal(copied[0], alone[0])
    assert copied[2]["geometry"] == alone[2]["geometry"]
    assert copied[2]["pixel_digest"] == alone[2]["pixel_digest"]
    other = pydicom.dcmread(folder / "002")
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / "copy of 002")
    with pytest.raises(InputError, match="position of slice 3 shows something else"):
        convert(folder, tmp_path, "other")


@pytest.mark.parametrize(
    ("keyword", "value", "problem"),
    [
        ("PixelSpacing", [2.1, 0.5], "pixel size 0.5 x 2.1 mm where other slices of the series have 0.5 x 2 mm"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.996, 0.0894], "orientation differs"),
        ("ImageOrientationPatient", [1, 0, 0, 0.5, 0.9, 0], "perpendicular"),
        ("PixelSpacing", None, "no matrix or no pixel size"),
        ("RescaleSlope", None, "unit of the pixels is unknown"),
        ("ImagePositionPatient", None, "1 of 6 images of the series have no ImagePositionPatient"),
        ("StudyInstanceUID", "1.2.3", "2 studies"),
        ("PatientID", "someone else", "2 patients"),
    ],
)
def test_a_slice_that_does_not_belong(tmp_path, write_series, keyword, value, problem):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=change(keyword, value))
    with pytest.raises(InputError, match=problem):
        convert(folder, tmp_path)


def test_a_slice_of_another_matrix(tmp_path, write_series):
    def edit(index, dataset):
        if index == 1:
            dataset.Rows, dataset.Columns = 8, 6
            dataset.PixelData = bytes(8 * 6 * 2)

    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=edit)
    with pytest.raises(InputError, match="matrix 6 x 8 where other slices of the series have 6 x 4"):
        convert(folder, tmp_path)


def axes(turn, pitch, roll):
    """Orthonormal directions (across, down, normal) of a stack turned about all three axes, degrees."""
    a, b, c = np.radians([turn, pitch, roll])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    return (about_z @ about_x @ about_y).T


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.tuples(*[st.floats(-400, 400)] * 3),
    angles=st.tuples(st.floats(-180, 180), st.floats(-20, 20), st.floats(-20, 20)),
    gantry=st.floats(-25, 25),
    spacing=st.tuples(st.floats(0.3, 1.2), st.floats(0.3, 1.2)),
    steps=st.one_of(
        st.floats(2, 8).map(lambda step: [step] * 6), st.lists(st.floats(2.0, 3.1), min_size=5, max_size=8)
    ),
    seed=st.integers(0, 1000),
)
def test_affine_maps_every_index_to_the_place_of_its_file(
    tmp_path_factory, write_series, start, angles, gantry, spacing, steps, seed
):
    across, down, normal = axes(*angles)
    lean = np.radians(gantry)  # the image plane leans about `across`, the table goes on along the old normal
    leant = np.cos(lean) * down + np.sin(lean) * normal
    assume(abs(np.cross(across, leant)[2]) > np.cos(np.radians(34)))
    origins = np.array(start) + np.outer(np.concatenate([[0], np.cumsum(steps)]), normal)
    order = np.random.default_rng(seed).permutation(len(origins))
    digits = [float(f"{value:.6f}") for value in (*across, *leant)]
    folder = write_series(
        tmp_path_factory.mktemp("stack"), origins[order].round(4), stored(len(origins)), orientation=digits,
        spacing=spacing,
    )  # fmt: skip
    (series,) = list_series(folder)
    slices, geometry = plan_series(series)
    affine = np.array(geometry["affine"])
    assert geometry["even"] == (np.ptp(steps) <= 0.02 * np.mean(steps) or geometry["even"])
    assert [one[0].InstanceNumber for one in slices] in (
        list(np.argsort(order) + 1), list(np.argsort(order)[::-1] + 1)
    )  # fmt: skip
    compare_places(folder, affine, geometry, 0.02)
    assert np.linalg.det(affine) > 0
    assert geometry["tilt_deg"] == pytest.approx(abs(gantry), abs=0.02)
    assert geometry["even"] or geometry["shape_xyz"][2] != geometry["acquired_slices"]


def test_never_as_many_even_slices_as_uneven_ones():
    origins = np.outer([0, 5, 10, 15, 20.4, 25], [0, 0, 1])
    geometry = stack_geometry(origins, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1, 1, "x")
    assert geometry["shape_xyz"][2] == 7
    assert geometry["affine"][2][2] == pytest.approx(25 / 6)
    assert geometry["voxel_volume_ml"] * 7 == pytest.approx(7 * 25 / 6 / 1000)


def test_orientation_that_differs_in_the_last_digits(tmp_path, write_series):
    noise = np.random.default_rng(0).normal(0, 1e-6, (6, 6))

    def jitter(index, dataset):
        dataset.ImageOrientationPatient = list(np.array([1, 0, 0, 0, 0.95, 0.3122499]) + noise[index])

    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=jitter)
    _, affine, description = convert(folder, tmp_path)
    assert description["geometry"]["even"]
    compare_places(folder, affine, description["geometry"], 1e-3)


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [((1, 0, 0, 0, 0, -1), "coronal"), ((0, 1, 0, 0, 0, -1), "sagittal"), ((1, 0, 0, 0, 0.766, 0.643), "axial")],
)
def test_stacks_that_are_not_axial_are_refused(tmp_path, write_series, orientation, plane):
    normal = np.cross(orientation[:3], orientation[3:])
    folder = write_series(tmp_path / "a", [tuple(5 * i * normal) for i in range(22)], stored(22), orientation)
    (one,) = list_series(folder)
    assert (one.reason, one.plane, one.pinnable) == ("not axial", plane, False)


def test_what_is_odd_about_a_geometry_is_said():
    def warnings(heights):
        origins = np.outer(heights, [0, 0, 1])
        geometry = stack_geometry(origins, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1, 1, "x")
        return [one["problem"] for one in geometry_warnings(geometry)]

    assert warnings(np.arange(0, 120, 5.0)) == []
    assert warnings(np.arange(0, 60, 5.0)) == ["the slices cover only 55 mm"]
    uneven, overlap = warnings([*np.arange(0, 56, 4.0), *np.arange(53.1, 120, 7)])
    assert uneven.startswith("slices unevenly spaced, 1.10 to 7.00 mm apart; they are brought to an even grid of ")
    assert overlap == (
        "slices overlap where two parts of the scan meet: slices 14 and 15 1.10 mm apart (counted from the lowest)"
    )


@given(
    steps=st.lists(st.floats(1, 9), min_size=4, max_size=12),
    tilt=st.floats(-30, 30),
    turn=st.floats(-180, 180),
)
def test_geometry_holds_for_any_stack(steps, tilt, turn):
    tilt, turn = np.radians([tilt, turn])
    across = 0.5 * np.array([np.cos(turn), np.sin(turn), 0])
    down = 0.4 * np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), np.sin(tilt)])
    heights = np.concatenate([[0], np.cumsum(steps)])
    origins = np.array([3.0, -5.0, 7.0]) + np.outer(heights, [0, 0, 1])
    geometry = stack_geometry(origins, across, down, 10, 12, "x")
    affine = np.array(geometry["affine"])
    count = geometry["shape_xyz"][2]
    np.testing.assert_allclose(affine[:3] @ [0, 0, 0, 1], origins[0])
    np.testing.assert_allclose(affine[:3] @ [0, 0, count - 1, 1], origins[-1], atol=1e-9)
    assert geometry["tilt_deg"] == pytest.approx(abs(np.degrees(tilt)), abs=1e-5)
    assert geometry["voxel_volume_ml"] * 1000 == pytest.approx(0.2 * np.cos(tilt) * heights[-1] / (count - 1))
    assert sum(geometry["slice_extent_mm"]) == pytest.approx(
        np.cos(tilt) * (heights[-1] + steps[0] / 2 + steps[-1] / 2)
    )


def test_spacing_of_a_sheared_grid():
    # 5 mm between planes, each shifted by 2 mm: the planes stay 5 mm apart, though their origins are 5.39 mm apart.
    affine = np.array([[0.5, 0, 0, 0], [0, 0.4, 2, 0], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(slice_spacing_mm(affine), [5, 0.4, 0.5])
    tilt = np.radians(20)
    affine[:3, 1], affine[:3, 2] = 0.4 * np.array([0, np.cos(tilt), -np.sin(tilt)]), (0, 0, 5)
    np.testing.assert_allclose(slice_spacing_mm(affine), [5 * np.cos(tilt), 0.4, 0.5])


def test_the_even_grid_by_hand():
    # Steps of 4, 4 and 8 mm: five slices, each 4 mm; the fourth lies half-way up the long step.
    geometry = {"acquired_positions_mm": [0.0, 4.0, 8.0, 16.0], "shape_xyz": [1, 1, 5]}
    below, share = slice_neighbours(geometry)
    assert [*below] == [0, 1, 2, 2, 2] and [*share] == [0, 0, 0, 0.5, 1]
    hu = np.array([-1024, 31, 10, 61], np.int16).reshape(4, 1, 1)
    even = even_volume(hu, geometry)
    assert even.dtype == np.int16 and [*even.ravel()] == [-1024, 31, 10, 36, 61]  # 35.5, to the even number
