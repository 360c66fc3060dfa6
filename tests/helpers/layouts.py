"""Folders of models as people have them: changes of a folder that can be trained, and what becomes of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
TOKENS, SCHEDULER = "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"
INDEX = "model_index.json"
WEIGHTS = [
    "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip

Change = Callable[[Path], None]


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
