"""Words that mean harm: what a ZIP or a person says never becomes a path, a device, markup, or hours of work."""

import re
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import hostile
import pytest
from hostile import Member
from pictures import encoded, picture, zip_of

from finetune import bases, captions, dataset, hub, results, runs
from finetune.dataset import archive, exchange, intake, texts
from finetune.errors import ConfigError
from finetune.formats import card
from finetune.inputs import Mode

ROOT = Path(__file__).parent.parent
here = partial(dataset.unpack, take=intake.take)
MEGABYTE = 10**6
LONG = (
    "a" * MEGABYTE,
    "-" * MEGABYTE,
    " \t" * (MEGABYTE // 2),
    "." * MEGABYTE,
    "9" * MEGABYTE,
    "`" * MEGABYTE,
    "[trigger]" * (MEGABYTE // 9),
    "a/" * (MEGABYTE // 2),
    "https://huggingface.co/" + "a" * MEGABYTE,
    "\u202e\ud800" * (MEGABYTE // 2),
    "𠀀" * MEGABYTE,
)
READERS = {
    "slug": results.slug,
    "unpacked name": exchange.unpacked_name,
    "card": card.text,
    "address": lambda text: card._address(text.encode(errors="replace").decode()),
    "code": card._code,
    "order": archive.natural_order,
    "repository": hub.repository,
    "title": bases.title,
    "caption": lambda text: captions.with_trigger(text, Mode.STYLE, "TOK"),
    "names trigger": lambda text: captions.names_trigger(text, "a" * 64),
    "encoding": lambda text: texts.decode(text.encode(errors="replace")),
    "tidy": lambda text: texts._tidy(text, ""),
    "table": lambda text: list(texts._csv_rows(f"file,caption\n{text}")),
}


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


@pytest.fixture
def unpack(tmp_path, run):
    return lambda files: here(zip_of(tmp_path / "in.zip", files), run)


# --- captions


def test_a_caption_of_a_megabyte_is_cut(unpack):
    """A caption longer than any text encoder reads is cut, and a note says so."""
    found = unpack({"a.png": picture(), "a.txt": "word " * 200_000}).images[0]

    assert len(found.caption) <= texts.LONGEST_CAPTION
    assert found.notes == ("its caption was cut to 4,000 letters",)


def test_a_long_caption_of_a_table_is_cut(unpack):
    """Captions of tables are held to the same length."""
    found = unpack({"a.png": picture(), "captions.csv": "file,caption\na.png," + "word " * 20_000})

    assert len(found.images[0].caption) <= texts.LONGEST_CAPTION


def test_a_table_of_millions_of_cells_takes_little_memory(tmp_path):
    """A table is read row by row, however many rows or cells it has."""
    table = b"file,caption\n" + b"a\n" * hostile.MIB + b"," * (5 * hostile.MIB)
    members = [Member(b"a.png", encoded(picture())), Member(b"captions.csv", table, hostile.STORED)]
    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes(members))

    spent = hostile.spent(tmp_path / "in.zip", tmp_path / "out")

    assert spent["said"]["images"]
    assert spent["mib"] < 400


@pytest.mark.parametrize("escape", ["\\ud800", "\\u202e", "\\u0000", "\\u001b", "\\u0085", "\\u2066"])
def test_letters_that_are_none_are_left_out_of_captions(unpack, run, escape):
    """Halves of letters, controls and what turns text around do not come through a table, and break no file."""
    found = unpack({"a.png": picture(), "metadata.jsonl": f'{{"file_name": "a.png", "text": "a {escape}thing"}}'})

    assert found.images[0].caption == "a thing"
    assert dataset.read(run) == found


def test_letters_that_are_none_are_left_out_of_reasons(unpack, run):
    """A row for no picture is named without them."""
    found = unpack({"a.png": picture(), "metadata.jsonl": '{"file_name": "\\ud800\\u202ex.png", "text": "a thing"}'})

    assert found.ignored[0].reason == "a row is for no picture of the ZIP: x.png"
    assert dataset.read(run) == found


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, '{"file_name": ["a.png"], "text": {}}', "null", '"x"', "{}"],
    ids=range(7),
)
def test_odd_json_costs_the_row(unpack, line):
    """A line that is nested too deeply, too long a number, or no row, costs itself alone."""
    found = unpack({"a.png": picture(), "metadata.jsonl": line})

    assert found.images[0].caption is None
    assert {one.file for one in found.ignored} == {"metadata.jsonl"}


def test_braces_in_captions_are_words():
    """A caption or a trigger word is never read as a template."""
    assert captions.with_trigger("{trigger.__class__} {0}", Mode.STYLE, "{caption}") == (
        "{trigger.__class__} {0} in the style of {caption}"
    )


# --- names that become file names


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "C:\\Windows\\x",
            "a/b",
            "..",
            ".",
            "-",
            "--help",
            ".hidden",
            "a\0b",
            "a\nb",
        ),
        *("CON", "nul", "Aux.v2", "COM1", "lpt9.x", "com¹", "a:b", "a?b*", "name.", "name ", "\u202egpj.exe", "\ud800"),
        *("x" * 10_000, "𠀀" * 200, "e\u0301" * 200, "my-comfyui", "-comfyui", "x-comfyui-COMFYUI", "🍐", ""),
    ],
)
def test_any_name_becomes_a_file_name_of_every_system(tmp_path, name):
    """Whatever a finetune is called, its files can be made, and lie where they belong."""
    made = f"{results.slug(name)}-comfyui.safetensors.part"

    (tmp_path / made).write_bytes(b"")

    assert re.fullmatch(r"[\w.-]+", made) and made[0] not in ".-"
    assert len(made.encode()) <= 255
    assert PureWindowsPath(made).name == made and not exchange.RESERVED.fullmatch(made)
    assert not results.slug(name).lower().endswith(results.OURS)


