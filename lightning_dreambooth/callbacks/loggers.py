"""What a run tells its loggers: each function gives to every logger of the trainer what that logger can show.

Lightning's own `log_metrics` knows all of them already; images and texts have another call in each.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torchvision.transforms.functional import pil_to_tensor


def log_metrics(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Gives numbers by tag to every logger. Tags begin with the section they are shown in.

    `train/` has losses, `val/` metrics; `watch/` has what is looked at when something is wrong (norms of gradients,
    learning rates, weight changes), so that the first two open in front of it.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step)


def log_image(trainer: pl.Trainer, name: str, image: Image.Image, step: int) -> None:
    """Gives an RGB image to TensorBoard and Weights & Biases; it is on TensorBoard's disk when this returns."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pil_to_tensor(image), step)  # (3, height, width) of bytes
            logger.experiment.flush()
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)


def log_text(trainer: pl.Trainer, name: str, text: str) -> None:
    """Gives a text to TensorBoard, which shows it as Markdown, and to Weights & Biases, as a table of one cell."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, columns=[name], data=[[text]])


def log_config(trainer: pl.Trainer, text: str, values: Mapping[str, Any]) -> None:
    """Gives the config of a run to every logger.

    Args:
        trainer: Whose loggers.
        text: YAML, which TensorBoard shows.
        values: The same as nested dictionaries, by which other loggers sort and filter runs.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # Its table of hyper-parameters wants a final metric with them, which no one knows at the start of a run.
            logger.experiment.add_text("config", f"```yaml\n{text}\n```")
        else:
            logger.log_hyperparams(dict(values))


def log_layout(trainer: pl.Trainer, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Tells TensorBoard which tags belong in one chart: section => title => patterns of tags."""
    lines = {section: {title: ["Multiline", tags] for title, tags in of.items()} for section, of in charts.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(lines)


def flush(trainer: pl.Trainer) -> None:
    """Writes to disk what TensorBoard's loggers still hold, so that a state never knows more than the log."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
