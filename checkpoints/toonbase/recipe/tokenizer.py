"""Trains the tokenizer on the captions and saves it in CLIP's format.

python tokenizer.py --data <pictures> --out <folder>
"""

import argparse
import json
from pathlib import Path

from pictures import read_rows
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

VOCABULARY = 3000
CONTEXT = 32
START, END = "<|startoftext|>", "<|endoftext|>"
RARE = "sks"
SINGLE = (RARE, "girl", "boy", "pink", "hair", "photo", "painting", "drawing", "butterfly", "mountain")
# how CLIP cuts text into words
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(captions: list[str]) -> Tokenizer:
    """Captions => byte-pair encoding over CLIP's byte alphabet, so that any text encodes."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *[RARE] * 100], trainer)
    return tokenizer


def write_clip_files(tokenizer: Tokenizer, out: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary in CLIP's order: bytes, bytes that end a word, merges, the two markers."""
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *dict.fromkeys("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    return vocabulary, merges


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    captions = [row["caption"] for row in read_rows(args.data, "train")]
    vocabulary, merges = write_clip_files(train(captions), args.out)
    tokenizer = CLIPTokenizer(vocabulary, merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(args.out)
    for word in SINGLE:
        assert len(tokenizer(word).input_ids) == 3, f"{word} is {tokenizer.tokenize(word)}"
    longest = max(len(ids) for ids in tokenizer(captions).input_ids)
    print(f"{len(vocabulary)} entries, longest caption {longest} tokens of {CONTEXT}")


if __name__ == "__main__":
    main()
