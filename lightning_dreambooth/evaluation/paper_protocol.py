"""The DreamBooth paper's protocol for one trained model and one subject: every prompt, several images, one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.diffusion.requests import ImageJob
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.dreambench import Subject
from lightning_dreambooth.evaluation.encoders import Clip, Encoder, Encoders
from lightning_dreambooth.evaluation.intervals import Interval, bootstrap_interval
from lightning_dreambooth.evaluation.tables import markdown, three_digits, write_csv, write_json, write_text

RECORD = "benchmark.json"
IMAGES = "images"
# Ruiz et al. 2023, Table 1: means over 30 subjects; it names no CLIP backbone, sampler, steps or guidance.
PUBLISHED: dict[str, dict[str, float]] = {
    "real images": {"dino": 0.774, "clip_i": 0.885},
    "DreamBooth, Imagen": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306},
    "DreamBooth, Stable Diffusion": {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
    "Textual Inversion, Stable Diffusion": {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
}
COLUMNS: tuple[str, ...] = ("dino", "clip_i", "clip_t")  # the paper's metrics, in the paper's order
NOTE = (
    "Means over prompts with 95 % bootstrap intervals over prompts; published values are means over 30 subjects with "
    "backbones and samplers that the paper does not state, and compare only with the same backbones."
)


@dataclass(frozen=True)
class PaperTest:
    """The images of one model and one subject, and everything that decides them.

    Attributes:
        subject: The subject of the dataset.
        encoders: The encoders that measure.
        folder: Folder of the test.
        jobs: The images, every prompt with every seed.
        texts: For each image, the text that it is compared with.
        record: Everything that decides the images, as plain values.
    """

    subject: Subject
    encoders: Encoders
    folder: Path
    jobs: list[ImageJob]
    texts: list[str]
    record: dict[str, Any]

    def missing_batches(self, batch_size: int) -> list[list[ImageJob]]:
        """The batches that lack an image. Whole batches, because the last bit of an image may depend on its batch."""
        batches = [self.jobs[start : start + batch_size] for start in range(0, len(self.jobs), batch_size)]
        return [batch for batch in batches if not all(job.path and job.path.is_file() for job in batch)]

    def check_record(self) -> None:
        """Raises InputError if the folder exists and holds anything but this test."""
        if not self.folder.exists():
            return
        file = self.folder / RECORD
        present = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if present != self.record:
            differs = [key for key, value in self.record.items() if present.get(key) != value]
            raise InputError(f"{self.folder} holds another test or run ({', '.join(differs)}); choose another name")

    def measure(self, device: torch.device) -> str:
        """Measures all images, writes the tables and returns the summary as Markdown."""
        rows = self._rows()
        ceiling: dict[str, float] = {}
        images = [read_image(job.path) for job in self.jobs if job.path]
        instances = [read_image(path) for path in self.subject.images]
        for encoder in self.encoders.by_role.values():
            name = "clip_i" if isinstance(encoder, Clip) else "dino"
            with encoder.on(device):
                embedded, embedded_instances = encoder.images(images), encoder.images(instances)
                texts = encoder.texts(self.texts) if isinstance(encoder, Clip) else None
            ceiling[name] = metrics.self_similarity(embedded_instances)
            columns = {name: metrics.cosines(embedded, embedded_instances).mean(1)}
            if texts is not None:
                columns["clip_t"] = metrics.cosines(embedded, texts).diagonal()
            for i, row in enumerate(rows):
                row |= {column: values[i].item() for column, values in columns.items()} | _described(name, encoder)
        write_csv(self.folder / "images.csv", rows)
        return self._summarize(rows, ceiling)

    def _rows(self) -> list[dict[str, Any]]:
        made_by = {key: self.record[key] for key in ("model", "state", "resolution_px", "precision")}
        form = f"{self.record['identifier']} {self.subject.class_name}, text without the identifier"
        return [
            {"subject": self.subject.name, "file": job.path.name, "text": text, **job.request.as_dict()}
            | {"prompt_form": form, **made_by}
            for job, text in zip(self.jobs, self.texts, strict=True)
            if job.path
        ]

    def _summarize(self, rows: list[dict[str, Any]], ceiling: Mapping[str, float]) -> str:
        per_prompt = self.record["images_per_prompt"]
        summary = {name: _over_prompts([row[name] for row in rows], per_prompt) for name in COLUMNS if name in rows[0]}
        plain = {name: {"mean": value.mean, "low": value.low, "high": value.high} for name, value in summary.items()}
        write_json(self.folder / "summary.json", self.record | {"metrics": plain, "ceiling": dict(ceiling)})
        backbones = ", ".join(encoder.name for encoder in self.encoders.by_role.values())
        name = self.subject.name
        cells = [
            [f"{name}, this model ({backbones})", *(_with_interval(summary.get(column)) for column in COLUMNS)],
            [f"{name}, its own images", *(three_digits(ceiling.get(column)) for column in COLUMNS)],
        ]
        for method, values in PUBLISHED.items():
            cells.append([f"published: {method}", *(three_digits(values.get(column)) for column in COLUMNS)])
        table = markdown(["", *COLUMNS], cells)
        write_text(self.folder / "summary.md", f"{table}\n\n{NOTE}\n")
        return table


def _described(name: str, encoder: Encoder) -> dict[str, str]:
    return {f"{name}_backbone": encoder.name, f"{name}_preprocessing": encoder.preprocessing}


def _over_prompts(values: list[float], per_prompt: int) -> Interval:
    """Mean over prompts of the mean over images, with the interval over prompts."""
    return bootstrap_interval([fmean(values[i : i + per_prompt]) for i in range(0, len(values), per_prompt)])


def _with_interval(value: Interval | None) -> str:
    if value is None or value.low is None:
        return "" if value is None else three_digits(value.mean)
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
