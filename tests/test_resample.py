import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from haemex import resample
from haemex.errors import InputError
from haemex.nifti import read_volume, write_volume
from haemex.resample import (
    centre_of_mass_mm,
    network_affine,
    normalise,
    resample_haematoma,
    resample_mask,
    resample_scan,
    resample_volume,
)


def grid_mm(affine, shape):
    """Coordinates of all voxel centres, (3, z, y, x), mm."""
    z, y, x = np.indices(shape)
    return np.einsum("ij,jzyx->izyx", affine[:3, :3], np.stack([x, y, z])) + affine[:3, 3, None, None, None]


def oracle(volume, affine, grid_affine, shape, order, outside):
    """Point by point: scipy's spline at each voxel centre, `outside` beyond the outermost voxels' faces."""
    mm = grid_mm(grid_affine, shape).reshape(3, -1)
    at = (np.linalg.inv(affine) @ np.vstack([mm, np.ones(mm.shape[1])]))[2::-1]
    out = ndimage.map_coordinates(volume.astype(float), at, order=order, mode="mirror")
    size = np.array(volume.shape)[:, None]
    out[((at < -0.5) | (at > size - 0.5)).any(axis=0)] = outside
    return out.reshape(shape)


def scan(shape=(12, 40, 44), seed=0):
    return np.random.default_rng(seed).normal(30, 200, shape).astype(np.int16)


NATIVE = np.array([[-0.5, 0, 0, 11.1], [0, -0.5, 0, 9.7], [0, 0, 5, -28.3], [0, 0, 0, 1.0]])
SHEARED = np.array([[-0.5, 0, 0, 11.1], [0, -0.47, 1.5, 2.7], [0, -0.15, 5, -28.3], [0, 0, 0, 1.0]])
OBLIQUE = NATIVE.copy()
OBLIQUE[:3, :3] = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]) @ NATIVE[:3, :3]


