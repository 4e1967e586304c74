"""The page that describes our routes: complete, escaped, and in need of nothing else."""

import base64
import hashlib
import re

import pretend
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from finetune import api
from finetune.api import openapi, reference
from finetune.inputs import FinetuneInputs
from finetune.queue import Queue
from finetune.settings import Settings

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


@pytest.fixture
def client(settings):
    queue = Queue(settings, pretend.StillExecutor())
    yield TestClient(FastAPI(routes=openapi.described(api.router(queue), settings)))
    queue.close()


def _page(made):
    return reference.page(openapi.document(made.routes), "http://here", {"curl": "curl"})


def test_every_route_and_field_is_on_the_page(client):
    """What the document has, a person can read."""
    document, page = client.get("/openapi.json").json(), client.get("/docs").text

    fields = {name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})}
    assert all(f"<code>{path}</code>" in page for path in document["paths"])
    assert not [name for name in fields if name not in page]


def test_page_asks_nobody_for_anything(client):
    """It works without a network: no script, no picture, no style but its own."""
    answer = client.get("/docs")

    assert not re.search(r"<(script|img|link|iframe)|@import|url\(", answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")


def test_style_is_the_one_that_is_allowed(client):
    """The policy of the page names its own style, by what is in it."""
    answer = client.get("/docs")

    style = re.search(r"<style>(.*)</style>", answer.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("header", ["host", "x-forwarded-host", "x-forwarded-proto"])
def test_headers_become_no_markup(client, header):
    """Who is made to ask with odd headers gets a page that is still only ours."""
    assert "<script" not in client.get("/docs", headers={header: EVIL}).text


def test_words_become_no_markup():
    """Descriptions are text, apart from what stands between backticks."""
    made = APIRouter()
    made.add_api_route(f"/{EVIL[:8]}", lambda: None, description=f"{EVIL} `code<b>`", name=EVIL)

    page = _page(made)

    assert "<script" not in page and "<b>`" not in page
    assert "<code>code&lt;b&gt;</code>" in page


def test_examples_are_what_the_service_takes():
    """The body that is shown as an example is a good request."""
    schema = FinetuneInputs.model_json_schema(ref_template="#/components/schemas/{model}")

    assert FinetuneInputs(**reference.example(schema, schema["$defs"]))


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"type": "integer", "minimum": 0, "maximum": 2147483647}, "integer, 0 to 2147483647"),
        ({"type": "number", "minimum": 1e-6, "maximum": 0.005}, "number, 1e-6 to 0.005"),
        ({"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]}, "string, at most 9 characters or null"),
        ({"enum": [16, 32]}, "one of 16, 32"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 8}, "list of string, at most 8 items"),
        ({"type": "integer", "minimum": 64, "multipleOf": 32}, "integer, at least 64, a multiple of 32"),
        ({}, "anything"),
    ],
)
def test_types_and_limits_are_said_in_words(schema, words):
    """A field's type is read without knowing JSON Schema."""
    assert reference.kind(schema, {}) == words
