"""FLUX.3: the latents of FLUX.2; text from eight hidden layers of Qwen3-VL; blocks for image and text apart.

Source: the modular pipeline of diffusers for FLUX.3, with which every step here agrees (tests compare the two).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import layouts, toys
from finetune.families import BaseModel, Encoding, Refused, Sampler
from finetune.families.flux2 import network
from finetune.memory import Fit, Size
from finetune.parts import flow_times, noise, positions, precision

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

WINDOW = 80  # text is padded to a multiple of this many tokens, and the transformer sees the padding
ROPE_SCALE = 0.5  # rows and columns count half
SHIFT = 6.93  # of the sampling times
PIPELINE_PARTS = ("transformer", "vae", "scheduler")

# The defaults of the transformer's class, so that layers can be named and counted without loading it.
DEFAULTS: Mapping[str, Any] = {
    "in_channels": 128,
    "cond_in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 28,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 20480,
    "timestep_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 10000,
    "eps": 1e-6,
    "flow_map": False,
}

# Id, licence, steps and guidance: README.md of github.com/black-forest-labs/flux-3-image-klein (October 2026); gate: a
# public mirror exists because the original is gated. The licence lets those who earn less than five million dollars a
# year use pictures commercially, under conditions: told as not commercial, because most readers must check. Sizes:
# parameters in 16 bits, counted on the classes of diffusers and of transformers.
KLEIN = BaseModel(
    id="flux3-klein-base",
    title="FLUX 3 Image Klein base",
    family="flux3",
    source="black-forest-labs/flux-3-image-klein-base",
    licence="FLUX Kommunity License v1.0",
    licence_url="https://huggingface.co/black-forest-labs/flux-3-image-klein-base/blob/main/LICENSE.md",
    resolution_px=1024,
    sampler=Sampler(steps=50, guidance_scale=4.0),
    text_encoder_gib=8.3,
    download_gib=18.8,
    captioner="own",
    text_tokens=8192,
    text_layers=(4, 8, 12, 16, 20, 24, 28, 32),
    is_commercial=False,
    is_gated=True,
    distilled="black-forest-labs/flux-3-image-klein",
    modelspec="flux-3-image-klein",
)


TINY = replace(
    KLEIN,
    id="tiny",
    title="Tiny",
    source="",
    sampler=Sampler(steps=4, guidance_scale=3.0),
    architecture={
        "in_channels": 16,
        "cond_in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 2 * 16,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    text_encoder_gib=0.0,
    download_gib=0.0,
    captioner="",
    text_tokens=200,
    text_layers=(1, 2),
    distilled="",
)

DISTILLED = "it was distilled to draw in few steps, each told where it jumps to, and training undoes that"
REFUSED = (Refused("black-forest-labs/flux-3-image-klein", DISTILLED, KLEIN.id),)


@dataclass
class Flux3Model(network.WhitenedLatents):
    """A FLUX.3 in memory, part by part."""

    @staticmethod
    def kinds() -> Mapping[str, type]:
        """The class of each part, by its folder's name."""
        import diffusers
        import transformers

        return {
            "transformer": diffusers.Flux3Transformer2DModel,
            "vae": diffusers.AutoencoderKLFlux2,
            "text_encoder": transformers.Qwen3VLForConditionalGeneration,
            "tokenizer": transformers.AutoTokenizer,  # of the published processor, which needs torchvision
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
        }

    def part(self, name: str) -> Any:
        """A part, loaded when it is first asked for. Raises: ModelError.

        A folder of the modular layout may have no scheduler: the pipeline makes it from its own settings.
        """
        if name == "scheduler" and name not in self._parts and not (self.folder / name).is_dir():
            self._parts[name] = self.kinds()[name](shift=SHIFT)
        return super().part(name)

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts as the pipeline does, which takes one at a time.

        Raises: ValueError when prompts need windows of different lengths.
        """
        import torch

        tokenizer, limit = self.part("tokenizer"), self.base.text_tokens
        texts = [self._in_template(prompt) for prompt in prompts]
        lengths = [min(len(row), limit) for row in tokenizer(texts)["input_ids"]]
        windows = {min(-(-length // WINDOW) * WINDOW, limit) for length in lengths}
        if len(windows) != 1:
            raise ValueError(f"prompts of different windows cannot be encoded together: {sorted(windows)}")
        [window] = windows
        told = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": window}
        rows = tokenizer(texts, return_tensors="pt", **told)
        mask = rows["attention_mask"]
        # Padding stands at position 1, as when the network was trained: the transformer sees what is made of it.
        places = torch.arange(window).expand_as(mask).masked_fill(mask == 0, 1)
        rows = {"input_ids": rows["input_ids"], "attention_mask": mask, "position_ids": places}
        return {"text": self.text_states(rows)}

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""
        return self.unread(self.part("tokenizer"), prompt, self._in_template)

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding, guidance: float = 1.0) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy."""
        import torch

        transformer = self.transformer
        dtype = next(transformer.parameters()).dtype  # its own `dtype` walks over all modules
        batch, channels, height, width = noisy.shape
        scale = torch.tensor([1, ROPE_SCALE, ROPE_SCALE, 1])
        tokens = transformer(
            hidden_states=noisy.to(self.device, dtype).flatten(2).mT,
            encoder_hidden_states=encoding["text"].to(self.device, dtype),
            timestep=t.to(self.device),
            img_ids=(positions(1, height, width, 1) * scale).to(self.device),
            txt_ids=positions(1, 1, 1, encoding["text"].shape[1]).to(self.device),
            return_dict=False,
        )[0]
        return tokens.mT.reshape(batch, channels, height, width)

    def draw_noise(self, seed: int, latent_size: tuple[int, int]) -> "Tensor":
        """The noise that the pipeline starts from with this seed. Shapes: (1, C, h, w), float32."""
        import torch

        drawn = noise((1, self.latent_channels, *latent_size), seed, torch.float32)
        return drawn.to(precision(self.device)).float()

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""
        return flow_times(self.part("scheduler"), steps)

    def draw_with_file(
        self, lora: Path | None, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through diffusers' pipeline around the parts in memory, with a LoRA file loaded into it.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """
        import torch
        from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks

        blocks = Flux3AutoBlocks()
        for step in ("prompt_upsampler", "text_encoder"):
            blocks.sub_blocks.pop(step)
        pipeline = blocks.init_pipeline()
        guider = ClassifierFreeGuidance(guidance_scale=self.base.sampler.guidance_scale)
        pipeline.update_components(guider=guider, **{name: self.part(name) for name in PIPELINE_PARTS})
        pipeline.set_progress_bar_config(disable=True)
        with self.with_file(pipeline, lora):
            return pipeline(
                prompt_embeds=encoding["text"].to(self.device),
                negative_prompt_embeds=empty["text"].to(self.device),
                width=size[0],
                height=size[1],
                num_inference_steps=self.base.sampler.steps,
                generator=torch.Generator("cpu").manual_seed(seed),
                output="images",
            )[0]

    def save(self, folder: Path) -> BaseModel:
        """Write all parts as a folder that the modular pipeline reads; returns the base model that it makes."""
        from diffusers import Flux3AutoBlocks

        pipeline = Flux3AutoBlocks().init_pipeline()
        pipeline.update_components(**{part: self.part(part) for part in self.kinds()})
        pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
        return replace(self.base, source=str(folder))

    def _in_template(self, prompt: str) -> str:
        return self.part("tokenizer").apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )


