"""The published API's routes of finetunes, sentence by sentence of the contract."""

import base64
import json
import time
import uuid
from datetime import datetime

import pictures
import pytest

from finetune import images, keys, runs
from finetune.api import finetunes
from finetune.images import Order
from finetune.inputs import Request
from finetune.runs import State

ROOT = "http://testserver"
SIX = ["id", "status", "result", "progress", "details", "preview"]
MISSING = {
    "detail": "Finetune not found or access denied",
    "message": "Finetune not found or access denied",
}
LEAST = {"finetune_comment": "pears", "mode": "style"}
NOBODYS = str(uuid.uuid4())


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    """A ZIP of two pictures."""
    return pictures.example_zip(tmp_path_factory.mktemp("zip") / "a.zip", 2).read_bytes()


@pytest.fixture
def ann(queue):
    """What a program of Ann's sends with every request; from now on, everybody needs a key."""
    return {"X-Key": keys.new(queue.settings, "ann")}


def body(zipped, **changes):
    """A request of the required fields alone, with changes; what is None is left out."""
    fields = {"file_data": base64.b64encode(zipped).decode(), **LEAST, **changes}
    return {name: value for name, value in fields.items() if value is not None}


def submit(client, zipped, **changes):
    """The id of a finetune that was submitted."""
    answer = client.post("/v1/finetune", json=body(zipped, **changes))
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def waiting(queue, owner="local", **changes):
    """The id of a finetune in the queue, without its pictures."""
    run = queue.create(owner)
    run.write("request.json", Request(**LEAST, **changes).model_dump(mode="json"))
    run.tell("queued")
    return run.id


def find(queue, id):
    """The run of a finetune."""
    return runs.find(queue.settings.runs, id)


def result(client, id):
    """What get_result says."""
    return client.get("/v1/get_result", params={"id": id}).json()


def problems(answer):
    """The places of what is wrong, by a 422 of the right shape."""
    assert answer.status_code == 422, answer.text
    told = answer.json()
    assert list(told) == ["detail"]
    assert all(set(one) == {"type", "loc", "msg"} for one in told["detail"])
    return [one["loc"] for one in told["detail"]]


def left(queue):
    """Runs, and files that came in."""
    home = queue.settings.home
    return [*queue.settings.runs.glob("*"), *(home / "incoming").glob("*")]


def test_finetune_is_answered_with_its_id_and_where_to_ask(client, queue, zipped):
    """Four keys, the id twice, an absolute address, and a run that waits."""
    answer = client.post("/v1/finetune", json=body(zipped))

    told = answer.json()
    assert told == {
        "finetune_id": told["id"],
        "id": told["id"],
        "status": "Pending",
        "polling_url": f"{ROOT}/v1/get_result?id={told['id']}",
    }
    assert str(uuid.UUID(told["id"], version=4)) == told["id"]
    assert queue.state(find(queue, told["id"])) is State.QUEUED


def test_polling_url_leads_to_the_result(client, zipped):
    """A program follows the address as it is."""
    told = client.post("/v1/finetune", json=body(zipped)).json()

    assert client.get(told["polling_url"]).json()["id"] == told["id"]


def test_fields_that_are_not_given_have_their_defaults(client, queue, zipped):
    """The request of the required fields alone means what the published API meant."""
    request = find(queue, submit(client, zipped)).request()

    assert (request.trigger_word, request.iterations, request.captioning, request.rate) == ("TOK", 300, True, 1e-5)
    assert (request.priority, request.finetune_type, request.lora_rank) == ("quality", "full", 32)


def test_fields_that_are_given_are_kept(client, queue, zipped):
    """Every field of the published API reaches the run."""
    sent = {
        "mode": "character",
        "trigger_word": "PEAR",
        "iterations": 1000,
        "learning_rate": 5e-3,
        "captioning": False,
        "priority": "high_res_only",
        "finetune_type": "lora",
        "lora_rank": 16,
        "webhook_url": "https://example.com/a?b=c",
    }

    kept = find(queue, submit(client, zipped, **sent)).request().model_dump(mode="json")

    assert {name: kept[name] for name in sent} == sent


