"""The report: self-contained, safe, the same bytes, and its words follow from config and results."""

import copy
import html.parser
import json
import re
from pathlib import Path

import pytest
import yaml
from fabricated_study import change_json, fabricate

from haemex.evaluation import evaluate_study
from haemex.figures import FIGURES, draw_figures
from haemex.report import (
    caveats,
    compare_protocols,
    failed_outlines,
    interval,
    number,
    setting,
    span,
    verdict,
    without_paths,
    write_report,
)
from haemex.settings import load_schema
from haemex.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "img", "br", "link", "input", "hr"}


def merged(base, changes):
    """What Snakemake makes of two config files."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


@pytest.fixture(scope="module")
def paper():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture(scope="module")
def demo(paper):
    return merged(paper, yaml.safe_load((ROOT / "config/demo.yaml").read_text()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"), matrix=24, slices=6)
    evaluate_study(**study.evaluate)
    draw_figures(**study.figures)
    return study


@pytest.fixture
def write(finished, tmp_path):
    def write(config, reachable_auc=None, **changed):
        paths = {
            "paper_config_path": ROOT / "config/config.yaml",
            "schema_path": ROOT / "config/config.schema.yaml",
            "template_folder": ROOT / "workflow/report",
            "flow_path": finished.R / "cohort/flow.json",
            "flips_path": finished.R / "cohort/label_flips.tsv",
            "table1_path": finished.R / "table1/table1.tsv",
            "evaluate_folder": finished.R / "evaluate",
            "candidates_path": finished.R / "select/candidates.tsv",
            "selected_path": finished.R / "select/selected.json",
            "model_path": finished.R / "final/model/model.json",
            "report_path": tmp_path / "report.html",
        }
        write_report(config=config, reachable_auc=reachable_auc, **(paths | changed))
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


class Page(html.parser.HTMLParser):
    """Tags in balance, text, and everything a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.ids, self.anchors, self.words = [], [], [], [], []
        self.alts = []
        self.feed(text)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        attrs = dict(attrs)
        self.fetched += [attrs[name] for name in ("src", "data", "srcset", "poster") if name in attrs]
        if "href" in attrs:
            (self.anchors if attrs["href"].startswith("#") else self.fetched).append(attrs["href"])
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.alts.append(attrs["alt"])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1] if self.open else ''}>"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


# --- the file ----------------------------------------------------------------------------------------------------


