"""The same attack in six libraries. Each function here prepares one `Task` in the words of one library.

Peers are imported where they are used: one that is missing, or that breaks, costs its own row and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor, nn

from advcourse.goals import Goal, Targeted, Untargeted
from advcourse.threat import L2, Ball, Linf

from .measure import Run


@dataclass(frozen=True)
class Task:
    """What every library is asked to do, with the same numbers.

    Attributes:
        name: the attack.
        steps: gradient steps or generations; some attacks stop sooner, and Square and attacks on labels go by their
            budget.
        eps: radius of the ball; None for attacks of minimum norm.
        random_start: begin at a draw from the ball (each library has its own), or at the clean image.
        search_steps: C&W's binary search for c, each of `steps` steps.
        rate: C&W's and ZOO's learning rate.
        initial_c: their first c.
        overshoot: DeepFool's.
        budget: queries for each image; None where gradients are free.
        samples: directions or coordinates of one estimate; members of a population.
        p: share of the image in Square's first squares.
        targeted: the labels are to be reached, and not to be left.
    """

    name: str
    steps: int
    eps: float | None = None
    random_start: bool = True
    search_steps: int = 1
    rate: float = 0.05
    initial_c: float = 1.0
    overshoot: float = 0.02
    budget: int | None = None
    samples: int = 1
    p: float = 0.05
    targeted: bool = False

    @property
    def step_size(self) -> float:
        return 2.5 * (self.eps or 0.0) / self.steps

    @property
    def norm(self) -> str:
        return "Linf" if self.eps is not None and not self.name.endswith("L2") else "L2"

    @property
    def ball(self) -> Ball:
        return (Linf if self.norm == "Linf" else L2)(self.eps or 0.0)

    def beyond(self, found: Tensor, x: Tensor) -> Tensor:
        """How far points (R, ...) are outside of the balls around x (R,); negative inside."""
        return self.ball.norm(found - x) - (float("inf") if self.eps is None else self.eps)

    def allowed(self, found: Tensor, x: Tensor) -> Tensor:
        """Which points are in [0, 1] and in their ball, but for rounding: bool (R,)."""
        return ((found - found.clamp(0, 1)).flatten(1).abs().amax(1) <= 1e-5) & (self.beyond(found, x) <= 1e-5)

    def goal(self, labels: Tensor) -> Goal:
        return (Targeted if self.targeted else Untargeted)(labels)

    @property
    def shortened(self) -> Task:
        """The same in a moment, to see that it runs."""
        return replace(
            self,
            steps=min(self.steps, 3),
            search_steps=min(self.search_steps, 2),
            budget=self.budget and min(self.budget, 50),
            samples=min(self.samples, 5),
        )


Library = Callable[[Task, nn.Module, int], Run | None]
"""Prepares a task on a model for batches of so many images; None if the library does not have the attack."""


def advcourse(task: Task, model: nn.Module, batch: int) -> Run | None:
    from advcourse import attacks, goals

    ball = task.ball
    attack: attacks.Attack
    match task.name:
        case "FGSM":
            attack = attacks.FGSM(ball)
        case "PGD" | "PGD, clean start" | "PGD L2":
            attack = attacks.PGD(ball, task.steps, task.step_size, task.random_start)
        case "APGD-CE":
            attack = attacks.APGD(ball, task.steps, loss=goals.cross_entropy)
        case "APGD-DLR":
            attack = attacks.APGD(ball, task.steps, loss=goals.dlr)
        case "C&W":
            attack = attacks.CarliniWagner(task.steps, task.search_steps, task.rate, task.initial_c, abort_early=False)
        case "DeepFool":
            attack = attacks.DeepFool(task.steps, task.overshoot, classes=10)
        case "Square" | "Square L2":  # as many proposals as the budget pays for
            attack = attacks.Square(ball, p=task.p)
        case "NES":
            attack = attacks.NES(ball, task.steps, task.samples)
        case "ZOO":
            attack = attacks.ZOO(task.steps, task.samples, step_size=task.rate, initial_c=task.initial_c)
        case "GenAttack":
            attack = attacks.GenAttack(ball, task.steps, task.samples)
        case "Sign-OPT":
            attack = attacks.SignOPT()
        case "OPT":
            attack = attacks.OPT()
        case "HopSkipJump":
            attack = attacks.HopSkipJump(task.steps)
        case "Boundary":
            attack = attacks.Boundary(task.steps)
        case "MI" | "NI" | "MDI" | "MTI" | "NSI" | "VMI" | "MAI" | "MI+RAP":
            attack = attacks.Transfer.named(task.name, ball, steps=task.steps, step_size=task.step_size)
        case _:
            return None
    if isinstance(attack, attacks.QueryAttack):
        oracle = attack.window(model, task.budget)
        return lambda x, y: attack(oracle, x, task.goal(y), generator=torch.default_generator)
    return lambda x, y: attack(model, x, y)


def adv_lib(task: Task, model: nn.Module, batch: int) -> Run | None:
    # adv_lib.attacks imports visdom, a plotting server whose source no longer builds; the attacks never call it.
    sys.modules.setdefault("visdom", ModuleType("visdom"))
    from adv_lib.attacks import apgd, carlini_wagner_l2, df, pgd_linf

    match task.name:
        case "PGD" | "PGD, clean start":
            return lambda x, y: pgd_linf(
                model,
                x,
                y,
                task.eps,
                steps=task.steps,
                random_init=task.random_start,
                absolute_step_size=task.step_size,
            )
        case "APGD-CE" | "APGD-DLR":
            loss = task.name.removeprefix("APGD-").lower()
            return lambda x, y: apgd(model, x, y, task.eps, float("inf"), n_iter=task.steps, loss_function=loss)
        case "C&W":
            return lambda x, y: carlini_wagner_l2(
                model,
                x,
                y,
                learning_rate=task.rate,
                initial_const=task.initial_c,
                binary_search_steps=task.search_steps,
                max_iterations=task.steps,
                abort_early=False,
            )
        case "DeepFool":
            return lambda x, y: df(model, x, y, steps=task.steps, overshoot=task.overshoot)
    return None


def foolbox(task: Task, model: nn.Module, batch: int) -> Run | None:
    import foolbox
    from foolbox import attacks

    pgd = {"abs_stepsize": task.step_size, "steps": task.steps, "random_start": task.random_start}
    match task.name:
        case "FGSM":
            attack = attacks.LinfFastGradientAttack()
        case "PGD" | "PGD, clean start":
            attack = attacks.LinfProjectedGradientDescentAttack(**pgd)
        case "PGD L2":
            attack = attacks.L2ProjectedGradientDescentAttack(**pgd)
        case "C&W":
            attack = attacks.L2CarliniWagnerAttack(
                binary_search_steps=task.search_steps,
                steps=task.steps,
                stepsize=task.rate,
                initial_const=task.initial_c,
                abort_early=False,
            )
        case "DeepFool":
            attack = attacks.L2DeepFoolAttack(steps=task.steps, candidates=10, overshoot=task.overshoot)
        case "GenAttack":  # its other settings are made those of the paper
            attack = attacks.GenAttack(
                steps=task.steps,
                population=task.samples,
                mutation_probability=0.005,
                mutation_range=0.2,
                sampling_temperature=0.1,
            )
        case "HopSkipJump":
            attack = attacks.HopSkipJumpAttack(steps=task.steps)
        case "Boundary":
            attack = attacks.BoundaryAttack(steps=task.steps)
        case _:
            return None
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))

    def run(x: Tensor, y: Tensor) -> Tensor:
        criterion = foolbox.criteria.TargetedMisclassification(y) if task.targeted else y
        found = attack(wrapped, x, criterion, epsilons=task.eps)[1]
        # Where C&W finds nothing it hands back a black image, and counts it as fooled if the model errs on black.
        return found.where(found.flatten(1).any(1)[:, None, None, None], x) if task.name == "C&W" else found

    return run


def torchattacks(task: Task, model: nn.Module, batch: int) -> Run | None:
    import torchattacks

    pgd = {"eps": task.eps, "alpha": task.step_size, "steps": task.steps, "random_start": task.random_start}
    match task.name:
        case "FGSM":
            return torchattacks.FGSM(model, eps=task.eps)
        case "PGD" | "PGD, clean start":
            return torchattacks.PGD(model, **pgd)
        case "PGD L2":
            return torchattacks.PGDL2(model, **pgd)
        case "APGD-CE" | "APGD-DLR":
            loss = task.name.removeprefix("APGD-").lower()
            return torchattacks.APGD(model, eps=task.eps, steps=task.steps, loss=loss)
        case "C&W":  # it has no search: the same number of steps, all with the first c
            return torchattacks.CW(model, c=task.initial_c, steps=task.steps * task.search_steps, lr=task.rate)
        case "DeepFool":
            return torchattacks.DeepFool(model, steps=task.steps, overshoot=task.overshoot)
        case "Square" | "Square L2":
            return torchattacks.Square(model, task.norm, task.eps, n_queries=task.budget, p_init=task.p)
    step = {"eps": task.eps, "alpha": task.step_size, "steps": task.steps, "decay": 1.0}
    match task.name:
        case "MI":
            return torchattacks.MIFGSM(model, **step)
        case "NI":
            return torchattacks.NIFGSM(model, **step)
        case "MDI":
            return torchattacks.DIFGSM(model, **step, resize_rate=0.9, diversity_prob=0.7)
        case "MTI":  # made for three channels
            return torchattacks.TIFGSM(model, **step, len_kernel=5, diversity_prob=0.0)
        case "NSI":
            return torchattacks.SINIFGSM(model, **step, m=5)
        case "VMI":
            return torchattacks.VMIFGSM(model, **step, N=20)
    return None


def torchattack(task: Task, model: nn.Module, batch: int) -> Run | None:
    import torchattack

    step = {"device": torch.device("cpu"), "eps": task.eps, "alpha": task.step_size, "steps": task.steps}
    match task.name:
        case "MI":
            return torchattack.MIFGSM(model, **step)
        case "NI":
            return torchattack.NIFGSM(model, **step)
        case "MDI":
            return torchattack.DIFGSM(model, **step, resize_rate=0.9, diversity_prob=0.7)
        case "MTI":
            return torchattack.TIFGSM(model, **step, kern_len=5)
        case "NSI":
            return torchattack.SINIFGSM(model, **step, m=5)
        case "VMI":
            return torchattack.VMIFGSM(model, **step, n=20)
        case "MAI":
            return torchattack.Admix(model, **step, num_classes=10)
    return None


def art(task: Task, model: nn.Module, batch: int) -> Run | None:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    if task.name in ("HopSkipJump", "Boundary"):  # under NumPy 2 they send doubles
        model.register_forward_pre_hook(lambda _, inputs: tuple(rows.float() for rows in inputs))
    quiet = {"batch_size": batch, "verbose": False}
    norm = float("inf") if task.norm == "Linf" else 2
    match task.name:
        case "FGSM":
            attack = evasion.FastGradientMethod(classifier, eps=task.eps, batch_size=batch)
        case "PGD" | "PGD, clean start" | "PGD L2":
            attack = evasion.ProjectedGradientDescent(
                classifier, norm, task.eps, task.step_size, None, task.steps, False, int(task.random_start), **quiet
            )
        case "APGD-CE" | "APGD-DLR":
            loss = {"APGD-CE": "cross_entropy", "APGD-DLR": "difference_logits_ratio"}[task.name]
            attack = evasion.AutoProjectedGradientDescent(
                classifier, norm, task.eps, 2 * (task.eps or 0), task.steps, False, 1, loss_type=loss, **quiet
            )
        case "C&W":
            attack = evasion.CarliniL2Method(
                classifier,
                learning_rate=task.rate,
                binary_search_steps=task.search_steps,
                max_iter=task.steps,
                initial_const=task.initial_c,
                **quiet,
            )
        case "DeepFool":
            attack = evasion.DeepFool(classifier, task.steps, task.overshoot, nb_grads=10, **quiet)
        case "Square" | "Square L2":
            attack = evasion.SquareAttack(classifier, norm, max_iter=task.budget, eps=task.eps, p_init=task.p, **quiet)
        case "ZOO":  # one image at a time, as it advises; its resizing makes images larger
            attack = evasion.ZooAttack(
                classifier,
                learning_rate=task.rate,
                max_iter=task.steps,
                initial_const=task.initial_c,
                abort_early=False,
                use_resize=False,
                use_importance=False,
                nb_parallel=task.samples,
                variable_h=1e-3,
                verbose=False,
            )
        case "Sign-OPT":  # it does not count all its queries
            attack = evasion.SignOPTAttack(
                classifier, targeted=False, num_trial=100, query_limit=2 * (task.budget or 0), k=task.samples
            )
        case "HopSkipJump":
            attack = evasion.HopSkipJump(classifier, batch, False, norm, task.steps, verbose=False)
        case "Boundary":
            attack = evasion.BoundaryAttack(classifier, batch, False, max_iter=task.steps, verbose=False)
        case _:
            return None
    return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


LIBRARIES: dict[str, Library] = {
    "advcourse": advcourse,
    "adv-lib": adv_lib,
    "foolbox": foolbox,
    "torchattacks": torchattacks,
    "torchattack": torchattack,
    "ART": art,
}
"""Ours first: the others are compared with it."""
