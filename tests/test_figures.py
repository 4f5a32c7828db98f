"""Figures: what is drawn where, and the same bytes every time."""

import shutil

import numpy as np
import pytest
from fabricated_study import fabricate

from haemex.evaluation import evaluate_study
from haemex.figures import (
    FIGURES,
    calibration_groups,
    choose_overlays,
    draw_calibration,
    draw_decision_curve,
    draw_dice,
    draw_figures,
    draw_flow,
    draw_overlays,
    draw_probability,
    draw_roc,
    draw_subgroups,
    draw_training,
    draw_volumes,
    radiological,
    save,
)
from haemex.nifti import write_volume
from haemex.tables import read_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"))
    evaluate_study(**study.evaluate)
    draw_figures(**study.figures)
    return study


def texts(figure):
    import matplotlib.text

    return [one.get_text() for one in figure.findobj(matplotlib.text.Text) if one.get_text()]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


# --- files -------------------------------------------------------------------------------------------------------


def test_every_figure_as_png_svg_and_pdf(finished):
    for name in FIGURES:
        assert (finished.R / f"evaluate/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (finished.R / f"evaluate/{name}.svg").read_bytes()
        assert (finished.R / f"evaluate/{name}.pdf").read_bytes().startswith(b"%PDF")


def test_same_bytes_again_without_date_or_path(finished, tmp_path):
    for table in [*(finished.R / "evaluate").glob("*.tsv"), finished.R / "evaluate/summary.json"]:
        shutil.copy(table, tmp_path)
    draw_figures(**{**finished.figures, "evaluate_folder": tmp_path})
    drawn = sorted(path for path in tmp_path.iterdir() if path.suffix in (".png", ".svg", ".pdf"))
    assert len(drawn) == 3 * len(FIGURES)
    for path in drawn:
        again = path.read_bytes()
        assert again == (finished.R / "evaluate" / path.name).read_bytes(), path.name
        assert b"<dc:date>" not in again and b"CreationDate" not in again and str(finished.R).encode() not in again


# --- orientation -------------------------------------------------------------------------------------------------

SHAPE = (4, 6, 8)  # z, y, x


def axes_affine(codes, spacing=(0.5, 0.7, 5.0)):
    """Affine of a grid whose indices run towards `codes`, e.g. "LPS"; spacing along x, y, z index."""
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for index, (code, step) in enumerate(zip(codes, spacing, strict=True)):
        axis, sign = letters[code]
        affine[axis, index] = sign * step
    return affine


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "RPI", "PLS", "ARI"])
def test_patients_right_is_left_and_anterior_is_up(codes):
    affine = axes_affine(codes)
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    mm = np.stack([x, y, z], -1) @ affine[:3, :3].T
    for axis, display_axis, sign in ((0, 2, -1), (1, 1, -1), (2, 0, 1)):  # R-L, A-P, I-S against slices
        turned, _ = radiological(mm[..., axis], affine)
        steps = np.diff(turned, axis=display_axis)
        assert (np.sign(steps) == sign).all()
        for other in {0, 1, 2} - {display_axis}:
            assert (np.diff(turned, axis=other) == 0).all()


@pytest.mark.parametrize(("codes", "expected"), [("LPS", (0.7, 0.5)), ("PLS", (0.5, 0.7))])
def test_spacing_follows_the_axes(codes, expected):
    assert radiological(np.zeros(SHAPE), axes_affine(codes))[1] == pytest.approx(expected)


def test_gantry_tilt_moves_no_voxel():
    affine = axes_affine("LPS")
    affine[1, 2] = 2.0  # each slice shifted to the front
    volume = np.random.default_rng(0).normal(size=SHAPE)
    turned, _ = radiological(volume, affine)
    assert (turned == volume).all()


def test_contours_lie_where_the_haematoma_is(tmp_path):
    """A haematoma in the patient's left, anterior quarter is drawn top right; stored on an unusual grid (RAS)."""
    shape, affine = (5, 60, 50), axes_affine("RAS", (3.0, 3.0, 5.0))
    ct = np.full(shape, -1000, np.int16)
    ct[:, 5:55, 5:45] = 30
    manual, network = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    manual[1:3, 40:48, 10:16] = 1  # x small: left; y large: anterior
    manual[2, 38:50, 8:18] = 1
    network[2, 10:20, 30:40] = 1  # right, posterior
    for name, volume in (("ct", ct), ("manual", manual), ("network", network)):
        write_volume(tmp_path / f"{name}.nii.gz", volume, affine)
    case = {"patient": "P1", "rank": 1, "of": 3, "dice_native": 0.0, "reference_ml": 7.0, "predicted_ml": 9.0}
    case |= {k: tmp_path / f"{v}.nii.gz" for k, v in (("ct", "ct"), ("reference", "manual"), ("predicted", "network"))}
    figure = draw_overlays([case])
    image = pixels(figure)
    box = figure.axes[0].get_window_extent()
    height = image.shape[0]
    panel = image[int(height - box.y1) : int(height - box.y0), int(box.x0) : int(box.x1)]
    red = np.argwhere((panel[..., 0] > 200) & (panel[..., 1] < 110) & (panel[..., 2] < 110)).mean(0) / panel.shape[:2]
    green = np.argwhere((panel[..., 1] > 200) & (panel[..., 0] < 110)).mean(0) / panel.shape[:2]
    # The head box is 5 to 45 of x and 5 to 55 of y with a margin of 4 pixels; x and y are mirrored.
    assert red == pytest.approx([(58.5 - 43.5) / 58, (48.5 - 12.5) / 48], abs=0.03)
    assert green == pytest.approx([(58.5 - 14.5) / 58, (48.5 - 34.5) / 48], abs=0.03)
    assert any("slice 3 of 5" in text and "best" in text for text in texts(figure))


