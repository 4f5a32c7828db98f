"""What lies inside a synthetic skull, without its haematoma: brain, fluid, dura, vessels, and what mimics fresh blood.

A patient's brain is the average brain of `haemex.phantom_atlas`, scaled, bent and shrunk in that patient's own way: a
head-frame point is taken to the atlas by `to_atlas`, and its tissue is read there. Bends are random fields, sums of
plane waves; atrophy draws the cortex off the skull and widens sulci and ventricles. All of it is smooth, so that it is
worked out on a lattice of `LATTICE_MM` once per patient (in `draw_brain`) and interpolated.

Lengths are mm, densities HU, arrays (z, y, x), points in the head frame (x to the left, y to the back, z up).
"""

import functools
import math

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, zoom

from haemex.phantom_atlas import FINE_MM, FIRST_MM, GRIDS, chain, coordinates, load_atlas
from haemex.phantom_fields import bump, field_at, field_on, soft, step, waves

TISSUES = {
    0: "outside",
    1: "csf",
    2: "ventricle",
    3: "grey",
    4: "white",
    5: "deep grey",
    6: "cerebellum",
    7: "brainstem",
    8: "dura",
    9: "vessel",
    10: "calcification",
    11: "infarct",
    12: "subdural",
    13: "white-matter lesion",
}
LABELS = {name: label for label, name in TISSUES.items()}

# ASSUME: volume inside the skull above the foramen magnum, mean and SD, mL, of adult East Asian men and women; between
# Matsumae 1996 (J Neurosurg 84:982; 1469 and 1289) and Yamada 2023 (Eur Radiol 33:7099; 1538 and 1393).
CAVITY_ML = {"m": (1500.0, 115.0), "f": (1350.0, 105.0)}
ATLAS_CAVITY_ML = 1903.0  # the same of the atlas (`cavity` > 0 above -62 mm)
# ASSUME: East Asian heads are broader and shorter than the atlas (cranial index about 0.85 against 0.80).
PROPORTIONS = np.array([1.025, 0.98, 0.995])
LARGEST_MM = np.array([149.0, 187.0, np.inf])  # of the cavity, so that a head holder takes the head
ATLAS_EXTENT_MM = np.array([146.0, 182.0, 146.0])

HALF_WIDTH_MM = 3.5  # of the atlas's lateral ventricles
SEPTUM_MM = 1.0  # between them
FLOOR_MM = 6.0  # ASSUME: how much lower than the atlas's the floor of the anterior fossa lies at its middle
PTERION_MM = 4.0  # ASSUME: and how much further out than the atlas's the brain reaches behind it
BENDS_MM = {75.0: 3.3, 36.0: 1.4}  # of one brain from the average: wavelength, and SD of the displacement
# ASSUME: the middle gives way by this much per mL that a deep haematoma displaces; with the shell of tissue around it,
# the septum moves 3 mm with 30 mL in the putamen and 5 mm with 60 mL.
MIDLINE_MM_PER_ML = 0.2

# Sulci that differ from person to person, which the average brain has lost: wavelengths of the two fields whose zeros
# they follow, and of the one that says how deep they reach, on the surface of an ellipsoid about the cerebrum.
GYRI_MM = (27.0, 19.0, 42.0)
CEREBRUM_MM, CEREBRUM_RADII_MM = np.array([0.0, 14.0, 4.0]), np.array([66.0, 86.0, 70.0])
CORTEX_MM = 3.2
VERTEX = 0.27  # how much more fluid than elsewhere the average must show under the vertex for a sulcus to be there
SHALLOWEST = np.float32(0.6)  # a sulcus at its shallowest, of its usual depth
DEEP_GREY = 0.12  # the least share of white matter in basal ganglia and thalami, which are less dense than cortex
SHARPNESS = 1.9  # how much steeper cortex turns into white matter than in the average

LATTICE_MM = 4.0  # of the bends; their shortest wavelength is about 30 mm
LEVEL_MM = 3.0  # of the inside of the skull
LATTICE_FIRST_MM, LATTICE_LAST_MM = np.array([-84.0, -92.0, -84.0]), np.array([84.0, 120.0, 92.0])
BOTTOM_MM = -78.0  # the volume reaches down the spinal canal to here
LEVEL_FIRST_MM, LEVEL_LAST_MM = np.array([-99.0, -108.0, -99.0]), np.array([99.0, 132.0, 105.0])


# Choroid plexus of the left lateral ventricle: from the foramen of Monro along the floor to the glomus in the atrium,
# and on into the temporal horn; atlas mm.
PLEXUS = (
    ((5, 0, 14), 0.6), ((9, 14, 19), 1.0), ((17, 28, 19), 1.4), ((23, 40, 13), 2.8),
    ((27, 46, 6), 3.2), ((32, 38, -4), 1.6), ((33, 22, -13), 0.8),
)  # fmt: skip

# Where small and large old infarcts are, left side, atlas mm.
LACUNES = ((26, -2, 6), (22, -12, 12), (14, 16, 8), (24, 8, 20), (24, -20, 20), (20, 2, 2), (3, 22, -30))
INFARCTS = ((48, 8, 22), (42, -30, 22), (26, 78, 6), (50, 40, 10), (32, 62, -38), (44, 24, 38))


# ---------------------------------------------------------------------------------------------------------------- draw


