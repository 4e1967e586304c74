"""What is wrong with a dataset, or could be better, for what was asked: one function for each check.

Pure but for word lists and tokenizers: pictures with what was measured on them, captions and the request go in,
findings come out, the worst first. A check that is often wrong is not asked again, so each one keeps silent in doubt.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from math import ceil, sqrt

from finetune import captions, crops, recipe
from finetune.dataset import intake, texts, tokens, traits, wording
from finetune.dataset.archive import Ignored
from finetune.dataset.edits import EDITED, Change
from finetune.dataset.intake import Dataset, Picture
from finetune.families import BaseModel
from finetune.inputs import Mode, Request
from finetune.plan import Order

SUITABLE_PASSES = {
    Mode.CHARACTER: (30, 150),
    Mode.PRODUCT: (30, 150),
    Mode.STYLE: (15, 100),
    Mode.GENERAL: (10, 100),
}
"""How often each picture should be seen. A subject wants more looks, a style many pictures with fewer. Public trainers
suggest the like: 1000 steps of one picture for 10 to 20 (Replicate), 500 to 4000 for 10 to 30 (ai-toolkit)."""
FEWEST, USUAL = 4, {Mode.STYLE: 10}
USUAL_FEWEST = 6
_ITERATIONS = Request.model_json_schema()["properties"]["iterations"]
LOWEST, HIGHEST = _ITERATIONS["minimum"], _ITERATIONS["maximum"]
SOFT = 0.4
"""Of the detail that the trained size could hold. Measured: sharp emoji have 0.43 or more, those blurred by 2 px 0.26
at most. Of what was enlarged twice it finds few, of three times most, of four times all."""
SMALL, TINY = 0.9, 0.5
"""Of the side of the smallest area that is trained."""
MOST_CUT_OFF = 0.35
ENOUGH_CAPTIONS = 6
SHOWN_LETTERS = 120
ORPHANED = ("no picture of this name lies beside it", "its picture was ignored")
TWIN = "has the same pixels as"


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    PROBLEM = "problem"
    WARNING = "warning"
    HINT = "hint"


@dataclass(frozen=True)
class Finding:
    """One thing to know about a dataset, and which pictures it is about."""

    kind: str
    severity: Severity
    title: str
    words: str
    files: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    """What is to be said of single pictures, by file."""
    names: tuple[str, ...] = ()
    """What the files are called in the ZIP: those of the pictures, or others that were left out."""
    mend: Change | None = None
    """What would put it right."""

    def line(self) -> str:
        """One line of a terminal."""
        more = f" and {len(self.names) - 5} more" if self.names[5:] else ""
        names = f" ({', '.join(self.names[:5])}{more})" if self.names else ""
        return f"{self.severity}: {self.title}{names}. {self.words}"


@dataclass(frozen=True)
class _Look:
    """What a check looks at."""

    pictures: tuple[Picture, ...]
    ignored: tuple[Ignored, ...]
    captions: tuple[str | None, ...]
    request: Request
    base: BaseModel | None

    @cached_property
    def order(self) -> Order | None:
        """What decides sizes; None while the base is not known."""
        return recipe.order(self.request, self.base, len(self.pictures)) if self.base else None

    @property
    def passes(self) -> float:
        """How often training sees a picture, on average: what is repeated counts for what it is."""
        steps = self.request.iterations * recipe.BATCH[self.request.priority]
        return steps / max(1, len(self.pictures))

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The captions as they are trained."""
        mode, trigger = self.request.mode, self.request.trigger_word
        return tuple(captions.trained(text, None, mode, trigger, True) for text in self.captions)

    @cached_property
    def written(self) -> dict[str, str]:
        """The captions that there are, by file, with the trigger word in place of its macro."""
        pairs = zip(self.pictures, self.captions, strict=True)
        trigger = self.request.trigger_word
        return {picture.file: text.replace("[trigger]", trigger) for picture, text in pairs if text}

    def leave_out(self, title: str, files: Sequence[str]) -> Change | None:
        """A change that leaves pictures out; None if that is most of them, for then something else is wrong."""
        return Change(title, excluded=tuple(files)) if len(files) <= len(self.pictures) / 2 else None


def check(found: Dataset, captions: Sequence[str | None], request: Request, base: BaseModel | None) -> list[Finding]:
    """Look for all that is known to spoil a finetune.

    `captions` has an entry for each picture: the words that it is trained with before the trigger word is put in, None
    where nothing describes it (yet). `base` is None while it is not known: what depends on it is then not checked.
    """
    look = _Look(found.images, found.ignored, tuple(captions), request, base)
    name = {picture.file: picture.source for picture in found.images}
    findings = [finding for one in CHECKS if (finding := one(look))]
    named = [replace(one, names=one.names or tuple(name[file] for file in one.files)) for one in findings]
    order = list(Severity)
    return sorted(named, key=lambda finding: order.index(finding.severity))


