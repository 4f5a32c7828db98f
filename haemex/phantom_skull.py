"""Everything of a synthetic head that is not inside the cranial cavity: skull, scalp, muscles, face, eyes, air spaces.

Vault: `skull_levels` gives smooth levels (mm, positive inside) on coarse points, to be interpolated to pixels;
`compose` lays the tissues over each other there. What is finer than a coarse grid (walls of sinuses, septa, cells,
orbits, ears) is evaluated at the pixels themselves, in the windows of the slices that it reaches.

Places are given in atlas mm (the head frame divided by `head["scale"]`, bent a little for each patient): u, distance
from the midsagittal plane; v, to the back; w, to the vertex; origin at the anterior commissure. ASSUME: the places are
read off skull landmarks in MNI space (nasion (0, -86, -47), porion (63, 20, -46)) and real head CT; no atlas of the
skull is at hand.
"""

import functools

import numpy as np

from haemex.phantom_atlas import COARSE_MM, FIRST_MM, load_atlas
from haemex.phantom_brain import cavity_level, tentorium_height
from haemex.phantom_fields import bump, field_at, field_on, paint, soft, step, waves
from haemex.phantom_planes import points

AIR, FAT, SKIN, MUSCLE = -1000.0, -98.0, 58.0, 58.0
VITREOUS, LENS, SCLERA, FLUID = 10.0, 85.0, 42.0, 12.0
FAR = np.float32(-99.0)
BELOW_MM = -84.0  # atlas mm: nothing is modelled further down

# Mean thickness of the vault, mm, and its SD (ASSUME). Li et al. 2007 (Int J Vehicle Safety 2:345) found 6.5 mm in men
# and 7.1 mm in women on CT of 3000 Chinese adults. No trend with age or build in Lynnerup et al. 2005 (Head Face Med
# 1:13).
VAULT_MM = {"m": (6.5, 0.75), "f": (7.1, 0.85)}
VAULT_LIMITS_MM = (4.8, 9.2)
# ASSUME: SD of the thickness of frontal, parietal, occipital bone and temporal squama between people of one mean.
REGION_SD = (0.09, 0.09, 0.09, 0.10)
WOBBLE = np.float32(0.10)  # of the thickness over all of the vault
USUAL_SCALE = np.float32(0.92)  # of a head against the atlas
LARGEST_MM = np.array([85.0, 105.0])  # half width and half length of a head that still fits a head holder
# Hyperostosis frontalis interna by sex, before age: She & Szakacs 2004 (Ann Clin Lab Sci 34:206), 5-12 %, mostly
# women; 16 % of those over 65 on MRI (Vukovic et al., Arch Ital Biol).
HYPEROSTOSIS = {"m": 0.02, "f": 0.10}
NO_FRONTAL_SINUS = 0.07  # ASSUME: per side; published rates run from 1 % to 12 % (Cakur 2011, Int J Med Sci 8:278)


# --------------------------------------------------------------------------------------------------------------- draw


def draw_skull(rng, age, sex):
    """Draw what makes one skull and face differ from another.

    Parameters
    ----------
    rng : numpy Generator
        Of this patient and purpose.
    age : float
        Years.
    sex : {"m", "f"}

    Returns
    -------
    dict
        `skull_mm`, mean thickness of the vault, and further `skull_...` entries: mm, HU, flags, fields.
    """
    mean, sd = VAULT_MM[sex]
    hyperostosis = rng.random() < HYPEROSTOSIS[sex] * (1.6 if age > 60 else 0.4)
    pits = int(rng.integers(3, 9))
    drawn = {
        "skull_mm": float(np.clip(rng.normal(mean, sd), *VAULT_LIMITS_MM)),
        "skull_hyperostosis_mm": float(rng.uniform(3.0, 6.0)) if hyperostosis else 0.0,
        # Cortical tables thin with age, in women to half: Lillie et al. 2016 (J Bone Miner Res 31:299).
        "skull_table_mm": float(
            np.clip(rng.normal(1.9, 0.2) - (0.012 if sex == "f" else 0.004) * max(age - 50, 0), 0.95, 2.4)
        ),
        "skull_table_hu": float(rng.normal(1750, 70) - (2.0 if sex == "f" else 0.8) * max(age - 55, 0)),
        "skull_diploe_hu": float(np.clip(rng.normal(690, 90), 480, 900)),
        "skull_skin_mm": float(np.clip(rng.normal(2.75, 0.25), 2.1, 3.4)),
        "skull_galea_mm": float(np.clip(rng.normal(2.2, 0.4), 1.2, 3.2)),
        "skull_scalp_mm": float(np.clip(rng.normal(7.2, 0.9) + (0.3 if sex == "f" else 0.0), 4.6, 8.8)),
        "skull_temporalis_mm": float(np.clip(rng.normal(14.0, 1.5) - 0.05 * max(age - 60, 0), 8.0, 16.0)),
        "skull_nuchal_fat_mm": float(np.clip(rng.normal(8.0, 2.5), 4.0, 14.0)),
        "skull_muscle_fat": float(np.clip(0.14 + 0.004 * (age - 55) + rng.normal(0, 0.05), 0.05, 0.35)),
        "skull_brow_mm": float(np.clip(rng.normal(4.5 if sex == "m" else 2.5, 1.0), 1.0, 7.0)),
        "skull_face": np.clip(rng.normal(1.0, 0.025, 3), 0.95, 1.05),
        "skull_skew": rng.normal(0, (0.015, 0.02, 0.02)),
        "skull_frontal_sinus_mm": np.where(
            rng.random(2) < NO_FRONTAL_SINUS, 0.0, np.clip(rng.normal(20, 6, 2), 7, 34)
        ),  # height of the left and the right one
        "skull_frontal_sinus_septum_mm": float(rng.normal(0, 3.0)),
        "skull_sphenoid_sinus": float(np.clip(rng.normal(0.85, 0.2), 0.35, 1.1)),
        "skull_sphenoid_septum_mm": float(rng.normal(0, 3.5)),
        "skull_antrum": np.clip(rng.normal(1.0, 0.08, 2), 0.75, 1.12),
        "skull_antrum_mucosa_mm": np.where(rng.random(2) < 0.3, rng.uniform(2, 7, 2), 0.4),
        "skull_antrum_fluid": bool(rng.random() < 0.06),
        "skull_ethmoid_mucosa": float(np.clip(rng.normal(0.1, 0.12), 0, 0.5)),
        "skull_mastoid": np.clip(rng.normal(1.05, 0.14) + rng.normal(0, 0.09, 2), 0.55, 1.3),
        "skull_apex_air": rng.random(2) < 0.3,  # ASSUME: published rates of an aerated apex run from 9 % to 35 %
        "skull_mastoid_fluid": rng.random(2) < 0.04,
        "skull_septum_mm": float(rng.normal(0, 2.0)),
        "skull_globe_mm": float(np.clip(rng.normal(12.0, 0.35), 11.2, 12.9)),
        "skull_lens_out": bool(rng.random() < max(0.0, 0.012 * (age - 62))),  # cataract surgery leaves a thin implant
        "skull_gaze": rng.normal(0, 0.12, 2),
        "skull_ear": np.stack([rng.normal(1.0, 0.07, 2), rng.uniform(-0.9, 0.2, 2)], 1),  # size; pressed to stood off
        "skull_sutures": float(np.clip(1.15 - 0.010 * age + rng.normal(0, 0.15), 0.0, 1.0)),  # they close with age
        "skull_regions": np.clip(rng.normal(1.0, REGION_SD), 0.75, 1.25),
        # Pits of arachnoid granulations beside the sagittal sinus: signed lateral, v, depth and radius.
        "skull_pits": np.stack(
            [
                rng.uniform(7, 24, pits) * rng.choice((-1, 1), pits),
                rng.uniform(-50, 60, pits),
                rng.uniform(0.8, 3.0, pits),
                rng.uniform(3.0, 6.0, pits),
            ],
            1,
        ),
        "skull_crest_mm": np.clip(
            rng.normal((3.0, 2.2, 2.5), (1.2, 0.9, 1.0)), 0.3, 6.0
        ),  # frontal, occipital: cross, foot
        "skull_crest_off_mm": rng.normal(0, (2.5, 0.12)),  # of the occipital one from the middle, and its lean
        "skull_sulcus_mm": np.clip(rng.normal((1.6, 1.0), 0.5), 0.2, 3.0),  # of the right and left transverse sinus
        "skull_dome_mm": float(np.clip(rng.normal(5.0, 1.2), 2.0, 7.5)),
        "skull_roof": _mixed(rng, (11, 16), 5),
        "skull_inner": _mixed(rng, (17, 26), 5),
        "skull_thickness": waves(rng, 75.0, 8),
        "skull_bumps": _mixed(rng, (18, 26, 40), 4),
        "skull_scalp": _mixed(rng, (55, 120), 6),
        "skull_neck": _mixed(rng, (16, 22, 32), 6),
        "skull_diploe": _mixed(rng, (5, 9, 16, 30), 6),
        "skull_grain": _mixed(rng, (2.8, 4.2, 6.5), 7),
        "skull_cells": _upright(_mixed(rng, (6.5, 9, 13), 6)),
        "skull_cells2": _upright(_mixed(rng, (4.2, 5.5, 7.5), 6)),
        "skull_cells3": _upright(_mixed(rng, (4.6, 6.2, 9), 6)),
        "skull_bend": waves(rng, 22.0, 8),
        "skull_bend2": waves(rng, 22.0, 8),
        "skull_flesh": _mixed(rng, (5, 9, 16), 6),
    }
    lateral, v, w = _vault()
    shape = _vault_shape(np.abs(lateral), v, w, drawn["skull_regions"])
    shape = shape * (1 + WOBBLE * field_at(drawn["skull_thickness"], *(USUAL_SCALE * p for p in (lateral, v, w))))
    return drawn | {"skull_mean_shape": float(shape.mean())}


