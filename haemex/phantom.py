"""Synthetic patients with a known truth, written as DICOM, and haematomas implanted into a real head series.

No public data set has baseline CT, follow-up CT and expansion labels, so the demo and the tests make their patients.
`draw_patients` decides everything a cohort table and a renderer need, `make_patient` renders one patient.

Rendering works in the head's own frame (mm; x to the left, y to the back, z to the vertex, origin near the foramina of
Monro): every structure is a level function, positive inside, about the distance to its surface in mm. Smooth levels
are computed on a coarse in-plane grid and interpolated; fine random textures are sums of plane waves, which on the
planes of a scan, tilted or not, are matrix products. Each slice is the mean of thinner sub-slices (partial volume).
"""

import io
import math
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from zlib import crc32

import numpy as np

from haemex.errors import InputError
from haemex.files import write_atomically
from haemex.nifti import write_volume
from haemex.tables import read_table, table_bytes

# Table 1 of the paper, training and testing dataset: fraction present, mean and SD, or median-like centre and spread.
TABLE_1 = {
    "train": {
        "age_years": (62.2, 13.4),
        "onset_to_ct_h": (3.4, 2.0),
        "nihss": (8.7, 5.2),
        "volume_ml": (17.4, 15.3),
        "male": 132 / 189,
        "hypertension": 140 / 187,
        "diabetes": 19 / 187,
        "prestroke": 13 / 189,
        "antiplatelet": 13 / 189,
        "anticoagulation": 2 / 189,
        "intraventricular_haemorrhage": 70 / 189,
        "hypodensity": 132 / 189,
        "black_hole": 28 / 189,
        "swirl": 116 / 189,
        "blend": 24 / 189,
        "fluid_level": 13 / 189,
        "irregular_shape": 143 / 189,
        "heterogeneous_density": 100 / 189,
    },
    "test": {
        "age_years": (63.3, 12.0),
        "onset_to_ct_h": (3.9, 2.2),
        "nihss": (8.5, 7.0),
        "volume_ml": (17.8, 18.8),
        "male": 54 / 77,
        "hypertension": 62 / 77,
        "diabetes": 17 / 77,
        "prestroke": 11 / 77,
        "antiplatelet": 7 / 77,
        "anticoagulation": 0.0,
        "intraventricular_haemorrhage": 31 / 77,
        "hypodensity": 44 / 77,
        "black_hole": 12 / 77,
        "swirl": 44 / 77,
        "blend": 13 / 77,
        "fluid_level": 9 / 77,
        "irregular_shape": 50 / 77,
        "heterogeneous_density": 34 / 77,
    },
}
PREVALENCE = 74 / 266  # of expansion, paper, Results
SPECK_MM3 = 20.0  # ASSUME: readers outline no smaller piece

# How the two readers agreed (paper, Methods), and how closely a sign follows what the image shows:
# ASSUME: weights of the latent heterogeneity and margin irregularity are chosen, no source reports them.
SIGNS = {
    "hypodensity": {"kappa": 0.886, "heterogeneity": 0.6, "irregularity": 0.0},
    "black_hole": {"kappa": 0.906, "heterogeneity": 0.5, "irregularity": 0.0},
    "swirl": {"kappa": 0.848, "heterogeneity": 0.65, "irregularity": 0.0},
    "blend": {"kappa": 0.951, "heterogeneity": 0.2, "irregularity": 0.0},
    "fluid_level": {"kappa": 0.892, "heterogeneity": 0.2, "irregularity": 0.0},
    "irregular_shape": {"kappa": 0.859, "heterogeneity": 0.0, "irregularity": 0.9},
    "heterogeneous_density": {"kappa": 0.932, "heterogeneity": 0.9, "irregularity": 0.0},
}

COHORT_DATES = {
    "train": (date(2012, 2, 1), date(2018, 8, 31)),
    "test": (date(2018, 9, 1), date(2019, 10, 31)),
}
NOT_ELIGIBLE = (  # exclusion and inclusion criteria, paper, Methods
    "infratentorial",
    "ventricular_only",
    "died_or_surgery",
    "poor_image_quality",
    "age",
    "onset_to_ct",
    "followup_interval",
)
TRAPS = ("scout", "thin", "tilt")
VOLUME_LIMITS_ML = (4.0, 60.0)

# ASSUME: the log odds of expansion per standard deviation; what can be seen gives an ideal reader an AUC near 0.85,
# a little above the paper's 0.80 for its network.
VISIBLE_EFFECTS = {"volume": 0.6, "heterogeneity": 1.3, "irregularity": 0.8}
HETEROGENEITY_IRREGULARITY_CORRELATION = 0.3
ONSET_EFFECT, CHANCE_EFFECT = -0.35, 0.6  # what the image does not show

COLUMNS = (
    "patient",
    "admission_date",
    "age_years",
    "sex",
    "haemorrhage_site",
    "onset_to_ct_h",
    "ct_to_followup_h",
    "died_or_surgery_before_followup",
    "poor_image_quality",
    "baseline_ct",
    "followup_ct",
    "baseline_mask",
    "followup_mask",
    "followup_volume_ml",
    "hypertension",
    "diabetes",
    "prestroke",
    "antiplatelet",
    "anticoagulation",
    "nihss",
    "intraventricular_haemorrhage",
    *SIGNS,
    *(f"{marker}_rater2" for marker in SIGNS),
    "baseline_mask_rater2",
)

# Supplemental Table 1, with fields of view wide enough for a whole head in the phantom's poses.
SCANNERS = {
    "optima": {
        "manufacturer": "GE MEDICAL SYSTEMS",
        "model": "Optima CT540",
        "kernel": "SOFT",
        "bone_kernel": "BONE",
        "kvp": 120,
        "field_of_view_mm": (250.0, 250.0),
        "padding": -2000,
    },
    "flash": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Definition Flash",
        "kernel": "H30s",
        "bone_kernel": "H60s",
        "kvp": 120,
        "field_of_view_mm": (220.0, 270.0),
        "padding": None,
    },
    "force": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Force",
        "kernel": "Hr36f",
        "bone_kernel": "Hr59f",
        "kvp": 110,
        "field_of_view_mm": (218.0, 228.0),
        "padding": None,
    },
    "perspective": {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Perspective",
        "kernel": "H31s",
        "bone_kernel": "H60s",
        "kvp": 130,
        "field_of_view_mm": (230.0, 230.0),
        "padding": None,
    },
}

# Where haematomas sit, head frame of the left side, mm, with the elongation of their axes (x, y, z).
SITES = {
    "putamen": ((27.0, -4.0, 5.0), (0.75, 1.35, 1.0)),
    "thalamus": ((15.0, 11.0, 7.0), (0.9, 1.1, 1.0)),
    "frontal": ((30.0, -36.0, 22.0), (0.9, 1.1, 1.0)),
    "parietal": ((34.0, 30.0, 33.0), (0.9, 1.1, 1.0)),
    "temporal": ((43.0, 2.0, -12.0), (0.85, 1.35, 0.9)),
    "occipital": ((27.0, 48.0, 14.0), (0.9, 1.2, 0.95)),
    "cerebellum": ((22.0, 45.0, -33.0), (1.0, 1.0, 0.9)),
    "ventricle": ((20.0, 30.0, 14.0), (0.8, 1.4, 1.0)),
}
SUPRATENTORIAL = {
    "putamen": 0.42, "thalamus": 0.23, "frontal": 0.1, "parietal": 0.1, "temporal": 0.08, "occipital": 0.07
}  # fmt: skip
DEEP = ("putamen", "thalamus")

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _generator(seed, *purpose):
    """Make a generator of its own for each purpose, so that the order of jobs changes nothing."""
    return np.random.default_rng([seed, crc32(" ".join(purpose).encode())])


# --------------------------------------------------------------------------------------------------------------- draw


def draw_patients(settings, seed):
    """Draw the patients of a synthetic study: clinical table, haematomas, labels. Nothing is rendered.

    Rates of the paper's Table 1 are met as closely as the number of patients allows (the sign is given to the patients
    with the highest scores), continuous columns are drawn stratified, and between 25 % and 33 % of each cohort expand.

    Parameters
    ----------
    settings : dict
        Section `phantom` of the config: `train`, `test` (eligible patients per cohort), `excluded_each` (patients per
        reason not to be eligible).
    seed : int
        The study's seed.

    Returns
    -------
    list of dict
        Sorted by patient (and admission date): `row`, the cohort table's columns without the paths (None: missing),
        and `truth`, scalars only: what `make_patient` renders, `volume_ml` and `followup_ml`, `expansion`, `p_visible`
        and `p_all` (probability of expansion given what the image shows; given everything), `reason` (empty for an
        eligible patient), `trap`, `scanner`.
    """
    groups = [_draw_group("train", settings["train"], seed), _draw_group("test", settings["test"], seed)]
    eligible = [patient for group in groups for patient in group]
    _assign_traps(eligible, seed)
    patients = eligible + _draw_not_eligible(settings["excluded_each"], seed)
    patients.sort(key=lambda patient: patient["row"]["admission_date"])
    digits = max(3, len(str(len(patients))))
    for number, patient in enumerate(patients, 1):
        patient["row"] = {"patient": f"D{number:0{digits}d}"} | patient["row"]
    return patients