def draw_brain(rng, age, sex):
    """Draw the inside of a head.

    Parameters
    ----------
    rng : numpy.random.Generator
        Used up by this call alone.
    age : float
        Years.
    sex : {"m", "f"}

    Returns
    -------
    dict
        `scale` (3,): atlas mm to head mm. `brain_mimics`: list of what could be taken for blood or for a change of it,
        by name. `brain_...`: densities, widths and lattices that the functions of this module read.
    """
    mean, sd = CAVITY_ML[sex]
    volume_ml = mean + sd * np.clip(rng.normal(), -1.9, 1.9)
    size = np.cbrt(volume_ml / ATLAS_CAVITY_ML)
    axes = PROPORTIONS * np.exp(np.clip(rng.normal(0, 0.018, 3), -0.04, 0.04))
    scale = np.minimum(size * axes / np.cbrt(axes.prod()), LARGEST_MM / ATLAS_EXTENT_MM)
    # ASSUME: atrophy starts at about 30. With it the ventricles hold 17 mL at 30, 27 at 62, 43 at 88 (Koreans: 16 mL in
    # their 20s, 25 in their 40s, Neurosci Lett 2006, 395:155; Japanese: 20 mL until 60, then more, Yamada 2023),
    # and all fluid takes 13 % of the cavity at 30, 19 % at 62, 25 % at 88 (Matsumae 1996: 11 % from 24 to 80 years;
    # Yamada 2023, Eur Radiol 33:7099: 19 % in the 20s, 34 % above 80).
    atrophy = float(np.clip((age - 32) / 52 + rng.normal(0, 0.15), 0.0, 1.3))
    head = {
        "scale": scale,
        "brain_atrophy": atrophy,
        "brain_ventricle_mm": 5.2 * atrophy**1.2 * np.exp(rng.normal(0, 0.2)) * np.exp([0, rng.normal(0, 0.3)]),
        "brain_rim_mm": 0.2 + 0.8 * atrophy * np.exp(rng.normal(0, 0.2)),
        "brain_sulcus": np.clip(0.06 - 0.045 * atrophy + rng.normal(0, 0.015), 0.0, 0.15),
        "brain_grey": rng.normal(39.3, 0.6),
        "brain_white": rng.normal(29.1, 0.6),
        "brain_csf": rng.normal(6.0, 1.0),
        "brain_blood": rng.normal(50.0, 2.5),
        "brain_dura_mm": 1.4 + 0.5 * atrophy * rng.uniform(0.5, 1.5),
        # ASSUME: white matter loses up to 12 HU beside the ventricles, with age
        "brain_leukoaraiosis": 12.0 * np.clip(atrophy, 0, 1) ** 1.2 * rng.uniform(0.1, 1.0),
        "brain_leukoaraiosis_side": rng.normal(0, 0.15),
        "brain_sinus_share": np.clip(rng.normal(0.0, 0.22), -0.45, 0.45),
    }
    head |= _draw_bends(rng)
    head |= _draw_mimics(rng, age)
    # One's own shape changes the volume: without this the spread would be larger than stated.
    head["scale"] = np.minimum(scale * np.cbrt(volume_ml / _cavity_ml(head)), LARGEST_MM / ATLAS_EXTENT_MM)
    head["brain_cavity"] = _cavity_lattice(head)
    head["brain_shift"] = _shift_lattice(head)
    return head


def _draw_bends(rng):
    """Draw the fields that make a brain one person's own."""
    return {
        "brain_shape": [waves(rng, 170.0, 8) for _ in range(3)],
        "brain_torque_mm": rng.normal(1.6, 1.2),
        # ASSUME: plagiocephaly, with diagonals that differ by 4 mm (SD), and sides of unequal height.
        "brain_plexus": rng.normal(0, 0.4, 2),
        "brain_skew": np.clip(rng.normal(0, (0.03, 0.018)), -0.06, 0.06),
        "brain_bow_mm": rng.normal(0.0, 1.0),
        "brain_bends": {
            length: [[waves(rng, length, 10) for _ in range(3)] for _ in ("both sides", "against each other")]
            for length in BENDS_MM
        },
        "brain_width": _field_lattice(waves(rng, 45.0, 16)),
        "brain_texture": _field_lattice(waves(rng, 22.0, 24)),
        "brain_patches": _field_lattice(waves(rng, 19.0, 24)),
        "brain_gyri": [_field_lattice(waves(rng, length, 24)) for length in GYRI_MM],
    }


# How often a patient of 60 has what could be taken for blood or for its traces, and how much oftener per year of age.
# ASSUME: orders of magnitude of incidental findings on head CT; calcified choroid plexus, pineal and falx are common.
MIMICS = {
    "choroid_calcification": (0.75, 0.006),
    "pineal_calcification": (0.7, 0.003),
    "falx_calcification": (0.2, 0.006),
    "pallidum_calcification": (0.1, 0.004),
    "artery_calcification": (0.4, 0.015),
    "dense_sinus": (0.05, 0.0),
    "old_infarct": (0.07, 0.003),
    "lacune": (0.3, 0.01),
    "subdural_sliver": (0.03, 0.001),
    "cavum": (0.06, 0.0),
}


def _draw_mimics(rng, age):
    """Draw which mimics a patient has and where; every number is drawn, whether it is used or not."""
    present = {}
    for name, (rate, per_year) in MIMICS.items():
        present[name] = rng.random() < np.clip(rate + per_year * (age - 60), 0.01, 0.95)
    side = np.where(rng.random(8) < 0.5, -1.0, 1.0)
    lacunes = []
    for _ in range(int(rng.integers(1, 4))):
        place = LACUNES[int(rng.integers(len(LACUNES)))]
        lacunes.append((np.array(place) * (rng.choice([-1.0, 1.0]), 1, 1) + rng.normal(0, 2, 3), rng.uniform(1.5, 4.0)))
    artery, place = INFARCTS[int(rng.integers(len(INFARCTS)))], rng.normal(0, 4, 3)
    return {
        "brain_mimics": [name for name, there in present.items() if there],
        "brain_sides": side,
        "brain_lacunes": lacunes,
        "brain_infarct": (np.array(artery) * (side[0], 1, 1) + place, rng.uniform(12.0, 22.0), waves(rng, 16.0, 16)),
        "brain_subdural": (np.array([side[1] * 55, rng.uniform(-30, 30), rng.uniform(15, 40)]), rng.uniform(2.5, 4.5)),
        "brain_subdural_hu": rng.uniform(28.0, 58.0),
        "brain_plaques": [(rng.uniform(-55, 40), rng.uniform(0.15, 0.8), rng.uniform(2, 7)) for _ in range(3)],
        "brain_calcium": rng.uniform(120.0, 500.0, 6),
        "brain_calcium_mm": rng.uniform(0.6, 1.3, 6),
    }


# -------------------------------------------------------------------------------------------------------------- places


def _at(lattice, x, y, z):
    """Interpolate a lattice linearly at points; beyond it, its edge goes on."""
    first, spacing = lattice["first"], np.float32(lattice["spacing"])
    where = np.stack([(p - np.float32(f)) / spacing for p, f in zip((z, y, x), first[::-1], strict=True)])
    values = lattice["values"]
    if values.ndim == 3:
        return map_coordinates(values, where, np.float32, order=1, mode="nearest")
    return tuple(map_coordinates(part, where, np.float32, order=1, mode="nearest") for part in values)


def _in_atlas(name, u, v, w, values=None):
    """Interpolate a level of the atlas, or values on its grid, at atlas points."""
    first, spacing = GRIDS[name]
    return _at(
        {"first": first, "spacing": spacing, "values": load_atlas()[name] if values is None else values}, u, v, w
    )


def _grid(first, last, spacing):
    """Give the points of a lattice, as arrays that broadcast."""
    shape = np.rint((last - first) / spacing).astype(int) + 1
    return coordinates(tuple(shape[::-1]), spacing, first)


def _whole(x, y, z):
    """Broadcast coordinates to whole arrays."""
    return tuple(np.ascontiguousarray(part) for part in np.broadcast_arrays(x, y, z))


