"""The panel “Use it from a program”: programs that follow the form, and keys."""

import json
import shutil
import subprocess

import pretend
import pytest

from finetune import keys
from finetune.api import callers, examples
from finetune.errors import FinetuneError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import build, form, program
from finetune.ui.handlers import Visit

ADA, BOB, VISITOR = Caller("ada"), Caller("bob"), Caller("visitor-0123456789abcdef")


@pytest.fixture
def queue(tmp_path):
    made = Queue(
        Settings(home=tmp_path, auth=(("root", "pass"), ("ada", "word"), ("bob", "word"))), pretend.StillExecutor()
    )
    yield made
    made.close()


@pytest.fixture
def at_home(tmp_path):
    made = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(made, AT_HOME)
    made.close()


def test_programs_follow_the_form(at_home):
    """They hold the page's own address and what was typed; lines become prompts."""
    asked = {"root": "https://x.example/sub/", "iterations": 450, "sample_prompts": "a boat\n\n a pear "}

    told = program.panel(at_home, asked)

    assert 'ROOT = "https://x.example/sub"' in told["programs"]["Python"]
    assert '"iterations": 450' in told["programs"]["Python"]
    assert '"sample_prompts": ["a boat", "a pear"]' in told["programs"]["Python"]


@pytest.mark.parametrize(
    "asked", [{}, {"mode": ["x"], "iterations": {"a": 1}, "sample_prompts": 7, "root": 5, "odd": 1}]
)
def test_programs_are_given_whatever_is_asked(at_home, asked):
    """A page of an older service, or somebody who plays with it, gets programs all the same."""
    assert set(program.panel(at_home, asked)["programs"]) == {"curl", "Python", "JavaScript"}


def test_at_home_no_key_is_needed(at_home):
    """Nobody is asked for a key, none stands in the programs, and none can be made by mistake."""
    told = program.panel(at_home, {})

    assert told["words"] == program.NO_KEY and not told["may_make"]
    assert examples.KEY not in told["programs"]["curl"]
    with pytest.raises(FinetuneError):
        program.make_key(at_home)
    assert not keys.exist(at_home.settings)


def test_key_that_was_made_opens_the_routes(queue):
    """It is shown in the one answer, speaks for who made it, and afterwards only its beginning is told."""
    visit = Visit(queue, ADA)

    made = program.make_key(visit)

    assert keys.find(queue.settings, made["key"]).caller(queue.settings) == ADA
    told = program.panel(visit, {})
    assert [key["id"] for key in told["keys"]] == [made["key"][: keys.ID_LETTERS]]
    assert made["key"] not in str(told)


def test_keys_of_others_are_neither_shown_nor_revoked(queue):
    """Each person sees and ends their own."""
    made = program.make_key(Visit(queue, ADA))["keys"][0]

    assert program.panel(Visit(queue, BOB), {})["keys"] == []
    with pytest.raises(FinetuneError):
        program.revoke_key(Visit(queue, BOB), {"id": made["id"]})
    assert program.revoke_key(Visit(queue, ADA), {"id": made["id"]})["keys"] == []


def test_rights_by_name_are_not_put_into_a_key(queue):
    """An owner of the machine by name has all rights with their key, until the name has them no more."""
    made = program.make_key(Visit(queue, Caller("root", owns_machine=True)))["key"]

    found = keys.find(queue.settings, made)
    assert found.caller(queue.settings).owns_machine and not found.owns_machine


def test_rights_of_a_key_are_passed_on(queue):
    """Who owns the machine by a key alone makes keys that own it too."""
    made = program.make_key(Visit(queue, Caller("eve", owns_machine=True)))["key"]

    assert keys.find(queue.settings, made).owns_machine


def test_visitor_without_a_name_makes_no_key(tmp_path):
    """On an open Space, the first key would close it to everybody else."""
    open_to_all = Queue(Settings(home=tmp_path, on_space=True), pretend.StillExecutor())
    visit = Visit(open_to_all, VISITOR)

    told = program.panel(visit, {})

    assert callers.mode(open_to_all.settings) is callers.Mode.OPEN
    assert told["words"] == program.ASK_FOR_ONE and not told["may_make"]
    with pytest.raises(FinetuneError):
        program.make_key(visit)
    open_to_all.close()


def test_nobody_gets_no_panel(queue):
    """Without a name there is nothing to show, and no key."""
    with pytest.raises(FinetuneError):
        program.panel(Visit(queue, None), {})
    with pytest.raises(FinetuneError):
        program.make_key(Visit(queue, None))


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
def test_the_page_tells_of_a_secret_only_that_there_is_one(at_home):
    """What follows the form holds every field, and in the place of the webhook’s secret a word."""
    blocks = build(at_home.settings, at_home.queue)
    (panel,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "program"]
    (follow,) = [one for one in blocks.fns.values() if one.outputs == [panel]]
    typed = ["hush-hush" if name == "webhook_secret" else name for name in form.names()]

    script = f"console.log(JSON.stringify(({follow.js})(...{json.dumps(typed)})))"
    told = json.loads(subprocess.run(["node", "-e", script], capture_output=True, check=True).stdout)

    assert told == {name: "given" if name == "webhook_secret" else name for name in form.names()}
