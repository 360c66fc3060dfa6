"""A loss, a gradient or a weight that training cannot go on with ends the run, and nothing of it is kept."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers.probes import scalars
from pytorch_lightning.plugins import MixedPrecision

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.data.dataset import Batch
from lightning_dreambooth.diffusion.objective import Loss
from lightning_dreambooth.gradients import GradientRecord
from lightning_dreambooth.module import DreamBooth

Run = Callable[..., object]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the third sample is NaN."""
    loss = DreamBooth.loss

    def with_nan(self: DreamBooth, batch: Batch) -> Loss:
        whole = loss(self, batch)
        return whole._replace(total=whole.total * float("nan")) if batch.indices[0] == 2 else whole

    monkeypatch.setattr(DreamBooth, "loss", with_nan)


@pytest.mark.usefixtures("poisoned")
def test_nan_stops_before_the_update(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(name="poisoned", checkpoint__every_n_steps=1)
    assert stopped.value.code == 1
    assert "stopped before anything of step 3 was saved: the loss is not finite" in capsys.readouterr().err
    state = torch.load("runs/poisoned/states/step-000002.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())


DUE = ("checkpoint", "samples", "fidelity__losses", "trainer__log")


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("due", DUE)
def test_nothing_that_follows_a_step_with_nan_is_logged_drawn_or_saved(
    run: Run, due: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {what: f"{what}_every_n_steps" if "__" in what else f"{what}__every_n_steps" for what in DUE}
    intervals = dict.fromkeys(names.values(), 100) | {names[due]: 5}
    with pytest.raises(SystemExit) as stopped:
        run(name="poisoned", trainer__max_steps=8, **intervals)
    assert stopped.value.code == 1
    assert "stopped before anything of step 3 was saved: the loss is not finite" in capsys.readouterr().err
    folder = Path("runs/poisoned")
    assert [path.name for path in folder.glob("*/step-*")] == ["step-000000.png"]
    assert {step for curve in scalars(folder).values() for step, _ in curve} <= {0, 1}


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_signal_after_a_step_with_nan_saves_no_state_of_it(
    run: Run, poisoned: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--trainer.callbacks+=helpers.probes.Stopper", "--trainer.callbacks.at=5")
    with pytest.raises(SystemExit) as stopped:
        run("fit", *words, name="poisoned", trainer__max_steps=8, trainer__log_every_n_steps=100)
    assert stopped.value.code == 1
    assert "the loss is not finite" in capsys.readouterr().err
    assert not list(Path("runs/poisoned").glob("states/step-*"))


def test_throughput_counts_the_time_that_the_device_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    check = GradientRecord.check

    def wait(self: GradientRecord) -> None:
        time.sleep(0.2)  # as if the device were behind
        check(self)

    monkeypatch.setattr(GradientRecord, "check", wait)
    cli = run(trainer__max_steps=4, samples__every_n_steps=100, checkpoint__every_n_steps=100)
    rates = [value for _, value in scalars(cli.folder)["train/samples_per_second"]]
    assert len(rates) == 4
    assert all(rate < 5 for rate in rates)


def test_a_gradient_that_is_not_finite_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = DreamBooth.setup

    def poison(self: DreamBooth, stage: str) -> None:
        setup(self, stage)
        self.model.unet.conv_in.weight.register_hook(lambda gradient: gradient * float("inf"))

    monkeypatch.setattr(DreamBooth, "setup", poison)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    assert "step 1 was saved: unet.conv_in.weight has a gradient that is not finite" in capsys.readouterr().err


class Scaled(MixedPrecision):
    """16-mixed with its gradient scaler, on a CPU, where Lightning would take bf16."""

    def __init__(self, scale: float) -> None:
        super().__init__("bf16-mixed", "cpu")
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.fixture
def scaled(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs with a gradient scaler of the given first scale."""

    def scaled(scale: float, **settings: object) -> object:
        def trainer(**kwargs: object) -> pl.Trainer:
            kwargs["plugins"] += [Scaled(scale)]
            kwargs.pop("precision")
            return pl.Trainer(**kwargs)

        monkeypatch.setattr(DreamBoothCLI, "_instantiate_trainer", with_class(trainer))
        return run(**settings)

    return scaled


def with_class(trainer):  # noqa: ANN001, ANN201
    instantiate = DreamBoothCLI._instantiate_trainer

    def _instantiate(self, config, callbacks):  # noqa: ANN001, ANN202
        self.trainer_class = trainer
        return instantiate(self, config, callbacks)

    return _instantiate


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first steps are skipped
def test_a_gradient_scaler_may_skip_its_first_steps(scaled: Run) -> None:
    cli = scaled(2.0**125, trainer__max_steps=6, checkpoint__every_n_steps=6)
    assert 0 < cli.trainer.precision_plugin.scaler.get_scale() < 2.0**125
    assert cli.trainer.global_step == 6
    assert all(change > 0 for change in cli.model.relative_changes().values())


@pytest.mark.usefixtures("poisoned")
def test_nan_is_reported_under_a_gradient_scaler_too(scaled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        scaled(1.0)
    assert stopped.value.code == 1
    assert "the loss is not finite" in capsys.readouterr().err


def test_a_run_that_changes_nothing_stops_and_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(model__optimizer="torch.optim.SGD", model__optimizer__lr=1e-30)
    assert stopped.value.code == 1
    assert "has not changed; raise the learning rate" in capsys.readouterr().err
