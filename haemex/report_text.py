"""What the report says in words: the answer, the comparison of AUCs, and what a careful reader has to know first."""

from haemex.cohort import by_reason, expansion_definitions
from haemex.markers import MARKERS
from haemex.pages import plural
from haemex.printing import interval, number, percent, span
from haemex.statistics import format_p

# Validation of a prediction model wants at least 100 patients with and 100 without the outcome
# (Collins, Ogundimu and Altman 2016, Stat Med 35:214; Vergouwe 2005, J Clin Epidemiol 58:475).
WANTED_EVENTS = 100
# Rows of Table 1 that the caveats name, when values are missing in more rows than these.
NAMED_MISSING = 5
# Reasons of the investigators that the caveats name; a table has all of them.
NAMED_REASONS = 5


def is_read(row):
    """Whether a row of Table 2 is of the paper's table: read by a person or predicted, not computed from the CT."""
    return row.get("source") != "computed"


def answer(summary):
    """Answer the study's question in one sentence.

    Parameters
    ----------
    summary : dict
        `summary.json`.

    Returns
    -------
    str
    """
    network, test = summary["table2"]["CNN"], summary["cohorts"]["test"]
    level = f"{100 * summary['confidence']:g} %"
    who = f"in {test['patients']} patients it had not seen, {test['expansions']} of them with expansion"
    if network["auc"] is None:
        return f"No answer: there is no AUC {who}, because all have one outcome."
    if network["auc_lower"] is None:
        return (
            f"No answer: the AUC is {number(network['auc'])} {who}, but it has no interval, because one of the "
            "groups has fewer than two patients."
        )
    reached = (
        f"AUC {number(network['auc'])} ({level} CI {number(network['auc_lower'])} to {number(network['auc_upper'])})"
    )
    if network["auc_upper"] < 0.5:
        return f"The network ranks patients worse than chance: {reached} {who}."
    if network["auc_lower"] <= 0.5:
        return (
            f"Not shown that the network predicts early expansion better than chance: {reached} {who}; the interval "
            "includes 0.5."
        )
    return f"The network predicts early expansion better than chance: {reached} {who}."


def verdict(summary):
    """Say in sentences what the comparison of the AUCs allows to say, and no more.

    Parameters
    ----------
    summary : dict
        `summary.json`.

    Returns
    -------
    list of str
        Sentences: the two models for comparison, then the tests with Holm's correction.
    """
    table = summary["table2"]
    if table["CNN"]["auc_lower"] is None:
        return []
    sentences = []
    models = (("Haematoma volume", "that of haematoma volume alone"), ("BAT score", "that of the BAT score"))
    reached = [f"{words} is {interval(table[name], 'auc')}" for name, words in models if name in table]
    if reached:
        sentences.append(f"For comparison with this AUC: {', '.join(reached)}.")
    tested = {name: row for name, row in table.items() if name != "CNN" and is_read(row) and row["p"] is not None}
    significant = {name: row for name, row in tested.items() if row["p_holm"] < 1 - summary["confidence"]}
    corrected = f"After Holm's correction for {plural(len(tested), 'comparison')}, the network's AUC "
    for word, sign in (("higher", 1), ("lower", -1)):
        named = [
            f"{name} ({number(row['auc'])}, p = {format_p(row['p_holm'])})".replace("= <", "< ")
            for name, row in significant.items()
            if sign * row["auc_difference"] > 0
        ]
        if named:
            sentences.append(f"{corrected}is {word} than that of {', '.join(named)}.")
    if not significant:
        sentences.append(
            f"{corrected}does not differ significantly from that of any marker or logistic model; with so few patients "
            "that is no proof of equality."
        )
    return sentences


def caveats(summary, flow, selected, table1, acquisition, agreement, cohorts, synthetic):
    """List what a careful reader has to know before using a number of this report.

    Parameters
    ----------
    summary : dict
        `summary.json`.
    flow : dict
        `flow.json`.
    selected : dict or None
        `selected.json`; None where another study's model is evaluated.
    table1, acquisition, agreement : list of dict
        Tables of these names; counts may be text.
    cohorts : dict
        Section `cohorts` of the config: first and last date of admission of `train` and `test`.
    synthetic : bool
        Whether the patients were made by `haemex.phantom`.

    Returns
    -------
    list of str
        Sentences, the weightiest first.
    """
    said = []
    if synthetic:
        said.append(
            "Every patient is synthetic. The numbers show that the software runs; they say nothing about patients."
        )
    if selected:
        said += _of_training(summary, selected)
    said += _of_the_sample(summary, acquisition, external=selected is None)
    said += _of_the_segmentation(summary)
    said += _of_the_models(summary)
    said += _of_the_excluded(flow)
    said += _of_missing_values(summary, flow, table1)
    said += _of_readers_and_time(agreement, cohorts)
    return said


