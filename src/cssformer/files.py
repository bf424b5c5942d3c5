"""Files that are either whole or not there: written under a temporary name, then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cssformer.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well, delete it otherwise.

    The temporary name keeps the suffix of ``path``, because encoders choose the format by it. What the block
    leaves may be a file or a folder; a folder never replaces another one.

    Raises:
        UserError: the folder cannot be made or written (read-only, full disk), or ``path`` is a folder already.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        if path.is_dir():
            raise UserError(f"{path} exists already; give another output or remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            # Where the folder could not even be made there is nothing to remove.
            with suppress(OSError):
                temporary.unlink()
