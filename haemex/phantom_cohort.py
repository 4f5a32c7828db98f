"""Who the synthetic patients are: clinical table, haematomas, labels, and how well expansion can be predicted at best.

`draw_patients` decides everything that a cohort table and a renderer need; nothing is rendered here. All draws are
made before any image, each with a generator of its own purpose, so that a patient's row depends on the settings and
the seed alone. Other numbers of patients give another cohort.

Ranks of correlated normal scores carry the paper's Table 1: whatever the scores, the number of patients with a sign
and the distribution of a continuous column are those of the table.
"""

import math
from datetime import date
from pathlib import Path
from statistics import NormalDist

import numpy as np

from haemex.files import read_json, write_atomically, write_json
from haemex.phantom_fields import generator
from haemex.tables import read_table, table_bytes

# Table 1 of the paper. `volume_ml` and `onset_to_ct_h` are mu and sigma (of the natural logarithm) of a log-normal
# distribution that is cut at the limits below and then has the printed mean and SD: 17.4 +- 15.3 and 17.8 +- 18.8 mL,
# 3.4 +- 2.0 and 3.9 +- 2.2 h. (Without volumes above 75 mL, the SD of the test cohort comes to 16.2 mL.) `nihss`:
# minimum, quartiles (printed), 95th percentile and maximum.
TABLE_1 = {
    "train": {
        "age_years": (62.2, 13.4),
        "onset_to_ct_h": (1.4556, 1.036),
        "nihss": (0, 5, 9, 12, 21, 34),
        "volume_ml": (2.2620, 1.265),
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
        "onset_to_ct_h": (2.1600, 1.2),
        "nihss": (0, 4, 8, 14, 23, 34),
        "volume_ml": (2.0329, 1.6),
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
LAYERED_ML = 8.0  # smaller haematomas hardly show layers
VOLUME_LIMITS_ML = (3.0, 75.0)
ONSET_LIMITS_H = (0.4, 8.0)
AGE_LIMITS_YEARS = (20, 94)
NIHSS_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)

# How the two readers agreed (paper, Methods), and how closely a sign follows what the image shows.
# ASSUME: weights of the latent heterogeneity and margin irregularity are chosen, no source reports them.
SIGNS = {
    "hypodensity": {"kappa": 0.886, "heterogeneity": 0.6, "irregularity": 0.0},
    "black_hole": {"kappa": 0.906, "heterogeneity": 0.5, "irregularity": 0.0},
    "swirl": {"kappa": 0.848, "heterogeneity": 0.6, "irregularity": 0.0},
    "blend": {"kappa": 0.951, "heterogeneity": 0.2, "irregularity": 0.0},
    "fluid_level": {"kappa": 0.892, "heterogeneity": 0.2, "irregularity": 0.0},
    "irregular_shape": {"kappa": 0.859, "heterogeneity": 0.0, "irregularity": 0.9},
    "heterogeneous_density": {"kappa": 0.932, "heterogeneity": 0.85, "irregularity": 0.0},
}
# ASSUME: a black hole and a heterogeneous density are hypodense places, and a black hole is a rounded one (a swirl).
IMPLIED = {"black_hole": ("hypodensity", "swirl"), "heterogeneous_density": ("hypodensity",)}

COHORT_DATES = {
    "train": (date(2012, 2, 1), date(2018, 8, 31)),
    "test": (date(2018, 9, 1), date(2019, 10, 31)),
}
WINTER_EXCESS = 0.15  # ASSUME: admissions in mid January are 15 % above, in mid July 15 % below the mean
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
READ_TWICE = {"train": 14 / 189, "test": 6 / 77}  # 20 of 266 (paper, Methods), at least 4 and 2

# Where haematomas sit: share of the supratentorial ones, and the largest volume, mL, at baseline and at follow-up.
# ASSUME: shares as in cohorts of Chinese patients, in whom three in four haematomas are deep.
SITES = {
    "putamen": {"share": 0.48, "limits_ml": (60.0, 85.0)},
    "thalamus": {"share": 0.26, "limits_ml": (30.0, 48.0)},
    "frontal": {"share": 0.08, "limits_ml": (75.0, 95.0)},
    "parietal": {"share": 0.08, "limits_ml": (75.0, 95.0)},
    "temporal": {"share": 0.06, "limits_ml": (75.0, 95.0)},
    "occipital": {"share": 0.04, "limits_ml": (45.0, 65.0)},
    "cerebellum": {"share": 0.0, "limits_ml": (18.0, 24.0)},
    "pons": {"share": 0.0, "limits_ml": (5.0, 8.0)},
    "ventricle": {"share": 0.0, "limits_ml": (6.0, 9.0)},
}
DEEP = ("putamen", "thalamus")
LOBES = ("frontal", "parietal", "temporal", "occipital")

# Supplemental Table 1; fields of view below 216 mm would cut off ears and nose.
FIELDS_OF_VIEW_MM = {"optima": (250, 250), "flash": (220, 285), "force": (216, 228), "perspective": (230, 230)}
FIELDS_OF_VIEW_MM |= {"aquilion": (220, 240), "ingenuity": (230, 250)}
CAN_TILT = ("optima", "perspective", "aquilion")
TILTED_SHARE = 0.35  # ASSUME: of the patients on a scanner that can
TILT_OF_TRAP_DEG = 15.0
SLICE_MM = 5.0

# Log odds of expansion = intercept + sum of coefficient * term + unseen_sd * (standard normal of each patient).
# ASSUME: the coefficients are chosen so that each sign alone, volume alone and the BAT score alone reach about the
# AUC of the paper's Table 2, and everything that can be seen about 0.85, a little above the paper's 0.80 for its
# network. The intercept makes the mean probability the paper's 74 of 266. What nobody sees stands for blood pressure
# after the scan and coagulation.
EXPANSION_MODEL = {
    "intercept": -2.737,
    "visible": {
        "log_volume": 0.3,  # ln(volume_ml / 12)
        "hours_since_onset": -0.2,  # onset_to_ct_h - 3.5; the width of the oedema tells it
        "heterogeneity": 0.9,  # latent, standard normal: spread of density inside the haematoma
        "irregularity": 0.25,  # latent, standard normal: lobulation of the margin
        "hypodensity": 0.1,
        "black_hole": 0.9,
        "swirl": 1.1,
        "blend": 0.1,
        "fluid_level": 1.4,
        "irregular_shape": 0.1,
        "heterogeneous_density": 0.2,
    },
    "unseen_sd": 0.7,
}

# Where patients come from: letter of their codes, scanners, the one that the trap of a tilted scan takes, the smallest
# and largest share of expansions that is let stand, and what is added to the log odds of each patient.
# ASSUME: a second centre has other scanners, and one expansion in six: it sees patients later, and treats them earlier.
CENTRES = {
    "first": {
        "letter": "D",
        "scanners": ("optima", "flash", "force", "perspective"),
        "tilting": "optima",
        "share": (0.25, 0.33),
        "log_odds": 0.0,
    },
    "second": {
        "letter": "E",
        "scanners": ("aquilion", "ingenuity"),
        "tilting": "aquilion",
        "share": (0.13, 0.2),
        "log_odds": -0.9,
    },
}

# The paper's definition of expansion. Growth keeps off it by 0.15 mL and by 2 % of the baseline volume, so that
# neither the size of a voxel nor the reading of ">" or ">=" can turn a label.
ABSOLUTE_ML, RELATIVE = 6.0, 0.33
MARGIN_ML, MARGIN_RELATIVE = 0.15, 0.02

SIMULATIONS = 1000

COLUMNS = (
    "patient",
    "admission_date",
    "age_years",
    "sex",
    "haemorrhage_site",
    "haematoma_location",
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
    "followup_intraventricular_haemorrhage",
    *SIGNS,
    *(f"{marker}_rater2" for marker in SIGNS),
    "baseline_mask_rater2",
)


# --------------------------------------------------------------------------------------------------------------- draw


def draw_patients(settings, seed):
    """Draw the patients of a synthetic study: clinical table, haematomas, labels. Nothing is rendered.

    Rates of the paper's Table 1 are met as closely as the number of patients allows (a sign is given to the patients
    with the highest scores), continuous columns are drawn stratified, and between 25 % and 33 % of each cohort expand.

    Parameters
    ----------
    settings : dict
        Section `phantom` of the config: `train`, `test` (eligible patients per cohort), `matrix` (pixels along a
        slice), and who must not enter the study: `excluded_each` (patients per reason) or `excluded` (patients by
        reason, of `NOT_ELIGIBLE`); `centre`, of `CENTRES`, by default the first.
    seed : int
        The study's seed.

    Returns
    -------
    list of dict
        Sorted by patient (and admission date). `row`: the cohort table's columns without the paths (None: missing).
        `truth`, scalars only:

        - `reason` not to be eligible (or ""), `cohort` by admission date, `trap` (or "")
        - `scanner`, `pixel_mm`, `tilt_deg`, `voxel_mm3` (pixel area times 5 mm), of both scans
        - `site`, `side` (1 left, -1 right), `heterogeneity`, `irregularity` (latent, standard normal)
        - `voxels`, `followup_voxels`, and `volume_ml`, `followup_ml`, which are exactly so many voxels
        - `visible_log_odds` and `unseen` of `EXPANSION_MODEL`, `p_visible` and `p_all` (probability of expansion given
          what the image shows; given everything), `expansion`
        - `second_reading`: 1 where a second reader outlines the haematoma

        Who has no follow-up scan has None for `followup_voxels`, `followup_ml` and `expansion`.
    """
    centre = CENTRES[settings.get("centre", "first")]
    cohorts = {
        name: _draw_people(name, settings[name], centre, generator(seed, "draw", name)) for name in ("train", "test")
    }
    others = _draw_not_eligible(settings, centre, seed)
    groups = [*cohorts.values(), others]
    people = {name: np.concatenate([group[name] for group in groups]) for name in cohorts["train"]}
    people["trap"] = _assign_traps(settings["train"] + settings["test"], len(people["reason"]), seed)
    people |= _draw_geometry(people, settings["matrix"], centre, generator(seed, "draw", "geometry"))
    people |= _draw_outcome(people, centre, generator(seed, "draw", "outcome"))
    people["second_reading"] = _draw_read_twice(people, generator(seed, "draw", "second reading"))
    second = _draw_second_readings(people, generator(seed, "draw", "second readers"))
    missing = _draw_missing(people, generator(seed, "draw", "missing"))

    order = np.argsort(people["day"], kind="stable")
    digits = max(3, len(str(len(order))))
    patients = []
    for number, i in enumerate(order, 1):
        person = {name: values[i].item() for name, values in people.items()}
        row = {"patient": f"{centre['letter']}{number:0{digits}d}"} | _row(person)
        row |= {f"{marker}_rater2": int(values[i]) for marker, values in second.items()}
        row |= {name: None for name, where in missing.items() if where[i]}
        patients.append({"row": row, "truth": _truth(person)})
    return patients


def _row(person):
    """Make the row of a cohort table from what was drawn of a person."""
    died = person["reason"] == "died_or_surgery"
    places = {"cerebellum": "infratentorial", "pons": "infratentorial", "ventricle": "ventricular"}
    location = "deep" if person["site"] in DEEP else "lobar" if person["site"] in LOBES else None
    ventricular = person["intraventricular_haemorrhage"]
    row = {
        "admission_date": date.fromordinal(person["day"]).isoformat(),
        "age_years": person["age_years"],
        "sex": "m" if person["male"] else "f",
        "haemorrhage_site": places.get(person["site"], "supratentorial"),
        "haematoma_location": location,
        "onset_to_ct_h": person["onset_to_ct_h"],
        "ct_to_followup_h": None if died else person["ct_to_followup_h"],
        "died_or_surgery_before_followup": int(died),
        "poor_image_quality": int(person["reason"] == "poor_image_quality"),
        "nihss": person["nihss"],
        # No blood breaks into the ventricles between the two scans.
        "followup_intraventricular_haemorrhage": None if died else ventricular,
    }
    history = ("hypertension", "diabetes", "prestroke", "antiplatelet", "anticoagulation")
    return row | {name: person[name] for name in (*history, "intraventricular_haemorrhage", *SIGNS)}


def _truth(person):
    """Make the row of the truth from what was drawn of a person."""
    names = ("reason", "cohort", "expansion", "volume_ml", "followup_ml", "voxels", "followup_voxels", "voxel_mm3")
    names += ("pixel_mm", "tilt_deg", "visible_log_odds", "unseen", "p_visible", "p_all", "heterogeneity")
    names += ("irregularity", "site", "side", "scanner", "second_reading", "trap")
    truth = {name: person[name] for name in names}
    if person["reason"] == "died_or_surgery":
        truth |= {"expansion": None, "followup_ml": None, "followup_voxels": None}
    return truth


# ------------------------------------------------------------------------------------------------- scores and margins


def _stratified_normal(rng, n):
    """Draw n standard normal values, one from each n-th part of the distribution, shuffled."""
    return _normal_quantile((rng.permutation(n) + rng.uniform(0.02, 0.98, n)) / n)


def _normal_quantile(p):
    inverse = NormalDist().inv_cdf
    return np.array([inverse(value) for value in p])


def _ranked(scores, rng):
    """Take scores to the unit interval, one to each n-th part of it, in their order."""
    n = len(scores)
    ranks = np.empty(n)
    ranks[np.argsort(scores, kind="stable")] = np.arange(n)
    return (ranks + rng.uniform(0.02, 0.98, n)) / max(n, 1)


def _log_normal(p, mu, sigma, limits):
    """Quantiles p of a log-normal distribution cut at both ends."""
    normal = NormalDist(mu, sigma)
    below, above = (normal.cdf(math.log(limit)) for limit in limits)
    return np.exp(mu + sigma * _normal_quantile(below + (above - below) * p))


def _top(scores, count):
    """Mark the `count` highest scores with 1; minus infinity is never marked."""
    present = np.zeros(len(scores), int)
    present[np.argsort(-scores, kind="stable")[:count]] = 1
    return np.where(scores > -np.inf, present, 0)


def _mix(*parts):
    """Add standard normal values with weights, and an independent one so that the sum has variance 1.

    The last part is the independent one; it comes without a weight.
    """
    *weighted, own = parts
    explained = sum(weight**2 for weight, _ in weighted)
    return sum(weight * values for weight, values in weighted) + math.sqrt(1 - explained) * own


# ------------------------------------------------------------------------------------------------------------- people


def _draw_people(cohort, n, centre, rng, reasons=None):
    """Draw n patients after the marginals of one cohort of Table 1: a dict of columns, each (n,).

    ASSUME: the correlations are chosen for their direction, which is common knowledge of the field; Table 1 prints
    marginals alone. Larger haematomas are denser in signs, those scanned early too; lobar ones are larger and of
    older people, thalamic ones smaller and near the ventricles; hypertension bleeds deep.
    """
    table = TABLE_1[cohort]

    def normal():
        return _stratified_normal(rng, n)

    def rate(name, scores):
        return _top(scores, round(n * table[name]))

    age, size, late = normal(), normal(), normal()
    uneven = _normal_quantile(_ranked(_mix((0.3, size), (-0.15, late), normal()), rng))
    irregular = _normal_quantile(_ranked(_mix((0.25, size), (0.25, uneven), normal()), rng))
    volume_ml = _log_normal(_ranked(size, rng), *table["volume_ml"], VOLUME_LIMITS_ML)
    reason = np.array(reasons if reasons is not None else [""] * n, dtype="<U18")
    if reasons is not None:  # death and operation come to the large ones
        reason = _given_to_large(reason, size + normal(), "died_or_surgery")
    site = _draw_sites(volume_ml, size, age, rng)
    deep = np.isin(site, DEEP)

    # Of 2 in 189 the history is not known (Table 1, training cohort); the rates are of those of whom it is.
    unknown = rng.permutation(n) < (math.ceil(n * 2 / 189 - 1e-9) if cohort == "train" and reasons is None else 0)
    known = n - int(unknown.sum())
    people = {"history_unknown": unknown}
    for name, scores in (("hypertension", 0.9 * deep), ("diabetes", 0.4 * normal())):
        scores = 0.3 * age + scores + normal()
        people[name] = _top(np.where(unknown, -np.inf, scores), round(known * table[name]))
    people["prestroke"] = rate("prestroke", 0.5 * age + 0.3 * people["hypertension"] + normal())
    people["antiplatelet"] = rate("antiplatelet", 0.6 * age + 1.0 * people["prestroke"] + normal())
    people["anticoagulation"] = rate("anticoagulation", 0.6 * age + normal())
    ventricular = 1.3 * (site == "thalamus") + 0.4 * deep + 0.6 * size + normal()
    people["intraventricular_haemorrhage"] = rate("intraventricular_haemorrhage", ventricular)
    people["male"] = rate("male", -0.25 * age + normal())
    severity = 0.7 * size + 0.3 * deep + 0.5 * people["intraventricular_haemorrhage"] + 0.15 * age + normal()
    people["nihss"] = np.rint(np.interp(_ranked(severity, rng), NIHSS_QUANTILES, table["nihss"])).astype(int)
    mean, sd = table["age_years"]
    people["age_years"] = np.clip(np.rint(mean + sd * age), *AGE_LIMITS_YEARS).astype(int)
    people["onset_to_ct_h"] = np.round(_log_normal(_ranked(late, rng), *table["onset_to_ct_h"], ONSET_LIMITS_H), 1)
    people["ct_to_followup_h"] = np.clip(np.round(rng.normal(22.2, 0.9, n), 1), 20.0, 24.0)
    people |= _draw_signs(uneven, irregular, volume_ml, normal, rate)
    days = _draw_days(COHORT_DATES[cohort], n, rng)
    return people | {
        "reason": reason,
        "cohort": np.full(n, cohort, "<U5"),
        "day": days,
        "volume_ml": volume_ml,
        "site": site,
        "side": rng.choice([1, -1], n),
        "heterogeneity": uneven,
        "irregularity": irregular,
        "scanner": np.array(centre["scanners"])[rng.permutation(n) % len(centre["scanners"])],
    }


def _draw_signs(uneven, irregular, volume_ml, normal, rate):
    """Draw the markers, as the image shows them: counts of Table 1, with what a sign implies."""
    scores = {
        marker: _mix((weight["heterogeneity"], uneven), (weight["irregularity"], irregular), normal())
        for marker, weight in SIGNS.items()
    }
    signs = {"hypodensity": rate("hypodensity", scores["hypodensity"])}
    hypodense = signs["hypodensity"] == 1
    signs["black_hole"] = rate("black_hole", np.where(hypodense, scores["black_hole"], -np.inf))
    signs["heterogeneous_density"] = rate(
        "heterogeneous_density", np.where(hypodense, scores["heterogeneous_density"], -np.inf)
    )
    signs["swirl"] = rate("swirl", np.where(signs["black_hole"] == 1, np.inf, scores["swirl"]))
    for marker in ("blend", "fluid_level"):
        # ASSUME: two layers need room; a small haematoma with both and a swirl would hold little blood at all.
        signs[marker] = rate(marker, scores[marker] - 3.0 * (volume_ml < LAYERED_ML))
    return {marker: signs[marker] if marker in signs else rate(marker, scores[marker]) for marker in SIGNS}


def _draw_sites(volume_ml, size, age, rng):
    """Share haematomas among the supratentorial sites, by their frequency and the room there is for the volume."""
    n = len(volume_ml)
    site = np.full(n, "putamen", "<U10")
    lobar = 0.5 * size + 0.25 * age + rng.standard_normal(n)
    lobar = np.where(volume_ml > SITES["putamen"]["limits_ml"][0], np.inf, lobar)
    lobar = _top(lobar, round(n * sum(SITES[name]["share"] for name in LOBES))) == 1
    small = np.where(
        lobar | (volume_ml > SITES["thalamus"]["limits_ml"][0]), -np.inf, rng.standard_normal(n) - 0.5 * size
    )
    site[_top(small, round(n * SITES["thalamus"]["share"])) == 1] = "thalamus"
    shares = np.array([SITES[name]["share"] for name in LOBES])
    edges = np.cumsum(shares / shares.sum())
    count = int(lobar.sum())
    chosen = np.searchsorted(edges, (rng.permutation(count) + 0.5) / max(count, 1), side="right")
    site[lobar] = np.array(LOBES)[np.minimum(chosen, len(LOBES) - 1)]
    crowded = (site == "occipital") & (volume_ml > SITES["occipital"]["limits_ml"][0])
    site[crowded] = "parietal"
    # Where more are too large for the putamen than there are lobar ones (a handful of patients), they are lobar too.
    site[(site == "putamen") & (volume_ml > SITES["putamen"]["limits_ml"][0])] = "frontal"
    return site


def _draw_days(period, n, rng):
    """Draw admission days (proleptic ordinals) from a period, more of them in winter."""
    first, last = (day.toordinal() for day in period)
    days = np.arange(first, last + 1)
    new_year = date(2012, 1, 15).toordinal()
    weight = 1 + WINTER_EXCESS * np.cos(2 * np.pi * (days - new_year) / 365.25)
    return rng.choice(days, n, p=weight / weight.sum())


def _given_to_large(reasons, scores, wanted):
    """Exchange reasons so that `wanted` falls to the highest scores; the others keep their order."""
    count = int((reasons == wanted).sum())
    chosen = _top(scores, count) == 1
    exchanged = np.full(len(reasons), wanted, reasons.dtype)
    exchanged[~chosen] = reasons[reasons != wanted]
    return exchanged


def _excluded_counts(settings):
    """Patients by reason not to be eligible, in the order of `NOT_ELIGIBLE`."""
    if "excluded" in settings:
        return {reason: settings["excluded"].get(reason, 0) for reason in NOT_ELIGIBLE}
    return dict.fromkeys(NOT_ELIGIBLE, settings["excluded_each"])


def _draw_not_eligible(settings, centre, seed):
    """Draw the patients who must not enter the study; their admissions spread over both periods."""
    rng = generator(seed, "draw", "not eligible")
    reasons = [reason for reason, count in _excluded_counts(settings).items() for _ in range(count)]
    n = len(reasons)
    people = _draw_people("train", n, centre, rng, [reasons[i] for i in rng.permutation(n)])
    reason, site, volume = people["reason"], people["site"], people["volume_ml"]
    # By size among themselves, so that a small site keeps a spread of volumes.
    part = _ranked(volume, rng)
    below = np.flatnonzero(reason == "infratentorial")
    site[below] = np.where(np.arange(len(below)) % 4 == 3, "pons", "cerebellum")
    site[reason == "ventricular_only"] = "ventricle"
    for name in ("cerebellum", "pons", "ventricle"):
        lowest, highest = VOLUME_LIMITS_ML[0], SITES[name]["limits_ml"][0]
        volume[:] = np.where(site == name, lowest + (highest - lowest) * part**2, volume)
    people["intraventricular_haemorrhage"][reason == "ventricular_only"] = 1
    died = reason == "died_or_surgery"
    people["nihss"][died] = np.minimum(people["nihss"][died] + 9, 38)
    where = reason == "age"
    people["age_years"][where] = rng.integers(12, 18, where.sum())
    where = reason == "onset_to_ct"
    people["onset_to_ct_h"][where] = np.round(rng.uniform(8.5, 16.0, where.sum()), 1)
    where = reason == "followup_interval"
    early, late = (np.round(rng.uniform(*limits, n), 1) for limits in ((5, 19), (25, 48)))
    people["ct_to_followup_h"][where] = np.where(rng.random(n) < 0.5, early, late)[where]
    later = rng.permutation(n) < round(n * settings["test"] / (settings["train"] + settings["test"]))
    people["day"] = np.where(later, _draw_days(COHORT_DATES["test"], n, rng), people["day"])
    people["cohort"] = np.where(later, "test", people["cohort"])
    return people


def _assign_traps(eligible, n, seed):
    """Give each trap to one eligible patient; (n,), the eligible ones come first."""
    traps = np.full(n, "", "<U5")
    order = generator(seed, "traps").permutation(eligible)[: len(TRAPS)]
    traps[order] = TRAPS[: len(order)]
    return traps


# --------------------------------------------------------------------------------------------------- grid and outcome


def _draw_geometry(people, matrix, centre, rng):
    """Draw the pixels and the tilt of each patient's scans, and round the haematoma to whole voxels."""
    n = len(people["reason"])
    scanner = np.where(people["trap"] == "tilt", centre["tilting"], people["scanner"])
    lowest, highest = np.array([FIELDS_OF_VIEW_MM[name] for name in scanner]).reshape(n, 2).T
    pixel_mm = np.round((lowest + np.floor(rng.random(n) * (highest - lowest + 1))) / matrix, 6)
    # ASSUME: tilts are set in half degrees, mostly backwards along the orbitomeatal line.
    tilt_deg = np.round(2 * rng.uniform(5.0, 20.0, n)) / 2 * np.where(rng.random(n) < 0.8, 1, -1)
    tilted = np.isin(scanner, CAN_TILT) & (rng.random(n) < TILTED_SHARE)
    tilt_deg = np.where(people["trap"] == "tilt", TILT_OF_TRAP_DEG, np.where(tilted, tilt_deg, 0.0))
    voxel_mm3 = pixel_mm * pixel_mm * SLICE_MM
    voxels = np.rint(people["volume_ml"] * 1000 / voxel_mm3).astype(int)
    return {
        "scanner": scanner,
        "pixel_mm": pixel_mm,
        "tilt_deg": tilt_deg,
        "voxel_mm3": voxel_mm3,
        "voxels": voxels,
        "volume_ml": voxels * voxel_mm3 / 1000,
    }


def visible_log_odds(people):
    """Add up what a baseline scan shows of the log odds of expansion.

    Parameters
    ----------
    people : dict of str to array-like
        `volume_ml`, `onset_to_ct_h`, `heterogeneity`, `irregularity` and the markers.

    Returns
    -------
    array
        Intercept and visible part of `EXPANSION_MODEL`.
    """
    terms = {
        **people,
        "log_volume": np.log(np.asarray(people["volume_ml"]) / 12),
        "hours_since_onset": np.asarray(people["onset_to_ct_h"]) - 3.5,
    }
    coefficients = EXPANSION_MODEL["visible"]
    return EXPANSION_MODEL["intercept"] + sum(
        coefficient * np.asarray(terms[name]) for name, coefficient in coefficients.items()
    )


def _draw_outcome(people, centre, rng):
    """Draw expansion from the model, and the follow-up volume that goes with it, in whole voxels."""
    n = len(people["reason"])
    visible = visible_log_odds(people) + centre["log_odds"]
    unseen = rng.standard_normal(n)
    p_all = _sigmoid(visible + EXPANSION_MODEL["unseen_sd"] * unseen)
    expansion = (rng.random(n) < p_all).astype(int)
    for cohort in ("train", "test"):
        members = (people["cohort"] == cohort) & (people["reason"] == "")
        expansion[members] = _draw_expansion(p_all[members], centre["share"], rng)
    growth_ml = _draw_growth(people["volume_ml"], people["site"], expansion, rng)
    followup_voxels = np.rint((people["volume_ml"] + growth_ml) * 1000 / people["voxel_mm3"]).astype(int)
    return {
        "visible_log_odds": visible,
        "unseen": unseen,
        "p_visible": _expected_sigmoid(visible, EXPANSION_MODEL["unseen_sd"]),
        "p_all": p_all,
        "expansion": expansion,
        "followup_voxels": followup_voxels,
        "followup_ml": followup_voxels * people["voxel_mm3"] / 1000,
    }


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def _expected_sigmoid(x, sd):
    """Mean of sigmoid(x + noise) over normal noise of this SD, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return _sigmoid(np.asarray(x)[..., None] + sd * nodes) @ (weights / weights.sum())


def _draw_expansion(p, share, rng):
    """Draw labels with probabilities p; where another share of them is positive, move the nearest ones over."""
    lowest = math.ceil(share[0] * len(p))
    highest = max(lowest, math.floor(share[1] * len(p)))
    u = rng.uniform(1e-9, 1 - 1e-9, len(p))
    chance = np.log(p / (1 - p)) - np.log(u / (1 - u))  # above 0: the patient expands
    return _top(chance, min(max(int((chance > 0).sum()), lowest), highest))


def _draw_growth(volume_ml, site, expansion, rng):
    """Draw the growth until the follow-up scan, mL, on the label's side of the paper's definition.

    ASSUME: beyond the definition, growth has a long right tail (Lomax, shape 3) that begins just there; below, it is
    about normal around a slight growth, down to a slight shrinkage. No source prints the distribution.
    """
    n = len(volume_ml)
    limit = np.array([SITES[name]["limits_ml"][1] for name in site]).reshape(n)
    margin = np.maximum(MARGIN_ML, MARGIN_RELATIVE * volume_ml)
    least = np.minimum(ABSOLUTE_ML + MARGIN_ML, RELATIVE * volume_ml + margin)
    scale, shape = volume_ml**0.8, 3.0
    # Cut where the head has no more room, with a share of the tail left at every size.
    share = 1 - (1 + np.maximum(limit - volume_ml - least, 0.5) / scale) ** -shape
    grown = least + scale * ((1 - share * rng.random(n)) ** (-1 / shape) - 1)

    most = np.minimum(ABSOLUTE_ML - MARGIN_ML, RELATIVE * volume_ml - margin)
    shrunk = -np.minimum(0.1 * volume_ml, 2.5)
    centre, spread = 0.1 * most, 0.45 * most
    cdf = np.vectorize(NormalDist().cdf, otypes=[float])
    below, above = cdf((shrunk - centre) / spread), cdf((most - centre) / spread)
    stable = centre + spread * _normal_quantile(below + (above - below) * rng.uniform(1e-6, 1 - 1e-6, n))
    return np.where(expansion == 1, grown, stable)


# ------------------------------------------------------------------------------------------------ readings and gaps


def _draw_read_twice(people, rng):
    """Choose whose baseline scan a second reader outlines too."""
    twice = np.zeros(len(people["reason"]), int)
    for cohort, least in (("train", 4), ("test", 2)):
        members = np.flatnonzero((people["cohort"] == cohort) & (people["reason"] == ""))
        twice[rng.permutation(members)[: max(least, round(len(members) * READ_TWICE[cohort]))]] = 1
    return twice


def _draw_second_readings(people, rng):
    """Draw the markers as the second reader calls them, with the kappas of the paper, by marker.

    The second reader calls a marker as often as the first one and keeps to what a marker implies.
    """
    second = {marker: people[marker].copy() for marker in SIGNS}
    for group in (people["reason"] == "", people["reason"] != ""):
        for marker in sorted(SIGNS, key=lambda marker: marker in IMPLIED):  # what is implied comes first
            first, kappa = people[marker], SIGNS[marker]["kappa"]
            may_fall, may_rise = group & (first == 1), group & (first == 0)
            for other, implied in IMPLIED.items():
                if marker in implied:
                    may_fall &= people[other] == 0
            for implied in IMPLIED.get(marker, ()):
                may_rise &= second[implied] == 1
            rate = first[group].mean() if group.any() else 0.0
            pairs = math.floor(group.sum() * (1 - kappa) * rate * (1 - rate) + rng.random())
            pairs = min(pairs, int(may_fall.sum()), int(may_rise.sum()))
            second[marker][rng.permutation(np.flatnonzero(may_fall))[:pairs]] = 0
            second[marker][rng.permutation(np.flatnonzero(may_rise))[:pairs]] = 1
    return second


def _draw_missing(people, rng):
    """Choose the empty cells of the table: history of 2 in 189, a few NIHSS and readings of the second reader."""
    missing = {name: people["history_unknown"] for name in ("hypertension", "diabetes")}
    eligible = people["reason"] == ""
    for name in ("nihss", *(f"{marker}_rater2" for marker in rng.permutation(list(SIGNS))[:2])):
        missing[name] = np.zeros(len(eligible), bool)
        for cohort in ("train", "test"):
            members = rng.permutation(np.flatnonzero(eligible & (people["cohort"] == cohort)))
            missing[name][members[: math.ceil(len(members) / 100)]] = True
    return missing


# ------------------------------------------------------------------------------------------------ best reachable AUC


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
    values, group = np.unique(p, return_inverse=True)
    positive, negative = (np.bincount(group, weights, len(values)) for weights in (p, 1 - p))
    own = (p * (1 - p)).sum()  # no patient is compared with itself
    pairs = positive.sum() * negative.sum() - own
    if len(p) < 2 or pairs <= 1e-12:
        raise ValueError(f"{len(p)} probabilities hold no pair of patients with and without expansion")
    below = np.cumsum(negative) - negative
    return float(((positive * (below + 0.5 * negative)).sum() - 0.5 * own) / pairs)


def simulate_reachable_auc(log_odds, seed, simulations=SIMULATIONS, groups=None):
    """Simulate what the ideal reader reaches: the unseen part and the labels are drawn anew, the scores stay.

    Parameters
    ----------
    log_odds : array-like, (n,)
        Visible log odds of expansion, from `visible_log_odds`.
    seed : int
        Decides the draws.
    simulations : int
        How often the labels are drawn.
    groups : dict of str to array of bool (n,), optional
        Patients of whom the area is wanted; by default all of them, under the name "all".

    Returns
    -------
    dict of str to dict
        By group: `mean`, `sd` and `interval` (2.5th and 97.5th percentile) of the area under the ROC curve, and
        `simulations`, those with patients of both classes.

    Raises
    ------
    ValueError
        No simulation had patients of both classes.
    """
    log_odds = np.asarray(log_odds, float)
    groups = groups or {"all": np.ones(len(log_odds), bool)}
    rng = generator(seed, "best reachable AUC")
    ranks = {name: _midranks(log_odds[members]) for name, members in groups.items()}
    areas = {name: [] for name in groups}
    step = max(1, 500_000 // max(len(log_odds), 1))  # bounds the memory
    for start in range(0, simulations, step):
        shape = (min(step, simulations - start), len(log_odds))
        unseen = rng.standard_normal(shape, np.float32)
        labels = rng.random(shape, np.float32) < _sigmoid(log_odds + EXPANSION_MODEL["unseen_sd"] * unseen)
        for name, members in groups.items():
            mine = labels[:, members]
            positive = mine.sum(1)
            negative = mine.shape[1] - positive
            both = (positive > 0) & (negative > 0)
            wins = mine[both] @ ranks[name] - positive[both] * (positive[both] + 1) / 2  # Mann and Whitney's U
            areas[name].append(wins / (positive[both] * negative[both]))
    found = {}
    for name, parts in areas.items():
        area = np.concatenate(parts) if parts else np.empty(0)
        if not len(area):
            raise ValueError(f"in none of {simulations} simulations had the group {name} patients of both classes")
        found[name] = {
            "mean": float(area.mean()),
            "sd": float(area.std()),
            "interval": [float(value) for value in np.percentile(area, [2.5, 97.5])],
            "simulations": len(area),
        }
    return found


def _midranks(values):
    """Rank values from 1; equal ones share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


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


# ------------------------------------------------------------------------------------------------------------- write


def write_cohort_table(patients, path, folder):
    """Write the cohort table of synthetic patients; an identical table is left alone, modification time included.

    Parameters
    ----------
    patients : list of dict
        From `draw_patients`.
    path : path-like
        The table, TSV; paths in it are `folder` joined with what `haemex.phantom.make_patient` writes there.
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


def write_model(patients, path, seed=0, centre="first"):
    """Write the model of expansion and what it allows at best, JSON; left alone if identical.

    Parameters
    ----------
    patients : list of dict
        From `draw_patients`.
    path : path-like
        The file: `model` (intercept, coefficients, SD of what nobody sees), and for the eligible patients of `train`,
        `test` and `all` their number, how many expand, the mean probability, and the best reachable AUC: in closed
        form, simulated, and as it happens to be for the labels drawn.
    seed : int
        Decides the simulation.
    centre : str
        Of `CENTRES`: what it adds to the log odds is part of the intercept.
    """
    truths = [patient["truth"] for patient in patients if not patient["truth"]["reason"]]
    cohort = np.array([truth["cohort"] for truth in truths])
    groups = {"train": cohort == "train", "test": cohort == "test", "all": cohort != ""}
    groups = {name: members for name, members in groups.items() if members.any()}
    log_odds, visible, every, labels = (
        np.array([truth[name] for truth in truths]) for name in ("visible_log_odds", "p_visible", "p_all", "expansion")
    )
    simulated = simulate_reachable_auc(log_odds, seed, groups=groups)
    intercept = EXPANSION_MODEL["intercept"] + CENTRES[centre]["log_odds"]
    content = {"model": {**EXPANSION_MODEL, "intercept": intercept}, "cohorts": {}}
    if centre == "first":
        content["prevalence_aimed_at"] = PREVALENCE
    for name, members in groups.items():
        positive = labels[members] == 1
        wins = _midranks(visible[members])[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
        content["cohorts"][name] = {
            "patients": int(members.sum()),
            "expansions": int(positive.sum()),
            "mean_probability": float(every[members].mean()),
            "best_reachable_auc": {
                "closed_form": best_reachable_auc(visible[members]),
                "simulated": simulated[name],
                "of_the_labels_drawn": float(wins / (positive.sum() * (~positive).sum())),
            },
        }
    path = Path(path)
    try:
        identical = read_json(path) == content
    except (OSError, ValueError):  # not there, or no JSON
        identical = False
    if not identical:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
