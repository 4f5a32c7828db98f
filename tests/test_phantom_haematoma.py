"""Haematomas of synthetic patients: exact volumes, signs that measure as planted, growth, oedema, second readers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import ConvexHull

from haemex import phantom_cohort, phantom_haematoma
from haemex.errors import InputError
from haemex.markers import MARKERS
from haemex.phantom_fields import rotation, soft
from haemex.phantom_haematoma import (
    SIGN_BITS,
    SITES,
    at_timepoint,
    ball_radius,
    draw_haematoma,
    grow,
    growth_on,
    lay,
    lay_ventricular_blood,
    place_signs,
    room,
    second_reading,
    settle,
    sign_voxels,
)
from haemex.phantom_planes import plane, points
from haemex.segmentation_metrics import dice

HEAD = {"scale": np.array([0.92, 0.9, 0.93])}
BRAIN_HU = 33.0


def anywhere(x, y, z):
    return np.ones(np.shape(x), bool)


def a_scan(matrix=128, pixel_mm=1.25, seed=0, tilt_deg=0.0, slices=30):
    """A scan whose planes hold all sites; the head a little turned."""
    rng = np.random.default_rng(seed)
    tilt = math.radians(tilt_deg)
    across, down = np.array([1.0, 0.0, 0.0]), np.array([0.0, math.cos(tilt), -math.sin(tilt)])
    step = 5.0 / math.cos(tilt)
    corner = (matrix - 1) / 2 * pixel_mm * -(across + down) + np.array([0.0, 15.0, 0.0])
    heights = 75 - step * np.arange(slices)[::-1]
    return {
        "origins": corner + heights[:, None] * np.array([0.0, 0.0, 1.0]),
        "row_direction": across,
        "column_direction": down,
        "normal": np.cross(across, down),
        "pixel_mm": pixel_mm,
        "thickness_mm": 5.0,
        "voxel_mm3": pixel_mm**2 * 5.0,
        "matrix": matrix,
        "turn": rotation(*rng.normal(0, (2.5, 1.5, 2.5))) if seed else np.eye(3),
        "position": rng.uniform(-3, 3, 3) if seed else np.zeros(3),
    }


def a_patient(number=1, volume_ml=17.0, followup_ml=None, site="putamen", side=1, score=0.0, irregularity=0.0, **row):
    signs = dict.fromkeys(SIGN_BITS, 0)
    return {
        "row": {"patient": f"D{number:03d}", "onset_to_ct_h": 3.0, "intraventricular_haemorrhage": 0} | signs | row,
        "truth": {
            "site": site, "side": side, "volume_ml": volume_ml, "followup_ml": followup_ml,
            "heterogeneity": score, "irregularity": irregularity,
        },
    }  # fmt: skip


def grown(patient, scan, allowed=anywhere):
    """Lesion with signs, mask and threshold at baseline."""
    now = at_timepoint(draw_haematoma(patient, HEAD, 1), "baseline")
    voxels = round(patient["truth"]["volume_ml"] * 1000 / scan["voxel_mm3"])
    mask, threshold = grow(scan, now, voxels, allowed)
    return place_signs(scan, mask, now, threshold), mask, threshold


def rendered(scan, lesion, threshold, numbers, brain=BRAIN_HU, sub_slices=4, inside=1.0):
    """Slices without noise: sub-slices averaged, blurred by 1.2 mm (full width at half maximum)."""
    pixels = np.arange(scan["matrix"])
    images = {}
    for number in numbers:
        where = plane(scan, number, (np.arange(sub_slices) + 0.5) / sub_slices - 0.5)
        hu = np.full((sub_slices, len(pixels), len(pixels)), brain, np.float32)
        lay(hu, where, pixels, pixels, lesion, threshold, np.full_like(hu, inside))
        images[number] = ndimage.gaussian_filter(hu.mean(0), 1.2 / 2.355 / scan["pixel_mm"])
    return images


def contrast(image, part, blood, pixel_mm):
    """Mean of a sign's inner part, of the blood 1.5 to 4.5 mm around it, and the width of the blood around it, mm."""
    depth = ndimage.distance_transform_edt(part, sampling=pixel_mm)
    beyond = ndimage.distance_transform_edt(~part, sampling=pixel_mm)
    inner = depth > min(1.3 * pixel_mm, 0.6 * depth.max())
    ring = (beyond > 1.5) & (beyond < 4.5) & blood
    return image[inner].mean(), image[ring].mean()