def _shaped(head, first, last, spacing):
    """Take a lattice of the head frame to the atlas by the head's size and outer shape alone."""
    u, v, w = (p / np.float32(s) for p, s in zip(_grid(first, last, spacing), head["scale"], strict=True))
    shift = []
    # Heads differ more from each other than their two sides do, in height above all: the orbits hold the floor.
    for field, mirror, uneven in zip(head["brain_shape"], (-1, 1, 1), (0.8, 0.8, 0.35), strict=True):
        values = _on_lattice(field, head["scale"], first, last, spacing)
        other = mirror * values[..., ::-1]
        shift.append(np.float32(1.35) * (values + other) + np.float32(uneven) * (values - other))
    # The back of the left hemisphere and the front of the right one reach further, and are broader.
    torque = np.float32(head["brain_torque_mm"])
    shift[1] -= torque * np.tanh(u / 25)
    shift[0] -= np.float32(0.7) * torque * np.tanh((v - 10) / 40) * bump(w - 8, 50)
    for shear, part in zip(head["brain_skew"], shift[1:], strict=True):
        part += np.float32(shear) * u
    # Frontal lobes hang over the orbits lower than the average brain, whose outline is what all brains share.
    shift[2] += np.float32(FLOOR_MM) * bump(v + 50, 24) * bump(w + 24, 26) * (0.65 + 0.35 * step(np.abs(u) - 14, 4))
    # Nobody's middle is quite straight.
    shift[0] *= np.minimum(np.abs(u) / 25, 1)
    shift[0] += np.float32(head["brain_bow_mm"]) * np.cos(v / 28) * bump(u, 40)
    return u + shift[0], v + shift[1], w + shift[2]


def _cavity_lattice(head):
    u, v, w = _shaped(head, LEVEL_FIRST_MM, LEVEL_LAST_MM, 2 * LEVEL_MM)
    shape = np.rint((LEVEL_LAST_MM - LEVEL_FIRST_MM) / LEVEL_MM).astype(int)[::-1] + 1
    u, v, w = (_upsampled(part, shape) for part in (u, v, w))
    values = _in_atlas("cavity", u, v, w) * np.float32(np.cbrt(np.prod(head["scale"])))
    return {"first": LEVEL_FIRST_MM, "spacing": LEVEL_MM, "values": values}


def _cavity_ml(head):
    """Volume inside the skull above the foramen magnum, mL."""
    u, v, w = _shaped(head, LEVEL_FIRST_MM, LEVEL_LAST_MM, 2 * LEVEL_MM)
    inside = soft(_in_atlas("cavity", u, v, w) * np.float32(np.cbrt(np.prod(head["scale"]))), 2 * LEVEL_MM)
    _, _, z = _grid(LEVEL_FIRST_MM, LEVEL_LAST_MM, 2 * LEVEL_MM)
    inside *= soft(z + np.float32(62 * head["scale"][2]), 2 * LEVEL_MM)
    return float(inside.sum()) * (2 * LEVEL_MM) ** 3 / 1000


def _between(fine, coarse):
    """Give each of `fine` points on a line the coarse point before it and its share of the way to the next one."""
    position = np.arange(fine) * ((coarse - 1) / max(fine - 1, 1))
    before = np.minimum(position.astype(int), max(coarse - 2, 0))
    return before, (position - before).astype(np.float32)


def _upsampled(values, shape):
    """Interpolate the last axes of a grid linearly to more points between the same ends."""
    for back, fine in enumerate(shape[::-1], 1):
        before, share = _between(fine, values.shape[-back])
        weights = np.zeros((fine, values.shape[-back]), np.float32)
        weights[np.arange(fine), before] = 1 - share
        weights[np.arange(fine), before + 1] = share
        if back == 1:
            values = values @ weights.T
        elif back == 2:
            values = weights @ values
        else:
            values = np.tensordot(weights, values, 1)
    return values


def _field_lattice(field):
    """Lay a random field over the lattice of the bends."""
    return {"first": LATTICE_FIRST_MM, "spacing": LATTICE_MM, "values": _on_lattice(field, np.ones(3))}


def _on_lattice(field, scale, first=LATTICE_FIRST_MM, last=LATTICE_LAST_MM, spacing=LATTICE_MM):
    """Evaluate a random field of atlas points on a lattice of the head frame, (z, y, x)."""
    columns, rows, slices = (np.arange(n) for n in np.rint((last - first) / spacing).astype(int) + 1)
    step_x, step_y, step_z = np.diag(spacing / scale)
    origins = first / scale + slices[:, None] * step_z
    return field_on(field, {"origins": origins, "row_step": step_y, "column_step": step_x}, rows, columns)


def _shift_lattice(head):
    """Work out where a patient's brain differs from the scaled atlas: displacement to the atlas, atlas mm."""
    x, y, z = _grid(LATTICE_FIRST_MM, LATTICE_LAST_MM, LATTICE_MM)
    shaped = _shaped(head, LATTICE_FIRST_MM, LATTICE_LAST_MM, LATTICE_MM)
    shift = np.stack([p - q / np.float32(s) for p, q, s in zip(shaped, (x, y, z), head["scale"], strict=True)])
    depth = _in_atlas("cavity", *shaped)
    there = np.nonzero(depth > -2 * LATTICE_MM)
    outward = -np.stack([part[there] for part in np.gradient(depth)[::-1]])
    u, v, w, depth = (p[there] for p in (*shaped, depth))
    outward /= np.sqrt((outward**2).sum(0)) + np.float32(0.5)
    inside = np.maximum(depth, 0)

    bend = [np.zeros_like(u) for _ in range(3)]
    side = np.tanh(u / 4)  # the falx lets the hemispheres slide along each other
    for length, size in BENDS_MM.items():
        both, against = head["brain_bends"][length]
        for axis in range(3):
            bend[axis] += np.float32(0.6 * size) * _on_lattice(both[axis], head["scale"])[there]
            bend[axis] += np.float32(0.8 * size) * side * _on_lattice(against[axis], head["scale"])[there]
    bend = np.stack(bend)
    bend *= (0.45 + 0.55 * bump(inside, 22)) * (0.5 + 0.5 * step(w + 18, 6))
    # The falx holds the middle, the skull the surface: the brain slides along both.
    bend[0] *= 1 - bump(u, 9)
    bend -= outward * (outward * bend).sum(0) * bump(inside, 10)

    # The average brain is hollow where the Sylvian fissure opens.
    bend[0] -= np.sign(u) * (np.float32(PTERION_MM) * bump(v + 20, 17) * bump(w + 4, 17) * step(np.abs(u) - 34, 5))
    upper = 0.4 + 0.6 * step(w + 12, 8)
    front = 1 + 0.35 * step(-v - 5, 15)
    bend += outward * (head["brain_rim_mm"] * np.exp(-inside / 28) * upper * front).astype(np.float32)
    bend += outward * (_subdural_mm(u, v, w, head) * np.exp(-inside / 20))
    u1, v1, w1 = u + bend[0], v + bend[1], w + bend[2]
    # Around the insula tissue recedes from the Sylvian fissure: what lies about the fissure's plane is stretched.
    off = np.abs(u1) - 40
    stretch = np.minimum(0.5 * head["brain_atrophy"], 0.55) * bump(off, 9) * bump(v1 + 2, 26) * bump(w1 - 1, 17)
    u1 = u1 - np.sign(u1) * off * stretch.astype(np.float32)

    level, gradient = _ventricle_pull()
    towards = [_in_atlas("ventricle", u1, v1, w1, part) for part in gradient]
    distance = _in_atlas("ventricle", u1, v1, w1, level)
    left, right = head["brain_ventricle_mm"]
    wide = np.float32((left + right) / 2) + np.float32((left - right) / 2) * np.tanh(u1 / 8)
    lateral = step(w1 + 3, 3) * step(np.abs(u1) - 4 - np.maximum(0, 3 - w1), 1.5)
    lateral = np.maximum(lateral, step(w1 - 14, 3))
    horn = 0.55 * step(-3 - w1, 3) * step(np.abs(u1) - 18, 3)
    third = 0.45 * step(12 - np.abs(u1), 3) * step(w1 + 16, 3)
    fourth = 0.3 * step(-16 - w1, 3)
    wide = wide * np.maximum.reduce([lateral, horn, third, fourth])
    # The shift grows from the middle of the atlas's ventricle to the patient's wall and dies out beyond.
    wide *= np.clip((HALF_WIDTH_MM - distance) / (HALF_WIDTH_MM + wide), 0, 1)
    wide *= np.exp(-np.maximum(-distance - wide, 0) / 20)
    for field, moved, pull, before in zip(shift, (u1, v1, w1), towards, (u, v, w), strict=True):
        field[there] += moved + wide * pull - before
    return {"first": LATTICE_FIRST_MM, "spacing": LATTICE_MM, "values": shift.astype(np.float32)}


