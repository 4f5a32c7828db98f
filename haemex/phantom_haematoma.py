"""Intracerebral haematomas of synthetic patients: shape, density, signs, growth, oedema, masks of two readers.

Everything is a function of the head frame (mm; x to the left, y to the back, z to the vertex). A haematoma is where its
outline, a field of equivalent radii in mm, stays below a threshold, so that any volume is met by sorting voxels:

    lesion = settle(draw_haematoma(patient, head, seed), level)
    now = at_timepoint(lesion, "baseline")
    mask, threshold = grow(scan, now, voxels, allowed)          # exactly so many voxels
    lesion = place_signs(scan, mask, now, threshold)            # once, on the baseline scan
    now = at_timepoint(lesion, "baseline")                      # and "followup"
    lay(hu, plane, rows, columns, now, threshold, inside)

`level`, `allowed` and `inside` come from the same function, `room`. The mask is that of a first reader, who draws slice
by slice on the native grid: exactly the voxels whose centre, in the middle of the slice, is haematoma.

The signs are those of supplemental Table 2, present or absent as the patient's row says, placed on the slices of the
baseline scan, for the slice with the largest area decides on two of them. What one sign implies by definition is added:
a black hole is a hypodensity, and as dense as brain or less, so also a swirl; heterogeneous density, three foci of
hypoattenuation (Morotti 2019, Ann Neurol 86:480), is hypodensity. A fluid level's upper part, less dense than brain,
could be called a swirl too, were its border not straight; here it is not counted as one.
"""

import math

import numpy as np

from haemex.errors import InputError
from haemex.phantom_cohort import IMPLIED
from haemex.phantom_fields import field_at, field_on, generator, rotation, soft, waves
from haemex.phantom_planes import bands, interpolation, plane, points, resized, slices, window_around

SPECK_MM3 = 20.0  # ASSUME: readers outline no smaller piece

SIGN_BITS = {
    "hypodensity": 1,
    "black_hole": 2,
    "swirl": 4,
    "blend": 8,
    "fluid_level": 16,
    "irregular_shape": 32,
    "heterogeneous_density": 64,
}

# Where haematomas sit: left side of the average brain (MNI, head frame), mm, and how far their centres scatter; the
# elongation of their axes (x, y, z), and the turn of these about z in degrees (the putamen's back end lies laterally).
# ASSUME: chosen after the usual places and shapes; no source gives their distribution.
SITES = {
    "putamen": ((28.0, 3.0, 4.0), (2.0, 5.0, 4.0), (0.76, 1.38, 1.0), -14.0),
    "thalamus": ((14.0, 19.0, 8.0), (1.5, 2.5, 2.5), (0.9, 1.12, 1.0), -20.0),
    "frontal": ((30.0, -38.0, 22.0), (4.0, 7.0, 7.0), (0.88, 1.2, 0.98), 10.0),
    "parietal": ((32.0, 48.0, 38.0), (5.0, 6.0, 5.0), (0.88, 1.2, 0.98), -10.0),
    "temporal": ((46.0, 18.0, -10.0), (2.5, 7.0, 3.0), (0.82, 1.35, 0.9), -5.0),
    "occipital": ((26.0, 72.0, 12.0), (3.5, 4.0, 4.0), (0.85, 1.28, 0.92), -12.0),
    "cerebellum": ((21.0, 62.0, -36.0), (3.0, 3.0, 3.0), (1.08, 1.0, 0.92), 0.0),
    "pons": ((0.0, 27.0, -30.0), (2.5, 1.5, 3.0), (1.08, 0.88, 1.05), 0.0),
    "ventricle": ((14.0, 25.0, 18.0), (1.0, 4.0, 1.0), (0.8, 1.5, 0.85), 0.0),
}
DEEP = ("putamen", "thalamus")
MASS_EFFECT = 0.6  # ASSUME: of its volume a haematoma displaces this part; the rest is destroyed tissue

LOBULE_FLATNESS = 0.6  # lobules are longer along z than across, so that the slice through their middle shows them
COARSE_MM = 1.25  # smooth fields are computed on this in-plane grid and interpolated
FLOOR_HU = 45.0  # what is neither swirl nor fluid stays denser than any brain
SWIRL_HU, FLUID_HU = 27.0, 20.0
BLACK_HOLE_DROP_HU, BLEND_DROP_HU = 36.0, 23.0  # Table 2 asks for more than 28 and 18


# --------------------------------------------------------------------------------------------------------------- draw


def draw_haematoma(patient, head, seed):
    """Draw the haematoma of a patient: everything that its two scans share, but for the place of its signs.

    Parameters
    ----------
    patient : dict
        From `draw_patients`. Of `row`: `patient`, `onset_to_ct_h`, `intraventricular_haemorrhage` and the seven
        markers; of `truth`: `site`, `side`, `volume_ml`, `followup_ml` (None: as at baseline), `heterogeneity`,
        `irregularity`.
    head : dict
        `scale` (3,): from the average brain's mm to the head's.
    seed : int
        The study's seed.

    Returns
    -------
    dict
        See `make_haematoma`.
    """
    row, truth = patient["row"], patient["truth"]
    rng = generator(seed, row["patient"], "haematoma")
    place, scatter, _, _ = SITES[truth["site"]]
    offset = np.clip(rng.normal(0, 0.5, 3), -1, 1) * scatter
    side = int(truth["side"])
    centre = (np.array(place) + offset) * (side, 1, 1) * np.asarray(head["scale"], float)
    return make_haematoma(
        rng,
        centre,
        truth["site"],
        side,
        (truth["volume_ml"], truth["followup_ml"] or truth["volume_ml"]),
        {marker for marker in SIGN_BITS if row.get(marker)},
        truth["heterogeneity"],
        truth["irregularity"],
        onset_to_ct_h=row.get("onset_to_ct_h") or 3.5,
        ventricular_blood=bool(row.get("intraventricular_haemorrhage")) and truth["site"] != "ventricle",
        scale=np.asarray(head["scale"], float),
    )


def make_haematoma(
    rng,
    centre,
    site,
    side,
    volumes_ml,
    signs,
    heterogeneity,
    irregularity,
    onset_to_ct_h=3.5,
    ventricular_blood=False,
    scale=(1.0, 1.0, 1.0),
):
    """Draw a haematoma about a given centre.

    Parameters
    ----------
    rng : numpy.random.Generator
    centre : array-like, (3,)
        Head frame, mm.
    site : str
        Key of `SITES`.
    side : {1, -1}
        Left or right.
    volumes_ml : sequence of 2 floats
        At baseline and at follow-up.
    signs : set of str
        Keys of `SIGN_BITS`; what they imply is added.
    heterogeneity, irregularity : float
        Standard normal scores: how marked texture, foci and margin are, within what the signs allow.
    onset_to_ct_h : float
        Hours; oedema widens with them.
    ventricular_blood : bool
        Whether blood has broken into the ventricles.
    scale : array-like, (3,)
        From the average brain's mm to the head's.

    Returns
    -------
    dict
        `centre` (3,), mm; `inverse` (3, 3), from offsets in mm to equivalent radii; `push`, the fraction of its volume
        that the haematoma displaces; `side`, `where`, `signs`; and what only this module reads. `radius`, of the ball
        of the present volume, is that of the baseline; see `at_timepoint`.
    """
    signs = {name for sign in signs for name in (sign, *IMPLIED.get(sign, ()))}
    _, _, elongation, turn_deg = SITES[site]
    radius = ball_radius(volumes_ml[0])
    # Small haematomas are rounder.
    axes = np.array(elongation) ** min(1.0, 0.55 + radius / 40) * np.exp(np.clip(rng.normal(0, 0.06, 3), -0.12, 0.12))
    axes /= np.prod(axes) ** (1 / 3)
    turn = rotation(*(np.clip(rng.normal(0, (7, 7, 9)), -18, 18) + np.array([0, 0, side * turn_deg])))
    lesion = {
        "centre": np.asarray(centre, float),
        "inverse": np.diag(1 / axes) @ turn.T,
        "radius": radius,
        "push": 0.0 if site == "ventricle" else MASS_EFFECT,
        "side": side,
        "where": site,
        "signs": frozenset(signs),
        "volumes_ml": {"baseline": float(volumes_ml[0]), "followup": float(volumes_ml[1])},
        "lobes": [],
        "growth_mm": 0.0,
        "growth_direction": _unit(rng.normal(0, (1.0, 1.0, 0.6))),
        "regions": [],
        "fade": 1.0,
        "heterogeneity": float(heterogeneity),
    }
    _draw_margin(lesion, rng, irregularity)
    _draw_density(lesion, rng, heterogeneity)
    # ASSUME: a patchy rim of 2 to 4 mm in the first hours, 2 to 4 mm wider a day later, 6 to 10 HU below the tissue.
    lesion["oedema_mm"] = float(np.clip(2.4 + 0.2 * onset_to_ct_h + rng.normal(0, 0.4), 2.2, 5.0))
    lesion["oedema_growth_mm"] = float(rng.uniform(2.0, 4.0))
    lesion["oedema_hu"] = float(rng.uniform(8.0, 11.0))
    lesion["oedema_field"] = waves(rng, 13.0, 16)
    lesion["ventricular_blood"] = _draw_ventricular_blood(lesion, rng, np.asarray(scale)) if ventricular_blood else None
    lesion["sign_seed"] = int(rng.integers(2**62))
    lesion["anchor"] = _anchor(lesion, volumes_ml[0])
    for lobe in lesion["lobes"]:
        lobe["anchor"] = lesion["anchor"]
    lesion["new_lobes"] = _new_lobes(lesion, rng) if volumes_ml[1] > 1.25 * volumes_ml[0] else []
    return lesion


