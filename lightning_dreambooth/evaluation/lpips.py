"""LPIPS on torchvision's AlexNet, with the linear heads that torchmetrics ships."""

import pickle
from functools import cached_property
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS  # private: setup.cfg pins the version

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoder_files import SUFFIX, readable_encoder
from lightning_dreambooth.files import is_whole

PAIRS = 64  # pairs of images compared at once


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
        with readable_encoder(self.backbone):
            if self.backbone.endswith(SUFFIX):
                weights = load_file(self.backbone)
            else:
                if not is_whole(Path(self.backbone)) and not _is_of_old_torch(Path(self.backbone)):
                    raise ValueError("it is damaged or compressed; download it again")
                weights = torch.load(self.backbone, weights_only=True, map_location="cpu")
            network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
            names = network.net.state_dict()  # slice1.0.weight is torchvision's features.0.weight
            network.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in names})
        return network.requires_grad_(False).eval()

    @torch.no_grad()
    def diversity(self, images: UInt8[Tensor, "n 3 height width"], device: torch.device) -> float:
        """Mean LPIPS distance of all pairs of images, 0 or more; 0 if they are equal."""
        network = self.network.to(device)
        pixels = images.to(device) / 127.5 - 1
        pairs = torch.tensor(list(combinations(range(len(pixels)), 2)), device=device).split(PAIRS)
        distances = torch.cat([network(pixels[i], pixels[j]).flatten() for i, j in (part.T for part in pairs)])
        network.to("cpu")
        return distances.mean().item()


def _is_of_old_torch(file: Path) -> bool:
    """Whether a file is a plain pickle, as torch wrote before 1.6, and not an archive."""
    with file.open("rb") as opened:
        return opened.read(1) == pickle.PROTO
