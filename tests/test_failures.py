"""What failed and how to go on: the logs' last words, the table, the excluded, and one study brought to its end."""

import ast
import collections
import csv
import itertools
import json
import os
import re
import subprocess
import types
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reported_study import demo_config, finish, report
from test_check import Cohort
from test_cohort import write_table
from test_workflow import CONFIG, Users

from haemex.cohort_table import parse_cohort_table
from haemex.errors import InputError
from haemex.failures import (
    COLUMNS,
    MAX_ROWS,
    Unfinished,
    collect,
    end_well,
    in_words,
    jobs_of,
    last_words,
    split_sentence,
    write_failures,
)
from haemex.figures import draw_flow
from haemex.logs import log_to
from haemex.nifti import read_volume, write_volume
from haemex.provenance import ROOT
from haemex.report_text import exclusions
from haemex.study import STAGES, Study
from haemex.tables import read_table

REFUSED = InputError("the mask is empty", "draw the haematoma; see `baseline_mask`", "data/mask.nii.gz")
WELL = ("Draw the haematoma; see `baseline_mask`", "data/mask.nii.gz: the mask is empty")


# --- the last words of a job ---------------------------------------------------------------------------------------


def said_by(folder, error=None, done=False, patient="P1"):
    """What is made of a job's log."""
    log, output = folder / "measure/P1.log", folder / "measure/P1.json"
    try:
        with log_to(log, patient=patient):
            print("haematoma: 3.2 mL\nhaemexperiment: no sentence of ours")
            if error:
                raise error
    except SystemExit:
        pass
    if done:
        output.write_text("{}")
    return last_words(log, output, patient or "")


def test_a_refusal_is_split_into_what_is_wrong_and_what_to_do(tmp_path):
    assert said_by(tmp_path, REFUSED) == WELL[::-1]
    assert said_by(tmp_path, REFUSED, patient=None) == WELL[::-1]
    assert said_by(tmp_path, InputError("two\nlines", "look", "a: b.nii")) == ("a: b.nii: two lines", "Look")
    assert said_by(tmp_path, done=True) is None


def test_of_a_fault_only_its_kind_is_repeated(tmp_path):
    """The words of an unforeseen error may quote a header."""
    for error in (KeyError("Quisling"), ValueError("1931\nQuisling: of two lines\n  indented"), RuntimeError()):
        problem, action = said_by(tmp_path, error)
        assert problem == f"{type(error).__name__}, a fault of haemex" and "Quisling" not in action
        assert action == f"Please report it with the traceback in {tmp_path}/measure/P1.log"
    try:
        raise ValueError("first")
    except ValueError as first:
        second = OSError("second")
        second.__context__ = first
    assert said_by(tmp_path, second)[0] == "OSError, a fault of haemex"
    assert said_by(tmp_path, MemoryError())[0] == "there was not enough memory"
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
    assert said_by(tmp_path, out_of_memory("CUDA"))[0] == "there was not enough memory"


def test_a_job_that_was_stopped_says_nothing_and_is_told_by_what_it_did_not_leave(tmp_path):
    problem, action = said_by(tmp_path)
    assert "without a word" in problem and "same command again" in action and "measure/P1.log" in action


WORDS = st.text("abc,:()`0.5 ", min_size=1).map(str.strip).filter(lambda text: text.strip(". ") and ". " not in text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WORDS, WORDS)
def test_splitting_undoes_what_the_error_joins(problem, action):
    problem, action = problem.rstrip("."), action.rstrip(".")
    told = str(InputError(problem, action, "scans/P1"))
    assert split_sentence(told) == (f"scans/P1: {problem}", action[:1].upper() + action[1:])


