import numpy as np
import pytest
import torch
from torch import nn

from haemex.errors import InputError
from haemex.network import (
    NORMALISATIONS,
    PAPER_PARAMETERS,
    TwoOutputUNet,
    computing,
    inference_precision,
    initial_network,
    mixed,
    place,
    predict_expansion,
    predict_scan,
    probability,
    training_precision,
)

TINY = {"widths": [2, 3, 4, 5], "convs_per_level": 1, "normalisation": "batch"}


def paper_network():
    with torch.device("meta"):  # shapes without numbers: the full grid costs nothing
        return TwoOutputUNet([16, 32, 64, 128], 4, "batch")


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_paper_settings_give_the_printed_number_of_parameters(normalisation):
    assert PAPER_PARAMETERS == 3_802_578
    assert TwoOutputUNet([16, 32, 64, 128], 4, normalisation).parameter_count() == 3_802_578


def test_parameters_of_a_tiny_network_counted_by_hand():
    # Widths 1, 1, 1, 1 with one convolution per level: every CBR 1->1 has 27 + 2 parameters.
    cbr = 27 + 2
    down = 27 + 1 + cbr + 1 + 1
    bridge = cbr + 1 + 1
    up = 8 + 1
    decoder = 2 * 27 + 2 + 2 + 1
    heads = 2 + 2 * cbr + 2
    assert TwoOutputUNet([1, 1, 1, 1], 1, "batch").parameter_count() == (
        cbr + 2 * down + bridge + 2 * up + 2 * decoder + heads
    )


def test_every_level_has_the_printed_shape():
    model = paper_network()
    seen = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape)}))
    segmentation, classification = model(torch.empty(2, 1, 32, 256, 256, device="meta"))
    assert seen == {
        "level1": (2, 16, 32, 256, 256),
        "level2": (2, 32, 16, 128, 128),
        "level3": (2, 64, 8, 64, 64),
        "bridge": (2, 128, 8, 64, 64),
        "up2": (2, 64, 16, 128, 128),
        "decoder2": (2, 64, 16, 128, 128),
        "up1": (2, 32, 32, 256, 256),
        "decoder1": (2, 32, 32, 256, 256),
        "segmentation": (2, 1, 32, 256, 256),
        "classification": (2, 128, 8, 64, 64),
        "expansion": (2, 1),
    }
    assert segmentation.shape == (2, 1, 32, 256, 256)
    assert classification.shape == (2,)


def test_a_forward_pass_takes_576_g_multiply_adds():
    model = paper_network()
    total = 0

    def count(module, inputs, out):
        nonlocal total
        places = (inputs[0] if isinstance(module, nn.ConvTranspose3d) else out)[0, 0].numel()
        total += places * module.weight.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_hook(count)
    model(torch.empty(1, 1, 32, 256, 256, device="meta"))
    assert round(total / 1e9) == 576


def test_the_papers_setting_trains_on_a_gpu_of_11_gb():
    """In fp32, one scan at a time: what the forward pass keeps for the backward one; the rest is for cuDNN and Adam."""
    model, kept = paper_network(), {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        segmentation, classification = model(torch.empty(1, 1, 32, 256, 256, device="meta"))
        segmentation.sigmoid().sum() + classification.sum()
    assert 4e9 < sum(size for size, _ in kept.values()) < 6e9


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_each_loss_reaches_what_it_should(normalisation):
    torch.manual_seed(0)
    model = TwoOutputUNet([2, 3, 4, 5], 2, normalisation)

    def reached(output):
        model.zero_grad(set_to_none=True)
        output.square().sum().backward()
        return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    scans = torch.rand(2, 1, 4, 8, 8)
    encoder, decoder = {"level1", "level2", "level3", "bridge"}, {"up2", "decoder2", "up1", "decoder1", "segmentation"}
    assert reached(model(scans)[0]) == encoder | decoder
    assert reached(model(scans)[1]) == encoder | {"classification", "expansion"}


def test_shortcuts_add_what_they_say():
    model = TwoOutputUNet(**TINY)
    for part in (model.level1.body, model.level2.body):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    scans = torch.rand(1, 1, 4, 8, 8)
    one = model.eval().level1(scans)
    assert torch.equal(one, scans.expand(1, 2, 4, 8, 8))
    weight, bias = model.level2.shortcut.weight[:, :, 0, 0, 0], model.level2.shortcut.bias
    by_hand = torch.einsum("oi,bizyx->bozyx", weight, one[:, :, ::2, ::2, ::2]) + bias[:, None, None, None]
    assert torch.allclose(model.level2(one), by_hand, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 8, 10), (6, 8, 8), (4, 4, 4)])
