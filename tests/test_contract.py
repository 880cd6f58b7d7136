"""The boundary of every attack: what is refused and how, and that the model and the world are left as they were."""

import gc
import math
import random
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advcourse.attacks import APGD, FGSM, PGD, Attack, CarliniWagner, DeepFool
from advcourse.contract import TrainingMode, check_fraction, check_number, evaluating, modules_of
from advcourse.evaluation import accuracy, predict, robust_accuracy
from advcourse.goals import Targeted, Toward, Untargeted, dlr, margin
from advcourse.threat import L2, Linf

from .helpers import images, network, rng, seeds, shapes

ATTACKS = [
    FGSM(Linf(0.1)),
    PGD(L2(0.3), steps=3, restarts=2),
    APGD(L2(0.3), steps=3, restarts=2, loss=dlr, targets=9),
    CarliniWagner(steps=3, search_steps=2, step_size=0.1, initial_c=1.0),
    DeepFool(steps=3),
]
UNFINISHED = [
    *ATTACKS[:-1],
    pytest.param(ATTACKS[-1]),
]
attacks = st.sampled_from(ATTACKS)
X, Y = images(4, (5,)), torch.tensor([0, 1, 2, 0])
MODEL = network((5,))


def refused(attack: Attack, model: Any, x: Any, y: Any, *words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        attack(model, x, y)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in {error.value!s}"


def spoiled(value: float) -> Tensor:
    x = X.clone()
    x[2, 3] = value
    return x


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (spoiled(1.01), ("[0, 1]", "1.01", "Normalized")),
        (spoiled(-0.5), ("[0, 1]", "-0.5", "Normalized")),
        (spoiled(math.nan), ("NaN", "[0, 1]")),
        (spoiled(math.inf), ("infinity", "[0, 1]")),
        (spoiled(-math.inf), ("infinity", "[0, 1]")),
        ((X * 255).byte(), ("uint8", "/ 255")),
        (X.long(), ("int64", "/ 255")),
        (X > 0.5, ("bool", "[0, 1]")),
        (X[:0], ("(0, 5)", "non-empty")),
        (X[:, :0], ("(4, 0)", "non-empty")),
        (X[0], ("(5,)", "x[None]")),
        (torch.tensor(0.5), ("()", "x[None]")),
        (X.numpy(), ("ndarray", "torch tensor")),
        (X.tolist(), ("list", "torch tensor")),
        (None, ("NoneType", "torch tensor")),
    ],
)
def test_unusable_images_are_refused_at_once(attack: Attack, x: Any, words: tuple[str, ...]) -> None:
    refused(attack, MODEL, x, Y, *words)
    with pytest.raises(ValueError, match=r"images"):
        attack.iterates(MODEL, x, Y)  # not only when the first state is asked for


@given(attacks, shapes, seeds, st.sampled_from([-1e-3, 1.001, 255.0, math.nan, math.inf, -math.inf]), st.data())
def test_one_bad_value_anywhere_is_found(
    attack: Attack, shape: tuple[int, ...], seed: int, value: float, data: st.DataObject
) -> None:
    x = images(3, shape, seed)
    x.view(-1)[data.draw(st.integers(0, x.numel() - 1))] = value
    refused(attack, network(shape), x, Y[:3], "[0, 1]")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("goal", [lambda y: y, Untargeted, Targeted])
@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y[:3], ("(4,)", "(3,)")),
        (Y[None], ("(4,)", "(1, 4)")),
        (Y[:, None], ("(4,)", "(4, 1)")),
        (torch.tensor(1), ("(4,)", "()")),
        (Y.int(), ("int64", "int32")),
        (Y.float(), ("int64", "float32")),
        (Y > 0, ("int64", "bool")),
        (Y.tolist(), ("int64", "list")),
        (Y.numpy(), ("int64", "ndarray")),
        (3, ("int64", "int")),
        (-Y, ("0..K-1", "-2")),
        (Y + 1, ("0..2", "3")),
        (Y.to("meta"), ("meta", "cpu", "move")),
    ],
)
def test_unusable_labels_are_refused(
    attack: Attack, goal: Callable[[Any], Any], y: Any, words: tuple[str, ...]
) -> None:
    if isinstance(attack, DeepFool) and goal is Targeted and "0..2" in words:
        words = ("untargeted",)
    refused(attack, MODEL, X, goal(y), *words)


