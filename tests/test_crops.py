"""How pictures are cut: the size at which they are trained, and the part that is kept."""

import pytest
from PIL import Image, ImageChops, ImageOps

from finetune import crops


@pytest.mark.parametrize(
    ("size", "resolution_px", "expected"),
    [
        ((64, 64), 64, (64, 64)),
        ((2000, 2000), 64, (64, 64)),
        ((40, 40), 64, (32, 32)),
        ((700, 500), 1024, (688, 496)),
        ((1000, 100), 1024, (960, 96)),
        ((10, 10), 64, (16, 16)),
        ((300, 200), 64, (80, 48)),
        ((200, 300), 64, (48, 80)),
        ((1920, 1080), 1024, (1360, 768)),
        ((4000, 100), 64, (256, 16)),
        ((1, 5000), 64, (16, 256)),
    ],
)
def test_pictures_keep_their_shape(size, resolution_px, expected):
    """The trained size is in multiples of 16, has nearly the picture's aspect and no larger area or side."""
    assert crops.fit(*size, resolution_px, 16) == expected


@pytest.mark.parametrize("size", [(150, 111), (37, 90), (64, 64), (9, 130), (201, 33), (99, 17)])
def test_no_other_size_keeps_more(size):
    """Of all sizes within the area that do not enlarge the picture, none keeps more of it."""
    wide, high = (range(16, max(16, side) + 1, 16) for side in size)

    def kept(fitted):
        ratio = fitted[0] / fitted[1] / (size[0] / size[1])
        return min(ratio, 1 / ratio) * fitted[0] * fitted[1]

    most = max(kept((w, h)) for w in wide for h in high if w * h <= 96**2)

    assert kept(crops.fit(*size, 96, 16)) == pytest.approx(most)


def test_no_picture_is_enlarged():
    """Both sides of the trained size are within the picture, but for sides of less than one patch."""
    for width, height in [(8, 8), (17, 300), (100, 99), (1023, 1025), (33, 15)]:
        fitted = crops.fit(width, height, 1024, 16)
        assert all(side <= max(16, own) for side, own in zip(fitted, (width, height), strict=True))


@pytest.mark.parametrize("size", [(64, 64), (150, 111), (37, 90), (9, 130), (201, 33)])
def test_part_that_is_kept_is_that_of_pillow(size):
    """A picture is cut from its middle, exactly as Pillow's own fit does."""
    picture = Image.effect_noise(size, 60).convert("RGB")

    cut = crops.cut(picture, (48, 32))

    assert ImageChops.difference(cut, ImageOps.fit(picture, (48, 32), Image.Resampling.LANCZOS)).getbbox() is None


@pytest.mark.parametrize(("size", "expected"), [((100, 50), (25, 0, 75, 50)), ((50, 100), (0, 25, 50, 75))])
def test_ends_are_cut_off_evenly(size, expected):
    """What is left out lies on both sides."""
    assert crops.box(*size, (32, 32)) == expected
