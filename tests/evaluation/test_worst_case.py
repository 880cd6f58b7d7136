import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from advcourse.ascent import State
from advcourse.attacks import FGSM, PGD, Attack
from advcourse.contract import Model
from advcourse.evaluation import Report, accuracy, correct, worst_case
from advcourse.goals import Goal, Targeted, margin
from advcourse.threat import L1, L2, Ball, Linf

from ..helpers import Counted, Linear, images, network, rng, seeds


@dataclass(frozen=True)
class Fixed(Attack):
    """Moves every image by the same, and remembers which images it was shown."""

    by: float
    shown: list[Tensor] = field(default_factory=list, repr=False)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        self.shown.append(x)
        yield replace(State.before(x), best=(x + self.by).clamp(0, 1))


# The boundary is at 0.5: six of nine images are right, at distances 0.5, 0.4, … 0.
X = torch.linspace(0, 0.8, 9).double()[:, None] + 0.001
Y = torch.zeros(9, dtype=torch.long)
MODEL = Linear(torch.ones(1).double(), bias=-0.502)


def test_each_attack_sees_what_the_ones_before_it_left() -> None:
    small, back, large = Fixed(0.15), Fixed(-0.1), Fixed(0.35)
    report = worst_case(MODEL, {"small": small, "back": back, "large": large}, X, Y)
    assert [len(attack.shown[0]) for attack in (small, back, large)] == [6, 4, 4]
    assert torch.equal(large.shown[0], X[:4])
    assert [(row.name, row.attacked, row.broken) for row in report.rows] == [
        ("small", 6, 2),
        ("back", 4, 0),
        ("large", 4, 2),
    ]
    assert [row.robust_accuracy for row in report.rows] == pytest.approx([4 / 9, 4 / 9, 2 / 9])
    assert report.broken_by.tolist() == [-1, -1, 2, 2, 0, 0, -1, -1, -1]
    assert report.held.tolist() == [True] * 2 + [False] * 7
    assert (report.clean_accuracy, report.robust_accuracy) == (6 / 9, 2 / 9)
    low, high = report.interval
    assert low < 2 / 9 < high


def test_the_worst_image_is_kept() -> None:
    attacks = {"back": Fixed(-0.1), "small": Fixed(0.15), "large": Fixed(0.35), "back again": Fixed(-0.1)}
    x_adv = worst_case(MODEL, attacks, X, Y).x_adv
    moved = [0.35, 0.35, 0.35, 0.35, 0.15, 0.15, 0, 0, 0]  # the nearest miss, the first hit, the clean image
    torch.testing.assert_close(x_adv - X, torch.tensor(moved).double()[:, None])


def test_what_lies_outside_of_the_ball_does_not_count() -> None:
    attacks = {"large": Fixed(0.35), "small": Fixed(0.15)}
    report = worst_case(MODEL, attacks, X, Y, Linf(0.15))
    assert [row.broken for row in report.rows] == [0, 2]
    assert [row.attacked for row in report.rows] == [6, 6]
    torch.testing.assert_close(report.x_adv[:6] - X[:6], torch.full((6, 1), 0.15).double())
    nothing = worst_case(MODEL, {"large": Fixed(0.35)}, X, Y, Linf(0.15))
    assert torch.equal(nothing.x_adv, X)
    assert nothing.robust_accuracy == nothing.clean_accuracy


@pytest.mark.filterwarnings("ignore::advcourse.ascent.ZeroGradient")
@pytest.mark.parametrize("ball", [Linf(0.1), L2(1.5), L1(5.0)])
def test_a_budget_attack_is_inside_its_own_ball_whatever_the_rounding(ball: Ball) -> None:
    x = images(20, (3, 16, 16), dtype=torch.float32)
    model = network((3, 16, 16), dtype=torch.float32)
    y = model(x).argmax(1)
    attack = {"PGD": PGD(ball, 5)}
    assert worst_case(model, attack, x, y, ball).robust_accuracy == worst_case(model, attack, x, y).robust_accuracy < 1


BALL = Linf(0.08)
ATTACKS = {
    "FGSM": FGSM(BALL),
    "margin": FGSM(BALL, loss=margin),
    "BIM": PGD(BALL, 4, random_start=False),
    "too far": FGSM(Linf(0.3)),
}


