"""Archives are read in place as they were packed; what is unsafe or damaged is refused in one sentence."""

import gzip
import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.prepare import archives
from cssformer.prepare.archives import open_source, safe_name
from cssformer.utils.errors import UserError

Pack = Callable[[Path, dict[str, bytes]], Path]
KINDS = ["it", "it.zip", "it.tar", "it.tar.gz", "it.tgz"]
NAMES = st.lists(st.from_regex(r"\A[a-z0-9_.]{0,6}[a-z0-9]\Z"), min_size=1, max_size=4).map("/".join)
CONTENTS = st.dictionaries(NAMES, st.binary(max_size=600), max_size=12).filter(
    # A file cannot be a folder, too.
    lambda contents: not any(other.startswith(f"{name}/") for name in contents for other in contents)
)


def read_all(path: Path) -> dict[str, bytes]:
    with open_source(path) as members:
        return {member.name: member.read_bytes() for member in members}


@settings(max_examples=60)
@given(CONTENTS, st.sampled_from(KINDS), st.randoms())
def test_members_are_read_as_they_were_packed(
    tmp_path_factory: pytest.TempPathFactory,
    pack: Pack,
    contents: dict[str, bytes],
    kind: str,
    order: random.Random,
) -> None:
    path = tmp_path_factory.mktemp("archive") / kind
    pack(path, contents)
    path.mkdir(exist_ok=True) if kind == "it" else None
    if kind == "it":
        # Hidden files of a folder are of programs, not of the data set.
        contents = {name: data for name, data in contents.items() if "/." not in f"/{name}"}
    with open_source(path) as members:
        assert [member.name for member in members] == sorted(contents)
        for member in order.sample(members, len(members)):
            assert member.read_bytes() == contents[member.name]
            assert member.size == len(contents[member.name]) and str(member) == f"{path}/{member.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_read_at_one_time(tmp_path: Path, pack: Pack, kind: str) -> None:
    contents = {f"folder/{number}.bin": random.Random(number).randbytes(40_000) for number in range(100)}
    with open_source(pack(tmp_path / kind, contents)) as members, ThreadPoolExecutor(8) as threads:
        data = list(threads.map(lambda member: member.read_bytes(), members * 3))
    assert data == [contents[member.name] for member in members] * 3


def test_gzip_of_several_streams(tmp_path: Path, pack: Pack) -> None:
    contents = {"a": b"1" * 3000, "b": random.Random(0).randbytes(5000)}
    data = pack(tmp_path / "it.tar", contents).read_bytes()
    joined = b"".join(gzip.compress(data[place : place + 1700]) for place in range(0, len(data), 1700))
    (tmp_path / "it.tar.gz").write_bytes(joined + bytes(100))
    assert read_all(tmp_path / "it.tar.gz") == contents


def test_an_archive_may_name_its_own_top_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("./", "")
        archive.writestr("./a", "1")
    (tmp_path / "it").mkdir()
    (tmp_path / "it/a").write_bytes(b"1")
    with tarfile.open(tmp_path / "it.tar", "w") as tar:
        tar.add(tmp_path / "it", ".")
    assert read_all(tmp_path / "it.zip") == read_all(tmp_path / "it.tar") == {"a": b"1"}


def test_links_of_a_folder_are_its_owners(tmp_path: Path, pack: Pack) -> None:
    pack(tmp_path / "elsewhere", {"b": b"2"})
    pack(tmp_path / "it", {"a": b"1"})
    (tmp_path / "it/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "it/link/up").symlink_to(tmp_path / "it")
    assert read_all(tmp_path / "it") == {"a": b"1", "link/b": b"2"}


PIECES = st.sampled_from(["..", ".", "", "a", "b.png", "C:", "~", "/", "\\", "\0", " ", "\n", "\ud800", "é"])


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=6), st.sampled_from(["/", "\\", ""]))
def test_safe_names_stay_inside(pieces: list[str], separator: str) -> None:
    """Judged by ``pathlib``, on both families of systems."""
    name = separator.join(pieces)
    try:
        safe = safe_name(name, Path("it.zip"))
    except UserError as error:
        assert str(error).startswith("it.zip holds ") and "\n" not in str(error)
        harmless = name.replace("\\", "/").strip("./") and "//" not in name
        relative = not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).anchor
        assert not (harmless and relative and name.isprintable() and ".." not in name and ":" not in name)
        return
    for path in (PurePosixPath(safe), PureWindowsPath(safe)):
        assert path.parts and not path.is_absolute() and not path.anchor and ".." not in path.parts
    assert os.path.normpath(os.path.join("/root", safe)).startswith("/root/") and "\\" not in safe


