"""A small study on a Slurm cluster of one node, and dry runs of the profiles for clusters."""

import collections
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import slurm_cluster
import yaml
from result_digests import digest_results

from haemex.cluster_failures import failure_sentence, tell_cluster_failures
from haemex.nifti import write_volume
from haemex.provenance import ROOT

PROFILES = {
    name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text())
    for name in ("default", "slurm", "lsf", "sge")
}
CLUSTERS = [name for name in PROFILES if name != "default"]
RULES = {
    match.group(1): match.group(0)
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for match in re.finditer(r"^rule (\w+):\n(?:(?:    .*)?\n)*", path.read_text(), re.M)
}
ON_GPU = {rule for rule, text in RULES.items() if "gpu=1" in text}

CONFIG = {
    "study": "small",
    "cohort_table": "cohort.tsv",
    "resample": {"field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [16, 16, 16]},
    "augment": {"copies": 2},
    "folds": 2,
    "network": {"widths": [2, 3, 4, 5], "convs_per_level": 1},
    "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1.0e-3, "rate_milestones": []},
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
    "select": {"collapsed_dice": 0.0},  # one epoch teaches such a network nothing
}
TRAIN, TEST = 4, 2
PATIENTS = TRAIN + TEST
GROUPED = {"patient": PATIENTS, "tables": 1, "pages": 1}
ALONE = {"check": 1, "qc": 1, "train": 2, "select": 1, "final": 1, "predict": 1}
SHAPE, VOXEL_MM = (26, 64, 64), (5.0, 3.6, 3.6)  # z, y, x


def write_patients(folder):
    """Write a cohort table, and heads of two ellipsoids with a third for the blood; every second one expands."""
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, VOXEL_MM, strict=True)), indexing="ij"
    )
    affine = np.diag([-VOXEL_MM[2], -VOXEL_MM[1], VOXEL_MM[0], 1.0])
    head = (z / 62) ** 2 + (y / 92) ** 2 + (x / 75) ** 2
    rows = []
    (folder / "scans").mkdir()
    for number in range(PATIENTS):
        expands, radius = number % 2, 14 + 2 * number
        hu = np.select([head < 0.75, head < 1], [34.0, 900.0], -1000.0)
        hu += np.random.default_rng(number).normal(0, 4, SHAPE)
        blood = (z**2 + (x - 20 * (-1) ** number) ** 2) / 0.64 + (y - 15) ** 2 < radius**2
        hu[blood] += 30
        ct, mask = f"scans/P{number}.nii.gz", f"scans/P{number}_mask.nii.gz"
        write_volume(folder / ct, np.rint(hu).astype(np.int16), affine)
        write_volume(folder / mask, blood.astype(np.uint8), affine)
        baseline_ml = blood.sum() * np.prod(VOXEL_MM) / 1000
        rows.append(
            {
                "patient": f"P{number}",
                "admission_date": "2015-03-01" if number < TRAIN else "2019-03-01",
                "age_years": 60 + number,
                "sex": "fm"[expands],
                "haemorrhage_site": "supratentorial",
                "onset_to_ct_h": 2 + number / 4,
                "ct_to_followup_h": 24,
                "died_or_surgery_before_followup": 0,
                "poor_image_quality": 0,
                "baseline_ct": ct,
                "baseline_mask": mask,
                "followup_volume_ml": round(baseline_ml * 1.6 + 4 if expands else baseline_ml, 2),
                "hypodensity": expands,
                "blend": number // 2 % 2,
            }
        )
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    (folder / "cohort.tsv").write_text("\n".join(lines) + "\n")


# The plugin looks at the queue ever more rarely, up to every three minutes; a test has no time for that.
LOOKING_OFTEN = """
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)
main()
"""


