"""Toy parts of base models: the real classes at toy size, from which families build the models that tests run on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

CHAT = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@contextmanager
def seeded() -> Iterator[None]:
    """Let random weights be the same each time, and leave the caller's random numbers alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def frozen(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts as they are after loading: networks do not learn and drop nothing out."""
    from torch.nn import Module

    networks = {name: part for name, part in parts.items() if isinstance(part, Module)}
    return {**parts, **{name: network.eval().requires_grad_(False) for name, network in networks.items()}}


def letters() -> list[str]:
    """A letter for each byte, as byte-level tokenizers write them."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tokenizer(chat_template: str = CHAT, *more: str) -> Any:
    """A tokenizer of single bytes, and of more words that stand for themselves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    words = [*WORDS, *more]
    core = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate([*words, *letters()])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = Qwen2TokenizerFast(
        tokenizer_object=core, pad_token=words[0], eos_token=words[2], unk_token=None, padding_side="right"
    )
    made.add_special_tokens({"additional_special_tokens": words})
    made.chat_template = chat_template
    return made
