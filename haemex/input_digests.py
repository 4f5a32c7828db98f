"""What a report was made from: digests of the scans, masks, tables, settings and code behind it.

Digests say whether two reports rest on the same inputs without saying what the inputs are: no path, name or value
stands in them.
"""

import hashlib
import json
from pathlib import Path

from haemex.files import read_json
from haemex.nifti import read_volume
from haemex.tables import read_table, write_table

COLUMNS = ("patient", "cohort", "baseline_ct", "followup_ct", "baseline_mask")


def patient_digests(cohort_path, measure_folder):
    """Digest the scans and the mask of every patient who entered.

    Parameters
    ----------
    cohort_path : path-like
        `cohort/cohort.tsv`.
    measure_folder : path-like
        `{patient}.json` with the digest of the pixels of each scan, and `{patient}_haematoma.nii.gz`.

    Returns
    -------
    list of dict
        `COLUMNS`, ordered by patient. Digests are SHA-256 in hexadecimal digits: of the pixels of a scan as
        `haemex.convert` digests them (None without a follow-up scan), and of the baseline mask's voxels in the order of
        the converted scan, one byte each, after the shape (z, y, x) as text.
    """
    rows = []
    for row in sorted(read_table(cohort_path), key=lambda row: row["patient"]):
        if row["cohort"] not in ("train", "test"):
            continue
        pixels = read_json(Path(measure_folder, f"{row['patient']}.json"))["pixel_digest"]
        mask, _ = read_volume(Path(measure_folder, f"{row['patient']}_haematoma.nii.gz"))
        digest = hashlib.sha256(f"{tuple(int(n) for n in mask.shape)}".encode())
        digest.update((mask > 0).astype("u1").tobytes())
        scans = (pixels.get("baseline"), pixels.get("followup"))
        rows.append(dict(zip(COLUMNS, (row["patient"], row["cohort"], *scans, digest.hexdigest()), strict=True)))
    return rows


def combined(digests):
    """Digest digests: the same for the same set, whatever the order and whoever the patients are."""
    return digest_of(sorted(digests))


def digest_of(content):
    """Digest what JSON can hold: SHA-256 of the compact text with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def summarise_inputs(rows, table_digest, config):
    """Say in a few lines what a study was made from.

    Parameters
    ----------
    rows : list of dict
        `patient_digests`.
    table_digest : str
        Digest of the clinical table's content.
    config : dict
        The settings, without paths.

    Returns
    -------
    list of dict
        `what`, `number` of items and `digest`.
    """
    scans = [row[name] for row in rows for name in ("baseline_ct", "followup_ct") if row[name]]
    return [
        {"what": "CT scans, all pixels", "number": len(scans), "digest": combined(scans)},
        {
            "what": "Baseline masks, all voxels",
            "number": len(rows),
            "digest": combined([row["baseline_mask"] for row in rows]),
        },
        {"what": "Clinical table, the columns used", "number": 1, "digest": table_digest},
        {"what": "Settings", "number": 1, "digest": digest_of(config)},
    ]


def write_digests(rows, path):
    """Write `patient_digests` as a table, whole or not at all."""
    write_table(path, rows, COLUMNS)
