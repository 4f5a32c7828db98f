"""The cohort: reading the clinical table, eligibility, expansion label, temporal split, flow diagram.

Source: paper, Methods and Results; the order of reasons is the paper's.
"""

import csv
import datetime
import io
import json
from pathlib import Path

from haemex.errors import InputError
from haemex.nifti import write_atomically
from haemex.settings import load_schema, nearest
from haemex.tables import read_table, write_table

TABLE_SCHEMA = Path(__file__).resolve().parents[1] / "config" / "cohort.schema.yaml"

NOT_INCLUDED = ("age", "onset_to_ct", "followup_interval", "missing_data")
EXCLUDED = ("infratentorial", "ventricular_only", "died_or_surgery", "poor_image_quality")

# What decides whether a patient enters, and into which cohort; a change elsewhere in the table re-runs no training.
ELIGIBILITY_COLUMNS = (
    "patient",
    "admission_date",
    "age_years",
    "haemorrhage_site",
    "onset_to_ct_h",
    "ct_to_followup_h",
    "died_or_surgery_before_followup",
    "poor_image_quality",
)

COHORT_COLUMNS = ("patient", "cohort", "fold", "expansion", "baseline_ml", "followup_ml", "pixel_digest")


def read_cohort_table(path, schema_path=TABLE_SCHEMA):
    """Read the cohort table under its closed schema.

    Parameters
    ----------
    path : path-like
        Tab-separated, UTF-8, one row per patient, a header with the columns of `config/cohort.schema.yaml`.
    schema_path : path-like
        The schema.

    Returns
    -------
    list of dict
        One per patient, in the order of the table. Every column of the schema is there; an empty cell or an absent
        optional column is None. Dates are `datetime.date`, yes/no columns bool, numbers int or float.

    Raises
    ------
    InputError
        Lists every problem of the table at once: unknown or missing columns, doubled patients, impossible values.
    """
    schema = load_schema(schema_path)
    columns, required = schema["properties"], schema["required"]
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("the cohort table is not UTF-8 text", "save it as UTF-8, tab-separated", path) from None
    reader = csv.reader(io.StringIO(text), delimiter="\t")
    header = next(reader, [])
    problems = [f"unknown column `{name}` ({nearest(name, columns)})" for name in header if name not in columns]
    problems += [f"column `{name}` is missing" for name in required if name not in header]
    problems += [f"column `{name}` stands twice" for name in sorted({n for n in header if header.count(n) > 1})]
    rows, seen = [], set()
    if not problems:
        for line, cells in enumerate(reader, start=2):
            if not any(cells):
                continue
            if len(cells) > len(header):
                problems.append(f"line {line} has {len(cells)} cells under {len(header)} columns")
                continue
            raw = dict(zip(header, cells, strict=False))
            row = {}
            for name, rule in columns.items():
                try:
                    row[name] = _typed(raw.get(name, "").strip(), rule)
                except ValueError as error:
                    problems.append(f"line {line}, column `{name}`: {error}")
            patient = row.get("patient")
            if "patient" in row and patient is None:
                problems.append(f"line {line}: no patient")
            elif patient in seen:
                problems.append(f"line {line}: patient {patient} stands twice")
            seen.add(patient)
            rows.append(row)
        if not rows and not problems:
            problems.append("it holds no patient")
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise InputError(f"the cohort table is refused: {shown}", "config/README.md describes every column", path)
    return rows


def _typed(text, rule):
    """Turn a cell into the type its column has; "" is missing."""
    if text == "":
        return None
    kind = rule["type"]
    if kind == "boolean":
        if text not in ("0", "1"):
            raise ValueError(f"`{text}` is neither 0 nor 1")
        return text == "1"
    if kind in ("integer", "number"):
        try:
            value = int(text) if kind == "integer" else float(text)
        except ValueError:
            raise ValueError(f"`{text}` is no {'whole ' if kind == 'integer' else ''}number") from None
        if not rule.get("minimum", value) <= value <= rule.get("maximum", value):
            raise ValueError(f"{text} is outside {rule['minimum']} to {rule['maximum']}")
        return value
    if rule.get("format") == "date":
        try:
            return datetime.date.fromisoformat(text)
        except ValueError:
            raise ValueError(f"`{text}` is no date of the form 2018-08-31") from None
    if "enum" in rule and text not in rule["enum"]:
        raise ValueError(f"`{text}` is unknown ({nearest(text, rule['enum'])})")
    if rule.get("pattern") and not (text.isascii() and text.isalnum()):
        raise ValueError(f"`{text}` may hold letters and digits only")
    return text


