"""The figures of the study, as PNG, SVG and PDF, the same bytes for the same input.

Colours are those of Okabe and Ito, which stay apart under colour blindness; no figure tells groups apart by colour
alone. Contours of Figure 3 keep the paper's red (manual) and green (network) and differ in lightness and dash too.
"""

import io
import textwrap
import zlib
from pathlib import Path

import numpy as np

from haemex.cohort import by_reason
from haemex.files import read_json, write_atomically
from haemex.nifti import read_volume
from haemex.orientation import radiological_axes, turn
from haemex.tables import read_table

FIGURES = (
    "flow",
    "training",
    "dice",
    "volumes",
    "overlays",
    "roc",
    "subgroups",
    "probability",
    "calibration",
    "decision_curve",
)

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8F98", "#1F2328"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#5A6068",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": "#3A4048",
    "ytick.color": "#3A4048",
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "white",
    "svg.hashsalt": "haemex",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType, which journals accept and editors can change
}
BRAIN_WINDOW_HU = (0.0, 80.0)

REASONS = {
    "age": "below the age limit",
    "onset_to_ct": "baseline CT too late after onset",
    "followup_interval": "follow-up CT outside the interval",
    "missing_data": "a criterion could not be checked",
    "infratentorial": "infratentorial haematoma",
    "ventricular_only": "ventricular haemorrhage only",
    "died_or_surgery": "died or operated on before follow-up CT",
    "poor_image_quality": "poor image quality",
}
MAX_REASONS, REASON_WIDTH = 6, 44  # of the investigators: lines, and characters on one


def draw_figures(
    *,
    flow_path,
    evaluate_folder,
    out_of_fold_path,
    histories,
    convert_folder,
    measure_folder,
    predict_folder,
    overlays,
):
    """Draw every figure of `FIGURES` as `<name>.png`, `<name>.svg` and `<name>.pdf`.

    Parameters
    ----------
    flow_path : path-like
        `table1/flow.json`.
    evaluate_folder : path-like
        Holds `scores.tsv`, `table2.tsv`, `dice.tsv`, `subgroups.tsv`, `decision_curve.tsv` and `summary.json` of
        `haemex.evaluation.evaluate_study`; gets the figures.
    out_of_fold_path : path-like or None
        `select/predictions.tsv`; None where nothing was trained.
    histories : list of path-like
        `train/{candidate}/fold{fold}/history.tsv` of every candidate, of which the chosen one is drawn, and
        `final/history.tsv`; empty where nothing was trained, and then the figure `training` is not drawn.
    convert_folder, measure_folder, predict_folder : path-like
        Hold `{patient}_baseline.nii.gz` (HU), `{patient}_haematoma.nii.gz` (manual) and `{patient}_haematoma.nii.gz`
        (network) on one native grid, of the test cohort at least; only the patients drawn are read.
    overlays : int
        Patients drawn in Figure 3.
    """
    import matplotlib

    scores, table2, dice = (read_table(Path(evaluate_folder) / f"{name}.tsv") for name in ("scores", "table2", "dice"))
    summary = read_json(Path(evaluate_folder) / "summary.json")
    test = [row for row in dice if row["cohort"] == "test"]
    with matplotlib.rc_context(STYLE):
        drawn = {
            "flow": draw_flow(read_json(flow_path)),
            "dice": draw_dice(dice),
            "volumes": draw_volumes(test),
            "overlays": draw_overlays(
                [
                    {
                        **row,
                        "ct": Path(convert_folder) / f"{row['patient']}_baseline.nii.gz",
                        "reference": Path(measure_folder) / f"{row['patient']}_haematoma.nii.gz",
                        "predicted": Path(predict_folder) / "maps" / f"{row['patient']}_haematoma.nii.gz",
                    }
                    for row in choose_overlays(test, overlays)
                ]
            ),
            "roc": draw_roc(scores, table2, summary["confidence"]),
            "probability": draw_probability(
                read_table(out_of_fold_path) if out_of_fold_path else [],
                scores,
                summary["operating_point"]["threshold"],
            ),
            "calibration": draw_calibration(scores, summary),
            "subgroups": draw_subgroups(read_table(Path(evaluate_folder) / "subgroups.tsv"), summary["confidence"]),
            "decision_curve": draw_decision_curve(read_table(Path(evaluate_folder) / "decision_curve.tsv")),
        }
        if histories:
            chosen = [
                path
                for path in map(Path, histories)
                if path.parent.name == "final" or path.parts[-3] == summary["selection"]["candidate"]
            ]
            drawn["training"] = draw_training({path.parent.name: read_table(path) for path in chosen})
        for name, figure in drawn.items():
            save(figure, Path(evaluate_folder) / name)


