import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_dreambooth.planning.work import Rates, Work


def product(rows: int) -> Work:
    with FakeTensorMode(), Work() as work:
        torch.zeros(rows, 32) @ torch.zeros(32, 64)
    return work


def of(work: Work, name: str) -> int:
    return sum(amount for call, amount in work.of_calls.items() if call.operation.overloadpacket.__name__ == name)


def test_the_work_of_a_matrix_product_is_its_flops() -> None:
    assert of(product(128), "mm") == 2 * 128 * 32 * 64


def test_the_work_of_other_operations_is_the_bytes_that_they_touch() -> None:
    with Work() as work:
        torch.zeros(10) + torch.zeros(10)
    assert of(work, "add") == 3 * 10 * 4


def test_work_is_extended_by_what_repeats() -> None:
    once = product(8)
    assert of(once.extended(product(8), 4), "mm") == 5 * of(once, "mm")


def test_twice_the_work_takes_twice_the_time() -> None:
    one, two = product(64), product(128)
    rates = Rates([one, two])
    product_only = [
        sum(amount * rates.of_operations[call.operation] for call, amount in work.of_calls.items() if "mm" in str(call))
        for work in (one, two)
    ]
    assert product_only[1] == 2 * product_only[0] > 0
