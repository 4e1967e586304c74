"""One run from start to end, inside its own process.

The story of a fine-tune: describe the pictures, encode them, train, save, and prove the file by loading it back. What
happens is told as events in the run folder; the run is ready only when its file draws what the trainer drew.
"""

import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from finetune import captions, dataset, encodings, fidelity, formats, lora, preview, recipe, registry, settings, trainer
from finetune.dataset import Picture
from finetune.errors import CaptionError, FinetuneError, ModelError
from finetune.executors import Task
from finetune.inputs import FinetuneType, Mode
from finetune.recipe import TrainConfig
from finetune.runs import Run

if TYPE_CHECKING:
    from finetune.encodings import Encoded
    from finetune.families import BaseModel, Family, Model

LARGEST_DIFFERENCE = 2
"""Between a sample of the trainer and the same one drawn through the file. Units: steps of 255."""


@dataclass(frozen=True)
class _Job:
    """What a run works with once every value is decided and every picture is encoded."""

    run: Run
    config: TrainConfig
    base: "BaseModel"
    model: "Model"
    trained: list[str]
    encoded: "Encoded"

    @property
    def family(self) -> "Family":
        return registry.families()[self.base.family]


def work(run: Run, task: Task) -> int:
    """Do a task of a run; returns the process's exit status. Whatever goes wrong is told as an event."""
    failed = "failed" if task == "train" else "caption_failed"
    try:
        with trainer.memory_in_words():
            _train(run) if task == "train" else _caption_draft(run)
    except FinetuneError as error:
        run.tell(failed, message=error.message, hint=error.hint)
        return 1
    except Exception as error:
        run.tell(failed, message=f"Something unexpected went wrong: {error!r}.", hint="The log has the details.")
        raise
    return 0


def _caption_draft(run: Run) -> None:
    """Describe the pictures of a run that has not been started yet."""
    draft = run.read("draft.json")
    _use_machine()
    _describe(run, Mode(draft["mode"]), registry.base_model(draft["base_model"]), _device(), lambda done, of: None)


def _train(run: Run) -> None:
    started = time.monotonic()
    run.tell("started", pid=os.getpid())
    if run.is_asked_to_stop():  # while this process was still starting
        run.tell("stopping")
    _use_machine()
    job = _prepare(run)
    config, model = job.config, job.model

    run.tell("stage", name="load", title=f"Loading {job.base.title}")
    targets = job.family.lora_targets
    trainee = lora.prepare(model.transformer, targets, config.finetune_type, config.lora_rank, config.seed)
    run.tell("stage", name="load", title="Measuring how well the base model knows your pictures")
    loss_before = _measure(job)  # a checkpoint is put back later, so this is the base model in a resumed run too

    run.tell("stage", name="train", title="Training")
    outcome = trainer.train(model, trainee, job.encoded, config, run, lambda step: _draw_samples(job, step))
    if not outcome.is_complete and outcome.step == 0:
        run.tell("stopped", step=0)
        return
    result, learned = _finish(job, trainee, loss_before)
    path = _save(job, result)
    difference = _verify(job, path, outcome.step)
    spent = {"seconds": round(time.monotonic() - started, 1), "peak_memory_mib": _peak_memory_mib()}
    summary = {**learned, "largest_difference": difference, **spent}
    run.tell("ready" if outcome.is_complete else "stopped", step=outcome.step, files=_files(run), summary=summary)


def _prepare(run: Run) -> _Job:
    """Settle the captions and every value, and encode all that training reads."""
    request, device = run.request(), _device()
    base = registry.base_model(request.base_model)
    pictures = dataset.read(run).images
    if request.captioning:
        _describe(run, request.mode, base, device, partial(_tell_count, run, "captions", "Describing the pictures"))
    trained = trained_captions(run, pictures)
    # Captions by a person come first, because two of them become sample prompts.
    by_a_person = [text for text, picture in zip(trained, pictures, strict=True) if picture.caption]
    config = _configure(run, by_a_person + trained, device)

    model = registry.families()[base.family].load(base, Path(base.source), config.device, config.fit)
    _warn_of_cut_captions(run, model, pictures, trained)
    encoded = encodings.encode(
        model,
        [run.images / picture.file for picture in pictures],
        trained,
        config.sample_prompts,
        config.resolutions_px,
        run.encodings,
        partial(_tell_count, run, "encode"),
    )
    return _Job(run, config, base, model, trained, encoded)


def _tell_count(run: Run, stage: str, title: str, done: int, of: int) -> None:
    run.tell("stage", name=stage, title=title, done=done, of=of)


def trained_captions(run: Run, pictures: tuple[Picture, ...]) -> list[str]:
    """The caption of each picture as it is trained."""
    request = run.request()
    said = run.read("descriptions.json").get(request.mode, {})
    return [
        captions.trained(p.caption, said.get(p.file), request.mode, request.trigger_word, request.captioning)
        for p in pictures
    ]


def _configure(run: Run, known: list[str], device: str) -> TrainConfig:
    """Decide every value once; a resumed run keeps what was decided."""
    if values := run.read("config.json"):
        return recipe.from_dict(values)
    request = run.request()
    base = registry.base_model(request.base_model)
    prompts = captions.sample_prompts(
        request.mode, request.trigger_word, known, request.sample_prompts, base.sample_things
    )
    config = recipe.resolve(request, base, prompts, device)
    run.write("config.json", config.as_dict())
    return config


def _use_machine() -> None:
    import torch

    torch.set_num_threads(settings.read().threads)


