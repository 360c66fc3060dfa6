import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from helpers import tiny
from safetensors import safe_open

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.diffusers_folder import save_folder
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

PICTURES = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_tiny_model_has_about_a_million_parameters(model: StableDiffusion) -> None:
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6


def test_encoding_matches_diffusers(model: StableDiffusion, tiny_sd: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae", low_cpu_mem_usage=False)
    posterior = vae.encode(PICTURES / 127.5 - 1).latent_dist
    expected = torch.cat([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor
    torch.testing.assert_close(model.encode(PICTURES), expected, atol=1e-5, rtol=1e-4)


def test_decoding_matches_diffusers(model: StableDiffusion, tiny_sd: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae", low_cpu_mem_usage=False)
    latents = torch.randn(2, 4, 8, 8)
    expected = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(latents), expected, atol=1e-5, rtol=1e-4)


def test_embedding_equal_prompts_once_changes_nothing(model: StableDiffusion) -> None:
    ids = model.tokenize(["a photo of sks girl", "a boy", "a photo of sks girl"])
    assert len(ids.values) == 2
    expected = torch.cat([model.text_encoder(row[None])[0] for row in ids.values[ids.places]])
    torch.testing.assert_close(model.embed(ids).hidden_states, expected, atol=1e-6, rtol=1e-5)


def test_prompts_are_padded_to_the_full_length_as_the_pipeline_pads_them(model: StableDiffusion) -> None:
    assert model.tokenize(["a", "a photo of " * 20]).values.shape == (2, tiny.TOKENS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_plain_pipeline_loads_a_saved_model_and_draws(
    model: StableDiffusion, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_folder(model, tmp_path / "saved", dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of sks girl", num_inference_steps=1, output_type="pt").images
    assert image.shape == (1, 3, 32, 32)


def test_saving_and_loading_gives_the_same_weights(model: StableDiffusion, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "saved", torch.float32)
    again = StableDiffusion.load(ModelFiles(str(tmp_path / "saved")))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_half_precision_files_load_as_full_precision_masters(model: StableDiffusion, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "saved", torch.float16)
    again = StableDiffusion.load(ModelFiles(str(tmp_path / "saved")))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_a_saved_model_is_laid_out_for_older_readers_too(model: StableDiffusion, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "saved", torch.float16)
    with safe_open(tmp_path / "saved/text_encoder/model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "saved/tokenizer").iterdir()}
    assert not any("_name_or_path" in path.read_text() for path in (tmp_path / "saved").rglob("*.json"))


def test_a_saved_model_says_its_dtype_where_transformers_looks(model: StableDiffusion, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "saved", torch.float16)
    assert json.loads((tmp_path / "saved/text_encoder/config.json").read_text())["dtype"] == "float32"


def test_a_variant_is_loaded_by_its_name(model: StableDiffusion, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "saved", torch.float16)
    for file in list((tmp_path / "saved").rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    StableDiffusion.load(ModelFiles(str(tmp_path / "saved"), variant="fp16"))
    with pytest.raises(InputError, match=r"lacks unet/diffusion_pytorch_model\.safetensors"):
        _ = ModelFiles(str(tmp_path / "saved")).folder


def test_another_vae_replaces_the_models_own(tiny_sd: Path, tmp_path: Path) -> None:
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    for folder in (other, other / "vae"):
        loaded = StableDiffusion.load(ModelFiles(str(tiny_sd), vae=str(folder))).vae.state_dict()
        expected = AutoencoderKL.from_pretrained(other, subfolder="vae", low_cpu_mem_usage=False).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


def test_short_sequences_trained_on_a_cpu_give_the_same_gradient_as_fused_attention(model: StableDiffusion) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    def gradient() -> torch.Tensor:
        model.unet.requires_grad_(True).zero_grad()
        noisy, context = torch.ones(1, 4, 8, 8), torch.ones(1, tiny.TOKENS, 32)
        model.unet(noisy, 10, context).sample.square().sum().backward()
        return model.unet.conv_in.weight.grad.clone()

    ours = gradient()
    model.unet.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(ours, gradient(), rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
