"""Models of the Hub that describe pictures: any of transformers' classes for image-text-to-text, by its id.

The small one that is offered here, SmolVLM 500M, was chosen because it follows instructions, runs on a processor (its
card: 1.23 GB of memory for one picture), is under Apache 2.0, and needs no torchvision. Others of its size do not suit:
Florence-2 base (MIT, 0.23 B) describes well but cannot be asked to leave something out; LFM2-VL's licence sets
conditions; SmolVLM2 is made for videos; Moondream brings code of its own, which is never run here.

Processors that also read videos need torchvision for that part alone; they are loaded without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import hub, layouts, weights
from finetune.captioners import Answer
from finetune.errors import CaptionError, ModelError
from finetune.layouts import GIB
from finetune.weights import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from finetune.families import BaseModel
    from finetune.inputs import Mode

SIDE_PX = 512
TOKENS = 100
AT_ONCE = 4
"""Pictures on a GPU."""
ROOM_GIB = 1.5
"""For pictures, answers and torch itself, beside the weights."""
LARGEST_ON_PROCESSOR_GIB = 1.5
"""What is chosen without being asked for: larger ones take minutes for a picture."""
TASKS = {"florence2": "<MORE_DETAILED_CAPTION>", "paligemma": "caption en", "kosmos-2": "<grounding>An image of"}
"""What models are told that know fixed tasks and no instructions."""
SILENT = ("blip", "git", "vision-encoder-decoder")
"""Models that are told nothing."""
PROCESSORS = {"smolvlm": "Idefics3Processor", "qwen3_5": "Qwen3VLProcessor"}
"""Processors that do the same for pictures as the class's own, which needs a library for videos, or has none listed."""
SMALLEST = {"do_image_splitting": False, "crop_to_patches": False, "do_pan_and_scan": False}
"""Settings of processors that would cut one picture into many."""
TROUBLES = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What libraries raise for a model or a picture that they cannot deal with."""


@dataclass(frozen=True)
class VisionLanguage:
    """A model on the Hub."""

    id: str
    title: str
    source: str
    licence: str = "unknown: see its model card"
    gib: float = 0.0

    def revision(self, base: "BaseModel") -> str:
        """The commit of the files that are in the Hub's cache."""
        folder = _cached(self.source)
        return weights.revision(folder) if folder else ""

    def fits(self, base: "BaseModel", device: str, free_bytes: int) -> bool:
        """Whether its weights have room, and it is quick enough to be chosen."""
        is_quick = device != "cpu" or self.gib <= LARGEST_ON_PROCESSOR_GIB
        return is_quick and needed_gib(self.gib, device) * GIB <= free_bytes

    def load(self, base: "BaseModel", device: str, free_bytes: int, progress: Progress) -> "LoadedVisionLanguage":
        """Load it, fetched first if need be. Raises: ModelError, AccessError."""
        folder = _cached(self.source)
        if folder is None or lacking(folder):
            with hub.in_words(self.source):
                folder = weights.of_hub(self.source, self.title, ("config.json",), self._picked, progress)
        return load(self.title, folder, folder, device, free_bytes)

    def _picked(self, snapshot: Path, listed: Sequence[str]) -> list[str]:
        model_class(self.title, snapshot)
        here = [name for name in listed if "/" not in name]
        found = [name for name in here if weights.WEIGHTS.fullmatch(name)]
        if not found:
            raise ModelError(
                f"{self.title} has no weights in safetensors.", "Choose another captioner; other formats can hold code."
            )
        return found + [name for name in here if name.endswith(weights.SMALL_KINDS)]


