"""The figures of the course: one look, and the same colour for the same method in every chapter."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from .contract import Model
from .evaluation import predict

COLORS = {
    "clean": "#000000",
    "noise": "#7f7f7f",
    "FGSM": "#E69F00",
    "PGD": "#D55E00",
    "APGD": "#882255",
    "C&W": "#332288",
    "DeepFool": "#44AA99",
    "universal": "#AA4499",
    "NES": "#117733",
    "ZOO": "#999933",
    "GenAttack": "#CC6677",
    "Square": "#56B4E9",
    "Boundary": "#DDAA33",
    "OPT": "#33BBEE",
    "Sign-OPT": "#CC3311",
    "HopSkipJump": "#0077BB",
    "RayS": "#EE6677",
    "substitute": "#661100",
    "MI": "#004488",
    "RAP": "#EE8866",
    "RAP-LS": "#EE3377",
    "CE": "#EE7733",
    "Po+Trip": "#AA3377",
    "logit": "#009988",
    "standard": "#555555",
    "PGD-AT": "#AA4466",
    "Fast": "#4477AA",
    "zero": "#663333",
    "Free": "#228833",
    "N-FGSM": "#66CCEE",
    "GradAlign": "#997700",
    "Linf": "#0072B2",
    "L2": "#009E73",
    "L1": "#CC79A7",
}
"""Colours of attacks, trainings and norms, from palettes of Okabe, Ito and Tol, made for colour-blind readers too."""

MARKERS = {
    "clean": "o",
    "noise": "x",
    "FGSM": "s",
    "PGD": "D",
    "APGD": "^",
    "C&W": "v",
    "DeepFool": "P",
    "universal": "o",
    "NES": "o",
    "ZOO": "^",
    "GenAttack": "D",
    "Square": "s",
    "Boundary": "D",
    "OPT": "^",
    "Sign-OPT": "o",
    "HopSkipJump": "s",
    "RayS": "P",
    "substitute": "X",
    "MI": "o",
    "RAP": "s",
    "RAP-LS": "D",
    "CE": "s",
    "Po+Trip": "^",
    "logit": "o",
    "standard": "o",
    "PGD-AT": "D",
    "Fast": "s",
    "zero": "X",
    "Free": "^",
    "N-FGSM": "P",
    "GradAlign": "v",
    "Linf": "s",
    "L2": "o",
    "L1": "D",
}
"""Markers of the same methods, for readers in grey."""

STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def use_style() -> None:
    """Give all figures of this session the look of the course."""
    plt.style.use(STYLE)


def show_image(ax: Axes, image: Tensor, title: str = "", color: str = "black", scale: float | None = None) -> None:
    """Draw one image (C, H, W) with a title: grey or colour in [0, 1], or a perturbation within ±scale, blue to red."""
    picture = image.detach().cpu().permute(1, 2, 0).squeeze(-1).numpy()
    if scale is None:
        ax.imshow(picture, vmin=0, vmax=1)
    else:
        ax.imshow(picture if picture.ndim == 2 else picture.mean(-1), cmap="RdBu_r", vmin=-scale, vmax=scale)
    ax.set_title(title, color=color, fontsize=10, pad=4)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def adversarial_grid(model: Model, x: Tensor, x_adv: Tensor, y: Tensor, names: Sequence[str]) -> Figure:
    """Three rows of pictures: what the image was, what was added, what it became, with the model's answers as titles.

    The perturbation has its own scale, given beside it: red is lighter, blue is darker. A wrong answer is printed in
    orange and in brackets.

    Args:
        model: maps images to logits (N, K).
        x: clean images (N, C, H, W) in [0, 1]; six or so.
        x_adv: what an attack made of them.
        y: the right labels (N,).
        names: the K names of the labels.
    """
    delta = x_adv - x
    scale = delta.abs().max().item() or 1.0
    figure, axes = plt.subplots(3, len(x), figsize=(1.4 * len(x), 5), squeeze=False, layout="constrained")
    for row, images in ((0, x), (2, x_adv)):
        confidence, answer = predict(model, images).softmax(1).max(1)
        for i, ax in enumerate(axes[row]):
            wrong, name = bool(answer[i] != y[i]), names[int(answer[i])]
            name = f"[{name}]" if wrong else name
            show_image(ax, images[i], f"{name}\n{confidence[i]:.0%} sure", COLORS["PGD"] if wrong else "black")
    for i, ax in enumerate(axes[1]):
        show_image(ax, delta[i], scale=scale)
    for ax, text in zip(axes[:, 0], ("original", f"added (±{scale:.2g})", "adversarial"), strict=True):
        ax.set_ylabel(text, fontsize=11)
    return figure


def curves(ax: Axes, x: Sequence[float], lines: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> None:
    """Draw one line for each method, in its own colour and marker, with labelled axes and a legend.

    Args:
        ax: where to draw.
        x: the common abscissa.
        lines: ordinates by method; a method's first word chooses its colour ("PGD, 40 steps" is drawn as "PGD").
        xlabel: with the unit.
        ylabel: with the unit.
    """
    for label, values in lines.items():
        method = label.replace(",", " ").split()[0]
        ax.plot(x, values, color=COLORS.get(method), marker=MARKERS.get(method), markersize=5, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()


def decision_regions(ax: Axes, model: Model, resolution: int = 200) -> None:
    """Colour the unit square by the label that a model of two features gives to each point.

    Args:
        ax: where to draw; its limits become the unit square.
        model: maps points (N, 2) in [0, 1] to logits (N, K).
        resolution: points along a side.
    """
    side = (torch.arange(resolution) + 0.5) / resolution
    points = torch.cartesian_prod(side, side)
    labels = predict(model, points, batch_size=len(points)).argmax(1).view(resolution, resolution).T
    tints = ListedColormap(["#cfe3f2", "#fbe3c0", "#cfe9df", "#f3d9e6", "#e5e5e5"])
    ax.imshow(labels.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap=tints, vmin=0, vmax=tints.N - 1, zorder=0)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def landscape(ax: Axes, losses: Tensor, radius: float, label: str = "loss", boundary: bool = False) -> None:
    """Draw a loss landscape as levels: dark is low, bright is high, and a cross marks the image in the middle.

    Args:
        ax: where to draw; a colour bar stands beside it.
        losses: from `evaluation.landscape`, square: row a goes to the right, column b upward.
        radius: the largest a and b.
        label: what was measured, for the colour bar.
        boundary: draw the level 0, on whose other side the image is fooled if what was measured is a margin.
    """
    side = np.linspace(-radius, radius, len(losses))
    heights = losses.detach().cpu().numpy().T
    filled = ax.contourf(side, side, heights, levels=24, cmap="cividis")
    ax.contour(side, side, heights, levels=8, colors="white", linewidths=0.5, alpha=0.6)
    if boundary and heights.min() < 0 < heights.max():
        ax.contour(side, side, heights, levels=[0], colors=COLORS["PGD"], linewidths=2.5)
        ax.plot([], [], color=COLORS["PGD"], linewidth=2.5, label="fooled beyond")
        ax.legend(loc="upper left", frameon=True, framealpha=0.9, fontsize=8)
    ax.plot(0, 0, marker="X", color="white", markeredgecolor="black", markersize=10, linestyle="none")
    ax.set(xlabel="a, along the gradient's sign", ylabel="b, along random signs", aspect="equal")
    ax.grid(False)
    ax.figure.colorbar(filled, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label=label)  # as high as the square


def path(ax: Axes, points: Tensor, label: str, **style: Any) -> None:
    """Draw the way of an attack through two features, from a dot to an arrowhead.

    Args:
        ax: where to draw.
        points: the iterates (T, 2).
        label: for the legend; its first word chooses the colour.
        **style: passed on to `Axes.plot`.
    """
    way = points.detach().cpu().numpy()
    color = COLORS.get(label.split()[0], "black")
    ax.plot(*way.T, color=color, label=label, **style)
    ax.plot(*way[0], marker="o", color=color, markersize=5)
    moving = np.flatnonzero(np.abs(np.diff(way, axis=0)).sum(1) > 1e-9)
    if len(moving):
        start, end = way[moving[-1]], way[moving[-1] + 1]
        ax.annotate(
            "",
            end,
            start,
            arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0},
        )
