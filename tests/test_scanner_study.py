"""Leave one scanner out: known answers by hand, what is refused, and the rules in a workflow of their own."""

import json
import math
import statistics
import subprocess
import sys

import pytest

from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.nifti import write_volume
from haemex.provenance import ROOT, modules_behind
from haemex.scanner_study import POOLED, SCANNER_COLUMNS, compare_scanners, draw_scanners
from haemex.scanners import read_scanners, refuse_unknown_scanners, scanner_name, sides_without
from haemex.tables import read_table, write_table

GE, SIEMENS, UNKNOWN = "GE MEDICAL SYSTEMS Optima CT540", "SIEMENS Emotion 16", "not recorded"
RECORDED = {GE: ("GE MEDICAL SYSTEMS ", "Optima CT540"), SIEMENS: ("SIEMENS", "Emotion 16"), UNKNOWN: (None, "")}
#          patient: (fold, expansion, scanner, out-of-fold probability, unseen probability, Dice, unseen Dice)
COHORT = {
    "g1": (0, 1, GE, 0.9, 0.9, 0.9, 0.8),
    "g2": (0, 0, GE, 0.2, 0.5, 0.8, 0.1),
    "g3": (1, 1, GE, 0.8, 0.3, 0.7, 0.2),
    "g4": (1, 0, GE, 0.1, 0.1, 0.6, 0.0),
    "s1": (0, 1, SIEMENS, 0.6, 0.6, 0.9, 0.9),
    "s2": (0, 0, SIEMENS, 0.7, 0.5, 0.8, 0.8),
    "s3": (1, 0, SIEMENS, 0.3, 0.2, 0.7, 0.8),
    "u1": (1, 0, UNKNOWN, 0.4, 0.4, 0.9, 0.8),
}
SCANNERS = [GE, SIEMENS, UNKNOWN]


def write_cohort(path):
    rows = [
        {"patient": patient, "cohort": "train", "fold": fold, "expansion": expansion, "pixel_digest": f"of {patient}"}
        for patient, (fold, expansion, *_) in COHORT.items()
    ]
    write_table(path, [*rows, {**rows[0], "patient": "t", "cohort": "test", "fold": None, "pixel_digest": "of t"}])


def write_conversions(folder):
    folder.mkdir(parents=True)
    for patient, (_, _, scanner, *_) in COHORT.items():
        manufacturer, model = RECORDED[scanner]
        acquisition = {"manufacturer": manufacturer, "model": model, "slices": 30}
        write_json(folder / f"{patient}_baseline.json", {"acquisition": acquisition})


def write_training(folder, left_out, probability, dice):
    folder.mkdir(parents=True)
    write_table(
        folder / "predictions.tsv",
        [{"patient": p, "probability": COHORT[p][probability], "dice": COHORT[p][dice]} for p in left_out],
    )
    roles = [
        {"patient": p, "copy": copy, "role": "train"} for p in COHORT if p not in left_out for copy in ("00", "01")
    ]
    write_table(folder / "roles.tsv", roles + [{"patient": p, "copy": "scan", "role": "validation"} for p in left_out])


@pytest.fixture
def job(tmp_path):
    write_cohort(tmp_path / "cohort.tsv")
    write_conversions(tmp_path / "convert")
    for fold in (0, 1):
        write_training(tmp_path / f"train/base/fold{fold}", [p for p, own in COHORT.items() if own[0] == fold], 3, 5)
    for number, scanner in enumerate(SCANNERS, 1):
        left_out = [p for p, own in COHORT.items() if own[2] == scanner]
        write_training(tmp_path / f"unseen/scanner{number}", left_out, 4, 6)
    (tmp_path / "out").mkdir()
    return {
        "candidate": "base",
        "scanners": SCANNERS,
        "unseen_folder": tmp_path / "unseen",
        "train_folder": tmp_path / "train",
        "convert_folder": tmp_path / "convert",
        "cohort_path": tmp_path / "cohort.tsv",
        "collapsed_dice": 0.3,
        "confidence": 0.95,
        "table_path": tmp_path / "out" / "scanners.tsv",
        "summary_path": tmp_path / "out" / "summary.json",
        "figure_stem": tmp_path / "out" / "scanners",
    }


