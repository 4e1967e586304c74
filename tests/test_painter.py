"""A base model and a LoRA in memory: what is drawn is compared with diffusers' own pipelines, on the toys."""

import fakes
import pretend
import pytest
import torch

from finetune import formats, lora, painter, preview, registry, runs
from finetune.errors import FinetuneError, ModelError, OutOfMemoryError
from finetune.formats import About
from finetune.images import Order
from finetune.painter import Painter
from finetune.settings import Settings

FAMILIES = registry.families()
SIZE = (32, 48)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with a toy of each family, which the owner has opened."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FINETUNE_BASES", str(folder))
        yield folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(home=tmp_path_factory.mktemp("home"), device="cpu")


def _finetune(settings, bases, id=fakes.FAMILY, rank=16, size=1.0, name=""):
    """A finished finetune of a toy whose LoRA changes much."""
    source = bases / (name or id)
    if not source.exists():
        FAMILIES[id].tiny().save(source)
    run = pretend.finetune(settings, base_model=str(source))
    model = FAMILIES[id].tiny()
    parameters = lora.add(model.transformer, FAMILIES[id].lora_targets, rank, rank)
    generator = torch.Generator().manual_seed(rank)
    for weight in parameters.values():
        weight.data += size * torch.randn(weight.shape, generator=generator) / rank**0.5
    (run.results / "pretend.safetensors").unlink()
    formats.save(lora.state(model.transformer), run.results, "toy", fakes.config(), model.base, About("", 1, 1))
    return run


def _order(strength=1.0, **changes):
    values = {"owner": "ann", "created": 0.0, "finetune_id": "", "endpoint": "e", "prompt": "a pear in TOK"}
    values |= {"seed": 5, "width": SIZE[0], "height": SIZE[1], "strength": strength, **changes}
    return Order(**values)


def _draw(painter, run, strength=1.0, **changes):
    return painter.draw(run, _order(strength, **changes), fakes.ignore)


def _reference(id, run, order=None):
    """What the family's public pipeline draws around a toy of its own, with the finetune's file or without."""
    order, model = order or _order(), FAMILIES[id].tiny()
    rows = [model.encode_prompts([text]) for text in (order.prompt, "")]
    return model.draw_with_file(run and run.lora, *rows, order.seed, (order.width, order.height))


@pytest.fixture(scope="module", params=FAMILIES)
def drawn(request, settings, bases):
    """Of a toy of each family: its id, a finetune, and what is drawn at the strengths 0, 1 and 0 again."""
    run, ours = _finetune(settings, bases, request.param), Painter(settings)
    return request.param, run, [_draw(ours, run, strength) for strength in (0.0, 1.0, 0.0)]


def test_whole_strength_draws_what_diffusers_draws_with_the_file(drawn):
    """At 1 the picture is that of the family's own pipeline with the finetune's file."""
    id, run, (base, whole, _) = drawn

    assert preview.difference(whole, _reference(id, run)) <= 2
    assert preview.difference(whole, base) > 10


def test_no_strength_draws_exactly_what_the_base_draws(drawn):
    """At 0 nothing of the finetune is left, whether its LoRA is in memory already or not."""
    id, _, (before, _, after) = drawn

    assert preview.difference(before, after) == 0
    assert preview.difference(before, _reference(id, None)) <= 2


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_strength_is_the_weight_that_diffusers_knows(settings, bases, strength):
    """A factor on the LoRA is what `set_adapters` of diffusers takes as the adapter's weight."""
    from diffusers import Flux2KleinPipeline

    run, model, order = _finetune(settings, bases), fakes.tiny_model(), _order()
    text, empty = (model.encode_prompts([words])["text"] for words in (order.prompt, ""))
    parts = {name: model.part(name) for name in ("transformer", "vae", "scheduler")}
    pipeline = Flux2KleinPipeline(**parts, text_encoder=None, tokenizer=None)
    pipeline.load_lora_weights(run.results, weight_name=run.lora.name, adapter_name="toy")
    pipeline.set_adapters(["toy"], [strength])

    theirs = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=empty,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=model.base.sampler.steps,
        guidance_scale=model.base.sampler.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(order.seed),
    ).images[0]

    ours = Painter(settings)
    assert preview.difference(_draw(ours, run, strength), theirs) <= 2
    assert preview.difference(_draw(ours, run, 1.0), theirs) > 2


def test_another_finetune_on_the_base_only_exchanges_the_lora(settings, bases, monkeypatch):
    """The base is loaded once for both, whatever their ranks, and each draws its own pictures."""
    first, second = _finetune(settings, bases), _finetune(settings, bases, rank=32)
    ours, loads = Painter(settings), []
    family = type(FAMILIES[fakes.FAMILY])
    load = family.load
    monkeypatch.setattr(family, "load", lambda *given: loads.append(given) or load(*given))

    pictures = [_draw(ours, run) for run in (first, second, first)]

    assert len(loads) == 1
    assert preview.difference(pictures[0], pictures[1]) > 10
    assert preview.difference(pictures[0], pictures[2]) == 0
    assert preview.difference(pictures[1], _reference(fakes.FAMILY, second)) <= 2


