"""The report: one self-contained HTML file, filled from the config and the results, and what goes with it.

The text lives in `workflow/report/` as templates; every number in it comes from a file of the run, and every deviation
from the paper's protocol from a comparison of the two configs, so text and run cannot disagree. Nothing in the file
depends on the day, the machine's name or a path.
"""

import base64
import importlib.metadata
import platform
from pathlib import Path

from haemex.calibration import calibration_in_words
from haemex.docx_tables import write_docx
from haemex.figures import FIGURES
from haemex.files import read_json, write_atomically
from haemex.input_digests import patient_digests, summarise_inputs, write_digests
from haemex.logs import announce
from haemex.markers import MARKERS
from haemex.model_card import training_population, weights_files, write_model_card
from haemex.pages import page_environment
from haemex.printing import interval, minus_signs, number, percent, setting, share, span
from haemex.protocol_comparison import compare_protocols, without_paths
from haemex.report_text import answer, caveats, exclusions, failed_outlines, is_read, verdict
from haemex.settings import candidate_settings, load_schema
from haemex.statistics import format_p
from haemex.tables import read_table

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
TABLES = (
    *("table2", "agreement", "leaks", "precision", "subgroups", "label_sensitivity", "decision_curve"),
    *("marker_agreement", "marker_disagreements"),
)
# Supplementary tables in the order of the page; those that a study does not have are not counted.
SUPPLEMENT = (
    *(
        "population",
        "excluded",
        "table1_expansion",
        "label_flips",
        "acquisition",
        "agreement",
        "candidates",
        "scanner_study",
    ),
    "segmentation",
    *("failures", "table2_more", "operating_points", "marker_agreement", "marker_disagreements", "precision"),
    *("subgroups", "label_sensitivity", "calibration", "decision_curve", "leaks", "deviations", "tripod", "claim"),
    *("versions", "inputs", "codes"),
)


OF_TRAINING = ("training",)  # figures that only a study with a training has
SUPPLEMENTARY_FIGURES = ("training", "volumes", "subgroups", "decision_curve")


