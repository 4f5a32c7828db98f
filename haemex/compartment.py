"""Where in the head a haematoma lies: above or below the tentorium, from the brain's outline alone.

The brain mask is laid onto the inside of the skull of the average brain (MNI ICBM152, `haemex.phantom_atlas`) by shift,
turn and stretch; the tentorium is then the average one. That is good to about a centimetre, enough to tell a cerebellar
or pontine haematoma from one of the basal ganglia, and not enough for one that touches the tentorium.
"""

import math

import numpy as np

from haemex.phantom_atlas import COARSE_FIRST_MM, COARSE_MM, load_atlas
from haemex.phantom_brain import infratentorial_levels

# Points of the outline that are laid onto the atlas; more change the result by less than a millimetre.
POINTS = 800
# ASSUME: what lies so far below the vertex is skull base, where the outlines of brain masks differ most between heads.
VAULT_MM = 95.0
# ASSUME: heads are held within this angle of the atlas's. The average brain is larger than most, so the outlines are
# stretched by about `STRETCH`, and by at most `MOST_STRETCH` to either side of it.
MOST_DEG, STRETCH, MOST_STRETCH = 35.0, 1.14, 1.3
SPUR_MM = 4.0  # points farther off the outline than this weigh less and less: a hole or a spur of the mask
# Turns of 0.2 radians and stretches by 8 % are common; how strongly that is believed against the outline, mm.
USUAL_TURN, USUAL_STRETCH, BELIEF_MM = 0.2, 0.08, 0.02
TO_HEAD = np.diag([-1.0, -1.0, 1.0])  # RAS to the atlas's frame: x to the left, y to the back


def infratentorial_share(haematoma, affine, place):
    """Estimate how much of a haematoma lies below the tentorium, the brainstem's counted too.

    Parameters
    ----------
    haematoma : numpy.ndarray of bool, (z, y, x)
        Not empty.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    place : numpy.ndarray, (4, 4)
        Of the same head: `lay_on_atlas`.

    Returns
    -------
    float
        From 0 to 1.
    """
    at = _points(haematoma, affine) @ place[:3, :3].T + place[:3, 3]
    return float(np.mean(infratentorial_levels(*at.T.astype(np.float32))[1] > 0))


def lay_on_atlas(brain, affine):
    """Find the affine map that lays the outline of a brain onto the inside of the average skull.

    Least squares of the distances of points of the outline, down to `VAULT_MM` below the vertex, over three shifts,
    three turns and three stretches.

    Parameters
    ----------
    brain : numpy.ndarray of bool, (z, y, x)
        Not empty.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Returns
    -------
    numpy.ndarray, (4, 4)
        RAS mm to atlas mm (x to the left, y to the back, z to the vertex, origin at the anterior commissure).
    """
    from scipy import ndimage, optimize

    level = load_atlas()["cavity"]
    points = _outline(brain, affine) @ TO_HEAD
    middle, target = points.mean(axis=0), _outline_middle(level)
    last = np.array(level.shape)[:, None] - 1
    belief = BELIEF_MM * math.sqrt(len(points))

    def place(parameters):
        matrix = np.diag(STRETCH * np.exp(parameters[6:])) @ _turn(parameters[3:6])
        return matrix, target + parameters[:3] - matrix @ middle

    def distances(parameters):
        matrix, shift = place(parameters)
        index = ((points @ matrix.T + shift - COARSE_FIRST_MM) / COARSE_MM).T[::-1]
        off = ndimage.map_coordinates(level, index, order=1, mode="nearest")
        off -= COARSE_MM * np.linalg.norm(index - np.clip(index, 0, last), axis=0)  # beyond the grid it goes on falling
        return np.concatenate([off, belief * parameters[3:6] / USUAL_TURN, belief * parameters[6:] / USUAL_STRETCH])

    bound = np.repeat([60.0, math.radians(MOST_DEG), math.log(MOST_STRETCH)], 3)
    scale = np.repeat([10.0, 0.1, 0.1], 3)
    fit = optimize.least_squares(
        distances, np.zeros(9), bounds=(-bound, bound), x_scale=scale, loss="soft_l1", f_scale=SPUR_MM, max_nfev=60
    )
    matrix, shift = place(fit.x)
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = matrix @ TO_HEAD, shift
    return found


def _points(mask, affine):
    """Centres of a mask's voxels in RAS mm, (n, 3)."""
    return np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]


def _outline(brain, affine):
    """Choose points evenly along the outline of a mask, in RAS mm, down to `VAULT_MM` below its highest."""
    from scipy import ndimage

    # Voxels are much longer across slices: neighbours within the slice, and the ends of the stack.
    edge = brain & ~ndimage.binary_erosion(brain, ndimage.generate_binary_structure(3, 1))
    points = _points(edge, affine)
    points = points[points[:, 2] > points[:, 2].max() - VAULT_MM]
    return points[np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)]


def _outline_middle(level):
    """Middle of the average skull's inside, down to `VAULT_MM` below its vertex, atlas mm."""
    inside = np.argwhere(np.abs(level) < COARSE_MM)[:, ::-1] * COARSE_MM + COARSE_FIRST_MM
    return inside[inside[:, 2] > inside[:, 2].max() - VAULT_MM].mean(axis=0)


def _turn(angles):
    """Rotation about x, then y, then z, radians."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
