"""Non-contrast CT markers: their names, the BAT score, the agreement of two readers, and markers computed from the CT.

`compute_markers` decides the seven markers from HU and the haematoma mask. The words of supplemental Table 2 (after
Morotti 2019, Ann Neurol 86:480) are what it implements, with the numbers of the papers that defined each sign; what
they leave to the eye is fixed by the constants below, each with its reason. Every function that decides a marker states
its criterion as implemented. All of it works slice by slice, as readers do: slices are 5 mm thick, and what encloses a
place above and below it cannot be seen in them.

The computed value is a second opinion: the reader's value is the one the study uses.

On 199 synthetic patients (256 pixels, seeds 5000 and 6000, looked at once, after the last change) sensitivity and
specificity were 0.99 and 1 for hypodensities, 1 and 1 for black holes, swirls, blend signs and fluid levels, 0.99 and 1
for irregular shapes, 0.95 (90 of 95) and 0.99 for heterogeneous densities: most of those missed are foci in 3 to 5 mL.
With pixels of 1.4 mm they are fewer still (25 of 29). Texture and foci are those of `haemex.phantom_haematoma`: how far
the numbers hold in patients is not known.
"""

import math

import numpy as np

from haemex.statistics import cohen_kappa

# Column of the cohort table and label of the paper's Table 2, in its order. Criteria: supplemental Table 2.
MARKERS = {
    "hypodensity": "Hypodensities",
    "black_hole": "Black hole sign",
    "swirl": "Swirl sign",
    "blend": "Blend sign",
    "fluid_level": "Fluid level",
    "irregular_shape": "Irregular shape",
    "heterogeneous_density": "Heterogeneous density",
}
# In the label map of the deciding voxels.
MARKER_BITS = {marker: 1 << number for number, marker in enumerate(MARKERS)}

# Published numbers.
BLACK_HOLE_HU = 28.0  # more than this between hole and surrounding blood (Li 2016, Stroke 47:1777)
BLEND_HU = 18.0  # more than this between the two parts (Li 2015, Stroke 46:2119)
FOCI = 3  # of hypoattenuation, on the slice with the largest area (Morotti 2019, after Barras 2009, Stroke 40:1325)
IRREGULARITIES = 2  # of the margin, on that slice (ditto)

# ASSUME: noise of 3 to 5 HU per pixel is brought to about 1 HU by a Gaussian of 1 mm, which a place of 4 mm survives.
SMOOTH_MM = 1.0
# ASSUME: a hypodense place is less dense than the blood on every way out of it by this much, which is more than a
# homogeneous clot varies, and by so many standard deviations of the smoothed noise.
HYPODENSITY_HU, HYPODENSITY_SD = 7.0, 3.25
# Foci that crowd run into each other by the blur: they are told apart after unsharp masking, which adds `SHARPEN` times
# what a Gaussian of 2 mm takes away from one of 0.9 mm.
FOCUS_SMOOTH_MM, FOCUS_WIDE_MM, SHARPEN = 0.9, 2.0, 1.5
# ASSUME: the third deepest dip of chance (noise, texture of a homogeneous clot) grows with the logarithm of the number
# of places where there could be one, of `FOCUS_PLACE_MM2` each: three foci in a small clot are hardly chance where
# three as deep in a large one are. By this much, or so many standard deviations of the noise after unsharp masking,
# each time that the number grows e-fold; a clot always counts as `LEAST_FOLDS` of them.
FOCUS_HU, FOCUS_SD, FOCUS_PLACE_MM2, LEAST_FOLDS = 3.6, 1.25, 40.0, 1.5
# ASSUME: strictly encapsulated means that the lowest way out stands at least so far up from the bottom to the blood
# around; a streak that opens through the margin has but a thin and pale rim in its mouth.
ENCLOSED_SHARE = 1 / 3
MIN_FOCUS_MM2 = 3.0  # ASSUME: half as deep as its bottom over at least this area, i.e. 2 mm across
# ASSUME: white and grey matter differ by 6 to 8 HU, and the median around a haematoma is nearer to white matter (and
# oedema): up to this much above it, blood is called isodense with brain.
ISODENSE_HU = 6.0
# ASSUME: blood at least this much denser than brain, the middle between the two, is what may enclose a sign.
BLOOD_HU = 12.0
# ASSUME: nearer to the margin than this a pixel is partly brain (blur of the scanner and of the smoothing).
RIM_MM = 2.0
MIN_SWIRL_MM2 = 12.0  # ASSUME: beyond the rim; 4 mm across, or that of a focus where blood encloses it all around
SWIRL_DEPTH_MM = 5.0  # ASSUME: its deepest place; a margin that slants by 45 degrees is partly brain so far in
# ASSUME: so much of its outline has blood behind it; a streak has it on three sides, a margin on one.
SWIRL_ENCLOSED, SWIRL_CLOSED = 0.4, 0.9
MIN_PART_MM2 = 45.0  # ASSUME: both parts of a blend sign and of a fluid level, beyond the rim: 7.5 mm across
BRAIN_RING_MM = (8.0, 25.0)  # ASSUME: brain beyond most of the oedema
BRAIN_HU = (20.0, 45.0)  # ASSUME: neither fluid nor bone nor blood
MIN_BRAIN_MM2 = 200.0
LEVEL_DEG = 10.0  # ASSUME: what rounding of the slices' direction and a moving patient tilt a fluid level at most
LEVEL_BAND_MM = 5.0  # ASSUME: straight means that nearly all pixels so near to the line are on its right side
LEVEL_STRAIGHT = 0.9
MIN_LEVEL_MM = 7.0  # length of the line
MIN_DEPTH_MM = 3.0  # ASSUME: a haematoma that is nowhere deeper than this (in its slices) is all rim: nothing to see
MIN_SHAPE_PIXELS = 40  # ASSUME: a section of fewer has no shape
MIN_LEVEL_MM2 = 20.0  # of either side of a level, beyond the rim
FLUID_KEEP_MM = 2.5  # blur at a fluid level is no swirl
BLEND_SHARP = 0.75  # ASSUME: so much of BLEND_HU lies between strips 2 to 4 mm off the border on either side
BRAIN_WITHOUT_SIGHT_HU = 32.0  # ASSUME: where too little brain is seen to measure it; only for what encloses a focus
FINE_MM = 0.35  # grid on which shapes are judged
# ASSUME: more than what staircases of pixels and a steady hand leave; a bump stands out by a share of the radius, too.
MIN_BUMP_MM, BUMP_SHARE = 1.0, 1 / 16
MIN_HOLLOW_MM, MIN_HOLLOW_PIXELS = 0.85, 0.65
MIN_PIECE_MM2 = 8.0  # ASSUME: as large as a satellite of 3 mm


