"""A LoRA is pushed to a real Hub on this machine: exactly what is meant for others, and nothing else."""

import fakes
import hub
import pytest

from finetune import publish
from finetune.errors import AccessError, ConfigError, FinetuneError

REPO = f"{hub.OWNER}/pears"
SECRET = "correct horse"
PUBLIC = {"README.md", "pears.safetensors", "pears-comfyui.safetensors", "samples/step000300-0.png"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An empty Hub; no token is set."""
    with hub.serving() as server:
        hub.use(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture
def run(tmp_path):
    """A run that has ended, with all that a run's folder holds."""
    run = fakes.run(tmp_path)
    run.write("request.json", {"finetune_comment": "pears", "webhook_secret": SECRET})
    run.write("descriptions.json", {"style": {"0001.png": "a private pear"}})
    fakes.pictures(run.images, [(8, 8), (8, 8)])
    fakes.pictures(run.thumbnails, [(8, 8)])
    run.samples.mkdir()
    run.results.mkdir()
    for name in ("step000000-0.png", "step000300-0.png", "notes.txt"):
        (run.samples / name).write_bytes(f"sample {name}".encode())
    for name in ("README.md", "pears.safetensors", "pears-comfyui.safetensors", "captions.zip", "settings.json"):
        (run.results / name).write_bytes(f"result {name}".encode())
    return run


def test_run_is_pushed_as_a_private_model(server, run):
    """The Hub then holds the card, the LoRA files and the last samples, for nobody but their owner."""
    url = publish.push_run(run, REPO, hub.WRITER)

    pushed = server.repositories[REPO]
    assert url == f"{server.url}/{REPO}" and pushed.is_private
    assert set(pushed.files) == PUBLIC | {".gitattributes"}
    assert pushed.files["pears.safetensors"] == b"result pears.safetensors"
    assert pushed.files["samples/step000300-0.png"] == b"sample step000300-0.png"


def test_pictures_captions_and_secrets_stay_here(server, run):
    """Nothing that was sent to the Hub holds a training picture, a caption or the webhook's secret."""
    publish.push_run(run, REPO, hub.WRITER)

    sent = [*server.repositories[REPO].files.values(), *server.uploads.values()]
    private = [SECRET.encode(), b"a private pear", b"result captions.zip", b"result settings.json"]
    private += [path.read_bytes() for folder in (run.images, run.thumbnails) for path in folder.iterdir()]
    assert not [secret for secret in private for data in sent if secret in data]


def test_everybody_may_see_it_on_demand(server, run):
    """A run is pushed in public only when that is asked for."""
    publish.push_run(run, REPO, hub.WRITER, is_private=False)

    assert not server.repositories[REPO].is_private
    assert "README.md" in server.repositories[REPO].files


def test_name_without_an_owner_belongs_to_the_token(server, run):
    """The Hub knows whose token it is."""
    assert publish.push_run(run, "pears", hub.WRITER) == f"{server.url}/{REPO}"


def test_token_of_this_machine_is_used(server, run, monkeypatch):
    """Without a token of its own, a push takes the one that HF_TOKEN sets."""
    monkeypatch.setenv("HF_TOKEN", hub.WRITER)

    publish.push_run(run, REPO)

    assert REPO in server.repositories


def test_push_can_be_repeated(server, run):
    """After a run has gone on, its new card and samples take the place of the old."""
    publish.push_run(run, REPO, hub.WRITER)
    (run.results / "README.md").write_bytes(b"better words")
    (run.samples / "step000400-0.png").write_bytes(b"better sample")

    publish.push_run(run, REPO, hub.WRITER)

    pushed = server.repositories[REPO].files
    assert pushed["README.md"] == b"better words"
    assert [name for name in pushed if name.startswith("samples")] == ["samples/step000400-0.png"]


def test_other_models_are_not_overwritten(server, run):
    """A repository that holds something else is refused by what it holds, and left as it is."""
    server.repositories[REPO] = hub.Repository({"README.md": b"mine", "model.bin": b"mine"}, is_private=True)

    with pytest.raises(ConfigError, match=r"exists and holds something else \(model.bin\)") as caught:
        publish.push_run(run, REPO, hub.WRITER)

    assert caught.value.field == "repo"
    assert server.repositories[REPO].files["README.md"] == b"mine"


def test_private_push_does_not_end_in_public(server, run):
    """A repository that everybody can see takes no LoRA that was to be private."""
    server.repositories[REPO] = hub.Repository({})

    with pytest.raises(ConfigError, match="is public"):
        publish.push_run(run, REPO, hub.WRITER)

    assert not server.repositories[REPO].files


@pytest.mark.parametrize(
    ("repo", "token", "kind", "words"),
    [
        (REPO, "", AccessError, "needs a token.*settings/tokens"),
        (REPO, "hf_wrongwrongwrong", AccessError, "does not accept this token"),
        (REPO, "hf_with\nline", AccessError, "characters that no token has"),
        (REPO, hub.READER, AccessError, f"may not write to {REPO}.*rights"),
        ("bob/pears", hub.WRITER, AccessError, "may not write to bob/pears"),
        ("alice/no spaces", hub.WRITER, ConfigError, "no name for a model"),
    ],
)
def test_refusals_are_told_apart(server, run, repo, token, kind, words):
    """Each has its own words and never the token; nothing is made."""
    with pytest.raises(kind, match=words) as caught:
        publish.push_run(run, repo, token)

    assert not token or token not in f"{caught.value!r} {caught.value}"
    assert not server.repositories


def test_missing_network_is_told(run, monkeypatch, tmp_path):
    """An address where nobody listens is no traceback."""
    hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "home")

    with pytest.raises(FinetuneError, match="cannot be reached"):
        publish.push_run(run, REPO, hub.WRITER)


def test_offline_mode_is_told(run, monkeypatch, tmp_path):
    """Offline mode is named, because it looks like a missing network."""
    hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "home", is_offline=True)

    with pytest.raises(FinetuneError, match="Offline mode is on"):
        publish.push_run(run, REPO, hub.WRITER)


def test_card_that_the_hub_cannot_read_is_told(server, run):
    """What the Hub says about the card is passed on, and no file is uploaded."""
    (run.results / "README.md").write_text("---\nlicense: mit\n")

    with pytest.raises(FinetuneError, match="(?s)does not take the upload.*front matter has no end"):
        publish.push_run(run, REPO, hub.WRITER)

    assert set(server.repositories[REPO].files) == {".gitattributes"}


def test_run_without_a_lora_is_refused(server, tmp_path):
    """There is nothing to push before a run has made something."""
    with pytest.raises(FinetuneError, match="no LoRA to publish"):
        publish.push_run(fakes.run(tmp_path), REPO, hub.WRITER)


def test_token_is_kept_nowhere(server, run, tmp_path):
    """After a push no file of the run, or of huggingface_hub's folder, holds the token."""
    publish.push_run(run, REPO, hub.WRITER)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if hub.WRITER.encode() in path.read_bytes()]