# ---------------------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize("volume_ml", [4.0, 20.0, 60.0])
def test_an_even_ball_has_the_threshold_of_its_radius(volume_ml):
    scan = a_scan(matrix=160, pixel_mm=0.7)
    lesion = at_timepoint(draw_haematoma(a_patient(volume_ml=volume_ml, side=-1), HEAD, 1), "baseline")
    lesion |= {"roughness": 0.0, "warp_mm": 0.0, "inverse": np.eye(3), "lobes": [], "centre": np.array([0, 15, 0.0])}
    mask, threshold = grow(scan, lesion, round(volume_ml * 1000 / scan["voxel_mm3"]), anywhere)
    radius = (volume_ml * 750 / math.pi) ** (1 / 3)
    assert ball_radius(volume_ml) == pytest.approx(radius)
    assert threshold == pytest.approx(radius, abs=0.4)  # the sections are 5 mm apart
    centroid = np.array(ndimage.center_of_mass(mask))
    middle = np.linalg.solve(
        np.stack([scan["column_direction"], scan["row_direction"]])[:, 1::-1] * 0.7,
        (lesion["centre"] - scan["origins"][0])[1::-1],
    )
    np.testing.assert_allclose(centroid[1:], middle, atol=0.6)
    assert mask.any((1, 2)).sum() * 5 == pytest.approx(2 * radius, abs=6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(3, 60), st.sampled_from(list(SITES)), st.booleans(), st.floats(-2.5, 2.5))
def test_any_haematoma_has_exactly_the_wanted_voxels_and_no_specks(number, volume_ml, site, irregular, score):
    scan = a_scan(seed=number % 97, tilt_deg=15.0 * (number % 2))
    patient = a_patient(number, volume_ml, site=site, irregular_shape=int(irregular), irregularity=score)
    lesion = at_timepoint(draw_haematoma(patient, HEAD, 1), "baseline")
    wanted = round(volume_ml * 1000 / scan["voxel_mm3"])
    mask, _ = grow(scan, lesion, wanted, lambda x, y, z: (np.abs(x) < 62) & (np.sin(x / 2) > -0.95))
    assert mask.dtype == np.uint8 and mask.sum() == wanted
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert min(np.bincount(pieces.ravel())[1:]) * scan["voxel_mm3"] >= phantom_haematoma.SPECK_MM3
    assert count <= 12


def test_a_larger_haematoma_holds_a_smaller_one_and_other_draws_differ():
    scan = a_scan()
    lesion = at_timepoint(draw_haematoma(a_patient(irregular_shape=1), HEAD, 1), "baseline")
    masks = [grow(scan, lesion, voxels, anywhere)[0] for voxels in (700, 1500, 3000)]
    assert (masks[0] <= masks[1]).all() and (masks[1] <= masks[2]).all()
    again = grow(scan, at_timepoint(draw_haematoma(a_patient(irregular_shape=1), HEAD, 1), "baseline"), 1500, anywhere)
    np.testing.assert_array_equal(again[0], masks[1])
    other = grow(
        scan, at_timepoint(draw_haematoma(a_patient(2, irregular_shape=1), HEAD, 1), "baseline"), 1500, anywhere
    )
    assert dice(other[0], masks[1]) < 0.95


@pytest.mark.parametrize("share", [2.0, 0.3, 0.18])
def test_the_voxels_are_those_with_the_lowest_outline_however_far_blood_has_to_go(share):
    """The oracle sorts all voxels of the scan. The narrower the slab that blood may fill, the farther it reaches."""
    scan, lesion = a_scan(), at_timepoint(draw_haematoma(a_patient(), HEAD, 1), "baseline")
    pixels, wanted = np.arange(scan["matrix"]), round(17000 / scan["voxel_mm3"])
    planes = [plane(scan, number, (0.0,)) for number in range(len(scan["origins"]))]
    outline = np.concatenate([phantom_haematoma._outline_on(one, (pixels, pixels), lesion) for one in planes])
    half_mm = share * lesion["radius"]
    free = np.concatenate([np.abs(points(one, pixels, pixels)[0] - lesion["centre"][0]) < half_mm for one in planes])
    mask, threshold = grow(scan, lesion, wanted, lambda x, y, z: np.abs(x - lesion["centre"][0]) < half_mm)
    assert threshold == pytest.approx(np.sort(outline[free])[wanted - 1], abs=1e-4)
    np.testing.assert_array_equal(mask > 0, free & (outline <= threshold))
    assert (threshold > 1.3 * lesion["radius"]) == (share < 1)
    np.testing.assert_array_equal(grow(scan, lesion, wanted, free)[0], mask)