def ineligibility(row, settings):
    """Say why a patient does not enter the study.

    Inclusion criteria come first, then the four exclusion reasons; the first that applies is the patient's reason.

    Parameters
    ----------
    row : dict
        A row of `read_cohort_table`.
    settings : dict
        Section `eligibility`: `min_age_years` (years), `max_onset_to_ct_h` (h), `followup_h` [lower, upper] (h).

    Returns
    -------
    str
        "" for an eligible patient, else one of `NOT_INCLUDED` or `EXCLUDED`.
    """
    age, onset, interval = row["age_years"], row["onset_to_ct_h"], row["ct_to_followup_h"]
    no_followup = bool(row["died_or_surgery_before_followup"])
    lower, upper = settings["followup_h"]
    # ASSUME: "over 18 years old" includes the age of 18, as adult cohorts do; the bounds of the times are included.
    if age is not None and age < settings["min_age_years"]:
        return "age"
    if onset is not None and onset > settings["max_onset_to_ct_h"]:
        return "onset_to_ct"
    # Who died or was operated on before the follow-up CT has none; the paper counts them among the exclusions.
    if interval is not None and not no_followup and not lower <= interval <= upper:
        return "followup_interval"
    # ASSUME: a criterion that cannot be checked is not met.
    if age is None or onset is None or (interval is None and not no_followup) or row["haemorrhage_site"] is None:
        return "missing_data"
    if row["haemorrhage_site"] == "infratentorial":
        return "infratentorial"
    if row["haemorrhage_site"] == "ventricular":
        return "ventricular_only"
    if no_followup:
        return "died_or_surgery"
    if row["poor_image_quality"]:
        return "poor_image_quality"
    return ""


def split(admission_date, cohorts):
    """Assign an admission date to a cohort: "train", "test", or "" outside both periods.

    Parameters
    ----------
    admission_date : datetime.date
        Day of admission.
    cohorts : dict
        Section `cohorts`: [first day, last day] in ISO form, both included, for `train` and `test`.
    """
    for name, (first, last) in cohorts.items():
        if first <= admission_date.isoformat() <= last:
            return name
    return ""


def is_expansion(baseline_ml, followup_ml, absolute_ml, relative_percent, operator):
    """Decide whether a haematoma expanded (paper: "> 6 mL or 33 %"; supplement: ">= 6 mL or >= 33 %").

    Parameters
    ----------
    baseline_ml, followup_ml : float
        Haematoma volumes, mL.
    absolute_ml : float
        Growth in mL.
    relative_percent : float
        Growth in percent of the baseline volume.
    operator : str
        ">" or ">=", for both.
    """
    growth = followup_ml - baseline_ml
    relative = 100.0 * growth / baseline_ml
    # Volumes are sums of float products: an exact 6 mL may come out as 5.999999999999. A billionth counts as equal.
    slack = 1e-9 if operator == ">=" else -1e-9
    return growth - absolute_ml > -slack or relative - relative_percent > -slack


def label_flips(volumes, settings):
    """Count how labels change under other definitions of expansion.

    Parameters
    ----------
    volumes : list of (float, float)
        Baseline and follow-up volume of each patient, mL.
    settings : dict
        Section `expansion`.

    Returns
    -------
    list of dict
        definition, patients, expansions, flips (labels that differ from the study's definition).
    """
    definitions = [settings]
    definitions += [{**settings, "operator": operator} for operator in (">", ">=")]
    definitions += [{**settings, "absolute_ml": float(ml)} for ml in (3, 6, 12.5)]
    definitions.append({**settings, "absolute_ml": float("inf")})
    definitions.append({**settings, "relative_percent": float("inf")})
    chosen = [is_expansion(*pair, **settings) for pair in volumes]
    table, seen = [], set()
    for definition in definitions:
        operator = definition["operator"]
        parts = []
        if definition["absolute_ml"] != float("inf"):
            parts.append(f"{operator} {definition['absolute_ml']:g} mL")
        if definition["relative_percent"] != float("inf"):
            parts.append(f"{operator} {definition['relative_percent']:g} %")
        name = " or ".join(parts)
        if name in seen:
            continue
        seen.add(name)
        labels = [is_expansion(*pair, **definition) for pair in volumes]
        table.append(
            {
                "definition": name,
                "patients": len(labels),
                "expansions": sum(labels),
                "flips": sum(a != b for a, b in zip(labels, chosen, strict=True)),
            }
        )
    return table


