"""Find the brain in a head CT by Otsu's method.

Supplement, Data preprocessing: "Each CT image was skull skipped by using Otsu's method" (Otsu N. A threshold selection
method from gray-level histograms. IEEE Trans Syst Man Cybern 1979;9:62-66). Nothing more is said there, and one Otsu
threshold on a head only parts air from head. Here it is applied twice: to the scan (air | head), then within the head
(soft tissue | bone). What lies between the thresholds is brain only where bone surrounds it and where it hangs
together once the openings of the skull (foramina, orbital fissures, sutures) are sealed.
"""

import json

import numpy as np
from scipy import ndimage

from haemex.errors import InputError
from haemex.nifti import read_volume, write_atomically, write_volume

# The search runs on block means of about this size: thin enough for the skull base, and the noise is averaged out.
WORK_SPACING_MM = (3.0, 1.0, 1.0)  # (z, y, x)

AIR_RANGE_HU = (-1000, 1000)  # outside it, padding and metal would stretch the histogram
# ASSUME: within the head, soft tissue and bone are told apart between 0 HU (fat and air cells left out) and 200 HU (any
# denser bone counts as 200): the threshold falls near 115 HU, above a haematoma (50-90 HU) and below thin bone that
# fills half a slice. Up to 300 HU it would fall near 160 HU, and the orbital roof would be open.
BONE_RANGE_HU = (0, 200)
# ASSUME: what is darker is fat (about -100 HU) or air; ventricles and infarcts are brighter.
FAT_HU = -30
# ASSUME: brain sees the skull in at least 13 of 16 directions of its slice; orbit, face and neck see open air.
DIRECTIONS_WITH_BONE = 13
# Growing back by a little more than was taken off reaches the corners that a round opening cuts.
CORNER_MM = 2.0


