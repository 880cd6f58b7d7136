"""`advcourse zoo`: list the networks of the course, and train them."""

from pathlib import Path
from typing import Annotated

import typer

from .endings import one_line

zoo = typer.Typer(help="The small trained networks that the course attacks.", no_args_is_help=True)


@zoo.command("list")
def list_(
    folder: Annotated[Path | None, typer.Option(help="Where the networks are; the bundled ones by default.")] = None,
) -> None:
    """List the networks with their size and their accuracy on the bundled test images."""
    from ..models.zoo import BUNDLED, FOLDER, card

    for name in BUNDLED:
        try:
            known = card(name, folder or FOLDER)
        except FileNotFoundError:
            typer.echo(f"{name:12} not trained")
        except ValueError as error:
            typer.echo(f"{name:12} {error}")
        else:
            typer.echo(f"{name:12} {known['parameters']:>9,} parameters   accuracy {known['accuracy']:.1%}")


@zoo.command()
def train(
    names: Annotated[list[str] | None, typer.Argument(help="Which networks; all of them by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the weights and their cards.")] = Path("runs/zoo"),
    root: Annotated[Path | None, typer.Option(help="Folder with all of Fashion-MNIST, if it is nowhere usual.")] = None,
) -> None:
    """Train networks on all 60,000 images of Fashion-MNIST; a few minutes each on a laptop.

    Interrupt it when you like and run it again: it goes on where the last epoch ended. The same seed gives the same
    bits on the same machine. Load the result with `models.load(NAME, folder)`.
    """
    from ..models.zoo import BUNDLED, entry
    from ..training.zoo import train_entry

    with one_line("interrupted; run the same command again to go on from the last epoch"):
        for name in names or list(BUNDLED):
            entry(name)
        for name in names or list(BUNDLED):
            card = train_entry(name, out, root)
            typer.echo(f"{name}: accuracy {card['accuracy']:.2%}, written to {out / name}.safetensors")
