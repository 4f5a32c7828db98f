"""The shell that Snakemake runs its jobs in: hands short jobs to the fork server, all else to the usual shell.

Run as a file by Snakemake's main process (`haemex.fork_server`), in place of bash; it stands between Snakemake
and every job, so it imports next to nothing.
"""

import os
import signal
import socket
import sys

PREFIX = "set -euo pipefail;"  # Snakemake's own, before every command that bash gets


def main(address, python, stages, usual, *arguments):
    """Run a command; end as it ends.

    Parameters
    ----------
    address : str
        The fork server's socket.
    python : str
        The interpreter that it runs; jobs of any other (conda) are not its own.
    stages : str
        Rules whose jobs it takes, with commas between.
    usual : str
        The usual shell.
    *arguments : str
        What that shell would be given: "-c" and the command.
    """
    script = script_of(arguments[-1], python, stages.split(","))
    status = ask(address, script) if script else None
    if status is None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and so would all that the shell starts
        os.execv(usual, [usual, *arguments])
    sys.exit(status)


def script_of(command, python, stages):
    """Return the script of a short job, as Snakemake wrote it; None for any other command."""
    start = f"{PREFIX} {python} "
    path = command.removeprefix(start)
    if path[:1] == "'" == path[-1:]:
        path = path[1:-1].replace("'\"'\"'", "'")  # as shlex.quote has it
    parts = path.rsplit(".", 2)  # tmpa1b2c3.convert.py
    ours = command.startswith(start) and parts[-1] == "py" and parts[1:2] and parts[1] in stages
    return path if ours and "/.snakemake/scripts/" in path and "\0" not in path else None


def ask(address, script):
    """Have a script run by the fork server; return its exit status, or None where there is no server."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
    except OSError:
        return None
    variables = [name + b"=" + value for name, value in os.environb.items()]
    request = b"\0".join([os.fsencode(script), os.fsencode(os.getcwd()), *variables])
    try:
        socket.send_fds(server, [len(request).to_bytes(8)], [0, 1, 2])
        server.sendall(request)
        answer = server.recv(1)
    except OSError:
        answer = b""
    if not answer:  # the job has ended with its server
        sys.exit("haemex: the process that this job was forked from has ended; run the same command again")
    return answer[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
