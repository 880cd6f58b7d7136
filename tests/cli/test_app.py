import pytest
from typer.testing import CliRunner

import advcourse
from advcourse.cli import app

run = CliRunner().invoke


def test_version() -> None:
    result = run(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{advcourse.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["zoo"], ["--help"], ["zoo", "train", "--help"], ["evaluate", "--help"]])
def test_help_is_at_hand(arguments: list[str]) -> None:
    assert "Usage" in run(app, arguments).output
