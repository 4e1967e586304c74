"""What is measured on a picture's pixels: sharp ones are sharp in every style, and what was enlarged is found out."""

import io
import time
import zipfile

import numpy
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from finetune.dataset import traits
from finetune.settings import ASSETS


def photo(seed=0, width=512, height=512):
    """Noise with the spectrum of a photograph, and its grain."""
    draw = numpy.random.default_rng(seed)
    frequencies = numpy.hypot(numpy.fft.fftfreq(height)[:, None], numpy.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1
    waves = draw.normal(size=(height, width)) + 1j * draw.normal(size=(height, width))
    plane = numpy.fft.ifft2(waves / frequencies**1.1).real
    grey = 128 + 45 * (plane - plane.mean()) / plane.std() + draw.normal(0, 2, plane.shape)
    return Image.fromarray(grey.clip(0, 255).astype(numpy.uint8)).convert("RGB")


def emoji():
    """The pictures of the example, which are flat and sharp."""
    with zipfile.ZipFile(ASSETS / "example" / "twemoji.zip") as zip:
        names = [name for name in zip.namelist() if name.endswith(".png")]
        return [Image.open(io.BytesIO(zip.read(name))).convert("RGB") for name in names]


def enlarged(image, times):
    small = image.resize((image.width // times, image.height // times), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def compressed(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def measure(image):
    return traits.measure(image, image.size)


def test_sharp_pictures_are_sharp_in_every_style():
    """Flat emoji of 64 px and photographs have detail for their whole size, also after JPEG."""
    for image in (*emoji(), photo(1), compressed(photo(2), 40)):
        assert measure(image).get("detail", 1) > 0.4


@pytest.mark.parametrize("sigma", [2, 3, 5])
def test_blur_is_found_in_every_style(sigma):
    """A blur of two pixels or more leaves detail for less than two fifths of the size."""
    for image in (*emoji(), photo(1)):
        assert measure(image.filter(ImageFilter.GaussianBlur(sigma)))["detail"] < 0.4


def test_enlarged_picture_is_found_out():
    """A photograph enlarged four times has detail for about a quarter of its size, whatever JPEG adds."""
    for image in (enlarged(photo(3), 4), compressed(enlarged(photo(3), 4), 90)):
        assert measure(image)["detail"] == pytest.approx(0.25, abs=0.06)


def test_sharp_subject_before_a_blurred_ground_is_sharp():
    """The sharpest pieces decide, not most of them."""
    image = photo(4, 1024, 1024).filter(ImageFilter.GaussianBlur(6))
    image.paste(photo(5, 400, 400), (300, 300))

    assert measure(image)["detail"] > 0.6


@pytest.mark.parametrize("size", [(16, 16), (40, 900)])
def test_nothing_is_said_of_the_detail_of_tiny_pictures(size):
    """Of a few pixels no frequencies can be told apart."""
    assert "detail" not in measure(photo(6, *size))


def test_nothing_is_said_of_the_detail_of_plain_and_noisy_pictures():
    """An even picture and pure noise show no edge by which to judge."""
    noise = numpy.random.default_rng(0).normal(128, 8, (256, 256)).clip(0, 255).astype(numpy.uint8)

    assert "detail" not in measure(Image.new("RGB", (256, 256), "teal"))
    assert "detail" not in measure(Image.fromarray(noise).convert("RGB"))


@pytest.mark.parametrize("colour, is_what", [("black", "black"), ("white", "white"), ("teal", "of one colour")])
def test_empty_pictures_are_named(colour, is_what):
    """Black, white and even pictures are told apart, also with the noise of a camera or a scanner."""
    plain = numpy.asarray(Image.new("RGB", (300, 200), colour), dtype=float)
    noisy = (plain + numpy.random.default_rng(1).normal(0, 3, plain.shape)).clip(0, 255).astype(numpy.uint8)

    assert traits.emptiness(measure(Image.new("RGB", (300, 200), colour))) == is_what
    assert traits.emptiness(measure(Image.fromarray(noisy))) == is_what


def test_little_on_a_white_page_is_not_empty():
    """A thin line on white is a picture, as are the emoji of the example."""
    page = Image.new("RGB", (1024, 1024), "white")
    page.paste((0, 0, 0), (500, 100, 502, 900))

    assert not any(traits.emptiness(measure(image)) for image in (page, *emoji()))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: compressed(image, 40),
        lambda image: ImageEnhance.Brightness(image).enhance(1.12),
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.crop((5, 5, image.width - 5, image.height - 5)),
    ],
    ids=["scaled", "compressed", "brighter", "blurred", "cropped by 1 %"],
)
def test_copies_are_alike(change):
    """A copy that was changed a little is recognised."""
    image = photo(7)

    assert traits.alike([measure(image), measure(photo(8)), measure(change(image))]) == [(2, 0)]


def test_different_pictures_are_not_alike():
    """Of the example's emoji on white and of photographs, no two are taken for the same."""
    assert traits.alike([measure(image) for image in (*emoji(), *map(photo, range(8)))]) == []


def test_same_shape_in_another_colour_is_not_alike():
    """A red and a blue mug are two pictures."""
    red, blue = Image.new("RGB", (256, 256), "white"), Image.new("RGB", (256, 256), "white")
    for image, colour in ((red, "red"), (blue, "blue")):
        image.paste(colour, (60, 80, 160, 220))

    assert traits.alike([measure(red), measure(blue)]) == []


def test_measuring_does_not_grow_with_the_picture():
    """The largest picture that is stored takes milliseconds, and what is kept of it is small."""
    image = photo(9, 2048, 2048)
    start = time.process_time()

    found = measure(image)

    assert time.process_time() - start < 0.25  # 9 ms on an idle core
    assert len(str(found)) < 300
