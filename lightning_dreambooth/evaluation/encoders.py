"""Encoders for the metrics: CLIP by open_clip, DINO by timm, LPIPS by torchmetrics; by name or from local files.

They are not part of the model that is trained: no state and no optimizer holds them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import timm
import torch
from jaxtyping import Float
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoder_files import (
    check_clip_folder,
    check_clip_name,
    check_files,
    readable_encoder,
)
from lightning_dreambooth.evaluation.lpips import Lpips
from lightning_dreambooth.inputs import expand_given

BATCH = 64  # images or texts encoded at once
DINO_CROP = 0.875  # the middle 224 of 256 px, as DINO's own evaluation sees images (arXiv:2104.14294)


class Encoder:
    """A frozen network that turns images into embeddings; loaded when first used.

    Args:
        name: Its name in tables and curves.
        load: Returns the network and its preprocessing.
    """

    def __init__(self, name: str, load: Callable[[], tuple[nn.Module, Any]]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        with readable_encoder(self.name):
            model, transform = self._load()
        return model.requires_grad_(False).eval(), transform

    def check(self) -> None:
        """Loads the network on the CPU; raises InputError if that fails."""
        _ = self._loaded

    @property
    def preprocessing(self) -> str:
        """The steps of the preprocessing, as text."""
        return "; ".join(" ".join(str(step).split()) for step in self._loaded[1].transforms)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Moves the network to a device inside the block, and back to the CPU after it."""
        self._loaded[0].to(device)
        try:
            yield
        finally:
            self._loaded[0].to("cpu")

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Images of any size => embeddings on the CPU."""
        transform = self._loaded[1]
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return torch.cat([self._run(torch.stack([transform(image) for image in part])) for part in parts])

    def _run(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        model = self._loaded[0]
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):  # changes a mean cosine by less than its printed digits
            rows: Tensor = getattr(model, "encode_image", model)(pixels.to(device))
        return self._finite(rows)

    def _finite(self, rows: Tensor) -> Tensor:
        if not rows.isfinite().all():
            raise InputError(f"{self.name} gives embeddings that are not finite; download the encoder again")
        return rows.float().cpu()


class Dino(Encoder):
    """DINO's vision transformer.

    Args:
        model: A timm name such as `vit_small_patch16_224.dino`, or a folder as its hub page has it: `config.json` and
            `model.safetensors`.

    Attributes:
        is_the_papers: Whether it is the ViT-S/16 of the DreamBooth paper.
    """

    def __init__(self, model: str) -> None:
        folder = Path(model)
        if folder.is_dir():
            check_files(folder, "config.json", "model.safetensors")
        elif "dino" not in model or not timm.is_model_pretrained(model):
            raise InputError(f"fidelity.dino {model} is neither a local folder nor a DINO with weights in timm")
        self.source = f"local-dir:{folder}" if folder.is_dir() else model
        config = (folder / "config.json").read_text(encoding="utf-8") if folder.is_dir() else f'"{model}"'
        self.is_the_papers = '"vit_small_patch16_224' in config

        def load() -> tuple[nn.Module, Any]:
            network = timm.create_model(self.source, pretrained=True, num_classes=0)
            return network, create_transform(**resolve_model_data_config(network) | {"crop_pct": DINO_CROP})

        super().__init__(folder.name if folder.is_dir() else model, load)


class Clip(Encoder):
    """CLIP's image and text encoders.

    Args:
        model: An open_clip name such as `ViT-B-32-quickgelu`, or a folder with `open_clip_config.json`, safetensors
            weights and, if it has its own, a tokenizer.
        pretrained: Tag such as `openai`, or a safetensors file; None for a folder, which holds its weights.
    """

    def __init__(self, model: str, pretrained: str | None = None) -> None:
        folder = Path(model)
        if folder.is_dir():
            check_clip_folder(folder, pretrained)
        else:
            check_clip_name(model, pretrained)
        self.source = f"local-dir:{folder}" if folder.is_dir() else model

        def load() -> tuple[nn.Module, Any]:
            weights = None if folder.is_dir() else pretrained
            network, transform = open_clip.create_model_from_pretrained(self.source, weights)
            return network, transform

        super().__init__(folder.name if folder.is_dir() else f"{model}/{Path(str(pretrained)).stem}", load)

    @cached_property
    def tokenizer(self) -> Any:
        """Texts => token ids."""
        with readable_encoder(self.name):
            text = open_clip.get_model_config(self.source).get("text_cfg", {})
            refused = (
                {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
            )  # others know no such option
            return open_clip.get_tokenizer(self.source, **refused)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raises InputError if a text is longer than the encoder reads, or empty."""
        length = self.tokenizer.context_length
        for text in texts:
            if not text:
                raise InputError("a prompt is empty without its identifier; give it as {prompt: ..., text: ...}")
            whole = self.tokenizer([text], context_length=length + 1)[:, :length]
            if not torch.equal(whole, self.tokenizer([text], context_length=length)):
                raise InputError(
                    f"{self.name} reads {length} tokens, {text!r} has more; give it as {{prompt: ..., text: ...}}"
                )

    @property
    def logit_scale(self) -> float:
        """The factor of cosines before a softmax over texts (Radford et al. 2021, arXiv:2103.00020)."""
        return float(self._loaded[0].logit_scale.exp())

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Texts => embeddings on the CPU, each different text encoded once."""
        model = self._loaded[0]
        device = next(model.parameters()).device
        unique = list(dict.fromkeys(texts))
        tokens = self.tokenizer(unique).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            rows = self._finite(torch.cat([model.encode_text(part) for part in tokens.split(BATCH)]))
        return rows[[unique.index(text) for text in texts]]


class Encoders(NamedTuple):
    """The encoders of a run; measuring needs at least CLIP or DINO."""

    clip: Clip | None = None
    dino: Dino | None = None
    lpips: Lpips | None = None

    @property
    def by_role(self) -> dict[str, Encoder]:
        """The encoders of images, by `clip` and `dino`."""
        roles: dict[str, Encoder | None] = {"clip": self.clip, "dino": self.dino}
        return {role: encoder for role, encoder in roles.items() if encoder is not None}

    @property
    def configured(self) -> list[Clip | Dino | Lpips]:
        """The encoders that are configured."""
        return [encoder for encoder in self if encoder is not None]

    @property
    def identity_role(self) -> str:
        """The role of the encoder of `pres`, `drift` and `nearest`: `dino`, else `clip`."""
        return "clip" if self.dino is None else "dino"

    @property
    def metric_names(self) -> dict[str, str]:
        """The name of each metric in tables and curves; the name of an encoder other than the paper's is added."""
        name = self.by_role[self.identity_role].name
        suffix = "" if self.dino is not None and self.dino.is_the_papers else f"/{name}"
        names = {metric: metric + suffix for metric in ("dino", "pres", "drift", "nearest")}
        return names | {"clip": "clip_i", "div": "div" if self.lpips else f"div/{name}"}


def encoders_for(clip_model: str | None, clip_pretrained: str | None, dino: str | None, lpips: str | None) -> Encoders:
    """The encoders of these names or files; equal ones are shared within a process, so that each is loaded once."""
    return Encoders(
        clip=_shared(Clip, _absolute(clip_model), _absolute(clip_pretrained)) if clip_model else None,
        dino=_shared(Dino, _absolute(dino)) if dino else None,
        lpips=_shared(Lpips, _absolute(lpips)) if lpips else None,
    )


def _absolute(name: str | None) -> str | None:
    """A path that stays valid in another working folder, `~` and `$VAR` expanded; names stay as they are."""
    name = expand_given(name)
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


@cache
def _shared(kind: Callable[..., Any], *args: str | None) -> Any:
    return kind(*args)
