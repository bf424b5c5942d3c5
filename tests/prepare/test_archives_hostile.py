"""Archives that nobody honest made: every one is read rightly or refused in one sentence, and memory stays bounded."""

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import DatasetInfo
from cssformer.prepare import archives
from cssformer.prepare.archives import open_source
from cssformer.prepare.folder import prepare_folder
from cssformer.utils.errors import UserError

CONTENTS = {
    "images/a.jpg": b"\xff\xd8" + bytes(range(256)) * 8,
    "labels/a.png": b"\x89PNG" + b"x" * 700,
    "list.txt": b"a",
}


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def tarred(contents: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


LONG = {f"{'folder/' * 30}{name}": data for name, data in CONTENTS.items()}
ARCHIVES = {
    "deflated.zip": zipped(CONTENTS),
    "stored.zip": zipped(CONTENTS, zipfile.ZIP_STORED),
    "pax.tar": tarred(LONG),
    "gnu.tar": tarred(LONG, tarfile.GNU_FORMAT),
    "pax.tar.gz": gzip.compress(tarred(LONG)),
    "gnu.tgz": gzip.compress(tarred(CONTENTS, tarfile.GNU_FORMAT)),
}


def read_all(path: Path) -> dict[str, bytes]:
    with open_source(path) as members:
        return {member.name: member.read_bytes() for member in members}


@settings(max_examples=400)
@given(st.data())
def test_changed_bytes_are_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(list(ARCHIVES)))
    content = bytearray(ARCHIVES[name])
    if name.endswith("gz") and data.draw(st.booleans()):
        # Change what is packed: the outer checksum is right then.
        inner = bytearray(gzip.decompress(content))
        change(inner, data)
        content = bytearray(gzip.compress(bytes(inner), 1))
    else:
        change(content, data)
    path = tmp_path_factory.mktemp("hostile") / name
    path.write_bytes(content)
    try:
        read_all(path)
    except UserError as error:
        assert str(error).isprintable() and str(path) in str(error)
    finally:
        path.unlink()
        path.parent.rmdir()


def change(content: bytearray, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1)) if content else 0
        kind = data.draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        noise = data.draw(st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 8, bytes(8), b"99999999999"]))
        if kind == "overwrite":
            content[place : place + len(noise)] = noise
        elif kind == "insert":
            content[place:place] = noise
        elif kind == "delete":
            del content[place : place + len(noise)]
        else:
            del content[place:]


def refused(tmp_path: Path, name: str, content: bytes) -> str:
    """The sentence by which reading all of an archive is refused."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_all(path)
    assert str(error.value).isprintable() and str(path) in str(error.value)
    return str(error.value)


def claiming(content: bytes, size: int) -> bytes:
    """A .zip of one member whose directory tells another size than the member has."""
    place = content.rindex(b"PK\1\2")
    return content[: place + 24] + struct.pack("<I", size) + content[place + 28 :]


MANY = 32 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_larger_than_they_say(tmp_path: Path, method: int) -> None:
    bomb = claiming(zipped({"a": bytes(MANY)}, method), 1000)
    tracemalloc.start()
    try:
        refused(tmp_path, "bomb.zip", bomb)
        assert tracemalloc.get_traced_memory()[1] < MANY / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["it.tar", "it.tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_as_large_as_the_memory(tmp_path: Path, kind: bytes, name: str) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, MANY
    content = header.tobuf(tarfile.USTAR_FORMAT) + bytes(MANY) + tarred(CONTENTS)
    packed = gzip.compress(content, 1) if name.endswith("gz") else content
    tracemalloc.start()
    try:
        assert "headers ask for" in refused(tmp_path, name, packed)
        assert tracemalloc.get_traced_memory()[1] < MANY / 4
    finally:
        tracemalloc.stop()


def test_more_members_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    path = tmp_path / "it.tar.gz"
    path.write_bytes(gzip.compress(tarred(CONTENTS)))
    assert read_all(path) == CONTENTS
    assert "more than 3 files" in refused(tmp_path, "it.tgz", gzip.compress(tarred({**CONTENTS, "more": b""})))


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "b.jpg", "C:", "\\", "é", "\n", "\0", "\udce4", "\x1b[2J"]), min_size=1
)


@given(NAMES.map("/".join) | st.text(max_size=20), st.sampled_from(["it.zip", "it.tar", "it.tar.gz"]))
def test_names_lead_inside_and_can_be_printed(tmp_path_factory: pytest.TempPathFactory, name: str, kind: str) -> None:
    path = tmp_path_factory.mktemp("names") / kind
    try:
        content = zipped({name: b"x"}) if kind == "it.zip" else tarred({name: b"x"})
    except (UnicodeEncodeError, ValueError):
        return
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    try:
        for found in read_all(path):
            assert found.isprintable() and found == os.path.normpath(found)
            assert not os.path.isabs(found) and found.split("/")[0] != ".." and found[1:2] != ":"
    except UserError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("name", ["it.tar", "it.tar.gz"])
def test_links_and_devices_in_tar(tmp_path: Path, kind: bytes, name: str) -> None:
    info = tarfile.TarInfo("images/a.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    content = info.tobuf(tarfile.GNU_FORMAT) + tarred(CONTENTS)
    sentence = refused(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert "a link or a device" in sentence


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_zip(tmp_path: Path, mode: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("images/a.jpg")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "a link or a device" in refused(tmp_path, "it.zip", file.getvalue())


def test_members_that_overlap(tmp_path: Path) -> None:
    """A directory whose entries share one piece of the file unpacks to much more than the file; names tell it."""
    content = zipped({"a.jpg": bytes(5000)})
    end = content.rindex(b"PK\5\6")
    entry = content[content.rindex(b"PK\1\2") : end]
    entries = b"".join(entry.replace(b"a.jpg", f"{letter}.jpg".encode()) for letter in "abc")
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(entries), end - len(entry), 0)
    assert "b.jpg" in refused(tmp_path, "it.zip", content[: end - len(entry)] + entries + tail)


@pytest.mark.skipif(os.name != "posix", reason="names of bytes are a matter of POSIX")
def test_folder_names_that_are_not_utf8(prepared: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    try:
        prepared.rename(source / os.fsdecode(b"Stra\xdfe"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    prepare_folder([source], output)
    assert DatasetInfo.load(output).counts == {"train": 4, "val": 2}
    assert "Stra\\udcdfe/train/images/0.jpg" in (output / "sources.sha256").read_text("utf-8")
