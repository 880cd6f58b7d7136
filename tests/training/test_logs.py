import json
import sys
from pathlib import Path

import pytest

from advcourse.training import FastTraining, JsonLines, TensorBoard

from .small import BALL, DATA, fit, plain


def test_a_resumed_training_writes_every_epoch_once(tmp_path: Path) -> None:
    path, run = tmp_path / "log.jsonl", tmp_path / "run.pt"
    for _ in range(2):
        history = fit(plain(), FastTraining(BALL), validation=DATA, checkpoint=run, logs=[JsonLines(path)])
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        assert lines[1]["robust_accuracy"] == history[1].robust_accuracy


def test_curves_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(plain(), FastTraining(BALL), logs=[TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"passes", "seconds", "loss", "accuracy", "learning_rate"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(epoch.epoch, pytest.approx(epoch.loss)) for epoch in history]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"TensorBoard: pip install 'advcourse\[train\]'"):
        TensorBoard(tmp_path)
