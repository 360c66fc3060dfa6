import pytest

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.prompts import EvaluationPrompts, StatedPrompt, shown_concept, strip_identifier

GIRL = Concept("a photo of sks girl", "girl", "a photo of a girl", "class", "sks")
BOY = Concept("a photo of zwx boy", "boy", "a photo of a boy", "class", "zwx")


SETTINGS = SamplingSettings("ugly", 3, 2.0, "dpm++")


def evaluation_prompts(
    prompts: list[str | StatedPrompt] | None = None, unrelated: list[str] | None = None
) -> EvaluationPrompts:
    return EvaluationPrompts(prompts, unrelated or [], range(7, 9), SETTINGS)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of sks girl", "a photo of girl"),
        ("A photo of a boy in the style of sks", "A photo of a boy"),
        ("a butterfly, in the style of sks", "a butterfly"),
        ("In the style of sks, a boat", "a boat"),
        ("a sks dog in the jungle", "a dog in the jungle"),
        ("asks for sksy sks", "asks for sksy"),
        ("a photo of a girl", "a photo of a girl"),
    ],
)
def test_the_identifier_is_removed_as_a_word_and_its_style_as_a_phrase(prompt: str, text: str) -> None:
    assert strip_identifier(prompt, "sks") == text


def test_without_an_identifier_a_prompt_stays_as_it_is() -> None:
    assert strip_identifier("a photo of  sks girl", None) == "a photo of  sks girl"


def test_prompts_default_to_the_concepts_own_and_their_classes() -> None:
    probes = evaluation_prompts().probes([GIRL, BOY])
    assert [(p.kind, p.concept, p.request.prompt, p.text) for p in probes[::2]] == [
        ("instance", 0, "a photo of sks girl", "a photo of girl"),
        ("instance", 1, "a photo of zwx boy", "a photo of boy"),
        ("class", 0, "a photo of a girl", "a photo of a girl"),
        ("class", 1, "a photo of a boy", "a photo of a boy"),
    ]
    assert [p.request.seed for p in probes[:2]] == [7, 8]
    assert probes[0].request == Request("a photo of sks girl", 7, SETTINGS)


def test_a_prompt_may_state_its_own_text() -> None:
    probes = evaluation_prompts([StatedPrompt("sks in the rain", "a girl in the rain")]).probes([GIRL])
    assert probes[0].text == "a girl in the rain"


def test_a_prompt_belongs_to_the_concept_whose_identifier_it_holds() -> None:
    assert shown_concept("a painting of zwx", [GIRL, BOY]) == 1
    assert shown_concept("a painting of nobody", [Concept("a girl", "girl")]) == 0
    with pytest.raises(InputError, match="unrelated_prompts"):
        shown_concept("a painting of nobody", [GIRL])
    with pytest.raises(InputError, match="a painting of nobody"):
        shown_concept("a painting of nobody", [GIRL, BOY])


def test_an_instance_prompt_belongs_to_its_own_concept_also_if_another_has_the_same_identifier() -> None:
    boy = Concept("a photo of sks boy", "boy", "a photo of a boy", "class", "sks")
    assert [shown_concept(prompt, [GIRL, boy]) for prompt in (GIRL.instance_prompt, boy.instance_prompt)] == [0, 1]


def test_a_class_prompt_among_the_prompts_is_measured_as_class_and_nothing_is_drawn_twice() -> None:
    probes = evaluation_prompts(["a photo of sks girl", "a photo of a girl", "a photo of sks girl"]).probes([GIRL])
    assert [(probe.kind, probe.request.seed) for probe in probes] == [
        ("instance", 7), ("instance", 8), ("class", 7), ("class", 8)
    ]  # fmt: skip


def test_a_class_that_two_concepts_share_is_drawn_once() -> None:
    probes = evaluation_prompts(unrelated=["a tree"]).probes(
        [GIRL, Concept("a zwx", "x", "a photo of a girl", "class", "zwx")]
    )
    assert [p.request.prompt for p in probes if p.kind == "class"] == ["a photo of a girl"] * 2
    assert [p.request.prompt for p in probes if p.kind == "unrelated"] == ["a tree"] * 2
