"""Measure training, reading and prediction beside plain PyTorch, MONAI and the limits of the device.

    python benchmarks/training.py --out OUT

It takes the GPU if there is one; else the CPU with smaller volumes, so that it ends within minutes. MONAI is no part of
haemex: with `pip install monai` its rows are filled. OUT gets `training.tsv`, a row per number, and `training.json`
with every round besides. Competitors take turns (A B C A B C ...), since machines wander; ratios are taken within each
round, and medians over the rounds are shown.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import yaml
from isal import isal_zlib
from safetensors.torch import load_file, save_file
from torch import nn

from haemex.checkpoint import Checkpoint
from haemex.dataset import TrainingCopies
from haemex.feeding import Feeder
from haemex.files import write_json
from haemex.logs import duration
from haemex.losses import training_loss
from haemex.network import (
    TwoOutputUNet,
    computing,
    inference_precision,
    initial_network,
    mixed,
    place,
    predict_scan,
    training_precision,
)
from haemex.nifti import read_volume, write_volume
from haemex.segmentation_metrics import dice
from haemex.tables import write_table
from haemex.training import Adam, _Run

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
PAPER_PATIENTS = 189  # the training cohort; copies, epochs and the grid stand in the config
SMALL_GRID = (16, 48, 48)  # z, y, x: the loops on a CPU
DEFAULTS = {"cuda": {"steps": 32, "minutes": 2.0}, "cpu": {"steps": 2, "minutes": 2.0}}
LEAST_ROUNDS, MOST_ROUNDS = 3, 30
BACKWARD = 3  # forward and backward together do three times the multiply-adds of forward alone
MATRIX, COPY_BYTES = {"cuda": 8192, "cpu": 2048}, {"cuda": 2**31, "cpu": 2**28}
# An RTX 2080 Ti: 11 GiB, of which its driver and CUDA take up to one.
CARD_BYTES, CARD_USABLE_BYTES = 11 * 2**30, 10 * 2**30
PREDICTIONS, LOADER_PASSES, CODEC_PASSES = 3, 3, 5
FINAL, SCAN = "final training of the paper's scale", "one scan, process start included"
PLAIN, USUAL, MIXED, TUNED = "plain PyTorch, fp32", "MONAI, fp32", "MONAI, mixed", "MONAI, mixed, tuned"
MONAI = (USUAL, MIXED, TUNED)
OURS, FASTER, COMPILED = "haemex (default)", "haemex, not deterministic", "haemex, compiled, not deterministic"
LOOP_COLUMNS = {
    "steps/s": "steps per second",
    "x plain": f"times {PLAIN}",
    "x MONAI *": f"times {USUAL}, per multiply-add",
    "x mixed *": f"times {MIXED}, per multiply-add",
    "x tuned *": f"times {TUNED}, per multiply-add",
    "of matrix": "part of the matrix ceiling",
    "of copy": "part of the copy ceiling",
    "paper, min": FINAL,
}
ALL_OURS = {
    OURS: {},
    FASTER: {"deterministic": False},
    "haemex, fp32": {"precision": "fp32"},
    "haemex, compiled": {"compile": True},
    COMPILED: {"compile": True, "deterministic": False},
}
PARTS, SETTINGS = ("loops", "memory", "inference"), ("grid", "scan", "steps", "minutes", "compile", "threads", "parts")
NO_MONAI = "MONAI is not installed: pip install monai"


class Report:
    """All that was measured: a row per number, shown as it comes."""

    def __init__(self):
        self.rows = []

    def add(self, part, subject, measure, value, unit="", note="", quiet=False):
        """Add one number, and show it unless a table will; None where there is none, the note says why."""
        keys = ("part", "subject", "measure", "value", "unit", "note")
        self.rows.append(dict(zip(keys, (part, subject, measure, value, unit, note), strict=True)))
        if not quiet:
            print(f"  {subject:38s} {measure:28s} {shown(value):>8s} {unit:8s} {note}".rstrip(), flush=True)

    def table(self, part, measures):
        """Print subjects by measures: `measures` gives each column's title and the measure it shows."""
        subjects = dict.fromkeys(row["subject"] for row in self.rows if row["part"] == part)
        print("\n" + f"{part:38s}" + "".join(f"{title:>12s}" for title in measures))
        for subject in subjects:
            values = [shown(self.value(part, subject, measure)) for measure in measures.values()]
            print(f"{subject:38s}" + "".join(f"{value:>12s}" for value in values))
        print(flush=True)

    def value(self, part, subject, measure):
        """Look a number up; None if it was not measured."""
        found = [
            row["value"]
            for row in self.rows
            if (row["part"], row["subject"], row["measure"]) == (part, subject, measure)
        ]
        return found[-1] if found else None

    @contextlib.contextmanager
    def trying(self, part, subject):
        """Go on with the rest where one competitor or part fails; a row says why."""
        try:
            yield
        except Exception as error:
            why = (str(error).splitlines() or [""])[0]
            self.add(part, subject, "failed", None, note=f"{type(error).__name__}: {why}"[:200])


