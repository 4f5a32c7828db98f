"""Building blocks of synthetic images: random fields that are smooth in space, soft edges, rotations, generators."""

import math
from zlib import crc32

import numpy as np


def generator(seed, *purpose):
    """Make a generator of its own for each purpose, so that the order of jobs changes nothing."""
    return np.random.default_rng([seed, crc32(" ".join(purpose).encode())])


def waves(rng, wavelength_mm, count):
    """Draw a smooth random field of variance 1: a sum of plane waves of about one wavelength.

    Returns
    -------
    dict
        `k` (count, 3), radians per mm, and `phase` (count,).
    """
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = direction * (2 * np.pi / wavelength_mm * rng.uniform(0.75, 1.3, count))[:, None]
    return {"k": k.astype(np.float32), "phase": rng.uniform(0, 2 * np.pi, count).astype(np.float32)}


def field_at(waves, x, y, z):
    """Evaluate a field at points, arrays of one shape, mm."""
    points = np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32)
    angle = points @ waves["k"].T
    angle += waves["phase"]
    np.cos(angle, out=angle)
    return (angle.sum(1) * np.float32(math.sqrt(2 / len(waves["phase"])))).reshape(x.shape)


def field_on(waves, plane, rows, columns):
    """Evaluate a field on parallel planes: a plane wave is a product of a row and a column factor there.

    Parameters
    ----------
    waves : dict
        From `waves`.
    plane : dict
        `origins` (s, 3), `row_step` and `column_step` (3,), mm per pixel, all in the head frame.
    rows, columns : array, (ny,), (nx,)
        Pixel indices.

    Returns
    -------
    array, (s, ny, nx)
    """
    k = waves["k"].astype(float)
    # Cosines of a plane's, a row's and a column's part of each wave's angle: few of them, and sums of their products.
    (start_cos, start_sin), (down_cos, down_sin), across = (
        _cos_sin(angle)
        for angle in (
            (plane["origins"] @ k.T + waves["phase"])[:, None],
            np.outer(rows, k @ plane["row_step"]),
            np.outer(columns, k @ plane["column_step"]),
        )
    )
    left = np.empty((len(start_cos), len(rows), 2 * len(k)), np.float32)
    np.subtract(start_cos * down_cos, start_sin * down_sin, out=left[..., : len(k)])
    np.add(start_sin * down_cos, start_cos * down_sin, out=left[..., len(k) :])
    right = np.concatenate([across[0], -across[1]], -1) * np.float32(math.sqrt(2 / len(k)))
    return (left.reshape(-1, 2 * len(k)) @ right.T).reshape(len(left), len(rows), len(columns))


def _cos_sin(angle):
    """Cosine and sine in single precision, which is many times faster and, within one turn, good to 1e-7."""
    angle = (angle - 2 * np.pi * np.rint(angle / (2 * np.pi))).astype(np.float32)
    return np.cos(angle), np.sin(angle)


def soft(level, width):
    """Fraction of a pixel inside a level, with an edge `width` mm wide."""
    inside = level * np.float32(1 / width)
    inside += np.float32(0.5)
    return np.clip(inside, 0, 1, out=inside)


def paint(image, value, fraction):
    """Lay a tissue over an image, in place."""
    image += fraction * (value - image)


def bump(x, width):
    """Give a bell of height 1 about 0."""
    return np.exp(-((x / width) ** 2))


def step(x, width):
    """Rise smoothly from 0 to 1 about 0."""
    return 0.5 + 0.5 * np.tanh(x / (2 * width))


def rotation(x_deg, y_deg, z_deg):
    """Rotation matrix about x, then y, then z."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a), math.sin(a)) for a in np.radians([x_deg, y_deg, z_deg]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
