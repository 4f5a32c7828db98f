"""Whatever breaks, the same command completes the study to the same bytes: kills, power loss, disks, clocks, paths."""

import contextlib
import errno
import fcntl
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fabricated_bundle import make_bundle
from head_study import write_head_study
from result_digests import STATE, digest_results

from haemex import recovery
from haemex.bundle_archive import export_bundle, import_bundle
from haemex.files import write_atomically, write_json
from haemex.locks import ended_in_order
from haemex.logs import of_the_disk
from haemex.nifti import write_volume
from haemex.provenance import ROOT
from haemex.recovery import MARK, end_orphans, is_whole, mend
from haemex.tables import write_table

PATIENCE_S = 1200  # of one run, on a machine with other work


class Study:
    """A copy of the project with a tiny study in it."""

    def __init__(self, folder, write_series):
        self.folder, self.results = folder, folder / "results/small"
        for name in ("haemex", "workflow", "config", "profiles", "envs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        write_head_study(folder, write_series)

    def copy(self, folder, results=True):
        """Copy it, with or without what it has made."""
        other = Study.__new__(Study)
        left_out = () if results else ("results", ".snakemake")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(*left_out), symlinks=True)
        other.folder, other.results = folder, folder / "results/small"
        return other

    def start(self, *arguments, before=()):
        """Start a run in a session of its own; what it says goes to a file that its orphans can go on writing to."""
        command = [*before, sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--configfile", "small.yaml"]
        with open(self.folder / "said.txt", "w") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(self.folder)}, start_new_session=True,
                stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, *arguments, before=()):
        """Run to the end; return exit status and what was said."""
        status = self.start(*arguments, before=before).wait(PATIENCE_S)
        return status, (self.folder / "said.txt").read_text()

    def complete(self, *arguments):
        """Run until done, as a user types the same command; it has to succeed at once."""
        status, said = self.run(*arguments)
        assert status == 0, said
        return said

    def digests(self):
        return digest_results(self.results)

    def files(self):
        """Count the results."""
        return sum(len(names) for _, _, names in os.walk(self.results))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The study, run once with nothing in its way."""
    from conftest import _write_series

    study = Study(tmp_path_factory.mktemp("undisturbed") / "study", _write_series)
    study.complete()
    study.expected = study.digests()
    study.count = study.files()
    return study


# --- kills --------------------------------------------------------------------------------------------------------


def jobs_of(process):
    """List the processes that a Snakemake has started and that run a script; those that it is forked from and with."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("/.snakemake/scripts/" in word or "fork_server" in word for word in child.cmdline()):
                    found.append(child)
    return found


