"""How the code hangs together: who imports whom, and what the service never loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"
STORY = """
errors settings links machine registry inputs memory plan layouts hub bases downloads weights recipe captions
instructions crops runs index owners keys images dataset shelf descriptions flow adapters lora optimiser formats
footprint parts toys families captioners encodings checkpoints preview fidelity extraction publish results trainer
worker painter studio executors queue webhooks api ui options dataset_commands __main__
"""
ORDER = STORY.split()
# A protocol says what an extension looks like, and is known to those that find and use extensions.
PROTOCOLS = ("finetune.families", "finetune.captioners", "finetune.executors")
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(tree, file):
    """Modules of ours that a file imports when it runs, as dotted names."""
    types_only = {id(n) for node in ast.walk(tree) if _is_for_types(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("finetune"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finetune"):
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def _is_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _place(dotted):
    parts = dotted.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else -1


def _name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_up_only(file):
    """A file imports what stands above it in the story of a fine-tune, and the protocols."""
    ours = _name(file)

    for other in _imports(ast.parse(file.read_text(encoding="utf-8")), file):
        is_same_folder = other.split(".")[1:2] == ours.split(".")[1:2]
        if other not in PROTOCOLS and not is_same_folder:
            assert _place(other) < _place(ours), f"{ours} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_settings_reads_the_environment(file):
    """Everything else is told by settings."""
    text = file.read_text(encoding="utf-8")

    assert file.name == "settings.py" or ("os.environ" not in text and "getenv" not in text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_page_imports_gradio(file):
    """Importing Gradio takes seconds; worker, routes and command line do without."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert file.parent.name == "ui" or not any(name.split(".")[0] == "gradio" for name in names)


def test_every_file_has_its_place():
    """A new module is put into the order, so that its direction is checked."""
    assert {_name(file).split(".")[1] for file in FILES if _name(file) != "finetune"} <= set(ORDER)


@pytest.mark.parametrize(
    "program",
    [
        "from finetune import api, registry, settings; from finetune.queue import Queue;"
        "api.router(Queue(settings.read(), registry.executors()['local']))",
        "from finetune import registry; registry.families(), registry.captioners(), registry.executors()",
        "import finetune.__main__ as m; m._parser()",
        "from finetune import registry, settings; from finetune.queue import Queue; from finetune.ui import build;"
        "build(settings.read(), Queue(settings.read(), registry.executors()['local']))",
    ],
    ids=["routes", "extensions", "command line", "page"],
)
def test_service_loads_no_torch(program, tmp_path):
    """Building routes, lists, command line and page leaves the heavy libraries alone."""
    check = f"import sys; loaded = [name for name in {HEAVY} if name in sys.modules]; assert not loaded, loaded"

    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{check}"],
        cwd=PACKAGE.parent,
        env={"FINETUNE_HOME": str(tmp_path), "PATH": "", "SYSTEMROOT": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
