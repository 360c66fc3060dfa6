"""Single files in the original layout: written as diffusers, ComfyUI and kohya read them, and read to the same bits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.single_files import (
    PARTS,
    TEXT,
    UNET,
    VAE,
    assert_same_bits,
    full_size,
    load,
    metadata_of,
    names_of_sd15,
    written,
)

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.single_file import save_single_file, single_file_tensors
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


@pytest.mark.parametrize("kind", ["1.x", "2.x", "toonbase", "tiny"])
def test_diffusers_reads_a_file_back_to_the_bit(layouts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    file = written(layouts[kind], tmp_path / "x.safetensors")
    read = StableDiffusionPipeline.from_single_file(str(file), config=str(layouts[kind]), local_files_only=True)
    model = load(layouts[kind])
    for part in PARTS:
        assert_same_bits(getattr(read, part), getattr(model, part))


def test_the_names_are_those_of_sd15s_own_file() -> None:
    names = full_size(768)
    assert names.keys() == names_of_sd15()
    counts = [sum(name.startswith(prefix) for name in names) for prefix in (UNET, VAE, TEXT)]
    assert counts == [686, 248, 196]
    assert names[f"{UNET}input_blocks.4.0.skip_connection.weight"] == [640, 320, 1, 1]
    assert names[f"{UNET}output_blocks.5.2.conv.weight"] == [1280, 1280, 3, 3]


def test_openclips_names_join_queries_keys_and_values() -> None:
    names = full_size(1024)
    text = sorted(name.removeprefix(f"{TEXT}model.") for name in names if name.startswith(TEXT))
    assert len(text) == 23 * 12 + 4
    block = {name.removeprefix("transformer.resblocks.22.") for name in text if ".22." in name}
    layers = ["attn.in_proj_", "attn.out_proj.", "ln_1.", "ln_2.", "mlp.c_fc.", "mlp.c_proj."]
    assert block == {layer + leaf for layer in layers for leaf in ("weight", "bias")}
    others = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"}
    assert {name for name in text if "resblocks" not in name} == others
    assert names[f"{TEXT}model.transformer.resblocks.0.attn.in_proj_weight"] == [3072, 1024]


@pytest.mark.parametrize(("kind", "dims"), [("1.x", 4), ("2.x", 2)])
def test_shapes_are_those_of_the_original(layouts: dict[str, Path], kind: str, dims: int) -> None:
    model = load(layouts[kind])
    tensors = single_file_tensors(model.unet, model.vae, model.text_encoder)
    assert tensors[f"{UNET}input_blocks.1.1.proj_in.weight"].ndim == dims
    for layer in ("q", "k", "v", "proj_out"):
        assert tensors[f"{VAE}encoder.mid.attn_1.{layer}.weight"].shape == (32, 32, 1, 1)
        assert tensors[f"{VAE}encoder.mid.attn_1.{layer}.bias"].shape == (32,)


def test_metadata_say_what_the_model_is(layouts: dict[str, Path], tmp_path: Path) -> None:
    said = {kind: metadata_of(written(layouts[kind], tmp_path / f"{kind}.safetensors")) for kind in layouts}
    keys = ("architecture", "prediction_type", "resolution", "sai_model_spec", "title")
    facts = {kind: [entries[f"modelspec.{key}"] for key in keys] for kind, entries in said.items()}
    assert facts["1.x"] == ["stable-diffusion-v1", "epsilon", "64x64", "1.0.0", "1.x"]
    assert facts["2.x"] == ["stable-diffusion-v2-768-v", "v", "64x64", "1.0.0", "2.x"]
    assert json.loads(said["toonbase"]["lightning_dreambooth.vae/config.json"])["scaling_factor"] == 0.8959436070651375
    for kind, entries in said.items():
        assert not any(str(layouts[kind].parent) in text for text in entries.values())


def test_a_tokenizers_place_on_disk_is_not_written(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["1.x"], tmp_path / "copy"))
    config = folder / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"name_or_path": "/home/somebody/words"}))
    assert "somebody" not in str(metadata_of(written(folder, tmp_path / "x.safetensors")))


def test_the_callers_metadata_come_first(model: StableDiffusion, tmp_path: Path) -> None:
    save_single_file(model, tmp_path / "x.safetensors", torch.float16, {"modelspec.title": "Toon, ✓", "other": "1"})
    entries = metadata_of(tmp_path / "x.safetensors")
    assert (entries["modelspec.title"], entries["other"]) == ("Toon, ✓", "1")


def test_equal_models_give_equal_bytes(tiny_sd: Path, tmp_path: Path) -> None:
    files = [written(tiny_sd, tmp_path / name / "x.safetensors") for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_blocks_without_names_in_the_original_layout_are_refused(layouts: dict[str, Path]) -> None:
    model = load(layouts["1.x"])
    model.unet.register_to_config(mid_block_type="UNetMidBlock2DSimpleCrossAttn")
    with pytest.raises(InputError, match="no names for blocks of the kind UNetMidBlock2DSimpleCrossAttn"):
        single_file_tensors(model.unet, model.vae, model.text_encoder)
