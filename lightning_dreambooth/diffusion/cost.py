"""What work costs, counted in evaluations of the UNet."""

from collections.abc import Iterable

from lightning_dreambooth.diffusion.requests import Request

TRAINING_ROW = 4  # UNet evaluations that a training row costs: forward, backward (two) and the update


def unet_evaluations(requests: Iterable[Request]) -> int:
    """How often the UNet runs for these images: guidance needs it twice per step."""
    return sum(request.settings.steps * (1 + request.settings.guided) for request in requests)
