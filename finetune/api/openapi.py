"""What our routes take and give: /openapi.json for programs, /docs for people. Made of our router, without Gradio's."""

import copy
import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.routing import BaseRoute, Route

from finetune import __version__
from finetune.api import callers, examples, reference
from finetune.api.callers import Mode
from finetune.inputs import FinetuneInputs
from finetune.settings import Settings

REFERENCE = "#/components/schemas/{model}"
ABOUT = (
    "The finetuning API that Black Forest Labs published in 2025, answered by your own machine: a program written for "
    "it works after its URL was changed. What this service adds stands under “More”."
)
GROUPS = {
    "Finetunes": "Teach a model your pictures, and see what became of it.",
    "Images": "Draw with a finetune. Each endpoint draws with the base model that the finetune was trained on, "
    "whatever the endpoint’s name. The image is fetched from `get_result`.",
    "More": "What this service adds: files, progress, and a sign of life.",
}
FINETUNES = ("finetune", "get_result", "finetune_details", "my_finetunes", "delete_finetune")
WITHOUT_KEY = ("/v1/get_result", "/v1/health")
KEY = "APIKeyHeader"
SCHEMES = {KEY: {"type": "apiKey", "in": "header", "name": "x-key"}}
WORDS = {
    400: "This cannot be done with the finetune as it is: it is not there, or not ready, or not over.",
    403: "The key is missing or wrong.",
    404: "There is no such thing, or it is somebody else’s.",
    408: "The body stopped coming.",
    413: "The request is larger than this service takes.",
    415: "The body is of a kind that cannot be read here.",
    422: "A field is missing or wrong, or the pictures cannot be trained on.",
    429: "Too much at once: the queue is full, you have enough in it, or many keys were wrong. Retry-After says when.",
    507: "The disk has no room left.",
}
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong, in words, twice: programs in use read either.",
    "properties": {"detail": {"type": "string"}, "message": {"type": "string"}},
    "required": ["detail", "message"],
    "examples": [{"detail": "What happened, in a sentence.", "message": "What happened, in a sentence."}],
}
INVALID = {
    "type": "object",
    "title": "HTTPValidationError",
    "properties": {"detail": {"type": "array", "items": {"$ref": REFERENCE.format(model="ValidationError")}}},
}
INVALID_FIELD = {
    "type": "object",
    "title": "ValidationError",
    "description": "What is wrong with one field. It never repeats what was sent.",
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
        "type": {"type": "string"},
    },
    "required": ["loc", "msg", "type"],
    "examples": [
        {
            "loc": ["body", "iterations"],
            "msg": "Input should be less than or equal to 1000",
            "type": "less_than_equal",
        }
    ],
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
ZIP = {"type": "string", "format": "binary", "description": "ZIP file of images and, optionally, their captions."}
BARE_ZIP = {
    **ZIP,
    "description": "The ZIP file alone; the fields stand in the address: `?finetune_comment=a&mode=style`.",
}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """What a route takes that reads its body itself, for its `openapi_extra`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}}


def finetune_body() -> dict[str, Any]:
    """What POST /v1/finetune takes: JSON, a form with a file, or the ZIP itself with the fields in the address."""
    made, form = body(FinetuneInputs), _schema(FinetuneInputs) | {"title": "FinetuneForm"}
    form["properties"] = {name: _without_null(field) for name, field in form["properties"].items()} | {"file_data": ZIP}
    made["requestBody"]["content"] |= {
        "multipart/form-data": {"schema": form},
        "application/zip": {"schema": BARE_ZIP},
    }
    return made


def described(made: APIRouter, settings: Settings) -> list[BaseRoute]:
    """The routes of a router, and before them those that describe it: Gradio's own would describe the page's."""

    known = cache(lambda asks_for_key: document(made.routes, asks_for_key))

    def asks_for_key() -> bool:
        return callers.mode(settings) is not Mode.AT_HOME

    def filled_in(root: str) -> dict[str, Any]:
        return known(asks_for_key()) | {"servers": [{"url": urlsplit(root).path or "/"}]}

    def as_json(request: Request) -> JSONResponse:
        return JSONResponse(filled_in(callers.public_root(settings, request)))

    def as_page(request: Request) -> HTMLResponse:
        root = callers.public_root(settings, request)
        programs = examples.write(root, {}, examples.KEY if asks_for_key() else "")
        return HTMLResponse(reference.page(filled_in(root), root, programs), headers=reference.headers())

    return [Route("/openapi.json", as_json), Route("/docs", as_page), *made.routes]


def document(routes: Iterable[BaseRoute], asks_for_key: bool = True) -> dict[str, Any]:
    """The document of these routes. Where nobody has a key, none is asked for."""
    made = get_openapi(title="Finetune", version=__version__, description=ABOUT, routes=list(routes))
    made["components"] = {"schemas": made.get("components", {}).get("schemas", {}), "securitySchemes": SCHEMES}
    schemas = made["components"]["schemas"]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["tags"] = [_group(path)]
            operation["security"] = [] if path in WITHOUT_KEY else [{KEY: []}, *([] if asks_for_key else [{}])]
            _hoist(operation, schemas)
            _add_errors(path, operation)
    schemas |= {"Problem": PROBLEM, "HTTPValidationError": INVALID, "ValidationError": INVALID_FIELD}
    made["tags"] = [{"name": name, "description": words} for name, words in GROUPS.items()]
    made["paths"] = dict(sorted(made["paths"].items(), key=lambda item: _place(item[0])))
    return copy.deepcopy(made)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model as it is read: keys that it does not know are ignored, and its fields' names are their titles."""
    schema = model.model_json_schema(ref_template=REFERENCE)
    schema.pop("additionalProperties", None)
    return schema


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field of a form, which can only be left out: it carries no null."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    if not kinds:
        return field
    about = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return about | ({"anyOf": kinds} if len(kinds) > 1 else kinds[0])


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move schemas that `body` left in an operation to where all others are."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        if "properties" in schema:
            schema = dict(schema)
            schemas |= schema.pop("$defs", {})
            schemas[schema["title"]] = schema
            content["schema"] = {"$ref": REFERENCE.format(model=schema["title"])}


