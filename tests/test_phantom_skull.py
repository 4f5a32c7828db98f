"""Skull, scalp and face of synthetic heads: what was drawn is what is there, closed, in its place, with its density."""

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, label

from haemex.phantom import draw_head
from haemex.phantom_brain import draw_brain
from haemex.phantom_cohort import draw_patients
from haemex.phantom_fields import generator, rotation
from haemex.phantom_planes import interpolation, points
from haemex.phantom_skull import (
    LARGEST_MM,
    VAULT_LIMITS_MM,
    atlas_place,
    compose,
    draw_skull,
    outer_reach,
    skull_levels,
    slab_fraction,
)

PIXEL = 0.9
ROWS, COLUMNS = np.arange(256), np.arange(224)


def make_head(seed, sex="m", age=60, **changes):
    """Draw a whole head, with some of its entries changed."""
    head = {"name": f"S{seed}", "seed": seed, "sex": sex, "age": age}
    head |= draw_brain(generator(seed, "brain"), age, sex) | draw_skull(generator(seed, "skull"), age, sex)
    return head | changes


def axial_plane(z, pixel=PIXEL, parts=(-1.7, 0.0, 1.7), turn=None):
    """An axial plane whose pixel (0, 0) is at the front right: columns run to the left, rows to the back."""
    turn = np.eye(3) if turn is None else turn
    size = 200.0, 230.0
    corner = np.array([-size[0] / 2, 12 - size[1] / 2, 0])
    origins = np.array([corner + np.array([0, 0, z + part]) for part in parts]) @ turn
    return {
        "origins": origins,
        "row_step": np.array([0, pixel, 0]) @ turn,
        "column_step": np.array([pixel, 0, 0]) @ turn,
    }


def paint_slice(head, plane, rows=ROWS, columns=COLUMNS, step=3):
    """Levels on coarse points, interpolated to pixels, and what is painted there."""
    coarse_rows, up_rows = interpolation(len(rows), step)
    coarse_columns, up_columns = interpolation(len(columns), step)
    levels = skull_levels(*points(plane, coarse_rows + rows[0], coarse_columns + columns[0]), head)
    fine = {}
    for name, level in levels.items():
        near = level.max() > -12
        fine[name] = up_rows @ (level @ up_columns.T) if near else np.full((1, 1, 1), -99, np.float32)
    kept = {name: level.copy() for name, level in fine.items()}
    return kept, compose(fine, plane, rows, columns, head)


@pytest.fixture(scope="module")
def head():
    return make_head(11)


def around(hu, plane, place, head, radius=1.5):
    """Values within a few mm of a place in atlas mm."""
    lateral, v, w = atlas_place(*points(plane, ROWS, COLUMNS), head)
    distance = np.sqrt((lateral - place[0]) ** 2 + (v - place[1]) ** 2 + (w - place[2]) ** 2)
    return hu[distance < radius]


# ---------------------------------------------------------------------------------------------------------------- draw


def test_the_same_generator_draws_the_same_skull():
    first, second = (draw_skull(generator(5, "skull"), 70, "f") for _ in range(2))
    assert first.keys() == second.keys()
    assert all(key.startswith("skull_") for key in first)
    for key, value in first.items():
        if isinstance(value, dict):
            assert all(np.array_equal(value[part], second[key][part]) for part in value)
        else:
            assert np.array_equal(value, second[key])


def test_vaults_of_women_are_a_little_thicker_as_published():
    def thicknesses(sex):
        return np.array([draw_skull(generator(seed, sex), 60, sex)["skull_mm"] for seed in range(300)])

    men, women = thicknesses("m"), thicknesses("f")
    # Li et al. 2007: 6.5 and 7.1 mm; the SE of a mean of 300 is 0.05 mm.
    assert men.mean() == pytest.approx(6.5, abs=0.2)
    assert women.mean() == pytest.approx(7.1, abs=0.2)
    for values in (men, women):
        assert values.min() >= VAULT_LIMITS_MM[0]
        assert values.max() <= VAULT_LIMITS_MM[1]


