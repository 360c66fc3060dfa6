"""The front door: `python -m lightning_dreambooth fit | predict`."""

import itertools
import re
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_dreambooth.callbacks import EXPORTS, SAMPLES, STATE, Keep, Samples
from lightning_dreambooth.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.data import DreamBoothData
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.watch import Watch

PROG = "python -m lightning_dreambooth"
RUNS = Path("checkpoints")
EXAMPLE = Path(__file__).parent.parent / "configs" / "toon.yaml"

TRAINER_DEFAULTS = {
    "enable_checkpointing": False,  # Keep does it
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "max_epochs": 1,  # one long epoch; max_steps is the length of a run
    "use_distributed_sampler": False,  # ShardedOrder does it
}


class DreamBoothCLI(LightningCLI):
    """LightningCLI with the sections `model`, `data`, `trainer`, `checkpoint`, `samples`, and a name for the run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that train or sample."""
        every = LightningCLI.subcommands()
        return {verb: every[verb] for verb in ("fit", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our sections, and links each value that two sections need, so that it is given once."""
        parser.add_argument(
            "--name", type=str | None, default=None,
            help="Name of the run; everything it writes lies in checkpoints/<name>. (default: the config's name)",
        )  # fmt: skip
        parser.add_lightning_class_args(Keep, "checkpoint")
        parser.add_lightning_class_args(Samples, "samples")
        for key in ("pretrained", "vae", "revision", "variant", "prior_weight", "train_text_encoder"):
            parser.link_arguments(f"model.{key}", f"data.{key}")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("samples.batch_size", "data.sample_batch_size")
        parser.link_arguments(
            "samples", "data.requests", lambda samples: samples.requests(samples.prompts or []), apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given words, or the example's config."""
        self.config = parser.parse_args(with_example(sys.argv[1:] if args is None else args))

    def _parse_ckpt_path(self) -> None:
        """Leaves the parsed arguments alone: what is asked for wins over the checkpoint (Lightning#21455)."""

    def before_instantiate_classes(self) -> None:
        """Names the run, and finds the state to go on from."""
        config = self.config[self.subcommand]
        configs = [Path(str(path)) for path in config.get("config") or []]
        default = default_name(configs)
        state = find_state(config.get("ckpt_path"), config.name or default)
        if self.subcommand == "predict":
            default, resumed = "predict", None
        else:
            resumed = state
        self.folder = run_folder(config.name, default, resumed)
        config.ckpt_path = None if state is None else str(state)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Sets where a run writes, and how."""
        given = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self.folder)
        kwargs["plugins"] = [*(given.get("plugins") or []), AtomicCheckpointIO()]
        if self.subcommand == "predict":
            kwargs["logger"] = False
        elif given.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(RUNS, name=self.folder.name, version="", default_hp_metric=False)
        # The saved config runs the job again, from its beginning and under a name of its own.
        config = self.config[self.subcommand]
        config.name, config.ckpt_path = None, None
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Starts the clock."""
        self.began = time.monotonic()

    def after_fit(self) -> None:
        """Says what was achieved and where it lies."""
        if not self.trainer.is_global_zero:
            return
        steps, loss = self.trainer.global_step, self.trainer.callback_metrics.get("train/loss")
        if loss is None:
            print(f"{self.folder.name}: nothing was trained, {steps} steps were done before; raise trainer.max_steps")
            return
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        moved = ", ".join(f"{name} moved {float(by):.2%}" for name, by in self.model.relative_changes().items())
        newest = max((self.folder / EXPORTS).iterdir())
        print(
            f"{self.folder.name}: {steps} steps in {minutes} min {seconds} s, last loss {float(loss):.4f}, {moved}; "
            f"pictures in {self.folder / SAMPLES}, log: tensorboard --logdir {RUNS}, pipeline in {newest}"
        )

    def after_predict(self) -> None:
        """Says where the pictures lie."""
        print(f"{self.folder.name}: {len(self.datamodule.requests)} pictures and grid.png in {self.folder}")


class LogConfig(SaveConfigCallback):
    """Writes the whole config beside the run and into its log."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, by the first process."""
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")


def default_name(configs: list[Path]) -> str:
    """The last config's name; that of its folder if it is the `config.yaml` of a run."""
    if not configs:
        return "dreambooth"
    return configs[-1].resolve().parent.name if configs[-1].name == "config.yaml" else configs[-1].stem


def find_state(ckpt_path: str | None, name: str) -> Path | None:
    """`--ckpt_path` => the state it means; `last` is the newest of the runs of that name.

    Raises:
        InputError: if there is none.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise InputError(f"ckpt_path {ckpt_path} is not a file; give a {STATE} or 'last'")
        return Path(ckpt_path)
    runs = re.compile(rf"{re.escape(name)}(-\d+)?")
    states = [state for state in RUNS.glob(f"*/{STATE}") if runs.fullmatch(state.parent.name)]
    if not states:
        raise InputError(f"there is no state to resume in {RUNS / name}; leave out --ckpt_path")
    return max(states, key=lambda state: state.stat().st_mtime)


def run_folder(name: str | None, default: str, resumed: Path | None) -> Path:
    """Where a run writes: where the resumed state lies, in a folder of the given name, or of a free one.

    Raises:
        InputError: if the given name is taken by another run.
    """
    if resumed and resumed.parent.parent == RUNS and name in (None, resumed.parent.name):
        return resumed.parent
    if name is None:
        free = (RUNS / (default if number == 1 else f"{default}-{number}") for number in itertools.count(1))
        return next(folder for folder in free if not folder.exists())
    if (RUNS / name).exists():
        raise InputError(
            f"{RUNS / name} is taken by another run; choose another name, or add --ckpt_path last to go on"
        )
    return RUNS / name


def with_example(args: list[str]) -> list[str]:
    """`fit` without a config and without model or data flags learns the bundled character."""
    own = ("-c", "--config", "--model", "--data", "-h", "--help", "--print_config")
    if args[:1] != ["fit"] or any(word.startswith(own) for word in args[1:]):
        return args
    if not EXAMPLE.is_file():
        raise InputError(f"the example {EXAMPLE.name} is not installed here; give --config")
    return ["fit", "--config", str(EXAMPLE), *args[1:]]


def main(args: list[str] | None = None) -> DreamBoothCLI:
    """Runs a verb; wrong input ends in one line and exit code 2, a failed training in one line and exit code 1."""
    try:
        return DreamBoothCLI(
            DreamBooth, DreamBoothData,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS | {"callbacks": [Watch()]},
            save_config_callback=LogConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": PROG, "exit_on_error": False},
        )  # fmt: skip
    except (InputError, ArgumentError) as error:
        sys.exit(_complain(error, 2))
    except TrainingError as error:
        sys.exit(_complain(error, 1))


def _complain(error: Exception, code: int) -> int:
    print(f"{PROG}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
