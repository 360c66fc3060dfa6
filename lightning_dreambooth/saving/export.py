"""Export of a trained model: a diffusers folder or a LoRA file, with a model card and its metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.history import MetricsRow, best_first
from lightning_dreambooth.evaluation.tables import write_json
from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.diffusers_folder import save_folder
from lightning_dreambooth.models.lora_files import save_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.reading_back import check_folder, check_lora_file, check_single_file, expected
from lightning_dreambooth.models.single_file import save_single_file
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.card import lora_metadata, model_card, run_metadata
from lightning_dreambooth.saving.checkpoint_io import RESUMES
from lightning_dreambooth.saving.order import EXPORTS, RECORD, newest_first
from lightning_dreambooth.saving.runs import step_name

METRICS_FILE = "validation.json"
LORA_FILE = "{}-lora.safetensors"  # with the name of the run
SINGLE_FILE = "{}.safetensors"


class ExportFormat(NamedTuple):
    """How weights are exported.

    Attributes:
        dtype: Number format of the weights.
        fused: Whether a run that trains adapters also writes a diffusers folder with them added to the weights.
        single_file: Whether the whole model is written as one file, too.
    """

    dtype: torch.dtype
    fused: bool
    single_file: bool


def export(
    module: DreamBooth, data: DreamBoothData, folder: Path, form: ExportFormat, metrics: MetricsRow, resumes: int
) -> None:
    """Writes the (averaged) weights of a run atomically: as a pipeline folder, or as a LoRA file in a folder.

    `metrics` are those of this step, empty if nothing was measured; `resumes` counts how often the run was resumed.

    Raises:
        TrainingError: if writing fails, or diffusers does not read back from a file what the module computes.
    """
    with replaced(folder) as beside, module.averaged():
        _write_weights(module, data, beside, folder.parent.parent.name, form)
        write_json(beside / RECORD, {"step": module.global_step, RESUMES: resumes})
        card = model_card(module, data, folder, metrics, lora_name(folder))
        (beside / "README.md").write_text(card, encoding="utf-8")
        if metrics:
            write_json(beside / METRICS_FILE, metrics)


def _write_weights(module: DreamBooth, data: DreamBoothData, folder: Path, run: str, form: ExportFormat) -> None:
    """Writes the weights in all chosen ways; but for a folder alone, diffusers must read back what the module computes.

    A folder is what `from_pretrained` reads, and loads as it is.
    """
    model = module.model
    if module.lora is None or form.fused:
        save_folder(model, folder, form.dtype)
    if module.lora is None and not form.single_file:
        return
    wanted = expected(model, data.concepts[0].instance_prompt, module.trainer.precision_plugin.forward_context())
    if module.lora is not None:
        lora = folder / LORA_FILE.format(run)
        metadata = lora_metadata(model, module.files.pretrained, lora.stem, data.resolution_px)
        save_lora(model.trainable, lora, form.dtype, metadata | run_metadata(module, data))
        check_lora_file(wanted, module.files, lora)
        if form.fused:
            check_folder(wanted, folder)
    if form.single_file:
        save_single_file(model, folder / SINGLE_FILE.format(run), form.dtype)
        check_single_file(wanted, model, folder / SINGLE_FILE.format(run))


def lora_name(export_folder: Path) -> str:
    """Name of the LoRA file in an export of a run that trains adapters."""
    return LORA_FILE.format(export_folder.parent.parent.name)


def best_export(run: Path, history: Sequence[MetricsRow]) -> Path:
    """The export of the best step of a run that was exported, else the newest one.

    Raises:
        InputError: if the run has no export.
    """
    best = [run / EXPORTS / step_name(row["step"]) for row in best_first(history)]
    found = [*(export for export in best if export.is_dir()), *(saved.path for saved in newest_first(run / EXPORTS))]
    if not found:
        raise InputError(f"{run} holds no export; give a run that `fit` has finished")
    return found[0]


def exported_files(base: ModelFiles, export_folder: Path, lora_scale: float) -> ModelFiles:
    """Files of the model in an export: its diffusers folder, or the base model with its LoRA file at a scale."""
    lora = export_folder / lora_name(export_folder)
    return base.with_lora(lora, lora_scale) if lora.is_file() else ModelFiles(str(export_folder))
