"""Measure the service under load: `python tests/bench/service.py`, and with `--real` while the demo base is trained.

Starts the real service on a folder of its own. First a `file_data` of 200 MB is submitted by another process, while
this one asks for /v1/health every 20 ms: the longest answer is the longest stall that anybody saw. Then 1,000 requests
for one result are sent at once while a run is at work, every ten seconds and then without a pause: with `--real` a
training run, whose steps per second are compared. Who asks runs on the same cores, and other programs disturb all of
this: the load of the machine is told.
"""

import argparse
import asyncio
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
EXAMPLE = ROOT / "assets" / "example" / "twemoji.zip"
MIB = 2**20
PAUSE = 0.02
EVERY = 10
PRETEND = "import sys, pretend; pretend.serve(int(sys.argv[1]), 5000, 0.05)"


class Service:
    """A running service."""

    def __init__(self, home: Path, is_real: bool) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = ["app.py", "--port", str(self.port)] if is_real else ["-c", PRETEND, str(self.port)]
        paths = os.pathsep.join((str(ROOT), str(TESTS)))
        environment = {**os.environ, "FINETUNE_HOME": str(home), "PYTHONPATH": paths}
        self.home = home
        self.process = psutil.Popen([sys.executable, *program], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while b"ok" not in self.get("/v1/health"):
            time.sleep(0.2)

    def get(self, path: str) -> bytes:
        """What a path gives; nothing while nobody answers."""
        try:
            with self.connected() as connection:
                connection.request("GET", path)
                return connection.getresponse().read()
        except OSError:
            return b""

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection to it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            yield connection
        finally:
            connection.close()

    def submit(self, zip_path: Path, **fields: object) -> str:
        """The id of a small finetune."""
        data = base64.b64encode(zip_path.read_bytes()).decode()
        with self.connected() as connection:
            body = json.dumps({"file_data": data, "finetune_comment": "bench", "mode": "style", **fields})
            connection.request("POST", "/v1/finetune", body, {"Content-Type": "application/json"})
            return json.load(connection.getresponse())["id"]

    def is_pending(self, id: str) -> bool:
        """Whether a run is still at work."""
        return json.loads(self.get(f"/v1/get_result?id={id}"))["status"] == "Pending"

    def delete(self, id: str) -> None:
        """Make way for another run."""
        with self.connected() as connection:
            connection.request("POST", "/v1/delete_finetune", json.dumps({"finetune_id": id}))
            connection.getresponse().read()


class Watch(threading.Thread):
    """Samples the memory of the service, and apart from it that of the processes which it starts."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.idle = process.memory_info().rss
        self.peak = self.idle
        self.children = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Until it is ended."""
        while not self.ended.wait(PAUSE):
            self.peak = max(self.peak, self.process.memory_info().rss)
            self.children = max(self.children, sum(map(_rss, self.process.children())))


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def noise_zip(path: Path, most_bytes: int) -> Path:
    """A ZIP of about this size, of pictures that cannot be compressed."""
    rng = numpy.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip:
        for number in range(1000):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (1200, 1600, 3), dtype=numpy.uint8)).save(
                picture, "PNG", compress_level=0
            )
            if zip.fp.tell() + picture.tell() > most_bytes:
                break
            zip.writestr(f"{number:03}.png", picture.getvalue())
    return path


