"""Look at one patient before anything is trained: a row of numbers, warnings, and a picture of every slice.

What goes wrong on a real cohort shows at one glance at a montage: a mask that lies on the wrong side, a brain mask
that lost its vertex, a field of view that cuts the haematoma. The numbers beside it are checks with a known answer:
cerebrospinal fluid is almost water, white matter has its narrow range, acute blood another.
"""

import numpy as np

from haemex.files import read_json, write_atomically, write_json
from haemex.geometry import slice_spacing_mm
from haemex.montage import draw_montage, field_box
from haemex.nifti import read_mask_on, read_volume

# ASSUME: of a haematoma that the network's field of view or the brain mask cuts, this much is a rim of voxels that no
# result depends on.
MAX_OUTSIDE_FIELD = 0.01
MAX_OUTSIDE_BRAIN = 0.005
# ASSUME: acute blood has 50 to 80 HU; partial volume in a small haematoma, or anaemia, lowers the mean, and a rim of
# bone or calcium raises it. Brain (below 40 HU) under the mask means that it lies wrong, e.g. on the other side.
HAEMATOMA_HU = (40.0, 90.0)
# ASSUME: cerebrospinal fluid has 0 to 15 HU and white matter 20 to 35 HU; the scanner's water may be off by 5 HU (the
# tolerance of CT accreditation, ACR), and some blood in the ventricles is no fault of the calibration.
CSF_HU = (-5.0, 20.0)
WHITE_MATTER_HU = (16.0, 39.0)
# ASSUME: grey and white matter differ by 6 to 8 HU; with more noise than this they cannot be told apart by eye.
MAX_NOISE_HU = 8.0
# ASSUME: supplemental Table 1 has slices of 5 mm; beyond 7.5 mm the volume of a small haematoma rests on two slices.
MAX_SLICE_MM = 7.5

# Tissue is measured on block means of about this size, at least so deep in the brain, in its upper part: bone hardens
# the beam (5 HU and more next to the vault, dark bars between the petrous bones).
BLOCK_MM, DEEP_MM, UPPER_MM = 2.0, 20.0, 80.0
AROUND_HAEMATOMA_MM = 12.0  # oedema
# The ventricles: the middle of the brain, and at least so much darker than the deep brain's median.
MIDDLE_MM, DARKER_HU, MIN_VENTRICLE_ML = (45.0, 30.0), 10.0, 0.3  # half extents (y, x)
MIN_BLOCKS = 100  # fewer make no sound median


def inspect_patient(
    *,
    patient,
    ct_path,
    brain_path,
    haematoma_path,
    baseline_json,
    followup_json,
    skullstrip_json,
    measure_json,
    resample_json,
    field_of_view_mm,
    matrix,
    png_out,
    json_out,
):
    """Write the picture and the row of one patient.

    Parameters
    ----------
    patient : str
        The patient's code.
    ct_path : path-like
        Baseline CT in HU on its native grid.
    brain_path, haematoma_path : path-like
        Masks on that grid.
    baseline_json, followup_json : path-like
        From `convert`; the follow-up's is None where there is no follow-up scan.
    skullstrip_json, measure_json, resample_json : path-like
        From the stages of these names.
    field_of_view_mm, matrix : sequence, (3,)
        The network's grid, (x, y, z): its extent in mm and its voxels.
    png_out : path-like
        Montage of the slices, from foot to head, in radiological convention, with the outlines of brain, haematoma and
        field of view.
    json_out : path-like
        The row: see `haemex.qc.COLUMNS`. `warnings` is a list of {"problem", "action"}; shares are of 1; a value that
        could not be measured is null; `picture_px` and `key_tile_px` are those of `draw_montage`.

    Raises
    ------
    InputError
        A mask is not on the grid of the CT.
    """
    hu, affine = read_volume(ct_path)
    brain, haematoma = (read_mask_on(path, hu.shape, affine) for path in (brain_path, haematoma_path))
    baseline, skullstrip, measured, resampled = (
        read_json(path) for path in (baseline_json, skullstrip_json, measure_json, resample_json)
    )
    followup = None if followup_json is None else read_json(followup_json)
    acquisition, geometry = baseline["acquisition"], baseline["geometry"]
    slice_mm, row_mm, column_mm = slice_spacing_mm(affine)
    outside = 1.0 - resampled["haematoma_inside_fraction"]
    row = {
        "patient": patient,
        "slices": geometry["acquired_slices"],
        "matrix": [int(size) for size in geometry["shape_xyz"][:2]],
        "pixel_mm": [round(float(size), 4) for size in (column_mm, row_mm)],
        "slice_mm": round(float(slice_mm), 4),
        "tilt_deg": round(geometry["tilt_deg"], 2),
        "even": geometry["even"],
        "manufacturer": acquisition["manufacturer"],
        "model": acquisition["model"],
        "kernel": acquisition["kernel"],
        "slice_thickness_mm": acquisition["slice_thickness_mm"],
        "brain_ml": skullstrip["brain_ml"],
        "haematoma_ml": measured["baseline_ml"],
        "followup_ml": measured["followup_ml"],
        "outside_field": outside,
        "lost_ml": outside * measured["baseline_ml"],
        "outside_brain": float((haematoma & ~brain).sum() / haematoma.sum()),
        "haematoma_hu": float(hu[haematoma].mean(dtype=float)),
        **measure_tissue(hu, affine, brain, haematoma),
    }
    row["warnings"] = _warnings_of_stages(baseline, followup, skullstrip, measured) + _own_warnings(row)
    field = field_box(resampled["grid_affine"], matrix)
    picture, places = draw_montage(
        hu, affine, _caption(row, field_of_view_mm), brain=brain, haematoma=haematoma, field=field
    )
    row |= places
    write_atomically(png_out, picture)
    write_json(json_out, row)


