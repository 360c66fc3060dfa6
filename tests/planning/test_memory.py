import torch

from lightning_dreambooth.planning.memory import MAPPED_FROM, LiveMemory

SMALL, LARGE = 2**20, MAPPED_FROM["cpu"]


def empty(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_what_lives_is_counted_until_its_last_reference_goes() -> None:
    with LiveMemory("cpu") as memory:
        whole = empty(SMALL)
        part = whole[1:]
        del whole
        assert memory.live == SMALL
        del part
    assert (memory.live, memory.peak) == (0, SMALL)


def test_large_blocks_are_given_back_and_small_ones_kept() -> None:
    with LiveMemory("cpu") as memory:
        large, small = empty(LARGE), empty(SMALL)
        del large, small
    assert memory.resident == SMALL


def test_a_hole_is_used_again_by_what_fits_into_it() -> None:
    with LiveMemory("cpu") as memory:
        first, second = empty(SMALL), empty(SMALL)
        del first, second
        half, larger = empty(SMALL // 2), empty(SMALL + 1)
        assert memory.resident == 3 * SMALL + 1
        del half, larger
        memory.join()
        whole = empty(3 * SMALL)
        assert memory.resident == 3 * SMALL + 1
    del whole


def test_memory_of_another_device_does_not_count() -> None:
    with LiveMemory("cuda") as memory:
        _ = empty(SMALL)
    assert memory.peak == 0
