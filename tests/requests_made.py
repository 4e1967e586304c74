"""Requests as routes see them, without a server."""

from starlette.requests import Request


def asked(headers=None, method="GET", path="/", scheme="http", server=("127.0.0.1", 7860), client="10.0.0.7", **more):
    """A request with these headers."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "scheme": scheme}
    return Request({**scope, "server": server, "client": (client, 5000), "headers": raw, **more})
