"""The five parts of Stable Diffusion as one module: loaded, saved, encoded and decoded with.

Borders: images come in as bytes 0 ... 255, images go out in [0, 1]; latents carry the VAE's scaling factor.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import WEIGHTS, weights_file

# Up to this many tokens torch's fused attention is slower than plain matrix products in a CPU's backward pass.
SHORT_SEQUENCE = 256

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@contextmanager
def attention_kernel(tokens: int, device: torch.device) -> Iterator[None]:
    """Plain products, kept in bf16, for short sequences that are trained on a CPU; else what torch chooses."""
    if tokens > SHORT_SEQUENCE or device.type != "cpu" or not torch.is_grad_enabled():
        yield
        return
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # named after CUDA, obeyed by the CPU too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)


class ShapeAwareAttention(AttnProcessor2_0):
    """diffusers' attention, with the kernel chosen by shape.

    The choice is made in here, not around the model, so that a checkpointed forward repeats it when it is recomputed.
    """

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states [rows, tokens, width] => the same, attended."""
        with attention_kernel(hidden_states.shape[1], hidden_states.device):
            return super().__call__(attn, hidden_states, *args, **kwargs)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a model's folder.

    Raises:
        InputError: if its files are broken.
    """
    with _readable(folder):
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "prompts tokens"]:
    """Prompts => token ids, always padded to the tokenizer's full length as the inference pipeline pads them."""
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def cut_off(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """The end of a prompt that does not fit into the tokenizer's length; mostly nothing."""
    ids = tokenizer(prompt, verbose=False).input_ids[1:-1]  # without start and end
    return str(tokenizer.decode(ids[tokenizer.model_max_length - 2 :]))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what libraries make of broken or hostile files is not for us to foresee
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder} cannot be loaded as a model ({reason}); get it again") from error


class StableDiffusion(nn.Module):
    """UNet, text encoder and VAE with their tokenizer and noise schedule, all weights in fp32."""

    alphas_bar: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        scheduler: DDPMScheduler,
        folder: Path,
    ) -> None:
        super().__init__()
        self.unet = unet.to(memory_format=torch.channels_last)
        self.text_encoder = text_encoder
        self.vae = vae.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.folder = folder
        self.unet.set_attn_processor(ShapeAwareAttention())
        self.register_buffer("alphas_bar", scheduler.alphas_cumprod, persistent=False)

    @classmethod
    def load(cls, folder: Path, vae_folder: Path | None = None, variant: str | None = None) -> "StableDiffusion":
        """Loads the parts found by `locate`, in fp32 and evaluation mode, with the VAE of `vae_folder` if given.

        Raises:
            InputError: if configs and weights do not belong together.
        """
        with _readable(folder):
            return cls._load(folder, vae_folder, variant)

    @classmethod
    def _load(cls, folder: Path, vae_folder: Path | None, variant: str | None) -> "StableDiffusion":
        shared: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        # Without low_cpu_mem_usage=False diffusers asks for accelerate, which nothing here needs.
        options = shared | {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
        own_vae = vae_folder is None or vae_folder == folder / "vae"
        return cls(
            unet=_complete(*UNet2DConditionModel.from_pretrained(folder, subfolder="unet", variant=variant, **options)),
            text_encoder=_complete(
                *CLIPTextModel.from_pretrained(  # type: ignore[misc]
                    folder, subfolder="text_encoder", variant=variant, dtype=torch.float32, **shared
                )
            ),
            vae=_complete(*AutoencoderKL.from_pretrained(folder / "vae" if own_vae else vae_folder,
                                                         variant=variant if own_vae else None, **options)),
            tokenizer=load_tokenizer(folder),
            scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
            folder=folder,
        ).eval().requires_grad_(False)  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.alphas_bar.device

    @property
    def prediction_type(self) -> str:
        """What the UNet answers: `epsilon` or `v_prediction`."""
        return str(self.scheduler.config.prediction_type)

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by so that they have about unit variance."""
        return float(self.vae.config.scaling_factor)

    def latent_shape(self, resolution_px: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a square image."""
        side = resolution_px // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.latent_channels, side, side)

    def tokenize(self, prompts: list[str]) -> Int[Tensor, "prompts tokens"]:
        """Prompts => token ids."""
        return tokenize(self.tokenizer, prompts)

    def embed(self, token_ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens width"]:
        """Token ids => the text encoder's last hidden states; equal prompts of a batch are encoded once."""
        unique, place = token_ids.unique(dim=0, return_inverse=True)
        # A checkpointed forward is repeated outside of this block, where it must find the same kernel.
        checkpointed = self.text_encoder.is_activation_checkpointing
        with nullcontext() if checkpointed else attention_kernel(token_ids.shape[1], token_ids.device):
            hidden: Tensor = self.text_encoder(unique)[0]
        return hidden[place]

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "rows 3 height width"]) -> Float[Tensor, "rows twice_c h w"]:
        """Bytes => mean and standard deviation of the scaled latents, stacked along the channels."""
        pixels = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows 3 height width"]:
        """Scaled latents => images in [0, 1]."""
        pixels: Tensor = self.vae.decode(latents / self.scaling_factor, return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes a diffusers folder with weights of the given dtype, which `from_pretrained(folder)` loads as it is."""
        for part in WEIGHTS:
            module = getattr(self, part)
            (folder / part).mkdir(parents=True)
            config = dict(module.config) if part != "text_encoder" else module.config.to_dict()
            config = {key: value for key, value in config.items() if key != "_name_or_path"}
            if part == "text_encoder":  # transformers loads in the dtype written here, diffusers always in fp32
                config |= {"dtype": "float32", "architectures": ["CLIPTextModel"]}
            else:
                config = {"_class_name": type(module).__name__, **config}
            _write_json(folder / part / "config.json", config)
            prefix = "text_model." if part == "text_encoder" else ""  # as in SD 1.5's files; all readers know it
            weights = {
                prefix + name: value.to("cpu", dtype).contiguous() for name, value in module.state_dict().items()
            }
            save_file(weights, folder / part / weights_file(part, None), metadata={"format": "pt"})
        for part in ("tokenizer", "scheduler"):
            shutil.copytree(self.folder / part, folder / part)
        if not (folder / "tokenizer/merges.txt").is_file():  # transformers 5 leaves them out, other readers want them
            self.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
        _write_json(folder / "model_index.json", self._index())

    def _index(self) -> dict[str, object]:
        scheduler = json.loads((self.folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
        return {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }


def _complete(module: Any, loaded: dict[str, Any]) -> Any:
    """The loaded part, unless weights were missing, which the libraries would replace by random ones."""
    if loaded["missing_keys"]:
        raise ValueError(f"{type(module).__name__} misses {len(loaded['missing_keys'])} of its weights")
    return module


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
