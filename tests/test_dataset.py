"""Facts about what becomes of an uploaded ZIP."""

import dataclasses
import io
import json
import random
import stat
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

import corpus
import hostile
import pillow_heif
import profiles
import pytest
from pictures import Content, encoded, picture, zip_of
from PIL import Image, ImageCms

from finetune import dataset, runs
from finetune.dataset import Limits, Picture, intake
from finetune.dataset.archive import natural_order
from finetune.dataset.intake import Text
from finetune.errors import ConfigError, DatasetError
from finetune.runs import Run

WHITE = (255, 255, 255)
here = partial(dataset.unpack, take=intake.take)
"""Unpacks in this process, which is quicker; `test_hostile_intake.py` has the facts of the other way."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs")


@pytest.fixture
def unpack(tmp_path: Path, run: Run):
    def unpack(files: dict[str, Content], **options: object) -> dataset.Dataset:
        return here(zip_of(tmp_path / "in.zip", files), run, **options)

    return unpack


def pixels(run: Run, number: int = 1) -> Image.Image:
    image = Image.open(run.images / f"{number:04}.png")
    assert image.mode == "RGB"
    return image


def reasons(found: dataset.Dataset) -> dict[str, str]:
    return {one.file: one.reason for one in found.ignored}


def near(pixel: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True))


# --- the run folder


def test_pictures_are_numbered_and_stored_without_loss(unpack, run):
    """A picture arrives in the run folder with the very pixels that it had, beside a thumbnail."""
    found = unpack({"b.png": picture(2), "a.png": picture(1)})

    assert [(image.file, image.source) for image in found.images] == [("0001.png", "a.png"), ("0002.png", "b.png")]
    assert pixels(run, 1).tobytes() == picture(1).tobytes()
    assert Image.open(run.thumbnails / "0001.webp").size == (32, 32)


def test_read_gives_back_what_unpack_found(unpack, run):
    """The dataset read from the run folder equals the one that unpacking returned."""
    found = unpack({"a.gif": encoded(picture(), "GIF"), "a.txt": "a pattern", "x.pdf": b"%PDF"})

    assert dataset.read(run) == found


def test_dataset_file_has_the_agreed_keys(unpack, run):
    """The file that page and worker read has the keys that they expect."""
    unpack({"a.png": picture(), "x.bin": b"%PDF"})

    values = json.loads((run.folder / "dataset.json").read_text(encoding="utf-8"))

    assert set(values) == {"images", "ignored", "warnings", "texts", "ground"}
    assert set(values["images"][0]) == {field.name for field in dataclasses.fields(Picture)}
    assert values["ignored"] == [{"file": "x.bin", "reason": "is not a picture", "count": 1}]


def test_a_run_without_pictures_says_so(run):
    """Reading the pictures of a run that has none is an error with a hint."""
    with pytest.raises(DatasetError, match="no pictures"):
        dataset.read(run)


def test_thumbnails_of_large_pictures_are_small(unpack, run):
    """The thumbnail's longest side is 256 px."""
    unpack({"a.png": picture(width=600, height=300)})

    assert Image.open(run.thumbnails / "0001.webp").size == (256, 128)


def test_progress_is_told_after_each_picture(unpack):
    """The callback hears how many files are done and how many there are, ignored ones included."""
    told = []

    unpack(
        {"a.png": picture(1), "b.png": b"broken", "c.png": picture(2)}, tell=lambda done, of: told.append((done, of))
    )

    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_second_zip_replaces_the_first(unpack, run):
    """Pictures and descriptions of an earlier ZIP do not mix with those of a later one."""
    unpack({"a.png": picture(1), "b.png": picture(2)})
    run.write("descriptions.json", {"style": {"0002.png": "old"}})

    unpack({"c.png": picture(3)})

    assert [path.name for path in run.images.iterdir()] == ["0001.png"]
    assert not (run.folder / "descriptions.json").exists()


def test_a_refused_zip_leaves_nothing_behind(unpack, run):
    """After an error in the middle, the run folder holds what it held before."""
    before = sorted(run.folder.iterdir())

    with pytest.raises(DatasetError):
        unpack({"a.png": picture(1), "b.png": bytes(65 * 2**20)})

    assert sorted(run.folder.iterdir()) == before


def test_a_refused_zip_leaves_earlier_pictures_alone(unpack, run):
    """A good dataset survives the upload of a bad ZIP."""
    first = unpack({"a.png": picture(1)})

    with pytest.raises(DatasetError):
        unpack({"b.txt": "no picture"})

    assert dataset.read(run) == first
    assert pixels(run).tobytes() == picture(1).tobytes()


def test_a_progress_callback_that_raises_leaves_nothing_behind(unpack, run):
    """Even an unexpected error removes what was written."""

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack({"a.png": picture()}, tell=interrupt)

    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


# --- order and names


def test_order_is_natural():
    """Numbers in names count as numbers, and a folder's pictures stay together."""
    names = ["img10.png", "b/1.png", "img2.png", "a/10.png", "a/9.png", "IMG1.png"]

    assert sorted(names, key=natural_order) == ["a/9.png", "a/10.png", "b/1.png", "IMG1.png", "img2.png", "img10.png"]


