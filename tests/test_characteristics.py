"""Table 1: the paper's own counts must give the paper's own cells."""

import csv
import json
import math

import numpy as np
import pytest

from haemex.characteristics import (
    BY_COHORT,
    BY_EXPANSION,
    VARIABLES,
    characteristics,
    columns_of,
    describe,
    write_characteristics,
)
from haemex.statistics import mann_whitney, student_t

# Counts of the paper's Table 1 with the printed cells: training, testing, p.
PAPER = {
    "sex": (132, 54, "132 (69.8)", "54 (70.1)", "0.963"),
    "hypertension": (140, 62, "140 (74.9)", "62 (80.5)", "0.325"),
    "diabetes": (19, 17, "19 (10.2)", "17 (22.1)", "0.010"),
    "prestroke": (13, 11, "13 (6.9)", "11 (14.3)", "0.056"),
    "antiplatelet": (13, 7, "13 (6.9)", "7 (9.1)", "0.535"),
    "anticoagulation": (2, 0, "2 (1.1)", "0 (0.0)", "N/A"),
    "intraventricular_haemorrhage": (70, 31, "70 (37.0)", "31 (40.3)", "0.623"),
    "hypodensity": (132, 44, "132 (69.8)", "44 (57.1)", "0.047"),
    "black_hole": (28, 12, "28 (14.8)", "12 (15.6)", "0.873"),
    "swirl": (116, 44, "116 (61.4)", "44 (57.1)", "0.523"),
    "blend": (24, 13, "24 (12.7)", "13 (16.9)", "0.371"),
    "fluid_level": (13, 9, "13 (6.9)", "9 (11.7)", "0.196"),
    "irregular_shape": (143, 50, "143 (75.7)", "50 (64.9)", "0.075"),
    "heterogeneous_density": (100, 34, "100 (52.9)", "34 (44.2)", "0.195"),
    "expansion": (52, 22, "52 (27.5)", "22 (28.6)", "0.861"),
}
MISSING = {"hypertension": 2, "diabetes": 2}  # of the training cohort: the printed percentages are of 187


def paper_rows():
    """Patients with the paper's counts; continuous values drawn."""
    rng = np.random.default_rng(1)
    rows = []
    for cohort, n, place in (("train", 189, 0), ("test", 77, 1)):
        members = [{"patient": f"{cohort}{i}", "cohort": cohort} for i in range(n)]
        for column, cells in PAPER.items():
            missing = MISSING.get(column, 0) if cohort == "train" else 0
            values = [1] * cells[place] + [None] * missing + [0] * (n - cells[place] - missing)
            for row, value in zip(members, values, strict=True):
                row[column] = value
        for row in members:
            row["sex"] = "m" if row["sex"] else "f"
            row["age_years"], row["onset_to_ct_h"] = float(rng.normal(62, 13)), float(rng.uniform(0.5, 8))
            row["baseline_ml"] = float(rng.lognormal(2.5, 0.8))
            row["nihss"], row["bat_score"] = int(rng.integers(0, 25)), int(rng.integers(0, 6))
        rows += members
    return rows


def by_variable(rows):
    return {row["variable"]: row for row in characteristics(rows)}


def test_shares_print_as_in_the_paper():
    table = by_variable(paper_rows())
    for column, (_, _, train, test, p_text) in PAPER.items():
        row = table[column]
        assert (row["train"], row["test"], row["p_text"]) == (train, test, p_text), column
        assert row["train_missing"] == MISSING.get(column, 0) and row["test_missing"] == 0
        assert row["train_n"] == 189 - row["train_missing"] and row["test_n"] == 77
    assert table[None]["train"] == "189" and table[None]["test"] == "77"


def test_counts_here_are_those_of_table1(shared):
    rows = json.loads((shared / "statistics" / "table1.json").read_text())["rows"]
    labels = {column: label for column, label, _ in VARIABLES}
    known = {row["name"]: row for row in rows}
    table = by_variable(paper_rows())
    shares = [column for column in PAPER if column != "anticoagulation"]
    for column in shares:
        row = known[labels[column]]
        assert PAPER[column][:2] == (row["train_count"], row["test_count"])
        assert PAPER[column][4] == row["printed_p"]
        assert table[column]["p"] == pytest.approx(row["pearson_p"], abs=1e-12)
    assert len(shares) == sum(row["type"] == "categorical" for row in rows)


