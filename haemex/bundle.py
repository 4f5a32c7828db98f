"""The bundle that a trained model travels in: weights, and all that belongs to their use."""

import dataclasses
import hashlib
import importlib.metadata
from pathlib import Path

import safetensors.torch
import torch

from haemex.calibration import read_calibration
from haemex.files import write_atomically, write_json
from haemex.model_description import DESCRIPTION, FORMAT, WEIGHTS, read_description, refused
from haemex.network import TwoOutputUNet
from haemex.preparation import check_preparation


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained network with all that belongs to its use.

    Attributes
    ----------
    model : TwoOutputUNet
        On the CPU, in evaluation mode.
    preparation : dict of dict
        The sections `convert`, `skullstrip` and `resample` its scans were made with.
    threshold : float
        A probability of expansion at or above it is positive.
    calibration : dict
        For `haemex.calibration.calibrate`.
    ensemble : tuple of TwoOutputUNet
        The fold models, likewise; none if they were not asked for.
    """

    model: TwoOutputUNet
    preparation: dict
    threshold: float
    calibration: dict
    ensemble: tuple


def write_bundle(folder, *, fold_weights, network, preparation, threshold, rule, calibration, training, cohort):
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
    preparation : dict of dict
        The sections `convert`, `skullstrip` and `resample` of the config.
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
        The weights are not those of such a network; the calibration or the preparation cannot be used.
    """
    folder = Path(folder)
    card_path, weights_path = folder / DESCRIPTION, folder / WEIGHTS
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
        "preparation": check_preparation(preparation, card_path),
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
    path = folder / DESCRIPTION
    content = read_description(folder)
    preparation = content["preparation"]
    network, parameters = dict(content["network"]), content["network"]["parameters"]
    del network["parameters"]
    members = [(member["file"], member["sha256"]) for member in content["ensemble"]]
    if len({name for name, _ in members}) < len(members):
        raise refused(path, "a fold model is named twice")
    threshold, calibration = (
        float(content["operating_point"]["threshold"]),
        read_calibration(content["calibration"], path),
    )
    model = _load_member(folder / WEIGHTS, network, parameters, content["weights_sha256"])
    models = [_load_member(folder / name, network, parameters, sha256) for name, sha256 in members if ensemble]
    return Bundle(model, preparation, threshold, calibration, tuple(models))


def _load_member(path, network, parameters, checksum):
    """Load one network of a bundle, refusing any that the description was not written for."""
    model, found = _load_weights(path, network)
    if model.parameter_count() != parameters:
        raise refused(
            path.with_name(DESCRIPTION), f"{parameters} parameters stated, the network has {model.parameter_count()}"
        )
    if found != checksum:
        raise refused(path, "the weights are not those that model.json was written for")
    return model.eval()


def _load_weights(path, network):
    """Make a network and load its weights, refusing any that are not exactly its own; return the file's digest too."""
    path = Path(path)
    try:
        tensors, checksum = safetensors.torch.load_file(path), _sha256(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise refused(path, f"no readable weights ({error})") from None
    # A description from elsewhere may ask for any size: nothing is built that the weights at hand could not fill.
    try:
        fits = network["convs_per_level"] <= len(tensors)
        with torch.device("meta"):
            expected = TwoOutputUNet(**network).state_dict() if fits else {}
    except (KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise refused(path.with_name(DESCRIPTION), f"the network's settings are not usable ({error})") from None
    wrong = sorted(
        name
        for name in {*expected, *tensors}
        if name not in expected
        or name not in tensors
        or (expected[name].shape, expected[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    )
    if wrong:
        raise refused(path, f"{len(wrong)} tensors do not fit the network described, the first is {wrong[0]}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise refused(path, "a weight is not a finite number")
    model = TwoOutputUNet(**network)
    model.load_state_dict(tensors)
    return model, checksum


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
