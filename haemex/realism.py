"""How real a head CT looks, in numbers: densities, noise, edges, skull, volumes, sulci, symmetry.

Every measure is taken from the image and its brain mask alone, in mm and HU, in the same way for a real and for a
synthetic head; nothing here knows how the phantom is made. Levels are named by their distance below the highest brain
slice, so that heads of one size show the same anatomy. `MEASURES` says what is plausible, and who says so.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from haemex.convert import read_dicom_scan
from haemex.errors import InputError
from haemex.orientation import radiological_axes, turn
from haemex.skullstrip import find_brain
from haemex.volume import fit_mask

SEAL_GAP_MM = 4.0  # of the skull strip, as in config.yaml
# Mass effect and oedema reach this far from a haematoma, mm; other slices above and below it count as reached too.
LESION_REACH_MM = 15.0
VAULT_MM = (20.0, 70.0)  # below the vertex of the brain: vault, lateral ventricles, centrum semiovale
STEEP_MM = (40.0, 72.0)  # where the vault stands nearly upright, so that edges are sharp
VENTRICLE_MM = (25.0, 76.0)  # above the suprasellar cistern
CISTERN_MM = (78.0, 96.0)  # suprasellar, ambient, sylvian
LEVELS_MM = ((8.0, 22.0), (45.0, 65.0))  # under the vertex, where bone lies all around; at the lateral ventricles
BASE_MM = (98.0, 125.0)  # petrous bones, orbits
PARENCHYMA_HU = (15.0, 50.0)  # after slight smoothing; fluid, blood and calcium lie outside
CSF_HU = 20.0  # half-way from fluid to brain
ANGLES = np.arange(0.0, 360.0, 3.0)  # of rays, degrees; 0 to the front, 90 to the patient's left
RAY_STEP_MM = 0.2
PATCH_MM = 16.0  # of brain in which noise is measured
NPS_BINS = np.arange(1, 21) * 0.05  # ends of rings, lp/mm; pixels of 0.5 mm hold 1 lp/mm
MIN_GAP_MM = 3.0  # slices nearer than this overlap
BRAIN_BINS, BONE_BINS = np.arange(-20.5, 80, 1.0), np.arange(0, 2201, 50.0)  # HU


@dataclass
class Head:
    """One head CT as it is measured: slices from foot to head, anterior up, the patient's right on the left.

    Attributes
    ----------
    hu : numpy.ndarray, (z, y, x), float32
    pixel_mm : float
        Square pixels.
    position_mm : numpy.ndarray, (z,)
        Along the normal, ascending.
    extent_mm : numpy.ndarray, (z,)
        How much of the head each slice stands for.
    brain, left_out : numpy.ndarray of bool, (z, y, x)
        Everything inside the dura; and the haematoma with its surroundings.
    about : dict
        What the benchmark wants to remember, e.g. age and sex.
    """

    hu: np.ndarray
    pixel_mm: float
    position_mm: np.ndarray
    extent_mm: np.ndarray
    brain: np.ndarray
    left_out: np.ndarray
    about: dict = field(default_factory=dict)

    def below_vertex_mm(self):
        """Distance of each slice below the highest brain slice of 5 cm2, mm, (z,)."""
        area_cm2 = self.brain.sum((1, 2)) * self.pixel_mm**2 / 100
        seen = np.flatnonzero(area_cm2 > 5)
        if not len(seen):
            raise InputError("no brain found", "give a series that shows a whole head")
        return self.position_mm[seen[-1]] - self.position_mm

    def between(self, limits_mm):
        """Indices of the slices that lie so far below the vertex, mm."""
        below = self.below_vertex_mm()
        return np.flatnonzero((below >= limits_mm[0]) & (below <= limits_mm[1]))


def read_head(folder, mask=None, about=None):
    """Read a DICOM series, find its brain and turn it for display.

    Parameters
    ----------
    folder : path-like
        Holds a head CT series.
    mask : path-like, optional
        Of the haematoma, which is left out of the measures with its surroundings.
    about : dict, optional
        Kept beside.

    Returns
    -------
    Head
        Cut to the head in the plane, with 12 mm of air around it where the image holds that.

    Raises
    ------
    InputError
        See `haemex.convert.read_dicom_scan`, `haemex.volume.fit_mask`; also if the pixels are no squares.
    """
    hu, description = read_dicom_scan(folder, 5.0)
    geometry = description["geometry"]
    affine = np.array(geometry["affine"])
    pixel_mm = geometry["area_mm2"] ** 0.5
    if abs(description["acquisition"]["pixel_spacing_mm"][0] - pixel_mm) > 0.01 * pixel_mm:
        raise InputError("the pixels are no squares", "give another series", folder)
    brain, _ = find_brain(hu, affine, SEAL_GAP_MM)
    left_out = np.zeros(hu.shape, bool)
    if mask is not None:
        drawn, acquired = fit_mask(mask, geometry, empty_allowed=True)
        if not acquired:
            raise InputError("the mask is not drawn on the acquired slices", "draw it there", mask)
        left_out = around(drawn > 0, LESION_REACH_MM, pixel_mm)
    axes, flipped = radiological_axes(affine)
    if axes[0] != 0:
        raise InputError("the slices are not axial", "give an axial series", folder)
    position, extent = np.array(geometry["acquired_positions_mm"]), np.array(geometry["slice_extent_mm"])
    if flipped[0]:
        position, extent = -position[::-1], extent[::-1]
    hu, brain, left_out = (np.ascontiguousarray(turn(array, axes, flipped)) for array in (hu, brain, left_out))
    box = _head_box(hu, pixel_mm)
    return Head(
        hu[box].astype(np.float32), pixel_mm, position, extent, brain[box], left_out[box], dict(about or {})
    )  # fmt: skip


def around(mask, reach_mm, pixel_mm):
    """Grow a mask in its slices by `reach_mm`, and into the slices above and below, (z, y, x)."""
    grown = np.zeros_like(mask)
    for index in np.flatnonzero(mask.any((1, 2))):
        near = ndimage.distance_transform_edt(~mask[index], pixel_mm) <= reach_mm
        grown[max(0, index - 1) : index + 2] |= near
    return grown


def _head_box(hu, pixel_mm):
    """Slices that cut (z, y, x) to the largest piece of tissue and 12 mm around it."""
    seen = ndimage.binary_opening((hu > -300).any(0), iterations=max(1, round(3 / pixel_mm)))
    labels, count = ndimage.label(seen)
    if count == 0:
        raise InputError("no head found", "give a head CT in HU")
    sizes = np.bincount(labels.ravel())[1:]
    rows, columns = ndimage.find_objects(labels)[int(sizes.argmax())]
    margin = round(12 / pixel_mm)
    return (
        slice(None),
        slice(max(0, rows.start - margin), rows.stop + margin),
        slice(max(0, columns.start - margin), columns.stop + margin),
    )


# ------------------------------------------------------------------------------------------------------------ measures


def measure(head):
    """Take every measure of one head.

    Parameters
    ----------
    head : Head

    Returns
    -------
    dict
        Name in `MEASURES` to float; NaN where it cannot be taken.
    """
    head.below_vertex_mm()  # refuses a head without brain
    light = smooth(head, 0.8)
    depth = depth_mm(head)
    parenchyma = (depth > 3) & ~head.left_out & (light > PARENCHYMA_HU[0]) & (light < PARENCHYMA_HU[1])
    found = _densities(head, light, depth, parenchyma)
    found |= _noise(head, light, depth, parenchyma)
    found |= _edges_of_brain(head, depth)
    found |= _skull(head)
    found |= _volumes(head, light, depth)
    found |= _symmetry(head)
    found |= _base(head, light, depth)
    return {name: float(value) for name, value in found.items()}


def smooth(head, sigma_mm):
    """Smooth HU within slices by a Gaussian, (z, y, x); bone counts as no more than 80 HU, air as no less than -80."""
    sigma = sigma_mm / head.pixel_mm
    return ndimage.gaussian_filter(np.clip(head.hu, -80, 80), (0, sigma, sigma), truncate=3.0)


def depth_mm(head):
    """Distance to the edge of the brain mask in the slice, mm, 0 outside, (z, y, x) float32."""
    depth = np.zeros(head.hu.shape, np.float32)
    for index in np.flatnonzero(head.brain.any((1, 2))):
        depth[index] = ndimage.distance_transform_edt(head.brain[index], head.pixel_mm)
    return depth


def grey_and_white(values, seed=0):
    """Part brain densities into white and grey matter by a mixture of two Gaussians of one width.

    Parameters
    ----------
    values : numpy.ndarray
        HU of smoothed parenchyma, any shape.
    seed : int
        Of the subsample and of the fit.

    Returns
    -------
    white, grey, share : float
        Means, HU, and the share of grey matter.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(values, float).ravel()
    if len(values) < 200 or values.std() < 0.05:
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(seed)
    sample = values if len(values) <= 20000 else rng.choice(values, 20000, replace=False)
    start = np.percentile(sample, (25, 75))[:, None]
    fit = GaussianMixture(2, covariance_type="tied", means_init=start, random_state=seed, max_iter=300).fit(
        sample[:, None]
    )
    order = np.argsort(fit.means_[:, 0])
    return fit.means_[order[0], 0], fit.means_[order[1], 0], fit.weights_[order[1]]


