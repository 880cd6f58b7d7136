"""What chapters 8 and 9 draw from files is what the tool would record now: settings, and a piece of the verdicts."""

import pytest
import torch

from advcourse import models
from advcourse.evaluation import Recorded, predict
from tools.record_transfer import EXPERIMENTS, FOLDER


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_settings_are_those_of_today(name: str) -> None:
    experiment, found = EXPERIMENTS[name], Recorded.load(FOLDER / f"{name}.json")
    assert found.settings["attacks"] == {key: repr(attack) for key, attack in experiment.attacks.items()}
    assert found.settings["at"] == list(experiment.at)
    assert found.settings["seeds"] == list(experiment.seeds)
    assert found.settings["radii"] == list(experiment.radii)
    assert (found.settings["sought"] is not None) == experiment.targeted
    assert len(found.rows) == len(experiment.attacks) * len(experiment.seeds) * len(found.settings["surrogates"])
    assert found.provenance["command"]
    assert found.provenance["commit"]


def test_a_piece_run_again_gives_the_verdicts_in_the_file() -> None:
    found, experiment = Recorded.load(FOLDER / "ladder.json"), EXPERIMENTS["ladder"]
    x, y = experiment.images()
    rows = torch.tensor(found.settings["images"][:40])
    for name in "MI", "NI":  # nothing in them is random, and no image depends on the others
        crafted = experiment.attacks[name](models.load("cnn"), x[rows], y[rows])
        fooled = predict(models.load("resnet"), crafted).argmax(1) != y[rows]
        same = fooled == found.fooled("cnn", name, "resnet")[0, :40]
        assert same.float().mean() >= 0.95  # another processor rounds otherwise


def test_images_of_the_search_are_not_those_of_the_report() -> None:
    images = {name: EXPERIMENTS[name].images()[0] for name in ("rap_search", "rap_report")}
    same = (images["rap_search"][:, None] == images["rap_report"]).flatten(2).all(2)
    assert not same.any()
