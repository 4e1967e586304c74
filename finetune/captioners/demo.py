"""The captioner of the demo base: says which emoji a small picture shows.

It was trained on the demo base's own pictures (assets/demo-base/README.md) and ships with it. It knows animals,
plants and food, and answers with its nearest guess for anything else. It reads “a STYLE emoji of a THING”, and the
modes are made of that: a style keeps the thing alone; a character and a product are named without their colours and
parts, in the manner and before the background that the picture has.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune import instructions, settings
from finetune.captioners import Answer
from finetune.errors import ModelError
from finetune.inputs import Mode

if TYPE_CHECKING:
    from PIL.Image import Image

    from finetune.families import BaseModel
    from finetune.weights import Progress

RESOLUTION_PX = 64
TOKENS = 16
COLOURS = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "red": (220, 40, 40),
    "orange": (245, 145, 40),
    "yellow": (250, 220, 70),
    "green": (70, 165, 80),
    "blue": (60, 120, 220),
    "purple": (140, 75, 180),
    "pink": (245, 150, 190),
    "brown": (120, 80, 50),
}
PLAIN_DEVIATION = 24
"""How far a background may vary and still be told as one colour. Units: of 255."""


class DemoCaptioner:
    """A vision encoder-decoder of two million weights."""

    id = "demo"
    title = "Demo captioner (emoji)"
    licence = "Apache 2.0"
    source = ""
    gib = 0.0

    def revision(self, base: "BaseModel") -> str:
        """Nothing more than which file it is made of."""
        weights = settings.read().demo_base / "captioner" / "model.safetensors"
        return str(weights.stat().st_size) if weights.exists() else ""

    def fits(self, base: "BaseModel", device: str, free_bytes: int) -> bool:
        """Always."""
        return True

    def load(self, base: "BaseModel", device: str, free_bytes: int, progress: "Progress") -> "LoadedDemoCaptioner":
        """Load it onto a torch device. Raises: ModelError when its folder is missing or broken."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, VisionEncoderDecoderModel

        folder = settings.read().demo_base / "captioner"
        try:
            model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"The demo captioner in {folder} cannot be loaded.",
                "Fetch the project again; its files are incomplete.",
            ) from error
        return LoadedDemoCaptioner(model, tokenizer)


class LoadedDemoCaptioner:
    """Describes pictures one at a time."""

    listens = False
    at_once = 1

    def __init__(self, model, tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def describe(self, pictures: "Sequence[Image]", mode: Mode, words: str) -> list[Answer]:
        """Describe pictures as the mode wants it; an answer is empty where no thing was read."""
        return [Answer(_as_mode_wants(self._read(picture), picture, mode)) for picture in pictures]

    def release(self) -> None:
        """It is too small to be worth it."""

    def _read(self, image: "Image") -> str:
        import numpy
        import torch
        from PIL.Image import Resampling

        square = image.convert("RGB").resize((RESOLUTION_PX, RESOLUTION_PX), Resampling.LANCZOS)
        pixels = torch.from_numpy(numpy.asarray(square).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            row = self._model.generate(
                pixel_values=pixels.to(self._model.device), max_new_tokens=TOKENS - 1, num_beams=1, do_sample=False
            )
        return self._tokenizer.decode(row[0], skip_special_tokens=True).strip()


def _as_mode_wants(text: str, picture: "Image", mode: Mode) -> str:
    medium, _, thing = text.partition(" of ")
    if not medium or not thing:
        return ""
    if mode is Mode.GENERAL:
        return text
    if mode is Mode.STYLE:
        return thing
    thing = instructions.without_leaks(thing.removesuffix(" face"), mode, "")
    return f"{medium} of {thing}{_before(picture)}"


def _before(picture: "Image") -> str:
    """The background, if it has one colour, as the end of a caption: what lies along the edges."""
    import numpy

    pixels = numpy.asarray(picture.convert("RGB").resize((32, 32))).astype(float)
    edge = numpy.concatenate([pixels[:2].reshape(-1, 3), pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    if edge.std(axis=0).max() > PLAIN_DEVIATION:
        return ""
    mean = edge.mean(axis=0)
    nearest = min(COLOURS, key=lambda name: numpy.abs(mean - COLOURS[name]).sum())
    return f" on a {nearest} background"


CAPTIONER = DemoCaptioner()
