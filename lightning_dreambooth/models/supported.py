"""Which models can be trained: text-to-image models of Stable Diffusion 1.x and 2.x, told from their configs alone."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.configs import read_config
from lightning_dreambooth.models.noise_schedule import load_noise_schedule
from lightning_dreambooth.models.tokens import load_tokenizer
from lightning_dreambooth.models.weight_files import check_readable

SUPPORTED = "supported are text-to-image models of Stable Diffusion 1.x and 2.x"
CONVERT = "convert it: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
SINGLE_FILE = f"is a model in a single file; {CONVERT}"
LORA = "is a LoRA, which changes a model; give the model, and the LoRA's file as model.lora"
LORA_FILES = {"adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"}
SINGLE_FILES = (".safetensors", ".ckpt")
# Other models by a piece of a name that only their weights have, in single files.
OTHER_FILES = {
    "conditioner.embedders.": "Stable Diffusion XL", ".label_emb.": "Stable Diffusion XL, unCLIP or upscaling",
    "joint_blocks.": "Stable Diffusion 3", "double_blocks.": "Flux", "control_model.": "ControlNet",
    "motion_modules.": "AnimateDiff",
}  # fmt: skip
# By the number of channels that their UNet reads.
OTHER_TASKS = {5: "depth-to-image", 7: "upscaling", 8: "image editing or upscaling", 9: "inpainting"}
# Entries of a UNet's config, and of which models they tell; null in Stable Diffusion 1.x and 2.x.
OTHER_MODELS = {
    "addition_embed_type": "Stable Diffusion XL, Kandinsky or IF",
    "encoder_hid_dim_type": "Kandinsky or IF",
    "encoder_hid_dim": "Kandinsky or IF",
    "class_embed_type": "unCLIP or IF",
    "num_class_embeds": "class labels or upscaling",
    "time_cond_proj_dim": "latent consistency",
}


def check_is_folder(name: str) -> None:
    """Raises InputError, which says what it is, if a name is a file or the hub's cache of a model."""
    path = Path(name)
    if path.is_file():
        raise InputError(f"{name} {_what_file(path)}")
    if (path / "snapshots").is_dir():
        commits = sorted(commit.name for commit in (path / "snapshots").iterdir())
        raise InputError(f"{name} is the hub's cache of a model; give its folder snapshots/{' or '.join(commits)}")


def is_single_file(name: str) -> bool:
    """Whether a name is a safetensors file with a UNet in the original layout; `check_is_folder` refuses other files.

    Raises:
        InputError: if the file is damaged.
    """
    path = Path(name)
    return path.is_file() and _what_file(path) == SINGLE_FILE


def _what_file(file: Path) -> str:
    if file.suffix != ".safetensors":
        return f"is a file, not a diffusers folder; {CONVERT}"
    check_readable(file)
    with safe_open(file, framework="pt") as weights:
        names = list(weights.keys())
    if any("lora" in name.lower() for name in names):
        return LORA
    for piece, models in OTHER_FILES.items():
        if any(piece in name for name in names):
            return f"holds weights as of {models} ({piece}); {SUPPORTED}"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return SINGLE_FILE
    return "holds weights of one part; give the diffusers folder with all parts"


def check_kind(name: str, folder: Path, names: Collection[str]) -> None:
    """Raises InputError, which says what it is, if there is no UNet as in this family."""
    if "unet/config.json" in names:
        check_unet(name, read_config(folder / "unet/config.json"))
        return
    if LORA_FILES & {*names}:
        raise InputError(f"{name} {LORA}")
    index = read_config(folder / "model_index.json") if "model_index.json" in names else {"unet": None}
    if "unet" not in index:
        raise InputError(f"{name} is a {index.get('_class_name')} without a UNet; {SUPPORTED}")
    single = sorted(file for file in names if "/" not in file and file.endswith(SINGLE_FILES))
    if single:
        remedy = "give the file of a model as model.pretrained, that of a LoRA as model.lora"
        raise InputError(f"{name} is a folder of single files ({single[0]}); {remedy}")


