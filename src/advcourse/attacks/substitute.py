"""A substitute for a model that can only be asked: a network trained on its answers, to be attacked in its place."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..contract import Hyperparameters, check_images, check_logits, check_number, private_generator
from ..goals import Targeted, logit
from ..gradients import Exact
from ..oracles import Labels, Oracle, Target
from .base import watched


@dataclass(frozen=True)
class Substituted:
    """A round of the training of a substitute. Neither its tensors nor its model are ever written again.

    Attributes:
        step: 0 after training on the seeds, then one more with every round.
        model: the substitute, in eval mode.
        points: all that was asked (R, ...).
        owner: the seed image that each point comes from and that paid for it (R,), int64.
        answers: what the oracle answered, labels (R,) or probabilities (R, K).
        queries: what each seed image has cost so far (N,), int64.
    """

    step: int
    model: nn.Module
    points: Tensor
    owner: Tensor
    answers: Tensor
    queries: Tensor


@dataclass(frozen=True, repr=False)
class Substitute(Hyperparameters):
    """A network that learns to answer as the oracle does, on points that it chooses itself (Papernot et al. 2017).

    ::

        train F on S and the oracle's answers;    S ← S ∪ { x + λ · sign(∇ F_O(x)(x)) : x ∈ S }

    Jacobian-based augmentation: each point is copied a step λ further in the direction in which F's score of the
    oracle's answer O(x) changes fastest, and the oracle asked about the copies. So S doubles with every round, and
    `rounds` of them cost ``2 ** (rounds - 1)`` queries for each seed image. Then λ changes its sign, and back, every
    `period` rounds. F goes on from the weights of the round before.

    What comes of it is a model like any other: attack it with whatever needs a gradient, and hope that the oracle is
    fooled as well. With `Scores` it learns all probabilities instead of the label alone.

    Args:
        rounds: how often F is trained.
        step_size: λ.
        period: rounds after which λ changes its sign.
        reservoir: points that are added in a round at most, drawn at random; None for all.
        epochs: passes over S in each round.
        learning_rate: of Adam.
        batch_size: points in a step of training.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("train", n=20)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        >>> oracle = Labels(models.load("cnn"))
        >>> model = Substitute(rounds=3).fit(oracle, x, network)
        >>> model(x).shape, oracle.queries.unique()
        (torch.Size([20, 10]), tensor([4]))
    """

    rounds: int = 6
    step_size: float = 0.1
    period: int = 3
    reservoir: int | None = None
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in "rounds", "period", "epochs", "batch_size":
            check_number(name, getattr(self, name), 1)
        for name in "step_size", "learning_rate":
            check_number(name, getattr(self, name), 0.0)
        if self.reservoir is not None:
            check_number("reservoir", self.reservoir, 1)

    def fit(
        self, oracle: Oracle | Target, seeds: Tensor, network: nn.Module, *, generator: Generator | None = None
    ) -> nn.Module:
        """Train a substitute for what is behind an oracle.

        Args:
            oracle: `Labels` or `Scores` around a target; its ledger begins anew, with an entry for each seed image. It
                ends early when no image can pay for a copy. A bare target is asked for labels, without a budget.
            seeds: images (N, ...), floating point, in [0, 1]: a few of the kind that the target is made for. Their
                labels are not needed.
            network: maps images to logits (N, K), for at least the classes of the oracle. It is copied and not
                touched.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat. The
                network's weights are what they are.

        Returns:
            The trained copy, in eval mode.

        Raises:
            ValueError: if seeds, network or the target's answers are not as described.
        """
        states = self.iterates(oracle, seeds, network, generator=generator)
        for state in tqdm(states, desc=type(self).__name__, total=self.rounds, leave=False, disable=None):
            model = state.model
        return model

    def iterates(
        self, oracle: Oracle | Target, seeds: Tensor, network: nn.Module, *, generator: Generator | None = None
    ) -> Iterator[Substituted]:
        """The same computation, one `Substituted` state a round. Arguments and errors are those of `fit`."""
        check_images(seeds)
        if not isinstance(network, nn.Module) or not any(weight.requires_grad for weight in network.parameters()):
            raise ValueError(f"network must be a torch module with weights to train, got {type(network).__name__}")
        asked = oracle if isinstance(oracle, Oracle) else Labels(oracle)
        asked.begin(len(seeds), seeds.device)
        rounds = self._rounds(asked, seeds.detach().clone(), deepcopy(network), private_generator(generator, seeds))
        return watched(asked, rounds)

    def _rounds(self, oracle: Oracle, seeds: Tensor, network: nn.Module, generator: Generator) -> Iterator[Substituted]:
        points, owner = seeds, torch.arange(len(seeds), device=seeds.device)
        paid = oracle.payable(owner)
        if not paid.any():
            raise ValueError("no seed image can pay for a query: a substitute needs an oracle with a budget")
        points, owner = points[paid], owner[paid]
        answers = oracle(points, owner)
        for step in range(self.rounds):
            labels = answers if answers.ndim == 1 else answers.argmax(1)
            known = (labels >= 0).nonzero().squeeze(1)  # a refusal names no class to learn or to follow
            self._train(network, points[known], answers[known], Targeted(labels[known]), generator)
            yield Substituted(step, deepcopy(network), points, owner, answers, oracle.queries)
            chosen = known[torch.randperm(len(known), generator=generator, device=points.device)[: self.reservoir]]
            chosen = chosen[oracle.payable(owner[chosen])].sort().values
            if len(chosen) == 0 or step + 1 == self.rounds:
                return
            slope = Exact(network, logit, Targeted(labels))(points[chosen], chosen).gradient
            further = self.step_size * (-1) ** (step // self.period)
            copies, who = (points[chosen] + further * slope.sign()).clamp(0, 1), owner[chosen]
            answers = torch.cat([answers, oracle(copies, who)])
            points, owner = torch.cat([points, copies]), torch.cat([owner, who])

    def _train(self, network: nn.Module, points: Tensor, answers: Tensor, goal: Targeted, generator: Generator) -> None:
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
        seed = int(torch.randint(2**62, (), generator=generator, device=points.device))
        batches = -(-len(points) // self.batch_size)
        network.train()
        with torch.random.fork_rng(), torch.enable_grad():  # dropout draws from the global generator, which is lent
            torch.manual_seed(seed)
            for _ in range(self.epochs if batches else 0):
                order = torch.randperm(len(points), generator=generator, device=points.device)
                for rows in order.tensor_split(batches):  # all alike: a last one of a single point breaks batch norm
                    logits = check_logits(network(points[rows]), len(rows), goal)
                    loss = F.cross_entropy(logits, answers[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        network.eval()
