import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from haemex.geometry import stack_geometry
from haemex.resample import network_affine
from haemex.shapes import even_mask, fraction_inside, keep_volume, signed_distance


def brute_force(mask, heights, pixel_mm, limit_mm):
    """Distance to the nearest voxel of the other kind, pair by pair."""
    index = np.stack(np.indices(mask.shape), -1).reshape(-1, 3)
    places = np.column_stack([np.asarray(heights, float)[index[:, 0]], index[:, 1:] * np.asarray(pixel_mm)])
    away = np.linalg.norm(places[:, None] - places[None], axis=-1)
    flat = mask.ravel()
    away[flat[:, None] == flat[None]] = np.inf
    return (np.minimum(away.min(1), limit_mm) * np.where(flat, 1, -1)).reshape(mask.shape)


@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.sampled_from([1.0, 4.0, 6.5]), min_size=3, max_size=5),
    pixel_mm=st.tuples(st.sampled_from([0.5, 2.0]), st.sampled_from([0.7, 1.0])),
    limit_mm=st.sampled_from([2.0, 7.0, 50.0]),
)
@settings(deadline=None, max_examples=30)
def test_the_signed_distance_is_that_of_all_pairs(seed, steps, pixel_mm, limit_mm):
    heights = np.cumsum([0, *steps])
    mask = np.random.default_rng(seed).random((len(heights), 5, 6)) < 0.4
    mask[0, 0, 0], mask[-1, -1, -1] = True, False
    found = signed_distance(mask, heights, pixel_mm, limit_mm)
    np.testing.assert_allclose(found, brute_force(mask, heights, pixel_mm, limit_mm), rtol=1e-6)


def test_the_signed_distance_is_scipys_on_even_slices():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(8, 30, 40)), 2) > 0.02
    sampling = (5.0, 0.9, 0.6)
    inside, outside = (ndimage.distance_transform_edt(kind, sampling=sampling) for kind in (mask, ~mask))
    found = signed_distance(mask, np.arange(8) * 5.0, sampling[1:], 1000.0)
    np.testing.assert_allclose(found, inside - outside, rtol=1e-5)


def test_the_largest_values_are_kept_and_ties_stay_together():
    values = np.array([[5.0, 1, 4], [3, 3, 3]])
    for count, expected in (
        (1, [[1, 0, 0], [0, 0, 0]]),
        (2, [[1, 0, 1], [0, 0, 0]]),
        (3, [[1, 0, 1], [0, 0, 0]]),  # one too few is nearer than two too many
        (4, [[1, 0, 1], [1, 1, 1]]),
        (5, [[1, 0, 1], [1, 1, 1]]),
        (6, [[1, 1, 1], [1, 1, 1]]),
    ):
        np.testing.assert_array_equal(keep_volume(values, count), expected)
    assert keep_volume(np.ones((2, 2)), 1).all()  # never nothing


def uneven(heights, tilt=0.0, pixel_mm=1.0, matrix=(60, 50)):
    origins = np.outer(heights, [0, 0, 1.0])
    down = -pixel_mm * np.array([0, np.cos(tilt), np.sin(tilt)])
    return stack_geometry(origins, np.array([-pixel_mm, 0, 0]), down, *matrix, "x")


HEIGHTS = [*range(0, 40, 4), 37.1, 44, 51, 58, 65, 72.0]


@pytest.mark.parametrize("tilt", [0, 0.4])
def test_an_even_mask_has_the_volume_and_the_place_of_the_ellipsoid(tilt):
    """Cut at one half, the interpolated mask of such scans was up to 3 % too large."""
    geometry = uneven(HEIGHTS, tilt)
    rows, columns = np.indices((50, 60))
    heights = np.array(geometry["acquired_positions_mm"])[:, None, None]
    middle = heights.mean() + 2
    mask = ((columns - 29) / 19) ** 2 + ((rows - 24) / 17) ** 2 + ((heights - middle) / 22) ** 2 <= 1
    even = even_mask(mask, geometry)
    assert even.shape == tuple(geometry["shape_xyz"][::-1]) and even.dtype == np.uint8
    volume = np.count_nonzero(mask, axis=(1, 2)) @ geometry["slice_extent_mm"] * geometry["area_mm2"] / 1000
    assert even.sum() * geometry["voxel_volume_ml"] == pytest.approx(volume, rel=0.005)  # symmetric: many ties
    assert volume == pytest.approx(4 / 3 * np.pi * 19 * 17 * 22 / 1000, rel=0.02)
    z, y, x = np.argwhere(even).mean(0)
    step = np.ptp(heights) / (len(even) - 1)
    np.testing.assert_allclose([x, y, heights.min() + z * step], [29, 24, middle], atol=0.25 * step)


def test_an_even_mask_grows_evenly_from_section_to_section():
    """Squares of 10 and 30 pixels on neighbouring slices: half-way lies one of 20 or a little more, never a copy.

    A little more, since each of the two counts half-way to the other: 500 pixels a slice, where 20 x 20 are 400.
    """
    geometry = uneven([0, 2, 4, 12, 14, 16.0])  # step 2: the even grid has 9 slices
    assert geometry["shape_xyz"][2] == 9
    mask = np.zeros((6, 50, 60), np.uint8)
    mask[0:3, 20:30, 20:30] = 1
    mask[3:6, 10:40, 10:40] = 1
    widths = even_mask(mask, geometry)[:, 25].sum(1)
    np.testing.assert_allclose(widths[2:7], [10, 16, 22, 28, 30], atol=1)
    volume = np.count_nonzero(mask, axis=(1, 2)) @ geometry["slice_extent_mm"] * geometry["area_mm2"] / 1000
    assert even_mask(mask, geometry).sum() * geometry["voxel_volume_ml"] == pytest.approx(volume, rel=0.01)


def test_what_is_drawn_on_one_slice_between_two_even_ones_is_kept():
    geometry = uneven([0, 4, 8, 12, 13, 20, 27, 34.0])
    mask = np.zeros((8, 50, 60), np.uint8)
    mask[4, 20:22, 30] = 1
    even = even_mask(mask, geometry)
    assert 1 <= even.sum() <= 2
    assert np.argwhere(even)[:, 0].tolist() == [3] * even.sum()  # 12.75 mm
    assert even[3, 20:22, 30].any()


def test_even_slices_and_empty_masks_stay_as_they_are():
    even = uneven(np.arange(6) * 5.0)
    mask = np.zeros((6, 50, 60), np.uint8)
    mask[2, 20, 30] = 1
    assert even_mask(mask, even) is mask
    found = even_mask(np.zeros((16, 50, 60), np.uint8), uneven(HEIGHTS))
    assert not found.any() and found.shape[0] == uneven(HEIGHTS)["shape_xyz"][2]
    assert even_mask(np.ones((16, 50, 60), np.uint8), uneven(HEIGHTS)).mean() > 0.98


def test_fraction_inside_half_a_head():
    # 20 voxels of 1 mm along x, centred on 0; the grid spans x from 0 to 30.
    mask = np.ones((2, 2, 20), bool)
    affine = np.eye(4)
    affine[:3, 3] = [-9.5, 0, 0]
    assert fraction_inside(mask, affine, network_affine([15, 0, 0], [30, 10, 10], [3, 1, 1]), (1, 1, 3)) == 0.5
    assert fraction_inside(mask, affine, network_affine([0, 0, 0], [5, 10, 10], [1, 1, 1]), (1, 1, 1)) == 0.3 - 0.05
    assert fraction_inside(np.zeros((2, 2, 2), bool), affine, np.eye(4), (1, 1, 1)) is None
