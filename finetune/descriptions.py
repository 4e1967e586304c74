"""What captioners said of a run's pictures, and the captions that are trained with it.

Kept in the run folder by mode and picture, so that nothing is described twice: the page asks while the run is still a
draft, the worker once more for what is missing.
"""

from collections.abc import Callable

from PIL import Image

from finetune import captions, dataset, registry
from finetune.dataset import Picture
from finetune.errors import CaptionError
from finetune.families import BaseModel
from finetune.inputs import Mode
from finetune.runs import Run


def describe(run: Run, mode: Mode, base: BaseModel, device: str, progress: Callable[[int, int], None]) -> None:
    """Let the base model's captioner describe pictures that have no caption, and keep what it says, one by one.

    A picture that it has no words for is told of and left without. Raises: ModelError when it cannot be loaded.
    """
    said = run.read("descriptions.json")
    ours = said.setdefault(mode, {})
    silent = [p for p in dataset.read(run).images if not p.caption and p.file not in ours]
    if not silent or not base.captioner:
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


def trained_captions(run: Run, pictures: tuple[Picture, ...]) -> list[str]:
    """The caption of each picture as it is trained."""
    request = run.request()
    said = run.read("descriptions.json").get(request.mode, {})
    return [
        captions.trained(p.caption, said.get(p.file), request.mode, request.trigger_word, request.captioning)
        for p in pictures
    ]
