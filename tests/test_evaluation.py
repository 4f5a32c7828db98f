"""Evaluation: the numbers of Table 2, every leak that must be refused, and the files of the stage."""

import itertools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fabricated_study import TEST, TRAIN, change_json, change_table, fabricate

from haemex.calibration import calibrate
from haemex.calibration_fit import fit_calibration
from haemex.errors import InputError
from haemex.evaluation import (
    EVALUATION_FILES,
    acquisition_table,
    agreement_table,
    calibration_summary,
    check_roles,
    ensemble_summary,
    evaluate_study,
    optimistic_points,
    score_patients,
    segmentation_failure,
    segmentation_summary,
    table_two,
)
from haemex.markers import MARKERS
from haemex.nifti import read_volume, write_volume
from haemex.tables import read_table, write_table

BASELINES = {
    "volume": {"intercept": -3.0, "coefficient": 0.1, "threshold": 0.5, "rule": "youden", "patients": 9},
    "bat": {"intercept": -2.0, "coefficient": 0.5, "threshold": 0.3, "rule": "youden", "patients": 9},
}
LOCKED = {"threshold": 0.5, "rule": "youden"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"))
    evaluate_study(**study.evaluate)
    return study


@pytest.fixture
def study(tmp_path):
    return fabricate(tmp_path, matrix=24, slices=6)


def made_up(labels, **columns):
    """Rows as `score_patients` gives them; what is not given is harmless."""
    rows = []
    for i, label in enumerate(labels):
        row = {"patient": f"T{i}", "expansion": label, "probability": 0.1 + 0.01 * i, "positive": 0, "baseline_ml": 1.0}
        row |= dict.fromkeys(("hypodensity", "black_hole", "swirl", "blend", "fluid_level"), 0)
        row |= {"irregular_shape": 0, "heterogeneous_density": 0, "bat_score": 0, "volume": 0.2, "bat": 0.2}
        row |= {"cnn": float(i), "logit": float(i), "calibrated_probability": 0.3}
        rows.append(row | {name: values[i] for name, values in columns.items()})
    return rows


def two(scores, baselines=BASELINES, bat_cut=3):
    return {row["row"]: row for row in table_two(scores, LOCKED, baselines, bat_cut, 0.95)}


# --- Table 2 -----------------------------------------------------------------------------------------------------


def test_paper_table_two(shared):
    """The markers' rows of the paper, from its counts."""
    paper = json.loads((shared / "statistics" / "table2.json").read_text())
    labels = [1] * 22 + [0] * 55
    column_of = {name: column for column, name in MARKERS.items()}
    checked = 0
    for printed in paper["rows"]:
        counts = printed["counts"]
        if printed["name"] not in column_of:
            continue
        decisions = [1] * counts["tp"] + [0] * counts["fn"] + [0] * counts["tn"] + [1] * counts["fp"]
        row = two(made_up(labels, **{column_of[printed["name"]]: decisions}))[printed["name"]]
        for cell, expected in printed["cells"].items():
            measure, _, part = cell.partition(".")
            if measure != "p_value":
                name = measure if part == "estimate" else f"{measure}_{part}"
                assert row[name] == pytest.approx(expected["value"], abs=1e-9), (printed["name"], cell)
                checked += 1
    assert checked == 7 * 15


def test_network_row_by_hand():
    # 3 with and 4 without expansion; the network finds 2 and errs on 1.
    labels = [1, 1, 1, 0, 0, 0, 0]
    logits = [3.0, 2.0, -1.0, 2.0, -2.0, -3.0, -4.0]
    positive = [1, 1, 0, 1, 0, 0, 0]
    row = two(made_up(labels, cnn=logits, logit=logits, positive=positive))["CNN"]
    assert (row["tp"], row["fn"], row["tn"], row["fp"]) == (2, 1, 3, 1)
    assert row["sensitivity"] == pytest.approx(2 / 3)
    assert row["specificity"] == pytest.approx(3 / 4)
    assert row["lr_pos_weighted"] == pytest.approx(2.0)
    assert row["lr_neg_weighted"] == pytest.approx(1 / 3)
    assert row["lr_pos"] == pytest.approx((2 / 3) / (1 / 4))
    assert row["lr_neg"] == pytest.approx((1 / 3) / (3 / 4))
    assert row["ppv"] == pytest.approx(2 / 3)
    assert row["npv"] == pytest.approx(3 / 4)
    # Pairs won: 4 + 3.5 + 3 of 12 (the tie counts one half).
    assert row["auc"] == pytest.approx(10.5 / 12)
    assert row["p"] is None and row["p_holm"] is None and row["auc_difference"] is None


def test_auc_is_won_pairs_and_difference_is_network_minus_row():
    rng = np.random.default_rng(1)
    labels = [int(x) for x in rng.random(30) < 0.4]
    volume, cnn = rng.normal(size=30).round(1).tolist(), rng.normal(size=30).round(1).tolist()
    table = two(made_up(labels, volume=volume, cnn=cnn))

    def pairs(values):
        cases = [v for v, y in zip(values, labels, strict=True) if y]
        controls = [v for v, y in zip(values, labels, strict=True) if not y]
        won = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(cases, controls)]
        return sum(won) / len(won)

    assert table["Haematoma volume"]["auc"] == pytest.approx(pairs(volume))
    assert table["Haematoma volume"]["auc_difference"] == pytest.approx(pairs(cnn) - pairs(volume))


