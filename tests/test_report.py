"""The report: self-contained, safe, the same bytes, and its words follow from config and results."""

import ast
import html.parser
import json
import re
import shutil
import subprocess

import pytest
from fabricated_study import change_json
from reported_study import ROOT, demo_config, finish, finish_external, merged, paper_config, report, scanner_study

from haemex.figures import FIGURES
from haemex.files import read_json
from haemex.tables import read_table

VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def paper():
    return paper_config()


@pytest.fixture(scope="module")
def demo():
    return demo_config()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("study"))


@pytest.fixture
def write(finished, tmp_path):
    return lambda config, **changed: report(finished, tmp_path, config, **changed)


@pytest.fixture(scope="module")
def folder(finished, demo, tmp_path_factory):
    """What is written for the demo's config, for tests that change nothing."""
    out = tmp_path_factory.mktemp("report")
    report(finished, out, demo)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


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


def test_one_self_contained_file(text, finished):
    page = Page(text)
    assert len(page.fetched) == len(FIGURES) + 20 and all(one.startswith("data:image/") for one in page.fetched)
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert all(page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert {one[1:] for one in page.anchors} <= set(page.ids)
    assert str(finished.R) not in text and str(ROOT) not in text


def test_the_model_card_is_a_page_of_its_own(folder):
    card = (folder / "model_card.html").read_text()
    page = Page(card)
    assert page.fetched == [] and page.anchors == [] and not re.search(r"@import|url\(|<script|<link", card)
    for asked in (
        "Intended use",
        "Must not be used",
        "Taught and tested on",
        "Input",
        "Output",
        "Calibration",
        "Caveats",
    ):
        assert asked in page.text
    assert "Not a medical device" in page.text and "Licence and version" in page.text


def test_same_bytes_again(write, demo, folder, tmp_path):
    write(demo)
    for name in ("report.html", "tables.docx", "model_card.html", "inputs.tsv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_table_and_figure_numbers_follow_each_other_whatever_is_left_out(write, text, demo, paper, finished, tmp_path):
    (tmp_path / "scanners.json").write_text(json.dumps(scanner_study()))
    agreement = finished.R / "evaluate/agreement.tsv"
    kept = agreement.read_text()
    texts = [text, write(paper), write(demo, scanner_study_path=tmp_path / "scanners.json")]
    agreement.write_text(kept.splitlines()[0] + "\n")
    try:
        texts.append(write(demo))
    finally:
        agreement.write_text(kept)
    lengths = []
    for text in texts:
        for kind, tag in (("Table", "caption"), ("Figure", "figcaption")):
            for prefix in ("", "S"):
                numbers = [int(n) for n in re.findall(rf"<{tag}><b>{kind} {prefix}(\d+)\.", text)]
                assert numbers == list(range(1, len(numbers) + 1)), (kind, prefix)
                lengths.append(len(numbers))
        # What the text refers to is there.
        for number in re.findall(r"Table (S?\d+)(?!\.)", Page(text).text):
            assert f"<caption><b>Table {number}." in text or number in ("1", "2"), number
    assert lengths[1::4] == [lengths[1], lengths[1] - 1, lengths[1] + 1, lengths[1] - 1]


def test_a_minus_is_a_minus_wherever_it_comes_from(write, demo, finished, tmp_path):
    content = json.loads((finished.R / "select/selected.json").read_text())
    content["remarks"] = ["Leads by 0.074 (95 % interval -0.175 to 0.323), admitted since 2018-09-01, rate_1e-3."]
    (tmp_path / "selected.json").write_text(json.dumps(content))
    text = write(demo, selected_path=tmp_path / "selected.json")
    words = Page(text).text
    assert "interval −0.175 to 0.323" in words and "2018-09-01, rate_1e-3" in words
    settings = text[text.index("<pre>") : text.index("</pre>")]
    assert "−" not in settings and "- 112" in settings.replace("- 160", "- 112")  # YAML, to be used again
    assert not re.search(r"(?<![\w.‑-])-\d", Page(text.replace(settings, "<pre>")).text), "a hyphen for a minus"


def test_what_a_file_says_is_no_markup_in_tables_either(write, demo, finished):
    path = finished.R / "evaluate/marker_disagreements.tsv"
    kept = path.read_text()
    lines = kept.splitlines()
    path.write_text("\n".join([lines[0], lines[1] + "<script>alert(1)</script>"]) + "\n")
    try:
        text = write(demo)
    finally:
        path.write_text(kept)
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_nothing_in_it_is_markup_unless_the_template_says_so(write, demo, finished, tmp_path):
    hostile = tmp_path / "selected.json"
    content = json.loads((finished.R / "select/selected.json").read_text())
    hostile.write_text(json.dumps(content | {"alarms": ["<script>alert(1)</script> & more"]}))
    text = write(demo, selected_path=hostile)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_field_words_in_british_spelling(text):
    page = Page(text)
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


def test_what_the_numbers_are_not_is_said(text):
    words = Page(text).text
    assert "post-test odds" in words and "not a medical device" in words
    assert "adjusted for 9 comparisons by Holm's method; the 8 computed rows are a family of their own" in words
    assert "The reader's value is the one used" in words
    assert "Optimistic: the test cohort's own Youden point" in words
    assert "ICC(2,1)" in words and "TRIPOD+AI (Collins 2024" in words and "CLAIM, 2024 update" in words


def test_what_the_cohort_table_does_not_know_is_said(write, demo, finished):
    """And is not said where it does."""
    tables = ("subgroups", "label_sensitivity")
    kept = {name: (finished.R / f"evaluate/{name}.tsv").read_text() for name in tables}
    rows = {name: [line for line in kept[name].splitlines() if line] for name in tables}
    rows["subgroups"] = [line for line in rows["subgroups"] if not line.startswith("Haematoma location")]
    rows["label_sensitivity"] = [line for line in rows["label_sensitivity"] if "ventricular" not in line]
    more = {
        "subgroups": rows["subgroups"][-1].replace(rows["subgroups"][-1].split("\t")[0], "Haematoma location", 1),
        "label_sensitivity": rows["label_sensitivity"][1].replace("\t", " or new ventricular blood\t", 1),
    }
    words = []
    try:
        for known in (False, True):
            for name in tables:
                lines = rows[name] + ([more[name]] if known else [])
                (finished.R / f"evaluate/{name}.tsv").write_text("\n".join(lines) + "\n")
            words.append(Page(write(demo)).text)
    finally:
        for name in tables:
            (finished.R / f"evaluate/{name}.tsv").write_text(kept[name])
    for sentence in ("blood, cannot be computed", "Deep or lobar site: the cohort table does not know it"):
        assert sentence in words[0] and sentence not in words[1]
    assert "The last row adds new ventricular blood" in words[1] and "The last row adds" not in words[0]


def test_the_answer_stands_before_all_else(text):
    places = [text.index(one) for one in ('<p class="answer">', '<div class="headline">', '<div class="caveats">')]
    assert places == sorted(places)
    assert text.index('<p class="answer">') - text.index("<main>") < 600


def test_every_item_of_the_checklists_is_there_once(text):
    for label, last in (("TRIPOD+AI", 27), ("CLAIM, 2024", 44)):
        table = text[text.index(f"</b> {label}") :]
        table = table[: table.index("</table>")]
        items = [int(n) for one in re.findall(r'<th scope="row">([\d, ]+)</th>', table) for n in one.split(",")]
        assert items == list(range(1, last + 1)), label


def test_patients_have_their_cards_and_digests(text, folder, finished):
    assert text.count('<article class="card') == 20
    rows = read_table(folder / "inputs.tsv", as_text=True)
    assert [row["patient"] for row in rows] == sorted(row["patient"] for row in rows) and len(rows) == 20
    measured = json.loads((finished.R / "measure/P003.json").read_text())
    assert rows[2]["baseline_ct"] == measured["pixel_digest"]["baseline"]
    assert rows[2]["baseline_ct"] not in text, "the page names digests of the whole only"


def test_scanners_never_seen(write, text, demo, tmp_path):
    (tmp_path / "scanners.json").write_text(json.dumps(scanner_study()))
    words = Page(write(demo, scanner_study_path=tmp_path / "scanners.json")).text
    assert "On 12 patients of scanners it never saw its AUC is 0.62 (0.42 to 0.82)" in words
    assert "0.75 (0.55 to 0.95)" in words and "Not left out: TOSHIBA Aquilion (3)." in words
    assert "Scanners never seen" not in Page(text).text


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


def test_methods_follow_the_config(write, demo):
    changed = merged(demo, {"expansion": {"operator": ">=", "absolute_ml": 12.5}, "augment": {"copies": 7}})
    changed = merged(changed, {"eligibility": {"followup_h": [18.0, 36.0]}, "training": {"learning_rate": 0.0123}})
    words = Page(write(changed)).text
    assert "growth of at least 12.5 mL or 33 %" in words
    assert "contributed 7 volumes , the scan and 6 transformed copies" in words.replace("volumes, the", "volumes , the")
    assert "follow-up CT 18 to 36 hours later" in words
    assert "learning rate 0.0123" in words


def test_selection_is_told_with_rule_spread_and_ensemble(write, text, demo, finished, tmp_path):
    words = Page(text).text
    selected = json.loads((finished.R / "select/selected.json").read_text())
    for sentence in (*selected["rule"].values(), *selected["remarks"]):
        assert sentence in words
    assert "base all 12 4 0.71 (0.51 to 0.91) 0.12 0.85 0.05 0.84" in words
    assert "base 0 4 4 0.71 0.85 0.84" in words
    assert "No training raised an alarm" in words and "Out of the running" not in words
    assert "recalibrated on the out-of-fold predictions of its training cohort (Platt's method, intercept" in words
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


def test_a_cohort_without_markers_has_no_bat_score_and_its_report_all_the_same(write, demo, finished):
    """The markers are optional columns; Table 2 then lacks the point that the test cohort would have chosen."""
    summary = finished.R / "evaluate/summary.json"
    kept = summary.read_bytes()
    change_json(summary, lambda content: content["optimistic"].pop("BAT score"))
    without = write(demo)
    summary.write_bytes(kept)
    assert "BAT score" in without and len(without) < len(write(demo))


def test_no_deviation_is_said_too(write, paper):
    words = Page(write(paper)).text
    assert "None: every setting of this run is that of the paper's protocol" in words
    assert "0 settings depart from the paper's protocol" in words


def test_chosen_candidate_counts_as_a_deviation(write, paper, finished, tmp_path):
    chosen = tmp_path / "selected.json"
    content = json.loads((finished.R / "select/selected.json").read_text())
    content["candidate"] = "rate_3e-4"
    chosen.write_text(json.dumps(content))
    words = Page(write(paper, selected_path=chosen)).text
    assert "1 setting departs" in words and "training.learning_rate" in words


def test_device_of_the_training_is_named(write, demo, finished, tmp_path):
    card = tmp_path / "model.json"
    card.write_text((finished.R / "final/model/model.json").read_text())
    change_json(card, lambda model: model.update(device="the CPU"))
    assert "Training ran on the CPU." in Page(write(demo, model_path=card)).text


def test_the_spread_over_seeds_stands_beside_that_of_patients(write, text, demo, tmp_path):
    assert "seed alone" not in text
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


@pytest.fixture(scope="module")
def external(demo, tmp_path_factory):
    """The report of an external evaluation, its folder and the study."""
    study, out = finish_external(tmp_path_factory.mktemp("external")), tmp_path_factory.mktemp("report")
    config = merged(demo, {"cohorts": {"train": None}}) | {"model": "somebody/final/model"}
    config["cohorts"]["train"] = None
    report(study, out, config, selected_path=None, candidates_path=None, table1_path=None)
    return study, out, (out / "report.html").read_text(encoding="utf-8")


def test_an_external_evaluation_is_reported_without_a_training(external):
    study, out, text = external
    page = Page(text)
    words = " ".join(" ".join(page.words).split())
    assert "somebody" not in text + (out / "model_card.html").read_text(encoding="utf-8")
    assert {one[1:] for one in page.anchors} <= set(page.ids) and "selection" not in page.ids
    assert "External evaluation of a locked model: study demo" in words
    assert "12 patients (4 with expansion) of another study" in words
    assert "nothing was fitted here" in words and "nothing was fitted to the patients here" in words
    absent = ("Cross-validation", "out-of-fold 0", "temporal", "refitted", "training.epochs", "Augmentation", "9 : 1")
    for one in (*absent, "left panel", "two cohorts", "both cohorts", "Training cohort"):
        assert one not in words, one
    assert "external validation" in words
    for kind, tag in (("Table", "caption"), ("Figure", "figcaption")):
        for prefix in ("", "S"):
            numbers = [int(n) for n in re.findall(rf"<{tag}><b>{kind} {prefix}(\d+)\.", text)]
            assert numbers == list(range(1, len(numbers) + 1)) and numbers
    drawn = {path.stem for path in (study.R / "evaluate").glob("*.png")}
    assert drawn == set(FIGURES) - {"training"}
    assert len(read_json(study.R / "cards/cards.json")) == 8
    for name in ("report.html", "tables.docx", "model_card.html", "inputs.tsv"):
        assert (out / name).stat().st_size


def test_the_model_under_test_is_described_from_its_bundle(external):
    study, out, text = external
    section = text[text.index('id="model-under-test"') : text.index('id="patients"')]
    words = " ".join(Page(section[section.index("<h2>") : section.rindex("</section>")]).text.split())
    bundle = read_json(study.R / "final/model/model.json")
    assert "12 patients; with expansion 4 of 12 (33.3 %), here 3 of 8 (37.5 %)" in words
    assert "GE MEDICAL SYSTEMS Optima CT540 (6); SIEMENS SOMATOM Force (6)." in words
    assert f"A probability of {bundle['operating_point']['threshold']:.3f} before calibration" in words
    assert bundle["weights_sha256"] in words and "positive from a probability of" in words
    ages = [[row["age_years"] for row in study.rows if row["cohort"] == cohort] for cohort in ("train", "test")]
    there, here = (f"{sum(group) / len(group):.1f}±" for group in ages)
    assert re.search(rf"Age, years, mean±SD {re.escape(there)}\S+ {re.escape(here)}\S+ 0 / 0", words), words
    card = " ".join(Page((out / "model_card.html").read_text(encoding="utf-8")).text.split())
    assert re.search(rf"Age, years, mean±SD {re.escape(there)}\S+ {re.escape(here)}\S+", card), card


def test_recalibration_stands_beside_the_locked_calibration(external):
    study, _, text = external
    words = " ".join(Page(text).text.split())
    found = read_json(study.R / "evaluate/summary.json")["calibration"]
    said = words[words.index("What a recalibration to these very patients would be, and used nowhere") :]
    for name, cells in (("intercept_only", ("intercept",)), ("intercept_and_slope", ("intercept", "slope"))):
        for cell in cells:
            values = [found["recalibrated"][name][f"{cell}{end}"] for end in ("", "_lower", "_upper")]
            assert "{:.2f} ({:.2f} to {:.2f})".format(*values).replace("-", "−") in said
    assert "1, held" in said and "Its Brier scores are too good" in words
    locked = found["calibrated"]
    assert f"{locked['slope']:.2f} ({locked['slope_lower']:.2f}".replace("-", "−") in words


def test_a_missing_figure_of_an_ordinary_study_is_an_error(write, demo, finished, tmp_path):
    shutil.copytree(finished.R / "evaluate", tmp_path / "evaluate")
    (tmp_path / "evaluate/training.svg").unlink()
    with pytest.raises(FileNotFoundError):
        write(demo, evaluate_folder=tmp_path / "evaluate")


# --- around it ---------------------------------------------------------------------------------------------------


def test_digests_of_code_are_given_for_every_rule_behind_the_report():
    rule = (ROOT / "workflow/rules/report.smk").read_text()
    several = ast.literal_eval(rule[rule.index("for rule in {") + 12 : rule.index("}.get(stage") + 1])
    left_out = ast.literal_eval(re.search(r"if stage not in (\(.*?\))", rule).group(1))
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        rules = tuple(re.findall(r"^rule (\w+):", path.read_text(), re.M))
        if path.stem not in left_out:
            assert several.get(path.stem, (path.stem,)) == rules
        else:  # nothing that the report reads comes from them
            assert all(f"<results>/{one}/" not in other.read_text() for one in rules for other in _behind(left_out)), (
                path
            )


def _behind(left_out):
    return [path for path in (ROOT / "workflow/rules").glob("*.smk") if path.stem not in left_out]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_never_scrolls_sideways(folder, width, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    for name in ("report.html", "model_card.html"):
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe id="page" src="{(folder / name).as_uri()}" style="width:{width}px;border:0"></iframe>'
            '<pre id="said"></pre><script>page.onload = () => {'
            "const root = page.contentDocument.documentElement;"
            "said.textContent = `wide ${root.scrollWidth} room ${root.clientWidth}`}</script>"
        )
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
        options += ["--virtual-time-budget=10000", "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
        asked = [browser, *options, frame.as_uri()]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=120).stdout
        wide, room = map(int, re.search(r'<pre id="said">wide (\d+) room (\d+)', shown).groups())
        assert wide <= room <= width, name
