"""Find the brain in a head CT by Otsu's method.

Supplement, Data preprocessing: "Each CT image was skull skipped by using Otsu's method" (Otsu N. A threshold selection
method from gray-level histograms. IEEE Trans Syst Man Cybern 1979;9:62-66). Nothing more is said there, and one Otsu
threshold on a head only parts air from head. Here it is applied again within the head, to part soft tissue from bone:

1. Otsu's thresholds are taken on block means of about 1 mm (3 mm across thin slices): air | head, soft tissue | bone.
2. Bone, and fat or air, are walls. Pieces below 0.3 mL are none: noise, calcifications, clips.
3. The largest piece of bone is the skull. Where tissue is cut off by the edge of the scanned field, that edge stands
   for the missing skull.
4. Brain is the soft tissue that sees the skull in 13 of 16 directions of its slice. In slices where the body of the
   brain covers 60 cm2, above the foramen magnum, 8 are enough: the skull may lack a flap.
5. What hangs together once openings of the skull (foramina, orbital fissures, sutures) are sealed is kept, grown back,
   and its holes filled.
6. The mask's rim takes in voxels that hold a little bone. Beside dense tissue (blood) it takes in all that hold more
   tissue than bone, so that a haematoma at the inner table is not cut.
"""

import numpy as np
from scipy import ndimage

from haemex.errors import InputError
from haemex.files import write_json
from haemex.geometry import slice_spacing_mm
from haemex.nifti import read_volume, write_volume

# The search runs on block means of about this size: thin enough for the skull base, and the noise is averaged out.
WORK_SPACING_MM = (3.0, 1.0, 1.0)  # (z, y, x)

AIR_RANGE_HU = (-1000, 1000)  # outside it, padding and metal would stretch the histogram
# ASSUME: within the head, soft tissue and bone are told apart between 0 HU (fat and air cells left out) and 200 HU (any
# denser bone counts as 200): the threshold falls near 115 HU, above a haematoma (50-90 HU) and below thin bone that
# fills half a slice. Up to 300 HU it would fall near 160 HU, and the orbital roof would be open.
BONE_RANGE_HU = (0, 200)
# Up to 300 HU the threshold falls near 165 HU, a tenth of bone: noise in a haematoma does not reach it, and a rim with
# more bone than that would stretch the z-score of the brain in `resample`.
RIM_RANGE_HU = (0, 300)
# Up to 1000 HU it falls near 430 HU: about half tissue, half bone.
HALF_RANGE_HU = (0, 1000)
OTSU_RANGES = (BONE_RANGE_HU, RIM_RANGE_HU, HALF_RANGE_HU)
MEAN_LIMIT_HU = 400  # bone counts as no more in the mean over 3 x 3, or it would blot out what lies beside it
# ASSUME: what is darker is fat (about -100 HU) or air; ventricles and infarcts are brighter.
FAT_HU = -30
WALL_ML = 0.3
# ASSUME: brain sees the skull in at least 13 of 16 directions of its slice; orbit, face and neck see open air.
DIRECTIONS_WITH_BONE = 13
# ASSUME: half of the directions are as good as a skull with a flap taken out. Not lower down, where neck muscle lies
# between occiput, spine and jaw.
DIRECTIONS_IN_VAULT = 8
VAULT_CM2 = 60
# Growing back by a little more than was taken off reaches the corners that a round opening cuts.
CORNER_MM = 2.0
# Tissue that runs this far along the edge of the field is a head cut off; shorter is a holder or the tip of a nose.
CUT_MM = 25.0
EDGE_MM = 3.0
# ASSUME: tissue denser than this (mean over about 3 mm, 4 mm off the walls) is blood; grey matter has 35-45 HU.
BLOOD_HU = 52
BLOOD_REACH_MM = 9.0  # from there to the inner table
RIM_STEPS = 4  # pixels of about 1 mm: half a slice of 5 mm under a vault that slants by 30 degrees

# Where the thresholds of 70 phantoms and of a real head with implants, noise, metal and defects fell: -470 to -390 HU
# and 100 to 117 HU. Twice as far off, the numbers are hardly HU of a head without contrast.
USUAL_THRESHOLDS_HU = ((-550.0, -300.0), (90.0, 130.0))
# ASSUME: a brain that covers more than this on the last slice goes on beyond it: 5 mm under the vertex the cap covers
# 20 cm2; the foramen magnum 10 cm2, the posterior fossa alone up to 75 cm2.
TOP_CM2, BOTTOM_CM2 = 20.0, 75.0


