#!/bin/sh
# Pillow 13.0.0 and OpenCV 5.0.0.93 (numpy 2.4.6, tifffile 2026.3.3 to write): an RGB TIFF of 16 bits whose bands are
# stored one after the other (PlanarConfiguration 2) is read as if they were stored pixel by pixel.
#
# Three neighbouring red values become one pixel's red, green and blue: a picture of three narrow grey stripes, no error
# and no warning. 8 bits are read rightly by both, and tifffile and GDAL read 16 bits rightly.
#
# Source: seen by running it. https://github.com/python-pillow/Pillow/pull/5178 (closed, not merged) would read
# PlanarConfiguration 2 at other depths; OpenCV's https://github.com/opencv/opencv/issues/28717 is of the same kind.
#
# Output seen:
#   8 bits: equal to what is stored: Pillow True, OpenCV True, tifffile True
#   16 bits: equal to what is stored: Pillow False, OpenCV False, tifffile True
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.4.6 pillow==13.0.0 opencv-python-headless==5.0.0.93 tifffile==2026.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import tifffile
from PIL import Image

changed = False
for kind in (np.uint8, np.uint16):
    stored = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (20, 30, 3), kind)
    file = io.BytesIO()
    tifffile.imwrite(file, np.moveaxis(stored, -1, 0), photometric="rgb", planarconfig="separate")
    data = file.getvalue()
    bits = 8 * stored.itemsize
    # Pillow keeps the upper 8 bits.
    by_pillow = np.array_equal(np.array(Image.open(io.BytesIO(data))), stored >> (bits - 8))
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    by_opencv = by_opencv is not None and np.array_equal(by_opencv[..., ::-1], stored)
    by_tifffile = np.array_equal(np.moveaxis(tifffile.imread(io.BytesIO(data)), 0, -1), stored)
    print(f"{bits} bits: equal to what is stored: Pillow {by_pillow}, OpenCV {by_opencv}, tifffile {by_tifffile}")
    changed |= (by_pillow, by_opencv, by_tifffile) != (bits == 8, bits == 8, True)
raise SystemExit(changed)
PYTHON
