"""From a DICOM folder, or a NIfTI file, to one head CT in Hounsfield units with its exact place in space."""

import glob
import hashlib
import re
from pathlib import Path

import numpy as np

from haemex.dicom import AIR_HU, read_hu, tag_number
from haemex.errors import InputError
from haemex.files import write_json
from haemex.geometry import MIN_SLICES, even_volume, geometry_warnings, stack_geometry
from haemex.nifti import is_nifti, open_volume, read_volume, write_volume
from haemex.series import find_series, plan_series, series_warnings
from haemex.series_kind import MAX_TILT_DEG

SHEAR_DEG = 0.5  # what is less may come from rounding
ALIGNED = 2  # NIfTI's code of a volume laid on another one by shifts and turns; larger ones are of stretched heads


def convert_scan(source, nifti_out, json_out, slice_thickness_mm, series=None):
    """Write one scan as NIfTI in Hounsfield units, with a JSON of its acquisition and geometry.

    Parameters
    ----------
    source : path-like
        DICOM folder, or a NIfTI file in Hounsfield units.
    nifti_out, json_out : path-like
        Written, whole or not at all. The volume is int16, padding -1024 HU. The JSON holds `acquisition`, `geometry`
        (see `stack_geometry`), `series` (taken, others with their reasons), `warnings` (each `problem` and `action`)
        and `pixel_digest`, SHA-256 of the HU of the acquired slices. Neither holds a name, date, UID or description.
    slice_thickness_mm : float
        Of several head CT series the one nearest to this is taken, mm.
    series : str, optional
        Label of the series to take, as the cohort table pins it.

    Raises
    ------
    InputError
        The scan cannot be used; see `find_series`, `plan_series`, `read_hu`, `read_nifti_scan`.
    """
    if not str(source):  # "" would be the folder one stands in
        raise InputError("the cohort table names no scan", "fill in the cell of this patient's CT")
    if is_nifti(source):
        refuse_pin(source, series)
        hu, description = read_nifti_scan(source)
    else:
        hu, description = read_dicom_scan(source, slice_thickness_mm, series)
    description["pixel_digest"] = hashlib.sha256(hu.astype("<i2", copy=False).tobytes()).hexdigest()
    geometry = description["geometry"]
    write_volume(nifti_out, hu if geometry["even"] else even_volume(hu, geometry), geometry["affine"])
    write_json(json_out, description)


def refuse_pin(path, series):
    """Refuse a series pinned for a scan that has none."""
    if series:
        raise InputError(
            f"series {series} is pinned in the cohort table, and a NIfTI file holds no series",
            "leave `baseline_series` (or `followup_series`) empty, or give the DICOM folder",
            path,
        )


def read_dicom_scan(folder, slice_thickness_mm, series=None):
    """Choose a series and read it.

    Parameters
    ----------
    folder : path-like
        DICOM folder.
    slice_thickness_mm : float
        As for `find_series`, mm.
    series : str, optional
        Label of the series to take, as the cohort table pins it.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The acquired slices.
    description : dict
        `acquisition`, `geometry`, `series`, `warnings`.

    Raises
    ------
    InputError
        See `find_series`, `plan_series`, `read_hu`; also two different images at one position.
    """
    taken, others = find_series(folder, slice_thickness_mm, series)
    slices, geometry = plan_series(taken)
    hu = np.empty((len(slices), taken.headers[0].Rows, taken.headers[0].Columns), np.int16)
    for index, same in enumerate(slices):
        hu[index] = read_hu(same[0])
    description = {
        "acquisition": _acquisition(taken, slices, geometry),
        "geometry": geometry,
        "series": {
            "taken": {
                "label": taken.label,
                "number": taken.number,
                "files": taken.files,
                "slice_thickness_mm": taken.slice_thickness_mm,
                "kernel": taken.kernel,
                **({"pinned": True, "against": taken.reason} if taken.pinned else {}),
            },
            "others": [one.summary() for one in others],
        },
        "warnings": series_warnings(taken, others) + geometry_warnings(geometry) + _value_warnings(hu),
    }
    return hu, description


