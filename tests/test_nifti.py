import gzip
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from haemex.errors import InputError
from haemex.nifti import header_bytes, parse_header, read_volume, write_volume

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


@given(
    shape=st.lists(st.integers(1, 300), min_size=3, max_size=4),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    numbers=st.lists(st.floats(-300, 300, width=32), min_size=12, max_size=12),
    slope=st.sampled_from([None, 1.0, 2**-10]),
)
def test_the_header_is_nibabels_and_comes_back(shape, dtype, numbers, slope):
    """Byte by byte what nibabel makes of the same fields."""
    affine = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (len(shape) - 3)))
    header.set_sform(affine, code="scanner")
    header.set_qform(None, code=0)
    header["scl_slope"], header["scl_inter"] = slope or 1.0, 0.0
    header["magic"], header["vox_offset"] = b"n+1", 352
    ours = header_bytes(tuple(shape), np.dtype(dtype), affine, slope)
    assert ours == header.binaryblock + bytes(4)
    back = parse_header(ours)
    assert (back[0], back[1], back[3]) == (tuple(shape), np.dtype(dtype), slope or 1.0)
    np.testing.assert_array_equal(back[2], affine)


def test_files_of_other_programs_are_read_by_nibabel(tmp_path):
    """Big-endian, uncompressed, with an intercept: nothing that haemex writes."""
    data = np.arange(24, dtype=">i2").reshape(4, 3, 2)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 2, 5, 1]), nibabel.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(1.0, -1024.0)
    image.to_filename(tmp_path / "a.nii")
    array, affine = read_volume(tmp_path / "a.nii")
    expected = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(array, expected)
    np.testing.assert_array_equal(affine, np.diag([2.0, 2, 5, 1]))


def test_reading_an_own_file_does_not_start_nibabel(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8), AFFINE)
    code = (
        "import sys; from haemex.nifti import read_volume; read_volume(sys.argv[1]); sys.exit('nibabel' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.nii.gz"], check=False).returncode == 0
