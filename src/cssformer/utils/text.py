"""Lists in sentences, and text files of any origin: only regular ones are opened, always as UTF-8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cssformer.utils.errors import UserError

MOST_BYTES = 2**24
"""What a text file may hold."""
DEEPEST = 20
"""How deep the tables of a YAML file may be nested."""


def listed(shown: Sequence[str], count: int) -> str:
    """The ones shown of ``count``: A, B and 3 more."""
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: no such file, no regular file (a pipe would wait for ever), too large, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"Cannot read {path}: it is no regular file.")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"Cannot read {path}: it is larger than {MOST_BYTES // 2**20} MiB.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Cannot read {path}: byte {error.start} is not UTF-8.") from error
    except ValueError as error:
        raise UserError(f"Cannot read {str(path)!r}: {error}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty one has none.

    Raises:
        UserError: as :func:`read_text` and :func:`parse_yaml`.
    """
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, path: object) -> dict[str, Any]:
    """The keys and values of a YAML text of the file ``path``.

    Raises:
        UserError: it is not YAML of keys and values, refers to itself or is nested too deep.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # Aliases make a file of a few lines into one of millions, or one without an end.
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path} refers to its own values (*{event.anchor}); write them out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{path} is nested deeper than {DEEPEST} tables.")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    except (ValueError, TypeError) as error:
        # Such as an integer of thousands of digits or a thirteenth month.
        raise UserError(f"{path} holds a value that cannot be read: {str(error).split(';')[0].rstrip('.')}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} must hold keys and values.")
    return content
