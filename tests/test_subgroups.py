"""Subgroups: who is in which, counts that add up, and one class only is said."""

import itertools
import math

import pytest

from haemex.subgroups import COLUMNS, UNKNOWN, WITHOUT_SCANNER, divide, subgroup_table, training_cuts


def patient(name, ml=10.0, onset=2.0, sex="m", age=60.0):
    return {"patient": name, "baseline_ml": ml, "onset_to_ct_h": onset, "sex": sex, "age_years": age}


TRAINING = [patient(f"R{i}", ml=float(ml), age=age) for i, (ml, age) in enumerate([(0, 50), (15, 60), (30, 90)])]
CUTS = training_cuts(TRAINING)
TEST = [
    patient("A", 9.9, 2.4, "m", 59),
    patient("B", 10.0, 2.5, "f", 60),
    patient("C", 19.9, None, "f", None),
    patient("D", 20.0, 9.0, None, 61),
]
SCANNERS = {"A": "GE x", "B": "Siemens y", "C": "GE x", "D": "GE x"}
SPREAD = {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.1}


def test_the_training_cohort_cuts_by_hand():
    assert {"baseline_ml": [pytest.approx(10), pytest.approx(20)], "age_years": 60.0} == CUTS
    ageless = [row | {"age_years": None} for row in TRAINING]
    assert training_cuts(ageless)["age_years"] is None
    found = divide(TEST, training_cuts(ageless), SCANNERS, {name: {"ensemble_sd": 0.1} for name in SCANNERS})
    assert "Age, training median" not in dict(found)


def divisions(spread=SPREAD, test=TEST):
    return dict(divide(test, CUTS, SCANNERS, {name: {"ensemble_sd": value} for name, value in spread.items()}))


def test_every_cut_by_hand():
    found = divisions()
    assert found["Scanner"] == {"GE x": ["A", "C", "D"], "Siemens y": ["B"]}
    # Thirds of 0, 15 and 30 mL: 10 and 20. A cut belongs to the upper group.
    assert list(found["Haematoma volume, training thirds"].items()) == [
        ("below 10.0 mL", ["A"]),
        ("10.0 to below 20.0 mL", ["B", "C"]),
        ("20.0 mL or more", ["D"]),
    ]
    assert found["Onset to CT"] == {"below 2.5 h": ["A"], "2.5 h or more": ["B", "D"], UNKNOWN: ["C"]}
    assert found["Sex"] == {"female": ["B", "C"], "male": ["A"], UNKNOWN: ["D"]}
    assert found["Age, training median"] == {
        "below 60 years": ["A"],
        "60 years or more": ["B", "D"],
        UNKNOWN: ["C"],
    }
    assert found["Spread between the fold models"] == {
        "confident: below the median": ["A", "D"],
        "the rest": ["B", "C"],
    }


def test_a_spread_at_the_median_is_not_below_it():
    found = divisions({"A": 0.1, "B": 0.2, "C": 0.3, "D": None})["Spread between the fold models"]
    assert found == {"confident: below the median": ["A"], "the rest": ["B", "C"], UNKNOWN: ["D"]}


def test_every_patient_is_in_one_group_of_each_division():
    for name, groups in divisions().items():
        if name != WITHOUT_SCANNER:
            assert sorted(itertools.chain.from_iterable(groups.values())) == ["A", "B", "C", "D"], name


def test_without_one_scanner_holds_all_other_patients():
    found = divisions()
    assert list(found)[:2] == ["Scanner", WITHOUT_SCANNER]
    assert found[WITHOUT_SCANNER] == {"without GE x": ["B"], "without Siemens y": ["A", "C", "D"]}
    for scanner, patients in found["Scanner"].items():
        others = found[WITHOUT_SCANNER][f"without {scanner}"]
        assert sorted(patients + others) == ["A", "B", "C", "D"]
    one = [row for row in TEST if row["patient"] != "B"]
    assert WITHOUT_SCANNER not in divisions(test=one), "of a single scanner nothing would be left"


