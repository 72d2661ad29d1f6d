"""The page in headless Chromium: it sorts, filters, turns dark, fits a telephone, and axe finds nothing.

Needs the extra `browser` (playwright, axe-core-python) and a Chromium: playwright's own, or one on the PATH.
"""

# ruff: noqa: F811 (fixtures are imported)
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from reported import data, noise, root, world  # noqa: F401 (fixtures)

from mibench.core import Dataset
from mibench.report import diff, load, page
from mibench.report.content import Content
from mibench.report.page import compared
from mibench.stages import artifacts

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: playwright")

PHONE = {"viewport": {"width": 360, "height": 740}}
AXE = "axe.run().then(run => run.violations.map(one => [one.id, one.nodes.slice(0, 5).map(node => node.html)]))"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    own = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium could be started: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(world: Path, noise: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "open_dataset", lambda inputs: noise)
        errors = ["left out scores/x: it lacks y"]
        return page.write(tmp_path_factory.mktemp("page"), Content(load.results(world)), errors)


@pytest.fixture(scope="module")
def changes(world: Path, noise: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `mibench diff`, of two scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "open_dataset", lambda inputs: noise)
        one, other = [one for one in load.results(world) if one.attack == "ppa"][:2]
        return compared.write(diff.Scores(one, other), (world, tmp_path_factory.mktemp("diff")))


