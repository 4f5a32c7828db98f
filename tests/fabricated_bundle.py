"""A small model bundle, and the trainings it was made of."""

import json

import safetensors.torch
import torch

from haemex.bundle import write_bundle
from haemex.network import initial_network

NETWORK = {"widths": [2, 3, 4, 4], "convs_per_level": 1, "normalisation": "batch"}
PREPROCESSING = {
    "field_of_view_mm": [60.0, 60.0, 60.0],
    "matrix": [12, 12, 8],
    "spline_order": 3,
    "window_hu": [0.0, 100.0],
}
PREPARATION = {
    "convert": {"slice_thickness_mm": 5.0},
    "skullstrip": {"seal_gap_mm": 4.0, "min_brain_ml": 500.0, "plausible_brain_ml": [900.0, 1900.0]},
    "resample": PREPROCESSING,
}
CALIBRATION = {"method": "platt", "intercept": 0.25, "slope": 2.0}


def make_bundle(tmp_path, network=NETWORK, preparation=PREPARATION):
    """Write `model/`, the bundle, and `train/fold{k}/model.safetensors` below a folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    grid = preparation["resample"]["matrix"][::-1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("model", "fold0", "fold1", "fold2"):
            model = initial_network(network, 1, name)
            with torch.no_grad():  # statistics as of a trained network, and a mask that is neither empty nor full
                model.train()(torch.rand(4, 1, *grid))
                model.segmentation.bias.sub_(model.eval()(torch.rand(1, 1, *grid))[0].median())
            path = folder / "model.safetensors" if name == "model" else tmp_path / "train" / name / "model.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(safetensors.torch.save(model.state_dict()))
    write_bundle(
        folder,
        fold_weights=[tmp_path / "train" / f"fold{fold}" / "model.safetensors" for fold in range(3)],
        network=network,
        preparation=preparation,
        threshold=0.4,
        rule="youden",
        calibration=CALIBRATION,
        training={"epochs": 1},
        cohort={"patients": 3, "expansions": 1},
    )
    return folder


def change_json(bundle, **changes):
    """Change entries of a bundle's description."""
    content = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps({**content, **changes}))
