"""This machine: folders, address, limits, device. The only reader of environment variables."""

import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.errors import ConfigError

ASSETS = Path(__file__).parent.parent / "assets"
DEMO_BASE = ASSETS / "demo-base"


@dataclass(frozen=True)
class Settings:
    """What this machine allows and where things are kept; made by `read`."""

    home: Path
    host: str | None = None
    port: int | None = None
    share: bool = False
    auth: tuple[tuple[str, str], ...] = ()
    root_path: str = ""
    device: str = "auto"
    threads: int = 1
    memory_bytes: int | None = None
    """The most memory of the device that a run may use, on a machine that is shared."""
    upload_mib: int = 2048
    on_space: bool = False
    allow_private_webhooks: bool = False
    demo_base: Path = DEMO_BASE
    """The demo base and, in its folder `captioner`, the demo captioner."""
    base_folders: tuple[Path, ...] = ()
    """Where base models of the owner's own may lie; read from here alone, so that nobody can look around the disk."""

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.home / "runs"

    @property
    def trash(self) -> Path:
        """Deleted runs, until they are emptied."""
        return self.home / "trash"

    @cached_property
    def secret(self) -> bytes:
        """The key that signs links to files; made once and kept, so that links survive a restart."""
        path = self.home / "secret.key"
        self.home.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()

    def worker_environment(self) -> dict[str, str]:
        """The environment of a worker: this one, with its threads and folders decided."""
        threads = str(self.threads)
        decided = {"FINETUNE_HOME": str(self.home), "FINETUNE_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **decided}

    def keep_uploads_at_home(self) -> None:
        """Let Gradio keep what is uploaded on the disk that has the room, unless it is told where."""
        os.environ.setdefault("GRADIO_TEMP_DIR", str(self.home / "uploads"))


def read() -> Settings:
    """Read FINETUNE_* variables and, on a Hugging Face Space, those that the Space sets.

    Raises: ConfigError when one that must be a number is none.
    """
    environment = os.environ
    home = Path(environment.get("FINETUNE_HOME") or _default_home()).expanduser().resolve()
    return Settings(
        home=home,
        host=environment.get("GRADIO_SERVER_NAME"),
        port=_number("GRADIO_SERVER_PORT"),
        share=_is_on("GRADIO_SHARE"),
        root_path=environment.get("GRADIO_ROOT_PATH", ""),
        device=environment.get("FINETUNE_DEVICE", "auto"),
        threads=_number("FINETUNE_THREADS") or _free_cores(),
        memory_bytes=_gib("FINETUNE_MEMORY_GIB"),
        upload_mib=_number("FINETUNE_UPLOAD_MIB") or Settings.upload_mib,
        on_space=bool(environment.get("SPACE_ID")),
        allow_private_webhooks=_is_on("FINETUNE_PRIVATE_WEBHOOKS"),
        demo_base=Path(environment.get("FINETUNE_DEMO_BASE") or DEMO_BASE).expanduser().resolve(),
        base_folders=_folders(environment.get("FINETUNE_BASES") or str(home / "bases")),
    )


def _folders(text: str) -> tuple[Path, ...]:
    """Folders as PATH has them: between colons, or semicolons on Windows."""
    return tuple(Path(folder).expanduser().absolute() for folder in text.split(os.pathsep) if folder.strip())


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true")


def _number(name: str) -> int | None:
    """A variable that is a positive whole number, or not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{name} is “{text}”.", "It must be a whole number above 0.", name)
    return int(text)


def _gib(name: str) -> int | None:
    """A variable that is a number of GiB above 0, in bytes, or not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        size = float(text) * 2**30
    except ValueError:
        size = 0.0
    if not 1 <= size < 2**62:  # also refuses what is not a number
        raise ConfigError(f"{name} is “{text}”.", "It must be a number of GiB above 0, such as 10.5.", name)
    return int(size)


def _default_home() -> Path:
    space_disk = Path("/data")
    if os.environ.get("SPACE_ID") and os.access(space_disk, os.W_OK):
        return space_disk / "finetune"
    return Path.home() / ".finetune"


def _free_cores() -> int:
    """Cores that this process may use: more threads than that make torch many times slower."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, (os.cpu_count() or 2) // 2)
