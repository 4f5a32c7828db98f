"""Intervals of the calibration measures, against statsmodels."""

import math

import numpy as np
import pytest

from haemex.calibration_measures import (
    brier_interval,
    calibration_in_the_large,
    calibration_line,
    observed_to_expected,
    recalibration,
)
from haemex.statistics import brier


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


def test_the_intercept_alone_has_a_known_answer():
    """Equal claims: the shift takes them to the observed share, with the error of a log odds, 1 / sqrt(n p (1 - p))."""
    labels = [1] * 12 + [0] * 36
    shift = calibration_in_the_large(labels, [0.7] * 48)
    assert shift.estimate == pytest.approx(math.log(12 / 36) - 0.7, abs=1e-9)
    assert shift.upper - shift.estimate == pytest.approx(1.959964 / 3, abs=1e-6)  # 48 * 0.25 * 0.75 = 9
    rng = np.random.default_rng(5)
    logits = rng.normal(-1, 2, 400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-(logits - 0.8)))).astype(int)
    shift = calibration_in_the_large(labels, logits)
    assert (1 / (1 + np.exp(-(logits + shift.estimate)))).sum() == pytest.approx(labels.sum(), abs=1e-6)
    assert shift.lower < -0.8 < shift.upper
    assert calibration_in_the_large(labels, logits + 3).estimate == pytest.approx(shift.estimate - 3, abs=1e-9)
    for one_class in ([], [0, 0], [1, 1]):
        assert math.isnan(calibration_in_the_large(one_class, [0.0] * len(one_class)).estimate)


def test_recalibration_brings_the_claims_in_line():
    """The intercept alone mends how many are expected, intercept and slope are the regression of outcome on claim."""
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, 500)
    labels = (rng.random(500) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(int)
    found = recalibration(labels, logits)
    alone, both = found["intercept_only"], found["intercept_and_slope"]
    assert (both["intercept"], both["slope"]) == calibration_line(labels, logits)
    assert both["slope"].lower < 0.5 < both["slope"].upper and alone["slope"].estimate == 1
    for one in (alone, both):
        assert one["probabilities"].sum() == pytest.approx(labels.sum(), abs=1e-4)
        again = calibration_in_the_large(labels, np.log(one["probabilities"] / (1 - one["probabilities"])))
        assert again.estimate == pytest.approx(0, abs=1e-6)
    told = brier(labels, 1 / (1 + np.exp(-logits)))
    assert brier(labels, both["probabilities"]) < brier(labels, alone["probabilities"]) < told
    assert recalibration([1, 1], [0.1, 0.2])["intercept_only"] is None


def test_the_intercept_alone_against_statsmodels(cohort):
    import statsmodels.api as sm

    labels, logits = cohort
    fit = sm.GLM(labels, np.ones((len(labels), 1)), family=sm.families.Binomial(), offset=logits).fit()
    shift = calibration_in_the_large(labels, logits, 0.9)
    assert shift.estimate == pytest.approx(fit.params[0], abs=1e-6)
    assert (shift.lower, shift.upper) == pytest.approx(tuple(fit.conf_int(0.1)[0]), abs=1e-5)
