"""Files written byte by byte from the formats' definitions, for what libraries cannot write."""

import struct
import zlib

import numpy as np

# Where the pixels of Adam7's seven passes begin, and how far apart they are: x, y, across, down.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of samples (H, n) of 1, 2, 4, 8, 16 or 32 bits, each row beginning with a new byte."""
    if bits >= 8:
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    spread = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(spread.reshape(len(samples), -1), axis=1).tobytes()


def png(pixels, bits=8, palette=None, alpha=None, interlaced=False, orientation=1, animated=False) -> bytes:
    """Grey (H, W), grey and alpha (H, W, 2), RGB or RGBA, or indices of ``palette`` (n, 3), perhaps with tRNS."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def rows(part: np.ndarray) -> bytes:
        if not part.size:
            return b""
        lines = [packed(row.reshape(1, -1), bits) for row in part]
        return b"".join(b"\0" + line for line in lines)

    parts = [pixels[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [pixels]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = b"\x89PNG\r\n\x1a\n"
    data += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    if orientation != 1:
        data += chunk(b"eXIf", tiff_header([(274, 3, [orientation])], ">"))
    if animated:
        data += chunk(b"acTL", struct.pack(">II", 2, 0))
    if palette is not None:
        data += chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes())
    if alpha is not None:
        data += chunk(b"tRNS", bytes(alpha))
    return data + chunk(b"IDAT", zlib.compress(b"".join(map(rows, parts)))) + chunk(b"IEND", b"")


def tiff_header(entries: list[tuple[int, int, list[int]]], order: str, base: int = 8, more: bool = False) -> bytes:
    """A header and directory of (tag, 3 for short or 4 for long, values); ``base`` is where the directory stands."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, base)
    directory, extra = b"", b""
    after = base + 2 + 12 * len(entries) + 4
    for tag, kind, values in sorted(entries):
        data = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            extra, data = extra + data, struct.pack(order + "I", after + len(extra))
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    following = after + len(extra) if more else 0
    table = struct.pack(order + "H", len(entries)) + directory + struct.pack(order + "I", following)
    return (head if base == 8 else b"") + table + extra


def tiff(
    pixels,
    bits=8,
    photometric=1,
    *,
    palette=None,
    extra=None,
    kind=1,
    planar=False,
    orientation=1,
    order="<",
    pages=1,
    overviews=False,
) -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, bands); ``kind`` 1 is unsigned, 2 signed, 3 floating-point."""
    height, width = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    raw = pixels.astype(f"{'f' if kind == 3 else 'i'}{bits // 8}").view(f"u{bits // 8}") if kind > 1 else pixels
    planes = [raw[..., band] for band in range(bands)] if planar else [raw.reshape(height, -1)]
    strips = [packed(plane, bits, order) for plane in planes]
    data = b""
    for page in range(pages):
        base = 8 if page == 0 else len(data)
        entries = [
            (254, 4, [int(overviews and page > 0)]),
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [bits] * bands),
            (259, 3, [1]),
            (262, 3, [photometric]),
            (274, 3, [orientation]),
            (277, 3, [bands]),
            (278, 4, [height]),
            (279, 4, [len(strip) for strip in strips]),
            (284, 3, [2 if planar else 1]),
            (339, 3, [kind] * bands),
        ]
        if palette is not None:
            full = np.zeros((2**bits, 3), int)
            full[: len(palette)] = np.asarray(palette) * 257
            entries.append((320, 3, full.T.ravel().tolist()))
        if extra is not None:
            entries.append((338, 3, [extra] * (bands - (3 if photometric == 2 else 1))))
        more = page < pages - 1
        # The next directory begins right behind this one; all share the strips at the very end.
        data += tiff_header([*entries, (273, 4, [0] * len(strips))], order, base, more)
    return _with_strips(data, strips, order)


def _with_strips(data: bytes, strips: list[bytes], order: str) -> bytes:
    """Append the strips and write their places where tag 273 wants them, in every directory."""
    places, result, body = [], bytearray(data), b""
    for strip in strips:
        places.append(len(data) + len(body))
        body += strip
    (place,) = struct.unpack_from(order + "I", data, 4)
    while place:
        (count,) = struct.unpack_from(order + "H", data, place)
        for number in range(count):
            at = place + 2 + 12 * number
            tag, _, values = struct.unpack_from(order + "HHI", data, at)
            if tag == 273:
                at = at + 8 if values == 1 else struct.unpack_from(order + "I", data, at + 8)[0]
                struct.pack_into(f"{order}{values}I", result, at, *places)
        (place,) = struct.unpack_from(order + "I", data, place + 2 + 12 * count)
    return bytes(result) + body


def bmp(indices, bits, palette, top_down=False, old=False) -> bytes:
    """An uncompressed BMP of palette indices (H, W) of 1, 4 or 8 bits; ``old`` has OS/2's header of 12 bytes."""
    height, width = indices.shape
    rows = [packed(row[None], bits) for row in indices]
    rows = [row + b"\0" * (-len(row) % 4) for row in (rows if top_down and not old else rows[::-1])]
    colours = np.asarray(palette, np.uint8)[:, ::-1]
    if old:
        full = np.zeros((2**bits, 3), np.uint8)
        full[: len(colours)] = colours
        table, header = full.tobytes(), struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        table = np.pad(colours, ((0, 0), (0, 1))).tobytes()
        tall = -height if top_down else height
        header = struct.pack("<IiiHHIIiiII", 40, width, tall, 1, bits, 0, 0, 0, 0, len(colours), 0)
    offset = 14 + len(header) + len(table)
    data = b"".join(rows)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + table + data
