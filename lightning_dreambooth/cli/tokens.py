"""The tool `tokens PROMPT`: how a model reads a prompt, and what its identifier means before any training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.bounds import check_range
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.main import PROG, exit_on_error
from lightning_dreambooth.data.grids import tile
from lightning_dreambooth.data.images import write_png
from lightning_dreambooth.diffusion.requests import SamplingSettings, check_prompt, requests_for
from lightning_dreambooth.diffusion.sampling import as_bytes, sample
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.tables import markdown
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import load_tokenizer
from lightning_dreambooth.models.vocabulary import Reading, rare_words, rarest, read_prompt
from lightning_dreambooth.saving.runs import RUNS

SEEDS = range(4)


def main(argv: list[str] | None = None) -> None:
    """Prints how a prompt is read, and draws what its identifier means to the base model."""
    parser = ArgumentParser(
        prog=f"{PROG} tokens", exit_on_error=False,
        description="Shows how a model splits a prompt and what it cuts off, and draws what it makes of the bare "
        "identifier, beside other rare words: an identifier should mean nothing yet.",
    )  # fmt: skip
    parser.add_argument("prompt", type=str, help="such as 'a photo of sks dog'")
    parser.add_argument("--model", type=str, required=True, help="hub id, folder or single file of the base")
    parser.add_argument("--identifier", type=str | None, default=None, help="by default the word of the rarest token")
    parser.add_argument("--alternatives", type=int, default=4, help="other rare words that are shown; 0: none")
    parser.add_argument("--output", type=str | None, default=None, help="the grid; by default in runs/tokens")
    with exit_on_error(GracefulStop()):
        given = parser.parse_args(argv)
        check_prompt(given.prompt, "the prompt")
        check_range("--alternatives", given.alternatives, 0, 16)
        if not given.prompt.strip() or not (given.identifier or "word").strip():
            raise InputError("the prompt or identifier is empty; give one, such as 'a photo of sks dog'")
        files = ModelFiles(given.model)
        tokenizer = load_tokenizer(files.folder)
        prompt = read_prompt(tokenizer, given.prompt)
        identifier = read_prompt(tokenizer, given.identifier or rarest(prompt.words).text)
        name = " ".join(word.text for word in identifier.words)
        others = rare_words(tokenizer, given.alternatives, name)
        print(report(prompt, name, identifier.tokens, others))
        output = Path(expand(given.output)) if given.output else RUNS / "tokens" / f"{name.replace('/', '-')}.png"
        write_png(grid(load(files), [name, *others], files.native_resolution_px), output, {})
        print(f"what {files.name} draws for these words alone: {output}")


def load(files: ModelFiles) -> StableDiffusion:
    """The model, on a GPU if there is one."""
    return StableDiffusion.load(files).to("cuda" if torch.cuda.is_available() else "cpu")


def report(prompt: Reading, identifier: str, tokens: int, others: Sequence[str]) -> str:
    """How a prompt and its identifier are read, as text."""
    rows = [[word.text, " ".join(word.tokens), " ".join(map(str, word.ids))] for word in prompt.words]
    cut = f"cut off: {prompt.cut!r}" if prompt.cut else "nothing is cut off"
    verdict = "is one token" if tokens == 1 else f"is split into {tokens} tokens, which may mean something already"
    return "\n".join([
        markdown(["word", "tokens", "ids"], rows), "", f"{prompt.tokens} of {prompt.most} tokens; {cut}",
        f"the identifier {identifier!r} {verdict}",
        f"other rare words of one token: {', '.join(others) or 'none in this vocabulary'}",
    ])  # fmt: skip


def grid(model: StableDiffusion, words: Sequence[str], side_px: int) -> Image.Image:
    """A row of images for each word, drawn with the same noise."""
    images = []
    for word in words:
        drawn = sample(model, requests_for([word], list(SEEDS), SamplingSettings()), side_px)
        images += [to_pil_image(image) for image in as_bytes(drawn).cpu()]
    return tile(images, len(SEEDS), [repr(word) for word in words])
