"""TIFFs with a place on the Earth, and TIFFs read and written part by part, with a tiny saved network."""

import csv
import errno
import json
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.rpc import RPC
from rasterio.warp import transform_geom

from cssformer.cli import main
from cssformer.data import rasters as files
from cssformer.data.channels import Channels
from cssformer.inference import Predictor, predict_files, rasters, views
from cssformer.model import CSSFormer, Metadata
from cssformer.utils.errors import UserError

CLASSES, COLOURS = ("sky", "tree", "road"), ((10, 20, 230), (20, 200, 30), (90, 90, 90))
HEIGHT, WIDTH = 200, 310
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}


def save_model(folder: Path, metadata: Metadata, **options: Any) -> Path:
    torch.manual_seed(1)
    model = CSSFormer("test_resnet", num_classes=3, channels=16, cia=False, fusion=False, **options)
    model.metadata = metadata
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inference = {"mode": "slide", "crop": [64, 64]}
    return save_model(tmp_path_factory.mktemp("model"), Metadata(CLASSES, COLOURS, (7, 8, 9), inference=inference))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every TIFF is too large; blocks and bands are small."""
    monkeypatch.setattr(files, "LARGE", 1000)
    for module in (files, rasters):
        monkeypatch.setattr(module, "TILE", 64)
    monkeypatch.setattr(views, "BAND_WINDOWS", 2)


def bands(count: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(1, 256, (9, 12, count), dtype=np.uint8)
    return np.moveaxis(cv2.resize(small, (WIDTH, HEIGHT)).reshape(HEIGHT, WIDTH, count), -1, 0).astype(np.uint8)


def write(path: Path, values: NDArray[Any], after: Callable[[Any], None] = lambda file: None, **options: Any) -> Path:
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    count, height, width = values.shape
    photometric = {"photometric": "rgb"} if count == 3 else {}
    profile = {"count": count, "height": height, "width": width, "dtype": values.dtype, **photometric, **tiles}
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **{**profile, **options}) as file:
            file.write(values)
            after(file)
    return path


def build_overviews(file: Any, levels: list[int]) -> None:
    file.build_overviews(levels, Resampling.nearest)


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        return file.read()


def predicted(model: Path, inputs: list[Path], output: Path, **options: Any) -> dict[str, Any]:
    return predict_files(str(model), inputs, output, overlay=True, confidence=True, device="cpu", **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_geotiff_keeps_its_place_and_is_labelled_as_the_array(model_folder: Path, tmp_path: Path) -> None:
    values = bands()
    values[:, 20:60, 30:90] = 0
    write(tmp_path / "in/a.tif", values, partial(build_overviews, levels=[2, 4]), nodata=0, **PLACE)
    result = predicted(model_folder, [tmp_path / "in"], tmp_path / "out")
    expected = Predictor.from_pretrained(model_folder, "cpu")(np.moveaxis(values, 0, -1))
    empty = (values == 0).all(0)
    with rasterio.open(tmp_path / "out/labels/a.tif") as file:
        labels = file.read(1)
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(32633), PLACE["transform"])
        assert (file.nodata, file.overviews(1), file.tags(1)["CLASS_1"]) == (255, [2, 4], "tree")
        assert [file.colormap(1)[index][:3] for index in range(3)] == list(COLOURS)
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
    np.testing.assert_array_equal(labels, np.where(empty, 255, expected.labels))
    certain = read(tmp_path / "out/confidence/a.tif")[0]
    assert expected.confidence is not None
    np.testing.assert_allclose(certain / 255, np.where(empty, 0, expected.confidence), atol=0.5 / 255 + 1e-6)
    overlay = read(tmp_path / "out/overlay/a.tif")
    np.testing.assert_array_equal(overlay[:, 25:55, 35:85], 0)
    assert (overlay[:, 70:] != values[:, 70:]).mean() > 0.9
    shares = result["files"][0]["shares"]
    assert shares == {name: pytest.approx((labels == CLASSES.index(name)).sum() / (~empty).sum()) for name in shares}
    # A picture without any data does not count in the mean.
    write(tmp_path / "in/none.tif", 0 * values, nodata=0, **PLACE)
    both = predict_files(str(model_folder), [tmp_path / "in"], tmp_path / "both", device="cpu")
    assert both["pictures"] == 2 and {name: share for name, share in both["shares"].items() if share} == shares
    assert sorted(content(tmp_path / "out")) == ["confidence/a.tif", "labels/a.tif", "legend.png", "overlay/a.tif"]


def test_a_table_tells_pixels_and_the_area_of_one(model_folder: Path, tmp_path: Path) -> None:
    values = bands()
    values[:, 20:60, 30:90] = 0
    write(tmp_path / "in/a.tif", values, nodata=0, **PLACE)
    Image.fromarray(np.moveaxis(values, 0, -1)[:80]).save(tmp_path / "in/b.png")
    table = tmp_path / "areas.csv"
    result = predict_files(str(model_folder), [tmp_path / "in"], tmp_path / "out", device="cpu", table=table)
    with table.open(newline="") as file:
        placed, photo = csv.DictReader(file)
    labels = read(tmp_path / "out/labels/a.tif")[0], np.asarray(Image.open(tmp_path / "out/labels/b.png"))
    for row, found, reported in zip((placed, photo), labels, result["files"], strict=True):
        counts = [np.count_nonzero(found == index) for index in range(3)]
        assert [int(row[name]) for name in CLASSES] == counts and row["picture"] == reported["input"]
        assert int(row["pixels"]) == sum(counts) == np.count_nonzero(found != 255)
        assert reported["pixels"] == {name: count for name, count in zip(CLASSES, counts, strict=True) if count}
    # 100 km from the central meridian the scale is 0.9996 (1 + 100² / (2 · 6378²)), to a millionth.
    assert float(placed["pixel_m2"]) == pytest.approx((0.5 / (0.9996 * (1 + 100**2 / (2 * 6378**2)))) ** 2, rel=4e-6)
    assert photo["pixel_m2"] == ""
    for words in ({"table": tmp_path / "areas.tif"}, {"table": table, "skip_existing": True}):
        with pytest.raises(UserError, match=r"ends in \.csv|all pictures at once"):
            predict_files(str(model_folder), [tmp_path / "in"], tmp_path / "out", device="cpu", **words)


# The area that pyproj's Geod (GeographicLib) gives of the quadrilateral of the middle pixel.
@pytest.mark.parametrize(
    ("crs", "affine", "expected"),
    [
        ("EPSG:3857", (0.1, 0, 1283000, 0, -0.1, 6130000), 0.0044564807),
        ("EPSG:4326", (1e-6, 0, 11.5, 0, -1e-6, 48), 0.0082976331),
        ("EPSG:4326", (1e-6, 0, 179.99985, 0, -1e-6, 48), 0.0082976331),
        ("EPSG:2263", (1, 0, 1e6, 0, -1, 2e5), 0.0929038479),
    ],
    ids=["Web Mercator", "degrees", "the date line", "feet"],
)
def test_area_of_a_pixel(tmp_path: Path, crs: str, affine: tuple[float, ...], expected: float) -> None:
    write(tmp_path / "a.tif", bands(), crs=crs, transform=rasterio.Affine(*affine))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert files.pixel_area(file) == pytest.approx(expected, rel=1e-6)


LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
MOON = "+proj=eqc +R=1737400 +units=m"


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        (LOCAL, (1, 0, 0, 0, -1, 100)),
        (MOON, (1, 0, 0, 0, -1, 100)),
        ("EPSG:25832", (1, 0, 9e9, 0, -1, 9e9)),
        ("EPSG:4326", (1, 0, 0, 0, -1, 300)),
        ("EPSG:25832", (1, 0, 0, 0, 1, 0)),
    ],
    ids=["a site", "the Moon", "outside", "above the pole", "no transform"],
)
def test_a_pixel_without_a_place_on_the_earth_has_no_area(tmp_path: Path, crs: str, affine: tuple[float, ...]) -> None:
    write(tmp_path / "a.tif", bands(), crs=crs, transform=rasterio.Affine(*affine))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert files.pixel_area(file) is None


def test_a_raster_in_coordinates_of_its_own_is_predicted_but_not_outlined(model_folder: Path, tmp_path: Path) -> None:
    """Those of a drone's flight over a building site, say."""
    path = write(tmp_path / "a.tif", bands(), crs=LOCAL, transform=rasterio.Affine(1, 0, 0, 0, -1, 100))
    found = predict_files(str(model_folder), [path], tmp_path / "out", device="cpu", table=tmp_path / "a.csv")
    assert found["files"][0]["pixel_m2"] is None and (tmp_path / "a.csv").read_text().splitlines()[1].endswith(",")
    with pytest.raises(UserError, match=r"a\.tif cannot be told in degrees.*leave geojson out"):
        predict_files(str(model_folder), [path], tmp_path / "json", device="cpu", save=["geojson"])