@functools.cache
def _vault():
    """Places (lateral, v, w) on the inner table of the average head, 10 mm above the origin and higher, atlas mm."""
    level = load_atlas()["cavity"]
    k, j, i = np.nonzero(np.abs(level) < COARSE_MM / 2)
    u, v, w = (np.float32(start + COARSE_MM * at) for start, at in zip(FIRST_MM, (i, j, k), strict=True))
    high = w > 10
    return u[high], v[high], w[high]


def _mixed(rng, wavelengths_mm, count):
    """Draw a field of several wavelengths, `count` waves each: nothing in it repeats."""
    parts = [waves(rng, length, count) for length in wavelengths_mm]
    return {key: np.concatenate([part[key] for part in parts]) for key in ("k", "phase")}


def _upright(field):
    """Stretch a field upwards: walls that stand across a slice are seen, those that lie in it are not."""
    return field | {"k": field["k"] * np.array([1, 1, 0.45], np.float32)}


# -------------------------------------------------------------------------------------------------------------- levels


def atlas_place(x, y, z, head):
    """Turn head-frame points into places of the face and base: signed lateral, v and w, atlas mm."""
    scale, face, skew = head["scale"], head["skull_face"], head["skull_skew"]
    v = y * np.float32(1 / scale[1])
    w = z * np.float32(1 / scale[2])
    lateral = x * np.float32(1 / (scale[0] * face[0]))
    # One side lies a little further forward, lower and out than the other.
    v = v + lateral * np.float32(skew[1] + head["brain_skew"][0])
    w = w + lateral * np.float32(skew[2] + head["brain_skew"][1])
    lateral = lateral + np.abs(lateral) * np.float32(skew[0])
    # The face is longer or shorter below the base, and flatter or deeper before the temporal poles.
    w = np.where(w < -40, -40 + (w + 40) * np.float32(1 / face[2]), w)
    return lateral, v, w


def _vault_shape(u, v, w, regions):
    """Thickness of the vault relative to its mean, not yet normalised; `regions` as drawn."""
    frontal, parietal, occipital, side = (np.float32(factor) for factor in regions)
    front = bump(v + 68, 36) * step(w - 2, 8)
    shape = 1 + (0.10 * frontal + frontal - 1) * front + (0.22 * occipital + occipital - 1) * bump(v - 92, 30)
    shape = shape + (0.08 * parietal + parietal - 1) * bump(w - 72, 30)
    squama = bump(v - 4, 46) * step(u - 46, 5) * (bump(w + 6, 27) + 0.4 * bump(w - 32, 18))
    return shape - (0.58 + 1 - side) * np.minimum(squama, 1)


def _thickness(lateral, v, w, head):
    """Thickness of the bone around the cavity at places in atlas mm, mm."""
    u = np.abs(lateral)
    mm = _vault_shape(u, v, w, head["skull_regions"]) * np.float32(head["skull_mm"] / head["skull_mean_shape"])
    mm = np.maximum(mm, np.float32(2.4))
    front = step(-v - 40, 6)
    if head["skull_hyperostosis_mm"]:
        mm = mm + head["skull_hyperostosis_mm"] * front * bump(w - 22, 26) * (1 - bump(u, 7)) * bump(u - 26, 26)
    if w.min() > 12:
        return mm
    occiput = step(v - 52, 7)
    if w.min() < -8:
        # Sheets of bone: below the transverse sinus, round the middle fossa, over orbits and sinuses.
        fossa = np.float32(head["skull_mm"]) * (np.float32(0.52) - np.float32(0.17) * bump(u - 34, 17))
        mm = mm + (fossa - mm) * (step(-w - 24, 3.5) * step(v - 30, 6))
        middle = step(-w - 15, 3.5) * step(v + 37, 3) * step(13 - v, 4) * step(u - 15, 3)
        mm = mm + (1.9 + 0.9 * step(u - 48, 3) - mm) * middle
        mm = mm + (1.2 - mm) * _anterior_floor(u, v, w)
    mm = mm + 2.8 * occiput * bump(w + 26 + 0.1 * u, 6) * (1 - bump(u, 4))  # nuchal line
    mm = mm + occiput * (4.5 * bump(u, 9) * bump(w + 22, 11) + 3.2 * bump(u, 11) * bump(w - 2, 22))  # protuberance
    facing = step(0.007 * u**2 - v - 63, 2.5)  # the front of the bone, not the roof of the orbit
    mm = mm + head["skull_brow_mm"] * facing * bump(w + 26, 13) * (0.45 + 0.55 * bump(u, 24))
    return mm + 4.5 * facing * bump(w + 20, 17) * bump(u, 22) * min(
        1.0, float(head["skull_frontal_sinus_mm"].max()) / 20
    )


def _anterior_floor(u, v, w):
    """1 under the frontal lobes and before the sella, where the bone is thin."""
    behind_the_brow = step(v - 0.006 * u**2 + 60, 2)
    roof = step(-w - 12, 2) * step(-v - 24, 3) * step(50 - u, 2.5)
    middle = step(-w - 16, 2) * step(-v - 3, 3) * step(18 - u, 2)
    return np.maximum(roof, middle) * behind_the_brow


def _sella(u, v):
    """Distance from the middle of the sella, 1 at its edge."""
    return np.hypot(u / 19, (v + 5) / 13)


def _roof_relief(u, v, w, head, x, y, z):
    """Relief of the roofs of the orbits, mm: domes into the cavity (negative), with ridges between the gyri."""
    if w.min() > -2 or v.min() > -10:
        return np.float32(0)
    roof = step(-w - 7, 2.5) * step(-v - 22, 3) * step(54 - u, 3) * step(u - 14, 3) * step(v - 0.006 * u**2 + 58, 2.5)
    dome = bump(np.hypot((u - 33) / 17, (v + 43) / 19), 1.0)
    return roof * (1.3 - np.float32(head["skull_dome_mm"]) * dome + 1.1 * _field_over(head["skull_roof"], x, y, z))


def _relief(lateral, v, w, head, dents):
    """Relief of the inner table, mm: crests negative, sulci and pits positive."""
    u = np.abs(lateral)
    relief = 0.42 * dents * step(w + 26, 5)
    crest, cross, foot = (float(mm) for mm in head["skull_crest_mm"])
    front, back = step(-v - 48, 5), step(v - 58, 5)
    middle = bump(lateral, 3.5)
    if w.min() < 45:
        relief = relief - crest * middle * front * bump(w - 2, 24)
    relief = relief + 0.9 * bump(lateral - 1, 6) * step(w - 24, 6)  # sulcus of the sagittal sinus
    if w.min() < 30:
        relief = relief + 2.4 * back * bump(lateral, 8) * bump(w - 4, 20)
        off, lean = (np.float32(value) for value in head["skull_crest_off_mm"])
        aside = lateral - off - lean * (w + 16) + 0.6 * dents
        relief = relief - back * (
            cross * bump(aside, 6.5) * bump(w + 16, 9)
            + (foot + 1.5) * np.maximum(1 - np.abs(aside) / (3.5 + dents), 0) * bump(w + 38, 17)
        )
        relief = relief + 1.2 * back * bump(np.abs(aside) - 9, 4) * bump(w + 34, 14) * (1 + 0.5 * dents)
        right, left = (float(mm) for mm in head["skull_sulcus_mm"])
        depth = np.where(lateral < 0, np.float32(right), np.float32(left))
        along = step(u - 6, 3) * step(v - 34, 5)
        relief = relief + depth * along * bump(w - tentorium_height(u, v), 4.5)
    if w.max() > 40:
        for place, behind, deep, radius in head["skull_pits"].tolist():
            near = bump(lateral - place, radius) * bump(v - behind, radius)
            relief = relief + deep * near * step(w - 45, 4)
    if w.min() < 50 and w.max() > -25:
        # Branches of the middle meningeal artery.
        twist = 3 * np.sin(w / 11)
        groove = np.maximum(
            bump(v + 14 - 0.25 * w + twist, 2.4), 0.7 * bump(w - 8 - 0.35 * v + twist, 2.4) * step(v - 5, 5)
        )
        relief = relief + 0.9 * groove * step(u - 40, 4) * bump(w - 12, 30)
    return relief


