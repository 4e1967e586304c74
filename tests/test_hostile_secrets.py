"""Where the secrets of a run are when it is over: nowhere."""

import hmac
import stat
import sys
import threading
import urllib.error
import urllib.request

import browsing
import fakes
import hub
import pytest
from pictures import picture, zip_of
from pretend import StillExecutor
from receiver import Receiver

from finetune import runs
from finetune.queue import Queue
from finetune.settings import Settings

MACHINE_TOKEN = "hf_machinemachinemachine"
WEBHOOK_SECRET = "correct-horse-battery-staple"
REFUSED = "hf_wrongwrongwrongwrong"
SECRETS = (MACHINE_TOKEN, hub.WRITER, REFUSED, WEBHOOK_SECRET)
ROUTES = (
    "health",
    "my_finetunes",
    "credits",
    "get_result?id={id}",
    "finetune_details?finetune_id={id}",
    "events?id={id}",
)
LETTERS = "/openapi.json"


@pytest.fixture
def receiver():
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub_server():
    with hub.serving() as server:
        server.tokens[MACHINE_TOKEN] = "read"
        yield server


@pytest.fixture
def service(tmp_path, monkeypatch, hub_server):
    """The real service with the real worker on a toy base, and the machine's own token in its environment."""
    values = hub.environment(hub_server.url, tmp_path / "hub", MACHINE_TOKEN)
    values |= {"FINETUNE_DEMO_BASE": str(fakes.demo_base(tmp_path / "base")), "FINETUNE_DEVICE": "cpu"}
    values |= {"FINETUNE_THREADS": "1", "FINETUNE_PRIVATE_WEBHOOKS": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    service = browsing.Service(tmp_path / "home", browsing.REAL)
    service.start()
    yield service
    if service.process.poll() is None:
        service.end()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_the_home_is_for_who_runs_the_service_alone(tmp_path):
    """Nobody else on the machine can look into runs, logs and uploads, whatever they were before."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)

    Queue(Settings(home=home), StillExecutor())

    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def heard_by(page):
    """Everything that the page is answered from now on, as it comes in."""
    answers = []

    def keep(response):
        if response.request.resource_type in ("fetch", "xhr", "document", "eventsource"):
            try:
                answers.append((response.url, f"{response.headers}".encode() + response.body()))
            except browsing.sync_api.Error:  # a stream that the page has closed
                answers.append((response.url, b""))

    page.on("response", keep)
    return answers


def push(page, repo, token):
    if not page.locator("details.push[open]").count():
        page.locator("details.push summary").click()
    page.locator("[name=repo]").fill(repo)
    page.locator("[name=token]").fill(token)
    page.get_by_role("button", name="Push", exact=True).click()


def asked(url):
    """The answer of a route, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return f"{answer.headers}".encode() + answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


def train(page, receiver, path):
    """Upload, fill the form in, and wait for the LoRA; returns the run's id."""
    page.locator("#pictures-zip input[type=file]").set_input_files(path)
    browsing.sync_api.expect(page.locator(".pictures .picture")).to_have_count(4)
    browsing.field(page, "finetune_comment").fill("pears")
    browsing.choose(page, "mode", "Style")
    browsing.choose(page, "finetune_type", "LoRA adapter")
    browsing.choose(page, "priority", "Speed")
    page.locator("#field-iterations input[type=number]").fill("100")
    page.get_by_text("More settings").click()
    browsing.field(page, "webhook_url").fill(receiver.url)
    browsing.field(page, "webhook_secret").fill(WEBHOOK_SECRET)
    browsing.train(page)
    browsing.stands(page, "Ready", seconds=240)
    return page.url.partition("run=")[2]


@pytest.mark.slow
def test_secrets_are_nowhere_but_where_they_must_be(service, open_page, receiver, tmp_path, capfd):
    """A whole run with a signed webhook, a token of the machine and two pushes leaves none of its secrets anywhere."""
    page = open_page(service.url)
    answers = heard_by(page)
    path = zip_of(tmp_path / "in.zip", {f"{number}.png": picture(number) for number in range(4)})

    id = train(page, receiver, path)
    push(page, f"{hub.OWNER}/pears", REFUSED)
    page.get_by_text("does not accept this token").wait_for()
    push(page, f"{hub.OWNER}/pears", hub.WRITER)
    page.locator("details.push a[href*=pears]").wait_for()
    receiver.has_received.wait(30)
    page.reload()
    browsing.stands(page, "Ready")
    answers += [(path, asked(f"{service.url}v1/{path.format(id=id)}")) for path in ROUTES]
    answers += [(path, asked(f"{service.url}{path}")) for path in ("openapi.json", "config")]
    service.end()

    run = runs.find(service.home / "runs", id)
    files = {str(path): path.read_bytes() for path in service.home.rglob("*") if path.is_file()}
    printed = {"printed": "".join(capfd.readouterr()).encode()}
    _, headers, body = receiver.received[0]
    assert headers["X-BFL-Signature"] == "sha256=" + hmac.new(WEBHOOK_SECRET.encode(), body, "sha256").hexdigest()
    assert len(answers) > 20 and {str(run.folder / "request.json"), str(run.worker_log)} < set(files)
    for place, content in [*files.items(), *answers, *printed.items()]:
        assert not [secret for secret in SECRETS if secret.encode() in content], place
