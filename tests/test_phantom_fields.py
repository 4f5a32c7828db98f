"""Random fields of synthetic images."""

import numpy as np
import pytest

from haemex.phantom_fields import field_at, field_on, generator, waves
from haemex.phantom_planes import points

PLANE = {
    "origins": np.array([[-90.0, -110.0, 40.0], [-90.0, -110.3, 41.6]]),
    "row_step": np.array([0.01, 0.44, -0.1]),
    "column_step": np.array([0.45, -0.02, 0.03]),
}


def test_a_field_has_mean_0_and_variance_1_and_its_wavelength():
    field = waves(generator(3, "field"), 8.0, 400)
    line = np.linspace(-4000, 4000, 8001, dtype=np.float32)
    values = field_at(field, line, 0 * line, 0 * line)
    assert values.mean() == pytest.approx(0, abs=0.05) and values.std() == pytest.approx(1, abs=0.07)
    length = 2 * np.pi / np.linalg.norm(field["k"], axis=1)
    assert (length > 8 / 1.31).all() and (length < 8 / 0.74).all()


def test_planes_and_points_give_the_same_field_even_for_short_waves_far_away():
    """The oracle adds up plane waves in double precision."""
    field = waves(generator(4, "field"), 2.0, 24)
    rows, columns = np.arange(7, 400, 31), np.arange(3, 420, 29)
    x, y, z = (p.astype(float) for p in np.broadcast_arrays(*_exact_points(rows, columns)))
    angle = np.stack([x, y, z], -1) @ field["k"].astype(float).T + field["phase"]
    exact = np.cos(angle).sum(-1) * np.sqrt(2 / 24)
    np.testing.assert_allclose(field_on(field, PLANE, rows, columns), exact, atol=2e-5)
    np.testing.assert_allclose(field_at(field, *points(PLANE, rows, columns)), exact, atol=2e-3)


def _exact_points(rows, columns):
    grid = (
        PLANE["origins"][:, None, None]
        + rows[:, None, None] * PLANE["row_step"]
        + columns[:, None] * PLANE["column_step"]
    )
    return np.moveaxis(grid, -1, 0)
