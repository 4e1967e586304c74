"""What an answer looks like when something is wrong: the contract's shapes, for every route.

422 is a list of problems that repeats no input; every other error has its words as `detail` and as `message`.
"""

import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from finetune.errors import (
    BusyError,
    ConfigError,
    DatasetError,
    DeniedError,
    ExecutorError,
    ExpiredError,
    FinetuneError,
    MissingError,
    StorageError,
    TooLargeError,
)

STATUS = {
    MissingError: 404,
    DeniedError: 403,
    ExpiredError: 410,
    BusyError: 429,
    TooLargeError: 413,
    StorageError: 507,
    ExecutorError: 503,
}
UNEXPECTED = "Something unexpected went wrong. The service’s log has the details."
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
LONGEST_MESSAGE = 1000
NOBODY = 499
"""The status of an answer that nobody waits for any more."""


class Route(APIRoute):
    """A route whose errors have the contract's shape; the one place of the routes that catches everything."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, with errors as answers."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return invalid(error.errors())
            except HTTPException as error:
                return problem(error.status_code, str(error.detail), error.headers)
            except FinetuneError as error:
                return of_error(error)
            except ClientDisconnect:
                return Response(status_code=NOBODY)
            except Exception:
                traceback.print_exc(file=sys.stderr)
                return problem(500, UNEXPECTED)

        return answer


def close(routes: APIRouter) -> None:
    """Add the last route, which answers what no other one does: an unknown path, or a known one in a wrong way."""
    known = list(routes.routes)

    @routes.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(request: Request) -> JSONResponse:
        partly = [route for route in known if route.matches(request.scope)[0] is Match.PARTIAL]
        if not partly:
            return problem(404, "There is no such route. The routes are listed under /docs.")
        allowed = ", ".join(sorted({method for route in partly for method in route.methods}))
        return problem(405, f"{request.method} is not what this route takes, but {allowed}.", {"Allow": allowed})


def invalid(problems: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """422: what is wrong with which field, without what was sent."""
    told = [
        {"type": one["type"], "loc": list(one["loc"]), "msg": one["msg"][:LONGEST_MESSAGE]}  # a ZIP's names are long
        for one in problems
    ]
    return JSONResponse({"detail": told}, 422)


def problem(status: int, words: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Any other error."""
    return JSONResponse({"detail": words, "message": words}, status, headers=dict(headers or {}))


def of_error(error: FinetuneError) -> JSONResponse:
    """The answer to an error of ours. What is wrong with the pictures or with a field is a 422."""
    if isinstance(error, ConfigError):
        return invalid([{"type": "value_error", "loc": ["body", *filter(None, [error.field])], "msg": str(error)}])
    if isinstance(error, DatasetError):
        return invalid([{"type": "value_error", "loc": ["body", "file_data"], "msg": str(error)}])
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)
    headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, BusyError) else None
    return problem(status, str(error), headers)