def test_a_name_of_thousands_of_digits_can_be_sorted():
    """A very long number in a name is compared without being converted."""
    assert natural_order("9" * 5000) > natural_order("1" * 5000)


def test_equal_names_in_different_folders_are_both_used(unpack):
    """Folders are flattened by numbering, so names cannot clash."""
    found = unpack({"a/x.png": picture(1), "b/x.png": picture(2)})

    assert [image.source for image in found.images] == ["a/x.png", "b/x.png"]


@pytest.mark.parametrize("name", ["猫.png", "Äpfel.png", "a b’c.png"])
def test_names_in_any_script_are_kept(unpack, name):
    """A name in UTF-8 is shown as it was written."""
    assert unpack({name: picture()}).images[0].source == name


@pytest.mark.parametrize("raw", [b"\x84pfel.png", "äpfel.png".encode()])
def test_names_without_the_utf8_flag_are_read(tmp_path, run, raw):
    """A name is read both as code page 437 and as UTF-8 that does not say so."""
    path = zip_of(tmp_path / "in.zip", {"x" * len(raw): picture()})
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))

    found = here(path, run)

    assert found.images[0].source == "äpfel.png"


def test_backslashes_separate_folders(tmp_path, run):
    """A ZIP of an old Windows program matches pictures and captions like any other."""
    path = zip_of(tmp_path / "in.zip", {"f/a.png": picture(), "f/a.txt": "a pattern"})
    path.write_bytes(path.read_bytes().replace(b"f/a", b"f\\a"))

    found = here(path, run)

    assert (found.images[0].source, found.images[0].caption) == ("f/a.png", "a pattern")


# --- what is ignored


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("noending", "is not a picture"),
        ("clip.mp4", "is not a picture: it is a video; save single pictures of it"),
        ("drawing.svg", "is not a picture: it is a drawing; save it as PNG"),
        ("IMG_1.NEF", "is not a picture: it is a camera’s raw picture; save it as JPEG"),
    ],
)
def test_other_files_are_listed(unpack, name, reason):
    """What is no picture is left out and listed, with what to do where something can be done."""
    assert reasons(unpack({"a.png": picture(), name: b"something"})) == {name: reason}


def test_clutter_is_listed_once(unpack):
    """Files that macOS and Windows add make one entry, however many they are."""
    clutter = ["__MACOSX/._a.png", "._a.png", ".DS_Store", "f/Thumbs.db", "desktop.ini"]

    found = unpack({"a.png": picture(), **{name: b"x" for name in clutter}})

    assert len(found.images) == len(found.ignored) == 1
    assert found.ignored[0].reason.startswith("5 files that macOS or Windows added")


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "..\\x.png", "\\\\h\\x.png"])
def test_names_that_leave_the_zip_are_ignored(tmp_path, run, name):
    """A ZIP entry that climbs out of the folder is refused, and nothing is written outside the run."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(1), name: picture(2)})
    before = {found for found in tmp_path.rglob("*") if run.folder not in found.parents}

    found = here(path, run)

    assert [image.source for image in found.images] == ["a.png"]
    assert "its name" in found.ignored[0].reason
    assert {found for found in tmp_path.rglob("*") if run.folder not in found.parents} == before


def test_dots_in_a_name_are_harmless(unpack):
    """Only “..” as a folder climbs; two dots inside a name do not."""
    assert len(unpack({"a..b.png": picture()}).images) == 1


def test_links_are_ignored(tmp_path, run):
    """A symbolic link in the ZIP is neither followed nor made."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture()})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as zip:
        zip.writestr(link, "/etc/passwd")

    assert reasons(here(path, run)) == {"link.png": "is a link, not a file"}


def test_a_zip_in_the_zip_is_ignored_with_a_hint(unpack, tmp_path):
    """A nested archive is not opened; its reason says what to do."""
    inner = zip_of(tmp_path / "inner.zip", {"b.png": picture(2)}).read_bytes()

    assert "unpack it" in reasons(unpack({"a.png": picture(1), "more.zip": inner}))["more.zip"]


def test_a_picture_with_the_same_pixels_is_ignored(unpack):
    """An exact duplicate is left out, and its reason names the twin, even in another format."""
    found = unpack({"a.png": picture(), "b.bmp": encoded(picture(), "BMP")})

    assert reasons(found) == {"b.bmp": "has the same pixels as a.png"}


def test_a_caption_of_an_ignored_picture_is_listed(unpack):
    """A caption goes with its picture, and is listed as well."""
    found = unpack({"a.png": picture(), "b.png": b"broken", "b.txt": "a thing"})

    assert reasons(found)["b.txt"] == "its picture was ignored"


# --- pictures


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "AVIF", "JPEG", "GIF"])
def test_every_format_is_read(unpack, run, format):
    """Each format that Pillow reads arrives with the colours that it had."""
    image = Image.new("RGB", (40, 24), (200, 60, 30))

    unpack({f"a.{format.lower()}": encoded(image, format)})

    assert pixels(run).size == (40, 24)
    assert near(pixels(run).getpixel((20, 12)), (200, 60, 30))


