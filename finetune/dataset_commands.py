"""The commands about datasets: `python -m finetune dataset check`, `caption`, `export`, `keep`, `list` and `remove`.

Each takes pictures from a ZIP, a folder, a run or the shelf. They are worked on in a folder of their own, so that
nothing that is there already changes, but for what `keep` and `remove` are asked to do.
"""

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import (
    bases,
    captioners,
    captions,
    dataset,
    descriptions,
    inputs,
    options,
    owners,
    registry,
    runs,
    settings,
    shelf,
)
from finetune.dataset import checks, exchange, export
from finetune.dataset.checks import Severity
from finetune.dataset.export import Layout
from finetune.dataset.intake import Picture
from finetune.errors import ConfigError, FinetuneError, MissingError
from finetune.executors import Executor
from finetune.inputs import Mode, Request
from finetune.owners import AT_HOME
from finetune.runs import Run
from finetune.settings import Settings

PICTURES = "a ZIP, a folder, a run’s id, or the name of a dataset that was kept (name@hash for one of its versions)"
CHECKED = ("mode", "trigger_word", "captioning", "iterations", "priority", "finetune_type", "base_model")
"""Fields of the request on which it depends what is wrong with pictures."""
GROUND = {"choices": dataset.GROUNDS, "default": "white", "help": "what lies under transparent parts (default: white)"}
LONGEST_NAME = 60
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Opened:
    """Pictures to work on."""

    run: Run
    name: str
    """What to call them."""
    source: str
    """Where they are from, in words."""
    request: Request | None = None
    """How they are trained, if they are those of a run."""


def add(commands: Any) -> None:
    """Add the command `dataset` with all that belongs to it."""
    parser = commands.add_parser("dataset", help="check, describe, export and keep pictures")
    deeds = parser.add_subparsers(required=True, metavar="WHAT")

    check = _with_pictures(deeds, "check", _check, "say what becomes of each file, and what is wrong with the pictures")
    options.add(check, CHECKED)
    check.add_argument("--json", action="store_true", help="print all that is known as JSON")

    caption = _with_pictures(deeds, "caption", _caption, "describe the pictures that have no caption")
    options.add(caption, ("mode", "trigger_word", "base_model", "captioner"))
    caption.add_argument(
        "--output",
        type=Path,
        help="a ZIP, or a folder, in which captions that are there already stay (default: NAME-captions.zip)",
    )

    exported = _with_pictures(deeds, "export", _export, "write pictures and captions as other trainers read them")
    exported.description = (
        "Writes the pictures as they are trained: upright RGB of at most 2048 px a side, as PNG. The files that were "
        "uploaded are not kept. Captions of a run are those it is trained with; others have the trigger word in them "
        "if --trigger-word is given."
    )
    exported.add_argument("output", type=Path, help="a ZIP, or a folder that is empty or not there yet")
    exported.add_argument(
        "--format",
        type=Layout,
        choices=list(Layout),
        default=Layout.PLAIN,
        help="plain: a .txt beside each picture; kohya: the same in folders such as 10_name, with repeats; "
        "hf: captions in metadata.jsonl (default: plain)",
    )
    options.add(exported, ("mode", "trigger_word"))

    keep = _with_pictures(deeds, "keep", _keep, "keep pictures under a name, to be used again")
    keep.add_argument("name", help="any words; another content under the same name is a new version of it")

    listed = deeds.add_parser("list", help="show the datasets that are kept, with their versions")
    listed.set_defaults(command=_list)

    remove = deeds.add_parser("remove", help="delete a dataset, or with name@hash one version; runs stay as they are")
    remove.add_argument("name")
    _add_owner(remove)
    remove.set_defaults(command=_remove)


@contextmanager
def opened(here: Settings, asked: argparse.Namespace) -> Iterator[Opened]:
    """Pictures in a folder of their own, which is gone afterwards. Raises: FinetuneError when there are none."""
    here.make_home()
    with tempfile.TemporaryDirectory(dir=here.home, prefix="dataset-", ignore_cleanup_errors=True) as folder:
        run = runs.create(Path(folder))
        yield fill(here, run, asked.pictures, asked.owner, asked.ground)


