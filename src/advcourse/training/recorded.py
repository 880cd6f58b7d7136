"""Trainings that were run once, at full length, and ship with the package."""

import json
from typing import Any

from ..files import ASSETS

FOLDER = ASSETS / "training"


def recorded(name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What became of the trainings of one experiment, as `make experiments` wrote it down.

    Args:
        name: of the experiment.

    Returns:
        By label and seed: settings, passes, seconds, the loss of each epoch, what was `seen` after each, the accuracies
        at the `end`, and the provenance (command, commit, versions, processor).

    Raises:
        ValueError: for an unknown name; the message lists what there is.

    Example:
        >>> recorded("methods")["PGD-7", 0]["passes"]
        64
    """
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise ValueError(f"got {name!r}, expected one of {sorted(path.stem for path in FOLDER.glob('*.json'))}")
    return {(row["label"], row["seed"]): row for row in json.loads(path.read_text())["rows"]}
