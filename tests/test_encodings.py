"""Encoding once: what is kept, what is read again, how pictures are cut, which ones a step sees."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image

from finetune import encodings, registry
from finetune.memory import Fit


class Counting:
    """A model that counts what it encodes."""

    def __init__(self, base=None):
        tiny = fakes.tiny_model()
        self.model = registry.families()[fakes.FAMILY].load(base, Path(base.source), "cpu", Fit()) if base else tiny
        self.pictures, self.prompts = 0, 0
        self.base, self.patch_px, self.release = self.model.base, self.model.patch_px, self.model.release
        self.fingerprint = self.model.fingerprint

    def encode_images(self, pixels):
        self.pictures += len(pixels)
        return self.model.encode_images(pixels)

    def encode_prompts(self, prompts):
        self.prompts += len(prompts)
        return self.model.encode_prompts(prompts)


def _encode(model, folder, paths, captions, resolutions=(32,), progress=fakes.ignore):
    return encodings.encode(model, paths, captions, ["a TOK"], resolutions, folder, progress)


def test_second_time_nothing_is_encoded(tmp_path):
    """The same pictures and captions are read from the folder, and are equal."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40), (64, 32)])
    first, second = Counting(), Counting()

    made = _encode(first, tmp_path / "kept", paths, ["one", "two"])
    read = _encode(second, tmp_path / "kept", paths, ["one", "two"])

    assert (first.pictures, first.prompts) == (2, 4)
    assert (second.pictures, second.prompts) == (0, 0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(made.latents, read.latents, strict=True))
    assert torch.equal(made.captions[0]["text"], read.captions[0]["text"])


def test_only_what_changed_is_encoded_again(tmp_path):
    """A new caption costs one encoding, a changed picture another; a renamed picture costs none."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40), (64, 32)])
    _encode(Counting(), tmp_path / "kept", paths, ["one", "two"])
    renamed = [paths[0].rename(tmp_path / "images" / "other.png"), paths[1]]
    Image.new("RGB", (64, 32), "red").save(paths[1])
    model = Counting()

    _encode(model, tmp_path / "kept", renamed, ["one", "three"])

    assert (model.pictures, model.prompts) == (1, 1)


@pytest.mark.parametrize(
    ("part", "again"), [("vae", (1, 0)), ("text_encoder", (0, 3)), ("tokenizer", (0, 3)), ("transformer", (0, 0))]
)
def test_exchanged_base_model_encodes_again_what_it_makes(tmp_path, part, again):
    """When files of a base in a folder become other ones, what they made is not read any more."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40)])
    base = fakes.tiny_model().save(tmp_path / "base")
    _encode(Counting(base), tmp_path / "kept", paths, ["one"])
    changed = sorted((tmp_path / "base" / part).iterdir())[-1]
    changed.write_bytes(_other(changed))
    model = Counting(base)

    _encode(model, tmp_path / "kept", paths, ["one"])

    assert (model.pictures, model.prompts) == again


def _other(path):
    """The content of another file of the same kind: one weight, or one blank, is different."""
    content = path.read_bytes()
    return content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".safetensors" else content + b" "


def test_broken_file_is_made_again(tmp_path):
    """A file that was cut off is encoded anew instead of ending the run."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40)])
    made = _encode(Counting(), tmp_path / "kept", paths, ["one"])
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    model = Counting()

    again = _encode(model, tmp_path / "kept", paths, ["one"])

    assert (model.pictures, model.prompts) == (1, 3)
    assert torch.equal(made.latents[0][0], again.latents[0][0])


def test_captions_stay_with_their_pictures(tmp_path):
    """Each picture's latents and caption are those that it has alone, also when captions repeat."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40), (64, 32), (40, 40)])
    captions = ["same", "other", "same"]

    together = _encode(fakes.tiny_model(), tmp_path / "kept", paths, captions)

    for number, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        alone = _encode(fakes.tiny_model(), tmp_path / "alone", [path], [caption])
        assert torch.equal(together.latents[number][0], alone.latents[0][0])
        assert torch.equal(together.captions[number]["text"], alone.captions[0]["text"])


def test_progress_is_told_to_the_end(tmp_path):
    """Both kinds of encoding count up to their number."""
    told = []

    _encode(
        fakes.tiny_model(),
        tmp_path / "kept",
        fakes.pictures(tmp_path / "images", [(40, 40)] * 3),
        ["a", "b", "c"],
        progress=lambda *news: told.append(news),
    )

    assert told[:3] == [("Encoding pictures", done, 3) for done in (1, 2, 3)]
    assert told[-1] == ("Encoding captions", 5, 5)


