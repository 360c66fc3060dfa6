"""The two ways in which this package says no. `cli.main` prints their one line."""


class InputError(ValueError):
    """Wrong input, nothing was changed; the message holds the value, the bound and the remedy. Exit code 2."""


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved before stands. Exit code 1."""
