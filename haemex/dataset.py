"""What a training job reads: augmented copies of its own patients, and unaugmented scans for validation.

`augment` writes the copies of one patient into one 4-D file, each copy its own gzip member, and the members' offsets
beside it. A training reads single copies by these offsets, without unpacking the others.
"""

import collections
import concurrent.futures
import gzip
import io
import json
import threading
import zlib
from pathlib import Path

import numpy as np
from isal import isal_zlib

from haemex.errors import InputError
from haemex.nifti import parse_header, read_volume

READERS = 2  # unpacking releases Python's lock, so the next copies are read while this one trains
AHEAD = 4  # copies


class TrainingCopies:
    """All augmented copies of some patients, read by (patient, copy).

    Parameters
    ----------
    patients : sequence of str
        The patients of one training job, and nobody else's copies are ever opened.
    augment_folder : path-like
        Holds `{patient}_ct.nii.gz`, `{patient}_haematoma.nii.gz` and `{patient}.json` of the stage `augment`.
    memory_gb : float
        Copies are kept in memory, unpacked, until this is full; the others are read whenever they are needed. What is
        returned is the same.

    Attributes
    ----------
    index : list of (str, int)
        Patient and copy, in the order of `patients`.
    grid : tuple of int
        (z, y, x), the same for all.
    slope : float
        Stored CT number times this is the normalised intensity, the same for all.
    kept_bytes : int
        What is kept, at most `memory_gb`.

    Raises
    ------
    InputError
        A file is missing, damaged or on another grid.
    """

    def __init__(self, patients, augment_folder, memory_gb):
        self.index, self._files = [], {}
        self.grid = self.slope = None
        for patient in patients:
            files = {}
            offsets = read_offsets(augment_folder, patient)
            for kind, dtype in (("ct", np.int16), ("haematoma", np.uint8)):
                path = Path(augment_folder) / f"{patient}_{kind}.nii.gz"
                shape, slope = _read_header(path, offsets[kind][0], dtype)
                if shape[0] != len(offsets[kind]):
                    raise _damaged(path, f"{shape[0]} copies, but offsets of {len(offsets[kind])}")
                if self.grid is None:
                    self.grid = shape[1:]
                if shape[1:] != self.grid:
                    raise _damaged(path, f"grid (z, y, x) {shape[1:]} where other copies have {self.grid}")
                if kind == "ct":
                    self.slope = slope if self.slope is None else self.slope
                    if slope != self.slope:
                        raise _damaged(path, f"slope {slope} where other copies have {self.slope}")
                files[kind] = (path, [*offsets[kind], path.stat().st_size], np.dtype(dtype))
            if len(offsets["ct"]) != len(offsets["haematoma"]):
                raise _damaged(
                    files["ct"][0], f"{len(offsets['ct'])} copies, but {len(offsets['haematoma'])} haematoma masks"
                )
            self._files[patient] = files
            self.index += [(patient, copy) for copy in range(len(offsets["ct"]))]
        self.kept_bytes, self._room_bytes = 0, memory_gb * 1e9
        self._kept, self._keeping = {}, threading.Lock()

    def __len__(self):
        return len(self.index)

    def read(self, position):
        """Read one copy.

        Parameters
        ----------
        position : int
            Place in `index`.

        Returns
        -------
        ct : numpy.ndarray, (z, y, x), int16
            Times `slope` is the normalised intensity.
        haematoma : numpy.ndarray, (z, y, x), uint8
            0 or 1.

        Raises
        ------
        InputError
            The file is damaged.
        """
        if position in self._kept:
            return self._kept[position]
        patient, copy = self.index[position]
        volumes = []
        for path, offsets, dtype in self._files[patient].values():
            expected = int(np.prod(self.grid)) * dtype.itemsize
            try:
                with open(path, "rb") as file:
                    file.seek(offsets[copy])
                    content = isal_zlib.decompress(file.read(offsets[copy + 1] - offsets[copy]), 31, expected)
            except (OSError, isal_zlib.error) as error:
                raise _damaged(path, f"copy {copy} cannot be read ({error})") from None
            if len(content) != expected:
                raise _damaged(path, f"copy {copy} has {len(content)} bytes where {expected} are needed")
            volumes.append(np.frombuffer(bytearray(content), dtype).reshape(self.grid))  # torch wants it writable
        size = sum(volume.nbytes for volume in volumes)
        with self._keeping:
            if position not in self._kept and self.kept_bytes + size <= self._room_bytes:
                self.kept_bytes += size
                self._kept[position] = tuple(volumes)
        return tuple(volumes)

    def read_ahead(self, order):
        """Read copies in a given order, the next ones being read meanwhile.

        Parameters
        ----------
        order : sequence of int
            Places in `index`.

        Yields
        ------
        ct : numpy.ndarray, (z, y, x), int16
        haematoma : numpy.ndarray, (z, y, x), uint8
        """
        with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
            waiting = collections.deque()
            try:
                for position in order:
                    waiting.append(readers.submit(self.read, position))
                    if len(waiting) > AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # a reader that failed, or a training that stops
                readers.shutdown(cancel_futures=True)


