"""What a request may name as its base model, and what it may not."""

import json
import os

import fakes
import hub
import pytest

from finetune import bases, registry, weights
from finetune.errors import AccessError, ConfigError, ModelError
from finetune.memory import Fit

ID = "alice/tiny"
RECORDS = registry.base_models()
REFUSED = [refused for family in registry.families().values() for refused in family.refused]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of base models: the toy model of each family, by the family's id."""
    folder = tmp_path_factory.mktemp("bases")
    for family in registry.families().values():
        family.tiny().save(folder / family.id)
    return folder


@pytest.fixture
def opened(published, monkeypatch):
    """The owner lets base models be read from the folder of toy models."""
    monkeypatch.setenv("FINETUNE_BASES", str(published))
    return published


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An empty Hub."""
    with hub.serving() as server:
        hub.use(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.mark.parametrize("base", RECORDS.values(), ids=lambda base: base.id)
def test_record_is_found_by_its_id_and_its_source(base):
    """Its own id, its id on the Hub in any case, and the demo base's folder mean a record."""
    assert bases.find(base.id) == bases.find(base.source) == bases.find(f" {base.source.upper()} ") == base
    assert bases.title(base.source) == base.title


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "http://huggingface.co/black-forest-labs/FLUX.1-dev/",
        "huggingface.co/black-forest-labs/FLUX.1-dev/tree/main/transformer",
        "https://hf.co/black-forest-labs/FLUX.1-dev?not-for-all-audiences=true",
    ],
)
def test_address_of_a_page_is_understood(address):
    """What is copied from a browser means the model on that page."""
    assert bases.find(address).source == bases.find("black-forest-labs/FLUX.1-dev").source


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.source)
@pytest.mark.parametrize("form", ["{}", "https://huggingface.co/{}"])
def test_distilled_model_is_refused_with_what_to_take(refused, form):
    """The reason and the title of the base model to take are named, at once."""
    with pytest.raises(ConfigError) as caught:
        bases.check(form.format(refused.source))

    assert caught.value.field == "base_model"
    assert refused.reason in caught.value.message and RECORDS[refused.instead].title in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nothing",
        "a/b/c",
        "a/b--c",
        "../etc",
        "https://example.com/a/b",
        "datasets/a",
        "~/model",
        "a b/c",
        "a/b.git",
    ],
)
def test_name_that_means_nothing_is_refused_at_once(name, server):
    """No record, no folder, no id on the Hub: nobody is asked."""
    with pytest.raises(ConfigError, match="no base model.*flux1-dev.*owner/name") as caught:
        bases.check(name)

    assert caught.value.field == "base_model" and not server.requests
    assert bases.title(name) == name.strip()


@pytest.mark.parametrize("family", registry.families().values(), ids=lambda family: family.id)
def test_folder_is_a_base_of_its_family(opened, family):
    """A folder below one that the owner opened is known by its index, and named by its path."""
    folder = opened / family.id

    base = bases.find(str(folder))

    assert (base.family, base.id, base.source) == (family.id, str(folder), str(folder))
    assert bases.find(base.id) == base and bases.title(base.id) == family.id
    assert weights.folder(base, fakes.ignore) == folder


def test_folders_that_are_not_opened_are_all_alike(opened, tmp_path):
    """Nobody learns what is on the disk: folders that exist and folders that do not get the same words."""
    (tmp_path / "private").mkdir()

    told = set()
    for name in (tmp_path / "private", tmp_path / "none", opened / ".." / "private", "/", f"{opened}-more"):
        with pytest.raises(ConfigError) as caught:
            bases.check(str(name))
        told.add(str(caught.value))

    assert len(told) == 1 and str(opened) in told.pop()


def test_folder_of_the_home_is_open(published, tmp_path, monkeypatch):
    """Without a setting, links and folders in `bases` of the home folder are read."""
    monkeypatch.delenv("FINETUNE_BASES", raising=False)
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "mine").symlink_to(published / "flux1")

    assert bases.find(str(tmp_path / "bases" / "mine")).family == "flux1"


