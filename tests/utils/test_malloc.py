"""What the process keeps of the memory it has freed."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import os, resource, sys
import torch
from cssformer.utils.malloc import keep_freed_memory

# The parent keeps it, the child does not and prints first.
if child := os.fork():
    os.waitpid(child, 0)
    keep_freed_memory()

def work():
    large = torch.ones(36 << 20, dtype=torch.uint8)
    return [torch.ones(size << 20, dtype=torch.uint8) + large[0] for size in (33, 34, 35)]

for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, flush=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_tensors_after_others_cost_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert 10 * kept < plain