def test_without_room_the_haematoma_is_refused():
    scan = a_scan()
    lesion = at_timepoint(draw_haematoma(a_patient(), HEAD, 1), "baseline")
    with pytest.raises(InputError, match=r"room for 0\.0 mL"):
        grow(scan, lesion, 500, lambda x, y, z: np.zeros(x.shape, bool))
    with pytest.raises(InputError, match="not for 99999 voxels"):
        grow(scan, lesion, 99999, lambda x, y, z: np.abs(x - lesion["centre"][0]) < 12)


def test_a_speck_cut_off_by_the_skull_is_left_out():
    """A wall with a hole of two voxels behind it: there the outline is low, but no reader outlines so little."""
    scan = a_scan()
    lesion = at_timepoint(draw_haematoma(a_patient(), HEAD, 1), "baseline")
    free = np.zeros((30, 128, 128), bool)
    index = np.rint((lesion["centre"] - scan["origins"][0]) / (1.25, 1.25, 5.0)).astype(int)
    free[:, :, : index[0] - 4] = True
    free[index[2], index[1], index[0] : index[0] + 2] = True  # 16 mm3
    mask, _ = grow(scan, lesion, 900, free)
    assert mask.sum() == 900 and not mask[index[2], index[1], index[0]]
    free[index[2], index[1], index[0] : index[0] + 3] = True  # 23 mm3
    mask, _ = grow(scan, lesion, 900, free)
    assert mask.sum() == 900 and mask[index[2], index[1], index[0] : index[0] + 3].all()


def test_a_gap_of_a_voxel_is_drawn_over_and_a_large_one_is_not():
    outline = np.full((9, 9), 9.0)
    outline[1:8, 1:8] = 1.0
    outline[2, 2] = 8.0
    outline[4:7, 4:7] = 7.0
    found = [((0, slice(0, 9), slice(0, 9)), outline)]
    mask, threshold, _ = phantom_haematoma._sorted_out(found, (1, 9, 9), 40, np.array([6.0]), None)
    assert mask.sum() == 40 and threshold == 1.0
    assert mask[0, 2, 2] and not mask[0, 4:7, 4:7].any()  # the gap of 9 voxels is 54 mm3
    outline[2, 2] = np.inf  # no blood may lie there
    mask, _, _ = phantom_haematoma._sorted_out(found, (1, 9, 9), 39, np.array([6.0]), None)
    assert mask.sum() == 39 and not mask[0, 2, 2]


def test_uneven_slices_count_with_their_own_volume():
    scan = a_scan(slices=24)
    normal = scan["normal"]
    thickness = np.where(np.arange(24) < 12, 4.0, 7.0)
    heights = -50 + np.cumsum(thickness)
    real = {
        "planes": [
            {"origins": np.array([[-80.0, -65.0, z]]), "row_step": np.array([0, 1.25, 0]),
             "column_step": np.array([1.25, 0, 0]), "normal": normal}
            for z in heights
        ],
        "thickness_mm": thickness, "voxel_mm3": thickness * 1.25**2, "pixel_mm": 1.25, "shape": (128, 128),
    }  # fmt: skip
    lesion = at_timepoint(draw_haematoma(a_patient(volume_ml=20.0), HEAD, 1), "baseline")
    mask, _ = grow(real, lesion, 0, anywhere, volume_mm3=20000.0)
    volume = (mask.sum((1, 2)) * thickness * 1.25**2).sum()
    assert 20000 <= volume < 20000 + 7 * 1.25**2 + 1e-6
    used = np.flatnonzero(mask.any((1, 2)))
    assert used.min() < 12 <= used.max()


def test_lobules_make_the_margin_irregular_on_the_largest_section():
    """Two focal irregularities at least (supplemental Table 2), none where the sign is absent."""
    scan = a_scan(matrix=200, pixel_mm=0.8)
    for number in range(12):
        volume = (4.0, 12.0, 30.0, 55.0)[number % 4]
        found = {}
        for irregular in (0, 1):
            lesion, mask, threshold = grown(a_patient(number, volume, irregular_shape=irregular), scan)
            largest = mask.sum((1, 2)).argmax()
            section_mask = mask[largest] > 0
            pixels = np.argwhere(section_mask)
            hull = ConvexHull(np.concatenate([pixels + corner for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]))
            bits = sign_voxels(scan, mask, lesion, threshold)[largest] & SIGN_BITS["irregular_shape"]
            bumps, count = ndimage.label(bits)
            areas = np.bincount(bumps.ravel())[1:] * 0.64
            found[irregular] = section_mask.sum() / hull.volume, (areas > 4).sum()
            assert count == 0 or irregular
        assert found[0][0] > 0.93 and found[0][1] == 0
        assert found[1][0] < found[0][0] - 0.02 and found[1][1] >= 2


