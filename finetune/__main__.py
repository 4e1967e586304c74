"""The command line: `python -m finetune train pictures.zip …`, `serve`, and `work`, which the service starts itself."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from finetune import (
    bases,
    dataset,
    dataset_commands,
    inputs,
    keys,
    machine,
    options,
    owners,
    plan,
    publish,
    recipe,
    registry,
    runs,
    settings,
    shelf,
)
from finetune.errors import ConfigError, FinetuneError
from finetune.executors import Executor
from finetune.inputs import FinetuneType, Priority, Request
from finetune.machine import Machine
from finetune.runs import Run, State
from finetune.settings import Settings

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

    train = commands.add_parser("train", help="train a LoRA from pictures and wait for it")
    train.add_argument(
        "pictures", type=Path, nargs="*", help="a ZIP, a folder, or files: pictures and, if you have them, captions"
    )
    train.add_argument("--ground", **dataset_commands.GROUND)
    train.add_argument("--dataset", metavar="NAME", help="instead: a dataset that was kept, or name@hash of a version")
    train.add_argument("--output", type=Path, help="copy the finished LoRA here (a file or a folder)")
    options.add(train, [name for name in inputs.Request.model_fields if name not in HIDDEN])
    train.set_defaults(command=_train)

    dataset_commands.add(commands)

    serve = commands.add_parser("serve", help="start the page and the REST service")
    serve.add_argument("rest", nargs=argparse.REMAINDER, help="options of app.py: --host, --port, --share, --auth, …")
    serve.set_defaults(command=_serve)

    push = commands.add_parser("push", help="push a run's LoRA to the Hub, with the token of HF_TOKEN")
    push.add_argument("run", help="the run's id")
    push.add_argument("repo", help="the repository to make or to add to: name or owner/name")
    push.add_argument("--public", action="store_true", help="let everyone see it; private otherwise")
    push.set_defaults(command=_push)

    key = commands.add_parser("key", help="make, list and revoke keys, with which programs and people sign in")
    key.set_defaults(command=_key)
    deeds = key.add_subparsers(required=True, metavar="WHAT", dest="deed")
    new = deeds.add_parser("new", help="make a key and show it, this once")
    new.add_argument("name", help="whose it is; the same name with --auth is the same person")
    new.add_argument("--admin", action="store_true", help="let it see the runs of all")
    deeds.add_parser("list", help="show all keys by their ids")
    revoke = deeds.add_parser("revoke", help="end a key")
    revoke.add_argument("id", help="its id, as the list shows it")

    table = commands.add_parser("plan", help="say how each base model would fit GPUs of several sizes")
    table.add_argument("--memory-gib", type=float, nargs="+", default=[12, 16, 24, 48, 80, 141], metavar="GIB")
    table.add_argument("--teraflops", type=float, default=200.0, help="of the GPU, in large 16-bit matrix products")
    table.add_argument("--pictures", type=int, default=20)
    table.set_defaults(command=_plan)

    measure = commands.add_parser("measure", help="measure what this machine can do (the service starts this)")
    measure.set_defaults(command=_measure)

    work = commands.add_parser("work", help="do the work of one folder (the service starts this)")
    work.add_argument("folder", type=Path)
    work.add_argument("--task", choices=("train", "caption", "draw"), default="train")
    work.set_defaults(command=_work)
    return parser


def _train(asked: argparse.Namespace) -> int:
    if bool(asked.pictures) == bool(asked.dataset):
        raise ConfigError("Which pictures?", "Give a ZIP or a folder of pictures, or --dataset and a name.", "pictures")
    name = asked.dataset or asked.pictures[0].resolve().stem
    request = inputs.read({"finetune_comment": name, **options.given(asked)})
    bases.check(request.base_model)
    machine = settings.read()
    executor = registry.executors()["local"]
    executor.check()
    run = _filled(machine, asked)
    run.write("request.json", request.model_dump(mode="json"))
    executor.start(run, "train")
    state = _follow_or_stop(run, executor)
    if state is State.READY:
        _show_results(run, asked.output)
    return EXIT[state]


def _filled(here: Settings, asked: argparse.Namespace) -> Run:
    """A new run with its pictures; what cannot be used leaves no run behind."""
    run = runs.create(here.runs)
    try:
        if asked.dataset:
            shelf.use(shelf.find(here, owners.AT_HOME, asked.dataset), run)
        else:
            dataset_commands.unpack(asked.pictures, run, asked.ground)
    except FinetuneError:
        runs.discard(run)
        raise
    found = dataset.read(run)
    report = found.report()
    ignored = sum(row.count for row in report if row.what == "ignored")
    print(f"{len(found.images)} pictures, {ignored} files ignored. Run {run.id}")
    for text in [*(f"{row.file}: {row.words}" for row in report if row.what != "used"), *found.warnings]:
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
    lora = run.lora
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


def _push(asked: argparse.Namespace) -> int:
    run = runs.find(settings.read().runs, asked.run)
    print(f"It is at {publish.push_run(run, asked.repo, is_private=not asked.public)}")
    return 0


def _key(asked: argparse.Namespace) -> int:
    here = settings.read()
    if asked.deed == "new":
        is_first = not keys.exist(here)
        print(keys.new(here, asked.name, asked.admin), flush=True)
        print("Keep it well: it is shown this once, and opens page and REST (header x-key).", file=sys.stderr)
        if is_first:
            print("From now on the page asks everyone to sign in, and programs need a key.", file=sys.stderr)
        if not asked.admin and not any(key.owns_machine for key in keys.every(here)):
            print("Runs made without signing in are seen by keys made with --admin alone.", file=sys.stderr)
    elif asked.deed == "list":
        for key in map(keys.Key.told, keys.every(here)):
            print(key["id"], key["created"], key["owner"], *(["(admin)"] if key["owns_machine"] else []), sep="  ")
    else:
        keys.revoke(here, asked.id, owners.AT_HOME)
        print(f"{asked.id} opens nothing any more.")
        if not keys.exist(here):
            print("No key is left: where there are no passwords either, nobody is asked who they are.")
    return 0


def _plan(asked: argparse.Namespace) -> int:
    card = Machine("cuda:0", "A GPU", 0, 0, 64 * plan.GIB, asked.teraflops, cores=8, can_pack=True)
    orders = {}
    for base in registry.base_models().values():
        for kind, priority in product(FinetuneType, (Priority.SPEED, Priority.QUALITY)):
            request = Request(finetune_comment="-", mode="general", finetune_type=kind, priority=priority, lora_rank=16)
            orders[f"{base.title}, {kind.value}, {priority.value}"] = recipe.order(request, base, asked.pictures)
    print(plan.markdown(plan.table(orders, asked.memory_gib, card)))
    return 0


def _measure(asked: argparse.Namespace) -> int:
    print(json.dumps(asdict(machine.measure_into(settings.read())), indent=1))
    return 0


def _work(asked: argparse.Namespace) -> int:
    run = Run(asked.folder.resolve())
    if asked.task == "draw":
        from finetune import painter, studio

        there = replace(settings.read(), home=run.folder.parent.parent)
        studio.Studio(there, painter.Painter(there)).work()
        return 0
    from finetune import worker

    return worker.work(run, asked.task)


if __name__ == "__main__":
    sys.exit(main())