def test_outlines_of_a_geotiff_lie_on_the_earth(model_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", bands(), **PLACE)
    write(tmp_path / "in/b.tif", bands(), transform=PLACE["transform"])
    predict_files(str(model_folder), [tmp_path / "in"], tmp_path / "out", device="cpu", save=["geojson"], tolerance=0)
    for name in ("a", "b"):
        with rasterio.open(tmp_path / f"out/labels/{name}.tif") as file:
            labels, crs, transform = file.read(1), file.crs, file.transform
        drawn = []
        for each in json.loads((tmp_path / f"out/geojson/{name}.geojson").read_text())["features"]:
            # Without a CRS nobody knows the degrees: pixels, as of any picture.
            outline = transform_geom("EPSG:4326", crs, each["geometry"]) if crs else each["geometry"]
            drawn.append((outline, each["properties"]["index"]))
        found = rasterize(drawn, labels.shape, 255, transform=transform if crs else rasterio.Affine.identity())
        np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize(("name", "world"), [("a.tif", "a.tfw"), ("a.TIF", "a.wld"), ("a.tiff", "a.TFW")])
def test_a_tiff_keeps_the_place_that_a_world_file_tells(
    name: str, world: str, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / name, np.moveaxis(bands(), 0, -1), photometric="rgb")
    (tmp_path / "in" / world).write_text("10\n0\n0\n-10\n500005\n4999995\n")
    predicted(model_folder, [tmp_path / "in"], tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == ["confidence/a.tif", "labels/a.tif", "legend.png", "overlay/a.tif"]
    for path in (tmp_path / "out").glob("*/*.tif"):
        with rasterio.open(path) as file:
            assert file.transform == rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000) and file.crs is None


@pytest.mark.parametrize(("name", "world"), [("a.b.jpg", "a.b.jgw"), ("a.b.jpeg", "a.b.jpegw"), ("a.b.PNG", "a.b.PGW")])
def test_world_files_of_other_pictures_lie_beside_their_predictions(
    name: str, world: str, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.moveaxis(bands(), 0, -1)).save(tmp_path / "in" / name)
    (tmp_path / "in" / world).write_text("10\n0\n0\n-10\n500005\n4999995\n")
    predicted(model_folder, [tmp_path / "in"], tmp_path / "out")
    found = [path for path in (tmp_path / "out").glob("*/*") if path.suffix in (".png", ".jpg")]
    assert len(found) == 3
    for path in found:
        with rasterio.open(path) as file:
            assert file.transform == rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)


