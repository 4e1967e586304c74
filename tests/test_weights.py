"""A base model is fetched from a real Hub on this machine: whole, once, with resume, and with errors in words."""

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fakes
import filelock
import hub
import pytest

from finetune import downloads, registry, weights
from finetune.errors import AccessError, ModelError
from finetune.memory import Fit

ROOT = Path(__file__).parent.parent
ID = "alice/tiny"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
DECOYS = ("flux1-dev.safetensors", "grid.jpg", "transformer/diffusion_pytorch_model.fp16.safetensors", "vae/model.bin")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A toy model in the layout of the Hub."""
    folder = tmp_path_factory.mktemp("published")
    fakes.tiny_model().save(folder)
    return folder


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """A Hub with the toy model and files that nobody needs; no try waits."""
    monkeypatch.setattr(downloads, "SECONDS_BEFORE_A_TRY", 0.0)
    with hub.serving() as server:
        repository = server.add(ID, published)
        repository.files |= dict.fromkeys(DECOYS, b"decoy")
        hub.use(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture
def base():
    """The toy model, on the Hub."""
    return replace(fakes.tiny_model().base, title="Tiny", source=ID, download_gib=1.0)


def _needed(server):
    return {name: data for name, data in server.repositories[ID].files.items() if name not in DECOYS}


def _sent(server, name):
    return [(start, count) for sent, start, count in server.sent if sent == name]


def test_fetched_model_has_the_published_weights(server, base, published):
    """What arrives is opened by its family and holds every weight that was published."""
    folder = weights.folder(base, fakes.ignore)

    family = registry.families()[base.family]
    fetched, original = (family.load(base, place, "cpu", Fit()).transformer for place in (folder, published))
    assert all((a == b).all() for a, b in zip(fetched.parameters(), original.parameters(), strict=True))


def test_only_what_the_parts_need_is_fetched(server, base):
    """Single-file copies, other precisions, other formats and pictures stay on the Hub."""
    folder = weights.folder(base, fakes.ignore)

    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert held == _needed(server)


def test_model_that_is_there_is_used_without_the_hub(server, base):
    """A second run asks nothing, so that it finds the base it knows."""
    first = weights.folder(base, fakes.ignore)
    server.requests.clear()

    second = weights.folder(base, fakes.ignore)

    assert (second, server.requests) == (first, [])


def test_other_programs_find_the_model_in_the_cache(server, base, monkeypatch, tmp_path):
    """What is fetched here is complete for huggingface_hub as well, offline."""
    from huggingface_hub import snapshot_download

    folder = weights.folder(base, fakes.ignore)
    hub.use(monkeypatch, server.url, tmp_path / "home", is_offline=True)

    found = snapshot_download(ID, allow_patterns=list(_needed(server)))

    assert Path(found) == folder


def test_cut_connection_is_taken_up_where_it_broke(server, base):
    """After a break only the rest is asked for, as often as it breaks."""
    server.cuts[TRANSFORMER] = [100_000, 0, 50_000]
    size = len(_needed(server)[TRANSFORMER])

    weights.folder(base, fakes.ignore)

    rest = size - 150_000
    assert _sent(server, TRANSFORMER) == [(0, 100_000), (100_000, 0), (100_000, 50_000), (150_000, rest)]


def test_download_that_was_ended_goes_on_later(server, base):
    """Bytes of a run that was stopped, or killed, are not fetched twice."""
    server.bytes_per_second = 300_000

    def stop(doing, there, total):
        if there > 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.folder(base, stop)
    server.bytes_per_second = None
    parts = {path.name.split(".")[0]: path.stat().st_size for path in _blobs().glob(f"*{downloads.PART}")}
    server.sent.clear()

    folder = weights.folder(base, fakes.ignore)

    assert parts and all(parts.values())
    assert {start for name, start, _ in server.sent if name.endswith(".safetensors")} >= set(parts.values())
    assert (folder / TRANSFORMER).read_bytes() == _needed(server)[TRANSFORMER]


def test_server_that_sends_all_again_is_understood(server, base):
    """Where a range is ignored, the file starts anew instead of growing wrong."""
    server.cuts[TRANSFORMER] = [100_000]
    server.ignores_ranges = True

    folder = weights.folder(base, fakes.ignore)

    assert (folder / TRANSFORMER).read_bytes() == _needed(server)[TRANSFORMER]


def test_connection_that_brings_nothing_is_given_up(server, base):
    """Five tries without a byte end it, with the promise that it goes on from there."""
    server.cuts[TRANSFORMER] = [100_000, *[0] * 5]

    with pytest.raises(ModelError, match="cut.*goes on from there"):
        weights.folder(base, fakes.ignore)

    assert _part(server).stat().st_size == 100_000


def test_damaged_file_is_thrown_away(server, base):
    """A file that is not what was announced never becomes part of the model, and comes anew the next time."""
    _part(server).parent.mkdir(parents=True)
    _part(server).write_bytes(b"\0" * 1000)

    with pytest.raises(ModelError, match=f"{TRANSFORMER} arrived damaged"):
        weights.folder(base, fakes.ignore)

    assert (weights.folder(base, fakes.ignore) / TRANSFORMER).read_bytes() == _needed(server)[TRANSFORMER]


def test_progress_adds_up_to_the_whole(server, base):
    """Bytes never go back, and end at the sum of all files that are needed."""
    server.bytes_per_second = 500_000
    seen = []

    weights.folder(base, lambda doing, there, total: seen.append((doing, there, total)))

    whole = sum(map(len, _needed(server).values()))
    assert {(doing, total) for doing, _, total in seen} == {("Downloading Tiny", whole)}
    counts = [there for _, there, _ in seen]
    assert counts == sorted(counts) and counts[-1] == whole and len(set(counts)) > 2


def test_disk_that_is_too_small_is_told_before_the_download(server, base):
    """Need, free space, folder and the way to another disk are named, and no weights are asked for."""
    server.repositories[ID].claimed_sizes[TRANSFORMER] = 5 * 10**18

    with pytest.raises(ModelError) as caught:
        weights.folder(base, fakes.ignore)

    from huggingface_hub import constants

    assert "needs 5000000.0 TB" in str(caught.value) and "HF_HOME" in caught.value.hint
    assert constants.HF_HUB_CACHE in str(caught.value)
    assert not _sent(server, TRANSFORMER)


def test_disk_that_fills_up_is_told(server, base):
    """When the disk takes no more in the middle of a file, what has arrived is kept and the words say so."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(ModelError, match="no room left for alice/tiny.*HF_HOME.*goes on from there"):
            weights.folder(base, fakes.ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert 0 < _part(server).stat().st_size <= 200_000


@pytest.mark.parametrize(
    ("changes", "token", "kind", "words"),
    [
        ({"is_private": True}, "", AccessError, "nobody without a token.*HF_TOKEN"),
        ({}, "hf_wrongwrongwrong", AccessError, "does not accept the token"),
        ({}, "hf_with…dots", AccessError, "characters that no token has"),
        ({"is_gated": True}, "", AccessError, "no token is set.*https://huggingface.co/alice/tiny, log in and agree"),
        ({"is_gated": True}, hub.READER, AccessError, "has not accepted.*Open https://huggingface.co/alice/tiny"),
        (None, "", AccessError, "does not exist, or it is private"),
        (None, hub.READER, ModelError, "no model alice/tiny on the Hub"),
    ],
)
def test_refusals_are_told_apart(server, base, monkeypatch, tmp_path, changes, token, kind, words):
    """Each has its own words, what to do next, and never the token."""
    repository = server.repositories.pop(ID)
    if changes is not None:
        server.repositories[ID] = replace(repository, **changes)
    hub.use(monkeypatch, server.url, tmp_path / "home", token)

    with pytest.raises(kind, match=words) as caught:
        weights.folder(base, fakes.ignore)

    assert type(caught.value) is kind
    assert not token or token not in f"{caught.value!r} {caught.value}"


def test_accepted_licence_opens_a_gated_model(server, base, monkeypatch, tmp_path):
    """With the token of an account that agreed, a gated model is fetched like any other."""
    server.repositories[ID].is_gated, server.repositories[ID].accepted_by = True, (hub.READER,)
    hub.use(monkeypatch, server.url, tmp_path / "home", hub.READER)

    assert (weights.folder(base, fakes.ignore) / TRANSFORMER).exists()


def test_missing_network_is_told(server, base, monkeypatch, tmp_path):
    """An address where nobody listens is named."""
    hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "home")

    with pytest.raises(ModelError, match="http://127.0.0.1:9 does not answer.*network"):
        weights.folder(base, fakes.ignore)