def test_holm_over_the_nine_comparisons():
    rng = np.random.default_rng(4)
    labels = [1] * 20 + [0] * 30
    markers = {
        name: (rng.random(50) < 0.3).astype(int).tolist()
        for name in ("hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape")
    }
    cnn = [3.0 * y + x for y, x in zip(labels, rng.normal(size=50), strict=True)]
    table = two(made_up(labels, cnn=cnn, **markers))
    p = {name: row["p"] for name, row in table.items() if name != "CNN"}
    assert len(p) == 9
    smallest = min(p, key=p.get)
    assert table[smallest]["p_holm"] == pytest.approx(min(1, 9 * p[smallest]))
    largest = max(p.values())
    assert all(row["p_holm"] >= row["p"] for name, row in table.items() if name != "CNN")
    assert max(row["p_holm"] for name, row in table.items() if name != "CNN") >= largest


def test_bat_is_cut_at_the_score_and_ranked_by_the_model():
    scores = [0, 2, 3, 5]
    rows = made_up([0, 0, 1, 1], bat_score=scores, bat=[0.1, 0.2, 0.3, 0.4])
    assert two(rows, bat_cut=3)["BAT score"]["fp"] == 0
    assert two(rows, bat_cut=3)["BAT score"]["tp"] == 2
    assert two(rows, bat_cut=2)["BAT score"]["fp"] == 1
    assert two(rows)["BAT score"]["threshold"] == 3


def test_optimistic_points_by_hand_are_never_worse_in_youden():
    rows = made_up([1, 1, 0, 0, 0], bat_score=[3, None, 1, 0, 2], volume=[0.4, 0.3, 0.35, 0.1, 0.2])
    for row, probability in zip(rows, [0.6, 0.5, 0.55, 0.2, 0.1], strict=True):
        row["probability"] = probability
    points = optimistic_points(rows, 0.95)
    # From half-way between 0.5 and 0.2 on both are found and one of three is called wrongly.
    assert points["CNN"]["threshold"] == pytest.approx(0.35)
    assert (points["CNN"]["sensitivity"], points["CNN"]["specificity"]) == (1, pytest.approx(2 / 3))
    assert points["BAT score"]["threshold"] == 2.5 and points["BAT score"]["specificity"] == 1
    assert points["Haematoma volume"]["threshold"] == pytest.approx(0.25)
    assert "BAT score" not in optimistic_points([row | {"bat_score": None} for row in rows], 0.95)


def test_missing_reading_leaves_the_patient_out_of_that_row_only():
    labels = [1, 1, 1, 0, 0, 0]
    swirl = [1, None, 0, 0, 0, 1]
    cnn = [3.0, -9.0, 1.0, 0.0, 2.0, -1.0]
    table = two(made_up(labels, swirl=swirl, cnn=cnn))
    assert table["Swirl sign"]["n"] == 5 and table["Swirl sign"]["expansions"] == 2
    assert table["Blend sign"]["n"] == 6
    # On the five patients both have, the network wins 5 of 6 pairs; swirl wins 2 and ties 3.
    assert table["Swirl sign"]["auc_difference"] == pytest.approx(5 / 6 - 3.5 / 6)


