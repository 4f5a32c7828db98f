"""What a run that was cut off leaves behind: halves of files, and jobs that outlive their Snakemake.

A killed process leaves no half under a file's own name (`haemex.files.write_atomically`). A loss of power can, where
the drive or the network drive had not stored what it said it had; and Snakemake's own records are not written that way.
"""

import contextlib
import csv
import io
import json
import math
import os
import time
import zipfile
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

from haemex.files import PARTIAL
from haemex.locks import ended_in_order, hold_for_ever, is_held
from haemex.logs import announce

LOCK = ".lock"  # in the folder of a study's results
MARK = "HAEMEX_RUN"  # environment variable of all jobs: the lock file of their study
# ASSUME: what was written longer before the end is on the disk. Linux writes after 30 s, other systems sooner.
UNSAFE_S = 120.0
READ_S = 3600.0  # for a job to read its own script, which it does first of all
CLOCK_S = 60.0  # what the clocks of two machines may differ by
LOOK_EVERY_S = 0.2
PATIENCE_S = 60.0  # for a training that is asked to stop, and writes its checkpoint first
RECORDS, INCOMPLETE = Path(".snakemake/metadata"), Path(".snakemake/incomplete")
PICTURES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4")  # CT images, segmentations
SCRIPTS = Path(".snakemake/scripts")
TIMESTAMP = ".snakemake_timestamp"  # Snakemake's, in every folder that is an output


def hold_study(name):
    """Keep other runs from a study until this process ends, and end the jobs that an earlier run has left at work.

    Parameters
    ----------
    name : str
        Name of the study.

    Raises
    ------
    InputError
        Another run holds it.
    """
    lock = Path("results", name, LOCK)
    orderly = ended_in_order(lock)
    hold_for_ever(lock, f"the study {name}")
    if not orderly:
        end_orphans(lock)
        for script in SCRIPTS.glob("tmp*"):  # Snakemake's copies, of which a killed job leaves one
            if _mtime(script) < time.time() - READ_S:
                script.unlink(missing_ok=True)
    os.environ[MARK] = os.path.realpath(lock)  # every job inherits it


def mend(folder):
    """Have Snakemake make anew what the last run of a study left half-written, if that run was cut off.

    Looks at what was written within two minutes of the newest file. A half is marked as Snakemake marks the outputs of
    a job that has not ended; what no job makes is removed. Does nothing while a run is at work. Where the clock went
    backwards since the last run, what is dated in the future is dated to now.

    Parameters
    ----------
    folder : path-like
        Results of the study, from the folder where Snakemake runs: a folder per stage.

    Returns
    -------
    list of Path
        The halves; each was announced.
    """
    folder = Path(folder)
    lock = folder / LOCK
    now = time.time()
    went_back = _mtime(lock) > now + CLOCK_S
    if (ended_in_order(lock) and not went_back) or is_held(lock) or not os.access(folder, os.W_OK):
        return []
    stages = [path for path in folder.iterdir() if path.is_dir()]  # what stands beside them is not haemex's
    walked = [step for stage in stages for step in os.walk(stage)]
    files = {Path(top, name): _mtime(Path(top, name)) for top, _, names in walked for name in names}
    for path in [path for path in files if path.name.startswith(".") and path.name.endswith(PARTIAL)]:
        if not is_held(path):  # its writer is dead, and perhaps nothing writes that file again
            path.unlink(missing_ok=True)
        del files[path]
    _bring_back({path: mtime for path, mtime in files.items() if mtime > now + CLOCK_S}, now)
    if went_back:
        os.utime(lock)
    since = max((mtime for mtime in files.values() if mtime <= now), default=now) - UNSAFE_S
    halves = [path for path, mtime in sorted(files.items()) if mtime >= since and not is_whole(path)]
    logs = {}
    for path in halves:
        announce(f"{path}: cut off when the last run ended; it is made anew")
        output = next((parent for parent in path.parents if (parent / TIMESTAMP).exists()), path)
        if _place(RECORDS, output).exists():
            owners = [output]
        else:  # a log, which comes back with the outputs of its job
            logs = logs or _logs()
            owners = logs.get(path.as_posix(), [])
        for owner in owners:
            _mark_incomplete(owner)
        if not owners:
            path.unlink(missing_ok=True)
    return halves + _forget_records(folder, since)


def _bring_back(files, now):
    """Date files of the future to the present, in their order: what was made of them would be older for ever."""
    if files:
        announce(f"{len(files)} results are dated in the future, as after a clock was set back; they are dated to now")
    for place, path in enumerate(sorted(files, key=files.get, reverse=True)):
        with contextlib.suppress(OSError):
            os.utime(path, (now - 0.001 * place,) * 2)


# --- Snakemake's records ------------------------------------------------------------------------------------------
# One file per output, in `metadata` of what made it, in `incomplete` while it is made; the name is the output's path.


def _place(records, output):
    """Path of the record of an output; a name too long for the file system is cut into folders."""
    name = urlsafe_b64encode(output.as_posix().encode()).decode()
    longest = os.pathconf(records if records.is_dir() else ".", "PC_NAME_MAX") - 1
    parts = [name[start : start + longest] for start in range(0, len(name), longest)]
    return records.joinpath(*("@" + part for part in parts[:-1]), parts[-1])


def _output_of(record):
    """Return the output that a record belongs to; None if the name is no record's."""
    name = "".join(part.removeprefix("@") for part in record.relative_to(RECORDS).parts)
    try:
        return Path(urlsafe_b64decode(name.encode()).decode())
    except ValueError:
        return None


def _records():
    return [path for path in RECORDS.rglob("*") if path.is_file()] if RECORDS.is_dir() else []