def kill_at_random(study, whole, kills, seed):
    """Run a study, `kills` times kill at random and start it again; return who was killed when.

    The moments are spread over the work, counted in files, so that a slow machine is killed at the same stages: each
    comes a moment after the results have grown to a random part of those of the `whole` study.
    """
    rng = random.Random(seed)
    done, process = [], study.start()
    for moment in sorted(rng.random() for _ in range(kills)):
        victim, until = rng.choice(("snakemake", "group", "job")), time.monotonic() + PATIENCE_S
        while study.files() < moment * whole and time.monotonic() < until:
            if process.poll() is not None:  # a job was killed: it ended without what follows
                process = study.start()
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 1.0))
        if process.poll() is not None:
            process = study.start()
        if victim == "job":
            while not (jobs := jobs_of(process)) and process.poll() is None:
                time.sleep(0.05)
        else:  # often it has only just begun: then anywhere in its first seconds
            begun = time.time() - psutil.Process(process.pid).create_time() if process.poll() is None else 0
            time.sleep(rng.uniform(0.0, 5.0) if begun < 5 else 0.0)
        if process.poll() is not None:
            continue  # complete
        if victim == "job":
            with contextlib.suppress(psutil.Error):
                rng.choice(jobs).kill()
        else:
            (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            process = study.start()
        done.append((f"{moment:.2f}", victim))
    process.wait(PATIENCE_S)
    return done


def refuse_leftovers(study):
    """Nothing hidden stands among the results but the lock and what Snakemake itself puts into folders."""
    hidden = [path for path in study.results.rglob(".*") if path.name not in (*STATE, ".snakemake_timestamp")]
    assert hidden == []
    assert not list(study.results.rglob("*.lock")) or [path.name for path in study.results.rglob("*.lock")] == [".lock"]
    assert not list(study.results.rglob("*.checkpoint"))


def check_kills(undisturbed, folder, kills, seed):
    """Kill a fresh copy of the study at random, complete it, compare."""
    study = undisturbed.copy(folder, results=False)
    done = kill_at_random(study, undisturbed.count, kills, seed)
    said = study.complete()
    assert study.digests() == undisturbed.expected, (done, said)
    refuse_leftovers(study)
    return done


# With spaces, letters of many alphabets and what a shell reads as something else, and a path of 450 letters.
ODD_NAME = f"Hämatome, 出血 & Ödeme ($2 'Versuch')/{'a study with a very long name ' * 6}/{'x' * 200}"


def test_ten_random_kills_change_no_byte(undisturbed, tmp_path):
    done = check_kills(undisturbed, tmp_path / ODD_NAME / "killed", 12, seed=1)
    assert len(done) >= 10 and len({victim for *_, victim in done}) == 3, done


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_hundred_random_kills_change_no_byte(undisturbed, tmp_path, seed):
    """A third of them each."""
    done = check_kills(undisturbed, tmp_path / ODD_NAME / "killed", 36, seed)
    assert len(done) >= 34, done


# --- loss of power ------------------------------------------------------------------------------------------------


def cut(path, rng):
    """Leave of a file what a loss of power may leave: nothing, its beginning, or zeros for its end."""
    content = path.read_bytes()
    facts = path.stat()
    kept = rng.choice((0, rng.randrange(len(content)), rng.randrange(len(content))))
    zeros = bytes(len(content) - kept) if kept and rng.random() < 0.5 else b""
    path.write_bytes(content[:kept] + zeros)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def lose_power(study, rng, files, records):
    """Cut some of the newest results and of Snakemake's newest records, and forget the orderly end."""
    newest = sorted(
        (path for path in study.results.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime
    )
    young = [path for path in newest if path.stat().st_mtime > newest[-1].stat().st_mtime - 100]
    # What is cut where a line ends cannot be told from a shorter table: tables wait for the disk, as all results do.
    chosen = rng.sample([path for path in young if path.stat().st_size and path.name != ".lock"], files)
    for path in chosen:
        cut(path, rng)
    metadata = [path for path in study.folder.glob(".snakemake/metadata/**/*") if path.is_file()]
    since = max(path.stat().st_mtime for path in metadata) - 100
    for path in rng.sample([path for path in metadata if path.stat().st_mtime > since], records):
        cut(path, rng)
    write_json(study.results / ".lock", {"process": 1, "host": "vm", "boot": "another", "ended": False})
    return chosen


def check_power_loss(undisturbed, folder, seed):
    """Lose power at the end of the study; complete it."""
    study = undisturbed.copy(folder)
    chosen = lose_power(study, random.Random(seed), files=6, records=3)
    said = study.complete()
    assert study.digests() == undisturbed.expected, (chosen, said)
    refuse_leftovers(study)
    return said


def test_what_a_loss_of_power_cut_is_made_anew(undisturbed, tmp_path):
    said = check_power_loss(undisturbed, tmp_path / "study", seed=1)
    assert said.count("cut off when the last run ended; it is made anew") >= 5, said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_any_loss_of_power_is_survived(undisturbed, tmp_path, seed):
    check_power_loss(undisturbed, tmp_path / "study", seed)


def whole_files(folder):
    """One file of every format that the stages write."""
    import docx
    import safetensors.numpy
    from PIL import Image

    write_volume(folder / "a.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    content = (folder / "a.nii.gz").read_bytes()
    (folder / "foreign.nii.gz").write_bytes(gzip.compress(gzip.decompress(content)[:352] + b"\1" * 200))
    write_json(folder / "a.json", {"a": [1, 2.5], "b": "x"})
    write_table(folder / "a.tsv", [{"a": 1, "b": "two\nlines"}, {"a": 2, "b": "x"}])
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(folder / "a.png")
    (folder / "a.safetensors").write_bytes(safetensors.numpy.save({"w": np.arange(6.0), "v": np.ones(3)}))
    docx.Document().save(folder / "a.docx")
    (folder / "a.html").write_text("<!doctype html><html><body>ä</body></html>\n")
    (folder / "a.svg").write_text("<svg><g></g></svg>\n")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4\nsomething\n%%EOF\n")
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_a_half_of_any_format_is_known_and_a_whole_one_too(tmp_path):
    paths = whole_files(tmp_path)
    del paths[paths.index(tmp_path / "foreign.nii.gz")]
    assert {"".join(path.suffixes) for path in paths} >= set(recovery.CHECKS) - {".benchmark.tsv", ".zip", ".dcm"}
    for path in paths:
        content = path.read_bytes()
        assert is_whole(path), path
        lengths = range(len(content)) if len(content) < 2000 else range(0, len(content), len(content) // 40)
        for length in lengths:
            if content[:length].rstrip() == content.rstrip() or (
                path.suffix == ".tsv" and content[length - 1 :][:1] == b"\n"
            ):
                continue  # nothing of it is lost; a shorter table, see `is_whole`
            path.write_bytes(content[:length])
            assert not is_whole(path), (path, length)
            if 0 < length < len(content) - 8:
                path.write_bytes(content[:length] + bytes(len(content) - length))
                assert not is_whole(path) or path.suffix == ".safetensors", (path, length, "zeros")


def test_a_half_dicom_image_is_known(tmp_path, write_series):
    folder = tmp_path / "phantom"
    write_series(folder, [0.0, 5.0], np.full((2, 8, 8), 1000))
    path = folder / "000"
    content = path.read_bytes()
    assert is_whole(path)
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        assert not is_whole(path), length


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The results of a study whose last run was cut off."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/x")
    (folder / "a").mkdir(parents=True)
    write_json(folder / ".lock", {"process": 1, "host": "h", "boot": None, "ended": False})
    return folder


def test_only_young_halves_of_stages_are_removed_and_each_is_said(results, capsys):
    young, old, whole, users = (results / name for name in ("a/young.json", "a/old.json", "a/whole.json", "users.json"))
    for path in (young, old, users):
        path.write_text('{"half": ')
    whole.write_text("{}")
    (results / "a/.young.json.partial").write_text("h")
    (results / "a/.living.json.partial").write_text("h")
    os.utime(old, (time.time() - 1000,) * 2)
    with open(results / "a/.living.json.partial", "a") as written:
        fcntl.flock(written, fcntl.LOCK_EX)  # by a job that outlived its Snakemake
        mended = mend(results)
    assert mended == [young]  # no job has made it, that is known of
    assert not young.exists() and old.exists() and whole.exists() and users.exists()
    assert [path.name for path in results.glob("a/.*")] == [".living.json.partial"]
    assert capsys.readouterr().out == f"{young}: cut off when the last run ended; it is made anew\n"


def test_after_an_orderly_end_nothing_is_looked_at_but_after_a_restart_of_the_machine(results, monkeypatch):
    half = results / "a/half.json"
    program = "from haemex.locks import hold_for_ever; hold_for_ever('results/x/.lock', 'it')"
    for ending, orderly in (("", True), ("; import os; os.kill(os.getpid(), 9)", False), ("; raise KeyError", True)):
        subprocess.run([sys.executable, "-c", program + ending], env={**os.environ, "PYTHONPATH": str(ROOT)})
        half.write_text("{")
        assert ended_in_order(results / ".lock") == orderly
        assert mend(results) == ([] if orderly else [half])
    assert ended_in_order(results / "nowhere/.lock")
    monkeypatch.setattr("haemex.locks.BOOT", results / "boot")
    (results / "boot").write_text("another start")
    assert not ended_in_order(results / ".lock") and mend(results) == [half]


def test_nothing_is_removed_while_another_run_is_at_work(results):
    half = results / "a/half.json"
    half.write_text("{")
    program = (
        "from haemex.locks import hold_for_ever; hold_for_ever('results/x/.lock', 'it'); print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    holder.stdout.readline()
    assert mend(results) == [] and half.exists()
    holder.kill()
    holder.wait()
    assert mend(results) == [half]


# --- jobs that outlive their Snakemake ----------------------------------------------------------------------------


def test_the_jobs_of_a_killed_run_are_ended_and_no_others(tmp_path):
    lock = tmp_path / ".lock"
    sleeper = "import time; print(flush=True); time.sleep(600)"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + sleeper
    started = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, MARK: str(mark)}, stdout=subprocess.PIPE)
        for program, mark in ((sleeper, lock), (deaf, lock), (sleeper, tmp_path / "other"), (sleeper, ""))
    ]
    try:
        for process in started:
            process.stdout.readline()
        assert end_orphans(lock, patience_s=1.0) == 2
        assert [process.poll() is None for process in started] == [False, False, True, True]
        assert end_orphans(lock, patience_s=1.0) == 0
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize("orderly", [False, True])
def test_after_a_run_that_was_cut_off_jobs_are_ended_old_scripts_removed_and_new_jobs_marked(results, orderly):
    write_json(results / ".lock", {"process": 1, "host": "h", "boot": None, "ended": orderly})
    recovery.SCRIPTS.mkdir(parents=True)
    old, new = recovery.SCRIPTS / "tmp1.convert.py", recovery.SCRIPTS / "tmp2.convert.py"
    for path, age_s in ((old, 4000), (new, 10)):
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    lock = os.path.realpath(results / ".lock")
    job = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: lock})
    program = "import os, haemex.recovery as r; r.hold_study('x'); print(0, os.environ[r.MARK])"
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    ended = job.poll() is not None
    job.kill()
    job.wait()
    assert run.stdout.splitlines()[-1] == f"0 {lock}", run.stderr
    assert ended == (not orderly) == (not old.exists()) and new.exists()
    assert ended_in_order(results / ".lock")


