"""Links to watch one run without rights: a small page of its own, which needs no sign-in and no Gradio.

Whoever has such a link sees the run's name, how far it is, its curve and its samples, and nothing else. The key stands
behind the # of the address, which browsers keep to themselves: it is in no log of a server or proxy, and the page is
the same for everyone. Its script sends the key as a header.
"""

import base64
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import HTMLResponse

from finetune import owners
from finetune.api import progress
from finetune.errors import MissingError
from finetune.queue import Queue
from finetune.runs import Run
from finetune.settings import ASSETS, Settings

SCRIPTS = ("dom.js", "stage.js", "curve.js", "samples.js", "watch.js")
STYLES = ("watch.css", "style.css")
GONE = MissingError("This run cannot be watched any more.", "Its owner has withdrawn the link, or deleted the run.")
# Relative to where the service is mounted, which a proxy or a share link decides.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Finetune</title>
<base href="../../">
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body class="gradio-container">
<main class="ours"><noscript>This page needs JavaScript.</noscript></main>
<script>{script}</script>
</body>
</html>
"""


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the page, and what it asks for."""
    page, headers = _page()

    @routes.get("/watch/{run_id}", include_in_schema=False)
    def watch(run_id: str) -> HTMLResponse:
        """Give the page; whether there is such a run it only learns by asking for news."""
        return HTMLResponse(page, headers=headers)

    @routes.get("/watch/{run_id}/news", include_in_schema=False)
    def news(
        run_id: str, response: Response, since: int = 0, x_watch_key: Annotated[str, Header()] = ""
    ) -> dict[str, Any]:
        """Tell what is new about a run since a cursor to whoever has its key."""
        response.headers["Cache-Control"] = "no-store"
        try:
            run = owners.find_to_watch(queue.settings, run_id, x_watch_key)
        except MissingError:
            raise GONE from None
        events, cursor = progress.read_on(run, since)
        request = run.request()
        name = request.finetune_comment if request else "Draft"
        return {"name": name, "cursor": cursor, **progress.told(queue, run, events)}


def link(settings: Settings, run: Run) -> str:
    """The address to watch a run at, relative to the page unless the service knows its own; empty without a key."""
    root = f"{settings.public_url}/" if settings.public_url else ""
    return f"{root}{path(run)}" if owners.watch_key(run) else ""


def path(run: Run) -> str:
    """The same below where the service is reached."""
    return f"v1/watch/{run.id}#{owners.watch_key(run)}"


def _page() -> tuple[str, dict[str, str]]:
    """The page, and headers that let nothing run in it but what is written into it."""
    script, style = _joined(SCRIPTS), _joined(STYLES)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'self'; form-action 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex",
        "Cache-Control": "no-cache",
    }
    return PAGE.format(script=script, style=style), headers


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((ASSETS / "page" / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