def build_cohort(
    table_path, measure_paths, cohort_out, flow_out, flips_out, eligibility, cohorts, expansion, folds, seed
):
    """Make the cohort: who enters, the label, the temporal split, the folds, and the numbers of the flow diagram.

    Parameters
    ----------
    table_path : path-like
        The cohort table.
    measure_paths : list of path-like
        JSON of stage `measure` for every eligible patient.
    cohort_out, flow_out, flips_out : path-like
        `cohort.tsv`, `flow.json` and `label_flips.tsv`.
    eligibility, cohorts, expansion : dict
        Sections of the config.
    folds : int
        Number of folds.
    seed : int
        The study's seed.

    Raises
    ------
    InputError
        A follow-up volume is missing; one scan stands under two patients; a cohort is empty or of one class only.
    """
    from haemex.folds import stratified_folds

    rows = read_cohort_table(table_path)
    measured = {m["patient"]: m for m in (json.loads(Path(path).read_text()) for path in measure_paths)}
    without = sorted(patient for patient, volumes in measured.items() if volumes["followup_ml"] is None)
    if without:
        raise InputError(
            f"no follow-up volume is known of {', '.join(without)}",
            "give `followup_mask` with `followup_ct`, or `followup_volume_ml`: without one there is no expansion label",
            table_path,
        )
    refuse_doubled_scans(measured.values())
    reasons = {row["patient"]: ineligibility(row, eligibility) for row in rows}
    members = []
    for row in sorted(rows, key=lambda row: row["patient"]):
        cohort = "" if reasons[row["patient"]] else split(row["admission_date"], cohorts)
        if cohort:
            volumes = measured[row["patient"]]
            pair = volumes["baseline_ml"], volumes["followup_ml"]
            members.append(
                {
                    "patient": row["patient"],
                    "cohort": cohort,
                    "fold": None,
                    "expansion": int(is_expansion(*pair, **expansion)),
                    "baseline_ml": pair[0],
                    "followup_ml": pair[1],
                    "pixel_digest": volumes["pixel_digest"]["baseline"],
                }
            )
    for name in ("train", "test"):
        expansions = [member["expansion"] for member in members if member["cohort"] == name]
        if len(set(expansions)) < 2:
            raise InputError(
                f"the {name} cohort has {len(expansions)} patients, {sum(expansions)} of them with expansion",
                "a study needs patients with and without expansion in both cohorts; see `cohorts` in the config",
                table_path,
            )
    training = {member["patient"]: member["expansion"] for member in members if member["cohort"] == "train"}
    fold_of = stratified_folds(training, folds, seed)
    for member in members:
        member["fold"] = fold_of.get(member["patient"])
    volumes = [(member["baseline_ml"], member["followup_ml"]) for member in members]
    flips = label_flips(volumes, expansion)
    write_atomically(flow_out, (json.dumps(flow(rows, reasons, members), indent=1, sort_keys=True) + "\n").encode())
    write_table(flips_out, flips)
    write_table(cohort_out, members, COHORT_COLUMNS)


def flow(rows, reasons, members):
    """Count patients for the flow diagram (paper, Figure 2).

    Parameters
    ----------
    rows : list of dict
        The cohort table.
    reasons : dict of str to str
        `ineligibility` by patient.
    members : list of dict
        Who entered, with `cohort` and `expansion`.
    """
    count = list(reasons.values()).count
    not_included = {reason: count(reason) for reason in NOT_INCLUDED}
    excluded = {reason: count(reason) for reason in EXCLUDED}
    by_cohort = {name: [m for m in members if m["cohort"] == name] for name in ("train", "test")}
    return {
        "screened": len(rows),
        "not_included": not_included,
        "included": len(rows) - sum(not_included.values()),
        "excluded": excluded,
        "eligible": count(""),
        "outside_dates": count("") - len(members),
        "train": len(by_cohort["train"]),
        "test": len(by_cohort["test"]),
        "expansion": {name: sum(m["expansion"] for m in group) for name, group in by_cohort.items()},
    }


def refuse_doubled_scans(measured):
    """Refuse one scan under two patients: the same person would stand on both sides of a split.

    Parameters
    ----------
    measured : iterable of dict
        JSON of stage `measure`, with `patient` and `pixel_digest` {"baseline", "followup"} (SHA-256 of the HU).

    Raises
    ------
    InputError
        Names both patients.
    """
    owner = {}
    for one in sorted(measured, key=lambda one: one["patient"]):
        for timepoint, digest in sorted(one["pixel_digest"].items()):
            if digest is None:
                continue
            if digest in owner:
                other, other_timepoint = owner[digest]
                if other == one["patient"]:
                    problem = f"patient {other} has the same scan as {other_timepoint} and {timepoint}"
                else:
                    problem = (
                        f"patients {other} and {one['patient']} have the same scan ({other_timepoint}, {timepoint})"
                    )
                raise InputError(problem, "correct the cohort table, or take one of the patients out")
            owner[digest] = one["patient"], timepoint


def read_cohort(path):
    """Read `cohort.tsv` back.

    Returns
    -------
    list of dict
        patient, cohort, fold (int or None), expansion (int), baseline_ml, followup_ml (mL), pixel_digest.
    """
    return read_table(path)