def passes(found: Dataset, request: Request) -> str:
    """Say how often each picture is seen in training."""
    batch = recipe.BATCH[request.priority]
    times = intake.passes(found, request.iterations, batch)
    more = ", those with repeats more often" if any(one.repeats != 1 for one in found.images) else ""
    seen = f"{times:.0f}" if times >= 3 else f"{times:.1f}"
    pictures = f"Each of the {len(found.images)} pictures" if len(found.images) > 1 else "The picture"
    return f"{pictures} is seen about {seen} times{more}: {request.iterations} steps of {batch}."


def _no_caption(look: _Look) -> Finding | None:
    files = [one.file for one, text in zip(look.pictures, look.captions, strict=True) if not text]
    if not files:
        return None
    plain = captions.plain(look.request.mode, look.request.trigger_word)
    if look.request.captioning:
        words = f"They are described before training starts; where that fails, “{plain}” is trained."
    else:
        words = f"They are trained as “{plain}”, so all that they show becomes part of what the trigger word means."
    needs_words = look.request.mode in (Mode.STYLE, Mode.GENERAL) and not look.request.captioning
    severity = Severity.WARNING if needs_words else Severity.HINT
    return Finding("no_caption", severity, f"{_pictures(files)} without a caption", words, tuple(files))


def _orphan_captions(look: _Look) -> Finding | None:
    names = tuple(one.file for one in look.ignored if one.reason in ORPHANED)
    if not names:
        return None
    words = "They are for no picture that is used. Is a picture missing, or are the names spelled otherwise?"
    return Finding("orphan_captions", Severity.WARNING, "Captions without a picture", words, names=names)


def _shared_caption(look: _Look) -> Finding | None:
    shared = [one for one in look.pictures if any(note.startswith(texts.SHARES) for note in one.notes)]
    shared = [one for one in shared if one.caption_source != EDITED]
    counts = Counter(one.caption_source for one in shared)
    notes = {one.file: f"by {one.caption_source}" for one in shared if counts[one.caption_source] > 1}
    if not notes:
        return None
    words = "Their names differ only in the ending, so one caption file counts for several. Is that meant?"
    return Finding("shared_caption", Severity.WARNING, "One caption for several pictures", words, tuple(notes), notes)


def _twins(look: _Look) -> Finding | None:
    names = tuple(one.file for one in look.ignored if one.reason.startswith(TWIN))
    words = "They have exactly the pixels of another picture and were left out already."
    return Finding("twins", Severity.HINT, "The same picture twice", words, names=names) if names else None


def _near_twins(look: _Look) -> Finding | None:
    ones = [one for one in look.pictures if one.traits and not traits.emptiness(one.traits)]
    ones.sort(key=lambda one: -one.width * one.height * one.traits.get("detail", 1) ** 2)
    like = [(ones[one], ones[best]) for one, best in traits.alike([one.traits for one in ones])]
    if not like:
        return None
    groups: dict[str, list[Picture]] = {}
    for one, best in like:
        groups.setdefault(best.file, [best]).append(one)
    twins = {one.file: f"like {best.source}" for one, best in like}
    notes = {one.file: twins.get(one.file, "the best of them") for group in groups.values() for one in group}
    words = "What they show counts several times and is learned more closely than the rest."
    mend = Change(f"Leave {_pictures(twins)} out and keep the best", excluded=tuple(twins))
    return Finding("near_twins", Severity.WARNING, "Nearly the same pictures", words, tuple(notes), notes, mend=mend)


def _empty(look: _Look) -> Finding | None:
    notes = {one.file: kind for one in look.pictures if (kind := traits.emptiness(one.traits))}
    if not notes:
        return None
    words = "There is nothing to learn from them but an empty picture."
    mend = look.leave_out(f"Leave {_pictures(notes)} out", tuple(notes))
    return Finding("empty", Severity.PROBLEM, "Black, white or empty pictures", words, tuple(notes), notes, mend=mend)


def _soft(look: _Look) -> Finding | None:
    if not look.order:
        return None
    largest, notes = max(look.order.resolutions_px), {}
    for one in look.pictures:
        detail = one.traits.get("detail")
        if detail is not None and not traits.emptiness(one.traits) and detail < SOFT * _scale(one, largest, look.order):
            notes[one.file] = f"as much detail as {one.width * detail:.0f} × {one.height * detail:.0f} px"
    if not notes:
        return None
    words = (
        "They were enlarged or are out of focus, which pixels do not tell apart, and the model learns to be as soft."
    )
    mend = look.leave_out(f"Leave {_pictures(notes)} out", tuple(notes))
    return Finding("soft", Severity.WARNING, "Blurred or enlarged pictures", words, tuple(notes), notes, mend=mend)


