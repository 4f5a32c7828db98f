"""Every leak that must be refused, planted one by one; and the proof that is written when there is none."""

import json
import shutil
from types import SimpleNamespace

import pytest
from fabricated_study import TEST, TRAIN, change_json, change_table, fabricate

from haemex.errors import InputError
from haemex.evaluation import evaluate_study
from haemex.leaks import check_roles
from haemex.tables import read_table


@pytest.fixture
def study(tmp_path):
    return fabricate(tmp_path, matrix=24, slices=6)


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


def test_leaks_table_is_a_proof_with_counts(study):
    evaluate_study(**study.evaluate)
    leaks = read_table(study.R / "evaluate/leaks.tsv")
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