class LoadedVisionLanguage:
    """A model with its processor in memory."""

    def __init__(self, kind: str, model: Any, processor: Any, device: str) -> None:
        self._kind, self._model, self._processor, self._device = kind, model, processor, device
        self._template = _template_of(processor)
        self.listens = kind not in (*TASKS, *SILENT)
        self.at_once = 1 if device == "cpu" else AT_ONCE

    def describe(self, pictures: "Sequence[Image]", mode: "Mode", words: str) -> list[Answer]:
        """Answer for each picture. Raises: CaptionError."""
        import torch
        from jinja2 import TemplateError

        small = [_reduced(picture) for picture in pictures]
        try:
            return self._answered(small, words)
        except torch.OutOfMemoryError as error:
            if len(pictures) == 1:
                raise CaptionError("The memory was not enough to look at it.", "Choose a smaller captioner.") from error
        except (*TROUBLES, TemplateError) as error:
            raise CaptionError(
                f"The captioner failed ({str(error).strip().splitlines()[0] if str(error).strip() else repr(error)}).",
                "Write the caption yourself, or choose another captioner.",
            ) from error
        self.at_once = 1
        torch.cuda.empty_cache()
        return [answer for picture in pictures for answer in self.describe([picture], mode, words)]

    def release(self) -> None:
        """Free the memory."""
        import gc

        import torch

        self._model = self._processor = None
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def _answered(self, pictures: "list[Image]", words: str) -> list[Answer]:
        import torch

        inputs = self._inputs(pictures, words).to(self._device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        with torch.inference_mode():
            rows = self._model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1)
        asked = inputs.get("input_ids")
        if self._model.config.is_encoder_decoder:
            start = 1
        elif asked is not None and torch.equal(rows[:, : asked.shape[1]], asked):
            start = asked.shape[1]
        else:  # what was asked is not repeated before the answer
            start = 0
        tokenizer = self._processor.tokenizer
        ends = self._ends(tokenizer)
        return [
            Answer(tokenizer.decode(row, skip_special_tokens=True), is_cut=ends.isdisjoint(row.tolist()))
            for row in rows[:, start:]
        ]

    def _inputs(self, pictures: "list[Image]", words: str) -> Any:
        options = {"padding": True, "return_tensors": "pt"}
        if self._kind in SILENT:
            return self._processor(images=pictures, return_tensors="pt")
        if self._template and self.listens:
            asked = [[{"role": "user", "content": _content(picture, words)}] for picture in pictures]
            return self._processor.apply_chat_template(
                asked,
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                enable_thinking=False,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        # Florence-2 puts the places of its pictures in by itself, and its class has a word for them all the same.
        mark = "" if self._kind == "florence2" else getattr(self._processor, "image_token", None) or ""
        text = f"{mark}{TASKS.get(self._kind, words)}"
        return self._processor(images=pictures, text=[text] * len(pictures), **options)

    def _ends(self, tokenizer: Any) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {end for end in (*listed, tokenizer.eos_token_id, tokenizer.sep_token_id) if end is not None}


def load(title: str, folder: Path, words: Path, device: str, free_bytes: int) -> LoadedVisionLanguage:
    """Load a model from a folder, with the processor and tokenizer of the same or another one.

    Raises: ModelError when it is of no known class, is damaged, or finds no room.
    """
    import torch
    from safetensors import SafetensorError

    kind, model_type = model_class(title, folder)
    _check_room(title, folder, device, free_bytes)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        processor = _processor(folder, words, model_type)
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device).eval()
    except torch.OutOfMemoryError as error:
        raise _too_large(title, layouts.weights_gib(folder), device, free_bytes) from error
    except (*TROUBLES, SafetensorError) as error:
        said = str(error).strip().splitlines()
        raise ModelError(
            f"{title} cannot be loaded as a captioner: {said[0] if said else repr(error)}",
            "Check its files, or choose another captioner.",
        ) from error
    return LoadedVisionLanguage(model_type, model.requires_grad_(False), processor, device)