def _unit(vector):
    vector = np.asarray(vector, float)
    return vector / np.linalg.norm(vector)


def ball_radius(volume_ml):
    """Radius of the ball of this volume, mm."""
    return (volume_ml * 1000 * 3 / (4 * math.pi)) ** (1 / 3)


def _draw_margin(lesion, rng, irregularity):
    """Draw the margin: smooth, or with lobules and satellites about the section that is likely the largest."""
    radius = lesion["radius"]
    score = float(np.clip(irregularity, -2.5, 2.5))
    if "irregular_shape" not in lesion["signs"] or lesion["where"] == "ventricle":
        lesion["roughness"] = float(np.clip(0.012 + 0.005 * score, 0.003, 0.024))
        lesion["outline"] = waves(rng, 1.9 * radius, 20)
        lesion["warp_mm"] = 0.05 * radius
        lesion["warp"] = [waves(rng, 2.8 * radius, 10) for _ in range(3)]
        return
    lesion["roughness"] = float(np.clip(0.035 + 0.013 * score, 0.015, 0.065))
    lesion["outline"] = waves(rng, float(np.clip(0.95 * radius, 9.0, 16.0)), 28)
    lesion["warp_mm"] = 0.085 * radius
    lesion["warp"] = [waves(rng, 1.6 * radius, 14) for _ in range(3)]
    lobules = int(np.clip(round(3.2 + 0.6 * score + rng.uniform(-0.6, 0.6)), 3, 5))
    satellites = int(np.clip(round(0.5 + 0.7 * score + rng.uniform(-0.6, 0.6)), 0, 3))
    first = rng.uniform(0, 2 * np.pi)
    for i in range(lobules):
        angle = first + (i + rng.uniform(-0.18, 0.18)) * 2 * np.pi / lobules
        size = float(np.clip(radius * rng.uniform(0.28, min(0.55, 0.2 + radius / 60)), 2.9, 10.0))
        out = size * rng.uniform(-0.05, 0.25) + max(0.0, 0.6 * (4.5 - size))
        lesion["lobes"].append(_lobe(lesion, angle, rng.normal(0, 0.06), 0.9 * radius, size, out, 0.6 * size))
    for _ in range(satellites if radius > 10.5 else 0):
        size = float(np.clip(radius * rng.uniform(0.16, 0.24), 2.9, 5.0))
        angle = rng.uniform(0, 2 * np.pi)
        out = size + rng.uniform(1.0, 3.5)
        lesion["lobes"].append(_lobe(lesion, angle, rng.normal(0, 0.06), 0.9 * radius, size, out, 0.0))


def _lobe(lesion, angle, lift, radius, size, out_mm, melt_mm):
    """Make a lobule or satellite `out_mm` off the surface of the ellipsoid of this radius, about its equator."""
    unit = np.array([math.cos(angle), math.sin(angle), lift])
    unit /= np.linalg.norm(unit)
    surface = np.linalg.solve(lesion["inverse"], unit) * radius
    outward = _unit(lesion["inverse"].T @ unit)
    return {"offset": surface + out_mm * outward, "size": size, "melt": melt_mm, "anchor": 0.0}


def _draw_density(lesion, rng, heterogeneity):
    """Draw the density of fresh blood, HU: a mean after the haematocrit, a gradient, a soft texture."""
    signs = lesion["signs"]
    score = float(np.clip(heterogeneity, -2.5, 2.5))
    low, high = 58.0, 68.0
    if "hypodensity" in signs:  # room for a pocket that stays denser than brain
        low = 61.5
    if "blend" in signs:  # room for a part that is 23 HU less dense and still denser than brain
        low, high = 67.5, 70.0
    lesion["density"] = float(np.clip(rng.normal(63.5, 2.5), low, high)) if low < 65 else float(rng.uniform(low, high))
    # ASSUME: texture varies by 0.5 to 2 HU where the density is read as homogeneous, by 1.5 to 3 HU else.
    if "heterogeneous_density" in signs:
        lesion["texture_hu"] = float(np.clip(2.1 + 0.4 * score, 1.5, 3.0))
    else:
        lesion["texture_hu"] = float(np.clip(1.1 + 0.4 * score, 0.5, 2.0))
    lesion["texture"] = waves(rng, 10.0, 28)
    lesion["fine_texture"] = waves(rng, 5.5, 24)
    # Red cells settle: denser towards the back of a supine patient; the middle is the least diluted part.
    lesion["gradient"] = rng.normal((0.0, 1.2, 0.0), (0.5, 0.6, 0.5))  # HU per equivalent radius of the ball
    lesion["core_hu"] = float(rng.uniform(0.0, 2.5))


def _draw_ventricular_blood(lesion, rng, scale):
    """Draw how far blood fills the ventricles: sediment behind a level, a cast near the haematoma, midline chambers."""
    return {
        # ASSUME: the sediment's level lies between the atria and the occipital horns
        "level_mm": float(rng.uniform(38.0, 66.0) * scale[1]),
        "other_level_mm": float(rng.uniform(46.0, 74.0) * scale[1]),
        "cast_mm": float(rng.uniform(4.0, 16.0)),
        "third": bool(rng.random() < (0.5 if lesion["where"] == "thalamus" else 0.25)),
        "fourth": bool(rng.random() < 0.2),
        "density": float(rng.uniform(50.0, 62.0)),
        "field": waves(rng, 9.0, 16),
        "scale": scale,
    }


def _new_lobes(lesion, rng):
    """Draw the lobules that an expanding haematoma gets, towards where it grows."""
    unit = lesion["inverse"] @ lesion["growth_direction"]
    angle = math.atan2(unit[1], unit[0])
    lobes = []
    for _ in range(int(rng.integers(1, 4))):
        size = float(np.clip(lesion["radius"] * rng.uniform(0.25, 0.4), 3.0, 8.0))
        radius = 0.95 * lesion["radius"]
        lobes.append(_lobe(lesion, angle + rng.normal(0, 0.7), rng.normal(0, 0.3), radius, size, 0.3 * size, 2.0))
    return lobes


def at_timepoint(lesion, timepoint):
    """Give the haematoma of one scan.

    Parameters
    ----------
    lesion : dict
        From `draw_haematoma` or `place_signs`.
    timepoint : {"baseline", "followup"}
        At follow-up an expanded haematoma has grown, more in one direction and with new lobules, but nowhere shrunk;
        the blood is a little less dense and more uniform, the oedema wider.

    Returns
    -------
    dict
        A lesion with the `radius` of that time.
    """
    volume_ml = lesion["volumes_ml"][timepoint]
    now = lesion | {"radius": ball_radius(volume_ml), "timepoint": timepoint}
    if timepoint == "baseline":
        return now
    now["oedema_mm"] = lesion["oedema_mm"] + lesion["oedema_growth_mm"]
    now["density"], now["fade"] = lesion["density"] - 2.0, 0.85
    now["texture_hu"] = 0.85 * lesion["texture_hu"]
    grown = now["radius"] - ball_radius(lesion["volumes_ml"]["baseline"])
    if lesion["new_lobes"]:
        now["growth_mm"] = 1.2 * grown
        anchor = lesion["anchor"] + 0.5 * grown
        now["lobes"] = lesion["lobes"] + [lobe | {"anchor": anchor} for lobe in lesion["new_lobes"]]
    return now


# -------------------------------------------------------------------------------------------------------------- shape


def _offsets(x, y, z, lesion):
    return tuple(p - np.float32(c) for p, c in zip((x, y, z), lesion["centre"], strict=True))


def _fields(lesion, evaluate):
    """Evaluate the random fields of a shape: how rough its outline is, and where each point is taken from, mm."""
    warp = (np.float32(lesion["warp_mm"]) * evaluate(field) for field in lesion["warp"])
    return evaluate(lesion["outline"]), *warp


