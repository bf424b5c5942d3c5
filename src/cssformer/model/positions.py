"""Feature maps as one sequence of tokens: flattening, positions, reference points (paper section 3.3)."""

import math

import torch
from torch import Tensor

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
    """Each token's own position p on every scale: (N, L, 2) float32 pixels (x, y) of scale j; (0, 0) is a centre."""
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
