import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advcourse.training import Constant, Cyclic, OneCycle, Piecewise
from advcourse.training.schedules import Schedule

fractions = st.floats(0, 1, exclude_max=True)


def from_torch(kind: str) -> list[float]:
    """Forty rates of the schedulers that the authors' code and everybody else uses."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    match kind:
        case "cyclic":
            scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.0, 0.2, step_size_up=20, step_size_down=20)
        case "piecewise":
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], gamma=0.1)
        case _:
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=4001, pct_start=0.2)
    rates = []
    for _ in range(4000 if kind == "one-cycle" else 40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("cyclic", Cyclic(0.2)),
        ("piecewise", Piecewise(0.2, {0.75: 0.002, 0.5: 0.02})),
        ("one-cycle", OneCycle(0.2)),
    ],
)
def test_rates_are_those_of_torch(kind: str, schedule: Schedule) -> None:
    rates = from_torch(kind)
    assert [schedule(i / len(rates)) for i in range(len(rates))] == pytest.approx(rates, abs=2e-4)


@given(peak=st.floats(0, 10), rise=st.floats(0.01, 0.99), done=fractions)
def test_a_cycle_stays_below_its_peak_and_reaches_it(peak: float, rise: float, done: float) -> None:
    for schedule in Cyclic(peak, rise), OneCycle(peak, rise):
        assert 0 <= schedule(done) <= peak * (1 + 1e-12)
        assert schedule(rise) == pytest.approx(peak)
    assert Constant(peak)(done) == peak


@given(rise=st.one_of(st.floats(max_value=0), st.floats(min_value=1), st.just(float("nan"))))
def test_a_rise_outside_of_the_training_is_refused(rise: float) -> None:
    for kind in Cyclic, OneCycle:
        with pytest.raises(ValueError, match="rise must be a fraction of the training"):
            kind(0.1, rise)
    with pytest.raises(ValueError, match="where a rate begins must be a fraction"):
        Piecewise(0.1, {rise: 0.01})


def test_negative_rates_are_refused() -> None:
    for make in (lambda: Cyclic(-1.0), lambda: OneCycle(-1.0), lambda: Piecewise(0.1, {0.5: -0.1})):
        with pytest.raises(ValueError, match="must be a finite number >= 0"):
            make()
