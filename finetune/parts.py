"""The parts of a base model: read from its folder when first needed, freed when done.

What all families share: one folder per part as published on the Hub, the device, the precision, errors in words.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safetensors import SafetensorError, safe_open

from finetune import footprint
from finetune.errors import ModelError
from finetune.families import BaseModel
from finetune.memory import Fit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SAMPLED_BYTES = 32 * 2**20


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

    @contextmanager
    def with_file(self, pipeline: Any, lora: Path) -> Iterator[None]:
        """Let a diffusers pipeline around the parts in memory draw with a LoRA file, and put back what was there.

        Raises: ModelError when diffusers does not take the file, or not all of it.
        """
        transformer = self.transformer
        before = list(getattr(transformer, "peft_config", {}))
        if before:
            transformer.disable_adapters()
        try:
            try:
                pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="file")
            except (ValueError, RuntimeError, OSError) as error:
                raise ModelError(f"diffusers does not take “{lora.name}”: {error}") from error
            taken = sum(".lora_A.file." in name for name, _ in transformer.named_parameters())
            with safe_open(lora, "pt") as file:
                offered = sum(".lora_A." in key for key in file.keys())  # noqa: SIM118
            if taken != offered:
                raise ModelError(f"“{lora.name}” has {offered} layers, of which diffusers takes {taken}.")
            transformer.set_adapter("file")
            transformer.enable_adapters()
            yield
        finally:
            if "file" in getattr(transformer, "peft_config", {}):
                transformer.delete_adapters("file")
            if before:
                transformer.set_adapter(before)
                transformer.enable_adapters()

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

    def _load(self, name: str) -> Any:
        kind = self.kinds()[name]
        if self.folder is None:
            raise ValueError(f"a model without a folder has no {name}")
        if not hasattr(kind, "dtype") or name in self.tokenizers:  # tokenizers and schedulers
            return opened(self.base, lambda: kind.from_pretrained(self.folder, subfolder=name))
        more = footprint.loading(self.fit, self.device) if name == "transformer" else {}
        dtype = precision(self.device)
        loaded = opened(self.base, lambda: kind.from_pretrained(self.folder, subfolder=name, torch_dtype=dtype, **more))
        placed = loaded if more else loaded.to(self.device)
        return placed.eval().requires_grad_(False)


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


def _add_sample(path: Path, hashed: "hashlib._Hash") -> None:
    block = 2**20
    size = path.stat().st_size
    with open(path, "rb") as file:
        for start in range(0, size, max(block, size * block // SAMPLED_BYTES)):
            file.seek(start)
            hashed.update(file.read(block))
