"""The average brain that synthetic heads are made from: MNI ICBM152 nonlinear symmetric 2009a, as nilearn carries it.

Fonov 2011 (NeuroImage 54:313). The maps are turned into the head frame: mm, x to the patient's left, y to the back,
z to the vertex, origin at the anterior commissure. Nothing of nilearn is imported, only its files are read.
"""

import functools
import gzip
import math
import zlib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from haemex.errors import InputError

FIRST_MM = np.array([-98.0, -98.0, -72.0])  # head frame, centre of voxel (0, 0, 0) in order x, y, z; voxels of 1 mm
SHAPE = (189, 233, 197)
COARSE_MM, FINE_MM = 3.0, 2.0  # voxels of the levels: of the cavity, and of the ventricles
COARSE_FIRST_MM = FIRST_MM + np.array([2.0, 2.0, 1.0])
CLOSING_MM = 6.0  # at the base, fissures up to twice as wide count as inside the skull; wider gaps are its bone
HULL_MM = 0.8  # how far the vault stays within the highest gyri's centres of voxels
VAULT_MM, VAULT_BLEND_MM = -22.0, 10.0  # from where upwards, and over which height, the inside of the skull is convex
SUBARACHNOID_MM = 0.7  # ASSUME: between the outline of the map and the dura, in young adults

# Cisterns between the base of the brain and the skull, which the map's outline leaves out: centre and radii of
# ellipsoids, atlas mm.
CISTERNS = (
    ((0, -4, -19), (14, 14, 8)),  # suprasellar
    ((0, 9, -28), (13, 7, 12)),  # interpeduncular, prepontine
    ((0, 20, -46), (12, 7, 14)),  # before the lower pons
    ((0, 36, -62), (11, 8, 12)),  # before the medulla
    ((0, 62, -59), (17, 12, 8)),  # cisterna magna
    ((0, 48, -70), (14, 14, 12)),  # foramen magnum
)

# Between the cerebellar hemispheres the map's outline has a notch 9 mm deep. The falx cerebelli, sinuses and fluid fill
# most of it; the crest of the bone is drawn for each patient.
NOTCH_MM, NOTCH_BEHIND_MM = 9.0, 60.0  # half width up to which it is filled, and where it begins

# The ventricles' course, left half: chains of (x, y, z) and a radius within which the fluid counts as theirs, atlas mm.
VENTRICLES = (
    (((17, -31, 0), 6), ((6, -12, 9), 8), ((8, 8, 21), 9), ((16, 32, 20), 10), ((27, 46, 6), 10), ((24, 82, 4), 4)),
    (((27, 46, 6), 9), ((34, 33, -8), 7), ((33, 16, -18), 5), ((28, 6, -24), 5)),
    (((0, -4, -6), 8), ((0, 5, -4), 8), ((0, 14, 0), 8), ((0, 22, -2), 4)),
    (((0, 22, -6), 2), ((0, 34, -17), 3), ((0, 43, -29), 10), ((0, 46, -41), 8), ((0, 50, -48), 4)),
)
VENTRICLES_FIRST_MM, VENTRICLES_LAST_MM = np.array([-50.0, -44.0, -56.0]), np.array([50.0, 96.0, 44.0])
# First centre (x, y, z) and voxel of the levels that `load_atlas` derives, mm.
GRIDS = {
    "cavity": (COARSE_FIRST_MM, COARSE_MM),
    "near": (COARSE_FIRST_MM, COARSE_MM),
    "ventricle": (VENTRICLES_FIRST_MM, FINE_MM),
}


@functools.cache
def load_atlas():
    """Load tissue maps and the levels derived from them.

    Returns
    -------
    dict
        `t1`, `grey`, `white`: uint8 (z, y, x), 1 mm, 255 is one, mirror-symmetric. On the grids of `GRIDS`, float32
        (z, y, x): `cavity`, the signed distance to the inside of the skull, mm, positive inside; `ventricle`, the same
        for the ventricles; `near`, the mean share of fluid about 4 mm around.

    Raises
    ------
    InputError
        nilearn is not installed, or lacks the maps.
    """
    package = find_spec("nilearn")
    if package is None:
        raise InputError("nilearn, which carries the average brain, is not installed", "run `make setup`")
    folder = Path(next(iter(package.submodule_search_locations)), "datasets", "data")
    maps = {}
    for name, part in (("t1", "t1"), ("grey", "gm"), ("white", "wm")):
        data = _voxels(folder / f"mni_icbm152_{part}_tal_nlin_sym_09a_converted.nii.gz")
        # From (z, y to the front, x to the right) to (z, y to the back, x to the left).
        maps[name] = np.ascontiguousarray(data[:, ::-1, ::-1])
    maps["cavity"] = _cavity(maps["t1"] > 0)
    maps["ventricle"] = _ventricle(maps)
    maps["near"] = _near(maps)
    return maps


