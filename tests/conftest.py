"""Settings for all tests: the same hypothesis examples every time, and one thread, which is faster on small tensors."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from advcourse.models.zoo import BUNDLED, Entry, Recipe

from .helpers import write_tiny

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture
def tiny_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny Fashion-MNIST, and a network in the zoo, "tiny", that trains on it in no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entry = Entry(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10)), Recipe(2, batch_size=8))
    monkeypatch.setitem(BUNDLED, "tiny", entry)
    return write_tiny(tmp_path / "root", packed=False)
