"""Captions in a ZIP: what goes out comes in again, and what comes in finds its picture."""

import pytest
from pictures import zip_of

from finetune.dataset import Picture, exchange
from finetune.errors import DatasetError


def _pictures(*sources):
    return [Picture(f"{n:04}.png", source, 64, 64, None, None) for n, source in enumerate(sources, start=1)]


NESTED = _pictures("a.jpg", "a.png", "A.webp", "b/c.png", "d/c.png", "what?.png", "con.png")


def test_what_goes_out_comes_in_again(tmp_path):
    """Also where names differ by their endings, capital letters, folders, or letters that no file may have."""
    captions = [f"caption {picture.source}" for picture in NESTED]
    exchange.write_captions(tmp_path / "captions.zip", NESTED, captions)

    found = exchange.read_captions(tmp_path / "captions.zip", NESTED)

    assert found.captions == dict(zip([picture.file for picture in NESTED], captions, strict=True))
    assert not found.ignored


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("b/c.txt", "0001.png"),
        ("B/C.TXT", "0001.png"),
        ("captions/b/c.txt", "0001.png"),
        ("d/c.jpg.txt", "0002.png"),
        ("e.txt", "0003.png"),
        ("e.caption", "0003.png"),
        ("f/e.txt", "0003.png"),
    ],
)
def test_text_finds_its_picture(name, file, tmp_path):
    """By its path, whatever folder it was packed in, or by its name where only one picture has that."""
    path = zip_of(tmp_path / "in.zip", {name: "words"})

    assert exchange.read_captions(path, _pictures("b/c.jpg", "d/c.jpg", "x/e.png")).captions == {file: "words"}


def test_what_fits_no_picture_or_two_is_listed(tmp_path):
    """Nothing is guessed, and nothing is dropped without a word."""
    texts = {"c.txt": "one of two", "q.txt": "nobody's", "e.txt": "fits", "z/e.txt": "fits too", "n.md": "no text"}
    path = zip_of(tmp_path / "in.zip", texts)

    found = exchange.read_captions(path, _pictures("b/c.jpg", "d/c.jpg", "x/e.png"))

    assert found.captions == {"0003.png": "fits"}
    assert {one.file for one in found.ignored} == {"c.txt", "q.txt", "z/e.txt", "n.md"}


def test_table_is_read_as_in_an_upload(tmp_path):
    """A captions.csv in place of many files; a .txt wins over it."""
    path = zip_of(tmp_path / "in.zip", {"captions.csv": "file,caption\na.jpg,one\nb.jpg,two\n", "b.txt": "three"})

    found = exchange.read_captions(path, _pictures("a.jpg", "b.jpg"))

    assert found.captions == {"0001.png": "one", "0002.png": "three"}


def test_pictures_in_the_zip_are_left_alone(tmp_path):
    """A whole dataset with captions that were edited elsewhere is no mistake."""
    path = zip_of(tmp_path / "in.zip", {"a.jpg": b"no picture at all", "a.txt": "words"})

    found = exchange.read_captions(path, _pictures("a.jpg"))

    assert (found.captions, found.ignored) == ({"0001.png": "words"}, ())


@pytest.mark.parametrize("content", ["", "  \n", b"\x00\x01\x02"])
def test_what_is_no_caption_is_listed(content, tmp_path):
    """An empty file changes nothing, and no more does one that is no text."""
    found = exchange.read_captions(zip_of(tmp_path / "in.zip", {"a.txt": content}), _pictures("a.jpg"))

    assert found.captions == {}
    assert [one.file for one in found.ignored] == ["a.txt"]


def test_what_is_no_zip_is_refused_in_words(tmp_path):
    """As an upload of pictures is."""
    (tmp_path / "in.zip").write_bytes(b"words")

    with pytest.raises(DatasetError, match="not a ZIP"):
        exchange.read_captions(tmp_path / "in.zip", _pictures("a.jpg"))


def test_texts_that_would_fill_the_memory_are_refused(tmp_path):
    """Captions are read in the service's own process, so there is little that they may take."""
    path = zip_of(tmp_path / "in.zip", {f"{number}.txt": "a" * 2**20 for number in range(17)})

    with pytest.raises(DatasetError, match="17 MiB; 16 MiB is the limit"):
        exchange.read_captions(path, _pictures("0.jpg"))