def send(port: int, body: Path) -> None:
    """The program of the process that submits."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    size = str(body.stat().st_size)
    with body.open("rb") as file:
        connection.request("POST", "/v1/finetune", file, {"Content-Type": "application/json", "Content-Length": size})
        sent = time.perf_counter() - started
        answer = connection.getresponse()
        id = json.load(answer).get("id", "")
    print(json.dumps({"id": id, "status": answer.status, "sent": sent, "answered": time.perf_counter() - started}))


def write_body(zip_path: Path, path: Path) -> Path:
    """The JSON that submits a ZIP."""
    with path.open("wb") as file, zip_path.open("rb") as zip:
        file.write(b'{"finetune_comment": "noise", "mode": "general", "file_data": "')
        while piece := zip.read(3 * MIB):
            file.write(base64.b64encode(piece))
        file.write(b'"}')
    return path


def stalls(service: Service, until: subprocess.Popen) -> list[float]:
    """How long /v1/health took, asked every 20 ms until a process has ended."""
    seconds = []
    with service.connected() as connection:
        while until.poll() is None:
            started = time.perf_counter()
            connection.request("GET", "/v1/health")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - started)
            time.sleep(max(0.0, PAUSE - seconds[-1]))
    return seconds


def large(service: Service, folder: Path) -> None:
    """Submit 200 MB, and say what that cost."""
    body = write_body(noise_zip(folder / "noise.zip", 150_000_000), folder / "body.json")
    quiet = stalls(service, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"]))
    watch = Watch(service.process)
    watch.start()
    command = [sys.executable, __file__, "--send", str(service.port), str(body)]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    busy = stalls(service, sender)
    watch.ended.set()
    told = json.loads(sender.stdout.read())
    service.delete(told["id"])
    print(f"file_data of {body.stat().st_size / 1e6:.0f} MB in JSON, load {os.getloadavg()[0]:.1f}")
    print(f"  answer {told['status']}: sent in {told['sent']:.1f} s, answered after {told['answered']:.1f} s")
    print(f"  service: {watch.idle / MIB:.0f} MiB idle, {watch.peak / MIB:.0f} MiB at most", end=" ")
    print(f"(+{(watch.peak - watch.idle) / MIB:.0f}); the process that reads the ZIP: {watch.children / MIB:.0f} MiB")
    for name, seconds in (("idle", quiet), ("meanwhile", busy)):
        print(f"  /v1/health, {name}: {_in_words(seconds)}, of {len(seconds)}")


async def crowd(port: int, id: str, count: int, seconds: float, every: float) -> tuple[list[float], int, int]:
    """Ask for a result so many times at once, in rounds of new connections; returns times, errors and rounds."""
    times: list[float] = []
    errors = rounds = 0
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        await asyncio.sleep(max(0.0, began + rounds * every - time.monotonic()))
        asked = [ask(port, id) for _ in range(count)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            errors += not isinstance(answer, float)
            times += [answer] if isinstance(answer, float) else []
        rounds += 1
    return times, errors, rounds


async def ask(port: int, id: str) -> float:
    """Seconds until the whole of one right answer is there, from before connecting."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        head = f"GET /v1/get_result?id={id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or json.loads(body)["id"] != id:
        raise ValueError(head)
    return time.perf_counter() - started


def steps(service: Service, id: str) -> list[float]:
    """When each step of a run was told."""
    lines = (service.home / "runs" / id / "events.jsonl").read_text().splitlines()
    return [event["time"] for event in map(json.loads, lines) if event["kind"] == "step"]


def polled(service: Service, count: int, seconds: float) -> None:
    """Many ask for one result while it is worked on."""
    id = service.submit(EXAMPLE, iterations=1000, finetune_type="full", priority="quality")
    while len(steps(service, id)) < 20:
        assert service.is_pending(id), "the run failed"
        time.sleep(0.5)
    began = time.time()
    time.sleep(seconds)
    alone = rate(service, id, began)
    print(f"{count} requests at once for the result of a run at work: {alone:.2f} steps a second without")
    for name, every in ((f"every {EVERY} s", EVERY), ("again as soon as all are answered", 0)):
        began = time.time()
        times, errors, rounds = asyncio.run(crowd(service.port, id, count, seconds, every))
        during = rate(service, id, began)
        assert service.is_pending(id), "the run ended too soon to compare"
        print(f"  {name}: {rounds} rounds, {errors} errors of {len(times) + errors}, {_in_words(times)}", end="; ")
        print(f"{during:.2f} steps a second ({during / alone - 1:+.0%}), load {os.getloadavg()[0]:.1f}")


def rate(service: Service, id: str, since: float) -> float:
    """Steps a second since then."""
    now = time.time()
    return sum(since <= step < now for step in steps(service, id)) / (now - since)


def _in_words(seconds: list[float]) -> str:
    twentieths = statistics.quantiles(seconds, n=20)
    figures = {"p50": statistics.median(seconds), "p95": twentieths[-1], "most": max(seconds)}
    return ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in figures.items())


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", action="store_true", help="train the demo base instead of pretending")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--send", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.send:
        return send(int(asked.send[0]), Path(asked.send[1]))
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder) / "home", asked.real)
        try:
            if not asked.real:
                large(service, Path(folder))
            polled(service, asked.requests, asked.seconds)
        finally:
            for process in (*service.process.children(recursive=True), service.process):
                process.terminate()
            service.process.wait()


if __name__ == "__main__":
    main()