def test_marker_nobody_read_gives_an_empty_row():
    row = two(made_up([1, 0, 1, 0], fluid_level=[None] * 4))["Fluid level"]
    assert row["n"] == 0
    assert row["sensitivity"] is None and row["auc"] is None and row["p"] is None


def test_without_a_bat_model_its_row_is_empty():
    marker = dict.fromkeys(MARKERS)
    test = [{"patient": f"T{i}", "expansion": i % 2, "baseline_ml": 1.0, "bat_score": None, **marker} for i in range(4)]
    predictions = {
        f"T{i}": {"probability": 0.5, "logit": 0.0, "calibrated_probability": 0.5, "positive": 1} for i in range(4)
    }
    models = {"volume": BASELINES["volume"]}
    row = two(score_patients(test, predictions, models), models)["BAT score"]
    assert row["n"] == 0 and row["auc"] is None and row["p"] is None


def test_negative_coefficient_is_said_and_never_turned_round():
    test = [
        {"patient": f"T{i}", "expansion": y, "baseline_ml": v, "bat_score": None}
        for i, (y, v) in enumerate([(1, 30.0), (1, 20.0), (0, 25.0), (0, 5.0)])
    ]
    for row in test:
        row |= dict.fromkeys(MARKERS)
    predictions = {
        f"T{i}": {"probability": 0.5, "logit": 0.0, "calibrated_probability": 0.5, "positive": 1} for i in range(4)
    }
    falling = {**BASELINES, "volume": {**BASELINES["volume"], "coefficient": -0.1}}
    up = two(score_patients(test, predictions, BASELINES))["Haematoma volume"]
    down = two(score_patients(test, predictions, falling), falling)["Haematoma volume"]
    assert up["auc"] == pytest.approx(3 / 4)
    assert down["auc"] == pytest.approx(1 / 4)
    assert "negative" in down["note"] and "negative" not in up["note"]


# --- leaks -------------------------------------------------------------------------------------------------------


def on_both_sides(s):
    change_table(s.R / "train/base/fold0/roles.tsv", lambda r: [*r, {"patient": "P001", "copy": "1", "role": "train"}])
    return "P001 is on the training and on the validation side"


def outsider_in_a_fold(s):
    change_table(
        s.R / "train/rate_1e-3/fold2/roles.tsv", lambda r: [*r, {"patient": "P015", "copy": "4", "role": "train"}]
    )
    return "P015 of the test cohort took part in training rate_1e-3/fold2"


def outsider_in_the_final_training(s):
    change_table(s.R / "final/roles.tsv", lambda r: [*r, {"patient": "P014", "copy": "0", "role": "train"}])
    return "P014 of the test cohort took part in training final"


def stranger(s):
    change_table(s.R / "final/roles.tsv", lambda r: [*r, {"patient": "X9", "copy": "0", "role": "train"}])
    return "X9 who is in neither cohort"


def validated_on_a_copy(s):
    change_table(
        s.R / "train/base/fold1/roles.tsv",
        lambda r: [row | ({"copy": "3"} if row["role"] == "validation" else {}) for row in r],
    )
    return "validated on augmented copy 3 of patient P004"


def against_the_folds(s):
    change_table(
        s.R / "train/base/fold0/roles.tsv",
        lambda r: (
            [row for row in r if row["patient"] != "P004"] + [{"patient": "P004", "copy": "scan", "role": "validation"}]
        ),
    )
    return "P004 is on the validation side of base/fold0, against the folds"


def left_out_of_a_training(s):
    change_table(s.R / "train/base/fold0/roles.tsv", lambda r: [row for row in r if row["patient"] != "P004"])
    return "P004 of the training cohort is missing from training base/fold0"