def bat_score(blend, hypodensity, onset_to_ct_h):
    """BAT score, 0 to 5: blend sign 1, any hypodensity 2, time from onset to CT under 2.5 h 2.

    Supplemental Table 3; Morotti 2018 (Stroke 49:1163).

    Parameters
    ----------
    blend, hypodensity : {0, 1, None}
    onset_to_ct_h : float or None
        Hours; exactly 2.5 h scores nothing.

    Returns
    -------
    int or None
        None when any of the three is missing.
    """
    if any(_missing(value) for value in (blend, hypodensity, onset_to_ct_h)):
        return None
    return (1 if blend else 0) + (2 if hypodensity else 0) + (2 if onset_to_ct_h < 2.5 else 0)


def agreement(rows, confidence=0.95):
    """Cohen's kappa of each marker that was read twice.

    Paper, "Assessment of the NCCT markers and the BAT score": inter-rater reliability over the whole data set.

    Parameters
    ----------
    rows : list of dict
        Patients with the marker columns and, where a second reading exists, `<marker>_rater2`; None = missing.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    list of dict
        marker, label, n (patients read twice), kappa, lower, upper (nan where undefined); in the order of `MARKERS`,
        without the markers that nobody read twice.
    """
    table = []
    for marker, label in MARKERS.items():
        pairs = [(row[marker], row.get(f"{marker}_rater2")) for row in rows]
        pairs = [pair for pair in pairs if not any(_missing(value) for value in pair)]
        if pairs:
            kappa = cohen_kappa(*zip(*pairs, strict=True), confidence)
            table.append({"marker": marker, "label": label, "n": len(pairs), "kappa": kappa.estimate})
            table[-1] |= {"lower": kappa.lower, "upper": kappa.upper}
    return table


def _missing(value):
    return value is None or math.isnan(value)


# ------------------------------------------------------------------------------------------------------- the decisions


def compute_markers(hu, haematoma, affine_or_spacing):
    """Decide the seven markers from a CT and the outline of its haematoma.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU on the acquired grid: axis 0 counts the slices as they were acquired.
    haematoma : numpy.ndarray of bool, (z, y, x)
        Its mask.
    affine_or_spacing : array-like, (4, 4) or (3,)
        Voxel index (x, y, z) to RAS, mm; or the distances of slices, rows and columns, mm, where rows run from front
        to back. Which way is up follows from it.

        ASSUME: the patient lies on the back.

    Returns
    -------
    dict
        By marker, in the order of `MARKERS`: `present` (1, 0, or None where it cannot be decided), `measures` (dict of
        numbers, None where one could not be measured; HU, mm, mm2) and `voxels` (bool, (z, y, x)), those that decided;
        none where the marker is absent. Slices count from 0.

    Raises
    ------
    ValueError
        Mask and CT differ in shape, or the grid is none.
    """
    hu, haematoma = np.asarray(hu), np.asarray(haematoma) > 0
    affine = _affine(affine_or_spacing)
    if hu.ndim != 3 or hu.shape != haematoma.shape:
        raise ValueError(f"CT {hu.shape} and mask {haematoma.shape} are not of one three-dimensional grid")
    found = {marker: {"present": None, "measures": {}, "voxels": np.zeros(hu.shape, bool)} for marker in MARKERS}
    if not haematoma.any():
        return found
    sections, window, brain = _prepare(hu, haematoma, affine)
    deepest = max(section["depth"].max() for section in sections)
    decided = {"irregular_shape": _irregular_shape(_largest(sections))}
    if deepest >= MIN_DEPTH_MM:
        decided["fluid_level"] = _fluid_level(sections, brain)
        decided["swirl"] = _swirl(sections, brain)
        blood_from = BLOOD_HU + (BRAIN_WITHOUT_SIGHT_HU if brain is None else brain)
        least = max(HYPODENSITY_HU, HYPODENSITY_SD * _noise(sections, SMOOTH_MM))
        for section in sections:
            section["foci"] = _foci(section, section["smooth"], blood_from, least)
        decided["hypodensity"] = _hypodensity(sections)
        decided["black_hole"] = _black_hole(sections)
        decided["blend"] = _blend(sections)
        per_fold = max(FOCUS_HU, FOCUS_SD * _noise(sections, FOCUS_SMOOTH_MM) * _noise_gain())
        decided["heterogeneous_density"] = _heterogeneous_density(_largest(sections), blood_from, per_fold)
    for marker, (present, measures, voxels) in decided.items():
        found[marker]["present"] = present
        found[marker]["measures"] = {name: _plain(value) for name, value in measures.items()}
        for number, part in voxels.items() if present else ():
            found[marker]["voxels"][(number, *window)] |= part
    for marker in ("fluid_level", "swirl"):
        if marker in decided:
            found[marker]["measures"]["brain_hu"] = _plain(brain)
    return found


