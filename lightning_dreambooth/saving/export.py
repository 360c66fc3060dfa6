"""Export of a trained model: a diffusers folder or a LoRA file, with a model card and its metrics."""

from pathlib import Path
from typing import NamedTuple

import torch

from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.evaluation.history import MetricsRow
from lightning_dreambooth.evaluation.tables import write_json
from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.diffusers_folder import save_folder
from lightning_dreambooth.models.lora_files import save_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.card import lora_metadata, model_card
from lightning_dreambooth.saving.checkpoint_io import RESUMES
from lightning_dreambooth.saving.order import RECORD
from lightning_dreambooth.saving.reading_back import check_folder, check_lora_file, expected

METRICS_FILE = "validation.json"
LORA_FILE = "{}-lora.safetensors"  # with the name of the run


class ExportFormat(NamedTuple):
    """How weights are exported.

    Attributes:
        dtype: Number format of the weights.
        fused: Whether a run that trains adapters also writes a diffusers folder with them added to the weights.
    """

    dtype: torch.dtype
    fused: bool


def export(
    module: DreamBooth, data: DreamBoothData, folder: Path, form: ExportFormat, metrics: MetricsRow, resumes: int
) -> None:
    """Writes the (averaged) weights of a run atomically: as a pipeline folder, or as a LoRA file in a folder.

    `metrics` are those of this step, empty if nothing was measured; `resumes` counts how often the run was resumed.

    Raises:
        TrainingError: if writing fails, or diffusers does not read back from a LoRA run what the module computes.
    """
    with replaced(folder) as beside, module.averaged():
        if module.lora is None:
            save_folder(module.model, beside, form.dtype)
        else:
            _write_adapters(module, data, beside, lora_name(folder), form)
        write_json(beside / RECORD, {"step": module.global_step, RESUMES: resumes})
        card = model_card(module, data, folder, metrics, lora_name(folder))
        (beside / "README.md").write_text(card, encoding="utf-8")
        if metrics:
            write_json(beside / METRICS_FILE, metrics)


def _write_adapters(module: DreamBooth, data: DreamBoothData, folder: Path, name: str, form: ExportFormat) -> None:
    save_lora(module.model.trainable, folder / name, form.dtype, lora_metadata(module, data, Path(name).stem))
    computing = module.trainer.precision_plugin.forward_context()
    wanted = expected(module.model, data.concepts[0].instance_prompt, computing)
    check_lora_file(wanted, module.files, folder / name)
    if form.fused:
        save_folder(module.model, folder, form.dtype)
        check_folder(wanted, folder)


def lora_name(export_folder: Path) -> str:
    """Name of the LoRA file in an export of a run that trains adapters."""
    return LORA_FILE.format(export_folder.parent.parent.name)


def exported_files(base: ModelFiles, export_folder: Path, lora_scale: float) -> ModelFiles:
    """Files of the model in an export: its diffusers folder, or the base model with its LoRA file at a scale."""
    lora = export_folder / lora_name(export_folder)
    return base.with_lora(lora, lora_scale) if lora.is_file() else ModelFiles(str(export_folder))