def test_unknown_keys_are_ignored(client, queue, zipped):
    """Programs send what newer versions knew."""
    id = submit(client, zipped, finetune_strength=1.1, steps={"a": [None]})

    assert find(queue, id).request().finetune_comment == "pears"


@pytest.mark.parametrize(("number", "name"), [(7, "7"), (1.5, "1.5")])
def test_name_may_be_a_number(client, queue, zipped, number, name):
    """It is read as text."""
    assert find(queue, submit(client, zipped, finetune_comment=number)).request().finetune_comment == name


def test_name_has_no_control_characters(client, queue, zipped):
    """Names become file names and headers; what turns text around could make a name look like another one."""
    name = "a\x00b\x1b[0m\r\nc \u202egnp.\x7f"

    assert find(queue, submit(client, zipped, finetune_comment=name)).request().finetune_comment == "ab[0m c gnp."


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file_data", None),
        ("file_data", 5),
        ("file_data", ["a"]),
        ("file_data", ""),
        ("file_data", "not base64!"),
        ("file_data", "UEsDBA"),
        ("file_data", base64.b64encode(b"a text").decode()),
        ("finetune_comment", None),
        ("finetune_comment", ""),
        ("finetune_comment", True),
        ("finetune_comment", "\x00"),
        ("finetune_comment", "x" * 201),
        ("mode", None),
        ("mode", "portrait"),
        ("trigger_word", "x" * 65),
        ("trigger_word", 5),
        ("iterations", 99),
        ("iterations", 1001),
        ("iterations", 300.5),
        ("iterations", True),
        ("learning_rate", 0.9e-6),
        ("learning_rate", 5.1e-3),
        ("learning_rate", True),
        ("captioning", "perhaps"),
        ("priority", "fast"),
        ("finetune_type", "dreambooth"),
        ("lora_rank", 8),
        ("lora_rank", True),
        ("webhook_url", ""),
        ("webhook_url", "ftp://example.com"),
        ("webhook_url", "https://example.com/" + "x" * 2083),
        ("webhook_secret", 5),
        ("base_model", "/etc"),
        ("base_model", "flux-dev-schnell"),
        ("seed", True),
        ("sample_prompts", ["x" * 1001]),
    ],
)
def test_wrong_field_is_a_422_that_names_it_and_repeats_nothing(client, queue, zipped, field, value):
    """One problem, at the field, and nothing is left behind."""
    sent = body(zipped, **{field: value})
    if value is None:
        sent.pop(field, None)

    answer = client.post("/v1/finetune", json=sent)

    assert [place[:2] for place in problems(answer)] == [["body", field]]
    assert not (isinstance(value, str) and len(value) > 4 and value in answer.text)
    assert not left(queue)


@pytest.mark.parametrize("field", ["learning_rate", "webhook_url", "webhook_secret"])
def test_field_that_may_be_null_may_be_null(client, zipped, field):
    """Null is the same as not given."""
    sent = {**body(zipped), field: None}

    assert client.post("/v1/finetune", json=sent).status_code == 200


@pytest.mark.parametrize("name", ["mode", "trigger_word", "iterations", "captioning", "priority", "file_data"])
def test_field_that_may_not_be_null_is_refused(client, zipped, name):
    """As the published API did."""
    sent = {**body(zipped), name: None}

    assert problems(client.post("/v1/finetune", json=sent)) == [["body", name]]


def test_all_that_is_wrong_is_told_at_once(client, zipped):
    """Three mistakes, three problems."""
    answer = client.post("/v1/finetune", json=body(zipped, mode="x", iterations=1, lora_rank=2))

    assert problems(answer) == [["body", "mode"], ["body", "iterations"], ["body", "lora_rank"]]


def test_body_that_is_no_json_is_a_422(client):
    """Also a broken body is answered with a list."""
    answer = client.post("/v1/finetune", content=b'{"mode": ', headers={"content-type": "application/json"})

    assert problems(answer)[0][0] == "body"


def test_zip_without_pictures_is_a_422_now(client, queue, tmp_path):
    """What cannot be trained on is no run that fails later."""
    empty = pictures.zip_of(tmp_path / "a.zip", {"readme.md": "nothing"}).read_bytes()

    assert problems(client.post("/v1/finetune", json=body(empty))) == [["body", "file_data"]]
    assert not left(queue)