def _stratified_normal(rng, n):
    """Draw n standard normal values, one from each n-th part of the distribution, shuffled."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse(p) for p in (rng.permutation(n) + rng.uniform(0.02, 0.98, n)) / n])


def _log_normal(z, mean, sd, lowest, highest):
    """Take standard normal z to a log-normal distribution of this mean and SD, cut at both ends."""
    variance = math.log(1 + (sd / mean) ** 2)
    normal = NormalDist(math.log(mean) - variance / 2, math.sqrt(variance))
    below, above = normal.cdf(math.log(lowest)), normal.cdf(math.log(highest))
    cdf = NormalDist().cdf
    return np.array([math.exp(normal.inv_cdf(below + (above - below) * cdf(value))) for value in z])


def _top(scores, rate):
    """Mark the round(n * rate) highest scores with 1."""
    present = np.zeros(len(scores), int)
    present[np.argsort(-np.asarray(scores), kind="stable")[: round(len(scores) * rate)]] = 1
    return present


def _draw_group(cohort, n, seed, balanced=True):
    """Draw n patients after the marginals of one cohort of Table 1."""
    rng = _generator(seed, "draw", cohort, "eligible" if balanced else "not eligible")
    table = TABLE_1[cohort]

    def normal():
        return _stratified_normal(rng, n)

    z_volume, heterogeneity, z_onset = normal(), normal(), normal()
    rho = HETEROGENEITY_IRREGULARITY_CORRELATION
    irregularity = rho * heterogeneity + math.sqrt(1 - rho**2) * normal()
    volume_ml = _log_normal(z_volume, *table["volume_ml"], *VOLUME_LIMITS_ML)
    site = _draw_sites(rng, n)

    signs = {}
    for marker, weight in SIGNS.items():
        rest = math.sqrt(1 - weight["heterogeneity"] ** 2 - weight["irregularity"] ** 2)
        score = weight["heterogeneity"] * heterogeneity + weight["irregularity"] * irregularity + rest * normal()
        if marker == "black_hole":  # a black hole is a hypodensity
            score = np.where(signs["hypodensity"] == 1, score, -np.inf)
        signs[marker] = _top(score, table[marker])
    second = {marker: _second_reading(signs[marker], SIGNS[marker]["kappa"], rng) for marker in SIGNS}

    deep = np.isin(site, DEEP)
    history = {name: _top(normal(), table[name]) for name in ("hypertension", "diabetes", "prestroke")}
    history |= {name: _top(normal(), table[name]) for name in ("antiplatelet", "anticoagulation")}
    history["intraventricular_haemorrhage"] = _top(
        deep + 0.6 * z_volume + normal(), table["intraventricular_haemorrhage"]
    )
    age = np.clip(table["age_years"][0] + table["age_years"][1] * normal(), 24, 92)
    onset = _log_normal(z_onset, *table["onset_to_ct_h"], 0.4, 7.9)
    severity = 0.6 * z_volume + 0.8 * normal()
    nihss = np.clip(np.rint(table["nihss"][0] + table["nihss"][1] * severity), 0, 36)
    male = _top(normal(), table["male"])

    visible = sum(
        VISIBLE_EFFECTS[name] * value
        for name, value in (("volume", z_volume), ("heterogeneity", heterogeneity), ("irregularity", irregularity))
    )
    p_all = _sigmoid(_intercept() + visible + ONSET_EFFECT * z_onset + CHANCE_EFFECT * normal())
    p_visible = _expected_sigmoid(_intercept() + visible, math.hypot(ONSET_EFFECT, CHANCE_EFFECT))
    expansion = _draw_expansion(p_all, rng) if balanced else (rng.random(n) < p_all).astype(int)
    followup_ml = _draw_followup(volume_ml, expansion, rng)

    first, last = COHORT_DATES[cohort]
    days = rng.integers(0, (last - first).days + 1, n)
    read_twice = rng.permutation(n) < (4 if cohort == "train" else 2) if balanced else np.zeros(n, bool)
    scanners = np.array(list(SCANNERS))[rng.permutation(n) % len(SCANNERS)]
    missing = {name: rng.permutation(n) < math.ceil(n / 100) for name in ("hypertension", "nihss")}
    missing["diabetes"] = missing["hypertension"]

    patients = []
    for i in range(n):
        row = {
            "admission_date": (first + timedelta(days=int(days[i]))).isoformat(),
            "age_years": int(age[i]),
            "sex": "m" if male[i] else "f",
            "haemorrhage_site": "supratentorial",
            "onset_to_ct_h": round(float(onset[i]), 1),
            "ct_to_followup_h": round(float(rng.uniform(20.2, 23.8)), 1),
            "died_or_surgery_before_followup": 0,
            "poor_image_quality": 0,
            "nihss": int(nihss[i]),
        }
        row |= {name: int(values[i]) for name, values in (history | signs).items()}
        row |= {f"{name}_rater2": int(values[i]) for name, values in second.items()}
        if balanced:
            row |= {name: None for name, where in missing.items() if where[i]}
        truth = {
            "reason": "",
            "cohort": cohort,
            "expansion": int(expansion[i]),
            "volume_ml": float(volume_ml[i]),
            "followup_ml": float(followup_ml[i]),
            "p_visible": float(p_visible[i]),
            "p_all": float(p_all[i]),
            "heterogeneity": float(heterogeneity[i]),
            "irregularity": float(irregularity[i]),
            "site": str(site[i]),
            "side": 1 if rng.random() < 0.5 else -1,
            "scanner": str(scanners[i]),
            "second_reading": int(read_twice[i]),
            "trap": "",
        }
        patients.append({"row": row, "truth": truth})
    return patients


def _draw_sites(rng, n):
    """Share n haematomas among the supratentorial sites, after their frequency."""
    edges = np.cumsum(list(SUPRATENTORIAL.values()))
    return np.array(list(SUPRATENTORIAL))[np.searchsorted(edges, (rng.permutation(n) + 0.5) / n, side="right")]


def _second_reading(first, kappa, rng):
    """Change as many readings as the kappa between two readers with equal rates asks for."""
    rate = first.mean()
    changed = rng.permutation(len(first)) < round(len(first) * (1 - kappa) * 2 * rate * (1 - rate))
    return np.where(changed, 1 - first, first)


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def _expected_sigmoid(x, sd):
    """Mean of sigmoid(x + noise) over normal noise of this SD, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return _sigmoid(np.asarray(x)[..., None] + sd * nodes) @ (weights / weights.sum())


def _intercept():
    """Find the log odds at which the mean probability of expansion is the paper's prevalence."""
    effects, rho = VISIBLE_EFFECTS, HETEROGENEITY_IRREGULARITY_CORRELATION
    variance = sum(effect**2 for effect in effects.values()) + ONSET_EFFECT**2 + CHANCE_EFFECT**2
    variance += 2 * rho * effects["heterogeneity"] * effects["irregularity"]
    low, high = -10.0, 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected_sigmoid(middle, math.sqrt(variance)) < PREVALENCE else (low, middle)
    return middle


def _draw_expansion(p, rng):
    """Draw labels with probabilities p, given that 25 % to 33 % of them (at least one) are positive."""
    lowest = math.ceil(0.25 * len(p))
    highest = max(lowest, math.floor(0.33 * len(p)))
    while True:
        labels = rng.random((256, len(p))) < p
        fits = np.flatnonzero((labels.sum(1) >= lowest) & (labels.sum(1) <= highest))
        if len(fits):
            return labels[fits[0]].astype(int)


def _draw_followup(volume_ml, expansion, rng):
    """Draw follow-up volumes that are expanded, or not, by any reading of the paper's definition, with a margin.

    Expanded: grown by at least 45 %, or by at least 8.5 mL. Not expanded: by less than 3.5 mL and less than 16 %.
    """
    n = len(volume_ml)
    relative, absolute = volume_ml * rng.uniform(0.45, 1.1, n), rng.uniform(8.5, 20.0, n)
    stable = np.clip(volume_ml * rng.uniform(-0.12, 0.16, n), -3.5, 3.5)
    return volume_ml + np.where(expansion == 1, np.where(volume_ml < 25, relative, absolute), stable)


def _assign_traps(eligible, seed):
    """Give each trap to one eligible patient; a gantry is tilted on the GE scanner only."""
    order = _generator(seed, "traps").permutation(len(eligible))
    for trap, index in zip(TRAPS, order, strict=False):
        truth = eligible[index]["truth"]
        truth["trap"] = trap
        if trap == "tilt":
            truth["scanner"] = "optima"


def _draw_not_eligible(each, seed):
    """Draw the patients who must not enter the study, `each` per reason."""
    patients = _draw_group("train", each * len(NOT_ELIGIBLE), seed, balanced=False) if each else []
    rng = _generator(seed, "draw", "reasons")
    first, last = COHORT_DATES["train"][0], COHORT_DATES["test"][1]
    for i, patient in enumerate(patients):
        row, truth = patient["row"], patient["truth"]
        row["admission_date"] = (first + timedelta(days=int(rng.integers(0, (last - first).days + 1)))).isoformat()
        truth["reason"] = NOT_ELIGIBLE[i % len(NOT_ELIGIBLE)]
        truth["volume_ml"], truth["followup_ml"] = min(truth["volume_ml"], 30.0), min(truth["followup_ml"], 36.0)
        match truth["reason"]:
            case "infratentorial":
                row["haemorrhage_site"], truth["site"] = "infratentorial", "cerebellum"
            case "ventricular_only":
                row |= {"haemorrhage_site": "ventricular", "intraventricular_haemorrhage": 1}
                truth["site"] = "ventricle"
            case "died_or_surgery":
                row |= {"died_or_surgery_before_followup": 1, "ct_to_followup_h": None}
            case "poor_image_quality":
                row["poor_image_quality"] = 1
            case "age":
                row["age_years"] = int(rng.integers(12, 18))
            case "onset_to_ct":
                row["onset_to_ct_h"] = round(float(rng.uniform(8.5, 16.0)), 1)
            case "followup_interval":
                row["ct_to_followup_h"] = round(float(rng.choice([rng.uniform(5, 19), rng.uniform(25, 48)])), 1)
        if truth["site"] in ("cerebellum", "ventricle"):
            scale = min(1.0, (12.0 if truth["site"] == "cerebellum" else 8.0) / max(truth["followup_ml"], 1.0))
            truth["volume_ml"] *= scale
            truth["followup_ml"] *= scale
    return patients


def best_reachable_auc(p_visible):
    """Expected area under the ROC curve of the ideal reader, who scores each patient by its own p_visible.

    Parameters
    ----------
    p_visible : array-like, (n,)
        Probability of expansion given everything the image shows.

    Returns
    -------
    float
        Sum over pairs i != j of p_i (1 - p_j) [p_i > p_j, ties one half], divided by the sum of p_i (1 - p_j).

    Raises
    ------
    ValueError
        No pair can hold one patient with and one without expansion.
    """
    p = np.asarray(p_visible, float)
    weight = np.outer(p, 1 - p)
    np.fill_diagonal(weight, 0.0)
    if weight.sum() == 0:
        raise ValueError(f"{len(p)} probabilities hold no pair of patients with and without expansion")
    order = (p[:, None] > p) + 0.5 * (p[:, None] == p)
    return float((weight * order).sum() / weight.sum())


def reachable_auc(truth_path, patients):
    """Read what an ideal reader of some patients' images would reach.

    Parameters
    ----------
    truth_path : path-like
        From `write_truth`.
    patients : sequence of str
        The patients read, e.g. those of the test cohort.

    Returns
    -------
    float
        `best_reachable_auc` of these patients.
    """
    visible = {row["patient"]: row["p_visible"] for row in read_table(truth_path)}
    return best_reachable_auc([visible[patient] for patient in patients])


