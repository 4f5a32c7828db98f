"""Hanley and McNeil's variance, and the patients a width takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haemex.auc_precision import hanley_mcneil_variance, interval_width, patients_for_width, precision_of_auc


def test_hanley_and_mcneils_own_example():
    # 58 normal and 51 abnormal CT images, AUC 0.893: their standard error is 0.032.
    assert math.sqrt(hanley_mcneil_variance(0.893, 51, 58)) == pytest.approx(0.032, abs=6e-4)


@given(st.integers(1, 500), st.integers(1, 500))
def test_chance_has_the_mann_whitney_variance(m, n):
    assert hanley_mcneil_variance(0.5, m, n) == pytest.approx((m + n + 1) / (12 * m * n))


def test_variance_of_a_model_that_fits_the_formula():
    # Q1 and Q2 are exact for exponential scores: simulate them.
    rng = np.random.default_rng(0)
    rate, m, n = 1 / 3, 12, 20  # AUC = 1 / (1 + rate) = 0.75
    cases, controls = rng.exponential(1 / rate, (8000, m, 1)), rng.exponential(1, (8000, 1, n))
    simulated = (cases > controls).mean((1, 2))
    assert simulated.mean() == pytest.approx(0.75, abs=0.005)
    assert simulated.var() == pytest.approx(hanley_mcneil_variance(0.75, m, n), rel=0.06)


@given(st.floats(0.55, 0.95), st.floats(0.1, 0.9), st.floats(0.03, 0.4))
def test_number_of_patients_is_the_smallest(auc, share, width):
    n = patients_for_width(auc, share, width)
    assert interval_width(auc, share * n, (1 - share) * n) <= width
    assert interval_width(auc, share * (n - 1), (1 - share) * (n - 1)) > width or n == 2


def test_precision_comes_back_to_the_cohort_it_was_measured_in():
    variance = hanley_mcneil_variance(0.8, 22, 55)
    said = precision_of_auc(0.8, variance, 22, 55, 0.1)
    assert said["patients_of_width"] == 77
    assert said["width"] == pytest.approx(said["width_hanley_mcneil"]) == pytest.approx(2 * 1.959964 * variance**0.5)
    assert said["patients_wanted_delong"] == math.ceil(77 * (said["width"] / 0.1) ** 2)
    assert said["patients_wanted"] == pytest.approx(said["patients_wanted_delong"], rel=0.02)


@pytest.mark.parametrize(("auc", "variance"), [(1.0, 0.0), (0.7, 0.0), (math.nan, math.nan), (0.7, math.nan)])
def test_no_width_no_patients(auc, variance):
    said = precision_of_auc(auc, variance, 3, 5, 0.1)
    assert said.pop("wanted_width") == 0.1 and set(said.values()) == {None}