def _subdural_mm(u, v, w, head):
    """Thickness of the blood under the dura at atlas points, mm."""
    if "subdural_sliver" not in head["brain_mimics"]:
        return np.zeros_like(u)
    centre, thickness = head["brain_subdural"]
    away = np.sqrt(sum((p - np.float32(c)) ** 2 for p, c in zip((u, v, w), centre, strict=True)))
    return np.float32(thickness) * np.clip(1.3 - away / 42, 0, 1) ** np.float32(0.7)


def to_atlas(x, y, z, head):
    """Take points of a head (before any haematoma) to the atlas.

    Parameters
    ----------
    x, y, z : array
        Head frame, mm, one shape.
    head : dict
        With `draw_brain`'s keys.

    Returns
    -------
    u, v, w : arrays
        Atlas mm.
    """
    shift = _at(head["brain_shift"], x, y, z)
    return tuple(p / np.float32(s) + d for p, s, d in zip((x, y, z), head["scale"], shift, strict=True))


def cavity_level(x, y, z, head):
    """Level of the inside of the skull (the dura), mm, positive inside; smooth."""
    return _at(head["brain_cavity"], x, y, z)


def displaced(x, y, z, head, lesion, cavity=None):
    """Tell where the tissue that is now at these points was before the haematoma pushed it aside.

    Around the haematoma tissue keeps its volume: a shell of it moves outward. As the skull does not give way, tissue
    near it moves less, and the whole of the brain's middle moves towards the other side, least where the falx holds it.
    ASSUME: a haematoma displaces `lesion["push"]` of its volume; the rest is destroyed tissue.

    Parameters
    ----------
    x, y, z : array
        Head frame, mm, one shape.
    head : dict
        With `draw_brain`'s keys.
    lesion : dict or None
        `centre`, `inverse`, `radius`, `push`, `side`; None leaves the points where they are.
    cavity : array, optional
        `cavity_level` at the points, where it is at hand.

    Returns
    -------
    x, y, z : arrays
    """
    if lesion is None:
        return x, y, z
    offset = [p - np.float32(c) for p, c in zip((x, y, z), lesion["centre"], strict=True)]
    inverse = lesion["inverse"].astype(np.float32)
    rho = np.sqrt(sum((row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2]) ** 2 for row in inverse))
    volume = np.float32(lesion["push"] * lesion["radius"] ** 3)
    move = np.cbrt(np.maximum(1 - volume / np.maximum(rho, 0.5) ** 3, 0.05)) - 1
    free = np.clip((cavity_level(x, y, z, head) if cavity is None else cavity) / 14, 0, 1)
    free = free * free * (3 - 2 * free)
    move *= free
    x, y, z = (p + d * move for p, d in zip((x, y, z), offset, strict=True))
    # Besides, all of the middle gives way to the other side, where the falx does not hold it.
    size = np.cbrt(np.prod(head["scale"]))
    u, v, w = (p / np.float32(s) for p, s in zip((x, y, z), head["scale"], strict=True))
    falx = step(_falx_level(v, w) - 2, 5)
    depth = math.exp(-(((abs(lesion["centre"][0]) - 25) / 30) ** 2)) if abs(lesion["centre"][0]) > 25 else 1.0
    if lesion["centre"][2] < -20 * size and lesion["centre"][1] > 20 * size:
        depth = 0.0  # below the tentorium
    shift = np.float32(MIDLINE_MM_PER_ML * 4.19e-3 * volume * depth * lesion["side"])
    along = np.sqrt(sum((p / r) ** 2 for p, r in zip(offset, (48, 45, 34), strict=True)))
    shift = shift * free * bump(along, 1) * (1 - 0.75 * falx * bump(u, 14)) * step(w + 22, 5)
    return x + shift, y, z


# ---------------------------------------------------------------------------------------------------------- structures

# Height of the tentorium (atlas z, mm) at |x| = 0, 15, 30, 45, 60 (columns) and y = 15, 30, ... 105 (rows).
TENTORIUM = np.array([
    [-10, -18, -32, -40, -46],
    [-4, -10, -27, -34, -38],
    [4, -5, -18, -25, -28],
    [4, -11, -14, -21, -25],
    [-6, -15, -19, -22, -22],
    [-19, -21, -22, -23, -23],
    [-22, -23, -24, -24, -24],
], np.float32)  # fmt: skip
BRAINSTEM = (((0, 22, -4), 13), ((0, 22, -14), 14), ((0, 24, -28), 17), ((0, 32, -48), 11), ((0, 44, -72), 8))


def _falx_level(v, w):
    """Level of the falx within the midsagittal plane, from its free edge, atlas mm."""
    edge = (np.hypot((v - 4) / 48, (w - 5) / 36) - 1) * 36
    behind = np.where(v > 46, w - 15 + (v - 52) * np.float32(0.9), np.where(v > -25, w - 5, w + 22))
    return np.minimum(edge, behind)