def test_overlay_of_empty_masks_still_draws(tmp_path):
    write_volume(tmp_path / "ct.nii.gz", np.full((3, 9, 9), 30, np.int16), np.eye(4))
    write_volume(tmp_path / "none.nii.gz", np.zeros((3, 9, 9), np.uint8), np.eye(4))
    case = {"patient": "P1", "rank": 1, "of": 1, "dice_native": 1.0, "reference_ml": 0.0, "predicted_ml": 0.0}
    case |= {"ct": tmp_path / "ct.nii.gz", "reference": tmp_path / "none.nii.gz", "predicted": tmp_path / "none.nii.gz"}
    assert any("slice 2 of 3" in text for text in texts(draw_overlays([case])))


# --- choices -----------------------------------------------------------------------------------------------------


def test_overlays_are_evenly_spaced_ranks():
    rows = [{"patient": f"P{i:02d}", "dice_native": d} for i, d in enumerate([0.5, 0.9, 0.7, 0.8, 0.6, 0.9, 0.1])]
    chosen = choose_overlays(rows, 3)
    assert [row["patient"] for row in chosen] == ["P01", "P02", "P06"]  # best (of equals the first), median, worst
    assert [row["rank"] for row in chosen] == [1, 4, 7] and chosen[0]["of"] == 7
    assert [row["rank"] for row in choose_overlays(rows, 99)] == list(range(1, 8))
    assert len(choose_overlays(rows, 1)) == 1


def test_calibration_groups():
    assert [calibration_groups(n) for n in (4, 30, 45, 77, 1000)] == [2, 2, 3, 5, 5]


# --- numbers in the pictures -------------------------------------------------------------------------------------


def test_flow_of_the_paper():
    flow = {
        "screened": 317,
        "not_included": {"age": 0, "onset_to_ct": 0, "followup_interval": 0, "missing_data": 0},
        "included": 317,
        "excluded": {"died_or_surgery": 11, "infratentorial": 29, "poor_image_quality": 8, "ventricular_only": 3},
        "eligible": 266,
        "outside_dates": 0,
        "train": 189,
        "test": 77,
        "expansion": {"train": 52, "test": 22},
    }
    said = texts(draw_flow(flow))
    for expected in (
        "Excluded (n = 51)",
        "infratentorial haematoma (n = 29)",
        "Training cohort (n = 189)",
        "with haematoma expansion: 52, 27.5 %",
        "with haematoma expansion: 22, 28.6 %",
        "Analysed (n = 266)",
    ):
        assert expected in said
    assert not any("Not included" in text or "outside" in text for text in said)  # nothing to show, nothing shown


def test_text_of_the_flow_diagram_stays_in_its_box():
    reasons = {"infratentorial": 1111, "ventricular_only": 1111, "died_or_surgery": 1111, "poor_image_quality": 1111}
    flow = {"screened": 99999, "included": 99999, "eligible": 99999, "outside_dates": 1111, "train": 8888, "test": 7777}
    flow |= {
        "not_included": {"age": 1111, "onset_to_ct": 1111, "followup_interval": 1111, "missing_data": 1111},
        "excluded": reasons,
        "expansion": {"train": 4444, "test": 3333},
    }
    figure = draw_flow(flow)
    figure.canvas.draw()
    boxes = [p.get_window_extent() for p in figure.axes[0].patches if hasattr(p, "get_boxstyle")]
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert any(b.x0 < extent.x0 and extent.x1 < b.x1 and b.y0 < extent.y0 and extent.y1 < b.y1 for b in boxes), text


def test_roc_goes_through_its_operating_point(finished):
    scores = read_table(finished.R / "evaluate/scores.tsv")
    table2 = read_table(finished.R / "evaluate/table2.tsv")
    figure = draw_roc(scores, table2, 0.95)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    row = next(row for row in table2 if row["row"] == "CNN")
    label = f"CNN: {row['auc']:.2f} ({row['auc_lower']:.2f} to {row['auc_upper']:.2f})"
    curve = lines[label].get_xydata()
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1]
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(row["auc"])
    point = [1 - row["specificity"], row["sensitivity"]]
    assert min(np.abs(curve - point).sum(1)) == pytest.approx(0, abs=1e-9)
    drawn = [line.get_xydata()[0] for line in figure.axes[0].lines if len(line.get_xydata()) == 1]
    assert any(np.allclose(one, point) for one in drawn)


