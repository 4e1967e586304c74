"""Push a finished LoRA to the Hub, if its owner asks for it. A token is used once and kept nowhere.

What is uploaded is named here file by file: the model card, the LoRA files and the last samples. A run's folder also
holds the pictures it was trained on, their captions and the secret of a webhook, which are nobody else's business.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import hub
from finetune.errors import AccessError, ConfigError, FinetuneError
from finetune.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

CARD = "README.md"
SAMPLES = "samples"
"""The folder of sample pictures in a published repository, as the model card refers to it."""
PICTURES = (".png", ".jpg", ".webp")
CHOOSE = "Choose another name."
WRITE_TOKEN = f"Make a token that may write at {hub.TOKENS}."


def push_run(run: Run, repo: str, token: str | None = None, is_private: bool = True) -> str:
    """Publish what a run has made as a model on the Hub; returns its address.

    Raises: FinetuneError, AccessError, ConfigError.
    """
    return _push(of_run(run), repo, token, is_private)


def of_run(run: Run) -> dict[str, Path]:
    """The files of a run that are published, by their place in the repository: its results and its last samples."""
    steps = {path: int(found[1]) for path in run.samples.glob("*.png") if (found := re.match(r"step(\d+)-", path.name))}
    last = max(steps.values(), default=0)
    return _published(run.results, sorted(path for path, step in steps.items() if step == last))


def _published(results: Path, pictures: list[Path]) -> dict[str, Path]:
    lora = {path.name: path for path in sorted(results.glob("*.safetensors"))}
    if not lora:
        raise FinetuneError("There is no LoRA to publish yet.", "Wait until the run is ready.")
    card = {CARD: results / CARD} if (results / CARD).exists() else {}
    shown = {f"{SAMPLES}/{path.name}": path for path in pictures if path.suffix in PICTURES}
    return {**card, **lora, **shown}


def _push(files: Mapping[str, Path], repo: str, token: str | None, is_private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    token = (token or get_token() or "").strip()
    if not token:
        raise AccessError("Publishing needs a token of the Hub, and none is set.", WRITE_TOKEN)
    if not re.fullmatch(r"[\w.-]+", token, re.ASCII):
        raise AccessError("The token of the Hub holds characters that no token has.", WRITE_TOKEN)
    api = HfApi(token=token)
    with _in_words(repo, token):
        url = api.create_repo(repo, private=is_private, exist_ok=True)
        old = _old_samples(api, url.repo_id, files, is_private)
        changes = [CommitOperationAdd(place, path) for place, path in files.items()]
        changes += [CommitOperationDelete(place) for place in old]
        api.create_commit(url.repo_id, changes, commit_message="Add the LoRA, its card and samples")
    return str(url)


def _old_samples(api: "HfApi", id: str, files: Mapping[str, Path], is_private: bool) -> list[str]:
    """The samples of an earlier push, which this one replaces.

    Raises: ConfigError when the repository holds something else, or is less private than was asked for.
    """
    found = api.model_info(id)
    held = {file.rfilename for file in found.siblings} - {".gitattributes", *files}
    old = sorted(name for name in held if name.startswith(f"{SAMPLES}/step"))
    if others := sorted(held - set(old)):
        raise ConfigError(f"{id} exists and holds something else ({', '.join(others[:3])}).", CHOOSE, "repo")
    if is_private and not found.private:
        raise ConfigError(
            f"{id} exists and is public, but the LoRA was to be private.",
            "Choose another name, or publish it for everybody.",
            "repo",
        )
    return old


@contextmanager
def _in_words(repo: str, token: str) -> Iterator[None]:
    """Put what goes wrong during an upload into words in which no token is. Raises: FinetuneError."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        hint = "A name is owner/name, of letters, digits, “-”, “_” and “.”."
        raise ConfigError(f"“{repo}” is no name for a model on the Hub.", hint, "repo") from error
    except HfHubHTTPError as error:
        raise _refusal(error, repo, token) from error
    except OfflineModeIsEnabled as error:
        raise FinetuneError("Offline mode is on, so nothing can be published.", "Unset HF_HUB_OFFLINE.") from error
    except httpx2.TransportError as error:
        raise FinetuneError("The Hub cannot be reached.", "Check the network and push again.") from error
    except ValueError as error:  # the card, or one of the files
        said = str(error).replace(token, "…")
        raise FinetuneError(f"The Hub does not take the upload: {said}", "Correct it and push again.") from error
    except (RuntimeError, OSError) as error:  # what an upload in pieces makes of any of these
        reason = error.__cause__ or error
        if isinstance(reason, HfHubHTTPError):
            raise _refusal(reason, repo, token) from error
        said = str(reason).replace(token, "…")
        raise FinetuneError(f"The upload broke off: {said}", "Push again: what is there is not sent twice.") from error


def _refusal(error: "HfHubHTTPError", repo: str, token: str) -> FinetuneError:
    """What an answer of the Hub that is no success means."""
    status = error.response.status_code
    said = (error.server_message or "no reason is given").replace(token, "…")
    if status == 401:
        return AccessError("The Hub does not accept this token.", WRITE_TOKEN)
    if status == 403:
        return AccessError(f"This token may not write to {repo}.", f"{WRITE_TOKEN} The Hub says: {said}")
    if status in (400, 409) and error.response.url.path.endswith("/repos/create"):
        return ConfigError(f"The Hub does not take the name “{repo}”: {said}", CHOOSE, "repo")
    return FinetuneError(f"The Hub cannot take {repo} now (status {status}): {said}", "Push again in a few minutes.")
