"""Put the trained parts into a folder that `Flux2KleinPipeline.from_pretrained` opens, the captioner beside them."""

import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from transformers import ViTImageProcessorPil

from stages import pictures, transformer

SHARD = "9MB"
PARTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler", "captioner")


def pipeline(tokenizer, encoder, autoencoder, network) -> Flux2KleinPipeline:
    """The parts as one diffusers pipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=transformer.SHIFT)
    return Flux2KleinPipeline(scheduler, autoencoder, encoder, tokenizer, network, is_distilled=False)


def save(folder: Path, pipe: Flux2KleinPipeline, captioner) -> None:
    """Write pipeline and captioner; parts of an earlier build are replaced."""
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    pipe.save_pretrained(folder, max_shard_size=SHARD)
    # Half precision, because the captioner only reads and the folder has a size limit.
    captioner.to(torch.float16).save_pretrained(folder / "captioner", max_shard_size=SHARD)
    side = {"height": pictures.RESOLUTION_PX, "width": pictures.RESOLUTION_PX}
    ViTImageProcessorPil(size=side).save_pretrained(folder / "captioner")
    pipe.tokenizer.save_pretrained(folder / "captioner")
    captioner.float()