def _of_training(summary, selected):
    # Alarms of candidates that were not chosen stand in the section on the cross-validation.
    chosen = summary["selection"]["candidate"]
    own = (f"candidate {chosen},", f"candidate {chosen} ")
    said = [
        f"Alarm of the cross-validation: {alarm}."
        for alarm in summary["selection"]["alarms"]
        if alarm.startswith(own) or not alarm.startswith("candidate ")
    ]
    collapsed = {name: score["collapsed_folds"] for name, score in selected["scores"].items()}
    if collapsed.get(chosen):
        said.append(
            f"The segmentation of the chosen candidate collapsed in {plural(len(collapsed[chosen]), 'fold')} "
            f"({', '.join(map(str, collapsed[chosen]))}); the out-of-fold results, the operating point and the "
            "calibration include it."
        )
    if selected["dropped"]:
        said.append(
            f"{plural(len(selected['dropped']), 'candidate')} dropped out because a fold collapsed "
            f"({', '.join(selected['dropped'])}): training is not stable in this setting."
        )
    return said


def _of_the_sample(summary, acquisition, external):
    test, train = summary["cohorts"]["test"], summary["cohorts"]["train"]
    said = []
    without = test["patients"] - test["expansions"]
    if min(test["expansions"], without) < WANTED_EVENTS:
        said.append(
            f"The test cohort has {plural(test['expansions'], 'patient')} with and {without} without expansion; "
            f"validation of a prediction model wants at least {WANTED_EVENTS} of each (Collins 2016). Read the "
            "intervals, not the estimates."
        )
    learnt = f"The network learnt expansion from {plural(train['expansions'], 'patient')} who had it"
    if external:
        said.append(f"{learnt}, where it was made; nothing was fitted to the patients here.")
        taught, here = (_defined(one["definition"]) for one in (summary["reference"], summary))
        if taught != here:
            said.append(
                f"The network was taught that expansion is growth {taught}; here it is judged by growth {here}."
            )
    else:
        said.append(
            f"{learnt}. The test cohort comes from the same table and was admitted later: this is temporal, not "
            "external, validation."
        )
    unseen = {row["scanner"]: int(row["test"]) for row in acquisition if not int(row["train"]) and int(row["test"])}
    if unseen:
        said.append(
            f"{plural(sum(unseen.values()), 'test patient')} came from "
            f"{'a scanner' if len(unseen) == 1 else 'scanners'} that no training patient was scanned on: "
            f"{', '.join(f'{name} ({count})' for name, count in unseen.items())}."
        )
    return said


def _defined(expansion):
    return next(iter(expansion_definitions(expansion)))


def _of_the_segmentation(summary):
    said = []
    for name, label in (("train", "training"), ("test", "test")):
        group = summary["segmentation"].get(name)
        if group and group["cut_off"]:
            said.append(
                f"In {plural(group['cut_off'], 'patient')} of the {label} cohort less than 99 % of the haematoma lies "
                f"inside the network's field of view (least: {percent(group['least_inside'])})."
            )
    test = summary["segmentation"]["test"]
    if test["failures"]:
        untouched = f", in {test['missed']} of them without a voxel in common" if test["missed"] else ""
        said.append(
            f"In {test['failures']} of {plural(summary['cohorts']['test']['patients'], 'test patient')} the network's "
            f"outline failed (Dice coefficient below 0.5 on the acquired slices{untouched})."
        )
    return said


def _of_the_models(summary):
    said = [remark for remark in summary.get("selection", {}).get("remarks", []) if "within the spread" in remark]
    area = summary["table2"]["CNN"]["auc"]
    if area is not None and area in (0.0, 1.0):
        said.append("The network's AUC lies at its limit, where DeLong's interval has no width and means nothing.")
    if any(model["separated"] for model in summary["baselines"].values()):
        said.append(
            "In the training cohort a predictor separates the outcomes wholly, so maximum likelihood has no answer; "
            "its logistic model uses Platt's targets instead."
        )
    train = summary["segmentation"].get("train")
    if train and train.get("out_of_fold"):
        said.append(
            "Results of the final model on the training cohort are of a model refitted to these very patients and show "
            f"fit, not performance: median Dice {number(train['grid']['median'])} refitted, "
            f"{number(train['out_of_fold']['median'])} out-of-fold."
        )
    return said


