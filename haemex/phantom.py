"""Synthetic patients with a known truth: two scans of one head as DICOM, the readers' masks, and what is true of them.

No public data set has baseline CT, follow-up CT, masks and expansion, so the demo and the tests make their patients.
`phantom_cohort` decides who they are; here one of them is rendered. Everything is a function of the head's own frame
(mm; x to the patient's left, y to the back, z to the vertex), so that both scans show the same head: the brain is a
volume made from an average brain, the skull and face are levels (positive inside, about the distance to the surface
in mm) known on coarse points and interpolated, the haematoma is laid into them. Each slice is the mean of thinner
sub-slices (partial volume); the scanner then blurs, hardens and adds its noise.
"""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from haemex.files import write_json
from haemex.nifti import write_volume
from haemex.phantom_background import make_background_patient
from haemex.phantom_brain import TISSUES, brain_volume, draw_brain, sample, structures
from haemex.phantom_dicom import write_map, write_scan, write_scout
from haemex.phantom_fields import generator, paint, soft
from haemex.phantom_haematoma import (
    SIGN_BITS,
    at_timepoint,
    draw_haematoma,
    grow,
    growth_on,
    lay,
    lay_ventricular_blood,
    place_signs,
    room,
    second_reading,
    settle,
    sign_voxels,
)
from haemex.phantom_planes import bands, interpolation, plane, points, resized, window_around
from haemex.phantom_scanner import acquire, draw_scan, surroundings, thin
from haemex.phantom_skull import compose, draw_skull, outer_reach, skull_levels, slab_fraction

SUB_SLICES = 3
BRAIN_SPACING_MM, BRAIN_SPACING_PIXELS = 1.0, 1.35  # of the brain volume: the larger of both
LEVEL_STEP_MM = 2.7
FAR_MM = -12.0  # a level that stays below is nowhere near
MARGIN_MM = 12.0  # nose and ears
EDGE_MM = 1.2  # of the tissue that blood may fill
LATTICE_MM = 3.0
VENTRICLES_MM = 80.0  # all of them lie within
REACH, OEDEMA_MM = 2.6, 14.0  # how far haematoma and oedema can get, in equivalent radii and beyond
VOXELS = {"baseline": "voxels", "followup": "followup_voxels"}

# Labels of the tissue map beyond those of the brain.
BEYOND_BRAIN = {"haematoma": 60, "bone": 70, "soft tissue": 71, "fat": 72, "air in the head": 73}


def draw_head(patient, seed):
    """Draw the head that a patient's two scans share: a dict of parameters for `phantom_brain` and `phantom_skull`."""
    row = patient["row"]
    head = {"name": row["patient"], "seed": seed, "sex": row["sex"], "age": row["age_years"]}
    for part, draw in (("brain", draw_brain), ("skull", draw_skull)):
        head |= draw(generator(seed, row["patient"], part), row["age_years"], row["sex"])
    return head | {"reach": outer_reach(head)}


def draw_lesion(patient, head, matrix, seed):
    """Draw the haematoma of a patient where this head has room for it, its signs placed on the baseline scan's slices.

    Returns
    -------
    dict
        See `phantom_haematoma.make_haematoma`; for `phantom_haematoma.at_timepoint`.
    """
    return _drawn_and_grown(patient, head, matrix, seed)[0]


def _drawn_and_grown(patient, head, matrix, seed):
    """Give `draw_lesion`'s haematoma and, since its signs had to know it, how it has grown on the baseline scan."""
    lesion = settle(draw_haematoma(patient, head, seed), _room(head))
    grown = _grown(patient, "baseline", matrix, seed, head, lesion)
    return place_signs(grown["scan"], grown["mask"], grown["lesion"], grown["threshold_mm"]), grown


def _grown(patient, timepoint, matrix, seed, head, lesion):
    """Grow a haematoma on one of the scans to the voxels that were drawn: what `render_scan` returns of it."""
    now = at_timepoint(lesion, timepoint)
    scan = draw_scan(patient, head["reach"], timepoint, matrix, seed)
    free = _free(head, now)
    mask, threshold = grow(scan, now, patient["truth"][VOXELS[timepoint]], lambda x, y, z: free(x, y, z) > 0)
    return {"scan": scan, "lesion": now, "mask": mask, "threshold_mm": threshold, "free": free}


