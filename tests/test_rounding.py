import pytest
import torch
from torch import nn

from lightning_dreambooth.rounding import RoundingAdamW, generator, random_bits, round_stochastically

CPU = torch.device("cpu")


def test_a_number_is_rounded_to_one_of_its_neighbours_and_to_itself_in_the_mean() -> None:
    numbers = torch.tensor([1 + 3 / 1024, -1 - 3 / 1024, 1e-30, 5.0, 0.0])  # in bf16, 1 is followed by 1 + 1 / 128
    rounded = torch.stack([
        round_stochastically(numbers.clone(), random_bits(5, CPU, generator(CPU, seed))).float()
        for seed in range(4000)
    ])  # fmt: skip
    assert set(rounded[:, 0].tolist()) == {1.0, 1 + 1 / 128}
    assert set(rounded[:, 1].tolist()) == {-1.0, -1 - 1 / 128}
    assert set(rounded[:, 3].tolist()) == {5.0}
    assert set(rounded[:, 4].tolist()) == {0.0}
    spread = (1 / 128) / 4000**0.5
    assert abs(rounded[:, 0].mean().item() - numbers[0].item()) < 4 * spread
    assert rounded[:, 2].mean().item() == pytest.approx(1e-30, rel=4 * spread)


def test_bits_are_uniform() -> None:
    bits = random_bits(100_001, CPU, generator(CPU, 0)).float()
    assert len(bits) == 100_001
    assert bits.mean().item() == pytest.approx(0, abs=4 * 2**16 / 12**0.5 / len(bits) ** 0.5)
    assert (bits.min().item(), bits.max().item()) == pytest.approx((-(2**15), 2**15), abs=20)


def conv(dtype: torch.dtype, size: int = 8) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(size, size, 3).to(dtype, memory_format=torch.channels_last)


def with_gradients(layer: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for weight in layer.parameters():
        weight.grad = torch.randn_like(weight)


def test_weights_in_fp32_get_the_bits_of_torchs_fused_adamw() -> None:
    ours, torchs = conv(torch.float32), conv(torch.float32)
    arguments = {"betas": (0.8, 0.95), "weight_decay": 0.1}

    def groups(layer: nn.Conv2d) -> list[dict[str, object]]:
        return [{"params": [layer.weight], "lr": 1e-2}, {"params": [layer.bias], "lr": 1e-3}]

    optimizers = [RoundingAdamW(groups(ours), **arguments), torch.optim.AdamW(groups(torchs), **arguments, fused=True)]
    for step in range(3):
        for layer, optimizer in zip((ours, torchs), optimizers, strict=True):
            with_gradients(layer, step)
            optimizer.step()
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, torchs.get_parameter(name))


def test_updates_too_small_for_bf16_add_up_as_in_fp32() -> None:
    layers = {"rounding": conv(torch.bfloat16), "nearest": conv(torch.bfloat16), "exact": conv(torch.float32)}
    layers["exact"].load_state_dict(layers["nearest"].state_dict())
    kinds = {name: RoundingAdamW if name == "rounding" else torch.optim.AdamW for name in layers}
    optimizers = {name: kinds[name](layer.parameters(), lr=1e-5, weight_decay=0.0) for name, layer in layers.items()}
    before = layers["exact"].weight.detach().clone()
    for _ in range(200):
        for name, layer in layers.items():
            for weight in layer.parameters():
                weight.grad = torch.ones_like(weight)
            optimizers[name].step()
    changes = {name: (layer.weight.detach().float() - before).mean().item() for name, layer in layers.items()}
    assert changes["exact"] == pytest.approx(-200e-5, rel=1e-3)
    assert changes["rounding"] == pytest.approx(changes["exact"], rel=0.05)
    assert abs(changes["nearest"]) < 0.5 * abs(changes["exact"])  # of weights near 0 alone


def test_steps_repeat_and_go_on_from_a_state() -> None:
    layers = [conv(torch.bfloat16) for _ in range(2)]
    optimizers = [RoundingAdamW(layer.parameters(), lr=1e-2) for layer in layers]
    for step in range(4):
        if step == 2:
            state = optimizers[1].state_dict()
            optimizers[1] = RoundingAdamW(layers[1].parameters(), lr=1e-2)
            optimizers[1].load_state_dict(state)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            with_gradients(layer, step)
            optimizer.step()
    for name, weight in layers[0].named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, layers[1].get_parameter(name))