def test_labels_stand_in_the_order_of_the_paper(shared):
    paper = "".join(path.read_text() for path in sorted((shared / "paper").iterdir()))
    table = paper[paper.index("**Table 1**") :]
    positions = [table.index("\n" + label) for _, label, _ in VARIABLES]
    assert positions == sorted(positions)
    assert [row["variable"] for row in characteristics(paper_rows())][1:] == [column for column, _, _ in VARIABLES]


def small_rows(train, test, column):
    """A cohort in which one variable is set by hand."""
    rows = []
    for cohort, values in (("train", train), ("test", test)):
        for value in values:
            rows.append({"cohort": cohort, **dict.fromkeys((name for name, _, _ in VARIABLES)), column: value})
    return rows


def test_mean_and_sd_by_hand():
    # Means 2.25 and 4; SD of 1, 2, 3, 3 is sqrt(2.75 / 3) = 0.957
    row = by_variable(small_rows([1, 2, 3, 3, None], [3, 4, 5], "age_years"))["age_years"]
    assert (row["train"], row["test"]) == ("2.3±1.0", "4.0±1.0")
    assert (row["train_n"], row["train_missing"], row["test_n"]) == (4, 1, 3)
    assert row["method"] == "Student's t-test"
    assert row["p"] == student_t([1, 2, 3, 3], [3, 4, 5]).p_value
    assert row["smd"] == pytest.approx(-1.75 / math.sqrt((2.75 / 3 + 1) / 2))


def test_median_and_quartiles_by_hand():
    # R's type 7 on 0, 1, 2, 10: positions 1.75, 2.5, 3.25 of 4.
    row = by_variable(small_rows([0, 1, 2, 10], [4, 8, 14, 4, 20], "nihss"))["nihss"]
    assert (row["train"], row["test"]) == ("1.5 (0.8–4)", "8 (4–14)")
    assert row["method"] == "Mann-Whitney U test"
    assert row["p"] == mann_whitney([0, 1, 2, 10], [4, 8, 14, 4, 20]).p_value


def test_no_p_value_without_a_valid_approximation():
    # Expected yes in the test cohort: 4 * 10 / 40 = 1, then 3 * 10 / 40.
    just = by_variable(small_rows([1] * 4 + [0] * 26, [0] * 10, "blend"))["blend"]
    assert just["p"] is not None and just["method"] == "Pearson's chi-square test"
    below = by_variable(small_rows([1] * 3 + [0] * 27, [0] * 10, "blend"))["blend"]
    assert below["p"] is None and below["p_text"] == "N/A" and "below 1" in below["method"]
    assert below["smd"] == pytest.approx(0.1 / math.sqrt(0.09 / 2))
    nobody = by_variable(small_rows([0] * 30, [0] * 10, "blend"))["blend"]
    assert nobody["p"] is None and nobody["smd"] == 0


@pytest.mark.parametrize("column", ["age_years", "nihss", "blend"])
def test_a_cohort_without_patients(column):
    # An external centre has a testing cohort alone.
    row = by_variable(small_rows([], [1, 0, 1], column))[column]
    assert row["train"] == "N/A" and row["train_n"] == 0
    assert row["p"] is None and row["smd"] is None and row["p_text"] == "N/A"
    assert row["test"] == {"age_years": "0.7±0.6", "nihss": "1 (0.5–1)", "blend": "2 (66.7)"}[column]


def test_one_patient_has_no_sd():
    assert by_variable(small_rows([60], [61, 63], "age_years"))["age_years"]["train"] == "60.0±N/A"


def test_an_unknown_cohort_is_refused():
    with pytest.raises(ValueError, match="cohort"):
        characteristics([{"cohort": "validation"}])


def turned(rows):
    """The same patients, grouped the other way round: cohorts become outcomes, outcomes cohorts."""
    of = {"train": 1, "test": 0}
    return [row | {"expansion": of[row["cohort"]], "cohort": ("test", "train")[row["expansion"]]} for row in rows]


