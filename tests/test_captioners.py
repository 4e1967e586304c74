"""The contract of captioners, and the demo captioner with toy weights that say “a dot of red”."""

import fakes
import pytest
from PIL import Image

from finetune import registry
from finetune.captioners.demo import DemoCaptioner
from finetune.errors import CaptionError, ModelError
from finetune.inputs import Mode

PICTURE = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo captioner, saying what a test wants."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))

    def load(says="a dot of red"):
        fakes.captioner(tmp_path / "captioner", says)
        return registry.captioners()["demo"].load("cpu")

    return load


@pytest.mark.parametrize("id", registry.captioners())
def test_captioner_is_listed_with_id_and_title(id):
    """The list goes by each captioner's own id, and a person can read what it is."""
    captioner = registry.captioners()[id]

    assert captioner.id == id
    assert captioner.title.strip()


@pytest.mark.parametrize("base", registry.base_models().values(), ids=lambda base: base.id)
def test_every_base_model_names_a_captioner_that_exists_or_none(base):
    """No base model names a captioner that is not there."""
    assert base.captioner in ("", *registry.captioners())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.GENERAL, "a dot of red"),
        (Mode.STYLE, "red"),
        (Mode.CHARACTER, "a dot on a white background"),
        (Mode.PRODUCT, "a dot on a white background"),
    ],
)
def test_mode_decides_what_is_described(demo, mode, expected):
    """General describes everything, style only the content, character and product all but the subject."""
    assert demo().caption(PICTURE, mode) == expected


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_picture_of_any_kind_is_read(demo, mode):
    """The captioner looks at colours, however they are kept."""
    assert demo().caption(PICTURE.convert(mode), Mode.GENERAL) == "a dot of red"


@pytest.mark.parametrize("says", ["", "a dot", "of red"])
def test_saying_nothing_of_use_is_an_error(demo, says):
    """An answer that names no thing becomes an error that says what to do."""
    with pytest.raises(CaptionError) as caught:
        demo(says).caption(PICTURE, Mode.STYLE)
    assert caught.value.hint


def test_missing_weights_are_an_error_in_words(tmp_path, monkeypatch):
    """Without its folder the captioner says so and what to do."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))

    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        DemoCaptioner().load("cpu")
    assert caught.value.hint


def test_broken_weights_are_an_error_in_words(tmp_path, monkeypatch):
    """Weights that were cut off are an error of the model, not a traceback."""
    monkeypatch.setenv("FINETUNE_DEMO_BASE", str(tmp_path))
    fakes.captioner(tmp_path / "captioner")
    weights = next((tmp_path / "captioner").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(ModelError, match="cannot be loaded"):
        DemoCaptioner().load("cpu")