# --- who was scanned with what ---------------------------------------------------------------------------------------


def test_a_scanner_is_named_by_manufacturer_and_model(tmp_path):
    assert scanner_name({"manufacturer": " GE ", "model": "Optima"}) == "GE Optima"
    assert scanner_name({"manufacturer": None, "model": "Optima"}) == "Optima"
    assert scanner_name({"manufacturer": "", "model": None}) == "not recorded"
    write_conversions(tmp_path / "convert")
    assert read_scanners(COHORT, tmp_path / "convert") == {patient: own[2] for patient, own in COHORT.items()}
    assert list(read_scanners(["s1"], tmp_path / "convert")) == ["s1"]


def test_a_scanner_of_nobody_is_refused_with_those_there_are():
    scanner_of = {patient: own[2] for patient, own in COHORT.items()}
    refuse_unknown_scanners(SCANNERS, scanner_of)
    with pytest.raises(InputError) as refused:
        refuse_unknown_scanners([GE, "Optima CT540", "CANON"], scanner_of)
    assert refused.value.problem == 'no patient of the training cohort was scanned with "Optima CT540", "CANON"'
    assert f'"{GE}" (4); "{SIEMENS}" (3); "{UNKNOWN}" (1)' in refused.value.action


def test_sides_are_all_others_and_all_of_the_scanner():
    scanner_of = {patient: own[2] for patient, own in COHORT.items()}
    labels = dict(zip(scanner_of, [1, 0, 1, 0, 1, 0, 0, 1], strict=True))
    trained, left_out = sides_without(GE, scanner_of, labels)
    assert (trained, left_out) == (["s1", "s2", "s3", "u1"], ["g1", "g2", "g3", "g4"])
    assert sides_without(UNKNOWN, scanner_of, labels)[1] == ["u1"]


@pytest.mark.parametrize("labels", [[1, 0, 1, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0, 0, 0]])
def test_too_few_of_a_kind_left_to_train_on_are_refused(labels):
    scanner_of = {patient: own[2] for patient, own in COHORT.items()}
    labels = dict(zip(scanner_of, labels, strict=True))
    with pytest.raises(InputError, match=f'without the patients of "{GE}", 4 of 8 .* {sum(labels.values()) - 2} of '):
        sides_without(GE, scanner_of, labels)
    with pytest.raises(InputError, match="0 of 8 are left"):
        sides_without("A", dict.fromkeys(labels, "A"), labels)


# --- the comparison --------------------------------------------------------------------------------------------------


