from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advcourse.models.zoo import Recipe
from advcourse.training.standard import train

from ..helpers import rng

RECIPE = Recipe(epochs=3, learning_rate=0.01, batch_size=8)
X = torch.rand(20, 1, 4, 4, generator=rng())
Y = (X.mean((1, 2, 3)) > 0.5).long()  # which mirroring does not change


def fresh(seed: int = 0) -> nn.Sequential:
    """Batch norm included: its buffers and its mode have to survive, too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def trained(checkpoint: Path, recipe: Recipe = RECIPE) -> dict[str, Tensor]:
    network = fresh()
    train(network, X, Y, recipe, checkpoint)
    assert not any(module.training for module in network.modules())
    return network.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_same_seed_same_bits_and_no_global_random_numbers(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = trained(tmp_path / "a.pt")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(trained(tmp_path / "b.pt"), first)
    assert not same(trained(tmp_path / "c.pt", replace(RECIPE, seed=1)), first)
    assert not same(first, fresh().state_dict())


@pytest.mark.parametrize("batch", [4, 5, 6, 7, 9])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, batch: int, error: type[BaseException]
) -> None:
    network, seen = fresh(), 0

    def interrupt(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == batch:  # three batches make an epoch
            raise error

    network.register_forward_hook(interrupt)
    with pytest.raises(error):
        train(network, X, Y, RECIPE, tmp_path / "interrupted.pt")
    assert list(tmp_path.iterdir()) == [tmp_path / "interrupted.pt"]
    resumed = fresh(seed=5)  # whatever it held, the checkpoint's weights replace it
    counted: list[int] = []
    resumed.register_forward_hook(lambda *_: counted.append(1))
    train(resumed, X, Y, RECIPE, tmp_path / "interrupted.pt")
    assert same(resumed.state_dict(), trained(tmp_path / "whole.pt"))
    assert len(counted) == 9 - (batch - 1) // 3 * 3  # at most one epoch is lost


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = trained(tmp_path / "a.pt")
    network = fresh(seed=5)
    network.register_forward_hook(lambda *_: pytest.fail("it trained again"))
    train(network, X, Y, RECIPE, tmp_path / "a.pt")
    assert same(network.state_dict(), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 4}, {"learning_rate": 0.02}, {"batch_size": 4}])
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, change: dict[str, float]) -> None:
    trained(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(ValueError, match=r"a\.pt is of another recipe or data set: remove it"):
        trained(tmp_path / "a.pt", replace(RECIPE, **change))  # type: ignore[arg-type]
    assert (tmp_path / "a.pt").read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="another recipe or data set"):
        train(fresh(), X[:10], Y[:10], RECIPE, tmp_path / "a.pt")
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"a\.pt is of another .*remove it"):
        train(other, X, Y, RECIPE, tmp_path / "a.pt")
    assert same(other.state_dict(), before)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match=r"a\.pt is .*remove it"):
        train(fresh(), X, Y, RECIPE, tmp_path / "a.pt")


def test_a_file_that_is_no_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"epochs": 1}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="no checkpoint of a training: remove it"):
        train(fresh(), X, Y, RECIPE, tmp_path / "c.pt")


def test_it_trains_in_train_mode_whatever_mode_the_network_came_in(tmp_path: Path) -> None:
    network = fresh().eval()
    train(network, X, Y, RECIPE, tmp_path / "c.pt")
    assert same(network.state_dict(), trained(tmp_path / "d.pt"))


def test_it_learns(tmp_path: Path) -> None:
    network = fresh()
    train(network, X, Y, replace(RECIPE, epochs=60), tmp_path / "a.pt")
    assert (network(X).argmax(1) == Y).float().mean() > 0.8


def test_adversarial_training_sees_the_ramped_and_clipped_images_of_fast_training(tmp_path: Path) -> None:
    """Each step first asks for one gradient at a random start in the ball, then trains where one step of it leads."""
    network, passes = fresh(), []
    network.register_forward_pre_hook(
        lambda module, inputs: passes.append((inputs[0].detach(), inputs[0].requires_grad))
    )
    train(network, X, Y, replace(RECIPE, eps=0.1), tmp_path / "a.pt")
    starts, trained_on = passes[0::2], passes[1::2]
    assert all(asks for _, asks in starts)
    assert not any(asks for _, asks in trained_on)
    for images, _ in passes:
        assert images.min() >= 0
        assert images.max() <= 1
    moved = []
    for images, _ in trained_on:
        views = torch.cat([X, X.flip(3)])
        nearest = (images[:, None] - views).abs().flatten(2).amax(2).amin(1)
        moved.append(nearest.max().item())
    assert moved[0] <= 0.1 / 3 + 1e-6  # three batches make the first epoch, in which the radius grows
    assert moved[1] <= 0.2 / 3 + 1e-6
    assert max(moved[2:]) == pytest.approx(0.1, abs=1e-6)
    assert not same(network.state_dict(), trained(tmp_path / "b.pt"))