def test_sites_lie_where_they_should():
    for site in SITES:
        for side in (-1, 1):
            lesion = draw_haematoma(a_patient(site=site, side=side), HEAD, 1)
            assert lesion["where"] == site and lesion["side"] == side
            if site != "pons":
                assert np.sign(lesion["centre"][0]) == side
            np.testing.assert_allclose(
                np.abs(lesion["centre"]) / HEAD["scale"], np.abs(SITES[site][0]), atol=max(SITES[site][1]) + 0.1
            )
            assert np.linalg.det(lesion["inverse"]) == pytest.approx(1)
    # The putamen's axis runs backwards and outwards on both sides.
    for side in (-1, 1):
        lesions = [draw_haematoma(a_patient(number, side=side), HEAD, 1) for number in range(40)]
        longest = np.array([np.linalg.svd(lesion["inverse"])[2][2] for lesion in lesions])
        axis = np.mean(longest * np.sign(longest[:, 1:2]), 0)
        assert axis[1] > 0.8 and axis[0] * side > 0.1


def test_room_keeps_to_brain_side_and_storey():
    levels = {
        "cavity": np.array([20.0, 4.0, 20.0, 20.0, 20.0, 20.0]),
        "ventricle": np.array([-9.0, -9.0, 1.0, -9.0, -9.0, -9.0]),
        "midline": np.array([25.0, 25.0, 25.0, -25.0, 25.0, 3.0]),
        "cerebellum": np.array([-20.0, -20.0, -20.0, -20.0, 8.0, -20.0]),
        "brainstem": np.array([-30.0, -30.0, -30.0, -30.0, -5.0, 2.0]),
    }
    expected = {
        "putamen": (15 > 0, False, False, False, False, True),
        "cerebellum": (False, False, False, False, True, False),
        "pons": (False, False, False, False, False, True),
        "ventricle": (False, False, True, False, False, False),
    }
    for where, allowed in expected.items():
        assert tuple(room(levels, {"where": where, "side": 1}) > 0) == allowed
    assert room(levels, {"where": "putamen", "side": 1})[0] == pytest.approx(9.0)  # the ventricle is the nearest
    assert room(levels, {"where": "frontal", "side": -1})[3] == pytest.approx(9.0)


def test_a_haematoma_settles_where_it_has_room():
    lesion = draw_haematoma(a_patient(volume_ml=15.0), HEAD, 1)
    wall = lesion["centre"][0] + 8.0  # the radius is 15 mm: the wall cuts it

    def level(x, y, z, lesion):
        return wall - x

    settled = settle(lesion, level)
    assert 3 < lesion["centre"][0] - settled["centre"][0] <= 14
    np.testing.assert_allclose(settled["centre"][1:], lesion["centre"][1:], atol=2.0)
    free = settle(lesion, lambda x, y, z, lesion: np.full(x.shape, 9.0))
    np.testing.assert_array_equal(free["centre"], lesion["centre"])


# ---------------------------------------------------------------------------------------------------------------- signs


def test_the_signs_are_those_of_the_table_and_of_the_cohort():
    assert list(SIGN_BITS) == list(MARKERS)
    assert sorted(SIGN_BITS.values()) == [2**i for i in range(7)]
    assert phantom_haematoma.IMPLIED == phantom_cohort.IMPLIED
    lesion = draw_haematoma(a_patient(black_hole=1), HEAD, 1)
    assert lesion["signs"] == {"black_hole", "hypodensity", "swirl"}


def signed(number, volume_ml, matrix, pixel_mm, score=0.0, **signs):
    scan = a_scan(matrix, pixel_mm, seed=number + 1)
    return scan, *grown(a_patient(number, volume_ml, score=score, **signs), scan)


