"""Runs the hard-label attacks of chapter 7 at full length and keeps how near each had come after so many queries.

    python tools/record_hard_label.py [ATTACK ...]        (those that are missing or have changed, when none is named)

An hour on one core for all of them. What is done is kept after each attack, so it can be interrupted and run again, and
two cores can do some attacks each.
"""

import json
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from advcourse import data, models
from advcourse.attacks import OPT, Boundary, CarliniWagner, HardLabel, HopSkipJump, SignOPT
from advcourse.evaluation import correct
from advcourse.files import ASSETS, write_whole
from advcourse.oracles import Labels
from advcourse.threat import L2

FILE = ASSETS / "traces" / "hard_label.safetensors"
IMAGES = 100
AT = sorted({*torch.logspace(1, 4.1, 60).long().tolist(), 500, 1000, 2000, 4000, 8000, 10_000, 14_000})
RACE: dict[str, tuple[HardLabel, int]] = {
    "Boundary": (Boundary(steps=AT[-1]), AT[-1]),
    "OPT, 1 direction": (OPT(directions=1, steps=AT[-1]), 4000),
    "OPT": (OPT(), AT[-1]),
    "HopSkipJump": (HopSkipJump(), 8000),
    "Sign-OPT, as published": (SignOPT.paper(), AT[-1]),
    "Sign-OPT": (SignOPT(), AT[-1]),
}
"""Each attack and its budget of queries for an image."""
WHITE_BOX = CarliniWagner(steps=200, search_steps=5, step_size=0.02, initial_c=0.1)


def recorded() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Distances (N, len(AT)) by attack, and the settings that they were reached with."""
    if not FILE.exists():
        return {}, {}
    with safe_open(FILE, "pt") as file:
        return load_file(FILE), json.loads(file.metadata()["settings"])


def keep(name: str, distance: Tensor, settings: str) -> None:
    """Add one attack to what is in the file by now."""
    kept, known = recorded()
    kept |= {"queries": torch.tensor(AT), name: distance}
    write_whole(FILE, save(kept, {"settings": json.dumps(known | {name: settings})}))


def followed(name: str, model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The distance of the nearest example found for so many queries (N, len(AT)); NaN beyond the budget."""
    attack, budget = RACE[name]
    with tqdm(total=budget, desc=name, unit="query") as bar:
        for state in attack.iterates(Labels(model, budget), x, y):
            bar.update(int(state.queries.double().mean()) - bar.n)
    return state.trace.at(AT).masked_fill(torch.tensor(AT) > budget, torch.nan)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # sums in another order round otherwise
    model = models.load("cnn")
    x, y = data.fashion_mnist("test", n=2 * IMAGES)
    right = correct(model, x, y)
    x, y = x[right][:IMAGES], y[right][:IMAGES]
    _, known = recorded()
    if known.get("C&W") != repr(WHITE_BOX):
        nearest = WHITE_BOX(model, x, y)
        keep("C&W", L2.norm(nearest - x).masked_fill(correct(model, nearest, y), torch.inf), repr(WHITE_BOX))
    for name in names or [name for name, race in RACE.items() if known.get(name) != str(race)]:
        keep(name, followed(name, model, x, y), str(RACE[name]))


if __name__ == "__main__":
    main(sys.argv[1:])
