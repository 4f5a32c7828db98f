"""Table 1: the patients of the training and of the testing cohort, side by side."""

import math

import numpy as np

from haemex.markers import MARKERS
from haemex.statistics import (
    expected_counts,
    format_p,
    mann_whitney,
    pearson_chi2,
    round_half_up,
    standardised_mean_difference,
    student_t,
)
from haemex.tables import write_table

MEAN, MEDIAN, SHARE = "mean±SD", "median (IQR)", "n (%)"

# The paper's Table 1 in its order: column, label as printed, how it is summarised.
VARIABLES = [
    ("age_years", "Age, years", MEAN),
    ("sex", "Sex, male", SHARE),
    ("hypertension", "Hypertension", SHARE),
    ("diabetes", "Diabetes mellitus", SHARE),
    ("prestroke", "Prestroke", SHARE),
    ("antiplatelet", "Antiplatelet history", SHARE),
    ("anticoagulation", "Anticoagulation history", SHARE),
    ("onset_to_ct_h", "Time to baseline CT, hours", MEAN),
    ("nihss", "Baseline NIHSS score", MEDIAN),
    ("baseline_ml", "Baseline haematoma volume, mL", MEAN),
    ("intraventricular_haemorrhage", "Intraventricular haemorrhage", SHARE),
    *[(column, label, SHARE) for column, label in MARKERS.items()],
    ("bat_score", "BAT score", MEDIAN),
    ("expansion", "Haematoma expansion", SHARE),
]

COLUMNS = ("variable", "label", "group", "type", "train", "test", "train_n", "test_n", "train_missing", "test_missing")
COLUMNS += ("method", "p", "p_text", "smd")


def characteristics(rows):
    """Compare the two cohorts variable by variable, as the paper's Table 1 does.

    Means by Student's t-test with equal variances, medians by the Mann-Whitney U test with R's defaults, shares by
    Pearson's chi-square test without continuity correction. No p-value is given for a share when a count expected
    under independence is below 1: there the chi-square distribution is no approximation any more (Cochran 1954,
    Biometrics 10:417; Campbell 2007, Stat Med 26:3661). So 2 of 189 against 0 of 77 gives "N/A", as the paper prints
    for anticoagulation; every other share of the paper has expected counts above 5. Missing values are left out,
    counted, and shrink the denominator.

    Parameters
    ----------
    rows : list of dict
        Eligible patients with cohort ("train" or "test"), sex ("m" or "f"), expansion, baseline_ml, bat_score and the
        clinical columns of the cohort table; None = missing.

    Returns
    -------
    list of dict
        One per row of the table, first "Sample size (n)": variable (column), label, group ("NCCT markers" or empty),
        type, train and test (as printed), train_n and test_n (patients with a value), train_missing and test_missing,
        method, p (full precision, None where undefined), p_text, smd (training minus testing cohort in standard
        deviations, None where undefined). Quartiles are R's type 7.

    Raises
    ------
    ValueError
        A cohort other than "train" and "test".
    """
    strangers = {row["cohort"] for row in rows} - {"train", "test"}
    if strangers:
        raise ValueError(f"cohorts {sorted(map(str, strangers))} besides train and test")
    cohorts = [[row for row in rows if row["cohort"] == name] for name in ("train", "test")]
    sizes = [len(cohort) for cohort in cohorts]
    table = [_row(None, "Sample size (n)", "n", [str(size) for size in sizes], sizes, [0, 0], "", None, None, "")]
    for column, label, kind in VARIABLES:
        groups = [_values(cohort, column) for cohort in cohorts]
        known = [group.size for group in groups]
        missing = [size - n for size, n in zip(sizes, known, strict=True)]
        method, p = _compare(kind, *groups)
        smd = standardised_mean_difference(*groups, binary=kind == SHARE)
        texts = [_summary(kind, group) for group in groups]
        table.append(_row(column, label, kind, texts, known, missing, method, p, smd, format_p(p)))
    return table


def write_characteristics(rows, path):
    """Write Table 1 as tab-separated text.

    Parameters
    ----------
    rows : list of dict
        Eligible patients, see `characteristics`.
    path : path-like
        One line per row of the table, columns as in `COLUMNS`; undefined numbers are empty.
    """
    write_table(path, characteristics(rows), COLUMNS)


def _row(column, label, kind, texts, known, missing, method, p, smd, p_text):
    undefined = [value is None or math.isnan(value) for value in (p, smd)]
    return {
        "variable": column,
        "label": label,
        "group": "NCCT markers" if column in MARKERS else "",
        "type": kind,
        "train": texts[0],
        "test": texts[1],
        "train_n": known[0],
        "test_n": known[1],
        "train_missing": missing[0],
        "test_missing": missing[1],
        "method": method,
        "p": None if undefined[0] else p,
        "p_text": p_text,
        "smd": None if undefined[1] else smd,
    }


def _values(cohort, column):
    values = [row[column] for row in cohort]
    if column == "sex":
        values = [None if value is None else {"m": 1, "f": 0}[value] for value in values]
    return np.array([value for value in values if value is not None and not math.isnan(value)], float)


def _compare(kind, train, test):
    if kind == MEAN:
        return "Student's t-test", student_t(train, test).p_value
    if kind == MEDIAN:
        return "Mann-Whitney U test", mann_whitney(train, test).p_value
    table = [[np.sum(group == 1), np.sum(group == 0)] for group in (train, test)]
    if not expected_counts(table).min() >= 1:
        return "none: an expected count is below 1", math.nan
    return "Pearson's chi-square test", pearson_chi2(table).p_value


def _summary(kind, group):
    if group.size == 0:
        return "N/A"
    if kind == MEAN:
        sd = round_half_up(float(group.std(ddof=1)), 1) if group.size > 1 else "N/A"
        return f"{round_half_up(float(group.mean()), 1)}±{sd}"
    if kind == MEDIAN:
        # numpy's "linear" is R's type 7.
        lower, median, upper = (
            round_half_up(float(value), 1).removesuffix(".0") for value in np.quantile(group, [0.25, 0.5, 0.75])
        )
        return f"{median} ({lower}–{upper})"
    count = int(group.sum())
    return f"{count} ({round_half_up(100 * count / group.size, 1)})"
