"""The field for pictures: what it gives to the tab, and, in a real browser, what can be dropped on it."""

import browsing
import pytest
from gradio.components.file import ListFiles
from gradio.data_classes import FileData
from pictures import picture

from finetune import dataset, runs
from finetune.ui import upload


@pytest.fixture
def folder(tmp_path):
    """A folder as kohya wants it, with a model in it."""
    made = tmp_path / "my dogs"
    for number, name in enumerate(["3_rex/a#1.png", "3_rex/b.png", "1_dog/a#1.png", "1_dog/deep/c.png"]):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    (made / "3_rex" / "a#1.txt").write_text("a dog", encoding="utf-8")
    (made / "model.safetensors").write_bytes(bytes(2**20))
    return made


@pytest.fixture
def page(open_page, pretended):
    return open_page(pretended.url)


def _found(page, pretended, count):
    browsing.sync_api.expect(page.locator(".pictures .picture")).to_have_count(count, timeout=30_000)
    page.wait_for_function("location.search.includes('draft=')")
    id = page.evaluate("new URLSearchParams(location.search).get('draft')")
    return dataset.read(runs.find(pretended.home / "runs", id))


def test_files_get_back_their_names():
    """Gradio keeps a file under a cleaned name; what the browser called it, folders included, is what counts."""
    files = ListFiles(root=[FileData(path="/tmp/x/a1.png", orig_name="3_rex/a#1.png"), FileData(path="/tmp/y/b.png")])

    assert upload.named(files) == [("3_rex/a#1.png", "/tmp/x/a1.png"), ("b.png", "/tmp/y/b.png")]
    assert upload.named(None) is None


@pytest.mark.parametrize(
    ("names", "title"),
    [(["dogs.zip"], "dogs"), (["dogs/a.png", "dogs/b/c.png"], "dogs"), (["a.png", "b.png"], ""), (["a/x", "b/y"], "")],
)
def test_finetune_is_called_after_what_was_dropped(names, title):
    """The name of a ZIP, or of the one folder, becomes that of the finetune; files have none in common."""
    assert upload.title([(name, "") for name in names]) == title


def test_several_files_are_taken_together(page, pretended, tmp_path):
    """Pictures and captions that are dropped without a ZIP belong together by their names."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.txt").write_text("a thing", encoding="utf-8")

    page.locator("#pictures-zip input[type=file]").set_input_files(sorted(tmp_path.glob("*.*")))

    assert [image.caption for image in _found(page, pretended, 3).images] == [None, "a thing", None]


def test_chosen_folder_keeps_its_paths(page, pretended, folder):
    """Of a folder, names and repeats arrive as they are on the disk, and a model's weights stay there."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(folder)

    found = _found(page, pretended, 4)

    assert [(image.source, image.repeats) for image in found.images] == [
        ("my dogs/1_dog/a#1.png", 1),
        ("my dogs/1_dog/deep/c.png", 1),
        ("my dogs/3_rex/a#1.png", 3),
        ("my dogs/3_rex/b.png", 3),
    ]
    assert found.images[2].caption == "a dog"
    assert [one.file for one in found.ignored] == ["my dogs/model.safetensors"]


def test_dropped_folder_is_a_chosen_one(page, pretended, folder):
    """A folder can be dropped on the field, beside a file."""
    picture(9).save(folder.parent / "z.png")
    box = page.locator("#pictures-zip").bounding_box()
    devtools = page.context.new_cdp_session(page)
    carried = {"items": [], "files": [str(folder), str(folder.parent / "z.png")], "dragOperationsMask": 1}

    for kind in ("dragEnter", "dragOver", "drop"):
        at = {"x": box["x"] + 100, "y": box["y"] + 60}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "data": carried, **at})

    sources = [image.source for image in _found(page, pretended, 5).images]
    assert sources[-1] == "z.png" and "my dogs/1_dog/deep/c.png" in sources