def skullstrip_scan(ct_path, brain_out, json_out, seal_gap_mm, min_brain_ml, plausible_brain_ml=(900.0, 1900.0)):
    """Write the brain mask of one scan.

    Parameters
    ----------
    ct_path : path-like
        CT in HU, NIfTI on its native grid; the affine may be sheared (gantry tilt).
    brain_out : path-like
        Mask, uint8 0 or 1, on the grid of the CT.
    json_out : path-like
        `thresholds_hu` and `warnings` (see `find_brain`, `brain_warnings`) and `brain_ml`.
    seal_gap_mm : float
        Openings of the skull narrower than twice this are closed before the inside is looked for.
    min_brain_ml : float
        A smaller brain is refused.
    plausible_brain_ml : sequence of 2 floats
        A brain smaller or larger than this is kept with a warning. Adult brain and cerebrospinal fluid inside the
        skull: 900-1900 mL.

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
    warnings = brain_warnings(brain, hu, affine, thresholds_hu, plausible_brain_ml)
    for warning in warnings:
        print(f"warning: {warning['problem']}; {warning['action']}")
    write_volume(brain_out, brain.astype(np.uint8), affine)
    facts = {"thresholds_hu": thresholds_hu, "brain_ml": brain_ml, "warnings": warnings}
    write_json(json_out, facts)


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
        Everything within the brain's outline: haematoma, ventricles and calcifications too, and the upper cord as far
        as it was scanned. Empty where there is none.
    thresholds_hu : list of float
        Otsu's thresholds: air to head, soft tissue to bone, the most at the rim, the most at the rim beside blood.
    """
    spacing = slice_spacing_mm(affine)
    factor = np.maximum(1, np.rint(np.array(WORK_SPACING_MM) / spacing).astype(int))
    coarse, work_mm = _block_mean(hu, factor), spacing * factor
    in_plane_mm, voxel_ml = work_mm[1:], work_mm.prod() / 1000

    air_hu = otsu_threshold(coarse, AIR_RANGE_HU)
    tissue = coarse[coarse > max(air_hu, BONE_RANGE_HU[0])]
    if tissue.size == 0:
        return np.zeros(hu.shape, bool), [air_hu, *(float(high) for _, high in OTSU_RANGES)]
    bone_hu, rim_hu, half_hu = (otsu_threshold(tissue, value_range) for value_range in OTSU_RANGES)

    # Noise lifts single voxels of a haematoma above the threshold; bone lifts its surroundings.
    mean = ndimage.uniform_filter(np.minimum(coarse, MEAN_LIMIT_HU), (1, 3, 3))
    bone = (coarse > rim_hu) | ((coarse > bone_hu) & (mean > bone_hu))
    bone = drop_small(bone, WALL_ML / voxel_ml)
    # Fat and air are walls like bone: the orbit hangs on to the brain by muscles and nerves that run through fat.
    wall = bone | drop_small(coarse <= max(air_hu, FAT_HU), WALL_ML / voxel_ml)
    # The rings of a thin slanting vault lie beside each other from slice to slice: grown a little they hang together.
    # The head holder is another piece and must not count as surrounding anything.
    skull = bone & largest_component(dilate(bone, CORNER_MM, in_plane_mm))
    seen = _bone_in_sight(dilate(skull | _cut_off(coarse, in_plane_mm), seal_gap_mm, in_plane_mm))

    # Opening by twice the gap finds the one large body (through partly filled slices of the skull base, orbits and
    # masticator spaces hang on to a finer one); what the finer opening keeps next to that body is brain as well.
    open_space = ~dilate(wall, 2 * seal_gap_mm, in_plane_mm)
    inside = ~wall & (seen >= DIRECTIONS_WITH_BONE)
    body = largest_component(inside & open_space)
    in_vault = body.sum((1, 2)) * in_plane_mm.prod() >= VAULT_CM2 * 100
    inside |= ~wall & (seen >= DIRECTIONS_IN_VAULT) & in_vault[:, None, None]
    body = largest_component(inside & open_space)
    off_wall = ~dilate(wall, seal_gap_mm, in_plane_mm)
    core = inside & off_wall
    core = largest_component(core & dilate(body, 2 * seal_gap_mm + CORNER_MM, in_plane_mm))
    brain = dilate(core, seal_gap_mm + CORNER_MM / 2, in_plane_mm) & ~wall

    blood = core & (mean > BLOOD_HU)
    blood &= ~dilate(core & ~blood, CORNER_MM, in_plane_mm)
    beside_blood = dilate(blood, BLOOD_REACH_MM, in_plane_mm)
    # A haematoma goes on in the next slice, where too little of it may be left to be told from a blurred skull.
    beside_blood = ndimage.binary_dilation(beside_blood, np.ones((3, 1, 1)))
    brain = _grow_rim(brain, (coarse > FAT_HU) & (coarse <= rim_hu), 1)
    brain = _grow_rim(brain, (coarse > FAT_HU) & (coarse <= half_hu) & beside_blood, RIM_STEPS)
    return _enlarge(_fill_slices(brain), factor, hu.shape), [air_hu, bone_hu, rim_hu, half_hu]


