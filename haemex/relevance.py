"""Where a prediction comes from, on any grid: maps of `haemex.explanation`, read without PyTorch."""

from haemex.resample import resample_volume


def relevance_on_grid(relevance, affine, grid_affine, grid_shape):
    """Sample a relevance map at the voxels of another grid.

    Linear between the map's voxel centres. Beyond the outer faces of the map's voxels nothing is known, and the value
    is zero. A grid coarser than the map gets the mean over each of its voxels.

    Parameters
    ----------
    relevance : numpy.ndarray, (z, y, x)
        Map of `haemex.explanation.relevance_map`, 0 to 1.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of the map to RAS, mm.
    grid_affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of the other grid to RAS, mm; may be sheared (gantry tilt).
    grid_shape : tuple of int
        (z, y, x) of the other grid.

    Returns
    -------
    numpy.ndarray of float32, (z, y, x)
        Between 0 and the map's maximum.
    """
    return resample_volume(relevance, affine, grid_affine, tuple(grid_shape), order=1, outside=0.0)
