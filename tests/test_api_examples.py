"""The programs that the page offers, run as they are copied: against one that only listens, and against our routes."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pretend
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from finetune import api, images, keys
from finetune.api import examples, openapi
from finetune.inputs import Request as Asked
from finetune.queue import Queue
from finetune.settings import Settings

PROJECT = Path(__file__).parent.parent
COMMANDS = {
    "curl": ("finetune.sh", ["bash"], "curl"),
    "Python": ("finetune.py", [sys.executable], "python"),
    "JavaScript": ("finetune.mjs", ["node"], "node"),
}
ID = "7d0c2f7e-5c3b-4f0e-9a51-0f6f3c1a2b4d"
NASTY = """it's "so" $HOME $(touch hurt) `touch hurt` \\ \\n %s {x} @x;type=a !! </script><!-- @settings@ é 🎨"""
UNSEEN = "a\u202eb\x7fc\x1b[1m\ufeff\u2028\r\n\td\u00a0'\\"
ASKED = {
    "finetune_comment": NASTY,
    "mode": "style",
    "trigger_word": "O'Brien\"$(touch hurt)",
    "iterations": 500,
    "captioning": False,
    "learning_rate": 0.0002,
    "webhook_url": "https://example.org/hook?a=$(touch+hurt)&b=;c",
    "sample_prompts": [NASTY, "two\r\n\tlines"],
}


class Receiver:
    """A service that has every finetune and image ready at once, and keeps what it was sent."""

    def __init__(self):
        self.app, self.sent, self.keys, self.root = FastAPI(), {}, [], ""
        self.app.post("/v1/finetune")(self.finetune)
        self.app.get("/v1/get_result")(self.get_result)
        self.app.get(f"/v1/finetunes/{ID}/files")(self.files)
        self.app.post(f"/v1/{examples.ENDPOINT}")(self.draw)
        self.app.get("/v1/files/{name}")(lambda name: Response(f"bytes of {name}"))

    async def finetune(self, request: Request):
        self.keys.append(request.headers.get("x-key"))
        if "json" in request.headers["content-type"]:
            self.sent = await request.json()
        else:
            form = await request.form()
            self.sent = {name: form.getlist(name) for name in form}
        if self.sent["finetune_comment"] in ("refused", ["refused"]):
            raise HTTPException(422, "it is refused")
        return {"finetune_id": ID, "id": ID, "status": "Pending", "polling_url": f"{self.root}/v1/get_result?id={ID}"}

    def get_result(self, id: str):
        result = {"sample": f"{self.root}/v1/files/a.jpg?sig=1"} if id == "drawn" else None
        return {"id": id, "status": "Ready", "result": result, "progress": None, "details": None, "preview": None}

    def files(self):
        names = ("mine.safetensors", "mine-comfyui.safetensors", "README.md")
        return {"files": [{"name": name, "url": f"{self.root}/v1/files/{name}?exp=1&sig=2"} for name in names]}

    async def draw(self, request: Request):
        self.drawn = await request.json()
        return {"id": "drawn", "polling_url": f"{self.root}/v1/get_result?id=drawn", "cost": None}


