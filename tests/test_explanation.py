import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from haemex.explanation import bridge_affine, relevance_map
from haemex.network import TwoOutputUNet, initial_network, mixed, predict_scan, predict_scan_and_bridge

CPU = torch.device("cpu")
SHAPE, SPOT = (8, 48, 48), (2, 5, 5)
NETWORK = {"widths": [4, 6, 8, 8], "convs_per_level": 1, "normalisation": "batch"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear_network(widths=(1, 1, 1, 1), in_plane_levels=0, centre_only=False):
    """A network of positive weights and no normalisation: linear on positive scans, symmetric around each voxel."""
    model = TwoOutputUNet(widths, 1, "batch", in_plane_levels).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_var.fill_(1 - module.eps)
            elif isinstance(module, torch.nn.Conv3d | torch.nn.Linear):
                module.weight.fill_(1.0)
                if module.bias is not None:
                    module.bias.zero_()
        for layer in (model.classification[0], model.classification[3]) if centre_only else ():
            layer.weight.zero_()
            layer.weight[range(widths[3]), range(widths[3]), 1, 1, 1] = 1.0
    return model


def test_known_answer_by_hand():
    # Branch: identity, ReLU, mean over n = 4 voxels, linear (2, -1). dy/dA is 2/4 and -1/4 where A > 0, else 0:
    # channel 0 is positive on two of four voxels, a_0 = 1/4; channel 1 on all four, a_1 = -1/4.
    model = linear_network((1, 1, 1, 2), centre_only=True)
    with torch.no_grad():
        model.expansion.weight[:] = torch.tensor([[2.0, -1.0]])
        model.expansion.bias.fill_(5.0)  # a constant lies nowhere
    bridge = torch.tensor([[[3.0, 9.0], [-1.0, 0.0]], [[1.0, 1.0], [1.0, 2.0]]]).reshape(1, 2, 1, 2, 2)
    relevance, maximum = relevance_map(model, bridge)
    # L = max(0, (A_0 - A_1) / 4) = (2, 8, 0, 0) / 4
    assert maximum == pytest.approx(2.0)
    np.testing.assert_allclose(relevance, [[[0.25, 1.0], [0.0, 0.0]]], atol=1e-6)
    assert (relevance.dtype, relevance.shape) == (np.float32, (1, 2, 2))
    with torch.no_grad():
        model.expansion.weight[:] = torch.tensor([[-2.0, -1.0]])  # everything speaks against expansion
    relevance, maximum = relevance_map(model, bridge.abs())
    assert maximum == 0 and relevance.shape == (1, 2, 2) and not relevance.any()


def test_agrees_with_finite_differences():
    torch.manual_seed(1)
    model = initial_network({"widths": [2, 2, 3, 4], "convs_per_level": 1, "normalisation": "batch"}, 1, "x").train()
    with torch.no_grad():
        model(torch.rand(4, 1, 8, 16, 16))
    model.eval()
    bridge = model.encode(torch.rand(1, 1, 8, 16, 16))[-1].detach()
    relevance, maximum = relevance_map(model, bridge)
    slow = copy.deepcopy(model).double()

    def logit(features):
        with torch.no_grad():
            return slow.expansion(slow.classification(features).mean((2, 3, 4))).item()

    step, weights = 1e-6, []
    for channel in range(bridge.shape[1]):
        gradients = []
        for voxel in np.ndindex(*bridge.shape[2:]):
            up, down = bridge.double(), bridge.double()
            up[0, channel][voxel] += step
            down[0, channel][voxel] -= step
            gradients.append((logit(up) - logit(down)) / (2 * step))
        weights.append(np.mean(gradients))
    expected = np.maximum(np.einsum("c,czyx->zyx", weights, bridge[0].double().numpy()), 0)
    assert expected.max() > 0 and (expected == 0).any()
    assert maximum == pytest.approx(expected.max(), rel=1e-3)
    np.testing.assert_allclose(relevance, expected / expected.max(), atol=1e-3)


AFFINE = np.array([[0.5, 0.1, 0, -9.0], [-0.1, 0.5, 1.2, 7.0], [0, 0.2, 5.0, -40.0], [0, 0, 0, 1]])


def centre_of_map_mm(model, shape, voxel):
    """Centre of mass, in mm, of the map of a scan with one bright voxel."""
    scan = np.zeros(shape, np.float32)
    scan[tuple(voxel)] = 1.0
    relevance, _ = relevance_map(model, predict_scan_and_bridge(model, scan, CPU)[2])
    z, y, x = np.indices(relevance.shape).reshape(3, -1)
    affine = bridge_affine(model, AFFINE)
    return affine[:3, :3] @ [np.average(axis, weights=relevance.ravel()) for axis in (x, y, z)] + affine[:3, 3]


@pytest.mark.parametrize("in_plane_levels", [0, 1, 2])
def test_the_map_lies_where_the_feature_lies(in_plane_levels):
    # Everything is linear and all kernels are symmetric; those of [1/2, 1, 1/2] share out evenly between the voxels
    # that a stride of 2 keeps. So the map's centre of mass is the feature, on every voxel of the scan.
    model = linear_network(in_plane_levels=in_plane_levels)
    strides = 4 // 2**in_plane_levels, 4, 4
    shape = (9 * strides[0], 36, 36)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size != (1, 1, 1):
                module.weight *= torch.tensor([0.5, 1, 0.5])[:, None] * torch.tensor([0.5, 1, 0.5])
                if module.kernel_size[0] == 3:
                    module.weight *= torch.tensor([0.5, 1, 0.5])[:, None, None]
        for offset in [(0, 0, 0), (1, 2, 3), (2, 3, 1), (3, 1, 2)]:
            for level in (model.level2, model.level3):  # the shortcuts see kept voxels only
                level.shortcut.weight.fill_(float(offset == (0, 0, 0)))
            voxel = [4 * stride + step % stride for stride, step in zip(strides, offset, strict=True)]
            at = centre_of_map_mm(model, shape, voxel)
            np.testing.assert_allclose(at, AFFINE[:3, :3] @ voxel[::-1] + AFFINE[:3, 3], atol=1e-3)


def make_scan(rng, expanding):
    """Noise with a dark spot, and a bright one if it expands. Returns the scan, then the centres of bright and dark."""
    scan = rng.random(SHAPE, np.float32)
    centres = []
    for height in (3.0 * expanding, -3.0):
        corner = [rng.integers(1, size - extent) for size, extent in zip(SHAPE, SPOT, strict=True)]
        scan[tuple(slice(at, at + extent) for at, extent in zip(corner, SPOT, strict=True))] += height
        centres.append([at + (extent - 1) / 2 for at, extent in zip(corner, SPOT, strict=True)])
    return scan, *centres


@pytest.fixture(scope="module")
def trained():
    """A small network that has learnt that the bright spot decides, and the dark one does not."""
    rng = np.random.default_rng(0)
    model = initial_network(NETWORK, 2, "x").train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    labels = torch.tensor([0.0, 1.0] * 4)
    for _ in range(60):
        scans = torch.from_numpy(np.stack([make_scan(rng, bool(label))[0] for label in labels]))[:, None]
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model.classify(scans), labels).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def expanding():
    rng = np.random.default_rng(1)
    return [make_scan(rng, True) for _ in range(20)]


