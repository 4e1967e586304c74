"""The threat model holds what it promises: every line has tests, and what it says of the code is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", TEXT.partition("## Threats")[2], re.MULTILINE)[2:]
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)))
RUNS_CODE = (
    r"\bpickle\.loads?\(|yaml\.(?:unsafe_|full_)?load\(|(?<![\w.])(?:eval|exec)\(|shell=True|os\.system|trust_remote"
)


@pytest.mark.parametrize(("threat", "measure", "tests"), LINES, ids=range(len(LINES)))
def test_every_line_is_proven(threat, measure, tests):
    """A threat without a measure, or a measure without a test, is none."""
    assert threat.strip() and measure.strip()
    assert re.fullmatch(r"`test_\w+\.py::test_\w+`(, `test_\w+\.py::test_\w+`)*", tests)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file):
    """The tests of a file that the model names are in it."""
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")

    assert {name for other, name in NAMED if other == file} <= set(
        re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)
    )


def test_nothing_that_is_read_is_run():
    """No code of ours runs what it reads: no pickles, no YAML with objects, no model's own code, no shell."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "finetune").rglob("*.py")}

    assert not [(path.name, found) for path, text in sources.items() for found in re.findall(RUNS_CODE, text)]
    loads = [line for text in sources.values() for line in text.splitlines() if "torch.load(" in line]
    assert loads and all("weights_only=True" in line for line in loads)


@pytest.mark.parametrize("number", ["60 s", "30 min", "24 gigapixels", "3 GiB", "20,000 files", "8 MiB", "200 times"])
def test_limits_are_those_of_the_code(number):
    """The figures of the model are the ones that hold."""
    from finetune.dataset.archive import LIMITS

    known = {
        "60 s": LIMITS.file_seconds,
        "30 min": LIMITS.seconds / 60,
        "24 gigapixels": LIMITS.total_pixels / 1e9,
        "3 GiB": LIMITS.process_bytes / 2**30,
        "20,000 files": LIMITS.files,
        "8 MiB": LIMITS.directory_bytes / 2**20,
        "200 times": LIMITS.unpacked_ratio,
    }

    assert number in TEXT
    assert known[number] == float(number.split()[0].replace(",", ""))
