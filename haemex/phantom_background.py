"""Synthetic haematomas in real heads: implanted into an axial CT series that a user has, for a known truth.

Shape, density, signs, growth and oedema are those of `haemex.phantom_haematoma`; head, noise and blur are the scan's
own. The blood's edge is averaged over each slice's own thickness and blurred as much as the scan blurs the skin. Tissue
under the blood is replaced, not pushed aside: a real scan holds no mass effect of a haematoma that is not there.
"""

import io
import math
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np

from haemex.errors import InputError
from haemex.files import write_atomically
from haemex.nifti import write_volume
from haemex.phantom_fields import generator
from haemex.phantom_haematoma import (
    SITES,
    at_timepoint,
    grow,
    lay,
    lay_ventricular_blood,
    make_haematoma,
    place_signs,
    second_reading,
    section,
    settle,
    sign_voxels,
)

# Attributes of a real image that its copy keeps: geometry, pixels and acquisition, nothing about anybody.
KEPT = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "Manufacturer", "ManufacturerModelName",
    "BodyPartExamined", "SliceThickness", "KVP", "ReconstructionDiameter", "GantryDetectorTilt", "ConvolutionKernel",
    "PatientPosition", "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "WindowCenter", "WindowWidth",
    "RescaleIntercept", "RescaleSlope",
)  # fmt: skip

# Attributes that a CT image must have, though nothing need stand in them.
EMPTY = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
    "StudyID",
)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NOMINAL_ML = 20.0  # `implant` draws a shape of this volume and cuts it where the wanted one is reached
SUB_SLICES = 5
KEPT_NOISE = 0.6  # of the baseline's noise, as amplitude, is also in the follow-up scan; the rest is drawn anew

# The inside of the average skull, head frame, mm: half width, and what lies before, behind and above the anterior
# commissure (MNI ICBM152).
HALF_WIDTH_MM, BEFORE_MM, BEHIND_MM, ABOVE_MM = 70.0, 72.0, 104.0, 79.0


# -------------------------------------------------------------------------------------------------------------- public


def implant(
    series_folder, folder, volume_ml, seed, centre_ras_mm=None, heterogeneity=0.0, irregularity=0.0, signs=None
):
    """Put a synthetic haematoma into a real axial head series.

    It stays in brain, at least 4 mm off bone, on one side of the midline unless its centre lies there, whatever the
    tilt and spacing of the slices. The same seed gives the same place and shape at any volume, so that a larger mask
    holds a smaller one.

    Parameters
    ----------
    series_folder : path-like
        One axial CT series, DICOM.
    folder : path-like
        Gets `dicom/` (the series with new UIDs and no identity) and `mask.nii.gz`: slices as acquired, sorted along
        the normal, affine from the first slice and the mean step.
    volume_ml : float
        Wanted volume.
    seed : int
        Decides side, shape and texture.
    centre_ras_mm : sequence of 3 floats, optional
        Where to put it, patient coordinates. Left out: at the putamen, or where there is room near it.
    heterogeneity, irregularity : float
        Standard normal scores, as in `draw_patients`.
    signs : set of str, optional
        NCCT markers to show, see `haemex.phantom_haematoma.SIGN_BITS`. Left out: what the scores make likely.

    Returns
    -------
    float
        Volume in mL: mask area times the extent of each slice, which reaches half-way to its neighbours.

    Raises
    ------
    InputError
        The folder holds no such series, or the brain has no room for this volume there.
    """
    head = _read_head(series_folder)
    rng = generator(seed, "implant")
    side = 1 if rng.random() < 0.5 else -1
    if signs is None:
        signs = _likely_signs(heterogeneity, irregularity)
    fixed = centre_ras_mm is not None
    if fixed:
        centre = np.multiply(centre_ras_mm, (-1.0, -1.0, 1.0)) - head["origin"]
        side = 1 if centre[0] >= 0 else -1
    else:
        centre = _place(head, "putamen", side)
    lesion = make_haematoma(
        rng, centre, "putamen", side, (NOMINAL_ML, NOMINAL_ML), signs, heterogeneity, irregularity, scale=head["scale"]
    )
    lesion = at_timepoint(lesion if fixed else settle(lesion, _level_of(head)), "baseline")
    mask, threshold = _grow_in(head, lesion, volume_ml, series_folder)
    hu, _ = _painted(head, place_signs(head["scan"], mask, lesion, threshold), threshold)
    _write_series(head, hu, Path(folder) / "dicom", ("implant", seed, volume_ml), _nobody(seed))
    write_volume(Path(folder) / "mask.nii.gz", mask, head["affine"])
    return _volume_ml(head, mask)


