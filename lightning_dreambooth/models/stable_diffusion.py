"""Stable Diffusion 1.x and 2.x as one module: loading, prediction, encoding, decoding and saving.

Ranges: images come in as bytes 0 ... 255 and go out in [0, 1]; latents carry the VAE's scaling factor.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lightning_dreambooth.models.attention import ShapeAwareAttention, attention_kernel
from lightning_dreambooth.models.conditioning import Conditioning
from lightning_dreambooth.models.configs import readable_model
from lightning_dreambooth.models.lora import Lora, adapted, add_adapters, fuse, fused, is_adapter, scale_adapters
from lightning_dreambooth.models.lora_files import read_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.noise_schedule import load_noise_schedule
from lightning_dreambooth.models.tokens import TokenIds, load_tokenizer, tokenize, without_repeats
from lightning_dreambooth.models.weight_files import WEIGHTS, weights_file

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


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
        # Without low_cpu_mem_usage=False diffusers requires accelerate, which is not needed here.
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

    def latent_shape(self, resolution_px: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a square image."""
        side = resolution_px // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.vae.config.latent_channels, side, side)

    def train_parts(self, text_encoder: bool, checkpointing: bool) -> dict[str, dict[str, nn.Parameter]]:
        """Prepares the UNet and, if chosen, the text encoder for training.

        Returns:
            Their weights, by part and name.
        """
        parts = {name: part for name, part in self.trainable.items() if name == "unet" or text_encoder}
        for part in parts.values():
            part.requires_grad_(True)
        return self._to_train(parts, checkpointing)

    def train_adapters(
        self, lora: Lora | Path, text_encoder: bool, checkpointing: bool, scale: float, seed: int
    ) -> dict[str, dict[str, nn.Parameter]]:
        """Puts adapters into the UNet and, if chosen, the text encoder, or into the parts that a file adapts.

        Args:
            lora: Settings of new adapters, or a LoRA file.
            text_encoder: Whether the text encoder gets new adapters, too.
            checkpointing: Trades time for memory.
            scale: Factor of what the adapters add.
            seed: New adapters are a function of it.

        Returns:
            The adapters, by part and name.
        """
        if isinstance(lora, Path):
            parts = self.read_lora(lora, scale)
        else:
            parts = {name: part for name, part in self.trainable.items() if name == "unet" or text_encoder}
            for name, part in parts.items():
                add_adapters(part, name, lora, seed)
                scale_adapters(part, scale)
        for part in parts.values():
            for name, weight in part.named_parameters():
                weight.requires_grad_(is_adapter(name))
        return self._to_train(parts, checkpointing)

    def _to_train(self, parts: Mapping[str, nn.Module], checkpointing: bool) -> dict[str, dict[str, nn.Parameter]]:
        for part in parts.values():
            part.train()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            if "text_encoder" in parts:
                self.text_encoder.activation_checkpointing_enable()
        return {
            name: {key: weight for key, weight in part.named_parameters() if weight.requires_grad}
            for name, part in parts.items()
        }

    def freeze_in(self, dtype: torch.dtype) -> None:
        """Stores the frozen weights of linear layers and convolutions of UNet and text encoder in a number format.

        Norms and biases stay in fp32: they are few, and autocast computes norms in fp32.
        """
        for part in self.trainable.values():
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.requires_grad:
                    layer.weight.data = layer.weight.data.to(dtype)

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
        self.unet.to(memory_format=torch.contiguous_format)

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

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes a diffusers folder with weights of the given dtype, which `from_pretrained(folder)` loads directly."""
        for part in WEIGHTS:
            self._save_part(part, folder / part, dtype)
        for part in ("tokenizer", "scheduler"):
            shutil.copytree(self.folder / part, folder / part)
        if not (folder / "tokenizer/merges.txt").is_file():  # transformers 5 leaves them out, other readers need them
            self.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
        _write_json(folder / "model_index.json", self._index())

    def _save_part(self, part: str, folder: Path, dtype: torch.dtype) -> None:
        module = getattr(self, part)
        folder.mkdir(parents=True)
        _write_json(folder / "config.json", self.part_config(part))
        prefix = "text_model." if part == "text_encoder" else ""  # as in SD 1.5's files; all readers accept it
        weights = {prefix + name: value.to("cpu", dtype).contiguous() for name, value in fused(module).items()}
        save_file(weights, folder / weights_file(part, None), metadata={"format": "pt"})

    def part_config(self, part: str) -> dict[str, Any]:
        """The config of `unet`, `vae` or `text_encoder`, as its file holds it."""
        module = getattr(self, part)
        config = dict(module.config) if part != "text_encoder" else module.config.to_dict()
        config = {key: value for key, value in config.items() if key != "_name_or_path"}
        if part == "text_encoder":  # transformers loads in the dtype written here, diffusers always in fp32
            return config | {"dtype": "float32", "architectures": ["CLIPTextModel"]}
        return {"_class_name": type(module).__name__, **config}

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


def _with_all_weights(module: Any, loaded: dict[str, Any]) -> Any:
    """The loaded part, unless its file lacks weights, which the libraries would replace by random ones."""
    if loaded["missing_keys"]:
        raise ValueError(f"{type(module).__name__} lacks {len(loaded['missing_keys'])} of its weights")
    return module


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
