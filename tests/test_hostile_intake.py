"""An upload is read in a process of its own: what it may take, what it knows, and what becomes of it."""

import re
import sys
from functools import partial

import hostile
import psutil
import pytest
from hostile import MIB, Member
from pictures import encoded, picture, zip_of
from PIL import Image

from finetune import dataset, runs
from finetune.dataset import Limits, apart, intake
from finetune.errors import BusyError, DatasetError, StorageError

has_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no process's memory in this way")


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


@pytest.fixture
def path(tmp_path):
    return zip_of(tmp_path / "in.zip", {"a.png": picture(1), "a.txt": "a thing", "b.png": picture(2), "c.pdf": b""})


def slow_jpeg() -> bytes:
    """A picture of 16 megapixels in hundreds of passes, each of which is drawn over the whole."""
    parts = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True).split(b"\xff\xda")
    scan = b"\xff\xda" + parts[-1].removesuffix(b"\xff\xd9")
    return b"\xff\xda".join(parts[:-1]) + scan * 4000 + b"\xff\xd9"


def children():
    return psutil.Process().children()


def test_another_process_finds_the_same(path, run, tmp_path):
    """What is found elsewhere equals what is found here."""
    told = []

    found = dataset.unpack(path, run, lambda done, of: told.append((done, of)))

    (tmp_path / "here").mkdir()
    assert found == intake.take(path, tmp_path / "here", lambda done, of: None, Limits())
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert sorted(one.name for one in run.folder.iterdir()) == ["dataset.json", "images", "run.json", "thumbnails"]


def test_what_is_wrong_is_said_in_the_same_words(tmp_path, run):
    """An error comes through with its hint and its file."""
    with pytest.raises(DatasetError, match="can be used") as caught:
        dataset.unpack(zip_of(tmp_path / "in.zip", {"a.png": b"broken"}), run)

    assert (caught.value.file, "a.png is damaged" in caught.value.hint) == ("a.png", True)


def test_a_zip_that_has_gone_is_no_traceback(tmp_path, run):
    """An error of the system comes through as one of ours."""
    with pytest.raises(DatasetError, match="No such file|cannot find"):
        dataset.unpack(tmp_path / "gone.zip", run)


def test_it_knows_no_secret(path, run, monkeypatch):
    """Of the service's environment only what any program needs is handed on."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("FINETUNE_SOMETHING", "secret")
    seen = []

    dataset.unpack(path, run, lambda done, of: seen.extend(child.environ() for child in children()))

    assert seen and not [values for values in seen if "secret" in str(values)]
    assert not {name for values in seen for name in values if re.search("TOKEN|FINETUNE|HOME", name)}


@has_limits
def test_memory_is_limited_by_the_system(tmp_path, run):
    """A picture that takes more memory than its header told of is left out, and the others are used."""
    large = Member(b"b.png", encoded(Image.new("RGB", (7000, 7000)), compress_level=1))
    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes([Member(b"a.png", encoded(picture())), large]))

    found = dataset.unpack(tmp_path / "in.zip", run, limits=Limits(process_bytes=450 * MIB))

    assert [image.source for image in found.images] == ["a.png"]
    assert found.ignored[0].reason == "is too large for the memory of this machine"


def test_a_picture_that_takes_too_long_ends_the_upload(tmp_path, run):
    """No single file holds the service up; which one it was is said."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(), "b.jpg": slow_jpeg()})

    with pytest.raises(DatasetError, match="File 2 of 2 took longer than 5 seconds"):
        dataset.unpack(path, run, limits=Limits(file_seconds=5))

    assert not children()
    assert [one.name for one in run.folder.iterdir()] == ["run.json"]


def test_an_upload_that_takes_too_long_is_ended(tmp_path, run):
    """The whole of an upload has its time as well."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(), "b.jpg": slow_jpeg()})

    with pytest.raises(DatasetError, match="longer than 0.083 minutes"):
        dataset.unpack(path, run, limits=Limits(seconds=5))


def test_pixels_of_all_pictures_are_limited(tmp_path, run):
    """A thousand pictures that are each allowed are too much together."""
    path = zip_of(tmp_path / "in.zip", {f"{number}.png": picture(number, 100, 100) for number in range(3)})

    with pytest.raises(DatasetError, match="megapixels together"):
        dataset.unpack(path, run, limits=Limits(total_pixels=25_000))


def test_a_crash_ends_the_upload_and_not_the_service(tmp_path, run):
    """Whatever ends the process that reads, the upload is refused, and nothing is left of it."""
    path = zip_of(tmp_path / "in.zip", {"a.png": picture(), "b.jpg": slow_jpeg()})

    def crash(done, of):
        if done == 1:
            children()[0].kill()

    with pytest.raises(DatasetError, match="File 2 of 2 cannot be read"):
        dataset.unpack(path, run, crash)

    assert [one.name for one in run.folder.iterdir()] == ["run.json"]


def test_nobody_reads_on_when_the_visitor_has_gone(path, run):
    """An error in between ends the process at once."""

    def leave(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.unpack(path, run, leave)

    assert not children()


def test_two_uploads_are_read_at_once_and_a_third_waits(path, tmp_path):
    """Several visitors together take no more than two processes; who waits too long is told when to come again."""
    hurried = partial(apart.take, patience_seconds=0)
    first, second, third = (runs.create(tmp_path / "runs") for _ in range(3))

    def again(done, of):
        dataset.unpack(path, second, lambda done, of: dataset.unpack(path, third, take=hurried))

    with pytest.raises(BusyError, match="being read just now"):
        dataset.unpack(path, first, again)

    assert dataset.unpack(path, third, take=hurried).images


def test_a_full_disk_is_not_filled_further(path, run, monkeypatch):
    """Below the reserve nothing is taken in, and nothing is left."""
    monkeypatch.setenv("FINETUNE_DISK_RESERVE_GIB", str(10**6))

    with pytest.raises(StorageError, match="no room"):
        dataset.unpack(path, run)

    assert [one.name for one in run.folder.iterdir()] == ["run.json"]
