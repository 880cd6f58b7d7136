"""One epoch of training in several hands: the passes alone, advcourse, the authors' scripts re-written by hand, ART.

All train with SGD, momentum 0.9 and a constant rate, on the images in a new random order, without augmentation.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .libraries import Task

RATE = 1e-3  # so small that the network stays what it is, whoever trains it longer

Train = Callable[[Tensor, Tensor], object]
"""Trains a network for one epoch of images (N, ...) and labels (N,)."""


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.train().requires_grad_(True).parameters(), RATE, momentum=0.9)


def batches(x: Tensor, y: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(x)).split(batch):
        yield x[rows], y[rows]


def floor(task: Task, model: nn.Module, batch: int) -> Train:
    """The passes that a method cannot do without: gradients of the input for its steps, those of the weights for an
    update, and nothing in between."""
    optimizer = sgd(model)

    def climb(x: Tensor, y: Tensor, again: bool = False) -> Tensor:
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point, create_graph=again)
        return gradient

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def epoch(x: Tensor, y: Tensor) -> None:
        for images, labels in batches(x, y, batch):
            match task.name:
                case "train Free":
                    for _ in range(task.steps):
                        descend(F.cross_entropy(model(images.detach().requires_grad_()), labels))
                case "train TRADES":
                    model.eval()
                    with torch.no_grad():
                        model(images)
                    for _ in range(task.steps):
                        climb(images, labels)
                    model.train()
                    descend(F.cross_entropy(model(images), labels) + F.cross_entropy(model(images), labels))
                case "train GradAlign":
                    climb(images, labels)
                    bend = climb(images, labels, again=True).square().sum()
                    descend(F.cross_entropy(model(images), labels) + bend)
                case _:
                    for _ in range(task.steps):
                        climb(images, labels)
                    descend(F.cross_entropy(model(images), labels))

    return epoch


def scripts(task: Task, model: nn.Module, batch: int) -> Train:
    """As in the authors' published scripts: fast_adversarial, understanding-fast-adv-training, N-FGSM and TRADES."""
    optimizer, eps = sgd(model), task.eps or 0.0
    carried = torch.zeros(0)

    def attack(images: Tensor, labels: Tensor, start: Tensor, alpha: float, clip: float) -> Tensor:
        # A full backward pass: the gradients of the weights are computed, too, and thrown away.
        delta = start.requires_grad_()
        F.cross_entropy(model(images + delta), labels).backward()
        assert delta.grad is not None
        delta = torch.clamp(delta.detach() + alpha * delta.grad.sign(), -clip, clip)
        return torch.max(torch.min(delta, 1 - images), 0 - images)

    def uniform(images: Tensor, radius: float) -> Tensor:
        delta = torch.empty_like(images).uniform_(-radius, radius)
        return torch.max(torch.min(delta, 1 - images), 0 - images)

    def update(loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        (logits.max(1)[1] == labels).sum().item()

    def free(images: Tensor, labels: Tensor) -> None:
        nonlocal carried
        carried = carried if len(carried) else torch.zeros_like(images)
        for _ in range(task.steps):
            delta = carried[: len(images)].clone().requires_grad_()
            logits = model(images + delta)
            loss = F.cross_entropy(logits, labels)
            update(loss, logits, labels)
            assert delta.grad is not None
            moved = torch.clamp(delta.detach() + eps * delta.grad.sign(), -eps, eps)
            carried[: len(images)] = torch.max(torch.min(moved, 1 - images), 0 - images)

    def aligned(images: Tensor, labels: Tensor) -> None:
        def slope(delta: Tensor) -> Tensor:
            delta.requires_grad_()
            return torch.autograd.grad(F.cross_entropy(model(images + delta), labels), delta, create_graph=True)[0]

        here = slope(torch.zeros_like(images)).detach()
        delta = torch.clamp(images + eps * here.sign(), 0, 1) - images
        logits = model(images + delta)
        there = slope(torch.empty_like(images).uniform_(-eps, eps))
        a, b = here.flatten(1), there.flatten(1)
        cosine = (a / a.norm(dim=1, keepdim=True) * b / b.norm(dim=1, keepdim=True)).sum(1)
        update(F.cross_entropy(logits, labels) + 0.2 * (1 - cosine.mean()), logits, labels)

    def traded(images: Tensor, labels: Tensor) -> None:
        divergence = nn.KLDivLoss(reduction="sum")
        model.eval()
        x_adv = images + 0.001 * torch.randn_like(images)
        for _ in range(task.steps):
            x_adv.requires_grad_()
            loss = divergence(F.log_softmax(model(x_adv), 1), F.softmax(model(images), 1))
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + task.step_size * gradient.sign()
            x_adv = torch.clamp(torch.min(torch.max(x_adv, images - eps), images + eps), 0, 1)
        model.train()
        logits = model(images)
        robust = divergence(F.log_softmax(model(x_adv), 1), F.softmax(model(images), 1)) / len(images)
        update(F.cross_entropy(logits, labels) + 6 * robust, logits, labels)

    def epoch(x: Tensor, y: Tensor) -> None:
        for images, labels in batches(x, y, batch):
            match task.name:
                case "train Free":
                    free(images, labels)
                    continue
                case "train GradAlign":
                    aligned(images, labels)
                    continue
                case "train TRADES":
                    traded(images, labels)
                    continue
                case "train standard":
                    delta = torch.zeros_like(images)
                case "train N-FGSM":
                    delta = attack(images, labels, uniform(images, 2 * eps), eps, 3 * eps)
                case "train Fast":
                    delta = attack(images, labels, uniform(images, eps), 1.25 * eps, eps)
                case _:
                    delta = uniform(images, eps)
                    for _ in range(task.steps):
                        delta = attack(images, labels, delta, task.step_size, eps)
            logits = model(images + delta)
            update(F.cross_entropy(logits, labels), logits, labels)

    return epoch


def advcourse(task: Task, model: nn.Module, batch: int) -> Train:
    from advcourse import training
    from advcourse.threat import Linf

    ball = Linf(task.eps or 0.0)
    methods: dict[str, training.Method] = {
        "train standard": training.Standard(),
        "train PGD": training.PGDTraining(ball, max(task.steps, 1)),
        "train Free": training.FreeTraining(ball, max(task.steps, 1)),
        "train Fast": training.FastTraining(ball),
        "train N-FGSM": training.NFGSM(ball),
        "train GradAlign": training.GradAlign(ball),
        "train TRADES": training.TRADES(ball, steps=max(task.steps, 1)),
    }
    model.requires_grad_(True)
    accelerator = training.engine()

    def epoch(x: Tensor, y: Tensor) -> None:
        training.train(
            model,
            methods[task.name],
            (x, y),
            epochs=1,
            batch_size=batch,
            optimizer=partial(torch.optim.SGD, momentum=0.9),
            schedule=training.Constant(RATE),
            accelerator=accelerator,
        )

    return epoch


def art(task: Task, model: nn.Module, batch: int) -> Train | None:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences import trainer
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (1, 28, 28),
        nb_classes=10,
        optimizer=sgd(model),
        clip_values=(0, 1),
        device_type="cpu",
    )
    match task.name:
        case "train standard":
            fit = partial(classifier.fit, nb_epochs=1, batch_size=batch, training_mode=True)
        case "train Fast":
            fast = trainer.AdversarialTrainerFBFPyTorch(classifier, eps=task.eps)
            fit = partial(fast.fit, nb_epochs=1, batch_size=batch)
        case "train PGD":
            madry = trainer.AdversarialTrainerMadryPGD(classifier, 1, batch, task.eps, task.step_size, task.steps)
            fit = madry.fit
        case "train TRADES":
            attack = ProjectedGradientDescent(
                classifier, eps=task.eps, eps_step=task.step_size, max_iter=task.steps, batch_size=batch, verbose=False
            )
            fit = partial(
                trainer.AdversarialTrainerTRADESPyTorch(classifier, attack, 6.0).fit, nb_epochs=1, batch_size=batch
            )
        case _:
            return None
    return lambda x, y: fit(x.numpy(), F.one_hot(y, 10).numpy())


TRAINERS: dict[str, Callable[[Task, nn.Module, int], Train | None]] = {
    "passes alone": floor,
    "advcourse": advcourse,
    "scripts": scripts,
    "ART": art,
}
"""The floor first: the others are compared with it."""