def test_offline_mode_uses_the_cache(server, base, monkeypatch, tmp_path):
    """Offline, a model that is there is used; one that is not is refused with the way out."""
    folder = weights.folder(base, fakes.ignore)
    server.requests.clear()
    hub.use(monkeypatch, server.url, tmp_path / "home", is_offline=True)

    assert weights.folder(base, fakes.ignore) == folder
    with pytest.raises(ModelError, match="alice/other is not on this machine, and offline mode is on.*HF_HUB_OFFLINE"):
        weights.folder(replace(base, source="alice/other"), fakes.ignore)
    assert not server.requests


def test_part_that_lies_elsewhere_is_told(server, base):
    """A repository without one of its parts is refused by the name of the part."""
    files = server.repositories[ID].files
    server.repositories[ID].files = {name: data for name, data in files.items() if not name.startswith("vae/")}

    with pytest.raises(ModelError, match="does not hold all its parts: vae lies"):
        weights.folder(base, fakes.ignore)


def test_two_runs_fetch_a_model_once(server, base):
    """While another process fetches, progress says that it is waited for."""
    lock = filelock.FileLock(_blobs().parent / "finetune.lock", thread_local=False)
    _blobs().parent.mkdir(parents=True)
    lock.acquire()
    told = []

    def progress(doing, there, total):
        told.append(doing)
        lock.release()

    weights.folder(base, progress)

    assert told[0] == "Waiting for another run that downloads Tiny" and "Downloading Tiny" in told


