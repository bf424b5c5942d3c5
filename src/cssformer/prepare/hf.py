"""Data sets of Hugging Face, parquet files or a folder of ``save_to_disk``: a column of pictures, one of masks.

Masks hold ids; 255 is ignored, 65535 where there are ids above 255. Splits are those that the names of files speak of.
"""

import json
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow
import pyarrow.parquet
from huggingface_hub import HfApi, snapshot_download

from cssformer.data.image_io import read_ids
from cssformer.prepare.annotated import MOST_ANNOTATIONS, Annotated, Export, split_words
from cssformer.prepare.archives import Member
from cssformer.prepare.shapes import ClassMap, Size
from cssformer.prepare.survey import values_of
from cssformer.prepare.writer import Faults
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.weights.hub import HUB_ID

_PICTURES = ("image", "pixel_values", "img", "picture")
_MASKS = ("label", "mask", "annotation", "labels", "masks", "annotations", "segmentation_mask", "semantic_mask")


def from_hub(source: Path) -> Path:
    """A source as it is; where it is none, but the name of a data set on the Hugging Face hub, its parquet files.

    Raises:
        UserError: there is no such data set, it has no parquet files, or the hub cannot be reached.
    """
    name = source.as_posix()
    if source.exists() or source.parent.is_dir() or not HUB_ID.fullmatch(name):
        return source
    try:
        # The hub itself makes parquet files of what people upload in other forms.
        for revision in ("main", "refs/convert/parquet"):
            files = HfApi().dataset_info(name, revision=revision, timeout=10).siblings or []
            if any(file.rfilename.endswith(".parquet") for file in files):
                patterns = ["*.parquet", "*id2label.json"]
                return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # of whatever library the hub's client is built on
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"There is no folder {source}, nor can a data set of that name be had from the hub ({reason})."
        ) from error
    raise UserError(
        f"The data set {name} of the hub has no parquet files; save it with `datasets` and give its folder."
    )


class _Rows:
    """The rows of a file, which is held in memory only if it is in an archive."""

    def __init__(self, member: Member) -> None:
        self.member, self._lock = member, Lock()
        path, is_parquet = member.source / member.name, member.name.endswith(".parquet")
        try:
            if path.is_file():
                file = pyarrow.OSFile(str(path)) if is_parquet else pyarrow.memory_map(str(path))
            else:
                file = pyarrow.BufferReader(member.read_bytes(MOST_ANNOTATIONS))
            if is_parquet:
                parquet = pyarrow.parquet.ParquetFile(file)
                self.columns, groups = parquet.schema_arrow, range(parquet.num_row_groups)
                counts = [parquet.metadata.row_group(number).num_rows for number in groups]
                self._read = lambda group, column: parquet.read_row_group(group, [column])
            else:
                table = pyarrow.ipc.open_stream(file).read_all()
                self.columns, counts = table.schema, [table.num_rows]
                self._read = lambda group, column: table
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(member, error) from None
        self._starts = [0, *accumulate(counts)]

    def cell(self, column: str, row: int) -> Any:
        group = bisect(self._starts, row) - 1
        with self._lock:
            try:
                return _held(self, group, column)[column][row - self._starts[group]].as_py()
            except (pyarrow.ArrowException, OSError) as error:
                raise _damaged(self.member, error) from None

    def __len__(self) -> int:
        return self._starts[-1]


@lru_cache(maxsize=4)
def _held(rows: _Rows, group: int, column: str) -> pyarrow.Table:
    """A group of rows; of all files together a few are held."""
    return rows._read(group, column)


@dataclass(frozen=True)
class _Cell:
    """A picture or a mask."""

    rows: _Rows
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.rows.member}, row {self.row}, {self.column}"

    def read_bytes(self) -> bytes:
        value = self.rows.cell(self.column, self.row)
        if value is None or value.get("bytes") is None:
            raise UserError(f"{self} holds no picture, but at most the path of one; embed them before you save.")
        return value["bytes"]


