"""The training loss: soft Dice for the segmentation, binary cross-entropy for the classification."""

import torch
from torch.nn import functional

SMOOTH_VOXELS = 1.0


def soft_dice_loss(logits, masks):
    """Compute 1 - Dice coefficient of each volume and take the mean (supplement, "Training process").

    Dice = (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) over the voxels of one volume; p is the sigmoid of the logit, g the
    mask.

    Parameters
    ----------
    logits : torch.Tensor, (batch, 1, z, y, x)
        Segmentation output.
    masks : torch.Tensor, (batch, 1, z, y, x)
        0 or 1, any type.

    Returns
    -------
    torch.Tensor, ()
        Mean over the batch, between 0 and 1.

    Notes
    -----
    Empty mask: a haematoma can lie outside the network's field of view. The one voxel added on both sides gives an
    empty mask a loss of 0 where nothing is predicted, and a gradient towards that where something is; without it the
    loss would be 1 whatever is predicted. It moves the Dice of any other volume by at most 1 / (sum(p) + sum(g) + 1).
    """
    # ASSUME: sums, not sums of squares, in the denominator, and a smoothing of one voxel; the paper prints neither.
    predicted = torch.sigmoid(logits).flatten(1)
    masks = masks.flatten(1).to(predicted.dtype)
    overlap = (predicted * masks).sum(1)
    total = predicted.sum(1) + masks.sum(1)
    return (1 - (2 * overlap + SMOOTH_VOXELS) / (total + SMOOTH_VOXELS)).mean()


def expansion_loss(logits, labels):
    """Compute the binary cross-entropy, mean over the batch.

    Parameters
    ----------
    logits : torch.Tensor, (batch,)
        Classification output.
    labels : torch.Tensor, (batch,)
        1 if the haematoma expanded, else 0.

    Returns
    -------
    torch.Tensor, ()
        In nats.
    """
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def training_loss(segmentation, classification, masks, labels, weights):
    """Compute the weighted sum of both losses; the paper's weights are 9 : 1.

    Parameters
    ----------
    segmentation, masks : torch.Tensor, (batch, 1, z, y, x)
        Logits and reference.
    classification, labels : torch.Tensor, (batch,)
        Logits and reference.
    weights : dict
        `segmentation` and `classification`.

    Returns
    -------
    total, dice_loss, cross_entropy : torch.Tensor, ()
        The weighted sum and its two parts.
    """
    dice_loss = soft_dice_loss(segmentation, masks)
    cross_entropy = expansion_loss(classification, labels)
    return weights["segmentation"] * dice_loss + weights["classification"] * cross_entropy, dice_loss, cross_entropy
