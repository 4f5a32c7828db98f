"""Whole runs of the workflow on synthetic patients, as a user types them."""

import collections
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import yaml
from result_digests import digest_results

from haemex.locks import locked
from haemex.nifti import read_volume, write_volume
from haemex.provenance import ROOT

CONFIG = {
    "study": "small",
    "cohort_table": "results/small/phantom/cohort.tsv",
    "phantom": {"train": 8, "test": 6, "excluded_each": 1, "matrix": 128},
    "resample": {"field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [16, 16, 16]},
    "augment": {"copies": 3},
    "folds": 2,
    "network": {"widths": [2, 3, 4, 5], "convs_per_level": 1},
    "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1.0e-3, "rate_milestones": [1]},
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
    "select": {"collapsed_dice": 0.0},  # two epochs teach such a network nothing
}
AFTER_COHORT = {"train": 2, "select": 1, "final": 1, "predict": 1, "evaluate": 1, "cards": 1, "report": 1}
TRAINING, PATIENTS = 8, 14
INSPECTED = {"inspect": PATIENTS, "qc": 1}


class Project:
    """A copy of the project in a folder of its own, so that tests may edit its code."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("haemex", "workflow", "config", "profiles", "envs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
        self.results = folder / "results/small"

    def command(self, *arguments, config="small.yaml"):
        chosen = ["--configfile", config] if config else []  # last: it takes every word that follows
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, *chosen]

    def environment(self):
        return {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": ""}

    def run(self, *arguments, config="small.yaml"):
        return subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def jobs(self, *arguments, config="small.yaml"):
        """Count the jobs that a run would do now, by rule."""
        dry = self.run(*arguments, "--dry-run", "--quiet", "host", config=config)
        assert dry.returncode == 0, dry.stdout + dry.stderr
        rules = re.findall(r"^(?:local)?rule (\w+):", dry.stdout + dry.stderr, re.M)
        counts = collections.Counter(rules)
        counts.pop("all", None)
        if not counts:
            assert "Nothing to be done" in dry.stdout + dry.stderr
        return dict(counts)

    def edit(self, name, old, new):
        """Edit a file; return what undoes it."""
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new, 1))
        return lambda: path.write_text(text)

    def digests(self):
        return digest_results(self.results)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small study, run once from DICOM to report."""
    project = Project(tmp_path_factory.mktemp("small study"))
    run = project.run()
    assert run.returncode == 0, run.stdout + run.stderr
    project.said = run.stdout + run.stderr
    return project


def test_the_study_ends_with_a_report(project):
    report = (project.results / "report/report.html").read_text()
    assert "<html" in report and "Table 2" in report
    stages = {path.name for path in project.results.iterdir()} - {".lock"}
    assert stages == {
        "phantom", "check", "convert", "measure", "cohort", "table1", "skullstrip", "resample", "inspect", "qc",
        "markers", "augment", "train", "select", "final", "predict", "evaluate", "cards", "report",
    }  # fmt: skip


def test_the_terminal_tells_progress_without_every_jobs_files(project):
    assert f"quality of {PATIENTS} patients" in project.said
    assert "the report: results/small/report/report.html" in project.said
    assert "(100%) done" in project.said and "input:" not in project.said
    assert max(map(len, project.said.splitlines())) < 300


def test_training_says_once_per_job_where_it_runs(project):
    import torch

    if not torch.cuda.is_available():
        assert project.said.count("CPU") >= 1


def test_no_identity_leaves_the_dicom_files(project):
    import pydicom

    first = next(
        path
        for path in sorted((project.results / "phantom").rglob("*"))
        if path.is_file() and b"DICM" in path.read_bytes()[:132]
    )
    header = pydicom.dcmread(first, stop_before_pixels=True)
    secrets = [str(header[name].value) for name in ("InstitutionName", "PatientBirthDate", "AccessionNumber")]
    secrets += [str(header.PatientName).split("^")[0], str(header.StudyInstanceUID), str(header.SeriesInstanceUID)]
    assert all(len(secret) >= 4 for secret in secrets), secrets
    for path in project.results.rglob("*"):
        if path.is_file() and "phantom" not in path.relative_to(project.results).parts:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            for secret in secrets:
                # the table of synthetic patients stands in a folder called phantom, and the report says what they are
                if secret.lower() != "phantom":
                    assert secret.encode() not in content, f"{secret} in {path}"


def test_a_second_run_is_idle(project):
    assert project.jobs() == {}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("haemex/augment.py", '"""', '"""Reworded. '),
        ("haemex/dicom.py", "\n\n\ndef ", "\n\n\n# A new comment.\ndef "),
        ("workflow/scripts/convert.py", '"""', '"""Reworded. '),
        ("haemex/logs.py", "about {duration(left)} left", "{duration(left)} to go"),
        ("config/config.yaml", "# paper, Methods", "# the paper's Methods"),
        ("workflow/rules/train.smk", "# Cross-validation", "# The cross-validation"),
    ],
)
def test_rewording_runs_nothing_again(project, name, old, new):
    undo = project.edit(name, old, new)
    try:
        assert project.jobs() == {}
    finally:
        undo()


