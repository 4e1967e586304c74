"""Routes beyond the published API: list, follow, cancel, go on, fetch, share, webhooks."""

import time
import uuid

import pytest

from finetune import keys, webhooks
from finetune.api import library
from finetune.inputs import Request
from finetune.owners import Caller
from finetune.runs import State
from finetune.webhooks import Deliveries
from finetune.webhooks.calls import Answer

NOBODYS = str(uuid.uuid4())
ROUTES = [
    ("GET", ""),
    ("GET", "/events"),
    ("POST", "/cancel"),
    ("POST", "/resume"),
    ("GET", "/files"),
    ("GET", "/files/a.safetensors"),
    ("POST", "/watch_link"),
    ("DELETE", "/watch_link"),
    ("GET", "/webhooks"),
    ("POST", "/webhooks/1/send_again"),
]


def waiting(queue, name="pears", owner="local"):
    """A run in the queue."""
    run = queue.create(owner)
    request = Request(finetune_comment=name, mode="style", webhook_url="https://example.com", webhook_secret="hunter2")
    run.write("request.json", request.model_dump(mode="json"))
    run.tell("queued")
    return run


def ready(queue):
    """A run with a LoRA and a sample."""
    run = waiting(queue)
    for name in ("results/pears ü.safetensors", "samples/step000300-0.png"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_bytes(b"bytes of " + name.encode())
    run.tell("sample", step=300, index=0, prompt="a pear", file="step000300-0.png")
    files = [{"name": "pears ü.safetensors", "bytes": 5, "title": "LoRA"}, {"name": "gone.json", "title": "Gone"}]
    run.tell("ready", files=files)
    return run


def ids(client, **asked):
    """The ids of a page, and what to give for the next one."""
    told = client.get("/v1/finetunes", params=asked).json()
    return [one["id"] for one in told["finetunes"]], told["before"]


def test_list_says_what_a_library_shows(client, queue):
    """Name, both kinds of state, progress, base, time and owner."""
    run = waiting(queue)
    run.tell("started")
    run.tell("step", step=30, of=300, loss=1.0, rate=1e-4)
    (told,) = client.get("/v1/finetunes").json()["finetunes"]

    assert told == {
        "id": run.id,
        "name": "pears",
        "status": "Pending",
        "state": "running",
        "progress": 0.1,
        "base_model": "demo",
        "created_at": run.created().isoformat(),
        "owner": "local",
    }
    assert client.get(f"/v1/finetunes/{run.id}").json() == told


def test_list_comes_in_pages_newest_first(client, queue):
    """Each page says where the next one begins; drafts are on none."""
    first, second, third = (waiting(queue).id for _ in range(3))
    queue.create()

    assert ids(client, limit=2) == ([third, second], second)
    assert ids(client, limit=2, before=second) == ([first], None)
    assert ids(client) == ([third, second, first], None)


@pytest.mark.parametrize("asked", [{"limit": 0}, {"limit": 1001}, {"limit": "many"}, {"before": NOBODYS}])
def test_page_that_cannot_be_is_refused(client, asked):
    """At the field of the query."""
    answer = client.get("/v1/finetunes", params=asked)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", *asked]


def test_list_shows_only_what_is_the_callers(queue):
    """A stranger's page has theirs alone and no owners; an owner of the machine sees all, and whose they are."""
    mine, hers = waiting(queue), waiting(queue, owner="ann")

    to_ann = library._page(queue, Caller("ann"), 10, None)["finetunes"]
    to_owner = library._page(queue, Caller("local", owns_machine=True), 10, None)["finetunes"]

    assert [(one["id"], "owner" in one) for one in to_ann] == [(hers.id, False)]
    assert [(one["id"], one["owner"]) for one in to_owner] == [(hers.id, "ann"), (mine.id, "local")]


def test_events_go_on_from_their_cursor(client, queue):
    """What was read is not read again."""
    run = waiting(queue)
    first = client.get(f"/v1/finetunes/{run.id}/events").json()
    run.tell("step", step=1, of=300, loss=1.0, rate=1e-4)
    second = client.get(f"/v1/finetunes/{run.id}/events", params={"since": first["cursor"]}).json()
    third = client.get(f"/v1/finetunes/{run.id}/events", params={"since": second["cursor"]}).json()

    assert [event["kind"] for event in first["events"]] == ["queued"]
    assert [event["kind"] for event in second["events"]] == ["step"]
    assert third == {"events": [], "cursor": second["cursor"], "state": "queued", "status": "Pending"}


@pytest.mark.parametrize("since", [1, 10**6, -1, "x"])
def test_cursor_that_was_never_given_is_refused(client, queue, since):
    """Within a line, behind the end, or none at all."""
    answer = client.get(f"/v1/finetunes/{waiting(queue).id}/events", params={"since": since})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "since"]


def test_events_tell_nothing_of_the_machine(client, queue):
    """A worker's process id is nobody's business; the secret is in no event."""
    run = waiting(queue)
    run.tell("started", pid=4711)

    text = client.get(f"/v1/finetunes/{run.id}/events").text

    assert "4711" not in text and "hunter2" not in text


