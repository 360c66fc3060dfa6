"""Prompts as the denoiser reads them, as one value for every model family."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Conditioning(NamedTuple):
    """Prompts as the UNet reads them: a row per prompt, or a single prompt without the row dimension.

    A family with more inputs (pooled embeddings, sizes) has its own NamedTuple with more fields; the functions of this
    file take any of them.

    Attributes:
        hidden_states: Last hidden states of the text encoder.
    """

    hidden_states: Float[Tensor, "*rows tokens width"]


def on_cpu(conditioning: Conditioning) -> Conditioning:
    """The same values in fp32 on the CPU."""
    return type(conditioning)(*(field.float().cpu() for field in conditioning))


def last_rows(conditioning: Conditioning, count: int) -> Conditioning:
    """The conditioning of the last `count` rows, without a gradient."""
    return type(conditioning)(*(field[-count:].detach() for field in conditioning))


def stack(prompts: Sequence[Conditioning]) -> Conditioning:
    """Single prompts => rows."""
    return type(prompts[0])(*(torch.stack(fields) for fields in zip(*prompts, strict=True)))


def unstack(rows: Conditioning) -> list[Conditioning]:
    """Rows => single prompts."""
    return [type(rows)(*fields) for fields in zip(*rows, strict=True)]
