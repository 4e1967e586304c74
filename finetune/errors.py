"""Every error that a user can meet. The message says what happened, the hint what to do next.

Separate, and at the top of the import order, because every other module raises these.
"""


class FinetuneError(Exception):
    """Something the user can act on."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(FinetuneError):
    """A setting is unknown or out of range; `field` names it."""

    def __init__(self, message: str, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint)
        self.field = field


class DatasetError(FinetuneError):
    """The ZIP or an image in it cannot be used; `file` names which."""

    def __init__(self, message: str, hint: str = "", file: str = "") -> None:
        super().__init__(message, hint)
        self.file = file


class ModelError(FinetuneError):
    """Weights are missing, broken or of another model."""


class AccessError(ModelError):
    """The weights need an accepted licence or a token."""


class CaptionError(FinetuneError):
    """An image could not be captioned; `file` names it."""

    def __init__(self, message: str, hint: str = "", file: str = "") -> None:
        super().__init__(message, hint)
        self.file = file


class ExecutorError(FinetuneError):
    """A worker cannot be started, or was lost."""


class TrainingError(FinetuneError):
    """The run cannot go on."""


class OutOfMemoryError(TrainingError):
    """The run needs more memory than the device has."""


class DivergedError(TrainingError):
    """The loss is no longer a number."""


class MissingError(FinetuneError):
    """What was asked for is not there, or belongs to somebody else: who asks cannot tell which."""


class DeniedError(FinetuneError):
    """Who asks has to sign in first, or may not do this."""


class ExpiredError(FinetuneError):
    """A link is too old."""


class BusyError(FinetuneError):
    """The queue is full, or who asks has enough in it; after `retry_after_seconds` it is worth asking again."""

    def __init__(self, message: str, hint: str = "", retry_after_seconds: int = 60) -> None:
        super().__init__(message, hint)
        self.retry_after_seconds = retry_after_seconds


class TooLargeError(FinetuneError):
    """What was sent is larger than this service takes."""


class StorageError(FinetuneError):
    """The disk has no room left for it."""
