"""Intervals of the calibration measures, against statsmodels."""

import math

import numpy as np
import pytest

from haemex.calibration_measures import brier_interval, calibration_line, observed_to_expected


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(8)
    logits = rng.normal(-1, 1.2, 77)
    labels = (rng.random(77) < 1 / (1 + np.exp(-0.7 * logits))).astype(int)
    return labels, logits


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_line_against_statsmodels(cohort, confidence):
    import statsmodels.api as sm

    labels, logits = cohort
    fit = sm.Logit(labels, sm.add_constant(logits)).fit(disp=0)
    found = calibration_line(labels, logits, confidence)
    for one, estimate, bounds in zip(found, fit.params, fit.conf_int(1 - confidence), strict=True):
        assert one == pytest.approx((estimate, *bounds), rel=1e-5)


def test_line_without_an_answer_has_no_interval():
    for labels, logits in (([0, 0, 1, 1], [1.0, 2, 3, 4]), ([0, 1, 0, 1], [2.0] * 4)):
        for one in calibration_line(labels, logits):
            assert math.isfinite(one.estimate) and math.isnan(one.lower) and math.isnan(one.upper)


@pytest.mark.filterwarnings("ignore:The Log link")
def test_observed_to_expected_against_statsmodels(cohort):
    import statsmodels.api as sm

    labels, logits = cohort
    risk = 1 / (1 + np.exp(-logits))
    # The logarithm of a share, modelled alone: its standard error is that of ln O.
    family = sm.families.Binomial(link=sm.families.links.Log())
    fit = sm.GLM(labels, np.ones_like(logits), family=family).fit(start_params=[math.log(labels.mean())])
    expected = np.exp([fit.params[0], *fit.conf_int()[0]]) / risk.mean()
    assert observed_to_expected(labels, risk) == pytest.approx(expected, rel=1e-5)


def test_observed_to_expected_by_hand():
    # 4 of 16 observed, 8 expected: se = sqrt(0.75 / 4).
    ratio = observed_to_expected([1] * 4 + [0] * 12, [0.5] * 16)
    spread = math.exp(1.959964 * math.sqrt(0.75 / 4))
    assert ratio == pytest.approx((0.5, 0.5 / spread, 0.5 * spread), rel=1e-6)
    none = observed_to_expected([0, 0], [0.2, 0.3])
    assert none.estimate == 0 and math.isnan(none.upper)
    assert math.isnan(observed_to_expected([], []).estimate)
    assert observed_to_expected([1, 1], [0.5, 0.5]) == (2, 2, 2)


def test_brier_against_statsmodels(cohort):
    from statsmodels.stats.weightstats import DescrStatsW

    labels, logits = cohort
    risk = 1 / (1 + np.exp(-logits))
    errors = DescrStatsW((risk - labels) ** 2)
    assert brier_interval(labels, risk, 0.9) == pytest.approx((errors.mean, *errors.zconfint_mean(0.1)))
    assert brier_interval([1, 0], [0.0, 0.9]).upper == 1
    alone = brier_interval([1], [0.3])
    assert alone.estimate == pytest.approx(0.49) and math.isnan(alone.lower)
