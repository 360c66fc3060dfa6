import subprocess
import sys

import pytest

AGAIN = """
import resource, sys
import torch
from lightning_dreambooth.heap import LARGE, keep_freed_memory

def page_faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
print(*(min(page_faults(size) for _ in range(20)) for size in (LARGE // 2, LARGE)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_pages_of_freed_tensors_are_not_cleared_again_except_of_large_ones() -> None:
    faults = {}
    for name in ("kept", "as_it_is"):
        words = [sys.executable, "-c", AGAIN, name]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        faults[name] = [int(word) for word in printed.split()]
    assert 0.01 * faults["as_it_is"][0] > faults["kept"][0]
    assert faults["kept"][1] == pytest.approx(faults["as_it_is"][1], rel=0.1)