def shown(value):
    """Show a number with three digits, a missing one as a dash."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# The images ----------------------------------------------------------------------------------------------------------


def synthetic_scan(grid, field_of_view_mm, seed=0):
    """Make a noisy brain with a haematoma as `resample` leaves it: CT and mask (z, y, x), affine."""
    from scipy import ndimage

    from haemex.resample import normalise

    rng = np.random.default_rng(seed)
    voxel_mm = np.array(field_of_view_mm[::-1]) / grid
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(grid, voxel_mm, strict=True)), indexing="ij"
    )
    brain = (z / 65) ** 2 + (y / 85) ** 2 + (x / 68) ** 2 < 1
    ventricles = ((z - 10) / 15) ** 2 + ((y - 5) / 25) ** 2 + (x / 9) ** 2 < 1
    haematoma = ((z - 5) / 18) ** 2 + (y / 22) ** 2 + ((x - 28) / 15) ** 2 < 1
    tissue = ndimage.gaussian_filter(rng.normal(size=grid), 4 / voxel_mm)
    hu = np.select([haematoma, ventricles], [65.0, 8.0], 32 + 4 * tissue / tissue.std())
    hu += ndimage.gaussian_filter(rng.normal(0, 9, grid), 0.4 / voxel_mm)  # photon noise behind a soft kernel
    ct, _, _ = normalise(hu, brain, (0, 100))
    return ct, (haematoma & brain).astype(np.uint8), np.diag([*-voxel_mm[:0:-1], voxel_mm[0], 1.0])


def make_copies(folder, grid, config, copies):
    """Write a scan of one patient "one" and its augmented copies, as the stages `resample` and `augment` do."""
    from haemex.augment import augment_patient
    from haemex.resample import CT_SLOPE

    ct, haematoma, affine = synthetic_scan(grid, config["resample"]["field_of_view_mm"])
    scan, augmented = folder / "resample", folder / "augment"
    for each in (scan, augmented):
        each.mkdir(parents=True)
    write_volume(scan / "one_ct.nii.gz", ct, affine, slope=CT_SLOPE)
    write_volume(scan / "one_haematoma.nii.gz", haematoma, affine)
    names = ("one_ct.nii.gz", "one_haematoma.nii.gz")
    augment_patient(
        *(scan / name for name in names),
        *(augmented / name for name in names),
        augmented / "one.json",
        **{**config["augment"], "copies": copies},
        seed=config["seed"],
        patient="one",
    )


# The work of a network -----------------------------------------------------------------------------------------------


def count_work(model, grid):
    """Count the multiply-adds of one forward pass, and the numbers that its layers read and write.

    Convolutions and linear layers multiply; every layer is taken to read its input and write its output once. Joining
    and adding between the layers is left out. Nothing is computed: the model comes from the meta device.
    """
    multiply_adds = moved = 0

    def look(module, inputs, output):
        nonlocal multiply_adds, moved
        moved += inputs[0].numel() + output.numel()
        if isinstance(module, nn.ConvTranspose3d):  # each input number meets the kernels of all outputs
            multiply_adds += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, (nn.Conv3d, nn.Linear)):
            multiply_adds += output.numel() * module.weight[0].numel()

    hooks = [layer.register_forward_hook(look) for layer in model.modules() if not any(layer.children())]
    with torch.no_grad():
        model(torch.empty(1, 1, *grid, device="meta"))
    for hook in hooks:
        hook.remove()
    return multiply_adds, moved


def monai_network():
    """MONAI's U-Net with the levels of ours: 16, 32, 64 channels, two halvings, 128 on the coarsest grid, no halving.

    Four convolutions in each residual unit of its encoder, as ours; its decoder has two per level by design. No
    classification.
    """
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(16, 32, 64, 128), strides=(1, 2, 2), num_res_units=4,
        norm="batch",
    )  # fmt: skip


# The loops -----------------------------------------------------------------------------------------------------------


class OurLoop:
    """The training loop of haemex on the copies of a folder; a round is an epoch."""

    def __init__(self, folder, config, changes, device, threads, scratch, room_bytes):
        self.training = {**config["training"], "threads": threads, "batch_size": 1, **changes}
        copies = TrainingCopies(["one"], folder / "augment", config["computing"]["memory_gb"])
        with computing(threads, self.training["deterministic"]):
            model = initial_network(config["network"], config["seed"], "benchmark")
            self.precision = training_precision(self.training["precision"], device, model.depths(copies.grid[0]))
            self.run = _Run(
                model=place(model, device, self.training["channels_last"], self.precision),
                checkpoint=Checkpoint(
                    Path(tempfile.mkdtemp(dir=scratch)) / "checkpoint.safetensors",
                    "benchmark",
                    "benchmark",
                    60 * config["computing"]["checkpoint_minutes"],
                ),
                feeder=Feeder(copies, {"one": 1}, device, room_bytes),
                training=self.training,
                precision=self.precision,
                seed=config["seed"],
                purpose="benchmark",
            )
        self.run.progress.every_s = float("inf")  # the benchmark tells its own progress
        self.steps = len(copies)

    def round(self):
        """Take a step with each copy."""
        with computing(self.training["threads"], self.training["deterministic"]):
            self.run.train_epoch(len(self.run.history) + 1)


class PlainLoop:
    """A loop as people write it: `torch.optim.Adam`, the loss brought back in every step.

    Its images lie ready in (page-locked) memory as float32, so reading costs it nothing; `tuned` has them on the
    device, channels last, and cuDNN choose its algorithms by timing them.
    """

    def __init__(self, model, loss, batches, device, threads, precision="fp32", tuned=False):
        self.loss, self.device, self.threads, self.precision, self.tuned = loss, device, threads, precision, tuned
        self.model = model.to(device)
        if tuned:
            self.model = self.model.to(memory_format=torch.channels_last_3d)
            batches = [[tensor.to(device) for tensor in batch] for batch in batches]
        elif device.type == "cuda":
            batches = [[tensor.pin_memory() for tensor in batch] for batch in batches]
        self.batches, self.steps = batches, len(batches)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def round(self):
        """Take a step with each copy."""
        with computing(self.threads, deterministic=False) if self.tuned else contextlib.nullcontext():
            self.model.train()
            total = 0.0
            for batch in self.batches:
                scans, masks, expansion = (tensor.to(self.device, non_blocking=True) for tensor in batch)
                self.optimiser.zero_grad()
                with mixed(self.precision, self.device):
                    outputs = self.model(scans)
                loss = self.loss(outputs, masks, expansion)
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimiser)
                self.scaler.update()
                total += loss.item()


def two_losses(weights, outputs, masks, expansion):
    """Both losses of haemex."""
    segmentation, classification = (output.float() for output in outputs)
    return training_loss(segmentation, classification, masks, expansion, weights)[0]


def dice_alone(loss, outputs, masks, _):
    """MONAI's Dice loss."""
    return loss(outputs.float(), masks)


