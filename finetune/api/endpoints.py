"""The routes that order an image from a finetune: eleven names for one thing, with the fields that each name has.

The published API served a fixed base model under each name. Here an endpoint draws with the base that the finetune was
trained on, at the size and with the sampler settings that were asked for; what is not asked for is as the base has it,
not as the schema's default says. What no base here can use, such as a picture to change, is refused by its field's
name.
"""

import re
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from finetune import images, owners
from finetune.api import bodies, callers, openapi
from finetune.errors import MissingError
from finetune.inputs import WebhookUrl
from finetune.owners import Caller
from finetune.queue import Queue
from finetune.runs import Run, State

RANDOM = -1
PICTURES = ("image", "mask", "control_image", "image_prompt", *(f"input_image{end}" for end in ("", "_2", "_3", "_4")))
WIDEST = Fraction(21, 9)
NOT_READY = "Finetune not found or not ready"


class OutputFormat(StrEnum):
    """How a picture is stored."""

    JPEG = "jpeg"
    PNG = "png"


class KleinOutputFormat(StrEnum):
    """How a picture is stored, where WebP is known too."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


def _strength(default: float) -> Any:
    return Field(
        default,
        ge=0,
        le=2,
        description="The factor on the LoRA: 0 draws what the base model does, 1 what was trained, up to 2.",
    )


def _steps(default: int, least: int) -> Any:
    return Field(
        default,
        ge=least,
        le=50,
        description="Steps of the sampler. Without it, as many as the finetune’s base model is meant to be drawn with.",
    )


def _guidance(default: float, least: float, most: float) -> Any:
    return Field(
        default,
        ge=least,
        le=most,
        description="How strictly the prompt is followed. Without it, as the finetune’s base model has it.",
    )


def _side(default: int) -> Any:
    return Field(
        default,
        ge=256,
        le=1440,
        multiple_of=32,
        description="In pixels. Without it, as suits the finetune’s base model.",
    )


def _picture(**about: Any) -> Any:
    return Field(description="Base64-encoded picture. No base model here can use it: it is refused.", **about)


Seed = Annotated[int, BeforeValidator(lambda value: RANDOM if value is None else value)]
Side = Annotated[Annotated[int, Field(ge=64)] | None, BeforeValidator(lambda value: None if value == 0 else value)]
ABOUT_SEED = "Any whole number; the same one draws the same picture. -1, null or nothing: one is drawn by chance."
ABOUT_PROMPT = "What the picture shows. Write the trigger word in it."


class _Inputs(BaseModel):
    """What all endpoints take. Keys that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    aspect: ClassVar[Fraction] = Fraction(1)
    """Width by height, where one of them is not given."""

    finetune_id: str = Field(description="The finetune to draw with.", examples=["my-finetune"])
    finetune_strength: float = _strength(1.1)
    seed: int | None = Field(None, description=ABOUT_SEED, examples=[42])
    output_format: OutputFormat | None = Field(OutputFormat.JPEG, description="How the picture is stored.")
    safety_tolerance: int = Field(
        2, ge=0, le=6, description="Taken for the sake of existing programs: nothing is moderated here."
    )
    webhook_url: WebhookUrl | None = Field(None, description="An address that is told once, when the image is over.")
    webhook_secret: str | None = Field(None, description="Signs what the webhook is told.")

    @field_validator("*", mode="before")
    @classmethod
    def _check_letters(cls, value: Any) -> Any:
        try:
            value.encode() if isinstance(value, str) else None
        except UnicodeEncodeError:  # JSON can name half of a letter
            raise ValueError("must be whole letters") from None
        return value

    def given(self, name: str) -> Any:
        """A field's value, if it was sent; None for a default, and for a field that the endpoint does not have."""
        return getattr(self, name) if name in self.model_fields_set else None

    @property
    def useless(self) -> list[str]:
        """The fields that were sent, and that no base model here can use."""
        fields = type(self).model_fields
        needed = [name for name in PICTURES if name in fields and fields[name].is_required()]
        return [name for name in (*PICTURES, "prompt_upsampling") if name in needed or self.given(name)]


class _WithUpsampling(_Inputs):
    prompt_upsampling: bool = Field(
        False, description="Whether the prompt is to be rewritten. Prompts are drawn as they are: true is refused."
    )


