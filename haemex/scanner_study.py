"""What the network is worth on a scanner it never saw.

A network is trained once more without all patients of one scanner and predicts them. The same patients have ordinary
out-of-fold predictions, of networks that had seen other patients of that scanner. The two are compared patient by
patient. What the comparison cannot tell apart: without a scanner there are also fewer patients to train on, and its
patients may come from another hospital; and another seed of the training alone moves every AUC (`haemex.seed_study`).
"""

import math
import statistics
from pathlib import Path

from haemex.errors import InputError
from haemex.files import write_json
from haemex.scanners import read_scanners, refuse_unknown_scanners
from haemex.statistics import delong_auc, delong_paired, holm
from haemex.tables import read_table, write_table

SCANNER_COLUMNS = (
    *("scanner", "patients", "expansions", "trained", "trained_expansions"),
    *("unseen_auc", "unseen_auc_lower", "unseen_auc_upper"),
    *("out_of_fold_auc", "out_of_fold_auc_lower", "out_of_fold_auc_upper"),
    *("auc_difference", "auc_difference_lower", "auc_difference_upper", "p", "p_holm"),
    *("unseen_dice_median", "out_of_fold_dice_median", "dice_difference_median", "collapsed", "note"),
)
POOLED = "all of these, pooled"


def compare_scanners(
    *,
    candidate,
    scanners,
    unseen_folder,
    train_folder,
    convert_folder,
    cohort_path,
    collapsed_dice,
    confidence,
    table_path,
    summary_path,
    figure_stem,
):
    """Compare the predictions of networks that never saw a scanner with the out-of-fold predictions of its patients.

    Parameters
    ----------
    candidate : str
        Name of the candidate that was trained.
    scanners : sequence of str
        As `haemex.scanners.scanner_name` names them.
    unseen_folder : path-like
        Holds `scanner{number}/predictions.tsv` and `roles.tsv`, the scanners counted from 1.
    train_folder : path-like
        Holds `{candidate}/fold{fold}/predictions.tsv` and `roles.tsv` of the stage `train`.
    convert_folder : path-like
        Results of the stage `convert`, which name the scanner of each patient.
    cohort_path : path-like
        `cohort.tsv` of the stage `cohort`; rows of the test cohort are not looked at.
    collapsed_dice : float
        A training whose median Dice coefficient is below this raises an alarm; it stays in the table.
    confidence : float
        Level of the intervals.
    table_path : path-like
        `SCANNER_COLUMNS`: one row per scanner, and all of them pooled (`POOLED`) where there are several. `trained`:
        patients of other scanners, who were trained on. AUC with DeLong's interval; `auc_difference` is unseen minus
        out-of-fold, with DeLong's paired interval and p, `p_holm` after Holm over the scanners. Dice coefficients on
        the network's grid; `dice_difference_median` is the median over the patients of unseen minus out-of-fold.
        Empty where undefined, and `note` says why.
    summary_path : path-like
        JSON: candidate, confidence, folds, patients and expansions of the training cohort, `scanners` (the rows),
        `pooled` (that row without what only a single training has; None with one scanner), `not_studied` (patients of
        the other scanners, by name), `alarms`.
    figure_stem : path-like
        The figure, with the endings .png, .svg and .pdf.

    Raises
    ------
    InputError
        A scanner that nobody was scanned with; a patient of a left-out scanner was trained on; predictions or roles do
        not fit, or are no finite numbers.
    """
    import matplotlib

    from haemex.figures import STYLE, save

    cohort = {row["patient"]: row for row in read_table(cohort_path, as_text=True) if row["cohort"] == "train"}
    labels = {patient: int(row["expansion"]) for patient, row in cohort.items()}
    scanner_of = read_scanners(cohort, convert_folder)
    refuse_unknown_scanners(scanners, scanner_of)
    folds = sorted({int(row["fold"]) for row in cohort.values()})
    usual, alone = {}, set()
    for fold in folds:
        held_out = {patient for patient, row in cohort.items() if int(row["fold"]) == fold}
        usual |= _held_out_predictions(Path(train_folder) / candidate / f"fold{fold}", set(cohort) - held_out, held_out)
        seen = {scanner_of[patient] for patient in set(cohort) - held_out}
        alone |= {patient for patient in held_out if scanner_of[patient] not in seen}
    table, unseen, alarms = [], {}, []
    for number, scanner in enumerate(scanners, 1):
        left_out = {patient for patient in cohort if scanner_of[patient] == scanner}
        others = set(cohort) - left_out
        own = _held_out_predictions(Path(unseen_folder) / f"scanner{number}", others, left_out)
        row = _compare(own, usual, labels, confidence)
        row |= {"trained": len(others), "trained_expansions": sum(labels[patient] for patient in others)}
        row["collapsed"] = int(row["unseen_dice_median"] < collapsed_dice)
        if row["collapsed"]:
            alarms.append(
                f"without {scanner}: the median Dice coefficient of its {len(own)} patients is "
                f"{row['unseen_dice_median']:.3f}, below {collapsed_dice:g}; the network does not find their haematomas"
            )
        if left_out & alone:
            many = len(left_out & alone)
            said = f"{many} of them {'was' if many == 1 else 'were'} never seen out of fold either"
            row["note"] = "; ".join(part for part in (row["note"], said) if part)
        table.append(dict.fromkeys(SCANNER_COLUMNS) | {"scanner": scanner, **row})
        unseen |= own
    corrected = holm([math.nan if row["p"] is None else row["p"] for row in table])
    for row, p in zip(table, corrected, strict=True):
        row["p_holm"] = _known(float(p))
    pooled = None
    if len(table) > 1:
        pooled = {"scanner": POOLED, **_compare(unseen, usual, labels, confidence)}
    summary = {
        "candidate": candidate,
        "confidence": confidence,
        "folds": len(folds),
        "patients": len(cohort),
        "expansions": sum(labels.values()),
        "scanners": table,
        "pooled": pooled,
        "not_studied": {
            name: sum(own == name for own in scanner_of.values())
            for name in sorted(set(scanner_of.values()) - set(scanners))
        },
        "alarms": alarms,
    }
    with matplotlib.rc_context(STYLE):
        save(draw_scanners(summary), figure_stem)
    write_table(table_path, table + ([dict.fromkeys(SCANNER_COLUMNS) | pooled] if pooled else []), SCANNER_COLUMNS)
    write_json(summary_path, summary)