def zip_member(path: Path, name: str, mode: int = stat.S_IFREG | 0o644, flags: int = 0) -> Path:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.txt", "")
        archive.writestr(info, "/etc/passwd")
    data = path.read_bytes()
    place = data.rindex(b"PK\x01\x02") + 8
    path.write_bytes(data[:place] + bytes([data[place] | flags]) + data[place + 1 :])
    return path


def tar_member(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    info.size = 4 if kind == tarfile.REGTYPE else 0
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        archive.addfile(info, io.BytesIO(b"root"))
    return path


INVALID = ["../a.png", "/a.png", "a/../../b.png", "C:/a.png", "c:a.png", "..\\a.png", "\\\\host\\a.png", ".."]


@pytest.mark.parametrize("name", INVALID)
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    makers = [zip_member(tmp_path / "it.zip", name), tar_member(tmp_path / "it.tar", name)]
    for path in (*makers, tar_member(tmp_path / "it.tar.gz", name)):
        with pytest.raises(UserError, match=r"it\.(zip|tar|tar\.gz) holds .* leads outside"), open_source(path):
            pass


@pytest.mark.parametrize("name", ["../", "/b/", "a/../../"])
def test_folders_outside_are_refused(tmp_path: Path, name: str) -> None:
    for path in (zip_member(tmp_path / "it.zip", name), tar_member(tmp_path / "it.tar", name, tarfile.DIRTYPE)):
        with pytest.raises(UserError, match=r"it\.(zip|tar) holds .* leads outside"), open_source(path):
            pass


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    with (
        pytest.raises(UserError, match="'a', which is a link"),
        open_source(zip_member(tmp_path / "it.zip", "a", mode)),
    ):
        pass


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, suffix: str, kind: bytes) -> None:
    path = tar_member(tmp_path / f"it{suffix}", "a", kind)
    with pytest.raises(UserError, match="'a', which is a link"), open_source(path):
        pass


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encrypted"), open_source(zip_member(tmp_path / "it.zip", "a", flags=1)):
        pass


@pytest.mark.parametrize("kind", KINDS[1:])
@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_archives_are_refused(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, kind: str, share: float
) -> None:
    contents = {f"{number}.bin": random.Random(number).randbytes(700 * number) for number in range(5)}
    path = pack(tmp_path_factory.mktemp("cut") / kind, contents)
    whole = path.read_bytes()
    # A .tar ends with zeros of which a few would do.
    used = len(whole.rstrip(b"\0")) if kind == "it.tar" else len(whole)
    path.write_bytes(whole[: int(share * used)])
    with pytest.raises(UserError) as error:
        read_all(path)
    assert str(error.value).startswith(str(path)) and str(error.value).endswith("get a whole copy.")


@pytest.mark.parametrize("kind", KINDS)
def test_members_have_a_bounded_size(tmp_path: Path, pack: Pack, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 20_000)
    with open_source(pack(tmp_path / kind, {"a": bytes(20_000), "b": bytes(20_001)})) as members:
        assert members[0].read_bytes() == bytes(20_000)
        with pytest.raises(UserError, match="/b has 20001 bytes; more than 20000"):
            members[1].read_bytes()


def test_a_tar_gz_has_a_bounded_size(tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 1 << 20)
    path = pack(tmp_path / "it.tar.gz", {"a": bytes(3 << 20)})
    with pytest.raises(UserError, match=r"it\.tar\.gz cannot be read: it unpacks to more than"), open_source(path):
        pass


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("a/b", "1")
        archive.writestr("a//b", "2")
    with pytest.raises(UserError, match="'a/b' twice"), open_source(tmp_path / "it.zip"):
        pass


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("\n<!DOCTYPE html><title>Login</title>")
    (tmp_path / "it.rar").write_bytes(b"Rar!")
    for name, complaint in (
        ("page.zip", "a web page"),
        ("it.rar", "neither a folder nor"),
        ("no.zip", "There is no file"),
    ):
        with pytest.raises(UserError, match=complaint), open_source(tmp_path / name):
            pass
