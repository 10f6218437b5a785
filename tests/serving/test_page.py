"""The page, in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lrpguard import Guard
from tests.chromium import needs_chromium
from tests.serving.conftest import Files, png, running, small_config

pytest.importorskip("fastapi")

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(files: Files) -> Iterator[str]:
    with running(small_config(files, "answer.expose_scores=true")) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page; what it complains of in the console fails the test."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(url)
    yield page
    page.close()
    assert [text for text in complaints if "the server responded with" not in text] == []


def choose(page: Any, content: bytes) -> None:
    page.set_input_files("#file", {"name": "digit.png", "mimeType": "image/png", "buffer": content})


def painted(page: Any, name: str) -> int:
    """Return how many colours a canvas shows."""
    script = """(name) => {
        const canvas = document.getElementById(name);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const colours = new Set();
        for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 4).join());
        return colours.size;
    }"""
    return int(page.evaluate(script, name))


def test_a_clean_image(page: Any, files: Files, guard: Guard) -> None:
    expected = guard(files.clean[:1])
    choose(page, png(files.clean[0]))
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#label") == str(int(expected.label[0]))
    assert page.inner_text("#verdict") == "not flagged"
    assert f"p = {float(expected.p_value[0]):.3g}"[:7] in page.inner_text("#chart-text")
    assert page.locator("#chart rect").count() == 40
    for name in ("map-image", "map-relevance", "map-variance"):
        assert painted(page, name) > 3
    assert not page.is_visible("#changed-figure")


def test_a_flagged_image(page: Any, files: Files, guard: Guard) -> None:
    expected = guard(files.odd, maps=True)
    choose(page, png(files.odd[0]))
    page.wait_for_selector("#verdict.flagged")
    label = int(expected.restored_label[0])
    assert page.inner_text("#restored") == ("unknown" if label == -1 else str(label))
    assert expected.changed_pixels is not None
    assert page.is_visible("#changed-figure") == bool(expected.changed_pixels[0].any())
    assert page.locator("#chart line.here").count() == 1


def test_a_file_that_is_no_image_is_told(page: Any, files: Files) -> None:
    choose(page, b"no image")
    page.wait_for_selector("#problem:not([hidden])")
    assert "no image of these formats" in page.inner_text("#problem")
    choose(page, png(files.clean[0]))
    page.wait_for_selector("#result:not([hidden])")
    assert not page.is_visible("#problem")


def test_dropping_a_file(page: Any, files: Files) -> None:
    script = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "d.png", { type: "image/png" }));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    page.evaluate(script, list(png(files.clean[0])))
    page.wait_for_selector("#result:not([hidden])")


def test_the_keyboard_alone_will_do(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert (
        page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    )
    with page.expect_file_chooser():
        page.keyboard.press("Space")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_fits_a_phone(
    browser: Any, url: str, files: Files, scheme: str
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 640})
    page.goto(url)
    choose(page, png(files.odd[0]))
    page.wait_for_selector("#verdict.flagged")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in back[4:-1].split(",")) < 200) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_without_scores_it_shows_the_verdict_alone(browser: Any, files: Files) -> None:
    with running(small_config(files)) as address:
        page = browser.new_page()
        page.goto(address)
        choose(page, png(files.clean[0]))
        page.wait_for_selector("#result:not([hidden])")
        assert not page.is_visible("#chart-card")
        assert not page.is_visible("#maps-card")
        assert "withheld" in page.inner_text("#exposure")
        page.close()
