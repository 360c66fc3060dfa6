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


def test_an_average_is_saved_with_its_number_of_updates_and_goes_on_from_there() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    saved, loaded = (WeightAverage({"unet": {"layer.weight": weight}}, decay=0.99) for _ in range(2))
    for _ in range(3):
        saved.update()
    state = saved.state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {"unet/layer/weight": [1.0, 2.0], "updates": 3}
    loaded.load_state_dict(state)
    weight.data = torch.tensor([5.0, 6.0])
    for average in (saved, loaded):
        average.update()
    assert torch.equal(saved.average[0], loaded.average[0])
    assert loaded.updates == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_weights_compared_are_the_same_in_every_layout(layout: torch.memory_format) -> None:
    part = torch.nn.Conv2d(64, 96, 3)
    expected = [parameter.detach().flatten() for parameter in part.parameters()]
    expected = torch.cat([values[:: max(1, len(values) // 4096)] for values in expected])
    sampled = weight_sample(dict(part.to(memory_format=layout).named_parameters()))
    assert torch.equal(sampled, expected)


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