def never_validated(s):
    change_table(s.R / "select/predictions.tsv", lambda r: [row for row in r if row["patient"] != "P007"])
    return "P007 of the training cohort has no out-of-fold prediction"


def validated_twice(s):
    change_table(s.R / "select/predictions.tsv", lambda r: [*r, r[3]])
    return "P004 has more than one out-of-fold prediction"


def outsider_out_of_fold(s):
    change_table(s.R / "select/predictions.tsv", lambda r: [*r, {**r[0], "patient": "P020"}])
    return "P020 has an out-of-fold prediction but is not in the training cohort"


def other_label(s):
    change_table(s.R / "select/predictions.tsv", lambda r: [{**r[0], "expansion": 1 - int(r[0]["expansion"])}, *r[1:]])
    return "P001 has another fold or label"


def one_scan_two_patients(s):
    digest = json.loads((s.R / "measure/P003.json").read_text())["pixel_digest"]["baseline"]
    change_json(s.R / "measure/P018.json", lambda m: m["pixel_digest"].update(followup=digest))
    return "P003 and P018 have the same scan"


def threshold_from_the_test_cohort(s):
    change_json(s.R / "select/selected.json", lambda m: m.update(threshold=0.31))
    return r"threshold in selected.json is 0.31"


def threshold_in_the_bundle(s):
    change_json(s.R / "final/model/model.json", lambda m: m["operating_point"].update(threshold=0.31))
    return r"threshold in model.json is 0.31"


def calibration_from_elsewhere(s):
    change_json(s.R / "final/model/model.json", lambda m: m["calibration"].update(slope=3.0))
    return "calibration in model.json"


def other_calibration_method(s):
    knots = {"method": "isotonic", "logit": [0.0, 1.0], "probability": [0.2, 0.8]}
    change_json(s.R / "final/model/model.json", lambda m: m.update(calibration=knots))
    return r"calibration in model.json \(isotonic regression with 2 levels\)"


def calibration_unusable(s):
    change_json(s.R / "select/selected.json", lambda m: m["calibration"].update(slope=None))
    return "calibration cannot be used: slope is None"


def decision_turned(s):
    change_table(
        s.R / "predict/predictions.tsv",
        lambda r: [row | ({"positive": 1 - int(row["positive"])} if row["patient"] == "P016" else {}) for row in r],
    )
    return "decision on patient P016"


def recalibrated_by_hand(s):
    change_table(
        s.R / "predict/predictions.tsv",
        lambda r: [row | ({"calibrated_probability": 0.9123} if row["patient"] == "P017" else {}) for row in r],
    )
    return "calibrated probability of patient P017"


LEAKS = (
    on_both_sides,
    outsider_in_a_fold,
    outsider_in_the_final_training,
    stranger,
    validated_on_a_copy,
    against_the_folds,
    left_out_of_a_training,
    never_validated,
    validated_twice,
    outsider_out_of_fold,
    other_label,
    one_scan_two_patients,
    threshold_from_the_test_cohort,
    threshold_in_the_bundle,
    calibration_from_elsewhere,
    other_calibration_method,
    calibration_unusable,
    decision_turned,
    recalibrated_by_hand,
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("clean"), matrix=24, slices=6)


@pytest.mark.parametrize("plant", LEAKS, ids=lambda plant: plant.__name__)
def test_every_leak_is_refused_and_nothing_is_written(plant, clean, tmp_path):
    shutil.copytree(clean.R, tmp_path, dirs_exist_ok=True)
    there = SimpleNamespace(R=tmp_path)
    moved = {name: _moved(value, clean.R, tmp_path) for name, value in clean.evaluate.items()}
    expected = plant(there)
    with pytest.raises(InputError, match=expected):
        evaluate_study(**moved)
    assert not (tmp_path / "evaluate").exists()


def _moved(value, old, new):
    if isinstance(value, list) and value and hasattr(value[0], "relative_to"):
        return [new / one.relative_to(old) for one in value]
    return new / value.relative_to(old) if hasattr(value, "relative_to") else value


def test_patient_in_both_cohorts(study):
    rows = [*study.rows, {**study.rows[0], "cohort": "test"}]
    with pytest.raises(InputError, match="P001 is in the training and in the test cohort"):
        check_roles(rows, {}, [], [], {})