def epoch_order(copies, seed, purpose, epoch):
    """Draw the order of one epoch; it depends on nothing but the arguments, so a resumed training goes on alike.

    Parameters
    ----------
    copies : int
        How many there are.
    seed : int
        The study's seed.
    purpose : str
        The training job, e.g. "train paper fold1".
    epoch : int
        From 1.

    Returns
    -------
    numpy.ndarray, (copies,)
        A permutation.
    """
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}: order".encode()), epoch]).permutation(copies)


def read_scan(scan_folder, patient):
    """Read one unaugmented scan of the stage `resample` with its reference mask.

    Parameters
    ----------
    scan_folder : path-like
        Holds `{patient}_ct.nii.gz` and `{patient}_haematoma.nii.gz`.
    patient : str
        The patient.

    Returns
    -------
    ct : numpy.ndarray, (z, y, x), float32
        Normalised intensity.
    haematoma : numpy.ndarray, (z, y, x), uint8
        0 or 1.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of this grid to RAS, mm.

    Raises
    ------
    InputError
        A file is missing, damaged, or the two differ in shape.
    """
    ct, affine = read_volume(Path(scan_folder) / f"{patient}_ct.nii.gz")
    mask_path = Path(scan_folder) / f"{patient}_haematoma.nii.gz"
    haematoma, _ = read_volume(mask_path)
    if haematoma.shape != ct.shape:
        raise InputError(
            f"shape (z, y, x) {haematoma.shape}, but the CT has {ct.shape}", "run the stage resample again", mask_path
        )
    return ct.astype(np.float32, copy=False), haematoma, affine


def read_offsets(augment_folder, patient):
    """Read where each copy's gzip member begins.

    Parameters
    ----------
    augment_folder : path-like
        Holds `{patient}.json` of the stage `augment`.
    patient : str
        The patient.

    Returns
    -------
    dict of str to list of int
        `ct` and `haematoma`, bytes.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    path = Path(augment_folder) / f"{patient}.json"
    try:
        content = json.loads(path.read_bytes())
        offsets = {kind: [int(offset) for offset in content[f"{kind}_offsets"]] for kind in ("ct", "haematoma")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"no readable offsets of copies ({error})") from None
    if not all(offsets.values()):
        raise _damaged(path, "no copies")
    return offsets


def content_record(path, offsets=()):
    """Record what a gzip file holds without unpacking it: its size and the checksums gzip keeps of the content.

    Parameters
    ----------
    path : path-like
        A gzip file.
    offsets : sequence of int
        Where further members begin; the checksum of a member stands before the next one and at the end.

    Returns
    -------
    list
        Size in bytes, then the last 8 bytes (CRC-32 and length of the content) of every member, hexadecimal.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            ends = [*offsets, size]
            record = [size]
            for end in ends:
                file.seek(max(end - 8, 0))
                record.append(file.read(8).hex())
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error})") from None
    return record


def _read_header(path, length, dtype):
    """Read shape (copy, z, y, x) and slope from the first gzip member."""
    try:
        with open(path, "rb") as file:
            shape, stored, _, slope = parse_header(gzip.decompress(file.read(length)))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, f"no readable header ({error})") from None
    if len(shape) != 4 or stored != dtype:
        raise _damaged(path, f"{len(shape)} dimensions of {stored} where 4 of {np.dtype(dtype)} belong")
    return shape, slope


def _damaged(path, problem):
    return InputError(problem, "remove the file and run the workflow again, which makes it anew", path)
