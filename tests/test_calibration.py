"""Calibration: pools worked out by hand, a slow oracle, scikit-learn, and what a foreign bundle may hold."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haemex.calibration import calibrate, calibrated_logit, calibration_in_words, read_calibration
from haemex.calibration_fit import fit_calibration
from haemex.errors import InputError

PATIENTS = st.lists(
    st.tuples(st.integers(0, 1), st.floats(-8, 8, allow_subnormal=False).map(lambda x: round(x, 2))),
    min_size=1,
    max_size=30,
)


def isotonic(labels, logits):
    return fit_calibration("isotonic", labels, logits)


# --- Platt -------------------------------------------------------------------------------------------------------


def test_platt_by_hand():
    # At logit 0 one of four expands, at 1 three of four: log odds -log 3 and log 3.
    labels, logits = [1, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]
    fitted = fit_calibration("platt", labels, logits)
    assert fitted == {
        "method": "platt",
        "intercept": pytest.approx(-math.log(3)),
        "slope": pytest.approx(2 * math.log(3)),
    }
    assert calibrate(fitted, 0) == pytest.approx(1 / 4)
    assert calibrate(fitted, 1) == pytest.approx(3 / 4)
    assert calibrate(fitted, 0.5) == pytest.approx(1 / 2)
    assert calibrated_logit(fitted, 2) == pytest.approx(3 * math.log(3))


def test_platt_does_not_overflow():
    steep = {"method": "platt", "intercept": 0.0, "slope": 1e6}
    assert calibrate(steep, 50.0) == 1.0
    assert calibrate(steep, -50.0) == 0.0
    assert calibrated_logit(steep, -50.0) == -5e7


# --- isotonic ----------------------------------------------------------------------------------------------------


def test_pools_by_hand():
    # By rising logit: 0 | 1 0 | 1 1 0 | 1. The violators 1 0 pool to 1/2, then 1 1 0 to 2/3, which is above 1/2.
    # The ends would be 0 and 1: with 3 patients without and 4 with expansion they stop at 1/5 and 5/6.
    fitted = isotonic([0, 1, 0, 1, 1, 0, 1], [-3, -2, -1, 0, 1, 2, 3])
    found = [calibrate(fitted, logit) for logit in (-3, -2, -1, 0, 1, 2, 3)]
    assert found == pytest.approx([1 / 5, 1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3, 5 / 6])
    assert calibrate(fitted, -99) == pytest.approx(1 / 5)
    assert calibrate(fitted, 99) == pytest.approx(5 / 6)
    assert calibrate(fitted, -2.5) == pytest.approx((1 / 5 + 1 / 2) / 2)  # half-way between two knots
    assert calibrated_logit(fitted, 3) == pytest.approx(math.log(5))
    assert calibration_in_words(fitted) == "isotonic regression with 4 levels"


def test_a_pool_of_pools_by_hand():
    # 1 0 pool to 1/2; the 0 that follows pulls the pool to 1/3, the next 0 to 1/4.
    fitted = isotonic([1, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5])
    assert [calibrate(fitted, x) for x in range(4)] == pytest.approx([1 / 4] * 4)
    assert calibrate(fitted, 4) == pytest.approx(4 / 5)


def test_equal_logits_are_one_patient_of_their_mean():
    # At 0: one of three; at 1: none of one. Together 1/4.
    assert calibrate(isotonic([1, 0, 0, 0, 1], [0, 0, 0, 1, 2]), 0.3) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("labels", "expected"), [([1, 1, 1], 4 / 5), ([0, 0], 1 / 4), ([0, 1], 1 / 2)])
def test_one_logit_gives_one_probability(labels, expected):
    fitted = isotonic(labels, [0.7] * len(labels))
    assert [calibrate(fitted, x) for x in (-5, 0.7, 5)] == pytest.approx([expected] * 3)


def slow_isotonic(labels, logits):
    """Max-min formula of isotonic regression (Robertson, Wright and Dykstra 1988), cut to Platt's targets."""
    values = sorted(set(logits))
    groups = [[y for y, x in zip(labels, logits, strict=True) if x == value] for value in values]
    ones = sum(labels)
    lowest, highest = 1 / (len(labels) - ones + 2), (ones + 1) / (ones + 2)

    def mean(first, last):
        pool = list(itertools.chain(*groups[first : last + 1]))
        return sum(pool) / len(pool)

    n = len(values)
    fitted = (max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n))
    return {value: min(max(one, lowest), highest) for value, one in zip(values, fitted, strict=True)}