@dataclass(frozen=True)
class Flux3:
    """The FLUX.3 family."""

    id: str = "flux3"
    title: str = "FLUX.3"
    patch_px: int = network.WhitenedLatents.patch_px
    pipeline_classes: tuple[str, ...] = ("Flux3ModularPipeline", "Flux3DistilledModularPipeline")
    bases: tuple[BaseModel, ...] = (KLEIN,)
    refused: tuple[Refused, ...] = REFUSED
    # The blocks of reference pictures, `mode_blocks.image_cond`, are left out: nothing reaches them in training.
    lora_targets: str = (
        r"(mode_blocks\.image|txt_mode_blocks|single_transformer_blocks)\.\d+"
        r"\.(attn\.(to_q|to_k|to_v|to_out\.0)|ff\.(linear_in|linear_out))"
    )

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Flux3Model:
        """Open a base model from a folder; weights follow when they are needed."""
        return Flux3Model(base, folder, device, fit)

    def tiny(self) -> Flux3Model:
        """The same classes at toy size with random weights, for tests."""
        with toys.seeded():
            return Flux3Model(TINY, None, "cpu", _parts=toys.frozen(_tiny_parts()))

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""
        all_ = {**DEFAULTS, **base.architecture}
        head, width = all_["attention_head_dim"], all_["attention_head_dim"] * all_["num_attention_heads"]
        inner, early, late = int(width * all_["mlp_ratio"]), all_["num_layers"], all_["num_single_layers"]
        block = [*(4 * [(width, width)]), (width, 2 * inner), (inner, width)]
        layers = (2 * early + late) * block
        targeted = sum(into * out for into, out in layers)
        references = early * sum(into * out for into, out in block)
        norms = (3 * early + late) * 2 * head
        modulation = (3 + 3) * 3 + 2
        time = all_["timestep_channels"] + width
        around = time * (1 + all_["flow_map"]) + all_["joint_attention_dim"]
        around += 2 * all_["in_channels"] + all_["cond_in_channels"]
        return Size(
            parameters=targeted + references + norms + width * (modulation * width + around),
            targeted=targeted,
            in_blocks=targeted + references,
            passed=(early + late) * sum(into * out for into, out in block),
            adapter_per_rank=sum(into + out for into, out in layers),
            blocks=early + late,  # that one token goes through, of the image or of the text
            hidden=width,
            # counted in 16 bits with saved-tensor hooks, without the few values per head of the norms (0.4 %)
            kept_per_token=(early + late) * (11 * width + 4 * inner) + 9 * width,
            kept_around=9 * width,
        )

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError."""
        record = layouts.described(folder, self, (KLEIN, TINY), DEFAULTS, Flux3Model.text_parts)
        if record.architecture.get("flow_map"):
            raise layouts.refusal(folder, DISTILLED, KLEIN)
        return record

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
        return layouts.usage(USAGE, base, lora_name, prompt, FASTER)

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The published checkpoint's layers, and which of ours each consists of."""
        architecture = {**DEFAULTS, **base.architecture}
        early, late = architecture["num_layers"], architecture["num_single_layers"]
        blocks = {f"content_mode_blocks.image.{number}": f"mode_blocks.image.{number}" for number in range(early)}
        blocks |= {f"txt_mode_blocks.{number}": f"txt_mode_blocks.{number}" for number in range(early)}
        blocks |= {f"single_blocks.{number}": f"single_transformer_blocks.{number}" for number in range(late)}
        layers = {
            "q_proj": "attn.to_q",
            "k_proj": "attn.to_k",
            "v_proj": "attn.to_v",
            "attn_out": "attn.to_out.0",
            "mlp_in": "ff.linear_in",
            "mlp_out": "ff.linear_out",
        }
        pairs = [(block, layer) for block in blocks for layer in layers]
        return {f"{block}.{layer}": (f"{blocks[block]}.{layers[layer]}",) for block, layer in pairs}


USAGE = """\
import torch
from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks

blocks = Flux3AutoBlocks()
blocks.sub_blocks.pop("prompt_upsampler")  # the prompt is drawn as it is written
pipeline = blocks.init_pipeline("{source}")
pipeline.load_components(torch_dtype={precision})
pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale={sampler.guidance_scale}))
pipeline.to("{device}")
pipeline.load_lora_weights("path/to/folder", weight_name="{lora}")
image = pipeline(
    prompt={prompt!r},
    width={side},
    height={side},
    num_inference_steps={sampler.steps},
    generator=torch.Generator("cpu").manual_seed(0),
    output="images",
)[0]
image.save("picture.png")
"""
FASTER = "# Much faster: Flux3DistilledAutoBlocks with “{distilled}”, without the guider, with num_inference_steps=16."


def _tiny_parts() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = toys.tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "pad_token_id": tokenizer.pad_token_id,
    }
    sight = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return {
        "transformer": Flux3Transformer2DModel(**TINY.architecture),
        "vae": network.tiny_vae(),
        "text_encoder": Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=sight)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    }


FAMILY = Flux3()