@functools.cache
def _tentorium():
    """Lay `TENTORIUM` out every 3 mm, (y, x), smoothly between its places."""
    return zoom(TENTORIUM, [(5 * (n - 1) + 1) / n for n in TENTORIUM.shape], order=3, mode="nearest")


def tentorium_height(u, v):
    """Height of the tentorium at atlas points, atlas mm; where there is none, of its continuation."""
    where = np.stack([(v - 15) * np.float32(1 / 3), np.abs(u) * np.float32(1 / 3)])
    return map_coordinates(_tentorium(), where, np.float32, order=1, mode="nearest")


def infratentorial_levels(u, v, w):
    """Levels of what lies below the tentorium, of this behind the petrous bones with the brainstem, and of that."""
    tentorium = tentorium_height(u, v) - w
    stem = chain(np.abs(u), v, w, BRAINSTEM)
    return tentorium, np.maximum(np.minimum(tentorium, _behind(u, v)), stem), stem


def _behind(u, v):
    """Level of what lies behind the petrous bones, atlas mm."""
    return v - 11 - np.float32(0.45) * np.abs(u)


@functools.cache
def _ventricle_pull():
    """Smoothed level of the atlas's ventricles, and its gradient along x, y, z."""
    level = gaussian_filter(load_atlas()["ventricle"], 1.1)
    return level, np.stack(np.gradient(level, np.float32(FINE_MM))[::-1])


def _origin(x, y, z, head, lesion, cavity=None):
    """Take points of a head with its haematoma to the atlas; the ventricles nearby are squeezed empty besides."""
    u, v, w = to_atlas(*displaced(x, y, z, head, lesion, cavity), head)
    if lesion is None:
        return u, v, w
    away = np.sqrt(sum((p - np.float32(c)) ** 2 for p, c in zip((x, y, z), lesion["centre"], strict=True)))
    volume = 4.19e-3 * lesion["push"] * lesion["radius"] ** 3
    # ASSUME: the walls come 2 mm closer with a haematoma of 30 mL, 3.5 mm with 60 mL, half as much on the other side
    squeeze = np.float32(0.25 * volume**0.75) * bump(away, lesion["radius"] + 38)
    squeeze = squeeze * (0.5 + 0.5 * np.tanh(u * lesion["side"] / 6 + 1))
    level, gradient = _ventricle_pull()
    squeeze *= np.exp(np.minimum(_in_atlas("ventricle", u, v, w, level), 0) / 10)
    where = np.nonzero(squeeze > 0.1)  # mm: less makes no difference
    squeeze, near = squeeze[where], [p[where] for p in (u, v, w)]
    for place, part in zip((u, v, w), gradient, strict=True):
        place[where] -= squeeze * _in_atlas("ventricle", *near, part)
    return u, v, w


def ventricle_level(x, y, z, head, lesion):
    """Level of the ventricles, displaced by the haematoma, mm, positive inside."""
    u, v, w = _origin(x, y, z, head, lesion)
    return _in_atlas("ventricle", u, v, w) * np.float32(np.cbrt(np.prod(head["scale"])))


def structures(x, y, z, head, lesion):
    """Levels of what a haematoma has to keep to, after displacement, mm.

    Returns
    -------
    dict of arrays
        `cavity`, `ventricle`, `cerebellum` (positive below the tentorium, brainstem included) and `brainstem`,
        positive inside; `midline`, the signed distance to the midsagittal surface, positive on the left.
    """
    size = np.float32(np.cbrt(np.prod(head["scale"])))
    cavity = cavity_level(x, y, z, head)
    u, v, w = _origin(x, y, z, head, lesion, cavity)
    _, below, stem = infratentorial_levels(u, v, w)
    return {
        "cavity": cavity,
        "ventricle": _in_atlas("ventricle", u, v, w) * size,
        "midline": u * np.float32(head["scale"][0]),
        "cerebellum": below * size,
        "brainstem": stem * size,
    }


# -------------------------------------------------------------------------------------------------------------- volume


def brain_volume(head, lesion, spacing_mm):
    """Render what is inside the skull, displaced by a haematoma but without it.

    Parameters
    ----------
    head : dict
        With `draw_brain`'s keys.
    lesion : dict or None
        As `displaced` takes it.
    spacing_mm : float
        Size of the voxels.

    Returns
    -------
    dict
        `hu` float32 (z, y, x), without noise, outside the skull fluid; `tissue` uint8, keys of `TISSUES`; `ventricle`
        float32, the fraction of each voxel in the ventricles; `first_mm` (3,), centre of the first voxel (x, y, z) in
        the head frame; `spacing_mm`.
    """
    first, step_mm, coarse_shape, shape = _frame(head, spacing_mm)
    axes = coordinates(coarse_shape, 1.0, np.zeros(3))
    points = _whole(*(np.float32(f) + n * np.float32(s) for f, n, s in zip(first, axes, step_mm, strict=True)))
    level = cavity_level(*points, head)
    there = np.nonzero(level > -2 * LATTICE_MM)
    points = tuple(p[there] for p in points)
    atlas_points = _origin(*points, head, lesion, level[there])
    tentorium, _, stem = infratentorial_levels(*atlas_points)
    values = (
        level[there],
        *atlas_points,
        _in_atlas("ventricle", *atlas_points),
        stem,
        tentorium,
        _at(head["brain_width"], *atlas_points) - _squeeze(points, head, lesion),
        _at(head["brain_texture"], *atlas_points),
        _leukoaraiosis(*atlas_points, head),
        _in_atlas("near", *atlas_points),
        *_gyri(*atlas_points, head),
    )  # fmt: skip
    coarse = np.zeros((len(values), *coarse_shape), np.float32)
    coarse[0] = level
    for field, part in zip(coarse, values, strict=True):
        field[there] = part
    names = ("cavity", "u", "v", "w", "ventricle", "stem", "tentorium", "width", "texture", "pale", "near")
    names += ("first", "second", "reach")
    voxels, values = _inside(_upsampled(coarse, shape[1:]), shape)
    at = dict(zip(names, values, strict=True))
    hu, tissue, ventricle = _tissues(at, head)
    volume = {"first_mm": first, "spacing_mm": spacing_mm}
    for name, values, fill in (("hu", hu, head["brain_csf"]), ("tissue", tissue, 0), ("ventricle", ventricle, 0)):
        volume[name] = np.full(shape, fill, values.dtype)
        volume[name].ravel()[voxels] = values
    return volume


def _frame(head, spacing):
    """Lay a coarse and a fine grid with the same corners over the cavity: first centre and shape of both."""
    level = head["brain_cavity"]
    where = np.argwhere(level["values"] > -LEVEL_MM)
    low = level["first"] + LEVEL_MM * where.min(0)[::-1]
    high = level["first"] + LEVEL_MM * where.max(0)[::-1]
    low[2] = max(low[2], BOTTOM_MM)
    steps = np.ceil((high - low) / spacing).astype(int)
    cells = np.maximum(np.rint(steps * spacing / LATTICE_MM), 1).astype(int)
    return low, steps * spacing / cells, tuple(cells[::-1] + 1), tuple(steps[::-1] + 1)


