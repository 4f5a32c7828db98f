"""A locked model at another centre: the numbers of the bundle are applied, nothing is fitted, and leaks are refused."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from fabricated_study import EXPANSION, PREPARATION, TEST, TRAIN, as_external, change_json, change_table, fabricate

from haemex.calibration import calibrated_logit
from haemex.calibration_measures import calibration_in_the_large, calibration_line
from haemex.clinical import clinical_rows
from haemex.comparators import make_comparators, read_comparators, same_comparators
from haemex.errors import InputError
from haemex.evaluation import EVALUATION_FILES, evaluate_study
from haemex.external_evaluation import evaluate_external
from haemex.files import read_json
from haemex.model_description import check_weights, fold_numbers, read_description, refuse_other_preparation
from haemex.tables import read_table


@pytest.fixture
def study(tmp_path):
    return as_external(fabricate(tmp_path, matrix=24, slices=6))


@pytest.fixture
def bundle(finished, tmp_path):
    """A copy of the model bundle alone."""
    return Path(shutil.copytree(finished.R / "final/model", tmp_path / "model"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"), matrix=24, slices=6)
    evaluate_study(**study.evaluate)
    evaluate_external(**as_external(study).external)
    return study


# --- the results -------------------------------------------------------------------------------------------------


def test_the_same_patients_elsewhere_give_the_same_results(finished):
    """What `evaluate_study` says of its test cohort is what an external evaluation of these very patients says."""
    home, away = finished.R / "evaluate", finished.R / "external"
    assert sorted(path.name for path in away.iterdir()) == sorted(EVALUATION_FILES)
    same = ("table2", "scores", "precision", "subgroups", "label_sensitivity", "decision_curve")
    for name in same:
        assert (away / f"{name}.tsv").read_bytes() == (home / f"{name}.tsv").read_bytes(), name
    assert read_table(away / "dice.tsv") == [row for row in read_table(home / "dice.tsv") if row["cohort"] == "test"]
    one, other = (read_json(folder / "summary.json") for folder in (home, away))
    assert (one["external"], other["external"]) == (False, True)
    recalibrated = other["calibration"].pop("recalibrated")
    assert set(recalibrated) == {"intercept_only", "intercept_and_slope"}
    assert set(one) - set(other) == {"out_of_fold", "selection"}
    assert set(other) - set(one) == {"characteristics", "definition", "reference"}
    for group, cohort in ((other["characteristics"], "test"), (other["reference"]["characteristics"], "train")):
        ages = [row["age_years"] for row in finished.rows if row["cohort"] == cohort]
        age = next(row for row in group if row["variable"] == "age_years")
        assert age["value"].startswith(f"{sum(ages) / len(ages):.1f}±") and age["n"] == len(ages)
    assert set(other["reference"]) == {"patients", "expansions", "definition", "scanners", "characteristics"}
    assert other["reference"]["definition"] == other["definition"] == EXPANSION
    assert set(other["segmentation"]) == {"test"} and other["segmentation"]["test"] == one["segmentation"]["test"]
    for name in set(other) - {"external", "segmentation", "leaks", "characteristics", "definition", "reference"}:
        assert other[name] == one[name], name
    assert other["cohorts"]["train"] == {"patients": TRAIN, "expansions": 4}


def test_training_patients_by_scanner_come_from_the_bundle(finished):
    table = {row["scanner"]: (row["train"], row["test"]) for row in read_table(finished.R / "external/acquisition.tsv")}
    assert table == {"GE MEDICAL SYSTEMS Optima CT540": (6, 4), "SIEMENS SOMATOM Force": (6, 4)}


def test_recalibration_stands_beside_and_changes_nothing(finished):
    """Fitted on the calibrated logits of these patients, by the known functions; the locked numbers stay."""
    summary = read_json(finished.R / "external/summary.json")
    bundle = read_json(finished.R / "final/model/model.json")
    scores = read_table(finished.R / "external/scores.tsv")
    labels = [row["expansion"] for row in scores]
    logits = [calibrated_logit(bundle["calibration"], row["logit"]) for row in scores]
    found = summary["calibration"]["recalibrated"]
    alone = found["intercept_only"]
    expected = calibration_in_the_large(labels, logits, 0.95)
    assert (alone["intercept"], alone["intercept_lower"], alone["intercept_upper"]) == pytest.approx(tuple(expected))
    assert (alone["slope"], alone["slope_lower"]) == (1.0, None)
    for name, line in zip(("intercept", "slope"), calibration_line(labels, logits, 0.95), strict=True):
        both = found["intercept_and_slope"]
        assert (both[name], both[f"{name}_lower"], both[f"{name}_upper"]) == pytest.approx(tuple(line))
    # Least squares of a fit on its own patients: no worse than what was locked, which stands there unchanged.
    locked = summary["calibration"]["calibrated"]
    assert found["intercept_and_slope"]["brier"] <= locked["brier"] + 0.02
    assert summary["operating_point"]["threshold"] == bundle["operating_point"]["threshold"]
    assert [row["calibrated_probability"] for row in scores] == [
        row["calibrated_probability"] for row in read_table(finished.R / "predict/predictions.tsv")
    ]


def test_the_proof_says_what_was_compared(finished):
    proof = read_table(finished.R / "external/leaks.tsv")
    assert {row["verdict"] for row in proof} == {"passed"}
    text = "\n".join(f"{row['check']}: {row['compared']}" for row in proof)
    assert f"{2 * TEST} scans of {TEST} patients against {2 * TRAIN} scans of {TRAIN} training patients" in text
    assert f"bat on {TRAIN}, volume on {TRAIN} of {TRAIN} training patients, 0 of {TEST} patients" in text
    assert "4 files of weights" in text
    assert read_json(finished.R / "external/summary.json")["leaks"] == {"checks": len(proof), "verdict": "passed"}


def test_labels_of_the_other_centre_decide_nothing_the_results_rest_on(finished, tmp_path):
    rows = [row | {"expansion": 1 - row["expansion"]} for row in finished.external["rows"]]
    evaluate_external(**finished.external | {"rows": rows, "out_folder": tmp_path})
    for name in ("dice.tsv", "leaks.tsv", "acquisition.tsv", "agreement.tsv"):
        assert (tmp_path / name).read_bytes() == (finished.R / "external" / name).read_bytes()
    one, other = (read_json(folder / "summary.json") for folder in (finished.R / "external", tmp_path))
    for name in ("operating_point", "baselines", "segmentation", "ensemble", "leaks"):
        assert one[name] == other[name]
    assert one["table2"]["CNN"]["auc"] == pytest.approx(1 - other["table2"]["CNN"]["auc"])


# --- leaks -------------------------------------------------------------------------------------------------------


def a_training_scan(s):
    change_json(
        s.R / "measure/P015.json",
        lambda m: m["pixel_digest"].update(followup=hashlib.sha256(b"P003 baseline").hexdigest()),
    )
    return "very scan of patient P015 \\(followup\\)"


def one_scan_twice(s):
    change_json(
        s.R / "measure/P015.json",
        lambda m: m["pixel_digest"].update(baseline=hashlib.sha256(b"P016 baseline").hexdigest()),
    )
    return "patients P015 and P016 have the same scan"


def a_training_cohort(s):
    s.external["rows"][2]["cohort"] = "train"
    return "P015 is in a training cohort"


def other_weights(s):
    (s.R / "final/model/fold1.safetensors").write_bytes(b"others")
    return "fold1.safetensors: the weights are not those"


def lost_weights(s):
    (s.R / "final/model/model.safetensors").unlink()
    return "model.safetensors: no readable weights"


def a_threshold_of_ones_own(s):
    s.external["rows"] = [row for row in s.external["rows"] if row["patient"] != "P013"]
    rows = read_table(s.R / "predict/predictions.tsv", as_text=True)
    turned = next(row["patient"] for row in rows if row["patient"] != "P013")
    change_table(
        s.R / "predict/predictions.tsv",
        lambda r: [row | ({"positive": 1 - int(row["positive"])} if row["patient"] == turned else {}) for row in r],
    )
    return f"decision on patient {turned} does not follow"


def recalibrated(s):
    change_table(
        s.R / "predict/predictions.tsv",
        lambda r: [row | {"calibrated_probability": float(row["calibrated_probability"]) * 0.9} for row in r],
    )
    return "calibrated probability of patient P013 does not follow"


def no_prediction(s):
    change_table(s.R / "predict/predictions.tsv", lambda r: [row for row in r if row["patient"] != "P019"])
    return "P019 has no prediction"


def no_comparators(s):
    (s.R / "final/model/comparators.json").unlink()
    return "has no comparators.json"


def comparators_of_another_model(s):
    change_json(s.R / "final/model/comparators.json", lambda c: c["reference"].update(patients=13))
    return "belongs to another model: 13 patients in the training cohort, 12 in model.json"


@pytest.mark.parametrize(
    "leak",
    [
        a_training_scan, one_scan_twice, a_training_cohort, other_weights, lost_weights, a_threshold_of_ones_own,
        recalibrated, no_prediction, no_comparators, comparators_of_another_model,
    ],
)  # fmt: skip
def test_every_leak_is_refused_and_nothing_is_written(study, leak):
    match = leak(study)
    with pytest.raises(InputError, match=match):
        evaluate_external(**study.external)
    assert not (study.R / "external").exists()


# --- comparators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format=2), "format is 2, this haemex reads 1"),
        (lambda c: c.pop("reference"), "incomplete.*reference"),
        (lambda c: c["baselines"].pop("volume"), "models of bat, not of volume"),
        (lambda c: c["baselines"]["volume"].update(threshold=None), "incomplete"),
        (lambda c: c["baselines"]["bat"].update(coefficient=float("nan")), "coefficient of the model of bat is nan"),
        (lambda c: c["baselines"]["bat"].update(rule="best"), "rule of the model of bat is 'best'"),
        (lambda c: c["reference"].update(patients=0, expansions=0), "0 expansions in 0 patients"),
        (lambda c: c["reference"].update(expansions=13), "13 expansions in 12 patients"),
        (lambda c: c["reference"].update(pixel_digests=[]), "no digest of any scan"),
        (lambda c: c["reference"].update(pixel_digests=["P001"]), "no SHA-256"),
        (lambda c: c["reference"]["cuts"].update(baseline_ml=[9, 3]), "cuts of the subgroups"),
        (lambda c: c["reference"]["definition"].update(operator="<"), "definition of expansion"),
        (lambda c: c["reference"].pop("definition"), "incomplete.*definition"),
        (lambda c: c["reference"]["cuts"].update(baseline_ml=[3]), "incomplete"),
    ],
)
def test_comparators_that_cannot_be_used_are_refused(bundle, change, match):
    folder = bundle
    read_comparators(folder, read_json(folder / "model.json"))
    change_json(folder / "comparators.json", change)
    with pytest.raises(InputError, match=match):
        read_comparators(folder, read_json(folder / "model.json"))


def test_damaged_comparators_are_refused(bundle):
    folder = bundle
    for text in ("", "[", "[]", "7"):
        (folder / "comparators.json").write_text(text)
        with pytest.raises(InputError, match=r"comparators\.json"):
            read_comparators(folder, read_json(folder / "model.json"))


def test_comparators_name_no_patient_and_sum_up_the_training_cohort(finished):
    text = (finished.R / "final/model/comparators.json").read_text()
    assert not any(row["patient"] in text for row in finished.rows)
    reference = json.loads(text)["reference"]
    assert (reference["patients"], len(reference["pixel_digests"])) == (TRAIN, 2 * TRAIN)
    assert reference["pixel_digests"] == sorted(reference["pixel_digests"])
    assert reference["scanners"] == {"GE MEDICAL SYSTEMS Optima CT540": 6, "SIEMENS SOMATOM Force": 6}
    ages = [row["age_years"] for row in finished.rows if row["cohort"] == "train"]
    assert reference["cuts"]["age_years"] == sum(sorted(ages)[5:7]) / 2
    assert next(row for row in reference["characteristics"] if row["variable"] == "sex")["value"] == "6 (50.0)"


def test_comparators_changed_at_home_are_a_leak(tmp_path):
    """The study that made them fits them once more, and refuses any that its training cohort does not give."""
    study = fabricate(tmp_path, matrix=24, slices=6)
    path = study.R / "final/model/comparators.json"
    before = path.read_text()
    for change, part in (
        (lambda c: c["baselines"]["volume"].update(threshold=0.5), "baselines.volume"),
        (lambda c: c["baselines"].pop("bat"), "baselines.bat"),
        (lambda c: c["reference"]["pixel_digests"].pop(), "reference.pixel_digests"),
        (lambda c: c["reference"]["cuts"].update(age_years=1.0), "reference.cuts"),
    ):
        change_json(path, change)
        with pytest.raises(InputError, match=f"not what the training cohort gives .`{part}`"):
            evaluate_study(**study.evaluate)
        path.write_text(before)
    evaluate_study(**study.evaluate)


def test_comparators_are_fitted_on_training_patients_only(finished):
    codes = [row["patient"] for row in finished.rows]
    measured = {patient: read_json(finished.R / f"measure/{patient}.json") for patient in codes}
    acquired = {patient: read_json(finished.R / f"convert/{patient}_baseline.json") for patient in codes}
    with pytest.raises(ValueError, match="training cohort only"):
        make_comparators(finished.rows, measured, acquired, EXPANSION, "youden", 0.9)


def test_numbers_agree_to_rounding_and_nothing_else_does():
    one = {"a": 0.1 + 0.2, "b": [1, "x", None], "c": 3}
    assert same_comparators(one, {"a": 0.3, "b": (1, "x", None), "c": 3})
    for other in (one | {"a": 0.3001}, one | {"b": [1, "x"]}, one | {"c": None}, {"a": 0.3}, None):
        assert not same_comparators(one, other)


# --- the description of a model ------------------------------------------------------------------------------------


def test_a_description_is_read_whole_and_its_weights_are_checked(bundle):
    folder = bundle
    description = read_description(folder)
    assert description == read_json(folder / "model.json")
    assert fold_numbers(description) == [0, 1, 2]
    assert [name for name, _ in check_weights(folder, description)] == [
        "model.safetensors", "fold0.safetensors", "fold1.safetensors", "fold2.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format=2), "format is 2, this haemex reads 3"),
        (lambda c: c.pop("preparation"), "incomplete.*preparation"),
        (lambda c: c["preparation"].pop("skullstrip"), "sections"),
        (lambda c: c.pop("cohort"), "incomplete.*cohort"),
        (lambda c: c.update(versions={}), "incomplete.*haemex"),
        (lambda c: c["operating_point"].update(rule="best"), "rule of the threshold is 'best'"),
        (lambda c: c["operating_point"].update(rule=[]), "rule of the threshold is \\[\\]"),
        (lambda c: c["operating_point"].update(threshold="high"), "incomplete"),
        (lambda c: c["operating_point"].update(threshold=float("inf")), "threshold is inf"),
        (lambda c: c.update(calibration={"method": "magic"}), "method is 'magic'"),
        (lambda c: c.update(ensemble=[{"file": "../fold0.safetensors", "sha256": ""}]), "a fold model is named"),
    ],
)
def test_descriptions_that_cannot_be_used_are_refused(bundle, change, match):
    change_json(bundle / "model.json", change)
    with pytest.raises(InputError, match=match):
        read_description(bundle)


def test_where_there_is_no_bundle_the_sentence_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"there is no model bundle here.*results/STUDY/final/model"):
        read_description(tmp_path / "nowhere")


def test_every_differing_setting_is_named_with_both_values():
    present = copy.deepcopy(PREPARATION)
    present["resample"]["window_hu"] = (0, 100)  # the same
    refuse_other_preparation(PREPARATION, present, "model")
    refuse_other_preparation(PREPARATION, {"resample": present["resample"]}, "model")
    present["convert"]["slice_thickness_mm"] = 2.5
    present["skullstrip"]["seal_gap_mm"] = 6.0
    present["resample"]["matrix"] = [32, 32, 20]
    with pytest.raises(InputError) as refusal:
        refuse_other_preparation(PREPARATION, present, "model")
    assert refusal.value.problem.split("; ") == [
        "convert.slice_thickness_mm is 2.5, the model was trained with 5.0",
        "skullstrip.seal_gap_mm is 6.0, the model was trained with 4.0",
        "resample.matrix is [32, 32, 20], the model was trained with [32, 32, 16]",
    ]
    assert "set convert and skullstrip and resample as" in refusal.value.action
    del present["resample"]["spline_order"]
    with pytest.raises(InputError, match="spline_order is absent, the model was trained with 3"):
        refuse_other_preparation(PREPARATION, {"resample": present["resample"]}, "model")


def test_clinical_rows_of_an_external_cohort_have_no_fold(tmp_path):
    from test_cohort import ROW, write_table

    table = write_table(tmp_path / "table.tsv", {"admission_date": "2019-01-01"}, columns=["blend", "hypodensity"])
    (tmp_path / "cohort.tsv").write_text(
        "patient\tcohort\tfold\texpansion\tbaseline_ml\tfollowup_ml\tpixel_digest\nP1\ttest\t\t1\t9.0\t19.0\tab\n"
    )
    (row,) = clinical_rows(table, tmp_path / "cohort.tsv")
    assert (row["patient"], row["cohort"], row["fold"], row["bat_score"]) == (ROW["patient"], "test", None, None)
