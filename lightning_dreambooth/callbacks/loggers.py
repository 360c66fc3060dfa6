"""Logging of metrics, images, configs and chart layouts to every logger of a trainer that can show them.

Lightning's own `log_metrics` works for every logger; images and configs need a different call for each.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torchvision.transforms.functional import pil_to_tensor


def log_metrics(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Logs numbers by tag with every logger. Tags begin with the section that shows them.

    `train/` has losses, `val/` metrics; `watch/` has what explains a problem (gradient norms, learning rates, weight
    changes) and is listed after them.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step)


def log_image(trainer: pl.Trainer, name: str, image: Image.Image, step: int) -> None:
    """Logs an RGB image with TensorBoard, flushed to disk, and with Weights & Biases."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pil_to_tensor(image), step)  # (3, height, width) of bytes
            logger.experiment.flush()
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)


def log_config(trainer: pl.Trainer, text: str, values: Mapping[str, Any]) -> None:
    """Logs the config of a run with every logger.

    Args:
        trainer: The trainer of the loggers.
        text: YAML, which TensorBoard shows.
        values: The same as nested dictionaries, by which other loggers sort and filter runs.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # Its table of hyper-parameters needs a final metric, which does not exist at the start of a run.
            logger.experiment.add_text("config", f"```yaml\n{text}\n```")
        else:
            logger.log_hyperparams(dict(values))


def log_layout(trainer: pl.Trainer, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Groups tags into charts of TensorBoard: section => title => patterns of tags."""
    layout = {name: {title: ["Multiline", tags] for title, tags in section.items()} for name, section in charts.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(layout)


def flush(trainer: pl.Trainer) -> None:
    """Writes buffered events of TensorBoard's loggers to disk, so that the log is complete before a state is saved."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
