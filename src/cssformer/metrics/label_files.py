"""Label maps as any program leaves them: pictures, NumPy arrays, COCO's JSON; and the truth that they are scored by."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE, DatasetInfo, Sample, SegmentationFolder
from cssformer.data.dataset import INVALID, look_up
from cssformer.data.dataset_info import distinct_colours, ignored_value, source_ids
from cssformer.data.files import files_under, read_bytes
from cssformer.data.image_io import read_ids
from cssformer.prepare.class_file import ClassLine, read_class_file
from cssformer.prepare.writer import class_table
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from cssformer.prepare.coco import LabelMaps

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".npy", ".npz")
"""Of files that hold one label map each."""


class LabelMap(NamedTuple):
    """One label map: where it stands, for messages, and what reads its ids (H, W)."""

    place: str
    read: Callable[[], NDArray[Any]]


class LabelFiles(NamedTuple):
    """Names and label maps, of which names may repeat, and what a COCO JSON tells of them."""

    found: Sequence[tuple[str, LabelMap]]
    coco: "LabelMaps | None" = None


def is_label_file(path: Path) -> bool:
    """Tell by the name whether a file may hold a label map."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_label_files(path: Path, listed: dict[str, Any] | None = None) -> LabelFiles:
    """The label maps of a folder, an archive of arrays (.npz), a stack of arrays (.npy) or a COCO JSON.

    A folder's are named by their files' stems, those of an archive by its keys, those of a stack by their number.

    Args:
        path: of these.
        listed: the images and categories of a COCO JSON that is a list of results.

    Raises:
        UserError: there is nothing of this kind.
    """
    if path.is_dir():
        return LabelFiles([(each.stem, label_map(each)) for each in files_under(path) if is_label_file(each)])
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}.")
    kind = path.suffix.lower()
    if kind == ".json":
        from cssformer.prepare.coco import read_maps

        coco = read_maps(path, listed)
        return LabelFiles([(name, LabelMap(f"{path}, image {name}", read)) for name, read in coco.maps.items()], coco)
    if kind not in (".npy", ".npz"):
        raise UserError(f"{path} is no folder, no .npy or .npz of arrays and no COCO .json; give one of these.")
    with _arrays(path) as arrays:
        stack = isinstance(arrays, np.ndarray)
        names = [str(number) for number in range(len(np.atleast_1d(arrays)))] if stack else list(arrays)
    return LabelFiles([(name, LabelMap(f"{path}, array {name},", partial(_array, path, name))) for name in names])


def label_map(path: Path) -> LabelMap:
    """The label map of a file of its own."""
    return LabelMap(str(path), partial(_read_file, path))


def _read_file(path: Path) -> NDArray[Any]:
    if path.suffix.lower() not in (".npy", ".npz"):
        return read_ids(read_bytes(path), path)
    with _arrays(path) as arrays:
        if isinstance(arrays, np.ndarray):
            return arrays
        if len(arrays) != 1:
            raise UserError(f"{path} holds {len(arrays)} arrays; in a folder each file holds one.")
        return arrays[next(iter(arrays))]


def _array(path: Path, name: str) -> NDArray[Any]:
    with _arrays(path) as arrays:
        return np.atleast_1d(arrays)[int(name)] if isinstance(arrays, np.ndarray) else arrays[name]


@contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """An array, mapped since a stack may be larger than the memory, or an archive of arrays; never a pickle."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        # Whatever the file is called.
        with nullcontext() if isinstance(loaded, np.ndarray) else loaded:
            yield loaded
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as NumPy arrays: {str(error).rstrip('.')}.") from None


def to_indices(ids: NDArray[Any], table: NDArray[np.int32], place: str, known: str) -> NDArray[np.int32]:
    """Map ids (H, W) by a table, whose last entry is ``INVALID``, to class indices or ``IGNORE``.

    Args:
        ids: whole numbers.
        table: class index of each id.
        place: named in the error.
        known: what ids must be, for the error.

    Raises:
        UserError: the ids are no whole numbers in two dimensions, or one is no class.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iub" or not ids.size:
        shape = "x".join(map(str, ids.shape))
        raise UserError(f"{place} is {ids.dtype} of the shape {shape}; give one class id a pixel, height x width.")
    ids = ids.astype(np.uint8) if ids.dtype.kind == "b" else ids
    # These would be clipped to 0, a class: negative ids, and those that are negative as int64.
    outside = next((int(end) for end in (ids.min(), ids.max()) if not 0 <= int(end) < 2**63), None)
    labels = look_up(table, ids.astype(np.int64) if ids.dtype == np.uint64 else ids)
    if outside is None and labels.max() == INVALID:
        outside = int(ids[labels == INVALID][0])
    if outside is not None:
        raise UserError(f"{place} has the value {outside}, which is not {known}.")
    return labels


