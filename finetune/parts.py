"""The parts of a base model: read from its folder when first needed, freed when done.

What all families share: one folder per part as published on the Hub, the device, the precision, errors in words.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safetensors import SafetensorError, safe_open

from finetune import layouts
from finetune.errors import ModelError
from finetune.families import BaseModel
from finetune.layouts import GIB
from finetune.memory import Fit

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

SAMPLED_BYTES = 32 * 2**20
FROM_FILE = "file"  # the name of the adapter that a pipeline reads from a file
MARK = "\ue000"  # a letter that no prompt has


@dataclass
class Parts:
    """A base model in memory, part by part. A family's model derives from it and says which classes the parts have."""

    base: BaseModel
    folder: Path | None
    device: str
    fit: Fit = field(default_factory=Fit)
    _parts: dict[str, Any] = field(default_factory=dict, repr=False)

    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)

    @staticmethod
    def kinds() -> Mapping[str, type]:
        """The class of each part, by its folder's name."""
        raise NotImplementedError

    @property
    def transformer(self) -> "nn.Module":
        """The network that LoRA is added to."""
        return self.part("transformer")

    def part(self, name: str) -> Any:
        """A part, loaded when it is first asked for. Raises: ModelError."""
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def release(self, *kinds: str) -> None:
        """Free "text", "vae" or "transformer"."""
        import gc

        import torch

        for kind in kinds:
            for name in self.text_parts if kind == "text" else (kind,):
                self._parts.pop(name, None)
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def original(self, name: str) -> "Tensor":
        """A weight of the transformer as the base has it, read from its files. Raises: ModelError."""
        path = self._weight_files().get(name)
        if path is None:
            raise ModelError(f"{self.base.title} has no weight “{name}” in {self.folder}.", "Fetch its files again.")
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    def draw_through(
        self, pipeline_class: Any, lora: Path | None, seed: int, size: tuple[int, int], **encoded: "Tensor"
    ) -> "Image":
        """Draw one picture through a pipeline of diffusers around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        import torch

        parts = {name: self.part(name) for name in ("transformer", "vae", "scheduler")}
        pipeline = pipeline_class(**parts, **dict.fromkeys((*self.text_parts, *self.tokenizers)))
        pipeline.set_progress_bar_config(disable=True)
        with self.with_file(pipeline, lora):
            return pipeline(
                **{name: tensor.to(self.device) for name, tensor in encoded.items()},
                width=size[0],
                height=size[1],
                num_inference_steps=self.base.sampler.steps,
                guidance_scale=self.base.sampler.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]

    def save_through(self, pipeline_class: Any, folder: Path) -> BaseModel:
        """Write all parts as a folder that a pipeline of diffusers reads; returns the base model that it makes."""
        pipeline_class(**{part: self.part(part) for part in self.kinds()}).save_pretrained(folder)
        return replace(self.base, source=str(folder))

    @contextmanager
    def with_file(self, pipeline: Any, lora: Path | None) -> Iterator[None]:
        """Let a diffusers pipeline around the parts in memory draw with a LoRA file, and put back what was there.

        Without a file it draws with what is there. Raises: ModelError when diffusers does not take the file, or not all
        of it.
        """
        if lora is None:
            yield
            return
        transformer = self.transformer
        with _adapters_kept(transformer), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            try:
                read = pipeline.lora_state_dict(lora.parent, weight_name=lora.name)
                pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name=FROM_FILE)
            except (ValueError, RuntimeError, OSError, KeyError, AssertionError) as error:
                raise ModelError(f"diffusers does not take “{lora.name}”: {error}") from error
            offered = {key.split(".lora_A.")[0] for key in read if ".lora_A." in key}
            names = {name for name, _ in transformer.named_parameters()}
            taken = {layer for layer in offered if _file_weight(layer) in names}
            if not taken or taken != offered:
                raise ModelError(f"“{lora.name}” has {len(offered)} layers, of which diffusers takes {len(taken)}.")
            transformer.set_adapter(FROM_FILE)
            for layer in taken:  # computed as the trained LoRA is, so that only what the file holds can differ
                for weight in (_file_weight(layer), _file_weight(layer).replace(".lora_A.", ".lora_B.")):
                    transformer.get_parameter(weight).data = transformer.get_parameter(weight).data.float()
            yield

    def fingerprint(self, kind: str) -> str:
        """What "text" (encoders and tokenizers) or "vae" is made of: another value once its files are exchanged."""
        names = (*self.tokenizers, *self.text_parts) if kind == "text" else (kind,)
        return fingerprint(*(self.folder / name for name in names)) if self.folder else ""

    def _weight_files(self) -> dict[str, Path]:
        """The file of each weight of the transformer."""
        folder = self.folder / "transformer"
        for index in folder.glob("*.safetensors.index.json"):
            weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in weights.items()}
        found: dict[str, Path] = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def unread(self, tokenize: Callable[..., Any], prompt: str, template: Callable[[str], str] = str) -> str:
        """The end of a prompt that lies beyond the base's text tokens, once it is in its template; empty if none."""
        text = template(prompt)
        spans = tokenize(text, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= self.base.text_tokens:
            return ""
        kept = tokenize(text, return_offsets_mapping=True, truncation=True, max_length=self.base.text_tokens)
        read = max(end for _, end in kept["offset_mapping"]) - template(MARK).index(MARK)
        return prompt[max(0, read) :].strip()

    def text_states(self, rows: Mapping[str, "Tensor"]) -> "Tensor":
        """The hidden states of the base's text layers, side by side. Shapes: rows (B, N); returns (B, N, C)."""
        import torch

        rows = {name: tensor.to(self.device) for name, tensor in rows.items()}
        with torch.no_grad():
            states = self.part("text_encoder")(**rows, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        # a text encoder that does not fit the device has its layers in several places
        return torch.cat([states.hidden_states[layer].to(self.device) for layer in self.base.text_layers], dim=-1)

    def _load(self, name: str) -> Any:
        kind = self.kinds()[name]
        if self.folder is None:
            raise ValueError(f"a model without a folder has no {name}")
        if name in self.tokenizers or not hasattr(kind, "dtype"):  # a scheduler
            part = opened(self.base, lambda: kind.from_pretrained(self.folder, subfolder=name))
            return _with_template(part, self.folder / name / "chat_template.json")
        from finetune import footprint  # loads torch

        how = text_placement(self.base.text_encoder_gib, self.device) if name in self.text_parts else {}
        is_placed = bool(how)
        if name in self.text_parts and self.base.text_layers:
            how["config"] = opened(self.base, lambda: self._shortened(kind, name))
        dtype = precision(self.device)
        with _quiet():
            loaded = opened(
                self.base, lambda: kind.from_pretrained(self.folder, subfolder=name, torch_dtype=dtype, **how)
            )
        if name == "transformer":
            loaded = footprint.place(loaded, self.fit, self.device)
        elif not is_placed:
            loaded = loaded.to(self.device)
        return loaded.eval().requires_grad_(False)

    def _shortened(self, kind: type, name: str) -> Any:
        """The config of a text encoder without the layers above the last one that is read.

        One more layer than is read is kept: the states after the very last one are normalised. Raises: ModelError.
        """
        config = kind.config_class.from_pretrained(self.folder, subfolder=name)
        text, last = config.get_text_config(), max(self.base.text_layers)
        if last > text.num_hidden_layers:
            raise ModelError(
                f"The text encoder of {self.base.title} has {text.num_hidden_layers} layers, but layer {last} is read.",
                "Choose a base model whose text encoder is that of a known one.",
            )
        text.num_hidden_layers = min(text.num_hidden_layers, last + 1)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
        return config


def text_placement(need_gib: float, device: str) -> dict[str, Any]:
    """What to tell transformers' `from_pretrained` so that a text encoder that is larger than the free memory of a GPU
    lies in the processor's memory in part, and comes layer by layer; empty where it fits."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    free = int(0.9 * torch.cuda.mem_get_info(device)[0])
    if need_gib * GIB <= free:
        return {}
    number = torch.device(device).index or 0
    return {"device_map": "auto", "max_memory": {number: free, "cpu": sys.maxsize}}


def flow_times(scheduler: Any, steps: int, mu: float | None = None) -> "Tensor":
    """The flow times that a pipeline visits with its scheduler, from 1 down to 0. Shapes: (steps + 1,)."""
    import numpy

    times = None if scheduler.config.get("use_flow_sigmas") else numpy.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(steps, sigmas=times, mu=mu)
    return scheduler.sigmas.clone()


def noise(shape: tuple[int, ...], seed: int, dtype: "torch.dtype") -> "Tensor":
    """What diffusers draws on the processor for a seed: in 16 bits it draws other numbers than in 32."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positions(*lengths: int) -> "Tensor":
    """Coordinates of each token on a grid of so many sides, in order. Shapes: (tokens, sides), float32."""
    import torch

    return torch.cartesian_prod(*[torch.arange(length, dtype=torch.float32) for length in lengths])


def precision(device: str) -> "torch.dtype":
    """float32 on a CPU, where bfloat16 is emulated and about a hundred times slower."""
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def autocast(device: str) -> "torch.autocast":
    """bfloat16 on a GPU; on a CPU all stays in float32."""
    import torch

    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")


def opened(base: BaseModel, load: Callable[[], Any]) -> Any:
    """Run a library's loader and put its errors into words. Raises: ModelError."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and ("out of memory" in str(error) or "allocate memory" in str(error)):
            raise
        raise ModelError(
            f"{base.title} cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}",
            "Check that its files are complete, or fetch them again.",
        ) from error


def fingerprint(*folders: Path) -> str:
    """Tell the files of folders from other ones by their names, sizes and content; empty if there is no file.

    Of a file that is larger than 32 MiB, blocks from all over it are read: training moves every weight, so that is as
    sure as reading all of it, and quick. Times of files are left out, because a copy has others.
    """
    hashed = hashlib.blake2b(digest_size=16)
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    for path in files:
        hashed.update(f"{path.name} {path.stat().st_size}\n".encode())
        _add_sample(path, hashed)
    return hashed.hexdigest() if files else ""


def _with_template(part: Any, path: Path) -> Any:
    """Give a tokenizer the chat template that an older processor keeps in a file of its own."""
    if getattr(part, "chat_template", "") is None and path.is_file():
        part.chat_template = layouts.read_json(path)["chat_template"]
    return part


@contextmanager
def _adapters_kept(transformer: "nn.Module") -> Iterator[None]:
    """Put back, afterwards, which LoRA a network has, whether it is in use, and what of it learns."""
    learning = {name: weight.requires_grad for name, weight in transformer.named_parameters()}
    before = transformer.active_adapters() if getattr(transformer, "peft_config", None) else []
    was_off = before and any(getattr(layer, "disable_adapters", False) is True for layer in transformer.modules())
    try:
        if before:
            transformer.enable_adapters()
        yield
    finally:
        if before:
            transformer.set_adapter(before)
        if FROM_FILE in getattr(transformer, "peft_config", {}):
            transformer.delete_adapters(FROM_FILE)
        if was_off:
            transformer.disable_adapters()
        for name, weight in transformer.named_parameters():
            weight.requires_grad_(learning.get(name, False))


def _file_weight(layer: str) -> str:
    """The name in the network of the first factor that a pipeline read from a file for a layer."""
    return f"{layer.removeprefix('transformer.')}.lora_A.{FROM_FILE}.weight"


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers not list the layers that are left out."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _add_sample(path: Path, hashed: "hashlib._Hash") -> None:
    block = 2**20
    size = path.stat().st_size
    with open(path, "rb") as file:
        for start in range(0, size, max(block, size * block // SAMPLED_BYTES)):
            file.seek(start)
            hashed.update(file.read(block))