def _warped(x, y, z, fields, lesion):
    """Offsets from the centre in the even shape, of points in the bent one."""
    return tuple(d + move for d, move in zip(_offsets(x, y, z, lesion), fields[1:], strict=True))


def _body(dx, dy, dz, rough, lesion):
    """Equivalent radius of the body, without lobules, and its slope (change per mm), at offsets from the centre."""
    inverse = lesion["inverse"].astype(np.float32)
    u = [row[0] * dx + row[1] * dy + row[2] * dz for row in inverse]
    rho = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2) + np.float32(1e-3)
    slope = np.sqrt(sum(sum(inverse[i, axis] * u[i] for i in range(3)) ** 2 for axis in range(3))) / rho
    # Far outside the roughness stops to grow, so that no islands appear there.
    first_radius = np.float32(ball_radius(lesion["volumes_ml"]["baseline"]))
    level = rho + np.float32(lesion["roughness"]) * np.minimum(rho, 1.6 * first_radius) * rough
    if lesion["growth_mm"]:
        towards = _unit(lesion["inverse"] @ lesion["growth_direction"]).astype(np.float32)
        along = sum(t * part for t, part in zip(towards, u, strict=True)) / (rho + 2)
        level -= np.float32(lesion["growth_mm"]) * ((1 + along) / 2) ** 2
    return level, slope


def _beside(dx, dy, dz, lobe):
    """Distance to the surface of a lobule, mm, negative inside."""
    ox, oy, oz = (np.float32(v) for v in lobe["offset"])
    flat = np.float32(LOBULE_FLATNESS)
    return np.sqrt((dx - ox) ** 2 + (dy - oy) ** 2 + (flat * (dz - oz)) ** 2) - np.float32(lobe["size"])


def _join(level, other, melt_mm):
    """Smallest of two levels, the edge between them filled over `melt_mm` as drops melt together."""
    joined = np.minimum(level, other)
    if melt_mm:
        joined -= np.maximum(melt_mm - np.abs(level - other), 0) ** 2 * np.float32(0.25 / melt_mm)
    return joined


def _anchor(lesion, volume_ml):
    """Find the threshold at which body and lobules of the drawn sizes have a volume where nothing is in their way."""
    half = 1.9 * lesion["radius"] + 8
    side = np.linspace(-half, half, 38, dtype=np.float32)
    dz, dy, dx = np.meshgrid(side, side, side, indexing="ij")
    x, y, z = (d + np.float32(c) for d, c in zip((dx, dy, dz), lesion["centre"], strict=True))
    near = _body(dx, dy, dz, np.float32(0), lesion)[0] < 1.9 * lesion["radius"]
    x, y, z = x[near], y[near], z[near]
    fields = _fields(lesion, lambda field: field_at(field, x, y, z))
    dx, dy, dz = _warped(x, y, z, fields, lesion)
    body, _ = _body(dx, dy, dz, fields[0], lesion)
    lobes = [(_beside(dx, dy, dz, lobe), lobe["melt"]) for lobe in lesion["lobes"]]
    count = min(round(volume_ml * 1000 / float(side[1] - side[0]) ** 3), body.size) - 1
    anchor = lesion["radius"]
    for _ in range(8 if lobes else 1):
        level = body
        for beside, melt in lobes:
            level = _join(level, anchor + beside, melt)
        anchor = float(np.partition(level, count, axis=None)[count])
    return anchor


def _outline_at(plane, places, lesion, fields=None):
    """Outline (equivalent radius, mm) with and without lobules, and slope of the body, on places of parallel planes."""
    if fields is None:
        fields = _fields(lesion, lambda field: field_on(field, plane, *places))
    dx, dy, dz = _warped(*points(plane, *places), fields, lesion)
    body, slope = _body(dx, dy, dz, fields[0], lesion)
    level = body
    for lobe in lesion["lobes"]:
        level = _join(level, np.float32(lobe["anchor"]) + _beside(dx, dy, dz, lobe), lobe["melt"])
    return level, body, slope


def section(scan, number, parts=(0.0,)):
    """Give the sub-slices of one slice in the head frame, of a synthetic scan or of a real series.

    Parameters
    ----------
    scan : dict
        As `haemex.phantom_planes.plane` takes it; or with `planes` (per slice: `origins` (1, 3), `row_step`,
        `column_step`, `normal`) and `thickness_mm` (z,).
    number : int
        Slice.
    parts : sequence of float
        Offsets in slice thicknesses.
    """
    if "planes" not in scan:
        return plane(scan, number, parts)
    own = scan["planes"][number]
    return own | {"origins": own["origins"] + np.outer(np.asarray(parts) * scan["thickness_mm"][number], own["normal"])}


def _depth(scan):
    """Number of slices, and rows and columns of each."""
    if "planes" in scan:
        return len(scan["planes"]), tuple(scan["shape"])
    return len(scan["origins"]), (scan["matrix"], scan["matrix"])


def _voxel_mm3(scan):
    return np.broadcast_to(scan["voxel_mm3"], _depth(scan)[:1])


def _coarse(plane, window):
    """Rows and columns of a coarser grid that covers a window, and the weights back to its pixels."""
    axes = []
    for pixels, step in zip(window, (plane["row_step"], plane["column_step"]), strict=True):
        every = max(1, round(COARSE_MM / float(np.linalg.norm(step))))
        places, weights = interpolation(len(pixels), every)
        axes.append((places + pixels[0], bands(weights)))
    return axes


def _refine(values, axes):
    """Interpolate (..., coarse rows, coarse columns) to pixels."""
    (_, up_rows), (_, up_columns) = axes
    return resized(values, up_rows, up_columns)


def _outline_on(plane, window, lesion):
    """Outline on the pixels of a window of parallel planes, (s, ny, nx)."""
    axes = _coarse(plane, window)
    places = axes[0][0], axes[1][0]
    return _refine(_outline_at(plane, places, lesion)[0], axes)


def _reach(lesion, equivalent_mm):
    """How far from the centre a point of this equivalent radius can be, mm."""
    longest = 1 / np.linalg.svd(lesion["inverse"])[1].min()
    lobes = [np.linalg.norm(lobe["offset"]) + lobe["size"] / LOBULE_FLATNESS for lobe in lesion["lobes"]]
    beyond = max(0.0, equivalent_mm - lesion["anchor"])
    bent = 2 * lesion["warp_mm"]
    return float(max([longest * equivalent_mm * (1 + lesion["roughness"]), *(far + beyond for far in lobes)])) + bent


def room(levels, lesion):
    """Where the blood of a haematoma may lie: in brain, on its own side, above or below the tentorium.

    Parameters
    ----------
    levels : dict of arrays
        From `haemex.phantom_brain.structures`: `cavity`, `ventricle`, `midline`, `cerebellum`, `brainstem`; mm.
    lesion : dict

    Returns
    -------
    array
        Level, mm, positive where blood may lie: `> 0` is the `allowed` of `grow`, `soft(level, 1.2)` the `inside` of
        `lay`. For pure ventricular blood it is the level of the ventricles.
    """
    where = lesion["where"]
    if where == "ventricle":
        return np.minimum(levels["ventricle"], levels["cavity"])
    # ASSUME: 5 mm off the inner table no reader takes brighter pixels of the cortex and the skull's blur for blood
    level = np.minimum(levels["cavity"] - 5.0, -levels["ventricle"])
    if where == "pons":
        return np.minimum(level, levels["brainstem"])
    level = np.minimum(level, levels["midline"] * lesion["side"] - 1.5)
    if where == "cerebellum":
        return np.minimum(level, levels["cerebellum"] - 1.0)
    return np.minimum(level, -levels["cerebellum"] - 1.0)


def settle(lesion, level, limit_mm=14.0):
    """Shift a haematoma to where its body has room, as far as the brain allows; blood, too, goes where it can.

    Call it once, before anything else is done with the lesion.

    Parameters
    ----------
    lesion : dict
        From `draw_haematoma`.
    level : callable
        `level(x, y, z, lesion)`: `room` at arrays of points.
    limit_mm : float
        Largest shift.

    Returns
    -------
    dict
        The lesion, with another `centre`.
    """
    if lesion["where"] == "ventricle":
        return lesion
    turn = math.pi * (3 - math.sqrt(5))
    i = np.arange(240)
    up = 1 - (2 * i + 1) / len(i)
    ball = np.stack([np.sqrt(1 - up * up) * np.cos(turn * i), np.sqrt(1 - up * up) * np.sin(turn * i), up], 1)
    surface = np.linalg.solve(lesion["inverse"], (ball * lesion["radius"]).T).T
    best = None
    start = lesion["centre"]
    for _ in range(8):
        x, y, z = (lesion["centre"] + surface).T.astype(np.float32)
        lacking = np.clip(-level(x, y, z, lesion), 0, 12)
        if best is None or lacking.sum() < best[0]:
            best = float(lacking.sum()), lesion
        if not lacking.any():
            break
        outwards = surface / np.linalg.norm(surface, axis=1, keepdims=True)
        # From the worst points inwards; small steps, for the ventricle moves along.
        push = -(lacking[:, None] * outwards).sum(0) / lacking.sum() * min(lacking.max(), 4.0)
        shift = lesion["centre"] + push - start
        far = float(np.linalg.norm(shift))
        lesion = lesion | {"centre": start + shift * min(1.0, limit_mm / max(far, 1e-6))}
    return best[1]


