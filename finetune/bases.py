"""Which base model a request means: one of the records, a folder on this machine, or an id on the Hub.

Three questions, by what they cost. `title` answers from the records alone, `check` also reads this machine's disk, and
`find` may ask the Hub, which takes seconds.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import hub, layouts, registry, settings
from finetune.errors import ConfigError, ModelError
from finetune.families import BaseModel, Refused


def find(name: str) -> BaseModel:
    """The base model of a record's id, an id or address on the Hub, or a folder. What is not on this machine is looked
    up on the Hub, which may take seconds.

    Raises: ConfigError when it is none, ModelError or AccessError when the Hub does not say what it is.
    """
    if (base := check(name)) is not None:
        return base
    repo = hub.repository(name.strip())
    return _on_hub(repo, hub.configs(repo))


def check(name: str) -> BaseModel | None:
    """Refuse at once what cannot be a base model; returns it if it is known without asking the Hub.

    None stands for a well-formed id on the Hub that nobody has asked for yet: `find` looks it up.
    Raises: ConfigError.
    """
    name = name.strip()
    repo = hub.repository(name)
    if record := _record(name) or (repo and _record(repo)):
        return record
    if refused := _refused(repo or name):
        raise _refusal(repo or name, refused)
    if os.path.isabs(name):
        return _in_folder(name)
    if repo is None:
        choices = ", ".join(registry.base_models())
        hint = f"Choose one of: {choices}; or give an id on the Hub (owner/name) or the whole path of a folder."
        raise ConfigError(f"There is no base model “{name}”.", hint, "base_model")
    folder = hub.cached(repo)
    return _on_hub(repo, folder) if folder and (folder / "transformer" / "config.json").exists() else None


def admit(name: str, owns_machine: bool) -> None:
    """Refuse at once what cannot be a base model, and what only an owner of the machine may have fetched or read.

    A stranger learns nothing of this machine's folders and cache, and fills no disk with models of their choice.
    Raises: ConfigError.
    """
    name = name.strip()
    if not owns_machine and not _record(name) and not _record(hub.repository(name) or name):
        raise ConfigError(
            f"“{name}” is not in the list of base models, and only an owner of this machine may name others.",
            f"Choose one of: {', '.join(registry.base_models())}.",
            "base_model",
        )
    check(name)


def title(name: str) -> str:
    """What to call a base model on the page; asks neither the disk nor the Hub, and takes any name."""
    name = name.strip()
    record = _record(name) or _record(hub.repository(name) or name)
    if record:
        return record.title
    return Path(name).name if os.path.isabs(name) else hub.repository(name) or name


def _record(name: str) -> BaseModel | None:
    records = registry.base_models()
    return records.get(name) or next((b for b in records.values() if b.source.lower() == name.lower()), None)


def _refused(source: str) -> Refused | None:
    known = (refused for family in registry.families().values() for refused in family.refused)
    return next((refused for refused in known if refused.source.lower() == source.lower()), None)


def _refusal(name: str, refused: Refused) -> ConfigError:
    records = registry.base_models()
    instead = records[refused.instead].title if refused.instead in records else refused.instead
    return ConfigError(f"{name} cannot be trained on: {refused.reason}.", f"Choose “{instead}” instead.", "base_model")


def _in_folder(name: str) -> BaseModel:
    """The base model in a folder. Whether a folder exists is only said of those that the owner opened."""
    folder = Path(os.path.normpath(name))  # not resolved: that would look at the disk before it is allowed to
    allowed = settings.read().base_folders
    if not any(folder.is_relative_to(one) for one in allowed):
        places = ", ".join(str(one) for one in allowed)
        hint = f"Put it, or a link to it, into one of: {places}. FINETUNE_BASES names other folders."
        raise ConfigError("Base models are not read from that folder.", hint, "base_model")
    return replace(_described(folder.name, folder), id=str(folder), source=str(folder), **_licence(folder))


def _on_hub(repo: str, folder: Path) -> BaseModel:
    """The base model of an id on the Hub whose small files are in a folder."""
    found = _described(repo, folder)
    encoders = [
        size for name, size in hub.sizes(repo).items() if re.fullmatch(r"text_encoder\w*/.*\.safetensors", name)
    ]
    return replace(
        found,
        id=repo,
        title=repo,
        source=repo,
        text_encoder_gib=found.text_encoder_gib or sum(encoders) / 2**30,
        **{"licence_url": hub.address(repo), **_licence(folder)},
    )


def _described(name: str, folder: Path) -> BaseModel:
    try:
        kind = layouts.index(folder).get("_class_name")
        for family in registry.families().values():
            if kind in family.pipeline_classes:
                return family.describe(folder)
    except ModelError as error:
        said = error.message.replace(str(folder), name).replace(folder.name, name)  # no folder of the cache
        raise ConfigError(said, error.hint, "base_model") from error
    families = ", ".join(family.title for family in registry.families().values())
    raise ConfigError(f"“{name}” is made for {kind}, which is not known here.", f"Known are: {families}.", "base_model")


def _licence(folder: Path) -> dict[str, Any]:
    """What a model's card says about its licence, as fields of a base model; empty if it says nothing."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    said = dict(
        re.findall(r"""^(license|license_name|license_link):\s*["']?([^"'\n]+?)["']?\s*$""", head, re.MULTILINE)
    )
    if "license" not in said:
        return {}
    name = said.get("license_name", "other") if said["license"] == "other" else said["license"]
    link = {"licence_url": said["license_link"]} if said.get("license_link", "").startswith("https://") else {}
    return {"licence": name, "is_commercial": name.lower() in ("apache-2.0", "mit"), **link}
