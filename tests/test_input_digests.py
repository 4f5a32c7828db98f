"""Digests of inputs: the same for the same content, another for another, and blind to order and names."""

import hashlib
import json

import numpy as np
import pytest
from fabricated_study import write_tsv

from haemex.files import write_json
from haemex.input_digests import COLUMNS, combined, digest_of, patient_digests, summarise_inputs, write_digests
from haemex.nifti import write_volume
from haemex.tables import read_table


@pytest.fixture
def study(tmp_path):
    masks = {"P2": np.zeros((2, 3, 4), np.uint8), "P1": np.ones((2, 3, 4), np.uint8)}
    cohort = [{"patient": name, "cohort": group} for name, group in (("P2", "test"), ("P1", "train"))]
    write_tsv(tmp_path / "cohort.tsv", cohort)
    for name, mask in masks.items():
        write_volume(tmp_path / f"{name}_haematoma.nii.gz", mask, np.eye(4))
        scans = {"baseline": f"{name}b" * 16, "followup": None if name == "P2" else f"{name}f" * 16}
        write_json(tmp_path / f"{name}.json", {"patient": name, "pixel_digest": scans})
    return tmp_path


def test_digests_of_a_patient_by_hand(study):
    first, second = patient_digests(study / "cohort.tsv", study)
    assert (first["patient"], first["cohort"]) == ("P1", "train")
    assert first["baseline_ct"] == "P1b" * 16 and second["followup_ct"] is None
    assert first["baseline_mask"] == hashlib.sha256(b"(2, 3, 4)" + b"\x01" * 24).hexdigest()
    write_digests([first, second], study / "inputs.tsv")
    again = read_table(study / "inputs.tsv", as_text=True)
    assert list(again[0]) == list(COLUMNS) and again == [first, second]


def test_one_voxel_one_pixel_and_one_setting_change_the_digest_they_belong_to_alone(study):
    def lines():
        rows = patient_digests(study / "cohort.tsv", study)
        return {row["what"]: row["digest"] for row in summarise_inputs(rows, "t" * 16, config)}

    config = {"a": 1, "b": {"c": [0.1, 2]}}
    before = lines()
    assert summarise_inputs(patient_digests(study / "cohort.tsv", study), "t", config)[0]["number"] == 3
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 2, 3] = 1
    write_volume(study / "P2_haematoma.nii.gz", mask, np.eye(4))
    after = lines()
    assert {what for what in before if before[what] != after[what]} == {"Baseline masks, all voxels"}
    config["b"]["c"][1] = 3
    assert {what for what in before if after[what] != lines()[what]} == {"Settings"}
    scans = json.loads((study / "P1.json").read_text())
    scans["pixel_digest"]["baseline"] = "0" * 64
    write_json(study / "P1.json", scans)
    assert lines()["CT scans, all pixels"] != before["CT scans, all pixels"]


def test_combined_digest_knows_no_order_but_every_member():
    assert combined(["a", "b"]) == combined(["b", "a"]) != combined(["a"])
    assert combined(["a", "a"]) != combined(["a"])
    assert digest_of({"x": 1, "y": 2}) == digest_of({"y": 2, "x": 1}) != digest_of({"x": 2, "y": 1})


def test_a_shape_is_part_of_the_digest(study):
    before = patient_digests(study / "cohort.tsv", study)[0]["baseline_mask"]
    write_volume(study / "P1_haematoma.nii.gz", np.ones((4, 3, 2), np.uint8), np.eye(4))
    assert patient_digests(study / "cohort.tsv", study)[0]["baseline_mask"] != before
