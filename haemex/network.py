"""The two-output 3-D U-Net: segments the haematoma and predicts its expansion from the bridge layer.

The paper prints the grid and the channels of every level, the kernels, the two heads and one number, 3,802,578
parameters (supplement, "Model architecture" and "Training process"), but no code. The network here is the residual
U-Net of the printed levels that meets this number exactly. Other designs meet it too: the count does not identify the
authors' network.
"""

import contextlib
import os
import zlib

import numpy as np
import torch
from torch import nn

from haemex.devices import free_device
from haemex.errors import InputError

PAPER_WIDTHS, PAPER_CONVS_PER_LEVEL, PAPER_PARAMETERS = (16, 32, 64, 128), 4, 3_802_578

IN_PLANE_LEVELS = (0, 1, 2)

NORMALISATIONS = {
    "batch": nn.BatchNorm3d,
    # With a scale and a shift of its own, as batch normalisation has, so that the number of parameters is the same.
    "instance": lambda channels: nn.InstanceNorm3d(channels, affine=True),
}


class TwoOutputUNet(nn.Module):
    """Residual U-Net with a segmentation and a classification output.

    Two down-samplings by convolution of stride 2, a bridge on the coarsest grid, two up-samplings by transposed
    convolution; a residual shortcut around every level. The classification head reads the bridge.

    Parameters
    ----------
    widths : sequence of int
        Channels of levels 1, 2, 3 and of the bridge; the paper's are 16, 32, 64, 128. The decoder has the width of
        level 3, then of level 2.
    convs_per_level : int
        3 x 3 x 3 convolutions per level, each with normalisation and ReLU. Not printed in the paper; 4 meets its count.
    normalisation : {"batch", "instance"}
        Not printed in the paper. Instance normalisation takes every scan's own level out of each channel, right before
        the pooling of the classification head too: what a scan's mean intensity says about expansion is lost with it.
    in_plane_levels : {0, 1, 2}
        A 2.5-D network for thick slices, not of the paper: on so many of the finest levels the convolutions stay within
        a slice (1 x 3 x 3), and the way down from them halves y and x only.

    Raises
    ------
    InputError
        The settings describe no such network.

    Notes
    -----
    With the paper's widths and 4 convolutions per level the network has exactly 3,802,578 parameters; this is asserted.
    """

    def __init__(self, widths, convs_per_level, normalisation, in_plane_levels=0):
        super().__init__()
        widths = tuple(widths)
        if len(widths) != 4 or any(not isinstance(width, int) or width < 1 for width in widths):
            raise InputError(f"network.widths is {list(widths)}", "give four whole numbers above 0")
        if convs_per_level < 1:
            raise InputError(f"network.convs_per_level is {convs_per_level}", "give a whole number above 0")
        if normalisation not in NORMALISATIONS:
            raise InputError(f"network.normalisation is {normalisation!r}", f"give one of {', '.join(NORMALISATIONS)}")
        if in_plane_levels not in IN_PLANE_LEVELS:
            raise InputError(f"network.in_plane_levels is {in_plane_levels!r}", "give 0, 1 or 2")
        one, two, three, bridge = widths
        self.in_plane_levels = in_plane_levels
        self.halvings = (2 - in_plane_levels, 2, 2)  # of z, y, x

        def convolutions(channels_in, channels_out, level=3, number=convs_per_level):
            depth = 1 if level <= in_plane_levels else 3
            layers = []
            for _ in range(number):
                layers += [
                    nn.Conv3d(channels_in, channels_out, (depth, 3, 3), padding=(depth // 2, 1, 1), bias=False),
                    NORMALISATIONS[normalisation](channels_out),
                    nn.ReLU(inplace=True),
                ]
                channels_in = channels_out
            return layers

        def down(channels_in, channels_out, level):
            depth, stride = (1, (1, 2, 2)) if level <= in_plane_levels else (3, 2)
            return Residual(
                nn.Sequential(
                    nn.Conv3d(channels_in, channels_out, (depth, 3, 3), stride=stride, padding=(depth // 2, 1, 1)),
                    *convolutions(channels_out, channels_out, level + 1),
                ),
                nn.Conv3d(channels_in, channels_out, 1, stride=stride),
            )

        def up(channels_in, channels_out, level):
            size = (1, 2, 2) if level <= in_plane_levels else 2
            return nn.ConvTranspose3d(channels_in, channels_out, size, stride=size)

        def merge(channels_in, channels_out, level=3):
            return Residual(
                nn.Sequential(*convolutions(channels_in, channels_out, level)), nn.Conv3d(channels_in, channels_out, 1)
            )

        # The single input channel is added to each of the first level's channels by broadcast.
        self.level1 = Residual(nn.Sequential(*convolutions(1, one, level=1)), nn.Identity())
        self.level2 = down(one, two, level=1)
        self.level3 = down(two, three, level=2)
        self.bridge = merge(three, bridge)
        self.up2 = up(bridge, three, level=2)
        self.decoder2 = merge(three + two, three, level=2)
        self.up1 = up(three, two, level=1)
        self.decoder1 = merge(two + one, two, level=1)
        self.segmentation = nn.Conv3d(two, 1, 1)
        self.classification = nn.Sequential(*convolutions(bridge, bridge, number=2))
        self.expansion = nn.Linear(bridge, 1)
        if (widths, convs_per_level, in_plane_levels) == (PAPER_WIDTHS, PAPER_CONVS_PER_LEVEL, 0):
            assert self.parameter_count() == PAPER_PARAMETERS, f"{self.parameter_count()} parameters"

    def parameter_count(self):
        """Count the trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def depths(self, slices):
        """Count the slices of levels 1, 2 and 3.

        Parameters
        ----------
        slices : int
            Of the network's grid.

        Returns
        -------
        tuple of int
        """
        first = 1 if self.in_plane_levels >= 1 else 2
        return slices, slices // first, slices // 2 ** self.halvings[0]

    def forward(self, scans):
        """Compute both outputs, before their sigmoids: losses on logits stay finite where a sigmoid saturates.

        Parameters
        ----------
        scans : torch.Tensor, (batch, 1, z, y, x)
            Normalised CT on the network's grid. Each of z, y, x is a multiple of 4 (z of 4 divided by 2 for each
            in-plane level), one of them at least 8 (a bridge of a single voxel has no spread to normalise by).

        Returns
        -------
        segmentation : torch.Tensor, (batch, 1, z, y, x)
            Logit of "this voxel is haematoma".
        classification : torch.Tensor, (batch,)
            Logit of "the haematoma expands".

        Raises
        ------
        InputError
            The grid does not suit two halvings.
        """
        features = self.encode(scans)
        return self.decode(*features), self.classify_bridge(features[-1])

    def classify(self, scans):
        """Compute the classification output alone: without the decoder, two thirds of the work fall away.

        Parameters and errors are those of `forward`.

        Returns
        -------
        classification : torch.Tensor, (batch,)
            Logit of "the haematoma expands".
        """
        return self.classify_bridge(self.encode(scans)[-1])

    def encode(self, scans):
        """Compute the features that both outputs are made of.

        Parameters and errors are those of `forward`.

        Returns
        -------
        one, two, bridge : torch.Tensor, (batch, channel, z, y, x)
            Features of levels 1 and 2, and of the bridge.
        """
        self._refuse_grid(scans)
        one = self.level1(scans)
        two = self.level2(one)
        return one, two, self.bridge(self.level3(two))

    def decode(self, one, two, bridge):
        """Compute the segmentation output from the features that `encode` returns."""
        decoded = self.decoder2(torch.cat([self.up2(bridge), two], dim=1))
        decoded = self.decoder1(torch.cat([self.up1(decoded), one], dim=1))
        return self.segmentation(decoded)

    def classify_bridge(self, bridge):
        """Compute the classification output from the features of the bridge that `encode` returns."""
        features = self.classification(bridge)
        # In fp32 whatever the convolutions are computed in: logits rounded to bf16 would tie patients.
        device = features.device.type
        with contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            # Global average pooling as a mean: on a GPU the gradient of PyTorch's pooling layer is not reproducible.
            return self.expansion(features.float().mean((2, 3, 4))).squeeze(1)

    def _refuse_grid(self, scans):
        grid = tuple(scans.shape[2:])
        wrong = len(grid) != 3 or any(size % 2**times for size, times in zip(grid, self.halvings, strict=True))
        if wrong or max(grid) < 8:
            raise InputError(
                f"the network's grid (z, y, x) is {grid}",
                "set resample.matrix to multiples of 4, at least one of them 8 or more",
            )


class Residual(nn.Module):
    """The sum of a body and a shortcut around it.

    Parameters
    ----------
    body, shortcut : torch.nn.Module
        Both take the same input; their outputs can be added.
    """

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, features):
        """Add the shortcut to the body's output."""
        return self.body(features) + self.shortcut(features)


def initial_network(network, seed, purpose):
    """Make a network with its own reproducible first weights; PyTorch's global generator is left as it was.

    Parameters
    ----------
    network : dict
        `widths`, `convs_per_level`, `normalisation`.
    seed : int
        The study's seed.
    purpose : str
        What the network is for, e.g. "train paper fold1".

    Returns
    -------
    TwoOutputUNet
        On the CPU: the first weights do not depend on the device. PyTorch's own initialisation of each layer
        (`ASSUME`: the paper states none).
    """
    # ASSUME: PyTorch's default initialisation; the paper does not state one.
    key = np.random.SeedSequence([seed, zlib.crc32(f"{purpose}: first weights".encode())])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return TwoOutputUNet(**network)


def place(model, device, channels_last="auto", precision="fp32"):
    """Bring a network to a device, in the memory layout that is fastest there.

    Parameters
    ----------
    model : TwoOutputUNet
    device : torch.device
    channels_last : {"auto", True, False}
        Whether each voxel's channels lie side by side. With "auto" on the CPU, where small networks train faster that
        way and large ones as fast, and on a GPU in bf16 and fp16, whose tensor cores want it so.
    precision : {"fp32", "bf16", "fp16"}
        What it will compute in.

    Returns
    -------
    TwoOutputUNet
        The same numbers.
    """
    if channels_last == "auto":
        channels_last = device.type == "cpu" or precision != "fp32"
    model = model.to(device)
    return model.to(memory_format=torch.channels_last_3d) if channels_last else model


def device_name(device):
    """Name a device for people.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    str
        The GPU's product name, or "the CPU".
    """
    return f"the GPU {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "the CPU"


def training_precision(setting, device, depths):
    """Resolve the precision of a training.

    Parameters
    ----------
    setting : {"auto", "fp32", "bf16", "fp16"}
        `training.precision`. With "auto": bf16 where the hardware computes in it (GPUs from Ampere on; CPUs with
        AVX512-BF16 or AMX), else fp16 with loss scaling on a GPU, and fp32 on a CPU.
    device : torch.device
    depths : sequence of int
        Slices of the network's levels (`TwoOutputUNet.depths`).

    Returns
    -------
    {"fp32", "bf16", "fp16"}

    Raises
    ------
    InputError
        fp16 on a CPU, where it is slow and loss scaling has never been tried; bf16 where it is wrong.
    """
    if setting == "fp16" and device.type == "cpu":
        raise InputError("training.precision is fp16, and there is no GPU", "give auto, fp32 or bf16")
    # PyTorch 2.13 (oneDNN) leaves memory as it finds it in the gradients of bf16 weights of 3 x 3 x 3 convolutions over
    # exactly two slices, on the CPU: not finite or of any size. tests/test_network.py shows it.
    wrong = device.type == "cpu" and 2 in depths
    if setting == "bf16" and wrong:
        raise InputError(
            "training.precision is bf16, and a level of the network has two slices, for which this PyTorch computes "
            "wrong gradients on a CPU",
            "give auto or fp32, or another resample.matrix",
        )
    if setting != "auto":
        return setting
    if _has_bf16(device) and not wrong:
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def inference_precision(setting, device):
    """Resolve the precision of predictions.

    Parameters
    ----------
    setting : {"auto", "fp32", "bf16"}
        With "auto": bf16 where the hardware computes in it, else fp32.
    device : torch.device

    Returns
    -------
    {"fp32", "bf16"}
    """
    if setting != "auto":
        return setting
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device):
    """Whether bf16 is faster than fp32 here: computed in hardware, not emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def mixed(precision, device):
    """Compute convolutions in a lower precision, and what needs more in fp32 (PyTorch's autocast).

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
    device : torch.device

    Returns
    -------
    context manager
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def predict_scan(model, scan, device, precision="fp32"):
    """Apply a network in evaluation mode to one scan.

    Parameters
    ----------
    model : TwoOutputUNet
        Left in evaluation mode.
    scan : numpy.ndarray, (z, y, x)
        Normalised CT on the network's grid.
    device : torch.device
        Where the model is.
    precision : {"fp32", "bf16", "fp16"}
        Of the convolutions; weights stay in fp32.

    Returns
    -------
    logit : float
        Of expansion; `numpy.inf` or NaN if the weights are not usable.
    haematoma : numpy.ndarray, (z, y, x), float32
        Probability of haematoma per voxel.
    """
    return predict_scan_and_bridge(model, scan, device, precision)[:2]


def predict_scan_and_bridge(model, scan, device, precision="fp32"):
    """Apply a network to one scan and keep the bridge, from which `haemex.explanation` tells what spoke for expansion.

    Parameters
    ----------
    model, scan, device, precision
        See `predict_scan`.

    Returns
    -------
    logit, haematoma
        See `predict_scan`.
    bridge : torch.Tensor, (1, channel, z, y, x), float32
        Features of the bridge, on the device.
    """
    with _one_scan(model, scan, device, precision) as scan:
        features = model.encode(scan)
        segmentation, classification = model.decode(*features), model.classify_bridge(features[-1])
        haematoma = torch.sigmoid(segmentation[0, 0].float()).cpu().numpy()
        return classification.item(), haematoma, features[-1].float()


def predict_expansion(model, scan, device, precision="fp32"):
    """Apply the classification alone to one scan.

    Parameters
    ----------
    model, scan, device, precision
        See `predict_scan`.

    Returns
    -------
    float
        The logit that `predict_scan` returns.
    """
    with _one_scan(model, scan, device, precision) as scan:
        return model.classify(scan).item()


@contextlib.contextmanager
def _one_scan(model, scan, device, precision):
    model.eval()
    scan = torch.from_numpy(np.ascontiguousarray(scan, np.float32)).to(device)
    with torch.inference_mode(), mixed(precision, device):
        yield scan[None, None]


def probability(logit):
    """Return the logistic function of a logit, without overflow.

    Parameters
    ----------
    logit : float

    Returns
    -------
    float
        Between 0 and 1.
    """
    return float(np.exp(-np.logaddexp(0.0, -logit)))


@contextlib.contextmanager
def computing(threads, deterministic):
    """Set how PyTorch computes, and set it back.

    Parameters
    ----------
    threads : int
        CPU threads. The weights of a training on the CPU depend on their number in the last bits.
    deterministic : bool
        Use only operations that give the same bits on every run, on a GPU too.

    Yields
    ------
    torch.device
        A GPU that no other job uses, if there is one (`haemex.devices`), else the CPU.
    """
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    fill_before = torch.utils.deterministic.fill_uninitialized_memory
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses, or varies between runs
    try:
        torch.set_num_threads(threads)
        # The same as torch.use_deterministic_algorithms(True), which imports the compiler (1.7 s) besides.
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory before writing it
        torch.backends.cudnn.benchmark = not deterministic  # picks among algorithms by timing them
        with free_device() as device:
            yield device
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.utils.deterministic.fill_uninitialized_memory = fill_before
