import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from advcourse import data
from advcourse.cli import app
from advcourse.cli.train import Way
from advcourse.evaluation import accuracy
from advcourse.models.catalogue import load_trained
from advcourse.threat import Linf
from advcourse.training.published import PUBLISHED


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def train(tiny_root: Path, tmp_path: Path):
    """Trains on thirty images of Fashion-MNIST."""

    def command(*arguments: object, out: str = "out") -> Result:
        small = ["--root", tiny_root, "--n", 30, "--held-out", 20, "--learning-rate", 0.01, "--out", tmp_path / out]
        return run("train", *small, *arguments)

    return command


@pytest.mark.parametrize("method", Way)
def test_every_method_trains_and_what_it_wrote_can_be_evaluated(train, tmp_path: Path, method: Way) -> None:
    result = train("--method", method.value, "--epochs", 2)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "model.json",
        "model.safetensors",
    ]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    card = json.loads((out / "model.json").read_text())
    assert card["epochs"] == lines
    assert (card["network"], card["data"], card["kept"]) == ("cnn", "fashion", 2)
    assert lines[0]["passes"] == PUBLISHED[method](Linf(0.1)).method.passes
    assert f"written to {out / 'model.safetensors'}" in result.output
    model = load_trained(out / "model.safetensors")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    result = run("evaluate", out / "model.safetensors", "--attack", "fgsm", "--n", 20)
    assert result.exit_code == 0, result.output
    assert f"{accuracy(model, *data.fashion_mnist('test', 20)):.1%}" in result.output


def test_it_goes_on_where_it_was_interrupted(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from advcourse.training import JsonLines

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--epochs", 2, "--method", "free"]
    assert train(*arguments, out="whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "__call__", interrupt)
        result = train(*arguments)
    assert result.exit_code == 130
    assert "interrupted; run the same command again" in result.output
    assert train(*arguments).exit_code == 0
    one, other = (load_trained(tmp_path / out / "model.safetensors").state_dict() for out in ("out", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    result = train(*arguments, "--seed", 1)
    assert result.exit_code == 2
    assert "checkpoint.pt is of another training (seed was" in result.stderr
    assert result.stderr.count("\n") == 1


def test_all_options_at_once(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    options = ["--model", "resnet", "--eps", "8/255", "--batch-size", 10, "--half", "--compile", "--curves"]
    with pytest.warns(UserWarning, match="half precision is off"):
        result = train("--epochs", 1, "--roll-back", "--seed", 3, *options)
    assert result.exit_code == 0, result.output
    assert any((tmp_path / "out" / "curves").iterdir())
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (card["network"], card["seed"]) == ("resnet", 3)
    assert "eps=0.0313" in card["method"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "alexnet"], "there is no network 'alexnet'; there are: cnn, "),
        (["--eps", "eight"], "eps must be a number"),
        (["--eps", "-1"], "eps must be a finite number >= 0"),
        (["--n", "31"], "n must be an integer in 1..30"),
        (["--root", "nowhere"], "nowhere is not a folder"),
        (["--data", "cifar10", "--root", "nowhere"], "CIFAR-10 could not be had from nowhere"),
        (["--method", "gradalign", "--compile"], "derivatives that a compiled network does not have"),
        (["--learning-rate", "1e30", "--epochs", "3", "--method", "standard"], "the model returned NaN or infinity"),
    ],
)
def test_what_cannot_be_done_is_one_line(train, arguments: list[str], words: str) -> None:
    result = train(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_not_installed_is_named(train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = train()
    assert result.exit_code == 2
    assert result.stderr == "error: training needs Hugging Face Accelerate: pip install 'advcourse[train]'\n"


def test_the_published_recipes_are_those_of_the_papers() -> None:
    recipes = {name: make(Linf(8 / 255)) for name, make in PUBLISHED.items()}
    assert list(recipes) == [way.value for way in Way]
    assert recipes["pgd"].method.step_size == pytest.approx(2 / 255)
    assert recipes["gradalign"].method.weight == pytest.approx(0.2, abs=1e-9)
    assert PUBLISHED["gradalign"](Linf(16 / 255)).method.weight == pytest.approx(2.0)
    assert PUBLISHED["trades"](Linf(0.031)).method.step_size == pytest.approx(0.007)
    assert recipes["free"].epochs * recipes["free"].method.passes == 96
    for recipe in recipes.values():
        assert recipe.schedule(recipe.rate)(0.4) <= recipe.rate
