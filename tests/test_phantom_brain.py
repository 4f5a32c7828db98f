"""The inside of synthetic heads: atlas, individual brains, mass effect, mimics."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from haemex import phantom_atlas, phantom_brain
from haemex.errors import InputError
from haemex.phantom_atlas import COARSE_FIRST_MM, COARSE_MM, FINE_MM, GRIDS, chain, load_atlas
from haemex.phantom_brain import (
    LABELS,
    MIMICS,
    TISSUES,
    brain_volume,
    cavity_level,
    displaced,
    draw_brain,
    sample,
    structures,
    to_atlas,
    ventricle_level,
)
from haemex.phantom_fields import generator, rotation


def head(name="someone", age=60, sex="m", mimics=()):
    drawn = draw_brain(generator(1, name, "brain"), age, sex) | {"brain_mimics": list(mimics)}
    return drawn | {"brain_shift": phantom_brain._shift_lattice(drawn)}


def lesion(patient, volume_ml=30.0, side=1, centre=(26.0, 0.0, 6.0)):
    axes = np.array([0.85, 1.2, 1.0])
    return {
        "centre": np.array(centre) * (side, 1, 1) * patient["scale"],
        "inverse": np.diag(np.cbrt(axes.prod()) / axes),
        "radius": float(np.cbrt(volume_ml * 1000 * 0.75 / np.pi)),
        "push": 0.6,
        "side": side,
        "where": "putamen",
    }


def places(*points):
    return tuple(np.array(values, np.float32) for values in zip(*points, strict=True))


def lattice(step=3.0):
    z, y, x = np.meshgrid(
        *(np.arange(a, b, step, np.float32) for a, b in ((-70, 84), (-84, 108), (-75, 76))), indexing="ij"
    )
    return x, y, z


PATIENT = head()


# --------------------------------------------------------------------------------------------------------------- atlas


def in_atlas(name, *points):
    """Read a level of the atlas at the nearest of its voxels."""
    first, spacing = GRIDS[name]
    index = np.rint((np.array(points) - first) / spacing).astype(int)
    return load_atlas()[name][tuple(index[:, ::-1].T)]


def test_atlas_is_mirror_symmetric_and_faces_the_right_way():
    atlas = load_atlas()
    for values in atlas.values():
        assert np.array_equal(values, values[..., ::-1])
    cut = atlas["grey"].astype(int) + atlas["white"]
    # The brain is broadest behind the middle, its highest point is above, the cord is below.
    widths = [(cut[72 + 10, y + 98] > 128).sum() for y in (-50, 20, 90)]
    assert widths[1] > widths[0] > 0 and widths[1] > widths[2] > 0
    assert cut[2, 46 + 98, 98] > 128 and cut[2, 20 + 98, 98] == 0
    assert not cut[-10].any()


def test_cavity_holds_cisterns_and_foramen_but_not_the_bones_of_the_base():
    inside = in_atlas(
        "cavity", (0, 0, 0), (0, -4, -19), (0, 8, -30), (0, 47, -70), (60, 10, 0), (40, 0, -40), (30, 60, -50)
    )
    assert (inside > 1).all()
    outside = in_atlas("cavity", (0, -10, -40), (30, -40, -34), (45, 26, -50), (30, 20, -60), (80, 0, 0), (0, 0, 90))
    assert (outside < -1).all()


def test_cavity_is_a_distance():
    slope = np.sqrt(sum(part**2 for part in np.gradient(load_atlas()["cavity"], COARSE_MM)))
    level = load_atlas()["cavity"]
    # Under the vault, from the dura to 10 mm deep.
    shell = (level > 0) & (level < 10)
    shell[: int((20 - COARSE_FIRST_MM[2]) / COARSE_MM)] = False
    assert np.median(slope[shell]) == pytest.approx(1, abs=0.05)
    assert np.percentile(slope[shell], 5) > 0.75


def test_grids_have_the_middle_in_the_middle():
    for name, (first, spacing) in GRIDS.items():
        assert first[0] + spacing * (load_atlas()[name].shape[2] - 1) / 2 == 0


def test_blocks_are_summed():
    voxels = np.arange(9 * 6 * 12, dtype=np.uint8).reshape(9, 6, 12)
    expected = voxels.astype(int).reshape(3, 3, 2, 3, 4, 3).sum((1, 3, 5))
    assert np.array_equal(phantom_atlas._pooled(voxels, 3), expected)


def test_convex_level_of_a_ball_and_of_two():
    """Planes that touch it give a convex body back, and fill what lies between two bodies."""
    z, y, x = (p.astype(np.float32) for p in np.ogrid[-20:61:3.0, -60:61:3.0, 0:61:3.0])
    space = x**2 + y**2 + np.maximum(z, 0) ** 2 < 40**2
    level = phantom_atlas._convex(space, x[0, 0], y[0], z)
    expected = 40 - np.sqrt(x**2 + y**2 + np.maximum(z, 0) ** 2)
    near = (np.abs(expected) < 15) & (z > 0)
    assert np.abs(level - expected)[near].max() < COARSE_MM
    assert np.abs((level - expected)[near].mean()) < 1.5
    two = ((y - 30) ** 2 + x**2 + z**2 < 20**2) | ((y + 30) ** 2 + x**2 + z**2 < 20**2)
    level = phantom_atlas._convex(two, x[0, 0], y[0], z)
    assert level[np.broadcast_to((y == 0) & (z == 10) & (x < 10), level.shape)].min() > 0
    assert level[np.broadcast_to((y == 0) & (x > 25), level.shape)].max() < 0


def test_what_lies_between_two_sides_is_filled_behind_and_near_the_middle():
    x, y = np.arange(-6, 19, 3.0), np.array([0.0, 60, 90])  # the middle is column 2
    line = np.array([0, 0, 0, 0, 1, 0, 1, 1, 0], bool)  # at 6, 12 and 15 mm, on the left
    space = np.stack([[line, line, line]])
    phantom_atlas._fill_notch(space, x, y, 2)
    assert np.array_equal(space[0, 0], line)
    assert np.array_equal(space[0, 1], np.array([1, 1, 1, 1, 1, 0, 1, 1, 0], bool))
    assert np.array_equal(space[0, 2], space[0, 1])


def test_no_deep_notch_parts_the_fossae_of_the_cerebellum():
    for w in (-26, -34, -42, -50):
        back = []
        for u in (0.0, 15.0):
            v = np.arange(60, 120, 0.5)
            level = map_coordinates(
                load_atlas()["cavity"],
                [(p - f) / COARSE_MM for p, f in zip((w + 0 * v, v, u + 0 * v), COARSE_FIRST_MM[::-1], strict=True)],
                order=1,
            )
            back.append(v[level > 0].max())
        assert back[1] - back[0] < 5


def filled(level, first, spacing, z_mm):
    """Share of an axial section's convex hull that a level fills."""
    from scipy.spatial import ConvexHull
    from skimage.measure import find_contours

    index = round((z_mm - first[2]) / spacing)
    outline = max(find_contours(level[index], 0.0), key=len)
    y, x = outline[:-1].T
    area = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
    return area / ConvexHull(outline).volume


