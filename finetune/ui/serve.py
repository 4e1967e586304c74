"""Start the service: page and routes on one port, and the queue beside them."""

import argparse
import dataclasses
import importlib.util
import ipaddress
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import gradio as gr
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from finetune import api, keys, owners, registry, webhooks
from finetune import settings as machine
from finetune.api import callers, guard, login, openapi
from finetune.api.callers import Mode
from finetune.api.throttle import Throttle
from finetune.errors import ConfigError, FinetuneError
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import build, new, page

EXECUTOR = "local"
SECONDS_FOR_WEBHOOKS = 5.0
"""To note the answers that are on their way when the service ends; else they are sent again."""
ASKS = "--auth NAME:PASSWORD asks for a password."


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the process is told to end; returns its exit status. What a user can mend is told in words."""
    try:
        _serve(arguments)
    except (FinetuneError, OSError) as error:  # OSError: a port that is taken, a folder that cannot be written
        print(f"Finetune cannot start. {error}", file=sys.stderr)
        return 2
    return 0


def _serve(arguments: Sequence[str] | None) -> None:
    settings = options(machine.read(), arguments)
    check(settings)
    settings.keep_uploads_at_home()
    guard.clear_left_over(settings.uploads)
    deliveries = webhooks.Deliveries(settings)
    queue = Queue(settings, registry.executors()[EXECUTOR], after_tick=deliveries.tick)
    if threading.current_thread() is threading.main_thread():
        # Gradio ends cleanly on Ctrl+C only, so being told to end by the system becomes that.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    launch(settings, queue)
    deliveries.wait(SECONDS_FOR_WEBHOOKS)


def options(settings: Settings, arguments: Sequence[str] | None) -> Settings:
    """Settings of this machine with what the command line says instead."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve Finetune’s page and routes.")
    parser.add_argument("--host", default=settings.host, help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=settings.port, help="port (default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", default=settings.share, help="make a public link")
    parser.add_argument(
        "--without-password",
        action="store_true",
        default=settings.without_password,
        help="let everyone who has the public link use this machine",
    )
    parser.add_argument(
        "--auth",
        action="append",
        type=_user,
        metavar="NAME:PASSWORD",
        help="who may see the page; give it once for each person. FINETUNE_AUTH says the same without showing it to "
        "everyone on this machine",
    )
    parser.add_argument(
        "--admin",
        action="append",
        metavar="NAME",
        help="who owns the machine and sees all runs (default: the first of --auth)",
    )
    asked = parser.parse_args(arguments)
    return dataclasses.replace(
        settings,
        host=asked.host,
        port=asked.port,
        share=asked.share,
        without_password=asked.without_password,
        auth=_named(asked.auth or settings.auth),
        admins=tuple(owners.check_name(name) for name in asked.admin or settings.admins),
    )


def check(settings: Settings) -> None:
    """Raises: FinetuneError when the service would be open to people who were not meant, or nobody could sign in."""
    is_asked_for = settings.on_space or settings.without_password
    if settings.share and not is_asked_for and not settings.auth and not keys.exist(settings):
        raise FinetuneError(
            "A public link without a password would let anyone train on this machine.",
            f"{ASKS} So does a key: python -m finetune key new NAME. If you want it open, add --without-password.",
        )
    if callers.mode(settings) is Mode.HUB and not importlib.util.find_spec("authlib"):
        raise FinetuneError("Signing in by the Hub needs more of Gradio.", "pip install 'gradio[oauth]'")


def told(settings: Settings) -> list[str]:
    """What to say, when the service starts, about who can use it."""
    match callers.mode(settings):
        case Mode.CLOSED:
            owned = settings.auth or settings.admins or any(key.owns_machine for key in keys.every(settings))
            nobody = "Nobody can see the runs of all: python -m finetune key new NAME --admin makes a key that can."
            return ["Whoever opens the page has to sign in; programs need a key.", *([] if owned else [nobody])]
        case Mode.OPEN:
            who = "Anyone" if settings.on_space else "Anyone who has the public link"
            return [f"{who} can train on this machine; each browser sees only what it made. {ASKS}"]
        case Mode.HUB:
            return ["Whoever wants to train signs in with their Hugging Face account; programs need a key."]
    if _is_loopback(settings.host):
        return []
    return [f"Everyone in your network can train on this machine, and see and delete all runs. {ASKS}"]


def launch(settings: Settings, queue: Queue) -> None:
    """Serve until interrupted."""
    blocks = start(settings, queue)
    for line in told(settings):
        print(line)
    print(f"Finetune is at {blocks.local_url}", *([f"and at {blocks.share_url}"] if blocks.share_url else []))
    print(f"Runs are kept in {settings.home}", flush=True)
    blocks.block_thread()


def start(settings: Settings, queue: Queue) -> gr.Blocks:
    """Begin to serve."""
    blocks = build(settings, queue)
    throttle = Throttle()
    blocks.queue(default_concurrency_limit=8, max_size=64).launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        auth_dependency=_name_of(settings),
        root_path=settings.root_path or None,
        max_file_size=settings.upload_mib * 2**20,
        theme=page.THEME,
        css_paths=[page.STYLE, page.FOLDER / "who.css"],
        allowed_paths=[str(new.EXAMPLE)],
        favicon_path=page.FOLDER / "favicon.svg",
        footer_links=["gradio", "settings"],
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs={
            "routes": [*openapi.described(api.router(queue), settings), *login.routes(settings, throttle).routes],
            "middleware": [Middleware(guard.Guard, settings=settings, throttle=throttle)],
            "lifespan": _lifespan(queue),
            "title": "Finetune",
        },
    )
    # With this flag on, the page would load its scripts from Gradio's own host; the link stays up without it.
    blocks.share = False
    return blocks


def _user(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError("write it as NAME:PASSWORD")
    return name, password


def _named(auth: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """People with their passwords, each once. Raises: ConfigError."""
    people = tuple((owners.check_name(name), password) for name, password in auth)
    names = [name for name, _ in people]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"“{twice}” is given two passwords.", "Give each person one.", "auth")
    return people


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "127.0.0.1").is_loopback
    except ValueError:
        return host == "localhost"


def _name_of(settings: Settings) -> Callable[[Request], Awaitable[str | None]]:
    """What Gradio asks for before it gives its routes to anybody: a name, or None for who has to sign in."""

    def name(request: Request) -> str | None:
        if caller := callers.of_page(settings, request):
            return caller.name
        return "" if callers.mode(settings) is Mode.HUB else None  # there, the page can be looked at

    async def named(request: Request) -> str | None:
        return await run_in_threadpool(name, request)

    return named


def _lifespan(queue: Queue):
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        yield
        queue.close()

    return lifespan


if __name__ == "__main__":
    sys.exit(main())
