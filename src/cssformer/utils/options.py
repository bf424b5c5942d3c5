"""Options from the command line and YAML files: jsonargparse's, with errors of one sentence."""

import dataclasses
import difflib
import json
import re
import types
import typing
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse.typing import ClosedUnitInterval, restricted_number_type, restricted_string_type

from cssformer.utils.errors import UserError
from cssformer.utils.text import read_yaml

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _whole(least: int, most: int) -> Any:
    words = f"a whole number from {least} to {most}"
    return restricted_number_type(f"Int{least}To{most}", int, [(">=", least), ("<=", most)], docstring=words)


def _number(least: float, most: float, above: bool = False) -> Any:
    words = f"a number {'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} {most:.9g}"
    name = re.sub(r"\W", "", f"Float{'Above' if above else ''}{least:g}To{most:g}")
    return restricted_number_type(name, float, [(">" if above else ">=", least), ("<=", most)], docstring=words)


if TYPE_CHECKING:
    from builtins import float as Angle
    from builtins import float as Deviation
    from builtins import float as Fraction
    from builtins import float as Mean
    from builtins import float as NonNegative
    from builtins import float as Positive
    from builtins import float as Scale
    from builtins import float as Share
    from builtins import float as Shift
    from builtins import float as Slant
    from builtins import int as Bands
    from builtins import int as Batch
    from builtins import int as Channels
    from builtins import int as Count
    from builtins import int as Depth
    from builtins import int as Devices
    from builtins import int as FFNRatio
    from builtins import int as Natural
    from builtins import int as Points
    from builtins import int as Port
    from builtins import int as Scenes
    from builtins import int as Side
    from builtins import int as Workers
    from builtins import str as Device
else:
    Side = _whole(32, 8192)
    Channels = _whole(1, 8192)
    Points = _whole(1, 1024)
    Depth = _whole(0, 64)
    FFNRatio = _whole(1, 16)
    Batch = _whole(1, 65536)
    Bands = _whole(1, 1024)
    Devices = _whole(1, 1000)
    Workers = _whole(0, 1000)
    Count = _whole(1, 10**9)
    Scenes = _whole(1, 10**7)
    Natural = _whole(0, 2**31 - 1)
    Port = _whole(0, 65535)
    Mean = _number(-1e9, 1e9)
    Deviation = _number(0, 1e9, above=True)
    Positive = _number(0, 1e6, above=True)
    NonNegative = _number(0, 1e6)
    Share = ClosedUnitInterval
    Fraction = _number(0, 1, above=True)
    Shift = _number(0, 0.25)
    Angle = _number(0, 180)
    Slant = _number(0, 60)
    Scale = _number(0.01, 100)
    Device = restricted_string_type(
        "Device", r"auto|cpu|mps|cuda(:\d{1,3})?", docstring="auto, cpu, mps, cuda or cuda:N"
    )

RENAMED = {
    "model.augmentation": "model.cia",
    "model.enhancement_depth": "model.msfe_depth",
    "model.fusion_depth": "model.csf_depth",
    "augment.max_share": "augment.cat_max_ratio",
    "base": "config",
}
PRESETS = Path(__file__).parents[1] / "configs"
INSTEAD = {
    "epochs": "training lasts training.steps optimiser steps of training.batch_size pictures",
    "max_epochs": "training lasts training.steps optimiser steps of training.batch_size pictures",
    "batch": "training.batch_size is the number of pictures of an optimiser step",
    "imgsz": "augment.crop is the size of the crops, augment.short_side that of the pictures",
    "gpus": "training.devices is the number of GPUs",
    "resume_from": "--resume continues the run in --output",
    "load_from": "model.init names a network to start from",
}
"""What other programs of the field call differently."""

# How jsonargparse tells an option that there is not, and a value that does not fit its option's type.
_UNKNOWN = re.compile(
    r"unrecognized arguments: --?([^\s=]+).*|.*Option '(.+)' is not accepted.*"
    r"|.*Group '(.+)' does not accept option '(.+)'.*"
)
_WORD = re.compile(r"unrecognized arguments: ([^-\s].*)")
_MISSING = re.compile(r".*the following arguments are required: (.*)")
_WRONG = re.compile(r'Parser key "([^"]+)"[^:]*: .*')
_VALUE = re.compile(
    r".*Given value: (.*)|Got value: (.*)|type \w+: (.*) does not (?:conform|match)|base 10: '(.*)'|to float: '(.*)'"
)