def render_scan(patient, timepoint, matrix, seed, head=None, lesion=None):
    """Render one scan of a synthetic patient.

    Parameters
    ----------
    patient : dict
        From `phantom_cohort.draw_patients`, drawn for this matrix.
    timepoint : {"baseline", "followup"}
    matrix : int
        Pixels per row and column.
    seed : int
        The seed given to `draw_patients`.
    head, lesion : dict, optional
        From `draw_head` and `draw_lesion`, where they are at hand.

    Returns
    -------
    dict
        `hu` int16, `mask` uint8 (the haematoma as the first reader drew it, which is exact), `cavity` float32 (fraction
        of each voxel inside the skull), `tissue` uint8 (labels in mid-slice, `BEYOND_BRAIN` and the brain's), all
        (z, y, x); `scan`, `head`, `lesion`, `threshold_mm` (equivalent radius at which the haematoma ends); `brain`
        and `free`, for a second reconstruction.

    Raises
    ------
    InputError
        The head has no room for the haematoma.
    """
    head = draw_head(patient, seed) if head is None else head
    lesion = draw_lesion(patient, head, matrix, seed) if lesion is None else lesion
    return _rendered(patient, timepoint, seed, head, _grown(patient, timepoint, matrix, seed, head, lesion))


def _rendered(patient, timepoint, seed, head, grown):
    """Render the scan on which a haematoma has been grown: what `render_scan` returns."""
    scan, now = grown["scan"], grown["lesion"]
    brain = brain_volume(head, now, max(BRAIN_SPACING_MM, BRAIN_SPACING_PIXELS * scan["pixel_mm"]))
    ideal, cavity, tissue = _project(scan, head, now, grown["threshold_mm"], brain, grown["free"])
    tissue[grown["mask"] > 0] = BEYOND_BRAIN["haematoma"]
    hu = acquire(ideal, scan, (seed, patient["row"]["patient"], timepoint, "noise"))
    return grown | {"hu": hu, "cavity": cavity, "tissue": tissue, "head": head, "brain": brain}


def _room(head):
    """Make the question how far inside the tissue that blood may fill a point lies, mm."""
    return lambda x, y, z, lesion: room(structures(x, y, z, head, lesion), lesion)


def _free(head, lesion):
    """Ask `_room` once on a lattice around a haematoma, and interpolate: a function of points x, y, z."""
    from scipy.ndimage import map_coordinates

    half = VENTRICLES_MM if lesion["where"] == "ventricle" else REACH * lesion["radius"] + OEDEMA_MM
    axes = [start + np.arange(0, 2 * half + LATTICE_MM, LATTICE_MM) for start in np.asarray(lesion["centre"]) - half]
    reach = head["reach"]  # outside the head there is no room
    for axis, (middle, extent) in enumerate(zip(reach["centre"], reach["half"], strict=True)):
        axes[axis] = axes[axis][np.abs(axes[axis] - middle) < extent + LATTICE_MM].astype(np.float32)
    first = [axis[0] for axis in axes]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    level = np.asarray(_room(head)(x, y, z, lesion), np.float32)

    def free(x, y, z):
        at = np.stack([(p - np.float32(start)) / LATTICE_MM for p, start in zip((z, y, x), first[::-1], strict=True)])
        return map_coordinates(level, at, order=1, mode="constant", cval=-99.0)

    return free


def _project(scan, head, lesion, threshold, brain, free, sub_slices=SUB_SLICES):
    """Average the sub-slices of each slice into an ideal image, HU without blur or noise, and note what lies where.

    Returns
    -------
    ideal, cavity : array of float32, (z, y, x)
    tissue : array of uint8, (z, y, x)
    """
    matrix, pixel = scan["matrix"], scan["pixel_mm"]
    parts = (np.arange(sub_slices) + 0.5) / sub_slices - 0.5
    (first_row, last_row), (first_column, last_column) = _head_window(scan, head)
    rows, columns = np.arange(first_row, last_row), np.arange(first_column, last_column)
    step = max(1, round(LEVEL_STEP_MM / pixel))
    coarse_rows, up_rows = interpolation(len(rows), step)
    coarse_columns, up_columns = interpolation(len(columns), step)
    up = bands(up_rows), bands(up_columns)
    patch = np.s_[first_row:last_row, first_column:last_column]
    middle = sub_slices // 2
    ideal = np.empty((len(scan["origins"]), matrix, matrix), np.float32)
    cavity = np.zeros_like(ideal)
    tissue = np.zeros(ideal.shape, np.uint8)
    for number, image in enumerate(ideal):
        at = plane(scan, number, parts)
        coarse = skull_levels(*points(at, coarse_rows + first_row, coarse_columns + first_column), head)
        image[:] = surroundings(scan, number)
        if coarse["skin"].max() < -pixel:  # above the vertex
            continue
        levels = {name: _refined(level, *up) for name, level in coarse.items()}
        hu = compose(levels, at, rows, columns, head)
        inside = slab_fraction(levels["cavity"], pixel)
        wet, spots = _cavity_window(inside, step)
        label = None
        if wet is not None:  # the brain is far smaller than the head
            own = rows[wet[0]], columns[wet[1]]
            content = sample(brain, at, *own)
            if lesion["ventricular_blood"]:
                ventricle = sample(brain, at, *own, "ventricle")
                lay_ventricular_blood(content, at, *own, lesion, ventricle)
            if window_around(at, lesion, REACH * threshold + OEDEMA_MM, (matrix, matrix)) is not None:
                level = free(*points(at, coarse_rows[spots[0]] + first_row, coarse_columns[spots[1]] + first_column))
                may = _refined(level, bands(up_rows[wet[0], spots[0]]), bands(up_columns[wet[1], spots[1]]))
                lay(content, at, *own, lesion, threshold, np.broadcast_to(soft(may, EDGE_MM), content.shape))
            inside = inside[(slice(None), *wet)]
            paint(hu[(slice(None), *wet)], content, inside)
            label = sample(brain, _only(at, middle), *own, "tissue")[0]
        tissue[number][patch] = _labels(hu[middle], levels["skin"][-1 if len(levels["skin"]) == 1 else middle])
        if wet is not None:
            within = inside[middle] > 0.5
            tissue[number][patch][wet][within] = label[within]
            cavity[number][patch][wet] = inside.mean(0)
        image[patch] += (hu + 1000).mean(0) - soft(levels["skin"], pixel).mean(0) * (image[patch] + 1000)
    return ideal, cavity, tissue


