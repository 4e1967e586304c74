"""Toy models that describe pictures: each published class at toy size, saved as the Hub has it, saying “a dog”.

Those that answer in the words of a chat are made to say it by their weights: layers add nothing, and each letter asks
for the next one. The others, older ones that only caption, say a random word of their three.
"""

import json
import re
from pathlib import Path
from typing import Any

from finetune import toys

SAYS = "a dog"
CHAT = "{% for m in messages %}<|im_start|>{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"  # noqa: E501
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_SIGHT = {**SIGHT, "image_size": 32, "patch_size": 8}
QWEN_WORDS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def save(kind: str, folder: Path, says: str = SAYS) -> Path:
    """Write a toy model of a type into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with toys.seeded():
        model, tokenizer, about = MAKERS[kind](kind)
    if kind in CHATTING:
        _let_say(model, tokenizer, says)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, values in about.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def _let_say(model: Any, tokenizer: Any, says: str) -> None:
    import torch

    chain = [tokenizer.eos_token_id, *tokenizer(says, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if re.search(r"layers\..*(o_proj|down_proj)\.weight", name):
                weight.zero_()
        into, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        into.zero_()
        out.zero_()
        for place, (letter, following) in enumerate(zip(chain, chain[1:], strict=False)):
            into[letter, place] = 1.0
            out[following, place] = 1.0
        into[tokenizer("\n", add_special_tokens=False)["input_ids"][-1], 0] = 1.0  # PaliGemma's questions end so


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


def _chat(image: str, *more: str, **named: str) -> Any:
    """A tokenizer that knows words for pictures, some of them by name."""
    words = list(dict.fromkeys([*more, *named.values()]))
    tokenizer = toys.tokenizer(CHAT.replace("IMAGE", image), *words)
    if named:
        tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def _processor(kind: str, pictures: str, **more: Any) -> dict[str, Any]:
    return {"image_processor_type": pictures, "processor_class": kind, **more}


def _qwen(kind: str) -> tuple[Any, Any, dict]:
    import transformers

    tokenizer = _chat("<|vision_start|><|image_pad|><|vision_end|>", *QWEN_WORDS.values())
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(word) for name, word in QWEN_WORDS.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    name, more = {
        "qwen3_vl": ("Qwen3VL", {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}),
        "qwen2_5_vl": ("Qwen2_5_VL", {"fullatt_block_indexes": [0]}),
    }[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={**sight, **more},
        tie_word_embeddings=False,
        **ids,
    )
    sizes = {"size": {"longest_edge": 2**24, "shortest_edge": 2**12}, "merge_size": 2, "temporal_patch_size": 2}
    patch = 16 if kind == "qwen3_vl" else 14
    about = {
        "preprocessor_config": _processor(f"{name}Processor", "Qwen2VLImageProcessorFast", patch_size=patch, **sizes),
        "video_preprocessor_config": {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": patch, **sizes},
    }
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), tokenizer, about


def _idefics(kind: str) -> tuple[Any, Any, dict]:
    import transformers

    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = _chat("<image>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=SMALL_SIGHT,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    sizes = {"do_image_splitting": True, "max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 64}}
    about = {
        "preprocessor_config": _processor(f"{name}Processor", f"{name}ImageProcessor", **sizes),
        "processor_config": {"image_seq_len": 4, "processor_class": f"{name}Processor"},
    }
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), tokenizer, about


def _llava(kind: str) -> tuple[Any, Any, dict]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _chat("<image>", "<image>")
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **SMALL_SIGHT, "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    about = {
        "preprocessor_config": _processor("LlavaProcessor", "CLIPImageProcessor", **sizes),
        "processor_config": {
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
    }
    return LlavaForConditionalGeneration(config), tokenizer, about


def _gemma(kind: str) -> tuple[Any, Any, dict]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}
    tokenizer = _chat("<boi>", **named)
    config = Gemma3Config(
        text_config=_text(tokenizer),
        vision_config={"model_type": "siglip_vision_model", **SMALL_SIGHT, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    about = {
        "preprocessor_config": _processor(
            "Gemma3Processor", "Gemma3ImageProcessor", size={"height": 32, "width": 32}, image_seq_length=4
        ),
        "processor_config": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
    }
    return Gemma3ForConditionalGeneration(config), tokenizer, about


def _internvl(kind: str) -> tuple[Any, Any, dict]:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _chat("<IMG_CONTEXT>", **named)
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config={**SIGHT, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    sizes = {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 12, "min_patches": 1}
    about = {
        "preprocessor_config": _processor("InternVLProcessor", "GotOcr2ImageProcessorFast", **sizes),
        "processor_config": {"image_seq_length": 4, "processor_class": "InternVLProcessor"},
        "video_preprocessor_config": {"video_processor_type": "InternVLVideoProcessor"},
    }
    return InternVLForConditionalGeneration(config), tokenizer, about


def _paligemma(kind: str) -> tuple[Any, Any, dict]:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    tokenizer = toys.tokenizer(None, "<image>", "<bos>")
    tokenizer.bos_token = "<bos>"
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **_text(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            **SMALL_SIGHT,
            "projection_dim": 16,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        tie_word_embeddings=False,
    )
    sizes = {"size": {"height": 32, "width": 32}, "image_seq_length": 16}
    about = {"preprocessor_config": _processor("PaliGemmaProcessor", "SiglipImageProcessor", **sizes)}
    return PaliGemmaForConditionalGeneration(config), tokenizer, about


def _three_words() -> Any:
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "dog", "cat"]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


def _florence(kind: str) -> tuple[Any, Any, dict]:
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    tokenizer = _chat("", "<bos>", image_token="<image>")
    tokenizer.chat_template, tokenizer.bos_token = None, "<bos>"
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
        vision_config={
            "embed_dim": [8, 8, 8, 16],
            "depths": [1, 1, 1, 1],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "projection_dim": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    sides = {"height": 64, "width": 64}
    about = {
        "preprocessor_config": _processor(
            "Florence2Processor", "CLIPImageProcessor", size=sides, do_center_crop=False, image_seq_length=5
        )
    }
    model = Florence2ForConditionalGeneration(config)
    model.get_input_embeddings().weight.data[config.text_config.eos_token_id] = 0.0  # it does not end at once
    return model, tokenizer, about


def _blip(kind: str) -> tuple[Any, Any, dict]:
    from transformers import BlipConfig, BlipForConditionalGeneration

    tokenizer = _three_words()
    ids = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**SIGHT, **ids, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 128}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=SMALL_SIGHT, projection_dim=16))
    sides = {"height": 32, "width": 32}
    return model, tokenizer, {"preprocessor_config": _processor("BlipProcessor", "BlipImageProcessor", size=sides)}


def _git(kind: str) -> tuple[Any, Any, dict]:
    from transformers import GitConfig, GitForCausalLM

    tokenizer = _three_words()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = GitConfig(
        vision_config=SMALL_SIGHT, vocab_size=len(tokenizer), max_position_embeddings=256, **SIGHT, **ids
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    about = {"preprocessor_config": _processor("GitProcessor", "CLIPImageProcessor", **sizes)}
    return GitForCausalLM(config), tokenizer, about


CHATTING = {
    "qwen3_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "llava": _llava,
    "gemma3": _gemma,
    "internvl": _internvl,
    "paligemma": _paligemma,
}
CAPTIONING = {"florence2": _florence, "blip": _blip, "git": _git}
MAKERS = {**CHATTING, **CAPTIONING}
