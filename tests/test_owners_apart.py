"""Two owners on one service, over real HTTP: neither reaches what is the other’s, and a stranger reaches nothing.

What is tried comes from the page and the routes themselves, so that a new handler or route is tried too.
"""

import json
import re
import uuid
from pathlib import Path

import httpx
import pretend
import pytest

from finetune import api, dataset, images, inputs, keys, runs
from finetune.api import files, guard
from finetune.images import Order
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import handlers, serve

SECRET = "wombat-7391"
AUTH = (("root", "r"), ("ann", "a"), ("bob", "b"))
UI = Path(handlers.__file__).parent
OPEN_BY_ID = ("/v1/get_result", "/v1/health")
"""Routes of the contract that need no key: an id cannot be guessed."""
READING = ("live", "runs")


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    settings = Settings(tmp_path_factory.mktemp("home"), auth=AUTH, disk_reserve_gib=0)
    queue = Queue(settings, pretend.StillExecutor())
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def blocks(queue):
    blocks = serve.start(queue.settings, queue)
    yield blocks
    blocks.close()


@pytest.fixture(scope="module")
def theirs(queue, tmp_path_factory):
    """Ann’s runs: one that is ready, a draft, and one that was deleted."""
    zip = pretend.zip_of_pictures(tmp_path_factory.mktemp("zip") / f"{SECRET}.zip")
    made = []
    for _ in range(3):
        run = queue.create("ann")
        dataset.unpack(zip, run)
        made.append(run)
    ready, draft, deleted = made
    for run in (ready, deleted):
        request = inputs.read({"finetune_comment": SECRET, "mode": "style"})
        run.write("request.json", request.model_dump(mode="json"))
        pretend.pretend(run, "train", steps=5, pause=0)
    runs.delete(deleted, queue.settings.trash)
    return [ready, draft, runs.find(queue.settings.trash, deleted.id)]


@pytest.fixture(scope="module")
def picture(queue, theirs):
    """An image that Ann has ordered."""
    order = {"owner": "ann", "finetune_id": theirs[0].id, "prompt": SECRET, "endpoint": "page", "created": 1.0}
    return images.create(queue.settings, Order(**order, seed=1, width=64, height=64, strength=1.0))


def client(blocks, name=None):
    """A browser in which somebody has signed in."""
    browser = httpx.Client(base_url=blocks.local_url, timeout=20)
    if name:
        assert browser.post("login", data={"name": name, "password": dict(AUTH)[name]}).status_code == 303
    return browser


def fire(browser, fn_index, data, id, named="run"):
    """Fire an event of the page, whose address names a run or a draft; returns all that comes back."""
    session = uuid.uuid4().hex
    body = {"data": data, "fn_index": fn_index, "session_hash": session, "event_data": {"run": id, "id": id}}
    joined = browser.post("gradio_api/queue/join", params={named: id}, json=body)
    if joined.status_code != 200:
        return joined.text
    told = []
    with browser.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            told.append(line)
            if '"process_completed"' in line:
                break
    return "\n".join(told)


def filled_in(blocks, dependency, id):
    """What a page would send with an event, with a run in every place that can name one."""
    components = {one["id"]: one for one in blocks.config["components"]}
    data = []
    for number in dependency["inputs"]:
        component = components[number]
        value = component["props"].get("value")
        if component["type"] == "html":
            value = {"run": id, "id": id, "mode": "style", "trigger": "TOK", "captioning": True, "base": "demo"}
        elif component["type"] == "dropdown" and value is None:
            value = component["props"]["choices"][0][1]
        elif component["type"] == "textbox" and not value:
            value = ""
        data.append(value)
    return data


def call(browser, component, name, id, image=""):
    """Call a function of the page’s scripts."""
    asked = {
        "image": image,
        "run": id,
        "id": id,
        "since": 0,
        "watch": "",
        "mode": "style",
        "base": "demo",
        "repo": "a/b",
        "token": "t",
    }
    body = {"component_id": component["id"], "session_hash": "x", "fn_name": name, "data": asked}
    return browser.post("gradio_api/component_server/", json=body).text


def functions(blocks):
    return [(one, name) for one in blocks.config["components"] for name in one["props"].get("server_fns") or ()]


def snapshot(theirs):
    return {path: path.stat().st_mtime_ns for run in theirs for path in sorted(run.folder.rglob("*"))}


def tells(text, run):
    """Whether an answer says something of a run, more than the id that was asked for."""
    return SECRET in text or f'"run":"{run.id}"' in text.replace(" ", "")


def test_no_event_reaches_a_run_of_somebody_else(blocks, theirs):
    """Whatever a page of Bob’s sends, of Ann’s runs nothing comes back and nothing changes."""
    bob, before = client(blocks, "bob"), snapshot(theirs)
    events = [one for one in blocks.config["dependencies"] if one["backend_fn"]]

    for run in theirs:
        for one in events:
            data = filled_in(blocks, one, run.id)
            told = [fire(bob, one["id"], data, run.id, named) for named in ("run", "draft")]
            assert not any(tells(text, run) for text in told), one["api_name"]

    assert len(events) > 4
    assert snapshot(theirs) == before


def test_no_function_of_the_page_reaches_a_run_of_somebody_else(blocks, queue, theirs, picture):
    """Neither by reading nor by stopping, deleting, restoring or pushing; nor an image by a run of one’s own."""
    bob, before = client(blocks, "bob"), snapshot([*theirs, picture])

    for run in [*theirs, queue.create("bob")]:
        for component, name in functions(blocks):
            text = call(bob, component, name, run.id, picture.id)
            assert SECRET not in text and not (tells(text, run) and run.owner == "ann"), name

    assert snapshot([*theirs, picture]) == before