def grow(scan, lesion, voxels, allowed, volume_mm3=None):
    """Find the threshold at which the haematoma has a given number of voxels on a scan's native grid.

    Parameters
    ----------
    scan : dict
        See `section`; also `voxel_mm3`.
    lesion : dict
        From `at_timepoint`.
    voxels : int
        Wanted.
    allowed : callable or array of bool, (z, y, x)
        `allowed(x, y, z)` says for arrays of points whether blood may lie there.
    volume_mm3 : float, optional
        For slices of different thickness: stop where this volume is reached instead of at a number of voxels.

    Returns
    -------
    mask : array of uint8, (z, y, x)
        Exactly `voxels` voxels are 1, in pieces of at least `SPECK_MM3`.
    threshold : float
        Equivalent radius, mm.

    Raises
    ------
    InputError
        The brain has no room for so much.
    """
    count, shape = _depth(scan)
    voxel_mm3 = _voxel_mm3(scan)
    # Far more places lie about a haematoma than in it: those beyond a limit are left out as long as that will do.
    limit = 1.25 * lesion["radius"]
    reach = _reach(lesion, limit) + 4
    if lesion["where"] == "ventricle":
        limit, reach = np.inf, 75.0
    while True:
        found = []
        for number in range(count):
            where = section(scan, number)
            window = window_around(where, lesion, reach, shape)
            if window is None:
                continue
            outline = _outline_on(where, window, lesion)[0]
            near = outline <= limit
            if not near.any():
                continue
            own = _bounds(near)
            outline, near = outline[slices(own)], near[slices(own)]
            window = window[0][own[0]], window[1][own[1]]
            patch = (number, *slices(window))
            free = allowed[patch] if isinstance(allowed, np.ndarray) else allowed(*points(where, *window))[0]
            found.append((patch, np.where(free & near, outline, np.inf)))
        mask, threshold, total = _sorted_out(found, (count, *shape), voxels, voxel_mm3, volume_mm3)
        if _reach(lesion, threshold) <= reach or reach > 150:
            break
        limit = 1.4 * limit if limit < 1.7 * lesion["radius"] else np.inf
        reach = min(max(1.3 * reach, _reach(lesion, min(threshold, limit)) + 2), 160.0)
    if not np.isfinite(threshold):
        wanted = f"{voxels} voxels" if volume_mm3 is None else f"{volume_mm3 / 1000:.1f} mL"
        raise InputError(
            f"the brain around the centre has room for {total / 1000:.1f} mL of haematoma, not for {wanted}",
            "move the centre or draw a smaller haematoma",
        )
    return mask, threshold


def _sorted_out(found, shape, voxels, voxel_mm3, volume_mm3):
    """Take the voxels with the lowest outline, without specks and gaps; threshold inf where there are too few."""
    from scipy.ndimage import label

    if not found:
        return None, np.inf, 0.0
    low = np.min([[part if axis == 0 else part.start for axis, part in enumerate(patch)] for patch, _ in found], 0)
    high = np.max([[part + 1 if axis == 0 else part.stop for axis, part in enumerate(patch)] for patch, _ in found], 0)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    outline = np.full(high - low, np.inf, np.float32)
    for (number, rows, columns), values in found:
        own = slice(rows.start - low[1], rows.stop - low[1]), slice(columns.start - low[2], columns.stop - low[2])
        outline[(number - low[0], *own)] = values
    flat = outline.ravel()
    sizes = np.repeat(voxel_mm3[box[0]], outline[0].size)
    order = np.flatnonzero(np.isfinite(flat))
    order = order[np.argsort(flat[order], kind="stable")]
    while True:
        total = float(sizes[order].sum())
        if volume_mm3 is not None:
            voxels = int(np.searchsorted(np.cumsum(sizes[order]), volume_mm3 * (1 - 1e-9))) + 1
        if not 1 <= voxels <= len(order):
            return None, np.inf, total
        part = np.zeros(outline.shape, np.uint8)
        part.ravel()[order[:voxels]] = 1
        pieces, number = label(part, np.ones((3, 3, 3)))
        pieces = pieces.ravel()
        specks = np.bincount(pieces, sizes, number + 1) < SPECK_MM3
        specks[0] = False
        if specks.any():
            order = order[~specks[pieces[order]]]
            continue
        gaps = _gaps(part, np.isfinite(outline), sizes)
        if not gaps.any():
            mask = np.zeros(shape, np.uint8)
            mask[box] = part
            return mask, float(flat[order[voxels - 1]]), total
        first = gaps[order]
        order = np.concatenate([order[first], order[~first]])


def _gaps(part, free, sizes):
    """Find gaps in the sections that a reader's contour would run over, flat array of bool."""
    from scipy.ndimage import binary_fill_holes, label

    gaps = np.stack([binary_fill_holes(one) for one in part]) & (part == 0) & free
    if not gaps.any():
        return gaps.ravel()
    pieces, number = label(gaps)
    small = np.bincount(pieces.ravel(), sizes, number + 1) < 2 * SPECK_MM3
    small[0] = False
    return small[pieces.ravel()]


# -------------------------------------------------------------------------------------------------------------- signs


def _region_levels(region, x, y, z):
    """In-plane level of a sign's region (mm, positive inside), and height above its middle, at points."""
    dx, dy, dz = (p - np.float32(c) for p, c in zip((x, y, z), region["centre"], strict=True))
    u, v, h = (
        dx * np.float32(e[0]) + dy * np.float32(e[1]) + dz * np.float32(e[2])
        for e in (region["along"], region["across"], region["axis"])
    )
    kind = region["kind"]
    if kind == "pocket":
        return _pocket_level(region, u, v, h), h
    if kind == "streak":  # from a round inner end out through the margin
        slope = 2 * np.float32(region["bend"]) * u
        bent = (v - np.float32(region["bend"]) * u * u) / np.sqrt(1 + slope * slope)
        size = region["size"] * (1 + np.float32(0.12) * np.cos(u * np.float32(0.7) + np.float32(region["phase"])))
        return size - np.hypot(np.minimum(u, 0), bent), h
    # A part of the haematoma beyond a curved border.
    return u - np.float32(region["bend"]) * v * v - np.sin(v * np.float32(0.3) + np.float32(region["phase"])), h


def _pocket_level(region, u, v, h):
    """Level of ellipses that have flowed together, with an uneven outline; the first is about the origin."""
    level = None
    for node in np.asarray(region["nodes"], np.float32):
        du, dv = u - node[0], v - node[1]
        along, across = (du * node[2] + dv * node[3]) / node[5], (dv * node[2] - du * node[3]) * node[5]
        # Divided by its slope, the level is a distance about the outline, also of a long ellipse.
        rho = np.sqrt(along * along + across * across) + np.float32(1e-3)
        slope = np.sqrt((along / node[5]) ** 2 + (across * node[5]) ** 2) / rho
        outside = (rho - node[4]) / np.maximum(slope, np.float32(0.3))
        level = outside if level is None else _join(level, outside, region["melt"])
    level = -level
    if region["rough_mm"]:
        wave = region["rough"]
        rough = field_at(wave, u, v, h)
        level += np.float32(region["rough_mm"]) * np.tanh(rough)
    return level


def region_level(region, plane, x, y, z):
    """Level of a sign's region, mm, positive inside, at points of parallel planes."""
    if region["kind"] == "fluid":  # its surface is horizontal whatever the pose of the head
        down = _down(plane).astype(np.float32)
        return -sum((p - np.float32(c)) * d for p, c, d in zip((x, y, z), region["centre"], down, strict=True))
    level, h = _region_levels(region, x, y, z)
    return np.minimum(level, np.float32(region["half_mm"]) - np.abs(h))


def _down(plane):
    """Direction of gravity in the head frame, as rows run on a supine patient's slice.

    A tilted gantry tilts the rows, not gravity: the part along the head's long axis is left out.
    """
    return _unit(plane["row_step"] * (1, 1, 0))


def _region_bits(lesion, region):
    bits = sum(SIGN_BITS[sign] for sign in region["signs"])
    return np.uint8(bits)


