"""Reading the cohort table: as much as can be read, and everything that is wrong with it, cell by cell."""

import csv
import datetime
import difflib
import re
from pathlib import Path

from haemex.errors import InputError
from haemex.settings import load_schema, nearest

TABLE_SCHEMA = Path(__file__).resolve().parents[1] / "config" / "cohort.schema.yaml"

BLANKS = " \t\xa0\u202f\u200b\ufeff"
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
AS_TEXT = "save the sheet as tab-delimited text in UTF-8 (.tsv or .txt), and name that file in `cohort_table`"
# What people and programs write for a missing value.
MISSING_WORDS = frozenset(
    ("na", "n/a", "n.a.", "nan", "nat", "null", "none", "nil", "nd", "n.d.", "unk", "unknown", "missing")
)
MISSING_SIGNS = frozenset((".", "..", "-", "--", "---", "–", "—", "?", "??"))
YES_NO = {
    **dict.fromkeys(("yes", "y", "true", "t", "ja", "oui", "si", "+"), "1"),
    **dict.fromkeys(("no", "n", "false", "f", "nein", "non"), "0"),
}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MONTH = re.compile(r"\b(jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])", re.IGNORECASE)
IDENTIFYING = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{5}")
FIRST_YEAR = 1971  # of the first head CT
LONGEST_CELL = 1000  # characters, a path


class _RefusedError(ValueError):
    """A cell, row or header that cannot be used: what is wrong, what to do."""

    def __init__(self, problem, action):
        super().__init__(problem)
        self.problem, self.action = problem, action


def read_cohort_table(path, schema_path=TABLE_SCHEMA):
    """Read the cohort table under its closed schema, and refuse it if anything is wrong with it.

    Parameters
    ----------
    path, schema_path : path-like
        See `parse_cohort_table`.

    Returns
    -------
    list of dict
        One per patient, in the order of the table. Every column of the schema is there; an empty cell or an absent
        optional column is None. Dates are `datetime.date`, yes/no columns bool, numbers int or float.

    Raises
    ------
    InputError
        Lists every problem of the table at once: unknown or missing columns, doubled patients, impossible values.
    """
    rows, faults = parse_cohort_table(path, schema_path)
    if faults:
        listing = "; ".join(describe_fault(fault) for fault in faults)
        raise InputError(f"the cohort table is refused: {listing}", "config/README.md describes every column", path)
    return rows


def describe_fault(fault):
    """Say where in the table a fault stands and what it is: "line 7, column `sex`: ..."."""
    if not fault["line"]:
        return fault["problem"]
    column = f", column `{fault['column']}`" if fault["column"] else ""
    return f"line {fault['line']}{column}: {fault['problem']}"


def parse_cohort_table(path, schema_path=TABLE_SCHEMA):
    """Read as much of the cohort table as can be read, and list everything that is wrong with it.

    Parameters
    ----------
    path : path-like
        Tab-separated, UTF-8, one row per patient, a header with the columns of `config/cohort.schema.yaml`. Byte order
        marks, Windows line ends, quoted cells, blanks around a value, blank lines and empty cells beyond the last
        column are what spreadsheets leave behind; they are read over.
    schema_path : path-like
        The schema.

    Returns
    -------
    rows : list of dict
        As `read_cohort_table` returns them. A cell that is refused is None, a second row of a patient is left out, and
        a row without a usable patient code stands under `line<number>`.
    faults : list of dict
        `patient` (as in `rows`; "" where the whole table is concerned), `line` (number in the file, None for the whole
        table), `column` ("" for a whole row), `problem`, `action`.

    Raises
    ------
    InputError
        There is no file, it is no UTF-8 text, or its first line has no column `patient`.
    """
    schema = load_schema(schema_path)
    columns, required = schema["properties"], schema["required"]
    numbered = enumerate(re.split(r"\r\n|\n|\r", _table_text(path)), start=1)
    lines = [(number, line) for number, line in numbered if line.strip(BLANKS + ';,"')]
    header, separator, faults = _header(lines[0][1] if lines else "", columns, required, path)
    rows, first_line, same_letters = [], {}, {}
    for number, line in lines[1:]:
        cells = [cell.strip(BLANKS) for cell in _split(line, separator)]
        raw = dict(zip(header, cells, strict=False))
        found = []
        try:
            patient = _patient_code(raw.get("patient", ""))
        except _RefusedError as refused:
            patient = f"line{number}"
            found.append(_fault(refused, patient, number, "patient"))
        if patient in first_line:
            again = _RefusedError(
                f"patient {patient} stands twice, first in line {first_line[patient]}", "keep one row per patient"
            )
            faults.append(_fault(again, patient, number))
            continue
        first_line[patient] = number
        other = same_letters.setdefault(patient.lower(), patient)
        if other != patient:
            alike = _RefusedError(
                f"the codes {other} and {patient} differ in case only, which some file systems do not tell apart",
                "give one of them another code",
            )
            found.append(_fault(alike, patient, number, "patient"))
        row = dict.fromkeys(columns) | {"patient": patient}
        try:
            _refuse_row(line, cells, header)
        except _RefusedError as refused:
            found.append(_fault(refused, patient, number))
        else:
            for name in columns:
                if name != "patient":
                    try:
                        row[name] = _typed(raw.get(name, ""), columns[name])
                    except _RefusedError as refused:
                        found.append(_fault(refused, patient, number, name))
        rows.append(row)
        faults += found
    if not rows:
        faults.append(_fault(_RefusedError("it holds no patient", "write one row per screened patient")))
    return rows, faults


