"""Comparison of the files of runs, to the bit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def left_behind(name: str) -> dict[str, object]:
    """Everything that a run has written, except times."""
    folder = Path("runs", name)
    state = torch.load(folder / "states/step-000006.ckpt", weights_only=True)
    log = EventAccumulator(str(folder)).Reload()
    curves = {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    for timed in ("train/samples_per_second", "val/seconds"):
        curves.pop(timed)
    files = [*folder.glob("samples/*.png"), *folder.glob("validation/*.png"), folder / "validation.csv"]
    images = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    exported = {path.parent.name: load_file(path) for path in folder.rglob("exports/step-000006/**/*.safetensors")}
    saved = ("state_dict", "optimizer_states", "lr_schedulers", "DreamBoothData", "global_step")
    grids = [event.step for event in log.Images("samples")]
    return {key: state[key] for key in saved} | {
        "curves": curves, "images": images, "exports": exported, "grids in the log": grids,
    }  # fmt: skip


def assert_same(a: object, b: object, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, where)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where
