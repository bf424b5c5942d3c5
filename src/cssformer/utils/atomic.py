"""Files and folders that are either whole or not there: written under a temporary name, then renamed."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from cssformer.utils.errors import UserError

TEMPORARY = ".cssformer-"
"""How the names of what is not whole yet begin."""


@contextmanager
def atomic_write(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well, delete it otherwise.

    The temporary name keeps the suffix of ``path``, because encoders choose the format by it.

    Args:
        path: the file.
        sync: have it on the disk before it gets its name, so that a power cut leaves the old file or the new one. That
            takes some milliseconds; False is for files of which there are many and which are soon made again.

    Raises:
        UserError: the file cannot be written (read-only, full disk), or ``path`` is a folder.
    """
    path = Path(path)
    # No longer than any name may be, however long that of `path` is.
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}{path.suffix if len(path.suffix) < 16 else ''}")
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8; raises as :func:`atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_json(path: str | Path, content: Any) -> None:
    """Write a JSON file for people to read too; raises as :func:`atomic_write` does."""
    atomic_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def atomic_csv(path: str | Path) -> Iterator[TextIO]:
    """Yield a file for the rows of a CSV writer, in UTF-8; raises as :func:`atomic_write` does."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``; rename it to ``path`` when the block ends well, delete it otherwise.

    At ``path`` there may be an empty folder, or a link to one. Folders of this kind that processes which were killed
    left beside it are deleted first.

    Raises:
        UserError: the folder cannot be made, written or renamed, or is the one that the command runs in.
    """
    target = path.resolve()
    if Path.cwd().is_relative_to(target):
        # Its place would be taken by another folder of this name, and the shell be left in nowhere.
        raise UserError(f"{path} is the folder you are in; give another output.")
    working = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    # Beside the folder and older than it, so that a folder is never without one, whenever the process is killed.
    lock = FileLock(working.with_suffix(".lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        # The name is nobody else's: what cannot be locked at once is a folder that takes no files, such as /proc.
        lock.acquire(blocking=False)
        working.mkdir()
        yield working
        if target.is_dir():
            target.rmdir()
        if hasattr(os, "sync"):
            # All its files at once, which takes far less time than one by one.
            os.sync()
        os.replace(working, target)
    except Timeout as error:
        raise UserError(f"Cannot write {path}: its folder takes no files.") from error
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        _remove(working, lock)


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary folders that no process holds."""
    for path in folder.glob(f"{TEMPORARY}*.lock"):
        with suppress(Timeout, OSError):
            lock = FileLock(path)
            lock.acquire(blocking=False)
            _remove(path.with_suffix(""), lock)


def _remove(working: Path, lock: FileLock) -> None:
    shutil.rmtree(working, ignore_errors=True)
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink()


def require_temporary_folder() -> None:
    """Raise UserError if nothing takes temporary files, as in a container whose file system is read-only."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "There is no folder that takes temporary files; name one by TMPDIR, or run the container with --tmpfs /tmp."
        ) from error


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