class FluxProFinetuneInputs(_WithUpsampling):
    """What flux-pro-finetuned takes."""

    aspect = Fraction(4, 3)

    prompt: str = Field("", description=ABOUT_PROMPT)
    image_prompt: str | None = _picture(default=None)
    width: int = _side(1024)
    height: int = _side(768)
    steps: int = _steps(40, 1)
    guidance: float = _guidance(2.5, 1.5, 5)
    seed: Seed = Field(default_factory=lambda: RANDOM, description=ABOUT_SEED, examples=[42])
    output_format: OutputFormat = Field(OutputFormat.JPEG, description="How the picture is stored.")


class FinetuneFluxUltraInput(_WithUpsampling):
    """What flux-pro-1.1-ultra-finetuned takes."""

    finetune_strength: float = _strength(1.2)
    prompt: str | None = Field("", description=ABOUT_PROMPT)
    aspect_ratio: str = Field(
        "16:9",
        description="Width and height, between 21:9 and 9:21; the area is what the finetune’s base model draws best.",
    )
    image_prompt: str | None = _picture(default=None)
    image_prompt_strength: float = Field(0.1, ge=0, le=1, description="How much `image_prompt` counts.")

    @field_validator("aspect_ratio")
    @classmethod
    def _check_ratio(cls, value: str) -> str:
        sides = re.fullmatch(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", value)
        if not sides or not 1 / WIDEST <= Fraction(int(sides[1]), int(sides[2])) <= WIDEST:
            raise ValueError("must be two whole numbers, such as 16:9, between 21:9 and 9:21")
        return value


class FinetuneFluxProFillInputs(_WithUpsampling):
    """What flux-pro-1.0-fill-finetuned takes."""

    image: str = _picture()
    mask: str | None = _picture(default=None)
    prompt: str = Field("", description=ABOUT_PROMPT)
    steps: int = _steps(50, 15)
    guidance: float = _guidance(60, 1.5, 100)


class FinetuneDepthInputs(_WithUpsampling):
    """What flux-pro-1.0-depth-finetuned takes."""

    prompt: str = Field(description=ABOUT_PROMPT)
    control_image: str = _picture()
    steps: int = _steps(50, 15)
    guidance: float = _guidance(15, 1, 100)


class FinetuneCannyInputs(FinetuneDepthInputs):
    """What flux-pro-1.0-canny-finetuned takes."""

    guidance: float = _guidance(30, 1, 100)
    canny_low_threshold: int | None = Field(50, ge=0, le=500, description="For edges in `control_image`.")
    canny_high_threshold: int | None = Field(200, ge=0, le=500, description="For edges in `control_image`.")


class KleinInputs(_Inputs):
    """What the klein endpoints take."""

    finetune_strength: float = _strength(1.0)
    prompt: str = Field(description=ABOUT_PROMPT)
    width: Side = Field(None, description="In pixels. 0 or nothing: as suits the finetune’s base model.")
    height: Side = Field(None, description="In pixels. 0 or nothing: as suits the finetune’s base model.")
    input_image: str | None = _picture(default=None)
    input_image_2: str | None = _picture(default=None)
    input_image_3: str | None = _picture(default=None)
    input_image_4: str | None = _picture(default=None)
    output_format: KleinOutputFormat = Field(KleinOutputFormat.JPEG, description="How the picture is stored.")
    safety_tolerance: int = Field(
        2, ge=0, le=5, description="Taken for the sake of existing programs: nothing is moderated here."
    )


class AsyncResponse(BaseModel):
    """An image was ordered; `polling_url` tells when it is ready."""

    id: str
    polling_url: str
    cost: float | None = Field(None, description="Nothing is charged here.")
    input_mp: float | None = Field(None, description="No endpoint takes a picture.")
    output_mp: float | None = Field(None, description="Megapixels of the picture.")


class AsyncWebhookResponse(AsyncResponse):
    """The same, of an order that names a webhook."""

    status: str
    webhook_url: str


ENDPOINTS: dict[str, type[_Inputs]] = {
    "flux-pro-finetuned": FluxProFinetuneInputs,
    "flux-pro-1.1-ultra-finetuned": FinetuneFluxUltraInput,
    "flux-pro-1.0-fill-finetuned": FinetuneFluxProFillInputs,
    "flux-pro-1.0-canny-finetuned": FinetuneCannyInputs,
    "flux-pro-1.0-depth-finetuned": FinetuneDepthInputs,
    "flux-2-klein-4b-finetuned": KleinInputs,
    "flux-2-klein-9b-finetuned": KleinInputs,
    "flux-2-klein-9b-kv-finetuned": KleinInputs,
    "flux-2-klein-9b-kv-bf16-finetuned": KleinInputs,
    "flux-2-klein-base-4b-finetuned": KleinInputs,
    "flux-2-klein-base-9b-finetuned": KleinInputs,
}


def add(routes: APIRouter, queue: Queue) -> None:
    """Add the routes that order images."""
    for name, model in ENDPOINTS.items():
        _add_one(routes, queue, name, model)


def _add_one(routes: APIRouter, queue: Queue, endpoint: str, model: type[_Inputs]) -> None:
    @routes.post(
        f"/{endpoint}",
        summary=f"Draw with a finetune: {endpoint}",
        response_model=AsyncResponse | AsyncWebhookResponse,
        openapi_extra=openapi.body(model),
    )
    async def draw(request: Request) -> JSONResponse:
        """Order an image; get_result tells when it is ready."""
        caller = await run_in_threadpool(callers.of_program, queue.settings, request)
        fields = await bodies.read_json(request, queue.settings, dropped=PICTURES)
        root = callers.public_root(queue.settings, request)
        made = await run_in_threadpool(_order, queue, caller, endpoint, _read(model, fields), root)
        return JSONResponse(made.model_dump())


def _read(model: type[_Inputs], fields: dict[str, Any]) -> _Inputs:
    """Raises: RequestValidationError, also for fields that are right but of no use here."""
    try:
        asked = model.model_validate(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in problems]) from None
    if names := asked.useless:
        raise RequestValidationError([_useless(name, model) for name in names])
    return asked