def test_a_job_that_has_ended_is_not_waited_for_although_nobody_asks_for_its_status():
    """A zombie, as all orphans become in a container whose first process is no init."""
    job = subprocess.Popen(["sleep", "600"])
    process = psutil.Process(job.pid)
    assert recovery._wait([process], 0) == [process]
    job.kill()
    assert recovery._wait([process], 60) == [] and process.status() == psutil.STATUS_ZOMBIE
    job.wait()


def test_the_rest_of_a_killed_import_is_gone_with_the_next(tmp_path):
    """Killed between unpacking and the new name; the rest of another folder is left alone."""
    (tmp_path / "made").mkdir()
    folder = make_bundle(tmp_path / "made")
    export_bundle(folder, tmp_path / "model.zip")
    program = (
        "import os, pathlib, signal, sys\nfrom haemex.bundle_archive import import_bundle\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nimport_bundle(*sys.argv[1:])"
    )
    new = tmp_path / "there" / "new"
    (tmp_path / "there/.new2.abc.partial").mkdir(parents=True)
    command = [sys.executable, "-c", program, str(tmp_path / "model.zip"), str(new)]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert len(list(new.parent.glob(".new.*.partial"))) == 1 and not new.exists()
    import_bundle(tmp_path / "model.zip", new)
    assert sorted(path.name for path in new.parent.iterdir()) == [".new2.abc.partial", "new"]


