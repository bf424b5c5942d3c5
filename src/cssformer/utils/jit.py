"""How the product's numba kernels are compiled: serial, without the GIL, kept on disk between runs."""

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any]) -> Any:
    """The function as a numba kernel that several Python threads may run at one time.

    Numba's own parallel layers either crash when two threads call them or bring a second OpenMP pool that fights
    torch's for the cores, so threads around the kernels share the work.
    """
    # Nobody calls them from C.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(**options)(function)
