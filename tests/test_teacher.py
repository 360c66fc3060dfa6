"""The base as the teacher of class rows, in place of class images."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.comparison import assert_same, left_behind
from torch import Tensor

from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.data.dataset import Batch, Moments
from lightning_dreambooth.data.draws import Draws
from lightning_dreambooth.errors import InputWarning
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import TokenIds
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.study.cost import fit_cost, time_job, timing_key

Run = Callable[..., Any]
CLASS = "a photo of a girl"
TEACHER = {"model__prior": "teacher", "data__class_data_dir": None, "data__num_class_images": None}
FAST = {"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-3}
KINDS: dict[str, dict[str, object]] = {"full": {}, "lora": {"model__lora__rank": 4}}
each_kind = pytest.mark.parametrize("kind", KINDS)

pytestmark = pytest.mark.filterwarnings("ignore:the learning rate")


def batch_of(cli: Any, *indices: int) -> Batch:
    dataset = cli.datamodule.dataset
    return dataset.collate([dataset[index] for index in indices])


def noisy_rows() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def taught(module: DreamBooth) -> Tensor:
    """What the teacher predicts for the class prompt."""
    assert module.teacher is not None
    noisy, prompts = noisy_rows(), module.model.tokenize(["a photo of sks girl", CLASS])
    return module.teacher.teach(noisy, module.model, noisy, torch.tensor([300, 300]), prompts)[1:]


def predicted(model: StableDiffusion) -> Tensor:
    """What a model predicts for the same row."""
    with model.without_dropout():
        conditioning = model.embed(model.tokenize([CLASS]))
        return model.predict(noisy_rows()[1:], torch.tensor([300]), conditioning).detach()


@each_kind
@pytest.mark.parametrize("both", [False, True], ids=["unet", "both"])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_an_untrained_model_equals_its_teacher_and_a_trained_one_does_not(
    run: Run, kind: str, both: bool, precision: str
) -> None:
    settings = {"model__train_text_encoder": both, "data__batch_size": 2, "trainer__precision": precision}
    cli = run(**TEACHER, **FAST, **KINDS[kind], **settings, trainer__max_steps=1)
    # In fp32, the last bit of a row depends on how many rows its batch has: half as many for the teacher.
    assert float(cli.trainer.callback_metrics["train/prior_loss"]) < 1e-12
    assert float(cli.trainer.callback_metrics["train/instance_loss"]) > 0.1
    assert cli.model.loss(batch_of(cli, 0, 1)).prior > 1e-7


@each_kind
def test_the_teacher_is_the_base_to_the_bit_however_long_is_trained(run: Run, tiny_sd: Path, kind: str) -> None:
    cli = run(**TEACHER, **FAST, **KINDS[kind])
    loaded = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    # The last bit of a product depends on where its weights lie in memory: as loaded, or copied.
    base = predicted(loaded if kind == "lora" else copy.deepcopy(loaded))
    target = taught(cli.model)
    assert torch.equal(target, base)
    assert not target.requires_grad
    assert (predicted(cli.model.model) - base).abs().max() > 1e-3


@each_kind
def test_dropout_is_off_for_the_teacher_and_on_for_the_model(run: Run, kind: str, tmp_path: Path) -> None:
    folder = tiny.stable_diffusion(tmp_path / "dropping")
    for file, name in {"unet/config.json": "dropout", "text_encoder/config.json": "attention_dropout"}.items():
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: 0.3}))
    cli = run(**TEACHER, **KINDS[kind], model__pretrained=folder, trainer__max_steps=1)
    assert torch.equal(taught(cli.model), taught(cli.model))
    assert float(cli.trainer.callback_metrics["train/prior_loss"]) > 1e-3


def test_class_rows_repeat_their_instance_rows_with_the_class_prompt(run: Run) -> None:
    Path("girl/00.txt").write_text("a photo of sks girl with pink hair")
    settings = {"data__flip": True, "data__crop": "random", "data__caption_dropout": 0.5, "trainer__max_steps": 1}
    cli = run(**TEACHER, **settings, data__batch_size=4)
    indices = range(12)
    batch = batch_of(cli, *indices)
    for values in (batch.images.values, *batch.draws):
        instance, prior = values.chunk(2)
        assert torch.equal(instance, prior)
    dataset = cli.datamodule.dataset
    pairs = [dataset.images(i) for i in indices]
    assert {pair[1].prompt for pair in pairs} == {CLASS}
    assert {pair[0].prompt for pair in pairs} == {"a photo of sks girl", "a photo of sks girl with pink hair"}
    dropped = [[row.prompt == "" for row in dataset[i].rows] for i in indices]
    assert {tuple(rows) for rows in dropped} == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("cached", [True, False])
def test_instance_rows_are_those_of_a_prior_of_images(run: Run, cached: bool) -> None:
    settings = {
        "data__flip": True, "data__crop": "random", "data__caption_dropout": 0.3, "data__batch_size": 2,
        "model__noise_offset": 0.1, "data__cache_latents": cached, "trainer__max_steps": 1,
    }  # fmt: skip
    teacher, images = run(**TEACHER, **settings), run(**settings)
    a, b = (batch_of(cli, *range(6)) for cli in (teacher, images))
    for ours, theirs in zip((a.images.values, *a.draws), (b.images.values, *b.draws), strict=True):
        assert torch.equal(ours[:6], theirs[:6])
        assert not torch.equal(ours[6:], theirs[6:])
    losses = [cli.trainer.callback_metrics["train/instance_loss"] for cli in (teacher, images)]
    assert torch.equal(*losses)


@each_kind
def test_the_gradient_is_linear_in_the_prior_weight_and_at_zero_that_of_the_instances_alone(
    run: Run, kind: str
) -> None:
    cli = run(**TEACHER, **FAST, **KINDS[kind], data__batch_size=2)
    module, both = cli.model, batch_of(cli, 0, 1)
    prompts = both.prompts
    assert isinstance(prompts, TokenIds)

    def gradient(batch: Batch, prior_weight: float) -> Tensor:
        module.prior_weight = prior_weight
        module.zero_grad()
        module.loss(batch).total.backward()
        return torch.cat([weight.grad.flatten() for weight in module.trained["unet"].values()])

    one, three = gradient(both, 1.0), gradient(both, 3.0)
    module.teacher = None
    alone = both._replace(
        halves=("instance",), images=Moments(both.images.values[:2]),
        prompts=prompts._replace(places=prompts.places[:2]), draws=Draws(*(draw[:2] for draw in both.draws)),
    )  # fmt: skip
    instance = gradient(alone, 0.0)
    assert (one - instance).norm() > 1e-3 * instance.norm()
    torch.testing.assert_close(three - instance, 3 * (one - instance), rtol=1e-3, atol=1e-4 * float(three.abs().max()))


@each_kind
def test_the_class_stays_nearer_to_the_base_than_without_a_prior(run: Run, tiny_sd: Path, kind: str) -> None:
    settings = FAST | KINDS[kind] | {"trainer__max_steps": 12, "data__batch_size": 2}
    base = predicted(StableDiffusion.load(ModelFiles(str(tiny_sd))))
    kept, free = (
        (predicted(run(**TEACHER, **settings, model__prior_weight=weight).model.model) - base).norm()
        for weight in (10.0, 0.0)
    )
    assert kept < 0.8 * free


def test_no_class_image_is_drawn_and_no_loss_of_class_images_is_measured(run: Run) -> None:
    cli = run(**TEACHER, name="run")
    assert sorted(path.name for path in Path().iterdir()) == ["girl", "runs"]
    assert cli.datamodule.class_images() == []
    table = Path("runs/run/validation.csv").read_text().splitlines()[0]
    assert "loss/instance" in table
    assert "loss/class" not in table
    card = Path("runs/run/exports/step-000004/README.md").read_text()
    assert f"5 instance images, with the base as teacher of `{CLASS}`" in card


@each_kind
def test_states_hold_no_teacher(run: Run, kind: str) -> None:
    states = []
    for settings in (TEACHER, {}):
        cli = run(**settings, **KINDS[kind], model__ema_decay=0.9)
        file = cli.folder / "states/step-000004.ckpt"
        states.append((torch.load(file, weights_only=True)["state_dict"].keys(), file.stat().st_size))
        assert cli.model.teacher is None or bool(cli.model.teacher.copies) == (kind == "full")
    (taught_keys, taught_size), (keys, size) = states
    assert taught_keys == keys
    assert taught_size == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_stopping_and_resuming_equals_never_stopping(run: Run, kind: str) -> None:
    settings = TEACHER | FAST | KINDS[kind] | {
        "trainer__max_steps": 6, "trainer__accumulate_grad_batches": 2, "checkpoint__every_n_steps": 3,
        "samples__every_n_steps": 2, "model__ema_decay": 0.9, "data__caption_dropout": 0.3, "data__flip": True,
        "model__snr_gamma": 5.0, "fidelity__losses_every_n_steps": 3,
    }  # fmt: skip
    run(**settings, name="whole")
    with pytest.raises(SystemExit) as end:
        run("fit", "--trainer.callbacks+=helpers.probes.Stopper", "--trainer.callbacks.at=7", **settings, name="parts")
    assert end.value.code == 143
    run(**settings, name="parts", ckpt_path="last")
    whole, parts = left_behind("whole"), left_behind("parts")
    assert len(whole["curves"]["train/prior_loss"]) == 6
    assert_same(whole, parts)


@each_kind
def test_gradient_checkpointing_changes_nothing(run: Run, kind: str) -> None:
    settings = TEACHER | KINDS[kind] | {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 0.1}
    plain, checkpointed = (run(**settings, model__gradient_checkpointing=on).model for on in (False, True))
    assert not taught(checkpointed).requires_grad
    for part, named in plain.trained.items():
        for name, weight in named.items():
            torch.testing.assert_close(weight, checkpointed.trained[part][name], atol=1e-6, rtol=0)


def test_each_concept_has_its_own_class_prompt(run: Run) -> None:
    tiny.images(Path("boy"), 3)
    concepts = [
        {"instance_prompt": f"a photo of sks {word}", "instance_data_dir": word, "class_prompt": f"a photo of a {word}"}
        for word in ("girl", "boy")
    ]
    Path("concepts.json").write_text(json.dumps(concepts))
    one = dict.fromkeys(("data__instance_prompt", "data__instance_data_dir", "data__class_prompt"))
    cli = run(**TEACHER, **one, data__concepts_list="concepts.json", model__train_text_encoder=False)
    pairs = {tuple(image.prompt for image in cli.datamodule.dataset.images(i)) for i in range(8)}
    assert pairs == {("a photo of sks girl", CLASS), ("a photo of sks boy", "a photo of a boy")}


def test_a_study_counts_the_forward_pass_of_the_teacher(here: Path, tiny_sd: Path) -> None:
    argv = [
        f"--model.pretrained={tiny_sd}", "--data.instance_data_dir=girl", "--data.instance_prompt=a photo of sks girl",
        f"--data.class_prompt={CLASS}", "--data.batch_size=3", "--trainer.accumulate_grad_batches=2",
        "--trainer.max_steps=10", "--trainer.accelerator=cpu", "--samples.steps=1",
    ]  # fmt: skip
    taught, images = (build_job([*argv, flag]) for flag in ("--model.prior=teacher", "--data.class_data_dir=class"))
    assert fit_cost(taught).total - fit_cost(images).total == 10 * 3 * 2
    assert timing_key(taught) != timing_key(images)
    assert all(seconds > 0 for seconds in time_job(taught, 2))


def test_a_prior_weight_of_zero_makes_no_teacher_and_no_class_rows(run: Run) -> None:
    cli = run(**TEACHER, model__prior_weight=0, data__class_prompt=None, trainer__max_steps=1)
    assert cli.model.teacher is None
    assert batch_of(cli, 0).halves == ("instance",)
    assert "train/prior_loss" not in cli.trainer.callback_metrics


def test_only_training_makes_a_teacher(tiny_sd: Path) -> None:
    module = DreamBooth(str(tiny_sd), prior="teacher")
    module.setup("validate")
    assert module.teacher is None
    module.setup("fit")
    assert module.teacher is not None
    module.release()
    assert list(module.parameters()) == []


def test_wrong_settings_end_in_one_line(complaint: Callable[..., str]) -> None:
    assert "Got value: none" in complaint(**TEACHER | {"model__prior": "none"})
    for prompt in (None, " "):
        message = complaint(**TEACHER | {"data__class_prompt": prompt})
        assert (
            "has no class_prompt, which model.prior: teacher needs; give it or set model.prior_weight to 0" in message
        )


def test_a_class_folder_that_is_not_read_is_named(run: Run) -> None:
    with pytest.warns(InputWarning, match="class_data_dir class is not read: model.prior is teacher"):
        run(**TEACHER | {"data__class_data_dir": "class"}, trainer__max_steps=1)
    assert not Path("class").exists()
