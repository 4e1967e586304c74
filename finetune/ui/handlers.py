"""What stands between a handler and the page: it gets the visit, and its errors become plain words.

Every handler is a public endpoint, whatever the page shows: so none is called before it is known who asks, and a
handler reaches runs only through the visit. The one place of the interface that catches everything: a visitor never
sees a traceback, the log always does.
"""

import html
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import gradio as gr

from finetune import owners
from finetune.api import callers
from finetune.errors import DeniedError, FinetuneError
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import Run
from finetune.settings import Settings

UNEXPECTED = FinetuneError(
    "Something unexpected went wrong.", "Try again. If it happens again, the service’s log has the details."
)


@dataclass(frozen=True)
class Visit:
    """One request of the page: what it may use, and who asks; nobody known has to sign in first."""

    queue: Queue
    caller: Caller | None
    address: Mapping[str, str] = field(default_factory=dict)
    """What the page's own address says after the question mark."""

    @property
    def settings(self) -> Settings:
        """This machine."""
        return self.queue.settings

    def run(self, asked: Any) -> Run:
        """A run of the caller's, by the id that a page sent. Raises: MissingError, DeniedError."""
        return owners.find(self.settings, str(asked or ""), self.somebody())

    def deleted(self, asked: Any) -> Run:
        """A deleted run of the caller's. Raises: MissingError, DeniedError."""
        return owners.find_deleted(self.settings, str(asked or ""), self.somebody())

    def somebody(self) -> Caller:
        """Who asks. Raises: DeniedError when that is nobody known."""
        if self.caller is None:
            raise DeniedError("Please sign in first.", "Load the page again to get there.")
        return self.caller


def event(handler: Callable[..., Any], queue: Queue) -> Callable[..., Any]:
    """Make a handler of a Gradio event; what goes wrong is shown as a notice."""

    def tell(error: FinetuneError) -> Any:
        words = html.escape(str(error), quote=False)  # a notice would load pictures that the words name
        raise gr.Error(words, duration=12, print_exception=False) from error

    return _bound(handler, queue, tell)


def server(handler: Callable[..., Any], queue: Queue, name: str) -> Callable[..., Any]:
    """Make a function that a page script calls as `server.<name>`; what goes wrong is its answer `{"error": …}`."""
    bound = _bound(handler, queue, lambda error: {"error": {"message": error.message, "hint": error.hint}})
    bound.__name__ = name
    return bound


def _bound(handler: Callable[..., Any], queue: Queue, tell: Callable[[FinetuneError], Any]) -> Callable[..., Any]:
    @wraps(handler)
    def bound(request: gr.Request, *values: Any, **named: Any) -> Any:
        try:
            # Events get Gradio's own request, server functions the one inside it.
            asking = getattr(request, "request", None) or request
            visit = Visit(queue, callers.of_page(queue.settings, asking), dict(asking.query_params))
            return handler(visit, *values, **named)
        except FinetuneError as error:
            return tell(error)
        except gr.Error:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return tell(UNEXPECTED)

    # Gradio counts a handler's parameters and fills in the request: it stands where the handler has the visit.
    signature = inspect.signature(handler)
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    bound.__signature__ = signature.replace(parameters=[first, *list(signature.parameters.values())[1:]])
    bound.__annotations__ = {**bound.__annotations__, "request": gr.Request}
    del bound.__wrapped__
    return bound
