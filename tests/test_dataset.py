import gzip
import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haemex.dataset import TrainingCopies, content_record, epoch_order, read_offsets, read_scan
from haemex.errors import InputError
from haemex.nifti import header_bytes, write_volume

GRID = (4, 8, 12)
SLOPE = 2.0**-10


def write_copies(folder, patient, ct, haematoma, affine=None):
    """Write augmented copies as the stage `augment` does: (copy, z, y, x), one gzip member per copy."""
    affine = np.eye(4) if affine is None else affine
    folder.mkdir(exist_ok=True)
    offsets = {}
    for kind, volumes, slope in (("ct", np.asarray(ct, np.int16), SLOPE), ("haematoma", np.uint8(haematoma), None)):
        content = gzip.compress(header_bytes(volumes.shape, volumes.dtype, affine, slope), 1, mtime=0)
        offsets[f"{kind}_offsets"] = []
        for volume in volumes:
            offsets[f"{kind}_offsets"].append(len(content))
            content += gzip.compress(volume.tobytes(), 1, mtime=0)
        (folder / f"{patient}_{kind}.nii.gz").write_bytes(content)
    (folder / f"{patient}.json").write_text(json.dumps({"copies": [{}] * len(ct), **offsets}))


def some_copies(folder, patient, copies=3, seed=0, grid=GRID):
    rng = np.random.default_rng([seed, *patient.encode()])
    ct = rng.integers(-2000, 4000, (copies, *grid), np.int16)
    haematoma = rng.integers(0, 2, (copies, *grid), np.uint8)
    write_copies(folder, patient, ct, haematoma)
    return ct, haematoma


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_copies_come_back_as_written_and_as_nibabel_reads_them(tmp_path, memory_gb):
    written = {patient: some_copies(tmp_path, patient) for patient in ("a", "b")}
    copies = TrainingCopies(["b", "a"], tmp_path, memory_gb)
    assert copies.index == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1), ("a", 2)]
    assert (len(copies), copies.grid, copies.slope) == (6, GRID, SLOPE)
    for _ in range(2):  # the second time from memory, if kept
        for position, (patient, copy) in enumerate(copies.index):
            ct, haematoma = copies.read(position)
            np.testing.assert_array_equal(ct, written[patient][0][copy])
            np.testing.assert_array_equal(haematoma, written[patient][1][copy])
    independent = nibabel.load(tmp_path / "a_ct.nii.gz").get_fdata()[..., 2]
    np.testing.assert_array_equal(copies.read(5)[0] * copies.slope, independent.transpose(2, 1, 0))


def test_what_augment_writes_is_read(tmp_path):
    from haemex.augment import augment_patient

    rng = np.random.default_rng(2)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    ct = rng.integers(0, 3000, (8, 12, 16)) * SLOPE
    mask = rng.integers(0, 2, ct.shape).astype(np.uint8)
    write_volume(tmp_path / "ct.nii.gz", ct, affine, slope=SLOPE)
    write_volume(tmp_path / "mask.nii.gz", mask, affine)
    augment_patient(
        ct_path=tmp_path / "ct.nii.gz",
        haematoma_path=tmp_path / "mask.nii.gz",
        ct_out=tmp_path / "p_ct.nii.gz",
        haematoma_out=tmp_path / "p_haematoma.nii.gz",
        json_out=tmp_path / "p.json",
        copies=3,
        include_original=True,
        scaling_percent=10.0,
        translation_percent=10.0,
        rotation_deg=5.0,
        seed=1,
        patient="p",
    )
    copies = TrainingCopies(["p"], tmp_path, 1.0)
    assert len(copies) == 3
    np.testing.assert_array_equal(copies.read(0)[0] * copies.slope, ct)
    np.testing.assert_array_equal(copies.read(0)[1], mask)
    for copy in (1, 2):
        independent = nibabel.load(tmp_path / "p_ct.nii.gz").get_fdata()[..., copy].transpose(2, 1, 0)
        np.testing.assert_array_equal(copies.read(copy)[0] * copies.slope, independent)


