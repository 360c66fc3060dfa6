"""LoRA: low-rank adapters of frozen weights (Hu et al. 2021, arXiv:2106.09685), by PEFT.

An adapted weight is W + alpha / r * B A; with DoRA (Liu et al. 2024, arXiv:2402.09353) the norms of its rows are
trained, too. A is drawn as a function of the seed, B begins at zero, so an untrained adapter changes nothing.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lightning_dreambooth import randomness

ADAPTER = "default"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"]
FEED_FORWARD = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "fc1", "fc2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
Targets = Literal["attention", "all"]
TARGETS = {"attention": ATTENTION, "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS}


@dataclass(frozen=True)
class Lora:
    """Adapters that are trained in place of the weights.

    Args:
        rank: Rank r of the update of each weight.
        alpha: The update is scaled by alpha / r; null takes r.
        targets: Layers with adapters: the projections of attention, or also the other linear layers and convolutions
            of blocks, but not those of timesteps.
        dora: Whether the norms of the adapted rows are trained too.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Targets = "attention"
    dora: bool = False


def add_adapters(part: nn.Module, purpose: str, lora: Lora, seed: int) -> None:
    """Puts adapters into a frozen part. Their A is a function of `seed` and of `purpose`, a name for the part."""
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        target_modules=TARGETS[lora.targets], use_dora=lora.dora, init_lora_weights=True,
    )  # fmt: skip
    inject_adapter_in_model(config, part, ADAPTER)
    for name, layer in adapted(part):
        weight = layer.lora_A[ADAPTER].weight
        drawn = randomness.normal(seed, f"lora {purpose}.{name}", [0], weight.shape)[0]
        weight.data.copy_(drawn / lora.rank)


def is_adapter(name: str) -> bool:
    """Whether a parameter of a part with adapters belongs to them, by its name."""
    return ".lora_" in name


def adapted(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of a part that have adapters, by name."""
    for name, layer in part.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def scale_adapters(part: nn.Module, scale: float) -> None:
    """Multiplies what the adapters of a part add."""
    for _, layer in adapted(part):
        layer.scale_layer(scale)


@contextmanager
def without_adapters(part: nn.Module) -> Iterator[None]:
    """Inside the block, the part computes with its frozen weights alone."""
    layers = [layer for _, layer in adapted(part)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def fused(part: nn.Module) -> dict[str, Tensor]:
    """The weights of a part by the names that it has without adapters, adapters added; nothing in it is changed."""
    weights = {
        name.replace(".base_layer", ""): value for name, value in part.state_dict().items() if not is_adapter(name)
    }
    # On the CPU, because fp32 copies of all weights may not fit beside the model.
    for name, layer in adapted(part):
        weights[f"{name}.weight"] = (layer.get_base_layer().weight.float() + _update(layer)).cpu()
    return weights


@torch.no_grad()
def fuse(part: nn.Module) -> None:
    """Adds the adapters of a part to its weights and removes them."""
    for name, layer in [*adapted(part)]:
        layer.merge()
        part.set_submodule(name, layer.get_base_layer())


def _update(layer: Any) -> Tensor:
    """What the adapters add to the weight of a layer, in fp32: the base's format would round small updates away."""
    if not layer.use_dora[ADAPTER]:
        delta: Tensor = layer.get_delta_weight(ADAPTER)
        return delta
    merged = copy.deepcopy(layer).float()  # PEFT merges in place, and does not come back to the same bits
    merged.merge()
    update: Tensor = merged.get_base_layer().weight - layer.get_base_layer().weight
    return update


@torch.no_grad()
def relative_change(part: nn.Module) -> Tensor:
    """|update| / |W| over a whole part, as for weights that are trained themselves."""
    base = sum(weight.float().square().sum() for name, weight in part.named_parameters() if not is_adapter(name))
    change = torch.stack([_update(layer).square().sum() for _, layer in adapted(part)]).sum()
    return (change / base).sqrt()
