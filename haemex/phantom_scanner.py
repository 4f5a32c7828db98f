"""Scanners of synthetic patients: positions and planes of a scan, what surrounds the head, and how an image forms.

The ideal image (noise-free HU, averaged over a slice) is what the anatomy gives. `acquire` turns it into what a scanner
stores. Its blur is the kernel's modulation transfer function. Beam hardening, scatter and noise come from projections
through a reduced image, so that dark bands between the petrous bones, brightening under the vault, streaks at the base
and noise that follows the head's thickness are not painted but follow from the head itself.
"""

import functools
import math

import numpy as np

from haemex.phantom_fields import generator, paint, rotation, soft
from haemex.phantom_planes import bands, resized

# Supplemental Table 1 of the paper; fields of view no smaller than holds a head.
# ASSUME: kernels as published measurements of such kernels have them (MTF 50 % at 0.30 to 0.34 per mm), and noise,
# residual beam hardening, bow-tie filter, dose modulation and stray radiation typical of each kind of scanner; the
# paper reports none of them. `halo` and `veil` are the shares of bone's density that blur widely, see `_stray`.
SCANNERS = {
    "optima": {
        "manufacturer": "GE MEDICAL SYSTEMS",
        "model": "Optima CT540",
        "kernel": "SOFT",
        "bone_kernel": "BONE",
        "kvp": 120,
        "field_of_view_mm": (250.0, 250.0),
        "slices": (28, 34),
        "padding": -2000,
        "from_base": True,
        "tilts": True,
        "mtf50_per_mm": 0.315,
        "enhancement": 0.0,
        "noise_hu": 4.1,
        "bone_residual": 0.5,
        "scatter": 1.7e-4,
        "modulation": 0.15,
        "bow_tie": 0.65,
        "halo": 0.012,
        "veil": 0.01,
        "partial_volume": 0.3,
        "holder": "u",
    },
    "flash": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Definition Flash",
        "kernel": "H30s",
        "bone_kernel": "H60s",
        "kvp": 120,
        "field_of_view_mm": (220.0, 285.0),
        "slices": (26, 28),
        "padding": None,
        "from_base": False,
        "tilts": False,
        "mtf50_per_mm": 0.3,
        "enhancement": 0.0,
        "noise_hu": 3.6,
        "bone_residual": 0.32,
        "scatter": 1.5e-4,
        "modulation": 0.3,
        "bow_tie": 0.5,
        "halo": 0.008,
        "veil": 0.005,
        "partial_volume": 0.15,
        "holder": "trough",
    },
    "force": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Force",
        "kernel": "Hr36f",
        "bone_kernel": "Hr59f",
        "kvp": 110,
        "field_of_view_mm": (216.0, 228.0),
        "slices": (27, 27),
        "padding": None,
        "from_base": False,
        "tilts": False,
        "mtf50_per_mm": 0.335,
        "enhancement": 0.10,
        "noise_hu": 3.2,
        "bone_residual": 0.28,
        "scatter": 1.2e-4,
        "modulation": 0.3,
        "bow_tie": 0.5,
        "halo": 0.006,
        "veil": 0.007,
        "partial_volume": 0.12,
        "holder": "trough",
    },
    "perspective": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Perspective",
        "kernel": "H31s",
        "bone_kernel": "H60s",
        "kvp": 130,
        "field_of_view_mm": (230.0, 230.0),
        "slices": (27, 27),
        "padding": None,
        "from_base": False,
        "tilts": True,
        "mtf50_per_mm": 0.315,
        "enhancement": 0.06,
        "noise_hu": 3.9,
        "bone_residual": 0.38,
        "scatter": 1.8e-4,
        "modulation": 0.2,
        "bow_tie": 0.5,
        "halo": 0.01,
        "veil": 0.006,
        "partial_volume": 0.22,
        "holder": "trough",
    },
    # ASSUME: two scanners of a second centre, of makers and kernels that the first one lacks.
    "aquilion": {
        "manufacturer": "TOSHIBA",
        "model": "Aquilion PRIME",
        "kernel": "FC26",
        "bone_kernel": "FC81",
        "kvp": 120,
        "field_of_view_mm": (220.0, 240.0),
        "slices": (28, 32),
        "padding": -2000,
        "from_base": True,
        "tilts": True,
        "mtf50_per_mm": 0.36,
        "enhancement": 0.12,
        "noise_hu": 4.4,
        "bone_residual": 0.42,
        "scatter": 1.6e-4,
        "modulation": 0.2,
        "bow_tie": 0.6,
        "halo": 0.01,
        "veil": 0.008,
        "partial_volume": 0.25,
        "holder": "u",
    },
    "ingenuity": {
        "manufacturer": "Philips",
        "model": "Ingenuity CT",
        "kernel": "UB",
        "bone_kernel": "YC",
        "kvp": 120,
        "field_of_view_mm": (230.0, 250.0),
        "slices": (26, 30),
        "padding": None,
        "from_base": False,
        "tilts": False,
        "mtf50_per_mm": 0.28,
        "enhancement": 0.0,
        "noise_hu": 3.0,
        "bone_residual": 0.35,
        "scatter": 1.4e-4,
        "modulation": 0.25,
        "bow_tie": 0.55,
        "halo": 0.009,
        "veil": 0.006,
        "partial_volume": 0.18,
        "holder": "trough",
    },
}
BONE_MTF50_PER_MM = 0.8  # of the sharp kernels
MOST_NOISE_HU = 4.8  # ASSUME: SD in the brain on which a department sets its dose, unless the patient moves
PLANES_DEG = 10.0  # from the AC-PC plane
THICKNESS_MM = 5.0  # also the distance between planes
LOWEST_HU, HIGHEST_HU = -1024, 3071