def _cavity_window(inside, step):
    """Find the pixels of a slice that hold anything inside the skull, from one spot of the coarse lattice to another.

    Returns
    -------
    pixels, spots : tuple of slice, or None
        Rows and columns: of pixels, and of the spots of the lattice (every `step` pixels) around them.
    """
    wet = inside.max(0) > 0
    if not wet.any():
        return None, None
    pixels, spots = [], []
    for axis, size in enumerate(wet.shape):
        there = np.flatnonzero(wet.any(1 - axis))
        first = there[0] // (2 * step) * 2  # an even pixel: `sample` takes every second one
        last = min(there[-1] // step + 2, (size - 2) // step + 2)
        pixels.append(slice(first * step, min((last - 1) * step + 1, size)))
        spots.append(slice(first, last))
    return tuple(pixels), tuple(spots)


def _head_window(scan, head):
    """First and last pixel, of rows and of columns, that the head can reach on any slice."""
    reach = head["reach"]
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    corners = (reach["centre"] + signs * (reach["half"] + MARGIN_MM)) @ scan["turn"].T + scan["position"]
    steps = scan["pixel_mm"] * np.array([scan["column_direction"][1], 1.0])
    at = (corners - scan["origins"][0])[:, [1, 0]] / steps
    low = np.maximum(np.floor(at.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(at.max(0)).astype(int) + 1, scan["matrix"])
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _refined(level, up_rows, up_columns):
    """Interpolate a coarse level to pixels; one that is nowhere near positive becomes a single value, (1, 1, 1)."""
    if level.max() < FAR_MM:
        return np.full((1, 1, 1), level.max(), np.float32)
    return resized(level.astype(np.float32), up_rows, up_columns)


def _only(at, part):
    """Keep one of the sub-slices of a plane."""
    return at | {"origins": at["origins"][part : part + 1]}


def _labels(hu, skin):
    """Tell bone, soft tissue, fat and air apart outside the cavity, by their ideal density."""
    named = (("fat", -30), ("soft tissue", 250), ("bone", np.inf))
    labels = np.full(hu.shape, BEYOND_BRAIN["air in the head"], np.uint8)
    lower = -300
    for name, upper in named:
        labels[(hu > lower) & (hu <= upper)] = BEYOND_BRAIN[name]
        lower = upper
    labels[np.broadcast_to(skin, hu.shape) < 0] = 0
    return labels


def make_patient(patient, folder, matrix, seed, background=None):
    """Render a synthetic patient: two DICOM folders, their masks and the truth, under `folder`/<patient>/.

    Files: `baseline/`, `followup/` (DICOM, names in no order), `baseline_mask.nii.gz`, `followup_mask.nii.gz`,
    `baseline_mask_rater2.nii.gz` (for everybody, so that a workflow knows its files; the cohort table names it for the
    patients who were read twice) and `truth/`, which no stage of a study reads: see `write_truth_of`. A mask has the
    slices of its series sorted along the normal, and the affine ITK-SNAP gives it, which squares a tilted series.

    Parameters
    ----------
    patient : dict
        From `phantom_cohort.draw_patients`.
    folder : path-like
        Made if it does not exist.
    matrix : int
        Pixels per row and column; a real background keeps its own.
    seed : int
        The seed given to `draw_patients`.
    background : path-like, optional
        Folder of real head series, DICOM: the haematoma is laid into one of them instead of a synthetic head.
    """
    if background is not None:
        made = make_background_patient(patient, background, folder, seed)
        _write_background_truth(patient, made, Path(folder, patient["row"]["patient"], "truth"))
        return
    # The matrix products here are small: several threads would wait for each other longer than they work.
    with threadpool_limits(1):
        _make_synthetic(patient, folder, matrix, seed)


def _make_synthetic(patient, folder, matrix, seed):
    name, truth = patient["row"]["patient"], patient["truth"]
    home = Path(folder, name)
    head = draw_head(patient, seed)
    drawn, grown = _drawn_and_grown(patient, head, matrix, seed)
    grown["lesion"] = at_timepoint(drawn, "baseline")  # with its signs, which do not change how it has grown
    made = {}
    for timepoint in ("baseline", "followup"):
        if truth[VOXELS[timepoint]] is None:  # no second scan was taken
            (home / timepoint).mkdir(parents=True, exist_ok=True)
            first = made["baseline"]
            write_map(home / f"{timepoint}_mask.nii.gz", np.zeros_like(first["mask"]), first["scan"])
            continue
        if timepoint == "followup":
            grown = _grown(patient, timepoint, matrix, seed, head, drawn)
        one = made[timepoint] = _rendered(patient, timepoint, seed, head, grown)
        scan, lesion = one["scan"], one["lesion"]
        write_map(home / f"{timepoint}_mask.nii.gz", one["mask"], scan)
        if timepoint == "baseline":
            second = second_reading(one["mask"], scan, generator(seed, name, "second reading"))
            write_map(home / "baseline_mask_rater2.nii.gz", second, scan)
        write_scan(home / timepoint, one["hu"], scan, patient, timepoint, seed)
        if truth["trap"] == "scout":
            write_scout(home / timepoint, one["hu"], scan, patient, timepoint, seed)
        if truth["trap"] == "thin":
            sharp = thin(scan)
            ideal = _project(sharp, head, lesion, one["threshold_mm"], one["brain"], one["free"], sub_slices=1)[0]
            hu = acquire(ideal, sharp, (seed, name, timepoint, "thin noise"))
            write_scan(home / timepoint, hu, sharp, patient, timepoint, seed, series="bone")
        del one["brain"], one["free"]
    write_truth_of(patient, made, home / "truth")


def write_truth_of(patient, made, folder):
    """Write what is true of one patient, on the grid of the baseline scan: never read by any stage of a study.

    Files: `tissue.nii.gz` (labels in mid-slice), `signs.nii.gz` (one bit per sign, `phantom_haematoma.SIGN_BITS`),
    `growth.nii.gz` (where blood of the follow-up scan lies: mm, see `phantom_haematoma.growth_on`) and `truth.json`
    (what was drawn, the labels' names, the bits, the volumes of the masks).

    Parameters
    ----------
    patient : dict
        From `phantom_cohort.draw_patients`.
    made : dict
        Timepoint to what `render_scan` returns.
    folder : path-like
        Made if it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    now, later = made["baseline"], made.get("followup")
    scan = now["scan"]
    signs = sign_voxels(scan, now["mask"], now["lesion"], now["threshold_mm"])
    write_map(folder / "tissue.nii.gz", now["tissue"], scan)
    write_map(folder / "signs.nii.gz", signs, scan)
    if later:
        growth = growth_on(scan, now["lesion"], now["threshold_mm"], later["lesion"], later["threshold_mm"])
        write_map(folder / "growth.nii.gz", growth, scan)
    voxel_ml = scan["voxel_mm3"] / 1000
    tissues = {str(label): name for label, name in TISSUES.items()}
    tissues |= {str(label): name for name, label in BEYOND_BRAIN.items()}
    content = {
        "tissues": tissues,
        "sign_ml": {sign: float((signs & bit > 0).sum() * voxel_ml) for sign, bit in SIGN_BITS.items()},
        "mimics": sorted(now["head"]["brain_mimics"]),
        "baseline_ml": float(now["mask"].sum() * voxel_ml),
        "followup_ml": float(later["mask"].sum() * later["scan"]["voxel_mm3"] / 1000) if later else None,
    }
    _write_facts(patient, content, folder)


def _write_background_truth(patient, made, folder):
    """Write what is true of a haematoma in a real head, whose own tissues nobody knows: its signs and volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "signs.nii.gz", made["sign_voxels"], made["affine"])
    _write_facts(
        patient,
        {"head": made["head"], "baseline_ml": made["volume_ml"], "followup_ml": made.get("followup_ml")},
        folder,
    )


def _write_facts(patient, content, folder):
    known = {"patient": patient["row"]["patient"], "drawn": patient["truth"], "sign_bits": SIGN_BITS}
    write_json(folder / "truth.json", known | content)
