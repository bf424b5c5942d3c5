"""Files of every kind of values and layout: as tifffile, rasterio and Pillow read them, or one sentence."""

import io
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from cssformer.data.bands import decode_bands, decode_pixels, is_photograph
from cssformer.data.image_io import decode_image, decode_mask, read_size
from cssformer.utils.errors import UserError
from tests.data.drawn import upright

rasterio = pytest.importorskip("rasterio", reason="rasterio reads these files")
tifffile = pytest.importorskip("tifffile", reason="tifffile writes these files")

FILE = Path("some/file")
SIZE = 20, 33


def values(kind: str, count: int) -> np.ndarray:
    """(count, H, W) over the whole range of a type."""
    rng = np.random.default_rng(count)
    if np.dtype(kind).kind == "f":
        return rng.normal(0, 1000, (count, *SIZE)).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, (count, *SIZE), dtype=kind, endpoint=True)


def by_tifffile(bands: np.ndarray, photometric: str = "minisblack", **options: object) -> bytes:
    file, separate = io.BytesIO(), options.get("planarconfig") == "separate"
    shaped = bands if separate else np.moveaxis(bands, 0, -1)
    if len(bands) > 1 and not separate:
        options["planarconfig"] = "contig"
    tifffile.imwrite(file, shaped if len(bands) > 1 else bands[0], photometric=photometric, metadata=None, **options)
    return file.getvalue()


def by_rasterio(bands: np.ndarray, **options: object) -> bytes:
    with rasterio.MemoryFile() as file:
        size = {
            "count": len(bands),
            "height": SIZE[0],
            "width": SIZE[1],
            "transform": rasterio.Affine(1, 0, 5, 0, -1, 5),
        }
        with file.open(driver="GTiff", dtype=bands.dtype, **size, **options) as written:
            written.write(bands)
        return bytes(file.read())


TIFFS = {
    **{f"1 channel of {kind}": (kind, 1, {}) for kind in ("uint8", "uint16", "int16", "uint32", "int32")},
    **{f"1 channel of {kind}": (kind, 1, {}) for kind in ("float32", "float64")},
    **{f"{count} channels of {kind}": (kind, count, {}) for count in (2, 4, 5) for kind in ("uint8", "uint16")},
    "5 channels of float32": ("float32", 5, {}),
    "RGB of 8 bits": ("uint8", 3, {"photometric": "rgb"}),
    "RGB of 16 bits": ("uint16", 3, {"photometric": "rgb"}),
    "RGB of 8 bits, planar": ("uint8", 3, {"photometric": "rgb", "planarconfig": "separate"}),
    "RGB of 16 bits, planar": ("uint16", 3, {"photometric": "rgb", "planarconfig": "separate"}),
    "5 channels, planar": ("uint16", 5, {"planarconfig": "separate"}),
    "RGB, tiled": ("uint8", 3, {"photometric": "rgb", "tile": (16, 16)}),
    "5 channels, planar, tiled": ("uint16", 5, {"planarconfig": "separate", "tile": (16, 16)}),
    "grey, big-endian": ("uint16", 1, {"byteorder": ">"}),
    "5 channels, big-endian": ("float32", 5, {"byteorder": ">"}),
    "RGB, BigTIFF": ("uint8", 3, {"photometric": "rgb", "bigtiff": True}),
    "RGB, big-endian BigTIFF": ("uint8", 3, {"photometric": "rgb", "bigtiff": True, "byteorder": ">"}),
    "grey of 16 bits, big-endian BigTIFF": ("uint16", 1, {"bigtiff": True, "byteorder": ">"}),
    "white is zero, big-endian BigTIFF": (
        "uint8",
        1,
        {"photometric": "miniswhite", "bigtiff": True, "byteorder": ">"},
    ),
    "5 channels, big-endian BigTIFF": ("uint16", 5, {"bigtiff": True, "byteorder": ">"}),
    "white is zero": ("uint8", 1, {"photometric": "miniswhite"}),
    "RGB, deflate": ("uint8", 3, {"photometric": "rgb", "compression": "zlib"}),
    **{f"orientation {turn}": ("uint16", 5, {"extratags": [(274, 3, 1, turn, True)]}) for turn in (2, 3, 5, 6, 8)},
    "LZW": ("uint16", 5, {"compress": "lzw"}),
    "LZW of differences, tiled": ("uint16", 5, {"compress": "lzw", "predictor": 2, "tiled": True}),
    "deflate of floating-point differences": ("float32", 5, {"compress": "deflate", "predictor": 3}),
    "PackBits": ("uint8", 5, {"compress": "packbits"}),
    "Zstandard": ("uint16", 5, {"compress": "zstd"}),
}