def test_no_problem_of_ours_holds_a_full_stop_where_it_would_be_split():
    looked_at = 0
    for path in sorted((ROOT / "haemex").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                texts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                looked_at += 1
                assert not any(". " in text for text in texts if isinstance(text, str)), (path, node.lineno)
    assert looked_at > 50


# --- which failures still hold -------------------------------------------------------------------------------------


class Logs:
    """Results in which jobs have run, each a second after the one before."""

    def __init__(self, folder):
        self.folder, self.clock = folder, 1_700_000_000

    def run(self, job, error=None):
        log = self.folder / job.log
        try:
            with log_to(log, patient=job.patient or None):
                if error:
                    raise error
        except SystemExit:
            pass
        output = self.folder / job.output
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        if not error:
            output.write_text("{}")
        self.clock += 1
        for path in (log, output):
            if path.exists():
                os.utime(path, (self.clock, self.clock))


def a_study(stages=STAGES, patients=("P1", "P2"), **config):
    return types.SimpleNamespace(
        patients=list(patients),
        training=["P1"] if "train" in stages else [],
        stages=stages,
        candidates=["base", "slow"],
        folds=range(2),
        config=config,
        has_followup_scan=lambda patient: patient == "P2",
    )


def by_stage(study):
    return {(job.patient, job.stage): job for job in jobs_of(study)}


def test_failures_of_patients_and_of_the_study_stand_in_one_table(tmp_path):
    logs, jobs = Logs(tmp_path), by_stage(a_study())
    for job in jobs.values():
        logs.run(job)
    assert collect(tmp_path, jobs.values()) == []
    logs.run(jobs["P2", "convert followup"], REFUSED)
    logs.run(jobs["P1", "markers"], KeyError("x"))
    logs.run(jobs["", "train slow fold 1"], InputError("the loss is not finite", "lower the rate"))
    told = [(one["patient"], one["stage"], one["problem"], one["action"]) for one in collect(tmp_path, jobs.values())]
    assert told == [
        ("", "train slow fold 1", "the loss is not finite", "Lower the rate"),
        ("P1", "markers", "KeyError, a fault of haemex", told[1][3]),
        ("P2", "convert follow-up", *WELL[::-1]),
    ]


def test_what_failed_before_that_which_it_waits_for_ran_again_is_of_the_past(tmp_path):
    logs, jobs = Logs(tmp_path), by_stage(a_study())
    for job in jobs.values():
        logs.run(job)
    logs.run(jobs["", "train base fold 0"], REFUSED)
    logs.run(jobs["", "select"])
    assert [one["stage"] for one in collect(tmp_path, jobs.values())] == ["train base fold 0"]
    logs.run(jobs["P1", "augment"])  # the training will run anew
    assert collect(tmp_path, jobs.values()) == []
    logs.run(jobs["P1", "measure"], REFUSED)
    logs.run(jobs["P2", "convert baseline"])  # of another patient
    assert [one["stage"] for one in collect(tmp_path, jobs.values())] == ["measure"]
    logs.run(jobs["P1", "convert baseline"])
    assert collect(tmp_path, jobs.values()) == []


def test_who_is_of_the_study_no_more_has_not_failed(tmp_path):
    logs, study = Logs(tmp_path), a_study()
    logs.run(by_stage(study)["P2", "measure"], REFUSED)
    assert [one["patient"] for one in collect(tmp_path, jobs_of(study))] == ["P2"]
    study.patients.remove("P2")
    assert collect(tmp_path, jobs_of(study)) == []


def test_every_rule_of_the_workflow_is_known_with_its_log_and_its_output():
    """A rule that is added, or writes elsewhere, has to be told here, or its failures would go unnamed."""
    config = {"seed_study": {"seeds": [1, 2]}, "scanner_study": {"scanners": ["A", "B"]}}
    stages = (*STAGES, "phantom", "seed_study", "scanner_study")
    known = jobs_of(a_study(stages, **config))
    found = set()
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for rule, text in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)*)", path.read_text(), re.M):
            if rule.startswith("new_patient"):
                continue  # of a config of its own
            outputs = patterns(text[text.index("    output:") : text.index("    log:")])
            (log, *_) = patterns(text[text.index("    log:") : text.index("    benchmark:")])
            mine = [job for job in known if log.fullmatch(job.log)]
            assert mine, f"no job has the log of the rule {rule}"
            for job in mine:
                assert any(output.fullmatch(job.output) for output in outputs), (rule, job)
            found |= set(mine)
    assert found == set(known)
    assert len({job.log for job in known}) == len(known) == len({job.output for job in known})


