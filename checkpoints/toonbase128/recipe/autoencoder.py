"""The autoencoder (128 px, factor 8, 16 channels) and its start from toonbase's (64 px, factor 4, 4 channels).

The old encoder reads the picture at half its size: the new one's levels below the first are the old one's, and the
first four of its channels stay the old latents, so that a UNet which knows these need only learn the other twelve.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

CHANNELS = (16, 32, 64, 128)
LATENTS, OLD_LATENTS = 16, 4
QUIET = -8.0  # log variance with which a new channel begins


def build() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def _copy(source: nn.Module, target: nn.Module) -> list[nn.Parameter]:
    target.load_state_dict(source.state_dict())
    return list(target.parameters())


@torch.no_grad()
def _copy_encoder(old: nn.Module, new: nn.Module) -> list[nn.Parameter]:
    copied = _copy(old.down_blocks[0].downsamplers, new.down_blocks[1].downsamplers)
    copied += _copy(old.down_blocks[1], new.down_blocks[2]) + _copy(old.down_blocks[2], new.down_blocks[3])
    copied += _copy(old.mid_block, new.mid_block) + _copy(old.conv_norm_out, new.conv_norm_out)
    moments = 2 * OLD_LATENTS
    new.conv_out.weight[:moments], new.conv_out.bias[:moments] = old.conv_out.weight, old.conv_out.bias
    return copied


@torch.no_grad()
def _copy_moments(old: AutoencoderKL, new: AutoencoderKL) -> None:
    """Old means and variances first; a new mean is one feature, its variance is small."""
    weight, bias = new.quant_conv.weight, new.quant_conv.bias
    weight.zero_()
    bias.zero_()
    moments = 2 * OLD_LATENTS
    for half, start in enumerate((0, LATENTS)):
        rows = slice(half * OLD_LATENTS, (half + 1) * OLD_LATENTS)
        weight[start : start + OLD_LATENTS, :moments] = old.quant_conv.weight[rows]
        bias[start : start + OLD_LATENTS] = old.quant_conv.bias[rows]
    for channel in range(OLD_LATENTS, LATENTS):
        weight[channel, moments + channel - OLD_LATENTS] = 1
        bias[LATENTS + channel] = QUIET


@torch.no_grad()
def _copy_decoder(old: AutoencoderKL, new: AutoencoderKL) -> list[nn.Parameter]:
    nn.init.dirac_(new.post_quant_conv.weight)
    new.post_quant_conv.bias.zero_()
    new.post_quant_conv.weight[:OLD_LATENTS, :OLD_LATENTS] = old.post_quant_conv.weight
    new.post_quant_conv.bias[:OLD_LATENTS] = old.post_quant_conv.bias
    first, source = new.decoder.conv_in, old.decoder.conv_in
    first.weight[:, :OLD_LATENTS], first.bias[:] = source.weight, source.bias
    first.weight[:, OLD_LATENTS:] *= 0.3
    copied = _copy(old.decoder.mid_block, new.decoder.mid_block)
    for level, block in enumerate(old.decoder.up_blocks):
        copied += _copy(block.resnets, new.decoder.up_blocks[level].resnets)
        if block.upsamplers is not None:
            copied += _copy(block.upsamplers, new.decoder.up_blocks[level].upsamplers)
    widest = new.decoder.up_blocks[len(old.decoder.up_blocks) - 1].upsamplers[0].conv
    nn.init.dirac_(widest.weight)
    widest.bias.zero_()
    return copied


def start_from(old: AutoencoderKL, new: AutoencoderKL) -> list[nn.Parameter]:
    """Copies what fits; returns the copied weights, which need to be moved with care."""
    copied = _copy_encoder(old.encoder, new.encoder)
    _copy_moments(old, new)
    return copied + _copy_decoder(old, new)


def stem(new: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The new encoder up to where the old one's weights begin: pixels => features [B,32,H/2,W/2]."""
    first, second = new.encoder.down_blocks[:2]
    return second.resnets[0](first(new.encoder.conv_in(pixels)), temb=None)


@torch.no_grad()
def old_stem(old: AutoencoderKL, pixels: Tensor) -> Tensor:
    """What the old encoder has there, at half the picture's size."""
    return old.encoder.down_blocks[0].resnets[0](old.encoder.conv_in(avg_pool2d(pixels, 2)), temb=None)


@torch.no_grad()
def old_latents(old: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Pixels => the old latents of the picture at half its size [B,4,H/8,W/8]."""
    return old.encode(avg_pool2d(pixels, 2)).latent_dist.mean
