"""The benchmark measures what it says: passes and queries are counted right, and floors are made of the same passes."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from advcourse.attacks import FGSM, NES, OPT, PGD, SignOPT, Square
from advcourse.oracles import Labels, Scores
from advcourse.threat import Linf
from benchmarks import __main__ as bench
from benchmarks import labels, scores, trainers, training, transfer, white_box
from benchmarks.libraries import LIBRARIES, Task
from benchmarks.measure import Approach, Entry, Floor, Pass, Timing, Witness, limited, race, recorded

from .helpers import network


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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command for advcourse and a foolbox that breaks, into a folder."""

    def command(*attacks):
        monkeypatch.setitem(LIBRARIES, "foolbox", lambda task, model, batch: 1 / 0)
        threads = torch.get_num_threads()
        arguments = ["--quick", "--attacks", *attacks, "--libraries", "advcourse", "foolbox", "--output", str(tmp_path)]
        try:
            rows = bench.main(arguments)
        finally:
            torch.set_num_threads(threads)
        assert all("ZeroDivisionError" in row.remark for row in rows if row.library == "foolbox")
        ours = [row for row in rows if row.library == "advcourse"]
        assert len(ours) == len(rows) / 2 > 0
        assert not any(row.remark for row in ours)
        return ours

    return command


def test_it_runs_without_the_peers_and_writes_its_tables(run, tmp_path, capsys):
    ours = run("fgsm", "pgd")
    for row in ours:
        steps = row.task.steps
        if row.held:  # all steps, the last judgement, and that of the clean images before a random start
            assert (row.forward, row.backward) == (
                steps + 1 + row.task.name.startswith("PGD") * row.task.random_start,
                steps,
            )
    page = (tmp_path / "white_box.md").read_text()
    assert page in capsys.readouterr().out
    assert len(json.loads((tmp_path / "white_box.json").read_text())) == 2 * len(ours)
    assert not (tmp_path / "scores.md").exists()  # nothing of it was asked for


def test_the_part_with_scores_runs_and_keeps_its_budget(run, tmp_path, capsys):
    ours = run("square", "nes")
    assert {row.task.name for row in ours} == {"Square", "Square L2", "NES"}
    for row in ours:
        assert 0 < row.median <= row.most <= row.task.budget == 50
        assert row.within == row.success  # ours stop when they are done, and hand back what they found
        assert row.sent == row.mean * row.judged  # here the judged images are also the timed ones
        # 8 passes of 128 rows make the yardstick of the last column but one
        assert row.batched == pytest.approx(row.timing.nominal * 1024 / row.sent)
    page = (tmp_path / "scores.md").read_text()
    assert page in capsys.readouterr().out
    assert not (tmp_path / "white_box.md").exists()
    with pytest.raises(SystemExit):
        run("squares")


def test_the_part_with_surrogates_runs_and_makes_its_passes(run, tmp_path, capsys):
    rows = run("mi", "nsi")
    price = {"MI": 3, "MI+RAP": 3 * 9, "NSI": 3 * 5}
    assert {row.task.name: (row.forward, row.backward) for row in rows} == {k: (n, n) for k, n in price.items()}
    assert all(0 <= row.target <= 1 and row.surrogate > 0 for row in rows)
    page = (tmp_path / "transfer.md").read_text()
    assert "### MI+RAP: Linf, eps 0.1, 3 steps" in page
    assert page in capsys.readouterr().out
    assert len(json.loads((tmp_path / "transfer.json").read_text())) == 6
    assert not (tmp_path / "white_box.md").exists()


