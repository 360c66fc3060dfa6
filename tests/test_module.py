import gc
import re
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from helpers import tiny
from helpers.probes import scalars
from PIL import Image
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lightning_dreambooth import randomness
from lightning_dreambooth.callbacks.samples import Samples
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.data.dataset import Batch, Moments
from lightning_dreambooth.data.draws import Draws
from lightning_dreambooth.diffusion.objective import Loss
from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.gradients import GradientRecord
from lightning_dreambooth.models.conditioning import Conditioning
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth

Run = Callable[..., object]


def trained(cli) -> dict[str, torch.Tensor]:  # noqa: ANN001
    return {
        name: weight.detach().clone() for name, weight in cli.model.model.named_parameters() if weight.requires_grad
    }


def weights_of(part: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in part.parameters()])


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_one_training_step_is_that_of_a_plain_diffusers_loop(run: Run, tmp_path: Path, kind: str) -> None:
    """The same images, noise and timesteps through diffusers' own classes, with torch's own AdamW."""
    folder = tiny.stable_diffusion(tmp_path / "sd", prediction_type=kind)
    cli = run(
        model__pretrained=folder, model__prior_weight=0.7, model__snr_gamma=5.0, model__noise_offset=0.1,
        data__batch_size=2, data__cache_latents=False, trainer__max_steps=1, trainer__gradient_clip_val=1.0,
    )  # fmt: skip
    pairs = [cli.datamodule.dataset.images(i) for i in range(2)]
    rows = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]

    options = {"low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")

    def square(path: Path) -> torch.Tensor:
        image = Image.open(path)
        side = min(image.size)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        box = (left, top, left + side, top + side)
        return pl_pixels(image.resize((32, 32), Image.Resampling.LANCZOS, box))

    def drawn(draw: Callable, purpose: str, size: object) -> torch.Tensor:
        return torch.cat([draw(0, f"{purpose} {half}", [0, 1], size) for half in ("instance", "class")])

    pixels = torch.stack([square(row.path) for row in rows])
    posterior = vae.encode(pixels).latent_dist
    sampled = posterior.mean + posterior.std * drawn(randomness.normal, "posterior", (4, 8, 8))
    latents = sampled * vae.config.scaling_factor
    noise = drawn(randomness.normal, "noise", (4, 8, 8)) + 0.1 * drawn(randomness.normal, "noise offset", (4, 1, 1))
    timesteps = drawn(randomness.integers, "timestep", 1000)
    noisy = scheduler.add_noise(latents.detach(), noise, timesteps)
    ids = tokenizer([row.prompt for row in rows], padding="max_length", return_tensors="pt").input_ids
    prediction = unet(noisy, timesteps, text_encoder(ids)[0]).sample
    velocity = scheduler.get_velocity(latents.detach(), noise, timesteps)
    error = nn.functional.mse_loss(prediction, noise if kind == "epsilon" else velocity, reduction="none").mean(
        (1, 2, 3)
    )
    snr = scheduler.alphas_cumprod[timesteps] / (1 - scheduler.alphas_cumprod[timesteps])
    error = error * snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    loss = error[:2].mean() + 0.7 * error[2:].mean()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-6, weight_decay=1e-2)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()

    assert float(cli.trainer.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-4)
    expected = {f"unet.{name}": weight for name, weight in unet.named_parameters()}
    expected |= {f"text_encoder.{name}": weight for name, weight in text_encoder.named_parameters()}
    ours = trained(cli)
    # Adam's first step is lr * sign(gradient), so compare where the gradient is not rounding noise.
    agree = [
        torch.isclose(ours[name], weight.detach(), atol=2e-7, rtol=0)[weight.grad.abs() > 1e-5 * loss.detach()].float()
        for name, weight in expected.items()
    ]
    assert torch.cat(agree).mean() > 0.999


def pl_pixels(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.convert("RGB").tobytes())).view(32, 32, 3).permute(2, 0, 1) / 127.5 - 1


