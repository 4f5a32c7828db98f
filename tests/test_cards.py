"""The patients' cards: worst first, numbers as in their tables, contours and colours where they belong, safe HTML."""

import html.parser
import inspect
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fabricated_study import TEST, TRAIN, change_table, fabricate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from haemex.card_picture import (
    FIELD,
    FIRST,
    GREYS,
    HEAD,
    NETWORK,
    READER,
    RELEVANCE,
    SLICES,
    TILE,
    choose_slices,
    choose_square,
    contour_pixels,
    draw_card,
    tile_place,
)
from haemex.cards import make_card, worst_first, write_cards
from haemex.errors import InputError
from haemex.evaluation import evaluate_study
from haemex.markers import MARKERS
from haemex.montage import field_box
from haemex.nifti import read_grid, write_volume
from haemex.report import report_environment
from haemex.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
EVERYWHERE = (np.full(3, -1e4), np.full(3, 1e4))


# --- the order ---------------------------------------------------------------------------------------------------


def graded(patient, cohort="test", wrong=False, failure=None, dice=0.9, error=0.2):
    return {
        "patient": patient,
        "cohort": cohort,
        "wrong": wrong,
        "failure": failure,
        "dice": dice,
        "error": error,
    }


def test_the_order_is_that_worked_out_by_hand():
    expected = [
        graded("T9", wrong=True, error=0.9),
        graded("T1", wrong=True, error=0.7, failure="missed", dice=0.0),  # wrong comes before failed
        graded("T2", wrong=True, error=0.55),
        graded("T3", wrong=True, error=0.55),  # equal: by patient
        graded("T8", failure="nothing found", dice=0.0, error=0.01),
        graded("T4", failure="Dice below 0.5", dice=0.4, error=0.49),
        graded("T7", error=0.45),
        graded("T5", error=0.1),
        graded("T6", error=None),  # outcome not known
        graded("A1", "train", wrong=True, error=0.99),  # the test cohort first, however bad the training cohort
        graded("A0", "train", error=0.3),
    ]
    shuffled = [expected[i] for i in (5, 0, 10, 3, 8, 1, 7, 2, 9, 4, 6)]
    assert [card["patient"] for card in worst_first(shuffled)] == [card["patient"] for card in expected]


