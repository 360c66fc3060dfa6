import torch

from lightning_dreambooth.planning.memory import HEAP, LARGE, LiveMemory

SMALL = 2**20


def empty(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_what_lives_is_counted_until_its_last_reference_goes() -> None:
    with LiveMemory("cpu") as memory:
        whole = empty(SMALL)
        part = whole[1:]
        del whole
        assert memory.live == SMALL
        del part
    assert memory.live == 0
    assert memory.peak == round(HEAP * SMALL)


def test_a_cpu_keeps_small_blocks_and_gives_large_ones_back() -> None:
    with LiveMemory("cpu") as memory:
        large, small = empty(LARGE), empty(SMALL)
        assert memory.resident == LARGE + round(HEAP * SMALL)
        del large, small
    assert memory.live == 0
    assert memory.resident == round(HEAP * SMALL)


def test_the_heap_grows_only_when_more_lives_in_it_than_ever() -> None:
    with LiveMemory("cpu") as memory:
        for _ in range(3):
            blocks = [empty(SMALL) for _ in range(4)]
            assert memory.resident == round(HEAP * 4 * SMALL)
            del blocks
        assert len([empty(SMALL) for _ in range(5)]) == 5
    assert memory.peak == round(HEAP * 5 * SMALL)


def test_what_stays_has_no_holes() -> None:
    with LiveMemory("cpu") as memory:
        weights = empty(3 * SMALL)
        memory.settle()
        assert memory.resident == weights.nbytes
        _ = empty(SMALL)
    assert memory.resident == weights.nbytes + round(HEAP * SMALL)


def test_memory_of_another_device_does_not_count() -> None:
    with LiveMemory("cuda") as memory:
        _ = empty(SMALL)
    assert memory.peak == 0
