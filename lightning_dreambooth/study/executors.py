"""Execution of a study's tasks: here, one after the other, or on a Ray cluster."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning_dreambooth.distributed import handle_signals
from lightning_dreambooth.errors import InputError, Stopped, TrainingError
from lightning_dreambooth.study.tasks import Task

Report = Callable[[int], None]  # receives the place of a task
END_SECONDS = 60  # for a cancelled task to save and end


def locally(tasks: Sequence[Task], begin: Report, end: Report) -> None:
    """Runs one task after the other; calls `begin` before and `end` after each."""
    for place, task in enumerate(tasks):
        begin(place)
        task.do()
        end(place)


def on_ray(tasks: Sequence[Task], end: Report, resources: Mapping[str, float], address: str | None) -> None:
    """Runs the tasks on a Ray cluster, which repeats a task whose worker dies; calls `end` after each.

    Without an address, a cluster starts on this machine. All machines must have this folder under the same path.

    Raises:
        InputError: if Ray is not installed, there is no cluster at the address, or it lacks the resources of a task.
        TrainingError: if the workers of a task die repeatedly.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed; pip install 'lightning_dreambooth[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"there is no Ray cluster at {address} ({error})") from error
    pending: dict[Any, int] = {}
    try:
        with _as_input_or_training_error(ray), _stopped_by_signals():
            _check_resources(resources, ray.cluster_resources())
            remote = ray.remote(_do).options(max_retries=3, **resources)
            by_place: list[Any] = []
            for place, task in enumerate(tasks):
                by_place.append(remote.remote(os.getcwd(), task.do, *(by_place[need] for need in task.needs)))
                pending[by_place[place]] = place
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1)
                ray.get(done)  # raises what the task has raised
                end(pending.pop(done[0]))
    finally:
        for reference in pending:
            ray.cancel(reference)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=END_SECONDS)
        ray.shutdown()


def _check_resources(resources: Mapping[str, float], available: Mapping[str, float]) -> None:
    for name, key in {"num_cpus": "CPU", "num_gpus": "GPU"}.items():
        if resources.get(name, 0) > available.get(key, 0):
            raise InputError(f"resources: a task takes {name} {resources[name]:g}, Ray has {available.get(key, 0):g}")


@contextmanager
def _as_input_or_training_error(ray: Any) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise TrainingError(f"Ray: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raises Stopped for a signal inside the block, by way of a KeyboardInterrupt, the only stop that Ray handles."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    handle_signals(interrupt)
    try:
        yield
    except KeyboardInterrupt:
        stopped_by = received[0] if received else int(signal.SIGINT)
        raise Stopped(stopped_by, f"stopped by {signal.Signals(stopped_by).name}; what was written stays") from None


def _do(folder: str, do: Callable[[], None], *needs: object) -> None:
    """Runs a task in a worker's process; Ray calls it when the tasks in `needs` are done."""
    os.chdir(folder)
    do()