def test_hyperostosis_is_for_older_women_and_some_sinuses_lack():
    drawn = {
        sex: [draw_skull(generator(seed, "x" + sex), 75, sex) for seed in range(300)] for sex in ("m", "f")
    }  # fmt: skip
    rates = {sex: np.mean([skull["skull_hyperostosis_mm"] > 0 for skull in skulls]) for sex, skulls in drawn.items()}
    assert rates["f"] > 0.1 > rates["m"]
    lacking = np.mean([(skull["skull_frontal_sinus_mm"] == 0).any() for skull in drawn["m"]])
    assert 0.05 < lacking < 0.25


# -------------------------------------------------------------------------------------------------------------- levels


def vault_surface(head):
    """Points of a 3 mm grid within 1.2 mm of the inner table, 10 atlas mm above the origin and higher."""
    axes = np.arange(-90, 91, 3.0), np.arange(-95, 131, 3.0), np.arange(8, 100, 3.0)
    x, y, z = (p.astype(np.float32) for p in np.meshgrid(*axes, indexing="ij"))
    levels = skull_levels(x, y, z, head)
    surface = (np.abs(levels["cavity"]) < 1.2) & (z > 10 * head["scale"][2])
    thickness = (levels["outer"] - levels["cavity"])[surface]
    return thickness, atlas_place(x[surface], y[surface], z[surface], head)


@pytest.mark.parametrize(("seed", "sex"), [(1, "m"), (2, "f"), (3, "m")])
def test_mean_thickness_of_the_vault_is_what_was_drawn(seed, sex):
    head = make_head(seed, sex, skull_hyperostosis_mm=0.0)
    thickness, (lateral, v, w) = vault_surface(head)
    assert thickness.mean() == pytest.approx(head["skull_mm"], rel=0.05)
    squama = (np.abs(lateral) > 58) & (w < 25) & (np.abs(v) < 30)
    back = v > 85
    assert thickness[squama].mean() < 0.85 * thickness[back].mean()
    assert thickness.min() > 1.5


@pytest.mark.parametrize("seed", [1, 5, 8])
def test_thickness_varies_along_the_vault_and_temporal_squamas_are_thin(seed):
    head = make_head(seed, "mf"[seed % 2], skull_hyperostosis_mm=0.0)
    thickness, (lateral, v, w) = vault_surface(head)
    assert 1.05 < thickness.std() < 2.2
    squama = (np.abs(lateral) > 60) & (w < 16) & (np.abs(v) < 20)
    assert 2.0 < np.median(thickness[squama]) < 0.66 * head["skull_mm"]


def test_regions_of_the_vault_differ_between_people_of_one_mean_thickness():
    def frontal_by_occipital(seed):
        head = make_head(seed, skull_hyperostosis_mm=0.0)
        thickness, (_, v, _) = vault_surface(head)
        return thickness[v < -45].mean() / thickness[v > 75].mean()

    assert np.std([frontal_by_occipital(seed) for seed in range(30, 42)]) > 0.05


def test_the_inner_table_has_crests_sulci_and_pits(head):
    def cavity(place):
        point = (np.float32(p) * np.float32(scale) for p, scale in zip(place, head["scale"], strict=True))
        return float(skull_levels(*(np.full((1, 1, 1), p) for p in point), head)["cavity"][0, 0, 0])

    def inner_table(lateral, w, direction):
        """Where the cavity ends in the midsagittal direction, v."""
        places = np.arange(30, 115, 0.25) * direction
        inside = [cavity((lateral, v, w)) > 0 for v in places[::4]]
        return np.abs(places[::4][np.flatnonzero(inside)[-1]])

    head = head | {"skull_skew": np.zeros(3), "skull_crest_mm": np.array([5.0, 5.0, 3.0])}
    # Frontal crest and internal occipital protuberance stand out into the cavity.
    assert inner_table(0, 0, -1) < inner_table(14, 0, -1) - 1.5
    assert inner_table(0, -16, 1) < inner_table(16, -16, 1) - 3
    # A pit takes from the bone, not from the outside.
    pit = np.array([[15.0, 10.0, 2.5, 5.0]])
    plain, pitted = (
        vault_surface_levels(head | {"skull_pits": pits}, (15.0, 10.0)) for pits in (pit * [1, 1, 0, 1], pit)
    )
    np.testing.assert_array_equal(pitted["outer"], plain["outer"])
    deeper = (pitted["cavity"] - plain["cavity"]).max()
    assert 1.0 < deeper <= 2.5


