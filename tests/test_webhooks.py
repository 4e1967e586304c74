"""Signed deliveries to a real receiver on this machine, and the addresses that are never called."""

import hashlib
import hmac
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fakes
import pytest

from finetune import runs, webhooks
from finetune.errors import FinetuneError
from finetune.inputs import Request
from finetune.runs import State

SECRET = "correct horse"


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, and answers what a test says."""

    def __init__(self, address="127.0.0.1"):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Handler)
        self.status, self.headers, self.received = 200, {}, []
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self.server_port}/hook?a=1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *words):
        pass


@pytest.fixture
def receiver():
    """A receiver that listens."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def private(monkeypatch):
    """Addresses of this machine may be called."""
    monkeypatch.setenv("FINETUNE_PRIVATE_WEBHOOKS", "1")


def finished(folder, url, secret=SECRET):
    """A run that asks to be told of."""
    run = fakes.run(folder)
    request = Request(finetune_comment="x", mode="style", webhook_url=url, webhook_secret=secret)
    run.write("request.json", request.model_dump(mode="json"))
    return run


def test_delivery_is_signed(tmp_path, receiver, private):
    """The signature is the HMAC-SHA256 of exactly the bytes that arrive."""
    webhooks.deliver(finished(tmp_path, receiver.url), State.READY)

    path, headers, body = receiver.received[0]
    expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert path == "/hook?a=1"
    assert headers["X-BFL-Signature"] == f"sha256={expected}"
    assert headers["Host"] == f"127.0.0.1:{receiver.server_port}"
    assert headers["Content-Type"] == "application/json"


def test_delivery_without_a_secret_is_not_signed(tmp_path, receiver, private):
    """There is no signature that proves nothing."""
    webhooks.deliver(finished(tmp_path, receiver.url, secret=None), State.READY)

    assert "X-BFL-Signature" not in receiver.received[0][1]


def test_ready_run_is_told_as_ready(tmp_path, receiver, private):
    """The message names the run three times, as programs look for it, and no error."""
    run = finished(tmp_path, receiver.url)

    webhooks.deliver(run, State.READY)

    message = json.loads(receiver.received[0][2])
    assert message["id"] == message["task_id"] == message["finetune_id"] == run.id
    assert (message["status"], message["error"]) == ("Ready", None)


def test_failed_run_says_why(tmp_path, receiver, private):
    """What the failed event says is the error."""
    run = finished(tmp_path, receiver.url)
    run.tell("failed", message="There is not enough memory for this run.", hint="")

    webhooks.deliver(run, State.FAILED)

    message = json.loads(receiver.received[0][2])
    assert message["status"] == "Error"
    assert message["error"] == message["message"] == "There is not enough memory for this run."


@pytest.mark.parametrize("status", [200, 202, 204])
def test_success_ends_it(tmp_path, receiver, private, status):
    """After any 2xx nothing is due any more."""
    receiver.status = status
    run = finished(tmp_path, receiver.url)
    assert webhooks.is_due(run, time.time())

    webhooks.deliver(run, State.READY)

    assert not webhooks.is_due(run, time.time() + 10**6)


def test_refused_delivery_is_due_again_after_1_5_and_30_seconds(tmp_path, receiver, private):
    """Four attempts in all, with waits that are written down instead of slept; then it is given up."""
    receiver.status = 500
    run = finished(tmp_path, receiver.url)

    for wait in (1, 5, 30):
        webhooks.deliver(run, State.READY)
        tried = run.read("webhook.json")["attempts"][-1]["time"]
        assert not webhooks.is_due(run, tried + wait - 0.1)
        assert webhooks.is_due(run, tried + wait + 0.1)
    webhooks.deliver(run, State.READY)

    assert not webhooks.is_due(run, time.time() + 10**6)
    assert len(receiver.received) == 4
    assert [a["answer"] for a in run.read("webhook.json")["attempts"]] == ["500 Internal Server Error"] * 4


def test_redirect_is_not_followed(tmp_path, receiver, private):
    """A receiver that points elsewhere gets no second request, and has not taken the delivery."""
    receiver.status, receiver.headers = 302, {"Location": receiver.url.replace("hook", "other")}
    run = finished(tmp_path, receiver.url)

    webhooks.deliver(run, State.READY)

    assert [path for path, _, _ in receiver.received] == ["/hook?a=1"]
    assert webhooks.is_due(run, time.time() + 2)


