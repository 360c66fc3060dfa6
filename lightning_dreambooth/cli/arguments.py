"""What can be given on the command line: sections, links between them, and the example in place of nothing."""

import importlib
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser
from torch.optim import Optimizer

from lightning_dreambooth.callbacks.checkpointing import Checkpointing
from lightning_dreambooth.callbacks.paper_benchmark import Benchmark
from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.callbacks.validation import Fidelity
from lightning_dreambooth.errors import InputError

EXAMPLE = Path(__file__).parent.parent.parent / "configs" / "toon.yaml"


def add_sections(parser: LightningArgumentParser) -> None:
    """Adds our sections, and links each value that two sections need, so that it is given once."""
    parser.add_argument(
        "--name", type=str | None, default=None,
        help="Name of the run; everything it writes lies in runs/<name>. With --ckpt_path last, validate, "
        "test and predict take it for the run whose state draws. (default of fit: the config's name or dreambooth; of "
        "test: test-<subject>; else the verb)",
    )  # fmt: skip
    parser.add_lightning_class_args(Samples, "samples")
    parser.add_lightning_class_args(Fidelity, "fidelity")
    parser.add_lightning_class_args(Benchmark, "benchmark")
    parser.add_lightning_class_args(
        Checkpointing, "checkpoint"
    )  # last: a state says that all else of its step is there
    for key in ("pretrained", "vae", "revision", "variant", "prior_weight", "train_text_encoder"):
        parser.link_arguments(f"model.{key}", f"data.{key}")
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments("seed_everything", "data.seed")
    parser.link_arguments("samples.batch_size", "data.sample_batch_size")
    parser.link_arguments(
        "samples", "data.requests", lambda samples: samples.requests(samples.prompts or []), apply_on="instantiate"
    )
    parser.link_arguments("fidelity", "data.protocol", lambda fidelity: fidelity.protocol, apply_on="instantiate")


def check_optimizer(given: Any) -> None:
    """Refuses whatever is no optimizer: the parser would call any function that a config names.

    Raises:
        InputError: if it is none.
    """
    path = getattr(given, "class_path", None)
    if path is None:
        return
    module, _, name = str(path).rpartition(".")
    kind = getattr(importlib.import_module(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise InputError(f"model.optimizer is {path}, which is no torch.optim.Optimizer")


def with_example(args: list[str]) -> list[str]:
    """`fit` without a config and without model or data flags learns the bundled character."""
    own = ("-c", "--config", "--model", "--data", "-h", "--help")
    if args[:1] != ["fit"] or any(word.startswith(own) for word in args[1:]):
        return args
    if not EXAMPLE.is_file():
        raise InputError(f"the example {EXAMPLE.name} is not installed here; give --config")
    return ["fit", "--config", str(EXAMPLE), *args[1:]]
