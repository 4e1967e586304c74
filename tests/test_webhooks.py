"""Deliveries: what is told of which end, when it is tried again, and that none is lost whenever the service dies."""

import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pretend
import pytest
import receiver

from finetune import dataset, images, index, runs, webhooks
from finetune.errors import MissingError
from finetune.inputs import Request
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.webhooks import Deliveries
from finetune.webhooks.calls import Answer

SECRET = "correct horse"
SERVICE = """
import sys, time
from finetune import runs, settings
from finetune.webhooks import Deliveries, calls

def send_and_hang(url, body, headers):
    print(calls.post(url, body, headers, allows_private=True).words, flush=True)
    time.sleep(60)

machine = settings.read()
deliveries = Deliveries(machine, send=send_and_hang)
deliveries.tick([runs.find(machine.runs, sys.argv[1])])
deliveries.wait(60)
"""


class Bench:
    """A data folder and deliveries over it; time passes as a test says."""

    def __init__(self, folder):
        self.settings = Settings(home=folder / "home", allow_private_webhooks=True)
        self.later = 0.0
        self.restart()

    def restart(self, **options):
        self.deliveries = Deliveries(self.settings, now=lambda: time.time() + self.later, **options)

    def run(self, url="http://127.0.0.1:9/", secret=SECRET, owner="local"):
        run = runs.create(self.settings.runs, owner)
        request = Request(finetune_comment="x", mode="style", webhook_url=url, webhook_secret=secret)
        run.write("request.json", request.model_dump(mode="json"))
        return run

    def image(self, run, url, secret=SECRET):
        order = images.Order(
            owner="local",
            created=time.time(),
            finetune_id=run.id,
            endpoint="flux-pro-finetuned",
            prompt="a pear",
            seed=7,
            width=64,
            height=64,
            strength=1.0,
            webhook_url=url,
            webhook_secret=secret,
            root="https://here.example",
        )
        return images.create(self.settings, order)

    def tick(self, *ended):
        self.deliveries.tick(ended)
        self.deliveries.wait(10)

    def told(self, task):
        (delivery,) = webhooks.of_task(self.settings, task.id)
        return delivery


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def server():
    """A receiver that listens."""
    with receiver.listening() as made:
        yield made


def message(server, number=0):
    return json.loads(server.received[number][2])


def answers(*words):
    """A way to send that gives these answers in turn, without sending."""
    left = list(words)
    return lambda url, body, headers: Answer(left.pop(0), is_success=False)


def test_delivery_is_signed(bench, server):
    """The signature is the HMAC-SHA256 of exactly the bytes that arrive."""
    run = bench.run(server.url)
    run.tell("ready", files=[])

    bench.tick(run)

    _, headers, body = server.received[0]
    assert headers["X-BFL-Signature"] == f"sha256={hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}"


def test_delivery_without_a_secret_is_not_signed(bench, server):
    """There is no signature that proves nothing."""
    run = bench.run(server.url, secret=None)
    run.tell("ready", files=[])

    bench.tick(run)

    assert "X-BFL-Signature" not in server.received[0][1]


def test_ready_run_is_told_as_ready(bench, server):
    """The message names the run three times, as programs look for it, and no error."""
    run = bench.run(server.url)
    run.tell("ready", files=[])

    bench.tick(run)

    assert set(message(server)) == {
        *("id", "task_id", "finetune_id", "status", "result", "progress", "error", "message", "timestamp")
    }
    assert message(server)["id"] == message(server)["task_id"] == message(server)["finetune_id"] == run.id
    assert (message(server)["status"], message(server)["error"]) == ("Ready", None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("failed", "There is not enough memory for this run."), ("stopped", "The run was stopped at step 40.")],
)
def test_run_that_failed_or_was_stopped_is_an_error_that_says_why(bench, server, kind, words):
    """To a program that waits, both are ends without a finetune."""
    run = bench.run(server.url)
    run.tell(kind, message="There is not enough memory for this run.", hint="", step=40)

    bench.tick(run)

    assert message(server)["status"] == "Error"
    assert message(server)["error"] == message(server)["message"] == words