def test_touched_files_run_nothing_again(project):
    for name in ("haemex/augment.py", "workflow/scripts/train.py", "config/config.yaml", "Snakefile"):
        (project.folder / name).touch()
    (project.results / "phantom/cohort.tsv").touch()
    masks = sorted(project.results.glob("phantom/*/baseline_mask.nii.gz"))
    masks[0].touch()
    assert project.jobs() == {}


def test_an_edit_in_augment_runs_augment_and_what_follows(project):
    undo = project.edit("haemex/augment.py", "\nimport ", "\nNEW_CONSTANT = 1\nimport ")
    try:
        assert project.jobs() == {"augment": TRAINING, **AFTER_COHORT}
    finally:
        undo()
    assert project.jobs() == {}


def test_an_edit_in_the_report_runs_the_report(project):
    undo = project.edit("haemex/report.py", "\nimport ", "\nNEW_CONSTANT = 1\nimport ")
    try:
        assert project.jobs() == {"report": 1}
    finally:
        undo()


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        (
            {"resample": {"window_hu": [0, 90]}},
            {"resample": PATIENTS, "augment": TRAINING, **INSPECTED, **AFTER_COHORT},
        ),
        ({"training": {"epochs": 3}}, AFTER_COHORT),
        ({"computing": {"memory_gb": 0.1, "checkpoint_minutes": 1.0}}, {}),
        ({"select": {"criterion": "dice"}}, {k: v for k, v in AFTER_COHORT.items() if k != "train"}),
        ({"select": {"calibration": "isotonic"}}, {k: v for k, v in AFTER_COHORT.items() if k != "train"}),
        ({"predict": {"precision": "fp32"}}, {"predict": 1, "evaluate": 1, "cards": 1, "report": 1}),
        (
            {"seed_study": {"candidate": "base", "seeds": [1, 2, 3]}},
            {"seed_study_train": 6, "seed_study": 1, "report": 1},
        ),
        ({"evaluate": {"bat_cut": 2}}, {"evaluate": 1, "cards": 1, "report": 1}),
        (
            {"expansion": {"operator": ">="}},
            {"check": 1, "cohort": 1, "table1": 1, "comparators": 1, **AFTER_COHORT},
        ),
        (
            {"skullstrip": {"seal_gap_mm": 5.0}},
            {"skullstrip": PATIENTS, "resample": PATIENTS, "augment": TRAINING, **INSPECTED, **AFTER_COHORT},
        ),
    ],
)
def test_a_changed_setting_runs_its_stage_and_what_follows(project, changes, jobs):
    merged = {**CONFIG, **{key: {**CONFIG.get(key, {}), **value} for key, value in changes.items()}}
    (project.folder / "changed.yaml").write_text(yaml.safe_dump(merged))
    assert project.jobs(config="changed.yaml") == jobs


def test_a_deleted_intermediate_file_is_rebuilt_alone_byte_identical(project):
    target = next(project.results.glob("resample/*_ct.nii.gz"))
    before = target.read_bytes()
    siblings = {path: path.read_bytes() for path in project.results.glob(f"resample/{target.name[:-10]}*.nii.gz")}
    target.unlink()
    name = target.relative_to(project.folder).as_posix()
    assert project.jobs(name) == {"resample": 1}
    run = project.run(name)
    assert run.returncode == 0, run.stderr
    assert target.read_bytes() == before
    assert {path: path.read_bytes() for path in siblings} == siblings
    assert project.jobs() == {}


