"""The DreamBooth paper's protocol for one tuned model and one subject: every prompt, several images, one table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.callbacks.samples import image_name
from lightning_dreambooth.data.image_store import ImageJob
from lightning_dreambooth.data.images import read_image, tile, write_png
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.sampling import Request, Sampler, as_bytes, check_request
from lightning_dreambooth.distributed import barrier, first_of
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.dreambench import Subject, read_subject
from lightning_dreambooth.evaluation.encoders import Clip, Encoder
from lightning_dreambooth.evaluation.prompts import without
from lightning_dreambooth.evaluation.tables import markdown, write_csv, write_json, write_text
from lightning_dreambooth.files import sha256

RECORD = "benchmark.json"
PICTURES = "images"
# Ruiz et al. 2023, Table 1: means over 30 subjects; it names no CLIP backbone, sampler, steps or guidance.
PUBLISHED: dict[str, dict[str, float]] = {
    "real images": {"dino": 0.774, "clip_i": 0.885},
    "DreamBooth, Imagen": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306},
    "DreamBooth, Stable Diffusion": {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
    "Textual Inversion, Stable Diffusion": {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
}

COLUMNS: tuple[str, ...] = ("dino", "clip_i", "clip_t")
NOTE = (
    "Means over prompts with 95 % bootstrap intervals over prompts; published figures are means over 30 subjects with "
    "backbones and samplers that the paper does not state, and compare only with the same backbones."
)


class Benchmark(Callback):
    """Draws the paper's prompts for a subject and measures them with the encoders of `fidelity`.

    Args:
        folder: Folder with `prompts_and_classes.txt` and a folder per subject, as google/dreambooth has them.
        subject: Name of the subject the model was tuned on.
        num_images: Images per prompt; the paper draws 4.
        seed: Seed of the first image of each prompt; the next ones count up.
        negative_prompt: What guidance leads away from.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: ddim, dpm++ (DPM-Solver++ 2M) or euler.
        batch_size: Images drawn at once.
    """

    def __init__(
        self,
        folder: str = "data/dreambench",
        subject: str | None = None,
        num_images: int = 4,
        seed: int = 0,
        negative_prompt: str = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        sampler: Sampler = "ddim",
        batch_size: int = 4,
    ) -> None:
        for name, value in {"num_images": num_images, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"benchmark.{name} is {value}, must be 1 or more")
        self.settings = (negative_prompt, steps, guidance_scale, sampler)
        check_request(Request("", seed, *self.settings))
        self.folder = folder
        self.subject_name = subject
        self.seeds = range(seed, seed + num_images)
        self.batch_size = batch_size

    def plan(
        self, data: DreamBoothData, run: Path, encoders: Sequence[Encoder], state: Path | None, precision: str
    ) -> None:
        """Reads the subject, and tells `data` which images are still to be drawn.

        The model is that of `data`, or that of a state; its identifier is `data.identifier`.

        Raises:
            InputError: if there is no such subject, nothing to measure with, or the run's folder holds another test.
        """
        if self.subject_name is None:
            raise InputError("nothing to test: give benchmark.subject, and benchmark.folder where its images lie")
        if not encoders:
            raise InputError("nothing to measure with: give fidelity.clip_model or fidelity.dino")
        self.identifier = data.flags["identifier"]
        if not self.identifier:
            raise InputError("give data.identifier, the word that the model was tuned with, such as sks")
        self.subject: Subject = read_subject(Path(self.folder), self.subject_name)
        self.encoders, self.run = encoders, run
        prompts = [prompt.format(self.identifier, self.subject.class_name) for prompt in self.subject.prompts]
        requests = [Request(prompt, seed, *self.settings) for prompt in prompts for seed in self.seeds]
        self.texts = [without(self.identifier, request.prompt) for request in requests]
        for encoder in encoders:
            encoder.check()
            if isinstance(encoder, Clip):
                encoder.check_texts(self.texts)
        files = [run / PICTURES / image_name(place, request) for place, request in enumerate(requests)]
        self.wanted = [ImageJob(file, request) for file, request in zip(files, requests, strict=True)]
        self.record = {
            "model": data.files.fingerprint, "state": state and sha256(state)[:16], "subject": self.subject.name,
            "identifier": self.identifier, "prompts": list(dict.fromkeys(prompts)), "seed": self.seeds[0],
            "images_per_prompt": len(self.seeds), "settings": list(self.settings), "batch_size": self.batch_size,
            "resolution_px": data.resolution_px, "precision": precision,
        }  # fmt: skip
        self._check_record(run / RECORD)
        starts = range(0, len(files), self.batch_size)
        cut = [self.wanted[i : i + self.batch_size] for i in starts]
        # Whole batches, for an image may depend on its neighbours in the last bit.
        self.missing = [each for part in cut if not all(path.is_file() for path, _ in part) for each in part]
        data.requests, data.sample_batch_size = [request for _, request in self.missing], self.batch_size

    def _check_record(self, file: Path) -> None:
        if not file.parent.exists():
            return
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if found != self.record:
            differs = [key for key, value in self.record.items() if found.get(key) != value]
            raise InputError(f"{file.parent} holds another test or run ({', '.join(differs)}); choose another name")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Records what is tested before the first image is there."""
        if trainer.is_global_zero:
            write_json(self.run / RECORD, self.record)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: list[Request], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the images of a batch."""
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        first = first_of(data.request_batches, batch_idx)
        for (path, request), image in zip(self.missing[first:], as_bytes(outputs).cpu(), strict=False):
            if not path.is_file():
                write_png(to_pil_image(image), path, request._asdict() | {"model": self.record["model"]})

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Waits until all processes have written theirs."""
        barrier()

    def measure(self, device: torch.device) -> str:
        """Measures all images, writes the tables and returns the short one."""
        images = [read_image(path) for path, _ in self.wanted]
        real = [read_image(path) for path in self.subject.images]
        rows: list[dict[str, Any]] = [
            {"subject": self.subject.name, "file": path.name, "text": text} | request._asdict() | {
                "prompt_form": f"{self.identifier} {self.subject.class_name}, text without the identifier",
                **{key: self.record[key] for key in ("model", "state", "resolution_px", "precision")},
            }
            for (path, request), text in zip(self.wanted, self.texts, strict=True)
        ]  # fmt: skip
        ceiling: dict[str, float] = {}
        for encoder in self.encoders:
            role = "clip_i" if isinstance(encoder, Clip) else "dino"
            with encoder.on(device):
                drawn, references = encoder.images(images), encoder.images(real)
                texts = encoder.texts(self.texts) if isinstance(encoder, Clip) else None
            ceiling[role] = metrics.self_similarity(references)
            about = {f"{role}_backbone": encoder.name, f"{role}_preprocessing": encoder.preprocessing}
            figures = {role: metrics.cosines(drawn, references).mean(1)}
            if texts is not None:
                figures["clip_t"] = metrics.cosines(drawn, texts).diagonal()
            for i, row in enumerate(rows):
                row |= {name: values[i].item() for name, values in figures.items()} | about
        return self._write(rows, ceiling, tile(images, columns=len(self.seeds)))

    def _write(self, rows: list[dict[str, Any]], ceiling: dict[str, float], grid: Any) -> str:
        write_csv(self.run / "images.csv", rows)
        write_png(grid, self.run / "grid.png", {})
        figures = {name: self._summary(rows, name) for name in COLUMNS if name in rows[0]}
        write_json(self.run / "summary.json", self.record | {"figures": figures, "ceiling": ceiling})
        backbones = ", ".join(f"{encoder.name}" for encoder in self.encoders)
        cells = [[f"{self.subject.name}, this model ({backbones})", *(_shown(figures.get(name)) for name in COLUMNS)]]
        cells.append([f"{self.subject.name}, its own images", *(_number(ceiling.get(name)) for name in COLUMNS)])
        cells += [[f"published: {who}", *(_number(of.get(name)) for name in COLUMNS)] for who, of in PUBLISHED.items()]
        table = markdown(["", *COLUMNS], cells)
        write_text(self.run / "summary.md", f"{table}\n\n{NOTE}\n")
        return table

    def _summary(self, rows: list[dict[str, Any]], name: str) -> dict[str, float]:
        """Mean over prompts of the mean over images, with the interval over prompts."""
        each = len(self.seeds)
        values = [row[name] for row in rows]
        means = [sum(values[i : i + each]) / each for i in range(0, len(values), each)]
        low, high = metrics.bootstrap_interval(means)
        return {"mean": sum(means) / len(means), "low": low, "high": high}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _shown(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{figure['mean']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