def test_known_answers(job):
    compare_scanners(**job)
    table = read_table(job["table_path"])
    assert tuple(table[0]) == SCANNER_COLUMNS
    assert [row["scanner"] for row in table] == [*SCANNERS, POOLED]
    ge, siemens, unknown, pooled = table
    assert [(row["patients"], row["expansions"]) for row in table] == [(4, 2), (3, 1), (1, 0), (8, 3)]
    assert [(row["trained"], row["trained_expansions"]) for row in table[:3]] == [(4, 1), (5, 2), (7, 3)]
    # Out of fold, both expansions above both others; unseen, g3 (0.3) below g2 (0.5).
    assert (ge["out_of_fold_auc"], ge["unseen_auc"], ge["auc_difference"]) == (1, 0.75, -0.25)
    # DeLong by hand: the placements of the cases differ by 0 and -0.5, those of the controls too, each with variance
    # 0.125 over two patients.
    deviation = math.sqrt(2 * 0.125 / 2)
    assert ge["p"] == pytest.approx(math.erfc(0.25 / deviation / math.sqrt(2)))
    z = statistics.NormalDist().inv_cdf(0.975)
    assert ge["auc_difference_lower"] == pytest.approx(-0.25 - z * deviation)
    assert ge["auc_difference_upper"] == pytest.approx(-0.25 + z * deviation)
    assert (ge["unseen_dice_median"], ge["out_of_fold_dice_median"]) == (pytest.approx(0.15), pytest.approx(0.75))
    assert ge["dice_difference_median"] == pytest.approx(-0.55)  # -0.1, -0.5, -0.6, -0.7
    assert ge["note"] == "an AUC at its limit: its interval is without meaning"
    # s1 (0.6) above s3, out of fold below s2 (0.7), unseen above (0.5). One case has no variance.
    assert (siemens["out_of_fold_auc"], siemens["unseen_auc"], siemens["auc_difference"]) == (0.5, 1, 0.5)
    assert siemens["p"] is siemens["unseen_auc_lower"] is siemens["auc_difference_upper"] is None
    assert siemens["note"] == "only 1 with expansion: no interval"
    assert unknown["unseen_auc"] is unknown["out_of_fold_auc"] is unknown["auc_difference"] is None
    assert unknown["note"] == "none with expansion: no AUC; 1 of them was never seen out of fold either"
    assert unknown["dice_difference_median"] == pytest.approx(-0.1)
    # Holm over the one test there is.
    assert ge["p_holm"] == ge["p"] and siemens["p_holm"] is None
    # Unseen, pooled: 0.9, 0.6, 0.3 against 0.5, 0.1, 0.5, 0.2, 0.4: 5 + 5 + 2 of 15. Out of fold 0.9, 0.8, 0.6 against
    # 0.2, 0.1, 0.7, 0.3, 0.4: 14 of 15.
    assert (pooled["unseen_auc"], pooled["out_of_fold_auc"]) == (pytest.approx(12 / 15), pytest.approx(14 / 15))
    assert pooled["trained"] is None
    assert [row["collapsed"] for row in table] == [1, 0, 0, None]


def test_summary(job):
    compare_scanners(**{**job, "scanners": [GE]})
    summary = read_json(job["summary_path"])
    assert (summary["candidate"], summary["confidence"], summary["folds"]) == ("base", 0.95, 2)
    assert (summary["patients"], summary["expansions"]) == (8, 3)
    assert summary["not_studied"] == {SIEMENS: 3, UNKNOWN: 1}
    assert summary["pooled"] is None
    (row,) = read_table(job["table_path"])
    assert {name: row[name] or None for name in SCANNER_COLUMNS} == {
        name: summary["scanners"][0][name] or None for name in SCANNER_COLUMNS
    }
    (alarm,) = summary["alarms"]
    assert alarm.startswith(f"without {GE}: the median Dice coefficient of its 4 patients is 0.150, below 0.3")


def test_equal_predictions_differ_by_nothing(job):
    for name in ("fold0", "fold1"):
        rows = read_table(job["train_folder"] / "base" / name / "predictions.tsv")
        for row in rows:
            row["probability"] = COHORT[row["patient"]][4]
        write_table(job["train_folder"] / "base" / name / "predictions.tsv", rows)
    compare_scanners(**job)
    for row in read_table(job["table_path"]):
        assert row["auc_difference"] in (0, None)
        assert row["p"] in (1, None)


