"""The page /docs: the OpenAPI document as a person reads it, drawn here, without a script and without other hosts."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from finetune.settings import ASSETS

STYLE = ASSETS / "page" / "reference.css"
EXAMPLES = {
    "finetune_id": "7d0c2f7e-5c3b-4f0e-9a51-0f6f3c1a2b4d",
    "id": "7d0c2f7e-5c3b-4f0e-9a51-0f6f3c1a2b4d",
    "file_data": "UEsDBBQAAAAIA…",
    "control_image": "iVBORw0KGgoAA…",
    "image": "iVBORw0KGgoAA…",
    "prompt": "a rose in the style of TOK",
}
"""What examples say in fields that have no example of their own."""


class Html(str):
    """Text that is markup already. All other text is escaped when it is put between tags."""


def headers() -> dict[str, str]:
    """What keeps the page from doing anything but being read."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return {
        "Content-Security-Policy": allowed,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",  # it names the address at which it was asked for
    }


def page(document: Mapping[str, Any], root: str, programs: Mapping[str, str]) -> str:
    """The page for a service that is reached at `root`, with programs that use it, by their language."""
    about = document["info"]
    head = _make(
        "head",
        _make("meta", charset="utf-8"),
        _make("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _make("meta", name="color-scheme", content="light dark"),
        _make("title", f"{about['title']}: routes"),
        Html(f"<style>{_style()}</style>"),
    )
    top = _make(
        "header",
        _make("h1", about["title"], _make("small", about["version"])),
        _make("p", *_words(about["description"])),
        _make(
            "dl",
            *_pair("Address", _make("code", root)),
            *_pair("Key", *_words(_key(document))),
            *_pair("For programs", _make("a", "openapi.json", href="openapi.json")),
            *_pair("For people", _make("a", "the page", href="./")),
        ),
        *(_folded(_make("summary", f"Example: {name}"), _code(text)) for name, text in programs.items()),
    )
    groups = [_group(tag, document) for tag in document["tags"]]
    body = _make("body", _make("main", top, *groups))
    return "<!doctype html>" + _make("html", head, body, lang="en")


def example(schema: Mapping[str, Any], known: Mapping[str, Any], name: str = "", is_whole: bool = False) -> Any:
    """A value that fits a schema; of an object's fields those that are required, or all (`is_whole`)."""
    schema = _resolved(schema, known)
    for given in (
        schema.get("examples", [None])[0],
        EXAMPLES.get(name),
        schema.get("default"),
        *schema.get("enum", []),
    ):
        if given is not None:
            return given
    if options := schema.get("anyOf"):
        return None if {"type": "null"} in options else example(options[0], known, name, is_whole)
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            wanted = fields if is_whole else schema.get("required", [])
            return {field: example(fields[field], known, field, is_whole) for field in fields if field in wanted}
        case "array":
            return [example(schema.get("items", {}), known, "", is_whole)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "string":
            return "https://example.org/" if schema.get("format") == "uri" else "…"
    return None


def kind(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Type, limits and choices of a field, in words."""
    schema = _resolved(schema, known)
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(kind(option, known) for option in options))
    if choices := schema.get("enum"):
        return "one of " + ", ".join(str(choice) for choice in choices)
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}), known)}{_limits(schema, 'minItems', 'maxItems')}"
    name = {"binary": "file", "uri": "address"}.get(schema.get("format", ""), schema.get("type", "anything"))
    step = f", a multiple of {_number(schema['multipleOf'])}" if "multipleOf" in schema else ""
    return name + _limits(schema, "minimum", "maximum") + step + _limits(schema, "minLength", "maxLength")


def _limits(schema: Mapping[str, Any], lowest: str, highest: str) -> str:
    low, high = schema.get(lowest), schema.get(highest)
    unit = {"minLength": " characters", "minItems": " items"}.get(lowest, "")
    match low, high:
        case None, None:
            return ""
        case None, _:
            return f", at most {_number(high)}{unit}"
        case _, None:
            return f", at least {_number(low)}{unit}"
    return f", {_number(low)} to {_number(high)}{unit}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value}".replace("e-0", "e-")


def _key(document: Mapping[str, Any]) -> str:
    asked = [operation["security"] for path in document["paths"].values() for operation in path.values()]
    if any({} in security for security in asked):
        return "none is needed here"
    return "in the header `x-key`; make one on the page, under “Use it from a program”"


def _group(tag: Mapping[str, str], document: Mapping[str, Any]) -> str:
    routes = [
        _route(method, path, operation, document)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if tag["name"] in operation["tags"]
    ]
    heading = [_make("h2", tag["name"]), _make("p", *_words(tag["description"]))]
    return _make("section", *heading, *routes) if routes else Html("")


def _route(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    known = document["components"]["schemas"]
    line = _make(
        "summary",
        _make("b", method.upper(), class_=method),
        _make("code", path),
        _make("span", operation["summary"]),
    )
    inside = [_make("p", *_words(paragraph)) for paragraph in operation.get("description", "").split("\n\n")]
    if parameters := operation.get("parameters"):
        schema = {
            "properties": {one["name"]: {**one["schema"], **_told(one)} for one in parameters},
            "required": [one["name"] for one in parameters if one.get("required")],
        }
        inside += [_make("h3", "In the address"), _fields(schema, known)]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        inside += _body(media, content["schema"], known)
    inside += [_make("h3", "Answers"), *(_answer(*one, known) for one in sorted(operation["responses"].items()))]
    return _folded(line, *inside, id=operation["operationId"], class_="route")


def _told(parameter: Mapping[str, Any]) -> dict[str, str]:
    return {"description": parameter["description"]} if "description" in parameter else {}


def _body(media: str, schema: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """What a route takes; only JSON is told field by field, since the other ways carry the same fields."""
    if media != "application/json":
        words = schema.get("description", "The same fields as a form, with the ZIP as a file.")
        return [_make("p", "Or ", _make("code", media), ". ", *_words(words))]
    text = json.dumps(example(schema, known), indent=2, ensure_ascii=False)
    return [_make("h3", "In the body, ", _make("code", media)), _fields(_resolved(schema, known), known), _code(text)]


def _fields(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    rows = []
    needed = schema.get("required", [])
    for name, field in sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in needed):
        is_required = name in needed
        default = field.get("default")
        usual = "needed" if is_required else "" if default in (None, "", []) else f"default {_json(default)}"
        rows.append(
            _make(
                "tr",
                _make("td", _make("code", name)),
                _make("td", kind(field, known), _make("small", usual, class_="needed" if is_required else "")),
                _make("td", *_words(_resolved(field, known).get("description", ""))),
            )
        )
    return _make("table", _make("tbody", *rows))


def _answer(status: str, response: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    line = [_make("b", status, class_="good" if status < "300" else "bad"), _make("span", *_words(_meaning(response)))]
    schema = response.get("content", {}).get("application/json", {}).get("schema")
    if not schema:
        return _make("div", *line, class_="answer")
    text = json.dumps(example(schema, known, is_whole=True), indent=2, ensure_ascii=False)
    return _folded(_make("summary", *line), _code(text), class_="answer")


def _meaning(response: Mapping[str, Any]) -> str:
    return {"Successful Response": "All went well."}.get(response["description"], response["description"])


def _resolved(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return {**known[name], **schema} if name else schema


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _words(text: str) -> list[str]:
    """Text in which what stands between backticks is code."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    return [_make("code", part) if place % 2 else part for place, part in enumerate(parts)]


def _pair(term: str, *described: str) -> tuple[str, str]:
    return _make("dt", term), _make("dd", *described)


def _folded(summary: str, *inside: str, **about: str) -> str:
    return _make("details", summary, *inside, **about)


def _code(text: str) -> str:
    return _make("pre", _make("code", text), tabindex="0")


def _make(tag: str, *children: str, **about: str) -> Html:
    """An element. Texts are escaped here, and nowhere else; an empty value leaves its attribute out."""
    attributes = "".join(f' {name.rstrip("_")}="{html.escape(value)}"' for name, value in about.items() if value)
    inner = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{tag}{attributes}>" if tag == "meta" else f"<{tag}{attributes}>{inner}</{tag}>")


@cache
def _style() -> str:
    return STYLE.read_text(encoding="utf-8")
