"""The study's statistics: intervals, likelihood ratios, DeLong, operating points, tests of Table 1, calibration.

Everything follows Zhong et al. 2021 where its tables show what was done; formulas and exact values stand beside the
functions and in their tests. Labels are 1 for haematoma expansion and 0 for none; a higher score always means
expansion, and no function ever turns a score round because its AUC is below 0.5. What cannot be computed is nan, never
infinity and never a guess.
"""

import math
from decimal import ROUND_HALF_UP, Decimal
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from haemex.errors import InputError


class Interval(NamedTuple):
    """An estimate with its confidence interval; nan where undefined."""

    estimate: float
    lower: float
    upper: float


class Counts(NamedTuple):
    """Decisions against labels: true positives, false negatives, true negatives, false positives."""

    tp: int
    fn: int
    tn: int
    fp: int


class AucResult(NamedTuple):
    """Area under the ROC curve with DeLong's variance and confidence interval."""

    auc: float
    variance: float
    lower: float
    upper: float


class PairedResult(NamedTuple):
    """AUC of a minus AUC of b on the same patients, with DeLong's test and the interval of the difference."""

    difference: float
    z: float
    p_value: float
    covariance: float
    lower: float
    upper: float


class Comparison(NamedTuple):
    """A test of two groups: its statistic and two-sided p-value; nan where undefined."""

    statistic: float
    p_value: float


class LogisticFit(NamedTuple):
    """logit(probability) = intercept + slope * x; `separated` when ordinary maximum likelihood has no finite answer."""

    intercept: float
    slope: float
    separated: bool


UNDEFINED = Interval(math.nan, math.nan, math.nan)


# --- Decisions -------------------------------------------------------------------------------------------------------


def count_decisions(labels, decisions):
    """Cross-tabulate decisions against labels.

    Parameters
    ----------
    labels, decisions : array-like of 0/1, (n,)
        Expansion and the decision of a marker or a model.

    Returns
    -------
    Counts
    """
    labels, decisions = _zero_one(labels, "labels"), _zero_one(decisions, "decisions")
    if labels.shape != decisions.shape:
        raise ValueError(f"{labels.size} labels but {decisions.size} decisions")
    tp, fn = int(np.sum(labels & decisions)), int(np.sum(labels & ~decisions))
    tn, fp = int(np.sum(~labels & ~decisions)), int(np.sum(~labels & decisions))
    return Counts(tp, fn, tn, fp)


