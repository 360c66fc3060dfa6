"""Images to figures: which images are compared with which, what each figure could reach, and one score of them."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Encoder, Lpips
from lightning_dreambooth.evaluation.prompts import Probe

MIN_RANGE = 0.02  # a part of the score whose two ends lie closer than this in cosine would be noise, and is left out

Embeddings = Mapping[str, Float[Tensor, "n d"]]  # of the same images, by `clip` and `dino`


class FidelityEvaluator:
    """Measures images of a protocol against instance images and against the untuned model.

    Args:
        probes: What is drawn, in the order in which images come to `measure`.
        concepts: What is learned.
        instances: Instance images of each concept.
        instance_texts: What those show, in the encoder's words, of each concept.
        before: Images of the untuned model for the same probes.
        clip: Measures prompts and, without DINO, everything else.
        dino: Measures identity and drift.
        lpips: Measures diversity.
        device: Where encoders run.

    Attributes:
        untuned: Figures of the untuned model.
        ceiling: What instance images reach, by figure.
    """

    def __init__(
        self, probes: Sequence[Probe], concepts: Sequence[Concept], instances: Sequence[Sequence[Image.Image]],
        instance_texts: Sequence[Sequence[str]], before: UInt8[Tensor, "n 3 h w"],
        clip: Clip | None, dino: Dino | None, lpips: Lpips | None, device: torch.device,
    ) -> None:  # fmt: skip
        self.probes, self.concepts, self.lpips, self.device = probes, concepts, lpips, device
        self.encoders: dict[str, Encoder] = {
            role: encoder for role, encoder in (("clip", clip), ("dino", dino)) if encoder is not None
        }
        self.eyes = "clip" if dino is None else "dino"  # the encoder of PRES, drift and memorisation
        name = self.encoders[self.eyes].name
        stand_in = "" if dino is not None and dino.is_the_papers else f"/{name}"
        self.tag = {figure: figure + stand_in for figure in ("dino", "pres", "drift", "nearest")}
        self.tag |= {"clip": "clip_i", "div": "div" if lpips else f"div/{name}"}
        self.identity = self.tag[self.eyes]
        # Concepts that the prompts show; the others have no images to be measured.
        self.shown = [c for c in range(len(concepts)) if self.of("instance", c)]
        self.instances = [self.embed(images) for images in instances]
        if clip is not None:
            with clip.on(device):
                self.texts = clip.texts([probe.text for probe in probes])
                self.instance_texts = [clip.texts(texts) for texts in instance_texts]
        self.before = self.embed([to_pil_image(image) for image in before])
        self.ceiling = self._ceiling()
        self.untuned = self.figures(self.before, before)
        self.untuned |= self.score(self.untuned)

    def of(self, kind: str, concept: int | None = None) -> list[int]:
        """Numbers of the probes of a kind and, if given, of a concept."""
        return [i for i, probe in enumerate(self.probes) if probe.kind == kind and concept in (None, probe.concept)]

    def classes_of(self, concept: int) -> list[int]:
        """Numbers of the probes of a concept's class prompt, which it may share with others."""
        prompt = self.concepts[concept].class_prompt
        return [i for i, probe in enumerate(self.probes) if probe.kind == "class" and probe.request.prompt == prompt]

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """Images => embeddings by every encoder."""
        embedded = {}
        for role, encoder in self.encoders.items():
            with encoder.on(self.device):
                embedded[role] = encoder.images(images)
        return embedded

    def measure(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Images of all probes => figures by name, with the score and its parts."""
        figures = self.figures(self.embed([to_pil_image(image) for image in images]), images)
        return figures | self.score(figures)

    def figures(self, embedded: Embeddings, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Images of all probes => figures by name."""
        figures: dict[str, float] = {}
        for role in self.encoders:
            figures |= self._identity(self.tag[role], embedded[role], [own[role] for own in self.instances])
        if "clip" in self.encoders:
            subject = self.of("instance")
            figures["clip_t"] = metrics.prompt_similarity(embedded["clip"][subject], self.texts[subject])
        rows, instances = embedded[self.eyes], [own[self.eyes] for own in self.instances]
        classes = [(self.classes_of(c), instances[c]) for c in range(len(instances)) if self.classes_of(c)]
        if classes:
            figures[self.tag["pres"]] = _mean([metrics.similarity(rows[drawn], own) for drawn, own in classes])
        if others := self.of("class") + self.of("unrelated"):
            figures[self.tag["drift"]] = metrics.drift(rows[others], self.before[self.eyes][others])
        nearest = [metrics.nearest(rows[self.of("instance", c)], instances[c]) for c in self.shown]
        figures[self.tag["nearest"]] = _mean(nearest)
        figures[self.tag["div"]] = self._diversity(rows, images)
        return figures

    def _identity(self, name: str, rows: Tensor, instances: Sequence[Tensor]) -> dict[str, float]:
        """Identity under a concept's own prompts; with several concepts, also whose face appears under whose prompt."""
        under = {
            (c, face): metrics.similarity(rows[self.of("instance", c)], own)
            for c in self.shown
            for face, own in enumerate(instances)
        }
        figures = {name: _mean([under[c, c] for c in self.shown])}
        if len(instances) > 1:
            words = [concept.identifier or concept.instance_prompt for concept in self.concepts]
            who = words if len({*words}) == len(words) else [f"{c}-{word}" for c, word in enumerate(words, start=1)]
            figures |= {f"{name}/{who[face]}_under_{who[c]}": value for (c, face), value in under.items()}
        return figures

    def _diversity(self, rows: Tensor, images: Tensor) -> float:
        """Of the images of one prompt, averaged over the prompts of the subject."""
        by_prompt = groupby(self.of("instance"), key=lambda i: self.probes[i].request.prompt)
        groups = [list(group) for _, group in by_prompt]
        if self.lpips is None:
            return metrics.diversity([rows[group] for group in groups])
        return _mean([self.lpips.diversity(images[group], self.device) for group in groups])

    def _ceiling(self) -> dict[str, float]:
        """What instance images reach when compared with each other, or with their own prompts."""
        own = [self.instances[c] for c in self.shown]
        ceiling = {
            self.tag[role]: _mean([metrics.self_similarity(each[role]) for each in own]) for role in self.encoders
        }
        ceiling[self.tag["pres"]] = ceiling[self.identity]
        ceiling[self.tag["nearest"]] = _mean([metrics.nearest_other(each[self.eyes]) for each in own])
        if "clip" in self.encoders:
            pairs = [(self.instances[c]["clip"], self.instance_texts[c]) for c in self.shown]
            ceiling["clip_t"] = _mean([metrics.prompt_similarity(images, texts) for images, texts in pairs])
        return ceiling

    def score(self, figures: Mapping[str, float]) -> dict[str, float]:
        """One score in [0, 1] that is high only if all of its parts are: their harmonic mean.

        `identity`: how much of the way from the untuned model to the instance images is done; `prompt`: how much is
        kept of the way from images of other prompts to those that the untuned model draws; `class`: how much is kept
        of the class's distance from the instance. A part whose way is shorter than LEAST_WAY is left out; there is no
        score without `identity`.
        """
        untuned, pres, ceiling = self.untuned, self.tag["pres"], self.ceiling[self.identity]
        if ceiling - untuned[self.identity] < MIN_RANGE:
            return {}
        parts = {"score/identity": metrics.fraction_of_range(figures[self.identity], untuned[self.identity], ceiling)}
        floor = self._floor()
        if floor is not None and untuned["clip_t"] - floor >= MIN_RANGE:
            parts["score/prompt"] = metrics.fraction_of_range(figures["clip_t"], floor, untuned["clip_t"])
        if pres in figures and ceiling - untuned[pres] >= MIN_RANGE:
            parts["score/class"] = metrics.fraction_of_range(-figures[pres], -ceiling, -untuned[pres])
        return {"score": metrics.balance(parts)} | parts

    def _floor(self) -> float | None:
        """Cosine of the untuned model's images of the subjects with the texts of unrelated prompts, not their own."""
        subject, unrelated = self.of("instance"), self.of("unrelated")
        if "clip" not in self.encoders or not unrelated:
            return None
        cosines = metrics.cosines(self.before["clip"][subject], self.texts[unrelated])
        other = torch.tensor([[self.probes[i].text != self.probes[j].text for j in unrelated] for i in subject])
        return cosines[other].mean().item() if other.any() else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