def _affine(affine_or_spacing):
    """Make an affine of what was given; rows run to the back and columns to the left where only spacing is known."""
    given = np.asarray(affine_or_spacing, float)
    if given.shape == (3,):
        given = np.diag([-given[2], -given[1], given[0], 1.0])
    if given.shape != (4, 4) or not np.isfinite(given).all() or not abs(np.linalg.det(given[:3, :3])) > 0:
        raise ValueError("the grid is neither an affine nor the spacing of a volume")
    return given


def _plain(value):
    """Round a number for the record; None stays None."""
    if value is None or isinstance(value, int):
        return value
    return round(float(value), 2) if np.isfinite(value) else None


def _prepare(hu, haematoma, affine):
    """Cut out the slices with haematoma, smooth them, measure the brain around.

    Returns
    -------
    sections : list of dict
        By slice: `number`, `mask`, `raw` and `smooth` (HU), `depth` (mm from the margin, 0 outside), `up` (height
        above any level, mm, and `across`, mm, at right angles to it; None where the slices lie level), `pixel` (mm).
    window : tuple of slice
        Rows and columns that were cut out.
    brain : float or None
        Density of the brain around, HU; None where too little is seen.
    """
    from scipy import ndimage

    pixel = np.linalg.norm(affine[:3, 1::-1], axis=0)  # (row, column)
    reach = [math.ceil((BRAIN_RING_MM[1] + 3 * SMOOTH_MM) / size) for size in pixel]
    window = []
    for axis, more in enumerate(reach):
        marked = np.flatnonzero(haematoma.any(axis=(0, 2 - axis)))
        window.append(slice(max(int(marked[0]) - more, 0), int(marked[-1]) + 1 + more))
    window = tuple(window)
    rows, columns = (np.arange(size) for size in haematoma[(0, *window)].shape)
    # Height above the table, mm, along rows and columns; at right angles to it, in the slice.
    rise = affine[1, 1::-1] / pixel
    steepness = float(np.hypot(*rise))
    up = across = None
    if steepness > 0.5:
        rise = rise / steepness
        up = np.add.outer(rise[0] * pixel[0] * rows, rise[1] * pixel[1] * columns)
        across = np.add.outer(-rise[1] * pixel[0] * rows, rise[0] * pixel[1] * columns)
    sigma = SMOOTH_MM / pixel
    sections, around = [], []
    for number in np.flatnonzero(haematoma.any(axis=(1, 2))):
        mask = haematoma[(number, *window)]
        raw = hu[(number, *window)].astype(float)
        # A pixel of mask at the picture's edge is at the margin, too.
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=pixel)[1:-1, 1:-1]
        sections.append({
            "number": int(number), "mask": mask, "raw": raw, "depth": depth, "pixel": pixel,
            "smooth": _smoothed(raw, mask, SMOOTH_MM / pixel),
            "up": None if up is None else up + affine[1, 2] * number / steepness, "across": across,
            "fluid": np.zeros(mask.shape, bool), "swirls": [], "foci": [],
        })  # fmt: skip
        outside = ndimage.distance_transform_edt(~mask, sampling=pixel)
        brain = ndimage.gaussian_filter(np.clip(raw, -100, 200), sigma)
        ring = (outside > BRAIN_RING_MM[0]) & (outside < BRAIN_RING_MM[1])
        around.append(brain[ring & (brain > BRAIN_HU[0]) & (brain < BRAIN_HU[1])])
    around = np.concatenate(around)
    brain = float(np.median(around)) if around.size * np.prod(pixel) >= MIN_BRAIN_MM2 else None
    return sections, window, brain


def _smoothed(raw, mask, sigma):
    """Smooth within a mask, nothing of what lies outside entering; infinite there."""
    from scipy import ndimage

    weight = ndimage.gaussian_filter(mask.astype(float), sigma)
    smooth = ndimage.gaussian_filter(np.where(mask, raw, 0.0), sigma) / np.maximum(weight, 1e-6)
    return np.where(mask, smooth, np.inf)


def _sharpened(section):
    """Smooth a section and mask it unsharply; infinite outside the haematoma."""
    narrow, wide = (
        _smoothed(section["raw"], section["mask"], mm / section["pixel"]) for mm in (FOCUS_SMOOTH_MM, FOCUS_WIDE_MM)
    )
    sharp = np.full(narrow.shape, np.inf)
    inside = section["mask"]
    sharp[inside] = (1 + SHARPEN) * narrow[inside] - SHARPEN * wide[inside]
    return sharp


def _noise_gain():
    """Compute how much more noise `_sharpened` leaves than its narrower Gaussian alone, white noise assumed."""
    a, b = FOCUS_SMOOTH_MM**2, FOCUS_WIDE_MM**2
    return math.sqrt((1 + SHARPEN) ** 2 + SHARPEN**2 * a / b - 4 * SHARPEN * (1 + SHARPEN) * a / (a + b))


