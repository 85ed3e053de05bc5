"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright. Without them these tests are skipped.

Nothing but loopback is reached: a page that asks for anything else fails its test, and so does an error in its console.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOPBACK = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:")
SECONDS = 60  # for a script to begin answering, on a busy machine


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser."""
    pytest.importorskip("gradio", reason="no gradio here: pip install -r requirements-app.txt", exc_type=ImportError)
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here", exc_type=ImportError)
    if CHROMIUM is None:
        pytest.skip("no browser here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # Without a sandbox, as containers' root has none to give; the only pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, url: str, width: int = 1200, height: int = 900, faults_of_files: bool = False) -> Iterator:
    """A page of the browser at `url`; fails when the console has an error or anything leaves this machine.

    `faults_of_files`: that an uploaded file cannot be shown, the console may say.
    """
    page = browser.new_page(viewport={"width": width, "height": height})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.route("**/*", lambda route: _only_here(route, faults))
    page.goto(url)
    yield page
    page.close()
    if faults_of_files:
        faults = [fault for fault in faults if "Failed to load resource" not in fault]
    assert not faults, faults


def _only_here(route, faults: list[str]) -> None:
    if LOOPBACK.match(route.request.url):
        route.continue_()
    else:
        faults.append(f"asked for {route.request.url}")
        route.abort()


@contextmanager
def served(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Iterator[str]:
    """A script that takes --port, in a process of its own; gives its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # Gradio counts its starts and looks for a newer version, elsewhere, unless told not to.
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "0", **(env or {})}
    words = [sys.executable, *map(str, command), "--port", str(port)]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(words, env=os.environ | quiet, cwd=cwd, **said)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (URLError, OSError) as error:
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    raise RuntimeError(f"{words} does not answer:\n{process.communicate()[0].decode()}") from error
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def upload(page, path):
    page.locator("#photo input[type=file]").first.set_input_files(str(path))


def rows_of(page):
    """What was found: condition -> ids."""
    return {
        row.get_attribute("data-condition"): [hit.get_attribute("data-id") for hit in row.locator("article").all()]
        for row in page.locator("#results section").all()
    }


def wait_for_rows(page, *names):
    for name in names:
        page.locator(f'#results section[data-condition="{name}"]').wait_for()
    page.wait_for_function(f"document.querySelectorAll('#results section').length == {len(names)}")
