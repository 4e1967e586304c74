"""What a specification says of routes and fields, as a small table: names, types, limits, defaults, and no words.

As a program it writes contract.json from the published specification of the finetuning API (an OpenAPI file):
`python tests/contract.py bfl_openapi_2025-05.json`. The tests make the same table of our own specification.
"""

import json
import sys
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
LIMITS = ("enum", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "format")
UTILITY = ("get_result", "finetune_details", "my_finetunes", "delete_finetune")
KLEIN = ("4b", "9b", "9b-kv", "9b-kv-bf16", "base-4b", "base-9b")
SIZE = {"types": ["integer", "null"], "minimum": 64}
PICTURE = {"types": ["null", "string"]}
# The klein endpoints are younger than the specification: written down from the contract.
KLEIN_FIELDS = {
    "prompt": {"types": ["string"], "required": True},
    "seed": {"types": ["integer", "null"]},
    "width": SIZE,
    "height": SIZE,
    "input_image": PICTURE,
    "input_image_2": PICTURE,
    "input_image_3": PICTURE,
    "input_image_4": PICTURE,
    "safety_tolerance": {"types": ["integer"], "minimum": 0, "maximum": 5, "default": 2},
    "output_format": {"types": ["string"], "enum": ["jpeg", "png", "webp"], "default": "jpeg"},
    "webhook_url": {"types": ["null", "string"], "minLength": 1, "maxLength": 2083, "format": "uri"},
    "webhook_secret": {"types": ["null", "string"]},
    "finetune_id": {"types": ["string"], "required": True},
    "finetune_strength": {"types": ["number"], "minimum": 0, "maximum": 2, "default": 1.0},
}


def of(document: dict[str, Any]) -> dict[str, Any]:
    """The table of a specification: the fields of each object, and which objects each route takes and gives."""
    known = document["components"]["schemas"]
    return {
        "objects": {name: _fields(schema, known) for name, schema in known.items() if "properties" in schema},
        "routes": {
            f"{method.upper()} {path}": _route(operation, document)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        },
    }


def _fields(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    required = schema.get("required", [])
    return {
        name: {**_facts(field, known), **({"required": True} if name in required else {})}
        for name, field in schema["properties"].items()
    }


def _route(operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    known, security = document["components"]["schemas"], operation.get("security", [])
    parameters = {
        one["name"]: {**_facts(one["schema"], known), "in": one["in"], "required": one.get("required", False)}
        for one in operation.get("parameters", [])
    }
    return {
        "asks_for_key": bool(security) and {} not in security,
        "parameters": parameters,
        "takes": _objects(operation.get("requestBody", {})),
        **{f"gives_{status}": _objects(operation["responses"].get(status, {})) for status in ("200", "422")},
    }


def _objects(content: dict[str, Any]) -> list[str]:
    """Names of the objects that a body of JSON may be."""
    schema = content.get("content", {}).get("application/json", {}).get("schema", {})
    return [one["$ref"].rpartition("/")[2] for one in schema.get("anyOf", [schema]) if "$ref" in one]


def _facts(field: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Types, limits and default; where a field may be null, being null is no default worth telling."""
    kinds = _kinds(field, known)
    facts: dict[str, Any] = {"types": sorted({kind.get("type", "any") for kind in kinds})}
    for kind in kinds:
        facts |= {name: kind[name] for name in LIMITS if name in kind}
        if "items" in kind:
            reference = kind["items"].get("$ref", "").rpartition("/")[2]
            facts["items"] = reference or _facts(kind["items"], known)
    return facts if field.get("default") is None else {**facts, "default": field["default"]}


def _kinds(field: dict[str, Any], known: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, with what it refers to in its place."""
    reference = field.get("$ref", "").rpartition("/")[2]
    field = {**known[reference], **field} if reference else field
    return [inner for kind in field["anyOf"] for inner in _kinds(kind, known)] if "anyOf" in field else [field]


def _ours(table: dict[str, Any]) -> dict[str, Any]:
    """Of the published table, the part that the service answers, with the klein endpoints."""
    routes = {
        route: facts
        for route, facts in table["routes"].items()
        if route.endswith(("finetuned", "/finetune")) or route.rpartition("/")[2] in UTILITY
    }
    klein = {**routes["POST /v1/flux-pro-finetuned"], "takes": ["KleinInputs"]}
    routes |= {f"POST /v1/flux-2-klein-{size}-finetuned": klein for size in KLEIN}
    used = {name for facts in routes.values() for key in ("takes", "gives_200", "gives_422") for name in facts[key]}
    objects = {name: fields for name, fields in table["objects"].items() if name in {*used, "ValidationError"}}
    return {"objects": {**objects, "KleinInputs": KLEIN_FIELDS}, "routes": routes}


def _written(table: dict[str, Any]) -> str:
    """JSON with a line for each field and each route."""
    objects = [f"  {json.dumps(name)}: {{\n{_lines(fields, 4)}\n  }}" for name, fields in table["objects"].items()]
    inner = ",\n".join(objects)
    return f'{{\n "objects": {{\n{inner}\n }},\n "routes": {{\n{_lines(table["routes"], 2)}\n }}\n}}\n'


def _lines(values: dict[str, Any], indent: int) -> str:
    return ",\n".join(f"{' ' * indent}{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())


if __name__ == "__main__":
    specification = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    TABLE.write_text(_written(_ours(of(specification))), encoding="utf-8")
