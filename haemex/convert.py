"""From a DICOM folder, or a NIfTI file, to one head CT in Hounsfield units with its exact place in space."""

import hashlib
import json

import numpy as np

from haemex.dicom import AIR_HU, read_hu, tag_number
from haemex.errors import InputError
from haemex.geometry import MIN_SLICES, even_volume, stack_geometry
from haemex.nifti import is_nifti, read_volume, write_atomically, write_volume
from haemex.series import MAX_TILT_DEG, find_series, plan_series


def convert_scan(source, nifti_out, json_out, slice_thickness_mm):
    """Write one scan as NIfTI in Hounsfield units, with a JSON of its acquisition and geometry.

    Parameters
    ----------
    source : path-like
        DICOM folder, or a NIfTI file in Hounsfield units with its slices along the third axis.
    nifti_out, json_out : path-like
        Written, whole or not at all. The volume is int16, padding -1024 HU. The JSON holds `acquisition`, `geometry`
        (see `stack_geometry`), `series` (taken, others with their reasons) and `pixel_digest`, SHA-256 of the HU of
        the acquired slices. Neither holds a name, date, UID or description.
    slice_thickness_mm : float
        Of several head CT series the one nearest to this is taken, mm.

    Raises
    ------
    InputError
        The scan cannot be used; see `find_series`, `plan_series`, `read_hu`, `read_nifti_scan`.
    """
    if not str(source):  # "" would be the folder one stands in
        raise InputError("the cohort table names no scan", "fill in the cell of this patient's CT")
    hu, description = read_nifti_scan(source) if is_nifti(source) else read_dicom_scan(source, slice_thickness_mm)
    description["pixel_digest"] = hashlib.sha256(hu.astype("<i2", copy=False).tobytes()).hexdigest()
    geometry = description["geometry"]
    write_volume(nifti_out, hu if geometry["even"] else even_volume(hu, geometry), geometry["affine"])
    write_atomically(json_out, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())


def scan_geometry(source, slice_thickness_mm):
    """Work out the geometry of a scan from headers alone.

    Parameters
    ----------
    source : path-like
        DICOM folder or NIfTI file.
    slice_thickness_mm : float
        As for `find_series`, mm.

    Returns
    -------
    dict
        See `stack_geometry`.

    Raises
    ------
    InputError
        No series, several, or a series whose geometry cannot be used.
    """
    if is_nifti(source):
        return _nifti_geometry(source)
    return plan_series(find_series(source, slice_thickness_mm)[0])[1]


def read_dicom_scan(folder, slice_thickness_mm):
    """Choose a series and read it.

    Parameters
    ----------
    folder : path-like
        DICOM folder.
    slice_thickness_mm : float
        As for `find_series`, mm.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The acquired slices.
    description : dict
        `acquisition`, `geometry`, `series`.

    Raises
    ------
    InputError
        See `find_series`, `plan_series`, `read_hu`; also two different images at one position.
    """
    taken, others = find_series(folder, slice_thickness_mm)
    slices, geometry = plan_series(taken)
    hu = np.empty((len(slices), taken.headers[0].Rows, taken.headers[0].Columns), np.int16)
    for index, same in enumerate(slices):
        hu[index] = read_hu(same[0])
        for other in same[1:]:
            if not np.array_equal(read_hu(other), hu[index]):
                raise InputError(
                    f"a second image at the position of slice {index + 1} shows something else",
                    "keep one acquisition in the folder",
                    other.filename,
                )
    description = {
        "acquisition": _acquisition(taken, slices, geometry),
        "geometry": geometry,
        "series": {
            "taken": {
                "number": taken.number,
                "files": len(taken.headers),
                "slice_thickness_mm": taken.slice_thickness_mm,
                "kernel": taken.kernel,
            },
            "others": [one.summary() for one in others],
        },
    }
    return hu, description


def _acquisition(series, slices, geometry):
    """Collect the acquisition parameters of supplemental Table 1, from the slice in the middle."""
    header = slices[len(slices) // 2][0]
    columns, rows = geometry["shape_xyz"][:2]
    row_spacing, column_spacing = map(float, header.PixelSpacing)
    return {
        "manufacturer": str(header.get("Manufacturer") or "").strip() or None,
        "model": str(header.get("ManufacturerModelName") or "").strip() or None,
        "slice_thickness_mm": series.slice_thickness_mm,
        "slices": len(slices),
        "matrix": [columns, rows],
        "pixel_spacing_mm": [column_spacing, row_spacing],
        "field_of_view_mm": [columns * column_spacing, rows * row_spacing],
        "window_width": tag_number(header, "WindowWidth"),
        "window_level": tag_number(header, "WindowCenter"),
        "kernel": series.kernel,
        "kvp": tag_number(header, "KVP"),
    }


def read_nifti_scan(path):
    """Read a scan that comes as NIfTI.

    Parameters
    ----------
    path : path-like
        `.nii` or `.nii.gz`, Hounsfield units.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The slices.
    description : dict
        `acquisition`, `geometry`, `series`; what only DICOM tells is None.

    Raises
    ------
    InputError
        The file is unreadable, not axial, of unknown orientation, or its values cannot be HU of a whole head.
    """
    geometry = _nifti_geometry(path)
    values, _ = read_volume(path)
    low, high = float(values.min()), float(values.max())
    # ASSUME: a whole head CT holds air (below -200 HU) and bone (above 200 HU); stored values without the
    # intercept, windowed or skull-stripped volumes lack one or the other.
    if not (np.isfinite(low) and np.isfinite(high)) or low > -200 or high < 200:
        raise InputError(
            f"values from {low:g} to {high:g} are not Hounsfield units of a whole head",
            "give the scan in HU, neither windowed nor skull-stripped, or as DICOM",
            path,
        )
    columns, rows, count = geometry["shape_xyz"]
    spacing = np.linalg.norm(np.array(geometry["affine"])[:3, :2], axis=0).tolist()
    unknown = ("manufacturer", "model", "slice_thickness_mm", "window_width", "window_level", "kernel", "kvp")
    description = {
        "acquisition": {
            **dict.fromkeys(unknown),
            "slices": count,
            "matrix": [columns, rows],
            "pixel_spacing_mm": spacing,
            "field_of_view_mm": [columns * spacing[0], rows * spacing[1]],
        },
        "geometry": geometry,
        "series": {"taken": {"number": None, "files": 1, "slice_thickness_mm": None, "kernel": None}, "others": []},
    }
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16), description


def _nifti_geometry(path):
    """Work out the geometry of a NIfTI scan from its header."""
    import nibabel

    try:
        header = nibabel.load(path).header
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise InputError(f"not a readable NIfTI volume ({error})", "check the path in the cohort table", path) from None
    shape = header.get_data_shape()
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or shape[2] < MIN_SLICES:
        raise InputError(f"shape {shape} is no stack of slices", "give one volume per file", path)
    if not header["sform_code"] and not header["qform_code"]:
        raise InputError("the file does not say how the volume lies", "export the scan again, with its affine", path)
    affine = header.get_best_affine()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    if not np.isfinite(affine).all() or length == 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("the affine is degenerate", "export the scan again", path)
    if abs(normal[2]) / length < np.cos(np.radians(MAX_TILT_DEG)):
        raise InputError("the third axis does not run through axial slices", "store axial slices", path)
    origins = affine[:3, 3] + np.outer(np.arange(shape[2]), affine[:3, 2])
    return stack_geometry(origins, affine[:3, 0], affine[:3, 1], shape[0], shape[1], path)