def _scale(picture: Picture, resolution_px: int, order: Order) -> float:
    """How much smaller than stored a picture is trained."""
    size = _fit(picture.width, picture.height, resolution_px, order.size.patch_px)
    left, _, right, _ = crops.box(picture.width, picture.height, size)
    return min(1.0, size[0] / (right - left))


@lru_cache(maxsize=4096)
def _fit(width: int, height: int, resolution_px: int, multiple: int) -> tuple[int, int]:
    return crops.fit(width, height, resolution_px, multiple)


def _small(look: _Look) -> Finding | None:
    if not look.order:
        return None
    least = min(look.order.resolutions_px)
    sides = {one.file: sqrt(one.width * one.height) / least for one in look.pictures}
    small = [one for one in look.pictures if sides[one.file] < SMALL]
    if not small:
        return None
    severity = Severity.WARNING if min(sides.values()) < TINY else Severity.HINT
    files, notes = tuple(one.file for one in small), {one.file: f"{one.width} × {one.height} px" for one in small}
    words = f"Training looks at pictures of {least} × {least} px or more. Smaller ones are not enlarged and show less."
    mend = look.leave_out(f"Leave {_pictures(files)} out", files)
    return Finding("small", severity, "Small pictures", words, files, notes, mend=mend)


def _cropped(look: _Look) -> Finding | None:
    if not look.order:
        return None
    lost = {
        one.file: max(_cut_off(one, side, look.order) for side in look.order.resolutions_px) for one in look.pictures
    }
    notes = {file: f"loses {share:.0%}" for file, share in lost.items() if share > MOST_CUT_OFF}
    if not notes:
        return None
    words = "Training cuts so much off their ends. Cut out yourself what matters."
    mend = look.leave_out(f"Leave {_pictures(notes)} out", tuple(notes))
    return Finding("cropped", Severity.WARNING, "Very long pictures", words, tuple(notes), notes, mend=mend)


def _cut_off(picture: Picture, resolution_px: int, order: Order) -> float:
    """The share of a picture that is not trained at a resolution."""
    size = _fit(picture.width, picture.height, resolution_px, order.size.patch_px)
    left, top, right, bottom = crops.box(picture.width, picture.height, size)
    return 1 - (right - left) * (bottom - top) / (picture.width * picture.height)


def _few(look: _Look) -> Finding | None:
    count, usual = len(look.pictures), USUAL.get(look.request.mode, USUAL_FEWEST)
    if count >= usual:
        return None
    severity = Severity.WARNING if count < FEWEST else Severity.HINT
    words = f"{usual} or more, as different as may be, teach better: what all of them share is what is learned."
    return Finding("few", severity, f"Only {_pictures(look.pictures)}", words)


def _rarely_seen(look: _Look) -> Finding | None:
    seen, (least, _) = look.passes, SUITABLE_PASSES[look.request.mode]
    if seen >= least:
        return None
    severity = Severity.PROBLEM if seen < 1 else Severity.WARNING if seen < least / 2 else Severity.HINT
    words = f"{least} times or more are usual here. {_suitable(look)}"
    return Finding("rarely_seen", severity, "Few iterations for so many pictures", words)


def _often_seen(look: _Look) -> Finding | None:
    seen, (_, most) = look.passes, SUITABLE_PASSES[look.request.mode]
    if seen <= most:
        return None
    severity = Severity.WARNING if seen > 2 * most else Severity.HINT
    words = f"Seen more than {most} times, pictures are learned by heart. {_suitable(look)}"
    return Finding("often_seen", severity, "Many iterations for so few pictures", words)