def sign_voxels(scan, mask, lesion, threshold):
    """Say of which signs each voxel of the haematoma is part.

    Parameters
    ----------
    scan, lesion : dict
        As in `grow`; the lesion from `place_signs`.
    mask : array of uint8, (z, y, x)
        From `grow`, with its threshold.
    threshold : float

    Returns
    -------
    array of uint8, (z, y, x)
        Sum of `SIGN_BITS`: a voxel counts by its centre in the middle of the slice. `irregular_shape` marks what of
        lobules and satellites juts out of the body, `heterogeneous_density` every focus of hypoattenuation.
    """
    bits = np.zeros(mask.shape, np.uint8)
    for number in np.flatnonzero(mask.any((1, 2))):
        window = _bounds(mask[number])
        where = section(scan, number)
        x, y, z = points(where, *window)
        patch = (number, *slices(window))
        part = np.zeros(x.shape[1:], np.uint8)
        for region in lesion["regions"]:
            part |= np.where(region_level(region, where, x, y, z)[0] > 0, _region_bits(lesion, region), np.uint8(0))
        if lesion["lobes"] and "irregular_shape" in lesion["signs"]:
            _, body, _ = _outline_at(where, window, lesion)
            part |= np.where(body[0] > threshold, np.uint8(SIGN_BITS["irregular_shape"]), np.uint8(0))
        bits[patch] = part * mask[patch]
    return bits


def _bounds(section_mask):
    """Rows and columns of the pixels that are set."""
    return tuple(np.arange(v[0], v[-1] + 1) for v in (np.flatnonzero(section_mask.any(a)) for a in (1, 0)))


# Sizes in mm for which room is sought, from comfortable (as the haematoma's size suggests) to just visible: half width
# of a black hole, of another encapsulated region, of a further focus, and the blood that each keeps around it; half
# width of a streak.
ROOM_WANTED = (
    {"black_hole": (None, 3.2), "hypodensity": (None, 3.2), "focus": (None, 2.4), "streak": 3.0},
    {"black_hole": (3.3, 3.0), "hypodensity": (3.0, 3.0), "focus": (2.7, 2.2), "streak": 2.8},
    {"black_hole": (3.1, 3.0), "hypodensity": (2.8, 3.0), "focus": (2.5, 1.8), "streak": 2.7},
    {"black_hole": (3.0, 2.6), "hypodensity": (2.7, 2.6), "focus": (2.4, 1.4), "streak": 2.6},
    {"black_hole": (2.9, 2.0), "hypodensity": (2.6, 2.0), "focus": (2.3, 0.9), "streak": 2.5},
)

LEAST_RIM_MM = 2.2  # of blood, however small the haematoma


def place_signs(scan, mask, lesion, threshold):
    """Find places inside a haematoma for the signs that it shows, on the slices of its baseline scan.

    Encapsulated regions (hypodensity, black hole) keep 3 mm of blood around them and, as all others, at least that
    distance from each other, down to what `ROOM_WANTED` lists where a haematoma is small. Each fills at least one slice
    in its whole thickness. Heterogeneous density: at least three foci on the slice with the largest area; fewer where
    it is absent.

    Parameters
    ----------
    scan, mask, lesion, threshold
        As `grow` took and gave them at baseline.

    Returns
    -------
    dict
        The lesion with `regions`, for every timepoint.
    """
    signs = lesion["signs"]
    if lesion["where"] == "ventricle" or not signs - {"irregular_shape"}:
        return lesion | {"regions": []}
    sheets = _sheets(scan, mask, lesion, threshold)
    for step, wanted in enumerate(ROOM_WANTED):
        for attempt in range(8):
            rng = np.random.default_rng([lesion["sign_seed"], step, attempt])
            regions = _try_places(sheets, lesion, wanted, rng, step == len(ROOM_WANTED) - 1 and attempt == 7)
            if regions is not None:
                return lesion | {"regions": regions}
    raise AssertionError("the last attempt takes any place")


def _sheets(scan, mask, lesion, threshold):
    """Prepare the slices of a haematoma for the search: what of each is blood through its whole thickness."""
    sheets = []
    for number in np.flatnonzero(mask.any((1, 2))):
        window = tuple(np.arange(w[0] - 1, w[-1] + 2) for w in _bounds(mask[number]))
        middle, thick = section(scan, number), section(scan, number, (-0.4, 0.4))
        drawn = np.zeros((len(window[0]), len(window[1])), bool)
        drawn[1:-1, 1:-1] = mask[(number, *slices(tuple(w[1:-1] for w in window)))] > 0
        core = drawn & (_outline_on(thick, window, lesion) <= threshold).all(0)
        pixel = [float(np.linalg.norm(middle[step])) for step in ("row_step", "column_step")]
        across, down = _unit(middle["column_step"]), _unit(middle["row_step"])
        thickness = scan["thickness_mm"][number] if "planes" in scan else scan["thickness_mm"]
        sheet = {
            "window": window, "plane": middle, "points": points(middle, *window), "mask": drawn, "core": core,
            "pixel": pixel, "down": down, "across": across, "axis": np.cross(across, down),
            "thickness_mm": float(thickness), "area": int(drawn.sum()),
        }  # fmt: skip
        sheets.append(sheet | {"margin": _distances(sheet, drawn)})
    return sheets


def _try_places(sheets, lesion, wanted, rng, anywhere):
    """Place all regions at random, one after the other; None where one finds no room."""
    signs = lesion["signs"]
    largest = int(np.argmax([sheet["area"] for sheet in sheets]))
    state = {"taken": [np.zeros(s["core"].shape, bool) for s in sheets], "dark": np.zeros(len(sheets), int)}
    regions = []

    def add(region, number, spanned):
        regions.append(region)
        for k in spanned:
            level = region_level(region | {"half_mm": np.inf}, sheets[k]["plane"], *sheets[k]["points"])[0]
            state["taken"][k] |= level > 0
            if region["kind"] in ("pocket", "streak"):
                state["dark"][k] += 1

    everywhere = range(len(sheets))
    if "fluid_level" in signs:
        add(_fluid(sheets[largest], lesion, rng), largest, everywhere)
    heterogeneous = "heterogeneous_density" in signs
    tight = wanted in ROOM_WANTED[3:]
    if "blend" in signs:
        blend = _blend(sheets[largest], lesion, rng, "fluid_level" in signs, tight)
        if heterogeneous and tight:  # where there is no room for more, its less dense part is one of the three foci
            blend["signs"] = ("blend", "heterogeneous_density")
        add(blend, largest, everywhere)

    score = float(np.clip(lesion["heterogeneity"], -2.5, 2.5))
    jobs = []
    if "black_hole" in signs:
        jobs.append("black_hole")
    elif "hypodensity" in signs:
        jobs.append("hypodensity")
    if heterogeneous:
        jobs += ["focus"] * (1 if tight and "blend" in signs else 2)
    if "swirl" in signs and "black_hole" not in signs:
        jobs.append("swirl")
    optional = []
    if heterogeneous:
        optional += ["focus"] * int(np.clip(round(1.0 + score), 0, 4))
    elif "hypodensity" in signs and score > rng.uniform(0, 1.5):
        optional.append("extra")

    for number, job in enumerate(jobs + optional):
        needed = number < len(jobs)
        if job == "swirl":
            placed = _streak(sheets, state, lesion, wanted, rng, largest, heterogeneous, anywhere and needed)
        else:
            placed = _pocket(sheets, state, lesion, wanted, rng, largest, heterogeneous, job, anywhere and needed)
        if placed is not None:
            add(*placed)
        elif needed:
            return None
    return regions


def _frame(sheet, angle):
    """In-plane unit vectors turned by an angle, and the normal, as a region keeps them."""
    along = math.cos(angle) * sheet["across"] + math.sin(angle) * sheet["down"]
    return {"along": along, "across": np.cross(sheet["axis"], along), "axis": sheet["axis"]}


def _place(sheet, row, column):
    """Head-frame coordinates of a pixel of a sheet."""
    rows, columns = sheet["window"]
    plane = sheet["plane"]
    return plane["origins"][0] + rows[row] * plane["row_step"] + columns[column] * plane["column_step"]


def _fluid(sheet, lesion, rng):
    """A liquid compartment: all that lies above a horizontal surface."""
    down = _down(sheet["plane"])
    x, y, z = sheet["points"]
    depth = sum(p * np.float32(d) for p, d in zip((x, y, z), down, strict=True))[0]
    cut = float(np.quantile(depth[sheet["mask"]], rng.uniform(0.28, 0.42)))
    centre = lesion["centre"] + (cut - lesion["centre"] @ down) * down
    return {
        "kind": "fluid", "signs": ("fluid_level",), "centre": centre, "target": FLUID_HU + rng.uniform(-2, 2),
        "edge": 0.8, "half_mm": np.inf,
    }  # fmt: skip