@given(seeds, st.permutations(list(ATTACKS)))
def test_the_order_of_deterministic_attacks_changes_only_who_comes_first(seed: int, order: list[str]) -> None:
    model, x = network((4,), seed=seed), images(12, (4,), seed)
    y = torch.where(torch.arange(12) % 4 > 0, model(x).argmax(1), 0)
    alone = [worst_case(model, {name: attack}, x, y, BALL).held for name, attack in ATTACKS.items()]
    first, report = (
        worst_case(model, {name: ATTACKS[name] for name in names}, x, y, BALL) for names in (ATTACKS, order)
    )
    assert torch.equal(report.held, torch.stack(alone).all(0))
    torch.testing.assert_close(report.x_adv[report.held], first.x_adv[report.held])
    assert accuracy(model, report.x_adv, y) == pytest.approx(report.robust_accuracy)
    assert (BALL.norm(report.x_adv - x) <= BALL.eps + 1e-9).all()
    assert torch.equal(correct(model, x, y), report.held | (report.broken_by >= 0))
    assert [int((report.broken_by == k).sum()) for k in range(len(order))] == [row.broken for row in report.rows]


@pytest.mark.parametrize("attacks", [{}, {"a": Fixed(0.9), "b": Fixed(0.9)}])
def test_no_attacks_and_no_survivors(attacks: dict[str, Fixed]) -> None:
    report = worst_case(MODEL, attacks, X, Y)
    assert [row.attacked for row in report.rows] == [6, 0][: len(attacks)]
    assert report.robust_accuracy == (0 if attacks else 6 / 9)
    assert [len(attack.shown) for attack in attacks.values()] == [1, 0][: len(attacks)]


def test_nothing_right_to_start_with() -> None:
    attack = Fixed(0.1)
    report = worst_case(MODEL, {"a": attack}, X, 1 - (MODEL(X).argmax(1)))
    assert (report.clean_accuracy, report.robust_accuracy, attack.shown) == (0, 0, [])
    assert torch.equal(report.x_adv, X)


def test_a_verdict_costs_one_pass_forward() -> None:
    model = Counted(MODEL)
    worst_case(model, {"a": Fixed(0.15), "b": Fixed(0.35)}, X, Y)
    assert model.forwards == [9, 6, 4]


def test_the_table_and_the_dictionary_say_the_same() -> None:
    report = worst_case(MODEL, {"small": Fixed(0.15), "a long name": Fixed(0.35)}, X, Y, Linf(0.4))
    assert str(report).splitlines() == [
        "| attack      | attacked | broken | robust accuracy |",
        "|:------------|---------:|-------:|----------------:|",
        "| no attack   |          |        |           66.7% |",
        "| small       |        6 |      2 |           44.4% |",
        "| a long name |        4 |      2 |           22.2% |",
        "",
        "At most 22.2% of 9 images withstand inside Linf(0.4) (95 % interval for these attacks: 6.3% to 54.7%); "
        "a stronger attack may break more.",
    ]
    assert report._repr_markdown_() == str(report)
    assert "tensor" not in repr(report)
    known = json.loads(json.dumps(report.as_dict()))
    assert known["attacks"][1] == {
        "name": "a long name",
        "attack": "Fixed(by=0.35)",
        "attacked": 4,
        "broken": 2,
        "robust_accuracy": 2 / 9,
    }
    assert known["broken_by"] == [None, None, "a long name", "a long name", "small", "small", None, None, None]
    assert (known["images"], known["ball"], known["robust_accuracy"]) == (9, "Linf(eps=0.4)", 2 / 9)


def test_the_generator_reaches_every_attack() -> None:
    model, x = network((5,)), images(4, (5,))
    used, untouched = rng(1), rng(1)
    worst_case(model, {"PGD": PGD(Linf(1e-6), 1)}, x, model(x).argmax(1), generator=used)
    assert not torch.equal(used.get_state(), untouched.get_state())


def test_what_is_no_image_and_what_is_no_label_is_refused() -> None:
    def beyond(model: Model, x: Tensor, y: Tensor, *, generator: Generator | None = None) -> Tensor:
        return x + 1

    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        worst_case(MODEL, {"beyond": beyond}, X, Y)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="goal"):
        worst_case(MODEL, {}, X, Targeted(Y))  # type: ignore[arg-type]


class Interrupted(Exception):
    pass


@dataclass(frozen=True)
class Broken(Attack):
    """An attack in which somebody presses a key."""

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        raise Interrupted
        yield


def same(one: object, other: object) -> bool:
    return all(
        torch.equal(value, vars(other)[key]) if isinstance(value, Tensor) else value == vars(other)[key]
        for key, value in vars(one).items()
    )