@pytest.fixture
def users(tmp_path_factory, project):
    """A copy of the small study as a user has it: a table of their own, and no synthetic patients."""
    users = Users.__new__(Users)
    users.folder = tmp_path_factory.mktemp("users") / "study"
    shutil.copytree(project.folder, users.folder)
    users.results = users.folder / "results/small"
    config = {key: value for key, value in CONFIG.items() if key != "phantom"}
    (users.folder / "small.yaml").write_text(yaml.safe_dump({**config, "cohort_table": "users.tsv"}))
    shutil.copy(users.results / "phantom/cohort.tsv", users.table)
    assert users.run("--touch").returncode == 0  # the results are those of this table
    assert users.jobs() == {}
    return users


class Users(Project):
    """A project whose cohort table may be edited."""

    @property
    def table(self):
        return self.folder / "users.tsv"

    @property
    def members(self):
        """Codes of the patients who entered, in order."""
        lines = (self.results / "cohort/cohort.tsv").read_text().splitlines()[1:]
        return sorted(line.split("\t")[0] for line in lines)

    def write(self, patient, column, value):
        """Change one cell of the table, adding the column where it is not there; return what undoes it."""
        before = self.table.read_text()
        header, *rows = (line.split("\t") for line in before.splitlines())
        if column not in header:
            header.append(column)
            rows = [[*row, ""] for row in rows]
        for row in rows:
            if row[header.index("patient")] == patient:
                row[header.index(column)] = value
        self.table.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
        return lambda: self.table.write_text(before)

    def cell(self, patient, column):
        header, *rows = (line.split("\t") for line in self.table.read_text().splitlines())
        return next(row[header.index(column)] for row in rows if row[header.index("patient")] == patient)


def test_a_changed_clinical_value_trains_nothing(users):
    patient = users.members[0]
    undo = users.write(patient, "nihss", "41")
    assert users.jobs() == {"check": 1, "table1": 1, "comparators": 1, "evaluate": 1, "cards": 1, "report": 1}
    undo()
    users.write(patient, "onset_to_ct_h", "1.1")
    assert users.jobs() == {"check": 1, "markers": 1, "cohort": 1, "table1": 1, "comparators": 1, **AFTER_COHORT}


def test_a_pinned_series_converts_its_scan_alone(users):
    patient = users.members[0]
    users.write(patient, "baseline_series", "2")
    jobs = users.jobs()
    assert {rule: jobs[rule] for rule in ("check", "convert", "measure", "skullstrip", "resample", "inspect")} == {
        "check": 1, "convert": 1, "measure": 1, "skullstrip": 1, "resample": 1, "inspect": 1,
    }  # fmt: skip


def test_a_faulty_table_is_checked_with_everything_else_and_nothing_more_is_done(users):
    """Two faults of the table and an empty mask: one run of the check names all three, and leaves table and page."""
    one, two, three = users.members[:3]
    users.write(one, "age_years", "670")
    users.write(two, "sex", "male")
    mask = users.folder / users.cell(three, "baseline_mask")
    array, affine = read_volume(mask)
    write_volume(mask, array * 0, affine)
    assert users.jobs() == {"check": 1}
    before = users.digests()
    run = users.run()
    assert run.returncode != 0 and "Traceback" not in run.stdout + run.stderr
    problems = (users.results / "check/problems.tsv").read_text()
    page = (users.results / "check/index.html").read_text()
    for patient, word in ((one, "670"), (two, "male"), (three, "empty")):
        assert any(patient in line and word in line for line in problems.splitlines()), problems
        assert patient in page and word in page
    assert not (users.results / "check/verdict.json").exists()
    after = users.digests()
    assert {name for name in before if after.get(name) != before[name]} <= {
        "check/verdict.json", "check/problems.tsv", "check/index.html", f"phantom/{three}/baseline_mask.nii.gz",
    }  # fmt: skip


