"""Data sets that Hugging Face's ``datasets`` wrote, as parquet files and by ``save_to_disk``."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra hf")

EXPORTS = Path(__file__).parent / "exports"
EXPECTED = [np.array(Image.open(EXPORTS / f"expected/hf/{name}.png")).astype(int) - 1 for name in "abc"]


def command(source: Path, output: Path, *more: str) -> list[str]:
    return ["prepare", "hf", "--source", str(source), "--output", str(output), *more]


def labels(folder: Path) -> list[np.ndarray]:
    return [sample.label for split in ("train", "val") for sample in SegmentationFolder(folder, split)]


@pytest.mark.parametrize("kind", ["hf", "hf_disk"])
@pytest.mark.parametrize("archive", [False, True])
def test_labels_are_those_saved(tmp_path, kind, archive):
    source = Path(shutil.make_archive(str(tmp_path / "in"), "zip", EXPORTS / kind)) if archive else EXPORTS / kind
    assert main(command(source, tmp_path / "out", "--classes", "car", "tree", "sky")) == 0
    info = DatasetInfo.load(tmp_path / "out")
    assert info.classes == ("car", "tree", "sky") and info.counts == {"train": 2, "val": 1}
    for label, expected in zip(labels(tmp_path / "out"), EXPECTED, strict=True):
        assert (label == np.where(expected < 0, IGNORE, expected)).all()
    pictures = sorted((tmp_path / "out/train/images").iterdir()) + list((tmp_path / "out/val/images").iterdir())
    for path, name in zip(pictures, "abc", strict=True):
        own = np.array(Image.open(EXPORTS / f"coco/images/{'val' if name == 'c' else 'train'}/{name}.png"))
        assert (np.array(Image.open(path)) == own).all()


def test_names_by_id2label_or_ids(tmp_path):
    shutil.copytree(EXPORTS / "hf", tmp_path / "in")
    assert main(command(tmp_path / "in", tmp_path / "ids")) == 0
    assert DatasetInfo.load(tmp_path / "ids").classes == ("class 0", "class 1", "class 2")
    (tmp_path / "in/id2label.json").write_text('{"0": "car", "1": "tree", "2": "sky", "3": "cow"}')
    assert main(command(tmp_path / "in", tmp_path / "named", "--map", "car,tree=thing", "--ignore", "sky")) == 0
    assert DatasetInfo.load(tmp_path / "named").classes == ("thing", "cow")


def table(path: Path, **columns: list[bytes | None]) -> None:
    """Parquet of columns as ``datasets`` has pictures, two rows a group."""
    from pyarrow import parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    arrays = {
        name: pyarrow.array([None if each is None else {"bytes": each, "path": None} for each in column], kind)
        for name, column in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(arrays), path, row_group_size=2)


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


PICTURE = png(np.zeros((8, 9, 3)))


def test_many_row_groups_and_columns_of_other_names(tmp_path, capsys):
    masks = [png(np.full((8, 9), number % 4)) for number in range(7)]
    table(tmp_path / "in/rows.parquet", photo=[PICTURE] * 8, truth=[*masks, None])
    assert main(command(tmp_path / "in", tmp_path / "out")) == 2
    assert "no picture column of a usual name; columns of pictures are photo, truth" in capsys.readouterr().err
    words = command(tmp_path / "in", tmp_path / "out", "--image_column", "photo", "--mask_column", "truth")
    assert main([*words, "--val_share", "0.3"]) == 0
    assert "1 row without mask left out" in capsys.readouterr().out
    found = {
        int(path.stem.rpartition("-")[2]): int(np.array(Image.open(path)).max())
        for path in (tmp_path / "out").rglob("labels/*.png")
    }
    assert found == {number: number % 4 for number in range(7)}


def test_ids_above_255_and_unlabeled_pixels(tmp_path):
    """In 16 bits 255 is a class and 65535 ignored; a class called unlabeled is one."""
    ids, data = np.array([[0, 255, 300, 65535]], np.uint16).repeat(8, 0), io.BytesIO()
    Image.fromarray(ids).save(data, "PNG")
    picture = png(np.zeros((8, 4, 3)))
    table(tmp_path / "in/rows.parquet", image=[picture] * 2, label=[data.getvalue()] * 2)
    assert main(command(tmp_path / "in", tmp_path / "out")) == 0
    assert all((label[0] == [0, 1, 2, IGNORE]).all() for label in labels(tmp_path / "out"))
    names = {0: "unlabeled", 255: "road", 300: "car"}
    (tmp_path / "in/id2label.json").write_text(json.dumps(names))
    assert main(command(tmp_path / "in", tmp_path / "named")) == 0
    assert DatasetInfo.load(tmp_path / "named").classes == ("unlabeled", "road", "car")


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (png(np.zeros((8, 8))), "row 1, label is 8x8, but its picture is 9x8"),
        (png(np.full((8, 9), 7)), "row 1, label has the id 7, but the classes are 0 to 1"),
        (b"no picture", "row 1, label cannot be read as a picture"),
        (png(np.random.default_rng(1).integers(0, 9, (8, 9, 3))), "row 1, label is a colour picture, not class ids"),
    ],
)
def test_broken_rows(tmp_path, capsys, mask, sentence):
    good = png(np.arange(72).reshape(8, 9) % 2)
    table(tmp_path / "in/rows.parquet", image=[PICTURE] * 3, label=[good, mask, good])
    words = command(tmp_path / "in", tmp_path / "out", "--classes", "a", "b")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and sentence in told and not (tmp_path / "out").exists()
    assert main([*words, "--skip_broken"]) == 0 and len(labels(tmp_path / "out")) == 2
    assert sentence in capsys.readouterr().out


def test_broken_files(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / "in" / name).write_bytes(b"PAR1 and no more")
        assert main(command(tmp_path / "in", tmp_path / "out")) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"{name} cannot be read" in told
        (tmp_path / "in" / name).unlink()
    assert main(command(tmp_path / "in", tmp_path / "out")) == 2
    assert "has no .parquet or .arrow file" in capsys.readouterr().err
