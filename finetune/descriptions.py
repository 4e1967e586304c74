"""What captioners said of a run's pictures, and the captions that are trained with it.

Kept in the run folder as descriptions.json, so that nothing is described twice: the page asks while the run is still a
draft, the worker once more for what is missing. What was said of the same pixels before, to the same owner, by the same
captioner and instruction, is found under FINETUNE_HOME/captions; nobody learns there what another owner has.
"""

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import filelock
from PIL import Image

from finetune import captioners, captions, dataset, instructions, settings
from finetune.captioners import Answer, Captioner, LoadedCaptioner
from finetune.dataset import Picture
from finetune.errors import CaptionError, FinetuneError, ModelError
from finetune.families import BaseModel
from finetune.inputs import Mode, visible
from finetune.runs import Run
from finetune.weights import Progress

STORED, LOCK = "descriptions.json", "descriptions.lock"
BESIDE = ("leaks", "failed", "by")
"""Beside the modes, each of which holds texts by picture: by mode and picture, the words that say what the trigger word
is to stand for; why there is no text; and which captioner was asked for."""
LONGEST_WORDS = 80
WORDS_PER_TOKEN = 0.6
"""Of English in the encoders' tokenizers, with room for the trigger word."""
SILENT_AT_MOST = 5
"""How many pictures a captioner may have nothing to say of, from the first one on, before it is given up."""
KEPT_DAYS = 30.0


@dataclass(frozen=True)
class Wish:
    """Whom to ask, and how."""

    mode: Mode
    base: BaseModel
    trigger: str = ""
    captioner: str = ""
    """An id; empty for the one that suits."""
    device: str = "cpu"
    free_bytes: int = 2**62

    @property
    def longest_words(self) -> int:
        """How long a caption may be for the base to read all of it."""
        return max(8, min(LONGEST_WORDS, int(self.base.text_tokens * WORDS_PER_TOKEN)))


def describe(run: Run, wish: Wish, progress: Callable[[int, int], None], fetching: Progress) -> None:
    """Let a captioner describe pictures that have no caption, and keep what it says, one by one.

    A picture that it has no words for is told of and left without. What `progress` raises ends it between pictures.
    Raises: ConfigError when there is no such captioner, ModelError when it cannot be loaded or says nothing at all.
    """
    missing = silent(dataset.read(run).images, _said_by(run, wish))
    able = captioners.suited(wish.captioner, wish.base, wish.device, wish.free_bytes) if missing else []
    if not able:
        return
    progress(0, len(missing))
    kept = _Kept(run)
    new = []
    for picture in missing:
        if text := kept.find(_key(run, picture, able[0], wish)):
            _hear(run, wish, picture, text)
        else:
            new.append(picture)
    progress(len(missing) - len(new), len(missing))
    if not new:
        return
    captioner, loaded = _loaded(able, wish, fetching)
    try:
        heard = len(new) < len(missing)
        for done, (picture, text) in enumerate(_described(loaded, run, new, wish), start=1):
            if isinstance(text, CaptionError):
                _miss(run, wish, picture, text)
                if done == SILENT_AT_MOST and not heard:
                    raise _given_up(captioner)
            else:
                heard = True
                _hear(run, wish, picture, text)
                kept.keep(_key(run, picture, captioner, wish), text)
            progress(len(missing) - len(new) + done, len(missing))
    finally:
        loaded.release()


def said(run: Run, mode: Mode) -> dict[str, str]:
    """What was said of a run's pictures for a mode, by file."""
    return run.read(STORED).get(mode, {})


def leaks(run: Run, mode: Mode) -> dict[str, list[str]]:
    """By file, the words of its description that say what the trigger word is to stand for."""
    return run.read(STORED).get("leaks", {}).get(mode, {})


def failures(run: Run, mode: Mode) -> dict[str, str]:
    """By file, why it could not be described."""
    return run.read(STORED).get("failed", {}).get(mode, {})


def silent(pictures: Sequence[Picture], known: Mapping[str, str]) -> list[Picture]:
    """The pictures that a captioner has to describe: without a caption of their own, and not described yet."""
    return [picture for picture in pictures if picture.caption is None and picture.file not in known]


def keep(run: Run, mode: Mode, texts: Mapping[str, str]) -> None:
    """Add descriptions of pictures for a mode, by file."""
    _change(run, mode, texts)


def forget(run: Run, mode: Mode, files: Collection[str]) -> None:
    """Forget what was said of some pictures for a mode, so that they are described anew."""
    _change(run, mode, dict.fromkeys(files))


def trained_captions(run: Run, pictures: Sequence[Picture]) -> list[str]:
    """The caption of each picture as it is trained."""
    request = run.request()
    known = said(run, request.mode)
    return [
        captions.trained(p.caption, known.get(p.file), request.mode, request.trigger_word, request.captioning)
        for p in pictures
    ]


def _said_by(run: Run, wish: Wish) -> dict[str, str]:
    """What was said by whom is wished for, or by somebody of whom it is not known."""
    by = run.read(STORED).get("by", {}).get(wish.mode, {})
    return {file: text for file, text in said(run, wish.mode).items() if by.get(file, wish.captioner) == wish.captioner}


def _hear(run: Run, wish: Wish, picture: Picture, text: str) -> None:
    """Write a description down, with the words in it that should not be."""
    leaking = instructions.leaks(text, wish.mode, wish.trigger)
    _change(run, wish.mode, {picture.file: text}, leaks=leaking or None, by=wish.captioner)
    run.tell("caption", file=picture.file, text=text, **({"leaks": leaking} if leaking else {}))


