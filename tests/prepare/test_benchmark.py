"""Any benchmark: counts, interruptions, and sources that are not what they should be."""

import hashlib
import io
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from cssformer.data import DatasetInfo, SegmentationFolder
from cssformer.data.check import check
from cssformer.prepare import ade20k, writer
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import Part, prepare_benchmark
from cssformer.utils.errors import UserError

Pack = Callable[[Path, dict[str, bytes]], Path]
COUNTS = {"train": 5, "val": 2, "test": 1}
BENCHMARK = replace(ade20k.BENCHMARK, counts=COUNTS)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def files(train: int = 5, val: int = 2) -> dict[str, bytes]:
    """A tiny ADE20K."""
    rng, found = np.random.default_rng(0), {"ADEChallengeData2016/objectInfo150.txt": b""}
    for folder, stem, count in (("training", "train", train), ("validation", "val", val)):
        for number in range(1, count + 1):
            name = f"{folder}/ADE_{stem}_{number:08}"
            picture = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            found[f"ADEChallengeData2016/images/{name}.jpg"] = cv2.imencode(".jpg", picture)[1].tobytes()
            label = rng.integers(0, 151, (20, 30), dtype=np.uint8)
            found[f"ADEChallengeData2016/annotations/{name}.png"] = png(label)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_complete_sources_need_no_option(tmp_path: Path, pack: Pack) -> None:
    prepared = prepare_benchmark(BENCHMARK, [pack(tmp_path / "it.zip", files())], tmp_path / "out")
    assert prepared.info == DatasetInfo.load(tmp_path / "out")
    assert not prepared.info.partial and prepared.info.counts == {"train": 5, "val": 2}
    report = check(tmp_path / "out")
    assert not report.errors and not any("partial" in warning for warning in report.warnings)


def test_partial_sources_need_an_option_and_are_written_down(tmp_path: Path, pack: Pack) -> None:
    source = pack(tmp_path / "it.zip", files(train=4))
    with pytest.raises(UserError, match="has 5 train pictures, the sources have 4; take what is there with --partial"):
        prepare_benchmark(BENCHMARK, [source], tmp_path / "out")
    prepared = prepare_benchmark(BENCHMARK, [source], tmp_path / "out", partial=True)
    assert prepared.info.partial and DatasetInfo.load(tmp_path / "out").partial
    assert ("train", "4 pictures of 5") in prepared.table()
    assert any("partial" in warning for warning in check(tmp_path / "out").warnings)


def test_more_pictures_than_officially_are_refused(tmp_path: Path, pack: Pack) -> None:
    with pytest.raises(UserError, match="has 5 train pictures, the sources have 6; give the official archives alone"):
        prepare_benchmark(BENCHMARK, [pack(tmp_path / "it.zip", files(train=6))], tmp_path / "out", partial=True)


