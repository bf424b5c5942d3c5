"""The endpoint and the page's own interface, by a client within the process: right answers, and hostile senders."""

import asyncio
import base64
import errno
import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer import CSSFormer, Metadata, Predictor
from cssformer.cli import main
from cssformer.data.channels import Channels
from cssformer.data.image_io import decode_image, decode_mask
from cssformer.inference import explain
from cssformer.utils.errors import UserError

pytest.importorskip("gradio", reason="needs the extra web")
pytest.importorskip("pycocotools", reason="needs the extra formats")
from starlette.testclient import TestClient

from cssformer.serve.app import make_app, make_room
from cssformer.serve.page import _looks, _shown
from cssformer.serve.service import Busy, Service

CLASSES = ("background", "grass & <tree>", "sky", "water")
WORD = {"Authorization": "Bearer word"}
Make = Callable[[], bytes]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = CSSFormer(backbone="test_resnet", num_classes=4, channels=16, heads=2, points=3, aux=False)
    model.metadata = Metadata(classes=CLASSES)
    return Predictor(model, "cpu")


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[Service]:
    before = Image.MAX_IMAGE_PIXELS
    service = Service(predictor, "model", queue=0, max_megapixels=1)
    yield service
    service.close()
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    uploads = tmp_path_factory.mktemp("uploads").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        app = make_app(service, uploads, "word", 300_000)
        with TestClient(app, headers=WORD, raise_server_exceptions=False) as client:
            yield client


def pixels(height: int, width: int, *channels: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, *channels)).astype(dtype)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def photo() -> bytes:
    return encoded(pixels(48, 70, 3), "JPEG", quality=95)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))


def bomb_text() -> bytes:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    text = b"a\0\0" + zlib.compress(bytes(2 * 10**6))
    return png((b"IHDR", header), (b"zTXt", text), (b"IDAT", zlib.compress(bytes(72))), (b"IEND", b""))


def bomb_gif() -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
        + b",\0\0\0\0"
        + struct.pack("<HHB", 60_000, 60_000, 0)
        + b"\2\0;"
    )


def bomb_tiff() -> bytes:
    # All is written, and then the sides are named larger than they are.
    data = bytearray(encoded(np.zeros((8, 8), np.uint8), "TIFF"))
    (place,) = struct.unpack_from("<I", data, 4)
    for entry in range(place + 2, place + 26, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):
            struct.pack_into("<I", data, entry + 8, 60_000)
    return bytes(data)


def bomb_strip() -> bytes:
    """A TIFF of 8x8 pixels whose strip becomes 100 MB."""
    data = bytearray(encoded(np.zeros((8, 8), np.uint8), "TIFF", compression="tiff_adobe_deflate"))
    strip = zlib.compress(bytes(10**8))
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (273, 279):
            struct.pack_into("<HII", data, entry + 2, 4, 1, len(data) if tag == 273 else len(strip))
    return bytes(data) + strip


def bomb_scans() -> bytes:
    """A progressive JPEG that says its last scan a thousand times."""
    data = encoded(pixels(16, 16), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 1000 * last + data[-2:]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(pixels(40, 60, 3), "JPEG", exif=exif)


RIGHT: dict[str, Make] = {
    "colours": photo,
    "CMYK": lambda: encoded(Image.fromarray(pixels(40, 50, 3)).convert("CMYK"), "JPEG"),
    "16 bits": lambda: encoded(pixels(40, 50, dtype=np.uint16), "PNG"),
    "with alpha": lambda: encoded(pixels(40, 50, 4), "PNG"),
    "palette": lambda: encoded(Image.fromarray(pixels(40, 50, 3)).convert("P"), "PNG"),
    "animated": lambda: encoded(
        pixels(40, 50, 3), "GIF", save_all=True, append_images=[Image.fromarray(pixels(40, 50, 3)[::-1])]
    ),
    "turned": turned,
    "one pixel": lambda: encoded(pixels(1, 1, 3), "PNG"),
    "thin": lambda: encoded(pixels(1, 3000, 3), "PNG"),
    "WebP": lambda: encoded(pixels(40, 50, 3), "WEBP"),
}
WRONG: dict[str, tuple[Make, str]] = {
    "text": (lambda: b"I am no picture.", "cannot be read as a picture"),
    "no bytes": (lambda: b"", "has no bytes"),
    "half a JPEG": (lambda: photo()[:900], "is truncated"),
    "half a PNG": (lambda: encoded(pixels(40, 50, 3), "PNG")[:900], "is truncated"),
    "PNG bomb": (bomb_png, "over 1 million pixels"),
    "GIF bomb": (bomb_gif, "over 1 million pixels"),
    "TIFF bomb": (bomb_tiff, "over 1 million pixels"),
    "strip bomb": (bomb_strip, "more than its pixels"),
    "scan bomb": (bomb_scans, "more than 500 scans"),
    "text bomb": (bomb_text, "cannot be read as a picture"),
    "line": (lambda: encoded(np.zeros((1, 100_000), np.uint8), "PNG"), "too thin"),
    "SVG": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "cannot be read",
    ),
    "floats": (lambda: encoded(Image.fromarray(np.full((40, 50), 0.5, np.float32)), "TIFF"), "8 or 16 bits"),
    "PDF": (lambda: b"%PDF-1.7\n%%EOF", "cannot be read as a picture"),
}
NAMES = [
    "a'b\"c.jpg",
    "../../etc/x.jpg",
    "c:\\x\\y.jpg",
    "line\nbreak.jpg",
    "x" * 300 + ".jpg",
    "猫.jpg",
    "..",
    "-",
    "%00.jpg",
]


