"""Markers of two readers, the BAT score, and markers computed from hand-made and synthetic haematomas."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from haemex.errors import InputError
from haemex.files import read_json
from haemex.marker_picture import COLOURS, OUTLINE
from haemex.markers import (
    FOCUS_SMOOTH_MM,
    MARKER_BITS,
    MARKERS,
    _foci,
    _noise,
    _noise_gain,
    _sharpened,
    agreement,
    bat_score,
    compute_markers,
    write_markers,
)
from haemex.nifti import read_volume, write_volume
from haemex.phantom import render_scan
from haemex.phantom_cohort import draw_patients
from haemex.phantom_haematoma import SIGN_BITS


def test_markers_are_those_of_table2():
    assert list(MARKERS) == (
        ["hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape", "heterogeneous_density"]
    )


def test_labels_are_printed_in_the_paper(shared):
    paper = "".join(path.read_text() for path in sorted((shared / "paper").iterdir()))
    table = paper[paper.index("**Table 2**") :]
    positions = [table.index(f"\n{label}\t") for label in MARKERS.values()]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("blend", "hypodensity", "hours", "score"),
    [
        (0, 0, 2.5, 0),
        (0, 0, 2.49, 2),
        (1, 0, 8, 1),
        (0, 1, 8, 2),
        (1, 1, 8, 3),
        (1, 0, 1, 3),
        (0, 1, 1, 4),
        (1, 1, 0, 5),
        (None, 1, 1, None),
        (1, None, 1, None),
        (1, 1, None, None),
        (1, 1, math.nan, None),
    ],
)
def test_bat_score(blend, hypodensity, hours, score):
    assert bat_score(blend, hypodensity, hours) == score


def test_agreement_by_hand():
    rows = [dict.fromkeys(MARKERS, 0) for _ in range(102)]
    # Blend sign: 40 both yes, 45 both no, 5 and 10 apart, kappa 0.7; two patients read once.
    first = [1] * 40 + [0] * 45 + [1] * 5 + [0] * 10 + [1, None]
    second = [1] * 40 + [0] * 45 + [0] * 5 + [1] * 10 + [None, 1]
    for row, a, b in zip(rows, first, second, strict=True):
        row["blend"], row["blend_rater2"] = a, b
        row["swirl_rater2"] = None
        row["fluid_level_rater2"] = 0
    table = agreement(rows)
    assert [(row["marker"], row["label"], row["n"]) for row in table] == [
        ("blend", "Blend sign", 100),
        ("fluid_level", "Fluid level", 102),
    ]
    assert table[0]["kappa"] == pytest.approx(0.7)
    assert table[0]["lower"] < 0.7 < table[0]["upper"] < 1
    narrower = agreement(rows, confidence=0.5)[0]
    assert table[0]["lower"] < narrower["lower"] < 0.7
    # Nobody ever saw a fluid level: chance alone agrees fully, and kappa does not exist.
    assert math.isnan(table[1]["kappa"])


def test_no_second_reading_no_agreement():
    assert agreement([dict.fromkeys(MARKERS, 1)]) == []
    assert agreement([]) == []


# ---------------------------------------------------------------------------------------------------- computed markers

SPACING = (5.0, 0.6, 0.6)
BLOOD, BRAIN = 62.0, 30.0


def clot(slices=5, radius_mm=16.0, spacing=SPACING, parts=(), shape=None, noise=0.0, blur_mm=0.5, size_mm=76.0, seed=0):
    """A round clot in brain, (hu, mask); `parts` paint it: functions of (mm down, mm across, slice) with their HU.

    Blood, with what is painted into it, is blurred within its slices as a scanner does.
    """
    rows, columns = (round(size_mm / mm) for mm in spacing[1:])
    z = np.arange(slices + 2)[:, None, None] - 1
    down = ((np.arange(rows) - (rows - 1) / 2) * spacing[1])[None, :, None]
    across = ((np.arange(columns) - (columns - 1) / 2) * spacing[2])[None, None, :]
    inside = down**2 + across**2 <= radius_mm**2 if shape is None else shape(down, across)
    mask = np.broadcast_to(inside, (slices + 2, rows, columns)) & (z >= 0) & (z < slices)
    hu = np.where(mask, BLOOD, BRAIN)
    for where, value in parts:
        hu = np.where(mask & where(down, across, z), value, hu)
    if blur_mm:
        hu = ndimage.gaussian_filter(hu, (0, blur_mm / spacing[1], blur_mm / spacing[2]))
    hu = hu + noise * np.random.default_rng(seed).normal(size=hu.shape)
    return np.rint(hu).astype(np.int16), mask


def disc(down_mm, across_mm, radius_mm, number=2):
    return lambda down, across, z: ((down - down_mm) ** 2 + (across - across_mm) ** 2 <= radius_mm**2) & (z == number)


def streak(half_mm, from_mm, number=2):
    """From a place inside out through the margin at the left."""
    return lambda down, across, z: (np.abs(down) <= half_mm) & (across <= from_mm) & (z == number)


def decide(*args, spacing=SPACING, **options):
    return compute_markers(*clot(*args, spacing=spacing, **options), spacing)


def present(found):
    return [marker for marker, one in found.items() if one["present"]]


FOCI = [disc(-6, -6, 2.5), disc(6, 0, 2.5), disc(-6, 6, 2.5)]
# A planted sign, whatever else the criteria make of it, and what it has to be found as.
PLANTED = {
    "nothing": ([], []),
    "hypodensity": ([(disc(0, 0, 3), 46)], ["hypodensity"]),
    "two foci": ([(part, 46) for part in FOCI[:2]], ["hypodensity"]),
    "three foci": ([(part, 46) for part in FOCI], ["hypodensity", "heterogeneous_density"]),
    "three foci elsewhere": ([(disc(-6, 0, 2.5, 1), 46), (disc(6, 0, 2.5, 2), 46), (disc(0, 6, 2.5, 3), 46)],
                             ["hypodensity"]),
    "black hole": ([(disc(0, 0, 4), 28)], ["hypodensity", "black_hole", "swirl"]),
    "streak": ([(streak(3, 2), 28)], ["swirl"]),
    "pale streak": ([(streak(3, 2), 46)], []),
    "blend": ([(lambda down, across, z: (across > 4) & (z >= 0), 38)], ["blend"]),
    "level": ([(lambda down, across, z: (down < -4) & (z >= 0), 18)], ["fluid_level"]),
    "level upside down": ([(lambda down, across, z: (down > 4) & (z >= 0), 18)], ["blend"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_signs_are_found_and_no_others(name):
    parts, expected = PLANTED[name]
    if name == "three foci elsewhere":  # the largest slice is one, the third; the others are a little smaller
        hu, mask = clot(parts=parts)
        for number in (1, 2, 4, 5):
            mask[number] = ndimage.binary_erosion(mask[number])
        found = compute_markers(hu, mask, SPACING)
    else:
        found = decide(parts=parts)
    assert present(found) == expected
    for marker, one in found.items():
        assert one["present"] in (0, 1)
        assert bool(one["voxels"].any()) == bool(one["present"]), marker


@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize("spacing", [(5.0, 0.45, 0.45), (5.0, 0.9, 0.9), (4.0, 0.5, 0.8), (2.5, 0.8, 0.5)])
@pytest.mark.parametrize("name", ["nothing", "hypodensity", "three foci", "black hole", "streak", "blend", "level"])
def test_noise_and_pixels_change_no_decision(name, spacing, noise):
    parts, expected = PLANTED[name]
    assert present(decide(parts=parts, spacing=spacing, noise=noise)) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [(name, PLANTED[name][1]) for name in ("nothing", "black hole", "level")]
)
def test_coarse_pixels_of_noise_change_no_decision(name, expected):
    assert present(decide(parts=PLANTED[name][0], spacing=(5.0, 1.4, 1.4), noise=5.0)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_is_no_marker(seed):
    for pixel, noise in ((0.45, 5.0), (0.9, 4.0), (1.4, 3.0)):
        found = decide(slices=3, spacing=(5.0, pixel, pixel), noise=noise, seed=seed, radius_mm=22.0)
        assert present(found) == []


@pytest.mark.parametrize(
    ("marker", "parts", "met"),
    [
        ("hypodensity", [(disc(0, 0, 4), BLOOD - 9)], 1),
        ("hypodensity", [(disc(0, 0, 4), BLOOD - 6)], 0),
        ("hypodensity", [(disc(0, 0, 3), 46), (disc(0, 0, 1.2), BLOOD)], 1),  # a ring is encapsulated, too
        ("black_hole", [(disc(0, 0, 5), BLOOD - 30)], 1),
        ("black_hole", [(disc(0, 0, 5), BLOOD - 27)], 0),
        ("black_hole", [(streak(4, 2), BLOOD - 34)], 0),  # connected with the surface
        ("swirl", [(disc(0, 0, 4), BRAIN + 4)], 1),
        ("swirl", [(disc(0, 0, 4), BRAIN + 9)], 0),
        ("blend", [(lambda down, across, z: across > 3, BLOOD - 20)], 1),
        ("blend", [(lambda down, across, z: across > 3, BLOOD - 16)], 0),
        ("blend", [(disc(0, 0, 8), BLOOD - 24)], 0),  # enclosed
        ("fluid_level", [(lambda down, across, z: down < -3, BRAIN - 4)], 1),
        ("fluid_level", [(lambda down, across, z: down < -3, BRAIN + 4)], 0),  # not hypodense to brain
        ("fluid_level", [(lambda down, across, z: down < -3 + 0.12 * across, 18)], 1),  # 7 degrees
        ("fluid_level", [(lambda down, across, z: down < -3 + 0.5 * across, 18)], 0),  # 27 degrees
        ("fluid_level", [(lambda down, across, z: down < -3 - 0.06 * across**2, 18)], 0),  # bent
    ],
)
def test_a_criterion_just_met_and_just_missed(marker, parts, met):
    assert decide(parts=parts)[marker]["present"] == met


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("pixel", [0.6, 0.9])
@pytest.mark.parametrize("hu", [46, 48])
def test_foci_on_the_shoulder_of_a_black_hole_are_told_apart(hu, pixel, noise):
    """1.4 mm of blood between them, blurred: before unsharp masking, only the hole is a minimum of the density."""
    parts = [(disc(0, -2.5, 2.6), 26)]
    parts += [(disc(6.1 * np.sin(turn), -2.5 + 6.1 * np.cos(turn), 2.1), hu) for turn in (-0.55, 0.55)]
    look = {"radius_mm": 9.5, "spacing": (5.0, pixel, pixel), "noise": noise, "blur_mm": 0.9}
    found = decide(parts=parts, **look)["heterogeneous_density"]
    assert (found["present"], found["measures"]["foci"]) == (1, 3)
    assert decide(parts=parts[:2], **look)["heterogeneous_density"]["measures"]["foci"] == 2


@pytest.mark.parametrize("seed", [0, 2])
def test_the_texture_of_a_large_clot_is_no_heterogeneous_density(seed):
    """Many places, many chances: three dips of 4 HU are to be expected somewhere."""
    spacing = (5.0, 0.9, 0.9)
    hu, mask = clot(slices=1, radius_mm=24.0, spacing=spacing, noise=3.5, seed=seed)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed + 50).normal(size=hu.shape), (0, 2 / 0.9, 2 / 0.9))
    hu = np.rint(hu + 2.0 * texture / texture.std()).astype(np.int16)
    assert compute_markers(hu, mask, spacing)["heterogeneous_density"]["present"] == 0


def test_unsharp_masking_gains_as_much_noise_as_is_expected():
    noise = np.random.default_rng(0).normal(0, 4.0, (400, 400))
    section = {"raw": noise, "mask": np.ones(noise.shape, bool), "pixel": np.array([0.45, 0.45])}
    section["depth"] = np.full(noise.shape, 9.0)
    inner = np.s_[20:-20, 20:-20]
    assert _sharpened(section)[inner].std() == pytest.approx(
        _noise([section], FOCUS_SMOOTH_MM) * _noise_gain(), rel=0.05
    )
    # What is flat stays as it is, up to the margin.
    flat = section | {"raw": np.full(noise.shape, 60.0), "mask": noise > 0}
    np.testing.assert_allclose(_sharpened(flat)[noise > 0], 60.0)


def test_a_gradient_is_no_blend():
    hu, mask = clot()
    slope = np.linspace(-1, 1, hu.shape[2]) * 60
    found = compute_markers(np.where(mask, hu + np.rint(slope).astype(int), hu), mask, SPACING)
    assert found["blend"]["measures"]["difference_hu"] > 18
    assert found["blend"]["present"] == 0


def test_measures_are_those_that_were_painted():
    found = decide(parts=[(disc(0, 0, 5), 28)])
    hole = found["black_hole"]["measures"]
    assert hole["slice"] == 3
    assert hole["inside_hu"] == pytest.approx(28, abs=1)
    assert hole["around_hu"] == pytest.approx(BLOOD, abs=1)
    assert hole["difference_hu"] == pytest.approx(34, abs=1.5)
    assert found["swirl"]["measures"]["brain_hu"] == BRAIN
    assert hole["area_mm2"] == pytest.approx(np.pi * 25, rel=0.1)
    voxels = found["black_hole"]["voxels"]
    painted = clot(parts=[(disc(0, 0, 5), 1000)], blur_mm=0)[0] == 1000
    assert 2 * (voxels & painted).sum() / (voxels.sum() + painted.sum()) > 0.93

    found = decide(parts=PLANTED["blend"][0])
    assert found["blend"]["measures"]["low_hu"] == pytest.approx(38, abs=1)
    assert found["blend"]["measures"]["high_hu"] == pytest.approx(BLOOD, abs=1)
    found = decide(parts=PLANTED["level"][0])["fluid_level"]
    assert found["measures"]["above_hu"] == pytest.approx(18, abs=1)
    assert found["measures"]["below_hu"] == pytest.approx(BLOOD, abs=1)
    assert found["measures"]["line_deg"] == 0
    assert found["measures"]["line_mm"] == pytest.approx(2 * (16**2 - 4**2) ** 0.5, abs=4)  # without the rim


def lobes(count, size_mm, out_mm=17.0, radius_mm=15.0):
    """A circle with lobules on its margin, or satellites off it."""

    def shape(down, across):
        inside = down**2 + across**2 <= radius_mm**2
        for number in range(count):
            angle = 0.3 + 2 * np.pi * number / 4
            at = out_mm * np.sin(angle), out_mm * np.cos(angle)
            inside |= (down - at[0]) ** 2 + (across - at[1]) ** 2 <= size_mm**2
        return inside

    return shape


@pytest.mark.parametrize(
    ("shape", "irregularities"),
    [
        (lobes(0, 4), 0),
        (lobes(1, 4), 1),
        (lobes(2, 4), 2),
        (lobes(4, 4), 4),
        (lobes(1, 2.5, out_mm=21), 1),  # separate
        (lobes(3, 2.5, out_mm=21), 3),
        (lobes(3, 0.8, out_mm=21), 0),  # specks
        (lambda down, across: (down / 20) ** 2 + (across / 8) ** 2 <= 1, 0),  # the ends of an ellipse
        (lambda down, across: (down**2 + across**2 <= 225) & (down**2 + (across - 18) ** 2 > 100), 1),  # one dent
    ],
)
@pytest.mark.parametrize("pixel", [0.45, 0.9])
def test_irregularities_are_counted(shape, irregularities, pixel):
    found = decide(shape=shape, spacing=(5.0, pixel, pixel))["irregular_shape"]
    assert found["measures"]["irregularities"] == irregularities
    assert found["present"] == (irregularities >= 2)


def test_shape_is_judged_on_the_largest_slice():
    smooth, mask = clot(radius_mm=20)
    rough = clot(shape=lobes(4, 4, out_mm=14, radius_mm=12))[1]
    mask[2] = rough[2]
    assert compute_markers(smooth, mask, SPACING)["irregular_shape"]["present"] == 0
    mask = np.where(np.arange(7)[:, None, None] == 2, clot(radius_mm=20)[1], rough)
    assert compute_markers(smooth, mask, SPACING)["irregular_shape"]["measures"]["slice"] == 2


def test_up_is_where_the_affine_says():
    """The same voxels, but the file's rows run from back to front: the liquid would lie below the sediment."""
    hu, mask = clot(parts=PLANTED["level"][0])
    _, rows, columns = SPACING
    supine = np.diag([-columns, -rows, SPACING[0], 1.0])
    other = np.diag([-columns, rows, SPACING[0], 1.0])
    assert compute_markers(hu, mask, supine)["fluid_level"]["present"] == 1
    assert compute_markers(hu, mask, other)["fluid_level"]["present"] == 0
    assert compute_markers(hu[:, ::-1], mask[:, ::-1], other)["fluid_level"]["present"] == 1
    # Rows and columns swapped: up is along the columns.
    turned = np.zeros((4, 4))
    turned[[1, 0, 2, 3], [0, 1, 2, 3]] = [-rows, -columns, SPACING[0], 1.0]
    swapped = compute_markers(hu.transpose(0, 2, 1), mask.transpose(0, 2, 1), turned)
    assert swapped["fluid_level"]["present"] == 1
    # Slices that lie level show no level.
    flat = np.zeros((4, 4))
    flat[[0, 2, 1, 3], [0, 1, 2, 3]] = [-columns, -rows, SPACING[0], 1.0]
    assert compute_markers(hu, mask, flat)["fluid_level"]["present"] is None


