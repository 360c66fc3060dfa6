"""Folders of models as people have them: those that can be trained, and one line for all others."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import hub, tiny
from helpers.layouts import ACCEPTED, ONLY_FP16, REFUSED, VAE, WEIGHTS, Change, edit, remove, sharded, with_variant
from safetensors.torch import load_file, save_file

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import ModelFiles, locate
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "hub/owner/name"))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_every_layout_of_the_same_weights_loads_the_same_model(
    folder: Path, model: StableDiffusion, kind: str, variant: str | None
) -> None:
    ACCEPTED[kind](folder)
    files = ModelFiles(str(folder), variant=variant)
    if variant is None and kind in ONLY_FP16:
        with pytest.raises(InputError, match=r"lacks .*\(model\.variant may be fp16\)"):
            _ = files.folder
    elif variant is not None and "fp16" not in kind:
        with pytest.raises(InputError, match="has no weights of the variant fp16; leave"):
            _ = files.folder
    else:
        loaded = StableDiffusion.load(files)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert files.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", REFUSED)
def test_another_kind_of_model_is_refused_by_what_it_is(folder: Path, kind: str) -> None:
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises(InputError, match=message) as refusal:
        locate(str(folder))
    assert "\n" not in str(refusal.value)


def test_a_variant_that_exists_nowhere_is_refused_with_those_that_exist(folder: Path) -> None:
    with_variant(WEIGHTS[1], keep=True)(folder)
    with pytest.raises(InputError, match=r"no weights of the variant bf16; .* may be fp16"):
        locate(str(folder), variant="bf16")


def test_a_missing_shard_is_named(folder: Path) -> None:
    sharded(WEIGHTS[1])(folder)
    (folder / "unet/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"00002-of-00003\.safetensors cannot be read"):
        locate(str(folder))


def test_shards_have_a_fingerprint_of_their_own_that_every_shard_changes(folder: Path, tiny_sd: Path) -> None:
    sharded(WEIGHTS[1])(folder)
    seen = {ModelFiles(str(tiny_sd)).fingerprint, ModelFiles(str(folder)).fingerprint}
    for shard in sorted((folder / "unet").glob("*.safetensors")):
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        seen.add(ModelFiles(str(folder)).fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize("file", WEIGHTS)
def test_what_is_fingerprinted_is_what_is_loaded_where_shards_and_a_single_file_differ(folder: Path, file: str) -> None:
    path = folder / file
    other = {name: weight + 1 for name, weight in load_file(path).items()}
    sharded(file)(folder)
    save_file(other, path, metadata={"format": "pt"})
    files, part = ModelFiles(str(folder)), file.split("/")[0]
    loaded = getattr(StableDiffusion.load(files), part).state_dict()
    stated = {name: weight for shard in files.weights(part).files for name, weight in load_file(shard).items()}
    assert all(torch.equal(weight, loaded[name.removeprefix("text_model.")]) for name, weight in stated.items())


def single_file(file: Path, names: list[str]) -> Path:
    save_file({name: torch.zeros(1) for name in names}, file)
    return file


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("model.safetensors", ["model.diffusion_model.out.0.weight"], "lacks 685 weights of its UNet, such as model."),
        ("lora.safetensors", ["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA"),
        ("unet.safetensors", ["conv_in.weight"], "holds weights of one part"),
        ("model.ckpt", ["x"], "is a file, not a diffusers folder; convert it"),
    ],
)
def test_a_file_is_refused_by_what_it_holds(tmp_path: Path, name: str, tensors: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"{name} {message}"):
        locate(str(single_file(tmp_path / name, tensors)))


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        locate(str(tmp_path / "model.safetensors"))


def test_the_hubs_cache_of_a_model_is_refused_with_its_folder(tiny_sd: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd, tmp_path / "models--owner--name/snapshots" / hub.COMMIT)
    with pytest.raises(InputError, match=f"the hub's cache of a model; give its folder snapshots/{hub.COMMIT}"):
        locate(str(tmp_path / "models--owner--name"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(VAE, latent_channels=16), "its VAE has 16"),
        (edit(VAE, shift_factor=0.1), "shift_factor"),
        (edit(VAE, _class_name="AutoencoderTiny"), "has a AutoencoderTiny"),
        (remove(WEIGHTS[2]), r"lacks config\.json, diffusion_pytorch_model\.safetensors"),
    ],
)
@pytest.mark.parametrize("inner", ["", "vae"])
def test_a_vae_of_another_kind_is_refused(
    folder: Path, tiny_sd: Path, change: Change, message: str, inner: str
) -> None:
    change(folder)
    with pytest.raises(InputError, match=message):
        _ = ModelFiles(str(tiny_sd), vae=str(folder / inner)).vae_folder


def test_a_sharded_vae_replaces_the_models_own(folder: Path, tiny_sd: Path, tmp_path: Path) -> None:
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    expected = load_file(other / WEIGHTS[2])
    sharded(WEIGHTS[2])(other)
    loaded = StableDiffusion.load(ModelFiles(str(tiny_sd), vae=str(other))).vae.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