def loop_makers(folder, config, device, threads, scratch, compiled):
    """Say how each competitor is made, by name; a text stands for one that cannot be measured here."""
    room = int(config["computing"]["device_memory_part"] * total_memory(device))
    copies = TrainingCopies(["one"], folder / "augment", 0)
    feeder = Feeder(copies, {"one": 1}, torch.device("cpu"))
    batches = list(feeder.batches(range(len(copies)), 1))

    def ours(changes, room_bytes=room):
        return functools.partial(OurLoop, folder, config, changes, device, threads, scratch, room_bytes)

    def plain(make, loss, **how):
        return lambda: PlainLoop(make(), loss, batches, device, threads, **how)

    makers = {
        name: ours(changes) if compiled or not changes.get("compile") else "left out: --compile tries it"
        for name, changes in ALL_OURS.items()
    }
    if device.type == "cuda":
        unkept = {**config, "computing": {**config["computing"], "memory_gb": 0}}
        makers["haemex, every copy read anew"] = functools.partial(
            OurLoop, folder, unkept, {}, device, threads, scratch, 0
        )
    makers[PLAIN] = plain(
        lambda: initial_network(config["network"], config["seed"], "benchmark"),
        functools.partial(two_losses, config["training"]["loss_weights"]),
    )
    try:
        from monai.losses import DiceLoss
    except ImportError:
        return makers | dict.fromkeys(MONAI, NO_MONAI)
    with torch.device("meta"):
        depths = TwoOutputUNet(**config["network"]).depths(batches[0][0].shape[2])
    precision = training_precision(config["training"]["precision"], device, depths)
    loss = functools.partial(dice_alone, DiceLoss(sigmoid=True))
    makers[USUAL] = plain(monai_network, loss)
    makers[MIXED] = plain(monai_network, loss, precision=precision)
    makers[TUNED] = plain(monai_network, loss, precision=precision, tuned=True)
    return makers


