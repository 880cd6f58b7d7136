"""Targets that are harder to ask than a plain network: quantized, projecting, refusing, noisy."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import check_fraction, check_images, check_number, evaluating, logits_of, modules_of, named
from ..goals import REFUSED

LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
"""The layers that `Quantized` rounds."""


def bit_depth(x: Tensor, bits: int) -> Tensor:
    """Images in [0, 1] (N, ...) rounded to 2^bits values for each feature (Xu et al. 2018).

    Example:
        >>> bit_depth(torch.tensor([[0.1, 0.4, 0.6, 0.8]]), bits=1)
        tensor([[0., 0., 1., 1.]])
    """
    check_number("bits", bits, 1)
    return (x * (2**bits - 1)).round() / (2**bits - 1)


def median_filter(x: Tensor, size: int = 2) -> Tensor:
    """Each pixel of x (N, C, H, W) replaced by the median of its size x size window (Xu et al. 2018).

    As in the authors' code, a window of even size reaches one pixel farther up and left, and the larger of the two
    middle values is taken. The border is repeated outwards.

    Example:
        >>> spot = torch.zeros(1, 1, 4, 4)
        >>> spot[0, 0, 2, 2] = 1
        >>> median_filter(spot).max()
        tensor(0.)
    """
    check_number("size", size, 1)
    if x.ndim != 4:
        raise ValueError(f"a median filter needs images (N, C, H, W), got shape {tuple(x.shape)}")
    before, after = size // 2, (size - 1) // 2
    windows = F.pad(x, (before, after, before, after), mode="replicate").unfold(2, size, 1).unfold(3, size, 1)
    return windows.flatten(-2).kthvalue(size * size // 2 + 1).values


class Quantized(nn.Module):
    """A copy of a network that computes with integers of so many bits.

    Weights and outputs of linear and convolutional layers are rounded to a grid around 0 of 2^bits − 1 values, a row
    at a time: the weights of each output channel, the activations of each image. The step of the grid is a power of
    two that holds the row's largest magnitude, a shared exponent as in Köster et al. (2017, "Flexpoint"). So no image
    depends on its neighbours, and nothing has to be calibrated. Arithmetic between the layers stays in floating point.

    Rounding makes the answer piecewise constant, with a gradient of exactly zero: attack it through an oracle.

    Args:
        network: maps images (N, ...) in [0, 1] to logits (N, K). It is left as it was.
        bits: of weights and activations, 2 or more.
        input_bits: of each feature of the input, see `bit_depth`; None leaves the input alone.

    Raises:
        ValueError: if the network has no layer to quantize, or a number of bits is too small.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=100)
        >>> [int((Quantized(models.load("cnn"), bits)(x).argmax(1) == y).sum()) > 85 for bits in (8, 2)]
        [True, False]
    """

    def __init__(self, network: nn.Module, bits: int = 8, input_bits: int | None = None) -> None:
        super().__init__()
        check_number("bits", bits, 2)
        if input_bits is not None:
            check_number("input_bits", input_bits, 1)
        self.network, self.bits, self.input_bits = copy.deepcopy(network), bits, input_bits
        layers = [module for module in modules_of(self.network) if isinstance(module, LAYERS)]
        if not layers:
            raise ValueError(f"{type(network).__name__} has no linear or convolutional layer to quantize")
        for layer in layers:
            with torch.no_grad():
                layer.weight.copy_(to_grid(layer.weight, bits))
            layer.register_forward_hook(partial(_output_to_grid, bits=bits))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, input_bits={self.input_bits}"

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x if self.input_bits is None else bit_depth(x, self.input_bits))


def to_grid(values: Tensor, bits: int) -> Tensor:
    """Values (R, ...) rounded to integers of so many bits times a power of two of each row's own.

    Example:
        >>> to_grid(torch.tensor([[0.9, -0.3, 0.1], [9.0, -3.0, 1.0]]), bits=3)
        tensor([[ 0.7500, -0.2500,  0.0000],
                [ 8.0000, -4.0000,  0.0000]])
    """
    largest = values.detach().abs().amax(tuple(range(1, values.ndim)), keepdim=True)
    step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - (bits - 1))
    step = step.clamp_min(torch.finfo(values.dtype).tiny)
    last = 2 ** (bits - 1) - 1
    return (values / step).round().clamp(-last, last) * step


def _output_to_grid(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, bits: int) -> Tensor:
    return to_grid(output, bits)


class Projected(nn.Module):
    """A network that sees only what a few directions can express (Bhagoji et al. 2018, principal components).

    ``network(clip(mean + basis' · basis · (x − mean)))``. What an attack changes across the directions is lost, so part
    of every random direction is wasted. The authors train the network on projected images; here it is the network that
    one has.

    Args:
        network: maps images (N, ...) in [0, 1] to logits (N, K).
        mean: the centre (D,), where D counts the features of one image.
        basis: orthonormal rows (components, D).

    Raises:
        ValueError: if mean and basis do not fit together, the basis is not orthonormal, or images have not D features.

    Example:
        >>> x = torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.5, 0.5]])
        >>> Projected.fit(nn.Identity(), x, components=1)(torch.tensor([[0.2, 0.4]]))
        tensor([[0.3000, 0.3000]])
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, basis: Tensor) -> None:
        super().__init__()
        if mean.ndim != 1 or basis.ndim != 2 or basis.shape[1] != len(mean):
            raise ValueError(
                f"expected mean (D,) and basis (components, D), got {tuple(mean.shape)} and {tuple(basis.shape)}"
            )
        if ((basis @ basis.T - torch.eye(len(basis)).to(basis)).abs() > 1e-3).any():
            raise ValueError("the rows of the basis must be orthonormal: torch.linalg.qr(rows.T).Q.T makes them so")
        self.network = network
        self.register_buffer("mean", mean.clone())
        self.register_buffer("basis", basis.clone())

    @classmethod
    def fit(cls, network: nn.Module, images: Tensor, components: int) -> Self:
        """Keep so many principal components of images (N, ...), at most N and D of them."""
        check_images(images)
        check_number("components", components, 1)
        rows = images.flatten(1).double()
        if components > min(rows.shape):
            raise ValueError(f"{len(rows)} images of {rows.shape[1]} features have no {components} components")
        mean = rows.mean(0)
        basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:components]
        return cls(network, mean.to(images.dtype), basis.to(images.dtype))

    def project(self, x: Tensor) -> Tensor:
        """The nearest points to x (N, ...) that the directions can express; they may leave [0, 1]."""
        rows, mean, basis = x.flatten(1), self.mean.to(x.dtype), self.basis.to(x.dtype)
        if rows.shape[1] != len(mean):
            raise ValueError(f"the projection is one of {len(mean)} features, got images of {rows.shape[1]}")
        return (mean + (rows - mean) @ basis.T @ basis).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.project(x).clamp(0, 1))


