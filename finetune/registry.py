"""Find the one-file extensions in families/, captioners/ and executors/.

A file that does not import, or that lacks its constant, stops the program: a list with a silent gap is worse than a
traceback.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.captioners import Captioner
    from finetune.executors import Executor
    from finetune.families import BaseModel, Family


@cache
def _extensions(folder: str, constant: str) -> dict[str, object]:
    package = importlib.import_module(f"finetune.{folder}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    found = [getattr(importlib.import_module(f"finetune.{folder}.{name}"), constant) for name in names]
    return {extension.id: extension for extension in found}


def families() -> dict[str, "Family"]:
    """All base-model families by id."""
    return _extensions("families", "FAMILY")


def captioners() -> dict[str, "Captioner"]:
    """All captioners by id."""
    return _extensions("captioners", "CAPTIONER")


def executors() -> dict[str, "Executor"]:
    """All executors by id."""
    return _extensions("executors", "EXECUTOR")


def base_models() -> dict[str, "BaseModel"]:
    """All base models by id, the smallest first."""
    found = [base for family in families().values() for base in family.bases]
    return {base.id: base for base in sorted(found, key=lambda base: base.download_gib)}


def base_model(id: str) -> "BaseModel":
    """The base model of that id. Raises: ConfigError when there is none."""
    bases = base_models()
    if id not in bases:
        raise ConfigError(f"There is no base model “{id}”.", f"Choose one of: {', '.join(bases)}.", "base_model")
    return bases[id]