class Project:
    """A copy of the project in a folder of its own, with the small study in it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("haemex", "workflow", "config", "profiles", "envs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        write_patients(folder)
        (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
        self.results = folder / "results/small"
        self.cluster = None

    def start(self, *arguments, profile="slurm"):
        """Start Snakemake as a user does; on the cluster it looks at the queue often."""
        chosen = ["--cores", "2"] if profile == "default" else ["--workflow-profile", f"profiles/{profile}"]
        snakemake = ["-m", "snakemake"]
        if self.cluster is not None:
            snakemake = ["-c", LOOKING_OFTEN]
            chosen += ["--slurm-status-command", "squeue", "--slurm-keep-successful-logs"]
        return subprocess.Popen(
            [sys.executable, *snakemake, *chosen, *arguments, "--configfile", "small.yaml"],
            cwd=self.folder,
            env={
                **os.environ,
                **(self.cluster.environment if self.cluster else {}),
                "PYTHONPATH": str(self.folder),
                "PYTHONDONTWRITEBYTECODE": "",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As on a terminal: what a script starts in its background ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments, profile="slurm"):
        """Run Snakemake to its end; return its exit status and what it said."""
        process = self.start(*arguments, profile=profile)
        said, _ = process.communicate(timeout=1800)
        return process.returncode, said

    def jobs(self, *arguments, profile="slurm"):
        """Count the jobs that a run would do now, by rule."""
        status, said = self.run(*arguments, "--dry-run", "--quiet", "host", profile=profile)
        assert status == 0, said
        counts = collections.Counter(re.findall(r"^ *(?:local)?rule (\w+):", said, re.M))
        counts.pop("all", None)
        return dict(counts)

    def digests(self):
        return digest_results(self.results)


# ------------------------------------------------------------------------------------------------- without a cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The small study, not run."""
    project = Project(tmp_path_factory.mktemp("dry"))
    project.planned = project.jobs(profile="default")
    assert sum(project.planned.values()) == 6 * PATIENTS + TRAIN + 6 + sum(ALONE.values())
    return project


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_profile_submits_every_job_of_the_study(project, name):
    """As far as a dry run goes: the options are known to Snakemake and the plugin, the groups hold together."""
    pytest.importorskip(f"snakemake_executor_plugin_{name}")
    assert project.jobs(profile=name) == project.planned
    assert not re.search(r"\blocalrules?\b", "".join(path.read_text() for path in ROOT.glob("workflow/rules/*")))


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_profile_sets_what_the_default_profile_sets(name):
    """With another workflow profile, Snakemake does not read the default one."""
    for key, value in PROFILES["default"].items():
        if key != "resources":  # one training at a time is for one machine
            assert PROFILES[name][key] == value, key
    assert "gpu=1" not in PROFILES[name].get("resources", [])
    assert PROFILES[name]["scheduler-subsample"] >= PROFILES[name]["jobs"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_profile_groups_the_short_jobs_of_a_patient_and_no_training(name):
    groups = PROFILES[name]["groups"]
    per_patient = {
        rule for rule, text in RULES.items() if "{patient}" in text[text.index("log:") : text.index("conda")]
    }
    assert {rule for rule, group in groups.items() if group == "patient"} == per_patient - {"new_patient"}
    assert set(groups) <= set(RULES) and not set(groups) & ON_GPU
    assert set(groups.values()) == set(GROUPED)
    assert PROFILES[name]["retries"] >= 1


@pytest.mark.parametrize("name", ("lsf", "sge"))
def test_where_the_plugin_knows_no_gpu_the_profile_asks_for_it(name):
    assert set(PROFILES[name]["set-resources"]) == ON_GPU


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_entry_of_a_profile_is_explained(name):
    lines = (ROOT / f"profiles/{name}/config.yaml").read_text().splitlines()
    explained = False
    for line in lines:
        if re.match(r"[a-z]", line):
            assert explained, line
        elif not line:
            explained = False
        if line.startswith("#"):
            explained = True


def test_what_a_cluster_says_of_a_failed_job_becomes_one_sentence(tmp_path):
    """Words of a real Slurm, a real refusal and LSF's manual; the rule's own log goes before the cluster's."""
    rules, clusters = tmp_path / "rule.log", tmp_path / "7.log"
    place = f"(cluster job 7, {clusters})"
    assert failure_sentence("7", "qc", [rules, clusters]) == f"qc failed: its log says nothing of why {place}"
    rules.write_text("haemex: train base fold0: 4 patients\n")
    clusters.write_text("srun: error: node: task 0: Exited with exit code 1\nhaemex: patient P3: no mask. Check it.\n")
    assert failure_sentence("7", "train", [rules, clusters]) == f"patient P3: no mask. Check it. {place}"
    for words, told in (
        (
            "slurmstepd-node: error: StepId=7.0 exceeded memory limit (464150528 > 314572800), being killed\n"
            "slurmstepd-node: error: Exceeded job memory limit\n"
            "slurmstepd-node: error: *** STEP 7.0 ON node CANCELLED AT 2026-11-22T10:11:56 ***\n",
            "StepId=7.0 exceeded memory limit (464150528 > 314572800), being killed",
        ),
        (
            "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n",
            "JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT",
        ),
        (
            "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.\nExited with exit code 137.\n",
            "MEMLIMIT: job killed after reaching LSF memory usage limit.",
        ),
    ):
        clusters.write_text(f"haemex: train base fold0: on the CPU\n{words}")
        assert failure_sentence("7", "train", [rules, clusters]) == f"train failed: {told} {place}"


def test_a_failed_cluster_job_is_told_once_and_a_local_one_not(capsys):
    """Records as Snakemake makes them: of a rule, of a group, and of a job on this machine."""
    logger = logging.getLogger("snakemake.logging")
    before = logger.handlers[:]
    try:
        tell_cluster_failures()
        tell_cluster_failures()
        logger.error("x", extra={"rule_name": "qc", "log": [], "aux": {"external_jobid": "7"}})
        logger.error("x", extra={"groupid": "g", "aux_logs": ["8.log"], "external_jobid": "8"})
        logger.error("x", extra={"rule_name": "qc", "log": [], "aux": {}, "rule_msg": None})
        logger.error("x", extra={"rule_name": "qc", "log": [], "aux": {}, "rule_msg": "sbatch failed: so.\nsbatch -p"})
        logger.error("x", extra={"groupid": "g", "aux_logs": []})
        logger.error("of something else")
    finally:
        logger.handlers[:] = before
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("haemex: ")]
    assert len(told) == 4 and "job 7" in told[0] and "job 8, 8.log" in told[1]
    assert told[2] == "haemex: qc: sbatch failed: so." and "refused a group" in told[3]