def test_other_vocabulary_is_a_setting(bench, server):
    """Where it is set, ends are SUCCESS and FAILED."""
    bench.settings = Settings(home=bench.settings.home, allow_private_webhooks=True, webhooks_say_success=True)
    bench.restart()
    ready, failed = bench.run(server.url), bench.run(server.url)
    ready.tell("ready", files=[])
    failed.tell("failed", message="x")

    bench.tick(ready, failed)

    told = {json.loads(body)["id"]: json.loads(body)["status"] for _, _, body in server.received}
    assert told == {ready.id: "SUCCESS", failed.id: "FAILED"}


def test_image_is_told_with_its_link(bench, server):
    """An image's message has the result that its route gives, and is about no finetune."""
    image = bench.image(fakes.run(bench.settings.home), server.url)
    (image.folder / "image.jpeg").write_bytes(b"x")
    image.tell(status="Ready", file="image.jpeg", start_time=1.0, end_time=time.time())

    bench.tick()

    assert "finetune_id" not in message(server)
    assert message(server)["status"] == "Ready"
    assert message(server)["result"]["sample"].startswith(f"https://here.example/v1/images/{image.id}/")
    assert "X-BFL-Signature" in server.received[0][1]
    assert images.untold(bench.settings) == []


def test_image_that_waits_is_not_told(bench, server):
    """Only its end is."""
    bench.image(fakes.run(bench.settings.home), server.url)

    bench.tick()

    assert server.received == []


def test_run_that_goes_on_after_a_failure_is_told_of_twice(bench, server):
    """Each end is one delivery, under an id of its own."""
    run = bench.run(server.url)
    run.tell("failed", message="x")
    bench.tick(run)
    time.sleep(0.002)  # ends are told apart by their time
    run.tell("queued")
    run.tell("ready", files=[])

    bench.tick(run)

    assert [message(server, number)["status"] for number in (0, 1)] == ["Error", "Ready"]
    assert len({headers["X-Delivery-Id"] for _, headers, _ in server.received}) == 2


def test_end_is_told_once_however_often_it_is_noticed(bench, server):
    """Each service notices, when it starts, all ends there are."""
    run = bench.run(server.url)
    run.tell("ready", files=[])

    for _ in range(3):
        bench.tick(run)
        bench.restart()

    assert len(server.received) == 1


def test_address_with_a_password_is_not_called_and_holds_up_nothing(bench):
    """Why it was not called is noted with each attempt, and the log of the run names the host alone."""
    run = bench.run("http://name:hunter2@127.0.0.1:1/hook")
    run.tell("ready", files=[])

    bench.tick(run)

    assert bench.told(run).attempts[0]["answer"].startswith("not delivered")
    lines = [event["message"] for event in run.events()[0] if event["kind"] == "log"]
    assert "127.0.0.1" in lines[-1] and "hunter2" not in lines[-1]


def test_run_without_an_address_is_not_told(bench):
    """Drafts and runs that name nobody have nothing to deliver."""
    draft, silent = fakes.run(bench.settings.home), fakes.run(bench.settings.home)
    silent.write("request.json", Request(finetune_comment="x", mode="style").model_dump(mode="json"))
    silent.tell("ready", files=[])

    bench.tick(draft, silent)

    assert webhooks.of_task(bench.settings, silent.id) == []


def test_refused_delivery_is_tried_again_after_1_5_and_30_seconds(bench):
    """Four attempts in all, with waits that are written down instead of slept; then it is given up."""
    bench.restart(send=answers("500 A", "500 B", "500 C", "500 D"))
    run = bench.run()
    run.tell("ready", files=[])
    bench.tick(run)

    for wait in (1, 5, 30):
        told = bench.told(run)
        assert told.next_time - told.attempts[-1]["time"] == pytest.approx(wait, abs=0.2)
        bench.later += wait - 0.3
        bench.tick()
        assert len(bench.told(run).attempts) == len(told.attempts)
        bench.later += 0.6
        bench.tick()

    told = bench.told(run)
    assert [attempt["answer"] for attempt in told.attempts] == ["500 A", "500 B", "500 C", "500 D"]
    assert (told.next_time, told.is_delivered) == (None, False)