def total_memory(device):
    """Bytes of a GPU's memory; 0 for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def timed(work, device):
    """Seconds of some work, until the device has finished it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def ceiling_works(device):
    """Say how each ceiling is measured: by name the work, how much of it (TFLOP or GB), and the unit."""
    size = MATRIX[device.type]

    def product(dtype, precision="highest"):
        one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

        def work():
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            for _ in range(repeats):
                torch.mm(one, two)
            torch.set_float32_matmul_precision(before)

        return work, repeats * 2 * size**3 / 1e12, "TFLOP/s"

    repeats = 10 if device.type == "cuda" else 1
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    works = {"fp32": product(torch.float32), "bf16": product(torch.bfloat16)}
    if device.type == "cuda":
        works |= {"tf32": product(torch.float32, "high"), "fp16": product(torch.float16)}
    works["copy"] = (lambda: target.copy_(source), 2 * COPY_BYTES[device.type] / 1e9, "GB/s")  # read and written
    return works


def matrix_ceiling_of(precision, device):
    """Name the ceiling of a loop: PyTorch lets GPUs from Ampere on compute the convolutions of fp32 in TF32."""
    tf32 = precision == "fp32" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "tf32" if tf32 else precision


def measure_loops(report, makers, device, minutes, rounds):
    """Warm every loop up, then let loops and ceilings take turns.

    Adds to `rounds` the seconds of each loop and the rate of each ceiling; returns the loops that did not fail.
    """
    loops, ceilings = {}, ceiling_works(device)
    for name, make in makers.items():
        if isinstance(make, str):
            report.add("loops", name, "steps per second", None, note=make)
            continue
        with report.trying("loops", name):
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            loop = make()
            timed(loop.round, device)
            loops[name] = loop
            report.add("loops", name, "warm-up", time.perf_counter() - start, "s", f"{loop.steps} steps, not counted")
            if device.type == "cuda":
                peak = (torch.cuda.max_memory_allocated() - before) / 1e9
                report.add("memory", name, "GPU memory, peak", peak, "GB", f"with {loop.steps} copies")
    for work, _, _ in ceilings.values():
        work()
    end = time.monotonic() + 60 * minutes
    while loops and len(rounds) < MOST_ROUNDS and (len(rounds) < LEAST_ROUNDS or time.monotonic() < end):
        one = {name: amount / timed(work, device) for name, (work, amount, _) in ceilings.items()}
        for name, loop in list(loops.items()):
            with report.trying("loops", name):
                one[name] = timed(loop.round, device)
            if name not in one:
                del loops[name]
        rounds.append(one)
        speeds = ", ".join(shown(loop.steps / one[name]) for name, loop in loops.items())
        left = max(0.0, end - time.monotonic())
        print(f"  round {len(rounds)}: {speeds} steps/s; at most {duration(left)} left", flush=True)
    for name, (_, _, unit) in ceilings.items() if rounds else ():
        what = "memory copy" if name == "copy" else f"matrix product, {name}"
        report.add("ceilings", what, "rate", median(one[name] for one in rounds), unit)
    return loops


def report_loops(report, loops, rounds, device, grid, config):
    """Report speeds, ratios and parts of the ceilings: medians over the rounds."""
    with torch.device("meta"):
        works = {"haemex": count_work(TwoOutputUNet(**config["network"]), grid)}
        if any(name in loops for name in MONAI):
            works["MONAI"] = count_work(monai_network(), grid)
    for name, (multiply_adds, moved) in works.items():
        report.add("work", name, "multiply-adds forward", multiply_adds / 1e9, "G", "3 times that with the way back")
        report.add("work", name, "numbers its layers move", moved / 1e9, "G", "each layer reads and writes once")
    for name, loop in loops.items():
        multiply_adds, moved = works["MONAI" if name in MONAI else "haemex"]
        seconds = np.array([one[name] for one in rounds]) / loop.steps
        add = functools.partial(report.add, "loops", name, quiet=True)
        add("steps per second", median(1 / seconds), "1/s", f"{shown(1 / seconds.max())} to {shown(1 / seconds.min())}")
        add("multiply-adds per second", median(BACKWARD * multiply_adds / seconds) / 1e12, "T/s", loop.precision)
        ceiling = matrix_ceiling_of(loop.precision, device)
        tflop_per_s, gb_per_s = (np.array([one[key] for one in rounds]) for key in (ceiling, "copy"))
        add(
            "part of the matrix ceiling",
            median(2 * BACKWARD * multiply_adds / 1e12 / seconds / tflop_per_s),
            "",
            ceiling,
        )
        moved_gb = BACKWARD * moved * (4 if loop.precision == "fp32" else 2) / 1e9
        add("part of the copy ceiling", median(moved_gb / seconds / gb_per_s))
        if isinstance(loop, OurLoop):
            for other in (PLAIN, *MONAI):
                if other in loops:
                    ratio = np.array([one[other] for one in rounds]) / loops[other].steps / seconds
                    work = multiply_adds / works["MONAI"][0] if other in MONAI else 1
                    add(versus(other), work * median(ratio))


