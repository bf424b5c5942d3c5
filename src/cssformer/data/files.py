"""Files of pictures on disk: which they are, their bytes, and whether they are whole."""

from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import Protocol

from cssformer.utils.errors import UserError

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".jp2", ".ppm", ".pgm", ".avif"),
)
_WRITTEN_SUFFIXES = (".png", ".jpg", ".jpeg")


class Readable(Protocol):
    """A file on disk, or one inside an archive."""

    def read_bytes(self) -> bytes: ...


def is_picture(path: Path) -> bool:
    """Tell by the name whether a file is a picture: by its suffix, in whatever case; hidden files are none."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def world_file(path: Path) -> Path | None:
    """The file beside a picture that tells its place on the Earth, called as GDAL looks for it: such as ``.tfw``."""
    suffix = path.suffix.lower()
    names = (f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w", ".wld") if suffix else (".wld",)
    found = (path.with_suffix(each) for name in names for each in (name, name.upper()))
    return next((each for each in found if isfile(each)), None)


def files_under(folder: Path) -> list[Path]:
    """All files below ``folder``, sorted; links are followed (not in circles), hidden files and folders left out.

    Raises:
        UserError: a folder cannot be read.
    """
    return list(_files_under(folder, ()))


def _files_under(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror or error}.") from None
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_under(path, (*above, real))
        else:
            yield path


def require_picture_name(path: Path) -> None:
    """Raise UserError if the suffix of ``path`` names no format that pictures for people are written in."""
    if path.suffix.lower() not in _WRITTEN_SUFFIXES:
        raise UserError(f"Pictures are written as PNG or JPEG; give a name that ends in .png or .jpg, not {path}.")


def read_bytes(path: Readable) -> bytes:
    """Return the file's bytes.

    Raises:
        UserError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    if isinstance(path, Path):
        require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None


def require_file(path: Path) -> None:
    """Raise UserError if ``path`` is there but a folder, a pipe or a device, which might never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a pipe or a device; give an ordinary file.")


def require_whole(data: bytes, path: Path) -> None:
    """Raise UserError if the JPEG or PNG stream ``data`` of ``path`` lacks its end."""
    if is_truncated(data):
        raise UserError(f"{path} is truncated: the file ends before the picture does; get a whole copy.")


def require_whole_file(path: Path) -> None:
    """Raise UserError if ``path`` is missing or lacks its end; reads the last bytes alone where these tell."""
    require_file(path)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    if b"\xff\xd9" not in tail and b"IEND" not in tail:
        require_whole(read_bytes(path), path)


def is_truncated(data: bytes) -> bool:
    """Tell whether a JPEG or PNG stream lacks its end marker.

    Decoders may return a half-grey picture for a truncated JPEG without a word. The end marker's bytes cannot occur
    within the compressed scan, so it is enough to look for them behind the headers (a thumbnail there has its own).
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND\xaeB`\x82" not in data[-4096:] and b"IEND\xaeB`\x82" not in data
    if data[:2] != b"\xff\xd8":
        return False
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", position) < 0
        # A fill byte is skipped alone; a segment by its length.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if position + 1 >= len(data):
            break
    return True