def _densities(head, light, depth, parenchyma):
    """HU of brain, grey and white matter, fluid and bone."""
    found = {}
    brain = head.hu[parenchyma]
    found["brain mean"], found["brain SD"] = brain.mean(), brain.std()
    found["brain 5th percentile"], found["brain 95th percentile"] = np.percentile(brain, (5, 95))
    medium = smooth(head, 1.2)
    vault, deep = np.zeros(len(head.hu), bool), np.zeros(len(head.hu), bool)
    vault[head.between(VAULT_MM)] = True
    deep[head.between((58.0, 80.0))] = True
    usable = parenchyma & (medium > 20) & (medium < 48)
    white, grey, share = grey_and_white(medium[usable & vault[:, None, None]])
    found |= {"white matter": white, "grey matter": grey, "grey minus white": grey - white}
    found |= {"grey / white": grey / white, "grey share": share}
    white, grey, _ = grey_and_white(medium[usable & (depth > 20) & deep[:, None, None]])
    found["grey minus white, basal ganglia"] = grey - white
    rim, middle = parenchyma & (depth < 7), parenchyma & (depth > 15) & (depth < 30)
    top, centre = (np.isin(np.arange(len(head.hu)), head.between(limits))[:, None, None] for limits in LEVELS_MM)
    found["brain, rim minus 15-30 mm deep"] = _difference(
        light, rim & vault[:, None, None], middle & vault[:, None, None]
    )
    found["brain, vertex minus ventricles' level"] = _difference(light, parenchyma & top, parenchyma & centre)
    fluid = drop_small((smooth(head, 1.5) < 14) & (depth > 12) & ~head.left_out, 0.4, head)
    core = ndimage.binary_erosion(fluid, np.ones((1, 3, 3), bool), iterations=max(1, round(1.0 / head.pixel_mm)))
    found["fluid"] = np.median(head.hu[core]) if core.sum() > 30 else np.nan
    return found


def _difference(values, one, other):
    return np.median(values[one]) - np.median(values[other]) if one.any() and other.any() else np.nan


def drop_small(mask, ml, head):
    """Drop connected pieces of a mask that hold less than some mL."""
    labels, count = ndimage.label(mask)
    voxel_ml = head.pixel_mm**2 * head.extent_mm / 1000
    volume = ndimage.sum_labels(np.broadcast_to(voxel_ml[:, None, None], mask.shape), labels, np.arange(count + 1))
    volume[0] = 0
    return (volume >= ml)[labels]


