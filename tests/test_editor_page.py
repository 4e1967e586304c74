"""The caption editor in a real browser: everything by keys, saved at once, and nothing typed is ever lost."""

import re
import zipfile

import browsing
import pytest
from pictures import picture, zip_of

from finetune import dataset, runs
from finetune.dataset import intake

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CAPTIONS = ("a red cup", "a blue cup", "two cups on a table", "a spoon")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    yield from browsing.started(tmp_path_factory, browsing.QUICK)


@pytest.fixture
def opened(service, open_page, tmp_path):
    """Open a draft with such captions: one that is there already, as nobody may upload so many in a minute."""

    def opened(captions, **options):
        run = runs.create(service.home / "runs")
        files = {f"{number:03}.png": picture(number, 49, 33) for number in range(len(captions))}
        files |= {f"{number:03}.txt": text for number, text in enumerate(captions) if text}
        dataset.unpack(zip_of(tmp_path / "in.zip", files), run, take=intake.take)
        page = open_page(f"{service.url}?draft={run.id}", **options)
        expect(page.locator(".cell")).to_have_count(len(captions))
        return page

    return opened


@pytest.fixture
def page(opened):
    """The page with four pictures that have captions."""
    return opened(CAPTIONS)


def captions(page):
    return page.locator(".cell .caption")


def go_to(page, number):
    """Put the focus on a card, as Tab would."""
    page.locator(".cell").nth(number).focus()


def tool(page, name):
    return page.locator(".tools").get_by_role("button", name=name, exact=True)


def test_captions_are_edited_one_after_the_other_and_survive_a_refresh(page):
    """Enter opens a caption, Tab saves it and opens the next one; after a refresh all is there."""
    go_to(page, 0)
    page.keyboard.press("Enter")
    page.keyboard.type(" of tea")
    page.keyboard.press("Tab")
    page.keyboard.type(" of coffee")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Escape")

    page.reload()

    words = ("a red cup of tea", "a blue cup of coffee", *CAPTIONS[2:])
    expect(captions(page)).to_have_text([f"TOK, {text}" for text in words])
    expect(page.locator(".cell[data-origin=edited]")).to_have_count(2)


def test_escape_leaves_a_caption_as_it_was(page):
    """What was typed is forgotten, and the focus is on the card again."""
    page.locator(".cell .caption").nth(1).click()
    page.keyboard.type(" that nobody wants")

    page.keyboard.press("Escape")

    expect(captions(page).nth(1)).to_have_text("TOK, a blue cup")
    expect(page.locator(".cell").nth(1)).to_be_focused()


def test_pictures_are_selected_and_excluded_by_keys(page):
    """Arrows move, Space selects, Shift extends, Delete excludes, and Ctrl Z takes it back."""
    go_to(page, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".cell[aria-selected=true]")).to_have_count(2)

    page.keyboard.press("Delete")
    expect(page.locator(".cell.excluded")).to_have_count(2)
    page.keyboard.press("Control+z")

    expect(page.locator(".cell.excluded")).to_have_count(0)
    page.keyboard.press("Control+Shift+z")
    expect(page.locator(".cell.excluded")).to_have_count(2)


def test_keys_of_the_editor_are_letters_in_a_text_field(page):
    """In a caption and in the search, Ctrl Z, r, ? and Delete are what they always are."""
    search = page.get_by_label("Search captions")
    search.click()
    page.keyboard.type("r?t")
    page.keyboard.press("Delete")
    search.fill("")
    go_to(page, 0)
    page.keyboard.press("Enter")
    page.keyboard.type("r?")
    page.keyboard.press("Backspace")

    expect(page.locator(".cell textarea")).to_have_value("a red cupr")
    expect(page.locator(".cell.excluded")).to_have_count(0)
    expect(page.locator("dialog[open]")).to_have_count(0)


def test_words_are_counted_while_they_are_typed_and_replaced_everywhere(page):
    """The count says what Replace will do, in the selected pictures or in all; Undo takes it back at once."""
    tool(page, "Replace").click()
    page.get_by_label("Find").fill("cup")
    expect(page.locator(".tools form:visible")).to_contain_text("3 matches in 3 captions, of 4 shown")
    page.get_by_label("Whole words").check()
    expect(page.locator(".tools form:visible")).to_contain_text("2 matches in 2 captions, of 4 shown")
    page.get_by_label("Replace with").fill("mug")

    page.keyboard.press("Enter")

    expect(captions(page).nth(0)).to_have_text("TOK, a red mug")
    expect(captions(page).nth(2)).to_have_text("TOK, two cups on a table")
    tool(page, "Undo").click()
    expect(captions(page).nth(0)).to_have_text("TOK, a red cup")


def test_words_are_put_before_the_captions_that_are_found(page):
    """With a search, what is changed is what is shown."""
    page.get_by_label("Search captions").fill("cup")
    expect(page.locator(".cell")).to_have_count(3)
    tool(page, "Add words").click()
    page.get_by_label("Put before").fill("a photo of")

    page.get_by_role("button", name="Add to 3 captions").click()

    expect(captions(page).first).to_have_text("TOK, a photo of a red cup")
    page.get_by_label("Search captions").fill("spoon")
    expect(captions(page)).to_have_text(["TOK, a spoon"])


