import datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haemex.cohort_table import TABLE_SCHEMA, parse_cohort_table, read_cohort_table
from haemex.errors import InputError
from haemex.settings import load_schema
from tests.test_cohort import ROW, write_table


def faults(path):
    return [(f["patient"], f["line"], f["column"], f["problem"]) for f in parse_cohort_table(path)[1]]


def test_cells_have_types_and_empty_is_missing(tmp_path):
    table = write_table(tmp_path / "t.tsv", {"age_years": ""}, {"patient": "P2", "nihss": "7"}, columns=["nihss"])
    first, second = read_cohort_table(table)
    assert first["admission_date"] == datetime.date(2015, 3, 1)
    assert first["age_years"] is None and second["age_years"] == 61.5
    assert first["poor_image_quality"] is False and first["nihss"] is None and second["nihss"] == 7
    assert first["blend_rater2"] is None  # an optional column that the table does not have
    assert first["baseline_series"] is None


def test_what_spreadsheets_leave_behind_is_read_over(tmp_path):
    table = write_table(
        tmp_path / "t.tsv",
        {"sex": " m\xa0", "age_years": "61\u202f", "baseline_ct": '"scans/P 1"', "nihss": "7.0"},
        columns=["nihss"],
    )
    text = table.read_text().replace("\n", "\t\t\r\n")  # empty columns to the right
    table.write_bytes(b"\xef\xbb\xbf" + (text + "\t\t\t\r\n\r\n").encode())
    (row,) = read_cohort_table(table)
    assert (row["patient"], row["sex"], row["baseline_ct"], row["nihss"]) == ("P1", "m", "scans/P 1", 7)
    table.write_text(text.replace("\r\n", "\r"))
    assert len(read_cohort_table(table)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"age_years": "old"}, ["`old` is no number"]),
        ({"age_years": "999"}, ["outside 0 to 120"]),
        ({"age_years": "-1"}, ["outside 0 to 120"]),
        ({"age_years": "nan"}, ["`nan` stands for a missing value", "leave the cell empty"]),
        ({"age_years": "inf"}, ["`inf` is no number"]),
        ({"age_years": "6_1"}, ["`6_1` is no number"]),
        ({"age_years": "61,5"}, ["decimal comma", "write 61.5"]),
        ({"ct_to_followup_h": "1,234.5"}, ["separators between its digits"]),
        ({"ct_to_followup_h": "1 234"}, ["separators between its digits"]),
        ({"ct_to_followup_h": "1'234"}, ["separators between its digits"]),
        ({"onset_to_ct_h": "<3"}, ["no number but a bound"]),
        ({"onset_to_ct_h": "3.5 h"}, ["a unit stands behind it", "write 3.5"]),
        ({"onset_to_ct_h": "3. Mai"}, ["took one for a date"]),
        ({"onset_to_ct_h": "NA"}, ["`NA` stands for a missing value", "leave the cell empty"]),
        ({"baseline_mask": "n/a"}, ["`n/a` stands for a missing value"]),
        ({"sex": "."}, ["`.` stands for a missing value"]),
        ({"age_years": "#REF!"}, ["`#REF!` is an error message of the spreadsheet"]),
        ({"sex": "male"}, ["`male` is unknown", "did you mean `m`?", "write m or f"]),
        ({"sex": "F"}, ["did you mean `f`?"]),
        ({"haemorrhage_site": "supratentorail"}, ["did you mean `supratentorial`?"]),
        ({"haemorrhage_site": "Infra"}, ["did you mean `infratentorial`?"]),
        ({"poor_image_quality": "no"}, ["`no` is neither 0 nor 1", "write 0"]),
        ({"poor_image_quality": "Yes"}, ["write 1"]),
        ({"poor_image_quality": "2"}, ["neither 0 nor 1"]),
        ({"admission_date": "01.03.2015"}, ["no date of the form", "year comes first"]),
        ({"admission_date": "3/1/15"}, ["no date of the form", "year comes first"]),
        ({"admission_date": "2015/03/01"}, ["no date of the form", "hyphens"]),
        ({"admission_date": "2015-3-1"}, ["no date of the form", "two digits"]),
        ({"admission_date": "20150301"}, ["no date of the form", "hyphens"]),
        ({"admission_date": "2015-03-01 00:00:00"}, ["a time stands behind it"]),
        ({"admission_date": "42064"}, ["day number of a spreadsheet"]),
        ({"admission_date": "2015\u201103\u201101"}, ["no date of the form", "dashes, not the hyphens"]),
        ({"admission_date": "2015-W09-7"}, ["no date of the form"]),
        ({"sex": "x" * 200_000}, ["a text of 200000 characters"]),
        ({"baseline_ct": '"' + "x" * 200_000 + '"'}, ["a text of 200000 characters"]),
        ({"baseline_ct": "scans\0P1"}, ["a null character"]),
        ({"admission_date": "2015-02-30"}, ["no calendar"]),
        ({"admission_date": "1900-01-01"}, ["before there was CT"]),
        ({"patient": "Smith, J"}, ["letters and digits only"]),
        ({"patient": "Müller"}, ["letters and digits only"]),
        ({"patient": "P_1"}, ["letters and digits only"]),
        ({"patient": ""}, ["no patient"]),
    ],
)  # fmt: skip
def test_impossible_cells_are_refused_by_line_and_column(tmp_path, change, words):
    table = write_table(tmp_path / "t.tsv", {"patient": "P0"}, change)
    rows, (fault,) = parse_cohort_table(table)
    (column,) = change
    assert (fault["line"], fault["column"]) == (3, column)
    for word in words:
        assert word in fault["problem"] + fault["action"]
    assert len(rows) == 2
    if column != "patient":
        assert fault["patient"] == "P1" and rows[1][column] is None and rows[1]["patient"] == "P1"
    else:  # checked under its line; what stood there may be a name
        assert fault["patient"] == rows[1]["patient"] == "line3"
        assert not change["patient"] or change["patient"] not in fault["problem"]
    assert all(rows[1][name] is not None for name in ROW if name not in (column, "patient"))
    with pytest.raises(InputError) as refusal:
        read_cohort_table(table)
    assert f"line 3, column `{column}`: {fault['problem']}" in str(refusal.value) and "t.tsv" in str(refusal.value)