GRIDS = ((160, 1.25), (300, 0.6))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("volume_ml", [3.2, 9.0, 30.0])
def test_a_black_hole_measures_as_planted(volume_ml, grid):
    for number in range(3):
        scan, lesion, mask, threshold = signed(number, volume_ml, *grid, hypodensity=1, black_hole=1, swirl=1)
        bits = sign_voxels(scan, mask, lesion, threshold)
        assert set(np.unique(bits)) == {0, 1 | 2 | 4}  # a black hole is all three
        shown = np.flatnonzero((bits & 2).any((1, 2)))
        images = rendered(scan, lesion, threshold, shown)
        best = 0.0
        for k in shown:
            part = (bits[k] & 2) > 0
            blood = (mask[k] > 0) & (bits[k] == 0)
            edge = ndimage.distance_transform_edt(mask[k], sampling=scan["pixel_mm"])
            assert edge[part].min() > 2.5  # encapsulated on every slice
            dark, around = contrast(images[k], part, blood & (edge > 1.5), scan["pixel_mm"])
            best = max(best, around - dark)
        assert best > 29
        widths = [ndimage.distance_transform_edt(bits[k] & 2, sampling=scan["pixel_mm"]).max() for k in shown]
        assert 2 * max(widths) > 5


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("volume_ml", [3.2, 9.0, 30.0])
def test_a_hypodensity_is_encapsulated_and_neither_black_hole_nor_swirl(volume_ml, grid):
    for number in range(3):
        scan, lesion, mask, threshold = signed(number, volume_ml, *grid, hypodensity=1)
        bits = sign_voxels(scan, mask, lesion, threshold)
        assert set(np.unique(bits)) == {0, 1}
        shown = np.flatnonzero(bits.any((1, 2)))
        images = rendered(scan, lesion, threshold, shown)
        drops = []
        for k in shown:
            edge = ndimage.distance_transform_edt(mask[k], sampling=scan["pixel_mm"])
            assert edge[bits[k] > 0].min() > 2.5
            dark, around = contrast(images[k], bits[k] > 0, (mask[k] > 0) & (bits[k] == 0) & (edge > 1.5), grid[1])
            drops.append(around - dark)
            assert images[k][bits[k] > 0].min() > BRAIN_HU + 7
        assert 10 < max(drops) < 26


@pytest.mark.parametrize("volume_ml", [3.5, 9.0, 30.0])
def test_a_swirl_alone_is_as_dense_as_brain_and_opens_at_the_margin(volume_ml):
    for number in range(4):
        scan, lesion, mask, threshold = signed(number, volume_ml, 160, 1.25, swirl=1)
        bits = sign_voxels(scan, mask, lesion, threshold)
        assert set(np.unique(bits)) == {0, 4}
        k = int((bits > 0).sum((1, 2)).argmax())
        image = rendered(scan, lesion, threshold, [k])[k]
        part = bits[k] > 0
        inner = ndimage.distance_transform_edt(part, sampling=1.25) > 1.6
        assert image[inner].mean() < BRAIN_HU
        assert (ndimage.binary_dilation(part) & (mask[k] == 0)).any()
        # Not encapsulated: what is clearly darker than the blood reaches the outside.
        dark, _ = ndimage.label((image < 47) | (mask[k] == 0))
        assert set(np.unique(dark[inner])) == {dark[0, 0]}


@pytest.mark.parametrize("volume_ml", [6.0, 15.0, 45.0])
def test_a_blend_differs_by_more_than_18_hu_and_stays_denser_than_brain(volume_ml):
    for number in range(4):
        scan, lesion, mask, threshold = signed(number, volume_ml, 160, 1.25, blend=1)
        bits = sign_voxels(scan, mask, lesion, threshold)
        assert set(np.unique(bits)) == {0, 8}
        k = int(mask.sum((1, 2)).argmax())
        image = rendered(scan, lesion, threshold, [k])[k]
        edge = ndimage.distance_transform_edt(mask[k], sampling=1.25) > 2.5
        border = ndimage.distance_transform_edt(bits[k] > 0, sampling=1.25)
        beyond = ndimage.distance_transform_edt(bits[k] == 0, sampling=1.25)
        pale, dense = image[edge & (border > 1.5)].mean(), image[edge & (beyond > 1.5) & (beyond < 6)].mean()
        assert dense - pale > 19.5
        assert pale > BRAIN_HU + 8
        share = (bits[k] > 0).sum() / mask[k].sum()
        assert 0.2 < share < 0.45