def test_heic_is_read(unpack, run):
    """A picture of a phone, in HEIC, arrives with its colours."""
    pillow_heif.register_heif_opener()
    image = Image.new("RGB", (64, 48), (200, 60, 30))

    unpack({"IMG_1.HEIC": encoded(image, "HEIF", quality=90)})

    assert pixels(run).size == (64, 48)
    assert near(pixels(run).getpixel((20, 20)), (200, 60, 30))


def test_content_decides_the_format(unpack):
    """A PNG that calls itself .jpg is a picture all the same."""
    assert len(unpack({"a.jpg": encoded(picture(), "PNG")}).images) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(unpack, run, format):
    """A picture that was taken upright is upright, whatever its format, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 32, 32))

    found = unpack({f"a.{format.lower()}": encoded(image, format, exif=exif)})

    assert (found.images[0].width, found.images[0].height) == (32, 64) == pixels(run).size
    assert near(pixels(run).getpixel((16, 8)), (0, 0, 255))
    assert "was rotated as its EXIF says" in found.images[0].notes


def test_heic_orientation_is_applied_once(unpack, run):
    """A HEIC whose container rotates it is not rotated a second time."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 32, 32))

    unpack({"a.heic": encoded(image, "HEIF", exif=exif.tobytes())})

    assert pixels(run).size == (32, 64)
    assert near(pixels(run).getpixel((16, 8)), (0, 0, 255), 30)


def test_alpha_becomes_white(unpack, run):
    """What is transparent is white, half of it half, and the note says so."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 128), (0, 0, 16, 32))

    found = unpack({"a.png": image})

    assert pixels(run).getpixel((24, 8)) == WHITE
    assert near(pixels(run).getpixel((8, 8)), (127, 127, 127), 1)
    assert found.images[0].notes == ("what was transparent became white",)


def test_an_opaque_alpha_channel_needs_no_note(unpack):
    """A picture whose alpha channel hides nothing is an ordinary picture."""
    assert unpack({"a.png": picture(mode="RGBA")}).images[0].notes == ()


@pytest.mark.parametrize(("ground", "pixel"), [("white", 255), ("black", 0), ("grey", 128)])
def test_ground_can_be_chosen(unpack, run, ground, pixel):
    """What is transparent becomes what was asked for, and the dataset remembers it."""
    found = unpack({"a.png": Image.new("RGBA", (32, 32), (0, 0, 0, 0))}, ground=ground)

    assert pixels(run).getpixel((8, 8)) == (pixel,) * 3
    assert found.images[0].notes == (f"what was transparent became {ground}",)
    assert dataset.read(run).ground == ground


def test_unknown_ground_is_refused(unpack):
    """There are three grounds, and what is none of them is named with the ones that there are."""
    with pytest.raises(ConfigError, match="no ground “pink”. Choose white, black, grey"):
        unpack({"a.png": picture()}, ground="pink")


def test_grey_with_alpha_becomes_white(unpack, run):
    """Grey pictures with alpha lie on white too."""
    unpack({"a.png": Image.new("LA", (32, 32), (0, 0))})

    assert pixels(run).getpixel((8, 8)) == WHITE


def test_a_transparent_palette_becomes_white(unpack, run):
    """The transparent colour of a palette is white."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])

    unpack({"a.png": encoded(image, transparency=0)})

    assert pixels(run).getpixel((8, 8)) == WHITE


@pytest.mark.parametrize(("mode", "value"), [("L", 100), ("1", 1), ("I;16", 100 * 257)])
def test_grey_in_any_depth_is_read(unpack, run, mode, value):
    """1, 8 and 16 bits of grey become the same grey in RGB."""
    unpack({"a.png": Image.new(mode, (32, 32), value)})

    assert pixels(run).getpixel((8, 8)) == (WHITE if mode == "1" else (100, 100, 100))


def test_floating_point_pictures_are_read(unpack, run):
    """A TIFF of numbers from 0 to 1 becomes grey from black to white."""
    image = Image.new("F", (32, 32), 1.0)
    image.paste(0.0, (0, 0, 16, 32))

    unpack({"a.tif": encoded(image, "TIFF")})

    assert (pixels(run).getpixel((8, 8)), pixels(run).getpixel((24, 8))) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted(unpack, run, format):
    """Print colours become screen colours, and the note says so."""
    found = unpack({f"a.{format.lower()}": encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), format)})

    red, green, blue = pixels(run).getpixel((8, 8))
    assert red > 200 and max(green, blue) < 60
    assert found.images[0].notes == ("was converted from CMYK to RGB",)


