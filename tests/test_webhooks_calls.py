"""One POST to a real receiver on this machine, and the addresses and answers that are not put up with."""

import socket
import ssl
import subprocess
import threading
import time

import pytest
import receiver

from finetune.errors import FinetuneError
from finetune.webhooks.calls import addresses, is_public, post

HEADERS = {"Content-Type": "application/json"}


@pytest.fixture
def server():
    """A receiver that listens."""
    with receiver.listening() as made:
        yield made


@pytest.fixture
def answering():
    """Make a receiver that does with a connection what a test says; gives its address."""
    listeners = []

    def listen(answer, tls=None):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve():
            try:
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()
            except OSError:  # the test is over
                pass

        def talk(connection):
            try:
                with tls.wrap_socket(connection, server_side=True) if tls else connection as talking:
                    if not tls:
                        talking.recv(65536)
                    answer(talking)
            except OSError:  # who called has gone
                pass

        threading.Thread(target=serve, daemon=True).start()
        return f"http{'s' if tls else ''}://localhost:{listener.getsockname()[1]}/"

    yield listen
    for listener in listeners:
        listener.close()


def to(*found):
    """A resolver that answers with these addresses."""
    return lambda host, port, type: [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, type, 6, "", (address, port)) for address in found
    ]


def test_body_and_headers_arrive_as_they_are(server):
    """The receiver gets path, query, host, headers and exactly these bytes."""
    answer = post(server.url, b'{"a": 1}', {**HEADERS, "X-Delivery-Id": "7"}, allows_private=True)

    path, headers, body = server.received[0]
    assert (path, body) == ("/hook?a=1", b'{"a": 1}')
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert (headers["Content-Type"], headers["X-Delivery-Id"]) == ("application/json", "7")
    assert (answer.words, answer.is_success) == ("200 OK", True)


@pytest.mark.parametrize(("status", "is_success"), [(202, True), (204, True), (302, False), (404, False), (500, False)])
def test_only_2xx_is_success(server, status, is_success):
    """Whatever else a receiver answers, it has not taken the delivery; a redirect is not followed."""
    server.status, server.headers = status, {"Location": server.url.replace("hook", "other")}

    assert post(server.url, b"{}", HEADERS, allows_private=True).is_success is is_success
    assert [path for path, _, _ in server.received] == ["/hook?a=1"]


def test_receiver_may_have_an_address_of_version_6():
    """An address in brackets is called, and named in brackets."""
    try:
        made = receiver.listening("::1")
        with made as server:
            post(server.url, b"{}", HEADERS, allows_private=True)
    except OSError:
        pytest.skip("this machine has no IPv6")

    assert server.received[0][1]["Host"] == f"[::1]:{server.server_port}"


