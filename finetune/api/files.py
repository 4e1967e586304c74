"""Files of runs, and images that were drawn, by signed links: whoever holds a link gets that one file, for as long as
the link says."""

import mimetypes

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from finetune import images, links, runs
from finetune.queue import Queue
from finetune.runs import Run
from finetune.settings import Settings

FOLDERS = ("images", "thumbnails", "samples", "results")
HALF_A_LINK = 6 * 3600
"""Links to what the page shows end within twice this time. Units: seconds."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": f"private, max-age={HALF_A_LINK}",
}


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the routes that give files."""

    @routes.get("/files/{run_id}/{path:path}", include_in_schema=False)
    def file(run_id: str, path: str, exp: int, sig: str) -> FileResponse:
        """Send a file of a run to whoever holds a signed link to it."""
        return _send(queue.settings, run_id, path, exp, sig)

    @routes.get("/images/{id}/{name}", include_in_schema=False)
    def image(id: str, name: str, exp: int, sig: str) -> FileResponse:
        """Send an image to whoever holds a signed link to it."""
        return _send_image(queue.settings, id, name, exp, sig)


def link(settings: Settings, run: Run, path: str) -> str:
    """A link to a file of a run, relative to the page; it stays the same for hours and ends within half a day.

    `path` is relative to the run's folder and lies in one of FOLDERS.
    """
    return links.sign(settings, f"files/{run.id}/{path}", HALF_A_LINK, HALF_A_LINK)


def _send(settings: Settings, run_id: str, path: str, expires: int, signature: str) -> FileResponse:
    links.check(settings, f"files/{run_id}/{path}", expires, signature)
    run = runs.find(settings.runs, run_id)
    folder, _, _ = path.partition("/")
    found = (run.folder / path).resolve()
    if folder not in FOLDERS or not found.is_relative_to((run.folder / folder).resolve()) or not found.is_file():
        raise HTTPException(404, "There is no such file.")
    kind = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
    disposition = "attachment" if folder == "results" else "inline"
    return FileResponse(
        found, media_type=kind, filename=found.name, content_disposition_type=disposition, headers=HEADERS
    )


def _send_image(settings: Settings, id: str, name: str, expires: int, signature: str) -> FileResponse:
    links.check(settings, f"images/{id}/{name}", expires, signature)
    found = images.find(settings, id).file
    if found is None or found.name != name or not found.is_file():
        raise HTTPException(404, "There is no such file.")
    kind = f"image/{found.suffix.removeprefix('.')}"
    return FileResponse(found, media_type=kind, filename=found.name, content_disposition_type="inline", headers=HEADERS)
