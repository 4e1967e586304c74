"""Start the service: page and routes on one port, and the queue beside them."""

import argparse
import dataclasses
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from finetune import api, registry, webhooks
from finetune import settings as machine
from finetune.api import callers
from finetune.errors import FinetuneError
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import build, new, page

EXECUTOR = "local"


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
    settings.keep_uploads_at_home()
    deliveries = webhooks.Deliveries(settings.runs)
    queue = Queue(settings, registry.executors()[EXECUTOR], after_tick=deliveries.tick)
    if threading.current_thread() is threading.main_thread():
        # Gradio ends cleanly on Ctrl+C only, so being told to end by the system becomes that.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    launch(settings, queue)


def options(settings: Settings, arguments: Sequence[str] | None) -> Settings:
    """Settings of this machine with what the command line says instead."""
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve Finetune’s page and routes.")
    parser.add_argument("--host", default=settings.host, help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=settings.port, help="port (default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", default=settings.share, help="make a public link")
    parser.add_argument(
        "--auth",
        action="append",
        type=_user,
        metavar="USER:PASSWORD",
        help="who may see the page; give it once for each person",
    )
    asked = parser.parse_args(arguments)
    auth = tuple(asked.auth) if asked.auth else settings.auth
    return dataclasses.replace(settings, host=asked.host, port=asked.port, share=asked.share, auth=auth)


def launch(settings: Settings, queue: Queue) -> None:
    """Serve until interrupted."""
    blocks = build(settings, queue)
    if settings.share and not settings.auth and not settings.on_space:
        print(
            "Anyone who has the public link can train here and see all runs. --auth USER:PASSWORD asks for a password."
        )
    blocks.queue(default_concurrency_limit=8, max_size=64).launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        auth_dependency=lambda request: getattr(callers.of_page(settings, request), "name", None),
        root_path=settings.root_path or None,
        max_file_size=settings.upload_mib * 2**20,
        theme=page.THEME,
        css_paths=[page.STYLE],
        allowed_paths=[str(new.EXAMPLE)],
        favicon_path=page.FOLDER / "favicon.svg",
        footer_links=["gradio", "settings"],
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs={"routes": list(api.router(queue).routes), "lifespan": _lifespan(queue), "title": "Finetune"},
    )
    print(f"Finetune is at {blocks.local_url}", *([f"and at {blocks.share_url}"] if blocks.share_url else []))
    print(f"Runs are kept in {settings.home}", flush=True)
    # With this flag on, the page would load its scripts from Gradio's own host; the link stays up without it.
    blocks.share = False
    blocks.block_thread()


def _user(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError("write it as user:password")
    return name, password


def _lifespan(queue: Queue):
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        yield
        queue.close()

    return lifespan


if __name__ == "__main__":
    sys.exit(main())