def wilson_interval(successes, n, confidence=0.95):
    """Interval of a proportion by Wilson's score with continuity correction.

    The paper's Table 2 uses it for sensitivity and specificity. Newcombe 1998 (Stat Med 17:857), method 4; it differs
    from R's `prop.test(correct=TRUE)` where |successes - n/2| < 0.5.

    Parameters
    ----------
    successes, n : int
        0 <= successes <= n.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        nan throughout when n is 0.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return UNDEFINED
    z = _normal_quantile(confidence)
    p, q = successes / n, (n - successes) / n
    centre, width = 2 * n * p + z * z, 2 * (n + z * z)
    lower, upper = 0.0, 1.0
    if successes > 0:
        lower = (centre - 1 - z * math.sqrt(z * z - 2 - 1 / n + 4 * p * (n * q + 1))) / width
    if successes < n:
        upper = (centre + 1 + z * math.sqrt(z * z + 2 - 1 / n + 4 * p * (n * q - 1))) / width
    return Interval(p, lower, upper)


def likelihood_ratios(counts, confidence=0.95):
    """Likelihood ratios in both senses: the usual one, and the paper's "weighted by prevalence".

    The paper prints TP/FP and FN/TN, which are odds of expansion after a positive and after a negative result
    (post-test odds), not likelihood ratios as usually understood. Both are given, each under its own name. Intervals
    are r * exp(+-z * se) with se^2 = 1/a - 1/(a+c) + 1/b - 1/(b+d) for the conventional ratio
    (a/(a+c)) / (b/(b+d)) (Simel 1991, J Clin Epidemiol 44:763), and se^2 = 1/a + 1/b - 2/(a+b) for a/b, which
    reproduces the paper's Table 2.

    Parameters
    ----------
    counts : Counts
        From `count_decisions`.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    dict of str to Interval
        lr_pos, lr_neg, lr_pos_weighted, lr_neg_weighted. A ratio with a zero denominator is nan; one with a zero
        numerator is 0 with nan bounds.
    """
    tp, fn, tn, fp = counts
    z = _normal_quantile(confidence)

    def ratio(a, b, of_a, of_b):
        # of_a, of_b: what a and b are parts of; None compares a and b themselves.
        if b == 0 or of_a == 0:
            return UNDEFINED
        estimate = a / b if of_a is None else (a / of_a) / (b / of_b)
        if a == 0:
            return Interval(0.0, math.nan, math.nan)
        variance = 1 / a + 1 / b - (2 / (a + b) if of_a is None else 1 / of_a + 1 / of_b)
        spread = math.exp(z * math.sqrt(max(variance, 0.0)))
        return Interval(estimate, estimate / spread, estimate * spread)

    return {
        "lr_pos": ratio(tp, fp, tp + fn, fp + tn),
        "lr_neg": ratio(fn, tn, tp + fn, fp + tn),
        "lr_pos_weighted": ratio(tp, fp, None, None),
        "lr_neg_weighted": ratio(fn, tn, None, None),
    }


# --- ROC curves ------------------------------------------------------------------------------------------------------


def delong_auc(labels, scores, confidence=0.95):
    """Area under the ROC curve with DeLong's variance and interval, as R's pROC computes them.

    DeLong 1988 (Biometrics 44:837); ties count one half; the interval is cut to [0, 1].

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    scores : array-like of float, (n,)
        Finite; higher means expansion.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    AucResult
        Variance and bounds are nan with fewer than two patients in either group, all is nan with none. With an AUC of
        1 the variance is 0 and the interval 1 to 1, which says nothing about the certainty of the result.
    """
    cases, controls = _split(labels, scores)
    m, n = cases.size, controls.size
    if m == 0 or n == 0:
        return AucResult(math.nan, math.nan, math.nan, math.nan)
    of_cases, of_controls = _placements(cases, controls)
    auc = of_cases.sum() / (2 * m * n)
    variance = _placement_covariance(of_cases, of_cases, of_controls, of_controls)
    lower, upper = np.clip(_normal_interval(auc, variance, confidence), 0, 1)
    return AucResult(float(auc), variance, float(lower), float(upper))


def delong_paired(labels, scores_a, scores_b, confidence=0.95):
    """Compare the AUCs of two scores on the same patients by DeLong's test for correlated curves, as R's pROC does.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    scores_a, scores_b : array-like of float, (n,)
        Finite; higher means expansion.
    confidence : float
        Two-sided confidence level of the difference.

    Returns
    -------
    PairedResult
        a minus b. All but the difference is nan with fewer than two patients in either group. Where the variance of
        the difference is 0, z is 0 and p is 1 for equal AUCs (the scores rank alike); for unequal ones both are nan,
        because such a difference cannot be tested (pROC prints p = 0).
    """
    cases_a, controls_a = _split(labels, scores_a)
    cases_b, controls_b = _split(labels, scores_b)
    m, n = cases_a.size, controls_a.size
    if m == 0 or n == 0:
        return PairedResult(*[math.nan] * 6)
    of_cases_a, of_controls_a = _placements(cases_a, controls_a)
    of_cases_b, of_controls_b = _placements(cases_b, controls_b)
    # The placements are integers, so equal curves give exactly 0 here, and the variance of the difference is that of
    # the differences: never negative, as var(a) + var(b) - 2 cov(a, b) can become by rounding.
    of_cases, of_controls = of_cases_a - of_cases_b, of_controls_a - of_controls_b
    difference = of_cases.sum() / (2 * m * n)
    variance = _placement_covariance(of_cases, of_cases, of_controls, of_controls)
    covariance = _placement_covariance(of_cases_a, of_cases_b, of_controls_a, of_controls_b)
    untestable = 0.0 if difference == 0 else math.nan
    z = untestable if variance == 0 else difference / math.sqrt(variance)
    lower, upper = _normal_interval(difference, variance, confidence)
    return PairedResult(float(difference), float(z), _two_sided_normal(z), covariance, lower, upper)


def roc_points(labels, scores):
    """Corners of the ROC curve, from (0, 0) to (1, 1).

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    scores : array-like of float, (n,)

    Returns
    -------
    false_positive_rate, true_positive_rate, threshold : numpy.ndarray, (distinct scores + 1,)
        A score >= threshold is positive. The first threshold is infinity (nobody positive), the others are half-way
        between neighbouring observed scores, the last is the lowest score (everybody positive). A rate whose group
        has no patients is nan.
    """
    tp, fp, threshold = _cuts(labels, scores)
    with np.errstate(invalid="ignore"):
        return fp / fp[-1], tp / tp[-1], threshold


def youden_threshold(labels, scores):
    """Threshold with the largest Youden index, sensitivity + specificity - 1 (Youden 1950, Cancer 3:32).

    Of several thresholds with the same index the lowest is taken, i.e. the highest sensitivity: a missed expansion
    costs more than a needless watch. Only finite thresholds of `roc_points` are considered, so a score that does not
    separate at all (constant, or worse than chance at every cut) calls everybody positive.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    scores : array-like of float, (n,)

    Returns
    -------
    float
        A score >= threshold is positive.

    Raises
    ------
    InputError
        Nobody, or everybody, has expansion.
    """
    tp, fp, threshold = _cuts_of_two_groups(labels, scores)
    # In integers, so that equal indices are equal.
    index = tp * fp[-1] - fp * tp[-1]
    best = 1 + np.flatnonzero(index[1:] == index[1:].max())[-1]
    return float(threshold[best])


def sensitivity_threshold(labels, scores, min_sensitivity):
    """Highest finite threshold of `roc_points` that reaches a sensitivity.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    scores : array-like of float, (n,)
    min_sensitivity : float
        Between 0 and 1.

    Returns
    -------
    float
        A score >= threshold is positive.

    Raises
    ------
    InputError
        Nobody, or everybody, has expansion.
    """
    if not 0 <= min_sensitivity <= 1:
        raise ValueError(f"min_sensitivity is {min_sensitivity}, not between 0 and 1")
    tp, _, threshold = _cuts_of_two_groups(labels, scores)
    reached = np.flatnonzero(tp[1:] / tp[-1] >= min_sensitivity)
    return float(threshold[1 + reached[0]])


# --- Two groups ------------------------------------------------------------------------------------------------------


def expected_counts(table):
    """Counts expected under independence: row total times column total over the grand total.

    Parameters
    ----------
    table : array-like of int, (rows, columns)

    Returns
    -------
    numpy.ndarray, (rows, columns)
        nan for an empty table.
    """
    table = np.asarray(table, float)
    with np.errstate(invalid="ignore"):
        return table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()


def pearson_chi2(table):
    """Pearson's chi-square test of independence without continuity correction, as in the paper's Table 1.

    Parameters
    ----------
    table : array-like of int, (rows, columns)

    Returns
    -------
    Comparison
        nan when a row or a column is empty.
    """
    from scipy.special import chdtrc

    table = np.asarray(table, float)
    if table.ndim != 2 or (table < 0).any():
        raise ValueError("a contingency table has two dimensions and no negative count")
    expected = expected_counts(table)
    if not (expected > 0).all():
        return Comparison(math.nan, math.nan)
    statistic = ((table - expected) ** 2 / expected).sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return Comparison(float(statistic), float(chdtrc(freedom, statistic)))


def student_t(a, b):
    """Student's t-test of two independent groups with equal variances.

    Parameters
    ----------
    a, b : array-like of float
        No missing values.

    Returns
    -------
    Comparison
        t of a minus b; see `student_t_from_summary`.
    """
    a, b = _finite(a), _finite(b)
    if a.size == 0 or b.size == 0:
        return Comparison(math.nan, math.nan)
    sd_a, sd_b = (float(group.std(ddof=1)) if group.size > 1 else 0.0 for group in (a, b))
    return student_t_from_summary(float(a.mean()), sd_a, a.size, float(b.mean()), sd_b, b.size)


def student_t_from_summary(mean_a, sd_a, n_a, mean_b, sd_b, n_b):
    """Student's t-test from means, standard deviations (n - 1) and numbers of two groups.

    Parameters
    ----------
    mean_a, sd_a, mean_b, sd_b : float
    n_a, n_b : int

    Returns
    -------
    Comparison
        t of a minus b; nan when a group is empty, when both hold one value, or when nothing varies.
    """
    from scipy.special import stdtr

    freedom = n_a + n_b - 2
    if min(n_a, n_b) < 1 or freedom < 1:
        return Comparison(math.nan, math.nan)
    pooled = ((n_a - 1) * sd_a**2 + (n_b - 1) * sd_b**2) / freedom
    if pooled == 0:
        return Comparison(math.nan, math.nan)
    t = (mean_a - mean_b) / math.sqrt(pooled * (1 / n_a + 1 / n_b))
    return Comparison(t, float(2 * stdtr(freedom, -abs(t))))


def mann_whitney(a, b):
    """Mann-Whitney U test, with the defaults of R's `wilcox.test`.

    Exact without ties when both groups have fewer than 50 values; otherwise the normal approximation with the
    variance corrected for ties and a continuity correction of one half.

    Parameters
    ----------
    a, b : array-like of float
        No missing values.

    Returns
    -------
    Comparison
        The statistic is R's W: pairs in which a is greater, ties counting one half. nan when a group is empty; the
        p-value is nan when all values are equal.
    """
    a, b = _finite(a), _finite(b)
    m, n = a.size, b.size
    if m == 0 or n == 0:
        return Comparison(math.nan, math.nan)
    w = float(_wins(a, b).sum()) / 2
    _, ties = np.unique(np.concatenate([a, b]), return_counts=True)
    if m < 50 and n < 50 and ties.max() == 1:
        # The distribution is symmetric about m * n / 2.
        tail = _count_orderings(m, n)[: int(min(w, m * n - w)) + 1]
        return Comparison(w, min(1.0, 2 * sum(tail) / math.comb(m + n, m)))
    distance = max(abs(w - m * n / 2) - 0.5, 0.0)
    correction = float((ties.astype(float) ** 3 - ties).sum()) / ((m + n) * (m + n - 1))
    variance = m * n / 12 * (m + n + 1 - correction)
    # All values equal: the variance is 0 up to rounding.
    if ties.size == 1:
        return Comparison(w, math.nan)
    return Comparison(w, _two_sided_normal(distance / math.sqrt(variance)))


def standardised_mean_difference(a, b, binary=False):
    """Difference of two groups in standard deviations: comparable between variables, blind to the number of patients.

    (mean a - mean b) / sqrt((variance a + variance b) / 2), Austin 2009 (Stat Med 28:3083). The variances are those of
    the sample (n - 1), or p * (1 - p) for a binary variable.

    Parameters
    ----------
    a, b : array-like of float
        No missing values; 0/1 when `binary`.
    binary : bool
        Use the variance of a proportion.

    Returns
    -------
    float
        0 for equal groups without variance; nan for unequal ones, and when a group is too small for its variance.
    """
    a, b = _finite(a), _finite(b)
    if min(a.size, b.size) < (1 if binary else 2):
        return math.nan
    difference = float(a.mean() - b.mean())
    if binary:
        p, q = (float(_zero_one(group, "a binary variable").mean()) for group in (a, b))
        variance = (p * (1 - p) + q * (1 - q)) / 2
    else:
        variance = float(a.var(ddof=1) + b.var(ddof=1)) / 2
    if variance == 0:
        return 0.0 if difference == 0 else math.nan
    return difference / math.sqrt(variance)


def holm(p_values):
    """Adjust p-values for multiple tests by Holm's step-down method (Holm 1979, Scand J Stat 6:65).

    Parameters
    ----------
    p_values : array-like of float, (n,)
        nan marks a test that could not be made: it stays nan and does not count.

    Returns
    -------
    numpy.ndarray, (n,)
        In the order given.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(p_values.shape, math.nan)
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# --- Agreement -------------------------------------------------------------------------------------------------------


