"""What this machine can do: measured once, read without torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finetune import machine, settings
from finetune.errors import ConfigError

GIB = 2**30


def _settings(tmp_path, **changes):
    return replace(settings.Settings(home=tmp_path, device="cpu"), **changes)


def test_what_was_measured_is_read(tmp_path):
    """Device, memory and pace of this machine are kept in the data folder."""
    found = machine.measure_into(_settings(tmp_path))

    assert machine.read(tmp_path) == found
    assert found.device == "cpu" and not found.is_gpu
    assert GIB / 4 < found.free_bytes <= found.total_bytes
    assert 0.001 < found.teraflops < 100
    assert [path.name for path in tmp_path.iterdir()] == [machine.FILE]


def test_setting_limits_the_memory(tmp_path):
    """A machine with FINETUNE_MEMORY_GIB seems to have no more than that."""
    found = machine.measure(_settings(tmp_path, memory_bytes=GIB // 8))

    assert found.total_bytes == found.free_bytes == GIB // 8


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"device": "cpu"}'])
def test_nothing_measured_is_nothing(tmp_path, content):
    """A file that is missing, broken or of another version is as good as none."""
    if content is not None:
        (tmp_path / machine.FILE).write_text(content)

    assert machine.read(tmp_path) is None


def test_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    """Asking for a GPU where torch finds none is an error that names the setting."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(ConfigError, match="FINETUNE_DEVICE"):
        machine.best_device(_settings(tmp_path, device="cuda"))
    assert machine.best_device(_settings(tmp_path, device="auto")) == "cpu"


def test_reading_loads_no_torch(tmp_path):
    """The service reads what was measured without the heavy library."""
    program = f"import sys, pathlib; from finetune import machine; machine.read(pathlib.Path({str(tmp_path)!r}))"

    done = subprocess.run(
        [sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"], cwd=Path(__file__).parent.parent
    )

    assert done.returncode == 0


def test_free_memory_is_no_more_than_the_owner_allows(tmp_path):
    """What is free now, or what FINETUNE_MEMORY_GIB allows if that is less."""
    assert machine.free_bytes(settings.Settings(home=tmp_path), "cpu") > 2**20
    assert machine.free_bytes(settings.Settings(home=tmp_path, memory_bytes=1000), "cpu") == 1000
