import pytest
import torch

from lightning_dreambooth.optimization import (
    ema_update,
    gradient_norm,
    learning_rate_factor,
    probe,
    relative_change,
)  # fmt: skip


def test_ema_follows_its_formula() -> None:
    average, current = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    ema_update(0.5)(average, current, 100)
    assert torch.equal(average[0], torch.tensor([2.0, 4.0]))
    ema_update(0.999)(average, current, 8)  # the ninth update still decays by (1 + 8) / (10 + 8) only
    assert torch.equal(average[0], torch.tensor([2.5, 5.0]))


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    linear, cosine = (learning_rate_factor(kind, 2, 6) for kind in ("linear", "cosine"))
    assert [linear(step) for step in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert [cosine(step) for step in (2, 4, 6)] == pytest.approx([1.0, 0.5, 0.0])
    assert learning_rate_factor("constant", 0, 6)(5) == 1.0
    assert learning_rate_factor("constant", 0, 6, stop_step=3)(3) == 0.0


def test_relative_change_is_the_ratio_of_norms() -> None:
    part = torch.nn.Linear(4, 4)
    start = probe(part)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.25)
    assert float(relative_change(probe(part), start)) == pytest.approx(0.25)


def test_gradient_norm_is_that_of_all_gradients_in_one_vector() -> None:
    part = torch.nn.Linear(4, 4)
    assert gradient_norm(part) == 0
    part(torch.ones(2, 4)).square().sum().backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in part.parameters()])
    torch.testing.assert_close(gradient_norm(part), whole.norm())