def patterns(text):
    """Regular expressions of the paths in a part of a rule, as far as they are literal."""
    paths = re.findall(r'"<results>/([^"]+)"', text)
    return [re.compile(re.sub(r"\\{\w+\\}", r"[\\w.-]+", re.escape(path))) for path in paths]


def test_jobs_stand_behind_those_they_wait_for():
    for study in (
        a_study(),
        a_study(tuple(one for one in STAGES if one not in ("augment", "train", "select", "final"))),
    ):
        seen = set()
        for job in jobs_of(study):
            for need in job.needs:
                others = [one for one in jobs_of(study) if need in (one.stage, one.stage.split()[0])]
                waited_for = [one for one in others if not job.patient or one.patient == job.patient]
                assert all(one in seen for one in waited_for), (job, need)
            seen.add(job)
    assert not any(job.stage.startswith(("augment", "train", "final")) for job in jobs_of(study)), "an external study"


# --- the table -----------------------------------------------------------------------------------------------------


def failures(count, patient="P{:03d}", problem="the mask is empty"):
    return [
        {"patient": patient.format(number), "stage": "measure", "problem": problem, "action": "Draw it", "log": "a.log"}
        for number in range(count)
    ]


def test_the_file_holds_all_and_goes_with_the_last_failure(tmp_path):
    path = tmp_path / "qc/failures.tsv"
    write_failures(failures(2, problem="two\tlines\nin one cell"), path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert tuple(rows[0]) == COLUMNS and [row["patient"] for row in rows] == ["P000", "P001"]
    assert rows[0]["problem"] == "two lines in one cell"
    write_failures([], path)
    assert not path.exists()
    write_failures([], path)


@pytest.mark.parametrize("width", [20, 80, 100, 160, 400])
def test_the_table_on_the_terminal_is_short_and_no_wider_than_it(width):
    told = in_words(
        failures(MAX_ROWS + 3, problem="x" * 300 + " and more"), "qc/failures.tsv", "qc/index.html", width=width
    )
    lines = told.splitlines()
    assert max(len(line) for line in lines) <= min(max(width, 80), 160)
    named = [line.split()[0] for line in lines if line.startswith("  P")]
    assert named == [f"P{number:03d}" for number in range(MAX_ROWS)]
    assert "  and 3 more; see qc/failures.tsv" in lines
    assert sum(line.startswith("haemex: ") for line in lines) == 1
    assert f"haemex: {MAX_ROWS + 3} patients failed; which and why: qc/index.html" in lines


def test_the_terminal_says_how_to_go_on():
    def told(*args):
        return " ".join(in_words(*args, width=120).split())

    one = told(failures(1), "t.tsv", "i.html", "cohort.tsv")
    assert "patient stage what is wrong what to do P000 measure the mask is empty Draw it" in one
    assert "1 patient failed; which and why: i.html" in one and "same command again" in one
    assert "write into the column `excluded` of cohort.tsv why a patient is left out" in one
    assert "No result rests on fewer patients than the cohort table lets in." in one
    assert "excluded" not in told(failures(1), "t.tsv", "i.html", None), "of synthetic patients the table is made anew"
    training = [dict(failures(1)[0], patient="", stage="train base fold 0")]
    own = told(training, "t.tsv", "i.html", "cohort.tsv")
    assert "haemex: the job train base fold 0 failed; which and why: t.tsv" in own and "excluded" not in own
    assert "1 patient and 2 jobs failed" in told([*failures(1), *training, *training], "t.tsv", "i.html")


# --- from one run to the next --------------------------------------------------------------------------------------


def test_a_note_says_that_a_run_has_not_ended_well(tmp_path):
    path, made = tmp_path / "study/.unfinished", tmp_path / "made"
    first = Unfinished(path)
    assert not first
    first.begin()
    assert first and path.exists()
    first.end([made])  # well, and what is not there nobody asked for
    assert not path.exists()
    Unfinished(path).begin()  # killed
    second = Unfinished(path)
    second.begin()
    second.end([made])  # well, but only a part of the study was asked for
    assert path.exists()
    made.touch()
    second.end([made])
    assert not path.exists()


def test_a_run_that_ends_well_leaves_of_the_failures_what_still_holds(tmp_path):
    logs, study = Logs(tmp_path), a_study()
    study.unfinished = Unfinished(tmp_path / ".unfinished")
    jobs, table = by_stage(study), tmp_path / "qc/failures.tsv"
    logs.run(jobs["P1", "measure"], REFUSED)
    logs.run(jobs["P2", "markers"], REFUSED)
    write_failures(collect(tmp_path, jobs.values()), table)
    study.unfinished.begin()
    study.unfinished.begin()  # of the next run
    logs.run(jobs["P1", "measure"])
    end_well(study, tmp_path, table)
    assert [row["patient"] for row in read_table(table)] == ["P2"] and study.unfinished
    for job in jobs.values():
        logs.run(job)
    end_well(study, tmp_path, table)
    assert not table.exists() and not study.unfinished


# --- who is excluded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("", None),
        (" series  incomplete\xa0", "series incomplete"),
        ("Maske fehlt (Nr. 12)", "Maske fehlt (Nr. 12)"),
        ("层面缺失", "层面缺失"),
        ("<b>lost & found</b>", "<b>lost & found</b>"),
    ],
)
def test_a_reason_is_kept_in_the_investigators_words(tmp_path, cell, read):
    rows, faults = parse_cohort_table(write_table(tmp_path / "t.tsv", {"excluded": cell}, columns=["excluded"]))
    assert faults == [] and rows[0]["excluded"] == read


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("0", "leave the cell empty"),
        ("no", "leave the cell empty"),
        ("none", "leave the cell empty"),
        ("1", "write why"),
        ("yes", "write why"),
        ("x", "write why"),
        ("seen on 3.4.2018", "may identify"),
        ("CT of 2018-04-03 broken", "may identify"),
        ("case 66077345", "may identify"),
        ("a" * 81, "80 at most"),
        ("tab\x07bell", "plain words"),
    ],
)
def test_what_is_no_reason_is_refused_and_what_may_identify_not_repeated(tmp_path, cell, words):
    table = write_table(tmp_path / "t.tsv", {"excluded": cell}, columns=["excluded"])
    (row,), (fault,) = parse_cohort_table(table)
    assert row["excluded"] is None and fault["column"] == "excluded" and words in fault["problem"] + fault["action"]
    assert len(cell) < 5 or cell not in fault["problem"] + fault["action"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**yaml.safe_load((ROOT / "config/config.yaml").read_text()), "cohort_table": "table.tsv"}


