"""Pictures to figures: which pictures are compared with which, what each figure could reach, and one score of them."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth import metrics
from lightning_dreambooth.encoders import Clip, Dino, Encoder, Lpips
from lightning_dreambooth.protocol import Probe

Embeddings = Mapping[str, Float[Tensor, "n d"]]  # of the same pictures, by `clip` and `dino`


class Judge:
    """Measures pictures of a protocol against instance pictures and against the untuned model.

    Args:
        probes: What is drawn, in the order in which pictures come to `measure`.
        instances: Instance pictures of each concept.
        instance_texts: What those show, in the encoder's words, of each concept.
        concept_names: Short name of each concept.
        before: Pictures of the untuned model for the same probes.
        clip: Measures prompts and, without DINO, everything else.
        dino: Measures identity and drift.
        lpips: Measures diversity.
        device: Where encoders run.
    """

    def __init__(
        self, probes: Sequence[Probe], instances: Sequence[Sequence[Image.Image]],
        instance_texts: Sequence[Sequence[str]], concept_names: Sequence[str], before: UInt8[Tensor, "n 3 h w"],
        clip: Clip | None, dino: Dino | None, lpips: Lpips | None, device: torch.device,
    ) -> None:  # fmt: skip
        self.probes = probes
        self.concept_names = concept_names
        self.encoders: dict[str, Encoder] = {
            role: encoder for role, encoder in (("clip", clip), ("dino", dino)) if encoder is not None
        }
        self.lpips = lpips
        self.device = device
        self.eyes = "clip" if dino is None else "dino"  # the encoder of PRES, drift and memorisation
        stand_in = "" if dino else f"/{self.encoders['clip'].name}"
        self.tag = {name: name + stand_in for name in ("pres", "drift", "nearest", "div")}
        self.tag |= {"div": "div"} if lpips else {}
        self.instances = [self.embed(pictures) for pictures in instances]
        if clip is not None:
            with clip.on(device):
                self.texts = clip.texts([probe.text for probe in probes])
                self.instance_texts = [clip.texts(texts) for texts in instance_texts]
        self.before_embedded = self.embed([to_pil_image(picture) for picture in before])
        self.ceiling = self._ceiling()
        self.before = self.figures(self.before_embedded, before)
        self.before |= self.score(self.before)

    def embed(self, pictures: Sequence[Image.Image]) -> Embeddings:
        """Pictures => embeddings by every encoder."""
        embedded = {}
        for role, encoder in self.encoders.items():
            with encoder.on(self.device):
                embedded[role] = encoder.pictures(pictures)
        return embedded

    def measure(self, pictures: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Pictures of all probes => figures by name, with the score and its parts."""
        figures = self.figures(self.embed([to_pil_image(picture) for picture in pictures]), pictures)
        return figures | self.score(figures)

    def figures(self, embedded: Embeddings, pictures: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Pictures of all probes => figures by name."""
        figures: dict[str, float] = {}
        for role, name in (("clip", "clip_i"), ("dino", "dino")):
            if role in self.encoders:
                figures |= self._identity(name, embedded[role], [instance[role] for instance in self.instances])
        if "clip" in self.encoders:
            subject = self.of("instance")
            figures["clip_t"] = metrics.prompt_similarity(embedded["clip"][subject], self.texts[subject])
        rows, instances = embedded[self.eyes], [instance[self.eyes] for instance in self.instances]
        concepts = range(len(instances))
        if classes := [c for c in concepts if self.of("class", c)]:
            pres = [metrics.similarity(rows[self.of("class", c)], instances[c]) for c in classes]
            figures[self.tag["pres"]] = _mean(pres)
        if others := self.of("class") + self.of("unrelated"):
            figures[self.tag["drift"]] = metrics.drift(rows[others], self.before_embedded[self.eyes][others])
        shown = [c for c in concepts if self.of("instance", c)]
        nearest = [metrics.nearest(rows[self.of("instance", c)], instances[c]) for c in shown]
        figures[self.tag["nearest"]] = _mean(nearest)
        figures[self.tag["div"]] = self._diversity(rows, pictures)
        return figures

    def _identity(self, name: str, rows: Tensor, instances: Sequence[Tensor]) -> dict[str, float]:
        """Identity under a concept's own prompts; with several concepts, also whose face appears under whose prompt."""
        shown = [c for c in range(len(instances)) if self.of("instance", c)]
        under = {
            (self.concept_names[c], self.concept_names[other]): metrics.similarity(rows[self.of("instance", c)], faces)
            for c in shown
            for other, faces in enumerate(instances)
        }
        own = {name: _mean([value for (prompt, face), value in under.items() if prompt == face])}
        if len(instances) == 1:
            return own
        return own | {f"{name}/{face}_under_{prompt}": value for (prompt, face), value in under.items()}

    def _diversity(self, rows: Tensor, pictures: Tensor) -> float:
        """Of the pictures of one prompt, averaged over the prompts of the subject."""
        by_prompt = groupby(self.of("instance"), key=lambda i: self.probes[i].request.prompt)
        groups = [list(group) for _, group in by_prompt]
        if self.lpips is None:
            return metrics.diversity([rows[group] for group in groups])
        return _mean([self.lpips.diversity(pictures[group], self.device) for group in groups])

    def of(self, kind: str, concept: int | None = None) -> list[int]:
        """Numbers of the probes of a kind and, if given, of a concept."""
        return [
            i for i, probe in enumerate(self.probes) if probe.kind == kind and concept in (None, probe.concept)
        ]

    def _ceiling(self) -> dict[str, float]:
        """What the instance pictures themselves reach, compared with each other or with their own prompts."""
        ceiling = {
            name: _mean([metrics.self_similarity(instance[role]) for instance in self.instances])
            for role, name in (("clip", "clip_i"), ("dino", "dino"))
            if role in self.encoders
        }
        ceiling[self.tag["nearest"]] = _mean([metrics.nearest_other(each[self.eyes]) for each in self.instances])
        if "clip" in self.encoders:
            pairs = zip(self.instances, self.instance_texts, strict=True)
            ceiling["clip_t"] = _mean([metrics.prompt_similarity(own["clip"], texts) for own, texts in pairs])
        return ceiling

    def score(self, figures: Mapping[str, float]) -> dict[str, float]:
        """One score in [0, 1] that is high only if all of its parts are: their harmonic mean.

        `identity`: how much of the way from the untuned model to the instance pictures is done; `prompt`: how much is
        kept of the way from pictures of other prompts to those that the untuned model draws; `class`: how much is kept
        of the class's distance from the instance.
        """
        name, pres = "clip_i" if self.eyes == "clip" else "dino", self.tag["pres"]
        before = self.before
        parts = {"score/identity": metrics.way(figures[name], before[name], self.ceiling[name])}
        if "clip_t" in figures:
            parts["score/prompt"] = metrics.way(figures["clip_t"], self._floor(), before["clip_t"])
        if pres in figures:
            parts["score/class"] = metrics.way(-figures[pres], -self.ceiling[name], -before[pres])
        return {"score": metrics.balance(parts)} | parts

    def _floor(self) -> float:
        """Cosine of the untuned model's pictures with the texts of other prompts."""
        subject = self.of("instance")
        other = torch.tensor([[self.probes[i].text != probe.text for probe in self.probes] for i in subject])
        cosines = metrics.cosines(self.before_embedded["clip"][subject], self.texts)
        return cosines[other].mean().item() if other.any() else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
