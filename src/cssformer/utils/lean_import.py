"""Imports without PyTorch's compiler, which takes as long to import as PyTorch itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_WANTED = "torch._dynamo.utils"


class _Later(ModuleType):
    """A module that is imported when somebody asks it for more than a function that it will call later, if ever."""

    def __getattr__(self, name: str) -> Any:
        if name == "is_compile_supported":
            return lambda *arguments: getattr(import_module(_WANTED), name)(*arguments)
        if name.startswith("__"):
            raise AttributeError(name)  # inspect looks at every module
        _remove(self)
        return getattr(import_module(_WANTED), name)


def _remove(stand_in: ModuleType) -> None:
    if sys.modules.get(_WANTED) is stand_in:
        del sys.modules[_WANTED]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, timm can be imported without ``torch._dynamo``, which is imported when something is compiled.

    torchvision takes a function of it that boxes need, and timm marks one of its own as not to be compiled, which
    PyTorch can also do later, as it does with its own.
    """
    if _WANTED in sys.modules:
        yield
        return
    stand_in, disable = _Later(_WANTED), torch.compiler.disable
    sys.modules[_WANTED] = stand_in
    torch.compiler.disable = lambda fn=None, recursive=True, **_: torch._disable_dynamo(fn, recursive)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        _remove(stand_in)
