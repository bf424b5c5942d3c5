"""A fingerprint of values in memory."""

import hashlib
from typing import Any

import torch


def digest(value: Any) -> str:
    """SHA-256 of nested containers of tensors, numbers and strings, whatever file or device they come from."""
    hasher = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            hasher.update(f"dict {len(value)}".encode())
            for pair in value.items():
                add(pair)
        elif isinstance(value, list | tuple):
            hasher.update(f"list {len(value)}".encode())
            for item in value:
                add(item)
        else:
            hasher.update(f"{type(value).__name__} {value!r};".encode())

    add(value)
    return hasher.hexdigest()
