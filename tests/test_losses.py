import math

import pytest
import torch

from haemex.losses import expansion_loss, soft_dice_loss, training_loss


def logits_of(probabilities):
    p = torch.tensor(probabilities, dtype=torch.float64)
    return (torch.log(p) - torch.log1p(-p)).reshape(1, 1, 1, 1, -1)


def mask_of(values):
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 1, 1, -1)


def test_soft_dice_by_hand():
    # p = .9 .5 .2 0.1, g = 1 1 0 0: overlap 1.4, sums 1.7 and 2, Dice (2.8 + 1) / (3.7 + 1).
    loss = soft_dice_loss(logits_of([0.9, 0.5, 0.2, 0.1]), mask_of([1, 1, 0, 0]))
    assert loss.item() == pytest.approx(1 - 3.8 / 4.7, rel=1e-12)


def test_each_volume_has_its_own_dice():
    # One volume right, one wrong: the mean of the two losses, not the loss of the pooled voxels.
    logits = torch.cat([logits_of([0.8, 0.3]), logits_of([0.4, 0.1])])
    masks = torch.cat([mask_of([1, 0]), mask_of([1, 1])])
    single = [soft_dice_loss(logits[i : i + 1], masks[i : i + 1]).item() for i in range(2)]
    assert single == pytest.approx([1 - 2.6 / 3.1, 1 - 2.0 / 3.5], rel=1e-12)
    assert soft_dice_loss(logits, masks).item() == pytest.approx(sum(single) / 2, rel=1e-12)


def test_an_empty_mask_pulls_predictions_down():
    logits = logits_of([0.25, 0.25, 0.5]).requires_grad_()
    loss = soft_dice_loss(logits, mask_of([0, 0, 0]))
    assert loss.item() == pytest.approx(1 - 1 / 2, rel=1e-12)
    loss.backward()
    assert (logits.grad > 0).all()
    nothing = torch.full((1, 1, 1, 1, 3), -100.0)
    assert soft_dice_loss(nothing, mask_of([0, 0, 0])).item() == pytest.approx(0, abs=1e-12)
    assert soft_dice_loss(-nothing, mask_of([1, 1, 1])).item() == pytest.approx(0, abs=1e-12)


def test_cross_entropy_by_hand_and_finite_where_a_sigmoid_saturates():
    logits = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    by_hand = (-math.log(0.5) - math.log(0.25)) / 2
    assert expansion_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(by_hand, rel=1e-12)
    assert expansion_loss(torch.tensor([1000.0]), torch.tensor([0])).item() == 1000.0


def test_the_sum_is_weighted():
    logits, mask = logits_of([0.9, 0.5, 0.2, 0.1]), mask_of([1, 1, 0, 0])
    weights = {"segmentation": 0.9, "classification": 0.1}
    total, dice_loss, cross_entropy = training_loss(
        logits, torch.zeros(1, dtype=torch.float64), mask, torch.ones(1), weights
    )
    assert dice_loss.item() == pytest.approx(1 - 3.8 / 4.7, rel=1e-12)
    assert cross_entropy.item() == pytest.approx(math.log(2), rel=1e-12)
    assert total.item() == pytest.approx(0.9 * (1 - 3.8 / 4.7) + 0.1 * math.log(2), rel=1e-12)


def test_gradients_are_right():
    logits = torch.randn(2, 1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]).reshape(2, 1, 1, 2, 3)
    assert torch.autograd.gradcheck(lambda values: soft_dice_loss(values, masks), logits)
