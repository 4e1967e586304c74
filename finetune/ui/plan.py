"""What the panel above the Train button is told: which base model, and how a run would fit this machine.

Separate from the tab, because it is pure: form values go in, words come out. What the machine has was measured by a
process of its own when the service started; a worker measures anew before it trains.
"""

from typing import Any

from finetune import bases, dataset, machine, plan, recipe, registry, weights
from finetune.errors import ConfigError, FinetuneError
from finetune.families import BaseModel
from finetune.machine import Machine
from finetune.plan import Plan, Rung
from finetune.ui import form
from finetune.ui.handlers import Visit
from finetune.ui.live import duration

USUAL_PICTURES = 20
FIELDS = ("base_model", "finetune_type", "priority", "lora_rank", "iterations")
NOTHING = {"base": None, "verdict": "", "rungs": []}


def panel(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """What is known of a run with these values of the form, and of the pictures of the draft `run` if it is given."""
    try:
        base = bases.check(str(asked.get("base_model") or ""))
        request = form.read({"finetune_comment": "-", "mode": "general", **{name: asked.get(name) for name in FIELDS}})
    except ConfigError:  # the field itself says what is wrong
        return NOTHING
    if base is None:
        return {**NOTHING, "verdict": "The worker will look this model up on the Hub, and say then how the run fits."}
    found = machine.read(visit.settings.home)
    about = {"base": _about(base)}
    if found is None:
        return {**about, "verdict": "Measuring this machine …", "rungs": [], "is_measuring": True}
    made = recipe.plan_for(request, base, _pictures(visit, asked.get("run")), found)
    return {
        **about,
        "verdict": _verdict(made, base, found) if made.chosen else "",
        "problem": None if made.chosen else {"message": "This does not fit.", "hint": made.explanation},
        "rungs": [_told(rung, made) for rung in made.rungs],
    }


def _pictures(visit: Visit, id: Any) -> int:
    try:
        return len(dataset.read(visit.run(id)).images)
    except FinetuneError:  # there are none yet
        return USUAL_PICTURES


def _about(base: BaseModel) -> dict[str, str]:
    terms = ["Commercial use is allowed." if base.is_commercial else "Not for commercial use."]
    if not weights.is_present(base):
        size = weights.size_in_words(weights.missing_bytes(base))
        terms.append(f"{size} will be downloaded first.")
        if base.is_gated:
            terms.append("Its licence must be accepted on the Hub, and HF_TOKEN be set where this service runs.")
    return {
        "words": f"{base.title}, licence",
        "licence": base.licence,
        "licence_url": base.licence_url,
        "terms": " ".join(terms),
    }


def _verdict(made: Plan, base: BaseModel, found: Machine) -> str:
    parts = [
        f"Fits: {plan.gib(made.chosen.needs.total)} of {plan.gib(found.free_bytes)} that are free on {found.name}.",
        f"About {duration(60 * made.minutes)}, {plan.gib(made.disk_bytes)} on the disk.",
    ]
    if made.chosen.cost:
        parts.append(f"{made.chosen.cost[0].upper()}{made.chosen.cost[1:]}.")
    if found.is_gpu and base.resolution_px <= recipe.SMALL_PX:
        suggested = next(other for other in registry.base_models().values() if other.download_gib)
        parts.append(f"This machine has a GPU: {suggested.title} draws real pictures.")
    if made.is_text_split:
        parts.append("The text encoder is larger than the free memory, so captions take longer to encode.")
    return " ".join(parts)


def _pace(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _told(rung: Rung, made: Plan) -> dict[str, Any]:
    return {
        "words": plan.short(rung.fit),
        "cost": rung.cost,
        "memory": plan.gib(rung.needs.total),
        "time": f"{_pace(rung.seconds)} a step",
        "fits": rung.needs.total <= made.usable_bytes,
        "is_chosen": rung is made.chosen,
    }
