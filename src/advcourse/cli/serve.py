"""`advcourse serve`: a model behind a prediction API."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .endings import one_line


class Mode(StrEnum):
    labels = "labels"
    scores = "scores"


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of the zoo, the path of a NAME.safetensors, or your own as file.py:function; as for "
            "`advcourse evaluate`.",
        ),
    ],
    mode: Annotated[Mode, typer.Option(help="What the server tells: labels alone, or the scores of all classes.")] = (
        Mode.labels
    ),
    budget: Annotated[int | None, typer.Option(min=0, help="Queries for each key; without a limit by default.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Queries a second for each key; without a limit by default.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with a client's name and its API key on each line. By default there is one client, student, "
            "whose key is made up and printed."
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="The SQLite file with what each client has asked; in memory, and lost at the end, by default."
        ),
    ] = None,
    shape: Annotated[str, typer.Option(help="Of one input.")] = "1,28,28",
    max_rows: Annotated[int, typer.Option(min=1, help="Inputs in one request, at most.")] = 256,
    host: Annotated[str, typer.Option(help="Where to listen; this machine alone by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8000,
) -> None:
    """Serve a model as a prediction API, to be attacked.

    Clients send a key with each request and pay one query for each input, until their budget is used up. The page
    /docs explains the API and lets you try it; `advcourse.oracles.Http` is its client in Python. With `--ledger`, what
    was asked is on the disk before it is answered, and a server that was killed goes on from there.

    The server speaks HTTP. Before others than you can reach it, put it behind a proxy that speaks HTTPS.

    ```text
    advcourse serve cnn --budget 10000
    advcourse serve resnet --mode scores --rate 500 --keys keys.txt --ledger ledger.sqlite
    ```
    """
    import secrets

    import torch

    from .inputs import read_keys, read_model, read_shape

    with one_line("stopped"):
        try:
            from ..serve import Ledger, create_app, listening, server
        except ImportError as error:
            raise ValueError(f"{error}; what a server needs comes with advcourse[serve]") from None
        one = read_shape(shape)
        network = read_model(model, torch.zeros(1, *one))
        made_up = secrets.token_urlsafe(16)
        clients = {made_up: "student"} if keys is None else read_keys(keys)
        app = create_app(
            network,
            keys=clients,
            mode=mode.value,
            ledger=Ledger(ledger, budget),
            rate=rate,
            shape=one,
            max_rows=max_rows,
        )
        with listening(host, port) as (free, url):
            typer.echo(f"{model} answers at {url}, and {url}/docs explains how")
            if keys is None:
                typer.echo(f"key: {made_up}")
            server(app).run(sockets=[free])
