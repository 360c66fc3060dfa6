"""Images to metrics: which images each metric compares, its base, its ceiling, and the score."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.encoders import Encoder, Encoders
from lightning_dreambooth.evaluation.prompts import Kind, Probe, plain_text
from lightning_dreambooth.evaluation.score import PARTS, score

Embeddings = Mapping[str, Float[Tensor, "n d"]]  # of the same images, by `clip` and `dino`


class InstanceSet(NamedTuple):
    """The instance images of a concept, and for each its prompt without the identifier."""

    images: Sequence[Image.Image]
    texts: Sequence[str]


class FidelityEvaluator:
    """Measures images of the evaluation prompts against instance images and against the base model.

    Args:
        probes: Prompts and seeds of the images, in the order of the images that `measure` takes.
        concepts: The concepts.
        instances: Instance images of each concept.
        base_images: Images of the base model for the same probes.
        encoders: CLIP measures prompts and, without DINO, everything else; DINO identity and drift; LPIPS diversity.
        device: Device on which encoders run.

    Attributes:
        base: Metrics of the base model, by name.
        ceiling: Metrics of the instance images themselves, by name.
    """

    def __init__(
        self, probes: Sequence[Probe], concepts: Sequence[Concept], instances: Sequence[InstanceSet],
        base_images: UInt8[Tensor, "n 3 h w"], encoders: Encoders, device: torch.device,
    ) -> None:  # fmt: skip
        self.probes, self.concepts, self.lpips, self.device = probes, concepts, encoders.lpips, device
        self.encoders: dict[str, Encoder] = encoders.by_role
        self.identity_encoder = encoders.identity_role
        self.names = encoders.metric_names
        # Concepts that the prompts show; the others have no images to measure.
        self.shown = [c for c in range(len(concepts)) if self.indices("instance", c)]
        self.instances = [self.embed(instance_set.images) for instance_set in instances]
        if encoders.clip is not None:
            with encoders.clip.on(device):
                self.texts = encoders.clip.texts([probe.text for probe in probes])
                self.instance_texts = [encoders.clip.texts(instance_set.texts) for instance_set in instances]
                self.plain_texts = encoders.clip.texts([plain_text(concept) for concept in concepts])
            # Images that should show more than the subject, such as `with pink hair` or `a painting of`.
            self.asking = [
                i for i in self.indices("instance") if probes[i].text != plain_text(concepts[probes[i].concept])
            ]
        self.base_embeddings = self.embed([to_pil_image(image) for image in base_images])
        self.ceiling = self._ceiling()
        self.base = self._measure(self.base_embeddings, base_images)
        self.floors = self._floors()
        self.base |= self._score(self.base, self.base)

    def indices(self, kind: Kind, concept: int | None = None) -> list[int]:
        """Indices of the probes of a kind and, if given, of a concept."""
        return [i for i, probe in enumerate(self.probes) if probe.kind == kind and concept in (None, probe.concept)]

    def class_indices(self, concept: int) -> list[int]:
        """Indices of the probes of a concept's class prompt, which several concepts may share."""
        prompt = self.concepts[concept].class_prompt
        return [i for i, probe in enumerate(self.probes) if probe.kind == "class" and probe.request.prompt == prompt]

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """Images => embeddings [n, d] by every encoder."""
        embedded = {}
        for role, encoder in self.encoders.items():
            with encoder.on(self.device):
                embedded[role] = encoder.images(images)
        return embedded

    def measure(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Images of all probes => metrics by name, with the score and its parts."""
        measured = self._measure(self.embed([to_pil_image(image) for image in images]), images)
        return measured | self._score(measured, self.base)

    def _measure(self, embedded: Embeddings, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        measured: dict[str, float] = {}
        for role, rows in embedded.items():
            measured |= self._identity(role, rows)
        if "clip" in embedded:
            subject = self.indices("instance")
            measured["clip_t"] = metrics.prompt_similarity(embedded["clip"][subject], self.texts[subject])
            if self.asking:
                measured["attributes"] = self._attributes(embedded["clip"][self.asking])
        rows = embedded[self.identity_encoder]
        instances = [embeddings[self.identity_encoder] for embeddings in self.instances]
        classes = [(self.class_indices(c), instances[c]) for c in range(len(instances)) if self.class_indices(c)]
        if classes:
            similarities = [metrics.similarity(rows[indices], faces) for indices, faces in classes]
            measured[self.names["pres"]] = fmean(similarities)
        if others := self.indices("class") + self.indices("unrelated"):
            base = self.base_embeddings[self.identity_encoder]
            measured[self.names["drift"]] = metrics.drift(rows[others], base[others])
        nearest = [metrics.nearest(rows[self.indices("instance", c)], instances[c]) for c in self.shown]
        measured[self.names["nearest"]] = fmean(nearest)
        measured[self.names["div"]] = self._diversity(rows, images)
        return measured

    def _identity(self, role: str, rows: Tensor) -> dict[str, float]:
        """Identity of each concept under its prompts; with several concepts, also under the prompts of the others."""
        name, instances = self.names[role], [embeddings[role] for embeddings in self.instances]
        under = {
            (c, face): metrics.similarity(rows[self.indices("instance", c)], embeddings)
            for c in self.shown
            for face, embeddings in enumerate(instances)
        }
        measured = {name: fmean(under[c, c] for c in self.shown)}
        if len(instances) > 1:
            words = [concept.identifier or concept.instance_prompt for concept in self.concepts]
            if len({*words}) < len(words):
                words = [f"{c}-{word}" for c, word in enumerate(words, start=1)]
            measured |= {f"{name}/{words[face]}_under_{words[c]}": value for (c, face), value in under.items()}
        return measured

    def _attributes(self, images: Tensor) -> float:
        """Mean cosine of the asking prompts' images with their texts, less that with the text of the subject alone."""
        plain = self.plain_texts[[self.probes[i].concept for i in self.asking]]
        asked = metrics.prompt_similarity(images, self.texts[self.asking])
        return asked - metrics.prompt_similarity(images, plain)

    def _diversity(self, rows: Tensor, images: Tensor) -> float:
        """Diversity of the images of one prompt, averaged over the prompts of the subject."""
        by_prompt = groupby(self.indices("instance"), key=lambda i: self.probes[i].request.prompt)
        groups = [list(group) for _, group in by_prompt]
        if self.lpips is None:
            return metrics.diversity([rows[group] for group in groups])
        return fmean(self.lpips.diversity(images[group], self.device) for group in groups)

    def _ceiling(self) -> dict[str, float]:
        """Metrics of the instance images, compared with each other or with their own prompts."""
        shown = [self.instances[c] for c in self.shown]
        ceiling = {
            self.names[role]: fmean(metrics.self_similarity(instances[role]) for instances in shown)
            for role in self.encoders
        }
        ceiling[self.names["pres"]] = ceiling[self.names[self.identity_encoder]]
        nearest = [metrics.nearest_other(instances[self.identity_encoder]) for instances in shown]
        ceiling[self.names["nearest"]] = fmean(nearest)
        if "clip" in self.encoders:
            pairs = [(self.instances[c]["clip"], self.instance_texts[c]) for c in self.shown]
            ceiling["clip_t"] = fmean(metrics.prompt_similarity(images, texts) for images, texts in pairs)
        return ceiling

    def _score(self, measured: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
        identity = self.names[self.identity_encoder]
        names = dict(zip(PARTS, (identity, "clip_t", "attributes", self.names["pres"]), strict=True))
        ours, bases = (
            {part: values[name] for part, name in names.items() if name in values} for values in (measured, base)
        )
        return score(ours, bases, self.ceiling[identity], self.floors)

    def _floors(self) -> dict[str, float]:
        """What images reach that do not follow their prompts, as far as the prompts tell.

        `prompt`: the base model's images of the subject with texts of unrelated prompts. `attributes`: the instance
        images, which show the subject alone.
        """
        floors: dict[str, float] = {}
        if "clip" not in self.encoders:
            return floors
        subject, unrelated = self.indices("instance"), self.indices("unrelated")
        other = torch.tensor([[self.probes[i].text != self.probes[j].text for j in unrelated] for i in subject])
        if other.any():
            cosines = metrics.cosines(self.base_embeddings["clip"][subject], self.texts[unrelated])
            floors["prompt"] = cosines[other].mean().item()
        if self.asking:
            margins = []
            for i in self.asking:
                concept = self.probes[i].concept
                texts = torch.stack([self.texts[i], self.plain_texts[concept]])
                asked, plain = metrics.cosines(self.instances[concept]["clip"], texts).mean(0)
                margins.append((asked - plain).item())
            floors["attributes"] = fmean(margins)
        return floors
