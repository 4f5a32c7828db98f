"""Net benefit by hand, and what every decision curve must keep to."""

import numpy as np
import pytest

from haemex.decision_curve import COLUMNS, THRESHOLDS, decision_curve, net_benefit, useful_range


def rows(labels, cnn, volume=None, bat=None):
    n = len(labels)
    columns = {"calibrated_probability": cnn, "volume": volume or [0.2] * n, "bat": bat or [0.2] * n}
    return [{"expansion": y} | {name: values[i] for name, values in columns.items()} for i, y in enumerate(labels)]


def test_by_hand():
    labels, risk = [1, 1, 0, 0, 0], [0.8, 0.2, 0.5, 0.2, 0.1]
    # From 0.5: one rightly, one wrongly treated, and one wrong treatment costs as much as one right one gains.
    assert net_benefit(labels, risk, 0.5) == 0
    # From 0.2: two rightly, two wrongly, each of which costs a quarter.
    assert net_benefit(labels, risk, 0.2) == pytest.approx((2 - 2 * 0.25) / 5)
    # All: two rightly, three wrongly.
    assert net_benefit(labels, [1] * 5, 0.2) == pytest.approx((2 - 3 * 0.25) / 5)
    assert net_benefit(labels, [0] * 5, 0.2) == 0
    with pytest.raises(ValueError, match="threshold"):
        net_benefit(labels, risk, 1.0)


def test_vickers_rule_treat_all_crosses_none_at_the_prevalence():
    table = decision_curve(rows([1] * 30 + [0] * 70, [0.3] * 100))
    by_threshold = {row["threshold"]: row for row in table}
    assert by_threshold[0.3]["all"] == pytest.approx(0)
    assert by_threshold[0.29]["all"] > 0 > by_threshold[0.31]["all"]
    # Who gives everybody the prevalence treats all below it and none above it.
    assert by_threshold[0.3]["cnn"] == by_threshold[0.3]["all"] and by_threshold[0.31]["cnn"] == 0
    assert useful_range(table) == []


def test_table_is_comparable_and_bounded():
    rng = np.random.default_rng(0)
    labels = [1] * 12 + [0] * 28
    bat = [None] * 3 + rng.random(37).tolist()
    table = decision_curve(rows(labels, rng.random(40).tolist(), rng.random(40).tolist(), bat))
    assert [row["threshold"] for row in table] == list(THRESHOLDS)
    assert all(tuple(row) == COLUMNS for row in table)
    assert {(row["patients"], row["expansions"]) for row in table} == {(37, 9)}
    for row in table:
        for name in ("cnn", "volume", "bat", "all"):
            assert row[name] <= 9 / 37
    nobody = decision_curve(rows(labels, [0.3] * 40, None, [None] * 40))
    assert nobody[0]["bat"] is None and nobody[0]["patients"] == 40


def test_perfect_model_is_useful_everywhere_it_can_be():
    table = decision_curve(rows([1] * 4 + [0] * 6, [1.0] * 4 + [0.0] * 6))
    assert {row["cnn"] for row in table} == {0.4}
    assert useful_range(table) == [[0.01, 0.6]]
    holes = [{"threshold": t, "cnn": v, "all": 0.0, "none": 0.0} for t, v in ((0.1, 1), (0.2, 1), (0.3, 0), (0.4, 1))]
    assert useful_range(holes) == [[0.1, 0.2], [0.4, 0.4]]