def test_disk_without_links_keeps_one_copy(server, base, monkeypatch):
    """Where the cache cannot link, the weights are not kept twice."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)

    folder = weights.folder(base, fakes.ignore)

    assert (folder / TRANSFORMER).read_bytes() == _needed(server)[TRANSFORMER]
    assert not list(_blobs().glob("?" * 64)) and weights.is_present(base)


def test_parts_of_older_files_are_removed(server, base):
    """What had arrived of a file that the Hub has a newer one of does not stay on the disk."""
    _blobs().mkdir(parents=True)
    (_blobs() / f"{'0' * 64}{downloads.PART}").write_bytes(b"old")

    weights.folder(base, fakes.ignore)

    assert not list(_blobs().glob(f"*{downloads.PART}"))


def test_presence_is_known_without_the_hub(server, base):
    """Before the download the record says how much is missing; afterwards nothing is, and nobody was asked."""
    before = (weights.is_present(base), weights.missing_bytes(base))
    asked = len(server.requests)
    folder = weights.folder(base, fakes.ignore)
    server.requests.clear()

    after = (weights.is_present(base), weights.missing_bytes(base))

    assert (before, asked, after, server.requests) == ((False, 2**30), 0, (True, 0), [])
    (folder / TRANSFORMER).unlink()
    assert weights.missing_bytes(base) == len(_needed(server)[TRANSFORMER])


def test_shards_that_an_index_names_are_missed(published, tmp_path, base):
    """A folder with an index is whole when every file that the index names is there."""
    folder = shutil.copytree(published, tmp_path / "copy")
    (folder / TRANSFORMER).unlink()
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one-of-two.safetensors", "b": "two-of-two.safetensors"}}')
    (folder / "transformer" / "one-of-two.safetensors").touch()

    assert weights.lacking(folder) == ["transformer/two-of-two.safetensors"]


def test_local_folder_is_used_as_it_is(published, base, tmp_path):
    """A whole folder is returned; one with holes, or none, is refused by what is missing."""
    whole = replace(base, source=str(published))
    holes = shutil.copytree(published, tmp_path / "holes")
    shutil.rmtree(holes / "vae")

    assert weights.folder(whole, fakes.ignore) == published
    with pytest.raises(ModelError, match="not complete: vae/ is missing"):
        weights.folder(replace(base, source=str(holes)), fakes.ignore)
    with pytest.raises(ModelError, match="has no model_index.json"):
        weights.folder(replace(base, source=str(tmp_path / "none")), fakes.ignore)
    assert not weights.is_present(replace(base, source=str(tmp_path / "none")))


def test_revision_is_the_commit(server, base, tmp_path):
    """A folder of the cache knows its commit; any other folder has none."""
    folder = weights.folder(base, fakes.ignore)

    assert weights.revision(folder) == server.repositories[ID].commit
    assert weights.revision(tmp_path) == ""


def test_modular_parts_come_from_where_they_are_loaded():
    """In a modular index, a part that is made from settings has no folder."""
    index = {
        "_class_name": "ModularPipeline",
        "transformer": ["diffusers", "T", {"pretrained_model_name_or_path": "a/b", "subfolder": "dit"}],
        "guider": ["diffusers", "G", {"pretrained_model_name_or_path": None}],
        "vae": ["diffusers", "V"],
        "safety": [None, None],
        "is_distilled": False,
    }

    assert list(weights.parts(index)) == ["dit", "vae"]


def test_pace_is_the_mean_of_the_looks():
    """Rate and time left follow from the first and the last look; without bytes there is no time."""
    assert downloads.pace([(10.0, 100), (11.0, 150), (12.0, 300)], total=1300) == (100.0, 10.0)
    assert downloads.pace([(10.0, 100)], total=1300) == (0.0, None)
    assert downloads.pace([(10.0, 100), (12.0, 100)], total=1300) == (0.0, None)


@pytest.mark.parametrize(("size", "words"), [(12, "12 bytes"), (1_500_000, "2 MB"), (23_800_000_000, "23.8 GB")])
def test_sizes_are_told_as_the_hub_tells_them(size, words):
    """Thousands of bytes, not 1024."""
    assert weights.size_in_words(size) == words


def test_environment_decides_where_and_what_is_fetched(server, published, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN are respected as huggingface_hub reads them, and no heavy library is loaded."""
    server.repositories[ID].is_private = True
    program = (
        "import sys; from finetune import bases, publish, weights\n"
        f"print(weights.folder(bases.find('{ID}'), lambda *told: None))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **hub.environment(server.url, tmp_path / "elsewhere", hub.READER)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "elsewhere" / "hub")


def _blobs():
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "models--alice--tiny" / "blobs"


def _part(server):
    import hashlib

    digest = hashlib.sha256(_needed(server)[TRANSFORMER]).hexdigest()
    return _blobs() / f"{digest}{downloads.PART}"