def test_a_tilted_gantry_changes_nothing():
    hu, mask = clot(parts=PLANTED["level"][0])
    tilt = np.radians(18)
    affine = np.diag([-0.6, -0.6 * np.cos(tilt), 5 / np.cos(tilt), 1.0])
    affine[2, 1] = 0.6 * np.sin(tilt)
    assert present(compute_markers(hu, mask, affine)) == ["fluid_level"]


@pytest.mark.parametrize("name", ["three foci", "black hole", "streak", "blend", "level"])
def test_mirrored_scans_have_the_same_markers(name):
    hu, mask = clot(parts=PLANTED[name][0], noise=3.0)
    affine = np.diag([-0.6, -0.6, 5.0, 1.0])
    found = compute_markers(hu, mask, affine)
    for axis in range(3):
        mirrored = affine.copy()
        mirrored[:, 2 - axis] *= -1
        other = compute_markers(np.flip(hu, axis), np.flip(mask, axis), mirrored)
        assert present(other) == present(found) == PLANTED[name][1]
        for marker in MARKERS:
            np.testing.assert_array_equal(np.flip(other[marker]["voxels"], axis), found[marker]["voxels"])


@settings(max_examples=5, deadline=None)
@given(
    move=st.tuples(st.integers(0, 3), st.integers(-9, 9), st.integers(-9, 9)),
    name=st.sampled_from(["three foci", "black hole", "streak", "blend", "level"]),
    origin=st.floats(-200, 200),
)
def test_where_the_haematoma_lies_does_not_matter(move, name, origin):
    hu, mask = clot(parts=PLANTED[name][0], noise=3.0, slices=4)
    found = compute_markers(hu, mask, SPACING)
    affine = np.diag([-0.6, -0.6, 5.0, 1.0])
    affine[:3, 3] = origin
    wide = [(move[0], 3 - move[0]), *((10 + by, 10 - by) for by in move[1:])]
    moved = compute_markers(np.pad(hu, wide, mode="edge"), np.pad(mask, wide), affine)
    window = tuple(slice(low, low + size) for (low, _), size in zip(wide, hu.shape, strict=True))
    for marker in MARKERS:
        assert moved[marker]["present"] == found[marker]["present"]
        np.testing.assert_array_equal(moved[marker]["voxels"][window], found[marker]["voxels"])
        assert moved[marker]["voxels"].sum() == found[marker]["voxels"].sum()


