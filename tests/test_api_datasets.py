"""Routes of datasets that are kept: list, train with, delete, and their pictures by signed links."""

from dataclasses import replace

import pretend
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from finetune import api, dataset, keys, links, runs, shelf
from finetune.api import datasets
from finetune.dataset import intake
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import State

ASKED = {"finetune_comment": "pears", "mode": "style"}


@pytest.fixture
def client(queue):
    return _client(queue)


def _client(queue):
    app = FastAPI()
    app.include_router(api.router(queue))
    return TestClient(app)


@pytest.fixture
def draft(queue, tmp_path):
    run = queue.create()
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "things.zip"), run, take=intake.take)
    return run


@pytest.fixture
def kept(queue, draft):
    return shelf.keep(queue.settings, draft, "things / ü", Caller("local"))


def _key(queue, name):
    return {"x-key": keys.new(queue.settings, name)}


def test_datasets_are_listed_with_their_versions(client, kept):
    """Name, content, number of pictures, time and origin of the newest, and all versions."""
    (told,) = client.get("/v1/datasets").json()["datasets"]

    about = {"hash": kept.hash, "pictures": 4, "created_at": kept.created}
    assert told == {**about, "name": "things / ü", "source": "an upload", "versions": [about], "owner": "local"}


def test_dataset_is_trained_with(client, queue, kept):
    """A finetune of the kept pictures waits in the queue, and nothing was sent for it."""
    answer = client.post("/v1/finetunes", json={**ASKED, "dataset": kept.label})

    run = runs.find(queue.settings.runs, answer.json()["finetune_id"])
    assert answer.json()["polling_url"].endswith(f"/v1/get_result?id={run.id}")
    assert (queue.state(run), run.request().finetune_comment) == (State.QUEUED, "pears")
    assert dataset.content_hash(run) == kept.hash


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({**ASKED, "dataset": "nothing"}, 404),
        (ASKED, 422),
        ({**ASKED, "dataset": "things / ü", "iterations": 5}, 422),
        ({**ASKED, "dataset": "things / ü", "base_model": "/etc/passwd"}, 422),
        ({**ASKED, "dataset": "things / ü", "captioner": "/etc/passwd"}, 422),
    ],
)
def test_what_cannot_be_trained_leaves_no_run(client, queue, draft, kept, asked, status):
    """A dataset that there is not, none at all, a wrong field and a base model that is none."""
    answer = client.post("/v1/finetunes", json=asked)

    assert answer.status_code == status
    assert "passwd" not in answer.text
    assert list(runs.all_in(queue.settings.runs)) == [draft]


def test_full_queue_leaves_no_run(queue, draft, kept):
    """It is refused before a draft is made."""
    client = _client(Queue(replace(queue.settings, waiting=0), pretend.StillExecutor()))

    assert client.post("/v1/finetunes", json={**ASKED, "dataset": kept.name}).status_code == 429
    assert list(runs.all_in(queue.settings.runs)) == [draft]


def test_dataset_is_deleted_by_its_name(client, queue, kept):
    """Also one with a slash in it; what was deleted is said, and the next time there is none."""
    assert client.delete(f"/v1/datasets/{kept.name}").json() == {"deleted": [kept.label]}

    assert shelf.of(queue.settings, Caller("local")) == []
    assert client.delete(f"/v1/datasets/{kept.name}").status_code == 404


def test_each_program_reaches_what_is_its_owner_s(client, queue, draft):
    """Bob neither sees nor uses nor deletes Ann’s dataset, even by his word whose it is; who owns the machine does."""
    shelf.keep(queue.settings, draft, "things", Caller("ann"))
    bob, root = _key(queue, "bob"), {"x-key": keys.new(queue.settings, "root", True)}

    assert client.get("/v1/datasets", headers=bob).json() == {"datasets": []}
    assert client.post("/v1/finetunes", json={**ASKED, "dataset": "things"}, headers=bob).status_code == 404
    assert client.delete("/v1/datasets/things", params={"owner": "ann"}, headers=bob).status_code == 404
    assert "owner" not in client.get("/v1/datasets", headers=_key(queue, "ann")).json()["datasets"][0]
    assert client.delete("/v1/datasets/things", params={"owner": "ann"}, headers=root).status_code == 200


def test_picture_of_a_dataset_needs_a_signed_link(client, queue, kept):
    """The link gives the first picture in small; changed, it gives nothing."""
    link = datasets.thumbnail_link(queue.settings, kept)

    assert client.get(link).headers["content-type"] == "image/webp"
    assert client.get(link.replace("sig=", "sig=0")).status_code == 403
    assert client.get(link.replace("exp=", "exp=9")).status_code == 403
    shelf.remove(kept)
    assert client.get(link).status_code == 404


def test_old_link_to_a_picture_has_expired(client, queue, kept, monkeypatch):
    """It ends as those to files of runs do."""
    link = datasets.thumbnail_link(queue.settings, kept)
    now = links.time.time()
    monkeypatch.setattr(links.time, "time", lambda: now + 13 * 3600)

    answer = client.get(link)

    assert answer.status_code == 410