def test_every_fault_of_a_table_at_once(tmp_path):
    table = write_table(
        tmp_path / "t.tsv",
        {"age_years": "3,5", "sex": "NA"},
        {"patient": "p1"},
        {"patient": "P1", "age_years": "also wrong"},
        {"patient": "P2", "baseline_mask": "m.nii.gz\textra\tmore"},
        {"patient": "P3", "baseline_ct": 'a "lone quote'},
        columns=["hypertention"],
    )
    rows, found = parse_cohort_table(table)
    assert [row["patient"] for row in rows] == ["P1", "p1", "P2", "P3"]
    assert [(f["patient"], f["line"], f["column"]) for f in found] == [
        ("", None, "hypertension"),
        ("P1", 2, "age_years"),
        ("P1", 2, "sex"),
        ("p1", 3, "patient"),
        ("P1", 4, ""),
        ("P2", 5, ""),
        ("P3", 6, ""),
    ]
    assert "did you mean `hypertension`" in found[0]["problem"]
    assert "differ in case only" in found[3]["problem"]
    assert "stands twice, first in line 2" in found[4]["problem"]
    assert "14 cells under 12 columns" in found[5]["problem"]
    assert "quotation mark" in found[6]["problem"]
    assert rows[2]["age_years"] is None  # cells may stand under wrong columns
    with pytest.raises(InputError) as refusal:
        read_cohort_table(table)
    assert all(f["problem"] in str(refusal.value) for f in found)


def test_columns(tmp_path):
    text = write_table(tmp_path / "t.tsv", {}).read_text()
    (tmp_path / "t.tsv").write_text(text.replace("baseline_mask", "baseline_ct"))
    assert [f[3] for f in faults(tmp_path / "t.tsv")] == [
        "column `baseline_mask` is missing", "column `baseline_ct` stands twice",
    ]  # fmt: skip
    (tmp_path / "t.tsv").write_text(text.replace("age_years", "Age years"))
    assert [f[3] for f in faults(tmp_path / "t.tsv")] == [
        "unknown column `Age years` (did you mean `age_years`?)", "column `age_years` is missing",
    ]  # fmt: skip
    (tmp_path / "t.tsv").write_text(text.replace("sex\t", "\t", 1))
    assert [f[3] for f in faults(tmp_path / "t.tsv")] == [
        "column `sex` is missing", "a value under a column without a name",
    ]  # fmt: skip
    assert faults(write_table(tmp_path / "t.tsv"))[0][3] == "it holds no patient"


@pytest.mark.parametrize(("separator", "name"), [(",", "commas"), (";", "semicolons")])
def test_another_separator_is_one_fault_and_hides_no_other(tmp_path, separator, name):
    table = write_table(tmp_path / "t.tsv", {"age_years": "61.5"}, {"patient": "P2", "sex": "x"})
    table.write_text(table.read_text().replace("\t", separator))
    rows, found = parse_cohort_table(table)
    assert [row["age_years"] for row in rows] == [61.5, 61.5]
    assert f"separated by {name}, not by tabs" in found[0]["problem"]
    assert [(f["patient"], f["column"]) for f in found[1:]] == [("P2", "sex")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(100), "workbook"),
        ("patient\tsex\n".encode("utf-16"), "UTF-16"),
        ("patient\tsex\nP1\tM\u00e4nnlich\n".encode("latin-1"), "not UTF-8 text: see line 2"),
        (b"", "does not name its columns"),
        (b"\n\n", "does not name its columns"),
        (b"P1\t2015-01-01\tm\n", "does not name its columns"),
        (b"Patient\tsex\nP1\tm\n", "did you mean `patient`"),
        (None, "no cohort table here"),
    ],
)
def test_what_is_no_table_at_all_is_refused_at_once(tmp_path, content, words):
    if content is not None:
        (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        parse_cohort_table(tmp_path / "t.tsv")
    assert refusal.value.file.endswith("t.tsv")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), st.sampled_from(list(ROW)))
@example("1e999", "age_years")
@example("\u0663", "age_years")
@example('"', "patient")
def test_no_cell_whatsoever_breaks_the_reader(tmp_path_factory, text, column):
    table = tmp_path_factory.getbasetemp() / "any.tsv"
    table.write_bytes("\t".join(ROW).encode() + b"\n" + "\t".join({**ROW, column: text}.values()).encode())
    rows, found = parse_cohort_table(table)
    assert set(rows[0]) == set(load_schema(TABLE_SCHEMA)["properties"]) if rows else found
    for row in rows:
        assert row["patient"].isascii() and row["patient"].isalnum()
        assert row["age_years"] is None or 0 <= row["age_years"] <= 120
