"""The Hugging Face Hub: what is in its cache on this machine, small files of a model, and its errors in words.

Separate because finding, fetching and publishing all speak with it. Address, cache, token and offline mode are those of
huggingface_hub itself: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import AccessError, FinetuneError, ModelError
from finetune.layouts import INDEXES

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

SITE = "https://huggingface.co"
TOKENS = f"{SITE}/settings/tokens"
SET_TOKEN = f"Make a token that may read at {TOKENS} and set it as HF_TOKEN, or run “hf auth login”; then start again."
RESUMES = "What is here already is kept: start again, and it goes on from there."
CONFIGS = (*INDEXES, "README.md", "*/config.json", "scheduler/*.json")
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def repository(name: str) -> str | None:
    """The id that a name or an address of a model on the Hub means; None if it is neither."""
    address = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:[/?#].*)?", name)
    id = address[1] if address else name
    is_valid = NAME.fullmatch(id) and not re.search(r"--|\.\.|\.git$", id)
    return id if is_valid and not id.startswith(("datasets/", "spaces/")) else None


def address(repo: str) -> str:
    """Where a person finds a model on the Hub."""
    return f"{SITE}/{repo}"


def cached(repo: str) -> Path | None:
    """The folder of a model in the cache, whole or not. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    for name in INDEXES:
        path = try_to_load_from_cache(repo, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


def configs(repo: str) -> Path:
    """The folder of the small files that say what a model is, fetched if they are not in the cache.

    Raises: ModelError, AccessError.
    """
    from huggingface_hub import snapshot_download

    with in_words(repo):
        return Path(snapshot_download(repo, allow_patterns=list(CONFIGS), tqdm_class=silent_bar()))


def sizes(repo: str) -> dict[str, int]:
    """The files of a model as the Hub listed them when they were last asked for; empty if never. Units: bytes."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo)}
    except CachedRepoTreeNotFoundError:
        return {}


def silent_bar() -> type:
    """A progress bar for huggingface_hub that shows nothing."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **{**options, "disable": True})

    return Silent


@contextmanager
def in_words(repo: str) -> Iterator[None]:
    """Put what goes wrong while a model is read from the Hub into words. Raises: ModelError, AccessError."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError

    try:
        yield
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        reason = error.__cause__ or OfflineModeIsEnabled()
        raise _in_words(reason, repo) from reason
    except (httpx2.LocalProtocolError, UnicodeError):  # they quote the header that the token is in
        raise AccessError("The token of the Hub holds characters that no token has.", SET_TOKEN) from None
    except (httpx2.TransportError, OSError) as error:
        raise _in_words(error, repo) from error


def _in_words(error: BaseException, repo: str) -> FinetuneError:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"{repo} is not on this machine, and offline mode is on.",
            "Unset HF_HUB_OFFLINE to download it, or give a folder that holds it.",
        )
    if isinstance(error, httpx2.ConnectError | httpx2.TimeoutException):
        return ModelError(f"{constants.ENDPOINT} does not answer.", f"Check the network. {RESUMES}")
    if isinstance(error, httpx2.TransportError):
        return ModelError(f"The connection to {constants.ENDPOINT} was cut.", RESUMES)
    if isinstance(error, OSError) and error.errno in FULL:
        return ModelError(
            f"There is no room left for {repo} in {constants.HF_HUB_CACHE} ({error.strerror}).",
            f"Make room, or set HF_HOME to a folder on a larger disk. {RESUMES}",
        )
    return ModelError(f"{repo} cannot be fetched: {str(error).splitlines()[0] if str(error) else error!r}", RESUMES)


def _refusal(error: "HfHubHTTPError", repo: str) -> FinetuneError:
    """What an answer of the Hub that is no success means."""
    from huggingface_hub import errors, get_token

    status, has_token = error.response.status_code, bool(get_token())
    if isinstance(error, errors.GatedRepoError):
        return _gated(repo, has_token)
    if status == 401 and has_token:
        return AccessError("The Hub does not accept the token that is set on this machine.", SET_TOKEN)
    if status == 401:
        return AccessError(
            f"The Hub shows {repo} to nobody without a token: it does not exist, or it is private.",
            f"Check its name at {address(repo)}. {SET_TOKEN}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"There is no model {repo} on the Hub, or your token may not see it.",
            f"Check its name at {address(repo)}.",
        )
    if status == 404:
        return ModelError(
            f"{repo} has no file of that name: {error.response.url.path}.",
            "Only models in the layout of diffusers can be used.",
        )
    if status == 403:
        said = error.server_message or "no reason is given"
        return AccessError(f"The Hub refuses access to {repo}: {said}", f"Open {address(repo)}. {SET_TOKEN}")
    return ModelError(f"The Hub cannot serve {repo} now (status {status}).", f"Try again in a few minutes. {RESUMES}")


def _gated(repo: str, has_token: bool) -> AccessError:
    agree = f"Open {address(repo)}, log in and agree to the licence"
    if not has_token:
        return AccessError(
            f"{repo} is only given to people who accepted its licence, and no token is set on this machine.",
            f"{agree}. {SET_TOKEN}",
        )
    return AccessError(
        f"The account of your token has not accepted the licence of {repo}.",
        f"{agree} with that account; then start again. A fine-grained token also needs the right to read public gated "
        f"repositories: {TOKENS}.",
    )
