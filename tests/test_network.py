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
    initial_network,
    place,
    predict_scan,
    probability,
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
    ],
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(InputError, match=named):
        TwoOutputUNet(**{**TINY, **change})


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
