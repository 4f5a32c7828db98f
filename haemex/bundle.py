"""The bundle that a trained model travels in: weights, and all that belongs to their use."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
import sys
from pathlib import Path

import safetensors.torch
import torch

from haemex.calibration import read_calibration
from haemex.errors import InputError
from haemex.files import write_atomically, write_json
from haemex.network import TwoOutputUNet

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained network with all that belongs to its use.

    Attributes
    ----------
    model : TwoOutputUNet
        On the CPU, in evaluation mode.
    preprocessing : dict
        The section `resample` its scans were made with.
    threshold : float
        A probability of expansion at or above it is positive.
    calibration : dict
        For `haemex.calibration.calibrate`.
    ensemble : tuple of TwoOutputUNet
        The fold models, likewise; none if they were not asked for.
    """

    model: TwoOutputUNet
    preprocessing: dict
    threshold: float
    calibration: dict
    ensemble: tuple


def write_bundle(folder, *, fold_weights, network, preprocessing, threshold, rule, calibration, training, cohort):
    """Complete a model bundle beside the weights that stand in `model.safetensors`.

    The fold models come in as `fold0.safetensors`, `fold1.safetensors`, ..., then all is described in `model.json`.

    Parameters
    ----------
    folder : path-like
        Holds `model.safetensors` as `haemex.training.train_network` wrote it.
    fold_weights : sequence of path-like
        Weights of the same network from the cross-validation, by fold; they become the ensemble.
    network : dict
        The section `network` as used.
    preprocessing : dict
        The section `resample`.
    threshold : float
        Locked operating point, a probability.
    rule : str
        How the threshold was found.
    calibration : dict
        Of `haemex.calibration_fit.fit_calibration`.
    training : dict
        The section `training` as used.
    cohort : dict
        `patients` and `expansions` of the training cohort, counts.

    Raises
    ------
    InputError
        The weights are not those of such a network; the calibration or the preprocessing cannot be used.
    """
    folder = Path(folder)
    card_path, weights_path = folder / "model.json", folder / "model.safetensors"
    model, checksum = _load_weights(weights_path, network)
    ensemble = []
    for fold, path in enumerate(fold_weights):
        own = folder / f"fold{fold}.safetensors"
        _load_weights(path, network)
        write_atomically(own, Path(path).read_bytes())
        ensemble.append({"file": own.name, "sha256": _sha256(own)})
    content = {
        "format": FORMAT,
        "network": {**network, "parameters": model.parameter_count()},
        "weights_sha256": checksum,
        "ensemble": ensemble,
        "preprocessing": _read_preprocessing(preprocessing, card_path),
        "operating_point": {"threshold": threshold, "rule": rule},
        "calibration": read_calibration(calibration, card_path),
        "training": training,
        "cohort": cohort,
        "versions": {"haemex": importlib.metadata.version("haemex"), "torch": torch.__version__},
    }
    write_json(card_path, content)


def load_bundle(folder, ensemble=True):
    """Read a model bundle, one's own or another centre's. Nothing in it is executed.

    Parameters
    ----------
    folder : path-like
        Holds `model.safetensors`, `fold{k}.safetensors` of every fold model, and `model.json`.
    ensemble : bool
        Whether the fold models are read too; without them their files may be missing.

    Returns
    -------
    Bundle

    Raises
    ------
    InputError
        A file is missing or damaged, of another format, or they do not belong together.
    """
    folder = Path(folder)
    path = folder / "model.json"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, f"no readable model description ({error})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise _refused(path, f"the bundle's format is {found!r}, this haemex reads {FORMAT}")
    try:
        network, parameters = dict(content["network"]), content["network"]["parameters"]
        del network["parameters"]
        preprocessing, checksum = dict(content["preprocessing"]), content["weights_sha256"]
        members = [(member["file"], member["sha256"]) for member in content["ensemble"]]
        threshold = float(content["operating_point"]["threshold"])
        calibration = content["calibration"]
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"the model description is incomplete ({type(error).__name__}: {error})") from None
    if not math.isfinite(threshold):
        raise _refused(path, f"threshold is {threshold}")
    calibration = read_calibration(calibration, path)
    preprocessing = _read_preprocessing(preprocessing, path)
    for name, _ in members:
        # Files of the bundle only: a description from elsewhere leads nowhere else.
        if not isinstance(name, str) or not re.fullmatch(r"fold[0-9]+\.safetensors", name):
            raise _refused(path, f"a fold model is named {name!r}, not fold0.safetensors or the like")
    if len({name for name, _ in members}) < len(members):
        raise _refused(path, "a fold model is named twice")
    model = _load_member(folder / "model.safetensors", network, parameters, checksum)
    models = [_load_member(folder / name, network, parameters, sha256) for name, sha256 in members if ensemble]
    return Bundle(model, preprocessing, threshold, calibration, tuple(models))