def test_another_base_takes_the_place_of_the_first(settings, bases):
    """One base is in memory at a time, and each finetune is drawn with its own."""
    klein, flux = _finetune(settings, bases), _finetune(settings, bases, "flux1")
    ours = Painter(settings)
    first = _draw(ours, klein)
    name = ours.base_model

    other = _draw(ours, flux)

    assert (name, ours.base_model) == (klein.request().base_model, flux.request().base_model)
    assert preview.difference(other, _reference("flux1", flux)) <= 2
    assert preview.difference(_draw(ours, klein), first) == 0


def test_file_that_was_written_anew_is_read_anew(settings, bases):
    """A run that went on has another LoRA under the same name."""
    run, other = _finetune(settings, bases), _finetune(settings, bases, size=0.5)
    ours = Painter(settings)
    before = _draw(ours, run)

    run.lora.write_bytes(other.lora.read_bytes())

    assert preview.difference(_draw(ours, run), before) > 2


def test_prompt_is_encoded_once(settings, bases):
    """Who draws the same prompt with other seeds does not wait for the text encoder again."""
    run, ours = _finetune(settings, bases), Painter(settings)
    _draw(ours, run)
    heard = []
    encoder = ours._loaded.model.part("text_encoder")
    encoder.register_forward_hook(lambda *given: heard.append(given))

    _draw(ours, run, seed=6)
    again = len(heard)
    _draw(ours, run, prompt="two plums")

    assert (again, len(heard)) == (0, 1)


def test_steps_are_those_that_were_ordered(settings, bases):
    """The sampler takes so many steps, tells each, and its guidance counts."""
    run, ours, told = _finetune(settings, bases), Painter(settings), []

    picture = ours.draw(run, _order(steps=7), told.append)

    assert told == pytest.approx([step / 8 for step in range(1, 8)])
    assert preview.difference(picture, _draw(ours, run, steps=3)) > 2
    assert preview.difference(picture, _draw(ours, run, steps=7, guidance=1.0)) > 2


def _without(run):
    run.lora.unlink()
    (run.results / "toy-comfyui.safetensors").unlink()


def _cut(run):
    run.lora.write_bytes(run.lora.read_bytes()[:-100])


def _of_another_base(run):
    from safetensors.torch import load_file, save_file

    tensors = load_file(run.lora)
    first = min(tensors).removesuffix(".lora_A.weight")
    save_file({key: value for key, value in tensors.items() if not key.startswith(f"{first}.")}, run.lora)


def _of_another_width(run):
    from safetensors.torch import load_file, save_file

    wider = {key: value.repeat(1, 1 + key.endswith("lora_A.weight")) for key, value in load_file(run.lora).items()}
    save_file(wider, run.lora)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without, "is not there any more"),
        (_cut, "cannot be read"),
        (_of_another_base, "does not fit"),
        (_of_another_width, "does not fit"),
    ],
)
def test_broken_lora_is_said_and_leaves_no_trace(settings, bases, damage, words):
    """The error says what is wrong, and the next finetune is drawn as if nothing had been."""
    broken, whole, ours = _finetune(settings, bases), _finetune(settings, bases, rank=32), Painter(settings)
    damage(broken)

    with pytest.raises(ModelError, match=words):
        _draw(ours, broken)

    assert preview.difference(_draw(ours, whole), _reference(fakes.FAMILY, whole)) <= 2


def test_base_whose_files_are_gone_is_said(settings, bases):
    """Nothing is downloaded behind anybody's back."""
    import shutil

    run = _finetune(settings, bases, name="gone")
    shutil.rmtree(bases / "gone" / "vae")
    with pytest.raises(ModelError, match="not on this machine any more"):
        _draw(Painter(settings), run)
    shutil.rmtree(bases / "gone")

    with pytest.raises(FinetuneError):
        _draw(Painter(settings), run)


def test_picture_that_the_memory_does_not_hold_is_refused_before_it_is_drawn(tmp_path, bases):
    """The error says how much it would take; smaller ones are drawn with the model that stays loaded."""
    small = Settings(home=tmp_path, device="cpu", memory_bytes=400 * 2**20)
    run, ours = _finetune(small, bases), Painter(small)
    first = _draw(ours, run)

    with pytest.raises(OutOfMemoryError, match="Drawing this picture takes about"):
        _draw(ours, run, width=512, height=512)

    assert ours.base_model
    assert preview.difference(_draw(ours, run), first) == 0


def test_memory_that_runs_out_is_said_and_given_back(settings, bases):
    """The error says what to do; the model is loaded anew for the next picture, as it fits by then."""
    run, ours = _finetune(settings, bases), Painter(settings)

    def run_out(share):
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="Order a smaller picture"):
        ours.draw(run, _order(), run_out)
    name = ours.base_model

    assert name == ""
    assert preview.difference(_draw(ours, run), _reference(fakes.FAMILY, run)) <= 2


def test_remembered_prompts_have_a_limit(settings, bases):
    """However many prompts are drawn, only the last ones stay in memory."""
    run, ours = _finetune(settings, bases), Painter(settings)

    for number in range(painter.PROMPTS_KEPT + 3):
        _draw(ours, run, 0.0, prompt=f"{number}", steps=1, width=16, height=16)

    assert len(ours._loaded.prompts) == painter.PROMPTS_KEPT
    assert runs.find(settings.runs, run.id) == run