@pytest.mark.parametrize("attack", [PGD(Linf(0.1)), APGD(Linf(0.1), 3), CarliniWagner(3, 2)])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Y[:3], ("(4,)", "(3,)")),
        (Y.float(), ("int64", "float32")),
        (Y - 5, ("0..K-1", "-5")),
        (Y + 1, ("0..2", "3")),
    ],
)
def test_an_unusable_source_is_refused(attack: Attack, source: Any, words: tuple[str, ...]) -> None:
    refused(attack, MODEL, X, Toward((Y + 1) % 3, source=source), *words)


@pytest.mark.parametrize("attack", [PGD(Linf(0.1), loss=margin), APGD(Linf(0.1), 3, loss=margin), CarliniWagner(3, 2)])
def test_a_direction_may_be_given(attack: Attack) -> None:
    source = MODEL(X).argmax(1)
    with torch.inference_mode():
        found = attack(MODEL, X, Toward((Y + 1) % 3, source=source.clone()))
    assert found.shape == X.shape


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda z: MODEL(z)[:, 0], ("(4, K)", "(4,)")),
        (lambda z: MODEL(z)[:, :1], ("K >= 2", "(4, 1)", "stack")),
        (lambda z: MODEL(z)[:, :, None], ("(4, K)", "(4, 3, 1)")),
        (lambda z: MODEL(z)[:2], ("(4, K)", "(2, 3)")),
        (lambda z: (MODEL(z),), ("tuple",)),
        (lambda z: MODEL(z).detach().numpy(), ("ndarray",)),
        (lambda z: MODEL(z) * math.nan, ("NaN", "normalises")),
        (lambda z: MODEL(z).argmax(1), ("(4, K)", "(4,)")),
    ],
)
def test_unusable_answers_are_refused(attack: Attack, model: Any, words: tuple[str, ...]) -> None:
    refused(attack, model, X, Y, *words)


@pytest.mark.parametrize("attack", UNFINISHED)
@pytest.mark.parametrize(
    "model",
    [
        lambda z: MODEL(z).detach(),
        lambda z: MODEL(z.detach()),  # its parameters would still get a gradient
        lambda z: MODEL(torch.from_numpy(z.detach().numpy())),
        lambda z: MODEL((z * 255).byte().double() / 255),
        lambda z: MODEL[3].bias.expand(len(z), 3),
    ],
    ids=["detached answer", "detached input", "numpy inside", "integers inside", "constant"],
)
def test_a_model_without_a_gradient_is_refused(attack: Attack, model: Any) -> None:
    refused(attack, model, X, model(X).argmax(1), "gradient", "oracle")


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_infinite_logit_is_refused(attack: Attack) -> None:
    # It turns the loss into NaN, which is never the highest: the clean image would come back.
    refused(attack, lambda z: MODEL(z) + torch.tensor([math.inf, 0, 0]), X, torch.zeros(4, dtype=torch.long), "inf")


@pytest.mark.parametrize("attack", ATTACKS)
def test_integer_logits_are_refused(attack: Attack) -> None:
    refused(attack, lambda z: (MODEL(z) * 100).long(), X, Y, "int64")


