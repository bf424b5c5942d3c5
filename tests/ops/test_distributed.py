"""The sampling functions in distributed training: two processes on the CPU, each with half of the batch.

This file is also the program that both run.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cssformer.ops import ms_deform_attend, ms_deform_sample

SHAPES = ((5, 7), (3, 3), (1, 1))
HEADS, CHANNELS, POINTS, PROCESSES = 2, 8, 3, 2
WAYS = ("plain", "checkpointed", "compiled")


class Sampling(nn.Module):
    """Both functions, on inputs that linear layers learn."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Linear(6, 3 * HEADS * CHANNELS)
        self.places = nn.Linear(6, 3 * HEADS * len(SHAPES) * POINTS)
        self.checkpointed = checkpointed

    def forward(self, tokens: Tensor) -> Tensor:
        if self.checkpointed:
            out: Tensor = checkpoint(self.sample, tokens, use_reentrant=False)
            return out
        return self.sample(tokens)

    def sample(self, tokens: Tensor) -> Tensor:
        query, key, value = self.maps(tokens).unflatten(-1, (3, HEADS, CHANNELS)).unbind(2)
        places = self.places(tokens).unflatten(-1, (HEADS, len(SHAPES), POINTS, 3))
        positions, weights = 3 * places[..., :2] + 1, places[..., 2]
        return ms_deform_sample(value, SHAPES, positions, weights) + ms_deform_attend(
            query, key, value, SHAPES, positions
        )


def batch() -> Tensor:
    return torch.randn(4, sum(h * w for h, w in SHAPES), 6, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module, tokens: Tensor) -> list[Tensor]:
    module(tokens).square().mean().backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def work(rank: int, folder: Path) -> None:
    """One of the processes: leaves its gradients, by way."""
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    found = {}
    for way in WAYS:
        module: nn.Module = Sampling(way == "checkpointed")
        if way == "compiled":
            module.compile(fullgraph=True, backend="aot_eager")
        found[way] = gradients(DistributedDataParallel(module), batch().chunk(PROCESSES)[rank])
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_find_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    expected = gradients(Sampling(False), batch())
    assert len(expected) == 4 and all(gradient.abs().max() > 1e-3 for gradient in expected)
    for way in WAYS:
        for first, second, whole in zip(*(by_way[way] for by_way in found), expected, strict=True):
            assert torch.equal(first, second), way
            torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    # Forked once all is imported.
    child = os.fork()
    work(int(child == 0), Path(sys.argv[1]))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
