"""Stable Diffusion 1.x and 2.x as one module: loading, prediction, encoding, decoding and saving.

Ranges: images come in as bytes 0 ... 255 and go out in [0, 1]; latents carry the VAE's scaling factor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lightning_dreambooth.models.attention import ShapeAwareAttention, attention_kernel
from lightning_dreambooth.models.conditioning import Conditioning
from lightning_dreambooth.models.configs import readable_model
from lightning_dreambooth.models.lora import adapted, fuse, scale_adapters
from lightning_dreambooth.models.lora_files import read_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.noise_schedule import load_noise_schedule
from lightning_dreambooth.models.tokens import TokenIds, load_tokenizer, tokenize, without_repeats
from lightning_dreambooth.models.weight_files import WEIGHTS
from lightning_dreambooth.sizes import Size, sides

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

Part = TypeVar("Part", bound=nn.Module)


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
        self.unet = _in_memory(unet)
        self.text_encoder = _in_memory(text_encoder)
        self.vae = _in_memory(vae)
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.folder = folder
        self.unet.set_attn_processor(ShapeAwareAttention())
        self.register_buffer("alphas_bar", scheduler.alphas_cumprod, persistent=False)

    @classmethod
    def load(cls, files: ModelFiles) -> "StableDiffusion":
        """Loads all parts, frozen, in fp32 and evaluation mode; the adapters of a LoRA are added to the weights.

        Raises:
            InputError: if configs and weights do not belong together, or the LoRA is not of this base.
        """
        with readable_model(files.folder):
            model = cls._load(files)
        if files.lora:
            for part in model.read_lora(files.lora, files.lora_scale).values():
                fuse(part)
        return model.eval().requires_grad_(False)

    @classmethod
    def _load(cls, files: ModelFiles) -> "StableDiffusion":
        shared: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        options = shared | {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
        folder, variant = files.folder, {part: files.weights(part).variant for part in WEIGHTS}
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", variant=variant["unet"], **options)
        text_encoder = CLIPTextModel.from_pretrained(
            folder,
            subfolder="text_encoder",
            variant=variant["text_encoder"],
            dtype=torch.float32,
            trust_remote_code=False,
            **shared,
        )
        vae = AutoencoderKL.from_pretrained(files.vae_folder, variant=variant["vae"], **options)
        return cls(
            unet=_with_all_weights(*unet),
            text_encoder=_with_all_weights(*text_encoder),  # type: ignore[misc]
            vae=_with_all_weights(*vae),
            tokenizer=load_tokenizer(folder),
            scheduler=load_noise_schedule(folder),
            folder=folder,
        )

    @classmethod
    def without_weights(cls, files: ModelFiles) -> "StableDiffusion":
        """The model that `load` returns, on torch's meta device: it has shapes, but no weight file is read.

        Raises:
            InputError: if its configs cannot be read.
        """
        tokenizer, scheduler = load_tokenizer(files.folder), load_noise_schedule(files.folder)
        with readable_model(files.folder), torch.device("meta"):
            model = cls(
                unet=UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(files.folder / "unet")),
                text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(files.folder / "text_encoder")),
                vae=AutoencoderKL.from_config(AutoencoderKL.load_config(files.vae_folder)),
                tokenizer=tokenizer,
                scheduler=scheduler,
                folder=files.folder,
            )
        return model.eval().requires_grad_(False)

    def loading_bytes(self, files: ModelFiles) -> int:
        """Host memory at the peak of `load`: the parts so far in fp32, the last one beside its file."""
        loaded = peak = 0
        for name, part in {**self.trainable, "vae": self.vae}.items():
            loaded += sum(weight.numel() for weight in part.parameters()) * torch.float32.itemsize
            peak = max(peak, loaded + sum(file.stat().st_size for file in files.weights(name).files))
        return peak

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The parts that can be trained, by name."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def read_lora(self, file: Path, scale: float) -> dict[str, nn.Module]:
        """Puts the adapters of a file into the parts; returns those that the file adapts, by name.

        Raises:
            InputError: if it is no LoRA in safetensors, or not of this base.
        """
        read_lora(self.trainable, file)
        parts = {name: part for name, part in self.trainable.items() if any(adapted(part))}
        for part in parts.values():
            scale_adapters(part, scale)
        return parts

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.alphas_bar.device

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` or `v_prediction`."""
        return str(self.scheduler.config.prediction_type)

    @property
    def scaling_factor(self) -> float:
        """The factor by which latents are multiplied, so that they have about unit variance."""
        return float(self.vae.config.scaling_factor)

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        width, height = sides(size)
        return (self.vae.config.latent_channels, height // factor, width // factor)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switches dropout off inside the block, as for drawing, also in the parts that are trained."""
        training = [layer for layer in self.modules() if layer.training]
        self.eval()
        try:
            yield
        finally:
            for layer in training:
                layer.training = True

    def lay_out_contiguously(self) -> None:
        """Stores the UNet's weights contiguously, for optimizers that do so in their first step anyway."""
        for weight in self.unet.parameters():
            weight.data = weight.data.contiguous()

    def tokenize(self, prompts: Sequence[str]) -> TokenIds:
        """Prompts => token ids, on the model's device."""
        values, places = without_repeats(tokenize(self.tokenizer, prompts))
        return TokenIds(values.to(self.device), places.to(self.device))

    def embed(self, token_ids: TokenIds) -> Conditioning:
        """Token ids => conditioning of each row."""
        # Gradient checkpointing recomputes outside of this block, where another kernel would be chosen.
        checkpointed = self.text_encoder.is_activation_checkpointing
        with nullcontext() if checkpointed else attention_kernel(token_ids.values.shape[1], self.device):
            hidden: Tensor = self.text_encoder(token_ids.values)[0]
        return Conditioning(hidden[token_ids.places])

    def predict(
        self, noisy: Float[Tensor, "rows c h w"], timesteps: Tensor, conditioning: Conditioning
    ) -> Float[Tensor, "rows c h w"]:
        """x_t, timesteps (one for all rows or one per row) and prompts => predicted noise or velocity."""
        prediction: Tensor = self.unet(noisy, timesteps, conditioning.hidden_states, return_dict=False)[0]
        return prediction

    @torch.no_grad()
    def encode(self, pixels: UInt8[Tensor, "rows 3 height width"]) -> Float[Tensor, "rows twice_c h w"]:
        """Images as bytes => mean and standard deviation of the scaled latents, stacked along the channels."""
        scaled = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(scaled).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows 3 height width"]:
        """Scaled latents => images in [0, 1]."""
        scaled: Tensor = self.vae.decode(latents / self.scaling_factor, return_dict=False)[0]
        return (scaled.float() / 2 + 0.5).clamp(0, 1)


def _with_all_weights(module: Any, loaded: dict[str, Any]) -> Any:
    """The loaded part, unless its file lacks weights, which the libraries would replace by random ones."""
    if loaded["missing_keys"]:
        raise ValueError(f"{type(module).__name__} lacks {len(loaded['missing_keys'])} of its weights")
    return module


def _in_memory(part: Part) -> Part:
    """A part with its weights in memory of their own, kernels of convolutions with channels last.

    Else those of a file in fp32 would stay mapped, and with them the whole file, beside copies of the kernels.
    """
    for weight in part.parameters():
        layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        weight.data = weight.data.clone(memory_format=layout)
    return part
