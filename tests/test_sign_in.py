"""Signing in and out in a real browser; skipped without one."""

import pretend
import pytest

from finetune import keys
from finetune.owners import AT_HOME
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import serve

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, auth=(("root", "r"), ("ann", "one")))


@pytest.fixture
def address(settings):
    queue = Queue(settings, pretend.StillExecutor())
    blocks = serve.start(settings, queue)
    yield blocks.local_url
    queue.close()
    blocks.close()


@pytest.fixture
def page(browser):
    made = browser.new_page()
    yield made
    made.close()


def test_person_signs_in_and_out(page, address):
    """A wrong password is told in words; the right one leads to what the address named; then it is closed again."""
    page.goto(f"{address}?run=abc")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    sync_api.expect(page.get_by_role("alert")).to_have_text("This name and password do not fit together.")
    sync_api.expect(page.get_by_label("Password")).to_be_focused()

    page.get_by_label("Password").fill("one")
    page.get_by_role("button", name="Sign in").click()
    sync_api.expect(page.locator("#who")).to_contain_text("ann")
    assert page.url == f"{address}?run=abc"

    page.get_by_role("button", name="Sign out").click()
    sync_api.expect(page.get_by_label("Password")).to_be_visible()
    page.goto(address)
    assert page.url == f"{address}login"


def test_page_says_when_a_sign_in_has_ended(page, address, settings):
    """A key that is revoked while its page is open: the page keeps what it shows and offers to sign in again."""
    key = keys.new(settings, "carl")
    page.goto(address)
    page.get_by_text("Sign in with a key").click()
    page.get_by_label("Key").fill(key)
    page.locator("details").get_by_role("button").click()
    sync_api.expect(page.locator("#who")).to_contain_text("carl")

    keys.revoke(settings, key[: keys.ID_LETTERS], AT_HOME)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    page.get_by_role("alert").filter(has_text="You are signed out").get_by_role("link").click()
    sync_api.expect(page.get_by_label("Password")).to_be_visible()