def make_background_patient(patient, series_folder, folder, seed):
    """Render a synthetic patient into a real head: two DICOM folders and their masks, under `folder`/<patient>/.

    The files are those of `haemex.phantom.make_patient`. The follow-up scan is the same head with the haematoma grown,
    its oedema wider, part of its noise drawn anew and the table at another place.

    Parameters
    ----------
    patient : dict
        From `draw_patients`.
    series_folder : path-like
        One axial head series, or a folder of folders with one each; seed and patient decide which.
    folder : path-like
        Made if it does not exist.
    seed : int
        The seed given to `draw_patients`.

    Returns
    -------
    dict
        The patient's truth as it is in these scans: `volume_ml`, `followup_ml`, `voxels`, `followup_voxels` and
        `pixel_mm` by the masks on this grid, `head` (the number of the head in its folder); `sign_voxels`, an array of
        uint8 (z, y, x), see `haemex.phantom_haematoma.sign_voxels`, and `affine` of the baseline masks.

    Raises
    ------
    InputError
        No head series is found, or it has no room for the haematoma.
    """
    row, truth = patient["row"], patient["truth"]
    name = row["patient"]
    folders = head_folders(series_folder)
    number = int(generator(seed, name, "real head").integers(len(folders)))
    head = _read_head(folders[number])
    rng = generator(seed, name, "haematoma")
    side, site = int(truth["side"]), truth["site"]
    lesion = make_haematoma(
        rng,
        _place(head, site, side, rng),
        site,
        side,
        (truth["volume_ml"], truth["followup_ml"] or truth["volume_ml"]),
        {sign for sign in _SIGNS if row.get(sign)},
        truth["heterogeneity"],
        truth["irregularity"],
        onset_to_ct_h=row.get("onset_to_ct_h") or 3.5,
        ventricular_blood=bool(row.get("intraventricular_haemorrhage")) and site != "ventricle",
        scale=head["scale"],
    )
    lesion = settle(lesion, _level_of(head))
    home = Path(folder, name)
    made = {"head": number, "pixel_mm": float(head["scan"]["pixel_mm"]), "affine": head["affine"]}
    for timepoint, wanted_ml, volume, voxels in (
        ("baseline", truth["volume_ml"], "volume_ml", "voxels"),
        ("followup", truth["followup_ml"], "followup_ml", "followup_voxels"),
    ):
        if wanted_ml is None:  # no second scan was taken
            (home / timepoint).mkdir(parents=True, exist_ok=True)
            write_volume(home / f"{timepoint}_mask.nii.gz", np.zeros(head["hu"].shape, np.uint8), head["affine"])
            continue
        now = at_timepoint(lesion, timepoint)
        mask, threshold = _grow_in(head, now, wanted_ml, folders[number])
        affine, shift = head["affine"], np.zeros(3)
        if timepoint == "baseline":
            lesion = place_signs(head["scan"], mask, now, threshold)
            now = at_timepoint(lesion, timepoint)
            made["sign_voxels"] = sign_voxels(head["scan"], mask, now, threshold)
            second = second_reading(mask, head["scan"], generator(seed, name, "second reading"))
        else:
            shift = np.round(generator(seed, name, "table").uniform(-12, 12, 3), 1)
            affine = affine.copy()
            affine[:3, 3] += shift * (-1, -1, 1)
        hu, smooth = _painted(head, now, threshold)
        if timepoint == "followup":
            hu = _other_noise(hu, head, smooth, generator(seed, name, "followup noise"))
        made[volume], made[voxels] = _volume_ml(head, mask), int(mask.sum())
        _write_series(head, hu, home / timepoint, ("background", seed, name, timepoint),
                      _somebody(patient, timepoint, seed), shift)  # fmt: skip
        write_volume(home / f"{timepoint}_mask.nii.gz", mask, affine)
        if timepoint == "baseline":
            write_volume(home / "baseline_mask_rater2.nii.gz", second, affine)
    return truth | made


