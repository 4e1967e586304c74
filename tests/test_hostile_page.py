"""Markup in everything that a person or a ZIP can say, on every tab and in every state of a real browser's page."""

import json
import zipfile

import browsing
import gradio
import pytest
from pictures import encoded, picture
from pretend import StillExecutor
from starlette.requests import Request

from finetune import runs
from finetune.errors import FinetuneError
from finetune.queue import Queue
from finetune.settings import ASSETS, Settings
from finetune.ui import handlers

sync_api = pytest.importorskip("playwright.sync_api")

IMAGE = "<img src=x onerror=hacked=1>"
MARKUP = (IMAGE, "<svg onload=hacked=1>", "[x](javascript:hacked=1)", "{{hacked=1}}", "{{{hacked=1}}}", "${hacked=1}")
ALL = " ".join((*MARKUP, "<script>hacked=1</script>", '"><iframe srcdoc="<script>parent.hacked=1</script>">', "`x`"))
MADE = """() => [...document.querySelectorAll("*")].filter((one) => [...one.attributes].some(({ name, value }) =>
    name.startsWith("on") || name === "srcdoc" || (["href", "src"].includes(name) && /^(x|javascript:.*)$/.test(value))
)).map((one) => one.outerHTML.slice(0, 200))"""
"""Elements that only markup of the above can have made."""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    yield from browsing.started(tmp_path_factory, browsing.QUICK)


@pytest.fixture
def page(service, open_page):
    return open_page(service.url)


def assert_harmless(page, shown=""):
    """Nothing of the markup ran or became an element; what was to be shown is there as text."""
    if shown:
        page.get_by_text(shown).first.wait_for(state="attached")
    page.wait_for_timeout(200)  # a picture that does not load would say so by now
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.evaluate(MADE) == []


def hostile_zip(path):
    """A ZIP with markup in names, captions, a table and what is left out."""
    names = [IMAGE.replace("/", ""), "<svg onload=hacked=1>", "[x](javascript:hacked=1)", "{{hacked=1}}"]
    with zipfile.ZipFile(path, "w") as zip:
        for number, name in enumerate(names):
            zip.writestr(f"{name}.png", encoded(picture(number)))
        zip.writestr(f"{names[0]}.txt", ALL)
        zip.writestr(f"left out {IMAGE}.exe", b"")
        zip.writestr("metadata.jsonl", json.dumps({"file_name": f"gone {IMAGE}", "text": ALL}))
    return path


def upload(page, path):
    page.locator("#pictures-zip input[type=file]").set_input_files(path)


def start(page, tmp_path, comment=IMAGE):
    """Train with markup in every field that takes it; returns the run's id."""
    upload(page, hostile_zip(tmp_path / "hostile.zip"))
    sync_api.expect(page.locator(".pictures .picture")).to_have_count(4)
    browsing.field(page, "finetune_comment").fill(comment)
    browsing.choose(page, "mode", "Style")
    browsing.field(page, "trigger_word").fill(IMAGE)
    page.get_by_text("More settings").click()
    browsing.field(page, "sample_prompts").fill("\n".join(MARKUP))
    browsing.field(page, "webhook_secret").fill(ALL)
    browsing.train(page)
    return page.url.partition("run=")[2]


# What an image does when it cannot be loaded comes later, and must not come when the next markup is there.
PUT = """markup => new Promise((done) => {
    document.body.insertAdjacentHTML("beforeend", markup);
    const put = document.body.lastElementChild;
    if (put.tagName === "IMG") put.addEventListener("error", done); else done();
})"""


def test_markup_that_came_through_would_be_noticed(page):
    """What the other tests look for is found when it is there."""
    for markup in (IMAGE, MARKUP[1], "<a href='javascript:hacked=1'>x</a>", "<iframe srcdoc='x'>"):
        page.evaluate(PUT, markup)

        with pytest.raises(AssertionError):
            assert_harmless(page)

        page.evaluate("delete window.hacked; document.body.lastElementChild.remove()")
        assert_harmless(page)


def test_a_notice_shows_markup_as_it_is(tmp_path):
    """Gradio draws notices as markup, and would load a picture that an error names; so its words are escaped."""

    def fail(visit):
        raise FinetuneError(f"There is no “{IMAGE}”.")

    queue = Queue(Settings(home=tmp_path), StillExecutor())
    request = Request({"type": "http", "headers": [], "query_string": b"", "path": "/"})

    with pytest.raises(gradio.Error) as caught:
        handlers.event(fail, queue)(request)

    assert caught.value.message == "There is no “&lt;img src=x onerror=hacked=1&gt;”."


