"""What keeps the cost of orchestration low: no job imports what it does not need, and nothing grows with the square.

benchmarks/orchestration.py measures the cost itself; nothing is timed here.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from haemex.files import write_json
from haemex.output_folders import MAPS, drop_incomplete
from haemex.provenance import ROOT
from haemex.tables import write_table

# Each takes 0.3 to 3 s of CPU time to import, in every job of every patient.
HEAVY = ("torch", "pandas", "matplotlib", "sklearn", "statsmodels", "nibabel", "nilearn", "jinja2", "docx", "onnx")
PER_PATIENT = ("convert", "measure", "markers", "skullstrip", "resample", "inspect", "augment")

IMPORTS = """
import ast, json, sys
for path in sys.argv[1:]:
    tree = ast.parse(open(path, encoding="utf-8").read())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, path, "exec"))
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""

# Builds the DAG as a dry run does, and counts.
DAG = """
import collections, contextlib, io, json, os, sys
import haemex.study
from snakemake.cli import main
from snakemake.dag import DAG

dags, looked, parsed = [], collections.Counter(), []
initialise, stat, parse = DAG.__init__, os.stat, haemex.study.parse_cohort_table

def remember(self, *arguments, **settings):
    dags.append(self)
    initialise(self, *arguments, **settings)

def counted(path, *arguments, **settings):
    looked[str(path)] += 1
    return stat(path, *arguments, **settings)

DAG.__init__, os.stat = remember, counted
haemex.study.parse_cohort_table = lambda *a: parsed.append(a) or parse(*a)
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--dry-run", "--cores", "2", "--quiet", "all", "--configfile", "study.yaml"])
jobs = [job for job in dags[-1].jobs]
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "parsed": len(parsed),
    "looks_at_slices": [n for path, n in looked.items() if path.startswith("data/") and path.count("/") == 3],
    "jobs": collections.Counter(job.rule.name for job in jobs),
    "most_outputs": max((len(job.output), job.rule.name) for job in jobs),
    "pairs": sum(len(job.output) * len(job.input) for job in jobs),
}))
"""


def run(code, *arguments, cwd=ROOT):
    """Run Python code in a process of its own; return the JSON that it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_job_of_a_patient_imports_what_is_heavy_and_not_needed():
    imported = run(IMPORTS, *(str(ROOT / f"workflow/scripts/{rule}.py") for rule in PER_PATIENT))
    assert {"numpy", "scipy"} <= set(imported)
    assert not set(imported) & set(HEAVY)


@pytest.mark.parametrize("rule", ["markers", "inspect", "phantom"])
def test_what_needs_no_dicom_does_not_import_it(rule):
    imported = run(IMPORTS, str(ROOT / f"workflow/scripts/{rule}.py"))
    assert not set(imported) & {"pydicom", "SimpleITK"}


@pytest.fixture(scope="module")
def dags(tmp_path_factory):
    """What building the DAG of a study of 18 and of 36 rows takes, and the numbers of eligible patients."""
    spec = importlib.util.spec_from_file_location("orchestration", ROOT / "benchmarks/orchestration.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = []
    for rows in (18, 36):
        folder = tmp_path_factory.mktemp(f"rows{rows}")
        eligible, training = benchmark.lay_out(folder, rows)
        found.append((len(eligible), len(training), run(DAG, cwd=folder)))
    return found


def test_starting_snakemake_on_a_users_study_imports_no_heavy_library(dags):
    own = {"pandas", "jinja2", "PIL"}  # Snakemake's
    for _, _, dag in dags:
        assert not set(dag["modules"]) & ({*HEAVY, "scipy", "skimage", "SimpleITK", "pydicom"} - own)


def test_the_table_is_parsed_once_and_every_slice_looked_at_once(dags):
    for eligible, _, dag in dags:
        assert dag["parsed"] == 1
        assert len(dag["looks_at_slices"]) >= eligible * 2 * 30, "the scans' folders were not listed at all"
        assert set(dag["looks_at_slices"]) == {1}


def test_a_patient_has_seven_jobs_and_one_more_to_train_on(dags):
    for eligible, training, dag in dags:
        jobs = dag["jobs"]
        assert {rule: jobs[rule] for rule in PER_PATIENT} == {
            **dict.fromkeys(PER_PATIENT, eligible), "convert": 2 * eligible, "augment": training,
        }  # fmt: skip
    assert len({sum(dag["jobs"].values()) - sum(dag["jobs"][r] for r in PER_PATIENT) for _, _, dag in dags}) == 1


def test_no_job_has_more_outputs_when_there_are_more_patients(dags):
    """An output per patient in a job with inputs per patient costs the square of their number in every run."""
    (few, _, small), (many, _, large) = dags
    assert many > 1.5 * few
    assert small["most_outputs"] == large["most_outputs"]
    assert large["pairs"] / many < 1.05 * small["pairs"] / few


@pytest.fixture
def results(tmp_path):
    """Maps and pictures of two patients, as `predict` and `cards` leave them."""
    (tmp_path / "predict/maps").mkdir(parents=True)
    (tmp_path / "cards/pictures").mkdir(parents=True)
    rows = [{"patient": "007"}, {"patient": "P2"}]
    write_table(tmp_path / "predict/predictions.tsv", rows, ["patient"])
    write_json(tmp_path / "cards/cards.json", rows)
    for row in rows:
        for name in MAPS:
            (tmp_path / "predict/maps" / name.format(row["patient"])).touch()
        (tmp_path / f"cards/pictures/{row['patient']}.png").touch()
    return tmp_path


def test_whole_folders_stay(results, capsys):
    (results / "cards/pictures/.snakemake_timestamp").touch()
    assert drop_incomplete(results) == []
    assert len(list((results / "predict/maps").iterdir())) == 6
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "folder"),
    [("predict/maps/007_relevance.nii.gz", "predict/maps"), ("cards/pictures/P2.png", "cards/pictures")],
)
def test_a_folder_that_lacks_a_file_is_made_anew(results, lost, folder, capsys):
    (results / lost).unlink()
    assert drop_incomplete(results) == [results / folder]
    assert not (results / folder).exists() and lost in capsys.readouterr().out
    listed = {"predict/maps": results / "predict/predictions.tsv", "cards/pictures": results / "cards/cards.json"}
    assert {name for name, path in listed.items() if not path.exists()} == {folder}, "a run would not ask for it"
    assert drop_incomplete(results) == []


def test_a_folder_that_is_being_filled_is_left_alone(results):
    """The job's list of patients is written last, and Snakemake takes the old one away before the job."""
    (results / "predict/maps/007_grid.nii.gz").unlink()
    (results / "predict/predictions.tsv").unlink()
    assert drop_incomplete(results) == []