# --- disks --------------------------------------------------------------------------------------------------------

NAMESPACE = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-Urm")


@pytest.fixture(scope="module")
def mounts():
    """How to start a command that sees mounts of its own; skips where that is not allowed."""
    try:
        tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no `unshare` here to mount a small disk with")
    if tried.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    return (*NAMESPACE, "sh", "-c")


def on_small_disk(mounts, kilobytes):
    """The words before a command that runs with its results on a disk of that size; they are copied back."""
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs results && cp -a kept/. results/ && "
        '"$@"; status=$?; rm -rf kept && mkdir kept && cp -a results/. kept/; exit $status'
    )
    return (*mounts, script, "sh")


def refuse_tracebacks(said):
    assert "Traceback" not in said and "a fault of haemex" not in said, said


def pages_kb(paths):
    """What files take on a small disk."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in paths)


def outputs_by_rule(study):
    """Of every rule that has run, the outputs of one job: the last by name, which Snakemake's records tell."""
    jobs = {}
    for path in sorted(study.folder.glob(".snakemake/metadata/**/*")):
        if path.is_file():
            record = json.loads(path.read_text())
            output = recovery._output_of(path.relative_to(study.folder))
            jobs.setdefault((record["rule"], tuple(map(Path, record["log"]))), []).append(output)
    return {rule: (outputs, logs) for (rule, logs), outputs in sorted(jobs.items())}