def _blend(sheet, lesion, rng, fluid, tight):
    """A less dense part, beyond a border across the longer axis of the section."""
    rows, columns = np.nonzero(sheet["mask"])
    places = np.stack([columns * sheet["pixel"][1], rows * sheet["pixel"][0]], 1)
    spread = np.linalg.eigh(np.cov(places.T))
    angle = math.atan2(*spread[1][::-1, 1]) + rng.normal(0, 0.3) + np.pi * rng.integers(2)
    if fluid:  # the liquid is above: the less dense part of the clot below
        angle = np.pi / 2 + rng.uniform(-0.5, 0.5)
    frame = _frame(sheet, angle)
    middle = places.mean(0)
    towards = np.array([math.cos(angle), math.sin(angle)])
    share = rng.uniform(0.26, 0.38) if lesion["radius"] > 12 else rng.uniform(0.34, 0.42)
    share = 0.29 if tight else share
    cut = float(np.quantile((places - middle) @ towards, 1 - share))
    place = middle + cut * towards
    centre = _place(sheet, 0, 0) + place[0] * sheet["across"] + place[1] * sheet["down"]
    return frame | {
        "kind": "part", "signs": ("blend",), "centre": centre, "bend": rng.uniform(-0.018, 0.018),
        "phase": rng.uniform(0, 2 * np.pi), "drop": BLEND_DROP_HU, "edge": 0.8, "half_mm": np.inf,
    }  # fmt: skip