def _fault(refused, patient="", line=None, column=""):
    return {"patient": patient, "line": line, "column": column, "problem": refused.problem, "action": refused.action}


# --- the file, its first line, its rows ----------------------------------------------------------------------------


def _table_text(path):
    """Read the file as text, or say what it is instead."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        raise InputError(
            "there is no cohort table here",
            "Write yours as config/README.md describes and name it in `cohort_table` of config/config.yaml, "
            "or run `make demo` to see the whole study on synthetic patients",
            path,
        ) from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):  # zip: xlsx, ods; compound file: xls
        raise InputError("the cohort table is a workbook of a spreadsheet program, not text", AS_TEXT, path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError('the cohort table is UTF-16, which spreadsheets call "Unicode text"', AS_TEXT, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"the cohort table is not UTF-8 text: see line {line}", AS_TEXT, path) from None


def _header(line, columns, required, path):
    """Read the first line: column names (None without a name, "" where doubled), separator, faults."""
    separator = max(SEPARATORS, key=lambda one: sum(name.strip(BLANKS + '"') in columns for name in line.split(one)))
    names = [cell.strip(BLANKS) for cell in _split(line, separator)]
    faults, meant = [], set()

    def report(problem, action, column=""):
        faults.append(_fault(_RefusedError(problem, action), column=column))

    if separator != "\t" and len(names) > 1:
        report(f"the columns are separated by {SEPARATORS[separator]}, not by tabs", AS_TEXT)
    for name in names:
        if name and name not in columns:
            plain = re.sub(r"\W+", "_", name.lower()).strip("_")
            close = difflib.get_close_matches(plain, sorted(columns), n=1, cutoff=0.6)
            meant.update(close)
            report(
                f"unknown column `{name}` ({f'did you mean `{close[0]}`?' if close else nearest(name, columns)})",
                "rename the column, or take it out",
                close[0] if close else "",  # of that column nothing is known
            )
    for name in required:
        if name not in names:
            report(f"column `{name}` is missing", "add it; a cell may stay empty", name)
    for name in dict.fromkeys(names):
        if name and names.count(name) > 1:
            report(f"column `{name}` stands twice", "keep one of them", name)
    if "patient" not in names:
        listing = f": {'; '.join(fault['problem'] for fault in faults)}" if "patient" in meant else ""
        raise InputError(
            f"the first line of the cohort table does not name its columns, `patient` among them{listing}",
            "it holds the names that config/README.md lists, separated by tabs",
            path,
        )
    used = [(name if name not in names[:index] else "") if name else None for index, name in enumerate(names)]
    return used, separator, faults


def _split(line, separator):
    """Split a line into cells, without the quotes around them."""
    if line.count('"') % 2:
        return line.split(separator)
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))  # what is too long is refused cell by cell
    return next(csv.reader([line], delimiter=separator))


def _refuse_row(line, cells, header):
    """Refuse a row whose cells may stand under wrong columns."""
    if line.count('"') % 2:
        raise _RefusedError(
            "a quotation mark without its partner, or a cell with a line break inside",
            "take the quotation mark or the line break out",
        )
    if any(cells[len(header) :]):
        raise _RefusedError(
            f"{len(cells)} cells under {len(header)} columns",
            "take the separator out that is too many: every cell behind it stands under a wrong column",
        )
    if any(cell for name, cell in zip(header, cells, strict=False) if name is None):
        raise _RefusedError("a value under a column without a name", "name the column, or empty it")


# --- cells ---------------------------------------------------------------------------------------------------------


def _patient_code(text):
    """Return the code of a patient; what is refused may be a name and is not repeated."""
    if not text:
        raise _RefusedError("no patient", "give every patient a code of letters and digits")
    if not (text.isascii() and text.isalnum()):
        raise _RefusedError(
            "the code of a patient may hold letters and digits only (A-Z, a-z, 0-9), no blank, hyphen or underscore",
            "give the patient another code, and no name",
        )
    return text


def _typed(text, rule):
    """Turn a cell into the type its column has; "" is missing."""
    if text == "":
        return None
    kind, allowed = rule["type"], rule.get("enum")
    if len(text) > LONGEST_CELL or "\0" in text:
        what = "a null character" if "\0" in text else f"a text of {len(text)} characters"
        raise _RefusedError(what, "correct the cell")
    if text.startswith("#"):
        raise _RefusedError(
            f"`{text}` is an error message of the spreadsheet", "write the value, or leave the cell empty"
        )
    if text.lower() in MISSING_WORDS or text in MISSING_SIGNS:
        raise _RefusedError(f"`{text}` stands for a missing value", "leave the cell empty")
    if kind == "boolean":
        if text in ("0", "1", "0.0", "1.0"):  # a column with gaps comes out of pandas as floats
            return text.startswith("1")
        meant = YES_NO.get(text.lower())
        raise _RefusedError(
            f"`{text}` is neither 0 nor 1", f"write {meant}" if meant else "write 1 for yes and 0 for no"
        )
    if kind in ("integer", "number"):
        return _number(text, rule)
    if rule.get("format") == "date":
        return _date(text)
    if rule.get("format") == "reason":
        return _reason(text, rule["maxLength"])
    if allowed and text not in allowed:
        low = text.lower()
        close = [one for one in allowed if one.startswith(low) or (len(one) == 1 and low.startswith(one))]
        hint = f"did you mean `{close[0]}`?" if len(close) == 1 else nearest(text, allowed)
        raise _RefusedError(f"`{text}` is unknown ({hint})", f"write {' or '.join(allowed)}")
    return text


def _number(text, rule):
    """Turn a cell into a number within the bounds of its column, an int where the column wants one."""
    integer = rule["type"] == "integer"
    if not NUMBER.fullmatch(text):
        plain = text.replace(" ", "").replace("\xa0", "")
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            raise _RefusedError(f"`{text}` has a decimal comma", f"write {text.replace(',', '.')}")
        if re.fullmatch(r"[+-]?\d{1,3}([',. ]\d{3})+([.,]\d+)?", text) or NUMBER.fullmatch(plain):
            raise _RefusedError(f"`{text}` has separators between its digits", "write digits and one decimal point")
        if re.fullmatch(r"[<>≤≥~≈].*", text):
            raise _RefusedError(f"`{text}` is no number but a bound", "write the value, or leave the cell empty")
        if MONTH.search(text):
            raise _RefusedError(
                f"`{text}` is no number: the spreadsheet took one for a date",
                "format the column as text or number, and write the value again",
            )
        if unit := re.match(r"([+-]?\d+\.?\d*)\s*[a-zA-Z°%]", text):
            raise _RefusedError(
                f"`{text}` is no {'whole ' * integer}number: a unit stands behind it",
                f"write {unit[1]}, if that is in the unit of the column",
            )
        raise _RefusedError(
            f"`{text}` is no {'whole ' * integer}number", "write digits, with a decimal point if needed"
        )
    value = float(text)
    if integer and not value.is_integer():
        raise _RefusedError(f"`{text}` is no whole number", "write a whole number")
    low, high = rule["minimum"], rule["maximum"]
    if not low <= value <= high:
        raise _RefusedError(f"{text} is outside {low} to {high}", f"correct it; the column is {rule['description']}")
    return int(value) if integer else value


def _reason(text, longest):
    """Return a reason in the investigators' words, which pages will print; what may identify is not repeated."""
    text = " ".join(text.split())
    if text.lower() in ("0", "0.0", *(word for word, meant in YES_NO.items() if meant == "0")):
        raise _RefusedError(f"`{text}` is no reason", "leave the cell empty where nobody is excluded")
    if sum(letter.isalpha() for letter in text) < 2 or text.lower() in YES_NO:
        raise _RefusedError("no reason in words", "write why the patient is excluded, e.g. series incomplete")
    if len(text) > longest:
        raise _RefusedError(f"a reason of {len(text)} characters", f"say it in {longest} at most")
    if not text.isprintable():
        raise _RefusedError("a character that cannot be printed", "write the reason in plain words")
    if IDENTIFYING.search(text):
        raise _RefusedError(
            "a date or a long number, which may identify a person", "write the reason without it: the report prints it"
        )
    return text