def test_a_bad_upload_with_markup_in_its_name_is_harmless(page, tmp_path):
    """The name of a file that is no ZIP, and what is said of it, are text."""
    path = tmp_path / f"{IMAGE}.zip"
    path.write_bytes(b"no zip")

    upload(page, path)

    page.locator("#pictures-problem .notice").wait_for()
    assert_harmless(page)


def test_a_zip_full_of_markup_is_harmless(page, tmp_path):
    """Names, captions, reasons and the name that the form takes from the file are text."""
    path = hostile_zip(tmp_path / f"{IMAGE} {MARKUP[3]}.zip")

    upload(page, path)

    sync_api.expect(page.locator(".pictures .picture")).to_have_count(4)
    page.locator(".pictures .report summary").click()
    assert_harmless(page, f"left out {IMAGE}.exe")


def test_what_is_wrong_with_a_field_is_text(page):
    """Messages that repeat what was typed show it as it was typed."""
    for field in ("finetune_comment", "trigger_word", "learning_rate"):
        browsing.field(page, field).fill(IMAGE)
    base = page.locator("#field-base_model input")
    base.fill(IMAGE)
    base.press("Enter")
    page.get_by_text("More settings").click()
    browsing.field(page, "webhook_url").fill(f"javascript:{IMAGE}")

    page.get_by_role("button", name="Train", exact=True).click()

    assert_harmless(page, f"There is no base model “{IMAGE}”")


def test_a_run_of_markup_is_harmless_from_start_to_end(service, page, tmp_path):
    """Title, facts, log, samples, warnings, result, enlarged picture and a failure are text."""
    id = start(page, tmp_path)
    browsing.stands(page, "Ready", seconds=60)
    assert_harmless(page, f"trigger word {IMAGE}")

    page.locator(".sample img").first.click()
    page.locator("dialog[open]").wait_for()
    assert_harmless(page)
    page.get_by_role("button", name="Close").click()

    run = runs.find(service.home / "runs", id)
    for kind in ("warning", "log", "plan", "interrupted"):
        run.tell(kind, message=f"{kind} {ALL}", hint=ALL, reason=ALL)
    run.tell("caption", file="0001.png", text=ALL)
    run.tell("stage", name="x", title=f"A stage of {ALL}", done=0, of=1, unit=ALL)
    run.tell("sample", step=1, index=0, prompt=ALL, file=f"{IMAGE}.png")
    run.tell("comparison", prompt=ALL, full=f"{IMAGE}.png", lora=f"{IMAGE}.png")
    files = [{"name": "pretend.safetensors", "bytes": 10, "title": ALL}]
    run.tell("ready", files=files, checks=[ALL], summary={"seconds": 1.0})
    page.reload()
    browsing.stands(page, "Ready")
    assert_harmless(page, "warning <img")

    run.tell("failed", message=ALL, hint=ALL)
    page.reload()
    browsing.stands(page, "Failed")
    assert_harmless(page)


def test_a_list_of_runs_with_markup_is_harmless(page, tmp_path):
    """Names in the list, in what is said of deleting, and among the deleted are text."""
    name = MARKUP[1] + IMAGE
    start(page, tmp_path, name)
    browsing.stands(page, "Ready", seconds=60)

    page.get_by_role("tab", name="Runs", exact=True).click()
    assert_harmless(page, name)
    page.get_by_role("button", name=f"Delete {name}").click()

    page.get_by_text(f"Deleted “{name}”").wait_for()
    page.locator(".deleted summary").click()
    assert_harmless(page, name)


def test_markup_in_the_address_is_harmless(service, page):
    """An address that somebody was sent shows nothing and runs nothing."""
    for parameter in ("run", "draft", "watch"):
        page.goto(f"{service.url}?{parameter}=" + "%3Cimg%20src%3Dx%20onerror%3Dhacked%3D1%3E")
        page.get_by_role("tab", name="Runs", exact=True).wait_for()

        assert_harmless(page)


def test_scripts_of_the_page_make_no_link_to_a_script(page):
    """An address that would run as a script is not set, whoever named it."""
    script = (ASSETS / "page" / "dom.js").read_text(encoding="utf-8").replace("element", "document.body")

    made = page.evaluate(
        f"""() => {{ {script}
        return ["javascript:hacked=1", "JaVaScRiPt:1", " javascript:1", "data:text/html,x", "vbscript:x",
                "https://example.com/", "v1/files/x"].map((href) => make("a", {{ href }}).getAttribute("href")) }}"""
    )

    assert made == [None] * 5 + ["https://example.com/", "v1/files/x"]
