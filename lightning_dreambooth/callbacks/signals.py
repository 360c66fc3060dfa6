"""Handling of what ends a run early: signals, and output whose reader has gone.

It ends at once while it prepares, and after its current step while it trains.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_dreambooth.callbacks.cadence import completes_step
from lightning_dreambooth.data.loading import OrderedLoader
from lightning_dreambooth.distributed import handle_signals
from lightning_dreambooth.errors import Stopped


class GracefulStop(Callback):
    """Ends training after the step in which any process received a signal, so that all processes save the same state.

    Attributes:
        agreed_signal: Number of the signal that all processes end for; 0 if there is none.
    """

    def __init__(self) -> None:
        self.received = self.agreed_signal = 0
        self.training = False

    def install_handlers(self) -> None:
        """Handles the signals in place of Lightning, which would end without a state and with exit code 0 or 1."""
        handle_signals(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            raise Stopped(number, f"stopped by {signal.Signals(number).name}; what was written stays")
        self.stop_after_step(number)

    def stop_after_step(self, number: int) -> None:
        """Ends training after the current step, or after the first one if it has not begun."""
        if not self.received:
            self.received = number
            with suppress(OSError):  # the terminal may be gone; print is not allowed inside another print
                name = signal.Signals(number).name
                os.write(sys.stderr.fileno(), f"\n{name}: saving at the end of this step\n".encode())

    def lose_output(self) -> None:
        """Ends training as a signal would, because nobody reads what is printed; the other verbs go on."""
        self.stop_after_step(signal.SIGPIPE)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Makes signals end the run after a step, with a saved state."""
        self.training = True
        self.install_handlers()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Makes signals end the run at once: each batch of images is written when it is drawn."""
        self.install_handlers()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Agrees with all processes on a signal, after each optimizer step."""
        if completes_step(trainer, batch_idx):
            self.agreed_signal = self.received
            if trainer.world_size > 1:
                received = torch.tensor(self.received, device=pl_module.device)
                self.agreed_signal = int(trainer.strategy.reduce(received, reduce_op="max"))
            trainer.should_stop = trainer.should_stop or self.agreed_signal > 0

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ends the processes that this one has launched, which would wait for it."""
        self.teardown(trainer, pl_module, "fit")
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Ends the loader's processes."""
        if isinstance(trainer.train_dataloader, OrderedLoader):
            trainer.train_dataloader.close()
