import datetime
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haemex.cohort import (
    COHORT_COLUMNS,
    assume_well,
    build_cohort,
    by_reason,
    enters,
    excluded_by_investigators,
    flow,
    ineligibility,
    is_expansion,
    label_flips,
    read_cohort,
    refuse_all_excluded,
    refuse_doubled_scans,
    split,
    write_flow,
)
from haemex.errors import InputError

ELIGIBILITY = {"min_age_years": 18, "max_onset_to_ct_h": 8.0, "followup_h": [20.0, 24.0]}
COHORTS = {"train": ["2012-02-01", "2018-08-31"], "test": ["2018-09-01", "2019-10-31"]}
EXPANSION = {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"}

ROW = {
    "patient": "P1",
    "admission_date": "2015-03-01",
    "age_years": "61.5",
    "sex": "m",
    "haemorrhage_site": "supratentorial",
    "onset_to_ct_h": "3.5",
    "ct_to_followup_h": "22",
    "died_or_surgery_before_followup": "0",
    "poor_image_quality": "0",
    "baseline_ct": "scans/P1",
    "baseline_mask": "masks/P1.nii.gz",
}


def write_table(path, *changes, columns=()):
    header = list(ROW) + list(columns)
    lines = ["\t".join(header)]
    for change in changes:
        row = {**dict.fromkeys(columns, ""), **ROW, **change}
        lines.append("\t".join(row[name] for name in header))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes):
    typed = {
        "patient": "P1",
        "admission_date": datetime.date(2015, 3, 1),
        "age_years": 61.5,
        "haemorrhage_site": "supratentorial",
        "onset_to_ct_h": 3.5,
        "ct_to_followup_h": 22.0,
        "died_or_surgery_before_followup": False,
        "poor_image_quality": False,
        "excluded": None,
    }
    return {**typed, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"age_years": 18.0}, ""),
        ({"age_years": 17.9}, "age"),
        ({"onset_to_ct_h": 8.0}, ""),
        ({"onset_to_ct_h": 8.1}, "onset_to_ct"),
        ({"ct_to_followup_h": 20.0}, ""),
        ({"ct_to_followup_h": 24.0}, ""),
        ({"ct_to_followup_h": 19.9}, "followup_interval"),
        ({"ct_to_followup_h": 24.1}, "followup_interval"),
        ({"onset_to_ct_h": None}, "missing_data"),
        ({"ct_to_followup_h": None}, "missing_data"),
        ({"haemorrhage_site": "infratentorial"}, "infratentorial"),
        ({"haemorrhage_site": "ventricular"}, "ventricular_only"),
        ({"died_or_surgery_before_followup": True}, "died_or_surgery"),
        ({"died_or_surgery_before_followup": True, "ct_to_followup_h": None}, "died_or_surgery"),
        ({"poor_image_quality": True}, "poor_image_quality"),
        ({"poor_image_quality": True, "haemorrhage_site": "infratentorial"}, "infratentorial"),
        ({"age_years": 12.0, "haemorrhage_site": "infratentorial"}, "age"),
    ],
)
def test_eligibility_as_in_the_paper(changes, reason):
    assert ineligibility(row(**changes), ELIGIBILITY) == reason


@pytest.mark.parametrize(
    ("day", "cohort"),
    [
        ("2012-01-31", ""),
        ("2012-02-01", "train"),
        ("2018-08-31", "train"),
        ("2018-09-01", "test"),
        ("2019-10-31", "test"),
        ("2019-11-01", ""),
    ],
)
def test_split_by_admission_date(day, cohort):
    assert split(datetime.date.fromisoformat(day), COHORTS) == cohort


@pytest.mark.parametrize(
    ("baseline", "followup", "above", "at_least"),
    [
        (30.0, 36.0, False, True),  # exactly 6 mL, 20 %
        (30.0, 36.01, True, True),
        (10.0, 13.3, False, True),  # exactly 33 %, 3.3 mL; 13.3 / 10 is no binary fraction
        (10.0, 13.31, True, True),
        (0.1, 0.133, False, True),
        (20.0, 20.0, False, False),
        (20.0, 5.0, False, False),
    ],
)
def test_expansion_by_hand(baseline, followup, above, at_least):
    assert is_expansion(baseline, followup, 6.0, 33.0, ">") is above
    assert is_expansion(baseline, followup, 6.0, 33.0, ">=") is at_least


@given(st.floats(0.5, 100), st.floats(0, 200), st.floats(0, 50))
def test_more_growth_never_takes_an_expansion_away(baseline, followup, more):
    if is_expansion(baseline, followup, 6.0, 33.0, ">"):
        assert is_expansion(baseline, followup + more, 6.0, 33.0, ">")
        assert is_expansion(baseline, followup, 6.0, 33.0, ">=")


