"""What becomes of every file of many awkward ZIPs: used, used after a repair, or ignored, each with its reason."""

import io
import tempfile
import zipfile
from functools import cache, partial
from pathlib import Path

import corpus
import pytest
from corpus import ALL

from finetune import dataset, runs
from finetune.dataset import Dataset, apart, intake
from finetune.errors import DatasetError

USABLE = [name for name, case in ALL.items() if not case.refused]
REFUSED = [name for name, case in ALL.items() if case.refused]
ELSEWHERE = ("phone", "kohya", "names-cp932", "only-a-zip")


def _unpacked(name, take):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.zip"
        path.write_bytes(ALL[name].zip())
        return dataset.unpack(path, runs.create(Path(folder) / "runs"), take=take)


_found = cache(partial(_unpacked, take=intake.take))


def assert_is_as_expected(found: Dataset, case: corpus.Case) -> None:
    """Each file has its row, with what is expected among its words."""
    told = {row.file: f"{row.what}: {row.words}" for row in found.report()}
    assert set(told) == set(case.report)
    for file, expected in case.report.items():
        what, _, words = expected.partition(": ")
        assert told[file].startswith(what) and words in told[file]


def test_corpus_is_large():
    """There are more than sixty ways in which a dataset can be awkward."""
    assert len(ALL) >= 60


@pytest.mark.parametrize("name", USABLE)
def test_every_file_is_reported(name):
    """Each file is used, repaired or ignored as it should be, in words that say why."""
    assert_is_as_expected(_found(name), ALL[name])


@pytest.mark.parametrize("name", USABLE)
def test_no_file_is_dropped_silently(name):
    """The rows of the report count each file of the ZIP once, and none has two rows."""
    with zipfile.ZipFile(io.BytesIO(ALL[name].zip())) as zip:
        files = [info for info in zip.infolist() if not info.is_dir()]

    report = _found(name).report()

    assert sum(row.count for row in report) == len(files)
    assert len({row.file for row in report}) == len(report)


@pytest.mark.parametrize("name", USABLE)
def test_captions_repeats_and_warnings_are_right(name):
    """Each picture has its caption and comes as often as it should; what matters for all is said once."""
    case, found = ALL[name], _found(name)

    assert {image.source: image.caption for image in found.images if image.caption} == case.captions
    assert {image.source: image.repeats for image in found.images if image.repeats > 1} == case.repeats
    assert all(any(said.startswith(words) for said in found.warnings) for words in case.warnings)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_words(name):
    """A ZIP without a single usable picture is refused, and the words say what to do."""
    with pytest.raises(DatasetError) as caught:
        _found(name)

    assert ALL[name].refused in str(caught.value)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_process_of_its_own_says_the_same(name):
    """What is read under the limits of an upload comes to the same report, or the same refusal."""
    if ALL[name].refused:
        with pytest.raises(DatasetError, match=ALL[name].refused[:20]):
            _unpacked(name, apart.take)
    else:
        assert _unpacked(name, apart.take).report() == _found(name).report()