@settings(max_examples=5, deadline=None)
@given(by=st.integers(-4, 4), name=st.sampled_from(["three foci", "black hole", "streak", "blend"]))
def test_a_scanner_that_is_off_by_some_hu_changes_no_decision(by, name):
    """Every criterion compares blood with blood or with the brain beside it; none is a fixed density."""
    hu, mask = clot(parts=PLANTED[name][0], noise=3.0)
    assert present(compute_markers(hu + by, mask, SPACING)) == PLANTED[name][1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.3))
def test_any_mask_is_survived_and_what_decided_lies_in_it(seed, share):
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1024, 2000, (4, 23, 19)).astype(np.int16)
    mask = ndimage.binary_dilation(rng.random(hu.shape) < share / 9, iterations=int(rng.integers(1, 3)))
    found = compute_markers(hu, mask, (5.0, 0.9, 0.7))
    assert list(found) == list(MARKERS)
    for one in found.values():
        assert one["present"] in (0, 1, None)
        assert not one["voxels"][~mask].any()
        assert bool(one["voxels"].any()) == bool(one["present"])
        json.dumps(one["measures"], allow_nan=False)


def test_what_cannot_be_decided_is_none():
    hu, mask = clot()
    nothing = compute_markers(hu, np.zeros_like(mask), SPACING)
    assert {one["present"] for one in nothing.values()} == {None}
    # Nothing but rim: a clot of 5 mm has a shape at most.
    small = decide(radius_mm=2.5)
    assert {marker: one["present"] for marker, one in small.items()} == dict.fromkeys(MARKERS) | {"irregular_shape": 0}
    assert decide(radius_mm=1.0)["irregular_shape"]["present"] is None
    # A picture that ends at the haematoma shows no brain to compare with.
    hu, mask = clot(parts=PLANTED["streak"][0])
    hu[~mask] = -1024
    blind = compute_markers(hu, mask, SPACING)
    assert (blind["swirl"]["present"], blind["fluid_level"]["present"]) == (None, None)
    assert blind["hypodensity"]["present"] == 0
    with pytest.raises(ValueError, match="not of one"):
        compute_markers(hu, mask[1:], SPACING)
    with pytest.raises(ValueError, match="neither an affine nor"):
        compute_markers(hu, mask, np.zeros((4, 4)))