def _warnings_of_stages(baseline, followup, skullstrip, measured):
    """Gather what convert, skullstrip and measure found worth a look."""
    scans = [("baseline CT", baseline)] + ([] if followup is None else [("follow-up CT", followup)])
    found = [
        {"problem": f"{scan}: {warning['problem']}", "action": warning["action"]}
        for scan, converted in scans
        for warning in converted["warnings"]
    ]
    return found + skullstrip["warnings"] + measured["warnings"]


def _own_warnings(row):
    """Judge the numbers of a row."""
    look = "look at the picture; draw the mask again if it is wrong"
    found = []
    if row["outside_field"] > MAX_OUTSIDE_FIELD:
        found.append(
            (
                f"{percent(row['outside_field'])} of the haematoma ({row['lost_ml']:.1f} mL) lies outside the field of"
                " view: the network never sees it",
                "enlarge resample: field_of_view_mm (config/whole_brain.yaml does), or accept the loss as the paper's"
                " protocol has it",
            )
        )
    if row["outside_brain"] > MAX_OUTSIDE_BRAIN:
        found.append(
            (
                f"{percent(row['outside_brain'])} of the haematoma lies outside the brain mask",
                "look at the picture: correct the mask where it reaches into bone, or mend the brain mask with"
                " skullstrip: seal_gap_mm",
            )
        )
    low, high = HAEMATOMA_HU
    if not low <= row["haematoma_hu"] <= high:
        found.append(
            (
                f"the haematoma has a mean of {row['haematoma_hu']:.0f} HU, where acute blood has {low:g} to"
                f" {high:g}: the mask may lie on the wrong side or on the wrong slices",
                look,
            )
        )
    for tissue_measures, value, (low, high), excuse in (
        ("the ventricles measure", row["csf_hu"], CSF_HU, "blood in the ventricles"),
        ("white matter measures", row["white_matter_hu"], WHITE_MATTER_HU, "diffuse disease"),
    ):
        if value is not None and not low <= value <= high:
            found.append(
                (
                    f"{tissue_measures} {value:.0f} HU, where {low:g} to {high:g} are plausible",
                    f"look at the picture: {excuse}, or a scan that is not in HU (rescale tags, contrast medium, a"
                    " reconstruction made for something else)",
                )
            )
    if row["white_matter_hu"] is None:
        found.append(("too little deep brain to measure white matter and noise", "look at the picture"))
    elif row["noise_hu"] is not None and row["noise_hu"] > MAX_NOISE_HU:
        found.append(
            (
                f"noise of {row['noise_hu']:.0f} HU: grey and white matter can hardly be told apart",
                "take another reconstruction, or mark the patient `poor_image_quality` 1 if the scan is not usable",
            )
        )
    if row["slice_mm"] > MAX_SLICE_MM:
        found.append(
            (
                f"slices {row['slice_mm']:.1f} mm apart: the volume of a small haematoma rests on one or two of them",
                "take a thinner reconstruction of this scan if there is one",
            )
        )
    return [{"problem": problem, "action": action} for problem, action in found]


