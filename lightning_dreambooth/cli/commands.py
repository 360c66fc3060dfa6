"""fit, validate, test and predict: where each writes, what it checks beforehand, what it says at the end."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from lightning_dreambooth.callbacks.checkpointing import EXPORTS, Checkpointing
from lightning_dreambooth.callbacks.monitor import TrainingMonitor
from lightning_dreambooth.callbacks.paper_benchmark import Benchmark
from lightning_dreambooth.callbacks.samples import SAMPLES, Samples
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.callbacks.validation import TABLE, VALIDATION, Fidelity
from lightning_dreambooth.cli.arguments import add_sections, check_optimizer, with_example
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.errors import InputError, Stopped
from lightning_dreambooth.evaluation.tables import best_first, choice, metrics_table, share_of_training
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.saving.runs import RUNS, default_name, is_first, run_folder
from lightning_dreambooth.saving.states import check_base, find_state, newest_first, read_state

STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # tried; others keep parts of the weights in each process


class DreamBoothCLI(LightningCLI):
    """LightningCLI with a section for each part of a run, and its name."""

    folder = RUNS  # until the run has a name
    state_path: Path | None = None
    purge_step: int | None = None

    def __init__(self, graceful_stop: GracefulStop, *args: Any, **kwargs: Any) -> None:
        self.graceful_stop = graceful_stop
        try:
            super().__init__(*args, **kwargs)
        finally:
            for folder in (self.folder, RUNS) if is_first() else ():
                with suppress(OSError):  # it is not empty, as that of a run that has written something
                    folder.rmdir()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that train, measure or sample."""
        every = LightningCLI.subcommands()
        return {verb: every[verb] for verb in ("fit", "validate", "test", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our sections."""
        add_sections(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given words, or the example's config."""
        try:
            self.config = parser.parse_args(with_example(sys.argv[1:] if args is None else args))
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"a config cannot be read as YAML ({error})") from error

    def _parse_ckpt_path(self) -> None:
        """Leaves the parsed arguments alone: what is asked for wins over the checkpoint (Lightning#21455)."""

    def before_instantiate_classes(self) -> None:
        """Looks at what the parser would call, and names the run."""
        config = self.config[self.subcommand]
        check_optimizer(config.model.optimizer)
        self.name_run(config)
        config.weights_only = True

    def name_run(self, config: Any) -> None:
        """Says where the run writes, and which state it goes on from."""
        configs = [Path(str(path)) for path in config.get("config") or []]
        default = default_name(configs)
        self.state_path = find_state(config.get("ckpt_path"), config.name, default)
        begins = config.get("ckpt_path") == "last" and self.state_path is None
        self.purge_step = 0 if begins else None  # what was logged after the state is logged again
        if self.state_path is not None:
            state = read_state(self.state_path)
            self.purge_step, self.trained_from = state["global_step"] + 1, state["DreamBoothData"].get("base_model")
        if self.subcommand != "fit":
            if begins:
                whose = RUNS / (config.name or default)
                raise InputError(f"there is no state in {whose}; name another run, or leave out --ckpt_path")
            # With `last`, the name has said whose state draws, and is taken.
            own = None if config.ckpt_path == "last" else config.name
            if self.subcommand == "test":  # goes on with its own images, and refuses what is not its own
                self.folder = RUNS / (own or f"test-{config.benchmark.subject}")
            else:
                self.folder = run_folder(own, str(self.subcommand), None)
        elif begins:
            self.folder = RUNS / (config.name or default)
            print(f"{self.folder} has no state yet: it begins at step 0", file=sys.stderr)
        else:
            self.folder = run_folder(config.name, default, self.state_path)
        config.ckpt_path = None if self.state_path is None else str(self.state_path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Sets where a run writes, and how."""
        given = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self.folder)
        callbacks = given.get("callbacks") or []
        # Logged first, and ended first if a signal came; the samples and the state of a step come after.
        first = [TrainingMonitor(), self.graceful_stop]
        kwargs["callbacks"] = [*first, *(callbacks if isinstance(callbacks, list) else [callbacks])]
        kwargs["plugins"] = [*(given.get("plugins") or []), AtomicCheckpointIO()]
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif given.get("logger") in (None, True):
            name = str(self.folder.relative_to(RUNS))
            options: dict[str, Any] = {"name": name, "version": "", "default_hp_metric": False}
            options["purge_step"] = self.purge_step
            kwargs["logger"] = TensorBoardLogger(RUNS, **options)
        # The saved config runs the job again, from its beginning and under a name of its own.
        config = self.config[self.subcommand]
        config.name, config.ckpt_path = None, None
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise InputError(f"trainer: {error}") from error

    def before_fit(self) -> None:
        """Checks everything that can be checked without a model, on every process, and starts the clock."""
        if self.trainer.max_steps < 1:
            raise InputError("trainer.max_steps must be 1 or more: the length of the training in optimizer steps")
        strategy = self.trainer.strategy
        if type(strategy) not in STRATEGIES or isinstance(strategy.launcher, _MultiProcessingLauncher):
            raise InputError(
                f"trainer.strategy {type(strategy).__name__} cuts up weights that exports need whole, or forks; "
                "use ddp, and configs/low_memory.yaml if memory is short"
            )
        self._check_base()
        self.datamodule.check()
        self.fidelity.check(self.datamodule)
        self.began = time.monotonic()

    @property
    def fidelity(self) -> Fidelity:
        """The section of that name."""
        return self._get(self.config_init, "fidelity")

    @property
    def config_text(self) -> str:
        """The whole config of the verb, as YAML."""
        parser: LightningArgumentParser = self._parser(self.subcommand)
        return parser.dump(self.config[self.subcommand], skip_none=False)

    @property
    def keep(self) -> Checkpointing:
        """The section `checkpoint`."""
        return self._get(self.config_init, "checkpoint")

    @property
    def samples(self) -> Samples:
        """The section of that name."""
        return self._get(self.config_init, "samples")

    def before_validate(self) -> None:
        """Checks what is to be measured."""
        self._check_base()
        if self.fidelity.protocol is None:
            raise InputError("nothing to measure with: give fidelity.clip_model or fidelity.dino")
        if self.fidelity.protocol.base is None and self.state_path is None:
            warn("fidelity.base is not given, so the model is compared with itself: it has no drift and no score")
        self.datamodule.check(training=False)
        self.fidelity.check(self.datamodule)
        self._check_shares(len(self.datamodule.probe_batches), "fidelity.batch_size")

    def before_test(self) -> None:
        """Checks what is to be tested, and plans the images that are not there yet."""
        self._check_base()
        encoders = [encoder for encoder in (self.fidelity.clip, self.fidelity.dino) if encoder]
        self.benchmark.plan(self.datamodule, self.folder, encoders, self.state_path, str(self.trainer.precision))

    @property
    def benchmark(self) -> Benchmark:
        """The section of that name."""
        return self._get(self.config_init, "benchmark")

    def before_predict(self) -> None:
        """Checks what is to be drawn."""
        self._check_base()
        self.datamodule.check_requests()
        self._check_shares(len(self.datamodule.request_batches), "samples.batch_size")

    def _check_shares(self, batches: int, knob: str) -> None:
        if batches < self.trainer.world_size:
            raise InputError(f"{batches} batches are too few for {self.trainer.world_size} processes; lower {knob}")

    def _check_base(self) -> None:
        if self.state_path is not None:
            check_base(self.state_path, self.trained_from, self.datamodule.files.fingerprint)

    def after_fit(self) -> None:
        """Says what was achieved and where it lies."""
        if self.trainer.is_global_zero:
            self._summarize()
        number = self.graceful_stop.agreed
        if number:
            raise Stopped(
                number,
                f"stopped by {signal.Signals(number).name} after step {self.trainer.global_step}, which is saved; "
                f"go on with --name {self.folder.relative_to(RUNS)} --ckpt_path last",
                agreed=True,
            )

    def _summarize(self) -> None:
        steps, loss = self.trainer.global_step, self.trainer.callback_metrics.get("train/loss")
        if loss is None:
            print(
                f"{self.folder.name}: nothing was trained, {steps} steps were done before; raise trainer.max_steps"
                " or fidelity.patience"
            )
            return
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        moved = ", ".join(f"{name} moved {float(by):.2%}" for name, by in self.model.relative_changes().items())
        if said := choice(self.fidelity.history):
            trained = self.datamodule.samples_seen(steps) * (1 + self.datamodule.with_prior)
            print(f"{self.folder.name}: {said}; measuring took {share_of_training(self.fidelity.evaluations, trained)}")
        chosen = [self.folder / EXPORTS / f"step-{row['step']:06d}" for row in best_first(self.fidelity.history)]
        export = next((folder for folder in chosen if folder.is_dir()), newest_first(self.folder / EXPORTS)[0])
        print(
            f"{self.folder.name}: {steps} steps in {minutes} min {seconds} s, last loss {float(loss):.4f}, {moved}; "
            f"images in {self.folder / SAMPLES}, log: tensorboard --logdir {RUNS}, pipeline in {export}"
        )

    def after_validate(self) -> None:
        """Shows the figures, and says where they lie."""
        if self.trainer.is_global_zero:
            print(metrics_table(self.fidelity.history[-1], self.fidelity.untuned, self.fidelity.ceiling))
            print(f"{self.folder.name}: figures in {self.folder / TABLE}, images in {self.folder / VALIDATION}")

    def after_test(self) -> None:
        """Measures what all processes have drawn."""
        if self.trainer.is_global_zero:
            print(self.benchmark.measure(self.trainer.strategy.root_device))
            print(f"{self.folder.name}: a row per image in {self.folder}/images.csv, the table in summary.md")

    def after_predict(self) -> None:
        """Says where the images lie."""
        if self.trainer.is_global_zero:
            print(f"{self.folder.name}: {len(self.datamodule.requests)} images and grid.png in {self.folder}")
