"""The page in a real browser, for tests: the service as a process, a Chromium, and what people do on the page.

Any Chromium will do: the variable CHROMIUM, one on the path, or Playwright's own. Only without one are tests skipped.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

PROJECT = Path(__file__).parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REAL = ["app.py", "--port", "{port}"]
PRETEND = ["-c", "import pretend; pretend.serve({port}, 120, 0.05)"]
QUICK = ["-c", "import pretend; pretend.serve({port}, 20, 0.02)"]


class Service:
    """The service as a process that can be ended and started again."""

    def __init__(self, home, command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.home, self.process = f"http://127.0.0.1:{self.port}/", home, None
        self._command = [sys.executable, *(word.format(port=self.port) for word in command)]

    def start(self):
        paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
        env = {**os.environ, "FINETUNE_HOME": str(self.home), "PYTHONPATH": paths}
        self.process = subprocess.Popen(self._command, cwd=PROJECT, env=env)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError):
                return urllib.request.urlopen(f"{self.url}v1/health", timeout=2).close()
            time.sleep(0.2)
        raise AssertionError("the service did not start within a minute")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) is not None


def started(tmp_path_factory, command):
    """A service on a folder of its own, for a fixture to yield from."""
    service = Service(tmp_path_factory.mktemp("home"), command)
    service.start()
    yield service
    service.end()


@contextmanager
def chromium():
    """A browser, or the end of the test where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        except sync_api.Error:
            if path or os.environ.get("CI"):
                raise
            pytest.skip("no Chromium was found")
        yield browser
        browser.close()


def load_example(page):
    """Take the example, and wait for its pictures."""
    page.get_by_role("button", name="Load the example").click()
    sync_api.expect(page.locator(".pictures .cell")).to_have_count(16)


def field(page, name):
    """What a field of the form is typed into."""
    return page.locator(f"#field-{name} :is(input, textarea)")


def choose(page, name, choice):
    """Choose of a list of the form."""
    page.locator(f"#field-{name} input").click()
    page.get_by_role("option", name=choice, exact=True).click()


def train(page):
    """Press Train, and wait for the run’s address."""
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_function("location.search.includes('run=')")


def stands(page, state, seconds=30):
    """Wait until the open run is in a state."""
    sync_api.expect(page.locator("#live .badge")).to_have_text(state, timeout=seconds * 1000)
