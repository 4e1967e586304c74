"""The document of our routes: what is in it, and what is not."""

import json

import pretend
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field

from finetune import api, keys
from finetune.api import openapi
from finetune.inputs import FinetuneInputs
from finetune.queue import Queue
from finetune.settings import Settings


class Drawn(BaseModel):
    """What a made-up endpoint takes."""

    model_config = {"extra": "forbid"}

    prompt: str = Field(max_length=7)


@pytest.fixture
def made():
    """Routes such as ours, some of which read their body themselves."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/get_result")
    def get_result(id: str): ...

    @routes.post("/some-finetuned", openapi_extra=openapi.body(Drawn))
    async def draw(request: Request): ...

    @routes.post("/finetune", openapi_extra=openapi.finetune_body())
    async def finetune(request: Request): ...

    @routes.get("/files/{name}", include_in_schema=False)
    def file(name: str): ...

    return routes


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


@pytest.fixture
def ours(settings):
    queue = Queue(settings, pretend.StillExecutor())
    yield api.router(queue)
    queue.close()


def _client(routes, settings):
    return TestClient(FastAPI(routes=openapi.described(routes, settings)))


def _schema(document, name):
    return document["components"]["schemas"][name]


def test_only_our_routes_are_described(ours, settings):
    """What the page and Gradio have of their own is in no document, and ours is there whole."""
    document = _client(ours, settings).get("/openapi.json").json()

    shown = {route.path_format for route in ours.routes if getattr(route, "include_in_schema", False)}
    assert set(document["paths"]) == shown


def test_routes_ask_for_a_key_as_they_say(ours, settings):
    """Without one, each route that is said to need it answers 403, whatever else is wrong; the others do not."""
    keys.new(settings, "ada")
    client = _client(ours, settings)

    document = client.get("/openapi.json").json()

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            status = client.request(method, path, params={"id": "x"}, headers={"x-key": "ft_wrong"}).status_code
            assert (status == 403) == bool(operation["security"]), (path, status)


def test_document_refers_to_nothing_that_is_missing(made):
    """Each reference leads to a schema, so that generators of clients can follow it."""
    text = json.dumps(document := openapi.document(made.routes))

    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert names and names <= set(document["components"]["schemas"])


def test_body_that_a_route_reads_itself_is_described(made):
    """The model stands among the schemas; keys that it does not know are ignored, so they are not forbidden."""
    document = openapi.document(made.routes)

    content = document["paths"]["/v1/some-finetuned"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Drawn"}
    assert _schema(document, "Drawn")["properties"]["prompt"]["maxLength"] == 7
    assert "additionalProperties" not in _schema(document, "Drawn")


def test_finetune_is_sent_in_three_ways(made):
    """As base64 in JSON, as a file in a form with the same fields, and as the ZIP alone."""
    document = openapi.document(made.routes)

    content = document["paths"]["/v1/finetune"]["post"]["requestBody"]["content"]
    form = _schema(document, "FinetuneForm")["properties"]
    assert set(content) == {"application/json", "multipart/form-data", "application/zip"}
    assert set(form) == set(FinetuneInputs.model_fields)
    assert form["file_data"]["format"] == "binary"


@pytest.mark.parametrize(
    "path, statuses",
    [
        ("/v1/get_result", {"200", "404", "422"}),
        ("/v1/some-finetuned", {"200", "400", "403", "408", "413", "415", "422", "429", "507"}),
        ("/v1/finetune", {"200", "403", "408", "413", "415", "422", "429", "507"}),
    ],
)
def test_routes_say_how_they_fail(made, path, statuses):
    """Every answer that a route can give is among its answers."""
    (operation,) = openapi.document(made.routes)["paths"][path].values()

    assert set(operation["responses"]) == statuses


def test_errors_have_the_shape_that_they_are_answered_in(made):
    """422 is a list that repeats no input; all else says its words twice; 429 says when to come again."""
    document = openapi.document(made.routes)

    answers = document["paths"]["/v1/finetune"]["post"]["responses"]
    assert answers["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/HTTPValidationError")
    assert set(_schema(document, "ValidationError")["properties"]) == {"loc", "msg", "type"}
    assert answers["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert answers["429"]["headers"]["Retry-After"]["schema"]["type"] == "integer"
    assert _schema(document, "Problem")["required"] == ["detail", "message"]


def test_a_key_is_asked_for_once_there_is_one(made, settings):
    """At home the header may be left out; with a key, only what needs none is free."""
    client = _client(made, settings)
    at_home = client.get("/openapi.json").json()["paths"]
    keys.new(settings, "ada")
    closed = client.get("/openapi.json").json()["paths"]

    assert at_home["/v1/finetune"]["post"]["security"] == [{"APIKeyHeader": []}, {}]
    assert closed["/v1/finetune"]["post"]["security"] == [{"APIKeyHeader": []}]
    assert closed["/v1/get_result"]["get"]["security"] == []


@pytest.mark.parametrize("root_path, server", [("", "/"), ("/sub", "/sub"), ("https://here.example/a/b", "/a/b")])
def test_document_knows_the_path_before_its_routes(made, tmp_path, root_path, server):
    """Behind a prefix, routes are found below it; the host is the one that the document came from."""
    client = _client(made, Settings(home=tmp_path, root_path=root_path))

    document = client.get("/openapi.json", headers={"x-forwarded-host": "evil.example"}).json()

    assert document["servers"] == [{"url": server}]
    assert "evil.example" not in json.dumps(document)


def test_groups_stand_in_the_order_of_use(made):
    """First a finetune is made, then it draws; of each group, what comes first is done first."""
    document = openapi.document(made.routes)

    assert list(document["paths"]) == ["/v1/finetune", "/v1/get_result", "/v1/some-finetuned"]
    assert [tag["name"] for tag in document["tags"]] == ["Finetunes", "Images", "More"]
