"""`python -m lightning_dreambooth`."""

from lightning_dreambooth.cli import main

if __name__ == "__main__":
    main()
