"""The one dataset on disk: ``root/{train,val[,test]}/{images,labels}/NAME.{jpg,png}`` and ``root/dataset.yaml``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cssformer.data.bands import read_pixels
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.files import is_picture, read_bytes
from cssformer.data.image_io import read_ids
from cssformer.utils.errors import UserError

IGNORE = -100
INVALID = 1 << 20
SPLITS = ("train", "val", "test")


class Sample(NamedTuple):
    """One picture, and its label, int32 (H, W) of class indices, or bit fields of multi-label data, or ``IGNORE``.

    A photograph is RGB uint8 (H, W, 3); others have N channels, (H, W, N) uint8 or float32, see
    :class:`cssformer.data.channels.Channels`.

    The label is None only for pictures of a test split that has no labels.
    """

    name: str
    image: NDArray[Any]
    label: NDArray[np.int32] | None


def require_outside_splits(output: Path) -> None:
    """Raise UserError if a folder is a split of prepared data or lies in one, whose files others would join."""
    for folder in (output.resolve(), *output.resolve().parents):
        if folder.name in SPLITS and (folder.parent / "dataset.yaml").is_file():
            raise UserError(f"{output} lies in prepared data, among whose files it would write; give another output.")


class Samples(Protocol):
    """The face that ``SegmentationFolder`` and ``SyntheticScenes`` share."""

    @property
    def info(self) -> DatasetInfo: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class SegmentationFolder:
    """A split of a prepared folder.

    Images and labels are read upright (EXIF orientation), as :mod:`cssformer.data.image_io` reads all files.

    Raises:
        UserError: the folder, ``dataset.yaml``, the split or its pictures are missing, or a picture has no label.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root, self.split = Path(root), split
        self.info = DatasetInfo.load(root)
        if not (self.root / split / "images").is_dir():
            there = [path.parent.name for path in sorted(self.root.glob("*/images"))]
            raise UserError(
                f"There is no folder {self.root / split / 'images'}; the splits of {self.root} are "
                f"{', '.join(there) or 'missing'}."
            )
        self.images = pictures_by_name(self.root / split / "images")
        if not self.images:
            raise UserError(f"{self.root / split / 'images'} holds no pictures.")
        self.names = sorted(self.images)
        labels = self.root / split / "labels"
        self.labels: dict[str, Path] | None = None
        if split != "test" or labels.is_dir():
            found = labels_by_name(labels)
            for name in self.names:
                if name not in found:
                    raise UserError(f"The picture {self.images[name]} has no label: {labels / name}.png is missing.")
            self.labels = {name: found[name] for name in self.names}
        self._table = label_table(self.info)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Read picture ``index``.

        Raises:
            UserError: a file is unreadable or truncated, the sizes differ, or the label has an id outside the classes.
        """
        name = self.names[index]
        image = read_pixels(self.images[name], self.info.channels)[0].pixels
        label = self.label(index)
        if label is not None and self.labels is not None:
            require_same_size(self.images[name], image.shape, self.labels[name], label.shape)
        return Sample(name, image, label)

    def label(self, index: int) -> NDArray[np.int32] | None:
        """Read the label of picture ``index`` alone; raises as reading the whole sample does."""
        if self.labels is None:
            return None
        path = self.labels[self.names[index]]
        return to_classes(read_ids(read_bytes(path), path), self._table, path)


def pictures_by_name(folder: Path) -> dict[str, Path]:
    """Return name -> path of the pictures in ``folder``.

    Raises:
        UserError: there is no such folder, or two pictures share a name.
    """
    return _by_name(folder, is_picture)


def labels_by_name(folder: Path) -> dict[str, Path]:
    """Return name -> path of the PNG files in ``folder``; raises as :func:`pictures_by_name` does."""
    return _by_name(folder, lambda path: is_picture(path) and path.suffix.lower() == ".png")


def _by_name(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    for path in filter(wanted, sorted(folder.iterdir())):
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} share one name; rename one of them.")
        found[path.stem] = path
    return found


def require_same_size(
    picture: Path, shape: tuple[int, ...], label: Path, label_shape: tuple[int, ...], kind: str = "label"
) -> None:
    """Raise UserError, which names both files, if the shapes (H, W, ...) of a picture and its label differ."""
    if shape[:2] != label_shape[:2]:
        raise UserError(
            f"{picture} is {shape[1]}x{shape[0]} but its {kind} {label} is {label_shape[1]}x{label_shape[0]}; "
            f"they must have the same size{' and lie the same way' if shape[1::-1] == label_shape[:2] else ''}."
        )


def label_table(info: DatasetInfo) -> NDArray[np.int32]:
    """Return the table (info.ignore + 1,) from stored id to class index or bit field, ``IGNORE`` or ``INVALID``."""
    known = 1 << len(info.classes) if info.multilabel else len(info.classes)
    table = np.full(info.ignore + 1, INVALID, np.int32)
    table[:known] = np.arange(known)
    table[info.ignore] = IGNORE
    return table


def to_classes(ids: NDArray[Any], table: NDArray[np.int32], path: Path) -> NDArray[np.int32]:
    """Map stored ids (H, W) to class indices by ``table``; ``path`` is named in the error.

    Raises:
        UserError: an id is outside the classes.
    """
    if ids.dtype.itemsize > 1 and len(table) <= 256:
        raise UserError(f"The label {path} has {8 * ids.dtype.itemsize} bits; the dataset's labels have 8.")
    label = look_up(table, ids)
    if label.max() == INVALID:
        rogue = int(ids[label == INVALID][0])
        known = int((table != INVALID).sum()) - 1
        raise UserError(
            f"The label {path} has the id {rogue}, but those of the dataset are 0 to {known - 1} and {len(table) - 1}, "
            "which is ignored; run `cssformer check` on the dataset."
        )
    return label


def look_up(table: NDArray[np.int32], ids: NDArray[Any]) -> NDArray[np.int32]:
    """``table[ids]`` for ids (H, W); ids beyond the table take its last entry."""
    found = np.empty(ids.shape, np.int32)
    # In blocks of rows, because numpy makes eight bytes of each index.
    rows = max(1, 2**18 // ids.shape[1])
    for top in range(0, len(ids), rows):
        np.take(table, ids[top : top + rows], out=found[top : top + rows], mode="clip")
    return found