def test_one_slice_is_enough():
    found = decide(slices=1, parts=[(disc(0, 0, 4, 0), 28)])
    assert present(found) == ["hypodensity", "black_hole", "swirl"]


def test_a_basin_is_as_deep_as_its_lowest_way_out():
    """By hand: two places joined by a saddle, and a way out of the haematoma; the deeper place reaches the way out."""
    smooth = np.full((9, 13), 60.0)
    smooth[4, 3], smooth[4, 9] = 30.0, 40.0
    smooth[4, 4:9] = 50.0  # between the two
    smooth[:4, 9] = 55.0  # from the second up to the margin
    mask = np.ones((9, 13), bool)
    section = {"mask": mask, "pixel": np.array([2.0, 2.0])}
    foci = _foci(section, smooth, 40.0, 5.0)
    assert [focus["depth_hu"] for focus in foci] == [25.0, 10.0]
    assert [tuple(np.argwhere(focus["region"])[0]) for focus in foci] == [(4, 3), (4, 9)]
    assert [focus["depth_hu"] for focus in _foci(section, smooth, 52.0, 5.0)] == [25.0]  # 50 HU are no blood
    assert [focus["depth_hu"] for focus in _foci(section, smooth, 40.0, 12.0)] == [25.0]


def write_case(folder, parts, flip=False):
    hu, mask = clot(parts=parts)
    affine = np.diag([-0.6, -0.6, -5.0 if flip else 5.0, 1.0])
    write_volume(folder / "ct.nii.gz", hu, affine)
    write_volume(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
    return hu, mask, affine


def run(folder, **other):
    read = dict.fromkeys(MARKERS) | {"hypodensity": 1, "blend": 1, "swirl": 1}
    write_markers(
        **{"patient": "P1", "ct_path": folder / "ct.nii.gz", "haematoma_path": folder / "mask.nii.gz"},
        **{"json_out": folder / "P1.json", "voxels_out": folder / "P1.nii.gz", "png_out": folder / "P1.png"},
        **({"onset_to_ct_h": 2.0, "read": read} | other),
    )
    return read_json(folder / "P1.json")


def test_the_stage_writes_decisions_voxels_and_a_picture(tmp_path):
    hu, mask, affine = write_case(tmp_path, PLANTED["black hole"][0])
    written = run(tmp_path)
    found = compute_markers(hu, mask, affine)
    assert {marker: one["present"] for marker, one in written["markers"].items()} == {
        marker: one["present"] for marker, one in found.items()
    }
    assert written["markers"]["black_hole"]["measures"]["slice"] == 4  # from 1
    assert written["markers"]["black_hole"]["read"] is None
    assert written["disagreements"] == ["blend"]
    evidence = {marker: one["evidence"] for marker, one in written["markers"].items()}
    hole = written["markers"]["black_hole"]["measures"]
    assert evidence["black_hole"] == (
        f"{hole['inside_hu']:.0f} HU inside, 62 around, difference {hole['difference_hu']:.0f} (28 asked); slice 4"
    )
    # Of what is absent too: how far it was from being there. Nothing was measured that could be a blend sign.
    assert evidence["heterogeneous_density"].startswith("foci: 1 (3 asked), standard deviation ")
    assert evidence["blend"] == ""
    assert (written["bat_score"], written["bat_score_read"]) == (4, 5)
    bits, where = read_volume(tmp_path / "P1.nii.gz")
    np.testing.assert_allclose(where, affine)
    assert bits.dtype == np.uint8
    assert set(np.unique(bits)) == {0, 1 + 2 + 4} | set(np.unique(bits)) & {1, 3, 4, 5}
    for marker, one in found.items():
        np.testing.assert_array_equal((bits & MARKER_BITS[marker]) > 0, one["voxels"])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("P1.*")}
    run(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("P1.*")}
    with Image.open(tmp_path / "P1.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(256)}
        assert picture.size[0] < 2000
    assert {COLOURS[marker] for marker in ("hypodensity", "black_hole", "swirl")} | {OUTLINE} <= colours


def test_slices_count_from_the_foot_and_missing_values_stay_missing(tmp_path):
    write_case(tmp_path, PLANTED["black hole"][0], flip=True)
    written = run(tmp_path, onset_to_ct_h=math.nan, read={})
    assert written["markers"]["black_hole"]["measures"]["slice"] == 4  # of 7; 3rd of the file
    assert (written["bat_score"], written["bat_score_read"], written["onset_to_ct_h"]) == (None, None, None)
    assert written["disagreements"] == []


def test_an_empty_mask_is_refused(tmp_path):
    _, mask, affine = write_case(tmp_path, [])
    write_volume(tmp_path / "mask.nii.gz", np.zeros(mask.shape, np.uint8), affine)
    with pytest.raises(InputError, match="empty"):
        run(tmp_path)
    assert not list(tmp_path.glob("P1*"))


def test_bits_are_those_of_the_truth_of_synthetic_patients():
    assert MARKER_BITS == SIGN_BITS


@pytest.mark.slow
def test_accuracy_on_synthetic_patients_that_were_not_used_in_development():
    """Sensitivity and specificity at least 0.95, for what the eye judges more freely at least 0.9.

    Developed on seeds 1000 to 1003, 2000, 2001, 3000 and 4000. With seed 5000 this one was looked at once, afterwards;
    of heterogeneous densities 45 of 47 and 45 of 48 were found.
    """
    seed, matrix = 6000, 256
    counts = {marker: np.zeros((2, 2), int) for marker in MARKERS}
    for patient in draw_patients({"train": 50, "test": 50, "excluded_each": 0, "matrix": matrix}, seed):
        if patient["truth"]["reason"]:
            continue
        one = render_scan(patient, "baseline", matrix, seed)
        scan = one["scan"]
        affine = np.eye(4)
        to_ras = np.array([-1, -1, 1])
        affine[:3, 0], affine[:3, 1] = (
            scan["pixel_mm"] * to_ras * scan[name] for name in ("row_direction", "column_direction")
        )
        affine[:3, 2] = (scan["origins"][1] - scan["origins"][0]) * to_ras
        found = compute_markers(one["hu"], one["mask"], affine)
        for marker in MARKERS:
            counts[marker][int(patient["row"][marker]), found[marker]["present"]] += 1
    for marker, ((right_no, wrong_yes), (wrong_no, right_yes)) in counts.items():
        bar = 0.9 if marker in ("swirl", "irregular_shape", "heterogeneous_density") else 0.95
        assert right_yes >= bar * (right_yes + wrong_no), (marker, counts[marker])
        assert right_no >= bar * (right_no + wrong_yes), (marker, counts[marker])