@pytest.mark.parametrize("attack", UNFINISHED)
def test_a_gradient_that_is_not_a_number_is_refused(attack: Attack) -> None:
    # The square root's slope at 0 is infinite, and infinity times zero is NaN: no direction at all.
    x = X.clone()
    x[:, 0] = 0
    refused(attack, lambda z: MODEL(z) + (0 * z[:, :1]).sqrt(), x, MODEL(x).argmax(1), "NaN", "gradient")


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(Linf(0.1)),
        PGD(Linf(0.1), steps=3),
        PGD(Linf(0.1), 3, random_start=False),
        CarliniWagner(20, 3, 0.1, 1.0),
        pytest.param(APGD(Linf(0.1), 3)),
        pytest.param(APGD(L2(0.1), 3, loss=dlr, targets=9, restarts=2)),
        pytest.param(DeepFool()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_answer_in_another_precision(attack: Attack, dtype: torch.dtype) -> None:
    labels = MODEL(X).argmax(1)
    labels[0] = (labels[0] + 1) % 3  # fooled from the start
    for state in attack.iterates(lambda z: MODEL(z).to(dtype), X, labels):
        for name, value in vars(state).items():
            if isinstance(value, Tensor):
                assert value.dtype in (X.dtype, torch.bool), name
    assert not torch.equal(state.best, X)


@pytest.mark.parametrize("value", [-1, 0, 1.5, "3", None, True, math.nan, math.inf, [1]])
def test_counts_are_integers_from_one(value: object) -> None:
    for field in "steps", "restarts", "batch_size":
        with pytest.raises(ValueError, match=rf"^{field} must be an integer >= 1, got "):
            PGD(Linf(0.1), **{field: value})
    with pytest.raises(ValueError, match=r"^batch_size must be an integer >= 1, got "):
        FGSM(Linf(0.1), batch_size=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", True, [0.1]])
@pytest.mark.parametrize("attack", [FGSM, PGD])
def test_step_sizes_are_finite_and_not_negative(attack: type[Attack], value: object) -> None:
    with pytest.raises(ValueError, match=r"^step_size must be a finite number >= 0.*, got "):
        attack(Linf(0.1), step_size=value)  # type: ignore[call-arg]


@pytest.mark.parametrize("attack", [FGSM, PGD])
def test_a_ball_is_not_a_number(attack: type[Attack]) -> None:
    with pytest.raises(ValueError, match=r"Linf"):
        attack(0.1)  # type: ignore[call-arg]


def test_restarts_need_a_random_start() -> None:
    with pytest.raises(ValueError, match="random_start=True"):
        PGD(Linf(0.1), restarts=2, random_start=False)


def test_numbers_on_the_edge_are_accepted() -> None:
    check_number("steps", 1, 1)
    check_number("step_size", 0, 0.0)
    check_number("step_size", 0.0, 0.0)
    check_fraction("rate", 0)
    check_fraction("rate", 1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, True])
def test_what_is_no_fraction_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        check_fraction("rate", value)  # type: ignore[arg-type]


# What an attack leaves behind


class Mixed(nn.Module):
    """Batch norm and dropout that would change results and buffers in train mode; fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
            self.frozen = nn.Sequential(nn.BatchNorm1d(5), nn.Identity()).double()
        self.train()
        self.frozen.eval()
        self.frozen[1].train()
        self.body[3].weight.requires_grad_(False)
        self.body[0].weight.grad = torch.full_like(self.body[0].weight, 7)
        self.calls = self.fails_at = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("the model broke")
        return self.body(self.frozen(x))

    def found(self) -> list[Any]:
        """Everything about it that an attack could disturb."""
        parameters = [
            (p.requires_grad, p.tolist(), p.grad if p.grad is None else p.grad.tolist()) for p in self.parameters()
        ]
        return [[m.training for m in self.modules()], parameters, [b.tolist() for b in self.buffers()]]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_model_is_left_as_it_was_found(attack: Attack) -> None:
    model = Mixed()
    before = model.found()
    attack(model, X, Y)
    assert model.found() == before
    for _ in attack.iterates(model, X, Y):
        assert model.found() == before
    for _ in attack.iterates(model, X, Y):
        break
    gc.collect()
    assert model.found() == before
    abandoned = attack.iterates(model, X, Y)
    next(abandoned)
    abandoned.close()
    assert model.found() == before


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_model_that_breaks_is_left_as_it_was_found(call: int) -> None:
    model = Mixed()
    before = model.found()
    model.fails_at = call
    with pytest.raises(RuntimeError, match="the model broke"):
        PGD(L2(1e-6), steps=3)(model, X, model_labels())
    assert model.found() == before
    assert torch.is_grad_enabled()


def model_labels() -> Tensor:
    return Mixed().eval()(X).argmax(1)


def test_between_states_the_model_may_be_changed() -> None:
    model = Mixed()
    for i, _ in enumerate(PGD(L2(1e-6), steps=3).iterates(model, X, model_labels())):
        assert model.training == (i % 2 == 0)
        model.train(i % 2 == 1)
    assert i == 3


def test_evaluating_restores_after_an_exception_and_accepts_any_callable() -> None:
    model = Mixed()
    before = model.found()
    with pytest.raises(KeyboardInterrupt), evaluating(modules_of(model)):  # noqa: PT012
        model(X)
        raise KeyboardInterrupt
    assert model.found() == before
    with evaluating(modules_of(torch.sin)):
        pass


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_caller_s_grad_mode_neither_matters_nor_changes(
    attack: Attack, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    expected = attack(MODEL, X, Y)
    with mode():
        here = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        x, y = X.clone(), Y.clone()  # made under the caller's mode
        states = []
        for state in attack.iterates(MODEL, x, y):
            states.append(state)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
        found = attack(MODEL, x, y)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == here
    assert torch.equal(found, expected)
    assert torch.equal(states[-1].best, expected)
    assert not found.requires_grad


def test_an_attack_started_under_one_grad_mode_goes_on_under_another() -> None:
    attack = PGD(L2(1e-6), steps=3)
    labels = MODEL(X).argmax(1)
    with torch.no_grad():
        states = attack.iterates(MODEL, X, labels)
        next(states)
    with torch.inference_mode():
        next(states)
    *_, last = states
    assert torch.equal(last.best, attack(MODEL, X, labels))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_input_is_neither_changed_nor_returned(attack: Attack) -> None:
    balls = [{"ball": type(attack.ball)(eps)} for eps in (0.0, 0.1)] if hasattr(attack, "ball") else [{}]
    for change in balls:
        variant = replace(attack, **change)  # type: ignore[type-var]
        for labels in Y, (MODEL(X).argmax(1) + 1) % 3:  # the second: all fooled already
            x, y = X.clone().requires_grad_(), labels.clone()
            found = variant(MODEL, x, y)
            assert torch.equal(x, X)
            assert torch.equal(y, labels)
            assert x.grad is None
            assert found.data_ptr() != x.data_ptr()
            assert not found.requires_grad


@pytest.mark.parametrize("attack", [FGSM(Linf(1e-6)), PGD(L2(1e-6), steps=3, restarts=2)])
def test_the_caller_may_reuse_its_tensors_between_states(attack: Attack) -> None:
    labels = MODEL(X).argmax(1)
    for goal in Untargeted, Targeted:
        expected = attack(MODEL, X, goal((labels + 1) % 3 if goal is Targeted else labels))
        x, y = X.clone(), (labels + 1) % 3 if goal is Targeted else labels.clone()
        *_, last = ((x.zero_(), y.copy_((y + 1) % 3), state)[2] for state in attack.iterates(MODEL, x, goal(y)))
        assert torch.equal(last.best, expected)


@pytest.mark.parametrize("attack", ATTACKS)
def test_global_random_numbers_are_left_alone(attack: Attack) -> None:
    def world() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    before = world()
    first = attack(MODEL, X, Y)
    assert world() == before
    torch.rand(7)
    assert torch.equal(attack(MODEL, X, Y), first)


def test_randomness_is_the_generator_s() -> None:
    attack = PGD(L2(0.3), steps=1)
    labels = MODEL(X).argmax(1)
    first = attack(MODEL, X, labels, generator=rng(5))
    assert torch.equal(attack(MODEL, X, labels, generator=rng(5)), first)
    assert not torch.equal(attack(MODEL, X, labels, generator=rng(6)), first)
    assert torch.equal(attack(MODEL, X, labels), attack(MODEL, X, labels, generator=rng(0)))
    used = rng(5)
    attack(MODEL, X, labels, generator=used)
    assert not torch.equal(attack(MODEL, X, labels, generator=used), first)


class Moody(nn.Module):
    """Answers otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.9), network((5,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_function_hides_the_mode_of_its_network_and_somebody_says_so() -> None:
    hidden = Moody()

    def model(x: Tensor) -> Tensor:
        return hidden(x)

    with pytest.warns(TrainingMode, match="a function around hidden, which is in training mode"):
        FGSM(Linf(0.1))(model, X, Y)
    assert hidden.training
    hidden.eval()
    plain = network((5,)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGSM(Linf(0.1))(model, X, Y)
        FGSM(Linf(0.1))(lambda x: plain(x), X, Y)  # nothing in it depends on its mode


def test_other_names_and_careful_functions_are_left_in_peace() -> None:
    class Holder:
        hidden = network((5,)).eval()

    holder, hidden = Holder(), Moody()  # the function uses holder.hidden and not this one
    instance = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.InstanceNorm1d(5), nn.Flatten(), network((5,))).float()
    assert hidden.training

    def careful(x: Tensor) -> Tensor:
        hidden.eval()
        return hidden(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingMode)
        predict(lambda x: holder.hidden(x), X)
        predict(careful, X)
        modules_of(lambda x: instance(x))


def test_warnings_are_about_the_caller_s_line() -> None:
    hidden = Moody()
    for call in (lambda: predict(lambda x: hidden(x), X), lambda: FGSM(Linf(0.1))(lambda x: hidden(x), X, Y)):
        with pytest.warns(TrainingMode) as met:
            call()
        assert {warning.filename for warning in met if warning.category is TrainingMode} == {__file__}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x[:, 0], "got (4,): wrap the network in a module that makes two of one"),
        (lambda x: x[:, :1], "got (4, 1): wrap the network in a module that makes two of one"),
        (lambda x: (x,), "got tuple"),
    ],
)
def test_what_to_do_with_one_number_is_said_where_it_helps(answer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        FGSM(Linf(0.1))(answer, X, Y)
    assert ("wrap" in words) == ("wrap" in str(error.value))


def test_one_number_becomes_two_as_the_message_says() -> None:
    z = MODEL(X)[:, 0]
    with pytest.raises(ValueError, match="makes two of one") as error:
        FGSM(Linf(0.1))(lambda x: MODEL(x)[:, 0], X, Y)
    remedies = re.findall(r"torch\.stack\(.*?, 1\)(?:\.log\(\))?", str(error.value))
    assert len(remedies) == 2
    for remedy in remedies:
        logits = eval(remedy, {"torch": torch, "z": z, "p": z.sigmoid()})
        torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (Y.int(), "pass y.long()"),
        (Y.tolist(), "pass torch.as_tensor(y)"),
        (Y.numpy(), "pass torch.as_tensor(y)"),
        (Y[0], "one image is x[None] with y[None]"),
    ],
)
def test_everyday_labels_are_refused_with_the_remedy(labels: Any, remedy: str) -> None:
    refused(FGSM(Linf(0.1)), MODEL, X, labels, remedy)