@given(st.permutations(range(8)))
def test_the_order_does_not_depend_on_the_order_given(order):
    cards = [
        graded(f"P{i}", "train" if i % 2 else "test", i % 3 == 0, "missed" if i % 4 == 0 else None, 0.1 * (i // 3))
        for i in range(8)
    ]
    assert worst_first([cards[i] for i in order]) == worst_first(cards)


# --- one card ----------------------------------------------------------------------------------------------------


def one_patient(cohort="test", expansion=1, probability=0.25, **changed):
    """What `make_card` is given, with a calibration of intercept 0 and slope 1."""
    logit = float(np.log(probability / (1 - probability)))
    given = {
        "member": {
            "patient": "P007",
            "cohort": cohort,
            "expansion": expansion,
            "baseline_ml": 20.0,
            "followup_ml": 30.0,
        },
        "prediction": {
            "probability": probability,
            "logit": logit,
            "calibrated_probability": 0.3,
            "ensemble_probability": 0.28,
            "ensemble_sd": 0.05,
        },
        "overlap": {
            "dice_native": 0.8,
            "hd95_native_mm": 3.0,
            "dice_out_of_fold": None,
            "failure": None,
            "reference_ml": 20.0,
            "predicted_ml": 18.5,
            "inside_fraction": 1.0,
        },
        "measured": {"rater2_ml": 21.0, "rater_dice": 0.93},
        "markers": {
            "onset_to_ct_h": 2.0,
            "bat_score_read": 4,
            "bat_score": 2,
            "markers": {
                name: {"read": read, "present": present, "evidence": f"{name}; slice 3" if present else ""}
                for name, read, present in (
                    ("hypodensity", 1, 0),
                    ("black_hole", 0, 0),
                    ("swirl", None, 1),
                    ("blend", 1, None),
                    ("fluid_level", None, None),
                    ("irregular_shape", 1, 1),
                    ("heterogeneous_density", 0, 1),
                )
            },
        },
        "threshold": 0.5,
        "calibration": {"method": "platt", "intercept": 0.0, "slope": 1.0},
    }
    for path, value in changed.items():
        part, name = path.split("__")
        given[part][name] = value
    return given


def test_a_card_of_the_test_cohort_says_what_its_tables_say():
    card = make_card(**one_patient())
    assert card["growth_ml"] == 10.0
    assert card["growth_percent"] == 50.0
    assert card["verdict"] == "Wrong: expansion missed"
    assert card["wrong"]
    assert card["positive"] == 0
    assert (card["probability"], card["calibrated_probability"]) == (0.25, 0.3)
    assert card["error"] == pytest.approx(0.7)
    assert (card["ensemble_probability"], card["ensemble_sd"]) == (0.28, 0.05)
    assert (card["manual_ml"], card["network_ml"], card["difference_ml"]) == (20.0, 18.5, -1.5)
    assert (card["rater2_ml"], card["rater_dice"]) == (21.0, 0.93)
    assert (card["onset_to_ct_h"], card["bat_score_read"], card["bat_score"]) == (2.0, 4, 2)


def test_a_card_of_the_training_cohort_is_calibrated_and_shows_no_spread():
    card = make_card(**one_patient("train", prediction__calibrated_probability=None))
    assert card["calibrated_probability"] == pytest.approx(0.25)  # by the calibration given, which changes nothing
    assert card["error"] == pytest.approx(0.75)
    assert card["ensemble_probability"] is None
    assert card["ensemble_sd"] is None


@pytest.mark.parametrize(
    ("expansion", "probability", "verdict", "wrong"),
    [
        (1, 0.5, "Right: expansion, and the network was positive", False),  # at the threshold: positive
        (0, 0.499, "Right: no expansion, and the network was negative", False),
        (0, 0.5, "Wrong: false alarm", True),
        (1, 0.499, "Wrong: expansion missed", True),
        (None, 0.9, "Outcome not known", False),
    ],
)
def test_right_and_wrong_are_said_in_words(expansion, probability, verdict, wrong):
    card = make_card(**one_patient(expansion=expansion, probability=probability))
    assert (card["verdict"], card["wrong"]) == (verdict, wrong)


def test_markers_differ_only_where_both_are_known():
    card = make_card(**one_patient())
    assert [(one["label"], one["read"], one["computed"], one["differs"]) for one in card["markers"]] == [
        ("Hypodensities", 1, 0, True),
        ("Black hole sign", 0, 0, False),
        ("Swirl sign", None, 1, False),
        ("Blend sign", 1, None, False),
        ("Fluid level", None, None, False),
        ("Irregular shape", 1, 1, False),
        ("Heterogeneous density", 0, 1, True),
    ]
    assert [one["evidence"] for one in card["markers"]][:3] == ["", "", "swirl; slice 3"]


# --- slices and tiles --------------------------------------------------------------------------------------------


def masks(count, reader=(), network=(), largest=None):
    """Two masks of `count` slices of 4 x 4 pixels that touch the slices named; `largest` has more of the reader's."""
    out = np.zeros((2, count, 4, 4), bool)
    out[0][list(reader), 1, 1] = True
    out[1][list(network), 2, 2] = True
    if largest is not None:
        out[0][largest, 1:3, 1:3] = True
    return out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (masks(30, range(10, 20), largest=14), [11, 14, 15, 17, 19]),  # 13 and 15 are as near: the lower one is moved
        (masks(30, range(10, 20), largest=18), [11, 13, 15, 18, 19]),
        (masks(30, range(10, 15)), [10, 11, 12, 13, 14]),
        (masks(30, range(10, 12), range(11, 13)), [8, 9, 10, 11, 12]),  # those next to the first of equal areas
        (masks(30, [7]), [5, 6, 7, 8, 9]),
        (masks(30, [0]), [0, 1, 2, 3, 4]),
        (masks(30, [29]), [25, 26, 27, 28, 29]),
        (masks(30, [3, 25], largest=25), [3, 23, 24, 25, 26]),  # two islands: both
        (masks(30, (), [4]), [2, 3, 4, 5, 6]),  # the reader drew nothing
        (masks(30), [13, 14, 15, 16, 17]),
        (masks(3, [1]), [0, 1, 2]),
    ],
)
def test_slices_are_those_worked_out_by_hand(given, expected):
    assert choose_slices(*given) == expected


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_slices_rise_and_hold_the_largest_area(count, seed):
    rng = np.random.default_rng(seed)
    reader, network = rng.random((2, count, 3, 3)) < rng.random((2, 1, 1, 1)) * rng.random((2, count, 1, 1)) ** 3
    chosen = choose_slices(reader, network)
    assert len(chosen) == min(SLICES, count)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < count for index in chosen)
    if reader.any():
        assert int(reader.sum(axis=(1, 2)).argmax()) in chosen