@pytest.fixture
def opened(browser: Any, path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page; whatever the console says, or whatever it asks the network for, fails the test."""
    yield from visited(browser, path, getattr(request, "param", {}))


@pytest.fixture
def opened_changes(browser: Any, changes: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page of `mibench diff`, likewise."""
    yield from visited(browser, changes, getattr(request, "param", {}))


def visited(browser: Any, path: Path, options: dict[str, Any]) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(240_000)  # of milliseconds: other tests share the machine
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:", path.as_uri()))] == []


def axe() -> str:
    return (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


def until(tab: Any, condition: str) -> None:
    """Wait for it; playwright's own waiting would be eval, which the page's policy forbids."""
    for _ in range(600):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(100)
    raise AssertionError(f"never true: {condition}")


def column(tab: Any, name: str, place: int) -> list[str]:
    return tab.locator(f"#{name} tbody tr td:nth-child({place})").all_text_contents()


def test_tables_sort_both_ways_and_what_is_missing_stays_last(opened: Any) -> None:
    heads = opened.locator("#table-1 thead th").all_text_contents()
    place = next(at for at, head in enumerate(heads, 1) if head.startswith("likeness"))
    button = opened.locator(f"#table-1 thead th:nth-child({place}) button")
    before = column(opened, "table-1", place)
    button.focus()
    opened.keyboard.press("Enter")

    def numbers() -> list[float]:
        cells = column(opened, "table-1", place)
        assert sorted(cells) == sorted(before)
        filled = [cell for cell in cells if cell]
        assert cells == filled + [""] * (len(cells) - len(filled))
        return [float(re.split("[° ]", cell)[0]) for cell in filled]

    assert numbers() == sorted(numbers(), reverse=True)
    head = opened.locator(f"#table-1 thead th:nth-child({place})")
    assert head.get_attribute("aria-sort") == "descending"
    button.click()
    assert numbers() == sorted(numbers()) and head.get_attribute("aria-sort") == "ascending"
    opened.locator("#table-1 thead th:nth-child(1) button").click()
    assert head.get_attribute("aria-sort") is None
    texts = [cell for cell in column(opened, "table-1", 1) if cell]
    assert texts == sorted(texts)


def test_rows_are_filtered_by_words(opened: Any) -> None:
    scope = opened.locator("#tables details").first
    rows = opened.locator("#table-1 tbody tr")
    scope.locator("input[type=search]").fill("ppa re")
    shown = [row for row in rows.all_text_contents() if row.strip()]
    assert (
        scope.get_by_role("status").text_content() == f"{rows.locator('visible=true').count()} of {rows.count()} rows"
    )
    assert 0 < rows.locator("visible=true").count() < rows.count() and shown
    assert all("ppa" in row and "re" in row for row in rows.locator("visible=true").all_text_contents())
    scope.locator("input[type=search]").fill("")
    assert rows.locator("visible=true").count() == rows.count()


def test_the_gallery_filters_by_verdict_target_attack_and_person(opened: Any) -> None:
    shots = opened.locator("#wall button.shot")
    opened.select_option("#attack", "")

    def count() -> int:
        told = opened.locator("#count").text_content()
        return int(told.split(" ")[0]) if told[0].isdigit() else 0

    whole = count()
    assert whole == shots.count() == 84
    opened.get_by_label("hit", exact=True).check()
    hits = count()
    assert shots.count() == opened.locator("#wall button.shot.hit").count() == hits
    opened.get_by_label("miss", exact=True).check()
    assert count() == whole - hits and opened.locator("#wall button.shot.hit").count() == 0
    opened.get_by_label("judges disagree").check()
    assert count() == 0  # in this world the judges of the headline agree
    opened.get_by_label("all", exact=True).check()
    opened.select_option("#target", "none")
    opened.select_option("#attack", "ppa")
    assert count() == 12
    opened.select_option("#person", "2")
    assert count() == 3 and opened.locator("#wall article").count() == 1


def test_a_picture_opens_with_every_verdict_in_words(opened: Any) -> None:
    opened.locator("#wall button.shot").first.focus()
    opened.keyboard.press("Enter")
    dialog = opened.get_by_role("dialog")
    assert dialog.get_by_role("img").count() == 3
    judges = dialog.locator("tbody tr td:first-child").all_text_contents()
    assert judges[0] == "likeness" and "own-ball resnet" in judges and judges[-1] == "the target itself"
    assert set(dialog.locator("tbody tr td:last-child").all_text_contents()) <= {"✓ yes", "✗ no"}
    opened.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_sheets_are_decoded_only_when_they_are_looked_at(opened: Any) -> None:
    rules = "[...document.styleSheets[0].cssRules].filter(rule => /^[.]s\\d/.test(rule.selectorText)).length"
    assert opened.evaluate(rules) == 0
    opened.locator("#gallery").scroll_into_view_if_needed()
    until(opened, f"{rules} > 0")
    until(opened, "getComputedStyle(document.querySelector('#wall .tile')).backgroundImage.includes('blob:')")


def test_dark_by_preference_and_by_button(opened: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(ground) == "rgb(255, 255, 255)"
    opened.get_by_role("button", name="Dark colours").click()
    dark = opened.evaluate(ground)
    assert dark != "rgb(255, 255, 255)"
    opened.get_by_role("button", name="Light colours").click()
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate(ground) == "rgb(255, 255, 255)", "what was chosen by hand stays"
    opened.evaluate("delete document.documentElement.dataset.theme")
    assert opened.evaluate(ground) == dark


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_telephone_scrolls_down_only(opened: Any) -> None:
    opened.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    opened.locator("#wall button.shot").first.click()
    box = opened.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    opened.keyboard.press("Escape")


def test_a_figure_is_saved_as_a_drawing_of_its_own(opened: Any) -> None:
    with opened.expect_download() as waiting:
        opened.locator(".save").first.click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert waiting.value.suggested_filename.endswith(".svg")
    assert text.startswith("<svg") and 'xmlns="http://www.w3.org/2000/svg"' in text
    assert "class=" not in text and "var(" not in text and re.search(r'fill="rgb\(\d+, \d+, \d+\)"', text)


def test_what_a_link_leads_to_is_opened(opened: Any) -> None:
    link = opened.locator("#provenance table a").first
    name = link.get_attribute("href")
    link.click()
    until(opened, f"document.querySelector('{name}').open")


def test_it_prints_with_the_headline_and_the_picture_on_the_first_page(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 720, "height": 1018})  # A4 at 96 dots per inch, without margins
    assert opened.locator("h1").bounding_box()["y"] < 200
    strip = opened.locator(".strip").first.bounding_box()
    assert strip["y"] + strip["height"] < 1018
    assert not opened.locator("nav").is_visible() and not opened.locator("#filters").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("opened", [{}, PHONE], indirect=True, ids=["desk", "phone"])
def test_axe_finds_nothing(opened: Any, scheme: str) -> None:
    pytest.importorskip("axe_core_python", reason="needs the extra `browser`: axe-core-python")
    opened.emulate_media(color_scheme=scheme)
    opened.evaluate("for (const one of document.querySelectorAll('details:not(.runs *)')) one.open = true")
    # What is not yet drawn would not be looked at.
    opened.evaluate("document.styleSheets[0].insertRule('section { content-visibility: visible !important }')")
    opened.evaluate(axe())
    assert opened.evaluate(AXE) == []
    opened.locator("#wall button.shot").first.click()
    assert opened.evaluate(AXE.replace("run()", "run('dialog')")) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("opened_changes", [{}, PHONE], indirect=True, ids=["desk", "phone"])
def test_the_page_of_a_diff_sorts_fits_and_axe_finds_nothing(opened_changes: Any, scheme: str) -> None:
    pytest.importorskip("axe_core_python", reason="needs the extra `browser`: axe-core-python")
    tab = opened_changes
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate("document.styleSheets[0].insertRule('section { content-visibility: visible !important }')")
    assert tab.evaluate("document.documentElement.scrollWidth") == tab.viewport_size["width"]
    tab.locator("#people thead th:nth-child(4) button").click()
    changed = [float(cell) for cell in column(tab, "people", 4)]
    assert changed == sorted(changed)
    tab.evaluate(axe())
    assert tab.evaluate(AXE) == []
