"""Measure the peak memory and the threads of every job beside what its rule declares.

    python benchmarks/memory.py --out OUT

It runs a study of synthetic patients with the paper's scans (512 x 512), grid and copies. The network is small: what
the paper's takes is measured apart (`haemex/memory.py`). OUT gets the study's results and `memory.tsv`, a row per rule:
the largest job. It ends with status 1 where a job took more than its rule declares.

A meter is put into every Python that Snakemake starts (`sitecustomize`), and into every job forked from such a one: the
kernel's own high-water mark, where Snakemake's benchmark files hold samples that miss the peak of a short job. A forked
job counts all that its server has loaded, more than it would in a process of its own, as on a cluster.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from haemex.memory import SNAKEMAKE_MB
from haemex.provenance import ROOT
from haemex.tables import write_table

COLUMNS = ("rule", "jobs", "peak_mb", "declared_mb", "threads", "threads_seen", "cpu_s", "wall_s")
STUDY = {
    "study": "memory",
    "phantom": {"train": 8, "test": 6, "excluded_each": 0, "matrix": 512},
    "folds": 2,
    "network": {"widths": [2, 3, 4, 5], "convs_per_level": 1},
    "training": {"epochs": 1, "batch_size": 4},
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
    "select": {"collapsed_dice": 0.0},  # such a network learns nothing
}
METER = """
import sys

def begin():
    import atexit, json, os, re, threading, time

    seen, start, main = [0], time.monotonic(), os.getpid()

    def count():
        while True:
            seen[0] = max(seen[0], len(os.listdir("/proc/self/task")) - 1)  # without this one
            time.sleep(0.01)

    def note():
        if os.getpid() != main:
            return
        job = sys.modules["__main__"].snakemake
        status = open("/proc/self/status").read()
        record = {
            "rule": job.rule,
            "peak_mb": int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1e3,
            "declared_mb": job.resources.get("mem_mb", 0),
            "threads": job.threads,
            "threads_seen": seen[0],
            "cpu_s": round(time.process_time(), 2),
            "wall_s": round(time.monotonic() - start, 2),
        }
        with open(os.path.join(os.environ["HAEMEX_METER"], f"{main}.json"), "w") as file:
            json.dump(record, file)

    threading.Thread(target=count, daemon=True).start()
    atexit.register(note)

if any(".snakemake/scripts/" in word for word in sys.orig_argv):
    begin()
elif any("haemex.fork_server" in word for word in sys.orig_argv):
    import os
    os.register_at_fork(after_in_child=begin)
"""


def meter(folder, environment):
    """Put the meter into an environment.

    Parameters
    ----------
    folder : path-like
        Where the meter writes; made here.
    environment : dict of str to str
        That of Snakemake.

    Returns
    -------
    dict of str to str
        A new environment.
    """
    code = Path(folder, "code")
    code.mkdir(parents=True)
    (code / "sitecustomize.py").write_text(METER)
    paths = [str(code), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "HAEMEX_METER": str(folder)}


def read_meter(folder):
    """Read what the meter wrote: one dict per job (`COLUMNS` without `jobs`)."""
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def by_rule(jobs):
    """Take the largest job of each rule, by each number.

    Parameters
    ----------
    jobs : list of dict
        From `read_meter`.

    Returns
    -------
    list of dict
        `COLUMNS`, by rule.
    """
    rows = []
    for rule in sorted({job["rule"] for job in jobs}):
        of_rule = [job for job in jobs if job["rule"] == rule]
        largest = {name: max(job[name] for job in of_rule) for name in COLUMNS[2:]}
        rows.append({"rule": rule, "jobs": len(of_rule), **largest})
    return rows


def over(rows):
    """List the rules whose largest job, with the Snakemake that a cluster job starts, takes more than declared."""
    return [row["rule"] for row in rows if row["peak_mb"] + SNAKEMAKE_MB > row["declared_mb"]]


def main():
    """Run the study and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for the results, new")
    parser.add_argument("--cores", default="1")
    parser.add_argument("--matrix", default=512, type=int, help="of the scans")
    parser.add_argument("--patients", default=14, type=int, help="8 of them train")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    table = options.out / "results" / STUDY["study"] / "phantom" / "cohort.tsv"
    phantom = {**STUDY["phantom"], "matrix": options.matrix, "test": options.patients - STUDY["phantom"]["train"]}
    config = options.out / "memory.yaml"
    relative = table.relative_to(options.out).as_posix()
    config.write_text(yaml.safe_dump({**STUDY, "phantom": phantom, "cohort_table": relative}))
    environment = meter(options.out.absolute() / "meter", dict(os.environ))
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    profile = ROOT / "profiles" / "default"
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", options.out]
    command += ["--workflow-profile", profile, "--cores", options.cores, "--configfile", ROOT / "config/config.yaml"]
    subprocess.run([*command, config.absolute()], check=True, env=environment)
    rows = by_rule(read_meter(options.out / "meter"))
    write_table(options.out / "memory.tsv", rows, COLUMNS)
    for row in rows:
        print("  ".join(f"{row[name]:>12}" if name != "rule" else f"{row[name]:<20}" for name in COLUMNS))
    if over(rows):
        sys.exit(f"more than declared: {', '.join(over(rows))}")


if __name__ == "__main__":
    main()