def head_folders(folder):
    """Find the head series of a background folder.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    list of pathlib.Path
        The folder itself if images lie in it, else its subfolders with images, sorted by name.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Path(folder)
    if folder.is_dir():
        if any(_is_dicom(path) for path in sorted(folder.iterdir())):
            return [folder]
        below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        found = [path for path in below if any(_is_dicom(image) for image in sorted(path.rglob("*")))]
        if found:
            return found
    raise InputError(
        "no DICOM image is found for `phantom.background`",
        "give a folder with one axial head series, or with one subfolder per series",
        folder,
    )


# ---------------------------------------------------------------------------------------------------------------- head


def _is_dicom(path):
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_head(folder):
    """Read one series and find out where its brain is.

    Returns
    -------
    dict
        `images`, `hu` (z, y, x), `scan` (planes in the head frame, origin near the anterior commissure, see
        `haemex.phantom_haematoma.section`), `affine` to RAS, `origin` of the head frame (LPS, mm), `scale` from the
        average brain, `brain` (bool, where blood may lie), `smooth`, `ventricle`, `blur_mm`.
    """
    images = _read_series(folder)
    hu = np.stack([_to_hu(image) for image in images])
    scan, affine = _geometry(images)
    smooth = _smoothed(hu, scan["pixel_mm"])
    inside, off_bone = _inside_skull(hu, scan)
    origin, scale = _find_origin(inside, scan, folder)
    scan["planes"] = [own | {"origins": own["origins"] - origin} for own in scan["planes"]]
    fluid = _fluid_spaces(smooth, inside, scan)
    brain = off_bone & ~fluid & (smooth < 60)
    ventricle = _ventricles(fluid & off_bone, scan, scale)
    return {
        "images": images, "hu": hu, "scan": scan, "affine": affine, "origin": origin, "scale": scale, "brain": brain,
        "smooth": smooth, "ventricle": ventricle, "blur_mm": edge_spread_mm(hu, scan["pixel_mm"]),
    }  # fmt: skip


def _read_series(folder):
    """Read the images of one axial series, sorted along the normal of their planes."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    images = []
    for path in sorted(Path(folder).rglob("*")):
        try:
            image = pydicom.dcmread(path) if path.is_file() else None
        except InvalidDicomError:
            continue
        if image is not None and "PixelData" in image and "ImageOrientationPatient" in image:
            images.append(image)
    series = {image.get("SeriesInstanceUID") for image in images}
    if len(images) < 3 or len(series) != 1:
        raise InputError(
            f"{len(images)} images in {len(series)} series where one series is wanted", "give its own folder", folder
        )
    kinds = {(image.Rows, image.Columns, *np.round([float(v) for v in image.PixelSpacing], 4)) for image in images}
    turns = np.array([image.ImageOrientationPatient for image in images], float)
    if len(kinds) != 1 or np.ptp(turns, axis=0).max() > 1e-3:
        raise InputError("the images of the series differ in size or orientation", "give one axial series", folder)
    normal = np.cross(turns[0, :3], turns[0, 3:])
    if abs(normal[2]) < 0.7:
        raise InputError("the slices of the series are not axial", "give one axial series", folder)
    images.sort(key=lambda image: float(normal @ np.array(image.ImagePositionPatient, float)))
    return images


