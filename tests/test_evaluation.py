"""Evaluation: the files of the stage, precision, calibration, agreement, acquisition."""

import json
import math

import numpy as np
import pytest
from fabricated_study import TEST, change_json, change_table, fabricate

from haemex.calibration import calibrate
from haemex.calibration_fit import fit_calibration
from haemex.errors import InputError
from haemex.evaluation import (
    EVALUATION_FILES,
    acquisition_table,
    agreement_table,
    calibration_summary,
    ensemble_summary,
    evaluate_study,
)
from haemex.markers import MARKERS
from haemex.subgroups import WITHOUT_SCANNER
from haemex.tables import read_table, write_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"))
    evaluate_study(**study.evaluate)
    return study


@pytest.fixture
def study(tmp_path):
    return fabricate(tmp_path, matrix=24, slices=6)


# --- the other tables --------------------------------------------------------------------------------------------


def test_all_files_and_the_same_bytes_again(finished, tmp_path):
    assert sorted(path.name for path in (finished.R / "evaluate").iterdir()) == sorted(EVALUATION_FILES)
    evaluate_study(**{**finished.evaluate, "out_folder": tmp_path})
    for name in EVALUATION_FILES:
        assert (tmp_path / name).read_bytes() == (finished.R / "evaluate" / name).read_bytes()
        assert str(finished.R).encode() not in (tmp_path / name).read_bytes()


def test_patient_without_prediction(study):
    change_table(study.R / "predict/predictions.tsv", lambda r: [row for row in r if row["patient"] != "P019"])
    with pytest.raises(InputError, match="P019 has no prediction"):
        evaluate_study(**study.evaluate)


def test_missing_reading_is_counted(finished):
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    assert summary["missing_in_test"]["swirl"] == 1
    assert summary["table2"]["Swirl sign"]["n"] == TEST - 1


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
        if division == WITHOUT_SCANNER:  # of two scanners each patient is left out once
            assert [row["group"][:8] for row in members] == ["without "] * 2
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
        {"GE A": 2, "not among these": 7},  # of the model's training cohort, wherever it was
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
