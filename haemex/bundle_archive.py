"""A model bundle as one file, to send to another centre; and what came from another centre, checked before use.

The file is a zip archive, not compressed: `digests.json`, then the files of the bundle. `digests.json` holds the size
and the SHA-256 of each; its own SHA-256 is the bundle's digest, the same for the folder and for the archive, by which
two centres can tell that they hold the same model. It protects against damage, not against a forger, who can write
another: compare it with what the sender says.

Only archives as `export_bundle` writes them are read. Whatever else an archive can hold (paths, links, compressed files
that swell, archives within) is refused by its list of contents, before anything is written.
"""

import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

from haemex.bundle import load_bundle
from haemex.comparators import FILE as COMPARATORS
from haemex.comparators import read_comparators
from haemex.errors import InputError
from haemex.files import write_atomically
from haemex.locks import locked
from haemex.model_description import DESCRIPTION, WEIGHTS, read_description

FORMAT = 1
DIGESTS = "digests.json"
NAMES = re.compile(r"(digests|model|comparators)\.json|model\.safetensors|fold[0-9]{1,3}\.safetensors")
# Far above any bundle (the paper's network: six times 15 MB), and far below what fills a disk or a memory.
LARGEST_TEXT, LARGEST_WEIGHTS, MOST_FILES = 2**20, 2**30, 64
LIST_BYTES = 256 * MOST_FILES
END = struct.Struct("<4s4H2LH")  # the end of every zip archive: where the list of its contents lies
END_SIGNATURE = b"PK\5\6"
CHUNK = 2**20
DAMAGES = (
    zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError, KeyError,
    struct.error, zlib.error,
)  # fmt: skip


