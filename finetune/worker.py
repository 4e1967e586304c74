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
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from finetune import captions, dataset, encodings, formats, lora, preview, recipe, registry, settings, trainer
from finetune.dataset import Picture
from finetune.errors import CaptionError, FinetuneError, ModelError
from finetune.executors import Task
from finetune.inputs import Mode
from finetune.recipe import TrainConfig
from finetune.runs import Run

if TYPE_CHECKING:
    from finetune.encodings import Encoded
    from finetune.families import BaseModel, Model

LARGEST_DIFFERENCE = 2
"""Between a sample of the trainer and the same one drawn through the file. Units: steps of 255."""


def work(run: Run, task: Task) -> int:
    """Do a task of a run; returns the process's exit status. Whatever goes wrong is told as an event."""
    failed = "failed" if task == "train" else "caption_failed"
    try:
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
    _describe(run, Mode(draft["mode"]), registry.base_model(draft["base_model"]), _device())


def _train(run: Run) -> None:
    started = time.monotonic()
    run.tell("started", pid=os.getpid())
    run.forget_stop()
    _use_machine()
    request, device = run.request(), _device()
    base = registry.base_model(request.base_model)
    pictures = dataset.read(run).images

    if request.captioning:
        _describe(run, request.mode, base, device)
    trained = trained_captions(run, pictures)
    config = _configure(run, trained, device)

    model = registry.families()[base.family].load(base, config.device)
    _warn_of_cut_captions(run, model, pictures, trained)
    encoded = encodings.encode(
        model,
        [run.images / picture.file for picture in pictures],
        trained,
        config.sample_prompts,
        config.resolutions_px,
        run.encodings,
        lambda title, done, of: run.tell("stage", name="encode", title=title, done=done, of=of),
    )
    run.tell("stage", name="load", title=f"Loading {base.title}")
    family = registry.families()[base.family]
    trainee = lora.prepare(model.transformer, family.lora_targets, config.finetune_type, config.lora_rank, config.seed)

    run.tell("stage", name="train", title="Training")
    outcome = trainer.train(
        model, trainee, encoded, config, run, lambda step: _draw_samples(run, model, encoded, config, base, step)
    )
    if not outcome.is_complete and outcome.step == 0:
        run.tell("stopped", step=0)
        return
    summary = _save(run, model, trainee, encoded, config, base, trained, outcome.step)
    summary |= {"seconds": round(time.monotonic() - started, 1), "peak_memory_mib": _peak_memory_mib()}
    run.tell("ready" if outcome.is_complete else "stopped", step=outcome.step, files=_files(run), summary=summary)


def trained_captions(run: Run, pictures: tuple[Picture, ...]) -> list[str]:
    """The caption of each picture as it is trained."""
    request = run.request()
    said = run.read("descriptions.json").get(request.mode, {})
    return [
        captions.trained(p.caption, said.get(p.file), request.mode, request.trigger_word, request.captioning)
        for p in pictures
    ]


def _configure(run: Run, trained: list[str], device: str) -> TrainConfig:
    """Decide every value once; a resumed run keeps what was decided."""
    if values := run.read("config.json"):
        return recipe.from_dict(values)
    request = run.request()
    base = registry.base_model(request.base_model)
    prompts = captions.sample_prompts(
        request.mode, request.trigger_word, trained, request.sample_prompts, base.sample_things
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


def _describe(run: Run, mode: Mode, base: "BaseModel", device: str) -> None:
    """Let the captioner describe pictures that have no caption, and keep what it says, picture by picture."""
    said = run.read("descriptions.json")
    ours = said.setdefault(mode, {})
    silent = [p for p in dataset.read(run).images if not p.caption and p.file not in ours]
    if not silent:
        return
    run.tell("stage", name="captions", title="Describing the pictures", done=0, of=len(silent))
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
        run.tell("stage", name="captions", title="Describing the pictures", done=done, of=len(silent))


def _warn_of_cut_captions(run: Run, model: "Model", pictures: tuple[Picture, ...], trained: list[str]) -> None:
    for picture, caption in zip(pictures, trained, strict=True):
        if cut := model.cut_off(caption):
            run.tell(
                "warning",
                message=f"The caption of {picture.source} is longer than the base model reads: “{cut}” is left out.",
                hint="Shorten it if that part matters.",
            )


def _draw_samples(
    run: Run, model: "Model", encoded: "Encoded", config: TrainConfig, base: "BaseModel", step: int
) -> None:
    prompts = config.sample_prompts
    side = (base.resolution_px, base.resolution_px)
    images = preview.draw(model, encoded.prompts, encoded.empty, [config.seed] * len(prompts), side, base.sampler)
    run.samples.mkdir(exist_ok=True)
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        name = f"step{step:06d}-{index}.png"
        image.save(run.samples / name)
        run.tell("sample", step=step, index=index, prompt=prompt, file=name)


def _save(
    run: Run,
    model: "Model",
    trainee: "lora.Trainee",
    encoded: "Encoded",
    config: TrainConfig,
    base: "BaseModel",
    trained: list[str],
    step: int,
) -> dict[str, Any]:
    """Write the LoRA and what belongs to it, and prove the file; returns measured figures."""
    if config.finetune_type == "full":
        run.tell("stage", name="extract", title="Extracting the LoRA from the trained weights")
    result = trainee.finish()
    run.tell("stage", name="save", title="Saving the LoRA")
    run.results.mkdir(exist_ok=True)
    for old in run.results.iterdir():
        old.unlink()
    path = run.results / f"{slug(config.name)}.safetensors"
    formats.save(result.state, path, config, base)
    _write_captions(run, trained)
    (run.results / "settings.json").write_text(json.dumps(config.as_dict(), indent=1), encoding="utf-8")
    run.tell("stage", name="verify", title="Loading the file back and comparing a sample")
    _draw_samples(run, model, encoded, config, base, step)
    difference = _verify(run, path, config, base, step)
    return {"captured_energy": round(result.captured_energy, 4), "largest_difference": difference}


def _verify(run: Run, path: Path, config: TrainConfig, base: "BaseModel", step: int) -> int:
    """Draw one sample through the file in a fresh pipeline. Raises: ModelError if it differs from the trainer's."""
    formats.check(path)
    family = registry.families()[base.family]
    side = (base.resolution_px, base.resolution_px)
    redrawn = family.draw_with_file(base, path, config.sample_prompts[0], config.seed, side, config.device)
    with Image.open(run.samples / f"step{step:06d}-0.png") as drawn:
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
