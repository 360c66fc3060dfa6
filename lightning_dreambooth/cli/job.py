"""Job: trainer, module, data, callbacks and config of a run, as one value."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from pytorch_lightning import Trainer

from lightning_dreambooth.callbacks.checkpointing import Checkpointing
from lightning_dreambooth.callbacks.paper_benchmark import PaperBenchmark
from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.callbacks.validation import Fidelity
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.module import DreamBooth


class Callbacks(NamedTuple):
    """The callbacks that have a section of their own."""

    samples: Samples
    fidelity: Fidelity
    benchmark: PaperBenchmark
    checkpointing: Checkpointing


@dataclass(frozen=True)
class Job:
    """Everything of a run, built but not started.

    Attributes:
        trainer: Lightning's Trainer.
        module: The LightningModule.
        data: The LightningDataModule.
        callbacks: The callbacks with a section of their own.
        config: The whole config, as plain values.
        config_text: The same as YAML.
    """

    trainer: Trainer
    module: DreamBooth
    data: DreamBoothData
    callbacks: Callbacks
    config: dict[str, Any]
    config_text: str