def test_skull_has_no_waist_behind_the_orbits():
    for z_mm in (-10, -4, 2, 20, 50):
        assert filled(load_atlas()["cavity"], COARSE_FIRST_MM, COARSE_MM, z_mm) > 0.995
    for name in "ab":
        lattice = head(name)["brain_cavity"]
        for z_mm in (-6, 3, 21):
            assert filled(lattice["values"], lattice["first"], lattice["spacing"], z_mm) > 0.99


def test_frontal_lobes_lie_over_the_orbits():
    for name in "ab":
        patient = head(name)
        z = np.arange(-50, 0, 0.5, np.float32)
        floor = {}
        for u in (0, 15, 30):
            heights = []
            for sign in (-1, 1):
                x, y = (
                    np.full(z.shape, p * s, np.float32) for p, s in zip((sign * u, -46), patient["scale"], strict=False)
                )
                heights.append(z[cavity_level(x, y, z, patient) > 0].min() / patient["scale"][2])
            floor[u] = np.mean(heights)
        assert floor[30] < -24
        assert 5 < floor[30] - floor[0] < 13
        assert floor[0] < floor[15] < floor[30]


def test_stated_volume_of_the_atlas_is_its_cavity():
    above = COARSE_FIRST_MM[2] + COARSE_MM * np.arange(load_atlas()["cavity"].shape[0]) >= -62
    volume_ml = (load_atlas()["cavity"][above] > 0).sum() * COARSE_MM**3 / 1000
    assert volume_ml == pytest.approx(phantom_brain.ATLAS_CAVITY_ML, rel=0.005)


