"""The base model's own text encoder, where that can see: nothing more is downloaded.

FLUX.3 reads prompts with Qwen3-VL 4B. Its published class has eyes and can answer; whether the published files hold
all of it is looked up in the files. FLUX.2 klein reads with Qwen3, which has text alone. FLUX.2 dev reads with Mistral
Small 3, which can see, but takes 48 GB, and its processor needs torchvision.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from finetune import layouts, weights
from finetune.captioners import vlm
from finetune.captioners.vlm import LoadedVisionLanguage
from finetune.errors import ModelError
from finetune.layouts import GIB
from finetune.weights import Progress

if TYPE_CHECKING:
    from finetune.families import BaseModel

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
CAN_SEE = ("qwen3_vl", "qwen3_5", "qwen2_5_vl", "qwen2_vl")


class OwnEncoder:
    """The text encoder of the base model that is trained."""

    id = "own"
    title = "The base model’s own encoder"
    licence = "that of the base model"
    source = ""
    gib = 0.0

    def revision(self, base: "BaseModel") -> str:
        """The base model and its commit."""
        folder = weights.here(base)
        return f"{base.source} {weights.revision(folder)}" if folder else ""

    def fits(self, base: "BaseModel", device: str, free_bytes: int) -> bool:
        """Whether the base is on this machine, can see, and finds room on a GPU."""
        folder = weights.here(base)
        has_room = device != "cpu" and vlm.needed_gib(base.text_encoder_gib, device) * GIB <= free_bytes
        return has_room and folder is not None and can_see(folder / ENCODER)

    def load(self, base: "BaseModel", device: str, free_bytes: int, progress: Progress) -> LoadedVisionLanguage:
        """Load the encoder with all that it needs to answer. Raises: ModelError."""
        folder = weights.folder(base, progress)
        if not can_see(folder / ENCODER):
            raise ModelError(
                f"The text encoder of {base.title} cannot describe pictures.",
                "Leave the field empty: a captioner is chosen.",
            )
        return vlm.load(f"{base.title}’s text encoder", folder / ENCODER, folder / TOKENIZER, device, free_bytes)


def can_see(encoder: Path) -> bool:
    """Whether a folder holds a whole model that sees and answers, and not only what reads prompts."""
    if not (encoder / "config.json").is_file():
        return False
    config = layouts.read_json(encoder / "config.json")
    text = config.get("text_config") or {}
    if config.get("model_type") not in CAN_SEE or not text.get("num_hidden_layers"):
        return False
    names = _names(encoder)
    layers = {int(found[1]) for name in names if (found := re.search(r"(?<!visual\.)\blayers\.(\d+)\.", name))}
    has_head = any("lm_head" in name for name in names) or config.get("tie_word_embeddings", True)
    has_eyes = any(".visual." in f".{name}" for name in names)
    return has_eyes and has_head and len(layers) >= text["num_hidden_layers"]


def _names(folder: Path) -> set[str]:
    """The names of all weights in a folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(layouts.read_json(index)["weight_map"])
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError):
        return set()


CAPTIONER = OwnEncoder()