def test_waiting_finetune_is_cancelled_and_goes_on(client, queue):
    """Out of the queue, and in again."""
    run = waiting(queue)

    cancelled = client.post(f"/v1/finetunes/{run.id}/cancel").json()
    again = client.post(f"/v1/finetunes/{run.id}/cancel").json()
    resumed = client.post(f"/v1/finetunes/{run.id}/resume").json()

    assert (cancelled["status"], cancelled["state"]) == ("Error", "stopped")
    assert again == cancelled
    assert (resumed["status"], resumed["state"]) == ("Pending", "queued")


def test_running_finetune_is_asked_to_stop(client, queue):
    """It stops after its step."""
    run = waiting(queue)
    queue.tick()

    assert client.post(f"/v1/finetunes/{run.id}/cancel").json()["state"] == "stopping"
    assert run.is_asked_to_stop()


def test_finetune_that_is_not_over_cannot_go_on(client, queue):
    """In words, in the shape of all errors."""
    answer = client.post(f"/v1/finetunes/{waiting(queue).id}/resume")

    assert answer.status_code == 400
    assert answer.json()["detail"] == answer.json()["message"]


def test_files_are_listed_with_links_that_need_no_key(client, queue):
    """The LoRA, then samples; what is not there is not listed."""
    lora, sample = client.get(f"/v1/finetunes/{ready(queue).id}/files").json()["files"]

    assert (lora["name"], lora["title"], lora["bytes"]) == ("pears ü.safetensors", "LoRA", 37)
    assert (sample["name"], sample["title"]) == ("step000300-0.png", "Step 300: a pear")
    assert lora["url"].startswith("http://testserver/v1/files/")
    assert client.get(lora["url"]).content == "bytes of results/pears ü.safetensors".encode()


def test_file_is_fetched_by_its_name_whole_or_in_part(client, queue):
    """A download that was cut off goes on."""
    url = f"/v1/finetunes/{ready(queue).id}/files/pears ü.safetensors"

    whole, part = client.get(url), client.get(url, headers={"Range": "bytes=9-15"})

    assert whole.headers["content-disposition"].startswith("attachment")
    assert (part.status_code, part.content) == (206, b"results")


@pytest.mark.parametrize("name", ["request.json", "gone.json", "..%2frequest.json", "%2e%2e%2frequest.json", "x"])
def test_only_files_of_the_list_are_fetched(client, queue, name):
    """No name leads to another file of the folder."""
    assert client.get(f"/v1/finetunes/{ready(queue).id}/files/{name}").status_code == 404


def test_link_to_watch_is_made_once_and_withdrawn(client, queue):
    """The key stands behind the #, which browsers send to nobody."""
    run = waiting(queue)
    url = f"/v1/finetunes/{run.id}/watch_link"

    made, again = client.post(url).json()["url"], client.post(url).json()["url"]
    withdrawn = client.delete(url).json()

    assert made == again
    assert made.startswith(f"http://testserver/v1/watch/{run.id}#")
    assert withdrawn == {"url": None}
    assert client.post(url).json()["url"] != made


def told(queue, run):
    """The id of a delivery that was tried once, in vain."""
    run.tell("failed", message="It broke.")
    deliveries = Deliveries(queue.settings, lambda *sent: Answer("500 Server Error"), lambda: time.time() + 3600)
    deliveries.tick([run])
    deliveries.wait(10)
    return webhooks.of_task(queue.settings, run.id)[0].id


def test_webhooks_are_listed_and_sent_again(client, queue):
    """What came of them, and that another try is due; neither body nor signature."""
    run = waiting(queue)
    id = told(queue, run)

    (listed,) = client.get(f"/v1/finetunes/{run.id}/webhooks").json()["webhooks"]
    again = client.post(f"/v1/finetunes/{run.id}/webhooks/{id}/send_again").json()

    assert set(listed) == {"id", "url", "ended", "attempts", "next_time", "is_delivered"}
    assert [attempt["answer"] for attempt in listed["attempts"]] == ["500 Server Error"]
    assert again["id"] == id
    assert again["next_time"] < listed["next_time"]


def test_webhook_of_another_finetune_is_not_sent(client, queue):
    """A delivery belongs to its task."""
    run, other = waiting(queue), waiting(queue)

    answer = client.post(f"/v1/finetunes/{run.id}/webhooks/{told(queue, other)}/send_again")

    assert answer.status_code == 404


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_finetune_that_is_not_there_is_a_404(client, queue, method, path):
    """The same words for unknown ids, junk and drafts, by every route."""
    for id in (NOBODYS, "junk", queue.create().id):
        answer = client.request(method, f"/v1/finetunes/{id}{path}")
        assert answer.status_code == 404
        assert answer.json()["detail"] == "Finetune not found or access denied"


def test_state_is_not_changed_by_looking(client, queue):
    """A run that waits still does after all that only reads."""
    run = waiting(queue)

    for method, path in ROUTES:
        if method == "GET":
            client.get(f"/v1/finetunes/{run.id}{path}")

    assert queue.state(run) is State.QUEUED


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_each_route_is_for_its_owner(client, queue, method, path):
    """Without a key nothing; with somebody else's, the finetune is not there."""
    url = f"/v1/finetunes/{ready(queue).id}{path}"
    stranger = {"x-key": keys.new(queue.settings, "bob")}

    assert client.request(method, url).status_code == 403
    assert client.request(method, url, headers=stranger).status_code == 404


def test_list_needs_a_key(client, queue):
    """As all routes of finetunes do, once there is one."""
    keys.new(queue.settings, "bob")

    assert client.get("/v1/finetunes").status_code == 403
