"""The workflow as other people's tools use it: from another folder, as a module, with conda, in a container."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from haemex.provenance import ROOT

TINY = {
    "study": "tiny",
    "cohort_table": "results/tiny/phantom/cohort.tsv",
    "phantom": {"train": 8, "test": 6, "excluded_each": 0, "matrix": 64},
    "resample": {"field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [16, 16, 16]},
    "folds": 2,
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
}
PATIENTS, TRAINING = 14, 8
SCAN = "results/tiny/convert/D001_baseline.json"
# What makes a Snakemake pick up settings of this machine.
PRIVATE = ("SNAKEMAKE_PROFILE", "PYTHONPATH", "XDG_CONFIG_HOME", "PYTHONDONTWRITEBYTECODE")


def snakemake(folder, *arguments, environment=None):
    """Run Snakemake in a folder; return what it said."""
    kept = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *map(str, arguments)],
        cwd=folder,
        env=kept | (environment or {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    return said


def job_counts(said):
    """Read the table of jobs that a dry run prints."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.M)}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A user's folder with a config alone: one scan made and converted by the Snakefile that lies elsewhere."""
    folder = tmp_path_factory.mktemp("a user's folder")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    snakemake(folder, "--snakefile", ROOT / "Snakefile", SCAN, "--configfile", "tiny.yaml")
    return folder


def test_from_another_folder(elsewhere):
    assert (elsewhere / "results/tiny/convert/D001_baseline.nii.gz").exists()
    assert {path.name for path in elsewhere.iterdir()} == {"tiny.yaml", "results", ".snakemake"}
    said = snakemake(elsewhere, "--snakefile", ROOT / "Snakefile", "--dry-run", "--configfile", "tiny.yaml")
    assert re.search("Using workflow specific profile .*profiles/default", said)
    counts = job_counts(said)
    assert counts["convert"] == 2 * PATIENTS - 1 and counts["augment"] == TRAINING and counts["report"] == 1


def test_with_the_folder_named(elsewhere, tmp_path):
    arguments = ["--snakefile", ROOT / "Snakefile", "--directory", elsewhere, "--configfile", elsewhere / "tiny.yaml"]
    assert "Nothing to be done" in snakemake(tmp_path, SCAN, "--dry-run", *arguments)
    assert not list(tmp_path.iterdir())


OUTER = """
import yaml
from snakemake.utils import update_config

mine = yaml.safe_load(open({defaults!r}))
update_config(mine, yaml.safe_load(open("tiny.yaml")))


module bleeding:
    snakefile:
        {snakefile!r}
    config:
        mine
    pathvars:
        results="out/bleeding",


use rule * from bleeding as bleeding_*


use rule convert from bleeding as bleeding_convert with:
    priority: 7


rule mine:
    default_target: True
    input:
        rules.bleeding_report.output.report,
    output:
        "mine.txt",
    shell:
        "wc -c {{input}} > {{output}}"
"""


def test_as_a_module_of_another_workflow(elsewhere, tmp_path):
    """All its rules under other names and in another folder of results, a rule changed; the same bytes."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"cohort_table": "out/bleeding/phantom/cohort.tsv"}))
    text = OUTER.format(defaults=str(ROOT / "config/config.yaml"), snakefile=str(ROOT / "Snakefile"))
    (tmp_path / "Snakefile").write_text(text)
    counts = job_counts(snakemake(tmp_path, "--dry-run"))
    assert counts["bleeding_augment"] == TRAINING and counts["bleeding_report"] == counts["mine"] == 1
    assert all(name.startswith("bleeding_") or name in ("mine", "total") for name in counts)
    target = "out/bleeding/convert/D001_baseline.json"
    snakemake(tmp_path, target)
    for name in ("convert/D001_baseline.json", "convert/D001_baseline.nii.gz", "phantom/D001/truth"):
        here, there = tmp_path / "out/bleeding" / name, elsewhere / "results/tiny" / name
        assert here.is_dir() == there.is_dir()
        if here.is_file():
            assert here.read_bytes() == there.read_bytes()
    assert "Nothing to be done" in snakemake(tmp_path, target, "--dry-run")


CONDA = """#!{python}
# Stands in for conda: it makes an environment that holds the locked packages, and no haemex.
import json, subprocess, sys
from pathlib import Path

base = Path(__file__).resolve().parents[1]
words = sys.argv[1:]
with open(base / "asked.txt", "a") as file:
    print(*words, file=file)
if words[:1] == ["--version"]:
    print("conda 24.9.2")
