import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.trainer_arguments import ARGUMENTS, AS_IN_LIGHTNING, fast_precision

Run = Callable[..., DreamBoothCLI]
Complaint = Callable[..., str]


def test_every_argument_of_the_trainer_has_its_place_in_one_table() -> None:
    assert sorted([*ARGUMENTS, *AS_IN_LIGHTNING]) == sorted(inspect.signature(Trainer).parameters)


REFUSED = {
    "accelerator": ["gpu", "cuda", "tpu", "mps", "hpu", "abacus"],
    "strategy": ["fsdp", "deepspeed", "ddp_spawn", "ddp_notebook", "xla", "model_parallel", "no_such", "dp"],
    "devices": [0, -2, 10**9, "x", "[0,0]", "[]", 1.5],
    "num_nodes": [0, -1, 10**9, 1.5],
    "precision": ["16-true", "bf16-true", "64", "64-true", 64, "transformer-engine", "transformer-engine-float16", "8"],
    "logger": ["wandb", "pytorch_lightning.loggers.WandbLogger", "pytorch_lightning.loggers.MLFlowLogger",
               "pytorch_lightning.loggers.CometLogger", "pytorch_lightning.loggers.NeptuneLogger"],
    "callbacks": ["{class_path: pytorch_lightning.callbacks.EarlyStopping}", "ModelCheckpoint", "3",
                  "{class_path: ModelCheckpoint, init_args: {save_top_k: -3}}",
                  "{class_path: RichProgressBar, init_args: {refresh_rate: x}}"],
    "fast_dev_run": ["true", 1, 3],
    "max_epochs": [0, 2, 1000, -2],
    "min_epochs": [1, 2],
    "max_steps": [0, -1, -2, 10**12, 1.5, "x", ".nan"],
    "min_steps": [1, 5],
    "max_time": ["soon", "1:2", "{hours: x}"],
    "limit_train_batches": [0, -1, 0.0, 1.5, ".nan", 10**12],
    "limit_val_batches": [0, 1, 0.5, 2], "limit_test_batches": [0, 1, 0.5, 2], "limit_predict_batches": [0, 1, 0.5, 2],
    "overfit_batches": [1, 0.5, 10],
    "val_check_interval": [1, 2, 0.5, "00:00:00:10"],
    "check_val_every_n_epoch": [2, 0, -1],
    "num_sanity_val_steps": [2, -1],
    "log_every_n_steps": [0, -1, 10**12, 1.5],
    "enable_checkpointing": ["true"],
    "enable_progress_bar": [2, "x"], "enable_model_summary": [2, "x"],
    "accumulate_grad_batches": [0, -1, 10**12, 1.5],
    "gradient_clip_val": [-1, ".nan", ".inf", "x"],
    "gradient_clip_algorithm": ["max", ""],
    "deterministic": ["x", 3], "benchmark": ["x", 3], "inference_mode": ["x", 3],
    "use_distributed_sampler": ["true"],
    "profiler": ["no_such"],
    "detect_anomaly": ["x", 3],
    "barebones": ["true"],
    "plugins": ["no_such", "pytorch_lightning.plugins.HalfPrecision", "pytorch_lightning.plugins.DoublePrecision",
                "pytorch_lightning.plugins.TorchCheckpointIO"],
    "sync_batchnorm": ["x", 3],
    "reload_dataloaders_every_n_epochs": [1, -1],
    "default_root_dir": ["elsewhere"],
    "enable_autolog_hparams": ["x", 3],
    "model_registry": ["x"],
}  # fmt: skip
PAIRS = [(name, value) for name, values in REFUSED.items() for value in values]


def test_every_argument_has_values_that_are_tried() -> None:
    assert {*REFUSED} == {*inspect.signature(Trainer).parameters}


@pytest.mark.parametrize(("name", "value"), PAIRS)
def test_a_wrong_argument_of_the_trainer_ends_in_one_line_before_a_model_is_loaded(
    complaint: Complaint, here: Path, name: str, value: object
) -> None:
    before = sorted(here.rglob("*"))
    line = complaint(**{f"trainer__{name}": value, "model__pretrained": "nowhere"})
    assert "nowhere" not in line
    assert len(line) < 3000
    assert sorted(here.rglob("*")) == before


WORKS: dict[str, list[Any]] = {
    "strategy": ["auto"], "devices": [1, "auto"], "num_nodes": [1], "precision": ["32-true", "bf16-mixed", 32],
    "logger": ["true", "{class_path: CSVLogger, init_args: {save_dir: logs}}"],
    "max_epochs": [1, -1, "null"], "min_epochs": [0],
    "max_time": ["00:01:00:00"], "limit_train_batches": [1.0, 5], "check_val_every_n_epoch": [1],
    "enable_model_summary": ["true"], "accumulate_grad_batches": [2], "gradient_clip_val": [0.0, "null", 0.5],
    "gradient_clip_algorithm": ["norm", "value"], "deterministic": ["warn", "true"], "benchmark": ["true"],
    "inference_mode": ["false"], "profiler": ["simple", "advanced", "pytorch"], "detect_anomaly": ["true"],
    "plugins": ["pytorch_lightning.plugins.environments.LightningEnvironment"], "sync_batchnorm": ["true"],
    "enable_autolog_hparams": ["false"], "callbacks": ["pytorch_lightning.callbacks.DeviceStatsMonitor"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(max(map(len, WORKS.values()))))
def test_arguments_of_the_trainer_work_together(run: Run, number: int) -> None:
    given = {f"trainer__{name}": values[number] for name, values in WORKS.items() if number < len(values)}
    done = run(**{"trainer__precision": None, "trainer__max_steps": 2} | given)
    assert done.trainer.global_step == 2
    assert Path("runs/dreambooth/exports/step-000002/model_index.json").is_file()


@pytest.mark.parametrize("share", [3, 0.75])
def test_a_part_of_the_batches_ends_a_run_early(run: Run, share: float) -> None:
    assert run(trainer__limit_train_batches=share).trainer.global_step == 3


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")],
)
def test_a_processor_computes_in_bf16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fast_precision("cpu") == precision


def test_a_run_that_states_no_precision_saves_the_one_that_it_took(run: Run) -> None:
    done = run(trainer__precision=None, trainer__max_steps=1)
    assert done.trainer.precision == fast_precision("cpu")
    assert yaml.safe_load((done.folder / "config.yaml").read_text())["trainer"]["precision"] == fast_precision("cpu")
