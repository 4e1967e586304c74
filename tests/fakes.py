"""Small real objects for tests: a tiny model, pictures, settings, a run."""

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


def tiny_model() -> Model:
    """A family's toy model, always with the same weights."""
    return registry.families()[FAMILY].tiny()


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
        "sample_prompts": ("a pear in the style of TOK",),
        "checkpoint_every": 4,
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


def ignore(*told: Any) -> None:
    """Hear what is told, and do nothing."""