def _miss(run: Run, wish: Wish, picture: Picture, error: CaptionError) -> None:
    """Write down why a picture has no description."""
    _change(run, wish.mode, {picture.file: None}, failed=str(error))
    run.tell("warning", message=f"{picture.source} was not described. {error.message}", hint=error.hint)


def _given_up(captioner: Captioner) -> ModelError:
    return ModelError(
        f"{captioner.title} had no words for the first {SILENT_AT_MOST} pictures and was given up.",
        "Choose another captioner, or write the captions yourself.",
    )


def _change(run: Run, mode: Mode, texts: Mapping[str, str | None], **beside: Any) -> None:
    """Put texts, and what is known beside them, in the place of all that is known of some pictures for a mode.

    The page forgets while a captioner writes, so each does it on what is there.
    """
    with filelock.FileLock(run.folder / LOCK):
        everything = run.read(STORED)
        for file, text in texts.items():
            for about, value in ((everything, text), *((everything.setdefault(n, {}), beside.get(n)) for n in BESIDE)):
                about.setdefault(mode, {}).pop(file, None)
                if value is not None:
                    about[mode][file] = value
        run.write(STORED, {name: about for name, about in everything.items() if any(about.values())})


class _Kept:
    """What was said to the owner of a run before, by what it was said of. Of a run that lies elsewhere, as it does on
    another machine, nothing is kept."""

    def __init__(self, run: Run) -> None:
        here = settings.read()
        self._is_used = run.folder.parent == here.runs
        self._folder = here.home / "captions" / hashlib.sha256(run.owner.encode()).hexdigest()[:16]
        for path in self._folder.glob("*.txt") if self._is_used else ():
            if time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
                path.unlink(missing_ok=True)

    def find(self, key: str) -> str:
        """The text of a key; empty if there is none."""
        if not self._is_used:
            return ""
        path = self._folder / f"{key}.txt"
        try:
            os.utime(path)
            return path.read_text(encoding="utf-8")
        except OSError:
            return ""

    def keep(self, key: str, text: str) -> None:
        """Write a text down; where that fails, it is asked for again the next time."""
        if not self._is_used:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f"{key}.{os.getpid()}.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, self._folder / f"{key}.txt")


def _key(run: Run, picture: Picture, captioner: Captioner, wish: Wish) -> str:
    """What a description depends on: the picture's content, who is asked what, and how long it may be."""
    about = (
        f"{captioner.id} {captioner.revision(wish.base)} {instructions.fingerprint(wish.mode)} {wish.longest_words} "
    )
    return hashlib.sha256(about.encode() + (run.images / picture.file).read_bytes()).hexdigest()


def _loaded(able: Sequence[Captioner], wish: Wish, fetching: Progress) -> tuple[Captioner, LoadedCaptioner]:
    """The first of the captioners that can be loaded. Raises: what the first of them did, when none can."""
    first: FinetuneError | None = None
    for captioner in able:
        try:
            return captioner, captioner.load(wish.base, wish.device, wish.free_bytes, fetching)
        except ModelError as error:
            first = first or error
    raise first or AssertionError("there was no captioner")


def _described(
    loaded: LoadedCaptioner, run: Run, pictures: Sequence[Picture], wish: Wish
) -> Iterator[tuple[Picture, str | CaptionError]]:
    """What is said of each picture, as many at a time as the captioner takes."""
    place = 0
    while place < len(pictures):
        some = pictures[place : place + loaded.at_once]
        yield from zip(some, _asked(loaded, run, some, wish), strict=True)
        place += len(some)


def _asked(loaded: LoadedCaptioner, run: Run, some: Sequence[Picture], wish: Wish) -> list[str | CaptionError]:
    """What is said of some pictures; where they fail together, of each alone."""
    try:
        images = [_opened(run, picture) for picture in some]
        answers = loaded.describe(images, wish.mode, instructions.words(wish.mode))
        return [_settled(loaded, image, answer, wish) for image, answer in zip(images, answers, strict=True)]
    except CaptionError as error:
        if len(some) == 1:
            return [error]
    return [text for picture in some for text in _asked(loaded, run, [picture], wish)]


def _settled(loaded: LoadedCaptioner, image: Image.Image, answer: Answer, wish: Wish) -> str | CaptionError:
    """The caption in an answer, asked for once more where it says what it must not."""
    text = instructions.tidied(answer.text, wish.longest_words, answer.is_cut)
    leaking = instructions.leaks(text, wish.mode, wish.trigger)
    if leaking and loaded.listens:
        again = loaded.describe([image], wish.mode, instructions.words(wish.mode, leaking))[0]
        second = instructions.tidied(again.text, wish.longest_words, again.is_cut)
        if second and len(instructions.leaks(second, wish.mode, wish.trigger)) < len(leaking):
            text = second
    if not text:
        said = visible(answer.text)[:60]
        return CaptionError(f"The captioner had nothing to say (it said “{said}”).", "Write the caption yourself.")
    return instructions.without_leaks(text, wish.mode, wish.trigger)


def _opened(run: Run, picture: Picture) -> Image.Image:
    try:
        with Image.open(run.images / picture.file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise CaptionError("Its file cannot be read.", "Drop the pictures again.", picture.file) from error
