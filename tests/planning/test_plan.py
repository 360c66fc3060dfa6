from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.planning import cli
from lightning_dreambooth.planning.memory import LiveMemory
from lightning_dreambooth.planning.phases import predict
from lightning_dreambooth.planning.rehearsal import Rehearsal
from lightning_dreambooth.planning.switches import flip, switches
from lightning_dreambooth.study.cost import training_step

LORA = {"model__lora.rank": 4, "model__optimizer": "torch.optim.AdamW", "model__optimizer.lr": 1e-4}
BF16 = {"model__weight_dtype": "bfloat16", "trainer__precision": "bf16-mixed"}
IN_BACKWARD = {"model__update_in_backward": "true", "trainer__gradient_clip_val": "null"}


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
    report = cli.report(argv())
    assert all(phase in report for phase in ("preparing", "training", "drawing samples", "measuring", "saving"))
    assert "It fits" in report
    assert sorted(here.rglob("*")) == before


def test_activations_grow_with_the_batch_and_checkpointing_keeps_fewer(argv: Callable[..., list[str]]) -> None:
    whole, half = (trained(argv(data__batch_size=size)) for size in (4, 2))
    fewer = trained(argv(data__batch_size=4, model__gradient_checkpointing="true"))
    assert 1.9 < whole.activations / half.activations < 2.1
    assert fewer.activations < 0.5 * whole.activations
    assert fewer.weights == whole.weights == half.weights


@pytest.mark.parametrize(
    "settings",
    [{"model__train_text_encoder": "true", "model__ema_decay": 0.9, "trainer__accumulate_grad_batches": 2},
     {"model__prior": "teacher", "data__class_data_dir": "null", "trainer__precision": "bf16-mixed"},
     LORA | BF16 | {"model__lora.dora": "true", "data__cache_latents": "false"},
     {"model__optimizer": "bitsandbytes.optim.AdamW8bit"},
     BF16 | IN_BACKWARD | {"model__optimizer": "lightning_dreambooth.rounding.RoundingAdamW"}],
    ids=str,
)  # fmt: skip
def test_every_way_to_train_can_be_planned(argv: Callable[..., list[str]], settings: dict[str, object]) -> None:
    rehearsal = trained(argv(**settings))
    assert rehearsal.memory.peak >= rehearsal.weights + rehearsal.states
    if type(rehearsal.optimizer) is torch.optim.AdamW:
        weights = sum(len(named) for named in rehearsal.job.module.trained.values())
        assert rehearsal.states == 2 * rehearsal.gradients + 4 * weights  # each weight counts its steps
    one, two = (rehearsal.draw(rehearsal.job.callbacks.samples.requests(rehearsal.job.data.concepts)[:count])
                for count in (1, 2))  # fmt: skip
    assert sum(two.of_calls.values()) > sum(one.of_calls.values())


def test_switches_are_flipped_until_it_fits(argv: Callable[..., list[str]]) -> None:
    job = build_job(argv())
    peak = predict(job).fullest.peak
    (flipped,) = flip(argv(), job, peak, free=peak - 1)
    assert flipped.prediction.fullest.peak < peak
    assert flip(argv(), job, peak, free=peak) == []


@pytest.mark.parametrize("settings", [{"model__gradient_checkpointing": "true"}, IN_BACKWARD, LORA], ids=str)
def test_what_is_flipped_is_not_proposed(argv: Callable[..., list[str]], settings: dict[str, object]) -> None:
    fewer, all_of_them = (switches(build_job(argv(**given))) for given in (settings, {}))
    assert len(fewer) < len(all_of_them)
    assert all(switch in all_of_them for switch in fewer)


def test_wrong_input_ends_in_one_line(argv: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv(data__batch_size=0))
    assert ended.value.code == 2
    assert "data.batch_size is 0" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{}, {"model__train_text_encoder": "true"}], ids=str)
def test_a_rehearsal_takes_the_memory_of_real_steps(
    argv: Callable[..., list[str]], settings: dict[str, object]
) -> None:
    rehearsal = Rehearsal(build_job(argv(**settings)))
    rehearsal.memory.peak = rehearsal.memory.resident
    rehearsal.train()
    job, memory = build_job(argv(**settings)), LiveMemory("cpu")
    with memory:
        job.module.setup("fit")
        memory.settle()
        step = training_step(job)
        for _ in range(2):
            step()
    assert memory.peak == pytest.approx(rehearsal.memory.peak, rel=0.05)
