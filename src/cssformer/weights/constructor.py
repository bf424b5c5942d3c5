"""What a network was made with, by the names that its constructor has for it."""

from collections.abc import Callable
from functools import wraps
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


def remembering(constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor, which also keeps its arguments; a subclass's own count before those that it passes on."""
    own = signature(constructor)

    @wraps(constructor)
    def remember(network: Any, /, *args: Any, **kwargs: Any) -> None:
        known, given = parameters(type(network)), own.bind(network, *args, **kwargs)
        given.apply_defaults()
        named = {name: value for name, value in {**given.arguments, **given.kwargs}.items() if name in known}
        network._hub_mixin_config = {**named, **network._hub_mixin_config}
        constructor(network, *args, **kwargs)

    return remember