def test_leaks_table_is_a_proof_with_counts(finished):
    leaks = read_table(finished.R / "evaluate/leaks.tsv")
    assert {row["verdict"] for row in leaks} == {"passed"}
    told = "\n".join(row["compared"] for row in leaks)
    assert f"{2 * (TRAIN + TEST)} scans, {TRAIN + TEST} patients" in told
    # Six trainings of 4 validation scans and 8 x 2 copies, and the final one of 12 x 2.
    assert f"{6 * (4 + 16) + 24} roles of {7 * 12} patients in 7 trainings" in told


def test_thresholds_do_not_feel_the_test_cohort(study):
    evaluate_study(**study.evaluate)
    before = json.loads((study.R / "evaluate/summary.json").read_text())["baselines"]
    for row in study.rows:
        if row["cohort"] == "test":
            row.update(
                baseline_ml=row["baseline_ml"] * 7 + 3, bat_score=5 - row["bat_score"], expansion=1 - row["expansion"]
            )
    evaluate_study(**study.evaluate)
    assert json.loads((study.R / "evaluate/summary.json").read_text())["baselines"] == before


def test_sensitivity_rule_is_recomputed_too(study):
    settings = {**study.evaluate, "operating_point": "sensitivity", "min_sensitivity": 0.2}
    with pytest.raises(InputError, match=r"threshold in selected.json"):
        evaluate_study(**settings)


# --- the other tables --------------------------------------------------------------------------------------------


def test_all_files_and_the_same_bytes_again(finished, tmp_path):
    assert sorted(path.name for path in (finished.R / "evaluate").iterdir()) == sorted(EVALUATION_FILES)
    evaluate_study(**{**finished.evaluate, "out_folder": tmp_path})
    for name in EVALUATION_FILES:
        assert (tmp_path / name).read_bytes() == (finished.R / "evaluate" / name).read_bytes()
        assert str(finished.R).encode() not in (tmp_path / name).read_bytes()


def test_dice_against_sets_of_voxels(finished):
    rows = {row["patient"]: row for row in read_table(finished.R / "evaluate/dice.tsv")}
    assert len(rows) == TRAIN + TEST
    for patient in ("P002", "P013", "P020"):
        for column, a, b in (
            ("dice_native", f"measure/{patient}_haematoma.nii.gz", f"predict/{patient}_haematoma.nii.gz"),
            ("dice_grid", f"resample/{patient}_haematoma.nii.gz", f"predict/{patient}_grid.nii.gz"),
        ):
            sets = [{tuple(v) for v in np.argwhere(read_volume(finished.R / one)[0])} for one in (a, b)]
            expected = 2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1]))
            assert rows[patient][column] == pytest.approx(expected)
    assert rows["P015"]["dice_native"] == 0 and rows["P015"]["predicted_ml"] == 0
    assert rows["P013"]["dice_out_of_fold"] is None
    assert rows["P002"]["dice_out_of_fold"] == finished.out_of_fold[1]["dice"]


def test_masks_on_other_grids_are_refused(study):
    path = study.R / "predict/P013_haematoma.nii.gz"
    mask, affine = read_volume(path)
    shifted = affine.copy()
    shifted[2, 3] += 5
    write_volume(path, mask, shifted)
    with pytest.raises(InputError, match="different grids"):
        evaluate_study(**study.evaluate)


def test_patient_without_prediction(study):
    change_table(study.R / "predict/predictions.tsv", lambda r: [row for row in r if row["patient"] != "P019"])
    with pytest.raises(InputError, match="P019 has no prediction"):
        evaluate_study(**study.evaluate)


def test_missing_reading_is_counted(finished):
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    assert summary["missing_in_test"]["swirl"] == 1
    assert summary["table2"]["Swirl sign"]["n"] == TEST - 1


