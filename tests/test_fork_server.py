"""Forked jobs are what processes of their own would be: folder, variables, output, status, end; and the same bytes."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from head_study import write_head_study
from hypothesis import given
from hypothesis import strategies as st
from result_digests import digest_results

from haemex.fork_server import OF_EVERY_JOB, STAGES
from haemex.job_shell import PREFIX, script_of
from haemex.provenance import ROOT

SCRIPT = "/home/me/study/.snakemake/scripts/tmpab12cd.convert.py"
LIBRARIES = (
    "haemex",
    "numpy",
    "scipy",
    "skimage",
    "SimpleITK",
    "pydicom",
    "nibabel",
    "pandas",
    "PIL",
    "torch",
    "snakemake",
)
PATIENCE_S = 60
SERVER = "from haemex.fork_server import serve"

# What Snakemake does with it: a main process that starts the server and runs commands in its shell.
MAIN = """
import subprocess, sys
from types import SimpleNamespace as Has
from snakemake.shell import shell
from haemex.fork_server import start_fork_server
if not start_fork_server(Has(local_exec=True, deployment_settings=Has(deployment_method=set())), "small"):
    sys.exit("no server")
for command in sys.argv[1:]:
    print(subprocess.run(command, shell=True, executable=shell.get_executable()).returncode, flush=True)
"""


# --- which commands are short jobs --------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_the_path_of_a_script_survives_quoting(name):
    path = f"/{name}/.snakemake/scripts/tmp1.measure.py"
    assert script_of(f"{PREFIX} /bin/python {shlex.quote(path)}", "/bin/python", ["measure"]) == path


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (f"{PREFIX} /bin/python {SCRIPT}", SCRIPT),
        (f"{PREFIX} /bin/python {SCRIPT.replace('convert', 'train')}", None),
        (f"{PREFIX} /usr/bin/python {SCRIPT}", None),
        (f"{PREFIX} python {SCRIPT}", None),
        (f"source activate /envs/1; {PREFIX} /bin/python {SCRIPT}", None),
        (f"{PREFIX} /bin/python /home/me/convert.py", None),
        (f"{PREFIX} echo /bin/python {SCRIPT}", None),
        (f"{PREFIX} true", None),
        ("", None),
    ],
)
def test_only_scripts_of_short_jobs_in_this_python_are_taken(command, script):
    assert script_of(command, "/bin/python", ["measure", "convert"]) == script


# --- what a job finds and how it ends -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """A folder with room for Snakemake's copies of scripts; spaces and quotes stand in its path."""
    folder = tmp_path / "a study's folder"
    (folder / ".snakemake/scripts").mkdir(parents=True)
    return folder


def command_of(place, code, stage="measure"):
    """The command with which Snakemake would run this code as a job of a stage."""
    number = len(list((place / ".snakemake/scripts").iterdir()))
    script = place / f".snakemake/scripts/tmp{number}.{stage}.py"
    script.write_text(code)
    return f"{PREFIX} {sys.executable} {shlex.quote(str(script))}"


