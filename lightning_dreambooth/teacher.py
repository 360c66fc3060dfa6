"""The base model as the teacher of class rows."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_dreambooth.models.conditioning import Conditioning, last_rows
from lightning_dreambooth.models.lora import without_adapters
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import TokenIds


class Teacher(nn.Module):
    """Targets of class rows: what the base predicts for the class prompt at the noisy latents of the instance rows.

    Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282) keeps old answers to new inputs in the same way;
    trainers of LoRA call it differential output preservation (https://github.com/kohya-ss/sd-scripts/pull/1710).

    With adapters, the base is the model itself while they are switched off. Else it needs frozen copies of the parts
    that are trained, in fp32: 3.4 GB more for the UNet of SD 1.5, and 0.5 GB for its text encoder. States leave them
    out, as all frozen weights.

    Args:
        model: The base model, before it is trained.
        parts: Names of the parts to copy; none if adapters alone are trained.
    """

    def __init__(self, model: StableDiffusion, parts: Iterable[str]) -> None:
        super().__init__()
        copies = {part: copy.deepcopy(getattr(model, part)).requires_grad_(False).eval() for part in parts}
        self.copies = nn.ModuleDict(copies)

    def teach(
        self, target: Float[Tensor, "rows c h w"], model: StableDiffusion, noisy: Float[Tensor, "rows c h w"],
        timesteps: Tensor, prompts: Conditioning | TokenIds,
    ) -> Float[Tensor, "rows c h w"]:  # fmt: skip
        """Targets of all rows => the same of instance rows, the first half, and the base's predictions of class rows.

        The predictions have no gradient. It is not switched off, because attention would take another kernel, and in
        bf16 an untrained model would differ from its teacher.
        """
        instance, taught = target.chunk(2)
        count = len(taught)
        with self._as_base(model):
            conditioning = model.embed(prompts) if isinstance(prompts, TokenIds) else prompts
            base = model.predict(noisy[-count:], timesteps[-count:], last_rows(conditioning, count))
        return torch.cat([instance, base])

    @contextmanager
    def _as_base(self, model: StableDiffusion) -> Iterator[None]:
        """Inside the block, the model is the base, without dropout."""
        trained = {part: getattr(model, part) for part in self.copies}
        with without_adapters(model), model.without_dropout():
            try:
                for part, copied in self.copies.items():
                    setattr(model, part, copied)
                yield
            finally:
                for part, module in trained.items():
                    setattr(model, part, module)
