"""Attention with the kernel that suits the device and the number of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Up to this many tokens, torch's fused attention is slower than plain matrix products in a CPU's backward pass.
SHORT_SEQUENCE = 256


@contextmanager
def attention_kernel(tokens: int, device: torch.device) -> Iterator[None]:
    """Selects plain matrix products, kept in bf16, for training on short sequences on a CPU; else torch's choice."""
    if tokens > SHORT_SEQUENCE or device.type != "cpu" or not torch.is_grad_enabled():
        yield
        return
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # named after CUDA, also valid on a CPU
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)


class ShapeAwareAttention(AttnProcessor2_0):
    """diffusers' attention, with the kernel chosen by shape.

    The kernel is chosen inside the attention, not around the model, so that gradient checkpointing recomputes with the
    same kernel.
    """

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states [rows, tokens, width] => the same shape, attended."""
        with attention_kernel(hidden_states.shape[1], hidden_states.device):
            return super().__call__(attn, hidden_states, *args, **kwargs)
