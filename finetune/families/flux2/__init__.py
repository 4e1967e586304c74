"""FLUX.2 klein: latents of 2 x 2 patches, whitened; text from three hidden layers of Qwen3; no guidance embedding.

Source: `Flux2KleinPipeline` of diffusers, with which every step here agrees (tests compare the two).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import layouts, settings, toys
from finetune.families import BaseModel, Encoding, Refused, Sampler
from finetune.families.flux2 import network
from finetune.memory import Fit, Size

if TYPE_CHECKING:
    from PIL.Image import Image

DEMO = BaseModel(
    id="demo",
    title="Demo",
    note="a small emoji model, runs on any computer",
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
    architecture={
        "in_channels": 32,
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 64,
        "num_attention_heads": 4,
        "joint_attention_dim": 576,
        "axes_dims_rope": (16, 16, 16, 16),
        "guidance_embeds": False,
    },
)

# Licences, gates and sampler settings: table of models in github.com/black-forest-labs/flux2 (README.md) and the model
# cards. Sizes: parameters in 16 bits, counted on the classes of diffusers and of transformers.
KLEIN_4B = BaseModel(
    id="flux2-klein-base-4b",
    title="FLUX.2 klein base 4B",
    note="suggested on a GPU",
    family="flux2-klein",
    source="black-forest-labs/FLUX.2-klein-base-4B",
    licence="Apache 2.0",
    licence_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-base-4B/blob/main/LICENSE.md",
    resolution_px=1024,
    sampler=Sampler(steps=50, guidance_scale=4.0),
    architecture={
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    text_encoder_gib=7.5,
    download_gib=15.0,
    captioner="qwen3-vl-2b",
    text_layers=(9, 18, 27),
    distilled="black-forest-labs/FLUX.2-klein-4B",
    modelspec="Flux.2-klein-4b",
)

KLEIN_9B = replace(
    KLEIN_4B,
    id="flux2-klein-base-9b",
    title="FLUX.2 klein base 9B",
    note="",
    source="black-forest-labs/FLUX.2-klein-base-9B",
    licence="FLUX Non-Commercial License",
    licence_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B/blob/main/LICENSE.md",
    architecture={
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
    text_encoder_gib=15.3,
    download_gib=32.4,
    captioner="qwen3-vl-4b",
    is_commercial=False,
    is_gated=True,
    distilled="black-forest-labs/FLUX.2-klein-9B",
    modelspec="Flux.2-klein-9b",
)


TINY = replace(
    DEMO,
    id="tiny",
    title="Tiny",
    source="",
    sampler=Sampler(steps=4, guidance_scale=3.0),
    architecture={
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * 16,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    },
)

CACHED = "Flux2KleinKVPipeline"  # its only published model is a distilled one
DISTILLED = "it was distilled to draw in few steps, and training undoes that: pictures come out grey or broken"
REFUSED = (
    Refused("black-forest-labs/FLUX.2-klein-4B", DISTILLED, KLEIN_4B.id),
    Refused("black-forest-labs/FLUX.2-klein-9B", DISTILLED, KLEIN_9B.id),
    Refused("black-forest-labs/FLUX.2-klein-9b-kv", DISTILLED, KLEIN_9B.id),
)


@dataclass
class Flux2KleinModel(network.Flux2Model):
    """A FLUX.2 klein in memory, part by part."""

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

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts as the pipeline does. Padding is not masked: the transformer was trained to see it."""
        rows = self.part("tokenizer")(
            [self._in_template(prompt) for prompt in prompts],
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=self.base.text_tokens,
        )
        return {"text": self.text_states({name: rows[name] for name in ("input_ids", "attention_mask")})}

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""
        return self.unread(self.part("tokenizer"), prompt, self._in_template)

    def draw_with_file(
        self, lora: Path | None, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through diffusers' pipeline around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        from diffusers import Flux2KleinPipeline

        return self.draw_through(
            Flux2KleinPipeline, lora, seed, size, prompt_embeds=encoding["text"], negative_prompt_embeds=empty["text"]
        )

    def save(self, folder: Path) -> BaseModel:
        """Write all parts as a folder that `Flux2KleinPipeline` reads; returns the base model that it makes."""
        from diffusers import Flux2KleinPipeline

        return self.save_through(Flux2KleinPipeline, folder)

    def _in_template(self, prompt: str) -> str:
        return self.part("tokenizer").apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


@dataclass(frozen=True)
class Flux2Klein:
    """The FLUX.2 klein family."""

    id: str = "flux2-klein"
    title: str = "FLUX.2 klein"
    patch_px: int = network.WhitenedLatents.patch_px
    pipeline_classes: tuple[str, ...] = ("Flux2KleinPipeline", CACHED)
    refused: tuple[Refused, ...] = REFUSED
    lora_targets: str = network.LORA_TARGETS

    @property
    def bases(self) -> tuple[BaseModel, ...]:
        """The base models of the family; the demo base is where the settings say."""
        return (KLEIN_4B, KLEIN_9B, _demo())

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Flux2KleinModel:
        """Open a base model from a folder; weights follow when they are needed."""
        return Flux2KleinModel(base, folder, device, fit)

    def tiny(self) -> Flux2KleinModel:
        """The same classes at toy size with random weights, for tests."""
        with toys.seeded():
            return Flux2KleinModel(TINY, None, "cpu", _parts=toys.frozen(_tiny_parts()))

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""
        return network.size(base)

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError."""
        if folder.resolve() == settings.read().demo_base:
            return _demo()
        record = layouts.described(folder, self, (*self.bases, TINY), network.DEFAULTS, Flux2KleinModel.text_parts)
        index = layouts.index(folder)
        if index.get("is_distilled") or index["_class_name"] == CACHED:
            raise layouts.refusal(folder, DISTILLED, KLEIN_9B if record.modelspec == KLEIN_9B.modelspec else KLEIN_4B)
        return record

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The published checkpoint's layers, and which of ours each consists of."""
        return network.published_names(base)

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
        return layouts.usage(USAGE, base, lora_name, prompt, FASTER)


USAGE = """\
import torch
from diffusers import Flux2KleinPipeline

pipeline = Flux2KleinPipeline.from_pretrained("{source}"{dtype}){place}
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
FASTER = "# Much faster: load “{distilled}” above, with num_inference_steps=4 and guidance_scale=1.0."


def _demo() -> BaseModel:
    folder = settings.read().demo_base
    is_there = (folder / "transformer" / "config.json").is_file()
    values = layouts.architecture(folder, network.DEFAULTS) if is_there else DEMO.architecture
    return replace(DEMO, source=str(folder), architecture=values)


def _tiny_parts() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vae, tokenizer = network.tiny_vae(), toys.tokenizer()
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
    return {
        "transformer": Flux2Transformer2DModel(**TINY.architecture),
        "vae": vae,
        "text_encoder": Qwen3ForCausalLM(text),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


FAMILY = Flux2Klein()