def test_ventricles_of_the_atlas_are_where_anatomy_has_them():
    assert (in_atlas("ventricle", (10, 10, 24), (-10, 10, 24), (28, 44, 6), (0, 4, -4), (0, 42, -32)) > 0).all()
    # Quadrigeminal and suprasellar cistern, Sylvian fissure, caudate nucleus.
    assert (in_atlas("ventricle", (0, 36, -4), (0, -4, -20), (42, -18, 0), (14, -14, 6)) < 0).all()
    volume_ml = (load_atlas()["ventricle"] > 0).sum() * FINE_MM**3 / 1000
    assert 15 < volume_ml < 25


def test_chain_is_the_distance_to_cones():
    x, y, z = places((0, 0, 3), (5, 2, 0), (12, 0, 0), (-4, 0, 0))
    assert chain(x, y, z, (((0, 0, 0), 2), ((10, 0, 0), 2))) == pytest.approx([-1, 0, 0, -2])
    x, y, z = places((5, 0, 0), (10, 3, 0), (10, 10, 1))
    assert chain(x, y, z, (((0, 0, 0), 1), ((10, 0, 0), 3), ((10, 10, 0), 1))) == pytest.approx(
        [2, 0.4 * 6, 0], abs=0.1
    )


def test_missing_or_damaged_atlas_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(phantom_atlas, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="make setup"):
        load_atlas.__wrapped__()
    path = tmp_path / "map.nii.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"map\.nii\.gz"):
        phantom_atlas._voxels(path)
    with pytest.raises(InputError, match=r"map\.nii\.gz"):
        phantom_atlas._voxels(tmp_path / "map.nii.gz.part" / "map.nii.gz")


# ---------------------------------------------------------------------------------------------------------- one's brain


def test_draw_is_deterministic_and_individual():
    first, again, other = (draw_brain(generator(1, name, "brain"), 60, "m") for name in ("a", "a", "b"))
    assert np.array_equal(first["brain_shift"]["values"], again["brain_shift"]["values"])
    assert np.array_equal(first["scale"], again["scale"]) and first["brain_mimics"] == again["brain_mimics"]
    bends = np.abs(first["brain_shift"]["values"] - other["brain_shift"]["values"])
    assert 1.0 < bends.mean() < 8.0


def cavity_ml(patient):
    level = patient["brain_cavity"]
    z = level["first"][2] + np.arange(level["values"].shape[0]) * level["spacing"]
    above = z > -62 * patient["scale"][2]
    return (level["values"][above] > 0).sum() * level["spacing"] ** 3 / 1000


def test_volume_inside_the_skull_by_sex():
    volumes = {sex: [cavity_ml(draw_brain(generator(k, sex), 60, sex)) for k in range(8)] for sex in "mf"}
    assert np.mean(volumes["m"]) == pytest.approx(1500, abs=110)
    assert np.mean(volumes["f"]) == pytest.approx(1350, abs=110)
    assert 50 < np.std(volumes["m"] + volumes["f"]) < 220


def test_volume_inside_the_skull_is_what_was_drawn():
    """Shapes of one's own made some heads smaller than stated by 8 %."""
    for k in range(10):
        drawn_ml = 1350 + 105 * np.clip(generator(k, "volume").normal(), -1.9, 1.9)
        measured = cavity_ml(draw_brain(generator(k, "volume"), 55, "f"))
        assert measured == pytest.approx(drawn_ml, rel=0.02)


