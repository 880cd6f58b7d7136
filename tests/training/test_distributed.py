"""Two processes with half of each batch do what one does with all of it."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from advcourse.training import Constant, FastTraining, FreeTraining, Method, Standard, Zero

from .small import BALL, DATA, fit, plain

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tests.training.test_distributed import METHODS, results
if __name__ == "__main__":
    torch.set_num_threads(1)
    found = results(Path(sys.argv[1]))
    from accelerate import PartialState
    if PartialState().is_main_process:
        Path(sys.argv[1], "found.json").write_text(json.dumps(found))
    PartialState().destroy_process_group()
"""
METHODS: list[Method] = [Standard(), FastTraining(BALL, start=Zero()), FreeTraining(BALL, replays=2)]
ROOT = Path(__file__).parents[2]


class Interrupting(Constant):
    """A rate that all processes stumble over in the third epoch, once."""

    armed = True

    def __call__(self, done: float) -> float:
        if done > 0.7 and self.armed:
            type(self).armed = False
            raise KeyboardInterrupt
        return super().__call__(done)


def results(folder: Path) -> list[list[float]]:
    """Losses and accuracies of trainings that are interrupted and resumed."""
    from accelerate import Accelerator

    found = []
    for i, method in enumerate(METHODS):
        checkpoint = folder / f"{i}.pt"
        Interrupting.armed = True
        for _ in range(2):
            network = plain()
            with suppress(KeyboardInterrupt):
                history = fit(
                    network,
                    method,
                    epochs=3,
                    batch_size=6,
                    schedule=Interrupting(0.05),
                    validation=DATA,
                    accelerator=None if i == 0 else Accelerator(cpu=True),
                    checkpoint=checkpoint,
                    average=0.5,
                )
        total = sum(float(value.sum()) for value in network.state_dict().values())
        found.append([*(epoch.loss for epoch in history), *(epoch.clean_accuracy or 0 for epoch in history), total])
    return found


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    alone = results(one)
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
        capture_output=True,
    )
    together = json.loads((tmp_path / "found.json").read_text())
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="processes was 2, is 1"):  # its share of Free's perturbation is another
        fit(
            plain(),
            METHODS[0],
            epochs=3,
            batch_size=6,
            schedule=Interrupting(0.05),
            average=0.5,
            checkpoint=tmp_path / "0.pt",
        )