def _noise(sections, smooth_mm):
    """Estimate the standard deviation of the noise in the haematoma after smoothing, HU.

    From the second differences along rows and columns, which slow changes leave alone: their median absolute deviation.
    ASSUME: white noise. What the reconstruction kernel has smoothed already, smoothing lowers less.
    """
    found = []
    for section in sections:
        inner = section["mask"] & (section["depth"] >= RIM_MM)
        for raw, part in ((section["raw"], inner), (section["raw"].T, inner.T)):
            second = raw[1:-1] - (raw[2:] + raw[:-2]) / 2
            found.append(second[part[1:-1] & part[2:] & part[:-2]])
    found = np.concatenate(found)
    if not found.size:
        return 0.0
    sd = 1.4826 * float(np.median(np.abs(found))) / math.sqrt(1.5)
    pixel = math.sqrt(np.prod(sections[0]["pixel"]))
    return sd * min(1.0, pixel / (2 * math.sqrt(math.pi) * smooth_mm))


def _largest(sections):
    """Sections of the largest area: one, but for ties."""
    areas = [int(section["mask"].sum()) for section in sections]
    return [section for section, area in zip(sections, areas, strict=True) if area == max(areas)]


def _mm2(part, section):
    return float(part.sum() * np.prod(section["pixel"]))