@pytest.mark.parametrize("affine", [NATIVE, SHEARED, OBLIQUE], ids=["parallel", "sheared", "oblique"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_agrees_with_scipy_point_by_point(affine, order):
    volume = scan()
    grid_affine = network_affine([0.4, -0.3, 1.7], [26, 16, 70], [60, 36, 15])
    ours = resample_volume(volume, affine, grid_affine, (15, 36, 60), order, -1024.0)
    theirs = oracle(volume, affine, grid_affine, (15, 36, 60), order, -1024.0)
    assert 0 < (theirs == -1024).mean() < 0.5  # the grid reaches beyond the scan
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_agrees_with_scipy_at_the_size_of_the_paper():
    # The grid covers a part of the scan: what lies outside is cut away before the spline is fitted.
    rng = np.random.default_rng(3)
    volume = rng.normal(30, 300, (30, 512, 16)).astype(np.int16)
    affine = np.diag([-0.45, -0.45, 5, 1.0])
    affine[:3, 3] = [3.6, 115, -70]
    grid_affine = network_affine([0.3, 0.2, 4], [5, 112, 160], [8, 256, 32])
    ours = resample_volume(volume, affine, grid_affine, (32, 256, 8), 3, -1024.0)
    np.testing.assert_allclose(ours, oracle(volume, affine, grid_affine, (32, 256, 8), 3, -1024.0), atol=1e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_whole_voxel_shift_is_exact(order):
    volume = scan()
    grid_affine = NATIVE.copy()
    grid_affine[:3, 3] += NATIVE[:3, :3] @ [3, -2, 1]
    out = resample_volume(volume, NATIVE, grid_affine, volume.shape, order, -1024.0)
    expected = np.full(volume.shape, -1024.0)
    expected[:-1, 2:, :-3] = volume[1:, :-2, 3:]
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_quarter_turn_by_hand():
    # Native x runs to the front and native y to the left, so the patient's (right, front) is native (y reversed, x).
    volume = np.arange(6).reshape(1, 2, 3)
    affine = np.array([[0, -1, 0, 0.5], [1, 0, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    out = resample_volume(volume, affine, network_affine([0, 0, 0], [2, 3, 1], [2, 3, 1]), (1, 3, 2), 1, -1.0)
    np.testing.assert_allclose(out[0], [[3, 0], [4, 1], [5, 2]])


@settings(max_examples=25, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.sampled_from([1, 3]))
def test_stored_orientation_does_not_matter(axes, flips, order):
    volume = scan((6, 11, 9))
    affine = np.diag([1.1, 0.9, 2.0, 1.0])
    affine[:3, 3] = [-4, -5, -6]
    grid_affine = network_affine([0.2, 0.1, -0.4], [7, 8, 9], [9, 7, 5])
    expected = resample_volume(volume, affine, grid_affine, (5, 7, 9), order, -1024.0)

    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine)
    orientation = np.stack([np.array(axes, float), np.where(flips, -1.0, 1.0)], axis=1)
    turned = image.as_reoriented(orientation)
    out = resample_volume(turned.get_fdata().transpose(2, 1, 0), turned.affine, grid_affine, (5, 7, 9), order, -1024.0)
    np.testing.assert_allclose(out, expected, atol=1e-3)


@pytest.mark.parametrize("affine", [NATIVE, SHEARED, OBLIQUE], ids=["parallel", "sheared", "oblique"])
def test_linear_function_of_space_is_kept_in_place(affine):
    shape, grid_shape = (12, 40, 44), (9, 15, 17)

    def ramp(mm):
        return 3 * mm[0] - 2 * mm[1] + 0.5 * mm[2] + 40

    volume = ramp(grid_mm(affine, shape))
    centre = affine[:3, :3] @ (np.array(shape[::-1]) / 2) + affine[:3, 3]
    grid_affine = network_affine(centre, [9, 8, 22], grid_shape[::-1])
    out = resample_volume(volume, affine, grid_affine, grid_shape, 1, 0.0)
    np.testing.assert_allclose(out, ramp(grid_mm(grid_affine, grid_shape)), atol=1e-3)


def test_parallel_axes_of_any_sign_take_the_quick_path(monkeypatch):
    # The general path gives the same numbers twelve times slower: only its absence shows that it was not taken.
    monkeypatch.setattr(resample, "_sample_freely", None)
    grid_affine = network_affine([0.4, -0.3, 1.7], [10, 8, 30], [20, 16, 6])
    expected = oracle(scan(), NATIVE, grid_affine, (6, 16, 20), 3, 0.0)
    np.testing.assert_allclose(resample_volume(scan(), NATIVE, grid_affine, (6, 16, 20), 3, 0.0), expected, atol=1e-3)


def test_axes_that_are_nearly_parallel_are_met_in_the_middle():
    # DICOM prints direction cosines with few digits. A drift of 0.0009 voxels over the grid counts as none; taken at
    # the middle of the grid it errs by half of that to both sides, at one end it would err by all of it at the other.
    shape, grid_shape = (4, 6, 90), (1, 1, 80)
    affine = np.eye(4)
    affine[1, 0] = 0.0009 / 81
    volume = np.broadcast_to(1000.0 * np.arange(6)[:, None], shape)  # 1000 per voxel along y
    grid_affine = np.eye(4)
    grid_affine[:3, 3] = [5, 2, 1]
    out = resample_volume(volume, affine, grid_affine, grid_shape, 1, 0.0)
    exact = oracle(volume, affine, grid_affine, grid_shape, 1, 0.0)
    assert np.abs(out - exact).max() < 0.5


def test_smooth_function_on_a_sheared_grid():
    def wave(mm):
        return 50 * np.cos(mm[0] / 4) * np.cos(mm[1] / 5) * np.cos(mm[2] / 20)

    shape, grid_shape = (16, 60, 64), (7, 20, 22)
    centre = SHEARED[:3, :3] @ (np.array(shape[::-1]) / 2) + SHEARED[:3, 3]
    grid_affine = network_affine(centre, [10, 9, 30], grid_shape[::-1])
    out = resample_volume(wave(grid_mm(SHEARED, shape)), SHEARED, grid_affine, grid_shape, 3, 0.0)
    np.testing.assert_allclose(out, wave(grid_mm(grid_affine, grid_shape)), atol=0.05)
    # Squared, as if the tilt did not exist, the same voxels would stand millimetres away.
    squared = SHEARED.copy()
    squared[1, 2] = squared[2, 1] = 0
    wrong = resample_volume(wave(grid_mm(SHEARED, shape)), squared, grid_affine, grid_shape, 3, 0.0)
    assert np.abs(wrong - wave(grid_mm(grid_affine, grid_shape))).max() > 10


def test_coarse_grid_averages():
    volume = np.arange(24.0).reshape(1, 4, 6)
    affine = np.diag([1, 1, 1, 1.0])
    # 2 x 2 native voxels in each of 3 x 2 x 1.
    out = resample_volume(volume, affine, network_affine([2.5, 1.5, 0], [6, 4, 1], [3, 2, 1]), (1, 2, 3), 1, 0.0)
    expected = volume.reshape(2, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_both_paths_agree_on_a_coarse_grid(monkeypatch, order):
    volume = scan()
    grid_affine = network_affine([0.4, -0.3, 1.7], [26, 16, 70], [8, 6, 5])
    separable = resample_volume(volume, NATIVE, grid_affine, (5, 6, 8), order, -1024.0)
    monkeypatch.setattr(resample, "PARALLEL_WITHIN", -1.0)
    np.testing.assert_allclose(
        resample_volume(volume, NATIVE, grid_affine, (5, 6, 8), order, -1024.0), separable, atol=1e-3
    )


def test_no_averaging_at_the_grid_of_the_paper():
    native = np.diag([-0.45, -0.45, 5, 1.0])
    tilted = native.copy()
    tilted[1, 2] = 1.6
    grid_affine = network_affine([0, 0, 0], [112, 112, 160], [256, 256, 32])
    for affine in (native, tilted):
        assert resample._points_per_voxel(affine, grid_affine) == [1, 1, 1]
    demo = network_affine([0, 0, 0], [160, 160, 160], [32, 32, 16])
    assert resample._points_per_voxel(native, demo) == [12, 12, 2]


def test_mask_keeps_its_volume_on_any_grid():
    shape = (20, 80, 80)
    affine = np.diag([-0.5, -0.5, 2, 1.0])
    affine[:3, 3] = [20, 20, -20]
    mask = (grid_mm(affine, shape) ** 2).sum(0) < 12**2
    native_mm3 = mask.sum() * 0.5
    for matrix in ([80, 80, 20], [57, 57, 17], [20, 20, 10]):
        grid_affine = network_affine([0.1, 0.2, 0.3], [40, 40, 40], matrix)
        out = resample_mask(mask, affine, grid_affine, tuple(matrix[::-1]))
        assert out.sum() * np.prod(40 / np.array(matrix)) == pytest.approx(native_mm3, rel=0.04)


@pytest.mark.parametrize("affine", [NATIVE, SHEARED, OBLIQUE], ids=["parallel", "sheared", "oblique"])
@pytest.mark.parametrize("matrix", [[80, 60, 40], [57, 43, 17], [12, 9, 7]])
def test_haematoma_keeps_its_volume_and_its_place(affine, matrix):
    """Cut at one half it lost up to 13 % on coarse grids, and stood up to half a slice off on fine ones."""
    shape = (14, 60, 64)
    mm = grid_mm(affine, shape)
    centre = affine[:3, :3] @ [31, 30, 6.4] + affine[:3, 3]
    mask = (((mm - centre[:, None, None, None]) / np.array([8, 7, 19])[:, None, None, None]) ** 2).sum(0) < 1
    grid_affine = network_affine(np.add(centre, [0.3, -0.2, 1.9]), [24, 20, 60], matrix)
    out = resample_haematoma(mask, affine, grid_affine, tuple(matrix[::-1]))
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    voxel = np.linalg.det(grid_affine[:3, :3])
    assert out.sum() * voxel == pytest.approx(volume, abs=max(2 * voxel, 0.003 * volume))
    there = centre_of_mass_mm(out, grid_affine) - centre_of_mass_mm(mask, affine)
    assert np.abs(there / np.diag(grid_affine)[:3]).max() < 0.3


def test_haematoma_grows_from_section_to_section():
    """Native sections of 4 and 12 pixels, 6 mm apart, on a grid of 1 mm: a copy of the nearest would jump."""
    mask = np.zeros((6, 20, 20), bool)
    mask[1:3, 8:12, 8:12] = True
    mask[3:5, 4:16, 4:16] = True
    affine = np.diag([1, 1, 6, 1.0])
    out = resample_haematoma(mask, affine, np.diag([1, 1, 1, 1.0]), (36, 20, 20))
    widths = out[:, 10].sum(1)[12:19]
    assert widths[0] < 6 and widths[-1] == 12
    assert np.diff(widths.astype(int)).min() >= 0 and np.diff(widths.astype(int)).max() <= 2
    assert out.sum() == pytest.approx(mask.sum() * 6, rel=0.02)


def test_haematoma_partly_or_wholly_outside():
    mask = np.zeros((4, 10, 20), bool)
    mask[1:3, 3:7, 6:16] = True
    affine = np.diag([1, 1, 5, 1.0])
    # The grid's last voxel ends at x = 10.5: five of ten columns lie inside.
    out = resample_haematoma(mask, affine, affine, (4, 10, 11))
    assert out.sum() == mask.sum() / 2 and not (out & ~mask[:, :, :11]).any()
    far = affine.copy()
    far[0, 3] = 40
    assert not resample_haematoma(mask, affine, far, (4, 10, 11)).any()
    assert not resample_haematoma(mask & False, affine, affine, (4, 10, 11)).any()
    np.testing.assert_array_equal(resample_haematoma(mask, affine, affine, mask.shape), mask)


def test_a_haematoma_smaller_than_a_voxel_is_kept():
    mask = np.zeros((4, 30, 30), bool)
    mask[2, 11, 12] = True
    out = resample_haematoma(
        mask, np.diag([1, 1, 5, 1.0]), network_affine([14.5, 14.5, 7.5], [30, 30, 20], [3, 3, 2]), (2, 3, 3)
    )
    assert np.argwhere(out).tolist() == [[1, 1, 1]]


def test_mask_at_exactly_half_is_inside():
    mask = np.array([[[False, True, True, False]]])
    grid_affine = np.eye(4)
    grid_affine[0, 3] = 0.5
    out = resample_mask(mask, np.eye(4), grid_affine, (1, 1, 3))
    assert out.tolist() == [[[True, True, True]]]


def test_centre_of_mass_by_hand():
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 4] = mask[1, 2, 0] = mask[2, 2, 2] = True
    assert centre_of_mass_mm(mask, np.eye(4)).tolist() == pytest.approx([2, 2, 4 / 3])
    # x, y, z = 2, 2, 4/3 through the sheared affine.
    expected = [-1 + 11.1, -0.94 + 2 + 2.7, -0.3 + 20 / 3 - 28.3]
    assert centre_of_mass_mm(mask, SHEARED).tolist() == pytest.approx(expected)


def test_network_grid_by_hand():
    affine = network_affine([10, 20, 30], [112, 112, 160], [256, 256, 32])
    assert np.diag(affine).tolist() == [0.4375, 0.4375, 5, 1]
    # 127.5 voxels of 0.4375 mm before the centre; 15.5 of 5 mm.
    assert affine[:3, 3].tolist() == [10 - 55.78125, 20 - 55.78125, 30 - 77.5]


def test_normalise_by_hand():
    hu = np.array([[[-20.0, 20.0, 40.0, 160.0, 80.0]]])
    brain = np.array([[[True, True, True, True, False]]])
    # Windowed 0, 20, 40, 100, of which 160 HU are left out: mean 20, variance (400 + 0 + 400) / 3.
    ct, mean_hu, sd_hu = normalise(hu, brain, [0.0, 100.0])
    assert mean_hu == 20
    assert sd_hu == pytest.approx((800 / 3) ** 0.5)
    np.testing.assert_allclose(ct, [[[0, 0, 20 / (800 / 3) ** 0.5, 80 / (800 / 3) ** 0.5, 0]]])


def test_normalise_without_anything_to_measure():
    ct, mean_hu, sd_hu = normalise(np.full((1, 2, 2), 700.0), np.ones((1, 2, 2), bool), [0.0, 100.0])
    assert np.isnan([mean_hu, sd_hu]).all() and np.isnan(ct).all()


def patient(folder, affine=NATIVE):
    shape = (12, 40, 44)
    mm = grid_mm(affine, shape)
    centre = mm.reshape(3, -1).mean(1)[:, None, None, None]
    brain = (((mm - centre) / np.array([9, 8, 22])[:, None, None, None]) ** 2).sum(0) < 1
    offset, radii = (np.array(values, float)[:, None, None, None] for values in ([3, 0, 0], [4, 4, 12]))
    haematoma = (((mm - centre - offset) / radii) ** 2).sum(0) < 1
    hu = np.where(brain, 32, 900) + np.random.default_rng(2).normal(0, 4, shape)
    hu[haematoma] += 35
    write_volume(folder / "ct.nii.gz", np.rint(hu).astype(np.int16), affine)
    write_volume(folder / "brain.nii.gz", brain.astype(np.uint8), affine)
    write_volume(folder / "haematoma.nii.gz", haematoma.astype(np.uint8), affine)
    return brain, haematoma


def run(folder, out, haematoma=True, **changes):
    out.mkdir()
    arguments = {
        "field_of_view_mm": [20, 18, 50],
        "matrix": [40, 36, 10],
        "spline_order": 3,
        "window_hu": [0, 100],
        **changes,
    }
    resample_scan(
        folder / "ct.nii.gz",
        folder / "brain.nii.gz",
        folder / "haematoma.nii.gz" if haematoma else None,
        out / "ct.nii.gz",
        out / "brain.nii.gz",
        out / "haematoma.nii.gz" if haematoma else None,
        out / "facts.json",
        **arguments,
    )
    return json.loads((out / "facts.json").read_text())


@pytest.mark.parametrize("affine", [NATIVE, SHEARED], ids=["parallel", "sheared"])
def test_scan(tmp_path, affine):
    brain, haematoma = patient(tmp_path, affine)
    facts = run(tmp_path, tmp_path / "a")
    ct, ct_affine = read_volume(tmp_path / "a" / "ct.nii.gz")
    grid_brain, _ = read_volume(tmp_path / "a" / "brain.nii.gz")
    grid_haematoma, haematoma_affine = read_volume(tmp_path / "a" / "haematoma.nii.gz")
    np.testing.assert_allclose(ct_affine, facts["grid_affine"], atol=1e-5)
    np.testing.assert_array_equal(ct_affine, haematoma_affine)
    assert ct.shape == grid_brain.shape == grid_haematoma.shape == (10, 36, 40)
    image = nibabel.load(tmp_path / "a" / "ct.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert (image.dataobj.slope, image.dataobj.inter) == (2**-10, 0)
    assert ct[grid_brain == 0].max() == 0
    assert ct.min() == 0
    # The z-scores can be traced back to HU: a haematoma of 67 HU among tissue of 32 HU.
    hu = ct[grid_haematoma == 1] * facts["sd_hu"] + facts["mean_hu"]
    assert np.median(hu) == pytest.approx(67, abs=1.5)
    # The skull of 900 HU left no rim: nothing away from the haematoma is as bright as it.
    away = (grid_brain == 1) & ~ndimage.binary_dilation(grid_haematoma, iterations=2)
    assert ct[away].max() * facts["sd_hu"] + facts["mean_hu"] < 55
    assert facts["haematoma_voxels"] == grid_haematoma.sum()
    assert facts["haematoma_inside_fraction"] == 1.0
    native_ml = haematoma.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert grid_haematoma.sum() * 0.5 * 0.5 * 5 == pytest.approx(native_ml, rel=0.1)
    middle = (np.array([40, 36, 10]) - 1) / 2
    np.testing.assert_allclose(
        ct_affine[:3, :3] @ middle + ct_affine[:3, 3], centre_of_mass_mm(brain, affine), atol=1e-4
    )


def test_mean_and_standard_deviation_are_those_of_the_windowed_brain(tmp_path):
    brain, _ = patient(tmp_path)
    facts = run(tmp_path, tmp_path / "a", field_of_view_mm=[22, 20, 60], matrix=[44, 40, 12])
    hu, _ = read_volume(tmp_path / "ct.nii.gz")
    # Voxels as large as the native ones: the brain's rim, mixed with the background, widens the distribution a little.
    assert facts["mean_hu"] == pytest.approx(hu[brain].mean(), abs=1.5)
    assert facts["sd_hu"] == pytest.approx(hu[brain].std(), abs=1.5)


def test_same_bytes_again_and_without_haematoma(tmp_path):
    patient(tmp_path)
    run(tmp_path, tmp_path / "a")
    run(tmp_path, tmp_path / "b")
    facts = run(tmp_path, tmp_path / "c", haematoma=False)
    for name in ("ct.nii.gz", "brain.nii.gz", "haematoma.nii.gz", "facts.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "ct.nii.gz").read_bytes() == (tmp_path / "c" / "ct.nii.gz").read_bytes()
    assert not (tmp_path / "c" / "haematoma.nii.gz").exists()
    assert facts["haematoma_voxels"] is None
    assert facts["haematoma_inside_fraction"] is None


def test_bad_input(tmp_path):
    brain, _ = patient(tmp_path)
    write_volume(tmp_path / "brain.nii.gz", np.zeros_like(brain, np.uint8), NATIVE)
    with pytest.raises(InputError, match="empty"):
        run(tmp_path, tmp_path / "a")
    write_volume(tmp_path / "brain.nii.gz", brain.astype(np.uint8)[:-1], NATIVE)
    with pytest.raises(InputError, match="44 x 40 x 11 voxels"):
        run(tmp_path, tmp_path / "b")
    shifted = NATIVE.copy()
    shifted[0, 3] += 1
    write_volume(tmp_path / "brain.nii.gz", brain.astype(np.uint8), shifted)
    with pytest.raises(InputError, match="stands elsewhere"):
        run(tmp_path, tmp_path / "c")
    write_volume(tmp_path / "brain.nii.gz", brain.astype(np.uint8), NATIVE)
    write_volume(tmp_path / "ct.nii.gz", np.full(brain.shape, 40, np.int16), NATIVE)
    with pytest.raises(InputError, match="standard deviation of"):
        run(tmp_path, tmp_path / "d")
    for folder in "abcd":
        assert not list((tmp_path / folder).iterdir())


# ---------------------------------------------------------------- a predicted haematoma, back on the native grid

COARSE = np.diag([5.0, 5.0, 7.5, 1.0])
COARSE[:3, 3] = -27.5, -27.5, -26.25
TILTED = np.array([[0.0, 2.1, 0.0, -30.0], [-2.0, 0.1, 0.0, 31.0], [0.0, 0.3, 5.0, -28.0], [0, 0, 0, 1]])
TILTED[1, 2] = 1.4  # gantry tilt: slices shifted against each other


def box_mm(shape, affine, low, high):
    """Distance of every voxel to the nearest face of a box, mm; negative inside."""
    mm = grid_mm(affine, shape)
    return np.maximum(np.reshape(low, (3, 1, 1, 1)) - mm, mm - np.reshape(high, (3, 1, 1, 1))).max(0)


def test_a_box_comes_back_where_it_was_on_a_sheared_grid():
    grid_shape, native_shape = (8, 12, 12), (13, 30, 31)
    low, high = np.array([-12.0, -9.0, -14.0]), np.array([14.0, 17.0, 13.0])
    box = box_mm(grid_shape, COARSE, low, high) < 0
    native = resample_haematoma(box, COARSE, TILTED, native_shape)
    distance = box_mm(native_shape, TILTED, low, high)
    assert native[distance < -4.0].all() and not native[distance > 4.0].any()
    assert (distance < -4.0).sum() > 50
    ratio = abs(np.linalg.det(TILTED[:3, :3]) / np.linalg.det(COARSE[:3, :3]))
    assert native.sum() * ratio == pytest.approx(box.sum(), abs=1)


def test_the_same_grid_gives_the_same_haematoma_also_at_the_edge():
    mask = np.random.default_rng(1).integers(0, 2, (4, 5, 6)) > 0
    np.testing.assert_array_equal(resample_haematoma(mask, TILTED, TILTED, mask.shape), mask)


def test_whole_voxel_crops_and_shifts_come_back_exactly():
    mask = np.zeros((4, 6, 6), bool)
    mask[1:3, 2:6, 0:3] = True
    affine = TILTED.copy()
    affine[:3, 3] = TILTED[:3, :3] @ [7, 5, 2] + TILTED[:3, 3]  # the network's grid begins at native x 7, y 5, z 2
    native = resample_haematoma(mask, affine, TILTED, (9, 15, 16))
    expected = np.zeros((9, 15, 16), bool)
    expected[2:6, 5:11, 7:13] = mask
    np.testing.assert_array_equal(native, expected)


def test_nothing_is_claimed_outside_the_field_of_view():
    everywhere = np.ones((4, 4, 4), bool)
    native_affine = np.diag([0.5, 0.5, 0.5, 1.0])
    native_affine[:3, 3] = -2.25
    native = resample_haematoma(everywhere, np.eye(4), native_affine, (16, 16, 16))
    # Native voxels 4 to 11 lie between -0.5 and 3.5 mm, the field of view.
    expected = np.zeros((16, 16, 16), bool)
    expected[4:12, 4:12, 4:12] = True
    np.testing.assert_array_equal(native, expected)
