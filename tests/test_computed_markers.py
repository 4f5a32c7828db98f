"""Reader against computer: tables worked by hand, and nothing but the new rows feels what was computed."""

import json
import math

import pytest
from fabricated_study import FLAT, TEST, TRAIN, change_json, fabricate

from haemex.computed_markers import (
    AGREEMENT_COLUMNS,
    DISAGREEMENT_COLUMNS,
    computed_columns,
    marker_agreement,
    marker_disagreements,
    read_computed,
)
from haemex.evaluation import EVALUATION_FILES, evaluate_study
from haemex.markers import MARKERS
from haemex.tables import read_table


def seen(evidence="", **present):
    """What was computed of one patient; absent where not given."""
    return {marker: {"present": present.get(marker, 0), "evidence": evidence} for marker in MARKERS}


def read(patient, cohort="train", **markers):
    return {"patient": patient, "cohort": cohort} | {marker: markers.get(marker, 0) for marker in MARKERS}


PAIRS = [(1, 1)] * 4 + [(1, 0)] * 2 + [(0, 1)] * 1 + [(0, 0)] * 3 + [(1, None), (None, 1), (None, None)]
ROWS = [read(f"P{i}", "test" if i > 5 else "train", blend=pair[0]) for i, pair in enumerate(PAIRS)]
COMPUTED = {f"P{i}": seen(f"slice {i}", blend=pair[1]) for i, pair in enumerate(PAIRS)}


def test_agreement_by_hand():
    table = {row["marker"]: row for row in marker_agreement(ROWS, COMPUTED, 0.95)}
    blend = table["blend"]
    assert tuple(blend) == AGREEMENT_COLUMNS and list(table) == list(MARKERS)
    counts = [blend[name] for name in ("n", "both", "only_read", "only_computed", "neither", "undecided")]
    assert counts == [10, 4, 2, 1, 3, 2] and blend["label"] == "Blend sign"
    # Observed 0.7; by chance 0.6 * 0.5 + 0.4 * 0.5 = 0.5.
    assert blend["kappa"] == pytest.approx(0.4)
    assert -1 <= blend["kappa_lower"] < 0.4 < blend["kappa_upper"] <= 1
    swirl = table["swirl"]
    assert (swirl["n"], swirl["neither"]) == (13, 13) and math.isnan(swirl["kappa"]), "nobody has it: no kappa"


def test_kappa_and_its_interval_are_those_of_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa

    blend = next(row for row in marker_agreement(ROWS, COMPUTED, 0.95) if row["marker"] == "blend")
    reference = cohens_kappa([[blend["neither"], blend["only_computed"]], [blend["only_read"], blend["both"]]])
    assert blend["kappa"] == pytest.approx(reference.kappa)
    assert blend["kappa_lower"] == pytest.approx(reference.kappa_low)
    assert blend["kappa_upper"] == pytest.approx(reference.kappa_upp)


def test_disagreements_are_listed_with_what_decided():
    table = marker_disagreements(ROWS, COMPUTED)
    assert [tuple(row.values()) for row in table] == [
        ("P4", "train", "blend", "Blend sign", 1, 0, "slice 4"),
        ("P5", "train", "blend", "Blend sign", 1, 0, "slice 5"),
        ("P6", "test", "blend", "Blend sign", 0, 1, "slice 6"),
    ]
    assert tuple(table[0]) == DISAGREEMENT_COLUMNS
    assert marker_disagreements(ROWS[:4], COMPUTED) == []


@pytest.mark.parametrize(
    ("blend", "hypodensity", "hours", "points"),
    [(1, 1, 2.4, 5), (1, 0, 2.5, 1), (0, 1, 3.0, 2), (None, 1, 1.0, None), (1, None, 1.0, None), (1, 1, None, None)],
)
def test_computed_bat_score(blend, hypodensity, hours, points):
    columns = computed_columns(seen(blend=blend, hypodensity=hypodensity), hours)
    assert columns["computed_bat_score"] == points
    assert (columns["computed_blend"], columns["computed_hypodensity"], columns["computed_swirl"]) == (
        blend,
        hypodensity,
        0,
    )
    assert list(columns) == [*(f"computed_{marker}" for marker in MARKERS), "computed_bat_score"]


# --- in the stage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"), matrix=24, slices=6)
    evaluate_study(**study.evaluate)
    return study