def test_form_is_taken_as_well(client, queue, zipped):
    """curl -F file_data=@pictures.zip -F mode=style …"""
    fields = {**LEAST, "iterations": "400", "captioning": "false", "lora_rank": "16", "learning_rate": ""}

    answer = client.post("/v1/finetune", data=fields, files={"file_data": ("a.zip", zipped, "application/zip")})

    request = find(queue, answer.json()["id"]).request()
    assert (request.iterations, request.captioning, request.lora_rank) == (400, False, 16)
    assert request.learning_rate is None


def test_prompts_of_a_form_are_lines_or_fields(client, queue, zipped):
    """Both ways to send several texts in a form."""
    for sent in ("a pear\na plum\n", ["a pear", "a plum"]):
        fields = {**LEAST, "sample_prompts": sent}
        answer = client.post("/v1/finetune", data=fields, files={"file_data": ("a.zip", zipped)})
        assert find(queue, answer.json()["id"]).request().sample_prompts == ("a pear", "a plum")


def test_zip_alone_is_taken_with_its_fields_in_the_address(client, queue, zipped):
    """curl --data-binary @pictures.zip -H content-type:application/zip …/finetune?mode=style…"""
    answer = client.post("/v1/finetune", params=LEAST, content=zipped, headers={"content-type": "application/zip"})

    assert find(queue, answer.json()["id"]).request().mode == "style"


def test_result_of_a_finetune_that_waits_is_pending(client, queue):
    """Six keys; nothing has begun, so progress is null, and details say how long the queue is."""
    waiting(queue)
    told = result(client, waiting(queue))

    assert list(told) == SIX
    assert (told["status"], told["progress"], told["result"], told["preview"]) == ("Pending", None, None, None)
    assert (told["details"]["stage"], told["details"]["position"]) == ("Waiting", 2)


def test_result_of_a_finetune_at_work_has_a_progress(client, queue):
    """From 0, before the first step, to 1."""
    id = waiting(queue)
    run = find(queue, id)
    run.tell("started")
    before = result(client, id)
    run.tell("step", step=75, of=300, loss=1.0, rate=1e-4, seconds_left=12.5)
    told = result(client, id)

    assert (before["status"], before["progress"]) == ("Pending", 0.0)
    assert (told["status"], told["progress"], told["result"]) == ("Pending", 0.25, None)
    details = told["details"]
    assert (details["step"], details["of"], details["seconds_left"]) == (75, 300, 12.5)


def test_result_of_a_finetune_that_is_ready_is_null(client, queue):
    """Typed clients fail on anything else; a key `error` at the top would be one."""
    id = waiting(queue)
    find(queue, id).tell("ready", files=[], summary={})
    told = result(client, id)

    assert list(told) == SIX
    assert (told["status"], told["result"], told["progress"]) == ("Ready", None, None)


def test_failure_is_told_with_status_200(client, queue):
    """In the details and at the top."""
    id = waiting(queue)
    find(queue, id).tell("failed", message="The loss is not a number.", hint="Try a smaller rate.")
    answer = client.get("/v1/get_result", params={"id": id})

    told = answer.json()
    assert answer.status_code == 200
    assert (told["status"], told["result"], told["progress"]) == ("Error", None, None)
    assert told["error"] == told["details"]["error"]
    assert "The loss is not a number." in told["error"]


def test_stopped_finetune_is_an_error_that_says_what_is_kept(client, queue):
    """The published API knows no stopping."""
    id = waiting(queue)
    queue.stop(find(queue, id))

    told = result(client, id)

    assert told["status"] == "Error"
    assert "stopped" in told["error"] and "kept" in told["error"]


@pytest.mark.parametrize("id", [NOBODYS, "", "junk", "../../etc", "x" * 5000, "\x00", "ü"])
def test_unknown_task_is_a_404_with_six_keys(client, id):
    """Also where the id can be none."""
    answer = client.get("/v1/get_result", params={"id": id})

    assert answer.status_code == 404
    assert answer.json() == {**dict.fromkeys(SIX), "id": id, "status": "Task not found"}


