"""Prepared folders, written whole or not at all."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.bands import decode_bands, decode_pixels, is_photograph
from cssformer.data.channels import Channels, Form, Moments, merged
from cssformer.data.dataset import IGNORE, INVALID, SPLITS, require_same_size
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.files import Readable, read_bytes
from cssformer.data.formats import as_stored, turned
from cssformer.data.image_io import encode_png, inspect_image, read_orientation
from cssformer.data.picture_facts import PictureFacts
from cssformer.prepare.archives import Member
from cssformer.utils.atomic import remove_abandoned
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import in_parallel

CHECKSUMS = "sources.sha256"
Reader = Callable[[bytes, Path], NDArray[Any]]
"""Decodes a mask's bytes to its values (H, W), by which its classes are told: ids, or colours packed as 0xRRGGBB."""


@dataclass(frozen=True)
class Drawing:
    """A label that is drawn when it is wanted.

    Attributes:
        place: where it stands in its file, for messages.
        size: height and width of the picture, if the file tells them.
        draw: the values (H, W) for a height and width; raises UserError.
        files: the files that it alone is made of, for their checksums.
    """

    place: str
    size: tuple[int, int] | None
    draw: Callable[[tuple[int, int]], NDArray[Any]]
    files: Sequence[Path] = ()

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class Entry:
    """One picture to come: its split, its flat name, its source files (label None: a test picture without one)."""

    split: str
    name: str
    image: Readable
    label: Path | Member | Drawing | None


