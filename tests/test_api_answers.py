"""What answers look like when something is wrong."""

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from finetune import errors
from finetune.api import answers

ERRORS = [
    (errors.MissingError("It is gone."), 404),
    (errors.DeniedError("Who are you?"), 403),
    (errors.TooLargeError("Too large."), 413),
    (errors.StorageError("Full."), 507),
    (errors.ExecutorError("No worker."), 503),
    (errors.FinetuneError("No.", "Do this."), 400),
    (HTTPException(410, "Too old."), 410),
    (RuntimeError("secret words"), 500),
]


def client_of(error=None):
    """A service whose one route goes wrong."""
    routes = APIRouter(prefix="/v1", route_class=answers.Route)

    @routes.get("/a/{id}")
    def fails(id: str, count: int = 0) -> None:
        if error:
            raise error

    @routes.post("/a/{id}")
    def works(id: str) -> None:
        pass

    answers.close(routes)
    app = FastAPI()
    app.include_router(routes)
    return TestClient(app)


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: getattr(value, "__class__", value).__name__)
def test_error_has_its_words_twice(error, status):
    """As `detail` and as `message`, and never as `error`."""
    answer = client_of(error).get("/v1/a/1")

    told = answer.json()
    assert answer.status_code == status
    assert set(told) == {"detail", "message"}
    assert told["detail"] == told["message"]
    assert "secret words" not in answer.text


def test_busy_service_says_when_to_ask_again():
    """As a whole number of seconds."""
    answer = client_of(errors.BusyError("Full.", retry_after_seconds=30)).get("/v1/a/1")

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")


@pytest.mark.parametrize(
    ("error", "loc"),
    [
        (errors.ConfigError("Wrong.", field="mode"), ["body", "mode"]),
        (errors.ConfigError("Wrong."), ["body"]),
        (errors.DatasetError("No pictures."), ["body", "file_data"]),
    ],
)
def test_what_is_wrong_with_the_request_is_a_list(error, loc):
    """A field or the pictures, in the shape of all 422."""
    answer = client_of(error).get("/v1/a/1")

    assert answer.status_code == 422
    assert answer.json() == {"detail": [{"type": "value_error", "loc": loc, "msg": str(error)}]}


def test_long_message_is_cut():
    """A ZIP may hold names of thousands of letters."""
    answer = client_of(errors.DatasetError("x" * 5000)).get("/v1/a/1")

    assert len(answer.json()["detail"][0]["msg"]) == answers.LONGEST_MESSAGE


def test_wrong_parameter_is_not_repeated():
    """Place and words are told, not what was sent."""
    answer = client_of().get("/v1/a/1", params={"count": "seventeen"})

    assert answer.status_code == 422
    assert "seventeen" not in answer.text
    assert set(answer.json()["detail"][0]) == {"type", "loc", "msg"}


def test_client_that_is_gone_is_no_failure(capsys):
    """Nothing is written into the log as if something were broken."""
    assert client_of(ClientDisconnect()).get("/v1/a/1").status_code == answers.NOBODY
    assert not capsys.readouterr().err


@pytest.mark.parametrize("path", ["/v1/b", "/v1/", "/v1/a/1/b", "/v1/a"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_route_is_a_404_in_json(method, path):
    """Not a page of the interface."""
    answer = client_of().request(method, path)

    assert answer.status_code == 404
    assert set(answer.json()) == {"detail", "message"}


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_wrong_method_is_a_405_in_json(method):
    """It says which are right."""
    answer = client_of().request(method, "/v1/a/1")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert set(answer.json()) == {"detail", "message"}
