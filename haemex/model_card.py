"""The model card: one page on what the network is, for whom, how well it does, and what it must not be used for.

After Mitchell et al. 2019, Model cards for model reporting, doi:10.1145/3287560.3287596. The text lives in
`workflow/report/model_card_body.html.j2`, which the report includes as well; all numbers come from the run.
"""

from haemex.files import write_atomically

# Rows of Table 1 that say who the network was taught on.
DESCRIBED = ("age_years", "sex", "baseline_ml", "onset_to_ct_h", "nihss", "intraventricular_haemorrhage", "expansion")


def training_population(table1, acquisition, summary):
    """Say who the network was trained and tested on.

    Parameters
    ----------
    table1 : list of dict
        Table 1 by cohort, as text; empty in an external evaluation, where the model's bundle tells of its patients.
    acquisition : list of dict
        Scanners with the numbers of patients, as text.
    summary : dict
        `summary.json`.

    Returns
    -------
    dict
        `characteristics`: rows of Table 1 (label, type, train, test); `scanners`: (name, train, test).
    """
    rows = {row["variable"]: row for row in table1}
    scanners = {row["scanner"]: (int(row["train"]), int(row["test"])) for row in acquisition}
    if summary["external"]:
        taught, tested = summary["reference"]["characteristics"], summary["characteristics"]
        here = {row["variable"]: row["value"] for row in tested}
        rows = {
            row["variable"]: row | {"train": row["value"], "test": here[row["variable"]]}
            for row in taught
            if row["variable"] in here
        }
        scanners = {name: (count, 0) for name, count in summary["reference"]["scanners"].items()} | scanners
    return {
        "characteristics": [
            {name: rows[variable][name] for name in ("label", "type", "train", "test")}
            for variable in DESCRIBED
            if variable in rows
        ],
        "scanners": [(name, *counts) for name, counts in sorted(scanners.items())],
    }


def weights_files(model):
    """List the weights of a bundle with their digests.

    Parameters
    ----------
    model : dict
        `model.json`.

    Returns
    -------
    list of (str, str)
        File and SHA-256 in hexadecimal digits, "not recorded" where the bundle does not say.
    """
    files = [("model.safetensors", model.get("weights_sha256", "not recorded"))]
    return files + [(one["file"], one["sha256"]) for one in model["ensemble"]]


def write_model_card(environment, context, path):
    """Write the card as a page of its own, whole or not at all.

    Parameters
    ----------
    environment : jinja2.Environment
        Of the report.
    context : dict
        What the report's template is given.
    path : path-like
        The HTML file.
    """
    text = environment.get_template("model_card.html.j2").render(context)
    write_atomically(path, text.encode())
