"""Options of the command line that fields of the request become."""

import argparse
from collections.abc import Collection
from typing import Any

from finetune import inputs


def add(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Add an option for each of these fields; what is given is checked by the request itself."""
    for name in names:
        _add(parser, name, inputs.Request.model_fields[name])


def given(asked: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given."""
    values = {name: value for name, value in vars(asked).items() if name in inputs.Request.model_fields}
    if "lora_rank" in values and values["lora_rank"].isdigit():
        values["lora_rank"] = int(values["lora_rank"])
    return values


def _add(parser: argparse.ArgumentParser, name: str, field: Any) -> None:
    schema = inputs.Request.model_json_schema()["properties"][name]
    flag = f"--{name.replace('_', '-')}"
    default = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
    text = (field.description + default).replace("%", "%%")
    common: dict[str, Any] = {"dest": name, "help": text, "default": argparse.SUPPRESS}
    if schema.get("type") == "boolean":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif schema.get("type") == "array":
        parser.add_argument(flag, action="append", metavar="TEXT", **common)
    elif name == "finetune_comment":
        parser.add_argument(flag, "--name", metavar="TEXT", **common)
    else:
        parser.add_argument(flag, metavar="VALUE", **common)