def fill(here: Settings, run: Run, asked: str, owner: str = "", ground: str = "white") -> Opened:
    """Put pictures of a ZIP, a folder, another run or the shelf into a run that has none. Raises: FinetuneError."""
    path = Path(asked)
    if asked and path.exists():
        unpack([path], run, ground)
        name = path.resolve().name
        return Opened(run, name.removesuffix(path.suffix) if path.is_file() else name, name)
    if _is_id(asked):
        other = owners.find(here, asked, AT_HOME)
        shelf.share(other, run)
        request = other.request()
        name = request.finetune_comment if request else "draft"
        return Opened(run, name, f"the finetune {name}" if request else "an upload", request)
    try:
        kept = shelf.find(here, AT_HOME, asked, owner)
    except MissingError as error:
        if path.suffix.lower() == ".zip" or path.parent != Path():
            dataset.files([path])  # raises in its own words
        raise MissingError(f"There is no file, run or dataset “{asked}”.", error.hint) from error
    shelf.use(kept, run)
    return Opened(run, kept.name, kept.label)


def unpack(paths: Sequence[Path], run: Run, ground: str) -> None:
    """Put the pictures of a ZIP, a folder or files into a run, and show how far that is. Raises: FinetuneError."""
    upload = dataset.files(paths)
    with _bar("Reading the pictures") as reach:
        dataset.unpack(upload, run, reach, ground=ground)


def describe(run: Run, executor: Executor) -> bool:
    """Let a worker describe the pictures of a draft, and show how far it is; returns whether it could.

    Who interrupts that has what was described so far. Raises: ExecutorError when there is no worker.
    """
    cursor, is_running, is_well = 0, True, True
    executor.start(run, "caption")
    try:
        with _bar("Describing the pictures") as reach:
            while is_running:
                is_running = executor.is_running(run)
                events, cursor = run.events(cursor)
                for event in events:
                    is_well = is_well and event["kind"] != "caption_failed"
                    if event["kind"] == "caption_progress":
                        reach(event["done"], event["of"], event["title"], event.get("unit", ""))
                    elif event["kind"] in ("warning", "caption_failed"):
                        print(event["message"], event.get("hint", ""), file=sys.stderr)
                time.sleep(SECONDS_BETWEEN_LOOKS * is_running)
    except KeyboardInterrupt:
        print("\nStopped. What was described so far is taken.", file=sys.stderr)
        return False
    finally:
        executor.stop(run)
    return is_well


def _with_pictures(deeds: Any, name: str, command: Any, help: str) -> argparse.ArgumentParser:
    parser = deeds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.add_argument("pictures", help=PICTURES)
    parser.add_argument("--ground", **GROUND)
    _add_owner(parser)
    parser.set_defaults(command=command)
    return parser


def _add_owner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--owner", default="", help="whose dataset, where people sign in")


def _check(asked: argparse.Namespace) -> int:
    with opened(settings.read(), asked) as found:
        request = _request(found, asked)
        known = dataset.read(found.run)
        words = _words(found.run, known.images, request)
        findings = checks.check(known, words, request, bases.check(request.base_model))
        passes = checks.passes(known, request)
        if asked.json:
            lists = {"report": known.report(), "findings": findings}
            told = {name: [asdict(one) for one in some] for name, some in lists.items()}
            about = {"name": found.name, "hash": dataset.content_hash(found.run), "passes": passes}
            print(json.dumps({**about, **told, **known.as_dict()}, indent=1, ensure_ascii=False))
        else:
            _print_report(found.name, known)
            print(*[one.line() for one in findings], passes, sep="\n")
    return int(any(one.severity is Severity.PROBLEM for one in findings))


def _print_report(name: str, known: dataset.Dataset) -> None:
    report = known.report()
    ignored = sum(row.count for row in report if row.what == "ignored")
    print(f"{name}: {_count(len(known.images), 'picture')}, {_count(ignored, 'file')} ignored.")
    for row in report:
        print(f"  {row.what:9} {row.file}" + (f": {row.words}" if row.words else ""))
    for text in known.warnings:
        print(text)


