"""What the report says in words follows from the numbers, and claims no more."""

import copy

import pytest

from haemex.report_text import answer, caveats, failed_outlines, verdict

SUMMARY = {
    "cohorts": {"train": {"patients": 12, "expansions": 4}, "test": {"patients": 8, "expansions": 3}},
    "selection": {"candidate": "base", "alarms": [], "remarks": ["base leads by 0.05: the lead is within the spread."]},
    "segmentation": {
        "train": {
            "cut_off": 0,
            "least_inside": 1.0,
            "missed": 0,
            "grid": {"median": 0.904},
            "out_of_fold": {"median": 0.83},
        },
        "test": {"cut_off": 1, "least_inside": 0.93, "missed": 1, "failures": 2, "grid": {"median": 0.89}},
    },
    "table2": {"CNN": {"auc": 0.73}},
    "baselines": {"volume": {"separated": False}},
    "missing_in_test": {"swirl": 1, "bat_score": 2, "blend": 0},
}
FACTS = {
    "summary": SUMMARY,
    "flow": {"not_included": {"age": 1, "missing_data": 2}},
    "selected": {"scores": {"base": {"collapsed_folds": []}, "other": {"collapsed_folds": [1]}}, "dropped": []},
    "table1": [
        {"label": "Sample size (n)", "train_missing": None, "test_missing": None},
        {"label": "Age, years", "train_missing": "0", "test_missing": "0"},
        {"label": "NIHSS", "train_missing": "2", "test_missing": "1"},
    ],
    "acquisition": [{"scanner": "A", "train": "6", "test": "4"}, {"scanner": "B", "train": "6", "test": "0"}],
    "agreement": [{"item": "Swirl sign"}, {"item": "Haematoma mask"}],
    "cohorts": {"train": ["2012-02-01", "2018-08-31"], "test": ["2018-09-01", "2019-10-31"]},
    "synthetic": False,
}


def said(**changed):
    return caveats(**{**copy.deepcopy(FACTS), **changed})


def changed_summary(change):
    summary = copy.deepcopy(SUMMARY)
    change(summary)
    return said(summary=summary)


def comparison(network, others, confidence=0.95):
    keys = ("auc", "auc_lower", "auc_upper")
    table = {"CNN": dict(zip(keys, network, strict=True)) | {"p": None, "p_holm": None, "auc_difference": None}}
    for name, (auc, difference, p_holm) in others.items():
        table[name] = {"auc": auc, "auc_difference": difference, "p": p_holm, "p_holm": p_holm}
        table[name] |= {"auc_lower": 0.1, "auc_upper": 0.9, "source": "computed" if "computed" in name else "read"}
    return {"confidence": confidence, "table2": table, "cohorts": {"test": {"patients": 77, "expansions": 22}}}


def test_the_answer_claims_no_more_than_the_interval_allows():
    def of(*network):
        return answer(comparison(network, {}))

    assert of(0.8, 0.7, 0.9) == (
        "The network predicts early expansion better than chance: AUC 0.80 (95 % CI 0.70 to 0.90) in 77 patients it "
        "had not seen, 22 of them with expansion."
    )
    assert of(0.6, 0.45, 0.75).startswith("Not shown that") and "includes 0.5" in of(0.6, 0.45, 0.75)
    assert of(0.6, 0.5, 0.7).startswith("Not shown that")
    assert "worse than chance: AUC 0.30" in of(0.3, 0.2, 0.4)
    assert of(1.0, None, None).startswith("No answer") and "no interval" in of(1.0, None, None)
    assert of(None, None, None).startswith("No answer")


def test_verdict_claims_no_more_than_the_tests_allow():
    both = " ".join(verdict(comparison((0.8, 0.7, 0.9), {"A": (0.6, 0.2, 0.0004), "B": (0.95, -0.15, 0.02)})))
    assert "higher than that of A (0.60, p < 0.001)" in both
    assert "lower than that of B (0.95, p = 0.020)" in both
    none = " ".join(verdict(comparison((0.6, 0.45, 0.75), {"A": (0.5, 0.1, 0.06)})))
    assert "does not differ significantly" in none and "higher" not in none
    assert verdict(comparison((1.0, None, None), {"A": (0.5, 0.5, None)})) == []


def test_computed_markers_are_no_part_of_the_paper_s_comparisons():
    told = " ".join(verdict(comparison((0.8, 0.7, 0.9), {"A": (0.6, 0.2, 0.06), "A, computed": (0.5, 0.3, 0.001)})))
    assert "correction for 1 comparison," in told and "computed" not in told


def test_volume_and_bat_stand_beside_the_network():
    others = {"Haematoma volume": (0.6, 0.2, 0.06), "BAT score": (0.55, 0.25, 0.06)}
    first = verdict(comparison((0.8, 0.7, 0.9), others))[0]
    assert "volume alone is 0.60 (0.10 to 0.90)" in first and "BAT score is 0.55 (0.10 to 0.90)" in first


def test_caveats_by_weight():
    told = said(synthetic=True, selected={**FACTS["selected"], "dropped": ["rate_1e-3"]})
    wanted = (
        "Every patient is synthetic",
        "1 candidate dropped out because a fold collapsed (rate_1e-3)",
        "The test cohort has 3 patients with and 5 without expansion",
        "The network learnt expansion from 4 patients who had it.",
        "In 1 patient of the test cohort less than 99 %",
        "In 2 of 8 test patients the network's outline failed (Dice coefficient below 0.5 on the acquired",
        "base leads by 0.05",
        "Results of the final model on the training cohort",
        "Missing in the test cohort, and left out of that row of Table 2: Swirl sign in 1, BAT score in 2.",
        "Of 20 patients, values of Table 1 are missing, and were not imputed: NIHSS in 3.",
        "2 patients did not enter because a criterion could not be checked.",
        "Admissions span 7.7 years",
    )
    assert len(told) == len(wanted)
    assert all(one.startswith(start) for one, start in zip(told, wanted, strict=True))
    assert "median Dice 0.90 refitted, 0.83 out-of-fold" in told[7]
    assert all(one.endswith(".") and one.count(". ") <= 1 for one in told)