def refuse_other_preprocessing(trained_with, present, file):
    """Refuse scans that were made otherwise than those the model was trained on.

    Parameters
    ----------
    trained_with, present : dict
        Sections `resample`; 10 and 10.0, lists and tuples are the same.
    file : path-like
        The bundle, for the message.

    Raises
    ------
    InputError
        Names the settings that differ.
    """
    differing = [
        f"resample.{key} is {present.get(key, 'absent')}, the model was trained with {trained_with.get(key, 'absent')}"
        for key in sorted({*trained_with, *present})
        if key not in trained_with or key not in present or not _same(trained_with[key], present[key])
    ]
    if differing:
        raise InputError("; ".join(differing), "set the section resample as in the bundle's model.json", file)


def _read_preprocessing(content, path):
    """Check the section `resample` that came with a bundle, as far as scans are made with it; return it."""

    def numbers(name, count, usable):
        values = content.get(name)
        if not isinstance(values, list | tuple) or len(values) != count or not all(map(_is_number, values)):
            raise _refused(path, f"preprocessing.{name} is {values!r:.100}, not {count} numbers")
        if not usable(values):
            raise _refused(path, f"preprocessing.{name} is {values!r:.100}")

    numbers("field_of_view_mm", 3, lambda values: all(0 < value <= 1e4 for value in values))
    numbers(
        "matrix", 3, lambda values: all(isinstance(n, int) and n > 0 for n in values) and math.prod(values) <= 2**27
    )
    numbers("window_hu", 2, lambda values: values[0] < values[1])
    if content.get("spline_order") not in (1, 2, 3, 4, 5):
        raise _refused(path, f"preprocessing.spline_order is {content.get('spline_order')!r:.100}")
    return content


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _load_member(path, network, parameters, checksum):
    """Load one network of a bundle, refusing any that the description was not written for."""
    model, found = _load_weights(path, network)
    if model.parameter_count() != parameters:
        raise _refused(
            path.with_name("model.json"), f"{parameters} parameters stated, the network has {model.parameter_count()}"
        )
    if found != checksum:
        raise _refused(path, "the weights are not those that model.json was written for")
    return model.eval()


def _load_weights(path, network):
    """Make a network and load its weights, refusing any that are not exactly its own; return the file's digest too."""
    path = Path(path)
    try:
        tensors, checksum = safetensors.torch.load_file(path), _sha256(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _refused(path, f"no readable weights ({error})") from None
    # A description from elsewhere may ask for any size: nothing is built that the weights at hand could not fill.
    try:
        fits = network["convs_per_level"] <= len(tensors)
        with torch.device("meta"):
            expected = TwoOutputUNet(**network).state_dict() if fits else {}
    except (KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _refused(path.with_name("model.json"), f"the network's settings are not usable ({error})") from None
    wrong = sorted(
        name
        for name in {*expected, *tensors}
        if name not in expected
        or name not in tensors
        or (expected[name].shape, expected[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    )
    if wrong:
        raise _refused(path, f"{len(wrong)} tensors do not fit the network described, the first is {wrong[0]}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise _refused(path, "a weight is not a finite number")
    model = TwoOutputUNet(**network)
    model.load_state_dict(tensors)
    return model, checksum


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _same(a, b):
    """Compare two settings: numbers by value, sequences by their items."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _refused(path, problem):
    return InputError(problem, "take the whole folder of the model bundle again from where it was made", path)