@pytest.mark.parametrize("case", TIFFS)
def test_tiffs_hold_what_was_written(case: str) -> None:
    kind, count, options = TIFFS[case]
    bands = values(kind, count)
    data = by_rasterio(bands, **options) if "compress" in options else by_tifffile(bands, **options)
    if "compress" not in options:
        read = tifffile.imread(io.BytesIO(data))
        separate = count > 1 and options.get("planarconfig") != "separate"
        assert np.array_equal(np.moveaxis(read, -1, 0) if separate else read.reshape(bands.shape), bands)
    turn = options.get("extratags", [(0, 0, 0, 1)])[0][3]
    expected = np.moveaxis(upright(np.moveaxis(bands, 0, -1), turn), -1, 0)
    found = decode_bands(data, FILE)
    assert found.values.dtype == bands.dtype and np.array_equal(found.values, expected)
    grey_or_rgb = kind in ("uint8", "uint16") and (count == 1 or options.get("photometric") == "rgb")
    assert is_photograph(data) == grey_or_rgb
    if not grey_or_rgb:
        with pytest.raises(UserError, match=rf"some/file has {count} bands? of \d+-bit.*; give grey or RGB"):
            decode_image(data, FILE)
        return
    shown = np.moveaxis(expected // (256 if kind == "uint16" else 1), 0, -1).astype(np.uint8)
    shown = 255 - shown if options.get("photometric") == "miniswhite" else shown
    assert np.array_equal(decode_image(data, FILE).pixels, np.broadcast_to(shown, (*SIZE, 3)))


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_bits_of_a_part_of_a_byte(bits: int) -> None:
    bands = values("uint16", 1) % 2**bits
    data = by_rasterio(bands if bits > 8 else bands.astype(np.uint8), nbits=bits)
    assert np.array_equal(decode_bands(data, FILE).values, bands)
    whole = bands[0].astype(int)
    shown = whole >> 4 if bits == 12 else whole * 255 // (2**bits - 1)
    assert np.array_equal(decode_image(data, FILE).pixels[..., 1], shown)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("mode", "kind"), [("P", "TIFF"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")])
def test_indices_and_inks_are_no_channels(mode: str, kind: str) -> None:
    rgb = np.moveaxis(values("uint8", 3), 0, -1)
    picture = Image.fromarray(rgb).convert(mode)
    data = saved(picture, kind)
    with pytest.raises(UserError, match="some/file holds no channels"):
        decode_bands(data, FILE)
    if mode != "YCbCr" or int(PIL.__version__.split(".")[0]) >= 13:  # older ones do not read what they wrote
        assert np.array_equal(decode_image(data, FILE).pixels, np.array(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pngs_hold_the_channels_that_pillow_reads(mode: str) -> None:
    array = values("uint16", 1)[0] if mode == "I;16" else np.moveaxis(values("uint8", len(mode)), 0, -1).squeeze()
    data = saved(Image.fromarray(array), "PNG")
    assert np.array_equal(decode_bands(data, FILE).values, np.moveaxis(array.reshape(*SIZE, -1), -1, 0))


def test_the_first_of_several_pages_is_read() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number in range(3):
            each = np.moveaxis(values("uint16", 5), 0, -1) + np.uint16(number)
            writer.write(each, photometric="minisblack", planarconfig="contig")
    found = decode_bands(file.getvalue(), FILE)
    assert np.array_equal(found.values, values("uint16", 5)) and found.facts.pages == 3


def test_sizes_are_told_without_decoding(tmp_path: Path) -> None:
    for turn, size in ((1, (33, 20)), (6, (20, 33))):
        path = tmp_path / f"{turn}.tif"
        path.write_bytes(by_tifffile(values("uint16", 5), extratags=[(274, 3, 1, turn, True)]))
        assert read_size(path) == size


def test_damage_is_one_sentence() -> None:
    data = by_rasterio(values("uint16", 5), compress="deflate")
    for broken in (data[: len(data) // 2], data[:200], data[:-20] + bytes(20)):
        with pytest.raises(UserError, match=r"some/file cannot be read as a picture; .*") as caught:
            decode_bands(broken, FILE)
        assert "\n" not in str(caught.value)


def test_photographs_tell_where_they_have_no_data() -> None:
    bands = values("uint8", 3)
    bands[:, :4, :5] = 0
    bands[0, 10, 10] = 0
    data = by_rasterio(bands, photometric="rgb", nodata=0)
    (pixels, missing), _ = decode_pixels(data, FILE, None)
    assert np.array_equal(pixels, np.moveaxis(bands, 0, -1)) and np.array_equal(missing, (bands == 0).all(axis=0))


@pytest.mark.parametrize(("kind", "nodata"), [("uint8", 0), ("uint8", 255), ("int16", -9999), ("uint16", 65535)])
def test_masks_without_data_are_transparent_there(kind: str, nodata: int) -> None:
    ids = (values("uint8", 1) % 3 + 1).astype(kind)
    ids[0, :3, :4] = nodata
    mask = decode_mask(by_rasterio(ids, nodata=nodata), FILE)
    void = ids[0] == nodata
    # What is ignored anyway is a value like others.
    if nodata in (255, 65535):
        assert mask.transparent is None and np.array_equal(mask.ids(FILE), ids[0])
    else:
        assert np.array_equal(mask.transparent, void) and np.array_equal(mask.ids(FILE, 7), np.where(void, 7, ids[0]))
