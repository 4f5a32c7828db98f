import gzip
import json
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from haemex.augment import apply_transform, augment_patient, draw_transforms, move_haematoma
from haemex.errors import InputError
from haemex.nifti import write_volume
from haemex.segmentation_metrics import dice

AFFINE = np.array([[2.0, 0, 0, -19], [0, 2, 0, -15], [0, 0, 5, -22.5], [0, 0, 0, 1]])
SHAPE = (10, 16, 20)
PROTOCOL = {"scaling_percent": 10.0, "translation_percent": 10.0, "rotation_deg": 5.0}


def transform(scaling=(1, 1, 1), translation_mm=(0, 0, 0), rotation_deg=(0, 0, 0)):
    return {"scaling": list(scaling), "translation_mm": list(translation_mm), "rotation_deg": list(rotation_deg)}


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(0, 5, shape).astype(np.float32)


def draw(copies=10, include_original=True, seed=0, **changes):
    rng = np.random.default_rng(seed)
    return draw_transforms(copies, include_original, *{**PROTOCOL, **changes}.values(), [112, 100, 160], rng)


def test_identity_changes_nothing():
    array = noise()
    np.testing.assert_array_equal(apply_transform(array, AFFINE, transform()), array)


def test_shift_by_whole_voxels():
    array = noise()
    # 3 voxels to the right, 2 to the back, 1 up.
    out = apply_transform(array, AFFINE, transform(translation_mm=(6, -4, 5)))
    expected = np.zeros_like(array)
    expected[1:, :-2, 3:] = array[:-1, 2:, :-3]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rotation_deg", "axes"), [((90, 0, 0), (1, 0)), ((0, 90, 0), (0, 2)), ((0, 0, 90), (2, 1))], ids="xyz"
)
def test_quarter_turns(rotation_deg, axes):
    # A right-handed turn about x takes y (axis 1) to z (axis 0); about y, z to x; about z, x to y.
    array = noise((9, 9, 9))
    out = apply_transform(array, np.diag([3.0, 3, 3, 1]), transform(rotation_deg=rotation_deg))
    np.testing.assert_allclose(out, np.rot90(array, axes=axes), atol=1e-4)


def test_rotations_come_in_the_order_x_y_z():
    array = noise((9, 9, 9))
    out = apply_transform(array, np.eye(4), transform(rotation_deg=(90, 90, 0)))
    np.testing.assert_allclose(out, np.rot90(np.rot90(array, axes=(1, 0)), axes=(0, 2)), atol=1e-4)


def test_scaling_by_two_doubles_distances_from_the_centre():
    array = np.zeros((1, 1, 9), np.float32)
    array[0, 0, 6] = 1  # 2 voxels right of the centre
    out = apply_transform(array, np.eye(4), transform(scaling=(2, 1, 1)))
    np.testing.assert_allclose(out[0, 0], [0, 0, 0, 0, 0, 0, 0, 0.5, 1], atol=1e-6)


def test_turn_on_thick_slices_is_a_turn_in_mm():
    # A point 20 mm to the front of the centre, turned by 90 degrees about x, stands 20 mm above it: 4 slices of 5 mm.
    array = np.zeros((13, 21, 3), np.float32)
    array[6, 20, 1] = 1
    out = apply_transform(array, np.diag([2.0, 2, 5, 1]), transform(rotation_deg=(90, 0, 0)))
    assert np.unravel_index(out.argmax(), out.shape) == (10, 10, 1)


