"""DreamBooth as the published scripts train it: diffusers' parts, every image encoded and every prompt embedded anew.

It is what `fit.py` compares with. Like those scripts it opens its images in each step, in the order of a shuffled
loader, and keeps the memory layout and the attention that diffusers chooses.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from transformers import CLIPTextModel, CLIPTokenizer

Mark = Callable[[str], None]


class Settings(NamedTuple):
    """What a script's flags say.

    Attributes:
        model: Folder of the base model.
        instance: Folder and prompt of the instance images.
        prior: Folder and prompt of the class images.
        resolution_px: Side of the squares.
        batch_size: Pairs of an instance and a class image per step.
        train_text_encoder: Whether the text encoder is trained, too.
        checkpointing: Gradient checkpointing.
        bf16: Autocast, with the frozen parts in bf16.
        optimizer: Builds the optimizer.
    """

    model: Path
    instance: tuple[Path, str]
    prior: tuple[Path, str]
    resolution_px: int
    batch_size: int
    train_text_encoder: bool
    checkpointing: bool
    bf16: bool
    optimizer: Callable[[Any], torch.optim.Optimizer]


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """An instance image and a class image, from their files."""

    def __init__(self, settings: Settings) -> None:
        folders = (settings.instance[0], settings.prior[0])
        self.files = [sorted(path for path in folder.iterdir() if path.suffix == ".png") for folder in folders]
        size = settings.resolution_px
        self.transform = transforms.Compose([
            transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ])  # fmt: skip

    def __len__(self) -> int:
        return max(map(len, self.files))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        paths = [files[index % len(files)] for files in self.files]
        instance, prior = (self.transform(Image.open(path).convert("RGB")) for path in paths)
        return instance, prior


def steps(settings: Settings, mark: Mark) -> Iterator[None]:
    """Trains; yields after each step. `mark` is called with the name of each part of a step when it ends."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet, vae, text_encoder, tokenizer, noise_schedule = load(settings, device)
    trained: list[nn.Parameter] = [*unet.parameters()]
    if settings.train_text_encoder:
        trained += text_encoder.parameters()
    optimizer = settings.optimizer(trained)
    loader = DataLoader(Pairs(settings), batch_size=settings.batch_size, shuffle=True, drop_last=True)
    prompts = [settings.instance[1]] * settings.batch_size + [settings.prior[1]] * settings.batch_size
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16)
    for instance, prior in itertools.chain.from_iterable(itertools.repeat(loader)):
        pixels = torch.cat([instance, prior]).to(device)
        mark("data")
        with autocast:
            with torch.no_grad():
                latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            mark("encode")
            noise = torch.randn_like(latents)
            timesteps = torch.randint(noise_schedule.config.num_train_timesteps, (len(latents),), device=device)
            noisy = noise_schedule.add_noise(latents, noise, timesteps)
            hidden = text_encoder(tokens)[0]
            prediction = unet(noisy, timesteps, hidden).sample
            target = noise
            if noise_schedule.config.prediction_type == "v_prediction":
                target = noise_schedule.get_velocity(latents, noise, timesteps)
            halves = zip(prediction.float().chunk(2), target.float().chunk(2), strict=True)
            instance_loss, prior_loss = (nn.functional.mse_loss(*half) for half in halves)
        mark("forward")
        (instance_loss + prior_loss).backward()
        mark("backward")
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        yield


def load(settings: Settings, device: torch.device) -> tuple[Any, Any, Any, Any, Any]:
    """UNet, VAE, text encoder, tokenizer and noise schedule; what is frozen in bf16, if that is on."""
    folder, frozen = settings.model, torch.bfloat16 if settings.bf16 else torch.float32
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(device)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(device, frozen).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32).to(device)
    unet.train()
    if settings.checkpointing:
        unet.enable_gradient_checkpointing()
    if settings.train_text_encoder:
        text_encoder.train()
        if settings.checkpointing:
            text_encoder.gradient_checkpointing_enable()
    else:
        text_encoder.to(frozen).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    return unet, vae, text_encoder, tokenizer, DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
