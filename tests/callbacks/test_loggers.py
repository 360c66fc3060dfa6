"""Every logger of a trainer receives everything that it can show."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dreambooth.callbacks import loggers

IMAGE = Image.effect_noise((24, 16), 80).convert("RGB")
CONFIG = {"seed_everything": 3, "model": {"prior_weight": 0.5, "pretrained": "tiny"}}


class Written(WandbLogger):
    """A logger for Weights & Biases that records the calls; wandb need not be installed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append(("metrics", metrics, step))

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append(("image", key, images, step))

    def log_hyperparams(self, params: Any) -> None:
        self.calls.append(("config", params))


def trainer(*loggers: Any) -> pl.Trainer:
    return pl.Trainer(logger=list(loggers), accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)


def log_everything(to: pl.Trainer) -> None:
    loggers.log_metrics(to, {"train/loss": 0.25, "watch/learning_rate/unet": 1e-5}, 7)
    loggers.log_image(to, "samples", IMAGE, 7)
    loggers.log_config(to, "seed_everything: 3", CONFIG)
    loggers.log_layout(to, {"metrics": {"clip_i": ["val/clip_i$", "val/clip_i/base$"]}})
    loggers.flush(to)


def test_two_tensorboards_both_show_everything(tmp_path: Path) -> None:
    both = [TensorBoardLogger(tmp_path, name=name, version="", default_hp_metric=False) for name in ("a", "b")]
    log_everything(trainer(*both))
    for name in ("a", "b"):
        log = EventAccumulator(str(tmp_path / name)).Reload()
        scalars = {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
        assert scalars == {"train/loss": [(7, 0.25)], "watch/learning_rate/unet": [(7, pytest.approx(1e-5))]}
        (shown,) = log.Images("samples")
        assert shown.step == 7
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), np.asarray(IMAGE))
        texts = {tag: log.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in log.Tags()["tensors"][:1]}
        assert texts == {"config/text_summary": "```yaml\nseed_everything: 3\n```"}
        assert b"val/clip_i/base$" in log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


def test_weights_and_biases_receives_the_same_beside_tensorboard(tmp_path: Path) -> None:
    written = Written()
    log_everything(trainer(TensorBoardLogger(tmp_path), written))
    assert written.calls == [
        ("metrics", {"train/loss": 0.25, "watch/learning_rate/unet": 1e-5}, 7),
        ("image", "samples", [IMAGE], 7),
        ("config", CONFIG),
    ]


def test_wandb_itself_accepts_everything_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    log_everything(trainer(logger))
    config, summary = dict(logger.experiment.config), dict(logger.experiment.summary)
    wandb.finish()
    assert config == CONFIG
    assert (summary["train/loss"], summary["trainer/global_step"]) == (0.25, 7)
    (file,) = tmp_path.rglob("samples_*.png")
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(IMAGE))


def test_other_loggers_receive_metrics_and_the_config(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_everything(trainer(logger))
    logger.save()
    assert "0.25" in (tmp_path / "csv/metrics.csv").read_text()
    assert "prior_weight: 0.5" in (tmp_path / "csv/hparams.yaml").read_text()


def test_a_trainer_without_a_logger_logs_nothing() -> None:
    log_everything(trainer())
