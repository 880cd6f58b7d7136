import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from advcourse import models
from advcourse.attacks import PGD
from advcourse.data import fashion_mnist
from advcourse.evaluation import accuracy, robust_accuracy
from advcourse.files import sha256
from advcourse.models import BUNDLED, zoo
from advcourse.threat import Linf


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_networks_are_what_their_cards_say(name: str) -> None:
    model, card = models.load(name), models.card(name)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert card["accuracy"] >= (0.84 if card["recipe"]["eps"] else 0.9)
    assert accuracy(model, *fashion_mnist("test")) == pytest.approx(card["accuracy"], abs=0.0015)
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert 50_000 <= card["parameters"] <= 300_000
    assert card["sha256"] == sha256((zoo.FOLDER / f"{name}.safetensors").read_bytes())
    assert card["recipe"] == asdict(BUNDLED[name].recipe)
    assert {"name", "data", "torch", "format", "accuracy_on"} <= set(card)
    assert all(torch.equal(value.half().float(), value) for value in model.parameters())


def test_loading_leaves_global_random_numbers_alone_and_shares_nothing() -> None:
    state = torch.get_rng_state()
    first, second = models.load("cnn"), models.load("cnn")
    assert torch.equal(torch.get_rng_state(), state)
    next(first.parameters()).zero_()
    assert next(second.parameters()).any()


def test_the_robust_network_is_robust_and_the_standard_one_is_not() -> None:
    x, y = fashion_mnist("test", n=200)
    assert robust_accuracy(models.load("cnn_robust"), PGD(Linf(0.1), steps=20), x, y) >= 0.7
    assert robust_accuracy(models.load("cnn"), PGD(Linf(0.1), steps=20), x, y) <= 0.05


def test_all_networks_together_are_small_to_download() -> None:
    assert sum(path.stat().st_size for path in zoo.FOLDER.iterdir()) < 8e6


@pytest.mark.parametrize("ask", [models.load, models.card, zoo.entry])
@pytest.mark.parametrize("name", ["alexnet", "", "CNN", "../cnn"])
def test_an_unknown_name_lists_the_known_ones(ask: object, name: str) -> None:
    with pytest.raises(ValueError, match=r"no model .* there are: cnn, cnn_robust, resnet, "):
        ask(name)  # type: ignore[operator]


def test_missing_and_damaged_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cnn\.json is missing.*advcourse zoo train cnn"):
        models.load("cnn", tmp_path)
    for path in zoo.FOLDER.glob("cnn.*"):
        shutil.copy(path, tmp_path)
    assert models.load("cnn", tmp_path)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    weights, card = tmp_path / "cnn.safetensors", tmp_path / "cnn.json"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"cnn\.safetensors is damaged.*advcourse zoo train cnn"):
        models.load("cnn", tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"cnn\.safetensors is missing.*advcourse zoo train cnn"):
        models.load("cnn", tmp_path)
    for text in "", "{", json.dumps({"name": "cnn"}), "[]":
        card.write_text(text)
        with pytest.raises(ValueError, match=r"cnn\.json is damaged.*advcourse zoo train cnn"):
            models.load("cnn", tmp_path)


def test_a_folder_may_be_a_string() -> None:
    assert models.load("cnn", str(zoo.FOLDER)).training is False  # type: ignore[arg-type]
