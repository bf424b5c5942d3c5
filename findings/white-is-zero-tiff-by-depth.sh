#!/bin/sh
# Pillow 13.0.0 and OpenCV 5.0.0.93 (numpy 2.4.6, tifffile 2026.3.3 to write): grey TIFFs whose photometric
# interpretation is white-is-zero come inverted where they have 8 bits, and as stored where they have 16.
#
# One data set of both depths is read half inverted. The ids 0, 1, 2 of an 8-bit label file become 255, 254, 253, of a
# 16-bit one they stay. tifffile and GDAL give the stored values at both depths.
#
# Source: seen by running it. https://github.com/python-pillow/Pillow/pull/5655 handles white-is-zero for the modes 1
# and L alone.
#
# Output seen:
#   8 bits: stored [0, 1, 2], Pillow [255, 254, 253], OpenCV [255, 254, 253], tifffile [0, 1, 2]
#   16 bits: stored [0, 1, 2], Pillow [0, 1, 2], OpenCV [0, 1, 2], tifffile [0, 1, 2]
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
    stored = np.arange(3, dtype=kind).reshape(1, 3)
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="miniswhite")
    data = file.getvalue()
    by_pillow = np.array(Image.open(io.BytesIO(data)))[0].tolist()
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[0].tolist()
    by_tifffile = tifffile.imread(io.BytesIO(data))[0].tolist()
    bits = 8 * stored.itemsize
    print(f"{bits} bits: stored [0, 1, 2], Pillow {by_pillow}, OpenCV {by_opencv}, tifffile {by_tifffile}")
    expected = [255, 254, 253] if bits == 8 else [0, 1, 2]
    changed |= by_pillow != expected or by_opencv != expected or by_tifffile != [0, 1, 2]
raise SystemExit(changed)
PYTHON
