"""GenAttack: a genetic algorithm, which needs scores to compare and no slope at all."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..ascent import State, Verdict
from ..contract import check_loss, check_number
from ..goals import Goal, Loss, Untargeted, logit, margin
from ..gradients import Scored
from ..oracles import Scores
from ..threat import Ball, Linf
from .query import QueryAttack, at_clean


def odds(logits: Tensor, goal: Goal) -> Tensor:
    """The logarithm of the label's odds, its sign that of the goal (N,): log p_t − log Σ p_j over j != t when
    targeted, log Σ p_j over j != y − log p_y untargeted.

    It is unchanged when a constant is added to all logits, and the margin with a sum of exponentials for its maximum.

    Example:
        >>> from advcourse.goals import Targeted
        >>> logits = torch.tensor([[0.5, 0.2, 0.3]]).log()
        >>> odds(logits, Targeted(torch.tensor([1]))).exp(), odds(logits, Untargeted(torch.tensor([1]))).exp()
        (tensor([0.2500]), tensor([4.]))
    """
    return logit(logits, goal) - goal.sign * goal.rivals(logits).logsumexp(1)


@dataclass(frozen=True, repr=False)
class GenAttack(QueryAttack):
    """GenAttack (Alzantot et al. 2019, algorithm 1): noises in the box around an image are bred for a high loss L.

    ::

        elite  = the member of highest L, which lives on
        chance = softmax(L / temperature), by which each child draws two parents, a and b
        child  = in each feature that of a with probability chance_a / (chance_a + chance_b), else that of b
        child  ← Π(child + Bernoulli(ρ) · U(−α · eps, α · eps))
        ρ      = max(least_mutation_rate, mutation_rate · decay^k), and α likewise from mutation_range

    k counts the plateaus of the image so far: `plateau` generations in a row that did not raise its highest loss. The
    first generation is uniform in the ball. An image is done as soon as a member is fooled; until then its highest loss
    never falls, and `x` and `best` are its elite.

    The clean image costs one query, the first generation `population` and each later one ``population - 1``, as the
    elite is not asked again. An image whose budget does not pay for a whole generation keeps its best so far; one that
    cannot pay for the first comes back clean.

    The attack of the paper is targeted, and so is the `odds` of its target the loss; untargeted the margin takes its
    place. The defaults are the authors'. For MNIST they take ``population=4, mutation_rate=0.3, mutation_range=0.5,
    decay=1``; with fewer than some thousand queries a `plateau` of 10 fools more images. Their program differs from
    this in that its first generation mutates only the share ρ of all features, the next ten mutate every one, noises
    may grow out of the ball and are cut back only when asked, and plateaus take 300 generations while the target is far
    behind. Their paper takes the losses, which may be negative, where the program and this take the chances of parents.

    Args:
        ball: where to stay, `Linf(eps)`.
        steps: generations, at most.
        population: members of a generation.
        mutation_rate: ρ, which share of the features of a child mutates, in [0, 1].
        mutation_range: α, how far at most, as a fraction of eps.
        temperature: how little the loss says in the choice of parents.
        plateau: generations without progress after which rate and range fall.
        decay: what they are multiplied by, in [0, 1].
        least_mutation_rate, least_mutation_range: where they stop falling.
        resize: side of a smaller image in which noises are bred, to be enlarged bilinearly; for images (N, C, H, W).
            None for noises of the size of the input.
        loss: what to climb, larger when closer to fooled; by default the margin, or `odds` when targeted.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=10)
        >>> oracle = Scores(models.load("cnn"), budget=300)
        >>> *_, last = GenAttack(Linf(0.1)).iterates(oracle, x, y)
        >>> last.success.float().mean().item() > 0.5, oracle.queries.max().item() <= 300
        (True, True)
    """

    ball: Ball
    steps: int = 10_000
    population: int = 6
    mutation_rate: float = 0.5
    mutation_range: float = 0.4
    temperature: float = 0.1
    plateau: int = 100
    decay: float = 0.9
    least_mutation_rate: float = 0.005
    least_mutation_range: float = 0.2
    resize: int | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf):
            raise ValueError(f"ball must be Linf(eps), got {self.ball!r}; NES takes every ball")
        for name, least in ("steps", 1), ("population", 2), ("plateau", 1), ("temperature", 0.0), ("decay", 0.0):
            check_number(name, getattr(self, name), least)
        for name in "mutation_rate", "mutation_range":
            check_number(f"least_{name}", least := getattr(self, f"least_{name}"), 0.0)
            check_number(f"{name}, which falls to least_{name},", getattr(self, name), float(least))
        if self.temperature == 0 or max(self.decay, self.mutation_rate) > 1:
            raise ValueError(
                "temperature must be positive, decay and mutation_rate must be at most 1, got "
                f"{self.temperature}, {self.decay} and {self.mutation_rate}"
            )
        if self.resize is not None:
            check_number("resize", self.resize, 1)
        if self.loss is not None:
            check_loss(self.loss)

    def climb(self, oracle: Scores, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        if self.resize is not None and x.ndim != 4:
            raise ValueError(f"resize needs images (N, C, H, W), got shape {tuple(x.shape)}")
        judge = Scored(oracle, self.loss or (margin if isinstance(goal, Untargeted) else odds), goal)
        state = at_clean(judge, x)
        yield state
        every = torch.arange(len(x), device=x.device)
        features = x[0].numel() if self.resize is None else x.shape[1] * self.resize**2
        noise = x.new_empty(len(x), self.population, features)
        noise.uniform_(-self.ball.eps, self.ball.eps, generator=generator)
        loss, shrink, stale = noise.new_zeros(noise.shape[:2]), x.new_ones(len(x)), torch.zeros_like(every)
        new = self.population  # members not asked yet, the last ones
        for _ in range(self.steps):
            rows = (~state.success & oracle.affords(every, new)).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            members = self.members(noise[rows], x[rows])
            met = judge(members[:, -new:].flatten(0, 1), rows.repeat_interleave(new))
            loss[rows, -new:] = met.loss.view(-1, new)
            rank, fooled = loss[rows], met.fooled.view(-1, new)
            rank[:, -new:] = torch.where(fooled, torch.inf, rank[:, -new:])
            elite = rank.argmax(1)
            top = Verdict(loss[rows, elite], fooled.any(1))
            rose = top.loss > state.best_loss[rows]
            state = state.met(rows, members[every[: len(rows)], elite], top, better=torch.ones_like(rose))
            yield state
            stale[rows] = torch.where(rose, 0, stale[rows] + 1)
            shrink[rows] *= torch.where(rose | (stale[rows] % self.plateau > 0), 1, self.decay)
            children = self.children(noise[rows], loss[rows], shrink[rows], generator)
            noise[rows] = torch.cat([noise[rows, elite, None], children], 1)
            loss[rows, 0] = top.loss
            new = self.population - 1

    def members(self, noise: Tensor, x: Tensor) -> Tensor:
        """What is asked: noises (R, population, D) added to images x (R, ...), within ball and box."""
        if self.resize is not None:
            small = noise.view(-1, x.shape[1], self.resize, self.resize)
            noise = F.interpolate(small, x.shape[2:], mode="bilinear")
        return self.ball.project(x[:, None] + noise.view(len(x), self.population, *x.shape[1:]), x[:, None])

    def children(self, noise: Tensor, loss: Tensor, shrink: Tensor, generator: Generator) -> Tensor:
        """Noises (R, population - 1, D) bred from those (R, population, D) of these losses (R, population)."""
        chance = ((loss - loss.amax(1, keepdim=True)) / self.temperature).softmax(1)
        parents = chance.multinomial(2 * self.population - 2, replacement=True, generator=generator)
        a, b = parents.chunk(2, dim=1)
        share = chance.gather(1, a) / (chance.gather(1, a) + chance.gather(1, b))
        every = torch.arange(len(noise), device=noise.device)[:, None]
        uniform = noise.new_empty(3, len(noise), self.population - 1, noise.shape[2]).uniform_(generator=generator)
        child = torch.where(uniform[0] < share[..., None], noise[every, a], noise[every, b])
        rate = (self.mutation_rate * shrink).clamp_min(self.least_mutation_rate)[:, None, None]
        reach = (self.mutation_range * shrink).clamp_min(self.least_mutation_range)[:, None, None] * self.ball.eps
        mutation = torch.where(uniform[1] < rate, reach * (2 * uniform[2] - 1), 0)
        return (child + mutation).clamp(-self.ball.eps, self.ball.eps)
