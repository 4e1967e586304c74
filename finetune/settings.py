"""This machine: folders, address, limits, device. The only reader of environment variables."""

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.errors import ConfigError, StorageError

ASSETS = Path(__file__).parent.parent / "assets"
DEMO_BASE = ASSETS / "demo-base"
NEEDED_BY_ANY = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}


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
    request_mib: int = 200
    """The largest body of a request to the REST service."""
    disk_reserve_gib: int = 2
    """What must stay free on the disk: nothing is taken in that would go below it."""
    waiting: int = 100
    """The most runs that may wait or be at work, of all owners."""
    waiting_each: int = 10
    """The same, of one owner."""
    images_waiting: int = 200
    """The most images that may wait, of all owners."""
    images_waiting_each: int = 50
    """The same, of one owner."""
    idle_minutes: int = 5
    """How long a model stays loaded after the last image was drawn."""
    on_space: bool = False
    has_hub_login: bool = False
    """Whether this is a Space that lets visitors sign in with their Hugging Face account."""
    public_url: str = ""
    """Where the service is reached from outside, if that is known."""
    admins: tuple[str, ...] = ()
    """Who owns the machine and sees all runs; where nobody is named, the first of `auth`."""
    without_password: bool = False
    """Whether the owner has asked for a public link without a password."""
    webhooks_say_success: bool = False
    """Whether webhooks say SUCCESS and FAILED instead of Ready and Error."""
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
    def images(self) -> Path:
        """One folder per image that was ordered from a finetune."""
        return self.home / "images"

    @property
    def index(self) -> Path:
        """What the service keeps beyond the folders: keys, and deliveries of webhooks."""
        return self.home / "index.db"

    @property
    def trash(self) -> Path:
        """Deleted runs, until they are emptied."""
        return self.home / "trash"

    @property
    def uploads(self) -> Path:
        """What the page uploads, until it is unpacked."""
        return Path(os.environ.get("GRADIO_TEMP_DIR") or self.home / "uploads")

    @cached_property
    def secret(self) -> bytes:
        """The key that signs links to files; made once and kept, so that links survive a restart."""
        path = self.home / "secret.key"
        self.home.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()

    def make_home(self) -> None:
        """Make the folder of all data, for whoever runs the service alone."""
        self.home.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # some disks know no owners
            self.home.chmod(0o700)

    def worker_environment(self) -> dict[str, str]:
        """The environment of a worker: this one without passwords, with its threads and folders decided."""
        threads = str(self.threads)
        decided = {"FINETUNE_HOME": str(self.home), "FINETUNE_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        given = {name: value for name, value in os.environ.items() if name != "FINETUNE_AUTH"}
        return {**given, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **decided}

    def keep_uploads_at_home(self) -> None:
        """Let Gradio keep what is uploaded on the disk that has the room, unless it is told where."""
        os.environ.setdefault("GRADIO_TEMP_DIR", str(self.uploads))

    def check_room(self, size: int = 0, folder: Path | None = None) -> None:
        """Raises: StorageError when that many bytes more, at home or in a folder, would leave too little of a disk."""
        folder = folder or self.home
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free - size < self.disk_reserve_gib * 2**30:
            raise StorageError(
                f"The disk has no room for this: {free / 2**30:.1f} GiB are free, {size / 2**30:.1f} would be added, "
                f"and {self.disk_reserve_gib} have to stay free.",
                "Delete runs that are no longer needed, or ask whoever runs this service.",
            )


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
        auth=_auth(),
        root_path=environment.get("GRADIO_ROOT_PATH", ""),
        device=environment.get("FINETUNE_DEVICE", "auto"),
        threads=_number("FINETUNE_THREADS") or _free_cores(),
        memory_bytes=_gib("FINETUNE_MEMORY_GIB"),
        upload_mib=_number("FINETUNE_UPLOAD_MIB") or Settings.upload_mib,
        request_mib=_number("FINETUNE_REQUEST_MIB") or Settings.request_mib,
        disk_reserve_gib=_number("FINETUNE_DISK_RESERVE_GIB") or Settings.disk_reserve_gib,
        waiting=_number("FINETUNE_WAITING") or Settings.waiting,
        waiting_each=_number("FINETUNE_WAITING_EACH") or Settings.waiting_each,
        images_waiting=_number("FINETUNE_IMAGES_WAITING") or Settings.images_waiting,
        images_waiting_each=_number("FINETUNE_IMAGES_WAITING_EACH") or Settings.images_waiting_each,
        idle_minutes=_number("FINETUNE_IDLE_MINUTES") or Settings.idle_minutes,
        on_space=bool(environment.get("SPACE_ID")),
        has_hub_login=_has_hub_login(),
        public_url=_public_url(),
        admins=_admins(),
        without_password=_is_on("FINETUNE_WITHOUT_PASSWORD"),
        webhooks_say_success=_is_on("FINETUNE_WEBHOOKS_SAY_SUCCESS"),
        allow_private_webhooks=_is_on("FINETUNE_PRIVATE_WEBHOOKS"),
        demo_base=Path(environment.get("FINETUNE_DEMO_BASE") or DEMO_BASE).expanduser().resolve(),
        base_folders=_folders(environment.get("FINETUNE_BASES") or str(home / "bases")),
    )


def bare_environment() -> dict[str, str]:
    """The environment of a process that reads what strangers sent: what any program needs, and no secret."""
    return {**{name: os.environ[name] for name in NEEDED_BY_ANY if name in os.environ}, **ONE_THREAD}


def _folders(text: str) -> tuple[Path, ...]:
    """Folders as PATH has them: between colons, or semicolons on Windows."""
    return tuple(Path(folder).expanduser().absolute() for folder in text.split(os.pathsep) if folder.strip())


def _public_url() -> str:
    """Where the service is reached from outside: as the owner says, or as a Space does."""
    space = os.environ.get("SPACE_HOST", "").split(",")[0].strip()
    url = os.environ.get("FINETUNE_PUBLIC_URL", "").strip() or (f"https://{space}" if space else "")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"FINETUNE_PUBLIC_URL is “{url}”.", "It must begin with http:// or https://.", "public_url")
    return url.rstrip("/")


def _auth() -> tuple[tuple[str, str], ...]:
    """Names and passwords, one a line, or between commas where there is one line only; they are never repeated."""
    text = os.environ.get("FINETUNE_AUTH", "").strip("\r\n")
    pairs = [pair.strip("\r").partition(":") for pair in text.split("\n" if "\n" in text else ",") if pair.strip()]
    if not all(name.strip() and password for name, _, password in pairs):
        raise ConfigError("FINETUNE_AUTH is not understood.", "Write NAME:PASSWORD, one a line.", "FINETUNE_AUTH")
    return tuple((name.strip(), password) for name, _, password in pairs)


def _has_hub_login() -> bool:
    """Whether this is a Space with sign-in by the Hub; only there does Gradio not make an identity up."""
    names = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "SYSTEM")
    given = [os.environ.get(name) for name in names]
    return all(given) and given[-1] == "spaces"


def _admins() -> tuple[str, ...]:
    """Names of the machine's owners; where people sign in by the Hub, at least the Space's author."""
    author = os.environ.get("SPACE_AUTHOR_NAME", "") if _has_hub_login() and not _auth() else ""
    names = [*os.environ.get("FINETUNE_ADMINS", "").split(","), author]
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


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
