import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK

from haemex.errors import InputError
from haemex.nifti import header_bytes, read_volume, write_volume

AFFINE = np.array([[-0.5, 0, 0, 100], [0, -0.45, 0.9, 80], [0, 0.15, 4.9, -40], [0, 0, 0, 1.0]])  # sheared


def test_axes_and_affine_by_hand(tmp_path):
    """Voxel (x=3, y=2, z=1) of a nibabel array is [1, 2, 3] here; the sheared affine comes back exactly."""
    data = np.zeros((5, 4, 2), np.int16)
    data[3, 2, 1] = 77
    nibabel.Nifti1Image(data, AFFINE).to_filename(tmp_path / "a.nii.gz")
    array, _ = read_volume(tmp_path / "a.nii.gz")
    assert array.shape == (2, 4, 5) and array[1, 2, 3] == 77 and array.dtype == np.int16
    write_volume(tmp_path / "b.nii.gz", array, AFFINE)
    image = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-7)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz")[0], array)


def test_simpleitk_reads_the_same_numbers(tmp_path):
    affine = np.diag([-0.5, -0.5, 5, 1])
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_volume(tmp_path / "a.nii.gz", array, affine)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "a.nii.gz")), array)


def test_scaled_integers(tmp_path):
    array = np.array([0, 1.5, -2.25, 31.9], np.float32).reshape(1, 2, 2)
    write_volume(tmp_path / "a.nii.gz", array, np.eye(4), slope=2**-10)
    back, _ = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(back, array, atol=2**-11)
    assert back[0, 0, 1] == 1.5 and back.dtype == np.float32
    with pytest.raises(ValueError, match="do not fit"):
        write_volume(tmp_path / "a.nii.gz", array * 2, np.eye(4), slope=2**-10)


def test_same_bytes_and_nothing_left_behind(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_volume(tmp_path / "a.nii.gz", array, AFFINE)
    write_volume(tmp_path / "b.nii.gz", array, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_four_dimensional_header(tmp_path):
    array = np.arange(48, dtype=np.int16).reshape(2, 2, 3, 4)  # copy, z, y, x
    head = header_bytes(array.shape, array.dtype, np.eye(4))
    (tmp_path / "a.nii.gz").write_bytes(
        gzip.compress(head) + gzip.compress(array[0].tobytes()) + gzip.compress(array[1].tobytes())
    )
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), array.transpose(3, 2, 1, 0))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("content", [b"", b"no image", gzip.compress(b"x" * 400)])
def test_what_is_no_volume_is_refused(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_truncated_volume_is_refused(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.int16), np.eye(4))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_volume(tmp_path / "a.nii.gz")
