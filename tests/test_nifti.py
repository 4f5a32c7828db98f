import gzip
import struct
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from haemex.errors import InputError
from haemex.nifti import (
    header_bytes,
    parse_header,
    read_grid,
    read_mask_on,
    read_volume,
    states_orientation,
    write_volume,
)

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


SMOOTH = """
import hashlib, sys
import numpy as np
from haemex.nifti import write_volume
z, y, x = np.ogrid[:27, :128, :128]
digest = hashlib.sha256()
for number in range(20):
    depth = 10 - np.sqrt((3.0 * z - 39) ** 2 + (y - 60 - number) ** 2 + (x - 64) ** 2)
    noise = np.random.default_rng(number).normal(0, 1e-3, depth.shape)
    write_volume(sys.argv[1], np.where(depth > -10, 0.03 * depth + noise, 0).astype(np.float32), np.eye(4))
    digest.update(open(sys.argv[1], "rb").read())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_every_process_writes_the_same_bytes(tmp_path):
    """ISA-L at its first two levels does not: of 40 processes three wrote other bytes of such volumes."""
    command = [sys.executable, "-c", SMOOTH, tmp_path / "volume.nii.gz"]
    assert len({subprocess.check_output(command) for _ in range(60)}) == 1


def test_a_volume_is_packed_as_the_standard_library_packs(tmp_path):
    """Whose zlib depends on the content alone."""
    volume = np.random.default_rng(1).normal(0, 9, (9, 8, 7)).round().astype(np.int16)
    write_volume(tmp_path / "volume.nii.gz", volume, np.eye(4))
    content = (tmp_path / "volume.nii.gz").read_bytes()
    assert content == gzip.compress(gzip.decompress(content), 1, mtime=0)


def test_four_dimensional_header(tmp_path):
    array = np.arange(48, dtype=np.int16).reshape(2, 2, 3, 4)  # copy, z, y, x
    head = header_bytes(array.shape, array.dtype, np.eye(4))
    (tmp_path / "a.nii.gz").write_bytes(
        gzip.compress(head) + gzip.compress(array[0].tobytes()) + gzip.compress(array[1].tobytes())
    )
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), array.transpose(3, 2, 1, 0))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("content", [b"", b"no image", gzip.compress(b"x" * 400, mtime=0)])
def test_what_is_no_volume_is_refused(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable NIfTI") as refused:
        read_volume(tmp_path / "a.nii.gz")
    assert str(refused.value).count("a.nii.gz") == 1


def test_a_truncated_volume_is_refused(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.int16), np.eye(4))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_volume(tmp_path / "a.nii.gz")


def squared(affine, shape_xyz):
    """The grid with the same image planes and the same middle whose slices are stacked along the normal."""
    plane, triangle = np.linalg.qr(affine[:3, :2])
    plane = plane * np.sign(np.diag(triangle))
    normal = np.cross(*plane.T)
    square = np.eye(4)
    square[:3, :2] = plane * np.linalg.norm(affine[:3, :2], axis=0)
    square[:3, 2] = normal * (normal @ affine[:3, 2])
    middle = [*(np.array(shape_xyz) - 1) / 2, 1]
    square[:3, 3] += (affine @ middle)[:3] - (square @ middle)[:3]
    return square


@given(
    shape=st.lists(st.integers(1, 300), min_size=3, max_size=4),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    numbers=st.lists(st.floats(-300, 300, width=32), min_size=12, max_size=12),
    slope=st.sampled_from([None, 1.0, 2**-10]),
)
def test_the_header_is_nibabels_and_comes_back(shape, dtype, numbers, slope):
    """Byte by byte what nibabel makes of the same fields; of the qform, which both compute, to six digits."""
    affine = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    degenerate = not sizes.min() > 1e-30 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header["scl_slope"], header["scl_inter"] = slope or 1.0, 0.0
    header["magic"], header["vox_offset"] = b"n+1", 352
    ours = header_bytes(tuple(shape), np.dtype(dtype), affine, slope)
    back = parse_header(ours)
    assert (back[0], back[1], back[3]) == (tuple(shape), np.dtype(dtype), slope or 1.0)
    np.testing.assert_array_equal(back[2], affine)
    if not degenerate:
        header.set_qform(squared(affine, shape[-1:-4:-1]), code="scanner")
        found = nibabel.Nifti1Header(ours[:348])
        scale = np.abs(affine[:3, :3]) @ (np.array(shape[-1:-4:-1]) - 1) + np.abs(affine[:3, 3]) + 1e-6
        atol = np.column_stack([np.tile(3e-3 * sizes, (3, 1)), 2e-5 * scale])  # a of the quaternion is 1 - b2 - c2 - d2
        assert (np.abs(found.get_qform() - header.get_qform())[:3] <= atol).all()
        np.testing.assert_allclose(found["pixdim"], header["pixdim"], rtol=1e-4)
    varying = [*range(76, 92), *range(252, 254), *range(256, 280)]
    theirs = header.binaryblock + bytes(4)
    assert [i for i in range(352) if ours[i] != theirs[i] and i not in varying] == []
    assert degenerate or ours[252:254] == theirs[252:254]


def test_the_qform_of_a_tilted_scan_by_hand(tmp_path):
    """Planes tilted by 3-4-5: rows step (0, -0.4, -0.3), slices (0, 0, 5) apart, so 4 mm between planes."""
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.4, 0, 20], [0, -0.3, 5, -30], [0, 0, 0, 1.0]])
    write_volume(tmp_path / "a.nii.gz", np.zeros((3, 5, 7), np.int16), affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms(), [0.5, 0.5, 4])
    # The normal is (0, -0.6, 0.8); the middle is voxel (3, 2, 1), at (8.5, 19.2, -25.6).
    expected = [[-0.5, 0, 0, 10], [0, -0.4, -2.4, 22.4], [0, -0.3, 3.2, -28.2], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.get_qform(), expected, atol=1e-5)


@pytest.mark.parametrize("handedness", [1, -1])
def test_of_an_untilted_scan_qform_and_sform_are_one(tmp_path, handedness):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.linalg.det(turn)) * [0.4, 0.6, handedness * 5]
    affine[:3, 3] = [80, -70, 31]
    write_volume(tmp_path / "a.nii.gz", np.zeros((3, 5, 7), np.int16), affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1


@pytest.mark.parametrize("tilt", [18.5, -30])
def test_itk_opens_a_tilted_scan_with_its_middle_and_its_volume(tmp_path, tilt):
    """Without the qform ITK 5.4 refuses the file: no orthonormal definition found."""
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.5 * cos, 0, 20], [0, -0.5 * sin, 5, -30], [0, 0, 0, 1.0]])
    array = np.arange(105, dtype=np.int16).reshape(3, 5, 7)
    write_volume(tmp_path / "a.nii.gz", array, affine)
    image = SimpleITK.ReadImage(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), array)
    np.testing.assert_allclose(np.prod(image.GetSpacing()), abs(np.linalg.det(affine)), rtol=1e-6)
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint((3, 2, 1))) * [-1, -1, 1]
    np.testing.assert_allclose(middle, (affine @ [3, 2, 1, 1])[:3], atol=1e-4)
    plane = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, :2] * [[-1], [-1], [1]]
    np.testing.assert_allclose(plane, affine[:3, :2], atol=1e-6)


@pytest.mark.parametrize("affine", [AFFINE, np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1.0])])
def test_the_grid_alone(tmp_path, affine):
    write_volume(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint8), affine)
    shape, found = read_grid(tmp_path / "a.nii.gz")
    assert shape == (2, 3, 4)
    np.testing.assert_array_equal(found[:3], affine.astype(np.float32)[:3])
    assert (nibabel.load(tmp_path / "a.nii.gz").header["qform_code"] == 1) == (affine is AFFINE)


def test_the_grid_of_a_file_of_another_program(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 3, 2), np.float64), AFFINE).to_filename(tmp_path / "a.nii")
    shape, found = read_grid(tmp_path / "a.nii")
    assert shape == (2, 3, 4)
    np.testing.assert_allclose(found, AFFINE, rtol=1e-6)
    with pytest.raises(InputError, match="no such file"):
        read_grid(tmp_path / "b.nii")


def test_whether_a_file_says_how_it_lies(tmp_path):
    write_volume(tmp_path / "own.nii.gz", np.zeros((2, 3, 4), np.uint8), AFFINE)
    assert states_orientation(tmp_path / "own.nii.gz")
    for qform, sform in ((0, 0), (1, 0), (0, 1), (2, 4)):
        image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint8), np.diag([-1, -1, 5, 1]))
        image.header.set_qform(image.affine, qform)
        image.header.set_sform(image.affine, sform)
        nibabel.Nifti1Image(image.dataobj, None, image.header).to_filename(tmp_path / "a.nii")
        assert states_orientation(tmp_path / "a.nii") == bool(qform or sform)
    nibabel.AnalyzeImage(np.zeros((4, 3, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "a.hdr")
    assert not states_orientation(tmp_path / "a.hdr")
    nibabel.Nifti1Pair(np.zeros((4, 3, 2), np.uint8), AFFINE).to_filename(tmp_path / "b.hdr")
    assert states_orientation(tmp_path / "b.hdr")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(70, "<h", 1234), (70, "<h", 0), (40, "<h", 0), (42, "<h", -5), (42, "<h", 32000), (108, "<f", 1e30)],
    ids=["type unknown", "no type", "no axes", "negative size", "larger than the file", "offset beyond"],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_headers_are_refused(tmp_path, offset, form, value, suffix):
    nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), AFFINE).to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into(form, content, offset, value)
    (tmp_path / f"b{suffix}").write_bytes(content if suffix == ".nii" else gzip.compress(content))
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path / f"b{suffix}")
    assert caught.value.file == str(tmp_path / f"b{suffix}")


def test_colours_are_refused(tmp_path):
    colours = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colours, AFFINE).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="colours"):
        read_volume(tmp_path / "a.nii.gz")


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


def test_a_mask_must_lie_on_its_grid(tmp_path):
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[0, 1, 2] = 255
    write_volume(tmp_path / "mask.nii.gz", mask, affine)
    found = read_mask_on(tmp_path / "mask.nii.gz", (2, 3, 4), affine)
    assert found.dtype == bool and np.argwhere(found).tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match="4 x 3 x 2 voxels does not lie on its CT's grid of 4 x 3 x 3"):
        read_mask_on(tmp_path / "mask.nii.gz", (3, 3, 4), affine)
    mirrored = np.diag([-0.5, 0.5, 5.0, 1.0])
    with pytest.raises(InputError, match="stands elsewhere"):
        read_mask_on(tmp_path / "mask.nii.gz", (2, 3, 4), mirrored)