def table_of_ids(info: DatasetInfo) -> NDArray[np.int32]:
    """The table from an id of the source to its class index, ``IGNORE`` or, last, ``INVALID``."""
    ids = source_ids(info.mapping) or {**{index: index for index in range(len(info.classes))}, info.ignore: None}
    return np.append(class_table(ids), np.int32(INVALID))


def table_of_categories(coco: "LabelMaps", info: DatasetInfo, ignored: Sequence[str], place: Path) -> NDArray[np.int32]:
    """The table from the values of COCO's maps to class indices by the categories' names, ``IGNORE`` or ``INVALID``.

    Raises:
        UserError: a category is none of the classes.
    """
    index_of: Mapping[str, int] = {name: index for index, name in enumerate(info.classes)}
    for name in coco.categories:
        if name not in index_of and name not in ignored:
            raise UserError(f"{place} has the category {name!r}, but the classes are {', '.join(info.classes)}.")
    empty = IGNORE if coco.panoptic else index_of.get("background", IGNORE)
    return np.array([*(index_of.get(name, IGNORE) for name in coco.categories), empty, INVALID], np.int32)


class LabelSet:
    """The truth in label files without pictures, with the face of ``SegmentationFolder``.

    The maps of a folder are named by their files' stems, where these repeat by the ways from the folder.

    Args:
        path: what :func:`find_label_files` takes.
        lines: the classes; those of COCO's JSON are its own categories and, unless it is panoptic, the background.
        ignore: ids, or names of categories, that are no class.
        label_suffix: how the names of a folder's files end, if not all are truth.

    Raises:
        UserError: there are no label maps, two have one name, or the classes do not fit.
    """

    def __init__(
        self, path: Path, lines: Sequence[ClassLine] = (), ignore: Sequence[str] = (), label_suffix: str = ""
    ) -> None:
        self.root, self.label_suffix = path, label_suffix
        found, self.coco = find_label_files(path)
        self.maps: dict[str, LabelMap] = {}
        kept = [(name, each) for name, each in found if each.place.endswith(label_suffix)]
        if path.is_dir() and len(dict(kept)) < len(kept):
            kept = [(Path(each.place).relative_to(path).with_suffix("").as_posix(), each) for _, each in kept]
        for name, each in kept:
            if self.maps.setdefault(name, each) is not each:
                raise UserError(
                    f"{self.maps[name].place} and {each.place} have one name, by which label maps are told apart; "
                    "rename one, or score each folder on its own."
                )
        if not self.maps:
            raise UserError(f"{path} holds no label maps{f' that end in {label_suffix}' if label_suffix else ''}.")
        self.names = sorted(self.maps)
        self.ignored = tuple(ignore)
        if (coco := self.coco) is None:
            self.info = _info(path, lines, ignore)
            self.table = table_of_ids(self.info)
        else:
            if lines:
                raise UserError(f"{path} names its classes itself; leave out --classes and --class_file.")
            scored = [name for name in coco.categories if name not in ignore]
            names = [*([] if coco.panoptic or "background" in scored else ["background"]), *scored]
            # As in COCO's own PNGs, 0 is what no category is.
            mapping: dict[str, int | None] = {"255": None, "0": None if coco.panoptic else names.index("background")}
            mapping |= {
                str(number): names.index(name) if name in scored else None for name, number in coco.categories.items()
            }
            self.info = DatasetInfo(tuple(names), distinct_colours(len(names)), ignored_value(len(names)), mapping)
            self.table = table_of_categories(coco, self.info, ignore, path)

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> NDArray[np.int32]:
        """Read label ``index`` (H, W); raises UserError if it cannot be read or holds an id that is no class."""
        place, read = self.maps[self.names[index]]
        known = f"an id of its classes ({some_ids(self.info)}) or ignored; name it in the class file or --ignore it"
        return to_indices(read(), self.table, place, known)

    def __getitem__(self, index: int) -> Sample:
        """Label ``index`` on a white picture."""
        label = self.label(index)
        return Sample(self.names[index], np.full((*label.shape, 3), 255, np.uint8), label)