def test_the_part_with_training_runs_for_all_methods(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        rows = bench.main(["--quick", "--attacks", "train", "--libraries", "advcourse", "--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert [row.library for row in rows] == ["passes alone", "advcourse", "scripts"] * len(training.TASKS)
    assert not any(row.remark for row in rows)
    assert all(training.pace(row) == 1 for row in rows[::3])
    page = (tmp_path / "training.md").read_text()
    assert "## cnn, train GradAlign: Linf, eps 0.1, batches of 4" in page
    assert page in capsys.readouterr().out
    assert len(json.loads((tmp_path / "training.json").read_text())) == len(rows)


@pytest.mark.parametrize("task", training.TASKS, ids=lambda task: task.name)
def test_passes_alone_are_the_passes_that_our_methods_make(model, batch, task):
    task = replace(task, steps=min(task.steps, 3))
    made = {}
    for name in "passes alone", "advcourse":
        with recorded(model) as passes:
            trainers.TRAINERS[name](task, model, len(batch[0]))(*batch)
        made[name] = sorted(passes, key=lambda one: one.backward)
    assert made["passes alone"] == made["advcourse"]


def test_a_missed_aim_of_training_is_named():
    timing = Timing(1.0, 1.0, 1.2, 1.0, 1.2, 3)
    ours = training.Row("cnn", training.TASKS[0], 4, "advcourse", 32, timing=timing)
    floor = replace(ours, library="passes alone", timing=replace(timing, reference=1.0))
    quick = replace(ours, library="scripts", timing=replace(timing, reference=1.1))
    (line,) = training.shortfalls([floor, ours, quick])
    assert line == "cnn, train standard: 1.20 × the passes alone, aim 1.05; scripts takes 0.92 × our time"
    assert training.shortfalls([floor, replace(ours, timing=replace(timing, reference=1.04)), quick]) == []


def test_a_missed_aim_of_transfer_attacks_is_named():
    timing = Timing(1.0, 1.0, 1.2, 1.0, 1.0, 3)
    blank = transfer.Crafted("cnn", transfer.TASKS[0], 4, backward=10.0)
    ours = replace(blank, library="advcourse", timing=timing)
    peer = replace(blank, library="peer", timing=replace(timing, reference=0.8))
    lazy = replace(peer, backward=9.0)  # it makes fewer passes
    assert transfer.shortfalls([ours, lazy]) == ["cnn, MI: 1.20 × its own floor, aim 1.1"]
    assert transfer.shortfalls([ours, peer]) == ["cnn, MI: 1.20 × its own floor, aim 1.1; peer takes 0.80 × our time"]
    fine = replace(ours, timing=replace(timing, own=1.1))
    assert transfer.shortfalls([fine]) == []
    assert transfer.shortfalls([replace(blank, library="advcourse", remark="failed: x")]) == ["cnn, MI: failed: x"]


def test_the_part_with_labels_runs_and_keeps_its_budget(run, tmp_path, capsys):
    ours = run("sign-opt")
    for row in ours:
        assert row.mean == row.task.budget == 50
        (mark,) = row.distances
        assert mark.queries == 50
        assert 0 < mark.lower <= mark.median <= mark.upper < float("inf")
        assert (row.images, row.judged, row.sent) == (4, 4, 200)
        assert row.pace(row) == 1
    page = (tmp_path / "labels.md").read_text()
    assert page in capsys.readouterr().out
    assert len(json.loads((tmp_path / "labels.json").read_text())) == 2
    assert not (tmp_path / "scores.md").exists()


@pytest.mark.parametrize("attack", [SignOPT(), OPT()])
def test_whoever_watches_an_approach_reads_the_same_distances_as_the_attack_itself(attack):
    model = network((1, 2, 2), seed=1)
    x = torch.full((1, 1, 2, 2), 0.4, dtype=torch.float64)
    y = model(x).argmax(1)
    task, budgets = Task("Sign-OPT", steps=1), [1, 7, 40, 111, 300]
    approach, oracle = Approach(x, task.goal(y), task.allowed, budgets), Labels(model, budget=300)
    handle = model.register_forward_hook(approach)
    *_, last = attack.iterates(oracle, x, y)
    handle.remove()
    assert approach.sent == oracle.queries
    assert approach.nearest[0] == float("inf") > approach.nearest[-1]
    assert torch.equal(approach.nearest, last.trace.at(budgets)[0])


def test_an_approach_is_read_off_within_a_pass_and_ignores_what_is_outside_the_box():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    model[1].weight.data, model[1].bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5])
    x, task = torch.tensor([[[[0.25]]]]), Task("Sign-OPT", steps=1)  # class 1 from 0.5 on
    approach = Approach(x, task.goal(torch.tensor([0])), task.allowed, [2, 3, 5, 6])
    model.register_forward_hook(approach)
    model(torch.tensor([0.0, 1.5]).view(-1, 1, 1, 1))
    assert approach.nearest.isinf().all()
    model(torch.tensor([1.0, 0.75, 0.875, 0.625, 0.5625]).view(-1, 1, 1, 1))
    assert approach.nearest.tolist() == [float("inf"), 0.75, 0.5, 0.375]
    assert approach.sent == 7


def test_a_run_is_ended_before_it_sends_what_is_beyond_its_budget(model, batch):
    x, y = batch

    def endless(x, y):
        while True:
            model(x[:2])

    with recorded(model) as passes:
        limited(endless, model, budget=3)(x, y)  # 15 in all, which 8 passes are enough for
        limited(lambda x, y: model(x), model, budget=3)(x, y)  # ends by itself
    assert passes == [Pass(2)] * 8 + [Pass(5)]
    with pytest.raises(ZeroDivisionError):
        limited(lambda x, y: 1 / 0, model, budget=3)(x, y)
    assert not model._forward_pre_hooks


def test_images_that_an_attack_on_labels_breaks_on_count_with_what_was_sent_for_them(model):
    x, task = torch.full((4, 1, 2, 2), 0.5), Task("Boundary", steps=1, budget=3)
    near = x.clone()
    near[:, 0, 0, 0] += torch.tensor([0.125, 0.25, 0.375, 0.5])
    y = (model(near).argmax(1) + 1) % 3  # so the points near them fool
    turn = iter(range(4))

    def attack(x, y):
        i = next(turn)
        if i == 3:
            raise ValueError("no start")
        model(near[i : i + 1])
        if i == 2:
            raise AssertionError
        while i == 1:
            model(near[i : i + 1])

    row = labels.observed(x, y, labels.Near("linear", task, 4, "peer"), attack, model)
    assert row.distances == (labels.Quartiles(3, 0.25, 0.375, 0.375),)
    assert row.mean == (1 + 3 + 1 + 0) / 4
    assert row.remark == "1 of 4 images end in AssertionError, 1 of 4 images end in ValueError"
    assert not model._forward_hooks


def test_the_page_says_where_peers_come_nearer_or_are_faster():
    sign, hop = (Task(name, steps=1, budget=2000) for name in ("Sign-OPT", "HopSkipJump"))

    def row(library, task, *distances, time=1.0):
        marks = [labels.Quartiles(b, d / 2, d, 2 * d) for b, d in zip((1000, 2000), distances, strict=True)]
        timing = Timing(cpu=1, wall=1, own=1, nominal=1.2, reference=time, rounds=1)
        return labels.Near("cnn", task, 4, library, timing=timing, sent=1024, distances=tuple(marks))

    rows = [row("advcourse", sign, 0.5, 0.25), row("ART", sign, 0.5, 0.25, time=5.0)]
    rows += [row("advcourse", hop, 0.5, 0.5), row("ART", hop, 0.75, 0.25, time=0.5)]
    assert labels.shortfalls(rows[:3]) == []
    assert labels.shortfalls(rows) == [
        "cnn, HopSkipJump: a query of ART's HopSkipJump takes 0.50 × our time, aim 1; "
        "ART's HopSkipJump has median L2 0.250 at 2000, ours 0.500; "
        "ART's HopSkipJump has upper quartile 0.500 at 2000, ours 1.000"
    ]
    rows[1:] = [row("ART", sign, 0.5, 0.25, time=4.0), row("foolbox", hop, 0.4, 0.3)]
    assert labels.shortfalls(rows) == [
        "cnn, Sign-OPT: a query of ART's Sign-OPT takes 4.00 × our time, aim 5; "
        "foolbox's HopSkipJump has median L2 0.400 at 1000, ours 0.500"
    ]


def test_a_witness_counts_the_same_queries_as_the_oracle_and_tells_when_an_image_was_fooled():
    model = network((1, 2, 2), seed=1)
    corners = torch.cartesian_prod(*[torch.tensor([0.1, 0.9], dtype=torch.float64)] * 4)
    x = corners.view(16, 1, 2, 2)  # far from one another, so it is certain whose a query is
    y = model(x).argmax(1)
    task = Task("Square", steps=1, eps=0.15)
    for attack in Square(task.ball), NES(task.ball, steps=3, directions=4, step_size=0.1):
        witness, oracle = Witness(x, task.goal(y), task.allowed), Scores(model, budget=30)
        handle = model.register_forward_hook(witness)
        *_, last = attack.iterates(oracle, x, y)
        handle.remove()
        assert 0 < last.success.sum() < len(x)
        assert torch.equal(witness.sent, oracle.queries)
        assert witness.doubtful == 0
        assert torch.equal(witness.found.isfinite(), last.success)
        if isinstance(attack, Square):  # whose first success is its last query
            assert torch.equal(witness.found[last.success], last.queries[last.success].float())


def test_a_witness_takes_no_point_outside_ball_or_box_for_a_success_and_owns_up_to_doubt():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    model[1].weight.data, model[1].bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5])
    x, y = torch.tensor([[[[0.0]]], [[[0.4]]], [[[1.0]]]]), torch.tensor([0, 0, 1])  # class 1 from 0.5 on
    task = Task("Square", steps=1, eps=0.15)
    witness = Witness(x, task.goal(y), task.allowed)
    model.register_forward_hook(witness)
    model(torch.tensor([0.45, -0.1, 0.55, 0.58, 1.3, 0.52]).view(-1, 1, 1, 1))
    assert witness.sent.tolist() == [1, 4, 1]
    assert witness.found.tolist() == [float("inf"), 2, float("inf")]
    assert witness.doubtful == 1  # 1.3: as far from its image as half the way between the nearest two, and more
    model(torch.tensor([0.45, 0.85]).view(-1, 1, 1, 1))
    assert witness.sent.tolist() == [1, 5, 2]
    model(torch.full((2, 1, 1, 1), float("nan")))
    assert witness.doubtful == 3
    assert witness.sent.sum() == 10
    wide = Witness(x, task.goal(y), Task("ZOO", steps=1).allowed)  # without a ball the box is left
    wide(
        model, (torch.tensor([-0.1, 0.65, 1.1]).view(-1, 1, 1, 1),), torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    )
    assert wide.found.tolist() == [float("inf"), 1, float("inf")]


