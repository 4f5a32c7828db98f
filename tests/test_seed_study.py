import json
import math
import subprocess
import sys

import numpy as np
import pytest

from haemex.errors import InputError
from haemex.nifti import write_volume
from haemex.provenance import ROOT
from haemex.seed_study import draw_seeds, spread, summarise_seeds
from haemex.tables import read_table, write_table

#          patient: (fold, expansion)
COHORT = {"a": (0, 1), "b": (0, 0), "c": (0, 0), "d": (1, 1), "e": (1, 0), "f": (1, 1)}
# Pooled, expansions a d f against b c e. Seed 1: all nine pairs but (d, e) and (f, e) in order, 7/9. Seed 2: the
# expansion f below b, c and e, and d level with e, 5.5/9.
PROBABILITIES = {
    1: {"a": 0.9, "b": 0.2, "c": 0.3, "d": 0.6, "e": 0.8, "f": 0.7},
    2: {"a": 0.9, "b": 0.2, "c": 0.3, "d": 0.5, "e": 0.5, "f": 0.1},
}
DICE = {
    1: {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": 0.95, "f": 0.85},
    2: {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.0, "e": 0.1, "f": 0.2},
}


@pytest.fixture
def job(tmp_path):
    """Arguments for two seeds and two folds, with their files."""
    write_cohort(tmp_path / "cohort.tsv")
    for seed, probabilities in PROBABILITIES.items():
        for fold in (0, 1):
            write_fold(tmp_path / "train", seed, fold, probabilities, DICE[seed])
    (tmp_path / "out").mkdir()
    return {
        "candidate": "base",
        "seeds": [1, 2],
        "train_folder": tmp_path / "train",
        "cohort_path": tmp_path / "cohort.tsv",
        "collapsed_dice": 0.3,
        "confidence": 0.95,
        "table_path": tmp_path / "out" / "seeds.tsv",
        "summary_path": tmp_path / "out" / "summary.json",
        "figure_stem": tmp_path / "out" / "seeds",
    }


def write_cohort(path):
    rows = [
        {"patient": patient, "cohort": "train", "fold": fold, "expansion": expansion, "pixel_digest": f"of {patient}"}
        for patient, (fold, expansion) in COHORT.items()
    ]
    write_table(path, [*rows, {**rows[0], "patient": "t", "cohort": "test", "fold": None, "pixel_digest": "of t"}])


def write_fold(folder, seed, fold, probabilities, dice):
    rows = [
        {"patient": p, "probability": probabilities[p], "logit": 0.0, "dice": dice[p], "predicted_ml": 1.0}
        for p, (its_fold, _) in COHORT.items()
        if its_fold == fold
    ]
    path = folder / f"seed{seed}" / f"fold{fold}" / "predictions.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, rows)


def test_spread_of_three_known_values():
    known = spread([0.70, 0.74, 0.72], 0.95)
    assert known["number"] == 3
    assert known["mean"] == pytest.approx(0.72)
    assert known["sd"] == pytest.approx(0.02)
    assert (known["min"], known["max"]) == (0.70, 0.74) and known["range"] == pytest.approx(0.04)
    # With two degrees of freedom the chi-square quantile is -2 ln(1 - p).
    assert known["sd_lower"] == pytest.approx(0.02 * math.sqrt(2 / (-2 * math.log(0.025))))
    assert known["sd_upper"] == pytest.approx(0.02 * math.sqrt(2 / (-2 * math.log(0.975))))


def test_one_value_has_no_spread_and_equal_ones_have_none_at_all():
    one = spread([0.7], 0.95)
    assert (one["mean"], one["range"]) == (0.7, 0)
    assert one["sd"] is one["sd_lower"] is one["sd_upper"] is None
    equal = spread([0.7] * 4, 0.95)
    assert equal["sd"] == equal["sd_upper"] == 0


def test_the_interval_holds_the_true_deviation_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        known["sd_lower"] <= 2 <= known["sd_upper"] for known in (spread(rng.normal(0, 2, 5), 0.8) for _ in range(2000))
    ]
    assert np.mean(held) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 2000))