elif words[:1] == ["info"]:
    about = dict(conda_prefix=str(base), root_prefix=str(base), platform="linux-64", conda_version="24.9.2")
    print(json.dumps(about))
elif words[:1] == ["config"]:
    print(json.dumps(dict(get=dict(channel_priority="strict"))))
elif words[:2] == ["env", "create"]:
    prefix = words[words.index("--prefix") + 1]
    (base / "environment.yaml").write_text(Path(words[words.index("--file") + 1]).read_text())
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    packages = Path(prefix, "lib", f"python{{sys.version_info[0]}}.{{sys.version_info[1]}}", "site-packages")
    (packages / "locked.pth").write_text({packages!r})  # what stands in a .pth there is not looked at
"""


def test_with_conda(elsewhere, tmp_path):
    """Snakemake makes the environment of envs/haemex.yaml and runs the script in it; there haemex is not installed.

    The conda is made up: what conda itself makes of the file is not tested here, but see tests/test_environment.py.
    """
    base = tmp_path / "conda"
    (base / "bin").mkdir(parents=True)
    packages = sysconfig.get_paths()["purelib"]
    (base / "bin/conda").write_text(CONDA.format(python=sys.executable, packages=packages))
    (base / "bin/conda").chmod(0o755)
    (base / "bin/activate").write_text('export PATH="$1/bin:$PATH" CONDA_PREFIX="$1"\n')
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    said = snakemake(
        folder,
        *("--snakefile", ROOT / "Snakefile", SCAN, "--sdm", "conda"),
        *("--configfile", "tiny.yaml"),
        environment={"PATH": f"{base / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )
    assert yaml.safe_load((base / "environment.yaml").read_text()) == yaml.safe_load(
        (ROOT / "envs/haemex.yaml").read_text()
    ), said
    assert (base / "asked.txt").read_text().count("env create") == 1  # one environment for all rules
    made, expected = (one / SCAN for one in (folder, elsewhere))
    assert made.read_bytes() == expected.read_bytes()


# --- the container ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions():
    """The instructions of the Dockerfile, lines joined: (name, rest)."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "envs/Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def brought_along(path):
    """Whether the Dockerfile's list of exceptions lets a file into the image: the last pattern that fits decides."""
    inside = True
    for line in (ROOT / "envs/Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        candidates = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        candidates += parts if "**/" in line else []
        if any(fnmatch.fnmatchcase(one, pattern) and one.count("/") == pattern.count("/") for one in candidates):
            inside = line.startswith("!")
    return inside


def test_the_container_is_set_up_as_any_machine(instructions):
    names = [name for name, _ in instructions]
    assert names[0] == "FROM" and re.match(r"python:3\.11\b", instructions[0][1])
    assert set(names) <= {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    runs = " ; ".join(rest for name, rest in instructions if name == "RUN")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"setup", "compile"} <= set(targets) and "make setup" in runs and "make compile" in runs
    assert "pip" not in re.sub(r"make setup", "", runs), "the packages come from the lock, by `make setup` alone"
    users = [rest for name, rest in instructions if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert names.index("USER") > max(at for at, name in enumerate(names) if name == "RUN")
    entry = json.loads(next(rest for name, rest in instructions if name == "ENTRYPOINT"))
    folder = next(rest for name, rest in instructions if name == "WORKDIR")
    assert entry == ["snakemake", "--snakefile", f"{folder}/Snakefile"]


def test_the_container_holds_the_project_and_nothing_of_a_patient(instructions):
    named = " ".join(rest for name, rest in instructions if name == "COPY").split()
    files = [path for path in named if re.search(r"\w", path)]
    assert files and all((ROOT / path).exists() and brought_along(path) for path in files)
    setup = (ROOT / "Makefile").read_text()
    for name in re.search(r"^\.venv/ready: (.+)$", setup, re.M).group(1).split():
        assert name in files, f"`make setup` needs {name}"
    for folder in ("haemex", "workflow", "profiles", "envs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert brought_along(path.relative_to(ROOT)), path
    for path in ("config/config.yaml", "config/config.schema.yaml", "config/demo.yaml", "Snakefile"):
        assert brought_along(path), path
    for path in (
        *("results/demo/report/report.html", "config/cohort.tsv", ".git/config", "data/D001/1.dcm", "patients.tsv"),
        *(".venv/bin/python", ".snakemake/log", "haemex/__pycache__/files.cpython-311.pyc", "config/old/mine.yaml"),
    ):
        assert not brought_along(path), path
