"""The errors every family of the platform speaks: one base, three leaves."""


class MartechError(Exception):
    """Something went wrong that we can name.

    `code` is stable and machine-readable; the message names the cause and the next step.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class RetryableError(MartechError):
    """It may work later: try again after `retry_after` seconds."""

    code = "try_later"

    def __init__(self, message: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class PermanentError(MartechError):
    """It will never work with this input: do not try again."""

    code = "refused"


class ConfigurationError(MartechError):
    """A person has to change a setting before it can work."""

    code = "configuration"
