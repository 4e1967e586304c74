"""Routes of finetunes beyond the published API: list with states, follow, cancel, go on, fetch files, share, webhooks.

All need the key of who made the finetune, or of an owner of the machine; links that need none are signed and expire.
"""

import mimetypes
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from finetune import owners, runs, webhooks
from finetune.api import callers, files, finetunes, tasks, watch
from finetune.errors import MissingError
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import Run, State
from finetune.webhooks import Delivery

PRIVATE = ("pid",)
"""Of events: what only this machine can use."""


class Finetune(BaseModel):
    """A finetune in a list."""

    id: str
    name: str
    status: tasks.Status = Field(description="In the words of the published API.")
    state: State = Field(description="In the words of this service, which are more exact.")
    progress: float | None = Field(description="From 0 to 1, while it runs.")
    base_model: str
    created_at: str
    owner: str | None = Field(None, description="Who made it; told to owners of the machine alone.")


class Finetunes(BaseModel):
    """Finetunes, newest first."""

    finetunes: list[Finetune]
    before: str | None = Field(description="What to give as `before` for those that follow; null at the end.")


class Events(BaseModel):
    """What happened since a cursor."""

    events: list[dict[str, Any]] = Field(description="Each has `time`, `kind` and what belongs to its kind.")
    cursor: int = Field(description="What to give as `since` next time.")
    state: State
    status: tasks.Status


class File(BaseModel):
    """A file of a finetune."""

    name: str
    bytes: int
    title: str
    url: str = Field(description="Where it can be fetched without a key, for some hours.")


class Files(BaseModel):
    """The files of a finetune: the LoRA and what belongs to it, then the samples."""

    files: list[File]


class WatchLink(BaseModel):
    """A link to watch one finetune, without a key and without rights."""

    url: str | None = Field(description="Null once it was withdrawn.")


class Attempt(BaseModel):
    """One try to deliver a webhook."""

    time: float
    answer: str


class Webhook(BaseModel):
    """One end of a finetune, and what came of telling it."""

    id: str
    url: str
    ended: float
    attempts: list[Attempt]
    next_time: float | None = Field(description="When it is tried again; null once it is over.")
    is_delivered: bool


