"""The quality page: every patient in one table, the worst first, failures included.

Where all patients were inspected, the rule `qc` writes the page and its table. Where some failed, Snakemake never
reaches that rule; `end_badly` then writes the page alone, from what there is: inspected patients, and for the others
the stage that failed and what it said (`haemex.failures`).
"""

import statistics
import sys
from pathlib import Path

from haemex.errors import InputError
from haemex.failures import TO_THE_PAGE, collect, in_words, jobs_of, write_failures
from haemex.files import read_json, write_atomically
from haemex.inspection import MAX_OUTSIDE_FIELD
from haemex.logs import announce
from haemex.pages import page_environment, plural
from haemex.tables import write_table

MAX_PLAIN_PICTURES = 20  # of failed patients, per run: a third of a second each

WHOLE_BRAIN_MM = (224.0, 224.0, 160.0)  # of config/whole_brain.yaml, which the page recommends

# Key, heading, unit, digits: the numbers of the page, in its order.
NUMBERS = (
    ("haematoma_ml", "Haematoma", "mL", 1),
    ("followup_ml", "Follow-up", "mL", 1),
    ("outside_field", "Outside field of view", "%", 1),
    ("lost_ml", "Lost", "mL", 1),
    ("outside_brain", "Outside brain mask", "%", 1),
    ("haematoma_hu", "Density", "HU", 0),
    ("brain_ml", "Brain", "mL", 0),
    ("csf_hu", "Ventricles", "HU", 1),
    ("white_matter_hu", "White matter", "HU", 1),
    ("noise_hu", "Noise", "HU", 1),
    ("slices", "Slices", "", 0),
    ("slice_mm", "Plane distance", "mm", 2),
    ("slice_thickness_mm", "Thickness", "mm", 2),
    ("tilt_deg", "Tilt", "°", 1),
)
SHARES = ("outside_field", "outside_brain")
TEXTS = (
    ("even", "Spacing", ""),
    ("pixel_mm", "Pixel", "mm"),
    ("scanner", "Scanner, kernel", ""),
)
COLUMNS = (
    "patient",
    "warnings",
    *(key for key, *_ in NUMBERS),
    "pixel_mm",
    "matrix",
    "even",
    "manufacturer",
    "model",
    "kernel",
    "problems",
)


def write_page(*, inspected, field_of_view_mm, template_folder, page_out, table_out):
    """Write the page and the table of a cohort that was inspected whole.

    Parameters
    ----------
    inspected : list of path-like
        `inspect/{patient}.json` of every patient; the pictures stand beside them.
    field_of_view_mm : sequence of float, (3,)
        Of the network's grid, (x, y, z).
    template_folder : path-like
        `workflow/report`.
    page_out : path-like
        `qc/index.html`. Self-contained but for the pictures. Pictures that an earlier `write_failures` left beside it
        are deleted.
    table_out : path-like
        TSV with `COLUMNS`: one row per patient, worst first; shares are of 1.
    """
    rows = worst_first([_inspected(path) for path in inspected])
    _write_html(rows, field_of_view_mm, template_folder, page_out)
    write_table(
        table_out,
        [
            {
                **{name: _text(row[name]) for name in COLUMNS if name not in ("warnings", "problems")},
                "warnings": len(row["warnings"]),
                "problems": " | ".join(" ".join(warning["problem"].split()) for warning in row["warnings"]),
            }
            for row in rows
        ],
        COLUMNS,
    )
    warned = sum(bool(row["warnings"]) for row in rows)
    cut = sum(row["outside_field"] > MAX_OUTSIDE_FIELD for row in rows)
    announce(
        f"quality of {plural(len(rows), 'patient')}: {warned} with warnings, {cut} with more than "
        f"{100 * MAX_OUTSIDE_FIELD:g} % of the haematoma outside the field of view; see {page_out}"
    )


