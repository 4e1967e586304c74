"""How well the demo captioner follows the modes: on 200 pictures of the demo base, and on 200 that the base draws.

Counted as right: the caption names exactly the object of the picture, without the words that its mode leaves out. The
pictures are those of assets/demo-base/README.md; they are fetched with npm into a folder that is kept.

    python tests/bench/captions.py --cache FOLDER
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "assets" / "demo-base")]

from stages import captioner as reader  # noqa: E402
from stages import measure, pictures  # noqa: E402

from finetune import instructions, registry  # noqa: E402
from finetune.inputs import Mode  # noqa: E402


def main() -> None:
    """Print a table for the originals and one for the drawings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages of pictures")
    parser.add_argument("--count", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)

    learned = [picture for style in pictures.LEARNED_STYLES for picture in pictures.find(asked.cache, style)]
    chosen = reader.shuffled(learned, seed=7)[: asked.count]
    originals = [to_image(row) for row in pictures.load_pixels(chosen)]
    print(f"{len(chosen)} originals")
    judge(chosen, originals)
    print(f"{len(chosen)} drawings of the base")
    judge(chosen, drawings(chosen))


def judge(chosen: list[pictures.Picture], images: list[Image.Image]) -> None:
    """Describe pictures for each mode, and say how many are right, what leaks, and how long it takes."""
    base = registry.base_model("demo")
    loaded = registry.captioners()["demo"].load(base, "cpu", 2**40, lambda *told: None)
    plain = [answer.text for answer in loaded.describe(images, Mode.GENERAL, "")]
    for mode in Mode:
        started = time.perf_counter()
        answers = loaded.describe(images, mode, instructions.words(mode))
        seconds = (time.perf_counter() - started) / len(images)
        texts = [instructions.tidied(answer.text, 12, answer.is_cut) for answer in answers]
        right = [names(text, mode, picture) for text, picture in zip(texts, chosen, strict=True)]
        leaking = [instructions.leaks(text, mode, "TOK") for text in texts]
        before = [instructions.leaks(text, mode, "TOK") for text in plain]
        print(
            f"  {mode:10} right {sum(right):3} of {len(right)}, {1000 * seconds:.0f} ms a picture; "
            f"leaks in {sum(map(bool, leaking)):3}, and in {sum(map(bool, before)):3} if described in full"
        )
        print(f"    such as “{texts[0]}”; leaking {dict(Counter(sum(leaking, [])).most_common(5))}")


def names(text: str, mode: Mode, picture: pictures.Picture) -> bool:
    """Whether a caption names the object of a picture as its mode should."""
    if mode is Mode.GENERAL:
        return text == f"a {picture.style} emoji of {picture.thing}" or text.endswith(f" of {picture.thing}")
    if mode is Mode.STYLE:
        return text == picture.thing
    thing = instructions.without_leaks(picture.thing.removesuffix(" face"), mode, "TOK")
    return f" of {thing} on a " in f"{text} on a "


def drawings(chosen: list[pictures.Picture]) -> list[Image.Image]:
    """What the base draws for the plain captions, each from a seed of its own."""
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(ROOT / "assets" / "demo-base")
    return measure.draw(pipe, [pictures.plain_caption(picture) for picture in chosen], seed=1000)


def to_image(row: torch.Tensor) -> Image.Image:
    """Shapes: (3, H, W) in [-1, 1]."""
    return Image.fromarray(((row + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
