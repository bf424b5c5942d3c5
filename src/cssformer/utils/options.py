"""Options from the command line and YAML files, with errors that name the nearest option there is."""

import difflib
import re
import typing
from argparse import ArgumentError
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

BASE = "base"
"""The key under which a YAML file names those it builds on."""

# How jsonargparse tells a value that does not fit its option's type.
_WRONG_TYPE = re.compile(r'Parser key "([^"]+)"[^:]*: .*(?:Got|Given) value: (.*)')


def parse(parser: "ArgumentParser", arguments: list[str], where: str) -> "Namespace":
    """Parse the arguments; dataclass options come back as instances.

    A ``--config FILE`` among them is read by :func:`read_config`; the other options win over it, wherever they stand.

    Args:
        parser: made with ``exit_on_error=False``.
        arguments: the words after the command.
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
    content: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if "config" in known:
        words, paths = _take_configs(words)
        for path in paths:
            table, files = read_config(path, known)
            content, origin = _merged(content, table), {**origin, **files}
    _check([word[2:].partition("=")[0] for word in words if word.startswith("--")], known, where)
    for place, (word, following) in enumerate(pairwise([*words, ""])):
        if word.startswith("--"):
            option, equals, _ = word[2:].partition("=")
            if types.get(option) is bool and not equals and following.lower() not in ("true", "false"):
                # A switch alone means true.
                words[place] = f"{word}=true"
            else:
                origin[option] = where
    try:
        config = [f"--config={yaml.safe_dump(content)}"] if content else []
        return parser.instantiate(parser.parse_args(config + words + rest))
    except (ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        if found := _WRONG_TYPE.fullmatch(text):
            key, value = found.groups()
            wanted = _described(types.get(key))
            raise UserError(f"{origin.get(key, where)}: {key} cannot be {value!r}; its type is {wanted}.") from error
        raise UserError(f"{where}: {text}{'' if text.endswith('.') else '.'}") from error


def read_config(path: Path, known: list[str], above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML file over the files that it names under ``base``.

    ``base`` is a list of files, relative to the one it stands in, which may have bases of their own. Later ones win
    over earlier ones, and the file's own keys over them all: tables key by key, anything else as a whole.

    Args:
        path: the file.
        known: the dotted keys there are.
        above: the files of which it is a base, the topmost one first.

    Returns:
        The keys and values, and for each dotted key the file that set it.

    Raises:
        UserError: a file is missing, is not YAML with keys and values, has an unknown key, or is its own base.
    """
    if path.resolve() in above:
        raise UserError(f"The config {path} is its own {BASE}, by way of {above[-1]}; take it out there.")
    own = _load(path, above)
    names = own.pop(BASE, None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {BASE} must be a list of files, such as [../base.yaml], not {names!r}.")
    keys = _dotted(own)
    _check(keys, known, str(path))
    content: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in names:
        table, files = read_config(path.parent / name, known, (*above, path.resolve()))
        content, origin = _merged(content, table), {**origin, **files}
    return _merged(content, own), {**origin, **dict.fromkeys(keys, str(path))}


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    named = f", a {BASE} of {above[-1]}" if above else ""
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"Cannot read the config {path}{named}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The config {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The config {path} must hold keys and values.")
    return content


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    tables = {key for key in both if isinstance(below.get(key), dict) and isinstance(above.get(key), dict)}
    return {key: _merged(below[key], above[key]) if key in tables else value for key, value in both.items()}


def _take_configs(words: list[str]) -> tuple[list[str], list[Path]]:
    """The words without ``--config FILE`` and ``--config=FILE``, and these files."""
    left, paths = [], []
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option == "--config":
            paths.append(Path(value if equals else next(remaining, "")))
        else:
            left.append(word)
    return left, paths


def _described(kind: Any) -> str:
    """A type as people write its values."""
    if isinstance(kind, type) and not typing.get_origin(kind):
        return kind.__name__
    text = str(kind).replace("typing.", "")
    of = next((part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is tuple), None)
    if of is None:
        return text
    examples = {int: "64", float: "0.5"}
    return f"{text}, written as [{','.join(examples.get(part, '...') for part in typing.get_args(of))}]"


def _underscored(word: str) -> str:
    option, equals, value = word[2:].partition("=")
    return "--" + option.replace("-", "_") + equals + value


def nearest(word: str, known: list[str]) -> str:
    """The known word most like the one given."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def _check(keys: list[str], known: list[str], where: str) -> None:
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    for key in keys:
        parents = [key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1)]
        # Below an option that holds a table of its own, such as model.backbone_args, anything goes.
        if key not in known and not any(parent in known and parent not in sections for parent in parents):
            raise UserError(f"{where} has no option {key!r}; the nearest one is {nearest(key, known)!r}.")


def _dotted(content: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in content.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _dotted(value, f"{prefix}{key}.")
    return names
