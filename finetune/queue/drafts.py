"""Drafts: uploads that nobody has started yet. Captioners describe them one after the other; old ones are thrown away.

Separate from the queue of runs, because a draft waits for nobody's turn: it is described beside whatever runs.
"""

from collections.abc import Callable, Collection

from finetune import machine, runs
from finetune.errors import BusyError, ExecutorError
from finetune.executors import Executor
from finetune.inputs import Mode
from finetune.runs import Run
from finetune.settings import Settings

EACH = 10
"""The most drafts of one owner."""
SECONDS_SAFE = 60.0
"""How long a draft with pictures is not thrown away to make room for another."""
SECONDS_TO_UPLOAD = 3600.0
"""The same of one without pictures: they are on their way."""
DAYS_KEPT = 1.0


class Drafts:
    """What happens to drafts; the queue says which runs are drafts, and when it is their turn."""

    def __init__(self, settings: Settings, executor: Executor, now: Callable[[], float]) -> None:
        self._settings = settings
        self._executor = executor
        self._now = now

    def make_room(self, drafts: list[Run]) -> None:
        """Throw the oldest of an owner's drafts away if there are too many, but not one that is being made.

        Raises: BusyError.
        """
        if len(drafts) < EACH:
            return
        spare = [run for run in drafts if self._age(run) > (SECONDS_SAFE if _has_pictures(run) else SECONDS_TO_UPLOAD)]
        if not spare:
            raise BusyError(
                f"{len(drafts)} uploads of yours are being looked at.", "Start one of them, or wait a minute."
            )
        self._discard(min(spare, key=Run.created))

    def throw_away_if_old(self, draft: Run) -> None:
        """Throw a draft away that nobody came back to."""
        if self._age(draft) > DAYS_KEPT * 86400:
            self._discard(draft)

    def describe(
        self, draft: Run, mode: Mode, base_model: str, files: Collection[str], again: bool, captioner: str
    ) -> None:
        """Ask for a draft to be described; what was asked for already is not asked for once more, unless `again`."""
        before = draft.read("draft.json")
        asked = {"mode": mode, "base_model": base_model, "captioner": captioner}
        is_same = {"captioner": "", **before}.items() >= asked.items()
        known = set(before.get("files", ())) if is_same else set()
        if not is_same or again or not known.issuperset(files):
            draft.write("draft.json", {**asked, "files": sorted(known.union(files)), "is_waiting": True})

    def is_describing(self, draft: Run) -> bool:
        """Whether descriptions of its pictures can still come."""
        return _is_asking(draft) or self._executor.is_running(draft)

    def take_turn(self, drafts: list[Run], is_device_taken: bool) -> None:
        """Start the captioner for the draft that asked first; one works at a time.

        A GPU that a run or the studio uses is theirs alone: a captioner there is ended, and goes on from what it has
        said on the processor.
        """
        is_gpu_taken = is_device_taken and self._has_gpu()
        if is_gpu_taken:
            self._send_captioners_away(drafts)
        asking = [run for run in drafts if _is_asking(run)]
        if not asking:
            return
        run = min(asking, key=lambda run: (run.folder / "draft.json").stat().st_mtime)
        if any(self._executor.is_running(other) for other in drafts if other.id != run.id):
            return
        self._executor.stop(run)
        run.write("draft.json", {**run.read("draft.json"), "is_waiting": False, "on_processor": is_gpu_taken})
        try:
            self._executor.start(run, "caption")
        except ExecutorError as error:
            run.tell("caption_failed", message=error.message, hint=error.hint)

    def _send_captioners_away(self, drafts: list[Run]) -> None:
        for run in drafts:
            draft = run.read("draft.json")
            if draft and not draft.get("on_processor") and self._executor.is_running(run):
                self._executor.stop(run)
                run.write("draft.json", {**draft, "is_waiting": True})

    def _has_gpu(self) -> bool:
        found = machine.read(self._settings.home)
        return found is not None and found.is_gpu

    def _age(self, draft: Run) -> float:
        return self._now() - draft.created().timestamp()

    def _discard(self, draft: Run) -> None:
        self._executor.stop(draft)
        runs.discard(draft)


def _has_pictures(draft: Run) -> bool:
    return bool(draft.read("dataset.json"))


def _is_asking(draft: Run) -> bool:
    return bool(draft.read("draft.json").get("is_waiting"))
