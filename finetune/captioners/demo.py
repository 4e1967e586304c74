"""The captioner of the demo base: says which emoji a small picture shows.

It was trained on the demo base's own pictures (assets/demo-base/README.md) and ships with it. It knows animals,
plants and food, and answers with its nearest guess for anything else.
"""

from typing import TYPE_CHECKING

from finetune import settings
from finetune.errors import CaptionError, ModelError
from finetune.inputs import Mode

if TYPE_CHECKING:
    from PIL.Image import Image

RESOLUTION_PX = 64
TOKENS = 16


class DemoCaptioner:
    """A vision encoder-decoder of two million weights."""

    id = "demo"
    title = "Demo captioner (emoji)"

    def load(self, device: str) -> "LoadedDemoCaptioner":
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

    def __init__(self, model, tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def caption(self, image: "Image", mode: Mode) -> str:
        """Describe a picture as the mode wants it: everything, only the content, or only what is around the subject.

        Raises: CaptionError when nothing could be said.
        """
        text = self._read(image)
        medium, _, thing = text.partition(" of ")
        if not thing:
            raise CaptionError(f"The captioner had nothing to say (it said “{text}”).", "Write the caption yourself.")
        return {
            Mode.GENERAL: text,
            Mode.STYLE: thing,
            Mode.CHARACTER: f"{medium} on a white background",
            Mode.PRODUCT: f"{medium} on a white background",
        }[mode]

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


CAPTIONER = DemoCaptioner()
