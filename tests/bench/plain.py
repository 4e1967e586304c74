"""A plain LoRA training loop with diffusers and peft, as the public example scripts write it: `compare.py` runs it.

What it does is what diffusers' examples/dreambooth/train_dreambooth_lora_flux2_klein.py does by default (read at commit
027e8ee), written anew:
- pictures are cut once when the dataset is made; the VAE encodes them in every step unless --cache-latents;
- with one caption per picture, text is encoded once before training; train_dreambooth_lora_flux.py (commit 0050dea)
  does so in every step: --encode-text-every-step;
- rank 4, alpha 4, gaussian start, on the attention's to_q, to_k, to_v and to_out of both kinds of block (no MLP of the
  double blocks, no added projections); AdamW with betas 0.9 and 0.999, weight decay 1e-4, rate 1e-4, constant;
- batches of 4, the last short one of an epoch dropped; no gradient checkpointing; gradients clipped at 1 over all
  parameters; accelerate wraps network, optimiser and loader; the loss is read in every step;
- no picture is drawn unless a validation prompt is given. Then a pipeline is loaded from disk for every round, and
  draws 4 pictures one after the other in the pipeline's own 50 steps; a last round loads everything and the LoRA.

In its favour, it differs in this: it takes the base's own text layers, text length (the script's 512 tokens would make
a step of the demo base many times longer: --text-tokens) and picture size (the script's pipeline would draw 1024 px),
keeps no log for TensorBoard and loads neither `datasets` nor torchvision.
"""

import argparse
import copy
import json
import random
import sys
import time
import zipfile
from pathlib import Path

import numpy
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    free_memory,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0", "to_qkv_mlp_proj"]


class Pictures(Dataset):
    """Pictures of a ZIP, each cut to a square once, with the caption beside it or the general prompt."""

    def __init__(self, path: Path, folder: Path, prompt: str, side: int) -> None:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        self.rows = []
        for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".webp")):
            beside = file.with_suffix(".txt")
            caption = f"{beside.read_text().strip()} {prompt}" if beside.exists() else prompt
            self.rows.append((_cut(Image.open(file).convert("RGB"), side), caption))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        pixels, caption = self.rows[index]
        return {"index": index, "pixels": pixels, "caption": caption}


def _cut(image: Image.Image, side: int) -> torch.Tensor:
    scale = max(side / image.width, side / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    left, top = random.randint(0, size[0] - side), random.randint(0, size[1] - side)
    image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - 0.5) / 0.5


def _collate(rows: list[dict]) -> dict:
    return {
        "indices": [row["index"] for row in rows],
        "pixels": torch.stack([row["pixels"] for row in rows]).contiguous().float(),
        "captions": [row["caption"] for row in rows],
    }