def write_cohort_table(patients, path, folder):
    """Write the cohort table of synthetic patients; an identical table is left alone, modification time included.

    Parameters
    ----------
    patients : list of dict
        From `draw_patients`.
    path : path-like
        The table, TSV; paths in it are `folder` joined with what `make_patient` writes there.
    folder : path-like
        The folder given to `make_patient`.
    """
    rows = []
    for patient in patients:
        home = Path(folder, patient["row"]["patient"])
        paths = {name: home / name.removesuffix("_ct") for name in ("baseline_ct", "followup_ct")}
        paths |= {name: home / f"{name}.nii.gz" for name in ("baseline_mask", "followup_mask")}
        if patient["row"]["died_or_surgery_before_followup"]:
            del paths["followup_ct"], paths["followup_mask"]
        if patient["truth"]["second_reading"]:
            paths["baseline_mask_rater2"] = home / "baseline_mask_rater2.nii.gz"
        rows.append(patient["row"] | {name: value.as_posix() for name, value in paths.items()})
    _write_table(rows, COLUMNS, path)


def write_truth(patients, path):
    """Write what is known about synthetic patients beside their cohort table, TSV; left alone if identical."""
    rows = [{"patient": patient["row"]["patient"]} | patient["truth"] for patient in patients]
    _write_table(rows, tuple(rows[0]), path)


def _write_table(rows, columns, path):
    content = table_bytes([{name: row.get(name) for name in columns} for row in rows], columns)
    path = Path(path)
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


# ------------------------------------------------------------------------------------------------------ random fields


def _waves(rng, wavelength_mm, count):
    """Draw a smooth random field of variance 1: a sum of plane waves of about one wavelength.

    Returns
    -------
    dict
        `k` (count, 3), radians per mm, and `phase` (count,).
    """
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = direction * (2 * np.pi / wavelength_mm * rng.uniform(0.75, 1.3, count))[:, None]
    return {"k": k.astype(np.float32), "phase": rng.uniform(0, 2 * np.pi, count).astype(np.float32)}


def _field_at(waves, x, y, z):
    """Evaluate a field at points, arrays of one shape, mm."""
    points = np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32)
    angle = points @ waves["k"].T
    angle += waves["phase"]
    np.cos(angle, out=angle)
    return (angle.sum(1) * np.float32(math.sqrt(2 / len(waves["phase"])))).reshape(x.shape)


def _field_on(waves, plane, rows, columns):
    """Evaluate a field on parallel planes: a plane wave is a product of a row and a column factor there.

    Parameters
    ----------
    waves : dict
        From `_waves`.
    plane : dict
        `origins` (s, 3), `row_step` and `column_step` (3,), mm per pixel, all in the head frame.
    rows, columns : array, (ny,), (nx,)
        Pixel indices.

    Returns
    -------
    array, (s, ny, nx)
    """
    k, phase = waves["k"].astype(float), waves["phase"].astype(float)
    down = (plane["origins"] @ k.T + phase)[:, None, :] + (rows[:, None] * (k @ plane["row_step"]))[None]
    across = np.outer(columns, k @ plane["column_step"])
    left = np.concatenate([np.cos(down), -np.sin(down)], -1).astype(np.float32)
    right = np.concatenate([np.cos(across), np.sin(across)], -1).astype(np.float32)
    return (left @ right.T) * np.float32(math.sqrt(2 / len(phase)))


def _points(plane, rows, columns):
    """Give the head-frame coordinates x, y, z of pixels of parallel planes, each (s, ny, nx), float32, mm."""
    base = plane["origins"][:, None, None, :].astype(np.float32)
    down = (rows[:, None] * plane["row_step"]).astype(np.float32)[None, :, None, :]
    across = (columns[:, None] * plane["column_step"]).astype(np.float32)[None, None, :, :]
    return tuple(base[..., axis] + down[..., axis] + across[..., axis] for axis in range(3))


# ------------------------------------------------------------------------------------------------------------ anatomy


def _draw_head(patient, seed):
    """Draw the anatomy that a patient's two scans share. Lengths in mm, densities in HU."""
    row = patient["row"]
    rng = _generator(seed, row["patient"], "head")
    size = (1.0 if row["sex"] == "m" else 0.965) * np.clip(rng.normal(1.0, 0.018), 0.97, 1.03)
    atrophy = np.clip((row["age_years"] - 45) / 45 + rng.normal(0, 0.15), 0.0, 1.1)
    return {
        "half": np.array([66.0, 82.0, 71.5]) * size * rng.normal(1.0, 0.012, 3),
        "size": size,
        "skull_mm": rng.uniform(5.5, 7.5),
        "scalp_mm": rng.uniform(4.0, 6.5),
        "atrophy": atrophy,
        "ventricle": (0.85 + 0.5 * atrophy) * rng.uniform(0.9, 1.1) * np.array([1.0, rng.uniform(0.88, 1.12)]),
        "rim_mm": 0.8 + 1.3 * atrophy,
        "sulcus_mm": 0.55 + 0.75 * atrophy,
        "grey": rng.normal(36.5, 0.6),
        "white": rng.normal(29.5, 0.6),
        "leukoaraiosis": rng.uniform(0.0, 5.0) * atrophy,
        "bone": rng.normal(1250.0, 70.0),
        "calcified": rng.uniform(0.0, 1.0, 3) < (0.75, 0.75, 0.7),
        "calcium": rng.uniform(150.0, 420.0),
        "shape": _waves(rng, 130.0, 12),
        "thickness": _waves(rng, 60.0, 12),
        "sulci": _waves(rng, 23.0, 48),
        "texture": _waves(rng, 13.0, 24),
        "cells": _waves(rng, 8.0, 24),
    }


def _ellipsoid(x, y, z, centre, radii):
    """Level of an ellipsoid, about the distance to its surface in mm."""
    r = np.sqrt(
        ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2
    )
    return (1 - r) * np.float32(min(radii))


def _bump(x, width):
    return np.exp(-((x / width) ** 2))


def _step(x, width):
    return 0.5 + 0.5 * np.tanh(x / (2 * width))


def _cavity(x, y, z, head):
    """Levels of the cranial vault and of the skull base, positive on the brain's side, mm.

    Returns
    -------
    vault : array
        Radial distance to the inner table of the vault.
    base : array
        Height above the floor of the three cranial fossae, or distance into the foramen magnum.
    petrous : array
        1 on the petrous ridges, 0 away from them.
    """
    half, size = head["half"], head["size"]
    rho = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    width = half[0] * (1 + 0.1 * np.clip(y / half[1], -1.2, 1.0))
    height = np.where(z > 0, half[2], 105.0 * size)
    power = 2.25
    r = (np.abs(x / width) ** power + np.abs(y / half[1]) ** power + np.abs(z / height) ** power) ** (1 / power)
    wobble = _field_at(head["shape"], x, y, z)
    r = r * (1 + 0.012 * wobble) + np.float32(1e-6)
    vault = rho / r - rho

    x, y, z = np.abs(x) / size, y / size, z / size
    sphenoid = y + 17 + 0.3 * x
    behind_sphenoid, ridge = _step(sphenoid, 2.5), y - (2 + 0.5 * x)
    behind_petrous = _step(ridge, 2.5)
    lateral = _step(x - 15, 3)
    petrous = _bump(ridge, 7) * lateral
    middle_fossa = -43 + 15 * _bump(x, 14)
    anterior_fossa = -27 + 10 * _bump(x - 30, 17) * _bump(y + 60, 26)
    floor = (1 - behind_sphenoid) * anterior_fossa + behind_sphenoid * (
        (1 - behind_petrous) * middle_fossa - 60 * behind_petrous
    )
    floor = floor + 14 * petrous + 6 * _bump(sphenoid, 5) * lateral + 1.5 * wobble
    foramen = 14 - np.hypot(x, y - 34)
    base = np.maximum(z - floor, np.minimum(foramen, -45 - z)) * size
    return vault, base, petrous


def _pushed(x, y, z, head, lesion, vault, base):
    """Where the tissue now at these points was before the haematoma pushed it aside.

    The displacement keeps the volume of tissue around an ellipsoid and dies out towards the skull.
    ASSUME: a haematoma displaces `lesion["push"]` of its volume; the rest is destroyed tissue.
    """
    if lesion is None:
        return x, y, z
    dx, dy, dz = (p - np.float32(c) for p, c in zip((x, y, z), lesion["centre"], strict=True))
    rho3 = np.maximum(_ellipsoidal_radius(dx, dy, dz, lesion), 0.5) ** 3
    scale = np.cbrt(np.maximum(1 - lesion["push"] * lesion["radius"] ** 3 / rho3, 0.05))
    move = (scale - 1) * np.clip(np.minimum(vault, base + 10) / 14, 0, 1)
    return x + dx * move, y + dy * move, z + dz * move


VENTRICLE_PATH = (  # (x, y, z) and radius of the left lateral ventricle, mm: horns, body, atrium
    ((11.0, -35.0, 2.0), 3.5),
    ((8.5, -18.0, 13.0), 5.0),
    ((10.0, 6.0, 21.0), 5.0),
    ((18.0, 28.0, 18.0), 5.5),
    ((26.0, 38.0, 8.0), 6.0),
    ((23.0, 57.0, 4.0), 2.0),
)
TEMPORAL_HORN = (((26.0, 38.0, 8.0), 4.0), ((34.0, 20.0, -13.0), 2.2), ((30.0, 0.0, -21.0), 1.6))


def _ventricles(x, y, z, head):
    """Level of the ventricles, points before displacement, mm."""
    size = head["size"]
    if z.min() > 42 * size or z.max() < -55 * size:
        return np.full(x.shape, -50.0, np.float32)
    widening = np.where(x > 0, head["ventricle"][0], head["ventricle"][1]).astype(np.float32)
    ax, y, z = np.abs(x) / size, y / size, z / size
    level = np.full(x.shape, -50.0, np.float32)
    for path in (VENTRICLE_PATH, TEMPORAL_HORN):
        for (start, r0), (end, r1) in pairwise(path):
            along = np.subtract(end, start)
            length2 = float(along @ along)
            px, py, pz = ax - start[0], y - start[1], z - start[2]
            t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / length2, 0, 1)
            distance = np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)
            np.maximum(level, (r0 + t * (r1 - r0)) * widening - distance, out=level)
    # The septum parts the bodies; without it wide ventricles would melt into one.
    level = np.minimum(level, ax - 1.0)
    third = np.minimum(1.2 + 1.3 * head["ventricle"].mean() - ax, 14 - np.hypot(y + 4, z + 4))
    fourth = _ellipsoid(ax, y, z, (0, 31, -36), (7, 5, 10))
    return np.maximum(np.maximum(level, third), fourth) * size


