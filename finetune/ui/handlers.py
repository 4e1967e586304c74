"""What stands between a handler and the page: it gets the queue, and its errors become plain words.

The one place of the interface that catches everything: a visitor never sees a traceback, the log always does.
"""

import inspect
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from finetune.errors import FinetuneError
from finetune.queue import Queue

UNEXPECTED = FinetuneError(
    "Something unexpected went wrong.", "Try again. If it happens again, the service’s log has the details."
)


def event(handler: Callable[..., Any], queue: Queue) -> Callable[..., Any]:
    """Make a handler of a Gradio event; what goes wrong is shown as a notice."""

    def tell(error: FinetuneError) -> Any:
        raise gr.Error(str(error), duration=12, print_exception=False) from error

    return _bound(handler, queue, tell)


def server(handler: Callable[..., Any], queue: Queue, name: str) -> Callable[..., Any]:
    """Make a function that a page script calls as `server.<name>`; what goes wrong is its answer `{"error": …}`."""
    bound = _bound(handler, queue, lambda error: {"error": {"message": error.message, "hint": error.hint}})
    bound.__name__ = name
    return bound


def _bound(handler: Callable[..., Any], queue: Queue, tell: Callable[[FinetuneError], Any]) -> Callable[..., Any]:
    @wraps(handler)
    def bound(*values: Any, **named: Any) -> Any:
        try:
            return handler(queue, *values, **named)
        except FinetuneError as error:
            return tell(error)
        except gr.Error:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return tell(UNEXPECTED)

    # Gradio counts a handler's parameters: it must not see the queue among them.
    signature = inspect.signature(handler)
    bound.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    del bound.__wrapped__
    return bound