def test_draft_of_the_page_is_no_task(client, queue):
    """Nothing was submitted yet."""
    draft = queue.create()

    assert client.get("/v1/get_result", params={"id": draft.id}).status_code == 404
    assert client.get("/v1/finetune_details", params={"finetune_id": draft.id}).json() == MISSING
    assert client.get("/v1/my_finetunes").json() == {"finetunes": []}
    assert client.post("/v1/delete_finetune", json={"finetune_id": draft.id}).json() == MISSING


@pytest.mark.parametrize(("path", "name"), [("get_result", "id"), ("finetune_details", "finetune_id")])
def test_missing_id_is_a_422(client, path, name):
    """At the query, as the published API says it."""
    assert problems(client.get(f"/v1/{path}")) == [["query", name]]


def ordered(queue, finetune_id=NOBODYS):
    """An image in the queue."""
    order = Order(
        "local", time.time(), finetune_id, "flux-pro-finetuned", "a pear", 7, 64, 64, 1.0, root="http://elsewhere"
    )
    return images.create(queue.settings, order)


def test_image_that_is_drawn_comes_with_a_link(client, queue):
    """An absolute address without a key, and what it was drawn with."""
    image = ordered(queue)
    (image.folder / "a.png").write_bytes(b"picture")
    image.tell(status="Ready", file="a.png", start_time=10.0, end_time=12.5)
    told = result(client, image.id)

    assert list(told) == SIX
    assert (told["status"], told["progress"]) == ("Ready", None)
    assert list(told["result"]) == ["sample", "prompt", "seed", "start_time", "end_time", "duration"]
    assert (told["result"]["prompt"], told["result"]["seed"], told["result"]["duration"]) == ("a pear", 7, 2.5)
    assert told["result"]["sample"].startswith(f"{ROOT}/v1/images/")
    assert client.get(told["result"]["sample"]).content == b"picture"


def test_image_that_waits_or_failed_says_so(client, queue):
    """The same six keys as a finetune."""
    image = ordered(queue)
    before = result(client, image.id)
    image.tell(status="Pending", progress=0.5, start_time=1.0)
    during = result(client, image.id)
    image.fail("Memory ran out.")
    after = result(client, image.id)

    assert (before["status"], before["progress"]) == ("Pending", None)
    assert (during["status"], during["progress"]) == ("Pending", 0.5)
    assert (after["status"], after["error"]) == ("Error", "Memory ran out.")
    assert after["details"] == {"error": "Memory ran out."}


def test_details_say_what_was_asked_for(client, queue):
    """Thirteen parameters, and three of them again at the top."""
    id = waiting(queue, finetune_type="lora", priority="speed")
    told = client.get("/v1/finetune_details", params={"finetune_id": id}).json()

    details = told.pop("finetune_details")
    times = {details.pop("timestamp"), details.pop("created_at"), told.pop("created_at")}
    assert told == {"finetune_comment": "pears", "status": "Pending"}
    assert details == {
        "learning_rate": 1e-4,
        "iterations": 300,
        "lora_rank": 32,
        "mode": "style",
        "trigger_word": "TOK",
        "priority": "speed",
        "finetune_type": "lora",
        "finetune_comment": "pears",
        "captioning": True,
        "status": "Pending",
        "finetune_id": id,
    }
    assert datetime.fromisoformat(times.pop()).tzinfo and not times


def test_my_finetunes_are_ids_newest_first(client, queue):
    """Only those of who asks, and none that was deleted."""
    first, second, third = (waiting(queue) for _ in range(3))
    queue.delete(find(queue, second))
    waiting(queue, "ann")

    assert client.get("/v1/my_finetunes").json() == {"finetunes": [third, first]}


def test_deleted_finetune_is_gone(client, queue):
    """Four texts; then nothing knows it any more, but the trash of the page does."""
    id = waiting(queue)
    told = client.post("/v1/delete_finetune", json={"finetune_id": id, "other": 1}).json()

    assert set(told) == {"status", "message", "deleted_finetune_id", "timestamp"}
    assert (told["status"], told["deleted_finetune_id"]) == ("success", id)
    assert all(isinstance(text, str) for text in told.values())
    assert result(client, id)["status"] == "Task not found"
    assert client.get("/v1/finetune_details", params={"finetune_id": id}).json() == MISSING
    assert runs.find(queue.settings.trash, id).state() is State.STOPPED