def in_the_foreground():
    """Be interrupted as on a terminal; what a script starts in its background is not, and the tests may be there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(place, *commands, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *commands], cwd=place, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=in_the_foreground,
    )  # fmt: skip


def run(place, *commands, **variables):
    """Run commands; return what was printed and what was said on standard error."""
    process = start(place, *commands, **variables)
    out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return out.splitlines(), said


FACTS = """
import json, os, sys, threading
print(json.dumps({
    "folder": os.getcwd(), "variables": dict(os.environ), "arguments": sys.argv, "name": __name__, "file": __file__,
    "parent": open(f"/proc/{os.getppid()}/cmdline").read(), "open": sorted(os.listdir("/proc/self/fd")),
    "loaded": "scipy.spatial" in sys.modules, "threads": threading.active_count(), "mask": os.umask(0),
}))
"""


def test_a_forked_job_finds_what_a_process_of_its_own_finds(place):
    command = command_of(place, FACTS)
    own = json.loads(subprocess.check_output(["bash", "-c", command], cwd=place, env={**os.environ, "SEED": "ä 1\n="}))
    (said, status), _ = run(place, command, SEED="ä 1\n=")
    forked = json.loads(said)
    assert status == "0"
    assert SERVER in forked["parent"] and SERVER not in own["parent"]
    assert forked["loaded"] and not own["loaded"]
    for fact in ("folder", "arguments", "name", "file", "threads", "mask"):
        assert forked[fact] == own[fact], fact
    assert forked["open"][:3] == ["0", "1", "2"] and len(forked["open"]) == 4, "a descriptor of the server's"  # its own
    for facts in (own, forked):
        for name in ("_", "PYTHONPATH", "SHLVL", "OLDPWD", "PWD"):
            facts["variables"].pop(name, None)
    assert forked["variables"] == own["variables"]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no mask')", 1, "no mask"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130, "KeyboardInterrupt"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
        ("print('half', end='')", 0, ""),
        ("import atexit; last = 'words'; atexit.register(lambda: print(__import__('__main__').last))", 0, ""),
        ("import sys; sys.stdout.close(); sys.stderr.close()", 0, ""),
    ],
)
def test_a_forked_job_ends_as_a_process_of_its_own_ends(place, code, status, said):
    command = command_of(place, code)
    own = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, preexec_fn=in_the_foreground
    )
    out, error = run(place, command)
    assert out == f"{own.stdout}{status}".splitlines()
    assert status == (own.returncode if own.returncode >= 0 else 128 - own.returncode)
    for words in (error, own.stderr):
        assert said in words if said else words == ""


def test_a_job_that_cannot_even_end_does_not_go_on_as_a_second_server(place):
    bad = "import sys, types; sys.stdout = types.SimpleNamespace(flush=lambda: 1 / 0)"
    out, _ = run(place, command_of(place, bad), command_of(place, "print('next')"))
    assert out == ["0", "next", "0"]


def test_one_jobs_doings_are_not_the_next_ones(place):
    change = "import os, haemex.volume; os.environ['X'] = '1'; os.chdir('/'); haemex.volume.X = 1; print('done')"
    look = "import os, haemex.volume; print('X' in os.environ, os.getcwd() == '/', hasattr(haemex.volume, 'X'))"
    out, _ = run(place, command_of(place, change), command_of(place, look))
    assert out == ["done", "0", "False False False", "0"]


def test_what_is_no_short_job_runs_in_bash(place):
    piped, train = f"{PREFIX} echo $BASH; yes | true", command_of(place, FACTS, stage="train")
    out, said = run(place, piped, train)
    assert os.path.basename(out[0]) == "bash" and out[1] == str(128 + signal.SIGPIPE) and said == ""
    assert SERVER not in json.loads(out[2])["parent"]


def test_where_there_is_no_room_for_a_server_there_is_none(place):
    """As on a full disk; a socket's name that is too long is tried below."""
    (place / ".snakemake/fork_server").write_text("a file where the folder should be")
    process = start(place, f"{PREFIX} true")
    out, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, said) == (1, "", "no server\n")


# --- the end of one or the other ----------------------------------------------------------------------------------

SLEEP = "import pathlib, os, time; pathlib.Path('job').write_text(str(os.getpid())); time.sleep(600)"


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def asleep(place):
    """A main process, its server, the shell of its job, and the job, which sleeps; all are ended."""
    main = start(place, command_of(place, SLEEP), f"{PREFIX} echo next")
    number = place / "job"
    wait_for(lambda: number.exists() and number.read_text(), "the job did not begin")
    job = psutil.Process(int(number.read_text()))
    server = job.parent()
    (shell,) = [child for child in psutil.Process(main.pid).children() if child != server]
    yield main, server, shell, job
    for process in (main, server, shell, job):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.kill()
    main.communicate()


def test_a_job_whose_process_is_killed_ends(asleep):
    main, server, shell, job = asleep
    shell.kill()
    assert main.stdout.readline() == "-9\n", "Snakemake sees its own process killed"
    wait_for(lambda: gone(job), "the job lives on")
    assert main.communicate(timeout=PATIENCE_S)[0] == "next\n0\n"
    assert gone(server)