def test_given_up_delivery_is_sent_again_once(bench, server):
    """Who asks for it gets one more try, at once; it is the same message under the same id."""
    bench.restart(send=answers(*["500 No"] * 4))
    run = bench.run(server.url)
    run.tell("ready", files=[])
    for _ in range(4):
        bench.tick(run)
        bench.later += 31
    bench.restart()

    webhooks.send_again(bench.settings, bench.told(run).id)
    bench.tick()

    assert server.received[0][1]["X-Delivery-Id"] == bench.told(run).id
    assert bench.told(run).is_delivered
    assert len(bench.told(run).attempts) == 5


def test_delivered_one_is_sent_again_once_and_stays_delivered(bench, server):
    """That the second time went wrong does not undo the first, and is not tried a third time."""
    run = bench.run(server.url)
    run.tell("ready", files=[])
    bench.tick(run)
    server.status = 500

    webhooks.send_again(bench.settings, bench.told(run).id)
    bench.tick()
    bench.later = 100
    bench.tick()

    assert [attempt["answer"][:3] for attempt in bench.told(run).attempts] == ["200", "500"]
    assert bench.told(run).is_delivered
    with pytest.raises(MissingError):
        webhooks.send_again(bench.settings, "no-such-id")


def test_service_that_died_before_the_end_was_noticed_tells_it(bench, server):
    """The next service finds the run that is over in its folder."""
    queue = Queue(bench.settings, pretend.StillExecutor(), after_tick=lambda ended: bench.tick(*ended))
    run = bench.run(server.url)
    run.tell("ready", files=[])

    queue.tick()
    queue.tick()
    queue.close()

    assert [json.loads(body)["id"] for _, _, body in server.received] == [run.id]


def test_service_that_died_after_noticing_tells_it(bench, server):
    """What was kept is sent by the next service, though the run is gone by then."""
    run = bench.run(server.url)
    run.tell("ready", files=[])
    bench.deliveries.note([run])
    runs.discard(run)

    bench.restart()
    bench.tick()

    assert message(server)["id"] == run.id
    assert bench.told(run).is_delivered


def test_service_that_died_between_noting_an_image_and_marking_it_tells_it_once(bench, server):
    """The mark that is still there changes nothing."""
    image = bench.image(fakes.run(bench.settings.home), server.url)
    image.fail("There is no room.")
    mark = bench.settings.images / images.UNTOLD / image.id
    secret = (image.folder / images.SECRET).read_text()
    bench.deliveries.note([])
    mark.touch()
    (image.folder / images.SECRET).write_text(secret)

    bench.restart()
    bench.tick()

    assert len(server.received) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
@pytest.mark.parametrize("answered", [False, True], ids=["while it posts", "after the answer, before it was noted"])
def test_service_that_is_killed_leaves_the_delivery_to_the_next(bench, server, answered):
    """A real process is killed while the receiver has the request: it gets the same again, under the same id."""
    run = bench.run(server.url)
    run.tell("ready", files=[])
    server.may_answer.clear()
    machine = {"FINETUNE_HOME": str(bench.settings.home), "FINETUNE_PRIVATE_WEBHOOKS": "1"}
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, run.id],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **machine},
        stdout=subprocess.PIPE,
    )
    assert server.has_received.wait(60)
    if answered:
        server.may_answer.set()
        assert service.stdout.readline() == b"200 OK\n"
    service.kill()
    service.wait()
    server.may_answer.set()

    bench.tick(run)

    (_, first, one), (_, second, other) = server.received
    assert (one, first["X-Delivery-Id"]) == (other, second["X-Delivery-Id"])
    assert bench.told(run).is_delivered


def test_service_that_died_between_two_tries_goes_on_with_them(bench, server):
    """The attempt of the first service is kept, and the next follows when it is due."""
    server.status = 500
    run = bench.run(server.url)
    run.tell("ready", files=[])
    bench.tick(run)

    bench.restart()
    bench.tick(run)
    sent_too_early = len(server.received) > 1
    bench.later = 1.5
    bench.tick()

    assert not sent_too_early
    assert len(server.received) == len(bench.told(run).attempts) == 2


def test_database_that_is_lost_changes_no_id(bench, server):
    """Without it ends are told again, and receivers can tell by the id."""
    run = bench.run(server.url)
    run.tell("ready", files=[])
    bench.tick(run)
    bench.settings.index.unlink()

    bench.tick(run)

    first, second = (headers["X-Delivery-Id"] for _, headers, _ in server.received)
    assert first == second


