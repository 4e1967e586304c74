"""FLUX.1: latents of 2 x 2 patches; text from T5, and one vector from CLIP; guidance is an input of the network.

Source: `FluxPipeline` of diffusers, with which every step here agrees (tests compare the two).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finetune import layouts, toys
from finetune.families import BaseModel, Encoding, Refused, Sampler
from finetune.memory import Fit, Size
from finetune.parts import Parts, flow_times, noise, positions, precision

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

# The defaults of the transformer's class, so that layers can be named and counted without loading it.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}

DEV = BaseModel(
    id="flux1-dev",
    title="FLUX.1 dev",
    family="flux1",
    source="black-forest-labs/FLUX.1-dev",
    licence="FLUX.1 [dev] Non-Commercial License",
    licence_url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    resolution_px=1024,
    sampler=Sampler(steps=28, guidance_scale=3.5, is_guidance_embedded=True),
    architecture={"guidance_embeds": True},
    text_encoder_gib=9.1,
    download_gib=31.4,
    captioner="qwen3-vl-4b",
    is_commercial=False,
    is_gated=True,
    modelspec="flux-1-dev",
)

KREA = replace(
    DEV,
    id="flux1-krea-dev",
    title="FLUX.1 Krea dev",
    source="black-forest-labs/FLUX.1-Krea-dev",
    licence_url="https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev/blob/main/LICENSE.md",
    sampler=Sampler(steps=28, guidance_scale=4.5, is_guidance_embedded=True),
)


TINY = replace(
    DEV,
    id="tiny",
    title="Tiny",
    source="",
    sampler=Sampler(steps=4, guidance_scale=3.0, is_guidance_embedded=True),
    architecture={
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    },
    text_encoder_gib=0.0,
    download_gib=0.0,
    captioner="",
    text_tokens=24,
)

SCHNELL = "it was distilled to draw in four steps without guidance, and training undoes that"
REFUSED = (Refused("black-forest-labs/FLUX.1-schnell", SCHNELL, DEV.id),)


@dataclass
class Flux1Model(Parts):
    """A FLUX.1 in memory, part by part."""

    patch_px: ClassVar[int] = 16
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    @staticmethod
    def kinds() -> Mapping[str, type]:
        """The class of each part, by its folder's name."""
        import diffusers
        import transformers

        return {
            "transformer": diffusers.FluxTransformer2DModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": transformers.CLIPTextModel,
            "text_encoder_2": transformers.T5EncoderModel,
            "tokenizer": transformers.CLIPTokenizer,
            "tokenizer_2": transformers.T5TokenizerFast,
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
        }

    @property
    def latent_channels(self) -> int:
        """Channels of the patched latents."""
        return self.transformer.config.in_channels

    def encode_images(self, pixels: "Tensor") -> "Tensor":
        """Shapes: (B, 3, H, W) in [-1, 1] to latents (B, C, h, w); H and W are multiples of 16."""
        import torch

        vae = self.part("vae")
        with torch.no_grad():
            latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
            return _patch((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def decode_latents(self, latents: "Tensor") -> "Tensor":
        """Shapes: latents (B, C, h, w) to (B, 3, H, W), about [-1, 1]."""
        import torch
        from torch.nn.functional import pixel_shuffle

        vae = self.part("vae")
        with torch.no_grad():
            latents = pixel_shuffle(latents.to(self.device, vae.dtype), 2)
            return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts as the pipeline does. Padding is not masked: the transformer was trained to see it."""
        import torch

        short, long = self.part("tokenizer"), self.part("tokenizer_2")
        with torch.no_grad():
            pooled = self.part("text_encoder")(_ids(short, prompts, short.model_max_length).to(self.device))
            text = self.part("text_encoder_2")(_ids(long, prompts, self.base.text_tokens).to(self.device))
        return {"text": text[0].to(self.device), "pooled": pooled.pooler_output.to(self.device)}

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that T5 does not read; empty if it reads all. CLIP only adds the gist of the start."""
        return self.unread(self.part("tokenizer_2"), prompt)

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding, guidance: float = 1.0) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy."""
        transformer = self.transformer
        dtype = next(transformer.parameters()).dtype  # its own `dtype` walks over all modules
        batch, channels, height, width = noisy.shape
        tokens = transformer(
            hidden_states=noisy.to(self.device, dtype).flatten(2).mT,
            encoder_hidden_states=encoding["text"].to(self.device, dtype),
            pooled_projections=encoding["pooled"].to(self.device, dtype),
            timestep=t.to(self.device),
            img_ids=positions(1, height, width).to(self.device),
            txt_ids=t.new_zeros(encoding["text"].shape[1], 3).to(self.device),
            guidance=t.new_full((batch,), guidance).to(self.device),
            return_dict=False,
        )[0]
        return tokens.mT.reshape(batch, channels, height, width)

    def draw_noise(self, seed: int, latent_size: tuple[int, int]) -> "Tensor":
        """The noise that the pipeline starts from with this seed. Shapes: (1, C, h, w), float32."""
        shape = (1, self.latent_channels // 4, 2 * latent_size[0], 2 * latent_size[1])  # drawn before it is patched
        return _patch(noise(shape, seed, precision(self.device)).float())

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = self.part("scheduler")
        named = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        named |= {name: name for name in ("base_shift", "max_shift")}
        told = {ours: scheduler.config[theirs] for ours, theirs in named.items() if theirs in scheduler.config}
        return flow_times(scheduler, steps, calculate_shift(latent_size[0] * latent_size[1], **told))

    def draw_with_file(
        self, lora: Path | None, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through diffusers' pipeline around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        from diffusers import FluxPipeline

        return self.draw_through(
            FluxPipeline, lora, seed, size, prompt_embeds=encoding["text"], pooled_prompt_embeds=encoding["pooled"]
        )

    def save(self, folder: Path) -> BaseModel:
        """Write all parts as a folder that `FluxPipeline` reads; returns the base model that it makes."""
        from diffusers import FluxPipeline

        return self.save_through(FluxPipeline, folder)


@dataclass(frozen=True)
class Flux1:
    """The FLUX.1 family."""

    id: str = "flux1"
    title: str = "FLUX.1"
    patch_px: int = Flux1Model.patch_px
    pipeline_classes: tuple[str, ...] = ("FluxPipeline",)
    bases: tuple[BaseModel, ...] = (DEV, KREA)
    refused: tuple[Refused, ...] = REFUSED
    # Anchored at both ends, because the last layer of the network is called `proj_out` like one in the single blocks.
    lora_targets: str = (
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|(ff|ff_context)\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
    )

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Flux1Model:
        """Open a base model from a folder; weights follow when they are needed."""
        return Flux1Model(base, folder, device, fit)

    def tiny(self) -> Flux1Model:
        """The same classes at toy size with random weights, for tests."""
        with toys.seeded():
            return Flux1Model(TINY, None, "cpu", _parts=toys.frozen(_tiny_parts()))

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""
        all_ = {**DEFAULTS, **base.architecture}
        head, width = all_["attention_head_dim"], all_["attention_head_dim"] * all_["num_attention_heads"]
        inner, double, single = 4 * width, all_["num_layers"], all_["num_single_layers"]
        feed = [(width, inner), (inner, width)]
        streams = double * (8 * [(width, width)] + 2 * feed)  # half for the image, half for the text
        joint = single * (3 * [(width, width)] + [(width, inner), (width + inner, width)])
        layers = streams + joint
        targeted = sum(into * out for into, out in layers)
        biases = sum(out for _, out in layers)
        norms = double * 4 * head + single * 2 * head
        modulation = (12 * double + 3 * single + 2) * width * (width + 1)
        embedders = 3 if all_["guidance_embeds"] else 2  # of time, of guidance, of the pooled text
        embedded = 256 * (embedders - 1) + all_["pooled_projection_dim"] + embedders * (width + 2)
        embedded += all_["joint_attention_dim"] + all_["in_channels"] + 2
        out = all_["patch_size"] ** 2 * (all_["out_channels"] or all_["in_channels"])
        return Size(
            parameters=targeted + biases + norms + modulation + width * embedded + (width + 1) * out,
            targeted=targeted,
            in_blocks=targeted + (12 * double + 3 * single) * width**2,
            passed=targeted - sum(into * out for into, out in streams) // 2,
            adapter_per_rank=sum(into + out for into, out in layers),
            blocks=double + single,
            hidden=width,
            # counted in 16 bits with saved-tensor hooks, without the few values per head of the norms (0.4 %)
            kept_per_token=(20 * double + 19 * single + 2) * width,
            kept_around=width,
        )

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError."""
        record = layouts.described(folder, self, (DEV, TINY), DEFAULTS, Flux1Model.text_parts)
        if not record.architecture.get("guidance_embeds"):
            raise layouts.refusal(folder, SCHNELL, DEV)
        return record

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
        return layouts.usage(USAGE, base, lora_name, prompt)

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The published checkpoint's layers, and which of ours each consists of."""
        architecture = {**DEFAULTS, **base.architecture}
        names: dict[str, tuple[str, ...]] = {}
        for number in range(architecture["num_layers"]):
            here, ours = f"double_blocks.{number}", f"transformer_blocks.{number}"
            names[f"{here}.img_attn.qkv"] = tuple(f"{ours}.attn.{name}" for name in ("to_q", "to_k", "to_v"))
            names[f"{here}.img_attn.proj"] = (f"{ours}.attn.to_out.0",)
            names[f"{here}.img_mlp.0"] = (f"{ours}.ff.net.0.proj",)
            names[f"{here}.img_mlp.2"] = (f"{ours}.ff.net.2",)
            names[f"{here}.txt_attn.qkv"] = tuple(f"{ours}.attn.add_{name}_proj" for name in "qkv")
            names[f"{here}.txt_attn.proj"] = (f"{ours}.attn.to_add_out",)
            names[f"{here}.txt_mlp.0"] = (f"{ours}.ff_context.net.0.proj",)
            names[f"{here}.txt_mlp.2"] = (f"{ours}.ff_context.net.2",)
        for number in range(architecture["num_single_layers"]):
            here, ours = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
            stacked = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            names[f"{here}.linear1"] = tuple(f"{ours}.{name}" for name in stacked)
            names[f"{here}.linear2"] = (f"{ours}.proj_out",)
        return names


USAGE = """\
import torch
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("{source}"{dtype}){place}
pipeline.load_lora_weights("path/to/folder", weight_name="{lora}")
image = pipeline(
    prompt={prompt!r},
    width={side},
    height={side},
    num_inference_steps={sampler.steps},
    guidance_scale={sampler.guidance_scale},
    max_sequence_length={base.text_tokens},
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("picture.png")
"""


def _patch(latents: "Tensor") -> "Tensor":
    """Gather 2 x 2 neighbours into channels. Shapes: (B, C, h, w) to (B, 4C, h/2, w/2)."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, 2)


def _ids(tokenizer: Any, prompts: Sequence[str], length: int) -> "Tensor":
    """Numbers of words, padded or cut off to a length. Shapes: (B, length)."""
    rows = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return rows.input_ids


def _tiny_parts() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    tokenizer, tokenizer_2 = _tiny_tokenizers()
    text_encoder, text_encoder_2 = _tiny_text_encoders(tokenizer, tokenizer_2)
    # other shifts than the defaults, so that it shows whether they are read
    shifts = {"base_shift": 0.4, "max_shift": 1.3, "base_image_seq_len": 4, "max_image_seq_len": 64}
    return {
        "transformer": FluxTransformer2DModel(**TINY.architecture),
        "vae": _tiny_vae(),
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "scheduler": FlowMatchEulerDiscreteScheduler(**shifts, use_dynamic_shifting=True),
    }


def _tiny_vae() -> "nn.Module":
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    vae.decoder.conv_out.weight.data *= 4  # so that pictures have colours, and comparing them means something
    return vae


def _tiny_tokenizers() -> tuple[Any, Any]:
    """CLIP's of single bytes, T5's of single letters."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    letters = toys.letters()
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    clip = CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=16)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    t5 = T5TokenizerFast([(piece, -float(number > 2)) for number, piece in enumerate(pieces)], extra_ids=0)
    return clip, t5


def _tiny_text_encoders(clip: Any, t5: Any) -> tuple["nn.Module", "nn.Module"]:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    small = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=clip.model_max_length,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    large = T5Config(
        vocab_size=len(t5), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return CLIPTextModel(small), T5EncoderModel(large)


FAMILY = Flux1()