def _caption(asked: argparse.Namespace) -> int:
    if "mode" not in options.given(asked):
        hint = f"Give --mode and one of: {', '.join(Mode)}. `train --help` says what each describes."
        raise ConfigError("Descriptions differ by what the pictures are to teach.", hint, "mode")
    executor = registry.executors()["local"]
    executor.check()
    with opened(settings.read(), asked) as found:
        request = _request(found, asked)
        bases.check(request.base_model)
        captioners.admit(request.captioner, AT_HOME.owns_machine)
        images, is_well = dataset.read(found.run).images, True
        if None in _words(found.run, images, request):
            asking = request.model_dump(mode="json", include={"mode", "base_model", "captioner"})
            found.run.write("draft.json", asking)
            is_well = describe(found.run, executor)
        silent = _words(found.run, images, request).count(None)
        output = asked.output or Path(f"{_file_name(found.name)}-captions.zip")
        made = export.caption_files(images, _captions(found, images, request, asked))
        count = export.write(made if export.is_zip(output) else export.within(output, made), output)
    rest = f"; {_count(silent, 'picture')} could not be described" if silent else ""
    print(f"{_count(count, 'caption')} written to {output}{rest}.")
    return int(not is_well or silent > 0)


def _export(asked: argparse.Namespace) -> int:
    output = asked.output
    if not export.is_zip(output) and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FinetuneError(f"{output} is there already.", "Name a ZIP, or a folder that is empty or not there yet.")
    with opened(settings.read(), asked) as found:
        images = dataset.read(found.run).images
        texts = _captions(found, images, _request(found, asked), asked)
        made = export.files(found.run.images, images, texts, asked.format, _file_name(found.name))
        export.write(made, output)
    captioned = sum(text is not None for text in texts)
    print(f"{_count(len(images), 'picture')} and {_count(captioned, 'caption')} written to {output}.")
    return 0


def _keep(asked: argparse.Namespace) -> int:
    here = settings.read()
    with opened(here, asked) as found:
        kept = shelf.keep(here, found.run, asked.name, AT_HOME, found.source)
    print(f"{kept.label} is kept: {_count(kept.pictures, 'picture')}.")
    return 0


def _list(asked: argparse.Namespace) -> int:
    for versions in shelf.by_name(shelf.of(settings.read(), AT_HOME)):
        for kept in versions:
            owner = [] if kept.owner == AT_HOME.name else [f"owned by {kept.owner}"]
            print(
                kept.label, _count(kept.pictures, "picture"), kept.created[:16], f"from {kept.source}", *owner, sep="  "
            )
    return 0


def _remove(asked: argparse.Namespace) -> int:
    for kept in shelf.matching(settings.read(), AT_HOME, asked.name, asked.owner):
        shelf.remove(kept)
        print(f"{kept.label} is deleted.")
    return 0


def _request(found: Opened, asked: argparse.Namespace) -> Request:
    """How pictures are trained: as the options say, else as their run, else in general."""
    usual = {"finetune_comment": "-", "mode": Mode.GENERAL}
    known = found.request.model_dump(mode="json") if found.request else usual
    return inputs.read({**known, **options.given(asked)})


def _words(run: Run, images: Sequence[Picture], request: Request) -> list[str | None]:
    """What is said of each picture, by a person or else by a captioner, without the trigger word."""
    said = descriptions.said(run, request.mode) if request.captioning else {}
    return [said.get(one.file) if one.caption is None else one.caption for one in images]


def _captions(
    found: Opened, images: Sequence[Picture], request: Request, asked: argparse.Namespace
) -> list[str | None]:
    """What is written: captions as they are trained if the trigger word is known, else what is said of each picture."""
    words = _words(found.run, images, request)
    if not found.request and "trigger_word" not in options.given(asked):
        return [text or None for text in words]
    return [captions.trained(text or None, None, request.mode, request.trigger_word, True) for text in words]


@contextmanager
def _bar(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar, on a terminal alone; what it gives is told how far it is, and of what if that changes."""
    from tqdm import tqdm

    with tqdm(desc=title, disable=None, leave=False) as bar:

        def reach(done: int, of: int, title: str = title, unit: str = "") -> None:
            bar.n, bar.total, bar.desc, bar.unit_scale = done, of, f"{title}: ", unit == "bytes"
            bar.refresh()

        yield reach


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _file_name(name: str) -> str:
    """A name as every system takes it for a file."""
    return exchange.unpacked_name(name.replace("/", "-")[:LONGEST_NAME])


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
