"""ICC(2,1) against Shrout and Fleiss 1979, the definition worked out slowly, and what it must not change with."""

import math

import numpy as np
import pytest

from haemex.intraclass import icc_agreement

# Their Table 2: six targets, four judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_shrout_and_fleiss():
    icc, lower, upper = icc_agreement(SHROUT_FLEISS)
    # Their Table 3: BMS 11.24, JMS 32.49, EMS 1.02.
    assert icc == pytest.approx((11.24 - 1.02) / (11.24 + 3 * 1.02 + 4 * (32.49 - 1.02) / 6), abs=1e-3)
    assert round(icc, 2) == 0.29  # as they print it
    assert (round(lower, 2), round(upper, 2)) == (0.02, 0.76)


def test_two_readers_by_hand():
    # Patients 1, 2, 3; the second reader always 1 more. Patients' mean square 2, readers' 1.5, error 0.
    icc, lower, upper = icc_agreement([[1, 2], [2, 3], [3, 4]])
    assert icc == pytest.approx(2 / (2 + 2 * 1.5 / 3)) == pytest.approx(2 / 3)
    assert lower < icc < upper


def test_against_statsmodels_mean_squares():
    import pandas
    import statsmodels.api as sm
    from statsmodels.formula.api import ols

    rng = np.random.default_rng(5)
    x = rng.normal(20, 8, (15, 1)) + rng.normal(0, 1, (1, 2)) + rng.normal(0, 2, (15, 2))
    table = pandas.DataFrame([{"y": x[i, j], "patient": i, "reader": j} for i in range(15) for j in range(2)])
    found = sm.stats.anova_lm(ols("y ~ C(patient) + C(reader)", table).fit())
    msr, msc, mse = (found["sum_sq"] / found["df"]).to_numpy()
    expected = (msr - mse) / (msr + mse + 2 * (msc - mse) / 15)
    icc, lower, upper = icc_agreement(x)
    assert icc == pytest.approx(expected)
    assert lower < icc < upper < 1
    wider = icc_agreement(x, 0.99)
    assert wider.lower < lower and wider.upper > upper
    assert icc_agreement(3 * x + 7) == pytest.approx((icc, lower, upper))
    assert icc_agreement(x[::-1, ::-1]) == pytest.approx((icc, lower, upper))


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth, covered = 16 / (16 + 1 + 3), 0
    for _ in range(400):
        x = rng.normal(0, 4, (20, 1)) + rng.normal(0, 1, (1, 3)) + rng.normal(0, 3**0.5, (20, 3))
        _, lower, upper = icc_agreement(x)
        covered += lower <= truth <= upper
    assert 0.91 <= covered / 400 <= 0.985


def test_what_is_undefined_or_perfect():
    assert icc_agreement([[1, 1], [2, 2], [5, 5]]) == (1, 1, 1)
    for ratings in ([[1, 2]], [[1], [2]], [[3, 3], [3, 3]]):
        assert all(math.isnan(one) for one in icc_agreement(ratings))
    with pytest.raises(ValueError, match="missing"):
        icc_agreement([[1, math.nan], [2, 3]])