def _distance(part, section):
    """Distance of each pixel to a part that is not empty, mm."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~part, sampling=section["pixel"])


def _pieces(part):
    """Connected pieces of a part, corners count."""
    from scipy import ndimage

    labels, count = ndimage.label(part, np.ones((3, 3)))
    return [labels == number for number in range(1, count + 1)]


def _fluid_level(sections, brain):
    """Fluid level: an area hypodense to brain above, a hyperdense one below a straight line.

    As implemented: on one slice at least, the part of the haematoma above a line within `LEVEL_DEG` of the horizontal
    has a mean below the brain's, the part below it one above the brain's by more than `BLOOD_HU`; nine of ten pixels
    above are not denser than isodense; and of the pixels within `LEVEL_BAND_MM` of the line, nine of ten are on the
    right side of it (`LEVEL_STRAIGHT`). Rim pixels do not count.
    """
    if brain is None or sections[0]["up"] is None:
        return None, {}, {}
    best, voxels = None, {}
    for section in sections:
        core = section["mask"] & (section["depth"] >= RIM_MM * 0.75)
        if not core.any():
            continue
        low = section["smooth"][core] <= brain + ISODENSE_HU
        if _mm2(low, section) < MIN_LEVEL_MM2:
            continue
        line = _level_line(section["up"][core], section["across"][core], low)
        if line is None:
            continue
        turn, cut = line
        height = math.cos(turn) * section["up"] + math.sin(turn) * section["across"] - cut
        along = math.cos(turn) * section["across"] - math.sin(turn) * section["up"]
        above, below = core & (height > 0), core & (height <= 0)
        if min(_mm2(above, section), _mm2(below, section)) < MIN_LEVEL_MM2:
            continue
        right = (section["smooth"] <= brain + ISODENSE_HU) == (height > 0)
        band = core & (np.abs(height) <= LEVEL_BAND_MM)
        at_line = along[core & (np.abs(height) <= 1.5 * section["pixel"].max())]
        deep = [side & (np.abs(height) > RIM_MM) for side in (above, below)]
        upper, lower = (
            float(section["raw"][part if part.any() else side].mean())
            for part, side in zip(deep, (above, below), strict=True)
        )
        measures = {
            "slice": section["number"], "above_hu": upper, "below_hu": lower, "difference_hu": lower - upper,
            "above_mm2": _mm2(above, section), "line_mm": float(np.ptp(at_line)) if at_line.size else 0.0,
            "line_deg": math.degrees(turn), "straight": float(right[band].mean()),
        }  # fmt: skip
        present = (
            upper < brain
            and lower > brain + BLOOD_HU
            and measures["line_mm"] >= MIN_LEVEL_MM
            and measures["straight"] >= LEVEL_STRAIGHT
            and right[above].mean() >= LEVEL_STRAIGHT
        )
        if present:
            section["fluid"] = section["mask"] & (height > 0)
            voxels[section["number"]] = section["fluid"]
        if best is None or (present, measures["above_mm2"]) > (best[0], best[1]["above_mm2"]):
            best = present, measures
            level = float(section["up"][core & (height > 0)].min())
    if best is None:
        return 0, {"above_mm2": 0.0}, {}
    if best[0]:
        # The compartment goes on in slices that show too little of it to decide: what lies above the same level.
        for section in sections:
            if not section["fluid"].any():
                section["fluid"] = section["mask"] & (section["up"] > level) & (section["smooth"] < brain + BLOOD_HU)
    return int(best[0]), best[1], voxels


def _level_line(up, across, low):
    """Find the line within `LEVEL_DEG` of the horizontal that best has the low pixels above it: turn (rad), height."""
    best = None
    if low.all() or not low.any():
        return None
    for turn in np.radians(np.arange(-LEVEL_DEG, LEVEL_DEG + 0.5, 1.0)):
        height = math.cos(turn) * up + math.sin(turn) * across
        order = np.argsort(-height, kind="stable")
        above, below = np.cumsum(low[order]) / low.sum(), np.cumsum(~low[order]) / (~low).sum()
        steps = np.flatnonzero(-np.diff(height[order]) > 1e-6)  # a line runs between pixels of different heights
        if not steps.size:
            continue
        at = int(steps[np.argmax((above - below)[steps])])
        score = round(float((above - below)[at]), 9), -abs(turn)
        if best is None or score > best[0]:
            best = score, float(turn), float((height[order[at]] + height[order[at + 1]]) / 2)
    return None if best is None else best[1:]


def _swirl(sections, brain):
    """Swirl sign: a region within the haematoma that is not denser than brain; it may open through the margin.

    As implemented: on one slice at least, a connected region up to `ISODENSE_HU` above the brain around, of
    `MIN_SWIRL_MM2` beyond the rim, that reaches `SWIRL_DEPTH_MM` deep and has blood behind `SWIRL_ENCLOSED` of its
    outline: a margin that slants through the slice is partly brain too, but has blood on one side alone. Less area is
    enough (`MIN_FOCUS_MM2`) where nearly all of the outline has blood behind it (`SWIRL_CLOSED`). What lies
    above a fluid level is no swirl. Selariu 2012 (BMC Neurol 12:109).
    """
    if brain is None:
        return None, {}, {}
    best, voxels = (0, {"area_mm2": 0.0}), {}
    for section in sections:
        smooth, depth = section["smooth"], section["depth"]
        free = section["mask"]
        if section["fluid"].any():
            free = free & (_distance(section["fluid"], section) > FLUID_KEEP_MM)
        for piece in _pieces(free & (smooth <= brain + ISODENSE_HU)):
            beyond = piece & (depth >= RIM_MM)
            area = _mm2(beyond, section)
            if area < MIN_FOCUS_MM2:
                continue
            away = _distance(piece, section)
            outline = (away > 1.5) & (away <= 4.0) & ~section["fluid"]
            enclosed = float((section["mask"] & (smooth > brain + BLOOD_HU))[outline].mean())
            inside = float(section["raw"][beyond].mean())
            measures = {
                "slice": section["number"], "inside_hu": inside, "difference_to_brain_hu": inside - brain,
                "area_mm2": area, "depth_mm": float(depth[piece].max()), "enclosed": enclosed,
            }  # fmt: skip
            least = SWIRL_ENCLOSED if area >= MIN_SWIRL_MM2 else SWIRL_CLOSED
            present = measures["depth_mm"] >= SWIRL_DEPTH_MM and enclosed >= least
            if present:
                section["swirls"].append(piece)
                voxels[section["number"]] = voxels.get(section["number"], False) | piece
            if (present, area) > (best[0], best[1]["area_mm2"]):
                best = int(present), measures
    return *best, voxels


def _foci(section, smooth, blood_from, least):
    """Find the places that denser blood encloses.

    Each minimum of the smoothed density is followed upwards until its basin would flow into a deeper one, or out of
    the haematoma: the height of that saddle above it is its depth (the persistence of the minimum). A saddle is blood.

    Parameters
    ----------
    section : dict
        From `_prepare`.
    smooth : numpy.ndarray, (y, x)
        The density to look at.
    blood_from, least : float
        Least density of a saddle and least depth, HU.

    Returns
    -------
    list of dict
        Deepest first: `depth_hu`, `region` (bool, what lies below half the depth), `area_mm2`.
    """
    from scipy import ndimage

    mask = np.pad(section["mask"], 1)
    smooth = np.pad(smooth, 1, constant_values=np.inf)
    width = mask.shape[1]
    values = smooth.ravel()
    inside = np.flatnonzero(mask)
    outside = -1  # one basin, as deep as can be
    owner = np.full(values.size, -2)  # pixels not yet reached
    owner[~mask.ravel()] = outside
    parent, bottom = {outside: outside}, {outside: -np.inf}

    def root(place):
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    neighbours = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    saddles = []
    for pixel in inside[np.argsort(values[inside], kind="stable")]:
        basins = {root(owner[pixel + step]) for step in neighbours if owner[pixel + step] != -2}
        if not basins:
            parent[pixel], bottom[pixel] = pixel, values[pixel]
            owner[pixel] = pixel
            continue
        deepest = min(basins, key=lambda basin: (bottom[basin], basin))
        for basin in basins - {deepest}:
            parent[basin] = deepest
            saddles.append((basin, values[pixel]))
        owner[pixel] = deepest
    found = []
    for minimum, saddle in saddles:
        depth = saddle - bottom[minimum]
        if depth < least or saddle < blood_from:
            continue
        labels, _ = ndimage.label(mask & (smooth <= (saddle + bottom[minimum]) / 2), np.ones((3, 3)))
        region = (labels == labels.ravel()[minimum])[1:-1, 1:-1]
        area = _mm2(region, section)
        if area >= MIN_FOCUS_MM2:
            found.append({"depth_hu": float(depth), "region": region, "area_mm2": area})
    return sorted(found, key=lambda focus: -focus["depth_hu"])


def _hypodensity(sections):
    """Hypodensity: any hypodense region strictly encapsulated within the haemorrhage, of any shape, size and density.

    As implemented: on one slice at least, a place of `MIN_FOCUS_MM2` that blood encloses which is denser, on every way
    out, by `HYPODENSITY_HU` (or `HYPODENSITY_SD` of the noise) and by `ENCLOSED_SHARE` of the difference between the
    place and the blood around it. Boulouis 2016 (JAMA Neurol 73:961).
    """
    best, voxels = {"depth_hu": 0.0}, {}
    for section in sections:
        for focus in section["foci"]:
            around = _around(section, focus)
            drop = 0.0 if around is None else around - section["smooth"][focus["region"]].min()
            focus["enclosed"] = focus["depth_hu"] >= ENCLOSED_SHARE * drop
            if focus["enclosed"] and focus["depth_hu"] > best["depth_hu"]:
                best = {
                    "slice": section["number"], "depth_hu": focus["depth_hu"], "area_mm2": focus["area_mm2"],
                    "inside_hu": float(section["raw"][focus["region"]].mean()), "around_hu": around,
                }  # fmt: skip
                best["difference_hu"] = _minus(best["around_hu"], best["inside_hu"])
            if focus["enclosed"]:
                voxels[section["number"]] = voxels.get(section["number"], False) | focus["region"]
    return int(bool(voxels)), best, voxels


def _around(section, focus):
    """Mean density of the blood around a focus, HU: 1.5 to 5 mm off, neither rim nor another focus nor fluid."""
    away = _distance(focus["region"], section)
    ring = section["mask"] & (away > 1.5) & (away <= 5.0) & ~section["fluid"]
    for other in section["foci"]:
        if other is not focus:
            ring &= ~other["region"]
    for swirl in section["swirls"]:
        ring &= ~(swirl & ~focus["region"])
    blood = ring & (section["depth"] >= RIM_MM)
    blood = blood if blood.any() else ring
    return float(section["raw"][blood].mean()) if blood.any() else None


def _minus(one, other):
    return None if one is None or other is None else one - other


def _black_hole(sections):
    """Black hole sign: an encapsulated hypodense area, more than 28 HU less dense than the blood around it.

    As implemented: a place that blood encloses (see `_hypodensity`), by at least half of `BLACK_HOLE_HU` everywhere;
    the mean of its darkest part (up to a quarter of its depth, where a reader lays the region of interest) is more than
    `BLACK_HOLE_HU` below the mean of the blood 1.5 to 5 mm around it. Li 2016 (Stroke 47:1777).
    """
    best, voxels = {"difference_hu": 0.0}, {}
    for section in sections:
        for focus in section["foci"]:
            if focus["depth_hu"] < BLACK_HOLE_HU / 2:
                continue
            bottom = section["smooth"][focus["region"]].min()
            inside = focus["region"] & (section["smooth"] <= bottom + focus["depth_hu"] / 4)
            measures = {
                "slice": section["number"], "inside_hu": float(section["raw"][inside].mean()),
                "around_hu": _around(section, focus), "area_mm2": focus["area_mm2"],
            }  # fmt: skip
            measures["difference_hu"] = _minus(measures["around_hu"], measures["inside_hu"])
            if measures["difference_hu"] is None:
                continue
            if measures["difference_hu"] > BLACK_HOLE_HU:
                voxels[section["number"]] = voxels.get(section["number"], False) | focus["region"]
            if measures["difference_hu"] > best["difference_hu"]:
                best = measures
    return int(bool(voxels)), best, voxels


def _blend(sections):
    """Blend sign: a less dense area beside a denser one, with a well-defined border and more than 18 HU between them.

    As implemented: on one slice at least, the clot without its foci, swirls and fluid is parted in two at the density
    that separates it best (Otsu); each part is at least `MIN_PART_MM2` large in one piece; the means of the two, 2 mm
    off the border, differ by more than `BLEND_HU`; most of that difference is met within 4 mm of the border
    (`BLEND_SHARP`); and the less dense part is not enclosed by the denser one: it has a margin of its own, as long at
    least as a square of its area is wide. The upper part of a fluid level is no blend. Li 2015 (Stroke 46:2119).
    """
    from skimage.filters import threshold_otsu

    best, voxels = {"difference_hu": 0.0}, {}
    for section in sections:
        free = section["mask"] & (section["depth"] >= RIM_MM)
        aside = section["fluid"].copy()
        for region in [focus["region"] for focus in section["foci"]] + section["swirls"]:
            aside |= region
        if aside.any():
            free &= _distance(aside, section) > RIM_MM * 0.75
        if _mm2(free, section) < 2 * MIN_PART_MM2 or np.ptp(section["smooth"][free]) < BLEND_HU / 2:
            continue
        cut = threshold_otsu(section["smooth"][free])
        low, high = (
            _most(part, section) for part in (free & (section["smooth"] <= cut), free & (section["smooth"] > cut))
        )
        if min(_mm2(low, section), _mm2(high, section)) < MIN_PART_MM2:
            continue
        to_low, to_high = _distance(low, section), _distance(high, section)
        inner = [low & (to_high > 2.0), high & (to_low > 2.0)]
        if not (inner[0].any() and inner[1].any()):
            continue
        low_hu, high_hu = (float(section["raw"][part].mean()) for part in inner)
        strips = [part & (to_other <= 4.0) for part, to_other in zip(inner, (to_high, to_low), strict=True)]
        step = 0.0
        if strips[0].any() and strips[1].any():
            step = float(section["raw"][strips[1]].mean() - section["raw"][strips[0]].mean())
        # The part's own margin, as long as the pixels along the rim are many.
        strip = 1.5 * float(section["pixel"].max())
        margin = _mm2(low & (section["depth"] < RIM_MM + strip), section) / strip
        measures = {
            "slice": section["number"], "low_hu": low_hu, "high_hu": high_hu, "difference_hu": high_hu - low_hu,
            "at_border_hu": step, "low_mm2": _mm2(low, section), "high_mm2": _mm2(high, section),
            "margin_mm": margin,
        }  # fmt: skip
        open_ = margin >= math.sqrt(measures["low_mm2"])
        present = high_hu - low_hu > BLEND_HU and step >= BLEND_SHARP * BLEND_HU and open_
        if present:
            part = section["mask"] & (_distance(low, section) < _distance(high, section)) & ~section["fluid"]
            voxels[section["number"]] = part
        if (present, measures["difference_hu"]) > (bool(voxels) and best.get("present", False), best["difference_hu"]):
            best = measures | {"present": present}
    best.pop("present", None)
    return int(bool(voxels)), best, voxels


def _most(part, section):
    """Largest piece of a part, after what is narrower than 3 mm has been taken off."""
    from scipy import ndimage

    inner = ndimage.distance_transform_edt(np.pad(part, 1), sampling=section["pixel"])[1:-1, 1:-1] >= 1.5
    if not inner.any():
        return inner
    opened = (_distance(inner, section) <= 1.5) & part
    return max(_pieces(opened), key=lambda piece: piece.sum())


def _heterogeneous_density(sections, blood_from, per_fold):
    """Heterogeneous density: three or more foci of hypoattenuation on the slice with the largest area.

    As implemented: foci are the places that blood encloses which, after unsharp masking, is denser on every way out by
    `FOCUS_HU` (or `FOCUS_SD` of the noise) times the logarithm of the area beyond the rim in `FOCUS_PLACE_MM2`; and
    swirls that open through the margin. ASSUME: the less dense part of a blend sign and what lies above a fluid level
    are compartments, not foci. Morotti 2019, after category 3 of the scale of Barras 2009 (Stroke 40:1325).
    """
    best, voxels = None, {}
    for section in sections:
        core = section["mask"] & (section["depth"] >= RIM_MM)
        folds = math.log(max(_mm2(core & ~section["fluid"], section), 1.0) / FOCUS_PLACE_MM2)
        foci = _foci(section, _sharpened(section), blood_from, per_fold * max(folds, LEAST_FOLDS))
        regions = [focus["region"] for focus in foci if not (focus["region"] & section["fluid"]).any()]
        regions += [swirl for swirl in section["swirls"] if not any((swirl & region).any() for region in regions)]
        measures = {
            "slice": section["number"], "foci": len(regions),
            "sd_hu": float(section["smooth"][core].std()) if core.any() else None,
        }  # fmt: skip
        if best is None or measures["foci"] > best["foci"]:
            best = measures
            voxels = {section["number"]: np.logical_or.reduce(regions)} if regions else {}
    return int(best["foci"] >= FOCI), best, voxels


def _irregular_shape(sections):
    """Irregular shape: two or more focal irregularities of the margin, on the slice with the largest area.

    As implemented: an irregularity is a piece of its own (of `MIN_PIECE_MM2`), or a part of the main piece that stands
    out of the main body by `BUMP_SHARE` of the radius of the circle of that area (and `MIN_BUMP_MM`) and has a concave
    margin beside it. The main body is what a disc of half that radius can reach (opening), so that the ends of an
    ellipse are no irregularities. There are as many hollows of the margin as such parts at least: one dent makes no
    two lobules. Morotti 2019, after category 3 of the scale of Barras 2009 (Stroke 40:1325).
    """
    best, voxels = None, {}
    for section in sections:
        if section["mask"].sum() < MIN_SHAPE_PIXELS:
            return None, {}, {}
        measures, marked = _bumps(section)
        if best is None or measures["irregularities"] > best["irregularities"]:
            best, voxels = {"slice": section["number"], **measures}, {section["number"]: marked}
    return int(best["irregularities"] >= IRREGULARITIES), best, voxels


def _bumps(section):
    """Count the irregularities of a section's margin; measure them; mark their pixels."""
    from scipy import ndimage
    from skimage.morphology import convex_hull_image

    pixel = section["pixel"]
    radius = math.sqrt(_mm2(section["mask"], section) / math.pi)
    # The outline is smoothed between the pixels' centres, on a grid fine enough for discs to be round.
    around = [math.ceil(4.0 / size) for size in pixel]
    marked = [np.flatnonzero(section["mask"].any(axis=1 - axis)) for axis in (0, 1)]
    box = tuple(slice(max(int(at[0]), 0), int(at[-1]) + 1) for at in marked)
    mask = np.pad(section["mask"][box], [(n, n) for n in around])
    finer = [max(1, math.ceil(size / FINE_MM)) for size in pixel]
    soft = ndimage.gaussian_filter(mask.astype(float), 0.6)
    places = [np.arange(n * f) / f + (1 - f) / (2 * f) for n, f in zip(mask.shape, finer, strict=True)]
    fine = ndimage.map_coordinates(soft, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest") > 0.5
    size = pixel / finer
    if not fine.any():
        fine = np.kron(mask, np.ones(finer)) > 0
    pieces = _pieces(fine)
    main = max(pieces, key=lambda piece: piece.sum())
    inner = ndimage.distance_transform_edt(main, sampling=size)
    core = inner > min(0.5 * radius, 0.95 * inner.max())
    from_body = ndimage.distance_transform_edt(~core, sampling=size) - min(0.5 * radius, 0.95 * inner.max())
    hollows = convex_hull_image(main)
    hull_depth = ndimage.distance_transform_edt(hollows, sampling=size)
    concave = np.zeros(main.shape, bool)
    count = 0
    for hollow in _pieces(hollows & ~main):
        if hull_depth[hollow].max() >= max(MIN_HOLLOW_MM, MIN_HOLLOW_PIXELS * pixel.max()):
            concave |= hollow
            count += 1
    heights, parts = [], np.zeros(main.shape, bool)
    near = (
        ndimage.distance_transform_edt(~concave, sampling=size) <= max(2.0, 0.25 * radius) if concave.any() else concave
    )
    satellites = 0
    for piece in pieces:
        if piece is not main and piece.sum() * size.prod() >= MIN_PIECE_MM2:
            satellites += 1
            parts |= piece
    for bump in _pieces(main & (from_body > 0)):
        height = float(from_body[bump].max())
        if height >= max(MIN_BUMP_MM, BUMP_SHARE * radius) and (bump & near).any():
            heights.append(height)
            parts |= bump
    measures = {
        "irregularities": min(len(heights), count) + satellites, "separate": satellites, "hollows": count,
        "highest_mm": max(heights, default=0.0), "solidity": float(main.sum() / hollows.sum()),
        "area_mm2": _mm2(section["mask"], section),
    }  # fmt: skip
    coarse = parts.reshape(mask.shape[0], finer[0], mask.shape[1], finer[1]).mean(axis=(1, 3)) >= 0.5
    voxels = np.zeros(section["mask"].shape, bool)
    voxels[box] = coarse[around[0] : -around[0], around[1] : -around[1]] & section["mask"][box]
    return measures, voxels


# ------------------------------------------------------------------------------------------------------------ the stage


def write_markers(*, patient, ct_path, haematoma_path, onset_to_ct_h, read, json_out, voxels_out, png_out):
    """Compute the markers of one patient; write decisions, voxels and a picture.

    Parameters
    ----------
    patient : str
        The patient's code.
    ct_path : path-like
        Baseline CT in HU on its acquired grid.
    haematoma_path : path-like
        Mask on that grid.
    onset_to_ct_h : float or None
        Hours.
    read : dict
        By marker: the reader's value, 0, 1 or None. It stands beside the computed one and changes nothing.
    json_out : path-like
        `patient`; `markers`, by marker: `present`, `read`, `measures` (see `compute_markers`; `slice` counts from 1
        at the foot, as the pictures do) and `evidence`, these measures in words (of the place that came nearest where
        the marker is absent; "" where nothing was measured); `disagreements`, the markers that were read otherwise;
        `bat_score` (computed) and `bat_score_read`; `onset_to_ct_h`.
    voxels_out : path-like
        NIfTI, uint8: the sum of `MARKER_BITS` of the markers that a voxel decided.
    png_out : path-like
        See `haemex.marker_picture.draw_markers`.

    Raises
    ------
    InputError
        The mask is empty, or not on the grid of the CT.
    """
    from haemex.errors import InputError
    from haemex.files import write_atomically, write_json
    from haemex.marker_picture import draw_markers
    from haemex.nifti import read_mask_on, read_volume, write_volume

    hu, affine = read_volume(ct_path)
    haematoma = read_mask_on(haematoma_path, hu.shape, affine)
    if not haematoma.any():
        raise InputError("the mask is empty", "outline the haematoma, or exclude the patient", haematoma_path)
    found = compute_markers(hu, haematoma, affine)
    count_from_foot = _count_from_foot(affine, len(hu))
    markers = {}
    for marker, one in found.items():
        measures = dict(one["measures"])
        if "slice" in measures:
            measures["slice"] = count_from_foot(measures["slice"])
        value = None if _missing(read.get(marker)) else int(read[marker])
        markers[marker] = {"present": one["present"], "read": value, "measures": measures}
        markers[marker]["evidence"] = _evidence(marker, measures)
    decided = [marker for marker, one in markers.items() if None not in (one["present"], one["read"])]
    apart = [marker for marker in decided if markers[marker]["present"] != markers[marker]["read"]]
    hours = None if _missing(onset_to_ct_h) else float(onset_to_ct_h)
    content = {"patient": patient, "markers": markers, "disagreements": apart, "onset_to_ct_h": hours}
    for name, source in (("bat_score", "present"), ("bat_score_read", "read")):
        content[name] = bat_score(markers["blend"][source], markers["hypodensity"][source], hours)
    bits = np.zeros(hu.shape, np.uint8)
    for marker, one in found.items():
        bits[one["voxels"]] |= MARKER_BITS[marker]
    score = "" if content["bat_score"] is None else f", BAT score {content['bat_score']}"
    lines = {marker: _line(marker, one) for marker, one in markers.items()}
    picture = draw_markers(hu, affine, haematoma, found, f"{patient}: markers computed from the CT{score}", lines)
    write_volume(voxels_out, bits, affine)
    write_atomically(png_out, picture)
    write_json(json_out, content)


def _count_from_foot(affine, count):
    """Make the function that turns a slice's index into its number from the foot."""
    from haemex.orientation import radiological_axes

    axes, flipped = radiological_axes(affine)
    if axes[0] == 0 and flipped[0]:
        return lambda index: count - index
    return lambda index: index + 1


# What is said of each marker's measures.
_SENTENCES = {
    "hypodensity": "{inside_hu:.0f} HU inside, {around_hu:.0f} around, {depth_hu:.0f} deep, {area_mm2:.0f} mm2",
    "black_hole": "{inside_hu:.0f} HU inside, {around_hu:.0f} around, difference {difference_hu:.0f} (28 asked)",
    "swirl": "{inside_hu:.0f} HU, brain {brain_hu:.0f}, {area_mm2:.0f} mm2, {depth_mm:.0f} mm deep",
    "blend": "{low_hu:.0f} HU beside {high_hu:.0f}, difference {difference_hu:.0f} (18 asked)",
    "fluid_level": "{above_hu:.0f} HU above, {below_hu:.0f} below a line of {line_mm:.0f} mm, brain {brain_hu:.0f}",
    "irregular_shape": "irregularities: {irregularities} (2 asked), {separate} of them separate; hollows: {hollows}",
    "heterogeneous_density": "foci: {foci} (3 asked), standard deviation {sd_hu:.0f} HU",
}


def _evidence(marker, measures):
    """Put a marker's measures, and the slice they are of, into words; "" where one is missing."""
    if "slice" not in measures or None in measures.values():
        return ""
    return f"{_SENTENCES[marker].format(**measures)}; slice {measures['slice']}"


def _line(marker, one):
    """Say in one line what was found, what was read, and on what it rests."""
    words = {0: "absent", 1: "present", None: "cannot be decided"}[one["present"]]
    if one["read"] is not None:
        words += f" (read: {('absent', 'present')[one['read']]})"
    return f"{MARKERS[marker]}: {words}" + (f": {one['evidence']}" if one["evidence"] else "")