def test_the_square_lies_around_the_masks_in_mm_and_never_beyond_the_slice():
    marked = np.zeros((200, 400), bool)  # pixels of 1 mm by 0.5 mm: 200 mm by 200 mm
    marked[90:110, 180:220] = True  # 20 mm by 20 mm around the middle; 60 mm is the least
    assert choose_square(marked, (1.0, 0.5)) == pytest.approx((70, 140, 60, 120))
    marked[40:110] = marked[100]  # 70 mm high: 70 + 2 * 12
    assert choose_square(marked, (1.0, 0.5)) == pytest.approx((75 - 47, 200 - 94, 94, 188))
    marked[:] = False
    marked[0, 0] = True  # in the corner
    assert choose_square(marked, (1.0, 0.5)) == pytest.approx((0, 0, 60, 120))
    marked[:] = True
    assert choose_square(marked, (1.0, 0.5)) == pytest.approx((0, 0, 200, 400))
    assert choose_square(np.zeros((30, 30), bool), (1.0, 1.0)) == pytest.approx((0, 0, 30, 30))


def test_a_contour_lies_on_the_border_of_its_mask_two_pixels_wide():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 12:28] = True
    square = (0.0, 0.0, 40.0, 40.0)
    scale = TILE / 40
    drawn = contour_pixels(mask, square)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert [rows[0] + 1, rows[-1]] == pytest.approx([10 * scale, 20 * scale], abs=0.51)
    assert [columns[0] + 1, columns[-1]] == pytest.approx([12 * scale, 28 * scale], abs=0.51)
    middle = drawn[:, TILE // 2]  # crosses the upper and the lower border, nothing between
    assert middle.sum() == 4
    assert drawn[round(15 * scale)].sum() == 4
    assert not contour_pixels(np.zeros((40, 40), bool), square).any()


def test_a_dashed_contour_is_part_of_the_solid_one_with_gaps():
    z, x = np.ogrid[:60, :60]
    mask = (z - 30) ** 2 + (x - 30) ** 2 < 20**2
    square = (0.0, 0.0, 60.0, 60.0)
    solid, dashed = contour_pixels(mask, square), contour_pixels(mask, square, dashed=True)
    assert not (dashed & ~solid).any()
    assert 0.5 < dashed.sum() / solid.sum() < 0.75  # 9 of 15


def test_a_contour_beyond_the_tile_is_cut_off():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    drawn = contour_pixels(mask, (10.0, 10.0, 20.0, 20.0))
    assert not drawn.any()
    drawn = contour_pixels(mask, (0.0, 10.0, 20.0, 20.0))
    assert set(np.flatnonzero(drawn.any(axis=1))) == {round(5 * TILE / 20) - 1, round(5 * TILE / 20)}


# --- the picture -------------------------------------------------------------------------------------------------

COUNT, SIZE = 12, 96


def scan():
    """A CT of 1 mm pixels: 30 HU, a block of blood in slices 4 to 8, on the patient's right."""
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    affine[:3, 3] = (SIZE / 2, SIZE / 2, 0)
    hu = np.full((COUNT, SIZE, SIZE), 30, np.int16)
    reader = np.zeros(hu.shape, bool)
    reader[4:9, 30:50, 20:44] = True
    reader[8, 30:34, 20:44] = False
    network = np.zeros(hu.shape, bool)
    network[4:9, 34:54, 20:44] = True
    hu[reader] = 60
    return hu, affine, reader, network


def stored_backwards(axis, hu, affine, reader, network):
    """The same scan with one axis of (z, y, x) reversed in memory."""
    turned = np.eye(4)
    turned[2 - axis, 2 - axis], turned[2 - axis, 3] = -1, hu.shape[axis] - 1
    return np.flip(hu, axis), affine @ turned, np.flip(reader, axis), np.flip(network, axis)


def relevant(affine, at, coarse=4):
    """A map that is 1 in the coarse voxel around the voxel `at` (z, y, x) and 0 elsewhere."""
    grid = affine @ np.array(
        [[coarse, 0, 0, (coarse - 1) / 2], [0, coarse, 0, (coarse - 1) / 2], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    relevance = np.zeros((COUNT, SIZE // coarse, SIZE // coarse), np.float32)
    relevance[at[0], at[1] // coarse, at[2] // coarse] = 1
    return relevance, grid


def rgb(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def tiles(png):
    """Colours of the tiles, [slice][view] (row, column, 3)."""
    picture = rgb(png)
    count = (len(picture) - HEAD) // (TILE + 3)
    return [
        [picture[top : top + TILE, left : left + TILE] for top, left in (tile_place(n, k) for k in range(3))]
        for n in range(count)
    ]


def where(tile, colour):
    return np.argwhere((tile == colour).all(axis=-1))


def test_contours_stand_where_the_masks_are_and_only_in_the_second_view():
    hu, affine, reader, network = scan()
    png, places = draw_card(hu, affine, reader, network, *relevant(affine, (6, 0, 0)), EVERYWHERE)
    assert places["slices"] == [5, 6, 7, 8, 9]  # counted from 1 at the foot
    assert places["slice_count"] == COUNT
    plain, contours, overlay = tiles(png)[2]
    # Rows 30 to 54 and columns 20 to 44 are marked; the square has 60 mm: it begins at row 12 and column 2.
    scale = TILE / 60
    red, green = where(contours, READER), where(contours, NETWORK)
    assert red[:, 0].min() + 1 == pytest.approx((30 - 12) * scale, abs=1)
    assert green[:, 0].max() == pytest.approx((54 - 12) * scale, abs=1)
    assert red[:, 1].min() + 1 == pytest.approx((20 - 2) * scale, abs=1)
    assert green[:, 1].max() == pytest.approx((44 - 2) * scale, abs=1)
    for tile in (plain, overlay):
        assert not len(where(tile, READER))
        assert not len(where(tile, NETWORK))
    blood = plain[round((40 - 12) * scale), round((30 - 2) * scale)]
    brain = plain[round((60 - 12) * scale), round((30 - 2) * scale)]
    assert blood == pytest.approx([255 * 60 / 80] * 3, abs=255 / GREYS)
    assert brain == pytest.approx([255 * 30 / 80] * 3, abs=255 / GREYS)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_picture_does_not_depend_on_how_the_array_is_stored(axis):
    relevance = relevant(scan()[1], (6, 40, 32))
    first = draw_card(*scan(), *relevance, EVERYWHERE)
    second = draw_card(*stored_backwards(axis, *scan()), *relevance, EVERYWHERE)
    assert np.array_equal(rgb(first[0]), rgb(second[0]))
    assert first[1] == second[1]


def test_what_speaks_for_expansion_is_coloured_where_it_lies_and_only_in_the_third_view():
    hu, affine, reader, network = scan()
    # Voxels 40 to 43 and 56 to 59 of slice 6, on brain beside the haematoma.
    png, places = draw_card(hu, affine, reader, network, *relevant(affine, (6, 40, 56)), EVERYWHERE)
    scale = TILE / 60
    violet = np.argwhere(np.ptp(tiles(png)[2][2], axis=-1) > 40)
    assert violet.mean(axis=0) == pytest.approx([(42 - 12) * scale, (58 - 2) * scale], abs=2)
    assert np.ptp(tiles(png)[2][0], axis=-1).max() == 0
    assert np.ptp(tiles(png)[0][2], axis=-1).max() == 0  # two slices below there is nothing
    strongest = tiles(png)[2][2][round((42 - 12) * scale), round((58 - 2) * scale)]
    assert np.abs(strongest - np.array(RELEVANCE)).max() < 0.45 * 255  # mostly violet, the CT shines through
    assert (places["relevance_found"], places["relevance_peak_slice"], places["overview_slice"]) == (True, 7, 7)


def test_the_last_row_shows_the_strongest_place_wherever_it_lies():
    hu, affine, reader, network = scan()
    png, places = draw_card(hu, affine, reader, network, *relevant(affine, (1, 88, 80)), EVERYWHERE)
    assert (places["relevance_peak_slice"], places["overview_slice"]) == (2, 2)
    views = tiles(png)
    assert len(views) == SLICES + 1
    scale = TILE / SIZE  # the whole slice, 96 mm
    violet = np.argwhere(np.ptp(views[-1][2], axis=-1) > 40)
    assert violet.mean(axis=0) == pytest.approx([90 * scale, 82 * scale], abs=1.5)
    assert all(np.ptp(row[2], axis=-1).max() == 0 for row in views[:-1])  # far from the haematoma


def test_a_map_that_is_strongest_beyond_the_scan_is_told():
    hu, affine, reader, network = scan()
    relevance, grid = relevant(affine, (6, 40, 32))
    grid[2, 3] += 100
    _, places = draw_card(hu, affine, reader, network, relevance, grid, EVERYWHERE)
    assert (places["relevance_found"], places["relevance_peak_slice"], places["overview_slice"]) == (True, None, 5)


def test_a_map_of_nothing_colours_nothing():
    hu, affine, reader, network = scan()
    relevance, grid = relevant(affine, (6, 40, 32))
    png, places = draw_card(hu, affine, reader, network, relevance * 0, grid, EVERYWHERE)
    assert (places["relevance_found"], places["relevance_peak_slice"]) == (False, None)
    assert places["overview_slice"] == 5  # the largest area
    assert Image.open(io.BytesIO(png)).mode == "P"
    assert np.asarray(Image.open(io.BytesIO(png))).max() < FIRST


def test_the_whole_head_fills_the_last_row():
    affine = scan()[1]
    hu = np.full((COUNT, 250, 250), -1000, np.int16)
    hu[:, 60:160, 100:196] = 30  # 100 mm by 96 mm
    masks = np.zeros((2, *hu.shape), bool)
    masks[:, 4:9, 100:110, 120:130] = True
    png, _ = draw_card(hu, affine, *masks, *relevant(affine, (6, 40, 32)), EVERYWHERE)
    head = tiles(png)[-1][0].sum(axis=-1) > 0
    scale = TILE / 106  # with the 3 mm of the montage above and below
    assert head[:, TILE // 2].sum() == pytest.approx(100 * scale, abs=4)
    assert head[TILE // 2].sum() == pytest.approx(96 * scale, abs=4)


def test_the_edge_of_the_field_of_view_is_drawn_where_it_lies():
    hu, affine, reader, network = scan()
    # From column 10 to column 50 of the scan, all rows; x runs to the right, columns to the left.
    field = (np.array([SIZE / 2 - 50.0, -1e4, -1e4]), np.array([SIZE / 2 - 10.0, 1e4, 1e4]))
    png, _ = draw_card(hu, affine, reader, network, *relevant(affine, (6, 40, 32)), field)
    yellow = where(tiles(png)[2][2], FIELD)
    scale = TILE / 60
    assert yellow[:, 1].min() == pytest.approx((10.5 - 2) * scale, abs=1)
    assert yellow[:, 1].max() == pytest.approx((50.5 - 2) * scale, abs=1)
    assert len(where(tiles(png)[2][1], FIELD)) == 0


def test_a_slice_outside_the_field_of_view_is_named():
    hu, affine, reader, network = scan()
    field = (np.array([-1e4, -1e4, 27.5]), np.array([1e4, 1e4, 1e4]))  # slices of 5 mm: from index 6 on
    png, _ = draw_card(hu, affine, reader, network, *relevant(affine, (11, 0, 0)), field)
    words = [np.abs(row[0] - row[2])[-20:].sum() for row in tiles(png)[:SLICES]]
    assert [count > 0 for count in words] == [True, True, False, False, False]


def test_an_empty_network_mask_and_two_empty_masks_are_drawn():
    hu, affine, reader, network = scan()
    relevance = relevant(affine, (6, 40, 32))
    png, _ = draw_card(hu, affine, reader, network & False, *relevance, EVERYWHERE)
    assert not any(len(where(row[1], NETWORK)) for row in tiles(png))
    assert len(where(tiles(png)[2][1], READER))
    png, places = draw_card(hu, affine, reader & False, network & False, *relevance, EVERYWHERE)
    assert places["slices"] == [5, 6, 7, 8, 9]  # the middle of twelve
    assert not any(len(where(row[1], READER)) for row in tiles(png))


def test_contours_have_the_colours_and_the_style_of_figure_3():
    import haemex.figures

    source = inspect.getsource(haemex.figures).upper()
    for colour in (READER, NETWORK):
        assert "#{:02X}{:02X}{:02X}".format(*colour) in source


def test_a_noisy_picture_is_small_and_the_same_bytes_again():
    rng = np.random.default_rng(5)
    affine = np.diag([-0.45, -0.45, 5.0, 1.0])
    hu = rng.normal(32, 5, (12, 300, 300)).astype(np.int16)
    z, y, x = np.ogrid[:12, :300, :300]
    reader = ((z - 6) / 4) ** 2 + ((y - 150) / 60) ** 2 + ((x - 140) / 50) ** 2 < 1
    network = np.roll(reader, 6, axis=1)
    hu[reader] += 30
    relevance, grid = relevant(affine @ np.diag([300 / 96, 300 / 96, 1, 1]), (6, 40, 40), coarse=8)
    first, second = (draw_card(hu, affine, reader, network, relevance, grid, EVERYWHERE)[0] for _ in range(2))
    assert first == second
    assert len(first) < 80_000


# --- the stage ---------------------------------------------------------------------------------------------------


def paths(R, out):
    return {
        "cohort_path": R / "cohort/cohort.tsv",
        "predictions_path": R / "predict/predictions.tsv",
        "out_of_fold_path": R / "select/predictions.tsv",
        "model_path": R / "final/model/model.json",
        "dice_path": R / "evaluate/dice.tsv",
        "convert_folder": R / "convert",
        "measure_folder": R / "measure",
        "predict_folder": R / "predict",
        "markers_folder": R / "markers",
        "out_folder": out,
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"), matrix=32, slices=8)
    for path in sorted((study.R / "predict/maps").glob("*_grid.nii.gz")):
        shape, affine = read_grid(path)
        relevance = np.zeros([size // 4 for size in shape], np.float32)
        relevance[0, 4, 4] = 1
        target = path.with_name(path.name.replace("_grid", "_relevance"))
        if not target.exists():
            write_volume(target, relevance, affine @ np.diag([4, 4, 4, 1.0]), slope=2**-14)
    evaluate_study(**study.evaluate)
    write_cards(**paths(study.R, study.R / "cards"))
    study.cards = json.loads((study.R / "cards/cards.json").read_text())
    return study


def test_every_patient_has_one_card_and_one_picture(study):
    assert sorted(card["patient"] for card in study.cards) == sorted(row["patient"] for row in study.rows)
    for card in study.cards:
        picture = Image.open(study.R / f"cards/pictures/{card['patient']}.png")
        assert picture.mode == "P"
    assert {path.name for path in (study.R / "cards").iterdir()} == {"cards.json", "pictures"}
    pictures = {path.name for path in (study.R / "cards/pictures").iterdir()}
    assert pictures == {f"{card['patient']}.png" for card in study.cards}


def test_every_number_equals_the_table_it_came_from(study):
    tables = {
        name: {row["patient"]: row for row in read_table(study.R / f"{name}.tsv")}
        for name in ("predict/predictions", "select/predictions", "evaluate/dice", "cohort/cohort")
    }
    for card in study.cards:
        patient = card["patient"]
        dice, member = tables["evaluate/dice"][patient], tables["cohort/cohort"][patient]
        assert card["cohort"] == member["cohort"]
        for name in ("expansion", "baseline_ml", "followup_ml"):
            assert card[name] == member[name]
        for name, column in (
            ("dice", "dice_native"),
            ("hd95_mm", "hd95_native_mm"),
            ("manual_ml", "reference_ml"),
            ("network_ml", "predicted_ml"),
            ("failure", "failure"),
            ("dice_out_of_fold", "dice_out_of_fold"),
        ):
            assert card[name] == dice[column]
        if card["cohort"] == "test":
            row = tables["predict/predictions"][patient]
            for name in ("probability", "calibrated_probability", "positive", "ensemble_probability", "ensemble_sd"):
                assert card[name] == row[name]
        else:
            assert card["probability"] == tables["select/predictions"][patient]["probability"]
            assert card["probability"] != tables["predict/predictions"][patient]["probability"]
        assert card["wrong"] == (card["expansion"] != (card["probability"] >= study.threshold))
        markers = json.loads((study.R / f"markers/{patient}.json").read_text())
        assert [one["evidence"] for one in card["markers"]] == [
            markers["markers"][marker]["evidence"] for marker in MARKERS
        ]
        apart = [one["label"] for one in card["markers"] if one["differs"]]
        assert len(apart) == len(markers["disagreements"])


def test_the_file_stands_in_the_order_promised(study):
    cohorts = [card["cohort"] for card in study.cards]
    assert cohorts == ["test"] * TEST + ["train"] * TRAIN
    for cohort in ("test", "train"):
        wrong = [card["wrong"] for card in study.cards if card["cohort"] == cohort]
        assert wrong == sorted(wrong, reverse=True)
        errors = [card["error"] for card in study.cards if card["cohort"] == cohort and card["wrong"]]
        assert errors == sorted(errors, reverse=True)


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    write_cards(**paths(study.R, tmp_path))
    for path in (study.R / "cards").rglob("*.*"):
        assert (tmp_path / path.relative_to(study.R / "cards")).read_bytes() == path.read_bytes(), path.name


def test_a_patient_missing_from_a_table_is_refused_and_named(study, tmp_path):
    table = tmp_path / "dice.tsv"
    table.write_bytes((study.R / "evaluate/dice.tsv").read_bytes())
    change_table(table, lambda rows: [row for row in rows if row["patient"] != "P003"])
    with pytest.raises(InputError, match=r"dice\.tsv: patient P003 is not in it"):
        write_cards(**paths(study.R, tmp_path) | {"dice_path": table})
    assert not (tmp_path / "cards.json").exists()


# --- the page ----------------------------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    """Checks that tags are nested well; collects the attributes of each kind of tag, and the text of each card."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.card, self.texts, self.folded = [], {}, None, {}, {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))
        if tag == "article":
            self.card = dict(attributes)["id"]
            self.folded[self.card] = "details" in self.open
        if tag not in ("img", "br"):
            self.open.append(tag)
        if tag in ("td", "th", "dt", "dd", "p"):
            self.handle_data(" ")

    def handle_startendtag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "article":
            self.card = None

    def handle_data(self, data):
        if self.card:
            self.texts[self.card] = self.texts.get(self.card, "") + data


def page(cards):
    """The section as the report includes it."""
    environment = report_environment(ROOT / "workflow/report")
    shown = [card | {"image": "data:image/png;base64,AAAA"} for card in cards]
    return environment.get_template("cards.html.j2").render(cards=shown)


def words(text):
    return " ".join(text.split())


def complete(**changed):
    """A card with places, as in the file."""
    places = {"slices": [5, 6, 7, 8, 9], "overview_slice": 7, "slice_count": 12}
    places |= {"relevance_found": True, "relevance_peak_slice": 7}
    return make_card(**one_patient(**changed)) | places


def test_the_page_prints_the_numbers_of_the_cards(study):
    tags = Tags(page(study.cards))
    assert [one["id"] for one in tags.found["article"]] == [f"card-{card['patient']}" for card in study.cards]
    assert all(one["loading"] == "lazy" for one in tags.found["img"])
    for card in study.cards:
        text = words(tags.texts[f"card-{card['patient']}"])
        assert card["verdict"] in text
        assert f"reader {card['manual_ml']:.1f} mL, network {card['network_ml']:.1f} mL" in text
        assert f"{card['probability']:.3f} as the network gave it (threshold {card['threshold']:.3f})" in text
        assert re.search(rf"Dice {card['dice']:.2f}", text)
        assert text.count("differs") == sum(one["differs"] for one in card["markers"]) + (
            None not in (card["bat_score"], card["bat_score_read"]) and card["bat_score"] != card["bat_score_read"]
        )
        assert tags.folded[f"card-{card['patient']}"] == (card["cohort"] == "train")
    listed = {one["href"].removeprefix("#card-") for one in tags.found["a"]}
    assert listed == {card["patient"] for card in study.cards if card["wrong"] or card["failure"]}
    assert "open" not in tags.found["details"][0]


def test_a_complete_card_reads_as_it_should():
    text = words(Tags(page([complete()])).texts["card-P007"])
    assert "P007 test cohort Wrong: expansion missed." in text
    assert "expansion; 20.0 → 30.0 mL (+10.0 mL, +50 %)" in text
    assert "negative; probability of expansion 0.30 calibrated, 0.250 as the network gave it (threshold 0.500)" in text
    assert "mean 0.28, SD 0.05, uncalibrated" in text
    assert "reader 20.0 mL, network 18.5 mL (−1.5 mL); second reader 21.0 mL, Dice of the readers 0.93" in text
    assert "Dice 0.80, HD95 3.0 mm" in text
    assert "Onset to CT 2.0 h" in text
    assert "BAT score read 4, computed 2: differs" in text
    assert "Hypodensities present absent differs" in text
    assert "Swirl sign swirl; slice 3 not read present" in text
    assert "Blend sign present undecided" in text
    assert "Last row: slice 7, in which most speaks for expansion." in text


def test_what_is_missing_is_said():
    card = complete(
        expansion=None,
        member__followup_ml=None,
        prediction__ensemble_probability=None,
        prediction__ensemble_sd=None,
        overlap__dice_native=0.0,
        overlap__hd95_native_mm=None,
        overlap__predicted_ml=0.0,
        overlap__failure="nothing found",
        overlap__inside_fraction=0.93,
        measured__rater2_ml=None,
        measured__rater_dice=None,
        markers__onset_to_ct_h=None,
        markers__bat_score=None,
        markers__bat_score_read=None,
    )
    text = words(Tags(page([card | {"relevance_found": False, "relevance_peak_slice": None}])).texts["card-P007"])
    assert "Outcome not known. Outline: nothing found." in text
    assert "not known; 20.0 → not known Network" in text
    assert "Fold models not asked" in text
    assert "second reader" not in text
    assert "no HD95, for one outline is empty" in text
    assert "only 93.0 % of the haematoma lie inside the network's field of view" in text
    assert "Onset to CT not known" in text
    assert "BAT score read not known, computed not known" in text
    assert "Nothing in the image speaks for expansion; last row: largest area." in text


def test_a_card_of_the_training_cohort_says_who_has_seen_the_patient():
    text = words(Tags(page([complete(cohort="train", overlap__dice_out_of_fold=0.71)])).texts["card-P007"])
    assert "Network, out-of-fold" in text
    assert "not shown: all but one were trained on this patient" in text
    assert "by the final model, which was trained on this patient; out-of-fold Dice 0.71" in text
    assert "contour and the violet are the final model's" in text
    assert "final model" not in words(Tags(page([complete()])).texts["card-P007"])


def test_text_is_escaped():
    given = one_patient()
    given["markers"]["markers"]["swirl"]["evidence"] = "<script>alert(1)</script> & 3 < 4"
    card = complete() | {"markers": make_card(**given)["markers"]}
    text = page([card])
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 3 &lt; 4" in text


def test_a_page_without_training_cohort_has_nothing_to_unfold():
    assert "<details" not in page([complete()])


def test_nothing_but_codes_and_numbers_is_written(study, identity):
    text = (study.R / "cards/cards.json").read_text() + page(study.cards)
    assert not any(one in text for one in identity)
    assert str(study.R) not in text


def test_the_field_of_view_is_that_of_the_network(study):
    shape, affine = read_grid(study.R / "predict/maps/P001_grid.nii.gz")
    low, high = field_box(affine, shape[::-1])
    assert high - low == pytest.approx([160, 160, 80])