def test_auc_without_one_scanner_is_that_of_the_other_patients():
    values = {"A": (1, 2.0), "B": (0, 3.0), "C": (0, 1.0), "D": (1, 0.5)}
    scores = [{"patient": p, "expansion": y, "cnn": s, "positive": 1} for p, (y, s) in values.items()]
    plan = [(WITHOUT_SCANNER, divisions()[WITHOUT_SCANNER])]
    table = {row["group"]: row for row in subgroup_table(scores, plan, 0.95)}
    # A and D against C: one win of two pairs. Siemens y's patient outranks both.
    assert table["without Siemens y"]["auc"] == 0.5 and table["without Siemens y"]["n"] == 3
    assert table["all"]["auc"] == 0.25
    assert table["without GE x"]["note"] == "none with expansion: no AUC"


def test_location_where_the_table_has_it():
    assert "Haematoma location" not in divisions()
    test = [
        row | {"haematoma_location": place} for row, place in zip(TEST, ("lobar", "deep", None, "deep"), strict=True)
    ]
    found = divisions(test=test)["Haematoma location"]
    assert list(found.items()) == [("deep", ["B", "D"]), ("lobar", ["A"]), (UNKNOWN, ["C"])]


def test_what_is_not_known_of_anybody_is_left_out():
    test = [row | {"sex": None, "onset_to_ct_h": None} for row in TEST]
    found = divisions(dict.fromkeys("ABCD"), test)
    assert not {"Sex", "Onset to CT", "Spread between the fold models"} & set(found)


def test_outcomes_move_no_group():
    assert divide(
        [row | {"expansion": 1} for row in TEST], CUTS, SCANNERS, {n: {"ensemble_sd": v} for n, v in SPREAD.items()}
    ) == divide(
        [row | {"expansion": 0} for row in TEST], CUTS, SCANNERS, {n: {"ensemble_sd": v} for n, v in SPREAD.items()}
    )


def test_results_by_hand_and_one_class_is_said():
    scores = [
        {"patient": f"T{i}", "expansion": y, "cnn": s, "positive": d}
        for i, (y, s, d) in enumerate([(1, 3.0, 1), (1, 1.0, 0), (0, 2.0, 1), (0, 0.0, 0), (0, -1.0, 0), (1, 5.0, 1)])
    ]
    halves = {"first": ["T0", "T1", "T2", "T3"], "none": ["T4"], "all": ["T5"], "nobody": []}
    halves |= {"perfect": ["T0", "T5", "T3", "T4"], "lone": ["T0", "T3", "T4"]}
    table = {(row["division"], row["group"]): row for row in subgroup_table(scores, [("X", halves)], 0.95)}
    assert all(tuple(row) == COLUMNS for row in table.values())
    whole, first = table["Test cohort", "all"], table["X", "first"]
    # Cases 3, 1, 5 against 2, 0, -1: 3 + 2 + 3 of 9.
    assert whole["auc"] == pytest.approx(8 / 9) and (whole["n"], whole["expansions"]) == (6, 3)
    assert first["auc"] == pytest.approx(3 / 4) and first["sensitivity"] == first["specificity"] == 0.5
    assert first["note"] == "" and first["auc_lower"] < 0.75 < first["auc_upper"] <= 1
    none, every = table["X", "none"], table["X", "all"]
    assert math.isnan(none["auc"]) and none["note"] == "none with expansion: no AUC" and none["specificity"] == 1
    assert math.isnan(every["auc"]) and every["note"] == "all with expansion: no AUC"
    assert table["X", "nobody"]["n"] == 0 and table["X", "nobody"]["note"] == "no patient"
    assert "limit" in table["X", "perfect"]["note"]
    assert "no interval" in table["X", "lone"]["note"] and math.isnan(table["X", "lone"]["auc_lower"])
