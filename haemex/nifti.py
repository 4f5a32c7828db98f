"""Read and write NIfTI volumes: axis order, exact affines, byte-identical files.

Arrays are (z, y, x) in memory, as everywhere in haemex; the file holds (x, y, z) and its affine takes voxel indices
(x, y, z) to patient coordinates in mm, right-anterior-superior (RAS), NIfTI's convention.
"""

import gzip
import os
import zlib
from pathlib import Path

import nibabel
import numpy as np

from haemex.errors import InputError


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
    try:
        image = nibabel.load(path)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        array = np.asarray(image.dataobj.get_unscaled())
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"not a readable NIfTI volume ({error})", "export the file again", path) from None
    array = array.reshape(array.shape[:3]) if array.ndim == 4 and array.shape[3] == 1 else array
    if array.ndim != 3:
        raise InputError(f"{array.ndim} dimensions where a volume has 3", "give one volume per file", path)
    array = array.transpose(2, 1, 0)
    if slope != 1.0 or intercept != 0.0:
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return np.ascontiguousarray(array), image.affine


def write_volume(path, array, affine, slope=None):
    """Write a 3-D volume, whole or not at all, the same bytes for the same input.

    Parameters
    ----------
    path : path-like
        Ends in `.nii.gz`.
    array : numpy.ndarray, (z, y, x)
        Written in its own type, unless `slope` is given.
    affine : array-like, (4, 4)
        Voxel index (x, y, z) to RAS, mm. May be sheared: it goes into the sform, exact to float32.
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
        path, gzip.compress(header_bytes(data.shape, data.dtype, affine, slope) + data.tobytes(), 1, mtime=0)
    )


def header_bytes(shape, dtype, affine, slope=None):
    """Make the 352 header bytes of a single-file NIfTI-1 volume.

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
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    affine = np.asarray(affine, float)
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *([1.0] * (len(shape) - 3))))
    # A qform cannot hold a shear; readers that prefer it would silently square a tilted scan, so only the sform is set.
    header.set_sform(affine, code="scanner")
    header.set_qform(None, code=0)
    header["scl_slope"], header["scl_inter"] = (1.0 if slope is None else slope), 0.0
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


def write_atomically(path, content):
    """Write bytes beside `path` and rename, so that no half-written file ever stands there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