def test_nobody_listening_is_written_down(tmp_path, private):
    """A refused connection is an attempt with its reason, and is tried again."""
    with Receiver() as gone:
        url = gone.url
    run = finished(tmp_path, url)

    webhooks.deliver(run, State.READY)

    assert run.read("webhook.json")["attempts"][0]["answer"].startswith("not delivered: ")
    assert webhooks.is_due(run, time.time() + 2)


def test_this_machine_is_not_called_without_the_setting(tmp_path, receiver, monkeypatch):
    """A receiver on this machine hears nothing, and the record says how to allow it."""
    monkeypatch.delenv("FINETUNE_PRIVATE_WEBHOOKS", raising=False)
    run = finished(tmp_path, receiver.url)

    webhooks.deliver(run, State.READY)

    assert receiver.received == []
    assert "FINETUNE_PRIVATE_WEBHOOKS=1" in run.read("webhook.json")["attempts"][0]["answer"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
    ],
)
def test_address_that_is_not_public_is_refused(host, monkeypatch):
    """Loopback, private, shared, link-local and multicast addresses, also in disguise, are not called."""
    monkeypatch.delenv("FINETUNE_PRIVATE_WEBHOOKS", raising=False)

    with pytest.raises((FinetuneError, OSError)):
        webhooks.checked_address(host, 80)


@pytest.mark.parametrize("host", ["8.8.8.8", "2001:4860:4860::8888"])
def test_public_address_is_taken_as_it_is(host, monkeypatch):
    """An address of the internet is the one that is connected to."""
    monkeypatch.delenv("FINETUNE_PRIVATE_WEBHOOKS", raising=False)

    assert webhooks.checked_address(host, 443) == host


@pytest.mark.parametrize("addresses", [("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("8.8.8.8", "fe80::1")])
def test_name_with_one_private_address_is_refused(addresses, monkeypatch):
    """All addresses of a name must be public, not just the first."""
    monkeypatch.delenv("FINETUNE_PRIVATE_WEBHOOKS", raising=False)
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **how: answers)  # the network's environment

    with pytest.raises(FinetuneError, match="not a public address"):
        webhooks.checked_address("rebound.example", 80)


def test_receiver_may_have_an_ipv6_address(tmp_path, private):
    """An address in brackets is called, and named in brackets."""
    try:
        server = Receiver("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        webhooks.deliver(finished(tmp_path, server.url), State.READY)
        server.shutdown()

    assert server.received[0][1]["Host"] == f"[::1]:{server.server_port}"


def test_secret_is_not_in_the_record(tmp_path, receiver, private):
    """What is kept of a delivery holds neither the secret nor the signature."""
    run = finished(tmp_path, receiver.url)

    webhooks.deliver(run, State.READY)

    kept = (run.folder / "webhook.json").read_text()
    assert SECRET not in kept
    assert receiver.received[0][1]["X-BFL-Signature"].removeprefix("sha256=") not in kept


def test_run_without_an_address_is_never_due(tmp_path):
    """Drafts and runs that name nobody have nothing to deliver."""
    draft, silent = fakes.run(tmp_path), fakes.run(tmp_path)
    silent.write("request.json", Request(finetune_comment="x", mode="style").model_dump(mode="json"))

    assert not webhooks.is_due(draft, time.time())
    assert not webhooks.is_due(silent, time.time())


def test_the_service_tells_the_end_of_a_run_once(tmp_path, receiver, private):
    """A ready run is told in the next step of the queue, and not again."""
    run = runs.create(tmp_path)
    request = Request(finetune_comment="x", mode="style", webhook_url=receiver.url)
    run.write("request.json", request.model_dump(mode="json"))
    deliveries = webhooks.Deliveries(tmp_path)

    deliveries.tick()
    told_while_it_runs = len(receiver.received)
    run.tell("ready", files=[])
    for _ in range(100):
        deliveries.tick()
        time.sleep(0.02)

    assert told_while_it_runs == 0
    assert len(receiver.received) == 1