def files_of(study):
    return [json.loads((study.R / f"markers/{row['patient']}.json").read_text()) for row in study.rows]


def test_tables_count_what_stands_in_the_files(finished):
    files = files_of(finished)
    table = {row["marker"]: row for row in read_table(finished.R / "evaluate/marker_agreement.tsv")}
    for marker, row in table.items():
        pairs = [(one["markers"][marker]["read"], one["markers"][marker]["present"]) for one in files]
        decided = [pair for pair in pairs if None not in pair]
        assert row["n"] == len(decided) == row["both"] + row["only_read"] + row["only_computed"] + row["neither"]
        assert row["only_read"] == decided.count((1, 0)) and row["only_computed"] == decided.count((0, 1))
        assert row["undecided"] == (marker != "irregular_shape")  # of the flat haematoma
    assert table["swirl"]["n"] == TRAIN + TEST - 2 and table["irregular_shape"]["n"] == TRAIN + TEST
    listed = read_table(finished.R / "evaluate/marker_disagreements.tsv")
    assert [(row["patient"], row["marker"]) for row in listed] == [
        (one["patient"], marker) for one in files for marker in one["disagreements"]
    ]
    assert len(listed) > 5
    for row in listed:
        own = next(one for one in files if one["patient"] == row["patient"])["markers"][row["marker"]]
        assert (row["read"], row["computed"], row["evidence"] or "") == (own["read"], own["present"], own["evidence"])


def test_scores_and_table_two_hold_what_was_computed(finished):
    files = {one["patient"]: one for one in files_of(finished)}
    scores = read_table(finished.R / "evaluate/scores.tsv")
    for row in scores:
        own = files[row["patient"]]
        assert row["computed_bat_score"] == own["bat_score"] and row["bat_score"] == own["bat_score_read"]
        for marker in MARKERS:
            assert row[f"computed_{marker}"] == own["markers"][marker]["present"]
    table = {row["row"]: row for row in read_table(finished.R / "evaluate/table2.tsv")}
    assert scores[FLAT - TRAIN]["computed_blend"] is None
    assert table["Blend sign, computed"]["n"] == table["BAT score, computed"]["n"] == TEST - 1
    assert table["Irregular shape, computed"]["n"] == TEST
    found = [row for row in scores if row["computed_fluid_level"] == 1]
    row = table["Fluid level, computed"]
    assert (row["tp"], row["fp"]) == (
        sum(one["expansion"] == 1 for one in found),
        sum(one["expansion"] == 0 for one in found),
    )


def test_nothing_but_its_own_rows_feels_what_was_computed(finished, tmp_path):
    for row in finished.rows:
        (tmp_path / "markers").mkdir(exist_ok=True)
        path = tmp_path / f"markers/{row['patient']}.json"
        path.write_bytes((finished.R / f"markers/{row['patient']}.json").read_bytes())

        def turn(content):
            for one in content["markers"].values():
                one["present"] = None if one["present"] is None else 1 - one["present"]

        change_json(path, turn)
    evaluate_study(**finished.evaluate | {"markers_folder": tmp_path / "markers", "out_folder": tmp_path / "out"})
    changed = [
        name
        for name in EVALUATION_FILES
        if (tmp_path / "out" / name).read_bytes() != (finished.R / "evaluate" / name).read_bytes()
    ]
    assert sorted(changed) == sorted(
        ["table2.tsv", "scores.tsv", "marker_agreement.tsv", "marker_disagreements.tsv", "summary.json"]
    )
    before, after = (
        json.loads((folder / "summary.json").read_text()) for folder in (finished.R / "evaluate", tmp_path / "out")
    )
    differ = {name for name in before["table2"] if before["table2"][name] != after["table2"][name]}
    assert differ and all(name.endswith(", computed") for name in differ)
    assert {name for name in before if before[name] != after[name]} == {"table2"}
    for old, new in zip(
        read_table(finished.R / "evaluate/scores.tsv"), read_table(tmp_path / "out/scores.tsv"), strict=True
    ):
        assert {name for name in old if old[name] != new[name]} <= {
            name for name in old if name.startswith("computed_")
        }


def test_a_marker_is_read_from_the_file_of_its_patient(finished):
    computed = read_computed(finished.R / "markers", ["P003"])
    own = json.loads((finished.R / "markers/P003.json").read_text())["markers"]
    assert {m: one["present"] for m, one in computed["P003"].items()} == {m: one["present"] for m, one in own.items()}