def test_an_attack_with_scores_that_cheats_is_found_out(model):
    x = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    y = (model(x).argmax(1) + 1) % 3  # fooled already, wherever the points are
    task = Task("Square", steps=1, eps=0.1, budget=2)
    witness = Witness(x, task.goal(y), task.allowed)
    row = scores.judge(scores.Asked("linear", task, 3, "peer"), model, x, y, x, witness)
    assert (row.success, row.within, row.most, row.remark) == (1, 0, 0, "")
    witness.sent, witness.found = torch.tensor([3, 9, 3]), torch.tensor([2.0, 9.0, 3.0])
    cheat = x + torch.tensor([0.0, 0.2, 0.1]).view(3, 1, 1, 1)
    y = (model(cheat).argmax(1) + 1) % 3
    row = scores.judge(scores.Asked("linear", task, 3, "peer"), model, x, y, cheat, witness)
    assert row.success == pytest.approx(2 / 3)
    assert row.within == pytest.approx(1 / 3)
    assert (row.mean, row.median, row.most) == (5, 3, 9)
    assert "1 images leave the ball" in row.remark


def test_an_attack_that_cheats_is_found_out(model, batch):
    x, y = batch
    task = Task("PGD", steps=1, eps=0.1)
    row = white_box.Strength("linear", task, 5, "peer")
    with torch.no_grad():
        y = model(x).argmax(1)
    assert white_box.judge(row, model, x, y, x, [Pass(5, 2)]).remark == ""
    judged = white_box.judge(row, model, x, y, x + 0.2 * (x < 0.5), [Pass(5, 2)])
    assert "leave the ball" in judged.remark
    assert (judged.forward, judged.backward) == (1, 2)
    assert "leaves [0, 1]" in white_box.judge(row, model, x, y, x - 2, []).remark