def _inside(planes, shape):
    """Interpolate planes (field, z, y, x) along z, where the first field, the cavity, says inside or nearly so.

    Returns
    -------
    voxels : array, (n,)
        Flat indices.
    values : array, (field, n)
    """
    voxels, values = [], []
    for number, (below, share) in enumerate(zip(*_between(shape[0], planes.shape[1]), strict=True)):
        slab = planes[:, below] + (planes[:, below + 1] - planes[:, below]) * share
        slab = slab.reshape(len(planes), -1)
        where = np.flatnonzero(slab[0] > -2.5)
        voxels.append(where + number * slab.shape[1])
        values.append(slab.take(where, 1))
    return np.concatenate(voxels), np.concatenate(values, 1)


def _squeeze(points, head, lesion):
    """How much a haematoma narrows the sulci on its side, in units of `brain_width`."""
    if lesion is None:
        return np.float32(0)
    offset = [p - np.float32(c) for p, c in zip(points, lesion["centre"], strict=True)]
    strength = 6 * min(1.0, lesion["push"] * lesion["radius"] ** 3 / 7000)
    near = bump(np.sqrt(sum(d * d for d in offset)), lesion["radius"] + 32)
    return strength * near * step(points[0] * lesion["side"], 3)


def _leukoaraiosis(u, v, w, head):
    """Loss of density of white matter beside the ventricles and in the centrum semiovale, HU."""
    strength = np.float32(head["brain_leukoaraiosis"])
    patches = _at(head["brain_patches"], u, v, w)
    away = np.maximum(-_in_atlas("ventricle", u, v, w), 0) * (1 - np.float32(0.2) * np.clip(patches, -1.5, 1.5))
    horns = 0.7 + 0.5 * step(-v - 18, 5) + 0.4 * step(v - 38, 5)
    # Caps and bands at first, later one confluent rim.
    near = np.maximum(np.exp(-away / 5), bump(away, 3 + 1.1 * strength) * min(1.0, 0.1 * strength))
    near *= step(w + 2, 4) * horns * (1 + np.float32(0.2) * patches)
    centrum = 0.8 * step(w - 20, 4) * bump(np.abs(u) - 25, 10) * np.clip(0.4 + 0.7 * patches, 0, 1.5)
    strength = strength * (1 + np.float32(head["brain_leukoaraiosis_side"]) * np.tanh(u / 12))
    return strength * np.maximum(near, centrum)


def _gyri(u, v, w, head):
    """Fields that say where sulci of one's own run and how deep they are, little changed from the surface inwards."""
    q = [(p - np.float32(c)) / np.float32(r) for p, c, r in zip((u, v, w), CEREBRUM_MM, CEREBRUM_RADII_MM, strict=True)]
    far = np.maximum(np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2), np.float32(0.3))
    far **= np.float32(0.6)  # sulci lean and bend
    places = [
        p / far * np.float32(r) + np.float32(c) for p, c, r in zip(q, CEREBRUM_MM, CEREBRUM_RADII_MM, strict=True)
    ]
    return [_at(lattice, *places) for lattice in head["brain_gyri"]]


def _own_sulci(share, at, upper, head):
    """Draw sulci of one's own with their cortex: lessen the share of white matter in place.

    Returns
    -------
    where : array
        Indices of the voxels near them.
    groove : array
        Fraction of fluid there.
    """
    where = np.flatnonzero((at["cavity"] < 24) & (at["w"] > -12) & upper & (np.abs(at["u"]) > 5))
    depth, reach, w = at["cavity"][where] - np.float32(head["brain_rim_mm"]), at["reach"][where], at["w"][where]
    there = step(np.abs(at["u"][where]) - 9, 1.5) * step(w + 4, 3)
    narrower = np.float32(0.35) * at["width"][where]
    groove, ribbon = np.zeros_like(depth), np.zeros_like(depth)
    for name, length, deepest, sign in (("first", GYRI_MM[0], 16.0, 1), ("second", GYRI_MM[1], 10.0, -1)):
        off = np.abs(at[name][where]) * np.float32(0.2 * length)
        # Between its deep parts a sulcus goes on, shallow.
        bottom = np.float32(deepest) * np.maximum(np.float32(0.55) + np.float32(0.75 * sign) * reach, SHALLOWEST)
        wide = np.float32(0.85 + 0.35 * head["brain_atrophy"]) * (1 + narrower)
        groove = np.maximum(groove, soft(bottom - depth, 3.0) * soft(wide - off, 1.4))
        ribbon = np.maximum(ribbon, soft(bottom + CORTEX_MM - depth, 2.0) * soft(wide + CORTEX_MM - off, 1.6))
    share[where] *= 1 - np.float32(0.85) * ribbon * there
    return where, (np.float32(0.85) - np.float32(0.15) * step(w - 40, 5)) * groove * there