def test_roc_prints_what_the_table_prints(finished):
    scores = read_table(finished.R / "evaluate/scores.tsv")
    table2 = read_table(finished.R / "evaluate/table2.tsv")
    for row in table2:
        if row["row"] == "CNN":  # halves go up, as in the tables; a lone event has an AUC without an interval
            row |= {"auc": 0.625, "auc_lower": 0.545, "auc_upper": 0.705}
        elif row["row"] == "BAT score":
            row |= {"auc_lower": None, "auc_upper": None}
    said = [line.get_label() for line in draw_roc(scores, table2, 0.95).axes[0].lines]
    assert "CNN: 0.63 (0.55 to 0.71)" in said
    assert any(label.startswith("BAT score") and label.endswith("(no interval)") for label in said)


def test_bland_altman_lines():
    rows = [{"reference_ml": r, "predicted_ml": p} for r, p in ((10, 12), (20, 19), (30, 35))]
    right = draw_volumes(rows).axes[1]
    heights = sorted({round(line.get_ydata()[0], 6) for line in right.lines})
    difference = np.array([2, -1, 5])
    spread = 1.96 * difference.std(ddof=1)
    assert heights == pytest.approx(sorted([0, 2 - spread, 2, 2 + spread]))


def test_training_curves_skip_epochs_without_validation(finished):
    rows = read_table(finished.R / "train/base/fold0/history.tsv")
    for row in rows[:-1]:
        row["val_dice_median"] = None
    figure = draw_training({"fold0": rows, "final": read_table(finished.R / "final/history.tsv")})
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 1]
    assert len(figure.axes[1].lines[0].get_xdata()) == 1


def test_small_groups_get_no_box(finished):
    rows = [{"patient": f"P{i}", "expansion": int(i < 2), "probability": 0.1 * i} for i in range(9)]
    figure = draw_probability(rows, rows, 0.5)
    # A box plot draws seven lines (box, two whiskers, two caps, median, no fliers), a small group one; one threshold.
    assert len(figure.axes[0].lines) == 1 + 1 + 6
    assert "0.05" in texts(figure)


def test_calibration_counts_add_up(finished):
    import json

    scores = read_table(finished.R / "evaluate/scores.tsv")
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    counts = [text.split("/") for text in texts(draw_calibration(scores, summary)) if text.replace("/", "").isdigit()]
    counts = [pair for pair in counts if len(pair) == 2]
    assert sum(int(events) for events, _ in counts) == summary["cohorts"]["test"]["expansions"]
    assert sum(int(patients) for _, patients in counts) == summary["cohorts"]["test"]["patients"]


def test_decision_curves_are_those_of_the_table(finished):
    table = read_table(finished.R / "evaluate/decision_curve.tsv")
    axes = draw_decision_curve(table).axes[0]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    names = {"CNN": "cnn", "haematoma volume": "volume", "BAT score": "bat", "everybody": "all", "nobody": "none"}
    assert drawn == {label: [row[name] for row in table] for label, name in names.items()}
    without = draw_decision_curve([row | {"bat": None} for row in table])
    assert "BAT score" not in texts(without)


def test_forest_has_a_line_for_every_group_and_says_where_there_is_no_auc(finished):
    table = read_table(finished.R / "evaluate/subgroups.tsv")
    table.append(
        {**table[1], "group": "silent", "auc": None, "auc_lower": None, "auc_upper": None, "note": "no AUC here"}
    )
    figure = draw_subgroups(table, 0.95)
    said = [text.strip() for text in texts(figure)]
    for row in table[1:]:
        assert row["group"].removeprefix("without ") in said and row["division"] in said
    # As a scanner of its own, and once more as the one left out.
    assert "Without one scanner" in said and said.count("GE MEDICAL SYSTEMS Optima CT540") == 2
    assert "no AUC here" in said
    intervals = [
        line for line in figure.axes[1].lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    ]
    known = [row for row in table if row["auc_lower"] is not None]
    assert [tuple(line.get_xdata()) for line in intervals] == [(row["auc_lower"], row["auc_upper"]) for row in known]
    counted = sum(text == f"{row['expansions']} / {row['n']}" for row in table[:1] for text in said)
    assert counted >= 1


def test_dice_without_out_of_fold_values(finished, tmp_path):
    rows = [row for row in read_table(finished.R / "evaluate/dice.tsv") if row["cohort"] == "test"]
    figure = draw_dice(rows)
    assert len(figure.axes[0].get_xticks()) == 2
    save(figure, tmp_path / "dice")
    assert (tmp_path / "dice.svg").exists()
