"""Reports of the fabricated study: what the tests of the report share."""

import copy
from pathlib import Path

import numpy as np
import yaml
from fabricated_study import as_external, change_json, change_table, fabricate

from haemex.cards import write_cards
from haemex.evaluation import evaluate_study
from haemex.external_evaluation import evaluate_external
from haemex.figures import draw_figures
from haemex.nifti import read_volume, write_volume
from haemex.report import write_report

ROOT = Path(__file__).resolve().parents[1]
MADE = []
CODES = {"convert": "0123456789abcdef", "report": "fedcba9876543210"}
TABLE_DIGEST = "00112233445566aa"


def merged(base, changes):
    """What Snakemake makes of two config files."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def paper_config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def demo_config():
    return merged(paper_config(), yaml.safe_load((ROOT / "config/demo.yaml").read_text()))


def finish(folder):
    """A study with everything the report reads; made once, for all who ask."""
    if not MADE:
        MADE.append(_make(folder))
    return MADE[0]


def _make(folder):
    study = fabricate(folder, matrix=24, slices=6)
    evaluate_study(**study.evaluate)
    draw_figures(**study.figures)
    _make_cards(study.R, study.R / "select/predictions.tsv")
    return study


def finish_external(folder):
    """The test cohort of such a study as a centre of its own, which evaluates the model."""
    study = as_external(fabricate(folder, matrix=24, slices=6))
    R = study.R
    evaluate_external(**study.external | {"out_folder": R / "evaluate"})
    change_table(R / "cohort/cohort.tsv", lambda rows: [row for row in rows if row["cohort"] == "test"])
    change_json(R / "cohort/flow.json", lambda flow: flow.update(train=0, expansion=flow["expansion"] | {"train": 0}))
    draw_figures(**study.figures | {"histories": [], "out_of_fold_path": None})
    _make_cards(R, None)
    return study


def _make_cards(R, out_of_fold_path):
    for path in sorted((R / "predict/maps").glob("*_grid.nii.gz")):
        mask, affine = read_volume(path)  # what speaks for expansion, by this network: the outline
        write_volume(R / "predict/maps" / path.name.replace("_grid", "_relevance"), mask.astype(np.float32), affine)
    write_cards(
        cohort_path=R / "cohort/cohort.tsv",
        predictions_path=R / "predict/predictions.tsv",
        out_of_fold_path=out_of_fold_path,
        model_path=R / "final/model/model.json",
        dice_path=R / "evaluate/dice.tsv",
        **{f"{stage}_folder": R / stage for stage in ("convert", "measure", "predict", "markers")},
        out_folder=R / "cards",
    )


def report(study, out_folder, config, **changed):
    """Write the report of a study and return its text."""
    R = study.R
    paths = {
        "paper_config_path": ROOT / "config/config.yaml",
        "schema_path": ROOT / "config/config.schema.yaml",
        "template_folder": ROOT / "workflow/report",
        "flow_path": R / "cohort/flow.json",
        "flips_path": R / "cohort/label_flips.tsv",
        "cohort_path": R / "cohort/cohort.tsv",
        "measure_folder": R / "measure",
        "table1_path": R / "table1/table1.tsv",
        "table1_expansion_path": R / "table1/table1_expansion.tsv",
        "evaluate_folder": R / "evaluate",
        "cards_path": R / "cards/cards.json",
        "candidates_path": R / "select/candidates.tsv",
        "selected_path": R / "select/selected.json",
        "model_path": R / "final/model/model.json",
        "reachable_auc": None,
        "table_digest": TABLE_DIGEST,
        "codes": CODES,
    }
    write_report(config=config, out_folder=out_folder, **(paths | changed))
    return (Path(out_folder) / "report.html").read_text(encoding="utf-8")


def scanner_study():
    """What `haemex.scanner_study` sums up: two scanners, and both of them pooled."""
    scores = {"unseen_auc": 0.615, "out_of_fold_auc": 0.745, "auc_difference": -0.13}
    row = {
        "scanner": "GE MEDICAL SYSTEMS Optima CT540",
        **{"patients": 6, "expansions": 2, "trained": 6, "trained_expansions": 2},
        **{
            f"{name}{end}": value + by
            for name, value in scores.items()
            for end, by in (("_lower", -0.2), ("_upper", 0.2))
        },
        **scores,
        **{"p": 0.2071, "p_holm": 0.4142, "unseen_dice_median": 0.8, "out_of_fold_dice_median": 0.855},
        **{"dice_difference_median": -0.055, "collapsed": 0, "note": ""},
    }
    other = row | {"scanner": "SIEMENS SOMATOM Force", "p": 0.0004, "note": "only 1 with expansion: no interval"}
    other |= {"unseen_auc_lower": None, "unseen_auc_upper": None}
    pooled = {name: value for name, value in row.items() if name not in ("trained", "trained_expansions", "p_holm")}
    return {
        "candidate": "base",
        "confidence": 0.95,
        "folds": 3,
        "patients": 12,
        "expansions": 4,
        "scanners": [row, other],
        "pooled": pooled | {"scanner": "all of these, pooled", "patients": 12, "expansions": 4},
        "not_studied": {"TOSHIBA Aquilion": 3},
        "alarms": [],
    }
