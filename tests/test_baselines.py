"""The logistic models against closed forms, statsmodels and scikit-learn, and the wall between the cohorts."""

import math

import numpy as np
import pytest

from haemex.baselines import apply_logistic, fit_baselines, fit_logistic
from haemex.errors import InputError
from haemex.statistics import count_decisions


def rows_of(volumes, bats, labels):
    return [
        {"patient": str(i), "cohort": "train", "baseline_ml": volume, "bat_score": bat, "expansion": label}
        for i, (volume, bat, label) in enumerate(zip(volumes, bats, labels, strict=True))
    ]


def cohort(n=189, seed=7):
    rng = np.random.default_rng(seed)
    volumes, bats = rng.lognormal(2.5, 0.8, n), rng.integers(0, 6, n)
    labels = rng.random(n) < 1 / (1 + np.exp(2 - 0.03 * volumes - 0.2 * bats))
    return rows_of(volumes.tolist(), bats.tolist(), labels.astype(int).tolist())


def test_fit_logistic_in_closed_form():
    # x = 10: 2 of 6, x = 30: 3 of 4. Log odds ln(1/2) and ln 3, 20 units apart.
    model = fit_logistic([10] * 6 + [30] * 4, [1, 1, 0, 0, 0, 0, 1, 1, 1, 0])
    assert model["coefficient"] == pytest.approx((math.log(3) - math.log(0.5)) / 20)
    assert model["intercept"] == pytest.approx(math.log(0.5) - 10 * model["coefficient"])
    assert model["separated"] is False
    assert apply_logistic(model, [10, 30]) == pytest.approx([1 / 3, 3 / 4])


def test_fit_logistic_matches_statsmodels_and_sklearn():
    from sklearn.linear_model import LogisticRegression
    from statsmodels.api import Logit, add_constant

    rows = cohort()
    x, labels = np.array([row["baseline_ml"] for row in rows]), np.array([row["expansion"] for row in rows])
    model = fit_logistic(x, labels)
    theirs = Logit(labels, add_constant(x)).fit(disp=0, tol=1e-14)
    assert (model["intercept"], model["coefficient"]) == pytest.approx(theirs.params, rel=1e-8)
    assert apply_logistic(model, x) == pytest.approx(theirs.predict(add_constant(x)), rel=1e-8)
    free = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], labels)
    assert model["coefficient"] == pytest.approx(free.coef_[0, 0], rel=1e-4)


def test_apply_logistic():
    model = {"intercept": -1.0, "coefficient": 0.5}
    assert apply_logistic(model, 2) == 0.5
    assert isinstance(apply_logistic(model, 2), float)
    assert math.isnan(apply_logistic(model, None))
    probability = apply_logistic(model, [2, None, 1e6, -1e6])
    assert probability[[0, 2, 3]].tolist() == [0.5, 1, 0] and np.isnan(probability[1])


def test_fit_baselines_by_hand():
    # The volumes overlap in one pair: cuts at 25 and 45 leave one error each; the lower one finds every expansion.
    rows = rows_of([10, 20, 30, 40, 50, 60], [0, 0, 0, 4, 4, 4], [0, 0, 1, 0, 1, 1])
    models = fit_baselines(rows)
    assert list(models) == ["volume", "bat"]
    volume = models["volume"]
    assert (volume["predictor"], volume["rule"]) == ("baseline_ml", "youden")
    assert (volume["patients"], volume["expansions"], volume["missing"]) == (6, 3, 0)
    cut = (math.log(volume["threshold"] / (1 - volume["threshold"])) - volume["intercept"]) / volume["coefficient"]
    assert 20 < cut < 30
    positive = apply_logistic(volume, [20, 30]) >= volume["threshold"]
    assert positive.tolist() == [False, True]
    # BAT 0: 1 of 3, BAT 4: 2 of 3; the threshold lies half-way between the probabilities.
    assert apply_logistic(models["bat"], [0, 4]) == pytest.approx([1 / 3, 2 / 3])
    assert models["bat"]["threshold"] == pytest.approx(0.5)


def test_fit_baselines_leaves_out_and_counts_missing_values():
    rows = cohort()
    fuller = [*rows, {**rows[0], "bat_score": None}, {**rows[1], "baseline_ml": math.nan}]
    models = fit_baselines(fuller)
    assert models["bat"]["missing"] == models["volume"]["missing"] == 1
    assert models["bat"]["patients"] == 190
    assert models["bat"]["threshold"] == fit_baselines([*rows, rows[1]])["bat"]["threshold"]


def test_fit_baselines_with_a_fixed_sensitivity():
    rows = cohort()
    models = fit_baselines(rows, "sensitivity", min_sensitivity=0.9)
    for model in models.values():
        probability = apply_logistic(model, [row[model["predictor"]] for row in rows])
        counts = count_decisions([row["expansion"] for row in rows], probability >= model["threshold"])
        assert counts.tp / (counts.tp + counts.fn) >= 0.9
        stricter = count_decisions(
            [row["expansion"] for row in rows], probability > probability[probability >= model["threshold"]].min()
        )
        assert stricter.tp / (stricter.tp + stricter.fn) < 0.9


def test_fit_baselines_of_separated_cohorts_is_finite():
    model = fit_baselines(rows_of([1, 2, 3, 4], [0, 0, 5, 5], [0, 0, 1, 1]))["volume"]
    assert model["separated"] is True
    probability = apply_logistic(model, [1, 2, 3, 4])
    assert (probability >= model["threshold"]).tolist() == [False, False, True, True]


def test_fit_baselines_never_sees_the_test_cohort():
    rows = cohort()
    with pytest.raises(ValueError, match="training cohort"):
        fit_baselines([*rows, {**rows[0], "cohort": "test"}])


def test_fit_baselines_refuses_a_rule_it_cannot_follow():
    with pytest.raises(ValueError, match="best"):
        fit_baselines(cohort(), "best")
    with pytest.raises(ValueError, match="min_sensitivity"):
        fit_baselines(cohort(), "sensitivity")


def test_fit_baselines_needs_both_outcomes():
    with pytest.raises(InputError, match="0 patients with"):
        fit_baselines(rows_of([1, 2], [0, 1], [0, 0]))


def test_a_study_without_marker_readings_has_a_volume_model_only():
    rows = [{"expansion": i % 2, "baseline_ml": float(i), "bat_score": None} for i in range(6)]
    assert list(fit_baselines(rows)) == ["volume"]
