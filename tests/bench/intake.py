"""Measure how long it takes until pictures of a phone are in a run folder, and what memory that takes.

    python tests/bench/intake.py --pictures 300 --megapixels 12 [--format JPEG]

The pictures are made first: hills of colour with grain, which JPEG packs about as badly as photographs. The process
that measures stands for the service, and reads uploads as it does.
"""

import argparse
import io
import json
import resource
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
import pillow_heif  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402

from finetune import dataset, runs  # noqa: E402

MIB = 2**20


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """A picture that is as hard to pack as one of a camera."""
    rng = numpy.random.default_rng(seed)
    hills = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=numpy.uint8))
    details = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=numpy.uint8))
    smooth = hills.resize((width, height), Image.Resampling.BICUBIC)
    fine = details.resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((width, height), 12).convert("RGB")
    return Image.blend(Image.blend(smooth, fine, 0.25), grain, 0.15)


def zip_of(path: Path, count: int, megapixels: float, format: str) -> int:
    """Write a ZIP of photographs, every second one with a caption; returns its size."""
    pillow_heif.register_heif_opener()
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    scenes = [photograph(seed, width, width * 3 // 4) for seed in range(4)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip:
        for number in range(count):
            scene = scenes[number % len(scenes)]
            scene.paste((number % 256, 90, 160), (number, number, number + 400, number + 300))
            file = io.BytesIO()
            scene.save(file, format, quality=88)
            zip.writestr(f"IMG_{number:04}.{format.lower()}", file.getvalue())
            if number % 2:
                zip.writestr(f"IMG_{number:04}.txt", f"a view of number {number}")
    return path.stat().st_size


class Watch(threading.Thread):
    """The peak memory of this process and of those that it started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ours, self.theirs, self.is_over = 0, 0, threading.Event()

    def run(self) -> None:
        """Look again and again until it is over."""
        me = psutil.Process()
        while not self.is_over.wait(0.05):
            self.ours = max(self.ours, me.memory_info().rss)
            for child in me.children():
                try:
                    self.theirs = max(self.theirs, child.memory_info().rss)
                except psutil.Error:
                    continue


def _children_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    """Make the pictures, read them as an upload, print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--format", default="JPEG", choices=("JPEG", "PNG", "WEBP", "HEIF"))
    parser.add_argument("--zip", type=Path, help="keep the ZIP here, and use it if it is there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.zip or Path(folder) / "in.zip"
        size = path.stat().st_size if path.exists() else zip_of(path, asked.pictures, asked.megapixels, asked.format)
        run = runs.create(Path(folder) / "runs")
        watch, before = Watch(), psutil.Process().memory_info().rss
        watch.start()
        told = []
        started = time.monotonic()
        found = dataset.unpack(path, run, lambda done, of: told.append(time.monotonic() - started))
        seconds = time.monotonic() - started
        watch.is_over.set()
        stored = sum(file.stat().st_size for file in run.images.iterdir())
        figures = {
            "pictures": len(found.images),
            "zip_mib": round(size / MIB),
            "stored_mib": round(stored / MIB),
            "seconds": round(seconds, 1),
            "processor_seconds": round(_children_seconds(), 1),
            "seconds_to_the_first": round(told[1], 2),
            "seconds_each": round(seconds / len(found.images), 3),
            "service_grew_mib": round((watch.ours - before) / MIB),
            "reader_peak_mib": round(watch.theirs / MIB),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