def draw_scanners(summary):
    """Draw a forest plot: the AUC of every scanner's patients, unseen and out of fold, and what they differ by.

    Parameters
    ----------
    summary : dict
        What `compare_scanners` writes.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from haemex.figures import BLUE, GREY, INK, ORANGE, STYLE
    from haemex.statistics import round_half_up

    rows = summary["scanners"] + ([summary["pooled"]] if summary["pooled"] else [])
    level = f"{100 * summary['confidence']:g} % CI"
    kinds = (("unseen", "scanner never seen", BLUE, "s", -0.17), ("out_of_fold", "out of fold", ORANGE, "o", 0.17))

    def said(row, name):
        if row[name] is None:
            return "none"
        bounds = [row[f"{name}_{side}"] for side in ("lower", "upper")]
        text = round_half_up(row[name], 2)
        return text if None in bounds else f"{text} ({' to '.join(round_half_up(bound, 2) for bound in bounds)})"

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.62 * len(rows) + 1.45), layout="constrained")
        FigureCanvasAgg(figure)
        names, axes, numbers = figure.subplots(1, 3, sharey=True, width_ratios=[2.7, 2.5, 3.9])
        for aside in (names, numbers):
            aside.axis("off")

        def write(panel, x, height, text, **how):
            # Text is no part of the layout: a long name would else push the panels apart.
            panel.text(x, height, text, va="center", **({"fontsize": 8.5} | how)).set_in_layout(False)

        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        columns = {"auc": 0.0, "difference": 0.4, "dice": 0.8}
        write(numbers, columns["auc"], -0.85, f"AUC ({level})", fontweight="bold")
        write(numbers, columns["difference"], -0.85, "Difference of AUC", fontweight="bold")
        write(numbers, columns["dice"], -0.85, "Dice, median", fontweight="bold")
        for height, row in enumerate(rows):
            bold = "bold" if row is summary["pooled"] else "normal"
            write(names, 0, height - 0.17, _cut(row["scanner"]), fontweight=bold)
            counts = f"{row['patients']} patients, {row['expansions']} with expansion"
            write(names, 0, height + 0.2, counts, fontsize=7.5, color="#5A6068")
            for kind, label, colour, marker, down in kinds:
                auc, at = row[f"{kind}_auc"], height + down
                write(numbers, columns["auc"], at, said(row, f"{kind}_auc"), color=colour)
                write(numbers, columns["dice"], at, round_half_up(row[f"{kind}_dice_median"], 2), color=colour)
                if auc is None:
                    continue
                bounds = [row[f"{kind}_auc_{side}"] for side in ("lower", "upper")]
                if None not in bounds:
                    axes.plot(bounds, [at, at], color=colour, linewidth=1.4)
                axes.plot(auc, at, marker, color=colour, markersize=6, clip_on=False, label=label)
            if row["auc_difference"] is None:
                white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                write(axes, 0.5, height, row["note"].split(";")[0], color="#5A6068", ha="center", bbox=white)
            write(numbers, columns["difference"], height, said(row, "auc_difference"), color=INK)
        axes.set(xlim=(-0.01, 1.01), ylim=(len(rows) - 0.45, -1.2), xlabel="AUC of expansion")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", left=False, labelleft=False)
        numbers.set_xlim(0, 1)
        handles, texts = axes.get_legend_handles_labels()
        once = dict(zip(texts, handles, strict=True))
        if once:
            figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=2)
    return figure


def _cut(name, most=38):
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _held_out_predictions(folder, trained, left_out):
    """Read the predictions of one training; refuse what is not of exactly these patients, trained on exactly those."""
    roles_path, predictions_path = folder / "roles.tsv", folder / "predictions.tsv"

    def refuse_unless(condition, problem, path):
        if not condition:
            raise InputError(problem, "remove the folder of this training and run the workflow again", path)

    roles = read_table(roles_path, as_text=True)
    on = {row["patient"] for row in roles if row["role"] == "train"}
    shown = [(row["patient"], row["copy"]) for row in roles if row["role"] == "validation"]
    seen = sorted(on & left_out)
    refuse_unless(not seen, f"{len(seen)} patients to be left out were trained on ({', '.join(seen[:5])})", roles_path)
    refuse_unless(on == trained, f"{len(on)} patients were trained on, not the {len(trained)} others", roles_path)
    refuse_unless(
        sorted(shown) == sorted((patient, "scan") for patient in left_out),
        f"{len(shown)} validation scans, not one of each of the {len(left_out)} patients to be left out",
        roles_path,
    )
    predictions = read_table(predictions_path)
    refuse_unless(
        sorted(row["patient"] for row in predictions) == sorted(left_out),
        f"{len(predictions)} predictions, not one for each of the {len(left_out)} patients left out",
        predictions_path,
    )
    for row in predictions:
        refuse_unless(
            all(isinstance(row[name], int | float) and math.isfinite(row[name]) for name in ("probability", "dice")),
            f"the prediction for patient {row['patient']} is no finite number",
            predictions_path,
        )
    return {row["patient"]: row for row in predictions}


def _compare(unseen, usual, labels, confidence):
    """Compare two predictions of the same patients, those of `unseen`."""
    patients = sorted(unseen)
    outcomes = [labels[patient] for patient in patients]
    row = {"patients": len(patients), "expansions": sum(outcomes)}
    scores = []
    for kind, predictions in (("unseen", unseen), ("out_of_fold", usual)):
        scores.append([predictions[patient]["probability"] for patient in patients])
        area = delong_auc(outcomes, scores[-1], confidence)
        for ending, value in (("", area.auc), ("_lower", area.lower), ("_upper", area.upper)):
            row[f"{kind}_auc{ending}"] = _known(value)
        row[f"{kind}_dice_median"] = statistics.median(predictions[patient]["dice"] for patient in patients)
    paired = delong_paired(outcomes, *scores, confidence)
    row["auc_difference"] = _known(paired.difference)
    row["auc_difference_lower"], row["auc_difference_upper"] = _known(paired.lower), _known(paired.upper)
    row["p"] = _known(paired.p_value)
    row["dice_difference_median"] = statistics.median(
        unseen[patient]["dice"] - usual[patient]["dice"] for patient in patients
    )
    return row | {"note": _note(outcomes, row)}


def _note(outcomes, row):
    with_, without = sum(outcomes), len(outcomes) - sum(outcomes)
    if 0 in (with_, without):
        return "all with expansion: no AUC" if with_ else "none with expansion: no AUC"
    if 1 in (with_, without):
        return f"only 1 {'with' if with_ == 1 else 'without'} expansion: no interval"
    at_limit = {row["unseen_auc"], row["out_of_fold_auc"]} & {0.0, 1.0}
    return "an AUC at its limit: its interval is without meaning" if at_limit else ""


def _known(value):
    return None if math.isnan(value) else value
