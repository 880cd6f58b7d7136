"""Side by side with the published ensemble, on a network that was trained adversarially, at equal steps."""

from dataclasses import replace

import pytest
import torch

from advcourse import data, models
from advcourse.evaluation import auto_attack, predict, worst_case
from advcourse.threat import Linf


@pytest.mark.parametrize("ball", [Linf(0.1), Linf(0.13)], ids=repr)
def test_it_leaves_no_more_than_autoattack_leaves(ball: Linf) -> None:
    peer = pytest.importorskip("pyautoattack")
    steps, queries, n = 10, 50, 50
    model = models.load("cnn_robust")
    x, y = data.fashion_mnist("test", n)
    attacks = {
        name: replace(attack, steps=queries if name == "square" else steps)
        for name, attack in auto_attack(ball).items()
    }
    held = worst_case(model, attacks, x, y, ball).held

    attack = peer.AutoAttack(
        model, version="custom", attacks=["apgd-ce", "apgd-t", "square"], eps=ball.eps, norm=type(ball).__name__, seed=0
    )
    attack.verbose = False
    attack.apgd.n_restarts = 1
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = steps
    attack.square.n_queries = queries
    with torch.random.fork_rng():
        found, _ = attack.run_standard_evaluation(x, y, batch_size=n)
    theirs = predict(model, found).argmax(1) == y
    assert held.sum() <= theirs.sum() + 1
    assert (held != theirs).sum() <= 3
