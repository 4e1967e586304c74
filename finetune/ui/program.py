"""The panel “Use it from a program”: what the form holds, as programs to copy, and the keys that programs need."""

from typing import Any

from finetune import keys, owners
from finetune.api import callers, examples
from finetune.api.callers import Mode
from finetune.errors import DeniedError
from finetune.inputs import Request
from finetune.owners import Caller
from finetune.ui.handlers import Visit

NO_KEY = "No key is needed here, because this service asks nobody who they are."
ASK_FOR_ONE = "Programs need a key. Whoever runs this service can give you one."
OWN = "Programs need a key. One that you make here speaks for you."


def panel(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Programs with the values of the form, for the address `root` that the browser has; and the keys of who asks."""
    values = {name: asked.get(name) for name in Request.model_fields}
    if isinstance(lines := values["sample_prompts"], str):
        values["sample_prompts"] = [line.strip() for line in lines.splitlines() if line.strip()]
    is_free = callers.mode(visit.settings) is Mode.AT_HOME
    key = "" if is_free else examples.KEY
    programs = examples.write(str(asked.get("root") or "").rstrip("/"), values, key)
    return {"programs": programs, "placeholder": key, **_keys(visit)}


def make_key(visit: Visit, asked: Any = None) -> dict[str, Any]:
    """Make a key for who asks. Its text is in this answer, and nowhere else. Raises: DeniedError."""
    caller = visit.somebody()
    if not _may_make(visit, caller):
        raise DeniedError("Keys are not made here.", _words(visit, caller))
    # Rights that somebody has by their name stay with the name: whoever loses them there loses them with every key.
    has_by_name = owners.person(visit.settings, caller.name).owns_machine
    key = keys.new(visit.settings, caller.name, caller.owns_machine and not has_by_name)
    return {"key": key, **_keys(visit)}


def revoke_key(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """End a key of who asks. Raises: MissingError, FinetuneError."""
    keys.revoke(visit.settings, str(asked.get("id") or ""), visit.somebody())
    return _keys(visit)


def _keys(visit: Visit) -> dict[str, Any]:
    caller = visit.somebody()
    if not _may_make(visit, caller):
        return {"words": _words(visit, caller), "may_make": False, "keys": []}
    own = [{"id": key.id, "created": key.created} for key in keys.of(visit.settings, caller.name)]
    return {"words": _words(visit, caller), "may_make": True, "keys": own}


def _may_make(visit: Visit, caller: Caller) -> bool:
    """Only who has a name: where nobody is asked for one, the first key would close the service to all others."""
    return callers.mode(visit.settings) is not Mode.AT_HOME and not caller.is_visitor


def _words(visit: Visit, caller: Caller) -> str:
    if callers.mode(visit.settings) is Mode.AT_HOME:
        return NO_KEY
    return ASK_FOR_ONE if caller.is_visitor else OWN
