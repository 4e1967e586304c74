"""The routes: a sign of life, and files by signed links."""

import pretend
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from finetune import api, links, runs
from finetune.api import files
from finetune.queue import Queue
from finetune.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


@pytest.fixture
def client(settings):
    app = FastAPI()
    queue = Queue(settings, pretend.StillExecutor())
    app.include_router(api.router(queue))
    yield TestClient(app)
    queue.close()


@pytest.fixture
def run(settings):
    made = runs.create(settings.runs)
    for name in ("samples/step000000-0.png", "results/my lora ü.safetensors", "request.json"):
        path = made.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"bytes of " + name.encode())
    return made


def test_health_says_ok(client):
    """The route that tells whether the service is there needs nothing."""
    assert client.get("/v1/health").json()["status"] == "ok"


def test_signed_link_gives_the_picture(client, settings, run):
    """A sample is shown in the page, and a browser does not guess what it is."""
    answer = client.get(files.link(settings, run, "samples/step000000-0.png"))

    assert answer.content == b"bytes of samples/step000000-0.png"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_result_is_downloaded_under_its_name(client, settings, run):
    """A LoRA comes as a download, whatever letters its name has."""
    answer = client.get(files.link(settings, run, "results/my lora ü.safetensors"))

    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "my%20lora%20%C3%BC.safetensors" in answer.headers["content-disposition"]


def test_link_stays_the_same_for_a_while(settings, run):
    """Two links to one file are equal, so that the browser keeps the picture."""
    assert files.link(settings, run, "samples/a.png") == files.link(settings, run, "samples/a.png")


def test_link_for_another_file_is_refused(client, settings, run):
    """A signature is good for one file only."""
    link = files.link(settings, run, "samples/step000000-0.png")

    assert client.get(link.replace("step000000-0.png", "step000001-0.png")).status_code == 403


def test_link_that_was_made_longer_is_refused(client, settings, run):
    """The expiry is signed too."""
    link = files.link(settings, run, "samples/step000000-0.png")

    assert client.get(link.replace("exp=", "exp=9")).status_code == 403


def test_old_link_has_expired(client, settings, run, monkeypatch):
    """After half a day a link says that it is too old."""
    link = files.link(settings, run, "samples/step000000-0.png")
    now = links.time.time()
    monkeypatch.setattr(links.time, "time", lambda: now + 13 * 3600)

    assert client.get(link).status_code == 410


@pytest.mark.parametrize("path", ["request.json", "samples/../request.json", "../secret.key", "samples", "samples/"])
def test_only_files_for_the_page_are_given(client, settings, run, path):
    """Even a signed link does not leave the folders of pictures and results."""
    link = files.link(settings, run, path).replace("/../", "/%2e%2e/")

    assert client.get(link).status_code in (403, 404)


def test_link_out_of_the_folder_is_not_followed(client, settings, run):
    """A symbolic link in a result folder does not lead out of it."""
    try:
        (run.results / "key.json").symlink_to(run.folder / "request.json")
    except OSError:
        pytest.skip("this system makes no symbolic links here")

    assert client.get(files.link(settings, run, "results/key.json")).status_code == 404
