import os

import pytest

from haemex import disk_space
from haemex.disk_space import estimate, free_bytes, in_words, parameters, used_bytes

NETWORK = {"widths": [16, 32, 64, 128], "convs_per_level": 4, "normalisation": "batch"}


def test_the_papers_network_within_two_percent():
    assert parameters([16, 32, 64, 128], 4) == pytest.approx(3802578, rel=0.02)


def test_an_estimate_by_hand():
    voxels = {"baseline": [1000, 3000], "followup": [2000]}
    space = estimate(voxels, 1, 2, [10, 10, 10], [112.0, 112.0, 160.0], 5, NETWORK, 6)
    weights = 4 * parameters([16, 32, 64, 128], 4)
    assert space["convert"] == disk_space.NATIVE_CT * 6000
    assert space["measure"] == space["skullstrip"] == disk_space.NATIVE_MASK * 4000
    assert space["resample"] == pytest.approx(2 * 1000 * (disk_space.GRID_CT + 2 * disk_space.GRID_MASK))
    assert space["augment"] == pytest.approx(5 * 1000 * (disk_space.AUGMENTED_CT + disk_space.GRID_MASK))
    assert space["train"] == 9 * weights and space["final"] == weights
    wide = estimate(voxels, 1, 2, [10, 10, 10], [224.0, 224.0, 160.0], 5, NETWORK, 6)
    assert wide["augment"] < 0.5 * space["augment"]


def test_written_volumes_take_what_was_measured(tmp_path):
    """A noisy head of known extent: the constant holds within a third."""
    import numpy as np

    from haemex.nifti import write_volume

    rng = np.random.default_rng(1)
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    inside = x**2 / 0.6**2 + y**2 / 0.8**2 < 1
    hu = np.where(inside, rng.normal(35, 6, (8, 256, 256)), -1000 + rng.normal(0, 6, (8, 256, 256)))
    hu[:, x**2 + y**2 > 1] = -1024
    write_volume(tmp_path / "ct.nii.gz", np.rint(hu).astype(np.int16), np.eye(4))
    per_voxel = (tmp_path / "ct.nii.gz").stat().st_size / hu.size
    assert per_voxel == pytest.approx(disk_space.NATIVE_CT, rel=1 / 3)


def test_the_sentence_names_the_largest_first_and_the_place():
    space = {"convert": 4e9, "report": 2e7, "augment": 2.6e9, "train": 1e8}
    said = disk_space.in_sentence(space, 1.5e9, 8e10, "results/mine")
    assert said == (
        "disk: about 8.4 GB for the whole study in results/mine, most of it convert 4.0 GB, augment 2.6 GB, "
        "train 100 MB; 1.5 GB of it are there already, 80.0 GB are free"
    )


def test_the_papers_copies_stay_below_four_gigabytes():
    """Measured: 1.46 MB a copy on scans of full size, 2.75 GB for 189 patients; the estimate may not fall behind."""
    space = estimate(
        {"baseline": [1], "followup": [1]}, 215, 266, [256, 256, 32], [112.0] * 2 + [160.0], 10, NETWORK, 15
    )
    assert 215 * 10 * 1.456e6 <= space["augment"] <= 4e9


def test_free_and_used(tmp_path):
    (tmp_path / "phantom").mkdir()
    (tmp_path / "deep" / "phantom").mkdir(parents=True)
    (tmp_path / "phantom" / "a").write_bytes(bytes(1000))
    (tmp_path / "deep" / "phantom" / "b").write_bytes(bytes(30))
    (tmp_path / "c").write_bytes(bytes(4))
    assert used_bytes(tmp_path, leave_out=("phantom",)) == 34
    assert used_bytes(tmp_path / "absent") == 0
    available = os.statvfs(tmp_path)
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(available.f_bavail * available.f_frsize, rel=0.05)


def test_sizes_in_words():
    assert [in_words(size) for size in (10, 3.2e6, 1.44e9)] == ["1 MB", "3 MB", "1.4 GB"]