def test_an_icc_profile_is_applied(unpack, run):
    """A picture whose profile exchanges red and blue arrives with the colours that it means."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    exchanged = exchanged.replace(b"s\0R\0G\0B", b"o\0d\0d\0x").replace(b"sRGB", b"oddx")

    unpack({"a.png": encoded(Image.new("RGB", (32, 32), "red"), icc_profile=exchanged)})

    assert near(pixels(run).getpixel((8, 8)), (0, 0, 255), 40)


@pytest.mark.parametrize(("primaries", "gamma"), [(profiles.ADOBE, profiles.ADOBE_GAMMA), (profiles.P3, 2.2)])
@pytest.mark.parametrize("pixel", [(200, 100, 50), (40, 180, 90), (128, 128, 128), (10, 20, 240)])
def test_colours_of_cameras_and_phones_are_right(unpack, run, primaries, gamma, pixel):
    """Adobe RGB and Display P3 become the sRGB that the formulas of both give."""
    profile = profiles.matrix_profile(primaries, gamma, "Camera")

    found = unpack({"a.png": encoded(Image.new("RGB", (32, 32), pixel), icc_profile=profile)})

    assert near(pixels(run).getpixel((8, 8)), profiles.to_srgb(pixel, primaries, gamma), 1)
    assert found.images[0].notes == ("its colours were converted to sRGB",)


def test_grey_of_a_scanner_is_right(unpack, run):
    """Grey with a linear curve becomes the grey that looks as light in sRGB."""
    unpack({"a.png": encoded(Image.new("L", (32, 32), 55), icc_profile=profiles.grey_profile(1.0))})

    assert near(pixels(run).getpixel((8, 8)), (128, 128, 128), 1)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_of_a_profile_are_right(unpack, run, format):
    """Inks have the colours of their press, as the colour library alone converts them."""
    profile = profiles.ink_profile()
    image = Image.new("CMYK", (32, 32), (0, 0, 255, 0))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    wanted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")

    unpack({"a.x.tif": encoded(image, format, icc_profile=profile)})

    assert near(pixels(run).getpixel((8, 8)), wanted.getpixel((8, 8)), 2)
    assert not near(wanted.getpixel((8, 8)), (255, 255, 0), 30)


def test_inks_that_are_not_inverted_are_right(unpack):
    """A CMYK JPEG that is not Adobe's says how much ink there is, not how much is missing: the picture is the same."""
    found = unpack({"a.jpg": corpus.ink_of_no_adobe(), "b.jpg": corpus.ink("JPEG")})

    assert "adobe" not in Image.open(io.BytesIO(corpus.ink_of_no_adobe())).info
    assert reasons(found) == {"b.jpg": "has the same pixels as a.jpg"}


def test_16_bits_of_colour_become_the_nearest_8(unpack, run):
    """Of a PNG with 16 bits a colour the upper ones are kept, alpha included."""
    opaque, clear = (struct.pack(">4H", 40_000, 20_000, 10_000, alpha) for alpha in (65_535, 0))
    rows = zlib.compress((b"\0" + opaque * 16 + clear * 16) * 32)

    unpack({"a.png": hostile.png(32, 32, rows, colour=6, depth=16)})

    assert near(pixels(run).getpixel((8, 8)), (156, 78, 39), 1)
    assert pixels(run).getpixel((24, 8)) == WHITE


def test_a_broken_icc_profile_is_overlooked(unpack, run):
    """A profile that cannot be read costs the profile, not the picture, and a note says so."""
    found = unpack({"a.png": encoded(picture(), icc_profile=b"rubbish")})

    assert pixels(run).tobytes() == picture().tobytes()
    assert found.images[0].notes == ("its colour profile cannot be used",)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_used(unpack, run, format):
    """An animated file is one picture, with a note."""
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")

    found = unpack({f"a.{format.lower()}": encoded(first, format, save_all=True, append_images=[second])})

    assert near(pixels(run).getpixel((8, 8)), (255, 0, 0))
    assert found.images[0].notes == ("only the first of its pictures is used",)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_picture_is_ignored(unpack, format):
    """A picture that was cut off is left out, and the others are used."""
    whole = encoded(Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)), format)

    found = unpack({"a.png": picture(), f"b.{format.lower()}": whole[: len(whole) // 2]})

    assert [image.source for image in found.images] == ["a.png"]
    assert "damaged" in found.ignored[0].reason


@pytest.mark.parametrize("content", [b"", b"not a picture at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" + bytes(50)])
def test_a_file_that_only_looks_like_a_picture_is_ignored(unpack, content):
    """The ending of a name makes no picture."""
    found = unpack({"a.png": picture(), "b.png": content})

    assert reasons(found)["b.png"].startswith(("is damaged", "is empty", "cannot be read"))


def test_a_large_picture_is_reduced(unpack, run):
    """The longest side is at most 2048 px, and the proportions stay."""
    found = unpack({"a.png": picture(width=3000, height=1500)})

    assert pixels(run).size == (2048, 1024)
    assert found.images[0].notes == ("was reduced from 3,000 × 1,500 px",)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_20000_px_picture_is_reduced(unpack, run, format):
    """A picture of 20,000 px, larger than Pillow's own limit on area would allow twice over, is made small."""
    image = Image.new("L", (20_000, 10_000), 255)
    image.paste(0, (0, 0, 10_000, 10_000))

    unpack({f"a.{format.lower()}": encoded(image, format, **({"compress_level": 1} if format == "PNG" else {}))})

    assert pixels(run).size == (2048, 1024)
    assert near(pixels(run).getpixel((1000, 1000)), (0, 0, 0))
    assert near(pixels(run).getpixel((1050, 10)), WHITE)


def test_a_reduced_palette_keeps_alpha_and_place(unpack, run):
    """Reducing in strips puts every strip where it belongs, and leaves no dark fringe around what is transparent."""
    image = Image.new("RGBA", (8400, 1200), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 600, 8400, 1200))

    unpack({"a.png": encoded(image, compress_level=1)})

    assert pixels(run).size == (2048, 293)
    assert pixels(run).getpixel((1000, 140)) == WHITE
    assert pixels(run).getpixel((1000, 152)) == (255, 0, 0)


def test_more_pixels_than_the_limit_are_not_decoded(unpack):
    """A header that promises too much is believed, and the picture left out."""
    header = struct.pack(">IIBBBBB", 20_001, 20_001, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    content = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    found = unpack({"a.png": picture(), "b.png": content})

    assert reasons(found)["b.png"] == "is too large (20,001 × 20,001 px; 400 megapixels is the limit)"


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {}), ("JPEG", {"progressive": True})])
def test_a_picture_that_would_take_too_much_memory_is_not_decoded(unpack, format, options):
    """What decoding takes is estimated from the header, and too much of it costs the picture, not the machine."""
    large = encoded(Image.new("RGB", (600, 600)), format, **options)

    found = unpack({"a.png": picture(), "b.png": large}, limits=Limits(decoded_bytes=2**20))

    assert "of memory" in reasons(found)["b.png"]


