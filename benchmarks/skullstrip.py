"""Print the CPU seconds of one skull strip and their ratio to a plain one in the same run."""

import time

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import ball, opening

from haemex.skullstrip import find_brain

SIZES = ((30, 512, 5.0), (30, 256, 5.0), (64, 512, 2.5), (160, 512, 1.0))  # slices, matrix, mm between slices
FIELD_MM, SEAL_GAP_MM, REPEATS = 250.0, 4.0, 3


def head(slices, matrix, slice_mm):
    """A ball of brain in a skull in a scalp, with noise: HU (z, y, x) and affine."""
    pixel_mm = FIELD_MM / matrix
    affine = np.diag([-pixel_mm, -pixel_mm, slice_mm, 1])
    z, y, x = ((np.arange(n) - n / 2) * mm for n, mm in ((slices, slice_mm), (matrix, pixel_mm), (matrix, pixel_mm)))
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    hu = np.select([radius < 70, radius < 77, radius < 82], [35.0, 1000.0, 20.0], -1000.0)
    hu += np.random.default_rng(0).normal(0, 5, hu.shape)
    return np.rint(hu).astype(np.int16), affine


def plain(hu):
    """Otsu twice and an opening at full size, as scipy and scikit-image give them."""
    tissue = hu > threshold_otsu(hu)
    bone = tissue & (hu > threshold_otsu(np.clip(hu[tissue], 0, 200)))
    inside = ndimage.binary_fill_holes(bone) & ~bone
    labels, _ = ndimage.label(opening(inside, ball(3)[3:4]))
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def seconds(work):
    """CPU seconds, the median of some runs."""
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


if __name__ == "__main__":
    print("slices  matrix  CPU s  plain  ratio")
    for slices, matrix, slice_mm in SIZES:
        hu, affine = head(slices, matrix, slice_mm)
        ours, theirs = seconds(lambda: find_brain(hu, affine, SEAL_GAP_MM)), seconds(lambda: plain(hu))  # noqa: B023
        print(f"{slices:6d}  {matrix:6d}  {ours:5.2f}  {theirs:5.2f}  {ours / theirs:5.2f}")