def _add_errors(path: str, operation: dict[str, Any]) -> None:
    """Say which errors a route can answer with, beyond those it says itself."""
    responses = operation["responses"]
    for status in _errors(path, operation):
        responses.setdefault(str(status), _error(status))
    responses.update({"422": _error(422)} if "422" in responses else {})


def _errors(path: str, operation: dict[str, Any]) -> list[int]:
    named = [one["name"] for one in operation.get("parameters", [])]
    draws, takes = path.endswith("-finetuned"), "requestBody" in operation
    return [
        *([400] if draws or path.endswith("/resume") else []),
        *([403, 429] if operation["security"] else []),
        *([404] if re.search(r"\{|delete", path) or {"id", "finetune_id"} & {*named} else []),
        *([408, 413, 415] if takes else []),
        *([422] if takes or named else []),
        *([507] if draws or path.endswith("/finetune") else []),
    ]


def _error(status: int) -> dict[str, Any]:
    name = "HTTPValidationError" if status == 422 else "Problem"
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=name)}}}
    about = {"description": WORDS.get(status, HTTPStatus(status).phrase), "content": content}
    return about | ({"headers": RETRY_AFTER} if status == 429 else {})


def _group(path: str) -> str:
    if path.endswith("-finetuned"):
        return "Images"
    return "Finetunes" if path.rpartition("/")[2] in FINETUNES else "More"


def _place(path: str) -> tuple[int, int]:
    """Routes in the order in which they are used; what has no place of its own stays as it was added."""
    name = path.rpartition("/")[2]
    return list(GROUPS).index(_group(path)), FINETUNES.index(name) if name in FINETUNES else 0
