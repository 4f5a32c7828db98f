"""A small finished study, made up: every file that `evaluate`, the figures and the report read.

Twelve training and eight test patients, ellipsoids for haematomas, a network that misses by a few millimetres. Nothing
here is computed by the stages under test, so their tests do not lean on each other.
"""

import copy
import csv
import hashlib
import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from haemex.comparators import write_comparators
from haemex.nifti import read_volume, write_volume

# A measure and the sentence of each marker, as `haemex.markers` words them.
EVIDENCE = {
    "hypodensity": ({"inside_hu": 41.2, "around_hu": 65.1}, "41 HU inside, 65 around, 21 deep, 30 mm2; slice {}"),
    "black_hole": ({"difference_hu": 33.4}, "30 HU inside, 64 around, difference 33 (28 asked); slice {}"),
    "swirl": ({"depth_mm": 6.5}, "36 HU, brain 33, 40 mm2, 7 mm deep; slice {}"),
    "blend": ({"difference_hu": 20.3}, "48 HU beside 68, difference 20 (18 asked); slice {}"),
    "fluid_level": ({"line_mm": 19.0}, "36 HU above, 62 below a line of 19 mm, brain 33; slice {}"),
    "irregular_shape": ({"irregularities": 3}, "irregularities: 3 (2 asked), 1 of them separate; hollows: 1; slice {}"),
    "heterogeneous_density": ({"foci": 4}, "foci: 4 (3 asked), standard deviation 9 HU; slice {}"),
}

PREPARATION = {
    "convert": {"slice_thickness_mm": 5.0},
    "skullstrip": {"seal_gap_mm": 4.0, "min_brain_ml": 500.0, "plausible_brain_ml": [900.0, 1900.0]},
    "resample": {
        "field_of_view_mm": [160.0, 160.0, 160.0],
        "matrix": [32, 32, 16],
        "spline_order": 3,
        "window_hu": [0.0, 100.0],
    },
}
EXPANSION = {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"}
FOLDS = 3
TRAIN, TEST = 12, 8
FLAT = 16  # a test patient (counted from 0) so flat that only the shape is decided from the CT
MARKERS = (
    "hypodensity",
    "black_hole",
    "swirl",
    "blend",
    "fluid_level",
    "irregular_shape",
    "heterogeneous_density",
)
SCANNERS = (
    {"manufacturer": "GE MEDICAL SYSTEMS", "model": "Optima CT540", "fov": 250.0, "tilt": 0.0},
    {"manufacturer": "SIEMENS", "model": "SOMATOM Force", "fov": 220.0, "tilt": 15.0},
)


def ellipsoid(shape, affine, centre_mm, radii_mm):
    """Indicator (z, y, x) of an ellipsoid on a grid whose affine takes (x, y, z) to RAS mm."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    mm = np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]
    return ((((mm - centre_mm) / radii_mm) ** 2).sum(-1) <= 1.0).astype(np.uint8)


def write_tsv(path, rows):
    """Write dicts of one shape; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(rows[0])]
    for row in rows:
        lines.append(
            "\t".join("" if v is None else repr(float(v)) if isinstance(v, float) else str(v) for v in row.values())
        )
    path.write_text("\n".join(lines) + "\n")


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def change_json(path, change):
    """Let `change` alter the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def change_table(path, change):
    """Replace the rows of a table, all text, by `change(rows)`."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    write_tsv(path, change(rows))


def native_grid(matrix, slices, scanner):
    """Affine of an axial scan, x to the left, y to the back, sheared by the gantry tilt."""
    spacing = scanner["fov"] / matrix
    tilt = np.radians(scanner["tilt"])
    affine = np.array(
        [
            [-spacing, 0, 0, spacing * (matrix - 1) / 2],
            [0, -spacing * np.cos(tilt), 5.0 * np.sin(0), spacing * (matrix - 1) / 2 * np.cos(tilt)],
            [0, -spacing * np.sin(tilt), 5.0, 0],
            [0, 0, 0, 1],
        ]
    )
    affine[2, 3] = -(affine[2, :3] @ [(matrix - 1) / 2, (matrix - 1) / 2, (slices - 1) / 2])
    return affine