def export_bundle(folder, archive):
    """Pack a model bundle into one file; the same bundle gives the same bytes.

    Parameters
    ----------
    folder : path-like
        The model bundle, as `haemex.bundle.write_bundle` made it. Other files in the folder stay behind.
    archive : path-like
        Ends in `.zip`.

    Returns
    -------
    str
        The bundle's digest, see `check_bundle`.

    Raises
    ------
    InputError
        The bundle is damaged or incomplete, or the archive cannot be written.
    """
    folder, archive = Path(folder), Path(archive)
    digests = _digests_of_folder(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for name, content in [(DIGESTS, digests), *((name, folder / name) for name in _listed(digests, folder))]:
            # A date and an owner would give other bytes on every day and machine.
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            file.writestr(entry, content if isinstance(content, bytes) else content.read_bytes())
    try:
        write_atomically(archive, packed.getbuffer())
    except OSError as error:
        raise InputError(f"the archive cannot be written ({error.strerror})", "give another path", archive) from None
    return hashlib.sha256(digests).hexdigest()


def check_bundle(path):
    """Check a model bundle, a folder or an archive, as far as it can be checked without the one who made it.

    Everything is read: the sizes and digests of all files, the description, all weights, the comparators where the
    bundle has them. Nothing in it is executed, and
    nothing of it stays on the disk.

    Parameters
    ----------
    path : path-like
        A folder, or an archive of `export_bundle`.

    Returns
    -------
    dict
        `digest`, of the whole bundle, 64 hexadecimal digits, the same for a folder and its archive; `files`, by name
        `bytes` and `sha256`; `description`, the content of `model.json`.

    Raises
    ------
    InputError
        The bundle is damaged, incomplete, or none; the archive is not one that `export_bundle` wrote.
    """
    path = Path(path)
    if path.is_dir():
        return _described(path, _digests_of_folder(path))
    with tempfile.TemporaryDirectory(prefix="haemex-bundle-") as place:
        return _unpack(path, Path(place))


def import_bundle(archive, folder):
    """Unpack a model bundle that came as one file: the whole of it, checked, or nothing.

    Parameters
    ----------
    archive : path-like
        Of `export_bundle`.
    folder : path-like
        Becomes the model bundle; does not exist yet, or is empty. Nothing is written elsewhere.

    Returns
    -------
    dict
        See `check_bundle`.

    Raises
    ------
    InputError
        As `check_bundle`; or something stands in the folder's place, or it cannot be written.
    """
    folder = Path(folder).absolute()
    try:
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise InputError("something stands here already", "give a new folder for the model bundle", folder)
        if not folder.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with locked(folder.with_name(f".{folder.name}.lock"), f"the model bundle {folder.name}"):
            for rest in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):  # of an import that was killed
                shutil.rmtree(rest, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as place:
                inner = Path(place) / "model"  # a folder with the usual rights; a temporary one is its maker's alone
                inner.mkdir()
                checked = _unpack(Path(archive), inner)
                inner.replace(folder)
                return checked
    except OSError as error:
        raise InputError(
            f"the model bundle cannot be written ({error.strerror})",
            "give a new folder within one that can be written to",
            folder,
        ) from None


def _digests_of_folder(folder):
    """Check a bundle's folder; return the content of `digests.json` for it."""
    load_bundle(folder)
    description = read_description(folder)
    names = {DESCRIPTION, WEIGHTS, *(member["file"] for member in description["ensemble"])}
    if (folder / COMPARATORS).exists():
        read_comparators(folder, description)
        names.add(COMPARATORS)
    try:
        files = {}
        for name in sorted(names):
            content = (folder / name).read_bytes()
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    except OSError as error:
        raise InputError(f"the model bundle cannot be read ({error.strerror})", "check its rights", folder) from None
    digests = (json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n").encode()
    _listed(digests, folder)
    return digests


def _described(folder, digests):
    """What `check_bundle` returns of a folder that is in order."""
    return {
        "digest": hashlib.sha256(digests).hexdigest(),
        "files": json.loads(digests)["files"],
        "description": read_description(folder),
    }


def _unpack(archive, folder):
    """Check an archive and unpack it into an empty folder; return what `check_bundle` does."""
    if not archive.is_file():
        raise InputError("there is no such file", "check the path of the model bundle's archive", archive)
    try:
        with open(archive, "rb") as file:
            _refuse_end(file, archive)
            with zipfile.ZipFile(file) as opened:
                digests = _unpack_members(opened, archive, folder)
    except DAMAGES as error:
        raise _refused(archive, f"the archive is damaged, or none ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise InputError(
            f"it cannot be read or unpacked ({error.strerror})", "check its rights, and the room on the disk", archive
        ) from None
    try:
        # The folder has to have the very digests that the archive states: all that the description names is there, and
        # nothing that it does not name.
        if _digests_of_folder(folder) != digests:
            raise _refused(archive, "the archive does not hold just the files that its description names")
    except InputError as error:
        inside = Path(error.file).name if error.file and Path(error.file) != archive else None
        raise _refused(archive, f"{inside}: {error.problem}" if inside else error.problem) from None
    return _described(folder, digests)


def _refuse_end(file, archive):
    """Refuse, by its last bytes, what is no plain zip archive or lists too much to be read into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - END.size, 0))
    tail = file.read(END.size)
    if len(tail) != END.size or not tail.startswith(END_SIGNATURE):
        raise _refused(archive, "this is no archive of a model bundle, or its end is missing")
    _, disk, first_disk, here, entries, list_bytes, list_start, comment = END.unpack(tail)
    if entries > MOST_FILES or list_bytes > LIST_BYTES:
        raise _refused(archive, f"the archive lists {entries} files in {list_bytes} bytes")
    if disk or first_disk or comment or here != entries or list_start + list_bytes + END.size != size:
        raise _refused(archive, "something stands before or after the archive's files")
    file.seek(0)


def _unpack_members(opened, archive, folder):
    """Check the list of contents, then unpack each file, checking its digest; return the content of `digests.json`."""
    members = opened.infolist()
    for member in members:
        name = member.orig_filename  # as written; zipfile's own ends at a zero byte
        kind = stat.S_IFMT(member.external_attr >> 16)
        if not NAMES.fullmatch(name):
            raise _refused(archive, f"the archive holds {name[:100]!r}, which is no file of a model bundle")
        if kind not in (0, stat.S_IFREG):
            raise _refused(archive, f"{name} is no plain file but a link or the like")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise _refused(archive, f"{name} is compressed, which `export_bundle` never does")
        if member.flag_bits & 1:
            raise _refused(archive, f"{name} is encrypted")
        if member.file_size > (LARGEST_TEXT if name.endswith(".json") else LARGEST_WEIGHTS):
            raise _refused(archive, f"{name} has {member.file_size} bytes")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise _refused(archive, "the archive holds a file twice")
    if DIGESTS not in names:
        raise _refused(archive, f"the archive holds no {DIGESTS}")
    # Not compressed, they cannot be more than the archive itself, unless the same bytes serve several of them.
    if sum(member.file_size for member in members) > os.path.getsize(archive):
        raise _refused(archive, "the archive states more bytes than it has")
    digests = opened.read(DIGESTS)
    files = _listed(digests, archive)
    if {DIGESTS, *files} != set(names):
        raise _refused(archive, f"the archive does not hold just the files that its {DIGESTS} names")
    for name, expected in files.items():
        found, length = hashlib.sha256(), 0
        with opened.open(name) as source, open(folder / name, "xb") as target:
            while chunk := source.read(CHUNK):
                found.update(chunk)
                length += len(chunk)
                target.write(chunk)
        if (length, found.hexdigest()) != (expected["bytes"], expected["sha256"]):
            raise _refused(archive, f"{name} is not the file that {DIGESTS} was written for")
    return digests


def _listed(digests, file):
    """Read the content of `digests.json`; return its files, by name, sorted."""
    try:
        content = json.loads(digests)
    except (ValueError, RecursionError):
        content = None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise _refused(file, f"{DIGESTS} cannot be read")
    if content.get("format") != FORMAT:
        raise _refused(file, f"the archive's format is {content.get('format')!r}, this haemex reads {FORMAT}")
    if len(files) >= MOST_FILES:
        raise _refused(file, f"the bundle has {len(files)} files, more than {MOST_FILES - 1}")
    for name, entry in files.items():
        if not NAMES.fullmatch(name) or name == DIGESTS:
            raise _refused(file, f"{DIGESTS} names {name[:100]!r}, which is no file of a model bundle")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise _refused(file, f"{DIGESTS} does not state size and digest of {name}")
    return dict(sorted(files.items()))


def _refused(path, problem):
    return InputError(problem, "have the archive made and sent again (`export_bundle`)", path)