def save(figure, stem):
    """Write `<stem>.png` (200 dpi), `.svg` and `.pdf` without a date or a version, so that bytes can be compared."""
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for kind, fixed in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=fixed, bbox_inches="tight", pad_inches=0.08)
        write_atomically(Path(stem).with_suffix(f".{kind}"), buffer.getvalue())


def _figure(width, height):
    """Make a figure that belongs to no window system and no global state; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _jitter(patients, width):
    """Spread points sideways: each patient always at the same place, whoever else is drawn."""
    return np.array([(zlib.crc32(str(patient).encode()) % 1000 / 999 - 0.5) * width for patient in patients])


# --- Figure 2 ----------------------------------------------------------------------------------------------------


def draw_flow(flow):
    """Draw the flow diagram (paper, Figure 2) from the counts of `haemex.cohort.flow`.

    Without training patients, in an external evaluation, it has no arm for them.
    """
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    def counted(reasons):
        return [f"{text} (n = {reasons[reason]})" for reason, text in REASONS.items() if reasons.get(reason)]

    def in_their_words(reasons):
        shown = reasons[: MAX_REASONS - 1] if len(reasons) > MAX_REASONS else reasons
        lines = []
        for one in shown:
            first, *rest = textwrap.wrap(f"{one['reason']} (n = {one['number']})", REASON_WIDTH)
            lines += [first, *(f"    {part}" for part in rest)]
        others = sum(one["number"] for one in reasons[len(shown) :])
        return lines + [f"other reasons (n = {others})"] * bool(others)

    line, gap, pad = 0.21, 0.34, 0.13  # inches: text line, space between boxes, inner margin

    def height(lines):
        return len(lines) * line + 2 * pad

    not_included, excluded = sum(flow["not_included"].values()), sum(flow["excluded"].values())
    main = [
        ([f"Patients in the cohort table (n = {flow['screened']})"], f"Not included (n = {not_included})"),
        ([f"Met the inclusion criteria (n = {flow['included']})"], f"Excluded (n = {excluded})"),
        ([f"Eligible (n = {flow['eligible']})"], f"Admitted outside both periods (n = {flow['outside_dates']})"),
    ]
    details = [counted(flow["not_included"]), counted(flow["excluded"]), []]
    shown = [bool(not_included), bool(excluded), bool(flow["outside_dates"])]
    if later := flow.get("excluded_by_investigators"):
        text = [f"Eligible within the periods (n = {flow['eligible'] - flow['outside_dates']})"]
        if not flow["outside_dates"]:  # then everybody who is eligible
            (text, _), _, _ = main.pop(), details.pop(), shown.pop()
        main.append((text, f"Excluded by the investigators (n = {len(later)})"))
        details.append(in_their_words(by_reason(later)))
        shown.append(True)
    width, left, right = 7.4, (0.05, 3.5), (3.9, 7.35)
    analysed = flow["train"] + flow["test"]
    rows, y = [], 0.0
    for (text, aside), detail, has_aside in zip(main, details, shown, strict=True):
        rows.append((y, text, [aside, *detail] if has_aside else None))
        y += height(text) + gap + (height([aside, *detail]) + gap if has_aside else 0)
    last_y = y
    final_lines = [f"Analysed (n = {analysed})"]
    cohort_y = last_y + height(final_lines) + gap + 0.12
    titles = {"train": "Training cohort", "test": "Test cohort" if flow["train"] else "Test cohort, external"}
    cohorts = [
        [f"{title} (n = {flow[name]})", _expanded(flow["expansion"][name], flow[name])]
        for name, title in titles.items()
        if flow[name]
    ]
    total = cohort_y + height(cohorts[0]) + 0.05
    figure = _figure(width, total)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(total, -0.05))
    axes.axis("off")

    def box(x, top, lines, face, centred=True):
        x0, x1 = x
        axes.add_patch(
            FancyBboxPatch(
                (x0, top),
                x1 - x0,
                height(lines),
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=face,
                edgecolor="#5A6068",
                linewidth=1,
            )
        )
        for number, text in enumerate(lines):
            axes.text(
                (x0 + x1) / 2 if centred else x0 + 0.14,
                top + pad + (number + 0.5) * line,
                text,
                ha="center" if centred else "left",
                va="center",
                fontweight="bold" if number == 0 else "normal",
                fontsize=9 if number == 0 else 8.5,
                parse_math=False,  # two dollar signs in a reason are no formula
            )

    def arrow(start, end):
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=11, color="#5A6068", linewidth=1, shrinkA=0, shrinkB=0
            )
        )

    middle = sum(left) / 2
    tops = [top for top, _, _ in rows] + [last_y]
    for (top, lines, aside), below in zip(rows, tops[1:], strict=True):
        box(left, top, lines, "#EEF3F8")
        arrow((middle, top + height(lines)), (middle, below))
        if aside:
            aside_top = top + height(lines) + gap / 2
            box(right, aside_top, aside, "white", centred=False)
            arrow((middle, aside_top + height(aside) / 2), (right[0], aside_top + height(aside) / 2))
    box(left, last_y, final_lines, "#EEF3F8")
    fork = last_y + height(final_lines) + gap / 2
    lower = [left, right] if flow["train"] else [left]
    centres = [sum(x) / 2 for x in lower]
    axes.plot([middle, middle], [last_y + height(final_lines), fork], color="#5A6068", linewidth=1)
    axes.plot(centres, [fork] * len(centres), color="#5A6068", linewidth=1)
    for x, lines, face in zip(lower, cohorts, ("#E3EEF7", "#FBEADF")[-len(lower) :], strict=True):
        arrow((sum(x) / 2, fork), (sum(x) / 2, cohort_y))
        box(x, cohort_y, lines, face)
    return figure


def _expanded(expansions, patients):
    share = f", {100 * expansions / patients:.1f} %" if patients else ""
    return f"with haematoma expansion: {expansions}{share}"


# --- training ----------------------------------------------------------------------------------------------------


def draw_training(histories):
    """Draw loss and validation Dice against the epoch, one curve per fold and one for the final model.

    Parameters
    ----------
    histories : dict of str to list of dict
        Rows of `history.tsv` by the name of the training.
    """
    figure = _figure(7.4, 3.1)
    panels = figure.subplots(1, 3)
    colours = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#5A6068"]
    dashes = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1))]
    columns = (
        ("train_loss", "Training loss"),
        ("val_dice_median", "Validation Dice (median)"),
        ("val_bce", "Validation cross-entropy"),
    )
    for axes, (column, title) in zip(panels, columns, strict=True):
        for number, (name, rows) in enumerate(histories.items()):
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
            if points:
                final = name == "final"
                axes.plot(
                    *zip(*points, strict=True),
                    color=INK if final else colours[number % len(colours)],
                    linestyle="-" if final else dashes[number % len(dashes)],
                    linewidth=2.2 if final else 1.4,
                    marker="." if column.startswith("val") else None,
                    label="final model" if final else name.replace("fold", "fold "),
                )
        axes.set_title(title)
        axes.set_xlabel("Epoch")
        axes.grid(axis="y", color="#E6E8EB", linewidth=0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(0, 1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


# --- segmentation ------------------------------------------------------------------------------------------------


def draw_dice(dice):
    """Draw the Dice coefficient of every patient, out-of-fold, refitted and in the test cohort.

    The first three groups are measured on the network's grid, so that they can be compared.

    Parameters
    ----------
    dice : list of dict
        Rows of `dice.tsv`.
    """
    train = [row for row in dice if row["cohort"] == "train"]
    test = [row for row in dice if row["cohort"] == "test"]
    groups = [
        ("Training cohort\nout-of-fold", train, "dice_out_of_fold", BLUE),
        ("Training cohort\nfinal model, refitted", train, "dice_grid", GREY),
        ("Test cohort\nfinal model", test, "dice_grid", ORANGE),
        ("Test cohort\non the acquired grid", test, "dice_native", ORANGE),
    ]
    groups = [
        (label, [row for row in rows if row[column] is not None], column, colour)
        for label, rows, column, colour in groups
    ]
    groups = [group for group in groups if group[1]]
    figure = _figure(7.4, 3.6)
    axes = figure.subplots()
    for place, (_, rows, column, colour) in enumerate(groups):
        _strip(axes, place, [row[column] for row in rows], [row["patient"] for row in rows], colour)
    axes.set_xticks(range(len(groups)), [f"{label}\nn = {len(rows)}" for label, rows, _, _ in groups])
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.6, len(groups) - 0.25), ylabel="Dice coefficient")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.7)
    return figure


def _strip(axes, place, values, patients, colour):
    """Draw points with their median, written out, and from five patients on a box plot beside them."""
    axes.scatter(
        place - 0.16 + _jitter(patients, 0.2),
        values,
        s=15,
        color=colour,
        alpha=0.65,
        linewidths=0,
        zorder=3,
    )
    median = float(np.median(values))
    if len(values) < 5:  # quartiles of four values say less than the four values
        axes.plot([place + 0.02, place + 0.22], [median] * 2, color=INK, linewidth=1.8)
    else:
        axes.boxplot(
            [values],
            positions=[place + 0.12],
            widths=0.2,
            showfliers=False,
            medianprops={"color": INK, "linewidth": 1.8},
            boxprops={"color": colour},
            whiskerprops={"color": colour},
            capprops={"color": colour},
            manage_ticks=False,
        )
    axes.annotate(f"{median:.2f}", (place + 0.22, median), xytext=(5, 0), textcoords="offset points", va="center")


def draw_volumes(rows):
    """Draw predicted against manual volume, and their difference against the mean (Bland and Altman 1986).

    Parameters
    ----------
    rows : list of dict
        Rows of `dice.tsv` of the test cohort, with `reference_ml` and `predicted_ml`.
    """
    reference = np.array([row["reference_ml"] for row in rows])
    predicted = np.array([row["predicted_ml"] for row in rows])
    figure = _figure(7.4, 3.4)
    left, right = figure.subplots(1, 2)
    top = 1.06 * max(reference.max(), predicted.max(), 1.0)
    left.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    left.scatter(reference, predicted, s=20, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
    left.set(
        xlim=(0, top),
        ylim=(-0.02 * top, top),
        xlabel="Manual volume (mL)",
        ylabel="Network volume (mL)",
        aspect="equal",
        title="Volumes",
    )
    mean, difference = (reference + predicted) / 2, predicted - reference
    bias = difference.mean()
    spread = 1.96 * difference.std(ddof=1) if len(difference) > 1 else 0.0
    right.axhline(0, color=GREY, linewidth=0.8)
    lines = [
        (bias + spread, "--", "+1.96 SD"),
        (bias, "-", "mean"),
        (bias - spread, "--", "−1.96 SD"),
    ]
    for value, dash, label in lines if spread else lines[1:2]:
        right.axhline(value, color=ORANGE, linestyle=dash, linewidth=1.3)
        right.annotate(
            f"{label}: {value:+.1f}".replace("-", "−"),
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    right.scatter(mean, difference, s=20, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
    right.set(
        xlim=(0, None),
        xlabel="Mean of manual and network (mL)",
        ylabel="Network − manual (mL)",
        title="Differences",
    )
    for axes in (left, right):
        axes.grid(color="#EEF0F2", linewidth=0.7)
    return figure


def choose_overlays(rows, count):
    """Choose patients for Figure 3 by rule, not by eye: evenly spaced ranks of the Dice coefficient, best first.

    Parameters
    ----------
    rows : list of dict
        Rows of `dice.tsv` with `patient` and `dice_native`.
    count : int
        How many; the best, the worst and (for an odd number of patients or panels) the median are among them.

    Returns
    -------
    list of dict
        The rows chosen, each with `rank` (1 is the best) and `of`; ties are broken by patient.
    """
    ordered = sorted(rows, key=lambda row: (-row["dice_native"], row["patient"]))
    count = min(count, len(ordered))
    places = np.unique(np.rint(np.linspace(0, len(ordered) - 1, count)).astype(int)) if count else []
    return [{**ordered[place], "rank": int(place) + 1, "of": len(ordered)} for place in places]


def radiological(volume, affine):
    """Turn a volume for display: patient's right on the left, anterior up.

    Voxels are moved, never interpolated, so a gantry-tilted (sheared) scan shows its acquired slices.

    Parameters
    ----------
    volume : numpy.ndarray, (z, y, x)
        Any volume on its native grid.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.

    Returns
    -------
    slices : numpy.ndarray, (slice, row, column)
        From foot to head; rows run from anterior to posterior, columns from the patient's right to left.
    spacing_mm : tuple of float
        (row, column) spacing.
    """
    axes, flipped = radiological_axes(affine)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return turn(volume, axes, flipped), (lengths[2 - axes[1]], lengths[2 - axes[2]])


def draw_overlays(cases):
    """Draw Figure 3: the slice with the largest manual area, manual contour in red, the network's in green.

    Parameters
    ----------
    cases : list of dict
        Rows of `choose_overlays` with the paths `ct`, `reference` and `predicted` on one native grid.
    """
    from matplotlib.lines import Line2D

    columns = min(3, max(len(cases), 1))
    rows = -(-len(cases) // columns) if cases else 1
    figure = _figure(2.5 * columns, 3.1 * rows + 0.35)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, case in zip(panels, cases, strict=False):
        ct, affine = read_volume(case["ct"])
        ct, spacing = radiological(ct, affine)
        reference, _ = radiological(read_volume(case["reference"])[0], affine)
        predicted, _ = radiological(read_volume(case["predicted"])[0], affine)
        areas = reference.sum(axis=(1, 2)) if reference.any() else predicted.sum(axis=(1, 2))
        k = int(areas.argmax()) if areas.any() else len(ct) // 2
        window = _head_box(ct[k])
        low, high = BRAIN_WINDOW_HU
        axes.imshow(
            ct[k][window], cmap="gray", vmin=low, vmax=high, aspect=spacing[0] / spacing[1], interpolation="nearest"
        )
        for mask, colour, dash in ((reference, "#FF3B30", "solid"), (predicted, "#34E27A", "dashed")):
            if mask[k][window].any():
                axes.contour(mask[k][window], levels=[0.5], colors=colour, linewidths=1.3, linestyles=dash)
        for text, x, side in (("R", 0.03, "left"), ("L", 0.97, "right")):
            axes.text(x, 0.97, text, transform=axes.transAxes, color="white", fontsize=8, ha=side, va="top")
        place = {1: "best", case["of"]: "worst"}.get(case["rank"], f"rank {case['rank']} of {case['of']}")
        axes.set_title(
            f"{case['patient']}, test cohort, {place}\n"
            f"Dice {case['dice_native']:.2f}; slice {k + 1} of {len(ct)}\n"
            f"manual {case['reference_ml']:.1f} mL, network {case['predicted_ml']:.1f} mL",
            fontsize=7.5,
            fontweight="normal",
            loc="left",
        )
    figure.legend(
        handles=[
            Line2D([], [], color="#FF3B30", label="manual"),
            Line2D([], [], color="#1FBF5F", linestyle="--", label="network (CNN)"),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _head_box(image_hu, margin=4):
    """Cut the air around the head away: a pair of slices (row, column)."""
    inside = image_hu > -300
    box = []
    for axis in (1, 0):
        # A head holder is a thin line: ask for a tenth of the widest row or column, so that it does not widen the box.
        counts = inside.sum(axis=axis)
        held = np.flatnonzero(counts > 0.1 * counts.max()) if counts.max() else np.array([0, len(counts) - 1])
        box.append(slice(max(held[0] - margin, 0), min(held[-1] + margin + 1, len(counts))))
    return tuple(box)


# --- prediction --------------------------------------------------------------------------------------------------


def draw_roc(scores, table2, confidence):
    """Draw the ROC curves of the test cohort with the locked operating points (paper, supplemental Figure 2).

    Parameters
    ----------
    scores : list of dict
        Rows of `scores.tsv`: expansion, `cnn`, `volume` and `bat` scores of the test cohort.
    table2 : list of dict
        Rows of `table2.tsv`, for the AUC with its interval and the operating points.
    confidence : float
        Level of those intervals.
    """
    from haemex.statistics import roc_points, round_half_up

    figure = _figure(5.2, 5.7)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    by_row = {row["row"]: row for row in table2}
    curves = (
        ("cnn", "CNN", BLUE, "-", "o"),
        ("volume", "Haematoma volume", ORANGE, "--", "s"),
        ("bat", "BAT score", GREEN, "-.", "^"),
    )
    for column, name, colour, dash, marker in curves:
        known = [row for row in scores if row[column] is not None]
        row = by_row[name]
        if row["auc"] is None:
            continue
        fpr, tpr, _ = roc_points([r["expansion"] for r in known], [r[column] for r in known])
        auc, lower, upper = (round_half_up(row[cell], 2) for cell in ("auc", "auc_lower", "auc_upper"))
        axes.plot(
            fpr,
            tpr,
            color=colour,
            linestyle=dash,
            label=f"{name}: {auc} ({lower} to {upper})" if lower else f"{name}: {auc} (no interval)",
            zorder=3 if column == "cnn" else 2,
        )
        if row["sensitivity"] is not None and row["specificity"] is not None:
            axes.plot(
                1 - row["specificity"],
                row["sensitivity"],
                marker,
                color=colour,
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=1.2,
                zorder=4,
            )
    axes.plot([], [], "o", color="white", markeredgecolor=INK, markersize=6, label="operating point, fixed beforehand")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel="Sensitivity", aspect="equal")
    axes.grid(color="#EEF0F2", linewidth=0.7)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower left",
        ncols=2,
        title=f"AUC ({100 * confidence:g} % CI)",
        title_fontsize=8.5,
        alignment="left",
    )
    return figure


def draw_probability(out_of_fold, scores, threshold):
    """Draw the network's probability by outcome, out-of-fold and in the test cohort, with the operating point.

    Parameters
    ----------
    out_of_fold : list of dict
        Rows of `select/predictions.tsv`; empty where nothing was trained, and then there is no panel for them.
    scores : list of dict
        Rows of `scores.tsv`.
    threshold : float
        Probability from which a patient is called positive.
    """
    groups = [("Training cohort, out-of-fold", out_of_fold)] if out_of_fold else []
    groups.append(("Test cohort", scores))
    figure = _figure(6.6 if out_of_fold else 4.0, 3.5)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, groups, strict=True):
        for place, (expansion, colour) in enumerate(((0, BLUE), (1, ORANGE))):
            group = [row for row in rows if row["expansion"] == expansion]
            if group:
                _strip(axes, place, [row["probability"] for row in group], [row["patient"] for row in group], colour)
        axes.axhline(threshold, color=INK, linestyle="--", linewidth=1)
        counts = [sum(row["expansion"] == expansion for row in rows) for expansion in (0, 1)]
        axes.set_xticks([0, 1], [f"no expansion\nn = {counts[0]}", f"expansion\nn = {counts[1]}"])
        axes.tick_params(axis="x", length=0)
        axes.set(title=title, xlim=(-0.6, 1.75), ylim=(-0.03, 1.03))
        axes.grid(axis="y", color="#E6E8EB", linewidth=0.7)
    panels[-1].annotate(
        f"operating\npoint {threshold:.3g}",
        (1.0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )
    panels[0].set_ylabel("Network probability of expansion")
    return figure


def draw_calibration(scores, summary):
    """Draw observed against predicted risk in the test cohort, in groups of equal size, with their counts.

    Parameters
    ----------
    scores : list of dict
        Rows of `scores.tsv`.
    summary : dict
        `summary.json`, for slope and intercept.
    """
    from haemex.statistics import wilson_interval

    ordered = sorted(scores, key=lambda row: (row["calibrated_probability"], row["patient"]))
    groups = [
        group for group in np.array_split(np.arange(len(ordered)), calibration_groups(len(ordered))) if len(group)
    ]
    figure = _figure(5.0, 5.2)
    axes, rug = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (2, 2)), linewidth=1, label="perfect calibration")
    points = []
    for group in groups:
        rows = [ordered[i] for i in group]
        events = int(sum(row["expansion"] for row in rows))
        observed = wilson_interval(events, len(rows), summary["confidence"])
        points.append((np.mean([row["calibrated_probability"] for row in rows]), observed, events, len(rows)))
    x = [point[0] for point in points]
    y = [point[1].estimate for point in points]
    axes.errorbar(
        x,
        y,
        yerr=[[p[1].estimate - p[1].lower for p in points], [p[1].upper - p[1].estimate for p in points]],
        fmt="o",
        color=BLUE,
        markersize=6,
        elinewidth=1.2,
        capsize=3,
        label="groups of patients: with expansion / all",
        zorder=3,
    )
    for predicted, observed, events, patients in points:
        axes.annotate(
            f"{events}/{patients}",
            (predicted, observed.estimate),
            xytext=(7, -11),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(ylim=(-0.03, 1.03), ylabel="Observed share with expansion")
    axes.grid(color="#EEF0F2", linewidth=0.7)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left")
    for expansion, colour, level in ((0, BLUE, 0), (1, ORANGE, 1)):
        values = [row["calibrated_probability"] for row in scores if row["expansion"] == expansion]
        rug.plot(values, [level] * len(values), "|", color=colour, markersize=10, markeredgewidth=1.3)
    rug.set_yticks([0, 1], ["no expansion", "expansion"])
    rug.set(ylim=(-0.6, 1.6), xlim=(-0.02, 1.02), xlabel="Predicted probability (calibrated on the training cohort)")
    rug.tick_params(axis="y", length=0)
    return figure


def draw_decision_curve(table):
    """Draw the net benefit of acting on the network, on the logistic models, on everybody and on nobody.

    Parameters
    ----------
    table : list of dict
        Rows of `decision_curve.tsv`.
    """
    figure = _figure(6.6, 4.2)
    axes = figure.subplots()
    x = [row["threshold"] for row in table]
    curves = (
        ("none", "nobody", INK, "-", 1.0),
        ("all", "everybody", GREY, (0, (2, 2)), 1.4),
        ("bat", "BAT score", GREEN, "-.", 1.8),
        ("volume", "haematoma volume", ORANGE, "--", 1.8),
        ("cnn", "CNN", BLUE, "-", 2.2),
    )
    for name, label, colour, dash, width in curves:
        if all(row[name] is not None for row in table):
            axes.plot(x, [row[name] for row in table], color=colour, linestyle=dash, linewidth=width, label=label)
    share = table[0]["expansions"] / table[0]["patients"] if table[0]["patients"] else 1.0
    # Acting on everybody falls without limit: its far negative end would flatten all that matters.
    axes.set(xlim=(0, max(x)), ylim=(-0.25 * share - 0.01, 1.08 * share + 0.01))
    axes.set(xlabel="Probability from which one would act", ylabel="Net benefit per patient")
    axes.grid(color="#EEF0F2", linewidth=0.7)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right", title="Acting on", title_fontsize=8.5, alignment="left")
    return figure


def draw_subgroups(table, confidence):
    """Draw a forest plot of the network's AUC in every subgroup, with counts; say where there is none.

    Parameters
    ----------
    table : list of dict
        Rows of `subgroups.tsv`, the whole test cohort first.
    confidence : float
        Level of the intervals.
    """
    from haemex.statistics import round_half_up
    from haemex.subgroups import WITHOUT_SCANNER

    lines, division = [], None
    for row in table:
        if row["division"] != division and row is not table[0]:
            lines.append((row["division"], None))
        division = row["division"]
        # The heading says "without", and names of scanners are long.
        group = row["group"].removeprefix("without ") if division == WITHOUT_SCANNER else row["group"]
        lines.append(("Test cohort" if row is table[0] else f"   {group}", row))
    figure = _figure(7.4, 0.235 * len(lines) + 0.75)
    names, axes, numbers = figure.subplots(1, 3, sharey=True, width_ratios=[2.7, 2.6, 2.1])
    for aside in (names, numbers):
        aside.axis("off")

    def write(panel, x, height, said, **how):
        # Text is no part of the layout: a long name would else push the panels apart.
        panel.text(x, height, said, va="center", **({"fontsize": 8.5} | how)).set_in_layout(False)

    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    if table[0]["auc"] is not None:
        axes.axvline(table[0]["auc"], color=BLUE, linewidth=0.8)
    largest = max(row["n"] for row in table) or 1
    soft = "#5A6068"
    for height, (label, row) in enumerate(lines):
        head = row is None or row is table[0]
        weight = "bold" if head else "normal"
        write(names, 0, height, label, fontweight=weight, fontsize=max(6.5, 8.5 * min(1, 38 / len(label))))
        if row is None:
            continue
        write(numbers, 0.26, height, f"{row['expansions']} / {row['n']}", ha="right")
        if row["auc"] is None:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            write(axes, 0.5, height, row["note"], fontsize=8, color=soft, ha="center", bbox=white)
            write(numbers, 0.36, height, "none", color=soft)
            continue
        said = round_half_up(row["auc"], 2)
        if row["auc_lower"] is None:
            said += " (no interval)"
        else:
            axes.plot([row["auc_lower"], row["auc_upper"]], [height] * 2, color=BLUE, linewidth=1.4)
            said += f" ({round_half_up(row['auc_lower'], 2)} to {round_half_up(row['auc_upper'], 2)})"
        marker = "D" if row is table[0] else "s"
        size = 3.5 + 4.5 * (row["n"] / largest) ** 0.5
        axes.plot(row["auc"], height, marker, color=BLUE, markersize=size, clip_on=False)
        write(numbers, 0.36, height, said)
    write(numbers, 0.26, -1, "Events / all", ha="right", fontweight="bold")
    write(numbers, 0.36, -1, f"AUC ({100 * confidence:g} % CI)", fontweight="bold")
    axes.set(xlim=(-0.01, 1.01), ylim=(len(lines) - 0.4, -1.6), xlabel="AUC of the network")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    return figure


def calibration_groups(patients):
    """Return how many groups a calibration plot gets: about fifteen patients each, two at least, five at most."""
    return int(min(5, max(2, patients // 15)))
