"""Bring scans to the network's grid: strip, resample, window, normalise within the brain.

Supplement, Data preprocessing: the skull is taken away, then a field of view of 112 x 112 x 160 mm is resampled over
256 x 256 x 32 voxels by bicubic interpolation, then windowed to 0 to 100 HU, then z-scored within the brain, then
negative values become zero.

The grid's axes are the patient's (x to the right, y to the front, z upwards: RAS), its centre is the brain's centre of
mass. Between the native grid, sheared or not, and this grid lies one interpolation.
"""

import math

import numpy as np
from scipy import ndimage

from haemex.errors import InputError
from haemex.files import write_json
from haemex.geometry import slice_spacing_mm
from haemex.nifti import read_mask_on, read_volume, write_volume
from haemex.shapes import fraction_inside, keep_volume, signed_distance

CT_SLOPE = 2**-10  # z-scores in int16: steps of 0.001, up to 32
# Where a voxel of the grid is wider than this many native ones (demo grids, not the paper's), one point does not stand
# for it: CT and masks are averaged over its extent, as a scanner does, instead of being sampled at its centre.
AVERAGE_ABOVE = 1.5
# Native samples kept around the grid: 0.27^24 = 1e-14 of what lies beyond reaches a cubic spline within.
MARGIN = 24
# Axes count as parallel when they part by less than this over the whole grid, in native voxels.
PARALLEL_WITHIN = 1e-3


def resample_scan(
    ct_path,
    brain_path,
    haematoma_path,
    ct_out,
    brain_out,
    haematoma_out,
    json_out,
    field_of_view_mm,
    matrix,
    spline_order,
    window_hu,
):
    """Write one scan on the network's grid.

    Parameters
    ----------
    ct_path : path-like
        CT in HU on its native grid; the affine may be sheared (gantry tilt).
    brain_path, haematoma_path : path-like
        Masks on the same grid. No haematoma (None) for a patient who is only to be predicted.
    ct_out : path-like
        Windowed z-scores, int16 with slope 2**-10; zero outside the brain.
    brain_out, haematoma_out : path-like
        Masks, uint8 0 or 1. `haematoma_out` is None where `haematoma_path` is.
    json_out : path-like
        `mean_hu` and `sd_hu` of the windowed brain, `haematoma_inside_fraction` (part of the haematoma's native voxels
        whose centre lies in the field of view), `haematoma_voxels` (on the network's grid), `grid_affine`. The two of
        the haematoma are null where there is none.
    field_of_view_mm : sequence of float
        (x, y, z), mm.
    matrix : sequence of int
        (x, y, z), voxels.
    spline_order : int
        Order of the B-spline for the CT, 1 to 5; 3 is cubic. The brain mask is interpolated linearly and cut at 0.5,
        the haematoma keeps its volume (see `resample_haematoma`).
    window_hu : sequence of float
        Lower and upper end of the window.

    Raises
    ------
    InputError
        A mask is not on the CT's grid, the brain is empty, or the brain has one HU throughout.
    """
    hu, affine = read_volume(ct_path)
    brain = read_mask_on(brain_path, hu.shape, affine)
    if not brain.any():
        raise InputError("the brain mask is empty", "run skullstrip again, or check the scan", brain_path)
    grid_affine = network_affine(centre_of_mass_mm(brain, affine), field_of_view_mm, matrix)
    shape = tuple(int(size) for size in matrix[::-1])

    grid_brain = resample_mask(brain, affine, grid_affine, shape)
    if not grid_brain.any():
        raise InputError("the brain mask is empty on the network's grid", "enlarge resample: matrix", brain_path)
    # ASSUME: what is no brain, or was not scanned, has the window's lower end (0 HU) before the interpolation, as in a
    # skull-stripped image. Left in, the skull would ring and bleed into the brain's rim, brighter there than any
    # haematoma, and would double the standard deviation.
    background_hu = float(window_hu[0])
    stripped = np.where(brain, hu, np.float32(background_hu))
    grid_hu = resample_volume(stripped, affine, grid_affine, shape, spline_order, background_hu)
    grid_ct, mean_hu, sd_hu = normalise(grid_hu, grid_brain, window_hu)
    if not grid_ct.max() <= 32767 * CT_SLOPE:
        raise InputError(
            f"the brain has a standard deviation of {sd_hu:.3g} HU within the window of {window_hu[0]:g} to"
            f" {window_hu[1]:g} HU",
            "check that the scan is in HU and that resample: window_hu fits it",
            ct_path,
        )

    inside_fraction, voxels = None, None
    if haematoma_path is not None:
        haematoma = read_mask_on(haematoma_path, hu.shape, affine)
        inside_fraction = fraction_inside(haematoma, affine, grid_affine, shape)
        grid_haematoma = resample_haematoma(haematoma, affine, grid_affine, shape)
        voxels = int(grid_haematoma.sum())
        write_volume(haematoma_out, grid_haematoma.astype(np.uint8), grid_affine)
    write_volume(ct_out, grid_ct, grid_affine, slope=CT_SLOPE)
    write_volume(brain_out, grid_brain.astype(np.uint8), grid_affine)
    facts = {
        "mean_hu": mean_hu,
        "sd_hu": sd_hu,
        "haematoma_inside_fraction": inside_fraction,
        "haematoma_voxels": voxels,
        "grid_affine": grid_affine.tolist(),
    }
    write_json(json_out, facts)


