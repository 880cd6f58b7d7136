"""Trainings that were run once, at full length, and ship with the package."""

import json
from typing import Any

from ..files import ASSETS, experiment

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
    rows = json.loads(experiment(FOLDER, name).read_text())["rows"]
    return {(row["label"], row["seed"]): row for row in rows}
