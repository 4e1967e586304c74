"""Small real objects for tests: a tiny model, pictures, settings, a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from finetune import encodings, registry, runs
from finetune.encodings import Encoded
from finetune.families import Model
from finetune.inputs import FinetuneType, Mode
from finetune.memory import Fit
from finetune.recipe import TrainConfig

FAMILY = "flux2-klein"


def tiny_model(family: str = FAMILY) -> Model:
    """A family's toy model, always with the same weights."""
    return registry.families()[family].tiny()


@contextmanager
def handed_over(network: Any) -> Iterator[list[dict[str, Any]]]:
    """Collect what a network is given: for each row of each call its tensors by name."""
    rows: list[dict[str, Any]] = []

    def note(_: Any, positional: tuple, named: dict[str, Any]) -> None:
        assert not positional
        tensors = {name: value for name, value in named.items() if hasattr(value, "shape")}
        for row in range(len(tensors["hidden_states"])):
            rows.append({name: _row(name, value, row) for name, value in tensors.items()})

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def _row(name: str, value: Any, row: int) -> Any:
    has_rows = not name.endswith("_ids") or value.ndim == 3
    return (value[row] if has_rows else value).detach().float().clone()


def assert_same_rows(given: list[dict[str, Any]], expected: list[dict[str, Any]], names: set[str]) -> None:
    """Compare what a network was given twice: the same tensors, these among them, equal up to rounding."""
    import torch

    assert len(given) == len(expected)
    for ours, theirs in zip(given, expected, strict=True):
        assert ours.keys() == theirs.keys() >= names
        for name in ours:
            assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


def text_processor(tokenizer: Any) -> Any:
    """A processor of transformers with nothing but a tokenizer: theirs for pictures do not import without torchvision.

    Templates and calls are those of `ProcessorMixin`, from which PixtralProcessor and Qwen3VLProcessor have them too.
    """
    from transformers import ProcessorMixin

    class TextProcessor(ProcessorMixin):
        def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
            super().__init__(tokenizer, chat_template=chat_template)

    return TextProcessor(tokenizer, chat_template=tokenizer.chat_template)


def config(**changes: Any) -> TrainConfig:
    """Settings of a very short run."""
    values = {
        "name": "my-first-finetune",
        "base_model": "tiny",
        "mode": Mode.STYLE,
        "trigger_word": "TOK",
        "finetune_type": FinetuneType.LORA,
        "lora_rank": 16,
        "iterations": 10,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "resolutions_px": (32,),
        "time_shift": 3.0,
        "seed": 7,
        "sample_every": 0,
        "sample_px": 32,
        "sample_prompts": ("a pear in the style of TOK",),
        "checkpoint_every": 4,
        "keeps_best": False,
        "device": "cpu",
        "fit": Fit(),
    }
    return TrainConfig(**{**values, **changes})


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write pictures of soft colours, each its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (width, height) in enumerate(sizes):
        rng = numpy.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=numpy.uint8))
        paths.append(folder / f"{number + 1:04}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def encoded(model: Model, folder: Path) -> Encoded:
    """Four small pictures with captions and a prompt, encoded."""
    paths = pictures(folder / "images", [(32, 32)] * 4)
    captions = [f"a {thing} in the style of TOK" for thing in ("pear", "plum", "fig", "lime")]
    return encodings.encode(model, paths, captions, list(config().sample_prompts), (32,), folder / "encodings", ignore)


def run(folder: Path) -> runs.Run:
    """A run without pictures."""
    return runs.create(folder / "runs")


def demo_base(folder: Path) -> Path:
    """What FINETUNE_DEMO_BASE may name: the toy model, and a captioner beside it."""
    tiny_model().save(folder)
    captioner(folder / "captioner")
    return folder


def captioner(folder: Path, says: str = "a dot of red") -> None:
    """Write a toy captioner of the demo captioner's kind that says the same of every picture.

    Its state at place i is high in value i alone, and value i asks for letter i of what it says.
    """
    import torch
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    tokenizer = tiny_model().part("tokenizer")
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    small = {"num_attention_heads": 1, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
    writer = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 1, "bos_token_id": start, "eos_token_id": end}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(image_size=64, patch_size=32, **small),
        GPT2Config(vocab_size=len(tokenizer), add_cross_attention=True, tie_word_embeddings=False, **writer),
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = start, end, tokenizer.pad_token_id
    config.tie_word_embeddings = False
    model = VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if ".ln_" not in name:
                weight.zero_()
        model.decoder.transformer.wpe.weight.copy_(torch.eye(16))
        for place, letter in enumerate([*tokenizer(says)["input_ids"], end]):
            model.decoder.lm_head.weight[letter, place] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def page_request(cookies: str = "", query: str = "", **headers: str) -> Any:
    """A request as a page's browser sends it."""
    from starlette.requests import Request

    lines = {"host": "127.0.0.1:7860", **({"cookie": cookies} if cookies else {}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in lines.items()]
    about = {"method": "GET", "path": "/", "scheme": "http", "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 7860)}
    return Request({"type": "http", "headers": raw, "query_string": query.encode(), "root_path": "", **about})


def ignore(*told: Any, **more: Any) -> None:
    """Hear what is told, and do nothing."""
