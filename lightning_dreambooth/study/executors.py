"""Where the parts of a study are done: here, one after the other, or on a Ray cluster."""

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from lightning_dreambooth.callbacks.signals import SIGNALS
from lightning_dreambooth.errors import InputError, Stopped, TrainingError
from lightning_dreambooth.study.tasks import Task

Report = Callable[[int], None]  # told the place of a part
ENDS_SECONDS = 60  # what a cancelled part has to save and end


def locally(parts: Sequence[Task], begins: Report, ended: Report) -> None:
    """Does one part after the other."""
    for place, part in enumerate(parts):
        begins(place)
        part.do()
        ended(place)


def on_ray(parts: Sequence[Task], ended: Report, resources: Mapping[str, float], address: str | None) -> None:
    """Does every part as a task of a Ray cluster, which repeats those whose worker dies; without an address, here.

    All machines see this folder under the same path.

    Raises:
        InputError: if Ray is not installed, no cluster answers, or it lacks what a part takes.
        TrainingError: if a worker dies again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed; pip install 'lightning_dreambooth[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {address} ({error})") from error
    tasks: dict[Any, int] = {}
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    try:
        for number in SIGNALS:  # Ray has taken them over, and hears of no other end than this one
            signal.signal(number, interrupt)
        there = ray.cluster_resources()
        for name, key in {"num_cpus": "CPU", "num_gpus": "GPU"}.items():
            if resources.get(name, 0) > there.get(key, 0):
                raise InputError(f"resources: a part takes {name} {resources[name]:g}, Ray has {there.get(key, 0):g}")
        remote = ray.remote(_do).options(max_retries=3, **resources)
        by_place: list[Any] = []
        for place, part in enumerate(parts):
            by_place.append(remote.remote(os.getcwd(), part.do, *(by_place[need] for need in part.needs)))
            tasks[by_place[place]] = place
        while tasks:
            done, _ = ray.wait(list(tasks), num_returns=1)
            ray.get(done)  # raises what the task has raised
            ended(tasks.pop(done[0]))
    except KeyboardInterrupt:
        heard = received[0] if received else int(signal.SIGINT)
        raise Stopped(heard, f"stopped by {signal.Signals(heard).name}; what was written stays") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise TrainingError(f"Ray: {' '.join(str(error).split())[:300]}") from error
    finally:
        for task in tasks:
            ray.cancel(task)
        if tasks:
            ray.wait(list(tasks), num_returns=len(tasks), timeout=ENDS_SECONDS)
        ray.shutdown()


def _do(folder: str, do: Callable[[], None], *needs: object) -> None:
    """A part in a worker's process; what it needs is there once it is called."""
    os.chdir(folder)
    do()