@pytest.mark.slow  # tests/test_failures.py has more of this
def test_a_failed_patient_stands_on_the_quality_page_until_mended(users):
    """One patient's CT loses half a slice: the page names him; mended, or taken out, the page is whole again."""
    patient = users.members[1]
    lost = sorted(path for path in (users.folder / users.cell(patient, "baseline_ct")).rglob("*") if path.is_file())
    broken = lost[len(lost) // 2]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    run = users.run("qc")
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines() if line.startswith("haemex: ") and f"patient {patient}" in line]
    assert said, run.stderr
    page = (users.results / "qc/index.html").read_text()
    assert "failed" in page and patient in page and broken.name in page
    assert all(other in page for other in users.members)
    again = users.run("qc")
    assert again.returncode != 0, "typed again unmended it fails again"
    undo = users.write(patient, "poor_image_quality", "1")
    assert users.run("qc").returncode == 0
    rows = (users.results / "qc/qc.tsv").read_text()
    assert f"\n{patient}\t" not in rows and rows.count("\n") == PATIENTS
    undo()
    broken.write_bytes(content)
    assert users.run("qc").returncode == 0
    assert f"\n{patient}\t" in (users.results / "qc/qc.tsv").read_text()
    assert users.jobs("qc") == {}


def test_a_planted_capture_and_its_names_leave_no_trace(users):
    """A screen with burned-in text, a dose report, names in the series' own tags: nothing of it is in any output."""
    import pydicom
    from PIL import Image, ImageDraw, ImageFont
    from pydicom.dataset import Dataset

    patient = users.members[2]
    folder = users.folder / users.cell(patient, "baseline_ct")
    secrets = {
        "PatientName": "Quisling^Ottoline", "PatientBirthDate": "19310728", "AccessionNumber": "A66077345",
        "InstitutionName": "Saint Swithin Infirmary", "OperatorsName": "Grimsdyke^Anthony",
        "SeriesDescription": "Ottoline Quisling soft", "ImageComments": "brother of Sparrow, Simon",
        "PatientID": "SW-998127364-Q",
    }  # fmt: skip
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and pydicom.misc.is_dicom(path))
    for path in paths:
        header = pydicom.dcmread(path)
        for keyword, value in secrets.items():
            setattr(header, keyword, value)
        header.save_as(path)
    image = Image.new("L", (header.Columns, header.Rows))
    ImageDraw.Draw(image).text((5, 5), "QUISLING Ottoline 28.07.1931", 255, ImageFont.load_default(16))
    burned_in = np.asarray(image)
    assert np.unique(burned_in).size > 1
    capture = pydicom.dcmread(paths[0])
    capture.SOPClassUID = capture.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    capture.SOPInstanceUID = capture.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    capture.SeriesInstanceUID, capture.SeriesNumber, capture.BurnedInAnnotation = "2.25.2", 999, "YES"
    capture.PixelData = burned_in.astype("<u2").tobytes()
    capture.save_as(folder / "capture")
    report = Dataset()
    report.update({element.tag: element for element in capture if element.keyword in secrets})
    report.file_meta = capture.file_meta
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = pydicom.uid.XRayRadiationDoseSRStorage
    report.Modality, report.SeriesInstanceUID, report.SOPInstanceUID = "SR", "2.25.3", "2.25.4"
    report.save_as(folder / "report", enforce_file_format=True)

    run = users.run("check", "qc")
    assert run.returncode == 0, run.stderr
    series = json.loads((users.results / f"convert/{patient}_baseline.json").read_text())["series"]
    assert {one["number"] for one in series["others"]} >= {999}
    words = {word for value in secrets.values() for word in re.findall(r"[A-Za-z0-9]{4,}", value)} - {"soft", "brother"}
    looked_at = [path for path in users.results.rglob("*") if path.is_file() and f"phantom/{patient}" not in str(path)]
    assert any(path.name == f"{patient}_baseline.log" for path in looked_at)
    texts = {
        path: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in looked_at
    }
    texts[run] = (run.stdout + run.stderr).encode()
    for place, text in texts.items():
        text = re.sub(rb"base64,[A-Za-z0-9+/=]+", b"", text)  # pictures hold any four letters by chance
        found = [word for word in words if word.lower().encode() in text.lower()]
        assert not found, f"{found} in {place}"
    hu, _ = read_volume(users.results / f"convert/{patient}_baseline.nii.gz")
    assert not any(np.array_equal(plane > plane.min(), burned_in > 0) for plane in hu)