def test_segmentation_summary_by_hand():
    rows = [
        {"cohort": "test", "dice_native": d, "dice_grid": d, "dice_out_of_fold": None, "reference_ml": 10.0}
        | {"predicted_ml": p, "inside_fraction": f, "hd95_native_mm": h, "hd95_grid_mm": h, "assd_native_mm": 2.0}
        | {"assd_grid_mm": None}
        for d, p, f, h in ((0.0, 0.0, 0.5, math.nan), (0.8, 12.0, 1.0, 4.0), (0.9, 9.0, 0.995, 7.0))
    ]
    test = segmentation_summary(rows, 0.95)["test"]
    assert test["native"]["median"] == 0.8 and test["native"]["min"] == 0
    assert test["native"]["mean"] == pytest.approx(1.7 / 3)
    assert test["missed"] == 1 and test["cut_off"] == 1 and test["least_inside"] == 0.5
    # One patient has no surface of the network's: the other two count, and the table says how many.
    assert (test["hd95_native"]["n"], test["hd95_native"]["median"], test["hd95_native"]["max"]) == (2, 5.5, 7.0)
    assert test["assd_native"]["mean"] == 2 and test["assd_grid"] is None and test["failures"] == 1
    differences = np.array([-10.0, 2.0, -1.0])
    spread = 1.959964 * differences.std(ddof=1)
    assert test["volume_difference_ml"] == pytest.approx([-3.0, -3.0 - spread, -3.0 + spread], abs=1e-4)


def test_surface_distances_are_those_of_the_files(finished):
    from haemex.surface_distance import surface_distances

    rows = {row["patient"]: row for row in read_table(finished.R / "evaluate/dice.tsv")}
    for grid, a, b in (
        ("native", "measure/P016_haematoma.nii.gz", "predict/P016_haematoma.nii.gz"),
        ("grid", "resample/P016_haematoma.nii.gz", "predict/P016_grid.nii.gz"),
    ):
        (one, affine), (other, _) = read_volume(finished.R / a), read_volume(finished.R / b)
        hd95, assd = surface_distances(one, other, affine)
        assert (rows["P016"][f"hd95_{grid}_mm"], rows["P016"][f"assd_{grid}_mm"]) == (hd95, assd)
        assert 0 < assd < hd95 < 20
    lost = rows["P015"]
    assert lost["hd95_native_mm"] is None and lost["assd_native_mm"] is None and lost["failure"] == "nothing found"
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())["segmentation"]["test"]
    assert summary["hd95_native"]["n"] == TEST - 1


@pytest.mark.parametrize(
    ("dice", "ml", "said"),
    [(0.0, 0.0, "nothing found"), (0.0, 3.0, "missed"), (0.49, 3.0, "Dice below 0.5"), (0.5, 3.0, "")],
)
def test_failed_outlines_are_named(dice, ml, said):
    assert segmentation_failure({"dice_native": dice, "predicted_ml": ml}) == said


def test_precision_names_estimates_of_table_two_and_dice(finished):
    rows = {row["measure"]: row for row in read_table(finished.R / "evaluate/precision.tsv")}
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    cnn = summary["table2"]["CNN"]
    for measure, name in (("AUC", "auc"), ("Sensitivity", "sensitivity"), ("Specificity", "specificity")):
        row = rows[measure]
        assert row["estimate"] == pytest.approx(cnn[name])
        assert (row["formula_lower"], row["formula_upper"]) == (cnn[f"{name}_lower"], cnn[f"{name}_upper"])
    for grid, label in (("native", "acquired grid"), ("grid", "network's grid")):
        row = rows[f"Dice, median, {label}"]
        assert row["estimate"] == summary["segmentation"]["test"][grid]["median"]
        assert row["bootstrap_lower"] <= row["estimate"] <= row["bootstrap_upper"]
    # Resamples of one outcome only have no AUC: (5/8)^8 + (3/8)^8 of them.
    assert rows["AUC"]["resamples"] / 2000 == pytest.approx(1 - (5 / 8) ** 8 - (3 / 8) ** 8, abs=0.02)
    assert rows["Dice, median, acquired grid"]["resamples"] == 2000


def test_the_seed_of_the_study_decides_the_bootstrap_and_nothing_else(finished, tmp_path):
    evaluate_study(**{**finished.evaluate, "out_folder": tmp_path, "seed": 8})
    changed = [
        name
        for name in EVALUATION_FILES
        if (tmp_path / name).read_bytes() != (finished.R / "evaluate" / name).read_bytes()
    ]
    assert changed == ["precision.tsv"]