@given(PATIENTS)
def test_isotonic_is_the_max_min_formula_and_never_falls(patients):
    labels, logits = zip(*patients, strict=True)
    fitted = isotonic(labels, logits)
    for logit, probability in slow_isotonic(labels, logits).items():
        assert calibrate(fitted, logit) == pytest.approx(probability, abs=1e-9)
    curve = [calibrate(fitted, logit) for logit in np.linspace(-9, 9, 91)]
    assert all(a <= b for a, b in itertools.pairwise(curve))
    assert curve[0] > 0 and curve[-1] < 1
    assert all(math.isfinite(calibrated_logit(fitted, logit)) for logit in logits)


@given(PATIENTS, st.sampled_from(["platt", "isotonic"]))
def test_a_calibration_survives_json(patients, method):
    fitted = fit_calibration(method, *zip(*patients, strict=True))
    assert read_calibration(json.loads(json.dumps(fitted, allow_nan=False)), "model.json") == fitted


def test_against_scikit_learn():
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    logits = rng.normal(size=400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-2 * logits + 1))).astype(int)
    anew = rng.normal(size=50) * 2
    reference = IsotonicRegression(out_of_bounds="clip").fit(logits, labels).predict(anew)
    reference = reference.clip(1 / ((labels == 0).sum() + 2), (labels.sum() + 1) / (labels.sum() + 2))
    fitted = isotonic(labels, logits)
    np.testing.assert_allclose([calibrate(fitted, x) for x in anew], reference, rtol=1e-12)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels).predict_proba(anew[:, None])[:, 1]
    fitted = fit_calibration("platt", labels, logits)
    np.testing.assert_allclose([calibrate(fitted, x) for x in anew], reference, rtol=1e-5)


def test_a_bent_network_is_straightened_by_isotonic_regression_only():
    rng = np.random.default_rng(8)
    truth = rng.uniform(0.1, 0.9, 20000)
    labels = (rng.random(20000) < truth).astype(int)
    logits = np.where(truth > 0.5, 20 * (truth - 0.5), truth - 0.5)  # rises slowly, then steeply: no sigmoid

    def error(method):
        fitted = fit_calibration(method, labels, logits)
        return np.mean([abs(calibrate(fitted, x) - p) for x, p in zip(logits[:2000], truth[:2000], strict=True)])

    assert error("isotonic") < 0.02
    assert error("platt") > 0.05


# --- refusals ----------------------------------------------------------------------------------------------------


def test_unknown_methods_and_no_patients_are_refused():
    with pytest.raises(InputError, match=r"select\.calibration is 'beta'. Give one of platt, isotonic"):
        fit_calibration("beta", [0, 1], [0, 1])
    for method in ("platt", "isotonic"):
        with pytest.raises(InputError, match="no patients"):
            fit_calibration(method, [], [])


GOOD = {"method": "isotonic", "logit": [0, 1.0], "probability": [0.25, 0.5]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "method is None"),
        ([1, 2], "method is None"),
        ({"intercept": 0.0, "slope": 1.0}, "method is None"),
        ({"method": "eval"}, "method is 'eval', this haemex knows platt, isotonic"),
        ({"method": ["platt"]}, r"method is \['platt'\]"),
        ({"method": "platt", "intercept": 0.0}, "slope is None"),
        ({"method": "platt", "intercept": "0", "slope": 1.0}, "intercept is '0'"),
        ({"method": "platt", "intercept": math.nan, "slope": 1.0}, "intercept is nan"),
        ({"method": "platt", "intercept": 0, "slope": True}, "slope is True"),
        ({"method": "platt", "intercept": 0, "slope": 10**400}, "slope is 10000"),
        (GOOD | {"logit": []}, "no lists of finite numbers"),
        (GOOD | {"logit": 3}, "no lists of finite numbers"),
        (GOOD | {"logit": [0, math.inf]}, "no lists of finite numbers"),
        (GOOD | {"logit": [0, 1, 2]}, "3 logits but 2 probabilities"),
        (GOOD | {"logit": [1, 1]}, "logits do not rise"),
        (GOOD | {"probability": [0.5, 0.25]}, "probabilities fall"),
        (GOOD | {"probability": [0.0, 0.25]}, "does not lie between 0 and 1"),
        (GOOD | {"probability": [0.5, 1]}, "does not lie between 0 and 1"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused(content, said):
    with pytest.raises(InputError, match=said) as refusal:
        read_calibration(content, "model.json")
    assert refusal.value.file == "model.json"


def test_only_what_belongs_to_the_method_is_taken_over():
    assert read_calibration(GOOD | {"more": "x"}, "model.json") == GOOD
    platt = {"method": "platt", "intercept": 1, "slope": 2.5}
    assert read_calibration(platt | {"logit": [0]}, "model.json") == platt
    assert calibration_in_words(platt) == "Platt's method, intercept 1.00, slope 2.50"


def test_applying_a_calibration_imports_no_scikit_learn():
    program = "import sys, haemex.calibration; sys.exit('sklearn' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