def test_a_jpeg_is_decoded_small(unpack):
    """A JPEG takes the memory of the size that it is decoded to, not of its own."""
    large = encoded(Image.new("RGB", (8192, 512)), "JPEG")

    assert len(unpack({"a.jpg": large}, limits=Limits(decoded_bytes=2**22)).images) == 1


def test_pillows_global_limit_is_left_alone(unpack):
    """Other code in this process keeps the limit that it relies on."""
    before = Image.MAX_IMAGE_PIXELS

    unpack({"a.png": picture()})

    assert before == Image.MAX_IMAGE_PIXELS


def test_a_tiny_picture_is_ignored(unpack):
    """Below 16 px a side there is nothing to learn."""
    found = unpack({"a.png": picture(), "b.png": picture(1, 100, 15), "c.png": picture(2, 16, 16)})

    assert reasons(found) == {"b.png": "is too small (100 × 15 px; 16 px a side is the least)"}


def test_a_very_long_picture_has_a_note(unpack):
    """A picture that training will crop hard says so beforehand."""
    assert "training crops its ends" in unpack({"a.png": picture(width=400, height=50)}).images[0].notes[0]


def test_a_picture_that_reducing_makes_too_narrow_is_ignored(unpack):
    """A strip of which reducing would leave a few rows has nothing to teach."""
    found = unpack({"a.png": picture(), "b.png": picture(1, 9000, 40)})

    assert reasons(found) == {"b.png": "is too narrow for its length (9,000 × 40 px)"}


# --- captions


def caption(unpack, content: Content) -> dataset.Picture:
    return unpack({"a.png": picture(), "a.txt": content}).images[0]


@pytest.mark.parametrize(
    "content",
    [
        "a café",
        "a café".encode("utf-8-sig"),
        "a café".encode("utf-16"),
        b"\xfe\xff" + "a café".encode("utf-16-be"),
        "a café".encode("utf-16-le"),
        "a café".encode("utf-16-be"),
        "  a\r\n\tcafé \n",
    ],
)
def test_captions_are_read_in_unicode(unpack, content):
    """A caption reads the same in each encoding of Unicode, with or without a mark, its blanks made even."""
    found = caption(unpack, content)

    assert (found.caption, found.caption_source, found.notes) == ("a café", "a.txt", ())


def test_cp1252_is_the_last_guess(unpack):
    """A caption of an old Windows program is read, with a note."""
    found = caption(unpack, "a café – “new”".encode("cp1252"))

    assert found.caption == "a café – “new”"
    assert found.notes == ("its caption is not UTF-8 and was read as Windows-1252",)


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x81\x8d\xff", b"\xff\xfe\x00\xd8", b"a\x00b\x01"])
def test_an_unreadable_caption_is_listed(unpack, content):
    """A text file that holds no text costs the caption, not the picture."""
    found = unpack({"a.png": picture(), "a.txt": content})

    assert found.images[0].caption is None
    assert reasons(found) == {"a.txt": "is not readable text; save it as UTF-8"}


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xef\xbb\xbf"])
def test_an_empty_caption_is_listed(unpack, content):
    """An empty caption file is no caption, and is listed."""
    found = unpack({"a.png": picture(), "a.txt": content})

    assert (found.images[0].caption, reasons(found)) == (None, {"a.txt": "is empty"})


