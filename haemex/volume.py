"""Haematoma volumes in mL from masks drawn on the acquired slices, and the mask on the grid of the converted CT.

A mask is accepted if it fits its CT index by index. Its own affine is asked only which way its axes run and whether it
can belong to this CT at all: ITK-SNAP, like everything that rests on ITK, squares the affine of a tilted scan, and the
mask is right all the same.
"""

import json
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from haemex.errors import InputError
from haemex.geometry import even_mask
from haemex.nifti import is_nifti, read_volume, write_atomically, write_volume
from haemex.segmentation_metrics import dice

# ASSUME: squaring a tilted affine, and taking uneven slices for even, moves the centre by less than 35 mm.
MAX_CENTRE_SHIFT_MM = 50.0


def read_mask(path):
    """Read a mask file, whatever its values.

    Parameters
    ----------
    path : path-like
        NIfTI, or any format SimpleITK reads (.nrrd, .mha, .mhd ...).

    Returns
    -------
    array : numpy.ndarray, (z, y, x)
        As stored.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Raises
    ------
    InputError
        The file is unreadable or no volume of single values.
    """
    if is_nifti(path):  # SimpleITK refuses the sheared affine of a tilted scan
        return read_volume(path)
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:  # its text is a stack of C++ source lines
        raise InputError("not a readable image", "export the mask again, as NIfTI", path) from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError("not a volume of single values", "export one haematoma mask, as NIfTI", path)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def fit_mask(path, geometry, empty_allowed=False):
    """Read a mask and lay it on its CT, index by index.

    Parameters
    ----------
    path : path-like
        See `read_mask`.
    geometry : dict
        Of the CT, see `haemex.geometry.stack_geometry`.
    empty_allowed : bool
        Accept a mask in which nothing is drawn.

    Returns
    -------
    mask : numpy.ndarray, (z, y, x), uint8
        0 or 1.
    acquired : bool
        The mask stands on the acquired slices; False for the even grid of an uneven scan.

    Raises
    ------
    InputError
        The mask is unreadable or empty, has several labels, another shape or pixel size, or lies elsewhere.
    """
    array, mask_affine = read_mask(path)
    array, mask_affine = _turn_to(np.array(geometry["affine"]), array, mask_affine, path)
    acquired = _which_grid(array, mask_affine, geometry, path)
    return _binary(array, path, empty_allowed), acquired


def _turn_to(affine, array, mask_affine, path):
    """Flip and swap the axes of a mask so that they run the way those of the CT do."""
    if not np.isfinite(mask_affine).all() or abs(np.linalg.det(mask_affine[:3, :3])) < 1e-9:
        raise InputError("the affine of the mask is degenerate", "export the mask on the grid of its CT", path)
    across, down, step = affine[:3, :3].T
    normal = np.cross(across, down)
    frame = np.array([across, down, normal * np.sign(normal @ step)])
    frame /= np.linalg.norm(frame, axis=1, keepdims=True)
    # Compared in the frame of the image plane and its normal, where neither tilt nor voxel shape can mislead.
    seen = np.eye(4)
    seen[:3, :3] = frame @ mask_affine[:3, :3]
    turn = io_orientation(seen)
    turned = apply_orientation(array.transpose(2, 1, 0), turn)
    return turned.transpose(2, 1, 0), mask_affine @ inv_ornt_aff(turn, array.shape[::-1])


def _which_grid(array, mask_affine, geometry, path):
    """Decide whether a mask stands on the acquired slices (True) or the written grid (False), or refuse it."""
    affine = np.array(geometry["affine"])
    columns, rows, written = geometry["shape_xyz"]
    slices = geometry["acquired_slices"]
    shape = array.shape[::-1]
    if shape not in ((columns, rows, slices), (columns, rows, written)):
        raise InputError(
            f"the mask has {shape[0]} x {shape[1]} pixels and {shape[2]} slices, "
            f"its CT {columns} x {rows} and {slices}",
            "draw or export it on the CT series that haemex takes (results, convert: JSON of the scan)",
            path,
        )
    pixel, own = (np.linalg.norm(matrix[:3, :2], axis=0) for matrix in (affine, mask_affine))
    if np.abs(own / pixel - 1).max() > 0.05:
        raise InputError(
            f"the mask has pixels of {own[0]:.4g} x {own[1]:.4g} mm, its CT {pixel[0]:.4g} x {pixel[1]:.4g} mm",
            "draw or export it on the grid of its CT",
            path,
        )
    shift = np.linalg.norm(_centre(mask_affine, shape) - _centre(affine, geometry["shape_xyz"]))
    if shift > MAX_CENTRE_SHIFT_MM:
        raise InputError(
            f"the middle of the mask's grid lies {shift:.0f} mm from that of its CT",
            "check that the mask belongs to this scan, and export it on the grid of its CT",
            path,
        )
    if geometry["even"] or written != slices:
        return shape[2] == slices
    # As many even slices as uneven ones: only a mask drawn on the written volume carries its affine.
    return not np.allclose(mask_affine, affine, atol=1e-3)


