"""Files that are either whole or not there: written under a temporary name, then renamed."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cssformer.utils.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well, delete it otherwise.

    The temporary name keeps the suffix of ``path``, because encoders choose the format by it. What the block
    leaves may be a file or a folder; a folder never replaces another one.

    Raises:
        UserError: the folder cannot be made or written (read-only, full disk), or ``path`` is a folder already.
    """
    path = Path(path)
    # Not the whole name, which may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}{path.suffix[:12]}")
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


def unfinished(path: Path) -> Path:
    """Where :func:`resumable_dir` works until ``path`` is complete: beside it, or beside what it is a link to."""
    place = path.resolve()
    return place.with_name(f"{place.name}.partial")


@contextmanager
def resumable_dir(path: Path) -> Iterator[Path]:
    """Yield the folder ``unfinished(path)``, with what an interrupted run left there; rename it to ``path`` at the end.

    The folder is deleted when the block ends by a mistake of the user's (the next run would have other files), and
    kept when it is interrupted, killed, or the disk is full.

    Raises:
        UserError: the folder cannot be made, written or renamed, or is the one that the command runs in.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        # Its place would be taken by another folder of this name, and the shell be left in nowhere.
        raise UserError(f"{path} is the folder you are in; give another output.")
    working = unfinished(path)
    try:
        working.mkdir(parents=True, exist_ok=True)
        yield working
        os.replace(working, path.resolve())
    except UserError:
        shutil.rmtree(working, ignore_errors=True)
        raise
    except OSError as error:
        kept = f"; what is done stays in {working}" if working.is_dir() else ""
        raise UserError(f"Cannot write {path}: {error.strerror or error}{kept}.") from error


def require_writable(path: Path) -> None:
    """Tell now what :func:`atomic_write` would only find later; leaves nothing.

    Raises:
        UserError: as there, except that folders still to be made are taken to be possible.
    """
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