def test_subgroups_and_definitions_add_up_to_the_test_cohort(finished):
    groups = read_table(finished.R / "evaluate/subgroups.tsv")
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    cnn = summary["table2"]["CNN"]
    whole = groups[0]
    assert (whole["n"], whole["auc"], whole["sensitivity"]) == (TEST, cnn["auc"], cnn["sensitivity"])
    for division in {row["division"] for row in groups}:
        members = [row for row in groups if row["division"] == division]
        assert sum(row["n"] for row in members) == TEST
        assert sum(row["expansions"] for row in members) == cnn["expansions"]
    training = [row["baseline_ml"] for row in finished.rows if row["cohort"] == "train"]
    low = next(row["group"] for row in groups if row["division"].startswith("Haematoma volume"))
    assert low == f"below {np.quantile(training, 1 / 3):.1f} mL"
    own = read_table(finished.R / "evaluate/label_sensitivity.tsv")[0]
    assert (own["flips"], own["auc"], own["expansions"]) == (0, cnn["auc"], cnn["expansions"])


def test_calibration_of_true_probabilities_is_perfect():
    rng = np.random.default_rng(3)
    logits = rng.normal(-1, 1.5, 20000)
    labels = rng.random(20000) < 1 / (1 + np.exp(-logits))
    # The network is overconfident by a factor of two; the calibration undoes it.
    rows = [
        {"expansion": int(y), "logit": 2 * x, "probability": 1 / (1 + math.exp(-2 * x))}
        | {"calibrated_probability": 1 / (1 + math.exp(-x))}
        for y, x in zip(labels, logits.tolist(), strict=True)
    ]
    platt = {"method": "platt", "intercept": 0.0, "slope": 0.5}
    summary = calibration_summary(rows, platt, float(labels.mean()), 0.95)
    for name, truth in (("slope", 1), ("intercept", 0), ("ratio", 1)):
        assert summary["calibrated"][f"{name}_lower"] < truth < summary["calibrated"][f"{name}_upper"]
    assert summary["raw"]["slope_upper"] < 1
    assert summary["calibrated"]["slope"] == pytest.approx(1, abs=0.06)
    assert summary["calibrated"]["intercept"] == pytest.approx(0, abs=0.06)
    assert summary["raw"]["slope"] == pytest.approx(0.5, abs=0.03)
    assert summary["expected"] == pytest.approx(summary["observed"], rel=0.03)
    share = labels.mean()
    assert summary["brier_of_share"] == pytest.approx(share * (1 - share))
    assert summary["calibrated"]["brier"] < summary["raw"]["brier"] < summary["brier_of_share"] * 1.2


def test_isotonic_calibration_is_recomputed_and_summarised(study):
    labels = [row["expansion"] for row in study.out_of_fold]
    knots = fit_calibration("isotonic", labels, [row["logit"] for row in study.out_of_fold])

    def calibrated(row):
        return row | {"calibrated_probability": calibrate(knots, float(row["logit"]))}

    for path in ("select/selected.json", "final/model/model.json"):
        change_json(study.R / path, lambda content: content.update(calibration=knots))
    change_table(study.R / "predict/predictions.tsv", lambda rows: [calibrated(row) for row in rows])
    evaluate_study(**study.evaluate)
    summary = json.loads((study.R / "evaluate/summary.json").read_text())["calibration"]
    test = [row for row in study.predictions if row["cohort"] == "test"]
    claimed = [calibrate(knots, row["logit"]) for row in test]
    assert summary["expected"] == pytest.approx(sum(claimed))
    outcomes = [row["expansion"] for row in study.rows if row["cohort"] == "test"]
    score = sum((p - y) ** 2 for p, y in zip(claimed, outcomes, strict=True)) / TEST
    assert summary["calibrated"]["brier"] == pytest.approx(score)
    assert all(math.isfinite(summary["calibrated"][name]) for name in ("intercept", "slope"))
    change_json(study.R / "final/model/model.json", lambda m: m["calibration"]["probability"].__setitem__(0, 0.01))
    with pytest.raises(InputError, match=r"calibration in model\.json"):
        evaluate_study(**study.evaluate)


