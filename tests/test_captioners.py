"""The contract of captioners; the demo captioner with toy weights that say “a dot of red”; and models of the Hub, each
published class at toy size with random weights."""

import json
from dataclasses import replace

import fakes
import hub
import pytest
import toy_captioners
from PIL import Image

from finetune import captioners, registry
from finetune.captioners import own, vlm
from finetune.captioners.demo import DemoCaptioner
from finetune.errors import AccessError, CaptionError, ConfigError, ModelError
from finetune.inputs import Mode
from finetune.layouts import GIB

PICTURE = Image.new("RGB", (40, 30), "red")
PICTURES = [PICTURE, Image.new("RGB", (640, 40), "blue"), Image.new("L", (64, 64))]
BASES = {base.id: base for base in registry.base_models().values()}
DEMO = BASES["demo"]
SMALL = "HuggingFaceTB/SmolVLM-500M-Instruct"
PLENTY = 2**40


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo captioner, saying what a test wants."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))

    def load(says="a dot of red"):
        fakes.captioner(tmp_path / "captioner", says)
        return registry.captioners()["demo"].load(DEMO, "cpu", PLENTY, fakes.ignore)

    return load


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folders of toy models, by type."""
    folder = tmp_path_factory.mktemp("toys")
    return {kind: toy_captioners.save(kind, folder / kind) for kind in toy_captioners.MAKERS}


def said(loaded, mode, picture=PICTURE):
    """What a captioner says of a picture."""
    return loaded.describe([picture], mode, "What is it?")[0].text


@pytest.mark.parametrize("id", registry.captioners())
def test_captioner_is_listed_with_id_title_and_licence(id):
    """The list goes by each captioner's own id, and a person can read what it is, and on which terms."""
    captioner = registry.captioners()[id]

    assert captioner.id == id
    assert captioner.title.strip() and captioner.licence.strip()


@pytest.mark.parametrize("base", BASES.values(), ids=lambda base: base.id)
def test_every_base_model_names_a_captioner_that_exists(base):
    """No base model is without a captioner."""
    assert base.captioner in registry.captioners()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.GENERAL, "b of a red cup"),
        (Mode.STYLE, "a red cup"),
        (Mode.CHARACTER, "b of a red cup on a blue background"),
        (Mode.PRODUCT, "b of a cup on a blue background"),
    ],
)
def test_mode_decides_what_the_demo_captioner_describes(demo, mode, expected):
    """A style keeps the content alone, a product loses its colour; the background is the picture's own."""
    assert said(demo("b of a red cup"), mode, Image.new("RGB", (64, 64), (60, 120, 220))) == expected


def test_background_of_many_colours_is_not_told(demo):
    """What lies along the edges is only told where it is one colour."""
    striped = Image.new("RGB", (64, 64), "white")
    striped.paste("black", (0, 0, 32, 64))

    assert said(demo(), Mode.PRODUCT, striped) == "a dot of red"


@pytest.mark.parametrize("kind", ["L", "RGBA", "P", "CMYK"])
def test_picture_of_any_kind_is_read(demo, kind):
    """The captioner looks at colours, however they are kept."""
    assert said(demo(), Mode.GENERAL, PICTURE.convert(kind)) == "a dot of red"


@pytest.mark.parametrize("says", ["", "a dot", "of red"])
def test_demo_captioner_may_have_nothing_to_say(demo, says):
    """A reading that names no thing is no caption."""
    assert said(demo(says), Mode.STYLE) == ""


