import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_dreambooth.data import latents
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.latents import LatentCache, images_at_once, load_pixels
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth

VIEWS = [View(), View(flip=True)]


def views() -> list[tuple[Path, View]]:
    return [(path, view) for path in sorted(Path("girl").glob("*.png")) for view in VIEWS]


class Counted:
    """The model's encoder, which counts the images it encodes."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model = model
        self.count = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.count += len(images)
        return self.model.encode(images)


@pytest.mark.parametrize(
    ("resolution_px", "count"), [(32, 32), (64, 32), (72, 25), (128, 8), (256, 2), (512, 1), (768, 1)]
)
def test_no_more_pixels_are_encoded_at_once_than_of_32_small_images(resolution_px: int, count: int) -> None:
    assert images_at_once(resolution_px) == count
    assert count == 1 or count * resolution_px**2 <= 32 * 64 * 64


def test_setup_encodes_by_that_rule(
    here: Path, tiny_sd: Path, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda pixels: (counts.append(len(pixels)), encode(pixels))[1])
    setup = DreamBooth(str(tiny_sd), prior_weight=0.0).training_setup
    for resolution_px in (32, 256):
        data = DreamBoothData("a photo of sks girl", "girl", resolution=resolution_px, training_setup=setup)
        data._build_dataset(lambda: model, "32-true")
    assert counts == [5, 2, 2, 1]


def test_cached_moments_are_those_of_encoding_now(here: Path, model: StableDiffusion) -> None:
    cache = LatentCache("vae", 32)
    cache.fill(views(), model.encode, batch_size=4)
    for path, view in views():
        now = model.encode(load_pixels(path, view, 32)[None])[0]
        torch.testing.assert_close(cache.get(path, view), now, atol=1e-5, rtol=1e-4)


def test_memory_and_disk_give_the_same(here: Path, model: StableDiffusion) -> None:
    memory, disk = LatentCache("vae", 32), LatentCache("vae", 32, here / "cache")
    for cache in (memory, disk):
        cache.fill(views(), model.encode, batch_size=4)
    assert all(torch.equal(memory.get(*item), disk.get(*item)) for item in views())


def test_only_what_changed_is_encoded_again(here: Path, model: StableDiffusion) -> None:
    encode = Counted(model)
    LatentCache("vae", 32, here / "cache").fill(views(), encode, batch_size=4)
    assert encode.count == 10
    Image.new("RGB", (40, 40), "green").save("girl/00.png")
    LatentCache("vae", 32, here / "cache").fill(views(), encode, batch_size=2)
    assert encode.count == 12
    LatentCache("another vae", 32, here / "cache").fill(views(), encode, batch_size=4)
    assert encode.count == 22
    LatentCache("vae", 16, here / "cache").fill(views(), encode, batch_size=4)
    assert encode.count == 32


def test_images_are_encoded_again_after_the_reader_has_changed(
    here: Path, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Counted(model)
    LatentCache("vae", 32, here / "cache").fill(views(), encode, batch_size=4)
    monkeypatch.setattr(latents, "READER_VERSION", latents.READER_VERSION + 1)
    LatentCache("vae", 32, here / "cache").fill(views(), encode, batch_size=4)
    assert encode.count == 20


def another_image(entries: list[Path]) -> None:
    shutil.copy(entries[1], entries[0])


def other_values(entries: list[Path]) -> None:
    save_file({"moments": load_file(entries[0])["moments"] + 1}, entries[0])


def one_bit(entries: list[Path]) -> None:
    content = bytearray(entries[0].read_bytes())
    content[-1] ^= 1
    entries[0].write_bytes(content)


def another_name(entries: list[Path]) -> None:
    save_file({"latents": load_file(entries[0])["moments"]}, entries[0])


def cut(entries: list[Path]) -> None:
    entries[0].write_bytes(entries[0].read_bytes()[:-1])


def gone(entries: list[Path]) -> None:
    entries[0].unlink()


DAMAGES = [another_image, other_values, one_bit, another_name, cut, gone]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_never_used_and_is_encoded_again_to_the_last_bit(
    here: Path, model: StableDiffusion, damage: Callable[[list[Path]], None], batch_size: int
) -> None:
    cache = LatentCache("vae", 32, here / "cache")
    cache.fill(views(), model.encode, batch_size)
    path, view = views()[7]
    before, entry = cache.get(path, view), here / f"cache/{cache.key(path, view)}.safetensors"
    damage([entry, here / f"cache/{cache.key(*views()[2])}.safetensors"])
    with pytest.raises(TrainingError, match="was damaged or removed"):
        cache.get(path, view)
    again = LatentCache("vae", 32, here / "cache")
    again.fill(views(), model.encode, batch_size)
    assert torch.equal(again.get(path, view), before)


def test_views_that_cut_the_same_square_are_encoded_once(here: Path, model: StableDiffusion) -> None:
    encode = Counted(model)
    cache = LatentCache("vae", 32)
    views = [View(x=0.0), View(x=0.5), View(x=1.0)]
    cache.fill([(Path(name), view) for name in ("girl/00.png", "girl/04.png") for view in views], encode, batch_size=4)
    assert encode.count == 1 + 3  # the first image is square, the other four pixels wider than high


def test_cached_moments_can_be_trained_on(here: Path, model: StableDiffusion) -> None:
    cache = LatentCache("vae", 32)
    cache.fill(views(), model.encode, batch_size=4)
    weight = torch.ones(1, requires_grad=True)
    (cache.get(*views()[0]) * weight).sum().backward()
    assert weight.grad is not None
