import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.planning import cli
from lightning_dreambooth.planning.phases import predict
from lightning_dreambooth.planning.rehearsal import Rehearsal
from lightning_dreambooth.planning.switches import ADAPTERS, CHECKPOINTING, flip

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def argv(here: Path, tiny_sd: Path) -> Callable[..., list[str]]:
    """Arguments of a small `fit`."""
    small = {
        "model.pretrained": tiny_sd, "data.instance_data_dir": "girl", "data.instance_prompt": "a photo of sks girl",
        "data.class_data_dir": "class", "data.class_prompt": "a photo of a girl", "data.num_class_images": 3,
        "samples.num_images": 1, "trainer.max_steps": 4, "trainer.accelerator": "cpu", "trainer.precision": 32,
    }  # fmt: skip

    def argv(**settings: object) -> list[str]:
        values = small | {key.replace("__", "."): value for key, value in settings.items()}
        return [f"--{key}={value}" for key, value in values.items()]

    return argv


def trained(argv: list[str]) -> Rehearsal:
    rehearsal = Rehearsal(build_job(argv))
    rehearsal.train()
    return rehearsal


def test_a_plan_writes_nothing_and_loads_no_weights(here: Path, argv: Callable[..., list[str]]) -> None:
    before = sorted(here.rglob("*"))
    rehearsal = trained(argv())
    assert all(isinstance(weight, FakeTensor) for weight in rehearsal.job.module.model.parameters())
    assert "It fits" in cli.report(argv())
    assert sorted(here.rglob("*")) == before


def test_adamw_has_two_states_of_the_size_of_what_is_trained(argv: Callable[..., list[str]]) -> None:
    for settings in ({}, {"model__train_text_encoder": True}, {"model__lora.rank": 4}):
        rehearsal = trained(argv(**settings))
        weights = sum(len(named) for named in rehearsal.job.module.trained.values())
        assert rehearsal.states == 2 * rehearsal.gradients + 4 * weights  # each weight counts its steps


def test_activations_grow_with_the_batch(argv: Callable[..., list[str]]) -> None:
    one, two = (trained(argv(data__batch_size=size)).activations for size in (4, 8))
    assert 1.9 < two / one < 2.1


def test_checkpointing_keeps_fewer_activations(argv: Callable[..., list[str]]) -> None:
    whole, fewer = (trained(argv(model__gradient_checkpointing=on)) for on in ("false", "true"))
    assert fewer.activations < 0.5 * whole.activations
    assert fewer.weights == whole.weights


@pytest.mark.parametrize(
    "settings",
    [{"model__ema_decay": 0.9}, {"model__prior": "teacher"}, {"data__cache_latents": "false"},
     {"model__lora.rank": 4, "model__lora.dora": "true"}, {"model__optimizer": "bitsandbytes.optim.AdamW8bit"},
     {"trainer__accumulate_grad_batches": 2}, {"trainer__precision": "bf16-mixed"}],
    ids=str,
)  # fmt: skip
def test_every_way_to_train_can_be_planned(argv: Callable[..., list[str]], settings: dict[str, object]) -> None:
    prediction = predict(build_job(argv(**settings)))
    assert [phase.name for phase in prediction.phases] == [
        "preparing", "training", "drawing samples", "measuring", "saving",
    ]  # fmt: skip
    assert prediction.fullest.peak >= sum(prediction.filled_by[part] for part in ("weights", "optimizer states"))


def test_switches_lower_the_peak_one_after_the_other(argv: Callable[..., list[str]]) -> None:
    job = build_job(argv(data__batch_size=8))
    peak = predict(job).fullest.peak
    flipped = flip(argv(data__batch_size=8), job, peak, free=0)
    peaks = [peak, *(each.prediction.fullest.peak for each in flipped)]
    assert peaks == sorted({*peaks}, reverse=True)
    assert len(flipped) >= 2
    kept = [each.switch for each in flipped]
    assert ADAPTERS not in kept[:-1]
    assert len(flip(argv(data__batch_size=8), job, peak, free=peaks[1])) == 1


def test_what_is_flipped_is_not_proposed(argv: Callable[..., list[str]]) -> None:
    job = build_job(argv(model__gradient_checkpointing="true"))
    assert CHECKPOINTING not in [each.switch for each in flip(argv(), job, 2**60, free=0)]


def test_wrong_input_ends_in_one_line(argv: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv(data__batch_size=0))
    assert ended.value.code == 2
    assert "data.batch_size is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_memory_of_the_example_is_predicted() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/memory.py"), "--only", "bundled"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert abs(float(re.search(r"([+-][\d.]+)%", table)[1])) < 10