def cohen_kappa(a, b, confidence=0.95):
    """Agreement of two readers beyond chance, with its large-sample interval.

    Cohen 1960; standard error of Fleiss, Cohen and Everitt 1969 (Psychol Bull 72:323); the interval is cut to [-1, 1].

    Parameters
    ----------
    a, b : array-like, (n,)
        The two readings of each patient, in any number of categories. No missing values.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    Interval
        nan without patients, or when both readers used one and the same category throughout. Full agreement gives 1
        to 1, and a reader who never varies 0 to 0, which says nothing about the certainty of the result.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"readings of shape {a.shape} and {b.shape}")
    categories, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    if categories.size < 2:
        return UNDEFINED
    n, k = a.size, categories.size
    table = np.bincount(index[:n] * k + index[n:], minlength=k * k).reshape(k, k) / n
    rows, columns = table.sum(1), table.sum(0)
    observed, chance = np.trace(table), rows @ columns
    kappa = (observed - chance) / (1 - chance)
    agreed = (np.diag(table) * (1 - (rows + columns) * (1 - kappa)) ** 2).sum()
    crossed = table * (columns[:, None] + rows[None, :]) ** 2
    disagreed = (1 - kappa) ** 2 * (crossed.sum() - np.trace(crossed))
    variance = max(agreed + disagreed - (kappa - chance * (1 - kappa)) ** 2, 0.0) / ((1 - chance) ** 2 * n)
    lower, upper = np.clip(_normal_interval(kappa, variance, confidence), -1, 1)
    return Interval(float(kappa), float(lower), float(upper))


def bland_altman(a, b, confidence=0.95):
    """Mean difference of two measurements of the same patients and their limits of agreement.

    Bland and Altman 1986 (Lancet 327:307): bias -+ z * SD of the differences. The limits hold the given share of
    single differences; they are no confidence interval of the bias.

    Parameters
    ----------
    a, b : array-like of float, (n,)
        Paired measurements, e.g. volumes in mL.
    confidence : float
        Share of differences between the limits.

    Returns
    -------
    Interval
        Bias a - b and the limits; limits nan with fewer than two patients, all nan with none.
    """
    a, b = _finite(a), _finite(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} measurements against {b.size}")
    difference = a - b
    if difference.size == 0:
        return UNDEFINED
    bias = float(difference.mean())
    variance = float(difference.var(ddof=1)) if difference.size > 1 else math.nan
    return Interval(bias, *_normal_interval(bias, variance, confidence))


# --- Probabilities ---------------------------------------------------------------------------------------------------


def brier(labels, probabilities):
    """Mean squared difference between probability and label (Brier 1950); nan without patients.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    probabilities : array-like of float, (n,)
        Between 0 and 1.
    """
    labels, probabilities = _zero_one(labels, "labels"), _finite(probabilities)
    if labels.shape != probabilities.shape:
        raise ValueError(f"{labels.size} labels but {probabilities.size} probabilities")
    if ((probabilities < 0) | (probabilities > 1)).any():
        raise ValueError(f"probabilities between {probabilities.min()} and {probabilities.max()}")
    return float(np.mean((probabilities - labels) ** 2)) if labels.size else math.nan


def logistic_fit(x, labels):
    """Univariate logistic regression by maximum likelihood (Newton's method with step halving).

    Maximum likelihood has a finite answer exactly when the two groups overlap in x. Where they do not (one group lies
    wholly above the other, a touching value included, or is empty), the labels 1 and 0 are replaced by
    (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), the targets of Platt 1999 (Advances in Large Margin Classifiers, p. 61), whose
    likelihood always has a finite maximum. A constant x carries no information: its slope is 0 and the intercept gives
    the observed share of expansion.

    Parameters
    ----------
    x : array-like of float, (n,)
        Finite.
    labels : array-like of 0/1, (n,)

    Returns
    -------
    LogisticFit

    Raises
    ------
    InputError
        No patients.
    """
    cases, controls = _split(labels, x)
    x = np.concatenate([cases, controls])
    if x.size == 0:
        raise InputError("no patients to fit a logistic model to", "check the training cohort and its missing values")
    both = cases.size > 0 and controls.size > 0
    constant = x.min() == x.max()
    separated = not both or (not constant and (cases.min() >= controls.max() or controls.min() >= cases.max()))
    high, low = 1.0, 0.0
    if separated:
        high, low = (cases.size + 1) / (cases.size + 2), 1 / (controls.size + 2)
    target = np.concatenate([np.full(cases.size, high), np.full(controls.size, low)])
    intercept, slope = math.log(target.mean() / (1 - target.mean())), 0.0
    if not constant and both:
        centre, scale = x.mean(), x.std()
        start, slope = _maximise_likelihood((x - centre) / scale, target, intercept)
        slope /= scale
        intercept = start - slope * centre
    return LogisticFit(float(intercept), float(slope), bool(separated))


def calibration_fit(labels, logits):
    """Calibration intercept and slope: the logistic regression of expansion on a model's logit (Cox 1958).

    A well calibrated model has intercept 0 and slope 1. See `logistic_fit` for separated and constant logits.

    Parameters
    ----------
    labels : array-like of 0/1, (n,)
    logits : array-like of float, (n,)

    Returns
    -------
    intercept, slope : float
    """
    fit = logistic_fit(logits, labels)
    return fit.intercept, fit.slope


# --- Printing --------------------------------------------------------------------------------------------------------


def round_half_up(value, decimals):
    """Round for print, halves away from zero, as the paper's tables do.

    The value is first taken to 12 significant digits, so that 0.545 rounds up although its binary form lies below.

    Parameters
    ----------
    value : float or None
    decimals : int
        Digits after the point.

    Returns
    -------
    str
        Empty for nan and None; never "-0.00".
    """
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return str(float(value))
    text = str(Decimal(f"{value:.12g}").quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))
    return text.lstrip("-") if float(text) == 0 else text


def format_p(p):
    """Print a p-value as the paper does: three decimals, "<0.001" below that, "N/A" for nan and None."""
    if p is None or math.isnan(p):
        return "N/A"
    return "<0.001" if p < 0.001 else round_half_up(p, 3)


# --- Parts -----------------------------------------------------------------------------------------------------------


def _normal_quantile(confidence):
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _normal_interval(estimate, variance, confidence):
    half = _normal_quantile(confidence) * math.sqrt(variance)
    return float(estimate - half), float(estimate + half)


def _two_sided_normal(z):
    return math.erfc(abs(z) / math.sqrt(2))


def _finite(values):
    values = np.asarray(values, float)
    if values.ndim != 1:
        raise ValueError(f"values of shape {values.shape} where one dimension is needed")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {values.size} values are missing or infinite")
    return values


def _zero_one(values, what):
    values = _finite(values)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{what} must be 0 or 1")
    return values == 1


def _split(labels, scores):
    """Scores of the cases and of the controls."""
    labels, scores = _zero_one(labels, "labels"), _finite(scores)
    if labels.shape != scores.shape:
        raise ValueError(f"{labels.size} labels but {scores.size} scores")
    return scores[labels], scores[~labels]


def _wins(a, b):
    """For each value of a, twice the number of values in b below it plus the number equal to it; integers."""
    b = np.sort(b)
    return np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")


def _placements(cases, controls):
    """DeLong's structural components, as integers: twice the controls below each case, and twice the cases above each.

    Divided by 2n and 2m they are V10 and V01.
    """
    return _wins(cases, controls), 2 * cases.size - _wins(controls, cases)


def _placement_covariance(of_cases_a, of_cases_b, of_controls_a, of_controls_b):
    """DeLong's covariance of two AUCs, S10 / m + S01 / n."""
    m, n = of_cases_a.size, of_controls_a.size
    if m < 2 or n < 2:
        return math.nan

    def sample_covariance(a, b):
        return float(((a - a.mean()) * (b - b.mean())).sum()) / (a.size - 1)

    s10 = sample_covariance(of_cases_a, of_cases_b) / (2 * n) ** 2
    s01 = sample_covariance(of_controls_a, of_controls_b) / (2 * m) ** 2
    return s10 / m + s01 / n


def _cuts(labels, scores):
    """True and false positives at each threshold of `roc_points`, as integers, and the thresholds."""
    cases, controls = _split(labels, scores)
    if cases.size + controls.size == 0:
        raise InputError("no scores to draw a ROC curve from", "check the cohort and its missing values")
    values = np.unique(np.concatenate([cases, controls]))[::-1]
    tp, fp = (group.size - np.searchsorted(np.sort(group), values, "left") for group in (cases, controls))
    middle = values[:-1] / 2 + values[1:] / 2
    # Between neighbouring floating-point numbers there is no middle: the upper one itself then separates them.
    middle = np.where((middle > values[1:]) & (middle <= values[:-1]), middle, values[:-1])
    return np.append(0, tp), np.append(0, fp), np.concatenate([[np.inf], middle, values[-1:]])


def _cuts_of_two_groups(labels, scores):
    tp, fp, threshold = _cuts(labels, scores)
    if tp[-1] == 0 or fp[-1] == 0:
        raise InputError(
            f"no operating point can be chosen from {tp[-1]} patients with and {fp[-1]} without expansion",
            "give a training cohort with both",
        )
    return tp, fp, threshold


def _count_orderings(m, n):
    """Number of orderings of m and n distinct values for each U = 0 ... m * n: a Gaussian binomial coefficient.

    Exact integers: prod (1 - q^(n+i)) / (1 - q^i) for i = 1 ... m, multiplied and divided term by term.
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    return counts


def _maximise_likelihood(x, target, intercept):
    """Newton's method from slope 0 on a standardised x; the log-likelihood is concave, halving keeps it rising."""
    design = np.stack([np.ones_like(x), x], axis=1)
    beta = np.array([intercept, 0.0])

    def log_likelihood(beta):
        eta = design @ beta
        return float(target @ eta - np.logaddexp(0, eta).sum())

    current = log_likelihood(beta)
    for _ in range(100):
        probability = _expit(design @ beta)
        gradient = design.T @ (target - probability)
        information = design.T @ (design * (probability * (1 - probability))[:, None])
        step = np.linalg.solve(information, gradient)
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(beta).max()):
            return beta + step
        rounding = 1e-12 * (1 + abs(current))
        while (proposed := log_likelihood(beta + step)) < current - rounding:
            step /= 2
        beta, current = beta + step, proposed
    raise ArithmeticError(f"the logistic model of {x.size} patients did not converge")


def _expit(eta):
    return np.exp(-np.logaddexp(0, -eta))
