"""Entry point of `python -m lightning_dreambooth` and of the console script, with warnings as single lines."""

import logging
import sys
import warnings

# Messages of libraries that a user can do nothing about.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels for 4-bit weights, not used here
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # advertisements of other products
logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", r".*`isinstance\(treespec, LeafSpec\)`.*")
warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen parts are, on purpose
warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # the first step is always logged
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # cached latents need none
# Fidelity draws between steps, not in Lightning's validation loop.
warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")

from pytorch_lightning.utilities import rank_zero_only  # noqa: E402

from lightning_dreambooth.cli import exporting, tokens  # noqa: E402
from lightning_dreambooth.cli.main import PROG, main  # noqa: E402
from lightning_dreambooth.errors import InputWarning  # noqa: E402

default_format = warnings.formatwarning


def one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning about input as one line, and any other warning with its place in the code."""
    if issubclass(category, InputWarning):
        return f"{PROG}: warning: {message}\n"
    return default_format(message, category, filename, lineno, line)


warnings.formatwarning = one_line
if getattr(rank_zero_only, "rank", 0):  # one process warns for all
    warnings.simplefilter("ignore", InputWarning)


def run() -> None:
    """Runs the verb or tool that the command line names."""
    if sys.argv[1:2] == ["study"]:
        from lightning_dreambooth.study import cli  # imported here: the other verbs need no plots

        cli.main(sys.argv[2:])
    elif sys.argv[1:2] == ["plan"]:
        from lightning_dreambooth.planning import cli as planning  # nor fake tensors

        planning.main(sys.argv[2:])
    elif sys.argv[1:2] == ["prepare"]:
        from lightning_dreambooth.cli import preparing  # nor detectors

        preparing.main(sys.argv[2:])
    elif sys.argv[1:2] == ["tokens"]:
        tokens.main(sys.argv[2:])
    elif sys.argv[1:2] == ["export"]:
        exporting.main(sys.argv[2:])
    else:
        main()


if __name__ == "__main__":
    run()