def explain(model, scan):
    return relevance_map(model, predict_scan_and_bridge(model, scan, CPU)[2])[0]


def found(model, scans, which):
    """Share of the scans whose map lies around a spot (1 the bright, 2 the dark): its brighter half, on average.

    In the slice, within 1.5 voxels of the bridge; one voxel of the bridge sees 14 voxels of the scan to each side.
    """
    hits = []
    for scan in scans:
        relevance = explain(model, scan[0])
        centre = np.argwhere(relevance > 0.5 * relevance.max()).mean(0) if relevance.any() else np.full(3, np.inf)
        hits.append(np.abs(centre[1:] - np.array(scan[which][1:]) / 4).max() <= 1.5)
    return np.mean(hits)


def test_the_feature_that_decides_attracts_the_map(trained, expanding):
    assert all(predict_scan(trained, scan, CPU)[0] > 0 for scan, *_ in expanding)
    assert found(trained, expanding, 1) >= 0.8
    assert found(trained, expanding, 2) <= 0.2  # as often as chance puts the spots beside each other
    assert found(initial_network(NETWORK, 2, "x").eval(), expanding, 1) <= 0.5


def test_randomised_weights_give_another_map(trained, expanding):
    """The sanity check of Adebayo J, et al. NeurIPS 2018: a map that does not hang on the weights explains nothing."""
    layers = ("expansion", "classification", "bridge", "level3", "level2", "level1")
    correlations = {layer: [] for layer in layers}
    scans = [scan for scan, *_ in expanding[:4]]
    maps = [explain(trained, scan) for scan in scans]
    assert all(one.any() for one in maps)
    for seed in range(4):
        other, fresh = copy.deepcopy(trained), initial_network(NETWORK, seed, "other")
        for layer in layers:  # from the output to the input, each with all before it
            getattr(other, layer).load_state_dict(getattr(fresh, layer).state_dict())
            for scan, one in zip(scans, maps, strict=True):
                two = explain(other, scan)
                correlations[layer].append(spearmanr(one.ravel(), two.ravel())[0] if two.any() else 0.0)
    mean = {layer: float(np.mean(np.abs(values))) for layer, values in correlations.items()}
    assert mean["expansion"] < 0.9
    assert all(mean[layer] < 0.6 for layer in layers[1:])
    assert mean["level1"] < 0.4


def test_the_same_bits_every_time_and_the_network_is_left_alone(trained, expanding):
    scan = expanding[0][0]
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    logit, haematoma, bridge = predict_scan_and_bridge(trained, scan, CPU)
    first, again = relevance_map(trained, bridge), relevance_map(trained, bridge)
    assert first[1] == again[1] and first[0].tobytes() == again[0].tobytes()
    with torch.inference_mode(), mixed("bf16", CPU):  # wherever it is called from
        inside = relevance_map(trained, bridge)
    assert inside[0].tobytes() == first[0].tobytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    expected = predict_scan(trained, scan, CPU)
    assert logit == expected[0]
    np.testing.assert_array_equal(haematoma, expected[1])


def test_a_bridge_computed_in_bf16_gives_nearly_the_same_map(trained, expanding):
    for scan, *_ in expanding[:5]:
        exact = explain(trained, scan)
        bridge = predict_scan_and_bridge(trained, scan, CPU, "bf16")[2]
        assert bridge.dtype == torch.float32
        coarse = relevance_map(trained, bridge)[0]
        assert not np.array_equal(exact, coarse)
        np.testing.assert_allclose(coarse, exact, atol=0.05)
