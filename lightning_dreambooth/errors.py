"""Errors and warnings of this package; `cli.main.exit_on_error` prints each error as one line."""


class InputError(ValueError):
    """Wrong input; nothing was changed. The message holds the value, the bound and the remedy. Exit code 2."""


class TrainingError(RuntimeError):
    """The run cannot continue; what was saved before remains. Exit code 1."""


class Stopped(BaseException):
    """A signal ended the run. Exit code 128 + its number."""

    def __init__(self, number: int, message: str, agreed: bool = False) -> None:
        super().__init__(message)
        self.number = number
        self.agreed = agreed  # by all processes, which have saved together


class InputWarning(UserWarning):
    """Input that can be used, but is probably not intended."""