# ---------------------------------------------------------------------------------------------------- on the cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of one node, which ends with the module's tests."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def done(tmp_path_factory, cluster):
    """The small study, run once on the cluster; `check` is given too little memory at first, and outgrows it."""
    project = Project(tmp_path_factory.mktemp("on the cluster"))
    project.expected = project.jobs()
    project.cluster = cluster
    status, project.said = project.run("--set-resources", "check:mem_mb=60 if attempt == 1 else 2000")
    assert status == 0, project.said + cluster.said()
    project.submitted = cluster.jobs()
    project.logs = {path: path.read_text() for path in project.folder.glob(".snakemake/slurm_logs/**/*.log")}
    return project


def rule_or_group(job):
    """What a Slurm job does: the plugin writes it into the job's comment."""
    return next(name for name in (*GROUPED, *ALONE) if re.match(rf"rule_{name}(_|$)", job["Comment"]))


@pytest.mark.cluster
def test_every_job_of_a_study_goes_through_sbatch(done, cluster):
    """As many Slurm jobs as groups and single jobs; in them, by their logs, every job that Snakemake planned."""
    assert (done.results / "report/report.html").is_file()
    counted = collections.Counter(map(rule_or_group, done.submitted))
    assert counted == {**GROUPED, **ALONE, "check": 2}
    assert sorted(cluster.completed()) == [int(job["JobId"]) for job in done.submitted]
    ran = collections.Counter(re.findall(r"^localrule (\w+):", "\n".join(done.logs.values()), re.M))
    ran["check"] = min(ran["check"], 1)  # the first attempt may come so far
    assert ran == done.expected
    assert "localrule" not in done.said
    assert done.jobs() == {}


