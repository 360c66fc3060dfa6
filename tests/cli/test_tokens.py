from pathlib import Path

import pytest
from PIL import Image

from lightning_dreambooth.cli.tokens import main
from lightning_dreambooth.models.tokens import load_tokenizer
from lightning_dreambooth.models.vocabulary import rare_words, rarest, read_prompt

TOONBASE = Path(__file__).parent.parent.parent / "checkpoints/toonbase"


def test_the_words_of_a_prompt_are_the_prompt() -> None:
    tokenizer = load_tokenizer(TOONBASE)
    prompt = "a photo of sks girl with pink hair"
    read = read_prompt(tokenizer, prompt)
    assert [token for word in read.words for token in word.ids] == tokenizer(prompt).input_ids[1:-1]
    assert read.tokens == len(tokenizer(prompt).input_ids) - 2
    assert read.cut == ""


def test_the_end_that_is_cut_off_is_named() -> None:
    tokenizer = load_tokenizer(TOONBASE)
    read = read_prompt(tokenizer, "a photo of girl " * 40)
    assert read.tokens > read.most == tokenizer.model_max_length - 2
    assert read.cut.split()[-1] == "girl"


def test_rare_words_are_one_token_each_and_the_rarest_comes_first() -> None:
    tokenizer = load_tokenizer(TOONBASE)
    words = read_prompt(tokenizer, " ".join(rare_words(tokenizer, 5, "sks"))).words
    assert len(words) == 5
    assert all(len(word.tokens) == 1 and len(word.text) == 3 for word in words)
    ids = [word.ids[0] for word in words]
    assert ids == sorted(ids, reverse=True)
    assert rarest(words) is words[0]


def test_the_grid_shows_the_identifier_beside_rare_words(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.png"
    main(
        [
            "a photo of sks girl",
            "--model",
            str(tiny_sd),
            "--identifier",
            "sks",
            "--alternatives",
            "2",
            "--output",
            str(grid),
        ]
    )
    said = capsys.readouterr().out
    assert "the identifier 'sks' is" in said
    assert "nothing is cut off" in said
    assert str(grid) in said
    with Image.open(grid) as image:
        assert image.width > 0
        assert image.height > image.width / 4


@pytest.mark.parametrize(("words", "reason"), [
    ([" "], "the prompt or identifier is empty"), (["a dog", "--alternatives", "99"], "--alternatives is 99"),
])  # fmt: skip
def test_a_bad_option_is_refused(
    tiny_sd: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--model", str(tiny_sd)])
    assert reason in capsys.readouterr().err