@dataclass
class Faults:
    """What is wrong with single pictures: an error each, or, if they are to be skipped, a list of sentences."""

    skip: bool = False
    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def caught(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if not self.skip:
                raise
            self.sentences.append(str(error))


MasksAs = Literal["shown", "stored"]
"""Whether masks are drawn on pictures as viewers show them, turned by EXIF, or on the pixels as files store them."""


class Written(NamedTuple):
    """What was found while an entry was written.

    Attributes:
        sums: checksum and name of each file that was read.
        picture: facts of its file.
        masks_as, by_size: how the mask of a turned picture was taken, and whether its size told so; None where both are
            the same.
        moments: of each channel, where pictures are taken as stored.
    """

    sums: list[tuple[str, str]]
    picture: PictureFacts
    masks_as: MasksAs | None
    by_size: bool
    moments: Moments | None = None


def class_table(index_of: dict[int, int | None]) -> NDArray[np.int32]:
    """Return the table from a mask's value to its class index, ``IGNORE`` (None) or ``INVALID`` (not in the dict)."""
    table = np.full(max(index_of) + 1, INVALID, np.int32)
    for value, index in index_of.items():
        table[value] = IGNORE if index is None else index
    return table


def require_free(output: Path) -> None:
    """Raise UserError if there is anything at ``output``; the sentence says whether it is a whole prepared folder."""
    remove_abandoned(output.resolve().parent)
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        counts = DatasetInfo.load(output).counts
        there = {split: len(list((output / split / "images").iterdir())) for split in counts}
    except (UserError, OSError):
        counts, there = {}, {}
    if counts and counts == there:
        count = ", ".join(f"{number} {split}" for split, number in counts.items())
        raise UserError(
            f"{output} exists already and is whole ({count} pictures); use it, remove it, or give another output."
        )
    raise UserError(f"{output} exists already and is no whole prepared folder; give another output or remove it.")


def fill(
    folder: Path,
    info: DatasetInfo,
    entries: Sequence[Entry],
    read: Reader,
    index_of: dict[int, int | None],
    masks_as: MasksAs,
    faults: Faults | None = None,
    sources: Sequence[Member] = (),
    as_stored: bool = False,
    shown: Sequence[int] | None = None,
) -> tuple[DatasetInfo, list[Written | None]]:
    """Write pictures, labels, checksums and ``dataset.yaml``.

    Upright JPEG and PNG pictures are copied byte for byte; others become PNG, turned upright, so that none needs EXIF
    data. If the first picture is no photograph, the files of all are copied, and their channels measured. Labels become
    8-bit PNG (16-bit where ``info.ignore`` is 65535), copied where they are that already; where a picture has no data,
    they are ignored.

    Args:
        folder: where to write.
        info: classes, colours, ignored value and mapping.
        entries: the pictures.
        read: decodes a mask's bytes to its values (H, W).
        index_of: the class index of each value, None where it is ignored.
        masks_as: how masks of pictures with an EXIF orientation are drawn, where sizes do not tell.
        faults: what becomes of pictures that are broken, or have broken labels; an error by default.
        sources: the files that drawings stand in, for their checksums.
        as_stored: take photographs too as the channels that their files store.
        shown: see :class:`cssformer.data.channels.Channels`.

    Returns:
        The description with counts and checksums, and what was found in each entry, None where it was left out.

    Raises:
        UserError: a file is unreadable, sizes differ, a mask has a value that is not in ``index_of``, two pictures
            would have one name, or they have no such channels as are to be shown.
    """
    taken: dict[tuple[str, str], Readable] = {}
    for entry in entries:
        other = taken.setdefault((entry.split, entry.name.lower()), entry.image)
        if other is not entry.image:
            raise UserError(f"{other} and {entry.image} would both be called {entry.name}; rename one of them.")
    for split in {entry.split for entry in entries}:
        (folder / split / "images").mkdir(parents=True)
    for split in {entry.split for entry in entries if entry.label is not None}:
        (folder / split / "labels").mkdir()

    faults = faults or Faults()
    form = _stored_form(entries, as_stored)
    _require_shown(shown, form)
    writer = _Writer(folder, info.ignore, read, class_table(index_of), masks_as, form)

    def write(entry: Entry) -> Written | None:
        with faults.caught():
            return writer.write(entry)
        return None

    written = in_parallel(write, entries, "Writing")
    counts = Counter(entry.split for entry, each in zip(entries, written, strict=True) if each is not None)
    # Names that are not UTF-8 are written with escapes.
    found = [(hashlib.sha256(each.read_bytes(each.size)).hexdigest(), str(each)) for each in sources]
    found += [line for each in written if each is not None for line in each.sums]
    sums = [f"{digest}  {path}\n" for digest, path in found]
    listing = "".join(sums).encode(errors="backslashreplace")
    (folder / CHECKSUMS).write_bytes(listing)
    measured = [(entry.split, each.moments) for entry, each in zip(entries, written, strict=True) if each]
    parts = [moments for split, moments in measured if moments and split == "train"]
    if parts and form is not None:
        whole = merged(parts)
        if not whole.number.any():
            raise UserError("No training picture has data: all values are NaN, infinite or what stands for no data.")
        mean, std = tuple(whole.mean.tolist()), tuple(whole.std.tolist())
        info = replace(info, channels=Channels(form.values, mean, std, tuple(shown or ())))
    described = replace(
        info,
        counts={split: counts[split] for split in SPLITS if counts[split]},
        sources={CHECKSUMS: hashlib.sha256(listing).hexdigest()},
    )
    described.save(folder)
    return described, written


def _stored_form(entries: Sequence[Entry], as_stored: bool) -> Form | None:
    """What the first sound picture stores, None if it is a photograph, and these are not taken as stored."""
    for entry in entries:
        with suppress(UserError):
            data = read_bytes(entry.image)
            return decode_bands(data, Path(str(entry.image))).form if as_stored or not is_photograph(data) else None
    return None


def _require_shown(shown: Sequence[int] | None, form: Form | None) -> None:
    if shown is not None and form is None:
        raise UserError("The pictures are photographs, which are shown as they are; leave out shown.")
    if shown is not None and form is not None and not (len(shown) in (1, 3) and set(shown) <= set(range(form.number))):
        raise UserError(f"The pictures have {form}; give shown three of them, or one, of 0 to {form.number - 1}.")


def left_out(files: Sequence[object], kind: str, lacking: str) -> list[str]:
    """The note on files of the kind that lack something, if there are any."""
    return [f"{counted(len(files), kind)} without {lacking} left out, {files[0]} the first."] if files else []


def turned_notes(written: Sequence[Written], masks_as: MasksAs) -> list[str]:
    """A line on the pictures and masks that were turned.

    Raises:
        UserError: the sizes of some masks speak against ``masks_as``, by which others were taken.
    """
    pictures = sum(each.picture.orientation != 1 for each in written)
    masks = sum(each.picture.orientation == 1 and each.masks_as is not None for each in written)
    told = Counter(each.masks_as for each in written if each.by_size)
    untold = sum(each.masks_as is not None and not each.by_size for each in written)
    other: MasksAs = "shown" if masks_as == "stored" else "stored"
    if untold and told[other]:
        raise UserError(
            f"Pictures have EXIF orientations. By their size {told[other]} masks are drawn on the pictures as {other}, "
            f"so the {untold} whose size does not tell may be too: give masks_as {other}, or save all upright."
        )
    turned = [f"{count} {noun}" for count, noun in ((pictures, "pictures"), (masks, "masks alone")) if count]
    if not turned:
        return []
    taken = f"; {told[other]} masks were taken as {other}, by their size" if told[other] else ""
    return [
        f"{' and '.join(turned)} were turned upright as the EXIF orientation says, masks taken as drawn on pictures as "
        f"{masks_as}{taken}."
    ]


@dataclass(frozen=True)
class _Writer:
    """Writes the picture and the label of one entry after the other, on several threads; see :func:`fill`.

    Attributes:
        folder: of the splits.
        ignore: the value of ignored pixels in labels.
        read: decodes a mask's bytes to its values (H, W).
        table: of :func:`class_table`.
        masks_as: how masks of pictures with an EXIF orientation are drawn, where sizes do not tell.
        form: what pictures have that are taken as stored, None for photographs.
    """

    folder: Path
    ignore: int
    read: Reader
    table: NDArray[np.int32]
    masks_as: MasksAs
    form: Form | None

    def write(self, entry: Entry) -> Written:
        data, where, folder = read_bytes(entry.image), Path(str(entry.image)), self.folder / entry.split
        missing, measured = None, None
        suffix = ".jpg" if data[:2] == b"\xff\xd8" and read_orientation(data) == 1 else ".png"
        kept = suffix == ".jpg" or (data[:4] == b"\x89PNG" and read_orientation(data) == 1)
        if self.form is not None:
            bands = decode_bands(data, where)
            if bands.form != self.form:
                raise UserError(f"{where} has {bands.form}, but the first picture has {self.form}; prepare them apart.")
            missing, measured = bands.missing(), bands.moments()
            content, facts, suffix = data, bands.facts, where.suffix.lower()
            shape = (bands.values.shape[1], bands.values.shape[2])
        elif kept:
            content, (shape, facts) = data, inspect_image(data, where)
        else:
            (pixels, missing), facts = decode_pixels(data, where, None)
            content, shape = encode_png(pixels), (pixels.shape[0], pixels.shape[1])
        written = Written([(hashlib.sha256(data).hexdigest(), str(entry.image))], facts, None, False, measured)
        if entry.label is not None:
            label, written = self._label(entry, written, shape, missing)
            (folder / "labels" / f"{entry.name}.png").write_bytes(label)
        (folder / "images" / f"{entry.name}{suffix}").write_bytes(content)
        return written

    def _label(
        self, entry: Entry, written: Written, shape: tuple[int, int], missing: NDArray[np.bool_] | None
    ) -> tuple[bytes, Written]:
        """The label's file for a picture of the upright ``shape``, and what was found."""
        image, where, orientation = Path(str(entry.image)), Path(str(entry.label)), written.picture.orientation
        data, own = b"", 1
        if isinstance(entry.label, Drawing):
            stored_shape = shape[::-1] if orientation >= 5 else shape
            size = entry.label.size or (stored_shape if self.masks_as == "stored" else shape)
            if size != stored_shape:
                require_same_size(image, shape, where, size, "annotation")
            values = entry.label.draw(size)
        else:
            assert entry.label is not None
            data = read_bytes(entry.label)
            values, own = self.read(data, where), read_orientation(data)
        values, taken_as, by_size = self._upright(values, own, orientation, shape)
        require_same_size(image, shape, where, values.shape, "mask")
        stored = self._relabelled(values, entry)
        if missing is not None:
            stored = np.where(missing, stored.dtype.type(self.ignore), stored)
        # The first pixel tells most differing labels apart without a look at the others.
        same = stored.flat[0] == values.flat[0] and np.array_equal(stored, values)
        turned_now = taken_as == "stored" or own != 1
        right = same and not turned_now and _is_grey_png(data, 8 * stored.itemsize)
        sums = [(hashlib.sha256(data).hexdigest(), str(entry.label))] if data else []
        if isinstance(entry.label, Drawing):
            sums = [(hashlib.sha256(read_bytes(path)).hexdigest(), str(path)) for path in entry.label.files]
        written = written._replace(sums=[*written.sums, *sums], masks_as=taken_as, by_size=by_size)
        return data if right else encode_png(stored), written

    def _upright(
        self, values: NDArray[Any], own: int, orientation: int, shape: tuple[int, int]
    ) -> tuple[NDArray[Any], MasksAs | None, bool]:
        """The values of a mask, upright by its ``own`` orientation, as they lie on the upright picture."""
        if own == orientation:
            return values, None, False
        stored, masks_as = turned(as_stored(values, own), orientation), self.masks_as
        by_size = stored.shape != values.shape
        if by_size:
            masks_as = "stored" if stored.shape == shape else "shown"
        return stored if masks_as == "stored" else values, masks_as, by_size

    def _relabelled(self, values: NDArray[Any], entry: Entry) -> NDArray[Any]:
        """What is stored for the values of a mask (H, W); raises UserError where one is not known."""
        reach = self.table[: int(values.max()) + 1]
        if len(reach) <= values.max() or INVALID in reach:
            unknown = np.append(self.table, np.int32(INVALID)).take(values, mode="clip") == INVALID
            if unknown.any():
                value = int(values[unknown][0])
                raise UserError(f"The mask {entry.label} has the value {value}, which is no class and not ignored.")
        if values.dtype == np.uint8:
            # OpenCV looks up bytes several times as fast as NumPy; it wants a table of 256.
            return cv2.LUT(np.ascontiguousarray(values), self._stored(np.resize(self.table, 256)))
        return self._stored(np.take(self.table, values))

    def _stored(self, indices: NDArray[np.int32]) -> NDArray[Any]:
        """Class indices, or ``IGNORE``, as labels' files hold them."""
        return np.where(indices == IGNORE, self.ignore, indices).astype(np.uint8 if self.ignore == 255 else np.uint16)


def _is_grey_png(data: bytes, bits: int) -> bool:
    return data[:4] == b"\x89PNG" and data[24] == bits and data[25] == 0
