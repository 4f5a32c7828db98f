"""Labels of the test cohort influence nothing but the evaluation, and without information the AUC is one half."""

import itertools
import json
import re

import numpy as np
import pytest
from fabricated_study import FOLDS, TEST, change_table, fabricate, write_tsv

from haemex.cohort import read_cohort
from haemex.evaluation import evaluate_study
from haemex.provenance import ROOT
from haemex.selection import select
from haemex.table_two import table_two
from haemex.tables import read_table

UPSTREAM_OF_LABELS = ("operating_point", "baselines", "out_of_fold", "segmentation", "ensemble", "selection", "leaks")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("study"), matrix=24, slices=6)


def labelled(rows, labels):
    """Rows with other labels in the test cohort."""
    labels = iter(labels)
    return [row | {"expansion": next(labels)} if row["cohort"] == "test" else dict(row) for row in rows]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def evaluated(study, folder, labels):
    evaluate_study(**study.evaluate | {"rows": labelled(study.rows, labels), "out_folder": folder})
    scores = read_table(folder / "scores.tsv")
    return json.loads((folder / "summary.json").read_text()), scores


def test_permuted_labels_change_the_results_and_nothing_they_rest_on(study, tmp_path):
    true = [row["expansion"] for row in study.rows if row["cohort"] == "test"]
    before = contents(study.R)
    summary, scores = evaluated(study, tmp_path / "true", true)
    rng, areas = np.random.default_rng(0), set()
    for turn in range(4):
        labels = [int(one) for one in rng.permutation(true)]
        again, new = evaluated(study, tmp_path / str(turn), labels)
        assert [row["expansion"] for row in new] == labels
        for row, old in zip(new, scores, strict=True):
            assert row | {"expansion": None} == old | {"expansion": None}
        assert {name: again[name] for name in UPSTREAM_OF_LABELS} == {
            name: summary[name] for name in UPSTREAM_OF_LABELS
        }
        unlabelled = ("dice.tsv", "leaks.tsv", "acquisition.tsv", "agreement.tsv")
        for name in (*unlabelled, "marker_agreement.tsv", "marker_disagreements.tsv"):
            assert (tmp_path / str(turn) / name).read_bytes() == (tmp_path / "true" / name).read_bytes()
        groups = read_table(tmp_path / str(turn) / "subgroups.tsv")
        assert [(row["group"], row["n"]) for row in groups] == [
            (row["group"], row["n"]) for row in read_table(tmp_path / "true/subgroups.tsv")
        ]
        areas.add(again["table2"]["CNN"]["auc"])
    assert len(areas) > 1  # the labels do reach the results
    assert contents(study.R) == before


def test_auc_averages_one_half_over_all_labellings(study, tmp_path):
    true = [row["expansion"] for row in study.rows if row["cohort"] == "test"]
    summary, scores = evaluated(study, tmp_path, true)
    areas = {"CNN": [], "Haematoma volume": [], "Irregular shape, computed": []}
    for cases in itertools.combinations(range(TEST), sum(true)):
        rows = [row | {"expansion": int(i in cases)} for i, row in enumerate(scores)]
        for row in table_two(rows, summary["operating_point"], summary["baselines"], 3, 0.95):
            if row["row"] in areas:
                areas[row["row"]].append(row["auc"])
    for name, one in areas.items():
        assert len(one) == 56 and np.mean(one) == pytest.approx(0.5)
        assert len(set(one)) > 2 and (max(one) == 1 or "computed" in name)  # a sign ranks in two steps only