def test_accumulation_equals_the_big_batch(run: Run) -> None:
    sgd = {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 0.1, "trainer__gradient_clip_val": None}
    big = run(data__batch_size=4, trainer__max_steps=2, **sgd)
    small = run(data__batch_size=2, trainer__max_steps=2, trainer__accumulate_grad_batches=2, **sgd)
    assert small.trainer.global_step == big.trainer.global_step == 2
    assert largest_difference(trained(big), trained(small)) < 1e-6
    logged = [float(cli.trainer.callback_metrics["train/loss"]) for cli in (big, small)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def gradient(cli, batch, prior_weight: float) -> torch.Tensor:  # noqa: ANN001
    cli.model.prior_weight = prior_weight
    cli.model.zero_grad()
    cli.model.loss(batch).total.backward()
    return torch.cat([weight.grad.flatten() for weight in cli.model.model.unet.parameters()])


def test_the_gradient_is_linear_in_the_prior_weight_and_at_zero_that_of_the_instances_alone(run: Run) -> None:
    cli = run(trainer__max_steps=1, data__batch_size=2)
    both = cli.datamodule.dataset.collate([cli.datamodule.dataset[i] for i in range(2)])
    alone = both._replace(
        halves=("instance",), images=Moments(both.images.values[:2]),
        prompts=both.prompts._replace(places=both.prompts.places[:2]), draws=Draws(*(draw[:2] for draw in both.draws)),
    )  # fmt: skip
    instance = gradient(cli, alone, 0.0)
    one, three = (gradient(cli, both, weight) - instance for weight in (1.0, 3.0))
    assert one.norm() > 0.1 * instance.norm()
    torch.testing.assert_close(three, 3 * one, rtol=1e-3, atol=1e-4 * float(three.abs().max()))


def test_a_prior_weight_of_zero_runs_no_class_branch(run: Run) -> None:
    cli = run(model__prior_weight=0, data__class_data_dir=None, data__class_prompt=None)
    assert not Path("class").exists()
    batch = cli.datamodule.dataset.collate([cli.datamodule.dataset[0]])
    assert len(batch.images.values) == 1
    assert batch.halves == ("instance",)
    assert "train/instance_loss" in cli.trainer.callback_metrics
    assert "train/prior_loss" not in cli.trainer.callback_metrics


def test_cached_and_live_latents_train_the_same(run: Run) -> None:
    live, cached = (run(data__cache_latents=cache, data__flip=True, data__crop="random") for cache in (False, True))
    assert largest_difference(trained(live), trained(cached)) < 1e-5


def test_a_frozen_text_encoder_is_embedded_once_and_does_not_move(run: Run) -> None:
    cli = run(model__train_text_encoder=False)
    assert isinstance(cli.datamodule.dataset.collate([cli.datamodule.dataset[0]]).prompts, Conditioning)
    assert {name.split(".")[0] for name in trained(cli)} == {"unet"}
    original = weights_of(cli.model.model.text_encoder)
    cli.model.setup("fit")
    assert torch.equal(weights_of(cli.model.model.text_encoder), original)


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW"])
def test_eight_bit_adam_trains(run: Run, kind: str) -> None:
    cli = run(model__optimizer=f"bitsandbytes.optim.{kind}", model__optimizer__lr=1e-3)
    assert isinstance(cli.trainer.optimizers[0], getattr(bitsandbytes.optim, kind))
    assert all(change > 1e-3 for change in cli.model.relative_changes().values())
    states = cli.trainer.optimizers[0].state.values()
    assert any(state["state1"].dtype == torch.uint8 for state in states) == (kind == "AdamW8bit")


def test_the_text_encoder_stops_at_its_step(run: Run) -> None:
    stopped = run(model__text_encoder_stop_step=2, model__text_encoder_lr=1e-3)
    short = run(model__text_encoder_lr=1e-3, trainer__max_steps=2)
    assert torch.equal(weights_of(stopped.model.model.text_encoder), weights_of(short.model.model.text_encoder))
    assert not torch.equal(weights_of(stopped.model.model.unet), weights_of(short.model.model.unet))


def test_frozen_weights_are_not_in_the_state(run: Run) -> None:
    cli = run(model__train_text_encoder=False, model__ema_decay=0.9)
    names = torch.load(cli.folder / "states/step-000004.ckpt", weights_only=True)["state_dict"]
    assert {tuple(re.split(r"[./]", name)[:2]) for name in names} == {
        ("model", "unet"), ("ema", "unet"), ("ema", "updates")
    }  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_equals_never_stopping(run: Run, accumulation: int) -> None:
    settings = {
        "model__ema_decay": 0.9, "data__flip": True, "model__lr_schedule": "cosine", "model__warmup_steps": 2,
        "trainer__accumulate_grad_batches": accumulation,
    }  # fmt: skip
    whole = run(**settings, trainer__max_steps=6, checkpoint__every_n_steps=3, name="whole")
    half = run(
        **settings,
        trainer__max_steps=6,
        checkpoint__every_n_steps=3,
        name="half",
        trainer__limit_train_batches=3 * accumulation,
    )
    assert half.trainer.global_step == 3
    resumed = run(**settings, trainer__max_steps=6, checkpoint__every_n_steps=3, name="half", ckpt_path="last")
    assert resumed.trainer.global_step == 6
    files = [f"runs/{name}/states/step-000006.ckpt" for name in ("whole", "half")]
    states = [torch.load(file, weights_only=True) for file in files]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(states[0][key], states[1][key])
    assert largest_difference(trained(whole), trained(resumed)) == 0


def test_a_run_ended_during_accumulation_resumes_at_its_last_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"trainer__accumulate_grad_batches": 3, "trainer__max_steps": 4, "checkpoint__every_n_steps": 10}
    whole = run(**settings, name="whole")
    with monkeypatch.context() as patched:
        patched.setattr(Samples, "on_train_batch_end", lambda self, trainer, *args: end_at(trainer, 7, args[-1]))
        early = run(**settings, name="early")
    assert early.trainer.global_step == 2
    early = run(**settings, name="early", ckpt_path="last")
    assert early.trainer.global_step == 4
    assert largest_difference(trained(whole), trained(early)) == 0


def end_at(trainer: pl.Trainer, micro_batches: int, batch_idx: int) -> None:
    trainer.should_stop = batch_idx + 1 == micro_batches


