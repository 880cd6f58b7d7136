"""Figures say what the data say: titles, colours, labels and limits, not pixels."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

from advcourse import plotting


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def halves(x: torch.Tensor) -> torch.Tensor:
    """A model: class 1 where the first feature is larger than a half."""
    first = x.flatten(1)[:, 0]
    return torch.stack([0.5 - first, first - 0.5], 1) * 10


def test_a_grid_names_the_answers_and_marks_the_wrong_ones() -> None:
    x = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    x_adv = torch.tensor([0.7, 0.7]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    figure = plotting.adversarial_grid(halves, x, x_adv, torch.tensor([0, 1]), ["dark", "light"])
    titles = [[ax.get_title() for ax in figure.axes[row : row + 2]] for row in (0, 4)]
    assert titles[0] == ["dark\n100% sure", "light\n100% sure"]
    assert titles[1] == ["[light]\n98% sure", "light\n98% sure"]
    assert [to_hex(ax.title.get_color()) for ax in figure.axes[4:]] == [plotting.COLORS["PGD"].lower(), "#000000"]
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["original", "added (±0.5)", "adversarial"]
    assert figure.axes[2].images[0].get_clim() == (-0.5, 0.5)


def test_colour_images_and_no_perturbation_at_all_can_be_drawn() -> None:
    x = torch.rand(1, 3, 5, 5)
    figure = plotting.adversarial_grid(halves, x, x, torch.tensor([0]), ["a", "b"])
    assert [ax.images[0].get_array().shape for ax in figure.axes] == [(5, 5, 3), (5, 5), (5, 5, 3)]


def test_a_method_has_its_colour_and_marker_whatever_follows_its_name() -> None:
    _, ax = plt.subplots()
    plotting.curves(ax, [0, 1], {"PGD, 20 steps": [1, 0], "noise": [1, 1], "something else": [0, 0]}, "eps", "accuracy")
    pgd, noise, _ = ax.lines
    assert (pgd.get_color(), pgd.get_marker()) == (plotting.COLORS["PGD"], plotting.MARKERS["PGD"])
    assert noise.get_color() == plotting.COLORS["noise"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["PGD, 20 steps", "noise", "something else"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("eps", "accuracy")


def test_methods_differ_in_colour_and_norms_in_colour_and_marker() -> None:
    assert len(set(plotting.COLORS.values())) == len(plotting.COLORS)
    assert plotting.MARKERS.keys() == plotting.COLORS.keys()


def test_regions_are_the_labels_of_the_model_where_it_gives_them() -> None:
    _, ax = plt.subplots()
    plotting.decision_regions(ax, halves, resolution=10)
    labels = ax.images[0].get_array()
    assert (labels[:, :5] == 0).all()
    assert (labels[:, 5:] == 1).all()
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 1), (0, 1))
    assert ax.images[0].get_extent() == [0, 1, 0, 1]


def test_a_path_goes_through_its_points_and_its_arrow_ends_at_the_last_move() -> None:
    _, ax = plt.subplots()
    points = torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.2, 0.4], [0.2, 0.4]])  # the last step stands still
    plotting.path(ax, points, "L2")
    assert torch.allclose(torch.tensor(ax.lines[0].get_xydata()).float(), points)
    (arrow,) = ax.texts
    assert torch.allclose(torch.tensor([arrow.xy, arrow.xyann]).float(), torch.tensor([[0.2, 0.4], [0.2, 0.1]]))
    plotting.path(ax, points[:1].expand(3, 2), "L1")
    assert len(ax.texts) == 1  # nothing moved, so no arrow


def test_a_landscape_rises_to_the_right_where_the_loss_rises_with_a() -> None:
    a, b = torch.meshgrid(torch.linspace(-1, 1, 11), torch.linspace(-1, 1, 11), indexing="ij")
    figure, ax = plt.subplots()
    plotting.landscape(ax, a + 0.1 * b, radius=0.2, label="margin", boundary=True)
    figure.draw_without_rendering()
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "margin"
    assert bar.get_window_extent().height == pytest.approx(ax.get_window_extent().height)
    assert ("a, " in ax.get_xlabel(), "b, " in ax.get_ylabel()) == (True, True)
    assert ax.get_xlim() == pytest.approx((-0.2, 0.2))
    line = ax.collections[-1].get_paths()[0].vertices  # the level 0: a = -b / 10, nearly upright
    assert abs(line[:, 0]).max() == pytest.approx(0.02, abs=1e-3)
    assert abs(line[:, 1]).max() == pytest.approx(0.2)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fooled beyond"]


def test_a_landscape_without_a_boundary_has_no_legend() -> None:
    for losses, boundary in (torch.rand(5, 5), True), (torch.randn(5, 5), False), (torch.zeros(5, 5), False):
        _, ax = plt.subplots()
        plotting.landscape(ax, losses, 0.1, boundary=boundary)
        assert ax.get_legend() is None


def test_the_style_is_one_that_matplotlib_knows() -> None:
    with plt.rc_context():
        plotting.use_style()
        assert plt.rcParams["figure.facecolor"] == "white"
