"""The request: every field with its default, its limits and its help, written once.

The page's form, the REST schema, the command line's options and the README's table are derived from these classes.
`Request` is what a finetune is asked with; `FinetuneInputs` adds the pictures as the REST interface carries them.
"""

import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, ValidationError, field_validator

from finetune.errors import ConfigError


class Mode(StrEnum):
    """What the pictures teach; decides what automatic captions describe."""

    GENERAL = "general"
    CHARACTER = "character"
    STYLE = "style"
    PRODUCT = "product"


class Priority(StrEnum):
    """What matters more: a quick answer or the best one."""

    SPEED = "speed"
    QUALITY = "quality"
    HIGH_RES_ONLY = "high_res_only"


class FinetuneType(StrEnum):
    """What is trained: an adapter, or all weights with the adapter extracted afterwards."""

    LORA = "lora"
    FULL = "full"


LEARNING_RATES = {FinetuneType.LORA: 1e-4, FinetuneType.FULL: 1e-5}
WebhookUrl = Annotated[HttpUrl, Field(max_length=2083)]
LONGEST_PROMPT = 1000
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that show the text after them in another order than it has."""


def visible(text: str) -> str:
    """A text in one line, without characters that a file name, a header or a page must not have."""
    spaced = "".join(" " if letter.isspace() else letter for letter in text)
    kept = (letter for letter in spaced if unicodedata.category(letter) != "Cc" and letter not in OVERRIDES)
    return " ".join("".join(kept).split())


def _lines(value: Any) -> Any:
    """Prompts as a form sends them: one a line."""
    return [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """A number that a form sends as text."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10 else value


Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class Request(BaseModel):
    """A finetune, without its pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=False)

    finetune_comment: str = Field(
        title="Name",
        description="The name of your finetune: title, file names and details show it.",
        min_length=1,
        max_length=200,
        examples=["my-first-finetune"],
    )
    mode: Mode = Field(
        title="Mode",
        description="What the pictures teach. Automatic captions describe everything (general), leave the subject’s "
        "own look out and call it by the trigger word (character, product), or describe only the content (style).",
    )
    trigger_word: str = Field(
        "TOK",
        title="Trigger word",
        description="A made-up word that stands for what is learned. It is put into every caption, and you write it "
        "in your prompts later.",
        min_length=1,
        max_length=64,
    )
    iterations: int = Field(
        300,
        title="Iterations",
        description="Number of training steps. More steps learn the pictures more closely and take longer.",
        ge=100,
        le=1000,
    )
    learning_rate: float | None = Field(
        None,
        title="Learning rate",
        description="How big a step is. Leave empty for 1e-5 with a full finetune and 1e-4 with a LoRA.",
        ge=1e-6,
        le=5e-3,
    )
    captioning: bool = Field(
        True,
        title="Captioning",
        description="Describe pictures that came without a caption. A caption from the ZIP always wins. When off, such "
        "pictures get a plain caption with the trigger word.",
    )
    priority: Priority = Field(
        Priority.QUALITY,
        title="Priority",
        description="speed: smaller pictures, small batches, no samples on the way. quality: full size, batches of 4, "
        "samples on the way. high_res_only: quality at the largest size alone.",
    )
    finetune_type: FinetuneType = Field(
        FinetuneType.FULL,
        title="Finetune type",
        description="lora: train a LoRA adapter. full: train all weights, then extract a LoRA from what changed.",
    )
    lora_rank: Annotated[Literal[16, 32], BeforeValidator(_whole)] = Field(
        32,
        title="LoRA rank",
        description="Size of the LoRA. For a full finetune, the rank of the extracted LoRA.",
    )
    webhook_url: WebhookUrl | None = Field(
        None,
        title="Webhook URL",
        description="An address that is told once, when the run has ended.",
    )
    webhook_secret: str | None = Field(
        None,
        title="Webhook secret",
        description="Signs the webhook, so that its receiver can tell it is yours.",
        max_length=256,
        json_schema_extra={"password": True},
    )
    base_model: str = Field(
        "demo",
        title="Base model",
        description="The model that learns from your pictures: one of the list, an id on the Hub, or a folder on the "
        "machine.",
        max_length=500,
    )
    captioner: str = Field(
        "",
        title="Captioner",
        description="What describes pictures without a caption: one of the list, or an image-text-to-text model on the "
        "Hub. Leave empty for the one that suits base model and machine.",
        max_length=200,
    )
    seed: int = Field(
        0,
        title="Seed",
        description="Decides all that is random: the same seed and pictures give the same LoRA.",
        ge=0,
        le=2**31 - 1,
    )
    sample_prompts: Annotated[tuple[Prompt, ...], BeforeValidator(_lines)] = Field(
        (),
        title="Sample prompts",
        description="What to draw while training, one prompt a line. Leave empty for prompts that suit the mode.",
        max_length=8,
    )

    @field_validator("finetune_comment", mode="before")
    @classmethod
    def _read_number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("iterations", "learning_rate", "lora_rank", "seed", mode="before")
    @classmethod
    def _refuse_truth(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number, not true or false")
        return value

    @field_validator("finetune_comment", "trigger_word")
    @classmethod
    def _strip(cls, value: str) -> str:
        if not (text := visible(value)):
            raise ValueError("must not be empty")
        return text

    @field_validator("sample_prompts")
    @classmethod
    def _strip_each(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for value in values if (text := visible(value)))

    @property
    def rate(self) -> float:
        """The learning rate that is used: the one asked for, or the finetune type's own."""
        return LEARNING_RATES[self.finetune_type] if self.learning_rate is None else self.learning_rate


class FinetuneInputs(Request):
    """The request as a program sends it: with the pictures. Keys that are not known are ignored."""

    model_config = ConfigDict(extra="ignore")

    file_data: str = Field(
        title="Pictures",
        description="Base64-encoded ZIP file containing training images and, optionally, their captions.",
    )


def read(values: dict[str, Any]) -> Request:
    """Check values by name. Raises: ConfigError naming the first field that is wrong."""
    if problems := check(values):
        field, message = next(iter(problems.items()))
        title = Request.model_fields[field].title if field in Request.model_fields else field
        raise ConfigError(f"{title}: {message}", field=field)
    return Request(**values)


def check(values: dict[str, Any]) -> dict[str, str]:
    """Say what is wrong with values: a message by field name; empty if all is well."""
    try:
        Request(**values)
    except ValidationError as error:
        return {str(problem["loc"][0]): _in_words(problem) for problem in error.errors()}
    return {}


def _in_words(problem: dict[str, Any]) -> str:
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    text = {"Field required": "is needed", "Extra inputs are not permitted": "is not a known field"}.get(text, text)
    value = problem["input"]
    shown = f" (it is {value!r})" if isinstance(value, str | int | float) and len(str(value)) < 40 else ""
    secret = "secret" in str(problem["loc"][0])
    return text[0].lower() + text[1:] + ("" if secret else shown) + "."