def test_missing_weights_are_an_error_in_words(tmp_path, monkeypatch):
    """Without its folder the demo captioner says so and what to do."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))

    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        DemoCaptioner().load(DEMO, "cpu", PLENTY, fakes.ignore)
    assert caught.value.hint


def test_broken_weights_are_an_error_in_words(tmp_path, monkeypatch):
    """Weights that were cut off are an error of the model, not a traceback."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))
    fakes.captioner(tmp_path / "captioner")
    weights = next((tmp_path / "captioner").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(ModelError, match="cannot be loaded"):
        DemoCaptioner().load(DEMO, "cpu", PLENTY, fakes.ignore)


@pytest.mark.parametrize("kind", toy_captioners.CHATTING)
def test_class_that_answers_says_what_its_weights_say(toys, kind):
    """Without torchvision, several pictures at a time, and without repeating what it was asked."""
    loaded = vlm.load("Toy", toys[kind], toys[kind], "cpu", PLENTY)

    answers = loaded.describe(PICTURES, Mode.STYLE, "What is it?")

    assert [(answer.text, answer.is_cut) for answer in answers] == [(toy_captioners.SAYS, False)] * len(PICTURES)


@pytest.mark.parametrize("kind", toy_captioners.CAPTIONING)
def test_class_that_only_captions_says_something(toys, kind):
    """Older classes are told nothing, or the name of their task."""
    loaded = vlm.load("Toy", toys[kind], toys[kind], "cpu", PLENTY)

    answers = loaded.describe(PICTURES, Mode.STYLE, "What is it?")

    assert all(answer.text for answer in answers) and len(answers) == len(PICTURES)
    assert not loaded.listens


def test_answer_without_room_is_told_as_cut(tmp_path):
    """A model that never ends is stopped, and that is known."""
    folder = toy_captioners.save("llava", tmp_path)
    for path in folder.glob("*config.json"):
        about = path.read_text().replace('"eos_token_id": 2', '"eos_token_id": 9')
        path.write_text(about.replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    loaded = vlm.load("Toy", folder, folder, "cpu", PLENTY)

    assert loaded.describe([PICTURE], Mode.STYLE, "What is it?")[0].is_cut


def test_picture_that_a_processor_cannot_take_is_an_error_in_words(toys):
    """What a library raises for one picture costs that picture alone."""
    loaded = vlm.load("Toy", toys["llava"], toys["llava"], "cpu", PLENTY)
    loaded.release()

    with pytest.raises(CaptionError, match="failed") as caught:
        loaded.describe([PICTURE], Mode.STYLE, "What is it?")
    assert caught.value.hint


@pytest.mark.parametrize(
    "config", [{"model_type": "moondream1", "auto_map": {"AutoModel": "x.Y"}}, {}, {"model_type": "bert"}]
)
def test_model_of_no_known_class_is_refused(tmp_path, config):
    """A model that brings its own code, or does not describe pictures, is refused before anything of it is loaded."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelError, match="not known"):
        vlm.load("Toy", tmp_path, tmp_path, "cpu", PLENTY)


def test_model_that_finds_no_room_is_refused(toys):
    """How much is needed and how much is free is told before it is loaded."""
    with pytest.raises(ModelError, match="0.5 are free"):
        vlm.load("Toy", toys["llava"], toys["llava"], "cpu", GIB // 2)


def test_broken_model_is_an_error_in_words(tmp_path):
    """Files that are no model's are told."""
    folder = toy_captioners.save("llava", tmp_path)
    (folder / "model.safetensors").write_bytes(b"nothing")

    with pytest.raises(ModelError, match="cannot be loaded"):
        vlm.load("Toy", folder, folder, "cpu", PLENTY)


def test_captioner_of_the_hub_is_fetched_and_answers(tmp_path, monkeypatch, toys):
    """Only what it is loaded from is fetched, with progress, and the second time nothing."""
    told = []
    with hub.serving() as server:
        server.add(SMALL, toys["idefics3"]).files |= {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x"}
        hub.use(monkeypatch, server.url, tmp_path)
        captioner = captioners.find("smolvlm-500m")

        loaded = captioner.load(DEMO, "cpu", PLENTY, lambda *words: told.append(words))

        assert said(loaded, Mode.STYLE) == toy_captioners.SAYS
        assert told[-1][0] == "Downloading SmolVLM 500M Instruct" and told[-1][1] == told[-1][2] > 0
        assert len(captioner.revision(DEMO)) == 40
        asked = len(server.requests)
        captioner.load(DEMO, "cpu", PLENTY, fakes.ignore)
        assert len(server.requests) == asked
        assert not any("onnx" in path or path.endswith(".bin") for _, path in server.requests)


def test_captioner_without_safe_weights_is_refused(tmp_path, monkeypatch, toys):
    """Weights in a format that can hold code are not fetched."""
    with hub.serving() as server:
        files = server.add("alice/old", toys["llava"]).files
        files["pytorch_model.bin"] = files.pop("model.safetensors")
        hub.use(monkeypatch, server.url, tmp_path)

        with pytest.raises(ModelError, match="no weights in safetensors"):
            captioners.find("alice/old").load(DEMO, "cpu", PLENTY, fakes.ignore)


def test_captioner_that_is_gated_or_missing_is_an_error_in_words(tmp_path, monkeypatch, toys):
    """A licence that was not accepted, a name that nobody has, and being offline are told apart."""
    with hub.serving() as server:
        server.add("alice/gated", toys["llava"], is_gated=True)
        hub.use(monkeypatch, server.url, tmp_path, token=hub.READER)

        with pytest.raises(AccessError, match="licence"):
            captioners.find("alice/gated").load(DEMO, "cpu", PLENTY, fakes.ignore)
        with pytest.raises(ModelError, match="no model"):
            captioners.find("alice/none").load(DEMO, "cpu", PLENTY, fakes.ignore)
        hub.use(monkeypatch, server.url, tmp_path, is_offline=True)
        with pytest.raises(ModelError, match="offline"):
            captioners.find("smolvlm-500m").load(DEMO, "cpu", PLENTY, fakes.ignore)


@pytest.fixture
def seeing_base(tmp_path, toys):
    """A base model on this machine whose text encoder can see."""
    fakes.tiny_model("flux3").save(tmp_path)
    for part in ("text_encoder", "tokenizer"):
        for path in (tmp_path / part).iterdir():
            path.unlink()
    for path in toys["qwen3_vl"].iterdir():
        part = "tokenizer" if path.name.startswith(("token", "chat")) else "text_encoder"
        if "preprocessor" not in path.name:
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
    return replace(BASES["flux3-klein-base"], source=str(tmp_path), text_encoder_gib=0.1)


def test_base_describes_pictures_with_its_own_encoder(seeing_base):
    """Its text encoder answers, with the tokenizer beside it and the usual way to cut pictures."""
    loaded = captioners.find("own").load(seeing_base, "cpu", PLENTY, fakes.ignore)

    assert said(loaded, Mode.STYLE) == toy_captioners.SAYS


def test_own_encoder_is_chosen_where_it_is_here_and_can_see(seeing_base):
    """Nothing more is downloaded for a base that can see; without its eyes, or on a processor, another is chosen."""
    chosen = [one.id for one in captioners.suited("", seeing_base, "cuda:0", 24 * GIB)]
    assert chosen == ["own", "qwen3-vl-2b", "smolvlm-500m"]
    assert captioners.suited("", seeing_base, "cpu", 24 * GIB)[0].id == "smolvlm-500m"
    assert captioners.suited("", BASES["flux3-klein-base"], "cuda:0", 24 * GIB)[0].id == "qwen3-vl-2b"


@pytest.mark.parametrize("family", ["flux1", "flux2-klein", "flux2-dev"])
def test_text_encoders_without_eyes_cannot_see(tmp_path, family):
    """Those of other families are never asked."""
    fakes.tiny_model(family).save(tmp_path)

    assert not own.can_see(tmp_path / "text_encoder")


def test_encoder_without_its_last_layers_cannot_see(tmp_path, toys):
    """Files that hold only what reads prompts cannot answer."""
    for path in toys["qwen3_vl"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert own.can_see(toys["qwen3_vl"]) and not own.can_see(tmp_path)


@pytest.mark.parametrize(
    ("base", "device", "free_gib", "chosen"),
    [
        ("demo", "cpu", 0, ["demo"]),
        ("flux2-klein-base-4b", "cpu", 64, ["smolvlm-500m"]),
        ("flux2-klein-base-4b", "cuda:0", 4, ["smolvlm-500m"]),
        ("flux2-klein-base-4b", "cuda:0", 24, ["qwen3-vl-2b", "smolvlm-500m"]),
        ("flux1-dev", "cuda:0", 24, ["qwen3-vl-4b", "qwen3-vl-2b", "smolvlm-500m"]),
        ("flux1-dev", "cuda:0", 8, ["qwen3-vl-2b", "smolvlm-500m"]),
        ("flux1-dev", "cuda:0", 0, ["smolvlm-500m"]),
    ],
)
def test_memory_decides_who_describes(base, device, free_gib, chosen):
    """The best that fits comes first, and smaller ones in case it cannot be loaded."""
    assert [one.id for one in captioners.suited("", BASES[base], device, free_gib * GIB)] == chosen


def test_captioner_that_was_asked_for_is_the_only_one():
    """Who names one gets that one, whatever the memory."""
    assert [one.id for one in captioners.suited(" alice/seer ", BASES["demo"], "cpu", 0)] == ["alice/seer"]


@pytest.mark.parametrize(
    "name", ["qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", "https://hf.co/qwen/qwen3-vl-2b-instruct"]
)
def test_known_captioner_is_found_by_id_and_address(name):
    """However it is named, its licence and size are known."""
    assert captioners.find(name).id == "qwen3-vl-2b"


@pytest.mark.parametrize("name", ["", "demo", "smolvlm-500m", "Qwen/Qwen3-VL-4B-Instruct"])
def test_anybody_may_name_what_is_listed(name):
    """Known captioners, and none, are for all."""
    captioners.admit(name, owns_machine=False)


@pytest.mark.parametrize("name", ["alice/seer", "/etc", "nonsense", "../x/y"])
def test_stranger_names_no_other_captioner(name):
    """A stranger has nothing of their choice fetched, and learns nothing of this machine."""
    with pytest.raises(ConfigError) as caught:
        captioners.admit(name, owns_machine=False)
    assert caught.value.field == "captioner" and caught.value.hint


def test_owner_names_any_captioner_of_the_hub():
    """The owner of the machine decides what is fetched; folders are not read."""
    captioners.admit("alice/seer", owns_machine=True)

    with pytest.raises(ConfigError, match="no captioner"):
        captioners.admit("/etc", owns_machine=True)
