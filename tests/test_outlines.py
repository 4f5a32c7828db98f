"""The network's outlines beside the manual ones: against sets of voxels, by hand, and what is refused."""

import json
import math

import numpy as np
import pytest
from fabricated_study import TEST, TRAIN, fabricate

from haemex.errors import InputError
from haemex.evaluation import evaluate_study
from haemex.nifti import read_volume, write_volume
from haemex.outlines import segmentation_failure, segmentation_summary
from haemex.tables import read_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = fabricate(tmp_path_factory.mktemp("study"))
    evaluate_study(**study.evaluate)
    return study


@pytest.fixture
def study(tmp_path):
    return fabricate(tmp_path, matrix=24, slices=6)


def test_dice_against_sets_of_voxels(finished):
    rows = {row["patient"]: row for row in read_table(finished.R / "evaluate/dice.tsv")}
    assert len(rows) == TRAIN + TEST
    for patient in ("P002", "P013", "P020"):
        for column, a, b in (
            ("dice_native", f"measure/{patient}_haematoma.nii.gz", f"predict/maps/{patient}_haematoma.nii.gz"),
            ("dice_grid", f"resample/{patient}_haematoma.nii.gz", f"predict/maps/{patient}_grid.nii.gz"),
        ):
            sets = [{tuple(v) for v in np.argwhere(read_volume(finished.R / one)[0])} for one in (a, b)]
            expected = 2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1]))
            assert rows[patient][column] == pytest.approx(expected)
    assert rows["P015"]["dice_native"] == 0 and rows["P015"]["predicted_ml"] == 0
    assert rows["P013"]["dice_out_of_fold"] is None
    assert rows["P002"]["dice_out_of_fold"] == finished.out_of_fold[1]["dice"]


def test_masks_on_other_grids_are_refused(study):
    path = study.R / "predict/maps/P013_haematoma.nii.gz"
    mask, affine = read_volume(path)
    shifted = affine.copy()
    shifted[2, 3] += 5
    write_volume(path, mask, shifted)
    with pytest.raises(InputError, match="different grids"):
        evaluate_study(**study.evaluate)


def test_segmentation_summary_by_hand():
    rows = [
        {"cohort": "test", "dice_native": d, "dice_grid": d, "dice_out_of_fold": None, "reference_ml": 10.0}
        | {"predicted_ml": p, "inside_fraction": f, "hd95_native_mm": h, "hd95_grid_mm": h, "assd_native_mm": 2.0}
        | {"assd_grid_mm": None}
        for d, p, f, h in ((0.0, 0.0, 0.5, math.nan), (0.8, 12.0, 1.0, 4.0), (0.9, 9.0, 0.995, 7.0))
    ]
    test = segmentation_summary(rows, 0.95)["test"]
    assert test["native"]["median"] == 0.8 and test["native"]["min"] == 0
    assert test["native"]["mean"] == pytest.approx(1.7 / 3)
    assert test["missed"] == 1 and test["cut_off"] == 1 and test["least_inside"] == 0.5
    # One patient has no surface of the network's: the other two count, and the table says how many.
    assert (test["hd95_native"]["n"], test["hd95_native"]["median"], test["hd95_native"]["max"]) == (2, 5.5, 7.0)
    assert test["assd_native"]["mean"] == 2 and test["assd_grid"] is None and test["failures"] == 1
    differences = np.array([-10.0, 2.0, -1.0])
    spread = 1.959964 * differences.std(ddof=1)
    assert test["volume_difference_ml"] == pytest.approx([-3.0, -3.0 - spread, -3.0 + spread], abs=1e-4)


def test_out_of_fold_outlines_are_summed_up_apart_from_the_refitted_ones():
    rows = [
        {"cohort": "train", "dice_native": 0.9, "dice_grid": 0.9, "dice_out_of_fold": d, "reference_ml": 10.0}
        | {"predicted_ml": 10.5, "out_of_fold_ml": ml, "inside_fraction": 1.0, "hd95_native_mm": 3.0}
        | {"hd95_grid_mm": 3.0, "assd_native_mm": 1.0, "assd_grid_mm": 1.0}
        for d, ml in ((0.6, 7.0), (0.8, 12.0), (0.7, 8.0))
    ]
    train = segmentation_summary(rows, 0.95)["train"]
    assert train["native"]["mean"] == pytest.approx(0.9) and train["out_of_fold"]["mean"] == pytest.approx(0.7)
    assert train["out_of_fold"]["sd"] == pytest.approx(0.1) and train["out_of_fold"]["median"] == 0.7
    assert train["volume_difference_ml"] == pytest.approx([0.5, 0.5, 0.5])
    # Differences -3, 2, -2: mean -1, standard deviation sqrt(14 / 2).
    spread = 1.959964 * np.sqrt(7)
    assert train["out_of_fold_volume_difference_ml"] == pytest.approx([-1.0, -1.0 - spread, -1.0 + spread], abs=1e-4)
    alone = segmentation_summary([row | {"dice_out_of_fold": None} for row in rows], 0.95)["train"]
    assert "out_of_fold" not in alone and "out_of_fold_volume_difference_ml" not in alone


def test_volumes_of_the_models_that_did_not_see_the_patient(finished):
    rows = {row["patient"]: row for row in read_table(finished.R / "evaluate/dice.tsv")}
    assert rows["P002"]["out_of_fold_ml"] == finished.out_of_fold[1]["predicted_ml"]
    assert rows["P013"]["out_of_fold_ml"] is None
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())["segmentation"]
    differences = [
        row["out_of_fold_ml"] - row["reference_ml"] for row in rows.values() if row["out_of_fold_ml"] is not None
    ]
    assert len(differences) == TRAIN
    assert summary["train"]["out_of_fold_volume_difference_ml"][0] == pytest.approx(np.mean(differences))


def test_surface_distances_are_those_of_the_files(finished):
    from haemex.surface_distance import surface_distances

    rows = {row["patient"]: row for row in read_table(finished.R / "evaluate/dice.tsv")}
    for grid, a, b in (
        ("native", "measure/P016_haematoma.nii.gz", "predict/maps/P016_haematoma.nii.gz"),
        ("grid", "resample/P016_haematoma.nii.gz", "predict/maps/P016_grid.nii.gz"),
    ):
        (one, affine), (other, _) = read_volume(finished.R / a), read_volume(finished.R / b)
        hd95, assd = surface_distances(one, other, affine)
        assert (rows["P016"][f"hd95_{grid}_mm"], rows["P016"][f"assd_{grid}_mm"]) == (hd95, assd)
        assert 0 < assd < hd95 < 20
    lost = rows["P015"]
    assert lost["hd95_native_mm"] is None and lost["assd_native_mm"] is None and lost["failure"] == "nothing found"
    summary = json.loads((finished.R / "evaluate/summary.json").read_text())["segmentation"]["test"]
    assert summary["hd95_native"]["n"] == TEST - 1


@pytest.mark.parametrize(
    ("dice", "ml", "said"),
    [(0.0, 0.0, "nothing found"), (0.0, 3.0, "missed"), (0.49, 3.0, "Dice below 0.5"), (0.5, 3.0, "")],
)
def test_failed_outlines_are_named(dice, ml, said):
    assert segmentation_failure({"dice_native": dice, "predicted_ml": ml}) == said
