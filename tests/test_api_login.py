"""Sign in and out."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from finetune import keys
from finetune.api import callers, login, throttle
from finetune.api.throttle import Throttle
from finetune.owners import Caller
from finetune.settings import Settings

AUTH = (("ann", "one"), ("bob", "tw=ö&, two"))


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, auth=AUTH)


def serving(settings):
    """A browser, and a route that tells who it is."""
    app = FastAPI()
    app.include_router(login.routes(settings, Throttle()))

    @app.get("/who")
    def who(request: login.Request) -> str:
        return getattr(callers.of_page(settings, request), "name", "nobody")

    return TestClient(app, follow_redirects=False)


@pytest.fixture
def browser(settings):
    return serving(settings)


def who(browser):
    return browser.get("/who").json()


@pytest.mark.parametrize(("name", "password"), AUTH)
def test_name_with_its_password_signs_in(browser, name, password):
    """From then on the browser carries who it is."""
    answer = browser.post("/login", data={"name": name, "password": password})

    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert who(browser) == name


def test_key_signs_in(browser, settings):
    """Who has a key needs no password; spaces from copying do not matter."""
    key = keys.new(settings, "carl")

    browser.post("/login", data={"key": f" {key}\n"})

    assert who(browser) == "carl"


@pytest.mark.parametrize(
    "given",
    [
        {"name": "ann", "password": "two"},
        {"name": "ann", "password": ""},
        {"name": "ann"},
        {"name": "nobody", "password": ""},
        {"name": "", "password": ""},
        {"key": "ft_0"},
        {"key": "one", "name": "ann", "password": "one"},
        {},
    ],
)
def test_anything_else_does_not(browser, given):
    """A wrong password and a name that nobody has get the same answer, with what was typed but the password."""
    answer = browser.post("/login", data=given)

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert (login.WRONG in answer.text) == ("key" not in given)
    assert f'value="{given["name"]}"' in answer.text if given.get("name") and "key" not in given else True
    assert who(browser) == "nobody"


def test_page_leads_back_to_where_somebody_came_from(browser):
    """What stood in the address is there again after signing in."""
    page = browser.get("/login?run=abc&__theme=dark").text
    then = re.search('name="then" value="(.*?)"', page).group(1).replace("&amp;", "&")

    answer = browser.post("/login", data={"name": "ann", "password": "one", "then": then})

    assert answer.headers["location"] == "./?run=abc&__theme=dark"


@pytest.mark.parametrize(
    "then", ["https://evil.org", "//evil.org", "/\\evil.org", "x=1\r\nSet-Cookie: a=b", "&" * 5000]
)
def test_page_leads_nowhere_else(browser, then):
    """Whatever somebody else wrote into the address, it stays a question to our own page."""
    answer = browser.post("/login", data={"name": "ann", "password": "one", "then": then})

    assert re.fullmatch(r"\./(\?[\w%&=.+-]*)?", answer.headers["location"])
    assert "a" not in answer.cookies


def test_markup_in_an_address_or_a_name_stays_text(browser):
    """Nothing that was sent becomes part of the page."""
    text = '"><script>alert(1)</script>'

    pages = [browser.get("/login", params={"run": text}), browser.post("/login", data={"name": text, "then": text})]

    assert not any("<script" in page.text for page in pages)
    assert all("default-src 'none'" in page.headers["content-security-policy"] for page in pages)


def test_other_site_cannot_sign_somebody_in_or_out(browser):
    """A form on another page, even with a right password, changes nothing."""
    foreign = {"Origin": "https://evil.org"}

    answer = browser.post("/login", data={"name": "bob", "password": AUTH[1][1]}, headers=foreign)
    assert (answer.status_code, who(browser)) == (403, "nobody")

    browser.post("/login", data={"name": "ann", "password": "one"})
    assert browser.post("/logout", headers=foreign).status_code == 403
    browser.get("/logout")
    assert who(browser) == "ann"


def test_signing_out_forgets_who_it_was(browser):
    """The browser is nobody again."""
    browser.post("/login", data={"name": "ann", "password": "one"})

    answer = browser.post("/logout")

    assert (answer.status_code, answer.headers["location"], who(browser)) == (303, "./", "nobody")


def test_guessing_is_slowed_down(browser):
    """After some wrong tries even the right password has to wait, and the answer says how long."""
    for _ in range(throttle.FREE):
        assert browser.post("/login", data={"name": "ann", "password": "guess"}).status_code == 403

    answer = browser.post("/login", data={"name": "ann", "password": "one"})

    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= throttle.LONGEST_SECONDS
    assert "Try again in" in answer.text and who(browser) == "nobody"
    assert browser.post("/login", data={"name": "bob", "password": AUTH[1][1]}).status_code == 303


def test_who_is_signed_in_is_not_asked_again(browser):
    """The page to sign in on leads on at once."""
    browser.post("/login", data={"name": "ann", "password": "one"})

    answer = browser.get("/login?run=abc")

    assert (answer.status_code, answer.headers["location"]) == (303, "./?run=abc")


def test_page_offers_the_ways_that_there_are(tmp_path):
    """Passwords where there are some, keys where there are some, and a word where there is neither."""
    both = Settings(tmp_path / "both", auth=AUTH)
    keyed = Settings(tmp_path / "keyed")
    for settings in (both, keyed):
        keys.new(settings, "carl")

    asked = {
        settings: serving(settings).get("/login").text
        for settings in (both, keyed, Settings(tmp_path / "words", auth=AUTH), Settings(tmp_path / "none", share=True))
    }

    assert [('name="password"' in text, 'name="key"' in text) for text in asked.values()] == [
        (True, True),
        (False, True),
        (True, False),
        (False, False),
    ]
    assert "key new NAME" in list(asked.values())[-1]


def test_at_home_there_is_nothing_to_sign_in_to(tmp_path):
    """The page leads on, because nobody is asked."""
    assert serving(Settings(tmp_path)).get("/login").status_code == 303


def test_hub_has_its_own_routes(tmp_path):
    """Where people sign in by the Hub, Gradio’s routes for it are not hidden behind ours."""
    assert not login.routes(Settings(tmp_path, on_space=True, has_hub_login=True), Throttle()).routes


def test_password_is_checked_as_long_for_a_name_that_nobody_has(settings):
    """What is compared does not depend on the name."""
    assert login._by_password(settings, "nobody", "") is None
    assert login._by_password(settings, "ann", "one") is not None


def test_revoked_key_ends_what_it_opened(browser, settings):
    """The next request is nobody’s."""
    key = keys.new(settings, "carl")
    browser.post("/login", data={"key": key})

    keys.revoke(settings, key[: keys.ID_LETTERS], Caller("carl"))

    assert who(browser) == "nobody"
