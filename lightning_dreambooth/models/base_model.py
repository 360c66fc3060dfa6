"""The base model, loaded once for all that needs it before training."""

import torch

from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


class BaseModel:
    """The base model on its way from the datamodule, which draws and encodes with it, to the module, which trains it.

    Args:
        files: Its files.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self._model: StableDiffusion | None = None

    def load(self, device: torch.device) -> StableDiffusion:
        """The model on a device; only the first call reads its files.

        Raises:
            InputError: if configs and weights do not belong together.
        """
        if self._model is None:
            self._model = StableDiffusion.load(self.files)
        return self._model.to(device)

    def put(self, model: StableDiffusion) -> None:
        """Makes a model the one that `load` and `take` return, in place of that in the files."""
        self._model = model

    def take(self) -> StableDiffusion:
        """The model where it is, for a caller that changes it: the next call reads the files again."""
        model = StableDiffusion.load(self.files) if self._model is None else self._model
        self.release()
        return model

    def release(self) -> None:
        """Frees the weights that nobody has taken."""
        self._model = None