def test_the_same_predictions_give_the_same_bytes(job):
    compare_scanners(**job)
    files = {path: path.read_bytes() for path in job["table_path"].parent.iterdir()}
    assert {path.name for path in files} == (
        {"scanners.tsv", "summary.json", "scanners.png", "scanners.svg", "scanners.pdf"}
    )
    compare_scanners(**job)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_the_figure_shows_both_aucs_their_intervals_and_what_has_none(job):
    compare_scanners(**job)
    figure = draw_scanners(read_json(job["summary_path"]))
    names, axes, numbers = figure.axes
    drawn = {
        label: [float(line.get_xdata()[0]) for line in axes.lines if line.get_label() == label]
        for label in ("scanner never seen", "out of fold")
    }
    assert drawn == {
        "scanner never seen": [0.75, 1, pytest.approx(12 / 15)],
        "out of fold": [1, 0.5, pytest.approx(14 / 15)],
    }
    assert "none with expansion: no AUC" in [text.get_text() for text in axes.texts]
    assert {text.get_text() for text in names.texts} >= {GE, "4 patients, 2 with expansion", POOLED}
    said = [text.get_text() for text in numbers.texts]
    assert "-0.25 (-0.94 to 0.44)" in said and "0.50" in said and "none" in said
    # Nothing to draw at all.
    nothing = read_json(job["summary_path"])
    nothing["scanners"], nothing["pooled"] = nothing["scanners"][2:], None
    assert not draw_scanners(nothing).legends


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("seen", r"scanner1.roles\.tsv: 1 patients to be left out were trained on \(g2\)"),
        ("seen under the fold", r"fold1.roles\.tsv: 1 patients to be left out were trained on \(g3\)"),
        ("not all trained", r"scanner2.roles\.tsv: 4 patients were trained on, not the 5 others"),
        ("copy", r"scanner2.roles\.tsv: 3 validation scans, not one"),
        ("other scanner", r"scanner1.roles\.tsv: 4 patients to be left out were trained on"),
        ("missing", r"scanner2.predictions\.tsv: 2 predictions, not one for each of the 3"),
        ("empty", r"scanner2.predictions\.tsv: the prediction for patient s1 is no finite number"),
    ],
)
def test_trainings_that_do_not_fit_are_refused_before_anything_is_written(job, fault, problem):
    def change(path, how):
        rows = read_table(path)
        write_table(path, how(rows))

    first, second = (job["unseen_folder"] / f"scanner{number}" for number in (1, 2))
    if fault == "seen":
        change(first / "roles.tsv", lambda rows: [*rows, {"patient": "g2", "copy": "03", "role": "train"}])
    elif fault == "seen under the fold":
        roles = job["train_folder"] / "base/fold1/roles.tsv"
        change(roles, lambda rows: [*rows, {"patient": "g3", "copy": "03", "role": "train"}])
    elif fault == "not all trained":
        change(second / "roles.tsv", lambda rows: [row for row in rows if row["patient"] != "g1"])
    elif fault == "copy":
        change(second / "roles.tsv", lambda rows: [row | {"copy": row["copy"].replace("scan", "00")} for row in rows])
    elif fault == "other scanner":  # the folders were exchanged
        first.rename(first.with_name("kept"))
        second.rename(first)
        first.with_name("kept").rename(second)
    elif fault == "missing":
        change(second / "predictions.tsv", lambda rows: rows[:-1])
    else:
        change(second / "predictions.tsv", lambda rows: [rows[0] | {"dice": None}, *rows[1:]])
    with pytest.raises(InputError, match=problem):
        compare_scanners(**job)
    assert not list(job["table_path"].parent.iterdir())


def test_a_scanner_of_nobody_is_refused_by_the_comparison_too(job):
    with pytest.raises(InputError, match=r'scanned with "CANON"'):
        compare_scanners(**{**job, "scanners": ["CANON"]})


def test_the_training_depends_on_no_code_that_judges_or_draws():
    """A change of the figure must not train anew."""
    behind = set(modules_behind(ROOT / "workflow/scripts/scanner_study_train.py"))
    assert "scanners" in behind and not behind & {"scanner_study", "evaluation", "figures"}
    assert behind - {"scanners"} == set(modules_behind(ROOT / "workflow/scripts/seed_study_train.py"))


# --- the rules, in a workflow of their own ---------------------------------------------------------------------------

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
include: {root!r} + "/train.smk"
include: {root!r} + "/scanner_study.smk"
rule all:
    default_target: True
    input: "results/scanner_study/scanners.tsv"
