"""The files of a folder, .zip, .tar or .tar.gz; members are read in place and never unpacked to files of their own.

A .tar.gz, which has no random access, is inflated once to a temporary .tar without a name.

Archives come from the network, so nothing they say is believed: names that lead outside, links, devices and encrypted
members are refused, no member is read beyond ``MOST_BYTES``, and every fault is one sentence that names the archive.
"""

import gzip
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from cssformer.data.files import files_under
from cssformer.utils.atomic import require_temporary_folder
from cssformer.utils.errors import UserError

MOST_BYTES = 256 << 20
"""Of one member, unpacked."""
MOST_UNPACKED = 16 << 30
"""Of a whole .tar.gz, on the disk; no benchmark comes near."""
MOST_MEMBERS = 500_000
"""Of a .tar, where a few packed megabytes could hold millions."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
ANNOTATIONS = (".json", ".xml")
"""Files that are a source by themselves."""

_CHUNK = 1 << 17
# What the libraries raise on damaged archives; RuntimeError on a long chain of tar headers (RecursionError).
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """A file of a folder or an archive; safe to be read by several threads at a time.

    Attributes:
        source: the folder or archive.
        name: relative to it, with slashes; never leads outside.
        size: in bytes, unpacked, as the archive says.
    """

    source: Path
    name: str
    size: int
    _read: Callable[[], bytes] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"

    def read_bytes(self, most: int | None = None) -> bytes:
        """Return the whole file.

        Raises:
            UserError: it is damaged, truncated, or larger than ``most`` bytes, by default ``MOST_BYTES``.
        """
        most = MOST_BYTES if most is None else most
        if self.size > most:
            raise UserError(f"{self} has {self.size} bytes; more than {most} are not read.")
        try:
            data = self._read()
        except _DAMAGE as error:
            raise _damaged(self, error) from None
        if len(data) != self.size:
            raise _damaged(self, f"it has {len(data)} bytes instead of {self.size}")
        return data


@contextmanager
def open_source(path: Path) -> Iterator[list[Member]]:
    """Yield the files of a folder or an archive, sorted by name, or a single annotation file.

    An archive is closed at the end of the block.

    Raises:
        UserError: there is nothing at ``path``, it is no folder, annotation file or whole archive, or it has unsafe
            members.
    """
    if path.is_dir():
        yield sorted(_files(path), key=lambda member: member.name)
        return
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}.")
    kind = path.name.lower()
    if kind.endswith(ANNOTATIONS):
        yield [Member(path.parent, path.name, path.stat().st_size, path.read_bytes)]
        return
    if not kind.endswith(ARCHIVES):
        known = ", ".join((*ARCHIVES, *ANNOTATIONS))
        raise UserError(
            f"{path} is neither a folder nor an archive or a file of annotations ({known}); give its folder."
        )
    with ExitStack() as opened:
        try:
            if kind.endswith(".zip"):
                members = _zip_members(path, opened.enter_context(zipfile.ZipFile(path)))
            else:
                file: Any = opened.enter_context(path.open("rb"))
                if not kind.endswith(".tar"):
                    file = opened.enter_context(_inflated(file))
                members = _tar_members(path, file)
            by_name = _by_name(members, path)
        except _DAMAGE as error:
            raise _damaged(path, error) from None
        yield [by_name[name] for name in sorted(by_name)]


def _by_name(members: Iterable[Member], path: Path) -> dict[str, Member]:
    by_name: dict[str, Member] = {}
    for member in members:
        if by_name.setdefault(member.name, member) is not member:
            raise UserError(f"{path} holds {member.name!r} twice; get the official file.")
    return by_name


def safe_name(name: str, source: Path) -> str:
    """Return a member's name as a relative path with slashes.

    Raises:
        UserError: it is empty, absolute, has a drive, ``..`` or characters that cannot be printed; ``source`` is named.
    """
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not name.isprintable():
        raise UserError(f"{source} holds {name!a}, a name of unprintable characters; get the official file.")
    if not parts or path.startswith("/") or ".." in parts or parts[0][1:2] == ":":
        raise UserError(f"{source} holds {name!r}, a path that leads outside it; get the official file.")
    return "/".join(parts)


def _member_name(name: str, is_folder: bool, source: Path) -> str:
    """:func:`safe_name` of a member; the archive's own top folder, such as ``./``, may be one."""
    is_top = is_folder and set(name.split("/")) <= {".", ""} and not name.startswith("/")
    return name if is_top else safe_name(name, source)


def _files(root: Path) -> Iterator[Member]:
    """The files below a folder; its owner's links are followed."""
    for path in filter(Path.is_file, files_under(root)):
        yield Member(root, path.relative_to(root).as_posix(), path.stat().st_size, path.read_bytes)


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        # Not by `is_dir`, which some versions of Python cannot tell of an empty name.
        is_folder = info.filename.endswith("/")
        name = _member_name(info.filename, is_folder, path)
        if is_folder:
            continue
        # The upper half is Unix's file mode; 0 where the archive was made elsewhere.
        _require_plain(stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG), name, path)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path} is encrypted or compressed in an unusual way; get the official file.")
        yield Member(path, name, info.file_size, partial(_read_zipped, archive, info))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        # No more than the header says is ever unpacked; if there is more, the checksum does not fit.
        return file.read(info.file_size + 1)


@contextmanager
def _inflated(packed: BinaryIO) -> Iterator[BinaryIO]:
    """The contents of a gzip file, in a file that vanishes with the process."""
    require_temporary_folder()
    with tempfile.TemporaryFile() as file, gzip.open(packed) as stream:
        while piece := stream.read(_CHUNK):
            file.write(piece)
            if file.tell() > MOST_UNPACKED:
                raise ValueError(f"it unpacks to more than {MOST_UNPACKED} bytes")
        file.seek(0)
        yield file


class _Headers:
    """What ``tarfile`` reads of an archive: nothing but headers, of which honest ones hold a name and some dates."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _CHUNK:
            raise ValueError(f"its headers ask for {size} bytes")
        return self.file.read(size)


def _tar_members(path: Path, file: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
        found = [info for info in islice(archive, MOST_MEMBERS) if _is_tar_file(info, path)]
        if archive.next():
            raise UserError(f"{path} holds more than {MOST_MEMBERS} files; get the official file.")
        _require_end(archive)
    one_at_a_time = threading.Lock()

    def read(info: tarfile.TarInfo) -> bytes:
        with one_at_a_time:
            file.seek(info.offset_data)
            return file.read(info.size)

    for info in found:
        yield Member(path, safe_name(info.name, path), info.size, partial(read, info))


def _require_end(archive: tarfile.TarFile) -> None:
    """Raise if the members do not end in a block of zeros: to ``tarfile`` anything else that is no header is an end."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("the file is truncated or damaged")


def _is_tar_file(info: tarfile.TarInfo, path: Path) -> bool:
    name = _member_name(info.name, info.isdir(), path)
    _require_plain((info.isreg() and not info.issparse() and info.size >= 0) or info.isdir(), name, path)
    return not info.isdir()


def _require_plain(plain: bool, name: str, path: Path) -> None:
    if not plain:
        raise UserError(f"{path} holds {name!r}, which is a link or a device, not a file; get the official file.")


def _damaged(what: Path | Member, error: object) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(what, Path) and _is_web_page(what):
        reason = "it is a web page, perhaps that of a login"
    return UserError(f"{what} cannot be read: {' '.join(reason.split()).rstrip('.')}; get a whole copy.")


def _is_web_page(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(256).lstrip().lower().startswith((b"<!doctype", b"<html"))
    return False
