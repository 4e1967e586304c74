"""The published API's routes of finetunes: submit one, ask how far it is, list, describe and delete.

Whoever asks is known before anything of a body is read. Somebody else's finetune looks like one that is not there.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

from finetune import bases, captioners, dataset, inputs, owners, runs
from finetune.api import bodies, callers, openapi, tasks
from finetune.errors import ConfigError, MissingError
from finetune.inputs import FinetuneInputs
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import Run, State

Model = TypeVar("Model", bound=BaseModel)
NOT_FOUND = "Finetune not found or access denied"
CREDITS = 1_000_000
"""Nothing is charged here; programs that look whether there is enough find so."""


class FinetuneResponse(BaseModel):
    """A finetune that waits for its turn."""

    finetune_id: str
    id: str = Field(description="The same; programs in use read either.")
    status: Literal["Pending"] = "Pending"
    polling_url: str = Field(description="Where to ask how far it is.")


class Details(BaseModel):
    """The parameters of a finetune."""

    learning_rate: float
    iterations: int
    lora_rank: int
    mode: str
    trigger_word: str
    priority: str
    finetune_type: str
    finetune_comment: str
    timestamp: str
    captioning: bool
    status: tasks.Status
    finetune_id: str
    created_at: str


class FinetuneDetailResponse(BaseModel):
    """The parameters of a finetune; three of them twice, because programs in use read either."""

    finetune_details: Details
    finetune_comment: str
    status: tasks.Status
    created_at: str


class MyFinetunesResponse(BaseModel):
    """The finetunes of who asks."""

    finetunes: list[str] = Field(description="Their ids, newest first.")


class DeleteFinetuneInputs(BaseModel):
    """Which finetune to delete."""

    finetune_id: str = Field(description="ID of the finetune you want to delete.", examples=["my-finetune"])


class DeleteFinetuneResponse(BaseModel):
    """What was deleted."""

    status: str
    message: str
    deleted_finetune_id: str
    timestamp: str


class CreditsResponse(BaseModel):
    """What may still be spent: always the same."""

    credits: float


def asking(queue: Queue) -> Callable[[Request], Caller]:
    """What tells a route who asks, before it reads anything else. Raises: DeniedError."""

    def caller(request: Request) -> Caller:
        return callers.of_program(queue.settings, request)

    return caller


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the routes of the published API that concern finetunes."""
    Asking = Annotated[Caller, Depends(asking(queue))]
    places = bodies.Places()

    @routes.post(
        "/finetune", response_model=FinetuneResponse, openapi_extra=openapi.finetune_body(), summary="Submit a finetune"
    )
    async def finetune(request: Request, caller: Asking) -> dict[str, str]:
        """Teach a base model your pictures. They are checked before the answer; training takes its turn."""
        await run_in_threadpool(queue.check_room, caller.name)  # before anything is sent for nothing
        async with places.one(), bodies.received(request, queue.settings) as body:
            asked = await run_in_threadpool(_checked, body.fields, caller)
            run = await _submitted(request, queue, caller, asked, body.zip)
        return submitted(queue, request, run)

    @routes.get(
        "/get_result",
        response_model=tasks.ResultResponse,
        responses={404: {"model": tasks.ResultResponse, "description": "There is no such task."}},
        summary="Ask for a result",
    )
    def get_result(request: Request, id: str) -> JSONResponse:
        """How far a finetune or an image is, and what came of it. Needs no key: nobody can guess an id."""
        try:
            return JSONResponse(tasks.answer(queue, id, callers.public_root(queue.settings, request)))
        except MissingError:
            return JSONResponse(tasks.not_found(id), 404)

    @routes.get("/finetune_details", response_model=FinetuneDetailResponse, summary="Describe a finetune")
    def finetune_details(caller: Asking, finetune_id: str) -> dict[str, Any]:
        """The parameters of a finetune of yours, and how far it is."""
        details = _details(queue, find(queue, finetune_id, caller))
        return {
            "finetune_details": details,
            **{name: details[name] for name in ("finetune_comment", "status", "created_at")},
        }

    @routes.get("/my_finetunes", response_model=MyFinetunesResponse, summary="List my finetunes")
    def my_finetunes(caller: Asking) -> dict[str, list[str]]:
        """The ids of all finetunes that you have made, newest first."""
        found = (run for run in runs.all_in(queue.settings.runs) if run.owner == caller.name)
        return {"finetunes": [run.id for run in found if queue.state(run) is not State.DRAFT]}

    @routes.post(
        "/delete_finetune",
        response_model=DeleteFinetuneResponse,
        openapi_extra=openapi.body(DeleteFinetuneInputs),
        summary="Delete a finetune",
    )
    async def delete_finetune(request: Request, caller: Asking) -> dict[str, str]:
        """Delete a finetune of yours; if it is still being trained, it is stopped first."""
        asked = validated(DeleteFinetuneInputs, await bodies.read_json(request, queue.settings))
        run = await run_in_threadpool(find, queue, asked.finetune_id, caller)
        await run_in_threadpool(queue.delete, run)
        return {
            "status": "success",
            "message": "The finetune was deleted.",
            "deleted_finetune_id": run.id,
            "timestamp": datetime.now(UTC).isoformat(),
        }

    @routes.get("/credits", response_model=CreditsResponse, summary="Ask for credits")
    def credits(caller: Asking) -> dict[str, float]:
        """What may still be spent. Nothing is charged here, so it never changes."""
        return {"credits": CREDITS}


