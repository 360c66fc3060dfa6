"""Where the parts of a study are done: here, one after the other, or on a Ray cluster."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.study.parts import Part

Report = Callable[[int], None]  # told the place of a part


def locally(parts: Sequence[Part], begins: Report, ended: Report) -> None:
    """Does one part after the other."""
    for place, part in enumerate(parts):
        begins(place)
        part.do()
        ended(place)


def on_ray(
    parts: Sequence[Part], begins: Report, ended: Report, resources: Mapping[str, float], address: str | None
) -> None:
    """Does every part as a task of a Ray cluster, which repeats those whose worker dies; without an address, here.

    All machines see this folder under the same path.

    Raises:
        InputError: if Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed; pip install 'lightning_dreambooth[ray]'") from error
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=True)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster answers at {address} ({error})") from error
    remote = ray.remote(_do).options(max_retries=3, **resources)
    tasks: dict[Any, int] = {}
    try:
        by_place: dict[int, Any] = {}
        for place, part in enumerate(parts):
            by_place[place] = remote.remote(os.getcwd(), part.do, *(by_place[need] for need in part.needs))
            tasks[by_place[place]] = place
            begins(place)
        while tasks:
            done, _ = ray.wait(list(tasks), num_returns=1)
            ray.get(done)  # raises what the task has raised
            ended(tasks.pop(done[0]))
    finally:
        for task in tasks:
            ray.cancel(task)
        if started:
            ray.shutdown()


def _do(folder: str, do: Callable[[], None], *needs: object) -> None:
    """A part in a worker's process; what it needs is there once it is called."""
    os.chdir(folder)
    do()
