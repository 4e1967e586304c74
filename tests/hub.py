"""A small real Hub on this machine: it speaks the file protocol of huggingface.co, as far as we use it.

Models are kept in memory. What can go wrong there can be told to go wrong here: a token that is asked for, a licence
that was not accepted, a connection that breaks.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

OWNER = "alice"
READER = "hf_readerreaderreader"
WRITER = "hf_writerwriterwriter"


@dataclass
class Repository:
    """A model on the Hub."""

    files: dict[str, bytes] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False
    accepted_by: tuple[str, ...] = ()
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes to announce in place of the true ones."""

    @property
    def commit(self) -> str:
        """The name of its newest state."""
        content = [(name, _etag(name, data)) for name, data in sorted(self.files.items())]
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def listing(self) -> list[dict]:
        """Its files as the tree's address lists them."""
        return [self._entry(name) for name in sorted(self.files)]

    def _entry(self, name: str) -> dict:
        data = self.files[name]
        size = self.claimed_sizes.get(name, len(data))
        entry = {"type": "file", "path": name, "size": size, "oid": _git_sha(data)}
        return entry | ({"lfs": {"oid": _etag(name, data), "size": size, "pointerSize": 134}} if _is_lfs(name) else {})


class Hub(ThreadingHTTPServer):
    """The server; its address is `url`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.tokens = {READER: "read", WRITER: "write"}
        self.cuts: dict[str, list[int]] = {}
        """After how many bytes the connection breaks, by file: once for each number."""
        self.bytes_per_second: float | None = None
        self.ignores_ranges = False
        self.requests: list[tuple[str, str]] = []
        self.sent: list[tuple[str, int, int]] = []
        """Of which file, from which byte on, how many bytes were sent."""
        self.uploads: dict[str, bytes] = {}

    def add(self, id: str, folder: Path, **more: object) -> Repository:
        """Publish a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.repositories[id] = Repository(files, **more)
        return self.repositories[id]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that listens."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def environment(url: str, home: Path, token: str = "", is_offline: bool = False) -> dict[str, str]:
    """The variables that point huggingface_hub to a server, and to a cache of its own."""
    flags = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1" if is_offline else "0"}
    return {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": token, **flags}


def use(monkeypatch, url: str, home: Path, token: str = "", is_offline: bool = False) -> None:
    """Set what huggingface_hub made of its environment when it was imported, as if it were imported again."""
    from huggingface_hub import constants

    for name, value in environment(url, home, token, is_offline).items():
        monkeypatch.setenv(name, value)
    values = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_OFFLINE": is_offline,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def _git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _etag(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_lfs(name) else _git_sha(data)


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        routes = {
            r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?": self._info,
            r"/api/models/([^/]+/[^/]+)/tree/[^/]+": self._tree,
            r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)": self._resolve,
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)/preupload/[^/]+": self._preupload,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/uploads/(\w+)": self._upload,
            r"/api/models/([^/]+/[^/]+)/commit/[^/]+": self._commit,
        }
        try:
            for pattern, answer in routes.items():
                if match := re.fullmatch(pattern, path):
                    return answer(*match.groups())
            raise _Refused(404, "There is nothing here.")
        except _Refused as refused:
            about = {"X-Error-Message": refused.message, "X-Error-Code": refused.code}
            self._answer({"error": refused.message}, refused.status, {k: v for k, v in about.items() if v})

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def _token(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return token

    def _found(self, id: str) -> Repository:
        token, repository = self._token(), self.server.repositories.get(id)
        if repository is None or (repository.is_private and not token):
            raise _Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, id: str) -> Repository:
        repository = self._found(id)
        if self.server.tokens.get(self._token()) != "write" or not id.startswith(f"{OWNER}/"):
            raise _Refused(403, "You don't have the required permissions to perform this action")
        return repository

    def _info(self, id: str) -> None:
        repository = self._found(id)
        siblings = [
            {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
            | ({"lfs": {"sha256": e["lfs"]["oid"], "size": e["size"], "pointerSize": 134}} if "lfs" in e else {})
            for e in repository.listing()
        ]
        gated = "auto" if repository.is_gated else False
        about = {"id": id, "sha": repository.commit, "private": repository.is_private, "gated": gated}
        self._answer({**about, "siblings": siblings, "tags": []})

    def _tree(self, id: str) -> None:
        self._answer(self._found(id).listing())

    def _resolve(self, id: str, name: str) -> None:
        repository, token = self._found(id), self._token()
        if repository.is_gated and token not in repository.accepted_by:
            raise _Refused(403 if token else 401, f"Access to model {id} is restricted.", "GatedRepo")
        if name not in repository.files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = repository.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        asked = None if self.server.ignores_ranges else asked
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_etag(name, data)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(name, data[start:], start)

    def _send(self, name: str, data: bytes, start: int) -> None:
        cuts = self.server.cuts.get(name)
        sent = data[: cuts.pop(0)] if cuts else data
        self.server.sent.append((name, start, len(sent)))
        if self.server.bytes_per_second is None:
            self.wfile.write(sent)
        else:
            for place in range(0, len(sent), 8192):
                self.wfile.write(sent[place : place + 8192])
                time.sleep(8192 / self.server.bytes_per_second)
        if len(sent) < len(data):
            self.close_connection = True

    def _create(self) -> None:
        asked = json.loads(self._body)
        id = f"{asked.get('organization') or OWNER}/{asked['name']}"
        token = self._token()
        if not token:
            raise _Refused(401, "Invalid username or password.")
        if self.server.tokens[token] != "write" or not id.startswith(f"{OWNER}/"):
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {id.split('/')[0]!r}")
        if id in self.server.repositories:
            return self._answer({"error": "You already created this model repo", "url": f"{self.server.url}/{id}"}, 409)
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories[id] = Repository({".gitattributes": b"*.safetensors lfs\n"}, is_private)
        self._answer({"url": f"{self.server.url}/{id}", "name": id})

    def _validate(self) -> None:
        """Whether a card's front matter can be read, as far as a test needs it."""
        content = json.loads(self._body)["content"]
        is_open = content.startswith("---\n") and "\n---" not in content[4:]
        errors = [{"message": "the front matter has no end"}] if is_open else []
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, id: str) -> None:
        self._writable(id)
        files = json.loads(self._body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if _is_lfs(f["path"]) else "regular"} for f in files]
        self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _batch(self, id: str) -> None:
        self._writable(id)
        objects = json.loads(self._body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.uploads:
                one["actions"] = {"upload": {"href": f"{self.server.url}/uploads/{one['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            raise _Refused(400, "The content is not what was announced.")
        self.server.uploads[oid] = self._body
        self._answer({})

    def _commit(self, id: str) -> None:
        repository = self._writable(id)
        for line in self._body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.uploads[value["oid"]]
            elif step["key"] == "deletedFile":
                del repository.files[value["path"]]
        self._answer(
            {"commitUrl": f"{self.server.url}/{id}/commit/{repository.commit}", "commitOid": repository.commit}
        )

    def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