def test_scores_of_every_seed_pooled_and_by_fold(job):
    summarise_seeds(**job)
    table = read_table(job["table_path"])
    assert [(row["seed"], row["fold"]) for row in table] == [(1, 0), (1, 1), (1, "all"), (2, 0), (2, 1), (2, "all")]
    assert [row["auc"] for row in table] == pytest.approx([1, 0, 7 / 9, 1, 0.25, 5.5 / 9])
    assert [row["dice_median"] for row in table] == pytest.approx([0.8, 0.85, 0.825, 0.8, 0.1, 0.45])
    assert table[2]["dice_mean"] == pytest.approx(4.8 / 6)
    assert [(row["patients"], row["expansions"]) for row in table[:3]] == [(3, 1), (3, 2), (6, 3)]
    assert [row["collapsed"] for row in table] == [0, 0, 0, 0, 1, 1]
    # DeLong by hand, seed 1: placements of the cases 1, 2/3, 2/3 and of the controls 1, 1, 1/3.
    assert table[2]["auc_sd"] ** 2 == pytest.approx(
        np.var([1, 2 / 3, 2 / 3], ddof=1) / 3 + np.var([1, 1, 1 / 3], ddof=1) / 3
    )


def test_summary(job):
    summarise_seeds(**job)
    summary = json.loads(job["summary_path"].read_text())
    table = read_table(job["table_path"])
    assert (summary["candidate"], summary["seeds"]) == ("base", [1, 2])
    assert (summary["folds"], summary["patients"], summary["expansions"]) == (2, 6, 3)
    assert summary["auc"]["mean"] == pytest.approx(12.5 / 18)
    assert summary["auc"]["sd"] == pytest.approx(1.5 / 9 / math.sqrt(2))
    assert summary["dice_median"]["range"] == pytest.approx(0.375)
    assert summary["auc_sd_patients"] ** 2 == pytest.approx((table[2]["auc_sd"] ** 2 + table[5]["auc_sd"] ** 2) / 2)
    (alarm,) = summary["alarms"]
    assert alarm.startswith("seed 2, fold 1: the median Dice coefficient of its 3 patients is 0.100, below 0.3")


def test_the_same_predictions_give_the_same_bytes(job):
    summarise_seeds(**job)
    files = {path: path.read_bytes() for path in job["table_path"].parent.iterdir()}
    assert {path.name for path in files} == {"seeds.tsv", "summary.json", "seeds.png", "seeds.svg", "seeds.pdf"}
    summarise_seeds(**job)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_the_figure_shows_every_fold_the_mean_and_both_deviations(job):
    summarise_seeds(**job)
    summary, table = json.loads(job["summary_path"].read_text()), read_table(job["table_path"])
    figure = draw_seeds(table, summary)
    auc, dice = figure.axes
    pooled = [line.get_xydata()[0].tolist() for line in dice.lines if line.get_label() == "all folds pooled"]
    assert pooled == [[0, pytest.approx(0.825)], [1, pytest.approx(0.45)]]
    assert sum(line.get_label() == "one fold" for line in auc.lines) == 4
    assert len(auc.containers) == 1 and not dice.containers  # DeLong's deviation stands beside the AUC only
    assert "SD over the seeds 0.118" in " ".join(text.get_text() for text in auc.texts)


def test_folds_without_both_kinds_and_one_seed_still_draw(job):
    cohort = read_table(job["cohort_path"], as_text=True)
    for row in cohort:
        row["expansion"] = str(int(row["patient"] in "ad"))
        row["fold"] = "1" if row["patient"] in "ad" else "0"
    write_table(job["cohort_path"], cohort)
    for fold, patients in ((0, "bcef"), (1, "ad")):
        rows = [{"patient": p, "probability": PROBABILITIES[1][p], "dice": DICE[1][p]} for p in patients]
        write_table(job["train_folder"] / "seed1" / f"fold{fold}" / "predictions.tsv", rows)
    summarise_seeds(**{**job, "seeds": [1]})
    assert [row["auc"] for row in read_table(job["table_path"])] == [None, None, pytest.approx(6 / 8)]
    assert json.loads(job["summary_path"].read_text())["auc"]["sd"] is None


@pytest.mark.parametrize("fault", ["missing", "foreign", "nan", "empty"])
def test_predictions_that_do_not_fit_are_refused_before_anything_is_written(job, fault):
    path = job["train_folder"] / "seed2" / "fold1" / "predictions.tsv"
    rows = read_table(path)
    if fault == "missing":
        rows.pop()
    elif fault == "foreign":
        rows[0]["patient"] = "a"
    elif fault == "nan":
        rows[0]["probability"] = None
    else:
        rows[0]["dice"] = "inf"
    write_table(path, rows)
    with pytest.raises(InputError, match=r"seed2.fold1.predictions.*fold 1|no finite number"):
        summarise_seeds(**job)
    assert not list(job["table_path"].parent.iterdir())


def test_a_cohort_of_one_kind_is_refused(job):
    cohort = read_table(job["cohort_path"], as_text=True)
    write_table(job["cohort_path"], [{**row, "expansion": "0"} for row in cohort])
    with pytest.raises(InputError, match="0 of 6 patients"):
        summarise_seeds(**job)