# Mass attenuation, cm2/g, of water and cortical bone (NIST, ICRU-44), and the share of each energy in the signal of a
# 120 kV beam behind the usual filters: 40, 50, 60, 70, 80, 100 and 120 keV.
SIGNAL = np.array([0.07, 0.17, 0.25, 0.19, 0.15, 0.12, 0.05])
WATER = np.array([0.2683, 0.2269, 0.2059, 0.1929, 0.1837, 0.1707, 0.1614])
BONE = np.array([0.6655, 0.4242, 0.3148, 0.2592, 0.2229, 0.1855, 0.1667])

ELECTRONIC = 0.01  # ASSUME: behind a hundredfold attenuation electronics make as much noise as photons
SYSTEM_MM = 0.33  # ASSUME: Gaussian blur, SD, by focal spot and detector cells, which noise does not undergo
HALO_MM = 4.0  # ASSUME: reach of the blur around bone, SD: detector crosstalk, and the focal spot's own halo
VEIL_MM = (20.0, 7.0)  # ASSUME: of off-focal radiation and scatter, within slices and from slice to slice
BOW_TIE_CM = 10.0  # radius of the water cylinder behind which the bow-tie filter levels the signal
EDGE = 5  # pixels at the border of the image that are not blurred
REDUCED_FIELD_MM = 224.0  # of the reduced image, which holds every head
LARGE_SCALE_PER_MM = 0.16  # noise of larger scale than this comes from the projections


# ------------------------------------------------------------------------------------------------- position and planes


def draw_scan(patient, reach, timepoint, matrix, seed):
    """Draw one acquisition: how the head lies in the gantry, and the planes through it. Patient frame LPS, mm.

    Parameters
    ----------
    patient : dict
        `row` and `truth`; of the truth `scanner`, `pixel_mm` and `tilt_deg`.
    reach : dict
        Box around the head in the head frame, scalp included, mm: `half` (3,), half its extents, `centre` (3,), and
        `bottom_mm`, the height of the skull base.
    timepoint : str
        "baseline" or "followup"; each has its own position.
    matrix : int
        Pixels per row and column.
    seed : int
        The study's seed.

    Returns
    -------
    dict
        `origins` (slices, 3), centre of pixel (0, 0) of each slice, sorted along `normal`; `row_direction` (from column
        to column) and `column_direction` (from row to row), as in ImageOrientationPatient; `pixel_mm`, `thickness_mm`,
        `voxel_mm3` (with the true distance between planes), `tilt_deg`, `matrix`; `turn` (3, 3) and `position` (3,):
        a point p of the head frame lies at `turn @ p + position`; and what `acquire` and `surroundings` need.
    """
    row, truth = patient["row"], patient["truth"]
    scanner = SCANNERS[truth["scanner"]]
    rng = generator(seed, row["patient"], timepoint, "acquisition")
    machine = generator(seed, "machine", truth["scanner"])  # the same for all its patients
    poor = bool(row["poor_image_quality"])
    pixel = truth["pixel_mm"]
    tilt = math.radians(truth["tilt_deg"])

    # ASSUME: planes follow the orbitomeatal line, about 9 degrees off the AC-PC plane, or a line somewhat steeper that
    # spares the eyes, by tilt or by a pillow; now and then a patient lies badly.
    sd = np.array([2.5, 3.0, 4.0]) if rng.random() > 0.15 else np.array([4.0, 5.0, 7.0])
    pitch, yaw, roll = np.clip(rng.normal(0, sd), -10.0, 10.0)
    turn = rotation(pitch + PLANES_DEG - truth["tilt_deg"], yaw, roll)
    half, centre = np.asarray(reach["half"], float), np.asarray(reach["centre"], float)
    extent = np.sqrt(((turn * half) ** 2).sum(1))
    room = np.maximum(pixel * matrix / 2 - extent[:2] - 2.0, 0.0)
    offset = np.clip(rng.normal((0.0, 1.0), (4.0, 5.0)), -room, room)
    position = np.append(offset, rng.uniform(-60, 60)) - turn @ centre
    position[2] = round(position[2] + (turn @ centre)[2], 1)  # table position, to a tenth of a millimetre

    row_direction = np.array([1.0, 0.0, 0.0])
    column_direction = np.round([0.0, math.cos(tilt), -math.sin(tilt)], 8)
    normal = np.cross(row_direction, column_direction)
    step = THICKNESS_MM / math.cos(tilt)  # of the table: planes stay 5 mm apart
    along = normal @ turn
    top = normal @ (turn @ centre + position) + np.sqrt(((along * half) ** 2).sum())
    bottom = normal @ (turn @ np.array([centre[0], centre[1], reach["bottom_mm"]]) + position)
    few, many = scanner["slices"]
    slices = int(np.clip(math.ceil((top - bottom) / THICKNESS_MM + 1), few, many))
    # ASSUME: whoever plans the scan starts at the skin of the vertex, or up to 9 mm deeper, where no brain is lost, to
    # reach the skull base with the slices that the protocol has.
    start = rng.uniform(0.0, 7.0)
    start = np.clip(top - bottom - (slices - 1) * THICKNESS_MM, start, max(start, 9.0))
    highest = (top - start) / normal[2]
    corner = -(matrix - 1) / 2 * pixel * (row_direction + column_direction)
    heights = round(highest, 1) - step * np.arange(slices)[::-1]
    noise_hu = min(scanner["noise_hu"] * float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.3)), MOST_NOISE_HU)
    return {
        "origins": np.round(corner + heights[:, None] * np.array([0.0, 0.0, 1.0]), 4),
        "row_direction": row_direction,
        "column_direction": column_direction,
        "normal": normal,
        "pixel_mm": pixel,
        "thickness_mm": THICKNESS_MM,
        "voxel_mm3": pixel**2 * THICKNESS_MM,
        "tilt_deg": truth["tilt_deg"],
        "matrix": matrix,
        "turn": turn,
        "position": position,
        "scanner": truth["scanner"],
        "mtf50_per_mm": scanner["mtf50_per_mm"],
        "enhancement": scanner["enhancement"],
        "noise_hu": noise_hu * (3.0 if poor else 1.0),
        "moved_mm": float(rng.uniform(2.5, 5.0)) if poor else 0.0,
        "offset_hu": float(machine.uniform(-1.5, 1.5)),
        "bone_residual": scanner["bone_residual"] * float(rng.uniform(0.85, 1.15)),
        "scatter": scanner["scatter"] * float(rng.uniform(0.8, 1.2)),
        "modulation": scanner["modulation"],
        "bow_tie": scanner["bow_tie"],
        "halo": scanner["halo"],
        "veil": scanner["veil"],
        "system_mm": SYSTEM_MM,
        "partial_volume": scanner["partial_volume"],
        "head_middle_mm": offset / [1.0, math.cos(tilt)],
        "head_half_mm": extent[:2],
        "around": _draw_around(rng, machine, scanner["holder"], offset[1] / math.cos(tilt) + extent[1]),
    }