def test_memory_bound_is_kept(tmp_path):
    some_copies(tmp_path, "a", copies=5)
    one = 4 * 8 * 12 * (2 + 1)
    for room, kept in ((0, 0), (2 * one - 1, 1), (2 * one, 2), (100 * one, 5)):
        copies = TrainingCopies(["a"], tmp_path, room / 1e9)
        for _ in range(2):
            assert len(list(copies.read_ahead([4, 2, 0, 1, 3]))) == 5
        assert copies.kept_bytes == kept * one


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
@pytest.mark.parametrize("number", [0, 1, 4, 9])
def test_reading_ahead_keeps_the_order(tmp_path, number, memory_gb):
    written = {patient: some_copies(tmp_path, patient) for patient in "abc"}
    copies = TrainingCopies("abc", tmp_path, memory_gb)
    order = epoch_order(len(copies), 1, "test", 1)[:number]
    read = list(copies.read_ahead(order))
    assert len(read) == number
    for position, volumes in zip(order, read, strict=True):
        patient, copy = copies.index[position]
        for volume, kind in zip(volumes, written[patient], strict=True):
            np.testing.assert_array_equal(volume, kind[copy])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(1, 1000))
def test_an_epochs_order_is_a_permutation_that_depends_on_its_arguments(copies, seed, epoch):
    order = epoch_order(copies, seed, "train a fold1", epoch)
    assert sorted(order) == list(range(copies))
    np.testing.assert_array_equal(order, epoch_order(copies, seed, "train a fold1", epoch))
    if copies > 20:
        for other in ((seed + 1, "train a fold1", epoch), (seed, "train a fold2", epoch), (seed, "train a fold1", 0)):
            assert not np.array_equal(order, epoch_order(copies, *other))


def test_damage_is_refused_with_the_file_named(tmp_path):
    some_copies(tmp_path, "a")
    whole = (tmp_path / "a_ct.nii.gz").read_bytes()
    offsets = read_offsets(tmp_path, "a")["ct"]

    (tmp_path / "a_ct.nii.gz").write_bytes(whole[:-20])
    copies = TrainingCopies(["a"], tmp_path, 0)
    copies.read(1)
    with pytest.raises(InputError, match="copy 2") as caught:
        copies.read(2)
    assert caught.value.file.endswith("a_ct.nii.gz")
    with pytest.raises(InputError, match="copy 2"):
        list(copies.read_ahead([0, 1, 2]))

    flipped = bytearray(whole)
    flipped[offsets[1] + 40] ^= 0xFF
    (tmp_path / "a_ct.nii.gz").write_bytes(flipped)
    with pytest.raises(InputError, match="copy 1"):
        TrainingCopies(["a"], tmp_path, 0).read(1)

    (tmp_path / "a_ct.nii.gz").write_bytes(whole[: offsets[0] - 20])
    with pytest.raises(InputError, match="header"):
        TrainingCopies(["a"], tmp_path, 0)

    (tmp_path / "a.json").write_text('{"copies": []}')
    with pytest.raises(InputError, match="offsets"):
        TrainingCopies(["a"], tmp_path, 0)


def test_copies_on_different_grids_are_refused(tmp_path):
    some_copies(tmp_path, "a")
    some_copies(tmp_path, "b", grid=(4, 8, 8))
    with pytest.raises(InputError, match="grid"):
        TrainingCopies(["a", "b"], tmp_path, 1)


def test_a_scan_is_read_with_its_mask_and_affine(tmp_path):
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    ct = np.arange(384).reshape(GRID) * SLOPE
    mask = (ct > 0.1).astype(np.uint8)
    write_volume(tmp_path / "p_ct.nii.gz", ct, affine, slope=SLOPE)
    write_volume(tmp_path / "p_haematoma.nii.gz", mask, affine)
    read_ct, read_mask, read_affine = read_scan(tmp_path, "p")
    assert read_ct.dtype == np.float32
    np.testing.assert_array_equal(read_ct, ct)
    np.testing.assert_array_equal(read_mask, mask)
    np.testing.assert_allclose(read_affine, affine)
    write_volume(tmp_path / "p_haematoma.nii.gz", mask[1:], affine)
    with pytest.raises(InputError, match="shape"):
        read_scan(tmp_path, "p")


def test_content_record_sees_a_single_changed_voxel_in_any_copy(tmp_path):
    ct, haematoma = some_copies(tmp_path, "a")
    path, offsets = tmp_path / "a_haematoma.nii.gz", read_offsets(tmp_path, "a")["haematoma"]
    before = content_record(path, offsets)
    assert len(before) == 1 + 1 + 3
    for copy in range(3):
        changed = haematoma.copy()
        changed[copy, 1, 2, 3] ^= 1
        write_copies(tmp_path, "a", ct, changed)
        after = content_record(path, read_offsets(tmp_path, "a")["haematoma"])
        assert [old != new for old, new in zip(before[2:], after[2:], strict=True)] == [i == copy for i in range(3)]
