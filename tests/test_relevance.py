import subprocess
import sys

import numpy as np
from scipy.ndimage import map_coordinates

from haemex.relevance import relevance_on_grid

AFFINE = np.diag([2.0, 2.0, 20.0, 1.0])
AFFINE[:3, 3] = -9.0, -11.0, -30.0


def test_linear_between_voxel_centres_and_zero_beyond_the_faces():
    relevance = np.array([[[0.0, 1.0, 0.5]]], np.float32)  # centres at x = -9, -7, -5 mm; faces at -10 and -4
    grid = np.eye(4)
    grid[:3, 3] = -11.0, -11.0, -30.0
    found = relevance_on_grid(relevance, AFFINE, grid, (1, 1, 9))[0, 0]
    np.testing.assert_allclose(found[[2, 3, 4, 5, 6]], [0.0, 0.5, 1.0, 0.75, 0.5], atol=1e-6)  # x = -9 to -5 mm
    assert found[0] == 0 and found[8] == 0  # x = -11 and -3 mm
    assert found.dtype == np.float32


def test_agrees_with_an_independent_interpolation_on_a_tilted_grid():
    relevance = np.random.default_rng(0).random((4, 9, 11), np.float32)
    grid = np.array([[-0.9, 0.1, 0.0, 8.0], [0.1, 0.8, 1.3, -8.0], [0.0, 0.2, 4.0, -28.0], [0, 0, 0, 1]])
    shape = (10, 13, 14)
    found = relevance_on_grid(relevance, AFFINE, grid, shape)
    z, y, x = np.indices(shape)
    at = np.einsum("ij,jzyx->izyx", np.linalg.inv(AFFINE) @ grid, np.stack([x, y, z, np.ones(shape)]))[2::-1]
    size = np.array(relevance.shape)[:, None, None, None]
    within = ((at >= 0) & (at <= size - 1)).all(0)
    outside = ((at < -0.5) | (at > size - 0.5)).any(0)
    np.testing.assert_allclose(found[within], map_coordinates(relevance, at[:, within], order=1), atol=1e-5)
    assert within.sum() > 300 and outside.sum() > 300
    assert (found[outside] == 0).all()
    assert found.max() <= relevance.max()


def test_a_mirrored_grid_reads_the_same_places():
    relevance = np.random.default_rng(1).random((4, 9, 11), np.float32)
    mirrored = AFFINE.copy()
    mirrored[0] = [-2.0, 0, 0, -9.0 + 20.0]
    np.testing.assert_allclose(
        relevance_on_grid(relevance, AFFINE, mirrored, relevance.shape), relevance[..., ::-1], atol=1e-6
    )


def test_pytorch_is_not_needed():
    code = "import sys, haemex.relevance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
