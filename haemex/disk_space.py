"""How much disk a study will fill, estimated before it starts."""

import os
import shutil
from pathlib import Path

# Bytes per voxel of what haemex writes (gzip level 1), the higher of a GE head of 512 x 512 x 37 and 14 synthetic ones
# of 512 x 512 x 27 to 34, rounded up. Measured 0.84 and 0.95 for the CT, 0.005 to 0.011 for masks; on a grid of
# 256 x 256 x 32 full of brain (112 mm) 0.46 and 0.53, for an augmented copy 0.55 and 0.68; with 224 mm 0.4 of that.
NATIVE_CT, NATIVE_MASK = 0.95, 0.012
GRID_CT, AUGMENTED_CT, GRID_MASK = 0.55, 0.7, 0.016
BRAIN_MM2 = 19000.0  # at its widest; what a field of view holds beside it is 0 and costs nothing
PICTURE = 0.7e6  # bytes of the picture of one patient
MARKERS_PICTURE, CARD = 0.4e6, 0.1e6
RELEVANCE = 0.03  # bytes per voxel of the network's grid
REPORT = 20e6  # tables, figures and pages
# ASSUME: room for another compressibility, for logs, and for what other programs write meanwhile.
MARGIN = 1.25


def estimate(native_voxels, training, patients, matrix, field_of_view_mm, copies, network, trainings):
    """Estimate what each stage writes.

    Parameters
    ----------
    native_voxels : dict of str to list of int
        Voxels of every scan as acquired, by `baseline` and `followup`.
    training, patients : int
        Patients of the training cohort, and of both.
    matrix : sequence of int
        The network's grid, x, y, z.
    field_of_view_mm : sequence of float
        Its size, x, y, z, mm.
    copies : int
        Augmented copies per patient of the training cohort.
    network : dict
        Section `network`: `widths`, `convs_per_level`.
    trainings : int
        Candidates times folds.

    Returns
    -------
    dict of str to float
        Bytes by stage.
    """
    baseline, followup = sum(native_voxels["baseline"]), sum(native_voxels["followup"])
    filled = min(1.0, BRAIN_MM2 / (field_of_view_mm[0] * field_of_view_mm[1]))
    grid = matrix[0] * matrix[1] * matrix[2]
    weights = 4.0 * parameters(**{key: network[key] for key in ("widths", "convs_per_level")})
    return {
        "convert": NATIVE_CT * (baseline + followup),
        "measure": NATIVE_MASK * baseline,
        "skullstrip": NATIVE_MASK * baseline,
        "resample": patients * grid * (filled * GRID_CT + 2 * GRID_MASK),
        "inspect": patients * PICTURE,
        "markers": patients * MARKERS_PICTURE + NATIVE_MASK * baseline,
        "augment": training * copies * grid * (filled * AUGMENTED_CT + GRID_MASK),
        # Each keeps its weights; while one runs there is a checkpoint with the optimiser's two moments.
        "train": (trainings + 3) * weights,
        "final": weights,
        "predict": NATIVE_MASK * baseline + patients * grid * (GRID_MASK + RELEVANCE),
        "evaluate, cards and report": REPORT + patients * CARD,
    }


def parameters(widths, convs_per_level):
    """Count the weights of the network's 3 x 3 x 3 convolutions, within 2 % of its parameters.

    Parameters
    ----------
    widths : sequence of int
        Channels of the three levels and the bridge.
    convs_per_level : int
        Convolutions per level.
    """
    first, second, third, bridge = widths
    encoder = first**2 + second**2 + third**2 + bridge**2
    decoder = second**2 + third**2
    return 27 * (convs_per_level * (encoder + decoder) + 2 * bridge**2)


def free_bytes(folder):
    """Measure the free space of the disk on which a folder is, or will be made."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def used_bytes(folder, leave_out=()):
    """Add up the files below a folder, without the subfolders named."""
    total = 0
    for top, folders, names in os.walk(folder):
        if Path(top) == Path(folder):
            folders[:] = [name for name in folders if name not in leave_out]
        total += sum(os.lstat(os.path.join(top, name)).st_size for name in names)
    return total


def in_words(size):
    """Print a size: 1.4 GB, 320 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"


def in_sentence(space, there, free, folder):
    """Say how much disk a study takes, what takes most of it, and where.

    Parameters
    ----------
    space : dict of str to float
        From `estimate`.
    there, free : float
        Bytes that stand in the folder already, and that its disk has left.
    folder : path-like
        The folder of the results.
    """
    largest = sorted(space, key=space.get, reverse=True)[:3]
    parts = ", ".join(f"{stage} {in_words(space[stage])}" for stage in largest)
    whole = in_words(sum(space.values()) * MARGIN)
    return (
        f"disk: about {whole} for the whole study in {Path(folder).as_posix()}, most of it {parts}; "
        f"{in_words(there)} of it are there already, {in_words(free)} are free"
    )