@pytest.mark.parametrize("kind", RIGHT)
def test_pictures_of_every_kind_are_labelled_as_the_predictor_does(
    client: TestClient, predictor: Predictor, kind: str
) -> None:
    data = RIGHT[kind]()
    expected = predictor(decode_image(data, Path(kind)).pixels).labels
    found = client.post("/predict", content=data, headers={"Content-Type": "application/json"})
    assert found.status_code == 200, found.text
    assert np.array_equal(decode_mask(found.content, Path(kind)).pixels, expected)


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_gets_one_sentence(client: TestClient, kind: str) -> None:
    make, words = WRONG[kind]
    for given in ({"content": make()}, {"files": {"file": ("photo.jpg", make())}}):
        found = client.post("/predict", **given)
        assert found.status_code == 400
        assert words in found.json()["detail"] and "\n" not in found.json()["detail"]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_names(client: TestClient, name: str) -> None:
    for save in ("labels", "coco"):
        found = client.post("/predict", files={"file": (name, photo())}, params={"save": save})
        assert found.status_code == 200, found.text
        told = found.headers["content-disposition"]
        assert "/" not in told.removeprefix("inline; filename*=UTF-8''") and '"' not in told
        if save == "coco":
            assert "/" not in found.json()["images"][0]["file_name"]


def test_every_kind_of_answer(client: TestClient, predictor: Predictor) -> None:
    expected = predictor(decode_image(photo(), Path("photo.jpg")).pixels)

    def answer(save: str) -> Any:
        return client.post("/predict", content=photo(), params={"save": save, "name": "photo.jpg"})

    facts = answer("json").json()
    assert (facts["width"], facts["height"], facts["shares"]) == (70, 48, expected.shares)
    assert facts["confidence"] == pytest.approx(expected.confidence.mean())
    grey = decode_image(answer("confidence").content, Path("confidence")).pixels[..., 0]
    assert np.abs(grey / 255 - expected.confidence).max() <= 0.5 / 255 + 1e-6
    overlay = decode_image(answer("overlay").content, Path("overlay")).pixels.astype(int)
    assert np.abs(overlay - expected.overlay()).mean() < 10
    features = answer("geojson").json()["features"]
    assert sum(each["properties"]["area"] for each in features) == (expected.labels > 0).sum()
    coco = answer("coco").json()
    assert coco["images"] == [{"id": 1, "file_name": "photo.jpg", "width": 70, "height": 48}]
    assert sum(each["area"] for each in coco["annotations"]) == (expected.labels > 0).sum()


def chunks() -> Iterator[bytes]:
    for _ in range(1000):
        yield bytes(1000)


