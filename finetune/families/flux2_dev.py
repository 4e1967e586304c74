"""FLUX.2 dev: the network of FLUX.2, text from three hidden layers of Mistral, and guidance as an input.

Source: `Flux2Pipeline` of diffusers, with which every step here agrees (tests compare the two). Its processor needs
torchvision for pictures; what it does to text is a template and a tokenizer, and these are used here alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import layouts, toys
from finetune.families import BaseModel, Encoding, Refused, Sampler
from finetune.families.flux2 import network
from finetune.memory import Fit, Size

if TYPE_CHECKING:
    from PIL.Image import Image

# Licence, gate: table of models in github.com/black-forest-labs/flux2 (README.md). Sampler: its model card. Sizes:
# parameters in 16 bits, counted on the classes of diffusers and of transformers.
DEV = BaseModel(
    id="flux2-dev",
    title="FLUX.2 dev",
    family="flux2-dev",
    source="black-forest-labs/FLUX.2-dev",
    licence="FLUX Non-Commercial License",
    licence_url="https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
    resolution_px=1024,
    sampler=Sampler(steps=28, guidance_scale=4.0, is_guidance_embedded=True),
    text_encoder_gib=44.7,
    download_gib=105.0,
    captioner="qwen3-vl-4b",
    text_layers=(10, 20, 30),
    is_commercial=False,
    is_gated=True,
    modelspec="Flux.2-dev",
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
        "joint_attention_dim": 3 * 16,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    text_encoder_gib=0.0,
    download_gib=0.0,
    captioner="",
    text_tokens=224,
    text_layers=(1, 2, 3),
)


@dataclass
class Flux2DevModel(network.Flux2Model):
    """A FLUX.2 dev in memory, part by part."""

    @staticmethod
    def kinds() -> Mapping[str, type]:
        """The class of each part, by its folder's name."""
        import diffusers
        import transformers

        return {
            "transformer": diffusers.Flux2Transformer2DModel,
            "vae": diffusers.AutoencoderKLFlux2,
            "text_encoder": transformers.Mistral3ForConditionalGeneration,
            # as the processor reads it: the class that the files name splits words differently
            "tokenizer": transformers.PreTrainedTokenizerFast,
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
        }

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts as the pipeline does. Padding is not masked: the transformer was trained to see it."""
        told = {"padding": "max_length", "truncation": True, "max_length": self.base.text_tokens}
        rows = self._tokens([self._in_template(prompt) for prompt in prompts], return_tensors="pt", **told)
        return {"text": self.text_states({name: rows[name] for name in ("input_ids", "attention_mask")})}

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""
        return self.unread(self._tokens, prompt, self._in_template)

    def draw_with_file(
        self, lora: Path | None, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through diffusers' pipeline around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        from diffusers import Flux2Pipeline

        return self.draw_through(Flux2Pipeline, lora, seed, size, prompt_embeds=encoding["text"])

    def save(self, folder: Path) -> BaseModel:
        """Write all parts as a folder in the layout of `Flux2Pipeline`; returns the base model that it makes."""
        from diffusers import Flux2Pipeline

        return self.save_through(Flux2Pipeline, folder)

    def _tokens(self, texts: str | list[str], **told: Any) -> Any:
        """Tokens of rendered templates; like the processor, with the first token where no template wrote it."""
        tokenizer = self.part("tokenizer")
        begin = tokenizer.bos_token
        is_begun = begin is not None and (texts if isinstance(texts, str) else texts[0]).startswith(begin)
        return tokenizer(texts, add_special_tokens=not is_begun, **told)

    def _in_template(self, prompt: str) -> str:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        [messages] = format_input([prompt])
        return self.part("tokenizer").apply_chat_template(messages, tokenize=False, add_generation_prompt=False)


@dataclass(frozen=True)
class Flux2Dev:
    """The FLUX.2 dev family."""

    id: str = "flux2-dev"
    title: str = "FLUX.2 dev"
    patch_px: int = network.WhitenedLatents.patch_px
    pipeline_classes: tuple[str, ...] = ("Flux2Pipeline",)
    bases: tuple[BaseModel, ...] = (DEV,)
    refused: tuple[Refused, ...] = ()
    lora_targets: str = network.LORA_TARGETS

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Flux2DevModel:
        """Open a base model from a folder; weights follow when they are needed."""
        return Flux2DevModel(base, folder, device, fit)

    def tiny(self) -> Flux2DevModel:
        """The same classes at toy size with random weights, for tests."""
        with toys.seeded():
            return Flux2DevModel(TINY, None, "cpu", _parts=toys.frozen(_tiny_parts()))

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""
        return network.size(base)

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError."""
        return layouts.described(folder, self, (DEV, TINY), network.DEFAULTS, Flux2DevModel.text_parts)

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The published checkpoint's layers, and which of ours each consists of."""
        return network.published_names(base)

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
        return layouts.usage(USAGE, base, lora_name, prompt)


USAGE = """\
import torch  # and torchvision, which the pipeline's processor needs
from diffusers import Flux2Pipeline

pipeline = Flux2Pipeline.from_pretrained("{source}"{dtype})
pipeline.load_lora_weights("path/to/folder", weight_name="{lora}")
pipeline.enable_model_cpu_offload()  # all parts together are larger than a GPU: each comes when it is needed
image = pipeline(
    prompt={prompt!r},
    width={side},
    height={side},
    num_inference_steps={sampler.steps},
    guidance_scale={sampler.guidance_scale},
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("picture.png")
"""

CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role[:4] }}]"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
)


def _tiny_tokenizer() -> Any:
    """A tokenizer of single bytes that, like the published one, begins each text and pads on the left."""
    from tokenizers import processors

    tokenizer, begin = toys.tokenizer(CHAT, "[IMG]", "[IMG_BREAK]", "[IMG_END]"), toys.WORDS[1]
    tokenizer.bos_token, tokenizer.padding_side = begin, "left"
    special = [(begin, tokenizer.convert_tokens_to_ids(begin))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", None, special)
    return tokenizer


def _tiny_parts() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    tokenizer = _tiny_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    text = MistralConfig(
        **small,
        vocab_size=len(tokenizer),
        num_hidden_layers=5,
        num_key_value_heads=1,
        max_position_embeddings=256,
        sliding_window=None,
    )
    sight = PixtralVisionConfig(**small, num_hidden_layers=1, image_size=32, patch_size=16)
    config = Mistral3Config(
        text_config=text, vision_config=sight, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]")
    )
    return {
        "transformer": Flux2Transformer2DModel(**TINY.architecture),
        "vae": network.tiny_vae(),
        "text_encoder": Mistral3ForConditionalGeneration(config),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


FAMILY = Flux2Dev()
