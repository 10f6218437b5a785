"""Pages in a real headless Chromium: both colour schemes, a phone, print, the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lrpguard.report import read_run, report_page
from tests.chromium import needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(read_run(evaluation), command="lrpguard report"), encoding="utf-8")
    return path.as_uri()


def opened(browser: Any, url: str, complaints: list[str], **settings: Any) -> Any:
    page = browser.new_page(**settings)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url != url else None)
    page.goto(url)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_fits_a_phone(browser: Any, url: str, scheme: str) -> None:
    complaints: list[str] = []
    page = opened(
        browser, url, complaints, color_scheme=scheme, viewport={"width": 360, "height": 640}
    )
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in back[4:-1].split(",")) < 200) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert [c for c in complaints if not c.startswith("data:")] == []
    page.close()


def test_every_chart_is_seen(browser: Any, url: str) -> None:
    page = opened(browser, url, [])
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert len(sizes) >= 10
    assert all(width > 200 and height > 40 for width, height in sizes)
    outside = page.evaluate(
        """[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
            const all = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < all.left - 1 || box.right > all.right + 1
                    || box.top < all.top - 1 || box.bottom > all.bottom + 1;
            }).map(text => text.textContent);
        })"""
    )
    assert outside == []
    page.close()


def test_the_keyboard_alone_will_do(browser: Any, url: str) -> None:
    page = opened(browser, url, [])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    inside = "document.getElementById('report').contains(document.activeElement)"
    assert page.evaluate(inside)
    page.evaluate("document.querySelector('summary').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    scrolling = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
        "getComputedStyle(e).overflowX === 'auto').every(e => e.tabIndex === 0)"
    )
    assert scrolling
    page.close()


def test_it_prints_light_and_whole(browser: Any, url: str) -> None:
    page = opened(browser, url, [], color_scheme="dark", viewport={"width": 700, "height": 900})
    page.emulate_media(media="print", color_scheme="dark")
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"{style}.backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"{style}.color") == "rgb(0, 0, 0)"
    assert not page.is_visible("nav")
    closed = "[...document.querySelectorAll('details:not([open])')]"
    heights = page.evaluate(f"{closed}.map(d => d.getBoundingClientRect().height)")
    assert heights
    assert min(heights) > 100  # what is folded is printed
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert len(page.pdf(format="A4")) > 20_000
    page.close()


def test_no_text_is_too_faint(browser: Any, url: str) -> None:
    script = """() => {
        const light = (rgb) => rgb.map(v => v / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const colour = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const back = (e) => {
            for (; e; e = e.parentElement) {
                const found = getComputedStyle(e).backgroundColor;
                if (found !== 'rgba(0, 0, 0, 0)') return colour(found);
            }
            return [255, 255, 255];
        };
        return [...document.querySelectorAll('p, li, dt, dd, td, th, caption, summary, a, text')]
            .map(e => {
                const style = getComputedStyle(e);
                const ink = e.tagName === 'text' ? style.fill : style.color;
                const both = [light(colour(ink)), light(back(e))].sort((a, b) => b - a);
                return (both[0] + .05) / (both[1] + .05);
            });
    }"""
    for scheme in ("light", "dark"):
        page = opened(browser, url, [], color_scheme=scheme)
        assert min(page.evaluate(script)) >= 4.5  # WCAG 2.2, AA
        page.close()