def vault_surface_levels(head, place):
    """Levels on a column of points through the vault above a place (lateral, v)."""
    z = np.arange(40, 105, 0.5, dtype=np.float32)
    x, y = (np.full(z.shape, p * s, np.float32) for p, s in zip(place, head["scale"][:2], strict=True))
    return skull_levels(*(p[:, None, None] for p in (x, y, z)), head)


def test_hyperostosis_thickens_the_frontal_bone_only():
    plain, thick = (vault_surface(make_head(4, "f", skull_hyperostosis_mm=mm))[0] for mm in (0.0, 5.0))
    _, (_, v, _) = vault_surface(make_head(4, "f"))
    assert (thick - plain)[v < -40].max() > 3
    assert (thick - plain)[v > -10].max() < 0.2


def test_reach_is_where_the_skin_ends(head):
    reach = outer_reach(head)
    low, high = reach["centre"] - reach["half"], reach["centre"] + reach["half"]
    axes = np.arange(-90, 91, 3.0), np.arange(-112, 132, 3.0), np.arange(-24, 100, 3.0)
    x, y, z = (p.astype(np.float32) for p in np.meshgrid(*axes, indexing="ij"))
    inside = skull_levels(x, y, z, head)["skin"] > 0
    for axis, places in enumerate((x, y, z)):
        if axis < 2:
            assert places[inside].min() == pytest.approx(low[axis], abs=3.5)
        assert places[inside].max() == pytest.approx(high[axis], abs=3.5)
    assert high[2] == pytest.approx(reach["top_mm"])
    assert low[2] == pytest.approx(reach["bottom_mm"])


@pytest.mark.parametrize("seed", range(20, 24))
def test_every_head_fits_a_head_holder(seed):
    half = outer_reach(make_head(seed, "mf"[seed % 2], 40 + 6 * (seed - 20)))["half"]
    assert half[0] <= LARGEST_MM[0] + 0.5 <= 86
    assert half[1] <= LARGEST_MM[1] + 0.5 <= 106
    assert half[0] > 66
    assert half[1] > 80


# ------------------------------------------------------------------------------------------------------------- compose