def _value_warnings(hu):
    """Say that values are no Hounsfield units of a head, where the tags claim that they are."""
    low, high = int(hu.min()), int(hu.max())
    if _shows_air_and_bone(low, high):
        return []
    return [
        {
            "problem": f"values from {low} to {high} HU: a head CT holds air and bone",
            "action": "look at the images: they may be windowed, or RescaleIntercept may be wrong",
        }
    ]


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
        `.nii` or `.nii.gz`, Hounsfield units. Its axes may stand in any order; those of the result are turned so that
        the third runs through axial slices.

    Returns
    -------
    hu : numpy.ndarray, (z, y, x), int16
        The slices.
    description : dict
        `acquisition`, `geometry`, `series`, `warnings`; what only DICOM tells is None.

    Raises
    ------
    InputError
        The file is unreadable, not axial, of unknown orientation, or its values cannot be HU of a whole head.
    """
    geometry, order = _nifti_layout(path)
    values = read_volume(path)[0].transpose([2 - axis for axis in reversed(order)])
    if values.dtype.kind == "f":
        unknown = np.isnan(values)
        # ASSUME: a volume that was resampled holds NaN around the scanned field, corners included.
        if unknown.any() and not unknown[:: len(unknown) - 1, :: unknown.shape[1] - 1, :: unknown.shape[2] - 1].any():
            raise InputError("values that are no numbers within the volume", "export the scan again", path)
        values = np.where(unknown, np.float32(AIR_HU), values)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or not _shows_air_and_bone(low, high):
        raise InputError(
            f"values from {low:g} to {high:g} are not Hounsfield units of a whole head",
            "give the scan in HU, neither windowed nor skull-stripped, or as DICOM",
            path,
        )
    columns, rows = geometry["shape_xyz"][:2]
    spacing = np.linalg.norm(np.array(geometry["affine"])[:3, :2], axis=0).tolist()
    unknown = ("manufacturer", "model", "slice_thickness_mm", "window_width", "window_level", "kernel", "kvp")
    description = {
        "acquisition": {
            **dict.fromkeys(unknown),
            "slices": geometry["acquired_slices"],
            "matrix": [columns, rows],
            "pixel_spacing_mm": spacing,
            "field_of_view_mm": [columns * spacing[0], rows * spacing[1]],
        },
        "geometry": geometry,
        "series": {
            "taken": {"label": None, "number": None, "files": 1, "slice_thickness_mm": None, "kernel": None},
            "others": [],
        },
        "warnings": geometry_warnings(geometry),
    }
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16), description


def _shows_air_and_bone(low, high):
    """Whether values can be Hounsfield units of a whole head.

    Stored values without their intercept, windowed or skull-stripped volumes lack air or bone.
    """
    # ASSUME: a whole head CT holds air (below -200 HU) and bone (above 200 HU).
    return low <= -200 and high >= 200


def _nifti_layout(path):
    """Work out the geometry of a NIfTI scan from its header, and the order of its axes that makes axial slices."""
    header = open_volume(path).header
    shape = header.get_data_shape()
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise InputError(f"shape {shape} is no stack of slices", "give one volume per file", path)
    if header.get_data_dtype().fields or header.get_data_dtype().kind not in "iuf":
        raise InputError("a picture in colour, or of complex numbers", "give the scan in Hounsfield units", path)
    if not header["sform_code"] and not header["qform_code"]:
        raise InputError("the file does not say how the volume lies", "export the scan again, with its affine", path)
    affine = np.array(header.get_best_affine(), float)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    unit = {1: "meter", 3: "micron"}.get(int(header["xyzt_units"]) & 7, "mm")  # nibabel fails on unknown codes
    if unit != "mm" or 0 < sides.min() < 0.05 or sides.max() > 30:
        raise InputError(
            f"voxels of {sides[0]:.3g} x {sides[1]:.3g} x {sides[2]:.3g} {unit}",
            "give the scan with an affine in millimetres",
            path,
        )
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod():
        raise InputError("the affine is degenerate", "export the scan again", path)
    # The axis nearest to the body's may stand anywhere: coronal and sagittal orders are turned.
    axial = int((np.abs(affine[2, :3]) / sides).argmax())
    order = [axis for axis in range(3) if axis != axial] + [axial]
    affine = affine[:, [*order, 3]]
    columns, rows, count = (shape[axis] for axis in order)
    across, down, step = affine[:3, :3].T
    normal = np.cross(across, down)
    side = sorted(np.linalg.norm([across, down], axis=1))
    if abs(normal[2]) / np.linalg.norm(normal) < np.cos(np.radians(MAX_TILT_DEG)) or (
        axial != 2 and side[1] > 2 * side[0]
    ):
        raise InputError("no axis runs through axial slices", "store axial slices", path)
    if count < MIN_SLICES:
        raise InputError(f"shape {shape} is no stack of slices", "give one volume per file", path)
    origins = affine[:3, 3] + np.outer(np.arange(count), step)
    geometry = stack_geometry(origins, across, down, columns, rows, path)
    _refuse_doubtful_affine(header, geometry["tilt_deg"] > SHEAR_DEG, shape, path)
    return geometry, order


def _refuse_doubtful_affine(header, sheared, shape, path):
    """Refuse a file whose two affines contradict each other, or whose affine is known to be wrong."""
    # dcm2niix writes a tilted or uneven scan twice: as acquired, with an affine that cannot be right, and corrected.
    name = re.sub(r"\.nii(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)
    corrected = [
        other for kind in ("Tilt", "Eq") for other in Path(path).parent.glob(f"{glob.escape(name)}_{kind}*.nii*")
    ]
    made_by_dcm2niix = bytes(header["descrip"]).startswith(b"Time=")
    if corrected or (sheared and made_by_dcm2niix):
        raise InputError(
            "the plain dcm2niix conversion of a scan with tilted gantry or uneven slices, which misplaces them",
            "give the DICOM folder (or the file that dcm2niix names _Tilt or _Eq)",
            path,
        )
    if max(header["sform_code"], header["qform_code"]) > ALIGNED:
        raise InputError(
            "the file says that the head was brought to a standard space (Talairach or MNI): volumes would be wrong",
            "give the scan as it was acquired; if it is, set its sform and qform codes to 1",
            path,
        )
    if header["sform_code"] and header["qform_code"] and not sheared:  # a qform cannot hold a shear
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
        try:
            qform = header.get_qform()
        except ValueError:  # a quaternion longer than 1, by rounding: programs that read it fall back on the sform
            return
        apart = [affine[:3, :3] @ corners + affine[:3, 3:] for affine in (header.get_sform(), qform)]
        distance = np.linalg.norm(apart[0] - apart[1], axis=0).max()
        # ASSUME: rounding explains less than a millimetre.
        if not distance < 1.0:
            raise InputError(
                f"the sform and the qform of the file contradict each other by up to {distance:.0f} mm",
                "export the scan again, or make them equal where you know which is right",
                path,
            )