def test_one_self_contained_file(write, demo, finished):
    text = write(demo)
    page = Page(text)
    assert len(page.fetched) == len(FIGURES) and all(one.startswith("data:image/") for one in page.fetched)
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert all(page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert {one[1:] for one in page.anchors} <= set(page.ids)
    assert str(finished.R) not in text and str(ROOT) not in text


def test_same_bytes_again(write, demo):
    assert write(demo) == write(demo)


def test_nothing_in_it_is_markup_unless_the_template_says_so(write, demo, finished, tmp_path):
    hostile = tmp_path / "selected.json"
    content = json.loads((finished.R / "select/selected.json").read_text())
    hostile.write_text(json.dumps(content | {"alarms": ["<script>alert(1)</script> & more"]}))
    text = write(demo, selected_path=hostile)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_field_words_in_british_spelling(write, demo):
    page = Page(write(demo))
    words = page.text.lower()
    for word in ("hematoma ", "hemorrhage", "normaliz", "labeled", "center "):
        assert word not in words
    assert "None" not in page.text.split()  # a missing value that slipped through
    assert "nan" not in words.split()


# --- what it says ------------------------------------------------------------------------------------------------


def test_synthetic_patients_are_marked_with_the_reachable_auc(write, demo):
    words = Page(write(demo, reachable_auc=0.7349)).text
    assert "Synthetic patients." in words and "not evidence about patients" in words
    assert "an AUC of about 0.73" in words
    assert "not to be cited as evidence" in words


def test_real_patients_are_not(write, paper):
    words = Page(write({**paper, "study": "mine"})).text
    assert "synthetic" not in words.lower().replace("haemex.phantom", "")
    assert "Study mine" in words


def test_headline_and_tables_are_the_numbers_of_the_run(write, demo, finished):
    words = Page(write(demo)).text
    rows = {row["row"]: row for row in read_table(finished.R / "evaluate/table2.tsv")}
    for row in rows.values():
        for name in ("sensitivity", "specificity", "lr_pos_weighted", "lr_neg", "ppv", "auc"):
            assert interval(row, name) in words
    cnn = rows["CNN"]
    assert f"{number(cnn['auc_lower'])} to {number(cnn['auc_upper'])}" in words
    assert "Swirl sign (n = 7)" in words
    assert "0.800" in words  # a p of Table 1, as printed there
    for row in read_table(finished.R / "evaluate/leaks.tsv"):
        assert row["check"] in words
    assert "post-test odds" in words and "not a medical device" in words


def test_every_new_table_stands_in_the_report_as_it_is(write, demo, finished):
    words = Page(write(demo)).text
    tables = {name: read_table(finished.R / f"evaluate/{name}.tsv") for name in ("subgroups", "label_sensitivity")}
    for row in [*tables["subgroups"], *tables["label_sensitivity"]]:
        for name in ("auc", "sensitivity", "specificity"):
            assert interval(row, name) in words
    assert "none with expansion: no AUC" in words or "all with expansion: no AUC" in words
    for row in tables["label_sensitivity"]:
        counted = f"{row['expansions']} of {row['patients']} {row['gained']} / {row['lost']}"
        assert f"{row['definition'].replace('>=', '≥')} " in words and counted in words
    assert "new ventricular blood, cannot be computed" in words and "Deep or lobar site" in words
    for row in read_table(finished.R / "evaluate/precision.tsv"):
        expected = f"{number(row['estimate'])} {number(row['bootstrap_lower'])} to {number(row['bootstrap_upper'])}"
        assert f"{row['measure']} {expected} {row['resamples']:,}" in words
    for row in read_table(finished.R / "evaluate/decision_curve.tsv")[9::10]:
        assert (
            f"{row['threshold']:.0%}".replace("%", " %") + f" {number(row['cnn'], 3)} {number(row['volume'], 3)}"
            in words
        )
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    for kind in ("raw", "calibrated"):
        for name, decimals in (("intercept", 2), ("slope", 2), ("ratio", 2), ("brier", 3)):
            assert interval(summary["calibration"][kind], name, decimals) in words
    width = summary["precision"]["auc"]
    assert f"about {width['patients_wanted']:,} patients by that formula" in words
    distances = summary["segmentation"]["test"]["hd95_native"]
    assert f"{number(distances['median'], 1)} ({number(distances['q1'], 1)} to {number(distances['q3'], 1)})" in words
    assert "P015 nothing found 0.00 N/A" in words
    for row in summary["optimistic"].values():
        assert f"{interval(row, 'sensitivity')}, specificity {interval(row, 'specificity')}" in words
    assert "Optimistic: the test cohort's own Youden point" in words
    assert "ICC(2,1)" in words and "TRIPOD+AI (Collins 2024" in words


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


def test_what_cannot_be_said_is_said_not_to_be(write, demo, finished):
    summary = finished.R / "evaluate/summary.json"
    kept = summary.read_text()

    def empty(content):
        width = content["precision"]["auc"]
        content["precision"]["auc"] = dict.fromkeys(width) | {"wanted_width": 0.1}
        content["decision_curve"]["cnn"] = []
        content["segmentation"]["test"] |= {"hd95_native": None, "assd_native": None}

    change_json(summary, empty)
    try:
        words = Page(write(demo)).text
    finally:
        summary.write_text(kept)
    assert "lies at a limit, so nothing can be said" in words
    assert "At no probability from 1 to 60 %" in words


def test_table_and_figure_numbers_follow_each_other(write, demo):
    text = write(demo)
    for kind, tag in (("Table", "caption"), ("Figure", "figcaption")):
        for prefix in ("", "S"):
            numbers = [int(n) for n in re.findall(rf"<{tag}><b>{kind} {prefix}(\d+)\.", text)]
            assert numbers == list(range(1, len(numbers) + 1)), (kind, prefix)


def test_methods_follow_the_config(write, demo):
    changed = merged(demo, {"expansion": {"operator": ">=", "absolute_ml": 12.5}, "augment": {"copies": 7}})
    changed = merged(changed, {"eligibility": {"followup_h": [18.0, 36.0]}, "training": {"learning_rate": 0.0123}})
    words = Page(write(changed)).text
    assert "growth of at least 12.5 mL or 33 %" in words
    assert "contributed 7 volumes , the scan and 6 transformed copies" in words.replace("volumes, the", "volumes , the")
    assert "follow-up CT 18 to 36 hours later" in words
    assert "learning rate 0.0123" in words


def test_selection_is_told_with_rule_spread_and_ensemble(write, demo, finished, tmp_path):
    words = Page(write(demo)).text
    selected = json.loads((finished.R / "select/selected.json").read_text())
    for sentence in (*selected["rule"].values(), *selected["remarks"]):
        assert sentence in words
    assert "base all 12 4 0.71 (0.51 to 0.91) 0.12 0.85 0.05 0.84" in words
    assert "base 0 4 4 0.71 0.85 0.84" in words
    assert "No training raised an alarm" in words and "Out of the running" not in words
    assert "recalibrated on the out-of-fold predictions (Platt's method, intercept" in words
    assert "The 3 fold models" in words and "SD of 0.17 (median; largest 0.20)" in words
    changed = tmp_path / "selected.json"
    changed.write_text(json.dumps(selected | {"dropped": ["rate_1e-3"], "alarms": ["candidate rate_1e-3, fold 1: x"]}))
    words = Page(write(demo, selected_path=changed)).text
    assert "Out of the running: rate_1e-3." in words and "candidate rate_1e-3, fold 1: x" in words
    assert "No training raised an alarm" not in words


def test_isotonic_calibration_is_named(write, demo, finished, tmp_path):
    card = tmp_path / "model.json"
    card.write_text((finished.R / "final/model/model.json").read_text())
    knots = {"method": "isotonic", "logit": [0.0, 1.0, 2.0], "probability": [0.2, 0.2, 0.6]}
    change_json(card, lambda model: model.update(calibration=knots))
    assert "(isotonic regression with 2 levels)" in Page(write(demo, model_path=card)).text


def test_no_ensemble_is_not_mentioned(write, demo, finished):
    summary = finished.R / "evaluate/summary.json"
    kept = summary.read_text()
    none = {"models": 0, "median_sd": None, "largest_sd": None}
    change_json(summary, lambda content: content.update(ensemble=none))
    try:
        words = Page(write(demo)).text
        assert "fold models of the chosen candidate" not in words and "the confident half" not in words
    finally:
        summary.write_text(kept)


def test_no_deviation_is_said_too(write, paper):
    words = Page(write(paper)).text
    assert "None: every setting of this run is that of the paper's protocol" in words
    assert "0 settings depart from the paper's protocol" in words


def test_deviations_of_the_demo_and_of_the_chosen_candidate(demo, paper):
    schema = load_schema(ROOT / "config/config.schema.yaml")
    rows = {row["key"]: row for row in compare_protocols(demo, paper, schema)}
    assert rows["resample.matrix"]["paper"] == [256, 256, 32] and rows["resample.matrix"]["here"] == [32, 32, 20]
    assert "voxels" in rows["resample.matrix"]["meaning"]
    assert rows["training.epochs"]["here"] == demo["training"]["epochs"]
    assert "rate_3e-4" in rows["candidates"]["paper"] and "rate_3e-4" not in rows["candidates"]["here"]
    assert not {"study", "cohort_table", "seed"} & set(rows) and not any(key.startswith("phantom") for key in rows)
    assert compare_protocols(paper, paper, schema) == []
    # 10 and 10.0 are the same protocol.
    assert compare_protocols(merged(paper, {"augment": {"scaling_percent": 10}}), paper, schema) == []
    faster = merged(paper, {"training": {"threads": 8, "precision": "bf16"}, "evaluate": {"overlays": 2}, "seed": 5})
    faster = merged(
        faster, {"computing": {"memory_gb": 8.0}, "predict": {"ensemble": False}, "seed_study": {"seeds": [1]}}
    )
    assert compare_protocols(faster, paper, schema) == []
    assert [row["key"] for row in compare_protocols(merged(paper, {"folds": 3}), paper, schema)] == ["folds"]


def test_chosen_candidate_counts_as_a_deviation(write, paper, finished, tmp_path):
    chosen = tmp_path / "selected.json"
    content = json.loads((finished.R / "select/selected.json").read_text())
    content["candidate"] = "rate_3e-4"
    chosen.write_text(json.dumps(content))
    words = Page(write(paper, selected_path=chosen)).text
    assert "1 setting departs" in words and "training.learning_rate" in words


def test_paths_do_not_travel():
    config = {"cohort_table": "x.tsv", "a": {"b": "/home/dr.house/x", "c": r"C:\Users\house", "d": ["rel/x", 3]}}
    assert without_paths(config) == {"a": {"b": "(path left out)", "c": "(path left out)", "d": ["rel/x", 3]}}


# --- verdict and caveats -----------------------------------------------------------------------------------------


def comparison(network, others, confidence=0.95):
    keys = ("auc", "auc_lower", "auc_upper")
    table = {"CNN": dict(zip(keys, network, strict=True)) | {"p": None, "p_holm": None, "auc_difference": None}}
    for name, (auc, difference, p_holm) in others.items():
        table[name] = {"auc": auc, "auc_difference": difference, "p": p_holm, "p_holm": p_holm}
    return {"confidence": confidence, "table2": table}


def test_verdict_claims_no_more_than_the_tests_allow():
    both = " ".join(verdict(comparison((0.8, 0.7, 0.9), {"A": (0.6, 0.2, 0.0004), "B": (0.95, -0.15, 0.02)})))
    assert "higher than that of A (0.60, p < 0.001)" in both
    assert "lower than that of B (0.95, p = 0.020)" in both
    assert "chance" not in both
    none = " ".join(verdict(comparison((0.6, 0.45, 0.75), {"A": (0.5, 0.1, 0.06)})))
    assert "includes 0.5" in none and "does not differ significantly" in none and "higher" not in none
    assert "worse than chance" in " ".join(verdict(comparison((0.3, 0.2, 0.4), {"A": (0.5, -0.2, 0.5)})))
    assert "no interval" in verdict(comparison((1.0, None, None), {"A": (0.5, 0.5, None)}))[0]


def test_caveats_follow_from_the_numbers(finished):
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())
    flow = json.loads((finished.R / "cohort/flow.json").read_text())
    said = "\n".join(caveats(summary, flow, synthetic=True))
    assert said.startswith("Every patient is synthetic")
    assert "3 patients with and 5 without expansion" in said
    assert "Swirl sign in 1" in said and "1 patient of the test cohort the network's haematoma does not touch" in said
    summary["cohorts"]["test"] = {"patients": 400, "expansions": 150}
    summary["selection"]["alarms"] = ["fold 2 collapsed"]
    said = caveats(summary, flow, synthetic=False)
    assert said[0] == "Alarm of the cross-validation: fold 2 collapsed."
    assert not any("Collins" in one for one in said)
    alarms = ["candidate base, fold 0: a", "candidate base2, fold 0: b", "candidate base is chosen, but: c"]
    summary["selection"]["alarms"] = alarms
    said = caveats(summary, flow, synthetic=False)
    assert [one[-2:] for one in said if one.startswith("Alarm")] == ["a.", "c."]  # of the chosen candidate
    assert any("lead is within the spread" in one for one in said)
    summary["selection"]["remarks"] = ["candidate base leads by 0.3"]
    assert not any("leads" in one for one in caveats(summary, flow, synthetic=False))