Truth = SegmentationFolder | LabelSet
"""They share ``info``, ``names``, ``len()`` and ``label(index)``."""


def open_truth(
    path: Path,
    split: str | None = None,
    *,
    classes: list[str] | None = None,
    class_file: Path | None = None,
    ignore: list[str] | None = None,
    label_suffix: str | None = None,
) -> Truth:
    """The labels that predictions are scored by.

    Args:
        path: a prepared folder, which names its classes, or what :func:`find_label_files` takes.
        split: of the prepared folder, by default val.
        classes: Names of the classes, in the order of their ids.
        class_file: The classes and their ids, as of `prepare folder`.
        ignore: Ids, or names of COCO's categories, that are no class; 255 is ignored anyway.
        label_suffix: How the names of the truth's files end, where the folder holds others too.

    Raises:
        UserError: the classes are not told, or told twice; whatever ``SegmentationFolder`` or ``LabelSet`` raise.
    """
    given = {"classes": classes, "class_file": class_file, "ignore": ignore, "label_suffix": label_suffix}
    if (path / "dataset.yaml").is_file():
        if needless := next((name for name, value in given.items() if value), None):
            raise UserError(f"{path} is a prepared folder, which tells its classes; leave out --{needless}.")
        return SegmentationFolder(path, split or "val")
    if split is not None:
        raise UserError(f"{path} is no prepared folder, so it has no splits; leave out --split.")
    if classes and class_file:
        raise UserError("Give --classes or --class_file, not both.")
    lines = read_class_file(class_file) if class_file else [ClassLine(name, None, None) for name in classes or ()]
    return LabelSet(path, lines, ignore or (), label_suffix or "")


def _info(path: Path, lines: Sequence[ClassLine], ignore: Sequence[str]) -> DatasetInfo:
    """The classes of ids: those that the lines give, or 0, 1, 2, ... without the ignored ones."""
    if not lines:
        raise UserError(
            f"{path} does not tell its classes; name them with --classes NAME NAME ... or --class_file FILE."
        )
    if wrong := next((each for each in ignore if not (each.isdecimal() and int(each) < 65536)), None):
        raise UserError(f"--ignore {wrong} is no id from 0 to 65535.")
    ignored = {int(each) for each in ignore}
    free = iter(sorted(set(range(65536)) - ignored))
    index_of: dict[str, int] = {}
    mapping: dict[str, int | None] = {}
    for line in lines:
        number = next(free) if line.id is None else line.id
        kept = not line.ignored and number not in ignored
        mapping[str(number)] = index_of.setdefault(line.name, len(index_of)) if kept else None
    if not index_of:
        raise UserError("Every class is ignored; no class is left.")
    mapping = {**{str(number): None for number in (255, *ignored)}, **mapping}
    colours = {line.name: line.colour for line in reversed(lines)}
    palette = (colours[name] or own for name, own in zip(index_of, distinct_colours(len(index_of)), strict=True))
    return DatasetInfo(tuple(index_of), tuple(palette), ignored_value(len(index_of)), mapping)


def some_ids(info: DatasetInfo) -> str:
    """The ids that are classes, for messages."""
    ids = [raw for raw, index in info.mapping.items() if index is not None]
    return ", ".join(ids if len(ids) < 20 else [*ids[:19], "..."])
