"""What a run hands over, in its results folder: LoRA files, model card, captions, settings, and a report for `full`.

Each LoRA file is read back by another program's rules before the run may call itself ready.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from finetune import dataset, formats, lora, parts, preview, publish, shelf, weights
from finetune.dataset import exchange
from finetune.encodings import Encoded
from finetune.errors import ModelError
from finetune.families import BaseModel, Model
from finetune.fidelity import Fidelity
from finetune.formats import About, Files, Proof
from finetune.recipe import TrainConfig
from finetune.runs import Run

LARGEST_DIFFERENCE = 2
"""Between a sample of the trainer and the same one drawn through the file, in float32. Units: steps of 255."""
LARGEST_MEAN_DIFFERENCE = 3.0
"""Between the LoRA in memory and the file, both through diffusers' pipeline, in 16 bits: the mean over all colours."""
OURS = "-comfyui"
LONGEST_NAME, SLUG_LETTERS, SLUG_BYTES = 200, 80, 120
"""Files may have names of 255 bytes; the rest is for endings."""
TITLES = {
    "-comfyui.safetensors": "LoRA for ComfyUI",
    ".safetensors": "LoRA",
    "README.md": "Model card",
    "captions.zip": "Captions",
    "settings.json": "Settings",
    "fidelity.json": "Fidelity report",
}


@dataclass(frozen=True)
class Verified:
    """What reading the files back has shown."""

    proof: Proof
    same_picture: str
    """In a sentence."""
    difference: float
    """Between the trainer's sample and the same one through the file."""

    @property
    def checks(self) -> list[str]:
        """In sentences."""
        return [self.same_picture, self.proof.in_words()]


@dataclass(frozen=True)
class Handover:
    """What a run's results are made of."""

    run: Run
    config: TrainConfig
    base: BaseModel
    model: Model
    encoded: Encoded
    trained: list[str]
    step: int

    @property
    def about(self) -> About:
        """What the files say of the run beyond its settings."""
        content_hash = dataset.content_hash(self.run)
        return About(
            dataset_hash=content_hash,
            dataset_name=shelf.name_of(self.run, content_hash),
            pictures=len(self.trained),
            steps=self.step,
            base_revision=weights.revision(self.model.folder) if self.model.folder else "",
        )

    def save(self, state: lora.State) -> Files:
        """Write the LoRA files, in place of what was in the results folder."""
        results = self.run.results
        results.mkdir(exist_ok=True)
        for old in results.iterdir():
            old.unlink()
        name, kept = slug(self.config.name), parts.precision(self.config.device)
        return formats.save(state, results, name, self.config, self.base, self.about, kept)

    def verify(self, files: Files) -> Verified:
        """Read both files back, and draw the first sample anew through diffusers' pipeline.

        Raises: ModelError if a file is broken, or draws something else than the trainer.
        """
        proof = formats.compare(files, self.base, self.model.transformer)
        redrawn, is_exact = self._redrawn(files.diffusers), parts.precision(self.config.device).itemsize == 4
        with Image.open(self.run.samples / f"step{self.step:06d}-0.png") as sample:
            drawn = sample.convert("RGB") if is_exact else self._redrawn(None)
        largest, mean = preview.differences(drawn, redrawn)
        if (largest > LARGEST_DIFFERENCE) if is_exact else (mean > LARGEST_MEAN_DIFFERENCE):
            raise ModelError(
                f"The saved LoRA draws another picture than the trainer did (they differ by {largest} of 255, by "
                f"{mean:.1f} on average).",
                "Please report this run: the file in its results folder is not to be trusted.",
            )
        seen = f"at most {largest} of 255" if is_exact else f"{mean:.1f} of 255 on average"
        what = "the trainer’s sample again" if is_exact else "what the LoRA in memory draws there"
        same = f"Loaded into diffusers’ own pipeline, the file draws {what} (difference {seen})."
        return Verified(proof, same, float(largest if is_exact else mean))

    def _redrawn(self, lora: Path | None) -> Image.Image:
        """The first sample through diffusers' pipeline, with a file or with the LoRA in memory.

        In 16 bits, a pipeline of another order of operations draws a picture that differs by more than a wrong file
        would: so both sides are drawn by the same one there.
        """
        side, encoded = self.config.sample_px, self.encoded
        return self.model.draw_with_file(lora, encoded.prompts[0], encoded.empty, self.config.seed, (side, side))

    def complete(self, files: Files, verified: Verified, report: Fidelity | None) -> list[dict[str, Any]]:
        """Write what belongs to the LoRA, and list all files for the page."""
        results, config = self.run.results, self.config
        exchange.write_captions(results / "captions.zip", dataset.read(self.run).images, self.trained)
        (results / "settings.json").write_text(json.dumps(config.as_dict(), indent=1), encoding="utf-8")
        if report:
            (results / "fidelity.json").write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")
        samples = [
            (prompt, f"{publish.SAMPLES}/step{self.step:06d}-{index}.png")
            for index, prompt in enumerate(config.sample_prompts)
        ]
        text = formats.model_card(files, config, self.base, self.about, verified.proof, samples)
        (results / "README.md").write_text(text, encoding="utf-8")
        return listing(self.run)


def listing(run: Run) -> list[dict[str, Any]]:
    """The files of the results folder with what they are called on the page."""
    kinds = list(TITLES)
    found = [(kinds.index(_kind(path)), path) for path in run.results.iterdir()]
    order = [kinds.index(kind) for kind in (".safetensors", "-comfyui.safetensors", *kinds[2:])]
    return [
        {"name": path.name, "bytes": path.stat().st_size, "title": TITLES[kinds[kind]]}
        for kind, path in sorted(found, key=lambda pair: order.index(pair[0]))
    ]


def slug(name: str) -> str:
    """A file name made of a finetune's name, which every system takes, also with an ending behind it."""
    words = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name[:LONGEST_NAME]))
    short = words[:SLUG_LETTERS].encode()[:SLUG_BYTES].decode(errors="ignore").strip("-.")
    while short.lower().endswith(OURS):  # that ending tells our two files apart
        short = short[: -len(OURS)].strip("-.")
    return f"lora-{short}" if exchange.RESERVED.fullmatch(short) else short or "lora"


def _kind(path: Path) -> str:
    return next(ending for ending in TITLES if path.name.endswith(ending))