@pytest.mark.parametrize("tilt_deg", [0.0, 15.0])
def test_a_fluid_level_is_a_straight_horizontal_line(tilt_deg):
    for number in range(3):
        scan = a_scan(160, 1.25, seed=number + 1, tilt_deg=tilt_deg)
        lesion, mask, threshold = grown(a_patient(number, 20.0, fluid_level=1), scan)
        bits = sign_voxels(scan, mask, lesion, threshold)
        k = int(mask.sum((1, 2)).argmax())
        fluid = (bits[k] & 16) > 0
        image = rendered(scan, lesion, threshold, [k])[k]
        edge = ndimage.distance_transform_edt(mask[k], sampling=1.25) > 2.5
        border = ndimage.distance_transform_edt(fluid, sampling=1.25) > 1.5
        assert image[edge & border].mean() < BRAIN_HU - 8
        assert image[edge & ~ndimage.binary_dilation(fluid, iterations=2)].mean() > 55
        # Every column changes from fluid to blood at the same row, to a pixel.
        rows = [
            np.flatnonzero(fluid[:, c]).max()
            for c in np.flatnonzero(fluid.any(0))
            if (mask[k, :, c] > fluid[:, c]).any()
        ]
        assert np.ptp(rows) <= 1
        blood = (mask[k] > 0) & ~fluid
        assert np.nonzero(blood)[0].min() >= max(rows)


@pytest.mark.parametrize("volume_ml", [4.0, 12.0, 40.0])
def test_heterogeneous_density_shows_three_foci_on_the_largest_section(volume_ml):
    for number in range(4):
        scan, lesion, mask, threshold = signed(
            number, volume_ml, 160, 1.25, score=1.0, hypodensity=1, heterogeneous_density=1, irregular_shape=number % 2
        )
        bits = sign_voxels(scan, mask, lesion, threshold)
        k = int(mask.sum((1, 2)).argmax())
        foci, count = ndimage.label(bits[k] & SIGN_BITS["heterogeneous_density"])
        assert count >= 3
        image = rendered(scan, lesion, threshold, [k])[k]
        edge = ndimage.distance_transform_edt(mask[k], sampling=1.25)
        clear = (mask[k] > 0) & ((bits[k] & ~np.uint8(32)) == 0) & (edge > 1.5)
        for i in range(1, count + 1):
            dark, around = contrast(image, foci == i, clear, 1.25)
            assert around - dark > 6


def test_foci_are_irregular_and_of_different_sizes_and_black_holes_round():
    def elongation(part):
        spread = np.linalg.eigvalsh(np.cov(np.argwhere(part).T))
        return math.sqrt(spread[1] / spread[0])

    longer, unequal, holes = [], [], []
    for number in range(8):
        signs = {"hypodensity": 1, "heterogeneous_density": 1, "black_hole": number % 2}
        scan, lesion, mask, threshold = signed(number, 25.0, 300, 0.6, **signs)
        bits = sign_voxels(scan, mask, lesion, threshold)[int(mask.sum((1, 2)).argmax())]
        if (bits & 2).any():
            holes.append(elongation(bits & 2))
        foci, count = ndimage.label((bits & SIGN_BITS["heterogeneous_density"] > 0) & (bits & 2 == 0))
        parts = [foci == i for i in range(1, count + 1)]
        longer += [elongation(part) for part in parts]
        areas = [part.sum() for part in parts]
        unequal.append(max(areas) / min(areas))
    assert max(holes) < 1.12
    assert np.median(longer) > 1.4 and np.quantile(longer, 0.9) < 3
    assert np.median(unequal) > 1.8


def test_an_even_haematoma_holds_no_accidental_holes():
    for number in range(10):
        scan, lesion, mask, threshold = signed(number, (4.0, 20.0)[number % 2], 160, 1.25, score=2.0)
        assert lesion["regions"] == []
        assert not sign_voxels(scan, mask, lesion, threshold).any()
        for k, image in rendered(scan, lesion, threshold, np.flatnonzero(mask.any((1, 2)))).items():
            middle = ndimage.distance_transform_edt(mask[k], sampling=1.25) > 3
            if middle.sum() < 20:
                continue
            dark = (mask[k] > 0) & (image < np.median(image[middle]) - 8)
            parts, _ = ndimage.label(dark | (mask[k] == 0))
            hidden = dark & (parts != parts[0, 0])
            assert not hidden.any() or ndimage.distance_transform_edt(hidden, sampling=1.25).max() * 2 < 4


def test_texture_follows_the_score_and_not_beyond_two_hu_where_it_reads_even():
    def spread(score, **signs):
        scan, lesion, mask, threshold = signed(5, 30.0, 160, 1.25, score=score, **signs)
        k = int(mask.sum((1, 2)).argmax())
        image = rendered(scan, lesion, threshold, [k])[k]
        inner = ndimage.distance_transform_edt(mask[k], sampling=1.25) > 4
        inner &= sign_voxels(scan, mask, lesion, threshold)[k] == 0
        return image[inner].std()

    spreads = [spread(score) for score in (-2.0, 0.0, 2.0)]
    assert spreads[0] < spreads[1] < spreads[2] < 3.0
    assert draw_haematoma(a_patient(score=9.0), HEAD, 1)["texture_hu"] <= 2.0