def _deep_grey(x, y, z, head):
    """Level of thalamus, lentiform nucleus and caudate head, mm."""
    ax, y, z = np.abs(x) / head["size"], y / head["size"], z / head["size"]
    thalamus = _ellipsoid(ax - 0.2 * (y - 8), y, z, (11, 8, 4), (8, 14, 9))
    lentiform = _ellipsoid(ax - 0.25 * (y + 6), y, z, (25, -6, 0), (6.5, 17, 10))
    caudate = _ellipsoid(ax - 0.25 * (y + 20), y, z, (16, -22, 9), (4.5, 11, 9))
    return np.maximum(np.maximum(thalamus, lentiform), caudate) * head["size"]


def _cisterns(x, y, z, head, wave):
    """Level of the cerebrospinal fluid in fissures and cisterns, made uneven by a field `wave`; mm."""
    ax, y, z = np.abs(x) / head["size"], y / head["size"], z / head["size"]
    wide = 0.5 + 0.9 * head["atrophy"]
    sylvian = np.minimum(0.7 + wide - np.abs(y + 9 - 0.9 * (z - 2)), np.minimum(ax - 38, 18 - np.abs(z - 2)))
    insular = np.minimum(
        0.5 + wide - np.abs(np.hypot(ax - 15, (y + 2) / 1.25) - 24), np.minimum(ax - 33, 13 - np.abs(z - 2))
    )
    around_callosum = (np.hypot(y / 50, z / 33) - 1) * 20
    fissure = np.minimum(
        0.3 + 0.8 * wide - np.abs(x / head["size"] + 0.25 * wave) + 0.1 * wave,
        np.minimum(around_callosum, z + np.where(y < 0, 20, 4)),
    )
    suprasellar = _ellipsoid(ax, y, z, (0, -15, -22), (12, 9, 6))
    ambient = np.minimum(0.9 + 0.25 * wave - np.abs(np.hypot(ax / 1.1, y - 10) - 17), np.minimum(9 - np.abs(z + 17), y))
    quadrigeminal = _ellipsoid(ax, y, z, (0, 28, -5), (9, 4, 6))
    prepontine = _ellipsoid(ax, y, z, (0, -4, -36), (13, 3, 12))
    magna = _ellipsoid(ax, y, z, (0, 62, -53), (15, 9, 6))
    level = np.maximum.reduce([sylvian, insular, fissure, suprasellar, ambient, quadrigeminal, prepontine, magna])
    return level * head["size"]


def _face(x, y, z, head, base):
    """Levels of air spaces, of orbits and of globes under the skull base, mm; air keeps off the brain's floor."""
    size = head["size"]
    if base.min() > 3:
        nothing = np.full(x.shape, -99.0, np.float32)
        return nothing, nothing, nothing
    ax, y, z = np.abs(x) / size, y / size, z / size
    cells = 3.0 * _field_at(head["cells"], x, y, z) + 1.0
    mastoid = np.minimum(_ellipsoid(ax, y, z, (50, 30, -46), (8, 12, 12)), cells)
    ethmoid = np.minimum(_ellipsoid(ax, y, z, (0, -50, -40), (12, 22, 12)), cells)
    sphenoid = _ellipsoid(ax, y, z, (0, -14, -43), (12, 10, 9))
    antrum = _ellipsoid(ax, y, z, (28, -52, -72), (14, 16, 14))
    nose = np.minimum(_ellipsoid(ax, y, z, (5, -60, -66), (5, 30, 16)), 2.0)
    air = np.maximum.reduce([mastoid, ethmoid, sphenoid, antrum, nose]) * size
    orbit = _ellipsoid(ax, y, z, (32, -63, -42), (18, 21, 16)) * size
    globe = _ellipsoid(ax, y, z, (32, -66, -42), (12, 12, 12)) * size
    return np.minimum(air, -base - 3), np.minimum(orbit, -base - 2.5), globe


LEVELS = (
    "vault", "base", "outer", "skin", "floor", "air", "orbit", "globe", "sinus", "muscle",
    "ventricle", "cistern", "sulci", "deep_grey", "cerebellum", "falx", "calcium", "medial",
)  # fmt: skip


def _levels(x, y, z, head, lesion):
    """Evaluate every smooth level of the head at points of the head frame.

    Returns
    -------
    array, (len(LEVELS), ...)
        mm, positive inside.
    """
    size = head["size"]
    vault, base, petrous = _cavity(x, y, z, head)
    field = _field_at(head["thickness"], x, y, z)
    front = _bump(x / size, 17) * _bump(z / size + 12, 14) * (y < -50 * size)
    thick = head["skull_mm"] * (1 + 0.16 * field - 0.3 * _bump(np.abs(x) - 62, 14) * (z < 25))
    thick = np.maximum(thick, 3.8) + 6 * front
    scalp = (
        head["scalp_mm"] * (1 + 0.2 * field)
        + 3.5 * _bump(np.abs(x) - 66, 16) * _step(12 - z, 8)
        + 7 * _step(-38 - z, 6)
    )
    outer = vault + thick
    skin = outer + scalp
    sinus = np.minimum(np.minimum(-vault - 2.5, outer - 2.5), (front - 0.45) * 20)
    ring = np.minimum(21 * size - np.hypot(x, y - 34 * size), z + 74 * size)
    floor = np.maximum(base + 5.0 + 11 * petrous, ring)
    muscle = np.maximum(np.minimum(3.0 - np.abs(outer + 2.5), 15 - z), -base - 9)

    px, py, pz = _pushed(x, y, z, head, lesion, vault, base)
    rho = np.sqrt(px * px + py * py + pz * pz) + np.float32(1e-3)
    onto = 60 * size / (0.85 * rho + 9 * size)  # sulci run radially: their field hardly changes along a radius
    sulci = _field_at(head["sulci"], px * onto, py * onto, pz * onto) * np.float32(23.0 / (2 * np.pi))
    ventricle = _ventricles(px, py, pz, head)
    callosum = (np.hypot(py / 52, (pz - 2) / 35) - 1) * 20
    falx = np.minimum(0.7 - np.abs(px + 0.1 * sulci), np.minimum(callosum, pz + np.where(py < 0, 14, 2)))
    medial = np.maximum(np.abs(px), np.maximum(-callosum, -18 - pz)) + 3
    cerebellum = np.minimum(-13 * size - pz - 0.004 * px * px, py - 14 * size)
    calcium = np.full(x.shape, -20.0, np.float32)
    for present, centre, radius in zip(
        head["calcified"], ((24, 37, 9), (-24, 37, 9), (0, 25, 0)), (2.6, 2.6, 1.9), strict=True
    ):
        if present:
            distance = np.sqrt(sum((p - c * size) ** 2 for p, c in zip((px, py, pz), centre, strict=True)))
            calcium = np.maximum(calcium, radius - distance)
    levels = (
        vault, base, outer, skin, floor, *_face(x, y, z, head, base), sinus, muscle, ventricle,
        _cisterns(px, py, pz, head, sulci), sulci, _deep_grey(px, py, pz, head), cerebellum, falx, calcium, medial,
    )  # fmt: skip
    return np.stack([np.asarray(level, np.float32) for level in levels])


# ---------------------------------------------------------------------------------------------------------- haematoma


def _draw_lesion(patient, head, seed):
    """Draw the shape and texture that a haematoma keeps from baseline to follow-up. Lengths in mm of the head frame."""
    row, truth = patient["row"], patient["truth"]
    rng = _generator(seed, row["patient"], "haematoma")
    centre, elongation = SITES[truth["site"]]
    centre = (np.array(centre) + rng.uniform(-3, 3, 3)) * head["size"] * (truth["side"], 1, 1)
    lesion = _draw_shape(rng, centre, elongation, truth["volume_ml"], truth["irregularity"])
    radius = lesion["radius"]
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([math.cos(angle), math.sin(angle), 0.0])
    return lesion | {
        "side": truth["side"],
        "where": truth["site"],
        "density": rng.uniform(60.0, 69.0),
        # ASSUME: density varies by 3.5 HU at the median, measurably more where expansion is likelier
        "density_sd": float(np.clip(3.5 * math.exp(0.5 * truth["heterogeneity"]), 1.2, 11.0)),
        "density_field": _waves(rng, 9.0, 40),
        "swirl_field": _waves(rng, max(1.6 * radius, 14.0), 24),
        "direction": direction,
        "signs": {marker for marker in SIGNS if row[marker]},
        "ventricular_blood": row["intraventricular_haemorrhage"],
        "blood_level_mm": rng.uniform(10.0, 34.0),
    }


def _draw_shape(rng, centre, elongation, volume_ml, irregularity):
    """Draw an irregular ellipsoid: `inverse` takes offsets in mm to equivalent radii, `outline` roughens them."""
    radius = _radius(volume_ml)
    axes = np.array(elongation) * np.exp(rng.normal(0, 0.07, 3))
    axes /= np.prod(axes) ** (1 / 3)
    turn = _rotation(*rng.normal(0, 12, 3))
    return {
        "centre": np.asarray(centre, float),
        "inverse": np.diag(1 / axes) @ turn.T,
        "radius": radius,
        "push": 0.6,
        # ASSUME: a margin is irregular by 10 % of the radius at the median
        "roughness": float(np.clip(0.10 * math.exp(0.6 * irregularity), 0.03, 0.28)),
        "outline": _waves(rng, 1.5 * radius, 32),
    }


def _ellipsoidal_radius(dx, dy, dz, lesion):
    inverse = lesion["inverse"].astype(np.float32)
    return np.sqrt(sum((row[0] * dx + row[1] * dy + row[2] * dz) ** 2 for row in inverse))


