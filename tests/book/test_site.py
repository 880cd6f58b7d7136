"""The built book in a real browser: quiet, local, readable on a phone and in the dark, and usable without a mouse."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from .conftest import PAGES

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
CHAPTERS = [page for page in PAGES if page.startswith("book/chapters/")]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SCREENS)
def screen(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tab(browser: Browser, address: str, screen: str, theme: str) -> Iterator[Page]:
    """An empty tab; the test fails if anything in it complains or leaves this machine."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        base_url=address, viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    page, trouble = context.new_page(), []
    page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or trouble.append(request.url)
    )
    page.on("requestfailed", lambda request: trouble.append(f"failed {request.url}"))
    page.on("response", lambda answer: answer.status >= 400 and trouble.append(f"{answer.status} {answer.url}"))
    yield page
    context.close()
    assert trouble == []


on_one_screen = pytest.mark.parametrize(("screen", "theme"), [("desktop", "light")], indirect=True)


@pytest.mark.parametrize("path", PAGES)
def test_page(tab: Page, path: str, theme: str) -> None:
    tab.goto(path, wait_until="networkidle")
    assert tab.locator("html").get_attribute("data-theme") == theme
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"], "scrolls sideways"
    assert tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)") == []
    assert tab.locator("article img:not([alt]), article img[alt='']").count() == 0

    tab.add_script_tag(path=AXE)
    # The bibliography's list is docutils' own markup.
    violations = tab.evaluate(
        """async () => (await axe.run({ exclude: [".citation-list"] }, { runOnly: ["wcag2a", "wcag2aa"] }))
           .violations.map(v => [v.id, ...v.nodes.map(n => n.html + " " + n.failureSummary)])"""
    )
    assert violations == []


@on_one_screen
@pytest.mark.parametrize("path", CHAPTERS)
def test_mathematics_is_set(tab: Page, path: str) -> None:
    tab.goto(path)
    tab.wait_for_selector("mjx-container")
    assert tab.locator("mjx-merror, [data-mjx-error]").count() == 0


@on_one_screen
@pytest.mark.parametrize("path", CHAPTERS)
def test_sliders_flip_by_keyboard(tab: Page, path: str) -> None:
    tab.goto(path)
    for slider in tab.locator(".explore").all():
        control, frame = slider.get_by_role("slider"), slider.locator("img:visible")
        assert control.get_attribute("aria-valuetext")
        before = frame.get_attribute("src")
        control.focus()
        tab.keyboard.press("ArrowRight")
        assert frame.get_attribute("src") != before
        assert frame.get_attribute("alt")
        tab.keyboard.press("ArrowLeft")
        assert frame.get_attribute("src") == before
        tab.keyboard.press("Home")
        assert frame.get_attribute("src") == slider.locator("img").first.get_attribute("src")


@pytest.mark.parametrize("path", CHAPTERS)
def test_without_scripts_every_frame_is_there(browser: Browser, address: str, path: str) -> None:
    page = browser.new_page(base_url=address, java_script_enabled=False)
    page.goto(path)
    assert page.locator(".explore img:visible").count() == page.locator(".explore img").count()
    assert page.locator(".explore input").count() == 0
    page.close()


@on_one_screen
@pytest.mark.parametrize("path", CHAPTERS)
def test_citations_show_their_entry(tab: Page, path: str) -> None:
    tab.goto(path)
    link = tab.locator('a[href*="bibliography.html#"]').first
    link.focus()
    tip = tab.get_by_role("tooltip")
    assert tip.is_visible()
    assert len(tip.inner_text()) > 40
    tab.keyboard.press("Escape")
    assert tip.is_hidden()


@on_one_screen
def test_search_finds_fgsm(tab: Page) -> None:
    tab.goto("search.html?q=FGSM")
    tab.wait_for_selector("#search-results li a")


@on_one_screen
@pytest.mark.parametrize("path", CHAPTERS[7:8])
def test_pictures_come_after_the_page_and_keep_their_places(tab: Page, path: str) -> None:
    markup = tab.request.get(path).text()
    late = re.findall(r'<img [^>]*src="[./]*_images/[^>]*>', markup)
    assert late
    assert all('loading="lazy"' in picture for picture in late)
    tab.goto(path, wait_until="networkidle")
    sizes = tab.evaluate(
        """[...document.querySelectorAll('article img[src*=_images]')].map(
            image => [image.complete, +image.getAttribute('width') / image.naturalWidth,
                      image.width / image.height / image.naturalWidth * image.naturalHeight])"""
    )
    assert len(sizes) == len(late)
    assert sizes == [[True, 1, pytest.approx(1, rel=0.01)]] * len(late)


@on_one_screen
@pytest.mark.parametrize("path", CHAPTERS)
def test_on_paper_no_line_of_code_is_cut(tab: Page, path: str) -> None:
    tab.goto(path, wait_until="networkidle")
    long = (
        "[...document.querySelectorAll('article .highlight pre')].filter(p => p.scrollWidth > p.clientWidth + 1).length"
    )
    tab.emulate_media(media="print")
    assert tab.evaluate(long) == 0
