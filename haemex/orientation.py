"""Which way the axes of a volume run, and how to turn it: by flips and swaps, never by interpolation."""

import itertools

import numpy as np


def turning(affine, wanted):
    """Find how to turn a volume so that its axes run along the patient's, or whatever frame the affine leads to.

    Parameters
    ----------
    affine : numpy.ndarray, (4, 4) or (3, 3)
        Voxel index (x, y, z) to the frame; oblique and sheared ones go by their nearest axes.
    wanted : sequence of int, (3,)
        1 or -1: whether the first, second and third axis shall run along the frame's or against it.

    Returns
    -------
    axes : tuple of int
        Of an array (z, y, x): which of its axes becomes the third, second and first of the frame.
    flipped : tuple of bool
        Whether it has to be reversed then.
    """
    directions = np.asarray(affine, float)[:3, :3]
    directions = directions / np.linalg.norm(directions, axis=0)
    # order[r] is the array's x, y or z that runs along the frame's axis r.
    order = max(itertools.permutations(range(3)), key=lambda order: np.prod(np.abs(directions[range(3), order])))
    signs = directions[range(3), order]
    axes = tuple(2 - order[axis] for axis in (2, 1, 0))
    return axes, tuple(bool(signs[axis] * wanted[axis] < 0) for axis in (2, 1, 0))


def radiological_axes(affine):
    """Find how to turn a volume for display: patient's right on the left, anterior up, from foot to head.

    Parameters
    ----------
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Returns
    -------
    axes, flipped : tuple
        See `turning`; the axes of (z, y, x) that become slice, row and column.
    """
    return turning(affine, (-1, -1, 1))  # columns to the left, rows to the back, slices upwards


def turn(volume, axes, flipped):
    """Apply `turning` to an array (z, y, x), of display: (slice, row, column); a view."""
    return volume.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def turned_affine(affine, axes, flipped, shape):
    """Make the affine of a turned volume.

    Parameters
    ----------
    affine : numpy.ndarray, (4, 4)
        Of the volume as it was.
    axes, flipped : tuple
        From `turning`.
    shape : tuple of int
        Of the turned volume, (z, y, x) or (slice, row, column).

    Returns
    -------
    numpy.ndarray, (4, 4)
        Index of the turned volume (x, y, z), or (column, row, slice), to RAS, mm.
    """
    turned = np.array(affine, float)
    for new, (axis, flip, size) in enumerate(zip(axes[::-1], flipped[::-1], shape[::-1], strict=True)):
        step = np.asarray(affine)[:3, 2 - axis]
        turned[:3, new] = -step if flip else step
        if flip:
            turned[:3, 3] += step * (size - 1)
    return turned