def _device() -> str:
    import torch

    asked = settings.read().device
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def _describe(run: Run, mode: Mode, base: "BaseModel", device: str, progress: Callable[[int, int], None]) -> None:
    """Let the captioner describe pictures that have no caption, and keep what it says, picture by picture."""
    said = run.read("descriptions.json")
    ours = said.setdefault(mode, {})
    silent = [p for p in dataset.read(run).images if not p.caption and p.file not in ours]
    if not silent:
        return
    progress(0, len(silent))
    captioner = registry.captioners()[base.captioner].load(device)
    for done, picture in enumerate(silent, start=1):
        try:
            with Image.open(run.images / picture.file) as image:
                ours[picture.file] = captioner.caption(image.convert("RGB"), mode)
        except CaptionError as error:
            run.tell("warning", message=f"{picture.source} was not described. {error.message}", hint=error.hint)
            continue
        run.write("descriptions.json", said)
        run.tell("caption", file=picture.file, text=ours[picture.file])
        progress(done, len(silent))


def _warn_of_cut_captions(run: Run, model: "Model", pictures: tuple[Picture, ...], trained: list[str]) -> None:
    for picture, caption in zip(pictures, trained, strict=True):
        if cut := model.cut_off(caption):
            run.tell(
                "warning",
                message=f"The caption of {picture.source} is longer than the base model reads: “{cut}” is left out.",
                hint="Shorten it if that part matters.",
            )


def _draw_samples(job: _Job, step: int) -> None:
    run, config, encoded, side = job.run, job.config, job.encoded, job.base.resolution_px
    images = preview.draw(job.model, encoded.prompts, encoded.empty, config.seed, (side, side), job.base.sampler)
    run.samples.mkdir(exist_ok=True)
    for index, (image, prompt) in enumerate(zip(images, config.sample_prompts, strict=True)):
        name = f"step{step:06d}-{index}.png"
        image.save(run.samples / name)
        run.tell("sample", step=step, index=index, prompt=prompt, file=name)


def _measure(job: _Job) -> float:
    """The loss on the training pictures, over the same noise and times whenever it is asked for."""
    return fidelity.grid_loss(job.model, job.encoded, job.config.seed)


def _finish(job: _Job, trainee: "lora.Trainee", loss_before: float) -> tuple["lora.Lora", dict[str, float]]:
    """Turn what was trained into a LoRA, and measure what it has learned."""
    is_full = job.config.finetune_type is FinetuneType.FULL
    if is_full:
        job.run.tell("stage", name="extract", title="Extracting the LoRA from the trained weights")
    loss_trained = _measure(job) if is_full else 0.0
    result = trainee.finish()
    loss_after = _measure(job)
    learned = {"loss_before": loss_before, "loss_after": loss_after, "captured_energy": result.captured_energy}
    if is_full:
        learned["recovered"] = fidelity.recovered(loss_before, loss_trained, loss_after)
    return result, {name: round(value, 4) for name, value in learned.items()}


def _save(job: _Job, result: "lora.Lora") -> Path:
    """Write the LoRA and what belongs to it, in place of what was there."""
    results, config = job.run.results, job.config
    job.run.tell("stage", name="save", title="Saving the LoRA")
    results.mkdir(exist_ok=True)
    for old in results.iterdir():
        old.unlink()
    path = results / f"{slug(config.name)}.safetensors"
    formats.save(result.state, path, config, job.base)
    _write_captions(job.run, job.trained)
    (results / "settings.json").write_text(json.dumps(config.as_dict(), indent=1), encoding="utf-8")
    return path


def _verify(job: _Job, path: Path, step: int) -> int:
    """Draw the last samples, and the first of them through the file in a fresh pipeline; returns the difference.

    Raises: ModelError if the file is broken, or draws something else than the trainer.
    """
    config, side = job.config, job.base.resolution_px
    job.run.tell("stage", name="verify", title="Loading the file back and comparing a sample")
    formats.check(path)
    _draw_samples(job, step)
    encoded = job.encoded
    redrawn = job.model.draw_with_file(path, encoded.prompts[0], encoded.empty, config.seed, (side, side))
    with Image.open(job.run.samples / f"step{step:06d}-0.png") as drawn:
        difference = preview.difference(drawn.convert("RGB"), redrawn)
    if difference > LARGEST_DIFFERENCE:
        raise ModelError(
            f"The saved LoRA draws another picture than the trainer did (they differ by {difference} of 255).",
            "Please report this run: the file in its results folder is not to be trusted.",
        )
    return difference


def _write_captions(run: Run, trained: list[str]) -> None:
    """Write each caption under its picture's name, so that they can be unpacked beside the pictures."""
    with zipfile.ZipFile(run.results / "captions.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for picture, caption in zip(dataset.read(run).images, trained, strict=True):
            name = PurePosixPath(picture.source).with_suffix(".txt").as_posix()
            if name in archive.namelist():  # a.jpg and a.png
                name = f"{picture.source}.txt"
            archive.writestr(name, caption + "\n")


def _files(run: Run) -> list[dict[str, Any]]:
    titles = {".safetensors": "LoRA", ".zip": "Captions", ".json": "Settings"}
    return [
        {"name": path.name, "bytes": path.stat().st_size, "title": titles[path.suffix]}
        for path in sorted(run.results.iterdir(), key=lambda path: list(titles).index(path.suffix))
    ]


def slug(name: str) -> str:
    """A file name made of a finetune's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80] or "lora"


def _peak_memory_mib() -> int:
    """The most memory that this process has used."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset // 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10
