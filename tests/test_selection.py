import csv
import json
import math

import pytest

from haemex.errors import InputError
from haemex.selection import select
from haemex.statistics import delong_auc

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
    write_history(folder, fold, [0.5 * 0.8**epoch for epoch in range(8)])


def write_history(folder, fold, losses):
    columns = ("epoch", "learning_rate", "train_loss", "train_dice_loss", "train_bce", "val_dice_median", "val_bce")
    rows = [(epoch, 1e-4, loss, loss, loss, "", "") for epoch, loss in enumerate(losses, start=1)]
    write(folder / f"fold{fold}" / "history.tsv", columns, rows)


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
    # AUC: a (.7) beats all but e, d (.8) beats all: 7 of 8. Fold 1 segments badly.
    write_candidate(tmp_path / "train" / "second", [0.7, 0.5, 0.2, 0.8, 0.75, 0.3], [0.9, 0.9, 0.9, 0.2, 0.15, 0.3])
    return {
        "candidates": ["first", "second"],
        "train_folder": tmp_path / "train",
        "cohort_path": tmp_path / "cohort.tsv",
        "criterion": "auc",
        "operating_point": "youden",
        "min_sensitivity": 0.9,
        "calibration": "platt",
        "collapsed_dice": 0.1,
        "collapsed_fold": "stop",
        "selected_path": tmp_path / "selected.json",
        "predictions_path": tmp_path / "predictions.tsv",
        "candidates_path": tmp_path / "candidates.tsv",
    }


def decided(study):
    select(**study)
    return json.loads(study["selected_path"].read_text())


@pytest.fixture
def collapsed(study):
    """The better candidate's fold 1 segments nothing."""
    dice = [0.9, 0.9, 0.9, 0.0, 0.05, 0.3]
    write_candidate(study["train_folder"] / "second", [0.7, 0.5, 0.2, 0.8, 0.75, 0.3], dice)
    return study


def written(study):
    return [study[name].exists() for name in ("selected_path", "predictions_path", "candidates_path")]


def test_the_highest_auc_is_chosen_and_every_score_has_its_spread(study):
    decision = decided(study)
    assert decision["candidate"] == "second"
    assert decision["alarms"] == [] and decision["dropped"] == []
    # DeLong by hand. First: V10 of a and d is 1 and 1/2, V01 of b c e f is 1/2 1 1/2 1; variance 1/16 + 1/48 = 1/12.
    # Second: V10 3/4 and 1, V01 1 1 1/2 1; variance 1/64 + 1/64 = 1/32.
    assert decision["confidence"] == 0.95
    assert decision["scores"]["first"] == {
        "auc": 6 / 8,
        "auc_lower": pytest.approx(6 / 8 - 1.959964 * math.sqrt(1 / 12), abs=1e-6),
        "auc_upper": 1.0,
        "auc_sd": pytest.approx(math.sqrt(1 / 8)),  # folds 1 and 1/2
        "dice_median": pytest.approx(0.7),
        "dice_median_sd": pytest.approx(0),  # folds 0.7 and 0.7
        "dice_mean": pytest.approx(3.7 / 6),
        "collapsed_folds": [],
    }
    assert decision["scores"]["second"] == {
        "auc": 7 / 8,
        "auc_lower": pytest.approx(7 / 8 - 1.959964 * math.sqrt(1 / 32), abs=1e-6),
        "auc_upper": 1.0,
        "auc_sd": 0.0,  # folds 1 and 1
        "dice_median": pytest.approx(0.6),
        "dice_median_sd": pytest.approx(0.7 / math.sqrt(2)),  # folds 0.9 and 0.2
        "dice_mean": pytest.approx(3.35 / 6),
        "collapsed_folds": [],
    }


def test_a_lead_within_the_spread_is_said(study):
    # Second minus first: V10 -1/4 and 1/2, V01 1/2 0 0 0; variance 9/64 + 1/64 = 5/32.
    half = 1.959964 * math.sqrt(5 / 32)
    (remark,) = decided(study)["remarks"]
    assert remark == (
        "In out-of-fold AUC, candidate second leads the next, first, by 0.125 (95 % interval "
        f"{1 / 8 - half:.3f} to {1 / 8 + half:.3f}, paired DeLong): the lead is within the spread, so these data do "
        "not show that it is the better one."
    )
    # In Dice first leads by 0.1; over the folds it is 0.2 behind and 0.5 ahead.
    (remark,) = decided({**study, "criterion": "dice"})["remarks"]
    assert (
        "Dice, candidate first leads the next, second, by 0.100 (SD of the difference over the folds 0.495)" in remark
    )
    assert "within the spread" in remark
    assert decided({**study, "candidates": ["first"]})["remarks"] == []


def test_a_lead_beyond_the_spread_is_no_more_than_stated(study):
    write_candidate(study["train_folder"] / "poor", [0.5] * 6, [0.2] * 6)
    (remark,) = decided({**study, "candidates": ["poor", "first"], "criterion": "dice"})["remarks"]
    assert remark.endswith(
        "candidate first leads the next, poor, by 0.500 (SD of the difference over the folds 0.000)."
    )
    # Second's interval lies above the constant 1/2 of poor: its lower bound is 0.875 - 0.346.
    (remark,) = decided({**study, "candidates": ["poor", "second"]})["remarks"]
    assert remark.endswith("by 0.375 (95 % interval 0.029 to 0.721, paired DeLong).")


