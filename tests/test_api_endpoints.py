"""The eleven routes that order an image: what they take, what they refuse, what they answer."""

import base64
import json
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pretend
import pytest

from finetune import images, keys, links
from finetune.api import endpoints
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.studio import Studio

PICTURE = base64.b64encode(b"a picture" * 1000).decode()
PLAIN = [name for name in endpoints.ENDPOINTS if not any(kind in name for kind in ("fill", "canny", "depth"))]
KLEIN = [name for name in endpoints.ENDPOINTS if "klein" in name]
PRO, ULTRA, ANY_KLEIN = "flux-pro-finetuned", "flux-pro-1.1-ultra-finetuned", "flux-2-klein-4b-finetuned"
NEEDED = {
    "flux-pro-1.0-fill-finetuned": {"image": PICTURE},
    "flux-pro-1.0-canny-finetuned": {"control_image": PICTURE},
    "flux-pro-1.0-depth-finetuned": {"control_image": PICTURE},
}


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, disk_reserve_gib=0, images_waiting_each=3)


@pytest.fixture
def queue(settings):
    made = Queue(settings, pretend.StillExecutor())
    yield made
    made.close()


@pytest.fixture
def run(settings):
    return pretend.finetune(settings)


@pytest.fixture
def post(client, run):
    """Order an image from the finetune."""

    def send(endpoint=PRO, headers=None, **fields):
        values = {"finetune_id": run.id, "prompt": "a pear in the style of TOK", **NEEDED.get(endpoint, {}), **fields}
        return client.post(f"/v1/{endpoint}", content=json.dumps(values), headers=headers)

    return send


def _ordered(settings, answer):
    assert answer.status_code == 200, answer.text
    return images.find(settings, answer.json()["id"]).order()


def _refused(answer):
    """The fields that a 422 names."""
    assert answer.status_code == 422, answer.text
    assert all(set(one) == {"type", "loc", "msg"} for one in answer.json()["detail"])
    return [one["loc"] for one in answer.json()["detail"]]


@pytest.mark.parametrize("endpoint", PLAIN)
def test_every_endpoint_of_words_takes_an_order(post, settings, endpoint):
    """The answer says where to ask for the picture, and how large it will be; nothing is charged."""
    answer = post(endpoint)

    told = answer.json()
    order = _ordered(settings, answer)
    assert told == {
        "id": told["id"],
        "polling_url": f"http://testserver/v1/get_result?id={told['id']}",
        "cost": None,
        "input_mp": None,
        "output_mp": round(order.width * order.height / 1e6, 4),
    }
    assert (order.endpoint, order.prompt) == (endpoint, "a pear in the style of TOK")


def test_order_with_a_webhook_is_answered_with_it(post, settings):
    """Two keys more, and the secret in none."""
    answer = post(webhook_url="https://example.org/hook", webhook_secret="hush")

    assert (answer.json()["status"], answer.json()["webhook_url"]) == ("Pending", "https://example.org/hook")
    assert "hush" not in answer.text
    assert images.message(settings, _done(settings, answer)).secret == "hush"


def _done(settings, answer):
    image = images.find(settings, answer.json()["id"])
    (image.folder / "sample.png").write_bytes(b"a picture")
    image.tell(status="Ready", file="sample.png", start_time=1.0, end_time=2.0)
    return image


@pytest.mark.parametrize(("endpoint", "strength"), [(PRO, 1.1), (ULTRA, 1.2), *((name, 1.0) for name in KLEIN)])
def test_strength_has_the_endpoints_default(post, settings, endpoint, strength):
    """What the factor is when nobody says; 0 and 2 are taken, beyond them nothing."""
    assert _ordered(settings, post(endpoint)).strength == strength
    assert _ordered(settings, post(endpoint, finetune_strength=0)).strength == 0
    assert _ordered(settings, post(endpoint, finetune_strength=2)).strength == 2
    for wrong in (-0.01, 2.01, "strong", None):
        assert _refused(post(endpoint, finetune_strength=wrong)) == [["body", "finetune_strength"]]


def test_what_is_not_asked_for_is_as_the_base_has_it(post, settings):
    """Neither the schema's size nor its sampler is forced on a base that is drawn otherwise."""
    order = _ordered(settings, post(PRO))

    assert (order.width, order.height, order.steps, order.guidance) == (64, 48, None, None)


def test_what_is_asked_for_is_drawn(post, settings):
    """Size, steps and guidance are the ones of the request, also where they are the schema's defaults."""
    order = _ordered(settings, post(PRO, width=1024, height=768, steps=40, guidance=2.5, seed=7, output_format="png"))

    assert (order.width, order.height, order.steps, order.guidance) == (1024, 768, 40, 2.5)
    assert (order.seed, order.output_format) == (7, "png")


@pytest.mark.parametrize("value", [0, None])
def test_klein_sizes_may_be_automatic(post, settings, value):
    """0 and null leave the size to the base model."""
    order = _ordered(settings, post(ANY_KLEIN, width=value, height=value))

    assert (order.width, order.height) == (64, 64)


