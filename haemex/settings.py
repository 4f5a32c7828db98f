"""Closed schemas for the config and the cohort table: what is misspelt is refused, with the nearest known name."""

import datetime
import difflib
from pathlib import Path

from haemex.errors import InputError

# Synthetic patients of a training cohort: with fewer, folds of one kind alone are all but certain.
TRAINED_PHANTOMS = 8
CONFIG_SCHEMA = Path(__file__).resolve().parents[1] / "config" / "config.schema.yaml"


def load_schema(path):
    """Read a JSON schema written as YAML."""
    import yaml

    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def nearest(name, known):
    """Suggest a known name for a misspelt one.

    Parameters
    ----------
    name : str
        What was written.
    known : iterable of str
        What there is.

    Returns
    -------
    str
        "Did you mean `x`?", or the list of known names where none is near.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known are: {', '.join(known)}"


def check_config(config, schema_path=CONFIG_SCHEMA):
    """Refuse a config with an unknown key, a missing key or an impossible value, all problems at once.

    Parameters
    ----------
    config : dict
        The merged config.
    schema_path : path-like
        The closed schema.

    Raises
    ------
    InputError
        Names every key concerned, and the nearest known key for an unknown one.
    """
    import jsonschema

    schema = load_schema(schema_path)
    validator = jsonschema.Draft202012Validator(schema)
    problems = []
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path]):
        at = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for key in sorted(set(error.instance) - set(known)):
                problems.append(f"unknown key `{f'{at}.{key}' if at else key}` ({nearest(key, known)})")
        else:
            problems.append(f"`{at}`: {_in_words(error)}" if at else error.message)
    if not problems:
        problems = _contradictions(config)
    if problems:
        raise InputError(
            "the config is refused: " + "; ".join(problems), "Correct it; config/README.md explains every key"
        )


def _in_words(error):
    """Say what a value breaks without a regular expression or a Python type, where a user would meet one."""
    if isinstance(error.instance, datetime.date):
        return f'a date needs quotation marks: "{error.instance}"'
    if error.validator == "pattern":
        return f"{error.instance!r} does not fit ({error.schema['description']})"
    return error.message


def _contradictions(config):
    """List what no schema can say: settings that contradict each other."""
    if "new_patients" in config:  # nothing else of the config counts
        return [] if "model" in config else ["`new_patients` needs `model`, the bundle that is to predict them"]
    problems = []
    if not candidate_names(config):
        problems.append("`candidates` names none")
    for section in ("seed_study", "scanner_study"):
        studied = config.get(section, {}).get("candidate")
        if studied is not None and studied not in candidate_names(config):
            known = nearest(studied, candidate_names(config))
            problems.append(f"`{section}.candidate`: there is no such candidate ({known})")
    problems += _contradictions_with_model(config) if "model" in config else _contradictions_of_training(config)
    if any(size % 4 for size in config["resample"]["matrix"]):
        problems.append("`resample.matrix`: the network halves each axis twice, so each size has to be divisible by 4")
    lower, upper = config["eligibility"]["followup_h"]
    if lower > upper:
        problems.append("`eligibility.followup_h`: the lower bound is above the upper one")
    lower, upper = config["resample"]["window_hu"]
    if lower >= upper:
        problems.append("`resample.window_hu`: the lower bound is not below the upper one")
    return problems


def _contradictions_of_training(config):
    """List what keeps a study from training, or from testing on later patients."""
    if config["cohorts"]["train"] is None:
        return ["`cohorts.train` is null: only an external evaluation, with `model`, does without training patients"]
    problems = []
    (train_start, train_end), (test_start, test_end) = config["cohorts"]["train"], config["cohorts"]["test"]
    if not train_start <= train_end < test_start <= test_end:
        problems.append("`cohorts`: the test period has to begin after the training period ends")
    if config.get("phantom", {"train": TRAINED_PHANTOMS})["train"] < TRAINED_PHANTOMS:
        problems.append(f"`phantom.train`: a study that trains needs {TRAINED_PHANTOMS} patients to train on at least")
    return problems


def _contradictions_with_model(config):
    """List what an external evaluation, in which nothing is trained, cannot have."""
    problems = [
        f"`{section}` trains, and an external evaluation (`model`) trains nothing: take it out"
        for section in ("seed_study", "scanner_study")
        if section in config
    ]
    if config["cohorts"]["train"] is not None:
        problems.append("`cohorts.train`: an external evaluation (`model`) trains nothing: set it to null")
    if config["cohorts"]["test"][0] > config["cohorts"]["test"][1]:
        problems.append("`cohorts.test`: the last day comes before the first")
    if config.get("phantom", {}).get("train"):
        problems.append("`phantom.train`: an external evaluation (`model`) trains nothing: set it to 0")
    return problems


def candidate_names(config):
    """List the candidates in the order of the config; one set to null was taken away by a later config file."""
    return [name for name, changes in config["candidates"].items() if changes is not None]


def candidate_settings(config, name):
    """Return the sections `network` and `training` as one candidate changes them.

    Parameters
    ----------
    config : dict
        The merged config; left as it is.
    name : str
        A candidate.

    Returns
    -------
    dict
        {"network": {...}, "training": {...}}
    """
    changes = config["candidates"][name]
    return {section: {**config[section], **changes.get(section, {})} for section in ("network", "training")}