def fabricate(folder, matrix=48, slices=12, signal=1.5, seed=10):
    """Write the study under `folder` and return its paths and clinical rows.

    Parameters
    ----------
    matrix, slices : int
        Native grid; small for tests, larger to look at the pictures.
    signal : float
        How far apart the two outcomes lie on the network's logit.
    """
    rng, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    R = Path(folder)
    patients = [f"P{i:03d}" for i in range(1, TRAIN + TEST + 1)]
    cohort, clinical, predictions, out_of_fold, scores_oof = [], [], [], [], {}
    for i, patient in enumerate(patients):
        is_train = i < TRAIN
        expansion = int(i % 3 == 0)
        scanner = SCANNERS[i % 2]
        affine = native_grid(matrix, slices, scanner)
        shape = (slices, matrix, matrix)
        side = 1 if i % 2 else -1
        centre = np.array([side * rng.uniform(22, 34), rng.uniform(-15, 12), rng.uniform(-6, 6)])
        radii = rng.uniform(9, 17, 3) + 3 * expansion
        head = ellipsoid(shape, affine, [0, 0, 0], [72, 92, 80])
        brain = ellipsoid(shape, affine, [0, 0, 0], [66, 86, 74])
        haematoma = ellipsoid(shape, affine, centre, radii)
        miss = rng.normal(0, 1.2, 3)
        predicted = ellipsoid(shape, affine, centre + miss, radii * rng.uniform(0.9, 1.08))
        if i == TRAIN + 2:  # a test patient whose haematoma the network does not find
            predicted[:] = 0
        hu = np.full(shape, -1000.0)
        hu[head == 1] = 900
        hu[brain == 1] = 32
        hu[haematoma == 1] = 64
        hu[brain == 1] += noise.normal(0, 4, int(brain.sum()))
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        baseline_ml = float(haematoma.sum() * voxel_ml)
        followup_ml = baseline_ml + (9.0 if expansion else 0.8)

        (R / "convert").mkdir(parents=True, exist_ok=True)
        write_volume(R / f"convert/{patient}_baseline.nii.gz", np.rint(hu).astype(np.int16), affine)
        spacing = scanner["fov"] / matrix
        for timepoint in ("baseline", "followup"):
            write_json(
                R / f"convert/{patient}_{timepoint}.json",
                {
                    "acquisition": {
                        "manufacturer": scanner["manufacturer"],
                        "model": scanner["model"],
                        "slice_thickness_mm": 5.0,
                        "slices": slices,
                        "matrix": [matrix, matrix],
                        "pixel_spacing_mm": [spacing, spacing],
                        "field_of_view_mm": [scanner["fov"], scanner["fov"]],
                        "window_width": 90.0,
                        "window_level": 35.0,
                        "kernel": None,
                        "kvp": 120.0,
                    },
                    "geometry": {
                        "shape_xyz": [matrix, matrix, slices],
                        "acquired_slices": slices,
                        "even": True,
                        "tilt_deg": scanner["tilt"],
                        "voxel_volume_ml": voxel_ml,
                        "acquired_positions_mm": [5.0 * k for k in range(slices)],
                        "slice_extent_mm": [5.0] * slices,
                        "area_mm2": spacing**2,
                    },
                    "series": {
                        "taken": {"number": 2, "files": slices, "slice_thickness_mm": 5.0, "kernel": None},
                        "others": [],
                    },
                    "pixel_digest": hashlib.sha256(f"{patient} {timepoint}".encode()).hexdigest(),
                },
            )
        (R / "measure").mkdir(exist_ok=True)
        write_volume(R / f"measure/{patient}_haematoma.nii.gz", haematoma, affine)
        twice = i % 4 == 0
        write_json(
            R / f"measure/{patient}.json",
            {
                "patient": patient,
                "baseline_ml": baseline_ml,
                "followup_ml": followup_ml,
                "followup_source": "mask",
                "rater2_ml": baseline_ml * 1.02 if twice else None,
                "rater_dice": 0.96 + 0.002 * i if twice else None,
                "pixel_digest": {
                    t: hashlib.sha256(f"{patient} {t}".encode()).hexdigest() for t in ("baseline", "followup")
                },
            },
        )
        grid = np.array([[5.0, 0, 0, -77.5], [0, 5.0, 0, -77.5], [0, 0, 10.0, -35], [0, 0, 0, 1]])
        grid_shape = (8, 32, 32)
        (R / "resample").mkdir(exist_ok=True)
        grid_mask = ellipsoid(grid_shape, grid, centre, radii)
        write_volume(R / f"resample/{patient}_haematoma.nii.gz", grid_mask, grid)
        write_json(
            R / f"resample/{patient}.json",
            {
                "mean_hu": 33.0,
                "sd_hu": 6.0,
                "haematoma_inside_fraction": 1.0 if i % 5 else 0.93,
                "haematoma_voxels": int(grid_mask.sum()),
                "grid_affine": grid.tolist(),
            },
        )
        (R / "predict/maps").mkdir(parents=True, exist_ok=True)
        write_volume(R / f"predict/maps/{patient}_haematoma.nii.gz", predicted, affine)
        grid_predicted = ellipsoid(grid_shape, grid, centre + miss, radii) * bool(predicted.any())
        write_volume(R / f"predict/maps/{patient}_grid.nii.gz", grid_predicted.astype(np.uint8), grid)

        row = {
            "patient": patient,
            "cohort": "train" if is_train else "test",
            "fold": i // 3 % FOLDS if is_train else None,
            "expansion": expansion,
            "baseline_ml": baseline_ml,
            "followup_ml": followup_ml,
        }
        cohort.append(row)
        logit = float(signal * (expansion - 0.5) + rng.normal(0, 1.0))
        predictions.append(
            {
                "patient": patient,
                "cohort": row["cohort"],
                "probability": float(1 / (1 + np.exp(-logit))),
                "logit": logit,
                "calibrated_probability": None,
                "positive": None,
                "predicted_ml": float(predicted.sum() * voxel_ml),
                "ensemble_probability": float(1 / (1 + np.exp(-0.9 * logit))),
                "ensemble_sd": 0.01 * (i + 1),
            }
        )
        if is_train:
            logit = float(signal * (expansion - 0.5) + rng.normal(0, 1.0))
            scores_oof[patient] = logit
            out_of_fold.append(
                {
                    "patient": patient,
                    "fold": row["fold"],
                    "expansion": expansion,
                    "probability": float(1 / (1 + np.exp(-logit))),
                    "logit": logit,
                    "dice": float(rng.uniform(0.75, 0.95)),
                    "predicted_ml": baseline_ml * float(rng.uniform(0.9, 1.1)),
                }
            )
        markers = {m: int(rng.random() < (0.6 if expansion else 0.35)) for m in MARKERS}
        clinical.append(
            {
                "patient": patient,
                "admission_date": date(2018, 1, 1) + timedelta(days=30 * i),
                "age_years": 50.0 + i,
                "sex": "mf"[i % 2],
                "onset_to_ct_h": 1.0 + 0.3 * i,
                "nihss": 5 + i,
                "hypertension": int(i % 4 > 0),
                **{name: int(i % 7 == 1) for name in ("diabetes", "prestroke", "antiplatelet", "anticoagulation")},
                "intraventricular_haemorrhage": int(i % 3 == 1),
                **markers,
                **{f"{m}_rater2": (v if rng.random() < 0.85 else 1 - v) for m, v in markers.items()},
            }
        )
    clinical[TRAIN + 1]["swirl"] = None  # a missing reading in the test cohort
    for i, row in enumerate(clinical):
        write_computed_markers(R, i, row, np.random.default_rng([seed, i]))

    calibration = newton_logistic([r["logit"] for r in out_of_fold], [r["expansion"] for r in out_of_fold])
    threshold = brute_force_youden([r["expansion"] for r in out_of_fold], [r["probability"] for r in out_of_fold])
    for row in predictions:
        row["positive"] = int(row["probability"] >= threshold)
        eta = calibration["intercept"] + calibration["slope"] * row["logit"]
        row["calibrated_probability"] = float(1 / (1 + np.exp(-eta)))

    write_tsv(R / "cohort/cohort.tsv", cohort)
    expansions = {c: sum(r["expansion"] for r in cohort if r["cohort"] == c) for c in ("train", "test")}
    write_json(
        R / "cohort/flow.json",
        {
            "screened": 31,
            "not_included": {"age": 1, "onset_to_ct": 2, "followup_interval": 1, "missing_data": 1},
            "included": 26,
            "excluded": {
                "infratentorial": 2,
                "ventricular_only": 1,
                "died_or_surgery": 1,
                "poor_image_quality": 1,
            },
            "eligible": 21,
            "outside_dates": 1,
            "train": TRAIN,
            "test": TEST,
            "expansion": expansions,
        },
    )
    write_tsv(
        R / "cohort/label_flips.tsv",
        [
            {
                "definition": "> 6 mL or > 33 %",
                "patients": TRAIN + TEST,
                "expansions": sum(expansions.values()),
                "flips": 0,
            },
            {"definition": ">= 12.5 mL", "patients": TRAIN + TEST, "expansions": 3, "flips": 4},
        ],
    )
    columns = "variable label group type train test train_n test_n train_missing test_missing method p p_text smd"
    empty = dict.fromkeys(columns.split())
    ages = {"variable": "age_years", "label": "Age, years", "type": "mean±SD", "train": "55.5±3.6", "test": "65.5±2.4"}
    swirl = {"variable": "swirl", "label": "Swirl sign", "type": "n (%)", "train": "6 (50.0)", "test": "3 (42.9)"}
    write_tsv(
        R / "table1/table1.tsv",
        [
            {**empty, "label": "Sample size (n)", "type": "n", "train": "12", "test": "8", "p_text": "N/A"},
            {**empty, **ages, "train_missing": 0, "test_missing": 0, "p": 1e-5, "p_text": "<0.001", "smd": -3.3},
            {**empty, **swirl, "group": "NCCT markers", "train_missing": 0, "test_missing": 1, "p": 0.8}
            | {"p_text": "0.800", "smd": 0.14},
        ],
    )
    columns = columns.replace("train", "expansion").replace("test", "no_expansion")
    empty = dict.fromkeys(columns.split())
    ages = {"variable": "age_years", "label": "Age, years", "type": "mean±SD"}
    ages |= {"expansion": "58.0±6.3", "no_expansion": "60.2±5.9", "expansion_n": 7, "no_expansion_n": 13}
    swirl = {"variable": "swirl", "label": "Swirl sign", "type": "n (%)", "expansion": "5 (71.4)"}
    swirl |= {"no_expansion": "4 (33.3)", "expansion_n": 7, "no_expansion_n": 12}
    write_tsv(
        R / "table1/table1_expansion.tsv",
        [
            {**empty, "label": "Sample size (n)", "type": "n", "expansion": "7", "no_expansion": "13", "p_text": "N/A"}
            | {"expansion_n": 7, "no_expansion_n": 13, "expansion_missing": 0, "no_expansion_missing": 0},
            {**empty, **ages, "expansion_missing": 0, "no_expansion_missing": 0, "method": "Student's t-test"}
            | {"p": 0.441, "p_text": "0.441", "smd": -0.36},
            {**empty, **swirl, "group": "NCCT markers", "expansion_missing": 0, "no_expansion_missing": 1}
            | {"method": "Pearson's chi-square test", "p": 0.109, "p_text": "0.109", "smd": 0.82},
        ],
    )
    roles_paths = []
    for candidate in ("base", "rate_1e-3"):
        for fold in range(FOLDS):
            job = R / f"train/{candidate}/fold{fold}"
            roles = []
            for row in cohort:
                if row["cohort"] == "train" and row["fold"] == fold:
                    roles.append({"patient": row["patient"], "copy": "scan", "role": "validation"})
                elif row["cohort"] == "train":
                    roles += [{"patient": row["patient"], "copy": c, "role": "train"} for c in range(2)]
            write_tsv(job / "roles.tsv", roles)
            roles_paths.append(job / "roles.tsv")
            write_tsv(job / "history.tsv", history(rng, validated=True))
    write_tsv(R / "final/history.tsv", history(rng, validated=False))
    write_tsv(
        R / "final/roles.tsv",
        [
            {"patient": r["patient"], "copy": c, "role": "train"}
            for r in cohort
            if r["cohort"] == "train"
            for c in range(2)
        ],
    )
    write_tsv(R / "select/predictions.tsv", out_of_fold)
    scores = {
        name: {
            "auc": auc,
            "auc_lower": auc - 0.2,
            "auc_upper": auc + 0.2,
            "auc_sd": 0.123,
            "dice_median": 0.85,
            "dice_median_sd": 0.045,
            "dice_mean": 0.84,
            "collapsed_folds": [],
        }
        for name, auc in (("base", 0.71), ("rate_1e-3", 0.66))
    }
    write_json(
        R / "select/selected.json",
        {
            "candidate": "base",
            "criterion": "auc",
            "rule": {
                "criterion": "The candidate with the highest AUC is chosen.",
                "collapsed_fold": "A fold with a median Dice coefficient below 0.1 would have ended the selection.",
                "operating_point": "The operating point is that of Youden.",
                "calibration": "Probabilities are calibrated by Platt's method.",
            },
            "scores": scores,
            "confidence": 0.95,
            "dropped": [],
            "threshold": threshold,
            "calibration": calibration,
            "remarks": ["In AUC candidate base leads the next, rate_1e-3, by 0.050: the lead is within the spread."],
            "alarms": [],
        },
    )
    write_tsv(
        R / "select/candidates.tsv",
        [
            {
                "candidate": name,
                "fold": fold,
                "patients": TRAIN if fold == "all" else TRAIN // FOLDS,
                "expansions": 4,
                "auc": score["auc"],
                "auc_lower": score["auc_lower"],
                "auc_upper": score["auc_upper"],
                "auc_sd": score["auc_sd"] if fold == "all" else None,
                "dice_median": score["dice_median"],
                "dice_median_sd": score["dice_median_sd"] if fold == "all" else None,
                "dice_mean": score["dice_mean"],
                "collapsed": 0,
            }
            for name, score in scores.items()
            for fold in (*range(FOLDS), "all")
        ],
    )
    write_json(
        R / "final/model/model.json",
        {
            "format": 3,
            "ensemble": [{"file": f"fold{fold}.safetensors", "sha256": "0" * 64} for fold in range(FOLDS)],
            "network": {
                "widths": [8, 16, 32, 64],
                "convs_per_level": 2,
                "normalisation": "batch",
                "parameters": 601234,
            },
            "weights_sha256": "0" * 64,
            "preparation": PREPARATION,
            "preprocessing": PREPARATION["resample"],
            "operating_point": {"threshold": threshold, "rule": "youden"},
            "calibration": calibration,
            "training": {"epochs": 8, "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"},
            "cohort": {"patients": TRAIN, "expansions": expansions["train"]},
            "versions": {"haemex": "0.1.0", "torch": "2.13.0"},
        },
    )
    write_tsv(R / "predict/predictions.tsv", predictions)

    rows = [
        {**one, **member, "bat_score": one["blend"] + 2 * one["hypodensity"] + 2 * (one["onset_to_ct_h"] < 2.5)}
        for one, member in zip(clinical, cohort, strict=True)
    ]
    write_comparators(
        [row for row in rows if row["cohort"] == "train"],
        measure_folder=R / "measure",
        convert_folder=R / "convert",
        path=R / "final/model/comparators.json",
        expansion=EXPANSION,
        operating_point="youden",
        min_sensitivity=0.9,
    )
    return SimpleNamespace(
        R=R,
        rows=rows,
        predictions=predictions,
        out_of_fold=out_of_fold,
        threshold=threshold,
        evaluate={
            "rows": rows,
            "out_of_fold_path": R / "select/predictions.tsv",
            "selected_path": R / "select/selected.json",
            "model_folder": R / "final/model",
            "roles_paths": roles_paths,
            "final_roles_path": R / "final/roles.tsv",
            "predict_folder": R / "predict",
            "measure_folder": R / "measure",
            "convert_folder": R / "convert",
            "resample_folder": R / "resample",
            "markers_folder": R / "markers",
            "out_folder": R / "evaluate",
            "confidence": 0.95,
            "bat_cut": 3,
            "operating_point": "youden",
            "min_sensitivity": 0.9,
            "expansion": EXPANSION,
            "seed": 7,
        },
        figures={
            "flow_path": R / "cohort/flow.json",
            "evaluate_folder": R / "evaluate",
            "out_of_fold_path": R / "select/predictions.tsv",
            "histories": [path.with_name("history.tsv") for path in roles_paths] + [R / "final/history.tsv"],
            "convert_folder": R / "convert",
            "measure_folder": R / "measure",
            "predict_folder": R / "predict",
            "overlays": 6,
        },
    )


