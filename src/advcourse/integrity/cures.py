"""Curing a network that has a backdoor, with clean images alone: prune, then fine-tune with `advcourse.training`."""

import copy

import torch
from torch import Tensor, nn

from ..contract import check_fraction, check_images
from ..evaluation import predict
from .detectors import last_layer


def prune(model: nn.Module, x: Tensor, share: float) -> nn.Module:
    """A copy of a network without the channels that clean images leave cold (Liu et al. 2018, fine-pruning).

    The channels of the last convolution are ranked by their mean activation on the images, behind a ReLU. Weights and
    biases of the lowest are set to zero. A channel behind which stands a ReLU stays dead when the copy is trained on,
    which is the method's second half; before batch norm it becomes a constant.

    Args:
        model: maps images to logits, with at least one convolution. It is left as it was found.
        x: clean images (N, C, H, W) in [0, 1].
        share: the share of the channels to be pruned, in [0, 1].

    Raises:
        ValueError: if images or share are not as described, or there is no convolution.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> pruned = prune(model, torch.rand(5, 1, 4, 4), share=0.5)
        >>> int((pruned[0].weight == 0).flatten(1).all(1).sum()), bool((model[0].weight == 0).any())
        (2, False)
    """
    check_images(x)
    check_fraction("share", share)
    pruned = copy.deepcopy(model)
    convolution = last_layer(pruned, nn.Conv2d)
    excited: list[Tensor] = []
    handle = convolution.register_forward_hook(lambda _, inputs, output: excited.append(output.relu().mean((2, 3))))
    try:
        predict(pruned, x)
    finally:
        handle.remove()
    activation = torch.cat(excited).mean(0)
    dormant = activation.argsort()[: round(share * len(activation))]
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter[dormant] = 0
    return pruned
