"""What docstrings refer to is there."""

import inspect
import re
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1] / "src"
REFERENCE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([\w.]+)`")


def is_there(name: str, module: ModuleType) -> bool:
    """Whether the package, the module or one of its classes has the name."""
    if name.startswith("cssformer"):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True
    first, _, member = name.partition(".")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    if member:
        return hasattr(getattr(module, first, None), member)
    fields = {field for each in classes for field in getattr(each, "__annotations__", {})}
    return hasattr(module, first) or any(hasattr(each, first) for each in classes) or first in fields


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_references_are_there(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    names = set(REFERENCE.findall(source))
    if names:
        module = pytest.importorskip(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        assert [name for name in sorted(names) if not is_there(name, module)] == []