def flat_patches(head, light, usable, share=0.2):
    """Find square patches of brain that hold the least structure.

    Structure is the SD of the patch smoothed by 2.5 mm, which noise hardly touches: the choice does not favour quiet
    noise.

    Parameters
    ----------
    head : Head
    light : numpy.ndarray, (z, y, x)
        `head.hu`, slightly smoothed.
    usable : numpy.ndarray of bool, (z, y, x)
        A patch lies wholly within.
    share : float
        Of the patches to take, 4 at least.

    Returns
    -------
    list of tuple
        (slice, first row, first column), and the size in pixels as second result.
    """
    size = max(8, round(PATCH_MM / head.pixel_mm))
    coarse = smooth(head, 2.5)
    # Half a percent may miss: single pixels fall outside the range of brain by noise alone.
    inside = ndimage.uniform_filter(usable.astype(np.float32), (0, size, size), mode="constant") > 0.995
    mean = ndimage.uniform_filter(coarse, (0, size, size))
    spread = ndimage.uniform_filter(coarse**2, (0, size, size)) - mean**2
    found = []
    half, step = size // 2, max(1, size // 2)
    for z in np.flatnonzero(inside.any((1, 2))):
        for y in range(half, head.hu.shape[1] - half, step):
            for x in range(half, head.hu.shape[2] - half, step):
                if inside[z, y, x]:
                    found.append((float(spread[z, y, x]), int(z), y - half, x - half))
    found.sort()
    return [place for _, *place in found[: max(4, round(share * len(found)))]], size


def detrend(patch):
    """Take the best plane and bowl (second order in row and column) off a patch, (n, n)."""
    n = len(patch)
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1).reshape(-1, 6)
    fit, *_ = np.linalg.lstsq(terms, patch.ravel().astype(float), rcond=None)
    return patch - (terms @ fit).reshape(n, n)


def noise_power(patches, pixel_mm):
    """Estimate the radial noise power spectrum of detrended patches.

    Parameters
    ----------
    patches : numpy.ndarray, (p, n, n)
        HU.
    pixel_mm : float

    Returns
    -------
    numpy.ndarray, (len(NPS_BINS) - 1,)
        HU2 mm2, mean over each ring of frequencies; NaN beyond what the pixels can hold.
    """
    patches = np.asarray(patches, float)
    n = patches.shape[1]
    window = np.outer(np.hanning(n), np.hanning(n))
    power = (np.abs(np.fft.fft2(patches * window)) ** 2).mean(0) * pixel_mm**2 / (window**2).sum()
    frequency = np.fft.fftfreq(n, pixel_mm)
    radius = np.hypot(frequency[:, None], frequency)
    rings = np.digitize(radius, NPS_BINS) - 1
    spectrum = np.full(len(NPS_BINS) - 1, np.nan)
    for ring in range(len(spectrum)):
        if (rings == ring).any():
            spectrum[ring] = power[rings == ring].mean()
    return spectrum


def spectrum_measures(spectrum):
    """Peak and mean frequency, lp/mm, and the fraction of the power above 0.5 lp/mm, of a radial spectrum."""
    middle = (NPS_BINS[1:] + NPS_BINS[:-1]) / 2
    there = np.isfinite(spectrum)
    middle, spectrum = middle[there], spectrum[there]
    in_plane = spectrum * middle  # rings grow with the frequency
    smoothed = ndimage.uniform_filter1d(spectrum, 3)
    return (
        float(middle[smoothed.argmax()]),
        float((in_plane * middle).sum() / in_plane.sum()),
        float(in_plane[middle > 0.5].sum() / in_plane.sum()),
    )


def noise_patches(head, light=None, depth=None):
    """Take detrended patches of homogeneous brain.

    Returns
    -------
    patches : numpy.ndarray, (p, n, n)
        HU.
    places : list of tuple
        (slice, first row, first column).
    """
    light = smooth(head, 0.8) if light is None else light
    depth = depth_mm(head) if depth is None else depth
    usable = (depth > 3) & ~head.left_out & (light > PARENCHYMA_HU[0]) & (light < PARENCHYMA_HU[1])
    places, size = flat_patches(head, light, usable)
    patches = [detrend(head.hu[z, y : y + size, x : x + size]) for z, y, x in places]
    return np.array(patches).reshape(-1, size, size), places