def test_ensemble_speaks_of_test_patients_only(finished):
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())["ensemble"]
    # SDs rise by 0.01 with every patient: the test patients' are 0.13 to 0.20.
    assert summary == {"models": 3, "median_sd": pytest.approx(0.165), "largest_sd": pytest.approx(0.2)}
    silent = [{"ensemble_probability": None, "ensemble_sd": None}] * 4
    assert ensemble_summary(silent, [{}] * 5) == {"models": 0, "median_sd": None, "largest_sd": None}
    alone = [{"ensemble_probability": 0.3, "ensemble_sd": None}] * 4
    assert ensemble_summary(alone, [{}]) == {"models": 1, "median_sd": None, "largest_sd": None}


def test_acquisition_ranges_and_gaps():
    def scan(model, thickness, slices, spacing, window):
        fov = None if spacing is None else [512 * spacing] * 2
        return {
            "acquisition": {"manufacturer": "GE", "model": model, "slice_thickness_mm": thickness, "slices": slices}
            | {"matrix": [512, 512], "pixel_spacing_mm": None if spacing is None else [spacing] * 2}
            | {"field_of_view_mm": fov, "window_width": window, "window_level": None},
            "geometry": {"tilt_deg": 12.0 if model == "A" else 0.1, "even": slices != 30},
        }

    rows = [{"patient": f"P{i}", "cohort": "train" if i < 2 else "test"} for i in range(4)]
    table = acquisition_table(
        rows,
        {
            "P0": scan("A", 5.0, 28, 0.4, 90.0),
            "P1": scan("A", 5.0, 34, 0.55, 80.0),
            "P2": scan("A", 5.0, 30, 0.45, None),
            "P3": scan("B", None, 27, None, None),
        },
    )
    a, b = table
    assert (a["scanner"], a["train"], a["test"]) == ("GE A", 2, 1)
    assert a["slices"] == "28–34" and a["slice_thickness_mm"] == "5.0"
    assert a["voxel_size_mm"] == "0.4000–0.5500 × 0.4000–0.5500 × 5.0"
    assert a["field_of_view_mm"] == "205–282 × 205–282" and a["matrix"] == "512 × 512"
    assert a["window_width"] == "80–90" and a["window_level"] == ""
    assert (a["tilted"], a["uneven"]) == (3, 1)
    assert b["voxel_size_mm"] == "" and b["slice_thickness_mm"] == "" and b["tilted"] == 0


def test_agreement_of_masks_and_nothing_read_twice():
    markers = dict.fromkeys(MARKERS)
    measured = {
        "A": {"baseline_ml": 10.0, "rater2_ml": 11.0, "rater_dice": 0.9},
        "B": {"baseline_ml": 20.0, "rater2_ml": 18.0, "rater_dice": 0.98},
        "C": {"baseline_ml": 5.0, "rater2_ml": None, "rater_dice": None},
    }
    dice, icc, volume = agreement_table([dict(markers)], measured, 0.95)
    # Patients' mean square 72.25, readers' 0.25, error 2.25: 70 / (72.25 + 2.25 + 2 * (0.25 - 2.25) / 2).
    assert icc["measure"].startswith("ICC(2,1)") and icc["estimate"] == pytest.approx(70 / 72.5)
    assert (dice["n"], dice["estimate"], dice["lower"], dice["upper"]) == (2, pytest.approx(0.94), 0.9, 0.98)
    assert volume["estimate"] == pytest.approx(-0.5)
    assert agreement_table([dict(markers)], {"C": measured["C"]}, 0.95) == []


def test_tables_keep_full_precision_and_patients_as_text(tmp_path):
    rows = [{"patient": "007", "value": 0.1 + 0.2, "n": 3, "gone": None, "nan": math.nan}]
    write_table(tmp_path / "t.tsv", rows)
    assert read_table(tmp_path / "t.tsv") == [{"patient": "007", "value": 0.1 + 0.2, "n": 3, "gone": None, "nan": None}]
