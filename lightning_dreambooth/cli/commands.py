"""The verbs fit, validate, test and predict: output folders, checks before the start, and final lines."""

import signal
import sys
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import Precision
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from lightning_dreambooth.callbacks.loggers import RunLog
from lightning_dreambooth.callbacks.measurement import VALIDATION
from lightning_dreambooth.callbacks.monitor import TrainingMonitor
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.callbacks.validation import TABLE
from lightning_dreambooth.cli import arguments
from lightning_dreambooth.cli.job import Callbacks, Job
from lightning_dreambooth.cli.parser import check_callables, explain
from lightning_dreambooth.cli.summary import fit_summary
from lightning_dreambooth.cli.trainer_arguments import check_arguments, check_trainer, fast_precision
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.data.image_jobs import ImageJobData
from lightning_dreambooth.errors import InputError, Stopped
from lightning_dreambooth.evaluation.tables import metrics_table
from lightning_dreambooth.files import explained, sha256
from lightning_dreambooth.inputs import expand_given
from lightning_dreambooth.models.lora import Lora
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.saving.runs import RUNS, default_name, is_first_process, locked, run_folder
from lightning_dreambooth.saving.states import check_base, find_state, read_state

# What constructors of Lightning's classes raise on wrong arguments and absent packages.
BUILDING = (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError, AssertionError)


