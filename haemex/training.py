"""Train one network: forty passes over the augmented copies of its own patients, checked on other patients' scans.

Supplement, "Training process": Adam, learning rate 1e-4, divided by 10 after epochs 20 and 30, 40 epochs, batch size 1,
loss 0.9 Dice + 0.1 cross-entropy. With these settings epochs 1 to 20 run at 1e-4, 21 to 30 at 1e-5, 31 to 40 at 1e-6.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch.optim.adam import adam

from haemex.dataset import TrainingCopies, content_record, epoch_order, read_offsets, read_scan
from haemex.errors import InputError
from haemex.files import write_atomically
from haemex.logs import Progress, announce
from haemex.losses import expansion_loss, training_loss
from haemex.network import computing, device_name, initial_network, place, predict_scan, probability
from haemex.segmentation_metrics import dice, volume_ml
from haemex.tables import write_table

HISTORY_COLUMNS = ("epoch", "learning_rate", "train_loss", "train_dice_loss", "train_bce", "val_dice_median", "val_bce")
PREDICTION_COLUMNS = ("patient", "probability", "logit", "dice", "predicted_ml")
ROLE_COLUMNS = ("patient", "copy", "role")

# A GPU waits for the host whenever a number is brought back, so losses are looked at once in so many steps.
STEPS_BETWEEN_LOOKS = 16


class Adam:
    """Adam (Kingma and Ba 2015) in PyTorch's own arithmetic, without the class `torch.optim.Adam`.

    Creating that class imports the compiler stack, 1.1 to 1.3 s of CPU in every training job; the function it calls
    for the arithmetic does not. Betas 0.9 and 0.999, epsilon 1e-8: PyTorch's defaults.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are changed in place.
    """

    def __init__(self, model):
        self.names, self.parameters = zip(*model.named_parameters(), strict=True)
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros(()) for _ in self.parameters]

    def step(self, learning_rate):
        """Move every parameter by its gradient, and clear the gradients.

        Parameters
        ----------
        learning_rate : float
        """
        with torch.no_grad():
            adam(
                list(self.parameters),
                [parameter.grad for parameter in self.parameters],
                self.means,
                self.squares,
                [],
                self.steps,
                foreach=self.parameters[0].is_cuda,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=learning_rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
        for parameter in self.parameters:
            parameter.grad = None

    def state(self):
        """Return all that a later `load` needs, as named tensors."""
        moments = {"mean": self.means, "square": self.squares, "step": self.steps}
        return {
            f"{moment}.{name}": tensor
            for moment, tensors in moments.items()
            for name, tensor in zip(self.names, tensors, strict=True)
        }

    def load(self, state):
        """Take over what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def learning_rate_of(epoch, learning_rate, rate_milestones, rate_factor):
    """Return the learning rate of one epoch.

    Parameters
    ----------
    epoch : int
        From 1.
    learning_rate : float
        Of the first epoch.
    rate_milestones : sequence of int
        After each of these epochs the rate is multiplied by `rate_factor`.
    rate_factor : float

    Returns
    -------
    float
    """
    return learning_rate * rate_factor ** sum(epoch > milestone for milestone in rate_milestones)


def refuse_leaks(patients, validation, digests):
    """Refuse a training that would be tested on what it has seen.

    Parameters
    ----------
    patients, validation : sequence of str
        Both sides.
    digests : dict of str to str
        Digest of each patient's pixels (`pixel_digest` of the stage `convert`).

    Raises
    ------
    InputError
        A patient stands on both sides, or twice on one, or the same scan stands on both sides under two names.
    """
    both = sorted(set(patients) & set(validation))
    if both:
        raise InputError(
            f"{len(both)} of {len(validation)} validation patients are also trained on ({', '.join(both[:5])})",
            "give each patient one fold",
        )
    for side in (patients, validation):
        if len(set(side)) != len(side):
            raise InputError(f"{len(side) - len(set(side))} patients stand twice on one side", "list each patient once")
    if validation:
        trained_on = {digests[patient]: patient for patient in patients}
        for patient in validation:
            if digests[patient] in trained_on:
                raise InputError(
                    f"validation patient {patient} and training patient {trained_on[digests[patient]]} have the very "
                    "same baseline scan",
                    "correct the folders in the cohort table, or remove one of the two patients",
                )


