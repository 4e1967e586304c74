"""Ask every route what nobody would ask, as its own description allows, and see that the answers are as described.

It starts the service with a pretended worker, at home and then with a key, makes finetunes, and lets schemathesis ask.
The tests do without it: `python -m venv fuzz && fuzz/bin/pip install schemathesis==4.32.5`, then
`python tests/bench/fuzz_routes.py fuzz/bin/schemathesis`; more options after that are given to schemathesis.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

PROJECT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
SECONDS_TO_WAIT = 60
# Wrong keys are counted: after some, the answer is 429. tests/test_api_openapi.py sees that each route asks for a key.
USUAL = ["--max-examples=60", "--seed=1", "--continue-on-failure", "--exclude-checks=ignored_auth"]
# What a schema cannot say is no finding: whether a text is a ZIP, a base can use a picture, or a finetune is over.
CONFIG = """
[dictionaries.ids]
values = {ids}
[dictionaries.doomed]
values = {doomed}
[parameters]
"path.id" = {{ dictionary = "ids", probability = 0.7 }}
"query.id" = {{ dictionary = "ids", probability = 0.7 }}
"query.finetune_id" = {{ dictionary = "ids", probability = 0.7 }}
"body.finetune_id" = {{ dictionary = "ids", probability = 0.7 }}
[[operations]]
include-path-regex = "/v1/(finetune|.*-finetuned|finetunes|finetunes/.*/(events|resume))$"
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "403", "404", "422", "429"]
[[operations]]
include-path = "/v1/delete_finetune"
parameters = {{ "body.finetune_id" = {{ dictionary = "doomed", probability = 0.7 }} }}
"""


def main(schemathesis: str, options: list[str]) -> int:
    """Fuzz at home, then with a key; returns how many of the two found something."""
    found = 0
    for has_key in (False, True):
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            _service(Path(folder), has_key) as (url, key),
        ):
            print(f"\n== {'with a key' if has_key else 'at home'}\n", flush=True)
            ids, doomed = [[_finetune(url, key, Path(folder)) for _ in range(2)] for _ in range(2)]
            config = Path(folder) / "schemathesis.toml"
            config.write_text(CONFIG.format(ids=json.dumps(ids), doomed=json.dumps(doomed)), encoding="utf-8")
            headers = ["--header", f"x-key: {key}"] if key else []
            command = [schemathesis, "--config-file", str(config), "run", f"{url}openapi.json"]
            found += subprocess.run([*command, *USUAL, *headers, *options], cwd=folder, check=False).returncode != 0
    return found


@contextmanager
def _service(home: Path, has_key: bool) -> Iterator[tuple[str, str]]:
    """The service as a process of its own, with a key if it is to ask for one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ("WAITING", "WAITING_EACH", "IMAGES_WAITING", "IMAGES_WAITING_EACH")
    environment = {**os.environ, **{f"FINETUNE_{name}": "1000000" for name in limits}, "FINETUNE_HOME": str(home)}
    environment["FINETUNE_IDLE_MINUTES"] = "1"  # what draws outlives the service by as much
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    key = _new_key(environment) if has_key else ""
    command = [sys.executable, "-c", f"import pretend; pretend.serve({port}, 20, 0.01)"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait(lambda: _ask(url, "v1/health"))
        yield url, key
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _new_key(environment: dict[str, str]) -> str:
    program = "from finetune import keys, settings; print(keys.new(settings.read(), 'fuzz'))"
    made = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return made.stdout.strip()


def _finetune(url: str, key: str, folder: Path) -> str:
    """Make a finetune, and wait until it is ready."""
    import pretend

    pictures = pretend.zip_of_pictures(folder / "pictures.zip").read_bytes()
    fields = urlencode({"finetune_comment": "fuzzed", "mode": "style"})
    id = _ask(url, f"v1/finetune?{fields}", pictures, {"x-key": key, "Content-Type": "application/zip"})["id"]
    _wait(lambda: _ask(url, f"v1/get_result?id={id}")["status"] == "Ready")
    return id


def _ask(url: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> dict:
    with urllib.request.urlopen(urllib.request.Request(url + path, body, headers or {}), timeout=20) as answer:
        return json.load(answer)


def _wait(is_done) -> None:
    end = time.monotonic() + SECONDS_TO_WAIT
    while time.monotonic() < end:
        with suppress(OSError):
            if is_done():
                return
        time.sleep(0.2)
    raise SystemExit("The service did not get there within a minute.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
