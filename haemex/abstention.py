"""When the model must not answer: a scan or a haematoma unlike those it was trained on.

A probability printed for such a patient would look like any other. Each reason is one sentence, and none looks at the
probability itself.
"""

import numpy as np

from haemex.compartment import infratentorial_share, lay_on_atlas
from haemex.geometry import slice_spacing_mm
from haemex.inspection import CSF_HU, HAEMATOMA_HU, MAX_SLICE_MM, WHITE_MATTER_HU, percent
from haemex.series_kind import CONTRAST

# ASSUME: where no piece holds this much the network marked a few stray voxels; the smallest haematomas of published
# cohorts have about so much. One haematoma may have satellites; where its largest piece holds less than this share,
# what was marked is scattered over the brain.
LEAST_ML, LEAST_SHARE = 0.5, 0.5
# ASSUME: a supratentorial haematoma of more than this is not survived until a CT; what holds more is no haematoma.
MOST_ML = 300.0
# ASSUME: supplemental Table 1 has slices of 5 mm. A haematoma's volume and its heterogeneity look different on thinner
# slices (less partial volume, more noise), and rest on one or two slices where these are thicker than `MAX_SLICE_MM`.
LEAST_SLICE_MM = 3.0
# ASSUME: the network cannot see beyond its field of view; where so much of a haematoma's surface lies on the field's
# face, more of it is likely to lie beyond.
MOST_ON_FACE = 0.05
INFRATENTORIAL = 0.5  # of the haematoma


def reasons_to_abstain(hu, affine, brain, haematoma, grid_affine, grid_shape, description, tissue):
    """List why the model cannot answer for a patient.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU on its native grid.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    brain, haematoma : numpy.ndarray of bool, (z, y, x)
        Masks on that grid: of the stage skullstrip, and the network's.
    grid_affine, grid_shape : numpy.ndarray (4, 4), tuple of int (z, y, x)
        The network's grid.
    description : dict
        JSON of the stage convert.
    tissue : dict
        `haemex.inspection.measure_tissue`.

    Returns
    -------
    list of str
        Sentences without a full stop; empty where nothing speaks against an answer.
    """
    found = []
    against = description["series"]["taken"].get("against")
    if against:
        found.append(
            "the series was taken though it is "
            + ("one with contrast medium" if against == CONTRAST else f"not of the kind wanted: {against}")
        )
    positions = np.diff(description["geometry"]["acquired_positions_mm"])
    slice_mm = float(np.median(positions))
    if not LEAST_SLICE_MM <= slice_mm <= MAX_SLICE_MM:
        found.append(
            f"the slices are {slice_mm:.1f} mm apart; the model knows {LEAST_SLICE_MM:g} to {MAX_SLICE_MM:g} mm"
        )
    for name, value, (low, high) in (
        ("the ventricles measure", tissue["csf_hu"], CSF_HU),
        ("white matter measures", tissue["white_matter_hu"], WHITE_MATTER_HU),
    ):
        if value is not None and not low <= value <= high:
            found.append(f"{name} {value:.0f} HU, where {low:g} to {high:g} are plausible: contrast medium, or no HU")
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    volume_ml = float(haematoma.sum() * voxel_ml)
    largest_ml, pieces = _pieces(haematoma, voxel_ml)
    if largest_ml < LEAST_ML:
        found.append("the network found no haematoma")
        return found
    if largest_ml < LEAST_SHARE * volume_ml:
        found.append(
            f"what the network took for a haematoma is scattered: {pieces} pieces of {volume_ml:.1f} mL in all, the "
            f"largest of {largest_ml:.1f} mL"
        )
    if volume_ml > MOST_ML:
        found.append(f"what the network took for a haematoma holds {volume_ml:.0f} mL, more than any does")
        return found
    mean_hu = float(hu[haematoma].mean(dtype=float))
    if not HAEMATOMA_HU[0] <= mean_hu <= HAEMATOMA_HU[1]:
        found.append(
            f"what the network took for a haematoma has a mean of {mean_hu:.0f} HU, where acute blood has "
            f"{HAEMATOMA_HU[0]:g} to {HAEMATOMA_HU[1]:g}"
        )
    if infratentorial_share(haematoma, affine, lay_on_atlas(brain, affine)) > INFRATENTORIAL:
        found.append(
            "the haematoma seems to lie below the tentorium (by the average brain laid onto this one); the model was "
            "trained on supratentorial ones"
        )
    cut = share_on_face(haematoma, affine, grid_affine, grid_shape)
    if cut > MOST_ON_FACE:
        found.append(
            f"the haematoma is cut off by the network's field of view: {percent(cut)} of its surface lies on the "
            "field's face"
        )
    cut = _share_at_ends(haematoma)
    if cut > MOST_ON_FACE:
        found.append(f"the haematoma goes on beyond the scan: {percent(cut)} of it lies on its first or last slice")
    return found


def share_on_face(haematoma, affine, grid_affine, grid_shape):
    """Measure how much of a haematoma's surface lies where the network's field of view ends.

    Parameters
    ----------
    haematoma : numpy.ndarray of bool, (z, y, x)
        On its native grid, not empty.
    affine, grid_affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS mm, of the native and of the network's grid.
    grid_shape : tuple of int
        (z, y, x).

    Returns
    -------
    float
        Of the area between voxels of the haematoma and others, the part behind which the field ends, 0 to 1.
    """
    to_grid = np.linalg.inv(grid_affine) @ affine
    high = np.array(grid_shape[::-1]) - 0.5
    size = slice_spacing_mm(affine)  # (z, y, x)
    whole = on_face = 0.0
    padded = np.pad(haematoma, 1)
    for axis in range(3):
        area = size.prod() / size[axis]
        for step in (-1, 1):
            neighbour = np.roll(padded, -step, axis)[1:-1, 1:-1, 1:-1]
            at = np.argwhere(haematoma & ~neighbour)[:, ::-1].astype(float)
            whole += area * len(at)
            at[:, 2 - axis] += step
            beyond = at @ to_grid[:3, :3].T + to_grid[:3, 3]
            on_face += area * np.count_nonzero(np.any((beyond < -0.5) | (beyond > high), axis=1))
    return float(on_face / whole)


def _pieces(haematoma, voxel_ml):
    """Volume of the largest piece, mL, and how many there are; voxels that touch at a corner hang together."""
    from scipy import ndimage

    labels, count = ndimage.label(haematoma, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return float(sizes.max(initial=0) * voxel_ml), count


def _share_at_ends(haematoma):
    """How much of a haematoma lies on the first and last slice of the scan."""
    return float((haematoma[0].sum() + haematoma[-1].sum()) / haematoma.sum())
