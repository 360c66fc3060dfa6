"""`python -m lightning_dreambooth`."""

import logging
import warnings

# What libraries say that a user can do nothing about.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels for 4-bit weights, which nothing here has
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # other products
warnings.filterwarnings("ignore", r".*`isinstance\(treespec, LeafSpec\)`.*")
warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen parts are, on purpose
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # cached latents need none

from lightning_dreambooth.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
