"""Folders of models as people have them: those that can be trained, and one line for all others."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import hub, tiny
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import ModelFiles, locate
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
TOKENS, SCHEDULER = "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"
INDEX = "model_index.json"
WEIGHTS = [
    "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip
Change = Callable[[Path], None]


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "hub/owner/name"))


def edit(name: str, **entries: object) -> Change:
    """Changes entries of a config; None removes what a library then fills in."""

    def change(folder: Path) -> None:
        config = {**json.loads((folder / name).read_text()), **entries}
        (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (shutil.rmtree if (folder / name).is_dir() else Path.unlink)(folder / name)

    return change


def write(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return change


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def with_variant(*files: str, keep: bool = False) -> Change:
    """Gives weights the variant fp16, beside the plain ones or in their place."""

    def change(folder: Path) -> None:
        for file in map(folder.joinpath, files):
            (shutil.copy if keep else Path.rename)(file, file.with_suffix(".fp16.safetensors"))

    return change


def sharded(file: str, variant: str = "") -> Change:
    """Splits weights into three shards with their index, as both libraries write it."""

    def change(folder: Path) -> None:
        path = folder / file
        weights = load_file(path)
        stem = path.name.removesuffix(".safetensors")
        shards = [f"{stem}{variant and '.' + variant}-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
        places = {name: shards[number % 3] for number, name in enumerate(sorted(weights))}
        for shard in shards:
            own = {name: weight for name, weight in weights.items() if places[name] == shard}
            save_file(own, path.with_name(shard), metadata={"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        path.with_name(f"{stem}.safetensors.index.{variant and variant + '.'}json").write_text(json.dumps(index))
        path.unlink()

    return change


def by_transformers(folder: Path) -> None:
    model = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder", max_shard_size="50KB")
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1


def by_diffusers(folder: Path) -> None:
    model = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    shutil.rmtree(folder / "unet")
    model.save_pretrained(folder / "unet", max_shard_size="500KB", variant="fp16")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1


def as_in_the_hubs_cache(folder: Path) -> None:
    """Moves all files to blobs and leaves links."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(path for path in folder.rglob("*") if path.is_file()):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))


