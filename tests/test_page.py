"""The page in a real browser: from upload to download with the real worker, and its habits with a pretended one.

`test_zip_becomes_a_lora_on_the_page` needs the demo base in assets/demo-base and takes minutes.
"""

import browsing
import pretend
import pytest
from safetensors.numpy import load_file

from finetune import settings

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    yield from browsing.started(tmp_path_factory, browsing.REAL)


@pytest.mark.slow
def test_zip_becomes_a_lora_on_the_page(service, open_page, tmp_path):
    """The example is loaded, trained on the demo base, and its LoRA downloaded."""
    page = open_page(service.url)
    browsing.load_example(page)
    sync_api.expect(page.locator(".pictures [data-origin=described]")).to_have_count(6, timeout=90_000)
    page.locator("#field-iterations input[type=number]").fill("100")
    browsing.choose(page, "finetune_type", "LoRA adapter")
    browsing.choose(page, "priority", "Speed")

    browsing.train(page)
    browsing.stands(page, "Ready", seconds=420)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download LoRA twemoji.safetensors").click()
    download.value.save_as(tmp_path / "lora.safetensors")

    assert download.value.suggested_filename == "twemoji.safetensors"
    assert load_file(tmp_path / "lora.safetensors")
    assert page.locator(".sample").count() >= 4
    assert "load_lora_weights" in page.locator(".result pre").inner_text()
    for name in ("captions", "settings", "README.md", "twemoji-comfyui.safetensors"):
        assert page.locator(".result .files a", has_text=name).count() == 1
    assert page.locator(".result .checks li").count() == 2


def test_what_is_wrong_is_said_beside_the_fields(pretended, open_page):
    """Train on an empty form starts nothing and marks what is missing."""
    page = open_page(pretended.url)

    page.get_by_role("button", name="Train", exact=True).click()

    sync_api.expect(page.get_by_text("Drop pictures first")).to_be_visible()
    sync_api.expect(page.get_by_text("Is needed.")).to_have_count(2)
    assert "run=" not in page.url


def test_bad_zip_is_explained_and_the_form_keeps_its_words(pretended, open_page, tmp_path):
    """A file that is no ZIP gets a message beside the field; what was typed stays."""
    page = open_page(pretended.url)
    browsing.field(page, "finetune_comment").fill("mine")
    (tmp_path / "bad.zip").write_bytes(b"not a zip")

    page.locator("#pictures-zip input[type=file]").set_input_files(tmp_path / "bad.zip")

    sync_api.expect(page.locator("#pictures-problem .notice")).to_be_visible()
    assert browsing.field(page, "finetune_comment").input_value() == "mine"


def test_upload_shows_captions_that_follow_the_form(pretended, open_page, tmp_path):
    """Captions are shown as they will be trained, and change with the trigger word; a refresh keeps the pictures."""
    page = open_page(pretended.url)
    path = pretend.zip_of_pictures(tmp_path / "things.zip")
    page.locator("#pictures-zip input[type=file]").set_input_files(path)
    first = page.locator(".pictures .caption").first
    sync_api.expect(first).to_have_text("TOK, a thing of kind 0")

    browsing.choose(page, "mode", "Style")
    browsing.field(page, "trigger_word").fill("MUG")
    sync_api.expect(first).to_have_text("a thing of kind 0 in the style of MUG")

    page.reload()
    sync_api.expect(page.locator(".pictures .cell")).to_have_count(4)


def test_run_survives_refresh_second_browser_and_restart(pretended, open_page):
    """While it trains: the same run after a refresh, in a second browser, and after the service was started anew."""
    page = open_page(pretended.url)
    browsing.load_example(page)
    browsing.train(page)
    browsing.stands(page, "Running")
    address = page.evaluate("location.href")
    page.reload()
    browsing.stands(page, "Running")
    second = open_page(address)
    browsing.stands(second, "Running")

    pretended.end()
    sync_api.expect(second.get_by_text("Connection lost")).to_be_visible(timeout=15_000)
    pretended.start()

    for one in (page, second):
        browsing.stands(one, "Ready", seconds=60)
        sync_api.expect(one.get_by_text("Connection lost")).to_be_hidden()
        sync_api.expect(one.locator(".live .readout")).to_contain_text("step 120")
        assert one.locator(".sample").count() == 12
    assert second.locator(".samples p", has_text="a <b>cat</b>").count() == 1


