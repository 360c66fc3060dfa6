import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from helpers import tiny
from helpers.probes import scalars
from PIL import Image
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lightning_dreambooth import randomness
from lightning_dreambooth.data.dataset import Moments
from lightning_dreambooth.data.draws import Draws
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.conditioning import Conditioning
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth

Run = Callable[..., object]

ROUNDING = "lightning_dreambooth.rounding.RoundingAdamW"


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


def test_a_released_module_holds_no_weights(tiny_sd: Path) -> None:
    module = DreamBooth(pretrained=str(tiny_sd), ema_decay=0.9)
    module.setup("fit")
    weight = weakref.ref(next(module.model.unet.parameters()))
    module.release()
    gc.collect()
    assert weight() is None
    assert list(module.parameters()) == []


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


def test_gradient_checkpointing_changes_nothing(run: Run) -> None:
    plain, checkpointed = (run(model__gradient_checkpointing=on) for on in (False, True))
    assert largest_difference(trained(plain), trained(checkpointed)) < 1e-6


def logged(run_name: str, tag: str) -> list[float]:
    return [value for _, value in scalars(Path("runs", run_name))[tag]]


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "bitsandbytes.optim.AdamW8bit", ROUNDING])
def test_updating_in_backward_changes_nothing_but_when_gradients_are_freed(run: Run, optimizer: str) -> None:
    settings = {
        "model__optimizer": optimizer, "model__optimizer__lr": 1e-3, "trainer__gradient_clip_val": "null",
        "model__lr_schedule": "linear", "model__text_encoder_lr": 1e-4, "model__gradient_checkpointing": True,
    }  # fmt: skip
    after, within = (run(**settings, model__update_in_backward=on, name=f"run-{on}") for on in (False, True))
    assert largest_difference(trained(after), trained(within)) == 0
    for part in ("unet", "text_encoder"):
        norms = [logged(f"run-{on}", f"watch/gradient_norm/{part}") for on in (False, True)]
        assert norms[0] == pytest.approx(norms[1])
        assert len({*norms[0]}) == 4


def test_weights_in_bf16_are_trained_as_those_in_fp32_up_to_their_rounding(run: Run, tiny_sd: Path) -> None:
    """After fifty steps, of which each changes a weight by less than bf16 can express."""
    base = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    shared = {"trainer__max_steps": 50, "trainer__precision": "bf16-mixed", "model__train_text_encoder": False}
    shared |= {"model__optimizer__lr": 1e-4, "trainer__log_every_n_steps": 50, "samples__every_n_steps": 100}
    changes = {}
    for dtype, optimizer in {"float32": "torch.optim.AdamW", "bfloat16": ROUNDING}.items():
        cli = run(**shared, model__weight_dtype=dtype, model__optimizer=optimizer)
        changes[dtype] = weights_of(cli.model.model.unet).float() - weights_of(base.unet)
    exact, rounded = changes["float32"], changes["bfloat16"]
    print((rounded @ exact) / (exact @ exact), (rounded - exact).norm() / exact.norm())  # shown by `pytest -s`
    assert float((rounded @ exact) / (exact @ exact)) == pytest.approx(1, abs=0.05)
    assert float((rounded - exact).norm() / exact.norm()) < 1


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
