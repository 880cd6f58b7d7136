import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from advcourse import data, models
from advcourse.attacks import FGSM, PGD
from advcourse.cli import app
from advcourse.cli.inputs import ATTACKS
from advcourse.cli.progress import watched
from advcourse.evaluation import auto_attack, worst_case
from advcourse.threat import Linf

from ..helpers import Linear, images


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of three features that is right about nine in ten images, and its images."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "weights.py").write_text("import torch\nweight = torch.ones(3)\n")
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from weights import weight  # lies beside it\n"
        "class Lead(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        lead = (x * weight).sum(1) - 1.5\n"
        "        return torch.stack([0 * lead, lead], 1)\n"
        "model = Lead()\n"
        "def tuples(): return lambda x: (x,)\n"
        "def nothing(): return None\n"
        "def broken(): raise RuntimeError('no\\nweights')\n"
    )
    x = images(40, (3,), dtype=torch.float32)
    y = (x.sum(1) > 1.5).long()
    y[::10] = 1 - y[::10]
    np.savez(tmp_path / "mine.npz", x=x.numpy(), y=y.numpy())
    return tmp_path


def test_the_table_and_the_file_say_what_the_library_says(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    result = evaluate(
        "cnn",
        "--attack",
        "fgsm",
        "--attack",
        "pgd",
        "--eps",
        "8/255",
        "--steps",
        5,
        "--n",
        30,
        "--seed",
        3,
        "--json",
        path,
    )
    assert result.exit_code == 0, result.output
    ball = Linf(8 / 255)
    expected = worst_case(
        models.load("cnn"),
        {"fgsm": FGSM(ball), "pgd": PGD(ball, 5)},
        *data.fashion_mnist("test", 30),
        ball,
        generator=torch.Generator().manual_seed(3),
    )
    assert result.stdout == f"{expected}\n"
    written = json.loads(path.read_text())
    assert written == {**written, **expected.as_dict()}
    assert (written["model"], written["seed"], written["data"]) == ("cnn", 3, "Fashion-MNIST test")
    assert written["attacks"][1]["attack"] == repr(PGD(ball, 5))
    assert "findings" not in written


def test_a_checkpoint_that_the_zoo_trained(tmp_path: Path, tiny_root: Path) -> None:
    CliRunner().invoke(app, ["zoo", "train", "tiny", "--out", str(tmp_path), "--root", str(tiny_root)])
    result = evaluate(tmp_path / "tiny.safetensors", "--attack", "fgsm", "--n", 20)
    assert result.exit_code == 0, result.output
    assert "of 20 images" in result.output
    (tmp_path / "tiny.json").unlink()
    result = evaluate(tmp_path / "tiny.safetensors")
    assert result.exit_code == 2
    assert "tiny.json is missing" in result.output


def test_auto_is_three_attacks_and_pgd_can_start_ten_times(tmp_path: Path) -> None:
    path, ball = tmp_path / "report.json", Linf(0.05)
    options = ["--eps", 0.05, "--n", 10, "--steps", 2, "--json", path]
    result = evaluate("cnn", "--attack", "pgd-50-10", "--attack", "auto", *options)
    assert result.exit_code == 0, result.output
    attacks = [replace(attack, steps=2) for attack in (PGD(ball, 50, 0.0125, restarts=10), *auto_attack(ball).values())]
    rows = json.loads(path.read_text())["attacks"]
    assert [row["name"] for row in rows] == ["pgd-50-10", "auto apgd", "auto apgd-t", "auto square"]
    assert [row["attack"] for row in rows] == [repr(attack) for attack in attacks]


@pytest.mark.parametrize("name", ["mine.py:Lead", "mine.py:model"])
def test_an_own_model_with_own_images(mine: Path, name: str) -> None:
    result = evaluate(mine / name, "--data", mine / "mine.npz", "--norm", "l2", "--eps", "1e-3", "--attack", "fgsm")
    assert result.exit_code == 0, result.output
    assert re.search(r"no attack .* 90\.0%", result.output)
    assert "of 40 images withstand inside L2(0.001)" in result.output


def test_an_own_module_and_bytes_for_images(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    (mine / "own_package").mkdir()
    (mine / "own_package" / "net.py").write_text((mine / "mine.py").read_text())
    bright = np.array([[0, 0, 0], [255, 255, 255], [51, 51, 51]], dtype=np.uint8)
    np.savez("bytes.npz", x=bright, y=np.array([0, 1, 0], dtype=np.int32))
    result = evaluate("own_package.net:Lead", "--data", "bytes.npz", "--eps", 0.35, "--attack", "fgsm", "--n", 3)
    assert result.exit_code == 0, result.output
    assert "At most 66.7% of 3 images" in result.output  # 0.2 is not far enough from a half


def test_less_robust_than_demanded_is_an_exit_code(mine: Path) -> None:
    arguments = [mine / "mine.py:Lead", "--data", mine / "mine.npz", "--attack", "fgsm", "--eps", 0]
    assert evaluate(*arguments, "--min-robust", 0.9).exit_code == 0
    result = evaluate(*arguments, "--min-robust", 0.95, "--json", mine / "report.json")
    assert result.exit_code == 1
    assert result.stderr == "robust accuracy 90.0% is below 95.0%\n"
    assert "At most 90.0%" in result.stdout
    assert json.loads((mine / "report.json").read_text())["robust_accuracy"] == 0.9


def test_lint_looks_at_the_last_attack(mine: Path) -> None:
    arguments = [mine / "mine.py:Lead", "--data", mine / "mine.npz", "--eps", 0.1, "--json", mine / "report.json"]
    result = evaluate(*arguments, "--attack", "fgsm", "--attack", "pgd", "--lint")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("pgd: nothing to worry about\n")
    assert json.loads((mine / "report.json").read_text())["findings"] == []
    (mine / "soft.py").write_text(
        "from mine import Lead\nimport torch\ndef soft(): return torch.nn.Sequential(Lead(), torch.nn.Softmax(1))\n"
    )
    result = evaluate(mine / "soft.py:soft", *arguments[1:], "--lint")
    assert "! probabilities: the model's outputs are probabilities" in result.stdout
    assert json.loads((mine / "report.json").read_text())["findings"][0]["name"] == "probabilities"


def test_what_is_measured_is_safe_before_the_lint_begins(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("advcourse.evaluation.lint", interrupt)
    path = mine / "report.json"
    result = evaluate(mine / "mine.py:Lead", "--data", mine / "mine.npz", "--lint", "--json", path)
    assert result.exit_code == 130
    assert "At most" in result.stdout
    assert json.loads(path.read_text())["images"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "there is no model 'nonsense': give a name of the zoo (cnn, "),
        (["cnn", "--data", "."], "CIFAR-10 could not be had from ."),
        (["nonsense.safetensors"], "nonsense.json is missing: it has to lie beside its weights"),
        (["nowhere.py:load"], "nowhere.py:load could not be loaded: FileNotFoundError"),
        (["nowhere.at.all:load"], "nowhere.at.all:load could not be loaded: ModuleNotFoundError"),
        (["mine.py:absent"], "mine.py:absent could not be loaded: AttributeError"),
        (["mine.py:broken"], "mine.py:broken could not be loaded: RuntimeError: no weights"),
        (["mine.py:nothing"], "mine.py:nothing does not map images of shape (1, 28, 28) to logits: ValueError"),
        (
            ["mine.py:tuples"],
            "mine.py:tuples does not map images of shape (1, 28, 28) to logits: ValueError: the model",
        ),
        (["cnn", "--data", "mine.npz"], "cnn does not map images of shape (3,) to logits: RuntimeError"),
        (["cnn", "--json", "."], "is a folder: --json takes the name of a file"),
        (["cnn", "--attack", "cw"], "cw looks for the least L2 distance: give --norm l2 with it"),
        (["cnn", "--eps", "8"], "eps 8 holds every image in [0, 1]; grey levels are given as 8/255"),
        (["cnn", "--attack", "nonsense"], "there is no attack 'nonsense'; there are: fgsm, pgd"),
        (["cnn", "--eps", "far"], "eps must be a number such as 0.1 or 8/255, got 'far'"),
        (["cnn", "--eps", "1/0"], "eps must be a number"),
        (["cnn", "--eps", "-0.1"], "eps must be a finite number >= 0"),
        (["cnn", "--steps", "0"], "steps must be an integer >= 1"),
        (["cnn", "--norm", "l1", "--attack", "apgd"], "ball must be Linf(eps) or L2(eps)"),
        (["cnn", "--n", "9999"], "n must be an integer in 1..2000"),
        (["cnn", "--data", "absent.npz"], "absent.npz"),
        (["cnn", "--data", "mine.py"], "mine.py must be an .npz file"),
        (["cnn", "--data", "single.npy"], "single.npy must be an .npz file"),
        (["cnn", "--data", "unnamed.npz"], "unnamed.npz must be an .npz file with images x (N, ...) and labels y (N,)"),
        (["cnn", "--data", "labels.npz"], "y in labels.npz must be integers of shape (2,), got float64"),
        (["cnn", "--data", "integers.npz"], "x in integers.npz must be floating point in [0, 1], or uint8, got int64"),
        (["mine.py:Lead", "--data", "bright.npz"], "images must lie in [0, 1]"),
        (["mine.py:Lead", "--data", "mine.npz", "--n", "41"], "there are 40 images in mine.npz, 41 were asked for"),
        (["cnn", "--json", "mine.py/report.json"], "mine.py"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    mine: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(mine)
    zeros = np.zeros((2, 3))
    np.save("single.npy", zeros)
    np.savez("unnamed.npz", zeros)
    np.savez("labels.npz", x=zeros, y=zeros[:, 0])
    np.savez("integers.npz", x=zeros.astype(np.int64), y=np.zeros(2, dtype=int))
    np.savez("bright.npz", x=zeros + 2, y=np.zeros(2, dtype=int))
    before = sorted(mine.rglob("*.json"))
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(mine.rglob("*.json")) == before


def test_a_share_is_between_0_and_1() -> None:
    assert evaluate("cnn", "--min-robust", "50").exit_code == 2


def test_an_attack_that_asks_scores_takes_its_turn_on_what_is_left(mine: Path) -> None:
    arguments = mine / "mine.py:model", "--data", mine / "mine.npz", "--eps", 0.05, "--steps", 20
    result = evaluate(*arguments, "--attack", "fgsm", "--attack", "square")
    assert result.exit_code == 0, result.output
    first, second = re.findall(r"\| (?:fgsm|square) +\| +(\d+) \| +(\d+)", result.output)
    assert 0 < int(first[1]) == int(first[0]) - int(second[0])  # on a linear model no corner beats the sign step
    assert int(second[1]) == 0
    alone = evaluate(*arguments, "--attack", "square")
    assert re.search(r"\| square +\| +36 \| +[1-9]", alone.output)


def test_help_names_every_attack_and_says_what_the_number_means() -> None:
    text = " ".join(evaluate("--help").output.split())
    assert all(name in text for name in ATTACKS)
    for word in "upper", "bound", "Exit", "codes", "advcourse evaluate cnn":
        assert word in text


def test_a_watched_attack_is_the_attack_and_moves_the_bar() -> None:
    model, x, y = Linear(torch.ones(3).double(), bias=-1.5), images(9, (3,)), torch.zeros(9, dtype=torch.long)
    plain = {"pgd": PGD(Linf(0.1), 3)}
    with watched(plain) as shown:
        bar = shown["pgd"].bar  # type: ignore[attr-defined]
        result = worst_case(model, shown, x, y)
        assert (bar.desc, bar.total) == ("pgd", 4)
    assert result.as_dict() == worst_case(model, plain, x, y).as_dict()


def test_warnings_of_the_attacks_come_out_once(capsys: pytest.CaptureFixture[str]) -> None:
    flat = Linear(torch.zeros(3).double(), bias=-1.0)
    x, y = images(9, (3,)), torch.zeros(9, dtype=torch.long)
    with watched({"a": FGSM(Linf(0.1)), "b": FGSM(Linf(0.1))}) as shown:
        worst_case(flat, shown, x, y)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning"]
    assert "exactly zero for 9 of 9 images" in lines[0]


def test_the_same_command_goes_on_where_it_was_interrupted(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mine / "report.json"
    attacks = ["--attack", "fgsm", "--attack", "pgd", "--attack", "apgd"]
    command = [mine / "mine.py:Lead", "--data", mine / "mine.npz", "--eps", 0.05, "--norm", "linf", *attacks]
    whole = evaluate(*command)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("advcourse.attacks.APGD.climb", interrupt)
        result = evaluate(*command, "--json", path)
        assert (result.exit_code, result.stderr) == (130, "interrupted; run the same command again to go on\n")
        assert evaluate(*command).stderr.startswith("interrupted; with --json, what is done would have been kept")
    kept = mine / "report.json.checkpoint"
    assert kept.exists()
    with monkeypatch.context() as patch:
        patch.setattr("advcourse.attacks.PGD.climb", interrupt)  # it is not asked again
        assert evaluate(*command, "--json", path).output == whole.output
    assert not kept.exists()
    assert [row["name"] for row in json.loads(path.read_text())["attacks"]] == ["fgsm", "pgd", "apgd"]
