"""Intraclass correlation: whether two readers measure the same number."""

import math

import numpy as np

from haemex.statistics import UNDEFINED, Interval


def icc_agreement(ratings, confidence=0.95):
    """Intraclass correlation ICC(2,1): two-way random, absolute agreement, one reader.

    Shrout and Fleiss 1979 (Psychol Bull 86:420); interval of McGraw and Wong 1996 (Psychol Methods 1:30), ICC(A,1).

    Parameters
    ----------
    ratings : array-like of float, (n, k)
        n patients measured by the same k readers each; no missing values.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        nan with fewer than two patients or readers, or when nothing varies. The estimate can be negative. Readers who
        agree exactly give 1 to 1, which says nothing about the certainty of the result.
    """
    from scipy.special import fdtri

    x = np.asarray(ratings, float)
    if x.ndim != 2:
        raise ValueError(f"ratings of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a rating is missing or infinite")
    n, k = x.shape
    if n < 2 or k < 2:
        return UNDEFINED
    patients, readers, grand = x.mean(1), x.mean(0), x.mean()
    msr = float(k * ((patients - grand) ** 2).sum() / (n - 1))
    msc = float(n * ((readers - grand) ** 2).sum() / (k - 1))
    residual = x - patients[:, None] - readers[None, :] + grand
    mse = float((residual**2).sum() / ((n - 1) * (k - 1)))
    below = msr + (k - 1) * mse + k * (msc - mse) / n
    if below <= 1e-12 * max(float((x**2).sum()), 1.0):
        return UNDEFINED
    icc = (msr - mse) / below
    a, b = k * icc / n, (1 - icc) + k * icc * (n - 1) / n  # times (1 - icc), which cancels in the degrees of freedom
    error = (a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1))
    if error <= 0 or math.isclose(icc, 1.0, abs_tol=1e-12):
        return Interval(icc, icc, icc)
    freedom = (a * msc + b * mse) ** 2 / error
    high = fdtri(n - 1, freedom, 0.5 + confidence / 2)
    low = fdtri(freedom, n - 1, 0.5 + confidence / 2)
    noise = k * msc + (k * n - k - n) * mse
    lower = n * (msr - high * mse) / (high * noise + n * msr)
    upper = n * (low * msr - mse) / (noise + n * low * msr)
    return Interval(icc, float(lower), float(upper))