def test_sources_are_written_down(tmp_path: Path, pack: Pack) -> None:
    source, found = pack(tmp_path / "it.zip", files()), files()
    prepared = prepare_benchmark(BENCHMARK, [source], tmp_path / "out")
    listing = (tmp_path / "out/sources.sha256").read_text()
    assert prepared.info.sources == {
        "sources.sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    digests = {line.split("  ")[1].removeprefix(f"{source}/"): line.split("  ")[0] for line in listing.splitlines()}
    del found["ADEChallengeData2016/objectInfo150.txt"]
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


@pytest.mark.parametrize("kind", ["it.zip", "it"])
def test_an_output_that_is_there_is_whole_or_not(
    tmp_path: Path, pack: Pack, kind: str, capsys: pytest.CaptureFixture
) -> None:
    source, output = pack(tmp_path / kind, files()), tmp_path / "out"
    words = ["prepare", "ade20k", "--source", str(source), "--output", str(output), "--partial"]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert main(words) == 2
    assert "out exists already and is whole (5 train, 2 val pictures); use it" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    # As after a kill between the last rename and the end.
    (tmp_path / ".cssformer-0123abcd.lock").touch()
    next(output.glob("val/images/*")).unlink()
    assert main(words) == 2
    assert "out exists already and is no whole prepared folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kind, "out"])


@pytest.mark.parametrize("how", [KeyboardInterrupt, OSError, UserError])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, pack: Pack, how: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> object:
        raise how(28, "No space left on device")

    monkeypatch.setattr(writer._Writer, "write", write)
    source = pack(tmp_path / "it.zip", files())
    with pytest.raises(how if how is KeyboardInterrupt else UserError, match="No space left"):
        prepare_benchmark(BENCHMARK, [source], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["it.zip"]


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, pack: Pack) -> None:
    source = pack(tmp_path / "it.zip", files())
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    left = sorted(path for path in tmp_path.iterdir() if path != source)
    assert left and not (tmp_path / "out").exists()
    prepare_benchmark(BENCHMARK, [source], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.zip", "out"]


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from cssformer.prepare import ade20k, writer
from cssformer.prepare.benchmark import prepare_benchmark
writer._Writer.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
benchmark = replace(ade20k.BENCHMARK, counts={"train": 5, "val": 2, "test": 1})
prepare_benchmark(benchmark, [Path(sys.argv[1])], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("place", ["it/images/training/out", "link"])
def test_an_output_within_the_source_or_behind_a_link(tmp_path: Path, pack: Pack, place: str) -> None:
    source, output = pack(tmp_path / "it", files()), tmp_path / place
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    everything: list[str] = []

    def parts(members: Sequence[Member]) -> list[Part]:
        everything[:] = [member.name for member in members]
        return list(ade20k.parts(members))

    benchmark = replace(BENCHMARK, parts=parts)
    prepare_benchmark(benchmark, [source], output)
    assert set(everything) == set(files())
    assert contents(output) and (tmp_path / "link").is_symlink() and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("kind", ["it", "it.zip"])
def test_the_source_is_no_output(tmp_path: Path, pack: Pack, kind: str) -> None:
    source = pack(tmp_path / kind, files())
    with pytest.raises(UserError, match="exists already"):
        prepare_benchmark(BENCHMARK, [source], source)


def test_an_output_that_cannot_be_made(tmp_path: Path, pack: Pack) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*/file/out: File exists\.$"):
        prepare_benchmark(BENCHMARK, [pack(tmp_path / "it.zip", files())], tmp_path / "file/out")


def test_the_folder_one_is_in_is_no_output(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = pack(tmp_path / "it.zip", files())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["prepare", "ade20k", "--source", str(source), "--output", ".", "--partial"]) == 2
    assert capsys.readouterr().err == "cssformer: . is the folder you are in; give another output.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "it.zip"]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says to be 50 000 x 50 000."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def jpeg_bomb() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "jpeg")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


IMAGE, LABEL = (f"ADEChallengeData2016/{kind}/training/ADE_train_00000003" for kind in ("images", "annotations"))
LABEL_OF_VAL = "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
SPOILT: dict[str, tuple[dict[str, bytes | None], str]] = {
    "outside": ({"../escape.png": b"1"}, "leads outside"),
    "absolute": ({"/escape.png": b"1"}, "leads outside"),
    "bomb": ({f"{IMAGE}.jpg": bomb()}, r"ADE_train_00000003\.jpg cannot be read: it has over"),
    "jpeg bomb": ({f"{IMAGE}.jpg": jpeg_bomb()}, r"ADE_train_00000003\.jpg cannot be read: it has over"),
    "label bomb": ({f"{LABEL}.png": bomb()}, r"ADE_train_00000003\.png cannot be read"),
    "truncated picture": ({f"{IMAGE}.jpg": files()[f"{IMAGE}.jpg"][:-40]}, "is truncated"),
    "no picture": ({f"{IMAGE}.jpg": b"hello"}, "cannot be read as a picture"),
    "label of another size": ({f"{LABEL}.png": png(np.zeros((20, 29), np.uint8))}, "is 30x20 but its mask"),
    "unknown id": ({f"{LABEL}.png": png(np.full((20, 30), 151, np.uint8))}, "has the value 151"),
    "no label": ({f"{LABEL}.png": None}, r"The picture .*ADE_train_00000003\.jpg has no label \(1 such\)"),
    "no image": ({f"{IMAGE}.jpg": None}, r"The label .*ADE_train_00000003\.png has no picture \(1 such\)"),
    "twice": ({f"again/{LABEL}.png": b""}, "are the same label"),
}


@pytest.mark.parametrize("kind", ["it.zip", "it.tar", "it.tar.gz"])
@pytest.mark.parametrize("mistake", [*SPOILT, "truncated", "another data set", "labels alone", "empty", "no archive"])
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, pack: Pack, kind: str, mistake: str, capsys: pytest.CaptureFixture
) -> None:
    found, complaint = files(), ""
    if mistake in SPOILT:
        changes, complaint = SPOILT[mistake]
        found = {name: data for name, data in {**found, **changes}.items() if data is not None}
    elif mistake == "another data set":
        found = {"leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png": b"", "license.txt": b""}
        complaint = r"no pictures of ADE20K .* expected ADEChallengeData2016\.zip with images/.*found leftImg8bit/train"
    elif mistake == "labels alone":
        found, complaint = {name: data for name, data in found.items() if "images" not in name}, "no pictures of ADE20K"
    elif mistake == "empty":
        found, complaint = {}, "no pictures of ADE20K .* found nothing"
    source = pack(tmp_path / kind, found)
    if mistake == "truncated":
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        complaint = "get a whole copy"
    elif mistake == "no archive":
        source.write_text("<html>Please log in</html>")
        complaint = "cannot be read: it is a web page"
    output = tmp_path / "data/out"
    code = main(["prepare", "ade20k", "--source", str(source), "--output", str(output), "--partial"])
    told = capsys.readouterr().err
    assert code == 2 and told.startswith("cssformer: ") and told.count("\n") == 1 and told.endswith(".\n")
    assert re.search(complaint, told), told
    assert not output.parent.exists() or not any(output.parent.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir() if path != output.parent) == [kind]


def test_labels_are_read_back(tmp_path: Path, pack: Pack) -> None:
    found = files()
    prepare_benchmark(BENCHMARK, [pack(tmp_path / "it.tgz", found)], tmp_path / "out")
    for name, _, label in SegmentationFolder(tmp_path / "out", "train"):
        data = np.frombuffer(found[f"ADEChallengeData2016/annotations/training/{name}.png"], np.uint8)
        ids = cv2.imdecode(data, cv2.IMREAD_UNCHANGED).astype(int)
        assert np.array_equal(np.where(label < 0, -1, label), ids - 1)