def test_by_expansion_the_cells_are_those_of_the_same_groups_by_cohort():
    # The paper's cohorts, called expansion and none: its cells and p-values must come out again, under other names.
    table = {row["variable"]: row for row in characteristics(turned(paper_rows()), BY_EXPANSION)}
    for column, (_, _, train, test, p_text) in PAPER.items():
        if column == "expansion":
            continue
        row = table[column]
        assert (row["expansion"], row["no_expansion"], row["p_text"]) == (train, test, p_text), column
        assert row["expansion_missing"] == MISSING.get(column, 0) and row["no_expansion_missing"] == 0
    same = by_variable(paper_rows())
    renamed = dict(zip(columns_of(BY_EXPANSION), columns_of(BY_COHORT), strict=True))
    for variable, row in table.items():
        assert {renamed[name]: value for name, value in row.items()} == same[variable]
    assert "expansion" not in table and list(table) == [name for name in same if name != "expansion"]


def test_by_expansion_by_hand_over_both_cohorts():
    rows = small_rows([1, 2, 3, 3, None], [3, 4, 5], "age_years")
    for row, outcome in zip(rows, (1, 1, 0, 0, 0, 0, 1, 1), strict=True):
        row["expansion"] = outcome
    size, age, *_ = characteristics(rows, BY_EXPANSION)
    assert (size["expansion"], size["no_expansion"]) == ("4", "4")
    # With expansion 1, 2, 4, 5 (mean 3, variance 10/3); without 3, 3, 3 (and one missing).
    assert (age["expansion"], age["no_expansion"]) == ("3.0±1.8", "3.0±0.0")
    assert (age["expansion_n"], age["no_expansion_n"], age["no_expansion_missing"]) == (4, 3, 1)
    assert age["smd"] == 0 and age["p"] == 1


def test_the_sign_of_the_difference_is_first_minus_second_group():
    rows = small_rows([2, 3, 4], [0, 1, 2], "age_years")
    for row in rows:
        row["expansion"] = int(row["age_years"] <= 2)
    assert characteristics(rows)[1]["smd"] == pytest.approx(2.0)
    # With expansion 2, 0, 1, 2 (mean 1.25, variance 2.75/3), without 3 and 4 (mean 3.5, variance 1/2).
    smd = characteristics(rows, BY_EXPANSION)[1]["smd"]
    assert smd == pytest.approx(-2.25 / math.sqrt((2.75 / 3 + 0.5) / 2))


def test_of_one_outcome_only_there_is_nothing_to_compare():
    rows = [row | {"expansion": 0} for row in small_rows([60, 70], [50], "age_years")]
    age = characteristics(rows, BY_EXPANSION)[1]
    assert (age["expansion"], age["no_expansion"], age["p_text"], age["smd"]) == ("N/A", "60.0±10.0", "N/A", None)


def test_a_patient_without_a_label_is_refused():
    rows = [row | {"expansion": None} for row in small_rows([60], [50], "age_years")]
    with pytest.raises(ValueError, match="expansion"):
        characteristics(rows, BY_EXPANSION)


def test_table_is_written_in_full_precision(tmp_path):
    path = tmp_path / "table1.tsv"
    write_characteristics(paper_rows(), path)
    with path.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file, delimiter="\t"))
    table = characteristics(paper_rows())
    assert list(written[0]) == list(columns_of(BY_COHORT)) and len(written) == len(table) == len(VARIABLES) + 1
    for line, row in zip(written, table, strict=True):
        assert set(row) == set(columns_of(BY_COHORT))
        assert line["label"] == row["label"] and line["train"] == row["train"]
        assert (float(line["p"]) if line["p"] else None) == row["p"]
        assert (float(line["smd"]) if line["smd"] else None) == row["smd"]
    assert "nan" not in path.read_text(encoding="utf-8")
    # The same patients give the same bytes.
    first = path.read_bytes()
    write_characteristics(paper_rows(), path)
    assert path.read_bytes() == first


def test_one_group_is_described_as_in_the_table():
    """The training column of Table 1, variable by variable, without the patients it is compared with."""
    rows = paper_rows()
    table = {row["variable"]: row for row in characteristics(rows)}
    described = describe([row for row in rows if row["cohort"] == "train"])
    assert [row["variable"] for row in described] == [variable for variable, _, _ in VARIABLES]
    for row in described:
        whole = table[row["variable"]]
        assert (row["value"], row["n"], row["missing"]) == (whole["train"], whole["train_n"], whole["train_missing"])
        assert (row["label"], row["group"], row["type"]) == (whole["label"], whole["group"], whole["type"])
