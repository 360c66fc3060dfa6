"""For notebooks: the curves of a run, and what training has changed in which block."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dreambooth.models.model_files import TRAINABLE, ModelFiles, weights_file
from lightning_dreambooth.optimization import relative_change

# Such as down_blocks.0.attentions, mid_block.resnets, encoder.layers.3, conv_in.
BLOCK = re.compile(r"((?:down|up)_blocks\.\d+\.[a-z]+|mid_block\.[a-z]+|encoder\.layers\.\d+|\w+)")


def curves(run: Path) -> dict[str, dict[int, float]]:
    """What a run has logged: tag => optimizer step => value."""
    log = EventAccumulator(str(run)).Reload()
    return {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}


def block_changes(before: str, after: str) -> dict[str, float]:
    """How far each block of UNet and text encoder has moved, relative to its size; both are hub ids or folders.

    Half-precision files round each weight by up to 0.05 %, which is the least that can be told.
    """
    folders = [ModelFiles(name, None, None, None).folder for name in (before, after)]
    changes = {}
    for part in TRAINABLE:
        old, new = (_weights(folder / part / weights_file(part, None)) for folder in folders)
        blocks: dict[str, list[str]] = {}
        for name in old:
            if old[name].is_floating_point():
                blocks.setdefault(BLOCK.match(name)[1], []).append(name)  # type: ignore[index]
        for block, names in blocks.items():
            now, start = (torch.cat([weights[name].float().flatten() for name in names]) for weights in (new, old))
            changes[f"{part}.{block}"] = float(relative_change(now, start))
    return changes


def _weights(file: Path) -> dict[str, torch.Tensor]:
    """A part's weights; libraries of different age write the text encoder's with or without a first word."""
    return {name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}
