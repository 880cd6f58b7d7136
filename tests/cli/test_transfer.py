"""`advcourse transfer`, on networks and images that are there in a second."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from advcourse import data, models
from advcourse.attacks import Transfer
from advcourse.cli import app
from advcourse.cli.inputs import read_model, read_transfer
from advcourse.evaluation import Recorded, predict
from advcourse.goals import po_trip
from advcourse.gradients import RAP
from advcourse.threat import Linf


def transfer(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["transfer", *map(str, arguments)])


def test_it_records_what_the_library_does(tmp_path: Path) -> None:
    out = tmp_path / "new" / "r.json"
    again = [
        "cnn",
        "resnet",
        "--target",
        "cnn_robust",
        "--eps",
        0.1,
        "--step-size",
        0.02,
        "--at",
        "2,3",
        "--images",
        20,
    ]
    ended = transfer(*again, "--attack", "MI", "--flatness", "--out", out)
    assert ended.exit_code == 0, ended.output
    found = Recorded.load(out)
    assert (found.settings["surrogates"], found.settings["targets"]) == (
        ["cnn", "resnet"],
        ["cnn", "resnet", "cnn_robust"],
    )
    x, y = data.fashion_mnist("test", n=20)
    rows = torch.tensor(found.settings["images"])
    crafted = Transfer.named("MI", Linf(0.1), steps=3, step_size=0.02)(models.load("cnn"), x[rows], y[rows])
    fooled = predict(models.load("resnet"), crafted).argmax(1) != y[rows]
    assert torch.equal(found.fooled("cnn", "MI", "resnet"), fooled[None])
    assert found.loss_change("cnn", "MI").shape == (9,)
    assert "cnn → cnn_robust" in ended.output
    assert ended.output.endswith(f"written to {out}\n")
    later = transfer(*again, "--attack", "MI", "--flatness", "--out", out)
    assert later.output == ended.output.replace("written to", "read from")
    assert transfer(*again, "--attack", "I", "--out", out).exit_code == 2


def test_targeted_with_several_losses_towards_labels_that_are_drawn(tmp_path: Path) -> None:
    ended = transfer(
        *["cnn", "--targeted", "--loss", "ce", "--loss", "po-trip", "--attack", "MI+RAP-LS", "--rap-eps", "1/255"],
        *["--rap-steps", 1, "--late-start", 1, "--at", 2, "--images", 10, "--out", tmp_path / "r.json"],
    )
    assert ended.exit_code == 0, ended.output
    settings = Recorded.load(tmp_path / "r.json").settings
    assert list(settings["attacks"]) == ["MI+RAP-LS, ce", "MI+RAP-LS, po-trip"]
    assert f"RAP(eps={1 / 255}, steps=1, step_size=None, start=1" in settings["attacks"]["MI+RAP-LS, ce"]
    assert "loss=po_trip" in settings["attacks"]["MI+RAP-LS, po-trip"]
    _, y = data.fashion_mnist("test", n=10)
    assert all(
        sought != label for sought, label in zip(settings["sought"], y[settings["images"]].tolist(), strict=True)
    )


@pytest.mark.parametrize(("name", "start"), [("MI+RAP", 0), ("MI+RAP-LS", 7), ("MI", None)])
def test_rap_s_settings_reach_it(name: str, start: int | None) -> None:
    made = read_transfer(name, Linf(0.1), {"steps": 9, "loss": po_trip}, {"eps": 0.05, "steps": 3, "start": 7})
    raps = [part for part in made.parts if isinstance(part, RAP)]
    assert raps == ([] if start is None else [RAP(0.05, 3, start=start)])
    assert (made.steps, made.loss) == (9, po_trip)


def write_nips17(root: Path, n: int = 3) -> None:
    (root / "images").mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (299, 299), (40 * i, 90, 200)).save(root / "images" / f"im{i}.png")
    rows = [f"im{i},http://,{i + 1},{n - i}" for i in range(n)]
    (root / "images.csv").write_text("\n".join(["ImageId,URL,TrueLabel,TargetClass", *rows]))


def test_the_competition_s_images_on_a_network_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the paper's tables, with untrained networks and tiny images."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    write_nips17(tmp_path / "nips17")
    x, y, sought = data.nips17(tmp_path / "nips17")
    assert (x.shape, y.tolist(), sought.tolist()) == ((3, 3, 299, 299), [0, 1, 2], [2, 1, 0])
    assert data.nips17(tmp_path / "nips17", n=2)[2].tolist() == [2, 1]
    tiny = "squeezenet1_1@untrained"
    network = read_model(tiny, x)
    (tmp_path / "images.csv").write_text((tmp_path / "nips17" / "images.csv").read_text())
    (tmp_path / "images").symlink_to(tmp_path / "nips17" / "images")
    labels = predict(network, x).argmax(1)  # it knows nothing; let what it says be the truth
    rows = [f"im{i},{label + 1},{i + 10}" for i, label in enumerate(labels.tolist())]
    (tmp_path / "images.csv").write_text("\n".join(["ImageId,TrueLabel,TargetClass", *rows]))
    out = tmp_path / "r.json"
    ended = transfer(
        tiny, "--data", tmp_path, "--targeted", "--loss", "logit", "--attack", "MTDI", "--at", "1,2", "--out", out
    )
    assert ended.exit_code == 0, ended.output
    assert Recorded.load(out).settings["sought"] == [9, 10, 11]


def test_twenty_photographs(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    ended = transfer(
        "efficientnet_lite0", "--data", "samples", "--images", 2, "--at", 1, "--eps", "8/255", "--out", out
    )
    assert ended.exit_code == 0, ended.output
    assert Recorded.load(out).settings["images"] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "there is no model 'none'"),
        (["none@untrained"], "torchvision has no classification model 'none'"),
        (["resnet50@nowhere.pth"], "is neither a file nor weights of resnet50"),
        (["cnn", "--attack", "X"], "there is no attack 'X'"),
        (["cnn", "--attack", "MNI"], "exclude each other"),
        (["cnn", "--at", "ten"], "steps must be numbers such as 10,20,40, got 'ten'"),
        (["cnn", "--at", "5,2"], "ascend"),
        (["cnn", "--eps", "x"], "eps must be a number"),
        (["cnn", "--data", "nowhere.npz"], "No such file"),
        (["cnn", "--loss", "po-trip"], "po_trip needs FromTo"),
        (["resnet50@untrained"], "does not map images of shape (1, 28, 28) to logits"),
    ],
)
def test_bad_input_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    ended = transfer(*arguments, "--images", 20, "--out", tmp_path / "r.json")
    assert ended.exit_code == 2
    assert said in ended.output
    assert ended.output.startswith("error: ")
    assert len(ended.output.strip().splitlines()) == 1
    assert not (tmp_path / "r.json").exists()


def test_a_folder_of_classes_is_read_too(tmp_path: Path) -> None:
    for name in "a", "b":
        (tmp_path / name).mkdir()
        Image.new("RGB", (300, 300), (40, 90, 200)).save(tmp_path / name / "0.png")
    ended = transfer("squeezenet1_1@untrained", "--data", tmp_path, "--at", 1, "--out", tmp_path / "r.json")
    assert "none of 2 images is classified correctly" in ended.output  # it was read, and is not known


def test_the_command_needs_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    ended = transfer("cnn", "--images", 10, "--out", tmp_path / "r.json")
    assert ended.exit_code == 2
    assert "pip install 'advcourse[imagenet]'" in ended.output


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    again = ["cnn", "resnet", "--eps", "0.06", "--at", "1", "--images", "20", "--batch-size", "5", "--out"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "advcourse"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*two, "transfer", *again, str(tmp_path / "two.json")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to") == 1  # by the one that finished last
    assert transfer(*again, tmp_path / "one.json").exit_code == 0
    one, other = (json.loads((tmp_path / name).read_text())["rows"] for name in ("one.json", "two.json"))
    assert [row | {"seconds": 0} for row in one] == [row | {"seconds": 0} for row in other]
