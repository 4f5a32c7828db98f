"""Read and write NIfTI volumes: axis order, exact affines, byte-identical files.

Arrays are (z, y, x) in memory, as everywhere in haemex; the file holds (x, y, z) and its affine takes voxel indices
(x, y, z) to patient coordinates in mm, right-anterior-superior (RAS), NIfTI's convention.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from haemex.errors import InputError
from haemex.files import write_atomically

HEADER_BYTES = 352
# zlib's level. ISA-L (isal 1.9.1, levels 1 and 2) packs in a fifth of the time, but with the same content writes other
# bytes in one process of thirty; it reads all the same.
COMPRESSION = 1
# NIfTI-1 codes of the types that haemex writes.
TYPES = {2: np.dtype(np.uint8), 4: np.dtype(np.int16), 16: np.dtype(np.float32)}
MILLIMETRES, SCANNER = 2, 1
# Axes count as degenerate where the sine of the angle between them is below this: such a grid has no orientation.
DEGENERATE = 1e-6
SINGLE_FILE = b"n+1\0"


def read_volume(path):
    """Read a 3-D volume.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`.

    Returns
    -------
    array : numpy.ndarray, (z, y, x)
        As stored where the header holds no scale (integers stay integers), else scaled float32.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Raises
    ------
    InputError
        The file is no readable NIfTI volume, or not 3-D.
    """
    array, affine, slope, intercept = _read_own(path) or _read_foreign(path)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3:
        raise InputError(f"{array.ndim} dimensions where a volume has 3", "give one volume per file", path)
    if slope != 1.0 or intercept != 0.0:
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return np.ascontiguousarray(array), affine


def read_mask_on(path, shape, affine):
    """Read a mask that must lie on a grid.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`, made by another stage.
    shape : tuple of int
        (z, y, x) of the grid.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of the grid to RAS, mm.

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)

    Raises
    ------
    InputError
        The mask has another shape, or lies elsewhere.
    """
    mask, mask_affine = read_volume(path)
    if mask.shape != shape or not np.allclose(mask_affine, affine, atol=1e-3):
        raise InputError(
            f"a mask of {' x '.join(map(str, mask.shape[::-1]))} voxels does not lie on its CT's grid of"
            f" {' x '.join(map(str, shape[::-1]))}, or stands elsewhere",
            "run the stage that made it again",
            path,
        )
    return mask > 0


def read_grid(path):
    """Read a volume's shape and affine, not its voxels.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`.

    Returns
    -------
    shape : tuple of int
        (z, y, x), of a 4-D volume with the copy before it.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Raises
    ------
    InputError
        The file is no readable NIfTI volume.
    """
    try:
        with gzip.open(path) as file:
            shape, _, affine, _ = parse_header(file.read(HEADER_BYTES))
    except (OSError, EOFError, ValueError, zlib.error):
        image = open_volume(path)
        shape, affine = tuple(int(size) for size in image.shape[::-1]), image.affine
    return shape, affine


def states_orientation(path):
    """Whether a NIfTI file says how its volume lies: its sform or its qform carries a code.

    Without one, readers disagree on left and right.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`, or one of the pair `.hdr` and `.img`.

    Raises
    ------
    InputError
        The file is no readable NIfTI volume.
    """
    try:
        with gzip.open(path) as file:
            parse_header(file.read(HEADER_BYTES))
        return True  # haemex always writes one
    except (OSError, EOFError, ValueError, zlib.error):
        header = open_volume(path).header
        return "sform_code" in header and bool(header["sform_code"] or header["qform_code"])


def _read_own(path):
    """Read a file that haemex wrote; None if another program did.

    Starting nibabel takes three times as long as reading a scan, and a study starts thousands of processes.
    """
    try:
        content = igzip.decompress(Path(path).read_bytes())
        shape, dtype, affine, slope = parse_header(content[:HEADER_BYTES])
    except (OSError, EOFError, ValueError, isal_zlib.error):
        return None
    data = content[HEADER_BYTES:]
    if len(data) != math.prod(shape) * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype).reshape(shape).copy(), affine, slope, 0.0


def open_volume(path):
    """Open any NIfTI volume with nibabel: the header, and where the voxels are.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`, or one of the pair `.hdr` and `.img`.

    Returns
    -------
    nibabel.spatialimages.SpatialImage
        Its voxels are not read yet.

    Raises
    ------
    InputError
        The file is no readable NIfTI volume, or there is none.
    """
    import nibabel

    if not os.path.isfile(path):
        raise InputError("there is no such file", "check the path", path)
    try:
        return nibabel.load(path)
    except _damages() as error:
        raise _unreadable(error, path) from None


def _read_foreign(path):
    """Read any NIfTI volume: array (..., z, y, x), affine, slope, intercept."""
    image = open_volume(path)
    try:
        stored = np.asarray(image.dataobj.get_unscaled())
    except _damages() as error:
        raise _unreadable(error, path) from None
    if stored.dtype.kind not in "biuf":
        raise InputError("colours or complex numbers where a volume has one value per voxel", "export it in grey", path)
    return stored.transpose(), image.affine, image.dataobj.slope, image.dataobj.inter


def _unreadable(error, path):
    """Make the refusal of a file that nibabel could not read; where its words repeat the path, that is left out."""
    why = " ".join(str(error).split()).replace(f"File {path}", "it").replace(str(path), "it")
    return InputError(f"not a readable NIfTI volume ({why})", "export the file again", path)


def _damages():
    """What nibabel raises on files that are no NIfTI, or damaged."""
    import nibabel

    space = nibabel.spatialimages
    return (
        nibabel.filebasedimages.ImageFileError, space.HeaderDataError, space.ImageDataError,
        OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error,
    )  # fmt: skip


def write_volume(path, array, affine, slope=None):
    """Write a 3-D volume, whole or not at all, the same bytes for the same input.

    Parameters
    ----------
    path : path-like
        Ends in `.nii.gz`.
    array : numpy.ndarray, (z, y, x)
        Written in its own type, unless `slope` is given.
    affine : array-like, (4, 4)
        Voxel index (x, y, z) to RAS, mm. May be sheared: it goes into the sform, exact to float32. See `header_bytes`.
    slope : float, optional
        Store round(array / slope) as int16 with this scale in the header.

    Raises
    ------
    ValueError
        A value does not fit into int16 at this slope.
    """
    data = np.asarray(array)
    if slope is not None:
        data = np.rint(data / slope)
        if data.size and (data.min() < -32768 or data.max() > 32767):
            raise ValueError(f"values {array.min()} to {array.max()} do not fit into int16 at slope {slope}")
        data = data.astype(np.int16)
    write_atomically(
        path, gzip.compress(header_bytes(data.shape, data.dtype, affine, slope) + data.tobytes(), COMPRESSION, mtime=0)
    )


def header_bytes(shape, dtype, affine, slope=None):
    """Make the 352 header bytes of a single-file NIfTI-1 volume.

    The sform holds the affine. The qform beside it is the affine itself where that is a rotation; of a sheared one
    (tilted gantry) it keeps the image planes and the distance between them, stacked along their normal around the same
    middle. ITK, and with it ITK-SNAP and 3D Slicer, opens a tilted scan through the qform alone: what is drawn there
    fits index by index, and its volume in mL is right. The third voxel size is the distance between the planes.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x) or (copy, z, y, x): C order in memory is NIfTI's order on disk.
    dtype : numpy.dtype
        Type of the stored numbers.
    affine : array-like, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    slope : float, optional
        Scale of the stored numbers.
    """
    affine = np.asarray(affine, np.float32).astype(float)  # as stored, so that reading gives the same header back
    header = bytearray(HEADER_BYTES)
    code = next(code for code, known in TYPES.items() if known == dtype)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape[::-1], *([1] * (7 - len(shape))))
    struct.pack_into("<2h", header, 70, code, 8 * np.dtype(dtype).itemsize)
    square = _square(affine, shape)
    zooms, quaternion, offset, code = (
        ([1.0, *np.linalg.norm(affine[:3, :3], axis=0)], [0.0] * 3, [0.0] * 3, 0) if square is None else square
    )
    struct.pack_into("<8f", header, 76, *zooms, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, HEADER_BYTES, 1.0 if slope is None else slope, 0.0)
    struct.pack_into("<B", header, 123, MILLIMETRES)
    struct.pack_into("<2h", header, 252, code, SCANNER)
    struct.pack_into("<6f", header, 256, *quaternion, *offset)
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = SINGLE_FILE
    return bytes(header)


def _square(affine, shape):
    """Square an affine around the middle of its volume, as a qform holds it.

    Returns `pixdim` 0 to 3 (handedness, voxel sizes in mm), the quaternion's b, c, d, the offset in mm, and the code;
    None where the affine is degenerate.
    """
    across, down, step = affine[:3, :3].T
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not sizes.min() > 0:
        return None
    # Sums, not products of matrices: their last digit depends on the machine, and a header is compared bit by bit.
    right, front = across / sizes[0], down / sizes[1]
    front = front - (front * right).sum() * right
    if np.linalg.norm(front) < DEGENERATE:
        return None
    front /= np.linalg.norm(front)
    normal = np.cross(right, front)
    distance = float((normal * step).sum())
    if abs(distance) < DEGENERATE * sizes[2]:
        return None
    zooms = [math.copysign(1.0, distance), sizes[0], sizes[1], abs(distance)]
    squared = np.column_stack([right * sizes[0], front * sizes[1], normal * distance])
    middle = (np.array(shape[:-4:-1]) - 1) / 2
    offset = affine[:3, 3] + ((affine[:3, :3] - squared) * middle).sum(axis=1)
    return zooms, _quaternion(np.column_stack([right, front, normal])), offset, SCANNER


def _quaternion(rotation):
    """Turn a rotation matrix into b, c, d of its unit quaternion, with a not negative (NIfTI-1, method 2)."""
    m = rotation.tolist()
    # Four times the products of each pair of a, b, c, d; the row with the largest square loses no digits.
    products = [
        [1 + m[0][0] + m[1][1] + m[2][2], m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]],
        [m[2][1] - m[1][2], 1 + m[0][0] - m[1][1] - m[2][2], m[0][1] + m[1][0], m[0][2] + m[2][0]],
        [m[0][2] - m[2][0], m[0][1] + m[1][0], 1 - m[0][0] + m[1][1] - m[2][2], m[1][2] + m[2][1]],
        [m[1][0] - m[0][1], m[0][2] + m[2][0], m[1][2] + m[2][1], 1 - m[0][0] - m[1][1] + m[2][2]],
    ]
    largest = max(range(4), key=lambda i: products[i][i])
    row = products[largest]
    norm = math.copysign(math.sqrt(sum(value * value for value in row)), row[0])
    return [value / norm + 0.0 for value in row[1:]]


def parse_header(header):
    """Read a header that `header_bytes` made.

    Parameters
    ----------
    header : bytes
        The first 352 bytes of a file.

    Returns
    -------
    shape : tuple of int
        (z, y, x) or (copy, z, y, x).
    dtype : numpy.dtype
        Type of the stored numbers.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    slope : float
        Scale of the stored numbers.

    Raises
    ------
    ValueError
        Another program made it; its header may say more than is read here.
    """
    if len(header) != HEADER_BYTES:
        raise ValueError(f"{len(header)} bytes where a header has {HEADER_BYTES}")
    dimensions = struct.unpack_from("<8h", header, 40)
    code = struct.unpack_from("<h", header, 70)[0]
    slope = struct.unpack_from("<f", header, 112)[0]
    affine = np.eye(4)
    affine[:3] = np.reshape(struct.unpack_from("<12f", header, 280), (3, 4))
    shape = dimensions[dimensions[0] : 0 : -1]
    if code not in TYPES or dimensions[0] not in (3, 4) or header_bytes(shape, TYPES[code], affine, slope) != header:
        raise ValueError("not a header that haemex writes")
    return shape, TYPES[code], affine, slope


def is_nifti(source):
    """Whether a source is a NIfTI file, by its name."""
    return str(source).lower().endswith((".nii", ".nii.gz"))