def _face_muscles(at):
    """Level of the muscles of mastication, of pharynx and neck in front of the spine."""
    bodies = [
        at.ball((60, -16, -80), (7.5, 19, 25)),  # masseter
        at.ball((53, -27, -57), (9.5, 20, 26)),  # temporalis behind the zygoma
        at.ball((46, -34, -46), (11, 15, 22)),
        at.ball((40, -24, -52), (10, 10, 12)),
        at.rod((50, 2, -61), (22, -24, -66), 7.5),  # lateral pterygoid
        at.rod((50, 6, -63), (26, -14, -69), 7.0),
        at.rod((18, -23, -74), (46, -4, -104), 6.5),  # medial pterygoid
        at.rod((24, -13, -74), (46, 8, -104), 7.0),
        at.ball((10, 13, -80), (11, 8, 26)),  # before the spine
        at.ball((22, -4, -76), (10, 10, 18)),  # beside the pharynx
        at.ball((35, -13, -72), (15, 13, 12)),
        at.rod((36, 14, -70), (30, 8, -110), 7.0),  # from the styloid process
        at.rod((56, 38, -66), (50, 32, -104), 9.0),  # sternocleidomastoid
    ]
    return np.broadcast_to(functools.reduce(np.maximum, bodies), at.u.shape)


class _Places:
    """Places of points, atlas mm, and levels of simple bodies at them; a body out of reach is a single far value."""

    def __init__(self, lateral, v, w):
        self.lateral, self.u, self.v, self.w = lateral, np.abs(lateral), v, w
        self.span = [(float(p.min()), float(p.max())) for p in (self.u, v, w)]

    def misses(self, low, high):
        """Whether a box (u, v, w) lies beyond these pixels."""
        return any(a > most + 3 or b < least - 3 for a, b, (least, most) in zip(low, high, self.span, strict=True))

    def ball(self, centre, radii):
        """Level of an ellipsoid."""
        if self.misses(np.subtract(centre, radii), np.add(centre, radii)):
            return np.full((1, 1, 1), FAR)
        r = ((self.u - centre[0]) / radii[0]) ** 2
        r += ((self.v - centre[1]) / radii[1]) ** 2
        r += ((self.w - centre[2]) / radii[2]) ** 2
        return (1 - np.sqrt(r, out=r)) * np.float32(min(radii))

    def rod(self, start, end, first, last=None, flat=1.0):
        """Level of a rod with round ends; `flat` squeezes its vertical width."""
        most = max(first, last or 0)
        if self.misses(np.minimum(start, end) - most * max(flat, 1), np.maximum(start, end) + most * max(flat, 1)):
            return np.full((1, 1, 1), FAR)
        along = np.subtract(end, start).astype(np.float32)
        d = [p - np.float32(c) for p, c in zip((self.u, self.v, self.w), start, strict=True)]
        t = np.clip((d[0] * along[0] + d[1] * along[1] + d[2] * along[2]) / float(along @ along), 0, 1)
        r = (d[0] - t * along[0]) ** 2 + (d[1] - t * along[1]) ** 2 + ((d[2] - t * along[2]) / flat) ** 2
        radius = np.float32(first) if last is None else first + t * np.float32(last - first)
        return radius - np.sqrt(r)

    def box(self, low, high, corner=5.0):
        """Level of a box (u, v, w) with rounded edges."""
        if self.misses(low, high):
            return np.full((1, 1, 1), FAR)
        level = None
        for p, a, b in zip((self.u, self.v, self.w), low, high, strict=True):
            face = np.float32((b - a) / 2) - np.abs(p - np.float32((a + b) / 2))
            level = face if level is None else -_smooth_max(-level, -face, corner)
        return level


def skull_levels(x, y, z, head):
    """Evaluate the smooth levels of everything outside the cavity.

    Parameters
    ----------
    x, y, z : array of float32
        Points of the head frame, mm, of one shape.
    head : dict
        With `scale` and what `draw_skull` draws.

    Returns
    -------
    dict of array of float32
        mm, positive inside: `cavity`; `outer`, of the outer table; `skin`; `muscle`, over the skull and behind the
        spine; `face`, of the muscles before ears and spine; `neck`, distance to the planes of fat in `muscle`. One
        that is -99 everywhere is nowhere near.
    """
    size = np.float32(np.mean(head["scale"]))
    lateral, v, w = atlas_place(x, y, z, head)
    u = np.abs(lateral)
    inner = cavity_level(x, y, z, head)
    low = bool(w.min() < -8)

    if low:
        inner = inner + _roof_relief(u, v, w, head, x, y, z)
    wobble = _field_over(head["skull_thickness"], x, y, z)
    bumps = _field_over(head["skull_bumps"], x, y, z)
    dents = _field_over(head["skull_inner"], x, y, z)
    # Away from the bone its thickness does not matter.
    mm = np.full(x.shape, head["skull_mm"], np.float32)
    near = np.nonzero((inner < 9) & (inner > -34))
    if len(near[0]):
        mm[near] = _thickness(lateral[near], v[near], w[near], head)
    mm *= 1 + WOBBLE * wobble
    outer = inner + np.maximum(mm * (1 + 0.02 * bumps), 0.9)
    if low:
        # A fold of dura, not bone, covers the sella.
        outer = outer - 4.0 * step(12 - 12 * _sella(u, v), 1.0) * step(-w - 17, 2)
    cavity = inner.copy()
    near = np.nonzero(np.abs(inner) < 9)
    if len(near[0]):
        relief = _relief(lateral[near], v[near], w[near], head, dents[near])
        cavity[near] += np.minimum(relief, 0.28 * (outer - inner)[near])
    if low:
        # Crest of the petrous bone, to which the tentorium is attached.
        crest = _Places(lateral, v, w).rod((22, 15, -40), (57, 28, -35), 1.5, 2.4, 1.6)
        cavity = np.minimum(cavity, (-crest + 0.5 * dents) * size)
    outer = np.minimum(outer, (w + 68 - 0.12 * (v - 45)) * size)  # the foramen magnum stays open below

    temporalis = head["skull_temporalis_mm"] * np.clip(
        bump(v + 24 - 0.25 * (w + 20), 44) * step(u - 43, 3.5) * (1 - np.clip((w + 42) / 84, 0, 1) ** 1.2) - 0.05, 0, 1
    )
    scalp = head["skull_scalp_mm"] * (1 + 0.23 * np.maximum(_field_over(head["skull_scalp"], x, y, z), -1.6))
    scalp = scalp * (1 + 0.35 * bump(v - 85, 35) * step(-w - 2, 8)) * (1 - 0.25 * bump(v - 100, 12) * bump(w - 8, 16))
    skin = np.maximum(inner + mm, outer - 0.5) + scalp + 0.85 * temporalis
    skin = _within_holder(skin, x, y)
    muscle = np.where(temporalis > 0.5, outer + temporalis - 0.5, FAR)
    levels = {"cavity": cavity, "outer": outer}
    if low:
        # Neck below the nuchal line, face below the brows, and the side between them.
        neck_fat = head["skull_nuchal_fat_mm"]
        narrow = 1 - 0.0016 * np.clip(-40 - w, 0, 60)
        neck = (1 - _power(u / (71 * narrow), (v - 46) / (62 * narrow), 2.3)) * 60
        neck = np.minimum(neck, (-20 - w) * 0.8)
        face = (1 - _power(u / 72, (v + 18) / 64, 2.05)) * 60
        face = np.minimum(face, (-14 - w) * 0.8)
        soft_face = _smooth_max(neck, face, 8.0) * size
        # Below the nuchal line muscle, not scalp, covers the bone.
        attached = (
            11 * step(-w - 31 + 0.12 * u, 4.5) * step(v - 44, 9) * (0.35 + 0.65 * bump(u - 26, 22)) * step(66 - u, 4)
        )
        attached = attached * (1 - 0.45 * bump(u, 4)) * (1 + 0.12 * bumps)
        skin = _smooth_max(skin + attached, soft_face, 5.0)
        skin = _within_holder(skin, x, y)
        behind = (v - 6 - 0.12 * u) * size
        nuchal = np.minimum(np.minimum(_smooth_max(neck * size, outer + 9, 5.0) - neck_fat, behind), (-24 - w) * size)
        nuchal = np.maximum(np.minimum(nuchal, skin - 0.7 * neck_fat), np.where(attached > 0.5, outer + attached, FAR))
        muscle = np.maximum(muscle, nuchal)
        # Muscles lie in layers round the spine, parted by planes of fat.
        angle = np.arctan2(u, v - 30)
        layers = 2.3 * field_at(head["skull_neck"], neck * 1.9, angle * 18, w * 0.5) + 0.7 * bumps
        layers = np.where(v > 55, np.minimum(np.abs(layers), 1.6 * u + 0.2 + bumps), np.abs(layers))
        levels["face"] = _face_muscles(_Places(lateral, v, w)) if w.min() < -26 else np.full(x.shape, FAR)
        levels["neck"] = np.where((v > 8) & ((w < -36) | (v > 45)), layers, -FAR)
    else:
        levels["face"] = np.full(x.shape, FAR)
        levels["neck"] = np.full(x.shape, FAR)  # only read where there is muscle
    levels |= {"skin": skin, "muscle": muscle}
    return {name: np.asarray(level, np.float32) for name, level in levels.items()}