def _to_hu(image):
    slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
    return image.pixel_array * np.float32(slope) + np.float32(intercept)


def _geometry(images):
    """Give the planes of a series (patient frame, LPS), thickness and voxel volume of each slice, an affine to RAS."""
    origins = np.array([image.ImagePositionPatient for image in images], float)
    row, column = np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3))
    normal = np.cross(row, column)
    down, across = (float(v) for v in images[0].PixelSpacing)
    steps = np.diff(origins @ normal)
    if steps.min() <= 0:
        raise InputError("two images of the series lie at the same place", "give one axial series")
    extent = (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]])) / 2
    shared = {"row_step": column * down, "column_step": row * across, "normal": normal}
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = shared["column_step"], shared["row_step"]
    affine[:3, 2] = (origins[-1] - origins[0]) / (len(origins) - 1)
    affine[:3, 3] = origins[0]
    scan = {
        "planes": [shared | {"origins": origin[None]} for origin in origins],
        "thickness_mm": np.array(
            [float(image.get("SliceThickness") or mm) for image, mm in zip(images, extent, strict=True)]
        ),
        "voxel_mm3": extent * down * across,
        "pixel_mm": math.sqrt(down * across),
        "shape": (int(images[0].Rows), int(images[0].Columns)),
    }
    return scan, LPS_TO_RAS @ affine


def _smoothed(hu, pixel_mm, wider=1.0):
    """Estimate the tissue under the noise: every slice smoothed in its plane; bone and air are levelled first."""
    from scipy.ndimage import gaussian_filter

    sigma = wider * max(1.1 / pixel_mm, 1.4)
    return gaussian_filter(np.clip(hu, -100, 200), (0, sigma, sigma), truncate=2.5)


