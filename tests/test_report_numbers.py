"""A reviewer's check: every number of the report is that of the table it came from, cell by cell, in every table."""

import base64
import copy
import importlib.metadata
import json
import platform
import re
import shutil
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import docx
import lxml.html
import pytest
from fabricated_study import change_table
from reported_study import CODES, TABLE_DIGEST, demo_config, finish, report, scanner_study

from haemex.input_digests import patient_digests, summarise_inputs
from haemex.protocol_comparison import compare_protocols, without_paths
from haemex.tables import read_table


def num(value, decimals=2):
    """Halves away from zero, from the number as it stands in the file; written anew here."""
    if value in (None, ""):
        return "N/A"
    text = str(Decimal(f"{float(value):.12g}").quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def est(row, name, decimals=2):
    value, low, high = (num(row[f"{name}{end}"], decimals) for end in ("", "_lower", "_upper"))
    if value == "N/A":
        return value
    return f"{value} (N/A)" if "N/A" in (low, high) else f"{value} ({low} to {high})"


def p_of(value):
    return "N/A" if value in (None, "") else "<0.001" if float(value) < 0.001 else num(value, 3)


def said(value):
    return re.sub(r"(?<![\w.])-(?=\d)", "−", str(value or ""))


def percent(value, decimals=1):
    return f"{num(100 * value, decimals)} %"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Folder of a study, folder of its report, the page and its tree."""
    study = copy.copy(finish(tmp_path_factory.mktemp("study")))
    study.R = Path(shutil.copytree(study.R, tmp_path_factory.mktemp("copy") / "study"))
    R = study.R
    # Numbers that are alike in this small study, and would hide that they were mixed up.
    change_table(
        R / "evaluate/label_sensitivity.tsv",
        lambda rows: [row | {"gained": 10 * k + 1, "lost": 10 * k + 2} for k, row in enumerate(rows)],
    )
    (R / "scanners.json").write_text(json.dumps(scanner_study()))
    out = tmp_path_factory.mktemp("report")
    text = report(study, out, demo_config(), scanner_study_path=R / "scanners.json")
    page = lxml.html.fromstring(text.encode(), parser=lxml.html.HTMLParser(encoding="utf-8", huge_tree=True))
    return R, out, text, page


def cells(page):
    """Rows of every table with a caption, by the first words of it; a cell that spans is alone in its row."""
    found = {}
    for table in page.iter("table"):
        label = table.find("./caption/b")
        if label is None:
            continue
        rows = [[" ".join(cell.text_content().split()) for cell in row] for row in table.findall("./tbody/tr")]
        found[label.text] = (" ".join(table.find("caption").text_content().split()), rows)
    return found


def characteristics(rows, first, second):
    printed, group = [], ""
    for row in rows:
        if row["group"] and row["group"] != group:
            group = row["group"]
            printed.append([group])
        size = row["type"] == "n"
        printed.append(
            [
                row["label"] + ("" if size else f", {row['type']}"),
                said(row[first]),
                said(row[second]),
                "" if size else row["p_text"],
                num(row["smd"]) if row["smd"] else "",
                "" if size else f"{row[f'{first}_missing']} / {row[f'{second}_missing']}",
            ]
        )
    return printed


def with_group(read, computed, width):
    return [*read, ["Computed from CT and mask"], *computed] if computed else read


def expected_tables(R):
    """What every table must print, by a piece of its caption: from the files of the stages, formatted anew."""
    table = lambda path: read_table(R / path)  # noqa: E731
    text = lambda path: read_table(R / path, as_text=True)  # noqa: E731
    summary = json.loads((R / "evaluate/summary.json").read_text())
    tests = summary["cohorts"]["test"]["patients"]
    own = lambda k: " (this study)" if k == 0 else ""  # noqa: E731
    sign = lambda value: "present" if value else "absent"  # noqa: E731
    two = table("evaluate/table2.tsv")
    halves = [[row for row in two if row["source"] != "computed"], [row for row in two if row["source"] == "computed"]]
    assert [len(half) for half in halves] == [10, 8]

    def table2(row):
        name = row["row"] + (f" (n = {row['n']})" if row["n"] != tests else "")
        measures = ("sensitivity", "specificity", "lr_pos_weighted", "lr_neg_weighted", "auc")
        return [name, *(est(row, one) for one in measures), p_of(row["p"]), p_of(row["p_holm"])]

    def more(row):
        counts = [str(row[one]) for one in ("tp", "fn", "tn", "fp")]
        difference = "" if row["row"] == "CNN" else est(row, "auc_difference")
        return [row["row"], *counts, *(est(row, one) for one in ("lr_pos", "lr_neg", "ppv", "npv")), difference]

    def operating(row):
        peeked, decimals = summary["optimistic"][row["row"]], 1 if row["threshold_on"] == "BAT score" else 3
        point = (
            f"from {num(peeked['threshold'], decimals)}: sensitivity {est(peeked, 'sensitivity')}, "
            f"specificity {est(peeked, 'specificity')}"
            if peeked
            else ""
        )
        first = num(row["threshold"], 0 if row["threshold_on"] == "BAT score" else 3)
        return [row["row"], first, row["threshold_on"], row["threshold_from"], said(row["note"]), point]

    def spread(values, decimals):
        median, low, high = (num(values[one], decimals) for one in ("median", "q1", "q3"))
        return f"{median} ({low} to {high})"

    seg = summary["segmentation"]

    def dice(values):
        return [spread(values, 2), f"{num(values['mean'])} ± {num(values['sd'])}", str(values["n"])]

    def segmented(cohort, title, grid, name):
        one = seg[cohort]
        apart = [spread(one[f"{kind}_{grid}"], 1) for kind in ("hd95", "assd")]
        failures = str(one["failures"]) if grid == "native" else ""
        return [title, name, *dice(one[grid]), *apart, str(one[f"hd95_{grid}"]["n"]), failures]

    segmentation = [["Training, out-of-fold", "network's", *dice(seg["train"]["out_of_fold"]), "", "", "", ""]]
    segmentation += [
        segmented(cohort, title, grid, name)
        for cohort, title in (("train", "Training, refitted"), ("test", "Test"))
        for grid, name in (("grid", "network's"), ("native", "acquired"))
    ]
    failed = [row for row in table("evaluate/dice.tsv") if row["cohort"] == "test" and row["failure"]]
    subgroups, division = [], None
    for k, row in enumerate(table("evaluate/subgroups.tsv")):
        if k and row["division"] != division:
            subgroups.append([row["division"]])
        division = row["division"]
        measures = [est(row, one) for one in ("auc", "sensitivity", "specificity")]
        name = row["group"] if k else row["division"]
        subgroups.append([name, f"{row['expansions']} of {row['n']}", *measures, row["note"] or ""])
    scans = scanner_study()

    def scanner(row):
        areas = [est(row, one) for one in ("unseen_auc", "out_of_fold_auc", "auc_difference")]
        holm = p_of(row["p_holm"]) if "p_holm" in row else ""
        overlaps = [num(row[f"{one}_dice_median"]) for one in ("unseen", "out_of_fold")]
        counts = [f"{row['expansions']} of {row['patients']}", str(row.get("trained", ""))]
        return [row["scanner"], *counts, *areas, p_of(row["p"]), holm, *overlaps, row["note"]]

    def interval(row, start):
        low, high = (num(row[f"{start}_{end}"]) for end in ("lower", "upper"))
        return "N/A" if low == "N/A" else f"{low} to {high}"

    return {
        "Patient characteristics by cohort": characteristics(text("table1/table1.tsv"), "train", "test"),
        "Patient characteristics by early expansion": characteristics(
            text("table1/table1_expansion.tsv"), "expansion", "no_expansion"
        ),
        "How many patients change their label": [
            [
                row["definition"].replace(">=", "≥") + own(k),
                f"{row['expansions']} of {row['patients']} ({percent(row['expansions'] / row['patients'])})",
                str(row["flips"]),
            ]
            for k, row in enumerate(table("cohort/label_flips.tsv"))
        ],
        "Acquisition of the baseline scans": [
            [
                row["scanner"],
                f"{row['train']} / {row['test']}",
                *(row[one] for one in ("slice_thickness_mm", "slices", "voxel_size_mm", "matrix", "field_of_view_mm")),
                f"{row['window_width']} / {row['window_level']}",
                row["tilted"],
                row["uneven"],
            ]
            for row in text("evaluate/acquisition.tsv")
        ],
        "Agreement of two readers": [
            [
                row["item"],
                row["measure"],
                str(row["n"]),
                *(num(row[one], 1 if "mL" in row["measure"] else 3) for one in ("estimate", "lower", "upper")),
                row["interval"],
            ]
            for row in table("evaluate/agreement.tsv")
        ],
        "Candidates of the cross-validation": [
            [
                row["candidate"],
                str(row["fold"]),
                str(row["patients"]),
                str(row["expansions"]),
                est(row, "auc") if row["fold"] == "all" else num(row["auc"]),
                num(row["auc_sd"]) if row["fold"] == "all" else "",
                num(row["dice_median"]),
                num(row["dice_median_sd"]) if row["fold"] == "all" else "",
                num(row["dice_mean"]),
            ]
            for row in table("select/candidates.tsv")
        ],
        "The network on patients of a scanner it never saw": [
            scanner(row) for row in (*scans["scanners"], scans["pooled"])
        ],
        "Segmentation.": segmentation,
        "Test patients in whom the segmentation failed": [
            [
                row["patient"],
                row["failure"],
                num(row["dice_native"]),
                num(row["hd95_native_mm"], 1),
                num(row["reference_ml"], 1),
                num(row["predicted_ml"], 1),
                percent(row["inside_fraction"]),
            ]
            for row in sorted(failed, key=lambda row: (row["dice_native"], -row["reference_ml"]))
        ],
        "NCCT markers, logistic models and the network": with_group(
            *([table2(row) for row in one] for one in halves), 8
        ),
        "Counts, conventional likelihood ratios": with_group(*([more(row) for row in one] for one in halves), 10),
        "Operating points": [operating(row) for row in halves[0] if row["threshold"] is not None],
        "Markers as read and as computed": [
            [
                row["label"],
                *(str(row[one]) for one in ("n", "both", "only_read", "only_computed", "neither", "undecided")),
                est(row, "kappa"),
            ]
            for row in table("evaluate/marker_agreement.tsv")
        ],
        "Every disagreement of reader and computer": [
            [
                row["patient"],
                {"train": "training", "test": "test"}[row["cohort"]],
                row["label"],
                sign(row["read"]),
                sign(row["computed"]),
                (row["evidence"] or "criterion not met").replace("mm2", "mm²"),
            ]
            for row in table("evaluate/marker_disagreements.tsv")
        ],
        "Precision in the test cohort": [
            [
                row["measure"],
                num(row["estimate"]),
                interval(row, "bootstrap"),
                f"{row['resamples']:,}",
                interval(row, "formula"),
                row["formula"] or "",
            ]
            for row in table("evaluate/precision.tsv")
        ],
        "The network in parts of the test cohort": subgroups,
        "Other definitions of expansion": [
            [
                row["definition"].replace(">=", "≥") + own(k),
                f"{row['expansions']} of {row['patients']}",
                f"{row['gained']} / {row['lost']}",
                *(est(row, one) for one in ("auc", "sensitivity", "specificity")),
            ]
            for k, row in enumerate(table("evaluate/label_sensitivity.tsv"))
        ],
        "Calibration in the test cohort": [
            [
                title,
                *(
                    est(summary["calibration"][kind], one, decimals)
                    for one, decimals in (("intercept", 2), ("slope", 2), ("ratio", 2), ("brier", 3))
                ),
            ]
            for kind, title in (
                ("calibrated", "calibrated on the training cohort"),
                ("raw", "as the network gives them"),
            )
        ],
        "Net benefit per patient": [
            [percent(row["threshold"], 0), *(num(row[one], 3) for one in ("cnn", "volume", "bat", "all", "none"))]
            for row in table("evaluate/decision_curve.tsv")
            if round(100 * row["threshold"]) % 10 == 0
        ],
        "Checks made by this run": [
            [row["check"], said(row["compared"]), row["verdict"]] for row in table("evaluate/leaks.tsv")
        ],
        "What went in, as digests": [
            [row["what"], str(row["number"]), row["digest"]]
            for row in summarise_inputs(
                patient_digests(R / "cohort/cohort.tsv", R / "measure"), TABLE_DIGEST, without_paths(demo_config())
            )
        ],
        "The code behind each rule": [[name, digest] for name, digest in CODES.items()],
    }


def test_every_number_of_every_table_is_that_of_its_file(everything):
    R, _, _, page = everything
    printed, expected = cells(page), expected_tables(R)
    unchecked = dict(printed)
    for start, rows in expected.items():
        labels = [
            label for label, (caption, _) in printed.items() if caption.removeprefix(label).strip().startswith(start)
        ]
        assert len(labels) == 1, (start, labels)
        assert printed[labels[0]][1] == rows, (labels[0], start)
        assert rows, f"{start}: an empty table shows nothing"
        del unchecked[labels[0]]
    # What has no file: settings, versions, and the two checklists.
    starts = ("Settings that differ", "TRIPOD+AI", "CLAIM", "Versions that made")
    left = [caption.removeprefix(label).strip() for label, (caption, _) in unchecked.items()]
    assert len(left) == 4 and all(one.startswith(start) for one, start in zip(left, starts, strict=True)), left


def test_settings_and_versions_are_those_of_the_run(everything):
    _, _, _, page = everything
    tables = {caption: rows for caption, rows in cells(page).values()}
    versions = next(rows for caption, rows in tables.items() if "Versions that made" in caption)
    assert versions[0] == ["Python", platform.python_version()]
    assert all(version == importlib.metadata.version(name) for name, version in versions[1:])
    differing = next(rows for caption, rows in tables.items() if "Settings that differ" in caption)
    config = demo_config()
    for key, _, _, here in differing:
        value = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, int | float):
            assert float(here) == value, key
        elif isinstance(value, list) and len(value) == 3:
            assert here == " × ".join(f"{one:g}" for one in value), key
    import yaml
    from reported_study import ROOT

    schema = yaml.safe_load((ROOT / "config/config.schema.yaml").read_text())
    paper = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert [row[0] for row in differing] == [row["key"] for row in compare_protocols(config, paper, schema)]


def test_docx_holds_every_table_cell_by_cell(everything):
    _, out, _, page = everything
    document = docx.Document(out / "tables.docx")
    printed = cells(page)
    assert len(document.tables) == len(printed) >= 25
    words = [paragraph.text for paragraph in document.paragraphs]
    for table, (label, (caption, rows)) in zip(document.tables, printed.items(), strict=True):
        header = next(one for one in page.iter("table") if one.findtext("./caption/b") == label)
        heads = [[" ".join(cell.text_content().split()) for cell in row] for row in header.findall("./thead/tr")]
        assert [[cell.text for cell in dict.fromkeys(row.cells)] for row in table.rows] == [*heads, *rows], label
        assert caption in words
    notes = [" ".join(one.text_content().split()) for one in page.iter("p") if one.getparent().get("class") == "foot"]
    assert notes and all(note in words for note in notes)


def test_headline_boxes_and_answer_are_those_of_table_2(everything):
    R, _, _, page = everything
    cnn = next(row for row in read_table(R / "evaluate/table2.tsv") if row["row"] == "CNN")
    boxes = [one.text_content() for one in page.find_class("headline")[0]]
    for box, name in zip(boxes, ("auc", "sensitivity", "specificity"), strict=False):
        assert num(cnn[name]) in box and f"CI {num(cnn[f'{name}_lower'])} to {num(cnn[f'{name}_upper'])}" in box
    answer = page.find_class("answer")[0].text_content()
    assert f"AUC {num(cnn['auc'])} (95 % CI {num(cnn['auc_lower'])} to {num(cnn['auc_upper'])})" in answer
    assert f"in {cnn['n']} patients it had not seen, {cnn['expansions']} of them with expansion" in answer


def test_the_flow_diagram_prints_the_counts_of_its_file_and_they_add_up(everything):
    R, _, _, page = everything
    flow = json.loads((R / "cohort/flow.json").read_text())
    picture = page.get_element_by_id("figure-flow").find("img").get("src")
    # Letters are drawn as curves; matplotlib leaves every text as a comment beside its curves.
    svg = base64.b64decode(picture.partition(",")[2]).decode()
    counts = dict(re.findall(r"<!-- (.+?) \(n = (\d+)\) -->", svg))
    assert counts.pop("Patients in the cohort table") == str(flow["screened"])
    assert counts.pop("Training cohort") == str(flow["train"]) and counts.pop("Test cohort") == str(flow["test"])
    boxes = {"Not included": "not_included", "Excluded": "excluded"}
    for box, name in boxes.items():
        assert int(counts.pop(box)) == sum(flow[name].values())
    assert int(counts.pop("Met the inclusion criteria")) == flow["included"]
    assert int(counts.pop("Eligible")) == flow["eligible"]
    assert int(counts.pop("Analysed")) == flow["train"] + flow["test"]
    assert int(counts.pop("Admitted outside both periods")) == flow["outside_dates"]
    reasons = [one for name in boxes.values() for one in flow[name].values()]
    assert sorted(map(int, counts.values())) == sorted(reasons)  # what is left are the reasons
    assert flow["screened"] - sum(flow["not_included"].values()) == flow["included"]
    assert flow["included"] - sum(flow["excluded"].values()) == flow["eligible"]
    assert flow["eligible"] - flow["outside_dates"] == flow["train"] + flow["test"]
    rows = read_table(R / "cohort/cohort.tsv")
    for cohort in ("train", "test"):
        own = [row for row in rows if row["cohort"] == cohort]
        assert (len(own), sum(row["expansion"] for row in own)) == (flow[cohort], flow["expansion"][cohort])


def test_the_card_of_the_model_prints_the_numbers_of_the_report(everything):
    R, out, _, _ = everything
    card = lxml.html.parse(str(out / "model_card.html")).getroot()
    words = " ".join(" ".join(card.itertext()).split())
    cnn = next(row for row in read_table(R / "evaluate/table2.tsv") if row["row"] == "CNN")
    for name in ("auc", "sensitivity", "specificity", "ppv", "npv"):
        assert est(cnn, name) in words, name
    for row in read_table(R / "evaluate/subgroups.tsv")[1:]:
        assert f"{row['group']}, {est(row, 'auc')} ({row['expansions']} of {row['n']})" in words, row["group"]
    summary = json.loads((R / "evaluate/summary.json").read_text())
    for name, decimals in (("slope", 2), ("intercept", 2), ("brier", 3)):
        assert est(summary["calibration"]["calibrated"], name, decimals) in words
    model = json.loads((R / "final/model/model.json").read_text())
    assert all(f"{one['file']} {one['sha256']}" in words for one in model["ensemble"])
    assert "Not a medical device" in words and "must not be used on patients at all" in words
    for row in read_table(R / "table1/table1.tsv", as_text=True):
        if row["variable"] == "age_years":
            assert f"{row['label']}, {row['type']} {row['train']} {row['test']}" in words