def versus(other):
    """Name the measure that compares a loop with another one."""
    return f"times {other}" + (", per multiply-add" if other in MONAI else "")


def median(values):
    """Return the median of numbers, as a plain one."""
    return float(np.median(list(values)))


def projected_s(steps_per_epoch, epochs, speed, copies_per_s, kept):
    """Project the time of a training: copies that are kept on the device are read in the first epoch only.

    Parameters
    ----------
    steps_per_epoch, epochs : int
    speed : float
        Steps per second, copies at hand.
    copies_per_s : float
        Of the loader; a step takes one.
    kept : bool
        Whether the device has room for all copies.
    """
    reading = steps_per_epoch / min(speed, copies_per_s)
    return reading + (epochs - 1) * (steps_per_epoch / speed if kept else reading)


def report_projections(report, loops, config, options, copies_per_s, copy_bytes, memory_bytes):
    """Report how long one final training of the paper's scale takes, and what it asks of the loader."""
    copies, epochs = PAPER_PATIENTS * config["augment"]["copies"], config["training"]["epochs"]
    with torch.device("meta"):
        model = TwoOutputUNet(**config["network"])
    scale = count_work(model, options.grid)[0] / count_work(model, options.scan)[0]
    note = "" if scale == 1 else f"scaled to {shown(1 / scale)} times the multiply-adds"
    kept = copies * copy_bytes <= config["computing"]["device_memory_part"] * memory_bytes
    what = f"{copies * epochs} steps; copies {'kept on the GPU' if kept else 'read anew in every epoch'}; {note}"
    for name in [name for name in loops if name in ALL_OURS]:
        speed = scale * report.value("loops", name, "steps per second")
        minutes = projected_s(copies, epochs, speed, copies_per_s, kept) / 60
        report.add("loops", name, FINAL, minutes, "min", what.rstrip("; "), quiet=True)
        report.add("loader", name, "copies needed", speed, "1/s", note)
        report.add("loader", name, "delivered / needed", copies_per_s / speed)


# Reading -------------------------------------------------------------------------------------------------------------


def measure_loader(report, folder):
    """Measure how many copies a second come from the files; return it and the bytes of one."""
    copies = TrainingCopies(["one"], folder / "augment", 0)
    order = np.random.default_rng(0).permutation(len(copies))
    rates = []
    for _ in range(LOADER_PASSES):
        start = time.perf_counter()
        size = sum(sum(volume.nbytes for volume in volumes) for volumes in copies.read_ahead(order))
        rates.append(len(copies) / (time.perf_counter() - start))
    size /= len(copies)
    report.add(
        "loader", "TrainingCopies.read_ahead", "copies per second", median(rates), "1/s", "files in the page cache"
    )
    report.add("loader", "TrainingCopies.read_ahead", "one copy, unpacked", size / 1e6, "MB", "CT int16 and mask uint8")
    return median(rates), size