def centre_of_mass_mm(mask, affine):
    """Locate a mask's centre of mass in RAS mm, (x, y, z); `mask` is bool (z, y, x) and not empty."""
    total = mask.sum()
    # Sums along the axes suffice, and are far quicker than a list of all voxels.
    index = [
        np.arange(mask.shape[axis]) @ mask.sum(tuple(other for other in range(3) if other != axis)) / total
        for axis in (2, 1, 0)
    ]
    return affine[:3, :3] @ index + affine[:3, 3]


def network_affine(centre_mm, field_of_view_mm, matrix):
    """Make the affine of a grid along the patient's axes.

    Parameters
    ----------
    centre_mm, field_of_view_mm, matrix : sequence, (3,)
        (x, y, z): centre of the grid in RAS mm, its extent in mm (outer edges of its voxels), its voxels.

    Returns
    -------
    numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm. The determinant is positive: left and right cannot be swapped.
    """
    voxel_mm = np.asarray(field_of_view_mm, float) / np.asarray(matrix)
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = np.asarray(centre_mm) - voxel_mm * (np.asarray(matrix) - 1) / 2
    return affine


def normalise(hu, brain, window_hu):
    """Window, z-score within the brain, negative values and all outside the brain to zero.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU.
    brain : numpy.ndarray of bool, (z, y, x)
        Not empty.
    window_hu : sequence of float
        Values beyond it count as its ends.

    Returns
    -------
    ct : numpy.ndarray, (z, y, x)
        What the network sees; not finite where the brain has one value throughout.
    mean_hu, sd_hu : float
        Of the windowed brain, what is denser than the window left out; the standard deviation of the population
        (divided by the number of voxels).
    """
    windowed = np.clip(hu, *window_hu)
    # ASSUME: what is denser than the window is bone that fills a part of a voxel at the brain's rim, calcification or
    # metal. It is shown, but does not count in mean and spread: on thick slices it would widen the latter by a third.
    measured = windowed[brain & (hu <= window_hu[1])].astype(float)
    mean_hu, sd_hu = (float(measured.mean()), float(measured.std())) if measured.size else (np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (windowed - mean_hu) / sd_hu
    # ASSUME: the skull-stripped image is zero outside the brain; the supplement only says that negatives become zero.
    return np.where(brain, np.maximum(scores, 0), 0), mean_hu, sd_hu


def resample_mask(mask, affine, grid_affine, shape):
    """Bring a mask to another grid: its indicator by linear interpolation, 0.5 and more is inside.

    Where the grid is much coarser than the mask, the indicator is averaged over the voxel instead (`AVERAGE_ABOVE`),
    so that the volume of small haematomas survives. Parameters as in `resample_volume`; returns bool, (z, y, x).
    """
    # Half of a voxel must stay half: rounding of the weights must not turn it into 0.4999999.
    return resample_volume(mask, affine, grid_affine, shape, 1, 0.0) >= 0.5 - 1e-5


def resample_haematoma(mask, affine, grid_affine, shape):
    """Bring a haematoma to another grid; what lies within the grid keeps its volume, to the nearest voxel.

    The signed distance to its surface is interpolated by a cubic spline (or averaged, see `AVERAGE_ABOVE`), and the
    voxels that lie farthest inside are taken until the volume is reached; see `haemex.shapes`.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (z, y, x)
        Native mask.
    affine, grid_affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS mm, of the mask and of the grid; either may be sheared.
    shape : tuple of int
        (z, y, x) of the grid.

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)
        Empty only if no voxel of the mask lies within the grid.
    """
    out = np.zeros(shape, bool)
    inside = fraction_inside(mask, affine, grid_affine, shape)
    if not inside:
        return out
    voxels = inside * np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3]) / np.linalg.det(grid_affine[:3, :3]))

    # Only the surroundings of the mask matter: all that lies a voxel of the coarser grid farther out is outside.
    native_mm = slice_spacing_mm(affine)
    margin_mm = max(native_mm.max(), np.linalg.norm(grid_affine[:3, :3], axis=0).max())
    part = []
    for axis, reach in enumerate(np.ceil(margin_mm / native_mm).astype(int) + 1):
        places = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        part.append(slice(max(places[0] - reach, 0), places[-1] + reach + 1))
    mask = mask[tuple(part)]
    affine = _moved(affine, [one.start for one in part])
    distance = signed_distance(mask, np.arange(len(mask)) * native_mm[0], native_mm[1:], 2 * margin_mm)

    corners = np.array(np.meshgrid(*([-0.5, size - 0.5] for size in mask.shape[::-1]))).reshape(3, -1)
    to_grid = np.linalg.inv(grid_affine) @ affine
    at = (to_grid[:3, :3] @ corners + to_grid[:3, 3:])[::-1]
    low = np.clip(np.floor(at.min(1)).astype(int), 0, shape)
    high = np.clip(np.ceil(at.max(1)).astype(int) + 1, low, shape)
    values = resample_volume(distance, affine, _moved(grid_affine, low), tuple(high - low), 3, -2 * margin_mm)
    out[tuple(slice(*pair) for pair in zip(low, high, strict=True))] = keep_volume(values, max(1, round(voxels)))
    return out


