"""What is wrong with a prepared folder, in plain sentences."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cssformer.data.folder import SegmentationFolder, label_table, read_label, to_classes


def verify_labels(folder: str | Path, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Read every label of ``splits``, so that training does not stop in the middle.

    Raises:
        UserError: a split, a picture's label or ``dataset.yaml`` is missing, a label is unreadable, or has an id
            outside the classes (the first such file and the id are named).
    """
    for split in splits:
        dataset = SegmentationFolder(folder, split)
        table = label_table(dataset.info)
        paths = [] if dataset.labels is None else list(dataset.labels.values())
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(lambda path: to_classes(read_label(path), table, path), paths):
                pass