def test_sides_differ_in_outline_by_skew_and_torque():
    patient = head("a")
    x, y, z = places(*((sign * u, v, 0.0) for u in (45.0, 60.0) for v in (-60.0, 70.0) for sign in (1, -1)))

    def left_less_right(**changes):
        changed = patient | changes
        level = cavity_level(x, y, z, changed | {"brain_cavity": phantom_brain._cavity_lattice(changed)})
        return (level[::2] - level[1::2]).reshape(2, 2).mean(0)  # in front, behind

    plain = left_less_right(brain_skew=np.zeros(2), brain_torque_mm=0.0)
    front, back = left_less_right(brain_skew=np.array([0.05, 0.0]), brain_torque_mm=0.0) - plain
    assert front > 1 and back < -1
    front, back = left_less_right(brain_skew=np.zeros(2), brain_torque_mm=3.0) - plain
    assert front < -1 and back > 1  # left occipital and right frontal petalia


def test_heads_fit_a_holder():
    for k in range(4):
        patient = draw_brain(generator(k, "large"), 40, "m")
        level = patient["brain_cavity"]["values"] > 0
        length, width = (np.ptp(np.flatnonzero(level.any(axes))) * 3.0 for axes in ((0, 2), (0, 1)))
        assert 145 < length < 190 and 122 < width < 152


def test_bends_do_not_tear_the_brain():
    for name, age in (("a", 30), ("b", 60), ("c", 88)):
        patient = head(name, age)
        x, y, z = lattice(2.0)
        jacobian = (
            np.linalg.det(
                np.moveaxis([np.gradient(part, 2.0)[::-1] for part in to_atlas(x, y, z, patient)], (0, 1), (-2, -1))
            )
            * patient["scale"].prod()
        )
        level = structures(x, y, z, patient, None)
        tissue = (level["cavity"] > 2) & (level["ventricle"] < 0)
        assert (jacobian[tissue] < 0).mean() < 1e-3
        assert np.median(jacobian[tissue]) == pytest.approx(1, abs=0.08)


def test_levels_scale_with_the_head():
    x, y, z = lattice(4.0)
    level = cavity_level(x, y, z, PATIENT)
    slope = np.sqrt(sum(part**2 for part in np.gradient(level, 4.0)))
    assert np.median(slope[(level > 0) & (level < 12) & (z > 20)]) == pytest.approx(1, abs=0.08)


def test_structures_name_the_sides_and_the_compartments():
    scale = PATIENT["scale"]
    points = [
        np.array(p) * scale
        for p in ((30, 10, 30), (-30, 10, 30), (30, 65, -38), (30, 65, 8), (0, 24, -30), (0, 40, -34))
    ]
    level = structures(*places(*points), PATIENT, None)
    assert level["midline"][0] > 15 and level["midline"][1] < -15
    assert (level["cerebellum"] > 0).tolist() == [False, False, True, False, True, True]
    assert (level["brainstem"] > 0).tolist()[:5] == [False, False, False, False, True]
    assert (level["cavity"] > 5).all()
    assert level["ventricle"][4] < 0


def test_atrophy_comes_with_age():
    def measures(age):
        ventricle, brain = [], []
        for k in range(4):
            patient = draw_brain(generator(k, "ages"), age, "m")
            volume = brain_volume(patient, None, 3.0)
            inside = (volume["tissue"] > 0).sum()
            fluid = np.isin(volume["tissue"], (LABELS["csf"], LABELS["ventricle"])).sum()
            ventricle.append(volume["ventricle"].sum() * 0.027)
            brain.append(1 - fluid / inside)
        return np.mean(ventricle), np.mean(brain)

    young, middle, old = measures(28), measures(60), measures(86)
    assert young[0] < middle[0] < old[0] and young[1] > middle[1] > old[1]
    assert 11 < young[0] < 24 and 30 < old[0] < 75
    assert 0.82 < young[1] < 0.92 and 0.68 < old[1] < 0.82


# --------------------------------------------------------------------------------------------------------- mass effect


def test_without_haematoma_nothing_moves():
    points = lattice(8.0)
    assert all(a is b for a, b in zip(displaced(*points, PATIENT, None), points, strict=True))


