import json
from pathlib import Path

import pytest
import torch

from advcourse import data, models
from advcourse.evaluation import accuracy
from advcourse.training.zoo import train_entry


def test_what_was_trained_can_be_loaded_and_is_what_its_card_says(tmp_path: Path, tiny_root: Path) -> None:
    folder = tmp_path / "out"
    card = train_entry("tiny", folder, tiny_root)
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.json", "tiny.safetensors"]
    assert models.card("tiny", folder) == card == json.loads((folder / "tiny.json").read_text())
    model = models.load("tiny", folder)
    assert accuracy(model, *data.fashion_mnist("test")) == pytest.approx(card["accuracy"], abs=1e-4)
    assert card["parameters"] == 784 * 10 + 10 + 20
    assert "30 training images" in card["data"]
    assert card["recipe"]["epochs"] == 2
    again = train_entry("tiny", tmp_path / "again", tiny_root)
    assert again["sha256"] == card["sha256"]


def test_an_unknown_name_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'alexnet' in the zoo"):
        train_entry("alexnet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_the_checkpoint_and_no_half_network(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_entry("tiny", tmp_path / "whole", tiny_root)
    folder = tmp_path / "out"

    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("advcourse.training.zoo.accuracy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_entry("tiny", folder, tiny_root)
    assert [path.name for path in folder.iterdir()] == ["tiny.checkpoint.pt"]
    assert train_entry("tiny", folder, tiny_root)["sha256"] == whole["sha256"]
    assert torch.equal(*(next(models.load("tiny", place).parameters()) for place in (folder, tmp_path / "whole")))