def test_a_thread_that_ends_brings_back_no_warning_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(bands(), 0, -1), photometric="rgb")
    begun, ended = Event(), Event()

    def first() -> None:
        with files.opened(path):
            begun.set()
            assert ended.wait(60)

    def second(*words: Any, **options: Any) -> Any:
        """Opens, after the first has ended."""
        ended.set()
        other.join()
        return opened(*words, **options)

    opened, other = rasterio.open, Thread(target=first)
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        other.start()
        assert begun.wait(60)
        monkeypatch.setattr(rasterio, "open", second)
        with files.opened(path) as file:
            assert file.count == 3
    assert not told


def test_points_and_rpcs_are_kept(model_folder: Path, tmp_path: Path) -> None:
    points = [GroundControlPoint(0, 0, 10, 50), GroundControlPoint(0, 90, 11, 50), GroundControlPoint(80, 0, 10, 49)]
    curve = [1.0] * 20
    rpc = RPC(1, 2, 3, 4, curve, curve, 5, 6, 7, 8, curve, curve, 9, 10)
    write(tmp_path / "in/points.tif", bands(), lambda f: setattr(f, "gcps", (points, rasterio.CRS.from_epsg(4326))))
    write(tmp_path / "in/rpc.tif", bands(), lambda f: setattr(f, "rpcs", rpc))
    write(tmp_path / "in/plain.tif", bands())
    predicted(model_folder, [tmp_path / "in"], tmp_path / "out")
    for kind in ("labels", "overlay", "confidence"):
        for name in ("points", "rpc"):
            with (
                rasterio.open(tmp_path / f"out/{kind}/{name}.tif") as file,
                rasterio.open(tmp_path / f"in/{name}.tif") as of,
            ):
                assert [each.asdict() for each in file.gcps[0]] == [each.asdict() for each in of.gcps[0]]
                assert (file.gcps[1], file.rpcs) == (of.gcps[1], of.rpcs)
    assert (tmp_path / "out/labels/plain.png").is_file()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_parts_do_not_show(
    dtype: type, model_folder: Path, tmp_path: Path, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks and bands of two sizes, of 8 and 16 bits, the files are those of the whole picture."""
    values = bands().astype(dtype) << (0 if dtype == np.uint8 else 8)
    values[:, 20:90, 30:90] = 0
    write(tmp_path / "a.tif", values, nodata=0, **PLACE)
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "parts")
    monkeypatch.setattr(views, "BAND_WINDOWS", 3)
    monkeypatch.setattr(rasters, "TILE", 128)
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "others")
    monkeypatch.setattr(files, "LARGE", 10**9)
    monkeypatch.setattr(views, "BAND_WINDOWS", 8)
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "whole")
    whole = content(tmp_path / "whole")
    assert whole.keys() == content(tmp_path / "parts").keys() == content(tmp_path / "others").keys()
    for kind in ("labels", "overlay", "confidence"):
        expected = read(tmp_path / f"whole/{kind}/a.tif").astype(int)
        for output in ("parts", "others"):
            found = read(tmp_path / f"{output}/{kind}/a.tif").astype(int)
            # Batches of other windows round otherwise.
            assert (np.abs(found - expected) > (kind == "confidence")).mean() < 1e-3


class Stopped(BaseException):
    """As a signal, no error."""


def test_a_stopped_raster_is_gone_on_with(
    model_folder: Path, tmp_path: Path, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, wherever it stops, and without the windows of finished blocks."""
    write(tmp_path / "a.tif", bands(), **PLACE)
    windows: list[int] = []
    most = {"windows": 10**9}
    forward = views._Network.__call__

    def counted(network: Any, images: torch.Tensor) -> torch.Tensor:
        if len(windows) >= most["windows"]:
            raise Stopped
        windows.append(len(images))
        return forward(network, images)

    monkeypatch.setattr(views._Network, "__call__", counted)
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "once")
    calls = len(windows)
    for most["windows"] in range(calls // 4, calls // 2, calls // 8):
        windows.clear()
        with pytest.raises(Stopped):
            predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "again")
    assert not (tmp_path / "again/labels").exists()
    windows.clear()
    most["windows"] = 10**9
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "again")
    assert len(windows) <= calls - 4
    assert content(tmp_path / "again") == content(tmp_path / "once")

    most["windows"] = len(windows) + calls // 2
    with pytest.raises(Stopped):
        predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "third")
    # Of another file nothing is gone on with.
    windows.clear()
    most["windows"] = 10**9
    write(tmp_path / "a.tif", bands(seed=2), **PLACE)
    predicted(model_folder, [tmp_path / "a.tif"], tmp_path / "third")
    assert len(windows) == calls