def test_klein_sizes_have_limits(post, settings):
    """At least 64, whole patches, and no more than can be drawn."""
    order = _ordered(settings, post(ANY_KLEIN, width=100, height=2048))

    assert (order.width, order.height) == (96, 2048)
    assert _refused(post(ANY_KLEIN, width=63)) == [["body", "width"]]
    assert _refused(post(ANY_KLEIN, height=2049)) == [["body", "height"]]
    assert _refused(post(ANY_KLEIN, width=-64)) == [["body", "width"]]


@pytest.mark.parametrize(
    ("ratio", "size"), [("16:9", (80, 48)), ("1:1", (64, 64)), ("21:9", (96, 32)), ("9:21", (32, 96))]
)
def test_ultra_draws_the_aspect_at_the_bases_area(post, settings, ratio, size):
    """As large as the base draws well, in the shape that was asked for."""
    order = _ordered(settings, post(ULTRA, aspect_ratio=ratio))

    assert (order.width, order.height) == size


@pytest.mark.parametrize(
    "ratio", ["22:9", "9:22", "16", "16:0", "0:0", "16:9:4", "-16:-9", "1e3:1", "wide", "", "１６:９"]
)
def test_ultra_refuses_what_is_no_aspect(post, ratio):
    """Between 21:9 and 9:21, in whole numbers."""
    assert _refused(post(ULTRA, aspect_ratio=ratio)) == [["body", "aspect_ratio"]]


@pytest.mark.parametrize("seed", [None, -1])
@pytest.mark.parametrize("endpoint", [PRO, ULTRA, ANY_KLEIN])
def test_seed_may_be_left_to_chance(post, settings, endpoint, seed):
    """-1 and null are random, on every endpoint."""
    assert len({_ordered(settings, post(endpoint, seed=seed)).seed for _ in range(2)}) == 2


@pytest.mark.parametrize("seed", [10**30, -7, 2**63])
def test_any_whole_number_is_a_seed(post, settings, seed):
    """The same number gives the same seed, however large."""
    first, second = (_ordered(settings, post(seed=seed)).seed for _ in range(2))

    assert first == second and 0 <= first < 2**63


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        (PRO, "image_prompt"),
        (ULTRA, "image_prompt"),
        *((ANY_KLEIN, f"input_image{end}") for end in ("", "_2", "_3", "_4")),
        ("flux-pro-1.0-fill-finetuned", "image"),
        ("flux-pro-1.0-canny-finetuned", "control_image"),
        ("flux-pro-1.0-depth-finetuned", "control_image"),
    ],
)
def test_picture_is_refused_by_its_fields_name(post, settings, endpoint, field):
    """No base here can use one, and it is never ignored silently; nothing of it is repeated."""
    answer = post(endpoint, **{field: PICTURE})

    assert ["body", field] in _refused(answer)
    assert PICTURE[:20] not in answer.text and len(answer.text) < 1000
    assert images.waiting(settings) == []


def test_all_that_is_useless_is_named_at_once(post):
    """Who sends a picture, a mask and a wish to rewrite the prompt hears of all three."""
    answer = post("flux-pro-1.0-fill-finetuned", mask=PICTURE, prompt_upsampling=True)

    assert _refused(answer) == [["body", "image"], ["body", "mask"], ["body", "prompt_upsampling"]]


def test_picture_that_is_needed_is_refused_though_it_is_empty(post, settings):
    """An endpoint that needs a picture never draws without one."""
    answer = post("flux-pro-1.0-fill-finetuned", image="")

    assert _refused(answer) == [["body", "image"]]
    assert images.waiting(settings) == []


@pytest.mark.parametrize("empty", ["", None])
def test_picture_that_was_left_empty_was_not_given(post, settings, empty):
    """Programs that send every field are served."""
    assert _ordered(settings, post(ULTRA, image_prompt=empty, prompt_upsampling=False, image_prompt_strength=0.1))


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (PRO, {"width": 1025}),
        (PRO, {"width": 224}),
        (PRO, {"height": 1472}),
        (PRO, {"steps": 0}),
        (PRO, {"guidance": 5.1}),
        (PRO, {"output_format": "webp"}),
        (PRO, {"safety_tolerance": 7}),
        (ANY_KLEIN, {"safety_tolerance": 6}),
        (ANY_KLEIN, {"prompt": None}),
        (PRO, {"prompt": "x" * 10_001}),
        (PRO, {"prompt": "half a letter \ud800"}),
        (PRO, {"webhook_url": "ftp://example.org"}),
        (PRO, {"seed": "many"}),
        (PRO, {"finetune_id": 7}),
        ("flux-pro-1.0-canny-finetuned", {"canny_low_threshold": 501}),
        ("flux-pro-1.0-depth-finetuned", {"steps": 14}),
    ],
    ids=str,
)
def test_wrong_value_is_refused_by_its_fields_name(post, endpoint, fields):
    """Limits are those of the published schema."""
    assert _refused(post(endpoint, **fields)) == [["body", next(iter(fields))]]