def test_grids_that_cannot_be_halved_twice_are_refused(grid):
    with pytest.raises(InputError, match=r"resample\.matrix"):
        TwoOutputUNet(**TINY)(torch.zeros(1, 1, *grid))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"widths": [2, 3, 4]}, "widths"),
        ({"widths": [2, 3, 4, 0]}, "widths"),
        ({"convs_per_level": 0}, "convs_per_level"),
        ({"normalisation": "group"}, "normalisation"),
        ({"in_plane_levels": 3}, "in_plane_levels"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(InputError, match=named):
        TwoOutputUNet(**{**TINY, **change})


@pytest.mark.parametrize("in_plane_levels", [1, 2])
def test_a_network_of_two_and_a_half_dimensions_sees_other_slices_on_its_coarse_levels_only(in_plane_levels):
    with torch.device("meta"):
        model = TwoOutputUNet([16, 32, 64, 128], 4, "batch", in_plane_levels)
    seen = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[2:])}))
    model(torch.empty(1, 1, 32, 256, 256, device="meta"))
    two, three = ((32, 16), (32, 32))[in_plane_levels - 1]
    assert model.depths(32) == (32, two, three)
    assert [seen[name][0] for name in ("level1", "level2", "level3", "bridge")] == [32, two, three, three]
    assert [seen[name] for name in ("decoder2", "decoder1")] == [(two, 128, 128), (32, 256, 256)]
    kernels = {
        name: {tuple(one.kernel_size) for one in module.modules() if isinstance(one, nn.Conv3d)}
        for name, module in model.named_children()
    }
    flat, full, point = (1, 3, 3), (3, 3, 3), (1, 1, 1)
    assert kernels["level1"] == {flat} and kernels["decoder1"] == {flat, point}
    assert kernels["level2"] == ({flat, full, point} if in_plane_levels == 1 else {flat, point})
    assert kernels["decoder2"] == ({full, point} if in_plane_levels == 1 else {flat, point})
    assert kernels["bridge"] == {full, point}


def test_in_plane_levels_keep_slices_apart():
    model = TwoOutputUNet([2, 3, 4, 5], 1, "instance", 2).eval()
    scans = torch.rand(1, 1, 6, 8, 8)
    moved = scans.clone()
    moved[:, :, 0] += 1
    two, changed = (model.level2.body[0](model.level1.body[0](one)) for one in (scans, moved))
    assert not torch.equal(two[:, :, 0], changed[:, :, 0])
    assert torch.equal(two[:, :, 1:], changed[:, :, 1:])