ROWS = ({"patient": "A"}, {"patient": "B"}, {"patient": "T", "admission_date": "2019-01-01"})


def asked(config, **reasons):
    rows = [row | {"excluded": reasons.get(row["patient"], "")} for row in ROWS]
    write_table(Path(config["cohort_table"]), *rows, {"patient": "X", "age_years": "3"}, columns=["excluded"])
    return Study(config)


def test_the_excluded_have_no_jobs_and_a_reason_in_other_words_trains_nothing(config):
    before = asked(config)
    assert (before.training, before.testing, before.checked) == (["A", "B"], ["T"], ["A", "B", "T"])
    after = asked(config, A="series incomplete")
    assert (after.training, after.testing, after.checked) == (["B"], ["T"], ["B", "T"])
    assert not any(job.patient == "A" for job in jobs_of(after))
    reworded, harmless = asked(config, A="two slices lost"), asked(config, X="too young")
    assert reworded.eligibility_digest() == after.eligibility_digest() == before.eligibility_digest()
    assert len({before.table_digest(), after.table_digest(), reworded.table_digest()}) == 3
    assert harmless.patients == before.patients


def test_all_of_a_cohort_excluded_is_one_sentence(config):
    with pytest.raises(InputError, match=r"every patient of the test cohort \(1\) is marked in `excluded`"):
        asked(config, T="lost")
    with pytest.raises(InputError, match=r"every patient of the training cohort \(2\)"):
        asked(config, A="lost", B="lost", T="lost")