def test_a_changed_mask_runs_its_patient_and_the_cohort_stages(project):
    members = (project.results / "cohort/cohort.tsv").read_text().splitlines()[1:]
    patient = next(line.split("\t")[0] for line in members if line.split("\t")[1] == "train")
    mask = project.results / f"phantom/{patient}/baseline_mask.nii.gz"
    original = mask.read_bytes()
    array, affine = read_volume(mask)
    z, y, x = (int(values[0]) for values in array.nonzero())
    array[z, y, x] = 0
    write_volume(mask, array, affine)
    try:
        assert project.jobs() == {
            "check": 1, "measure": 1, "markers": 1, "cohort": 1, "table1": 1, "resample": 1, "inspect": 1, "qc": 1,
            "comparators": 1, "augment": 1, **AFTER_COHORT,
        }  # fmt: skip
    finally:
        mask.write_bytes(original)
    assert project.jobs() == {}


@pytest.mark.slow  # tests/test_failures.py has more of this, in a smaller study
def test_a_bad_patient_is_named_and_stops_no_other(tmp_path_factory, project):
    """An empty mask: its patient is refused by name, all other patients are measured."""
    patients = sorted(path.name for path in (project.results / "phantom").iterdir() if path.is_dir())
    bad = patients[3]
    mask = project.results / f"phantom/{bad}/baseline_mask.nii.gz"
    original = mask.read_bytes()
    array, affine = read_volume(mask)
    kept = {path: path.read_bytes() for path in project.results.glob("measure/*") if path.suffix in (".json", ".gz")}
    for path in kept:
        path.unlink()
    write_volume(mask, array * 0, affine)
    try:
        run = project.run(*(path.relative_to(project.folder).as_posix() for path in kept if path.suffix == ".json"))
        assert run.returncode != 0
        lines = [line for line in run.stderr.splitlines() if line.startswith("haemex: ")]
        assert len(lines) == 2 and f"patient {bad}" in lines[0] and "baseline_mask.nii.gz" in lines[0], run.stderr
        assert "1 patient failed" in lines[1] and "qc/index.html" in lines[1]
        made = {path.stem for path in project.results.glob("measure/*.json")}
        assert made == set(patients) - {bad}
        checked = project.run("check")
        assert checked.returncode != 0 and bad in checked.stdout + checked.stderr
    finally:
        mask.write_bytes(original)
    run = project.run()
    assert run.returncode == 0, run.stderr
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.slow  # tests/test_faults.py kills a smaller study, more often
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path_factory, project):
    """Killed with SIGKILL twice, then completed, in a folder of another name: the bytes of the undisturbed run.

    The first time all processes are killed, the second time Snakemake alone, whose jobs live on. The same command is
    typed again, nothing else.
    """
    other = Project(tmp_path_factory.mktemp("killed"))
    for wait_for, kill in (
        ("results/small/resample/*_ct.nii.gz", os.killpg),
        ("results/small/train/*/*.lock", os.kill),
    ):
        process = subprocess.Popen(
            other.command(), cwd=other.folder, env=other.environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not list(other.folder.glob(wait_for)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, "the run ended before it could be killed"
        kill(process.pid, signal.SIGKILL)
        process.wait()
    run = other.run()
    assert run.returncode == 0, run.stderr
    assert other.digests() == project.digests()


@pytest.mark.slow  # so does tests/test_faults.py
def test_two_runs_of_one_study_do_not_race(project):
    with locked(project.results / ".lock", "the study small"):
        run = project.run("--forcerun", "table1")
        said = run.stdout + run.stderr
        assert run.returncode == 1 and "Traceback" not in said
        assert f"haemex: results/small/.lock: process {os.getpid()} works on the study small. Wait" in said
        assert project.jobs("--forcerun", "table1")["table1"] == 1  # a dry run looks on
    assert project.run("--forcerun", "table1").returncode == 0


def test_without_a_cohort_table_one_sentence(project):
    run = project.run(config=None)
    said = run.stdout + run.stderr
    ours = [line for line in said.splitlines() if not line.startswith("Using workflow specific profile")]
    assert run.returncode == 1
    assert len(ours) == 1 and "make demo" in ours[0] and "config/README.md" in ours[0], said


def test_a_misspelt_key_one_sentence(project):
    run = project.run("--config", "epocs=3")
    said = (run.stdout + run.stderr).strip()
    assert run.returncode == 1 and "unknown key `epocs`" in said and "Traceback" not in said, said


def test_trainings_run_one_at_a_time_by_default(project):
    """Two cores and two folds: without the limit of the default profile both trainings would start at once."""
    started = r"^haemex: (train|final|predict)\b.* copies, on |^haemex: (predict): .* on "
    events = re.findall(rf"{started}|\(Rule: (train|final|predict)\)", project.said, re.M)
    kinds = ["start" if start or predicts else "end" for start, predicts, _ in events]
    assert kinds == ["start", "end"] * 4


def test_a_new_patient_goes_through_the_same_stages_byte_for_byte(project):
    """`haemex predict` on one patient's export writes what the study's own stages wrote of that patient."""
    members = [line.split("\t") for line in (project.results / "cohort/cohort.tsv").read_text().splitlines()[1:]]
    patient = next(row[0] for row in members if row[1] == "test")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "haemex", "predict", f"results/small/phantom/{patient}/baseline"),
            *("--model", "results/small/final/model", "--output", "one", "--patient", patient),
        ],
        cwd=project.folder, env=project.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 3), run.stderr
    made = project.folder / "one/stages"
    compared = 0
    for path in sorted(made.rglob("*")):
        name = path.relative_to(made).as_posix()
        # Without a reader's mask, markers and the haematoma's place in the field of view are the network's.
        if (
            path.is_file()
            and not name.startswith(("markers/", "predict/predictions"))
            and name != f"resample/{patient}.json"
        ):
            assert path.read_bytes() == (project.results / name).read_bytes(), name
            compared += 1
    assert compared == 9
    rows = [
        line.split("\t")
        for table in (made / "predict/predictions.tsv", project.results / "predict/predictions.tsv")
        for line in table.read_text().splitlines()
        if line.startswith(f"{patient}\t")
    ]
    assert rows[0][1] == "new" and rows[1][1] == "test" and rows[0][2:] == rows[1][2:]


