"""The page in the system's Chromium, headless. SPQT_SCREENSHOTS=FOLDER keeps pictures to look at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import browser
import httpx
import pytest
import served

from spqt_ti.server import page as served_page
from spqt_ti.server.app import Server

needs_browser = pytest.mark.skipif(
    browser.executable() is None, reason="there is no Chromium here: apt-get install chromium"
)
DONE = "document.querySelectorAll('.assistant small').length"


@pytest.fixture(scope="module")
def opened(live: tuple[Server, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    program = browser.executable()
    assert program is not None
    with browser.opened(program, tmp_path_factory.mktemp("profile")) as found:
        found.size(1200, 800)
        found.call("Page.navigate", url=f"{live[1]}/")
        found.until("document.readyState === 'complete' && document.title.includes('tiny')")
        yield found


def picture(page: browser.Page, name: str) -> None:
    if os.environ.get("SPQT_SCREENSHOTS"):
        page.picture(Path(os.environ["SPQT_SCREENSHOTS"]) / f"{name}.png")


def ask(page: browser.Page, text: str, answers: int) -> None:
    """Send a message by the keyboard, and wait for the answer of this number."""
    page.value("document.getElementById('message').focus()")
    page.type(text)
    page.press("Enter", text="\r")
    page.until(f"{DONE} === {answers}")


def text_of(page: browser.Page, name: str) -> str:
    return str(page.value(f"document.getElementById('{name}').textContent"))


def test_it_names_no_other_place(address: str) -> None:
    """No file of elsewhere, and a policy that would not let the browser fetch one."""
    found = httpx.get(f"{address}/")
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", found.text)
    policy = found.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert found.text == Path(served_page.__file__).with_name("page.html").read_text()


@needs_browser
def test_a_conversation(opened: browser.Page) -> None:
    """By keyboard: dense, at 50 %, with a policy. The map and the figures follow."""
    picture(opened, "empty")
    opened.value("document.getElementById('most').value = 12")
    ask(opened, "Hello", 1)
    assert float(text_of(opened, "speed")) > 0
    assert text_of(opened, "count") == "12"
    assert text_of(opened, "skipped") == "0 %"
    share = "document.querySelectorAll('#heat td')[0].dataset.share"
    assert float(opened.value(share)) == 0
    opened.value("document.getElementById('sparsity').focus()")
    for _ in range(10):
        opened.press("ArrowRight")
    assert text_of(opened, "level") == "50 %"
    opened.press("n", modifiers=1)  # the tiny model has no room for two turns
    ask(opened, "And again", 1)
    shares = opened.value("[...document.querySelectorAll('#heat td')].map(cell => Number(cell.dataset.share))")
    assert len(shares) == 8
    assert 0.1 < sum(shares) / 8 < 0.9
    picture(opened, "light")
    opened.value("document.getElementById('policy').value = 'mine'")
    opened.value("document.getElementById('policy').dispatchEvent(new Event('input'))")
    assert opened.value("document.getElementById('sparsity').disabled")
    opened.press("t", modifiers=1)
    assert opened.value("document.documentElement.dataset.theme") == "dark"
    opened.press("n", modifiers=1)
    ask(opened, "Once more", 1)
    picture(opened, "dark")
    assert "mine" in opened.value("[...document.querySelectorAll('.assistant small')].at(-1).textContent")
    assert opened.errors == []


@needs_browser
def test_cells_by_keyboard(opened: browser.Page) -> None:
    opened.value("document.querySelector('#heat td').focus()")
    assert text_of(opened, "cell").startswith("layer 0, qkv")
    opened.press("ArrowRight")
    opened.press("ArrowDown")
    assert text_of(opened, "cell").startswith("layer 1, o")


@needs_browser
def test_stopping_frees_the_engine(opened: browser.Page, server: Server, address: str) -> None:
    before = served.outcomes(address).get("cancelled", 0)
    opened.press("n", modifiers=1)
    assert opened.value("document.querySelectorAll('.message').length") == 0
    with server._model.llama.exclusive():
        opened.type("Hello")
        opened.press("Enter", text="\r")
        served.until(lambda: server.engine.busy)
        opened.press("Escape")
        opened.until(f"{DONE} === 1")
        served.until(lambda: served.outcomes(address).get("cancelled", 0) == before + 1)
    served.until(lambda: not server.engine.busy)
    assert "stopped" in opened.value("document.querySelector('.assistant small').textContent")


@needs_browser
def test_errors_are_said(opened: browser.Page) -> None:
    opened.press("n", modifiers=1)
    opened.value("document.getElementById('most').value = 999")
    ask(opened, "Hello", 2)
    assert "max_tokens must be between 1 and 60" in opened.value("document.querySelector('.error').textContent")


@needs_browser
def test_a_narrow_window(opened: browser.Page) -> None:
    opened.size(380, 800)
    picture(opened, "narrow")
    assert opened.value("document.documentElement.scrollWidth") <= 380
