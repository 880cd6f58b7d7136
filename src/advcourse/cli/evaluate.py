"""`advcourse evaluate`: how much of a model's accuracy is left under attack."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .endings import one_line


class Norm(StrEnum):
    linf = "linf"
    l2 = "l2"
    l1 = "l1"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of the zoo (`advcourse zoo list`); the path of a NAME.safetensors that "
            "`advcourse zoo train` or `advcourse train` wrote, with its NAME.json beside it; efficientnet_lite0 to 2 "
            "(extra imagenet); torchvision's with their weights (resnet50@IMAGENET1K_V1, resnet50@FILE.pth); or your "
            "own: file.py:function or package.module:function, which takes no argument and returns a model from images "
            "in [0, 1] to logits.",
        ),
    ],
    attack: Annotated[
        list[str],
        typer.Option(
            help="fgsm, pgd, pgd-50-10 (fifty steps of eps / 4 from ten starts), apgd, apgd-dlr, apgd-t (towards nine "
            "labels in turn), square (scores alone, no gradient), or, in L2, cw and deepfool; auto is apgd, apgd-t and "
            "square with 5000 queries, as in AutoAttack. Give it several times, the cheapest first: each attack sees "
            "what the ones before left.",
        ),
    ] = ["pgd"],  # noqa: B006
    eps: Annotated[str, typer.Option(help="How far an image may be moved: 0.1, or 8/255.")] = "0.1",
    norm: Annotated[
        Norm, typer.Option(help="How that is measured: the largest change, the Euclidean length, the sum of changes.")
    ] = Norm.linf,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps, for all but fgsm; by default 40 for pgd, 100 for apgd and cw, 1000 for square, 50 for deepfool"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with images x (N, ...) in [0, 1], or uint8, and labels y (N,), or a folder with "
            "CIFAR-10's cifar-10-batches-py; Fashion-MNIST's test images by default."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="How many images, from the first; 200 by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the attacks' randomness.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write everything to this file, too. Until then a file beside it keeps the attacks that are done.",
        ),
    ] = None,
    min_robust: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 if less than this fraction withstands.")
    ] = None,
    lint: Annotated[
        bool, typer.Option("--lint", help="Look for signs that the last attack failed for the wrong reason.")
    ] = False,
) -> None:
    """Attack a model, and print what is left of its accuracy.

    Robust accuracy is the fraction of images that the model gets right and goes on getting right whatever the attacks
    try within a distance of eps. An image counts as broken as soon as one of them breaks it. The number is an upper
    bound: it says that these attacks failed on the rest, not that every attack must. So give several, give them steps,
    and let `--lint` look for the usual ways to be fooled. The 95 % interval tells where the number would lie with more
    images; 200 leave several points open.

    Interrupt it when you like: with `--json`, the same command goes on after the last attack that was done.

    Exit codes: 0 fine, 1 less robust than `--min-robust`, 2 nothing could be measured, 130 interrupted.

    ```text
    advcourse evaluate cnn
    advcourse evaluate cnn --attack fgsm --attack pgd --eps 8/255 --lint
    advcourse evaluate runs/zoo/resnet.safetensors --norm l2 --eps 1.5
    advcourse evaluate mine.py:load --data mine.npz --min-robust 0.5
    ```
    """
    import torch

    from .. import __version__
    from ..evaluation import lint as look
    from ..evaluation import worst_case
    from ..files import write_whole
    from ..threat import L1, L2, Ball, Linf
    from .inputs import read_attacks, read_ball, read_images, read_model
    from .progress import watched

    document: dict[str, Any] = {"advcourse": __version__, "model": model, "data": str(data or "Fashion-MNIST test")}

    def save() -> None:
        if report is not None:
            write_whole(report, (json.dumps(document, indent=2) + "\n").encode())

    again = "run the same command again to go on" if report else "with --json, what is done would have been kept"
    with one_line(f"interrupted; {again}"):
        balls: dict[Norm, type[Ball]] = {Norm.linf: Linf, Norm.l2: L2, Norm.l1: L1}
        ball = read_ball(balls[norm], eps)
        attacks = read_attacks(attack, ball, steps)
        x, y = read_images(data, n)
        network = read_model(model, x)
        if report is not None:  # fails now and not after the attacks
            report.parent.mkdir(parents=True, exist_ok=True)
            if report.is_dir():
                raise ValueError(f"{report} is a folder: --json takes the name of a file")
        generator = torch.Generator().manual_seed(seed)
        with watched(attacks) as shown:
            kept = report and report.with_name(f"{report.name}.checkpoint")
            result = worst_case(network, shown, x, y, ball, generator=generator, checkpoint=kept)
        typer.echo(str(result))
        document |= {"seed": seed, **result.as_dict()}
        save()  # before the lint, which may take a while
    with one_line(f"interrupted; only the lint is missing{f' in {report}' if report else ''}"):
        if lint:
            *others, last = attacks
            findings = look(network, attacks[last], x, y, {name: attacks[name] for name in others}, generator=generator)
            typer.echo("\n" + ("\n".join(f"! {finding}" for finding in findings) or f"{last}: nothing to worry about"))
            document["findings"] = [asdict(finding) for finding in findings]
            save()
    if min_robust is not None and result.robust_accuracy < min_robust:
        typer.echo(f"robust accuracy {result.robust_accuracy:.1%} is below {min_robust:.1%}", err=True)
        raise typer.Exit(1)