def measure_compression(report, folder):
    """Measure time and size of one copy's CT with zlib and ISA-L."""
    ct, _ = TrainingCopies(["one"], folder / "augment", 0).read(0)
    data = ct.tobytes()
    codecs = {f"zlib, level {level}": (zlib, level) for level in (1, 6)}
    codecs |= {f"ISA-L, level {level}": (isal_zlib, level) for level in range(4)}
    sizes, seconds = {}, {name: ([], []) for name in codecs}
    for _ in range(CODEC_PASSES):
        for name, (codec, level) in codecs.items():
            start = time.perf_counter()
            packed = codec.compress(data, level=level, wbits=31)
            middle = time.perf_counter()
            unpacked = codec.decompress(packed, wbits=31, bufsize=len(data))
            end = time.perf_counter()
            if unpacked != data:
                raise ValueError(f"{name} does not give back what went in")
            sizes[name] = len(packed)
            seconds[name][0].append(middle - start)
            seconds[name][1].append(end - middle)
    for name, (pack, unpack) in seconds.items():
        add = functools.partial(report.add, "compression", name, quiet=True)
        add("compress", 1e3 * median(pack), "ms", f"{len(data) / 1e6:.3g} MB of int16")
        add("decompress", 1e3 * median(unpack), "ms")
        add("size", sizes[name] / 1e6, "MB")
    report.table("compression", {"pack, ms": "compress", "unpack, ms": "decompress", "MB": "size"})


# In processes of their own -------------------------------------------------------------------------------------------


def child(what, job, hidden_gpu=False):
    """Run a function of this file in a new process; return its result and the seconds from its start to its end."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if hidden_gpu else {})}
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", what, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1]), seconds


def peak_rss_gb():
    """Most memory this process ever held."""
    with contextlib.suppress(OSError, StopIteration):  # Linux lets a child inherit the peak that `getrusage` tells
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def train_child(job):
    """Train at the paper's grid; on a GPU with no more memory than an 11 GB card has, and in that card's precision."""
    device, config = torch.device(job["device"]), job["config"]
    changes, ballast = {}, None
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_USABLE_BYTES / total_memory(device)))
        kept = int(config["computing"]["device_memory_part"] * CARD_BYTES)
        ballast = torch.empty(kept, dtype=torch.uint8, device=device)  # stands for the copies that such a card keeps
        changes = {"precision": "fp16"}
    with tempfile.TemporaryDirectory() as scratch:
        loop = OurLoop(Path(job["folder"]), config, changes, device, job["threads"], scratch, 0)
        seconds = [timed(loop.round, device) for _ in range(3 if ballast is not None else 1)]
    peak = torch.cuda.max_memory_allocated() / 1e9 if ballast is not None else peak_rss_gb()
    return {"peak_gb": peak, "seconds": seconds[-1], "precision": loop.precision}


def measure_memory(report, folder, device, threads, config):
    """Measure the memory of the paper's setting, and whether 11 GB are enough."""
    add = functools.partial(report.add, "memory", "haemex, the paper's grid")
    try:
        job = {"folder": str(folder), "device": device.type, "threads": threads, "config": config}
        found, _ = child("train", job)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        add("fits 11 GB", "no", note=str(error)[:200])
        return
    if device.type == "cuda":
        add("peak on 11 GB", found["peak_gb"], "GB", f"{found['precision']}, copies kept as on such a card included")
        add("fits 11 GB", "yes", note=f"ran with {CARD_USABLE_BYTES / 2**30:.0f} GiB at hand")
        return
    needed = found["peak_gb"] + config["computing"]["memory_gb"]
    add("peak of the process", found["peak_gb"], "GB", f"one step, {found['precision']}, {shown(found['seconds'])} s")
    add("fits 11 GB", "yes" if needed <= 11 else "no", note=f"{shown(needed)} GB with computing.memory_gb of copies")


