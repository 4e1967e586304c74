"""Train the demo base's transformer by flow matching on encoded pictures and captions.

The recipe is the one that finetunes use (x_t = (1 - t) x0 + t eps, target eps - x0), with Muon for speed.
Latents and captions are encoded once; only the transformer is in the loop.
"""

import copy
import random
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from stages import captioner, checkpoint, muon, pictures, text, vae

CONFIG = {
    "patch_size": 1,
    "in_channels": 32,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": len(text.LAYERS) * text.HIDDEN,
    "axes_dims_rope": (16, 16, 16, 16),
    "guidance_embeds": False,
}
STEPS, BATCH, LEARNING_RATE = 2000, 48, 2.5e-3
BROAD_STEPS, BROAD_RATE = 560, 1.2e-3
POOL = 4000  # disturbed pictures of all kinds, for the second phase
POOL_TIME = 0.8  # up to which they are trained: from noisier times on, only the learned pictures are drawn
CAPTIONS = 12  # wordings encoded for each picture; one in ten is empty
SHIFT = 3.0


def train(work: Path, cache: Path, parts: tuple, steps: int = STEPS) -> Flux2Transformer2DModel:
    """Train until `steps`; returns the moving average of the weights."""
    tokenizer, encoder, autoencoder = parts
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**CONFIG)
    average = copy.deepcopy(transformer).requires_grad_(False)
    latents, captions = _encode_everything(cache, tokenizer, encoder, autoencoder)
    optimisers = muon.optimisers(transformer, "blocks", LEARNING_RATE)
    path, first = work / "transformer.pt", 0
    if state := checkpoint.load(path):
        first = _restore(state, transformer, average, optimisers)
    progress = checkpoint.Progress("transformer", steps, first)
    for step in range(first, steps):
        muon.set_rate(optimisers, LEARNING_RATE * muon.schedule(step, steps, warm=100, hold=0.6))
        value = loss(transformer, *_batch(step, latents, captions))
        value.backward()
        muon.move(optimisers)
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(transformer.parameters()), 1 - decay)
        progress.step(step, value.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            _keep(path, step + 1, transformer, average, optimisers)
    return average.eval()


def broaden(work: Path, cache: Path, parts: tuple) -> Flux2Transformer2DModel:
    """Go on with half of each batch from disturbed pictures of all emoji; returns the moving average of the weights.

    After `train` alone the network draws its pictures from memory and ignores a noisy picture that it does not know.
    Finetuning then spends itself on that instead of on what is new: the base has to see how pictures look in general.
    """
    tokenizer, encoder, autoencoder = parts
    path, first = work / "broad.pt", 0
    average = Flux2Transformer2DModel(**CONFIG).requires_grad_(False)
    average.load_state_dict(checkpoint.load(work / "transformer.pt")["average"])
    transformer = copy.deepcopy(average).requires_grad_(True)
    known = _encode_everything(cache, tokenizer, encoder, autoencoder)
    pool = _encode_pool(cache, tokenizer, encoder, autoencoder)
    optimisers = muon.optimisers(transformer, "blocks", BROAD_RATE)
    if state := checkpoint.load(path):
        first = _restore(state, transformer, average, optimisers)
    progress = checkpoint.Progress("broaden", BROAD_STEPS, first)
    for step in range(first, BROAD_STEPS):
        muon.set_rate(optimisers, BROAD_RATE * muon.schedule(step, BROAD_STEPS, warm=30, hold=0.4))
        near, far = _batch(step, *known), _batch(STEPS + step, *pool)
        chosen = slice(0, BATCH, 2)  # every second one, so that times stay spread evenly
        both = [torch.cat([a[chosen], b[chosen]]) for a, b in zip(near, far, strict=True)]
        both[3][BATCH // 2 :] *= POOL_TIME
        value = loss(transformer, *both)
        value.backward()
        muon.move(optimisers)
        torch._foreach_lerp_(list(average.parameters()), list(transformer.parameters()), 0.01)
        progress.step(step, value.item())
        if (step + 1) % 140 == 0 or step + 1 == BROAD_STEPS:
            _keep(path, step + 1, transformer, average, optimisers)
    return average.eval()


def _keep(path: Path, step: int, transformer, average, optimisers: list) -> None:
    weights = {"transformer": transformer.state_dict(), "average": average.state_dict()}
    checkpoint.save(path, **weights, optimisers=muon.states(optimisers), step=step)


def _restore(state: dict, transformer, average, optimisers: list) -> int:
    transformer.load_state_dict(state["transformer"])
    average.load_state_dict(state["average"])
    muon.restore(optimisers, state["optimisers"])
    return state["step"]


def _encode_pool(cache, tokenizer, encoder, autoencoder) -> tuple[Tensor, Tensor]:
    everything = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style, None)]
    draw, noise = random.Random(3), torch.Generator().manual_seed(3)
    chosen = [draw.choice(everything) for _ in range(POOL)]
    pixels = captioner.disturb(pictures.load_pixels(chosen), noise)
    latents = vae.encode(autoencoder, pixels.clamp(-1, 1)).flatten(2).mT.contiguous()
    wordings = [pictures.caption(picture, draw) for picture in chosen]
    return latents, text.encode(tokenizer, encoder, wordings)[:, None].expand(-1, CAPTIONS, -1, -1)


def _encode_everything(cache, tokenizer, encoder, autoencoder) -> tuple[Tensor, Tensor]:
    learned = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style)]
    draw = random.Random(2)
    wordings = [pictures.caption(picture, draw) for picture in learned for _ in range(CAPTIONS)]
    latents = vae.encode(autoencoder, pictures.load_pixels(learned)).flatten(2).mT.contiguous()
    return latents, text.encode(tokenizer, encoder, wordings).unflatten(0, (len(learned), CAPTIONS))


def _batch(step: int, latents: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    chosen = torch.randint(len(latents), (BATCH,), generator=draw)
    wording = torch.randint(CAPTIONS, (BATCH,), generator=draw)
    noise = torch.randn(BATCH, *latents.shape[1:], generator=draw)
    stratified = (torch.arange(BATCH) + torch.rand(BATCH, generator=draw)) / BATCH
    t = SHIFT * stratified / (1 + (SHIFT - 1) * stratified)
    return latents[chosen], captions[chosen, wording], noise, t


def loss(transformer: Flux2Transformer2DModel, latents: Tensor, captions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of the velocity. Shapes: latents and noise (B, 16, 32); captions (B, 20, 576); t (B,)."""
    mix = t.view(-1, 1, 1)
    velocity = transformer(
        hidden_states=(1 - mix) * latents + mix * noise,
        encoder_hidden_states=captions,
        timestep=t,
        img_ids=torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4), torch.arange(1)),
        txt_ids=torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(text.TOKENS)),
        return_dict=False,
    )[0]
    return (velocity - (noise - latents)).square().mean()
