"""The network of a model bundle as ONNX, for programs without PyTorch.

One file: the main model, not the fold models. Its input `scan`, float32 (1, 1, z, y, x), is what the stage `resample`
makes of a CT: resampled, windowed, normalised within the brain. Its outputs are `logit`, (1,), of expansion, and
`haematoma`, (1, 1, z, y, x), the probability of haematoma per voxel. How to prepare a scan and how to read the
logit stands as JSON in the file's metadata: `preparation` (the sections
`convert`, `skullstrip` and `resample` of the config), `operating_point` (of the
probability 1 / (1 + exp(-logit))), `calibration` (see `haemex.calibration`), `weights_sha256` (of the bundle's
`model.safetensors`), `versions`, and `caveat`.

PyTorch's exporter does the work; it needs the packages `onnx` and `onnxscript`, and the check `onnxruntime`.
"""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from haemex.bundle import load_bundle
from haemex.errors import InputError
from haemex.files import read_json, write_atomically

OPSET = 20
AGREEMENT = 1e-4
CAVEAT = "Research software, not a medical device."


def export_onnx(bundle_folder, path, threads=1):
    """Write the main model of a bundle as ONNX, after a check that it computes what PyTorch computes.

    The same bundle and the same versions of the packages give the same bytes.

    Parameters
    ----------
    bundle_folder : path-like
        The model bundle; see `haemex.bundle.load_bundle`.
    path : path-like
        Ends in `.onnx`.
    threads : int
        CPU threads of the check.

    Returns
    -------
    float
        The largest difference between onnxruntime and PyTorch, in logit and in probability of haematoma, over noise
        and a made-up brain with a haematoma.

    Raises
    ------
    InputError
        The bundle is damaged; a package is missing; the two differ by more than 1e-4; the file cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the package {error.name} is not installed", "install onnx, onnxscript and onnxruntime"
        ) from None

    if not Path(path).parent.is_dir():
        raise InputError("there is no such folder", "make it, or give another path", Path(path).parent)
    bundle = load_bundle(bundle_folder, ensemble=False)
    description = read_json(Path(bundle_folder) / "model.json")
    grid = tuple(int(size) for size in bundle.preparation["resample"]["matrix"][::-1])
    model = _Outputs(bundle.model).eval()
    content = _convert(model, grid, _metadata(bundle, description))
    difference = max(_difference(model, content, scan, threads) for scan in (_noise(grid), _brain(grid)))
    if not difference <= AGREEMENT:
        raise InputError(
            f"onnxruntime and PyTorch differ by {difference:.2g} on the exported model, more than {AGREEMENT:g}",
            "use the versions of onnx, onnxscript and onnxruntime that haemex was tested with",
            bundle_folder,
        )
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"the model cannot be written ({error.strerror})", "give another path", path) from None
    return difference


class _Outputs(torch.nn.Module):
    """The network with its outputs as they are used: logit of expansion, probability of haematoma."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, scan):
        segmentation, classification = self.network(scan)
        return classification, torch.sigmoid(segmentation)


def _metadata(bundle, description):
    return {
        "preparation": bundle.preparation,
        "operating_point": {**description["operating_point"], "threshold": bundle.threshold},
        "calibration": bundle.calibration,
        "weights_sha256": description["weights_sha256"],
        "versions": description.get("versions", {}),
        "caveat": CAVEAT,
    }


def _convert(model, grid, metadata):
    """Export a network; return the bytes of the file."""
    # The exporter older than this one (dynamo=False) gives a wrong model under PyTorch 2.13; tests would show it.
    with _quietly():
        program = torch.onnx.export(
            model,
            (torch.zeros(1, 1, *grid),),
            input_names=["scan"],
            output_names=["logit", "haematoma"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    converted = program.model_proto
    # The exporter notes beside every node from which file and line of this machine it came.
    for noted in (converted, converted.graph, *converted.graph.node, *converted.graph.initializer):
        noted.ClearField("doc_string")
        noted.ClearField("metadata_props")
    for noted in (*converted.graph.input, *converted.graph.output, *converted.graph.value_info):
        noted.ClearField("metadata_props")
    for key, value in metadata.items():
        converted.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True, allow_nan=False))
    return converted.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quietly():
    """Keep PyTorch's exporter from telling of its own parts and of packages that it could use."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _difference(model, content, scan, threads):
    """The largest difference between what onnxruntime and PyTorch compute of a scan, (z, y, x)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = session.run(["logit", "haematoma"], {"scan": scan[None, None]})
    with torch.inference_mode():
        expected = model(torch.from_numpy(scan)[None, None])
    differences = [np.abs(one - other.numpy()).max() for one, other in zip(found, expected, strict=True)]
    return float(np.max(differences))  # NaN if any is


def _noise(grid):
    return np.random.default_rng(0).random(grid, np.float32) * 3


def _brain(grid):
    """A normalised scan as networks see them: zero around an ellipsoid of noisy brain, in it a bright haematoma."""
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in grid), indexing="ij", sparse=True)
    noise = np.random.default_rng(1).normal(size=grid)
    brain = np.where(sum((place - 0.2) ** 2 for place in places) < 0.1, noise + 4, noise)
    return np.where(sum(place**2 for place in places) < 0.8, np.maximum(brain, 0), 0).astype(np.float32)