def test_a_filter_shows_what_is_asked_for_with_its_count(page):
    """Each filter says how many pictures it shows."""
    go_to(page, 3)
    page.keyboard.press("Delete")
    filter = page.get_by_label("Which pictures are shown")
    expect(filter).to_contain_text("Excluded (1)")

    filter.select_option("excluded")

    expect(captions(page)).to_have_text(["TOK, a spoon"])


def test_two_tabs_show_the_same(page, open_page):
    """What is changed in one is shown in the other, without a refresh."""
    other = open_page(page.url)
    expect(captions(other)).to_have_count(4)
    go_to(page, 0)

    page.keyboard.press("Enter")
    page.keyboard.type(" with a <b>handle</b>")
    page.keyboard.press("Tab")

    expect(captions(other).first).to_have_text("TOK, a red cup with a <b>handle</b>", timeout=15_000)


def test_what_is_typed_outlives_a_lost_connection(service, page):
    """A caption that cannot be saved says so and is kept, over a refresh too; it is saved when the service is back."""
    service.end()
    go_to(page, 0)
    page.keyboard.press("Enter")
    page.keyboard.type(" of tea")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(page.locator(".cell .failed")).to_contain_text("Not saved", timeout=15_000)
    expect(page.locator(".pictures > .notice")).to_contain_text("is kept")

    service.start()
    page.reload()

    expect(captions(page).first).to_have_text("TOK, a red cup of tea", timeout=15_000)
    expect(page.locator(".cell[data-origin=edited]")).to_have_count(1)
    expect(page.locator(".cell .failed")).to_have_count(0)


def test_a_picture_is_shown_as_it_is_trained(page):
    """For each resolution: the size, what is cut off, and the part that is trained, drawn over the picture."""
    go_to(page, 0)
    page.keyboard.press("t")
    dialog = page.get_by_role("dialog", name="As trained")
    expect(dialog).to_contain_text("TOK, a red cup")
    expect(dialog.locator("mark")).to_have_text("TOK")
    crops = dialog.get_by_role("group", name="Resolutions").get_by_role("button")

    size, share = re.search(r"(\d+ × \d+)(.*cut off)", crops.first.inner_text().replace("\n", " ")).groups()
    box, image = dialog.locator(".crop").bounding_box(), dialog.locator("img").bounding_box()

    width, height = map(int, size.split(" × "))
    assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.02)
    cut_off = 1 - box["width"] * box["height"] / (image["width"] * image["height"])
    said = 0.0 if "nothing" in share else int(re.search(r"\d+", share).group()) / 100
    assert cut_off == pytest.approx(said, abs=0.02)
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 4")


def test_captions_come_in_while_the_page_is_open(opened):
    """Pictures without a caption are described one after the other, with a line that says how far it is."""
    page = opened([None] * 8)
    browsing.choose(page, "mode", "Style")

    expect(page.locator(".pictures .quiet").first).to_contain_text(re.compile(r"\d of 8 described"), timeout=15_000)
    expect(page.locator(".cell[data-origin=described]")).to_have_count(8, timeout=30_000)
    expect(captions(page).first).to_have_text("a style thing in the style of TOK")
    expect(page.locator("progress:visible")).to_have_count(0)


def test_captions_are_downloaded_changed_and_brought_back(page, tmp_path):
    """The ZIP that is downloaded has a .txt for each picture, and is taken back with other words."""
    tool(page, "Files").click()
    with page.expect_download() as download:
        tool(page, "Download").click()
    download.value.save_as(tmp_path / "captions.zip")
    with zipfile.ZipFile(tmp_path / "captions.zip") as zip:
        names = [name for name in zip.namelist() if name.endswith(".txt")]
        texts = {name: zip.read(name).decode().replace("cup", "bowl") for name in names}
    changed = zip_of(tmp_path / "changed.zip", texts)

    page.get_by_label("Captions as a ZIP").set_input_files(changed)

    expect(captions(page).first).to_contain_text("a red bowl")


def test_only_cards_near_the_view_are_built(opened):
    """Of many pictures few cards exist; End and Home get to the others."""
    page = opened([f"thing {number}" for number in range(100)])
    assert page.locator(".picture").count() < 40

    go_to(page, 0)
    page.keyboard.press("End")

    expect(captions(page).last).to_be_visible()
    expect(page.locator(".cell").last).to_be_focused()
    assert page.locator(".picture").count() < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_captions_are_edited_on_a_phone(opened, scheme):
    """At 390 pixels a tap opens a caption, a tap elsewhere saves it, and nothing is wider than the screen."""
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    page = opened(["a cup", "w" * 200], **phone)
    captions(page).first.tap()
    page.keyboard.type(" of tea")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    page.locator(".pictures .counts").tap()

    expect(captions(page).first).to_have_text("TOK, a cup of tea")
    page.get_by_role("button", name="As trained: 000.png").tap()
    expect(page.get_by_role("dialog", name="As trained")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_trigger_words_of_any_letters_are_marked(page):
    """A trigger word is marked as it is, also when its letters mean something to patterns."""
    browsing.field(page, "trigger_word").fill("C++(x)")

    expect(page.locator(".cell mark").first).to_have_text("C++(x)")


def test_a_refresh_keeps_what_pictures_were_described_for(opened):
    """The mode is in the form again, so that the captions shown are those that would be trained."""
    page = opened([None])
    browsing.choose(page, "mode", "Product")
    expect(captions(page)).to_have_text(["TOK, a product thing"], timeout=30_000)

    page.reload()

    expect(page.locator("#field-mode input")).to_have_value("Product")
    expect(captions(page)).to_have_text(["TOK, a product thing"])