class _HelpFormatter(DefaultHelpFormatter):
    """Types in words, and defaults as they are written on the command line."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        # A hundred options in brackets hide the words that must be given.
        needed = [action for action in actions if action.required or not action.option_strings]
        line = super()._format_usage(usage, needed, [], prefix)
        return line.replace(self._prog, f"{self._prog} [options]", 1)

    def _get_type_str(self, action: Action) -> str | None:
        return values_of(action)

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        if action.default is None:
            return text.replace(", default: %(default)s", "")
        return text.replace("%(default)s", written(action.default))


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list | tuple):
        return " ".join(map(written, value))
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)


def make_parser(prog: str | None = None, description: str | None = None) -> ArgumentParser:
    """A parser for :func:`parse`. Abbreviated options are refused: a new option could change what they mean."""
    return ArgumentParser(
        prog=prog,
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        print_config=None,
    )


class ConfigFile(ActionConfigFile):
    """``--config FILE``: its keys go over those of the files before it. A bare name is a preset of the package.

    The file may itself list files below it under ``config``, relative to itself.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = Path(values)
        presets = {preset.stem: preset for preset in PRESETS.glob("*.yaml")}
        if not path.is_file() and not path.suffix and str(path) == path.name:  # a run may be called like one
            if path.name not in presets:
                raise UserError(f"There is no config {path}; give a YAML file, or {', '.join(sorted(presets))}.")
            path = presets[path.name]
        content = read_yaml(path)
        below = content.pop("config", None) or []
        if not isinstance(below, list) or not all(isinstance(name, str) for name in below):
            raise UserError(f"{path}: config must be a list of files, such as [../base.yaml].")
        for name in below:
            self(parser, cfg, path.parent / name, option_string)
        for key in _sections(parser) & content.keys():
            if not isinstance(content[key], dict):
                raise UserError(f"{path}: {key} must hold keys and values.")
        try:
            if content:
                super().__call__(parser, cfg, yaml.safe_dump(content), option_string)
                cfg[self.dest][-1] = str(values)
                parser.validate(cfg, skip_required=True)
        except (ArgumentError, TypeError, ValueError, KeyError) as error:
            raise told(error, parser, str(path)) from error


def _sections(parser: ArgumentParser) -> set[str]:
    return set(parser.groups or ())


def parse(parser: ArgumentParser, arguments: list[str], where: str) -> Namespace:
    """Parse the arguments; dataclass options come back as instances.

    Files of ``--config`` are merged key by key, the later over the earlier; the other options win over them, wherever
    they stand. Tuples and lists are written ``--crop 64 96``, a switch ``--flip`` or ``--flip false``.

    Args:
        parser: of :func:`make_parser`.
        arguments: the words after the command.
        where: named in the errors, a file or the command's words.

    Raises:
        UserError: an unknown option or key, or a value of a wrong type or range.
    """
    for option in {word[2:].partition("=")[0] for word in arguments if word.startswith("--")} & _sections(parser):
        raise UserError(f"{where}: --{option} is a section of options; give one of them, as --{option}.NAME VALUE.")
    for action in parser._actions:
        if action.dest in _sections(parser):
            action.help = SUPPRESS
    types_of = {f"--{action.dest}": getattr(action, "_typehint", None) for action in parser._actions}
    for before, word in pairwise(["", *arguments]):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            # A path that is empty would be the folder one is in.
            name = (word or before).strip("-=") if (word or before).startswith("--") else "one of the values"
            raise UserError(f"{where}: {name} is empty; perhaps a variable of the shell is not set.")
    # After a bare -- only positional arguments follow.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    configs, words = _in_one_word(arguments[:end], types_of)
    try:
        parsed = parser.instantiate(parser.parse_args([*configs, *words, *arguments[end:]]))
        return Namespace(**{name: _plain(value) for name, value in vars(parsed).items()})
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:
        raise told(error, parser, where) from error


