"""The files of a folder, .zip, .tar or .tar.gz, read in place; nothing is ever unpacked to the disk.

Archives come from the network, so nothing they say is believed: names that lead outside, links, devices and encrypted
members are refused, no member is read beyond ``MOST_BYTES``, and every fault is one sentence that names the archive.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cssformer.utils.errors import UserError

MOST_BYTES = 256 << 20
"""Of one member, unpacked."""
MOST_UNPACKED = 64 << 30
"""Of a whole .tar.gz, which must be unpacked (in memory, piece by piece) to be listed; no benchmark comes near."""
MOST_MEMBERS = 500_000
"""Of a .tar.gz, where a few megabytes could hold millions."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

_CHUNK = 1 << 17
_MOST_CHECKPOINTS = 1024
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
    """A file of a folder or an archive; safe to be read by several threads at a time."""

    #: The folder or archive.
    source: Path
    #: Relative to it, with slashes; never leads outside.
    name: str
    #: In bytes, unpacked, as the archive says.
    size: int
    _read: Callable[[], bytes] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"

    def read_bytes(self) -> bytes:
        """Return the whole file.

        Raises:
            UserError: it is damaged, truncated, or larger than ``MOST_BYTES``.
        """
        if self.size > MOST_BYTES:
            raise UserError(f"{self} has {self.size} bytes; more than {MOST_BYTES} are no picture.")
        try:
            data = self._read()
        except _DAMAGE as error:
            raise _damaged(self, error) from None
        if len(data) != self.size:
            raise _damaged(self, f"it has {len(data)} bytes instead of {self.size}")
        return data


@contextmanager
def open_source(path: Path) -> Iterator[list[Member]]:
    """Yield the files of a folder or an archive, sorted by name; an archive is closed at the end of the block.

    Raises:
        UserError: there is nothing at ``path``, it is no folder or whole archive, or it has unsafe members.
    """
    if path.is_dir():
        yield sorted(_files(path), key=lambda member: member.name)
        return
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}.")
    kind = path.name.lower()
    if not kind.endswith(ARCHIVES):
        raise UserError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    with ExitStack() as opened:
        try:
            if kind.endswith(".zip"):
                members = _zip_members(path, opened.enter_context(zipfile.ZipFile(path)))
            elif kind.endswith(".tar"):
                members = _tar_members(path)
            else:
                members = _tar_gz_members(path)
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
    """The files below a folder. Its owner's links are followed, a link into a folder above itself once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            path = Path(folder, name)
            if path.is_file():
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


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if _is_tar_file(info, path):
                yield Member(path, safe_name(info.name, path), info.size, partial(_read_at, path, info))
        _require_end(archive)


def _read_at(path: Path, info: tarfile.TarInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(info.offset_data)
        return file.read(info.size)


def _tar_gz_members(path: Path) -> Iterator[Member]:
    stream = _Gzip(path)
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
        found = [info for info in islice(archive, MOST_MEMBERS) if _is_tar_file(info, path)]
        if archive.next():
            raise UserError(f"{path} holds more than {MOST_MEMBERS} files; get the official file.")
        _require_end(archive)
    stream.drain()
    for info in found:
        yield Member(path, safe_name(info.name, path), info.size, partial(stream.read_at, info.offset_data, info.size))


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


class _Gzip:
    """Random access to a gzip file, which has none by itself.

    It is first read from its start to its end, as ``tarfile`` wants to read a file. Meanwhile copies of the
    decompressor (some 40 KB each) are kept at regular places; ``read_at`` continues from the nearest one before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spacing = _CHUNK
        # Where in the unpacked bytes, and where in the file, each decompressor continues.
        self.places = [0]
        self.states = [(0, zlib.decompressobj(31))]
        self.position = 0
        self.start, self.piece = 0, b""
        self.pieces = self.unpack(0, remember=True)

    def unpack(self, offset: int, remember: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield the unpacked bytes piece by piece with their places, from the last checkpoint before ``offset`` on."""
        checkpoint = bisect_right(self.places, offset) - 1
        place, (start, state) = self.places[checkpoint], self.states[checkpoint]
        state = state.copy()
        with self.path.open("rb") as file:
            file.seek(start)
            packed = b""
            while True:
                packed = packed or file.read(_CHUNK)
                if not packed:
                    raise EOFError("the file is truncated")
                piece = state.decompress(packed, _CHUNK)
                packed = state.unconsumed_tail
                yield place, piece
                place += len(piece)
                if place > MOST_UNPACKED:
                    raise ValueError(f"it unpacks to more than {MOST_UNPACKED} bytes")
                if state.eof:
                    # Several streams may follow one another; anything else there is padding.
                    packed = state.unused_data or file.read(_CHUNK)
                    if packed[:2] != b"\x1f\x8b":
                        return
                    state = zlib.decompressobj(31)
                elif remember and place >= self.places[-1] + self.spacing:
                    self._remember(place, file.tell() - len(packed), state)

    def _remember(self, place: int, start: int, state: Any) -> None:
        self.places.append(place)
        self.states.append((start, state.copy()))
        if len(self.places) > _MOST_CHECKPOINTS:
            self.places, self.states, self.spacing = self.places[::2], self.states[::2], 2 * self.spacing

    def read_at(self, offset: int, size: int) -> bytes:
        found = bytearray()
        for place, piece in self.unpack(offset):
            found += piece[max(0, offset - place) : max(0, offset + size - place)]
            if len(found) == size:
                break
        return bytes(found)

    def seek(self, offset: int) -> None:
        self.position = offset

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        # `tarfile` reads nothing but headers here, and an honest one holds a name and some dates.
        if size > _CHUNK:
            raise ValueError(f"its headers ask for {size} bytes")
        if self.position < self.start:
            # `tarfile` looks back by one byte after an empty member.
            data = self.read_at(self.position, size)
        else:
            parts, wanted = [], size
            while wanted:
                begin = self.position + size - wanted - self.start
                part = self.piece[begin : begin + wanted]
                parts.append(part)
                wanted -= len(part)
                if wanted:
                    try:
                        self.start, self.piece = next(self.pieces)
                    except StopIteration:
                        break
            data = b"".join(parts)
        self.position += len(data)
        return data

    def drain(self) -> None:
        """Read on to the end, where gzip's checksum is."""
        for _ in self.pieces:
            pass


def _damaged(what: Path | Member, error: object) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(what, Path) and _is_web_page(what):
        reason = "it is a web page, perhaps that of a login"
    return UserError(f"{what} cannot be read: {' '.join(reason.split()).rstrip('.')}; get a whole copy.")


def _is_web_page(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(256).lstrip().lower().startswith((b"<!doctype", b"<html"))
    return False