def write_report(
    *,
    config,
    paper_config_path,
    schema_path,
    template_folder,
    flow_path,
    flips_path,
    cohort_path,
    measure_folder,
    table1_path,
    table1_expansion_path,
    evaluate_folder,
    cards_path,
    candidates_path,
    selected_path,
    model_path,
    reachable_auc,
    table_digest,
    codes,
    out_folder,
    seeds_path=None,
    scanner_study_path=None,
):
    """Write the report, its tables for a manuscript, the model card and the digests of the inputs.

    Parameters
    ----------
    config : dict
        The whole config of the run.
    paper_config_path : path-like
        The paper's protocol; the run is compared with it.
    schema_path : path-like
        `config/config.schema.yaml`, for what each setting means.
    template_folder : path-like
        `workflow/report`.
    flow_path, flips_path, cohort_path : path-like
        `table1/flow.json`, `cohort/label_flips.tsv`, `cohort/cohort.tsv`.
    measure_folder : path-like
        `{patient}.json` with the digests of the scans' pixels, and `{patient}_haematoma.nii.gz`.
    table1_path, table1_expansion_path : path-like
        `table1/table1.tsv`, by cohort (None where there is one), and `table1/table1_expansion.tsv`, by expansion.
    evaluate_folder : path-like
        Everything `haemex.evaluation.evaluate_study` and `haemex.figures.draw_figures` wrote.
    cards_path : path-like
        `cards/cards.json`, beside `pictures/{patient}.png`.
    candidates_path, selected_path : path-like or None
        `select/candidates.tsv` and `select/selected.json`; None where another study's model is evaluated.
    model_path : path-like
        `model.json` of the model bundle.
    reachable_auc : float or None
        Of synthetic patients, the AUC of an ideal reader of the images; None for real ones.
    table_digest : str
        Digest of the clinical table's content.
    codes : dict of str to str
        Digest of the code behind each rule.
    out_folder : path-like
        Gets report.html, tables.docx, model_card.html and inputs.tsv.
    seeds_path, scanner_study_path : path-like, optional
        `seed_study/summary.json`, `scanner_study/summary.json`.
    """
    import yaml
    from markupsafe import Markup, escape

    evaluate_folder, out_folder = Path(evaluate_folder), Path(out_folder)
    summary, model, flow = (read_json(path) for path in (evaluate_folder / "summary.json", model_path, flow_path))
    selected = read_json(selected_path) if selected_path else None
    paper = yaml.safe_load(Path(paper_config_path).read_text(encoding="utf-8"))
    used = {**config, **candidate_settings(config, selected["candidate"])} if selected else config
    shown = without_paths(config)
    table1, table1_expansion, acquisition = (
        read_table(path, as_text=True) if path else []
        for path in (table1_path, table1_expansion_path, evaluate_folder / "acquisition.tsv")
    )
    tables = {name: read_table(evaluate_folder / f"{name}.tsv") for name in TABLES}
    drawn = [name for name in FIGURES if selected or name not in OF_TRAINING]
    digests = patient_digests(cohort_path, measure_folder)
    environment = report_environment(template_folder)
    context = {
        "config": used,
        "external": selected is None,
        "synthetic": "phantom" in config,
        "reachable_auc": reachable_auc,
        "flow": flow,
        "excluded": exclusions(flow),
        "summary": summary,
        "selected": selected,
        "seeds": read_json(seeds_path) if seeds_path else None,
        "scanner_study": read_json(scanner_study_path) if scanner_study_path else None,
        "model": model,
        "markers": MARKERS,
        "deviations": compare_protocols(used, paper, load_schema(schema_path), trained=selected is not None),
        "answer": answer(summary),
        "verdict": verdict(summary),
        "caveats": caveats(
            summary,
            flow,
            selected,
            table1 or table1_expansion,
            acquisition,
            tables["agreement"],
            config["cohorts"],
            "phantom" in config,
        ),
        "images": {name: Markup(embed(evaluate_folder, name)) for name in drawn},
        "cards": cards_with_pictures(cards_path),
        # As YAML wants it: a hyphen stays one.
        "settings": Markup(escape(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100))),
        "versions": [("Python", platform.python_version()), *installed(PACKAGES)],
        "inputs": summarise_inputs(digests, table_digest, shown),
        "codes": codes,
        "population": training_population(table1, acquisition, summary),
        "weights": weights_files(model),
        "flips": read_table(flips_path),
        "table1": table1,
        "table1_expansion": table1_expansion,
        "acquisition": acquisition,
        "candidates": read_table(candidates_path) if candidates_path else [],
        "failures": failed_outlines(read_table(evaluate_folder / "dice.tsv")),
        "table2_read": [row for row in tables["table2"] if is_read(row)],
        "table2_computed": [row for row in tables["table2"] if not is_read(row)],
        **tables,
    }
    first = [] if table1 else ["table1_expansion"]  # then it is Table 1 itself
    optional = (*first, "excluded", "agreement", "candidates", "scanner_study", "marker_disagreements", "deviations")
    absent = {name for name in optional if name in first or not context[name]}
    absent |= set() if context["external"] else {"population"}
    context["T"] = {name: f"Table S{n}" for n, name in enumerate((n for n in SUPPLEMENT if n not in absent), 1)}
    context["T"] |= dict.fromkeys(first, "Table 1")
    shown_figures = (name for name in SUPPLEMENTARY_FIGURES if name in drawn)
    context["F"] = {name: f"Figure S{n}" for n, name in enumerate(shown_figures, 1)}
    text = environment.get_template("report.html.j2").render(context)
    write_digests(digests, out_folder / "inputs.tsv")
    write_model_card(environment, context, out_folder / "model_card.html")
    write_docx(text, out_folder / "tables.docx", f"Tables of the study {config['study']}")
    write_atomically(out_folder / "report.html", text.encode())
    announce(f"the report: {out_folder / 'report.html'}")


def report_environment(template_folder):
    """Make the environment of the report's templates: filters that print, and minus signs in everything printed."""
    environment = page_environment(template_folder)
    environment.finalize = minus_signs
    environment.filters |= {
        "num": number,
        "p": format_p,
        "percent": percent,
        "setting": setting,
        "span": span,
        "share": share,
        "calibration": calibration_in_words,
    }
    environment.globals |= {"interval": interval}
    return environment


def cards_with_pictures(cards_path):
    """Read the patients' cards, each with its picture as a data URI in `image`."""
    from markupsafe import Markup

    folder = Path(cards_path).parent / "pictures"
    return [card | {"image": Markup(data_uri(folder / f"{card['patient']}.png"))} for card in read_json(cards_path)]


def installed(packages):
    """List the versions of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def embed(folder, name):
    """Return a figure as a data URI: the overlays as PNG, all others as SVG, sharp at any size."""
    return data_uri(Path(folder) / f"{name}.{'png' if name == 'overlays' else 'svg'}")


def data_uri(path):
    """Return a picture, PNG or SVG by its name, as a data URI."""
    mime = {".png": "image/png", ".svg": "image/svg+xml"}[Path(path).suffix]
    return f"data:{mime};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
