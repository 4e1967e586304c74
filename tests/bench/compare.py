"""Compare our worker with a plain loop, side by side: `python tests/bench/compare.py`.

Same base, pictures, steps and batch, one process after the other, in turns and in alternating order, because other
programs disturb the machine. Ours goes the whole real way: ZIP, captions, encodings, training with samples, LoRA, and
its verification. What the plain loop does, and in which points it is favoured, stands in plain.py. Variants:
- ours: `python -m finetune train` as it is, which draws four samples before, five times during, and after training;
- ours, two rounds: the same with samples before and after training only;
- plain: the klein script's defaults; nothing is drawn, nothing is checked;
- plain, text too: as the FLUX.1 script, which encodes captions in every step;
- plain, same LoRA: its defaults, but with our rank and layers;
- plain, cached: our rank and layers, latents and text encoded once: what is left of the difference is the loop's;
- plain, samples: its defaults, with as many rounds of four pictures as ours draws, in the script's way.
Steps are those after the first tenth: their median, and their quickest tenth, which other programs disturb least. The
whole run is from the start of the process to its end, and likewise its processor time, which a loaded machine lengthens
little. Memory is the most that the processes held together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from finetune import captions, dataset, inputs, recipe, registry, runs  # noqa: E402
from finetune.memory import Fit  # noqa: E402
from finetune.runs import Run  # noqa: E402

MIB = 2**20
TIMES = {"seconds_per_step": 1000, "quick_seconds_per_step": 1000, "seconds": 1, "processor_seconds": 1}


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    seconds_per_step: float
    quick_seconds_per_step: float
    seconds: float
    processor_seconds: float
    memory_mib: float
    load: float
    """Of the machine, just before."""


def ours(asked: argparse.Namespace, folder: Path) -> Measured:
    """The command line, as a person starts it."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in _request(asked).items()]
    home = folder / "home"
    command = [sys.executable, "-m", "finetune", "train", str(asked.pictures), f"--output={folder}", *options]
    watched = _watch(command, asked, home)
    (run,) = runs.all_in(home / "runs")
    return _measured(_seconds_per_step(run), watched)


def ours_in_two_rounds(asked: argparse.Namespace, folder: Path) -> Measured:
    """The worker alone, told to draw samples only before and after training; unpacking takes hundredths of a second."""
    run = runs.create(folder / "home" / "runs")
    found = dataset.unpack(asked.pictures, run)
    request = inputs.read({"finetune_comment": "bench", **_request(asked)})
    base = registry.base_model(request.base_model)
    known = [picture.caption for picture in found.images if picture.caption]
    prompts = captions.sample_prompts(request.mode, request.trigger_word, known, (), base.sample_things, 4)
    config = replace(
        recipe.resolve(request, base, prompts, _device(), Fit(recipe.BATCH[request.priority])), sample_every=0
    )
    run.write("request.json", request.model_dump(mode="json"))
    run.write("config.json", config.as_dict())
    watched = _watch([sys.executable, "-m", "finetune", "work", str(run.folder)], asked, folder / "home")
    return _measured(_seconds_per_step(run), watched)


def plain(*options: str, same_lora: bool = False) -> Callable[[argparse.Namespace, Path], Measured]:
    """A variant of the plain loop."""

    def run(asked: argparse.Namespace, folder: Path) -> Measured:
        base = registry.base_model(asked.base)
        output = folder / "measured.json"
        command = [sys.executable, str(Path(__file__).with_name("plain.py")), base.source, str(asked.pictures)]
        command += [str(output), f"--steps={asked.steps}", f"--threads={asked.threads}", *options]
        command += [f"--resolution={base.resolution_px}", f"--text-tokens={base.text_tokens}"]
        command += ["--text-layers", *map(str, base.text_layers)]
        if same_lora:
            command += [f"--rank={asked.rank}", f"--targets={registry.families()[base.family].lora_targets}"]
        watched = _watch(command, asked, folder / "home")
        return _measured(json.loads(output.read_text(encoding="utf-8"))["seconds_per_step"], watched)

    return run


