"""Entry of the command line: parsing, help, and errors as one line with an exit code."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from lightning_dreambooth.callbacks.loggers import log_config
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.arguments import VERBS
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.help import full_help, overview, short_help
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.output import lasting_output
from lightning_dreambooth.cli.parser import ConfigParser
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.distributed import SIGNALS, lost_process
from lightning_dreambooth.errors import InputError, Stopped, TrainingError
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.runs import is_first_process, output_folder

PROG = "python -m lightning_dreambooth"

TRAINER_DEFAULTS = {
    "enable_checkpointing": False,  # Checkpointing does it
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "max_epochs": 1,  # one long epoch; max_steps is the length of the run
    "use_distributed_sampler": False,  # ShardedOrder does it
    "num_sanity_val_steps": 0,
}


class LogConfig(SaveConfigCallback):
    """Writes the whole config into the run's folder and logs it."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, by the first process. Lightning would write where the first logger does, which may be here."""
        folder = output_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, skip_none=False, overwrite=True, multifile=False)
        log_config(trainer, self.parser.dump(self.config, skip_none=False), self.config.as_dict())


class DryRunCLI(DreamBoothCLI):
    """`fit` without training: it checks everything that can be checked without a model, and writes nothing."""

    def _set_seed(self) -> None:
        """Does not set the seed: nothing random follows."""

    def name_run(self, config: Any) -> None:
        """Does not name the run: nothing is written."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.before_fit()


OPTIONS: dict[str, Any] = {
    "parser_class": ConfigParser,
    "model_class": DreamBooth,
    "datamodule_class": DreamBoothData,
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
    "trainer_defaults": TRAINER_DEFAULTS,
    "save_config_callback": LogConfig,
    "save_config_kwargs": {"save_to_log_dir": False},
    "parser_kwargs": {"prog": PROG, "exit_on_error": False},
}


def build_job(argv: list[str]) -> Job:
    """The arguments after `fit` => the job, with no model loaded and no training started.

    Raises:
        InputError: if `fit` would raise it before a model is loaded.
    """
    try:
        return DryRunCLI(GracefulStop(), args=["fit", *argv], **OPTIONS).job
    except ArgumentError as error:
        raise InputError(str(error)) from error


@contextmanager
def exit_on_error(graceful_stop: GracefulStop) -> Iterator[None]:
    """Turns an error inside the block into one line and an exit code.

    Exit codes: 2 for wrong input, 1 for a failed run, 128 + its number for a signal that ended the run.
    """
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        graceful_stop.install_handlers()
        with lasting_output(graceful_stop.lose_output):
            yield
    except (InputError, ArgumentError) as error:
        sys.exit(_complain(error, 2))
    except (TrainingError, OSError) as error:
        sys.exit(_complain(error, 1))
    except RuntimeError as error:
        if not (reason := lost_process(error)):
            raise
        sys.exit(_complain(f"{reason}; resume with --ckpt_path last", 1))
    except Stopped as stopped:
        # A launcher kills all processes as soon as one fails, so after an agreed stop only the first process fails.
        sys.exit(0 if stopped.agreed and not is_first_process() else _complain(stopped, 128 + stopped.number))
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> DreamBoothCLI:
    """Runs a verb, or shows help."""
    argv = sys.argv[1:] if argv is None else argv
    graceful_stop = GracefulStop()
    with exit_on_error(graceful_stop):
        if not argv or argv[0] in ("-h", "--help"):
            print(overview(PROG))
            sys.exit(0)
        if argv[0] in VERBS and {"-h", "--help"} & {*argv}:
            print(short_help(PROG, argv[0]))
            sys.exit(0)
        return DreamBoothCLI(graceful_stop, args=full_help(argv), **OPTIONS)


def _complain(error: BaseException | str, code: int) -> int:
    with suppress(OSError):  # nobody may read it any more
        print(f"{PROG}: {'error: ' if code < 128 else ''}{' '.join(str(error).split())}", file=sys.stderr)
    return code
