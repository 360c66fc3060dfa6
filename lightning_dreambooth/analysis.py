"""Curves of a run and weight changes by block, for notebooks."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.weight_files import TRAINABLE
from lightning_dreambooth.optimization import relative_change

# Such as down_blocks.0.attentions, mid_block.resnets, encoder.layers.3, conv_in.
BLOCK = re.compile(r"((?:down|up)_blocks\.\d+\.[a-z]+|mid_block\.[a-z]+|encoder\.layers\.\d+|\w+)")


def curves(run: Path) -> dict[str, dict[int, float]]:
    """The logged numbers of a run: tag => optimizer step => value."""
    log = EventAccumulator(str(run)).Reload()
    return {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}


def block_changes(base: str, trained: str) -> dict[str, float]:
    """Relative change of the weights in each block of UNet and text encoder, by `part.block`.

    Half-precision files round each weight by up to 0.05 %; a smaller change cannot be told from rounding.

    Args:
        base: Hub id or folder of the base model.
        trained: Hub id or folder of the trained model, such as an export.
    """
    models = [ModelFiles(name) for name in (base, trained)]
    changes = {}
    for part in TRAINABLE:
        base_weights, trained_weights = (_weights(model.weights(part).files) for model in models)
        blocks: dict[str, list[str]] = {}
        for name in base_weights:
            if base_weights[name].is_floating_point():
                blocks.setdefault(BLOCK.match(name)[1], []).append(name)  # type: ignore[index]
        for block, names in blocks.items():
            vectors = [_vector(weights, names) for weights in (trained_weights, base_weights)]
            changes[f"{part}.{block}"] = float(relative_change(*vectors))
    return changes


def _vector(weights: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([weights[name].float().flatten() for name in names])


def _weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The weights of a part by name, without the prefix that only some libraries write for the text encoder."""
    weights = [item for file in files for item in load_file(file).items()]
    return {name.removeprefix("text_model."): weight for name, weight in weights}