def test_end_that_the_last_version_told_is_not_told_again(bench, server):
    """Its record in the run folder counts; what ended after it is news."""
    run, now = bench.run(server.url), time.time()
    old_end = {"time": now - 100, "kind": "failed", "message": "x"}
    (run.folder / "events.jsonl").write_text(json.dumps(old_end) + "\n")
    run.write("webhook.json", {"attempts": [], "is_over": True})
    os.utime(run.folder / "webhook.json", (now - 99, now - 99))
    bench.tick(run)
    told_of_the_old_end = len(server.received)
    run.tell("ready", files=[])

    bench.tick(run)

    assert told_of_the_old_end == 0
    assert [json.loads(body)["status"] for _, _, body in server.received] == ["Ready"]


def test_end_of_long_ago_is_no_news(bench, server):
    """A run that is brought back after weeks does not tell what nobody waits for any more."""
    run = bench.run(server.url)
    run.tell("ready", files=[])
    bench.later = 8 * 86400

    bench.tick(run)

    assert server.received == []


def test_slow_receivers_hold_up_nobody_else(bench, server):
    """One owner's deliveries wait for each other, two at a time, and not those of others."""
    with receiver.listening() as slow:
        slow.may_answer.clear()
        theirs = [bench.run(slow.url, owner="them") for _ in range(4)]
        mine = bench.run(server.url, owner="me")
        for run in [*theirs, mine]:
            run.tell("ready", files=[])

        bench.deliveries.tick(theirs)
        bench.deliveries.tick([mine])
        assert server.has_received.wait(10)
        bench.deliveries.tick()
        waiting = len(slow.received)
        slow.may_answer.set()
        bench.deliveries.wait(10)
        bench.tick()

    assert waiting <= webhooks.AT_ONCE_EACH
    assert len(slow.received) == 4


def test_two_ticks_do_not_send_the_same_twice(bench, server):
    """What is being sent is not due."""
    server.may_answer.clear()
    run = bench.run(server.url)
    run.tell("ready", files=[])

    bench.deliveries.tick([run])
    assert server.has_received.wait(10)
    bench.deliveries.tick([run])
    server.may_answer.set()
    bench.deliveries.wait(10)

    assert len(server.received) == 1


def test_run_whose_request_is_damaged_holds_up_nobody(bench, server, capsys):
    """It is said, and the others are told."""
    broken, run = bench.run(server.url), bench.run(server.url)
    (broken.folder / "request.json").write_text("{")
    for one in (broken, run):
        one.tell("ready", files=[])

    bench.tick(broken, run)

    assert [json.loads(body)["id"] for _, _, body in server.received] == [run.id]
    assert broken.id in capsys.readouterr().err


def test_secrets_are_kept_nowhere(bench, server):
    """Neither database, events nor record have the secret, and events only the host of the address."""
    url = server.url.replace("hook?a=1", "path-token?token=query-token")
    run = bench.run(url)
    run.tell("ready", files=[])

    bench.tick(run)
    with index.opened(bench.settings) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert SECRET.encode() not in bench.settings.index.read_bytes()
    assert SECRET not in repr(bench.told(run))
    events = (run.folder / "events.jsonl").read_text(encoding="utf-8")
    assert "Webhook to 127.0.0.1, attempt 1: 200 OK." in events
    assert not any(word in events for word in (SECRET, "path-token", "query-token"))


def test_secret_of_a_run_is_apart_from_its_request_until_it_is_ready(bench, server):
    """What a person may look at has no secret; a run that can end again keeps it, one that is ready does not."""
    queue = Queue(bench.settings, pretend.StillExecutor())
    run = queue.create()
    dataset.unpack(pretend.zip_of_pictures(run.folder / "in.zip"), run)
    request = Request(finetune_comment="x", mode="style", webhook_url=server.url, webhook_secret=SECRET)
    queue.submit(run, request)
    run.tell("failed", message="x")
    bench.tick(run)
    request_has_it = SECRET in (run.folder / "request.json").read_text(encoding="utf-8")
    time.sleep(0.002)
    run.tell("ready", files=[])

    bench.tick(run)

    assert not request_has_it
    assert ["X-BFL-Signature" in headers for _, headers, _ in server.received] == [True, True]
    assert not any(SECRET in path.read_text("utf-8", "replace") for path in run.folder.glob("*") if path.is_file())
