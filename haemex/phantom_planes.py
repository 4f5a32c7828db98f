"""Planes of a scan in the head's own frame: where their pixels lie, and which of them a structure can reach.

The head frame: mm, x to the patient's left, y to the back, z to the vertex.
"""

import numpy as np


def points(plane, rows, columns):
    """Give the head-frame coordinates x, y, z of pixels of parallel planes, each (s, ny, nx), float32, mm."""
    base = plane["origins"][:, None, None, :].astype(np.float32)
    down = (rows[:, None] * plane["row_step"]).astype(np.float32)[None, :, None, :]
    across = (columns[:, None] * plane["column_step"]).astype(np.float32)[None, None, :, :]
    return tuple(base[..., axis] + down[..., axis] + across[..., axis] for axis in range(3))


def window_around(plane, lesion, reach_mm, shape):
    """Pixel rows and columns (as aranges) that a cube about the haematoma covers on one plane; None if it misses."""
    offset = lesion["centre"] - plane["origins"].mean(0)
    steps = np.stack([plane["row_step"], plane["column_step"]])
    pixel = np.linalg.norm(steps, axis=1)
    middle = steps @ offset / pixel**2
    across = np.linalg.norm(offset - middle @ steps)
    if across > reach_mm:
        return None
    low = np.maximum(np.floor(middle - reach_mm / pixel).astype(int), 0)
    high = np.minimum(np.ceil(middle + reach_mm / pixel).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    return np.arange(low[0], high[0]), np.arange(low[1], high[1])


def slices(window, first=(0, 0)):
    """Turn pixel rows and columns into slices of an array that starts at pixel `first`."""
    return tuple(slice(w[0] - start, w[-1] + 1 - start) for w, start in zip(window, first, strict=True))


def plane(scan, number, parts):
    """Give the sub-slices of one slice in the head frame; `parts` are offsets in slice thicknesses."""
    offsets = np.outer(np.asarray(parts) * scan["thickness_mm"], scan["normal"])
    return {
        "origins": (scan["origins"][number] + offsets - scan["position"]) @ scan["turn"],
        "row_step": scan["column_direction"] * scan["pixel_mm"] @ scan["turn"],
        "column_step": scan["row_direction"] * scan["pixel_mm"] @ scan["turn"],
    }


def bands(weights, size=64):
    """Cut weights (to, from) that are zero but near the diagonal into blocks without most of the zeros, for `resized`.

    Returns
    -------
    list of (slice, slice, array)
        What a block gives, what it takes, and its weights.
    """
    blocks = []
    for start in range(0, len(weights), size):
        block = weights[start : start + size]
        used = np.flatnonzero(block.any(0))
        taken = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
        blocks.append((slice(start, start + len(block)), taken, np.ascontiguousarray(block[:, taken])))
    return blocks


def resized(values, row_bands, column_bands):
    """Give `rows @ values @ columns.T` for weights cut by `bands`; of an array (..., ny, nx) of float32."""
    *others, ny, _ = values.shape
    half = np.empty((*others, ny, column_bands[-1][0].stop), np.float32)
    for given, taken, weights in column_bands:
        np.matmul(values[..., taken], weights.T, out=half[..., given])
    whole = np.empty((*others, row_bands[-1][0].stop, half.shape[-1]), np.float32)
    for given, taken, weights in row_bands:
        np.matmul(weights, half[..., taken, :], out=whole[..., given, :])
    return whole


def interpolation(fine, step):
    """Linear weights (fine, coarse) from every step-th of `fine` pixels (and one beyond) to all of them."""
    coarse = np.arange(0, fine - 1 + step, step)
    position = np.arange(fine) / step
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(coarse))))
    return coarse, weights.astype(np.float32)
