"""A context variable that has a value for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Value = TypeVar("Value")


@contextmanager
def bound(variable: ContextVar[Value | None], value: Value) -> Iterator[Value]:
    """Give the variable the value inside the block, in this thread; the block gets it too."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