def _centre(affine, shape):
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def _binary(array, path, empty_allowed):
    """Turn 0 and one positive value into 0 and 1; refuse anything else."""
    label = array.max()
    mask = array == label if label > 0 else np.zeros(array.shape, bool)
    if not (mask | (array == 0)).all():
        values = np.unique(array)
        shown = ", ".join(f"{value:g}" for value in values[:6]) + (" ..." if len(values) > 6 else "")
        raise InputError(
            f"the mask holds the values {shown} where 0 and one label are expected",
            "export the haematoma alone, as one label",
            path,
        )
    if not mask.any() and not empty_allowed:
        raise InputError("the mask is empty", "draw the haematoma, or name the right file in the cohort table", path)
    return np.ascontiguousarray(mask, dtype=np.uint8)


def mask_volume_ml(mask, geometry, acquired):
    """Measure a mask.

    Parameters
    ----------
    mask : numpy.ndarray, (z, y, x)
        0 or 1.
    geometry : dict
        Of the CT, see `haemex.geometry.stack_geometry`.
    acquired : bool
        The mask stands on the acquired slices; each then counts with its own extent.

    Returns
    -------
    float
        Volume, mL.
    """
    if geometry["even"] or not acquired:
        return float(np.count_nonzero(mask) * geometry["voxel_volume_ml"])
    pixels = np.count_nonzero(mask, axis=(1, 2))
    return float(pixels @ np.array(geometry["slice_extent_mm"]) * geometry["area_mm2"] / 1000.0)


def measure_patient(
    patient,
    baseline_mask,
    baseline_json,
    baseline_nifti,
    followup_mask,
    followup_json,
    followup_volume_ml,
    rater2_mask,
    json_out,
    mask_out,
):
    """Measure the haematoma of a patient at baseline and follow-up.

    Parameters
    ----------
    patient : str
        The patient's code.
    baseline_mask : path-like
        Haematoma on the baseline CT.
    baseline_json, baseline_nifti : path-like
        The baseline CT, from `haemex.convert.convert_scan`; of the volume only the header is read.
    followup_mask : path-like or None
        Haematoma on the follow-up CT.
    followup_json : path-like or None
        The follow-up CT.
    followup_volume_ml : float or None
        Follow-up volume from the cohort table, where there is no follow-up mask, mL.
    rater2_mask : path-like or None
        The baseline haematoma as a second reader draws it; may be empty.
    json_out : path-like
        Volumes in mL, the source of the follow-up volume ("mask", "table", or None where there is none), the Dice
        coefficient of the second reader, the digests of the pixels.
    mask_out : path-like
        The baseline mask on the grid of `baseline_nifti`, uint8.

    Raises
    ------
    InputError
        A mask does not fit, see `fit_mask`; baseline and follow-up are the same scan; mask and volume are both given,
        or the mask without its CT; the volume is impossible.
    """
    if baseline_mask is None:
        raise InputError("the cohort table names no baseline mask", "fill in `baseline_mask` of this patient")
    baseline = _read_json(baseline_json)
    geometry = baseline["geometry"]
    mask, acquired = fit_mask(baseline_mask, geometry)
    written = even_mask(mask, geometry) if acquired else mask
    measured = {
        "patient": patient,
        "baseline_ml": mask_volume_ml(mask, geometry, acquired),
        "followup_ml": None,
        "followup_source": None,
        "rater2_ml": None,
        "rater_dice": None,
        "pixel_digest": {"baseline": baseline["pixel_digest"], "followup": None},
    }
    if followup_json is not None:
        followup = _read_json(followup_json)
        measured["pixel_digest"]["followup"] = followup["pixel_digest"]
        if followup["pixel_digest"] == baseline["pixel_digest"]:
            raise InputError(
                "baseline and follow-up CT show the same pixels: one scan is given twice",
                "name the right folders in the cohort table",
                followup_mask,
            )
    if followup_mask is not None:
        if followup_volume_ml is not None:
            raise InputError(
                f"a follow-up mask and a follow-up volume of {followup_volume_ml:g} mL are both given",
                "empty one of the two cells of the cohort table",
                followup_mask,
            )
        if followup_json is None:
            raise InputError("a follow-up mask without its CT", "name the follow-up CT too", followup_mask)
        drawn, on_acquired = fit_mask(followup_mask, followup["geometry"])
        measured["followup_ml"] = mask_volume_ml(drawn, followup["geometry"], on_acquired)
        measured["followup_source"] = "mask"
    elif followup_volume_ml is not None:
        if not 0 <= followup_volume_ml < float("inf"):
            raise InputError(f"a follow-up volume of {followup_volume_ml:g} mL", "correct the cohort table")
        measured["followup_ml"], measured["followup_source"] = float(followup_volume_ml), "table"
    if rater2_mask is not None:
        second, on_acquired = fit_mask(rater2_mask, geometry, empty_allowed=True)
        measured["rater2_ml"] = mask_volume_ml(second, geometry, on_acquired)
        measured["rater_dice"] = (
            dice(mask, second)
            if acquired == on_acquired
            else dice(written, even_mask(second, geometry) if on_acquired else second)
        )
    write_volume(mask_out, written, nibabel.load(baseline_nifti).affine)
    write_atomically(json_out, (json.dumps(measured, indent=1, sort_keys=True) + "\n").encode())


def _read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