def _suitable(look: _Look) -> str:
    """What would suit so many pictures."""
    once = len(look.pictures) / recipe.BATCH[look.request.priority]
    least, most = (passes * once for passes in SUITABLE_PASSES[look.request.mode])
    if least > HIGHEST:
        return f"Not even {HIGHEST:,} iterations reach that: choose the best pictures."
    if most < LOWEST:
        return f"Even {LOWEST} iterations go beyond that: add pictures."
    low, high = max(LOWEST, ceil(least / 10) * 10), min(HIGHEST, most // 10 * 10)
    return f"For these pictures, {low:,} to {high:,.0f} iterations suit."


def _ordinary_trigger(look: _Look) -> Finding | None:
    trigger = look.request.trigger_word
    if not wording.is_ordinary(trigger):
        return None
    told = "The base model knows it already and would mix what it means with what it learns. Make a word up, like TOK."
    return Finding("ordinary_trigger", Severity.WARNING, f"“{trigger}” is an ordinary word", told)


def _trigger_missing(look: _Look) -> Finding | None:
    own = {one.file: look.written[one.file] for one in look.pictures if one.caption and one.file in look.written}
    trigger = look.request.trigger_word
    files = tuple(file for file, text in own.items() if not captions.names_trigger(text, trigger))
    if not files or len(files) == len(own):  # none of them names it: then it is meant to be put in
        return None
    title = f"{_pictures(files)} without “{trigger}” in the caption"
    words = "The other captions name it. It is put in here by itself, where the mode wants it."
    return Finding("trigger_missing", Severity.HINT, title, words, files)


def _trigger_repeated(look: _Look) -> Finding | None:
    trigger, mode = look.request.trigger_word, look.request.mode
    counts = {file: captions.names_trigger(text, trigger) for file, text in look.written.items()}
    notes = {file: f"{count} times" for file, count in counts.items() if count > 1}
    if not notes:
        return None
    words = "Training keeps the first and removes the others."
    mended = {file: captions.with_trigger(look.written[file], mode, trigger) for file in notes}
    mend = Change("Remove the repetitions", captions=mended)
    return Finding(
        "trigger_repeated", Severity.HINT, f"“{trigger}” more than once", words, tuple(notes), notes, mend=mend
    )


def _too_long(look: _Look) -> Finding | None:
    if not look.base:
        return None
    unread, is_exact = tokens.reader(look.base)
    ends = {one.file: end for one, text in zip(look.pictures, look.trained, strict=True) if (end := unread(text))}
    if not ends:
        return None
    notes = {file: f"not read: “{_shown(end)}”" for file, end in ends.items()}
    trigger = look.request.trigger_word
    loses_trigger = any(captions.names_trigger(end, trigger) for end in ends.values())
    about = "" if is_exact else " (estimated, as its tokenizer is not on this machine yet)"
    words = (
        f"The text encoder of {look.base.title} reads {look.base.text_tokens} tokens{about}; the rest has no effect."
    )
    words += f" With it goes the trigger word “{trigger}”." if loses_trigger else ""
    shortened = {
        file: wording.shortened(look.written[file], look.request, unread) for file in ends if file in look.written
    }
    mend = Change("Shorten them to what is read", captions=shortened) if shortened and all(shortened.values()) else None
    severity = Severity.PROBLEM if loses_trigger else Severity.WARNING
    return Finding("too_long", severity, "Captions longer than what is read", words, tuple(ends), notes, mend=mend)


def _all_equal(look: _Look) -> Finding | None:
    if len(look.written) < FEWEST or not wording.are_equal(look.written.values()):
        return None
    words = "What differs between the pictures has no words of its own then, and all of it becomes the trigger word’s."
    return Finding("all_equal", Severity.WARNING, "All captions are the same", words, tuple(look.written))


def _common_phrase(look: _Look) -> Finding | None:
    texts = look.written
    if len(texts) < ENOUGH_CAPTIONS or wording.are_equal(texts.values()):
        return None
    phrase, count = wording.common_phrase(texts.values(), look.request.trigger_word)
    if not phrase:
        return None
    rest = {file: wording.without(phrase, text) for file, text in texts.items()}
    shorter = {file: text for file, text in rest.items() if text and len(text) < len(texts[file])}
    words = "What every caption says soon belongs to the trigger word, and prompts that do not say it come out weaker."
    mend = Change(f"Remove “{_shown(phrase, 40)}”", captions=shorter) if shorter else None
    title = f"“{_shown(phrase, 60)}” is in {count} of {len(texts)} captions"
    return Finding("common_phrase", Severity.HINT, title, words, tuple(shorter), mend=mend)


def _shown(text: str, letters: int = SHOWN_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[:letters]} …"


def _pictures(some: Sequence[object] | Mapping[str, object]) -> str:
    return "1 picture" if len(some) == 1 else f"{len(some)} pictures"


CHECKS: tuple[Callable[[_Look], Finding | None], ...] = (
    _empty,
    _too_long,
    _rarely_seen,
    _often_seen,
    _few,
    _ordinary_trigger,
    _near_twins,
    _soft,
    _small,
    _cropped,
    _no_caption,
    _all_equal,
    _shared_caption,
    _orphan_captions,
    _common_phrase,
    _trigger_repeated,
    _trigger_missing,
    _twins,
)
"""Among those that matter as much, the order in which they are told."""