def test_the_selection_does_not_feel_the_test_labels(study, tmp_path):
    rng = np.random.default_rng(3)
    training = {row["patient"]: row for row in study.rows if row["cohort"] == "train"}
    for candidate, fold in itertools.product(("base", "rate_1e-3"), range(FOLDS)):
        rows = [
            {
                "patient": patient,
                "probability": float(1 / (1 + np.exp(-x))),
                "logit": x,
                "dice": 0.8,
                "predicted_ml": 9.0,
            }
            for patient, row in training.items()
            if row["fold"] == fold
            for x in [float(rng.normal(row["expansion"], 1))]
        ]
        folder = study.R / f"train/{candidate}/fold{fold}"
        write_tsv(tmp_path / f"train/{candidate}/fold{fold}/predictions.tsv", rows)
        for name in ("roles.tsv", "history.tsv"):
            (tmp_path / f"train/{candidate}/fold{fold}" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "cohort.tsv").write_bytes((study.R / "cohort/cohort.tsv").read_bytes())
    chosen = []
    for turned in (False, True):
        if turned:
            change_table(
                tmp_path / "cohort.tsv",
                lambda rows: [
                    row | ({"expansion": 1 - int(row["expansion"])} if row["cohort"] == "test" else {}) for row in rows
                ],
            )
        outputs = {f"{name}_path": tmp_path / f"{name}{turned}" for name in ("selected", "predictions", "candidates")}
        select(
            candidates=["base", "rate_1e-3"],
            train_folder=tmp_path / "train",
            cohort_path=tmp_path / "cohort.tsv",
            criterion="auc",
            operating_point="youden",
            min_sensitivity=0.9,
            calibration="platt",
            collapsed_dice=0.1,
            collapsed_fold="stop",
            **outputs,
        )
        chosen.append([path.read_bytes() for path in outputs.values()])
    assert chosen[0] == chosen[1]
    assert {row["expansion"] for row in read_cohort(tmp_path / "cohort.tsv")} == {0, 1}


# Who learns from patients, who chooses among what was learnt, and who reads labels when all is settled.
LEARNING = {"train", "final", "seed_study_train", "scanner_study_train"}
CHOOSING = {"select"}
COMPARING = {"comparators"}  # fits the models that the network is compared with
AFTERWARDS = {"table1", "evaluate", "cards", "report", "seed_study", "scanner_study"}


def inputs_of_rules():
    """What each rule reads, as text."""
    return {
        rule.partition(":")[0]: rule.partition("input:")[2].partition("output:")[0]
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for rule in re.split(r"^rule ", path.read_text(), flags=re.M)[1:]
    }


def behind(rule, inputs):
    """All rules whose results a rule rests on."""
    found, waiting = set(), [rule]
    while waiting:
        text = inputs[waiting.pop()]
        named = set(re.findall(r"<results>/(\w+)/", text)) | set(re.findall(r"rules\.(\w+)\.output", text))
        waiting += named - found
        found |= named
    return found


def test_every_rule_that_reads_labels_is_known():
    readers = {rule for rule, text in inputs_of_rules().items() if "cohort/cohort.tsv" in text}
    assert readers == LEARNING | CHOOSING | COMPARING | AFTERWARDS


@pytest.mark.parametrize("rule", sorted(LEARNING))
def test_who_learns_reads_labels_of_the_training_cohort_only(rule):
    text = (ROOT / f"workflow/scripts/{rule}.py").read_text()
    assert text.count("snakemake.input.cohort") == 1
    assert 'for member in read_cohort(snakemake.input.cohort) if member["cohort"] == "train"' in text


@pytest.mark.parametrize("rule", sorted(LEARNING | CHOOSING | {"predict"}))
def test_nothing_fitted_rests_on_a_result_or_on_a_computed_marker(rule):
    inputs = inputs_of_rules()
    before = behind(rule, inputs) | {rule}
    assert not before & (AFTERWARDS | COMPARING | {"markers"})
    # Follow-up volumes, of which labels are made, and the clinical table go through the cohort alone.
    for other in before - {"cohort"}:
        assert "measure/{patient}.json" not in inputs[other] and "study.table" not in inputs[other], other
    assert "study.table" in inputs["cohort"] and "measure/{patient}.json" in inputs["cohort"]


def test_what_the_network_is_compared_with_is_fitted_on_the_training_cohort_alone():
    text = (ROOT / "workflow/scripts/comparators.py").read_text()
    assert text.count("clinical_rows(snakemake.input.table, snakemake.input.cohort)") == 1
    assert '[row for row in rows if row["cohort"] == "train"],' in text and text.count("rows") == 4
    inputs = inputs_of_rules()["comparators"]
    assert inputs.count("patient=study.training") == 2 and "study.testing" not in inputs
    assert not behind("comparators", inputs_of_rules()) & (AFTERWARDS | LEARNING | CHOOSING | {"predict", "markers"})


def test_computed_markers_are_read_by_those_who_show_them_only():
    readers = {rule for rule, text in inputs_of_rules().items() if "<results>/markers/" in text}
    assert "evaluate" in readers and readers <= AFTERWARDS
