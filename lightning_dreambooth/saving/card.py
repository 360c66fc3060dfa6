"""What an export says about itself: the model card, and the metadata of a LoRA file."""

from collections.abc import Sequence
from pathlib import Path

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.data.training_images import ConceptImages
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.evaluation.history import MetricsRow
from lightning_dreambooth.models.lora import ADAPTER, Lora, adapted
from lightning_dreambooth.models.single_file import modelspec
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth

FOLDER = """\
pipeline = StableDiffusionPipeline.from_pretrained("{folder}")
"""
LORA = """\
pipeline = StableDiffusionPipeline.{load}("{base}")
pipeline.load_lora_weights("{folder}", weight_name="{lora}")
"""


def model_card(module: DreamBooth, data: DreamBoothData, folder: Path, metrics: MetricsRow, lora: str) -> str:
    """The model card: Markdown with the front matter that model hubs read."""
    concepts = "\n".join(
        _trained_on(concept, [images for images in data.dataset.concepts if images.number == number])
        for number, concept in enumerate(data.concepts)
    )
    trained = " and ".join(name.replace("_", " ").replace("unet", "UNet") for name in module.trained)
    prompt, base, vae = data.concepts[0].instance_prompt, module.files.pretrained, module.files.vae
    measured = "".join(f"| {name} | {value:.3f} |\n" for name, value in metrics.items() if name != "step")
    snippet = (LORA if module.lora else FOLDER).format(
        base=base, folder=folder, lora=lora, load="from_single_file" if Path(base).is_file() else "from_pretrained"
    )
    return f"""---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, dreambooth, lightning-dreambooth{", lora" if module.lora else ""}]
---
# {folder.parent.parent.name}, step {module.global_step}

{base} fine-tuned with DreamBooth (arXiv:2208.12242), {"adapters of " if module.lora else ""}{trained} trained:

{concepts}

| | |
|---|---|
| optimizer steps | {module.global_step} |
| samples per step | {data.batch_size * module.trainer.accumulate_grad_batches * module.trainer.world_size} |
| resolution | {data.resolution_px} px |
| prior weight | {module.prior_weight} |
| adapters | {_adapters(module)} |
| VAE | {vae or "the base model's"} |
| moving average | {module.ema_decay or "none"} |
| seed | {module.seed} |
{measured}
```python
from diffusers import StableDiffusionPipeline
{snippet}pipeline("{prompt}", height={data.resolution_px}, width={data.resolution_px}).images[0]
```
"""


def _adapters(module: DreamBooth) -> str:
    if not isinstance(module.lora, Lora):
        return f"those of {module.lora.name}, trained further" if module.lora else "none: all weights"
    alpha = module.lora.rank if module.lora.alpha is None else module.lora.alpha
    return f"{'DoRA' if module.lora.dora else 'LoRA'}, rank {module.lora.rank}, alpha {alpha:g}, {module.lora.targets}"


def lora_metadata(model: StableDiffusion, base: str, title: str, side_px: int) -> dict[str, str]:
    """Metadata of a model's adapters, by the keys of kohya (`ss_`) and of Stability's ModelSpec 1.0.0 (`modelspec.`).

    Nothing in it tells of the machine: a base model that is a folder is named without the path to it.
    """
    layers = [layer for part in model.trainable.values() for _, layer in adapted(part)]
    ranks, spec = {layer.r[ADAPTER] for layer in layers}, modelspec(model, side_px)
    alpha = max(layer.scaling[ADAPTER] * layer.r[ADAPTER] for layer in layers)
    dora = any(layer.use_dora[ADAPTER] for layer in layers)
    return spec | {
        "modelspec.architecture": spec["modelspec.architecture"] + "/lora",
        "modelspec.title": title,
        **({} if dora else {"ss_network_module": "networks.lora"}),  # kohya's has no DoRA
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": "sd_v2" if "-v2" in spec["modelspec.architecture"] else "sd_v1",
        "ss_sd_model_name": Path(base).name,
        "ss_output_name": title,
        "ss_resolution": f"({side_px}, {side_px})",
    }


def run_metadata(module: DreamBooth, data: DreamBoothData) -> dict[str, str]:
    """What the metadata of a LoRA file say of the run."""
    return {
        "modelspec.trigger_phrase": ", ".join(concept.instance_prompt for concept in data.concepts),
        "ss_steps": str(module.global_step),
        "ss_seed": str(module.seed),
    }


def _trained_on(concept: Concept, sets: Sequence[ConceptImages]) -> str:
    """A line about the images of a concept, which are in one set or, with buckets, in several."""
    instances, classes = sum(len(one.instances) for one in sets), sum(len(one.classes) for one in sets)
    return (
        f"- `{concept.instance_prompt}`: {instances} instance images"
        + (f", with {classes} class images of `{concept.class_prompt}`" if classes else "")
        + (f", with the base as teacher of `{sets[0].taught_prompt}`" if sets[0].taught_prompt else "")
    )
