"""What this machine can do: its device, memory and pace, measured by a process of its own, because the service loads no
torch."""

import importlib.util
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import ConfigError
from finetune.settings import Settings

if TYPE_CHECKING:
    import torch

FILE = "machine.json"
SECONDS = {"cuda": 0.3, "cpu": 0.2}
"""How long products are timed."""
SIDE = {"cuda": 8192, "cpu": 512}
"""Of the square matrices: large enough for a device to show what it can do."""


@dataclass(frozen=True)
class Machine:
    """What a run may use. Not supported: the GPUs of Apple, which do not say how much of their memory is free."""

    device: str
    """cpu, or the GPU with the most free memory: cuda:0."""
    name: str
    total_bytes: int
    """Of the device's memory, as far as FINETUNE_MEMORY_GIB allows."""
    free_bytes: int
    processor_free_bytes: int
    """Free memory of the processor, where weights can wait that find no place on a GPU."""
    teraflops: float
    """What it reaches in large matrix products in the precision that training computes in."""
    cores: int
    can_pack: bool
    """Whether the library is there that packs weights and optimiser states into fewer bits."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device has a memory of its own, and 16-bit arithmetic."""
        return self.device != "cpu"


def measure(settings: Settings) -> Machine:
    """Measure this machine, in about a second once torch is loaded; this process computes with the faster number of
    threads from then on."""
    import torch

    torch.set_num_threads(settings.threads)
    device = best_device(settings)
    pace = _teraflops(torch.device(device))
    if device == "cpu" and settings.threads > 1:  # where other programs use the cores, one thread can be the faster way
        torch.set_num_threads(1)
        if (alone := _teraflops(torch.device(device))) > pace:
            pace = alone
        else:
            torch.set_num_threads(settings.threads)
    available = _available()
    free, total, name = available, _total(), f"Processor with {settings.threads} of {os.cpu_count()} cores"
    if device != "cpu":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)  # what torch itself takes on a GPU is gone by now, as in a run
        name = torch.cuda.get_device_name(device)
    most = settings.memory_bytes or total
    return Machine(
        device=device,
        name=name,
        total_bytes=min(total, most),
        free_bytes=min(free, most),
        processor_free_bytes=available,
        teraflops=round(pace, 4),
        cores=settings.threads,
        can_pack=importlib.util.find_spec("bitsandbytes") is not None,
    )


def measure_into(settings: Settings) -> Machine:
    """Measure this machine and keep what was found, for `read`."""
    found = measure(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    part = settings.home / f"{FILE}.part"
    part.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    os.replace(part, settings.home / FILE)
    return found


def read(home: Path) -> Machine | None:
    """What was measured last; nothing if that was never, or by another version."""
    try:
        return Machine(**json.loads((home / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def best_device(settings: Settings) -> str:
    """The device of the settings; of several GPUs the one with the most free memory, unless one is named.

    Raises: ConfigError when a GPU is asked for and torch finds none.
    """
    import torch

    if settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"FINETUNE_DEVICE is “{settings.device}”, but torch finds no GPU.",
            "Install a torch that is built for it, or set FINETUNE_DEVICE to cpu.",
            "FINETUNE_DEVICE",
        )
    if settings.device not in ("auto", "cuda"):
        return settings.device
    free = {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}
    return f"cuda:{max(free, key=lambda number: free[number])}"


def free_bytes(settings: Settings, device: str) -> int:
    """How much memory of a device is free now, as far as FINETUNE_MEMORY_GIB allows."""
    import torch

    free = _available() if device == "cpu" else torch.cuda.mem_get_info(device)[0]
    return min(free, settings.memory_bytes or free)


def keep_within(settings: Settings, device: str) -> None:
    """Hold this process to FINETUNE_MEMORY_GIB on a GPU: beyond it, torch says that the memory is full."""
    import torch

    if settings.memory_bytes and torch.device(device).type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.memory_bytes / total), device)


def _teraflops(device: "torch.device") -> float:
    """The best rate over a few products: other programs can only slow it down."""
    import torch

    side, dtype = SIDE[device.type], torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(side, side, device=device, dtype=dtype)

    def once() -> float:
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # asking for a value waits for the device
        return time.perf_counter() - started

    once()
    times, until = [], time.perf_counter() + SECONDS[device.type]
    while time.perf_counter() < until:
        times.append(once())
    return 2 * side**3 / min(times) / 1e12


def _total() -> int:
    import psutil

    return min(psutil.virtual_memory().total, _container_limit())


def _available() -> int:
    import psutil

    return min(psutil.virtual_memory().available, _container_limit() - psutil.Process().memory_info().rss)


def _container_limit() -> int:
    """What a container grants this process on Linux: the machine's own figures do not tell."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return int(path.read_text())
        except (OSError, ValueError):  # there is no such file, or it says “max”
            continue
    return 2**62
