"""Models made of models, to attack in place of one that is not known."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ..contract import check_number


class Ensemble(nn.Module):
    """Several networks as one, by the mean of their logits or of their probabilities (Liu et al. 2017).

    In Dong et al. (2018) the mean of logits transfers best. The mean of their losses, the third in use, is the loss of
    no model.

    Args:
        networks: each maps images (N, ...) to logits (N, K).
        probabilities: average these, and answer their logarithms; otherwise the logits.

    Raises:
        ValueError: if there are no networks.

    Example:
        >>> double = Ensemble([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> x = torch.rand(5, 2)
        >>> torch.allclose(double(x), (double.networks[0](x) + double.networks[1](x)) / 2)
        True
    """

    def __init__(self, networks: Sequence[nn.Module], probabilities: bool = False) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        self.networks, self.probabilities = nn.ModuleList(networks), probabilities

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([network(x) for network in self.networks])
        if self.probabilities:
            return logits.log_softmax(2).logsumexp(0) - math.log(len(self.networks))
        return logits.mean(0)


class ParameterNoise(nn.Module):
    """A network whose weights are others at every pass: ``θ · (1 + σ z)``, z from N(0, 1).

    A model that never is the same cannot be overfitted to: the attack climbs what networks around this one have in
    common (in the manner of Li et al. 2023, who learn the noise's shape). The network itself and its buffers stay as
    they are.

    The noise comes from a generator of its own, which starts from the seed and goes on with every pass.

    Args:
        network: maps images to logits.
        sigma: σ; 0 is the network itself.
        seed: where the noise starts.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> noisy, x = ParameterNoise(network, sigma=0.1), torch.rand(5, 2)
        >>> first, second = noisy(x), noisy(x)
        >>> bool((first != second).any()), torch.equal(ParameterNoise(network, 0.0)(x), network(x))
        (True, True)
    """

    def __init__(self, network: nn.Module, sigma: float, seed: int = 0) -> None:
        super().__init__()
        check_number("sigma", sigma, 0.0)
        check_number("seed", seed, 0)
        self.network, self.sigma = network, sigma
        self.generator = Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if self.sigma == 0:
            return self.network(x)
        weights = {}
        for name, weight in self.network.named_parameters():
            z = torch.randn(weight.shape, generator=self.generator).to(weight)
            weights[name] = weight.detach() * (1 + self.sigma * z)
        return functional_call(self.network, weights, x)