def train(asked: argparse.Namespace) -> dict:
    """Train and write the LoRA; returns what was measured."""
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    random.seed(0)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    device, dtype = accelerator.device, torch.bfloat16 if torch.cuda.is_available() else torch.float32

    tokenizer = Qwen2TokenizerFast.from_pretrained(asked.base, subfolder="tokenizer")
    scheduler = copy.deepcopy(FlowMatchEulerDiscreteScheduler.from_pretrained(asked.base, subfolder="scheduler"))
    vae = AutoencoderKLFlux2.from_pretrained(asked.base, subfolder="vae").to(device, dtype)
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(device)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(device)
    transformer = Flux2Transformer2DModel.from_pretrained(asked.base, subfolder="transformer", torch_dtype=dtype)
    text_encoder = Qwen3ForCausalLM.from_pretrained(asked.base, subfolder="text_encoder").to(device, dtype)
    for network in (vae, transformer, text_encoder):
        network.requires_grad_(False)
    transformer.to(device)
    text_pipeline = Flux2KleinPipeline.from_pretrained(
        asked.base, vae=None, transformer=None, tokenizer=tokenizer, text_encoder=text_encoder, scheduler=None
    )

    outs = [f"single_transformer_blocks.{number}.attn.to_out" for number in range(24)]
    targets = asked.targets or ATTENTION + outs
    rank = {"r": asked.rank, "lora_alpha": asked.rank}
    transformer.add_adapter(LoraConfig(**rank, init_lora_weights="gaussian", target_modules=targets))
    trained = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained, "lr": 1e-4}], betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8)
    dataset = Pictures(asked.pictures, asked.output.parent / "pictures", asked.prompt, asked.resolution)
    loader = DataLoader(dataset, batch_size=asked.batch, shuffle=True, drop_last=True, collate_fn=_collate)

    @torch.no_grad()
    def encode(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return text_pipeline.encode_prompt(
            prompt=captions,
            device=device,
            max_sequence_length=asked.text_tokens,
            text_encoder_out_layers=tuple(asked.text_layers),
        )

    texts, kept = [], []
    for row in dataset:
        if not asked.encode_text_every_step:
            texts.append(encode([row["caption"]]))
        if asked.cache_latents:
            with torch.no_grad():
                kept.append(vae.encode(row["pixels"][None].to(device, dtype)).latent_dist.mode())
    validation = encode([asked.prompt]) if asked.validation_rounds else None
    if not asked.encode_text_every_step:
        del text_encoder, text_pipeline
    free_memory()

    schedule = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=500, num_training_steps=asked.steps)
    transformer, optimizer, loader, schedule = accelerator.prepare(transformer, optimizer, loader, schedule)

    def sigmas_of(times: torch.Tensor, dimensions: int) -> torch.Tensor:
        sigmas, known = scheduler.sigmas.to(device), scheduler.timesteps.to(device)
        found = sigmas[[(known == t).nonzero().item() for t in times]].flatten()
        return found.view(-1, *[1] * (dimensions - 1))

    validated_at = {round(asked.steps * n / asked.validation_rounds) for n in range(1, asked.validation_rounds)}
    done, seconds, bar = 0, [], tqdm(range(asked.steps))
    transformer.train()
    while done < asked.steps:
        for batch in loader:
            started = time.perf_counter()
            with accelerator.accumulate([transformer]):
                if asked.encode_text_every_step:
                    text, text_ids = encode(batch["captions"])
                else:
                    text = torch.cat([texts[index][0] for index in batch["indices"]])
                    text_ids = torch.cat([texts[index][1] for index in batch["indices"]])
                if asked.cache_latents:
                    latents = torch.cat([kept[index] for index in batch["indices"]])
                else:
                    latents = vae.encode(batch["pixels"].to(device, dtype)).latent_dist.mode()
                latents = (Flux2KleinPipeline._patchify_latents(latents) - mean) / deviation
                ids = Flux2KleinPipeline._prepare_latent_ids(latents).to(device)
                noise = torch.randn_like(latents)
                u = compute_density_for_timestep_sampling("none", len(latents), logit_mean=0.0, logit_std=1.0)
                times = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()].to(device)
                sigmas = sigmas_of(times, latents.ndim)
                noisy = Flux2KleinPipeline._pack_latents((1.0 - sigmas) * latents + sigmas * noise)
                predicted = transformer(
                    hidden_states=noisy,
                    timestep=times / 1000,
                    guidance=None,
                    encoder_hidden_states=text,
                    txt_ids=text_ids,
                    img_ids=ids,
                    return_dict=False,
                )[0]
                predicted = Flux2KleinPipeline._unpack_latents_with_ids(predicted[:, : noisy.size(1)], ids)
                weighting = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
                errors = weighting.float() * (predicted.float() - (noise - latents).float()) ** 2
                loss = errors.reshape(len(latents), -1).mean(1).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(transformer.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=schedule.get_last_lr()[0])
            done += 1
            seconds.append(time.perf_counter() - started)
            if done in validated_at:
                draw(asked, validation, accelerator.unwrap_model(transformer), dtype)
            if done == asked.steps:
                break

    network = accelerator.unwrap_model(transformer).to(dtype)
    Flux2KleinPipeline.save_lora_weights(asked.output.parent, get_peft_model_state_dict(network))
    written = time.time()
    if asked.validation_rounds:
        draw(asked, validation, None, dtype)
    on_gpu = torch.cuda.is_available()
    return {
        "seconds_per_step": seconds,
        "written": written,
        "gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }


def draw(asked: argparse.Namespace, text: tuple, transformer: torch.nn.Module | None, dtype: torch.dtype) -> None:
    """Validate as the script does: a pipeline from disk, four pictures one by one."""
    more = {"transformer": transformer} if transformer is not None else {}
    pipeline = Flux2KleinPipeline.from_pretrained(asked.base, torch_dtype=dtype, **more)
    if transformer is None:
        pipeline.load_lora_weights(asked.output.parent)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    for _ in range(4):
        pipeline(
            prompt_embeds=text[0],
            width=asked.resolution,
            height=asked.resolution,
            max_sequence_length=asked.text_tokens,
            text_encoder_out_layers=tuple(asked.text_layers),
        )
    del pipeline
    free_memory()


def main() -> None:
    """Train as asked, and write the measurements as JSON beside the LoRA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("pictures", type=Path, help="ZIP")
    parser.add_argument("output", type=Path, help="measurements; the LoRA and the unpacked pictures lie beside it")
    parser.add_argument("--prompt", default="in the style of TOK")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--targets", help="a pattern of layers in place of the script's")
    parser.add_argument("--text-tokens", type=int, default=20)
    parser.add_argument("--text-layers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-latents", action="store_true")
    parser.add_argument("--encode-text-every-step", action="store_true")
    parser.add_argument("--validation-rounds", type=int, default=0)
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(train(asked)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
