"""The README tells the truth about fields, settings, errors and files."""

import ast
import re
from pathlib import Path

import pytest

from finetune import errors, registry
from finetune.errors import FinetuneError
from finetune.inputs import Request

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Request.model_fields)
def test_every_field_of_the_request_is_in_the_readme(name):
    """The request's table has a row for each field, with its default."""
    row = re.search(rf"^\| `{name}` \| ([^|]*) \|", README, re.MULTILINE)

    default = Request.model_fields[name].get_default()

    assert row, f"no row for {name}"
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        assert str(default) in row[1]


def test_every_environment_variable_is_in_the_readme():
    """What settings.py reads from the environment is explained."""
    source = (ROOT / "finetune" / "settings.py").read_text(encoding="utf-8")

    names = set(re.findall(r'(?:environ(?:ment)?\.get|_number|_is_on)\("([A-Z_]+)"', source))
    names = {name for name in names if not name.startswith(("SPACE_", "OAUTH_"))}  # those that a Space sets

    assert names
    assert not [name for name in sorted(names) if f"`{name}`" not in README]


def test_every_error_is_in_the_readme():
    """Each class that a user can meet has a row."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FinetuneError)]

    assert not [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in README and kind is not FinetuneError]


def test_the_file_map_names_every_module():
    """A line for each Python file under finetune/, and none for a file that is gone."""
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "finetune").rglob("*.py")}

    named = set(re.findall(r"^\| `(finetune/[\w/]+\.py)` \|", README, re.MULTILINE))

    assert named == modules


@pytest.mark.parametrize("target", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_every_picture_of_the_readme_exists(target):
    """No picture is a dead link."""
    assert (ROOT / target).is_file()


@pytest.mark.parametrize("id", registry.base_models())
def test_every_base_model_is_in_the_readme(id):
    """Who looks for a base model finds it in the table, with its licence."""
    base = registry.base_models()[id]
    (row,) = re.findall(rf"^\|[^|]*`{id}`[^|]*\|([^|]*)\|", README, re.MULTILINE)

    assert base.licence.split(" License")[0] in row
    assert ("gated" in row) == base.is_gated


def test_lines_that_use_a_lora_name_what_they_give():
    """diffusers' pipelines take a picture first, so a prompt without its name would be one."""
    (lines,) = re.findall(r"```python\n(import torch\n.*?)```", README, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]

    (drawing,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "pipeline"]

    assert not drawing.args
    assert "prompt" in {keyword.arg for keyword in drawing.keywords}
