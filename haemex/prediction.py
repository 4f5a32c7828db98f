"""Apply a locked model: the bundle it travels in, and predictions for scans whose outcome it never sees."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from haemex.errors import InputError
from haemex.files import write_json
from haemex.logs import Progress, announce
from haemex.network import TwoOutputUNet, computing, device_name, place, predict_scan, probability
from haemex.nifti import read_grid, read_volume, write_volume
from haemex.resample import resample_haematoma
from haemex.segmentation_metrics import volume_ml
from haemex.tables import write_table

FORMAT = 1
COLUMNS = ("patient", "cohort", "probability", "logit", "calibrated_probability", "positive", "predicted_ml")


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
    intercept, slope : float
        The calibrated logit is intercept + slope * logit.
    """

    model: TwoOutputUNet
    preprocessing: dict
    threshold: float
    intercept: float
    slope: float


def write_bundle(folder, *, network, preprocessing, threshold, rule, calibration, training, cohort):
    """Complete a model bundle: `model.json` beside the weights that stand in `model.safetensors`.

    Parameters
    ----------
    folder : path-like
        Holds `model.safetensors` as `haemex.training.train_network` wrote it.
    network : dict
        `widths`, `convs_per_level`, `normalisation`.
    preprocessing : dict
        The section `resample`.
    threshold : float
        Locked operating point, a probability.
    rule : str
        How the threshold was found.
    calibration : dict
        `intercept` and `slope`, on the logit.
    training : dict
        The section `training` as used.
    cohort : dict
        `patients` and `expansions` of the training cohort, counts.

    Raises
    ------
    InputError
        The weights are not those of such a network.
    """
    weights_path = Path(folder) / "model.safetensors"
    model = _load_weights(weights_path, network)
    content = {
        "format": FORMAT,
        "network": {**network, "parameters": model.parameter_count()},
        "weights_sha256": hashlib.sha256(weights_path.read_bytes()).hexdigest(),
        "preprocessing": preprocessing,
        "operating_point": {"threshold": threshold, "rule": rule},
        "calibration": calibration,
        "training": training,
        "cohort": cohort,
        "versions": {"haemex": importlib.metadata.version("haemex"), "torch": torch.__version__},
    }
    write_json(Path(folder) / "model.json", content)


def load_bundle(folder):
    """Read a model bundle, one's own or another centre's. Nothing in it is executed.

    Parameters
    ----------
    folder : path-like
        Holds `model.safetensors` and `model.json`.

    Returns
    -------
    Bundle

    Raises
    ------
    InputError
        A file is missing or damaged, of another format, or the two do not belong together.
    """
    path, weights_path = Path(folder) / "model.json", Path(folder) / "model.safetensors"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _refused(path, f"no readable model description ({error})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise _refused(path, f"the bundle's format is {found!r}, this haemex reads {FORMAT}")
    try:
        network, parameters = dict(content["network"]), content["network"]["parameters"]
        del network["parameters"]
        preprocessing, checksum = dict(content["preprocessing"]), content["weights_sha256"]
        numbers = {
            "threshold": float(content["operating_point"]["threshold"]),
            "intercept": float(content["calibration"]["intercept"]),
            "slope": float(content["calibration"]["slope"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"the model description is incomplete ({type(error).__name__}: {error})") from None
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise _refused(path, f"{name} is {value}")
    model = _load_weights(weights_path, network)
    if model.parameter_count() != parameters:
        raise _refused(path, f"{parameters} parameters stated, the network has {model.parameter_count()}")
    if hashlib.sha256(weights_path.read_bytes()).hexdigest() != checksum:
        raise _refused(weights_path, "the weights are not those that model.json was written for")
    return Bundle(model=model.eval(), preprocessing=preprocessing, **numbers)


def predict_patients(*, bundle_folder, patients, preprocessing, threads, predictions_path, masks_folder):
    """Predict expansion and haematoma of every patient with a locked model; no label and no reference is read.

    Parameters
    ----------
    bundle_folder : path-like
        The model bundle.
    patients : sequence of (str, str, path-like, path-like)
        Patient; cohort; CT of the stage `resample`; CT of the stage `convert`, of which only the grid is read.
    preprocessing : dict
        The section `resample` the scans were made with; has to be the bundle's.
    threads : int
        CPU threads.
    predictions_path : path-like
        One row per patient (`COLUMNS`).
    masks_folder : path-like
        Gets `{patient}_haematoma.nii.gz` on the native grid and `{patient}_grid.nii.gz` on the network's, both uint8.

    Raises
    ------
    InputError
        Other preprocessing than the model was trained with, a damaged bundle or scan.
    """
    bundle = load_bundle(bundle_folder)
    refuse_other_preprocessing(bundle.preprocessing, preprocessing, bundle_folder)
    grid = tuple(preprocessing["matrix"][::-1])
    rows = []
    with computing(threads, deterministic=True) as device:
        announce(f"predict: {len(patients)} patients on {device_name(device)}")
        model = place(bundle.model, device)
        progress = Progress("predict", len(patients))
        for done, (patient, cohort, ct_path, native_path) in enumerate(patients, start=1):
            ct, affine = read_volume(ct_path)
            if ct.shape != grid:
                raise InputError(
                    f"patient {patient}: grid (z, y, x) {ct.shape} where resample.matrix gives {grid}",
                    "run the stage resample again",
                    ct_path,
                )
            logit, haematoma = predict_scan(model, ct, device)
            if not math.isfinite(logit):
                raise InputError(
                    f"patient {patient}: the network's output is {logit}",
                    "check the model bundle and this scan",
                    ct_path,
                )
            native_shape, native_affine = read_grid(native_path)
            drawn = haematoma > 0.5
            native = resample_haematoma(drawn, affine, native_affine, native_shape).astype(np.uint8)
            write_volume(Path(masks_folder) / f"{patient}_grid.nii.gz", drawn.astype(np.uint8), affine)
            write_volume(Path(masks_folder) / f"{patient}_haematoma.nii.gz", native, native_affine)
            expansion = probability(logit)
            rows.append(
                {
                    "patient": patient,
                    "cohort": cohort,
                    "probability": expansion,
                    "logit": logit,
                    "calibrated_probability": probability(bundle.intercept + bundle.slope * logit),
                    "positive": int(expansion >= bundle.threshold),
                    "predicted_ml": volume_ml(native, native_affine),
                }
            )
            progress.step(done)
    write_table(predictions_path, rows, COLUMNS)


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


def _load_weights(path, network):
    """Make a network and load its weights, refusing any that are not exactly its own."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _refused(path, f"no readable weights ({error})") from None
    try:
        model = TwoOutputUNet(**network)
    except TypeError as error:
        raise _refused(path.with_name("model.json"), f"the network's settings are not usable ({error})") from None
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in {*expected, *tensors}
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise _refused(path, f"{len(wrong)} tensors do not fit the network described, the first is {wrong[0]}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise _refused(path, "a weight is not a finite number")
    model.load_state_dict(tensors)
    return model


def _same(a, b):
    """Compare two settings: numbers by value, sequences by their items."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _refused(path, problem):
    return InputError(problem, "take the whole folder of the model bundle again from where it was made", path)
