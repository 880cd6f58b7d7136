"""`advcourse train`: a robust network by a paper's recipe."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .endings import one_line


class Data(StrEnum):
    fashion = "fashion"
    cifar10 = "cifar10"


class Way(StrEnum):
    standard = "standard"
    pgd = "pgd"
    free = "free"
    fast = "fast"
    nfgsm = "nfgsm"
    gradalign = "gradalign"
    trades = "trades"


def train(
    data: Annotated[Data, typer.Option(help="Fashion-MNIST, which is bundled in part, or CIFAR-10.")] = Data.fashion,
    model: Annotated[
        str,
        typer.Option(
            help="small, cnn, resnet, vgg, densenet, inception; or, for a GPU, preactresnet18 (11 million parameters) "
            "or wide_resnet (WRN-34-10, 46 million)."
        ),
    ] = "cnn",
    method: Annotated[Way, typer.Option(help="Each with its paper's settings.")] = Way.fast,
    eps: Annotated[
        str | None, typer.Option(help="Radius in Linf: 8/255, or 0.1; these are the defaults for the two data sets.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; the paper's by default.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="The largest one of the schedule; the paper's by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step, on all processes together.")] = 128,
    out: Annotated[Path, typer.Option(help="Folder for weights, card, log and checkpoint.")] = Path("runs/train"),
    root: Annotated[
        Path | None,
        typer.Option(help="Folder with the data: all of Fashion-MNIST, or cifar-10-batches-py. Neither is downloaded."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Train on the first so many images only.")] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Test images that are attacked after each epoch.")] = 500,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="End at a catastrophic overfitting, with the weights from before it.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Half precision, where it is faster: float16, or bfloat16 on newer GPUs.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Through torch.compile; not with gradalign.")] = False,
    curves: Annotated[bool, typer.Option("--curves", help="Write curves for TensorBoard, too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, and of everything random.")] = 0,
) -> None:
    """Train a network, adversarially or not, by the recipe of the method's paper.

    Recipes are those for CIFAR-10 and preactresnet18, on a GPU. The reference page says which accuracy and which time
    their authors report. Interrupt it when you like, and run it again: it goes on where the last epoch ended. The
    folder gets model.safetensors with its card model.json, log.jsonl with a line for each epoch, and checkpoint.pt,
    which holds everything.

    Test images are held out only for watching and, with `--roll-back`, for ending in time; measure what came out with
    `advcourse evaluate` on others.

    ```text
    advcourse train --method fast --epochs 5 --learning-rate 0.05
    advcourse train --data cifar10 --model preactresnet18 --method fast --eps 8/255 --half --root data
    accelerate launch -m advcourse train --data cifar10 --model wide_resnet --method trades --half --root data
    advcourse evaluate runs/train/model.safetensors --attack pgd --attack auto
    ```
    """
    import torch

    from .. import data as sets
    from ..attacks import PGD
    from ..models.catalogue import build, save_trained
    from ..threat import Linf
    from ..training import CatastrophicOverfitting, Crop, JsonLines, Log, Mirror, TensorBoard, engine
    from ..training import train as fit
    from ..training.published import PUBLISHED
    from .inputs import read_ball

    with one_line("interrupted; run the same command again to go on from the last epoch"):
        ball = read_ball(Linf, eps or ("0.1" if data is Data.fashion else "8/255"))
        recipe = PUBLISHED[method](ball)
        network = build(model, data, seed)
        load = partial(sets.fashion_mnist if data is Data.fashion else sets.cifar10, root=root)
        x, y = load("train", n)
        out.mkdir(parents=True, exist_ok=True)  # fails now and not after an epoch
        accelerator = engine(half)
        one_of_many = not accelerator.is_main_process  # which has nothing to say
        logs: list[Log] = [JsonLines(out / "log.jsonl")]
        if curves and not one_of_many:
            logs.append(TensorBoard(out / "curves"))
        history = fit(
            network,
            recipe.method,
            (x, y),
            epochs=epochs or recipe.epochs,
            batch_size=batch_size,
            optimizer=partial(torch.optim.SGD, momentum=0.9, weight_decay=recipe.weight_decay),
            schedule=recipe.schedule(recipe.rate if learning_rate is None else learning_rate),
            augment=[Crop(4), Mirror()] if data is Data.cifar10 else [Mirror()],
            validation=load("test", held_out),
            attack=PGD(ball, steps=10),
            monitors=[CatastrophicOverfitting()] if roll_back else [],
            checkpoint=out / "checkpoint.pt",
            logs=logs,
            compile=compile,
            accelerator=accelerator,
            generator=torch.Generator().manual_seed(seed),
        )
        accelerator.end_training()
        if one_of_many:
            return
        kept = history[(history.kept or 0) - 1]
        path = out / "model.safetensors"
        save_trained(network, path, model, data.value, method=repr(recipe.method), seed=seed, **history.as_dict())
        typer.echo(history)
        typer.echo(
            f"\nclean accuracy {kept.clean_accuracy:.1%}, {kept.robust_accuracy:.1%} under PGD-10 in "
            f"Linf({ball.eps:.3g}), on {held_out} test images, after {history.passes} passes and "
            f"{history.seconds:.0f} s; written to {path}"
        )
