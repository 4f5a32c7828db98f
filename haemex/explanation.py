"""Where a prediction of expansion comes from: the gradient-weighted activation (Grad-CAM) of the network's bridge.

Selvaraju RR, et al. Grad-CAM: visual explanations from deep networks via gradient-based localization. ICCV 2017;
doi:10.1109/ICCV.2017.74. With A_k(v) the bridge's channel k at voxel v, y the logit of expansion and n the voxels of
the bridge,

    a_k = 1/n sum over v of dy/dA_k(v),    L(v) = max(0, sum over k of a_k A_k(v)).

The classification branch sits on the bridge, so that one pass back through this branch suffices. A map says where the
network found what spoke for expansion. It does not say that this causes expansion, nor how sure the network is; what
speaks against expansion is not shown. It is as blurred as what one voxel of the bridge sees (47 voxels of the scan to
each side in the paper's network, most of it near the middle), and tells haematoma from no haematoma better than one
marker from another. As every map is scaled to its own maximum, maps of two patients cannot be compared in brightness.
With instance normalisation the mean of a channel has no say in the logit: the a_k are small, and hang on the borders.
"""

import numpy as np
import torch


def relevance_map(model, bridge):
    """Compute where the evidence for expansion lies.

    In fp32, whatever the bridge was computed in.

    Parameters
    ----------
    model : haemex.network.TwoOutputUNet
        In evaluation mode; its weights and their gradients are left as they are.
    bridge : torch.Tensor, (1, channel, z, y, x)
        Of `haemex.network.predict_scan_and_bridge`, on the model's device.

    Returns
    -------
    relevance : numpy.ndarray of float32, (z, y, x)
        L divided by its maximum, on the bridge's grid (`bridge_affine`); zero throughout where nothing spoke for
        expansion.
    maximum : float
        Of L before the division: logit per voxel of the bridge. Not finite if the weights are not usable.
    """
    # Whatever holds around the call: a prediction runs in inference mode, where nothing has a gradient, or in bf16.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(bridge.device.type, enabled=False):
        features = bridge.detach().float().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.classify_bridge(features).sum(), features)
        weights = gradient.mean((2, 3, 4), keepdim=True)
        evidence = (weights * features).sum(1)[0].detach().cpu().numpy()
    relevance = np.maximum(evidence, 0)
    maximum = float(relevance.max())
    return relevance / np.float32(maximum) if maximum > 0 else relevance, maximum


def bridge_affine(model, affine):
    """Make the affine of the bridge's grid.

    A convolution of stride 2 with a kernel of 3 and a padding of 1 is centred on every other voxel, beginning with the
    first; so is the shortcut around it. The bridge's voxels therefore lie on every fourth voxel of the scan (along z
    on every second or on every one, with in-plane levels), not in the middle of a block of four as after pooling.

    Parameters
    ----------
    model : haemex.network.TwoOutputUNet
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of the scan to RAS, mm.

    Returns
    -------
    numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of the bridge to RAS, mm.
    """
    return np.asarray(affine, float) @ np.diag([*(2.0**times for times in model.halvings[::-1]), 1.0])
