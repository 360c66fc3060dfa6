"""How a tokenizer reads a prompt, word by word, and which words are rare."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import CLIPTokenizer

from lightning_dreambooth.models.tokens import truncated_text

END_OF_WORD = "</w>"  # in the vocabulary of CLIP's tokenizer
RARE = re.compile(f"[a-z]{{3}}{END_OF_WORD}")  # three letters: the paper takes up to three (section 3.2)


class Word(NamedTuple):
    """A word of a prompt, and the tokens that the tokenizer makes of it, with their ids."""

    text: str
    tokens: list[str]
    ids: list[int]


class Reading(NamedTuple):
    """How a model reads a prompt.

    Attributes:
        words: Its words.
        most: Tokens that the model reads at most.
        cut: The end that it does not read; usually empty.
    """

    words: list[Word]
    most: int
    cut: str

    @property
    def tokens(self) -> int:
        """The number of tokens, those that are cut off among them."""
        return sum(len(word.tokens) for word in self.words)


def read_prompt(tokenizer: CLIPTokenizer, prompt: str) -> Reading:
    """A prompt => how the model reads it; start and end of the text are not counted."""
    ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in prompt.split()}
    words = [Word(word, [str(tokenizer.convert_ids_to_tokens(token)) for token in ids[word]], ids[word])
             for word in prompt.split()]  # fmt: skip
    return Reading(words, tokenizer.model_max_length - 2, truncated_text(tokenizer, prompt))


def rarest(words: Sequence[Word]) -> Word:
    """The word with the token of the highest id: a tokenizer learns frequent ones first."""
    return max(words, key=lambda word: max(word.ids, default=-1))


def rare_words(tokenizer: CLIPTokenizer, count: int, other_than: str) -> list[str]:
    """The rarest words of three letters that are one token, from the rarest on."""
    ids = tokenizer.get_vocab()
    words = [token.removesuffix(END_OF_WORD) for token in sorted(ids, key=lambda token: -ids[token])
             if RARE.fullmatch(token)]  # fmt: skip
    return [word for word in words if word != other_than.lower()][:count]
