"""Feature maps as one sequence of tokens: flattening, positions, reference points (paper section 3.3)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cssformer.accelerate.linear import Linear, LinearReLU, weights_laid_once, zero_init_
from cssformer.utils.eager import fresh, values_only

Shapes = tuple[tuple[int, int], ...]


def flatten(maps: list[Tensor]) -> tuple[Tensor, Shapes]:
    """Maps (B, H_i, W_i, C) -> tokens (B, N, C) with N = sum of H_i·W_i, and the shapes (H_i, W_i)."""
    shapes = tuple((feature.shape[1], feature.shape[2]) for feature in maps)
    return torch.cat([feature.flatten(1, 2) for feature in maps], dim=1), shapes


def unflatten(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """The inverse of :func:`flatten`."""
    parts = tokens.split([height * width for height, width in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def centres(length: int, device: torch.device) -> Tensor:
    """Where the centres of ``length`` cells along one side lie, as a share of that side: (length,) float32."""
    return (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length


def reference_points(shapes: Shapes, device: torch.device) -> Tensor:
    """Each token's own place p on every scale: (N, L, 2) float32 pixels (x, y) of scale j; 0, 0 is a pixel's centre."""
    parts = []
    for height, width in shapes:
        y, x = centres(height, device)[:, None].expand(-1, width), centres(width, device).expand(height, -1)
        parts.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    x, y = torch.cat(parts).unbind(-1)
    on_scales = [torch.stack([x * width, y * height], dim=-1) for height, width in shapes]
    return torch.stack(on_scales, dim=1) - 0.5


def sine_positions(shapes: Shapes, channels: int, device: torch.device) -> list[Tensor]:
    """2-D sine positions of each scale's tokens: (H_i·W_i, channels), the first half for y, the second for x."""
    quarter = channels // 4
    frequency = 2 * math.pi * 10000 ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    parts = []
    for height, width in shapes:
        y, x = (centres(length, device)[:, None] * frequency for length in (height, width))
        rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=-1) for angle in (y, x))
        of_rows, of_columns = rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)
        parts.append(torch.cat([of_rows, of_columns], dim=-1).flatten(0, 1))
    return parts


class SamplingOffsets(Linear):
    """The linear layer W_Δ: where each token looks on each scale, in pixels of that scale.

    At the start head m looks along the direction 2πm/M, its K points ``radius``/K pixels apart from the
    token itself outwards, the same for every token and every scale.
    """

    radius = 4.0

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        self.heads, self.levels, self.points = heads, levels, points
        super().__init__(channels, heads * levels * points * 2)

    def reset_parameters(self) -> None:
        angle_M = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=-1)
        distance_K = torch.arange(self.points) * (self.radius / self.points)
        start_MLK2 = (direction_M2[:, None, None] * distance_K[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.copy_(start_MLK2.flatten())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) -> offsets (B, N, M, L, K, 2), pixels of each scale."""
        return super().forward(tokens).unflatten(-1, (self.heads, self.levels, self.points, 2))


class FeedForward(nn.Sequential):
    """The pre-norm feed-forward block of a Transformer: LayerNorm, C -> 4C -> C. The caller adds the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            LinearReLU(channels, 4 * channels),
            zero_init_(Linear(4 * channels, channels)),
        )


def in_runs(function: Callable[[slice], Tensor], tokens: Tensor, length: int = 6144) -> Tensor:
    """``function(slice of tokens)`` over (B, N, C), run by run: what a run needs then stays in a CPU's cache.

    Only where nothing is to be differentiated, and on a CPU; elsewhere all tokens are one run, as few tokens are.
    """
    if tokens.device.type != "cpu" or not values_only() or tokens.shape[1] <= length:
        return function(slice(None))
    out = fresh(tokens.shape, tokens.dtype)
    with weights_laid_once():
        for start in range(0, tokens.shape[1], length):
            run = slice(start, start + length)
            out[:, run] = function(run)
    return out