def matrix_of(values):
    """The forward map of a transform in mm about the centre, built another way: scipy's rotations."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", values["rotation_deg"], degrees=True).as_matrix()
    return turn @ np.diag(values["scaling"]), np.array(values["translation_mm"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_agrees_with_scipy(seed):
    values = draw(1, False, seed, scaling_percent=20, rotation_deg=30)[0]
    array = ndimage.gaussian_filter(noise(seed=seed), 1)
    forward, shift = matrix_of(values)
    centre = (np.array(SHAPE[::-1]) - 1) / 2
    spacing = np.diag(AFFINE)[:3]
    index = np.indices(SHAPE).reshape(3, -1)[::-1]
    from_mm = np.linalg.inv(forward) @ ((index - centre[:, None]) * spacing[:, None] - shift[:, None])
    at = (from_mm / spacing[:, None] + centre[:, None])[::-1]
    theirs = ndimage.map_coordinates(array, at, order=1, mode="nearest")
    edge = np.array(SHAPE)[:, None] - 0.5
    theirs[((at < -0.5) | (at > edge)).any(axis=0)] = 0
    on_the_edge = ((np.abs(at + 0.5) < 1e-6) | (np.abs(at - edge) < 1e-6)).any(axis=0)
    ours = apply_transform(array, AFFINE, values).ravel()
    np.testing.assert_allclose(ours[~on_the_edge], theirs[~on_the_edge], atol=1e-4)


def test_inverse_pair():
    z, y, x = (np.arange(size) - (size - 1) / 2 for size in (32, 32, 32))
    blob = np.exp(-(z[:, None, None] ** 2 + (y[:, None] - 2) ** 2 + (x + 3) ** 2) / 40).astype(np.float32)
    there = transform(rotation_deg=(0, 0, 17), translation_mm=(2, -1, 3))
    turned = matrix_of(transform(rotation_deg=(0, 0, -17)))[0] @ [-2, 1, -3]
    back = transform(rotation_deg=(0, 0, -17), translation_mm=turned)
    again = apply_transform(apply_transform(blob, np.eye(4), there), np.eye(4), back)
    assert np.abs(apply_transform(blob, np.eye(4), there) - blob).max() > 0.3
    np.testing.assert_allclose(again, blob, atol=0.04)


def test_drawn_ranges():
    drawn = draw(4000, False)
    scaling, shift, turn = (
        np.array([one[key] for one in drawn]) for key in ("scaling", "translation_mm", "rotation_deg")
    )
    for values, lowest, highest in (
        (scaling, [0.9] * 3, [1.1] * 3),
        (shift, [-11.2, -10, -16], [11.2, 10, 16]),
        (turn, [-5] * 3, [5] * 3),
    ):
        width = np.array(highest) - lowest
        assert (values >= lowest).all()
        assert (values <= highest).all()
        assert (values.min(0) < lowest + 0.01 * width).all()
        assert (values.max(0) > highest - 0.01 * width).all()
        np.testing.assert_allclose(values.mean(0), (np.array(lowest) + highest) / 2, atol=(0.02 * width).max())
    together = np.corrcoef(np.hstack([scaling, shift, turn]).T) - np.eye(9)
    assert np.abs(together).max() < 0.06


def test_original_is_copy_0_and_does_not_shift_the_others():
    with_original, without = draw(), draw(include_original=False)
    assert len(with_original) == 10
    assert with_original[0] == transform(scaling=(1.0, 1.0, 1.0), translation_mm=(0.0,) * 3, rotation_deg=(0.0,) * 3)
    assert without[0] != with_original[0]
    assert with_original[1:] == without[1:]


def patient(folder, shift_x=0.0):
    z, y, x = (np.arange(size) - (size - 1) / 2 for size in SHAPE)
    blob = (z[:, None, None] * 5) ** 2 + (y[:, None] * 2 - 3) ** 2 + (x * 2 - 4 - shift_x) ** 2 < 10**2
    ct = np.where(blob, 2.5, 0.5) + noise(seed=5) / 50
    write_volume(folder / "ct.nii.gz", ct, AFFINE, slope=2**-10)
    write_volume(folder / "haematoma.nii.gz", blob.astype(np.uint8), AFFINE)
    return np.rint(ct * 2**10).astype(np.int16), blob


def run(folder, out, patient="p007", seed=2021, copies=4, include_original=True, **changes):
    out.mkdir()
    paths = out / "ct.nii.gz", out / "haematoma.nii.gz", out / "facts.json"
    inputs = folder / "ct.nii.gz", folder / "haematoma.nii.gz"
    settings = {**PROTOCOL, **changes}
    augment_patient(*inputs, *paths, copies, include_original, **settings, seed=seed, patient=patient)
    return json.loads(paths[2].read_text())


def test_any_reader_sees_one_4d_volume(tmp_path):
    ct, blob = patient(tmp_path)
    facts = run(tmp_path, tmp_path / "a")
    image = nibabel.load(tmp_path / "a" / "ct.nii.gz")
    masks = nibabel.load(tmp_path / "a" / "haematoma.nii.gz")
    assert image.shape == masks.shape == (20, 16, 10, 4)
    assert image.get_data_dtype() == np.int16
    assert masks.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, AFFINE)
    values, labels = image.get_fdata().transpose(3, 2, 1, 0), np.asarray(masks.dataobj).transpose(3, 2, 1, 0)
    np.testing.assert_array_equal(values[0], ct * 2**-10)
    np.testing.assert_array_equal(labels[0], blob)
    for copy in range(4):
        expected = apply_transform((ct * 2**-10).astype(np.float32), AFFINE, facts["copies"][copy])
        np.testing.assert_allclose(values[copy], expected, atol=2**-11 + 1e-6)
        np.testing.assert_array_equal(labels[copy], move_haematoma(blob, AFFINE, facts["copies"][copy]))
        assert facts["copies"][copy]["haematoma_voxels"] == labels[copy].sum()
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a" / "ct.nii.gz")))
    np.testing.assert_allclose(by_itk, values, atol=1e-6)


def test_each_copy_is_a_gzip_member_at_its_offset(tmp_path):
    patient(tmp_path)
    facts = run(tmp_path, tmp_path / "a")
    for name, dtype in (("ct", np.int16), ("haematoma", np.uint8)):
        content = (tmp_path / "a" / f"{name}.nii.gz").read_bytes()
        whole, offsets = gzip.decompress(content), facts[f"{name}_offsets"]
        size = np.prod(SHAPE) * np.dtype(dtype).itemsize
        assert len(whole) == 352 + 4 * size
        ends = [*offsets[1:], len(content)]
        for copy, (start, end) in enumerate(zip(offsets, ends, strict=True)):
            member = zlib.decompressobj(31)
            assert member.decompress(content[start:]) == whole[352 + copy * size : 352 + (copy + 1) * size]
            assert len(content) - len(member.unused_data) == end


def test_ct_and_haematoma_move_together(tmp_path):
    patient(tmp_path)
    run(tmp_path, tmp_path / "a", copies=6, include_original=False)
    ct = np.asarray(nibabel.load(tmp_path / "a" / "ct.nii.gz").dataobj)
    labels = np.asarray(nibabel.load(tmp_path / "a" / "haematoma.nii.gz").dataobj)
    positions = []
    for copy in range(6):
        # As many of the brightest voxels: cut half-way between tissue and haematoma, the corners would be lost.
        bright = ct[..., copy] >= np.sort(ct[..., copy], axis=None)[-int(labels[..., copy].sum())]
        assert dice(bright, labels[..., copy] > 0) > 0.9
        positions.append(np.argwhere(bright).mean(0) * [2, 2, 5])
        assert np.abs(positions[-1] - np.argwhere(labels[..., copy]).mean(0) * [2, 2, 5]).max() < 0.5  # mm
    assert np.ptp(positions, axis=0).max() > 2


def test_patient_and_seed_decide_and_nothing_else(tmp_path):
    patient(tmp_path)
    run(tmp_path, tmp_path / "a")
    np.random.default_rng(0).uniform(size=5)
    run(tmp_path, tmp_path / "other", patient="p008")
    run(tmp_path, tmp_path / "b")
    run(tmp_path, tmp_path / "seed", seed=2022)
    for name in ("ct.nii.gz", "haematoma.nii.gz", "facts.json"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()
        assert first != (tmp_path / "seed" / name).read_bytes()


def test_haematoma_that_leaves_the_image_is_kept_and_counted(tmp_path):
    _, blob = patient(tmp_path, shift_x=12.0)
    facts = run(tmp_path, tmp_path / "a", copies=30, translation_percent=60.0)
    voxels = [copy["haematoma_voxels"] for copy in facts["copies"]]
    assert voxels[0] == blob.sum()
    assert min(voxels) == 0
    labels = np.asarray(nibabel.load(tmp_path / "a" / "haematoma.nii.gz").dataobj)
    assert labels.sum((0, 1, 2)).tolist() == voxels


def test_different_grids_are_refused(tmp_path):
    _, blob = patient(tmp_path)
    write_volume(tmp_path / "haematoma.nii.gz", blob.astype(np.uint8)[1:], AFFINE)
    with pytest.raises(InputError, match="same grid"):
        run(tmp_path, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def ellipsoid(shape, affine, radii_mm, middle, push, shift):
    """An ellipsoid 6 mm beside the middle of the grid, scaled and turned by `push` about the middle, then shifted."""
    z, y, x = np.indices(shape)
    mm = np.einsum("ij,jzyx->izyx", affine[:3, :3], np.stack([x, y, z])) - np.reshape(middle + shift, (3, 1, 1, 1))
    mm = np.einsum("ij,jzyx->izyx", np.linalg.inv(push), mm) - 6 / np.sqrt(3)
    return ((mm / np.reshape(radii_mm, (3, 1, 1, 1))) ** 2).sum(0) < 1


def test_a_moved_haematoma_has_the_shape_of_the_moved_ellipsoid():
    """On the paper's 0.4375 x 0.4375 x 5 mm: cut at one half, the interpolated mask copies the nearest thick slice."""
    rng = np.random.default_rng(3)
    shape, affine = (16, 128, 128), np.diag([0.4375, 0.4375, 5.0, 1.0])
    middle = affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    ours, cut = [], []
    for _ in range(5):
        radii, scaling, degrees = rng.uniform(9, 17, 3), rng.uniform(0.9, 1.1, 3), rng.uniform(-5, 5, 3)
        transform = {"scaling": scaling, "rotation_deg": degrees, "translation_mm": rng.uniform(-4, 4, 3)}
        mask = ellipsoid(shape, affine, radii, middle, np.eye(3), np.zeros(3))
        push = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scaling)
        truth = ellipsoid(shape, affine, radii, middle, push, transform["translation_mm"])
        ours.append(dice(move_haematoma(mask, affine, transform), truth))
        cut.append(dice(apply_transform(mask, affine, transform) >= 0.5, truth))
    assert min(ours) > 0.95 and np.mean(ours) > np.mean(cut) + 0.02


