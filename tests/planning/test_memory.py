import torch

from lightning_dreambooth.planning.memory import ALIGNMENT, LARGE, Heap, LiveMemory

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
    assert SMALL <= memory.peak < SMALL + 3 * ALIGNMENT


def test_a_cpu_keeps_small_blocks() -> None:
    with LiveMemory("cpu") as memory:
        large, small = empty(LARGE), empty(SMALL)
        del large, small
    assert memory.live == 0
    assert SMALL <= memory.resident < SMALL + 3 * ALIGNMENT


def test_the_smallest_hole_that_is_large_enough_is_used_again() -> None:
    heap = Heap()
    large, _, small, _ = (heap.take(size) for size in (100 * SMALL, 1, 50 * SMALL, 1))
    heap.free(large, 100 * SMALL)
    heap.free(small, 50 * SMALL)
    before = heap.size
    assert small <= heap.take(40 * SMALL) < small + 3 * ALIGNMENT
    assert large <= heap.take(60 * SMALL) < large + 3 * ALIGNMENT
    assert large < heap.take(39 * SMALL) < small
    assert heap.size == before
    heap.take(12 * SMALL)
    assert heap.size > before


def test_holes_side_by_side_are_one() -> None:
    heap = Heap()
    blocks = [(heap.take(size), size) for size in (SMALL, 2 * SMALL, 3 * SMALL)]
    heap.take(1)
    before = heap.size
    for place in (0, 2, 1):
        heap.free(*blocks[place])
    heap.take(6 * SMALL)
    assert heap.size == before


def test_the_top_is_used_again() -> None:
    heap = Heap()
    heap.free(heap.take(SMALL), SMALL)
    heap.take(2 * SMALL)
    assert heap.size < 2 * SMALL + 3 * ALIGNMENT


def test_memory_of_another_device_does_not_count() -> None:
    with LiveMemory("cuda") as memory:
        _ = empty(SMALL)
    assert memory.peak == 0