def test_nothing_is_said_without_a_reason():
    def well(summary):
        summary["cohorts"]["test"] = {"patients": 400, "expansions": 150}
        summary["selection"]["remarks"] = ["candidate base leads by 0.3"]
        summary["segmentation"]["test"].update(cut_off=0, missed=0, failures=0)
        del summary["segmentation"]["train"]["out_of_fold"]
        summary["missing_in_test"] = {}

    summary = copy.deepcopy(SUMMARY)
    well(summary)
    told = said(summary=summary, flow={"not_included": {}}, table1=FACTS["table1"][:2])
    assert [one.split(" ")[0] for one in told] == ["The", "Admissions"]


def test_alarms_of_the_chosen_candidate_come_first():
    alarms = ["candidate base, fold 0: a", "candidate base2, fold 0: b", "candidate base is chosen, but: c", "d"]
    told = changed_summary(lambda summary: summary["selection"].update(alarms=alarms))
    assert [one[-2:] for one in told[:3]] == ["a.", "c.", "d."] and not any("base2" in one for one in told)


def test_a_collapsed_fold_of_the_chosen_candidate_is_named():
    told = said(selected={"scores": {"base": {"collapsed_folds": [0, 3]}}, "dropped": []})
    assert "collapsed in 2 folds (0, 3)" in told[0]


def test_scanners_that_were_never_trained_on_are_named():
    scanners = [{"scanner": name, "train": train, "test": test} for name, train, test in (("A", 9, 1), ("B", "0", "2"))]
    told = said(acquisition=scanners)
    assert any(
        "2 test patients came from a scanner that no training patient was scanned on: B (2)." in one for one in told
    )
    more = said(acquisition=[*scanners, {"scanner": "C", "train": 0, "test": 1}])
    assert any("3 test patients came from scanners that no" in one and "B (2), C (1)." in one for one in more)


@pytest.mark.parametrize(
    ("agreement", "words"),
    [([], "Nothing was read or drawn twice"), ([{"item": "Swirl sign"}], "No mask was drawn twice")],
)
def test_a_single_reader_is_named(agreement, words):
    assert any(one.startswith(words) for one in said(agreement=agreement))
    assert not any("twice" in one for one in said())


def test_separation_and_an_auc_at_its_limit_are_named():
    def limits(summary):
        summary["table2"]["CNN"]["auc"] = 1.0
        summary["baselines"]["volume"]["separated"] = True

    told = changed_summary(limits)
    assert any("at its limit" in one for one in told) and any("separates the outcomes" in one for one in told)


def test_many_gaps_are_summed_up():
    gaps = [{"label": f"V{k}", "train_missing": k, "test_missing": 0} for k in range(9)]
    told = next(one for one in said(table1=gaps) if "Table 1 are missing" in one)
    assert "V8 in 8, V7 in 7, V6 in 6, V5 in 5, V4 in 4, and fewer in 3 other rows." in told


def test_failures_are_those_of_the_test_cohort_worst_first():
    rows = [
        {"patient": p, "cohort": c, "failure": f, "dice_native": d, "reference_ml": ml}
        for p, c, f, d, ml in (
            ("A", "test", "Dice below 0.5", 0.4, 9.0),
            ("B", "train", "missed", 0.0, 9.0),
            ("C", "test", None, 0.9, 9.0),
            ("D", "test", "missed", 0.0, 3.0),
            ("E", "test", "missed", 0.0, 30.0),
        )
    ]
    assert [row["patient"] for row in failed_outlines(rows)] == ["E", "D", "A"]


# --- an external evaluation ----------------------------------------------------------------------------------------

DEFINITION = {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"}


def external(**here):
    """Caveats where another study's model is evaluated, by another definition of expansion if one is given."""
    summary = copy.deepcopy(SUMMARY)
    del summary["selection"], summary["segmentation"]["train"]
    summary |= {"external": True, "definition": DEFINITION | here, "reference": {"definition": dict(DEFINITION)}}
    table1 = [{"label": "NIHSS", "expansion_missing": "1", "no_expansion_missing": "2"}]
    acquisition = [{"scanner": "A", "train": "6", "test": "4"}, {"scanner": "C", "train": "0", "test": "4"}]
    cohorts = {"train": None, "test": ["2018-09-01", "2019-10-31"]}
    return said(summary=summary, selected=None, table1=table1, acquisition=acquisition, cohorts=cohorts)


def test_an_external_evaluation_claims_no_training_of_its_own():
    text = " ".join(external())
    assert "The network learnt expansion from 4 patients who had it, where it was made; nothing was fitted" in text
    assert "4 test patients came from a scanner that no training patient was scanned on: C (4)." in text
    assert "Of 8 patients, values of Table 1 are missing, and were not imputed: NIHSS in 3." in text
    assert "Admissions span 1.2 years" in text
    for absent in ("temporal", "refitted", "the lead is within", "was taught"):
        assert absent not in text


def test_another_definition_of_expansion_than_the_model_was_taught_is_told():
    text = " ".join(external(absolute_ml=12.5, operator=">="))
    assert (
        "was taught that expansion is growth > 6 mL or > 33 %; here it is judged by growth >= 12.5 mL or >= 33 %."
        in text
    )
    assert "was taught" not in " ".join(external(absolute_ml=6))