def test_running_finetune_is_stopped_before_it_is_deleted(client, queue):
    """No worker writes into a folder that is gone."""
    id = waiting(queue)
    queue.tick()
    assert queue._executor.running == {id}

    client.post("/v1/delete_finetune", json={"finetune_id": id})

    assert not queue._executor.running


@pytest.mark.parametrize("id", [NOBODYS, "", "junk", "../home"])
def test_unknown_finetune_cannot_be_deleted_or_described(client, id):
    """404 in the published API's words."""
    deleted = client.post("/v1/delete_finetune", json={"finetune_id": id})
    described = client.get("/v1/finetune_details", params={"finetune_id": id})

    assert (deleted.status_code, deleted.json()) == (404, MISSING)
    assert (described.status_code, described.json()) == (404, MISSING)


@pytest.mark.parametrize("sent", [{}, {"finetune_id": 5}, {"finetune_id": None}, [], "x"])
def test_deleting_needs_an_id(client, sent):
    """A 422 that names it, or the body."""
    assert problems(client.post("/v1/delete_finetune", json=sent))[0][:1] == ["body"]


def test_deleting_reads_no_large_body(client):
    """Nobody fills the memory through a route that needs one id."""
    answer = client.post("/v1/delete_finetune", content=json.dumps({"finetune_id": "x" * 3 * 2**20}))

    assert answer.status_code == 413


@pytest.mark.parametrize("headers", [{}, {"x-key": "ft_wrong"}, {"Authorization": "Bearer x"}, {"Cookie": "x-key=x"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "finetune"),
        ("GET", "finetune_details"),
        ("GET", "my_finetunes"),
        ("POST", "delete_finetune"),
        ("GET", "credits"),
    ],
)
def test_key_is_asked_for_before_anything_is_read(client, ann, method, path, headers):
    """Once there is a key: in the published API's words, although the request lacks all else too."""
    answer = client.request(method, f"/v1/{path}", headers=headers)

    assert answer.status_code == 403
    assert answer.json()["detail"] == "Not authenticated - Invalid Authentication"


def test_result_needs_no_key(client, queue, ann):
    """Its id is unguessable."""
    assert result(client, waiting(queue))["status"] == "Pending"


def test_finetune_belongs_to_whose_key_it_came_with(client, queue, ann, zipped):
    """Whatever the letters of the header's name."""
    answer = client.post("/v1/finetune", json=body(zipped), headers={"x-KEY": ann["X-Key"]})

    assert find(queue, answer.json()["id"]).owner == "ann"
    assert client.get("/v1/my_finetunes", headers=ann).json() == {"finetunes": [answer.json()["id"]]}


def test_somebody_elses_finetune_looks_like_none(client, queue, ann):
    """Who asks cannot tell which; an owner of the machine finds it."""
    id = waiting(queue, "bob")
    owner = {"x-key": keys.new(queue.settings, "carl", owns_machine=True)}

    described = client.get("/v1/finetune_details", params={"finetune_id": id}, headers=ann)
    deleted = client.post("/v1/delete_finetune", json={"finetune_id": id}, headers=ann)

    assert (described.status_code, described.json()) == (404, MISSING)
    assert (deleted.status_code, deleted.json()) == (404, MISSING)
    assert client.get("/v1/finetune_details", params={"finetune_id": id}, headers=owner).status_code == 200
    assert client.get("/v1/my_finetunes", headers=owner).json() == {"finetunes": []}


@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.1-dev-copy", "/etc", "someone/model"])
def test_only_an_owner_of_the_machine_names_other_base_models(client, queue, ann, zipped, name):
    """A stranger has nothing fetched and no folder read."""
    answer = client.post("/v1/finetune", json=body(zipped, base_model=name), headers=ann)

    assert problems(answer) == [["body", "base_model"]]
    assert name not in answer.text
    assert not left(queue)


def test_credits_are_a_number(client):
    """Nothing is charged here, and programs that ask find enough."""
    assert client.get("/v1/credits").json() == {"credits": finetunes.CREDITS}
