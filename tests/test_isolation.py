"""What a whole run leaves behind beside its results, what its jobs take, and that their order changes nothing."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml
from test_workflow import CONFIG, Project

from haemex import disk_space
from haemex.provenance import ROOT
from haemex.tables import read_table

TINY = CONFIG | {
    "phantom": {"train": 8, "test": 6, "excluded_each": 0, "matrix": 64},
    "augment": {"copies": 2},
    "training": CONFIG["training"] | {"epochs": 1},
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
}
# As if on a machine with many cores: each of these is what a library would start without a limit.
MANY = {
    name: "16"
    for name in (
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    )
}  # fmt: skip
WAITING = {"check": 16, "train": 2, "final": 2}  # threads that wait for files; see haemex/check.py, haemex/dataset.py
SMALL = ["--configfile", "small.yaml"]
OUTER = """
configfile: "config.yaml"
configfile: "small.yaml"


module bleeding:
    snakefile:
        {snakefile!r}
    config:
        config


use rule * from bleeding as bleeding_*


rule mine:
    default_target: True
    input:
        rules.bleeding_all.input,
"""


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks/memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watched(Project):
    """A project with a home and a folder for temporary files of its own, and a meter in every job."""

    def __init__(self, folder, memory, config):
        folder.mkdir()
        super().__init__(folder)
        (folder / "small.yaml").write_text(yaml.safe_dump(config))
        self.outside = folder.with_name(f"{folder.name} outside")
        for name in ("home", "tmp"):
            (self.outside / name).mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "compileall", "-q", "haemex"], cwd=folder, check=True)  # `make compile`
        self.environment_of_jobs = memory.meter(self.outside / "meter", super().environment() | MANY)

    def environment(self):
        kept = {name: value for name, value in self.environment_of_jobs.items() if not name.startswith(("XDG_", "MPL"))}
        return kept | {"HOME": str(self.outside / "home"), "TMPDIR": str(self.outside / "tmp")}

    def run(self, *arguments):
        """Run Snakemake as long as it takes: one job at a time on a busy machine."""
        command = [sys.executable, "-m", "snakemake", *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True)

    def state(self):
        """Every file but results and what Snakemake keeps, with size and time."""
        return {
            path.relative_to(self.folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.relative_to(self.folder).parts[0] not in ("results", ".snakemake")
        }

    def strays(self, name):
        """List the files in the home, or in the folder for temporary files."""
        folder = self.outside / name
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory, memory):
    """A tiny study, one job at a time."""
    project = Watched(tmp_path_factory.mktemp("isolation") / "alone", memory, TINY)
    project.before = project.state()
    run = project.run("--cores", 1, *SMALL)
    assert run.returncode == 0, run.stdout + run.stderr
    project.said = run.stdout + run.stderr
    project.measured = memory.read_meter(project.outside / "meter")
    return project


def test_nothing_is_written_but_results(alone):
    assert alone.state() == alone.before
    assert alone.strays("tmp") == []
    assert [name for name in alone.strays("home") if not name.startswith(".cache/snakemake/")] == []


def test_every_job_keeps_to_its_threads(alone):
    import torch

    on_gpu = ("train", "final", "predict") if torch.cuda.is_available() else ()  # CUDA has threads of its own
    for job in alone.measured:
        if job["rule"] not in on_gpu:
            assert job["threads_seen"] <= job["threads"] + WAITING.get(job["rule"], 0), job
        if job["rule"] not in WAITING:
            assert job["cpu_s"] <= 1.2 * job["threads"] * job["wall_s"] + 0.5, job


def test_every_job_keeps_to_its_memory(alone, memory):
    rows = memory.by_rule(alone.measured)
    assert {row["rule"] for row in rows} >= {"phantom", "convert", "augment", "train", "predict", "report"}
    assert memory.over(rows) == []


@pytest.mark.slow
def test_every_job_keeps_to_its_memory_with_scans_of_the_papers_size(tmp_path, memory):
    """512 x 512 x 27 to 34 on the paper's grid, ten copies, a small network; the paper's: tests/test_memory.py."""
    command = [sys.executable, ROOT / "benchmarks/memory.py", "--out", tmp_path / "out", "--cores", "2"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["rule"]: row for row in read_table(tmp_path / "out/memory.tsv")}
    assert float(rows["phantom"]["peak_mb"]) > 300 and float(rows["augment"]["peak_mb"]) > 200
    copies = sorted((tmp_path / "out/results/memory/augment").glob("*_ct.nii.gz"))
    size = sum(path.stat().st_size for path in copies) / (10 * len(copies))
    assert 215 * 10 * size <= 4e9, "the copies of the paper's cohort"
    said = re.search(r"haemex: disk: about ([\d.]+) MB", run.stdout + run.stderr)
    there = disk_space.used_bytes(tmp_path / "out/results/memory", leave_out=("phantom",))
    assert there <= 1e6 * float(said[1]) <= 1.6 * there


def test_the_check_says_how_much_disk_and_it_is_so(alone):
    """What is there in the end is what was said; a tiny study is mostly figures."""
    said = re.search(r"haemex: disk: about ([\d.]+) ([GM]B)", alone.said)
    assert said, alone.said
    promised = float(said[1]) * {"GB": 1e9, "MB": 1e6}[said[2]]
    there = disk_space.used_bytes(alone.results, leave_out=("phantom",))
    assert there <= promised <= 4 * there


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "more"), [("8", ["--resources", "gpu=8"]), ("2", ["--scheduler", "ilp"])])
def test_the_order_of_jobs_changes_no_result(alone, tmp_path, memory, cores, more):
    """Side by side and in another order, in another folder, and with all deleted that the config lets go."""
    storage = {"keep_copies": False, "keep_converted": False}
    other = Watched(tmp_path / "other", memory, TINY | {"storage": storage})
    shutil.copytree(alone.results / "phantom", other.results / "phantom")  # half of all the work, and tested elsewhere
    # What is asked for by name stays, with all that its job writes: not the follow-up scans, which nothing else reads.
    targets = [name for name in alone.digests() if re.match(r"(?!phantom).*(?<!followup)\.json$", name)]
    first = [f"results/small/{name}" for name in random.Random(int(cores)).sample(targets, 12)]
    run = other.run("--cores", cores, *more, "--prioritize", *first, *SMALL)
    assert run.returncode == 0, run.stdout + run.stderr
    kept, everything = other.digests(), alone.digests()
    gone = {name for name in everything if re.match(r"(augment|convert)/.*\.nii\.gz$", name)}
    assert len(gone) == 2 * 8 + 2 * 14
    assert kept == {name: digest for name, digest in everything.items() if name not in gone}
    # The other scheduler's solver leaves its problem there where a busy machine does not give it its time.
    assert [name for name in other.strays("tmp") if "-pulp." not in name] == []
    again = other.run("--cores", cores, "--dry-run", *SMALL)
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout + again.stderr


def test_another_workflow_reports_what_its_module_made(alone, tmp_path):
    shutil.copytree(alone.results, tmp_path / "results/small")
    for name in ("small.yaml", "config/config.yaml"):
        shutil.copy(alone.folder / name, tmp_path)
    (tmp_path / "Snakefile").write_text(OUTER.format(snakefile=str(alone.folder / "Snakefile")))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-triggers", "mtime"]
    for arguments in (["--dry-run"], ["--report", "report.zip"]):
        run = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=alone.environment(), capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert arguments[0] == "--report" or "Nothing to be done" in run.stdout + run.stderr, run.stdout + run.stderr
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        held = {archive.read(name) for name in archive.namelist()}
    assert (alone.results / "report/report.html").read_bytes() in held


ONE_THREAD = """
import os, sys, threading

import numpy as np

from haemex.augment import apply_transform
from haemex.volume import read_mask

seen, done = [0], threading.Event()


def count():
    while not done.is_set():
        seen[0] = max(seen[0], len(os.listdir("/proc/self/task")) - 1)


counting = threading.Thread(target=count)
counting.start()
still = {"scaling": [1.0] * 3, "rotation_deg": [1.0, 2.0, 3.0], "translation_mm": [0.0] * 3}
for _ in range(5):
    apply_transform(np.ones((32, 64, 64), np.float32), np.eye(4), still)
    read_mask(sys.argv[1])
done.set()
counting.join()
print(seen[0])
"""


def test_itk_starts_no_thread_per_core(tmp_path):
    """One filter was told to use one thread; what made and copied its images started one per core each time."""
    import SimpleITK

    path = tmp_path / "mask.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((32, 64, 64), np.uint8)), str(path))
    run = subprocess.run(
        [sys.executable, "-c", ONE_THREAD, str(path)],
        env=os.environ | MANY | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) == 1, run.stdout
