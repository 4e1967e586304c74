"""Routes of datasets that are kept under a name, beyond the published API: list them, train with one, delete them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from finetune import inputs, links, runs, shelf
from finetune.api import bodies, files, finetunes, openapi
from finetune.api.finetunes import FinetuneResponse
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import Run
from finetune.settings import Settings
from finetune.shelf import Kept

Owner = Annotated[str, Query(description="Whose, if not yours; for owners of the machine alone.")]


class Version(BaseModel):
    """One content of a dataset."""

    hash: str = Field(description="The same for the same pictures and captions. `name@` and its beginning find it.")
    pictures: int
    created_at: str = Field(description="When it was last kept.")


class Dataset(BaseModel):
    """A dataset in the list, as its newest version is."""

    name: str
    hash: str
    pictures: int
    created_at: str
    source: str = Field(description="Where the pictures are from, in words.")
    versions: list[Version] = Field(description="All of them, the newest first.")
    owner: str | None = Field(None, description="Who keeps it; told to owners of the machine alone.")


class Datasets(BaseModel):
    """Datasets, the newest first."""

    datasets: list[Dataset]


class Removed(BaseModel):
    """What was deleted."""

    deleted: list[str] = Field(description="Each version, as `name@hash`.")


class DatasetInputs(inputs.Request):
    """A finetune of pictures that are here already."""

    model_config = ConfigDict(extra="ignore")

    dataset: str = Field(
        description="The name of a dataset of yours, or `name@` and the beginning of a version’s hash.",
        max_length=200,
        examples=["my dog", "my dog@ab12cd34"],
    )


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the routes that concern datasets."""
    Asking = Annotated[Caller, Depends(finetunes.asking(queue))]

    @routes.get(
        "/datasets", response_model=Datasets, response_model_exclude_unset=True, summary="List datasets that are kept"
    )
    def list_datasets(caller: Asking) -> dict[str, Any]:
        """Your datasets, newest first; to an owner of the machine, everybody’s."""
        return {"datasets": [_entry(versions, caller) for versions in shelf.by_name(shelf.of(queue.settings, caller))]}

    @routes.delete("/datasets/{name:path}", response_model=Removed, summary="Delete a dataset")
    def delete_dataset(caller: Asking, name: str, owner: Owner = "") -> dict[str, list[str]]:
        """Delete all versions of a name, or the one of `name@hash`. Finetunes that were made with it stay whole."""
        found = shelf.matching(queue.settings, caller, name, owner)
        for kept in found:
            shelf.remove(kept)
        return {"deleted": [kept.label for kept in found]}

    @routes.post(
        "/finetunes",
        response_model=FinetuneResponse,
        openapi_extra=openapi.body(DatasetInputs),
        summary="Submit a finetune of a dataset that is kept",
    )
    async def finetune(request: Request, caller: Asking) -> dict[str, str]:
        """Do what `/v1/finetune` does, with pictures that were kept under a name before."""
        await run_in_threadpool(queue.check_room, caller.name)
        asked = finetunes.validated(DatasetInputs, await bodies.read_json(request, queue.settings))
        run = await run_in_threadpool(_submitted, queue, caller, asked)
        return finetunes.submitted(queue, request, run)

    @routes.get("/datasets/{owner}/{name}/{version}/thumbnail", include_in_schema=False)
    def thumbnail(owner: str, name: str, version: str, exp: int, sig: str) -> FileResponse:
        """Send the first picture of a dataset, in small, to whoever holds a signed link to it."""
        return _send(queue.settings, f"{owner}/{name}/{version}", exp, sig)


def thumbnail_link(settings: Settings, kept: Kept) -> str:
    """A link to a dataset's first picture, relative to the page; it stays the same for hours, as those of runs do."""
    place = kept.folder.relative_to(shelf.root(settings)).as_posix()
    return links.sign(settings, f"datasets/{place}/thumbnail", files.HALF_A_LINK, files.HALF_A_LINK)


def _entry(versions: list[Kept], caller: Caller) -> dict[str, Any]:
    newest = versions[0]
    return {
        "name": newest.name,
        **_version(newest),
        "source": newest.source,
        "versions": [_version(kept) for kept in versions],
        **({"owner": newest.owner} if caller.owns_machine else {}),
    }


def _version(kept: Kept) -> dict[str, Any]:
    return {"hash": kept.hash, "pictures": kept.pictures, "created_at": kept.created}


def _submitted(queue: Queue, caller: Caller, asked: DatasetInputs) -> Run:
    """A run of the dataset's pictures in the queue; nothing is left of it if that fails."""
    kept = shelf.find(queue.settings, caller, asked.dataset)
    request = inputs.Request(**asked.model_dump(exclude={"dataset"}))
    finetunes.admit(request, caller)
    run = queue.create(caller.name)
    is_submitted = False
    try:
        shelf.use(kept, run)
        queue.submit(run, request)
        is_submitted = True
    finally:
        if not is_submitted:
            runs.discard(run)
    return run


def _send(settings: Settings, place: str, expires: int, signature: str) -> FileResponse:
    links.check(settings, f"datasets/{place}/thumbnail", expires, signature)
    found = min((shelf.root(settings) / place / "thumbnails").glob("*.webp"), default=None)
    if found is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(found, media_type="image/webp", headers=files.HEADERS)
