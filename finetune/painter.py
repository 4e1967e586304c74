"""A base model and a LoRA that stay in memory between pictures.

The base is loaded once for all finetunes on it; of another finetune only the LoRA is exchanged. Prompts that were
encoded are remembered, so that the text encoder can go where the memory does not hold all parts.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import PIL.Image

from finetune import formats, images, lora, machine, plan, preview, registry, trainer, weights
from finetune.errors import ModelError, OutOfMemoryError
from finetune.families import BaseModel, Encoding, Model
from finetune.formats import changes
from finetune.formats.changes import BROKEN
from finetune.images import Order
from finetune.machine import Machine
from finetune.memory import Fit, Size
from finetune.runs import Run
from finetune.settings import Settings

PROMPTS_KEPT = 32
"""Each takes a few MiB of the processor's memory."""


@dataclass
class _Loaded:
    """A base model in memory, how it fits, and what was added to it since."""

    name: str
    base: BaseModel
    model: Model
    size: Size
    fit: Fit
    machine: Machine
    """What was free before anything was loaded."""
    lora: tuple[object, ...] = ()
    """Which file the network's LoRA was read from; empty while it has none that is whole."""
    rank: int = 0
    """Of the network's LoRA layers; 0 while it has none."""
    prompts: OrderedDict[str, Encoding] = field(default_factory=OrderedDict)


class Painter:
    """Draws with finetunes, one base model at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loaded: _Loaded | None = None

    @property
    def base_model(self) -> str:
        """The base model that is loaded, as finetunes name it; empty while there is none."""
        return self._loaded.name if self._loaded else ""

    def draw(self, run: Run, order: Order, progress: Callable[[float], None]) -> PIL.Image.Image:
        """Draw an order with a finetune. Raises: FinetuneError."""
        try:
            with trainer.memory_in_words():
                return _drawn(self._have(run, order), run, order, progress)
        except OutOfMemoryError as error:
            if error.__cause__ is None:  # it was foreseen, and nothing was done yet
                raise
        # Here the error is gone, which held on to what fills the memory; what is free now is measured when loading.
        self.forget()
        raise OutOfMemoryError(
            f"Memory ran out while {order.width} × {order.height} pixels were drawn.",
            "Order a smaller picture, or close other programs.",
        )

    def forget(self) -> None:
        """Give back all memory."""
        if self._loaded:
            self._loaded.model.release("text", "vae", "transformer")
            self._loaded = None

    def _have(self, run: Run, order: Order) -> _Loaded:
        """The base model of a finetune, loaded unless it is the one in memory."""
        base = images.base_of(run)
        if self._loaded is None or (self._loaded.base.id, self._loaded.base.source) != (base.id, base.source):
            self.forget()
            self._loaded = _load(base, run.request().base_model, order.width * order.height, self.settings)
        return self._loaded


def _load(base: BaseModel, name: str, pixels: int, settings: Settings) -> _Loaded:
    """Open a base model as it fits; its weights follow when they are needed. Raises: ModelError, OutOfMemoryError."""
    if not weights.is_present(base):
        raise ModelError(
            f"The files of {base.title} are not on this machine any more.",
            "Start any run with this base model: that fetches them again.",
        )
    machine.keep_within(settings, machine.best_device(settings))
    found = machine.measure(settings)
    family = registry.families()[base.family]
    size = family.size(base)
    fit = plan.for_drawing(base, size, max(pixels, base.resolution_px**2), found)
    folder = weights.folder(base, lambda title, done, of: None)
    return _Loaded(name, base, family.load(base, folder, found.device, fit), size, fit, found)


def _drawn(loaded: _Loaded, run: Run, order: Order, progress: Callable[[float], None]) -> PIL.Image.Image:
    model, usual = loaded.model, loaded.base.sampler
    pixels = order.width * order.height
    keeps_text = plan.room_for_text(loaded.base, loaded.size, pixels, loaded.fit, loaded.machine)
    prompt, empty = (_encoded(loaded, text) for text in (order.prompt, ""))
    if not keeps_text:
        model.release("text")
    _put_on(loaded, run, order.strength)
    guidance = usual.guidance_scale if order.guidance is None else order.guidance
    sampler = replace(usual, steps=order.steps or usual.steps, guidance_scale=guidance)
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        progress(done / (sampler.steps + 1))  # the picture must still come out of its latents

    [picture] = preview.draw(model, [prompt], empty, order.seed, (order.width, order.height), sampler, after_step)
    return picture


def _encoded(loaded: _Loaded, text: str) -> Encoding:
    """A prompt as the network reads it; the last ones are remembered."""
    kept = loaded.prompts
    if text not in kept:
        kept[text] = {name: tensor.cpu() for name, tensor in loaded.model.encode_prompts([text]).items()}
    kept.move_to_end(text)
    while len(kept) > PROMPTS_KEPT:
        kept.popitem(last=False)
    return kept[text]


def _put_on(loaded: _Loaded, run: Run, strength: float) -> None:
    """Let the network draw with a finetune's LoRA; one that it has already is not read again. Raises: ModelError."""
    network = loaded.model.transformer
    if strength:
        _read_lora(loaded, run.lora)
    if loaded.rank:
        lora.strengthen(network, strength)


def _read_lora(loaded: _Loaded, path: Path | None) -> None:
    if path is None:
        raise ModelError("The LoRA of this finetune is not there any more.", "Train it again.")
    about = path.stat()
    key = (path, about.st_mtime_ns, about.st_size)  # a run that went on has another file of that name
    if key == loaded.lora:
        return
    loaded.lora = ()
    with changes.read(path, formats.PREFIX) as file:
        layers = dict(file.walk())
    state = {f"{name}.lora_A.weight": layer.a for name, layer in layers.items()}
    state |= {f"{name}.lora_B.weight": layer.b for name, layer in layers.items()}
    _have_rank(loaded, next(iter(layers.values())).a.shape[0])
    try:
        lora.load(loaded.model.transformer, state)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"“{path.name}” does not fit {loaded.base.title}.", BROKEN) from error
    loaded.lora = key


def _have_rank(loaded: _Loaded, rank: int) -> None:
    """Let the network have LoRA layers of a rank."""
    network, family = loaded.model.transformer, registry.families()[loaded.base.family]
    if rank == loaded.rank:
        return
    lora.remove(network)
    loaded.rank = 0
    lora.add(network, family.lora_targets, rank, seed=0)
    loaded.rank = rank