def _in_one_word(arguments: list[str], types_of: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The words of ``--config``, and the others, with each option's values as jsonargparse takes them."""
    configs: list[str] = []
    words: list[str] = []
    remaining = list(reversed(arguments))
    while remaining:
        word = remaining.pop()
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            # A dash in an option's name is as good as the underscore that Python needs there.
            option = "--" + option[2:].replace("-", "_")
            word = option + equals + value
        kind = types_of.get(option)
        kinds = (kind, *typing.get_args(kind))
        of_texts = any(str(part).startswith(("list[str]", "list[typing.Literal")) for part in kinds)
        if option == "--config" and (equals or remaining):
            configs.append(word if equals else f"{word}={remaining.pop()}")
        elif equals and of_texts and value != "null" and not value.startswith("["):
            words.append(f"{option}={json.dumps([value])}")
        elif equals or kind is None:
            words.append(word)
        elif kind is bool:
            given = remaining.pop() if remaining and remaining[-1].lower() in ("true", "false") else "true"
            words.append(f"{word}={given}")
        elif of_texts:
            texts = []
            while remaining and not remaining[-1].startswith("--"):
                texts.append(remaining.pop())
            given = "[]" if texts == ["[]"] else json.dumps(texts)
            words.append(f"{word}={given}" if texts else word)
        elif any(typing.get_origin(part) in (tuple, list) for part in kinds):
            values = []
            while remaining and _is_number(remaining[-1]):
                values.append(remaining.pop())
            words.append(f"{word}=[{','.join(values)}]" if values else word)
        else:
            words.append(word)
    return configs, words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Numbers and texts of restricted types as Python's own, which every library can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: _plain(item) for name, item in vars(value).items()})
    if isinstance(value, dict | Namespace):
        table = value if isinstance(value, dict) else vars(value)
        return {key: _plain(item) for key, item in table.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def told(error: Exception, parser: ArgumentParser, where: str) -> UserError:
    """The error of a parser as one sentence."""
    text = " ".join(str(error).split())
    if found := _UNKNOWN.fullmatch(text):
        *keys, group, inside = found.groups()
        key = next((key for key in keys if key), f"{group}.{inside}")
        return UserError(f"{where} has no option {key!r}{_instead(key, parser)}.")
    if found := _WORD.fullmatch(text):
        return UserError(f"{where}: {found[1]!r} belongs to no option; `{parser.prog} --help` tells what there is.")
    if found := _WRONG.fullmatch(text):
        key, value = found[1], _VALUE.search(text)
        given = next((part for part in value.groups() if part is not None), None) if value else None
        kind = next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)
        if kind is not None:
            wrong = f"{key} must be" if given is None else f"{key} cannot be {_short(repr(given))}; it must be"
            return UserError(f"{where}: {wrong} {described(kind)}.")
    if found := _MISSING.fullmatch(text):
        unnamed = _unnamed(parser)
        missing = ", ".join(unnamed.get(name, f"--{name}") for name in found[1].split(", "))
        return UserError(f"{where} needs {missing}.")
    if isinstance(error, RecursionError):
        text = "a value refers to itself or is nested too deep"
    return UserError(f"{where}: {_short(text).rstrip('.')}.")


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _instead(key: str, parser: ArgumentParser) -> str:
    """What there is instead of an option that there is not."""
    known = [
        action.dest
        for action in parser._actions
        if action.option_strings and hasattr(action, "_typehint") and action.dest not in _sections(parser)
    ]
    section, dot, name = key.rpartition(".")
    if key in (unnamed := _unnamed(parser)):
        return f"; give {unnamed[key]} alone, in its place: {' '.join(unnamed.values())}"
    if RENAMED.get(key) in (*known, "config"):
        return f"; it is called {RENAMED[key]} now"
    if name in INSTEAD and "training.steps" in known:
        return f"; {INSTEAD[name]}"
    elsewhere = [option for option in known if option.rpartition(".")[2] == name]
    if near := elsewhere or nearest(key, known):
        return f"; the nearest one is {near[0]!r}"
    names = [option.rpartition(".")[2] for option in known if option.rpartition(".")[0] == section]
    return f"; there are {', '.join(f'{section}{dot}{name}' for name in names)}" if names else ""


def _unnamed(parser: ArgumentParser) -> dict[str, str]:
    """The arguments without a name, as the help writes them."""
    return {action.dest: action.dest.upper() for action in parser._actions if not action.option_strings}


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known word that a slip of the keyboard, or its first or further letters, make this one; none if no such."""
    known = list(known)
    alike = [
        each for each in known if min(len(word), len(each)) > 2 and (each.startswith(word) or word.startswith(each))
    ]
    if len(alike) == 1:
        return alike
    section, dot, name = word.rpartition(".")
    inside = {option.removeprefix(section + dot): option for option in known if option.startswith(section + dot)}
    near = difflib.get_close_matches(name, inside, n=1, cutoff=0.75)
    return [inside[near[0]]] if near else difflib.get_close_matches(word, known, n=1, cutoff=0.9)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
    dict: "keys and values",
    Path: "a path",
    ClosedUnitInterval: "a number from 0 to 1",
}


def values_of(action: Action) -> str | None:
    """What people give to an option, in words; null is no such value where leaving the option out says the same."""
    kind = getattr(action, "_typehint", action.type)
    if kind is None:
        return None
    return described(kind).removesuffix(" or null" if action.default is None else "")


def described(kind: Any) -> str:
    """What the values of a type are, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(described, parts))
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        return f"{len(parts)} values with spaces between them, each {described(parts[0])}"
    if origin is list:
        return f"one or more values with spaces between them, each {described(parts[0])}"
    return _WORDS.get(origin or kind) or str(kind.__doc__)


def add_device(parser: ArgumentParser, default: str = "auto") -> None:
    """The option ``--device`` of commands that run a network."""
    parser.add_argument("--device", type=Device, default=default, help="cpu, cuda, cuda:N, mps; auto is the best.")
