"""Surface distances: boxes by hand, spheres by their radii, SimpleITK and a slow oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haemex.surface_distance import surface_distances

AFFINE = np.diag([0.5, 0.5, 5.0, 1.0])


def box(shape, z, y, x):
    mask = np.zeros(shape, np.uint8)
    mask[slice(*z), slice(*y), slice(*x)] = 1
    return mask


def test_one_voxel_each_in_every_direction():
    a, b = np.zeros((5, 5, 5)), np.zeros((5, 5, 5))
    a[1, 1, 1], b[3, 2, 4] = 1, 1  # 2 slices, 1 row, 3 columns
    expected = math.sqrt((2 * 5) ** 2 + 0.5**2 + 1.5**2)
    assert surface_distances(a, b, AFFINE) == pytest.approx((expected, expected))


@pytest.mark.parametrize(("axis", "mm"), [(0, 5.0), (1, 0.5), (2, 0.5)])
def test_plates_shifted_along_each_axis(axis, mm):
    # Plates one voxel thick that span the volume: every surface voxel is three voxels from the other plate.
    a, b = np.zeros((9, 9, 9)), np.zeros((9, 9, 9))
    np.moveaxis(a, axis, 0)[2], np.moveaxis(b, axis, 0)[5] = 1, 1
    assert surface_distances(a, b, AFFINE) == pytest.approx((3 * mm, 3 * mm))


def test_shifted_box_by_hand():
    # A row of ten voxels along x, 0.5 mm each, shifted by two: two ends stick out by 1 and 0.5 mm on either side.
    a, b = box((3, 3, 20), (1, 2), (1, 2), (3, 13)), box((3, 3, 20), (1, 2), (1, 2), (5, 15))
    hd95, assd = surface_distances(a, b, AFFINE)
    # Directed distances: eight zeros, 0.5 and 1; the 95th percentile is at place 8.55 of 0 to 9.
    assert hd95 == pytest.approx(0.5 + 0.55 * 0.5)
    assert assd == pytest.approx(1.5 / 10)


def test_concentric_spheres_differ_by_their_radii():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    z, y, x = np.meshgrid(np.arange(-25, 26, 2.0), np.arange(-25, 26.0), np.arange(-25, 26.0), indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    hd95, assd = surface_distances(radius <= 12, radius <= 20, affine)
    assert assd == pytest.approx(8, abs=0.5)
    assert hd95 == pytest.approx(8, abs=1.1)


def test_sheared_grid_measures_true_millimetres():
    # Two voxels that stand above each other in the room lie in different rows of a tilted scan.
    affine = AFFINE.copy()
    affine[1, 2] = 2.5  # five rows per slice
    a, b = np.zeros((2, 9, 3)), np.zeros((2, 9, 3))
    a[0, 7, 1], b[1, 2, 1] = 1, 1
    assert surface_distances(a, b, affine) == pytest.approx((5.0, 5.0))


def test_empty_masks():
    empty, full = np.zeros((3, 3, 3)), np.ones((3, 3, 3))
    assert surface_distances(empty, empty, AFFINE) == (0, 0)
    assert all(math.isnan(one) for one in surface_distances(empty, full, AFFINE))
    assert all(math.isnan(one) for one in surface_distances(full, empty, AFFINE))
    assert surface_distances(full, full, AFFINE) == (0, 0)
    with pytest.raises(ValueError, match="shape"):
        surface_distances(empty, full[:1], AFFINE)


masks = arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 1))


def slow(a, b, affine):
    """Every surface voxel against every other, found one by one."""

    def surface(mask):
        points = {tuple(v) for v in np.argwhere(mask)}
        steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        kept = [p for p in points if any(tuple(np.add(p, s)) not in points for s in steps)]
        return np.array([affine[:3, :3] @ p[::-1] for p in kept])

    one, other = surface(a), surface(b)
    table = np.linalg.norm(one[:, None] - other[None], axis=-1)
    there, back = table.min(1), table.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@settings(deadline=None, max_examples=40)
@given(masks, masks)
def test_against_a_slow_oracle(a, b):
    if a.any() and b.any():
        affine = np.array([[-0.5, 0, 0, 7], [0, 0.6, 1.5, 3], [0, 0.1, 5, -2], [0, 0, 0, 1]])
        assert surface_distances(a, b, affine) == pytest.approx(slow(a, b, affine))
        assert surface_distances(a, b, affine) == pytest.approx(surface_distances(b, a, affine))


def test_against_simpleitk():
    import SimpleITK

    rng = np.random.default_rng(2)
    blobs = [SimpleITK.GetImageFromArray(rng.normal(size=(12, 30, 30))) for _ in range(2)]
    images = [SimpleITK.Cast(SimpleITK.DiscreteGaussian(blob, 4.0) > 0.02, SimpleITK.sitkUInt8) for blob in blobs]
    distances = []
    for image in images:
        image.SetSpacing((0.5, 0.5, 5.0))
    # Padded, so that the edge of the volume is an outline for SimpleITK too.
    images = [SimpleITK.ConstantPad(image, (1, 1, 1), (1, 1, 1), 0) for image in images]
    outlines = [SimpleITK.LabelContour(image, fullyConnected=False) for image in images]
    for source, target in (outlines, outlines[::-1]):
        field = SimpleITK.SignedMaurerDistanceMap(
            target, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        inside = SimpleITK.GetArrayViewFromImage(source) > 0
        distances.append(np.abs(SimpleITK.GetArrayViewFromImage(field))[inside])
    hd95, assd = surface_distances(*(SimpleITK.GetArrayFromImage(image) for image in images), AFFINE)
    assert hd95 == pytest.approx(max(np.percentile(one, 95) for one in distances), abs=1e-4)
    assert assd == pytest.approx(np.concatenate(distances).mean(), abs=1e-4)
