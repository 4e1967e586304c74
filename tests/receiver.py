"""A receiver of webhooks on this machine, which keeps what it is sent and answers what a test says."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """`may_answer` holds answers back until a test sets it; `has_received` is set by the first request."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Handler)
        self.status, self.headers, self.received = 200, {}, []
        self.may_answer, self.has_received = threading.Event(), threading.Event()
        self.may_answer.set()
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self.server_port}/hook?a=1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        self.server.has_received.set()
        self.server.may_answer.wait(20)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver that listens."""
    with Receiver(address) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