ACCEPTED: dict[str, Change] = {
    "as it is": lambda _: None,
    "without model_index.json": remove(INDEX),
    "an image-to-image pipeline": edit(INDEX, _class_name="StableDiffusionImg2ImgPipeline"),
    "with a safety checker": all_of(
        write("safety_checker/config.json", "{}"), write("feature_extractor/preprocessor_config.json", "{}")
    ),
    "with pickles beside": all_of(
        write("unet/diffusion_pytorch_model.bin", "junk"), write("text_encoder/pytorch_model.bin", "junk"),
        write("vae/diffusion_pytorch_model.bin", "junk"),
    ),
    "with single files beside": all_of(write("v1-5.ckpt", "junk"), write("v1-5.safetensors", "junk")),
    "old configs without later keys": all_of(
        edit(UNET, addition_embed_type=None, encoder_hid_dim=None, class_embed_type=None, in_channels=None),
        edit(VAE, latent_channels=None, shift_factor=None),
        edit(TEXT, architectures=None),
    ),
    "a width for each block": edit(UNET, cross_attention_dim=[32, 32]),
    "tokens fewer than positions": edit(TOKENS, model_max_length=32),
    "all in fp16 too": with_variant(*WEIGHTS, keep=True),
    "UNet alone in fp16 too": with_variant(WEIGHTS[1], keep=True),
    "UNet only in fp16": with_variant(WEIGHTS[1]),
    "sharded UNet": sharded(WEIGHTS[1]),
    "sharded text encoder": sharded(WEIGHTS[0]),
    "all sharded": all_of(*map(sharded, WEIGHTS)),
    "all sharded in fp16": all_of(*(sharded(file, "fp16") for file in WEIGHTS)),
    "UNet sharded by diffusers in fp16": by_diffusers,
    "text encoder sharded by transformers": by_transformers,
    "links into the hub's cache": as_in_the_hubs_cache,
}  # fmt: skip
ONLY_FP16 = {"UNet only in fp16", "all sharded in fp16", "UNet sharded by diffusers in fp16"}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}
UPSCALER = {"num_class_embeds": 1000, "in_channels": 7}
UNCLIP = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048}
IF = {"encoder_hid_dim": 4096, "addition_embed_type": "text", "cross_attention_dim": 768}
REFUSED: dict[str, tuple[Change, str]] = {
    "SDXL": (all_of(edit(UNET, **XL), write("text_encoder_2/config.json", "{}")), "'text_time', as models for Stable"),
    "SDXL turbo without its index": (all_of(edit(UNET, **XL), remove(INDEX)), "addition_embed_type 'text_time'"),
    "SD 3": (all_of(remove("unet"), write("transformer/config.json", "{}"), write(
        INDEX, '{"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}')),
        "is a StableDiffusion3Pipeline without a UNet"),
    "Flux": (all_of(remove("unet", "vae"), write(INDEX, '{"_class_name": "FluxPipeline"}')), "a FluxPipe"),
    "Stable Cascade": (all_of(remove("unet"), write(INDEX, '{"_class_name": "StableCascade"}')), "is a StableCascade"),
    "inpainting": (edit(UNET, in_channels=9), "reads 9 channels and gives 4, its VAE has 4, as models for inpainting"),
    "InstructPix2Pix": (edit(UNET, in_channels=8), "image editing"),
    "depth to image": (edit(UNET, in_channels=5), "depth-to-image"),
    "upscaler": (edit(UNET, **UPSCALER), "num_class_embeds 1000, as models for class labels or upscaling"),
    "upscaler of later configs": (edit(UNET, in_channels=7), "as models for upscaling"),
    "class-conditional": (edit(UNET, num_class_embeds=10), "num_class_embeds 10"),
    "unCLIP": (edit(UNET, **UNCLIP), "class_embed_type 'projection', as models for unCLIP"),
    "IF, which has no VAE": (all_of(edit(UNET, **IF), remove("vae")), "addition_embed_type 'text'"),
    "Kandinsky": (edit(UNET, encoder_hid_dim_type="image_proj", encoder_hid_dim=1024), "'image_proj'"),
    "latent consistency": (edit(UNET, time_cond_proj_dim=256), "256, as models for latent consistency"),
    "GLIGEN": (edit(UNET, attention_type="gated"), "attention_type 'gated', as GLIGEN"),
    "unconditional": (edit(UNET, _class_name="UNet2DModel"), "has a UNet2DModel where a UNet2DConditionModel"),
    "video": (edit(UNET, _class_name="UNet3DConditionModel"), "has a UNet3DConditionModel"),
    "learned variance": (edit(UNET, out_channels=8), "reads 4 channels and gives 8"),
    "VAE of 16 channels": (edit(VAE, latent_channels=16), "its VAE has 16"),
    "VAE of SD 3": (edit(VAE, shift_factor=0.0609), "its VAE has shift_factor"),
    "VAE of SVD": (edit(VAE, _class_name="AutoencoderKLTemporalDecoder"), "has a AutoencoderKLTemporalDecoder where"),
    "VQ-VAE": (edit(VAE, _class_name="VQModel"), "has a VQModel"),
    "T5": (edit(TEXT, architectures=["T5EncoderModel"], model_type="t5"), "text encoder is a T5EncoderModel"),
    "AltDiffusion": (edit(TEXT, architectures=["RobertaSeriesModelWithTransformation"], model_type="x"), "Roberta"),
    "projected text": (edit(TEXT, architectures=["CLIPTextModelWithProjection"]), "CLIPTextModelWithProjection"),
    "text encoder of another width": (edit(TEXT, hidden_size=64), "is 64 wide, its UNet reads 32"),
    "blocks of several widths": (edit(UNET, cross_attention_dim=[32, 64]), r"is 32 wide, its UNet reads \[32, 64\]"),
    "tokens beyond the positions": (edit(TOKENS, model_max_length=77), "length .* is 77, must lie in 3 ... 64"),
    "no model_max_length": (edit(TOKENS, model_max_length=None), "model_max_length .* is not stated"),
    "a negative model_max_length": (edit(TOKENS, model_max_length=-1), "model_max_length .* is -1"),
    "vocabulary beyond the embedding": (edit(TEXT, vocab_size=100), r"token \d+, its text encoder embeds 0 ... 99"),
    "quantized UNet": (edit(UNET, quantization_config={"quant_method": "bitsandbytes"}), "is quantized"),
    "quantized text encoder": (edit(TEXT, quantization_config={"quant_method": "gptq"}), "is quantized"),
    "text encoder that names its weights": (edit(TEXT, transformers_weights="adapter_model.bin"), "its own weights"),
    "attention from the hub": (edit(TEXT, attn_implementation="owner/kernel"), "'owner/kernel', must be eager or sdpa"),
    "adapter of the text encoder": (write("text_encoder/adapter_config.json", "{}"), "has an adapter"),
    "flow matching": (edit(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler", beta_schedule=None), "FlowMatch"),
    "EDM": (edit(SCHEDULER, _class_name="EDMEulerScheduler", beta_schedule=None), "scheduler EDMEulerScheduler"),
    "no scheduler class": (write(SCHEDULER, "{}"), "beta_schedule None"),
    "predicts flow": (edit(SCHEDULER, prediction_type="flow_prediction"), "predicts 'flow_prediction'"),
    "sigmoid betas": (edit(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule 'sigmoid'"),
    "betas above 1": (edit(SCHEDULER, beta_end=12), "needs 1000 betas in 0 ... 1"),
    "fewer noise steps": (edit(SCHEDULER, num_train_timesteps=100), "needs 1000 betas"),
    "LoRA of peft": (all_of(remove("unet"), write("adapter_config.json", "{}")), "is a LoRA"),
    "LoRA of diffusers": (all_of(remove("unet"), write("pytorch_lora_weights.safetensors", "")), "is a LoRA"),
    "single files": (all_of(remove("unet", INDEX), write("toon.safetensors", "")), r"single files \(toon"),
    "an old checkpoint": (all_of(remove("unet", INDEX), write("v1.ckpt", "")), r"single files \(v1.ckpt\)"),
    "pickles only": (all_of(remove(*WEIGHTS), write("unet/diffusion_pytorch_model.bin", "")), f"lacks {WEIGHTS[1]}"),
    "a shard list that leaves the folder": (write(
        "unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "../../secret.safetensors"}}'),
        "does not list safetensors beside it"),
    "a shard list of pickles": (write(
        "unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "pytorch_model.bin"}}'),
        "does not list safetensors beside it"),
    "an empty shard list": (write("unet/diffusion_pytorch_model.safetensors.index.json", "{}"), "does not list"),
}  # fmt: skip


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
        ("model.safetensors", ["model.diffusion_model.out.0.weight"], "is a model in a single file; convert it"),
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


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that a hub with the model `owner/name`, that of `folder`, has sent."""
    with hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch) as files:
        yield files


def weights_of(files: list[str]) -> list[str]:
    return sorted(file for file in files if not file.endswith((".json", ".txt")))


@pytest.mark.parametrize("kind", REFUSED)
def test_no_weights_are_downloaded_of_a_model_that_is_refused(folder: Path, downloaded: list[str], kind: str) -> None:
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises(InputError, match=message):
        locate("owner/name")
    assert weights_of(downloaded) == []


@pytest.mark.parametrize("kind", [kind for kind in ACCEPTED if kind != "links into the hub's cache"])
def test_only_the_weights_that_are_read_are_downloaded_from_the_hub(
    folder: Path, downloaded: list[str], kind: str
) -> None:
    ACCEPTED[kind](folder)
    variant = "fp16" if "fp16" in kind else None
    files = ModelFiles("owner/name", variant=variant)
    read = [file for part in ("unet", "text_encoder", "vae") for file in files.weights(part).files]
    assert weights_of(downloaded) == sorted(file.relative_to(files.folder).as_posix() for file in read)
    assert files.fingerprint == ModelFiles(str(folder), variant=variant).fingerprint


def test_a_model_that_was_downloaded_is_found_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        first = locate("owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/name") == first
    (first / WEIGHTS[1]).unlink()
    with pytest.raises(InputError, match="owner/name"):
        locate("owner/name")


@pytest.mark.parametrize("channels", [4, 16])
def test_a_vae_of_the_hub_is_checked_before_its_weights_are_downloaded(
    folder: Path, downloaded: list[str], tiny_sd: Path, channels: int
) -> None:
    for file in list((folder / "vae").iterdir()):
        file.rename(folder / file.name)
    edit("config.json", latent_channels=channels)(folder)
    files = ModelFiles(str(tiny_sd), vae="owner/name")
    if channels == 4:
        assert StableDiffusion.load(files)
        assert weights_of(downloaded) == ["diffusion_pytorch_model.safetensors"]
    else:
        with pytest.raises(InputError, match="its VAE has 16"):
            _ = files.vae_folder
        assert weights_of(downloaded) == []


def test_a_model_that_the_hub_does_not_have_is_refused(downloaded: list[str]) -> None:
    with pytest.raises(InputError, match="owner/nobody is neither a local folder nor a model"):
        locate("owner/nobody")
    assert downloaded == []
