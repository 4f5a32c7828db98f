"""How well a haematoma was outlined, and how large it is. Numpy only: training and prediction use it too."""

import numpy as np


def dice(a, b):
    """Dice coefficient of two masks, 2 |a and b| / (|a| + |b|).

    Two empty masks agree completely and give 1; one empty mask gives 0.

    Parameters
    ----------
    a, b : array-like, any one shape
        A voxel that is not 0 (or False) belongs to the mask.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        The masks differ in shape.
    """
    a, b = np.asarray(a) != 0, np.asarray(b) != 0
    if a.shape != b.shape:
        raise ValueError(f"masks of shape {a.shape} and {b.shape}")
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / size if size else 1.0


def volume_ml(mask, affine):
    """Volume of a mask on an even grid, in mL.

    Parameters
    ----------
    mask : array-like, (z, y, x)
        A voxel that is not 0 (or False) belongs to the mask.
    affine : array-like, (4, 4)
        Voxel index (x, y, z) to mm. A sheared one (gantry tilt) is right too: a voxel's volume is |det|.

    Returns
    -------
    float
    """
    voxel_mm3 = abs(np.linalg.det(np.asarray(affine, float)[:3, :3]))
    return float(np.count_nonzero(mask) * voxel_mm3 / 1000)
