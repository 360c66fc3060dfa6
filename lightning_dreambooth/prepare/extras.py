"""Packages of the extras that `prepare` needs, and files in them."""

from importlib.util import find_spec
from pathlib import Path

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import sha256


def installed(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return find_spec(package) is not None


def require(extra: str, *packages: str) -> None:
    """Raises InputError, with the command that installs them, unless all of these packages are there."""
    if missing := [package for package in packages if not installed(package)]:
        raise InputError(f"{', '.join(missing)} is not installed; pip install -e '.[{extra}]'")


def file_in(package: str, place: str, digest: str | None = None) -> Path:
    """A file in an installed package, which is not imported.

    Raises:
        InputError: if it is not there, or has another SHA-256 than the given one.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    file = Path(next(iter(folders or ["/"]))) / place
    if not file.is_file() or digest not in (None, sha256(file)):
        raise InputError(
            f"{file} is missing or not as it was released; install {package} again, in the version that setup.cfg names"
        )
    return file
