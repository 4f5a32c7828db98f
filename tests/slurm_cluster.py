"""A Slurm cluster of one node on loopback, for tests: munge, slurmctld, slurmd, two made-up GPUs, memory limits kept.

No systemd, no database, no network name but that of this machine. Everything lies in one folder and ends with the block
that made it: daemons, job steps and jobs carry the folder's configuration in their environment, and are ended by it.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
# Debian puts daemons where a user's PATH does not look.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# The node claims more than the machine has (config_overrides): what the rules ask for is to be given out. What a job
# really uses is watched once a second (OverMemoryKill), not by cgroups, which need systemd or rights over them.
CONFIGURATION = """\
ClusterName=haemex
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
MinJobAge=7200
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmctldTimeout=600
SlurmdTimeout=600
MessageTimeout=60
UnkillableStepTimeout=180
ReturnToService=2
GresTypes=gpu
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:2 State=UNKNOWN
PartitionName=study Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """Say why no cluster can be started here, or return nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=SEARCHED) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} not found): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "a Slurm cluster of its own needs root"


class Cluster:
    """A running cluster; made by `cluster`.

    Attributes
    ----------
    folder : Path
        Where its configuration, logs and state are.
    environment : dict
        What a process has to have in its environment to submit to this cluster.
    """

    def __init__(self, folder, cpus, memory_mb):
        self.folder = Path(folder)
        self.cpus, self.memory_mb = cpus, memory_mb
        self.configuration = self.folder / "slurm.conf"
        self.environment = {
            "PATH": f"{self.folder}/bin{os.pathsep}{SEARCHED}",
            "SLURM_CONF": str(self.configuration),
        }
        self.daemons = []

    def start(self, patience_s=120):
        """Start the three daemons, and wait until the node takes jobs."""
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        # Within a job, Snakemake's plugin takes all variables SLURM_* from srun, and with them where the cluster is.
        srun = self.folder / "bin/srun"
        real = shutil.which("srun", path=SEARCHED)
        srun.write_text(
            f'#!/bin/sh\nwhile [ -e "{self.folder}/held" ]; do sleep 0.2; done\n'
            f'SLURM_CONF="{self.configuration}" exec "{real}" "$@"\n'
        )
        srun.chmod(0o755)
        os.chmod(self.folder, 0o755)  # munge insists on it
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=self.folder, host=host, ports=_free_ports(2), cpus=self.cpus, memory_mb=self.memory_mb
            )
        )
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self._daemon("munged", "--foreground", "--force", "--origin=127.0.0.1", *places)
        self._until(lambda: (self.folder / "munge.socket").exists(), "munge", patience_s)
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", "node")
        self._until(lambda: self.ask("sinfo", "--noheader", "--format=%T").strip() == "idle", "Slurm", patience_s)

    def _daemon(self, *command):
        with open(self.folder / f"{command[0]}.out", "wb") as said:
            process = subprocess.Popen(
                command, env={**os.environ, **self.environment}, preexec_fn=_die_with_parent,
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self.daemons.append(process)

    def _until(self, true, what, patience_s):
        until = time.monotonic() + patience_s
        while not true():
            if time.monotonic() > until or any(daemon.poll() is not None for daemon in self.daemons):
                raise RuntimeError(f"{what} does not start:\n{self.said()}")
            time.sleep(0.2)

    def said(self):
        """Return the last lines of all logs of the daemons."""
        logs = [*sorted(self.folder.glob("*.out")), *sorted(self.folder.glob("*.log"))]
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

    def ask(self, *command):
        """Run one of Slurm's commands; return what it prints, which is nothing while the cluster does not answer."""
        asked = subprocess.run(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, timeout=120,
        )  # fmt: skip
        return asked.stdout

    def jobs(self):
        """List all jobs since the start as `scontrol` shows them: one dict of its fields each, in order."""
        shown = self.ask("scontrol", "--oneliner", "show", "job")
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines() if line.startswith("JobId=")]
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    @contextlib.contextmanager
    def held(self):
        """Let jobs start, but not come to their work, for as long as the block runs; Slurm sees them running."""
        (self.folder / "held").touch()
        try:
            yield
        finally:
            (self.folder / "held").unlink()

    def completed(self):
        """List the job ids in the log of completed jobs, which Slurm writes apart from what it remembers."""
        log = self.folder / "completed.txt"
        return [int(number) for number in re.findall(r"^JobId=(\d+)", log.read_text() if log.exists() else "", re.M)]

    def processes(self):
        """List the processes of this cluster: daemons, job steps, jobs, and who submits to it."""
        marker = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [process for process in found if process != os.getpid()]

    def stop(self, patience_s=20):
        """End the jobs, the daemons, and whatever of them is left."""
        if len(self.daemons) == 3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.ask("scancel", "--quiet", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        until = time.monotonic() + patience_s
        while self.processes():
            for process in self.processes() if time.monotonic() > until - patience_s / 2 else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for daemon in self.daemons:
                daemon.poll()  # a zombie that nobody asks for stays
            if time.monotonic() > until:
                raise RuntimeError(f"processes of the cluster do not end: {self.processes()}")
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder, cpus=8, memory_mb=1_000_000):
    """Have a cluster for as long as the block runs.

    Parameters
    ----------
    folder : path-like
        An empty folder for it, with a short name: sockets lie in it.
    cpus, memory_mb : int
        What the node claims to have.

    Yields
    ------
    Cluster
    """
    made = Cluster(folder, cpus, memory_mb)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _die_with_parent():
    """End with the process that started this one, even if that is killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_ports(count):
    """Find ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
