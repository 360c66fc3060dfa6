"""Cost of training and sampling, counted in evaluations of the UNet."""

from collections.abc import Iterable

from lightning_dreambooth.diffusion.requests import Request

TRAINING_ROW = 4  # UNet evaluations that a trained row costs: forward (1), backward (2) and the update (1)


def unet_evaluations(requests: Iterable[Request]) -> int:
    """Number of UNet evaluations that draw these images: one per step, two with guidance."""
    return sum(request.settings.steps * (1 + request.settings.guided) for request in requests)
