import csv
import json
import math

import pytest

from haemex.errors import InputError
from haemex.selection import select

#          patient: (fold, expansion)
COHORT = {"a": (0, 1), "b": (0, 0), "c": (0, 0), "d": (1, 1), "e": (1, 0), "f": (1, 0)}


def write(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(str(value) for value in row) for row in [columns, *rows]) + "\n")


def write_fold(folder, fold, probabilities, dice):
    held_out = [patient for patient, (its_fold, _) in COHORT.items() if its_fold == fold]
    others = [patient for patient in COHORT if patient not in held_out]
    roles = [(patient, copy, "train") for patient in others for copy in range(2)]
    roles += [(patient, "scan", "validation") for patient in held_out]
    write(folder / f"fold{fold}" / "roles.tsv", ("patient", "copy", "role"), roles)
    rows = [(p, probabilities[p], math.log(probabilities[p] / (1 - probabilities[p])), dice[p], 12.5) for p in held_out]
    write(folder / f"fold{fold}" / "predictions.tsv", ("patient", "probability", "logit", "dice", "predicted_ml"), rows)


def write_candidate(folder, probabilities, dice):
    for fold in (0, 1):
        write_fold(folder, fold, dict(zip(COHORT, probabilities, strict=True)), dict(zip(COHORT, dice, strict=True)))


@pytest.fixture
def study(tmp_path):
    cohort = [(p, "train", fold, label, 10.0, 12.0) for p, (fold, label) in COHORT.items()]
    cohort.append(("t", "test", "", 1, 10.0, 20.0))
    columns = ("patient", "cohort", "fold", "expansion", "baseline_ml", "followup_ml")
    write(tmp_path / "cohort.tsv", columns, cohort)
    # AUC: a (.9) beats b c e f, d (.4) beats c and f: 6 of 8. Dice: median (.6 + .7) / 2, mean 3.7 / 6.
    write_candidate(tmp_path / "train" / "first", [0.9, 0.5, 0.2, 0.4, 0.6, 0.3], [0.8, 0.6, 0.7, 0.9, 0.7, 0.0])
    # AUC: a (.7) beats all but e, d (.8) beats all: 7 of 8. Fold 1 segments nothing.
    write_candidate(tmp_path / "train" / "second", [0.7, 0.5, 0.2, 0.8, 0.75, 0.3], [0.9, 0.9, 0.9, 0.0, 0.05, 0.3])
    return {
        "candidates": ["first", "second"],
        "train_folder": tmp_path / "train",
        "cohort_path": tmp_path / "cohort.tsv",
        "criterion": "auc",
        "operating_point": "youden",
        "min_sensitivity": 0.9,
        "collapsed_dice": 0.1,
        "selected_path": tmp_path / "selected.json",
        "predictions_path": tmp_path / "predictions.tsv",
        "candidates_path": tmp_path / "candidates.tsv",
    }


def decided(study):
    select(**study)
    return json.loads(study["selected_path"].read_text())


def test_the_highest_auc_is_chosen_and_a_collapsed_fold_is_an_alarm(study):
    decision = decided(study)
    assert decision["candidate"] == "second"
    first = decision["scores"]["first"]
    assert first.pop("collapsed_folds") == []
    assert first == pytest.approx({"auc": 6 / 8, "dice_median": 0.7, "dice_mean": 3.7 / 6})
    second = decision["scores"]["second"]
    assert second["auc"] == 7 / 8
    assert second["dice_median"] == pytest.approx(0.6)
    assert second["dice_mean"] == pytest.approx(3.05 / 6)
    assert second["collapsed_folds"] == [1]
    assert len(decision["alarms"]) == 1
    assert "candidate second, fold 1" in decision["alarms"][0]
    assert "0.050, below 0.1" in decision["alarms"][0]


def test_a_choice_no_better_than_chance_is_an_alarm(study):
    write_candidate(study["train_folder"] / "worse", [0.5, 0.6, 0.2, 0.4, 0.55, 0.3], [0.9] * 6)
    # a beats c f, d beats c f: 4 of 8.
    decision = decided({**study, "candidates": ["worse"]})
    assert decision["scores"]["worse"]["auc"] == 0.5
    assert ["AUC out of fold is 0.500" in text for text in decision["alarms"]] == [True]


def test_the_highest_median_dice_can_be_asked_for(study):
    assert decided({**study, "criterion": "dice"})["candidate"] == "first"


def test_of_equals_the_first_in_the_config_is_taken(study):
    write_candidate(study["train_folder"] / "third", [0.7, 0.5, 0.2, 0.8, 0.75, 0.3], [0.5] * 6)
    assert decided({**study, "candidates": ["third", "second", "first"]})["candidate"] == "third"
    assert decided({**study, "candidates": ["first", "second", "third"]})["candidate"] == "second"


