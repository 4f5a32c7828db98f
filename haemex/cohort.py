"""The cohort: eligibility, expansion label, temporal split, flow diagram.

Source: paper, Methods and Results; the order of reasons is the paper's. A patient who meets all criteria and was
admitted in one of the two periods may still be excluded by the investigators, who give a reason in the cohort table
(`excluded`), mostly because the files cannot be mended. That exclusion comes last: it counts those only who would
otherwise have entered, and on anybody else it changes nothing.
"""

import datetime

from haemex.cohort_table import read_cohort_table
from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.tables import read_table, write_table

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


def refused_columns(faults, patient):
    """Collect the columns in which nothing is known of a patient, as the table is refused there.

    Parameters
    ----------
    faults : list of dict
        From `haemex.cohort_table.parse_cohort_table`.
    patient : str
        A patient of its rows.

    Returns
    -------
    set of str
        Columns refused in the patient's row or missing in the table; all that decide eligibility where the whole row
        is refused.
    """
    mine = {fault["column"] for fault in faults if fault["patient"] in ("", patient)}
    whole_row = any(fault["patient"] == patient and not fault["column"] for fault in faults)
    return mine | set(ELIGIBILITY_COLUMNS) if whole_row else mine


def assume_well(row, refused, eligibility, cohorts):
    """Fill what is refused in a row with values that let the patient enter: so much is checked of a faulty table.

    Parameters
    ----------
    row : dict
        A row of `haemex.cohort_table.parse_cohort_table`.
    refused : set of str
        From `refused_columns`.
    eligibility, cohorts : dict
        Sections of the config.

    Returns
    -------
    dict
        The row; where nothing is refused, as it is.
    """
    first_day = min(period[0] for period in cohorts.values() if period)
    well = {
        "admission_date": datetime.date.fromisoformat(first_day),
        "age_years": eligibility["min_age_years"],
        "haemorrhage_site": "supratentorial",
        "onset_to_ct_h": 0.0,
        "ct_to_followup_h": eligibility["followup_h"][0],
    }
    return row | {column: value for column, value in well.items() if column in refused and row[column] is None}


def cohort_of(row, eligibility, cohorts):
    """Say into which cohort a patient belongs by the criteria and the date: "train", "test", or "" for neither."""
    return "" if ineligibility(row, eligibility) else split(row["admission_date"], cohorts)


def enters(row, eligibility, cohorts):
    """Whether a patient belongs into a cohort and was not excluded by the investigators."""
    return not row["excluded"] and bool(cohort_of(row, eligibility, cohorts))


def excluded_by_investigators(rows, eligibility, cohorts):
    """List who would have entered but for a reason of the investigators.

    Parameters
    ----------
    rows : list of dict
        The cohort table.
    eligibility, cohorts : dict
        Sections of the config.

    Returns
    -------
    list of dict
        patient, cohort ("train" or "test"), reason (as the table says it); by patient.
    """
    return [
        {"patient": row["patient"], "cohort": cohort, "reason": row["excluded"]}
        for row in sorted(rows, key=lambda row: row["patient"])
        if row["excluded"] and (cohort := cohort_of(row, eligibility, cohorts))
    ]


def by_reason(excluded):
    """Gather who was excluded by the investigators under their reasons, the commonest first.

    Parameters
    ----------
    excluded : list of dict
        From `excluded_by_investigators`.

    Returns
    -------
    list of dict
        reason, number, train and test (lists of patients). Reasons that differ in capital letters only are one, in
        the spelling of the first patient.
    """
    groups = {}
    for one in excluded:
        group = groups.setdefault(one["reason"].casefold(), {"reason": one["reason"], "train": [], "test": []})
        group[one["cohort"]].append(one["patient"])
    counted = [group | {"number": len(group["train"]) + len(group["test"])} for group in groups.values()]
    return sorted(counted, key=lambda group: (-group["number"], group["reason"]))


def refuse_all_excluded(rows, eligibility, cohorts, file):
    """Refuse a table in which the investigators excluded everybody of a cohort.

    Parameters
    ----------
    rows : list of dict
        The cohort table.
    eligibility, cohorts : dict
        Sections of the config.
    file : path-like
        The table, for the message.

    Raises
    ------
    InputError
        Names the cohort.
    """
    belong = [(cohort_of(row, eligibility, cohorts), row) for row in rows]
    for name, title in (("train", "training"), ("test", "test")):
        members = [row for cohort, row in belong if cohort == name]
        if members and all(row["excluded"] for row in members):
            raise InputError(
                f"every patient of the {title} cohort ({len(members)}) is marked in `excluded`",
                "Empty the cells of those who can be mended: a study needs patients in each of its cohorts",
                file,
            )


def split(admission_date, cohorts):
    """Assign an admission date to a cohort: "train", "test", or "" outside both periods.

    Parameters
    ----------
    admission_date : datetime.date or None
        Day of admission; without one a patient belongs to neither.
    cohorts : dict
        Section `cohorts`: [first day, last day] in ISO form, both included, for `train` and `test`; None for a cohort
        that the study does not have.
    """
    for name, period in cohorts.items():
        if period and admission_date is not None and period[0] <= admission_date.isoformat() <= period[1]:
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


