"""FLUX.2 klein: latents of 2 x 2 patches, whitened; text from three hidden layers of Qwen3; no guidance embedding.

Source: `Flux2KleinPipeline` of diffusers, with which every step here agrees (tests compare the two).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finetune import settings
from finetune.families import BaseModel, Encoding, Refused, Sampler
from finetune.memory import Fit, Size
from finetune.parts import Parts, precision

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")

DEMO = BaseModel(
    id="demo",
    title="Demo: small emoji model, runs on any computer",
    family="flux2-klein",
    source=str(settings.DEMO_BASE),
    licence="Apache 2.0",
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    resolution_px=64,
    sampler=Sampler(steps=24, guidance_scale=5.0),
    captioner="demo",
    text_tokens=20,
    text_layers=(2, 3, 4),
    sample_things=("a rose", "a pizza"),
    time_shift=10.0,
)


@dataclass
class Flux2KleinModel(Parts):
    """A base model in memory, part by part."""

    patch_px: ClassVar[int] = 16
    is_guidance_embedded: ClassVar[bool] = False

    @staticmethod
    def kinds() -> Mapping[str, type]:
        """The class of each part, by its folder's name."""
        import diffusers
        import transformers

        return {
            "transformer": diffusers.Flux2Transformer2DModel,
            "vae": diffusers.AutoencoderKLFlux2,
            "text_encoder": transformers.Qwen3ForCausalLM,
            "tokenizer": transformers.Qwen2TokenizerFast,
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
            latents = _patch(vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode())
            mean, deviation = _whitening(vae, latents)
            return (latents - mean) / deviation

    def decode_latents(self, latents: "Tensor") -> "Tensor":
        """Shapes: latents (B, C, h, w) to (B, 3, H, W), about [-1, 1]."""
        import torch

        vae = self.part("vae")
        with torch.no_grad():
            latents = latents.to(self.device, vae.dtype)
            mean, deviation = _whitening(vae, latents)
            return vae.decode(_unpatch(latents * deviation + mean), return_dict=False)[0]

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts as the pipeline does. Padding is not masked: the transformer was trained to see it."""
        import torch

        encoder = self.part("text_encoder")
        rows = self.part("tokenizer")(
            [self._in_template(prompt) for prompt in prompts],
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=self.base.text_tokens,
        ).to(self.device)
        with torch.no_grad():
            states = encoder(**_only(rows, "input_ids", "attention_mask"), output_hidden_states=True, use_cache=False)
        return {"text": torch.cat([states.hidden_states[layer] for layer in self.base.text_layers], dim=-1)}

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""
        text = self._in_template(prompt)
        spans = self.part("tokenizer")(text, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= self.base.text_tokens:
            return ""
        read = spans[self.base.text_tokens - 1][1] - text.index(prompt)
        return prompt[max(0, read) :].strip()

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding, guidance: float = 1.0) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy."""
        transformer = self.transformer
        batch, channels, height, width = noisy.shape
        tokens = transformer(
            hidden_states=noisy.to(self.device, transformer.dtype).flatten(2).mT,
            encoder_hidden_states=encoding["text"].to(self.device, transformer.dtype),
            timestep=t.to(self.device),
            img_ids=_positions(1, height, width, 1).to(self.device),
            txt_ids=_positions(1, 1, 1, encoding["text"].shape[1]).to(self.device),
            guidance=None,
            return_dict=False,
        )[0]
        return tokens.mT.reshape(batch, channels, height, width)

    def draw_noise(self, seed: int, latent_size: tuple[int, int]) -> "Tensor":
        """The noise that the pipeline starts from with this seed. Shapes: (1, C, h, w), float32."""
        import torch

        shape = (1, self.latent_channels, *latent_size)
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=draw, dtype=precision(self.device)).float()

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""
        import numpy
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        scheduler = self.part("scheduler")
        times = None if scheduler.config.get("use_flow_sigmas") else numpy.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(steps, sigmas=times, mu=compute_empirical_mu(latent_size[0] * latent_size[1], steps))
        return scheduler.sigmas.clone()

    def draw_with_file(
        self, lora: Path, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through diffusers' pipeline around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        import torch
        from diffusers import Flux2KleinPipeline

        parts = {name: self.part(name) for name in ("transformer", "vae", "scheduler")}
        pipeline = Flux2KleinPipeline(**parts, text_encoder=None, tokenizer=None)
        pipeline.set_progress_bar_config(disable=True)
        with self.with_file(pipeline, lora):
            return pipeline(
                prompt_embeds=encoding["text"].to(self.device),
                negative_prompt_embeds=empty["text"].to(self.device),
                width=size[0],
                height=size[1],
                num_inference_steps=self.base.sampler.steps,
                guidance_scale=self.base.sampler.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]

    def save(self, folder: Path) -> BaseModel:
        """Write all parts as a folder that `Flux2KleinPipeline` reads; returns the base model that it makes."""
        from diffusers import Flux2KleinPipeline

        Flux2KleinPipeline(**{part: self.part(part) for part in PARTS}).save_pretrained(folder)
        return replace(self.base, source=str(folder))

    def _in_template(self, prompt: str) -> str:
        return self.part("tokenizer").apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


@dataclass(frozen=True)
class Flux2Klein:
    """The FLUX.2 klein family."""

    id: str = "flux2-klein"
    title: str = "FLUX.2 klein"
    pipeline_classes: tuple[str, ...] = ("Flux2KleinPipeline",)
    refused: tuple[Refused, ...] = ()
    # `to_out` is a list of layers in the double blocks and a layer in the single ones: peft takes no pattern for both
    # unless it is anchored at both ends.
    lora_targets: str = (
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|(ff|ff_context)\.(linear_in|linear_out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    @property
    def bases(self) -> tuple[BaseModel, ...]:
        """The base models of the family; the demo base is where the settings say."""
        return (replace(DEMO, source=str(settings.read().demo_base)),)

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Flux2KleinModel:
        """Open a base model from a folder; weights follow when they are needed."""
        return Flux2KleinModel(base, folder, device, fit)

    def tiny(self) -> Flux2KleinModel:
        """The same classes at toy size with random weights, for tests."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts = _tiny_parts()
        base = replace(DEMO, id="tiny", title="Tiny", source="", sampler=Sampler(4, 3.0))
        return Flux2KleinModel(base, None, "cpu", _parts=parts)

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""
        raise NotImplementedError

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError."""
        raise NotImplementedError

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The published checkpoint's layers, and which of ours each consists of."""
        raise NotImplementedError

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
        source = "path/to/assets/demo-base" if Path(base.source).is_absolute() else base.source
        return USAGE.format(
            source=source, lora=lora_name, prompt=prompt, base=base, sampler=base.sampler, side=base.resolution_px
        )


USAGE = """\
import torch
from diffusers import Flux2KleinPipeline

pipeline = Flux2KleinPipeline.from_pretrained("{source}")
pipeline.load_lora_weights("path/to/folder", weight_name="{lora}")
image = pipeline(
    prompt={prompt!r},
    width={side},
    height={side},
    num_inference_steps={sampler.steps},
    guidance_scale={sampler.guidance_scale},
    max_sequence_length={base.text_tokens},
    text_encoder_out_layers={base.text_layers},
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("picture.png")
"""


def _only(rows: Any, *names: str) -> dict[str, "Tensor"]:
    return {name: rows[name] for name in names}


def _patch(latents: "Tensor") -> "Tensor":
    """Gather 2 x 2 neighbours into channels. Shapes: (B, C, h, w) to (B, 4C, h/2, w/2)."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, 2)


def _unpatch(latents: "Tensor") -> "Tensor":
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(latents, 2)


def _whitening(vae: "nn.Module", latents: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Mean and deviation of the patched latents, as the VAE's batch norm keeps them. Shapes: (1, C, 1, 1) each."""
    mean, variance = (x.view(1, -1, 1, 1).to(latents) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _positions(*lengths: int) -> "Tensor":
    """Coordinates (time, row, column, word) of each token, in order."""
    import torch

    return torch.cartesian_prod(*[torch.arange(length) for length in lengths])


def _tiny_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    blocks = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKLFlux2(**blocks, latent_channels=4, mid_block_add_attention=False)
    vae.decoder.conv_out.weight.data *= 4  # so that pictures have colours, and comparing them means something
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 1.5)
    tokenizer = _tiny_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    networks = {"transformer": transformer, "vae": vae, "text_encoder": Qwen3ForCausalLM(text)}
    return {
        **{name: network.eval().requires_grad_(False) for name, network in networks.items()},
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _tiny_tokenizer() -> Any:
    """A tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None, padding_side="right"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": words[:3]})
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    return tokenizer


FAMILY = Flux2Klein()
