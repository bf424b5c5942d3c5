#!/bin/sh
# Pillow 13.0.0 (numpy 2.4.6): grey PNG and TIFF of 2 and 4 bits are opened in mode L with their values times 85 and 17.
#
# A label file that holds the ids 0, 1, 2, 3 in 2 bits comes back as 0, 85, 170, 255, without a warning and without an
# attribute that tells the depth. Of 1 bit (mode 1), of 8 and of 16 bits, and with a palette, values come back as stored.
# As brightness this is right (3 of 2 bits is white); whoever takes the pixels for numbers gets others. Lossless
# optimisers reduce 8 bits to 2 or 4 where they can, so that files of one set may differ in this.
#
# Source: seen by running it. https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html#png lists the
# modes and does not mention it; https://libpng.org/pub/png/spec/1.2/PNG-Decoders.html leaves rescaling to decoders.
#
# Output seen:
#   PNG of 2 bits: stored [0, 1, 2, 3], mode L, read [0, 85, 170, 255]
#   PNG of 4 bits: stored [0, 1, 2, 3], mode L, read [0, 17, 34, 51]
#   TIFF of 2 bits: stored [0, 1, 2, 3], mode L, read [0, 85, 170, 255]
#   TIFF of 4 bits: stored [0, 1, 2, 3], mode L, read [0, 17, 34, 51]
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import numpy as np
from PIL import Image

ids = [0, 1, 2, 3]


def png(bits):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = int("".join(f"{value:0{bits}b}" for value in ids), 2).to_bytes(4 * bits // 8, "big")
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(bits):
    row = int("".join(f"{value:0{bits}b}" for value in ids), 2).to_bytes(4 * bits // 8, "big")
    # Width, height, bits, no compression, black is zero, where the strip is, bands, rows in it, its bytes.
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, len(row))]
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + struct.pack("<I", 0) + row


changed = False
for kind, write in (("PNG", png), ("TIFF", tiff)):
    for bits in (2, 4):
        picture = Image.open(io.BytesIO(write(bits)))
        read = np.array(picture)[0].tolist()
        print(f"{kind} of {bits} bits: stored {ids}, mode {picture.mode}, read {read}")
        changed |= read != [value * (255 // (2**bits - 1)) for value in ids]
raise SystemExit(changed)
PYTHON
