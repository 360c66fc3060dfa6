"""One training loop in a process of its own, which makes a step for each line that it reads.

`fit.py` starts it. As a callback of `fit`, `Paced` makes Lightning's loop wait for the lines.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from peak import resident_peak
from pytorch_lightning.callbacks import Callback

Stamp = float | torch.cuda.Event
REPORTS = os.fdopen(os.dup(1), "w")  # standard output as it was: libraries print to it, too


def stamp() -> Stamp:
    """A point in time: of the device if there is a GPU, which need not be waited for."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(begin: Any, end: Any) -> float:
    """Seconds from a stamp to a later one, which has been reached."""
    return begin.elapsed_time(end) / 1000 if torch.cuda.is_available() else end - begin


def peak_gb() -> float:
    """Peak memory of the device; of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resident_peak() / 1e9


class Pace:
    """Waits for a line before each step, and reports its seconds, in parts."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Stamp]] = []

    def mark(self, part: str) -> None:
        """Ends a part of the step."""
        self.marks.append((part, stamp()))

    def step_done(self) -> None:
        """Reports the step and waits; the process ends when there are no more lines."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks = zip(self.marks, self.marks[1:], strict=False)
        parts = {part: between(begin, end) for (_, begin), (part, end) in marks}
        self.report({"parts": parts, "peak_gb": peak_gb()})
        if not sys.stdin.readline():
            self.end()
        self.marks = [("", stamp())]

    def report(self, values: dict[str, Any]) -> None:
        """Writes a line that `fit.py` reads."""
        REPORTS.write(json.dumps(values) + "\n")
        REPORTS.flush()

    def end(self) -> NoReturn:
        """Ends the process at once: what a run would still write is not wanted."""
        os._exit(0)


class Paced(Callback):
    """Makes `fit` wait before each step; what it does between two steps counts as data."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        self.pace = Pace()
        self.pace.step_done()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        self.pace.mark("data")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Called by Lightning."""
        self.pace.mark("forward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        self.pace.mark("backward")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Called by Lightning."""
        self.pace.mark("optimizer")
        self.pace.step_done()


class FirstStep(Callback):
    """Ends the process after the first step, so that whoever started it knows when that was."""

    def on_train_batch_end(self, *_: Any) -> NoReturn:
        """Called by Lightning."""
        os._exit(0)


def bare(argv: list[str], pace: Pace) -> Iterator[None]:
    """Forward, backward and optimizer alone on one made-up batch, with model, precision and optimizer of a config."""
    from lightning_dreambooth.cli.main import build_job

    job = build_job(argv)
    module, data, trainer = job.module, job.data, job.trainer
    module.setup("fit")
    module.to(trainer.strategy.root_device)
    model, rows = module.model, data.batch_size * data.rows_per_sample
    noisy, target = torch.randn(2, rows, *model.latent_shape(data.resolution_px), device=model.device)
    timesteps = torch.randint(len(model.alphas_bar), (rows,), device=model.device)
    prompts = model.tokenize([f"a photo {row % data.rows_per_sample}" for row in range(rows)])
    with torch.no_grad():
        cached = model.embed(prompts)
    weights = [weight for named in module.trained.values() for weight in named.values()]
    optimizer = module.optimizer(weights)
    while True:
        with trainer.precision_plugin.forward_context():
            conditioning = model.embed(prompts) if module.train_text_encoder else cached
            loss = torch.nn.functional.mse_loss(model.predict(noisy, timesteps, conditioning).float(), target)
        pace.mark("forward")
        loss.backward()
        pace.mark("backward")
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pace.mark("optimizer")
        yield


def plain(argv: list[str], pace: Pace) -> Iterator[None]:
    """The published scripts' loop, with the settings of a config."""
    import plain_loop

    from lightning_dreambooth.cli.main import build_job

    job = build_job(argv)
    data, module, trainer = job.data, job.module, job.trainer
    (concept,) = data.concepts
    return plain_loop.steps(
        plain_loop.Settings(
            data.files.folder,
            (Path(str(concept.instance_data_dir)), str(concept.instance_prompt)),
            (Path(str(concept.class_data_dir)), str(concept.class_prompt)),
            data.resolution_px,
            data.batch_size,
            module.train_text_encoder,
            module.training_options.checkpointing,
            str(trainer.precision) == "bf16-mixed",
            module.optimizer,
        ),
        pace.mark,
    )


def main() -> None:
    """Runs a loop until there are no more lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=["ours", "plain", "bare"])
    loop, argv = parser.parse_known_args()
    sys.stdout = sys.stderr
    if loop.loop == "ours":
        from lightning_dreambooth.__main__ import run

        os.environ["LIGHTNING_DREAMBOOTH_TRUST"] = "worker"
        sys.argv = ["fit", "fit", *argv, "--trainer.callbacks+=worker.Paced"]
        run()
    pace = Pace()
    steps = {"plain": plain, "bare": bare}[loop.loop](argv, pace)
    pace.step_done()
    for _ in steps:
        pace.step_done()


if __name__ == "__main__":
    main()
