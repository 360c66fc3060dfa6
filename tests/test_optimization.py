import pytest
import torch

from lightning_dreambooth.optimization import (
    WeightAverage,
    learning_rate_factor,
    parameter_groups,
    relative_change,
    weight_sample,
)


def test_the_average_follows_its_formula_and_begins_with_the_weights() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage({"unet": {"layer.weight": weight}}, decay=0.5)
    weight.data = torch.tensor([3.0, 6.0])
    average.update()
    assert torch.equal(average.average[0], weight)  # the first update copies
    weight.data = torch.tensor([4.0, 7.0])
    average.update()  # the second decays by (1 + 1) / (10 + 1) only
    torch.testing.assert_close(average.average[0].data, torch.tensor([4.0, 7.0]) - 2 / 11)
    average.updates += 1000
    average.average[0].data = torch.tensor([1.0, 2.0])
    average.update()
    torch.testing.assert_close(average.average[0].data, torch.tensor([2.5, 4.5]))


def test_an_average_is_swapped_in_and_out() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage({"unet": {"w": weight}}, decay=0.9)
    weight.data = torch.tensor([2.0])
    with average.swapped():
        assert (weight.item(), average.average[0].item()) == (1, 2)
    assert (weight.item(), average.average[0].item()) == (2, 1)


def test_a_part_takes_its_own_learning_rate_or_the_optimizers() -> None:
    weights = {name: dict(torch.nn.Linear(2, 2).named_parameters()) for name in ("unet", "text_encoder")}
    groups = torch.optim.SGD(parameter_groups(weights, {"text_encoder": 0.25}), lr=0.5).param_groups
    assert [(group["name"], group["lr"], len(group["params"])) for group in groups] == [
        ("unet", 0.5, 2), ("text_encoder", 0.25, 2)
    ]  # fmt: skip


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    linear, cosine = (learning_rate_factor(kind, 2, 6) for kind in ("linear", "cosine"))
    assert [linear(step) for step in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert [cosine(step) for step in (2, 4, 6)] == pytest.approx([1.0, 0.5, 0.0])
    assert learning_rate_factor("constant", 0, 6)(5) == 1.0
    assert learning_rate_factor("constant", 0, 6, stop_step=3)(3) == 0.0


def test_relative_change_is_the_ratio_of_norms() -> None:
    part = torch.nn.Linear(4, 4)
    start = weight_sample(dict(part.named_parameters()))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.25)
    assert float(relative_change(weight_sample(dict(part.named_parameters())), start)) == pytest.approx(0.25)
