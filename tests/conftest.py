"""Small tensors on many threads are slower than on one, above all where several processes share the cores."""

import io
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

from cssformer.data import DatasetInfo

torch.set_num_threads(1)
# Under nohup the programs that tests start would ignore a hangup too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Each run draws other examples: many runs prove what one does not.
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A sound prepared folder: three classes, four training and two validation pictures, all different."""
    root, rng = tmp_path / "prepared", np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        for number in range(count):
            image = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (60, 50))
            label = rng.integers(0, 3, (50, 60), dtype=np.uint8)
            label[:2] = 255
            cv2.imwrite(str(root / split / "images" / f"{number}.jpg"), image)
            cv2.imwrite(str(root / split / "labels" / f"{number}.png"), label)
    info = DatasetInfo(("road", "tree", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), counts={"train": 4, "val": 2})
    info.save(root)
    return root


@pytest.fixture(scope="session")
def no_file_above() -> Callable[[int], AbstractContextManager[None]]:
    """Within the context no file grows above so many bytes: what a full disk does, without one."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def no_file_above(size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return no_file_above


@pytest.fixture(scope="session")
def pack() -> Callable[[Path, dict[str, bytes]], Path]:
    """Write files as what the path's suffix says: a .zip, .tar, .tar.gz, .tgz, or a folder."""

    def pack(path: Path, contents: dict[str, bytes]) -> Path:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in contents.items():
                    archive.writestr(name, data)
        elif path.suffix in (".tar", ".gz", ".tgz"):
            with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
                for name, data in contents.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            for name, data in contents.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
        return path

    return pack