# ---------------------------------------------------------------------------------------------------------------- image


@pytest.mark.parametrize(("volume_ml", "tolerance"), [(4.0, 0.15), (25.0, 0.08)])
def test_what_is_bright_in_the_image_is_the_mask(volume_ml, tolerance):
    scan = a_scan(160, 0.8, seed=3)
    lesion, mask, threshold = grown(a_patient(4, volume_ml, irregular_shape=1), scan)
    images = rendered(scan, lesion, threshold, range(len(mask)))
    bright = np.stack([images[k] for k in range(len(mask))]) > (BRAIN_HU + lesion["density"]) / 2
    assert dice(bright, mask) > 0.93
    assert bright.sum() == pytest.approx(mask.sum(), rel=tolerance)  # the ends fade into the slices beyond


def test_density_is_that_of_fresh_blood():
    for number in range(20):
        scan, lesion, mask, threshold = signed(number, 20.0, 160, 1.25)
        k = int(mask.sum((1, 2)).argmax())
        inner = ndimage.distance_transform_edt(mask[k], sampling=1.25) > 3
        assert 57 < rendered(scan, lesion, threshold, [k])[k][inner].mean() < 71


def test_blood_and_oedema_stay_inside_what_is_allowed():
    scan = a_scan()
    lesion, mask, threshold = grown(a_patient(), scan)
    k = int(mask.sum((1, 2)).argmax())
    pixels = np.arange(scan["matrix"])
    where = plane(scan, k, (0.0,))
    hu = np.full((1, 128, 128), 33.0, np.float32)
    lay(hu, where, pixels, pixels, lesion, threshold, np.zeros_like(hu))
    assert (hu == 33.0).all()
    left = np.broadcast_to(np.arange(128) < int(np.nonzero(mask[k])[1].mean()), hu.shape).astype(np.float32)
    lay(hu, where, pixels, pixels, lesion, threshold, left)
    assert (hu[left == 0] == 33.0).all() and (hu[left == 1] > 50).any()
    # A part of the image gets what the whole gets.
    whole, part = np.full((1, 128, 128), 33.0, np.float32), np.full((1, 40, 60), 33.0, np.float32)
    lay(whole, where, pixels, pixels, lesion, threshold, np.ones_like(whole))
    lay(part, where, pixels[50:90], pixels[40:100], lesion, threshold, np.ones_like(part))
    np.testing.assert_allclose(part, whole[:, 50:90, 40:100], atol=0.3)


def test_oedema_is_a_dark_rim_that_widens():
    scan = a_scan(200, 0.6)
    patient = a_patient(volume_ml=15.0, followup_ml=15.0)
    lesion, mask, threshold = grown(patient, scan)
    k = int(mask.sum((1, 2)).argmax())
    rims = []
    for timepoint in ("baseline", "followup"):
        image = rendered(scan, at_timepoint(lesion, timepoint), threshold, [k], sub_slices=1)[k]
        beyond = ndimage.distance_transform_edt(mask[k] == 0, sampling=0.6)
        rims.append((image < BRAIN_HU - 3).sum() * 0.36 / (mask[k].sum() * 0.36) ** 0.5 / 2 / math.sqrt(math.pi))
        assert image.min() > 20
        assert (image[beyond > 16] == BRAIN_HU).all()
        assert image[(beyond > 1.5) & (beyond < 2.5)].mean() < BRAIN_HU - 2
    assert 0.8 < rims[0] < 3.5  # mean width in mm of what is clearly dark
    assert 1.0 < rims[1] - rims[0] < 4.0
    late = draw_haematoma(a_patient(onset_to_ct_h=7.5), HEAD, 1)["oedema_mm"]
    early = draw_haematoma(a_patient(onset_to_ct_h=0.5), HEAD, 1)["oedema_mm"]
    assert late > early + 0.5


def test_bone_and_fluid_do_not_swell():
    scan = a_scan()
    lesion, mask, threshold = grown(a_patient(), scan)
    k = int(mask.sum((1, 2)).argmax())
    for hu in (7.0, 900.0):
        image = rendered(scan, lesion, threshold, [k], brain=hu)[k]
        far = ndimage.distance_transform_edt(mask[k] == 0, sampling=1.25) > 5
        np.testing.assert_array_equal(image[far], np.float32(hu))


