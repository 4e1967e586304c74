"""A worker that trains nothing, and executors for it. Run as a program, this file is that worker."""

import argparse
import io
import math
import random
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from finetune import dataset, runs, settings
from finetune.executors import Task
from finetune.executors.local import Local
from finetune.images import Order
from finetune.inputs import Request
from finetune.queue import Queue
from finetune.runs import LOCAL, Run
from finetune.settings import Settings
from finetune.studio import Studio


class StillExecutor:
    """An executor whose workers exist only in its list, and end when a test says so."""

    id = "still"
    title = "Still"

    def __init__(self) -> None:
        self.started: list[tuple[str, Task]] = []
        self.running: set[str] = set()

    def check(self) -> None:
        """Always ready."""

    def measure(self) -> None:
        """There is no machine to measure."""

    def start(self, run: Run, task: Task) -> None:
        """Note that a worker was asked for."""
        self.started.append((run.id, task))
        self.running.add(run.id)

    def is_running(self, run: Run) -> bool:
        """Whether the test let it live."""
        return run.id in self.running

    def stop(self, run: Run) -> None:
        """End it."""
        self.running.discard(run.id)


class PretendExecutor(Local):
    """The local executor with a worker that only tells a story."""

    id = "pretend"
    title = "Pretend"

    def __init__(self, steps: int = 100, seconds_per_step: float = 0.02) -> None:
        self._pace = [str(steps), str(seconds_per_step)]

    def command(self, run: Run, task: Task) -> list[str]:
        """This file, as a program."""
        return [sys.executable, __file__, str(run.folder), task, *self._pace]


class PretendPainter:
    """A painter that knows no model: the seed chooses a colour, and the strength how large its square is."""

    def __init__(self, pause: float = 0.0) -> None:
        self.base_model = ""
        self.loaded: list[str] = []
        self.drawn: list[Order] = []
        self._pause = pause

    def draw(self, run: Run, order: Order, progress: Callable[[float], None]) -> Image.Image:
        """Draw a square, in ten steps."""
        if self.base_model != (base_model := run.request().base_model):
            self.base_model = base_model
            self.loaded.append(base_model)
        for step in range(10):
            time.sleep(self._pause)
            progress(step / 10)
        picture = Image.new("RGB", (order.width, order.height), "white")
        side = round(min(picture.size) * (0.2 + 0.3 * order.strength))
        picture.paste(f"hsl({order.seed * 47 % 360}, 70%, 50%)", (0, 0, side, side))
        self.drawn.append(order)
        return picture

    def forget(self) -> None:
        """Give back all memory."""
        self.base_model = ""


def serve(port: int, steps: int, seconds_per_step: float) -> None:
    """Serve the page over the pretend executor, until the process is told to end."""
    from finetune.ui import serve as service

    machine = service.options(settings.read(), ["--port", str(port)])
    machine.keep_uploads_at_home()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service.launch(machine, Queue(machine, PretendExecutor(steps, seconds_per_step)))


def finetune(settings: Settings, owner: str = LOCAL, base_model: str = "demo", name: str = "Dots") -> Run:
    """A finetune that is ready, of nothing."""
    run = runs.create(settings.runs, owner)
    request = Request(finetune_comment=name, mode="style", base_model=base_model)
    run.write("request.json", request.model_dump(mode="json"))
    _finish(run)
    return run


def zip_of_pictures(path: Path, count: int = 4, with_captions: int = 2) -> Path:
    """Write a ZIP of small coloured pictures, the first of them with captions."""
    with zipfile.ZipFile(path, "w") as zip:
        for number in range(count):
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), (40 * number % 256, 90, 200 - 7 * number)).save(picture, "PNG")
            zip.writestr(f"thing{number}.png", picture.getvalue())
            if number < with_captions:
                zip.writestr(f"thing{number}.txt", f"a thing of kind {number}")
    return path


def pretend(run: Run, task: Task, steps: int, pause: float) -> None:
    """Tell what a worker would, at the pace asked for."""
    match task:
        case "caption":
            _describe(run, pause)
        case "train":
            _train(run, steps, pause)
        case "draw":
            here = replace(settings.read(), home=run.folder.parent.parent, idle_minutes=0.1)
            Studio(here, PretendPainter(pause)).work()


def _describe(run: Run, pause: float) -> None:
    mode = run.read("draft.json").get("mode") or run.request().mode
    said = run.read("descriptions.json")
    for picture in dataset.read(run).images:
        if not picture.caption:
            time.sleep(pause * 5)
            said.setdefault(mode, {})[picture.file] = f"a {mode} thing"
            run.write("descriptions.json", said)
            run.tell("caption", file=picture.file, text=f"a {mode} thing")


def _train(run: Run, steps: int, pause: float) -> None:
    run.tell("started", pid=0)
    run.tell("stage", name="encode", title="Encoding the pictures", done=0, of=4)
    request = run.request()
    rng = random.Random(request.seed)
    first = max((int(path.name) for path in run.checkpoints.glob("*")), default=0)
    if first:
        run.tell("log", message=f"Going on from step {first}.")
    else:
        _sample(run, 0, request.trigger_word)
    for step in range(first + 1, steps + 1):
        time.sleep(pause)
        if run.is_asked_to_stop():
            return run.tell("stopped", step=step - 1)
        loss = 0.6 + 0.5 * math.exp(-4 * step / steps) + rng.gauss(0, 0.12)
        run.tell("step", step=step, of=steps, loss=loss, rate=1e-4, seconds_left=(steps - step) * pause)
        if step % max(1, steps // 5) == 0:
            (run.checkpoints / str(step)).mkdir(parents=True, exist_ok=True)
            run.tell("checkpoint", step=step)
            _sample(run, step, request.trigger_word)
    _finish(run, steps * pause)


def _finish(run: Run, seconds: float = 0.0) -> None:
    run.results.mkdir(exist_ok=True)
    (run.results / "pretend.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    files = [{"name": "pretend.safetensors", "bytes": 10, "title": "LoRA"}]
    run.tell("ready", files=files, summary={"seconds": seconds, "peak_memory_mib": 12.0})


def _sample(run: Run, step: int, trigger: str) -> None:
    run.samples.mkdir(exist_ok=True)
    for index, prompt in enumerate(
        (f"a red apple in the style of {trigger}", f"a <b>cat</b> in the style of {trigger}")
    ):
        picture = Image.new("RGB", (64, 64), "white")
        size = 8 + min(20, step // 5)
        ImageDraw.Draw(picture).ellipse((32 - size, 32 - size, 32 + size, 32 + size), fill=("crimson", "teal")[index])
        picture.save(run.samples / f"step{step:06d}-{index}.png")
        run.tell("sample", step=step, index=index, prompt=prompt, file=f"step{step:06d}-{index}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("task")
    parser.add_argument("steps", type=int)
    parser.add_argument("pause", type=float)
    asked = parser.parse_args()
    pretend(Run(asked.folder), asked.task, asked.steps, asked.pause)
