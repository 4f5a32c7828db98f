"""Where a run leaves the paper's protocol: a comparison of two configs, so that text and run cannot disagree."""

from pathlib import PurePosixPath, PureWindowsPath

from haemex.printing import setting

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
    "storage",
    "predict",
    "model",
    "seed_study",
    "scanner_study",
    "evaluate.overlays",
)


# Settings of a training, which an evaluation of another study's model does not have.
OF_TRAINING = ("augment", "folds", "network", "training", "candidates", "select", "cohorts.train")


def compare_protocols(config, paper, schema, trained=True):
    """List where a run leaves the paper's protocol.

    Parameters
    ----------
    config : dict
        The run's settings, with `network` and `training` of the chosen candidate.
    paper : dict
        `config/config.yaml`.
    schema : dict
        The config's schema, for descriptions.
    trained : bool
        Whether the run trained its model; if not, settings of a training are not compared.

    Returns
    -------
    list of dict
        key (dotted), meaning, paper, here: one per setting that differs, in the order of the paper's config. The
        candidates are compared as a whole. Whole numbers and floats of one value are the same.
    """
    ours, theirs = _leaves(config), _leaves(paper)
    rows = []
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        if any(key == one or key.startswith(f"{one}.") for one in NO_PROTOCOL + (() if trained else OF_TRAINING)):
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


PATHS = ("cohort_table", "model")


def without_paths(config):
    """Copy a config without the paths in it: a report travels, and a path may name a person or a hospital."""
    if isinstance(config, dict):
        return {name: without_paths(value) for name, value in config.items() if name not in PATHS}
    if isinstance(config, list | tuple):
        return [without_paths(one) for one in config]
    if isinstance(config, str) and (PurePosixPath(config).is_absolute() or PureWindowsPath(config).is_absolute()):
        return "(path left out)"
    return config