def _useless(name: str, model: type[_Inputs]) -> dict[str, Any]:
    if name == "prompt_upsampling":
        words = "Prompts are drawn as they are written: leave it out, or send false."
    elif model.model_fields[name].is_required():
        words = "Finetunes here draw from words alone. Use flux-pro-finetuned, which needs no picture."
    else:
        words = "Finetunes here draw from words alone and cannot use a picture: leave it out."
    return {"type": "value_error", "loc": ("body", name), "msg": words}


def _order(queue: Queue, caller: Caller, endpoint: str, asked: Any, root: str) -> AsyncResponse:
    run = _ready(queue, asked.finetune_id, caller)
    aspect = Fraction(*map(int, asked.aspect_ratio.split(":"))) if hasattr(asked, "aspect_ratio") else asked.aspect
    webhook_url = str(asked.webhook_url) if asked.webhook_url else None
    image = images.order(
        queue.settings,
        run,
        caller.name,
        asked.prompt or "",
        endpoint=endpoint,
        strength=asked.finetune_strength,
        seed=asked.seed,
        width=asked.given("width"),
        height=asked.given("height"),
        aspect=float(aspect),
        output_format=asked.output_format or OutputFormat.JPEG,
        steps=asked.given("steps"),
        guidance=asked.given("guidance"),
        webhook_url=webhook_url,
        webhook_secret=asked.webhook_secret,
        root=root,
    )
    order = image.order()
    made = {
        "id": image.id,
        "polling_url": f"{root}/v1/get_result?id={image.id}",
        "output_mp": round(order.width * order.height / 1e6, 4),
    }
    if webhook_url is None:
        return AsyncResponse(**made)
    return AsyncWebhookResponse(**made, status="Pending", webhook_url=webhook_url)


def _ready(queue: Queue, id: str, caller: Caller) -> Run:
    """A finetune of the caller's that can be drawn with. Raises: HTTPException."""
    try:
        run = owners.find(queue.settings, id, caller)
    except MissingError:
        raise HTTPException(400, NOT_READY) from None
    if queue.state(run) is not State.READY or run.lora is None:
        raise HTTPException(400, NOT_READY)
    return run
