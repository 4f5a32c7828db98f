"""Train one network: forty passes over the augmented copies of its own patients, checked on other patients' scans.

Supplement, "Training process": Adam, learning rate 1e-4, divided by 10 after epochs 20 and 30, 40 epochs, batch size 1,
loss 0.9 Dice + 0.1 cross-entropy. With these settings epochs 1 to 20 run at 1e-4, 21 to 30 at 1e-5, 31 to 40 at 1e-6.
"""

import contextlib
import hashlib
import json
import math
import signal
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch.optim.adam import adam

from haemex.checkpoint import Checkpoint
from haemex.dataset import TrainingCopies, content_record, epoch_order, read_offsets, read_scan
from haemex.errors import InputError
from haemex.feeding import Feeder
from haemex.files import write_atomically
from haemex.locks import locked
from haemex.logs import Progress, announce
from haemex.losses import expansion_loss, training_loss
from haemex.monitoring import TrainingMonitor
from haemex.network import (
    computing,
    device_name,
    initial_network,
    mixed,
    place,
    predict_scan,
    probability,
    training_precision,
)
from haemex.segmentation_metrics import dice, volume_ml
from haemex.tables import write_table

HISTORY_COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_dice_loss",
    "train_bce",
    "val_dice_median",
    "val_auc",
    "val_bce",
)
PREDICTION_COLUMNS = ("patient", "probability", "logit", "dice", "predicted_ml")
ROLE_COLUMNS = ("patient", "copy", "role")

# A GPU waits for the host whenever a number is brought back, so losses are looked at once in so many steps.
STEPS_BETWEEN_LOOKS = 16
# How long a job waits for another of the same training, left over from a killed run, to stop: a step and a checkpoint.
TAKE_OVER_S = 600.0
# The loss scale of fp16: PyTorch's defaults.
FIRST_SCALE, SCALE_GROWTH, STEPS_TO_GROWTH = 2.0**16, 2.0, 2000


