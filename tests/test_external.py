"""A locked model evaluated at a second, synthetic centre, as a user types it: nothing is trained, leaks are refused."""

import hashlib
import json
import shutil

import pytest
import yaml
from test_workflow import CONFIG, Project

from haemex.evaluation import EVALUATION_FILES
from haemex.figures import FIGURES
from haemex.tables import read_table

pytestmark = pytest.mark.slow

PATIENTS = 12
EXTERNAL = {
    "study": "second",
    "seed": 2022,
    "cohort_table": "results/second/phantom/cohort.tsv",
    "model": "results/small/final/model",
    "phantom": {"train": 0, "test": PATIENTS, "excluded_each": 1, "matrix": 128, "centre": "second"},
    "cohorts": {"train": None, "test": ["2018-09-01", "2019-10-31"]},
    "resample": CONFIG["resample"],
}
STAGES = {
    "phantom", "check", "convert", "measure", "markers", "cohort", "table1", "skullstrip", "resample", "inspect", "qc",
    "predict", "evaluate", "cards", "report",
}  # fmt: skip


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def centre(tmp_path_factory):
    """A first study up to its model bundle, and the evaluation of that bundle at the second centre."""
    centre = Project(tmp_path_factory.mktemp("second centre"))
    bundle = centre.results / "final/model"
    made = centre.run(*(f"results/small/final/model/{name}.json" for name in ("model", "comparators")))
    assert made.returncode == 0, made.stderr
    centre.bundle, before = bundle, digests(bundle)
    (centre.folder / "second.yaml").write_text(yaml.safe_dump(EXTERNAL))
    centre.results = centre.folder / "results/second"
    run = centre.run(config="second.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert digests(bundle) == before, "the bundle under test is left as it is"
    return centre


def test_the_second_centre_trains_nothing_and_ends_with_a_report(centre):
    assert {path.name for path in centre.results.iterdir()} - {".lock"} == STAGES
    written = {path.name for path in (centre.results / "evaluate").iterdir()}
    assert set(EVALUATION_FILES) <= written and "training.png" not in written
    assert {f"{name}.png" for name in FIGURES} - written == {"training.png"}
    assert not (centre.results / "table1/table1.tsv").exists()
    report = (centre.results / "report/report.html").read_text()
    assert "external evaluation" in report.lower() and "Table 2" in report and "recalibrat" in report.lower()
    assert 'id="selection"' not in report
    assert centre.jobs(config="second.yaml") == {}


def test_the_locked_numbers_are_those_of_the_bundle(centre):
    bundle = json.loads((centre.bundle / "model.json").read_text())
    comparators = json.loads((centre.bundle / "comparators.json").read_text())
    summary = json.loads((centre.results / "evaluate/summary.json").read_text())
    assert summary["external"] is True and summary["baselines"] == comparators["baselines"]
    assert summary["operating_point"]["threshold"] == bundle["operating_point"]["threshold"]
    assert summary["cohorts"]["train"] == bundle["cohort"]
    assert summary["cohorts"]["test"]["patients"] == PATIENTS
    predictions = read_table(centre.results / "predict/predictions.tsv")
    assert len(predictions) == PATIENTS and {row["cohort"] for row in predictions} == {"test"}
    assert all(
        row["positive"] == int(row["probability"] >= bundle["operating_point"]["threshold"]) for row in predictions
    )
    scanners = {row["scanner"]: row["train"] for row in read_table(centre.results / "evaluate/acquisition.tsv")}
    known = comparators["reference"]["scanners"]
    assert scanners == {name: known.get(name, 0) for name in scanners} and 0 in scanners.values()
    assert {row["verdict"] for row in read_table(centre.results / "evaluate/leaks.tsv")} == {"passed"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resample": {**CONFIG["resample"], "window_hu": [0, 80]}}, "resample.window_hu is [0, 80], the model was"),
        ({"skullstrip": {"seal_gap_mm": 9.0}}, "skullstrip.seal_gap_mm is 9.0, the model was trained with 4.0"),
        ({"model": "results/nowhere"}, "there is no model bundle here"),
        ({"seed_study": {"candidate": "base", "seeds": [1, 2]}}, "`seed_study` trains"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_one_sentence(centre, changes, said):
    (centre.folder / "other.yaml").write_text(yaml.safe_dump(EXTERNAL | changes))
    run = centre.run(config="other.yaml")
    ours = [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("haemex: ")]
    assert run.returncode == 1 and len(ours) == 1 and said in ours[0], run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_another_format_is_refused(centre):
    shutil.copytree(centre.bundle, centre.folder / "old")
    content = json.loads((centre.folder / "old/model.json").read_text())
    (centre.folder / "old/model.json").write_text(json.dumps(content | {"format": 2}))
    (centre.folder / "other.yaml").write_text(yaml.safe_dump(EXTERNAL | {"model": "old"}))
    run = centre.run(config="other.yaml")
    assert run.returncode == 1 and "the bundle's format is 2, this haemex reads 3" in run.stdout + run.stderr


def test_a_patient_the_model_was_trained_on_is_refused_under_another_name(centre):
    """A training patient of the first study turns up at the second centre, with another code and date."""
    lines = (centre.folder / "results/small/phantom/cohort.tsv").read_text().splitlines()
    theirs = (centre.folder / "results/second/phantom/cohort.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    trained = next(
        row["patient"]
        for row in read_table(centre.folder / "results/small/cohort/cohort.tsv")
        if row["cohort"] == "train"
    )
    row = dict(zip(header, next(line for line in lines if line.startswith(f"{trained}\t")).split("\t"), strict=True))
    row |= {"patient": "STRANGER", "admission_date": "2019-05-01"}
    line = "\t".join(row[name] for name in theirs[0].split("\t"))
    (centre.folder / "users.tsv").write_text("\n".join([*theirs, line]) + "\n")
    config = {key: value for key, value in EXTERNAL.items() if key != "phantom"} | {"cohort_table": "users.tsv"}
    (centre.folder / "users.yaml").write_text(yaml.safe_dump(config))
    run = centre.run(config="users.yaml")
    said = run.stdout + run.stderr
    assert run.returncode != 0 and "Traceback" not in said
    assert "the model was trained on the very scan of patient STRANGER (baseline)" in said
    assert (
        not (centre.results / "report/report.html").exists()
        or "STRANGER" not in (centre.results / "report/report.html").read_text()
    )
