"""Train the demo base's tokenizer and text encoder: a byte-level BPE and a four-layer Qwen3.

The encoder learns to go on with captions (as any language model), to name the emoji and the style that a caption is
about, and to guess a thumbnail of the picture. So its hidden states already tell apart what the transformer has to
draw differently, and the transformer can be trained on encoded captions that no longer change.
"""

import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from stages import checkpoint, muon, pictures

TOKENS = 20  # text tokens that the transformer reads; part of the base's record
LAYERS = (2, 3, 4)  # hidden states that it reads, as klein reads 9, 18 and 27
STEPS, BATCH, LEARNING_RATE = 600, 96, 3e-3
VOCABULARY, HIDDEN = 2048, 192
THUMBNAIL_PX = 8
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(cache: Path) -> Qwen2TokenizerFast:
    """Learn 2,048 byte-level tokens from captions, labels and tags of all emoji."""
    draw = random.Random(0)
    corpus = []
    for style in pictures.LEARNED_STYLES:
        for picture in pictures.find(cache, style, None):
            corpus += [pictures.caption(picture, draw) for _ in range(4)] + list(picture.tags)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None, padding_side="right"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = TOKENS
    return tokenizer


def tokenize(tokenizer: Qwen2TokenizerFast, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Turn captions into token ids and mask, exactly as Flux2KleinPipeline does. Shapes: (N, 20) each."""
    texts = [f"<|im_start|>{caption}<|im_end|>" for caption in captions]
    rows = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=TOKENS)
    return rows["input_ids"], rows["attention_mask"]


class _Heads(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.label = nn.Linear(HIDDEN, labels)
        self.style = nn.Linear(HIDDEN, len(pictures.LEARNED_STYLES))
        self.thumbnail = nn.Sequential(
            nn.Linear(HIDDEN, 384), nn.SiLU(), nn.Linear(384, 3 * THUMBNAIL_PX * THUMBNAIL_PX)
        )


def train(work: Path, cache: Path) -> tuple[Qwen2TokenizerFast, Qwen3ForCausalLM]:
    """Train tokenizer and encoder; a stopped run goes on, a finished one is loaded."""
    torch.manual_seed(0)
    done = work / "text.pt"
    folder = work / "tokenizer"
    if not folder.exists():
        train_tokenizer(cache).save_pretrained(folder)
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=48,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = Qwen3ForCausalLM(config)
    if state := checkpoint.load(done):
        encoder.load_state_dict(state["encoder"])
        return tokenizer, encoder.eval()
    _fit(tokenizer, encoder, work, cache)
    checkpoint.save(done, encoder=encoder.state_dict())
    return tokenizer, encoder.eval()


def _fit(tokenizer, encoder, work: Path, cache: Path) -> None:
    known = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style, None)]
    near = [i for i, p in enumerate(known) if p.group in pictures.LEARNED_GROUPS]
    labels = {label: i for i, label in enumerate(sorted({p.label for p in known}))}
    thumbnails = F.avg_pool2d(pictures.load_pixels(known), pictures.RESOLUTION_PX // THUMBNAIL_PX).flatten(1)
    heads = _Heads(len(labels))
    optimisers = muon.optimisers(nn.ModuleList([encoder, heads]), "layers", LEARNING_RATE)
    first, path = 0, work / "text_steps.pt"
    if state := checkpoint.load(path):
        encoder.load_state_dict(state["encoder"])
        heads.load_state_dict(state["heads"])
        muon.restore(optimisers, state["optimisers"])
        first = state["step"]
    progress = checkpoint.Progress("text", STEPS, first)
    for step in range(first, STEPS):
        draw = random.Random(step)
        chosen = [draw.choice(near) if draw.random() < 0.7 else draw.randrange(len(known)) for _ in range(BATCH)]
        captions = [pictures.caption(known[i], draw) for i in chosen]
        ids, mask = tokenize(tokenizer, captions)
        output = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        goes_on = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), goes_on.flatten(), ignore_index=-100)
        told = torch.tensor([bool(caption) for caption in captions])
        styled = torch.tensor([known[i].style in caption for i, caption in zip(chosen, captions, strict=True)])
        meaning = output.hidden_states[-1][torch.arange(BATCH), mask.sum(1) - 1]
        label = torch.tensor([labels[known[i].label] for i in chosen])
        style = torch.tensor([pictures.LEARNED_STYLES.index(known[i].style) for i in chosen])
        loss = loss + F.cross_entropy(heads.label(meaning[told]), label[told])
        loss = loss + F.cross_entropy(heads.style(meaning[styled]), style[styled])
        loss = loss + 5 * F.mse_loss(heads.thumbnail(meaning), thumbnails[chosen])
        loss.backward()
        muon.set_rate(optimisers, LEARNING_RATE * muon.schedule(step, STEPS, warm=30, hold=0.3))
        muon.move(optimisers)
        progress.step(step, loss.item())
        if (step + 1) % 200 == 0:
            right = (heads.label(meaning[told]).argmax(1) == label[told]).float().mean().item()
            print(f"text: names {right:.0%} of the emoji", flush=True)
            state = {"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step + 1}
            checkpoint.save(path, **state, optimisers=muon.states(optimisers))


@torch.no_grad()
def encode(tokenizer: Qwen2TokenizerFast, encoder: Qwen3ForCausalLM, captions: list[str]) -> Tensor:
    """Turn captions into what the transformer reads. Shapes: (N, 20, 3 * 192)."""
    rows = []
    for start in range(0, len(captions), 256):
        ids, mask = tokenize(tokenizer, captions[start : start + 256])
        states = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        rows.append(torch.cat([states[layer] for layer in LAYERS], dim=-1))
    return torch.cat(rows)