def check_supported(name: str, folder: Path) -> None:
    """Raises InputError if the configs in a folder are not those of a text-to-image model of this family."""
    unet, vae, text = (read_config(folder / part / "config.json") for part in ("unet", "vae", "text_encoder"))
    check_vae(name, vae, unet)
    check_text(name, text, unet)
    if (folder / "text_encoder/adapter_config.json").is_file():  # transformers would read weights of another model
        raise InputError(f"{name} has an adapter in its text encoder; fuse it and save the pipeline")
    check_tokens(name, folder, text)
    load_noise_schedule(folder)


def check_unet(name: str, unet: dict[str, Any]) -> None:
    """Raises InputError if a UNet has other inputs than noisy latents, timesteps and hidden states of a prompt."""
    _check_class(name, unet, "UNet2DConditionModel")
    for key, models in OTHER_MODELS.items():
        if unet.get(key) is not None:
            raise InputError(f"{name}: its UNet has {key} {unet[key]!r}, as models for {models}; {SUPPORTED}")
    if unet.get("attention_type", "default") != "default":
        raise InputError(f"{name}: its UNet has attention_type {unet['attention_type']!r}, as GLIGEN; {SUPPORTED}")


def check_vae(name: str, vae: dict[str, Any], unet: dict[str, Any]) -> None:
    """Raises InputError if a VAE does not give the latents that a UNet reads."""
    _check_class(name, vae, "AutoencoderKL")
    reads, gives, latents = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if reads != latents or gives != latents:
        task = f", as models for {OTHER_TASKS[reads]}" if reads in OTHER_TASKS else ""
        raise InputError(
            f"{name}: its UNet reads {reads} channels and gives {gives}, its VAE has {latents}{task}; {SUPPORTED}"
        )
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise InputError(f"{name}: its VAE has {key}, as Stable Diffusion 3 and later; {SUPPORTED}")


def check_text(name: str, text: dict[str, Any], unet: dict[str, Any]) -> None:
    """Raises InputError if a text encoder is not CLIP's, or of another width than a UNet reads."""
    kinds = text.get("architectures") or ["CLIPTextModel"]
    if "CLIPTextModel" not in kinds or not str(text.get("model_type", "clip")).startswith("clip"):
        raise InputError(f"{name}: its text encoder is a {kinds[0]}; {SUPPORTED}, whose is a CLIPTextModel")
    _check_plain(name, text)
    if "transformers_weights" in text:
        raise InputError(f"{name}: text_encoder/config.json names its own weights file; remove transformers_weights")
    for key in ("attn_implementation", "_attn_implementation"):  # others are code, which transformers downloads
        if text.get(key) not in (None, "eager", "sdpa"):
            raise InputError(f"{name}: text_encoder/config.json has {key} {text[key]!r}, must be eager or sdpa")
    width, read = text.get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    if {width} != {*read} if isinstance(read, list) else width != read:
        raise InputError(
            f"{name}: its text encoder is {width} wide, its UNet reads {read}; they do not belong together"
        )


def check_tokens(name: str, folder: Path, text: dict[str, Any]) -> None:
    """Raises InputError if a tokenizer gives more tokens, or other ones, than the text encoder has embeddings for."""
    tokenizer = load_tokenizer(folder)
    length, positions = tokenizer.model_max_length, text.get("max_position_embeddings", 77)
    if not 3 <= length <= positions:  # transformers says 1e30 where the config says nothing
        stated = f"{length:,}" if length < 1e9 else "not stated"
        raise InputError(
            f"{name}: model_max_length in tokenizer/tokenizer_config.json is {stated}, must lie in 3 ... {positions}, "
            "the text encoder's max_position_embeddings"
        )
    last, embeddings = max(tokenizer.get_vocab().values()), text.get("vocab_size", 49408)
    if last >= embeddings:
        raise InputError(
            f"{name}: its tokenizer has the token {last}, its text encoder embeds 0 ... {embeddings - 1}; they do not "
            "belong together"
        )


def _check_class(name: str, config: dict[str, Any], expected: str) -> None:
    kind = config.get("_class_name", expected)
    if kind != expected:
        raise InputError(f"{name} has a {kind} where a {expected} is expected; {SUPPORTED}")
    _check_plain(name, config)


def _check_plain(name: str, config: dict[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise InputError(f"{name} is quantized and cannot be trained; give the model before it was quantized")
