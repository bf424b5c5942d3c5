"""Label files as other programs know them: predictions that anybody wrote, and submissions to test servers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE, DatasetInfo
from cssformer.data.dataset import INVALID, label_table
from cssformer.data.dataset_info import raw_ids, source_ids
from cssformer.data.image_io import encode_png, read_note
from cssformer.data.multilabel import require_single_label
from cssformer.metrics.label_files import (
    LabelMap,
    LabelSet,
    Truth,
    find_label_files,
    is_label_file,
    label_map,
    some_ids,
    table_of_categories,
    table_of_ids,
    to_indices,
)
from cssformer.prepare.pairing import find_pairs
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError


class Predictions:
    """The label maps that any program predicted for the pictures of a data set, found by the pictures' names.

    Files, or maps within one file, see :func:`cssformer.metrics.label_files.find_label_files`. That for picture NAME is
    called ``NAME`` or, where there is none, ``NAME_*``, at any depth of a folder; a folder scored by a folder of masks
    pairs as :func:`cssformer.prepare.pairing.find_pairs` does. It has the picture's size and holds class indices, or
    the ids of the data set's source. The ignored value, or with ``raw`` an id that is ignored, says that there is no
    prediction.

    Args:
        path: the folder or file.
        truth: what is predicted.
        raw: they hold the source's ids, as :class:`Submission` writes them, not class indices; a folder of masks has
            these alone.

    Raises:
        UserError: there is no such folder or file, it lacks a picture or has two maps for one, or the source had no
            ids.
    """

    def __init__(self, path: Path, truth: Truth, raw: bool = False) -> None:
        require_single_label(truth.info.multilabel, "A score of label files")
        own_ids = isinstance(truth, LabelSet) and truth.coco is None
        if own_ids:
            index_of = source_ids(truth.info.mapping)
            # Class indices may be told from ids only where they differ.
            raw = raw or any(index_of.get(index) != index for index in range(len(truth.info.classes)))
        written = path.resolve().parent if path.resolve().name == "labels" else path
        if f'"raw": {json.dumps(not raw)}' in read_note(legend := written / "legend.png"):
            told = "without --raw; leave it out here too" if raw else "with --raw; give it here too"
            if raw and own_ids:
                told = "without --raw, but the truth holds ids; predict with --raw"
            raise UserError(f"{path} was predicted {told}, as {legend} tells.")
        listed = truth.coco.listed if isinstance(truth, LabelSet) and truth.coco else None
        found, coco = find_label_files(path, listed)
        self.info, self.raw = truth.info, raw or own_ids
        if coco is not None:
            ignored = truth.ignored if isinstance(truth, LabelSet) else ()
            self.table = table_of_categories(coco, truth.info, ignored, path)
        else:
            self.table = table_of_ids(truth.info) if self.raw else np.append(label_table(truth.info), INVALID)
        if isinstance(truth, LabelSet) and truth.root.is_dir() and path.is_dir():
            maps = _paired(path, truth)
        else:
            maps = _by_name(found, truth.names)
        missing = [name for name in truth.names if not maps[name]]
        if missing:
            raise UserError(
                f"{path} has no prediction for {len(missing)} of {len(maps)} pictures: {missing[0]} is missing."
            )
        for name, several in maps.items():
            if len(several) > 1:
                places = f"{several[0].place} and {several[1].place}"
                raise UserError(f"{places} may both be the prediction for {name}; leave one there.")
        self.maps = {name: only for name, (only,) in maps.items()}
        self.path, self.by_ids = path, self.raw and coco is None
        # The largest value of each map read, and whether it has ignored ones; 255 aside.
        self.seen: set[tuple[int, bool]] = set()

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """The class indices (H, W) predicted for a picture of this shape, ``IGNORE`` where there is none.

        Raises:
            UserError: the map cannot be read, is of another kind or size, or holds a value that is no class.
        """
        place, read = self.maps[name]
        ids = read()
        if ids.ndim == 2 and ids.shape != shape:
            raise UserError(
                f"The prediction {place} is {ids.shape[1]}x{ids.shape[0]} but its picture is {shape[1]}x{shape[0]}; "
                "predictions are scored at the picture's own size."
            )
        known = "an id of the data set's source" if self.raw else f"a class from 0 to {len(self.info.classes) - 1}"
        labels = to_indices(ids, self.table, f"The prediction {place}", known)
        given = ids != 255
        # Threads read, and adding is one step.
        self.seen.add((int(ids.max(where=given, initial=0)), bool((labels[given] == IGNORE).any())))
        return labels

    def doubt(self) -> str | None:
        """Why what was read so far looks like class indices that were taken for ids; None if it does not."""
        count, largest = len(self.info.classes), max((value for value, _ in self.seen), default=0)
        if not self.by_ids or largest >= count or not any(ignored for _, ignored in self.seen):
            return None
        return (
            f"{self.path} has no value above {largest}, as if it held indices of the {count} classes, but is read as "
            f"ids: {some_ids(self.info)} are classes, others ignored. If these are indices, write ids, or score by a "
            "prepared folder without --raw."
        )


def _by_name(found: Sequence[tuple[str, LabelMap]], names: Sequence[str]) -> dict[str, list[LabelMap]]:
    """The maps that may be meant for each name."""
    exact: dict[str, list[LabelMap]] = {name: [] for name in names}
    longer: dict[str, list[LabelMap]] = {name: [] for name in names}
    for called, each in found:
        name = called
        while name not in exact and "_" in name:
            name = name.rpartition("_")[0]
        if name in exact:
            (exact if name == called else longer)[name].append(each)
    return {name: exact[name] or longer[name] for name in names}


def _paired(path: Path, truth: LabelSet) -> dict[str, list[LabelMap]]:
    """The maps of a folder by the names of the masks that they pair with."""
    if path.samefile(truth.root):
        return {name: [each] for name, each in truth.maps.items()}
    pairing = find_pairs(path, truth.root, None, truth.label_suffix or None, is_label_file)
    name_of = {each.place: name for name, each in truth.maps.items()}
    maps: dict[str, list[LabelMap]] = {name: [] for name in truth.names}
    ends = {end for end, _ in pairing.suffixes}
    pairs = [pair for pair in pairing.pairs if pair.image.name.removeprefix(pair.stem) in ends]
    # Of several that differ in the extension alone, a.png and a.npy, one has the mask.
    masks = {(pair.folders, pair.split, pair.stem): pair.label for pair in pairs if pair.label is not None}
    for pair in pairs:
        if mask := masks.get((pair.folders, pair.split, pair.stem)):
            maps[name_of[str(mask)]].append(label_map(pair.image))
    return maps


class Submission:
    """A folder of PNGs, NAME.png for picture NAME, that hold the ids of the data set's source, 8 bits if they fit.

    For prepared Cityscapes and ADE20K these are the files that the test servers take: labelIds, and 1 to 150. Where
    several ids became one class, the lowest is written; without a source's ids (``mapping`` in ``dataset.yaml`` is
    empty) the class indices are.

    Args:
        folder: made with the first file.
        info: of the data set.

    Raises:
        UserError: the source had colours instead of ids, the data are multi-label, or the folder is prepared data.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        if any((place / "dataset.yaml").is_file() for place in (folder, *folder.resolve().parents[:2])):
            raise UserError(f"{folder} is a place of prepared data; give another folder for the submission.")
        require_single_label(info.multilabel, "A submission")
        self.folder = folder
        self.ids = raw_ids(info.classes, info.mapping)

    def write(self, name: str, labels: NDArray[np.integer]) -> None:
        """Write the class indices (H, W) predicted for a picture.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_write(self.folder / f"{name}.png", sync=False) as path:
            path.write_bytes(encode_png(np.take(self.ids, labels)))