# --- the rules, in a workflow of their own -----------------------------------------------------------------------

SNAKEFILE = """
import sys
from types import SimpleNamespace
from haemex.provenance import code_version

study = SimpleNamespace(
    training={patients!r},
    folds=[0, 1],
    candidate=lambda name, section: config["candidates"][name][section],
    training_mb=lambda *names: 1000,
)
pathvars:
    results="results",
include: {include!r}
rule all:
    default_target: True
    input: "results/seed_study/seeds.tsv"
"""


def workflow(folder, seeds):
    training = {
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "rate_milestones": [1],
        "rate_factor": 0.1,
        "loss_weights": {"segmentation": 0.9, "classification": 0.1},
        "deterministic": True,
        "threads": 1,
        "precision": "fp32",
        "compile": False,
        "channels_last": False,
    }
    network = {"widths": [2, 3, 4, 4], "convs_per_level": 1, "normalisation": "batch", "in_plane_levels": 0}
    config = {
        "seed": 7,
        "candidates": {"base": {"network": network, "training": training}},
        "seed_study": {"candidate": "base", "seeds": seeds},
        "select": {"collapsed_dice": 0.3},
        "evaluate": {"confidence": 0.95},
        "computing": {"memory_gb": 1.0, "device_memory_part": 0.0, "checkpoint_minutes": 5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    include = str(ROOT / "workflow/rules/seed_study.smk")
    (folder / "Snakefile").write_text(SNAKEFILE.format(patients=list(COHORT), include=include))
    return config


def run(folder, *options):
    command = [sys.executable, "-m", "snakemake", "--configfile", "config.json", "--cores", "1", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    from test_dataset import SLOPE, write_copies
    from test_training import AFFINE, synthetic_scan

    results = tmp_path / "results"
    for name in ("cohort", "resample"):
        (results / name).mkdir(parents=True)
    write_cohort(results / "cohort" / "cohort.tsv")
    for patient, (_, expansion) in COHORT.items():
        ct, mask = synthetic_scan(patient, expansion)
        write_copies(results / "augment", patient, [ct, ct[:, ::-1]], [mask, mask[:, ::-1]], AFFINE)
        write_volume(results / "resample" / f"{patient}_ct.nii.gz", ct * SLOPE, AFFINE, slope=SLOPE)
        write_volume(results / "resample" / f"{patient}_haematoma.nii.gz", mask, AFFINE)
    return tmp_path


def test_every_seed_trains_every_fold(project):
    workflow(project, [1, 2, 3])
    said = run(project, "--dry-run")
    assert said.count("rule seed_study_train:") == 3 * 2 and said.count("rule seed_study:") == 1
    assert "seed_study_train/seed3/fold1/predictions.tsv" in said


@pytest.mark.slow
def test_the_studys_own_seed_repeats_its_training_and_another_does_not(project):
    from haemex.training import train_network

    config = workflow(project, [7, 8])
    run(project)
    results = project / "results"
    paths = {"weights_path": "model.safetensors", "history_path": "history.tsv", "roles_path": "roles.tsv"}
    paths |= {"predictions_path": "predictions.tsv"}
    (project / "own").mkdir()
    train_network(
        patients=[patient for patient, (fold, _) in COHORT.items() if fold != 0],
        validation=[patient for patient, (fold, _) in COHORT.items() if fold == 0],
        labels={patient: expansion for patient, (_, expansion) in COHORT.items()},
        digests={patient: f"of {patient}" for patient in COHORT},
        augment_folder=results / "augment",
        scan_folder=results / "resample",
        seed=config["seed"],
        purpose="train base fold0",
        checkpoint_path=project / "own" / "checkpoint",
        **config["candidates"]["base"],
        **{name: project / "own" / file for name, file in paths.items()},
    )
    own = (project / "own" / "model.safetensors").read_bytes()
    assert (results / "seed_study_train/seed7/fold0/model.safetensors").read_bytes() == own
    assert (results / "seed_study_train/seed8/fold0/model.safetensors").read_bytes() != own
    assert (results / "seed_study_train/seed8/fold1/curve.png").stat().st_size > 1000
    assert (results / "seed_study_train/seed8/fold1/events.out.tfevents").stat().st_size > 100
    assert not list(results.rglob("*.checkpoint"))
    assert len(read_table(results / "seed_study/seeds.tsv")) == 2 * 3
    assert "Nothing to be done" in run(project)
    workflow(project, [7, 8, 9])  # one more seed costs its own trainings only
    assert run(project, "--dry-run").count("rule seed_study_train:") == 2
