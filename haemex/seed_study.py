"""How far the results move with nothing but the seed of the training.

The same candidate is trained with several seeds on the same folds and the same augmented copies. The seed then decides
the initial weights and the order of the copies; the copies themselves were drawn with the study's seed and stay as
they are, so that spread is not in here. A difference between two candidates, or two papers, that is smaller than this
spread says nothing.
"""

import math
import statistics
from pathlib import Path

from haemex.errors import InputError
from haemex.files import write_json
from haemex.statistics import delong_auc
from haemex.tables import read_table, write_table

SEED_COLUMNS = ("seed", "fold", "patients", "expansions", "auc", "auc_sd", "dice_median", "dice_mean", "collapsed")
ALL_FOLDS = "all"


def summarise_seeds(
    *,
    candidate,
    seeds,
    train_folder,
    cohort_path,
    collapsed_dice,
    confidence,
    table_path,
    summary_path,
    figure_stem,
):
    """Score the out-of-fold predictions of every seed, and say how far they spread.

    Parameters
    ----------
    candidate : str
        Name of the candidate that was trained.
    seeds : sequence of int
        Two at least, for a spread.
    train_folder : path-like
        Holds `seed{seed}/fold{fold}/predictions.tsv`.
    cohort_path : path-like
        `cohort.tsv` of the stage `cohort`; rows of the test cohort are not looked at.
    collapsed_dice : float
        A fold whose median Dice coefficient is below this raises an alarm; it stays in the spread.
    confidence : float
        Level of the interval of each standard deviation.
    table_path : path-like
        Scores of each seed by fold, and pooled (fold "all"): `SEED_COLUMNS`; `auc_sd` is DeLong's.
    summary_path : path-like
        JSON: candidate, seeds, numbers of folds, patients and expansions, `auc` and `dice_median` (of the pooled
        predictions; see `spread`), `auc_sd_patients` (DeLong's standard deviation of one AUC, root mean square over
        the seeds, for scale: how far an AUC moves with the choice of the patients), `alarms`.
    figure_stem : path-like
        The figure, with the endings .png and .svg.

    Raises
    ------
    InputError
        Predictions do not fit the folds, are no finite numbers, or are of patients of one kind only.
    """
    import matplotlib

    from haemex.figures import STYLE, save

    cohort = {row["patient"]: row for row in read_table(cohort_path, as_text=True) if row["cohort"] == "train"}
    expansions = sum(row["expansion"] == "1" for row in cohort.values())
    if not 0 < expansions < len(cohort):
        raise InputError(
            f"{expansions} of {len(cohort)} patients of the training cohort have an expansion",
            "prediction can be judged only with patients of both kinds",
            cohort_path,
        )
    folds = sorted({int(row["fold"]) for row in cohort.values()})
    table, alarms = [], []
    for seed in seeds:
        by_fold = {fold: _predictions(Path(train_folder), seed, fold, cohort) for fold in folds}
        collapsed = []
        for fold, rows in by_fold.items():
            scored = _score(rows)
            collapsed.append(scored["dice_median"] < collapsed_dice)
            if collapsed[-1]:
                alarms.append(
                    f"seed {seed}, fold {fold}: the median Dice coefficient of its {len(rows)} patients is "
                    f"{scored['dice_median']:.3f}, below {collapsed_dice:g}; the network did not learn to segment"
                )
            table.append({"seed": seed, "fold": fold, **scored, "collapsed": int(collapsed[-1])})
        pooled = _score([row for rows in by_fold.values() for row in rows])
        table.append({"seed": seed, "fold": ALL_FOLDS, **pooled, "collapsed": sum(collapsed)})
    pooled = [row for row in table if row["fold"] == ALL_FOLDS]
    summary = {
        "candidate": candidate,
        "seeds": list(seeds),
        "folds": len(folds),
        "patients": len(cohort),
        "expansions": expansions,
        "confidence": confidence,
        "auc": spread([row["auc"] for row in pooled], confidence),
        "dice_median": spread([row["dice_median"] for row in pooled], confidence),
        "auc_sd_patients": _root_mean_square([row["auc_sd"] for row in pooled]),
        "alarms": alarms,
    }
    with matplotlib.rc_context(STYLE):
        save(draw_seeds(table, summary), figure_stem)
    write_table(table_path, table, SEED_COLUMNS)
    write_json(summary_path, summary)


