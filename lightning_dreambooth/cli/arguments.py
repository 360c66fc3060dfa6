"""Arguments of the command line: sections, links between them, and the example as the default."""

from pathlib import Path

from pytorch_lightning.cli import LightningArgumentParser

from lightning_dreambooth.bounds import MAX_SEED, check_range
from lightning_dreambooth.callbacks.checkpointing import Checkpointing
from lightning_dreambooth.callbacks.paper_benchmark import PaperBenchmark
from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.callbacks.validation import Fidelity
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.module import DreamBooth

EXAMPLE = Path(__file__).parent.parent.parent / "configs" / "toon.yaml"

VERBS = {
    "fit": "fine-tune on instance images, with class images for prior preservation, and export the model or a LoRA",
    "validate": "measure identity, prompt following and drift of a model or state",
    "test": "run the DreamBooth paper's protocol for one trained model and one subject",
    "predict": "draw images for prompts",
}
# Each section configures one class; the last callback is Checkpointing, so that everything else of a step is written
# before its state.
SECTIONS: dict[str, type] = {
    "model": DreamBooth,
    "data": DreamBoothData,
    "samples": Samples,
    "fidelity": Fidelity,
    "benchmark": PaperBenchmark,
    "checkpoint": Checkpointing,
}
MAX_NAME = 240  # bytes; most disks take 255, and a number may follow
TOOLS = {
    "plan": "print the memory and time that `fit` with the same options needs, and what to change if it does not fit",
    "prepare": "make a folder of instance images of comic pages or raw photos",
    "tokens": "show how a model reads a prompt, and what its identifier means to it before training",
    "study": "run many fits from one file, and report their figures and metrics",
    "export": "write a finished model as a diffusers folder, a single file or a LoRA",
}


def add_sections(parser: LightningArgumentParser) -> None:
    """Adds the sections, and links each value that two sections need, so that it is given once."""
    parser.add_argument(
        "--name", type=str | None, default=None,
        help="Name of the run; everything it writes lies in runs/<name>. With --ckpt_path last, validate, test and "
        "predict read the newest state of the run of that name. (default of fit: the names of the configs, or "
        "dreambooth; of test: test-<subject>; of the others: the verb)",
    )  # fmt: skip
    for section, kind in SECTIONS.items():
        parser.add_lightning_class_args(kind, section)
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments("fidelity.base_dir", "samples.base_dir")
    parser.link_arguments("model", "data.training_setup", lambda module: module.training_setup, apply_on="instantiate")


def check_seed_everything(seed: object) -> None:
    """Raises InputError if the seed of a run is not a number that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed_everything is {seed}, must be a number: all random draws are functions of it")
    check_range("seed_everything", seed, 0, MAX_SEED)


def check_name(name: str) -> None:
    """Raises InputError if a run cannot have that name: a folder in runs/, or one in a folder there."""
    parts = name.split("/")
    if not (name.isprintable() and all(0 < len(part.encode()) <= MAX_NAME and part[0] != "." for part in parts)):
        raise InputError(
            f"the run's name is {name[:MAX_NAME]!r}, must name a folder in runs/: printable, at most {MAX_NAME} bytes, "
            "without parts that are empty or begin with a dot; give another --name"
        )


def check_words(argv: list[str]) -> None:
    """Raises InputError if a whole section is given as one value: the parser would read it as a path."""
    for word in argv:
        name = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and name in (*SECTIONS, "trainer"):
            raise InputError(f"--{name} is a section; give its keys, such as --{name}.KEY VALUE, or a config by -c")


def with_example(argv: list[str]) -> list[str]:
    """Adds the example's config to `fit` if there is neither a config nor a model or data option."""
    prefixes = ("-c", "--config", "--model", "--data", "-h", "--help")
    if argv[:1] != ["fit"] or any(argument.startswith(prefixes) for argument in argv[1:]):
        return argv
    if not EXAMPLE.is_file():
        raise InputError(f"the example {EXAMPLE.name} is not installed here; give --config")
    return ["fit", "--config", str(EXAMPLE), *argv[1:]]
