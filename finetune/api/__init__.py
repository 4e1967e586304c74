"""The REST service: the published finetuning API, and what goes beyond it.

Flat routes under /v1, all of one router, because a mounted sub-application is not found behind a proxy that strips a
path prefix. No Gradio here, so that the routes can be tested, and one day served, without it.
"""

from fastapi import APIRouter

from finetune import __version__
from finetune.api import answers, bodies, datasets, endpoints, files, finetunes, library, watch
from finetune.api.answers import Route
from finetune.queue import Queue


def router(queue: Queue) -> APIRouter:
    """The routes of one data folder."""
    routes = APIRouter(prefix="/v1", route_class=Route)

    @routes.get("/health")
    def health() -> dict[str, str]:
        """Say that the service is there, and which version it is."""
        return {"status": "ok", "version": __version__}

    bodies.sweep(queue.settings)
    files.add(routes, queue)
    watch.add(routes, queue)
    finetunes.add(routes, queue)
    library.add(routes, queue)
    datasets.add(routes, queue)
    endpoints.add(routes, queue)
    answers.close(routes)
    return routes
