"""Known answers first: worked by hand, printed by the paper, computed by R's pROC, scipy, statsmodels, scikit-learn."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from haemex import statistics
from haemex.errors import InputError
from haemex.statistics import Counts, Interval

quick = settings(max_examples=60, deadline=None)
# Few distinct values, so that ties are common.
patients = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-4, 4).map(lambda value: value / 4), st.integers(-3, 3)), min_size=4
).filter(lambda rows: 2 <= sum(row[0] for row in rows) <= len(rows) - 2)


def columns(rows):
    return [np.array(column) for column in zip(*rows, strict=True)]


def same(a, b, tolerance=1e-10):
    """Equal within a tolerance, an expected None being nan."""
    return math.isnan(a) if b is None else abs(a - b) <= tolerance


# --- Decisions


def test_count_decisions_by_hand():
    counts = statistics.count_decisions([1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0, 0])
    assert counts == Counts(tp=2, fn=1, tn=3, fp=1)


@pytest.mark.parametrize(
    ("labels", "decisions"), [([0, 1], [1]), ([0, 2], [0, 1]), ([0, 1], [0.5, 1]), ([0, np.nan], [0, 1])]
)
def test_count_decisions_refuses_what_is_no_decision(labels, decisions):
    with pytest.raises(ValueError):
        statistics.count_decisions(labels, decisions)


def test_wilson_interval_solves_its_equation():
    # Its bounds t are where the corrected z-test just rejects: |p - t| - 1 / (2n) = z * sqrt(t * (1 - t) / n).
    for successes, n in ((20, 22), (11, 22), (1, 2), (2, 189), (499, 500)):
        estimate, *bounds = statistics.wilson_interval(successes, n)
        assert estimate == successes / n
        for bound in bounds:
            distance = abs(estimate - bound) - 1 / (2 * n)
            assert distance == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n), abs=1e-12)


def test_wilson_interval_at_the_edges():
    assert statistics.wilson_interval(0, 5)[:2] == (0, 0)
    assert statistics.wilson_interval(5, 5)[2] == 1
    assert all(math.isnan(value) for value in statistics.wilson_interval(0, 0))
    with pytest.raises(ValueError):
        statistics.wilson_interval(6, 5)


@quick
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.05, 0.999))
def test_wilson_interval_properties(share, confidence):
    successes, n = share
    estimate, lower, upper = statistics.wilson_interval(successes, n, confidence)
    assert 0 <= lower <= estimate <= upper <= 1
    mirrored = statistics.wilson_interval(n - successes, n, confidence)
    assert (1 - upper, 1 - lower) == pytest.approx(mirrored[1:], abs=1e-9)
    wider = statistics.wilson_interval(successes, n, (1 + confidence) / 2)
    assert wider.lower <= lower and wider.upper >= upper
    if successes < n:
        more = statistics.wilson_interval(successes + 1, n, confidence)
        assert more.lower >= lower and more.upper >= upper


def test_likelihood_ratios_by_hand():
    ratios = statistics.likelihood_ratios(Counts(tp=20, fn=2, tn=32, fp=23))
    assert ratios["lr_pos"].estimate == pytest.approx((20 / 22) / (23 / 55))
    assert ratios["lr_neg"].estimate == pytest.approx((2 / 22) / (32 / 55))
    assert ratios["lr_pos_weighted"].estimate == pytest.approx(20 / 23)
    assert ratios["lr_neg_weighted"] == pytest.approx((2 / 32, 0.0162488, 0.2404024), abs=1e-7)
    # Pre-test odds times the likelihood ratio are the post-test odds the paper prints.
    assert ratios["lr_pos"].estimate * 22 / 55 == pytest.approx(ratios["lr_pos_weighted"].estimate)


def test_likelihood_ratios_of_empty_cells():
    def undefined(interval):
        return all(math.isnan(value) for value in interval)

    never = statistics.likelihood_ratios(Counts(tp=0, fn=4, tn=6, fp=0))
    assert undefined(never["lr_pos"]) and undefined(never["lr_pos_weighted"])
    assert never["lr_neg"] == pytest.approx((1, 1, 1))
    no_false_negative = statistics.likelihood_ratios(Counts(tp=4, fn=0, tn=5, fp=1))
    for name in ("lr_neg", "lr_neg_weighted"):
        assert no_false_negative[name].estimate == 0 and undefined(no_false_negative[name][1:])
    for counts in (Counts(0, 0, 5, 1), Counts(3, 1, 0, 0), Counts(0, 0, 0, 0)):
        ratios = statistics.likelihood_ratios(counts)
        assert undefined(ratios["lr_pos"]) and undefined(ratios["lr_neg"])


# --- The paper's Table 2

TABLE2_NOT_ROUNDED = {  # row, cell -> printed; all but the last were cut off instead of rounded
    ("Hypodensities", "lr_pos_weighted.lower"): "0.40",
    ("Hypodensities", "lr_neg_weighted.upper"): "0.40",
    ("Swirl sign", "specificity.estimate"): "0.54",
    ("Blend sign", "lr_neg_weighted.upper"): "0.59",
    ("Irregular shape", "lr_neg_weighted.upper"): "0.59",
    ("BAT score", "specificity.lower"): "0.62",
    ("BAT score", "lr_pos_weighted.estimate"): "0.61",
    ("BAT score", "lr_neg_weighted.upper"): "0.53",
    ("Irregular shape", "specificity.lower"): "0.261",  # a misprint: 0.257
}


def table2_cells(counts):
    """Everything of Table 2 that counts determine, as intervals."""
    labels = [1] * (counts.tp + counts.fn) + [0] * (counts.tn + counts.fp)
    decisions = [1] * counts.tp + [0] * (counts.fn + counts.tn) + [1] * counts.fp
    assert statistics.count_decisions(labels, decisions) == counts
    auc = statistics.delong_auc(labels, decisions)
    return {
        "sensitivity": statistics.wilson_interval(counts.tp, counts.tp + counts.fn),
        "specificity": statistics.wilson_interval(counts.tn, counts.tn + counts.fp),
        "auc": Interval(auc.auc, auc.lower, auc.upper),
        **statistics.likelihood_ratios(counts),
    }


def test_table2_of_the_paper(shared):
    table = json.loads((shared / "statistics" / "table2.json").read_text())
    rounded, not_rounded = 0, {}
    for row in table["rows"]:
        counts = Counts(*(row["counts"][name] for name in Counts._fields))
        cells = table2_cells(counts)
        for name, cell in row["cells"].items():
            if cell["status"] == "not_computable_from_counts":
                continue
            measure, part = name.split(".")
            value = getattr(cells[measure], part)
            assert value == pytest.approx(cell["value"], abs=1e-12), (row["name"], name)
            text = statistics.round_half_up(value, cell["decimals"])
            if text == cell["printed"]:
                rounded += 1
            else:
                assert text == cell["rounds_to"]
                not_rounded[row["name"], name] = cell["printed"]
    assert rounded == 132
    assert not_rounded == TABLE2_NOT_ROUNDED


def test_extras_of_table2(shared):
    table = json.loads((shared / "statistics" / "table2.json").read_text())
    assert len(table["rows"]) == 10
    for row in table["rows"]:
        counts = Counts(*(row["counts"][name] for name in Counts._fields))
        cells, extra = table2_cells(counts), row["extra"]
        assert cells["lr_pos"] == pytest.approx(extra["lr_pos_conventional"], abs=1e-10)
        assert cells["lr_neg"] == pytest.approx(extra["lr_neg_conventional"], abs=1e-10)
        assert cells["sensitivity"].estimate + cells["specificity"].estimate - 1 == pytest.approx(extra["youden"])
        # The "weighted" ratios are odds: ppv / (1 - ppv), and (1 - npv) / npv.
        assert cells["lr_pos_weighted"].estimate == pytest.approx(extra["ppv"] / (1 - extra["ppv"]))
        assert cells["lr_neg_weighted"].estimate == pytest.approx((1 - extra["npv"]) / extra["npv"])


def test_one_row_of_table2_without_the_shared_folder():
    cells = table2_cells(Counts(tp=8, fn=14, tn=51, fp=4))  # black hole sign
    printed = {
        name: "{} ({} to {})".format(*(statistics.round_half_up(value, 2) for value in cells[name]))
        for name in ("sensitivity", "specificity", "lr_pos_weighted", "lr_neg_weighted", "auc")
    }
    assert printed == {
        "sensitivity": "0.36 (0.18 to 0.59)",
        "specificity": "0.93 (0.82 to 0.98)",
        "lr_pos_weighted": "2.00 (0.82 to 4.89)",
        "lr_neg_weighted": "0.27 (0.17 to 0.44)",
        "auc": "0.65 (0.54 to 0.75)",
    }


# --- DeLong


def test_delong_by_hand():
    # Cases 3, 1; controls 0, 2, 1. Wins of 3: 3; of 1: 1 + 1/2. AUC 4.5 / 6.
    # V10 = (1, 1/2), S10 = 1/8; V01 = (1, 1/2, 3/4), S01 = 1/16; variance 1/16 + 1/48.
    result = statistics.delong_auc([1, 1, 0, 0, 0], [3, 1, 0, 2, 1])
    assert result.auc == 0.75
    assert result.variance == pytest.approx(1 / 16 + 1 / 48, abs=1e-15)
    assert result.lower == pytest.approx(0.75 - 1.959963985 * math.sqrt(1 / 12))
    assert result.upper == 1


def test_delong_of_a_binary_marker_in_closed_form():
    sensitivity, specificity = 17 / 22, 28 / 55
    result = statistics.delong_auc([1] * 22 + [0] * 55, [1] * 17 + [0] * 5 + [0] * 28 + [1] * 27)
    assert result.auc == pytest.approx((sensitivity + specificity) / 2)
    expected = sensitivity * (1 - sensitivity) / (4 * 21) + specificity * (1 - specificity) / (4 * 54)
    assert result.variance == pytest.approx(expected, abs=1e-15)


def test_delong_matches_proc(shared):
    reference = json.loads((shared / "statistics" / "proc_reference.json").read_text())
    assert len(reference["sets"]) == 10
    for item in reference["sets"]:
        labels, expected = item["labels"], item["expected"]
        for name in ("a", "b"):
            result = statistics.delong_auc(labels, item[f"scores_{name}"])
            for ours, theirs in (
                (result.auc, "auc"),
                (result.variance, "variance"),
                (result.lower, "ci_lower"),
                (result.upper, "ci_upper"),
            ):
                assert same(ours, expected[name][theirs]), (item["name"], name, theirs)
        result = statistics.delong_paired(labels, item["scores_a"], item["scores_b"])
        for ours, theirs in (
            (result.p_value, "p_value"),
            (result.z, "z"),
            (result.covariance, "covariance"),
            (result.lower, "diff_ci_lower"),
            (result.upper, "diff_ci_upper"),
        ):
            assert same(ours, expected["paired"][theirs]), (item["name"], theirs)
        assert same(result.difference, expected["a"]["auc"] - expected["b"]["auc"])


def test_delong_edge_cases():
    one_case = statistics.delong_auc([1, 0, 0], [3, 1, 2])
    assert one_case.auc == 1 and math.isnan(one_case.variance) and math.isnan(one_case.lower)
    assert all(math.isnan(value) for value in statistics.delong_auc([0, 0], [1, 2]))
    assert all(math.isnan(value) for value in statistics.delong_paired([1, 1], [1, 2], [2, 1]))
    assert statistics.delong_auc([1, 1, 0, 0], [4, 3, 2, 1]) == (1, 0, 1, 1)
    assert statistics.delong_auc([1, 1, 0, 0], [1, 2, 3, 4]) == (0, 0, 0, 0)
    assert statistics.delong_auc([1, 1, 0, 0], [5, 5, 5, 5]) == (0.5, 0, 0.5, 0.5)
    # A perfect score against a constant one: the difference has no variance, and so no test.
    perfect = statistics.delong_paired([1, 1, 0, 0], [4, 3, 2, 1], [5, 5, 5, 5])
    assert perfect.difference == 0.5 and math.isnan(perfect.z) and math.isnan(perfect.p_value)
    with pytest.raises(ValueError):
        statistics.delong_auc([1, 1, 0, 0], [1, np.nan, 2, 3])


@quick
@given(patients)
def test_auc_is_the_mann_whitney_statistic_and_sklearns(rows):
    from sklearn.metrics import roc_auc_score

    labels, scores, _ = columns(rows)
    cases, controls = scores[labels == 1], scores[labels == 0]
    auc = statistics.delong_auc(labels, scores).auc
    slow = np.mean([(a > b) + (a == b) / 2 for a in cases for b in controls])
    assert auc == pytest.approx(slow, abs=1e-12)
    assert auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auc == pytest.approx(statistics.mann_whitney(cases, controls).statistic / (cases.size * controls.size))
    assert auc == pytest.approx(1 - statistics.delong_auc(labels, -scores).auc)
    assert statistics.delong_auc(labels, np.exp(3 * scores)) == statistics.delong_auc(labels, scores)


@quick
@given(patients)
def test_delong_paired_properties(rows):
    labels, a, b = columns(rows)
    forth, back = statistics.delong_paired(labels, a, b), statistics.delong_paired(labels, b, a)
    assert forth.difference == -back.difference
    assert forth.covariance == pytest.approx(back.covariance, abs=1e-15)
    assert (forth.lower, forth.upper) == pytest.approx((-back.upper, -back.lower), abs=1e-12)
    of_a, of_b = statistics.delong_auc(labels, a), statistics.delong_auc(labels, b)
    assert forth.difference == pytest.approx(of_a.auc - of_b.auc, abs=1e-12)
    if not math.isnan(forth.z):
        assert forth.z == -back.z and forth.p_value == back.p_value and 0 <= forth.p_value <= 1
    if forth.z:
        variance = of_a.variance + of_b.variance - 2 * forth.covariance
        assert (forth.difference / forth.z) ** 2 == pytest.approx(variance, abs=1e-12) or math.isnan(forth.z)
    same_ranks = statistics.delong_paired(labels, a, 7 * a + 1)
    assert same_ranks.p_value == 1 and same_ranks.z == 0


# --- Operating points


def test_roc_points_by_hand():
    false_positive, true_positive, threshold = statistics.roc_points([1, 0, 1, 0, 0], [4, 3, 3, 1, 0])
    assert false_positive.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert true_positive.tolist() == [0, 0.5, 1, 1, 1]
    assert threshold.tolist() == [math.inf, 3.5, 2, 0.5, 0]


def test_roc_points_without_cases():
    false_positive, true_positive, _ = statistics.roc_points([0, 0], [1, 2])
    assert false_positive.tolist() == [0, 0.5, 1]
    assert np.isnan(true_positive).all()


@quick
@given(patients)
def test_roc_points_are_what_their_thresholds_do(rows):
    labels, scores, _ = columns(rows)
    false_positive, true_positive, threshold = statistics.roc_points(labels, scores)
    for x, y, cut in zip(false_positive, true_positive, threshold, strict=True):
        counts = statistics.count_decisions(labels, scores >= cut)
        assert x == counts.fp / (counts.fp + counts.tn) and y == counts.tp / (counts.tp + counts.fn)
    assert np.trapezoid(true_positive, false_positive) == pytest.approx(statistics.delong_auc(labels, scores).auc)


def test_roc_points_between_neighbouring_numbers():
    low = 0.1
    high = np.nextafter(low, 1)
    _, _, threshold = statistics.roc_points([1, 0], [high, low])
    assert low < threshold[1] <= high


def test_roc_points_match_sklearn():
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 12, 60)
    false_positive, true_positive, _ = statistics.roc_points(labels, scores)
    theirs = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_positive, theirs[0])
    np.testing.assert_allclose(true_positive, theirs[1])


def test_youden_threshold_by_hand():
    assert statistics.youden_threshold([1, 1, 0, 0], [0.9, 0.6, 0.4, 0.1]) == 0.5
    # >= 3.5: 1/2 + 1 - 1 = 1/2; >= 1.5: 1 + 1/2 - 1 = 1/2. The lower one finds both expansions.
    assert statistics.youden_threshold([1, 0, 1, 0], [4, 3, 2, 1]) == 1.5
    # Equal in thirds: 1 - 2/3 and 2/3 - 1/3 differ as binary fractions.
    assert statistics.youden_threshold([1, 1, 1, 0, 0, 0], [6, 5, 1, 4, 3, 0]) == 4.5
    assert statistics.youden_threshold([0, 1, 1, 0, 0, 1], [9, 8, 7, 6, 5, 4]) == 6.5


def test_youden_threshold_of_a_useless_score_calls_everybody_positive():
    assert statistics.youden_threshold([1, 0, 1, 0], [2, 2, 2, 2]) == 2
    assert statistics.youden_threshold([1, 1, 0, 0], [1, 2, 3, 4]) == 1


@quick
@given(patients)
def test_youden_threshold_is_the_best_of_all(rows):
    labels, scores, _ = columns(rows)

    def youden(threshold):
        counts = statistics.count_decisions(labels, scores >= threshold)
        return counts.tp / (counts.tp + counts.fn) + counts.tn / (counts.tn + counts.fp) - 1

    chosen = statistics.youden_threshold(labels, scores)
    assert math.isfinite(chosen)
    assert youden(chosen) >= max(youden(threshold) for threshold in scores) - 1e-12


def test_sensitivity_threshold_by_hand():
    labels, scores = [1] * 10 + [0] * 5, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0]
    assert statistics.sensitivity_threshold(labels, scores, 0.9) == 1.5
    assert statistics.sensitivity_threshold(labels, scores, 0.91) == 0.5
    assert statistics.sensitivity_threshold(labels, scores, 1) == 0.5
    assert statistics.sensitivity_threshold(labels, scores, 0) == 9.5
    assert statistics.sensitivity_threshold([1, 0], [0, 1], 0.5) == 0
    with pytest.raises(ValueError):
        statistics.sensitivity_threshold(labels, scores, 90)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_no_operating_point_without_both_groups(labels):
    for choose in (statistics.youden_threshold, lambda *data: statistics.sensitivity_threshold(*data, 0.9)):
        with pytest.raises(InputError):
            choose(labels, [1.0] * len(labels))


# --- Two groups


def test_pearson_chi2_by_hand():
    # All expected counts 10: (4 * 5^2 / 10) = 10; p = erfc(sqrt(10 / 2)).
    statistic, p = statistics.pearson_chi2([[15, 5], [5, 15]])
    assert statistic == 10
    assert p == pytest.approx(math.erfc(math.sqrt(5)), rel=1e-12)
    assert math.isnan(statistics.pearson_chi2([[0, 5], [0, 15]]).p_value)
    assert math.isnan(statistics.pearson_chi2([[0, 0], [0, 0]]).p_value)


def test_pearson_chi2_matches_scipy_on_a_larger_table():
    from scipy.stats import chi2_contingency

    table = [[12, 5, 9], [3, 14, 8]]
    theirs = chi2_contingency(table, correction=False)
    assert statistics.pearson_chi2(table) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-12)


def test_p_values_of_table1(shared):
    rows = json.loads((shared / "statistics" / "table1.json").read_text())["rows"]
    shares = [row for row in rows if row["type"] == "categorical"]
    assert len(shares) == 14
    for row in shares:
        counts, sizes = (row["train_count"], row["test_count"]), (row["n_train"], row["n_test"])
        table = [[count, n - count] for count, n in zip(counts, sizes, strict=True)]
        statistic, p = statistics.pearson_chi2(table)
        assert statistic == pytest.approx(row["pearson_chi2"], abs=1e-12)
        assert p == pytest.approx(row["pearson_p"], abs=1e-12)
        assert statistics.format_p(p) == row["printed_p"]
        assert statistics.expected_counts(table).min() > 5
        printed = [statistics.round_half_up(100 * a / n, 1) for a, n in zip(counts, sizes, strict=True)]
        assert printed == row["printed_pct"]
    means = [row for row in rows if row["type"] == "mean_sd"]
    assert len(means) == 3
    for row in means:
        p = statistics.student_t_from_summary(*row["train"], *row["test"]).p_value
        assert p == pytest.approx(row["student_p_from_printed"], abs=1e-12)
        # The extremes of the unrounded numbers behind the print hold the printed p between them.
        half, p_values = 0.05, []
        for sign in (-1, 1):
            for spread in (-1, 1):
                (mean_a, sd_a, n_a), (mean_b, sd_b, n_b) = row["train"], row["test"]
                a = (mean_a + sign * half, sd_a + spread * half, n_a)
                b = (mean_b - sign * half, sd_b + spread * half, n_b)
                p_values.append(statistics.student_t_from_summary(*a, *b).p_value)
        if row["name"] != "Baseline haematoma volume":  # there the means may cross, and p passes through higher values
            assert [min(p_values), max(p_values)] == pytest.approx(row["student_p_range_over_rounding"], abs=1e-9)
        low, high = row["student_p_range_over_rounding"]
        assert low <= float(row["printed_p"]) <= high


def test_student_t_by_hand():
    # Means 2 and 4, both variances 1, 3 and 3 values: t = -2 / sqrt(2 / 3), 4 degrees of freedom.
    t, p = statistics.student_t([1, 2, 3], [3, 4, 5])
    assert t == pytest.approx(-2 / math.sqrt(2 / 3))
    # With 4 degrees of freedom the tail is 1/2 - 3/8 * s * (1 - s^2 / 12), s = t / sqrt(1 + t^2 / 4)
    s = -t / math.sqrt(1 + t * t / 4)
    assert p == pytest.approx(2 * (0.5 - 3 / 8 * s * (1 - s * s / 12)), rel=1e-10)


def test_student_t_matches_scipy_and_its_summary():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    a, b = rng.normal(62, 13, 189), rng.normal(63, 12, 77)
    theirs = ttest_ind(a, b)
    assert statistics.student_t(a, b) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-10)
    summary = statistics.student_t_from_summary(a.mean(), a.std(ddof=1), 189, b.mean(), b.std(ddof=1), 77)
    assert summary == pytest.approx(statistics.student_t(a, b), rel=1e-10)


def test_student_t_where_undefined():
    for a, b in (([], [1, 2]), ([1], [2]), ([3, 3], [3, 3]), ([3, 3], [4, 4])):
        assert math.isnan(statistics.student_t(a, b).p_value)
    # One value against several is defined: the variance is that of the several.
    assert statistics.student_t([5], [1, 2, 3]).statistic == pytest.approx(3 / math.sqrt(1 + 1 / 3))


def test_mann_whitney_by_hand():
    # All of a above all of b: 1 of the 20 orderings of 3 and 3, twice.
    assert statistics.mann_whitney([4, 5, 6], [1, 2, 3]) == (9, pytest.approx(0.1))
    # Of 16 pairs a is greater in one and equal in three; the ties of 3 and 2 take (24 + 6) / 56 from the variance.
    w, p = statistics.mann_whitney([1, 2, 2, 3], [2, 3, 4, 5])
    z = (8 - 2.5 - 0.5) / math.sqrt(16 / 12 * (9 - 30 / 56))
    assert w == 2.5 and p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-12)
    assert math.isnan(statistics.mann_whitney([1, 1], [1, 1]).p_value)
    assert math.isnan(statistics.mann_whitney([], [1, 1]).p_value)
    assert statistics.mann_whitney([1, 4], [2, 3]) == (2, 1)
    assert statistics.mann_whitney([1, 2], [1, 2]) == (2, 1)


@pytest.mark.parametrize(("m", "n", "method"), [(7, 9, "exact"), (49, 49, "exact"), (50, 12, "asymptotic")])
def test_mann_whitney_matches_scipy_without_ties(m, n, method):
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(m)
    a, b = rng.normal(0.3, 1, m), rng.normal(0, 1, n)
    theirs = mannwhitneyu(a, b, method=method)
    assert statistics.mann_whitney(a, b) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


@quick
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_mann_whitney_matches_scipy_with_ties(a, b):
    from scipy.stats import mannwhitneyu

    assume(len(set(a + b)) < len(a + b) and len(set(a + b)) > 1)
    theirs = mannwhitneyu(a, b, method="asymptotic", use_continuity=True)
    ours = statistics.mann_whitney(a, b)
    assert ours == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert statistics.mann_whitney(b, a).p_value == pytest.approx(ours.p_value, rel=1e-12)


def test_standardised_mean_difference_by_hand():
    # Means 2 and 4, both variances 1.
    assert statistics.standardised_mean_difference([1, 2, 3], [3, 4, 5]) == pytest.approx(-2)
    # Shares 3/4 and 1/4, both variances 3/16.
    smd = statistics.standardised_mean_difference([1, 1, 1, 0], [1, 0, 0, 0], binary=True)
    assert smd == pytest.approx(0.5 / math.sqrt(3 / 16))
    assert statistics.standardised_mean_difference([2, 2], [2, 2]) == 0
    assert math.isnan(statistics.standardised_mean_difference([2, 2], [3, 3]))
    assert math.isnan(statistics.standardised_mean_difference([1], [3, 4]))
    assert math.isnan(statistics.standardised_mean_difference([], [1, 0], binary=True))


def test_holm_by_hand():
    adjusted = statistics.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, then 0.04 raised to 0.06.
    assert adjusted[[0, 1, 3, 4]].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(adjusted[2])
    assert statistics.holm([0.6, 0.7]).tolist() == [1, 1]
    assert statistics.holm([]).size == 0


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_matches_statsmodels(p_values):
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_allclose(statistics.holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


# --- Agreement


def test_cohen_kappa_by_hand():
    # 40 both yes, 45 both no, 5 and 10 apart: observed 0.85, chance 0.45 * 0.5 + 0.55 * 0.5 = 0.5, kappa 0.7.
    a = [1] * 40 + [0] * 45 + [1] * 5 + [0] * 10
    b = [1] * 40 + [0] * 45 + [0] * 5 + [1] * 10
    assert statistics.cohen_kappa(a, b).estimate == pytest.approx(0.7)
    assert statistics.cohen_kappa([0, 1, 0], [0, 1, 0]) == pytest.approx((1, 1, 1))
    assert statistics.cohen_kappa([0, 1], [1, 0]).estimate == pytest.approx(-1)
    for a, b in (([], []), ([1, 1], [1, 1])):
        assert all(math.isnan(value) for value in statistics.cohen_kappa(a, b))
    assert statistics.cohen_kappa([0, 0, 0], [0, 0, 1]) == pytest.approx((0, 0, 0))
    with pytest.raises(ValueError):
        statistics.cohen_kappa([1, 0], [1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning:statsmodels")
@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=40))
def test_cohen_kappa_matches_statsmodels(pairs):
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    a, b = columns(pairs)
    assume(len({*a, *b}) > 1)
    kappa = statistics.cohen_kappa(a, b)
    theirs = cohens_kappa(to_table(np.stack([a, b], 1))[0])
    assert kappa.estimate == pytest.approx(theirs.kappa, abs=1e-12)
    assume(theirs.var_kappa > 1e-12)  # statsmodels takes roots of negative zeros where a reader never varies
    assert kappa.lower == pytest.approx(max(theirs.kappa_low, -1), abs=1e-7)
    assert kappa.upper == pytest.approx(min(theirs.kappa_upp, 1), abs=1e-7)
    assert statistics.cohen_kappa(b, a) == pytest.approx(kappa, abs=1e-12)


def test_bland_altman_by_hand():
    # Differences 1, 2, 3: mean 2, SD 1.
    assert statistics.bland_altman([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 2 - 1.959964, 2 + 1.959964), abs=1e-6)
    bias, lower, _ = statistics.bland_altman([2], [1])
    assert bias == 1 and math.isnan(lower)
    assert all(math.isnan(value) for value in statistics.bland_altman([], []))
    with pytest.raises(ValueError):
        statistics.bland_altman([1, 2], [1])


# --- Probabilities


def test_brier_by_hand():
    assert statistics.brier([1, 0, 1], [0.5, 0.2, 1]) == pytest.approx((0.25 + 0.04 + 0) / 3)
    assert math.isnan(statistics.brier([], []))
    with pytest.raises(ValueError):
        statistics.brier([1, 0], [1.2, 0])


def test_logistic_fit_of_two_groups_in_closed_form():
    # x = 0: 1 of 4, x = 1: 3 of 5. The intercept is ln(1/3), the slope the log odds ratio.
    fit = statistics.logistic_fit([0] * 4 + [1] * 5, [1, 0, 0, 0, 1, 1, 1, 0, 0])
    assert fit.intercept == pytest.approx(math.log(1 / 3), abs=1e-10)
    assert fit.slope == pytest.approx(math.log(3 / 2) - math.log(1 / 3), abs=1e-10)
    assert not fit.separated


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("location", "scale"), [(0, 1), (17, 15), (-1e4, 1e-2), (0, 1e5)])
def test_logistic_fit_matches_statsmodels(seed, location, scale):
    from statsmodels.api import Logit, add_constant

    rng = np.random.default_rng(seed)
    z = rng.normal(size=189)
    labels = rng.random(189) < 1 / (1 + np.exp(1 - 0.8 * seed * z))
    theirs = Logit(labels.astype(float), add_constant(z)).fit(disp=0, tol=1e-14)
    fit = statistics.logistic_fit(location + scale * z, labels)
    assert fit.slope * scale == pytest.approx(theirs.params[1], abs=1e-7)
    assert fit.intercept + fit.slope * location == pytest.approx(theirs.params[0], abs=1e-5)
    assert statistics.calibration_fit(labels, z) == pytest.approx(theirs.params, abs=1e-8)


def test_calibration_fit_of_a_calibrated_model():
    logits = np.random.default_rng(5).normal(-1, 1.5, 40000)
    labels = np.random.default_rng(6).random(40000) < 1 / (1 + np.exp(-logits))
    assert statistics.calibration_fit(labels, logits) == pytest.approx((0, 1), abs=0.05)
    intercept, slope = statistics.calibration_fit(labels, 3 * logits + 1)
    assert (intercept + slope, slope) == pytest.approx((0, 1 / 3), abs=0.05)


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1]),
        ([1, 2, 3, 4], [1, 1, 0, 0]),
        ([1, 2, 2, 3], [0, 0, 1, 1]),  # touching
        ([-900, 900, 901], [0, 1, 1]),
    ],
)
def test_logistic_fit_of_separated_groups(x, labels):
    fit = statistics.logistic_fit(x, labels)
    assert fit.separated and math.isfinite(fit.intercept)
    assert np.sign(fit.slope) == (1 if labels[-1] else -1)
    # At the maximum the residuals from Platt's targets are orthogonal to the constant and to x.
    m = sum(labels)
    target = np.where(labels, (m + 1) / (m + 2), 1 / (len(x) - m + 2))
    residual = target - 1 / (1 + np.exp(-(fit.intercept + fit.slope * np.array(x))))
    assert residual.sum() == pytest.approx(0, abs=1e-9)
    assert residual @ x == pytest.approx(0, abs=1e-6)


def test_logistic_fit_without_information():
    assert statistics.logistic_fit([2, 2, 2, 2], [1, 0, 0, 0]) == (pytest.approx(math.log(1 / 3)), 0, False)
    # Nobody of three: 1 / 5 expected after Platt, so log odds ln(1/4).
    assert statistics.logistic_fit([1, 2, 3], [0, 0, 0]) == (pytest.approx(math.log(1 / 4)), 0, True)
    with pytest.raises(InputError):
        statistics.logistic_fit([], [])


@quick
@given(patients)
def test_logistic_fit_solves_its_equations(rows):
    labels, x, _ = columns(rows)
    fit = statistics.logistic_fit(x, labels)
    assert math.isfinite(fit.intercept) and math.isfinite(fit.slope)
    if not fit.separated:
        residual = labels - 1 / (1 + np.exp(-(fit.intercept + fit.slope * x)))
        assert abs(residual.sum()) < 1e-8
        assert abs(residual @ x) < 1e-8


# --- Printing


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.545, 2, "0.55"),
        (0.285, 2, "0.29"),
        (2.675, 2, "2.68"),  # the binary number lies below
        (0.125, 2, "0.13"),  # numpy and Python round to 0.12
        (12.249999999999998, 1, "12.3"),
        (0.5454545, 2, "0.55"),
        (2, 2, "2.00"),
        (-0.125, 2, "-0.13"),
        (-0.004, 2, "0.00"),
        (17.4, 0, "17"),
        (1e-20, 3, "0.000"),
        (123456.5, 0, "123457"),
        (math.nan, 2, ""),
        (None, 2, ""),
    ],
)
def test_round_half_up(value, decimals, text):
    assert statistics.round_half_up(value, decimals) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0425, "0.043"),
        (0.001, "0.001"),
        (0.00099, "<0.001"),
        (0, "<0.001"),
        (1, "1.000"),
        (math.nan, "N/A"),
        (None, "N/A"),
    ],
)
def test_format_p(p, text):
    assert statistics.format_p(p) == text
