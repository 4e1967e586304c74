"""One run from start to end, inside its own process.

The story of a fine-tune: fetch the base, describe the pictures, encode them, train, save, and prove the files by
loading them back. What happens is told as events in the run folder; the run is ready only when its file draws what the
trainer drew.
"""

import os
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial

from finetune import (
    bases,
    captions,
    dataset,
    descriptions,
    downloads,
    encodings,
    extraction,
    fidelity,
    footprint,
    formats,
    lora,
    machine,
    parts,
    plan,
    preview,
    recipe,
    registry,
    settings,
    trainer,
    weights,
)
from finetune.checkpoints import Best
from finetune.dataset import Picture
from finetune.descriptions import Wish
from finetune.encodings import Encoded
from finetune.errors import FinetuneError, OutOfMemoryError
from finetune.executors import Task
from finetune.families import BaseModel, Family, Model
from finetune.fidelity import Fidelity
from finetune.inputs import FinetuneType, Mode, Request
from finetune.plan import Plan
from finetune.recipe import TrainConfig
from finetune.results import Handover
from finetune.runs import Run

SECONDS_BETWEEN_LOOKS = 10.0
"""Over how long the pace of a download, or of captions, is taken."""


class _Stopped(Exception):
    """Someone asked to stop before there was anything to keep."""


@dataclass(frozen=True)
class _Job:
    """What a run works with once every value is decided and every picture is encoded."""

    run: Run
    config: TrainConfig
    base: BaseModel
    model: Model
    trained: list[str]
    encoded: Encoded
    held_out: Encoded

    @property
    def family(self) -> Family:
        return registry.families()[self.base.family]

    @property
    def is_full(self) -> bool:
        return self.config.finetune_type is FinetuneType.FULL


def work(run: Run, task: Task) -> int:
    """Do a task of a run; returns the process's exit status. Whatever goes wrong is told as an event."""
    failed = "failed" if task == "train" else "caption_failed"
    try:
        with trainer.memory_in_words():
            _train(run) if task == "train" else _caption_draft(run)
    except _Stopped:
        run.tell("stopped", step=0)
    except FinetuneError as error:
        run.tell(failed, message=error.message, hint=error.hint)
        return 1
    except Exception as error:
        run.tell(failed, message=f"Something unexpected went wrong: {error!r}.", hint="The log has the details.")
        raise
    return 0


def _caption_draft(run: Run) -> None:
    """Describe the pictures of a run that has not been started yet; beside a run that trains, on the processor."""
    draft = run.read("draft.json")
    device = "cpu" if draft.get("on_processor") else _use_machine()
    free = machine.free_bytes(settings.read(), device)
    wish = Wish(Mode(draft["mode"]), bases.find(draft["base_model"]), "", draft.get("captioner", ""), device, free)
    progress = partial(_timed, run, kind="caption_progress")
    descriptions.describe(run, wish, partial(progress(), "Describing the pictures"), progress(unit="bytes"))


def _train(run: Run) -> None:
    started = time.monotonic()
    run.tell("started", pid=os.getpid())
    if run.is_asked_to_stop():  # while this process was still starting
        run.tell("stopping")
    job = _prepare(run, _use_machine())
    job, trainee, outcome = _learn_as_it_fits(job)
    if not outcome.is_complete and outcome.step == 0:
        raise _Stopped
    state, learned, report = _finish(job, trainee, outcome)

    made = Handover(run, job.config, job.base, job.model, job.encoded, job.trained, outcome.step)
    run.tell("stage", name="save", title="Saving the LoRA")
    files = made.save(state)
    run.tell("stage", name="verify", title="Reading the files back and comparing a sample")
    _draw_samples(job, outcome.step)
    verified = made.verify(files)
    if report:
        _tell_comparison(job, outcome.step)
    listed = made.complete(files, verified, report)

    spent = {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mib": footprint.peak(job.config.device) // 2**20,
    }
    summary = {**learned, "largest_difference": verified.difference, **spent}
    ending = "ready" if outcome.is_complete else "stopped"
    run.tell(ending, step=outcome.step, files=listed, checks=verified.checks, summary=summary)