class Webhooks(BaseModel):
    """What was told of a finetune, or will be; the newest end first."""

    webhooks: list[Webhook]


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the routes beyond the published API that concern finetunes."""
    Asking = Annotated[Caller, Depends(finetunes.asking(queue))]
    _add_states(routes, queue, Asking)
    _add_files(routes, queue, Asking)
    _add_watching(routes, queue, Asking)
    _add_webhooks(routes, queue, Asking)


def _add_states(routes: APIRouter, queue: Queue, Asking: Any) -> None:
    """How finetunes are, and what changes that."""
    told = {"response_model": Finetune, "response_model_exclude_unset": True}

    @routes.get(
        "/finetunes", response_model=Finetunes, response_model_exclude_unset=True, summary="List finetunes with states"
    )
    def list_finetunes(
        caller: Asking, limit: Annotated[int, Query(ge=1, le=1000)] = 100, before: str | None = None
    ) -> dict[str, Any]:
        """Your finetunes, newest first; to an owner of the machine, everybody’s."""
        return _page(queue, caller, limit, before)

    @routes.get("/finetunes/{id}", **told, summary="One finetune")
    def one(caller: Asking, id: str) -> dict[str, Any]:
        """A finetune of yours as the list has it."""
        return _entry(queue, finetunes.find(queue, id, caller), caller)

    @routes.get("/finetunes/{id}/events", response_model=Events, summary="Follow a finetune")
    def events(caller: Asking, id: str, since: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """What happened since a cursor: stages, steps with their loss, samples, warnings, and how it ended."""
        return _events(queue, finetunes.find(queue, id, caller), since)

    @routes.post("/finetunes/{id}/cancel", **told, summary="Stop a finetune")
    def cancel(caller: Asking, id: str) -> dict[str, Any]:
        """Stop after the current step and keep what was learned; what waits leaves the queue."""
        run = finetunes.find(queue, id, caller)
        queue.stop(run)
        return _entry(queue, run, caller)

    @routes.post("/finetunes/{id}/resume", **told, summary="Let a finetune go on")
    def resume(caller: Asking, id: str) -> dict[str, Any]:
        """Go on from the last checkpoint of a finetune that was stopped, or that failed."""
        run = finetunes.find(queue, id, caller)
        queue.resume(run)
        return _entry(queue, run, caller)


def _add_files(routes: APIRouter, queue: Queue, Asking: Any) -> None:
    """What a finetune has made."""

    @routes.get("/finetunes/{id}/files", response_model=Files, summary="List files")
    def list_files(request: Request, caller: Asking, id: str) -> dict[str, Any]:
        """The LoRA, its model card, captions and settings, and all samples, with links to fetch them."""
        run = finetunes.find(queue, id, caller)
        root = callers.public_root(queue.settings, request)
        return {
            "files": [
                {**told, "url": f"{root}/{files.link(queue.settings, run, path)}"} for path, told in _files(run).items()
            ]
        }

    @routes.get("/finetunes/{id}/files/{name}", response_class=FileResponse, summary="Fetch a file")
    def file(caller: Asking, id: str, name: str) -> FileResponse:
        """A file of a finetune of yours. Parts of it can be asked for with the header Range."""
        run = finetunes.find(queue, id, caller)
        path = next((path for path, told in _files(run).items() if told["name"] == name), None)
        if path is None:
            raise MissingError("This finetune has no such file.", "GET /v1/finetunes/{id}/files lists what it has.")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return FileResponse(run.folder / path, media_type=kind, filename=name, headers=files.HEADERS)


def _add_watching(routes: APIRouter, queue: Queue, Asking: Any) -> None:
    """The link by which others watch a finetune."""

    @routes.post("/finetunes/{id}/watch_link", response_model=WatchLink, summary="Make a link to watch")
    def make_watch_link(request: Request, caller: Asking, id: str) -> dict[str, str]:
        """Make a link by which anybody can watch this finetune, or give the one there is."""
        run = finetunes.find(queue, id, caller)
        owners.allow_watching(run)
        return {"url": f"{callers.public_root(queue.settings, request)}/{watch.path(run)}"}

    @routes.delete("/finetunes/{id}/watch_link", response_model=WatchLink, summary="Withdraw the link to watch")
    def end_watch_link(caller: Asking, id: str) -> dict[str, None]:
        """Withdraw the link: whoever has it sees nothing from now on."""
        owners.end_watching(finetunes.find(queue, id, caller))
        return {"url": None}


def _add_webhooks(routes: APIRouter, queue: Queue, Asking: Any) -> None:
    """Whom the ends of a finetune were told."""

    @routes.get("/finetunes/{id}/webhooks", response_model=Webhooks, summary="List deliveries of webhooks")
    def list_webhooks(caller: Asking, id: str) -> dict[str, Any]:
        """Which ends of this finetune were told to its webhook, and what it answered."""
        run = finetunes.find(queue, id, caller)
        return {"webhooks": [_webhook(one) for one in webhooks.of_task(queue.settings, run.id)]}

    @routes.post(
        "/finetunes/{id}/webhooks/{delivery}/send_again", response_model=Webhook, summary="Deliver a webhook again"
    )
    def send_again(caller: Asking, id: str, delivery: str) -> dict[str, Any]:
        """Let a delivery be tried once more, at once."""
        run = finetunes.find(queue, id, caller)
        _delivery(queue, run, delivery)
        webhooks.send_again(queue.settings, delivery)
        return _webhook(_delivery(queue, run, delivery))


def _page(queue: Queue, caller: Caller, limit: int, before: str | None) -> dict[str, Any]:
    found = [run for run in runs.all_in(queue.settings.runs) if caller.may_use(run)]
    if before:
        place = next((place for place, run in enumerate(found) if run.id == before), None)
        if place is None:
            raise _wrong_query("before", "This is no finetune of yours.")
        found = found[place + 1 :]
    shown: list[Run] = []
    for run in found:
        if queue.state(run) is not State.DRAFT:
            if len(shown) == limit:
                return {"finetunes": [_entry(queue, one, caller) for one in shown], "before": shown[-1].id}
            shown.append(run)
    return {"finetunes": [_entry(queue, one, caller) for one in shown], "before": None}


def _entry(queue: Queue, run: Run, caller: Caller) -> dict[str, Any]:
    known, request = queue.progress(run), run.request()
    return {
        "id": run.id,
        "name": request.finetune_comment,
        "status": tasks.STATUS[known["state"]],
        "state": known["state"],
        "progress": tasks.share(known),
        "base_model": request.base_model,
        "created_at": run.created().isoformat(),
        **({"owner": run.owner} if caller.owns_machine else {}),
    }


def _events(queue: Queue, run: Run, since: int) -> dict[str, Any]:
    if not _is_cursor(run, since):
        raise _wrong_query("since", "This is no cursor that this route has given.")
    found, cursor = run.events(since)
    told = [{name: value for name, value in event.items() if name not in PRIVATE} for event in found]
    state = queue.state(run)
    return {"events": told, "cursor": cursor, "state": state, "status": tasks.STATUS[state]}


def _is_cursor(run: Run, place: int) -> bool:
    """Whether a place is the beginning of a line of events, or their end."""
    if place == 0:
        return True
    with open(run.folder / "events.jsonl", "rb") as file:
        file.seek(place - 1)
        return file.read(1) == b"\n"


def _files(run: Run) -> dict[str, dict[str, Any]]:
    """What can be fetched, by its path in the run's folder: what the last end of the run listed, and samples."""
    found, _ = run.events()
    listed = next((event["files"] for event in reversed(found) if event.get("files")), [])
    samples = {event["file"]: event for event in found if event["kind"] == "sample"}
    titles = {
        **{f"results/{one['name']}": one["title"] for one in listed},
        **{f"samples/{name}": f"Step {one['step']}: {one['prompt']}" for name, one in samples.items()},
    }
    return {
        path: {"name": path.partition("/")[2], "bytes": (run.folder / path).stat().st_size, "title": title}
        for path, title in titles.items()
        if (run.folder / path).is_file()
    }


def _delivery(queue: Queue, run: Run, id: str) -> Delivery:
    if found := next((one for one in webhooks.of_task(queue.settings, run.id) if one.id == id), None):
        return found
    raise MissingError("There is no such delivery of this finetune.")


def _webhook(delivery: Delivery) -> dict[str, Any]:
    names = ("id", "url", "ended", "next_time", "is_delivered")
    return {**{name: getattr(delivery, name) for name in names}, "attempts": list(delivery.attempts)}


def _wrong_query(name: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("query", name), "msg": message}])