RULES = (
    *(
        "check",
        "convert",
        "measure",
        "markers",
        "skullstrip",
        "resample",
        "inspect",
        "qc",
        "cohort",
        "table1",
        "augment",
    ),
    *("train", "select", "final", "comparators", "predict", "evaluate", "cards", "report"),
)


def test_every_rule_of_a_study_is_tried_on_a_full_disk(undisturbed):
    assert sorted(outputs_by_rule(undisturbed)) == sorted(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_disk_that_is_full_in_every_stage(undisturbed, mounts, tmp_path, rule):
    """The outputs of a job are taken away, and half of the room that they had is left."""
    study = undisturbed.copy(tmp_path / "study")
    outputs, logs = outputs_by_rule(study)[rule]
    made = [study.folder / path for path in outputs]
    room = pages_kb(path for whole in made for path in (whole.rglob("*") if whole.is_dir() else [whole])) // 8 * 4
    for path in (*made, *(study.folder / path for path in (*logs, logs[0].with_suffix(".benchmark.tsv")))):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    size = pages_kb(path for path in study.folder.glob("results/**/*") if path.is_file()) + room
    (study.folder / "results").rename(study.folder / "kept")
    (study.folder / "results").mkdir()
    status, said = study.run(*map(str, outputs), before=on_small_disk(mounts, size))
    refuse_tracebacks(said)
    assert status != 0, said
    assert "the disk is full. Free some space, and run the same command again" in said, said
    shutil.rmtree(study.folder / "results")
    (study.folder / "kept").rename(study.folder / "results")
    said = study.complete()
    assert study.digests() == undisturbed.expected, said
    refuse_leftovers(study)


@pytest.mark.slow
def test_a_disk_that_grows_too_slowly(undisturbed, mounts, tmp_path):
    """The disk grows by a little after each failure, until the study is complete."""
    study, rng = undisturbed.copy(tmp_path / "study", results=False), random.Random(1)
    (study.folder / "results").mkdir(exist_ok=True)
    (study.folder / "kept").mkdir()
    failed, size = set(), 60
    for _ in range(40):
        _, said = study.run(before=on_small_disk(mounts, size))
        refuse_tracebacks(said)
        if "the disk is full" not in said and "No space left on device" not in said:
            break  # but the check, which wants to see more room than the rest has used
        failed |= set(re.findall(r"results/small/(\w+)/\S+: the disk is full. Free some space, and run the same", said))
        used = sum(path.stat().st_blocks for path in (study.folder / "kept").rglob("*")) // 2
        size = max(size, used) + rng.randrange(100, 700)
    else:
        pytest.fail(said)
    shutil.rmtree(study.folder / "results")
    (study.folder / "kept").rename(study.folder / "results")
    study.complete()
    assert study.digests() == undisturbed.expected
    refuse_leftovers(study)
    assert len(failed) >= 5, failed


def test_a_full_disk_is_one_sentence_per_job_and_then_the_same_command_completes(undisturbed, mounts, tmp_path):
    study = undisturbed.copy(tmp_path / "study", results=False)
    (study.folder / "results").mkdir(exist_ok=True)
    (study.folder / "kept").mkdir()
    targets = [f"results/small/skullstrip/P{number}.json" for number in (1, 2)]
    size = (
        sum((undisturbed.results / f"convert/P1_baseline{end}").stat().st_size for end in (".nii.gz", ".json")) // 1024
    )
    status, said = study.run(*targets, before=on_small_disk(mounts, size + 30))
    refuse_tracebacks(said)
    assert status != 0 and "the disk is full. Free some space, and run the same command again" in said, said
    shutil.rmtree(study.folder / "results")
    (study.folder / "kept").rename(study.folder / "results")
    study.complete(*targets)
    made = {name: digest for name, digest in study.digests().items() if not name.startswith("qc/")}  # what failed
    assert set(targets) <= {f"results/small/{name}" for name in made}
    assert made == {name: digest for name, digest in undisturbed.expected.items() if name in made}


def test_read_only_results_are_refused_without_a_traceback(undisturbed, mounts, tmp_path):
    """By Snakemake where there are outputs to replace, by haemex where there are none yet."""
    study = undisturbed.copy(tmp_path / "study")
    read_only = (*mounts, 'mount --bind results results && mount -o remount,ro,bind results && "$@"', "sh")
    status, said = study.run("--forcerun", "table1", before=read_only)
    assert status == 1 and "Write-protected output files for rule" in said, said
    refuse_tracebacks(said)
    assert study.digests() == undisturbed.expected
    study.results.rename(tmp_path / "away")
    status, said = study.run("results/small/skullstrip/P1.json", before=read_only)
    assert status == 1 and "haemex: results/small: the disk can only be read. Make it writable" in said, said
    refuse_tracebacks(said)


@pytest.mark.parametrize("number", sorted({errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EFBIG}))
def test_whatever_the_disk_refuses_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, number):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError) as caught:
        write_atomically(path, b"new")
    said = of_the_disk(caught.value)
    assert said.startswith(f"{path}: ") and said.endswith(", and run the same command again.")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"old"