def test_every_job_is_asked_for_after_a_run_that_did_not_end_well(config):
    study = asked(config, A="lost")
    assert study.targets[-1] == study.owed and study.owed(None) == []
    study.unfinished.begin()
    owed = study.owed(None)
    assert "<results>/measure/B.json" in owed and "<results>/train/base/fold0/predictions.tsv" in owed
    assert "<results>/evaluate/summary.json" in owed and not any("/A" in one for one in owed)


def test_the_check_looks_at_no_excluded_patient_and_says_so(tmp_path, write_series, capsys):
    cohort = Cohort(tmp_path, write_series)
    cohort.rows["P5"] = cohort.rows["P1"] | {"patient": "P5", "baseline_ct": "nowhere", "excluded": "<i>lost</i>"}
    cohort.rows["P6"] = cohort.rows["P1"] | {"patient": "P6", "age_years": "7", "excluded": "too young"}
    assert cohort.found() == []
    page = (tmp_path / "out/index.html").read_text()
    assert '<th>excluded by the investigators: &lt;i&gt;lost&lt;/i&gt;</th><td class="n">1</td><td>P5</td>' in page
    assert "<th>too young</th>" in page and "investigators: too young" not in page, "the first reason counts"
    assert "check of 4 patients (1 more excluded by the investigators, not checked)" in capsys.readouterr().out
    cohort.rows["P5"]["excluded"] = "1"
    told = cohort.found()
    assert any(patient == "P5" and "no reason in words" in problem for patient, _, problem in told)
    assert any(patient == "P5" and "nowhere" not in problem for patient, _, problem in told)


def test_an_excluded_patient_without_a_date_is_no_error(tmp_path, write_series):
    cohort = Cohort(tmp_path, write_series)
    cohort.rows["P5"] = cohort.rows["P1"] | {"patient": "P5", "admission_date": "", "excluded": "lost"}
    assert cohort.found() == []


FLOW = {
    **{"screened": 12, "not_included": {"age": 1}, "included": 11, "excluded": {"infratentorial": 1}, "eligible": 10},
    **{"outside_dates": 1, "train": 4, "test": 2, "expansion": {"train": 2, "test": 1}},
}
LATER = [("P1", "train", "<b>$x$ & y</b>"), ("P2", "test", "mask lost"), ("P3", "train", "Mask lost")]
LATER = [dict(zip(("patient", "cohort", "reason"), one, strict=True)) for one in LATER]


def test_the_flow_diagram_shows_them_in_their_words():
    flow = FLOW | {"excluded_by_investigators": LATER}
    told = [text.get_text() for text in draw_flow(flow).axes[0].texts]
    for expected in (
        *("Eligible (n = 10)", "Admitted outside both periods (n = 1)", "Eligible within the periods (n = 9)"),
        *("Excluded by the investigators (n = 3)", "mask lost (n = 2)", "<b>$x$ & y</b> (n = 1)", "Analysed (n = 6)"),
    ):
        assert expected in told
    inside = FLOW | {"excluded_by_investigators": LATER, "outside_dates": 0, "eligible": 9}
    told = [text.get_text() for text in draw_flow(inside).axes[0].texts]
    assert "Eligible (n = 9)" in told and not any("within" in text for text in told)
    assert not any("investigators" in text.get_text() for text in draw_flow(FLOW).axes[0].texts)


def test_many_and_long_reasons_stay_in_their_box():
    later = [
        {"patient": f"P{number}", "cohort": "test", "reason": f"{'reason number ' * 5}{number:02d}"[:80]}
        for number in range(30)
    ]
    figure = draw_flow(FLOW | {"excluded_by_investigators": later, "eligible": 37})
    figure.canvas.draw()
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches if hasattr(patch, "get_boxstyle")]
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert any(b.x0 < extent.x0 and extent.x1 < b.x1 and b.y0 < extent.y0 and extent.y1 < b.y1 for b in boxes), text
    assert any("other reasons (n = 25)" in text.get_text() for text in figure.axes[0].texts)
    for one, other in itertools.combinations(boxes, 2):
        assert one.x1 < other.x0 or other.x1 < one.x0 or one.y1 < other.y0 or other.y1 < one.y0


