"""fit, validate, test and predict: where each writes, what it checks beforehand, what it says at the end."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from lightning_dreambooth.callbacks.measurement import VALIDATION
from lightning_dreambooth.callbacks.monitor import TrainingMonitor
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.callbacks.validation import TABLE
from lightning_dreambooth.cli.arguments import VERBS, add_sections, check_optimizer, with_example
from lightning_dreambooth.cli.job import Callbacks, Job
from lightning_dreambooth.cli.summary import fit_summary
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.data.image_jobs import ImageJobData
from lightning_dreambooth.diffusion.requests import ImageJob
from lightning_dreambooth.errors import InputError, Stopped
from lightning_dreambooth.evaluation.tables import metrics_table
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.saving.runs import RUNS, default_name, is_first_process, run_folder
from lightning_dreambooth.saving.states import check_base, find_state, read_state

STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # tried; others keep parts of the weights in each process


class DreamBoothCLI(LightningCLI):
    """LightningCLI with a section for each part of a run, and a name for the run."""

    folder = RUNS  # until the run has a name
    state_path: Path | None = None
    purge_step: int | None = None

    def __init__(self, graceful_stop: GracefulStop, *args: Any, **kwargs: Any) -> None:
        self.graceful_stop = graceful_stop
        try:
            super().__init__(*args, **kwargs)
        finally:
            for folder in (self.folder, RUNS) if is_first_process() else ():
                with suppress(OSError):  # not empty, because the run has written something
                    folder.rmdir()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that train, measure or draw."""
        lightnings = LightningCLI.subcommands()
        return {verb: lightnings[verb] for verb in VERBS}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our sections first, then the trainer's, so that help begins with what is ours."""
        add_sections(parser)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given arguments, or the example's config."""
        try:
            self.config = parser.parse_args(with_example(sys.argv[1:] if args is None else args))
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"a config cannot be read as YAML ({error})") from error

    def _parse_ckpt_path(self) -> None:
        """Leaves the parsed arguments alone: what is asked for wins over the checkpoint (Lightning#21455)."""

    def before_instantiate_classes(self) -> None:
        """Checks what the parser would call, and names the run."""
        config = self.config[self.subcommand]
        check_optimizer(config.model.optimizer)
        self.name_run(config)
        config.weights_only = True

    def name_run(self, config: Any) -> None:
        """Decides where the run writes, and which state it resumes or reads."""
        default = default_name([Path(str(path)) for path in config.get("config") or []])
        self.state_path = find_state(config.get("ckpt_path"), config.name, default)
        begins = config.get("ckpt_path") == "last" and self.state_path is None
        self.purge_step = 0 if begins else None  # what was logged after the state is logged again
        if self.state_path is not None:
            state = read_state(self.state_path)
            self.purge_step, self.trained_from = state["global_step"] + 1, state["DreamBoothData"].get("base_model")
        if self.subcommand != "fit":
            self.folder = self._folder_of_reader(config, default, begins)
        elif begins:
            self.folder = RUNS / (config.name or default)
            print(f"{self.folder} has no state yet: it begins at step 0", file=sys.stderr)
        else:
            self.folder = run_folder(config.name, default, self.state_path)
        config.ckpt_path = None if self.state_path is None else str(self.state_path)

    def _folder_of_reader(self, config: Any, default: str, begins: bool) -> Path:
        if begins:
            whose = RUNS / (config.name or default)
            raise InputError(f"there is no state in {whose}; name another run, or leave out --ckpt_path")
        # With `last`, the name says whose state is read, and cannot also name the output.
        name = None if config.ckpt_path == "last" else config.name
        if self.subcommand == "test":  # continues with its own images, and refuses those of another test
            return RUNS / (name or f"test-{config.benchmark.subject}")
        return run_folder(name, str(self.subcommand), None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Decides where a run writes, and how."""
        given = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self.folder)
        callbacks = given.get("callbacks") or []
        # Log first, then stop if a signal came; the samples and the state of a step follow.
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if given.get("enable_progress_bar") is not False and not any(isinstance(own, ProgressBar) for own in callbacks):
            callbacks = [TQDMProgressBar(), *callbacks]  # the look of our own bars, whatever else is installed
        kwargs["callbacks"] = [TrainingMonitor(), self.graceful_stop, *callbacks]
        kwargs["plugins"] = [*(given.get("plugins") or []), AtomicCheckpointIO()]
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif given.get("logger") in (None, True):
            name = str(self.folder.relative_to(RUNS))
            options: dict[str, Any] = {"name": name, "version": "", "default_hp_metric": False}
            kwargs["logger"] = TensorBoardLogger(RUNS, purge_step=self.purge_step, **options)
        # The saved config runs the job again, from its beginning and under a name of its own.
        config = self.config[self.subcommand]
        config.name, config.ckpt_path = None, None
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise InputError(f"trainer: {error}") from error

    @property
    def job(self) -> Job:
        """What the verb works with."""
        sections = (self._get(self.config_init, name) for name in ("samples", "fidelity", "benchmark", "checkpoint"))
        parser: LightningArgumentParser = self._parser(self.subcommand)
        config = self.config[self.subcommand]
        text = parser.dump(config, skip_none=False)
        return Job(self.trainer, self.model, self.datamodule, Callbacks(*sections), config.as_dict(), text)

    def before_fit(self) -> None:
        """Checks everything that can be checked without a model, on every process, and starts the clock."""
        job, strategy = self.job, self.trainer.strategy
        if self.trainer.max_steps < 1:
            raise InputError("trainer.max_steps must be 1 or more: the length of the training in optimizer steps")
        if type(strategy) not in STRATEGIES or isinstance(strategy.launcher, _MultiProcessingLauncher):
            raise InputError(
                f"trainer.strategy {type(strategy).__name__} splits weights that exports need whole, or forks; "
                "use ddp, and configs/low_memory.yaml if memory is short"
            )
        self._check_base()
        job.data.check()
        job.callbacks.samples.check(job.data)
        job.callbacks.fidelity.check(job.data)
        self.began = time.monotonic()

    def before_validate(self) -> None:
        """Checks what is to be measured."""
        self._check_base()
        job, fidelity = self.job, self.job.callbacks.fidelity
        if not fidelity.encoders.by_role:
            raise InputError("nothing to measure with: give fidelity.clip_model or fidelity.dino")
        if fidelity.base is None and self.state_path is None:
            warn("fidelity.base is not given, so the model is compared with itself: it has no drift and no score")
        job.data.check(training=False)
        fidelity.check(job.data)
        if fidelity.measurement:
            self._draw_batches(fidelity.measurement.batches, "fidelity.batch_size")

    def before_test(self) -> None:
        """Checks what is to be tested."""
        self._check_base()
        job = self.job
        precision, encoders = str(self.trainer.precision), job.callbacks.fidelity.encoders
        batches = job.callbacks.benchmark.prepare(job.data, self.folder, encoders, self.state_path, precision)
        self.image_jobs = ImageJobData(batches, job.data.resolution_px)

    def before_predict(self) -> None:
        """Checks what is to be drawn."""
        self._check_base()
        job = self.job
        batches = job.callbacks.samples.predict_batches()
        job.callbacks.samples.check(job.data)
        self._draw_batches(batches, "samples.batch_size")

    def _draw_batches(self, batches: list[list[ImageJob]], knob: str) -> None:
        if len(batches) < self.trainer.world_size:
            raise InputError(
                f"{len(batches)} batches are too few for {self.trainer.world_size} processes; lower {knob}"
            )
        self.image_jobs = ImageJobData(batches, self.job.data.resolution_px)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Only `fit` reads training data; the other verbs draw image jobs."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs if subcommand == "fit" else kwargs | {"datamodule": self.image_jobs}

    def _check_base(self) -> None:
        if self.state_path is not None:
            check_base(self.state_path, self.trained_from, self.job.data.files.fingerprint)

    def after_fit(self) -> None:
        """Says what was achieved and where it lies."""
        if self.trainer.is_global_zero:
            print(fit_summary(self.job, self.folder, time.monotonic() - self.began))
        if number := self.graceful_stop.agreed_signal:
            raise Stopped(
                number,
                f"stopped by {signal.Signals(number).name} after step {self.trainer.global_step}, which is saved; "
                f"resume with --name {self.folder.relative_to(RUNS)} --ckpt_path last",
                agreed=True,
            )

    def after_validate(self) -> None:
        """Shows the metrics, and says where they lie."""
        fidelity = self.job.callbacks.fidelity
        if self.trainer.is_global_zero and fidelity.measurement:
            print(metrics_table(fidelity.history[-1], fidelity.measurement.base, fidelity.measurement.ceiling))
            print(f"{self.folder.name}: metrics in {self.folder / TABLE}, images in {self.folder / VALIDATION}")

    def after_test(self) -> None:
        """Measures what all processes have drawn."""
        if self.trainer.is_global_zero:
            print(self.job.callbacks.benchmark.measure(self.trainer.strategy.root_device))
            print(f"{self.folder.name}: a row per image in {self.folder}/images.csv, the table in summary.md")

    def after_predict(self) -> None:
        """Says where the images lie."""
        if self.trainer.is_global_zero:
            count = sum(map(len, self.image_jobs.batches))
            print(f"{self.folder.name}: {count} images and grid.png in {self.folder}")