def spread(values, confidence):
    """Describe how far a few values lie apart.

    Parameters
    ----------
    values : sequence of float
        One per seed.
    confidence : float
        Level of the interval of the standard deviation.

    Returns
    -------
    dict
        `number`, `mean`, `min`, `max`, `range`, `sd` (of a sample, n - 1), `sd_lower`, `sd_upper`: the interval of a
        normal distribution's standard deviation, sd * sqrt((n - 1) / chi-square quantile). Few seeds leave it wide:
        with three it runs from half to six times the value. What one value cannot say is None.
    """
    from scipy.special import chdtri

    number, sd, lower, upper = len(values), None, None, None
    if number > 1:
        sd, tail = statistics.stdev(values), (1 - confidence) / 2
        lower, upper = (sd * math.sqrt((number - 1) / chdtri(number - 1, p)) for p in (tail, 1 - tail))
    return {
        "number": number,
        "mean": statistics.fmean(values),
        "min": min(values),
        "max": max(values),
        "range": max(values) - min(values),
        "sd": sd,
        "sd_lower": lower,
        "sd_upper": upper,
    }


def draw_seeds(table, summary):
    """Draw AUC and median Dice of every seed, pooled and by fold, with the spread over the seeds.

    Parameters
    ----------
    table, summary : list of dict, dict
        What `summarise_seeds` writes.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from haemex.figures import BLUE, GREY, INK, ORANGE, STYLE

    seeds = summary["seeds"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.6, 1.5 + 0.9 * len(seeds)), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (column, title) in zip(
            figure.subplots(1, 2), (("auc", "AUC of expansion"), ("dice_median", "Dice, median")), strict=True
        ):
            of_all = summary[column]
            for row in table:
                place, value = seeds.index(row["seed"]), row[column]
                if value is None:
                    continue
                if row["fold"] == ALL_FOLDS:
                    axes.plot(place, value, "o", color=BLUE, markersize=7, zorder=3, label="all folds pooled")
                else:
                    axes.plot(place, value, "_", color=GREY, markersize=10, zorder=2, label="one fold")
            axes.axhline(of_all["mean"], color=INK, linewidth=1, linestyle="--", zorder=1, label="mean of the seeds")
            said = f"mean {of_all['mean']:.3f}"
            if of_all["sd"] is not None:
                low, high = of_all["mean"] - of_all["sd"], of_all["mean"] + of_all["sd"]
                axes.axhspan(low, high, color=BLUE, alpha=0.14, linewidth=0, zorder=0, label="± SD over the seeds")
                said += f", SD over the seeds {of_all['sd']:.3f}"
            end = len(seeds) - 0.4
            if column == "auc" and summary["auc_sd_patients"] is not None:
                axes.errorbar(
                    len(seeds),
                    of_all["mean"],
                    yerr=summary["auc_sd_patients"],
                    fmt="none",
                    ecolor=ORANGE,
                    elinewidth=1.6,
                    capsize=4,
                    label="± SD of one AUC, from the patients (DeLong)",
                )
                end += 1
            axes.set_title(f"{title}\n")
            axes.annotate(said, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points", fontsize=8)
            axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
            axes.set(xlim=(-0.6, end), xlabel="Seed of the training")
            axes.tick_params(axis="x", length=0)
            axes.grid(axis="y", color="#E6E8EB", linewidth=0.7)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=3)
    return figure


def _predictions(train_folder, seed, fold, cohort):
    """Read the predictions of one training, and refuse any that are not of exactly the patients it left out."""
    path = train_folder / f"seed{seed}" / f"fold{fold}" / "predictions.tsv"
    held_out = sorted(patient for patient, row in cohort.items() if int(row["fold"]) == fold)
    rows = read_table(path)
    again = "remove the folder of this training and run the workflow again"
    if sorted(row["patient"] for row in rows) != held_out:
        raise InputError(
            f"{len(rows)} predictions, not one for each of the {len(held_out)} patients of fold {fold}", again, path
        )
    for row in rows:
        if not all(isinstance(row[name], int | float) and math.isfinite(row[name]) for name in ("probability", "dice")):
            raise InputError(f"the prediction for patient {row['patient']} is no finite number", again, path)
    return [{**row, "expansion": int(cohort[row["patient"]]["expansion"])} for row in rows]


def _score(rows):
    """Compute AUC, with DeLong's standard deviation, and Dice coefficients; None where they are not defined."""
    labels = [row["expansion"] for row in rows]
    result = delong_auc(labels, [row["probability"] for row in rows])
    return {
        "patients": len(rows),
        "expansions": sum(labels),
        "auc": None if math.isnan(result.auc) else result.auc,
        "auc_sd": None if math.isnan(result.variance) else math.sqrt(result.variance),
        "dice_median": statistics.median(row["dice"] for row in rows),
        "dice_mean": statistics.fmean(row["dice"] for row in rows),
    }


def _root_mean_square(values):
    known = [value for value in values if value is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None
