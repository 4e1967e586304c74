"""What tests of many parts begin with: a queue whose workers do nothing, its routes, and a browser with pages."""

import pretend
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from finetune import api
from finetune.queue import Queue
from finetune.settings import Settings


@pytest.fixture
def queue(tmp_path):
    """A queue over an empty data folder."""
    made = Queue(Settings(home=tmp_path / "home", disk_reserve_gib=0), pretend.StillExecutor())
    yield made
    made.close()


@pytest.fixture
def client(queue):
    """A program that asks the routes of the queue."""
    app = FastAPI()
    app.include_router(api.router(queue))
    return TestClient(app)


@pytest.fixture(scope="module")
def browser():
    """A browser."""
    import browsing

    with browsing.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pretended(tmp_path_factory):
    """The service as a process, with workers that only tell a story."""
    import browsing

    yield from browsing.started(tmp_path_factory, browsing.PRETEND)


@pytest.fixture
def open_page(browser):
    """Open pages; at the end none of them may have had an error or asked another host."""
    contexts, wrong = [], []

    def opened(url, awaits="tab", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}))
        page = contexts[-1].new_page()
        own = "/".join(url.split("/")[:3])
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda one: wrong.append(one.url) if one.url.startswith("http") and own not in one.url else None
        )
        page.goto(url)
        page.get_by_role(awaits).first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