def skullstrip_scan(ct_path, brain_out, json_out, seal_gap_mm, min_brain_ml):
    """Write the brain mask of one scan.

    Parameters
    ----------
    ct_path : path-like
        CT in HU, NIfTI on its native grid; the affine may be sheared (gantry tilt).
    brain_out : path-like
        Mask, uint8 0 or 1, on the grid of the CT.
    json_out : path-like
        `thresholds_hu` (air to head, soft tissue to bone) and `brain_ml`.
    seal_gap_mm : float
        Openings of the skull narrower than twice this are closed before the inside is looked for.
    min_brain_ml : float
        A smaller brain is refused.

    Raises
    ------
    InputError
        Less than `min_brain_ml` of brain was found.
    """
    hu, affine = read_volume(ct_path)
    brain, thresholds_hu = find_brain(hu, affine, seal_gap_mm)
    brain_ml = float(brain.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    if brain_ml < min_brain_ml:
        raise InputError(
            f"no brain found: {brain_ml:.0f} mL of soft tissue inside a skull, where at least {min_brain_ml:g} mL is"
            " expected",
            "check that the scan is a whole adult head in HU, or lower skullstrip: min_brain_ml",
            ct_path,
        )
    write_volume(brain_out, brain.astype(np.uint8), affine)
    facts = {"thresholds_hu": thresholds_hu, "brain_ml": brain_ml}
    write_atomically(json_out, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def find_brain(hu, affine, seal_gap_mm):
    """Find the brain in a head CT.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU, first axis across the slices.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to mm.
    seal_gap_mm : float
        Openings of the skull narrower than twice this are sealed.

    Returns
    -------
    brain : numpy.ndarray of bool, (z, y, x)
        Everything within the brain's outline: haematoma, ventricles and calcifications too. Empty where there is none.
    thresholds_hu : list of float
        Otsu's thresholds: air to head, soft tissue to bone.
    """
    spacing = slice_spacing_mm(affine)
    factor = np.maximum(1, np.rint(np.array(WORK_SPACING_MM) / spacing).astype(int))
    coarse, in_plane_mm = _block_mean(hu, factor), (spacing * factor)[1:]

    air_hu = otsu_threshold(coarse, AIR_RANGE_HU)
    tissue = coarse[coarse > max(air_hu, BONE_RANGE_HU[0])]
    if tissue.size == 0:
        return np.zeros(hu.shape, bool), [air_hu, float(BONE_RANGE_HU[1])]
    bone_hu = otsu_threshold(tissue, BONE_RANGE_HU)

    soft = (coarse > max(air_hu, FAT_HU)) & (coarse <= bone_hu)
    # The largest piece of bone is the skull; the head holder is another and must not count as surrounding anything.
    skull = largest_component(coarse > bone_hu)
    inside = soft & _surrounded(dilate(skull, seal_gap_mm, in_plane_mm))
    # Fat and air are walls like bone: the orbit hangs on to the brain by muscles and nerves that run through fat.
    # Opening by twice the gap finds the one large body (through partly filled slices of the skull base, orbits and
    # masticator spaces hang on to a finer one); what the finer opening keeps next to that body is brain as well.
    body = largest_component(inside & ~dilate(~soft, 2 * seal_gap_mm, in_plane_mm))
    core = inside & ~dilate(~soft, seal_gap_mm, in_plane_mm)
    core = largest_component(core & dilate(body, 2 * seal_gap_mm + CORNER_MM, in_plane_mm))
    brain = dilate(core, seal_gap_mm + CORNER_MM / 2, in_plane_mm) & soft
    return _enlarge(_fill_slices(brain), factor, hu.shape), [air_hu, bone_hu]


def otsu_threshold(values, value_range):
    """Find the threshold that parts values into two classes with the largest variance between them.

    Parameters
    ----------
    values : numpy.ndarray
        Any shape. Values outside `value_range` count as its nearer end.
    value_range : tuple of int
        Least and greatest value told apart; the histogram has one bin per unit.

    Returns
    -------
    float
        The upper class is what is greater. With a single value, that value.
    """
    low, high = value_range
    bins = np.clip(np.rint(values), low, high).astype(np.int64).ravel() - low
    counts = np.bincount(bins, minlength=high - low + 1).astype(float)
    levels = np.arange(low, high + 1)
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    if not np.nanmax(between, initial=0) > 0:
        return float(levels[np.argmax(counts)])
    # An empty stretch of the histogram gives the same variance all along: its middle is the fairest threshold.
    return float(np.mean(levels[between >= np.nanmax(between) * (1 - 1e-12)]))


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
    x, y = np.linalg.norm(affine[:3, :2], axis=0)
    return np.array([abs(np.linalg.det(affine[:3, :3])) / (x * y), y, x])


def dilate(mask, radius_mm, spacing_mm):
    """Grow a mask within its slices by a disc.

    Slices stand 5 mm apart, further than what is sealed; so each grows on its own.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (z, y, x)
        What grows.
    radius_mm : float
        Radius of the disc.
    spacing_mm : sequence of float
        (y, x).

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)
        Voxels whose centre lies within `radius_mm` of a voxel centre of `mask` in the same slice.
    """
    # A disc is a stack of rows; each row's run is grown from the shorter runs, which is far quicker than a
    # structuring element and exactly the same.
    reach = int(radius_mm / spacing_mm[0] + 1e-9)
    rows = {}
    for step in range(-reach, reach + 1):
        half_width = np.sqrt(max(radius_mm**2 - (step * spacing_mm[0]) ** 2, 0)) / spacing_mm[1]
        rows.setdefault(int(half_width + 1e-9), []).append(step)
    grown, run, reached = np.zeros_like(mask), mask.copy(), 0
    for half_width in sorted(rows):
        while reached < min(half_width, mask.shape[2] - 1):
            reached += 1
            run[:, :, reached:] |= mask[:, :, :-reached]
            run[:, :, :-reached] |= mask[:, :, reached:]
        for step in rows[half_width]:
            to, origin = _overlap(step, mask.shape[1])
            grown[:, to] |= run[:, origin]
    return grown


def largest_component(mask):
    """Keep the largest connected part of a mask (voxels that share a face), (z, y, x); empty stays empty."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _overlap(step, size):
    """Slices that shift an axis of `size` by `step`: where to, where from."""
    step = int(np.clip(step, -size, size))
    return slice(max(step, 0), size + min(step, 0)), slice(max(-step, 0), size - max(step, 0))


def _block_mean(hu, factor):
    """Average blocks of (z, y, x) `factor` voxels; blocks at the far ends repeat the last voxel."""
    for axis, size in enumerate(factor):
        if size == 1:
            continue
        short = -hu.shape[axis] % size
        hu = np.pad(hu, [(0, short if axis == other else 0) for other in range(3)], mode="edge")
        shape = (*hu.shape[:axis], hu.shape[axis] // size, size, *hu.shape[axis + 1 :])
        hu = hu.reshape(shape).mean(axis + 1, dtype=np.float32)
    return hu.astype(np.float32, copy=False)


def _surrounded(bone):
    """Mark voxels that see bone in `DIRECTIONS_WITH_BONE` of 16 directions of their slice, (z, y, x)."""
    seen = np.zeros(bone.shape, np.uint8)
    for transposed in (False, True):
        for flipped in (False, True):
            view_bone, view_seen = (
                (array.transpose(0, 2, 1) if transposed else array)[:, :: -1 if flipped else 1]
                for array in (bone, seen)
            )
            # Sidesteps per row: straight ahead and half diagonal to both sides; the diagonals once per pair of axes.
            for sidestep in (0, 0.5, -0.5) if transposed else (0, 0.5, -0.5, 1, -1):
                behind = view_bone[:, 0].copy()
                for row in range(1, view_bone.shape[1]):
                    shift = int(np.floor(row * sidestep) - np.floor((row - 1) * sidestep))
                    if shift:
                        to, origin = _overlap(shift, behind.shape[1])
                        moved = np.zeros_like(behind)
                        moved[:, to] = behind[:, origin]
                        behind = moved
                    behind |= view_bone[:, row]
                    view_seen[:, row] += behind
    return seen >= DIRECTIONS_WITH_BONE


def _fill_slices(mask):
    """Fill what each slice of a mask encloses, (z, y, x)."""
    background = np.pad(~mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(background, in_slice)
    outside = np.zeros(count + 1, bool)
    outside[labels[:, 0, 0]] = True
    return ~outside[labels[:, 1:-1, 1:-1]]


def _enlarge(mask, factor, shape):
    """Undo `_block_mean` for a mask: repeat voxels by `factor`, cut to `shape`, all (z, y, x)."""
    for axis, size in enumerate(factor):
        mask = np.repeat(mask, size, axis)
    return mask[tuple(slice(size) for size in shape)]
