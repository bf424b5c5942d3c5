"""Whole or not there, whatever happens meanwhile."""

import os
import threading
from pathlib import Path

import pytest

from cssformer.utils.atomic import atomic_dir, atomic_write
from cssformer.utils.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["a.png", "m" * 251 + ".jpg", "m." + "s" * 253, "路" * 80 + "ab"])
def test_names_of_any_length(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.suffix == (Path(name).suffix if len(name) < 256 and "." in name[-16:] else "")
        temporary.write_text("1")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["m" * 256, "m" * 256 + "/a.png"])
def test_names_that_are_too_long_are_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="^Cannot write .*: File name too long\\.$"), atomic_write(tmp_path / name):
        pass
    assert names(tmp_path) == []


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("sync", [True, False])
def test_what_is_to_outlast_a_power_cut_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def record(file: int) -> None:
        assert not (tmp_path / "a").exists()
        synced.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_write(tmp_path / "a", sync=sync) as temporary:
        temporary.write_text("1")
    assert synced == ([(tmp_path / "a").stat().st_ino] if sync else [])


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "out").mkdir()
    with atomic_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out/a").exists()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_a_folder_with_files_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot write .*out: Directory not empty"), atomic_dir(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/precious").write_text("1")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["precious"]


def test_what_a_process_still_holds_stays(tmp_path: Path) -> None:
    """Two at one time, then the leftovers of a third, whose lock nobody holds."""
    for name in (".cssformer-0123abcd.lock", ".cssformer-0123abcd/train/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with atomic_dir(tmp_path / "one") as one:
        (one / "a").write_text("1")
        assert not (tmp_path / ".cssformer-0123abcd").exists()

        def other() -> None:
            with atomic_dir(tmp_path / "two") as two:
                (two / "b").write_text("2")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert names(tmp_path) == ["one", "two"] and names(tmp_path / "one") == ["a"] and names(tmp_path / "two") == ["b"]
