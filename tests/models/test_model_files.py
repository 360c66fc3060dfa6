import json
import shutil
from pathlib import Path

import pytest

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import ModelFiles, fingerprint, locate


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(tiny_sd: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_sd, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / part)
    with pytest.raises(InputError, match=f"broken lacks {part}/"):
        locate(str(tmp_path / "broken"))


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(InputError, match="no/such/model is neither a local folder nor a model"):
        locate("no/such/model")


def test_sizes_are_read_from_the_configs(tiny_sd: Path) -> None:
    files = ModelFiles(str(tiny_sd), None, None, None)
    assert files.vae_factor == 4
    assert files.native_resolution_px == 32


def test_fingerprints_are_equal_for_equal_weights_only(tiny_sd: Path, tmp_path: Path) -> None:
    weights = tiny_sd / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "same.safetensors")
    (tmp_path / "other.safetensors").write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert fingerprint(weights) == fingerprint(tmp_path / "same.safetensors")
    assert fingerprint(weights) != fingerprint(tmp_path / "other.safetensors")
    (tmp_path / "same.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    assert fingerprint(tmp_path / "same.safetensors") == fingerprint(tmp_path / "other.safetensors")


def test_an_unknown_prediction_type_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd, tmp_path / "sd")
    config = tmp_path / "sd/scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(InputError, match="predicts 'sample'; supported are epsilon, v_prediction"):
        locate(str(tmp_path / "sd"))
