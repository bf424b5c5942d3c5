"""Options from the command line and YAML files, with errors that name the nearest option there is."""

import difflib
import re
from argparse import ArgumentError
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cssformer.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# How jsonargparse tells a value that does not fit its option's type.
_WRONG_TYPE = re.compile(r'Parser key "([^"]+)"[^:]*: .*(?:Got|Given) value: (.*)')


def parse(parser: "ArgumentParser", arguments: list[str], where: str) -> "Namespace":
    """Parse the arguments; dataclass options come back as instances.

    Args:
        parser: made with ``exit_on_error=False``.
        arguments: the words after the command. A ``--config FILE`` among them is checked key by key first.
        where: named in the errors.

    Raises:
        UserError: an unknown option or key (the nearest one is named), or a value of a wrong type.
    """
    # A dash in an option's name is as good as the underscore that Python needs there.
    arguments = [_underscored(word) if word.startswith("--") else word for word in arguments]
    known = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
    # After a bare -- only positional arguments follow.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words, rest = arguments[:end], arguments[end:]
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    origin: dict[str, str] = {}
    for place, (word, following) in enumerate(pairwise([*words, ""])):
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            _check(option, known, where)
            if option == "config":
                path = Path(value or following)
                for key in read_keys(path):
                    _check(key, known, str(path))
                    origin.setdefault(key, str(path))
            elif types.get(option) is bool and not equals and following.lower() not in ("true", "false"):
                # A switch alone means true.
                words[place] = f"{word}=true"
            else:
                origin[option] = where
    try:
        return parser.instantiate(parser.parse_args(words + rest))
    except (ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        if found := _WRONG_TYPE.fullmatch(text):
            key, value = found.groups()
            kind = types.get(key)
            wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise UserError(f"{origin.get(key, where)}: {key} cannot be {value!r}; its type is {wanted}.") from error
        raise UserError(f"{where}: {text}{'' if text.endswith('.') else '.'}") from error


def _underscored(word: str) -> str:
    option, equals, value = word[2:].partition("=")
    return "--" + option.replace("-", "_") + equals + value


def nearest(word: str, known: list[str]) -> str:
    """The known word most like the one given."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def read_keys(path: Path) -> list[str]:
    """The dotted keys that a YAML file sets.

    Raises:
        UserError: no such file, or not YAML with keys and values.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"Cannot read the config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The config {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The config {path} must hold keys and values.")
    return _dotted(content)


def _check(key: str, known: list[str], where: str) -> None:
    parents = [key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1)]
    # Below an option that holds a table of its own, such as model.backbone_args, anything goes.
    if key not in known and not any(parent in known and f"{parent}." not in _sections(known) for parent in parents):
        raise UserError(f"{where} has no option {key!r}; the nearest one is {nearest(key, known)!r}.")


def _sections(known: list[str]) -> set[str]:
    return {f"{name.rsplit('.', 1)[0]}." for name in known if "." in name}


def _dotted(content: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in content.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _dotted(value, f"{prefix}{key}.")
    return names
