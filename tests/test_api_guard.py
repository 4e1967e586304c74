"""What stands around the whole service, around routes that look like Gradio’s and ours."""

import asyncio
import os
import time

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from requests_made import asked
from starlette.middleware import Middleware

from finetune import keys
from finetune.api import callers, guard, login, sessions, throttle
from finetune.api.throttle import Throttle
from finetune.settings import Settings

AUTH = (("ann", "one"), ("bob", "two"))
EVIL = {"Origin": "https://evil.org"}
HOME = "http://localhost:7860"


def serving(settings, host=HOME):
    """A browser of a service with the guard around it."""
    counted = Throttle()
    app = FastAPI(middleware=[Middleware(guard.Guard, settings=settings, throttle=counted)])
    app.include_router(login.routes(settings, counted))

    @app.post("/gradio_api/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    @app.post("/gradio_api/queue/join")
    async def join(request: Request) -> str:
        await request.body()
        return getattr(callers.of_page(settings, request), "name", "nobody")

    @app.get("/v1/mine")
    def mine(request: Request) -> str:
        try:
            return callers.of_program(settings, request).name
        except callers.DeniedError as error:
            raise HTTPException(403, str(error)) from error

    @app.post("/v1/finetune")
    async def finetune(request: Request) -> int:
        return len(await request.body())

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])
    def anything(request: Request) -> str:
        return getattr(callers.of_page(settings, request), "name", "nobody")

    return TestClient(app, base_url=host, follow_redirects=False)


def signed_in(browser, name="bob", password="two"):
    assert browser.post("/login", data={"name": name, "password": password}).status_code == 303
    return browser


@pytest.fixture
def closed(tmp_path):
    return Settings(tmp_path, auth=AUTH, disk_reserve_gib=0)


PAGE_ROUTES = (
    "/config",
    "/gradio_api/info",
    "/gradio_api/queue/data",
    "/gradio_api/queue/join",
    "/gradio_api/component_server/",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/heartbeat/x",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/upload",
    "/gradio_api/run/x",
    "/gradio_api/call/x/y",
    "/gradio_api/user",
)


@pytest.mark.parametrize("path", PAGE_ROUTES)
def test_stranger_reaches_nothing_of_the_page(closed, path):
    """Where people sign in, whoever has not gets a 401 from every route that the page uses."""
    browser = serving(closed)

    assert {browser.get(path).status_code, browser.post(path).status_code} == {401}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/process_recording",
        "/gradio_api/proxy=https://evil.org/x",
        "/gradio_api/file=https://evil.org/x",
        "/gradio_api/deep_link",
        "/gradio_api/stream/x",
        "/gradio_api/vibe-edit",
        "/gradio_api/dev/reload",
        "/gradio_api/token",
        "/gradio_api/",
        "/monitoring/summary",
        "/no/such/page",
        "//gradio_api/upload",
    ],
)
def test_what_the_page_does_not_use_is_not_there(tmp_path, path):
    """Gradio brings more routes than are needed; nobody reaches them, not even at home."""
    browser = serving(Settings(tmp_path))

    assert {browser.get(HOME + path).status_code, browser.post(HOME + path).status_code} == {404}


@pytest.mark.parametrize(
    "path",
    ["/login", "/v1/health", "/assets/index.js", "/static/img/logo.svg", "/favicon.ico", "/theme.css", "/docs"],
)
def test_stranger_gets_what_is_needed_to_sign_in(closed, path):
    """The page to sign in on, what all pages look like, and routes that see to it themselves."""
    assert serving(closed).get(path).status_code == 200


def test_stranger_is_led_to_the_login(closed):
    """The page itself leads to where to sign in, and remembers its address."""
    answer = serving(closed).get("/?run=abc")

    assert (answer.status_code, answer.headers["location"]) == (303, "login?run=abc")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"root_path": "/lora"}, "/lora/login"),
        ({"public_url": "https://x.org/lora"}, "/lora/login"),
        ({"public_url": "https://x.org"}, "login"),
    ],
)
def test_login_is_found_below_a_path(tmp_path, values, expected):
    """Where it is known below which path the service is reached, that is where it leads."""
    settings = Settings(tmp_path, auth=AUTH, **values)

    assert serving(settings).get("/").headers["location"] == expected


def test_who_signed_in_reaches_the_page(closed):
    """With the cookie of the sign-in, everything that the page uses."""
    browser = signed_in(serving(closed))

    assert browser.get("/").json() == "bob"
    assert browser.post("/gradio_api/queue/join").json() == "bob"


def test_page_is_not_shown_inside_another_site_s(closed):
    """Nobody can be made to click on a button that they do not see."""
    browser = signed_in(serving(closed))

    assert browser.get("/").headers["content-security-policy"] == "frame-ancestors 'self'"


def test_cookie_is_not_believed_across_sites(closed):
    """What another site’s page sends is a stranger’s, whatever the browser adds to it."""
    browser = signed_in(serving(closed))

    assert browser.post("/gradio_api/queue/join", headers=EVIL).status_code == 401
    assert browser.post("/gradio_api/queue/join", headers={"Origin": HOME}).json() == "bob"