def submitted(queue: Queue, request: Request, run: Run) -> dict[str, str]:
    """What is answered to a finetune that was put into the queue."""
    url = f"{callers.public_root(queue.settings, request)}/v1/get_result?id={run.id}"
    return {"finetune_id": run.id, "id": run.id, "status": "Pending", "polling_url": url}


def find(queue: Queue, id: str, caller: Caller) -> Run:
    """A finetune of the caller's that was submitted. Raises: MissingError in the published API's words."""
    try:
        run = owners.find(queue.settings, id, caller)
    except MissingError as error:
        raise MissingError(NOT_FOUND) from error
    if queue.state(run) is State.DRAFT:
        raise MissingError(NOT_FOUND)
    return run


def validated(model: type[Model], fields: dict[str, Any]) -> Model:
    """Fields as a model. Raises: RequestValidationError with all that is wrong."""
    try:
        return model(**fields)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from error


def admit(request: inputs.Request, caller: Caller) -> None:
    """Raises: ConfigError, without repeating what was sent, when this caller may not have these models."""
    try:
        bases.admit(request.base_model, caller.owns_machine)
        captioners.admit(request.captioner, caller.owns_machine)
    except ConfigError as error:
        raise ConfigError("This model cannot be used here.", error.hint, error.field) from error


def _checked(fields: dict[str, Any], caller: Caller) -> inputs.Request:
    """What is asked for, if this caller may. What is wrong is said without repeating it."""
    asked = validated(FinetuneInputs, fields)
    admit(asked, caller)
    return inputs.Request(**asked.model_dump(exclude={"file_data"}))


async def _submitted(request: Request, queue: Queue, caller: Caller, asked: inputs.Request, zip: Path) -> Run:
    """A run of these pictures in the queue; nothing is left of it if that fails, or if nobody waits for it any more."""
    run = await run_in_threadpool(queue.create, caller.name)
    is_submitted = False
    try:
        await run_in_threadpool(dataset.unpack, zip, run)
        if await request.is_disconnected():
            raise ClientDisconnect
        await run_in_threadpool(queue.submit, run, asked)
        is_submitted = True
    finally:
        if not is_submitted:
            runs.discard(run)
    return run


def _details(queue: Queue, run: Run) -> dict[str, Any]:
    request = run.request()
    created = run.created().isoformat()
    return {
        **request.model_dump(mode="json"),
        "learning_rate": request.rate,
        "timestamp": created,
        "status": tasks.STATUS[queue.state(run)],
        "finetune_id": run.id,
        "created_at": created,
    }