def end_badly(*, study, page_out, table_out, failures_out, field_of_view_mm, template_folder):
    """End a run that failed: say on the terminal what failed, why and what to do, and write the same down; never raise.

    The page is written where a patient is to blame; a run that failed elsewhere (in training, say) leaves it alone.

    Parameters
    ----------
    study : haemex.study.Study
    page_out, table_out : path-like
        As for `write_page`; `<results>` is the folder above.
    failures_out : path-like
        The table of failures, TSV with `haemex.failures.COLUMNS`; removed where no job failed.
    field_of_view_mm, template_folder
        As for `write_page`.
    """
    failures = []
    try:
        failures = collect(Path(page_out).parents[1], jobs_of(study))
        write_failures(failures, failures_out)
        write_provisional_page(
            failures=failures,
            patients=study.patients,
            page_out=page_out,
            table_out=table_out,
            field_of_view_mm=field_of_view_mm,
            template_folder=template_folder,
        )
    except Exception as error:  # Snakemake has its own failure to report; this one must not hide it
        print(f"What failed could not be written down: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if failures:
        synthetic = "phantom" in study.config  # every run makes their table anew
        said = in_words(failures, failures_out, page_out, None if synthetic else study.table)
        print(said, file=sys.stderr, flush=True)


def write_provisional_page(*, failures, patients, page_out, table_out, field_of_view_mm, template_folder):
    """Write the page of a run in which patients failed, and of the next ones until nobody does.

    The table is deleted, which belongs to the complete page, and so are outdated rows and pictures of patients who
    failed on the way to them: Snakemake 9.27 takes what an earlier run left behind a failed job for good, and would not
    try the job again for `snakemake qc` ("Nothing to be done").

    Parameters
    ----------
    failures : list of dict
        From `haemex.failures.collect`.
    patients : list of str
        Everybody whom the study inspects.
    page_out, table_out, field_of_view_mm, template_folder
        As for `write_page`.
    """
    page, table = Path(page_out), Path(table_out)
    rows = states(page.parents[1], patients, failures)
    failed = [row for row in rows if row["state"] == "failed"]
    provisional = page.exists() and not table.exists()
    if not failed and not provisional:
        return
    _forget(table, page.parent / "qc.log")
    for row in failed:
        if any(one["upstream"] for one in row["failures"]):
            inspected = page.parents[1] / "inspect" / row["patient"]
            _forget(*(inspected.with_name(f"{inspected.name}{suffix}") for suffix in (".json", ".png")))
            if all(one["stage"] != "inspect" for one in row["failures"]):
                _forget(inspected.with_name(f"{inspected.name}.log"))
    page.parent.mkdir(parents=True, exist_ok=True)
    _draw_plain_pictures(page.parents[1], failed)
    _write_html(worst_first(rows), field_of_view_mm, template_folder, page)


def _forget(*paths):
    for path in paths:
        path.unlink(missing_ok=True)


# --- who stands where ----------------------------------------------------------------------------------------------


def states(results, patients, failures):
    """Say of every patient what was measured, or why nothing was.

    Parameters
    ----------
    results : path-like
        Folder of the study.
    patients : collection of str
        Everybody whom the study inspects.
    failures : list of dict
        From `haemex.failures.collect`.

    Returns
    -------
    list of dict
        `state` is "inspected" (with the row of `haemex.inspection`), "failed" (with `failures`, a list of `stage`,
        `sentence` and `upstream`, whether the job comes before the inspection or is it) or "waiting". Who failed beyond
        the inspection alone has its row too.
    """
    of = {}
    for one in failures:
        upstream = one["stage"].replace("follow-up", "followup") in TO_THE_PAGE
        told = {"stage": one["stage"], "sentence": f"{one['problem']}. {one['action']}.", "upstream": upstream}
        of.setdefault(one["patient"], []).append(told)
    rows = []
    for patient in patients:
        inspected = Path(results) / "inspect" / f"{patient}.json"
        mine = of.get(patient, [])
        row = {}
        if inspected.is_file() and not any(one["upstream"] for one in mine):
            try:
                row = _inspected(inspected)
            except InputError:
                damaged = f"{inspected} is damaged. The next run makes it anew."
                mine.append({"stage": "inspect", "sentence": damaged, "upstream": True})
        state = "failed" if mine else "inspected" if row else "waiting"
        rows.append({"patient": patient, "warnings": [], **row, "state": state, "failures": mine})
    return rows


def _inspected(path):
    """Read the row of an inspected patient; refuse one that is damaged or another program's."""
    try:
        row = read_json(path)
        scanner = " ".join(row[name] for name in ("manufacturer", "model") if row[name])
        scanner = ", ".join(part for part in (scanner, row["kernel"]) if part) or None
        missing = {"warnings", "even", "pixel_mm", *(key for key, *_ in NUMBERS)} - row.keys()
        if missing:
            raise KeyError(*missing)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError("the file is damaged", "delete it, and run the same command again", path) from None
    picture = f"../inspect/{row['patient']}.png"
    return {**row, "scanner": scanner, "state": "inspected", "failures": [], "picture": picture}


def worst_first(rows):
    """Sort rows: failed, warned, waiting, the rest; then by the number of warnings and the share of haematoma lost.

    Parameters
    ----------
    rows : list of dict
        From `collect`.
    """
    return sorted(rows, key=lambda row: (*_badness(row), row["patient"]))


def _badness(row):
    rank = {"failed": 0, "waiting": 2}.get(row["state"], 1 if row["warnings"] else 3)
    return rank, -len(row["warnings"]), -(row.get("outside_field") or 0.0)


def _draw_plain_pictures(results, failed):
    """Draw the CT of failed patients as it is, where it was converted and was not drawn before."""
    from haemex.montage import draw_montage
    from haemex.nifti import read_volume

    drawn = 0
    for row in failed:
        if "picture" in row:  # of the inspection
            continue
        ct, picture = (
            results / "convert" / f"{row['patient']}_baseline.nii.gz",
            results / "qc" / f"{row['patient']}.png",
        )
        if not ct.is_file():
            continue
        if not picture.is_file() or picture.stat().st_mtime_ns < ct.stat().st_mtime_ns:
            if drawn == MAX_PLAIN_PICTURES:
                continue
            drawn += 1
            caption = [f"Patient {row['patient']}", "The baseline CT alone: a stage failed (see the page)."]
            try:
                write_atomically(picture, draw_montage(*read_volume(ct), caption)[0])
            except InputError:  # damaged, as its sentence on the page says
                continue
        row["picture"] = picture.name


# --- the page ------------------------------------------------------------------------------------------------------


def _write_html(rows, field_of_view_mm, template_folder, page_out):
    """Fill the template; delete pictures beside it that it does not show."""
    environment = page_environment(template_folder)
    environment.filters["sentence"] = sentence
    text = environment.get_template("qc.html.j2").render(
        study=Path(page_out).resolve().parents[1].name,
        rows=[{**row, "rank": rank, "cells": cells(row), "tile": tile(row)} for rank, row in enumerate(rows)],
        counts={state: sum(row["state"] == state for row in rows) for state in ("inspected", "failed", "waiting")},
        warned=sum(bool(row["warnings"]) for row in rows),
        lost=lost_haematoma(rows, field_of_view_mm),
        numbers=NUMBERS,
        texts=TEXTS,
        summary=summary(rows),
    )
    write_atomically(page_out, text.encode())
    for picture in Path(page_out).parent.glob("*.png"):
        if picture.name not in {row.get("picture") for row in rows}:
            picture.unlink()


def cells(row):
    """Print the numbers and texts of a row: list of (text, value to sort by), in the order of the page."""
    if row["state"] == "waiting" or "slices" not in row:
        return [("", "")] * (len(NUMBERS) + len(TEXTS))
    numbers = [(show(row[key], key, digits), _sortable(row[key])) for key, _, _, digits in NUMBERS]
    texts = {key: _text(row[key], "{:.3f}") or "" for key, *_ in TEXTS}
    x, y = row["pixel_mm"]
    if x == y:
        texts["pixel_mm"] = f"{x:.3f}"
    return numbers + [(text, text) for text in texts.values()]


def _sortable(value):
    return "" if value is None else repr(float(value))


def _text(value, size="{:g}"):
    """Print a pair as "a x b" and yes or no in words; leave everything else."""
    if isinstance(value, bool):
        return "even" if value else "uneven"
    if not isinstance(value, list):
        return value
    return " x ".join(str(part) if isinstance(part, int) else size.format(part) for part in value)


def sentence(text):
    """Begin with a capital letter, end with a full stop."""
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "."


def show(value, key, digits):
    """Print a number of the page; an en dash where there is none. Shares become per cent.

    What rounds to nothing but is not nothing is printed as "< 0.1".
    """
    if value is None:
        return "–"
    value = 100 * value if key in SHARES else value
    if 0 < value < 0.5 * 10**-digits:
        return f"< {10**-digits:g}"
    return f"{value:.{digits}f}".replace("-", "−")


def summary(rows):
    """Return median and range of every number over the inspected patients: list of (median, least, greatest) as text.

    An empty text stands where nobody has a value.
    """
    found = []
    for key, _, _, digits in NUMBERS:
        values = [row[key] for row in rows if row["state"] == "inspected" and row[key] is not None]
        measures = (statistics.median(values), min(values), max(values)) if values else ()
        found.append(tuple(show(value, key, digits) for value in measures) or ("", "", ""))
    return found


def lost_haematoma(rows, field_of_view_mm):
    """Say how much haematoma the network's field of view leaves out.

    Parameters
    ----------
    rows : list of dict
        From `collect`.
    field_of_view_mm : sequence of float, (3,)
        (x, y, z).

    Returns
    -------
    dict
        In words: `field`, and `whole_brain`, the alternative (None where the field of view is as large). Over the
        inspected patients: `patients`, `much` (more than 1 % of the haematoma outside), `any` (some of it), `lost_ml`,
        `total_ml` and `worst` (patient and share, or None).
    """
    inspected = [row for row in rows if row["state"] == "inspected"]
    worst = max(inspected, key=lambda row: row["outside_field"], default=None)
    larger = any(own < other for own, other in zip(field_of_view_mm, WHOLE_BRAIN_MM, strict=True))
    return {
        "field": " x ".join(f"{size:g}" for size in field_of_view_mm),
        "whole_brain": " x ".join(f"{size:g}" for size in WHOLE_BRAIN_MM) if larger else None,
        "patients": len(inspected),
        "much": sum(row["outside_field"] > MAX_OUTSIDE_FIELD for row in inspected),
        "any": sum(row["outside_field"] > 0 for row in inspected),
        "lost_ml": f"{sum(row['lost_ml'] for row in inspected):.1f}",
        "total_ml": f"{sum(row['haematoma_ml'] for row in inspected):.1f}",
        "worst": (worst["patient"], show(worst["outside_field"], "outside_field", 1))
        if worst and worst["outside_field"] > 0
        else None,
    }


def tile(row, height_px=88):
    """Place the slice with the largest haematoma in a small window: CSS lengths in px, or None without one."""
    if "key_tile_px" not in row:
        return None
    left, top, width, height = row["key_tile_px"]
    scale = height_px / height
    return {
        "width": round(width * scale),
        "height": height_px,
        "picture_width": round(row["picture_px"][0] * scale),
        "left": -round(left * scale),
        "top": -round(top * scale),
    }