def test_a_caption_without_a_picture_is_listed(unpack):
    """A text file beside no picture of its name is left out; one in another folder is not its caption."""
    found = unpack({"a.png": picture(), "README.txt": "hello", "f/a.txt": "elsewhere"})

    assert found.images[0].caption is None
    assert set(reasons(found)) == {"README.txt", "f/a.txt"}


def test_a_caption_is_found_by_its_stem_in_the_same_folder(unpack):
    """Equal stems in two folders keep their own captions, and capital letters do not matter."""
    found = unpack({"f/A.PNG": picture(1), "f/a.txt": "one", "g/a.png": picture(2), "g/a.txt": "two"})

    assert [image.caption for image in found.images] == ["one", "two"]


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv", "f/captions.csv"])
@pytest.mark.parametrize("header", ["file,caption", "file_name,text", "image,prompt", "File;Caption", "file\tcaption"])
def test_a_csv_table_gives_captions(unpack, name, header):
    """A table is read with each of the usual titles and separators, from its own folder."""
    mark = next(letter for letter in header if letter in ",;\t")
    folder = name.rpartition("/")[0]
    table = f'{header}\r\na.png{mark}"a cat{mark} asleep"\r\n'

    found = unpack({f"{folder}/a.png".lstrip("/"): picture(), name: table})

    assert (found.images[0].caption, found.images[0].caption_source) == (f"a cat{mark} asleep".replace("\t", ""), name)


def test_a_jsonl_table_gives_captions(unpack):
    """The table of a Hugging Face image folder is read; a broken line is listed, the others count."""
    table = '{"file_name": "a.png", "text": "a cat"}\n{broken\n\n{"file_name": "f/b.png", "text": "a dog"}\n'

    found = unpack({"a.png": picture(1), "f/b.png": picture(2), "metadata.jsonl": table})

    assert [image.caption for image in found.images] == ["a cat", "a dog"]
    assert found.texts == (Text("metadata.jsonl", 2, ("line 2 cannot be read as JSON",)),)


def test_rows_of_a_table_that_are_of_no_use_are_listed(unpack):
    """A row for a picture that is not there, and a row without a caption, are named."""
    found = unpack({"a.png": picture(), "captions.csv": "file,caption\nx.png,a cat\na.png,\n"})

    assert reasons(found) == {
        "captions.csv": "a row is for no picture of the ZIP: x.png; no caption in it for a.png",
    }


@pytest.mark.parametrize("table", ["name,words\na.png,a cat\n", "", 'file,caption\na.png,"' + "x" * 200_000])
def test_a_table_that_cannot_be_read_is_listed(unpack, table):
    """A table without the two columns, or that is none, costs the captions, not the pictures."""
    found = unpack({"a.png": picture(), "captions.csv": table})

    assert found.images[0].caption is None
    assert set(reasons(found)) == {"captions.csv"}


def test_a_text_file_wins_over_a_table(unpack):
    """Of two captions the picture's own file is taken, and a note says so."""
    found = unpack({"a.png": picture(), "a.txt": "mine", "captions.csv": "file,caption\na.png,theirs\n"})

    assert found.images[0].caption == "mine"
    assert found.images[0].notes == ("has two captions; the one of a.txt was taken, not of captions.csv",)


@pytest.mark.parametrize("row", ["a.png", "./A.PNG", "f\\\\a.png", "/home/me/train/f/a.png", "C:\\\\x\\\\f\\\\a"])
def test_a_table_may_call_a_picture_by_any_path(unpack, row):
    """The end of a path decides, with the ending or without, whoever's disk it is on."""
    table = f'{{"file_name": "{row}", "text": "a cat"}}'

    found = unpack({"f/a.png": picture(1), "g/b.png": picture(2), "metadata.jsonl": table})

    assert [image.caption for image in found.images] == ["a cat", None]


def test_a_name_that_fits_two_pictures_is_none(unpack):
    """A bare name that two folders have is not guessed."""
    found = unpack({"f/a.png": picture(1), "g/a.png": picture(2), "captions.csv": "file,caption\na.png,a cat\n"})

    assert [image.caption for image in found.images] == [None, None]


# --- files one by one, and folders


def loose(folder: Path, files: dict[str, Content]) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(content) if isinstance(content, Image.Image) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def test_a_folder_is_read_like_a_zip(tmp_path, run, unpack):
    """A folder comes to the same pictures, captions and report as the same files in a ZIP."""
    files = {"10_dog/a.png": picture(1), "10_dog/a.txt": "a dog", "b.png": picture(2), "x.pdf": b"%PDF"}
    folder = loose(tmp_path / "dogs", files)

    found = here(dataset.files([folder]), run)

    zipped = unpack({f"dogs/{name}": content for name, content in files.items()})
    assert found == zipped
    assert [image.repeats for image in found.images] == [1, 10][::-1]


def test_files_are_read_in_a_process_of_their_own(tmp_path, run):
    """Files without a ZIP go the same way, under the same limits."""
    folder = loose(tmp_path / "dogs", {"a.png": picture(1), "a.txt": "a dog"})

    found = dataset.unpack(dataset.files([folder / "a.png", folder / "a.txt"]), run)

    assert [(image.source, image.caption) for image in found.images] == [("a.png", "a dog")]


