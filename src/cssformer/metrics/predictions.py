"""Label files as other programs know them: predictions that anybody wrote, and submissions to test servers."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.dataset import INVALID, label_table, look_up, raw_ids, source_ids
from cssformer.data.files import files_under, read_bytes
from cssformer.data.image_io import encode_png, read_ids, read_note
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError


class PredictionFolder:
    """PNGs that hold the predictions for a split, found by the pictures' names.

    The file for picture NAME is ``NAME.png`` or, where there is none, ``NAME_*.png``, at any depth of the folder. It
    has the picture's size and one channel, or a palette: class indices, or the ids of the data set's source. The
    ignored value, or with ``raw`` an id that is ignored, says that there is no prediction.

    Args:
        folder: searched to the bottom.
        dataset: the split predicted.
        raw: the files hold the source's ids, as :class:`Submission` writes them, not class indices.

    Raises:
        UserError: the folder is missing, lacks a picture or has two files for one, or the source had no ids.
    """

    def __init__(self, folder: Path, dataset: SegmentationFolder, raw: bool = False) -> None:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        written = folder.resolve().parent if folder.resolve().name == "labels" else folder
        if f'"raw": {json.dumps(not raw)}' in read_note(legend := written / "legend.png"):
            told = "without --raw; leave it out" if raw else "with --raw; give it"
            raise UserError(f"{folder} was predicted {told} here too, as {legend} tells.")
        self.info, self.raw = dataset.info, raw
        self.table = np.append(_classes_of_raw_ids(dataset.info) if raw else label_table(dataset.info), INVALID)
        exact: dict[str, list[Path]] = {name: [] for name in dataset.names}
        longer: dict[str, list[Path]] = {name: [] for name in dataset.names}
        for path in files_under(folder):
            if path.suffix.lower() != ".png":
                continue
            name = path.stem
            while name not in exact and "_" in name:
                name = name.rpartition("_")[0]
            if name in exact:
                (exact if name == path.stem else longer)[name].append(path)
        self.files = {name: exact[name] or longer[name] for name in dataset.names}
        missing = [name for name, paths in self.files.items() if not paths]
        if missing:
            raise UserError(
                f"{folder} has no prediction for {len(missing)} of {len(self.files)} pictures: "
                f"{missing[0]}.png is missing."
            )
        for name, paths in self.files.items():
            if len(paths) > 1:
                raise UserError(f"{paths[0]} and {paths[1]} may both be the prediction for {name}; leave one there.")

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """The class indices (H, W) predicted for a picture of this shape, ``IGNORE`` where there is none.

        Raises:
            UserError: the file cannot be read, is of another kind or size, or holds a value that is no class.
        """
        path = self.files[name][0]
        ids = read_ids(read_bytes(path), path)
        if ids.shape != shape:
            raise UserError(
                f"The prediction {path} is {ids.shape[1]}x{ids.shape[0]} but its picture is {shape[1]}x{shape[0]}; "
                "predictions are scored at the picture's own size."
            )
        labels = look_up(self.table, ids)
        if labels.max() == INVALID:
            value = int(ids[labels == INVALID][0])
            known = "an id of the data set's source" if self.raw else f"a class from 0 to {len(self.info.classes) - 1}"
            raise UserError(f"The prediction {path} has the value {value}, which is not {known}.")
        return labels


class Submission:
    """A folder of PNGs, NAME.png for picture NAME, that hold the ids of the data set's source, 8 bits if they fit.

    For prepared Cityscapes and ADE20K these are the files that the test servers take: labelIds, and 1 to 150. Where
    several ids became one class, the lowest is written; without a source's ids (``mapping`` in ``dataset.yaml`` is
    empty) the class indices are.

    Args:
        folder: made with the first file.
        info: of the data set.

    Raises:
        UserError: the source had colours instead of ids, or the folder is prepared data.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        if any((place / "dataset.yaml").is_file() for place in (folder, *folder.resolve().parents[:2])):
            raise UserError(f"{folder} is a place of prepared data; give another folder for the submission.")
        self.folder = folder
        self.ids = raw_ids(info.classes, info.mapping)

    def write(self, name: str, labels: NDArray[np.integer]) -> None:
        """Write the class indices (H, W) predicted for a picture.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_write(self.folder / f"{name}.png", sync=False) as path:
            path.write_bytes(encode_png(np.take(self.ids, labels)))


def _classes_of_raw_ids(info: DatasetInfo) -> NDArray[np.int32]:
    """The table from an id of the source to its class index, ``IGNORE`` or ``INVALID``."""
    ids = source_ids(info.mapping) or {**{index: index for index in range(len(info.classes))}, info.ignore: None}
    table = np.full(max(ids) + 1, INVALID, np.int32)
    for raw, index in ids.items():
        table[raw] = IGNORE if index is None else index
    return table