def test_numbers_of_the_excluded_by_hand():
    found = exclusions(FLOW | {"excluded_by_investigators": LATER})
    assert (found["number"], found["all"], found["cohorts"]) == (3, 9, {"train": (2, 6), "test": (1, 3)})
    assert [(one["reason"], one["number"]) for one in found["reasons"]] == [("mask lost", 2), ("<b>$x$ & y</b>", 1)]
    assert exclusions(FLOW) is None and exclusions(FLOW | {"excluded_by_investigators": []}) is None
    external = exclusions(FLOW | {"train": 0, "excluded_by_investigators": [LATER[1]]})
    assert external["cohorts"] == {"test": (1, 3)}


def test_the_report_names_them_with_the_reason_and_warns(tmp_path_factory, tmp_path):
    study = finish(tmp_path_factory.mktemp("study"))
    flow = json.loads((study.R / "cohort/flow.json").read_text())
    changed = tmp_path / "flow.json"
    changed.write_text(json.dumps(flow | {"excluded_by_investigators": LATER, "eligible": flow["eligible"] + 3}))
    text = report(study, tmp_path, demo_config(), flow_path=changed)
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    reason = "&lt;b&gt;$x$ &amp; y&lt;/b&gt;"
    assert "<b>$x$" not in text and reason in text
    everybody = flow["train"] + flow["test"] + 3
    where = f"2 of {flow['train'] + 2} in the training cohort, 1 of {flow['test'] + 1} in the test cohort"
    assert (
        f"Of {everybody} patients who met all criteria, 3 were excluded by the investigators afterwards ({where})"
        in words
    )
    assert "leaving them out biases every result" in words
    assert f"the investigators excluded 3 afterwards: mask lost (P3, P2); {reason} (P1)." in words  # methods
    assert re.search(rf"Table S1\..*mask lost 1 1 P3, P2 {re.escape(reason)} 1 0 P1", words)
    assert words.count("3 excluded by the investigators, Table S1") == 5  # TRIPOD 11 and 20, CLAIM 8, 12 and 35
    assert "had excluded 3 of" in (tmp_path / "model_card.html").read_text()
    plain = report(study, tmp_path, demo_config())
    assert "investigators" not in plain and "Table S1" in plain


# --- one study, brought to its end ---------------------------------------------------------------------------------


class Overnight(Users):
    """A study with a table of its own, however slow the machine."""

    def run(self, *arguments):
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=3000,
        )

    def jobs(self):
        said = self.run("--dry-run", "--quiet", "host")
        assert said.returncode == 0, said.stdout + said.stderr
        counts = collections.Counter(re.findall(r"^(?:local)?rule (\w+):", said.stdout + said.stderr, re.M))
        counts.pop("all", None)
        return dict(counts)


# Four and three of them are enough for a study: two with expansion, and one.
TRAINING, TESTING = ["D001", "D003", "D006", "D007", "D008"], ["D009", "D010", "D011", "D014"]


@pytest.fixture
def study(tmp_path):
    """A table of nine patients, whose scans were made already; nothing has run."""
    study = Overnight(tmp_path / "a study")
    config = {**CONFIG, "augment": {"copies": 2}, "training": {**CONFIG["training"], "epochs": 1}}
    config |= {"phantom": {"train": 8, "test": 6, "excluded_each": 0, "matrix": 96}}
    (study.folder / "small.yaml").write_text(yaml.safe_dump(config))
    made = study.run(*(f"results/small/phantom/{patient}/truth" for patient in (*TRAINING, *TESTING)))
    assert made.returncode == 0, made.stderr
    header, *rows = (study.results / "phantom/cohort.tsv").read_text().splitlines()
    rows = [row for row in rows if row.split("\t")[0] in (*TRAINING, *TESTING)]
    study.table.write_text("\n".join([header, *rows]) + "\n")
    config = {key: value for key, value in config.items() if key != "phantom"} | {"cohort_table": "users.tsv"}
    (study.folder / "small.yaml").write_text(yaml.safe_dump(config))
    return study


