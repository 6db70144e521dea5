"""A browser, a server that answers by script, and the page that it serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve_page.scripted_server import ScriptedServer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dllm[test]'")
    if BROWSER is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def server(running_server) -> ScriptedServer:
    running_server.fresh()
    return running_server


@pytest.fixture(scope="module")
def tab(browser) -> Any:
    """A page with a browser's usual options: a new one for each test would take half of all the time."""
    return browser.new_context().new_page()


@pytest.fixture
def visit(browser, tab, server) -> Iterator[Any]:
    """Opens the page, with options in a tab of its own. At the end: no script failed, no other host was asked."""
    opened, hosts, asked, errors = [], [], [], []
    events = {
        "request": lambda request: asked.append(request.url),
        "pageerror": lambda error: errors.append(str(error)),
        "console": lambda message: errors.append(message.text) if "Policy" in message.text else None,
    }

    def visit(at: str = server.address, **options: Any) -> Any:
        page = browser.new_context(**options).new_page() if options else tab
        opened.append(page)
        for event, heard in events.items():
            page.on(event, heard)
        page.goto(at)
        hosts.append(at)
        return page

    yield visit
    for page in opened:
        page.unroute_all()
        if page is not tab:
            page.context.close()
    for event, heard in events.items():
        if tab in opened:
            tab.remove_listener(event, heard)
    assert not errors
    assert asked and all(url.startswith((*hosts, "blob:", "file:")) for url in asked)


@pytest.fixture
def page(visit) -> Any:
    return visit()