def test_operating_points_by_hand(study):
    # From the top: .8 +, .75 -, .7 +, .5 -; thresholds lie half-way. Youden: 1/2 below .8, 2/2 - 1/4 = 3/4 below .7.
    assert decided(study)["threshold"] == pytest.approx(0.6)
    by_sensitivity = {**study, "operating_point": "sensitivity"}
    assert decided({**by_sensitivity, "min_sensitivity": 0.5})["threshold"] == pytest.approx(0.775)
    assert decided({**by_sensitivity, "min_sensitivity": 0.6})["threshold"] == pytest.approx(0.6)


def test_calibration_has_the_maximum_of_the_likelihood(study):
    calibration = decided(study)["calibration"]
    with open(study["predictions_path"], newline="") as file:
        rows = [(float(row["logit"]), int(row["expansion"])) for row in csv.DictReader(file, delimiter="\t")]

    def likelihood(intercept, slope):
        return sum(-math.log1p(math.exp(-(intercept + slope * x) * (2 * y - 1))) for x, y in rows)

    best = likelihood(**calibration)
    for step in (1e-3, -1e-3):
        assert likelihood(calibration["intercept"] + step, calibration["slope"]) < best
        assert likelihood(calibration["intercept"], calibration["slope"] + step) < best


def test_tables(study):
    select(**study)
    lines = study["predictions_path"].read_text().splitlines()
    assert lines[0].split("\t") == ["patient", "fold", "expansion", "probability", "logit", "dice", "predicted_ml"]
    assert [line.split("\t")[:4] for line in lines[1:3]] == [["a", "0", "1", "0.7"], ["b", "0", "0", "0.5"]]
    assert [line[0] for line in lines[1:]] == list("abcdef")
    with open(study["candidates_path"], newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["candidate"], row["fold"], row["collapsed"]) for row in rows] == [
        ("first", "0", "0"),
        ("first", "1", "0"),
        ("first", "all", "0"),
        ("second", "0", "0"),
        ("second", "1", "1"),
        ("second", "all", "1"),
    ]
    assert [float(row["auc"]) for row in rows[:3]] == [1.0, 0.5, 0.75]
    assert [row["expansions"] for row in rows[:3]] == ["1", "1", "2"]


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("roles.tsv", "d\t0\ttrain", "a\t0\ttrain", "1 patients are trained on and validated"),
        ("roles.tsv", "d\t0\ttrain", "t\t0\ttrain", "not the 3 of the other folds"),
        ("roles.tsv", "d\t0\ttrain\nd\t1\ttrain\n", "", "2 patients are trained on"),
        ("roles.tsv", "a\tscan\tvalidation\n", "", "2 validation scans"),
        ("roles.tsv", "b\tscan\tvalidation", "a\tscan\tvalidation", "not one of each"),
        ("roles.tsv", "a\tscan", "a\t3", "augmented copy"),
        ("predictions.tsv", "b\t", "a\t", "not one for each"),
        ("predictions.tsv", "0.9\t", "nan\t", "no finite number"),
    ],
)
def test_roles_that_do_not_fit_the_folds_are_refused(study, file, old, new, said):
    replace(study["train_folder"] / "first" / "fold0" / file, old, new)
    with pytest.raises(InputError, match=said):
        select(**study)
    assert not study["selected_path"].exists()


def test_one_class_only_is_refused(study):
    for patient in "ad":
        fold = COHORT[patient][0]
        replace(study["cohort_path"], f"{patient}\ttrain\t{fold}\t1", f"{patient}\ttrain\t{fold}\t0")
    with pytest.raises(InputError, match="0 of 6 patients"):
        select(**study)


def test_a_fold_of_one_class_has_no_auc_but_counts_in_the_pool(study):
    replace(study["cohort_path"], "d\ttrain\t1\t1", "d\ttrain\t1\t0")
    decision = decided(study)
    assert decision["scores"]["first"]["auc"] == 1.0
    with open(study["candidates_path"], newline="") as file:
        assert [row["auc"] for row in csv.DictReader(file, delimiter="\t")][1] == ""


@pytest.mark.parametrize("key", ["criterion", "operating_point"])
def test_unknown_rules_are_refused(study, key):
    with pytest.raises(InputError, match=rf"select\.{key} is 'best'"):
        select(**{**study, key: "best"})


def test_select_needs_no_torch():
    import subprocess
    import sys

    program = "import sys, haemex.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