def test_label_flips_by_hand():
    volumes = [(30.0, 36.0), (10.0, 13.3), (10.0, 14.0), (20.0, 20.0), (60.0, 70.0)]
    flips = {line["definition"]: (line["expansions"], line["flips"]) for line in label_flips(volumes, EXPANSION)}
    assert flips == {
        "> 6 mL or > 33 %": (2, 0),
        ">= 6 mL or >= 33 %": (4, 2),
        "> 3 mL or > 33 %": (4, 2),
        "> 12.5 mL or > 33 %": (1, 1),
        "> 33 %": (1, 1),
        "> 6 mL": (1, 1),
    }


def measured(patient, baseline, followup, digest=None):
    return {
        "patient": patient,
        "baseline_ml": baseline,
        "followup_ml": followup,
        "pixel_digest": {"baseline": digest or f"{patient}-b", "followup": f"{patient}-f"},
    }


def build(tmp_path, changes, volumes, digests=None):
    table = write_table(tmp_path / "t.tsv", *changes, columns=["excluded"])
    paths = []
    for patient, (baseline, followup) in volumes.items():
        path = tmp_path / f"{patient}.json"
        path.write_text(json.dumps(measured(patient, baseline, followup, (digests or {}).get(patient))))
        paths.append(path)
    build_cohort(table, paths, tmp_path / "c.tsv", tmp_path / "l.tsv", ELIGIBILITY, COHORTS, EXPANSION, 2, 7)
    write_flow(table, tmp_path / "c.tsv", tmp_path / "f.json", ELIGIBILITY, COHORTS)
    return read_cohort(tmp_path / "c.tsv"), json.loads((tmp_path / "f.json").read_text())


CHANGES = [
    *({"patient": f"A{i}"} for i in range(4)),
    *({"patient": f"B{i}", "admission_date": "2019-01-01"} for i in range(2)),
    {"patient": "C0", "age_years": "10"},
    {"patient": "C1", "haemorrhage_site": "ventricular"},
    {"patient": "C2", "admission_date": "2020-01-01"},
]
VOLUMES = {"A0": (10, 20), "A1": (10, 10), "A2": (30, 40), "A3": (5, 5.5), "B0": (8, 8), "B1": (8, 16)}


def test_a_small_cohort_by_hand(tmp_path):
    members, counts = build(tmp_path, CHANGES, VOLUMES)
    assert [(m["patient"], m["cohort"], m["expansion"]) for m in members] == [
        ("A0", "train", 1),
        ("A1", "train", 0),
        ("A2", "train", 1),
        ("A3", "train", 0),
        ("B0", "test", 0),
        ("B1", "test", 1),
    ]
    assert all((m["fold"] is None) == (m["cohort"] == "test") for m in members)
    for fold in (0, 1):  # stratified: one with and one without expansion in each
        assert sorted(m["expansion"] for m in members if m["fold"] == fold) == [0, 1]
    assert counts["screened"] == 9 and counts["included"] == 8 and counts["eligible"] == 7
    assert counts["not_included"]["age"] == 1 and counts["excluded"]["ventricular_only"] == 1
    assert counts["outside_dates"] == 1 and (counts["train"], counts["test"]) == (4, 2)
    assert counts["expansion"] == {"train": 2, "test": 1}
    assert tuple(members[0]) == COHORT_COLUMNS


def test_the_papers_flow_diagram_adds_up():
    """317 fulfilled the inclusion criteria, 29 + 3 + 11 + 8 were excluded, 266 = 189 + 77 remained (paper, Results)."""
    reasons = {}
    for reason, count in [
        ("infratentorial", 29),
        ("ventricular_only", 3),
        ("died_or_surgery", 11),
        ("poor_image_quality", 8),
        ("", 266),
    ]:
        reasons.update({f"{reason}{i}": reason for i in range(count)})
    members = [
        {"cohort": "train" if i < 189 else "test", "expansion": int(i < 52 or 189 <= i < 211)} for i in range(266)
    ]
    counts = flow([{}] * 317, reasons, members)
    assert counts["included"] == 317 and sum(counts["excluded"].values()) == 51
    assert (counts["eligible"], counts["train"], counts["test"]) == (266, 189, 77)
    assert counts["expansion"] == {"train": 52, "test": 22}