def thin(scan):
    """Reconstruct an acquisition a second time over the same length: slices of half the thickness, sharp kernel."""
    origins = np.repeat(scan["origins"], 2, axis=0)[:-1]
    origins[1::2] = np.round((scan["origins"][1:] + scan["origins"][:-1]) / 2, 4)
    return scan | {
        "origins": origins,
        "thickness_mm": scan["thickness_mm"] / 2,
        "voxel_mm3": scan["voxel_mm3"] / 2,
        "mtf50_per_mm": BONE_MTF50_PER_MM,
        "enhancement": 0.0,
        "system_mm": 0.0,  # such a kernel makes up for it, in the noise as well
        "noise_hu": 3.0 * scan["noise_hu"],
    }


# -------------------------------------------------------------------------------------------------------- surroundings


def _draw_around(rng, machine, holder, back_mm):
    """Draw how holder, cushions and pillow look in one scan: mm and HU; the back of the head lies at `back_mm`."""
    trough = holder == "trough"
    pillow = float(rng.uniform(9, 18))
    return {
        "holder": holder,
        # Every machine has its own holder; it stands a little differently in each scan.
        "wall_hu": float(machine.uniform(180, 380)),
        "wall_mm": float(machine.uniform(1.5, 2.2) if trough else machine.uniform(2.2, 3.6)),
        "half_mm": float(machine.uniform(103, 112) if trough else machine.uniform(94, 100)) + rng.uniform(-1, 1),
        "core_mm": float(machine.uniform(6, 11)) if trough else 0.0,
        "inner_wall_mm": float(machine.uniform(1.0, 1.8)),
        "inner_wall_hu": float(machine.uniform(60, 220)),
        "square": float(machine.uniform(2.15, 2.7)),
        "flare": float(machine.uniform(0.0, 0.07)),
        "ends_mm": float(machine.uniform(12, 40) if trough else machine.uniform(-20, 5)) + rng.uniform(-6, 6),
        "shift_mm": float(rng.normal(0, 1.5)),
        "bottom_mm": float(back_mm + 0.8 * pillow + (rng.uniform(1, 6) if trough else rng.uniform(10, 28))),
        "cushions": tuple(bool(v) for v in rng.random(2) < 0.75),
        "cushion_mm": (rng.uniform(7, 12), rng.uniform(24, 34)),
        "cushion_y": rng.uniform(38, 62, 2),
        "cushion_lean": rng.uniform(8, 24, 2),
        "foam_hu": float(rng.uniform(-975, -945)),
        "skin_hu": float(rng.uniform(-880, -780)),
        "pillow_mm": pillow,
        "layers": int(rng.integers(2, 4)),
        "phase": rng.uniform(0, 2 * np.pi, 4),
        "strap_mm": float(rng.uniform(55, 90)) if rng.random() < 0.4 else None,
        "strap_hu": float(rng.uniform(-500, 0)),
    }


def surroundings(scan, number):
    """Draw what surrounds the head on one slice: air, head holder, cushions, pillow, a strap. Array (y, x), HU.

    The head is to be laid over it: the pillow reaches a little under the scalp, as if pressed in.
    """
    matrix, pixel, around = scan["matrix"], scan["pixel_mm"], scan["around"]
    index = ((np.arange(matrix) - (matrix - 1) / 2) * pixel).astype(np.float32)
    image = np.full((matrix, matrix), -1000.0, np.float32)
    below_top = float((len(scan["origins"]) - 1 - number) * scan["thickness_mm"])
    wobble = np.sin(below_top / 17.0 + around["phase"]).astype(np.float32)
    low = int(np.searchsorted(index, min(around["ends_mm"] - 6, around["cushion_y"].min() - 50)))
    x, y, part = index[None, :], index[low:, None], image[low:]
    within = _holder_level(x, y, around)
    within -= np.float32(around["core_mm"] + around["wall_mm"])
    room = soft(within, np.float32(max(1.0, pixel)))
    _add_pillow(part, x, y, scan, wobble, room)
    _add_cushions(part, x, y, scan, wobble, within)
    if around["strap_mm"] is not None and abs(below_top - around["strap_mm"]) < 18:
        _add_strap(image, x, index[:, None], scan, wobble)
    _add_holder(part, y, within + np.float32(around["core_mm"] + around["wall_mm"]), scan)
    return image