def test_a_single_zip_among_files_is_opened(tmp_path, run):
    """One file that is a ZIP is one, whatever it is called."""
    path = zip_of(tmp_path / "dogs.cbz", {"a.png": picture(1)})

    assert here(dataset.files([path]), run).images[0].source == "a.png"


def test_a_zip_among_other_files_is_listed(tmp_path, run):
    """Several files of which one is a ZIP: it is left out, and the reason says what to do."""
    inner = zip_of(tmp_path / "more.zip", {"b.png": picture(2)}).read_bytes()
    folder = loose(tmp_path / "dogs", {"a.png": picture(1), "more.zip": inner})

    assert "upload it alone" in reasons(here(dataset.files([folder]), run))["dogs/more.zip"]


def test_two_files_of_one_name_are_both_used(tmp_path, run):
    """Pictures of two cameras may have one name: each keeps its own caption."""
    folder = loose(tmp_path, {"1/a.png": picture(1), "1/a.txt": "one", "2/a.png": picture(2), "2/a.txt": "two"})
    upload = [(path.name, path) for path in sorted(folder.glob("[12]/*"))]

    found = here(upload, run)

    assert [(one.source, one.caption) for one in found.images] == [("a (2).png", "two"), ("a.png", "one")]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "C:/a.png", "f/../../a.png"])
def test_names_of_files_are_not_believed(tmp_path, run, name):
    """What a browser calls a file is held to the same rules as a name in a ZIP."""
    folder = loose(tmp_path / "in", {"a.png": picture(1), "b.png": picture(2)})

    found = here([(name, folder / "a.png"), ("b.png", folder / "b.png")], run)

    assert [image.source for image in found.images] == ["b.png"]
    assert "its name" in reasons(found)[name]


def test_links_in_a_folder_are_listed_and_not_followed(tmp_path, run):
    """A link to another folder would lead anywhere, and perhaps in circles."""
    folder = loose(tmp_path / "dogs", {"a.png": picture(1)})
    (folder / "round").symlink_to(folder, target_is_directory=True)

    assert reasons(here(dataset.files([folder]), run)) == {
        "dogs/round": "is a folder, a broken link or a device, not a file"
    }


def test_a_path_that_is_not_there_is_named(tmp_path):
    """Before anything is read, each path is looked for."""
    with pytest.raises(DatasetError, match="There is no file"):
        dataset.files([tmp_path / "gone"])


def test_too_many_files_of_a_folder_are_refused(tmp_path, run):
    """A folder of countless files is refused as a ZIP of them is."""
    folder = loose(tmp_path / "dogs", {f"{number}.png": b"" for number in range(4)})

    with pytest.raises(DatasetError, match="more than 3 files"):
        here(dataset.files([folder]), run, limits=Limits(files=3))


# --- repeats


def test_passes_count_repeats_by_their_ratio(unpack):
    """100 steps of 4 pictures: four pictures come 100 times each; with 20 and 10 repeats, once per three."""
    files = {f"{number}.png": picture(number) for number in range(4)}
    kohya = {"20_a/1.png": picture(1), "10_b/2.png": picture(2)}

    assert dataset.passes(unpack(files), 100, 4) == 100
    assert dataset.passes(unpack({f"10_a/{name}": file for name, file in files.items()}), 100, 4) == 100
    assert dataset.passes(unpack(kohya), 300, 1) == 100


def test_many_folders_with_repeats_are_said_in_short(unpack):
    """Of dozens of folders the first are named."""
    found = unpack({f"{number}_x/{number}.png": picture(number) for number in range(1, 20)})

    assert len(found.warnings) == 6
    assert found.warnings[-1] == "So do 13 more of its folders, each by its number."


# --- ZIPs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"Rar!\x1a\x07\x00 and so on", "not a ZIP"),
        (b"PK\x03\x04 cut off", "damaged"),
        (b"PK\x05\x06" + bytes(18), "The ZIP is empty"),
    ],
)
def test_what_is_not_a_whole_zip_is_refused(tmp_path, run, content, message):
    """A file that is no ZIP, or not all of one, is refused in words that fit."""
    path = tmp_path / "in.zip"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=message) as caught:
        here(path, run)

    assert caught.value.hint


def test_a_missing_file_is_a_dataset_error(tmp_path, run):
    """A ZIP that has gone is the user's matter, not a traceback."""
    with pytest.raises(DatasetError, match="No such file|could not be stored"):
        here(tmp_path / "gone.zip", run)


@pytest.mark.parametrize("files", [{"a.txt": "x"}, {"a.pdf": b"x"}, {".DS_Store": b"x"}])
def test_a_zip_without_pictures_is_refused(unpack, files):
    """Without a single picture there is nothing to train on; the hint names what the ZIP holds."""
    with pytest.raises(DatasetError, match="no picture in the ZIP") as caught:
        unpack(files)

    assert next(iter(files)) in caught.value.hint


