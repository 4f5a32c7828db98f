"""Masks small enough to count by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haemex.segmentation_metrics import dice, volume_ml


def test_dice_by_hand():
    a = np.zeros((2, 3, 3), np.uint8)
    b = np.zeros((2, 3, 3), np.uint8)
    a[0, 0], b[0, :, 0] = 1, 1  # three voxels each, one shared
    assert dice(a, b) == pytest.approx(2 / 6)
    b[1] = 1  # twelve voxels
    assert dice(a, b) == pytest.approx(2 / 15)


def test_dice_of_empty_masks():
    empty, full = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    assert dice(empty, empty) == 1
    assert dice(empty, full) == dice(full, empty) == 0
    assert dice(full, full) == 1


def test_dice_takes_any_nonzero_value_and_does_not_overflow():
    a, b = np.full((8, 8, 8), 200, np.uint8), np.full((8, 8, 8), True)
    assert dice(a, b) == 1


def test_dice_refuses_masks_that_would_be_broadcast():
    with pytest.raises(ValueError, match="shape"):
        dice(np.ones((2, 3, 3)), np.ones((1, 3, 3)))


masks = arrays(np.uint8, (2, 3, 4), elements=st.integers(0, 1))


@settings(deadline=None)
@given(masks, masks)
def test_dice_properties(a, b):
    from scipy.spatial.distance import dice as dissimilarity

    value = dice(a, b)
    assert 0 <= value <= 1
    assert value == dice(b, a) == dice(a[::-1, :, ::-1], b[::-1, :, ::-1])
    assert (value == 1) == bool((a == b).all())
    if a.any() or b.any():
        assert value == pytest.approx(1 - dissimilarity(a.ravel().astype(bool), b.ravel().astype(bool)))


def test_volume_by_hand():
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, :2] = 7  # ten voxels of 0.5 x 0.5 x 5 mm
    affine = np.diag([-0.5, 0.5, 5, 1])
    affine[:3, 3] = 100, -20, 3
    assert volume_ml(mask, affine) == pytest.approx(10 * 1.25 / 1000)
    assert volume_ml(np.zeros((3, 4, 5)), affine) == 0


def test_volume_on_a_tilted_grid():
    # Slices shifted along y by the tangent of the tilt: the volume is that of the upright grid.
    upright = np.diag([0.5, 0.5, 5.0, 1.0])
    sheared = upright.copy()
    sheared[1, 2] = 5 * np.tan(np.radians(18.5))
    mask = np.ones((2, 3, 4))
    assert volume_ml(mask, sheared) == pytest.approx(volume_ml(mask, upright)) == pytest.approx(0.03)
