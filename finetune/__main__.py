"""The command line: `python -m finetune train pictures.zip …`, `serve`, and `work`, which the service starts itself."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import dataset, inputs, registry, runs, settings
from finetune.errors import FinetuneError
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
    run = runs.create(machine.runs)
    found = dataset.unpack(asked.pictures, run)
    print(f"{len(found.images)} pictures, {len(found.ignored)} ignored. Run {run.id}")
    run.write("request.json", request.model_dump(mode="json"))
    executor = registry.executors()["local"]
    executor.check()
    executor.start(run, "train")
    try:
        state = _follow(run, executor)
    except KeyboardInterrupt:
        print("\nStopping after this step. Press Ctrl+C again to leave it running alone.", file=sys.stderr)
        run.ask_to_stop()
        state = _follow(run, executor)
    if state is State.READY:
        _show_results(run, asked.output)
    return EXIT[state]


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
                bar.set_postfix(loss=f"{event['loss']:.3f}")
            elif event["kind"] == "stage" and "done" not in event:
                tqdm.write(event["title"])
            elif event["kind"] in ("warning", "failed"):
                tqdm.write(" ".join(filter(None, (event["kind"].title() + ":", event["message"], event.get("hint")))))
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
    lora = next(run.results.glob("*.safetensors"))
    if output:
        import shutil

        output.parent.mkdir(parents=True, exist_ok=True)
        lora = Path(shutil.copy(lora, output))
    print(f"Ready: {lora}")


def _serve(asked: argparse.Namespace) -> int:
    from finetune.ui import serve

    return serve.main(asked.rest) or 0


def _work(asked: argparse.Namespace) -> int:
    from finetune import worker

    return worker.work(Run(asked.folder.resolve()), asked.task)


if __name__ == "__main__":
    sys.exit(main())
