"""Planes of synthetic scans, and the interpolation between grids of different fineness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haemex.phantom_planes import bands, interpolation, resized


def test_interpolation_is_linear_between_every_third_pixel():
    coarse, weights = interpolation(8, 3)
    np.testing.assert_array_equal(coarse, [0, 3, 6, 9])
    np.testing.assert_allclose(weights @ (10.0 * coarse), 10 * np.arange(8), atol=1e-5)
    np.testing.assert_allclose(weights @ [0, 1, 0, 0], [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0], atol=1e-6)


@given(
    fine=st.tuples(*[st.integers(1, 90)] * 2), step=st.integers(1, 7), size=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_cut_weights_give_the_whole_product(fine, step, size, seed):
    """The oracle multiplies by all the zeros as well."""
    rows, columns = (interpolation(n, step)[1] for n in fine)
    values = np.random.default_rng(seed).standard_normal((2, rows.shape[1], columns.shape[1])).astype(np.float32)
    found = resized(values, bands(rows, size), bands(columns, size))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows @ (values @ columns.T), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_weights_may_hold_empty_rows_and_reduce_as_well_as_enlarge(shape):
    rng = np.random.default_rng(1)
    there = np.abs(np.arange(shape[0])[:, None] / shape[0] - np.arange(shape[1]) / shape[1]) < 0.2
    weights = (there * rng.standard_normal(shape)).astype(np.float32)
    weights[16:24] = 0  # a whole block of 8
    values = rng.standard_normal((shape[1], shape[1])).astype(np.float32)
    found = resized(values, bands(weights, 8), bands(weights, 8))
    np.testing.assert_allclose(found, weights @ values @ weights.T, atol=1e-5)


def test_cut_weights_leave_most_zeros_out():
    weights = interpolation(500, 6)[1]
    kept = sum(block.size for _, _, block in bands(weights))
    assert np.count_nonzero(weights) <= kept < 0.2 * weights.size