def write_computed_markers(R, i, row, rng):
    """Write what was computed from the CT of patient number i: mostly what was read, sometimes not, or nothing.

    The label map marks the middle slice of the haematoma for every sign that is present.
    """
    patient, markers = row["patient"], {}
    for m in MARKERS:
        present = (row[m] or 0) ^ int(rng.random() < 0.15)
        decided = i != FLAT or m == "irregular_shape"
        measures, sentence = EVIDENCE[m]
        said = decided and present
        markers[m] = {
            "present": present if decided else None,
            "read": row[m],
            "measures": {**measures, "slice": 4} if said else {},
            "evidence": sentence.format(4) if said else "",
        }
    apart = [
        m for m, one in markers.items() if None not in (one["present"], one["read"]) and one["present"] != one["read"]
    ]
    hours = row["onset_to_ct_h"]

    def bat(source):
        blend, hypodensity = markers["blend"][source], markers["hypodensity"][source]
        return None if None in (blend, hypodensity) else blend + 2 * hypodensity + 2 * (hours < 2.5)

    write_json(
        R / f"markers/{patient}.json",
        {
            "patient": patient,
            "markers": markers,
            "disagreements": apart,
            "onset_to_ct_h": hours,
            "bat_score": bat("present"),
            "bat_score_read": bat("read"),
        },
    )
    mask, affine = read_volume(R / f"measure/{patient}_haematoma.nii.gz")
    bits = np.zeros(mask.shape, np.uint8)
    middle = int(np.flatnonzero(mask.any((1, 2))).mean())
    bits[middle] = (mask[middle] > 0) * np.uint8(sum(1 << k for k, m in enumerate(MARKERS) if markers[m]["present"]))
    write_volume(R / f"markers/{patient}_markers.nii.gz", bits, affine)