def predict_child(job):
    """Load a model and a scan, and predict it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    with computing(job["threads"], deterministic=True) as device:
        model = TwoOutputUNet(**job["network"])
        model.load_state_dict(load_file(job["weights"]))
        ct, _ = read_volume(job["scan"])
        logit, haematoma = predict_scan(place(model, device), ct, device, job["precision"])
    np.save(job["out"], haematoma)
    return {"logit": logit, "peak_gb": peak_rss_gb(), "device": device.type}


CHILDREN = {"train": train_child, "predict": predict_child}


def network_that_segments(scan_folder, config):
    """Train on one small piece at the rim of the haematoma: masks of an untrained network say nothing."""
    ct, _ = read_volume(scan_folder / "one_ct.nii.gz")
    mask, _ = read_volume(scan_folder / "one_haematoma.nii.gz")
    inside = np.argwhere(mask)
    rim = np.array([*inside.mean(0)[:2].astype(int), inside[:, 2].max()])
    size = np.minimum((16, 32, 32), mask.shape)
    first = np.clip(rim - size // 2, 0, mask.shape - size)
    piece = tuple(slice(start, start + length) for start, length in zip(first, size, strict=True))
    scans, masks = (torch.from_numpy(np.ascontiguousarray(volume[piece]))[None, None] for volume in (ct, mask))
    model = initial_network(config["network"], config["seed"], "benchmark")
    optimiser = Adam(model.train())
    for _ in range(30):
        losses = training_loss(*model(scans.float()), masks, torch.ones(1), config["training"]["loss_weights"])
        losses[0].backward()
        optimiser.step(3e-3)
    return model


def measure_inference(report, scan_folder, scratch, config, device, threads):
    """Measure one scan in a process of its own, in both precisions, and how well they agree."""
    weights = Path(scratch) / "segments.safetensors"
    save_file(network_that_segments(scan_folder, config).state_dict(), weights)
    truth, _ = read_volume(scan_folder / "one_haematoma.nii.gz")
    cores = {f"{number} CPU cores": (number, True) for number in dict.fromkeys((min(2, threads), threads))}
    places = cores | ({"GPU": (threads, False)} if device.type == "cuda" else {})
    precisions, seconds, found = ("fp32", "bf16"), {}, {}
    for _ in range(PREDICTIONS):
        for where, precision in itertools.product(places, precisions):
            number, hidden_gpu = places[where]
            out = Path(scratch) / "haematoma.npy"
            job = {"weights": str(weights), "scan": str(scan_folder / "one_ct.nii.gz"), "out": str(out)}
            job |= {"threads": number, "precision": precision, "network": config["network"]}
            result, taken = child("predict", job, hidden_gpu)
            seconds.setdefault((where, precision), []).append(taken)
            found[where, precision] = result | {"haematoma": np.load(out)}
            print(f"  prediction on {where} in {precision}: {taken:.1f} s", flush=True)
    for where in places:
        usual = inference_precision("auto", torch.device(found[where, "fp32"]["device"]))
        report.add("inference", where, SCAN, median(seconds[where, usual]), "s", f"predict.precision: auto is {usual}")
        for precision in precisions:
            one = found[where, precision]
            add = functools.partial(report.add, "inference", f"{where}, {precision}")
            add(SCAN, median(seconds[where, precision]), "s")
            add("peak of the process", one["peak_gb"], "GB")
            add("Dice to the truth", dice(one["haematoma"] > 0.5, truth > 0), note="30 steps on one piece of this scan")
        exact, rough = (found[where, precision] for precision in precisions)
        away = np.abs(exact["haematoma"] - rough["haematoma"])
        add = functools.partial(report.add, "inference", f"{where}, bf16 against fp32")
        add("expansion logit, difference", abs(exact["logit"] - rough["logit"]), "", f"of {shown(exact['logit'])}")
        add("voxel probability, difference", float(away.mean()), "", f"mean; largest {shown(float(away.max()))}")
        add("Dice of the two masks", dice(exact["haematoma"] > 0.5, rough["haematoma"] > 0.5))


# The bars ------------------------------------------------------------------------------------------------------------


def verdict(value, bar, at_least, here):
    """Say whether a bar is reached: "reached", "missed" or "not measured here"."""
    if value is None or not here:
        return "not measured here"
    return "reached" if (value >= bar if at_least else value <= bar) else "missed"


def judge(report, device_name, cuda):
    """Hold the measurements against the bars, for the settings of the config and for the fastest ones."""
    fastest = max(ALL_OURS, key=lambda name: report.value("loops", name, "steps per second") or 0)
    h200, bars = "H200" in device_name, []

    def bar(what, subject, value, limit, at_least, here):
        row = {"bar": f"{what} {'>=' if at_least else '<='} {limit}", "subject": subject, "value": value}
        bars.append({**row, "verdict": verdict(value, limit, at_least, here)})

    for name in dict.fromkeys((OURS, fastest if cuda else OURS)):
        of = functools.partial(lambda name, measure: report.value("loops", name, measure) if cuda else None, name)
        bar(f"H200: speed / {PLAIN}", name, of(versus(PLAIN)), 2.5, True, h200)
        for other in MONAI:
            value = of(versus(other))
            bar(f"H200: speed per multiply-add / {other}", name, value, 1.3, True, h200)
        bar("H200: final training, min", name, of(FINAL), 25, False, h200)
    for name in dict.fromkeys((OURS, OURS if cuda else fastest)):
        value = None if cuda else report.value("loops", name, versus(PLAIN))
        bar(f"CPU: speed / {PLAIN}", name, value, 1.0, True, not cuda)
    seconds = report.value("inference", "2 CPU cores", SCAN)
    bar("2 CPU cores: one scan, s", "predict.precision: auto", seconds, 20, False, True)
    return bars


# ---------------------------------------------------------------------------------------------------------------------


def machine(device):
    """Describe where this was measured."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    try:
        import monai

        monai_version = monai.__version__
    except ImportError:
        monai_version = None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": cpu,
        "load_average_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "monai": monai_version,
    }