def model_class(title: str, folder: Path) -> tuple[Any, str]:
    """The class of the model in a folder, and its type. Raises: ModelError when it does not describe pictures."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    model_type = layouts.read_json(folder / "config.json").get("model_type")
    if model_type not in NAMES:
        raise ModelError(
            f"{title} is a “{model_type}”, which is not known here as a model that describes pictures.",
            "Choose a model of the Hub's task image-text-to-text that needs no code of its own.",
        )
    return getattr(transformers, NAMES[model_type]), model_type


def lacking(folder: Path) -> list[str]:
    """Weights that a folder lacks."""
    return [name for name in weights.files_of(folder) if not (folder / name).exists()]


def needed_gib(gib: float, device: str) -> float:
    """What weights of this size in 16 bits take on a device, with room to work in: a processor computes in 32."""
    return gib * (2 if device == "cpu" else 1) + ROOM_GIB


def _processor(folder: Path, words: Path, model_type: str) -> Any:
    """The processor of a model, for pictures and text alone; batches are padded on the side where answers do not go."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    if model_type == "vision-encoder-decoder":
        return _Bare(transformers.AutoImageProcessor.from_pretrained(words), _tokenizer(words))
    listed = PROCESSORS.get(model_type) or PROCESSOR_MAPPING_NAMES[model_type]
    kind = getattr(transformers, listed)

    class PicturesOnly(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

    if not (words / "preprocessor_config.json").exists() and not (words / "processor_config.json").exists():
        processor = PicturesOnly(_usual_pictures(folder), _tokenizer(words))
    else:
        processor = PicturesOnly.from_pretrained(words)
    processor.tokenizer.padding_side = "left"
    for name, value in SMALLEST.items():
        if hasattr(processor.image_processor, name):
            setattr(processor.image_processor, name, value)
    return processor


class _Bare:
    """A processor for models that have none: pictures in, nothing asked."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def __call__(self, images: "list[Image]", return_tensors: str) -> Any:
        return self.image_processor(images, return_tensors=return_tensors)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _usual_pictures(folder: Path) -> Any:
    """How Qwen3-VL cuts pictures, by its config: a base model's folder may hold its tokenizer alone."""
    from transformers import Qwen2VLImageProcessorPil

    sight = layouts.read_json(folder / "config.json")["vision_config"]
    return Qwen2VLImageProcessorPil(
        patch_size=sight["patch_size"],
        temporal_patch_size=sight["temporal_patch_size"],
        merge_size=sight["spatial_merge_size"],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _template_of(processor: Any) -> str | None:
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return template["default"] if isinstance(template, dict) else template


def _content(picture: "Image", words: str) -> list[dict[str, Any]]:
    return [{"type": "image", "image": picture}, {"type": "text", "text": words}]


def _reduced(picture: "Image") -> "Image":
    small = picture.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX))
    return small


def _check_room(title: str, folder: Path, device: str, free_bytes: int) -> None:
    gib = layouts.weights_gib(folder)
    if needed_gib(gib, device) * GIB > free_bytes:
        raise _too_large(title, gib, device, free_bytes)


def _too_large(title: str, gib: float, device: str, free_bytes: int) -> ModelError:
    where = "in memory" if device == "cpu" else "on the GPU"
    return ModelError(
        f"{title} needs about {needed_gib(gib, device):.1f} GiB to describe pictures, and {free_bytes / GIB:.1f} are "
        f"free {where}.",
        "Choose a smaller captioner, or leave the field empty.",
    )


def _cached(repo: str) -> Path | None:
    """The folder of a model in the Hub's cache, whole or not. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, "config.json")
    return Path(path).parent if isinstance(path, str) else None


# Licence and parameters: model card (huggingface.co/HuggingFaceTB/SmolVLM-500M-Instruct), 0.51 B in 16 bits.
CAPTIONER = VisionLanguage(
    id="smolvlm-500m",
    title="SmolVLM 500M Instruct",
    source="HuggingFaceTB/SmolVLM-500M-Instruct",
    licence="Apache 2.0",
    gib=0.95,
)
