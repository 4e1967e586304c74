"""The command line: `python -m finetune train pictures.zip …`, `serve`, and `work`, which the service starts itself."""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import dataset, inputs, registry, runs, settings
from finetune.errors import DatasetError, FinetuneError
from finetune.executors import Executor
from finetune.runs import Run, State

EXIT = {State.READY: 0, State.STOPPED: 3, State.FAILED: 1}
HIDDEN = ("webhook_url", "webhook_secret")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the user go to standard error, without a traceback."""
    asked = _parser().parse_args(arguments)
    try:
        return asked.command(asked)
    except FinetuneError as error:
        print(f"Error: {error.message}", *([error.hint] if error.hint else []), sep="\n", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune", description="Fine-tune FLUX image models into LoRAs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a LoRA from a ZIP of pictures and wait for it")
    train.add_argument("pictures", type=Path, help="ZIP of pictures and, if you have them, captions")
    train.add_argument("--output", type=Path, help="copy the finished LoRA here (a file or a folder)")
    for name, field in inputs.Request.model_fields.items():
        if name not in HIDDEN:
            _add_option(train, name, field)
    train.set_defaults(command=_train)

    serve = commands.add_parser("serve", help="start the page and the REST service")
    serve.add_argument("rest", nargs=argparse.REMAINDER, help="options of app.py: --host, --port, --share, --auth")
    serve.set_defaults(command=_serve)

    work = commands.add_parser("work", help="do the work of one run folder (the service starts this)")
    work.add_argument("folder", type=Path)
    work.add_argument("--task", choices=("train", "caption"), default="train")
    work.set_defaults(command=_work)
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, field: Any) -> None:
    """Derive an option from a field of the request; values are checked by the request itself."""
    schema = inputs.Request.model_json_schema()["properties"][name]
    flag = f"--{name.replace('_', '-')}"
    default = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
    text = (field.description + default).replace("%", "%%")
    common: dict[str, Any] = {"dest": name, "help": text, "default": argparse.SUPPRESS}
    if schema.get("type") == "boolean":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif schema.get("type") == "array":
        parser.add_argument(flag, action="append", metavar="TEXT", **common)
    elif name == "finetune_comment":
        parser.add_argument(flag, "--name", metavar="TEXT", **common)
    else:
        parser.add_argument(flag, metavar="VALUE", **common)


def _train(asked: argparse.Namespace) -> int:
    fields = inputs.Request.model_fields
    values = {name: value for name, value in vars(asked).items() if name in fields}
    values.setdefault("finetune_comment", asked.pictures.stem)
    if "lora_rank" in values and values["lora_rank"].isdigit():
        values["lora_rank"] = int(values["lora_rank"])
    request = inputs.read(values)
    registry.base_model(request.base_model)
    machine = settings.read()
    executor = registry.executors()["local"]
    executor.check()
    run = _unpacked(asked.pictures, machine.runs)
    run.write("request.json", request.model_dump(mode="json"))
    executor.start(run, "train")
    state = _follow_or_stop(run, executor)
    if state is State.READY:
        _show_results(run, asked.output)
    return EXIT[state]


def _unpacked(pictures: Path, runs_folder: Path) -> Run:
    """A new run with the pictures of a ZIP; a ZIP that cannot be used leaves no run behind."""
    if not pictures.is_file():
        raise DatasetError(f"There is no file “{pictures}”.", "Give the path of a ZIP of pictures.", str(pictures))
    run = runs.create(runs_folder)
    try:
        found = dataset.unpack(pictures, run)
    except FinetuneError:
        runs.discard(run)
        raise
    print(f"{len(found.images)} pictures, {len(found.ignored)} ignored. Run {run.id}")
    for text in [*(f"{one.file} {one.reason}" for one in found.ignored), *found.warnings]:
        print(f"  {text}")
    return run


def _follow_or_stop(run: Run, executor: Executor) -> State:
    """Wait for a run's end; Ctrl+C asks it to stop, and once more leaves it alone. Raises: FinetuneError then."""
    try:
        return _follow(run, executor)
    except KeyboardInterrupt:
        print("\nStopping after this step. Press Ctrl+C again to leave it running alone.", file=sys.stderr)
        run.ask_to_stop()
    try:
        return _follow(run, executor)
    except KeyboardInterrupt:
        raise FinetuneError("The run is still stopping, on its own.", f"It is in {run.folder}.") from None


def _follow(run: Run, executor: Executor) -> State:
    """Show a run's events as a progress bar until it is over."""
    from tqdm import tqdm

    bar, cursor, seen = None, 0, []
    while True:
        is_running = executor.is_running(run)
        events, cursor = run.events(cursor)
        for event in events:
            if event["kind"] == "step":
                bar = bar or tqdm(total=event["of"], unit="step", desc="Training")
                bar.n = event["step"]
                bar.set_postfix(loss="not a number" if event["loss"] is None else f"{event['loss']:.3f}")
            elif event["kind"] == "stage" and "done" not in event:
                tqdm.write(event["title"])
            elif event["kind"] in ("warning", "failed"):
                words = (event["kind"].title() + ":", event["message"], event.get("hint"))
                tqdm.write(" ".join(filter(None, words)), file=sys.stderr)
        seen += [event for event in events if event["kind"] != "step"]
        state = runs.state_after(seen)
        if state.is_over or not is_running:
            if bar:
                bar.close()
            break
        time.sleep(0.5)
    if not state.is_over:
        print(f"The worker is gone without a word; its last lines are in {run.worker_log}.", file=sys.stderr)
        return State.FAILED
    return state


def _show_results(run: Run, output: Path | None) -> None:
    """Say where the LoRA is, copied to a file or folder if that was asked for. Raises: FinetuneError."""
    lora = next(run.results.glob("*.safetensors"))
    try:
        print(f"Ready: {_copied(lora, output) if output else lora}")
    except OSError as error:
        raise FinetuneError(f"It cannot be copied to {output}: {error.strerror}.", f"It is ready in {lora}.") from error


def _copied(lora: Path, output: Path) -> Path:
    target = output if output.suffix == lora.suffix and not output.is_dir() else output / lora.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(lora, target))


def _serve(asked: argparse.Namespace) -> int:
    from finetune.ui import serve

    return serve.main(asked.rest) or 0


def _work(asked: argparse.Namespace) -> int:
    from finetune import worker

    return worker.work(Run(asked.folder.resolve()), asked.task)


if __name__ == "__main__":
    sys.exit(main())
