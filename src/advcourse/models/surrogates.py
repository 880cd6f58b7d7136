"""Models made of models, to attack in place of one that is not known."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ..contract import check_number

LAYERS = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear


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

    def extra_repr(self) -> str:
        return f"probabilities={self.probabilities}"

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

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, seed={self.generator.initial_seed()}"

    def forward(self, x: Tensor) -> Tensor:
        if self.sigma == 0:
            return self.network(x)
        weights = {}
        for name, weight in self.network.named_parameters():
            z = torch.randn(weight.shape, generator=self.generator).to(weight)
            weights[name] = weight.detach() * (1 + self.sigma * z)
        return functional_call(self.network, weights, x)


class Ghost(nn.Module):
    """A network some of whose numbers are erased on their way into its layers, others at every pass (Li et al. 2020).

    Dropout, as in training, before every convolution and every linear layer, though the network is in eval mode. Each
    pass sees another network, a ghost of the one that there is, and none of them had to be trained.

    The noise comes from a generator of its own, which starts from the seed and goes on with every pass.

    Args:
        network: maps images to logits.
        p: the probability that a number is erased; 0 is the network itself. Li et al. take 0.006 for large networks.
        seed: where the noise starts.

    Raises:
        ValueError: if there is no such layer, or p is not in [0, 1).

    Example:
        >>> network = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
        >>> ghost, x = Ghost(network, p=0.2), torch.rand(5, 20)
        >>> bool((ghost(x) != ghost(x)).any()), torch.equal(Ghost(network, p=0.0)(x), network(x))
        (True, True)
    """

    def __init__(self, network: nn.Module, p: float, seed: int = 0) -> None:
        super().__init__()
        check_number("p", p, 0.0)
        if p >= 1:
            raise ValueError(f"p must be a probability below 1, got {p}")
        check_number("seed", seed, 0)
        self.network, self.p = network, p
        self.generator = Generator().manual_seed(seed)
        self.layers = [part for part in network.modules() if isinstance(part, LAYERS)]
        if not self.layers:
            raise ValueError(f"{type(network).__name__} has neither convolutions nor linear layers to erase inputs of")

    def extra_repr(self) -> str:
        return f"p={self.p}, seed={self.generator.initial_seed()}"

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0:
            return self.network(x)
        handles = [layer.register_forward_pre_hook(self._erase) for layer in self.layers]
        try:
            return self.network(x)
        finally:
            for handle in handles:
                handle.remove()

    def _erase(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        numbers, *rest = inputs
        kept = torch.rand(numbers.shape, generator=self.generator).to(numbers.device) >= self.p
        return numbers * kept / (1 - self.p), *rest


class Rotation(nn.Module):
    """Several networks, one at each pass, in an order that is shuffled anew whenever all have had their turn.

    It costs what one network costs, and an attack of many steps sees them all, as in LGV (Gubri et al. 2022).

    Args:
        networks: each maps images to logits.
        seed: of the order.

    Raises:
        ValueError: if there are no networks.

    Example:
        >>> turns = Rotation([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> x = torch.rand(5, 2)
        >>> first, second = turns(x), turns(x)
        >>> sorted(bool((first == network(x)).all()) for network in turns.networks)
        [False, True]
    """

    def __init__(self, networks: Sequence[nn.Module], seed: int = 0) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a rotation needs at least one network")
        check_number("seed", seed, 0)
        self.networks = nn.ModuleList(networks)
        self.generator = Generator().manual_seed(seed)
        self.waiting: list[int] = []

    def extra_repr(self) -> str:
        return f"seed={self.generator.initial_seed()}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.waiting:
            self.waiting = torch.randperm(len(self.networks), generator=self.generator).tolist()
        return self.networks[self.waiting.pop()](x)