def _tissues(at, head):
    """Turn places into densities, labels and the fraction of ventricle; all flat."""
    atlas = load_atlas()
    u, v, w = at["u"], at["v"], at["w"]
    where = np.stack([p - np.float32(f) for p, f in zip((w, v, u), FIRST_MM[::-1], strict=True)])
    grey = map_coordinates(atlas["grey"], where, np.float32, order=1, mode="nearest")
    brain = map_coordinates(atlas["white"], where, np.float32, order=1, mode="nearest")
    white = brain / np.maximum(grey + brain, 1)
    brain += grey
    fluid = 1 - brain * np.float32(1 / 255)
    below = (np.minimum(at["tentorium"], _behind(u, v)) > 0) | (at["stem"] > 0)
    upper = ~below
    # The average blurs the sulci, which differ between people: here they are sharp again, wider where a field says so.
    threshold = np.float32(head["brain_sulcus"]) * (1 - np.float32(0.3) * at["width"])
    steepness = 1 / (0.05 + np.float32(0.85) * at["near"] + threshold)
    threshold += np.float32(0.26 - 0.16 * min(head["brain_atrophy"], 1)) * at["near"]
    # The sulci under the vertex run alike in all of us: the average shows them as they are.
    threshold += np.float32(VERTEX * max(0.0, 1 - 0.5 * head["brain_atrophy"])) * step(w - 40, 6)
    threshold[below], steepness[below] = 0.2 - 0.1 * head["brain_atrophy"], 1 / 0.45
    free = np.clip((fluid - threshold) * steepness, 0, 1)
    # The average's edge is only as sharp as people are alike, and widening stretches it: both are undone.
    sharper = np.float32(4.0 * (1 + np.mean(head["brain_ventricle_mm"]) / HALF_WIDTH_MM))
    ventricle = np.clip((fluid - 0.42) * sharper + np.float32(0.5), 0, 1) * soft(at["ventricle"] + 1.5, 2.0)
    edge = soft(at["ventricle"] + 3, 3.0)
    edge *= free - ventricle
    free -= np.maximum(edge, 0, out=edge)
    # Between the hemispheres lies more brain than the average shows, and less fluid.
    middle = np.flatnonzero((np.abs(u) < 6) & upper & (w > 12))
    middle = middle[at["ventricle"][middle] < -3]
    free[middle] *= np.clip(0.6 + 0.5 * at["texture"][middle], 0.2, 1)
    share = np.clip((white - 0.5) * SHARPNESS + 0.5, 0, 1)
    where_sulci, groove = _own_sulci(share, at, upper, head)
    free[where_sulci] = np.maximum(free[where_sulci], groove)
    label = np.full(u.shape, LABELS["grey"], np.uint8)
    _deep_grey(share, label, where, u, v, w)
    hu = head["brain_grey"] + np.float32(head["brain_white"] - head["brain_grey"]) * share
    hu += np.float32(0.5) * at["texture"]
    pale = at["pale"] * share * upper
    hu -= pale
    label[share > 0.5] = LABELS["white"]
    label[pale > 4] = LABELS["white-matter lesion"]
    label[below] = LABELS["cerebellum"]
    label[at["stem"] > 0] = LABELS["brainstem"]
    _old_infarcts(hu, label, at, head)
    hu += free * (head["brain_csf"] + 3 - hu)
    label[free > 0.5] = LABELS["csf"]
    _chambers(hu, label, ventricle, at, head)
    _dura(hu, label, at, head)
    _vessels(hu, label, at, head)
    _calcium(hu, label, at, head)
    label[at["cavity"] < 0] = 0
    return hu, label, ventricle


def _lay(hu, label, where, value, fraction, name):
    """Lay something over some of the voxels, in place."""
    hu[where] += fraction * (value - hu[where])
    label[where[fraction > 0.5]] = LABELS[name]


def _near(at, low, high):
    """Find the voxels whose atlas point lies in a box: their indices, u, v, w."""
    where = np.flatnonzero((at["w"] > low[2]) & (at["w"] < high[2]))
    for name, first, last in zip("uv", low, high, strict=False):
        value = at[name][where]
        where = where[(value > first) & (value < last)]
    return where, at["u"][where], at["v"][where], at["w"][where]


def _deep_grey(share, label, points, u, v, w):
    """Take the share of white matter in the basal ganglia and thalami from T1, where the tissue maps say little."""
    where = np.flatnonzero((np.abs(u) < 38) & (np.abs(v - 3) < 38) & (np.abs(w - 5) < 24))
    ellipsoid = ((np.abs(u[where]) - 18) / 16) ** 2 + ((v[where] - 3) / 32) ** 2 + ((w[where] - 5) / 18) ** 2
    inside = np.clip((1.1 - ellipsoid) * 3, 0, 1)
    t1 = map_coordinates(load_atlas()["t1"], points[:, where], np.float32, order=1, mode="nearest")
    deep = np.clip((t1 - 191) * np.float32(1 / 20), DEEP_GREY, 1)
    share[where] += inside * (np.minimum(deep, share[where]) - share[where])
    label[where[inside > 0.5]] = LABELS["deep grey"]


def _old_infarcts(hu, label, at, head):
    """Lay old infarcts, as fluid-like as they are old."""
    spots = []
    if "lacune" in head["brain_mimics"]:
        spots += [(centre, radius, None, 13.0) for centre, radius in head["brain_lacunes"]]
    if "old_infarct" in head["brain_mimics"]:
        spots.append((*head["brain_infarct"], 15.0))
    for centre, radius, field, value in spots:
        where, u, v, w = _near(at, centre - 1.6 * radius, centre + 1.6 * radius)
        away = np.sqrt((u - centre[0]) ** 2 + (v - centre[1]) ** 2 + (w - centre[2]) ** 2)
        if field is not None:
            away = away * (1 + np.float32(0.18) * field_at(field, u, v, w))
        _lay(hu, label, where, np.float32(value), soft(radius - away, 2.0), "infarct")


def _chambers(hu, label, ventricle, at, head):
    """Fill the ventricles, with the septum between them and the choroid plexus in them."""
    where, u, v, w = _near(at, (-4, -26, -4), (4, 14, 26))
    leaves = np.abs(u)
    if "cavum" in head["brain_mimics"]:
        leaves = np.abs(leaves - 2.0)
    hu += ventricle * (head["brain_csf"] - hu)
    label[ventricle > 0.5] = LABELS["ventricle"]
    septum = 0.9 * soft(SEPTUM_MM / 2 - leaves, 1.0) * (at["ventricle"][where] > -6)
    ventricle[where] *= 1 - septum
    _lay(hu, label, where, np.float32(head["brain_white"]), septum, "white")
    for side, size in zip((1, -1), head["brain_plexus"], strict=True):
        low, high = ((4, -2, -16), (40, 53, 26)) if side > 0 else ((-40, -2, -16), (-4, 53, 26))
        where, u, v, w = _near(at, low, high)
        wet = ventricle[where] > 0.1
        where, u, v, w = where[wet], u[wet], v[wet], w[wet]
        plexus = chain(np.abs(u), v, w, PLEXUS) + np.float32(size) + np.float32(0.6) * at["texture"][where]
        _lay(hu, label, where, np.float32(head["brain_blood"] - 7), 0.85 * soft(plexus, 1.0), "ventricle")