def _distances(sheet, free):
    """Distance of every pixel to the nearest that is not free, mm."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(free, sampling=sheet["pixel"])


def _pocket(sheets, state, lesion, wanted, rng, largest, heterogeneous, job, must):
    """An encapsulated region; on the largest section where it counts as a focus of heterogeneous density."""
    size, rim = wanted[job if job in wanted else "focus"]
    most = 99 if heterogeneous else 2
    candidates = [largest] if heterogeneous else [k for k in range(len(sheets)) if state["dark"][k] < most]
    if job == "extra" and not must:
        candidates = [k for k in candidates if k != largest]
    if not candidates:
        return None
    rest = {k: _distances(sheets[k], sheets[k]["core"] & ~state["taken"][k]) for k in candidates}
    # Shapes in turn, each later one rounder, until one fits somewhere.
    shapes = 1 if job == "black_hole" else 6 if size is None else 4
    for trial in range(shapes):
        shape = _shape(lesion, size, job, 1 - trial / max(shapes - 1, 1), rng)
        half_width = shape["nodes"][0][4] / shape["nodes"][0][5]
        least = half_width + rim if job == "black_hole" else 0.85 * half_width + rim
        fitting = [k for k in candidates if rest[k].max() >= least]
        if not fitting:
            continue
        number = int(rng.choice(fitting))
        fits = np.flatnonzero(rest[number] >= least)
        for _ in range(1 if job == "black_hole" else 10):
            flat = int(rng.choice(fits))
            if heterogeneous and (size is not None or rng.random() < 0.5):
                # Close to the edge of the room: others fit beside it, and some foci lie in clusters.
                some = rng.choice(fits, min(len(fits), 12))
                flat = int(some[np.argmin(rest[number].ravel()[some])])
            row, column = np.unravel_index(flat, rest[number].shape)
            sheet = sheets[number]
            region = _frame(sheet, rng.uniform(0, np.pi)) | shape | {"centre": _place(sheet, row, column)}
            if job == "black_hole" or _fits(sheet, region, rest[number], rim):
                return _deepened(sheets, state, region, number, rim, most, heterogeneous, rng)
    if not must:
        return None
    number = max(candidates, key=lambda k: rest[k].max())
    row, column = np.unravel_index(int(np.argmax(rest[number])), rest[number].shape)
    sheet = sheets[number]
    shape = _shape(lesion, size, job, 0.0, rng)
    region = _frame(sheet, 0.0) | shape | {"centre": _place(sheet, row, column)}
    return _deepened(sheets, state, region, number, np.inf, most, heterogeneous, rng)


def _shape(lesion, size, job, oddness, rng):
    """Draw outline, depth and edge of a pocket: black holes round and sharp, others irregular, long and soft.

    ASSUME: elongation 1 to 2.5, an outline uneven over 3.5 to 6.5 mm, up to three pockets flown together.
    """
    radius = lesion["radius"]
    score = float(np.clip(lesion["heterogeneity"], -2.5, 2.5))
    if job == "black_hole":
        if size is None:
            size = float(np.clip(0.22 * radius, 3.4, 5.0)) * rng.uniform(0.97, 1.1)
        return {
            "kind": "pocket", "job": job, "nodes": [(0.0, 0.0, 1.0, 0.0, size, 1.0)], "melt": 0.0, "rough_mm": 0.0,
            "reach": size, "drop": BLACK_HOLE_DROP_HU, "edge": 0.8,
        }  # fmt: skip
    # In a small haematoma there is no room for anything odd.
    oddness *= min(1.0, max(radius - 4.0, 2.0) / 8)
    if size is None:
        share, low, high = (0.2, 2.8, 5.2) if job in ("hypodensity", "extra") else (0.19, 2.3, 5.8)
        size = float(np.clip(share * radius * np.exp(rng.normal(0, 0.35)), low, high)) * (0.85 + 0.15 * oddness)
    elif job == "focus":
        size *= 1 + oddness * rng.uniform(-0.1, 0.25)
    # An ellipse narrower than this would be lost in the blur.
    stretch = min(math.sqrt(1 + oddness * rng.uniform(0.2, 1.5)), max(size / 1.6, 1.0))
    nodes = [(0.0, 0.0, 1.0, 0.0, size, stretch)]
    for _ in range(int(rng.choice(3, p=(0.3, 0.4, 0.3))) if oddness * size > 1.6 else 0):
        own = max(size * rng.uniform(0.5, 0.85), 1.6)
        angle, turn = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi)
        out = np.array([size * stretch * math.cos(angle), size / stretch * math.sin(angle)])
        out *= 1 + rng.uniform(0.0, 0.9) * own / np.linalg.norm(out)
        longer = min(math.sqrt(1 + rng.uniform(0, 1.2)), max(own / 1.6, 1.0))
        nodes.append((*out, math.cos(turn), math.sin(turn), own, longer))
    drop = float(np.clip(17.0 + 1.2 * score + rng.normal(), 15.0, 21.0))
    edge = rng.uniform(1.2, 2.2)
    if job == "focus":  # some shallow, some deep, and more blurred
        drop = float(np.clip(17.0 + 1.2 * score + rng.uniform(-4.5, 3.5), 15.0 if size / stretch < 2.2 else 12.5, 22.0))
        edge = rng.uniform(1.3, float(np.clip(size / stretch, 1.7, 3.2)))
    rough = waves(rng, 5.0, 10)
    # Along the long axis of the head the outline changes slowly: within a slice it would only blur.
    k = rough["k"] * (1, 1, 0)
    rough["k"] = (k * (2 * np.pi / rng.uniform(3.5, 6.5, 10) / np.linalg.norm(k, axis=1))[:, None]).astype(np.float32)
    rough["k"][:, 2] = rng.normal(0, 2 * np.pi / 40, 10)
    far = max(math.hypot(node[0], node[1]) + node[4] * node[5] for node in nodes)
    rough_mm = float(oddness * min(0.22 * size, 0.9))
    return {
        "kind": "pocket", "job": job, "nodes": nodes, "melt": 1.5, "rough": rough, "rough_mm": rough_mm,
        "reach": far + rough_mm + 0.4, "drop": drop, "edge": edge,
    }  # fmt: skip


def _fits(sheet, region, rest, rim):
    """Whether a region is one piece on a sheet and keeps a rim of blood around it."""
    from scipy.ndimage import label

    row, column = _pixel(sheet, region["centre"])
    if not (0 <= row < rest.shape[0] and 0 <= column < rest.shape[1]):
        return False
    far = [math.ceil((region["reach"] + 1) / pixel) for pixel in sheet["pixel"]]
    patch = tuple(slice(max(at - n, 0), at + n + 1) for at, n in zip((row, column), far, strict=True))
    level = _region_levels(region, *(p[(0, *patch)] for p in sheet["points"]))[0]
    half = 0.5 * max(sheet["pixel"])
    part = level > -half
    if sheet["margin"][patch][level > 0].min() < LEAST_RIM_MM:
        return False
    # Regions of neighbouring pixels would be one.
    if not (level > 0).any() or rest[patch][part].min() < max(rim, 1.2 * max(sheet["pixel"])):
        return False
    return label(level > 0, np.ones((3, 3)))[1] == 1


def _deepened(sheets, state, region, number, rim, most, heterogeneous, rng):
    """Extend a region through its slice, and deeper than that one where there is room; name its signs."""
    first = last = number
    sheet, centre = sheets[number], region["centre"]
    for step in (-1, 1):
        k = (last if step > 0 else first) + step
        if rng.random() < 0.6 and _fits_beside(sheets, state, k, region, rim, most):
            first, last = min(first, k), max(last, k)
    heights = [float((sheets[k]["plane"]["origins"][0] - centre) @ sheet["axis"]) for k in (first, last)]
    half = (heights[1] - heights[0]) / 2 + max(sheets[k]["thickness_mm"] for k in (first, last)) / 2 + 0.5
    middle = (heights[0] + heights[1]) / 2
    names = ("hypodensity", "black_hole", "swirl") if region["job"] == "black_hole" else ("hypodensity",)
    if heterogeneous:
        names = (*names, "heterogeneous_density")
    region = region | {"centre": centre + middle * sheet["axis"], "half_mm": half, "signs": names}
    if region["rough_mm"]:  # the outline stays where it was, now that the middle has moved
        rough = region["rough"]
        region["rough"] = rough | {"phase": rough["phase"] + rough["k"][:, 2] * np.float32(middle)}
    return region, number, range(first, last + 1)


def _fits_beside(sheets, state, k, region, rim, most):
    """Whether a region also finds room on a neighbouring slice."""
    if not 0 <= k < len(sheets) or state["dark"][k] >= most:
        return False
    sheet = sheets[k]
    return _fits(sheet, region, _distances(sheet, sheet["core"] & ~state["taken"][k]), rim)


def _pixel(sheet, centre):
    """Pixel of a sheet that is nearest to a point."""
    offset = np.asarray(centre) - _place(sheet, 0, 0)
    return round(offset @ sheet["down"] / sheet["pixel"][0]), round(offset @ sheet["across"] / sheet["pixel"][1])


def _streak(sheets, state, lesion, wanted, rng, largest, heterogeneous, must):
    """A streak as dense as brain that opens through the margin."""
    from scipy.ndimage import distance_transform_edt

    half = wanted["streak"]
    keep = half + 2.0
    order = [int(k) for k in rng.permutation(len(sheets))]
    order.sort(key=lambda k: -sheets[k]["area"] * rng.uniform(0.8, 1.0))
    best = None
    for number in order:
        sheet = sheets[number]
        if not heterogeneous and state["dark"][number] >= 2:
            continue
        margin, nearest = distance_transform_edt(sheet["core"], sampling=sheet["pixel"], return_indices=True)
        free = _distances(sheet, ~state["taken"][number])
        deepest = float(margin.max())
        if deepest < 5.0 and not must:
            continue
        low = min(6.0, 0.85 * deepest)
        fits = np.argwhere((margin >= low) & (margin <= max(low + 1, 0.8 * deepest)) & (free >= keep))
        for row, column in rng.permutation(fits)[:40]:
            end = nearest[:, row, column]
            steps = np.linspace(0, 1.3, 14)[:, None]
            path = np.rint(np.array([row, column]) + steps * (end - [row, column])).astype(int)
            path = np.clip(path, 0, np.array(free.shape) - 1)
            clearance = free[path[:, 0], path[:, 1]].min()
            if clearance >= keep:
                out = (end - [row, column]) * np.array(sheet["pixel"])
                best = number, row, column, math.atan2(out[0], out[1])
                break
        if best:
            break
    if best is None:
        if not must:
            return None
        # Nothing is left beside the other signs: anywhere at the margin of the largest section.
        sheet = sheets[largest]
        margin, nearest = distance_transform_edt(sheet["core"], sampling=sheet["pixel"], return_indices=True)
        row, column = np.unravel_index(int(np.argmax(np.minimum(margin, _distances(sheet, ~state["taken"][largest])))),
                                       margin.shape)  # fmt: skip
        out = (nearest[:, row, column] - [row, column]) * np.array(sheet["pixel"])
        best = largest, row, column, math.atan2(out[0], out[1])
    number, row, column, angle = best
    sheet = sheets[number]
    region = _frame(sheet, angle) | {
        "kind": "streak", "signs": ("swirl", "heterogeneous_density") if heterogeneous else ("swirl",),
        "centre": _place(sheet, row, column), "size": half, "bend": rng.uniform(-0.035, 0.035),
        "phase": rng.uniform(0, 2 * np.pi),
        "half_mm": sheet["thickness_mm"] / 2 + 0.5, "target": SWIRL_HU + rng.uniform(-2, 2), "edge": 1.0,
    }  # fmt: skip
    return region, number, range(number, number + 1)


# -------------------------------------------------------------------------------------------------------------- paint


def lay(hu, plane, rows, columns, lesion, threshold, inside):
    """Lay oedema, haematoma and its signs over composed sub-slices, in place.

    Parameters
    ----------
    hu : array of float32, (s, ny, nx)
        Noise-free HU of the sub-slices of one slice.
    plane : dict
        The sub-slices, head frame.
    rows, columns : array, (ny,), (nx,)
        Pixel indices of `hu`, consecutive.
    lesion : dict
        From `at_timepoint`.
    threshold : float
        From `grow`, mm.
    inside : array, (s, ny, nx)
        Fraction where blood may lie, from `room`.
    """
    reach = _reach(lesion, threshold) + 1.6 * lesion["oedema_mm"] + 3
    if lesion["where"] == "ventricle":
        reach = max(reach, 75.0)
    window = _window(plane, lesion["centre"], reach, rows, columns)
    if window is None:
        return
    patch = (slice(None), *slices(window, (rows[0], columns[0])))
    tissue = hu[patch]
    inside = inside[patch]
    axes = _coarse(plane, window)
    places = axes[0][0], axes[1][0]
    x, y, z = points(plane, *places)
    level, _, slope = _outline_at(plane, places, lesion)
    depth = (np.float32(threshold) - level) / slope
    blood = _blood(x, y, z, lesion, plane, places)
    swelling = _oedema(depth, lesion, plane, places)
    depth, blood = _refine(depth, axes), _refine(blood, axes)
    if lesion["where"] == "ventricle":
        tissue += soft(depth, 1.5) * inside * (blood - tissue)
        return
    if swelling.any():
        # White matter takes up more water than grey; fluid and bone none.
        takes = np.clip((44 - tissue) * np.float32(1 / 12), 0.35, 1) * ((tissue > 14) & (tissue < 50))
        tissue -= np.float32(lesion["oedema_hu"]) * _refine(swelling, axes) * takes * np.minimum(inside * 1.5, 1)
    fraction = soft(depth, 1.1)
    fraction *= inside
    for region in lesion["regions"]:
        _lay_region(blood, region, plane, window, lesion)
    tissue += fraction * (blood - tissue)


def _window(plane, centre, reach, rows, columns):
    """Rows and columns of the given ones that a cube about a centre covers; None if none."""
    window = window_around(plane, {"centre": np.asarray(centre)}, reach, (rows[-1] + 1, columns[-1] + 1))
    if window is None:
        return None
    window = tuple(w[(w >= own[0]) & (w <= own[-1])] for w, own in zip(window, (rows, columns), strict=True))
    return window if all(len(w) for w in window) else None


def _blood(x, y, z, lesion, plane, places):
    """Density of the blood, HU, without signs."""
    dx, dy, dz = _offsets(x, y, z, lesion)
    per_mm = (np.asarray(lesion["gradient"]) / lesion["radius"]).astype(np.float32)
    texture = 0.85 * field_on(lesion["texture"], plane, *places)
    texture += 0.5 * field_on(lesion["fine_texture"], plane, *places)
    # A field's rare extremes would look like signs: beyond two SD it bends.
    texture = 2.2 * np.tanh(texture / 2.2)
    blood = np.float32(lesion["density"]) + np.float32(lesion["texture_hu"]) * texture
    blood += np.clip(dx * per_mm[0] + dy * per_mm[1] + dz * per_mm[2], -3, 3)
    inner = 1 - (dx * dx + dy * dy + dz * dz) * np.float32(1 / lesion["radius"] ** 2)
    return blood + np.float32(lesion["core_hu"]) * np.clip(inner, -0.5, 1)


def _oedema(depth, lesion, plane, places):
    """How swollen the tissue is, 0 to 1: a rim of uneven width that fades outwards."""
    patchy = np.clip(1 + 0.45 * field_on(lesion["oedema_field"], plane, *places), 0.25, 1.8)
    width = np.float32(lesion["oedema_mm"]) * patchy
    share = np.clip(1.7 * (1 + depth / width), 0, 1)
    return share * share * (3 - 2 * share)


def _lay_region(blood, region, plane, window, lesion):
    """Change the density inside one sign's region, in place."""
    if region["kind"] in ("pocket", "streak"):
        reach = region["reach"] + 2 if region["kind"] == "pocket" else _reach(lesion, 1.3 * lesion["radius"])
        across = float(np.abs((plane["origins"] - region["centre"]) @ region["axis"]).min())
        # Planes of another pose cross the region at an angle: their middle may be farther off than their nearest point.
        if across > region["half_mm"] + 0.3 * reach + 12:
            return
        own = _window(plane, region["centre"], reach + region["half_mm"], window[0], window[1])
        if own is None:
            return
    else:
        own = window
    patch = (slice(None), *slices(own, (window[0][0], window[1][0])))
    part = blood[patch]
    amount = soft(region_level(region, plane, *points(plane, *own)), region["edge"])
    amount *= np.float32(lesion["fade"])
    new = region["target"] if "target" in region else part - np.float32(region["drop"])
    if "black_hole" in region["signs"]:  # also a swirl: as dense as brain, however dense the blood
        new = np.minimum(new, np.float32(SWIRL_HU + 2))
    elif "target" not in region:
        new = np.maximum(new, np.float32(FLOOR_HU))
    part += amount * (new - part)