def test_precision_that_suits_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for abilities, expected in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities)
        assert inference_precision("auto", cpu) == training_precision("auto", cpu, (16, 8, 4)) == expected
        assert training_precision("auto", cpu, (8, 4, 2)) == "fp32"
    gpu = torch.device("cuda")
    for capability, trained, predicted in (
        ((9, 0), "bf16", "bf16"),
        ((8, 0), "bf16", "bf16"),
        ((7, 5), "fp16", "fp32"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert training_precision("auto", gpu, (8, 4, 2)) == trained
        assert inference_precision("auto", gpu) == predicted
    for setting in ("fp32", "bf16"):
        assert inference_precision(setting, cpu) == training_precision(setting, cpu, (16, 8, 4)) == setting
    with pytest.raises(InputError, match="fp16"):
        training_precision("fp16", cpu, (16, 8, 4))
    with pytest.raises(InputError, match="two slices"):
        training_precision("bf16", cpu, (8, 4, 2))


def gradients(model, scans, precision):
    model.zero_grad(set_to_none=True)
    with mixed(precision, torch.device("cpu")):
        segmentation, classification = model(scans)
    (segmentation.float().square().mean() + classification.float().sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("in_plane_levels", [0, 1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_in_bf16_point_where_those_in_fp32_do(channels_last, in_plane_levels):
    if inference_precision("auto", torch.device("cpu")) == "fp32":
        pytest.skip("this processor does not compute in bf16")
    torch.manual_seed(3)
    model = TwoOutputUNet([8, 8, 16, 16], 2, "batch", in_plane_levels)
    model = place(model, torch.device("cpu"), channels_last)
    scans = torch.rand(2, 1, 12, 24, 16)
    exact, rough = (gradients(model, scans, precision) for precision in ("fp32", "bf16"))
    whole = [torch.cat([one.flatten() for one in some]) for some in (exact, rough)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.95
    for one, other in zip(exact, rough, strict=True):  # wrong gradients are of any size
        assert other.abs().max() < 2 * one.abs().max() + 0.01 * whole[0].abs().max()


@pytest.mark.xfail(reason="PyTorch computes wrong gradients of bf16 weights over two slices", strict=False)
def test_gradients_in_bf16_over_two_slices_are_right():
    """Once this passes with a later PyTorch, `training_precision` need not look at the network's depths."""
    if inference_precision("auto", torch.device("cpu")) == "fp32":
        pytest.skip("this processor does not compute in bf16")
    for seed in range(20):
        torch.manual_seed(seed)
        weights = torch.randn(16, 8, 3, 3, 3).to(torch.bfloat16).requires_grad_()
        nn.functional.conv3d(torch.randn(2, 8, 2, 4, 4).to(torch.bfloat16), weights, padding=1).sum().backward()
        assert weights.grad.abs().max() < 100


def test_predictions_in_bf16_agree_with_those_in_fp32():
    model = initial_network({**TINY, "widths": [8, 8, 16, 16], "convs_per_level": 2}, 3, "agree")
    scan = np.random.default_rng(0).normal(0, 1, (8, 32, 24)).astype(np.float32)
    exact, rough = (predict_scan(model, scan, torch.device("cpu"), precision) for precision in ("fp32", "bf16"))
    assert rough[0] != exact[0]
    assert rough[0] == pytest.approx(exact[0], abs=0.02)
    np.testing.assert_allclose(rough[1], exact[1], atol=0.02)
    assert rough[1].dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_expansion_alone_is_that_of_the_whole_network(precision):
    model = initial_network({**TINY, "widths": [4, 4, 8, 8]}, 3, "alone")
    rng = np.random.default_rng(1)
    logits = []
    for _ in range(20):
        scan = rng.normal(0, 1, (4, 16, 12)).astype(np.float32)
        logits.append(predict_expansion(model, scan, torch.device("cpu"), precision))
        assert logits[-1] == predict_scan(model, scan, torch.device("cpu"), precision)[0]
    assert len(set(logits)) == 20, "patients are tied"
    with pytest.raises(InputError, match=r"resample\.matrix"):
        predict_expansion(model, np.zeros((6, 8, 8)), torch.device("cpu"))


def test_first_weights_depend_on_seed_and_purpose_only_and_leave_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = initial_network(TINY, 1, "train a fold0").state_dict()
    assert torch.equal(torch.rand(3), expected)
    again = initial_network(TINY, 1, "train a fold0").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (initial_network(TINY, 2, "train a fold0"), initial_network(TINY, 1, "train a fold1")):
        assert not torch.equal(first["up1.weight"], other.state_dict()["up1.weight"])


def test_predict_scan_is_the_forward_pass_whatever_the_layout():
    model = initial_network({**TINY, "widths": [4, 4, 8, 8]}, 3, "layout").eval()
    scan = np.random.default_rng(0).random((4, 8, 12), np.float32)
    with torch.no_grad():
        segmentation, classification = model(torch.from_numpy(scan)[None, None])
    model.train()  # as it is between two epochs
    logit, haematoma = predict_scan(place(model, torch.device("cpu")), scan, torch.device("cpu"))
    assert logit == pytest.approx(classification.item(), abs=1e-5)
    np.testing.assert_allclose(haematoma, torch.sigmoid(segmentation)[0, 0], atol=1e-5)


def test_probability_is_the_logistic_function_without_overflow():
    assert probability(0.0) == 0.5
    assert probability(np.log(3.0)) == pytest.approx(0.75, rel=1e-15)
    assert probability(-1e4) == 0.0
    assert probability(1e4) == 1.0
    assert 0 < probability(-700.0) < 1e-300


def test_computing_sets_and_sets_back():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with computing(2, deterministic=True) as device:
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
