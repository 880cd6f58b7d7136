import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from advcourse import widgets
from advcourse.widgets import explore


def line(slope: float) -> Figure:
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1], [0, slope])
    return figure


def bundle(values: list[object], **options: object) -> dict[str, object]:
    shown = {"label": "slope", "alt": "A line of slope {}"} | options
    return explore(lambda _: line(1), values, **shown)._repr_mimebundle_()


def test_every_value_has_a_described_frame() -> None:
    page = explore(line, [0, 0.5, 1], label="slope", alt="A line of slope {:g}")._repr_html_()
    assert re.findall(r'alt="([^"]*)"', page) == ["A line of slope 0", "A line of slope 0.5", "A line of slope 1"]
    assert re.findall(r"<figcaption>([^<]*)", page) == ["slope = 0", "slope = 0.5", "slope = 1"]
    assert len(set(re.findall(r"data:image/png;base64,[^\"]+", page))) == 3


def test_the_bytes_repeat_and_name_no_version() -> None:
    first, second = (explore(line, [0, 1], label="slope", alt="{}")._repr_html_() for _ in range(2))
    assert first == second
    assert b"matplotlib" not in b"".join(explore(line, [0], label="slope", alt="{}").frames[0].encode().split())


def test_figures_are_closed() -> None:
    before = plt.get_fignums()
    explore(line, [0, 1], label="slope", alt="{}")
    assert plt.get_fignums() == before


def test_texts_are_escaped() -> None:
    page = bundle(['<b>"'], label="a<b")["text/html"]
    assert "<b>" not in str(page)
    assert "&lt;b&gt;&quot;" in str(page)


def test_text_is_written_as_asked() -> None:
    page = explore(line, [8 / 255], label="ε", alt=lambda value: f"{value:.3f}", fmt="{:.2f}")._repr_html_()
    assert 'data-value="0.03"' in page
    assert 'alt="0.031"' in page


def test_without_a_kernel_there_is_only_html() -> None:
    assert set(bundle([0, 1])) == {"text/plain", "text/html"}


@pytest.mark.parametrize(
    ("values", "slider"), [([1, 5, 20], "IntSlider"), ([0, 0.5], "FloatSlider"), (["a", "b"], "SelectionSlider")]
)
def test_with_a_kernel_any_value_is_drawn(monkeypatch: pytest.MonkeyPatch, values: list[object], slider: str) -> None:
    monkeypatch.setattr(widgets, "_has_kernel", lambda: True)
    assert widgets.WIDGET_VIEW in bundle(values)

    drawn: list[object] = []

    def draw(value: object) -> Figure:
        drawn.append(value)
        return line(1)

    control, picture = explore(draw, values, label="value", alt="{}")._live().children
    assert type(control).__name__ == slider
    assert not control.continuous_update
    control.value = new = {"IntSlider": 3, "FloatSlider": 0.25, "SelectionSlider": "b"}[slider]
    assert drawn[-1] == pytest.approx(new)
    assert f"{new}" in picture.value


def test_an_opening_value_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of the values"):
        bundle([0, 1], start=2)


def test_ipywidgets_is_optional() -> None:
    code = "import sys; sys.modules['ipywidgets'] = None; import advcourse.widgets"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": []}, "got 0 values, expected 1 to 12"),
        ({"values": range(13)}, "got 13 values"),
        ({"label": " "}, "empty label"),
        ({"alt": lambda value: ""}, "alt gives no text for 0"),
        ({"draw": lambda value: None}, "returned NoneType, expected a matplotlib Figure"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"draw": line, "values": [0, 1], "label": "slope", "alt": "{}"} | change
    with pytest.raises(ValueError, match=message):
        explore(**arguments)


@pytest.mark.parametrize(("values", "start"), [([1, 5, 20], 5), ([0, 0.5], 0.5), (["a", "b"], "b")])
def test_it_opens_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch, values: list[object], start: object) -> None:
    control = explore(lambda _: line(1), values, label="value", alt="Value {}", start=start)
    assert 'data-start="1"' in control._repr_html_()
    slider, picture = control._live().children
    assert slider.value == start
    assert f"Value {start}" in picture.value