def train_network(
    *,
    patients,
    labels,
    digests,
    augment_folder,
    network,
    training,
    seed,
    purpose,
    weights_path,
    history_path,
    roles_path,
    checkpoint_path,
    validation=(),
    scan_folder=None,
    predictions_path=None,
    memory_gb=4.0,
):
    """Train a network and write its weights, its history and who took part.

    Killed at any moment and started again with the same arguments, it goes on after the last whole epoch and ends with
    the same bytes (on a GPU: with `deterministic`). With other arguments or other inputs it starts anew and says so.

    Parameters
    ----------
    patients : sequence of str
        Their augmented copies are trained on.
    labels : dict of str to int
        1 if the haematoma expanded, else 0; for `patients` and `validation`.
    digests : dict of str to str
        Digest of each patient's baseline pixels, for `patients` and `validation`.
    augment_folder : path-like
        Results of the stage `augment`.
    network : dict
        `widths`, `convs_per_level`, `normalisation`.
    training : dict
        `epochs`, `batch_size`, `learning_rate`, `rate_milestones`, `rate_factor`, `loss_weights` (`segmentation`,
        `classification`), `deterministic`, `threads`.
    seed : int
        The study's seed.
    purpose : str
        Names the job and, with `seed`, all its randomness, e.g. "train paper fold1".
    weights_path : path-like
        Weights and running statistics, safetensors.
    history_path : path-like
        One row per epoch (`HISTORY_COLUMNS`); validation every tenth of the epochs and after the last.
    roles_path : path-like
        Patient, copy, role (`train` or `validation`; a validation scan has the copy "scan").
    checkpoint_path : path-like
        Where the training can be taken up again; removed after success.
    validation : sequence of str
        Patients whose unaugmented scans are predicted; none for the final model.
    scan_folder : path-like, optional
        Results of the stage `resample`; needed with `validation`.
    predictions_path : path-like, optional
        Predictions for `validation` (`PREDICTION_COLUMNS`; Dice and volume on the network's grid).
    memory_gb : float
        Copies are kept in memory if they fit into this; no effect on the result.

    Raises
    ------
    InputError
        A leak (see `refuse_leaks`), a damaged input, or a loss that is no longer finite.
    """
    patients, validation = list(patients), list(validation)
    if not patients:
        raise InputError("there is no patient to train on", "widen the eligibility or the training period")
    refuse_leaks(patients, validation, digests)
    copies = TrainingCopies(patients, augment_folder, memory_gb)
    epochs, batch_size = training["epochs"], training["batch_size"]
    steps_per_epoch = math.ceil(len(copies) / batch_size)

    with computing(training["threads"], training["deterministic"]) as device:
        announce(f"{purpose}: {len(patients)} patients, {len(copies)} copies, on {device_name(device)}")
        model = place(initial_network(network, seed, purpose), device)
        optimiser = Adam(model)
        settings = settings_digest(
            {
                "patients": patients,
                "validation": validation,
                "labels": [labels[patient] for patient in patients + validation],
                "network": network,
                "training": training,
                "seed": seed,
                "purpose": purpose,
                "device": device_name(device),
                "torch": torch.__version__,
                "inputs": _input_records(patients, augment_folder, validation, scan_folder),
                "code": _code_record(),
            }
        )
        history = _resume(checkpoint_path, settings, model, optimiser, purpose)
        progress = Progress(purpose, epochs * steps_per_epoch)
        for epoch in range(len(history) + 1, epochs + 1):
            rate = learning_rate_of(
                epoch, training["learning_rate"], training["rate_milestones"], training["rate_factor"]
            )
            losses = _train_epoch(
                model,
                optimiser,
                copies.batches(epoch_order(len(copies), seed, purpose, epoch), batch_size),
                slope=copies.slope,
                labels=labels,
                learning_rate=rate,
                loss_weights=training["loss_weights"],
                device=device,
                epoch=epoch,
                progress=lambda step, loss, epoch=epoch: progress.step(
                    (epoch - 1) * steps_per_epoch + step, f"epoch {epoch} of {epochs}, loss {loss:.4f}"
                ),
            )
            row = dict(zip(HISTORY_COLUMNS, [epoch, rate, *losses, None, None], strict=True))
            if validation and epoch < epochs and epoch % max(1, epochs // 10) == 0:
                _add_validation(row, _validate(model, validation, scan_folder, device), labels)
            history.append(row)
            _write_checkpoint(checkpoint_path, settings, model, optimiser, history)
        if validation:
            predictions = _validate(model, validation, scan_folder, device)
            _add_validation(history[-1], predictions, labels)
            write_table(predictions_path, predictions, PREDICTION_COLUMNS)
        write_atomically(weights_path, safetensors.torch.save(_tensors(model)))
    write_table(
        roles_path,
        [{"patient": patient, "copy": copy, "role": "train"} for patient, copy in copies.index]
        + [{"patient": patient, "copy": "scan", "role": "validation"} for patient in validation],
        ROLE_COLUMNS,
    )
    write_table(history_path, history, HISTORY_COLUMNS)
    Path(checkpoint_path).unlink(missing_ok=True)


def settings_digest(settings):
    """Digest everything a training depends on.

    Parameters
    ----------
    settings : dict
        Anything JSON can hold.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _train_epoch(model, optimiser, batches, *, slope, labels, learning_rate, loss_weights, device, epoch, progress):
    """Train on every copy once; return the means of total loss, Dice loss and cross-entropy over the copies."""
    model.train()
    sums, seen, waiting = np.zeros(3), 0, []

    def look():
        nonlocal sums, seen
        sizes, losses = zip(*waiting, strict=True)
        for size, values in zip(sizes, torch.stack(losses).tolist(), strict=True):
            if not np.isfinite(values).all():
                raise _diverged(
                    f"the loss is {values[0]} in epoch {epoch} at learning rate {learning_rate} (Dice loss "
                    f"{values[1]}, cross-entropy {values[2]})"
                )
            sums, seen = sums + size * np.array(values), seen + size
        waiting.clear()

    for step, (names, ct, haematoma) in enumerate(batches, start=1):
        scans = torch.from_numpy(ct).to(device).float().mul_(slope)[:, None]
        masks = torch.from_numpy(haematoma).to(device)[:, None]
        expansion = torch.tensor([float(labels[name]) for name in names], device=device)
        segmentation, classification = model(scans)
        losses = training_loss(segmentation, classification, masks, expansion, loss_weights)
        losses[0].backward()
        optimiser.step(learning_rate)
        waiting.append((len(names), torch.stack(losses).detach()))
        if device.type == "cpu" or len(waiting) == STEPS_BETWEEN_LOOKS:
            last = waiting[-1][1]
            look()
            progress(step, float(last[0]))
    if waiting:
        look()
    if not torch.stack([parameter.isfinite().all() for parameter in optimiser.parameters]).all():
        raise _diverged(f"weights are no longer finite after epoch {epoch} at learning rate {learning_rate}")
    return (sums / seen).tolist()


def _diverged(problem):
    return InputError(problem, "lower training.learning_rate; the checkpoint of the last whole epoch is kept")


def _validate(model, validation, scan_folder, device):
    """Predict unaugmented scans; Dice and volume on the network's grid."""
    rows = []
    for patient in validation:
        ct, reference, affine = read_scan(scan_folder, patient)
        logit, haematoma = predict_scan(model, ct, device)
        predicted = haematoma > 0.5
        if not math.isfinite(logit):
            raise _diverged(f"the network's output is {logit} for patient {patient}")
        rows.append(
            {
                "patient": patient,
                "probability": probability(logit),
                "logit": logit,
                "dice": dice(predicted, reference),
                "predicted_ml": volume_ml(predicted, affine),
            }
        )
    return rows


def _add_validation(row, predictions, labels):
    logits = torch.tensor([prediction["logit"] for prediction in predictions], dtype=torch.float64)
    expansion = torch.tensor([labels[prediction["patient"]] for prediction in predictions])
    row["val_dice_median"] = float(np.median([prediction["dice"] for prediction in predictions]))
    row["val_bce"] = expansion_loss(logits, expansion).item()


def _tensors(model):
    """Weights and running statistics on the CPU, in PyTorch's plain memory layout."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write_checkpoint(path, settings, model, optimiser, history):
    tensors = {f"model.{name}": tensor for name, tensor in _tensors(model).items()}
    tensors |= {f"adam.{name}": tensor.detach().cpu().contiguous() for name, tensor in optimiser.state().items()}
    metadata = {"settings": settings, "history": json.dumps(history)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def _resume(path, settings, model, optimiser, purpose):
    """Load a checkpoint of exactly this training into model and optimiser; return its history, else an empty one."""
    if not Path(path).exists():
        return []
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        announce(f"{purpose}: the checkpoint {path} cannot be read ({error}); starting anew")
        return []
    if (metadata or {}).get("settings") != settings:
        announce(f"{purpose}: the checkpoint {path} is of other settings, inputs or code; starting anew")
        return []
    history = json.loads(metadata["history"])
    parts = {"model.": {}, "adam.": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = tensor
    model.load_state_dict(parts["model."])
    optimiser.load(parts["adam."])
    announce(f"{purpose}: going on after epoch {len(history)}")
    return history


def _input_records(patients, augment_folder, validation, scan_folder):
    """Record what every input file holds."""
    records = []
    for patient in patients:
        offsets = read_offsets(augment_folder, patient)
        for kind, places in offsets.items():
            records.append(content_record(Path(augment_folder) / f"{patient}_{kind}.nii.gz", places))
        records.append(zlib.crc32((Path(augment_folder) / f"{patient}.json").read_bytes()))
    for patient in validation:
        records += [content_record(Path(scan_folder) / f"{patient}_{kind}.nii.gz") for kind in ("ct", "haematoma")]
    return records


def _code_record():
    """Record the modules that decide how a training runs, so that none goes on with other code than it began with."""
    modules = ("dataset", "losses", "network", "segmentation_metrics", "training")
    return [zlib.crc32((Path(__file__).parent / f"{module}.py").read_bytes()) for module in modules]