def _within_holder(skin, x, y):
    """Press the skin of the largest heads against a holder."""
    for p, half in ((x, LARGEST_MM[0]), (y - 14, LARGEST_MM[1])):
        skin = -_smooth_max(-skin, np.abs(p) - np.float32(half), 3.0)
    return skin


def _field_over(waves, x, y, z):
    """Evaluate a field at points; if they form a lattice (planes, rows, columns), by products of its waves' factors."""
    place = np.stack([x, y, z])
    if x.ndim == 3:
        corner = place[:, :1, :1, :1]
        down, across = place[:, :1, :, :1] - corner, place[:, :1, :1, :] - corner
        ends, middle = (slice(None), -1, -1, -1), (slice(None), -1, x.shape[1] // 2, x.shape[2] // 2)
        expected = [
            place[:, -1, 0, 0] + down[:, 0, at[2], 0] + across[:, 0, 0, at[3]] - place[at] for at in (ends, middle)
        ]
        if np.abs(expected).max() < 1e-2:
            k = waves["k"].astype(float)
            rows = (place[:, :, 0, 0].T @ k.T + waves["phase"])[:, None] + (down[:, 0, :, 0].T @ k.T)[None]
            columns = across[:, 0, 0, :].T @ k.T
            left = np.concatenate([np.cos(rows), -np.sin(rows)], -1).astype(np.float32)
            right = np.concatenate([np.cos(columns), np.sin(columns)], -1).astype(np.float32)
            return (left @ right.T) * np.float32(np.sqrt(2 / len(k)))
    return field_at(waves, x, y, z)


def _power(a, b, power):
    return (np.abs(a) ** power + np.abs(b) ** power) ** (1 / power)


def _smooth_max(a, b, width):
    """Maximum whose corner is rounded over `width` mm."""
    h = np.clip(0.5 + 0.5 * (a - b) / width, 0, 1)
    return b + (a - b) * h + width * h * (1 - h)


def outer_reach(head):
    """How far the head can reach from its origin, without nose and ears, mm.

    Returns
    -------
    dict
        `half` (3,), half extents about `centre` (3,), and `top_mm`, `bottom_mm`: z of the vertex, and the lowest z that
        is modelled.
    """
    axes = [np.arange(a, b, 5.0, dtype=np.float32) for a, b in ((-110, 111), (-135, 146), (-30, 141))]
    x, y, z = (p.transpose(2, 1, 0) for p in np.meshgrid(*axes, indexing="ij"))
    skin = skull_levels(x, y, z, head)["skin"]
    low, high = np.empty(3), np.empty(3)
    for axis, places in enumerate(axes):
        profile = skin.max(tuple(other for other in range(3) if other != 2 - axis))
        inside = np.flatnonzero(profile > 0)
        for ends, i, j in ((low, inside[0], inside[0] - 1), (high, inside[-1], inside[-1] + 1)):
            part = profile[i] / (profile[i] - profile[j])
            ends[axis] = places[i] + part * (places[j] - places[i])
    low[2] = BELOW_MM * head["scale"][2]
    return {"half": (high - low) / 2, "centre": (high + low) / 2, "top_mm": float(high[2]), "bottom_mm": float(low[2])}


# ------------------------------------------------------------------------------------------------------------- compose


def compose(levels, plane, rows, columns, head):
    """Lay skin, fat, muscle, bone, air and eyes over each other, on every sub-slice of one slice.

    Parameters
    ----------
    levels : dict of array
        From `skull_levels`, interpolated to the pixels, (s, ny, nx); (1, 1, 1) for one that is nowhere near.
    plane : dict
        From `haemex.phantom_planes.plane`.
    rows, columns : array, (ny,), (nx,)
        Consecutive pixel indices.
    head : dict

    Returns
    -------
    array of float32, (s, ny, nx)
        HU; air outside. The cavity holds 35 HU and is to be filled by the caller. In `levels`, nose and lids are added
        to `skin`.
    """
    canvas = _Canvas(levels, plane, rows, columns, head)
    if canvas.lowest > max(-6.0, float(head["skull_frontal_sinus_mm"].max()) - 29):
        return _compose_band(canvas)
    _soft_tissue(canvas)
    if canvas.lowest < -22:
        _paint_face(canvas)
    _paint_shell(canvas)
    _frontal_sinus(canvas)
    if canvas.lowest < -18:
        _base(canvas)
    hu = canvas.hu
    paint(hu, np.float32(35), slab_fraction(canvas.levels["cavity"], canvas.pixel))
    _features_of_skin(canvas)
    inside = slab_fraction(canvas.levels["skin"], canvas.pixel)
    hu += 1000
    hu *= inside
    hu -= 1000
    _ears(canvas)
    return hu


class _Canvas:
    """One slice being painted: pixels, levels, and where they lie."""

    def __init__(self, levels, plane, rows, columns, head):
        self.levels, self.plane, self.rows, self.columns, self.head = dict(levels), plane, rows, columns, head
        self.shape = (len(plane["origins"]), len(rows), len(columns))
        self.pixel = np.float32(np.linalg.norm(plane["row_step"]))
        self.every = max(1, round(6.0 / self.pixel))
        self.coarse = [np.append(p[:: self.every], p[-1]) for p in (rows, columns)]
        lateral, v, w = atlas_place(*points(plane, *self.coarse), head)
        self.places = [(p.min(0), p.max(0)) for p in (lateral, v, w)]
        self.span = [(float(p.min()), float(p.max())) for p in (lateral, v, w)]
        self.lowest, self.highest = self.span[2]
        self.hu, self.fields = None, {}
        # Sub-slices stand for slabs: an edge that crosses them at a slant is as wide as its way through one.
        self.slant = {name: _slant(self.levels[name]) for name in ("cavity", "outer", "skin")}

    def slant_of(self, indices):
        """Slant of pixels given by their flat indices, by level."""
        flat = indices % (self.shape[1] * self.shape[2])
        return {name: value.ravel()[flat] if value.size > 1 else value for name, value in self.slant.items()}

    def galea(self):
        """Thickness of galea and of the thin muscles of brow and occiput, mm: (s, ny, 1)."""
        _, v, w = atlas_place(*points(self.plane, self.rows, self.columns[len(self.columns) // 2 :][:1]), self.head)
        brow = 1.6 * bump(v + 78, 22) * bump(w - 8, 22)
        return self.head["skull_galea_mm"] + brow + 2.2 * bump(v - 92, 18) * bump(w + 4, 16)

    def field(self, name, window=None):
        return field_on(self.head[name], self.plane, *(window or (self.rows, self.columns)))

    def place_of(self, indices):
        """Places of pixels given by their flat indices."""
        part, row, column = np.unravel_index(indices, self.shape)
        plane = self.plane
        point = []
        for axis in range(3):
            along = (plane["origins"][:, axis].astype(np.float32), self.rows * np.float32(plane["row_step"][axis]),
                     self.columns * np.float32(plane["column_step"][axis]))  # fmt: skip
            point.append(along[0][part] + along[1][row] + along[2][column])
        return atlas_place(*point, self.head)

    def window(self, low, high):
        """Pixels (slices of rows and of columns) that may lie in a box of (signed lateral, v, w), atlas mm, or None."""
        if any(a - 1 > most or b + 1 < least for (least, most), a, b in zip(self.span, low, high, strict=True)):
            return None
        hit = np.ones(self.places[0][0].shape, bool)
        for (least, most), a, b in zip(self.places, low, high, strict=True):
            hit &= (most > a - 1) & (least < b + 1)
        found = []
        for axis, coarse in enumerate(self.coarse):
            near = np.flatnonzero(hit.any(1 - axis))
            if not len(near):
                return None
            first, last = max(near[0] - 1, 0), min(near[-1] + 1, len(coarse) - 1)
            found.append(slice(coarse[first] - coarse[0], coarse[last] - coarse[0] + 1))
        return tuple(found)

    def patch(self, low, high):
        """Give the pixels of a box on which to paint, or None."""
        window = self.window(low, high)
        return None if window is None else _Patch(self, window)

    def sides(self, low, high):
        """Give the patches of a box (u, v, w) left and right, each with its side (0 left, 1 right)."""
        for side, (a, b) in enumerate(((low[0], high[0]), (-high[0], -low[0]))):
            patch = self.patch((a, low[1], low[2]), (b, high[1], high[2]))
            if patch is not None:
                patch.keep_to(side)
                yield patch


class _Patch(_Places):
    """A window of a canvas: a view of its pixels, and their places."""

    def __init__(self, canvas, window):
        self.canvas, self.window = canvas, window
        self.hu = canvas.hu[(slice(None), *window)]
        self.pixel, self.head = canvas.pixel, canvas.head
        self.pixels = canvas.rows[window[0]], canvas.columns[window[1]]
        super().__init__(*atlas_place(*points(canvas.plane, *self.pixels), self.head))
        self.side, self.half = 0, None

    def keep_to(self, side):
        """Paint on one side of the midsagittal plane only."""
        self.side = side
        if self.lateral.min() < 0 < self.lateral.max():
            self.half = self.lateral >= 0 if side == 0 else self.lateral < 0

    def level(self, name):
        level = self.canvas.levels[name]
        return level if level.size == 1 else level[(slice(None), *self.window)]

    def field(self, name):
        known = self.canvas.fields.get(name)
        return self.canvas.field(name, self.pixels) if known is None else known[(slice(None), *self.window)]

    def lay(self, value, level, width=None):
        if level.size == 1:
            return
        share = slab_fraction(level, width or self.pixel)
        if self.half is not None:
            share *= self.half
        paint(self.hu, np.float32(value) if np.isscalar(value) else value, share)

    def bone(self, level, table_mm=1.6, table=1500.0, inner=420.0, grain=None):
        """Lay a bone with a dense rind."""
        if level.size == 1:
            return
        value = np.float32(inner) + np.float32(table - inner) * soft(table_mm - level, 1.0)
        if grain is not None:
            value += np.float32(0.22 * inner) * grain
        self.lay(value, level)


def _slant(level):
    """How far a level rises from one sub-slice to the next, mm: (ny, nx), or a number for a single one."""
    if level.shape[0] == 1:
        return np.float32(0)
    slant = np.abs(level[-1] - level[0])
    slant *= np.float32(1 / (level.shape[0] - 1))
    return np.minimum(slant, np.float32(4), out=slant)


def slab_fraction(level, width):
    """Fraction of each pixel's slab inside a level.

    A sub-slice stands for the slab half-way to its neighbours: an edge that crosses it at a slant is as wide as its way
    through, so that few sub-slices leave no steps.

    Parameters
    ----------
    level : array, (s, ny, nx)
        mm, positive inside, on parallel sub-slices.
    width : float
        Width of an edge at right angles to the plane, mm; about a pixel.
    """
    return _share(level, np.float32(width) + _slant(level))


# --------------------------------------------------------------------------------------------- vault, scalp and muscle


def _compose_band(canvas):
    """Paint a slice above the base: only the band between cavity and skin holds anything."""
    levels, pixel = canvas.levels, canvas.pixel
    inner, skin = (np.broadcast_to(levels[name], canvas.shape) for name in ("cavity", "skin"))
    canvas.hu = np.where(inner > 0, np.float32(35), np.float32(-1000))
    band = np.flatnonzero((inner < 1.5) & (skin > -pixel))
    if not len(band):
        return canvas.hu

    def at(array):
        return array.ravel()[band] if array.size > 1 else array.ravel()

    part = {name: at(level) for name, level in levels.items()}
    part["galea"] = canvas.galea().ravel()[band // canvas.shape[2]]
    fields = {name: at(canvas.field(name)) for name in ("skull_diploe", "skull_grain")}
    hu = _flesh(part, fields, canvas.head)
    slant = canvas.slant_of(band)
    value, fraction = _shell(part, fields, band, canvas, slant)
    paint(hu, value, fraction)
    paint(hu, np.float32(35), _share(part["cavity"], pixel + slant["cavity"]))
    hu += 1000
    hu *= _share(part["skin"], pixel + slant["skin"])
    hu -= 1000
    canvas.hu.ravel()[band] = hu
    return canvas.hu


def _flesh(level, fields, head):
    """Density of what lies between skin and bone: skin, fat with septa, galea, muscle with planes of fat."""
    grain, diploe = fields["skull_grain"], fields["skull_diploe"]
    hu = FAT + 4 * grain + 4 * diploe
    hu += 60 * soft(0.16 - np.abs(diploe), 0.5)  # septa
    # Galea and the thin muscles of brow and occiput on the bone.
    paint(hu, 36 + 8 * grain, soft(level["galea"] + 0.8 * np.maximum(diploe, -0.6) + level["outer"], 1.2))
    if level["muscle"].size > 1:
        planes = soft(np.float32(0.6 + 1.3 * head["skull_muscle_fat"]) - np.abs(level["neck"]), 0.9)
        streak = np.clip(grain * 0.6 + diploe * 0.5 - 0.5, 0, 1) * np.float32(head["skull_muscle_fat"])
        fat = np.maximum(0.8 * planes, streak)
        paint(hu, MUSCLE + 3 * grain - 145 * fat, soft(level["muscle"] - 0.4 * diploe, 1.4))
    paint(hu, SKIN + 6 * grain, soft(head["skull_skin_mm"] + 0.5 * diploe - level["skin"], 0.9))
    return hu


def _shell(level, fields, band, canvas, slant):
    """Density of the skull around the cavity and its share of pixels, all given as lists (`band`, their indices)."""
    head = canvas.head
    grain, diploe = fields["skull_grain"], fields["skull_diploe"]
    inside, outside = -level["cavity"], level["outer"]
    table = np.float32(head["skull_table_mm"])
    spongy = np.maximum(head["skull_diploe_hu"] + 110 * diploe + 60 * grain, 330)
    compact = _share(table * 1.05 + 0.35 * diploe + 0.15 * grain - outside, 1.0 + slant["outer"])
    compact = np.maximum(compact, _share(table * 0.85 + 0.35 * diploe - inside, 1.0 + slant["cavity"]))
    hard = head["skull_table_hu"] + 60 * grain
    hard -= 450 * np.clip(1.6 - 0.5 * (inside + outside), 0, 1)  # sheets of less than 3 mm have pores and no full table
    value = spongy + (hard - spongy) * compact
    if head["skull_sutures"] > 0.05 and canvas.highest > -32:
        bone = np.flatnonzero((inside > 0) & (outside > -0.5))
        gap = _sutures(*canvas.place_of(band[bone]), diploe[bone])
        some = np.flatnonzero(gap > 0)
        bone = bone[some]
        depth = soft(inside[bone] - table, 1.5)  # the inner table closes first
        share = np.float32(0.75 * head["skull_sutures"]) * gap[some] * (0.35 + 0.65 * depth)
        value[bone] -= (value[bone] - 150) * share
    return value, _share(outside, canvas.pixel + slant["outer"])


def _share(level, width):
    share = level / width
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def _sutures(lateral, v, w, wiggle):
    """Share of a suture in each pixel: coronal, sagittal and lambdoid, atlas mm."""
    if not lateral.size:
        return lateral
    u = np.abs(lateral)
    teeth = 1.1 * wiggle
    nearest = np.abs(v + 0.72 * u - 0.12 * w - 97 + teeth)  # lambdoid
    if w.min() < -32 or w.max() > 48:
        nearest[(w < -32) | (w > 48)] = 50
    if w.max() > -5:
        coronal = np.abs(v + 26 + 0.06 * u - 0.10 * w + teeth)
        np.minimum(nearest, np.where(w < -5, 50, coronal), out=nearest)
    if w.max() > 38:
        sagittal = np.abs(lateral + teeth)
        np.minimum(nearest, np.where((v < -20) | (w < 38), 50, sagittal), out=nearest)
    return soft(0.85 - nearest, 0.8)


def _soft_tissue(canvas):
    """Fill a low slice with skin, fat and muscle."""
    canvas.fields = {name: canvas.field(name) for name in ("skull_diploe", "skull_grain")}
    canvas.hu = _flesh(canvas.levels | {"galea": canvas.galea()}, canvas.fields, canvas.head)


def _paint_shell(canvas):
    """Paint the shell round the cavity on a low slice."""
    levels, shape = canvas.levels, canvas.shape
    inner, outer = (np.broadcast_to(levels[name], shape) for name in ("cavity", "outer"))
    band = np.flatnonzero((inner < 1.5) & (outer > -3))
    part = {name: np.broadcast_to(levels[name], shape).ravel()[band] for name in ("cavity", "outer")}
    fields = {name: field.ravel()[band] for name, field in canvas.fields.items()}
    value, fraction = _shell(part, fields, band, canvas, canvas.slant_of(band))
    hu = canvas.hu.ravel()
    hu[band] += fraction * (value - hu[band])


def _frontal_sinus(canvas):
    """Air between the tables of the frontal bone, a lobe on each side of a septum."""
    head = canvas.head
    patch = canvas.patch((-40, -100, -36), (40, -50, 8))
    if patch is None:
        return
    septum = head["skull_frontal_sinus_septum_mm"]
    lateral = patch.lateral - septum + 1.5 * patch.field("skull_bend")
    height = np.where(lateral > 0, *(np.float32(h) for h in head["skull_frontal_sinus_mm"]))
    lobes = (1 - _power(lateral / np.maximum(height * 1.1, 1), (patch.w + 33) / np.maximum(height, 1), 1.7)) * height
    lobes += 1.5 * patch.field("skull_bend2") - 1.0
    lobes = np.minimum(np.minimum(lobes, np.abs(lateral) - 0.8), height - 3)
    tables = np.minimum(-1.6 - patch.level("cavity"), patch.level("outer") - 1.9)
    air = np.minimum(np.minimum(lobes, tables), -57 - patch.v + 4 * patch.field("skull_bend"))
    patch.bone(air + 1.2, 9, 1500)
    patch.lay(AIR, air)


# ------------------------------------------------------------------------------------------------------------ the base


def _paint_face(canvas):
    """Muscles, glands and vessels of the face and before the spine, in fat."""
    patch = canvas.patch((-78, -64, -110), (78, 50, -26))
    if patch is not None and canvas.levels["face"].size > 1:
        flesh = patch.field("skull_flesh")
        muscle = MUSCLE + 4 * flesh - 60 * np.clip(flesh - 1.0, 0, 1)
        patch.lay(muscle, patch.level("face") - 0.6 * flesh, 1.6)
    for patch in canvas.sides((46, -8, -104), (74, 28, -52)):
        flesh = patch.field("skull_flesh")
        patch.lay(5 + 22 * flesh, patch.ball((60, 10, -78), (11, 15, 22)) + 0.8 * flesh, 2.0)  # parotid
    for patch in canvas.sides((24, 4, -114), (40, 28, -54)):
        patch.lay(46, patch.rod((30, 14, -60), (30, 10, -110), 2.8))  # internal carotid artery and jugular vein
        patch.lay(46, patch.rod((33, 20, -58), (34, 16, -110), 4.0))
    patch = canvas.patch((-78, -94, -110), (78, -24, -32))
    if patch is not None:  # mimic muscles under the cheek's fat
        flesh = patch.field("skull_flesh")
        strand = np.minimum(1.6 - np.abs(patch.level("skin") - 6.5 - 1.5 * flesh), flesh + 0.8)
        strand = np.minimum(strand, np.minimum(-26 - patch.v, -34 - patch.w))
        patch.lay(42, strand, 1.5)


def _base(canvas):
    for patch in canvas.sides((0, -36, -80), (34, 40, -20)):
        _central_base(patch)
    for patch in canvas.sides((8, -16, -86), (74, 58, -26)):
        _temporal_bone(patch)
    for patch in canvas.sides((44, 6, -58), (88, 28, -36)):
        patch.lay(40, patch.rod((61, 19, -47), (80, 15, -49), 5.5, 6.0))
        patch.lay(AIR, _canal(patch))
    for patch in canvas.sides((14, -82, -42), (56, -50, -20)):
        _brow(patch)
    for patch in canvas.sides((32, -68, -78), (74, 14, -30)):
        _zygoma(patch)
    for patch in canvas.sides((30, -28, -110), (68, 22, -50)):
        _mandible(patch)
    for patch in canvas.sides((0, 10, -110), (44, 84, -62)):
        _spine(patch)
    for patch in canvas.sides((4, -86, -72), (60, -12, -12)):
        _orbit(patch)
    for patch in canvas.sides((8, -80, -104), (50, -24, -54)):
        _antrum(patch)
    patch = canvas.patch((-22, -104, -104), (22, 6, -26))
    if patch is not None:
        _nose(patch)
    for patch in canvas.sides((0, -30, -56), (18, 6, -30)):
        _sphenoid_sinus(patch)


def _central_base(patch):
    """Sphenoid body, clivus, dorsum sellae, clinoid and pterygoid processes."""
    u, v, w = patch.u, patch.v, patch.w
    grain = patch.field("skull_grain")
    body = np.maximum(
        patch.box((-17, -31, -55), (17, 6, -33.5), 6.0), patch.box((-12.5, -31, -50), (12.5, -9, -25), 6.0)
    )
    body = body + 0.8 * patch.field("skull_bend")
    along = np.clip(((v - 5) * 14 + (w + 36) * -29) / (14**2 + 29**2), 0, 1)
    clivus = np.hypot(v - 5 - 14 * along, w + 36 + 29 * along)
    clivus = 6.0 - np.hypot(clivus, 0.42 * np.maximum(u - 4 - 4 * along, 0))
    bone = np.maximum(body, clivus)
    bone = np.maximum(bone, patch.rod((8, -23, -28), (30, -23, -26), 1.6, 1.2))  # lesser wing
    marrow = np.clip(210 + 130 * grain + 110 * patch.field("skull_bend2"), 10, 700)
    patch.lay(marrow + (1150 - marrow) * soft(np.float32(1.0) - bone, 1.0), bone)
    # Soft between the clinoids: fossa with the pituitary, cavernous sinuses, subarachnoid space above.
    patch.lay(18, np.minimum(12 - 12 * _sella(u, v), 7.5 - np.abs(w + 25.5)), 1.5)
    patch.lay(50, np.maximum(patch.ball((0, -3, -34), (7, 6, 6)), patch.ball((12.5, -3, -38), (4, 10, 7))), 1.2)
    bone = patch.box((-8, 4.2, -42), (8, 6.6, -28), 2.0) + 0.4 * grain  # dorsum sellae
    bone = np.maximum(bone, patch.rod((15, -19, -29), (11.5, -10, -28), 2.0, 1.5))
    patch.bone(bone, 1.0, 1100, 400, grain)
    for start, end in (((14, -26, -52), (13, -27, -92)), ((16, -26, -52), (22, -13, -90))):
        plate = patch.rod(start, end, 1.5, 1.2)
        patch.bone(plate, 3, 1250)
    plate = np.minimum(0.9 - np.abs(u - 13 - 0.5 * (v + 27)), np.minimum(np.minimum(v + 28, -13 - v), -52 - w))
    patch.bone(plate, 3, 1200)


def _temporal_bone(patch):
    """Petrous pyramid with its dense capsule and hollows, mastoid with cells, canal of the ear."""
    head, side = patch.head, patch.side
    grain, bend, bend2 = (patch.field(name) for name in ("skull_grain", "skull_bend", "skull_bend2"))
    size = float(head["skull_mastoid"][side])
    pyramid = patch.rod((15, 5, -43), (56, 30, -47), 5.0, 11.0)
    mastoid = np.maximum(patch.ball((54.5, 33, -57), (10, 15, 22)), patch.ball((57, 33, -39), (7, 15, 13)))
    mastoid = np.maximum(mastoid, patch.ball((46, 24, -39), (15, 9, 9)))
    tympanic = patch.ball((54, 17, -50), (11, 10, 9))
    bone = np.maximum(np.maximum(pyramid, tympanic), mastoid) + 1.3 * bend
    # Thin tables; marrow, mostly fat, is in the apex and wherever there are no cells.
    marrow = np.clip(330 + 170 * grain + 140 * bend2, 20, 900)
    value = marrow + (1450 - marrow) * soft(np.float32(1.2) + 0.3 * grain - bone, 1.0)
    patch.lay(value, bone)
    capsule = patch.ball((38, 17, -43), (9.0, 5.5, 6.5))
    patch.lay(1850 + 60 * grain, capsule + 0.8 * grain, 2.5)  # of the labyrinth
    dark = [
        patch.rod((23, 17, -42), (33, 18, -42), 2.6),  # internal canal
        patch.ball((38, 12, -45), (2.6, 2.2, 2.4)),  # cochlea
        patch.ball((40, 18, -43), (2.2, 2.2, 2.2)),  # vestibule
        1.1 - np.abs(np.hypot(patch.v - 20, patch.u - 43) - 4.0) - np.maximum(np.abs(patch.w + 41) - 0.8, 0),
        patch.rod((30, 8, -62), (28, 7, -50), 2.8),  # carotid canal, upright and lying
        patch.rod((28, 6, -49), (16, -1, -45), 3.0),
        patch.rod((30, 24, -62), (27, 26, -52), 4.8 if side else 3.8),  # jugular foramen, mostly larger on the right
        patch.ball((17, 2, -49), (4.2, 4.0, 5.0)),  # foramen lacerum
        patch.rod((15, 9, -48), (26, 20, -51), 1.4),  # petro-occipital fissure
        patch.rod((24, -6, -54), (23, -5, -42), 3.2, 2.6),  # foramen ovale
        patch.rod((29, 1, -54), (29, 1, -44), 1.3),  # foramen spinosum
    ]
    patch.lay(35, functools.reduce(np.maximum, dark), 1.0)
    region = patch.ball((54.5, 33, -56), (8.5 * size, 13 * size, 19 * size))
    region = np.maximum(region, patch.ball((53, 28, -41), (10 * size, 12 * size, 11 * size)))
    region = np.maximum(region, patch.ball((58, 40, -42), (6 * size, 14 * size, 12 * size)))
    region = np.maximum(region, patch.rod((48, 25, -39), (30 / size, 13, -42), 7.5, 3.5))
    if head["skull_apex_air"][side]:
        region = np.maximum(region, patch.ball((21, 8, -43), (6, 5, 4.5)))
    region = region + 1.8 * bend2 + 0.7 * bend
    region = np.minimum(region, np.minimum(-1.1 - patch.level("cavity"), bone - 1.1))
    region = np.minimum(region, 1.2 - capsule)
    fill = 25.0 if head["skull_mastoid_fluid"][side] else AIR
    if region.max() > 0:
        # Cells grow from the petrous bone to the tip.
        large = 1.7 * np.abs(patch.field("skull_cells")) - 0.85
        small = np.minimum(np.abs(patch.field("skull_cells2")), np.abs(patch.field("skull_cells3"))) - np.float32(0.5)
        tip = np.clip((-patch.w - 45 + 0.5 * (patch.u - 50)) / 18, 0, 1)
        patch.lay(fill, np.minimum(np.minimum(large, small + 0.35 * tip), region), 1.0)
    hollow = np.maximum(patch.ball((46.5, 18, -46), (3.5, 4.5, 6.5)), patch.ball((50, 25, -42), (3, 4, 3)))
    patch.lay(fill, hollow - 0.5 * grain)


def _canal(patch):
    """Level of the external canal of the ear."""
    bony = patch.rod((49, 17.5, -46), (61, 19.5, -46), 2.9)
    return np.maximum(bony, patch.rod((61, 19.5, -46), (80, 14.5, -48.5), 3.0, 3.6))


def _brow(patch):
    """Upper rim of the orbit."""
    rim = np.maximum(
        patch.rod((51, -55, -34), (45, -63, -27), 2.8, 3.6), patch.rod((45, -63, -27), (20, -76, -30), 3.6, 4.0)
    )
    patch.bone(rim, 1.8, 1550, 500, patch.field("skull_grain"))


def _zygoma(patch):
    """Zygoma and its arch."""
    bones = [
        patch.rod((51, -55, -34), (49, -56, -60), 2.6, 3.2),  # frontal process
        patch.ball((45, -57, -64), (9, 6, 9)),
        patch.rod((38, -61, -67), (58, -45, -63), 4.6, 3.6),
        patch.rod((58, -46, -63), (66.5, -20, -62), 2.7, 2.2, 2.0),
        patch.rod((66.5, -20, -62), (64, 6, -58), 2.2, 3.0, 2.0),
        patch.rod((64, 4, -57), (50, -2, -52), 4.0, 3.0),  # root and the eminence before the joint
    ]
    patch.bone(functools.reduce(np.maximum, bones), 1.8, 1550, 500, patch.field("skull_grain"))


def _mandible(patch):
    """Mandible with its joint, and the styloid process."""
    condyle = patch.rod((45, 9, -60), (57, 7, -60), 4.6, 4.6)
    across = patch.u - 51 - 0.1 * (patch.w + 70) - 0.08 * (patch.v + 4)
    ramus = (1 - _power(across / 3.8, (patch.v + 4) / 16, 2.6)) * 3.8
    ramus = np.minimum(ramus, -70 - patch.w + 9 * np.minimum(np.abs(patch.v + 4) / 15, 1))
    neck = patch.rod((51, 8, -62), (52, 4, -76), 3.6, 4.0)
    coronoid = patch.rod((51, -19, -60), (52, -14, -78), 1.8, 3.2)
    jaw = functools.reduce(np.maximum, (condyle, ramus, neck, coronoid))
    patch.lay(30, condyle + 2.0, 1.2)  # the joint
    patch.bone(jaw, 1.9, 1650, 450, patch.field("skull_grain"))
    patch.bone(patch.rod((38, 15, -58), (34, 6, -100), 2.2, 1.4), 3, 1400)


def _spine(patch):
    """Condyles, atlas and dens around the canal with the cord."""
    u, v, w = patch.u, patch.v, patch.w
    grain = patch.field("skull_grain")
    ring = np.hypot(u / 1.05, (v - 45) / 1.2) + 1.2 * patch.field("skull_bend")
    arch = np.minimum(3.6 - np.abs(ring - 20), 5.0 - np.abs(w + 85 + 0.06 * (v - 45)))
    bones = [
        patch.rod((17, 38, -71), (13, 28, -74), 5.5, 5.0),  # occipital condyle
        patch.ball((19, 33, -83), (9, 12, 8)),
        patch.rod((26, 36, -85), (40, 37, -85), 4.0, 4.0),  # transverse process
        arch,
        patch.ball((14, 34, -104), (11, 10, 9)),
    ]
    canal = np.minimum((1 - _power(u / 15, (v - 46) / 17, 2)) * 15, -64 - w)
    dens = patch.rod((0, 27, -77), (0, 29, -110), 5.2, 6.2)
    patch.lay(0.5 * (MUSCLE + FAT), np.minimum(canal + 1.0, 20))
    patch.bone(functools.reduce(np.maximum, bones), 1.8, 1450, 450, grain)
    patch.lay(FLUID, np.minimum(canal - 1.5, v - 34), 1.0)
    patch.bone(dens, 1.8, 1450, 450, grain)
    patch.lay(38, np.minimum((1 - _power(u / 7, (v - 46) / 5.5, 2)) * 5.5, -60 - w), 1.0)


def _orbit(patch):
    """Orbit: walls, fat, globe with lens, optic nerve and muscles."""
    head, u, v, w = patch.head, patch.u, patch.v, patch.w
    axis = np.array(((13, -20, -36.5), (33.5, -74, -45.5)), np.float32)
    along = axis[1] - axis[0]
    du, dv, dw = u - axis[0][0], v - axis[0][1], w - axis[0][2]
    t = (du * along[0] + dv * along[1] + dw * along[2]) / float(along @ along)
    width = 2.2 + 18.2 * np.sin(np.clip(t, 0, 1.15) * 1.5) ** 0.85
    # It is domed: its roof is the floor of the anterior fossa, a sheet that bulges and thins between the gyri.
    above = dw > t * along[2]
    dw = (dw - t * along[2]) * np.where(above, np.float32(0.74), np.float32(1.06))
    radial = np.sqrt((du - t * along[0]) ** 2 + (dv - t * along[1]) ** 2 + dw**2)
    orbit = np.minimum(width - radial, (t + 0.02) * 60)
    orbit = np.minimum(orbit, 0.8 * (-28 + 0.6 * np.clip(v + 73 - 0.022 * (u - 31) ** 2, 0, 16) - w))
    roof = 1.0 + 0.5 * np.clip(patch.field("skull_roof"), -1, 2.2)
    rim = -75 + 0.46 * np.maximum(u - 14, 0)  # the lateral rim lies further back
    rim = np.where(w > -34, rim - 0.6 * (w + 34), rim)
    orbit = np.minimum(np.minimum(orbit, u - 12.5), -roof - patch.level("cavity"))
    thick = 0.9 + 3.4 * np.clip((u - 36) / 14, 0, 1) * np.clip(1 - (v - rim) / 16, 0, 1)
    wall = np.minimum(orbit + thick, v - rim + 1)
    patch.bone(wall, 4, 1350)
    inside = -_smooth_max(-orbit, rim - 12 - v, 6.0)
    flesh = patch.field("skull_flesh")
    patch.lay(FAT + 6 * flesh, inside)
    radius = np.float32(head["skull_globe_mm"] / np.mean(head["scale"]))
    centre = (33.0, -66.5, -46.0)
    # Cone of muscles from the apex to the globe.
    nerve = [(13.5, -22, -36.8), (22, -42, -41.5), (31.5, -56, -45.5)]
    cords = np.maximum(patch.rod(nerve[0], nerve[1], 2.3), patch.rod(nerve[1], nerve[2], 2.2))
    muscles = []
    for du_, dw_, thick in ((-10.0, 0, 2.3), (10.5, -1, 2.2), (0, 10.5, 2.3), (0, -10.5, 2.5)):
        belly = (24.5 + 0.95 * du_, -46, -42 + 0.95 * dw_)
        end = (centre[0] + 1.12 * du_, -64, centre[2] + 1.12 * dw_)
        start = (14 + 0.22 * du_, -23, -37 + 0.2 * dw_)
        muscles += [patch.rod(start, belly, 1.4, thick), patch.rod(belly, end, thick, 0.9)]
    patch.lay(48, functools.reduce(np.maximum, muscles), 1.0)
    patch.lay(34, cords, 1.0)
    patch.lay(40, np.minimum(patch.ball((42, -63, -36), (6, 8, 5)), inside))  # lacrimal gland
    lids = np.minimum(2.4 - np.abs(np.sqrt((u - 33) ** 2 + (v + 66.5) ** 2 + (w + 46) ** 2) - 14.0), -70 - v)
    patch.lay(34, lids, 1.0)
    globe = radius - np.sqrt((u - centre[0]) ** 2 + (v - centre[1]) ** 2 + (w - centre[2]) ** 2)
    patch.lay(SCLERA, globe, 0.8)
    patch.lay(VITREOUS, globe - 1.3, 0.8)
    gaze = [float(turn) for turn in head["skull_gaze"]]
    place = (centre[0] + 8 * gaze[0] * (1 - 2 * patch.side), centre[1] - 0.72 * float(radius), centre[2] + 8 * gaze[1])
    half = 0.9 if head["skull_lens_out"] else 2.2
    lens = (
        1 - np.sqrt(((u - place[0]) / 4.6) ** 2 + ((v - place[1]) / half) ** 2 + ((w - place[2]) / 4.6) ** 2)
    ) * half
    patch.lay(LENS + (60 if head["skull_lens_out"] else 0), lens, 0.8)


def _antrum(patch):
    """Maxillary sinus: walls, air, mucosa, fluid."""
    head, u, v, w = patch.head, patch.u, patch.v, patch.w
    size = np.float32(head["skull_antrum"][patch.side])
    bend = patch.field("skull_bend")
    faces = (
        u - 14.5 - 0.25 * np.maximum(-v - 62, 0),
        (u - 29) * -0.55 + (v + 65) * 0.83,
        (u - 34) * -0.72 - (v + 46) * 0.69 + 1.5,
        (-61 + 0.12 * (v + 50) - w) * 0.97,
        w + 98,
        -v - 30,
    )
    level = functools.reduce(lambda a, b: -_smooth_max(-a, -b, 4.0), faces) + 0.9 * bend - 9 * (1 - size)
    wall = np.minimum(level + 1.3, 60)
    patch.bone(wall, 3, 1350)
    lining = float(head["skull_antrum_mucosa_mm"][patch.side])
    patch.lay(26, level)
    air = level - lining * np.clip(0.75 + 0.6 * patch.field("skull_bend2"), 0.1, 1.6)
    if head["skull_antrum_fluid"] and patch.side == 0:
        air = np.minimum(air, -44 - v)
    patch.lay(AIR, air)


def _nose(patch):
    """Nasal cavity with septum and conchae, ethmoid cells, nasal bones, nasopharynx."""
    head, u, v, w = patch.head, patch.u, patch.v, patch.w
    bend, bend2 = patch.field("skull_bend"), patch.field("skull_bend2")
    lateral = patch.lateral
    # The bony framework between the orbits and the antra.
    frame = np.minimum(
        np.minimum(16 - 0.55 * np.maximum(-66 - v, 0) - u, np.minimum(v + 80, -28 - v)), np.minimum(-30 - w, w + 100)
    )
    patch.lay(250 + 30 * bend, frame - 0.5, 1.5)
    bones = [
        patch.rod((3.0, -84, -44), (6.5, -93, -66), 1.7, 1.1),
        patch.rod((9, -81, -46), (17, -73, -72), 3.0, 2.6),
        patch.ball((0, -81, -39), (12, 7, 9)),  # glabella's foot
    ]
    patch.bone(functools.reduce(np.maximum, bones), 2.5, 1450, 1200)
    # Ethmoid labyrinth: a warped lattice of cells.
    region = patch.box((-13.8, -75, -63), (13.8, -27, -30), 4.0)
    region = np.minimum(region, -1.6 - patch.level("cavity"))
    region = np.minimum(region, np.minimum(13.8 - 0.45 * np.maximum(-60 - v, 0) - u, u - 0.9))
    a, b, c = v + 3.2 * bend + 1.5 * np.sin(w * 0.5) + 0.25 * lateral, w + 3.0 * bend2, u - 0.8 * bend
    walls = np.abs(np.remainder(a, 8.0) - 4.0)
    walls = np.minimum(walls, np.abs(np.remainder(b + 3, 9.0) - 4.5))
    walls = np.minimum(walls, np.abs(c - 6.2 - 0.8 * bend2))
    thick = 0.55 + 2.2 * head["skull_ethmoid_mucosa"] * np.clip(bend * bend2 + 0.5, 0, 1)
    patch.lay(800, region + 0.7)
    patch.lay(AIR, np.minimum(region, walls - thick), 0.9)
    # Nasal cavity below, to the choanae.
    half = 3.0 + 8.5 * np.clip((-46 - w) / 18, 0, 1) + 0.8 * bend
    half = half * (1 - 0.55 * np.clip((-66 - v) / 20, 0, 1))
    cavity = np.minimum(
        np.minimum(half - u, np.minimum(v + 86 - 0.25 * (w + 70), -22 - v)), np.minimum(-47 - w, w + 93)
    )
    patch.bone(cavity + 1.2, 3, 1150)
    patch.lay(38, cavity)
    # Mucosa and conchae leave narrow ways for the air.
    floor = np.minimum(cavity - 1.0, 30)
    septum = np.abs(lateral - head["skull_septum_mm"] * np.sin((v + 80) / 17) * bump(w + 70, 18))
    conchae = [
        patch.ball((8.6, -52, -82), (5.4, 25, 10)),
        patch.ball((7.6, -47, -66), (4.4, 22, 9)),
        patch.ball((6.0, -42, -54), (2.0, 13, 4.5)),
    ]
    concha = functools.reduce(np.maximum, conchae) + 0.5 * patch.field("skull_flesh")
    air = np.minimum(np.minimum(floor, septum - 1.7), -concha - 0.2)
    patch.lay(AIR, air)
    patch.lay(520, np.minimum(0.7 - septum, np.minimum(cavity + 1, np.minimum(v + 74, -24 - v))), 0.9)
    patch.lay(330, np.minimum(functools.reduce(np.maximum, [c - 3.2 for c in conchae]), cavity), 0.9)
    pharynx = np.minimum((1 - _power(u / 13, (v + 14 - 0.25 * u) / 7, 2.2)) * 7, -60 - w + 0.3 * (v + 12))
    patch.lay(48, pharynx + 4.0, 2.0)
    patch.lay(AIR, pharynx - 1.0 + 1.5 * bend)


def _sphenoid_sinus(patch):
    head = patch.head
    size = np.float32(head["skull_sphenoid_sinus"])
    septum = np.abs(patch.lateral - head["skull_sphenoid_septum_mm"] - 0.08 * (patch.v + 15))
    box = patch.box((-14.5 * size, -29, -53), (14.5 * size, -29 + 31 * size, -35), 6.0)
    box = np.maximum(box, patch.box((-12 * size, -28, -46), (12 * size, -29 + 18 * size, -26.5), 6.0))
    box = box + 1.4 * patch.field("skull_bend") - 0.06 * patch.u
    box = np.minimum(box, np.maximum(12 * _sella(patch.u, patch.v) - 13.2, -33 - patch.w))
    box = np.minimum(box, -1.0 - 2.5 * step(patch.v + 8, 2) - patch.level("cavity"))
    patch.lay(AIR, np.minimum(box, septum - 0.5))


# ------------------------------------------------------------------------------------------------------- nose and ears


def _features_of_skin(canvas):
    """Let nose and eyelids stand out of the skin's level."""
    if canvas.levels["skin"].size == 1:
        return
    patch = canvas.patch((-34, -118, -110), (34, -58, -34))
    if patch is not None:
        u, v, w = patch.u, patch.v, patch.w
        drop = np.clip((-46 - w) / 34, 0, 1.1)
        ridge = -87 - 23 * drop**1.2
        half = 9 + 13 * drop
        nose = np.minimum((v - ridge) * 0.8, (half - u + 0.52 * (v + 80)) * 0.85)
        nose = np.minimum(nose, np.minimum(-68 - v, -42 - w))
        skin = patch.level("skin")
        flesh = patch.field("skull_flesh")
        value = 32 + 12 * flesh - 40 * soft(nose - 2.2, 1.0) * soft(flesh - 0.5, 1.0)
        grown = _smooth_max(skin, nose, 5.0)
        inside = soft(-skin, patch.pixel) * soft(grown, patch.pixel)
        value = np.where(patch.hu < -200, patch.hu, value)
        value = value + (40 - value) * soft(1.8 - grown, 0.8)
        nostril = np.minimum(patch.ball((5, -90, -82), (3.2, 9, 12)), -70 - w)
        value = value + (AIR - value) * soft(nostril, patch.pixel)
        paint(patch.hu, value, inside)
        skin[...] = grown
    for patch in canvas.sides((16, -90, -64), (52, -60, -30)):
        radius = np.sqrt((patch.u - 33) ** 2 + (patch.v + 66.5) ** 2 + (patch.w + 46) ** 2)
        lid = np.float32(patch.head["skull_globe_mm"] / 0.925 + 2.8) - radius
        skin = patch.level("skin")
        fresh = soft(-skin, patch.pixel) * soft(np.minimum(lid, radius - patch.head["skull_globe_mm"]), patch.pixel)
        paint(patch.hu, np.float32(32), fresh)
        np.maximum(skin, lid, out=skin)


def _ears(canvas):
    """Pinnae: a curled plate that stands off behind the canal."""
    head = canvas.head
    for patch in canvas.sides((64, 8, -80), (100, 56, -14)):
        size, lift = (float(value) for value in head["skull_ear"][patch.side])
        v, w = patch.v, patch.w
        height = (w + 46) / (31 * size)
        tall = np.sqrt(np.clip(1 - height**2, 0, 1))
        skin = patch.level("skin")
        d = -skin / np.float32(np.mean(head["scale"]))  # how far off the head
        back = v - 16
        # The plate leaves the head behind the canal and leans back; helix and antihelix curl.
        reach = (13 + 9 * lift) * tall * size
        length = 27 * size * tall
        t = np.clip(back / np.maximum(length, 1), -0.2, 1.2)
        curve = reach * np.sin(np.clip(t, 0, 1) * 1.5) ** 0.8 + 2.2 * np.sin(t * 9) * t
        plate = 1.6 - np.abs(d - curve) * 0.8
        plate = np.minimum(plate, np.minimum(back + 2, length - back))
        rim = np.hypot(d - reach + 2.6, back - length + 1.5)
        helix = np.minimum(1.5 - np.abs(rim - 3.0), length - back + 4.5)
        tragus = np.minimum(1.6 - np.hypot(d - 3.0, (v - 11) * 0.8) * 0.6, 9 - np.abs(w + 48))
        pinna = np.maximum(np.maximum(plate, helix), tragus)
        pinna = np.where(tall > 0.05, np.minimum(pinna, (1 - np.abs(height)) * 18), FAR)
        flesh = patch.field("skull_flesh")
        canal = _canal(patch)
        value = 25 + 20 * flesh
        share = soft(np.minimum(pinna, -canal), patch.pixel) * soft(-skin, 1.0)
        paint(patch.hu, value, share)
