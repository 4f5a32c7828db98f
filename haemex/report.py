"""The report: one self-contained HTML file, filled from the config and the results.

The text lives in `workflow/report/` as templates; every number in it comes from a file of the run, and every deviation
from the paper's protocol from a comparison of the two configs, so text and run cannot disagree. Nothing in the file
depends on the day, the machine's name or a path.
"""

import base64
import importlib.metadata
import math
import platform
from pathlib import Path, PurePosixPath, PureWindowsPath

from haemex.calibration import calibration_in_words
from haemex.figures import FIGURES
from haemex.files import read_json, write_atomically
from haemex.logs import announce
from haemex.markers import MARKERS
from haemex.pages import page_environment, plural
from haemex.settings import candidate_settings, load_schema
from haemex.statistics import format_p, round_half_up
from haemex.tables import read_table

# Settings that say nothing about the protocol: names, seeds, how fast it runs, how many pictures are drawn.
NO_PROTOCOL = (
    "study",
    "seed",
    "cohort_table",
    "phantom",
    "training.deterministic",
    "training.threads",
    "training.precision",
    "training.channels_last",
    "training.compile",
    "computing",
    "predict",
    "seed_study",
    "evaluate.overlays",
)
PACKAGES = (
    "haemex",
    "snakemake",
    "torch",
    "numpy",
    "scipy",
    "scikit-image",
    "pydicom",
    "python-gdcm",
    "SimpleITK",
    "nibabel",
    "matplotlib",
    "jinja2",
)
# Tables of the stage evaluate that the report prints row by row.
TABLES = ("table2", "agreement", "leaks", "precision", "subgroups", "label_sensitivity", "decision_curve")
# Validation of a prediction model wants at least 100 patients with and 100 without the outcome
# (Collins, Ogundimu and Altman 2016, Stat Med 35:214; Vergouwe 2005, J Clin Epidemiol 58:475).
WANTED_EVENTS = 100


def write_report(
    *,
    config,
    paper_config_path,
    schema_path,
    template_folder,
    flow_path,
    flips_path,
    table1_path,
    evaluate_folder,
    candidates_path,
    selected_path,
    model_path,
    reachable_auc,
    report_path,
    seeds_path=None,
):
    """Write the report.

    Parameters
    ----------
    config : dict
        The whole config of the run.
    paper_config_path : path-like
        `config/config.yaml`, the paper's protocol; the run is compared with it.
    schema_path : path-like
        `config/config.schema.yaml`, for what each setting means.
    template_folder : path-like
        `workflow/report`.
    flow_path, flips_path : path-like
        `cohort/flow.json` and `cohort/label_flips.tsv`.
    table1_path : path-like
        `table1/table1.tsv`.
    evaluate_folder : path-like
        Everything `haemex.evaluation.evaluate_study` and `haemex.figures.draw_figures` wrote.
    candidates_path, selected_path : path-like
        `select/candidates.tsv` and `select/selected.json`.
    model_path : path-like
        `final/model/model.json`.
    reachable_auc : float or None
        Of synthetic patients, the AUC of an ideal reader of the images; None for real ones.
    report_path : path-like
        The HTML file.
    seeds_path : path-like, optional
        `seed_study/summary.json`.
    """
    import yaml

    evaluate_folder = Path(evaluate_folder)
    summary, selected, model, flow = (
        read_json(path) for path in (evaluate_folder / "summary.json", selected_path, model_path, flow_path)
    )
    paper = yaml.safe_load(Path(paper_config_path).read_text(encoding="utf-8"))
    used = {**config, **candidate_settings(config, selected["candidate"])}
    deviations = compare_protocols(used, paper, load_schema(schema_path))
    environment = page_environment(template_folder)
    environment.filters |= {
        "num": number,
        "p": format_p,
        "percent": percent,
        "setting": setting,
        "span": span,
        "share": share,
        "calibration": lambda calibration: calibration_in_words(calibration).replace("-", "−"),
    }
    environment.globals |= {"interval": interval}
    images = {name: embed(evaluate_folder, name) for name in FIGURES}
    text = environment.get_template("report.html.j2").render(
        config=used,
        synthetic="phantom" in config,
        reachable_auc=reachable_auc,
        flow=flow,
        summary=summary,
        selected=selected,
        seeds=read_json(seeds_path) if seeds_path else None,
        model=model,
        markers=MARKERS,
        deviations=deviations,
        caveats=caveats(summary, flow, "phantom" in config),
        verdict=verdict(summary),
        images=images,
        settings=yaml.safe_dump(without_paths(config), sort_keys=False, allow_unicode=True, width=100),
        versions=[("Python", platform.python_version()), *installed(PACKAGES)],
        flips=read_table(flips_path),
        table1=read_table(table1_path, as_text=True),
        acquisition=read_table(evaluate_folder / "acquisition.tsv", as_text=True),
        candidates=read_table(candidates_path),
        failures=failed_outlines(read_table(evaluate_folder / "dice.tsv")),
        **{name: read_table(evaluate_folder / f"{name}.tsv") for name in TABLES},
    )
    write_atomically(report_path, text.encode())
    announce(f"the report: {report_path}")