def exclusions(flow):
    """Say who was excluded by the investigators: numbers for sentences and a table, by reason.

    Parameters
    ----------
    flow : dict
        `flow.json`.

    Returns
    -------
    dict or None
        None where nobody was. `number` of `all` who would have entered; `cohorts`: by cohort (`train`, `test`; those
        with patients only) the pair of excluded and all; `reasons`: see `haemex.cohort.by_reason`.
    """
    excluded = flow.get("excluded_by_investigators")
    if not excluded:
        return None
    cohorts = {}
    for name in ("train", "test"):
        number = sum(one["cohort"] == name for one in excluded)
        if flow[name] + number:
            cohorts[name] = (number, flow[name] + number)
    return {
        "number": len(excluded),
        "all": sum(everybody for _, everybody in cohorts.values()),
        "cohorts": cohorts,
        "reasons": by_reason(excluded),
    }


def _of_the_excluded(flow):
    excluded = exclusions(flow)
    if not excluded:
        return []
    titles = {"train": "training", "test": "test"}
    where = ", ".join(
        f"{number} of {everybody} in the {titles[name]} cohort"
        for name, (number, everybody) in excluded["cohorts"].items()
    )
    named = excluded["reasons"][:NAMED_REASONS]
    why = "; ".join(f"{one['reason']} ({one['number']})" for one in named)
    rest = len(excluded["reasons"]) - len(named)
    more = f"; and {plural(rest, 'other reason')}" if rest else ""
    were = f"{excluded['number']} {'was' if excluded['number'] == 1 else 'were'}"
    return [
        f"Of {plural(excluded['all'], 'patient')} who met all criteria, {were} excluded by the investigators "
        f"afterwards ({where}): {why}{more}. Nothing was imputed for them; if they differ from the others in what "
        "matters, leaving them out biases every result."
    ]


def _of_missing_values(summary, flow, table1):
    said = []
    missing = {MARKERS.get(name, "BAT score"): n for name, n in summary["missing_in_test"].items() if n}
    if missing:
        told = ", ".join(f"{name} in {n}" for name, n in missing.items())
        said.append(f"Missing in the test cohort, and left out of that row of Table 2: {told}.")
    counts = {row["label"]: sum(int(row[name] or 0) for name in row if name.endswith("_missing")) for row in table1}
    gaps = sorted(((count, label) for label, count in counts.items() if count), key=lambda one: (-one[0], one[1]))
    if gaps:
        own = ("test",) if summary.get("external") else ("train", "test")
        everybody = sum(summary["cohorts"][cohort]["patients"] for cohort in own)
        told = ", ".join(f"{label} in {count}" for count, label in gaps[:NAMED_MISSING])
        more = f", and fewer in {plural(len(gaps) - NAMED_MISSING, 'other row')}" if len(gaps) > NAMED_MISSING else ""
        said.append(f"Of {everybody} patients, values of Table 1 are missing, and were not imputed: {told}{more}.")
    unchecked = flow["not_included"].get("missing_data", 0)
    if unchecked:
        said.append(f"{plural(unchecked, 'patient')} did not enter because a criterion could not be checked.")
    return said


def _of_readers_and_time(agreement, cohorts):
    said = []
    drawn = any(row["item"].startswith("Haematoma") for row in agreement)
    if not agreement:
        said.append(
            "Nothing was read or drawn twice: how far labels, masks and markers depend on the one reader is not known."
        )
    elif not drawn:
        said.append("No mask was drawn twice: how far labels and volumes depend on the one reader is not known.")
    first, last = (cohorts["train"] or cohorts["test"])[0], cohorts["test"][1]
    years = (_days(last) - _days(first)) / 365.25
    said.append(
        f"Admissions span {number(years, 1)} years ({span((first, last))}); treatment, scanners and readers may have "
        "changed in that time."
    )
    return said


def _days(text):
    from datetime import date

    return date.fromisoformat(str(text)).toordinal()


def failed_outlines(dice):
    """List the patients of the test cohort in whom the segmentation failed, the worst first.

    Parameters
    ----------
    dice : list of dict
        Rows of `dice.tsv`.
    """
    failed = [row for row in dice if row["cohort"] == "test" and row["failure"]]
    return sorted(failed, key=lambda row: (row["dice_native"], -row["reference_ml"], row["patient"]))