class Detector(nn.Module):
    """A network that refuses to answer where squeezing the input changes its mind (feature squeezing, Xu et al. 2018).

    It answers labels (N,), int64, and −1 where the L1 distance between ``softmax(network(x))`` and
    ``softmax(network(squeeze(x)))`` exceeds the threshold. Ask it through `advcourse.oracles.Labels`.

    Args:
        network: maps images (N, ...) in [0, 1] to logits (N, K).
        squeeze: maps images to images that mean the same and are simpler, such as `median_filter` or
            ``functools.partial(bit_depth, bits=3)``.
        threshold: from 0 to 2, where nothing is refused.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=100)
        >>> detector = Detector.calibrated(models.load("cnn"), median_filter, x, rate=0.05)
        >>> (detector(x) == -1).sum()
        tensor(5)
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], squeeze: Callable[[Tensor], Tensor], threshold: float
    ) -> None:
        super().__init__()
        check_number("threshold", threshold, 0.0)
        self.network, self.squeeze, self.threshold = network, squeeze, threshold

    @classmethod
    def calibrated(
        cls,
        network: Callable[[Tensor], Tensor],
        squeeze: Callable[[Tensor], Tensor],
        images: Tensor,
        rate: float = 0.05,
    ) -> Self:
        """Refuse this fraction of clean images (N, ...); fewer if their distances are equal."""
        check_images(images)
        check_fraction("rate", rate)
        lenient = cls(network, squeeze, 2.0)
        with evaluating(modules_of(lenient)), torch.no_grad():
            distances = lenient.compared(images)[1]
        kept = len(images) - round(rate * len(images))
        return cls(network, squeeze, distances.sort().values[kept - 1].item() if kept else 0.0)

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels that nobody refuses (N,), int64, and how far squeezing moves the probabilities (N,), in 0..2."""
        logits, squeezed = (logits_of(self.network, seen) for seen in (x, self.squeeze(x)))
        return logits.argmax(1), (logits.softmax(1) - squeezed.softmax(1)).abs().sum(1)

    def extra_repr(self) -> str:
        return f"squeeze={named(self.squeeze)}, threshold={self.threshold}"

    def forward(self, x: Tensor) -> Tensor:
        labels, distance = self.compared(x)
        return labels.where(distance <= self.threshold, REFUSED)


class Randomized(nn.Module):
    """A network that answers about a point near the one it was asked about: x + sigma · N(0, I), anew each time.

    The random noise defence against attacks by queries (Qin et al. 2021; Byun et al. 2022): differences between
    answers drown in the noise if an attack takes them closer together than sigma. The noise is not clipped.

    The noise comes from a generator of its own on the device of x, which starts from the seed, goes on with every
    question, and is copied and pickled with the network. Backpropagation sees through it.

    Args:
        network: maps images (N, ...) in [0, 1] to logits (N, K).
        sigma: standard deviation of the noise, in units of the input.
        seed: where the noise starts.

    Example:
        >>> model, x = Randomized(nn.Identity(), sigma=0.1), torch.zeros(1, 10000)
        >>> first, second = model(x), model(x)
        >>> round(first.std().item(), 2), torch.equal(first, second)
        (0.1, False)
    """

    def __init__(self, network: nn.Module, sigma: float, seed: int = 0) -> None:
        super().__init__()
        check_number("sigma", sigma, 0.0)
        check_number("seed", seed, 0)
        self.network, self.sigma, self.seed = network, sigma, seed
        self.generator = torch.Generator().manual_seed(seed)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, seed={self.seed}"

    def forward(self, x: Tensor) -> Tensor:
        if self.generator.device != x.device:
            self.generator = torch.Generator(x.device).manual_seed(self.seed)
        return self.network(x + self.sigma * torch.empty_like(x).normal_(generator=self.generator))