def _voxels(path):
    """Read the voxels of one of nilearn's maps; to start nibabel would take longer than all the rest."""
    try:
        content = gzip.decompress(path.read_bytes())
        return np.frombuffer(content, np.uint8)[-math.prod(SHAPE) :].reshape(SHAPE)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"the average brain cannot be read ({error})", "run `make setup`", path) from None


def coordinates(shape, step=1.0, first=FIRST_MM):
    """Give x, y, z of a grid (z, y, x) whose first centre is `first`, as arrays that broadcast to its shape, mm."""
    axes = zip(first, shape[::-1], strict=True)
    x, y, z = (np.float32(start) + np.arange(n, dtype=np.float32) * np.float32(step) for start, n in axes)
    return x, y[:, None], z[:, None, None]


def chain(x, y, z, path):
    """Level of a chain of cones with round ends, mm; `path` is a sequence of ((x, y, z), radius)."""
    level = np.float32(-np.inf)
    for (start, r0), (end, r1) in pairwise(path):
        along = np.subtract(end, start, dtype=np.float32)
        px, py, pz = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
        t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / (along @ along), 0, 1)
        distance = np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)
        level = np.maximum(level, np.float32(r0) + t * np.float32(r1 - r0) - distance)
    return level


def _mirrored(half):
    """Complete a map of x >= 0, whose first column is x = 0, to both sides."""
    return np.concatenate([half[..., :0:-1], half], -1)


def _pooled(voxels, factor):
    """Add up cubes of voxels of one byte; the sums must fit into 16 bits."""
    for axis in (2, 1, 0):
        line = [slice(None)] * 3
        total = 0
        for offset in range(factor):
            line[axis] = slice(offset, None, factor)
            total = total + voxels[tuple(line)].astype(np.uint16)
        voxels = total
    return voxels


def _cavity(brain):
    """Close the outline of the brain to the inside of its skull; (z, y, x) of 1 mm to a level of `COARSE_MM`, mm."""
    from scipy.ndimage import gaussian_filter

    # Only the left half, and what the closing sees of the right one.
    pad = 6  # voxels
    space = _pooled(brain[:, 1:-1, SHAPE[2] // 2 - 1 - 3 * pad : -1], 3) > 13
    x, y, z = coordinates(space.shape, COARSE_MM, np.array([-COARSE_MM * pad, *COARSE_FIRST_MM[1:]]))
    vault = int((VAULT_MM - COARSE_FIRST_MM[2]) / COARSE_MM)
    convex = _convex(space[vault:, :, pad:], x[pad:], y, z[vault:])
    _fill_notch(space, x.ravel(), y.ravel(), pad)
    for centre, radii in CISTERNS:
        space |= sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True)) < 1
    # Below the grid the spinal canal goes on.
    above = vault + math.ceil((VAULT_BLEND_MM + CLOSING_MM) / COARSE_MM)
    base = np.pad(space[:above], ((pad, 0), (0, 0), (0, 0)), mode="edge")
    base = _closed(np.pad(base, ((0, 0), (pad, pad), (0, 0))), CLOSING_MM)[pad:, pad:-pad, pad:]
    share = np.clip((z - np.float32(VAULT_MM)) / np.float32(VAULT_BLEND_MM), 0, 1)[vault:above]
    level = np.concatenate([base, convex[above - vault :]])
    level[vault:above] += share * (convex[: above - vault] - base[vault:])
    return gaussian_filter(_mirrored(level) + np.float32(SUBARACHNOID_MM), 1.0)