def _outline(x, y, z, lesion, field):
    """Equivalent radius of each point, mm: the haematoma of any size is where it stays below a threshold."""
    dx, dy, dz = (p - np.float32(c) for p, c in zip((x, y, z), lesion["centre"], strict=True))
    # Far outside the roughness stops to grow, so that no islands appear there.
    rho = _ellipsoidal_radius(dx, dy, dz, lesion)
    return rho + np.float32(lesion["roughness"]) * np.minimum(rho, np.float32(1.6 * lesion["radius"])) * field


def _lesion_window(plane, lesion, reach_mm, shape):
    """Pixel rows and columns (as aranges) that a cube about the haematoma covers on one plane; None if it misses."""
    offset = lesion["centre"] - plane["origins"].mean(0)
    steps = np.stack([plane["row_step"], plane["column_step"]])
    pixel = np.linalg.norm(steps, axis=1)
    middle = steps @ offset / pixel**2
    across = np.linalg.norm(offset - middle @ steps)
    if across > reach_mm:
        return None
    low = np.maximum(np.floor(middle - reach_mm / pixel).astype(int), 0)
    high = np.minimum(np.ceil(middle + reach_mm / pixel).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    return np.arange(low[0], high[0]), np.arange(low[1], high[1])


def _slices(window, first=(0, 0)):
    """Turn pixel rows and columns into slices of an array that starts at pixel `first`."""
    return tuple(slice(w[0] - start, w[-1] + 1 - start) for w, start in zip(window, first, strict=True))


def _radius(volume_ml):
    """Radius of the ball of this volume, mm."""
    return (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)


def _reach(volume_ml):
    """How far from its centre a rough, elongated haematoma can get, mm."""
    return 2.6 * _radius(volume_ml) + 8


def _allowed(x, y, z, head, lesion):
    """Where parenchymal blood may lie: off the skull, on its own side, not in a ventricle (or only there)."""
    vault, base, _ = _cavity(x, y, z, head)
    px, py, pz = _pushed(x, y, z, head, lesion, vault, base)
    ventricle = _ventricles(px, py, pz, head)
    if lesion["where"] == "ventricle":
        return ventricle > 0.3
    inside = (np.minimum(vault, base) > 6.0) & (ventricle < 0) & (px * lesion["side"] > 2.0)
    return inside if lesion["where"] != "cerebellum" else inside & (pz < -16 * head["size"])


def _grow(scan, head, lesion, volume_ml, roughening=None):
    """Find the outline's threshold at which the haematoma on the slices of a scan has a given volume.

    Returns
    -------
    mask : array of uint8, (z, y, x)
        Pixels whose centre, in the middle of the slice, lies in the haematoma; specks that no reader would outline are
        left out.
    threshold : float
        Equivalent radius, mm.

    Raises
    ------
    InputError
        The head has no room for this volume.
    """
    from scipy.ndimage import label

    shape = (scan["matrix"], scan["matrix"])
    found = []
    for number in range(len(scan["origins"])):
        plane = _plane(scan, number, (0.0,))
        window = _lesion_window(plane, lesion, _reach(volume_ml), shape)
        if window is None:
            continue
        x, y, z = _points(plane, *window)
        outline = _outline(x, y, z, lesion, _field_on(lesion["outline"], plane, *window))
        if roughening is not None:
            outline = outline + np.float32(0.7) * _field_on(roughening, plane, *window)
        outline[~_allowed(x, y, z, head, lesion)] = np.inf
        found.append((number, window, outline[0]))
    count = max(1, round(volume_ml * 1000 / scan["voxel_mm3"]))
    values = np.concatenate([outline.ravel() for _, _, outline in found]) if found else np.empty(0)
    values = np.sort(values[np.isfinite(values)])
    if len(values) < count:
        raise InputError(f"no room for a haematoma of {volume_ml:.1f} mL", "draw a smaller one")
    threshold = values[count - 1]
    mask = np.zeros((len(scan["origins"]), *shape), np.uint8)
    for number, window, outline in found:
        mask[(number, *_slices(window))] = outline <= threshold
    pieces, _ = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    return mask * (sizes * scan["voxel_mm3"] >= SPECK_MM3)[pieces], float(threshold)


def _blood(x, y, z, lesion, plane, window):
    """Density of the haematoma, HU, with the signs of supplemental Table 2 that it shows."""
    radius = np.float32(lesion["radius"])
    dx, dy, dz = (p - np.float32(c) for p, c in zip((x, y, z), lesion["centre"], strict=True))
    signs, direction = lesion["signs"], lesion["direction"]
    blood = lesion["density"] + np.float32(lesion["density_sd"]) * _field_on(lesion["density_field"], plane, *window)
    blood = np.clip(blood, 50, 84)
    along = dx * np.float32(direction[0]) + dy * np.float32(direction[1])
    across = dy * np.float32(direction[0]) - dx * np.float32(direction[1])
    if "blend" in signs:  # two regions more than 18 HU apart, sharp border
        blood = blood - 23 * _soft(along - 0.35 * radius, 0.8)
    if "swirl" in signs:  # streaks as dense as brain
        swirl = 1.5 - np.abs(_field_on(lesion["swirl_field"], plane, *window)) * np.float32(0.3 * radius)
        blood = blood - 25 * _soft(np.minimum(swirl, 0.85 * radius - np.sqrt(dx * dx + dy * dy + dz * dz)), 1.5)
    if "hypodensity" in signs:
        hole = max(0.26 * radius, 2.6) - np.sqrt((along + 0.3 * radius) ** 2 + across**2 + (0.6 * dz) ** 2)
        blood = blood - 18 * _soft(hole, 2.0)
    blood = np.maximum(blood, 34)
    if "black_hole" in signs:  # more than 28 HU below its surroundings, sharp border, round
        hole = max(0.28 * radius, 3.2) - np.sqrt(along**2 + (across - 0.35 * radius) ** 2 + (0.6 * dz) ** 2)
        blood = blood - 36 * _soft(hole, 0.8)
    if "fluid_level" in signs:  # less dense than brain above a straight line, the patient supine
        blood = np.where(dy < -0.4 * radius, np.float32(23), blood + 4)
    return blood


# -------------------------------------------------------------------------------------------------------- acquisition


def _rotation(x_deg, y_deg, z_deg):
    """Rotation matrix about x, then y, then z."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a), math.sin(a)) for a in np.radians([x_deg, y_deg, z_deg]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _draw_scan(patient, head, timepoint, matrix, seed):
    """Draw one acquisition: where the head lies, and the planes through it. Patient frame LPS, mm.

    Returns
    -------
    dict
        `origins` (slices, 3), centre of pixel (0, 0) of each slice, sorted along `normal`; `row_direction` (from column
        to column) and `column_direction` (from row to row), as in ImageOrientationPatient; `pixel_mm`, `thickness_mm`,
        `voxel_mm3` (with the true distance between slices), `turn` and `position` of the head, `noise_hu`.
    """
    row, truth = patient["row"], patient["truth"]
    rng = _generator(seed, row["patient"], timepoint, "acquisition")
    shared = _generator(seed, row["patient"], "scanner")
    scanner = SCANNERS[truth["scanner"]]
    reach = head["half"] + head["skull_mm"] + head["scalp_mm"]
    field_of_view = max(shared.uniform(*scanner["field_of_view_mm"]), 2 * reach[1] + 22)
    pixel = round(field_of_view / matrix, 6)
    tilt = math.radians(15.0) if truth["trap"] == "tilt" else 0.0
    position = np.array([rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-20, 20)])
    turn = _rotation(*rng.normal(0, (2.5, 1.5, 2.5)))
    row_direction = np.array([1.0, 0.0, 0.0])
    column_direction = np.array([0.0, math.cos(tilt), -math.sin(tilt)])
    normal = np.cross(row_direction, column_direction)
    step = 5.0 / math.cos(tilt)  # table step; planes stay 5 mm apart
    top, bottom = reach[2] + rng.uniform(1, 5), -60 * head["size"]
    slices = int(np.clip(math.ceil((top - bottom) / step), 27, 34))
    corner = position + (matrix - 1) / 2 * pixel * -(row_direction + column_direction)
    heights = top - step * np.arange(slices)[::-1]
    return {
        "origins": np.round(corner + heights[:, None] * np.array([0.0, 0.0, 1.0]), 4),
        "row_direction": row_direction,
        "column_direction": np.round(column_direction, 8),
        "normal": normal,
        "pixel_mm": pixel,
        "thickness_mm": 5.0,
        "voxel_mm3": pixel**2 * step * math.cos(tilt),
        "tilt_deg": math.degrees(tilt),
        "matrix": matrix,
        "turn": turn,
        "position": position,
        "noise_hu": rng.uniform(3.0, 4.6) * (3.0 if row["poor_image_quality"] else 1.0),
        "moved_mm": 5.0 if row["poor_image_quality"] else 0.0,
        "blur_mm": max(1.2, pixel),  # a pixel averages over its width
    }


def _plane(scan, number, parts):
    """Give the sub-slices of one slice in the head frame; `parts` are offsets in slice thicknesses."""
    offsets = np.outer(np.asarray(parts) * scan["thickness_mm"], scan["normal"])
    return {
        "origins": (scan["origins"][number] + offsets - scan["position"]) @ scan["turn"],
        "row_step": scan["column_direction"] * scan["pixel_mm"] @ scan["turn"],
        "column_step": scan["row_direction"] * scan["pixel_mm"] @ scan["turn"],
    }


def _soft(level, width):
    """Fraction of a pixel inside a level, with an edge `width` mm wide."""
    inside = level * np.float32(1 / width)
    inside += np.float32(0.5)
    return np.clip(inside, 0, 1, out=inside)


def _paint(image, value, fraction):
    """Lay a tissue over an image, in place."""
    image += fraction * (value - image)


def _interpolation(fine, step):
    """Linear weights (fine, coarse) from every step-th of `fine` pixels (and one beyond) to all of them."""
    coarse = np.arange(0, fine - 1 + step, step)
    position = np.arange(fine) / step
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(coarse))))
    return coarse, weights.astype(np.float32)


def _render(scan, head, lesion, threshold, oedema_mm, seed_words, sub_slices=3):
    """Render a scan.

    Parameters
    ----------
    scan, head, lesion : dict
        From `_draw_scan`, `_draw_head`, `_draw_lesion`.
    threshold : float
        Equivalent radius at which the haematoma ends, from `_grow`, mm.
    oedema_mm : float
        Width of the rim around the haematoma.
    seed_words : tuple
        Seed and purpose of the noise.
    sub_slices : int
        Thinner slices averaged into one.

    Returns
    -------
    array of int16, (z, y, x)
        HU.
    """
    matrix, pixel = scan["matrix"], scan["pixel_mm"]
    parts = (np.arange(sub_slices) + 0.5) / sub_slices - 0.5
    low, high = _head_window(scan, head)
    step = max(1, round(3.0 / pixel))
    coarse_rows, up_rows = _interpolation(high[1] - low[1], step)
    coarse_columns, up_columns = _interpolation(high[0] - low[0], step)
    rows, columns = np.arange(low[1], high[1]), np.arange(low[0], high[0])
    outside = _holder(scan)
    noise = _noise(scan, seed_words)
    buffer = np.empty((len(LEVELS), sub_slices, len(rows), len(columns)), np.float32)  # fresh memory is slow
    volume = np.empty((len(scan["origins"]), matrix, matrix), np.int16)
    for number in range(len(volume)):
        plane = _plane(scan, number, parts)
        points = _points(plane, coarse_rows + low[1], coarse_columns + low[0])
        levels = _refined(_levels(*points, head, lesion), up_rows, up_columns, buffer)
        head_hu = _compose(levels, plane, rows, columns, head, scan)
        _add_lesion(head_hu, plane, rows, columns, lesion, threshold, oedema_mm, scan)
        tissue = _soft(levels["skin"], 1.0).mean(0)
        image, weight = outside.copy(), np.full((matrix, matrix), 0.6, np.float32)
        patch = np.s_[low[1] : high[1], low[0] : high[0]]
        image[patch] += head_hu["hu"].mean(0) + 1000 - tissue * (outside[patch] + 1000)
        base = np.exp(-(((plane["origins"][:, 2].mean() + 45) / 22) ** 2))
        weight[patch] += (0.4 + 0.35 * base) * tissue
        if scan["moved_mm"]:
            image = _move(image, scan["moved_mm"] / pixel, number)
        image += weight * noise()
        volume[number] = np.rint(np.clip(image, -1024, 3071))
    return volume


def _refined(levels, up_rows, up_columns, buffer):
    """Interpolate coarse levels to pixels, into a buffer; one that is nowhere near positive becomes a single value.

    Returns
    -------
    dict
        Level name to array (s, ny, nx), or (1, 1, 1).
    """
    near = levels.max((1, 2, 3)) > -12
    wide = levels[near] @ up_columns.T
    full = iter(np.matmul(up_rows, wide, out=buffer[: len(wide)]))
    far = np.full((1, 1, 1), -99, np.float32)
    return {name: next(full) if shown else far for name, shown in zip(LEVELS, near, strict=True)}


def _head_window(scan, head):
    """First and last pixel (column, row) that the head can reach on any slice."""
    reach = head["half"] + head["skull_mm"] + head["scalp_mm"] + 16
    corner = scan["origins"][0]
    steps = scan["pixel_mm"] * np.array([1.0, scan["column_direction"][1]])
    middle = (scan["position"] - corner)[:2] / steps
    half = reach[:2] * 1.03 / steps
    low = np.maximum(np.floor(middle - half).astype(int), 0)
    high = np.minimum(np.ceil(middle + half).astype(int) + 1, scan["matrix"])
    return low, high


def _compose(level, plane, rows, columns, head, scan):
    """Lay skin, fat, muscle, bone, air, eyes and brain over each other, on every sub-slice.

    Returns
    -------
    dict
        `hu` (s, ny, nx) and what the haematoma needs to know: `brain`, fraction of brain cavity, and `ventricle`.
    """
    blur = scan["blur_mm"]
    texture = _field_on(head["texture"], plane, rows, columns)
    cells = _field_on(head["cells"], plane, rows, columns)
    cavity = np.minimum(level["vault"], level["base"])

    hu = np.full(cavity.shape, -92.0, np.float32)
    hu += 6 * texture
    _paint(hu, 54 + 3 * cells, _soft(level["muscle"] - 1.5 * texture, 2.0))
    _paint(hu, 35, _soft(2.0 - level["skin"], 1.0))
    shell = np.minimum(level["outer"], level["floor"])
    bone = head["bone"] - (520 + 90 * cells) * _soft(np.minimum(-cavity, shell) - 1.6, 1.4)
    _paint(hu, bone, _soft(shell, blur))
    _paint(hu, 900, _soft(level["orbit"] + 2.0, blur) * _soft(-level["base"] - 1.0, blur))
    _paint(hu, -85, _soft(level["orbit"], blur))
    _paint(hu, 14, _soft(level["globe"], blur) * _soft(level["orbit"] + 6, blur))
    _paint(hu, -960, _soft(np.maximum(level["air"], level["sinus"]), blur))

    brain = _soft(cavity, blur)
    _paint(hu, _brain(level, cavity, texture, head), brain)
    # Beam hardening: brighter under the vault, a dark bar between the petrous bones.
    near = np.exp(np.minimum(-cavity, 0) / 5)
    hu += (3.5 * near - 2.0) * brain
    height = plane["origins"][:, 2].mean()
    if height < -20:
        y = plane["origins"][:, 1][:, None, None] + rows[:, None] * np.float32(plane["row_step"][1])
        hu -= 7 * _bump(y - 16, 9).astype(np.float32) * np.float32(_bump(height + 42, 14)) * (1 + 0.8 * texture) * brain
    skin = _soft(level["skin"], 1.0)
    hu = -1000 + (hu + 1000) * skin
    return {"hu": hu, "brain": brain, "ventricle": np.broadcast_to(_soft(level["ventricle"], blur), hu.shape)}


def _brain(level, cavity, texture, head):
    """Density of brain and cerebrospinal fluid, HU."""
    depth = 17.0
    surface = np.minimum(cavity, level["medial"])
    # Sulci narrow towards their end; cortex lines them and the surface.
    half_width = head["sulcus_mm"] * np.clip(1 - (surface - 3) / (depth - 3), 0, 1.3)
    sulcus = half_width - np.abs(level["sulci"])
    brain = np.full(cavity.shape, head["white"], np.float32)
    cortex = np.maximum(head["rim_mm"] + 3.0 - surface, np.minimum(sulcus + 2.6, depth + 3 - surface))
    cortex = np.maximum(cortex, np.maximum(level["deep_grey"], level["cistern"] + 2.5))
    _paint(brain, head["grey"], _soft(cortex, 1.6))
    _paint(brain, head["grey"] - 2, _soft(level["cerebellum"], 3.0))
    brain += 0.7 * texture
    around = _soft(level["ventricle"] + 4.0, 8.0)
    brain -= np.float32(head["leukoaraiosis"]) * around
    fluid = np.maximum(np.maximum(head["rim_mm"] - cavity, np.minimum(sulcus, depth - surface)), level["cistern"])
    _paint(brain, 8, _soft(fluid, 1.2))
    _paint(brain, 52, 0.8 * _soft(level["falx"], 1.2))
    _paint(brain, 6, _soft(level["ventricle"], 1.2))
    _paint(brain, head["calcium"], _soft(level["calcium"], 1.2))
    return brain


def _add_lesion(head_hu, plane, rows, columns, lesion, threshold, oedema_mm, scan):
    """Lay oedema, haematoma and ventricular blood into a composed slice, in place."""
    if lesion["ventricular_blood"] and lesion["where"] != "ventricle":
        _add_ventricular_blood(head_hu, plane, rows, columns, lesion)
    # The outline is a radius of a rough ellipsoid: in its long direction a rim of 1 is wider than 1 mm.
    window = _lesion_window(plane, lesion, 2.0 * threshold + 3 * oedema_mm + 8, scan["matrix"])
    if window is None:
        return
    window = tuple(w[(w >= own[0]) & (w <= own[-1])] for w, own in zip(window, (rows, columns), strict=True))
    if not all(len(w) for w in window):
        return
    patch = (slice(None), *_slices(window, (rows[0], columns[0])))
    x, y, z = _points(plane, *window)
    depth = np.float32(threshold) - _outline(x, y, z, lesion, _field_on(lesion["outline"], plane, *window))
    hu, brain, ventricle = (head_hu[name][patch] for name in ("hu", "brain", "ventricle"))
    if lesion["where"] == "ventricle":
        _paint(hu, lesion["density"], _soft(depth, 2.0) * ventricle)
        return
    tissue = brain * (1 - ventricle)
    oedema = np.clip(1 + depth / np.float32(oedema_mm), 0, 1) * tissue
    hu -= 9 * oedema * (hu > 15)
    _paint(hu, _blood(x, y, z, lesion, plane, window), _soft(depth, 1.4) * tissue)


def _add_ventricular_blood(head_hu, plane, rows, columns, lesion):
    """Let blood settle in the lateral ventricles of a supine patient; no part of the haematoma mask."""
    y = plane["origins"][:, 1][:, None, None] + (
        rows[:, None] * plane["row_step"][1] + columns * plane["column_step"][1]
    ).astype(np.float32)
    x = plane["origins"][:, 0][:, None, None] + (
        rows[:, None] * plane["row_step"][0] + columns * plane["column_step"][0]
    ).astype(np.float32)
    settled = _soft((y - np.float32(lesion["blood_level_mm"])).astype(np.float32), 4.0)
    settled *= np.where(x * lesion["side"] > 0, np.float32(1.0), np.float32(0.45))
    _paint(head_hu["hu"], lesion["density"] - 4, settled * head_hu["ventricle"] * head_hu["brain"])


def _noise(scan, seed_words):
    """Prepare noise with the spectrum of a smooth CT kernel: little at low frequencies, none at the highest.

    Returns
    -------
    function
        Draws the noise of the next slice, array (y, x), HU.
    """
    from scipy.fft import irfft2

    matrix, pixel = scan["matrix"], scan["pixel_mm"]
    frequency = np.hypot(np.fft.fftfreq(matrix, pixel)[:, None], np.fft.rfftfreq(matrix, pixel))
    shape = np.sqrt(frequency) * np.exp(-((frequency * scan["blur_mm"] / 0.42) ** 2) / 2)
    weights = np.full(shape.shape, 2.0)
    weights[:, 0] = 1.0
    scale = scan["noise_hu"] * matrix**2 / math.sqrt((weights * shape**2).sum() * 2)
    shape = (shape * scale).astype(np.float32)
    rng = _generator(*seed_words)

    def draw():
        spectrum = rng.standard_normal((*shape.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        return irfft2(spectrum * shape, s=(matrix, matrix), overwrite_x=True)

    return draw


def _holder(scan):
    """Draw what surrounds the head: air, and the shell of a head holder open to the front. Array (y, x), HU."""
    index = (np.arange(scan["matrix"], dtype=np.float32) - (scan["matrix"] - 1) / 2) * np.float32(scan["pixel_mm"])
    x, y = index[None, :], index[:, None]
    radius = np.hypot(x / 1.0, np.maximum(y - 4, -0.35 * np.abs(y - 4)) / 1.1)
    image = np.full((scan["matrix"], scan["matrix"]), -1000.0, np.float32)
    shell = np.minimum(1.7 - np.abs(radius - 104), y + 12)
    _paint(image, 130, _soft(shell.astype(np.float32), scan["blur_mm"]))
    return image


def _move(image, pixels, number):
    """Blur a slice as a moving head does: the mean of itself and two shifted copies."""
    shift = round(pixels * (1 + number % 3) / 2)
    return (image + np.roll(image, shift, 1) + np.roll(image, -shift // 2, 0)) / 3


# -------------------------------------------------------------------------------------------------------------- write


def make_patient(patient, folder, matrix, seed):
    """Render a synthetic patient: two DICOM folders and their masks, under `folder`/<patient>/.

    Files: `baseline/`, `followup/` (DICOM, names in no order), `baseline_mask.nii.gz`, `followup_mask.nii.gz` and
    `baseline_mask_rater2.nii.gz` (for everybody, so that a workflow knows its files; the cohort table names it for the
    patients who were read twice). A mask has the slices of its series sorted along the normal, and the affine ITK-SNAP
    gives it, which squares a tilted series.

    Parameters
    ----------
    patient : dict
        From `draw_patients`.
    folder : path-like
        Made if it does not exist.
    matrix : int
        Pixels per row and column.
    seed : int
        The seed given to `draw_patients`.
    """
    name, truth = patient["row"]["patient"], patient["truth"]
    home = Path(folder, name)
    head = _draw_head(patient, seed)
    lesion = _draw_lesion(patient, head, seed)
    for timepoint, volume_ml, oedema_mm in (
        ("baseline", truth["volume_ml"], 3.0),
        ("followup", truth["followup_ml"], 5.0),
    ):
        scan = _draw_scan(patient, head, timepoint, matrix, seed)
        now = lesion | {"radius": _radius(volume_ml)}
        mask, threshold = _grow(scan, head, now, volume_ml)
        hu = _render(scan, head, now, threshold, oedema_mm, (seed, name, timepoint, "noise"))
        _write_mask(home / f"{timepoint}_mask.nii.gz", mask, scan)
        if timepoint == "baseline":
            rng = _generator(seed, name, "second reading")
            second, _ = _grow(scan, head, now, volume_ml * rng.uniform(0.95, 1.05), _waves(rng, 15.0, 24))
            _write_mask(home / "baseline_mask_rater2.nii.gz", second, scan)
        _write_scan(home / timepoint, hu, scan, patient, timepoint, seed)
        if truth["trap"] == "scout":
            _write_scout(home / timepoint, hu, scan, patient, timepoint, seed)
        if truth["trap"] == "thin":
            thin = _thin(scan)
            sharp = _render(thin, head, now, threshold, oedema_mm, (seed, name, timepoint, "thin noise"), sub_slices=1)
            _write_scan(home / timepoint, sharp, thin, patient, timepoint, seed, series="bone")


def _thin(scan):
    """Reconstruct an acquisition a second time over the same length, in slices of half the thickness, sharp kernel."""
    halves = 2 * len(scan["origins"]) - 1
    origins = np.round(
        scan["origins"][0] + np.arange(halves)[:, None] * (scan["origins"][1] - scan["origins"][0]) / 2, 4
    )
    return scan | {
        "origins": origins,
        "thickness_mm": scan["thickness_mm"] / 2,
        "blur_mm": max(0.7, scan["pixel_mm"]),
        "noise_hu": 3.0 * scan["noise_hu"],
    }


def _write_mask(path, mask, scan):
    """Write a mask with the affine ITK gives a series: orthogonal axes, whatever the tilt of the gantry."""
    step = np.linalg.norm(scan["origins"][1] - scan["origins"][0])
    affine = np.eye(4)
    affine[:3, 0] = scan["row_direction"] * scan["pixel_mm"]
    affine[:3, 1] = scan["column_direction"] * scan["pixel_mm"]
    affine[:3, 2] = scan["normal"] * step
    affine[:3, 3] = scan["origins"][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, mask, LPS_TO_RAS @ affine)


def _uid(*words):
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["haemex phantom", *(str(word) for word in words)])


def _dataset(patient, timepoint, seed):
    """Make the attributes that all images of one examination share. The identity is invented, to be searched for."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    row, truth = patient["row"], patient["truth"]
    name = row["patient"]
    scanner = SCANNERS[truth["scanner"]]
    rng = _generator(seed, name, "identity")
    start = datetime.fromisoformat(row["admission_date"]) + timedelta(minutes=int(rng.integers(0, 24 * 60)))
    if timepoint == "followup":
        start += timedelta(hours=row["ct_to_followup_h"] or 24.0)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = CTImageStorage
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = start.strftime("%Y%m%d")
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = start.strftime("%H%M%S")
    data.AccessionNumber = f"ACC{rng.integers(10**7, 10**8)}"
    data.Modality = "CT"
    data.Manufacturer = scanner["manufacturer"]
    data.ManufacturerModelName = scanner["model"]
    data.InstitutionName = "Synthetic General Hospital"
    data.ReferringPhysicianName = "Invented^Doctor"
    data.StudyDescription = "Head without contrast"
    data.PatientName = f"Phantom^{name}"
    data.PatientID = f"HOSP{rng.integers(10**6, 10**7)}"
    birth = date.fromisoformat(row["admission_date"]).year - row["age_years"] - 1
    data.PatientBirthDate = f"{birth}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    data.PatientSex = row["sex"].upper()
    data.PatientAge = f"{row['age_years']:03d}Y"
    data.BodyPartExamined = "HEAD"
    data.KVP = str(scanner["kvp"])
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = _uid(seed, name, timepoint, "study")
    data.FrameOfReferenceUID = _uid(seed, name, timepoint, "frame")
    data.StudyID = "1"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = 16
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = "35", "90"
    if scanner["padding"] is None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 0
    else:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 1
        data.add_new("PixelPaddingValue", "SS", scanner["padding"])
    return data


def _write_scan(folder, hu, scan, patient, timepoint, seed, series="head"):
    """Write the slices of one series as CT images, under names in no order."""
    name, scanner = patient["row"]["patient"], SCANNERS[patient["truth"]["scanner"]]
    data = _dataset(patient, timepoint, seed)
    bone = series == "bone"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SeriesDescription = "Head bone thin" if bone else "Head 5.0"
    data.SeriesNumber, data.AcquisitionNumber = (3 if bone else 2), 1
    data.SeriesInstanceUID = _uid(seed, name, timepoint, series)
    data.SliceThickness = str(scan["thickness_mm"])
    data.GantryDetectorTilt = str(round(scan["tilt_deg"], 1))
    data.ConvolutionKernel = scanner["bone_kernel" if bone else "kernel"]
    data.ReconstructionDiameter = f"{scan['pixel_mm'] * scan['matrix']:.3f}"
    data.ImageOrientationPatient = [f"{v:.8g}" for v in (*scan["row_direction"], *scan["column_direction"])]
    data.PixelSpacing = [str(scan["pixel_mm"])] * 2
    data.Rows = data.Columns = scan["matrix"]
    stored = hu + np.int16(1024)
    if scanner["padding"] is not None:
        centre = (scan["matrix"] - 1) / 2
        index = np.arange(scan["matrix"]) - centre
        stored[:, np.hypot(index, index[:, None]) > scan["matrix"] / 2] = scanner["padding"]
    numbers = _generator(seed, name, timepoint, series, "file names").permutation(len(hu))
    folder.mkdir(parents=True, exist_ok=True)
    for index, origin in enumerate(scan["origins"]):
        data.SOPInstanceUID = _uid(seed, name, timepoint, series, index)
        # SIEMENS counts from the vertex down here, GE from the base up.
        data.InstanceNumber = index + 1 if scanner["padding"] is not None else len(hu) - index
        data.ImagePositionPatient = [f"{v:.4f}" for v in origin]
        data.SliceLocation = f"{origin[2]:.4f}"
        _save(data, stored[index], folder / f"IM{'B' if bone else 'A'}{numbers[index]:04d}")


def _write_scout(folder, hu, scan, patient, timepoint, seed):
    """Write a side view beside the series, as a localizer: in its folder at baseline, in one below it at follow-up."""
    name = patient["row"]["patient"]
    height = round(len(hu) * scan["thickness_mm"] / scan["pixel_mm"])
    view = hu[::-1].astype(np.float32).mean(2)
    view = view[np.minimum(np.arange(height) * len(hu) // height, len(hu) - 1)]
    data = _dataset(patient, timepoint, seed)
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.SeriesDescription = "Scout"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, 1
    data.SeriesInstanceUID = _uid(seed, name, timepoint, "scout")
    data.SOPInstanceUID = _uid(seed, name, timepoint, "scout", 0)
    data.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    corner = [0.0, scan["origins"][0][1], scan["origins"][-1][2]]
    data.ImagePositionPatient = [f"{v:.4f}" for v in corner]
    data.PixelSpacing = [str(scan["pixel_mm"])] * 2
    data.SliceThickness = str(round(scan["pixel_mm"] * scan["matrix"], 1))
    data.Rows, data.Columns = view.shape
    folder = folder if timepoint == "baseline" else folder / "scout"
    folder.mkdir(parents=True, exist_ok=True)
    _save(data, np.rint(view + 1024).astype(np.int16), folder / "IMS0001")


def _save(data, stored, path):
    """Write one image."""
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.add_new("PixelData", "OW", stored.astype("<i2" if data.PixelRepresentation else "<u2").tobytes())
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    write_atomically(path, buffer.getvalue())


# ------------------------------------------------------------------------------------------------------------ implant

# Attributes of a real image that its copy keeps: geometry, pixels and acquisition, nothing about anybody.
KEPT = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "Manufacturer", "ManufacturerModelName",
    "BodyPartExamined", "SliceThickness", "KVP", "ReconstructionDiameter", "GantryDetectorTilt", "ConvolutionKernel",
    "PatientPosition", "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "WindowCenter", "WindowWidth",
    "RescaleIntercept", "RescaleSlope",
)  # fmt: skip


def implant(series_folder, folder, volume_ml, seed, centre_ras_mm=None, heterogeneity=0.0, irregularity=0.0):
    """Put a synthetic haematoma into a real axial head series.

    The haematoma is an irregular ellipsoid in patient coordinates, whatever the tilt and spacing of the slices, 50-80
    HU with the scan's own noise and a dark rim of oedema. It stays in brain, at least 4 mm off bone. The same seed
    gives the same place and shape at any volume, so that a baseline and its grown follow-up fit.

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
        Decides shape and texture.
    centre_ras_mm : sequence of 3 floats, optional
        Where to put it, patient coordinates. Left out: a smooth place deep in one hemisphere, about 27 mm off the
        middle of the head.
    heterogeneity, irregularity : float
        Standard normal scale, as in `draw_patients`.

    Returns
    -------
    float
        Volume in mL: mask area times the extent of each slice, which reaches half-way to its neighbours.

    Raises
    ------
    InputError
        The folder holds no such series, or the brain has no room for this volume there.
    """
    images = _read_series(series_folder)
    hu = np.stack(
        [image.pixel_array * np.float32(image.RescaleSlope) + int(image.RescaleIntercept) for image in images]
    )
    series = _series_geometry(images)
    smooth = _smoothed(hu)
    room = _room(hu, smooth, series)
    centre = np.multiply(centre_ras_mm, (-1, -1, 1)) if centre_ras_mm is not None else _deep_place(room, hu, series)
    rng = _generator(seed, "implant")
    lesion = _draw_shape(rng, centre, (0.8, 1.25, 1.0), 20.0, irregularity)
    lesion |= {
        "density": rng.uniform(60.0, 68.0),
        "density_sd": float(np.clip(3.5 * math.exp(0.5 * heterogeneity), 1.2, 9.0)),
        "density_field": _waves(rng, 10.0, 40),
    }
    mask, threshold = _grow_in_series(series, room, lesion, volume_ml, series_folder)
    _paint_series(hu, smooth, room, mask, series, lesion, threshold)
    _write_implanted(images, hu, Path(folder), (seed, volume_ml))
    write_volume(Path(folder) / "mask.nii.gz", mask, series["affine"])
    return float((mask.sum((1, 2)) * series["voxel_ml"]).sum())


def _grow_in_series(series, room, lesion, volume_ml, folder):
    """Find the outline below which the voxels of a real series add up to a volume: mask (z, y, x) and threshold, mm."""
    found, values, voxel_ml = [], [np.empty(0)], [np.empty(0)]
    for number, plane in enumerate(series["planes"]):
        window = _lesion_window(plane, lesion, _reach(volume_ml), room.shape[1:])
        if window is None:
            continue
        patch = (number, *_slices(window))
        outline = _outline(*_points(plane, *window), lesion, _field_on(lesion["outline"], plane, *window))[0]
        outline = np.where(room[patch], outline, np.inf)
        found.append((patch, outline))
        values.append(outline.ravel())
        voxel_ml.append(np.full(outline.size, series["voxel_ml"][number]))
    values, voxel_ml = np.concatenate(values), np.concatenate(voxel_ml)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    total = np.cumsum(voxel_ml[order])
    if not len(total) or total[-1] < volume_ml:
        raise InputError(
            f"the brain around the centre has room for {total[-1] if len(total) else 0:.1f} mL, not {volume_ml:.1f} mL",
            "move the centre or implant less",
            folder,
        )
    threshold = values[order[np.searchsorted(total, volume_ml)]]
    mask = np.zeros(room.shape, np.uint8)
    for patch, outline in found:
        mask[patch] = outline <= threshold
    return mask, threshold


def _paint_series(hu, smooth, room, mask, series, lesion, threshold):
    """Lay oedema and haematoma into a real series, in place; the scan keeps its own noise."""
    for number, plane in enumerate(series["planes"]):
        window = _lesion_window(plane, lesion, 2.0 * threshold + 14, room.shape[1:])
        if window is None:
            continue
        patch = (number, *_slices(window))
        offsets = np.outer((-1 / 3, 0, 1 / 3), plane["thickness_step"])
        thick = plane | {"origins": plane["origins"] + offsets}
        outline = _outline(*_points(thick, *window), lesion, _field_on(lesion["outline"], thick, *window))
        depth = np.float32(threshold) - outline
        fraction = _soft(depth, 1.2).mean(0) * room[patch]
        # Partial volume may dim the border, but what the mask holds stays more blood than brain.
        fraction = np.where(mask[patch] == 1, np.maximum(fraction, 0.6), fraction)
        blood = lesion["density"] + lesion["density_sd"] * _field_on(lesion["density_field"], plane, *window)[0]
        noise = hu[patch] - smooth[patch]
        oedema = np.clip(1 + depth[1] / 4.0, 0, 1) * room[patch]
        hu[patch] = (1 - fraction) * (hu[patch] - 8 * oedema) + fraction * (np.clip(blood, 52, 78) + noise)


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
    series = {image.SeriesInstanceUID for image in images}
    if len(images) < 3 or len(series) != 1:
        raise InputError(
            f"{len(images)} images in {len(series)} series where one series is wanted", "give its own folder", folder
        )
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    return sorted(images, key=lambda image: float(normal @ np.array(image.ImagePositionPatient, float)))


def _series_geometry(images):
    """Give the planes of a series (patient frame, LPS), the mL of a voxel on each slice, and an affine to RAS."""
    planes, origins = [], np.array([image.ImagePositionPatient for image in images], float)
    for image, origin in zip(images, origins, strict=True):
        row, column = np.reshape(np.array(image.ImageOrientationPatient, float), (2, 3))
        down, across = (float(v) for v in image.PixelSpacing)
        normal = np.cross(row, column)
        planes.append(
            {
                "origins": origin[None],
                "row_step": column * down,
                "column_step": row * across,
                "normal": normal,
                "thickness_step": normal * float(image.SliceThickness),
                "area_mm2": down * across,
            }
        )
    steps = np.diff(origins @ normal)
    extent = (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]])) / 2
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = planes[0]["column_step"], planes[0]["row_step"]
    affine[:3, 2] = (origins[-1] - origins[0]) / (len(origins) - 1)
    affine[:3, 3] = origins[0]
    voxel_ml = extent * [plane["area_mm2"] for plane in planes] / 1000
    return {"planes": planes, "voxel_ml": voxel_ml, "affine": LPS_TO_RAS @ affine}