@pytest.mark.parametrize("z", [15.0, 35.0, 55.0])
def test_the_vault_is_closed_and_nothing_is_outside_the_skin(head, z):
    levels, hu = paint_slice(head, axial_plane(z))
    assert hu.dtype == np.float32
    assert hu.shape == (3, len(ROWS), len(COLUMNS))
    cavity, skin = levels["cavity"], levels["skin"]
    np.testing.assert_array_equal(hu[slab_fraction(cavity, PIXEL) == 1], 35)
    np.testing.assert_array_equal(hu[slab_fraction(skin, PIXEL) == 0], -1000)
    for image, inside in zip(hu, cavity, strict=True):
        bone = image > 300
        filled = binary_fill_holes(bone)
        assert filled[inside > 0].all()
        parts, count = label(filled)
        assert np.bincount(parts.ravel())[1:].max() > 0.99 * filled.sum(), count
        assert not bone[inside > 3].any()
    shell = (levels["outer"] > 0.5) & (cavity < -0.5)
    assert 700 < hu[shell].mean() < 1600
    assert (hu[shell] > 1000).mean() > 0.25
    assert hu[shell].max() < 2300
    fat = (levels["outer"] < -2.6) & (skin > 3.2) & (np.broadcast_to(levels["muscle"], hu.shape) < -2)
    assert -110 < np.median(hu[fat]) < -60
    rim = (skin > 0.8) & (skin < 1.5)
    assert 10 < np.median(hu[rim]) < 70


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_the_roof_of_an_orbit_is_a_thin_sheet_above_its_fat(seed):
    head = make_head(seed)
    parts = np.arange(-16, 12, 0.5)
    plane = axial_plane(-24.0 * head["scale"][2], parts=parts)
    x, y = points(plane, ROWS, COLUMNS)[:2]
    rows = ROWS[(y[0, :, 0] > -52) & (y[0, :, 0] < -30)]
    thick = []
    for side in (-1, 1):
        columns = COLUMNS[(side * x[0, 0] > 20) & (side * x[0, 0] < 38)]
        levels, hu = paint_slice(head, plane, rows, columns)
        below = np.broadcast_to(levels["cavity"], hu.shape) < 0
        bone = (hu > 300) & below
        sheet = bone.sum(0) * 0.5
        thick.append(np.median(sheet))
        assert 0.5 < thick[-1] < 3.5  # where one side lies lower than the other, its slope is in the way
        under = below & (levels["cavity"] < -3) & (levels["cavity"] > -5)
        assert np.median(hu[under]) < -60
    assert np.mean(thick) < 2.5


def test_the_sella_is_roofed_by_dura_and_the_planum_is_thin():
    head = make_head(11, skull_sphenoid_sinus=1.0)
    plane = axial_plane(-28.0 * head["scale"][2], parts=np.arange(-8, 14, 0.5))
    rows, columns = ROWS[64:150], COLUMNS[85:140]  # about the sella
    lateral, v, w = atlas_place(*points(plane, rows, columns), head)
    levels, hu = paint_slice(head, plane, rows, columns)
    outside = levels["cavity"] < -0.5
    sella = outside & (np.hypot(lateral / 8, (v + 5) / 6) < 1) & (w > -29)
    assert sella.any()
    assert (hu[sella] > 300).mean() < 0.1
    planum = (np.abs(lateral) < 8) & (v < -19) & (v > -26)
    bone = ((hu > 300) & outside & planum).sum(0)[planum.any(0)] * 0.5
    assert np.median(bone) < 3


@pytest.mark.parametrize("seed", [11, 12])
def test_less_than_half_of_the_scalp_is_fat(seed):
    head = make_head(seed)
    share = []
    for z in (25.0, 45.0, 60.0):
        levels, hu = paint_slice(head, axial_plane(z))
        scalp = (levels["outer"] < -0.5) & (levels["skin"] > 0.5)
        share.append((hu[scalp] < -50).mean())
    assert 0.15 < np.mean(share) < 0.55


def test_bone_between_the_tables_is_less_dense_but_not_soft(head):
    levels, hu = paint_slice(head, axial_plane(45.0))
    inside, outside = -levels["cavity"], levels["outer"]
    between = (np.minimum(inside, outside) > 2.8) & (hu > 0)
    assert np.percentile(hu[between], 5) > 400
    assert 500 < np.median(hu[between]) < 1000
    table = (outside > 0.7) & (outside < 1.2)
    assert np.median(hu[table]) > 1300


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_muscles_behind_the_skull_taper_off_to_the_sides(seed):
    # They were a plate of even thickness, 11 mm, with cut ends.
    head = make_head(seed)
    plane = axial_plane(-42.0 * head["scale"][2], parts=(0.0,))
    lateral, v, _ = atlas_place(*points(plane, ROWS, COLUMNS), head)
    levels, _ = paint_slice(head, plane)
    on_bone = (np.abs(levels["outer"] + 0.8) < 0.7) & (v > 42)
    thick = levels["muscle"] - levels["outer"]
    u = np.abs(lateral)
    belly, end = (np.median(thick[on_bone & (u > least) & (u < most)]) for least, most in ((18, 34), (48, 54)))
    assert belly > 7
    assert 2 < end < 0.68 * belly