def available_threads():
    """Count the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def arguments(words):
    """Read the command line."""
    config = yaml.safe_load(CONFIG.read_text())
    paper = config["resample"]["matrix"][::-1]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for training.tsv and training.json")
    axes = {"nargs": 3, "type": int, "metavar": ("Z", "Y", "X")}
    parser.add_argument("--grid", **axes, default=paper if kind == "cuda" else SMALL_GRID, help="of the loops")
    parser.add_argument("--scan", **axes, default=paper, help="of everything else; the paper's by default")
    parser.add_argument("--steps", type=int, default=DEFAULTS[kind]["steps"], help="of each loop in one round")
    parser.add_argument("--minutes", type=float, default=DEFAULTS[kind]["minutes"], help="for the rounds of the loops")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=kind == "cuda", help="try compiled networks too"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of all competitors alike; all by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="besides reading; all by default")
    options = parser.parse_args(words)
    options.grid, options.scan = tuple(options.grid), tuple(options.scan)
    for grid in (options.grid, options.scan):
        if any(size < 4 or size % 4 for size in grid) or max(grid) < 8:
            parser.error(f"a grid of {grid}: give multiples of 4, one of them 8 or more")
    options.threads = options.threads or available_threads()
    if options.steps < 1 or not 1 <= options.threads <= available_threads():
        parser.error(f"--steps has to be 1 or more, --threads 1 to {available_threads()}")
    return options, config


def main(words=None):
    """Measure everything and write it down, after each part."""
    options, config = arguments(words)
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first used
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    where, report, rounds = machine(device), Report(), []
    grid, scan = (" x ".join(map(str, size)) for size in (options.grid, options.scan))
    print(f"{where['device']}; {where['cpu']}, {options.threads} threads; load {where['load_average_before']:.1f}")
    print(f"torch {where['torch']}, MONAI {where['monai'] or 'absent'}; loops on {grid} (z, y, x), the rest on {scan}")

    def save():
        settings = {name: getattr(options, name) for name in SETTINGS}
        bars = judge(report, where["device"], device.type == "cuda")
        write_table(options.out / "training.tsv", report.rows)
        content = {"machine": where, "settings": settings, "rows": report.rows, "bars": bars, "rounds": rounds}
        write_json(options.out / "training.json", content)
        return bars

    with tempfile.TemporaryDirectory() as scratch:
        trained, single, full = (Path(scratch) / name for name in ("loops", "single", "full"))
        print("\nreading", flush=True)
        make_copies(full, options.scan, config, config["augment"]["copies"])
        copies_per_s, copy_bytes = measure_loader(report, full)
        measure_compression(report, full)
        save()
        if "loops" in options.parts:
            print("loops: warming up", flush=True)
            make_copies(trained, options.grid, config, options.steps)
            makers = loop_makers(trained, config, device, options.threads, scratch, options.compile)
            loops = measure_loops(report, makers, device, options.minutes, rounds)
            report_loops(report, loops, rounds, device, options.grid, config)
            report_projections(report, loops, config, options, copies_per_s, copy_bytes, total_memory(device))
            report.table("loops", LOOP_COLUMNS)
            print("* per multiply-add. Paper: minutes of one final training of the paper's scale.\n", flush=True)
            if OURS in loops:
                seconds = timed(loops[OURS].run.write_checkpoint, device)
                minutes = config["computing"]["checkpoint_minutes"]
                report.add("checkpoint", OURS, "writing it", seconds, "s", f"once in {minutes:g} minutes")
            del loops, makers
            if device.type == "cuda":
                torch.cuda.empty_cache()
            save()
        make_copies(single, options.scan, config, 1)
        if "memory" in options.parts:
            print("memory", flush=True)
            with report.trying("memory", "haemex, the paper's grid"):
                measure_memory(report, single, device, options.threads, config)
            save()
        if "inference" in options.parts:
            print("inference", flush=True)
            with report.trying("inference", "one scan"):
                measure_inference(report, single / "resample", scratch, config, device, available_threads())
    print()
    for row in save():
        print(f"{row['verdict']:18s} {shown(row['value']):>7s}  {row['bar']}  [{row['subject']}]")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](json.loads(sys.argv[3]))))
    else:
        main()
