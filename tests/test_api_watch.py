"""Links to watch one run without rights."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from urllib.parse import urlsplit

import pretend
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from finetune import api, dataset, inputs, owners
from finetune.api import guard, watch
from finetune.api.throttle import Throttle
from finetune.settings import Settings

REQUEST = {
    "finetune_comment": "pears",
    "mode": "style",
    "webhook_url": "https://hooks.example/secret-path",
    "webhook_secret": "hush",
}


@pytest.fixture
def run(queue, tmp_path):
    """A finished run of Anna's."""
    made = queue.create("anna")
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "in.zip"), made)
    queue.submit(made, inputs.read(REQUEST))
    made.tell("caption", file="0001.png", text="a private caption")
    made.tell("warning", message="a private warning")
    pretend.pretend(made, "train", steps=10, pause=0)
    return made


def _news(client, run, key, since=0):
    return client.get(f"v1/watch/{run.id}/news?since={since}", headers={"x-watch-key": key})


def test_watcher_sees_name_progress_curve_and_samples(client, run):
    """The key opens what there is to watch, without anybody being signed in."""
    told = _news(client, run, owners.allow_watching(run)).json()

    assert (told["name"], told["badge"], len(told["points"]), len(told["samples"])) == ("pears", "Ready", 10, 12)
    assert client.get(told["samples"][0]["url"]).headers["content-type"] == "image/png"


def test_watcher_needs_no_sign_in_where_others_do(queue, run):
    """A closed service lets through the page of a link and what it asks for, and nothing of the page proper."""
    closed = replace(queue.settings, auth=(("anna", "a long password"),))
    app = FastAPI(middleware=[Middleware(guard.Guard, settings=closed, throttle=Throttle())])
    app.include_router(api.router(queue))
    stranger = TestClient(app)

    told = _news(stranger, run, owners.allow_watching(run)).json()

    assert stranger.get(f"v1/watch/{run.id}").status_code == 200
    assert stranger.get(told["samples"][0]["url"]).status_code == 200
    assert stranger.post("gradio_api/component_server", json={}).status_code == 401


def test_watcher_sees_nothing_else(client, run):
    """No captions, no log, no files to download, no webhook and no owner are in what a watcher is sent."""
    text = _news(client, run, owners.allow_watching(run)).text

    allowed = {"name", "cursor", "state", "badge", "notice", "progress", "points", "samples"}
    assert set(json.loads(text)) == allowed
    assert not [word for word in ("private", "0001.png", "images/", "results", "hooks", "hush", "anna") if word in text]


def test_cursor_brings_only_what_is_new(client, run):
    """From the cursor on, what was told is not told again."""
    key = owners.allow_watching(run)
    cursor = _news(client, run, key).json()["cursor"]

    told = _news(client, run, key, cursor).json()

    assert (told["points"], told["samples"], told["name"]) == ([], [], "pears")


@pytest.mark.parametrize("key", ["", "x", "ü"])
def test_wrong_key_opens_nothing(client, run, key):
    """Without the key of the link there is nothing to see, whether or not a link was made."""
    assert _news(client, run, key.encode()).status_code == 404

    owners.allow_watching(run)
    assert _news(client, run, key.encode()).status_code == 404


def test_withdrawn_link_says_so(client, run):
    """From the moment it is withdrawn a link shows nothing, and a new one has another key."""
    key = owners.allow_watching(run)
    owners.end_watching(run)

    answer = _news(client, run, key)

    assert answer.status_code == 404
    assert answer.json()["detail"] == str(watch.GONE)
    assert owners.allow_watching(run) != key


def test_deleted_run_is_watched_no_more(client, queue, run):
    """Deleting a run ends its link."""
    key = owners.allow_watching(run)

    queue.delete(run)

    assert _news(client, run, key).status_code == 404


def test_key_of_one_run_does_not_open_another(client, queue, run):
    """A link is for one run."""
    other = queue.create("anna")
    owners.allow_watching(other)

    assert _news(client, other, owners.allow_watching(run)).status_code == 404


def test_link_keeps_the_key_behind_the_hash(queue, run):
    """What a browser does not send stands in no log of a server or proxy."""
    key = owners.allow_watching(run)

    parts = urlsplit(watch.link(queue.settings, run))

    assert (parts.path, parts.query, parts.fragment) == (f"v1/watch/{run.id}", "", key)


def test_link_begins_with_the_public_address(tmp_path, run):
    """A service that knows where it is reached from outside says so in the link."""
    owners.allow_watching(run)

    link = watch.link(Settings(home=tmp_path, public_url="https://train.example/sub"), run)

    assert link.startswith(f"https://train.example/sub/v1/watch/{run.id}#")


def test_there_is_no_link_until_one_is_made(queue, run):
    """A run can be watched by nobody at first."""
    assert watch.link(queue.settings, run) == ""


def test_page_runs_only_what_is_written_into_it(client, run):
    """The policy names the page's own script and style by their hashes, so nothing that was slipped in would run."""
    answer = client.get(f"v1/watch/{run.id}")
    policy = answer.headers["content-security-policy"]

    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_page_tells_nothing_of_any_run(client, run):
    """The page is the same for a run that is and one that is not."""
    other = "00000000-0000-4000-8000-000000000000"

    assert client.get(f"v1/watch/{run.id}").text == client.get(f"v1/watch/{other}").text
