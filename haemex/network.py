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

from haemex.errors import InputError

PAPER_WIDTHS, PAPER_CONVS_PER_LEVEL, PAPER_PARAMETERS = (16, 32, 64, 128), 4, 3_802_578

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

    Raises
    ------
    InputError
        The settings describe no such network.

    Notes
    -----
    With the paper's widths and 4 convolutions per level the network has exactly 3,802,578 parameters; this is asserted.
    """

    def __init__(self, widths, convs_per_level, normalisation):
        super().__init__()
        widths = tuple(widths)
        if len(widths) != 4 or any(not isinstance(width, int) or width < 1 for width in widths):
            raise InputError(f"network.widths is {list(widths)}", "give four whole numbers above 0")
        if convs_per_level < 1:
            raise InputError(f"network.convs_per_level is {convs_per_level}", "give a whole number above 0")
        if normalisation not in NORMALISATIONS:
            raise InputError(f"network.normalisation is {normalisation!r}", f"give one of {', '.join(NORMALISATIONS)}")
        one, two, three, bridge = widths

        def convolutions(channels_in, channels_out, number=convs_per_level):
            layers = []
            for _ in range(number):
                layers += [
                    nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
                    NORMALISATIONS[normalisation](channels_out),
                    nn.ReLU(inplace=True),
                ]
                channels_in = channels_out
            return layers

        def down(channels_in, channels_out):
            return Residual(
                nn.Sequential(
                    nn.Conv3d(channels_in, channels_out, 3, stride=2, padding=1),
                    *convolutions(channels_out, channels_out),
                ),
                nn.Conv3d(channels_in, channels_out, 1, stride=2),
            )

        def merge(channels_in, channels_out):
            return Residual(
                nn.Sequential(*convolutions(channels_in, channels_out)), nn.Conv3d(channels_in, channels_out, 1)
            )

        # The single input channel is added to each of the first level's channels by broadcast.
        self.level1 = Residual(nn.Sequential(*convolutions(1, one)), nn.Identity())
        self.level2 = down(one, two)
        self.level3 = down(two, three)
        self.bridge = merge(three, bridge)
        self.up2 = nn.ConvTranspose3d(bridge, three, 2, stride=2)
        self.decoder2 = merge(three + two, three)
        self.up1 = nn.ConvTranspose3d(three, two, 2, stride=2)
        self.decoder1 = merge(two + one, two)
        self.segmentation = nn.Conv3d(two, 1, 1)
        self.classification = nn.Sequential(*convolutions(bridge, bridge, number=2))
        self.expansion = nn.Linear(bridge, 1)
        if widths == PAPER_WIDTHS and convs_per_level == PAPER_CONVS_PER_LEVEL:
            assert self.parameter_count() == PAPER_PARAMETERS, f"{self.parameter_count()} parameters"

    def parameter_count(self):
        """Count the trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, scans):
        """Compute both outputs, before their sigmoids: losses on logits stay finite where a sigmoid saturates.

        Parameters
        ----------
        scans : torch.Tensor, (batch, 1, z, y, x)
            Normalised CT on the network's grid. Each of z, y, x is a multiple of 4, one of them at least 8 (a bridge of
            a single voxel has no spread to normalise by).

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
        grid = tuple(scans.shape[2:])
        if len(grid) != 3 or any(size % 4 for size in grid) or max(grid) < 8:
            raise InputError(
                f"the network's grid (z, y, x) is {grid}",
                "set resample.matrix to multiples of 4, at least one of them 8 or more",
            )
        one = self.level1(scans)
        two = self.level2(one)
        bridge = self.bridge(self.level3(two))
        decoded = self.decoder2(torch.cat([self.up2(bridge), two], dim=1))
        decoded = self.decoder1(torch.cat([self.up1(decoded), one], dim=1))
        # Global average pooling as a mean: on a GPU the gradient of PyTorch's pooling layer is not reproducible.
        pooled = self.classification(bridge).mean((2, 3, 4))
        return self.segmentation(decoded), self.expansion(pooled).squeeze(1)


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


def place(model, device):
    """Bring a network to a device, in the memory layout that is fastest there.

    Parameters
    ----------
    model : TwoOutputUNet
    device : torch.device

    Returns
    -------
    TwoOutputUNet
        The same numbers. Channels last on the CPU, where a training step takes 12 % less time that way.
    """
    if device.type == "cpu":
        return model.to(memory_format=torch.channels_last_3d)
    return model.to(device)


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


def predict_scan(model, scan, device):
    """Apply a network in evaluation mode to one scan.

    Parameters
    ----------
    model : TwoOutputUNet
        Left in evaluation mode.
    scan : numpy.ndarray, (z, y, x)
        Normalised CT on the network's grid.
    device : torch.device
        Where the model is.

    Returns
    -------
    logit : float
        Of expansion; `numpy.inf` or NaN if the weights are not usable.
    haematoma : numpy.ndarray, (z, y, x), float32
        Probability of haematoma per voxel.
    """
    model.eval()
    with torch.inference_mode():
        scan = torch.from_numpy(np.ascontiguousarray(scan, np.float32)).to(device)
        segmentation, classification = model(scan[None, None])
        return classification.item(), torch.sigmoid(segmentation[0, 0]).cpu().numpy()


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
        The first CUDA device if there is one, else the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        yield device
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.utils.deterministic.fill_uninitialized_memory = fill_before