@pytest.mark.parametrize("origin", ["https://evil.org", "null", "http://localhost:9999"])
@pytest.mark.parametrize("path", ["/", "/v1/mine", "/gradio_api/queue/join", "/assets/a.js", "/gradio_api/upload"])
def test_at_home_other_sites_reach_nothing(tmp_path, origin, path):
    """A page that somebody happens to visit cannot use the service on their machine."""
    browser = serving(Settings(tmp_path))

    for answer in (browser.get(path, headers={"Origin": origin}), browser.post(path, headers={"Origin": origin})):
        assert answer.status_code == 403
        assert "Another site" in answer.text


def test_at_home_programs_and_the_page_itself_reach_everything(tmp_path):
    """Programs say nothing of sites, and the page names us."""
    browser = serving(Settings(tmp_path, disk_reserve_gib=0))

    for headers in ({}, {"Origin": HOME}, {"Sec-Fetch-Site": "same-origin"}):
        assert browser.get("/v1/mine", headers=headers).json() == "local"
        assert browser.post("/gradio_api/queue/join", headers=headers).json() == "local"


def test_at_home_a_name_from_elsewhere_is_refused(tmp_path):
    """A site that lets its own name resolve to this machine is refused, and the words say what an owner can do."""
    answer = serving(Settings(tmp_path), host="http://evil.org:7860").get("/v1/mine")

    assert answer.status_code == 403
    assert "FINETUNE_PUBLIC_URL=http://evil.org:7860" in answer.json()["message"]


def test_closed_service_may_have_any_name(closed):
    """Where people sign in, a name from elsewhere opens nothing: the browser has no cookie for it."""
    assert serving(closed, host="http://evil.org").get("/").headers["location"] == "login"


def test_visitor_is_somebody_from_the_first_request_on(tmp_path):
    """The page gives each browser a name, which its later requests carry."""
    settings = Settings(tmp_path, share=True, without_password=True)
    browser, other = serving(settings, "https://x.live"), serving(settings, "https://x.live")

    name = browser.get("/").json()

    assert name.startswith("visitor-")
    assert browser.get("/").json() == browser.post("/gradio_api/queue/join").json() == name
    assert other.post("/gradio_api/queue/join").status_code == 401
    assert other.get("/").json() != name


def test_other_site_s_page_gives_no_new_name(tmp_path):
    """A visitor stays who they are, even if another page fetches ours."""
    settings = Settings(tmp_path, share=True, without_password=True)
    browser = serving(settings, "https://x.live")
    name = browser.get("/").json()

    browser.get("/", headers=EVIL)

    assert browser.get("/").json() == name


def test_on_a_space_with_hub_login_the_page_can_be_looked_at(tmp_path):
    """Its handlers ask for a sign-in; nothing is taken in before."""
    browser = serving(Settings(tmp_path, on_space=True, has_hub_login=True), "https://a-b.hf.space")

    assert browser.get("/").json() == "nobody"
    assert browser.post("/gradio_api/queue/join").json() == "nobody"
    assert browser.post("/gradio_api/upload", content=b"x").status_code == 401


def test_upload_of_a_stranger_is_refused_unread(closed):
    """Before the first byte is taken."""

    scope = asked(method="POST", path="/gradio_api/upload").scope
    told = []

    async def never():
        raise AssertionError("it was read")

    async def send(message):
        told.append(message)

    asyncio.run(guard.Guard(None, closed, Throttle())(scope, never, send))

    assert told[0]["status"] == 401


@pytest.mark.parametrize("has_length", [True, False])
def test_upload_above_the_limit_is_refused(tmp_path, has_length):
    """By what it says of itself, or while it comes in where it says nothing."""
    browser = serving(Settings(tmp_path, upload_mib=1, disk_reserve_gib=0))
    pieces = [b"x" * 2**20, b"x" * 2**20]

    answer = browser.post("/gradio_api/upload", content=b"".join(pieces) if has_length else iter(pieces))

    assert answer.status_code == 413
    assert "1 MiB" in answer.text


def test_upload_is_taken_in(tmp_path):
    """What is within the limits comes through whole."""
    browser = serving(Settings(tmp_path, upload_mib=1, disk_reserve_gib=0))

    assert browser.post("/gradio_api/upload", content=b"x" * 2**20).json() == 2**20


@pytest.mark.parametrize("has_length", [True, False])
def test_upload_that_the_disk_has_no_room_for_is_refused(tmp_path, has_length, monkeypatch):
    """What would go below the reserve is not taken in, and the words say what can be done."""
    monkeypatch.setattr(guard.intake, "CHECK_BYTES", 4)
    browser = serving(Settings(tmp_path, disk_reserve_gib=2**20))

    answer = browser.post("/gradio_api/upload", content=b"12345678" if has_length else iter([b"1234", b"5678"]))

    assert answer.status_code == 507
    assert "The disk has no room" in answer.text and "Delete runs" in answer.text


