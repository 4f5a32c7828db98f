"""How much memory a training needs, for the resources that the rules declare to a cluster."""

SNAKEMAKE_MB = 500.0  # a cluster job starts Snakemake, which starts the script: measured 150 each for 317 patients
LIBRARIES_MB = 500.0  # Python with PyTorch, measured 350
# What CUDA takes of the host's memory. ASSUME: no more than this; on the CPU the activations take its place.
CUDA_MB = 3000.0
# Bytes per channel and voxel of each convolution's input that the backward pass needs again, with the normalisation's,
# in fp32. Measured with the paper's network on 256 x 256 x 8 and x 16 voxels: 14.3; in bf16 8.1.
ACTIVATION_BYTES = 14.5
COPY_BYTES = 3.0  # per voxel: int16 for the CT, uint8 for the haematoma
MARGIN = 1.25


def training_mb(network, batch_size, matrix, kept_copies, memory_gb):
    """Estimate the peak memory of one training job, on the CPU or on a GPU.

    The paper's network on the paper's grid takes 3.9 GB in bf16 and 6.6 GB in fp32 on the CPU, beside the copies that
    are kept: which of them a job will use is not known where the rules are read.

    Parameters
    ----------
    network : dict
        Section `network`: `widths`, `convs_per_level`, `in_plane_levels`.
    batch_size : int
        Copies per step.
    matrix : sequence of int
        The network's grid, x, y, z.
    kept_copies : int
        Augmented copies of the training cohort.
    memory_gb : float
        `computing.memory_gb`: no more than this is kept of them.

    Returns
    -------
    int
        MB, rounded up to hundreds.
    """
    voxels = matrix[0] * matrix[1] * matrix[2]
    kept = min(1e3 * memory_gb, kept_copies * voxels * COPY_BYTES / 1e6)
    activations = batch_size * voxels * ACTIVATION_BYTES * _channels_per_voxel(network) / 1e6
    needed = SNAKEMAKE_MB + LIBRARIES_MB + kept + max(CUDA_MB, MARGIN * activations)
    return int(-(-needed // 100) * 100)


def _channels_per_voxel(network):
    """Add up the channels of all convolutions, those of coarser levels divided by how much fewer voxels they have."""
    convolutions, fewer, total = network["convs_per_level"] + 1, 1.0, 0.0
    *levels, bridge = network["widths"]
    for level, width in enumerate(levels):
        total += 2 * convolutions * width / fewer  # on the way down, and on the way up
        fewer *= 4.0 if level < network["in_plane_levels"] else 8.0
    return total + convolutions * bridge / fewer
