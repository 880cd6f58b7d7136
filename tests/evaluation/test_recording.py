"""Recorded transfers: the verdicts are those of the attack, whatever is interrupted, shared or run again."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advcourse.attacks import Transfer
from advcourse.evaluation import Recorded, loss_change, record_transfer
from advcourse.goals import Targeted, margin
from advcourse.gradients import InputDiversity
from advcourse.threat import Linf

from ..helpers import Linear, images, rng

A, B = (Linear(torch.tensor(weight)) for weight in ([1.0, -1.0, 0.0], [2.0, -2.0, 0.1]))
X = images(30, (3,), 1, torch.float32)
Y = A(X).argmax(1)
ZOO = {"a": A, "b": B}
ATTACKS = {"short": Transfer(Linf(0.2), steps=3), "long": Transfer(Linf(0.3), steps=5)}


def record(path: Path, **changes: Any) -> Recorded | None:
    settings = {"attacks": ATTACKS, "surrogates": ZOO, "targets": ZOO, "x": X, "y": Y, "at": [1, 3], "batch_size": 7}
    return record_transfer(path, **(settings | changes))


def content(path: Path) -> dict[str, Any]:
    """What is in the file but for the times."""
    document = json.loads(path.read_text())
    for row in [document["provenance"], *document["rows"]]:
        del row["seconds"]
    return document


def test_verdicts_are_those_of_the_iterates(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json", radii=[0.0, 0.1])
    assert found is not None
    right = (B(X).argmax(1) == Y).nonzero()[:, 0]
    assert found.settings["images"] == right.tolist()
    assert found.images == len(right) < len(X)
    for attack, of in ATTACKS.items():
        for surrogate, model in ZOO.items():
            states = list(of.iterates(model, X[right], Y[right]))
            for step in 1, 3:
                for target, judge in ZOO.items():
                    fooled = judge(states[step].x).argmax(1) != Y[right]
                    assert torch.equal(found.fooled(surrogate, attack, target, step), fooled[None])
                    assert found.rate(surrogate, attack, target, step) == fooled.double().mean()
            change = loss_change(model, states[-1].x, Y[right], [0.0, 0.1]).mean(1)
            assert torch.allclose(found.loss_change(surrogate, attack), change, atol=0.02)  # other signs in each piece
            assert found.loss_change(surrogate, attack)[0] == 0
    assert found.pairs == [("a", "b"), ("b", "a")]
    both = [found.fooled("a", "long", "b", 1), found.fooled("b", "long", "a", 1)]
    assert torch.equal(found.by_image("long", 1), torch.cat(both).double().mean(0))
    assert "a → b" in str(found)


def test_the_last_step_is_the_default(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json")
    assert found is not None
    assert torch.equal(found.fooled("a", "long", "b"), found.fooled("a", "long", "b", 3))


def test_a_goal_says_what_counts(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json", goal=Targeted(1 - Y))
    assert found is not None
    untargeted = record(tmp_path / "u.json")
    assert untargeted is not None
    assert torch.equal(found.fooled("a", "long", "b"), untargeted.fooled("a", "long", "b"))  # there are two classes
    assert found.settings["sought"] == (1 - Y)[found.settings["images"]].tolist()


def test_seeds_differ_where_there_is_randomness(tmp_path: Path) -> None:
    pictures = images(12, (1, 6, 6), 3, torch.float32)
    model = Linear(torch.randn(1, 6, 6, generator=rng(0)))
    model.bias = -float((pictures * model.weight.detach()).flatten(1).sum(1).median())
    attack = {"d": Transfer(Linf(0.05), (InputDiversity(p=1.0, least=0.3),), steps=3)}
    names = {"m": model}
    y = model(pictures).argmax(1)
    found = record(tmp_path / "r.json", attacks=attack, surrogates=names, targets=names, x=pictures, y=y, seeds=(0, 1))
    assert found is not None
    assert found.fooled("m", "d", "m").shape == (2, 12)
    assert found.rate("m", "d", "m") == found.fooled("m", "d", "m").double().mean()


class Interrupted(Exception):
    pass


def broken(after: int) -> Linear:
    """A network that gives up after so many passes."""

    class Broken(Linear):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            if self.passes > after:
                raise Interrupted
            return super().forward(x)

    Broken.__name__ = Linear.__name__  # the network that it is, but for its moods
    return Broken(A.weight.data)


@pytest.mark.parametrize("after", [6, 20, 50])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    record(tmp_path / "whole.json")
    tired = {"a": broken(after), "b": B}
    with pytest.raises(Interrupted):
        record(tmp_path / "r.json", surrogates=tired, targets=tired)
    assert not (tmp_path / "r.json").exists()
    kept = {part: part.stat().st_mtime_ns for part in (tmp_path / "r.parts").glob("0*.json")}
    with pytest.raises(Interrupted):  # nothing that was done is done again, or is touched
        record(tmp_path / "r.json", surrogates={"a": broken(5), "b": B})
    assert all(part.stat().st_mtime_ns == time for part, time in kept.items())
    record(tmp_path / "r.json")
    assert content(tmp_path / "r.json") == content(tmp_path / "whole.json")
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "whole.json"}


@pytest.mark.parametrize("shares", [1, 3])
def test_shares_add_up(tmp_path: Path, shares: int) -> None:
    record(tmp_path / "whole.json")
    *first, last = [record(tmp_path / "r.json", share=(i, shares)) for i in reversed(range(shares))]
    assert first == [None] * (shares - 1)
    assert last is not None
    assert content(tmp_path / "r.json") == content(tmp_path / "whole.json")


def test_what_is_recorded_is_not_run_again(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json")
    once = {"a": broken(5), "b": B}  # as many passes as it takes to see which images are right
    assert record(tmp_path / "r.json", surrogates=once, targets=once) == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"at": [1, 2]}, "other at"),
        ({"seeds": [1]}, "other seeds"),
        ({"batch_size": 8}, "other batch_size"),
        ({"attacks": {"short": ATTACKS["long"], "long": ATTACKS["long"]}}, "other attacks"),
        ({"goal": Targeted(1 - Y)}, "other sought"),
        ({"x": X[:20], "y": Y[:20]}, "other images"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_experiment_does_not_overwrite(
    tmp_path: Path, changes: dict[str, Any], said: str, finished: bool
) -> None:
    path = tmp_path / "r.json"
    record(path, share=(0, 1 if finished else 2))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    with pytest.raises(ValueError, match=f"{said}.*: remove it, or write elsewhere"):
        record(path, **changes)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize("at", [[], [0], [2, 1], [1, 1], [-1, 2]])
def test_steps_must_ascend(tmp_path: Path, at: list[int]) -> None:
    with pytest.raises(ValueError, match="at must be numbers of steps that ascend"):
        record(tmp_path / "r.json", at=at)


def test_steps_that_are_not_made_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at ends with 9, and an attack makes 3 steps"):
        record(tmp_path / "r.json", at=[1, 9])


def test_no_right_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 30 images"):
        record(tmp_path / "r.json", y=1 - Y)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": {}}', "\xff"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="holds no recorded transfer"):
        Recorded.load(tmp_path / "r.json")


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json")
    assert found is not None
    with pytest.raises(ValueError, match="far on a was not recorded; recorded are a, b; short, long"):
        found.fooled("a", "far", "b")
    with pytest.raises(ValueError, match=r"recorded are the targets \['a', 'b'\] after \[1, 3\] steps"):
        found.fooled("a", "long", "b", 2)


def test_it_says_where_it_comes_from(tmp_path: Path) -> None:
    found = record(tmp_path / "r.json")
    assert found is not None
    assert {"command", "commit", "advcourse", "torch", "processor", "threads", "seconds"} <= found.provenance.keys()


def test_what_ships_is_found_by_name_and_nothing_else() -> None:
    assert Recorded.bundled("ladder").images == 120
    with pytest.raises(ValueError, match=r"got '\.\./ladder', expected one of .*'ladder'"):
        Recorded.bundled("../ladder")


def test_other_weights_behind_the_same_name_are_noticed(tmp_path: Path) -> None:
    record(tmp_path / "r.json")
    other = {"a": Linear(A.weight.data * 1.01), "b": B}
    with pytest.raises(ValueError, match="other images or networks"):
        record(tmp_path / "r.json", surrogates=other, targets=other)


def test_losses_print_so_that_they_can_be_told_apart(tmp_path: Path) -> None:
    attack = {"m": Transfer(Linf(0.2), steps=3, loss=partial(margin, kappa=0.5))}
    found = record(tmp_path / "r.json", attacks=attack)
    assert found is not None
    assert "loss=partial(margin, kappa=0.5)" in found.settings["attacks"]["m"]
    nameless = {"m": Transfer(Linf(0.2), steps=3, loss=lambda logits, goal: margin(logits, goal))}
    with pytest.raises(ValueError, match="m holds a lambda"):
        record(tmp_path / "other.json", attacks=nameless)