def test_mastoids_are_filled_with_small_cells_and_the_base_has_its_foramina():
    """Seen with a brain's window, the base was one solid white mass."""
    head = make_head(11, skull_mastoid=np.ones(2), skull_mastoid_fluid=np.zeros(2, bool))
    pixel, rows, columns = 0.5, np.arange(460), np.arange(400)
    plane = axial_plane(-46.0 * head["scale"][2], pixel, (-1.67, 0.0, 1.67))
    _, hu = paint_slice(head, plane, rows, columns, 5)
    image = hu.mean(0)
    lateral, v, _ = (p[1] for p in atlas_place(*points(plane, rows, columns), head))
    for side in (-1, 1):
        region = np.hypot((side * lateral - 54) / 7, (v - 33) / 9) < 1
        share = (image[region] < -300).mean()
        assert 0.15 < share < 0.85
        assert (image[region] > 100).mean() > 0.1  # walls, thick enough to be seen through half a centimetre
        assert label(np.where(region, image, 0) < -300)[1] >= 5
    low = axial_plane(-52.0 * head["scale"][2], parts=(0.0,))
    _, hu = paint_slice(head, low)
    for side in (-1, 1):
        for place in ((24, -6, -52), (27, 25, -52), (29, 7, -52)):  # oval, jugular, carotid
            assert np.median(around(hu, low, (side * place[0], *place[1:]), head)) < 150, place


def test_the_crest_behind_is_off_the_middle_as_drawn():
    def ridge(off):
        head = make_head(11, skull_crest_off_mm=np.array([off, 0.0]), skull_crest_mm=np.array([2.0, 5.0, 4.0]))
        x = np.arange(-16, 16.5, 0.5, np.float32)
        y, z = np.arange(50, 125, 0.5, np.float32), np.float32(-34 * head["scale"][2])
        grid = np.broadcast_arrays(z, y[:, None], x[None])
        inner = skull_levels(grid[2][None], grid[1][None].copy(), grid[0][None].copy(), head)["cavity"][0]
        back = np.array([y[np.flatnonzero(column > 0)[-1]] for column in inner.T])
        return x[np.abs(x - off) < 6][back[np.abs(x - off) < 6].argmin()]

    assert ridge(-4.0) < -2
    assert ridge(4.0) > 2


def test_the_base_holds_air_fat_eyes_and_dense_bone_in_their_places(head):
    globe = axial_plane(-46 * head["scale"][2])
    _, hu = paint_slice(head, globe)
    for side in (-1, 1):
        assert around(hu, globe, (33 * side, -64, -46), head).mean() == pytest.approx(10, abs=3)
        petrous = around(hu, globe, (42 * side, 24, -45), head, 5.0)
        assert petrous.max() > 1300
        behind = around(hu, globe, (27 * side, -46, -43), head, 5.0)
        assert behind.min() < -80
        assert 20 < np.percentile(behind, 99) < 80  # muscles and nerve in it
    assert around(hu, globe, (0, -18, -46), head, 4).min() < -950  # sphenoid sinus
    low = axial_plane(-76 * head["scale"][2])
    _, hu = paint_slice(head, low)
    for side in (-1, 1):
        assert np.median(around(hu, low, (25 * side, -52, -74), head, 4)) < -900  # maxillary sinus
    assert np.median(around(hu, low, (0, -13, -76), head, 4)) < -900  # pharynx
    muscle = around(hu, low, (20, 80, -76), head, 12)
    assert 30 < np.median(muscle) < 75


def test_a_sinus_drawn_on_the_left_is_at_positive_x():
    for heights, sign in (((22.0, 0.0), 1), ((0.0, 22.0), -1)):
        head = make_head(7, skull_frontal_sinus_mm=np.array(heights), skull_frontal_sinus_septum_mm=0.0)
        head["skull_skew"] = np.zeros(3)
        plane = axial_plane(-20 * head["scale"][2])
        levels, hu = paint_slice(head, plane)
        x, y, _ = points(plane, ROWS, COLUMNS)
        air = (hu < -800) & (levels["skin"] > 5) & (y < -40)
        assert air.sum() > 30
        assert (x[air] * sign > -5).all()  # the septum bends


