"""What a network was made with, by the names that its constructor has for it."""

from inspect import Parameter, signature
from typing import Any


def parameters(cls: type) -> dict[str, Parameter]:
    """Those of a class's constructor by name, and those of its parents' that its ``**arguments`` reach."""
    found: dict[str, Parameter] = {}
    for kind in cls.__mro__:
        if "__init__" in vars(kind):
            _, *own = signature(vars(kind)["__init__"]).parameters.values()
            for each in own:
                if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                    found.setdefault(each.name, each)
            if all(each.kind is not each.VAR_KEYWORD for each in own):
                break
    return found


def arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the constructor by name, with the defaults of those not given."""
    known = parameters(cls)
    defaults = {name: each.default for name, each in known.items() if each.default is not each.empty}
    placed = [name for name, each in known.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    return {**defaults, **dict(zip(placed, args, strict=False)), **kwargs}
