from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

Run = Callable[..., object]


def test_adapters_train_and_are_exported(run: Run) -> None:
    cli = run(
        "fit",
        "--model.lora.rank=4",
        "--model.lora.dora=false",
        model__ema_decay=0.9,
        model__optimizer="torch.optim.AdamW",
        model__optimizer__lr=1e-2,
    )
    assert all(change > 0 for change in cli.model.relative_changes().values())
    state = torch.load(cli.folder / "states/step-000004.ckpt", weights_only=True)
    print(len(state["state_dict"]), Path(cli.folder / "states/step-000004.ckpt").stat().st_size)
    StableDiffusionPipeline.from_pretrained(cli.folder / "exports/step-000004", low_cpu_mem_usage=False)
    run(
        "fit",
        "--model.lora.rank=4",
        name="dreambooth",
        ckpt_path="last",
        trainer__max_steps=6,
        model__ema_decay=0.9,
        model__optimizer="torch.optim.AdamW",
        model__optimizer__lr=1e-2,
    )