def test_numbers_as_printed():
    assert number(0.545) == "0.55" and number(-0.5, 1) == "−0.5" and number(None) == "N/A"
    row = {"x": 0.8, "x_lower": 0.7, "x_upper": 0.904, "y": 0.0, "y_lower": None, "y_upper": None}
    assert interval(row, "x") == "0.80 (0.70 to 0.90)"
    assert interval(row, "y") == "0.00 (N/A)"
    assert interval({"z": None, "z_lower": None, "z_upper": None}, "z") == "N/A"
    assert setting([256, 256, 32]) == "256 × 256 × 32" and setting([20, 30]) == "20, 30" and setting(True) == "yes"
    assert span([20.0, 24.0]) == "20 to 24"


def test_device_of_the_training_is_named(write, demo, finished, tmp_path):
    card = tmp_path / "model.json"
    card.write_text((finished.R / "final/model/model.json").read_text())
    change_json(card, lambda model: model.update(device="the CPU"))
    assert "Training ran on the CPU." in Page(write(demo, model_path=card)).text


def test_the_spread_over_seeds_stands_beside_that_of_patients(write, demo, tmp_path):
    assert "seed alone" not in write(demo)
    seeds = {
        "candidate": "base",
        "patients": 54,
        "auc": {"number": 3, "sd": 0.0213, "min": 0.6012, "max": 0.6437},
        "dice_median": {"number": 3, "sd": 0.00412, "min": 0.8801, "max": 0.8883},
        "auc_sd_patients": 0.0791,
    }
    (tmp_path / "summary.json").write_text(json.dumps(seeds))
    text = " ".join(Page(write(demo, seeds_path=tmp_path / "summary.json")).words)
    text = " ".join(text.split())
    assert "SD of 0.02 (3 seeds, 0.60 to 0.64)" in text and "by 0.004 (0.880 to 0.888)" in text
    assert "only 54 patients is 0.08" in text