def _prepare(run: Run, device: str) -> _Job:
    """Have the base model's files, settle the captions and every value, and encode all that training reads."""
    request = run.request()
    base = bases.find(request.base_model)
    folder = weights.folder(base, _timed(run, name="fetch", unit="bytes"))
    base = bases.find(request.base_model)  # of one that was just fetched, more is known now
    pictures = dataset.read(run).images
    if request.captioning:
        _describe(run, request, base, device)
    trained = descriptions.trained_captions(run, pictures)
    # Captions by a person come first, because two of them become sample prompts.
    by_a_person = [text for text, picture in zip(trained, pictures, strict=True) if picture.caption]
    config = _configure(run, request, base, by_a_person + trained, device)

    model = registry.families()[base.family].load(base, folder, config.device, config.fit)
    _warn_of_cut_captions(run, model, pictures, trained)
    paths = [run.images / picture.file for picture in pictures]
    progress = partial(_tell_count, run, "encode")
    encoded = encodings.encode(
        model, paths, trained, config.sample_prompts, config.resolutions_px, run.encodings, progress
    )
    encoded = replace(encoded, repeats=tuple(picture.repeats for picture in pictures))
    held_out = fidelity.hold_out(model, paths, encoded, config.resolutions_px, run.encodings)
    model.release("vae")  # for samples it is loaded again, when the transformer is there
    return _Job(run, config, base, model, trained, encoded, held_out)


def _describe(run: Run, request: Request, base: BaseModel, device: str) -> None:
    """Let the pictures be described; a captioner that fails costs the descriptions, and never the run."""
    wish = Wish(
        request.mode,
        base,
        request.trigger_word,
        request.captioner,
        device,
        machine.free_bytes(settings.read(), device),
    )
    describing = partial(_timed(run, name="captions"), "Describing the pictures")
    try:
        with trainer.memory_in_words():
            descriptions.describe(run, wish, describing, _timed(run, name="fetch", unit="bytes"))
    except FinetuneError as error:
        plain = "Pictures without a caption get the plain one."
        run.tell("warning", message=f"{error.message} {plain}", hint=error.hint)


def _configure(run: Run, request: Request, base: BaseModel, known: list[str], device: str) -> TrainConfig:
    """Decide every value once; a resumed run keeps what was decided."""
    if values := run.read("config.json"):
        return recipe.from_dict(values)
    prompts = captions.sample_prompts(
        request.mode,
        request.trigger_word,
        known,
        request.sample_prompts,
        base.sample_things,
        recipe.prompt_count(request.priority, base),
    )
    chosen = _plan(run, request, base).chosen
    config = recipe.resolve(request, base, prompts, device, chosen.fit)
    run.write("config.json", config.as_dict())
    return config


def _plan(run: Run, request: Request, base: BaseModel) -> Plan:
    """See how the run fits the memory that is free now. Raises: OutOfMemoryError when it does not."""
    found = machine.measure(settings.read())
    made = recipe.plan_for(request, base, len(dataset.read(run).images), found)
    if made.chosen is None:
        raise OutOfMemoryError(made.explanation)
    run.tell("plan", message=f"{made.explanation} {plan.gib(found.free_bytes)} are free.")
    return made


def _learn_as_it_fits(job: _Job) -> tuple[_Job, lora.Trainee, trainer.Outcome]:
    """Train; where memory runs out, go on from the last step in a way that needs less.

    Raises: OutOfMemoryError when there is no such way left.
    """
    while True:
        try:
            return job, *_learn(job)
        except OutOfMemoryError as error:
            trouble = (error.message, error.hint)  # the error itself would keep alive all that fills the memory
        job = _one_down(job, *trouble)


def _one_down(job: _Job, message: str, hint: str) -> _Job:
    job.model.release("transformer")
    config = job.config
    found = machine.measure(settings.read())
    made = recipe.plan_for(job.run.request(), job.base, len(job.trained), found)
    lower = made.below(config.fit)
    if lower is None:
        raise OutOfMemoryError(message, hint)
    config = replace(config, fit=lower.fit)
    job.run.write("config.json", config.as_dict())
    job.run.tell("warning", message=f"Memory ran out. Going on from the last step in less: {lower.cost}.", hint="")
    model = job.family.load(job.base, job.model.folder, config.device, config.fit)
    return replace(job, config=config, model=model)


def _learn(job: _Job) -> tuple[lora.Trainee, trainer.Outcome]:
    run, config, model = job.run, job.config, job.model
    run.tell("stage", name="load", title=f"Loading {job.base.title}")
    fit, targets = config.fit, job.family.lora_targets
    trainee = lora.prepare(
        model.transformer, targets, config.finetune_type, config.lora_rank, config.seed, fit.rounding
    )
    footprint.apply(model.transformer, fit)
    run.tell("stage", name="probe", title="Trying one step on the largest pictures")
    taken = trainer.probe(model, trainee, job.encoded, config)
    run.tell("log", message=f"One step on the largest pictures took {plan.gib(taken)}.")

    run.tell("stage", name="train", title="Training")
    looking = partial(_look, job, Best(run.checkpoints), trainee)
    return trainee, trainer.train(model, trainee, job.encoded, config, run, looking)