@pytest.mark.cluster
def test_jobs_of_the_gpu_ask_for_it_and_no_other(done):
    asked = {rule_or_group(job) for job in done.submitted if "gpu:1" in job.get("TresPerJob", "")}
    assert asked == ON_GPU & set(ALONE)
    assert all(("TresPerJob" in job) == (rule_or_group(job) in ON_GPU) for job in done.submitted)


@pytest.mark.cluster
def test_a_job_asks_for_the_memory_and_the_time_of_its_rule(done):
    """A group runs its jobs one after the other: it asks for one core, the largest memory and the sum of the times."""
    declared = {
        rule: (int(re.search(r"mem_mb=.*attempt \* (\d+)", text).group(1)), int(re.search(r"runtime=(\d+)", text)[1]))
        for rule, text in RULES.items()
        if re.search(r"mem_mb=.*attempt \* \d+", text) and re.search(r"runtime=\d+", text)
    }
    groups = PROFILES["slurm"]["groups"]
    for job in done.submitted:
        name = rule_or_group(job)
        rules = [rule for rule, group in groups.items() if group == name and rule not in ("phantom", "augment")]
        rules += ["augment"] if "augment" in job["Comment"] else []
        if name in GROUPED:
            assert job["NumCPUs"] == "1"
            assert megabytes(job) == max(declared[rule][0] for rule in rules)
            assert minutes(job) == sum(declared[rule][1] for rule in rules)
        elif name in declared and name != "check":
            assert (megabytes(job), minutes(job)) == declared[name]


def megabytes(job):
    """The memory a job asked for; Slurm writes it as 1500M or 2G."""
    number, unit = re.fullmatch(r"([\d.]+)([MG])", job["MinMemoryNode"]).groups()
    return float(number) * {"M": 1, "G": 1024}[unit]


def minutes(job):
    """The time limit of a job; Slurm writes it as 01:10:00 or 1-00:00:00."""
    days, hours, rest, _ = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", job["TimeLimit"]).groups()
    return (int(days or 0) * 24 + int(hours)) * 60 + int(rest)


@pytest.mark.cluster
def test_a_job_that_outgrows_its_memory_is_killed_and_gets_more(done):
    first, second = (job for job in done.submitted if rule_or_group(job) == "check")
    assert (first["MinMemoryNode"], first["JobState"]) == ("60M", "FAILED")
    assert (second["MinMemoryNode"], second["JobState"]) == ("2000M", "COMPLETED")
    said = re.search(r"^haemex: check failed: .*exceeded memory limit.* \(cluster job (\d+), ", done.said, re.M)
    assert said and said.group(1) == first["JobId"], done.said
    assert "Traceback" not in done.said


@pytest.mark.cluster
def test_a_patient_prepared_on_the_cluster_has_the_bytes_of_a_local_run(tmp_path_factory, done):
    local = Project(tmp_path_factory.mktemp("here"))
    patient = "P0"
    names = (f"augment/{patient}.json", f"inspect/{patient}.json", f"markers/{patient}.json")
    status, said = local.run(*(f"results/small/{name}" for name in names), profile="default")
    assert status == 0, said
    made, wanted = local.digests(), done.digests()
    assert len(made) >= 15
    assert made == {name: wanted[name] for name in made}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_study_on_the_cluster_has_the_bytes_of_a_local_run(tmp_path_factory, done):
    local = Project(tmp_path_factory.mktemp("here"))
    status, said = local.run(profile="default")
    assert status == 0, said
    assert local.digests() == done.digests()


