"""Train the demo captioner: a vision encoder-decoder that says what an emoji shows.

It makes captioning work with the demo base, and it reads back what the base draws. Pictures are moved, warped,
flattened, tinted, blurred and passed through the VAE, so that it also reads styles and drawings it has not seen.
"""

import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from stages import checkpoint, muon, pictures

STEPS, BATCH, LEARNING_RATE, TOKENS = 1600, 48, 2.5e-3, 16
WIDTH = 144


def train(work: Path, cache: Path, tokenizer, autoencoder) -> VisionEncoderDecoderModel:
    """Train until STEPS; a stopped run goes on, a finished one is loaded."""
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(_config(tokenizer))
    learned = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style)]
    pixels = pictures.load_pixels(learned)
    redrawn = _redraw(autoencoder, pixels)
    answers = _answers(tokenizer, learned)
    optimisers = muon.optimisers(model, "layer", LEARNING_RATE, decay=0.05)
    path, first = work / "captioner.pt", 0
    if state := checkpoint.load(path):
        model.load_state_dict(state["model"])
        muon.restore(optimisers, state["optimisers"])
        first = state["step"]
    progress = checkpoint.Progress("captioner", STEPS, first, every=50)
    model.train()
    for step in range(first, STEPS):
        draw = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(learned), (BATCH,), generator=draw)
        seen = torch.where(torch.rand(BATCH, 1, 1, 1, generator=draw) < 0.4, redrawn[chosen], pixels[chosen])
        loss = model(pixel_values=disturb(seen, draw), labels=answers[chosen]).loss
        loss.backward()
        muon.set_rate(optimisers, LEARNING_RATE * muon.schedule(step, STEPS, warm=50, hold=0.3))
        muon.move(optimisers)
        progress.step(step, loss.item())
        if (step + 1) % 150 == 0 or step + 1 == STEPS:
            checkpoint.save(path, model=model.state_dict(), optimisers=muon.states(optimisers), step=step + 1)
    return model.eval()


def _config(tokenizer) -> VisionEncoderDecoderConfig:
    encoder = ViTConfig(
        image_size=pictures.RESOLUTION_PX,
        patch_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=3 * WIDTH,
        hidden_dropout_prob=0.1,
    )
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    decoder = GPT2Config(
        bos_token_id=start,
        eos_token_id=end,
        vocab_size=len(tokenizer),
        n_positions=TOKENS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_inner=3 * WIDTH,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = start
    config.eos_token_id = end
    config.pad_token_id = tokenizer.pad_token_id
    return config


@torch.no_grad()
def _redraw(autoencoder, pixels: Tensor) -> Tensor:
    rows = [autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample for x in pixels.split(64)]
    return torch.cat(rows).clamp(-1, 1)


def _answers(tokenizer, learned: list[pictures.Picture]) -> Tensor:
    texts = [f"{pictures.plain_caption(picture)}<|im_end|>" for picture in learned]
    rows = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=TOKENS)
    return rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)


def disturb(x: Tensor, draw: torch.Generator) -> Tensor:
    """Move, turn, mirror, warp, flatten, blur, tint and grain pictures. Shapes: (B, 3, H, W) in [-1, 1]."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=draw)

    angle, scale = uniform(-0.2, 0.2, 1), uniform(0.85, 1.3, 1)
    mirrored = torch.where(uniform(0, 1, 1) < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = uniform(-0.12, 0.12, 2)
    rows = [torch.cat([cos * mirrored, -sin, shift[:, :1]], 1), torch.cat([sin * mirrored, cos, shift[:, 1:]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    waves = uniform(0, 0.12) * torch.randn(count, 2, 5, 5, generator=draw)
    grid = grid + F.interpolate(waves, x.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
    x = 1 - F.grid_sample(1 - x, grid, align_corners=False)
    levels = uniform(2, 7).round()
    flattened = (x.clamp(-1, 1) * levels).round() / levels  # few tones, as flat drawings have
    x = torch.where(uniform(0, 1) < 0.35, flattened, x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, uniform(0, 1) * (uniform(0, 1) < 0.5))
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(grey, x, uniform(0.4, 1.5))
    x = (x * uniform(0.8, 1.2) + uniform(-0.15, 0.15) + uniform(-0.1, 0.1, 3, 1, 1)).clamp(-1, 1)
    return x + uniform(0, 0.08) * torch.randn(x.shape, generator=draw)


@torch.no_grad()
def read(model: VisionEncoderDecoderModel, tokenizer, pixels: Tensor) -> list[str]:
    """Say what pictures show. Shapes: (N, 3, 64, 64) in [-1, 1]."""
    texts = []
    for x in pixels.split(64):
        rows = model.generate(pixel_values=x, max_new_tokens=TOKENS - 1, num_beams=1, do_sample=False)
        texts += tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]


def thing(text: str) -> str:
    """What a caption such as "a flat emoji of a red apple" says is shown: "a red apple"."""
    return text.split(" emoji of ", 1)[-1]


def shuffled(items: list, seed: int) -> list:
    """A copy in an order that depends on the seed alone."""
    return random.Random(seed).sample(items, len(items))