def _look(job: _Job, best: Best, trainee: lora.Trainee, step: int) -> None:
    """Draw samples, and see how well pictures are known that are not trained: the best weights are kept.

    The last samples of a LoRA are left out here: they are drawn when it is as its file will hold it.
    """
    if job.is_full or step < job.config.iterations:
        _draw_samples(job, step)
    if job.config.keeps_best:
        loss = fidelity.quick_loss(job.model, job.held_out, job.config.seed, job.config.fit.micro_batch)
        job.run.tell("held_out", step=step, loss=loss)
        best.offer(step, loss, trainee.parameters)


def _finish(
    job: _Job, trainee: lora.Trainee, outcome: trainer.Outcome
) -> tuple[lora.State, dict[str, float], Fidelity | None]:
    """Turn what was trained into the LoRA that the files will hold, and measure what it has learned."""
    config, transformer = job.config, job.model.transformer
    if outcome.is_complete and (step := Best(job.run.checkpoints).restore(_last_loss(job.run), trainee.parameters)):
        job.run.tell("log", message=f"Step {step} knew unseen pictures best; its weights are taken.")
    if job.is_full:
        _keep_samples_of_full(job, outcome.step)
        telling = partial(_tell_count, job.run, "extract")
        state, report = extraction.finish(
            job.model, trainee, outcome.trained, job.encoded, job.held_out, config, telling
        )
        learned = report.summary()
    else:
        state, report = lora.state(transformer), None
        job.run.tell("stage", name="measure", title="Measuring what the LoRA has learned")
        learned = fidelity.learned(job.model, job.encoded, config.seed, config.fit.micro_batch)
    state = formats.rounded(state, parts.precision(config.device))
    lora.load(transformer, state)
    return state, {name: round(value, 4) for name, value in learned.items()}, report


def _last_loss(run: Run) -> float:
    """The newest loss on what is held out; without any, no other one is lower."""
    losses = [event["loss"] for event in run.events()[0] if event["kind"] == "held_out"]
    return losses[-1] if losses else 0.0


def _draw_samples(job: _Job, step: int) -> None:
    run, config, encoded, side = job.run, job.config, job.encoded, job.config.sample_px
    images = preview.draw(job.model, encoded.prompts, encoded.empty, config.seed, (side, side), job.base.sampler)
    run.samples.mkdir(exist_ok=True)
    for index, (image, prompt) in enumerate(zip(images, config.sample_prompts, strict=True)):
        name = f"step{step:06d}-{index}.png"
        image.save(run.samples / name)
        run.tell("sample", step=step, index=index, prompt=prompt, file=name)


def _keep_samples_of_full(job: _Job, step: int) -> None:
    """Keep the last samples of the full finetune: those of the extracted LoRA will take their place."""
    if not (job.run.samples / f"step{step:06d}-0.png").exists():  # stopped between samples
        _draw_samples(job, step)
    for index in range(len(job.config.sample_prompts)):
        shutil.copy(job.run.samples / f"step{step:06d}-{index}.png", job.run.samples / f"full-{index}.png")


def _tell_comparison(job: _Job, step: int) -> None:
    for index, prompt in enumerate(job.config.sample_prompts):
        files = {"full": f"full-{index}.png", "lora": f"step{step:06d}-{index}.png"}
        job.run.tell("comparison", prompt=prompt, **files)


def _warn_of_cut_captions(run: Run, model: Model, pictures: tuple[Picture, ...], trained: list[str]) -> None:
    for picture, caption in zip(pictures, trained, strict=True):
        if cut := model.cut_off(caption):
            run.tell(
                "warning",
                message=f"The caption of {picture.source} is longer than the base model reads: “{cut}” is left out.",
                hint="Shorten it if that part matters.",
            )


def _tell_count(run: Run, stage: str, title: str, done: int, of: int) -> None:
    run.tell("stage", name=stage, title=title, done=done, of=of)


def _timed(run: Run, kind: str = "stage", **about: str) -> weights.Progress:
    """Tell how far something is, with the time that is left; who asks to stop ends it, and it goes on from there
    later."""
    looks: list[tuple[float, int]] = []

    def tell(title: str, done: int, of: int) -> None:
        if run.is_asked_to_stop():
            raise _Stopped
        looks.append((time.monotonic(), done))
        while looks[-1][0] - looks[0][0] > SECONDS_BETWEEN_LOOKS and len(looks) > 2:
            del looks[0]
        _, left = downloads.pace(looks, of)
        seconds = None if left is None else round(left)
        run.tell(kind, **about, title=title, done=done, of=of, seconds_left=seconds)

    return tell


def _use_machine() -> str:
    """Take the threads and the device that the settings give; returns the device."""
    import torch

    chosen = settings.read()
    torch.set_num_threads(chosen.threads)
    device = machine.best_device(chosen)
    machine.keep_within(chosen, device)
    return device