def test_ventricular_blood_stays_in_the_ventricles():
    scan = a_scan()
    drawn = draw_haematoma(a_patient(site="thalamus", intraventricular_haemorrhage=1), HEAD, 1)
    dry = draw_haematoma(a_patient(site="thalamus"), HEAD, 1)
    pixels = np.arange(128)
    total = 0.0
    for k in range(10, 24):
        where = plane(scan, k, (0.0,))
        x, y, z = points(where, pixels, pixels)
        ventricle = soft(5 - np.hypot(np.abs(x) - 14, (y - 35) / 6), 1.0)  # a body along the head
        hu = np.full(x.shape, 7.0, np.float32)
        lay_ventricular_blood(hu, where, pixels, pixels, dry, ventricle)
        assert (hu == 7.0).all()
        lay_ventricular_blood(hu, where, pixels, pixels, drawn, ventricle)
        assert (hu[ventricle == 0] == 7.0).all()
        assert hu.max() <= 65
        total += (hu > 40).sum()
        settled = (ventricle > 0.99) & (y > drawn["ventricular_blood"]["level_mm"] + 3) & (x > 2) & (z > -8)
        assert (hu[settled] >= 44).all()
    assert total * 1.25**2 * 5 > 500
    pure = draw_haematoma(a_patient(site="ventricle", intraventricular_haemorrhage=1), HEAD, 1)
    assert pure["ventricular_blood"] is None and pure["push"] == 0


# --------------------------------------------------------------------------------------------------------------- growth


def test_an_expanded_haematoma_has_grown_everywhere_and_a_stable_one_hardly():
    scan = a_scan()
    for number in range(6):
        patient = a_patient(number, 15.0, 27.0, irregular_shape=number % 2)
        lesion, mask, threshold = grown(patient, scan)
        later = at_timepoint(lesion, "followup")
        assert later["radius"] == pytest.approx(ball_radius(27.0))
        grown_mask, later_threshold = grow(scan, later, round(27000 / scan["voxel_mm3"]), anywhere)
        assert (mask & grown_mask).sum() > 0.985 * mask.sum()
        growth = growth_on(scan, at_timepoint(lesion, "baseline"), threshold, later, later_threshold)
        new = (grown_mask > 0) & (mask == 0)
        assert growth.dtype == np.float32 and growth[new].min() > 0
        # More towards one side.
        around = ndimage.binary_dilation(mask > 0) & (mask == 0)
        assert np.ptp(growth[around & (growth != 0)]) > 0.8
    stable = at_timepoint(draw_haematoma(a_patient(followup_ml=17.5), HEAD, 1), "followup")
    assert stable["growth_mm"] == 0 and stable["lobes"] == []


def test_growth_of_a_ball_is_the_difference_of_its_radii():
    scan = a_scan()
    lesion = at_timepoint(draw_haematoma(a_patient(), HEAD, 1), "baseline")
    lesion |= {"roughness": 0.0, "warp_mm": 0.0, "inverse": np.eye(3), "lobes": []}
    np.testing.assert_array_equal(growth_on(scan, lesion, 15.0, lesion, 15.0), 0)
    growth = growth_on(scan, lesion, 15.0, lesion, 18.5)
    np.testing.assert_allclose(growth[growth != 0], 3.5, atol=0.01)
    reached = (growth > 0).sum() * scan["voxel_mm3"]
    assert reached == pytest.approx(4 / 3 * math.pi * 28.5**3, rel=0.03)  # to 10 mm off the larger ball


# -------------------------------------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("volume_ml", [3.5, 17.0, 60.0])
def test_two_readers_agree_as_in_the_paper(volume_ml):
    scan = a_scan()
    agreements, differences = [], []
    for number in range(12):
        _, mask, _ = grown(a_patient(number, volume_ml, irregular_shape=number % 2), scan)
        second = second_reading(mask, scan, np.random.default_rng(number))
        assert second.dtype == mask.dtype and second.max() == 1
        agreements.append(dice(second, mask))
        differences.append(second.sum() / mask.sum() - 1)
        pieces, _ = ndimage.label(second, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].min() * scan["voxel_mm3"] >= phantom_haematoma.SPECK_MM3
    assert min(agreements) > 0.92 and max(agreements) < 0.975
    assert np.mean(agreements) == pytest.approx(0.95, abs=0.008)
    assert abs(np.mean(differences)) < 0.04 and np.ptp(differences) > 0.01
    again = second_reading(mask, scan, np.random.default_rng(11))
    np.testing.assert_array_equal(again, second)


def test_an_empty_mask_is_not_read_twice():
    with pytest.raises(InputError, match="empty mask"):
        second_reading(np.zeros((30, 128, 128), np.uint8), a_scan(), np.random.default_rng(0))