def test_channels_of_any_type_in_parts(tmp_path: Path, parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    values = bands(5).astype(np.float32) * 3
    values[:, :40, :50] = np.nan
    values[1, 100:, 200:] = -9999
    channels = Channels("float32", (400.0,) * 5, (150.0,) * 5)
    metadata = Metadata(CLASSES, COLOURS, inference={"mode": "slide", "crop": [64, 64]}, channels=channels)
    model = save_model(tmp_path / "model", metadata, in_channels=5, mean=channels.mean, std=channels.std)
    write(tmp_path / "a.tif", values, nodata=-9999, **PLACE)
    predicted(model, [tmp_path / "a.tif"], tmp_path / "parts")
    monkeypatch.setattr(files, "LARGE", 10**9)
    predicted(model, [tmp_path / "a.tif"], tmp_path / "whole")
    for kind in ("labels", "confidence", "overlay"):
        found, expected = (read(tmp_path / f"{name}/{kind}/a.tif").astype(int) for name in ("parts", "whole"))
        assert (np.abs(found - expected) > (kind != "labels")).mean() < 1e-3
    assert (expected_labels := read(tmp_path / "whole/labels/a.tif")[0])[:40, :50].min() == 255
    assert expected_labels[40:].max() < 255


def test_ids_of_the_source_and_a_model_of_whole_pictures(tmp_path: Path, parts: None) -> None:
    model = save_model(tmp_path / "model", Metadata(CLASSES, COLOURS, (7, 300, 9), inference={"crop": [64, 96]}))
    pages = np.stack([np.moveaxis(bands(), 0, -1)] * 2)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb", tile=(64, 64))
    result = predict_files(str(model), [tmp_path / "a.tif"], tmp_path / "out", raw=True, device="cpu")
    with rasterio.open(tmp_path / "out/labels/a.tif") as file:
        assert (file.dtypes[0], file.nodata, file.tags(1)["CLASS_300"]) == ("uint16", 65535, "tree")
        assert set(np.unique(file.read(1))) <= {7, 300, 9}
    # Masks of 0 and 65535 give such ids; what is found may not become what has no data.
    model = save_model(tmp_path / "binary", Metadata(CLASSES, COLOURS, (0, 65535, 65534), inference={"crop": [64, 96]}))
    predict_files(str(model), [tmp_path / "a.tif"], tmp_path / "binary-out", raw=True, device="cpu")
    with rasterio.open(tmp_path / "binary-out/labels/a.tif") as file:
        assert file.nodata == 65533 and set(np.unique(file.read(1))) <= {0, 65534, 65535}
    assert result["notes"] == [
        f"1 picture has several pages or frames, of which the first is read: {tmp_path / 'a.tif'} is the first.",
        f"A window of 96x64 pixels slid over {tmp_path / 'a.tif'}, too large to be looked at as a whole; --mode slide "
        "--crop sets another.",
    ]


def test_what_cannot_be_read_in_parts_is_told(
    model_folder: Path, tmp_path: Path, parts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    whole = write(folder / "whole.tif", bands(), **PLACE)
    write(folder / "five.tif", bands(5))
    write(folder / "float.tif", bands().astype(np.float32))
    write(folder / "palette.tif", bands(1), lambda f: f.write_colormap(1, {0: (1, 2, 3)}), photometric="palette")
    noise = np.random.default_rng(0).integers(1, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    data = write(folder / "cut.tif", noise).read_bytes()
    (folder / "cut.tif").write_bytes(data[: len(data) // 2])
    flipped = bytearray(write(folder / "flipped.tif", noise).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.tif").write_bytes(flipped)
    with pytest.raises(UserError, match=r"cut\.tif cannot be read; it is truncated, damaged or no TIFF"):
        predicted(model_folder, [folder / "cut.tif"], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert main(["predict", str(model_folder), str(folder), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    for name, why in (
        ("five", "has 5 channels of uint8"),
        ("float", "has 3 channels of float32"),
        ("palette", r"has 1 channel of uint8 (palette)"),
        ("cut", "cannot be read; it is truncated"),
        ("flipped", "cannot be read; it is truncated, damaged"),
    ):
        assert f"error: {folder / name}.tif {why}" in told
    assert sorted(content(tmp_path / "out")) == ["labels/whole.tif", "legend.png"]
    assert not (tmp_path / "out/.cssformer-parts").exists()
    with pytest.raises(UserError, match="too large for annotations"):
        predict_files(str(model_folder), [whole], tmp_path / "saved", save=["coco"], device="cpu")


def test_a_single_large_piece_is_told(
    model_folder: Path, tmp_path: Path, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tif", bands(), tiled=False, blockxsize=None, blockysize=HEIGHT)
    monkeypatch.setattr(files, "CACHE_MB", 0.1)
    with pytest.raises(UserError, match=r"stored in pieces of 310x200 pixels, .* TILED=YES"):
        predict_files(str(model_folder), [path], tmp_path / "out", device="cpu")


@pytest.mark.parametrize("address", ["https://example.org/a.tif", "/vsicurl/https://example.org/a.tif", "s3://b/a.tif"])
def test_addresses_are_refused(address: str, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file or folder"):
        predict_files(str(model_folder), [Path(address)], tmp_path / "out")


def test_a_geotiff_that_is_there_is_skipped(model_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", bands(), **PLACE)
    predicted(model_folder, [tmp_path / "in"], tmp_path / "out")
    write(tmp_path / "in/b.tif", bands(), **PLACE)
    assert predicted(model_folder, [tmp_path / "in"], tmp_path / "out", skip_existing=True)["skipped"] == 1


def test_a_fourth_channel_called_alpha_hides_nothing(tmp_path: Path) -> None:
    """GDAL calls the last of four bands of 8 bits alpha, be it near infrared."""
    channels = Channels("uint8", (100.0,) * 4, (50.0,) * 4)
    model = save_model(tmp_path / "model", Metadata(CLASSES, COLOURS, channels=channels), in_channels=4)
    values = bands(4)
    values[3, :50] = 0
    path = write(tmp_path / "scene.tif", values, **PLACE)
    with rasterio.open(path) as file:
        assert file.colorinterp[3].name == "alpha"
    predict_files(str(model), [path], tmp_path / "out", device="cpu")
    with rasterio.open(tmp_path / "out/labels/scene.tif") as file:
        found = file.read(1)
    expected = Predictor.from_pretrained(model, "cpu")(np.moveaxis(values, 0, -1)).labels
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("missing", [1, 20, 1000, 50_000])
def test_a_raster_that_is_not_written_to_its_end_is_told(
    missing: int, tmp_path: Path, no_file_above: Callable[[int], AbstractContextManager[None]]
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    with files.opened(write(tmp_path / "like.tif", bands(), **PLACE)) as like:
        files.write_raster(tmp_path / "whole.tif", like, [values], classes={0: "sky"})
        size = (tmp_path / "whole.tif").stat().st_size
        with no_file_above(size - missing), pytest.raises(UserError, match=r"Cannot write .*part\.tif: File") as told:
            files.write_raster(tmp_path / "part.tif", like, [values], classes={0: "sky"})
    # By this number a full disk is known, which ends the command.
    assert isinstance(told.value.__cause__, OSError) and told.value.__cause__.errno == errno.EFBIG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like.tif", "whole.tif"]


def test_what_cannot_be_read_while_another_file_is_written_is_told_of_the_one_that_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    path = write(tmp_path / "cut.tif", noise, **PLACE)
    with pytest.raises(UserError, match=r"cut\.tif cannot be read"), files.opened(path) as source:
        raster = files.Raster(source, path, None)
        os.truncate(path, 40_000)
        strips = (raster.view(top, top + 50, 0, WIDTH) for top in range(0, HEIGHT, 50))
        files.write_raster(tmp_path / "out.tif", source, strips)
    assert not (tmp_path / "out.tif").exists()
