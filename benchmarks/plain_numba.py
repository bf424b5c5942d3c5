"""What the sampling kernels would cost in plain numba, without the vectors of ``ops/simd.py``.

    python benchmarks/plain_numba.py --rounds 5

Both ways compute the same from the same padded maps, forward, float32, on one thread, in turns with the whole network
(Swin-T, 512x512, 150 classes, by ``accelerate_cpu``), in seconds of the processor. ``cost`` is what the plain kernels
take more, as a share of the network's time. They are written as LLVM vectorises best: loops over the channels inside,
of a fixed width, over contiguous rows; float32 throughout; fast arithmetic but for NaN and infinity.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from cssformer import CSSFormer
from cssformer.accelerate import accelerate_cpu
from cssformer.ops import numba as kernels

ONE, U = np.float32(1), np.uint32
D, K, M, SHAPES = 32, 16, 8, ((128, 128), (64, 64), (32, 32), (16, 16))
L, N = len(SHAPES), sum(height * width for height, width in SHAPES)


def jit(function: Callable[..., Any]) -> Any:
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})(function)


@jit
def place(positions, weights, levels, query, pixels, shares):  # type: ignore[no-untyped-def]
    """Upper left pixels (L, K) and weighed shares (4, L, K) of the corners of one query's positions."""
    for level in range(L):
        height, width = np.float32(levels[level, 0]), np.float32(levels[level, 1])
        for k in range(K):
            x, y = positions[query, level, k, 0], positions[query, level, k, 1]
            inside = (x >= -ONE) & (x < width) & (y >= -ONE) & (y < height)
            x, y = x if inside else -ONE, y if inside else -ONE
            weight = weights[query, level, k] if inside else np.float32(0)
            left, top = np.floor(x), np.floor(y)
            lower = weight * (y - top)
            upper = weight - lower
            upper_right, lower_right = upper * (x - left), lower * (x - left)
            pixels[level, k] = U(np.int32(top) * (levels[level, 1] + np.int32(1)) + np.int32(left) + levels[level, 2])
            shares[0, level, k], shares[1, level, k] = upper - upper_right, upper_right
            shares[2, level, k], shares[3, level, k] = lower - lower_right, lower_right


@jit
def plain_sum(value, levels, positions, weights, out):  # type: ignore[no-untyped-def]
    """``ms_deform_sample`` of value (M, padded, D), positions (N·M, L, K, 2) and weights (N·M, L, K): (N·M, D)."""
    pixels, shares, total = np.zeros((L, K), U), np.zeros((4, L, K), np.float32), np.zeros(D, np.float32)
    for head in range(M):
        h = U(head)
        for n in range(N):
            query = U(n * M + head)
            place(positions, weights, levels, query, pixels, shares)
            for d in range(D):
                total[d] = 0
            for level in range(L):
                below = U(levels[level, 1] + 1)
                for k in range(K):
                    a, b, c, e = (shares[0, level, k], shares[1, level, k], shares[2, level, k], shares[3, level, k])
                    p = pixels[level, k]
                    q = p + below
                    for d in range(D):
                        total[d] += (a * value[h, p, d] + b * value[h, p + U(1), d]) + (
                            c * value[h, q, d] + e * value[h, q + U(1), d]
                        )
            for d in range(D):
                out[query, d] = total[d]


@jit
def plain_attend(queries, maps, levels, positions, ones, scale, out):  # type: ignore[no-untyped-def]
    """``ms_deform_attend`` of queries (N·M, D) and maps (M, padded, key and value), as :func:`plain_sum`."""
    pixels, shares = np.zeros((L, K), U), np.zeros((4, L, K), np.float32)
    logits, sampled = np.zeros(L * K, np.float32), np.zeros((L * K, D), np.float32)
    for head in range(M):
        h = U(head)
        for n in range(N):
            query = U(n * M + head)
            place(positions, ones, levels, query, pixels, shares)
            for level in range(L):
                below = U(levels[level, 1] + 1)
                for k in range(K):
                    a, b, c, e = (shares[0, level, k], shares[1, level, k], shares[2, level, k], shares[3, level, k])
                    p = pixels[level, k]
                    q = p + below
                    logit = np.float32(0)
                    for d in range(D):
                        logit += queries[query, d] * (
                            (a * maps[h, p, d] + b * maps[h, p + U(1), d])
                            + (c * maps[h, q, d] + e * maps[h, q + U(1), d])
                        )
                    logits[level * K + k] = scale * logit
                    for d in range(D, 2 * D):
                        sampled[level * K + k, d - D] = (a * maps[h, p, d] + b * maps[h, p + U(1), d]) + (
                            c * maps[h, q, d] + e * maps[h, q + U(1), d]
                        )
            top, norm = logits.max(), np.float32(0)
            for p in range(L * K):
                logits[p] = np.exp(logits[p] - top)
                norm += logits[p]
            for d in range(D):
                out[query, d] = 0
            for p in range(L * K):
                for d in range(D):
                    out[query, d] += logits[p] / norm * sampled[p, d]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in SHAPES
    ]
    here = torch.cat(centres)[:, None] * torch.tensor([(w, h) for h, w in SHAPES]) - 0.5
    positions = here[None, :, None, :, None] + 3 * torch.randn(1, N, M, L, K, 2)
    weights = torch.randn(1, N, M, L * K).softmax(-1).view(1, N, M, L, K)
    query, key, value = torch.randn(3, 1, N, M, D).unbind()
    alone, both = kernels.pack([value], SHAPES), kernels.pack([key, value], SHAPES)
    given = positions.view(N * M, L, K, 2).numpy(), weights.view(N * M, L, K).numpy()
    ones, out = np.ones_like(given[1]), torch.empty(N * M, D)
    rows, pairs = alone.rows.reshape(M, -1, D), both.rows.reshape(M, -1, 2 * D)
    asked = query.reshape(N * M, D).numpy()
    network = accelerate_cpu(CSSFormer("swin_tiny_patch4_window7_224", 150).eval())
    picture = torch.rand(1, 3, 512, 512)
    scale = np.float32(D**-0.5)
    ways: dict[str, Callable[[], Any]] = {
        "sum": lambda: kernels.sum_packed(alone, positions, None, weights),
        "plain sum": lambda: plain_sum(rows, alone.levels, *given, out.numpy()),
        "attend": lambda: kernels.attend_packed(both, query, positions, None),
        "plain attend": lambda: plain_attend(asked, pairs, both.levels, given[0], ones, scale, out.numpy()),
        "network": lambda: network(picture),
    }
    for name in ("sum", "attend"):
        expected = ways[name]().view(N * M, D)
        ways[f"plain {name}"]()
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - begun)
    print("  ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in best.items()))
    more = best["plain sum"] + best["plain attend"] - best["sum"] - best["attend"]
    print(f"cost {more / best['network']:.0%}")


if __name__ == "__main__":
    main()
