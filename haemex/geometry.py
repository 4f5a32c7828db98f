"""Where a stack of slices lies, and the even grid that uneven slices are brought to.

Geometry comes from position and orientation of every slice (DICOM PS3.3, C.7.6.2), never from the tilt or spacing
tags: vendors disagree on the sign of the one, and the other lies. A tilted series keeps its pixels and gets a sheared
affine, so that masks drawn slice by slice fit index by index.
"""

import numpy as np

from haemex.errors import InputError

MIN_SLICES = 5
# ASSUME: a series that covers less is a part of the head.
HEAD_COVERAGE_MM = 100.0
EVEN_TOLERANCE = 0.01  # design, Geometry: beyond 1 % of the spacing slices are not even


def stack_geometry(origins, across, down, columns, rows, file):
    """Work out where a stack of parallel slices lies, whether it is even, and the grid it is written on.

    An even stack is written as acquired: the third column of the affine is the step between positions, which a tilted
    gantry makes oblique to the image plane. An uneven stack is written on an even grid from the first to the last
    position, with the step nearest to the median step that divides the distance exactly, and never with as many slices
    as were acquired: a mask's shape then says on which of the two grids it was drawn.

    Parameters
    ----------
    origins : numpy.ndarray, (slices, 3)
        Centre of pixel (0, 0) of each slice, RAS, mm, in index order.
    across, down : numpy.ndarray, (3,)
        From one column to the next and from one row to the next, RAS, mm.
    columns, rows : int
        Matrix.
    file : path-like
        Named in errors.

    Returns
    -------
    dict
        `shape_xyz`, `affine` (index (x, y, z) to RAS, mm) and `voxel_volume_ml` of the written grid;
        `acquired_slices`, `acquired_positions_mm` (along the normal, ascending), `slice_extent_mm` (half-way to the
        neighbours; at the ends the step to the neighbour), `area_mm2` of a pixel, `even`, and `tilt_deg`, the angle
        between the normal and the direction in which the slices are stacked.

    Raises
    ------
    InputError
        The slices are not stacked along a straight line.
    """
    normal = np.cross(across, down)
    area = float(np.linalg.norm(normal))
    normal = normal / area
    if (origins[-1] - origins[0]) @ normal < 0:  # a NIfTI file may be left-handed
        normal = -normal
    positions = origins @ normal
    steps = np.diff(positions)
    span = positions[-1] - positions[0]
    slope = (origins[-1] - origins[0]) / span
    off = np.linalg.norm(origins - origins[0] - np.outer(positions - positions[0], slope), axis=1)
    # ASSUME: half a pixel is more than rounded tags explain, and less than can be seen.
    if off.max() > 0.5 * min(np.linalg.norm(across), np.linalg.norm(down)):
        raise InputError(
            f"the slices are not stacked along a straight line: slice {int(off.argmax()) + 1} lies {off.max():.2f} mm "
            "beside it",
            "export one series with one field of view",
            file,
        )
    mean = span / len(steps)
    even = bool(np.abs(steps - mean).max() <= EVEN_TOLERANCE * mean)
    count = len(origins) if even else round(float(span / np.median(steps))) + 1
    # Never as many even slices as were acquired: a mask's shape alone then says on which of the two grids it was
    # drawn (ITK gives both the same affine, that of first and last slice).
    count += not even and count == len(origins)
    step = span / (count - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([across, down, slope * step, origins[0]]) + 0.0  # no minus zeros
    extents = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    return {
        "shape_xyz": [int(columns), int(rows), int(count)],
        "affine": affine.tolist(),
        "voxel_volume_ml": float(abs(np.linalg.det(affine[:3, :3])) / 1000.0),
        "acquired_slices": len(origins),
        "acquired_positions_mm": positions.tolist(),
        "slice_extent_mm": extents.tolist(),
        "area_mm2": area,
        "even": even,
        "tilt_deg": float(np.degrees(np.arctan2(np.linalg.norm(slope - normal), 1.0))),
    }


def geometry_warnings(geometry):
    """Say what is odd about the geometry of a scan that can be used all the same.

    Parameters
    ----------
    geometry : dict
        See `stack_geometry`.

    Returns
    -------
    list of dict
        `problem` and `action`; empty where all is well.
    """
    found = []
    positions = np.array(geometry["acquired_positions_mm"])
    steps = np.diff(positions)
    if not geometry["even"]:
        found.append(
            {
                "problem": f"slices unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm apart; they are brought "
                f"to an even grid of {geometry['shape_xyz'][2]} slices",
                "action": "nothing, or check that the series is complete",
            }
        )
        close = np.flatnonzero(steps < 0.6 * np.median(steps))
        if close.size:
            where = "; ".join(f"slices {i + 1} and {i + 2} {steps[i]:.2f} mm apart" for i in close[:3])
            found.append(
                {
                    "problem": f"slices overlap where two parts of the scan meet: {where} (counted from the lowest)",
                    "action": "look at these slices: the same anatomy must not be shown twice",
                }
            )
    span = positions[-1] - positions[0]
    if span < HEAD_COVERAGE_MM:
        found.append(
            {
                "problem": f"the slices cover only {span:.0f} mm",
                "action": "check that the series shows the whole head",
            }
        )
    return found


def refuse_gaps(positions, thicknesses, file):
    """Refuse a series in which slices are missing.

    A step is compared with the thickness of its two slices, so that a series of two thicknesses (4 mm below, 7 mm
    above) is not taken for one with gaps.
    """
    steps = np.diff(positions)
    known = np.array([np.nan if t is None or t <= 0 else t for t in thicknesses])
    local = np.full(len(steps), np.median(steps)) if np.isnan(known).any() else (known[:-1] + known[1:]) / 2
    ratio = steps / local
    ratio = ratio / np.median(ratio)
    # ASSUME: twice or three times the usual step is a lost slice; more than that is a hole of whatever origin. Where
    # a quarter of the steps are long, the table was fed so.
    gaps = np.flatnonzero((ratio > 1.6) & ((np.abs(ratio - np.rint(ratio)) < 0.1) | (ratio > 3)))
    if gaps.size and gaps.size <= len(steps) / 4:
        where = "; ".join(
            f"between slices {i + 1} and {i + 2}, {steps[i]:.2f} mm apart where {steps[i] / ratio[i]:.2f} mm are usual"
            for i in gaps
        )
        raise InputError(f"slices are missing: {where} (counted from the lowest)", "export the whole series", file)


def even_volume(hu, geometry):
    """Bring the acquired slices of an uneven CT to its even grid.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x), int16
        Acquired slices.
    geometry : dict
        See `stack_geometry`.

    Returns
    -------
    numpy.ndarray, (z, y, x), int16
        On the written grid.
    """
    below, share = slice_neighbours(geometry)
    even = np.empty((len(below), *hu.shape[1:]), np.int16)
    # Index by index: the shear of a tilted stack is kept.
    for index, (lower, part) in enumerate(zip(below, share, strict=True)):
        even[index] = np.rint(hu[lower] * (1 - part) + hu[lower + 1] * part)
    return even


def slice_neighbours(geometry):
    """Find between which acquired slices each slice of the even grid lies.

    Parameters
    ----------
    geometry : dict
        See `stack_geometry`; uneven.

    Returns
    -------
    below : numpy.ndarray of int, (z,)
        Index of the acquired slice below.
    share : numpy.ndarray of float32, (z,)
        0 to 1: how far on the way to the one above.
    """
    positions = np.array(geometry["acquired_positions_mm"])
    wanted = np.linspace(positions[0], positions[-1], geometry["shape_xyz"][2])
    below = np.clip(np.searchsorted(positions, wanted, side="right") - 1, 0, len(positions) - 2)
    share = (wanted - positions[below]) / (positions[below + 1] - positions[below])
    return below, np.clip(share, 0.0, 1.0).astype(np.float32)


def slice_spacing_mm(affine):
    """Measure the grid: distance between slice planes, then between rows and columns.

    Parameters
    ----------
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to mm; with a sheared affine the planes are nearer than their origins.

    Returns
    -------
    numpy.ndarray, (3,)
        (z, y, x), mm.
    """
    across, down, step = np.asarray(affine)[:3, :3].T
    normal = np.cross(across, down)
    columns_mm, rows_mm = np.linalg.norm(np.asarray(affine)[:3, :2], axis=0)
    return np.array([abs(normal @ step) / np.linalg.norm(normal), rows_mm, columns_mm])
