"""Haematoma volumes in mL from masks drawn on the acquired slices, and the mask on the grid of the converted CT.

A mask is accepted if it fits its CT index by index. Its own affine is asked only which way its axes run and whether it
can belong to this CT at all: ITK-SNAP, like everything that rests on ITK, squares the affine of a tilted scan, and the
mask is right all the same. What fits neither the acquired slices nor the converted CT is refused, never resampled.
"""

import os
import warnings
from pathlib import Path

import numpy as np

from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.nifti import is_nifti, read_grid, read_volume, states_orientation, write_volume
from haemex.orientation import turn, turned_affine, turning
from haemex.segmentation_metrics import dice
from haemex.shapes import even_mask

# ASSUME: programs round origins, and some count a voxel's position from its corner: half a voxel, and this.
ROUNDING_MM = 1.0
# What `mask_warnings` reports. ASSUME: blood of one haemorrhage lies closer together than FAR_MM; a piece smaller than
# SPECK_ML was drawn by a slip; more than HOLLOW of the whole enclosed and not drawn is an outline, not a mask; no
# haematoma is as large as HUGE_ML.
FAR_MM = 30.0
SPECK_ML = 0.02
HOLLOW = 0.1
HUGE_ML = 250.0
# ASSUME: no mask of a haematoma holds more, nor does the cohort table accept more; it is drawn the other way round.
MOST_ML = 1000.0


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
        The file is unreadable, no volume of single values, DICOM, or does not say how it lies.
    """
    _refuse_dicom(path)
    nifti = is_nifti(path)
    if (nifti or str(path).lower().endswith((".hdr", ".img"))) and not states_orientation(path):
        raise InputError(
            "the mask does not say how it lies (no orientation in its header): left and right could be swapped",
            "export it again with the orientation of its CT, from the program it was drawn with",
            path,
        )
    if nifti:  # SimpleITK refuses a sheared affine that has no qform beside it
        return read_volume(path)
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # jobs run side by side
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


def _refuse_dicom(path):
    """Refuse DICOM by name: contours and segmentation objects are not laid on a CT here."""
    if os.path.isdir(path):
        raise InputError("a folder where a mask file is expected", "name the mask file, as NIfTI", path)
    if not os.path.isfile(path):
        raise InputError("there is no such file", "check the path", path)
    with Path(path).open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        kinds = {"SEG": " segmentation", "RTSTRUCT": " RT structure set", "CT": " CT image"}
        kind = kinds.get(_modality(path), " file")
        raise InputError(f"a DICOM{kind} where a mask volume is expected", "export the mask as NIfTI", path)


def _modality(path):
    """Modality of a DICOM file, "" where it cannot be read."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote what the file says of the patient
        try:
            return str(pydicom.dcmread(path, specific_tags=["Modality"]).get("Modality", ""))
        except Exception:  # what pydicom raises on damaged bytes has no common class
            return ""


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
        The mask is unreadable or empty, has several labels, another shape or pixel size, lies elsewhere, or is larger
        than any haematoma.
    """
    array, mask_affine = read_mask(path)
    array, mask_affine = _turn_to(np.array(geometry["affine"]), array, mask_affine, path)
    acquired = _which_grid(array.shape[::-1], geometry, path)
    _refuse_elsewhere(array.shape[::-1], mask_affine, geometry, acquired, path)
    mask = _binary(array, path, empty_allowed)
    volume_ml = mask_volume_ml(mask, geometry, acquired)
    if volume_ml > MOST_ML:
        raise InputError(
            f"{volume_ml:.0f} mL are drawn, where no haematoma holds {MOST_ML:g} mL",
            "export the haematoma as 1 and all else as 0",
            path,
        )
    return mask, acquired


def _turn_to(affine, array, mask_affine, path):
    """Flip and swap the axes of a mask so that they run the way those of the CT do."""
    if not np.isfinite(mask_affine).all() or abs(np.linalg.det(mask_affine[:3, :3])) < 1e-9:
        raise InputError("the affine of the mask is degenerate", "export the mask on the grid of its CT", path)
    across, down, step = affine[:3, :3].T
    normal = np.cross(across, down)
    frame = np.array([across, down, normal * np.sign(normal @ step)])
    frame /= np.linalg.norm(frame, axis=1, keepdims=True)
    # Compared in the frame of the image plane and its normal, where neither tilt nor voxel shape can mislead.
    axes, flipped = turning(frame @ mask_affine[:3, :3], (1, 1, 1))
    turned = turn(array, axes, flipped)
    return turned, turned_affine(mask_affine, axes, flipped, turned.shape)


def _which_grid(shape, geometry, path):
    """Decide whether a mask stands on the acquired slices (True) or the written grid (False), or refuse it.

    The even grid of an uneven scan never has as many slices as were acquired.
    """
    columns, rows, written = geometry["shape_xyz"]
    slices = geometry["acquired_slices"]
    if shape in ((columns, rows, slices), (columns, rows, written)):
        return shape[2] == slices
    counts = f"{slices}" if written == slices else f"{slices} (converted: {written})"
    problem = (
        f"the mask has {shape[0]} x {shape[1]} pixels and {shape[2]} slices, its CT {columns} x {rows} and {counts}"
    )
    if not geometry["even"] or geometry["tilt_deg"] > 0.5:
        raise InputError(
            f"{problem}; the scan is tilted or unevenly spaced, and the volumes that dcm2niix calls _Tilt and _Eq are "
            "interpolated on another grid",
            "draw it on the DICOM series, on the converted CT (results, convert), or on dcm2niix's plain volume",
            path,
        )
    raise InputError(
        problem,
        "check that it belongs to this scan; draw or export it on the series that haemex takes (the page of `snakemake "
        "check` names it), neither cropped nor on another series",
        path,
    )


def _refuse_elsewhere(shape, mask_affine, geometry, acquired, path):
    """Refuse a mask whose pixels have another size, or that lies farther off than a squared affine explains."""
    affine = np.array(geometry["affine"])
    pixel, own = (np.linalg.norm(matrix[:3, :2], axis=0) for matrix in (affine, mask_affine))
    if np.abs(own / pixel - 1).max() > 0.05:
        raise InputError(
            f"the mask has pixels of {own[0]:.4g} x {own[1]:.4g} mm, its CT {pixel[0]:.4g} x {pixel[1]:.4g} mm",
            "draw or export it on the grid of its CT",
            path,
        )
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1)
    at, its = (
        matrix[:3, :3] @ (corners * (np.array([size]).T - 1)) + matrix[:3, 3:]
        for matrix, size in ((affine, geometry["shape_xyz"]), (mask_affine, shape))
    )
    shift = np.linalg.norm(at - its, axis=0).max()
    allowed = _explained_shift(geometry, acquired)
    if shift > allowed:
        raise InputError(
            f"the mask's grid lies up to {shift:.0f} mm from that of its CT, where {allowed:.0f} mm could be explained",
            "check that the mask belongs to this scan and is not mirrored, and export it on the grid of its CT",
            path,
        )


def _explained_shift(geometry, acquired):
    """How far the corners of a mask's grid may lie from those of its CT, mm.

    Programs that know no shear stack tilted slices along their normal, from the first slice or around the middle;
    dcm2niix keeps their direction with the distance between the planes as the step. Uneven slices are given the first
    step (dcm2niix), or the mean step (ITK).
    """
    affine = np.array(geometry["affine"])
    positions = np.array(geometry["acquired_positions_mm"])
    across, down, step = affine[:3, :3].T
    normal = np.cross(across, down)
    normal *= np.sign(normal @ step) / np.linalg.norm(normal)
    span = positions[-1] - positions[0]
    stack = step / (normal @ step)  # per mm along the normal
    count = geometry["acquired_slices"] if acquired else geometry["shape_xyz"][2]
    steps = np.diff(positions)
    lengths = [span, (count - 1) * steps[0], (count - 1) * steps[-1]] if acquired else [span]
    ends = [
        length * factor * direction
        for length in lengths
        for factor in (1.0, np.linalg.norm(stack))
        for direction in (normal, stack / np.linalg.norm(stack))
    ]
    half_voxel = (np.linalg.norm(across) + np.linalg.norm(down) + span / (count - 1)) / 2
    return max(np.linalg.norm(end - span * stack) for end in ends) + half_voxel + ROUNDING_MM


def _binary(array, path, empty_allowed):
    """Turn 0 and one positive value into 0 and 1; refuse anything else."""
    label = array.max()
    mask = array == label if label > 0 else np.zeros(array.shape, bool)
    if not (mask | (array == 0)).all():
        values = np.unique(array)
        shown = ", ".join(f"{value:g}" for value in values[:6]) + (" ..." if len(values) > 6 else "")
        action = "export the haematoma alone, as one label"
        if values[0] > -0.01 and values[-1] < 1.01:  # also 0 and 1 that were interpolated
            action = "these look like probabilities: cut them, at 0.5 for instance, and export 0 and 1"
        elif values[0] < -200:
            action = "this looks like the CT itself: name the file of the mask"
        raise InputError(f"the mask holds the values {shown} where 0 and one label are expected", action, path)
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
    return float(np.count_nonzero(mask, axis=(1, 2)) @ _voxel_ml(geometry, acquired))


def _voxel_ml(geometry, acquired):
    """Volume of a voxel of each slice, mL."""
    if geometry["even"] or not acquired:
        return np.full(geometry["shape_xyz"][2], geometry["voxel_volume_ml"])
    return np.array(geometry["slice_extent_mm"]) * geometry["area_mm2"] / 1000.0


def mask_warnings(mask, geometry, acquired):
    """Name what is odd about a mask that fits its CT.

    Parameters
    ----------
    mask, geometry, acquired
        See `mask_volume_ml`.

    Returns
    -------
    list of dict
        `problem` and `action`; empty where nothing is odd. Slices are counted from the first, beginning with 1.
    """
    drawn = np.flatnonzero(mask.any((1, 2)))
    if not len(drawn):
        return []
    found = []
    for index, name in ((0, "first"), (len(mask) - 1, "last")):
        if index in drawn:
            found.append(
                _warning(
                    f"the haematoma reaches the {name} slice of the scan",
                    "check that the scan shows all of it; what lies beyond is not measured",
                )
            )
    if mask[:, [0, -1]].any() or mask[:, :, [0, -1]].any():
        found.append(_warning("the haematoma reaches the edge of the image", "check the mask"))
    missing = sorted({*range(drawn[0], drawn[-1])} - {*drawn})
    if missing:
        numbers = ", ".join(str(index + 1) for index in missing)
        found.append(
            _warning(
                f"nothing is drawn on slice{'s' * (len(missing) > 1)} {numbers}, between drawn ones",
                "draw the haematoma there too, unless it is in two parts",
            )
        )
    whole = mask_volume_ml(mask, geometry, acquired)
    if whole > HUGE_ML:
        found.append(_warning(f"{whole:.0f} mL are drawn, more than any haematoma", "check the mask"))
    part = tuple(slice(places.min(), places.max() + 1) for places in np.nonzero(mask))
    return found + _odd_pieces(mask[part], part[0].start, geometry, acquired, whole)


def _odd_pieces(mask, first, geometry, acquired, whole):
    """Find outlines, specks and far-off pieces in the part of a mask that is drawn; `first` is its first slice."""
    from scipy import ndimage

    found = []
    voxel_ml = _voxel_ml(geometry, acquired)[first : first + len(mask)]
    filled = np.stack([ndimage.binary_fill_holes(one) for one in mask])
    enclosed = float(np.count_nonzero(filled & (mask == 0), axis=(1, 2)) @ voxel_ml)
    if enclosed > HOLLOW * whole:
        found.append(
            _warning(
                f"the mask encloses {enclosed:.2g} mL that are not drawn, besides {whole:.3g} mL that are",
                "fill the outline, if it is one",
            )
        )
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 1:
        return found
    places = np.nonzero(labels)
    number = labels[places] - 1
    volumes = np.bincount(number, weights=voxel_ml[places[0]])
    main = int(volumes.argmax())
    specks = (volumes < SPECK_ML) & (np.arange(count) != main)
    if specks.any():
        found.append(
            _warning(
                f"{specks.sum()} speck{'s' * int(specks.sum() > 1)} of less than {SPECK_ML:g} mL beside the haematoma",
                "erase what was drawn by a slip",
            )
        )
    others = ~specks[number] & (number != main)
    if others.any():
        from scipy.spatial import KDTree

        mm = _places_mm((places[0] + first, places[1], places[2]), geometry, acquired)
        nearest = np.full(count, np.inf)
        np.minimum.at(nearest, number[others], KDTree(mm[number == main]).query(mm[others])[0])
        far = volumes[np.isfinite(nearest) & (nearest > FAR_MM)].sum()
        if far:
            found.append(
                _warning(
                    f"{far:.3g} of {whole:.3g} mL lie more than {FAR_MM:g} mm from the largest piece",
                    "check that all of it is the haematoma",
                )
            )
    return found


def _places_mm(places, geometry, acquired):
    """Coordinates of voxels, (voxels, 3), mm, from (z, y, x) counted from the first; the origin is the first voxel."""
    across, down, step = np.array(geometry["affine"])[:3, :3].T
    slices = places[0]
    if acquired and not geometry["even"]:  # in steps of the even grid
        heights = np.array(geometry["acquired_positions_mm"])
        slices = ((heights - heights[0]) / (heights[-1] - heights[0]) * (geometry["shape_xyz"][2] - 1))[slices]
    return np.outer(places[2], across) + np.outer(places[1], down) + np.outer(slices, step)


def _warning(problem, action):
    return {"problem": problem, "action": action}


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
        coefficient of the second reader, the digests of the pixels, and `warnings` (see `mask_warnings`; each names
        the mask).
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
    baseline = read_json(baseline_json)
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
        "warnings": _named("baseline_mask", mask_warnings(mask, geometry, acquired)),
    }
    if followup_json is not None:
        followup = read_json(followup_json)
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
        measured["warnings"] += _named("followup_mask", mask_warnings(drawn, followup["geometry"], on_acquired))
    elif followup_volume_ml is not None:
        if not 0 <= followup_volume_ml < float("inf"):
            raise InputError(f"a follow-up volume of {followup_volume_ml:g} mL", "correct the cohort table")
        measured["followup_ml"], measured["followup_source"] = float(followup_volume_ml), "table"
    if rater2_mask is not None:
        second, on_acquired = fit_mask(rater2_mask, geometry, empty_allowed=True)
        measured["rater2_ml"] = mask_volume_ml(second, geometry, on_acquired)
        measured["warnings"] += _named("baseline_mask_rater2", mask_warnings(second, geometry, on_acquired))
        measured["rater_dice"] = (
            dice(mask, second)
            if acquired == on_acquired
            else dice(written, even_mask(second, geometry) if on_acquired else second)
        )
    write_volume(mask_out, written, read_grid(baseline_nifti)[1])
    write_json(json_out, measured)


def _named(column, found):
    """Say which mask of the cohort table warnings are about."""
    return [{**one, "problem": f"`{column}`: {one['problem']}"} for one in found]