def test_a_zip_of_broken_pictures_is_refused(unpack):
    """If no picture can be used, the error says why."""
    with pytest.raises(DatasetError, match="can be used") as caught:
        unpack({"a.png": b"broken"})

    assert "a.png is damaged" in caught.value.hint and caught.value.file == "a.png"


def test_a_zip_with_a_password_is_refused(tmp_path, run):
    """An encrypted ZIP is recognised before anything is read."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture()})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)

    with pytest.raises(DatasetError, match="password"):
        here(path, run)


def test_a_picture_with_a_wrong_checksum_is_ignored(tmp_path, run):
    """A file that was damaged inside the ZIP is left out, and the others are used."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(1), "b.png": picture(2)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"IEND")] ^= 1
    path.write_bytes(content)

    found = here(path, run)

    assert reasons(found) == {"b.png": "is damaged inside the ZIP"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_damage_under_any_compression_is_survived(tmp_path, run, compression):
    """Bytes that cannot be unpacked cost one picture, whatever packed them."""
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    path = zip_of(tmp_path / "in.zip", {"a.png": noise, "b.png": picture(2)}, compression)
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)

    assert [image.source for image in here(path, run).images] == ["b.png"]


def test_a_damaged_list_of_files_is_refused(tmp_path, run):
    """A ZIP whose table of contents is rubbish is refused as damaged."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture()})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)

    with pytest.raises(DatasetError, match="damaged"):
        here(path, run)


def test_an_unknown_compression_is_ignored_with_its_reason(tmp_path, run):
    """A file packed in a way that Python cannot read is left out, and the others are used."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(1), "b.png": picture(2)})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.rindex(mark) + offset] = 9  # Deflate64
    path.write_bytes(content)

    assert "compressed in a way" in reasons(here(path, run))["b.png"]


def test_a_bomb_is_refused_early(unpack):
    """A ZIP that unpacks to hundreds of times its size is stopped, in words that name the file."""
    with pytest.raises(DatasetError, match="200 times") as caught:
        unpack({"a.png": bytes(65 * 2**20), "b.png": picture()})

    assert caught.value.file == "a.png"


def test_a_bomb_of_a_declared_size_is_not_even_opened(unpack):
    """A file that declares more than a file may have, from next to nothing, is a bomb."""
    with pytest.raises(DatasetError, match="200 times"):
        unpack({"a.png": bytes(2**20)}, limits=Limits(file_bytes=2**19))


def test_files_that_together_are_a_bomb_are_refused(tmp_path, run):
    """Many names for the same bytes count as often as they are read."""
    path = zip_of(tmp_path / "in.zip", {f"{number}.png": bytes(2**20) for number in range(70)})

    with pytest.raises(DatasetError, match="200 times"):
        here(path, run)


def test_a_bomb_among_the_captions_is_refused(unpack):
    """Text files are held to the same limits as pictures."""
    with pytest.raises(DatasetError, match="200 times"):
        unpack({"a.png": picture(), "a.txt": b" " * (2 * 2**20)})


def test_a_bomb_that_nobody_reads_is_harmless(unpack):
    """A file that is no picture is never unpacked, so its size does not matter."""
    assert reasons(unpack({"a.png": picture(), "a.bin": bytes(65 * 2**20)})) == {"a.bin": "is not a picture"}


def test_a_file_over_the_limit_is_ignored(unpack):
    """One file that is honestly too large is left out, and the others are used."""
    found = unpack({"a.png": picture(), "b.png": random.Random(0).randbytes(2**21)}, limits=Limits(file_bytes=2**20))

    assert reasons(found) == {"b.png": "is larger than 1 MiB"}


def test_the_sum_of_all_files_has_a_limit(unpack):
    """A ZIP that unpacks to more than the machine allows is refused."""
    content = {f"{seed}.png": random.Random(seed).randbytes(2**20) for seed in range(3)}

    with pytest.raises(DatasetError, match="comes to more"):
        unpack(content, limits=Limits(total_bytes=2**21))


@pytest.mark.parametrize("count", [1, 3])
def test_few_pictures_are_allowed_with_a_warning(unpack, count):
    """One picture can be trained; the dataset says that four would teach better."""
    found = unpack({f"{number}.png": picture(number) for number in range(count)})

    assert len(found.images) == count
    assert "4 or more teach better" in found.warnings[0]


def test_two_hundred_pictures_are_fine(unpack):
    """A large dataset is unpacked in order and without a warning."""
    found = unpack({f"{number}.png": picture(number, 16, 16) for number in range(200)})

    assert [image.source for image in found.images] == [f"{number}.png" for number in range(200)]
    assert found.warnings == ()


def test_too_many_pictures_are_refused(unpack):
    """More pictures than the limit are refused before the first is read."""
    with pytest.raises(DatasetError, match="holds 1,001 pictures; 1,000 is the limit"):
        unpack({f"{number}.png": b"" for number in range(1001)})


def test_too_many_files_are_refused(unpack):
    """A ZIP of countless files is refused whatever they are."""
    with pytest.raises(DatasetError, match="holds 3 files; 2 is the limit"):
        unpack({"a.png": picture(), "b": b"", "c": b""}, limits=Limits(files=2))
