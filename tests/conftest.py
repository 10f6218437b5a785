"""Settings for every test."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.chromium import CHROMIUM


def pytest_configure() -> None:
    """Use one thread: the networks of the tests are small, and more threads only contend."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Undo what a test, or a script or service in it, has made of that."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