def test_a_list_of_new_patients_is_predicted_and_a_bad_one_stops_no_other(project):
    patients = sorted(path.name for path in (project.results / "phantom").iterdir() if path.is_dir())[:2]
    table = project.folder / "new.tsv"
    rows = [f"{patient}\tresults/small/phantom/{patient}/baseline\t1.5" for patient in patients]
    table.write_text("\n".join(["patient\tct\tonset_to_ct_h", *rows, "N9\tnowhere\t"]) + "\n")
    asked = ("--config", "new_patients=new.tsv", "model=results/small/final/model", "study=new")
    run = project.run(*asked, config=None)
    said = [line for line in run.stderr.splitlines() if line.startswith("haemex: patient")]
    assert run.returncode != 0 and len(said) == 1 and "N9" in said[0] and "nowhere" in said[0], run.stderr
    table.write_text("\n".join(["patient\tct\tonset_to_ct_h", *rows]) + "\n")
    assert project.jobs(*asked, config=None) == {"new_patients": 1}
    run = project.run(*asked, config=None)
    assert run.returncode == 0, run.stderr
    page = (project.folder / "results/new/new_patients/index.html").read_text()
    for patient in patients:
        assert f'href="../new_patient/{patient}/prediction.html"' in page
        assert (project.folder / f"results/new/new_patient/{patient}/prediction.html").is_file()
    assert project.jobs(*asked, config=None) == {}
    table.write_text("patient\tct\tonset\nJane Doe\tnowhere\t1\n")
    refused = project.run(*asked, config=None)
    said = refused.stderr + refused.stdout
    assert refused.returncode != 0 and "Traceback" not in said
    assert "unknown column `onset`" in said and "letters and digits" in said and "Jane" not in said


def test_snakemakes_own_report(project):
    run = project.run("--report", "report.zip")
    assert run.returncode == 0, run.stderr
    names = zipfile.ZipFile(project.folder / "report.zip").namelist()
    assert {"report.html", "tables.docx", "model_card.html"} <= {name.rpartition("/")[2] for name in names}
