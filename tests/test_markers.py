"""The BAT score point by point, and the agreement of two readers."""

import math

import pytest

from haemex.markers import MARKERS, agreement, bat_score


def test_markers_are_those_of_table2():
    assert list(MARKERS) == (
        ["hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape", "heterogeneous_density"]
    )


def test_labels_are_printed_in_the_paper(shared):
    paper = "".join(path.read_text() for path in sorted((shared / "paper").iterdir()))
    table = paper[paper.index("**Table 2**") :]
    positions = [table.index(f"\n{label}\t") for label in MARKERS.values()]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("blend", "hypodensity", "hours", "score"),
    [
        (0, 0, 2.5, 0),
        (0, 0, 2.49, 2),
        (1, 0, 8, 1),
        (0, 1, 8, 2),
        (1, 1, 8, 3),
        (1, 0, 1, 3),
        (0, 1, 1, 4),
        (1, 1, 0, 5),
        (None, 1, 1, None),
        (1, None, 1, None),
        (1, 1, None, None),
        (1, 1, math.nan, None),
    ],
)
def test_bat_score(blend, hypodensity, hours, score):
    assert bat_score(blend, hypodensity, hours) == score


def test_agreement_by_hand():
    rows = [dict.fromkeys(MARKERS, 0) for _ in range(102)]
    # Blend sign: 40 both yes, 45 both no, 5 and 10 apart, kappa 0.7; two patients read once.
    first = [1] * 40 + [0] * 45 + [1] * 5 + [0] * 10 + [1, None]
    second = [1] * 40 + [0] * 45 + [0] * 5 + [1] * 10 + [None, 1]
    for row, a, b in zip(rows, first, second, strict=True):
        row["blend"], row["blend_rater2"] = a, b
        row["swirl_rater2"] = None
        row["fluid_level_rater2"] = 0
    table = agreement(rows)
    assert [(row["marker"], row["label"], row["n"]) for row in table] == [
        ("blend", "Blend sign", 100),
        ("fluid_level", "Fluid level", 102),
    ]
    assert table[0]["kappa"] == pytest.approx(0.7)
    assert table[0]["lower"] < 0.7 < table[0]["upper"] < 1
    narrower = agreement(rows, confidence=0.5)[0]
    assert table[0]["lower"] < narrower["lower"] < 0.7
    # Nobody ever saw a fluid level: chance alone agrees fully, and kappa does not exist.
    assert math.isnan(table[1]["kappa"])


def test_no_second_reading_no_agreement():
    assert agreement([dict.fromkeys(MARKERS, 1)]) == []
    assert agreement([]) == []