def _head_level(x, y, scan, grown):
    """Level of an ellipse about the head, grown by some mm, about the distance to it in mm."""
    half = (scan["head_half_mm"] + grown).astype(np.float32)
    u, v = (x - np.float32(scan["head_middle_mm"][0])) / half[0], (y - np.float32(scan["head_middle_mm"][1])) / half[1]
    return (1 - np.sqrt(u * u + v * v)) * np.float32(half.min())


def _add_pillow(part, x, y, scan, wobble, room):
    """Draw foam under the head in wrinkled covers: thin lines around its back."""
    around, width = scan["around"], np.float32(max(1.0, scan["pixel_mm"]))
    back = np.float32(scan["head_middle_mm"][1]) + np.float32(0.28 * scan["head_half_mm"][1])
    start = int(np.searchsorted(y[:, 0], back - 12))
    image, y = part[start:], y[start:]
    # The head narrows towards the vertex; the pillow does not follow it there.
    away = -_head_level(x, y, scan, -1.0 + 1.2 * wobble[0])
    away += np.float32(1.6) * np.sin(x / 9 + wobble[1] * 2) + np.float32(0.9) * np.sin(x / 4.1 + y / 7 + wobble[2] * 3)
    end = soft(y - back - np.float32(4) * np.sin(x / 15 + wobble[3]), 6.0) * room[start:]
    foam = soft(np.minimum(np.float32(around["pillow_mm"]) - away, away + 7), width) * end
    paint(image, np.float32(around["foam_hu"]), foam)
    for layer in range(-1, around["layers"]):
        # The innermost cover shows only where the head has left the pillow, near the vertex.
        depth = np.float32(around["pillow_mm"] * (layer + 1) / around["layers"] + 1.2 * wobble[layer % 4])
        depth = np.float32(-7) if layer == -1 else depth
        line = soft(np.float32(0.55) - np.abs(away - depth), width) * end
        paint(image, np.float32(around["skin_hu"]), line)


def _add_cushions(part, x, y, scan, wobble, within):
    """Draw wedges between head and holder: covers filled with foam, leaning inwards."""
    around, width = scan["around"], np.float32(max(1.0, scan["pixel_mm"]))
    for number, side in enumerate((-1, 1)):
        if not around["cushions"][number]:
            continue
        half = np.array(around["cushion_mm"], np.float32) * (1 + 0.12 * wobble[number])
        middle = np.float32(side * (scan["head_half_mm"][0] + half[0] - 1.5) + 0.6 * scan["head_middle_mm"][0])
        height = np.float32(around["cushion_y"][number] - 8 + 5 * wobble[2 + number])
        columns = np.flatnonzero(np.abs(x[0] - middle) < 34)
        rows = np.flatnonzero(np.abs(y[:, 0] - height) < 46)
        if not (len(columns) and len(rows)):
            continue
        patch = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        u, v = x[:, patch[1]] - middle, y[patch[0]] - height
        lean = math.radians(side * around["cushion_lean"][number])
        along, across = (
            v * np.float32(math.cos(lean)) - u * np.float32(math.sin(lean)),
            u * np.float32(math.cos(lean)) + v * np.float32(math.sin(lean)),
        )
        level = (1 - ((np.abs(across) / half[0]) ** 3 + (np.abs(along) / half[1]) ** 3) ** (1 / 3)) * half[0]
        level += np.float32(0.5) * np.sin(along / 3 + 4 * wobble[0])
        image = part[patch]
        level = np.minimum(level, within[patch] - np.float32(0.5))  # pressed flat against the wall
        paint(image, np.float32(around["foam_hu"] - 12), soft(level, width))
        paint(image, np.float32(around["skin_hu"]), soft(np.float32(0.6) - np.abs(level), width))


def _add_strap(image, x, y, scan, wobble):
    """Draw a thin band around the forehead, a little off the skin, down to the holder."""
    around, width = scan["around"], np.float32(max(0.8, scan["pixel_mm"]))
    away = -_head_level(x, y, scan, np.array([1.0, 1.0]))
    away -= np.float32(1.0) * np.sin(x / 14 + wobble[1])
    line = np.minimum(np.float32(0.6) - np.abs(away - 1.5), np.float32(scan["head_middle_mm"][1] + 8) - y)
    paint(image, np.float32(around["strap_hu"]), soft(line, width))


def _holder_level(x, y, around):
    """Distance to the outer face of the holder, mm, positive within it."""
    x, half = np.abs(x - np.float32(around["shift_mm"])), np.float32(around["half_mm"])
    if around["holder"] == "u":  # straight walls beside the head, wider at their ends, bent together below it
        middle = np.float32(around["bottom_mm"]) - half
        return half - np.hypot(x + np.float32(around["flare"]) * np.minimum(y - middle, 0), np.maximum(y - middle, 0))
    deep, power = np.float32(0.9 * half), around["square"]
    upright = np.maximum(y - (np.float32(around["bottom_mm"]) - deep), 0) / deep
    return (1 - ((x / half) ** power + upright**power) ** np.float32(1 / power)) * deep


