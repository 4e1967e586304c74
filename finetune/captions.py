"""The words of a finetune: how a caption names what is learned, and which prompts show it.

Pure text, separate from the captioners, so that the page shows captions exactly as they will be trained.
"""

import re

from finetune.inputs import Mode

PLAIN = {
    Mode.GENERAL: "a picture of {trigger}",
    Mode.CHARACTER: "a picture of {trigger}",
    Mode.STYLE: "a picture in the style of {trigger}",
    Mode.PRODUCT: "a picture of {trigger}",
}
WITH_TRIGGER = {
    Mode.GENERAL: "{trigger}, {caption}",
    Mode.CHARACTER: "{trigger}, {caption}",
    Mode.STYLE: "{caption} in the style of {trigger}",
    Mode.PRODUCT: "{trigger}, {caption}",
}


def plain(mode: Mode, trigger: str) -> str:
    """The caption of a picture about which nothing is known."""
    return PLAIN[mode].format(trigger=trigger)


def with_trigger(caption: str, mode: Mode, trigger: str) -> str:
    """Make a caption name the trigger word exactly once, where the mode wants it if it is missing.

    The macro `[trigger]` in a caption stands for the word; repetitions after the first are removed.
    """
    caption = " ".join(caption.replace("[trigger]", trigger).split()).rstrip(" .,;")
    if not caption:
        return plain(mode, trigger)
    found = list(_word(trigger).finditer(caption))
    if not found:
        return WITH_TRIGGER[mode].format(caption=caption, trigger=trigger)
    first = found[0]
    rest = _word(trigger).sub("", caption[first.end() :])
    return " ".join((caption[: first.start()] + trigger + rest).split())


def trained(caption: str | None, description: str | None, mode: Mode, trigger: str, captioning: bool) -> str:
    """The caption that a picture is trained with: its own, else the captioner's description, else the plain one.

    An empty caption of its own asks for the plain one.
    """
    text = caption if caption is not None else description if captioning else None
    return with_trigger(text, mode, trigger) if text else plain(mode, trigger)


def for_any_trigger(text: str, trigger: str) -> str:
    """A caption in which the macro `[trigger]` stands for the word, so that it follows when that changes."""
    return _word(trigger).sub("[trigger]", text)


def names_trigger(text: str, trigger: str) -> int:
    """How often a text names the trigger word, as a word of its own and in any case."""
    return len(_word(trigger).findall(text))


def _word(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def sample_prompts(
    mode: Mode, trigger: str, trained: list[str], asked: tuple[str, ...], unseen: tuple[str, ...], count: int
) -> list[str]:
    """What to draw during training.

    What was asked for, with the trigger word where it is missing; else `count` prompts, half of them captions of the
    dataset and, for a style, the others things that it does not show (`unseen`, from the base model), else the subject
    in the mode's plain words.
    """
    if asked:
        return [prompt if names_trigger(prompt, trigger) else with_trigger(prompt, mode, trigger) for prompt in asked]
    prompts = list(dict.fromkeys(trained))[: count // 2]
    if mode is Mode.STYLE:
        prompts += [with_trigger(thing, mode, trigger) for thing in unseen][: count // 2]
    elif plain(mode, trigger) not in prompts:
        prompts.append(plain(mode, trigger))
    return prompts