def adds_up(counts):
    """Every patient of a box of the flow diagram is in one of the boxes below it."""
    assert counts["screened"] == sum(counts["not_included"].values()) + counts["included"]
    assert counts["included"] == sum(counts["excluded"].values()) + counts["eligible"]
    later = len(counts["excluded_by_investigators"])
    assert counts["eligible"] == counts["outside_dates"] + later + counts["train"] + counts["test"]
    assert all(0 <= counts["expansion"][name] <= counts[name] for name in ("train", "test"))
    return True


ANY_PATIENT = st.fixed_dictionaries(
    {
        "admission_date": st.dates(datetime.date(2010, 1, 1), datetime.date(2021, 1, 1)),
        "age_years": st.none() | st.floats(10, 90),
        "haemorrhage_site": st.sampled_from(
            [None, "supratentorial", "supratentorial", "infratentorial", "ventricular"]
        ),
        "onset_to_ct_h": st.none() | st.floats(0, 12),
        "ct_to_followup_h": st.none() | st.floats(18, 26),
        "died_or_surgery_before_followup": st.booleans(),
        "poor_image_quality": st.booleans(),
        "excluded": st.sampled_from([None, None, "series incomplete", "mask lost"]),
        "expansion": st.integers(0, 1),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANY_PATIENT, max_size=40))
def test_the_flow_diagram_adds_up_whoever_was_screened(patients):
    rows = [{"patient": f"P{i}", **one} for i, one in enumerate(patients)]
    reasons = {one["patient"]: ineligibility(one, ELIGIBILITY) for one in rows}
    members = [
        {"cohort": split(one["admission_date"], COHORTS), "expansion": one["expansion"]}
        for one in rows
        if enters(one, ELIGIBILITY, COHORTS)
    ]
    counts = flow(rows, reasons, members, excluded_by_investigators(rows, ELIGIBILITY, COHORTS))
    assert adds_up(counts) and counts["screened"] == len(rows)
    for cohort in ("train", "test"):
        assert counts[cohort] == sum(one["cohort"] == cohort for one in members)
        assert counts["expansion"][cohort] == sum(one["expansion"] for one in members if one["cohort"] == cohort)


def test_the_flow_diagram_counts_the_patients_of_the_cohort_file(tmp_path):
    members, counts = build(tmp_path, CHANGES, VOLUMES)
    assert adds_up(counts)
    for cohort in ("train", "test"):
        group = [one for one in members if one["cohort"] == cohort]
        assert counts[cohort] == len(group)
        assert counts["expansion"][cohort] == sum(one["expansion"] for one in group)


def test_the_excluded_by_hand_and_the_first_reason_wins(tmp_path):
    """A1 and B0 would have entered; C0 (too young), C1 (ventricular) and C2 (too late) are out already."""
    marked = {"A1": "series incomplete", "B0": "mask lost", "C0": "x y", "C1": "x y", "C2": "x y"}
    changes = [{**one, "excluded": marked.get(one["patient"], "")} for one in CHANGES]
    changes += [{"patient": "B2", "admission_date": "2019-01-01"}]
    volumes = {patient: pair for patient, pair in VOLUMES.items() if patient not in marked} | {"B2": (8, 8)}
    members, counts = build(tmp_path, changes, volumes)
    assert [m["patient"] for m in members] == ["A0", "A2", "A3", "B1", "B2"]
    assert counts["excluded_by_investigators"] == [
        {"patient": "A1", "cohort": "train", "reason": "series incomplete"},
        {"patient": "B0", "cohort": "test", "reason": "mask lost"},
    ]
    assert counts["screened"] == 10 and counts["eligible"] == 8 and counts["outside_dates"] == 1
    assert counts["not_included"]["age"] == 1 and counts["excluded"]["ventricular_only"] == 1
    assert (counts["train"], counts["test"]) == (3, 2) and adds_up(counts)


def test_who_is_excluded_changes_no_ones_fold(tmp_path):
    """Of the test cohort: the training folds stay. The same table with the patient ineligible gives the same cohort."""
    before, _ = build(tmp_path, [*CHANGES, {"patient": "B2", "admission_date": "2019-01-01"}], VOLUMES | {"B2": (8, 8)})
    marked = {"patient": "B2", "admission_date": "2019-01-01", "excluded": "series incomplete"}
    after, _ = build(tmp_path, [*CHANGES, marked], VOLUMES)
    assert after == [one for one in before if one["patient"] != "B2"]
    ineligible, _ = build(tmp_path, [*CHANGES, marked | {"excluded": "", "age_years": "10"}], VOLUMES)
    assert after == ineligible