def test_a_killed_main_process_takes_server_and_jobs_along(asleep, place):
    main, server, shell, job = asleep
    main.kill()
    for process in (server, shell, job):
        wait_for(lambda process=process: gone(process), "it lives on")
    assert not list(place.glob(".snakemake/fork_server/small/*")), "the server left its folder"


def test_a_killed_server_takes_its_jobs_along_and_the_next_job_runs_without(asleep):
    main, server, _, job = asleep
    server.kill()
    out, said = main.communicate(timeout=PATIENCE_S)
    assert out == "1\nnext\n0\n"
    assert said == "haemex: the process that this job was forked from has ended; run the same command again\n"
    assert gone(job)


def test_an_interrupt_from_the_keyboard_ends_the_job_and_not_the_server(asleep):
    main, server, _, job = asleep
    job.send_signal(signal.SIGINT)
    server.send_signal(signal.SIGINT)
    assert main.stdout.readline() == "130\n"
    assert not gone(server)


# --- whole stages -------------------------------------------------------------------------------------------------


# In every Python of a run: each fork of the server's leaves a mark.
COUNT = """
import os, sys

def note():
    with open(os.environ["FORKS"], "a") as file:
        file.write("+")

if any("haemex.fork_server" in word for word in sys.orig_argv):
    os.register_at_fork(after_in_child=note)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Run everything up to the copies of a tiny study twice, with short jobs forked and without; scripts are kept."""
    from conftest import _write_series

    folders = {}
    for way in ("forked", "own"):
        # An address of a socket has 107 bytes at most; where that is too little, there is no server.
        study = "small" if way == "forked" else "small" + "l" * 100
        folder = folders[way] = tmp_path_factory.mktemp(way)
        write_head_study(folder, _write_series)
        targets = [f"results/{study}/{name}/P{n}.json" for name in ("augment", "inspect", "markers") for n in range(3)]
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", *targets]
        command += ["--skip-script-cleanup", "--workflow-profile", ROOT / "profiles/default"]
        command += ["--configfile", "small.yaml", "--config", f"study={study}"]
        (folder / "code").mkdir()
        (folder / "code/sitecustomize.py").write_text(COUNT)
        environment = {**os.environ, "PYTHONPATH": f"{folder / 'code'}:{ROOT}", "FORKS": str(folder / "forks")}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        (folder / "results" / study).rename(folder / "results/small")
    return folders


def test_forked_stages_make_the_same_bytes(prepared):
    forked, own = (digest_results(prepared[way] / "results/small") for way in ("forked", "own"))
    assert len(forked) > 50
    assert forked == own


def test_short_jobs_were_forked(prepared):
    scripts = list(prepared["forked"].glob(".snakemake/scripts/*.py"))
    assert len(scripts) > 15
    assert (prepared["forked"] / "forks").read_text() == len(scripts) * "+"
    assert not (prepared["own"] / "forks").exists()


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "phantom"])
def test_the_server_has_loaded_what_a_short_job_imports(prepared, stage):
    scripts = sorted(prepared["own"].glob(f".snakemake/scripts/*.{stage}.py"))
    imports = (
        f"import {', '.join((*OF_EVERY_JOB, *STAGES[stage]))}; import json, runpy, sys; before = set(sys.modules); "
    )
    body = "[runpy.run_path(script, run_name='__main__') for script in sys.argv[1:]]; "
    code = imports + body + "print(json.dumps(sorted(set(sys.modules) - before)))"
    home = prepared["own"] / "results"
    study = "small" + "l" * 100  # as the scripts know it
    if not (home / study).exists():
        (home / study).symlink_to("small")
    out = subprocess.check_output([sys.executable, "-c", code, *scripts], cwd=prepared["own"], text=True)
    late = [name for name in json.loads(out.splitlines()[-1]) if name.split(".")[0] in LIBRARIES]
    assert late == [], " ".join(late)


def test_every_stage_of_short_jobs_is_a_rule_of_one_thread_and_has_a_script():
    for stage in STAGES:
        assert Path(ROOT, f"workflow/scripts/{stage}.py").exists()
        rule = Path(ROOT, f"workflow/rules/{stage}.smk").read_text()
        assert rule.count("\nrule ") == 1 and f"\nrule {stage}:" in rule and "threads:" not in rule