class DreamBoothCLI(LightningCLI):
    """LightningCLI with a section for each part of a run, and a name for the run."""

    folder = RUNS  # until the run has a name
    state_path: Path | None = None
    purge_step: int | None = None

    def __init__(
        self, graceful_stop: GracefulStop, args: list[str], parser_kwargs: dict[str, Any], **kwargs: Any
    ) -> None:
        self.graceful_stop = graceful_stop
        # A parser takes long to build: only that of the given verb is built, and all if there is no such verb.
        self.verbs = {verb: text for verb, text in arguments.VERBS.items() if verb == args[0]} or arguments.VERBS
        descriptions = {verb: {"description": text} for verb, text in self.verbs.items()}
        try:
            super().__init__(args=args, parser_kwargs=parser_kwargs | descriptions, **kwargs)
        finally:
            for folder in (self.folder, RUNS) if is_first_process() else ():
                with suppress(OSError):  # not empty, because the run has written something
                    folder.rmdir()

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verbs that can be parsed, each with the arguments of Lightning's method that are not for the user."""
        lightnings = LightningCLI.subcommands()
        return {verb: lightnings[verb] for verb in self.verbs}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our sections first, then the trainer's, so that help begins with ours."""
        arguments.add_sections(parser)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given arguments, or the example's config."""
        argv = sys.argv[1:] if args is None else args
        arguments.check_words(argv)
        try:
            self.config = parser.parse_args(arguments.with_example(argv))
        except ArgumentError as error:
            raise explain(error) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"a config cannot be read as YAML ({error})") from error

        arguments.check_seed_everything(self.config[self.config.subcommand].seed_everything)

    def _parse_ckpt_path(self) -> None:
        """Leaves the parsed arguments unchanged: they take precedence over the checkpoint (Lightning#21455)."""

    def before_instantiate_classes(self) -> None:
        """Checks what the parser would call, and names the run."""
        config = self.config[self.subcommand]
        check_callables(config)
        check_arguments(vars(config.trainer))
        self.name_run(config)
        config.weights_only = True

    def name_run(self, config: Any) -> None:
        """Chooses the folder of the run, and the state that it resumes or reads."""
        default = default_name([Path(str(path)) for path in config.get("config") or []])
        arguments.check_name(default if config.name is None else config.name)
        arguments.check_name(f"test-{config.benchmark.subject}")
        self.state_path = find_state(expand_given(config.get("ckpt_path")), config.name, default)
        begins = config.get("ckpt_path") == "last" and self.state_path is None
        self.purge_step = 0 if begins else None  # events after the state are removed: they will be logged again
        if self.state_path is not None:
            state = read_state(self.state_path)
            self.purge_step, self.trained_from = state["global_step"] + 1, state["DreamBoothData"].get("base_model")
            if is_first_process():
                print(f"{self.subcommand} goes on from {self.state_path}, step {state['global_step']}", file=sys.stderr)
        if self.subcommand != "fit":
            self.folder = self._output_folder(config, default, begins)
        elif begins:
            self.folder = RUNS / (config.name or default)
            print(f"{self.folder} has no state yet: it begins at step 0", file=sys.stderr)
        else:
            self.folder = run_folder(config.name, default, self.state_path)
        config.ckpt_path = None if self.state_path is None else str(self.state_path)

    def _output_folder(self, config: Any, default: str, begins: bool) -> Path:
        """The folder of `validate`, `test` or `predict`."""
        if begins:
            run = RUNS / (config.name or default)
            raise InputError(f"there is no state in {run}; name another run, or leave out --ckpt_path")
        # With `last`, the name is that of the run whose state is read, and not that of the output.
        name = None if config.ckpt_path == "last" else config.name
        if self.subcommand == "test":  # an existing folder is continued if it holds the same test
            return RUNS / (name or f"test-{config.benchmark.subject}")
        return run_folder(name, str(self.subcommand), None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's folder, callbacks, atomic checkpoints and the logger to the configured Trainer."""
        configured = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self.folder)
        callbacks = configured.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if configured.get("enable_progress_bar") is not False and not has_bar:
            callbacks = [TQDMProgressBar(), *callbacks]  # not Lightning's choice, which depends on what is installed
        # After each step: log, then stop if there was a signal; the samples and the state of the step follow.
        kwargs["callbacks"] = [TrainingMonitor(), self.graceful_stop, *callbacks]
        plugins = configured.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        kwargs["max_epochs"] = 1
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif configured.get("logger") in (None, True):
            kwargs["logger"] = RunLog(self.folder, self.purge_step)
        # The saved config runs the job again, from its beginning and under a new name.
        config = self.config[self.subcommand]
        config.name, config.ckpt_path = None, None
        stated = configured.get("precision") or any(isinstance(plugin, Precision) for plugin in kwargs["plugins"])
        if not stated:
            kwargs["precision"] = config.trainer.precision = fast_precision(config.trainer.accelerator)
        trainer = super().instantiate_trainer(**kwargs)
        check_arguments({"precision": trainer.precision})  # which a plugin may have set
        return trainer

    def instantiate_classes(self) -> None:
        """Builds everything that the config names.

        Raises:
            InputError: if a class refuses its arguments, or lacks a package.
        """
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except BUILDING as error:
            raise InputError(f"the config cannot be used: {error}") from error

    @cached_property
    def job(self) -> Job:
        """Everything of the verb's run, as one value."""
        sections = (self._get(self.config_init, name) for name in ("samples", "fidelity", "benchmark", "checkpoint"))
        parser: LightningArgumentParser = self._parser(self.subcommand)
        config = self.config[self.subcommand]
        text = parser.dump(config, skip_none=False)
        return Job(self.trainer, self.model, self.datamodule, Callbacks(*sections), config.as_dict(), text)

    def before_fit(self) -> None:
        """Checks everything that can be checked without a model, on every process, and starts the clock."""
        job = self.job
        check_trainer(self.trainer)
        job.module.check_training(self.trainer)
        self._check_model()
        job.data.check()
        job.callbacks.samples.check(job.data)
        job.callbacks.fidelity.check(job.data)
        job.callbacks.checkpointing.check(job.module)
        self.began = time.monotonic()

    def before_validate(self) -> None:
        """Checks the model, the images and the encoders."""
        self._check_model()
        job, fidelity = self.job, self.job.callbacks.fidelity
        if not fidelity.encoders.by_role:
            raise InputError("nothing to measure with: give fidelity.clip_model or fidelity.dino")
        if fidelity.base is None and self.state_path is None and job.module.tuned_files is job.module.files:
            warn("fidelity.base is not given, so the model is compared with itself: it has no drift and no score")
        job.data.check(training=False)
        fidelity.check(job.data)
        if fidelity.measurement:
            self.image_jobs = ImageJobData(fidelity.measurement.batches, job.data.resolution_px)

    def before_test(self) -> None:
        """Checks the model and the subject, and lists the images to draw."""
        self._check_model()
        job = self.job
        precision, encoders = str(self.trainer.precision), job.callbacks.fidelity.encoders
        state = sha256(self.state_path)[:16] if self.state_path else None
        weights = {"model": job.module.tuned_files.fingerprint, "state": state}
        batches = job.callbacks.benchmark.prepare(job.data, self.folder, encoders, weights, precision)
        self.image_jobs = ImageJobData(batches, job.data.resolution_px)

    def before_predict(self) -> None:
        """Checks the prompts, and lists the images to draw."""
        self._check_model()
        job = self.job
        batches = job.callbacks.samples.predict_batches()
        job.callbacks.samples.check(job.data)
        self.image_jobs = ImageJobData(batches, job.data.resolution_px)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Only `fit` reads training data; the other verbs draw image jobs."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs if subcommand == "fit" else kwargs | {"datamodule": self.image_jobs}

    def _check_model(self) -> None:
        """Checks what is trained or drawn with, and that a state belongs to it.

        Raises:
            InputError: if it cannot be, or nothing but untrained adapters would be drawn with.
        """
        training = self.subcommand == "fit"
        self.job.module.check_weights(training, str(self.trainer.precision))
        if not training and self.state_path is None and isinstance(self.job.module.lora, Lora):
            raise InputError("model.lora says how new adapters are trained; give the file of a LoRA, or --ckpt_path")
        if self.state_path is not None:
            check_base(self.state_path, self.trained_from, self.job.data.files.fingerprint)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Trains while no other `fit` writes to the folder."""
        with explained(self.folder), locked(self.folder):
            self.trainer.fit(*args, **kwargs)

    def after_fit(self) -> None:
        """Prints the summary; raises Stopped if a signal ended the run."""
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
        """Prints the metrics and their files."""
        fidelity = self.job.callbacks.fidelity
        if self.trainer.is_global_zero and fidelity.measurement:
            print(metrics_table(fidelity.history[-1], fidelity.measurement.base, fidelity.measurement.ceiling))
            print(f"{self.folder.name}: metrics in {self.folder / TABLE}, images in {self.folder / VALIDATION}")

    def after_test(self) -> None:
        """Measures the images of all processes, and prints the summary."""
        if self.trainer.is_global_zero:
            print(self.job.callbacks.benchmark.measure(self.trainer.strategy.root_device))
            print(f"{self.folder.name}: a row per image in {self.folder}/images.csv, the table in summary.md")

    def after_predict(self) -> None:
        """Prints the folder of the images."""
        if self.trainer.is_global_zero:
            count = sum(map(len, self.image_jobs.batches))
            print(f"{self.folder.name}: {count} images and grid.png in {self.folder}")
