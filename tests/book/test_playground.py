"""The playground computes in the reader's browser what the library computes."""

import json
import math
from collections.abc import Iterator

import pytest
import torch
from playwright.sync_api import Browser, Page
from torch import Tensor, nn

from advcourse.attacks import FGSM, PGD
from advcourse.threat import L2, Linf
from tools.make_playground import OUT, network


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    """The network that the page has."""
    text = OUT.read_text(encoding="utf-8")
    content = json.loads(text.removeprefix("window.playgroundNetwork = ").removesuffix(";\n"))
    made = network()
    layers = [layer for layer in made if isinstance(layer, nn.Linear)]
    for layer, kept in zip(layers, content["layers"], strict=True):
        layer.load_state_dict({name: torch.tensor(values) for name, values in kept.items()})
    x, y = torch.tensor(content["points"]), torch.tensor(content["labels"])
    assert (made(x).argmax(1) == y).double().mean() > 0.95
    return made.eval()


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(base_url=address)
    page.goto("book/playground.html")
    page.wait_for_selector(".playground canvas")
    yield page
    page.close()


def state(tab: Page) -> dict[str, Tensor]:
    shown = json.loads(tab.locator(".playground").get_attribute("data-state") or "")
    return {name: torch.tensor(value) for name, value in shown.items()}


def put(tab: Page, **values: float | str) -> None:
    for name, value in values.items():
        tab.locator(f".playground [name={name}]").evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); }",
            str(value),
        )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("x", "y"), [(0.36, 0.6), (0.6, 0.7), (0.05, 0.95)])
def test_attacks_end_where_the_librarys_do(tab: Page, model: nn.Sequential, norm: str, x: float, y: float) -> None:
    put(tab, x=x, y=y, norm=norm, eps=0.15, steps=4)
    shown, ball = state(tab), {"Linf": Linf, "L2": L2}[norm](0.15)
    start = shown["x0"][None].float()
    assert start[0].tolist() == pytest.approx([x, y])
    label = shown["y"][None]
    assert torch.equal(label, model(start).argmax(1))
    one_step = PGD(ball, steps=1, step_size=0.15, random_start=False)
    last = [step.x for step in PGD(ball, steps=4, random_start=False, restarts=1).iterates(model, start, label)][-1]
    assert torch.allclose(shown["fgsm"].float(), one_step(model, start, label)[0], atol=1e-4)
    if norm == "Linf":
        assert torch.allclose(shown["fgsm"].float(), FGSM(ball)(model, start, label)[0], atol=1e-4)
    assert ball.norm(shown["pgd"][None] - shown["x0"][None]) <= 0.15 + 1e-6
    if model(last).argmax(1) == label:  # the library stops an image that is fooled
        assert torch.allclose(shown["pgd"].float(), last[0], atol=1e-3)
    else:
        assert model(shown["pgd"][None].float()).argmax(1) != label


def test_the_nearest_boundary(tab: Page, model: nn.Sequential) -> None:
    put(tab, x=0.36, y=0.6)
    shown = state(tab)
    angles = torch.arange(360) * math.pi / 180
    radii = torch.linspace(0, 0.3, 601)
    rays = shown["x0"].float() + radii[:, None, None] * torch.stack([angles.cos(), angles.sin()], 1)
    crossed = (model(rays).argmax(-1) != shown["y"]) & ((rays >= 0) & (rays <= 1)).all(-1)
    assert radii[crossed.any(1)][0] == pytest.approx(shown["nearest"].item(), abs=2e-3)


def test_by_keyboard_and_by_pointer(tab: Page) -> None:
    before, told = state(tab), tab.locator(".playground output")
    assert "The network says" in told.inner_text()
    tab.locator(".playground [name=x]").focus()
    tab.keyboard.press("ArrowRight")
    assert state(tab)["x0"][0] > before["x0"][0]
    canvas = tab.locator(".playground canvas")
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": 0.8 * box["width"], "y": 0.3 * box["height"]})
    assert state(tab)["x0"].tolist() == pytest.approx([0.8, 0.7], abs=0.02)
