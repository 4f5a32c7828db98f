"""Table 1: the patients of the training and of the testing cohort, or with and without expansion, side by side."""

import math
from typing import NamedTuple

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


class Grouping(NamedTuple):
    """Two groups of patients: the column that tells them apart, its values, and what the groups are called."""

    column: str
    values: tuple
    names: tuple


BY_COHORT = Grouping("cohort", ("train", "test"), ("train", "test"))
BY_EXPANSION = Grouping("expansion", (1, 0), ("expansion", "no_expansion"))


def columns_of(grouping):
    """Name the columns of Table 1 for two groups, in their order.

    Parameters
    ----------
    grouping : Grouping

    Returns
    -------
    tuple of str
    """
    first, second = grouping.names
    columns = ("variable", "label", "group", "type", first, second, f"{first}_n", f"{second}_n")
    return (*columns, f"{first}_missing", f"{second}_missing", "method", "p", "p_text", "smd")


def characteristics(rows, grouping=BY_COHORT):
    """Compare two groups variable by variable, as the paper's Table 1 does with its cohorts.

    Means by Student's t-test with equal variances, medians by the Mann-Whitney U test with R's defaults, shares by
    Pearson's chi-square test without continuity correction. No p-value is given for a share when a count expected
    under independence is below 1: there the chi-square distribution is no approximation any more (Cochran 1954,
    Biometrics 10:417; Campbell 2007, Stat Med 26:3661). So 2 of 189 against 0 of 77 gives "N/A", as the paper prints
    for anticoagulation; every other share of the paper has expected counts above 5. Missing values are left out,
    counted, and shrink the denominator. The variable that makes the groups is no row of the table.

    Parameters
    ----------
    rows : list of dict
        Eligible patients with cohort ("train" or "test"), sex ("m" or "f"), expansion, baseline_ml, bat_score and the
        clinical columns of the cohort table; None = missing.
    grouping : Grouping
        Which two groups are compared.

    Returns
    -------
    list of dict
        One per row of the table, first "Sample size (n)", columns `columns_of`: variable (column), label, group ("NCCT
        markers" or empty), type, the two groups (as printed), `_n` (patients with a value), `_missing`, method, p (full
        precision, None where undefined), p_text, smd (first minus second group in standard deviations, None where
        undefined). Quartiles are R's type 7.

    Raises
    ------
    ValueError
        A patient is in neither group.
    """
    strangers = {row[grouping.column] for row in rows} - set(grouping.values)
    if strangers:
        raise ValueError(f"{grouping.column} {sorted(map(str, strangers))} besides {grouping.values}")
    groups = [[row for row in rows if row[grouping.column] == value] for value in grouping.values]
    sizes = [len(group) for group in groups]
    columns = columns_of(grouping)
    first = (None, "Sample size (n)", "", "n", *map(str, sizes), *sizes, 0, 0, "", None, "", None)
    table = [dict(zip(columns, first, strict=True))]
    for column, label, kind in VARIABLES:
        if column == grouping.column:
            continue
        values = [_values(group, column) for group in groups]
        known = [one.size for one in values]
        method, p = _compare(kind, *values)
        smd = standardised_mean_difference(*values, binary=kind == SHARE)
        row = (
            column,
            label,
            "NCCT markers" if column in MARKERS else "",
            kind,
            *(_summary(kind, one) for one in values),
            *known,
            *(size - n for size, n in zip(sizes, known, strict=True)),
            method,
            None if math.isnan(p) else p,
            format_p(p),
            None if math.isnan(smd) else smd,
        )
        table.append(dict(zip(columns, row, strict=True)))
    return table


def describe(rows):
    """Sum up one group of patients as Table 1 does, without a comparison.

    Parameters
    ----------
    rows : list of dict
        See `characteristics`.

    Returns
    -------
    list of dict
        One per variable: variable (column), label, group, type, value (as printed), n (patients with a value), missing.
    """
    table = []
    for column, label, kind in VARIABLES:
        values = _values(rows, column)
        group = "NCCT markers" if column in MARKERS else ""
        said = {"variable": column, "label": label, "group": group, "type": kind, "value": _summary(kind, values)}
        table.append(said | {"n": int(values.size), "missing": len(rows) - int(values.size)})
    return table


def write_characteristics(rows, path, grouping=BY_COHORT):
    """Write Table 1 as tab-separated text.

    Parameters
    ----------
    rows : list of dict
        Eligible patients, see `characteristics`.
    path : path-like
        One line per row of the table, columns as in `columns_of`; undefined numbers are empty.
    grouping : Grouping
        Which two groups are compared.
    """
    write_table(path, characteristics(rows, grouping), columns_of(grouping))


def _values(group, column):
    values = [row[column] for row in group]
    if column == "sex":
        values = [None if value is None else {"m": 1, "f": 0}[value] for value in values]
    return np.array([value for value in values if value is not None and not math.isnan(value)], float)


def _compare(kind, first, second):
    if kind == MEAN:
        return "Student's t-test", student_t(first, second).p_value
    if kind == MEDIAN:
        return "Mann-Whitney U test", mann_whitney(first, second).p_value
    table = [[np.sum(group == 1), np.sum(group == 0)] for group in (first, second)]
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
