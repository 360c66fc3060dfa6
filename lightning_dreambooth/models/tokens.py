"""Tokenizer of a model: prompts to token ids, without loading the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTokenizer

from lightning_dreambooth.models.configs import readable_model


class TokenIds(NamedTuple):
    """Prompts as token ids; each is there once, so that equal ones are encoded once.

    Attributes:
        values: The token ids of different prompts.
        places: Which of these each row's prompt is.
    """

    values: Int[Tensor, "prompts tokens"]
    places: Int[Tensor, " rows"]


def without_repeats(ids: Int[Tensor, "rows tokens"]) -> TokenIds:
    """Token ids of rows, on the CPU => those that differ; on a GPU, the host would wait for their number."""
    return TokenIds(*ids.unique(dim=0, return_inverse=True))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in the folder of a model.

    Raises:
        InputError: if its files are broken.
    """
    with readable_model(folder):
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", trust_remote_code=False)


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Int[Tensor, "prompts tokens"]:
    """Prompts => token ids, padded or cut to the tokenizer's full length, as in diffusers' inference pipeline."""
    ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def truncated_text(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """The end of a prompt beyond the tokenizer's length; usually empty."""
    ids = tokenizer(prompt, verbose=False).input_ids[1:-1]  # without start and end
    return str(tokenizer.decode(ids[tokenizer.model_max_length - 2 :]))
