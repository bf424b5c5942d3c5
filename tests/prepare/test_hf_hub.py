"""Data sets of the Hugging Face hub, for which a server on this machine stands in."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from cssformer.cli import main
from cssformer.data import DatasetInfo

pytest.importorskip("pyarrow", reason="needs the extra hf")

EXPORT = Path(__file__).parent / "exports/hf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for ``me/scenes``, whose parquet files the hub made, and for ``me/texts`` without any."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        converted = COMMIT in path or "refs/convert/parquet" in path
        files = {f"default/{each.relative_to(EXPORT).as_posix()}": each for each in EXPORT.rglob("*.parquet")}
        files = files if converted and "me/scenes" in path else {}
        if path.startswith(("/api/datasets/me/scenes", "/api/datasets/me/texts")):
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": name, "size": each.stat().st_size, "oid": "0" * 40}
                    for name, each in files.items()
                ]
                return self.answer(json.dumps(listed).encode())
            info = {
                "id": "me/scenes",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in ("README.md", *files)],
            }
            return self.answer(json.dumps(info).encode())
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name in files:
            return self.answer(files[name].read_bytes())
        return self.answer(b"", 404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(content)),
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield address
    server.shutdown()
    server.server_close()


def command(name: str, output: Path) -> list[str]:
    return ["prepare", "hf", "--source", name, "--output", str(output), "--classes", "car", "tree", "sky"]


def test_a_data_set_by_its_name(hub: str, tmp_path: Path) -> None:
    assert main(command("me/scenes", tmp_path / "out")) == 0
    assert main(command(str(EXPORT), tmp_path / "local")) == 0
    info, local = DatasetInfo.load(tmp_path / "out"), DatasetInfo.load(tmp_path / "local")
    assert (
        (info.classes, info.counts) == (local.classes, local.counts) == (("car", "tree", "sky"), {"train": 2, "val": 1})
    )
    for split in ("train", "val"):
        ours, theirs = (sorted((tmp_path / where / split / "labels").iterdir()) for where in ("out", "local"))
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("me/texts", "has no parquet files"), ("me/nothing", "There is no folder me/nothing, nor can a data set")],
)
def test_what_the_hub_lacks_is_told(
    hub: str, name: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(name, tmp_path / "out")) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(command("me/scenes", tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith(
        "cssformer: There is no folder me/scenes, nor can a data set of that name"
    )