def test_skull_and_the_far_side_hold_still():
    x, y, z = lattice(4.0)
    mass = lesion(PATIENT, 30)
    moved = np.sqrt(sum((a - b) ** 2 for a, b in zip(displaced(x, y, z, PATIENT, mass), (x, y, z), strict=True)))
    level = cavity_level(x, y, z, PATIENT)
    assert moved[level <= 0].max() == 0
    assert moved[(level > 0) & (x < -45)].max() < 1.0
    assert moved[(level > 0) & (z < -50)].max() < 0.5
    near = sum((p - c) ** 2 for p, c in zip((x, y, z), mass["centre"], strict=True)) < (mass["radius"] + 6) ** 2
    assert moved[near].mean() > 2


@pytest.mark.parametrize("side", [1, -1])
def test_midline_moves_away_from_the_haematoma(side):
    middle = places((0, -8, 8), (0, 4, 0))
    at_rest = structures(*middle, PATIENT, None)["midline"]
    shifts = [
        (structures(*middle, PATIENT, lesion(PATIENT, volume, side))["midline"] - at_rest) * side
        for volume in (5.0, 30.0, 60.0)
    ]
    # What is now in the middle was on the haematoma's side.
    assert (shifts[0] > 0.1).all() and (shifts[0] < shifts[1]).all() and (shifts[1] < shifts[2]).all()
    assert (shifts[0] < 2).all() and (shifts[1] > 1.5).all() and (shifts[2] > 3).all() and (shifts[2] < 11).all()


def test_tissue_around_the_haematoma_keeps_its_volume_and_its_order():
    x, y, z = lattice(2.0)
    for volume in (10.0, 60.0):
        mass = lesion(PATIENT, volume)
        origin = displaced(x, y, z, PATIENT, mass)
        jacobian = np.linalg.det(np.moveaxis([np.gradient(part, 2.0)[::-1] for part in origin], (0, 1), (-2, -1)))
        offset = np.stack([x, y, z], -1) - mass["centre"]
        rho = np.linalg.norm(offset @ mass["inverse"].T, axis=-1)
        inside = cavity_level(x, y, z, PATIENT) > 1
        around = inside & (rho > mass["radius"] + 2)
        assert jacobian[around].min() > 0.3 and jacobian[around].max() < 2.2
        assert jacobian[around & (rho < 2 * mass["radius"])].mean() == pytest.approx(1, abs=0.12)


def test_haematoma_empties_the_ventricle_of_its_side():
    mass = lesion(PATIENT, 45.0)
    before, after = (brain_volume(PATIENT, m, 2.0) for m in (None, mass))
    x = before["first_mm"][0] + 2.0 * np.arange(before["hu"].shape[2])
    left, right = (
        after["ventricle"][..., s * x > 4].sum() / before["ventricle"][..., s * x > 4].sum() for s in (1, -1)
    )
    assert left < 0.8 and left < right - 0.1 and right > 0.6


def test_sulci_are_narrower_over_the_haematoma():
    mass = lesion(PATIENT, 50.0, centre=(34.0, 10.0, 30.0))
    before, after = (brain_volume(PATIENT, m, 2.0)["tissue"] == LABELS["csf"] for m in (None, mass))
    first = brain_volume(PATIENT, None, 2.0)["first_mm"]
    z, _, x = (first[a] + 2.0 * np.arange(n) for a, n in zip((2, 1, 0), before.shape, strict=True))
    over = np.ix_((z > 20) & (z < 60), np.ones(before.shape[1], bool), x > 25)
    other = np.ix_((z > 20) & (z < 60), np.ones(before.shape[1], bool), x < -25)
    assert after[over].sum() < 0.8 * before[over].sum()
    assert after[other].sum() == pytest.approx(before[other].sum(), rel=0.05)


def test_ventricle_level_agrees_with_the_volume():
    mass = lesion(PATIENT, 20.0)
    volume = brain_volume(PATIENT, mass, 2.0)
    z, y, x = np.meshgrid(
        *(
            f + 2.0 * np.arange(n, dtype=np.float32)
            for f, n in zip(volume["first_mm"][::-1], volume["hu"].shape, strict=True)
        ),
        indexing="ij",
    )
    level = ventricle_level(x, y, z, PATIENT, mass)
    drawn = volume["ventricle"] > 0.5
    both = (drawn & (level > 0)).sum() * 2 / (drawn.sum() + (level > 0).sum())
    assert both > 0.8
    assert volume["ventricle"][level < -4].max() == 0