# --- numbers -----------------------------------------------------------------------------------------------------


def number(value, decimals=2):
    """Print a number as the tables do, halves up; "N/A" where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "N/A"
    return round_half_up(float(value), decimals).replace("-", "−")


def percent(value, decimals=1):
    """Print a share as percent."""
    return "N/A" if value is None else f"{number(100 * value, decimals)} %"


def share(part, whole):
    """Print "22 of 77 (28.6 %)"."""
    return f"{part} of {whole} ({percent(part / whole)})" if whole else f"{part} of {whole}"


def interval(row, name, decimals=2):
    """Print an estimate with its interval, as the paper's Table 2 does: "0.80 (0.70 to 0.90)".

    Parameters
    ----------
    row : dict
        Holds `name`, `name_lower` and `name_upper`.
    name : str
        The measure.
    decimals : int
        Digits after the point.
    """
    estimate, lower, upper = row[name], row[f"{name}_lower"], row[f"{name}_upper"]
    if estimate is None:
        return "N/A"
    if lower is None or upper is None:
        return f"{number(estimate, decimals)} (N/A)"
    return f"{number(estimate, decimals)} ({number(lower, decimals)} to {number(upper, decimals)})"


def setting(value):
    """Print the value of a setting: three numbers as "256 × 256 × 32", yes and no for truth values."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if all(isinstance(one, int | float) for one in value) and len(value) == 3:
            return " × ".join(setting(one) for one in value)
        return ", ".join(map(setting, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "not set" if value is None else str(value)


def span(value):
    """Print a range: "20 to 24"; the hyphens of dates do not break."""
    return " to ".join(setting(one).replace("-", "\u2011") for one in value)


# --- protocol ----------------------------------------------------------------------------------------------------


def compare_protocols(config, paper, schema):
    """List where a run leaves the paper's protocol.

    Parameters
    ----------
    config : dict
        The run's settings, with `network` and `training` of the chosen candidate.
    paper : dict
        `config/config.yaml`.
    schema : dict
        The config's schema, for descriptions.

    Returns
    -------
    list of dict
        key (dotted), meaning, paper, here: one per setting that differs, in the order of the paper's config. The
        candidates are compared as a whole. Whole numbers and floats of one value are the same.
    """
    ours, theirs = _leaves(config), _leaves(paper)
    rows = []
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        if any(key == one or key.startswith(f"{one}.") for one in NO_PROTOCOL):
            continue
        if ours.get(key) != theirs.get(key):
            rows.append(
                {
                    "key": key,
                    "meaning": _meaning(schema, key.split(".")),
                    "paper": theirs.get(key),
                    "here": ours.get(key),
                }
            )
    return rows


def _leaves(config, prefix=""):
    leaves = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key == "candidates":
            leaves[key] = "; ".join(
                " ".join([one, *(f"({name} {setting(new)})" for name, new in _leaves(changes).items())])
                for one, changes in value.items()
                if changes is not None
            )
        elif isinstance(value, dict):
            leaves |= _leaves(value, f"{key}.")
        else:
            leaves[key] = value
    return leaves


def _meaning(schema, path, node=None):
    """Find the description of a setting in the schema."""
    node = schema if node is None else node
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] | {k: v for k, v in node.items() if k != "$ref"}
    if path and path[0] in node.get("properties", {}):
        return _meaning(schema, path[1:], node["properties"][path[0]])
    return node.get("description", "")


def without_paths(config):
    """Copy a config without the paths in it: a report travels, and a path may name a person or a hospital."""
    if isinstance(config, dict):
        return {name: without_paths(value) for name, value in config.items() if name != "cohort_table"}
    if isinstance(config, list | tuple):
        return [without_paths(one) for one in config]
    if isinstance(config, str) and (PurePosixPath(config).is_absolute() or PureWindowsPath(config).is_absolute()):
        return "(path left out)"
    return config


def installed(packages):
    """List the versions of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- what the results say ----------------------------------------------------------------------------------------


def verdict(summary):
    """Say in sentences what the comparison of the AUCs allows to say, and no more.

    Parameters
    ----------
    summary : dict
        `summary.json`.

    Returns
    -------
    list of str
        Sentences.
    """
    table = summary["table2"]
    network = table["CNN"]
    level = f"{100 * summary['confidence']:g} %"
    if network["auc_lower"] is None:
        return ["The AUC of the network has no interval: one of the groups has fewer than two patients."]
    sentences = []
    if network["auc_lower"] <= 0.5 <= network["auc_upper"]:
        sentences.append(
            f"The {level} interval of the network's AUC includes 0.5: these data do not show that the network predicts "
            "expansion better than chance."
        )
    elif network["auc_upper"] < 0.5:
        sentences.append("The network ranks patients worse than chance in the test cohort.")
    tested = {name: row for name, row in table.items() if name != "CNN" and row["p"] is not None}
    significant = {name: row for name, row in tested.items() if row["p_holm"] < 1 - summary["confidence"]}
    corrected = f"After Holm's correction for {len(tested)} comparisons, the network's AUC "
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


def caveats(summary, flow, synthetic):
    """List what a careful reader has to know before using a number of this report.

    Parameters
    ----------
    summary : dict
        `summary.json`.
    flow : dict
        `flow.json`.
    synthetic : bool
        Whether the patients were made by `haemex.phantom`.

    Returns
    -------
    list of str
        Sentences, the weightiest first.
    """
    test, train = summary["cohorts"]["test"], summary["cohorts"]["train"]
    said = []
    if synthetic:
        said.append(
            "Every patient is synthetic. The numbers show that the software runs; they say nothing about patients."
        )
    # Alarms of candidates that were not chosen stand in the section on the cross-validation.
    chosen, alarms = summary["selection"]["candidate"], summary["selection"]["alarms"]
    own = (f"candidate {chosen},", f"candidate {chosen} ")
    said += [
        f"Alarm of the cross-validation: {alarm}."
        for alarm in alarms
        if alarm.startswith(own) or not alarm.startswith("candidate ")
    ]
    without = test["patients"] - test["expansions"]
    if min(test["expansions"], without) < WANTED_EVENTS:
        said.append(
            f"The test cohort has {plural(test['expansions'], 'patient')} with and {without} without expansion; "
            f"validation of a prediction model wants at least {WANTED_EVENTS} of each (Collins 2016). Read the "
            "intervals, not the estimates."
        )
    said.append(
        f"The network learnt expansion from {plural(train['expansions'], 'patient')} who had it. The test cohort comes "
        "from the same table and was admitted later: this is temporal, not external, validation."
    )
    said += [remark for remark in summary["selection"]["remarks"] if "within the spread" in remark]
    auc = summary["table2"]["CNN"]
    if auc["auc"] is not None and auc["auc"] in (0.0, 1.0):
        said.append("The network's AUC lies at its limit, where DeLong's interval has no width and means nothing.")
    if any(model["separated"] for model in summary["baselines"].values()):
        said.append(
            "In the training cohort a predictor separates the outcomes wholly, so maximum likelihood has no answer; "
            "its logistic model uses Platt's targets instead."
        )
    for name, label in (("train", "training"), ("test", "test")):
        group = summary["segmentation"][name]
        if group["cut_off"]:
            said.append(
                f"In {plural(group['cut_off'], 'patient')} of the {label} cohort less than 99 % of the haematoma lies "
                f"inside the network's field of view (least: {percent(group['least_inside'])})."
            )
    missed = summary["segmentation"]["test"]["missed"]
    if missed:
        said.append(
            f"In {plural(missed, 'patient')} of the test cohort the network's haematoma does not touch the manual one."
        )
    missing = {MARKERS.get(name, "BAT score"): n for name, n in summary["missing_in_test"].items() if n}
    if missing:
        told = ", ".join(f"{name} in {n}" for name, n in missing.items())
        said.append(f"Missing in the test cohort, and left out of that row of Table 2: {told}.")
    unchecked = flow["not_included"].get("missing_data", 0)
    if unchecked:
        said.append(f"{plural(unchecked, 'patient')} did not enter because a criterion could not be checked.")
    return said


def failed_outlines(dice):
    """List the patients of the test cohort in whom the segmentation failed, the worst first.

    Parameters
    ----------
    dice : list of dict
        Rows of `dice.tsv`.
    """
    failed = [row for row in dice if row["cohort"] == "test" and row["failure"]]
    return sorted(failed, key=lambda row: (row["dice_native"], -row["reference_ml"], row["patient"]))


# --- images ------------------------------------------------------------------------------------------------------


def embed(folder, name):
    """Return a figure as a data URI: the overlays as PNG, all others as SVG, sharp at any size."""
    kind, mime = ("png", "image/png") if name == "overlays" else ("svg", "image/svg+xml")
    content = (Path(folder) / f"{name}.{kind}").read_bytes()
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