def test_stop_asks_once_and_continue_goes_on(pretended, open_page):
    """Stop wants a confirmation; a stopped run goes on from its last checkpoint."""
    page = open_page(pretended.url)
    browsing.load_example(page)
    browsing.train(page)
    browsing.stands(page, "Running")

    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Yes, stop it").click()
    browsing.stands(page, "Stopped")
    page.get_by_role("button", name="Continue this run").click()

    browsing.stands(page, "Ready", seconds=60)


def test_runs_are_opened_deleted_and_brought_back(pretended, open_page):
    """The list opens a run; a deleted one comes back by Undo."""
    page = open_page(pretended.url)
    browsing.load_example(page)
    browsing.train(page)
    browsing.stands(page, "Ready", seconds=60)
    page.get_by_role("tab", name="Runs", exact=True).click()
    listed = page.locator(".runs .run")
    listed.first.wait_for()
    count = listed.count()

    page.get_by_role("button", name="Delete twemoji").first.click()
    sync_api.expect(listed).to_have_count(count - 1)
    page.get_by_role("button", name="Undo").click()
    sync_api.expect(listed).to_have_count(count)
    listed.first.click()

    browsing.stands(page, "Ready")


def test_link_to_watch_shows_a_run_until_it_is_withdrawn(pretended, open_page):
    """Who has the link sees the run live and can do nothing; once it is withdrawn the page shows nothing any more."""
    page = open_page(pretended.url)
    browsing.load_example(page)
    browsing.train(page)
    page.get_by_role("button", name="Share a link to watch").click()
    address = page.locator(".sharing code").inner_text()

    watcher = open_page(address, awaits="heading", viewport={"width": 390, "height": 844}, color_scheme="dark")
    sync_api.expect(watcher.locator(".badge")).to_have_text("Ready", timeout=60_000)
    assert watcher.get_by_role("heading", level=1).inner_text() == "twemoji"
    sync_api.expect(watcher.locator(".readout")).to_contain_text("step 120")
    watcher.locator("canvas").press("ArrowLeft")
    sync_api.expect(watcher.locator(".readout")).to_contain_text("step 119")
    assert watcher.locator(".sample").count() == 12
    assert watcher.evaluate("[...document.images].every((one) => one.naturalWidth === 64)")
    assert watcher.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not watcher.get_by_role("link").count()

    page.get_by_role("button", name="Withdraw").click()
    sync_api.expect(watcher.get_by_text("cannot be watched any more")).to_be_visible(timeout=10_000)
    assert not watcher.get_by_text("twemoji").is_visible()
    sync_api.expect(page.get_by_role("button", name="Share a link to watch")).to_be_visible()


def test_pictures_are_drawn_with_the_lora_and_compared_with_the_base(pretended, open_page):
    """On a phone: a prompt becomes a picture, one click draws it without the LoRA, and a refresh keeps both."""
    run = pretend.finetune(settings.Settings(home=pretended.home))
    page = open_page(f"{pretended.url}?run={run.id}", viewport={"width": 390, "height": 844})
    card = page.get_by_role("region", name="Try it")
    drawn = card.locator(".drawings img")

    card.get_by_label("Prompt").fill("a <b>plum</b>")
    card.get_by_label("Seed").fill("-4")
    card.get_by_role("button", name="Draw", exact=True).click()
    sync_api.expect(card.get_by_text("It must be a whole number")).to_be_visible()
    card.get_by_label("Seed").fill("7")
    page.keyboard.press("Enter")
    sync_api.expect(drawn).to_have_count(1, timeout=20_000)
    card.get_by_role("button", name="Compare with the base").press("Enter")
    sync_api.expect(page.locator("dialog[open] img")).to_have_count(2, timeout=20_000)
    page.keyboard.press("Escape")
    page.reload()

    sync_api.expect(drawn).to_have_count(2)
    assert card.locator(".prompt").all_inner_texts() == ["a <b>plum</b>"] * 2
    assert card.locator("small").all_inner_texts() == ["seed 7 · without the LoRA", "seed 7 · strength 1"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download: a <b>plum</b>").first.click()
    assert download.value.suggested_filename.endswith(".png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_needs_no_sideways_scrolling(pretended, open_page, scheme):
    """At 390 pixels every tab fits the width."""
    page = open_page(pretended.url, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    browsing.load_example(page)

    for tab in ("New finetune", "Run", "Runs"):
        page.get_by_role("tab", name=tab, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
