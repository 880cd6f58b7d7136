"""The benchmark measures what it says: passes are counted right, and floors are made of the same passes."""

import json

import pytest
import torch
from torch import nn

from advcourse.attacks import FGSM, PGD
from advcourse.threat import Linf
from benchmarks import white_box
from benchmarks.libraries import LIBRARIES, Task
from benchmarks.measure import Entry, Floor, Pass, race, recorded


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture
def batch():
    return torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])


def test_passes_are_recorded_with_their_rows_and_backward_passes(model, batch):
    x, _ = batch
    with recorded(model) as passes:
        with torch.no_grad():
            model(x)
        point = x[:2].clone().requires_grad_()
        logits = model(point)
        for k in range(3):
            torch.autograd.grad(logits[:, k].sum(), point, retain_graph=True)
        model(x[:1]).sum().backward()
        model(x)  # with a graph that nobody walks back
    assert passes == [Pass(5), Pass(2, 3), Pass(1, 1), Pass(5)]
    model(x)
    assert len(passes) == 4


def test_a_floor_makes_exactly_the_passes_it_is_given(model, batch):
    passes = (Pass(5), Pass(5, 1), Pass(2, 4), Pass(12, 1))  # more rows than images: they are repeated
    with recorded(model) as made:
        Floor(model, *batch, passes)()
    assert tuple(made) == passes
    assert all(weight.grad is None for weight in model.parameters())


def test_the_floor_of_an_attack_is_what_the_attack_is_documented_to_cost(model, batch):
    with recorded(model) as passes:
        FGSM(Linf(0.0))(model, *batch)
    n = passes[-1].rows  # without those that are misclassified
    assert passes == [Pass(5, 1), Pass(n)]
    with recorded(model) as passes:
        PGD(Linf(0.0), steps=3)(model, *batch)
    assert passes == [Pass(5), *[Pass(n, 1)] * 3, Pass(n)]


def test_a_race_gives_everybody_turns_and_compares_within_a_round(model, batch):
    calls = []

    def run(name):
        return lambda x, y: calls.append((name, len(x)))

    def bare(x, y):
        Floor(model, x, y, (Pass(len(x), 1),))()

    passes = ((Pass(3, 1),), (Pass(2, 1),))
    batches = [(batch[0][:3], batch[1][:3]), (batch[0][3:], batch[1][3:])]
    entries = {"a": Entry(run("a"), passes), "b": Entry(run("b"), passes), "bare": Entry(bare, passes)}
    timings = race(model, entries, batches, passes, rounds=2)
    assert list(timings) == ["a", "b", "bare"]
    rounds = timings["a"].rounds
    assert rounds >= 2
    assert sorted(calls) == sorted([("a", 3), ("a", 2), ("b", 3), ("b", 2)] * rounds)
    assert all(timing.cpu > 0 and timing.own > 0 for timing in timings.values())
    assert timings["a"].reference == 1


def test_it_runs_without_the_peers_and_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LIBRARIES, "foolbox", lambda task, model, batch: 1 / 0)
    arguments = ["--quick", "--attacks", "fgsm", "pgd", "--libraries", "advcourse", "foolbox", "--output"]
    threads = torch.get_num_threads()
    try:
        rows = white_box.main([*arguments, str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert all("ZeroDivisionError" in row.remark for row in rows if row.library == "foolbox")
    ours = [row for row in rows if row.library == "advcourse"]
    assert ours
    assert not any(row.remark for row in ours)
    for row in ours:
        steps = row.task.steps
        if row.held:  # all steps, the last judgement, and that of the clean images before a random start
            assert (row.forward, row.backward) == (
                steps + 1 + row.task.name.startswith("PGD") * row.task.random_start,
                steps,
            )
    page = (tmp_path / "white_box.md").read_text()
    assert page in capsys.readouterr().out
    assert len(json.loads((tmp_path / "white_box.json").read_text())) == len(rows)


def test_an_attack_that_cheats_is_found_out(model, batch):
    x, y = batch
    task = Task("PGD", steps=1, eps=0.1)
    row = white_box.Row("linear", task, False, 5, "peer", 5)
    with torch.no_grad():
        y = model(x).argmax(1)
    assert white_box.judge(row, model, x, y, x, [Pass(5, 2)]).remark == ""
    judged = white_box.judge(row, model, x, y, x + 0.2 * (x < 0.5), [Pass(5, 2)])
    assert "leave the ball" in judged.remark
    assert (judged.forward, judged.backward) == (1, 2)
    assert "leaves [0, 1]" in white_box.judge(row, model, x, y, x - 2, []).remark
