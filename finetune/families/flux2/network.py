"""What the FLUX.2 networks share, klein and dev: latents, calls, layers and their number. FLUX.3 has the same latents.

Source: `Flux2Pipeline` and `Flux2KleinPipeline` of diffusers, with which every step here agrees (tests compare them).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.families import BaseModel, Encoding
from finetune.memory import Size
from finetune.parts import Parts, flow_times, noise, positions, precision

if TYPE_CHECKING:
    from torch import Tensor, nn

# The defaults of the transformer's class, so that layers can be named and counted without loading it.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": True,
}

# `to_out` is a list of layers in the double blocks and a layer in the single ones: peft takes no pattern for both
# unless it is anchored at both ends.
LORA_TARGETS = (
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|(ff|ff_context)\.(linear_in|linear_out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)


@dataclass
class WhitenedLatents(Parts):
    """Latents of 2 x 2 patches, whitened with the statistics that the VAE's batch norm keeps."""

    patch_px: ClassVar[int] = 16

    @property
    def latent_channels(self) -> int:
        """Channels of the patched latents."""
        return self.transformer.config.in_channels

    def encode_images(self, pixels: "Tensor") -> "Tensor":
        """Shapes: (B, 3, H, W) in [-1, 1] to latents (B, C, h, w); H and W are multiples of 16."""
        import torch
        from torch.nn.functional import pixel_unshuffle

        vae = self.part("vae")
        with torch.no_grad():
            latents = pixel_unshuffle(vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode(), 2)
            mean, deviation = _whitening(vae, latents)
            return (latents - mean) / deviation

    def decode_latents(self, latents: "Tensor") -> "Tensor":
        """Shapes: latents (B, C, h, w) to (B, 3, H, W), about [-1, 1]."""
        import torch
        from torch.nn.functional import pixel_shuffle

        vae = self.part("vae")
        with torch.no_grad():
            latents = latents.to(self.device, vae.dtype)
            mean, deviation = _whitening(vae, latents)
            return vae.decode(pixel_shuffle(latents * deviation + mean, 2), return_dict=False)[0]


@dataclass
class Flux2Model(WhitenedLatents):
    """What klein and dev share: how the transformer is asked, where pictures start and which times they visit."""

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding, guidance: float = 1.0) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy."""
        transformer = self.transformer
        dtype = next(transformer.parameters()).dtype  # its own `dtype` walks over all modules
        batch, channels, height, width = noisy.shape
        tokens = transformer(
            hidden_states=noisy.to(self.device, dtype).flatten(2).mT,
            encoder_hidden_states=encoding["text"].to(self.device, dtype),
            timestep=t.to(self.device),
            img_ids=positions(1, height, width, 1).to(self.device),
            txt_ids=positions(1, 1, 1, encoding["text"].shape[1]).to(self.device),
            guidance=t.new_full((batch,), guidance).to(self.device) if self.base.sampler.is_guidance_embedded else None,
            return_dict=False,
        )[0]
        return tokens.mT.reshape(batch, channels, height, width)

    def draw_noise(self, seed: int, latent_size: tuple[int, int]) -> "Tensor":
        """The noise that the pipeline starts from with this seed. Shapes: (1, C, h, w), float32."""
        return noise((1, self.latent_channels, *latent_size), seed, precision(self.device)).float()

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return flow_times(self.part("scheduler"), steps, compute_empirical_mu(latent_size[0] * latent_size[1], steps))


def published_names(base: BaseModel) -> dict[str, tuple[str, ...]]:
    """The published checkpoint's layers of a FLUX.2, and which of ours each consists of."""
    architecture = {**DEFAULTS, **base.architecture}
    names: dict[str, tuple[str, ...]] = {}
    for number in range(architecture["num_layers"]):
        here, ours = f"double_blocks.{number}", f"transformer_blocks.{number}"
        names[f"{here}.img_attn.qkv"] = tuple(f"{ours}.attn.{name}" for name in ("to_q", "to_k", "to_v"))
        names[f"{here}.img_attn.proj"] = (f"{ours}.attn.to_out.0",)
        names[f"{here}.img_mlp.0"] = (f"{ours}.ff.linear_in",)
        names[f"{here}.img_mlp.2"] = (f"{ours}.ff.linear_out",)
        names[f"{here}.txt_attn.qkv"] = tuple(f"{ours}.attn.add_{name}_proj" for name in "qkv")
        names[f"{here}.txt_attn.proj"] = (f"{ours}.attn.to_add_out",)
        names[f"{here}.txt_mlp.0"] = (f"{ours}.ff_context.linear_in",)
        names[f"{here}.txt_mlp.2"] = (f"{ours}.ff_context.linear_out",)
    for number in range(architecture["num_single_layers"]):
        here, ours = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
        names[f"{here}.linear1"] = (f"{ours}.attn.to_qkv_mlp_proj",)
        names[f"{here}.linear2"] = (f"{ours}.attn.to_out",)
    return names


def size(base: BaseModel) -> Size:
    """How large a FLUX.2 transformer is, from its architecture alone."""
    all_ = {**DEFAULTS, **base.architecture}
    head, width = all_["attention_head_dim"], all_["attention_head_dim"] * all_["num_attention_heads"]
    inner, double, single = int(width * all_["mlp_ratio"]), all_["num_layers"], all_["num_single_layers"]
    feed = [(width, 2 * inner), (inner, width)]
    streams = double * (8 * [(width, width)] + 2 * feed)  # half for the image, half for the text
    joint = single * [(width, 3 * width + 2 * inner), (width + inner, width)]
    layers = streams + joint
    targeted = sum(into * out for into, out in layers)
    norms = double * 4 * head + single * 2 * head
    embedded = all_["timestep_guidance_channels"] + width
    around = all_["in_channels"] + all_["joint_attention_dim"] + embedded * (1 + all_["guidance_embeds"])
    around += all_["patch_size"] ** 2 * (all_["out_channels"] or all_["in_channels"])
    modulation = 6 + 6 + 3 + 2
    return Size(
        parameters=targeted + norms + width * (around + modulation * width),
        targeted=targeted,
        in_blocks=targeted,
        passed=targeted - sum(into * out for into, out in streams) // 2,
        adapter_per_rank=sum(into + out for into, out in layers),
        blocks=double + single,
        hidden=width,
        # counted in 16 bits with saved-tensor hooks, without the few values per head of the norms (0.4 %)
        kept_per_token=double * (12 * width + 4 * inner) + single * (13 * width + 4 * inner) + 2 * width,
        kept_around=width,
    )


def _whitening(vae: "nn.Module", latents: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Mean and deviation of the patched latents, as the VAE's batch norm keeps them. Shapes: (1, C, 1, 1) each."""
    mean, variance = (x.view(1, -1, 1, 1).to(latents) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def tiny_vae() -> "nn.Module":
    """The VAE of FLUX.2 at toy size."""
    from diffusers import AutoencoderKLFlux2

    blocks = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKLFlux2(**blocks, latent_channels=4, mid_block_add_attention=False)
    vae.decoder.conv_out.weight.data *= 4  # so that pictures have colours, and comparing them means something
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 1.5)
    return vae