def history(rng, validated):
    """Eight epochs of a training that learns a little."""
    rows = []
    for epoch in range(1, 9):
        loss = 0.9 * np.exp(-epoch / 4) + rng.uniform(0, 0.03)
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": 3e-3 if epoch <= 5 else 3e-4,
                "train_loss": float(loss),
                "train_dice_loss": float(loss * 0.9),
                "train_bce": float(0.6 + 0.1 * rng.random()),
                "val_dice_median": float(0.9 * (1 - np.exp(-epoch / 3))) if validated else None,
                "val_bce": float(0.62 + 0.1 * rng.random()) if validated else None,
                "seconds": 2.0,
            }
        )
    return rows


def brute_force_youden(labels, scores):
    """The cut (>= is positive) of the largest sensitivity + specificity, half-way to the next lower score."""
    labels, scores = np.array(labels), np.array(scores)

    def youden(cut):
        return round(np.mean(scores[labels == 1] >= cut) + np.mean(scores[labels == 0] < cut), 9)

    best = max(sorted(scores), key=youden)
    below = scores[scores < best]
    return float(best / 2 + below.max() / 2) if below.size else float(best)


def newton_logistic(x, labels):
    """Intercept and slope of a logistic regression, by plain Newton steps."""
    design, labels = np.stack([np.ones(len(x)), x], 1), np.array(labels, float)
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ beta))
        beta += np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]), design.T @ (labels - p))
    return {"method": "platt", "intercept": float(beta[0]), "slope": float(beta[1])}


