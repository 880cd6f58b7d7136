"""Neural Cleanse: search the smallest trigger for every label; one that is far smaller than the others was planted."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..contract import (
    Hyperparameters,
    Model,
    check_fraction,
    check_images,
    check_logits,
    check_number,
    evaluating,
    modules_of,
    private_generator,
)


def anomaly_index(norms: Tensor) -> Tensor:
    """How many robust standard deviations each norm (K,) lies from the median (Wang et al. 2019, section IV-C)::

        |norm − median| / (1.4826 · median |norm − median|)

    The factor makes the denominator the standard deviation if the norms are normal. 0/0 is 0.

    Example:
        >>> anomaly_index(torch.tensor([10.0, 50.0, 49.0, 51.0, 52.0, 48.0, 50.0])).round(decimals=1)
        tensor([27.0000,  0.0000,  0.7000,  0.7000,  1.3000,  1.3000,  0.0000])
    """
    distance = (norms - norms.quantile(0.5)).abs()
    spread = 1.4826 * distance.quantile(0.5)
    return torch.where(distance > 0, distance / spread, 0)


@dataclass(frozen=True)
class Inverted:
    """The smallest trigger that was found for each label.

    Attributes:
        masks: how far the trigger covers each pixel (K, 1, H, W), in [0, 1].
        patterns: what it shows there (K, C, H, W), in [0, 1].
        success: on which share of a batch it worked (K,); 0 where none worked as often as was asked for, and mask and
            pattern are those that the search began with, which take half of all pixels.
    """

    masks: Tensor
    patterns: Tensor
    success: Tensor

    @property
    def norms(self) -> Tensor:
        """How many pixels each trigger takes (K,), by the L1 norm of its mask."""
        return self.masks.flatten(1).sum(1)

    @property
    def index(self) -> Tensor:
        """The `anomaly_index` of each label (K,)."""
        return anomaly_index(self.norms)

    @property
    def flagged(self) -> Tensor:
        """Labels whose trigger is small by an index of more than 2, bool (K,)."""
        return (self.index > 2) & (self.norms < self.norms.quantile(0.5))


@dataclass(frozen=True, repr=False)
class NeuralCleanse(Hyperparameters):
    """Inverts the smallest trigger for every label, all of them at once (Wang et al. 2019)::

        minimise over mask m and pattern Δ   cross-entropy(f((1 − m) · x + m · Δ), label) + weight · ‖m‖₁

    by Adam on numbers of which m and Δ are (tanh + 1) / 2. The weight begins at 0, is switched on when the trigger has
    worked for `patience` steps, and from then on grows by `factor` whenever the trigger has worked for that long and
    shrinks by factor^1.5 whenever it has failed for that long. The smallest mask that worked on its batch is kept.

    Defaults are those of the authors' example, but for the length of a step: there it is a pass over 1,000 images, here
    a batch, so a mask is judged on fewer images. There is no early stop.

    Args:
        steps: of the optimizer.
        batch_size: images in a step.
        step_size: the learning rate.
        weight: of the mask's norm when it is switched on.
        factor: by which the weight is adapted.
        patience: after how many steps.
        success: a trigger works if so large a share of the batch gets the label.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int = 1000
    batch_size: int = 32
    step_size: float = 0.1
    weight: float = 1e-3
    factor: float = 2.0
    patience: int = 5
    success: float = 0.99

    def __post_init__(self) -> None:
        for name in "steps", "batch_size", "patience":
            check_number(name, getattr(self, name), 1)
        for name in "step_size", "weight":
            check_number(name, getattr(self, name), 0.0)
        check_number("factor", self.factor, 1.0)
        check_fraction("success", self.success)

    def __call__(self, model: Model, x: Tensor, *, generator: Generator | None = None) -> Inverted:
        """The smallest triggers found for the labels of a model.

        Args:
            model: maps images to logits (N, K). It is put in eval mode and left as it was.
            x: clean images of all classes (N, C, H, W) in [0, 1]; their labels do not matter.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

        Raises:
            ValueError: if the images or the model's answers are not as described.
        """
        check_images(x)
        if x.ndim != 4:
            raise ValueError(f"triggers are sought for images (N, C, H, W), got shape {tuple(x.shape)}")
        random = private_generator(generator, x)
        with evaluating(modules_of(model)), torch.inference_mode(False), torch.enable_grad():
            labels = check_logits(model(x[:1]), 1).shape[1]
            return self._search(model, x.detach().clone(), labels, random)

    def _search(self, model: Model, x: Tensor, labels: int, random: Generator) -> Inverted:
        size = min(self.batch_size, len(x))
        wanted = torch.arange(labels, device=x.device).repeat_interleave(size)
        shapes = (labels, 1, 1, *x.shape[2:]), (labels, 1, *x.shape[1:])
        starts = [x.new_empty(shape).uniform_(generator=random) for shape in shapes]
        free = [(start.logit(1e-3) / 2).requires_grad_() for start in starts]
        optimizer = torch.optim.Adam(free, self.step_size, betas=(0.5, 0.9))
        weight, streak = x.new_zeros(2, labels)  # a streak counts successes in a row, or failures below zero
        best = Inverted(starts[0][:, 0], starts[1][:, 0], x.new_zeros(labels))
        smallest = torch.full_like(weight, torch.inf)
        for _ in range(self.steps):
            batch = x[torch.randperm(len(x), generator=random, device=x.device)[:size]]
            mask, pattern = (each.tanh() / 2 + 0.5 for each in free)
            logits = model(((1 - mask) * batch + mask * pattern).flatten(0, 1))
            works = (logits.argmax(1) == wanted).view(labels, size).to(x.dtype).mean(1)
            norm = mask.flatten(1).sum(1)

            better = ((works >= self.success) & (norm < smallest)).detach()
            smallest = torch.where(better, norm.detach(), smallest)
            shown = better.view(-1, 1, 1, 1)
            kept = zip((mask, pattern), (best.masks, best.patterns), strict=True)
            masks, patterns = (torch.where(shown, new.detach()[:, 0], old) for new, old in kept)
            best = Inverted(masks, patterns, torch.where(better, works, best.success))

            error = F.cross_entropy(logits, wanted, reduction="none").view(labels, size).mean(1)
            (error + weight * norm).sum().backward(inputs=free)
            optimizer.step()
            optimizer.zero_grad()
            weight, streak = self._adapted(weight, streak, works >= self.success)
        return best

    def _adapted(self, weight: Tensor, streak: Tensor, works: Tensor) -> tuple[Tensor, Tensor]:
        """The weights (K,) after another step, and how long each label's trigger has worked or failed in a row (K,)."""
        streak = torch.where(works, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)
        up, down = streak >= self.patience, streak <= -self.patience
        raised = torch.where(weight == 0, self.weight, weight * self.factor)
        weight = torch.where(up, raised, torch.where(down, weight / self.factor**1.5, weight))
        return weight, streak.where(~(up | down), 0)
