"""Python's search for garbage: in a command that labels one picture it took a fourth of the time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_for_good() -> Iterator[None]:
    """Within, and never again in what is there at its end, is garbage searched for; the first time in a process.

    Imports make some hundred thousand objects that stay, and the search goes through all of them again and again, and
    once more at the program's end.
    """
    if gc.get_freeze_count() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
