"""The tool `plan`: prints memory and time of a `fit` before it starts, and what to flip if it does not fit."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.main import PROG, build_job, exit_on_error
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.planning.phases import Phase, Prediction, predict
from lightning_dreambooth.planning.switches import Flipped, flip
from lightning_dreambooth.planning.work import Rates

GB = 1e9
HELP = f"""usage: {PROG} plan [-c CONFIG ...] [--SECTION.KEY VALUE ...]

plan: print the memory and time that `fit` with the same options would need. Nothing is trained or written, and no
weights of the model are loaded."""


def main(argv: Sequence[str]) -> None:
    """Prints the plan of a `fit` with these arguments."""
    with exit_on_error(GracefulStop()):
        if {"-h", "--help"} & {*argv}:
            print(HELP)
            return
        print(report([*argv]))


def report(argv: list[str]) -> str:
    """The arguments of a `fit` => its plan as text.

    Raises:
        InputError: if `fit` would raise it before a model is loaded, or has a device of another kind.
    """
    job = build_job(argv)
    device = job.trainer.strategy.root_device
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"plan knows cpu and cuda, this fit runs on {device.type}; give --trainer.accelerator")
    free = free_bytes(device)
    prediction = predict(job)
    rates = Rates(work for phase in prediction.phases for _, work in phase.work)
    rows = [_row(phase, rates) for phase in prediction.phases]
    seconds = sum(_seconds(phase, rates) for phase in prediction.phases)
    title = f"{job.data.files.name}, {job.data.resolution_px} px, {job.trainer.precision}, on {device}"
    lines = [title, "", f"{'phase':<17}{'peak GB':>8}  time", *rows, "", _filled_by(prediction), ""]
    peak, room = prediction.fullest.peak + rates.kernel_bytes, f"of {free / GB:.1f} GB free"
    if peak <= free:
        return "\n".join([*lines, f"It fits: {peak / GB:.2f} {room}; about {_duration(seconds)}."])
    flipped = flip(argv, job, prediction.fullest.peak, free - rates.kernel_bytes)
    lines += [f"{peak / GB:.2f} GB as it is", *(_flipped(each, rates.kernel_bytes) for each in flipped)]
    fits = flipped and flipped[-1].prediction.fullest.peak + rates.kernel_bytes <= free
    return "\n".join([*lines, "", _verdict(peak, room, flipped, bool(fits))])


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; on a CPU, what Linux can give to programs without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    content = Path("/proc/meminfo").read_text(encoding="utf-8")
    return int(content.split("MemAvailable:")[1].split()[0]) * 1024


def _seconds(phase: Phase, rates: Rates) -> float:
    return sum((times * rates.seconds(work) for times, work in phase.work), 0.0)


def _row(phase: Phase, rates: Rates) -> str:
    time = f"about {_duration(_seconds(phase, rates))}" if phase.work else ""
    return f"{phase.name:<17}{(phase.peak + rates.kernel_bytes) / GB:>8.2f}  {time}".rstrip()


def _filled_by(prediction: Prediction) -> str:
    parts = [f"{name} {size / GB:.2f}" for name, size in prediction.filled_by.items()]
    return f"training, GB: {', '.join(parts)}"


def _flipped(flipped: Flipped, kernel_bytes: int) -> str:
    return f"{(flipped.prediction.fullest.peak + kernel_bytes) / GB:.2f} GB with {' '.join(flipped.switch)}"


def _verdict(peak: int, room: str, flipped: Sequence[Flipped], fits: bool) -> str:
    if fits:
        words = " ".join(word for each in flipped for word in each.switch)
        return f"It does not fit: {peak / GB:.2f} {room}. It fits with {words}"
    return f"It does not fit: {peak / GB:.2f} {room}, and no switch makes it fit; take a smaller data.resolution."


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
