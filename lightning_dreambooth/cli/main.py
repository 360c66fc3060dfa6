"""The front door: how a command begins, and how it ends in one line when something is wrong."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_dreambooth.callbacks.signals import SIGNALS, GracefulStop
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError, Stopped, TrainingError
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.runs import is_first

PROG = "python -m lightning_dreambooth"
TOOLS = "tools, each with its own --help: study (fits, figures, measures and a report from one file)"

TRAINER_DEFAULTS = {
    "enable_checkpointing": False,  # Keep does it
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "max_epochs": 1,  # one long epoch; max_steps is the length of a run
    "use_distributed_sampler": False,  # ShardedOrder does it
    # Fidelity measures after a step and before its state is saved, also at the last one and not when a signal came;
    # Lightning would do so after the state, and nothing at the last step. There is no second epoch.
    "check_val_every_n_epoch": 2,
    "num_sanity_val_steps": 0,
}


class LogConfig(SaveConfigCallback):
    """Writes the whole config beside the run and into its log."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, by the first process."""
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class DryRunCLI(DreamBoothCLI):
    """`fit` up to where it would begin: what can be told without a model is looked at, nothing is written."""

    def _set_seed(self) -> None:
        """Leaves the seed alone: nothing random follows."""

    def name_run(self, config: Any) -> None:
        """Gives no name."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.before_fit()


OPTIONS: dict[str, Any] = {
    "model_class": DreamBooth,
    "datamodule_class": DreamBoothData,
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
    "trainer_defaults": TRAINER_DEFAULTS,
    "save_config_callback": LogConfig,
    "save_config_kwargs": {"overwrite": True},
    "parser_kwargs": {"prog": PROG, "exit_on_error": False, "epilog": TOOLS},
}


def build_job(words: list[str]) -> DreamBoothCLI:
    """The words after `fit` => its trainer, module and data, neither loaded nor begun.

    Raises:
        InputError: if `fit` would end with it before a model is loaded.
    """
    try:
        return DryRunCLI(GracefulStop(), args=["fit", *words], **OPTIONS)
    except ArgumentError as error:
        raise InputError(str(error)) from error


@contextmanager
def exit_on_error(graceful_stop: GracefulStop) -> Iterator[None]:
    """Wrong input ends in one line and exit code 2, a failed run in one line and exit code 1.

    What a signal has ended says so, and exits with 128 + the signal's number.
    """
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        graceful_stop.listen()
        yield
    except (InputError, ArgumentError) as error:
        sys.exit(_complain(error, 2))
    except (TrainingError, OSError) as error:
        sys.exit(_complain(error, 1))
    except Stopped as stopped:
        # A launcher that sees one process fail kills all others, so of those that agreed only the first one does.
        sys.exit(0 if stopped.agreed and not is_first() else _complain(stopped, 128 + stopped.number))
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def main(args: list[str] | None = None) -> DreamBoothCLI:
    """Runs a verb."""
    graceful_stop = GracefulStop()
    with exit_on_error(graceful_stop):
        return DreamBoothCLI(graceful_stop, args=args, **OPTIONS)


def _complain(error: BaseException, code: int) -> int:
    print(f"{PROG}: {'error: ' if code < 128 else ''}{' '.join(str(error).split())}", file=sys.stderr)
    return code