def assert_same(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


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


def test_the_average_is_what_is_exported_and_drawn(run: Run) -> None:
    cli = run(model__ema_decay=0.9, model__optimizer="torch.optim.SGD", model__optimizer__lr=0.5)
    current, average = trained(cli), dict(zip(cli.model.ema.names, cli.model.ema.average, strict=True))
    exported = UNet2DConditionModel.from_pretrained(
        cli.folder / "exports/step-000004", subfolder="unet", low_cpu_mem_usage=False
    )
    for name, weight in exported.named_parameters():
        torch.testing.assert_close(weight, average[f"unet/{name}".replace(".", "/")], atol=1e-3, rtol=1e-3)
    expected = torch.cat(
        [average[f"unet/{name}".replace(".", "/")].flatten() for name, _ in exported.named_parameters()]
    )
    assert not torch.equal(expected, weights_of(cli.model.model.unet))
    with cli.model.averaged():
        assert torch.equal(weights_of(cli.model.model.unet), expected)
    assert largest_difference(current, trained(cli)) == 0


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the third sample is NaN."""
    loss = DreamBooth.loss

    def with_nan(self: DreamBooth, batch: Batch) -> Loss:
        whole = loss(self, batch)
        return whole._replace(total=whole.total * float("nan")) if batch.indices[0] == 2 else whole

    monkeypatch.setattr(DreamBooth, "loss", with_nan)


def test_a_released_module_holds_no_weights(tiny_sd: Path) -> None:
    module = DreamBooth(pretrained=str(tiny_sd), ema_decay=0.9)
    module.setup("fit")
    weight = weakref.ref(next(module.model.unet.parameters()))
    module.release()
    gc.collect()
    assert weight() is None
    assert list(module.parameters()) == []


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


@pytest.mark.filterwarnings("ignore:no score")
@pytest.mark.parametrize(
    ("settings", "loads"), [({}, 1), ({"model__train_text_encoder": False}, 1), ({"base": True}, 3)]
)
def test_the_base_model_is_loaded_once_unless_another_one_is_compared_with(
    run: Run, small_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, loads: int
) -> None:
    loaded: list[ModelFiles] = []
    load = StableDiffusion.load

    def counted(files: ModelFiles) -> StableDiffusion:
        loaded.append(files)
        return load(files)

    monkeypatch.setattr(StableDiffusion, "load", counted)
    if settings.pop("base", False):
        settings = {"fidelity__base": tiny.stable_diffusion(tmp_path / "other", seed=1)}
    measured = {"fidelity__clip_model": small_clip, "fidelity__steps": 1, "fidelity__every_n_steps": 100}
    run(**settings, **measured, data__identifier="sks", trainer__max_steps=1)
    assert len(loaded) == loads


def test_throughput_counts_the_time_that_the_device_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    check = GradientRecord.check

    def wait(self: GradientRecord) -> None:
        time.sleep(1)  # as if the device were behind
        check(self)

    monkeypatch.setattr(GradientRecord, "check", wait)
    cli = run(trainer__max_steps=4, samples__every_n_steps=100, checkpoint__every_n_steps=100)
    rates = [value for _, value in scalars(cli.folder)["train/samples_per_second"]]
    assert len(rates) == 4
    assert all(rate < 1 for rate in rates)


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


def test_a_gradient_scaler_may_skip_its_first_steps(scaled: Run) -> None:
    cli = scaled(2.0**40, trainer__max_steps=30, checkpoint__every_n_steps=30)
    assert cli.trainer.global_step == 30
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


def test_gradient_checkpointing_changes_nothing(run: Run) -> None:
    plain, checkpointed = (run(model__gradient_checkpointing=on) for on in (False, True))
    assert largest_difference(trained(plain), trained(checkpointed)) < 1e-6


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_in_bf16_steps_as_far_as_clipping_allows(run: Run, tiny_sd: Path, algorithm: str) -> None:
    sgd = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0, "weight_decay": 0.0, "fused": true}}'
    cli = run(
        model__optimizer=sgd, model__train_text_encoder=False, trainer__max_steps=1, trainer__precision="bf16-mixed",
        trainer__gradient_clip_val=1e-4, trainer__gradient_clip_algorithm=algorithm,
    )  # fmt: skip
    base = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    moved = weights_of(cli.model.model.unet) - weights_of(base.unet)
    assert float(moved.norm() if algorithm == "norm" else moved.abs().max()) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior_weight": -1.0}, "model.prior_weight is -1.0, must be 0 or more"),
        ({"snr_gamma": 0.0}, "model.snr_gamma is 0.0, must be above 0"),
        ({"ema_decay": 1.0}, "model.ema_decay is 1.0, must lie between 0 and 1"),
        ({"text_encoder_lr": 1e-5}, "need model.train_text_encoder: true"),
    ],
)
def test_wrong_values_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DreamBooth(**settings)


def test_defaults_are_the_papers() -> None:
    assert DreamBooth().prior_weight == 1.0
    optimizer = DreamBooth().optimizer([torch.zeros(1)])
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.AdamW, 5e-6)