def _add_holder(part, y, within, scan):
    """Draw the carbon shell of the holder, or two of them with foam between; some lies outside the field of view."""
    around, width = scan["around"], np.float32(max(0.8, scan["pixel_mm"]))
    wall, core, ends = (np.float32(around[name]) for name in ("wall_mm", "core_mm", "ends_mm"))
    open_at = y - ends  # the ends are round, about
    if core:
        inner = np.float32(around["inner_wall_mm"])
        depth = within - (core + wall) / 2
        shell = np.minimum((core + wall) / 2 - np.abs(depth), open_at)
        paint(part, np.float32(around["foam_hu"] + 45), soft(shell, width))
        # The inner wall ends the core above as well.
        lining = np.minimum(inner / 2 - np.abs(shell - inner / 2), within - wall)
        paint(part, np.float32(around["inner_wall_hu"]), soft(lining, width))
    level = np.minimum(np.minimum(within, wall - within), np.minimum(open_at, wall))
    paint(part, np.float32(around["wall_hu"]), soft(level, width))


# ----------------------------------------------------------------------------------------------------- image formation


def acquire(ideal, scan, words):
    """Turn ideal slices into those a scanner stores.

    Parameters
    ----------
    ideal : array of float32, (z, y, x)
        HU without noise, averaged over the thickness of the slices.
    scan : dict
        From `draw_scan` or `thin`.
    words : tuple
        Seed and purpose of the noise.

    Returns
    -------
    array of int16, (z, y, x)
        HU.
    """
    from scipy.fft import irfft2, rfft2

    rng = generator(*words)
    if scan["moved_mm"]:
        ideal, streaks = _moved(ideal, scan, rng)
    else:
        streaks = 0.0
    reduced = _reduced_grid(scan["matrix"], scan["pixel_mm"])
    projections = _project(ideal, scan, reduced)
    error = _hardening(projections, scan, reduced) + streaks
    noise_large, noise_sd = _large_scale_noise(projections, scan, reduced, rng)
    error += noise_large
    error += (scan["offset_hu"] + rng.normal(0, 0.15, len(ideal)).astype(np.float32))[:, None, None]
    up = [bands(_expansion(scan, reduced, axis)) for axis in (1, 0)]
    transfer, spectrum = _spectra(scan)
    stored = np.empty(ideal.shape, np.int16)
    shape = ideal.shape[1:]
    for number, slice_hu in enumerate(ideal):
        image = irfft2(rfft2(slice_hu) * transfer, s=shape, overwrite_x=True)
        for edge in (np.s_[:EDGE], np.s_[-EDGE:], np.s_[:, :EDGE], np.s_[:, -EDGE:]):
            image[edge] = slice_hu[edge]  # the transform would let the table come in from above
        grain = rng.standard_normal((*transfer.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        for sector, sd in zip(spectrum, noise_sd, strict=True):
            image += irfft2(grain * sector, s=shape, overwrite_x=True) * resized(sd[number], *up)
        image += resized(error[number], *up)
        np.clip(np.rint(image, out=image), LOWEST_HU, HIGHEST_HU, out=image)
        stored[number] = image
    return stored


def mtf(frequency_per_mm, scan):
    """Modulation transfer of a scan's kernel: 0.5 at its `mtf50_per_mm` (a little more with edge enhancement)."""
    ratio2 = (np.asarray(frequency_per_mm) / scan["mtf50_per_mm"]) ** 2
    return np.exp(-math.log(2) * ratio2) * (1 + scan["enhancement"] * 4 * ratio2 * np.exp(-ratio2))


def noise_transfer(frequency_per_mm, scan):
    """What the kernel passes of noise: its modulation transfer without the blur of focal spot and detector."""
    return mtf(frequency_per_mm, scan) * np.exp(2 * (math.pi * scan["system_mm"] * np.asarray(frequency_per_mm)) ** 2)


@functools.lru_cache(maxsize=4)
def _frequencies(matrix, pixel):
    return np.fft.fftfreq(matrix, pixel)[:, None], np.fft.rfftfreq(matrix, pixel)[None, :]


def _spectra(scan):
    """Transfer of the kernel, (rows, half columns), and amplitude of noise without its large scales, (2, rows, ...).

    The noise is in two parts, of frequencies mainly across the columns and mainly along them; together their SD is 1.
    """
    matrix, pixel = scan["matrix"], scan["pixel_mm"]
    down, across = _frequencies(matrix, pixel)
    frequency = np.hypot(down, across)
    # The ideal image has been averaged over its pixels already.
    transfer = mtf(frequency, scan) / (np.sinc(down * pixel) * np.sinc(across * pixel))
    # Filtered back-projection: power rises with the frequency, until the kernel cuts it off (Riederer 1978).
    power = frequency * noise_transfer(frequency, scan) ** 2
    weights = np.full(power.shape, 2.0)
    weights[:, [0, -1] if matrix % 2 == 0 else [0]] = 1.0
    scale = matrix**2 / math.sqrt(2 * (weights * power).sum())
    shape = np.sqrt(power * (1 - _large_scale(frequency) ** 2)) * scale
    sectors = _sectors(across, down) * shape
    return transfer.astype(np.float32), sectors.astype(np.float32)


def _sectors(across, down):
    """Share of two sectors, about 90 degrees wide, in a direction: (2, ...), sums to 1."""
    across, down = across**4, down**4
    first = np.where(across + down > 0, across, 0.5) / np.where(across + down > 0, across + down, 1.0)
    return np.stack([first, 1 - first])


def _large_scale(frequency_per_mm):
    """Share of the noise amplitude that comes from the projections."""
    return np.exp(-((frequency_per_mm / LARGE_SCALE_PER_MM) ** 2) / 2)


def _large_scale_share(scan):
    """Share of the noise variance that is of large scale."""
    down, across = _frequencies(scan["matrix"], scan["pixel_mm"])
    frequency = np.hypot(down, across)
    power = frequency * noise_transfer(frequency, scan) ** 2
    return float((power * _large_scale(frequency) ** 2).sum() / power.sum())


# --------------------------------------------------------------------------------------------------------- projections


@functools.lru_cache(maxsize=2)
def _reduced_grid(matrix, pixel):
    """Geometry of the reduced image and its parallel projections.

    Returns
    -------
    dict
        `n` pixels and rays, `pixel_mm`, `angles` within a half turn, `inside` (flat indices of the circle's pixels) and
        `back` (sparse, pixels of the circle x rays of a quarter turn): back-projection by linear interpolation, whose
        transpose projects. The other quarter turn is the same for the image turned by 90 degrees.
    """
    from scipy.sparse import csr_array

    fine = pixel < 0.9
    n, angles = (128, 96) if fine else (84, 64)
    quarter = angles // 2
    index = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    x, y = np.meshgrid(index, index)
    inside = np.flatnonzero(np.hypot(x, y).ravel() <= n / 2 - 1)
    theta = (np.arange(quarter) + 0.5) * np.pi / angles
    x, y = x.ravel()[inside, None], y.ravel()[inside, None]
    ray = x * np.cos(theta).astype(np.float32) + y * np.sin(theta).astype(np.float32) + np.float32((n - 1) / 2)
    first = ray.astype(np.int32)
    weight = ray - first
    columns = np.empty((*ray.shape, 2), np.int32)
    columns[..., 0] = first + np.arange(quarter, dtype=np.int32) * n
    columns[..., 1] = columns[..., 0] + 1
    weights = np.stack([1 - weight, weight], -1)
    starts = np.arange(len(inside) + 1, dtype=np.int32) * (2 * quarter)
    back = csr_array((weights.ravel(), columns.ravel(), starts), shape=(len(inside), quarter * n))
    return {"n": n, "pixel_mm": REDUCED_FIELD_MM / n, "angles": angles, "inside": inside, "back": back}


def _forward(images, reduced):
    """Project reduced images (m, n, n): line sums (m, angles, n), mm times the images' values."""
    m, n, inside = len(images), reduced["n"], reduced["inside"]
    turned = np.rot90(images, axes=(1, 2))
    pixels = np.concatenate([images.reshape(m, -1)[:, inside], turned.reshape(m, -1)[:, inside]])
    sums = reduced["back"].T @ np.ascontiguousarray(pixels.T)
    sums = np.ascontiguousarray(sums.T).reshape(2, m, -1, n) * np.float32(reduced["pixel_mm"])
    return np.concatenate([sums[0], sums[1]], 1)


def _backward(rays, reduced):
    """Back-project rays (m, angles, n): mean over the angles, images (m, n, n)."""
    m, n, inside, quarter = len(rays), reduced["n"], reduced["inside"], reduced["angles"] // 2
    both = np.concatenate([rays[:, :quarter].reshape(m, -1), rays[:, quarter:].reshape(m, -1)])
    pixels = (reduced["back"] @ np.ascontiguousarray(both.T)).T / np.float32(reduced["angles"])
    images = np.zeros((2 * m, n * n), np.float32)
    images[:, inside] = pixels
    images = images.reshape(2, m, n, n)
    return images[0] + np.rot90(images[1], -1, axes=(1, 2))


def _filtered(rays, reduced, window):
    """Filter rays for back-projection: ramp times `window(frequency per mm)`. Values per mm of the input's unit."""
    from scipy.fft import irfft, rfft

    n, pixel = reduced["n"], reduced["pixel_mm"]
    # The ramp as the transform of its band-limited impulse (Kak & Slaney, 3.3): sampled itself, it would lose the mean.
    ramp = np.zeros(2 * n)
    ramp[0] = 0.25
    odd = np.arange(1, n, 2)
    ramp[odd] = ramp[-odd] = -1 / (np.pi * odd) ** 2
    response = (rfft(ramp).real * window(np.fft.rfftfreq(2 * n, pixel)) * np.pi / pixel).astype(np.float32)
    return irfft(rfft(rays, 2 * n, axis=-1) * response, 2 * n, axis=-1)[..., :n]


def _reduction(scan, reduced, axis):
    """Weights (n, matrix) that average a row or column of pixels into those of the reduced image around the head."""
    ratio = reduced["pixel_mm"] / scan["pixel_mm"]
    edges = (np.arange(reduced["n"] + 1) - reduced["n"] / 2) * ratio
    edges += scan["head_middle_mm"][axis] / scan["pixel_mm"] + scan["matrix"] / 2
    pixels = np.arange(scan["matrix"])
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(covered, 0) / ratio).astype(np.float32)


def _expansion(scan, reduced, axis):
    """Weights (matrix, n) of cubic interpolation (Keys 1981) from the reduced image to pixels; its edge is extended."""
    n = reduced["n"]
    place = (np.arange(scan["matrix"]) - (scan["matrix"] - 1) / 2) * scan["pixel_mm"] - scan["head_middle_mm"][axis]
    place = place / reduced["pixel_mm"] + (n - 1) / 2
    first = np.floor(place).astype(int)
    weights = np.zeros((scan["matrix"], n), np.float32)
    for offset in (-1, 0, 1, 2):
        d = np.abs(place - first - offset)
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        np.add.at(
            weights,
            (np.arange(scan["matrix"]), np.clip(first + offset, 0, n - 1)),
            np.where(d < 1, near, np.where(d < 2, far, 0)).astype(np.float32),
        )
    return weights


def _project(ideal, scan, reduced):
    """Project soft tissue and bone: paths in cm of water and of bone of density 1; and the reduced image."""
    down, across = _reduction(scan, reduced, 1), _reduction(scan, reduced, 0)
    rows, columns = (np.flatnonzero(weights.any(0)) for weights in (down, across))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    down, across = bands(down[:, window[0]], 16), bands(across[:, window[1]], 16)
    n = reduced["n"]
    bone, whole = (np.empty((len(ideal), n, n), np.float32) for _ in range(2))
    for number, image in enumerate(ideal):
        density = image[window] * np.float32(0.001) + np.float32(1)
        share = np.clip(density * np.float32(1 / 0.3) - np.float32(1.1 / 0.3), 0, 1)
        share *= density  # from 100 HU on there is bone, from 400 HU on nothing else
        whole[number] = resized(density, down, across)
        bone[number] = resized(share, down, across)
    ratio = (SIGNAL @ BONE) / (SIGNAL @ WATER)
    paths = _forward(np.concatenate([whole - bone, bone]), reduced) * np.float32(0.1)
    soft_cm, bone_cm = paths[: len(ideal)], paths[len(ideal) :] / np.float32(ratio)
    return {"water_cm": soft_cm, "bone_cm": bone_cm, "ratio": ratio, "whole": whole, "bone": bone}


def _brain(projections):
    """Pixels of the reduced image that hold soft tissue only, (z, n, n) bool."""
    return (projections["whole"] > 0.98) & (projections["whole"] < 1.09)


def _hardening(projections, scan, reduced):
    """Error of beam hardening in bone, and of scatter, after the scanner's own correction. (z, n, n), HU.

    A beam of several energies is weakened by the paths through water and bone; the scanner takes the signal for one
    behind water alone. What its bone correction leaves of that error, filtered and back-projected, is the artefact.
    """
    water, bone = projections["water_cm"], projections["bone_cm"]
    share = SIGNAL / SIGNAL.sum()
    signal = np.zeros_like(water)
    for weight, in_water, in_bone in zip(share, WATER, BONE, strict=True):
        signal += np.float32(weight) * np.exp(-np.float32(in_water) * water - np.float32(in_bone) * bone)
    table = np.linspace(0, 60, 1201)
    behind_water = -np.log((share[:, None] * np.exp(-WATER[:, None] * table)).sum(0))
    attenuation = -np.log(signal)
    seen = np.interp(attenuation, behind_water, table).astype(np.float32)
    error = np.float32(scan["bone_residual"]) * (seen - water - np.float32(projections["ratio"]) * bone)
    slope = np.float32(1 / 0.2)
    error -= slope * np.log1p(np.float32(scan["scatter"]) * np.expm1(attenuation))
    # Where a path changes within the slice, the mean of the signals is not the signal of the mean (partial volume);
    # `partial_volume` is what the thinner rows of the detector leave of that.
    if len(water) > 1:
        change = np.gradient(water + np.float32(projections["ratio"]) * bone, axis=0)
        error -= np.float32(scan["partial_volume"]) * np.minimum(change * change * np.float32(0.1 / 12), 0.25)
    image = _backward(_filtered(error, reduced, _smooth_window), reduced) * np.float32(10_000)
    image = (_without_bone(image, projections["bone"]) + _stray(projections, scan, reduced)) * _disc(reduced)
    # The scanner is calibrated on heads: brain has no error on average in the large slices above the base. Where there
    # is more bone for the brain, near the vertex and in the posterior fossa, brain is brighter.
    brain = _brain(projections)
    upper = brain.copy()
    upper[: len(brain) // 2] = False
    area = upper.sum((1, 2))
    upper[area < 0.8 * area.max()] = False
    chosen = image[upper if upper.any() else brain]
    return image - (np.median(chosen) if len(chosen) else np.float32(0))


def _stray(projections, scan, reduced):
    """What spreads from bone into all around: the far tails of the point spread. (z, n, n), HU."""
    bone = np.maximum(projections["whole"] - np.float32(1.05), 0) * np.float32(1000)  # what is denser than brain
    near = _gaussian(reduced["n"], HALO_MM / reduced["pixel_mm"])
    wide = _gaussian(reduced["n"], VEIL_MM[0] / reduced["pixel_mm"])
    along = _gaussian(len(bone), VEIL_MM[1] / scan["thickness_mm"])
    along /= along.sum(1, keepdims=True)  # the head goes on beyond the last slice
    far = np.tensordot(along, wide @ bone @ wide, 1)
    return np.float32(scan["halo"]) * (near @ bone @ near) + np.float32(scan["veil"]) * far


def _gaussian(n, sd):
    """Weights (n, n) that blur n samples by a Gaussian."""
    index = np.arange(n)
    weights = np.exp(-(((index[:, None] - index) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
    return weights.astype(np.float32)


def _without_bone(error, bone):
    """Continue the error beside bone into it: bone's own would spread over the coarse pixels around it."""
    from scipy.ndimage import gaussian_filter

    free = (bone < 0.03).astype(np.float32)
    weight = gaussian_filter(free, (0, 2.0, 2.0), truncate=3.0)
    beside = gaussian_filter(error * free, (0, 2.0, 2.0), truncate=3.0) / np.maximum(weight, 1e-3)
    # Even the free pixels next to bone hold some of it.
    share = np.clip((gaussian_filter(free, (0, 1.0, 1.0), truncate=2.0) - 0.6) / 0.38, 0, 1)
    return beside + share * (error - beside)


def _smooth_window(frequency_per_mm):
    """Apodisation, which keeps the coarse pixels and the few views from showing."""
    return np.exp(-((frequency_per_mm / 0.14) ** 2) / 2)


def _disc(reduced):
    """1 within the circle of the reduced image, fading at its edge. (n, n)."""
    index = np.arange(reduced["n"], dtype=np.float32) - np.float32((reduced["n"] - 1) / 2)
    return soft(np.float32(reduced["n"] / 2 - 5) - np.hypot(index, index[:, None]), 6.0)


def _large_scale_noise(projections, scan, reduced, rng):
    """Noise of the projections, filtered and back-projected, and the SD that all noise has at each place.

    Returns
    -------
    array, (z, n, n)
        Noise of large scale, HU, streaked where few photons get through.
    array, (2, z, n, n)
        SD of the whole noise, HU, for each of the two sectors of `_sectors` as if it held everywhere.
    """
    like_water = projections["water_cm"] + np.float32(projections["ratio"]) * projections["bone_cm"]
    variance = np.exp(np.float32(0.2) * like_water)
    variance += np.float32(ELECTRONIC) * variance * variance
    # The bow-tie filter lets fewer photons through to the rim of the field.
    theta = (np.arange(reduced["angles"]) + 0.5) * np.pi / reduced["angles"]
    middle_mm = np.stack([np.cos(theta), np.sin(theta)], 1) @ scan["head_middle_mm"]
    rays_mm = (np.arange(reduced["n"]) - (reduced["n"] - 1) / 2) * reduced["pixel_mm"] + middle_mm[:, None]
    missing_cm = 2 * (BOW_TIE_CM - np.sqrt(np.maximum(BOW_TIE_CM**2 - (rays_mm / 10) ** 2, 0)))
    variance *= np.exp(0.2 * scan["bow_tie"] * missing_cm).astype(np.float32)
    # The tube gives more current where the head is thicker, seen from that angle or in that slice.
    variance /= variance.max(-1, keepdims=True) ** np.float32(scan["modulation"])
    disc = _disc(reduced)
    share = 2 * _sectors(np.cos(theta), np.sin(theta)).astype(np.float32)
    images = _backward((variance * share[:, None, :, None]).reshape(-1, *variance.shape[1:]), reduced)
    ring = (disc > 0.4) & (disc < 1)
    images = images * disc + images[:, ring].mean(1)[:, None, None] * (1 - disc)
    images = images.reshape(2, *variance.shape[:1], *disc.shape)
    image = images.mean(0)
    brain = _brain(projections)
    area = brain.sum((1, 2))
    # The noise asked for is that of the large slices through the brain.
    levels = [np.mean(image[z][brain[z]]) for z in np.flatnonzero(area > max(100, 0.6 * area.max()))]
    scale = np.float32(scan["noise_hu"] ** 2 / (np.median(levels) if levels else image.mean()))
    sd = np.sqrt(images * scale)

    def window(frequency):  # with what linear interpolation between rays will take away
        return noise_transfer(frequency, scan) * _large_scale(frequency) / np.sinc(frequency * reduced["pixel_mm"]) ** 2

    rays = rng.standard_normal(variance.shape, dtype=np.float32) * np.sqrt(variance * scale)
    noise = _backward(_filtered(rays, reduced, window), reduced)
    impulse = np.zeros(reduced["n"])
    impulse[reduced["n"] // 2] = 1.0
    answer = _filtered(impulse, reduced, window).astype(float)
    # Linear interpolation between rays averages neighbours: variance 2/3 and covariance 1/3.
    power = (2 / 3 * answer @ answer + 1 / 3 * answer[1:] @ answer[:-1]) / reduced["angles"]
    return noise * np.float32(math.sqrt(_large_scale_share(scan) / power)) * disc, sd


def _moved(ideal, scan, rng):
    """Let the head move in the middle of the turn: two heads over each other, and streaks between their views.

    Returns
    -------
    array, (z, y, x)
        Mixed slices.
    array, (z, n, n)
        Streaks on the reduced grid, HU.
    """
    reduced = _reduced_grid(scan["matrix"], scan["pixel_mm"])
    mixed, shifts, shares = np.empty_like(ideal), [], []
    for number, image in enumerate(ideal):
        size = scan["moved_mm"] * rng.uniform(0.3, 1.0)
        direction = rng.uniform(0, 2 * np.pi)
        shift = np.array([math.cos(direction), math.sin(direction)]) * size
        share = rng.uniform(0.25, 0.5)
        pixels = np.rint(shift / scan["pixel_mm"]).astype(int)
        mixed[number] = (1 - share) * image + share * np.roll(image, (pixels[1], pixels[0]), (0, 1))
        shifts.append(shift)
        shares.append(share)
    down, across = _reduction(scan, reduced, 1), _reduction(scan, reduced, 0)
    whole = np.stack([down @ (image * np.float32(0.001) + 1) @ across.T for image in ideal])
    rays = _forward(whole, reduced)
    theta = (np.arange(reduced["angles"]) + 0.5) * np.pi / reduced["angles"]
    along = np.outer([s[0] for s in shifts], np.cos(theta)) + np.outer([s[1] for s in shifts], np.sin(theta))
    place = np.arange(reduced["n"]) - (along / reduced["pixel_mm"])[..., None]
    first = np.clip(np.floor(place).astype(int), 0, reduced["n"] - 2)
    weight = np.clip(place - first, 0, 1).astype(np.float32)
    moved = np.take_along_axis(rays, first, -1) * (1 - weight) + np.take_along_axis(rays, first + 1, -1) * weight
    start = rng.uniform(0, 1, len(ideal))[:, None]
    phase = (np.arange(reduced["angles"]) / reduced["angles"] - start) % 1.0
    shares = np.array(shares)[:, None]
    after = (phase < shares).astype(np.float32) - shares
    rays = (moved - rays) * after[..., None].astype(np.float32)
    streaks = _backward(_filtered(rays, reduced, _smooth_window), reduced) * np.float32(1000)
    return mixed, streaks * _disc(reduced)
