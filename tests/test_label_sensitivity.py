"""Other definitions of expansion: labels by hand, the network's scores untouched."""

import math

import pytest

from haemex.label_sensitivity import COLUMNS, label_sensitivity

EXPANSION = {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"}
# Baseline, follow-up, score of the network, decision.
PATIENTS = (
    (50.0, 70.0, 3.0, 1),  # +20 mL, 40 %
    (50.0, 56.0, 2.0, 1),  # +6 mL exactly, 12 %
    (50.0, 54.0, 1.0, 0),  # +4 mL, 8 %
    (5.0, 9.0, 0.5, 0),  # +4 mL, 80 %
    (40.0, 48.0, 0.0, 0),  # +8 mL, 20 %
    (30.0, 30.0, -1.0, 0),
)


@pytest.fixture
def table():
    labels = (1, 0, 0, 1, 1, 0)
    test = [
        {"patient": f"T{i}", "baseline_ml": b, "followup_ml": f, "expansion": y}
        for i, ((b, f, _, _), y) in enumerate(zip(PATIENTS, labels, strict=True))
    ]
    scores = [{"cnn": s, "positive": d} for _, _, s, d in PATIENTS]
    return {row["definition"]: row for row in label_sensitivity(test, scores, EXPANSION, 0.95)}


def test_labels_and_flips_by_hand(table):
    counted = {name: (row["expansions"], row["flips"], row["gained"], row["lost"]) for name, row in table.items()}
    assert counted == {
        "> 6 mL or > 33 %": (3, 0, 0, 0),
        ">= 6 mL or >= 33 %": (4, 1, 1, 0),
        "> 3 mL or > 33 %": (5, 2, 2, 0),
        "> 12.5 mL or > 33 %": (2, 1, 0, 1),
        "> 33 %": (2, 1, 0, 1),
        "> 6 mL": (2, 1, 0, 1),
    }
    assert next(iter(table)) == "> 6 mL or > 33 %"
    assert all(tuple(row) == COLUMNS for row in table.values())


def test_auc_and_decisions_by_hand(table):
    # Study: cases 3, 0.5, 0; controls 2, 1, -1: 3 + 1 + 1 of 9 pairs. One of three found, one of three false.
    own = table["> 6 mL or > 33 %"]
    assert own["auc"] == pytest.approx(5 / 9)
    assert own["sensitivity"] == pytest.approx(1 / 3) and own["specificity"] == pytest.approx(2 / 3)
    # At least 6 mL: 2 becomes a case; controls 1, -1: 2 + 2 + 1 + 1 of 8.
    assert table[">= 6 mL or >= 33 %"]["auc"] == pytest.approx(6 / 8)
    # 6 mL alone: cases 3 and 0, controls 2, 1, 0.5, -1.
    assert table["> 6 mL"]["auc"] == pytest.approx(5 / 8)


def test_one_class_only_has_no_auc():
    test = [{"patient": "A", "baseline_ml": 10.0, "followup_ml": 10.0, "expansion": 0}] * 2
    row = label_sensitivity(test, [{"cnn": 1.0, "positive": 0}] * 2, EXPANSION, 0.95)[0]
    assert math.isnan(row["auc"]) and math.isnan(row["sensitivity"]) and row["specificity"] == 1


def test_new_ventricular_blood_makes_an_expansion_of_the_revised_definition():
    # Study's label, blood in the ventricles at baseline and at follow-up: what the revised label is.
    patients = (
        (1, 0, 0, 1),
        (0, 0, 1, 1),  # new blood
        (0, 1, 1, 0),  # it was there
        (0, 0, 0, 0),
        (0, 1, None, 0),  # whatever follows, it is not new
        (0, None, 0, 0),  # none at follow-up, so none is new
        (0, 0, None, None),
        (1, None, 1, None),
    )
    test = [
        {"patient": f"T{i}", "baseline_ml": 50.0, "followup_ml": 70.0 if y else 50.0, "expansion": y}
        | {"intraventricular_haemorrhage": before, "followup_intraventricular_haemorrhage": after}
        for i, (y, before, after, _) in enumerate(patients)
    ]
    scores = [{"cnn": float(-i), "positive": int(i < 2)} for i in range(len(patients))]
    table = label_sensitivity(test, scores, EXPANSION, 0.95)
    row = table[-1]
    assert row["definition"] == "> 6 mL or > 33 % or new ventricular blood"
    revised = [label for *_, label in patients if label is not None]
    assert (row["patients"], row["expansions"]) == (len(revised), sum(revised)) == (6, 2)
    assert (row["flips"], row["gained"], row["lost"]) == (1, 1, 0)
    assert row["auc"] == 1 and row["sensitivity"] == 1 and row["specificity"] == 1
    assert table[:-1] == label_sensitivity(
        [one | {"followup_intraventricular_haemorrhage": None} for one in test], scores, EXPANSION, 0.95
    ), "without a word on the ventricles at follow-up there is no such row, and the others stay"