def test_several_folders_can_be_opened(published, tmp_path, monkeypatch):
    """The setting is a list as PATH is."""
    monkeypatch.setenv("FINETUNE_BASES", os.pathsep.join([str(tmp_path), str(published)]))

    assert bases.find(str(published / "flux1")).family == "flux1"


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (None, "“odd” has no model_index.json"),
        ("{", "model_index.json” cannot be read"),
        ('{"_class_name": "OtherPipeline"}', "“odd” is made for OtherPipeline, which is not known here.*FLUX.1"),
    ],
)
def test_folder_that_is_no_base_is_told(tmp_path, monkeypatch, index, words):
    """Without an index, with a broken one, or with that of another model, a folder is refused by what it is."""
    monkeypatch.setenv("FINETUNE_BASES", str(tmp_path))
    (tmp_path / "odd").mkdir()
    if index is not None:
        (tmp_path / "odd" / "model_index.json").write_text(index)

    with pytest.raises(ConfigError, match=words):
        bases.check(str(tmp_path / "odd"))


def test_id_on_the_hub_is_looked_up(server, published):
    """An unknown id is accepted at once, and described by the small files of its repository alone."""
    server.add(ID, published / "flux1")

    at_once = bases.check(ID)
    asked = list(server.requests)
    base = bases.find(f"https://huggingface.co/{ID}")

    assert (at_once, asked) == (None, [])
    assert (base.id, base.source, base.title, base.family) == (ID, ID, ID, "flux1")
    assert base.text_encoder_gib > 0
    assert not [name for name, _, _ in server.sent if name.endswith(".safetensors")]
    assert 0 < weights.missing_bytes(base) < 10**7


def test_id_that_was_looked_up_is_known(server, published):
    """The second time nobody is asked, so that a resumed run means the same model."""
    server.add(ID, published / "flux1")
    base = bases.find(ID)
    server.requests.clear()

    assert bases.check(ID) == bases.find(ID) == base
    assert not server.requests


@pytest.mark.parametrize("family", registry.families().values(), ids=lambda family: family.id)
def test_base_on_the_hub_is_fetched_whole(server, published, family):
    """All parts of a family's model open from what was fetched of its repository."""
    server.add(ID, published / family.id)
    _say_where(server.repositories[ID])

    base = bases.find(ID)
    model = family.load(base, weights.folder(base, fakes.ignore), "cpu", Fit())

    assert [name for name in model.kinds() if model.part(name) is None] == []
    assert weights.is_present(bases.find(ID))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", ("apache-2.0", True, "https://huggingface.co/alice/tiny")),
        (
            "---\nlicense: other\nlicense_name: 'my-licence'\nlicense_link: https://example.com/l\n---\n",
            ("my-licence", False, "https://example.com/l"),
        ),
        ("# A model\nlicense: mit\n", ("unknown: see its model card", False, "https://huggingface.co/alice/tiny")),
    ],
)
def test_licence_is_what_the_card_says(server, published, card, expected):
    """The card's front matter names the licence; what it does not say is not made up."""
    server.add(ID, published / "flux1").files["README.md"] = card.encode()

    base = bases.find(ID)

    assert (base.licence, base.is_commercial, base.licence_url) == expected


def test_distilled_model_under_another_name_is_refused(server, published):
    """A distilled model is known by what it says of itself, and called by its name on the Hub."""
    repository = server.add(ID, published / "flux2-klein")
    index = json.loads(repository.files["model_index.json"])
    repository.files["model_index.json"] = json.dumps({**index, "is_distilled": True}).encode()

    with pytest.raises(ConfigError, match=f"“{ID}” cannot be trained on.*FLUX.2") as caught:
        bases.find(ID)

    assert caught.value.field == "base_model"


def test_repository_that_is_no_base_is_told_by_its_name(server):
    """A model of another layout is refused without a path of the cache in the words."""
    server.repositories[ID] = hub.Repository({"README.md": b"# Chat", "model.safetensors": b"x"})

    with pytest.raises(ConfigError, match=f"“{ID}” has no model_index.json"):
        bases.find(ID)


def test_hub_that_refuses_is_told(server):
    """A private or missing repository, and a missing network, keep the words of the Hub's errors."""
    with pytest.raises(AccessError, match="alice/none"):
        bases.find("alice/none")


def test_offline_mode_refuses_what_is_not_here(server, monkeypatch, tmp_path):
    """Offline, an id that was never fetched is refused with the way out."""
    hub.use(monkeypatch, server.url, tmp_path / "home", is_offline=True)

    with pytest.raises(ModelError, match="offline mode is on"):
        bases.find(ID)


def _say_where(repository):
    """Let a modular index name its own repository as the place of its parts, as published ones do."""
    name = "modular_model_index.json"
    if name in repository.files:
        index = json.loads(repository.files[name])
        for value in index.values():
            if isinstance(value, list) and len(value) > 2 and value[2].get("pretrained_model_name_or_path"):
                value[2]["pretrained_model_name_or_path"] = ID
        repository.files[name] = json.dumps(index).encode()
