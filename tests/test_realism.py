"""The measures of realism on images whose answers are known."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from haemex import realism
from haemex.convert import read_dicom_scan
from haemex.errors import InputError
from haemex.realism import Head

PIXEL = 0.8
AXIS = (np.arange(250) - 124.5) * PIXEL  # of the balls below, mm


def ball_head(
    sigma_mm=0.0, noise=0.0, skull=6.0, scalp=5.0, brain_hu=None, slices=14, step_mm=5.0, seed=0, pixel=PIXEL
):
    """A ball of brain (radius 70 mm) in a shell of bone (1000 HU) in a scalp (20 HU), cut off at its middle."""
    count = round(200 / pixel)
    axis = (np.arange(count) - (count - 1) / 2) * pixel
    height = 0.5 + np.arange(slices) * step_mm
    r = np.sqrt(height[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    inner = np.full(r.shape, 35.0) if brain_hu is None else np.broadcast_to(brain_hu, r.shape)
    hu = np.where(r < 70, inner, np.where(r < 70 + skull, 1000.0, np.where(r < 70 + skull + scalp, 20.0, -1000.0)))
    if sigma_mm:
        hu = ndimage.gaussian_filter(hu, (0, sigma_mm / pixel, sigma_mm / pixel))
    hu = hu + np.random.default_rng(seed).normal(0, noise, hu.shape) if noise else hu
    return Head(
        hu.astype(np.float32), pixel, height, np.full(slices, step_mm), r < 70, np.zeros(r.shape, bool)
    )  # fmt: skip


def noise_of(head):
    light, depth = realism.smooth(head, 0.8), realism.depth_mm(head)
    return realism._noise(head, light, depth, depth > 3)


def test_skull_and_scalp_of_a_ball_are_as_thick_as_they_were_made():
    # The rays leave the ball obliquely above its equator: the correction for that is part of the answer.
    found = realism._skull(ball_head(skull=6.0, scalp=5.0, pixel=0.5))
    assert found["skull thickness"] == pytest.approx(6.0, abs=0.25)
    assert found["scalp thickness"] == pytest.approx(5.0, abs=0.3)
    assert found["skull thickness, SD over the vault"] < 0.4
    assert found["outline, left against right"] < 0.1
    assert found["outline, finer than 6 waves"] < 0.15


def test_thickness_of_one_side_is_found_there():
    head = ball_head(skull=5.0)
    axis = AXIS
    r = np.sqrt(head.position_mm[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    head.hu[(r >= 75) & (r < 79) & (np.broadcast_to(axis[:, None], (250, 250)) > 60)] = 1000  # rows run to the back
    found = realism._skull(head)
    assert found["skull thickness, occipital"] > 6.5
    assert found["skull thickness, frontal"] == pytest.approx(5.0, abs=0.3)


def test_size_of_the_skull():
    found = realism._skull(ball_head(skull=6.0))
    widest = 2 * np.sqrt(76**2 - 0.5**2)
    below = 2 * np.sqrt(76**2 - 20.5**2)  # the vault begins 20 mm above the cut, which the measures do not reach
    assert below - 2 < found["skull length"] <= widest + 0.5
    assert found["skull breadth"] == pytest.approx(found["skull length"], abs=0.5)


@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_edge_width_of_a_blurred_edge(sigma):
    # From 10 to 90 % a Gaussian edge takes 2 * 1.2816 sigma.
    x = np.arange(-10, 10, 0.05)
    edge = 35 + 965 * ndimage.gaussian_filter1d((x > 0.01).astype(float), sigma / 0.05)
    assert realism.edge_width(edge, 35, 1000, 0.05) == pytest.approx(2.563 * sigma, rel=0.02)


def test_edge_width_of_what_is_no_edge():
    assert np.isnan(realism.edge_width(np.full(50, 35.0), 35, 1000))


def test_blurred_heads_have_wider_edges():
    sharp, soft = (realism._skull(ball_head(sigma_mm=sigma, pixel=0.5))["edge width, skin"] for sigma in (0.4, 0.9))
    assert soft - sharp > 0.7


@pytest.mark.parametrize("noise", [2.0, 4.5])
def test_noise_level_and_flat_spectrum_of_white_noise(noise):
    head = ball_head(noise=noise)
    found = noise_of(head)
    assert found["noise SD"] == pytest.approx(noise, rel=0.05)
    assert found["noise correlation of neighbouring pixels"] == pytest.approx(0, abs=0.03)
    assert found["noise correlation of neighbouring slices"] == pytest.approx(0, abs=0.03)
    patches, places = realism.noise_patches(head)
    spectrum = realism.noise_power(patches, PIXEL)
    assert spectrum[3:11] == pytest.approx(noise**2 * PIXEL**2, rel=0.1)
    assert len(places) == len(patches) > 4


def test_noise_is_found_between_structures():
    # Stripes of 6 HU cover half of the brain; the flat half is where noise is measured.
    x = AXIS
    stripes = 35 + np.where(x > 0, 6 * np.sign(np.sin(2 * np.pi * x / 12)), 0)
    head = ball_head(noise=3.0, brain_hu=stripes)
    patches, places = realism.noise_patches(head)
    assert max(x[first] for _, _, first in places) < 0
    assert np.median(patches.std((1, 2))) == pytest.approx(3.0, rel=0.05)


def test_noise_that_goes_on_from_slice_to_slice_is_told():
    head = ball_head()
    head.hu += np.random.default_rng(1).normal(0, 3, head.hu.shape[1:]).astype(np.float32)
    assert noise_of(head)["noise correlation of neighbouring slices"] > 0.95


def test_spectrum_of_smoothed_noise():
    sigma = 0.7  # mm: power falls as exp(-(2 pi sigma f)^2)
    noise = np.random.default_rng(0).normal(0, 5, (300, 64, 64))
    patches = ndimage.gaussian_filter(noise, (0, sigma / 0.5, sigma / 0.5), mode="wrap")
    spectrum = realism.noise_power(patches, 0.5)
    # The mean over a ring, by a fine sum.
    fine = np.linspace(realism.NPS_BINS[:-1], realism.NPS_BINS[1:], 50)
    expected = (fine * 25 * 0.5**2 * np.exp(-((2 * np.pi * sigma * fine) ** 2))).sum(0) / fine.sum(0)
    assert spectrum[1:7] == pytest.approx(expected[1:7], rel=0.12)
    _, mean, above = realism.spectrum_measures(expected)
    # In the plane the frequencies are Rayleigh: mean sqrt(pi) / 2 / (2 pi sigma), exp(-(pi sigma)^2) above 0.5.
    # The rings begin at 0.05 lp/mm: 5 % of the power lie below.
    assert mean == pytest.approx(np.sqrt(np.pi) / 2 / (2 * np.pi * sigma), rel=0.06)
    assert above == pytest.approx(np.exp(-((np.pi * sigma) ** 2)), abs=0.002)


def test_detrend_takes_off_a_bowl_and_nothing_else():
    y, x = np.mgrid[:20, :20]
    bowl = 3 + 0.2 * x - 0.1 * y + 0.03 * (x - 8) ** 2
    assert np.abs(realism.detrend(bowl)).max() < 1e-6
    wave = np.cos(2 * np.pi * x / 4)
    assert np.corrcoef(realism.detrend(wave + bowl).ravel(), wave.ravel())[0, 1] > 0.99


def test_grey_and_white_are_parted():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(29, 1.2, 60000), rng.normal(36.5, 1.2, 40000)])
    white, grey, share = realism.grey_and_white(values)
    assert (white, grey) == pytest.approx((29, 36.5), abs=0.1)
    assert share == pytest.approx(0.4, abs=0.02)
    assert np.isnan(realism.grey_and_white(values[:50])).all()


def test_fluid_and_volumes_are_those_that_were_made():
    axis = AXIS
    z = (0.5 + np.arange(14) * 5.0)[:, None, None]
    pool = (axis[:, None] ** 2 + axis**2 < 20**2) & (z < 40)
    head = ball_head(brain_hu=np.where(pool, 6.0, 33.0))
    found = realism.measure(head)
    volume = head.brain.sum() * PIXEL**2 * 5 / 1000
    assert found["intracranial volume"] == pytest.approx(volume)
    shown = pool & head.brain & ((head.below_vertex_mm() >= 25) & (head.below_vertex_mm() <= 76))[:, None, None]
    assert found["ventricles"] == pytest.approx(shown.sum() * PIXEL**2 * 5 / 1000, rel=0.12)
    assert found["fluid in the skull"] == pytest.approx(pool.sum() / head.brain.sum(), rel=0.05)
    assert found["fluid"] == 6
    assert found["brain mean"] == pytest.approx(33, abs=0.3)


def test_what_is_left_out_changes_no_density():
    head = ball_head(noise=1.0)
    before = realism.measure(head)
    blood = np.zeros(head.hu.shape, bool)
    blood[3:6, 110:135, 150:175] = True
    head.hu[blood] += 13
    spoilt = realism.measure(head)
    head.left_out = realism.around(blood, realism.LESION_REACH_MM, PIXEL)
    after = realism.measure(head)
    for name in ("brain SD", "brain mean", "gradient in brain, 99th percentile", "brain, left against right"):
        assert after[name] == pytest.approx(before[name], rel=0.05)
    assert spoilt["gradient in brain, 99th percentile"] > 1.5 * before["gradient in brain, 99th percentile"]


def test_a_haematoma_reaches_further_in_its_slice_than_through_it():
    mask = np.zeros((7, 60, 60), bool)
    mask[3, 30, 30] = True
    grown = realism.around(mask, 5.0, 1.0)
    assert grown.any((1, 2)).tolist() == [False, False, True, True, True, False, False]
    assert grown[3].sum() == 81  # lattice points in a circle of radius 5
    assert (grown[2] == grown[3]).all()


def test_one_darker_side_is_an_asymmetry():
    x = AXIS
    even, uneven = (realism._symmetry(ball_head(brain_hu=hu)) for hu in (33.0, np.where(x > 0, 30.0, 36.0)))
    assert even["brain, left against right"] < 0.1
    assert uneven["brain, left against right"] == pytest.approx(6.0, abs=1.0)


def test_radial_and_tangential_sulci_are_told_apart():
    axis = AXIS
    angle, radius = np.arctan2(axis[:, None], axis), np.hypot(axis[:, None], axis)
    name = "sulci, across / along the rim"
    heads = (ball_head(brain_hu=33 + 4 * wave) for wave in (np.cos(24 * angle), np.cos(radius / 2)))
    radial, ringed = (realism._edges_of_brain(head, realism.depth_mm(head))[name] for head in heads)
    assert radial > 2 > 0.5 > ringed


def test_width_of_a_stripe():
    mask = np.zeros((1, 200, 200), bool)
    y, x = np.mgrid[:200, :200]
    mask[0] = np.abs((x + 0.45 * y - 140) / np.hypot(1, 0.45)) < 4  # 8 pixels of 0.5 mm
    assert realism._chord(mask, 0.5) == pytest.approx(4.0, rel=0.15)


def test_compare_says_what_lies_outside_and_what_is_unknown():
    real = dict.fromkeys(realism.MEASURES, 10.0)
    heads = [real | {"white matter": 28.0, "brain SD": 30.0, "fluid": np.nan, "intracranial volume": 1500.0}] * 2
    rows = {row["measure"]: row for row in realism.compare(real, heads, [{"sex": "m", "age": 70}] * 2)}
    assert rows["white matter"]["verdict"] == "inside"
    assert rows["brain SD"]["verdict"] == "outside"
    assert rows["brain SD"]["plausible"] == "6.67 to 15"
    assert rows["fluid"]["verdict"] == "unknown"
    assert rows["intracranial volume, men"]["verdict"] == "inside"
    assert rows["intracranial volume, women"]["verdict"] == "unknown"
    assert {name for name, row in rows.items() if row["reference"] == ""} <= {
        name for name, one in realism.MEASURES.items() if one.low is not None
    }


def test_every_measure_has_its_plausible_range():
    assert set(realism.measure(ball_head(noise=2.0))) == set(realism.MEASURES)


def test_a_head_without_brain_is_refused():
    head = ball_head()
    head.brain[:] = False
    with pytest.raises(InputError, match="no brain"):
        realism.measure(head)


def test_reading_keeps_left_and_right_and_the_order_of_slices(write_series, tmp_path, monkeypatch):
    stored = np.full((8, 120, 120), 24, np.int16)
    stored[:, 20:100, 20:100] = 1024 + 35
    stored[:, 30:40, 85:95] = 1024 + 300  # anterior, on the patient's left
    stored[6:, 60:70, 60:70] = 1024 + 500  # towards the head
    folder = write_series(tmp_path / "s", np.arange(8) * 20.0, stored, spacing=(1.6, 1.6))
    monkeypatch.setattr(realism, "find_brain", lambda hu, affine, gap: (hu > 0, [0.0]))
    head = realism.read_head(folder, about={"name": "x"})
    assert head.position_mm == pytest.approx(np.arange(8) * 20.0 + head.position_mm[0])
    _, y, x = head.hu.shape
    dense = np.argwhere(head.hu[0] == 300).mean(0)
    assert dense[0] < y / 2 and dense[1] > x / 2
    assert (head.hu[-1] == 500).any() and not (head.hu[0] == 500).any()
    assert head.pixel_mm == pytest.approx(1.6)
    assert head.about == {"name": "x"}


@pytest.mark.slow
def test_synthetic_heads_measure_like_heads(shared, tmp_path):
    import importlib.util

    from haemex.provenance import ROOT

    spec = importlib.util.spec_from_file_location("benchmark", Path(ROOT, "benchmarks/realism.py"))
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    with tarfile.open(shared / "data/head_ge_tilt_uneven.tar.xz") as tar:
        tar.extractall(tmp_path / "real", filter="data")
    heads = list(benchmark.synthetic_heads(3, 512, 1, tmp_path / "synthetic"))
    rows = realism.compare(
        realism.measure(realism.read_head(tmp_path / "real")),
        [realism.measure(head) for head in heads],
        [head.about for head in heads],
    )
    outside = [row["measure"] for row in rows if row["verdict"] == "outside"]
    assert len(outside) <= 0.1 * len(rows), outside


def test_the_reader_is_the_workflow_s_own(shared, tmp_path):
    with tarfile.open(shared / "data/head_ge_tilt_uneven.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    head = realism.read_head(tmp_path)
    hu, _ = read_dicom_scan(tmp_path, 5.0)
    assert len(head.hu) == len(hu) == 28
    assert head.extent_mm[-1] == pytest.approx(7.0, abs=0.01)
    assert (
        1200 < realism._volumes(head, realism.smooth(head, 0.8), realism.depth_mm(head))["intracranial volume"] < 1700
    )