def test_this_machine_is_not_called_without_the_setting(server):
    """A receiver on this machine hears nothing, and the answer says how to allow it."""
    answer = post(server.url, b"{}", HEADERS)

    assert server.received == []
    assert "FINETUNE_PRIVATE_WEBHOOKS=1" in answer.words


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
        *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1", "255.255.255.255"),
        *("2130706433", "0x7f.1", "127.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:0:7f00:1::", "4000::1"),
    ],
)
def test_address_that_is_not_public_is_refused(host):
    """Loopback, private, shared, link-local, metadata and multicast addresses, also in disguise, are not called."""
    with pytest.raises((FinetuneError, OSError)):
        addresses(host, 80, allows_private=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_address_of_the_internet_is_public(address):
    """Also one of version 6 that stands for one of version 4, as networks without version 4 need it."""
    assert is_public(address)


@pytest.mark.parametrize("found", [("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("8.8.8.8", "fe80::1")])
def test_name_with_one_private_address_is_refused(found):
    """All addresses of a name must be public, not just the first."""
    with pytest.raises(FinetuneError, match="not a public address"):
        addresses("rebound.example", 80, allows_private=False, resolve=to(*found))


def test_name_that_changes_its_answer_gains_nothing(server):
    """A name is asked for once: what it says after the check is never heard, and nobody here is called."""
    answers = iter(["192.0.2.1", "127.0.0.1"])

    def rebinding(host, port, type):
        return to(next(answers))(host, server.server_port, type)

    post("http://rebound.example/", b"{}", HEADERS, allows_private=True, seconds=0.2, resolve=rebinding)

    assert next(answers) == "127.0.0.1"
    assert server.received == []


def test_connection_goes_to_the_address_that_was_checked(server):
    """The address comes from the check alone, whatever the name would say to others."""
    answer = post(
        f"http://nowhere.invalid:{server.server_port}/", b"{}", HEADERS, allows_private=True, resolve=to("127.0.0.1")
    )

    assert answer.is_success
    assert server.received[0][1]["Host"] == f"nowhere.invalid:{server.server_port}"


def test_next_address_is_tried_where_one_takes_no_connection(server):
    """A name with several addresses is reached by the one that works."""
    port = server.server_port
    answer = post(
        f"http://two.example:{port}/", b"{}", HEADERS, allows_private=True, resolve=to("127.0.0.2", "127.0.0.1")
    )

    assert answer.is_success


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:secret@example.com/", "name or a password"),
        ("http://example.com@127.0.0.1/", "name or a password"),
        ("ftp://example.com/", "none of http"),
        ("http:///hook", "none of http"),
        ("http://example.com:99999/", "port"),
        ("http://[::1/", "is none"),
        ("http://example.com/a b", "characters"),
        ("http://example.com/\r\nX-Other: 1", "characters"),
    ],
)
def test_address_that_hides_something_is_refused(url, words):
    """Names before the host, other schemes and characters that would end a line are not sent anywhere."""
    answer = post(url, b"{}", HEADERS, resolve=to("8.8.8.8"))

    assert words in answer.words
    assert "secret" not in answer.words.replace("sign with a secret", "")


def test_nobody_listening_is_said():
    """A refused connection has its reason in words."""
    with receiver.Receiver() as gone:
        url = gone.url

    assert post(url, b"{}", HEADERS, allows_private=True).words == "not delivered: nobody listens there"


def drip(connection):
    """Answer a byte at a time, for ever."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def test_receiver_that_drips_is_cut_off(answering):
    """The limit covers the whole answer: bytes that keep coming do not move it."""
    began = time.monotonic()

    answer = post(answering(drip), b"{}", HEADERS, allows_private=True, seconds=0.5)

    assert answer.words == "not delivered: no answer within 0.5 s"
    assert time.monotonic() - began < 2


def test_receiver_that_takes_nothing_is_cut_off(answering):
    """The limit covers sending: a body that nobody reads does not wait for ever."""
    still = threading.Event()
    url = answering(lambda connection: still.wait(5))

    answer = post(url, b"x" * 2**25, HEADERS, allows_private=True, seconds=0.5)
    still.set()

    assert answer.words == "not delivered: no answer within 0.5 s"


def test_tls_that_never_begins_is_cut_off(answering):
    """The limit covers TLS: a receiver that is silent then does not wait for ever."""
    still = threading.Event()
    url = answering(lambda connection: still.wait(5)).replace("http:", "https:")

    answer = post(url, b"{}", HEADERS, allows_private=True, seconds=0.5)
    still.set()

    assert answer.words == "not delivered: no answer within 0.5 s"


def test_resolver_that_hangs_is_cut_off():
    """The limit covers asking for the name."""
    still = threading.Event()

    answer = post("http://slow.example/", b"{}", HEADERS, seconds=0.3, resolve=lambda *a, **k: still.wait(5) or [])
    still.set()

    assert answer.words == "not delivered: no answer within 0.3 s"


def test_of_a_large_answer_little_is_read(answering):
    """A receiver that sends without end is left after a few KiB, and its status counts."""
    sent = []

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent.append(connection.send(b"x" * 65536))

    began = time.monotonic()
    answer = post(answering(flood), b"{}", HEADERS, allows_private=True)

    assert answer.is_success
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\n\r\n", "201 Created"),
        (b"HTTP/1.0 200 <script>alert(1)</script>\r\n\r\n", "200 OK"),
        (b"HTTP/1.1 299 password\r\n\r\n", "299"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not delivered: what answers there does not speak HTTP"),
        (b"HTTP/1.1 200 OK", "not delivered: the answer has no status"),
        (b"", "not delivered: the connection was closed without an answer"),
        (b"x" * 100_000, "not delivered: the answer has no status"),
    ],
)
def test_answer_is_kept_in_our_own_words(answering, said, words):
    """Nothing that a receiver wrote is repeated: neither what it calls its status, nor what another service says."""
    url = answering(lambda connection: connection.sendall(said))

    assert post(url, b"{}", HEADERS, allows_private=True).words == words


@pytest.fixture
def certificate(tmp_path):
    """A certificate of its own making for localhost, and its key."""
    key, made = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", made, *subject], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine has no openssl that makes certificates")
    return made, key


@pytest.fixture
def secure(answering, certificate):
    """The address of a receiver that speaks TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return answering(lambda talking: talking.recv(65536) and talking.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), context)


def test_certificate_that_is_not_trusted_is_refused(secure):
    """A receiver that vouches for itself gets nothing."""
    assert "certificate is not trusted" in post(secure, b"{}", HEADERS, allows_private=True).words


def test_certificate_must_name_the_host(secure, certificate, monkeypatch):
    """One that is trusted is good for its own name and for no other."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    named = post(secure, b"{}", HEADERS, allows_private=True)
    other = post(secure.replace("localhost", "127.0.0.1"), b"{}", HEADERS, allows_private=True)

    assert named.is_success
    assert "certificate is not trusted" in other.words
