"""Pictures and masks of every kind of file: the pixels drawn, or one sentence that names the file."""

import io
import itertools
import os
import struct
import sys
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssformer.data.bands import read_pixels
from cssformer.data.files import files_under, is_picture, read_bytes
from cssformer.data.formats import as_stored, tiff_pages
from cssformer.data.image_io import (
    decode_image,
    decode_mask,
    encode_png,
    inspect_image,
    read_ids,
    read_size,
    to_rgb,
    turned,
    write_image,
    write_label,
)
from cssformer.data.picture_facts import PictureFacts, notes
from cssformer.utils.errors import UserError
from tests.data.drawn import CONTENTS, FORMS, drawn_mask, saved, upright
from tests.data.encoders import bmp, png, tiff

FILE = Path("some/file")


def read_as_photograph(path: Path) -> np.ndarray:
    return read_pixels(path, None)[0].pixels


def smooth(height: int = 24, width: int = 40) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_masks_are_what_was_drawn_or_refused(form):
    """Pillow 13.0 stretches grey of 2 and 4 bits, inverts white-is-zero, and misreads black-and-white bitmaps."""
    read = 0
    for kind in itertools.product(FORMS[form], CONTENTS, range(1, 9), range(3)):
        drawn = drawn_mask(form, *kind[:3], *(np.random.default_rng((*kind[::2], of)) for of in (0, 1)))
        try:
            mask = decode_mask(drawn.data, FILE)
            found = mask.ids(FILE, -1) if drawn.values.ndim == 2 else mask.colours(FILE, -1)
        except UserError as error:
            assert drawn.refused is not False and str(FILE) in str(error), f"{kind}: {error}"
            continue
        assert not drawn.refused, kind
        read += 1
        values = drawn.values if drawn.values.ndim == 2 else drawn.values @ (1 << 16, 1 << 8, 1)
        assert np.array_equal(found, np.where(drawn.transparent, -1, values)), kind
    assert read > 20


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "u4", "i1", "i2", "i4"])
@pytest.mark.parametrize(
    "how", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}, {"compression": "zlib"}]
)
def test_tiffs_of_tifffile_hold_the_ids_stored(photometric, dtype, how):
    tifffile = pytest.importorskip("tifffile", reason="tifffile writes these files")
    ids = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (21, 33)).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, ids, photometric=photometric, **how)
    if dtype == "u4" and "byteorder" in how:
        with pytest.raises(UserError, match="1 band of 32-bit grey values"):
            read_ids(file.getvalue(), FILE)
        return
    assert np.array_equal(read_ids(file.getvalue(), FILE), ids)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs(compression):
    ids = np.random.default_rng(0).integers(0, 256, (21, 33))
    assert np.array_equal(read_ids(saved(ids, "TIFF", compression=compression), FILE), ids)


def test_overviews_are_no_pages():
    ids = np.random.default_rng(0).integers(0, 9, (20, 30))
    assert np.array_equal(read_ids(tiff(ids, pages=3, overviews=True), FILE), ids)


def frames(kind: str) -> bytes:
    """Two frames that differ."""
    first, second = (np.full((9, 9, 3), value, np.uint8) for value in (10, 200))
    return saved(
        first,
        kind,
        save_all=True,
        append_images=[Image.fromarray(second)],
        **({"lossless": True} if kind == "WEBP" else {}),
    )