def _noise(head, light, depth, parenchyma):
    """Noise level, spectrum, likeness from slice to slice, and how it changes from rim to centre."""
    names = ("noise SD", "fine noise SD", "noise peak frequency", "noise mean frequency", "noise power above 0.5 lp/mm")
    names += (
        "noise correlation of neighbouring pixels",
        "noise correlation of neighbouring slices",
        "noise, deep / rim",
    )
    patches, places = noise_patches(head, light, depth)
    if not len(patches) or not patches.std() > 0.01:
        return dict.fromkeys(names, np.nan)
    size = patches.shape[1]
    level = patches.std((1, 2))
    # What a Gaussian of 1.2 mm takes away is hardly anatomy.
    fine = np.array([(p - ndimage.gaussian_filter(p, 1.2 / head.pixel_mm)).std() for p in patches])
    next_to = np.mean([np.corrcoef(p[:, 1:].ravel(), p[:, :-1].ravel())[0, 1] for p in patches])
    across = []
    for (z, y, x), patch in zip(places, patches, strict=True):
        if z + 1 < len(head.hu) and head.position_mm[z + 1] - head.position_mm[z] > MIN_GAP_MM:
            above = np.s_[z + 1, y : y + size, x : x + size]
            if parenchyma[above].mean() > 0.995:
                # Anatomy goes on from slice to slice; what is finer than 3 mm is mostly noise.
                pair = [p - ndimage.gaussian_filter(p, 1.2 / head.pixel_mm) for p in (patch, detrend(head.hu[above]))]
                across.append(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])
    middle = np.array([depth[z, y + size // 2, x + size // 2] for z, y, x in places])
    near, far = fine[middle <= np.percentile(middle, 30)], fine[middle >= np.percentile(middle, 70)]
    values = (
        np.median(level), np.median(fine), *spectrum_measures(noise_power(patches, head.pixel_mm)),
        next_to, np.mean(across) if len(across) > 3 else np.nan, np.median(far) / np.median(near),
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def _edges_of_brain(head, depth):
    """Gradients in the brain, and the texture of sulci beside that of white matter."""
    found = {}
    sigma = 1.5 / head.pixel_mm
    vault = head.between(VAULT_MM)
    hu = np.clip(head.hu[vault], -80, 80)
    slope = ndimage.gaussian_gradient_magnitude(hu, (0.0001, sigma, sigma)) / head.pixel_mm
    depth, left_out = depth[vault], head.left_out[vault]
    inside = (depth > 6) & ~left_out
    for percent in (50, 90, 99):
        found[f"gradient in brain, {percent}th percentile"] = np.percentile(slope[inside], percent)
    band = ndimage.gaussian_filter(hu, (0, 1.0 / head.pixel_mm, 1.0 / head.pixel_mm))
    wide = ndimage.gaussian_filter(hu, (0, 4.0 / head.pixel_mm, 4.0 / head.pixel_mm))
    rim, deep = (depth > 4) & (depth < 15) & ~left_out, (depth > 20) & ~left_out & (wide > 22) & (wide < 40)
    found["texture of the outer 15 mm"] = (band - wide)[rim].std()
    found["texture of deep brain"] = _robust_sd((band - wide)[deep])
    fluid = band < CSF_HU
    found["fluid in the outer 15 mm"] = fluid[(depth > 2) & (depth < 15) & ~left_out].mean()
    found["sulci, across / along the rim"] = _run_of_sulci(band, depth, (depth > 5) & (depth < 15) & ~left_out)
    found["sulcus width"] = _chord(fluid & (depth > 3) & (depth < 20) & ~left_out, head.pixel_mm)
    return found


def _robust_sd(values):
    return 1.4826 * np.median(np.abs(values - np.median(values))) if len(values) else np.nan


def _run_of_sulci(band, depth, where):
    """Ratio of the mean squared slope along the rim of the brain to that across it; above 1, sulci run inwards."""
    _, down, right = np.gradient(band)
    _, inwards_y, inwards_x = np.gradient(depth)
    length = np.maximum(np.hypot(inwards_y, inwards_x), 1e-6)
    across = (down * inwards_y + right * inwards_x) / length
    along = (down * inwards_x - right * inwards_y) / length
    return (along[where] ** 2).mean() / (across[where] ** 2).mean() if where.any() else np.nan


def _chord(mask, pixel_mm):
    """Mean width of a thin mask, mm: twice its area over its outline."""
    area = mask.sum()
    steps = (mask[:, 1:] != mask[:, :-1]).sum() + (mask[:, :, 1:] != mask[:, :, :-1]).sum()
    # Of a smooth outline a grid shows 4 / pi times its length.
    return 2 * area * pixel_mm / (steps * np.pi / 4) if steps else np.nan


# ---------------------------------------------------------------------------------------------------------------- rays


def skull_rays(head, limits_mm=VAULT_MM):
    """Cast rays from the middle of the brain through skull and scalp.

    Returns
    -------
    dict of numpy.ndarray, (slices, len(ANGLES))
        `inner`, `outer`, `skin`: distance from the middle, mm, NaN where not found; `upright`: cosine of the angle at
        which a ray leaves the skull, in three dimensions; `profile` (slices, angles, steps), HU every `RAY_STEP_MM`;
        and `slices`.
    """
    slices = [z for z in head.between(limits_mm) if head.brain[z].any()]
    radii = np.arange(0, 130, RAY_STEP_MM)
    shape = (len(slices), len(ANGLES))
    found = {name: np.full(shape, np.nan) for name in ("inner", "outer", "skin")}
    profiles = np.full((*shape, len(radii)), -1000, np.float32)
    turned = np.radians(ANGLES)
    # One straight line of centres: radii of neighbouring slices can then be compared.
    centres = np.array([ndimage.center_of_mass(head.brain[z]) for z in slices])
    if len(slices) > 2:
        at = head.position_mm[slices]
        centres = np.stack([np.polyval(np.polyfit(at, column, 1), at) for column in centres.T], 1)
    for number, (z, (row, column)) in enumerate(zip(slices, centres, strict=True)):
        y = row - np.cos(turned)[:, None] * radii / head.pixel_mm
        x = column + np.sin(turned)[:, None] * radii / head.pixel_mm
        profile = ndimage.map_coordinates(head.hu[z], (y, x), order=1, cval=-1000)
        profiles[number] = profile
        mask = ndimage.map_coordinates(head.brain[z].astype(np.float32), (y, x), order=1) > 0.5
        edge = np.where(mask.any(1), mask.shape[1] - 1 - mask[:, ::-1].argmax(1), -1)
        for ray in np.flatnonzero(edge > 0):
            inner, outer, skin = _surfaces(profile[ray], int(edge[ray]))
            for name, value in (("inner", inner), ("outer", outer), ("skin", skin)):
                found[name][number, ray] = value * RAY_STEP_MM
    middle = (found["inner"] + found["outer"]) / 2
    upright = np.full(shape, np.nan)
    if len(slices) > 2:
        radius = ndimage.median_filter(middle, (1, 5), mode="wrap")
        along = (np.roll(radius, -1, 1) - np.roll(radius, 1, 1)) / (2 * np.radians(ANGLES[1] - ANGLES[0]))
        up = np.gradient(radius, head.position_mm[slices], axis=0)
        upright = 1 / np.sqrt(1 + (along / radius) ** 2 + up**2)
    return found | {"upright": upright, "profile": profiles, "slices": np.array(slices)}


def _crossing(profile, index, level):
    """Where a profile crosses a level between index and index + 1, in steps."""
    a, b = float(profile[index]), float(profile[index + 1])
    return index + (level - a) / (b - a) if a != b else float(index)


def _surfaces(profile, edge):
    """Inner table, outer table and skin on one ray, in steps, NaN where not found; `edge` is the last brain step."""
    nan = (np.nan, np.nan, np.nan)
    start, reach = max(0, edge - round(8 / RAY_STEP_MM)), round(30 / RAY_STEP_MM)
    part = profile[start : start + reach + round(8 / RAY_STEP_MM)]
    if len(part) < 10 or part.max() < 350:
        return nan
    # Half-way up to the bone on either side: there a blurred edge lies where the sharp one did.
    first = int((part > 0.6 * part.max()).argmax())
    inner_peak = part[first : first + round(3 / RAY_STEP_MM)].max()
    level = (35 + inner_peak) / 2
    above = np.flatnonzero((part[:-1] <= level) & (part[1:] > level))
    if not len(above):
        return nan
    inner = start + _crossing(part, above[0], level)
    bone = np.flatnonzero(part > level)
    gaps = np.flatnonzero(np.diff(bone) > 5 / RAY_STEP_MM)  # beyond it something else begins: the ear, a holder
    last = int(bone[gaps[0]] if len(gaps) else bone[-1])
    outer_peak = part[max(0, last - round(3 / RAY_STEP_MM)) : last + 1].max()
    outside = part[last : last + round(4 / RAY_STEP_MM)]
    level = (max(float(outside.min()), -150.0) + outer_peak) / 2
    below = np.flatnonzero(
        (part[last - round(2 / RAY_STEP_MM) : -1] > level) & (part[last - round(2 / RAY_STEP_MM) + 1 :] <= level)
    )
    if not len(below):
        return nan
    last = last - round(2 / RAY_STEP_MM) + int(below[0])
    outer = start + _crossing(part, last, level)
    beyond = profile[start + last : start + last + round(25 / RAY_STEP_MM)]
    air = np.flatnonzero((beyond[:-1] > -450) & (beyond[1:] <= -450))
    skin = start + last + _crossing(beyond, air[0], -450) if len(air) else np.nan
    return inner, outer, skin


def edge_width(profile, low, high, step_mm=RAY_STEP_MM):
    """Measure how far a rising edge takes from 10 to 90 % of the way between two levels, mm; NaN if it does not."""
    levels = low + np.array([0.1, 0.5, 0.9]) * (high - low)
    middle = np.flatnonzero((profile[:-1] < levels[1]) & (profile[1:] >= levels[1]))
    if not len(middle):
        return np.nan
    at = int(middle[0])
    down, up = np.flatnonzero(profile[: at + 1] <= levels[0]), np.flatnonzero(profile[at:] >= levels[2])
    if not len(down) or not len(up) or up[0] == 0:
        return np.nan
    return (_crossing(profile, at + up[0] - 1, levels[2]) - _crossing(profile, down[-1], levels[0])) * step_mm


def _skull(head):
    """Thickness of skull and scalp, size of the skull, sharpness of its edges, density of its bone."""
    rays = skull_rays(head)
    thick = (rays["outer"] - rays["inner"]) * rays["upright"]
    thick = np.where(rays["upright"] > 0.6, thick, np.nan)
    scalp = (rays["skin"] - rays["outer"]) * rays["upright"]
    scalp = np.where(rays["upright"] > 0.6, scalp, np.nan)
    front = (ANGLES < 40) | (ANGLES > 320)
    back = (ANGLES > 140) & (ANGLES < 220)
    found = {
        "skull thickness": np.nanmean(thick),
        "skull thickness, SD over the vault": np.nanstd(thick),
        "skull thickness, 5th percentile": np.nanpercentile(thick, 5),
        "skull thickness, 95th percentile": np.nanpercentile(thick, 95),
        "skull thickness, frontal": np.nanmean(thick[:, front]),
        "skull thickness, sides": np.nanmean(thick[:, ~front & ~back]),
        "skull thickness, occipital": np.nanmean(thick[:, back]),
        "scalp thickness": np.nanmean(scalp),
        "scalp thickness, SD over the vault": np.nanstd(scalp),
        "scalp thickness, 5th percentile": np.nanpercentile(scalp, 5),
        "scalp thickness, 95th percentile": np.nanpercentile(scalp, 95),
    }
    outer = rays["outer"]
    turned = np.radians(ANGLES)
    # Each slice on its own: the straight line of centres need not halve the head.
    found["skull length"] = _greatest(outer * np.cos(turned))
    found["skull breadth"] = _greatest(outer * np.sin(turned))
    mirrored = np.roll(outer[:, ::-1], 1, 1)
    found["outline, left against right"] = np.nanmean(np.abs(outer - mirrored) / 2)
    found |= _edges_of_skull(head, rays)
    found["outline, finer than 6 waves"] = _ripple(outer)
    soft = []
    for number, ray in np.argwhere(np.isfinite(scalp)):
        first, last = (round(rays[name][number, ray] / RAY_STEP_MM) for name in ("outer", "skin"))
        part = rays["profile"][number, ray, first + 7 : last - 7]  # off the edges
        soft.append(part)
    soft = np.concatenate(soft) if soft else np.array([])
    found |= {"scalp median": np.median(soft) if len(soft) else np.nan, "scalp SD": _robust_sd(soft)}
    found["fat in the scalp"] = (soft < -50).mean() if len(soft) else np.nan

    bone, dip = [], []
    for number, ray in np.argwhere(np.isfinite(thick)):
        first, last = (round(rays[name][number, ray] / RAY_STEP_MM) for name in ("inner", "outer"))
        part = rays["profile"][number, ray, first : last + 1]
        bone.append(part[len(part) // 6 : len(part) - len(part) // 6])
        if thick[number, ray] > 5 and len(part) > 12:
            third = len(part) // 3
            tables = min(part[:third].max(), part[-third:].max())
            dip.append(1 - part[third:-third].min() / tables)
    bone = np.concatenate(bone) if bone else np.array([np.nan])
    found |= {"bone mean": bone.mean(), "bone SD": bone.std()}
    found["bone 5th percentile"], found["bone 95th percentile"] = np.percentile(bone, (5, 95))
    found["diploe below the tables"] = np.mean(dip) if dip else np.nan
    return found


def _ripple(radius):
    """Root mean square of what a closed outline holds beyond its first 6 harmonics, mm, over slices without gaps."""
    left = []
    for one in radius:
        there = np.isfinite(one)
        if there.mean() < 0.95:
            continue
        wave = np.fft.rfft(np.interp(ANGLES, ANGLES[there], one[there], period=360))
        wave[:7] = 0
        left.append(np.fft.irfft(wave, len(ANGLES)).std())
    return np.mean(left) if left else np.nan


def _greatest(along):
    """Greatest extent of any slice, mm, from distances along one axis, (slices, angles)."""
    along = along[np.isfinite(along).any(1)]
    return np.max(np.nanmax(along, 1) - np.nanmin(along, 1)) if len(along) else np.nan


def _edges_of_skull(head, rays):
    """10 to 90 % widths of skin, outer and inner table, medians over upright rays, mm."""
    widths = {"skin": [], "outer": [], "inner": []}
    below = head.below_vertex_mm()
    three = round(3 / RAY_STEP_MM)
    for number, z in enumerate(rays["slices"]):
        if not STEEP_MM[0] <= below[z] <= STEEP_MM[1]:
            continue
        for ray in range(len(ANGLES)):
            upright = rays["upright"][number, ray]
            if not upright > 0.9:
                continue
            profile = rays["profile"][number, ray]
            inner, outer, skin = (rays[name][number, ray] / RAY_STEP_MM for name in ("inner", "outer", "skin"))
            if np.isfinite(inner):
                part = profile[round(inner) - 2 * three : round(inner) + three]
                widths["inner"].append(upright * edge_width(part, 35, float(part[-three:].max())))
            if np.isfinite(outer):
                part = profile[round(outer) - three : round(outer) + 2 * three][::-1]
                widths["outer"].append(
                    upright * edge_width(part, float(part[three:-three].min()), float(part[-three:].max()))
                )
            if np.isfinite(skin):
                part = profile[round(skin) - three : round(skin) + three][::-1]
                widths["skin"].append(upright * edge_width(part, -1000, float(part[-three:].max())))
    return {
        f"edge width, {name}": np.nanmedian(values) if np.isfinite(values).any() else np.nan
        for name, values in (
            ("skin", widths["skin"]),
            ("outer table", widths["outer"]),
            ("inner table", widths["inner"]),
        )
    }


# ------------------------------------------------------------------------------------------------- volumes and symmetry


def _volumes(head, light, depth):
    """Volumes inside the skull, mL, and fractions of it."""
    voxel_ml = head.pixel_mm**2 * head.extent_mm / 1000
    fluid = (light < CSF_HU) & head.brain
    whole = (head.brain.sum((1, 2)) * voxel_ml).sum()
    clear = head.brain & ~head.left_out
    share = fluid[clear].mean()
    level = np.zeros(len(head.hu), bool)
    level[head.between(VENTRICLE_MM)] = True
    # Where all is fluid: infarcts and narrow cisterns lie above 15 HU once smoothed.
    core = drop_small((smooth(head, 1.5) < 15) & head.brain & (depth > 30) & level[:, None, None], 0.3, head)
    return {
        "intracranial volume": whole,
        "brain volume": whole * (1 - share),
        "fluid in the skull": share,
        "ventricles": (core.sum((1, 2)) * voxel_ml).sum(),
    }


def _base(head, light, depth):
    """What skull base and cisterns hold: shares of bone, air and fluid."""
    base = head.between(BASE_MM)
    fluid = (light < CSF_HU) & (depth > 12)
    found = {"bone in the base": np.nan, "bone SD in the base": np.nan, "air in the base": np.nan}
    if len(base):
        hu = head.hu[base]
        inside = np.array([_filled(one > -300, head.pixel_mm) for one in hu])
        bone = inside & (hu > 250)
        found["bone in the base"] = bone.sum() / inside.sum()
        found["bone SD in the base"] = hu[bone].std() if bone.any() else np.nan
        found["air in the base"] = (inside & (hu < -500)).sum() / inside.sum()
    cisterns = head.between(CISTERN_MM)
    inner = (depth[cisterns] > 12) & ~head.left_out[cisterns]
    found["fluid at the cisterns"] = fluid[cisterns][inner].mean() if inner.any() else np.nan
    return found


def _filled(tissue, pixel_mm):
    """The largest piece of tissue of a slice with what it encloses, (y, x) bool."""
    labels, count = ndimage.label(ndimage.binary_closing(tissue, iterations=max(1, round(2 / pixel_mm))))
    if count == 0:
        return tissue
    return ndimage.binary_fill_holes(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _symmetry(head):
    """Mean difference of left and right, HU, of brain smoothed by 4 mm, about the best mirror line of each slice."""
    wide = smooth(head, 4.0)
    every = max(1, round(2.0 / head.pixel_mm))
    pixel = head.pixel_mm * every
    differences = []
    for z in head.between(VAULT_MM)[::2]:
        image, mask = wide[z, ::every, ::every], head.brain[z, ::every, ::every]
        good = mask & ~head.left_out[z, ::every, ::every] & (ndimage.distance_transform_edt(mask, pixel) > 8)
        if good.sum() < 200:
            continue
        row, column = ndimage.center_of_mass(mask)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(float)
        y, x = y - row, x - column
        best = (np.inf, np.nan)
        for angle in np.radians(np.arange(-12, 12.1, 2)):
            for shift in np.arange(-3, 3.1, 1) / pixel:
                across = (x * np.cos(angle) + y * np.sin(angle) - shift) * 2
                at = (y + row - across * np.sin(angle), x + column - across * np.cos(angle))
                other = ndimage.map_coordinates(mask.astype(np.float32), at, order=1)
                outline = np.abs(other - mask).mean()
                if outline < best[0]:
                    mirrored = ndimage.map_coordinates(image, at, order=1)
                    both = good & (ndimage.map_coordinates(good.astype(np.float32), at, order=1) > 0.99)
                    best = (outline, np.abs(mirrored - image)[both].mean() if both.sum() > 100 else np.nan)
        differences.append(best[1])
    return {"brain, left against right": np.nanmean(differences) if np.isfinite(differences).any() else np.nan}


# ------------------------------------------------------------------------------------------------------------ plausible

BROOKS = "5.5 HU calculated (Brooks 1980, J Comput Assist Tomogr 4:489)"
NAKAMURA = "120 kV, 50 patients: noise 4.0 HU, grey minus white 7.1 HU (Nakamura 2019, Adv Comput Tomogr 8:21)"
CHOI = "1.32 in 27 controls (Choi 2008, Emerg Med J 25:666)"
OH = "scanners differ by up to 23 % (Oh 2019, Am J Emerg Med 37:680)"
LI = "3000 living skulls, men / women (Li 2007, Int J Vehicle Safety 2:345): "
MATSUMAE = "men 1469 (SD 102), women 1289 (SD 111) mL, fluid 11.4 % (Matsumae 1996, J Neurosurg 84:982)"
MATSUMAE_BRAIN = "men 1302 (SD 112), women 1143 (SD 105) mL (Matsumae 1996, J Neurosurg 84:982)"
SILVA = "15 (SD 6) mL at 60-69, 40 (SD 24) mL above, 21 healthy (Silva Junior, Rev Bras Neurol)"
CHUNG = "all ventricles 16 mL in the twenties, 25 mL in the forties (Chung 2006, Neurosci Lett 395:155)"


@dataclass(frozen=True)
class Measure:
    """What is plausible for a measure.

    Attributes
    ----------
    unit : str
    low, high : float or None
        Ends of the plausible range; None: the real head's value divided by, and times, `factor`.
    factor : float
    reference : str
        Published values, or empty. ASSUME: a range is drawn about them and the real head, wide enough for both.
    """

    unit: str
    low: float | None = None
    high: float | None = None
    reference: str = ""
    factor: float = 1.5


MEASURES = {
    "brain mean": Measure("HU", 26, 36, OH),
    "brain SD": Measure("HU"),
    "brain 5th percentile": Measure("HU", 13, 23),
    "brain 95th percentile": Measure("HU", 39, 49),
    "white matter": Measure("HU", 24, 32, OH),
    "grey matter": Measure("HU", 32, 42, OH),
    "grey minus white": Measure("HU", 5, 10.5, f"{BROOKS}; {NAKAMURA}"),
    "grey / white": Measure("", 1.17, 1.42, CHOI),
    "grey share": Measure("", 0.2, 0.65),
    "grey minus white, basal ganglia": Measure("HU", 4, 9.5, f"{BROOKS}; {NAKAMURA}"),
    "fluid": Measure("HU", 0, 12),
    "brain, rim minus 15-30 mm deep": Measure("HU", 3.0, 13),
    "brain, vertex minus ventricles' level": Measure("HU", 1.5, 10),
    "noise SD": Measure("HU", 2.5, 5.5, NAKAMURA),
    "fine noise SD": Measure("HU"),
    "noise peak frequency": Measure("lp/mm", 0.05, 0.35),
    "noise mean frequency": Measure("lp/mm", factor=1.3),
    "noise power above 0.5 lp/mm": Measure("", factor=2.0),
    "noise correlation of neighbouring pixels": Measure("", factor=1.3),
    "noise correlation of neighbouring slices": Measure("", -0.05, 0.12),
    "noise, deep / rim": Measure("", 0.8, 1.4),
    "gradient in brain, 50th percentile": Measure("HU/mm"),
    "gradient in brain, 90th percentile": Measure("HU/mm"),
    "gradient in brain, 99th percentile": Measure("HU/mm"),
    "texture of the outer 15 mm": Measure("HU"),
    "texture of deep brain": Measure("HU"),
    "fluid in the outer 15 mm": Measure("", 0.008, 0.12),
    "sulcus width": Measure("mm"),
    "sulci, across / along the rim": Measure("", factor=1.25),
    "skull thickness": Measure("mm", 4.5, 8.5, LI + "frontal 6.6 / 7.5, parietal 5.4 / 5.6, occipital 7.6 / 8.2 mm"),
    "skull thickness, SD over the vault": Measure("mm"),
    "skull thickness, 5th percentile": Measure("mm"),
    "skull thickness, 95th percentile": Measure("mm"),
    "skull thickness, frontal": Measure("mm", 5, 9.5, LI + "6.6 / 7.5 mm"),
    "skull thickness, sides": Measure("mm", 4, 7, LI + "5.4 / 5.6 mm"),
    "skull thickness, occipital": Measure("mm", 4.5, 9.5, LI + "7.6 / 8.2 mm"),
    "scalp thickness": Measure("mm", 4.5, 10),
    "scalp thickness, SD over the vault": Measure("mm", factor=2.0),
    "scalp thickness, 5th percentile": Measure("mm", factor=2.0),
    "scalp thickness, 95th percentile": Measure("mm"),
    "skull length": Measure("mm", 158, 192, LI + "176 / 171 mm"),
    "skull breadth": Measure("mm", 132, 160, LI + "145 / 140 mm"),
    "scalp median": Measure("HU", -90, 20),
    "scalp SD": Measure("HU"),
    "fat in the scalp": Measure("", factor=1.3),
    "outline, finer than 6 waves": Measure("mm"),
    "outline, left against right": Measure("mm", factor=2.0),
    "edge width, skin": Measure("mm"),
    "edge width, outer table": Measure("mm"),
    "edge width, inner table": Measure("mm"),
    "bone mean": Measure("HU"),
    "bone SD": Measure("HU"),
    "bone 5th percentile": Measure("HU"),
    "bone 95th percentile": Measure("HU"),
    "diploe below the tables": Measure("", factor=3.0),
    "intracranial volume": Measure("mL", 1080, 1700, MATSUMAE),
    "brain volume": Measure("mL", 930, 1530, MATSUMAE_BRAIN),
    "fluid in the skull": Measure("", 0.05, 0.2, MATSUMAE),
    "ventricles": Measure("mL", 8, 60, CHUNG),
    "fluid at the cisterns": Measure("", factor=2.5),
    "bone in the base": Measure(""),
    "bone SD in the base": Measure("HU"),
    "air in the base": Measure("", factor=2.0),
    "brain, left against right": Measure("HU", factor=2.0),
}
GROUPS = {  # rows of their own: measure, sex, least and greatest age, plausible range, reference
    "intracranial volume, men": ("intracranial volume", "m", 0, 120, 1265, 1700, MATSUMAE),
    "intracranial volume, women": ("intracranial volume", "f", 0, 120, 1067, 1560, MATSUMAE),
    "brain volume, men": ("brain volume", "m", 0, 120, 1078, 1526, MATSUMAE_BRAIN),
    "brain volume, women": ("brain volume", "f", 0, 120, 933, 1400, MATSUMAE_BRAIN),
    "fluid in the skull, under 60": ("fluid in the skull", None, 0, 59, 0.04, 0.14, MATSUMAE),
    "fluid in the skull, 60 and over": ("fluid in the skull", None, 60, 120, 0.06, 0.22, MATSUMAE),
    "ventricles, under 60": ("ventricles", None, 0, 59, 6, 40, CHUNG),
    "ventricles, 60 and over": ("ventricles", None, 60, 120, 10, 70, SILVA),
}


def compare(real, synthetic, abouts=None):
    """Lay measures of synthetic heads beside those of a real one.

    Parameters
    ----------
    real : dict
        From `measure`.
    synthetic : list of dict
        From `measure`.
    abouts : list of dict, optional
        `age` and `sex` of the synthetic heads, for the rows of groups.

    Returns
    -------
    list of dict
        `measure`, `unit`, `real`, `synthetic_median`, `synthetic_range`, `plausible`, `verdict` ("inside" or "outside":
        whether the median lies in the plausible range; "unknown" where there is none), `reference`.
    """
    rows = []
    for name, one in MEASURES.items():
        low, high = one.low, one.high
        if low is None:
            low, high = sorted((real[name] / one.factor, real[name] * one.factor))
        reference = one.reference or ("" if one.low is not None else f"real head, factor {one.factor:g}")
        values = [heads[name] for heads in synthetic]
        rows.append(_row(name, one.unit, real[name], values, low, high, reference))
    for name, (of, sex, youngest, oldest, low, high, reference) in GROUPS.items():
        values = [
            heads[of]
            for heads, about in zip(synthetic, abouts or [], strict=bool(abouts))
            if sex in (None, about["sex"]) and youngest <= about["age"] <= oldest
        ]
        rows.append(_row(name, MEASURES[of].unit, None, values, low, high, reference))
    return rows


def _row(name, unit, real, values, low, high, reference):
    values = np.array([value for value in values if np.isfinite(value)])
    known = len(values) > 0 and np.isfinite(low)
    middle = float(np.median(values)) if len(values) else np.nan
    return {
        "measure": name,
        "unit": unit,
        "real": real if real is None or np.isfinite(real) else None,
        "synthetic_median": middle if len(values) else None,
        "synthetic_range": f"{values.min():.3g} to {values.max():.3g}" if len(values) else None,
        "plausible": f"{low:.3g} to {high:.3g}" if np.isfinite(low) else None,
        "verdict": ("inside" if low <= middle <= high else "outside") if known else "unknown",
        "reference": reference,
    }


def curves(head):
    """Take what is shown as curves.

    Returns
    -------
    dict
        `brain` and `bone`: shares of pixels per HU in steps of `BRAIN_BINS` and `BONE_BINS`; `noise`: from
        `noise_power`, divided by its area in the plane.
    """
    light, depth = smooth(head, 0.8), depth_mm(head)
    inside = head.hu[(depth > 3) & ~head.left_out]
    rays = skull_rays(head)
    bone = []
    for number, ray in np.argwhere(np.isfinite(rays["inner"] + rays["outer"])):
        first, last = (round(rays[name][number, ray] / RAY_STEP_MM) for name in ("inner", "outer"))
        bone.append(rays["profile"][number, ray, first : last + 1])
    patches, _ = noise_patches(head, light, depth)
    power = noise_power(patches, head.pixel_mm)
    area = np.nansum(power * (NPS_BINS[1:] + NPS_BINS[:-1]) * np.diff(NPS_BINS) * np.pi)
    return {
        "brain": np.histogram(inside, BRAIN_BINS, density=True)[0],
        "bone": np.histogram(np.concatenate(bone), BONE_BINS, density=True)[0],
        "noise": power / area,
    }


def nearest_slice(head, below_mm):
    """Index of the slice that lies nearest to `below_mm` below the vertex of the brain."""
    return int(np.abs(head.below_vertex_mm() - below_mm).argmin())
