"""The loop keeps its promises whatever the method: same bits, no traces, nothing lost."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advcourse import models
from advcourse.attacks import FGSM, PGD
from advcourse.evaluation import accuracy, robust_accuracy
from advcourse.training import (
    Action,
    CatastrophicOverfitting,
    Constant,
    Crop,
    Cyclic,
    EarlyStopping,
    FastTraining,
    FreeTraining,
    GradAlign,
    History,
    JsonLines,
    Method,
    Mirror,
    OneCycle,
    PGDTraining,
    Ramped,
    Standard,
    train,
)

from ..helpers import rng
from .small import BALL, DATA, METHODS, X, Y, convolutional, fit, plain, same, trained

EVERYTHING = {
    "augment": [Crop(1), Mirror()],
    "average": 0.9,
    "schedule": OneCycle(0.05),
    "validation": (X[:9], Y[:9]),
    "attack": FGSM(BALL),
    "monitors": [EarlyStopping()],
}


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_same_seed_same_bits_and_no_global_random_numbers(method: Method) -> None:
    state = torch.get_rng_state()
    first = trained(convolutional(), method, **EVERYTHING)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(trained(convolutional(), method, **EVERYTHING), first)
    assert same(trained(convolutional(), method, **EVERYTHING, generator=rng(0)), first)
    assert not same(trained(convolutional(), method, **EVERYTHING, generator=rng(1)), first)
    assert not same(first, convolutional().state_dict())


@pytest.mark.parametrize("batch", [4, 6, 8])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, method: Method, batch: int) -> None:
    whole = convolutional()
    history = fit(whole, method, epochs=3, **EVERYTHING)
    network, path, updates = convolutional(), tmp_path / "run.pt", 0

    class Interrupted(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            nonlocal updates
            updates += 1
            if updates > (batch - 1) * method.replays:  # three batches make an epoch
                raise KeyboardInterrupt
            super().step(closure)

    momentum = {"momentum": 0.9, "weight_decay": 5e-4}
    with pytest.raises(KeyboardInterrupt):
        fit(network, method, epochs=3, **EVERYTHING, checkpoint=path, optimizer=partial(Interrupted, **momentum))
    assert list(tmp_path.iterdir()) == [path]
    assert not network.training
    # Whatever it held, the checkpoint's weights replace it.
    resumed, updates = convolutional(seed=5), -1000

    class Counting(Interrupted):
        pass

    Counting.__name__ = "Interrupted"
    again = fit(resumed, method, epochs=3, **EVERYTHING, checkpoint=path, optimizer=partial(Counting, **momentum))
    assert updates + 1000 == (9 - (batch - 1) // 3 * 3) * method.replays  # at most one epoch is lost
    assert same(resumed.state_dict(), whole.state_dict())
    for one, other in zip(again, history, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    network, path, log = convolutional(), tmp_path / "run.pt", tmp_path / "log.jsonl"
    history = fit(network, FastTraining(BALL), **EVERYTHING, checkpoint=path)
    other = convolutional(seed=5)
    other.register_forward_hook(lambda *_: pytest.fail("it trained again"))
    assert fit(other, FastTraining(BALL), **EVERYTHING, checkpoint=str(path), logs=[JsonLines(str(log))]) == history
    assert same(other.state_dict(), network.state_dict())
    assert len(log.read_text().splitlines()) == len(history)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": rng(1)}, "seed was"),
        ({"epochs": 4}, "epochs was 2, is 4"),
        ({"schedule": Constant(0.02)}, r"schedule was Constant\(rate=0.05\), is Constant\(rate=0.02\)"),
        ({"batch_size": 4}, "batch_size was 8, is 4"),
        ({"augment": [Mirror()]}, r"augment was , is Mirror\(\)"),
        ({"average": 0.5}, "average was None, is 0.5"),
        ({"validation": (X[:3], Y[:3])}, "validation was none, is 3 images"),
        ({"attack": FGSM(BALL)}, r"attack was None, is FGSM\("),
        ({"data": (X[:10], Y[:10])}, "data was 20 images .* is 10 images"),
        ({"data": (X, 1 - Y)}, "data was 20 images"),
        ({"optimizer": partial(torch.optim.SGD, momentum=0.5)}, "optimizer was SGD.*'momentum': 0.9"),
        ({"optimizer": torch.optim.AdamW}, r"optimizer was SGD.* is AdamW\("),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "run.pt"
    fit(plain(), Standard(), checkpoint=path)
    before, network = path.read_bytes(), plain(seed=1)
    with pytest.raises(ValueError, match=rf"run\.pt is of another training \(.*{words}.*remove it to start afresh"):
        fit(network, Standard(), checkpoint=path, **change)
    with pytest.raises(ValueError, match=r"method was Standard\(\), is FastTraining"):
        fit(network, FastTraining(BALL), checkpoint=path)
    assert path.read_bytes() == before
    assert same(network.state_dict(), plain(seed=1).state_dict())


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path, network = tmp_path / "run.pt", plain()
    fit(convolutional(), Standard(), checkpoint=path)
    with pytest.raises(ValueError, match=r"run\.pt is of another network: remove it"):
        fit(network, Standard(), checkpoint=path)
    assert same(network.state_dict(), plain().state_dict())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"nothing of the sort"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.pt is damaged .*remove it") as caught:
        fit(plain(), Standard(), checkpoint=path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_half_a_checkpoint_is_damaged_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(plain(), Standard(), checkpoint=path, epochs=1)
    content = path.read_bytes()
    for size in range(1, len(content), len(content) // 20):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is damaged"):
            fit(plain(), Standard(), checkpoint=path, epochs=1)


@pytest.mark.parametrize("content", [{"epochs": 1}, [1, 2], torch.zeros(3)])
def test_a_file_that_is_no_checkpoint_says_what_to_do(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="no checkpoint of a training: remove it"):
        fit(plain(), Standard(), checkpoint=tmp_path / "run.pt")


def test_it_trains_in_train_mode_whatever_mode_the_network_came_in() -> None:
    network = convolutional().eval()
    fit(network, Standard())
    assert same(network.state_dict(), trained(convolutional(), Standard()))
    assert not any(module.training for module in network.modules())
    assert vars(network).keys() == vars(convolutional()).keys()  # Accelerate left nothing on it


@pytest.mark.parametrize("method", [Standard(), FastTraining(BALL), PGDTraining(BALL, 2)], ids=repr)
def test_it_learns(method: Method) -> None:
    network = plain()
    history = fit(network, method, epochs=60)
    assert (network(X).argmax(1) == Y).float().mean() > 0.8
    assert history[-1].loss < history[0].loss


def test_a_history_holds_what_it_says() -> None:
    network, schedule = convolutional(), Cyclic(0.1)
    history = fit(network, FreeTraining(BALL, replays=3), epochs=4, schedule=schedule, validation=(X, Y))
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert history.passes == 12
    assert history.seconds == sum(epoch.seconds for epoch in history) > 0
    assert [epoch.learning_rate for epoch in history] == pytest.approx(
        [schedule((9 * n - 1) / 36) for n in range(1, 5)]
    )
    assert history[-1].clean_accuracy == pytest.approx(accuracy(network, X, Y))
    assert history[-1].robust_accuracy == pytest.approx(robust_accuracy(network, PGD(BALL, steps=10), X, Y))
    assert history.kept == 4
    again = History.from_dict(json.loads(json.dumps(history.as_dict())))
    assert again == history
    assert [json.loads(line)["loss"] for line in history.json_lines().splitlines()] == [e.loss for e in history]
    assert len(str(history).splitlines()) == 6
    assert history[0].summary.endswith(f"loss {history[0].loss:.3f}")
    assert history[0].summary.startswith(f"robust {history[0].robust_accuracy:.1%}, clean ")


def test_without_an_adversary_nothing_is_attacked_but_on_demand() -> None:
    assert fit(plain(), Standard())[-1].clean_accuracy is None
    assert fit(plain(), Standard(), validation=DATA)[-1].robust_accuracy is None
    history = fit(plain(), Standard(), validation=DATA, attack=FGSM(BALL))
    assert history[-1].robust_accuracy is not None


def test_training_accuracy_is_that_on_the_images_trained_on() -> None:
    network = plain()
    history = fit(network, Standard(), epochs=1, schedule=Constant(0.0))
    assert history[0].accuracy == pytest.approx(accuracy(network, X, Y))
    history = fit(network, PGDTraining(BALL, 20), epochs=1, schedule=Constant(0.0))
    assert history[0].accuracy == pytest.approx(robust_accuracy(network, PGD(BALL, 20), X, Y), abs=0.06)


def test_all_batches_of_an_epoch_hold_every_image_once() -> None:
    network, rows = plain(), []
    network.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].clone()))
    fit(network, Standard())
    assert [len(part) for part in rows] == [7, 7, 6] * 2
    for epoch in rows[:3], rows[3:]:
        assert torch.equal(torch.cat(epoch).flatten(1).sum(1).sort().values, X.flatten(1).sum(1).sort().values)
    assert not torch.equal(rows[0], rows[3])


def test_the_average_is_what_is_kept() -> None:
    network, steps = plain(), [plain().state_dict()]

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            steps.append({key: value.clone() for key, value in network.state_dict().items()})

    fit(network, Standard(), optimizer=Watched, average=0.8)
    average = steps[1]
    for step in steps[2:]:
        average = {key: 0.8 * average[key] + 0.2 * step[key] for key in step}
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, average[key])
    assert not same(network.state_dict(), steps[-1])


def collapsing(history_of: list[float]) -> Callable[..., dict[str, float]]:
    """A measurement that is made up."""
    values = iter(history_of)
    return lambda _: {"clean_accuracy": 0.9, "robust_accuracy": next(values)}


@pytest.mark.parametrize(
    ("action", "epochs", "kept"), [(Action.REPORT, 5, 5), (Action.STOP, 4, 4), (Action.ROLL_BACK, 4, 2)]
)
def test_a_collapse_is_noticed_and_rolled_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: Action, epochs: int, kept: int
) -> None:
    monkeypatch.setattr("advcourse.training.run.Run.accuracies", collapsing([0.2, 0.5, 0.45, 0.02, 0.0]))
    network, path = convolutional(), tmp_path / "run.pt"
    options: dict[str, Any] = {"epochs": 5, "validation": DATA, "monitors": [CatastrophicOverfitting(action=action)]}
    with pytest.warns(UserWarning, match=r"fell from 45.0% to 2.0% in epoch 4: catastrophic overfitting"):
        history = fit(network, FastTraining(BALL), **options, checkpoint=path)
    assert (len(history), history.kept) == (epochs, kept)
    assert "catastrophic overfitting" in history[3].remark
    assert not any(epoch.remark for epoch in history[:3])  # type: ignore[index]
    monkeypatch.setattr("advcourse.training.run.Run.accuracies", collapsing([0.0] * 5))
    reference = convolutional()
    unwatched = FastTraining(BALL)
    weights: list[dict[str, Any]] = []
    logs = [lambda _: weights.append({key: value.clone() for key, value in reference.state_dict().items()})]
    fit(reference, unwatched, epochs=5, logs=logs)
    assert same(network.state_dict(), weights[kept - 1])
    resumed = convolutional(seed=1)
    assert fit(resumed, FastTraining(BALL), **options, checkpoint=path) == history  # it stays ended
    assert same(resumed.state_dict(), network.state_dict())


@pytest.mark.parametrize(("patience", "epochs"), [(None, 5), (1, 3), (2, 4), (4, 5)])
def test_early_stopping_keeps_the_best_weights(
    monkeypatch: pytest.MonkeyPatch, patience: int | None, epochs: int
) -> None:
    monkeypatch.setattr("advcourse.training.run.Run.accuracies", collapsing([0.3, 0.5, 0.5, 0.4, 0.45]))
    history = fit(plain(), FastTraining(BALL), epochs=5, validation=DATA, monitors=[EarlyStopping(patience)])
    assert (len(history), history.kept) == (epochs, 2)
    assert history[-1].remark == "no higher robust accuracy after epoch 2"


def test_a_rise_to_the_end_needs_no_roll_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcourse.training.run.Run.accuracies", collapsing([0.3, 0.5]))
    monitors = [EarlyStopping(patience=1), CatastrophicOverfitting()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(plain(), FastTraining(BALL), validation=DATA, monitors=monitors)
    assert history.kept == 2
    assert history[-1].remark == ""


def test_double_precision_stays_double() -> None:
    network = plain().double()
    history = fit(network, FastTraining(BALL), data=(X.double(), Y), validation=(X.double(), Y))
    assert history[-1].loss > 0
    assert all(value.dtype == torch.float64 for value in network.parameters())


def test_rows_of_a_table_can_be_trained_on() -> None:
    with torch.random.fork_rng():
        network = nn.Linear(16, 2)
    assert len(fit(network, FreeTraining(BALL, 2), data=(X.flatten(1), Y))) == 2


def test_a_compiled_network_trains_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    one, other = plain(), plain()
    fit(one, FastTraining(BALL), compile=True)
    fit(other, FastTraining(BALL))
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": (X * 255, Y)}, r"images must lie in \[0, 1\]"),
        ({"data": (X, Y[:3])}, "labels must be an int64 tensor"),
        ({"validation": (X, Y.float())}, "labels must be an int64 tensor"),
        ({"validation": (X[:0], Y[:0])}, "non-empty batch"),
        ({"average": 1.0}, r"average must be a decay in \[0, 1\)"),
        ({"monitors": [EarlyStopping()]}, "monitors need robust accuracy"),
        ({"monitors": [EarlyStopping()], "validation": DATA}, "monitors need robust accuracy"),
        ({"schedule": Constant(1e38)}, r"diverged in epoch 1: lower the learning rate of Constant\(rate=1e\+38\)"),
        ({"method": Ramped(GradAlign(BALL)), "compile": True}, "derivatives that a compiled network does not have"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    network = plain()
    with pytest.raises(ValueError, match=words):
        fit(network, **{"method": Standard(), **change})
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@given(value=st.one_of(st.integers(max_value=0), st.floats(), st.just(True), st.just("8")))
def test_counts_that_make_no_sense_are_refused(value: Any) -> None:
    for name in "epochs", "batch_size":
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
            fit(plain(), Standard(), **{name: value})


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the network is frozen.*requires_grad_"):
        train(models.load("cnn"), Standard(), DATA, epochs=1)


def test_it_works_under_no_grad() -> None:
    with torch.no_grad():
        network = plain()
        fit(network, FreeTraining(BALL, 2))
        assert not torch.is_grad_enabled()
    assert same(network.state_dict(), trained(plain(), FreeTraining(BALL, 2)))
