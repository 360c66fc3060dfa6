"""LightningDataModule of image jobs, for `validate`, `test` and `predict`."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from lightning_dreambooth.diffusion.requests import ImageJob
from lightning_dreambooth.distributed import shard


class ImageJobData(pl.LightningDataModule):
    """Batches of image jobs for `validate`, `test` and `predict`, shared between all processes.

    Args:
        batches: The batches, the same on every process.
        resolution_px: Side of the images.
    """

    def __init__(self, batches: Sequence[list[ImageJob]], resolution_px: int) -> None:
        super().__init__()
        self.batches = batches
        self.resolution_px = resolution_px

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Returns the batch unchanged: jobs hold no tensors, and Lightning refuses frozen dataclasses."""
        return batch

    def predict_dataloader(self) -> DataLoader[Any]:
        """The batches of this process, or one empty batch."""
        return DataLoader(shard(self.batches) or [[]], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """The batches of this process, or one empty batch."""
        return self.predict_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        """The batches of this process, or one empty batch."""
        return self.predict_dataloader()