@pytest.mark.parametrize(
    "source",
    [
        *(
            "a.png",
            "f/a.png",
            "f/C:/x.png",
            "f/con.png",
            "aux/a.png",
            "a:evil.png",
            "f./a.png",
            ".. /a.png",
            ".../a.png",
        ),
        *("f//a.png", "./a.png", "a?.png", "con", "f/nul.tar.png", "  .png"),
    ],
)
def test_captions_unpack_inside_their_folder_on_every_system(source):
    """No name in captions.zip climbs, names a disk or a device, or is a path of its own."""
    name = exchange.unpacked_name(source)

    for path in (PurePosixPath(name), PureWindowsPath(name)):
        assert not path.is_absolute() and not path.drive
        assert ".." not in path.parts
        assert not [part for part in path.parts if exchange.RESERVED.fullmatch(part) or part != part.rstrip(" .")]


def test_names_of_captions_are_unique_on_every_system(tmp_path, run):
    """Pictures whose names differ by their ending or by capital letters alone keep their captions apart."""
    names = ("a.png", "a.webp", "A.png", "b/con.png", "b/CON.png")
    here(zip_of(tmp_path / "in.zip", {name: picture(number) for number, name in enumerate(names)}), run)
    captions = [f"caption {number}" for number in range(len(names))]

    exchange.write_captions(tmp_path / "captions.zip", dataset.read(run).images, captions)

    with zipfile.ZipFile(tmp_path / "captions.zip") as written:
        found = written.namelist()
    assert len({name.casefold() for name in found}) == len(names)
    assert "a.txt" in {name.casefold() for name in found}


# --- the model card


@pytest.mark.parametrize("letter", ["\ud800", "\u202e", "\x1b", "\x85", "\u2066"])
def test_a_model_card_can_always_be_written(letter):
    """Letters that no file can hold, or that turn text around, are left out of the card's text."""
    assert card.text(f"a{letter}b").encode() == b"a b"


# --- time


@pytest.mark.parametrize("use", READERS)
def test_a_megabyte_takes_no_time(use):
    """No pattern that reads words of strangers takes longer than their length deserves."""
    for number, text in enumerate(LONG):
        started = time.process_time()

        with suppress(archive.Unusable):
            READERS[use](text)

        assert time.process_time() - started < 5, number


def test_a_megabyte_of_a_base_model_is_refused(monkeypatch, tmp_path):
    """A name of a base model is checked in no time, and refused in words."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    for text in LONG[:9]:
        with pytest.raises(ConfigError):
            bases.check(text)


# --- markup


@pytest.mark.parametrize("path", sorted((ROOT / "assets" / "page").glob("*.js")), ids=lambda path: path.name)
def test_page_scripts_make_no_markup_of_text(path):
    """No script of the page has a way from a text to markup or to code."""
    text = path.read_text(encoding="utf-8")

    found = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|srcdoc|DOMParser|\beval\b|"
        r"new Function|setHTML|javascript:",
        text,
    )

    assert not found


@pytest.mark.parametrize("path", sorted((ROOT / "finetune" / "ui").glob("*.py")), ids=lambda path: path.name)
def test_templates_of_the_page_escape_what_they_show(path):
    """Templates use the braces that escape, never those that do not."""
    text = path.read_text(encoding="utf-8")

    assert "{{{" not in text
    assert not re.search(r"html_template=[^\n]*\$\{", text)
    assert not re.search(r"gr\.HTML\(\s*(value=)?f?[\"'][^\"']*<", text.replace('html_template="', ""))
    assert not re.search(r"sanitize_html\s*=\s*False|head=|unsafe", text)
