"""What ``dataset.yaml`` says of a prepared folder: classes, colours, ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from cssformer.data.channels import Channels
from cssformer.data.files import read_bytes
from cssformer.utils.atomic import atomic_text
from cssformer.utils.errors import UserError

MOST_MULTILABEL = 15
"""Classes of multi-label data, each a bit of 16: the last one is left to the ignored value."""


OKABE_ITO = (
    (0, 114, 178),
    (240, 228, 66),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (230, 159, 0),
)
"""A palette that colour-blind people tell apart; first those that differ most to them."""


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return ``count`` RGB colours, ``OKABE_ITO`` up to seven; of more, neighbours differ in hue and brightness."""
    if count <= len(OKABE_ITO):
        return OKABE_ITO[:count]
    # By the golden angle.
    index = np.arange(count)
    hsv = np.stack([index * 111 % 180, 150 + index % 2 * 80, 230 - index % 3 * 55], -1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb)


def ignored_value(classes: int) -> int:
    """What stands for ignored pixels in labels of so many classes: the most that 8 bits hold, or 16."""
    return 255 if classes <= 255 else 65535


@cache
def combined_colours(colours: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """The colour of every bit field, the mean of its classes' colours; black of the one without a class."""
    bits = np.arange(1 << len(colours))[:, None] >> np.arange(len(colours)) & 1
    mean = bits @ np.array(colours) / bits.sum(axis=1, keepdims=True).clip(min=1)
    return tuple((red, green, blue) for red, green, blue in np.rint(mean).astype(int).tolist())


@dataclass(frozen=True)
class DatasetInfo:
    """What ``dataset.yaml`` says: classes with their colours, and where the pictures came from.

    Attributes:
        classes: their names.
        colours: an RGB triple, 0 to 255, per class.
        ignore: the value of ignored pixels in label files: 255 (8-bit) or 65535 (16-bit).
        mapping: raw id or colour ("r g b") of the source -> class index, None where it was ignored.
        counts: split -> number of pictures.
        sources: source file -> SHA-256.
        partial: whether a benchmark has fewer pictures than officially, so that its scores are not comparable.
        channels: what the pictures hold, where they are no photographs.
        multilabel: whether a pixel may be of several classes: labels are bit fields then, see
            :mod:`cssformer.data.multilabel`.
    """

    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    mapping: dict[str, int | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    partial: bool = False
    channels: Channels | None = None
    multilabel: bool = False

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The colour of each value of a label: of the classes, or of the bit fields."""
        return combined_colours(self.colours) if self.multilabel else self.colours

    @classmethod
    def load(cls, folder: str | Path) -> "DatasetInfo":
        """Read ``folder/dataset.yaml``; only ``classes`` is required there.

        Raises:
            UserError: the file is missing, unreadable, or not of this form.
        """
        path = Path(folder) / "dataset.yaml"
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent}.")
        if not path.exists():
            raise UserError(
                f"{path} is missing, so {path.parent} is not a prepared folder; make one with `cssformer prepare`."
            )
        try:
            content = yaml.safe_load(read_bytes(path).decode())
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"Cannot read {path}: {' '.join(str(error).split())}.") from None
        try:
            entries = content["classes"]
            if not isinstance(entries, dict) or sorted(entries) != list(range(len(entries))) or not entries:
                raise ValueError("the classes must be numbered 0, 1, 2, ... without gaps")
            ordered = [entries[index] for index in range(len(entries))]
            palette = distinct_colours(len(ordered))
            info = cls(
                classes=tuple(str(entry["name"]) for entry in ordered),
                colours=tuple(
                    _colour(entry.get("colour", default)) for entry, default in zip(ordered, palette, strict=True)
                ),
                ignore=int(content.get("ignore", 255)),
                mapping={str(raw): index for raw, index in content.get("mapping", {}).items()},
                counts=dict(content.get("counts", {})),
                sources=dict(content.get("sources", {})),
                partial=bool(content.get("partial", False)),
                channels=Channels.read(content["channels"]) if "channels" in content else None,
                multilabel=bool(content.get("multilabel", False)),
            )
            # Else names, some of which may be numbers.
            ids = all(raw.isdecimal() for raw in info.mapping)
            for raw, index in info.mapping.items():
                known = index is None or (type(index) is int and 0 <= index < len(ordered))
                if not known or (ids and (len(raw) > 5 or int(raw) > 65535)):
                    raise ValueError(f"the mapping sends {raw[:20]} to {str(index)[:20]}")
            if info.ignore not in (255, 65535) or len(ordered) > info.ignore:
                raise ValueError(f"ignore is {info.ignore}; it must be 255 (up to 255 classes) or 65535")
            if info.multilabel and (info.ignore != 65535 or len(ordered) > MOST_MULTILABEL):
                raise ValueError(f"multilabel data have up to {MOST_MULTILABEL} classes and ignore 65535")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path} is not a description of a prepared dataset: {error}.") from None
        return info

    def save(self, folder: str | Path) -> None:
        """Write ``folder/dataset.yaml``, one line a class."""
        lines = ["# Written by `cssformer prepare`.", f"ignore: {self.ignore}"]
        lines += ["partial: true  # fewer pictures than officially"] if self.partial else []
        lines += ["multilabel: true  # bit k of a label is class k"] if self.multilabel else []
        if self.channels is not None:
            lines += self.channels.lines()
        lines.append("classes:")
        for index, (name, colour) in enumerate(zip(self.classes, self.colours, strict=True)):
            lines.append(f"  {index}: {{name: {_quoted(name)}, colour: {list(colour)}}}")
        for title in ("mapping", "counts", "sources"):
            entries: dict[str, Any] = getattr(self, title)
            lines.append(f"{title}:" if entries else f"{title}: {{}}")
            lines += [f"  {_quoted(key)}: {_scalar(value)}" for key, value in entries.items()]
        atomic_text(Path(folder) / "dataset.yaml", "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 30).strip()


def _scalar(value: str | int | None) -> str:
    return _quoted(value) if isinstance(value, str) else "null" if value is None else str(value)


def _colour(value: Any) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in value)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"colour {value} is not three numbers from 0 to 255")
    return red, green, blue


def raw_ids(classes: Sequence[str], mapping: Mapping[str, int | None]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The id (C,) that each class has in the data set's source, the lowest where it has several.

    Args:
        classes: names of the classes.
        mapping: that of the :class:`DatasetInfo`; if it is empty, the ids are the class indices.

    Raises:
        UserError: the source had colours or names instead of ids, or none for a class.
    """
    lowest = {index: raw for raw, index in sorted(source_ids(mapping).items(), reverse=True) if index is not None}
    for index, name in enumerate(classes if mapping else ()):
        if index not in lowest:
            raise UserError(f"The data set's description gives no id of its source for the class {name!r}.")
    ids = [lowest.get(index, index) for index in range(len(classes))]
    return np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)


def no_data(ids: Sequence[int]) -> int:
    """What stands for no data beside ids: 255 where 8 bits hold all, else the greatest of 16 bits that is none of them.

    Raises:
        UserError: an id needs more bits.
    """
    if max(ids) > 65535:
        raise UserError(f"The id {max(ids)} is written nowhere: files of labels have 16 bits; give ids up to 65535.")
    return 255 if max(ids) < 255 else max(set(range(65536)).difference(ids))


def source_ids(mapping: Mapping[str, int | None]) -> dict[int, int | None]:
    """The mapping of a :class:`DatasetInfo` with its ids as numbers.

    Raises:
        UserError: the source had colours or names instead of ids.
    """
    ids = {raw: index for raw, index in mapping.items() if raw != "transparent" or index is not None}
    if not all(raw.isdecimal() for raw in ids):
        raise UserError("The data set was made of masks of colours or transparency, so it has no ids of a source.")
    return {int(raw): index for raw, index in ids.items()}