def test_webp_and_null_formats_are_taken_where_they_are_known(post, settings):
    """klein knows WebP, ultra takes null for JPEG."""
    assert _ordered(settings, post(ANY_KLEIN, output_format="webp")).output_format == "webp"
    assert _ordered(settings, post(ULTRA, output_format=None)).output_format == "jpeg"


def test_unknown_keys_are_ignored(post, settings):
    """Programs may know more fields than this service."""
    assert _ordered(settings, post(raw=True, loras=[{"a": 1}], Prompt="no")).prompt == "a pear in the style of TOK"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"text"', b"null"])
def test_body_that_is_no_object_is_refused(client, body):
    """422, as for every other mistake in a request."""
    answer = client.post(f"/v1/{PRO}", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 422 and isinstance(answer.json()["detail"], list)


@pytest.mark.parametrize("id", ["", "my-finetune", "00000000-0000-4000-8000-000000000000", "../x"])
def test_unknown_finetune_is_said(post, id):
    """In the words that existing programs know."""
    answer = post(finetune_id=id)

    assert answer.status_code == 400
    assert answer.json()["detail"] == "Finetune not found or not ready"


def test_finetune_that_is_not_ready_is_said(post, queue):
    """A draft cannot be drawn with."""
    answer = post(finetune_id=queue.create().id)

    assert (answer.status_code, answer.json()["detail"]) == (400, "Finetune not found or not ready")


def test_somebody_elses_finetune_is_not_there(client, settings):
    """Whose key it is decides; without a key nothing is ordered at all."""
    key = keys.new(settings, "ann")
    theirs, mine = pretend.finetune(settings, "bob"), pretend.finetune(settings, "ann")

    def send(run, **headers):
        return client.post(f"/v1/{PRO}", json={"finetune_id": run.id}, headers=headers)

    assert send(mine, **{"x-key": key}).status_code == 200
    assert send(theirs, **{"x-key": key}).status_code == 400
    assert send(mine).status_code == 403


def test_too_many_orders_are_refused_for_a_while(post):
    """429 with the seconds to wait."""
    for _ in range(3):
        assert post().status_code == 200

    answer = post()

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_order_becomes_a_picture_by_a_link(post, client, settings):
    """From the order over get_result to the picture, which needs no key and is shown as it is."""
    ordered = post(seed=42, output_format="png", width=256, height=320)
    before = client.get(ordered.json()["polling_url"]).json()

    Studio(replace(settings, idle_minutes=0), pretend.PretendPainter()).work()

    told = client.get(ordered.json()["polling_url"]).json()
    assert (before["status"], before["result"]) == ("Pending", None)
    assert (told["status"], told["progress"], told["result"]["seed"]) == ("Ready", None, 42)
    assert set(told["result"]) == {"sample", "prompt", "seed", "start_time", "end_time", "duration"}
    picture = client.get(told["result"]["sample"])
    assert picture.headers["content-type"] == "image/png" and picture.content[:4] == b"\x89PNG"
    assert picture.headers["content-disposition"].startswith("inline")
    assert picture.headers["x-content-type-options"] == "nosniff"


@pytest.fixture
def sample(post, settings):
    """The path of a link to a picture."""
    parts = urlsplit(images.link(settings, _done(settings, post()), "http://testserver"))
    return f"{parts.path}?{parts.query}"


def test_link_is_for_one_picture_and_one_hour(client, sample, settings, monkeypatch):
    """Nothing in it can be changed, and after an hour it says what to do."""
    assert client.get(sample).content == b"a picture"
    for changed in (
        sample.replace("sample.png", "order.json"),
        sample.replace("sample.png", "webhook.secret"),
        sample.replace("exp=", "exp=9"),
        sample[:-1] + ("0" if sample[-1] != "0" else "1"),
    ):
        assert client.get(changed).status_code == 403

    now = time.time()
    monkeypatch.setattr(links.time, "time", lambda: now + 2 * 3600)

    assert client.get(sample).status_code == 410
    assert "expired" in client.get(sample).json()["detail"]


@pytest.mark.parametrize("name", ["order.json", "status.json", "webhook.secret", "../.studio/worker.json"])
def test_even_a_signed_link_gives_the_picture_alone(client, post, settings, name):
    """What else lies in an image's folder is nobody's business."""
    image = _done(settings, post(webhook_url="https://example.org"))

    answer = client.get(links.sign(settings, f"images/{image.id}/{name}", 60, 60).replace("../", "..%2F"))

    assert answer.status_code in (403, 404)


def test_picture_that_was_deleted_is_gone(client, sample, settings):
    """A link outlives its picture with a 404."""
    images.tidy(settings, time.time() + 2 * 86400)

    assert client.get(sample).status_code == 404
