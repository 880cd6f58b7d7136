"""The command `advcourse`."""

from typing import Annotated

import typer

from .. import __version__
from .evaluate import evaluate
from .grade import grade
from .serve import serve
from .train import train
from .transfer import transfer
from .zoo import zoo

app = typer.Typer(
    help="Adversarial machine learning as one optimization problem.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command()(evaluate)
app.command()(grade)
app.command()(serve)
app.command()(train)
app.command()(transfer)
app.add_typer(zoo, name="zoo")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