def expansion_definitions(settings):
    """List the definitions of expansion a reader may ask for, each with its name; the study's own comes first.

    Parameters
    ----------
    settings : dict
        Section `expansion`.

    Returns
    -------
    dict of str to dict
        Settings of `is_expansion` by name, e.g. "> 6 mL or > 33 %": both operators; 3, 6 and 12.5 mL; either part
        alone.
    """
    definitions = [settings]
    definitions += [{**settings, "operator": operator} for operator in (">", ">=")]
    definitions += [{**settings, "absolute_ml": float(ml)} for ml in (3, 6, 12.5)]
    definitions.append({**settings, "absolute_ml": float("inf")})
    definitions.append({**settings, "relative_percent": float("inf")})
    named = {}
    for definition in definitions:
        operator = definition["operator"]
        parts = []
        if definition["absolute_ml"] != float("inf"):
            parts.append(f"{operator} {definition['absolute_ml']:g} mL")
        if definition["relative_percent"] != float("inf"):
            parts.append(f"{operator} {definition['relative_percent']:g} %")
        named.setdefault(" or ".join(parts), definition)
    return named


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
    chosen = [is_expansion(*pair, **settings) for pair in volumes]
    table = []
    for name, definition in expansion_definitions(settings).items():
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


def build_cohort(table_path, measure_paths, cohort_out, flips_out, eligibility, cohorts, expansion, folds, seed):
    """Make the cohort: who enters, the label, the temporal split, the folds.

    Without a training period everybody is of the test cohort, and there are no folds.

    Parameters
    ----------
    table_path : path-like
        The cohort table.
    measure_paths : list of path-like
        JSON of stage `measure` for every patient who enters.
    cohort_out, flips_out : path-like
        `cohort.tsv` and `label_flips.tsv`.
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
    measured = {m["patient"]: m for m in (read_json(path) for path in measure_paths)}
    without = sorted(patient for patient, volumes in measured.items() if volumes["followup_ml"] is None)
    if without:
        raise InputError(
            f"no follow-up volume is known of {', '.join(without)}",
            "give `followup_mask` with `followup_ct`, or `followup_volume_ml`: without one there is no expansion label",
            table_path,
        )
    refuse_doubled_scans(measured.values())
    members = []
    for row in sorted(rows, key=lambda row: row["patient"]):
        if enters(row, eligibility, cohorts):
            volumes = measured[row["patient"]]
            pair = volumes["baseline_ml"], volumes["followup_ml"]
            members.append(
                {
                    "patient": row["patient"],
                    "cohort": split(row["admission_date"], cohorts),
                    "fold": None,
                    "expansion": int(is_expansion(*pair, **expansion)),
                    "baseline_ml": pair[0],
                    "followup_ml": pair[1],
                    "pixel_digest": volumes["pixel_digest"]["baseline"],
                }
            )
    for name in (name for name in ("train", "test") if cohorts[name]):
        expansions = [member["expansion"] for member in members if member["cohort"] == name]
        if len(set(expansions)) < 2:
            raise InputError(
                f"the {name} cohort has {len(expansions)} patients, {sum(expansions)} of them with expansion",
                "a study needs patients with and without expansion in each cohort; see `cohorts` in the config",
                table_path,
            )
    training = {member["patient"]: member["expansion"] for member in members if member["cohort"] == "train"}
    fold_of = stratified_folds(training, folds, seed) if training else {}
    for member in members:
        member["fold"] = fold_of.get(member["patient"])
    volumes = [(member["baseline_ml"], member["followup_ml"]) for member in members]
    flips = label_flips(volumes, expansion)
    write_table(flips_out, flips)
    write_table(cohort_out, members, COHORT_COLUMNS)


def write_flow(table_path, cohort_path, flow_out, eligibility, cohorts):
    """Write the numbers of the flow diagram, and who was excluded by the investigators and why.

    Apart from `build_cohort`: a reason that is worded otherwise trains nothing.

    Parameters
    ----------
    table_path, cohort_path : path-like
        The cohort table, and `cohort.tsv`.
    flow_out : path-like
        `flow.json`: see `flow`.
    eligibility, cohorts : dict
        Sections of the config.
    """
    rows = read_cohort_table(table_path)
    reasons = {row["patient"]: ineligibility(row, eligibility) for row in rows}
    excluded = excluded_by_investigators(rows, eligibility, cohorts)
    write_json(flow_out, flow(rows, reasons, read_cohort(cohort_path), excluded))


def flow(rows, reasons, members, excluded_later=()):
    """Count patients for the flow diagram (paper, Figure 2).

    Parameters
    ----------
    rows : list of dict
        The cohort table.
    reasons : dict of str to str
        `ineligibility` by patient.
    members : list of dict
        Who entered, with `cohort` and `expansion`.
    excluded_later : list of dict
        From `excluded_by_investigators`.

    Returns
    -------
    dict
        screened = not_included (by reason) + included; included = excluded (by reason) + eligible; eligible =
        outside_dates + the patients of `excluded_by_investigators` + train + test. `expansion` by cohort.
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
        "outside_dates": count("") - len(members) - len(excluded_later),
        "excluded_by_investigators": list(excluded_later),
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
