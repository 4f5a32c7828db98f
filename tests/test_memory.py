"""What a training declares to need, against numbers measured once with the paper's network on the CPU."""

import pytest

from haemex.memory import COPY_BYTES, CUDA_MB, LIBRARIES_MB, SNAKEMAKE_MB, training_mb

PAPER = {"widths": [16, 32, 64, 128], "convs_per_level": 4, "in_plane_levels": 0}
SMALL = {"widths": [2, 3, 4, 5], "convs_per_level": 1, "in_plane_levels": 0}


@pytest.mark.parametrize(
    ("slices", "measured_mb"),
    [(8, 1192), (16, 2083), (16, 3392)],  # bf16, bf16, fp32: one step, the libraries in it
)
def test_a_step_fits_into_what_is_declared(slices, measured_mb):
    declared = training_mb(PAPER, 1, [256, 256, slices], 0, 4.0)
    assert measured_mb + SNAKEMAKE_MB <= declared


def test_the_papers_training_by_hand():
    """2,097,152 voxels; 2 x 5 x (16 + 32/8 + 64/64) + 5 x 128/512 = 211.25 channels; 4 GB of copies kept."""
    activations = 2097152 * 211.25 * 14.5 / 1e6
    wanted = 500 + 500 + 4000 + 1.25 * activations
    assert wanted <= training_mb(PAPER, 1, [256, 256, 32], 1890, 4.0) < wanted + 100


def test_a_small_study_asks_for_little_beside_what_cuda_takes():
    fixed = SNAKEMAKE_MB + LIBRARIES_MB + CUDA_MB
    assert training_mb(SMALL, 4, [16, 16, 16], 16, 4.0) == fixed + 100
    kept = 1890 * 64**3 * COPY_BYTES / 1e6
    assert training_mb(SMALL, 4, [64, 64, 64], 1890, 4.0) == pytest.approx(fixed + kept, abs=100)


def test_levels_that_keep_their_slices_count_more():
    flat = PAPER | {"in_plane_levels": 2}
    assert training_mb(flat, 1, [256, 256, 32], 0, 4.0) > training_mb(PAPER, 1, [256, 256, 32], 0, 4.0)
    assert training_mb(PAPER, 2, [256, 256, 32], 0, 4.0) > 1.8 * training_mb(PAPER, 1, [256, 256, 32], 0, 4.0) - 1000