def test_walls_of_ventricles_are_sharp_in_old_age_too():
    # They were blurred over more than half as much again, as the average is, the more the wider they were.
    for name, age in (("a", 80), ("c", 88)):
        fraction = brain_volume(head(name, age), None, 1.0)["ventricle"]
        slope = np.sqrt(sum(part**2 for part in np.gradient(fraction)))
        assert ((fraction > 0.1) & (fraction < 0.9)).sum() / slope.sum() < 0.65


def test_choroid_plexus_lies_in_the_ventricles():
    patient = head("c", 84)
    volume = brain_volume(patient, None, 1.0)
    axes = (
        f + np.arange(n, dtype=np.float32) for f, n in zip(volume["first_mm"], volume["hu"].shape[::-1], strict=True)
    )
    x, y, z = (np.ascontiguousarray(p.transpose(2, 1, 0)) for p in np.meshgrid(*axes, indexing="ij"))
    u, v, w = to_atlas(x, y, z, patient)
    inside = volume["ventricle"] > 0.9
    glomus = inside & (np.abs(np.abs(u) - 25) < 1.5) & (np.abs(v - 43) < 1.5) & (np.abs(w - 9.5) < 1.5)
    assert glomus.any() and np.median(volume["hu"][glomus]) > 32
    horns = inside & (v < -6) & (w > 0)
    assert np.median(volume["hu"][horns]) < 12
    elsewhere = brain_volume(patient | {"brain_plexus": np.array([-9.0, -9.0])}, None, 1.0)["hu"]
    changed = np.abs(volume["hu"] - elsewhere) > 1
    assert 0.3 < changed.sum() / 1000 < 6  # mL
    assert (volume["ventricle"][changed] > 0.1).all()


# -------------------------------------------------------------------------------------------------------------- volume


def test_densities_of_the_tissues():
    for name, age in (("a", 35), ("b", 62), ("c", 84)):
        volume = brain_volume(head(name, age), None, 1.5)
        median = {
            name: np.median(volume["hu"][volume["tissue"] == label]) for label, name in TISSUES.items()
            if (volume["tissue"] == label).sum() > 50
        }  # fmt: skip
        assert 0 < median["ventricle"] < 12 and 0 < median["csf"] < 14
        assert 25 < median["white"] < 32 and 33 < median["grey"] < 42 and 34 < median["deep grey"] < 42
        assert 5 < median["grey"] - median["white"] < 10
        assert 32 < median["cerebellum"] < 41 and 30 < median["brainstem"] < 39
        assert 40 < median["dura"] < 60 and 42 < median["vessel"] < 60


def test_volume_covers_the_cavity_and_is_finite():
    volume = brain_volume(PATIENT, lesion(PATIENT), 2.0)
    assert volume["hu"].dtype == np.float32 and volume["ventricle"].dtype == np.float32
    assert volume["tissue"].dtype == np.uint8 and set(np.unique(volume["tissue"])) <= set(TISSUES)
    assert np.isfinite(volume["hu"]).all() and volume["hu"].min() >= 0
    assert volume["ventricle"].min() >= 0 and volume["ventricle"].max() <= 1
    assert not volume["tissue"][-1].any()
    assert not volume["tissue"][:, [0, -1]].any() and not volume["tissue"][..., [0, -1]].any()
    inside = (volume["tissue"] > 0).sum() * 0.008
    assert inside == pytest.approx(cavity_ml(PATIENT), rel=0.03)


def test_volume_is_the_same_at_any_spacing():
    coarse, fine = (brain_volume(PATIENT, None, spacing) for spacing in (2.0, 1.3))
    assert coarse["ventricle"].sum() * 2**3 == pytest.approx(fine["ventricle"].sum() * 1.3**3, rel=0.03)
    for label in (LABELS["white"], LABELS["grey"], LABELS["csf"]):
        assert (coarse["tissue"] == label).sum() * 2**3 == pytest.approx(
            (fine["tissue"] == label).sum() * 1.3**3, rel=0.04
        )


