"""Train the demo base's VAE: 64 px pictures to 8 x 8 latents of 8 channels, and back.

Eight channels, because a larger latent space makes the transformer spend itself on noise (see README.md). After
training, the channels are rotated onto their principal directions and the patched latents' mean and variance are
stored in the VAE's batch norm, so that the transformer sees latents of mean 0 and, all in all, variance 1.
"""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor
from torch.nn import functional as F

from stages import checkpoint, muon, pictures

STEPS, DECODER_STEPS, BATCH, LEARNING_RATE = 1300, 600, 16, 3e-3
NOISE = 0.1  # on normalised latents; sampling from a learned variance collapsed to one mean picture at this size
CONFIG = {
    "block_out_channels": (16, 32, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "sample_size": pictures.RESOLUTION_PX,
    "mid_block_add_attention": False,
}


def train(work: Path, cache: Path) -> AutoencoderKLFlux2:
    """Train encoder and decoder together, then rotate and scale the latents."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**CONFIG)
    done = work / "vae.pt"
    if state := checkpoint.load(done):
        vae.load_state_dict(state["vae"])
        return vae.eval()
    _fit(vae, vae, _batches(cache), STEPS, LEARNING_RATE, work / "vae_steps.pt", with_encoder=True)
    learned = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style)]
    rotate(vae.eval(), pictures.load_pixels(learned))
    checkpoint.save(done, vae=vae.state_dict())
    return vae


def refine_decoder(vae: AutoencoderKLFlux2, work: Path, cache: Path) -> AutoencoderKLFlux2:
    """Go on with the decoder alone: the latents, and with them the transformer, stay as they are."""
    done = work / "decoder.pt"
    if (state := checkpoint.load(done)) is None:
        trained = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
        _fit(
            vae,
            trained,
            _batches(cache),
            DECODER_STEPS,
            LEARNING_RATE / 2,
            work / "decoder_steps.pt",
            with_encoder=False,
        )
        checkpoint.save(done, vae=vae.state_dict())
    else:
        vae.load_state_dict(state["vae"])
    return vae.eval()


def _batches(cache: Path):
    """Yield batches, half from the learned domain and half from all emoji of both styles, mirrored at random."""
    everything = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style, None)]
    everything.sort(key=lambda p: p.group not in pictures.LEARNED_GROUPS)
    pixels = pictures.load_pixels(everything)
    learned = sum(p.group in pictures.LEARNED_GROUPS for p in everything)
    draw = torch.Generator().manual_seed(1)
    while True:
        near = torch.randint(learned, (BATCH // 2,), generator=draw)
        far = torch.randint(len(pixels), (BATCH // 2,), generator=draw)
        x = pixels[torch.cat([near, far])]
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=draw) < 0.5
        yield torch.where(mirrored, x.flip(3), x)


def _fit(vae, network, batches, steps: int, rate: float, path: Path, with_encoder: bool) -> None:
    optimisers = muon.optimisers(network, "", rate)
    first = 0
    if state := checkpoint.load(path):
        vae.load_state_dict(state["vae"])
        muon.restore(optimisers, state["optimisers"])
        first = state["step"]
    progress = checkpoint.Progress(path.stem, steps, first)
    vae.train()
    vae.bn.eval()
    for step in range(first, steps):
        muon.set_rate(optimisers, rate * muon.schedule(step, steps, warm=50, hold=0.0))
        loss = _loss(vae, next(batches), with_encoder)
        loss.backward()
        muon.move(optimisers)
        progress.step(step, loss.item())
        if (step + 1) % 200 == 0:
            checkpoint.save(path, vae=vae.state_dict(), optimisers=muon.states(optimisers), step=step + 1)


def _loss(vae: AutoencoderKLFlux2, x: Tensor, with_encoder: bool) -> Tensor:
    mean = vae._encode(x).chunk(2, 1)[0]
    z = normalise(mean) + NOISE * torch.randn_like(mean) if with_encoder else mean.detach()
    y = vae.decoder(vae.post_quant_conv(z))
    edges = F.l1_loss(y.diff(dim=2), x.diff(dim=2)) + F.l1_loss(y.diff(dim=3), x.diff(dim=3))
    return F.l1_loss(y, x) + edges


def normalise(mean: Tensor) -> Tensor:
    """Give each latent channel mean 0 and deviation 1 over the batch, so that it cannot vanish."""
    return (mean - mean.mean((0, 2, 3), keepdim=True)) / (mean.std((0, 2, 3), keepdim=True) + 1e-6)


@torch.no_grad()
def rotate(vae: AutoencoderKLFlux2, pixels: Tensor) -> None:
    """Normalise and rotate the latent channels onto principal directions; store the patched latents' statistics.

    Both are folded into the two 1 x 1 convolutions around the latents, so that reconstructions do not change.
    """
    into, out = vae.quant_conv, vae.post_quant_conv
    mean = torch.cat([vae._encode(x).chunk(2, 1)[0] for x in pixels.split(64)])
    scale, channels = mean.std((0, 2, 3)), mean.shape[1]
    into.bias[:channels] = (into.bias[:channels] - mean.mean((0, 2, 3))) / scale
    into.weight[:channels] /= scale.view(-1, 1, 1, 1)
    rows = normalise(mean).permute(0, 2, 3, 1).flatten(0, 2)
    variance, directions = torch.linalg.eigh(torch.cov(rows.T))
    rotation = directions.flip(1).T
    into.weight[:channels] = torch.einsum("ij,jkhw->ikhw", rotation, into.weight[:channels])
    into.bias[:channels] = rotation @ into.bias[:channels]
    into.weight[channels:] = 0  # the variance that the VAE reports is the noise that it was trained with
    into.bias[channels:] = 2 * math.log(NOISE)
    out.weight.copy_(torch.einsum("ijhw,kj->ikhw", out.weight, rotation))
    patched = torch.cat([patch(vae._encode(x).chunk(2, 1)[0]) for x in pixels.split(64)])
    vae.bn.running_mean.copy_(patched.mean((0, 2, 3)))
    vae.bn.running_var.fill_(
        patched.var((0, 2, 3)).mean()
    )  # one scale: weak directions stay weak, not learned as noise
    shares = (variance.flip(0) / variance.sum()).tolist()
    print("variance of the latent directions:", " ".join(f"{share:.3f}" for share in shares), flush=True)


def patch(z: Tensor) -> Tensor:
    """Gather 2 x 2 neighbours into channels, as FLUX.2 does. Shapes: (B, C, h, w) to (B, 4C, h/2, w/2)."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


@torch.no_grad()
def encode(vae: AutoencoderKLFlux2, pixels: Tensor) -> Tensor:
    """Turn pictures into the latents that the transformer sees. Shapes: to (N, 32, 4, 4)."""
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    z = torch.cat([patch(vae._encode(x).chunk(2, 1)[0]) for x in pixels.split(64)])
    return (z - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