def test_two_bad_patients_stop_no_other_and_the_report_names_who_was_excluded(study):
    """Two fail in two stages; both are excluded and the study ends; one is mended and comes back."""
    train, test = "D003", "D010"
    mask = study.folder / study.cell(train, "baseline_mask")
    whole = mask.read_bytes()
    array, affine = read_volume(mask)
    write_volume(mask, array * 0, affine)
    slices = (path for path in (study.folder / study.cell(test, "baseline_ct")).rglob("*") if path.is_file())
    broken = sorted(path for path in slices if path.stat().st_size > 5000)[5]
    broken.write_bytes(broken.read_bytes()[:3000])

    run = study.run()
    assert run.returncode == 1 and "Traceback" not in run.stderr
    table = study.results / "qc/failures.tsv"
    failed = [(row["patient"], row["stage"]) for row in read_table(table, as_text=True)]
    assert failed == [(None, "check"), (train, "measure"), (test, "convert baseline")]
    told = run.stderr[run.stderr.index("what is wrong") :]
    assert re.search(rf"^  {train} +measure +\S.*  Draw the haematoma", told, re.M), told
    assert re.search(rf"^  {test} +convert baseline +\S.*  Copy the scan again", told, re.M), told
    assert "haemex: 2 patients and the job check failed; which and why: results/small/qc/index.html" in told
    assert "the column `excluded` of users.tsv" in " ".join(told.split())
    others = {*TRAINING, *TESTING} - {train, test}
    for stage in ("markers", "inspect"):
        assert {path.stem for path in study.results.glob(f"{stage}/*.json")} == others
    assert {path.stem for path in study.results.glob("augment/*.json")} == set(TRAINING) - {train}
    assert not (study.results / "cohort/cohort.tsv").exists(), "nothing rests on fewer patients"
    assert "failures.tsv" in (study.results / "qc/index.html").read_text()

    prepared = {path: path.stat().st_mtime_ns for path in study.results.glob("resample/*")}
    study.write(train, "excluded", "mask <lost>")
    study.write(test, "excluded", "series incomplete")
    run = study.run()
    assert run.returncode == 0, run.stderr
    assert not table.exists() and not (study.results / ".unfinished").exists()
    assert {path: path.stat().st_mtime_ns for path in prepared} == prepared
    report = (study.results / "report/report.html").read_text()
    assert f"mask &lt;lost&gt; ({train}); series incomplete ({test})." in report
    flow = json.loads((study.results / "table1/flow.json").read_text())
    later = [(one["patient"], one["cohort"]) for one in flow["excluded_by_investigators"]]
    assert later == [(train, "train"), (test, "test")]
    assert flow["eligible"] == 9 and (flow["train"], flow["test"]) == (4, 3)
    assert study.jobs() == {}
    look = {"check": 1, "table1": 1, "comparators": 1, "evaluate": 1, "cards": 1, "report": 1}
    undo = study.write(train, "excluded", "mask not found")
    assert study.jobs() == look, "another wording trains nothing"
    undo()

    restore = study.edit("haemex/cards.py", "\n    announce(f", '\n    raise KeyError("Quisling")\n    announce(f')
    run = study.run()
    assert run.returncode == 1 and "haemex: the job cards failed; which and why: " in run.stderr
    (row,) = read_table(table, as_text=True)
    assert row["patient"] is None and row["problem"] == "KeyError, a fault of haemex"
    restore()
    assert study.jobs() == {"cards": 1, "report": 1}, "what failed is owed, though the report of an earlier run stands"

    mask.write_bytes(whole)
    study.write(train, "excluded", "")
    assert study.jobs() == {
        **look, **dict.fromkeys(("measure", "markers", "resample", "inspect", "qc", "augment", "cohort"), 1),
        **{"train": 2, "select": 1, "final": 1, "predict": 1},
    }  # fmt: skip
