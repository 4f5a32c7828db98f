"""Bootstrap intervals: scipy's, the same again, and what is undefined is counted."""

import math

import numpy as np
import pytest
import scipy.stats

from haemex.bootstrap import bootstrap_intervals
from haemex.statistics import delong_auc


def test_against_scipy():
    values = np.random.default_rng(4).exponential(2, 60)
    found = bootstrap_intervals(60, {"median": lambda i: np.median(values[i])}, seed=1, resamples=4000)["median"]
    expected = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(9)
    ).confidence_interval
    assert found["estimate"] == np.median(values) and found["resamples"] == 4000
    assert (found["lower"], found["upper"]) == pytest.approx(expected, abs=0.08)


def test_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(2).normal(size=400)
    found = bootstrap_intervals(400, {"mean": lambda i: values[i].mean()}, seed=3)["mean"]
    assert found["upper"] - found["lower"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_agrees_with_delong():
    rng = np.random.default_rng(7)
    labels = np.array([1] * 40 + [0] * 80)
    scores = rng.normal(size=120) + labels
    delong = delong_auc(labels, scores)
    found = bootstrap_intervals(120, {"auc": lambda i: delong_auc(labels[i], scores[i]).auc}, seed=5)["auc"]
    assert (found["estimate"], found["lower"], found["upper"]) == pytest.approx(
        (delong.auc, delong.lower, delong.upper), abs=0.015
    )


def test_the_seed_decides_and_other_measures_do_not():
    values = np.arange(30.0)
    mean = {"mean": lambda i: values[i].mean()}
    first = bootstrap_intervals(30, mean, seed=1, resamples=200)
    assert bootstrap_intervals(30, mean, seed=1, resamples=200) == first
    assert bootstrap_intervals(30, mean, seed=2, resamples=200) != first
    both = bootstrap_intervals(30, {"max": lambda i: values[i].max(), **mean}, seed=1, resamples=200)
    assert both["mean"] == first["mean"]


def test_undefined_resamples_are_counted():
    labels = np.array([1] + [0] * 9)

    def share(i):
        return 1.0 if labels[i].any() else math.nan

    found = bootstrap_intervals(10, {"share": share}, seed=0)["share"]
    # Nine in ten are missed with a probability of 0.9^10.
    assert found["resamples"] / 2000 == pytest.approx(1 - 0.9**10, abs=0.04)
    never = bootstrap_intervals(4, {"x": lambda i: math.nan}, seed=0, resamples=50)["x"]
    assert never["resamples"] == 0 and math.isnan(never["estimate"]) and math.isnan(never["lower"])
