"""Measure on a GPU what needs one: `python tests/bench/gpu.py --out FILE`. Needs no network and no weights.

Networks have their full size and random weights, built from the records of the base models; latents and texts are
random. Every measurement is a line of JSON in FILE as soon as it is known; one that fails is written down with its
error, and the next one goes on. `--tiny` runs the same code on toy networks and the processor in a minute, so that it
is known to run. Sections:
- ceiling: bfloat16 products of large matrices, the card's measured best;
- lora: a step at 512 and 1024 px, batches of 1 to 4, nothing, half and all recomputed, and compiled: seconds, memory,
  TFLOP/s of the arithmetic that a step needs (recomputation does not count) as a share of the ceiling, and the
  planner's estimate of the memory;
- full: full fine-tuning of klein-4B as several fits do it;
- packed: a LoRA step with frozen weights of 8 and 4 bits;
- run: 300 iterations of klein-4B at 512 px with the real worker, from a random base on the local disk to the file.
Targets: without recomputation at 1024 px 55 % of the ceiling, 65 % compiled, for klein-4B and FLUX.1; `run` under 60 s.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from finetune import (  # noqa: E402
    dataset,
    footprint,
    inputs,
    lora,
    parts,
    recipe,
    registry,
    runs,
    settings,
    toys,
    trainer,
)
from finetune.families import BaseModel, Encoding, Family, Model  # noqa: E402
from finetune.inputs import FinetuneType  # noqa: E402
from finetune.memory import Demand, Fit, needs  # noqa: E402
from finetune.optimiser import Optimiser  # noqa: E402

MODELS = ("flux2-klein-base-4b", "flux1-dev", "flux2-klein-base-9b", "flux3-klein-base", "flux2-dev")
TEXT_TOKENS = {"flux3": 160}  # two windows: what a caption takes; the other families pad to the record's number
RANK = 16
ATTENTION_BACKWARD = 2.5  # of its forward pass, in flash attention; a product with a frozen weight costs once its own
FULL_FITS = {
    "float32 masters": Fit(weight_bits=16),
    "kahan": Fit(weight_bits=16, rounding="kahan"),
    "stochastic, 8-bit": Fit(weight_bits=16, rounding="stochastic", optimiser="adamw8bit"),
    "stochastic, adafactor, fused": Fit(weight_bits=16, rounding="stochastic", optimiser="adafactor", is_fused=True),
}


@dataclass(frozen=True)
class Bench:
    """What is measured, and where it is written."""

    device: str
    is_tiny: bool
    out: Path
    steps: int

    def tell(self, section: str, **values: object) -> None:
        """Write a measurement down."""
        line = json.dumps({"section": section, **values})
        print(line, flush=True)
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def attempt(self, section: str, measure: Callable[[], dict], **values: object) -> dict:
        """Measure and write down what came out, or what went wrong: the next measurement must go on."""
        found: dict = {}
        try:
            found = measure()
        except Exception as error:  # whatever it is, it belongs into the file
            found = {"error": repr(error)[:500], "trace": traceback.format_exc()[-1500:]}
        self.tell(section, **values, **found)
        gc.collect()
        if self.device != "cpu":
            torch.compiler.reset()
            torch.cuda.empty_cache()
        return found

    def sizes_px(self) -> tuple[int, ...]:
        """The sides of the pictures."""
        return (64,) if self.is_tiny else (1024, 512)

    def shares(self) -> tuple[float, ...]:
        """Of the blocks that are recomputed."""
        return (0.0, 1.0) if self.is_tiny else (0.0, 0.5, 1.0)

    def counts(self) -> tuple[int, ...]:
        """Pictures in a batch."""
        return (1, 4) if self.is_tiny else (1, 2, 3, 4)

    def free_bytes(self) -> int:
        """Of the device; on a processor nothing is left out for lack of it."""
        return 2**62 if self.device == "cpu" else torch.cuda.mem_get_info()[0]


def known(name: str, is_tiny: bool) -> tuple[Family, BaseModel]:
    """A base model and its family; in its place a toy of that family."""
    base = registry.base_model(name)
    family = registry.families()[base.family]
    return family, (family.tiny().base if is_tiny else base)


def build(family: Family, base: BaseModel, device: str, fit: Fit) -> Model:
    """A model of which only the transformer is there, with random weights."""
    kind = type(family.load(base, Path(), device, fit))
    with torch.device("meta"):
        network = kind.kinds()["transformer"](**base.architecture)
    if device != "meta":
        is_whole = fit.weight_bits >= 16 and not fit.is_offloaded
        network = nn.Module.to(network, parts.precision(device)).to_empty(device=device if is_whole else "cpu")
        _fill(network)
        network = footprint.place(network, fit, device)
    network.eval().requires_grad_(False)
    return kind(base, None, device, fit, _parts={"transformer": network})


@torch.no_grad()
def _fill(network: nn.Module) -> None:
    """Random weights; the same numbers again and again, because drawing billions of them takes minutes."""
    some = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    for tensor in (*network.parameters(), *network.buffers()):
        block = some.to(tensor)
        for piece in tensor.view(-1).split(len(block)):
            piece.copy_(block[: len(piece)])


def batch_of(model: Model, size_px: int, count: int) -> tuple[Tensor, Encoding]:
    """Random latents and texts."""
    config, base = model.transformer.config, model.base
    side = size_px // model.patch_px
    device = model.device
    draw = (
        {"device": device}
        if device == "meta"
        else {"generator": torch.Generator(device).manual_seed(1), "device": device}
    )
    tokens = min(base.text_tokens, TEXT_TOKENS.get(base.family, base.text_tokens))
    text = torch.randn(count, tokens, config.joint_attention_dim, **draw)
    more = (
        {"pooled": torch.randn(count, config.pooled_projection_dim, **draw)}
        if "pooled_projection_dim" in config
        else {}
    )
    return torch.randn(count, config.in_channels, side, side, **draw), {"text": text, **more}


class Attention(TorchFunctionMode):
    """Counts what attention computes, and leaves it out: the products in it cannot be told from others later."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        """Called in place of every function of torch."""
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        names = ("query", "key", "value")
        query, key, value = (kwargs[name] if name in kwargs else args[at] for at, name in enumerate(names))
        self.flop += 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def flops(name: str, is_tiny: bool, size_px: int) -> tuple[float, float]:
    """What a forward pass of one picture computes in products with weights, and in attention. Units: TFLOP."""
    family, base = known(name, is_tiny)
    model = build(family, base, "meta", Fit())
    latents, text = batch_of(model, size_px, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Attention() as attention:
        model.predict_velocity(latents, torch.zeros(1, device="meta"), text)
    return counter.get_total_flops() / 1e12, attention.flop / 1e12


def step_flops(linear: float, attention: float, is_full: bool) -> float:
    """What a training step of one picture needs: frozen weights get no gradient of their own, trained ones do."""
    return linear * (3 if is_full else 2) + attention * (1 + ATTENTION_BACKWARD)


@cache
def ceiling(device: str, is_tiny: bool) -> dict[str, float]:
    """The most that products of square matrices reach, by their side. Units: TFLOP/s."""
    found, dtype = {}, parts.precision(device)
    for side in (128, 256) if is_tiny else (4096, 8192, 16384):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        times = seconds_of(lambda a=a, b=b: a @ b, 20, device)
        found[str(side)] = 2 * side**3 / statistics.median(times) / 1e12
    return found


def seconds_of(work: Callable[[], object], count: int, device: str) -> list[float]:
    """How long each of several calls takes, after two that do not count."""
    found = []
    for number in range(count + 2):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        if number >= 2:
            found.append(time.perf_counter() - started)
    return found


def wait(device: str) -> None:
    """Until the device has computed everything."""
    if device != "cpu":
        torch.cuda.synchronize()


@dataclass
class Trained:
    """A network that is being trained in memory; how it is computed can be changed."""

    bench: Bench
    name: str
    kind: FinetuneType
    fit: Fit

    def __post_init__(self) -> None:
        family, base = known(self.name, self.bench.is_tiny)
        self.size = family.size(base)
        self.model = build(family, base, self.bench.device, self.fit)
        self.linear_and_attention = cache(lambda size_px: flops(self.name, self.bench.is_tiny, size_px))
        trainee = lora.prepare(
            self.model.transformer, family.lora_targets, self.kind, RANK, 0, rounding=self.fit.rounding
        )
        self.optimiser = Optimiser(trainee.parameters, trainee.weight_decay, self.fit)

    def measure(self, size_px: int, count: int, recomputed: float = 0.0, is_compiled: bool = False) -> dict:
        """Seconds, memory and arithmetic of a step."""
        bench, device = self.bench, self.bench.device
        footprint.apply(self.model.transformer, replace(self.fit, recomputed=recomputed))
        latents, text = batch_of(self.model, size_px, count)
        noise, t = torch.randn_like(latents), torch.linspace(0.1, 0.9, count, device=device)

        def step() -> None:
            self.optimiser.move(trainer.losses(self.model, latents, text, noise, t, count), 1e-5)

        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        if is_compiled:
            self.model.transformer.compile_repeated_blocks()
        step()
        wait(device)
        first = time.perf_counter() - started
        with trainer.tensor_cores(device):
            seconds = statistics.median(seconds_of(step, bench.steps, device))
        linear, attention = self.linear_and_attention(size_px)
        needed = count * step_flops(linear, attention, self.kind is FinetuneType.FULL)
        best = max(ceiling(device, bench.is_tiny).values())
        fit = replace(self.fit, recomputed=recomputed, micro_batch=count)
        tokens = next(iter(text.values())).shape[1]
        demand = Demand(self.size, self.kind, RANK, count, size_px**2, drawn_pixels=0, text_tokens=tokens)
        return {
            "seconds": round(seconds, 5),
            "first_seconds": round(first, 2),
            "tflop": round(needed, 3),
            "tflops": round(needed / seconds, 3),
            "share_of_ceiling": round(needed / seconds / best, 4),
            "weights_gib": round(sum(p.nbytes for p in self.model.transformer.parameters()) / 2**30, 2),
            "peak_gib": round(footprint.peak(device) / 2**30, 2),
            "planned_gib": round(needs(demand, fit, device != "cpu").total / 2**30, 2),
        }


def measure_ceiling(bench: Bench, models: list[str]) -> None:
    """Section `ceiling`."""
    bench.attempt("ceiling", lambda: {"tflops": ceiling(bench.device, bench.is_tiny)})


def measure_lora(bench: Bench, models: list[str]) -> None:
    """Section `lora`."""
    for name in models:
        fit = Fit(weight_bits=16)
        trained = _built(bench, "lora", name, FinetuneType.LORA, fit)
        if trained is None:
            continue
        for size_px in bench.sizes_px():
            for recomputed in bench.shares():
                for count in bench.counts():
                    asked = {"size_px": size_px, "count": count, "recomputed": recomputed}
                    found = bench.attempt("lora", partial(trained.measure, **asked), model=name, **asked)
                    if "OutOfMemory" in found.get("error", ""):
                        break  # a larger batch needs more
        if not bench.is_tiny:  # compiling takes a compiler, which not every computer has
            for size_px in bench.sizes_px():
                asked = {"size_px": size_px, "count": 1, "is_compiled": True}
                bench.attempt("lora", partial(trained.measure, **asked), model=name, **asked)
        del trained
        gc.collect()


def measure_full(bench: Bench, models: list[str]) -> None:
    """Section `full`."""
    for name, fit in FULL_FITS.items():
        trained = _built(bench, "full", MODELS[0], FinetuneType.FULL, fit, how=name)
        for size_px in bench.sizes_px() if trained else ():
            for recomputed in (0.0, 1.0):
                asked = {"size_px": size_px, "count": 1, "recomputed": recomputed}
                bench.attempt("full", partial(trained.measure, **asked), model=MODELS[0], how=name, **asked)
        del trained
        gc.collect()


def measure_packed(bench: Bench, models: list[str]) -> None:
    """Section `packed`."""
    for name in models:
        for bits in (8, 4):
            trained = _built(bench, "packed", name, FinetuneType.LORA, Fit(weight_bits=bits), bits=bits)
            for size_px in bench.sizes_px() if trained else ():
                asked = {"size_px": size_px, "count": 1, "recomputed": 1.0}
                bench.attempt("packed", partial(trained.measure, **asked), model=name, bits=bits, **asked)
            del trained
            gc.collect()


def _built(bench: Bench, section: str, name: str, kind: FinetuneType, fit: Fit, **values: object) -> Trained | None:
    """A network in memory, or None when it does not fit; that is written down too."""
    made = []

    def make() -> dict:
        started = time.perf_counter()
        made.append(Trained(bench, name, kind, fit))
        return {"built_seconds": round(time.perf_counter() - started, 2)}

    bench.attempt(section, make, model=name, **values)
    return made[0] if made else None


def measure_run(bench: Bench, models: list[str]) -> None:
    """Section `run`."""
    with tempfile.TemporaryDirectory() as folder:
        bench.attempt("run", lambda: _whole_run(bench, Path(folder)), model=MODELS[0])


def _whole_run(bench: Bench, folder: Path) -> dict:
    size_px, home = (32 if bench.is_tiny else 512), folder / "home"
    source = home / "bases" / "random"  # one of the folders that bases are read from
    started = time.perf_counter()
    save_base(bench, source)
    saved = time.perf_counter() - started
    archive = write_pictures(folder / "pictures.zip", size_px)
    run = runs.create(home / "runs")
    dataset.unpack(archive, run)
    request = inputs.read(
        {
            "finetune_comment": "bench",
            "base_model": str(source),
            "trigger_word": "TOK",
            "mode": "general",
            "iterations": 100 if bench.is_tiny else 300,
            "priority": "speed",
            "finetune_type": "lora",
            "lora_rank": RANK,
        }
    )
    base = replace(known(MODELS[0], bench.is_tiny)[1], id=str(source), source=str(source))
    fit = Fit() if bench.device == "cpu" else Fit(weight_bits=16)
    config = recipe.resolve(request, base, ["a picture of TOK"], bench.device, fit)
    run.write("request.json", request.model_dump(mode="json"))
    run.write("config.json", replace(config, resolutions_px=(size_px,)).as_dict())
    environment = replace(settings.read(), home=home, threads=torch.get_num_threads()).worker_environment()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "work", str(run.folder)], cwd=ROOT, env=environment, capture_output=True
    )
    seconds = time.perf_counter() - started
    events, _ = run.events()
    if done.returncode:
        told = [event for event in events if event["kind"] == "failed"]
        raise RuntimeError(f"the worker failed: {told or done.stderr[-1000:]}")
    return {
        "seconds": round(seconds, 1),
        "saved_base_seconds": round(saved, 1),
        "stages": _stages(events),
        "summary": events[-1].get("summary"),
    }


def _stages(events: list[dict]) -> dict[str, float]:
    """How long each stage took, drawing apart from training. Units: seconds."""
    spent: dict[str, float] = {}
    for before, event in zip(events, events[1:], strict=False):
        name = {"stage": event.get("name"), "step": "step", "sample": "sample"}.get(event["kind"]) or event["kind"]
        spent[name] = spent.get(name, 0.0) + event["time"] - before["time"]
    return {name: round(seconds, 2) for name, seconds in spent.items()}


def save_base(bench: Bench, folder: Path) -> None:
    """Write a base of klein-4B's size, or a toy, with random weights and a tokenizer of single bytes."""
    family, base = known(MODELS[0], bench.is_tiny)
    if bench.is_tiny:
        family.tiny().save(folder)
        return
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
    from transformers import Qwen3Config, Qwen3ForCausalLM

    text = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    network = build(family, base, bench.device, Fit(weight_bits=16)).transformer
    encoder = _empty(lambda: Qwen3ForCausalLM(text), bench.device)
    vae = _empty(AutoencoderKLFlux2, bench.device)
    vae.bn.running_var.fill_(1.0)
    made = {
        "transformer": network,
        "text_encoder": encoder,
        "vae": vae,
        "tokenizer": toys.tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    type(family.load(base, folder, bench.device, Fit()))(base, None, bench.device, _parts=made).save(folder)


def _empty(make: Callable[[], nn.Module], device: str) -> nn.Module:
    with torch.device(device):
        network = make().to(parts.precision(device))
    _fill(network)
    return network


def write_pictures(path: Path, size_px: int, count: int = 10) -> Path:
    """A ZIP of noisy pictures with captions."""
    import io

    import numpy
    from PIL import Image

    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            pixels = numpy.random.default_rng(number).integers(0, 256, (size_px, size_px, 3), dtype=numpy.uint8)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
            archive.writestr(f"{number}.txt", f"a thing of kind {number}")
    return path


SECTIONS = {
    "ceiling": measure_ceiling,
    "run": measure_run,
    "lora": measure_lora,
    "full": measure_full,
    "packed": measure_packed,
}


def _about(bench: Bench) -> Iterator[tuple[str, object]]:
    yield "torch", torch.__version__
    yield "device", bench.device if bench.device == "cpu" else torch.cuda.get_device_name()
    yield "bench", {**asdict(bench), "out": str(bench.out)}
    if bench.device != "cpu":
        yield "free_gib", round(bench.free_bytes() / 2**30, 1)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="measurements are appended, one line of JSON each")
    parser.add_argument("--tiny", action="store_true", help="toy networks on the processor")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--steps", type=int, default=8, help="that are timed for each measurement")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs on the processor")
    # Toys need no second thread, and where other programs use the cores, waiting for one takes seconds.
    torch.set_num_threads(1 if asked.tiny else settings.read().threads)
    device = "cpu" if asked.tiny else "cuda:0"
    bench = Bench(device, asked.tiny, asked.out, 2 if asked.tiny else asked.steps)
    bench.tell("about", **dict(_about(bench)))
    for name in asked.sections:
        SECTIONS[name](bench, asked.models)


if __name__ == "__main__":
    main()
