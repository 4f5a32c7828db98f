"""Text tables between the stages: tab-separated, a header, floats in full, an empty cell where a value is missing."""

import csv
import io
import math

import numpy as np

from haemex.files import write_atomically

TEXT_COLUMNS = frozenset({"patient", "copy", "candidate", "pixel_digest"})


def read_table(path, as_text=False):
    """Read a table that a stage wrote.

    Parameters
    ----------
    path : path-like
        Tab-separated with a header.
    as_text : bool
        Leave every cell as it stands, e.g. "0.800".

    Returns
    -------
    list of dict
        One per line; a cell that reads as a number is int or float, an empty cell None. `TEXT_COLUMNS` stay text, so
        that patient 007 is not patient 7.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [
        {name: (text or None) if as_text or name in TEXT_COLUMNS else _typed(text) for name, text in row.items()}
        for row in rows
    ]


def _typed(text):
    if text == "" or text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_table(path, rows, columns=None):
    """Write `table_bytes` to a file, whole or not at all."""
    write_atomically(path, table_bytes(rows, columns))


def table_bytes(rows, columns=None):
    """Make a tab-separated table: floats in full precision, None and NaN as an empty cell, yes and no as 1 and 0.

    Parameters
    ----------
    rows : list of dict
        One per line.
    columns : sequence of str, optional
        Header; by default the keys of the first row.

    Returns
    -------
    bytes
        UTF-8.
    """
    columns = list(columns or rows[0])
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
    return text.getvalue().encode()


def _cell(value):
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_ | np.integer):
        return str(int(value))
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)
