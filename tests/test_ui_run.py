"""What the buttons of the tab Run do, and for whom."""

import time

import pretend
import pytest

from finetune import dataset, inputs, owners, runs, webhooks
from finetune.errors import DeniedError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import run as run_tab
from finetune.ui.handlers import Visit
from finetune.webhooks import Deliveries
from finetune.webhooks.calls import Answer

REQUEST = inputs.read({"finetune_comment": "pears", "mode": "style", "webhook_url": "https://hooks.example/a?token=b"})
BUTTONS = (run_tab.stop, run_tab.resume, run_tab.share, run_tab.withdraw, run_tab.send_again)


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


def _submitted(visit, folder):
    made = runs.create(visit.settings.runs)
    dataset.unpack(pretend.zip_of_pictures(folder / f"{made.id}.zip"), made)
    visit.queue.submit(made, REQUEST)
    return made


@pytest.fixture
def run(visit, tmp_path):
    return _submitted(visit, tmp_path)


def _delivered(visit, run):
    """Let a run end, and its end be told."""
    run.tell("ready", files=[])
    deliveries = Deliveries(visit.settings, send=lambda *_: Answer("200 OK", is_success=True))
    deliveries.tick([run])
    deliveries.wait(10)
    (delivery,) = webhooks.of_task(visit.settings, run.id)
    return delivery


def test_stop_and_continue_from_the_page(visit, run):
    """The two buttons do what the queue does."""
    run_tab.stop(visit, {"run": run.id})
    assert visit.queue.state(run) == "stopped"

    run_tab.resume(visit, {"run": run.id})
    assert visit.queue.state(run) == "queued"


def test_link_to_watch_is_made_once_and_withdrawn(visit, run):
    """Asking twice gives the same link; withdrawing ends it."""
    first, again = (run_tab.share(visit, {"run": run.id})["watch"] for _ in range(2))
    assert first == again == f"v1/watch/{run.id}#{owners.watch_key(run)}"

    assert run_tab.withdraw(visit, {"run": run.id}) == {"watch": ""}
    assert owners.watch_key(run) == ""


def test_webhook_is_sent_again_at_once(visit, run):
    """A delivery that is over is due again."""
    done = _delivered(visit, run)

    run_tab.send_again(visit, {"run": run.id, "delivery": done.id})

    (again,) = webhooks.of_task(visit.settings, run.id)
    assert (done.next_time, again.next_time) == (None, pytest.approx(time.time(), abs=60))


@pytest.mark.parametrize("asked", [None, ["one"], "' OR 1=1 --"])
def test_only_a_delivery_of_this_run_is_sent_again(visit, run, tmp_path, asked):
    """Naming another run's delivery, or none, sends nothing."""
    other = _submitted(visit, tmp_path)
    of_other = _delivered(visit, other)

    for delivery in (asked, of_other.id):
        with pytest.raises(MissingError):
            run_tab.send_again(visit, {"run": run.id, "delivery": delivery})

    assert webhooks.of_task(visit.settings, other.id) == [of_other]


@pytest.mark.parametrize("button", BUTTONS, ids=lambda button: button.__name__)
@pytest.mark.parametrize(("caller", "error"), [(Caller("somebody else"), MissingError), (None, DeniedError)])
def test_buttons_are_for_the_owner_alone(visit, run, button, caller, error):
    """Somebody else is told that there is no such run, a visitor who has not signed in to do so; nothing changes."""
    delivery, key = _delivered(visit, run), owners.allow_watching(run)

    with pytest.raises(error):
        button(Visit(visit.queue, caller), {"run": run.id, "delivery": delivery.id})

    assert (visit.queue.state(run), owners.watch_key(run)) == ("ready", key)
    assert webhooks.of_task(visit.settings, run.id) == [delivery]
