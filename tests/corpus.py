"""Awkward ZIPs as people and other programs make them, each with what is to become of every file in it.

A case's report names each file with `used`, `repaired: …` or `ignored: …`, where the words are a part of what is said.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pillow_heif
import profiles
from hostile import Member, zip_bytes
from pictures import Content, encoded, picture
from PIL import Image, ImageChops

Files = dict[str, Content]
NO_PICTURE = "ignored: is not a picture"
WEIGHTS, SETTINGS = f"{NO_PICTURE}: it holds weights", f"{NO_PICTURE}: it holds settings"
CLUTTER = "that macOS or Windows added"


@dataclass(frozen=True)
class Case:
    """What is in a ZIP, and what is to come of it."""

    files: Files | Callable[[], Files | bytes]
    report: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    """By picture; others have none."""
    repeats: dict[str, int] = field(default_factory=dict)
    """By picture; others come once."""
    warnings: tuple[str, ...] = ()
    refused: str = ""
    """A part of what is said when nothing can be used."""

    def zip(self) -> bytes:
        """The ZIP."""
        files = self.files() if callable(self.files) else self.files
        return files if isinstance(files, bytes) else zipped(files)


def zipped(files: Files) -> bytes:
    """A ZIP as most programs make it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zip:
        for name, content in files.items():
            zip.writestr(name, encoded(content) if isinstance(content, Image.Image) else content)
    return made.getvalue()


def old_zip(encoding: str, *names: str) -> bytes:
    """A ZIP of a system with names in its own encoding; what ends in .txt says its name."""
    members = []
    for number, name in enumerate(names):
        content = name.encode() if name.endswith(".txt") else encoded(picture(number))
        members.append(Member(name.encode(encoding), content, flags=0))
    return zip_bytes(members)


def repeated_name(name: str, shown: str) -> bytes:
    """A ZIP whose names cannot be read, repeated in UTF-8 as 7-Zip and WinRAR do."""
    content = struct.pack("<BL", 1, zlib.crc32(shown.encode())) + name.encode()
    extra = struct.pack("<HH", 0x7075, len(content)) + content
    return zip_bytes([Member(shown.encode(), encoded(picture()), flags=0, extra=extra)])


def two_colours() -> Image.Image:
    """Blue on the left, red on the right."""
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 32, 32))
    return image


def turned(format: str) -> bytes:
    """A picture that says it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(two_colours(), format, exif=exif.tobytes() if format == "HEIF" else exif)


def phone(seed: int) -> bytes:
    """A picture of a phone, in its format and colours."""
    pillow_heif.register_heif_opener()
    profile = profiles.matrix_profile(profiles.P3, 2.2, "Display P3")
    return encoded(picture(seed, 64, 48), "HEIF", icc_profile=profile)


def clear(mode: str = "RGBA") -> Image.Image:
    """A dot on nothing."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((200, 60, 30, 255), (8, 8, 24, 24))
    return image.convert(mode)


def clear_palette() -> bytes:
    """A palette of which one colour is transparent."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 16, 32))
    return encoded(image, transparency=0)


def ink(format: str, **options: object) -> bytes:
    """A picture for a press."""
    return encoded(picture(3).convert("CMYK"), format, **options)


def ink_of_no_adobe() -> bytes:
    """A picture for a press whose inks are not inverted, as programs other than Adobe's write it."""
    made = encoded(ImageChops.invert(picture(3).convert("CMYK")), "JPEG")
    start = made.index(b"\xff\xee")
    (size,) = struct.unpack(">H", made[start + 2 : start + 4])
    return made[:start] + made[start + 2 + size :]


def pages(format: str) -> bytes:
    """A file of three pictures."""
    return encoded(picture(1), format, save_all=True, append_images=[picture(2), picture(3)])


def some(*names: str) -> Files:
    """Pictures that differ."""
    return {name: picture(number + 10) for number, name in enumerate(names)}


def used(*names: str) -> dict[str, str]:
    """A report on files that need no repair."""
    return dict.fromkeys(names, "used")