def percent(share):
    """Print a share of 1 in per cent, one digit; what is not nothing is never printed as nothing."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _caption(row, field_of_view_mm):
    """Say the key numbers of a row in three lines."""

    def hu(value):
        return "not measurable" if value is None else f"{value:.0f} HU"

    followup = "" if row["followup_ml"] is None else f" (follow-up {row['followup_ml']:.1f} mL)"
    size = " x ".join(f"{size:g}" for size in field_of_view_mm)
    count = len(row["warnings"])
    return [
        f"Patient {row['patient']}",
        f"Haematoma {row['haematoma_ml']:.1f} mL{followup}, mean {row['haematoma_hu']:.0f} HU."
        f" Outside the field of view of {size} mm: {percent(row['outside_field'])} ({row['lost_ml']:.1f} mL);"
        f" outside the brain mask: {percent(row['outside_brain'])}.",
        f"Brain {row['brain_ml']:.0f} mL; ventricles {hu(row['csf_hu'])}, white matter {hu(row['white_matter_hu'])},"
        f" noise {hu(row['noise_hu'])}; slices {row['slice_mm']:.1f} mm apart, tilt {row['tilt_deg']:.1f} degrees;"
        f" {count or 'no'} warning{'' if count == 1 else 's'}.",
    ]


# --- tissue ------------------------------------------------------------------------------------------------------


def measure_tissue(hu, affine, brain, haematoma):
    """Measure the HU of ventricles and white matter, and the noise, in the deep upper brain.

    On means over blocks of about 2 mm within a slice, 20 mm inside the brain's edge, in its uppermost 80 mm, without
    the haematoma and 12 mm around it. Ventricles: blocks near the middle, 10 HU darker than the median, as are their
    eight neighbours; their median. White matter: of the remaining blocks, not next to a dark one, the lower of Otsu's
    two classes; its median. Noise: 1.4826 times the median absolute deviation of the pixels from the mean of the
    nine blocks around them (about 6 mm), in the remaining blocks of one kind.

    On 23 synthetic heads (known HU, noise 3 to 4.6 HU) ventricles came out 0.1 to 1.1 HU too bright (partial volume),
    white matter 0.8 HU too dark to 0.5 HU too bright, noise 5 to 20 % too high (anatomy); with a noise of 12 HU white
    matter came out 2.5 HU too dark. It is a check of the calibration, no measurement of a patient.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU, axial or tilted slices.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    brain, haematoma : numpy.ndarray of bool, (z, y, x)
        Masks on the same grid.

    Returns
    -------
    dict
        `csf_hu`, `white_matter_hu`, `noise_hu`; None where there is too little of the tissue.
    """
    nothing = {"csf_hu": None, "white_matter_hu": None, "noise_hu": None}
    slice_mm, row_mm, column_mm = map(float, slice_spacing_mm(affine))
    used = np.flatnonzero(brain.any(axis=(1, 2)))
    if used.size == 0:
        return nothing
    height = round(UPPER_MM / slice_mm)
    upper = (
        slice(max(used[0], used[-1] + 1 - height), used[-1] + 1)
        if affine[2, 2] > 0  # the last slice is the highest
        else slice(used[0], min(used[-1] + 1, used[0] + height))
    )
    size = max(1, round(BLOCK_MM / row_mm)), max(1, round(BLOCK_MM / column_mm))
    step_mm = row_mm * size[0], column_mm * size[1]
    pixels = _blocks(hu[upper], size)
    mean = pixels.mean(axis=(2, 4), dtype=np.float32)
    inside = _blocks(brain[upper], size).all(axis=(2, 4))

    lesion = grow(_blocks(haematoma[upper], size).any(axis=(2, 4)), AROUND_HAEMATOMA_MM, step_mm)
    lesion[1:], lesion[:-1] = lesion[1:] | lesion[:-1], lesion[:-1] | lesion[1:]
    deep = inside & ~grow(~inside, DEEP_MM, step_mm) & ~lesion
    if np.count_nonzero(deep) < MIN_BLOCKS:
        return nothing
    median = np.median(mean[deep])
    dark = inside & (mean < median - DARKER_HU)
    ventricle = deep & _middle(inside, step_mm) & ~grow(~dark, 1, (1, 1))
    tissue = deep & ~grow(dark, 1, (1, 1)) & (mean < median + DARKER_HU)
    found = dict(nothing)
    if np.count_nonzero(ventricle) * step_mm[0] * step_mm[1] * slice_mm / 1000 >= MIN_VENTRICLE_ML:
        found["csf_hu"] = float(np.median(mean[ventricle]))
    if np.count_nonzero(tissue) >= MIN_BLOCKS:
        white = mean[tissue]
        found["white_matter_hu"] = float(np.median(white[white <= two_class_threshold(white)]))
        even = tissue & ~grow(~tissue, 1, (1, 1))
        if np.count_nonzero(even) >= MIN_BLOCKS:
            deviation = pixels.transpose(0, 1, 3, 2, 4)[even] - _mean_of_nine(mean)[even][:, None, None]
            found["noise_hu"] = 1.4826 * float(np.median(np.abs(deviation)))
    return found


def _blocks(volume, size):
    """View (z, y, x) as (z, block row, row, block column, column); what fills no block is left out."""
    rows, columns = volume.shape[1] // size[0], volume.shape[2] // size[1]
    part = volume[:, : rows * size[0], : columns * size[1]]
    return part.reshape(len(volume), rows, size[0], columns, size[1])


def _mean_of_nine(image):
    """Average each pixel of each slice with its eight neighbours; edges repeat."""
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _middle(inside, step_mm):
    """Mark a box around the centre of mass of `inside`, all slices, (z, y, x)."""
    box = np.ones(inside.shape, bool)
    for axis, (half_mm, step) in enumerate(zip(MIDDLE_MM, step_mm, strict=True), start=1):
        profile = inside.sum(axis=(0, 3 - axis))
        index = np.arange(len(profile))
        near = np.abs(index - profile @ index / profile.sum()) * step <= half_mm
        box &= near.reshape([-1 if other == axis else 1 for other in range(3)])
    return box


def grow(mask, reach_mm, step_mm):
    """Grow a mask within its slices by a square.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (z, y, x)
        What grows.
    reach_mm : float
        Half the side of the square.
    step_mm : sequence of float
        (y, x) spacing.

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)
        Voxels no more than `reach_mm` of rows and `reach_mm` of columns away from a voxel of `mask`.
    """
    for axis, step in zip((1, 2), step_mm, strict=True):
        reach, size = int(reach_mm / step + 1e-9), mask.shape[axis]
        widths = [(reach + 1, reach) if axis == other else (0, 0) for other in range(3)]
        count = np.cumsum(np.pad(mask, widths), axis=axis, dtype=np.int32)
        ahead, behind = (
            tuple(slice(start, start + size) if axis == other else slice(None) for other in range(3))
            for start in (2 * reach + 1, 0)
        )
        mask = count[ahead] > count[behind]
    return mask


def two_class_threshold(values):
    """Find the value half-way between the means of what lies below and above it.

    Ridler and Calvard 1978 (IEEE Trans Syst Man Cybern 8:630); where it comes to rest the variance between the
    classes is stationary, as at Otsu's threshold.

    Parameters
    ----------
    values : numpy.ndarray, (n,)
        Not empty.
    """
    threshold, before = float(values.mean(dtype=float)), None
    while threshold != before:
        before, lower = threshold, values <= threshold
        if lower.all():
            break
        threshold = (float(values[lower].mean(dtype=float)) + float(values[~lower].mean(dtype=float))) / 2
        if abs(threshold - before) < 1e-6:
            break
    return threshold
