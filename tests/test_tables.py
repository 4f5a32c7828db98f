import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from haemex.tables import read_table, table_bytes, write_table


def test_cells_by_hand():
    rows = [
        {"patient": "007", "x": 0.1, "n": np.int64(3), "yes": True, "gone": None, "nan": math.nan, "text": "a b"},
        {"patient": "8", "x": 1e-9, "n": 0, "yes": np.False_, "gone": 1.0, "nan": np.float32(0.5), "text": ""},
    ]
    expected = "patient\tx\tn\tyes\tgone\tnan\ttext\n007\t0.1\t3\t1\t\t\ta b\n8\t1e-09\t0\t0\t1.0\t0.5\t\n"
    assert table_bytes(rows).decode() == expected
    assert table_bytes([], ["a", "b"]) == b"a\tb\n"


def test_types_come_back_and_codes_stay_text(tmp_path):
    write_table(
        tmp_path / "t.tsv", [{"patient": "007", "pixel_digest": "12e4", "x": 1.0, "n": 2, "none": None, "t": "a"}]
    )
    assert read_table(tmp_path / "t.tsv") == [
        {"patient": "007", "pixel_digest": "12e4", "x": 1.0, "n": 2, "none": None, "t": "a"}
    ]
    as_text = read_table(tmp_path / "t.tsv", as_text=True)[0]
    assert (as_text["x"], as_text["n"], as_text["none"]) == ("1.0", "2", None)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_floats_come_back_exactly(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    write_table(path, [{"x": value} for value in values])
    assert [float(row["x"]) for row in read_table(path)] == values