class Adam:
    """Adam (Kingma and Ba 2015) in PyTorch's own fused arithmetic, without the class `torch.optim.Adam`.

    Creating that class imports the compiler stack, 1.1 to 1.3 s of CPU in every training job; the function it calls
    for the arithmetic does not. Betas 0.9 and 0.999, epsilon 1e-8: PyTorch's defaults.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are changed in place.
    scaled : bool
        Multiply the loss by `scale`, so that small gradients survive in fp16 (Micikevicius et al. 2018). A step whose
        gradients overflow is left out and halves the scale; `STEPS_TO_GROWTH` good ones in a row double it. All of it
        happens on the device.

    Attributes
    ----------
    scale : torch.Tensor, ()
        What the loss is to be multiplied by; 1 where nothing is scaled.
    """

    def __init__(self, model, scaled=False):
        self.names, self.parameters = zip(*model.named_parameters(), strict=True)
        device = self.parameters[0].device
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=device) for _ in self.parameters]
        self.scaled = scaled
        self.scale = torch.full((), FIRST_SCALE if scaled else 1.0, device=device)
        self.good_steps = torch.zeros((), device=device)

    def step(self, learning_rate):
        """Move every parameter by its gradient, and clear the gradients.

        Parameters
        ----------
        learning_rate : float
        """
        gradients = [parameter.grad for parameter in self.parameters]
        overflow = None
        if self.scaled:
            overflow = torch.stack([~gradient.isfinite().all() for gradient in gradients]).any().float()
        with torch.no_grad():
            adam(
                list(self.parameters),
                gradients,
                self.means,
                self.squares,
                [],
                self.steps,
                fused=True,
                grad_scale=self.scale if self.scaled else None,
                found_inf=overflow,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=learning_rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
        if self.scaled:
            self.good_steps.copy_(torch.where(overflow > 0, 0.0, self.good_steps + 1))
            growth = torch.where(self.good_steps == STEPS_TO_GROWTH, SCALE_GROWTH, 1.0)
            self.scale.copy_(self.scale * torch.where(overflow > 0, 1 / SCALE_GROWTH, growth))
            self.good_steps.copy_(torch.where(self.good_steps == STEPS_TO_GROWTH, 0.0, self.good_steps))
        for parameter in self.parameters:
            parameter.grad = None

    def state(self):
        """Return all that a later `load` needs, as named tensors."""
        moments = {"mean": self.means, "square": self.squares, "step": self.steps}
        return {"scale": self.scale, "good_steps": self.good_steps} | {
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
    device_memory_part=0.4,
    checkpoint_minutes=5.0,
    curve_path=None,
    events_path=None,
):
    """Train a network and write its weights, its history and who took part.

    Killed at any moment and started again with the same arguments, it goes on from the last checkpoint, in the middle
    of an epoch if need be, and ends with the same bytes (on a GPU: with `deterministic`). With other arguments or other
    inputs it starts anew and says so. Told to stop (SIGTERM, SIGINT) it writes a checkpoint first.

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
        `widths`, `convs_per_level`, `normalisation`, `in_plane_levels`.
    training : dict
        `epochs`, `batch_size`, `learning_rate`, `rate_milestones`, `rate_factor`, `loss_weights` (`segmentation`,
        `classification`), `precision`, `channels_last`, `compile`, `deterministic`, `threads`.
    seed : int
        The study's seed.
    purpose : str
        Names the job and, with `seed`, all its randomness, e.g. "train paper fold1".
    weights_path : path-like
        Weights and running statistics, safetensors.
    history_path : path-like
        One row per epoch (`HISTORY_COLUMNS`), written anew after each; validation every tenth of the epochs and after
        the last.
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
        So much memory may hold unpacked copies; no effect on the result.
    device_memory_part : float
        So much of a GPU's memory, between 0 and 1, may hold copies; no effect on the result.
    checkpoint_minutes : float
        Time between two checkpoints.
    curve_path, events_path : path-like, optional
        Learning curve (PNG) and TensorBoard events, see `haemex.monitoring.TrainingMonitor`.

    Raises
    ------
    InputError
        A leak (see `refuse_leaks`), a damaged input, a loss that is no longer finite, a GPU that fails or is full, or
        the training was told to stop. The last checkpoint is kept.
    """
    patients, validation = list(patients), list(validation)
    if not patients:
        raise InputError("there is no patient to train on", "widen the eligibility or the training period")
    refuse_leaks(patients, validation, digests)
    copies = TrainingCopies(patients, augment_folder, memory_gb)
    with (
        locked(Path(checkpoint_path).with_suffix(".lock"), f"the training {purpose}", TAKE_OVER_S),
        computing(training["threads"], training["deterministic"]) as device,
        _failures_of_the_device(),
    ):
        model = initial_network(network, seed, purpose)
        precision = training_precision(training["precision"], device, model.depths(copies.grid[0]))
        announce(f"{purpose}: {len(patients)} patients, {len(copies)} copies, on {device_name(device)} in {precision}")
        settings = settings_digest(
            {
                "patients": patients,
                "validation": validation,
                "labels": [labels[patient] for patient in patients + validation],
                "network": network,
                "training": training,
                "precision": precision,
                "seed": seed,
                "purpose": purpose,
                "device": device_name(device),
                "torch": torch.__version__,
                "inputs": _input_records(patients, augment_folder, validation, scan_folder),
                "code": _code_record(),
            }
        )
        run = _Run(
            model=place(model, device, training["channels_last"], precision),
            checkpoint=Checkpoint(checkpoint_path, settings, purpose, 60 * checkpoint_minutes),
            feeder=Feeder(copies, labels, device, _room_bytes(device, device_memory_part)),
            training=training,
            precision=precision,
            seed=seed,
            purpose=purpose,
        )
        monitor = TrainingMonitor(purpose, training["epochs"], curve_path, events_path) if curve_path else None
        predictions = None
        with run.until_told_to_stop():
            for epoch in run.epochs():
                start, whole = time.monotonic(), run.step == 0
                run.train_epoch(epoch)
                last = epoch == training["epochs"]
                if last:  # a large validation takes long, and can be repeated
                    run.write_checkpoint()
                if validation and (last or epoch % max(1, training["epochs"] // 10) == 0):
                    predictions = _validate(run.model, validation, scan_folder, device, precision)
                    _add_validation(run.history[-1], predictions, labels)
                if not last and run.checkpoint.due():
                    run.write_checkpoint()
                with _unwatched_if_need_be(purpose):
                    write_table(history_path, run.history, HISTORY_COLUMNS)
                    if monitor:
                        monitor.epoch(run.history, time.monotonic() - start if whole else None)
            if validation and predictions is None:  # taken up again after the last epoch
                predictions = _validate(run.model, validation, scan_folder, device, precision)
                _add_validation(run.history[-1], predictions, labels)
        with _unwatched_if_need_be(purpose):
            if monitor:
                monitor.end(run.history)
        if validation:
            write_table(predictions_path, predictions, PREDICTION_COLUMNS)
        write_atomically(weights_path, safetensors.torch.save(_tensors(run.model)))
        write_table(
            roles_path,
            [{"patient": patient, "copy": copy, "role": "train"} for patient, copy in copies.index]
            + [{"patient": patient, "copy": "scan", "role": "validation"} for patient in validation],
            ROLE_COLUMNS,
        )
        write_table(history_path, run.history, HISTORY_COLUMNS)
        run.checkpoint.remove()


class _Run:
    """One training under way: what changes with every step, and how it is taken up again.

    The state between two steps is: weights, moments and loss scale (tensors); the finished epochs' history, and of the
    present epoch its number, the steps taken and the sums of their losses. The order of the copies is a function of the
    epoch alone and no layer draws random numbers, so no generator has a state to keep.
    """

    def __init__(self, *, model, checkpoint, feeder, training, precision, seed, purpose):
        self.model, self.checkpoint, self.feeder = model, checkpoint, feeder
        self.training, self.precision, self.seed, self.purpose = training, precision, seed, purpose
        self.forward = torch.compile(model) if training["compile"] else model
        self.optimiser = Adam(model, scaled=precision == "fp16")
        self.history, self.step, self.seen, self.sums = [], 0, 0, np.zeros(3)
        self.told_to_stop = None
        self._take_up()
        self.steps_per_epoch = math.ceil(len(feeder.copies) / training["batch_size"])
        self.progress = Progress(purpose, training["epochs"] * self.steps_per_epoch)
        self._waiting = []
        self._clock = time.monotonic(), self._steps_done()

    def epochs(self):
        """Go through the epochs that are left."""
        return range(len(self.history) + 1, self.training["epochs"] + 1)

    def train_epoch(self, epoch):
        """Train on every copy once, or on what is left of them; a row of history is added."""
        rate = learning_rate_of(
            epoch, self.training["learning_rate"], self.training["rate_milestones"], self.training["rate_factor"]
        )
        size, device = self.training["batch_size"], self.feeder.device
        order = epoch_order(len(self.feeder.copies), self.seed, self.purpose, epoch)[self.step * size :]
        self.model.train()
        for scans, masks, expansion in self.feeder.batches(order, size):
            with mixed(self.precision, device):
                segmentation, classification = self.forward(scans)
            losses = training_loss(
                segmentation.float(), classification.float(), masks, expansion, self.training["loss_weights"]
            )
            (losses[0] * self.optimiser.scale if self.optimiser.scaled else losses[0]).backward()
            self.optimiser.step(rate)
            self.step += 1
            self._waiting.append((len(scans), torch.stack(losses).detach()))
            if device.type == "cpu" or len(self._waiting) == STEPS_BETWEEN_LOOKS:
                self._look(epoch, rate)
            if self.told_to_stop or (self.checkpoint.due() and self.step < self.steps_per_epoch):
                self._look(epoch, rate)
                self.write_checkpoint()
                if self.told_to_stop:
                    raise InputError(
                        f"stopped by {self.told_to_stop.name} in epoch {epoch}, after step {self.step}",
                        "run the same command again: the training goes on from there",
                    )
        self._look(epoch, rate)
        self._refuse_infinite_weights()
        row = dict(zip(HISTORY_COLUMNS, [epoch, rate, *(self.sums / self.seen).tolist()], strict=False))
        self.history.append({name: row.get(name) for name in HISTORY_COLUMNS})
        self.step, self.seen, self.sums = 0, 0, np.zeros(3)

    @contextlib.contextmanager
    def until_told_to_stop(self):
        """Take SIGTERM and SIGINT as a request to stop after the present step; a second one is not waited for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def told(number, _):
            self.told_to_stop = signal.Signals(number)
            for one, before in handlers.items():
                signal.signal(one, before)

        handlers = {one: signal.signal(one, told) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for one, before in handlers.items():
                signal.signal(one, before)

    def _look(self, epoch, rate):
        """Bring the losses of the last steps to the host, refuse any that are not finite, and report."""
        if not self._waiting:
            return
        sizes, losses = zip(*self._waiting, strict=True)
        for size, values in zip(sizes, torch.stack(losses).tolist(), strict=True):
            if not np.isfinite(values).all():
                raise self._diverged(
                    f"the loss is {values[0]} in epoch {epoch} at learning rate {rate} (Dice loss {values[1]}, "
                    f"cross-entropy {values[2]})"
                )
            self.sums, self.seen = self.sums + size * np.array(values), self.seen + size
        self._waiting.clear()
        self.progress.step(self._steps_done(), self._note(epoch))

    def _note(self, epoch):
        """Say how the present epoch goes: means over its copies so far, the last validation, and the speed."""
        loss, dice_loss, _ = self.sums / self.seen
        said = f"epoch {epoch} of {self.training['epochs']}, loss {loss:.4f}, Dice {1 - dice_loss:.3f}"
        validated = [row for row in self.history if row["val_dice_median"] is not None]
        if validated:
            said += f" (validation {validated[-1]['val_dice_median']:.3f}"
            said += f", AUC {validated[-1]['val_auc']:.3f})" if validated[-1]["val_auc"] is not None else ")"
        start, steps_before = self._clock
        speed = (self._steps_done() - steps_before) / max(time.monotonic() - start, 1e-9)
        return f"{said}, {speed:.3g} steps/s"

    def _steps_done(self):
        return len(self.history) * self.steps_per_epoch + self.step

    def write_checkpoint(self):
        """Write all that is needed to go on from here."""
        self._refuse_infinite_weights()  # else they would take the place of the last good ones
        tensors = {f"model.{name}": tensor for name, tensor in _tensors(self.model).items()}
        state = self.optimiser.state()
        tensors |= {f"adam.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        position = {"history": self.history, "step": self.step, "seen": self.seen, "sums": self.sums.tolist()}
        self.checkpoint.write(tensors, position)

    def _take_up(self):
        """Load the checkpoint of exactly this training, if there is one."""
        found = self.checkpoint.read()
        if found is None:
            return
        tensors, position = found
        parts = {"model.": {}, "adam.": {}}
        for name, tensor in tensors.items():
            prefix = next(prefix for prefix in parts if name.startswith(prefix))
            parts[prefix][name.removeprefix(prefix)] = tensor
        self.model.load_state_dict(parts["model."])
        self.optimiser.load(parts["adam."])
        self.history, self.step, self.seen = position["history"], position["step"], position["seen"]
        self.sums = np.array(position["sums"])
        within = f", step {self.step} of the next" if self.step else ""
        announce(f"{self.purpose}: going on after epoch {len(self.history)}{within}")

    def _refuse_infinite_weights(self):
        if not torch.stack([parameter.isfinite().all() for parameter in self.optimiser.parameters]).all():
            raise self._diverged(
                f"weights are no longer finite after {len(self.history)} epochs and {self.step} steps at a learning "
                f"rate that began at {self.training['learning_rate']}"
            )

    def _diverged(self, problem):
        kept = "; the last good checkpoint is kept" if self.checkpoint.path.exists() else ""
        return InputError(problem, f"lower training.learning_rate{kept}")


@contextlib.contextmanager
def _unwatched_if_need_be(purpose):
    """Go on where a picture of the training cannot be written: a full disk may be mended before the weights are."""
    try:
        yield
    except OSError as error:
        announce(f"{purpose}: its learning curve cannot be written ({error}); the training goes on")


@contextlib.contextmanager
def _failures_of_the_device():
    """Turn what a GPU or its memory does into one sentence."""
    again = "run the same command again: the training goes on from its last checkpoint"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU's memory is full ({str(error).splitlines()[0]})",
            "free the GPU, or set a smaller computing.device_memory_part or training.batch_size, or training.precision "
            f"to auto; then {again}",
        ) from error
    except torch.AcceleratorError as error:
        raise InputError(
            f"the GPU failed ({str(error).splitlines()[0]})", f"look after the GPU, then {again}"
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise InputError(
            "the memory is full", f"set a smaller computing.memory_gb or run fewer jobs side by side, then {again}"
        ) from error


def _room_bytes(device, part):
    """How much of a GPU's memory may hold copies."""
    return int(part * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0


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


def _validate(model, validation, scan_folder, device, precision):
    """Predict unaugmented scans; Dice and volume on the network's grid."""
    rows = []
    for patient in validation:
        ct, reference, affine = read_scan(scan_folder, patient)
        logit, haematoma = predict_scan(model, ct, device, precision)
        predicted = haematoma > 0.5
        if not math.isfinite(logit):
            raise InputError(f"the network's output is {logit} for patient {patient}", "lower training.learning_rate")
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
    cases, controls = logits[expansion == 1], logits[expansion == 0]
    if len(cases) and len(controls):  # counted by pairs; haemex.statistics changes more often than trainings should
        pairs = cases[:, None] - controls
        row["val_auc"] = ((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2).item()
    row["val_bce"] = expansion_loss(logits, expansion).item()


def _tensors(model):
    """Weights and running statistics on the CPU, in PyTorch's plain memory layout."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


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
    modules = ("dataset", "feeding", "losses", "network", "segmentation_metrics", "training")
    return [zlib.crc32((Path(__file__).parent / f"{module}.py").read_bytes()) for module in modules]