VARIANTS = {
    "ours": ours,
    "plain": plain(),
    "plain, samples": plain("--validation-rounds=7"),
    "ours, two rounds": ours_in_two_rounds,
    "plain, same LoRA": plain(same_lora=True),
    "plain, text too": plain("--encode-text-every-step"),
    "plain, cached": plain("--cache-latents", same_lora=True),
}


def _request(asked: argparse.Namespace) -> dict[str, object]:
    return {
        "base_model": asked.base,
        "trigger_word": "TOK",
        "mode": "style",
        "finetune_type": "lora",
        "lora_rank": asked.rank,
        "iterations": asked.steps,
    }


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _watch(command: list[str], asked: argparse.Namespace, home: Path) -> dict[str, float]:
    """Run a program to its end. Returns what it and its children took."""
    threads = str(asked.threads)
    environment = {"FINETUNE_HOME": str(home), "FINETUNE_THREADS": threads, "OMP_NUM_THREADS": threads}
    load, started, most, processor = os.getloadavg()[0], time.perf_counter(), 0, {}
    with tempfile.TemporaryFile() as told:
        process = psutil.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=told, stderr=told)
        while process.poll() is None:
            most = max(most, _look(process, processor))
            with suppress(psutil.TimeoutExpired):
                process.wait(0.1)
        seconds = time.perf_counter() - started
        if process.returncode:
            told.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, told.read()[-2000:])
    spent = sum(processor.values())
    return {"seconds": seconds, "processor_seconds": spent, "memory_mib": most / MIB, "load": load}


def _look(process: psutil.Process, processor: dict[int, float]) -> int:
    """The bytes that a process and its children hold now; what they have computed so far is noted, because a worker
    outlives the program that started it."""
    total = 0
    with suppress(psutil.NoSuchProcess):  # it has just ended
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
            times = one.cpu_times()
            processor[one.pid] = times.user + times.system
    return total


def _measured(steps: list[float], watched: dict[str, float]) -> Measured:
    steady = steps[len(steps) // 10 :]
    return Measured(statistics.median(steady), statistics.quantiles(steady, n=10)[0], **watched)


def _seconds_per_step(run: Run) -> list[float]:
    """Between two steps with nothing between them, by the times of the events."""
    events, _ = run.events()
    told = zip(events, events[1:], strict=False)
    return [b["time"] - a["time"] for a, b in told if a["kind"] == b["kind"] == "step"]


def main() -> None:
    """Run all variants in turns and print the table; every run is also written down as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--pictures", type=Path, default=ROOT / "assets" / "example" / "twemoji.zip")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16, choices=(16, 32))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="instead of all variants")
    parser.add_argument("--out", type=Path, help="append every run as a line of JSON")
    asked = parser.parse_args()
    asked.pictures = asked.pictures.resolve()
    chosen = asked.only or list(VARIANTS)
    found: dict[str, list[Measured]] = {name: [] for name in chosen}
    for turn in range(asked.repeats):
        for name in chosen if turn % 2 == 0 else reversed(chosen):
            with tempfile.TemporaryDirectory() as folder:
                measured = VARIANTS[name](asked, Path(folder))
            found[name].append(measured)
            if asked.out:
                with open(asked.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"variant": name, **measured.__dict__}) + "\n")
    print(f"{asked.steps} steps, rank {asked.rank}, {asked.threads} threads, median of {asked.repeats}")
    columns = ("ms/step", "x", "quick", "x", "run s", "x", "cpu s", "x", "MiB", "load")
    print(f"{'':18}" + "".join(f"{column:>8}" for column in columns))
    for name, all_of_it in found.items():
        values = {
            field: statistics.median(getattr(one, field) for one in all_of_it)
            for field in Measured.__dataclass_fields__
        }
        line = ""
        for field, factor in (*TIMES.items(), ("memory_mib", 1), ("load", 1)):
            line += f"{values[field] * factor:8.1f}"
            if field in TIMES:  # neighbours in time saw the same machine
                pairs = zip(all_of_it, found[chosen[0]], strict=True)
                line += f"{statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs):8.2f}"
        print(f"{name:18}{line}")
    print(f"x: how many times what “{chosen[0]}” takes.")


if __name__ == "__main__":
    main()