def _fill_notch(space, x, y, middle):
    """Fill what lies between the two sides of a set at its back, in place; column `middle` is x = 0."""
    behind, last = np.searchsorted(y, NOTCH_BEHIND_MM), np.searchsorted(x, NOTCH_MM, side="right")
    part = space[:, behind:, middle:last]
    part |= np.logical_or.accumulate(part[..., ::-1], 2)[..., ::-1]
    mirrored = min(middle, part.shape[2] - 1)
    space[:, behind:, middle - mirrored : middle] = part[..., mirrored:0:-1]


def _convex(space, x, y, z):
    """Level of the convex hull of a set and its mirror image, mm, from planes that touch it; `x` is 0 and more."""
    at = [axis.ravel()[i] for axis, i in zip((z, y, x), np.nonzero(space & ~_inner(space)), strict=True)]
    # Directions spread evenly over the left half of a sphere, without those that look steeply down.
    i = np.arange(300) + 0.5
    up = 1 - 1.55 * i / len(i)
    turn = math.pi * (3 - math.sqrt(5)) * i
    flat = np.sqrt(1 - up * up)
    normals = np.stack([up, flat * np.cos(turn), flat * np.abs(np.sin(turn))], 1).astype(np.float32)
    reach = (normals @ np.stack(at)).max(1) - np.float32(HULL_MM)
    level = np.full((len(z), len(y), len(x)), np.inf, np.float32)
    for normal, far in zip(normals, reach, strict=True):
        np.minimum(level, (far - normal[0] * z - normal[1] * y) - normal[2] * x, out=level)
    return level


def _inner(space):
    """Tell which voxels have all their six neighbours in a set."""
    inner = np.zeros_like(space)
    middle = slice(1, -1)
    inner[middle, middle, middle] = np.logical_and.reduce([
        space[:-2, middle, middle], space[2:, middle, middle], space[middle, :-2, middle],
        space[middle, 2:, middle], space[middle, middle, :-2], space[middle, middle, 2:],
    ])  # fmt: skip
    return inner


def _closed(space, reach):
    """Level of a set after morphological closing by a ball, mm; beyond the reach of the ball, of the set itself."""
    from scipy.ndimage import distance_transform_edt

    away = distance_transform_edt(~space, sampling=COARSE_MM)
    within = distance_transform_edt(away <= reach, sampling=COARSE_MM)
    return (np.where(within > 0, within - reach, -away) - COARSE_MM / 2).astype(np.float32)


def _ventricle(maps):
    """Level of the ventricles, mm: the fluid along their course."""
    from scipy.ndimage import distance_transform_edt

    first = np.array([0.0, *VENTRICLES_FIRST_MM[1:]])  # the left half
    low, high = ((corner - FIRST_MM).astype(int) for corner in (first, VENTRICLES_LAST_MM))
    z, y, x = (slice(a, b + 1, 2) for a, b in zip(low[::-1], high[::-1], strict=True))
    fluid = maps["grey"][z, y, x].astype(np.int16) + maps["white"][z, y, x] < 128
    x, y, z = coordinates(fluid.shape, FINE_MM, first)
    fluid &= np.maximum.reduce([chain(x, y, z, path) for path in VENTRICLES]) > 0
    # Between fornix and splenium lies a cistern.
    fluid &= ~((x < 7) & (y > 17) & (z > 3) & (z < 17))
    fluid = _mirrored(fluid)
    middle = fluid.shape[2] // 2 - 2
    level = distance_transform_edt(fluid[..., middle:]) - distance_transform_edt(~fluid[..., middle:])
    return _mirrored((FINE_MM * (level - 0.5 * np.sign(level))).astype(np.float32)[..., 2:])


def _near(maps):
    """Share of fluid in the brain around each point of the grid of the cavity."""
    from scipy.ndimage import gaussian_filter

    pad = 4  # voxels of the other side
    half = np.s_[:, 1:-1, SHAPE[2] // 2 - 1 - 3 * pad : -1]
    tissue = _pooled(maps["grey"][half], 3) + _pooled(maps["white"][half], 3)
    brain = _pooled(maps["t1"][half] > 0, 3).astype(np.float32)
    fluid = np.maximum(brain - tissue / np.float32(255), 0)
    fluid, brain = (gaussian_filter(part, 4 / COARSE_MM, truncate=3.0) for part in (fluid, brain))
    return _mirrored((fluid / np.maximum(brain, 0.1 * COARSE_MM**3))[..., pad:])
