"""Apply a locked model: the bundle it travels in, and predictions for scans whose outcome it never sees."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from haemex.calibration import calibrate, read_calibration
from haemex.errors import InputError
from haemex.files import write_atomically, write_json
from haemex.logs import Progress, announce
from haemex.network import (
    TwoOutputUNet,
    computing,
    device_name,
    inference_precision,
    place,
    predict_expansion,
    predict_scan,
    probability,
)
from haemex.nifti import read_grid, read_volume, write_volume
from haemex.resample import resample_haematoma
from haemex.segmentation_metrics import volume_ml
from haemex.tables import write_table

FORMAT = 2
COLUMNS = (
    "patient",
    "cohort",
    "probability",
    "logit",
    "calibrated_probability",
    "positive",
    "predicted_ml",
    "ensemble_probability",
    "ensemble_sd",
)


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
        The weights are not those of such a network, or the calibration cannot be used.
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
        "preprocessing": preprocessing,
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
    except (OSError, ValueError) as error:
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
    for name, _ in members:
        # Files of the bundle only: a description from elsewhere leads nowhere else.
        if not isinstance(name, str) or not re.fullmatch(r"fold\d+\.safetensors", name):
            raise _refused(path, f"a fold model is named {name!r}, not fold0.safetensors or the like")
    model = _load_member(folder / "model.safetensors", network, parameters, checksum)
    models = [_load_member(folder / name, network, parameters, sha256) for name, sha256 in members if ensemble]
    return Bundle(model, preprocessing, threshold, calibration, tuple(models))


def predict_patients(
    *,
    bundle_folder,
    patients,
    preprocessing,
    threads,
    predictions_path,
    masks_folder,
    precision="auto",
    ensemble=True,
):
    """Predict expansion and haematoma of every patient with a locked model; no label and no reference is read.

    The final model makes probability, decision and mask. The fold models only say how far a prediction hangs on who
    was trained on: the mean and the SD of their probabilities, uncalibrated as the final model's own. For patients of
    the training cohort this is no honest uncertainty: all fold models but one have trained on the patient, the final
    model too. For theirs see the out-of-fold predictions of the stage `select`.

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
    precision : {"auto", "fp32", "bf16"}
        Of the convolutions; see `haemex.network.inference_precision`.
    ensemble : bool
        Whether the fold models predict too; `ensemble_probability` and `ensemble_sd` (n - 1) are empty without.

    Raises
    ------
    InputError
        Other preprocessing than the model was trained with, a damaged bundle or scan.
    """
    bundle = load_bundle(bundle_folder, ensemble)
    refuse_other_preprocessing(bundle.preprocessing, preprocessing, bundle_folder)
    grid = tuple(preprocessing["matrix"][::-1])
    rows = []
    with computing(threads, deterministic=True) as device:
        precision = inference_precision(precision, device)
        announce(
            f"predict: {len(patients)} patients on {device_name(device)}, {precision}, "
            + (f"with {len(bundle.ensemble)} fold models" if bundle.ensemble else "without fold models")
        )
        model, *fold_models = (place(one, device, "auto", precision) for one in (bundle.model, *bundle.ensemble))
        progress = Progress("predict", len(patients))
        for done, (patient, cohort, ct_path, native_path) in enumerate(patients, start=1):
            ct, affine = read_volume(ct_path)
            if ct.shape != grid:
                raise InputError(
                    f"patient {patient}: grid (z, y, x) {ct.shape} where resample.matrix gives {grid}",
                    "run the stage resample again",
                    ct_path,
                )
            logit, haematoma = predict_scan(model, ct, device, precision)
            fold_logits = [predict_expansion(one, ct, device, precision) for one in fold_models]
            for value in (logit, *fold_logits):
                if not math.isfinite(value):
                    raise InputError(
                        f"patient {patient}: the network's output is {value}",
                        "check the model bundle and this scan",
                        ct_path,
                    )
            native_shape, native_affine = read_grid(native_path)
            drawn = haematoma > 0.5
            native = resample_haematoma(drawn, affine, native_affine, native_shape).astype(np.uint8)
            write_volume(Path(masks_folder) / f"{patient}_grid.nii.gz", drawn.astype(np.uint8), affine)
            write_volume(Path(masks_folder) / f"{patient}_haematoma.nii.gz", native, native_affine)
            expansion, of_folds = probability(logit), [probability(value) for value in fold_logits]
            rows.append(
                {
                    "patient": patient,
                    "cohort": cohort,
                    "probability": expansion,
                    "logit": logit,
                    "calibrated_probability": calibrate(bundle.calibration, logit),
                    "positive": int(expansion >= bundle.threshold),
                    "predicted_ml": volume_ml(native, native_affine),
                    "ensemble_probability": float(np.mean(of_folds)) if of_folds else None,
                    "ensemble_sd": float(np.std(of_folds, ddof=1)) if len(of_folds) > 1 else None,
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
