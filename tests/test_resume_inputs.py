"""What a state is resumed with: the same weights, optimizer, images and prompts, or a line that says what differs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers.comparison import assert_same
from PIL import Image

from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.errors import InputWarning

Run = Callable[..., object]


@pytest.mark.slow
def test_a_run_ended_during_accumulation_resumes_at_its_last_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"trainer__accumulate_grad_batches": 3, "trainer__max_steps": 4, "checkpoint__every_n_steps": 10}
    whole = run(**settings, name="whole")
    with monkeypatch.context() as patched:
        patched.setattr(Samples, "on_train_batch_end", lambda self, trainer, *args: end_at(trainer, 7, args[-1]))
        early = run(**settings, name="early")
    assert early.trainer.global_step == 2
    early = run(**settings, name="early", ckpt_path="last")
    assert early.trainer.global_step == 4
    states = [torch.load(cli.folder / "states/step-000004.ckpt", weights_only=True) for cli in (whole, early)]
    assert_same(states[0]["state_dict"], states[1]["state_dict"])


def end_at(trainer: pl.Trainer, micro_batches: int, batch_idx: int) -> None:
    trainer.should_stop = batch_idx + 1 == micro_batches


def test_a_state_of_other_weights_is_refused(run: Run, complaint: Callable[..., str]) -> None:
    run(name="first")
    assert "resume with the model settings" in complaint(
        name="first", ckpt_path="last", model__train_text_encoder=False
    )


def test_a_state_of_another_optimizer_is_refused(run: Run, complaint: Callable[..., str]) -> None:
    run(name="first")
    other = {"model__optimizer": "bitsandbytes.optim.AdamW8bit", "model__optimizer__lr": 1e-3}
    assert "the state was saved with torch.optim.adamw.AdamW" in complaint(name="first", ckpt_path="last", **other)


def other_image() -> None:
    Image.new("RGB", (40, 40), "green").save("girl/01.png")


def other_caption() -> None:
    Path("girl/01.txt").write_text("a photo of sks girl with pink hair")


def other_class_image() -> None:
    Image.new("RGB", (32, 32), "green").save("class/00001.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_image, "instance images of concept 1"),
        (other_caption, "instance prompts of concept 1"),
        (other_class_image, "class images of concept 1"),
    ],
)
def test_resuming_with_other_images_or_prompts_gives_a_warning(run: Run, change: Callable[[], None], what: str) -> None:
    run(name="first", trainer__max_steps=1)
    change()
    with pytest.warns(InputWarning, match=f"the state was trained on other {what}; training continues") as warned:
        resumed = run(name="first", trainer__max_steps=2, ckpt_path="last")
    assert sum(warning.category is InputWarning for warning in warned) == 1
    assert resumed.trainer.global_step == 2
    run(name="first", trainer__max_steps=3, ckpt_path="last")  # on those that the newest state was trained on: silent


def test_moved_and_renamed_images_give_no_warning(run: Run) -> None:
    run(name="first", trainer__max_steps=1)
    Path("girl").rename("moved")
    for path in sorted(Path("moved").iterdir()):
        path.rename(path.with_name(f"girl-{path.name}"))
    run(name="first", trainer__max_steps=2, ckpt_path="last", data__instance_data_dir="moved")


def test_a_state_that_does_not_say_what_it_was_trained_on_is_resumed(run: Run) -> None:
    path = run(name="first", trainer__max_steps=1).folder / "states/step-000001.ckpt"
    state = torch.load(path, weights_only=True)
    del state["DreamBoothData"]["data_digests"]
    torch.save(state, path)
    other_image()
    assert run(name="first", trainer__max_steps=2, ckpt_path="last").trainer.global_step == 2
