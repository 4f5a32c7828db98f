"""What a model bundle says of itself (`model.json`), read and checked without PyTorch.

Rules and studies ask about a model before anything is computed, and loading PyTorch takes longer than that;
`haemex.bundle` loads the weights.
"""

import hashlib
import json
import math
import re
from pathlib import Path

from haemex.calibration import read_calibration
from haemex.errors import InputError
from haemex.preparation import check_preparation

FORMAT = 3
RULES = ("youden", "sensitivity")  # by which an operating point can have been chosen
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


def read_description(folder):
    """Read the description of a model bundle, one's own or another centre's.

    Parameters
    ----------
    folder : path-like
        The model bundle.

    Returns
    -------
    dict
        The content of `model.json`: `network` (with `parameters`, their number), `weights_sha256`, `ensemble` (list of
        {file, sha256}), `preparation` (`haemex.preparation.check_preparation`), `operating_point` {threshold, rule},
        `calibration`, `training`, `cohort` {patients, expansions} of the training, `versions`.

    Raises
    ------
    InputError
        There is no description, it is of another format, or a part that a prediction rests on is missing or unusable.
    """
    path = Path(folder) / DESCRIPTION
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"there is no model bundle here: no readable model description (no {DESCRIPTION})",
            "give the folder that holds it, e.g. results/STUDY/final/model of a finished study",
            path,
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise refused(path, f"no readable model description ({error})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(
            f"the bundle's format is {found!r}, this haemex reads {FORMAT}",
            "use the version of haemex that made the bundle, or have it made again with this one",
            path,
        )
    try:
        _ = content["network"]["parameters"], content["network"].items(), content["weights_sha256"]
        _ = content["cohort"]["patients"], content["cohort"]["expansions"], content["training"].items()
        _ = content["versions"]["haemex"], content["versions"]["torch"]
        members = [(member["file"], member["sha256"]) for member in content["ensemble"]]
        threshold, rule = float(content["operating_point"]["threshold"]), content["operating_point"]["rule"]
        calibration = content["calibration"]
        preparation = content["preparation"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refused(path, f"the model description is incomplete ({type(error).__name__}: {error})") from None
    if not math.isfinite(threshold):
        raise refused(path, f"threshold is {threshold}")
    if rule not in RULES:
        raise refused(path, f"the rule of the threshold is {rule!r}, this haemex knows {', '.join(RULES)}")
    read_calibration(calibration, path)
    check_preparation(preparation, path)
    for name, _ in members:
        # Files of the bundle only: a description from elsewhere leads nowhere else.
        if not isinstance(name, str) or not re.fullmatch(r"fold[0-9]+\.safetensors", name):
            raise refused(path, f"a fold model is named {name!r}, not fold0.safetensors or the like")
    return content


def fold_numbers(description):
    """List the numbers of a bundle's fold models, in the order of its description.

    Parameters
    ----------
    description : dict
        `read_description`.

    Returns
    -------
    list of int
        [0, 1] for fold0.safetensors and fold1.safetensors.
    """
    return [int(re.sub(r"\D", "", member["file"])) for member in description["ensemble"]]


def check_weights(folder, description):
    """Refuse a bundle whose weights are not, byte by byte, those that it was described with.

    Parameters
    ----------
    folder : path-like
        The model bundle.
    description : dict
        Its `read_description`.

    Returns
    -------
    list of (str, str)
        File and SHA-256, in hexadecimal digits, of everything compared.

    Raises
    ------
    InputError
        Names the file.
    """
    folder = Path(folder)
    stated = [(WEIGHTS, description["weights_sha256"])]
    stated += [(member["file"], member["sha256"]) for member in description["ensemble"]]
    for name, sha256 in stated:
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise refused(folder / name, f"no readable weights ({error.strerror})") from None
        if found != sha256:
            raise refused(folder / name, f"the weights are not those that {DESCRIPTION} was written for")
    return stated


def refuse_other_preparation(trained_with, present, file):
    """Refuse scans that are prepared otherwise than those the model was trained on.

    Parameters
    ----------
    trained_with : dict of str to dict
        `preparation` of the bundle: settings by section.
    present : dict of str to dict
        The same of the scans at hand; a section that it leaves out is not compared. 10 and 10.0, lists and tuples are
        the same.
    file : path-like
        The bundle, for the message.

    Raises
    ------
    InputError
        Names every setting that differs, with both values.
    """
    differing = []
    for section, settings in present.items():
        trained = trained_with[section]
        for key in sorted({*trained, *settings}):
            here, there = settings.get(key, "absent"), trained.get(key, "absent")
            if not _same(here, there):
                differing.append(f"{section}.{key} is {here}, the model was trained with {there}")
    if differing:
        sections = " and ".join(dict.fromkeys(one.partition(".")[0] for one in differing))
        raise InputError("; ".join(differing), f"set {sections} as `preparation` in the bundle's {DESCRIPTION}", file)


def refused(path, problem):
    """Make the refusal of a damaged or incomplete bundle."""
    return InputError(problem, "take the whole folder of the model bundle again from where it was made", path)


def _same(a, b):
    """Compare two settings: numbers by value, sequences by their items."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
