"""`advcourse transfer`: what is crafted on one network, tried on others."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .endings import one_line


class LossName(StrEnum):
    ce = "ce"
    logit = "logit"
    potrip = "po-trip"
    margin = "margin"


def transfer(
    surrogates: Annotated[
        list[str],
        typer.Argument(
            metavar="NETWORK...",
            help="Networks to craft on, each of which is a target of the others: of the zoo, efficientnet_lite0 to 2 "
            "(extra imagenet), torchvision's with their weights (resnet50@IMAGENET1K_V1, resnet50@FILE.pth), or your "
            "own as file.py:function.",
        ),
    ],
    target: Annotated[
        list[str] | None, typer.Option(help="A further target, which is not crafted on; several are possible.")
    ] = None,
    attack: Annotated[
        list[str],
        typer.Option(
            help="Letters of M N T D S A V, then I, then +RAP or +RAP-LS if wanted; several are possible: "
            "--attack MI --attack MTDI+RAP-LS."
        ),
    ] = ["MI"],  # noqa: B006
    loss: Annotated[
        list[LossName], typer.Option(help="What to climb: cross-entropy, logit, Po+Trip (targeted only), margin.")
    ] = [LossName.ce],  # noqa: B006
    targeted: Annotated[
        bool,
        typer.Option(
            "--targeted", help="Towards a label: the data set's, or else one that is drawn for each image, not its own."
        ),
    ] = False,
    eps: Annotated[str, typer.Option(help="Radius of the Linf ball: 0.1, or 16/255.")] = "16/255",
    step_size: Annotated[str, typer.Option(help="Of a step: 0.01, or 2/255.")] = "2/255",
    at: Annotated[
        str, typer.Option(help="After how many steps to look at the targets; the last is how many there are.")
    ] = "10,20,40",
    rap_eps: Annotated[str | None, typer.Option(help="How far RAP's worst neighbour may be; eps by default.")] = None,
    rap_steps: Annotated[int, typer.Option(min=1, help="Steps towards it.")] = 8,
    late_start: Annotated[
        int | None, typer.Option(min=0, help="After how many steps RAP-LS begins; a quarter of them by default.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder of the NIPS 2017 competition (images.csv and images/) or of class folders; samples, the "
            "twenty photographs of the extra imagenet; or an .npz file with x and y. Fashion-MNIST's test images by "
            "default."
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--images", min=1, help="How many images, from the first.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run everything so many times, with seeds 0, 1, …")] = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images in a piece of work, and rows in one pass of a network.")
    ] = 20,
    flatness: Annotated[
        bool, typer.Option("--flatness", help="Also record how the loss changes around each result.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The file for the results, JSON.")] = Path("runs/transfer.json"),
) -> None:
    """Craft adversarial examples on each network, try the others, print the table and keep every verdict.

    Only images that every target gets right are used. Interrupt it when you like and run it again: finished pieces are
    kept. With several GPUs, `accelerate launch` starts a process for each, and they share the pieces.

    ```text
    advcourse transfer cnn resnet vgg --target cnn_robust --eps 0.06 --step-size 0.006
    advcourse transfer efficientnet_lite0 efficientnet_lite1 --data samples --attack MI --attack MI+RAP-LS
    accelerate launch -m advcourse transfer resnet50@IMAGENET1K_V1 densenet121@IMAGENET1K_V1 \\
        --data nips17 --targeted --loss logit --attack MTDI --attack MTDI+RAP-LS --at 100,200,400
    ```
    """
    import torch
    from torch import nn

    from ..evaluation import predict, record_transfer
    from ..goals import FromTo, cross_entropy, logit, margin, po_trip
    from ..threat import Linf
    from .inputs import processes, read_ball, read_eps, read_model, read_photographs, read_steps, read_transfer

    losses = {LossName.ce: cross_entropy, LossName.logit: logit, LossName.potrip: po_trip, LossName.margin: margin}
    with one_line("interrupted; run the same command again to go on"):
        steps, ball = read_steps(at), read_ball(Linf, eps)
        settings = {"steps": steps[-1], "step_size": read_eps(step_size), "batch_size": batch_size}
        reverse = {"eps": rap_eps and read_eps(rap_eps), "steps": rap_steps, "start": late_start}
        attacks = {
            name if len(loss) == 1 else f"{name}, {chosen}": read_transfer(
                name, ball, {**settings, "loss": losses[chosen]}, reverse
            )
            for name in attack
            for chosen in loss
        }
        x, y, sought = read_photographs(data, n)
        networks = {name: read_model(name, x) for name in [*surrogates, *(target or [])]}
        if targeted and sought is None:
            classes = predict(networks[surrogates[0]], x[:1]).shape[1]
            drawn = torch.randint(classes - 1, y.shape, generator=torch.Generator().manual_seed(0))
            sought = drawn + (drawn >= y)
        out.parent.mkdir(parents=True, exist_ok=True)  # fails now and not after an hour
        told = "read from" if out.exists() else "written to"
        here = processes()
        for network in networks.values():
            if isinstance(network, nn.Module):
                network.to(here.device)
        x, y = x.to(here.device), y.to(here.device)
        recorded = record_transfer(
            out,
            attacks,
            {name: networks[name] for name in surrogates},
            networks,
            x,
            y,
            FromTo(sought.to(y), source=y) if targeted and sought is not None else None,
            at=steps,
            seeds=range(seeds),
            radii=[ball.eps * k / 8 for k in range(9)] if flatness else [],
            batch_size=batch_size,
            share=(here.process_index, here.num_processes),
        )
    if recorded is not None:
        typer.echo(f"{recorded}\n{told} {out}")
