"""Print what the study costs beside its science: DAG, idle second run, process starts and imports; for many patients.

    python benchmarks/orchestration.py --patients 317 3000 --out FOLDER

CPU seconds (user and system) of whole process trees, so that other work on the machine disturbs little. Three parts:

- `dag`: for each number of patients (rows of the table; five of six are eligible, as in the paper) a study of a user's
  own is laid out, with empty files in place of scans and results. Measured: `snakemake --dry-run` before anything is
  made; choosing, starting, ending and recording every job, without the job (`--touch`); the idle second run, which
  compares times, settings and inputs of every job with those records, as after a real run.
- `share`: the stages from convert to augment are run on a few synthetic patients, 512 x 512, network grid small; the
  synthetic patients are made before. Snakemake keeps the scripts that it makes for its jobs (`--skip-script-cleanup`):
  each is run again as a process of its own, as without the fork server, and once more inside one warm process that has
  everything imported. The last is the science; what the run took beyond it is not: the server's imports, once; and per
  job a small process, a fork and Snakemake's own. All three ways have to make the same bytes.
- `model`: all patients. Jobs times the cost of one job, and Snakemake's own: its bookkeeping for so many jobs, of the
  preprocessing alone, in the first part.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from haemex.fork_server import OF_EVERY_JOB
from haemex.fork_server import STAGES as FORKED
from haemex.phantom_cohort import draw_patients, write_cohort_table
from haemex.provenance import ROOT

SMALL_GRID = {"resample": {"field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [32, 32, 20]}}
IN_THE_PAPER = {"infratentorial": 29, "ventricular_only": 3, "died_or_surgery": 11, "poor_image_quality": 8}
TABLE, TRAIN, TEST = 317, 189, 77
CORES = 2
SLICES = 32  # files in a scan's folder; Snakemake does not look inside, haemex does
EMPTY = {".json": "[]"}
PREPROCESSING = ("convert", "measure", "markers", "skullstrip", "resample", "inspect", "augment")
LAST_FILES = {"training": ["augment/{}.json"], "patients": ["markers/{}.json", "inspect/{}.json", "resample/{}.json"]}


def copy_project(folder, config):
    """Copy the project as a user has it, with the byte code that `make compile` makes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("haemex", "workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    compiling = [sys.executable, "-m", "compileall", "-q", "haemex"]
    subprocess.run(compiling, cwd=folder, env=environment(folder), check=True)


def environment(folder):
    """Variables of the measured processes: the folder's own haemex, and its byte code used."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


def measured(folder, *command):
    """Run a command; return CPU seconds, wall seconds, peak MB of its largest process, and what it said."""
    said = folder / "said.txt"
    start = time.monotonic()
    with open(said, "w+", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = said.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{text[-3000:]}")
    peak_mb = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": time.monotonic() - start, "peak_mb": peak_mb}, text


def tell(what, run):
    """Print a measurement when it is made: the next one may take long."""
    print(f"{what}: {run['wall_s']:.1f} s, {run['cpu_s']:.1f} CPU s, {run['peak_mb']:.0f} MB", flush=True)


def run_snakemake(folder, *arguments):
    """Run Snakemake as a user does."""
    return measured(
        folder, sys.executable, "-m", "snakemake", "--cores", str(CORES), *arguments, "--configfile", "study.yaml"
    )


def record_jobs(folder, *arguments):
    """Have Snakemake choose, start, end and record every job that is due, without the job."""
    # It waits 0.1 s before it touches the outputs of a job, which is no cost of a job that runs.
    code = "from snakemake import cli, executors; executors.touch.Executor.SLEEPING_TIME = 0; cli.main()"
    options = ("--cores", str(CORES), "--touch", "--quiet", "all", "--configfile", "study.yaml")
    return measured(folder, sys.executable, "-c", code, *arguments, *options)[0]


def lay_out(folder, patients):
    """Make a study of so many rows whose scans and masks are empty files; return the eligible and the trained ones."""
    part = patients / TABLE
    excluded = {reason: max(round(part * n), 1) for reason, n in IN_THE_PAPER.items()}
    settings = {"train": round(part * TRAIN), "test": round(part * TEST), "excluded": excluded, "matrix": 512}
    copy_project(folder, {"study": "cost", "cohort_table": "cohort.tsv", **SMALL_GRID})
    people = draw_patients(settings, seed=2021)
    write_cohort_table(people, folder / "cohort.tsv", "data")
    scan = folder / "scan"
    scan.mkdir()
    for number in range(SLICES):
        (scan / f"{number:03d}").touch()
    for person in people:
        home = folder / "data" / person["row"]["patient"]
        home.mkdir(parents=True)
        for name in ("baseline", "followup"):
            (home / name).symlink_to(scan)
        for name in ("baseline_mask", "followup_mask", "baseline_mask_rater2"):
            (home / f"{name}.nii.gz").touch()
    eligible = [person for person in people if not person["truth"]["reason"]]
    return sorted(person["row"]["patient"] for person in eligible), in_cohort(eligible, "train")


def in_cohort(people, cohort):
    """List the patients of a cohort."""
    return sorted(person["row"]["patient"] for person in people if person["truth"]["cohort"] == cohort)


def preprocessing_targets(eligible, training, study):
    """List files that ask for all jobs from convert to augment and no other."""
    names = [name.format(patient) for patient in eligible for name in LAST_FILES["patients"]]
    names += [name.format(patient) for patient in training for name in LAST_FILES["training"]]
    return [f"results/{study}/{name}" for name in names]


def make_empty_results(folder):
    """Make every output of the study as an empty file."""
    _, text = run_snakemake(folder, "--summary")
    paths = [line.split("\t")[0] for line in text.splitlines() if line.startswith("results/")]
    for path in map(folder.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text(EMPTY.get(path.suffix, ""), encoding="utf-8")
        else:  # an output that is a folder
            path.mkdir(exist_ok=True)


def count_jobs(text):
    """Read the table of jobs that a dry run prints."""
    table = text[text.index("Job stats:") :]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table.split("\n\n")[0], re.M) if rule != "total"}


def measure_dag(folder, patients, idle):
    """Measure dry run, bookkeeping and idle second run of a study of so many patients."""
    eligible, training = lay_out(folder, patients)
    fresh, text = run_snakemake(folder, "--dry-run")
    row = {"patients": patients, "jobs": sum(count_jobs(text).values()), "by_rule": count_jobs(text), "dry run": fresh}
    tell(f"dry run of {patients} patients", fresh)
    if idle:
        make_empty_results(folder)
        row["record"] = record_jobs(folder)
        tell(f"choosing and recording {row['jobs']} jobs", row["record"])
        row["idle"], text = run_snakemake(folder)
        assert "Nothing to be done" in text, text[-2000:]
        tell(f"idle second run of {patients} patients", row["idle"])
        targets = preprocessing_targets(eligible, training, "cost")
        row["record preprocessing"] = record_jobs(folder, *targets, "--forceall")
        metadata = folder / ".snakemake/metadata"
        row["metadata_mb"] = sum(path.stat().st_size for path in metadata.rglob("*") if path.is_file()) / 1e6
    return row


def measure_share(folder, sample, grid):
    """Run the preprocessing of a few synthetic patients three ways; return CPU seconds by stage, and Snakemake's."""
    train = max(round(sample * TRAIN / (TRAIN + TEST)), 1)
    phantom = {"train": max(train, 8), "test": max(sample - train, 6), "excluded_each": 0, "matrix": 512}
    table = "results/cost/phantom/cohort.tsv"
    copy_project(folder, {"study": "cost", "cohort_table": table, "phantom": phantom, **grid})
    people = draw_patients(phantom, seed=2021)
    training, testing = in_cohort(people, "train")[:train], in_cohort(people, "test")[: sample - train]
    eligible = sorted(training + testing)
    run_snakemake(folder, *(f"results/cost/phantom/{patient}/baseline_mask.nii.gz" for patient in eligible))
    targets = preprocessing_targets(eligible, training, "cost")
    whole, _ = run_snakemake(folder, *targets, "--skip-script-cleanup")
    digests = results_digest(folder)
    scripts = [path for path in (folder / ".snakemake/scripts").iterdir() if path.suffixes[-2][1:] in PREPROCESSING]
    scripts = sorted(scripts, key=lambda path: (PREPROCESSING.index(path.suffixes[-2][1:]), path.name))
    stages = {name: collections.Counter() for name in PREPROCESSING}
    for script in scripts:
        name = script.suffixes[-2][1:]
        stages[name]["jobs"] += 1
        stages[name]["process_s"] += measured(folder, sys.executable, str(script))[0]["cpu_s"]
    _, text = measured(folder, sys.executable, str(Path(__file__).resolve()), "--warm", *map(str, scripts))
    for script, seconds in json.loads(text.splitlines()[-1]).items():
        stages[Path(script).suffixes[-2][1:]]["science_s"] += seconds
    assert results_digest(folder) == digests, "the three ways made different bytes"
    record = record_jobs(folder, *targets, "--forceall")
    modules = sorted({*OF_EVERY_JOB, *(module for name in PREPROCESSING for module in FORKED[name])})
    imports, _ = measured(folder, sys.executable, "-c", f"import {', '.join(modules)}")
    jobs = sum(stage["jobs"] for stage in stages.values())
    science = sum(stage["science_s"] for stage in stages.values())
    return {
        "sample": len(eligible),
        "stages": {name: dict(stage) for name, stage in stages.items()},
        "whole_s": whole["cpu_s"],
        "wall_s": whole["wall_s"],
        "imports_s": imports["cpu_s"],
        "start_s": max(whole["cpu_s"] - science - record["cpu_s"] - imports["cpu_s"], 0.0) / jobs,
    }


def results_digest(folder):
    """Digest the images that the preprocessing made."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted((folder / "results/cost").rglob("*")):
        if path.is_file() and path.suffix in (".gz", ".json", ".png"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def run_warm(scripts):
    """Run Snakemake's scripts in this process: once each stage to import what it needs, then all, timed."""
    first = {Path(script).suffixes[-2]: script for script in reversed(scripts)}
    taken = {}
    for script in [*first.values(), *scripts]:
        start = time.process_time()
        with contextlib.redirect_stdout(None):
            runpy.run_path(script, run_name="__main__")
        taken[script] = time.process_time() - start
    print(json.dumps(taken))


def print_dag(rows):
    """Print the first table."""
    print("\nSnakemake alone, CPU s (peak MB); `record` is its bookkeeping when every job has just been done")
    print(f"{'patients':>9} {'jobs':>7} {'dry run':>18} {'record':>18} {'idle run':>18} {'metadata MB':>12}")
    for row in rows:
        runs = [row.get(name) for name in ("dry run", "record", "idle")]
        cells = [f"{run['cpu_s']:.1f} ({run['peak_mb']:.0f})" if run else "-" for run in runs]
        print(f"{row['patients']:>9} {row['jobs']:>7} " + " ".join(f"{cell:>18}" for cell in cells), end="")
        print(f" {row.get('metadata_mb', float('nan')):>12.1f}")


def print_share(share):
    """Print the second table."""
    print(f"\nPreprocessing of {share['sample']} synthetic patients, CPU s a job")
    print(f"{'stage':>12} {'jobs':>5} {'science':>8} {'start, forked':>14} {'start of its own':>17}")
    for name, stage in share["stages"].items():
        science, process = stage["science_s"] / stage["jobs"], stage["process_s"] / stage["jobs"]
        print(f"{name:>12} {stage['jobs']:>5} {science:>8.2f} {share['start_s']:>14.3f} {process - science:>17.2f}")
    science = sum(stage["science_s"] for stage in share["stages"].values()) / share["wall_s"] / CORES
    print(f"The fork server imports {share['imports_s']:.1f} CPU s, once; all jobs took {share['whole_s']:.1f} CPU s")
    print(f"and {share['wall_s']:.1f} s on {CORES} cores; the science fills {science:.0%} of that")


def print_model(rows, share):
    """Print the third table: all patients, from the cost of one job and Snakemake's own at that number."""
    print("\nPreprocessing of all patients, CPU s (from the two tables above)")
    print(f"{'patients':>9} {'jobs':>7} {'science':>9} {'starts':>8} {'Snakemake':>10} {'not science':>12}", end="")
    print(f" {'without the server: starts':>27} {'not science':>12}")
    for row in rows:
        jobs = {name: row["by_rule"][name] for name in PREPROCESSING}
        per_job = {name: {k: v / stage["jobs"] for k, v in stage.items()} for name, stage in share["stages"].items()}
        science = sum(n * per_job[name]["science_s"] for name, n in jobs.items())
        process = sum(n * per_job[name]["process_s"] for name, n in jobs.items())
        forked = sum(jobs.values()) * share["start_s"] + share["imports_s"]
        own = row.get("record preprocessing", row["dry run"])["cpu_s"]
        print(f"{row['patients']:>9} {sum(jobs.values()):>7} {science:>9.0f} {forked:>8.0f} {own:>10.0f}", end="")
        print(f" {1 - science / (science + forked + own):>12.0%} {process - science:>27.0f}", end="")
        print(f" {1 - science / (process + own):>12.0%}")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, nargs="*", default=[TABLE], help="rows of the table, one study each")
    parser.add_argument("--idle-up-to", type=int, default=1000, help="larger studies are only run dry")
    parser.add_argument("--sample", type=int, default=4, help="synthetic patients really preprocessed; 0: none")
    parser.add_argument("--paper-grid", action="store_true", help="the sample on the paper's grid, not the small one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the studies and numbers.json; new or empty")
    parser.add_argument("--warm", nargs="*", help=argparse.SUPPRESS)
    if "--warm" in sys.argv:
        return run_warm(sys.argv[sys.argv.index("--warm") + 1 :])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        parser.error(f"{out} is not empty")
    share = (
        measure_share(out / "sample", arguments.sample, {} if arguments.paper_grid else SMALL_GRID)
        if arguments.sample
        else None
    )
    rows = []
    for patients in arguments.patients:
        rows.append(measure_dag(out / f"patients{patients}", patients, idle=patients <= arguments.idle_up_to))
        print_dag(rows[-1:])
    (out / "numbers.json").write_text(json.dumps({"dag": rows, "share": share}, indent=1), encoding="utf-8")
    print_dag(rows)
    if share:
        print_share(share)
        print_model(rows, share)


if __name__ == "__main__":
    main()