"""


def workflow(folder, scanners):
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
        "scanner_study": {"candidate": "base", "scanners": scanners},
        "select": {"collapsed_dice": 0.3},
        "evaluate": {"confidence": 0.95},
        "computing": {"memory_gb": 1.0, "device_memory_part": 0.0, "checkpoint_minutes": 5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "Snakefile").write_text(SNAKEFILE.format(patients=list(COHORT), root=str(ROOT / "workflow/rules")))
    return config


def run(folder, *options, fails=False):
    command = [sys.executable, "-m", "snakemake", "--configfile", "config.json", "--cores", "1", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    from test_dataset import SLOPE, write_copies
    from test_training import AFFINE, synthetic_scan

    results = tmp_path / "results"
    for name in ("cohort", "resample"):
        (results / name).mkdir(parents=True)
    write_cohort(results / "cohort" / "cohort.tsv")
    write_conversions(results / "convert")
    for patient, (_, expansion, *_) in COHORT.items():
        ct, mask = synthetic_scan(patient, expansion)
        write_copies(results / "augment", patient, [ct, ct[:, ::-1]], [mask, mask[:, ::-1]], AFFINE)
        write_volume(results / "resample" / f"{patient}_ct.nii.gz", ct * SLOPE, AFFINE, slope=SLOPE)
        write_volume(results / "resample" / f"{patient}_haematoma.nii.gz", mask, AFFINE)
    return tmp_path


def test_every_scanner_costs_one_training(project):
    workflow(project, [SIEMENS, UNKNOWN])
    said = run(project, "--dry-run")
    assert said.count("rule scanner_study_train:") == 2 and said.count("rule scanner_study:") == 1
    assert said.count("rule train:") == 2
    assert "scanner_study_train/scanner2/roles.tsv" in said


@pytest.mark.slow
def test_a_scanner_is_left_out_trained_without_and_compared(project):
    from haemex.training import train_network

    config = workflow(project, [SIEMENS])
    run(project)
    results = project / "results"
    folder = results / "scanner_study_train/scanner1"
    roles = read_table(folder / "roles.tsv")
    assert {row["patient"] for row in roles if row["role"] == "train"} == {"g1", "g2", "g3", "g4", "u1"}
    assert {row["patient"] for row in roles if row["role"] == "validation"} == {"s1", "s2", "s3"}
    (project / "own").mkdir()
    names = {"weights_path": "model.safetensors", "history_path": "history.tsv", "roles_path": "roles.tsv"}
    train_network(
        patients=["g1", "g2", "g3", "g4", "u1"],
        validation=["s1", "s2", "s3"],
        labels={patient: own[1] for patient, own in COHORT.items()},
        digests={patient: f"of {patient}" for patient in COHORT},
        augment_folder=results / "augment",
        scan_folder=results / "resample",
        seed=config["seed"],
        purpose=f"train base without {SIEMENS}",
        checkpoint_path=project / "own" / "checkpoint",
        predictions_path=project / "own" / "predictions.tsv",
        **config["candidates"]["base"],
        **{name: project / "own" / file for name, file in names.items()},
    )
    for file in ("model.safetensors", "predictions.tsv"):
        assert (folder / file).read_bytes() == (project / "own" / file).read_bytes()
    assert (folder / "curve.png").stat().st_size > 1000
    assert not list(results.rglob("*.checkpoint"))
    (row,) = read_table(results / "scanner_study/scanners.tsv")
    assert (row["scanner"], row["patients"], row["trained"]) == (SIEMENS, 3, 5)
    assert "Nothing to be done" in run(project)
    workflow(project, [SIEMENS, UNKNOWN])  # one more scanner costs its own training only
    said = run(project, "--dry-run")
    assert said.count("rule scanner_study_train:") == 1 and said.count("rule train:") == 0
    workflow(project, [UNKNOWN, SIEMENS])  # other patients under the same number
    assert run(project, "--dry-run").count("rule scanner_study_train:") == 2
    workflow(project, [SIEMENS, "CANON"])
    said = run(project, "--keep-going", fails=True)
    log = (results / "scanner_study_train/scanner2.log").read_text()
    assert 'scanned with "CANON"' in log and f'"{SIEMENS}" (3)' in log and "Traceback" not in said + log