def rows(**captions: str) -> str:
    """Lines of JSON for pictures a, b, …"""
    return "\n".join(json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in captions.items())


A, B = some("a.png"), some("x.png", "b.png")
CAPTIONED = {"a.png": "a cat", "b.png": "a dog"}
TWO = some("a.png", "b.png")
FORMATS = {
    **{
        f"format-{name}": Case(
            lambda name=name: {f"a.{name.lower()}": encoded(picture(), name)}, used(f"a.{name.lower()}")
        )
        for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    },
    "phone": Case(
        lambda: {"IMG_1.HEIC": phone(1), "IMG_2.HEIC": phone(2), "IMG_2.MOV": b"film"},
        {
            **dict.fromkeys(("IMG_1.HEIC", "IMG_2.HEIC"), "repaired: colours were converted to sRGB"),
            "IMG_2.MOV": f"{NO_PICTURE}: it is a video",
        },
    ),
    "wrong-ending": Case({"a.jpg": picture(1), "b.png": encoded(picture(2), "JPEG")}, used("a.jpg", "b.png")),
    "grey-1-bit": Case({"a.png": Image.linear_gradient("L").convert("1")}, used("a.png")),
    "grey-16-bit": Case({"a.png": picture().convert("L").convert("I;16")}, used("a.png")),
    "tiff-16-bit": Case(
        lambda: {"a.tif": encoded(picture().convert("L").convert("I;16"), "TIFF", compression="tiff_lzw")},
        used("a.tif"),
    ),
    "palette": Case({"a.png": picture().quantize(8)}, used("a.png")),
    "palette-transparent": Case(lambda: {"a.png": clear_palette()}, {"a.png": "repaired: became white"}),
    "alpha": Case({"a.png": clear()}, {"a.png": "repaired: what was transparent became white"}),
    "alpha-grey": Case({"a.png": clear("LA")}, {"a.png": "repaired: what was transparent became white"}),
    "alpha-webp": Case(
        lambda: {"a.webp": encoded(clear(), "WEBP", lossless=True)}, {"a.webp": "repaired: became white"}
    ),
    "alpha-unused": Case({"a.png": picture(mode="RGBA")}, used("a.png")),
    "cmyk-jpeg": Case(lambda: {"a.jpg": ink("JPEG")}, {"a.jpg": "repaired: was converted from CMYK to RGB"}),
    "cmyk-tiff": Case(lambda: {"a.tif": ink("TIFF")}, {"a.tif": "repaired: was converted from CMYK to RGB"}),
    "cmyk-profile": Case(
        lambda: {"a.jpg": ink("JPEG", icc_profile=profiles.ink_profile())}, {"a.jpg": "repaired: from CMYK to RGB"}
    ),
    "cmyk-not-inverted": Case(lambda: {"a.jpg": ink_of_no_adobe()}, {"a.jpg": "repaired: from CMYK to RGB"}),
    **{
        f"turned-{name}": Case(
            lambda name=name: {f"a.{name.lower()}": turned(name)},
            {f"a.{name.lower()}": "repaired: rotated as its EXIF"},
        )
        for name in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
    },
    "profile": Case(
        lambda: {"a.png": encoded(picture(), icc_profile=profiles.matrix_profile(profiles.ADOBE, 2.2, "Adobe RGB"))},
        {"a.png": "repaired: its colours were converted to sRGB"},
    ),
    "profile-grey": Case(
        lambda: {"a.png": encoded(picture().convert("L"), icc_profile=profiles.grey_profile(1.8))},
        {"a.png": "repaired: its colours were converted to sRGB"},
    ),
    "profile-of-ink-on-a-screen": Case(
        lambda: {"a.png": encoded(picture(), icc_profile=profiles.ink_profile())},
        {"a.png": "repaired: its colour profile cannot be used"},
    ),
    **{
        f"pages-{name}": Case(
            lambda name=name: {f"a.{name.lower()}": pages(name)},
            {f"a.{name.lower()}": "repaired: only the first of its pictures is used"},
        )
        for name in ("GIF", "TIFF", "WEBP", "PNG")
    },
    "large": Case({"a.png": picture(width=3000, height=200)}, {"a.png": "used: was reduced from 3,000 × 200 px"}),
    "small": Case({**A, "b.png": picture(1, 15, 15)}, {"a.png": "used", "b.png": "ignored: is too small (15 × 15 px"}),
    "broken": Case(
        {**A, "b.png": encoded(picture())[:60], "c.jpg": b"", "d.png": b"no picture", "e.heic": b"\0\0\0 ftypheic"},
        {
            "a.png": "used",
            "b.png": "ignored: damaged",
            "c.jpg": "ignored: is empty (0 bytes)",
            "d.png": "ignored: is damaged, or not JPEG",
            "e.heic": "ignored: damaged",
        },
    ),
    "twins": Case(
        lambda: {"a.png": picture(1), "copy of a.bmp": encoded(picture(1), "BMP")},
        {"a.png": "used", "copy of a.bmp": "ignored: has the same pixels as a.png"},
    ),
}
CAPTIONS = {
    "txt": Case({**TWO, "a.txt": "a cat", "b.txt": "a dog"}, used("a.png", "b.png", "a.txt", "b.txt"), CAPTIONED),
    "caption": Case({**TWO, "a.caption": "a cat", "b.txt": "a dog"}, used(*TWO, "a.caption", "b.txt"), CAPTIONED),
    "caption-and-txt": Case(
        {**A, "a.caption": "cat, sitting", "a.txt": "a cat"},
        {
            "a.png": "repaired: has two captions; the one of a.txt was taken, not of a.caption",
            "a.txt": "used",
            "a.caption": "ignored: its pictures have captions of their own",
        },
        {"a.png": "a cat"},
    ),
    "name-with-ending": Case({**A, "a.png.txt": "a cat"}, used("a.png", "a.png.txt"), {"a.png": "a cat"}),
    "one-caption-for-two": Case(
        lambda: {"a.jpg": encoded(picture(1), "JPEG"), "a.png": picture(2), "a.txt": "a cat, asleep, 8k"},
        {
            "a.jpg": "used: shares the caption of a.png",
            "a.png": "used: shares the caption of a.jpg",
            "a.txt": "used: captions of 2 pictures",
        },
        dict.fromkeys(("a.jpg", "a.png"), "a cat, asleep, 8k"),
    ),
    **{
        f"encoding-{encoding}": Case(
            lambda encoding=encoding, text=text: {**A, "a.txt": text.encode(encoding)},
            {"a.png": f"repaired: was read as {title}", "a.txt": f"repaired: was read as {title}"},
            {"a.png": text},
        )
        for encoding, title, text in (
            ("cp1252", "Windows-1252", "une forêt près d’un étang"),
            ("cp1250", "Windows-1250", "mała łódź na jeziorze"),
            ("cp1251", "Windows-1251", "рыжая кошка в шляпе"),
            ("koi8_r", "KOI8-R", "рыжая кошка в шляпе"),
            ("cp932", "Shift-JIS", "赤い帽子をかぶった猫"),
            ("gb18030", "GBK", "一只戴红帽子的猫坐在窗边"),
            ("big5", "Big5", "一隻戴紅帽子的貓"),
            ("cp949", "EUC-KR", "빨간 모자를 쓴 고양이"),
        )
    },
    **{
        f"encoding-{encoding}": Case(
            lambda encoding=encoding: {**A, "a.txt": "a café".encode(encoding)},
            used("a.png", "a.txt"),
            {"a.png": "a café"},
        )
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")
    },
    "orphans": Case(
        {**A, "b.txt": "a dog", "README.txt": "hello", "f/a.txt": "elsewhere", "c.caption": "none"},
        {
            "a.png": "used",
            **dict.fromkeys(("b.txt", "README.txt", "f/a.txt", "c.caption"), "ignored: no picture of this"),
        },
    ),
    "unreadable-captions": Case(
        {**TWO, "a.txt": b"", "b.txt": bytes(range(256))},
        {**used(*TWO), "a.txt": "ignored: is empty", "b.txt": "ignored: is not readable text"},
    ),
    **{
        f"table-{name}": Case({**TWO, name: text}, used(*TWO, name), CAPTIONED)
        for name, text in (
            ("captions.csv", "file,caption\na.png,a cat\nb.png,a dog\n"),
            ("metadata.csv", "file_name;text\r\na.png;a cat\r\nb.png;a dog\r\n"),
            ("labels.tsv", "image\tprompt\na.png\ta cat\nb.png\ta dog\n"),
            ("no titles.csv", 'a.png,"a cat"\nb.png,"a dog"\n'),
            ("captions.jsonl", rows(a="a cat", b="a dog")),
            ("metadata.jsonl", rows(a="a cat", b="a dog").replace("file_name", "image").replace("text", "caption")),
            ("captions.json", json.dumps({"a.png": "a cat", "b": "a dog"})),
            (
                "metadata.json",
                json.dumps([{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": "a dog"}]),
            ),
        )
    },
    "table-incomplete": Case(
        {**TWO, "captions.csv": "file,caption\na.png,a cat\nb.png,\ngone.png,a dog\na.png,again\n"},
        {
            **used(*TWO),
            "captions.csv": "used: a row is for no picture of the ZIP: gone.png; no caption in it for b.png; ",
        },
        {"a.png": "a cat"},
        warnings=("captions.csv: a row is for no picture of the ZIP: gone.png.",),
    ),
    "table-of-something-else": Case(
        {**A, "prices.csv": "item,price\npear,1\n", "package.json": "{}"},
        {"a.png": "used", "prices.csv": "ignored: needs a column “file_name”", "package.json": SETTINGS},
    ),
    "two-tables": Case(
        {**A, "captions.csv": "file,caption\na.png,a cat\n", "metadata.jsonl": rows(a="a dog")},
        {
            "a.png": "repaired: the one of metadata.jsonl was taken",
            "captions.csv": "ignored: its pictures have captions of their own",
            "metadata.jsonl": "used",
        },
        {"a.png": "a dog"},
    ),
}
TRAINERS = {
    "hub-imagefolder": Case(
        {
            **some("train/a.png", "train/b.png"),
            "train/metadata.jsonl": rows(a="a cat", b="a dog"),
            "README.md": "# Cats",
        },
        {**used("train/a.png", "train/b.png", "train/metadata.jsonl"), "README.md": NO_PICTURE},
        {"train/a.png": "a cat", "train/b.png": "a dog"},
    ),
    "hub-parquet": Case(
        {**A, "data/train.parquet": b"PAR1"},
        {"a.png": "used", "data/train.parquet": "ignored: is not a picture: it is a table"},
    ),
    "kohya": Case(
        {
            **some("img/10_rex dog/a.png", "img/10_rex dog/b.png", "img/2_dogs/c.png", "reg/1_dog/r.png"),
            "img/10_rex dog/a.txt": "rex, a dog",
            "reg/1_dog/r.txt": "a dog",
            "log/events.out.tfevents.1": b"x",
            "model/rex.safetensors": b"x",
        },
        {
            "img/10_rex dog/a.png": "used: comes 10 times as often",
            "img/10_rex dog/b.png": "used: comes 10 times as often",
            "img/2_dogs/c.png": "used: comes 2 times as often",
            "img/10_rex dog/a.txt": "used",
            "reg/1_dog/r.png": "ignored: is in the folder reg, so a regularisation picture",
            "reg/1_dog/r.txt": "ignored: no picture of this name",
            "log/events.out.tfevents.1": NO_PICTURE,
            "model/rex.safetensors": WEIGHTS,
        },
        {"img/10_rex dog/a.png": "rex, a dog"},
        {"img/10_rex dog/a.png": 10, "img/10_rex dog/b.png": 10, "img/2_dogs/c.png": 2},
        (
            "kohya’s folder 10_rex dog: each picture comes 10 times as often.",
            "kohya’s folder 2_dogs: each picture comes 2",
        ),
    ),
    "kohya-one-folder": Case(
        some("10_rex/a.png", "10_rex/b.png"),
        used("10_rex/a.png", "10_rex/b.png"),
        repeats={"10_rex/a.png": 10, "10_rex/b.png": 10},
        warnings=(
            "kohya’s folder 10_rex: each picture comes 10",
            "As that holds for all pictures, it changes nothing.",
        ),
    ),
    "kohya-metadata": Case(
        {
            **some("10_x/a.png", "10_x/b.png"),
            "meta_lat.json": json.dumps(
                {
                    "C:\\train\\10_x\\a.png": {
                        "caption": "a cat",
                        "tags": "1cat, sitting",
                        "train_resolution": [512, 512],
                    },
                    "/home/me/10_x/b": {"tags": "1dog"},
                }
            ),
            "10_x/a.npz": b"x",
        },
        {
            **used("10_x/a.png", "10_x/b.png", "meta_lat.json"),
            "10_x/a.npz": f"{NO_PICTURE}: it holds what a trainer had",
        },
        {"10_x/a.png": "a cat, 1cat, sitting", "10_x/b.png": "1dog"},
        {"10_x/a.png": 10, "10_x/b.png": 10},
    ),
    "no-kohya": Case(
        some("2024_summer/a.png", "01_front/b.png", "x_10/c.png"),
        used("2024_summer/a.png", "01_front/b.png", "x_10/c.png"),
    ),
    "only-regularisation": Case(some("reg/a.png"), used("reg/a.png")),
    "onetrainer": Case(
        {**some("a.png", "a-masklabel.png", "b.png", "b-condlabel.png", "c-masklabel.png"), "a.txt": "a cat"},
        {
            **used("a.png", "b.png", "c-masklabel.png", "a.txt"),
            "a-masklabel.png": "ignored: is OneTrainer’s mask of a",
            "b-condlabel.png": "ignored: is OneTrainer’s mask of b",
        },
        {"a.png": "a cat"},
    ),
    "ai-toolkit": Case(
        {
            **some("data/a.png", "output/samples/1__000.jpg"),
            "data/a.txt": "a cat",
            "data/.aitk_size.json": "{}",
            "data/_latent_cache/a_x.safetensors": b"x",
            "config.yaml": "job: extension",
            "output/optimizer.pt": b"x",
        },
        {
            **used("data/a.png", "data/a.txt"),
            "output/samples/1__000.jpg": "ignored: is in the folder samples, so one that a trainer drew",
            "data/.aitk_size.json": SETTINGS,
            "data/_latent_cache/a_x.safetensors": WEIGHTS,
            "config.yaml": SETTINGS,
            "output/optimizer.pt": WEIGHTS,
        },
        {"data/a.png": "a cat"},
    ),
    "fluxgym": Case(
        {
            **some("my/a.png", "my/sample/x_e000001.png"),
            "my/a.txt": "TOK a cat",
            "my/dataset.toml": "x",
            "my/train.sh": "x",
            "my/sample_prompts.txt": "TOK",
            "my/my-000004.safetensors": b"x",
        },
        {
            **used("my/a.png", "my/a.txt"),
            "my/sample/x_e000001.png": "ignored: one that a trainer drew",
            "my/dataset.toml": SETTINGS,
            "my/train.sh": SETTINGS,
            "my/sample_prompts.txt": "ignored: no picture of this name",
            "my/my-000004.safetensors": WEIGHTS,
        },
        {"my/a.png": "TOK a cat"},
    ),
}
ZIPS = {
    "nested-folder": Case(
        {**some("My pictures/old/a.png"), "My pictures/old/a.txt": "a cat", "My pictures/": b""},
        used("My pictures/old/a.png", "My pictures/old/a.txt"),
        {"My pictures/old/a.png": "a cat"},
    ),
    "macos": Case(
        {**A, "__MACOSX/._a.png": b"x", "__MACOSX/": b"", ".DS_Store": b"x", "f/._b.png": b"x"},
        {"a.png": "used", "__MACOSX/._a.png, .DS_Store …": f"ignored: 3 files {CLUTTER}"},
    ),
    "windows": Case(
        {**A, "Thumbs.db": b"x", "f/desktop.ini": b"x"},
        {"a.png": "used", "Thumbs.db, f/desktop.ini": f"ignored: 2 files {CLUTTER}"},
    ),
    "backslashes": Case(
        lambda: old_zip("ascii", "f\\a.png", "f\\a.txt"), used("f/a.png", "f/a.txt"), {"f/a.png": "f\\a.txt"}
    ),
    "names-cp437": Case(lambda: old_zip("cp437", "Äpfel.png", "Größe.png"), used("Äpfel.png", "Größe.png")),
    "names-cp932": Case(
        lambda: old_zip("cp932", "赤い猫.png", "赤い猫.txt", "写真/ネコ.png"),
        used("赤い猫.png", "赤い猫.txt", "写真/ネコ.png"),
        {"赤い猫.png": "赤い猫.txt"},
    ),
    "names-cp866": Case(lambda: old_zip("cp866", "Новая папка/рыжая.png"), used("Новая папка/рыжая.png")),
    "names-utf8-unsaid": Case(lambda: old_zip("utf-8", "猫.png", "Äpfel.png"), used("猫.png", "Äpfel.png")),
    "names-repeated": Case(lambda: repeated_name("猫.png", "_.png"), used("猫.png")),
    "names-in-pieces": Case(
        {"e\u0301.png": picture(), "\u00e9.txt": "a cat"}, used("é.png", "é.txt"), {"é.png": "a cat"}
    ),
    "zip-in-zip": Case(
        lambda: {**A, "more.zip": zipped(B), "old.rar": b"Rar!"},
        {
            "a.png": "used",
            "more.zip": "ignored: is an archive inside the ZIP; unpack it",
            "old.rar": "ignored: is an archive inside the ZIP; unpack it",
        },
    ),
    "only-a-zip": Case(lambda: {"dogs.zip": zipped(B)}, refused="Its pictures are perhaps in dogs.zip: unpack that"),
    "climbing": Case(
        {**A, "../b.png": picture(1), "C:/c.png": picture(2), "/d.png": picture(3)},
        {
            "a.png": "used",
            "../b.png": "ignored: its name climbs out",
            "C:/c.png": "ignored: path of a disk",
            "/d.png": "ignored: path of a disk",
        },
    ),
    "raw-and-drawings": Case(
        {**A, "IMG_1.CR3": b"x", "a.psd": b"x", "a.svg": "<svg/>", "notes.docx": b"x"},
        {
            "a.png": "used",
            "IMG_1.CR3": f"{NO_PICTURE}: it is a camera’s raw picture",
            "a.psd": f"{NO_PICTURE}: it is a drawing",
            "a.svg": f"{NO_PICTURE}: it is a drawing",
            "notes.docx": NO_PICTURE,
        },
    ),
    "empty": Case({}, refused="The ZIP is empty."),
    "only-texts": Case({"a.txt": "a cat"}, refused="There is no picture in the ZIP. It holds a.txt"),
    "only-broken": Case({"a.png": b"x"}, refused="No picture in the ZIP can be used. a.png is damaged"),
    "no-zip": Case(lambda: b"Rar!\x1a\x07\x00", refused="The file is not a ZIP."),
    "cut-off": Case(lambda: zipped(A)[:-30], refused="The ZIP is damaged"),
    "locked": Case(lambda: zip_bytes([Member(b"a.png", b"x", flags=0x801)]), refused="protected by a password"),
}
ALL = {**FORMATS, **CAPTIONS, **TRAINERS, **ZIPS}