def test_reasons_are_counted_the_commonest_first_whatever_their_capitals():
    told = [("P1", "train", "Mask lost"), ("P2", "test", "series incomplete"), ("P3", "train", "mask lost")]
    excluded = [dict(zip(("patient", "cohort", "reason"), one, strict=True)) for one in told]
    assert by_reason(excluded) == [
        {"reason": "Mask lost", "train": ["P1", "P3"], "test": [], "number": 2},
        {"reason": "series incomplete", "train": [], "test": ["P2"], "number": 1},
    ]
    assert by_reason([]) == []


def test_a_cohort_that_is_excluded_whole_is_refused_in_one_sentence():
    rows = [row(patient="A", excluded="lost"), row(patient="B", excluded="lost"), row(patient="C", age_years=10)]
    with pytest.raises(InputError, match=r"every patient of the training cohort \(2\) is marked in `excluded`"):
        refuse_all_excluded(rows, ELIGIBILITY, COHORTS, "t.tsv")
    refuse_all_excluded([*rows, row(patient="D")], ELIGIBILITY, COHORTS, "t.tsv")
    refuse_all_excluded([row(patient="C", age_years=10)], ELIGIBILITY, COHORTS, "t.tsv")


def test_one_person_under_two_patients_is_refused_before_any_training(tmp_path):
    with pytest.raises(InputError, match="patients A1 and B0 have the same scan"):
        build(tmp_path, CHANGES, VOLUMES, digests={"A1": "same", "B0": "same"})
    assert not (tmp_path / "c.tsv").exists()


def test_missing_followup_volumes_are_named_together(tmp_path):
    with pytest.raises(InputError, match="no follow-up volume is known of A2, B0"):
        build(tmp_path, CHANGES, {**VOLUMES, "A2": (30, None), "B0": (8, None)})


def test_a_baseline_given_as_its_own_followup_is_refused():
    one = measured("A", 1, 2)
    one["pixel_digest"]["followup"] = one["pixel_digest"]["baseline"]
    with pytest.raises(InputError, match="patient A has the same scan as baseline and followup"):
        refuse_doubled_scans([one])


def test_a_cohort_of_one_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="the test cohort has 2 patients, 0 of them with expansion"):
        build(tmp_path, CHANGES, {**VOLUMES, "B1": (8, 8)})


# --- without a training cohort -----------------------------------------------------------------------------------

EXTERNAL = {"train": None, "test": ["2018-09-01", "2019-10-31"]}


def test_without_a_training_period_all_are_test_patients_and_there_are_no_folds(tmp_path):
    assert split(datetime.date(2019, 1, 1), EXTERNAL) == "test" and split(datetime.date(2015, 1, 1), EXTERNAL) == ""
    changes = [{"patient": f"B{i}", "admission_date": "2019-01-01"} for i in range(3)] + [{"patient": "A0"}]
    table = write_table(tmp_path / "table.tsv", *changes)
    paths = []
    for patient, followup in (("B0", 10), ("B1", 30), ("B2", 11)):
        paths.append(tmp_path / f"{patient}.json")
        paths[-1].write_text(json.dumps(measured(patient, 10, followup)))
    outputs = [tmp_path / name for name in ("c.tsv", "l.tsv")]
    build_cohort(table, paths, *outputs, ELIGIBILITY, EXTERNAL, EXPANSION, 5, 7)
    write_flow(table, outputs[0], tmp_path / "f.json", ELIGIBILITY, EXTERNAL)
    members = [(row["patient"], row["cohort"], row["fold"], row["expansion"]) for row in read_cohort(outputs[0])]
    assert members == [("B0", "test", None, 0), ("B1", "test", None, 1), ("B2", "test", None, 0)]
    counts = json.loads((tmp_path / "f.json").read_text())
    assert (counts["train"], counts["test"], counts["outside_dates"]) == (0, 3, 1)
    assert counts["expansion"] == {"train": 0, "test": 1}


def test_without_a_training_period_one_outcome_alone_is_refused(tmp_path):
    table = write_table(tmp_path / "table.tsv", {"patient": "B0", "admission_date": "2019-01-01"})
    (tmp_path / "B0.json").write_text(json.dumps(measured("B0", 10, 30)))
    outputs = [tmp_path / name for name in ("c.tsv", "l.tsv")]
    with pytest.raises(InputError, match="the test cohort has 1 patients, 1 of them with expansion"):
        build_cohort(table, [tmp_path / "B0.json"], *outputs, ELIGIBILITY, EXTERNAL, EXPANSION, 5, 7)


def test_a_faulty_row_is_let_in_by_the_only_period_there_is():
    well = assume_well(row(admission_date=None), {"admission_date"}, ELIGIBILITY, EXTERNAL)
    assert split(well["admission_date"], EXTERNAL) == "test"