def _inside_skull(hu, scan):
    """Find the inside of the skull on every slice where the bone closes, and what of it is 4 mm off bone. (z, y, x)."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

    inside, off_bone = np.zeros(hu.shape, bool), np.zeros(hu.shape, bool)
    pixel = scan["pixel_mm"]
    for number in range(len(hu)):
        bone = hu[number] > 150
        parts, count = label(bone)
        if not count:
            continue
        # Small calcifications are no skull.
        bone = np.isin(parts, np.flatnonzero(np.bincount(parts.ravel())[1:] * pixel**2 > 200) + 1)
        filled = binary_fill_holes(bone) & ~bone
        if not filled.any():
            continue
        inside[number] = filled
        off_bone[number] = filled & (distance_transform_edt(~bone, sampling=pixel) > 4.0)
    return inside, off_bone


def _find_origin(inside, scan, folder):
    """Estimate the anterior commissure from the inside of the skull, and the size of the brain. LPS, mm."""
    area = inside.sum((1, 2)) * scan["pixel_mm"] ** 2
    heights = np.array([own["origins"][0] @ own["normal"] for own in scan["planes"]])
    if not (area > 500).any():
        raise InputError(
            "no brain is found inside a skull", "give a head series, or the centre of the haematoma", folder
        )
    top = heights[area > 500].max()
    middle = np.flatnonzero((top - heights > 35) & (top - heights < 75) & (area > 0.6 * area.max()))
    if not len(middle):
        raise InputError("the series does not reach deep enough into the head", "give a whole head series", folder)
    reach = []
    for number in middle:
        rows, columns = np.nonzero(inside[number])
        own = scan["planes"][number]
        places = own["origins"][0] + rows[:, None] * own["row_step"] + columns[:, None] * own["column_step"]
        reach.append((*np.quantile(places[:, 0], (0.002, 0.998)), *np.quantile(places[:, 1], (0.002, 0.998))))
    left, right, front, back = np.array(reach).T
    half = float((right - left).max() / 2)
    length = float(np.quantile(back - front, 0.75))
    scale = np.array([half / HALF_WIDTH_MM, length / (BEFORE_MM + BEHIND_MM), length / (BEFORE_MM + BEHIND_MM)])
    y = float(np.median(front)) + BEFORE_MM * scale[1]
    x = float(np.median((left + right) / 2))
    # The height along the normal is known at the vertex; the way down goes along the table.
    number = int(np.argmax(np.where(area > 500, heights, -np.inf)))
    rows, columns = np.nonzero(inside[number])
    own = scan["planes"][number]
    vertex = own["origins"][0] + rows.mean() * own["row_step"] + columns.mean() * own["column_step"]
    return np.array([x, y, vertex[2] - ABOVE_MM * scale[2]]), scale


def _fluid_spaces(smooth, inside, scan):
    """Find ventricles, cisterns and wide fissures, not the sulci: those a haematoma fills and presses flat."""
    from scipy.ndimage import binary_opening, generate_binary_structure, iterate_structure

    steps = max(1, round(1.5 / scan["pixel_mm"]))
    disc = iterate_structure(generate_binary_structure(2, 1), steps)
    fluid = (smooth < 14) & inside
    return np.stack([binary_opening(one, disc) if one.any() else one for one in fluid])


def _ventricles(fluid, scan, scale):
    """Keep the fluid spaces that lie in the middle of the brain; an old infarct is as dark, but not there."""
    from scipy.ndimage import label

    parts, count = label(fluid)
    if not count:
        return fluid
    index = np.argwhere(fluid)
    own = scan["planes"][0]
    first = np.array([other["origins"][0] for other in scan["planes"]])[index[:, 0]]
    spots = first + index[:, 1:2] * own["row_step"] + index[:, 2:] * own["column_step"]
    spots = np.abs(spots / scale - (0.0, 8.0, 5.0))
    central = (spots < (20.0, 42.0, 32.0)).all(1)
    number = parts[tuple(index.T)]
    share = np.bincount(number, central, count + 1) / np.maximum(np.bincount(number, minlength=count + 1), 1)
    return (share > 0.6)[parts] & fluid


def edge_spread_mm(hu, pixel_mm):
    """Measure how far a scan blurs: the standard deviation of its edge from air to skin.

    The steepest edges are taken; where the skin slants through a slice its edge is wider than the blur.

    Parameters
    ----------
    hu : array, (z, y, x)
    pixel_mm : float

    Returns
    -------
    float
        mm, at least 0.3 and at most 1.2; 0.6 where there is no skin.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    spreads = []
    reach = 2 * round(3.0 / pixel_mm) + 1
    for image in np.clip(hu[len(hu) // 3 :: 3], -1000, 60):
        slope = np.hypot(*np.gradient(image, pixel_mm))
        height = maximum_filter(image, reach) - minimum_filter(image, reach)
        edge = (np.abs(image + 500) < 150) & (height > 900) & (height < 1100)
        edge &= slope >= maximum_filter(slope, 3)
        spreads.append(height[edge] / slope[edge] / math.sqrt(2 * math.pi))
    spreads = np.concatenate(spreads) if spreads else np.empty(0)
    if len(spreads) < 50:
        return 0.6
    seen = float(np.quantile(spreads, 0.25))
    # A difference over two pixels sees an edge wider by their variance.
    return float(np.clip(math.sqrt(max(seen**2 - pixel_mm**2 / 3, 0.0)), 0.3, 1.2))


def _level_of(head):
    """Make the `level` of `settle` for a real head: about the distance to the edge of the room, mm."""
    from scipy.ndimage import distance_transform_edt

    scan = head["scan"]
    pixel = scan["pixel_mm"]
    rooms = {}

    def level(x, y, z, lesion):
        side = _chosen_side(lesion)
        if side not in rooms:
            free = _free(head, lesion)
            if lesion["where"] == "ventricle":
                free = head["ventricle"]
            away = distance_transform_edt(free, sampling=(4.0, pixel, pixel))
            lacking = distance_transform_edt(~free, sampling=(4.0, pixel, pixel))
            rooms[side] = (away - lacking).astype(np.float32)
        spots = np.stack([np.ravel(x), np.ravel(y), np.ravel(z)], 1)
        index = _voxel_at(scan, spots)
        shape = np.array(rooms[side].shape)
        known = ((index >= 0) & (index < shape)).all(1)
        value = np.full(len(spots), -12.0, np.float32)
        value[known] = rooms[side][tuple(index[known].T)]
        return value.reshape(np.shape(x))

    return level


def _voxel_at(scan, spots):
    """Indices (z, y, x) of the voxels nearest to points, (n, 3), which may lie outside."""
    own = scan["planes"][0]
    heights = np.array([other["origins"][0] @ own["normal"] for other in scan["planes"]])
    h = spots @ own["normal"]
    number = np.abs(h[:, None] - heights).argmin(1)
    offset = spots - np.array([other["origins"][0] for other in scan["planes"]])[number]
    row = np.rint(offset @ own["row_step"] / (own["row_step"] @ own["row_step"])).astype(int)
    column = np.rint(offset @ own["column_step"] / (own["column_step"] @ own["column_step"])).astype(int)
    beyond = np.abs(h - heights[number]) > 10
    return np.stack([np.where(beyond, -1, number), row, column], 1)


def _chosen_side(lesion):
    """Side that a haematoma keeps to; 0 for one in the midline."""
    return 0 if lesion["where"] == "pons" or abs(lesion["centre"][0]) < 6 else lesion["side"]


def _free(head, lesion):
    """Where this haematoma's blood may lie, (z, y, x)."""
    if lesion["where"] == "ventricle":
        return head["ventricle"]
    side = _chosen_side(lesion)
    if not side:
        return head["brain"]
    free = head["brain"].copy()
    columns = np.arange(free.shape[2])
    for number, own in enumerate(head["scan"]["planes"]):
        middle_row = own["origins"][0] + free.shape[1] / 2 * own["row_step"]
        x = middle_row[0] + columns * own["column_step"][0]
        free[number] &= x * side > 1.5
    return free


def _place(head, site, side, rng=None):
    """Centre of a haematoma at a site of a real head, head frame."""
    place, scatter, _, _ = SITES[site]
    offset = np.zeros(3) if rng is None else np.clip(rng.normal(0, 0.5, 3), -1, 1) * scatter
    return (np.array(place) + offset) * (side, 1, 1) * head["scale"]


# --------------------------------------------------------------------------------------------------------------- image

_SIGNS = ("hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape", "heterogeneous_density")


def _likely_signs(heterogeneity, irregularity):
    """Signs that go with the scores where nobody names them.

    ASSUME: cut where about the paper's share of patients shows a sign (Table 1).
    """
    signs = {"irregular_shape"} if irregularity > -0.7 else set()
    for sign, cut in (("hypodensity", -0.4), ("swirl", -0.2), ("heterogeneous_density", 0.0), ("black_hole", 1.1)):
        if heterogeneity > cut:
            signs.add(sign)
    return signs


def _grow_in(head, lesion, volume_ml, folder):
    """Grow the haematoma on the real grid to a volume, to the nearest voxel above it."""
    try:
        return grow(head["scan"], lesion, 0, _free(head, lesion), volume_mm3=volume_ml * 1000)
    except InputError as error:
        raise InputError(error.problem, error.action, folder) from None


def _volume_ml(head, mask):
    return float((mask.sum((1, 2)) * head["scan"]["voxel_mm3"]).sum() / 1000)


def _painted(head, lesion, threshold):
    """Lay oedema and haematoma into a real series.

    Returns
    -------
    hu : array of float32, (z, y, x)
        With the scan's own noise everywhere.
    smooth : array of float32, (z, y, x)
        The same without noise, in soft tissue.
    """
    from scipy.ndimage import gaussian_filter

    scan, smooth = head["scan"], head["smooth"].copy()
    hu = head["hu"].copy()
    parts = (np.arange(SUB_SLICES) + 0.5) / SUB_SLICES - 0.5
    sigma = head["blur_mm"] / scan["pixel_mm"]
    free = _free(head, lesion)
    for number in range(len(hu)):
        if not free[number].any() and not head["ventricle"][number].any():
            continue
        where = section(scan, number, parts)
        rows, columns = _near(where, lesion, threshold, scan["shape"])
        if not len(rows) or not len(columns):
            continue
        patch = np.s_[number, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        before = head["smooth"][patch]
        stack = np.repeat(before[None], SUB_SLICES, 0)
        room = gaussian_filter(free[patch].astype(np.float32), 0.4 / scan["pixel_mm"])
        lay(stack, where, rows, columns, lesion, threshold, np.broadcast_to(room, stack.shape))
        wet = np.broadcast_to(head["ventricle"][patch].astype(np.float32), stack.shape)
        lay_ventricular_blood(stack, where, rows, columns, lesion, wet)
        change = gaussian_filter(stack.mean(0) - before, sigma)
        # What is not brain keeps its pixels to the last bit.
        change[np.abs(change) < 0.05] = 0
        hu[patch] += change
        smooth[patch] += change
    # Under the blood no sulcus and no vessel may show through: only what is as small as noise stays.
    changed = np.abs(smooth - head["smooth"]) > 8
    if changed.any():
        noise = (hu[changed] - smooth[changed]) * _lost_noise(head)
        spread = _spread(noise)
        hu[changed] = smooth[changed] + 3.5 * spread * np.tanh(noise / (3.5 * spread))
    return hu, smooth


def _lost_noise(head):
    """How much larger the noise is than what smoothing takes off: the coarsest of it stays in the smooth image."""
    brain, hu = head["brain"], np.clip(head["hu"], -100, 200)
    fine = _spread((hu - head["smooth"])[brain])
    twice = _spread((hu - _smoothed(hu, head["scan"]["pixel_mm"], 1.8))[brain])
    return float(np.clip(twice / max(fine, 1e-6), 1.0, 1.5))


def _near(plane, lesion, threshold, shape):
    """Rows and columns about the haematoma and, where blood has broken into them, the ventricles."""
    reach = 3.0 * threshold + 30 if not lesion["ventricular_blood"] and lesion["where"] != "ventricle" else 110.0
    steps = np.stack([plane["row_step"], plane["column_step"]])
    pixel = np.linalg.norm(steps, axis=1)
    middle = steps @ (lesion["centre"] - plane["origins"].mean(0)) / pixel**2
    low = np.maximum(np.floor(middle - reach / pixel).astype(int), 0)
    high = np.minimum(np.ceil(middle + reach / pixel).astype(int) + 1, shape)
    return np.arange(low[0], high[0]), np.arange(low[1], high[1])


def _other_noise(hu, head, smooth, rng):
    """Exchange part of the noise in soft tissue for noise of the same strength and spectrum."""
    from scipy.fft import irfft2, rfft2

    soft_tissue = (head["smooth"] > 0) & (head["smooth"] < 90) & (head["hu"] > -60) & (head["hu"] < 160)
    residual = np.where(soft_tissue, hu - smooth, 0)
    brain = head["brain"]
    spread = _spread(residual[brain])
    residual = np.clip(residual, -3 * spread, 3 * spread)
    # Strength and spectrum are those within the brain: elsewhere edges are more than noise.
    power = np.mean([np.abs(rfft2(one)) ** 2 for one in np.where(brain, residual, 0)], 0)
    amplitude = _round_spectrum(power, hu.shape[1:])
    out = hu.copy()
    for number, one in enumerate(out):
        if not soft_tissue[number].any():
            continue
        noise = irfft2(rfft2(rng.standard_normal(one.shape).astype(np.float32)) * amplitude, s=one.shape)
        own = _spread(residual[number][brain[number]]) if brain[number].sum() > 500 else spread
        noise *= math.sqrt(1 - KEPT_NOISE**2) * own / max(float(noise.std()), 1e-6)
        one += soft_tissue[number] * ((KEPT_NOISE - 1) * residual[number] + noise)
    return out


def _spread(values):
    """Standard deviation without regard to outliers."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _round_spectrum(power, shape):
    """Mean amplitude over all directions at each frequency, laid out as rfft2 does."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    rings = np.minimum((frequency * 2 * 128).astype(int), 181)
    mean = np.bincount(rings.ravel(), power.ravel(), 182) / np.maximum(np.bincount(rings.ravel(), minlength=182), 1)
    return np.sqrt(mean)[rings].astype(np.float32)


# --------------------------------------------------------------------------------------------------------------- write


def _uid(*words):
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["haemex phantom", *(str(word) for word in words)])


def _nobody(seed):
    return {"PatientName": "Implanted", "PatientID": f"SEED{seed}"}


def _somebody(patient, timepoint, seed):
    """Invent the identity and the times of a patient's examination, the same way for both timepoints."""
    row = patient["row"]
    rng = generator(seed, row["patient"], "identity")
    start = datetime.fromisoformat(row["admission_date"]) + timedelta(minutes=int(rng.integers(0, 24 * 60)))
    if timepoint == "followup":
        start += timedelta(hours=row.get("ct_to_followup_h") or 24.0)
    day, time = start.strftime("%Y%m%d"), start.strftime("%H%M%S")
    values = {f"{what}Date": day for what in ("Study", "Series", "Acquisition", "Content")}
    values |= {f"{what}Time": time for what in ("Study", "Series", "Acquisition", "Content")}
    birth = date.fromisoformat(row["admission_date"]).year - row["age_years"] - 1
    return values | {
        "PatientName": f"Phantom^{row['patient']}",
        "PatientID": f"HOSP{rng.integers(10**6, 10**7)}",
        "PatientBirthDate": f"{birth}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
        "PatientSex": row["sex"].upper(),
        "PatientAge": f"{row['age_years']:03d}Y",
    }


def _write_series(head, hu, folder, words, identity, shift=(0.0, 0.0, 0.0)):
    """Write changed pixels with the kept attributes of each image, new UIDs and an invented identity."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(head["images"]):
        data = Dataset()
        for keyword in KEPT:
            if keyword in image:
                data[keyword] = image[keyword]
        if np.any(shift):
            origin = np.array(image.ImagePositionPatient, float) + shift
            data.ImagePositionPatient = [f"{v:.6g}" for v in origin]
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword, value in (dict.fromkeys(EMPTY, "") | identity).items():
            setattr(data, keyword, value)
        data.PatientIdentityRemoved = "YES"
        data.StudyInstanceUID = _uid(*words, "study", image.get("StudyInstanceUID"))
        data.SeriesInstanceUID = _uid(*words, "series", image.SeriesInstanceUID)
        data.FrameOfReferenceUID = _uid(*words, "frame", image.SeriesInstanceUID)
        data.SOPInstanceUID = _uid(*words, "image", image.SOPInstanceUID)
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
        signed = data.PixelRepresentation == 1
        bits = data.BitsStored
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        stored = np.rint((hu[index] - intercept) / slope)
        changed = np.abs(hu[index] - head["hu"][index]) > 0.25
        stored = np.where(changed, np.clip(stored, low, high), image.pixel_array)
        data.add_new("PixelData", "OW", stored.astype("<i2" if signed else "<u2").tobytes())
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        write_atomically(folder / f"IM{index:04d}", buffer.getvalue(), durable=False)