def start_and_wait(project, cluster, *arguments):
    """Start a run whose one job waits on its node, known to both sides; return the process and the job's number."""
    before, began = len(cluster.jobs()), time.time()
    process = project.start(*arguments)
    until = time.monotonic() + 600
    while True:
        running = [job["JobId"] for job in cluster.jobs()[before:] if job["JobState"] == "RUNNING"]
        with contextlib.suppress(FileNotFoundError):  # Snakemake takes marks away, too
            marks = [path.stat().st_mtime for path in project.folder.glob(".snakemake/incomplete/*")]
            if running and any(mark >= began for mark in marks):  # it has noted the job's number
                return process, running[0]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, cluster.said()
        time.sleep(0.2)


@pytest.mark.cluster
def test_an_interrupted_and_a_cancelled_run_are_completed_by_the_next(done, cluster):
    """Ctrl-C takes the jobs from the queue; `scancel` by hand is told; the same command then makes that job alone."""
    before = done.digests()
    with cluster.held():
        process, number = start_and_wait(done, cluster, "--forcerun", "qc")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
        assert process.returncode != 0
        until = time.monotonic() + 300
        while (job := cluster.jobs()[-1])["JobState"] != "CANCELLED":
            assert job["JobId"] == number and time.monotonic() < until, job
            time.sleep(0.2)
        process, number = start_and_wait(done, cluster, "--forcerun", "qc", "--retries", "0")
        cluster.ask("scancel", number)
        said, _ = process.communicate(timeout=600)
        assert process.returncode != 0
    assert re.search(rf"^haemex: qc failed: JOB {number} ON node CANCELLED AT .* \(cluster job {number}, ", said, re.M)
    assert "Traceback" not in said
    submitted = len(cluster.jobs())
    status, said = done.run()
    assert status == 0, said
    assert done.digests() == before
    assert [rule_or_group(job) for job in cluster.jobs()[submitted:]] == ["qc"]


@pytest.mark.cluster
def test_a_job_that_outlives_its_killed_snakemake_is_ended_before_its_successor_begins(done, cluster):
    """On the node where the next Snakemake starts; what runs on another node is for `scancel` (profiles/README.md)."""
    before = done.digests()

    def state(number):
        return next(job["JobState"] for job in cluster.jobs() if job["JobId"] == number)

    with cluster.held():
        process, number = start_and_wait(done, cluster, "--forcerun", "qc")
        process.kill()
        process.communicate()
        assert state(number) == "RUNNING"
        submitted = len(cluster.jobs())
        process = done.start()
        until = time.monotonic() + 300
        while state(number) == "RUNNING":
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert re.search(r"jobs? of an earlier run still at work; ending (it|them)", said), said
    assert done.digests() == before
    assert [rule_or_group(job) for job in cluster.jobs()[submitted:]] == ["qc"]


@pytest.mark.cluster
def test_what_the_cluster_refuses_is_told(tmp_path, cluster):
    """A partition that does not exist: of a single job the cluster's own words, of a group where to find them."""
    project = Project(tmp_path)
    project.cluster = cluster
    before = len(cluster.jobs())
    status, said = project.run(
        *("check", "results/small/skullstrip/P0.json", "--retries", "0"),
        *("--default-resources", "one_by_one=1", "slurm_partition=nowhere"),
    )
    assert status != 0 and "Traceback" not in said
    assert re.search(r"^haemex: check: .*invalid partition specified: nowhere", said, re.M), said
    assert "haemex: the cluster refused a group of jobs" in said
    assert len(cluster.jobs()) == before


ABANDONED = """
import os, signal, sys
import slurm_cluster
with slurm_cluster.cluster(sys.argv[1]) as made:
    print(*made.processes(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.cluster
def test_no_daemon_outlives_its_test(tmp_path):
    """Not even where the test's process is killed."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    run = subprocess.run(
        [sys.executable, "-c", ABANDONED, tmp_path], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.path.dirname(slurm_cluster.__file__)},
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert len(run.stdout.split()) >= 3
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{process}/environ") for process in run.stdout.split()):
        assert time.monotonic() < until, "a daemon is still there"
        time.sleep(0.2)