def _date(text):
    """Turn a cell into a date; what is refused is described and not repeated."""
    wanted = "no date of the form 2018-08-31"
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        try:
            day = datetime.date.fromisoformat(text)
        except ValueError:
            raise _RefusedError("a day that no calendar has", "correct it") from None
        if day.year < FIRST_YEAR:
            raise _RefusedError("a day before there was CT", "correct it")
        return day
    if re.fullmatch(r"\d{5}(\.\d+)?", text):
        why = ", but the day number of a spreadsheet"
    elif re.fullmatch(r"\d{4}-\d\d?-\d\d?[T ].*", text):
        why = ": a time stands behind it"
    elif re.fullmatch(r"\d{4}[-/.]\d\d?[-/.]\d\d?|\d{8}", text):
        why = ": year, month and day need hyphens between them, and two digits"
    elif re.fullmatch(r"\d\d?[-/. ]+\d\d?[-/. ]+\d{2,4}", text):
        why = ": the year comes first, then the month, with hyphens"
    elif re.fullmatch(r"\d{4}[\u2010-\u2015\u2212]\d\d[\u2010-\u2015\u2212]\d\d", text):
        why = ": the signs between year, month and day are dashes, not the hyphens of the keyboard"
    else:
        why = ""
    raise _RefusedError(
        wanted + why, "write it as year-month-day; in a spreadsheet give the column the date format YYYY-MM-DD first"
    )
