"""Trains the network of the playground, which has two inputs, and writes it where the page's script finds it.

python tools/make_playground.py
"""

import json
import math
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from advcourse.files import write_whole
from advcourse.training import Constant, Standard, train

OUT = Path(__file__).resolve().parent.parent / "book" / "_static" / "playground_network.js"


def spirals(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Points (3n, 2) in the unit square on three arms of a spiral, and the arm of each."""
    along = torch.rand(3, n, generator=generator).sqrt()
    angle = 2 * math.pi * (torch.arange(3)[:, None] / 3 + 0.45 * along) + 0.12 * torch.randn(3, n, generator=generator)
    points = 0.5 + 0.46 * along[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    return points.clamp(0, 1).flatten(0, 1), torch.arange(3).repeat_interleave(n)


def network() -> nn.Sequential:
    """Two inputs, two hidden layers of 16, three classes."""
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = spirals(300, generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
    history = train(
        model, Standard(), (x, y), epochs=120, batch_size=50, optimizer=torch.optim.Adam, schedule=Constant(0.01)
    )
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    content = {
        "layers": [{"weight": layer.weight.tolist(), "bias": layer.bias.tolist()} for layer in layers],
        "points": [[round(value, 3) for value in point] for point in x[::6].tolist()],
        "labels": y[::6].tolist(),
    }
    write_whole(OUT, f"window.playgroundNetwork = {json.dumps(content)};\n".encode())
    print(f"{history[-1].accuracy:.1%} of the points are labelled correctly; {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