def test_left_and_right_differ(head):
    plane = axial_plane(-40.0)
    _, hu = paint_slice(head, plane)
    mirrored = hu[:, :, ::-1]
    assert (np.abs(hu - mirrored) > 100).mean() > 0.05


def test_low_slices_leave_the_cavity_alone_and_stand_in_air(head):
    for z in (-64.0, -50.0, -36.0, -22.0):
        levels, hu = paint_slice(head, axial_plane(z))
        np.testing.assert_array_equal(hu[slab_fraction(levels["cavity"], PIXEL) == 1], 35)
        assert np.isfinite(hu).all()
        assert hu.min() >= -1001
        assert hu.max() < 2400
        # Only nose and ears stand out of the skin, by less than 30 mm.
        assert hu[levels["skin"] < -30].max(initial=-1000) < -999


def test_what_is_painted_does_not_depend_on_the_window():
    head = make_head(8)
    for z in (-70.0, -52.0, -41.0, -30.0, 30.0):
        plane = axial_plane(z, turn=rotation(8, 3, 5))
        levels, whole = paint_slice(head, plane)
        rows, columns = ROWS[60:190], COLUMNS[30:140]
        part = {name: level if level.size == 1 else level[:, 60:190, 30:140].copy() for name, level in levels.items()}
        cropped = compose(part, plane, rows, columns, head)
        differs = np.abs(cropped - whole[:, 60:190, 30:140]) > 30
        assert differs.mean() < 0.0005, z


def test_a_single_sub_slice_of_a_coarse_scan_can_be_painted(head):
    plane = axial_plane(-45.0, pixel=1.25, parts=(0.0,))
    _, hu = paint_slice(head, plane, np.arange(184), np.arange(160))
    assert hu.shape == (1, 184, 160)
    _, again = paint_slice(head, plane, np.arange(184), np.arange(160))
    np.testing.assert_array_equal(hu, again)


def test_a_slice_above_the_head_is_air(head):
    _, hu = paint_slice(head, axial_plane(outer_reach(head)["top_mm"] + 8))
    np.testing.assert_array_equal(hu, -1000)


def test_a_slanted_edge_is_averaged_over_its_slab():
    # A plane z = 0.5 x cut by sub-slices 2 mm apart: the mean over them is the share of the slab between them.
    x = np.arange(-20, 21, 0.25, dtype=np.float32)
    offsets = np.array([-2.0, 0.0, 2.0], np.float32)
    level = 2 * offsets[:, None, None] - x[None, None, :]
    mean = slab_fraction(level, 1e-3).mean(0)[0]
    np.testing.assert_allclose(mean, np.clip(0.5 - x / 12, 0, 1), atol=0.001)


def test_levels_do_not_depend_on_how_points_are_arranged(head):
    x, y, z = points(axial_plane(-40.0, turn=rotation(8, 3, 5)), ROWS[::16], COLUMNS[::16])
    lattice = skull_levels(x, y, z, head)
    shuffled = np.random.default_rng(1).permutation(x.size)
    scattered = skull_levels(*(p.ravel()[shuffled].reshape(x.shape) for p in (x, y, z)), head)
    for name, level in lattice.items():
        np.testing.assert_allclose(scattered[name].ravel(), level.ravel()[shuffled], atol=2e-3)


def test_a_tall_head_has_its_reach_too():
    """Its scalp reaches above 115 mm, where the grid of places once ended."""
    patients = draw_patients({"train": 50, "test": 50, "excluded_each": 0, "matrix": 256}, 5000)
    tall = next(patient for patient in patients if patient["row"]["patient"] == "D071")
    assert 115 < draw_head(tall, 5000)["reach"]["top_mm"] < 130
