"""How a command ends that could not do its work: one line, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line(interrupted: str) -> Iterator[None]:
    """Bad input or a missing extra ends with its message and code 2, an interruption with these words and code 130."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(130) from None
