"""What travels with a model besides its weights, so that another centre can evaluate it without the training cohort.

`comparators.json` in the model bundle holds the volume and the BAT model with their thresholds (`haemex.baselines`),
fitted on the training cohort of the study that made the model, and what an evaluation elsewhere has to know of that
cohort: counts, the cuts of the subgroups, the scanners, Table 1 in sums, and digests of the pixels of its scans, by
which a patient of the training cohort is recognised. It holds no patient's code and no patient's value.
"""

import json
import math
from pathlib import Path

from haemex.baselines import PREDICTORS, fit_baselines
from haemex.characteristics import describe
from haemex.errors import InputError
from haemex.files import read_json, write_json
from haemex.scanners import scanner_name
from haemex.subgroups import training_cuts

FILE = "comparators.json"
FORMAT = 1
AGAIN = "take the whole folder of the model bundle again from where it was made"


def make_comparators(rows, measured, acquired, expansion, operating_point, min_sensitivity):
    """Fit the logistic models, and sum up the training cohort.

    Parameters
    ----------
    rows : list of dict
        `haemex.clinical.clinical_rows` of the training cohort.
    measured : dict of str to dict
        `measure/{patient}.json` by patient, with `pixel_digest`.
    acquired : dict of str to dict
        `convert/{patient}_baseline.json` by patient.
    expansion : dict
        Section `expansion` of the config: what the model was taught to call an expansion.
    operating_point : {"youden", "sensitivity"}
        The rule of the thresholds.
    min_sensitivity : float
        Used with "sensitivity".

    Returns
    -------
    dict
        `format`; `baselines`, of `haemex.baselines.fit_baselines`; `reference`: `patients`, `expansions`, `definition`
        (the section `expansion`), `cuts` (`haemex.subgroups.training_cuts`), `scanners` (patients by name),
        `characteristics` (`haemex.characteristics.describe`) and `pixel_digests`, sorted SHA-256 of every scan,
        baseline and follow-up.
    """
    scanners = {}
    for row in rows:
        name = scanner_name(acquired[row["patient"]]["acquisition"])
        scanners[name] = scanners.get(name, 0) + 1
    digests = {digest for row in rows for digest in measured[row["patient"]]["pixel_digest"].values()}
    return {
        "format": FORMAT,
        "baselines": fit_baselines(
            rows, operating_point, min_sensitivity if operating_point == "sensitivity" else None
        ),
        "reference": {
            "patients": len(rows),
            "expansions": sum(row["expansion"] for row in rows),
            "definition": dict(expansion),
            "cuts": training_cuts(rows),
            "scanners": scanners,
            "characteristics": describe(rows),
            "pixel_digests": sorted(digests - {None}),
        },
    }


def write_comparators(rows, *, measure_folder, convert_folder, path, expansion, operating_point, min_sensitivity):
    """Write `make_comparators` as a file of the model bundle.

    Parameters
    ----------
    rows, expansion, operating_point, min_sensitivity
        See `make_comparators`.
    measure_folder, convert_folder : path-like
        Hold `{patient}.json` and `{patient}_baseline.json`.
    path : path-like
        `comparators.json`.
    """
    measured, acquired = (
        {row["patient"]: read_json(Path(folder) / f"{row['patient']}{ending}.json") for row in rows}
        for folder, ending in ((measure_folder, ""), (convert_folder, "_baseline"))
    )
    write_json(path, make_comparators(rows, measured, acquired, expansion, operating_point, min_sensitivity))


def read_comparators(folder, description):
    """Read the comparators of a model bundle, one's own or another centre's.

    Parameters
    ----------
    folder : path-like
        The model bundle.
    description : dict
        Its `haemex.model_description.read_description`.

    Returns
    -------
    dict
        See `make_comparators`.

    Raises
    ------
    InputError
        There is no such file, a part is missing or unusable, or it was made for another model.
    """
    path = Path(folder) / FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"the model bundle has no {FILE}, so there is nothing to compare the network with", AGAIN, path
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"it cannot be read ({error})", AGAIN, path) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"its format is {found!r}, this haemex reads {FORMAT}", AGAIN, path)
    try:
        problem = _problem(content["baselines"], content["reference"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"it is incomplete ({type(error).__name__}: {error})", AGAIN, path) from None
    if problem:
        raise InputError(problem, AGAIN, path)
    for name in ("patients", "expansions"):
        own, models = content["reference"][name], description["cohort"].get(name)
        if own != models:
            raise InputError(
                f"it belongs to another model: {own} {name} in the training cohort, {models} in model.json", AGAIN, path
            )
    return content


def _problem(baselines, reference):
    """Say what is unusable; "" where all is well."""
    if "volume" not in baselines or set(baselines) - set(PREDICTORS):
        return f"it has models of {', '.join(sorted(baselines)) or 'nothing'}, not of volume (and bat)"
    for name, model in baselines.items():
        for key in ("intercept", "coefficient", "threshold"):
            if isinstance(model[key], bool) or not math.isfinite(model[key]):
                return f"{key} of the model of {name} is {model[key]!r}"
        if model["rule"] not in ("youden", "sensitivity"):
            return f"the rule of the model of {name} is {model['rule']!r}"
        _ = model["patients"], model["separated"], model["missing"]
    if not 0 <= reference["expansions"] <= reference["patients"] or reference["patients"] < 1:
        return f"it counts {reference['expansions']} expansions in {reference['patients']} patients"
    low, high = reference["cuts"]["baseline_ml"]
    age = reference["cuts"]["age_years"]
    if not (low <= high < math.inf and (age is None or math.isfinite(age))):
        return f"the cuts of the subgroups are {reference['cuts']}"
    definition = reference["definition"]
    if definition["operator"] not in (">", ">=") or not all(
        math.isfinite(definition[name]) for name in ("absolute_ml", "relative_percent")
    ):
        return f"the definition of expansion is {definition}"
    if not all(isinstance(count, int) for count in reference["scanners"].values()):
        return "the scanners are not counted"
    if not all(isinstance(digest, str) and len(digest) == 64 for digest in reference["pixel_digests"]):
        return "its digests of scans are no SHA-256"
    if not reference["pixel_digests"]:
        return "it has no digest of any scan of the training cohort"
    _ = [(row["label"], row["type"], row["value"]) for row in reference["characteristics"]]
    return ""


def same_comparators(found, expected):
    """Whether two comparators agree, numbers to rounding.

    Parameters
    ----------
    found, expected : dict
        `make_comparators` or `read_comparators`, or parts of them.

    Returns
    -------
    bool
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_comparators(found[key], expected[key]) for key in found)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same_comparators, found, expected))
    if isinstance(found, float) and isinstance(expected, int | float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
    return found == expected


def refuse_training_scans(measured, comparators):
    """Refuse a patient whose scan the model was trained on, under whatever code.

    Parameters
    ----------
    measured : dict of str to dict
        `measure/{patient}.json` by patient.
    comparators : dict
        `read_comparators`.

    Returns
    -------
    int
        Scans compared.

    Raises
    ------
    InputError
        Names the patients.
    """
    known, compared, found = set(comparators["reference"]["pixel_digests"]), 0, []
    for patient, one in sorted(measured.items()):
        for timepoint, digest in sorted(one["pixel_digest"].items()):
            compared += digest is not None
            if digest in known:
                found.append(f"patient {patient} ({timepoint})")
    if found:
        raise InputError(
            f"the model was trained on the very scan of {', '.join(found)}",
            "take these patients out of the cohort table: an external evaluation needs patients the model never saw",
        )
    return compared