def _smoothed(hu):
    """Smooth every slice in its plane by about two pixels; bone and air are levelled first."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.clip(hu, -100, 200), (0, 2, 2), truncate=2.5)


def _room(hu, smooth, series):
    """Where a haematoma may lie: inside the skull, brain by density, at least 4 mm off bone. (z, y, x)."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

    room = np.zeros(hu.shape, bool)
    for number, plane in enumerate(series["planes"]):
        pixel = (np.linalg.norm(plane["row_step"]), np.linalg.norm(plane["column_step"]))
        bone = hu[number] > 150
        parts, count = label(bone)
        if not count:
            continue
        # Small calcifications are no skull.
        bone = np.isin(parts, np.flatnonzero(np.bincount(parts.ravel())[1:] * plane["area_mm2"] > 200) + 1)
        inside = binary_fill_holes(bone) & ~bone
        away = distance_transform_edt(~bone, sampling=pixel) > 4.0
        room[number] = inside & away & (smooth[number] > 14) & (smooth[number] < 60)
    return room


def _deep_place(room, hu, series):
    """Find the smoothest place 24-30 mm to a side of the head's middle, 45-65 mm below the vertex. LPS, mm."""
    from scipy.ndimage import gaussian_filter

    area = room.sum((1, 2)) * [plane["area_mm2"] for plane in series["planes"]]
    height = np.array([plane["origins"][0] @ plane["normal"] for plane in series["planes"]])
    if not (area > 500).any():
        raise InputError("no brain is found inside a skull", "give a head series, or the centre of the haematoma")
    below = height[area > 500].max() - height
    best = (np.inf, None)
    for number in np.flatnonzero((below > 45) & (below < 65) & (area > 500)):
        plane = series["planes"][number]
        rows, columns = np.nonzero(room[number])
        middle = np.array([rows.mean(), columns.mean()])
        brain = room[number].astype(np.float32)
        value = np.where(room[number], hu[number], 0)
        sigma = 12 / np.linalg.norm(plane["row_step"])
        weight = gaussian_filter(brain, sigma)
        mean = gaussian_filter(value, sigma) / np.maximum(weight, 1e-3)
        spread = gaussian_filter(value**2, sigma) / np.maximum(weight, 1e-3) - mean**2
        for side in (-1, 1):
            for lateral in (24.0, 27.0, 30.0):
                for back in (-10.0, -5.0, 0.0, 5.0):
                    row = round(middle[0] + back / np.linalg.norm(plane["row_step"]))
                    column = round(middle[1] + side * lateral / np.linalg.norm(plane["column_step"]))
                    score = spread[row, column] + 400 * (1 - weight[row, column])
                    if room[number, row, column] and score < best[0]:
                        place = plane["origins"][0] + row * plane["row_step"] + column * plane["column_step"]
                        best = (score, place)
    if best[1] is None:
        raise InputError("no slice has brain deep in a hemisphere", "give the centre of the haematoma")
    return best[1]


def _write_implanted(images, hu, folder, words):
    """Write the changed pixels with the kept attributes of each image and new UIDs."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    (folder / "dicom").mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        data = Dataset()
        for keyword in KEPT:
            if keyword in image:
                data[keyword] = image[keyword]
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PatientName, data.PatientID = "Implanted", f"SEED{words[0]}"
        data.PatientIdentityRemoved = "YES"
        data.StudyInstanceUID = _uid("implant", image.StudyInstanceUID, *words)
        data.SeriesInstanceUID = _uid("implant", image.SeriesInstanceUID, *words)
        data.FrameOfReferenceUID = _uid("implant frame", image.SeriesInstanceUID, *words)
        data.SOPInstanceUID = _uid("implant", image.SOPInstanceUID, *words)
        stored = np.rint((hu[index] - float(image.RescaleIntercept)) / float(image.RescaleSlope))
        _save(data, stored, folder / "dicom" / f"IM{index:04d}")
