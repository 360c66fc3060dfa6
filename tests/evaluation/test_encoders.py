from itertools import combinations
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from helpers import tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Lpips

TEXTS = ["a photo of sks girl", "a boy", "a photo of sks girl"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tiny.images(tmp_path_factory.mktemp("images"), 5)
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(str(tiny.clip(tmp_path_factory.mktemp("clip") / "small")))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Dino:
    return Dino(str(tiny.dino(tmp_path_factory.mktemp("dino") / "vit")))


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return cosine_similarity(a, b).min().item()


def test_clip_agrees_with_open_clip_called_plainly(clip: Clip, images: list[Image.Image]) -> None:
    model, transform = open_clip.create_model_from_pretrained(clip.source)
    model.eval()
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(image) for image in images]))
        texts = model.encode_text(open_clip.get_tokenizer(clip.source)(TEXTS))
    assert alike(clip.images(images), expected) > 0.999
    assert alike(clip.texts(TEXTS), texts) > 0.999
    assert clip.name == "small"


def test_equal_texts_have_equal_embeddings_and_others_do_not(clip: Clip) -> None:
    first, second, third = clip.texts(TEXTS)
    assert torch.equal(first, third)
    assert cosine_similarity(first, second, dim=0) < 0.999


def test_dino_sees_the_middle_of_a_larger_image(dino: Dino, images: list[Image.Image]) -> None:
    model = timm.create_model(dino.source, pretrained=True)
    see = transforms.Compose([
        transforms.Resize(int(32 / 0.875), transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    with torch.no_grad():
        expected = model(torch.stack([see(image) for image in images]))
    assert alike(dino.images(images), expected) > 0.999
    assert "CenterCrop" in dino.preprocessing


def test_an_image_is_encoded_the_same_alone_and_in_a_batch(dino: Dino, images: list[Image.Image]) -> None:
    together = dino.images(images)
    alone = torch.cat([dino.images([image]) for image in images])
    assert alike(together, alone) > 0.9999


def test_lpips_is_torchmetrics_network_over_all_pairs(tmp_path: Path, images: list[Image.Image]) -> None:
    file = tiny.alexnet(tmp_path / "alexnet.safetensors")
    stacked = torch.stack([pil_to_tensor(image.resize((64, 64))) for image in images])
    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    network.net.load_state_dict(
        {name: load_file(file)[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
    )
    pixels = stacked / 127.5 - 1
    pairs = list(combinations(range(5), 2))
    expected = torch.stack([network(pixels[[i]], pixels[[j]]).squeeze() for i, j in pairs]).mean().item()
    lpips = Lpips(str(file))
    assert lpips.diversity(stacked, torch.device("cpu")) == pytest.approx(expected, rel=1e-4)
    assert lpips.diversity(stacked[[0, 0]], torch.device("cpu")) == 0


def test_lpips_also_reads_the_file_that_torchvision_publishes(tmp_path: Path) -> None:
    weights = load_file(tiny.alexnet(tmp_path / "alexnet.safetensors"))
    torch.save(weights, tmp_path / "alexnet.pth")
    noise = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    pickled, plain = (Lpips(str(tmp_path / f"alexnet.{kind}")) for kind in ("pth", "safetensors"))
    assert pickled.diversity(noise, torch.device("cpu")) == plain.diversity(noise, torch.device("cpu")) > 0


def test_a_text_is_too_long_from_the_first_token_that_is_cut(clip: Clip) -> None:
    fits = " ".join(["girl"] * 46)  # and the start and the end
    clip.check_texts([fits])
    with pytest.raises(InputError, match="reads 48 tokens"):
        clip.check_texts([fits + " girl"])
    with pytest.raises(InputError, match="empty without its identifier"):
        clip.check_texts([""])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip("ViT-Z-99"), "neither a local folder nor a model"),
        (lambda: Clip("ViT-B-32-quickgelu", "opnai"), "known are openai"),
        (lambda: Clip("ViT-B-32-quickgelu", "weights.bin"), "known are openai"),
        (lambda: Dino("vit_of_nobody"), "neither a local folder nor a DINO"),
        (lambda: Dino("resnet50"), "neither a local folder nor a DINO"),
        (lambda: Dino("tests"), "config.json and weights in safetensors"),
        (lambda: Lpips("alexnet.pth"), "is not a file"),
    ],
)
def test_an_encoder_that_does_not_exist_is_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_broken_weights_are_refused_in_one_line(tmp_path: Path, images: list[Image.Image]) -> None:
    folder = tiny.clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded as an encoder"):
        Clip(str(folder)).images(images)


def test_an_encoder_with_nan_is_named_and_not_the_images(tmp_path: Path, images: list[Image.Image]) -> None:
    file = tiny.clip(tmp_path / "clip") / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({name: value * float("nan") for name, value in weights.items()}, file)
    with pytest.raises(InputError, match="clip gives embeddings that are not finite"):
        Clip(str(file.parent)).images(images)


def test_a_tag_beside_a_folder_is_refused(clip: Clip) -> None:
    with pytest.raises(InputError, match="has weights of its own"):
        Clip(clip.source.removeprefix("local-dir:"), "openai")
