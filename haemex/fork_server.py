"""A process with the libraries loaded, from which short jobs are forked.

Starting Python and importing numpy, SciPy, SimpleITK and pydicom costs several times what most jobs on one patient
compute (benchmarks/orchestration.py), and there are two thousand of them. Snakemake starts a process per job all the
same, a small one (`haemex.job_shell`); it passes its job on to this server, which forks, and the child runs the script
as Python would have. The job has its folder, its variables and its output; it ends where its process is killed, and
with the server, which ends with Snakemake. Where there is no server, the job starts as it would without: on a cluster's
node, in an environment of conda's or a container, in another workflow, on other systems than Linux.
"""

import atexit
import contextlib
import ctypes
import importlib
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

from haemex import job_shell

# What Pillow loads before it writes a PNG.
PICTURE = ("PIL.ImageDraw", *(f"PIL.{kind}ImagePlugin" for kind in ("Bmp", "Gif", "Jpeg", "Ppm", "Png")))
LAZY = ("skimage.filters.thresholding", "skimage.morphology")  # their packages load them on demand
# Rules of one patient's short jobs, and what such a job imports beside Snakemake's own: as the script and the functions
# that it calls do. A module left out costs time, no more.
STAGES = {
    "phantom": ("haemex.phantom", "scipy.fft", "scipy.ndimage", "scipy.sparse", "pydicom.filewriter"),
    "convert": ("haemex.convert", "nibabel", "numpy.ma"),
    "measure": ("haemex.volume", "scipy.spatial"),
    "markers": ("haemex.markers", "haemex.marker_picture", *LAZY, *PICTURE),
    "skullstrip": ("haemex.skullstrip",),
    "resample": ("haemex.resample",),
    "inspect": ("haemex.inspection", "numpy.ma", *PICTURE),
    "augment": ("haemex.augment",),
}
OF_EVERY_JOB = (
    "snakemake.io",
    "snakemake.iocontainers",
    "snakemake.logging",
    "haemex.logs",
    "haemex.nifti",
    "haemex.recovery",
)
REQUEST_S = 10.0  # for a job's shell to say what it wants
ENDING_S = 10.0
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def start_fork_server(workflow, study):
    """Start the server, and have Snakemake run its jobs in the shell that knows it. It ends with this process.

    Call it while holding the study: what an earlier server has left is removed.

    Parameters
    ----------
    workflow : snakemake.workflow.Workflow
        As the Snakefile knows it. Nothing is started where its jobs run elsewhere or in another environment.
    study : str
        Name of the study.

    Returns
    -------
    bool
        Whether there is a server.
    """
    from snakemake.shell import shell

    usual = shell.get_executable()
    elsewhere = not workflow.local_exec or workflow.deployment_settings.deployment_method
    if sys.platform != "linux" or elsewhere or os.path.basename(usual or "") != "bash":
        return False
    home = Path(".snakemake/fork_server", study)
    shutil.rmtree(home, ignore_errors=True)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            home.mkdir(parents=True)
            folder = Path(tempfile.mkdtemp(dir=home))
            address, launcher = str(folder / "socket"), folder.resolve() / "shell"
            words = (sys.executable, "-I", "-S", job_shell.__file__, address, sys.executable, ",".join(STAGES), usual)
            launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
            launcher.chmod(0o700)
            listener.bind(address)
        except OSError:  # the disk is full, the name too long, or the drive knows no sockets
            return False
        if not os.access(launcher, os.X_OK):  # the drive does not execute
            return False
        listener.listen(128)
        alive, ours = os.pipe()  # ends with this process, however it ends
        inherited = (listener.fileno(), alive)
        code = f"from haemex.fork_server import serve; serve({inherited[0]}, {alive}, {str(folder)!r})"
        # One thread each, as the rules declare: libraries read the number when they are loaded.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-P", "-c", code]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=inherited, env={**os.environ, **threads})
    os.close(alive)
    atexit.register(_end, server, ours)
    shell.executable(launcher)
    shell.prefix(job_shell.PREFIX)  # Snakemake gives it to a bash alone
    return True


def _end(server, ours):
    os.close(ours)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(ENDING_S)


def serve(listening, alive, folder):
    """Fork jobs until Snakemake ends.

    Parameters
    ----------
    listening : int
        Descriptor of the socket that jobs come to.
    alive : int
        Descriptor of a pipe that Snakemake holds the other end of.
    folder : str
        Folder of the socket, removed in the end.
    """
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches Snakemake too, which ends its jobs
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    listener = socket.socket(fileno=listening)
    selector, jobs = selectors.DefaultSelector(), {}
    for event in (listener, woken, alive):
        selector.register(event, selectors.EVENT_READ)
    try:
        while True:
            events = [key.fileobj for key, _ in selector.select()]
            if alive in events:
                return
            if woken in events:
                woken.recv(4096)
                _tell_ended(jobs, selector)
            for job in [event for event in events if event in jobs]:  # its shell was killed
                os.kill(jobs[job], signal.SIGKILL)
                selector.unregister(job)
            if listener in events:
                job = listener.accept()[0]
                with contextlib.suppress(OSError, ValueError):
                    request, descriptors = _read_request(job)
                    jobs[job] = _fork(request, descriptors, interrupted)
                    selector.register(job, selectors.EVENT_READ)
    finally:
        for process in jobs.values():
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _tell_ended(jobs, selector):
    """Tell the shells of jobs that have ended how they ended."""
    sockets = {process: job for job, process in jobs.items()}
    while sockets:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        job = sockets.pop(process)
        del jobs[job]
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            job.send(bytes([128 - code if code < 0 else code]))
        with contextlib.suppress(KeyError):
            selector.unregister(job)
        job.close()


def _read_request(job):
    """Read what a job's shell asks for: script, folder, variables; and the descriptors of its input and output."""
    job.settimeout(REQUEST_S)
    length, descriptors, _, _ = socket.recv_fds(job, 8, 3)
    request = b""
    while len(request) < int.from_bytes(length):
        received = job.recv(2**16)
        if not received:
            raise ValueError("the shell has gone")
        request += received
    script, folder, *variables = request.split(b"\0")
    return (os.fsdecode(script), folder, dict(variable.split(b"=", 1) for variable in variables)), descriptors


def _fork(request, descriptors, interrupted):
    """Fork a job, which does at an interrupt what the server would have done; return its process."""
    script, folder, variables = request
    for module in (*OF_EVERY_JOB, *STAGES[script.rsplit(".", 2)[1]]):
        with contextlib.suppress(Exception):  # the job says it, in its log
            importlib.import_module(module)
    server = os.getpid()
    process = os.fork()
    if not process:
        status = 1
        try:
            signal.signal(signal.SIGINT, interrupted)
            _become_job(server, folder, variables, descriptors)
            status = _run(script)
        except BaseException as error:
            traceback.print_exc()
            status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        finally:
            try:
                atexit._run_exitfuncs()  # as at the end of any other Python
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
            finally:  # whatever happens here, an interrupt too: a copy of the server must not go on as one
                os._exit(status)
    for descriptor in descriptors:
        os.close(descriptor)
    return process


def _become_job(server, folder, variables, descriptors):
    """Make of a copy of the server what a process of the job's own would be."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(variables)


def _run(script):
    """Run a script as Python runs it; return the exit status."""
    sys.argv = [script]
    main = sys.modules["__main__"] = types.ModuleType("__main__")  # stays until the end, as Python's own does
    main.__file__ = script
    try:
        exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    return 0