def test_the_same_reaches_a_run_of_one_s_own(blocks, theirs):
    """Ann, and who owns the machine, are told what Bob was not: so the tries above were real ones."""
    ready, draft, _ = theirs

    for name in ("ann", "root"):
        browser = client(blocks, name)
        told = [call(browser, component, name, ready.id) for component, name in functions(blocks) if name in READING]
        assert len(told) == len(READING) and all(tells(text, ready) for text in told)
        (load,) = [one for one in blocks.config["dependencies"] if one["api_name"] == "open_address"]
        assert tells(fire(browser, load["id"], [], draft.id, "draft"), draft)


def test_no_route_reaches_a_run_of_somebody_else(blocks, queue, theirs, picture):
    """Whatever a program with Bob’s key asks for, by the id of a run or of an image."""
    program = httpx.Client(base_url=blocks.local_url, headers={"x-key": keys.new(queue.settings, "bob")})
    before = snapshot([*theirs, picture])

    for run in [*theirs, picture]:
        for method, path in _routes(queue, run):
            if not path.startswith(OPEN_BY_ID):
                answer = _ask(program, method, path, run)
                assert SECRET not in answer.text, path

    assert snapshot([*theirs, picture]) == before


def test_file_needs_a_signature(blocks, queue, theirs):
    """Who signed in does not get a file of somebody else’s by its path; who was given a link does, whoever they are."""
    ready, _, deleted = theirs
    bob, path = client(blocks, "bob"), f"v1/files/{ready.id}/images/0001.png"

    assert bob.get(path).status_code == 422
    assert bob.get(path, params={"exp": 9999999999, "sig": "0" * 64}).status_code == 403
    assert bob.get(f"gradio_api/file={ready.folder}/images/0001.png").status_code in (403, 404)
    assert bob.get(f"gradio_api/file={queue.settings.home}/secret.key").status_code in (403, 404)
    assert bob.get(files.link(queue.settings, deleted, "images/0001.png")).status_code == 404
    assert client(blocks).get(files.link(queue.settings, ready, "images/0001.png")).status_code == 200


def test_stranger_reaches_nothing(blocks, queue, theirs):
    """Of all routes that the service has, Gradio’s and ours, none but those that all need answers a stranger."""
    stranger, before = client(blocks), snapshot(theirs)
    asked = [one for route in _all(blocks.app.routes) for one in _filled(route, theirs[0])]

    for method, path in asked:
        answer = _ask(stranger, method, path, theirs[0])
        assert path.startswith(OPEN_BY_ID) or SECRET not in answer.text, path
        if not guard.FOR_ALL.fullmatch(path):
            assert answer.status_code in ((303,) if path == "/" else (401, 404)), (method, path)

    assert len(asked) > 60
    assert snapshot(theirs) == before


def test_stranger_s_events_and_functions_are_refused(blocks, theirs):
    """Without signing in there is no event and no function at all."""
    stranger, (ready, *_) = client(blocks), theirs

    answers = [call(stranger, component, name, ready.id) for component, name in functions(blocks)]
    answers += [fire(stranger, one["id"], [], ready.id) for one in blocks.config["dependencies"]]

    assert all(json.loads(answer) == {"detail": guard.SIGNED_OUT} for answer in answers)


def test_every_handler_and_function_is_bound(blocks):
    """Each goes through `handlers`, so that it is known who asks; but for words about the form, which know no run."""
    bound = handlers.event(lambda visit: None, None).__code__
    served = [getattr(blocks.blocks[one["id"]], name) for one, name in functions(blocks)]
    checks = [one.fn for one in blocks.fns.values() if one.fn] + served

    free = [one.__code__ for one in checks if getattr(one, "__code__", None) is not bound]

    assert len(checks) > 10
    assert [code.co_names for code in free] == [("form", "in_words")]


@pytest.mark.parametrize("file", sorted(UI.glob("*.py")), ids=lambda file: file.name)
def test_page_reaches_runs_through_the_visit_only(file):
    """No module of the page looks a run up past the caller; one that lists runs or images asks whose they are."""
    text = file.read_text(encoding="utf-8")

    assert not re.search(r"\b(runs\.(find|restore)|owners\.AT_HOME|Run|Caller)\(", text)
    assert not re.search(r"\b(all_in|waiting|images\.find)\(", text) or re.search(r"may_use\(|owns_machine", text)


def _all(routes):
    """Routes with those of the routers among them, which FastAPI keeps apart."""
    return [inner for route in routes for inner in getattr(getattr(route, "original_router", None), "routes", [route])]


def _routes(queue, run):
    return [one for route in api.router(queue).routes for one in _filled(route, run)]


def _filled(route, run):
    """Methods and paths of a route, with a run in every place of the path."""
    values = {"path": "images/0001.png", "path_or_url": str(run.folder / "request.json"), "ext": "png"}
    path = re.sub(r"\{(\w+)(:\w+)?\}", lambda found: values.get(found[1], run.id), getattr(route, "path", "/"))
    return [(method, path) for method in sorted(getattr(route, "methods", None) or ()) if method in ("GET", "POST")]


def _ask(program, method, path, run):
    named = {"id": run.id, "finetune_id": run.id, "run_id": run.id, "run": run.id, "session_hash": "x", "since": 0}
    if method == "GET":
        with program.stream("GET", path, params=named) as answer:  # some never end
            answer.read() if answer.headers.get("content-length") or answer.is_error else None
            answer._content = getattr(answer, "_content", b"")
            return answer
    return program.post(path, params=named, json={**named, "prompt": "x"})
