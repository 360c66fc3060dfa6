"""Export of a trained model: a diffusers folder with a model card and its metrics."""

from pathlib import Path

import torch

from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.evaluation.history import MetricsRow
from lightning_dreambooth.evaluation.tables import write_json
from lightning_dreambooth.files import replaced
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.checkpoint_io import RESUMES
from lightning_dreambooth.saving.order import RECORD

METRICS_FILE = "validation.json"


def export(
    module: DreamBooth, data: DreamBoothData, folder: Path, dtype: torch.dtype, metrics: MetricsRow, resumes: int
) -> None:
    """Writes the (averaged) weights of a run atomically, as a Stable Diffusion pipeline folder.

    `metrics` are those of this step, empty if nothing was measured; `resumes` counts how often the run was resumed.
    """
    with replaced(folder) as beside, module.averaged():
        module.model.save(beside, dtype)
        write_json(beside / RECORD, {"step": module.global_step, RESUMES: resumes})
        (beside / "README.md").write_text(model_card(module, data, folder, metrics), encoding="utf-8")
        if metrics:
            write_json(beside / METRICS_FILE, metrics)


def model_card(module: DreamBooth, data: DreamBoothData, folder: Path, metrics: MetricsRow) -> str:
    """The model card: Markdown with the front matter that model hubs read."""
    concepts = "\n".join(
        f"- `{concept.instance_prompt}`: {len(images.instances)} instance images"
        + (f", with {len(images.classes)} class images of `{concept.class_prompt}`" if images.classes else "")
        + (f", with the base as teacher of `{images.taught_prompt}`" if images.taught_prompt else "")
        for concept, images in zip(data.concepts, data.dataset.concepts, strict=True)
    )
    trained = " and ".join(name.replace("_", " ").replace("unet", "UNet") for name in module.trained)
    prompt, base, vae = data.concepts[0].instance_prompt, module.files.pretrained, module.files.vae
    measured = "".join(f"| {name} | {value:.3f} |\n" for name, value in metrics.items() if name != "step")
    return f"""---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, dreambooth, lightning-dreambooth]
---
# {folder.parent.parent.name}, step {module.global_step}

{base} fine-tuned with DreamBooth (arXiv:2208.12242), {trained} trained:

{concepts}

| | |
|---|---|
| optimizer steps | {module.global_step} |
| samples per step | {data.batch_size * module.trainer.accumulate_grad_batches * module.trainer.world_size} |
| resolution | {data.resolution_px} px |
| prior weight | {module.prior_weight} |
| VAE | {vae or "the base model's"} |
| moving average | {module.ema_decay or "none"} |
| seed | {module.seed} |
{measured}
```python
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained("{folder}")
pipeline("{prompt}", height={data.resolution_px}, width={data.resolution_px}).images[0]
```
"""