def _moved(affine, start):
    """The affine of the part of a grid that begins at voxel (z, y, x)."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start)[::-1]
    return moved


def resample_volume(volume, affine, grid_affine, shape, order, outside):
    """Interpolate a volume on another grid through the full affines.

    Parameters
    ----------
    volume : numpy.ndarray, (z, y, x)
        Values at the native voxels' centres.
    affine, grid_affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS mm, of the volume and of the grid; either may be sheared.
    shape : tuple of int
        (z, y, x) of the grid.
    order : int
        Order of the B-spline, 1 (linear) to 5. In the outer half of the outermost voxels the volume continues as its
        mirror image: all as in `scipy.ndimage.map_coordinates(mode="mirror")`.
    outside : float
        Value beyond the outermost voxels' outer faces.

    Returns
    -------
    numpy.ndarray of float32, (z, y, x)
        The volume at the grid's voxel centres, or its mean over the grid's voxels along axes where these are wider
        than `AVERAGE_ABOVE` native ones.
    """
    # Grid index to native index, both (z, y, x).
    to_native = np.linalg.inv(affine) @ grid_affine
    matrix, start = to_native[2::-1, 2::-1], to_native[2::-1, 3]
    points = _points_per_voxel(affine, grid_affine)[::-1]

    volume, start, bounds = _crop(volume, matrix, start, shape)
    if volume.size == 0:
        return np.full(shape, outside, np.float32)
    source_axis = np.argmax(np.abs(matrix), axis=0)  # for each axis of the grid
    along = np.zeros((3, 3), bool)
    along[source_axis, range(3)] = True
    drift = np.abs(np.where(along, 0, matrix)) @ np.array(shape)
    if sorted(source_axis) == [0, 1, 2] and drift.max() < PARALLEL_WITHIN:
        middle = (np.array(shape) - 1) / 2
        start = start + np.where(along, 0, matrix) @ middle
        volume = volume.transpose(source_axis)
        weights, valid = [], []
        for axis, source in enumerate(source_axis):
            at = start[source] + matrix[source, axis] * _sub_positions(shape[axis], points[axis])
            weight, inside = _axis_weights(at, volume.shape[axis], bounds[source], order)
            weights.append(weight)
            valid.append(inside)
        return _weigh_axes(volume, weights, valid, outside)
    return _sample_freely(volume, matrix, start, shape, bounds, points, order, outside)


def _points_per_voxel(affine, grid_affine):
    """Count the points per voxel and axis of the grid, (x, y, z), at which the native volume is averaged."""
    step_mm = np.linalg.norm(grid_affine[:3, :3], axis=0)
    direction = grid_affine[:3, :3] / step_mm
    native_mm = np.abs(direction.T @ affine[:3, :3]).sum(axis=1)  # extent of a native voxel along the grid's axes
    ratio = step_mm / native_mm
    return [math.ceil(value - 1e-6) if value > AVERAGE_ABOVE else 1 for value in ratio]


def _sub_positions(size, points):
    """Positions along an axis, (size, points), in voxels: evenly spread in each voxel, one point is its centre."""
    return np.arange(size)[:, None] + (np.arange(points) + 0.5) / points - 0.5


def _crop(volume, matrix, start, shape):
    """Cut away what the grid cannot see.

    Returns the part (z, y, x), `start` within it, and the bounds (3, 2) of the whole volume's voxel centres within it.
    """
    corners = np.array([[x - 0.5, y - 0.5] for x, y in ((0, size) for size in shape)])
    corners = np.stack(np.meshgrid(*corners, indexing="ij")).reshape(3, -1)
    at = matrix @ corners + start[:, None]
    size = np.array(volume.shape)
    low = np.clip(np.floor(at.min(axis=1)).astype(int) - MARGIN, 0, size)
    high = np.clip(np.ceil(at.max(axis=1)).astype(int) + 1 + MARGIN, low, size)
    part = volume[tuple(slice(*pair) for pair in zip(low, high, strict=True))]
    return part, start - low, np.stack([-low, size - 1 - low], axis=1)


def _axis_weights(at, size, bounds, order):
    """Make the matrix that interpolates along one axis.

    Parameters
    ----------
    at : numpy.ndarray, (positions, points)
        Where, in samples; the mean over the points is taken.
    size : int
        Number of samples.
    bounds : sequence of float, (2,)
        First and last sample of the uncropped axis.
    order : int
        Order of the B-spline.

    Returns
    -------
    weights : numpy.ndarray of float32, (positions, size)
        Prefilter and evaluation in one; rows sum to the part of the points that lie within the volume.
    inside : numpy.ndarray of float32, (positions,)
        That part.
    """
    valid = (at >= bounds[0] - 0.5) & (at <= bounds[1] + 0.5)
    first = np.floor(at - (order - 1) / 2).astype(int)
    rows = np.arange(len(at))[:, None]
    evaluation = np.zeros((len(at), size))
    for step in range(order + 1):
        neighbour = first + step
        weight = np.where(valid, _b_spline(at - neighbour, order), 0) / at.shape[1]
        folded = np.abs(neighbour) % max(2 * (size - 1), 1)
        folded = np.minimum(folded, 2 * (size - 1) - folded) if size > 1 else 0 * folded
        np.add.at(evaluation, (np.broadcast_to(rows, folded.shape), folded), weight)
    if order > 1 and size > 1:
        evaluation = evaluation @ ndimage.spline_filter1d(np.eye(size), order, axis=0, mode="mirror")
    evaluation[np.abs(evaluation) < 1e-9] = 0  # denormal numbers would cost 14 times
    return evaluation.astype(np.float32), valid.mean(axis=1).astype(np.float32)


def _b_spline(x, order):
    """Evaluate the centred B-spline of an order at x (Unser M. IEEE Signal Process Mag 1999;16(6):22-38, eq. 2)."""
    terms = [
        (-1) ** k * math.comb(order + 1, k) * np.maximum(x + (order + 1) / 2 - k, 0) ** order for k in range(order + 2)
    ]
    return np.sum(terms, axis=0) / math.factorial(order)


def _weigh_axes(volume, weights, valid, outside):
    """Apply one matrix per axis; points outside the volume take `outside`. All (z, y, x)."""
    out = volume.astype(np.float32)
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        if axis == 2:
            out = out @ weights[2].T
        elif axis == 1:
            out = np.matmul(weights[1], out)
        else:
            out = (weights[0] @ out.reshape(len(out), -1)).reshape(-1, *out.shape[1:])
    if outside != 0 and not all((part == 1).all() for part in valid):
        inside = valid[0][:, None, None] * valid[1][:, None] * valid[2]
        out += np.float32(outside) * (1 - inside)
    return out


def _sample_freely(volume, matrix, start, shape, bounds, points, order, outside):
    """Interpolate where the axes of grid and volume are not parallel; arguments as above, all (z, y, x)."""
    coefficients = volume.astype(np.float32 if order == 1 else np.float64)
    if order > 1:
        coefficients = ndimage.spline_filter(coefficients, order, mode="mirror")
    total = np.zeros(shape)
    axes = [
        np.arange(size).reshape([-1 if axis == other else 1 for other in range(3)]) for axis, size in enumerate(shape)
    ]
    for offset in np.ndindex(*points):
        shift = (np.array(offset) + 0.5) / points - 0.5
        begin = start + matrix @ shift
        sample = ndimage.affine_transform(
            coefficients, matrix, begin, shape, np.float64, order, mode="mirror", prefilter=False
        )
        for row, origin, (low, high) in zip(matrix, begin, bounds, strict=True):
            at = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + origin
            sample[(at < low - 0.5) | (at > high + 0.5)] = outside
        total += sample
    return (total / np.prod(points)).astype(np.float32)