@pytest.mark.parametrize("scaling", [(1.0, 1.0, 1.0), (0.9, 1.1, 0.95), (1.1, 1.1, 1.1)])
def test_a_moved_haematoma_keeps_its_volume_but_for_the_scaling(scaling):
    """A ball of few voxels, as on coarse grids: cut at one half it would lose about a tenth."""
    affine = np.diag([5.0, 5.0, 8.0, 1.0])
    z, y, x = np.indices((20, 32, 32))
    ball = ((x - 15.3) * 5) ** 2 + ((y - 16.1) * 5) ** 2 + ((z - 9.8) * 8) ** 2 < 16**2
    transform = {"scaling": scaling, "rotation_deg": (4.0, -3.0, 5.0), "translation_mm": (3.1, -7.7, 5.2)}
    moved = move_haematoma(ball, affine, transform)
    assert moved.sum() == pytest.approx(ball.sum() * np.prod(scaling), abs=1)
    centre = np.array([np.mean(axis) for axis in moved.nonzero()])
    values = apply_transform(ball, affine, transform)
    weighed = np.array([(values * grid).sum() / values.sum() for grid in (z, y, x)])
    assert np.abs(centre - weighed).max() < 0.2  # voxels
    assert not moved[values == 0].any()


def test_a_haematoma_moved_out_of_the_image_is_gone_or_halved():
    affine = np.eye(4)
    box = np.zeros((8, 8, 8), bool)
    box[2:6, 2:6, 2:6] = True
    still = {"scaling": (1, 1, 1), "rotation_deg": (0, 0, 0)}
    np.testing.assert_array_equal(move_haematoma(box, affine, {**still, "translation_mm": (0, 0, 0)}), box)
    half = move_haematoma(box, affine, {**still, "translation_mm": (4, 0, 0)})
    assert half.sum() == 32 and half[2:6, 2:6, 6:].all()
    assert not move_haematoma(box, affine, {**still, "translation_mm": (0, 9, 0)}).any()