def test_a_collapsed_fold_stops_the_selection(collapsed, capsys):
    write_history(collapsed["train_folder"] / "second", 1, [0.5] * 8)
    with pytest.raises(InputError) as refusal:
        select(**collapsed)
    assert "candidate second, fold 1 (0.050)" in str(refusal.value)
    assert "candidate first" not in str(refusal.value) and "fold 0" not in str(refusal.value)
    assert "below select.collapsed_dice, 0.1" in refusal.value.problem
    for way_out in ("training.learning_rate", "out of `candidates`", "select.collapsed_fold to drop"):
        assert way_out in refusal.value.action
    assert written(collapsed) == [False] * 3
    assert "candidate second, fold 1: no learning" in capsys.readouterr().out  # what the trainings said comes with it


def test_every_collapsed_fold_is_named_at_once(collapsed):
    write_candidate(collapsed["train_folder"] / "first", [0.9, 0.5, 0.2, 0.4, 0.6, 0.3], [0.0] * 6)
    with pytest.raises(InputError) as refusal:
        select(**collapsed)
    expected = "candidate first, fold 0 (0.000); candidate first, fold 1 (0.000); candidate second, fold 1 (0.050)"
    assert expected in refusal.value.problem
    assert "drop" not in refusal.value.action  # nothing would be left


def test_a_collapsed_candidate_can_be_dropped(collapsed):
    decision = decided({**collapsed, "collapsed_fold": "drop"})
    assert decision["candidate"] == "first"
    assert decision["dropped"] == ["second"]
    assert decision["scores"]["second"]["collapsed_folds"] == [1]
    (alarm,) = decision["alarms"]
    assert alarm.startswith(
        "candidate second, fold 1: the median Dice coefficient of its 3 patients is 0.050, below 0.1"
    )
    assert decision["remarks"] == []  # nobody else was in the running
    with open(collapsed["candidates_path"], newline="") as file:
        assert [row["collapsed"] for row in csv.DictReader(file, delimiter="\t")] == ["0", "0", "0", "0", "1", "1"]


def test_dropping_every_candidate_stops_the_selection(collapsed):
    with pytest.raises(InputError, match=r"every candidate has one, so none is left to choose.*second, fold 1"):
        select(**{**collapsed, "collapsed_fold": "drop", "candidates": ["second"]})
    assert written(collapsed) == [False] * 3


def test_a_fold_at_the_limit_has_not_collapsed(study):
    assert decided({**study, "collapsed_dice": 0.2})["candidate"] == "second"
    with pytest.raises(InputError, match=r"second, fold 1 \(0.200\)"):
        select(**{**study, "collapsed_dice": 0.21})
    assert decided({**study, "collapsed_dice": 0})["candidate"] == "second"


def test_alarms_of_every_training_are_passed_on(study):
    write_history(study["train_folder"] / "first", 1, [0.5] * 8)
    write_history(study["train_folder"] / "second", 0, [0.5, 0.3, 0.2, 0.1, 0.6, 0.9, 0.9, 0.9])
    first, second = decided(study)["alarms"]
    assert first.startswith("candidate first, fold 1: no learning")
    assert second.startswith("candidate second, fold 0: diverged")


def test_the_rule_is_told_in_words(study):
    rule = decided(study)["rule"]
    assert set(rule) == {"criterion", "collapsed_fold", "operating_point", "calibration"}
    assert "highest AUC of the pooled" in rule["criterion"]
    assert "below 0.1 would have ended the selection" in rule["collapsed_fold"]
    assert "Youden" in rule["operating_point"] and "Platt" in rule["calibration"]
    changed = {"criterion": "dice", "operating_point": "sensitivity", "calibration": "isotonic"}
    rule = decided({**study, **changed, "collapsed_fold": "drop", "min_sensitivity": 0.8})["rule"]
    assert "median Dice" in rule["criterion"] and "out of the running" in rule["collapsed_fold"]
    assert "sensitivity of 0.8" in rule["operating_point"] and "isotonic" in rule["calibration"]


def test_isotonic_calibration_of_few_patients_is_an_alarm(study):
    decision = decided({**study, "calibration": "isotonic"})
    # By rising logit: 0 0 0 | 1 0 | 1; kept within 1 / (4 + 2) and (2 + 1) / (2 + 2).
    assert decision["calibration"]["method"] == "isotonic"
    assert sorted(set(decision["calibration"]["probability"])) == pytest.approx([1 / 6, 1 / 2, 3 / 4])
    (alarm,) = decision["alarms"]
    assert "fitted on 6 patients, 2 of them with expansion" in alarm and "platt" in alarm


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

    assert calibration.pop("method") == "platt"

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
        ("second", "1", "0"),
        ("second", "all", "0"),
    ]
    assert [float(row["auc"]) for row in rows[:3]] == [1.0, 0.5, 0.75]
    assert [row["expansions"] for row in rows[:3]] == ["1", "1", "2"]
    assert [row["auc_sd"] != "" for row in rows[:3]] == [False, False, True]
    assert [row["dice_median_sd"] != "" for row in rows[:3]] == [False, False, True]
    assert [row["auc_lower"] != "" for row in rows[:3]] == [False, False, True]  # one case alone has no interval
    pooled = [(float(line[3]), int(line[2])) for line in (text.split("\t") for text in lines[1:])]
    area = delong_auc([label for _, label in pooled], [probability for probability, _ in pooled])
    assert [float(rows[5][name]) for name in ("auc", "auc_lower", "auc_upper")] == [area.auc, area.lower, area.upper]


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


@pytest.mark.parametrize("key", ["criterion", "operating_point", "calibration", "collapsed_fold"])
def test_unknown_rules_are_refused(study, key):
    with pytest.raises(InputError, match=rf"select\.{key} is 'best'"):
        select(**{**study, key: "best"})


def test_select_needs_no_torch():
    import subprocess
    import sys

    program = "import sys, haemex.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
