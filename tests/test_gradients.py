import pytest
import torch
from torch import nn

from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.gradients import SCALER_SKIPS, GradientRecord


def weights() -> dict[str, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    return {part: dict(nn.Linear(4, 4).named_parameters()) for part in ("unet", "text_encoder")}


def with_gradients(parts: dict[str, dict[str, nn.Parameter]], **replaced: float) -> None:
    """Random gradients; those of a part in `replaced` are all the given number, or missing if it is None."""
    for part, named in parts.items():
        for weight in named.values():
            value = replaced.get(part, 1.0)
            weight.grad = None if value is None else torch.randn_like(weight) * value


def record(parts: dict[str, dict[str, nn.Parameter]], scaled: bool = False) -> GradientRecord:
    return GradientRecord(parts, scaled, torch.device("cpu"))


def test_norms_are_those_of_all_gradients_in_one_vector() -> None:
    parts = weights()
    with_gradients(parts)
    measured = record(parts)
    measured.measure(1)
    flat = {part: torch.cat([weight.grad.flatten() for weight in named.values()]) for part, named in parts.items()}
    for part, norm in measured.norms.items():
        torch.testing.assert_close(norm, flat[part].norm())
    torch.testing.assert_close(measured.total, torch.cat([*flat.values()]).norm())
    measured.check()


def test_clipping_by_the_measured_norm_gives_the_bits_of_torchs_own_clipping() -> None:
    ours, torchs = weights(), weights()
    for parts in (ours, torchs):
        torch.manual_seed(1)
        with_gradients(parts)
    flat = [[weight for named in parts.values() for weight in named.values()] for parts in (ours, torchs)]
    measured = record(ours)
    measured.measure(1)
    nn.utils.clip_grads_with_norm_(flat[0], 1.0, measured.total)
    nn.utils.clip_grad_norm_(flat[1], 1.0)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*flat, strict=True))
    assert float(torch.cat([weight.grad.flatten() for weight in flat[0]]).norm()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"unet": float("nan")}, "unet.weight has a gradient that is not finite"),
        ({"text_encoder": float("inf")}, "text_encoder.weight has a gradient that is not finite"),
        ({"text_encoder": 0.0}, "no gradient reaches the text_encoder"),
        ({"unet": None}, "no gradient reaches the unet"),
    ],
)
def test_the_first_fault_is_reported_whenever_it_is_asked_for(gradients: dict[str, float], message: str) -> None:
    parts = weights()
    measured = record(parts)
    for step in range(1, 6):  # sound, sound, faulty, faulty in another way, sound
        with_gradients(parts, **{3: gradients, 4: {"unet": float("inf")}}.get(step, {}))
        measured.measure(step)
        if step < 3:
            measured.check()
    with pytest.raises(TrainingError, match=f"before anything of step 3 was saved: {message}"):
        measured.check()


def test_a_loss_that_is_not_finite_is_reported_before_its_gradients() -> None:
    parts = weights()
    measured = record(parts)
    measured.record_loss(1, torch.tensor(0.5))
    measured.record_loss(2, torch.tensor(float("inf")))
    with_gradients(parts, unet=float("nan"))
    measured.measure(2)
    with pytest.raises(TrainingError, match="step 2 was saved: the loss is not finite"):
        measured.check()


def test_a_gradient_scaler_may_skip_so_many_steps_in_a_row_and_no_more() -> None:
    parts = weights()
    measured = record(parts, scaled=True)
    for step in range(1, 2 * SCALER_SKIPS + 1):
        with_gradients(parts, unet=1.0 if step == SCALER_SKIPS else float("inf"))
        measured.measure(step)
    measured.check()
    assert int(measured.updates) == 1
    measured.measure(2 * SCALER_SKIPS + 1)
    with pytest.raises(TrainingError, match=f"step {2 * SCALER_SKIPS + 1} was saved"):
        measured.check()