def _dura(hu, label, at, head):
    """Lay falx and tentorium, the sinuses in them, and a sliver of blood under the dura."""
    inside = soft(at["cavity"], 1.5)
    blood = np.float32(head["brain_blood"] + (15 if "dense_sinus" in head["brain_mimics"] else 0))
    half = head["brain_dura_mm"] / 2
    where, u, v, w = _near(at, (-7, -90, -35), (7, 110, 90))
    plane = np.abs(u) * np.float32(head["scale"][0])
    falx = soft(half - plane, 1.0) * soft(_falx_level(v, w), 3.0) * inside[where]
    _lay(hu, label, where, np.float32(59), falx, "dura")
    depth = at["cavity"][where]
    # The superior sagittal sinus grows from the front to the back.
    wide = 3.0 + 2.5 * np.clip((v + 60) / 130, 0, 1)
    sagittal = np.minimum(wide - np.maximum(depth - 0.5, 0) - 0.9 * plane, np.maximum(w - 8, v - 40) / 2)
    sagittal = np.minimum(sagittal, w + 22)
    straight = chain(np.abs(u), v, w, (((0, 48, 13), 1.6), ((0, 60, 7), 2.0), ((0, 90, -19), 3.0)))
    _lay(hu, label, where, blood, soft(np.maximum(sagittal, straight), 1.2) * inside[where], "vessel")

    where = np.flatnonzero((np.abs(at["tentorium"]) < 7) & (at["v"] > 12) & (at["cavity"] > -1.5))
    u, v, sheet = at["u"][where], at["v"][where], np.abs(at["tentorium"][where])
    hiatus = (np.hypot(u / 18, (v - 14) / 38) - 1) * 18
    attached = v - 13 - 0.45 * np.abs(u)
    tentorium = soft(half - 0.8 * sheet, 1.2) * soft(np.minimum(hiatus, attached), 2.0) * inside[where]
    _lay(hu, label, where, np.float32(50), tentorium, "dura")
    wide = 3.3 * (1 - np.sign(u) * np.float32(0.12 + head["brain_sinus_share"]))  # the right one is mostly the larger
    transverse = np.minimum(np.minimum(wide - 0.9 * sheet, wide + 1.5 - at["cavity"][where]), (v - 44) / 2)
    _lay(hu, label, where, blood, soft(transverse, 1.5) * inside[where], "vessel")

    if "subdural_sliver" in head["brain_mimics"]:
        where = np.flatnonzero((at["cavity"] < 8) & (at["u"] * head["brain_subdural"][0][0] > 0))
        thick = _subdural_mm(at["u"][where], at["v"][where], at["w"][where], head)
        fraction = soft(thick - at["cavity"][where], 1.0) * (thick > 0.3) * inside[where]
        _lay(hu, label, where, np.float32(head["brain_subdural_hu"]), fraction, "subdural")


VESSELS = (  # chains on the left, or in the middle, atlas mm
    (((0, 10, -17), 1.7), ((0, 8, -30), 1.8), ((0, 15, -44), 1.6)),  # basilar
    (((12, -1, -28), 2.3), ((12, -4, -18), 2.1), ((14, -5, -16), 1.6), ((24, -11, -16), 1.5), ((37, -11, -12), 1.3)),
    (((3, -10, -17), 1.2), ((1.5, -18, -14), 1.1), ((1.5, -30, -6), 1.0)),  # anterior cerebral
)


def _vessels(hu, label, at, head):
    """Lay the larger arteries of the base, a little denser than brain."""
    where, u, v, w = _near(at, (-42, -35, -50), (42, 25, -4))
    level = np.maximum.reduce([chain(np.abs(u), v, w, path) for path in VESSELS])
    _lay(hu, label, where, np.float32(head["brain_blood"] - 6), soft(level, 1.0), "vessel")


def _calcium(hu, label, at, head):
    """Lay calcifications."""
    mimics, calcium, sizes, side = (
        head[name] for name in ("brain_mimics", "brain_calcium", "brain_calcium_mm", "brain_sides")
    )
    paths = []
    if "choroid_calcification" in mimics:
        for number, sign in enumerate((-1, 1)):
            size = sizes[number]
            glomus = (((22, 38, 13), 0.5), ((25, 43, 9), 1.5), ((26, 45, 8), 0.8), ((28, 48, 5), 1.3))
            paths.append(([((sign * x, y, z), r * size) for (x, y, z), r in glomus], calcium[number]))
    if "pineal_calcification" in mimics:
        paths.append((((((0.6 * side[2], 29, 1), 1.6 * sizes[2])), ((-0.5, 32, 0), 1.9 * sizes[2])), calcium[2]))
    if "pallidum_calcification" in mimics:
        for sign in (-1, 1):
            paths.append(((((sign * 18, -5, 0), 1.2), ((sign * 20, 3, 1), 2.2 * sizes[3])), 0.35 * calcium[3]))
    if "artery_calcification" in mimics:
        for sign in (-1, 1):
            paths.append(((((sign * 14, -3, -28), 1.0), ((sign * 14, -1, -25), 1.1 * sizes[4])), calcium[4]))
    if "falx_calcification" in mimics:
        for v, share, length in head["brain_plaques"]:
            w = 5 + 36 * math.sqrt(max(0.05, 1 - ((v - 4) / 50) ** 2)) + 30 * share
            paths.append(((((0, v, w), 1.1), ((0, v + length, w), 1.3)), 0.6 * calcium[5]))
    for path, value in paths:
        ends = np.array([end for end, _ in path])
        where, u, v, w = _near(at, ends.min(0) - 6, ends.max(0) + 6)
        _lay(hu, label, where, np.float32(value), soft(chain(u, v, w, path), 1.0), "calcification")


def sample(volume, plane, rows, columns, key="hu"):
    """Interpolate a volume linearly on parallel planes.

    Parameters
    ----------
    volume : dict
        From `brain_volume`.
    plane : dict
        `origins` (s, 3), `row_step` and `column_step` (3,), head frame.
    rows, columns : array, (ny,), (nx,)
        Pixel indices.
    key : {"hu", "ventricle", "tissue"}
        Labels are taken from the nearest voxel.

    Returns
    -------
    array, (s, ny, nx)
    """
    values, spacing = volume[key], volume["spacing_mm"]
    steps = np.stack([plane["row_step"], plane["column_step"]]) / spacing
    start = (plane["origins"] - volume["first_mm"]) / spacing + rows[0] * steps[0] + columns[0] * steps[1]
    if key == "tissue":
        return _on_planes(values, start, steps, len(rows), len(columns), 0)
    if np.linalg.norm(steps, axis=1).max() > 0.7:
        return _on_planes(values, start, steps, len(rows), len(columns), 1)
    # Pixels far smaller than voxels show nothing new: every second one is enough.
    half = _on_planes(values, start, 2 * steps, len(rows) // 2 + 1, len(columns) // 2 + 1, 1)
    return _doubled(_doubled(half, 1, len(rows)), 2, len(columns))


def _on_planes(values, start, steps, n_rows, n_columns, order):
    """Interpolate voxels on parallel planes that start at `start` (s, 3), x, y, z in voxels."""
    matrix = np.zeros((3, 3))
    matrix[:, 1:] = steps[:, ::-1].T
    out = np.empty((len(start), n_rows, n_columns), values.dtype)
    for part, first in zip(out, start[:, ::-1], strict=True):
        affine_transform(
            values, matrix, first, (1, n_rows, n_columns), part[None], order, mode="nearest", prefilter=False
        )
    return out


def _doubled(values, axis, n):
    """Put the mean of two neighbours between them along an axis, for `n` points."""
    values = np.moveaxis(values, axis, 0)
    out = np.empty((n, *values.shape[1:]), values.dtype)
    out[::2] = values[: (n + 1) // 2]
    out[1::2] = (values[: n // 2] + values[1 : n // 2 + 1]) / 2
    return np.moveaxis(out, 0, axis)
