import pytest

from lightning_dreambooth.cli.arguments import SECTIONS, TOOLS, VERBS
from lightning_dreambooth.cli.help import full_help, overview, short_help
from lightning_dreambooth.cli.main import main


def test_the_overview_describes_every_verb_and_tool() -> None:
    lines = overview("prog").splitlines()
    for name, text in (VERBS | TOOLS).items():
        assert any(line.split(None, 1) == [name, text] for line in lines)


def test_short_help_has_every_key_that_full_help_has_of_our_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help=all"])
    full = {word for word in capsys.readouterr().out.split() if word.startswith("--")}
    ours = {word for word in full if word[2:].split(".")[0] in SECTIONS and word.count(".") == 1}
    short = {
        word for line in short_help("prog", "fit").splitlines() if line.startswith("  --") for word in line.split()
    }
    keys = {word.rstrip("+") for word in ours if not word.endswith(".help")}
    assert keys - {word for word in short if word.startswith("--")} == set()


def test_full_help_begins_with_our_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help=all"])
    text = capsys.readouterr().out.split("options:")[1]
    places = [text.index(f"  --{section}.") for section in [*SECTIONS, "trainer"]]
    assert places == sorted(places)


def test_help_fits_on_a_few_screens_and_in_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = short_help("prog", "fit").splitlines()
    assert len(lines) < 200
    assert max(map(len, lines)) <= 100 + 20  # a long default may stand alone


def test_only_the_one_word_asks_for_everything() -> None:
    assert full_help(["fit", "--help=all"]) == ["fit", "--help"]
    assert full_help(["fit", "--name=help"]) == ["fit", "--name=help"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_short_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert VERBS[verb] in capsys.readouterr().out