def _logs():
    """List by log the outputs of the job that writes it."""
    outputs = {}
    for record in _records():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for log in json.loads(record.read_bytes()).get("log") or []:
                outputs.setdefault(log, []).append(_output_of(record))
    return outputs


def _mark_incomplete(output):
    mark = _place(INCOMPLETE, output)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text('{"external_jobid": null}')


def _forget_records(folder, since):
    """Take damaged records away, and have their outputs made anew.

    Without its record, an output is taken for up to date whatever changed in settings or code.
    """
    outputs = []
    for record in _records():
        if _mtime(record) < since:
            continue
        try:
            json.loads(record.read_bytes())
        except ValueError:
            output = _output_of(record)
            if output is not None and output.is_relative_to(folder):
                announce(f"{output}: its record was cut off when the last run ended; it is made anew")
                _mark_incomplete(output)
                record.unlink()
                outputs.append(output)
    return outputs


def _mtime(path):
    try:
        return path.lstat().st_mtime
    except OSError:
        return -math.inf


# --- jobs that outlive their Snakemake ----------------------------------------------------------------------------


def end_orphans(lock, patience_s=PATIENCE_S):
    """End the jobs of earlier runs that outlived their Snakemake, before the same files are made again.

    They would remove nothing and write only whole files; but a job that fills a folder, or a training, must not stand
    beside its successor. Call it while holding the lock: no other Snakemake is at work then.

    Parameters
    ----------
    lock : path-like
        The lock file of the study.
    patience_s : float
        How long to wait between asking (SIGTERM) and killing, seconds.

    Returns
    -------
    int
        How many there were.
    """
    import psutil

    lock, own = os.path.realpath(lock), os.getpid()
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != own and process.environ().get(MARK) == lock:
                orphans.append(process)
    if orphans:
        jobs = "1 job" if len(orphans) == 1 else f"{len(orphans)} jobs"
        announce(f"{jobs} of an earlier run still at work; ending {'it' if len(orphans) == 1 else 'them'}")
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in _wait(orphans, patience_s):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(orphans, patience_s)
    return len(orphans)


def _wait(processes, patience_s):
    """Wait so long for processes to end; return those that are still at work then.

    One that has ended counts as such even if nobody asks for its status (a zombie), as in a container without an init.
    """
    import psutil

    until = time.monotonic() + patience_s
    while True:
        left = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        if not left or time.monotonic() > until:
            return left
        time.sleep(LOOK_EVERY_S)


# --- whether a file is whole --------------------------------------------------------------------------------------


def is_whole(path):
    """Whether a file of the results is whole, as far as its format tells; True for formats that do not.

    Volumes, pictures and archives carry checksums. JSON, SVG, HTML and PDF have an end. A table has an end of its last
    line and as many cells in every line. Weights state their length.

    Parameters
    ----------
    path : path-like
        The file.
    """
    path = Path(path)
    check = next((check for ending, check in CHECKS.items() if path.name.endswith(ending)), None)
    if check is None and not path.suffix and "phantom" in path.parts:
        check = _dicom
    if check is None or path.name.startswith("."):
        return True
    try:
        return check(path.read_bytes())
    except FileNotFoundError:
        return True
    except Exception as error:  # whatever a parser says of a half
        if isinstance(error, MemoryError | OSError) and not isinstance(error, EOFError):
            raise
        return False


def _gzip(content):
    from haemex.nifti import HEADER_BYTES, parse_header

    unpacked = bytearray()
    while content:
        unpacker = zlib.decompressobj(wbits=31)
        unpacked += unpacker.decompress(content)
        if not unpacker.eof:
            return False
        content = unpacker.unused_data
    try:
        shape, dtype, _, _ = parse_header(bytes(unpacked[:HEADER_BYTES]))
    except (ValueError, KeyError):
        return len(unpacked) > 0  # another program's
    return len(unpacked) == HEADER_BYTES + math.prod(shape) * dtype.itemsize


def _png(content):
    place, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4])
        chunk = content[place + 4 : place + 8 + length]
        kind, checksum = chunk[:4], content[place + 8 + length : place + 12 + length]
        if len(checksum) != 4 or zlib.crc32(chunk) != int.from_bytes(checksum):
            return False
        place += 12 + length
    return content.startswith(b"\x89PNG\r\n\x1a\n") and place == len(content)


def _zip(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.testzip() is None


def _safetensors(content):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return len(content) == 8 + length + max(ends, default=0)


def _table(content):
    rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter="\t"))
    return content.endswith(b"\n") and b"\0" not in content and len({len(row) for row in rows}) == 1


def _dicom(content):
    import pydicom

    read = pydicom.dcmread(io.BytesIO(content))
    if "PixelData" not in read:
        return read.file_meta.MediaStorageSOPClassUID not in PICTURES
    return len(read.PixelData) >= read.Rows * read.Columns * int(read.get("NumberOfFrames", 1)) * read.BitsAllocated / 8


def _ending(mark):
    return lambda content: content.rstrip().endswith(mark) and b"\0\0\0\0" not in content[-4096:]


CHECKS = {
    ".benchmark.tsv": lambda _: True,  # Snakemake's, which nothing reads
    ".nii.gz": _gzip,
    ".json": lambda content: json.loads(content) is not None,
    ".png": _png,
    ".pdf": _ending(b"%%EOF"),
    ".svg": _ending(b"</svg>"),
    ".html": _ending(b"</html>"),
    ".docx": _zip,
    ".zip": _zip,
    ".safetensors": _safetensors,
    ".tsv": _table,
    ".dcm": _dicom,
}
