"""A study of made-up heads as a user has it: the least of patients, pixels and epochs that go through every stage."""

import numpy as np
import yaml

from haemex.nifti import write_volume

GRID, SPACING_MM = (20, 48, 48), (7.5, 4.0, 4.0)  # z, y, x
# Of the training and of the test period; each with and without expansion.
TRAIN, TEST = 4, 3
CONFIG = {
    "study": "small",
    "cohort_table": "cohort.tsv",
    "resample": {"field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [16, 16, 16]},
    "augment": {"copies": 2},
    "folds": 2,
    "network": {"widths": [2, 3, 4, 5], "convs_per_level": 1},
    "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1.0e-3, "rate_milestones": [1]},
    "candidates": {"rate_3e-4": None, "rate_3e-5": None},
    "select": {"collapsed_dice": 0.0},  # two epochs teach such a network nothing
}


def write_head_study(folder, write_series=None):
    """Write `small.yaml`, the cohort table and its files; with `write_series`, the first patient's CT as DICOM."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    rows = []
    for number in range(TRAIN + TEST):
        patient, rng = f"P{number}", np.random.default_rng(number)
        centre, radius = rng.uniform(-20, 20, 3), rng.uniform(14, 20)
        ct, mask = _head(centre, radius, rng)
        affine = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
        (folder / "scans").mkdir(exist_ok=True)
        place = f"scans/{patient}.nii.gz"
        if write_series and number == 0:
            place = f"scans/{patient}"
            origins = [(0.0, 0.0, z * SPACING_MM[0]) for z in range(GRID[0])]
            write_series(folder / place, origins, ct + 1024, spacing=SPACING_MM[1:], SliceThickness=SPACING_MM[0])
        else:
            write_volume(folder / place, ct.astype(np.int16), affine)
        write_volume(folder / f"scans/{patient}_mask.nii.gz", mask.astype(np.uint8), affine)
        volume = mask.sum() * np.prod(SPACING_MM) / 1000
        rows.append(
            {
                "patient": patient,
                "admission_date": f"{2014 if number < TRAIN else 2019}-03-{number + 1:02d}",
                "age_years": 50 + 3 * number,
                "sex": "mf"[number % 2],
                "haemorrhage_site": "supratentorial",
                "onset_to_ct_h": 1.5 + 0.3 * number,
                "ct_to_followup_h": 24,
                "died_or_surgery_before_followup": 0,
                "poor_image_quality": 0,
                "baseline_ct": place,
                "baseline_mask": f"scans/{patient}_mask.nii.gz",
                "followup_volume_ml": round(volume * (1.6 if number % 2 else 1.02), 2),
                "nihss": 5 + number,
                "hypodensity": number % 3 == 0,
                "blend": number % 4 == 0,
                "intraventricular_haemorrhage": number % 5 == 0,
            }
        )
    lines = [
        "\t".join(rows[0]),
        *("\t".join(str(int(v) if v is True or v is False else v) for v in row.values()) for row in rows),
    ]
    (folder / "cohort.tsv").write_text("\n".join(lines) + "\n")


def _head(centre, radius, rng):
    """CT in HU and mask, (z, y, x): a skull around a brain, a bright ball within."""
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(GRID, SPACING_MM, strict=True)), indexing="ij"
    )
    outer = np.sqrt((z / 70) ** 2 + (y / 88) ** 2 + (x / 74) ** 2)
    ct = np.select([outer < 0.88, outer < 1.0], [34, 900], -1000) + np.rint(rng.normal(0, 3, GRID))
    ball = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) < radius
    ct[ball] = 64 + np.rint(rng.normal(0, 3, ball.sum()))
    return ct.astype(np.int16), ball