def test_a_seed_is_no_generator() -> None:
    with pytest.raises(ValueError, match=r"got 0: torch\.Generator\(\)\.manual_seed\(0\)"):
        PGD(Linf(0.1))(MODEL, X, Y, generator=0)  # type: ignore[arg-type]


def test_an_own_module_may_be_a_loss() -> None:
    class Lead(nn.Module):
        def forward(self, logits: Tensor, goal: Any) -> Tensor:
            return margin(logits, goal)

    assert torch.equal(PGD(Linf(0.1), loss=Lead())(MODEL, X, Y), PGD(Linf(0.1), loss=margin)(MODEL, X, Y))
    names: dict[str, Any] = {"margin": margin}
    exec("def lead(logits, goal): return margin(logits, goal)", names)  # of no module
    assert torch.equal(PGD(Linf(0.1), loss=names["lead"])(MODEL, X, Y), PGD(Linf(0.1), loss=margin)(MODEL, X, Y))


@pytest.mark.parametrize(
    "loss",
    [
        nn.functional.cross_entropy,
        nn.CrossEntropyLoss(reduction="none"),
        partial(nn.functional.cross_entropy, reduction="none"),
    ],
)
def test_torch_s_losses_take_something_else(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"a loss takes \(logits, goal\) .* of torch: there are goals.cross_entropy"):
        PGD(Linf(0.1), loss=loss)


def test_an_estimator_is_no_model() -> None:
    class Forest:
        def predict(self, rows: Any) -> Any: ...

    for call in (lambda: FGSM(Linf(0.1))(Forest(), X, Y), lambda: accuracy(Forest(), X, Y)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got Forest: an estimator is asked through"):
            call()


def test_a_class_is_no_attack() -> None:
    with pytest.raises(ValueError, match=r"got the class PGD, expected an attack, such as PGD\(Linf"):
        robust_accuracy(MODEL, PGD, X, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_layout_in_memory_changes_nothing(attack: Attack) -> None:
    x = images(6, (3, 4, 5), dtype=torch.float32)
    model = network((3, 4, 5), dtype=torch.float32)
    y = model(x).argmax(1)
    found = attack(model, x.contiguous(memory_format=torch.channels_last), y)
    assert torch.equal(found, attack(model, x, y))
    assert found.is_contiguous()