GREY = np.arange(12 * 20).reshape(12, 20) % 7


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (saved(smooth(), "JPEG"), "is a JPEG, whose compression changes the ids"),
        (saved(smooth(), "WEBP", quality=90), "is a lossy WEBP"),
        (saved(smooth(), "TIFF", compression="jpeg"), "is a lossy TIFF"),
        (saved(smooth(), "JPEG2000"), "is a JPEG2000"),
        (saved(smooth(), "TIFF", "CMYK"), "has 4 bands of 8-bit values"),
        (b"P5 20 12 7\n" + GREY.astype(np.uint8).tobytes(), "is a PGM or PPM, whose values are not read as stored"),
        (tiff(GREY, pages=3), "has 3 pages or frames"),
        (frames("GIF"), "has 2 pages or frames"),
        (frames("WEBP"), "has 2 pages or frames"),
        (frames("PNG"), "has 2 pages or frames"),
        (png(np.stack([GREY] * 3 + [GREY * 30], -1)), "is half transparent in places"),
        (png(np.stack([GREY, GREY * 30], -1)), "is half transparent in places"),
        (tiff(np.stack([GREY] * 3 + [GREY * 30], -1), 8, 2, extra=2), "is half transparent in places"),
        (png(np.stack([GREY] * 3, -1), 16), "pixels of the kind RGB, of 16 bits"),
        (tiff(GREY, 32, kind=3), "1 band of 32-bit floating-point grey values"),
        (tiff(GREY - 1, 16, kind=2), "has values from -1 to 5"),
        (tiff(GREY - 1, 8, kind=2), "has values from -1 to 5"),
        (tiff(GREY * 70_000, 32), "has values from 0 to 420000"),
        (tiff(np.stack([GREY] * 5, -1), extra=0), "5 bands of 8-bit grey values"),
        (b"", "cannot be read as a picture"),
        (png(GREY)[:-20], "is truncated"),
    ],
)
def test_masks_refused(data, complaint):
    with pytest.raises(UserError, match=f"some/file.* {complaint}|some/file {complaint}"):
        decode_mask(data, FILE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_pixels_have_no_ids(kind, channels):
    if channels == 2 and kind == "WEBP":
        pytest.skip("a WebP is always RGB")
    alpha = np.where(GREY == 2, 0, 255)
    pixels = np.stack([GREY] * (channels - 1) + [alpha], -1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(pixels, kind, **options)
    with pytest.raises(UserError, match="some/file is transparent in places"):
        read_ids(data, FILE)
    mask = decode_mask(data, FILE)
    assert np.array_equal(mask.ids(FILE, 999), np.where(GREY == 2, 999, GREY))
    assert np.array_equal(mask.colours(FILE, 999), np.where(GREY == 2, 999, GREY * 0x010101))


def test_a_value_called_transparent_stays():
    """By tRNS, which names a grey value or a colour."""
    assert np.array_equal(read_ids(png(GREY, alpha=[0, 2]), FILE), GREY)
    colours = np.stack([GREY, GREY * 0, GREY], -1)
    packed = decode_mask(png(colours, alpha=[0, 2, 0, 0, 0, 2]), FILE).colours(FILE)
    assert np.array_equal(packed, GREY * 0x010001)


def test_colours_are_no_ids():
    with pytest.raises(UserError, match="is a colour picture"):
        read_ids(png(np.stack([GREY, GREY, GREY * 0], -1)), FILE)


RGBA = np.random.default_rng(0).integers(0, 256, (12, 20, 4))
RGB, WIDE = RGBA[..., :3], np.random.default_rng(1).integers(0, 65536, (12, 20, 4))
PALETTE = np.random.default_rng(2).integers(0, 256, (16, 3))


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        *((png(GREY % 2**bits, bits), GREY % 2**bits * (255 // (2**bits - 1))) for bits in (1, 2, 4)),
        *((tiff(GREY % 2**bits, bits), GREY % 2**bits * (255 // (2**bits - 1))) for bits in (1, 2, 4)),
        (png(RGB[..., 0]), RGB[..., 0]),
        (png(RGBA[..., :2]), RGB[..., 0]),
        (png(RGB, interlaced=True), RGB),
        (png(RGBA), RGB),
        (png(GREY, 4, PALETTE, alpha=[0, 100]), PALETTE[GREY]),
        (png(WIDE[..., 0], 16), WIDE[..., 0] >> 8),
        (png(WIDE[..., :2], 16), WIDE[..., 0] >> 8),
        (png(WIDE, 16), WIDE[..., :3] >> 8),
        (tiff(RGB[..., 0]), RGB[..., 0]),
        (tiff(RGB[..., 0], 8, 0), 255 - RGB[..., 0]),
        (tiff(WIDE[..., 0], 16), WIDE[..., 0] >> 8),
        (tiff(WIDE[..., 0], 16, order=">"), WIDE[..., 0] >> 8),
        (tiff(WIDE[..., 0], 16, 0), (65535 - WIDE[..., 0]) >> 8),
        (tiff(RGBA[..., :2], extra=2), RGB[..., 0]),
        (tiff(RGB, 8, 2), RGB),
        (tiff(RGB, 8, 2, planar=True), RGB),
        # Alpha that is not multiplied in; OpenCV 5.0 darkens such pictures by it.
        (tiff(RGBA, 8, 2, extra=2), RGB),
        (tiff(RGBA, 8, 2, extra=0), RGB),
        (tiff(WIDE, 16, 2, extra=2), WIDE[..., :3] >> 8),
        (bmp(GREY % 2, 8, [[0] * 3, [255] * 3]), GREY % 2 * 255),
        (bmp(GREY, 4, PALETTE), PALETTE[GREY]),
        (saved(RGB, "WEBP", lossless=True), RGB),
        (saved(RGB, "PPM"), RGB),
        (saved(RGB, "JPEG2000"), RGB),
        (b"P5 20 12 65535\n" + WIDE[..., 0].astype(">u2").tobytes(), WIDE[..., 0] >> 8),
    ],
)
def test_pictures_are_what_was_drawn(data, pixels):
    expected = np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels
    got = decode_image(data, FILE).pixels
    assert got.dtype == np.uint8 and np.array_equal(got, expected) and got.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("data", "pixels", "error"),
    [
        (saved(smooth(), "JPEG", quality=98, subsampling=0), smooth(), 8),
        (saved(smooth(), "JPEG", "L", quality=98), cv2.cvtColor(smooth(), cv2.COLOR_RGB2GRAY)[..., None], 8),
        (saved(smooth(), "JPEG", "CMYK", quality=98), smooth(), 12),
        (saved(smooth(), "TIFF", "CMYK"), smooth(), 3),
        (saved(smooth(), "TIFF", compression="jpeg", quality=98), smooth(), 30),
    ],
)
def test_lossy_pictures(data, pixels, error):
    assert np.abs(decode_image(data, FILE).pixels - pixels.astype(int)).max() <= error


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_pictures_are_upright(tmp_path, orientation, kind, options):
    """Pillow 13.0 turns TIFFs itself; OpenCV 5.0 does so even where it is asked for pixels as stored."""
    if kind == "AVIF" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "picture"
    path.write_bytes(saved(smooth(), kind, exif=exif, **options))
    expected = upright(smooth(), orientation)
    picture = decode_image(path.read_bytes(), path)
    assert np.abs(picture.pixels - expected.astype(int)).max() <= (8 if kind in ("JPEG", "AVIF") else 0)
    assert picture.facts.orientation == orientation
    assert read_size(path) == expected.shape[1::-1]
    assert np.array_equal(turned(smooth(), orientation), expected)
    assert np.array_equal(as_stored(expected, orientation), smooth())


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_turn_nothing(value):
    exif = Image.Exif()
    exif[0x112] = value
    assert np.array_equal(decode_image(saved(smooth(), "PNG", exif=exif), FILE).pixels, smooth())
    broken = saved(smooth(), "PNG", exif=b"Exif\0\0no such thing")
    assert np.array_equal(decode_image(broken, FILE).pixels, smooth())


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (tiff(np.stack([GREY] * 2, -1), extra=0), "2 bands of 8-bit grey values"),
        (tiff(np.stack([GREY] * 12, -1), extra=0), "12 bands of 8-bit grey values"),
        (tiff(np.stack([GREY] * 5, -1), 32, extra=0, kind=3), "5 bands of 32-bit floating-point grey values"),
        (tiff(GREY, 32), "1 band of 32-bit grey values"),
        (tiff(GREY, 64, kind=3), "1 band of 64-bit floating-point grey values"),
        (tiff(GREY, 16, kind=2), "1 band of 16-bit signed grey values"),
        (
            tiff(WIDE[..., :3], 16, planar=True),
            "3 bands of 16-bit grey values stored .* with photometric RGB, if these",
        ),
        (b"no picture at all", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
    ],
)
def test_pictures_refused(capfd, data, complaint):
    with pytest.raises(UserError, match=f"some/file.* {complaint}|some/file {complaint}"):
        decode_image(data, FILE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_is_one_sentence(capfd, kind):
    """Libraries' own messages (libtiff: "Using code not yet in table") stay off the terminal."""
    whole = saved(
        np.random.default_rng(0).integers(0, 256, (40, 50, 3)),
        kind,
        **({"compression": "tiff_lzw"} if kind == "TIFF" else {}),
    )
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        first = int(rng.integers(len(data)))
        data[first : first + 30] = rng.integers(0, 256, len(data[first : first + 30]), dtype=np.uint8).tobytes()
        for reader in (decode_image, decode_mask):
            try:
                reader(bytes(data), FILE)
            except UserError as error:
                refused += 1
                assert str(FILE) in str(error) and "<" not in str(error) and "\n" not in str(error)
    # A bitmap is damaged by its header alone.
    assert refused or kind == "BMP"
    assert capfd.readouterr() == ("", "")


def deflated(ids: np.ndarray, **how) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="tifffile writes these files")
    file = io.BytesIO()
    tifffile.imwrite(file, ids, compression="zlib", **how)
    return file.getvalue()


@pytest.mark.parametrize(
    "encode",
    [
        deflated,
        partial(deflated, tile=(16, 16)),
        partial(deflated, bigtiff=True),
        partial(saved, kind="TIFF", compression="tiff_deflate", tiffinfo={266: 2}),
    ],
    ids=["strips", "tiles", "big", "lowest bit first"],
)
def test_a_flipped_bit_in_a_deflated_tiff_is_damage(encode):
    """libtiff 4.7.2 (Pillow 13.0) does not compare a strip with its checksum and gives other values."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (48, 64)).astype(np.uint8)
    data = encode(ids)
    assert np.array_equal(read_ids(data, FILE), ids)
    start, size = tiff_pages(data)[0].pieces[-1]
    for place in rng.integers(start, start + size, 40):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        for reader in (decode_image, decode_mask):
            with pytest.raises(UserError, match=f"{FILE} cannot be read as a picture; it is damaged"):
                reader(bytes(damaged), FILE)


def test_what_is_told_of_pictures():
    facts = {
        Path("a.tif"): decode_image(tiff(GREY, pages=3), FILE).facts,
        Path("b.png"): decode_image(png(WIDE[..., 0] >> 4, 16), FILE).facts,
        Path("c.png"): decode_image(png(GREY), FILE).facts,
    }
    assert facts[Path("c.png")] == PictureFacts(1, 1, None)
    pages, dark = notes(facts)
    assert "a.tif" in pages and pages.startswith("1 picture has several pages")
    assert "no value above 4095 of 65535" in dark
    bright = decode_image(png(WIDE, 16), FILE).facts
    assert notes({**facts, "d": bright})[1].startswith("1 of 2 pictures of 16 bits use no value above 4095")
    assert notes({**facts, "d": bright, "e": bright}) == [pages]


def test_a_picture_in_pillow_is_read_as_its_file():
    for data in (png(WIDE[..., 0], 16), tiff(WIDE[..., 0], 16), png(RGBA), png(GREY, 4, PALETTE, alpha=[0])):
        assert np.array_equal(to_rgb(Image.open(io.BytesIO(data))), decode_image(data, FILE).pixels)
    with pytest.raises(UserError, match="floating-point values"):
        to_rgb(Image.fromarray(GREY.astype(np.float32)))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("bands", [3, 4])
def test_bands_of_16_bits_one_after_the_other(monkeypatch, bands, orientation):
    """Pillow 13.0 and OpenCV 5.0 take them for pixels."""
    pytest.importorskip("rasterio", reason="rasterio reads these files")
    extra = None if bands == 3 else 2
    data = tiff(WIDE[..., :bands], 16, 2, planar=True, extra=extra, orientation=orientation)
    assert np.array_equal(decode_image(data, FILE).pixels, upright(WIDE[..., :3] >> 8, orientation))
    monkeypatch.setitem(sys.modules, "rasterio.io", None)
    with pytest.raises(
        UserError, match=r'bands of 16-bit values stored one .*pip install "cssformer\[geo\]" \(rasterio'
    ):
        decode_image(data, FILE)


@pytest.mark.parametrize("bits", [10, 14])
def test_odd_depths_are_told(bits):
    data = bytearray(tiff(GREY, 16))
    tag = next(at for at in range(10, 200, 12) if data[at : at + 2] == (258).to_bytes(2, "little"))
    data[tag + 8] = bits
    for read in (decode_image, decode_mask):
        with pytest.raises(UserError, match=f"some/file has 1 band of {bits}-bit grey values; give grey or RGB of 8"):
            read(bytes(data), FILE)


def test_pictures_beyond_the_limit_are_told_with_a_way_out(tmp_path):
    path = tmp_path / "aerial.png"
    whole = png(GREY, 1)
    header = struct.pack(">II", 20_000, 20_000) + whole[24:29]
    path.write_bytes(whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:])
    for read in (read_as_photograph, read_size):
        with pytest.raises(
            UserError, match=r"aerial\.png cannot be read: it has over 178 million pixels; cut it into pi"
        ):
            read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among files")
def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        for read in (read_bytes, read_as_photograph, read_size):
            with pytest.raises(UserError, match="is a folder, a pipe or a device"):
                read(path)


def test_which_files_are_pictures():
    assert all(map(is_picture, map(Path, ("a.JPG", "b.jfif", "c.Tiff", "d.webp", "e.jp2", "f.avif", "g.gif", "h.ppm"))))
    assert not any(map(is_picture, map(Path, ("._a.jpg", ".b.png", "c.txt", "png", "d.mp4"))))


def test_folders_are_searched_through_links_and_not_through_hidden_ones(tmp_path):
    for name in ("in/a/1.png", "in/.hidden/2.png", "in/b/._3.png", "out/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    (tmp_path / "in/a/circle").symlink_to(tmp_path / "in")
    found = [str(path.relative_to(tmp_path / "in")) for path in files_under(tmp_path / "in")]
    assert found == ["a/1.png", "link/4.png"]


def test_what_is_written_is_read_again(tmp_path):
    for pixels in (RGB.astype(np.uint8), GREY.astype(np.uint8), (GREY * 99).astype(np.uint16)):
        mask = decode_mask(encode_png(pixels), FILE)
        assert np.array_equal(mask.pixels, pixels)
    write_image(tmp_path / "a.png", RGB.astype(np.uint8))
    assert np.array_equal(read_as_photograph(tmp_path / "a.png"), RGB)
    for count in (7, 300):
        write_label(tmp_path / "b.png", GREY, [(index % 256, 1, 2) for index in range(count)])
        mask = decode_mask((tmp_path / "b.png").read_bytes(), FILE)
        assert np.array_equal(mask.ids(FILE), GREY)
        assert (mask.palette is None) == (count > 255)
        assert count > 255 or mask.palette[:7].tolist() == [[index, 1, 2] for index in range(7)]


@pytest.mark.parametrize("tag", [254, 258, 259, 262, 273, 277, 279, 284, 339])
@pytest.mark.parametrize("kind", [2, 5, 7, 12])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_tags_of_another_type_are_no_traceback(tag, kind):
    """Text, fractions, bytes and floating-point numbers in place of whole ones."""
    data = bytearray(tiff(GREY))
    entry = next(at for at in range(10, 200, 12) if data[at : at + 2] == tag.to_bytes(2, "little"))
    data[entry + 2] = kind
    for reader in (decode_image, decode_mask):
        with suppress(UserError):
            reader(bytes(data), FILE)


def test_a_picture_inspected_is_the_picture_decoded():
    pictures = [saved(smooth(), "JPEG"), png(RGB), png(WIDE, 16), png(GREY, 4, PALETTE, orientation=6), tiff(GREY)]
    for data in pictures:
        pixels, facts = decode_image(data, FILE)
        assert inspect_image(data, FILE) == (pixels.shape[:2], facts)
    middle = len(pictures[1]) // 2
    with pytest.raises(UserError, match="some/file cannot be read as a picture"):
        inspect_image(pictures[1][:middle] + b"\xff\xd0" * 40 + pictures[1][middle + 80 :], FILE)


def test_an_index_beyond_the_palette_is_no_other_colour() -> None:
    picture = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    file = io.BytesIO()
    picture.save(file, "PNG")
    mask = decode_mask(file.getvalue(), FILE)
    assert mask.ids(FILE).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match=r"index 3, but colours for 0 to 2 alone"):
        mask.colours(FILE)