def test_a_name_that_just_fits_is_written_and_one_too_long_is_one_sentence(tmp_path):
    path = tmp_path / ("é" * 123 + "x.json")
    assert len(os.fsencode(path.name)) == 252
    write_atomically(path, b"a")
    write_atomically(path, b"b")
    assert [one.name for one in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"b"
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / ("é" * 200), b"a")
    assert "the path is too long. Put the study into a folder with a shorter path" in of_the_disk(caught.value)


# --- files that change or are damaged -----------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from haemex.logs import log_to
snakemake = SimpleNamespace(input=sys.argv[1:], config={"study": "x"})
with log_to("job.log", patient="P1"):
    content = [Path(path).read_bytes() for path in sys.argv[1:]]
    exec(Path("during.py").read_text())
"""


@pytest.mark.parametrize(
    ("during", "said"),
    [
        ("pass", ""),
        ("import os; Path('n').write_bytes(b'2'); os.replace('n', 'a')", "a: it was replaced while it was read."),
        ("Path('a').write_bytes(b'22')", "a: it was replaced while it was read."),
        ("Path('a').unlink()", "a: it was replaced while it was read."),
        ("Path('folder/new').touch()", ""),
        ("raise ValueError('odd')", "ValueError: odd (a fault of haemex; traceback in job.log)"),
        ("import json; json.loads(content[1])", "results/x/b.json: the file is damaged. Delete it, and run the same"),
        ("from haemex.errors import InputError; raise InputError('odd', 'look', 'b.json')", "results/x/b.json: the fi"),
    ],
)
def test_a_job_says_which_of_its_files_was_replaced_or_is_damaged(tmp_path, during, said):
    (tmp_path / "a").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "results/x").mkdir(parents=True)
    (tmp_path / "results/x/b.json").write_text('{"half": ' if "damaged" in said or "b.json" in said else "{}")
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "during.py").write_text(during)
    inputs = ["a", "results/x/b.json"]
    run = subprocess.run(
        [sys.executable, "job.py", *inputs], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == (1 if said else 0)
    assert run.stderr.startswith(f"haemex: patient P1: {said}") if said else run.stderr == ""


@pytest.mark.slow
def test_a_damaged_file_is_named_and_deleted_it_is_made_anew(undisturbed, tmp_path):
    """After an orderly end: the jobs that read it say which file it is, and what to do."""
    study = undisturbed.copy(tmp_path / "study")
    patients = sorted(path.name.split("_")[0] for path in study.results.glob("skullstrip/*_brain.nii.gz"))
    names = [f"skullstrip/{patients[0]}_brain.nii.gz", f"resample/{patients[1]}.json"]
    for name in names:
        path = study.results / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, said = study.run()
    assert status != 0 and "a fault of haemex" not in said, said
    for name in names:
        assert f"results/small/{name}: the file is damaged. Delete it, and run the same command again." in said, said
        (study.results / name).unlink()
    study.complete()
    assert study.digests() == undisturbed.expected


# --- two runs, clocks, late drives --------------------------------------------------------------------------------


def test_of_two_runs_at_once_one_waits_outside(undisturbed, tmp_path):
    study = undisturbed.copy(tmp_path / "study", results=False)
    targets = [f"results/small/skullstrip/P{number}.json" for number in (1, 2, 3)]
    one, other = study.start(*targets), study.start(*targets)
    statuses = {one.wait(PATIENCE_S), other.wait(PATIENCE_S)}
    assert 0 in statuses
    study.complete(*targets)
    made = study.digests()
    assert made == {name: digest for name, digest in undisturbed.expected.items() if name in made}
    refuse_leftovers(study)


@pytest.mark.slow
def test_a_clock_that_went_backwards_costs_some_jobs_and_no_byte(undisturbed, tmp_path):
    """The last run was tomorrow: its later files are newer than all to come; then a day back, and idle."""
    study = undisturbed.copy(tmp_path / "study")
    tomorrow = time.time() + 86400
    for number, path in enumerate([*sorted(study.results.glob("convert/P[12]_*")), study.results / ".lock"]):
        os.utime(path, (tomorrow + number,) * 2)
    study.complete()
    assert study.digests() == undisturbed.expected
    assert "Nothing to be done" in study.complete()
    assert max(path.stat().st_mtime for path in study.results.rglob("*")) <= time.time() + 2


LATE = """
import pathlib, subprocess
now = pathlib.Path.replace
def late(self, target):
    if str(target).endswith("_brain.nii.gz"):
        subprocess.Popen(["sh", "-c", 'sleep 3; mv "$0" "$1"', str(self), str(target)])
    else:
        return now(self, target)
pathlib.Path.replace = late
"""


@pytest.mark.slow
def test_files_that_a_network_drive_shows_late_are_waited_for(undisturbed, tmp_path):
    study = undisturbed.copy(tmp_path / "study", results=False)
    (study.folder / "sitecustomize.py").write_text(LATE)
    target = "results/small/skullstrip/P1.json"
    study.complete("--latency-wait", "60", target)
    made = study.digests()
    assert "skullstrip/P1_brain.nii.gz" in made
    assert made == {name: digest for name, digest in undisturbed.expected.items() if name in made}
    for path in study.results.glob("skullstrip/*"):
        path.unlink()
    status, said = study.run("--latency-wait", "0", target)
    assert status != 0 and "P1_brain.nii.gz" in said and "latency" in said, said
    time.sleep(4)
    study.complete("--latency-wait", "60", target)
    assert made.items() <= study.digests().items()  # beside the page of what failed