def basic(word: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{word}".encode()).decode()}


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
REFUSED: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "too many bytes": (413, "POST", "/predict", {"content": bytes(400_000)}),
    "too many chunks": (413, "POST", "/predict", {"content": chunks()}),
    "too many chunks of a form": (413, "POST", "/gradio_api/upload", {"content": chunks(), "headers": FORM}),
    "too many bytes for the page": (413, "POST", "/gradio_api/upload", {"files": {"files": ("x.jpg", bytes(400_000))}}),
    "unknown answer": (400, "POST", "/predict?save=pickle", {"content": b"x"}),
    "form without boundary": (
        400,
        "POST",
        "/predict",
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ),
    "broken form": (400, "POST", "/predict", {"content": b"--y\r\nx", "headers": FORM}),
    "form without file": (400, "POST", "/predict", {"files": {"file": (None, "text")}}),
    "two files": (400, "POST", "/predict", {"files": [("a", ("a.jpg", b"x")), ("b", ("b.jpg", b"x"))]}),
    "no token": (401, "POST", "/predict", {"headers": {"Authorization": ""}}),
    "wrong token": (401, "GET", "/", {"headers": {"Authorization": "Bearer wor"}}),
    "wrong password": (401, "GET", "/", {"headers": basic("wort")}),
    "broken password": (401, "GET", "/", {"headers": {"Authorization": "Basic ?"}}),
    "wrong method": (405, "GET", "/predict", {}),
    "nothing there": (404, "GET", "/nothing/../..//x", {}),
    "foreign file": (400, "GET", "/download?file=../../../../etc/passwd", {}),
    "foreign file by its whole path": (400, "GET", "/download?file=/etc/passwd", {}),
    "file long gone": (400, "GET", "/download?file=abc/x.jpg", {}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_requests_that_are_refused(client: TestClient, kind: str) -> None:
    status, method, where, given = REFUSED[kind]
    found = client.request(method, where, **given)
    assert found.status_code == status, found.text
    assert "\n" not in found.json()["detail"] and "Traceback" not in found.text
    assert client.post("/predict", content=photo()).status_code == 200


@pytest.mark.parametrize("written", ["cssformer.serve.answers.TemporaryDirectory", "os.replace"])
def test_a_full_disk_is_told_as_the_servers_fault(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(written, full)
    found = client.post("/predict", content=photo())
    assert found.status_code == 507 and "disk is full" in found.json()["detail"]
    monkeypatch.undo()
    assert client.post("/predict", content=photo()).status_code == 200


def test_a_slow_upload_gives_its_place_back(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cssformer.serve.app.UPLOAD_SECONDS", 0)
    assert client.post("/predict", content=photo()).status_code == 408
    monkeypatch.undo()
    assert client.post("/predict", content=photo()).status_code == 200


@pytest.mark.parametrize("token", ["", "wört", "a\nb"])
def test_a_token_that_nobody_could_send_is_refused(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no/such/model", "--port", "0", f"--token={token}"]) == 2
    assert "token" in capsys.readouterr().err


def test_the_token_is_also_any_users_password_and_health_needs_none(client: TestClient) -> None:
    assert client.get("/", headers=basic("word")).status_code == 200
    assert client.get("/health", headers={"Authorization": ""}).json()["model"] == "model"


def event(client: TestClient, file: str) -> str:
    """What the page's own interface answers when it is told that this file was uploaded."""
    config = client.get("/config").json()
    (show,) = [
        each["id"] for each in config["dependencies"] if [kind for _, kind in each["targets"]] == ["input", "release"]
    ]
    body = {"data": [{"path": file, "meta": {"_type": "gradio.FileData"}}, "overlay", 0.5], "fn_index": show}
    assert client.post("/gradio_api/queue/join", json={**body, "session_hash": "session"}).status_code == 200
    return client.get("/gradio_api/queue/data?session_hash=session").text


def test_the_page_takes_what_was_uploaded_and_nothing_else(client: TestClient, tmp_path: Path) -> None:
    (sent,) = client.post("/gradio_api/upload", files={"files": ("a'\"<b>.jpg", photo())}).json()
    shown = event(client, sent)
    assert "process_completed" in shown and '"success":true' in shown and "grass &amp; &lt;tree&gt;" in shown
    (link,) = [part.split("'")[0] for part in shown.split("href='") if "save=labels" in part.split("'")[0]]
    assert client.get("/" + link).content == client.post("/predict", content=photo()).content
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo())
    foreign = {str(secret): "not uploaded by a user", "http://1.1.1.1/x.jpg": "Addresses are not fetched"}
    for path, words in foreign.items():
        refused = event(client, path)
        assert '"success":false' in refused and words in refused and "grass" not in refused
    (text,) = client.post("/gradio_api/upload", files={"files": ("text.jpg", b"I am no picture.")}).json()
    assert "text.jpg cannot be read as a picture" in event(client, text)


def test_busy_is_told_and_passes(client: TestClient, service: Service) -> None:
    with service.place():
        found = client.post("/predict", content=photo())
        assert found.status_code == 503 and int(found.headers["retry-after"]) > 0
        assert "busy" in found.json()["detail"]
        (sent,) = client.post("/gradio_api/upload", files={"files": ("photo.jpg", photo())}).json()
        assert "The server is busy" in event(client, sent)
    assert client.post("/predict", content=photo()).status_code == 200


def test_many_at_once_are_done_one_by_one(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    service, here, most = Service(predictor, "model", queue=3), 0, 0
    step = threading.Event()

    def work() -> int:
        nonlocal here, most
        here += 1
        most = max(most, here)
        step.wait(0.01)
        here -= 1
        return threading.get_ident()

    async def ask() -> int | str:
        try:
            with service.place():
                return await service.run(work)
        except Busy as busy:
            return str(busy)

    async def all_of_them() -> list[int | str]:
        return await asyncio.gather(*(ask() for _ in range(6)))

    found = asyncio.run(all_of_them())
    service.close()
    threads, refusals = (
        {each for each in found if isinstance(each, int)},
        [each for each in found if isinstance(each, str)],
    )
    assert most == 1 and len(threads) == 1 and len(refusals) == 2 and "3 pictures wait" in refusals[0]


def test_no_more_pixels_are_kept_than_one_picture_may_have(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    service = Service(predictor, "model", max_megapixels=0.01)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        path.write_bytes(encoded(pixels(60, 60, 3), "PNG"))
    found = [service.uploaded(path) for path in paths]
    assert service.uploaded(paths[3]) is found[3] and service.uploaded(paths[2]) is found[2]
    assert service.uploaded(paths[0]) is not found[0]
    paths[1].unlink()
    with pytest.raises(UserError, match="no longer here"):
        service.uploaded(paths[1])


def test_a_click_on_a_picture_that_is_shown_smaller(service: Service, predictor: Predictor, tmp_path: Path) -> None:
    """Of 3200x40 pixels 1600x20 are shown: pixel 800, 10 of these covers 1600 to 1601, 20 to 21."""
    path = tmp_path / "wide.png"
    path.write_bytes(encoded(pixels(40, 3200, 3), "PNG"))
    shown, _ = _shown(service, tmp_path, path, "overlay", 0.5)
    assert shown.shape == (20, 1600, 3)
    expected = explain(predictor, path, 1601, 21).picture()
    assert np.array_equal(_looks(service, path, 800, 10), expected)


def test_a_short_side_does_not_make_a_thin_picture_huge(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    service = Service(Predictor(predictor.network, "cpu", short_side=64), "model", max_megapixels=0.1)
    assert service.predict(encoded(pixels(16, 16, 3), "PNG"), Path("x")).labels.shape == (16, 16)
    with pytest.raises(UserError, match="x is too thin, 2000 wide and 2 high"):
        service.predict(encoded(pixels(2, 2000, 3), "PNG"), Path("x"))


def test_a_model_of_other_channels_takes_tiffs_of_them(
    client: TestClient, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra geo")
    pytest.importorskip("rasterio", reason="needs the extra geo")
    torch.manual_seed(0)
    facts: dict[str, Any] = {"mean": (3e4,) * 5, "std": (2e4,) * 5}
    network = CSSFormer("test_resnet", 4, channels=16, heads=2, points=3, aux=False, in_channels=5, **facts)
    network.metadata = Metadata(classes=CLASSES, channels=Channels("uint16", *facts.values()))
    own = Predictor(network, "cpu")
    monkeypatch.setattr(service, "predictor", own)
    bands, path = pixels(40, 60, 5, dtype=np.uint16), tmp_path / "five.tif"
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    found = client.post("/predict", content=path.read_bytes())
    assert found.status_code == 200, found.text
    expected = own(bands)
    assert np.array_equal(decode_mask(found.content, Path("labels")).pixels, expected.labels)
    shown, _ = _shown(service, tmp_path, path, "overlay", 0.5)
    assert np.array_equal(shown, expected.overlay())
    assert np.array_equal(_looks(service, path, 7, 9), explain(own, path, 7, 9).picture())
    tifffile.imwrite(path, pixels(40, 60, 6, dtype=np.uint16), photometric="minisblack", planarconfig="contig")
    for data, words in {path.read_bytes(): "has 6 channels", photo(): "has 3 channels of uint8"}.items():
        refused = client.post("/predict", content=data)
        assert refused.status_code == 400 and f"{words}, but 5 channels of uint16 are wanted" in refused.text


def test_the_oldest_uploads_go_for_new_ones(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / str(number) / "photo.jpg"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))

    def left() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.rglob("*.jpg"))

    make_room(tmp_path, 450, 9)
    assert left() == ["1", "2", "3", "4"]
    make_room(tmp_path, 450, 2)
    assert left() == ["3", "4"]


def test_the_description_names_every_answer_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "POST /predict" in page.text and "labels | overlay | confidence | json | geojson | coco" in page.text
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/health"}
    assert "multipart/form-data" in json.dumps(schema["paths"]["/predict"]["post"]["requestBody"])
    assert "src=" not in page.text and page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "googleapis" not in client.get("/").text + client.get("/theme.css").text