def test_volume_is_deterministic():
    first, again = (brain_volume(PATIENT, lesion(PATIENT), 3.0) for _ in range(2))
    assert all(np.array_equal(first[key], again[key]) for key in ("hu", "tissue", "ventricle"))


def near_the_surface(volume, patient, low, high, least=3, most=12):
    """Which voxels lie so far under the dura, mm, between two heights, atlas mm; and their x."""
    axes = (
        f + volume["spacing_mm"] * np.arange(n)
        for f, n in zip(volume["first_mm"], volume["hu"].shape[::-1], strict=True)
    )
    x, y, z = np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij")
    x, y, z = (np.ascontiguousarray(p.transpose(2, 1, 0)) for p in (x, y, z))
    depth, height = cavity_level(x, y, z, patient), z / patient["scale"][2]
    return (depth > least) & (depth < most) & (height > low) & (height < high), x


def test_sulci_under_the_vertex_are_narrow_before_old_age():
    for name, age, most in (("a", 45, 0.07), ("b", 60, 0.1)):
        patient = head(name, age)
        volume = brain_volume(patient, None, 1.5)
        rim, x = near_the_surface(volume, patient, 45, 75)
        assert 0.02 < (volume["hu"][rim & (np.abs(x) > 8)] < 14).mean() < most
        # Nor does fluid part brain and falx all along.
        assert (volume["hu"][rim & (np.abs(x) > 1) & (np.abs(x) < 4)] < 20).mean() < 0.15


def test_sulci_of_ones_own_lie_in_the_cortex_and_differ_from_side_to_side():
    patient = head("a", 62)
    flat = patient | {
        "brain_gyri": [lattice | {"values": lattice["values"] * 0 - 9} for lattice in patient["brain_gyri"]]
    }
    with_own, without = (brain_volume(one, None, 1.5) for one in (patient, flat))
    changed = np.abs(with_own["hu"] - without["hu"])
    near, x = near_the_surface(without, patient, 5, 75)
    deep, _ = near_the_surface(without, patient, 5, 75, 30, 99)
    below, _ = near_the_surface(without, patient, -75, -25)
    assert (changed[near & (np.abs(x) > 12)] > 5).mean() > 0.08
    assert (changed[deep] > 5).mean() < 0.01 and changed[below].max() == 0
    darker = np.where(near, without["hu"] - with_own["hu"], 0) > 8
    middle = np.argmin(np.abs(x[0, 0]))
    half = min(middle, darker.shape[2] - 1 - middle)
    left, right = darker[..., middle + 1 : middle + 1 + half], darker[..., middle - half : middle][..., ::-1]
    assert left.sum() > 300 and right.sum() > 300
    assert (left & right).sum() < 0.3 * min(left.sum(), right.sum())


def test_white_matter_of_the_old_is_less_dense_beside_the_ventricles():
    x, y, z = lattice(5.0)
    loss = {}
    for age in (40, 80):
        loss[age] = []
        for k in range(8):
            patient = draw_brain(generator(k, "white"), age, "m")
            u, v, w = to_atlas(x, y, z, patient)
            level = ventricle_level(x, y, z, patient, None)
            rim = (level < -4) & (level > -8) & (w > 8)
            loss[age].append(np.median(phantom_brain._leukoaraiosis(u, v, w, patient)[rim]))
    assert max(loss[40]) < 3
    assert min(loss[80]) < 2 and max(loss[80]) > 6 and 2 < np.median(loss[80]) < 7


# -------------------------------------------------------------------------------------------------------------- mimics

TRACES = {
    "choroid_calcification": ("calcification", (27, 44, 7)),
    "pineal_calcification": ("calcification", (0, 30, 1)),
    "pallidum_calcification": ("calcification", (20, 2, 1)),
    "falx_calcification": ("calcification", None),
    "artery_calcification": ("calcification", (14, -2, -26)),
    "old_infarct": ("infarct", None),
    "lacune": ("infarct", None),
    "subdural_sliver": ("subdural", None),
}