def brain_warnings(brain, hu, affine, thresholds_hu, plausible_brain_ml):
    """Say what is unusual about a brain mask.

    Parameters
    ----------
    brain : numpy.ndarray of bool, (z, y, x)
        From `find_brain`, like `thresholds_hu`.
    hu : numpy.ndarray, (z, y, x)
        The CT.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS mm.
    thresholds_hu : list of float
        Air to head, soft tissue to bone, and more.
    plausible_brain_ml : sequence of 2 floats
        Least and greatest plausible volume, mL.

    Returns
    -------
    list of dict
        `problem` and `action`; empty when nothing is unusual.
    """
    spacing = slice_spacing_mm(affine)
    volume_ml = brain.sum() * spacing.prod() / 1000
    low, high = plausible_brain_ml
    found = []
    if not low <= volume_ml <= high:
        found.append(
            (
                f"the brain mask holds {volume_ml:.0f} mL, not {low:g}-{high:g} mL",
                "look at its outline: is the head scanned from the skull base to the vertex, and is the skull closed?",
            )
        )
    area_cm2 = brain.sum((1, 2)) * spacing[1:].prod() / 100
    bottom, top = (0, -1) if affine[2, 2] > 0 else (-1, 0)
    for end, name, limit in ((top, "uppermost", TOP_CM2), (bottom, "lowest", BOTTOM_CM2)):
        if area_cm2[end] > limit:
            found.append(
                (
                    f"brain covers {area_cm2[end]:.0f} cm2 of the {name} slice: it goes on beyond the scan",
                    "take the whole series, or make sure that no haematoma lies beyond",
                )
            )
    at_edge = (brain & (_edge_distance_mm(hu, spacing[1:]) < EDGE_MM)).sum((1, 2)) * spacing[1:].prod() / EDGE_MM
    if (at_edge > CUT_MM).any():
        found.append(
            (
                f"brain reaches the edge of the scanned field in {(at_edge > CUT_MM).sum()} slices",
                "take a reconstruction with a larger field of view, or make sure that no haematoma lies beyond",
            )
        )
    for value, (least, most), what in zip(
        thresholds_hu, USUAL_THRESHOLDS_HU, ("air from head", "soft tissue from bone"), strict=False
    ):
        if not least <= value <= most:
            found.append(
                (
                    f"Otsu's threshold of {value:.0f} HU parts {what}, usual are {least:g} to {most:g} HU",
                    "check that the scan is a head without contrast agent, in HU, and look at the brain's outline",
                )
            )
    return [{"problem": problem, "action": action} for problem, action in found]


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


def drop_small(mask, voxels):
    """Drop the connected parts of a mask (voxels that share a face) with fewer voxels, (z, y, x)."""
    labels, count = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= voxels
    keep[0] = False
    return keep[labels]


def _overlap(step, size):
    """Slices that shift an axis of `size` by `step`: where to, where from."""
    step = int(np.clip(step, -size, size))
    return slice(max(step, 0), size + min(step, 0)), slice(max(-step, 0), size - max(step, 0))


def _edge_distance_mm(hu, in_plane_mm):
    """Measure how far pixels lie from the edge of the scanned field, mm, (y, x); negative outside of it.

    The field is the image, or the circle inscribed in it where the corners hold one value throughout (padding).
    """
    half = np.array(hu.shape[1:]) / 2
    y, x = (np.abs(np.arange(size) + 0.5 - size / 2) for size in hu.shape[1:])
    radius = np.hypot(y[:, None] / half[0], x / half[1])
    corners = hu[:, radius > 1.03]
    if np.ptp(corners) == 0:
        return (1 - radius) * (half * in_plane_mm).min()
    return np.minimum((half[0] - y)[:, None] * in_plane_mm[0], (half[1] - x) * in_plane_mm[1])


def _cut_off(hu, in_plane_mm):
    """Mark tissue along the edge of the scanned field where a head is cut off, (z, y, x)."""
    at_edge = _edge_distance_mm(hu, in_plane_mm) < EDGE_MM
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = True
    labels, count = ndimage.label((hu > FAT_HU) & at_edge, in_slice)
    keep = np.bincount(labels.ravel(), minlength=count + 1) * in_plane_mm.prod() >= CUT_MM * EDGE_MM
    keep[0] = False
    return keep[labels]


def _grow_rim(mask, room, steps):
    """Grow a mask within its slices into the pixels of `room` that hang on to it, all (z, y, x), by a few pixels."""
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    return mask | ndimage.binary_dilation(mask, in_slice, steps, mask=room | mask)


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


def _bone_in_sight(bone):
    """Count in how many of 16 directions of its slice each voxel sees bone, (z, y, x)."""
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
    return seen


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
