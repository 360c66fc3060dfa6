"""Encoders that measure: CLIP by open_clip, DINO by timm, LPIPS by torchmetrics; by name or from local files.

They are no part of the model that is trained: no state and no optimizer ever sees them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from lightning_dreambooth.errors import InputError

BATCH = 64  # images or texts encoded at once
DINO_CROP = 0.875  # the middle 224 of 256 px, as DINO's own evaluation sees images (arXiv:2104.14294)
SUFFIX = ".safetensors"


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what libraries make of broken files is not for us to foresee
        raise InputError(f"{what} cannot be loaded as an encoder ({' '.join(str(error).split())[:300]})") from error


class Encoder:
    """A frozen network that turns images into embeddings; loaded when first used.

    Args:
        name: What tables and curves call it.
        load: Gives the network and what images go through before it.
    """

    def __init__(self, name: str, load: Callable[[], tuple[nn.Module, Any]]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        with _readable(self.name):
            model, transform = self._load()
        return model.requires_grad_(False).eval(), transform

    def check(self) -> None:
        """Raises InputError if the network cannot be loaded; it stays on the CPU until it is lent to a device."""
        _ = self._loaded

    @property
    def preprocessing(self) -> str:
        """What images go through before the network, in words."""
        return "; ".join(" ".join(str(step).split()) for step in self._loaded[1].transforms)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Lends the network to a device; afterwards its memory is free again."""
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
        return torch.cat([self._run(torch.stack([transform(each) for each in part])) for part in parts])

    def _run(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        model = self._loaded[0]
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):  # moves a mean cosine by less than it is printed with
            rows: Tensor = getattr(model, "encode_image", model)(pixels.to(device))
        return self._finite(rows)

    def _finite(self, rows: Tensor) -> Tensor:
        if not rows.isfinite().all():
            raise InputError(f"{self.name} gives embeddings that are not finite; get the encoder again")
        return rows.float().cpu()


class Dino(Encoder):
    """DINO's vision transformer; `is_the_papers` says whether it is the ViT-S/16 of the DreamBooth paper.

    Args:
        model: A timm name such as `vit_small_patch16_224.dino`, or a folder as its hub page has it: `config.json` and
            `model.safetensors`.
    """

    def __init__(self, model: str) -> None:
        folder = Path(model)
        if folder.is_dir():
            _check_files(folder, "config.json")
        elif "dino" not in model or not timm.is_model_pretrained(model):
            raise InputError(f"fidelity.dino {model} is neither a folder here nor a DINO that timm has weights of")
        self.source = f"local-dir:{folder}" if folder.is_dir() else model
        config = (folder / "config.json").read_text(encoding="utf-8") if folder.is_dir() else f'"{model}"'
        self.is_the_papers = '"vit_small_patch16_224' in config

        def load() -> tuple[nn.Module, Any]:
            network = timm.create_model(self.source, pretrained=True, num_classes=0)
            return network, create_transform(**resolve_model_data_config(network) | {"crop_pct": DINO_CROP})

        super().__init__(folder.name if folder.is_dir() else model, load)


class Clip(Encoder):
    """CLIP with both towers.

    Args:
        model: An open_clip name such as `ViT-B-32-quickgelu`, or a folder with `open_clip_config.json`, safetensors
            weights and, if it has one of its own, a tokenizer.
        pretrained: Tag such as `openai`, or a safetensors file; a folder has its own.
    """

    def __init__(self, model: str, pretrained: str | None = None) -> None:
        folder = Path(model)
        if folder.is_dir():
            _check_folder(folder, pretrained)
        else:
            _check_pretrained(model, pretrained)
        self.source = f"local-dir:{folder}" if folder.is_dir() else model

        def load() -> tuple[nn.Module, Any]:
            weights = None if folder.is_dir() else pretrained
            network, transform = open_clip.create_model_from_pretrained(self.source, weights)
            return network, transform

        super().__init__(folder.name if folder.is_dir() else f"{model}/{Path(str(pretrained)).stem}", load)

    @cached_property
    def tokenizer(self) -> Any:
        """Texts => token ids."""
        with _readable(self.name):
            return open_clip.get_tokenizer(self.source)

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
        """What cosines are multiplied with before a softmax over texts (Radford et al. 2021, arXiv:2103.00020)."""
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


class Lpips:
    """Perceptual distance (Zhang et al. 2018, arXiv:1801.03924), on torchvision's AlexNet.

    Args:
        backbone: File with AlexNet's weights as torchvision publishes them, `.safetensors` or `.pth`.
    """

    name = "lpips"

    def __init__(self, backbone: str) -> None:
        if not Path(backbone).is_file():
            raise InputError(f"fidelity.lpips {backbone} is not a file; name AlexNet's weights as torchvision has them")
        self.backbone = backbone

    def check(self) -> None:
        """Raises InputError if the network cannot be loaded."""
        _ = self.network

    @cached_property
    def network(self) -> nn.Module:
        """The network: linear heads that torchmetrics ships, on the named backbone."""
        with _readable(self.backbone):
            if self.backbone.endswith(SUFFIX):
                weights = load_file(self.backbone)
            else:
                weights = torch.load(self.backbone, weights_only=True, map_location="cpu")
            network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
            wanted = network.net.state_dict()  # slice1.0.weight is torchvision's features.0.weight
            network.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in wanted})
        return network.requires_grad_(False).eval()

    @torch.no_grad()
    def diversity(self, images: UInt8[Tensor, "n 3 height width"], device: torch.device) -> float:
        """Mean distance of all pairs of images, 0 if they are equal."""
        network = self.network.to(device)
        pixels = images.to(device) / 127.5 - 1
        pairs = torch.tensor(list(combinations(range(len(pixels)), 2)), device=device).split(BATCH)
        distances = torch.cat([network(pixels[i], pixels[j]).flatten() for i, j in (part.T for part in pairs)])
        network.to("cpu")
        return distances.mean().item()


def _check_files(folder: Path, config: str) -> None:
    if not (folder / config).is_file() or not list(folder.glob(f"*{SUFFIX}")):
        raise InputError(f"{folder} must hold {config} and weights in safetensors to be an encoder")


def _check_folder(folder: Path, pretrained: str | None) -> None:
    if pretrained is not None:
        raise InputError(f"fidelity.clip_pretrained {pretrained} is given, but {folder} has weights of its own")
    _check_files(folder, "open_clip_config.json")
    for config in folder.glob("*.json"):  # open_clip hands these words to transformers, which would run code from here
        if "trust_remote_code" in config.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{config} asks to run code that lies beside it; get the encoder from somewhere else")


def _check_pretrained(model: str, pretrained: str | None) -> None:
    if model not in open_clip.list_models():
        raise InputError(f"fidelity.clip_model {model} is neither a folder here nor a model that open_clip knows")
    tags = open_clip.list_pretrained_tags_by_model(model)
    is_file = pretrained is not None and pretrained.endswith(SUFFIX) and Path(pretrained).is_file()
    if not is_file and pretrained not in tags:
        raise InputError(
            f"fidelity.clip_pretrained {pretrained} is neither a {SUFFIX} file here nor a tag of {model}; "
            f"known are {', '.join(tags)}"
        )