def test_one_caller_has_only_so_many_uploads_at_once():
    """The next one is told to wait until one of them has ended."""
    uploads = guard.Uploads(100)
    for _ in range(guard.UPLOADS_AT_ONCE):
        uploads.begin("ann", 1)

    with pytest.raises(guard.BusyError):
        uploads.begin("ann", 1)
    uploads.begin("bob", 1)
    uploads.end("ann", 1)
    uploads.begin("ann", 1)


def test_one_caller_uploads_only_so_much_an_hour(monkeypatch):
    """What was sent counts, until the next hour begins."""
    uploads = guard.Uploads(100)
    uploads.begin("ann", 0)
    uploads.end("ann", 90)

    with pytest.raises(guard.BusyError) as busy:
        uploads.begin("ann", 20)
    assert 0 < busy.value.retry_after_seconds <= 3600

    now = time.time()
    monkeypatch.setattr(guard.time, "time", lambda: now + 3600)
    uploads.begin("ann", 20)


def test_too_much_in_an_hour_is_told_in_words(tmp_path):
    """A person of a service that several share gets a 429 with the time to wait; its owner is free."""
    settings = Settings(tmp_path, auth=AUTH, upload_mib=1, disk_reserve_gib=0)
    bob, ann = signed_in(serving(settings)), signed_in(serving(settings), "ann", "one")

    codes = [bob.post("/gradio_api/upload", content=b"x" * 2**20).status_code for _ in range(11)]
    last = bob.post("/gradio_api/upload", content=b"x" * 2**20)

    assert codes == [200] * 10 + [429]
    assert int(last.headers["retry-after"]) > 0 and "this hour" in last.text
    assert {ann.post("/gradio_api/upload", content=b"x" * 2**20).status_code for _ in range(11)} == {200}


@pytest.mark.parametrize(("path", "most"), [("/gradio_api/queue/join", 8 * 2**20), ("/login", 16 * 2**10)])
def test_other_bodies_stay_small(tmp_path, path, most):
    """What is held in memory as a whole is no way to fill it."""
    browser = serving(Settings(tmp_path, auth=AUTH))
    browser = signed_in(browser)

    assert browser.post(path, content=b"x" * (most + 1)).status_code == 413


def test_program_s_body_above_the_limit_has_the_contract_s_answer(tmp_path):
    """Routes of programs answer in their own shape."""
    answer = serving(Settings(tmp_path, request_mib=1)).post("/v1/finetune", content=b"x" * (2**20 + 2**17))

    assert answer.status_code == 413
    assert answer.json()["detail"] == answer.json()["message"]


def test_wrong_keys_are_slowed_down_and_right_ones_are_not(tmp_path):
    """After some refused keys the next is told to wait, while others at the same address go on."""
    settings = Settings(tmp_path)
    right = keys.new(settings, "carl")
    browser = serving(settings)

    codes = [browser.get("/v1/mine", headers={"x-key": "ft_guess"}).status_code for _ in range(throttle.FREE + 1)]
    last = browser.get("/v1/mine", headers={"x-key": "ft_guess"})

    assert codes == [403] * throttle.FREE + [429]
    assert int(last.headers["retry-after"]) > 0 and last.json()["detail"] == last.json()["message"]
    assert browser.get("/v1/mine", headers={"x-key": right}).json() == "carl"
    assert browser.get("/v1/mine").status_code == 403


def test_parts_of_broken_uploads_are_cleared(tmp_path):
    """What Gradio leaves behind of an upload that broke off goes after some minutes; whole ones stay."""
    old, new, whole = tmp_path / "tmpold", tmp_path / "tmpnew", tmp_path / "0a1b" / "a.zip"
    whole.parent.mkdir()
    for path in (old, new, whole):
        path.write_bytes(b"x")
    past = time.time() - guard.LEFT_OVER_SECONDS - 1
    os.utime(old, (past, past))
    os.utime(whole, (past, past))

    guard.clear_left_over(tmp_path)

    assert [path.exists() for path in (old, new, whole)] == [False, True, True]


def test_mounted_path_is_the_one_that_routes_see():
    """With and without the part that a proxy may or may not have taken away."""
    paths = [("/lora/v1/x", "/lora"), ("/v1/x", "/lora"), ("/lora", "/lora"), ("/lorax", "/lora"), ("/v1/x", "")]

    seen = [guard._path({"path": path, "root_path": root}) for path, root in paths]

    assert seen == ["/v1/x", "/v1/x", "/", "/lorax", "/v1/x"]


def test_sessions_of_the_hub_are_not_believed_across_sites(tmp_path):
    """What Gradio has read from a cookie goes with the cookie."""
    scope = {"headers": [(b"cookie", b"a=b"), (b"host", b"x")], "session": {"oauth_info": {}}}

    assert guard._without_cookies(scope) == {"headers": [(b"host", b"x")], "session": {}}


def test_cookie_of_a_visitor_is_added_to_others(tmp_path):
    """A browser that carries something else keeps it."""
    settings = Settings(tmp_path, share=True, without_password=True)
    browser = serving(settings, "https://x.live")

    answer = browser.get("/", headers={"Cookie": "other=1"})

    assert answer.headers["set-cookie"].startswith(sessions.visitor_cookie(settings))
    assert answer.json().startswith("visitor-")
