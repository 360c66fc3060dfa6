"""MTCNN (Zhang et al. 2016, arXiv:1604.02878): finds faces on photos, and on drawings of realistic style.

Three small networks look at ever fewer places, ever more closely. The weights come with the package `mtcnn`, whose own
code needs TensorFlow and is not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import nms, roi_align
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.prepare.boxes import Box, Face, around
from lightning_dreambooth.prepare.extras import file_in, require

NAME = "mtcnn"
# SHA-256 of the weights: they are pickles, and only these are read.
DIGESTS = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
CELL_PX, STRIDE_PX = 12, 2  # what the first network sees of a copy of the image, and how far apart it looks
MIN_FACE_PX = 36  # the smallest face that is looked for
COPY = 0.79  # each copy of the image is so much smaller than the one before
SCORES = (0.5, 0.6, 0.6)  # from which a network keeps a place
OVERLAP = {"copy": 0.5, "networks": 0.7}  # intersection over union of places of which only the best is kept
# Its boxes are too narrow and too tall: medians of their sides over the edge of 319 faces of comic pages.
WIDTH, HEIGHT = 0.95, 1.21


class Heads(NamedTuple):
    """What a network says of places: corrections of left, top, right and bottom as shares of their sides; scores."""

    corrections: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]


def features(*channels: int, kernels: tuple[int, ...], pools: tuple[nn.Module | None, ...]) -> nn.Sequential:
    """Convolutions, each with PReLU and perhaps pooling."""
    layers: list[nn.Module] = []
    for before, after, kernel, pool in zip(channels, channels[1:], kernels, pools, strict=False):
        layers += [nn.Conv2d(before, after, kernel), nn.PReLU(after), *([pool] if pool else [])]
    return nn.Sequential(*layers)


class Dense(nn.Module):
    """The second or third network: looks at squares of one size.

    Args:
        features: Its convolutions.
        flat: Numbers per square after them.
        hidden: Numbers of the layer before the heads.
        landmarks: Whether it also has a head for eyes, nose and mouth, which is not used.
    """

    def __init__(self, features: nn.Sequential, flat: int, hidden: int, landmarks: bool) -> None:
        super().__init__()
        self.features, self.hidden, self.prelu = features, nn.Linear(flat, hidden), nn.PReLU(hidden)
        self.corrections = nn.Linear(hidden, 4)
        self.landmarks = nn.Linear(hidden, 10) if landmarks else None
        self.scores = nn.Linear(hidden, 2)

    def forward(self, squares: Float[Tensor, "n 3 side side"]) -> Heads:
        """Squares => what it says of them."""
        # The weights are of a program that stores images column by column.
        flat = self.features(squares).permute(0, 3, 2, 1).flatten(1)
        hidden = self.prelu(self.hidden(flat))
        return Heads(self.corrections(hidden), self.scores(hidden).softmax(1)[:, 1])


class Proposals(nn.Module):
    """The first network: looks at every place of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = features(3, 10, 16, 32, kernels=(3, 3, 3), pools=(nn.MaxPool2d(2, ceil_mode=True), None, None))
        self.corrections, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)

    def forward(self, pixels: Float[Tensor, "1 3 h w"]) -> tuple[Float[Tensor, "4 y x"], Float[Tensor, "y x"]]:
        """A copy of the image => corrections and score of each place."""
        seen = self.features(pixels)
        return self.corrections(seen)[0], self.scores(seen).softmax(1)[0, 1]


class Mtcnn:
    """The detector.

    Args:
        device: Where its networks run.

    Raises:
        InputError: if the weights are not installed.
    """

    name = NAME

    def __init__(self, device: torch.device) -> None:
        require("prepare", "mtcnn", "joblib", "lz4")
        self.device = device
        refining = features(
            3, 28, 48, 64, kernels=(3, 3, 2), pools=(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2), None)
        )
        closest = features(
            3, 32, 64, 64, 128, kernels=(3, 3, 3, 2),
            pools=(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, ceil_mode=True), None),
        )  # fmt: skip
        self.proposals = load(Proposals(), "pnet").to(device)
        self.refining = load(Dense(refining, 576, 128, landmarks=False), "rnet").to(device)
        self.closest = load(Dense(closest, 1152, 256, landmarks=True), "onet").to(device)

    @torch.inference_mode()
    def find(self, image: Image.Image) -> list[Face]:
        """The faces on an RGB image."""
        with one_thread():
            pixels = (pil_to_tensor(image)[None].to(self.device).float() - 127.5) / 128
            boxes = self._proposed(pixels)
            for network, side_px, score in ((self.refining, 24, SCORES[1]), (self.closest, 48, SCORES[2])):
                boxes = squares(boxes)
                heads = network(roi_align(pixels, [boxes], side_px, sampling_ratio=2, aligned=True))
                boxes = corrected(boxes, heads.corrections)
                sure = heads.scores >= score
                boxes, scores = boxes[sure], heads.scores[sure]
                best = nms(boxes, scores, OVERLAP["networks"])
                boxes, scores = boxes[best], scores[best]
            found = zip(boxes.tolist(), scores.tolist(), strict=True)
            return [Face(calibrated(Box(*box)), score, frozenset({NAME})) for box, score in found]

    def _proposed(self, pixels: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "n 4"]:
        boxes, scores = [torch.zeros(0, 4, device=self.device)], [torch.zeros(0, device=self.device)]
        height, width = pixels.shape[2:]
        scale = CELL_PX / MIN_FACE_PX
        while min(height, width) * scale >= CELL_PX:
            size = (int(height * scale), int(width * scale))
            corrections, score = self.proposals(nn.functional.interpolate(pixels, size=size, mode="area"))
            y, x = (score > SCORES[0]).nonzero(as_tuple=True)
            corner = STRIDE_PX * torch.stack([x, y, x, y], 1)
            cells = corner + torch.tensor([0, 0, CELL_PX, CELL_PX], device=self.device)
            places = corrected(cells.float(), corrections[:, y, x].T)
            best = nms(places, score[y, x], OVERLAP["copy"])
            boxes.append(places[best] / scale)
            scores.append(score[y, x][best])
            scale *= COPY
        together = torch.cat(boxes)
        return together[nms(together, torch.cat(scores), OVERLAP["networks"])]


def load(network: nn.Module, name: str) -> Any:
    """Puts the published weights into a network: as Keras keeps them, kernels with their channels last."""
    import joblib

    arrays = joblib.load(file_in("mtcnn", f"assets/weights/{name}.lz4", DIGESTS[name]))
    for weight, array in zip(network.parameters(), arrays, strict=True):
        value = torch.as_tensor(array)
        value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T if value.dim() == 2 else value
        weight.data.copy_(value.reshape(weight.shape))
    return network.requires_grad_(False).eval()


def corrected(boxes: Float[Tensor, "n 4"], corrections: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Boxes, with their sides moved by shares of their width and height."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + corrections * sides


def squares(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Boxes => squares with the same centre and the longer side."""
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return torch.cat([centre - half, centre + half], 1)


def calibrated(box: Box) -> Box:
    """A box of the network => one as wide and tall as the face."""
    return around((box.left + box.right) / 2, (box.top + box.bottom) / 2, box.width / WIDTH, box.height / HEIGHT)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one core inside the block: for hundreds of tiny operations a second one only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