@contextmanager
def _served(app):
    """The address at which an app is served, until it is not needed any more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def receiver():
    made = Receiver()
    with _served(made.app) as made.root:
        yield made


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Our routes over a worker that pretends, and a key for them."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), disk_reserve_gib=0)
    queue, is_over = Queue(settings, pretend.PretendExecutor(steps=5, seconds_per_step=0.01)), threading.Event()

    def work():
        while not is_over.wait(0.1):
            queue.tick()

    worker = threading.Thread(target=work)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(PROJECT))
        worker.start()
        with _served(FastAPI(routes=openapi.described(api.router(queue), settings))) as root:
            yield root, keys.new(settings, "ada")
        is_over.set()
        worker.join()
    pretend.PretendExecutor().stop(images.studio(settings))
    queue.close()


@pytest.fixture(params=COMMANDS)
def language(request):
    if not shutil.which(COMMANDS[request.param][2]):
        pytest.skip(f"there is no {COMMANDS[request.param][2]} here")
    return request.param


def _run(language, root, values, folder, key=""):
    """Save a program beside its pictures and run it, more eager than it is."""
    name, command, _ = COMMANDS[language]
    text = examples.write(root, values, key)[language]
    eager = text.replace("sleep 5;", "sleep 0.2;").replace("sleep(5)", "sleep(0.2)").replace("5000)", "200)")
    (folder / name).write_text(eager, encoding="utf-8", newline="\n")
    pretend.zip_of_pictures(folder / "pictures.zip")
    done = subprocess.run([*command, name], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done, text


def _sent(language, receiver):
    """What arrived, but for the pictures; a form carries text, in which numbers are told from words by their looks."""
    sent = {name: value for name, value in receiver.sent.items() if name != "file_data"}
    if language == "Python":
        return sent
    sent = {name: value if name == "sample_prompts" else value[0] for name, value in sent.items()}
    return {name: json.loads(value) if value in ("500", "false", "0.0002") else value for name, value in sent.items()}


def test_program_sends_what_was_typed(language, receiver, tmp_path):
    """Quotes, dollars and markup arrive as they are, and nothing of them is run."""
    done, _ = _run(language, receiver.root, ASKED, tmp_path)

    assert done.returncode == 0, done.stderr
    meant = Asked(**ASKED).model_dump(mode="json")
    assert _sent(language, receiver) == {name: meant[name] for name in ASKED}
    assert not (tmp_path / "hurt").exists()


def test_program_sends_what_cannot_be_seen(language, receiver, tmp_path):
    """Control characters and marks of direction are spelled out in a program, and arrive all the same."""
    done, text = _run(language, receiver.root, {"finetune_comment": "mine", "mode": UNSEEN}, tmp_path)

    assert done.returncode == 0, done.stderr
    assert _sent(language, receiver) == {"finetune_comment": "mine", "mode": UNSEEN}
    assert all(line.isprintable() for line in text.split("\n"))


def test_program_goes_all_the_way(language, receiver, tmp_path):
    """Both files of the LoRA and an image lie beside the program in the end."""
    done, _ = _run(language, receiver.root, {"trigger_word": "O'Brien\"", "mode": "style"}, tmp_path)

    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made["mine.safetensors"] == b"bytes of mine.safetensors"
    assert made["image.jpg"] == b"bytes of a.jpg"
    assert len(made) == 5  # with the program, its pictures, and the file for ComfyUI
    assert receiver.drawn == {"finetune_id": ID, "prompt": "a rose in the style of O'Brien\""}


def test_program_works_against_our_routes(language, service, tmp_path):
    """From pictures to a drawn image with a key, as somebody would who copied it from the page."""
    root, key = service

    done, _ = _run(
        language, root, {"mode": "style", "trigger_word": "O'Brien\"", "sample_prompts": [NASTY]}, tmp_path, key
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pretend.safetensors").read_bytes()
    assert (tmp_path / "image.jpg").read_bytes().startswith(b"\xff\xd8")


def test_program_shows_its_key(language, receiver, tmp_path):
    """The key that stands in a program is sent as the header x-key."""
    _run(language, receiver.root, {}, tmp_path, key="ft_0123")

    assert receiver.keys[-1] == "ft_0123"


def test_program_ends_with_the_reason(language, receiver, tmp_path):
    """When the service refuses, the program fails, says why, and goes no further."""
    done, _ = _run(language, receiver.root, {"finetune_comment": "refused"}, tmp_path)

    assert done.returncode != 0
    assert "it is refused" in done.stderr
    assert not (tmp_path / "image.jpg").exists()


@pytest.mark.parametrize("language", COMMANDS)
def test_usual_values_are_not_written_out(language):
    """Only what differs from the defaults stands in a program, beside what every request needs."""
    values = {"finetune_comment": "mine", "mode": "product", "iterations": 300, "seed": 0, "lora_rank": 16}

    text = examples.write("http://here", values)[language]

    assert "lora_rank" in text and "product" in text
    assert "iterations" not in text and "seed" not in text


@pytest.mark.parametrize("language", COMMANDS)
def test_secret_is_never_written_out(language):
    """In the place of a webhook's secret stands a word for it."""
    text = examples.write("http://here", {"webhook_secret": "hush-hush"})[language]

    assert "hush-hush" not in text
    assert examples.SECRET in text


@pytest.mark.parametrize("language", COMMANDS)
def test_wrong_values_stay_as_they_were_typed(language):
    """A form that is half filled in gives a program too; what is wrong in it, the service says."""
    values = {"mode": "odd", "iterations": 7, "learning_rate": "fast", "base_model": "x" * 600, "trigger_word": None}

    text = examples.write("http://here", values)[language]

    assert all(word in text for word in ("odd", "7", "fast", "x" * 600))


def test_program_is_safe_inside_a_page():
    """JavaScript that is pasted between script tags is not ended by what somebody typed."""
    text = examples.write("http://here", {"finetune_comment": NASTY})["JavaScript"]

    assert "</script" not in text and "<!--" not in text
