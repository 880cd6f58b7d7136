from pathlib import Path

import pytest
from typer.testing import CliRunner

from advcourse import models
from advcourse.cli import app

run = CliRunner().invoke


def test_list_shows_size_and_accuracy_or_that_there_is_none(tmp_path: Path) -> None:
    lines = run(app, ["zoo", "list"]).output.splitlines()
    assert [line.split()[0] for line in lines] == list(models.BUNDLED)
    for line, name in zip(lines, models.BUNDLED, strict=True):
        assert f"{models.card(name)['parameters']:,} parameters" in line
        assert f"accuracy {models.card(name)['accuracy']:.1%}" in line
    result = run(app, ["zoo", "list", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    assert result.output.count("not trained") == len(models.BUNDLED)


def test_an_unknown_model_is_refused_before_any_training(tmp_path: Path) -> None:
    result = run(app, ["zoo", "train", "cnn", "alexnet", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "error: there is no model 'alexnet' in the zoo; there are: cnn, " in result.output
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    result = run(app, ["zoo", "train", "cnn", "--out", str(tmp_path), "--root", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "nowhere is not a folder: root must hold" in result.output


def test_a_folder_that_cannot_be_made_is_an_error_before_any_training(tmp_path: Path, tiny_root: Path) -> None:
    (tmp_path / "file").touch()
    result = run(app, ["zoo", "train", "tiny", "--out", str(tmp_path / "file" / "zoo"), "--root", str(tiny_root)])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert "epoch" not in result.output


def test_a_damaged_card_is_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "cnn.json").write_text("{")
    result = run(app, ["zoo", "list", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    assert "cnn.json is damaged" in result.output


def test_training_writes_a_network_that_can_be_listed(tmp_path: Path, tiny_root: Path) -> None:
    out = tmp_path / "out"
    result = run(app, ["zoo", "train", "tiny", "--out", str(out), "--root", str(tiny_root)])
    assert result.exit_code == 0, result.output
    assert "tiny: accuracy " in result.output
    assert f"written to {out / 'tiny'}.safetensors" in result.output
    assert "7,870 parameters" in run(app, ["zoo", "list", "--folder", str(out)]).output


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path,
    tiny_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("advcourse.training.checkpoints.write_whole", interrupt)
    result = run(app, ["zoo", "train", "tiny", "--out", str(tmp_path / "out"), "--root", str(tiny_root)])
    assert result.exit_code == 130
    assert "interrupted; run the same command again" in result.output