@pytest.mark.parametrize("generator", [False, True])
def test_an_interrupted_evaluation_goes_on_after_the_last_attack(tmp_path: Path, generator: bool) -> None:
    path = tmp_path / "evaluation.checkpoint"
    x = images(20, (3, 8, 8))
    model = network((3, 8, 8))
    y = model(x).argmax(1)
    weak, strong = FGSM(Linf(0.02)), PGD(Linf(0.05), steps=5)

    def run(attacks: dict[str, Attack], path: Path | None) -> Report:
        return worst_case(model, attacks, x, y, Linf(0.05), generator=rng() if generator else None, checkpoint=path)

    whole = run({"PGD": strong, "FGSM": weak, "again": strong}, None)
    with pytest.raises(Interrupted):
        run({"PGD": strong, "FGSM": weak, "again": Broken()}, path)
    assert same(run({"PGD": strong, "FGSM": weak, "again": strong}, path), whole)
    assert not path.exists()


def test_a_checkpoint_of_something_else_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.checkpoint"
    small, large = Fixed(0.15), Fixed(0.35)

    def run(
        attacks: dict[str, Attack], y: Tensor = Y, ball: Ball | None = None, random: Generator | None = None
    ) -> None:
        worst_case(MODEL, attacks, X, y, ball, checkpoint=path, generator=random)

    with pytest.raises(Interrupted):
        run({"small": small, "then": Broken()}, random=rng(0))
    content = path.read_bytes()
    for arguments, what in (
        (({"large": large, "then": large}, Y, None, rng(0)), "attacks"),
        (({"renamed": small}, Y, None, rng(0)), "attacks"),
        (({"small": small}, 1 - Y, None, rng(0)), "images or model"),
        (({"small": small}, Y, Linf(0.2), rng(0)), "ball"),
        (({"small": small}, Y, None, rng(1)), "generator"),
        (({"small": small}, Y, None, None), "generator"),
    ):
        with pytest.raises(ValueError, match=f"is of an evaluation with other {what}: remove it to start afresh"):
            run(*arguments)  # type: ignore[arg-type]
    assert path.read_bytes() == content
    path.write_bytes(b"something")
    with pytest.raises(ValueError, match="is no checkpoint of an evaluation"):
        run({"small": small})


@pytest.mark.parametrize(("ball", "outside"), [(L2(0.3), L2(0.5)), (L1(1.0), L1(4.0)), (Linf(8 / 255), Linf(0.046))])
def test_in_half_precision_what_lies_far_outside_does_not_count(ball: Ball, outside: Ball) -> None:
    x = images(20, (1, 20, 12), dtype=torch.bfloat16)
    model = network((1, 20, 12), dtype=torch.bfloat16)
    y = model(x).argmax(1)
    report = worst_case(model, {"PGD": PGD(outside, steps=10)}, x, y, ball)
    delta = (report.x_adv.double() - x.double())[report.broken_by == 0]
    assert (ball.norm(delta) < 2 * ball.eps).all()
    assert (ball.norm(delta) < 0.9 * outside.eps).all()


def test_attacks_have_names() -> None:
    with pytest.raises(ValueError, match=r"attacks must be named, as in .*, got list"):
        worst_case(MODEL, [Fixed(0.1)], X, Y)  # type: ignore[arg-type]


def test_a_checkpoint_in_any_layout_and_for_no_lambda(tmp_path: Path) -> None:
    x = images(6, (3, 4, 5)).contiguous(memory_format=torch.channels_last)
    model = network((3, 4, 5))
    y = model(x).argmax(1)
    kept, plain = (
        worst_case(model, {"FGSM": FGSM(Linf(0.1))}, x, y, checkpoint=path) for path in (str(tmp_path / "c"), None)
    )
    assert same(kept, plain)
    with pytest.raises(ValueError, match="P holds a lambda"):
        worst_case(model, {"P": PGD(Linf(0.1), loss=lambda z, g: margin(z, g))}, x, y, checkpoint=tmp_path / "c")


def test_a_function_that_has_learned_since_is_not_the_same_model(tmp_path: Path) -> None:
    weights = {"sign": 1.0}

    def model(x: Tensor) -> Tensor:
        return weights["sign"] * MODEL(x)

    path = tmp_path / "c"
    with pytest.raises(Interrupted):
        worst_case(model, {"small": Fixed(0.15), "then": Broken()}, X, Y, checkpoint=path)
    weights["sign"] = -1.0
    with pytest.raises(ValueError, match="other images or model"):
        worst_case(model, {"small": Fixed(0.15), "then": Fixed(0.35)}, X, Y, checkpoint=path)
