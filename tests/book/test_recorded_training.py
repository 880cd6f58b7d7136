"""What chapters 10 and 11 draw from files is what the tool would record now; a small run of it goes the same way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from advcourse.models import small
from advcourse.threat import Linf
from advcourse.training import OneCycle, PGDTraining, Standard, recorded
from tools import record_training
from tools.record_training import EXPERIMENTS, FOLDER, HIDDEN, KEPT, Training, record

FILES = sorted(FOLDER.glob("*.json"))


def test_there_is_something_to_look_at() -> None:
    assert {"starts", "methods"} <= {path.stem for path in FILES} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_trainings_had_the_settings_of_today(name: str) -> None:
    for (label, _), row in recorded(name).items():
        training = EXPERIMENTS[name][label]
        assert row["settings"] == repr(training)
        epochs = len(row["loss"])
        assert epochs == training.epochs or training.monitor
        assert row["passes"] == training.method.passes * epochs
        assert all(len(line) == epochs for key, line in row["seen"].items() if key != "seconds")
        assert {"command", "commit", "processor"} <= row["provenance"].keys()
        assert row["end"]["pgd"] <= row["end"]["fgsm"] + 0.05


@pytest.mark.parametrize("key", KEPT)
def test_networks_that_come_along_are_small_and_those_of_the_record(key: tuple[str, str, int]) -> None:
    path = FOLDER / KEPT[key]
    assert path.stat().st_size < 200_000
    network = small(hidden=HIDDEN)
    network.load_state_dict(load_file(path))
    x, y = record_training.data.fashion_mnist("test", n=record_training.TEST)
    clean = recorded(key[0])[key[1:]]["end"]["clean"]
    assert record_training.accuracy(network.eval(), x, y) == pytest.approx(clean, abs=0.01)


def test_a_small_run_goes_the_same_way_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("CURVE", 40), ("TEST", 100)):
        monkeypatch.setattr(record_training, name, number)
    brief = Training(Standard(), 3, 0.1, OneCycle(0.005), images=1500)
    experiment = {"standard": brief, "PGD": replace(brief, method=PGDTraining(Linf(0.1), 3))}
    rows = record("small", experiment, [0], tmp_path, tmp_path / "runs")
    ends = {row["label"]: row["end"] for row in rows}
    assert ends["PGD"]["pgd"] > ends["standard"]["pgd"] + 0.1
    assert list((tmp_path / "runs").iterdir()) == []

    content = (tmp_path / "small.json").read_text()
    assert json.loads(content)["rows"] == rows
    monkeypatch.setattr(record_training, "trained", None)
    assert record("small", experiment, [0], tmp_path, tmp_path / "runs") == rows
    assert (tmp_path / "small.json").read_text() == content


def test_an_unknown_experiment_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"got 'nothing', expected one of .*'methods'"):
        recorded("nothing")