def read(
    members: Sequence[Member],
    faults: Faults,
    classes: list[str] | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
) -> Export:
    """Find the rows of parquet and Arrow files, and what values their masks have.

    Args:
        members: All files of the sources.
        faults: What becomes of broken rows.
        classes: Names of the classes, in the order of their ids; by default those of ``id2label.json``, if it is there.
        image_column: The column of the pictures; found by itself where its name is usual.
        mask_column: The column of the masks; found by itself where its name is usual.

    Raises:
        UserError: there is no such file or column, or a file is broken.
    """
    files = [each for each in members if each.name.endswith((".parquet", ".arrow"))]
    if not files:
        raise UserError("The source has no .parquet or .arrow file of Hugging Face's datasets.")
    names = dict(enumerate(classes or [])) or _id2label(members)
    found, values, without = [], set[int](), 0
    for member in files:
        rows = _Rows(member)
        image, mask = (
            _column(rows, *wanted) for wanted in ((image_column, _PICTURES, "picture"), (mask_column, _MASKS, "mask"))
        )
        split = next(iter(split_words(member.name)), None)
        folder, _, stem = member.name.rpartition(".")[0].rpartition("/")
        for number in range(len(rows)):
            label = _Cell(rows, mask, number)
            if rows.cell(mask, number) is None:
                without += 1
                continue
            with faults.caught():
                own = values_of(read_ids(label.read_bytes(), Path(str(label))))
                if names and (unknown := own - names.keys() - {255, 65535}):
                    known = f"{min(names)} to {max(names)}"
                    raise UserError(f"{label} has the id {min(unknown)}, but the classes are {known}.")
                values |= own
                path, picture = f"{folder}/{stem}-{number:06}.png".lstrip("/"), _Cell(rows, image, number)
                found.append(Annotated(picture, path, str(label), None, partial(_classes, label, names), split))
    top = 65535 if max(values, default=0) > 255 else 255
    unnamed = sorted(values - names.keys() - {top})
    if names and unnamed:
        raise UserError(f"The masks have the id {unnamed[0]}, but the classes are {min(names)} to {max(names)}.")
    names |= {value: f"class {value}" for value in unnamed}
    every = [names[value] for value in sorted(names)]
    names.setdefault(top, "void")
    notes = [f"{counted(without, 'row')} without mask left out."] if without else []
    return Export(found, [*every, "void"], files, unlabeled="ignore", ignored=["void"], notes=notes)


def _classes(label: _Cell, names: dict[int, str], size: Size) -> ClassMap:
    ids = read_ids(label.read_bytes(), Path(str(label)))
    if ids.shape != size:
        raise UserError(f"{label} is {ids.shape[1]}x{ids.shape[0]}, but its picture is {size[1]}x{size[0]}.")
    return ClassMap(ids, {value: names[value] for value in values_of(ids)})


def _column(rows: _Rows, wanted: str | None, usual: Sequence[str], what: str) -> str:
    there = [each.name for each in rows.columns if pyarrow.types.is_struct(each.type)]
    named = [wanted] if wanted else [name for name in usual if name in there]
    if not named or named[0] not in there:
        option = f"--{'image' if what == 'picture' else 'mask'}_column"
        raise UserError(
            f"{rows.member} has no {what} column {wanted or 'of a usual name'}; columns of pictures are "
            f"{', '.join(there) or 'none'}: give {option}."
        )
    return named[0]


def _id2label(members: Sequence[Member]) -> dict[int, str]:
    file = next((each for each in members if each.name.endswith("id2label.json")), None)
    if file is None:
        return {}
    try:
        return {int(key): str(name) for key, name in json.loads(file.read_bytes()).items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{file} is not JSON of ids and names.") from None


def _damaged(member: Member, error: Exception) -> UserError:
    return UserError(f"{member} cannot be read: {str(error).splitlines()[0].rstrip('.')}; get a whole copy.")