def test_without_mimics_there_is_none():
    volume = brain_volume(PATIENT, None, 1.5)
    for name in ("calcification", "infarct", "subdural"):
        assert not (volume["tissue"] == LABELS[name]).any()
    assert volume["hu"].max() < 72


@pytest.mark.parametrize("mimic", sorted(TRACES))
def test_each_mimic_is_drawn_and_named(mimic):
    patient = head(mimics=[mimic])
    volume = brain_volume(patient, None, 1.2)
    name, place = TRACES[mimic]
    there = volume["tissue"] == LABELS[name]
    assert there.any()
    hu = np.median(volume["hu"][there])
    if name == "calcification":
        assert 60 < hu < 600
    if name == "infarct":
        assert 8 < hu < 24
    if name == "subdural":
        assert 25 < hu < 60
    if place is not None:
        where = np.argwhere(there)[:, ::-1] * 1.2 + volume["first_mm"]
        to = np.array(to_atlas(*where.T.astype(np.float32), patient)).T
        assert np.linalg.norm(np.abs(to) - np.abs(place), axis=1).min() < 3


def test_dense_sinus_is_denser():
    sinus = {
        mimic: np.median(
            (volume := brain_volume(head(mimics=[mimic]), None, 1.5))["hu"][volume["tissue"] == LABELS["vessel"]]
        )
        for mimic in ("dense_sinus", "cavum")
    }
    assert sinus["dense_sinus"] > sinus["cavum"] + 6


def test_mimics_are_as_frequent_as_stated_and_grow_with_age():
    drawn = {
        age: [phantom_brain._draw_mimics(generator(k, "rate"), age)["brain_mimics"] for k in range(400)]
        for age in (40, 60, 85)
    }
    for name, (rate, per_year) in MIMICS.items():
        share = {age: np.mean([name in mimics for mimics in lists]) for age, lists in drawn.items()}
        assert share[60] == pytest.approx(rate, abs=0.08)
        if per_year > 0.004:
            assert share[40] < share[85]


# -------------------------------------------------------------------------------------------------------------- sample


def plane(pixel, turn=(8.0, 3.0, -5.0)):
    axes = rotation(*turn)
    origins = np.array([[-60.0, -70.0, 5.0]]) + np.outer((-1.5, 0.0, 1.5), axes[:, 2])
    return {"origins": origins, "row_step": pixel * axes[:, 1], "column_step": pixel * axes[:, 0]}


@pytest.mark.parametrize("pixel", [0.45, 0.8, 1.9])
def test_sample_is_exact_for_what_is_linear(pixel):
    z, y, x = np.mgrid[:80, :90, :85].astype(np.float32)
    first = np.array([-84.0, -90.0, -60.0])
    weights = np.array([0.4, -0.7, 0.2])
    hu = weights[0] * (2 * x + first[0]) + weights[1] * (2 * y + first[1]) + weights[2] * (2 * z + first[2])
    volume = {"hu": hu, "first_mm": first, "spacing_mm": 2.0}
    view, rows, columns = plane(pixel), np.arange(7, 58), np.arange(4, 61)
    expected = (
        (view["origins"] @ weights)[:, None, None]
        + (rows * (view["row_step"] @ weights))[:, None]
        + columns * (view["column_step"] @ weights)
    )
    assert sample(volume, view, rows, columns) == pytest.approx(expected, abs=2e-3)


def test_sample_interpolates_as_scipy_does():
    volume = brain_volume(PATIENT, None, 2.0)
    view, rows, columns = plane(1.7), np.arange(60), np.arange(55)
    points = (
        view["origins"][:, None, None] + rows[:, None, None] * view["row_step"] + columns[:, None] * view["column_step"]
    )
    index = ((points - volume["first_mm"]) / 2.0)[..., ::-1].transpose(3, 0, 1, 2)
    expected = map_coordinates(volume["hu"], index, order=1, mode="nearest")
    assert sample(volume, view, rows, columns) == pytest.approx(expected, abs=1e-2)
    labels = sample(volume, view, rows, columns, "tissue")
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, map_coordinates(volume["tissue"], index, order=0, mode="nearest"))
    assert sample(volume, view, rows, columns, "ventricle").max() <= 1