def test_small_and_large_pictures_come_equally_often(tmp_path):
    """A picture that is too small for the larger resolutions is trained as often as one that has a size for each."""
    paths = fakes.pictures(tmp_path / "images", [(32, 32), (96, 96)])
    encoded = _encode(fakes.tiny_model(), tmp_path / "kept", paths, ["small", "large"], resolutions=(32, 64, 96))
    text = encoded.captions[0]["text"][0]

    seen = Counter(bool(text.equal(row)) for _, rows in islice(encoded.plan(0, 1), 60) for row in rows["text"])

    assert [tuple(one.shape[1:]) for one in encoded.latents[0]] == [(2, 2)] * 3
    assert [tuple(one.shape[1:]) for one in encoded.latents[1]] == [(2, 2), (4, 4), (6, 6)]
    assert seen[True] == seen[False] == 30


def test_pixels_are_cut_from_the_middle(tmp_path):
    """A wide picture loses its sides alike; black is -1 and white is 1."""
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    image.save(tmp_path / "x.png")

    pixels = encodings.load_pixels(tmp_path / "x.png", (32, 32))

    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels == 1).all()


def _counts(sizes, steps, batch, seed=0, repeats=()):
    return Counter(item for chosen in islice(encodings.plan(sizes, seed, batch, repeats), steps) for item in chosen)


def test_all_pictures_of_one_size_come_equally_often():
    """At any moment, no picture was seen two times more than another."""
    counts = _counts(["a"] * 7, steps=25, batch=4)

    assert sum(counts.values()) == 100
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mixed_sizes_come_equally_often_and_none_is_dropped():
    """A size with a single picture is trained as often, per picture, as a large one, in batches of one size."""
    sizes = ["a"] * 20 + ["b"] * 3 + ["c"]

    counts = _counts(sizes, steps=240, batch=4)
    batches = list(islice(encodings.plan(sizes, 0, 4), 240))

    assert set(counts) == set(range(24))
    assert max(counts.values()) <= 40 + 4
    assert min(counts.values()) >= 40 - 4
    assert all(len({sizes[item] for item in chosen}) == 1 for chosen in batches)


def test_even_many_single_sizes_all_come_within_their_number_of_steps():
    """With every picture of its own size, each has its turn once in as many steps as there are pictures."""
    assert len(_counts([str(number) for number in range(50)], steps=50, batch=2)) == 50


def test_plan_depends_on_the_seed_alone():
    """The same seed gives the same order, another seed another one."""
    first, again, other = (list(islice(encodings.plan(["a"] * 9, seed, 2), 20)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_pictures_come_as_often_as_their_repeats_say():
    """Over whole rounds, a picture of five repeats comes exactly five times as often as one of one."""
    counts = _counts(["a"] * 4, steps=40, batch=2, repeats=[5, 1, 3, 1])

    assert counts == {0: 40, 1: 8, 2: 24, 3: 8}


def test_repeats_hold_across_sizes():
    """Pictures of several sizes keep their ratio: sizes take turns by how many come from them."""
    counts = _counts(["a", "a", "b", "c"], steps=200, batch=2, repeats=[4, 2, 2, 2])

    assert [counts[number] / counts[1] for number in range(4)] == pytest.approx([2, 1, 1, 1], rel=0.05)


def test_ratio_of_repeats_alone_counts():
    """Ten repeats of every picture are the same plan, step by step, as one, and as none said at all."""
    plans = [list(islice(encodings.plan(["a", "b", "a"], 3, 2, repeats), 30)) for repeats in ((), [1] * 3, [10] * 3)]

    assert plans[0] == plans[1] == plans[2]


def test_repeated_pictures_are_encoded_once_and_planned_alike_again(tmp_path):
    """Repeats cost no encoding, and a plan that begins anew goes the same way."""
    paths = fakes.pictures(tmp_path / "images", [(40, 40), (40, 40)])
    model = Counting()
    encoded = replace(_encode(model, tmp_path / "kept", paths, ["one", "two"]), repeats=(3, 1))
    first = encoded.captions[0]["text"][0]

    seen, again = ([row for _, rows in islice(encoded.plan(0, 2), 8) for row in rows["text"]] for _ in range(2))

    assert model.pictures == 2
    assert sum(bool(first.equal(row)) for row in seen) == 12
    assert all(torch.equal(one, other) for one, other in zip(seen, again, strict=True))