def lay_ventricular_blood(hu, plane, rows, columns, lesion, ventricle):
    """Lay the blood that has broken into the ventricles, in place; it is no part of the haematoma's mask.

    It settles in the horns behind the atria of a supine patient, casts the ventricle near the haematoma, and sometimes
    fills the third or fourth.

    Parameters
    ----------
    hu, plane, rows, columns, lesion
        As in `lay`.
    ventricle : array, (s, ny, nx)
        Fraction of ventricle.
    """
    drawn = lesion["ventricular_blood"]
    if not drawn:
        return
    wet = ventricle.max(0) > 0
    if not wet.any():
        return
    window = _bounds(wet)
    patch = (slice(None), *slices(window))
    window = rows[window[0]], columns[window[1]]
    x, y, z = points(plane, *window)
    down = _down(plane).astype(np.float32)
    back = x * down[0] + y * down[1] + z * down[2]
    own = x * np.float32(lesion["side"]) > 0
    level = np.where(own, np.float32(drawn["level_mm"]), np.float32(drawn["other_level_mm"]))
    sx, sy, sz = drawn["scale"]
    lateral = z > -16 * sz
    fraction = soft(np.minimum(back - level, (z + 16 * np.float32(sz))), 3.0)
    dx, dy, dz = _offsets(x, y, z, lesion)
    inverse = lesion["inverse"].astype(np.float32)
    rho = np.sqrt(sum((row[0] * dx + row[1] * dy + row[2] * dz) ** 2 for row in inverse))
    cast = np.float32(lesion["radius"] + drawn["cast_mm"]) - rho
    fraction = np.maximum(fraction, soft(cast, 5.0) * own)
    if drawn["third"]:
        third = np.minimum(7 * np.float32(sx) - np.abs(x), np.minimum(20 - np.abs(y - 14 * sy), 14 - np.abs(z)))
        fraction = np.maximum(fraction, soft(third, 3.0))
    if drawn["fourth"]:
        fraction = np.maximum(fraction, soft(-22 * np.float32(sz) - z, 4.0) * ~lateral)
    texture = field_on(drawn["field"], plane, *window)
    density = np.float32(drawn["density"]) + 2 * texture + np.clip((back - level) * np.float32(0.15), -3, 4)
    target = hu[patch]
    target += fraction * ventricle[patch] * (np.clip(density, 45, 65) - target)


# ------------------------------------------------------------------------------------------------- truth and readings


def growth_on(scan, baseline, threshold, followup, followup_threshold):
    """How far the surface has moved outwards between the scans, on the baseline scan's grid.

    Parameters
    ----------
    scan : dict
        The baseline scan.
    baseline, followup : dict
        From `at_timepoint`.
    threshold, followup_threshold : float
        From `grow`, mm.

    Returns
    -------
    array of float32, (z, y, x)
        mm: by how much deeper a voxel lies in (or less far off) the haematoma at follow-up; 0 farther than 10 mm from
        both haematomas.
    """
    count, shape = _depth(scan)
    growth = np.zeros((count, *shape), np.float32)
    reach = max(_reach(baseline, threshold), _reach(followup, followup_threshold)) + 12
    for number in range(count):
        where = section(scan, number)
        window = window_around(where, baseline, reach, shape)
        if window is None:
            continue
        depths = []
        axes = _coarse(where, window)
        places = axes[0][0], axes[1][0]
        fields = _fields(baseline, lambda field, at=(where, *places): field_on(field, *at))
        for lesion, limit in ((baseline, threshold), (followup, followup_threshold)):
            level, _, slope = _outline_at(where, places, lesion, fields)
            depths.append(_refine((np.float32(limit) - level) / slope, axes)[0])
        near = np.maximum(*depths) > -10
        growth[(number, *slices(window))] = np.where(near, depths[1] - depths[0], 0)
    return growth


def second_reading(mask, scan, rng):
    """Draw a haematoma a second time as another reader would, slice by slice.

    The contours differ by smooth noise and a small bias, an end slice may be missing or added.
    ASSUME: Dice with the first reading 0.93 to 0.97, on average 0.95, whatever the size of the haematoma.

    Parameters
    ----------
    mask : array of uint8, (z, y, x)
        The first reading.
    scan : dict
        Its scan.
    rng : numpy.random.Generator

    Returns
    -------
    array of uint8, (z, y, x)

    Raises
    ------
    InputError
        The mask is empty.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    total = int(mask.sum())
    if not total:
        raise InputError("an empty mask cannot be read a second time", "give the mask of a haematoma")
    drawn = np.flatnonzero(mask.any((1, 2)))
    first, last = max(drawn[0] - 1, 0), min(drawn[-1] + 2, len(mask))
    rows, columns = _bounds(mask.any(0))
    rows = np.arange(max(rows[0] - 8, 0), min(rows[-1] + 9, mask.shape[1]))
    columns = np.arange(max(columns[0] - 8, 0), min(columns[-1] + 9, mask.shape[2]))
    window = rows, columns
    patch = (slice(first, last), *slices(window))
    part = mask[patch] > 0
    step = section(scan, first)
    pixel = [float(np.linalg.norm(step[name])) for name in ("row_step", "column_step")]
    distance = np.empty(part.shape, np.float32)
    noise = np.empty(part.shape, np.float32)
    for k, one in enumerate(part):
        if one.any():
            distance[k] = distance_transform_edt(one, sampling=pixel) - distance_transform_edt(~one, sampling=pixel)
            distance[k] -= np.where(one, 0.5, -0.5) * min(pixel)
        else:
            distance[k] = -99.0
        sigma = 5.0 / np.array(pixel)
        field = gaussian_filter(rng.standard_normal(one.shape), sigma, mode="wrap")
        noise[k] = field / max(float(field.std()), 1e-6) + rng.normal(0, 0.35)
    noise += rng.normal(0, 0.25)
    end = _changed_ends(part, distance, drawn - first, total, rng)
    # Ties on the pixel grid would make the agreement jump.
    distance += rng.uniform(-0.02, 0.02, part.shape).astype(np.float32)

    wanted = float(np.clip(rng.normal(0.95, 0.008), 0.932, 0.968))
    low, high = 0.0, 12.0
    for _ in range(24):
        middle = (low + high) / 2
        second = (distance + middle * noise > 0) & end
        agreement = 2 * int((second & part).sum()) / max(int(second.sum()) + total, 1)
        low, high = (middle, high) if agreement > wanted else (low, middle)
    reading = np.zeros_like(mask)
    reading[patch] = _without_specks((distance + low * noise > 0) & end, _voxel_mm3(scan)[patch[0]])
    return reading


def _changed_ends(part, distance, drawn, total, rng):
    """Drop or add an end slice where that changes little; say which slices the second reader draws."""
    end = np.ones((len(part), 1, 1), bool)
    for k, beyond in ((drawn[0], drawn[0] - 1), (drawn[-1], drawn[-1] + 1)):
        chance, small = rng.random(), part[k].sum() < 0.02 * total
        if chance < 0.5 and small and len(drawn) > 2:
            end[k] = False
        elif chance > 0.75 and not small and 0 <= beyond < len(part):
            # The part of the end section that lies deepest is seen once more.
            depth = np.sort(distance[k][part[k]])[::-1]
            cut = depth[min(int(0.012 * total), len(depth) - 1)]
            distance[beyond] = distance[k] - max(float(cut), 0.0)
    return end


def _without_specks(mask, voxel_mm3):
    """Leave out the pieces that no reader would outline."""
    from scipy.ndimage import label

    pieces, number = label(mask, np.ones((3, 3, 3)))
    volumes = np.bincount(pieces.ravel(), np.repeat(voxel_mm3, mask[0].size), number + 1)
    keep = volumes >= SPECK_MM3
    keep[0] = False
    return mask * keep[pieces] if keep.any() else mask