# What an external evaluation does not have.
HOME_ONLY = ("out_of_fold_path", "selected_path", "roles_paths", "final_roles_path", "operating_point")


def give_weights(folder):
    """Write weights into a fabricated bundle, and describe them."""
    names = ["model.safetensors", *(f"fold{fold}.safetensors" for fold in range(3))]
    for name in names:
        (folder / name).write_bytes(f"weights of {name}".encode())
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    change_json(
        folder / "model.json",
        lambda content: content.update(
            weights_sha256=digests[0],
            ensemble=[{"file": name, "sha256": digest} for name, digest in zip(names[1:], digests[1:], strict=True)],
        ),
    )


def as_external(study):
    """The test cohort of a fabricated study as a centre of its own, which has the bundle and nothing else of it."""
    give_weights(study.R / "final/model")
    shutil.rmtree(study.R / "select")
    shutil.rmtree(study.R / "train")
    rows = [copy.deepcopy(row) for row in study.rows if row["cohort"] == "test"]
    for row in rows:
        row["fold"] = None
    theirs = {row["patient"] for row in rows}
    change_table(study.R / "predict/predictions.tsv", lambda r: [row for row in r if row["patient"] in theirs])
    keep = {name: value for name, value in study.evaluate.items() if name not in (*HOME_ONLY, "min_sensitivity")}
    study.external = keep | {"rows": rows, "out_folder": study.R / "external"}
    return study
